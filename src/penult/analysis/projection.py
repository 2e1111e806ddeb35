"""Projection of vectors to the plane (t-SNE, UMAP, PCA), for maps. Numpy in, numpy out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import check_finite, unit
from penult.errors import UsageError
from penult.extras import require

FloatArray = npt.NDArray[np.float32]

# The rows of which each method makes a picture in a few minutes on two cores.
MOST = {"umap": 100_000, "tsne": 20_000, "pca": 100_000}
_FITTED = 100_000  # rows that principal directions are found from; of more, drawn by chance
_FEW = 5_000  # rows up to which t-SNE takes seconds, and UMAP first a minute to compile


def method_for(rows: int) -> str:
    """The default method for this number of rows."""
    return "tsne" if rows <= _FEW else "umap"


def project(vectors: FloatArray, seed: int = 0, method: str = "tsne") -> FloatArray:
    """(n, d) → (n, 2) by cosine distances: `tsne` (van der Maaten and Hinton, 2008), `umap`
    (McInnes et al., 2018), or `pca`, the two directions of largest variance of unit vectors (of
    more than 100,000, of so many drawn by chance).

    The same vectors and seed give the same picture. Distances between far groups mean little,
    except in `pca`.

    Raises:
        UsageError: an unknown method, or vectors that are not finite.
        MissingExtra: umap-learn is not installed.
    """
    if method not in MOST:
        raise UsageError(f"method {method!r} is not known; {', '.join(MOST)} work")
    check_finite(vectors, UsageError)
    directions = unit(vectors)
    if len(vectors) < 4 or np.ptp(directions, axis=0).max() <= 1e-9:
        return _in_a_row(len(vectors))
    placed = _PROJECTIONS[method](directions, seed)
    found: FloatArray = np.asarray(placed, np.float32)
    return found


def _tsne(directions: FloatArray, seed: int) -> Any:
    from sklearn.manifold import TSNE

    perplexity = min(15.0, (len(directions) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(directions)


def _umap(directions: FloatArray, seed: int) -> Any:
    umap = require("umap")
    neighbours = min(15, len(directions) - 1)
    start = "spectral" if len(directions) > 50 else "random"
    model = umap.UMAP(
        n_neighbors=neighbours, metric="cosine", init=start, random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():  # its warnings of the initial positions need no action
        warnings.simplefilter("ignore")
        return model.fit_transform(directions)


def _pca(directions: FloatArray, seed: int) -> Any:
    from penult.analysis.space import fit

    seen = directions
    if len(directions) > _FITTED:  # a decomposition of a million rows takes tens of gigabytes
        drawn = np.random.default_rng(seed).choice(len(directions), _FITTED, replace=False)
        seen = directions[np.sort(drawn)]
    flat = fit(f"pca:{min(2, directions.shape[1])}", seen)(directions)
    return flat if flat.shape[1] == 2 else np.column_stack([flat, np.zeros(len(flat))])


_PROJECTIONS = {"tsne": _tsne, "umap": _umap, "pca": _pca}


def _in_a_row(count: int) -> FloatArray:
    """Too few points for neighbours to mean anything, or all at one place."""
    return np.column_stack([np.arange(count), np.zeros(count)]).astype(np.float32)
