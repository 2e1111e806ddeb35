"""Read a collection: manifest, rows as streams or matrices, side tables, derived values. Knows no
model; rows are committed by `writer.py` only.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import columns as derived
from penult.collection import lance, manifest, repair, schema
from penult.collection.journal import Journal
from penult.collection.manifest import Clock, Manifest, Mark, store_errors
from penult.collection.renaming import DERIVED, derived_id, packed
from penult.collection.schema import KEY
from penult.data.places import place_of
from penult.data.roots import Roots
from penult.errors import CollectionError

MARKS = ("yes", "no", "unsure")
_ORDER = {"runs": ["started"], "failures": ["id", "region"]}  # of side tables; others by `when`


class Reader:
    """The tables of one collection. Every call reads the latest commit and takes no lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = place_of(path)
        self._manifest: tuple[Mark, Manifest] | None = None
        self._table: tuple[Mark, Any] | None = None  # the rows, opened for searches
        self._roots: tuple[Mark, Roots] | None = None
        self._journal = Journal(self.path)
        self._newest: dict[str, tuple[int, Any]] = {}  # version of a side table, its newest `when`
        self._appending = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def manifest(self) -> Manifest | None:
        """The properties that all vectors share; None while the collection does not exist."""
        current = self._current()
        return None if current is None else current[1]

    @property
    def roots(self) -> Roots:
        """What ids begin with; none where they are absolute paths."""
        if (current := self._current()) is None:
            return Roots()
        mark, found = current
        if self._roots is None or self._roots[0] != mark:
            self._roots = mark, Roots(found.roots or {}, self.path)
        return self._roots[1]

    @property
    def schema(self) -> pa.Schema:
        """The arrow schema of the rows, metadata last."""
        found = self.require_manifest()
        if (table := self._open(found)) is not None:
            with store_errors(self.path):
                return table.schema
        return _row_schema(found)

    def require_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            CollectionError: there is no collection.
        """
        return self._require_current()[1]

    def count_rows(self, where: str | None = None) -> int:
        """The number of rows (regions, not items) that match a filter; 0 without a collection."""
        current = self.manifest
        table = None if current is None else self._open(current)
        if table is None:
            return 0
        where = derived.resolved(self.path, table, where)
        with lance.query_errors(self.path, where, table.schema.names):
            return int(table.count_rows(where))

    def open_rows(self) -> Any | None:
        """The table of rows at this commit, for streams; None before the first row."""
        return self._open(self.require_manifest())

    def latest_rows(self) -> tuple[Manifest, Any | None]:
        """The manifest, and the table of rows at its latest version, for queries of one call:
        opened once, since opening takes as long as a search in its index."""
        lance.home().require()
        (mark, current), cached = self._require_current(), self._table
        if cached is not None and cached[0] == mark:
            with store_errors(self.path):
                cached[1].checkout_latest()
            return current, cached[1]
        table = self._open(current)
        fresh = table is not None and lance.is_current(self.path, table)
        self._table = (mark, table) if fresh else None
        return current, table

    def scan(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_size: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Streams rows in no particular order, all of one commit."""
        if (table := self.open_rows()) is None:
            return iter(())
        names, added, where = derived.planned(self.path, table, columns, where)
        batches = lance.stream_rows(self.path, table, names, where, batch_size)
        return _completed(batches, added, columns)

    def ordered(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_size: int = 1024,
        every: int = 1,
    ) -> Iterator[pa.RecordBatch]:
        """Streams rows by id, then channel, start and end: the same order after any history; with
        `every` the first, and each so many-th after it, alone.

        Holds the keys of all rows in memory, the rest of `batch_size` rows.
        """
        if (table := self.open_rows()) is None:
            return iter(())
        names, added, where = derived.planned(self.path, table, columns, where)
        batches = lance.stream_ordered(self.path, table, names, where, batch_size, every)
        return _completed(batches, added, columns)

    def vectors(
        self,
        where: str | None = None,
        columns: Sequence[str] = KEY,
        most: int | None = None,
        seed: int = 0,
    ) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        """The named columns of all rows as a table, and their vectors (n, d), in key order.

        most: of more rows, this many drawn at random, the same ones for a seed.
        """
        if (table := self.open_rows()) is None:
            fields = pa.schema([self.schema.field(name) for name in columns])
            return fields.empty_table(), np.zeros((0, self.require_manifest().dim), np.float32)
        names, added, where = derived.planned(self.path, table, columns, where)
        rows, matrix = lance.read_vectors(self.path, table, names, where, most, seed)
        return (derived.attached(added, rows).select(columns) if added else rows), matrix

    def get(self, id: str, region: str = "whole") -> dict[str, Any] | None:
        """One row; vector and logits as float32 arrays, top logits as a list of dicts."""
        _, table = self.latest_rows()
        if table is None:
            return None
        where = f"id = {schema.quoted([id])} AND region = {schema.quoted([region])}"
        with store_errors(self.path):
            found = table.search().where(where).limit(1).to_arrow()
        if not len(found):
            return None
        row: dict[str, Any] = found.drop_columns(["vector"]).to_pylist()[0]
        row["vector"] = schema.matrix(found["vector"])[0]
        if "logits" in row and pa.types.is_fixed_size_list(found["logits"].type):
            row["logits"] = schema.matrix(found["logits"])[0] if row["logits"] is not None else None
        return {name: row[name] for name in found.column_names}

    def side_table(self, name: str) -> pa.Table:
        """A side table of `penult.collection.lance.SIDE`, whole: runs by their start, failures by
        id and region, others in order of time."""
        self.require_manifest()
        if (table := lance.open_table(self.path, name)) is None:
            return lance.SIDE[name].empty_table()
        with store_errors(self.path):
            found = table.to_arrow()
        for column in lance.SIDE[name]:
            if column.name not in found.column_names:  # written by an earlier version
                found = found.append_column(column, pa.nulls(len(found), column.type))
        return _sorted(found, _ORDER.get(name, ["when"]))

    def append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends records to a side table, and has them on the disk; `when` is now unless a record
        has it, and later than that of all records there. Takes no lock: also possible while a run
        is writing."""
        self.require_manifest()
        if not records:
            return
        repair.settle(self.path, name)
        columns = lance.SIDE[name]
        table = lance.create_table(self.path, name, columns)
        with store_errors(self.path), self._appending:
            version, newest = self._newest.get(name, (0, None))
            before = table.version
            if version != before:  # another process or object has appended
                there = table.search().select(["when"]).limit(None).to_arrow()["when"]
                newest = pc.max(there).as_py()
            when = Clock(after=[newest]).now()
            stamped = pa.Table.from_pylist([{"when": when, **r} for r in records], schema=columns)
            table.add(stamped)
            times = [newest, pc.max(stamped["when"]).as_py()]
            if table.version == before + 1:
                self._newest[name] = before + 1, max(one for one in times if one is not None)
            self._journal.sync(name)
            if lance.fragments(table) >= lance.MANY:  # else each mark takes longer than the last
                self._compact(name, table)

    def _compact(self, name: str, table: Any) -> None:
        lance.tidy(table, self.path, journal=lambda: self._journal)
        if (known := self._newest.pop(name, None)) is not None:
            self._newest[name] = table.version, known[1]

    def _open(self, current: Manifest) -> Any | None:
        """The table of rows, as the manifest has them; None before the first row.

        Raises:
            CollectionError: they are rows of something else.
        """
        table = lance.open_table(self.path, lance.ITEMS)
        if table is None:
            return None
        with store_errors(self.path):
            words = schema.misfit(table.schema, _row_schema(current))
            if words and table.count_rows():  # the next writer makes an empty one anew
                raise CollectionError(
                    f"{self.path} is damaged: {words}, and {manifest.MANIFEST} has {current.dim} "
                    f"numbers ({current.dtype}) and logits {current.logits!r} of "
                    f"{current.n_logits} classes; restore the one that was changed"
                )
        return table

    def _current(self) -> tuple[Mark, Manifest] | None:
        """The manifest with its mark; read again only where another one was written."""
        mark, cached = manifest.mark(self.path), self._manifest
        if mark is None:
            return None
        if cached is None or cached[0] != mark:
            cached = self._manifest = (mark, manifest.read_manifest(self.path))
        return cached

    def _require_current(self) -> tuple[Mark, Manifest]:
        if (current := self._current()) is None:
            raise CollectionError(f"there is no collection at {self.path} yet")
        return current


def _completed(
    batches: Iterator[pa.RecordBatch],
    added: list[derived.DerivedColumn],
    columns: Sequence[str] | None,
) -> Iterator[pa.RecordBatch]:
    """Batches with derived columns."""
    if not added:
        return batches
    return (derived.attached(added, batch).select(columns) for batch in batches)


def _sorted(table: pa.Table, by: Sequence[str]) -> pa.Table:
    """By these columns; what is equal stays in the order in which it was appended."""
    numbered = table.append_column("__place", pa.array(range(len(table)), pa.int64()))
    keys = [(column, "ascending") for column in (*by, "__place")]
    return numbered.sort_by(keys).drop_columns(["__place"])


def append_labels(reader: Reader, records: Sequence[Mapping[str, Any]]) -> None:
    """Appends marks with id, region, class, mark, who, source and, if not now, when.

    Takes no lock: also possible while a run is writing.

    Raises:
        CollectionError: there is no collection, a value is missing or a mark unknown.
    """
    for record in records:
        missing = [name for name in ("id", "region", "class") if not record.get(name)]
        if missing or record.get("mark") not in MARKS:
            raise CollectionError(
                f"a label needs id, region, class and a mark out of {', '.join(MARKS)}; "
                f"received {dict(record)}"
            )
    reader.append("labels", records)


@dataclass(frozen=True, slots=True)
class Derived:
    """Per-row values stored under a name. about: how they were computed. table: `id`, `region`,
    values."""

    id: str
    name: str
    about: dict[str, Any]
    table: pa.Table


def keep_derived(
    reader: Reader, kind: str, name: str, about: Mapping[str, Any], table: pa.Table
) -> str:
    """Appends one record to the side table `clusters`, `maps` or `derived`; gives its id.

    Raises:
        CollectionError: a name that is empty.
    """
    if not name.strip():
        raise CollectionError(f"{kind} are kept under a name that is not empty")
    data, text = packed(table), json.dumps(about, ensure_ascii=False)
    id = derived_id(text, data)
    reader.append(kind, [{DERIVED[kind]: id, "name": name, "about": text, "data": data}])
    return id


def replace_derived(
    reader: Reader, kind: str, name: str, about: Mapping[str, Any], table: pa.Table
) -> str:
    """As `keep_derived`; then former records of the name go."""
    id = keep_derived(reader, kind, name, about, table)
    drop_derived(reader, kind, name, but=id)
    return id


def drop_derived(reader: Reader, kind: str, name: str, but: str = "") -> None:
    """Removes the records of a name, but for one."""
    with store_errors(reader.path):
        found = lance.open_table(reader.path, kind)
        if found is not None:
            found.delete(f"name = {schema.quoted([name])} AND {DERIVED[kind]} <> '{but}'")


def newest_records(reader: Reader, kind: str) -> dict[str, dict[str, Any]]:
    """The newest record of each name without its values, the newest last."""
    table = lance.open_table(reader.path, kind) if reader.manifest is not None else None
    if table is None:
        return {}
    with store_errors(reader.path):
        query = table.search().select([DERIVED[kind], "name", "about", "when"]).limit(None)
        records = _sorted(query.to_arrow(), ["when"]).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        found.pop(record["name"], None)
        found[record["name"]] = record
    return found


def read_derived(reader: Reader, kind: str, name: str | None = None) -> Derived | None:
    """The newest record, under this name if one is given."""
    table = lance.open_table(reader.path, kind) if reader.manifest is not None else None
    if table is None:
        return None
    column = DERIVED[kind]
    with store_errors(reader.path):
        query = table.search().select([column, "name", "when"]).limit(None)
        if name is not None:
            query = query.where(f"name IN ({schema.quoted([name])})")
        records = _sorted(query.to_arrow(), ["when"]).to_pylist()
        if not records:
            return None
        where = f"{column} = '{records[-1][column]}'"
        found = table.search().where(where).limit(1).to_arrow().to_pylist()[0]
    with pa.ipc.open_stream(pa.BufferReader(found["data"])) as stream:
        values = stream.read_all()
    about = schema.derived_about(reader.path, found["about"])
    return Derived(found[column], found["name"], about, values)


def _row_schema(found: Manifest) -> pa.Schema:
    return schema.row_schema(found.dim, found.n_logits, found.logits, found.dtype)
