"""Clusters of vectors: HDBSCAN and k-means, their stability, names and agreement with labels. Numpy
in, a small dataclass out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import by_centrality
from penult.analysis.space import check_finite, unit
from penult.errors import UsageError

NOISE = -1
_MOST = 10_000  # rows that are clustered; the others join their nearest of these
_RUNS = 10  # subsamples for the stability
_SHARE, _SAMPLE = 0.8, 3_000  # of the rows in each, and at most
_FLAT = 15  # numbers in a vector up to which densities mean something without reduction
FloatArray = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """A method of clustering and its settings.

    method: hdbscan or kmeans. clusters: how many, for kmeans. min_size: rows in the smallest
    cluster of hdbscan; None takes √n / 2, at least 5.
    """

    method: str = "hdbscan"
    clusters: int | None = None
    min_size: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelShare:
    """A label in a cluster: `count` rows, `share` of the cluster, and `overall` of all rows."""

    label: str
    count: int
    share: float
    overall: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster; the largest has number 0. medoids: the row with the largest sum of cosines to
    the others, then the next, each of another item. stability: mean Jaccard index with the most
    similar cluster of each subsample, 0 to 1."""

    number: int
    size: int
    name: str
    medoids: list[int]
    labels: list[LabelShare]
    stability: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of clusters with names: adjusted Rand index and normalised mutual information. ari,
    nmi: noise counted as a cluster of its own. clustered_ari, clustered_nmi: of the rows in
    clusters only. rows: how many have a name."""

    ari: float
    nmi: float
    clustered_ari: float
    clustered_nmi: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Clustering:
    """Clusters of rows.

    numbers: each row's cluster, −1 is noise. central: each row's cosine to the middle of its
    cluster, NaN for noise. stability: the mean adjusted Rand index of subsamples.
    """

    options: ClusterOptions
    numbers: Numbers
    central: npt.NDArray[np.float32]
    clusters: list[Cluster]
    stability: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def noise(self) -> int:
        """Rows in no cluster."""
        return int((self.numbers == NOISE).sum())

    def to_dict(self) -> dict[str, Any]:
        """For JSON; medoids are numbers of rows."""
        return {
            "asked": asdict(self.options),
            "rows": len(self.numbers),
            "noise": self.noise,
            "stability": self.stability,
            "clusters": [asdict(one) for one in self.clusters],
            "notes": self.notes,
        }


def cluster(
    vectors: npt.ArrayLike,
    options: ClusterOptions,
    labels: Sequence[str | None] = (),
    items: Sequence[str] = (),
    runs: int = _RUNS,
) -> Clustering:
    """Cluster vectors (n, d) by their directions.

    HDBSCAN (Campello et al., 2013) runs on diffusion coordinates of the nearest neighbours; k-means
    on vectors of length one. labels: name the clusters. items: the file of each row; the medoids of
    a cluster are of different files. runs: subsamples for the stability; 0 leaves it out.

    Raises:
        UsageError: too few rows, more clusters than different rows, vectors that are not finite.
    """
    rows, options = _checked(vectors, options)
    notes: list[str] = []
    if np.ptp(rows, axis=0).max() <= 1e-9:
        numbers = np.zeros(len(rows), np.int32)
        notes.append(f"all {len(rows)} vectors are the same: one cluster")
        runs = 0
    else:
        if len(rows) > _MOST:
            notes.append(f"found on {_MOST:,} rows; the others joined their nearest of these")
        numbers = _by_size(_assigned(rows, options))
    stable = _stability(rows, numbers, options, runs) if runs else None
    count = int(numbers.max()) + 1
    shares = [_shares(labels, numbers, number) for number in range(count)] if labels else []
    names = _names(shares, count)
    found = [
        Cluster(
            number,
            int((numbers == number).sum()),
            names[number],
            _medoids(rows, numbers, number, items),
            shares[number] if shares else [],
            stable[1][number] if stable else None,
        )
        for number in range(count)
    ]
    if not found:
        notes.append(
            "no cluster: every row is noise; a smaller --min-size, or kmeans, may find some"
        )
    central = _central(rows, numbers)
    return Clustering(options, numbers, central, found, stable[0] if stable else None, notes)


def agreement(numbers: Numbers, names: Sequence[str | None]) -> Agreement | None:
    """Agreement of clusters with names; None if fewer than two rows have one. Adjusted Rand index
    (Hubert and Arabie, 1985) and normalised mutual information."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    named = np.array([name is not None for name in names], bool)
    every = np.array([name or "" for name in names], object)
    if named.sum() < 2:
        return None
    inside = named & (numbers != NOISE)

    def both(rows: npt.NDArray[np.bool_]) -> tuple[float, float]:
        if not rows.any():
            return 0.0, 0.0
        truth, found = every[rows].astype(str), numbers[rows]
        return (
            float(adjusted_rand_score(truth, found)),
            float(normalized_mutual_info_score(truth, found)),
        )

    return Agreement(*both(named), *both(inside), int(named.sum()))


