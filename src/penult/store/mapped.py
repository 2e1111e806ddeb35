"""A map of a collection's rows: two coordinates for each, worked out once, kept, and named.

Knows a collection and no picture; no row is written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.errors import StoreError, UsageError
from penult.ingesting import rows
from penult.space import RAW
from penult.store import placed, spaces
from penult.store.labelled import PREDICTED, names_of
from penult.uses import projection

if TYPE_CHECKING:
    from penult.store.collection import Collection

_HIDDEN = ("content_hash", "size", "mtime_ns", "run_id", "truncated")


@dataclass(frozen=True, slots=True)
class Map:
    """rows: their scalar columns, in key order. points: (n, 2). names: what each row is called by
    what was asked for. matching: the rows that there are, of which more than enough were drawn.
    kept: the map was there already."""

    rows: pa.Table
    points: npt.NDArray[np.float32]
    names: list[str | None]
    by: str
    method: str
    space: str
    matching: int
    kept: bool


def make_map(
    collection: Collection,
    by: str = PREDICTED,
    method: str | None = None,
    space: str = RAW,
    where: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Map:
    """Places the rows that a filter leaves on a plane and names them `by` what
    `penult.store.labelled.labelled` takes. Of more than `most` rows so many are drawn by chance.

    The coordinates are kept in the collection; the same map of the same rows is not made twice.

    Raises:
        UsageError: no rows, or an unknown method. LabelsError: `by` names nothing here.
    """
    matching = collection.count_where(where)
    if not matching:
        what = f"no row of {collection.path} matches {where!r}" if where else "it has no rows"
        raise UsageError(f"there is nothing to draw of {collection.path}: {what}")
    chosen = method or projection.method_for(min(matching, most or matching))
    if chosen not in projection.MOST:
        raise UsageError(f"method {chosen!r} is not known; {', '.join(projection.MOST)} work")
    if most is not None and most < 1:
        raise UsageError(f"a map of {most} rows cannot be drawn; one or more can")
    columns = [name for name in rows.scalar_columns(collection.schema) if name not in _HIDDEN]
    limit = most or projection.MOST[chosen]
    table, vectors = collection.vectors(where, columns, most=limit, seed=seed)
    names = names_of(collection, table, by)
    used = spaces.ready(collection, space)[0]
    about = {"method": chosen, "space": used.id, "seed": seed, "dim": 2, "rows": _digest(vectors)}
    points = _kept(collection, about, table)
    if points is None:
        found = projection.project(used(vectors), seed, chosen)
        _keep(collection, about, table, found)
        return Map(table, found, names, by, chosen, space, matching, False)
    return Map(table, points, names, by, chosen, space, matching, True)


def _digest(vectors: npt.NDArray[np.float32]) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:16]


def _name(about: dict[str, Any]) -> str:
    return ":".join(str(about[part]) for part in ("method", "space", "seed", "rows"))


def _kept(
    collection: Collection, about: dict[str, Any], table: pa.Table
) -> npt.NDArray[np.float32] | None:
    """The coordinates, if this map of these very rows was made before."""
    found = placed.kept(collection, "maps", _name(about))
    if found is None or rows.keys(found.table) != rows.keys(table):
        return None
    return np.stack([found.table[name].to_numpy() for name in ("x", "y")], axis=1)


def _keep(
    collection: Collection,
    about: dict[str, Any],
    table: pa.Table,
    points: npt.NDArray[np.float32],
) -> None:
    values = table.select(list(rows.KEY))
    for place, name in enumerate(("x", "y")):
        values = values.append_column(name, pa.array(points[:, place]))
    try:
        placed.keep(collection, "maps", _name(about), about, values)
    except StoreError:  # a collection that may only be read has its map made anew each time
        return
