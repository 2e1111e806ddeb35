"""Rows that stand for many: far apart (k-centre), typical of groups, or drawn evenly over strata.

Numpy in, places of rows out; the same rows and seed give the same places.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit

Matrix = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
_NEAR = 20  # nearest rows of a cluster that a row's typicality is the mean of


def k_centre(vectors: npt.ArrayLike, k: int, seed: int = 0) -> Places:
    """k rows of which each is as far as can be from those before it, by cosine (greedy k-centre:
    Gonzalez, 1985; for labelling: Sener and Savarese, ICLR 2018). The first is drawn by chance, of
    equally far rows the first is taken. vectors: (n, d), n ≥ k."""
    rows = unit(np.asarray(vectors, np.float32))
    chosen = [int(np.random.default_rng(seed).integers(len(rows)))] if k else []
    nearest = np.full(len(rows), -np.inf, np.float32)
    while len(chosen) < k:
        np.maximum(nearest, rows @ rows[chosen[-1]], out=nearest)
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
    return np.array(chosen, np.int64)


def typical(vectors: npt.ArrayLike, k: int, seed: int = 0) -> Places:
    """The most typical row of each of k clusters (TypiClust: Hacohen, Dekel and Weinshall, ICML
    2022): that with the highest mean cosine to its 20 nearest rows of the cluster. The rows of the
    largest clusters come first. vectors: (n, d), n ≥ k."""
    from sklearn.cluster import MiniBatchKMeans

    rows = unit(np.asarray(vectors, np.float32))
    if k == 0:
        return np.zeros(0, np.int64)
    model = MiniBatchKMeans(k, n_init=3, batch_size=max(1024, 2 * k), random_state=seed)
    found = model.fit_predict(rows)
    members = [np.flatnonzero(found == number) for number in range(k)]
    members = sorted((one for one in members if len(one)), key=lambda one: (-len(one), one[0]))
    ranked = []
    for one in members:
        cosine = rows[one] @ rows[one].T
        near = min(_NEAR, len(one) - 1)
        np.fill_diagonal(cosine, -np.inf)
        values = np.sort(cosine, axis=1)[:, len(one) - near :] if near else np.zeros((1, 1))
        ranked.append(one[np.argsort(-values.mean(axis=1), kind="stable")])
    # Where clusters came out empty, further rows of the largest ones take their place.
    order = [one[place] for place in range(max(map(len, ranked))) for one in ranked
             if place < len(one)]  # fmt: skip
    return np.array(order[:k], np.int64)


def drawn(vectors: npt.ArrayLike, k: int, seed: int = 0) -> Places:
    """k rows drawn by chance, in their order. vectors: (n, d), n ≥ k."""
    count = len(np.asarray(vectors))
    return np.sort(np.random.default_rng(seed).choice(count, k, replace=False)).astype(np.int64)


def quotas(sizes: Mapping[str, int], k: int) -> dict[str, int]:
    """How many of k each stratum gives: all as many, small ones what they have, and what does not
    divide the larger ones first, of equal size by name."""
    given = dict.fromkeys(sizes, 0)
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    left = min(k, sum(sizes.values()))
    while left:
        able = [name for name in order if given[name] < sizes[name]]
        each = left // len(able)
        for name in able if each else able[:left]:
            more = min(max(each, 1), sizes[name] - given[name])
            given[name] += more
            left -= more
    return given