def _checked(vectors: npt.ArrayLike, options: ClusterOptions) -> tuple[FloatArray, ClusterOptions]:
    """Unit vectors, and the options with a smallest size."""
    rows = np.asarray(vectors, np.float64)
    if options.method not in _METHODS:
        gone = ", which is no longer there" if options.method == "evoc" else " is not known"
        raise UsageError(f"method {options.method!r}{gone}; {' and '.join(_METHODS)} work")
    if rows.ndim != 2 or len(rows) < 2:
        raise UsageError(f"clusters need two rows or more; received shape {rows.shape}")
    check_finite(rows, UsageError)
    rows = unit(rows)
    if options.method == "kmeans" and options.clusters is None:
        raise UsageError("kmeans needs the number of clusters: --clusters 10")
    if options.method == "hdbscan" and options.clusters is not None:
        raise UsageError("hdbscan finds the number of clusters itself; --method kmeans takes one")
    if options.clusters is not None:
        different = len(np.unique(rows.astype(np.float32), axis=0))
        if not 1 <= options.clusters <= different:
            raise UsageError(
                f"{options.clusters} clusters were asked for; {len(rows)} rows, {different} of "
                f"them different, have 1 to {different}"
            )
    size = options.min_size
    if size is not None and not 2 <= size <= len(rows):
        raise UsageError(
            f"a smallest cluster of {size} rows: of {len(rows)} rows, 2 to {len(rows)} work"
        )
    return rows, replace(
        options, min_size=size or min(len(rows), max(5, round(len(rows) ** 0.5 / 2)))
    )


def _assigned(rows: FloatArray, options: ClusterOptions) -> Numbers:
    """The cluster of each row, in no particular order; of many rows, by the nearest of a sample."""
    from sklearn.neighbors import NearestNeighbors

    if len(rows) <= _MOST:
        return _fitted(rows, options, 1.0)
    drawn = np.sort(np.random.default_rng(options.seed).choice(len(rows), _MOST, replace=False))
    numbers = _fitted(rows[drawn], options, _MOST / len(rows))
    nearest = NearestNeighbors(n_neighbors=1).fit(rows[drawn])
    every = [
        nearest.kneighbors(rows[at : at + 4096], return_distance=False)[:, 0]
        for at in range(0, len(rows), 4096)
    ]
    found: Numbers = numbers[np.concatenate(every)]
    return found


def _fitted(rows: FloatArray, options: ClusterOptions, share: float) -> Numbers:
    """The clusters of a `share` of all rows."""
    return _METHODS[options.method](rows, options, share).astype(np.int32)


def _kmeans(rows: FloatArray, options: ClusterOptions, share: float) -> npt.NDArray[Any]:
    from sklearn.cluster import KMeans

    model = KMeans(options.clusters, n_init=10 if share == 1 else 3, random_state=options.seed)
    return np.asarray(model.fit_predict(rows))


def _hdbscan(rows: FloatArray, options: ClusterOptions, share: float) -> npt.NDArray[Any]:
    from sklearn.cluster import HDBSCAN

    size = max(2, round((options.min_size or 5) * share))
    if len(rows) <= size:
        return np.full(len(rows), NOISE)
    # Distances between directions of many numbers differ little; between neighbours they do.
    if rows.shape[1] > _FLAT:
        rows = diffused(rows, min(15, max(4, size)), options.seed)
    model = HDBSCAN(min_cluster_size=size, min_samples=min(5, size), copy=True)
    return np.asarray(model.fit_predict(rows))


_METHODS: dict[str, Callable[[FloatArray, ClusterOptions, float], npt.NDArray[Any]]]
_METHODS = {"hdbscan": _hdbscan, "kmeans": _kmeans}


def _by_size(numbers: Numbers) -> Numbers:
    """Numbered by their sizes, the largest first; of equal ones that of the earliest row."""
    there, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    order = sorted(
        (-count, at, number)
        for number, at, count in zip(there, first, counts, strict=True)
        if number != NOISE
    )
    new = {number: place for place, (_, _, number) in enumerate(order)} | {NOISE: NOISE}
    return np.array([new[number] for number in numbers], np.int32)


