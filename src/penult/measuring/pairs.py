"""Pairs of vectors as same or different: which there are, their cosines, the equal error rate.

Numpy in, numbers out; knows no task.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError
from penult.space import unit

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

_BLOCK = 100_000


class Pairs(NamedTuple):
    """left, right: (m,) numbers of rows. same: (m,) whether both are of one class."""

    left: Rows
    right: Rows
    same: Flags


class EqualError(NamedTuple):
    """rate: where as many pairs of one class are rejected as pairs of two are accepted.
    threshold: the cosine from which on a pair is accepted there. area: under the curve (ROC)."""

    rate: float
    threshold: float
    area: float


def find_pairs(labels: Rows, groups: Rows | None, most: int, seed: int = 0) -> Pairs:
    """Pairs of rows of different groups: all, or about `most` of them drawn at random.

    groups: (n,) numbers, None where each row is a group of its own. Two rows of one group (one
    recording, one speaker) are no pair, whether of one class or of two: what they share beside
    the class would be measured. Of one class, all pairs are taken, or half of `most`: among many
    classes a pair drawn from all is hardly ever one.
    """
    n = len(labels)
    if n * (n - 1) // 2 <= most:
        left, right = (side.astype(np.int64) for side in np.triu_indices(n, 1))
    else:
        random = np.random.default_rng(seed)
        one, other = _same_pairs(labels, most // 2, random)
        left = random.integers(0, n, most - len(one))
        right = (left + random.integers(1, n, len(left))) % n
        apart = labels[left] != labels[right]
        left, right = np.append(one, left[apart]), np.append(other, right[apart])
    if groups is not None:
        usable = groups[left] != groups[right]
        left, right = left[usable], right[usable]
    return Pairs(left, right, labels[left] == labels[right])


def _same_pairs(labels: Rows, most: int, random: np.random.Generator) -> tuple[Rows, Rows]:
    """The pairs of one class, or `most` of them drawn at random."""
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    first, pairs = np.cumsum(counts) - counts, counts * (counts - 1) // 2
    if pairs.sum() > most:
        of = random.choice(len(counts), most, p=pairs / pairs.sum())
        one = random.integers(0, counts[of])
        other = (one + random.integers(1, counts[of])) % counts[of]
        return order[first[of] + one], order[first[of] + other]
    # Row i is paired with each one behind it that has its class: so many of them there are.
    behind = np.repeat(first + counts, counts) - np.arange(len(labels)) - 1
    left = np.repeat(np.arange(len(labels)), behind)
    step = np.arange(len(left)) - np.repeat(np.cumsum(behind) - behind, behind)
    return order[left], order[left + 1 + step]


def cosines(vectors: npt.ArrayLike, pairs: Pairs) -> Floats:
    """(m,) of pairs of vectors (n, d)."""
    rows = unit(np.asarray(vectors, np.float64))
    found = np.empty(len(pairs.left))
    for at in range(0, len(found), _BLOCK):
        part = slice(at, at + _BLOCK)
        found[part] = np.einsum("nd,nd->n", rows[pairs.left[part]], rows[pairs.right[part]])
    return found


def equal_error(
    scores: npt.ArrayLike,
    same: npt.ArrayLike,
    weights: Floats | None = None,
    order: Rows | None = None,
) -> EqualError:
    """The equal error rate of scored pairs, interpolated between two thresholds.

    scores: (m,), larger for pairs that are more alike; equal ones are accepted or rejected
    together. weights: (m,) how much each pair counts. order: of the scores from the largest down,
    where it is known.

    Raises:
        LabelsError: there are no pairs of one of the kinds.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(same, bool)
    if not positive.any() or positive.all():
        raise LabelsError(
            f"an equal error rate needs pairs of both kinds; received {int(positive.sum())} of "
            f"one class and {int((~positive).sum())} of two"
        )
    order = np.argsort(-values, kind="stable") if order is None else order
    values, positive = values[order], positive[order]
    weight = np.ones(len(values)) if weights is None else weights[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # the last of equal scores
    found, accepted = (
        np.append(0.0, np.cumsum(weight * kind)[ends]) for kind in (positive, ~positive)
    )
    found, accepted = found / found[-1], accepted / accepted[-1]
    gap = (1.0 - found) - accepted  # from 1 down to −1: the two rates cross once
    at = int(np.argmax(gap <= 0))
    share = gap[at - 1] / (gap[at - 1] - gap[at])
    rate = accepted[at - 1] + share * (accepted[at] - accepted[at - 1])
    area = float(np.trapezoid(found, accepted))
    return EqualError(float(rate), float(values[ends[at - 1]]), area)
