"""Items of a collection whose files are no longer there, among those that a run was asked about.

Asked about are the items under the folders that were given, and those that came from the tables
that were given: written by runs that were given nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from penult.ingesting import rows
from penult.sources.items import path_of
from penult.sources.tables import PATH
from penult.store.collection import Collection

_BATCH = 8192


def gone(collection: Collection, given: Sequence[str]) -> list[str]:
    """The ids of these items, each once. given: absolute paths of folders and tables.

    A file that cannot be looked at, because a folder is closed to us, is not gone.
    """
    asked = _asked(collection, given)
    if not asked or not collection.count:
        return []
    columns = [name for name in ("id", PATH) if name in collection.columns]
    found: dict[str, None] = {}
    last = None
    for batch in collection.scan(columns, asked, _BATCH):
        paths = batch.column(PATH) if PATH in columns else batch.column("id")
        for id, path in zip(batch.column("id").to_pylist(), paths.to_pylist(), strict=True):
            if id != last and id not in found and _is_gone(path or id):
                found[id] = None
            last = id
    return list(found)


def _asked(collection: Collection, given: Sequence[str]) -> str:
    """A filter for the rows that a run over these folders and tables is about."""
    folders = [path for path in given if Path(path).is_dir()]
    conditions = [
        f"starts_with(id, {rows.quoted([folder.rstrip('/') + '/'])})" for folder in folders
    ]
    if runs := list(_runs_of(collection, set(given))):
        conditions.append(f"run_id IN ({rows.quoted(runs)})")
    return " OR ".join(conditions)


def _runs_of(collection: Collection, given: set[str]) -> Iterator[str]:
    for run in collection.runs().to_pylist():
        sources = json.loads(run["info"] or "{}").get("sources")
        if sources and given.issuperset(sources):
            yield run["run_id"]


def _is_gone(path: str) -> bool:
    file = path_of(path)
    if not file.is_absolute():
        return False  # a text, an array, or bytes
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
