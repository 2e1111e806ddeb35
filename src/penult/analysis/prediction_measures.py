"""Predicted classes, labels and values against true ones, each measure with its 95 % interval over
groups, or over rows. Numpy in, numbers out; knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from penult.analysis import metrics
from penult.analysis.bootstrap import Estimate, percentile_interval
from penult.tracing.scores import MULTI_LABEL as MULTI_LABEL
from penult.tracing.scores import REGRESSION as REGRESSION
from penult.tracing.scores import SINGLE_LABEL as SINGLE_LABEL

FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Statistic = Callable[[FloatArray], tuple[float, ...]]

TASKS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
MAP, LWLRAP, MICRO_F1, MACRO_F1 = "mean_average_precision", "lwlrap", "micro_f1", "macro_f1"
R2, CCC, MAE = "r2", "ccc", "mae"
WORDS = {"accuracy": "accuracy", "balanced_accuracy": "balanced", MACRO_F1: "macro F1",
         MICRO_F1: "micro F1", MAP: "mAP", LWLRAP: "lwlrap", "ece": "ECE",
         R2: "R²", CCC: "CCC", MAE: "MAE", "pearson": "Pearson r"}  # fmt: skip

_DRAWS = 2000  # resamples for an interval
_FEWER = 500  # of measures that rank all rows of each class


def resampled(
    statistic: Statistic, groups: Sequence[object] | None, rows: int, seed: int, draws: int = _DRAWS
) -> list[Estimate]:
    """Each number of a statistic of weights (n,) of the rows, with its interval over groups drawn
    with replacement; None: over rows."""
    own = np.arange(rows)
    if groups is not None:
        own = np.unique([str(group) for group in groups], return_inverse=True)[1].reshape(-1)
    random, size = np.random.default_rng(seed), int(own.max(initial=-1)) + 1
    drawn: Iterator[Rows] = (
        random.multinomial(size, np.full(size, 1 / size)) for _ in range(draws)
    )
    exact = statistic(np.ones(rows))
    with np.errstate(invalid="ignore"):
        ends = percentile_interval(lambda weight: statistic(weight[own]), drawn)
    return [Estimate(*map(float, one)) for one in zip(exact, *ends, strict=True)]


def class_measures(
    truth: Rows,
    predicted: Rows,
    count: int,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy, balanced accuracy and macro F1 of one class a row (n,), over the classes that rows
    have. count: of classes; a class of none (−1) counts as wrong."""

    def statistic(weight: FloatArray) -> tuple[float, float, float]:
        right = truth == predicted
        hits = np.bincount(truth[right], weight[right], count)
        rows = np.bincount(truth, weight, count)
        named = np.bincount(predicted[predicted >= 0], weight[predicted >= 0], count)
        some = rows > 0
        recall, f1 = hits[some] / rows[some], 2 * hits[some] / (rows + named)[some]
        return float(hits.sum() / rows.sum()), float(recall.mean()), float(f1.mean())

    names = ("accuracy", "balanced_accuracy", MACRO_F1)
    found = resampled(statistic, groups, len(truth), seed)
    return dict(zip(names, found, strict=True))


def label_measures(
    truth: Mask,
    scores: FloatArray,
    predicted: Mask,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """mAP, lwlrap, micro and macro F1 of several labels a row: truth, scores and predicted labels
    (n, K); the means are over classes with positives."""
    ranking = metrics.ScoreRanking.of(truth, scores)
    sums, counts = metrics.label_precisions(truth, scores), truth.sum(axis=1)

    def statistic(weight: FloatArray) -> tuple[float, ...]:
        each = ranking.average_precisions(weight)
        labels = float(weight @ counts)
        _, micro, macro = metrics.f1_scores(truth, predicted, weight)
        mean = float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
        return mean, float(weight @ sums) / labels if labels else float("nan"), micro, macro

    found = resampled(statistic, groups, len(truth), seed, _FEWER)
    return dict(zip((MAP, LWLRAP, MICRO_F1, MACRO_F1), found, strict=True))


def value_measures(
    truth: FloatArray,
    predicted: FloatArray,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """R², concordance correlation, mean absolute error and Pearson's r of values (n,)."""
    measures = (metrics.r_squared, metrics.concordance, metrics.mean_absolute_error,
                metrics.pearson)  # fmt: skip

    def statistic(weight: FloatArray) -> tuple[float, ...]:
        return tuple(float(measure(truth, predicted, weight)) for measure in measures)

    found = resampled(statistic, groups, len(truth), seed)
    return dict(zip((R2, CCC, MAE, "pearson"), found, strict=True))
