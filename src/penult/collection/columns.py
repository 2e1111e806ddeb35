"""Derived columns of a collection: values of rows that were computed, such as `duplicate_of`, kept
in a side table and used in filters and exports like columns of metadata.

A row that came or was embedded anew since has none, and the column is told to be stale.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import lance, schema
from penult.collection.manifest import store_errors

log = logging.getLogger(__name__)

KIND = "derived"  # the side table
VERSION = "run_id"  # of the row that a value is of: another one has another vector
ROW = "row"  # the number of a row in a record, which stays when others go
VALUE = "value"
_PREFIX = "column:"
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
MADE = "made"  # in a column's `about`: the command that makes it anew


@dataclass(frozen=True)
class DerivedColumn:
    """A derived column. about: what it was computed with; `made` is the command, `rows` the number
    of rows then, `refers` whether values are numbers of rows. table: `id`, `region`, `run_id`,
    `row`, `value`."""

    name: str
    about: dict[str, Any]
    when: Any
    table: pa.Table

    @property
    def type(self) -> pa.DataType:
        """Of its values."""
        return self._values.type

    def of(self, rows: Rows) -> pa.Array:
        """(n,) the values of rows, null where a row came or changed after it was computed."""
        places = [self._places.get(key) for key in _versions(rows)]
        return self._values.take(pa.array(places, pa.int64()))

    def lacking(self, rows: Rows) -> int:
        """How many of the rows came or changed after it was computed."""
        return sum(key not in self._places for key in _versions(rows))

    @cached_property
    def _places(self) -> dict[tuple[str, str, str], int]:
        return {key: at for at, key in enumerate(_versions(self.table))}

    @cached_property
    def _values(self) -> pa.Array:
        """Of numbers of rows their names, null where that row is gone."""
        found = schema.without_nan(self.table[VALUE].combine_chunks())
        if not self.about.get("refers"):
            return found
        names = [id if region == "whole" else f"{id} {region}"
                 for id, region in schema.keys(self.table)]  # fmt: skip
        place = pc.index_in(found, self.table[ROW].combine_chunks())
        return pa.array(names, pa.string()).take(place)


def record_name(column: str) -> str:
    """Under which name the side table has a column."""
    return _PREFIX + column


def names(path: Path) -> list[str]:
    """The derived columns that there are, by name."""
    found = _records(path)
    return sorted({name.removeprefix(_PREFIX) for name in found if name.startswith(_PREFIX)})


def read(path: Path, name: str) -> DerivedColumn | None:
    """The newest column of this name."""
    row = _records(path, record_name(name), data=True).get(record_name(name))
    if row is None:
        return None
    with pa.ipc.open_stream(pa.BufferReader(row["data"])) as stream:
        table = stream.read_all()
    return DerivedColumn(name, json.loads(row["about"]), row["when"], table)


def _records(path: Path, name: str | None = None, data: bool = False) -> dict[str, dict[str, Any]]:
    """The newest record of each name."""
    if not (path / f"{KIND}.lance").is_dir():  # spares the opening of a table, for each filter
        return {}
    if (table := lance.open_table(path, KIND)) is None:
        return {}
    with store_errors(path):
        query = table.search().select(["name", "about", "when", *(["data"] if data else [])])
        if name is not None:
            query = query.where(f"name = {schema.quoted([name])}")
        found = query.limit(None).to_arrow().sort_by("when").to_pylist()
    return {row["name"]: row for row in found}


def attached(columns: Sequence[DerivedColumn], rows: Rows) -> Rows:
    """The rows with these columns. rows: with `id`, `region` and `run_id`."""
    for one in columns:
        rows = rows.append_column(one.name, one.of(rows))
    return rows


def _versions(rows: Rows) -> list[tuple[str, str, str]]:
    columns = (rows.column(name).to_pylist() for name in (*schema.KEY, VERSION))
    return list(zip(*columns, strict=True))


def described(path: Path) -> list[dict[str, Any]]:
    """For a JSON document: each column's name, when it was made, and with which command."""
    found = sorted(_records(path).items())
    return [
        {"name": name.removeprefix(_PREFIX), "when": f"{row['when']:%Y-%m-%d %H:%M}",
         "made": json.loads(row["about"])[MADE]}
        for name, row in found if name.startswith(_PREFIX)
    ]  # fmt: skip


