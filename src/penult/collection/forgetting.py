"""Items that a collection forgets: rows, marks, failures, names and what was fitted with them, gone
from the disk at once; and what a killed process has left to be done.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import zlib
from collections.abc import Collection as Group
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penult.collection import index, lance, repair, schema
from penult.collection.access import locked
from penult.collection.journal import FOLDER, TABLE, Journal
from penult.collection.manifest import (
    now,
    read_manifest,
    require_disk,
    store_errors,
    write_aside,
    write_manifest,
)
from penult.collection.reader import Reader
from penult.collection.renaming import (
    DERIVED,
    PENDING,
    TAUGHT,
    Renaming,
    carry_out,
    derived_id,
    packed,
)
from penult.data import documents
from penult.data.files import flush, user_cache, user_path
from penult.data.items import absolute, as_id
from penult.data.tables import PATH
from penult.errors import CollectionLocked, StoreError, UsageError, cause

GONE = "(forgotten)"  # in place of a name
_AT_ONCE = 500
_CACHED = 1 << 20  # bytes of a file of the user's cache that may hold names
_CHANGE = "change"


@dataclass(slots=True)
class Forgetting:
    """What goes, and what was computed with it. ids: of the items. rows, labels, failures: of
    theirs. runs: that name one. derived: clusters and maps that have rows of them, by name. spaces:
    that may have been fitted with their rows, by name. versions: whether those of classes go, which
    were fitted with them. index: whether the index goes. torn: files that a repair has set aside,
    which may hold them. done: all of it is gone."""

    ids: list[str] = field(default_factory=list)
    rows: int = 0
    labels: int = 0
    failures: int = 0
    runs: int = 0
    derived: list[str] = field(default_factory=list)
    spaces: list[str] = field(default_factory=list)
    versions: bool = False
    index: bool = False
    torn: int = 0
    done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Items by their ids, and further names that they go by: paths, and folders that were given."""

    ids: Sequence[str]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Pending:
    rename: Renaming | None = None
    forget: Forgotten | None = None


def find(reader: Reader, items: Sequence[str], where: str | None = None) -> Forgetting:
    """What would go with these items: ids, paths, folders, and items with a row that matches a
    filter.

    Raises:
        UsageError: nothing was named, or a name that no row, mark or failure has.
    """
    require_disk(reader.path, "penult forget")
    what = _named(reader, items, where)
    found = Forgetting(list(what.ids))
    tables = _opened(reader.path)
    found.rows, found.labels, found.failures = (
        _count(tables[name], what.ids) for name in (lance.ITEMS, "labels", "failures")
    )
    found.runs = sum(1 for _ in _runs_with(tables["runs"], what))
    for kind, column in DERIVED.items():
        found.derived += [row["name"] for row, _ in _derived_with(tables[kind], column, what)]
    found.spaces = sorted({row["name"] for row in _spaces(tables["spaces"])} if found.rows else ())
    found.versions = _taught_with(tables, what)
    found.index = index.is_ready(reader.path) and found.rows > 0
    found.torn = sum(len(names) for _, _, names in os.walk(reader.path / repair.ASIDE))
    return found


def forget(
    reader: Reader, items: Sequence[str], where: str | None = None, *, wait: bool = False
) -> Forgetting:
    """Removes items for good: no file of the collection holds their names or vectors after it.
    Older versions of its tables, which readers may have open, are gone.

    Raises:
        UsageError: as `find`. CollectionLocked: another process is writing.
        StoreError: full disk, no permission; the next writer completes it.
    """
    require_disk(reader.path, "penult forget")
    with locked(reader.path, "penult forget", wait):
        repair.step_back(reader.path)
        complete(reader.path)
        did = find(reader, items, where)
        what = _named(reader, items, where)
        write_aside(reader.path / PENDING, json.dumps({"forget": asdict(what)}))
        _carry_out(reader.path, what)
    did.done = True
    return did


def complete(path: Path) -> None:
    """Completes what a killed writer has left to be done; by the one who holds the lock.

    Raises:
        StoreError: the file that says what it is, is damaged.
    """
    with store_errors(path):
        try:
            text = (path / PENDING).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return
    try:
        left = documents.parse(text, _Pending)
    except ValueError as error:
        raise StoreError(f"{path / PENDING} is damaged: {cause(error)}") from error
    if left.rename is not None:
        carry_out(path, left.rename)
    if left.forget is not None:
        _carry_out(path, left.forget)


