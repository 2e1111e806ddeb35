"""Measures of vectors: nearest neighbours, retrieval, hubness, agreement of k-means, and label-free
ranking of readings (RankMe, α-ReQ). Numpy in, numbers out.
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
        precision.append(_average_precision(labels[order] == labels[mine][:, None], others))
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


def _average_precision(relevant: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]) -> Array:
    """(m,) of rankings (m, n); places that are not valid come last and do not count."""
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