def wider(path: Path, real: pa.Schema, some: Sequence[str | None] | None = None) -> pa.Schema:
    """The schema of the rows with the derived columns that there are behind it, or with some of
    them: nobody is told that a column is stale which is not used."""
    own = {name.lower() for name in real.names}
    for name in names(path):
        if some is not None and name not in some:
            continue
        column = None if name.lower() in own else read(path, name)
        if column is not None:
            real = real.append(pa.field(name, column.type))
    return real


def planned(
    path: Path, table: Any, wanted: Sequence[str] | None, where: str | None
) -> tuple[list[str], list[DerivedColumn], str | None]:
    """How columns, derived ones among them, of the rows that match a filter are read: the columns
    of the table, the derived ones that are to be attached, and the filter for the table.

    Raises:
        CollectionError: there is no such column, or a filter that cannot be.
    """
    other = [name for name in wanted or () if name not in table.schema.names]
    found = [one for name in other if (one := read(path, name)) is not None]
    real = lance.check_columns(
        path, table, None if wanted is None else
        [name for name in wanted if name not in {one.name for one in found}],
    )  # fmt: skip
    if found:
        real = [*dict.fromkeys([*real, *schema.KEY, VERSION])]
        used = used_in(path, where, table.schema.names)
        if unread := [one for one in found if one.name not in used]:
            rows = table.search().select([*schema.KEY, VERSION]).limit(None).to_arrow()
            for one in unread:
                warn_if_stale(one, rows)
    return real, found, resolved(path, table, where)


def used_in(path: Path, where: str | None, real: Sequence[str]) -> list[str]:
    """The derived columns that a filter names. A column of the rows goes before one."""
    if where is None:
        return []
    words = {word.lower() for word in re.findall(r"\w+", re.sub(r"'[^']*'", "", where))}
    own = {name.lower() for name in real}
    return [name for name in names(path) if name.lower() in words - own]


def resolved(path: Path, table: Any, where: str | None) -> str | None:
    """A filter without derived columns: where it names some, the row ids of this version of the
    table for which it holds. Says which columns are stale."""
    real = table.schema.names
    used = used_in(path, where, real)
    if where is None or not used:
        return where
    needed = [name for name in real if re.search(rf"(?i)\b{re.escape(name)}\b", where)]
    wanted = [*dict.fromkeys([*schema.KEY, VERSION, *needed])]
    with store_errors(path):
        rows = table.search().select(wanted).with_row_id(True).limit(None).to_arrow()
    columns = [one for name in used if (one := read(path, name)) is not None]
    for one in columns:
        warn_if_stale(one, rows)
    ids = rows[lance.ROW].to_numpy()
    rows = attached(columns, rows.drop_columns([lance.ROW]))
    rows = rows.append_column("__number", pa.array(np.arange(len(rows))))
    with lance.query_errors(path, where, rows.schema.names[:-1]):
        memory = lance.lancedb().connect("memory://").create_table("rows", rows)
        found = memory.search().where(where).select(["__number"]).limit(None).to_arrow()
    return _by_row_ids(ids, found["__number"].to_numpy())


def warn_if_stale(column: DerivedColumn, rows: Rows) -> None:
    """Says that rows came after a derived column was made. rows: all of the collection."""
    if late := column.lacking(rows):
        log.warning(
            "the column %s is stale: %d of %d rows came or changed after %s and have no value; "
            "%s makes it anew",
            *(column.name, late, len(rows), f"{column.when:%Y-%m-%d %H:%M}", column.about[MADE]),
        )


def _by_row_ids(ids: Any, chosen: Any) -> str:
    """A filter for these rows, by the shorter list. The second condition keeps LanceDB from
    counting by row ids alone, which fails in its version 0.40."""
    inside = np.zeros(len(ids), bool)
    inside[chosen] = True
    if not inside.any():
        return "id IS NULL"
    if inside.all():
        return "id IS NOT NULL"
    if inside.sum() <= len(ids) / 2:
        return f"({lance.ROW} IN ({_listed(ids[inside])})) OR id IS NULL"
    return f"({lance.ROW} NOT IN ({_listed(ids[~inside])})) AND id IS NOT NULL"


def _listed(ids: Any) -> str:
    return ", ".join(map(str, ids.tolist()))