def complete_if_free(path: Path) -> None:
    """As `complete`, where nobody is writing and this user may."""
    if (path / PENDING).exists():
        with contextlib.suppress(CollectionLocked, StoreError), locked(path, "penult"):
            complete(path)


def _named(reader: Reader, items: Sequence[str], where: str | None) -> Forgotten:
    if not items and where is None:
        raise UsageError("name what is to be forgotten: ids, files, folders, or --where a filter")
    tables = _opened(reader.path)
    known = dict.fromkeys(
        id for name in (lance.ITEMS, "labels", "failures") for id in _ids(tables[name])
    )
    ids, names = dict[str, None](), list[str]()
    for one in items:
        own = [id for id in reader.roots.ids_of(one) if id in known]
        folder = absolute(user_path(one))
        begins = [*reader.roots.prefixes_in(folder), f"{one.rstrip('/')}/"]
        below = [id for id in known if id.startswith(tuple(begins))]
        if not own and not below:
            raise UsageError(f"{one!r} is no item of {reader.path}, nor a folder of any")
        ids |= dict.fromkeys([*own[:1], *below])
        if below:
            names += [one.rstrip("/"), as_id(folder), reader.roots.id_of(folder)]
    if where is not None:
        found = (id for b in reader.scan(["id"], where) for id in b.column("id").to_pylist())
        ids |= dict.fromkeys(found)
        if not ids:
            raise UsageError(f"no row of {reader.path} matches {where!r}")
    paths = [reader.roots.shown(id) for id in ids]
    if PATH in reader.schema.names:
        for part in _parts(list(ids)):
            batches = reader.scan(["id", PATH], f"id IN ({schema.quoted(part)})")
            own = [p for batch in batches for p in batch.column(PATH).to_pylist() if p]
            paths += [name for path in own for name in (path, reader.roots.shown(path))]
    return Forgotten(list(ids), list(dict.fromkeys([*paths, *names])))


def _opened(path: Path) -> dict[str, Any]:
    return {name: lance.open_table(path, name) for name in (lance.ITEMS, *lance.SIDE)}


def _ids(table: Any) -> list[str]:
    if table is None:
        return []
    found: list[str] = table.search().select(["id"]).limit(None).to_arrow()["id"].to_pylist()
    return found


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _count(table: Any, ids: Sequence[str]) -> int:
    if table is None:
        return 0
    return sum(table.count_rows(f"id IN ({schema.quoted(part)})") for part in _parts(ids))


