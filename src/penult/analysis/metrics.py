"""Vectors in numbers: neighbours, retrieval, clusters, hubs, and label-free ranks of readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit
from penult.errors import LabelsError, SpaceError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class NeighbourScores:
    """What nearest rows of other groups say, for each row that has any.

    rows: (m,) which rows were asked. correct: (m,) whether the vote of k is the row's label.
    precision: (m,) average precision of retrieving its label; NaN where no other row has it.
    occurrence: (n,) how often each row is among the k nearest of others.
    """

    rows: Rows
    correct: Array
    precision: Array
    occurrence: Rows


def neighbours(
    vectors: npt.ArrayLike, labels: Rows, groups: Rows, k: int = 5, seed: int = 0
) -> NeighbourScores:
    """Ask each row's nearest rows by cosine, its own group left out.

    vectors: (n, d). k: voters; of classes with as many votes the one with the larger summed
    cosine wins; equally near rows come in a random order. Needs n² numbers in blocks of 1024 rows.
    """
    rows = unit(np.asarray(vectors, np.float32))
    n, classes = len(rows), int(labels.max(initial=0)) + 1
    # Rows often stand class by class: equally near ones must not come in that order.
    mixed = np.random.default_rng(seed).permutation(n)
    asked, correct, precision = [], [], []
    occurrence = np.zeros(n, np.int64)
    for at in range(0, n, _BLOCK):
        mine = np.arange(at, min(at + _BLOCK, n))
        near = (rows[mine] @ rows.T).astype(np.float64)
        near[groups[mine][:, None] == groups[None]] = -np.inf
        mine, near = mine[np.isfinite(near).any(axis=1)], near[np.isfinite(near).any(axis=1)]
        if not len(mine):
            continue
        order = mixed[np.argsort(-near[:, mixed], axis=1, kind="stable")]
        sorted_near = np.take_along_axis(near, order, axis=1)
        there = np.isfinite(sorted_near)
        asked.append(mine)
        correct.append(_voted(labels[order[:, :k]], sorted_near[:, :k], classes) == labels[mine])
        precision.append(_average_precision(labels[order] == labels[mine][:, None], there))
        occurrence += np.bincount(order[:, :k][there[:, :k]], minlength=n)
    if not asked:
        raise LabelsError("all items are of one group, so none has neighbours of another group")
    return NeighbourScores(
        np.concatenate(asked),
        np.concatenate(correct).astype(np.float64),
        np.concatenate(precision),
        occurrence,
    )


def _voted(labels: Rows, near: Array, classes: int) -> Rows:
    """(m,) the winner of each row of (m, k) labels."""
    votes = np.zeros((len(labels), classes))
    for column in range(labels.shape[1]):
        cosine = near[:, column]
        here = np.isfinite(cosine)
        # A vote counts more than any sum of cosines can make up for.
        votes[here, labels[here, column]] += 1 + cosine[here] / (4 * labels.shape[1])
    winner: Rows = votes.argmax(axis=1)
    return winner


def _average_precision(relevant: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]) -> Array:
    """(m,) of rankings (m, n); places that are not there come last and do not count."""
    relevant = relevant & there
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
    """Agreement with the labels of k-means at the true number of classes: adjusted Rand index and
    normalised mutual information."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes = len(np.unique(labels))
    found = KMeans(classes, n_init=10, random_state=seed).fit_predict(
        np.asarray(vectors, np.float64)
    )
    return {
        "ari": float(adjusted_rand_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
    }


def linear_probe(strength: float = 1.0) -> Pipeline:
    """Each number standardised, then multinomial logistic regression (Alain and Bengio, 2016).

    strength: inverse of the L2 penalty, scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def by_centrality(rows: Array) -> Rows:
    """Numbers of unit vectors (n, d) from the largest sum of cosines to all of them downwards: the
    medoid comes first."""
    return np.argsort(-(rows @ rows.sum(axis=0)), kind="stable").astype(np.int64)


def probe(
    vectors: npt.ArrayLike, labels: Rows, groups: Rows, folds: int = 5, seed: int = 0
) -> Array:
    """(n,) whether a linear probe that never saw a row's group names it rightly; NaN for rows
    whose class is in one fold only.

    Logistic regression on standardised numbers, fitted on the other folds.

    Raises:
        LabelsError: the groups leave no two classes to learn from.
    """
    from penult.analysis.episodes import partitions

    rows = np.asarray(vectors, np.float64)
    folds = min(folds, len(np.unique(groups)), int(np.bincount(labels)[np.unique(labels)].max()))
    right = np.full(len(rows), np.nan)
    for side in partitions(labels, groups, folds, 1, seed) if folds > 1 else ():
        known = np.isin(labels, labels[~side])
        if len(np.unique(labels[~side])) < 2:
            continue
        model = linear_probe().fit(rows[~side], labels[~side])
        asked = side & known
        if asked.any():
            right[asked] = model.predict(rows[asked]) == labels[asked]
    if np.isnan(right).all():
        raise LabelsError("the groups leave no fold with two classes to learn from and one to ask")
    return right


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
    NeurIPS 2022): near 1 is said to be best; NaN where there are fewer than three."""
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
    """rank_me: directions in use. alpha: the exponent of the spectrum. See `measuring.measures`."""

    reading: str
    rank_me: float
    alpha: float


def rank_without_labels(
    vectors: Mapping[str, npt.NDArray[np.float32]], seed: int = 0
) -> list[LabelFreeRank]:
    """Every reading (n, d) by RankMe, the highest first.

    Raises:
        LabelsError: fewer than ten items.
        SpaceError: values that are not finite.
    """
    found = []
    for name, rows in vectors.items():
        if len(rows) < LEAST:
            raise LabelsError(
                f"{len(rows)} items without labels say nothing of a layer; give {LEAST} or more"
            )
        if not np.isfinite(rows).all():
            raise SpaceError(f"vectors of {name} have values that are not finite; leave them out")
        if len(rows) > MOST:
            chosen = np.random.default_rng(seed).choice(len(rows), MOST, replace=False)
            rows = rows[np.sort(chosen)]
        found.append(LabelFreeRank(name, rank_me(rows), alpha_req(rows)))
    return sorted(found, key=lambda one: -one.rank_me)
