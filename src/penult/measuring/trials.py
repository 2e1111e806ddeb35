"""Trials of vectors in a space: episodes, crowds and nearest neighbours, the same ones for every
candidate, and the space fitted on support sides only.

Numpy in, numpy out; knows no model and no names of readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError
from penult.measuring.episodes import (
    Array,
    Episodes,
    Mask,
    Rows,
    able,
    answered,
    draw,
    partitions,
    products,
)
from penult.space import Space

_TIED = 1e-12  # a share that is none, but for rounding
MEASURES = ("one-shot", "few-shot", "neighbours", "in a crowd")
CROWD = 19  # examples of other classes, beside the one of the query's own
WAYS = 20
FEW = (5, 3, 2)
VOTERS = 5

Fit = Callable[[Mask], Space]  # from the rows that it may be fitted on to a space


@dataclass(frozen=True, slots=True)
class Plan:
    """How vectors are tried: sides and episodes, drawn once for all candidates.

    labels, groups: (n,) numbers. sides: query sides (n,). episodes: for each side, those of one
    shot and those of a few (None where no two classes have so many). shots: how many a few are; 1
    where there are none.
    """

    labels: Rows
    groups: Rows
    sides: tuple[Mask, ...]
    episodes: tuple[tuple[Episodes, Episodes | None], ...]
    shots: int

    @property
    def ways(self) -> int:
        """The most classes in an episode."""
        return max(one.ways for one, _ in self.episodes)

    def scores(self, vectors: npt.ArrayLike, fit: Fit) -> Array:
        """(4, n): each row's share of right answers as a query, by measure; NaN where never asked.

        fit: gives the space from the mask of the rows that it may see.
        """
        total = np.zeros((len(MEASURES), len(self.labels)))
        count = np.zeros_like(total)
        for side, drawn in zip(self.sides, self.episodes, strict=True):
            inner = products(fit(~side)(vectors))
            near = cosines(inner, side)
            for number, episodes in enumerate(drawn):
                if episodes is not None:
                    asked = episodes.query.ravel()
                    np.add.at(total[number], asked, answered(inner, episodes).ravel())
                    np.add.at(count[number], asked, 1)
            asked = np.flatnonzero(side)
            labels, there = self.labels[asked], self.labels[~side]
            rest = (voted(near, labels, there), crowded(near, labels, there))
            for number, found in enumerate(rest, 2):
                known = np.isfinite(found)
                total[number, asked[known]] += found[known]
                count[number, asked[known]] += 1
        with np.errstate(invalid="ignore"):
            shares: Array = (total / np.where(count, count, np.nan)).astype(np.float32)
        return shares


def plan(
    labels: Rows,
    groups: Rows,
    *,
    repeats: int = 3,
    count: int = 200,
    ways: int = WAYS,
    seed: int = 0,
) -> Plan:
    """Halves that share no group, `repeats` times, each asked from both sides.

    Raises:
        LabelsError: fewer than two classes have items on both sides.
    """
    sides = tuple(
        side
        for side in partitions(labels, groups, 2, repeats, seed)
        if len(able(labels, side, 1)) > 1
    )
    if not sides:
        raise LabelsError(
            "the items cannot be divided so that two classes have items on both sides and no group "
            "is on both; give classes items of two groups or more, or give no groups"
        )
    shots = few(labels, sides)
    drawn = []
    for number, side in enumerate(sides):
        both: list[Episodes | None] = []
        for k in (1, shots):
            classes = len(able(labels, side, k))
            fits = classes > 1 and (k > 1 or not both)
            both.append(
                draw(labels, side, min(ways, classes), k, count, seed + number) if fits else None
            )
        first = both[0]
        assert first is not None  # its side has two classes
        drawn.append((first, both[1]))
    return Plan(labels, groups, sides, tuple(drawn), shots)


def few(labels: Rows, sides: Sequence[Mask]) -> int:
    """How many examples a few-shot episode takes: the most that most classes have; 1 for none."""
    for shots in FEW:
        if all(2 * len(able(labels, side, shots)) > len(able(labels, side, 1)) for side in sides):
            return shots
    return 1


def cosines(inner: Array, side: Mask) -> Array:
    """(q, s) of the query side with the support side. inner: (n, n), `products` of vectors."""
    root = np.sqrt(np.maximum(np.diag(inner), 0.0))
    length = np.where(root > 0, root, 1.0)
    near: Array = (inner / length / length[:, None])[np.ix_(side, ~side)].astype(np.float32)
    return near


def voted(near: Array, labels: Rows, there: Rows, k: int = VOTERS) -> Array:
    """(q,) whether the vote of the k nearest is right.

    near: (q, s) cosines. labels: (q,) of the queries. there: (s,) of the support.
    """
    k = min(k, near.shape[1])
    # Rows often stand class by class: equally near ones must not come in that order.
    mixed = np.random.default_rng(0).permutation(near.shape[1])
    near, there = near[:, mixed], there[mixed]
    top = np.argpartition(-near, k - 1, axis=1)[:, :k]
    votes = np.zeros((len(labels), int(max(labels.max(), there.max())) + 1))
    for column in range(k):
        cosine = np.take_along_axis(near, top[:, column : column + 1], axis=1)[:, 0]
        # A vote counts more than any sum of cosines can make up for.
        np.add.at(votes, (np.arange(len(labels)), there[top[:, column]]), 1 + cosine / (4 * k))
    right: Array = (votes.argmax(axis=1) == labels).astype(np.float32)
    return right


def _share_before(
    near: Array, weight: npt.NDArray[np.float64], first: Mask
) -> npt.NDArray[np.float64]:
    """(q, s) the weight of what comes before each example, nearest first; of equally near ones
    those in `first` lead."""
    order = np.lexsort((~first, -near), axis=1)
    before = np.empty_like(weight)
    np.put_along_axis(
        before, order, np.take_along_axis(weight, order, axis=1).cumsum(axis=1), axis=1
    )
    return before


def crowded(near: Array, labels: Rows, there: Rows, others: int = CROWD) -> Array:
    """(q,) the probability that one example of the query's own class is nearer than all of
    `others` examples of other classes, whose classes are drawn alike; NaN where either is absent.

    Exact, not sampled. As hard with three classes as one-shot of many ways is, so that it tells
    good from better where few classes are labelled. near, labels, there: as `voted`.
    """
    own = labels[:, None] == there[None]
    size = np.bincount(there, minlength=int(max(labels.max(), there.max())) + 1)
    share = 1.0 / size[there]
    weight = np.where(own, 0.0, share[None])
    whole = weight.sum(axis=1, keepdims=True)
    weight = weight / np.where(whole > 0, whole, 1.0)
    # Of the others a share is nearer than each example, and a share as near: these come before it
    # or behind it by chance, each place as likely.
    nearer, upto = (_share_before(near, weight, first) for first in (own, ~own))
    tied = upto - nearer
    left, rest = np.maximum(1.0 - nearer, 0.0), np.maximum(1.0 - upto, 0.0)
    power = others + 1
    spread = (left**power - rest**power) / (np.where(tied > _TIED, tied, 1.0) * power)
    chance = (np.where(tied > _TIED, spread, left**others) * own).sum(axis=1)
    examples = own.sum(axis=1)
    asked = (examples > 0) & (whole[:, 0] > 0)
    found: Array = np.where(asked, chance / np.maximum(examples, 1), np.nan).astype(np.float32)
    return found
