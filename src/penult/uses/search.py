"""Nearest neighbours as small objects: checks a query, ranks what a store found. Knows no store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.errors import CollectionError
from penult.ingesting.rows import COLUMNS

METRICS = ("cosine", "dot", "l2")
Searched = Literal["index", "all rows"]
INDEX: Searched = "index"
ALL_ROWS: Searched = "all rows"
DISTANCE = "_distance"


@dataclass(frozen=True, slots=True)
class Hit:
    """One region that a search found.

    `similarity` is higher for nearer regions: the cosine, the dot product, or minus the
    Euclidean distance. `start` and `end` are seconds; None is the item's beginning and end.
    """

    id: str
    region: str
    start: float | None
    end: float | None
    channel: int | None
    label: str | None
    score: float | None
    similarity: float
    metadata: dict[str, Any] = field(default_factory=dict)


class Hits(list[Hit]):
    """The regions that a search found, nearest first.

    searched: `index` if an approximate index was asked, `all rows` if every matching row was
    compared.
    """

    def __init__(self, hits: Iterable[Hit] = (), searched: Searched = ALL_ROWS) -> None:
        super().__init__(hits)
        self.searched: Searched = searched

    def __repr__(self) -> str:
        return f"Hits({super().__repr__()}, searched={self.searched!r})"


def as_query(vector: npt.ArrayLike, dim: int, metric: str = "cosine") -> npt.NDArray[np.float32]:
    """The query as (dim,) float32; of length one for cosine, so that no scale overflows.

    Raises:
        CollectionError: wrong size, values that are not finite, a zero vector for cosine, or an
            unknown metric.
    """
    if metric not in METRICS:
        raise CollectionError(f"metric {metric!r} is not known; {', '.join(METRICS)} work")
    query = np.asarray(vector, dtype=np.float64)
    if query.shape != (dim,):
        raise CollectionError(
            f"the query has shape {query.shape}, the collection's vectors have ({dim},); "
            "embed the query with the collection's own embedder"
        )
    if not np.isfinite(query).all():
        raise CollectionError("the query has values that are not finite")
    if metric == "cosine":
        length = float(np.linalg.norm(query))
        if length == 0:
            raise CollectionError("the query is a zero vector, which has no direction to compare")
        query = query / length
    return query.astype(np.float32)


def distances(
    query: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: str
) -> npt.NDArray[np.float32]:
    """How far each of the vectors (n, d) is from the query (d,), as the store measures it: one
    minus the cosine or the dot product, or the squared Euclidean distance. Infinite where a zero
    vector has no cosine."""
    asked, rows = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        far = np.square(rows - asked).sum(axis=1)
    elif metric == "dot":
        far = 1.0 - rows @ asked
    else:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(asked)
        none = lengths == 0
        far = np.where(none, np.inf, 1.0 - rows @ asked / np.where(none, 1.0, lengths))
    rounded: npt.NDArray[np.float32] = far.astype(np.float32)
    return rounded


def is_cut_in_a_tie(distances: npt.NDArray[np.float32], k: int, asked: int) -> bool:
    """Whether of `asked` nearest rows the k-th is as far as the last: more may be as near."""
    distances = np.sort(distances)
    return len(distances) == asked > k and bool(distances[k - 1] == distances[-1])


def hits(found: pa.Table, k: int, metric: str = "cosine", searched: Searched = ALL_ROWS) -> Hits:
    """The k nearest of the found rows, nearest first; ties in the order of (id, region)."""
    rows = found.to_pylist()
    rows.sort(key=lambda row: (row[DISTANCE], row["id"], row["region"]))
    extra = [name for name in found.column_names if name not in COLUMNS and name != DISTANCE]
    own = ("id", "region", "start", "end", "channel", "label", "score")
    found_hits = (
        Hit(
            **{name: row[name] for name in own},
            similarity=_similarity(row[DISTANCE], metric),
            metadata={name: row[name] for name in extra},
        )
        for row in rows[:k]
    )
    return Hits(found_hits, searched)


def _similarity(distance: float, metric: str) -> float:
    if metric == "l2":  # LanceDB gives the square
        return -float(np.sqrt(max(distance, 0.0)))
    similarity = 1.0 - distance
    return min(max(similarity, -1.0), 1.0) if metric == "cosine" else similarity
