"""Other ids for the items of a collection, in all of its tables: written down before, so that it is
completed after a kill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from penult.collection import lance, schema
from penult.collection.journal import Journal
from penult.collection.manifest import now, read_manifest, store_errors, write_aside, write_manifest
from penult.data.files import flush
from penult.data.roots import Root
from penult.data.tables import PATH

PENDING = "pending.json"  # in the collection's folder: what a killed process has left to be done
MOVED = "moved"  # the kind of entry that versions of classes have of it
TAUGHT = "taught"
Table = TypeVar("Table", pa.Table, pa.RecordBatch)
_AT_ONCE = 500  # ids in one statement
_WITH_IDS = ("labels", "failures")
DERIVED = {"clusters": "clusters_id", "maps": "map_id", "derived": "derived_id"}


@dataclass(frozen=True, slots=True)
class Renaming:
    """New ids. prefixes: what ids begin with, before and after; the first that fits counts. ids:
    single ones. roots: of the collection from then on; None: those that it has."""

    prefixes: Sequence[tuple[str, str]] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    roots: Mapping[str, Root] | None = None

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.ids or self.roots is not None)

    def __call__(self, id: str) -> str:
        """The id from then on."""
        if (new := self.ids.get(id)) is not None:
            return new
        for old, new in self.prefixes:
            if id.startswith(old):
                return new + id[len(old) :]
        return id

    @property
    def reversed(self) -> Renaming:
        """From the new ids to the former ones."""
        return Renaming(
            [(new, old) for old, new in self.prefixes], {new: old for old, new in self.ids.items()}
        )

    def of_columns(self, table: Table) -> Table:
        """A table, or a batch of one, with the new ids in its columns `id` and `path`."""
        for name in ("id", PATH) if self else ():
            if name in table.schema.names and pa.types.is_string(table.schema.field(name).type):
                values = [None if v is None else self(v) for v in table.column(name).to_pylist()]
                place = table.schema.get_field_index(name)
                column = pa.array(values, pa.string())
                table = table.set_column(place, table.schema.field(name), column)
        return table

    def of_info(self, text: str | None) -> str | None:
        """What a run says of itself, with the new names of its folders and tables."""
        info = json.loads(text or "{}")
        sources = [_as_folder(self, one) for one in info.get("sources") or []]
        if sources == (info.get("sources") or []):
            return text
        return json.dumps({**info, "sources": sources})

    @classmethod
    def of_entry(cls, about: Mapping[str, Any]) -> Renaming:
        """As an entry among versions of classes has it."""
        return cls([(old, new) for old, new in about["prefixes"]], dict(about["ids"]))


@dataclass(slots=True)
class Renamed:
    """How many rows, marks and failures have another id; rows that were there twice went."""

    rows: int = 0
    labels: int = 0
    failures: int = 0
    twice: int = 0


def rename(
    path: Path,
    renaming: Renaming,
    tables: Mapping[str, Any] = {},
    sync: Callable[[], object] | None = None,
) -> Renamed:
    """Gives items their new ids; all of it is on the disk then. To be called by the one writer.

    tables: those that the caller holds, which see the changes. sync: brings all to the disk.

    Raises:
        StoreError: full disk, no permission; the next writer completes it.
    """
    write_aside(path / PENDING, json.dumps({"rename": asdict(renaming)}))
    return carry_out(path, renaming, tables, sync)


def carry_out(
    path: Path,
    renaming: Renaming,
    tables: Mapping[str, Any] = {},
    sync: Callable[[], object] | None = None,
) -> Renamed:
    """Each step is one commit, and does nothing where it was done before. Rows come last: as long
    as they have their former ids, a run finds the moved files once more."""
    did = Renamed()
    with store_errors(path):
        opened = {name: tables.get(name) or lance.open_table(path, name) for name in lance.SIDE}
        did.labels, did.failures = (_in_table(opened[n], renaming, ["id"]) for n in _WITH_IDS)
        for kind in DERIVED:
            _in_derived(opened[kind], kind, renaming)
        _in_runs(opened["runs"], renaming)
        _in_versions(opened[TAUGHT], renaming)
        items = tables.get(lance.ITEMS) or lance.open_table(path, lance.ITEMS)
        if items is not None:
            did.twice = _without_twins(items, renaming)
            did.rows = _in_table(
                items, renaming, [n for n in ("id", PATH) if n in items.schema.names]
            )
        if renaming.roots is not None:
            manifest = read_manifest(path)
            if manifest.roots != renaming.roots:
                write_manifest(path, replace(manifest, roots=renaming.roots))
        (sync or Journal(path).sync)()
        with contextlib.suppress(FileNotFoundError):
            (path / PENDING).unlink()
        flush(path)
    return did


def _in_table(table: Any, renaming: Renaming, columns: Sequence[str]) -> int:
    """New ids in these columns of a table; gives how many rows have another one in the first."""
    if table is None or not table.count_rows():
        return 0
    changed = 0
    for place, column in enumerate(columns):
        name, before = f"`{column}`", list[str]()
        for old, new in renaming.prefixes:
            begins = f"starts_with({name}, {schema.quoted([old])})"
            where = " AND ".join([begins, *(f"NOT {one}" for one in before)])
            before.append(begins)
            if number := table.count_rows(where):
                value = f"concat({schema.quoted([new])}, substr({name}, {len(old) + 1}))"
                table.update(where=where, values_sql={column: value})
            changed += 0 if place else number
    for part in _parts(renaming.ids):
        rows = _having(table, part).to_arrow()
        changed += len(rows)
        if not len(rows):
            continue
        if schema.KEY[1] in rows.column_names and "vector" in rows.column_names:
            # Both are there for a moment, and stay so after a kill: until this is done again.
            merge = table.merge_insert(list(schema.KEY)).when_matched_update_all()
            merge.when_not_matched_insert_all().execute(renaming.of_columns(rows))
            table.delete(f"id IN ({schema.quoted(part)})")
            continue
        for id in dict.fromkeys(rows["id"].to_pylist()):
            table.update(where=f"id = {schema.quoted([id])}", values={"id": renaming(id)})
    return changed


def _having(table: Any, ids: Sequence[str]) -> Any:
    return table.search().where(f"id IN ({schema.quoted(ids)})").limit(None)


def _parts(ids: Iterable[str]) -> Iterator[list[str]]:
    listed = list(ids)
    for start in range(0, len(listed), _AT_ONCE):
        yield listed[start : start + _AT_ONCE]


def _without_twins(items: Any, renaming: Renaming) -> int:
    """Removes rows whose new key is another row's: they are of the same file."""
    removed = 0
    for old, _ in renaming.prefixes:
        begins = items.search().where(f"starts_with(id, {schema.quoted([old])})")
        found = schema.keys(begins.select(list(schema.KEY)).limit(None).to_arrow())
        keys = {(renaming(id), region): id for id, region in found}
        for part in _parts(dict.fromkeys(id for id, _ in keys)):
            there = _having(items, part).select(list(schema.KEY)).to_arrow()
            for id, region in schema.keys(there):
                if (former := keys.get((id, region))) not in (None, id):
                    key = f"id = {schema.quoted([former])} AND region = {schema.quoted([region])}"
                    items.delete(key)
                    removed += 1
    return removed


