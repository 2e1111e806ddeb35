"""Rows of a collection and their numbers: the same for as long as a session lasts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import columns as derived
from penult.collection import lance, schema
from penult.collection.collection import Collection
from penult.collection.schema import Key
from penult.errors import UsageError

Numbers = npt.NDArray[np.int64]
_AT_ONCE = 1 << 16  # rows of a scalar column that are read at once


class NoSuchRow(UsageError):
    """A number or a key of no row."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """The rows as they were read last. keys: `id` and `region` by number, rows that are gone among
    them. places: for each number the place of its row in `row_ids`, −1 where it is gone. table: the
    version that they were read from."""

    table: Any
    keys: pa.Table
    joined: pa.ChunkedArray
    row_ids: npt.NDArray[np.uint64]
    places: Numbers
    columns: dict[str, pa.ChunkedArray] = field(default_factory=dict)


def _joined(keys: pa.Table) -> pa.ChunkedArray:
    """(n,) one text for each key; no path has the sign between its parts."""
    parts = (keys[name].cast(pa.large_string()) for name in schema.KEY)
    return pc.binary_join_element_wise(*parts, pa.scalar("\0", pa.large_string()))


class RowTable:
    """The (id, region) of all rows, in an append-only list: rows that come are added behind the
    others, those that are gone keep their number. Threads may share one."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._guard = threading.Lock()
        fields = pa.schema([(name, pa.string()) for name in schema.KEY])
        none, empty = np.zeros(0, np.int64), fields.empty_table()
        self._now = Numbering(None, empty, _joined(empty), none.astype(np.uint64), none)
        self._numbers: dict[str, int] | None = None
        self.refresh()

    def refresh(self) -> range:
        """Looks for rows that are new, and for those that are gone; gives the new ones' numbers."""
        with self._guard:
            before = self._now
            table = self._collection.reader.open_rows()
            if table is None:
                found = before.keys.slice(0, 0).append_column(lance.ROW, pa.array([], pa.uint64()))
            else:
                found = lance.read_keys(self._collection.path, table)
            joined = _joined(found)
            known = pc.index_in(joined, value_set=before.joined)
            fresh = pc.is_null(known)
            first = len(before.keys)
            total = first + (pc.sum(fresh).as_py() or 0)
            numbers = pc.fill_null(known, -1).to_numpy().astype(np.int64)
            numbers[numbers < 0] = np.arange(first, total)
            keys, added = found.select(schema.KEY), joined
            if first:
                keys = pa.concat_tables([before.keys, keys.filter(fresh)])
                added = joined.filter(fresh)
                joined = pa.chunked_array([*before.joined.chunks, *added.chunks])
            places = np.full(total, -1, np.int64)
            places[numbers] = np.arange(len(numbers))
            row_ids = found[lance.ROW].to_numpy()
            self._now = Numbering(table, keys, joined, row_ids, places)
            if self._numbers is not None:
                self._numbers.update(zip(added.to_pylist(), range(first, total), strict=True))
            return range(first, total)

    def __len__(self) -> int:
        return len(self._now.keys)

    def key(self, row: int) -> Key:
        """The (id, region) of a row.

        Raises:
            NoSuchRow: no row has this number.
        """
        if not 0 <= row < len(self):
            raise NoSuchRow(f"there is no row {row}; they count from 0 to {len(self) - 1}")
        id, region = (self._now.keys[name][row].as_py() for name in schema.KEY)
        return id, region

    def keys(self, rows: Sequence[int]) -> list[Key]:
        """The (id, region) of rows.

        Raises:
            NoSuchRow: no row has one of these numbers.
        """
        keys, wanted = self._now.keys, np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(keys)):
            raise NoSuchRow(f"there is no row {wanted.max()}; there are {len(keys):,}")
        return schema.keys(keys.take(pa.array(wanted)))

    def number(self, key: Key) -> int | None:
        """The number of a row, also of one that is gone; None where there never was one."""
        if self._numbers is None:
            with self._guard:
                joined = self._now.joined.to_pylist()
                self._numbers = dict(zip(joined, range(len(joined)), strict=True))
        return self._numbers.get("\0".join(key))

    def numbers(self, keys: pa.Table | pa.RecordBatch) -> Numbers:
        """(k,) the numbers of rows by the `id` and `region` of a table, −1 where there is none."""
        table = keys if isinstance(keys, pa.Table) else pa.Table.from_batches([keys])
        found = pc.index_in(_joined(table), value_set=self._now.joined)
        numbers: Numbers = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return numbers

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """(n,) which of the rows are in the collection, and not gone."""
        return self._now.places >= 0

    def is_there(self, row: int) -> bool:
        """Whether this is the number of a row that is not gone."""
        places = self._now.places
        return 0 <= row < len(places) and bool(places[row] >= 0)

    @property
    def version(self) -> int:
        """Of the table that was read last; another one where the rows may be others."""
        table = self._now.table
        return 0 if table is None else int(table.version)

    def matching(self, where: str) -> npt.NDArray[np.bool_]:
        """(n,) which rows match a filter.

        Raises:
            CollectionError: a filter that cannot be.
        """
        found = np.zeros(len(self), bool)
        for batch in self._collection.reader.scan(list(schema.KEY), where, _AT_ONCE):
            numbers = self.numbers(batch)
            found[numbers[numbers >= 0]] = True
        return found

    def records(
        self, rows: Sequence[int], columns: Sequence[str], further: Sequence[str] = ()
    ) -> list[dict[str, Any] | None]:
        """Columns of some rows, read as they are needed; None for a row that is gone, or never was
        there. further: columns that are left out where there are none."""
        now = self._now
        total = len(now.places)  # an array could not hold every number that is asked for
        wanted = np.array([row if 0 <= row < total else -1 for row in rows], np.int64)
        known = wanted >= 0
        known[known] &= now.places[wanted[known]] >= 0
        if not known.any():
            return [None] * len(wanted)
        names = [*columns, *(name for name in further if name in now.table.schema.names)]
        row_ids, places = np.unique(now.row_ids[now.places[wanted[known]]], return_inverse=True)
        batches = lance.take_rows(self._collection.path, now.table, names, row_ids)
        found = pa.Table.from_batches(batches).take(pa.array(places)).to_pylist()
        later = iter(found)
        return [next(later) if there else None for there in known.tolist()]

    def column(self, name: str) -> pa.ChunkedArray:
        """(n,) the values of one scalar column by number, null where a row is gone; read once for
        each version of the rows."""
        now = self._now
        if (known := now.columns.get(name)) is None:
            known = now.columns[name] = self._read(now, name)
        return known

    def _read(self, now: Numbering, name: str) -> pa.ChunkedArray:
        if name in schema.KEY:
            return now.keys[name]
        if now.table is None:
            return pa.chunked_array([], pa.null())
        path, kind = self._collection.path, now.table.schema.field(name).type
        parts = list(lance.stream_rows(path, now.table, [name], None, _AT_ONCE, row_id=True))
        if not parts:
            return pa.chunked_array([pa.nulls(len(now.keys), kind)])
        read = pa.Table.from_batches(parts)
        order = np.argsort(read[lance.ROW].to_numpy(), kind="stable")
        place = order[np.searchsorted(read[lance.ROW].to_numpy(), now.row_ids, sorter=order)]
        gone = now.places < 0
        wanted = pa.array(place[now.places] if len(place) else now.places, mask=gone)
        return read[name].take(wanted)

    def derived(self, column: derived.DerivedColumn) -> pa.Array:
        """(n,) the values of a derived column by number, null where a row has none."""
        columns = [*self._now.keys.columns, self.column(derived.VERSION)]
        return column.of(pa.table(columns, names=[*schema.KEY, derived.VERSION]))
