"""The least probability of each class where an item may be of several: chosen on held-out examples,
with the measures to expect. Numpy in; knows no model and no collection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import percentile_interval
from penult.analysis.metrics import (
    ScoreRanking,
    average_precisions,
    best_thresholds,
    f1_scores,
    lwlrap,
)
from penult.fewshot.calibration import FEWEST
from penult.fewshot.scorers import OPEN, YES, Floats, Targets, groups_as_folds

Flags = npt.NDArray[np.bool_]

_HALF = 0.5  # the least probability of a class where held-out examples speak for no other
_MEASURES = ("mean_average_precision", "lwlrap", "f1_macro", "f1_micro")
_DRAWS = 200  # of examples, for an interval
_RESAMPLED = 50_000  # decisions; of more, intervals are narrow and not measured
_TEN = 10  # folds at most, in which thresholds are chosen again for the expected F1


@dataclass(frozen=True, slots=True)
class LabelThresholds:
    """The least probability from which each class is assigned, and measures on held-out examples.

    least: for each class; empty where too few examples could be held out, and where what was fitted
    is of a time before: then an item is of its best class, and of those above one half. chosen: for
    each class whether held-out examples speak for a threshold of its own; else it is one half.
    average_precision, f1: of each class; NaN where no example of it could be held out. lwlrap:
    label-weighted label-ranking average precision. f1_micro: of all decisions. F1 is of thresholds
    that were chosen without the group that they are tried on. examples: held out. low, high: the
    ends of 95 % intervals of the four measures of `expected`, in its order; empty where none were
    measured.
    """

    least: tuple[float, ...] = ()
    chosen: tuple[bool, ...] = ()
    average_precision: tuple[float, ...] = ()
    f1: tuple[float, ...] = ()
    lwlrap: float = math.nan
    f1_micro: float = math.nan
    examples: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def assigned(self, shares: Floats, best: npt.NDArray[np.int64]) -> Flags:
        """(m, K) the classes of items with these probabilities (m, K). best: (m,) the class with
        the highest score of each."""
        if self.least:
            return np.asarray((shares >= np.array(self.least)) & (shares > 0))  # 0: ruled out
        found = shares >= _HALF
        found[np.arange(len(best)), best] = True
        return np.asarray(found)

    @property
    def expected(self) -> dict[str, float]:
        """The measures over all classes: means over classes of the average precision (mAP) and of
        F1, lwlrap, and F1 over all decisions."""
        means = [_mean(self.average_precision), self.lwlrap, _mean(self.f1), self.f1_micro]
        return dict(zip(_MEASURES, means, strict=True))

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON: the threshold of each of these classes and its measures, and `expected`; both
        null where there are none."""
        if not self.least or not names:
            return {"thresholds": None, "expected": None}
        kept = ("threshold", "chosen", "average_precision", "f1")
        rows = zip(self.least, self.chosen, self.average_precision, self.f1, strict=True)
        each = {name: dict(zip(kept, row, strict=True))
                for name, row in zip(names, rows, strict=True)}  # fmt: skip
        ends = zip(self.low, self.high, strict=True)
        intervals = dict(zip(_MEASURES, map(list, ends), strict=True)) if self.low else None
        more = {"examples": self.examples, "intervals": intervals}
        return {"thresholds": each, "expected": self.expected | more}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as versions keep it: NaN is null."""
        return {
            name: [_null(one) for one in value] if isinstance(value, tuple) else _null(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any] | None) -> Self:
        """What a version keeps; None is of a version that has none."""
        values: dict[str, Any] = {
            name: tuple(map(_number, value)) if isinstance(value, list) else _number(value)
            for name, value in (saved or {}).items()
        }
        return cls(**values)


NO_THRESHOLDS = LabelThresholds()


def choose_thresholds(
    shares: Floats, targets: Targets, groups: npt.NDArray[np.int64]
) -> LabelThresholds:
    """Thresholds by held-out probabilities (n, K), NaN where there is none, and the measures to
    expect: F1 by thresholds that were chosen on other groups (n,).

    A class has the threshold of the highest F1 where that is higher than at one half by more than a
    standard error, and three members and three others are held out; else one half, at which both
    kinds of error weigh the same. Marks of `unsure`, and those that a mark of no leaves open, do
    not count.
    """
    known = ~np.isnan(shares) & (targets != OPEN)
    truth, given = known & (targets == YES), np.where(known, shares, 0.0)
    enough = (truth.sum(axis=0) >= FEWEST) & ((known & ~truth).sum(axis=0) >= FEWEST)
    if not enough.any():
        return NO_THRESHOLDS

    def least(rows: Flags) -> Floats:
        data = truth[rows], given[rows], known[rows]
        best = np.where(enough, best_thresholds(*data), np.nan)
        high, usual = (_f1(at, *data) for at in (best, np.full(len(best), _HALF)))
        error = np.sqrt(high * (1.0 - high) / np.maximum(data[0].sum(axis=0), 1))
        return np.where(high - usual > error, best, _HALF)

    every, folds = np.ones(len(given), bool), groups_as_folds(targets, groups, _TEN, _TEN)
    assigned = np.zeros(given.shape, bool)
    for fold in np.unique(folds):
        out = folds == fold
        assigned[out] = given[out] >= least(~out)
    f1, micro, _ = f1_scores(truth, assigned, known)
    precision = average_precisions(truth, given, known)
    # A class that is not known of an item comes behind all others of it.
    scores = np.where(known, shares, -1.0)
    ranked, found = lwlrap(truth, scores), least(every)
    values = np.array([_mean(tuple(precision)), ranked, _mean(tuple(f1)), micro])
    low, high = _intervals(values, (truth, given, known, assigned, scores), groups)
    return LabelThresholds(
        tuple(found.tolist()), tuple((found != _HALF).tolist()), tuple(precision.tolist()),
        tuple(f1.tolist()), ranked, micro, int(known.any(axis=1).sum()), low, high,
    )  # fmt: skip


def _intervals(
    values: Floats, held: tuple[Flags, Floats, Flags, Flags, Floats], groups: npt.NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(lower, upper) ends of 95 % intervals of the measures: by a bootstrap over examples and over
    groups, its percentiles and these reflected at the value, whatever is farther. Of few examples
    average precision is too high, as its resamples are higher still; a reflection tells by how
    much. held: truth, probabilities, what is known, what is assigned (n, K), scores of lwlrap."""
    truth, given, known, assigned, scores = held
    if truth.size > _RESAMPLED:
        return (), ()
    random, ranking = np.random.default_rng(0), ScoreRanking.of(truth, given)
    ways = [np.arange(len(truth)), np.unique(groups, return_inverse=True)[1]]
    low, high = values.copy(), values.copy()
    for way in ways[: 1 + (ways[1].max() + 1 < len(truth))]:
        size = int(way.max()) + 1

        def measures(weights: Floats, way: npt.NDArray[np.int64] = way) -> tuple[float, ...]:
            counts = weights[way][:, None] * known
            f1, micro, _ = f1_scores(truth, assigned, counts)
            ranked = lwlrap(truth, scores, weights[way])
            return _mean(tuple(ranking.average_precisions(counts))), ranked, _mean(tuple(f1)), micro

        draws = random.multinomial(size, np.full(size, 1 / size), _DRAWS)
        ends = percentile_interval(measures, draws)
        for each in (*ends, 2 * values - ends[0], 2 * values - ends[1]):
            low, high = np.fmin(low, each), np.fmax(high, each)
    return tuple(np.clip(low, 0.0, 1.0).tolist()), tuple(np.clip(high, 0.0, 1.0).tolist())


def _f1(least: Floats, truth: Flags, shares: Floats, known: Flags) -> Floats:
    """(K,) at these thresholds; 0 where there is none."""
    return np.nan_to_num(f1_scores(truth, shares >= least, known)[0])


def _mean(values: tuple[float, ...]) -> float:
    known = [one for one in values if not math.isnan(one)]
    return sum(known) / len(known) if known else math.nan


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: Any) -> Any:
    return math.nan if value is None else value