def _runs_with(table: Any, what: Forgotten) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Runs whose command or info names one of the items, with what they are to say."""
    if table is None:
        return
    scrub = _Scrub(what)
    columns = ["run_id", "command", "info"]
    for row in table.search().select(columns).limit(None).to_arrow().to_pylist():
        new = {"command": scrub.command(row["command"]), "info": scrub.info(row["info"])}
        changed = {name: value for name, value in new.items() if value != row[name]}
        if changed:
            yield row["run_id"], changed


class _Scrub:
    """Takes names out of texts."""

    def __init__(self, what: Forgotten) -> None:
        self._names = {*what.ids, *what.names}

    def _is_name(self, text: str) -> bool:
        bare = text.rstrip("/")
        if bare in self._names or as_id(absolute(bare)) in self._names:
            return True
        ends = f"/{bare.lstrip('./')}"
        return len(ends) > 1 and any(name.endswith(ends) for name in self._names)

    def command(self, text: str | None) -> str | None:
        """A command line without them."""
        try:
            words = shlex.split(text or "")
        except ValueError:
            words = (text or "").split()
        new = [GONE if self._is_name(word) else word for word in words]
        return text if new == words else shlex.join(new)

    def info(self, text: str | None) -> str | None:
        """What a run says of itself, without them."""
        about = json.loads(text or "{}")
        new = self._in(about)
        return text if new == about else json.dumps(new)

    def _in(self, value: Any) -> Any:
        if isinstance(value, str):
            return GONE if value in self._names else value
        if isinstance(value, list):
            return [self._in(one) for one in value]
        if isinstance(value, dict):
            return {name: self._in(one) for name, one in value.items()}
        return value


def _derived_with(table: Any, column: str, what: Forgotten) -> Iterator[tuple[Any, pa.Table]]:
    """Records that have rows of the items, with the other rows."""
    if table is None:
        return
    gone = pa.array(list(what.ids), pa.string())
    for row in table.search().limit(None).to_arrow().to_pylist():
        with pa.ipc.open_stream(pa.BufferReader(row["data"])) as stream:
            values = stream.read_all()
        kept = values.filter(pa.compute.invert(pa.compute.is_in(values["id"], gone)))
        if len(kept) < len(values):
            yield row, kept


def _spaces(table: Any) -> list[dict[str, Any]]:
    """Spaces that were fitted on rows of the collection."""
    if table is None:
        return []
    found = table.search().limit(None).to_arrow().to_pylist()
    return [row for row in found if json.loads(row["about"] or "{}").get("rows")]


def _vectors(items: Any, ids: Sequence[str]) -> Group[bytes]:
    """The vectors of the items, as parts of versions have them."""
    found: set[bytes] = set()
    for part in _parts(ids) if items is not None else ():
        query = items.search().where(f"id IN ({schema.quoted(part)})").select(["vector"])
        rows = query.limit(None).to_arrow()
        if len(rows):
            found |= {row.tobytes() for row in schema.matrix(rows["vector"]).astype("<f4")}
    return found


def _taught_with(tables: Mapping[str, Any], what: Forgotten) -> bool:
    """Whether versions or changes of classes name one of the items, or have a vector of one."""
    table = tables[TAUGHT]
    if table is None or not table.count_rows():
        return False
    names, vectors = set(what.ids), _vectors(tables[lance.ITEMS], what.ids)
    for row in table.search().limit(None).to_arrow().to_pylist():
        if row["about"] and any(json.dumps(name)[1:-1] in row["about"] for name in names):
            return True
        if row["data"] and _holds(row["data"], names, vectors):
            return True
    return False


def _holds(data: bytes, names: Group[str], vectors: Group[bytes]) -> bool:
    if data.startswith(b"\x93NUMPY"):
        rows = np.load(io.BytesIO(data), allow_pickle=False).astype("<f4")
        return rows.ndim == 2 and any(row.tobytes() in vectors for row in rows)
    try:
        text = zlib.decompress(data).decode("utf-8", "replace")
    except zlib.error:
        return False
    return any(json.dumps(name) in text for name in names)


def _carry_out(path: Path, what: Forgotten) -> None:
    """Each step does nothing where it was done before. Versions of classes come first, while the
    vectors are there that tell which of them go; files of old versions last."""
    with store_errors(path):
        tables = _opened(path)
        if _taught_with(tables, what):
            _begin_versions_anew(path, tables[TAUGHT])
        _note_in_spaces(tables["spaces"], _count(tables[lance.ITEMS], what.ids))
        for kind, column in DERIVED.items():
            _without_rows(tables[kind], kind, column, what)
        for run_id, values in list(_runs_with(tables["runs"], what)):
            where = f"run_id = {schema.quoted([run_id])}"
            tables["runs"].update(where=where, values=values)
        for name in ("labels", "failures", lance.ITEMS):
            _delete(tables[name], what.ids)
        _without_empty_roots(path, what)
        _clear_files(path)
        _clear_cache(what)
        with contextlib.suppress(FileNotFoundError):
            (path / PENDING).unlink()
        flush(path)


def _delete(table: Any, ids: Sequence[str]) -> None:
    """By places, since a version keeps the filter of what was deleted in its file."""
    for part in _parts(ids) if table is not None else ():
        query = table.search().where(f"id IN ({schema.quoted(part)})").select(["id"])
        places = query.limit(None).with_row_id(True).to_arrow()[lance.ROW].to_pylist()
        for start in range(0, len(places), 10 * _AT_ONCE):
            chosen = ", ".join(map(str, places[start : start + 10 * _AT_ONCE]))
            table.delete(f"{lance.ROW} IN ({chosen})")


def _begin_versions_anew(path: Path, table: Any) -> None:
    """Takes away all that classes were fitted from, since entries are chained; the settings stay.
    Classes are fitted anew from the marks that are left."""
    rows = table.search().select(["kind", "about", "when"]).limit(None).to_arrow().sort_by("when")
    changes = [json.loads(r["about"])[1] for r in rows.to_pylist() if r["kind"] == _CHANGE]
    table.delete("true")
    if not changes or "settings" not in changes[-1]:
        return
    parts = {
        "marks": zlib.compress(json.dumps([]).encode()),
        "dropped": zlib.compress(json.dumps([[], []]).encode()),
    }
    about = {
        "when": now().isoformat(timespec="microseconds"), "words": "forget", "counts": [],
        "settings": changes[-1]["settings"],
        "parts": {name: _hash(data) for name, data in parts.items()},
    }  # fmt: skip
    text = json.dumps([_CHANGE, about])
    records = [{"id": _hash(d), "kind": "part", "data": d} for d in parts.values()]
    records.append({"id": _hash(text.encode()), "kind": _CHANGE, "about": text})
    stamped = [{"when": now(), **one} for one in records]
    table.add(pa.Table.from_pylist(stamped, lance.SIDE[TAUGHT]))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _note_in_spaces(table: Any, count: int) -> None:
    """Spaces that were fitted on rows say how many of these are forgotten by now."""
    for row in _spaces(table) if count else ():
        about = json.loads(row["about"])
        about["forgotten"] = about.get("forgotten", 0) + count
        where = f"space_id = {schema.quoted([row['space_id']])}"
        table.update(where=where, values={"about": json.dumps(about)})


def _without_rows(table: Any, kind: str, column: str, what: Forgotten) -> None:
    for row, kept in list(_derived_with(table, column, what)):
        data = packed(kept)
        new = derived_id(row["about"], data)
        if len(kept) and not table.count_rows(f"{column} = '{new}'"):
            table.add(pa.Table.from_pylist([row | {column: new, "data": data}], lance.SIDE[kind]))
        table.delete(f"{column} = '{row[column]}'")


def _without_empty_roots(path: Path, what: Forgotten) -> None:
    """Roots whose folder was forgotten, and that no row begins with, have names no longer."""
    manifest = read_manifest(path)
    if not manifest.roots:
        return
    ids = [id for name in (lance.ITEMS, "labels", "failures")
           for id in _ids(lance.open_table(path, name))]  # fmt: skip
    kept = {
        name: root for name, root in manifest.roots.items()
        if name not in what.names or any(id.startswith(f"{name}/") for id in ids)
    }  # fmt: skip
    if len(kept) < len(manifest.roots):
        write_manifest(path, replace(manifest, roots=kept))


def _clear_files(path: Path) -> None:
    """Leaves of each table the files of its last version, in which no removed row is left."""
    index.drop_now(path)
    journal = Journal(path)
    for name in (lance.ITEMS, *lance.SIDE):
        table = lance.open_table(path, name)
        if table is None:
            continue
        for one in table.list_indices():  # on ids; a later run makes it again
            table.drop_index(one.name)
        data = table.to_lance()
        data.optimize.compact_files(
            target_rows_per_fragment=lance.FRAGMENT, materialize_deletions_threshold=0.0,
            num_threads=1,
        )  # fmt: skip
        table.checkout_latest()
        journal.sync(name)
        data = table.to_lance()
        data.cleanup_old_versions(timedelta(0), delete_unverified=True)
        for part in ("_transactions", "_indices"):
            shutil.rmtree(path / f"{name}{TABLE}" / part, ignore_errors=True)
        journal.shorten(name)
    journal.close()
    shutil.rmtree(path / repair.ASIDE, ignore_errors=True)
    for left in (path / FOLDER).glob("*.jsonl"):
        flush(left)
    repair.keep_manifest(path)


def _clear_cache(what: Forgotten) -> None:
    """Takes notes out of the user's cache that name one of the items; they are made again."""
    names = [Path(one).name.encode() for one in (*what.ids, *what.names) if "/" in one]
    names = [one for one in dict.fromkeys(names) if len(one) > 3]
    with contextlib.suppress(OSError):
        for file in user_cache().rglob("*"):
            with contextlib.suppress(OSError):
                if file.is_file() and file.stat().st_size <= _CACHED:
                    content = file.read_bytes()
                    if any(name in content for name in names):
                        file.unlink()
