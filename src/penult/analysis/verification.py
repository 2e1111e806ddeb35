"""Verification: pairs of vectors as same or different; equal error rate, detection cost and Cllr of
their scores, and scores normalised by a cohort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
    found, accepted, thresholds = _rates(values, positive, weights, order)
    gap = (1.0 - found) - accepted  # from 1 down to −1: the two rates cross once
    at = int(np.argmax(gap <= 0))
    share = gap[at - 1] / (gap[at - 1] - gap[at])
    rate = accepted[at - 1] + share * (accepted[at] - accepted[at - 1])
    area = float(np.trapezoid(found, accepted))
    return EqualError(float(rate), float(thresholds[at - 1]), area)


def _rates(
    values: Floats, positive: Flags, weights: Floats | None = None, order: Rows | None = None
) -> tuple[Floats, Floats, Floats]:
    """The shares (t + 1,) of pairs of one class, and of two, that are accepted from each of the t
    different scores on, the largest first (none at all before it); and these scores (t,)."""
    order = np.argsort(-values, kind="stable") if order is None else order
    values, positive = values[order], positive[order]
    weight = np.ones(len(values)) if weights is None else weights[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # the last of equal scores
    found, accepted = (
        np.append(0.0, np.cumsum(weight * kind)[ends]) for kind in (positive, ~positive)
    )
    return found / found[-1], accepted / accepted[-1], values[ends]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a detection cost is taken: the prior of a pair of one class, the cost of rejecting such
    a pair, and of accepting one of two."""

    p_target: float = 0.01
    miss: float = 1.0
    false_accept: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p_target < 1:
            raise LabelsError(f"p_target = {self.p_target}: a prior lies between 0 and 1, as 0.01")
        if not (0 < self.miss < np.inf and 0 < self.false_accept < np.inf):
            raise LabelsError(
                f"costs of {self.miss:g} and {self.false_accept:g}: both are positive, as 1"
            )


USUAL = OperatingPoint()


def detection_cost(
    scores: npt.ArrayLike, same: npt.ArrayLike, point: OperatingPoint = USUAL
) -> float:
    """The least cost over all thresholds (minDCF), as a share of that of deciding without a look at
    the scores: 1 is of no use (NIST speaker recognition evaluation plan, 2016). Needs pairs of
    both kinds."""
    values, positive = np.asarray(scores, np.float64), np.asarray(same, bool)
    found, accepted, _ = _rates(values, positive)
    missing, accepting = point.miss * point.p_target, point.false_accept * (1 - point.p_target)
    cost = missing * (1.0 - found) + accepting * accepted
    return float(cost.min() / min(missing, accepting))


