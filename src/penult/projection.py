"""Vectors → two coordinates that keep neighbours together, for a picture. Numpy in, numpy out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def project(vectors: FloatArray, seed: int = 0) -> FloatArray:
    """(n, d) → (n, 2) by t-SNE on cosine distances (van der Maaten and Hinton, 2008).

    The same vectors and seed give the same picture. Distances between far groups mean little.
    """
    from sklearn.manifold import TSNE

    if len(vectors) < 4:
        return np.zeros((len(vectors), 2), np.float32)
    perplexity = min(15.0, (len(vectors) - 1) / 3)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    placed: FloatArray = tsne.fit_transform(unit).astype(np.float32)
    return placed
