"""Trials of vectors in a space: one-shot and few-shot episodes and nearest neighbours, the same ones
for every candidate, and the space fitted on support sides only.

Numpy in, numpy out; knows no model and no names of readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.episodes import Array, Episodes, Mask, Rows, able, answered, draw, partitions, products
from penult.errors import LabelsError
from penult.space import Space

MEASURES = ("one-shot", "few-shot", "neighbours")
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
        """(3, n): each row's share of right answers as a query, by measure; NaN where never asked.

        fit: gives the space from the mask of the rows that it may see.
        """
        total = np.zeros((len(MEASURES), len(self.labels)))
        count = np.zeros_like(total)
        for side, drawn in zip(self.sides, self.episodes, strict=True):
            inner = products(fit(~side)(vectors))
            for number, episodes in enumerate(drawn):
                if episodes is not None:
                    asked = episodes.query.ravel()
                    np.add.at(total[number], asked, answered(inner, episodes).ravel())
                    np.add.at(count[number], asked, 1)
            asked, right = voted(inner, self.labels, side)
            total[2, asked] += right
            count[2, asked] += 1
        with np.errstate(invalid="ignore"):
            return (total / np.where(count, count, np.nan)).astype(np.float32)


def plan(
    labels: Rows, groups: Rows, *, repeats: int = 3, count: int = 200, ways: int = WAYS, seed: int = 0
) -> Plan:
    """Halves that share no group, `repeats` times, each asked from both sides.

    Raises:
        LabelsError: fewer than two classes have items on both sides.
    """
    sides = tuple(
        side for side in partitions(labels, groups, 2, repeats, seed) if len(able(labels, side, 1)) > 1
    )
    if not sides:
        raise LabelsError(
            "the items cannot be divided so that two classes have items on both sides and no group "
            "is on both; give classes items of two groups or more, or give no groups"
        )
    shots = few(labels, sides)
    drawn = []
    for number, side in enumerate(sides):
        both = []
        for k in (1, shots):
            classes = len(able(labels, side, k))
            fits = classes > 1 and (k > 1 or not both)
            both.append(draw(labels, side, min(ways, classes), k, count, seed + number) if fits else None)
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


def voted(inner: Array, labels: Rows, side: Mask, k: int = VOTERS) -> tuple[Rows, Array]:
    """(the rows of the query side, whether the vote of their k nearest support rows is right).

    inner: (n, n), `products` of the vectors; near is by cosine.
    """
    asked, there = np.flatnonzero(side), np.flatnonzero(~side)
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    length = np.where(length > 0, length, 1.0)
    near = (inner / length / length[:, None])[np.ix_(asked, there)]
    k = min(k, len(there))
    top = np.argpartition(-near, k - 1, axis=1)[:, :k]
    votes = np.zeros((len(asked), int(labels.max()) + 1))
    for column in range(k):
        cosine = np.take_along_axis(near, top[:, column : column + 1], axis=1)[:, 0]
        # A vote counts more than any sum of cosines can make up for.
        np.add.at(votes, (np.arange(len(asked)), labels[there[top[:, column]]]), 1 + cosine / (4 * k))
    return asked, (votes.argmax(axis=1) == labels[asked]).astype(np.float32)
