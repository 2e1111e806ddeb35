"""Side tables from one collection to another: rows that are there are not appended twice.

Nothing is rewritten, so it may be stopped anywhere and done again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.ingesting import rows
from penult.store import tables
from penult.store.folder import store_errors

_BATCH = 1000


def append_missing(source: Path, target: Path, name: str, by: str) -> int:
    """Appends the rows of a side table that the target's does not have, all columns alike; gives
    how many. by: the column to look them up with."""
    theirs = tables.opened(source, name)
    if theirs is None:
        return 0
    columns = tables.SIDE[name]
    ours = tables.created(target, name, columns)
    appended = 0
    with store_errors(source):
        batches = theirs.search().select(columns.names).limit(None).to_batches(_BATCH)
    for batch in batches:
        table = pa.Table.from_batches([batch]).cast(columns)
        there = {_whole(row) for row in having(ours, target, by, table[by].to_pylist())}
        fresh = {_whole(row): row for row in table.to_pylist()}
        missing = [row for whole, row in fresh.items() if whole not in there]
        if missing:
            with store_errors(target):
                ours.add(pa.Table.from_pylist(missing, schema=columns))
            appended += len(missing)
    return appended


def having(table: Any, path: Path, column: str, values: list[str]) -> list[dict[str, Any]]:
    """The rows of a side table that have one of these values in a column."""
    unique = [value for value in dict.fromkeys(values) if value is not None]
    if not unique:
        return []
    with store_errors(path):
        found = table.search().where(f"{column} IN ({rows.quoted(unique)})").limit(None).to_arrow()
    listed: list[dict[str, Any]] = found.select(table.schema.names).to_pylist()
    return listed


def _whole(row: dict[str, Any]) -> str:
    return json.dumps(row, default=repr, sort_keys=True)
