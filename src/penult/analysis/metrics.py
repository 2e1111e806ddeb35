"""Measures of vectors (nearest neighbours, retrieval, hubness, agreement of k-means), label-free
ranking of readings (RankMe, α-ReQ), and measures of predicted labels and values (average precision,
F1, R², concordance). Numpy in, numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.space import check_finite, unit
from penult.errors import LabelsError

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class NeighbourScores:
    """Nearest neighbours of other groups, of each row that has some.

    rows: (m,) the places of these rows. correct: (m,) whether the vote of the k nearest is the
    row's label. precision: (m,) average precision of retrieving its label; NaN where no other row
    has it. occurrence: (n,) how often each row is among the k nearest of others.
    """

    rows: Rows
    correct: Array
    precision: Array
    occurrence: Rows


def neighbours(
    vectors: npt.ArrayLike, labels: Rows, groups: Rows, k: int = 5, seed: int = 0
) -> NeighbourScores:
    """Nearest-neighbour votes and retrieval by cosine, without rows of the query's own group.

    vectors: (n, d). k: voters; of classes with as many votes the one with the larger summed
    cosine wins; equally near rows come in a random order. Needs n² numbers in blocks of 1024 rows.

    Raises:
        LabelsError: all rows are of one group.
    """
    rows = unit(np.asarray(vectors, np.float32))
    n, classes = len(rows), int(labels.max(initial=0)) + 1
    # Rows often stand class by class: equally near ones must not come in that order.
    mixed = np.random.default_rng(seed).permutation(n)
    queries, correct, precision = [], [], []
    occurrence = np.zeros(n, np.int64)
    for at in range(0, n, _BLOCK):
        mine = np.arange(at, min(at + _BLOCK, n))
        cosine = (rows[mine] @ rows.T).astype(np.float64)
        cosine[groups[mine][:, None] == groups[None]] = -np.inf
        some = np.isfinite(cosine).any(axis=1)
        mine, cosine = mine[some], cosine[some]
        if not len(mine):
            continue
        order = mixed[np.argsort(-cosine[:, mixed], axis=1, kind="stable")]
        cosine = np.take_along_axis(cosine, order, axis=1)
        others = np.isfinite(cosine)
        queries.append(mine)
        correct.append(majority(labels[order[:, :k]], cosine[:, :k], classes) == labels[mine])
        precision.append(ranked_precision(labels[order] == labels[mine][:, None], others))
        occurrence += np.bincount(order[:, :k][others[:, :k]], minlength=n)
    if not queries:
        raise LabelsError("all items are of one group; neighbours are of another group")
    return NeighbourScores(
        np.concatenate(queries),
        np.concatenate(correct).astype(np.float64),
        np.concatenate(precision),
        occurrence,
    )


def majority(labels: Rows, cosines: npt.NDArray[np.floating], classes: int) -> Rows:
    """(m,) the class with most votes in each row of (m, k) labels; of as many votes the one with
    the larger sum of cosines (m, k), minus infinity for no voter."""
    votes = np.zeros((len(labels), classes))
    for column in range(labels.shape[1]):
        cosine = cosines[:, column]
        valid = np.isfinite(cosine)
        # A vote counts more than any sum of cosines can make up for.
        votes[valid, labels[valid, column]] += 1 + cosine[valid] / (4 * labels.shape[1])
    winner: Rows = votes.argmax(axis=1)
    return winner


def ranked_precision(relevant: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]) -> Array:
    """(m,) average precision of rankings (m, n), NaN without a relevant place; places that are not
    valid come last and do not count."""
    relevant = relevant & valid
    found = relevant.cumsum(axis=1)
    at = found / np.arange(1, relevant.shape[1] + 1)
    total = found[:, -1]
    summed: Array = (at * relevant).sum(axis=1)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)


def hubness(occurrence: Rows) -> float:
    """Skewness of the k-occurrence (Radovanović, Nanopoulos and Ivanović, JMLR 2010): 0 where all
    rows are near others equally often, large where a few hubs are near everything."""
    from scipy.stats import skew

    return float(skew(occurrence)) if np.ptp(occurrence) else 0.0


def clustering(vectors: npt.ArrayLike, labels: Rows, seed: int = 0) -> dict[str, float]:
    """Agreement with the labels of k-means at the true number of classes, on directions as in
    `cluster`: adjusted Rand index and normalised mutual information."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes = len(np.unique(labels))
    rows = unit(np.asarray(vectors, np.float64))
    found = KMeans(classes, n_init=10, random_state=seed).fit_predict(rows)
    return {
        "ari": float(adjusted_rand_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
    }


def by_centrality(rows: Array) -> Rows:
    """The places of unit vectors (n, d), the largest sum of cosines to all of them first: that is
    the medoid."""
    return np.argsort(-(rows @ rows.sum(axis=0)), kind="stable").astype(np.int64)


def rank_me(vectors: npt.ArrayLike) -> float:
    """exp of the entropy of the singular values of (n, d): how many directions are in use
    (RankMe: Garrido et al., ICML 2023). Needs no labels."""
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values / total + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alpha_req(vectors: npt.ArrayLike) -> float:
    """The exponent with which the eigenvalues of the covariance fall (α-ReQ: Agrawal et al.,
    NeurIPS 2022); best near 1, according to the paper. NaN with fewer than three eigenvalues."""
    rows = np.asarray(vectors, np.float64)
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    values = values[values > values.max(initial=0.0) * 1e-10]
    if len(values) < 3:
        return float("nan")
    ranks = np.log(np.arange(1, len(values) + 1))
    return float(-np.polyfit(ranks, np.log(values), 1)[0])


MOST = 1000  # rows whose singular values are taken
LEAST = 10


@dataclass(frozen=True, slots=True)
class LabelFreeRank:
    """A reading's place in a ranking without labels. rank_me: the number of directions in use
    (RankMe). alpha: the exponent of the spectrum (α-ReQ)."""

    reading: str
    rank_me: float
    alpha: float

    def to_dict(self) -> dict[str, str | float]:
        """For JSON."""
        return {"reading": self.reading, "rank_me": self.rank_me, "alpha_req": self.alpha}


def rank_without_labels(
    vectors: Mapping[str, npt.NDArray[np.float32]], seed: int = 0
) -> list[LabelFreeRank]:
    """Label-free ranking of readings (n, d) by RankMe, the highest first; weak evidence, see
    docs/choosing.md.

    Raises:
        LabelsError: fewer than ten items.
        SpaceError: values that are not finite.
    """
    found = []
    for name, rows in vectors.items():
        if len(rows) < LEAST:
            raise LabelsError(
                f"{len(rows)} items without labels are too few to rank by; give {LEAST} or more"
            )
        check_finite(rows, name=f"vectors of {name}")
        if len(rows) > MOST:
            chosen = np.random.default_rng(seed).choice(len(rows), MOST, replace=False)
            rows = rows[np.sort(chosen)]
        found.append(LabelFreeRank(name, rank_me(rows), alpha_req(rows)))
    return sorted(found, key=lambda one: -one.rank_me)


@dataclass(frozen=True, slots=True)
class ScoreRanking:
    """Scores (n, K) in falling order, class by class, to be weighted again and again.

    order: (n, K) rows by falling score. truth: (n, K) of these rows. last: (n, K) whether the next
    row has a lower score: rows of one score are retrieved together.
    """

    order: Rows
    truth: Array
    last: Mask

    @classmethod
    def of(cls, truth: npt.ArrayLike, scores: npt.ArrayLike) -> ScoreRanking:
        """truth: (n, K) whether a row is of a class."""
        order = np.argsort(-np.asarray(scores, np.float64), axis=0, kind="stable")
        fallen = np.take_along_axis(np.asarray(scores, np.float64), order, axis=0)
        last = np.ones(fallen.shape, bool)
        last[:-1] = fallen[:-1] != fallen[1:]
        held = np.take_along_axis(np.asarray(truth, bool), order, axis=0).astype(np.float64)
        return cls(order.astype(np.int64), held, last)

    def average_precisions(self, weights: npt.ArrayLike | None = None) -> Array:
        """(K,) see `average_precisions`."""
        return np.array([self._of_class(number, weights) for number in range(self.truth.shape[1])])

    def _of_class(self, number: int, weights: npt.ArrayLike | None) -> float:
        truth, last = self.truth[:, number], self.last[:, number]
        weight = _weights_of_class(weights, number, len(truth))[self.order[:, number]]
        found, taken = (weight * truth).cumsum()[last], weight.cumsum()[last]
        if not len(found) or not found[-1] > 0:
            return float("nan")
        steps = np.diff(found, prepend=0.0)
        more = steps > 0
        return float((steps[more] * found[more] / taken[more]).sum() / found[-1])


def _weights_of_class(weights: npt.ArrayLike | None, number: int, rows: int) -> Array:
    if weights is None:
        return np.ones(rows)
    given = np.asarray(weights, np.float64)
    return given if given.ndim == 1 else given[:, number]


def average_precisions(
    truth: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """(K,) average precision of each class: the precision at each step of recall, summed with the
    steps (as scikit-learn's); NaN for a class without positives. `np.nanmean` of it is the mAP.

    truth: (n, K) whether a row is of a class. scores: (n, K). weights: how much a row counts (n,),
    or a row for a class (n, K), 0 where its label is not known.
    """
    return ScoreRanking.of(truth, scores).average_precisions(weights)


def lwlrap(
    truth: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Label-weighted label-ranking average precision (Fonseca et al., DCASE 2019, task 2): for each
    label of an item the share of the item's own labels among the classes that score at least as
    high; the mean over all labels of all items. NaN without any label.

    truth, scores: (n, K). weights: (n,) how much a row counts.
    """
    held = np.asarray(truth, bool)
    counts = np.ones(len(held)) if weights is None else np.asarray(weights, np.float64)
    labels = float(counts @ held.sum(axis=1))
    return float(counts @ label_precisions(held, scores)) / labels if labels > 0 else float("nan")


def label_precisions(truth: npt.ArrayLike, scores: npt.ArrayLike) -> Array:
    """(n,) the sums over an item's labels that `lwlrap` averages."""
    held, given = np.asarray(truth, bool), np.asarray(scores, np.float64)
    order = np.argsort(-given, axis=1, kind="stable")
    fallen = np.take_along_axis(given, order, axis=1)
    mine = np.take_along_axis(held, order, axis=1)
    found = mine.cumsum(axis=1)
    # Classes of one score share the rank of the last of them.
    rank = np.arange(1, given.shape[1] + 1) * np.ones((len(given), 1), np.int64)
    tied = fallen[:, :-1] == fallen[:, 1:]
    for place in range(given.shape[1] - 2, -1, -1):
        same = tied[:, place]
        rank[same, place] = rank[same, place + 1]
        found[same, place] = found[same, place + 1]
    summed: Array = (mine * found / rank).sum(axis=1)
    return summed


def f1_scores(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Array, float, float]:
    """F1 of each class (K,), NaN for a class without positives; micro F1, of all decisions; macro
    F1, the mean over classes with positives.

    truth, predicted: (n, K) bool. weights: (n,) or (n, K) as for `average_precisions`.
    """
    held, assigned = np.asarray(truth, bool), np.asarray(predicted, bool)
    counts = np.ones(len(held)) if weights is None else np.asarray(weights, np.float64)
    counts = counts[:, None] if counts.ndim == 1 else counts
    hits = (counts * (held & assigned)).sum(axis=0)
    positives, named = (counts * held).sum(axis=0), (counts * assigned).sum(axis=0)
    some = positives > 0
    each = np.where(some, 2 * hits / np.where(some, positives + named, 1.0), np.nan)
    total = positives.sum() + named.sum()
    micro = float(2 * hits.sum() / total) if total > 0 else float("nan")
    return each, micro, float(each[some].mean()) if some.any() else float("nan")


def best_thresholds(
    truth: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """(K,) the threshold of each class with the highest F1 on these scores, which must be held out:
    half-way to the next lower score. Of equal F1 the highest threshold; NaN, which no score
    reaches, for a class without positives.

    truth, scores: (n, K). weights: (n,) or (n, K) as for `average_precisions`.
    """
    ranking, given = ScoreRanking.of(truth, scores), np.asarray(scores, np.float64)
    chosen = np.full(given.shape[1], np.nan)
    for number in range(given.shape[1]):
        order, last = ranking.order[:, number], ranking.last[:, number]
        weight = _weights_of_class(weights, number, len(order))[order]
        found = (weight * ranking.truth[:, number]).cumsum()
        if not len(found) or not found[-1] > 0:
            continue
        steps = given[order, number][last]
        f1 = 2 * found[last] / (found[-1] + weight.cumsum()[last])
        best = int(f1.argmax())
        chosen[number] = steps[best : best + 2].mean()
        if not chosen[number] > steps[best + 1 : best + 2].max(initial=-np.inf):
            chosen[number] = steps[best]  # two scores without a number between them
    return chosen


def calibration_error(probabilities: npt.ArrayLike, right: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al., 2015): |accuracy − probability|, averaged over
    bins of equal width, weighted by their counts. probabilities: (n,) of the predicted classes."""
    share, hit = np.asarray(probabilities, np.float64), np.asarray(right, np.float64)
    place = np.minimum((share * bins).astype(int), bins - 1)
    gaps = [abs(hit[place == b].mean() - share[place == b].mean()) * (place == b).mean()
            for b in np.unique(place)]  # fmt: skip
    return float(sum(gaps))


def _moments(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Weights (n, 1…) that sum to 1; truth and prediction (n, …)."""
    true, given = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    counts = np.ones(len(true)) if weights is None else np.asarray(weights, np.float64)
    total = counts.sum()
    shares = counts / total if total > 0 else np.full(len(true), np.nan)
    return shares.reshape(-1, *[1] * (true.ndim - 1)), true, given


def _ratio(above: Array, below: Array) -> Array:
    """NaN where the lower part is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)


def r_squared(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """R², the share of the variance that the prediction explains: 1 − mean squared error /
    variance. Below 0 where the mean predicts better; NaN where all true values are equal.

    truth, predicted: (n,) → a number (), or (n, T) → (T,). weights: (n,).
    """
    shares, true, given = _moments(truth, predicted, weights)
    varied = _variance(shares, true)
    return np.where(
        varied > 0, 1 - _ratio((shares * (true - given) ** 2).sum(axis=0), varied), np.nan
    )


def concordance(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """Concordance correlation coefficient (Lin, Biometrics 1989; variances over n): 1 where each
    prediction is the value itself; unlike Pearson's r it falls with a shift or another scale. 0 for
    constant predictions; NaN where both are one constant. Shapes as `r_squared`.
    """
    shares, true, given = _moments(truth, predicted, weights)
    shift = (shares * (true - given)).sum(axis=0)
    below = _variance(shares, true) + _variance(shares, given) + shift**2
    return _ratio(2 * _covariance(shares, true, given), below)


def mean_absolute_error(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """Mean absolute error, in the unit of the values. Shapes as `r_squared`."""
    shares, true, given = _moments(truth, predicted, weights)
    error: Array = (shares * np.abs(true - given)).sum(axis=0)
    return error


def pearson(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """Pearson's r; NaN where truth or prediction is constant. Shapes as `r_squared`."""
    shares, true, given = _moments(truth, predicted, weights)
    below = np.sqrt(_variance(shares, true) * _variance(shares, given))
    return _ratio(_covariance(shares, true, given), below)


def _covariance(shares: Array, one: Array, other: Array) -> Array:
    middle = (shares * one).sum(axis=0)
    product: Array = (shares * (one - middle) * (other - (shares * other).sum(axis=0))).sum(axis=0)
    return product


def _variance(shares: Array, values: Array) -> Array:
    """0, not a rounding error, where all values that count are equal, but for theirs."""
    counted = values[shares.reshape(-1) > 0]
    if not len(counted):
        return np.full(values.shape[1:], np.nan)
    varies = np.ptp(counted, axis=0) > _EQUAL * np.abs(counted).max(axis=0)
    return np.where(varies, _covariance(shares, values, values), 0.0)


_EQUAL = 1e-12  # of their size: numbers that differ by less are one number, by rounding


def one_value(values: npt.ArrayLike) -> float | None:
    """The value that all of these (n,) are, but for rounding; None where there are several."""
    known = np.asarray(values, np.float64)
    if len(known) and np.ptp(known) <= _EQUAL * np.abs(known).max():
        return float(np.median(known))
    return None


def check_varied(values: npt.ArrayLike) -> None:
    """Refuse values (n,) that are all one, but for rounding.

    Raises:
        LabelsError: they are.
    """
    if (one := one_value(values)) is not None:
        raise LabelsError(f"all values are {one:g}, so that there is nothing to predict")
