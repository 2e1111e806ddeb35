"""Rows of a collection's table as streams: in any order, in the order of their keys, or as one
matrix of vectors. Knows a table and its folder, no collection and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.errors import CollectionError
from penult.ingesting import rows
from penult.store import tables
from penult.store.folder import store_errors

ROW = "_rowid"
_KEYS_AT_ONCE = 8192
_VECTORS_AT_ONCE = 1024
Places = npt.NDArray[np.uint64]


def selected(path: Path, table: Any, columns: Sequence[str] | None) -> list[str]:
    """The names of these columns, or of all.

    Raises:
        CollectionError: there is no such column.
    """
    names = list(table.schema.names)
    if unknown := [name for name in columns or () if name not in names]:
        raise CollectionError(
            f"there is no column {unknown[0]!r} in {path}; columns: {', '.join(names)}"
        )
    return names if columns is None else list(columns)


def stream(
    path: Path, table: Any, columns: list[str], where: str | None, size: int, row_id: bool = False
) -> Iterator[pa.RecordBatch]:
    """The matching rows in no particular order, all of one commit; with `_rowid` if asked."""
    names = table.schema.names
    with tables.asking(path, where, names):
        query = table.search().select(columns).limit(None).with_row_id(row_id)
        if where is not None:
            query = query.where(where)
        reader = query.to_batches(size)

    def batches() -> Iterator[pa.RecordBatch]:
        while True:
            with tables.asking(path, where, names):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    return batches()


def ordered(
    path: Path, table: Any, columns: list[str], where: str | None, size: int
) -> Iterator[pa.RecordBatch]:
    """The matching rows in the order of their keys."""
    found = places(path, table, where)
    chunks = (found[at : at + size] for at in range(0, len(found), size))
    return (batch for chunk in chunks for batch in taken(path, table, columns, chunk))


def vectors(
    path: Path, table: Any, columns: list[str], where: str | None, most: int | None, seed: int
) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """The columns and the vectors (n, d) of the matching rows in the order of their keys; of more
    than `most`, so many drawn by chance, the same ones for a seed."""
    found = places(path, table, where)
    if most is not None and len(found) > most:
        drawn = np.random.default_rng(seed).choice(len(found), most, replace=False)
        found = found[np.sort(drawn)]
    matrix = np.empty((len(found), table.schema.field("vector").type.list_size), np.float32)
    by_row = np.argsort(found)
    parts: list[pa.RecordBatch] = []
    filled: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    wanted = [*dict.fromkeys([*columns, "vector"])]
    for batch in stream(path, table, wanted, where, _VECTORS_AT_ONCE, True) if len(found) else ():
        row = batch.column(ROW).to_numpy()
        spot = np.minimum(np.searchsorted(found, row, sorter=by_row), len(found) - 1)
        place = by_row[spot]
        if not (drawn_here := found[place] == row).all():
            batch, place = batch.filter(pa.array(drawn_here)), place[drawn_here]
        matrix[place] = rows.matrix(batch.column("vector"))
        parts.append(batch.select(columns))
        filled.append(place)
    schema = pa.schema([table.schema.field(name) for name in columns])
    keys = pa.Table.from_batches(parts, schema)
    return keys.take(np.argsort(np.concatenate(filled))), matrix


def taken(path: Path, table: Any, columns: list[str], wanted: Places) -> list[pa.RecordBatch]:
    """The rows at these places in the given order; LanceDB gives them in its own."""
    with store_errors(path):
        found = table.take_row_ids(wanted.tolist()).select(columns).with_row_id().to_arrow()
    order = np.argsort(found[ROW].to_numpy())[np.argsort(np.argsort(wanted))]
    batches: list[pa.RecordBatch] = found.take(order).select(columns).combine_chunks().to_batches()
    return batches


def places(path: Path, table: Any, where: str | None) -> Places:
    """The row ids of the matching rows, in the order of their keys."""
    parts = list(stream(path, table, list(rows.ORDER), where, _KEYS_AT_ONCE, True))
    if not parts:
        return np.zeros(0, np.uint64)
    keys = pa.Table.from_batches(parts)
    for name in ("channel", "start"):  # null comes first here, and last for an end
        filled = pc.fill_null(keys[name], -1)
        keys = keys.set_column(keys.schema.get_field_index(name), name, filled)
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in rows.ORDER])
    found: Places = keys[ROW].take(order).to_numpy()
    return found
