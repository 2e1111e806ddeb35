"""Verification: pairs of vectors as same or different, the equal error rate, its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import percentile_interval
from penult.analysis.episodes import numbered, own_groups
from penult.analysis.space import check_finite, unit
from penult.errors import LabelsError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

_BLOCK = 100_000


class Pairs(NamedTuple):
    """left, right: (m,) numbers of rows. same: (m,) whether both are of one class. possible: how
    many pairs there are, of which these may have been drawn."""

    left: Rows
    right: Rows
    same: Flags
    possible: int = 0

    def note(self, seed: int = 0) -> str:
        """That they were drawn, in words; empty where these are all."""
        if len(self.left) >= self.possible:
            return ""
        return f"{len(self.left):,} of {self.possible:,} pairs, drawn with seed {seed}"


class EqualError(NamedTuple):
    """rate: where as many pairs of one class are rejected as pairs of two are accepted.
    threshold: the smallest cosine of an accepted pair there. area: under the ROC curve."""

    rate: float
    threshold: float
    area: float


def find_pairs(labels: Rows, groups: Rows | None, most: int, seed: int = 0) -> Pairs:
    """Pairs of rows of different groups: all, or about `most` of them drawn at random.

    groups: (n,) numbers, None where each row is a group of its own. Two rows of one group (one
    recording, one speaker) are no pair, whether of one class or of two: the group would be
    measured. Of one class, all pairs are taken, or half of `most`: among many
    classes a pair drawn from all is hardly ever one.
    """
    n = len(labels)
    if _all_pairs(n) <= most:
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
    possible = _all_pairs(n) - (0 if groups is None else int(_all_pairs(np.bincount(groups)).sum()))
    return Pairs(left, right, labels[left] == labels[right], possible)


def _all_pairs(count: Any) -> Any:
    return count * (count - 1) // 2


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

    scores: (m,), larger for pairs that are more similarities; equal ones are accepted or rejected
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


PAIRS = 2_000_000  # that are compared at most


@dataclass(frozen=True, slots=True)
class Verification:
    """Verification by cosine: pairs of the same name against pairs of different names.

    eer: the equal error rate, at `threshold`; low, high: its 95 % interval. auc: the area under the
    ROC curve. same, different: numbers of pairs. missed: the share of same pairs that is rejected
    where the share `false_accepts` of the different ones is accepted, at the threshold `strict`.
    pairs: how many there are; where `same` and `different` are fewer, they were drawn with `seed`.
    """

    eer: float
    low: float
    high: float
    threshold: float
    auc: float
    same: int
    different: int
    names: int
    false_accepts: float
    missed: float
    strict: float
    pairs: int = 0
    seed: int = 0

    def to_dict(self) -> dict[str, float]:
        """For JSON, as `penult verify --json` prints it."""
        return asdict(self)


def verify(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    false_accepts: float = 0.01,
    seed: int = 0,
) -> Verification:
    """Compare pairs of vectors (n, d), those without a name left out.

    groups: two of one group are no pair, so that one recording is never compared with itself. The
    interval is a bootstrap over names, not over pairs, which are not independent.

    Raises:
        LabelsError: no pair of the same, or none of different ones.
    """
    if not 0 <= false_accepts <= 1:
        raise LabelsError(f"false accepts = {false_accepts}: a rate lies between 0 and 1, as 0.01")
    rows, named, grouped = _named_rows(vectors, names, groups)
    pairs = find_pairs(named, grouped, PAIRS, seed)
    similarities, same = cosines(rows, pairs), pairs.same
    if not same.any() or same.all():
        missing = "same" if not same.any() else "different"
        raise LabelsError(
            f"{len(rows)} named items in {len(set(named))} "
            f"{'name' if len(set(named)) == 1 else 'names'} give no pair of the {missing} name"
            + (" from two groups" if grouped is not None else "")
            + "; two names are needed, and two items of one"
        )
    eer, threshold, auc = equal_error(similarities, same)
    low, high = _interval(similarities, Pairs(named[pairs.left], named[pairs.right], same), seed)
    strict = float(np.quantile(similarities[~same], 1 - false_accepts))
    return Verification(
        eer, low, high, threshold, auc, int(same.sum()), int((~same).sum()), len(set(named)),
        false_accepts, float((similarities[same] <= strict).mean()), strict, pairs.possible,
        seed)  # fmt: skip


def _named_rows(
    vectors: npt.ArrayLike, names: Sequence[str | None], groups: Sequence[str | None] | None
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) != len(names) or (groups and len(groups) != len(names)):
        raise LabelsError(f"{rows.shape} vectors do not fit {len(names)} names and their groups")
    kept = [i for i, name in enumerate(names) if name is not None]
    check_finite(rows[kept], LabelsError)
    if len(kept) < 2:
        raise LabelsError(f"{len(kept)} named items are no pair; two names are needed, and two "
                          "items of one")  # fmt: skip
    named = numbered([names[i] for i in kept])[0]
    if groups is None:
        return unit(rows[kept]), named, None
    return unit(rows[kept]), named, numbered(np.array(own_groups(groups))[kept])[0]


def _interval(
    similarities: Floats, names: Pairs, seed: int, rounds: int = 200
) -> tuple[float, float]:
    """The 95 % interval of the error rate over draws of names. names: of both sides of each pair,
    as numbers."""
    random = np.random.default_rng(seed)
    count = int(max(names.left.max(), names.right.max())) + 1
    if len(similarities) > 200_000:  # as many as give the interval its two digits
        chosen = np.sort(random.choice(len(similarities), 200_000, replace=False))
        similarities, left, right = similarities[chosen], names.left[chosen], names.right[chosen]
        names = Pairs(left, right, names.same[chosen])
    order = np.argsort(-similarities, kind="stable")

    def rate(drawn: Floats) -> float:
        left, right = drawn[names.left], drawn[names.right]
        weights = np.where(names.same, left, left * right)
        if not (weights[names.same].any() and weights[~names.same].any()):
            return float("nan")
        return equal_error(similarities, names.same, weights, order).rate

    draws = (np.bincount(random.integers(0, count, count), minlength=count) for _ in range(rounds))
    low, high = percentile_interval(rate, draws)
    return float(low), float(high)