def _in_derived(table: Any, kind: str, renaming: Renaming) -> None:
    """New ids in records of clusters or maps; the new record is there before the former goes."""
    if table is None:
        return
    column = DERIVED[kind]
    for row in table.search().limit(None).to_arrow().to_pylist():
        with pa.ipc.open_stream(pa.BufferReader(row["data"])) as stream:
            values = stream.read_all()
        ids = values["id"].to_pylist()
        if (renamed := list(map(renaming, ids))) == ids:
            continue
        values = values.set_column(values.schema.get_field_index("id"), "id",
                                   pa.array(renamed, pa.string()))  # fmt: skip
        data = packed(values)
        new = derived_id(row["about"], data)
        if not table.count_rows(f"{column} = '{new}'"):
            table.add(pa.Table.from_pylist([row | {column: new, "data": data}], lance.SIDE[kind]))
        table.delete(f"{column} = '{row[column]}'")


def packed(table: pa.Table) -> bytes:
    """A table as derived values are kept."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def derived_id(about: str, data: bytes) -> str:
    """The id of a record of derived values."""
    return hashlib.sha256(about.encode() + data).hexdigest()[:16]


def _in_runs(table: Any, renaming: Renaming) -> None:
    """New names of the folders and tables that runs were over."""
    if table is None:
        return
    for row in table.search().select(["run_id", "info"]).limit(None).to_arrow().to_pylist():
        if (info := renaming.of_info(row["info"])) != row["info"]:
            where = f"run_id = {schema.quoted([row['run_id']])}"
            table.update(where=where, values={"info": info})


def _as_folder(renaming: Renaming, path: str) -> str:
    return renaming(path) if renaming(path) != path else renaming(f"{path}/").rstrip("/") or path


def _in_versions(table: Any, renaming: Renaming) -> None:
    """An entry that ids are others from here on; entries before it stay, since their hashes chain
    them."""
    if table is None or not table.count_rows():
        return
    about = {"prefixes": [list(one) for one in renaming.prefixes], "ids": dict(renaming.ids)}
    text = json.dumps([MOVED, about])
    id = hashlib.sha256(text.encode()).hexdigest()
    times = table.search().select(["id", "when", "kind"]).limit(None).to_arrow().sort_by("when")
    last = [one for one in times.to_pylist() if one["kind"] != "part"][-1:]
    if last and last[0]["id"] == id:  # done before a kill
        return
    when = max([now(), *(one["when"] for one in last)])
    row = {"id": id, "kind": MOVED, "about": text, "when": when}
    table.add(pa.Table.from_pylist([row], lance.SIDE[TAUGHT]))