def cllr(ratios: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """The cost of log-likelihood ratios (natural logarithms), in bits: 0 is perfect, 1 what a ratio
    of one has for all (Brümmer and du Preez, 2006). Needs pairs of both kinds."""
    values, positive = np.asarray(ratios, np.float64), np.asarray(same, bool)
    halves = (np.logaddexp(0.0, -values[positive]), np.logaddexp(0.0, values[~positive]))
    return float(sum(half.mean() for half in halves) / (2 * np.log(2)))


def least_cllr(scores: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """The Cllr of the best rising map from scores to ratios, found on these very pairs (isotonic
    regression): what separation alone allows."""
    from sklearn.isotonic import IsotonicRegression

    values, positive = np.asarray(scores, np.float64), np.asarray(same, bool)
    weight = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    rising = IsotonicRegression(y_min=0.0, y_max=1.0).fit(values, positive, weight)
    share = np.clip(rising.predict(values), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        odds = np.log(share) - np.log1p(-share)
    return cllr(np.nan_to_num(odds, posinf=_CERTAIN, neginf=-_CERTAIN), positive)


_CERTAIN = 1e3  # the logarithm of a ratio without a limit
_PARTS = 5  # of the names, in which a calibration is tested
_FITTED = 100_000  # pairs that one calibration is fitted on at most


def held_out_cllr(similarities: Floats, names: Pairs, seed: int = 0) -> float:
    """The Cllr of scores that are turned into ratios by a logistic regression on pairs of other
    names; NaN where there are too few names for it. names: the numbers of both sides."""
    random = np.random.default_rng(seed)
    count = int(max(names.left.max(), names.right.max())) + 1
    part = random.permutation(count) % _PARTS
    left, right = part[names.left], part[names.right]
    ratios = np.full(len(similarities), np.nan)
    for one in range(_PARTS):
        for other in range(one, _PARTS):
            tested = (np.minimum(left, right) == one) & (np.maximum(left, right) == other)
            fitted = np.flatnonzero(~np.isin(left, (one, other)) & ~np.isin(right, (one, other)))
            kinds = names.same[fitted]
            if not tested.any():
                continue
            if not kinds.any() or kinds.all():
                return float("nan")
            if len(fitted) > _FITTED:
                fitted = random.choice(fitted, _FITTED, replace=False)
            ratios[tested] = _ratios(similarities, names.same, fitted, similarities[tested])
    return cllr(ratios, names.same)


def _ratios(similarities: Floats, same: Flags, fitted: Rows, scores: Floats) -> Floats:
    """Log-likelihood ratios of scores by a logistic regression in which both kinds weigh half, so
    that its prior odds are one. Scores that fall where they should rise tell nothing: turned round
    they would be another measure than the one that is judged."""
    from sklearn.linear_model import LogisticRegression

    values = similarities[fitted]
    mean, spread = values.mean(), values.std() or 1.0
    head: Any = LogisticRegression(C=1e3, class_weight="balanced")
    head.fit(((values - mean) / spread)[:, None], same[fitted])
    if head.coef_[0, 0] < 0:
        return np.zeros(len(scores))
    found: Floats = head.decision_function(((scores - mean) / spread)[:, None])
    return found


TOP = 200  # nearest rows of a cohort that a score is normalised by


@dataclass(frozen=True, slots=True)
class Cohort:
    """Rows that scores are normalised by. vectors: (c, d) in the space. names: (c,) numbers; rows
    of a side's own name are left out for it. top: how many of the nearest count."""

    vectors: npt.NDArray[Any]
    names: Rows
    top: int = TOP

    def statistics(self, vectors: npt.NDArray[Any], names: Rows) -> tuple[Floats, Floats]:
        """(n,) means and (n,) standard deviations of the cosines of vectors (n, d) to the nearest
        rows of the cohort.

        Raises:
            LabelsError: one of them has fewer than two rows, or only equal ones.
        """
        rows, others = unit(np.asarray(vectors, np.float64)), unit(self.vectors)
        mean, spread = np.empty(len(rows)), np.empty(len(rows))
        step = max(1, 20_000_000 // max(1, len(others)))
        for at in range(0, len(rows), step):
            part = slice(at, at + step)
            near = rows[part] @ others.T
            near[names[part][:, None] == self.names[None]] = -np.inf
            most = min(self.top, near.shape[1])
            near = np.partition(near, -most, axis=1)[:, -most:] if most else near
            known = np.isfinite(near)
            count = known.sum(axis=1)
            if (count < 2).any():
                raise LabelsError(
                    "a cohort of fewer than two rows of other names cannot normalise scores; give "
                    "more rows, or leave s-norm out"
                )
            near = np.where(known, near, 0.0)
            mean[part] = near.sum(axis=1) / count
            apart = np.where(known, near - mean[part][:, None], 0.0)
            spread[part] = np.sqrt((apart**2).sum(axis=1) / count)
        if (spread <= _FLAT).any():
            raise LabelsError(
                "rows of the cohort are all the same, so that they cannot normalise scores"
            )
        return mean, spread


_FLAT = 1e-9


def s_norm(
    similarities: Floats,
    pairs: Pairs,
    left: tuple[Floats, Floats],
    right: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Adaptive symmetric normalisation: the mean of the scores standardised by either side's
    nearest rows of a cohort (Matějka et al., Interspeech 2017, AS-norm1).

    left, right: `Cohort.statistics` of the vectors of that side; right is the same where None.
    """
    (mean, spread), (other, width) = left, right or left
    one = (similarities - mean[pairs.left]) / spread[pairs.left]
    return 0.5 * (one + (similarities - other[pairs.right]) / width[pairs.right])


PAIRS = 2_000_000  # that are compared at most


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of scored pairs. min_dcf: `detection_cost` at `point`. cllr: `held_out_cllr`, NaN where
    names are too few. least_cllr: see there. seed: of all that was drawn."""

    point: OperatingPoint
    min_dcf: float
    cllr: float
    least_cllr: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """Verification by scores of pairs: of the same name, and of different names.

    eer: the equal error rate, at `threshold`; low, high: its 95 % interval, NaN (None in JSON)
    where one name alone has pairs of its own. auc: the area under the ROC curve. same, different:
    numbers of pairs. missed: the share of same pairs that is rejected where the share
    `false_accepts` of the different ones is accepted, at the threshold `strict`. pairs: how many
    there are; where `same` and `different` are fewer, they were drawn with the seed of `costs`.
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
    pairs: int
    costs: Costs

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult verify --json` prints it."""
        found = asdict(self)
        costs = found.pop("costs")
        known = {"cllr": self.costs.cllr, "low": self.low, "high": self.high}
        shown = {name: None if np.isnan(value) else value for name, value in known.items()}
        return {**found, **costs, **shown}


def verify(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    false_accepts: float = 0.01,
    seed: int = 0,
    *,
    point: OperatingPoint = USUAL,
    cohort: int = 0,
) -> Verification:
    """Compare pairs of vectors (n, d) by cosine, those without a name left out.

    groups: two of one group are no pair, so that one recording is never compared with itself. The
    interval is a bootstrap over names, not over pairs, which are not independent. cohort: scores
    are normalised (`s_norm`) by so many nearest vectors of other names; 0 leaves them.

    Raises:
        LabelsError: no pair of the same, or none of different ones.
    """
    _check_rate(false_accepts)
    rows, named, grouped = _named_rows(vectors, names, groups)
    pairs = find_pairs(named, grouped, PAIRS, seed)
    same = pairs.same
    if not same.any() or same.all():
        missing = "same" if not same.any() else "different"
        raise LabelsError(
            f"{len(rows)} named items in {len(set(named))} "
            f"{'name' if len(set(named)) == 1 else 'names'} give no pair of the {missing} name"
            + (" from two groups" if grouped is not None else "")
            + "; two names are needed, and two items of one"
        )
    scores = cosines(rows, pairs)
    if cohort:
        scores = s_norm(scores, pairs, Cohort(rows, named, cohort).statistics(rows, named))
    of_names = Pairs(named[pairs.left], named[pairs.right], same, pairs.possible)
    found = measured(scores, of_names, false_accepts, seed, point)
    return replace(found, names=len(set(named.tolist())))


def measured(
    scores: Floats,
    names: Pairs,
    false_accepts: float = 0.01,
    seed: int = 0,
    point: OperatingPoint = USUAL,
) -> Verification:
    """The measures of scored pairs. names: of both sides of each pair, as numbers.

    Raises:
        LabelsError: there are no pairs of one of the kinds.
    """
    _check_rate(false_accepts)
    same = names.same
    eer, threshold, auc = equal_error(scores, same)
    low, high = _interval(scores, names, seed)
    strict = float(np.quantile(scores[~same], 1 - false_accepts))
    costs = Costs(
        point,
        detection_cost(scores, same, point),
        held_out_cllr(scores, names, seed),
        least_cllr(scores, same),
        seed,
    )
    both = np.append(names.left, names.right)
    return Verification(
        eer, low, high, threshold, auc, int(same.sum()), int((~same).sum()), len(np.unique(both)),
        false_accepts, float((scores[same] <= strict).mean()), strict,
        names.possible or len(scores), costs)  # fmt: skip


def _check_rate(false_accepts: float) -> None:
    if not 0 <= false_accepts <= 1:
        raise LabelsError(f"false accepts = {false_accepts}: a rate lies between 0 and 1, as 0.01")


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
    """The 95 % interval of the error rate over draws of names; NaN where one name alone has pairs
    of its own, which says nothing of others. names: of both sides of each pair, as numbers."""
    if len(np.unique(names.left[names.same])) < 2:
        return math.nan, math.nan
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
