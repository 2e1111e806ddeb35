"""Values for the rows of a collection that were worked out once, such as clusters and places on a
map: kept in a side table, one record each time, and read again. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penult.errors import CollectionError
from penult.ingesting import rows
from penult.store import tables
from penult.store.folder import store_errors

if TYPE_CHECKING:
    from penult.store.collection import Collection

_IDS = {"clusters": "clusters_id", "maps": "map_id"}


@dataclass(frozen=True, slots=True)
class Kept:
    """What was kept under a name. about: how it was worked out. table: `id`, `region`, values."""

    id: str
    name: str
    about: dict[str, Any]
    table: pa.Table


def keep(
    collection: Collection, kind: str, name: str, about: Mapping[str, Any], table: pa.Table
) -> str:
    """Appends one record to the side table `clusters` or `maps`; gives its id.

    Raises:
        CollectionError: a name that is empty.
    """
    if not name.strip():
        raise CollectionError(f"{kind} are kept under a name that is not empty")
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    text = json.dumps(about, ensure_ascii=False)
    id = hashlib.sha256(text.encode() + data).hexdigest()[:16]
    record = {_IDS[kind]: id, "name": name, "about": text, "data": data}
    collection.append(kind, [record])
    return id


def kept(collection: Collection, kind: str, name: str | None = None) -> Kept | None:
    """The record that was kept last, under this name if one is given."""
    table = tables.opened(collection.path, kind) if collection.manifest is not None else None
    if table is None:
        return None
    column = _IDS[kind]
    with store_errors(collection.path):
        asked = table.search().select([column, "name", "when"]).limit(None)
        if name is not None:
            asked = asked.where(f"name IN ({rows.quoted([name])})")
        there = asked.to_arrow().sort_by("when").to_pylist()
        if not there:
            return None
        where = f"{column} = '{there[-1][column]}'"
        found = table.search().where(where).limit(1).to_arrow().to_pylist()[0]
    with pa.ipc.open_stream(pa.BufferReader(found["data"])) as reader:
        values = reader.read_all()
    return Kept(found[column], found["name"], json.loads(found["about"]), values)
