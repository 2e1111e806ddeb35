"""Few-shot episodes: N classes, K examples each, and queries; and how many of them are answered.

Numpy in, numpy out; knows no model, no space and no store.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float32]

_AT_ONCE = 1 << 24  # numbers that are gathered together


@dataclass(frozen=True, slots=True)
class Episodes:
    """support: (E, N, K) rows. query: (E, N, Q) rows; the n-th of N is one class on both sides."""

    support: Rows
    query: Rows

    @property
    def ways(self) -> int:
        """N, classes in an episode."""
        return int(self.support.shape[1])

    @property
    def shots(self) -> int:
        """K, examples of a class."""
        return int(self.support.shape[2])


def numbered(names: Sequence[object] | npt.NDArray[np.generic]) -> tuple[Rows, list[str]]:
    """Names as numbers from 0, and the names in their order."""
    kinds, numbers = np.unique(np.asarray([str(name) for name in names]), return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), kinds.tolist()


def partitions(labels: Rows, groups: Rows, folds: int, repeats: int, seed: int) -> Iterator[Mask]:
    """The query sides (n,) of `repeats` random divisions into folds: no group lies on both sides,
    and every class is spread over the folds as evenly as its groups allow.

    Raises:
        LabelsError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = len(np.unique(groups))
    if count < folds:
        raise LabelsError(
            f"{count} groups cannot be divided into {folds} sides that share none; "
            "give items of more groups, or no groups"
        )
    kind = StratifiedKFold if count == len(groups) else StratifiedGroupKFold
    for repeat in range(repeats):
        divided = kind(folds, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class with fewer items than folds is left out later
            for _, query in _divisions(divided, labels, groups):
                side = np.zeros(len(labels), bool)
                side[query] = True
                yield side


def _divisions(divided: object, labels: Rows, groups: Rows) -> Iterator[tuple[Rows, Rows]]:
    try:
        yield from divided.split(np.zeros(len(labels)), labels, groups)  # type: ignore[attr-defined]
    except ValueError as error:
        raise LabelsError(
            f"the items cannot be divided into sides: {error}; give more items of each class"
        ) from error


def able(labels: Rows, query_side: Mask, shots: int, queries: int = 1) -> Rows:
    """The classes with `shots` items on the support side and `queries` on the query side."""
    size = int(labels.max(initial=-1)) + 1
    support = np.bincount(labels[~query_side], minlength=size)
    query = np.bincount(labels[query_side], minlength=size)
    return np.flatnonzero((support >= shots) & (query >= queries)).astype(np.int64)


def draw(labels: Rows, query_side: Mask, ways: int, shots: int, count: int, seed: int) -> Episodes:
    """`count` episodes of one query a class, supports from one side and queries from the other.

    Raises:
        LabelsError: fewer than `ways` classes have items enough on both sides.
    """
    classes = able(labels, query_side, shots)
    if len(classes) < ways or ways < 2:
        raise LabelsError(
            f"{ways}-way {shots}-shot episodes need {max(ways, 2)} classes with {shots} examples "
            f"and a query of another group; {len(classes)} have them"
        )
    random = np.random.default_rng(seed)
    chosen = classes[_some(random, count, len(classes), ways)]
    support = np.empty((count, ways, shots), np.int64)
    query = np.empty((count, ways, 1), np.int64)
    for one in classes:
        at = chosen == one
        rows = np.flatnonzero((labels == one) & ~query_side)
        support[at] = rows[_some(random, int(at.sum()), len(rows), shots)]
        rows = np.flatnonzero((labels == one) & query_side)
        query[at] = rows[_some(random, int(at.sum()), len(rows), 1)]
    return Episodes(support, query)


def _some(random: np.random.Generator, times: int, of: int, many: int) -> Rows:
    """(times, many): each row without repetition, out of `of`."""
    if many == 1:
        return random.integers(of, size=(times, 1))
    return random.random((times, of)).argsort(axis=1)[:, :many]


def products(vectors: npt.ArrayLike) -> Array:
    """(n, n): the inner product of every pair; of it episodes and neighbours are read."""
    rows = np.asarray(vectors, np.float32)
    # Scaled so that no square of a large raw vector overflows: cosines do not change by it.
    largest = float(np.abs(rows).max(initial=0.0))
    rows = rows / largest if largest > 0 else rows
    made: Array = rows @ rows.T
    return made


def answered(inner: Array, episodes: Episodes) -> Array:
    """(E, N, Q): 1 where the nearest prototype is the query's own, by cosine; of m equally near
    ones each gets 1/m.

    inner: (n, n), `products` of the vectors. A class's prototype is the mean of its examples.
    """
    events, ways, shots = episodes.support.shape
    queries = episodes.query.shape[2]
    done = np.empty((events, ways, queries), np.float32)
    step = max(1, _AT_ONCE // (ways * ways * shots * max(queries, shots)))
    for at in range(0, events, step):
        support, query = episodes.support[at : at + step], episodes.query[at : at + step]
        near = inner[query[:, :, :, None, None], support[:, None, None]].sum(axis=-1)
        square = inner[support[..., :, None], support[..., None, :]].sum(axis=(-2, -1))
        length = np.sqrt(np.maximum(square, 0.0))
        near = near / np.where(length > 0, length, 1.0)[:, None, None, :]
        done[at : at + step] = _share(near)
    return done


def _share(near: Array) -> Array:
    """(E, N, Q, N) similarities → the share of the answer that is right."""
    best = near.max(axis=-1, keepdims=True)
    # Rounding must not decide between prototypes that are the same vector.
    ties = near >= best - 1e-6 * np.abs(best)
    own = np.einsum("enqn->enq", ties)
    share: Array = own / ties.sum(axis=-1)
    return share