def _stability(
    rows: FloatArray, numbers: Numbers, options: ClusterOptions, runs: int
) -> tuple[float, list[float]] | None:
    """The mean adjusted Rand index with clusterings of subsamples; and of each cluster the mean
    Jaccard index with the most similar one in each (Hennig, 2007)."""
    from sklearn.metrics import adjusted_rand_score

    size = min(_SAMPLE, round(_SHARE * len(rows)))
    if size < 4 or (options.clusters or 0) > size:
        return None
    random = np.random.default_rng(options.seed)
    count = int(numbers.max()) + 1
    rand, jaccard = [], np.zeros((runs, count))
    for run in range(runs):
        drawn = np.sort(random.choice(len(rows), size, replace=False))
        other = _fitted(rows[drawn], options, size / len(rows))
        rand.append(adjusted_rand_score(numbers[drawn], other))
        for number in range(count):
            jaccard[run, number] = _jaccard(numbers[drawn] == number, other)
    return float(np.mean(rand)), [float(value) for value in jaccard.mean(axis=0)]


def _jaccard(own: npt.NDArray[np.bool_], other: Numbers) -> float:
    sizes = np.bincount(other[other != NOISE], minlength=1)
    common = np.bincount(other[own & (other != NOISE)], minlength=len(sizes))
    either = own.sum() + sizes - common
    return float((common / np.maximum(either, 1)).max())


def _medoids(rows: FloatArray, numbers: Numbers, number: int, items: Sequence[str]) -> list[int]:
    """The three rows with the largest sum of cosines to their cluster, of different items."""
    own = np.flatnonzero(numbers == number)
    order = own[by_centrality(rows[own])]
    seen: dict[str | int, int] = {}
    for place in order.tolist():
        seen.setdefault(items[place] if items else place, place)
        if len(seen) == 3:
            break
    return list(seen.values())


def _central(rows: FloatArray, numbers: Numbers) -> npt.NDArray[np.float32]:
    central = np.full(len(rows), np.nan, np.float32)
    for number in range(int(numbers.max()) + 1):
        own = numbers == number
        central[own] = rows[own] @ unit(rows[own].mean(axis=0))
    return central


def _shares(labels: Sequence[str | None], numbers: Numbers, number: int) -> list[LabelShare]:
    """The labels of a cluster, the most characteristic first: share · log(share / overall)."""
    overall = Counter(label for label in labels if label is not None)
    own = Counter(
        label
        for label, found in zip(labels, numbers.tolist(), strict=True)
        if found == number and label is not None
    )
    shares = [
        LabelShare(label, count, count / own.total(), overall[label] / overall.total())
        for label, count in own.items()
    ]
    return sorted(
        shares, key=lambda s: (-s.share * np.log(s.share / s.overall), -s.count, s.label)
    )[:5]


def _names(shares: list[list[LabelShare]], count: int) -> list[str]:
    """The name of each cluster: its leading labels, and a number where another has that name."""
    names, counts = [], Counter[str]()
    for number in range(count):
        own = shares[number] if shares else []
        leading = [share.label for share in own[:3] if share.share >= 0.2]
        name = " / ".join(leading or [share.label for share in own[:2]]) or f"cluster {number}"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} · {counts[name]}")
    return names


_DIMS = 32
_STEPS = 4
_AXES = 50  # principal components among which neighbours are looked for


def diffused(rows: FloatArray, neighbours: int, seed: int = 0) -> FloatArray:
    """(n, d) → (n, k ≤ 32): eigenvectors of a random walk between neighbours, each times its
    eigenvalue to the fourth (Coifman and Lafon, 2006).

    Directions between parts that few neighbours join keep their length; directions within a part,
    which a walk of four steps has mixed, shrink.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh
    from sklearn.decomposition import PCA
    from sklearn.neighbors import kneighbors_graph

    count = len(rows)
    if count < 4:
        return rows
    axes = PCA(min(_AXES, *rows.shape), random_state=seed, svd_solver="full").fit_transform(rows)
    graph = kneighbors_graph(axes, min(neighbours, count - 1))
    graph = graph.maximum(graph.T)
    inverse = 1.0 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    walk = diags(inverse) @ graph @ diags(inverse)
    dims = min(_DIMS, count - 2)
    start = np.random.default_rng(seed).uniform(-1, 1, count)
    values, vectors = eigsh(walk, k=dims, which="LA", v0=start, tol=1e-4, maxiter=50 * count)
    vectors = vectors * inverse[:, None]
    vectors /= np.linalg.norm(vectors, axis=0)
    coordinates: FloatArray = np.sqrt(count) * vectors * np.clip(values, 0, 1) ** _STEPS
    return coordinates
