"""Coordinates in which rows are near that many short steps join: diffusion maps of a graph of
nearest neighbours. Numpy in, numpy out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_DIMS = 32
_STEPS = 4
_AXES = 50  # principal components among which neighbours are looked for


def diffused(rows: FloatArray, neighbours: int, seed: int = 0) -> FloatArray:
    """(n, d) → (n, k ≤ 32): eigenvectors of a random walk between neighbours, each times its
    eigenvalue to the fourth (Coifman and Lafon, 2006).

    What joins parts that hang together by few steps keeps its length; directions within a part,
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
