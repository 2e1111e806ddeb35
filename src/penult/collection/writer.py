"""The one writer of a collection: each call is one commit, whole or not at all, also when
killed; one at most is not yet on the disk when the next one begins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.collection import failures as failure_log
from penult.collection import journal, lance, repair, schema
from penult.collection.failures import FailureLog, Recorded
from penult.collection.forgetting import complete
from penult.collection.journal import Flusher
from penult.collection.manifest import (
    Clock,
    Manifest,
    check_same,
    completed,
    exists,
    locked,
    now,
    read_manifest,
    store_errors,
    write_manifest,
)
from penult.collection.renaming import Renamed, Renaming, rename
from penult.collection.schema import Key, Known
from penult.data.items import Failure, utf8
from penult.errors import CollectionError, StoreError

log = logging.getLogger(__name__)
_MERGE = 65_536  # hashes that wait to be sorted among the others

Hashes = npt.NDArray[np.int64]


class IdFilter:
    """Hashes of ids. Two ids may share one: then a new id is looked up in vain, no more."""

    def __init__(self, batches: Iterable[Sequence[str]] = ()) -> None:
        parts = [_hashes(batch) for batch in batches]
        self._sorted: Hashes = np.sort(np.concatenate(parts)) if parts else _hashes([])
        self._latest: set[int] = set()

    def perhaps(self, ids: Sequence[str]) -> list[str]:
        """Those that may be known; all others are certainly new."""
        hashes = _hashes(ids)
        places = np.searchsorted(self._sorted, hashes)
        found = np.zeros(len(hashes), bool)
        inside = places < len(self._sorted)
        found[inside] = self._sorted[places[inside]] == hashes[inside]
        return [
            id
            for id, there, value in zip(ids, found, hashes.tolist(), strict=True)
            if there or value in self._latest
        ]

    def add(self, ids: Iterable[str]) -> None:
        """Notes ids that the table has from now on."""
        self._latest.update(map(hash, ids))
        if len(self._latest) > _MERGE:
            latest = np.fromiter(self._latest, np.int64, len(self._latest))
            self._sorted = np.sort(np.concatenate([self._sorted, latest]))
            self._latest.clear()


def _hashes(ids: Sequence[str]) -> Hashes:
    return np.fromiter(map(hash, ids), np.int64, len(ids))


COUNTS = ("done", "skipped", "replaced", "failed")
STATUSES = ("done", "stopped", "failed")
_CHUNK = 1000  # ids in one filter
_SEEN = 100_000  # ids whose regions the writer keeps in mind


class Written(NamedTuple):
    """How many rows of a commit were new, and how many replaced one with the same key."""

    new: int
    replaced: int


class Writer:
    """Commits to a collection; made by `Collection.writer`, which holds the lock for it."""

    def __init__(
        self, path: Path, items: Any, sides: Mapping[str, Any], run_id: str, flusher: Flusher
    ) -> None:
        self.run_id = run_id
        self.finished = False
        self._path = path
        self._flusher = flusher
        self._items = items
        self._failures, self._runs = FailureLog(path, sides["failures"], run_id), sides["runs"]
        self._commits = lance.fragments(items)
        self._added = items.count_rows() if self._commits >= 100 else 0
        # The regions that the table has of an id. Nobody else writes, so it stays true; it spares
        # `write` a second lookup, which costs more with each commit until the next compaction.
        self._seen: dict[str, set[str]] = {}
        self._ids: IdFilter | None = None  # all that the table has, once it is asked for some
        self._clock = Clock()

    def known(
        self, ids: Sequence[str], metadata: Sequence[str] = ()
    ) -> tuple[dict[Key, Known], dict[Key, dict[str, Any]]]:
        """What the collection has of these items, and its values in these metadata columns."""
        if len(self._seen) > _SEEN:
            self._seen.clear()
        there = set(self._items.schema.names)
        return self._learn(ids, [name for name in metadata if name in there])

    def _learn(
        self, ids: Sequence[str], metadata: Sequence[str] = ()
    ) -> tuple[dict[Key, Known], dict[Key, dict[str, Any]]]:
        self._seen.update({id: set() for id in ids})
        known, values = {}, {}
        file = ("size", "mtime_ns", "content_hash", "start")
        wanted = [*schema.KEY, *file, *metadata]
        for row in self._lookup(self._items, self._perhaps(ids), wanted):
            key = row["id"], row["region"]
            known[key] = Known(*(row[name] for name in file))
            values[key] = {name: row[name] for name in metadata}
            self._seen[key[0]].add(key[1])
        return known, values

    def _perhaps(self, ids: Sequence[str]) -> list[str]:
        """Of these ids, those that the table may have."""
        if self._ids is None:
            with store_errors(self._path):
                found = self._items.search().select(["id"]).limit(None).to_batches(8192)
                self._ids = IdFilter(batch.column("id").to_pylist() for batch in found)
        return self._ids.perhaps(ids)

    @property
    def failures(self) -> FailureLog:
        """What could not be embedded, and why."""
        return self._failures

    def failed(self, ids: Sequence[str]) -> dict[Key, Failure]:
        """What is in `failures` of these items, by (id, region)."""
        return self._failures.of(ids)

    @property
    def table(self) -> Any:
        """The table of rows, as this writer sees it."""
        return self._items

    def rows_of(self, ids: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of all rows of these items."""
        return self._lookup(self._items, self._perhaps(ids), list(columns))

    def write(self, batches: pa.RecordBatch | Iterable[pa.RecordBatch]) -> Written:
        """Commits rows: new keys are appended, existing ones replaced. Their failures go when the
        run is finished.

        Of several rows with one key the last counts. A null `run_id` becomes this run's. What the
        call before wrote is on the disk then; what this one writes is soon.

        Raises:
            CollectionError: columns that do not fit, or vectors that are not finite.
            StoreError: full disk, no permission; nothing of this call is in the collection. Or the
                disk did not take what the call before wrote, which is not in it then either.
        """
        parts = [batches] if isinstance(batches, pa.RecordBatch) else list(batches)
        parts = [part for part in parts if part.num_rows]
        if not parts:
            return Written(0, 0)
        for part in parts:
            self._take_in(part.schema)
        table = schema.conform(parts, self._items.schema, self.run_id)
        keys = set(schema.keys(table))
        if len(self._seen) > _SEEN:
            self._seen.clear()
        self._learn([id for id, _ in keys if id not in self._seen])
        there = {(id, region) for id, region in keys if region in self._seen[id]}
        with store_errors(self._path):
            self._flusher.wait()
            if there:  # reads all keys: only where something is replaced
                self._merge(self._items, table)
            else:
                self._items.add(table)
        for id, region in keys:
            self._seen[id].add(region)
        if self._ids is not None:
            self._ids.add(id for id, _ in keys)
        self._clear(keys)
        self._committed(len(table))
        return Written(len(keys) - len(there), len(there))

    def revise(self, changes: Mapping[Key, Mapping[str, Any]]) -> None:
        """Notes new values of regions whose content is unchanged: size, mtime_ns, metadata.

        Vectors and run stay. Rewrites the rows all the same: LanceDB updates single columns of a
        few rows at the price of the whole column. Keys that are not there are left out.

        Raises:
            CollectionError: a column that is not there, or a value that does not fit it.
        """
        ids = list(dict.fromkeys(id for id, _ in changes))
        for start in range(0, len(ids), _CHUNK):
            table = self._read(ids[start : start + _CHUNK])
            table = table.filter(
                pa.array([key in changes for key in schema.keys(table)], pa.bool_())
            )
            if not len(table):
                continue
            revised = schema.revised(table, [changes[key] for key in schema.keys(table)])
            with store_errors(self._path):
                self._merge(self._items, revised)
            self._committed(len(table))

    def prune(self, hashes: Mapping[str, str]) -> int:
        """Removes rows of these items whose content hash is another; gives how many.

        To be called before the regions of a changed item are written: it may have fewer of them
        now. Killed in between, the item counts as not embedded.
        """
        found = self._lookup(self._items, list(hashes), ["id", "content_hash"])
        stale = [row["id"] for row in found if row["content_hash"] not in (None, hashes[row["id"]])]
        ids = list(dict.fromkeys(stale))
        for start in range(0, len(ids), 100):  # each id has its own hash: no list of both serves
            where = " OR ".join(
                f"(id = {schema.quoted([id])} AND content_hash <> {schema.quoted([hashes[id]])})"
                for id in ids[start : start + 100]
            )
            with store_errors(self._path):
                self._items.delete(where)
            for id in ids[start : start + 100]:
                self._seen.pop(id, None)
        if stale:
            self._flusher.request()
        return len(stale)

    def remove(self, items: Sequence[str] | Sequence[Key]) -> int:
        """Removes all rows of these items, or those of these (id, region), and their failures but
        for this run's; gives how many rows. Labels stay."""
        before = self._items.count_rows()
        ids = [item for item in items if isinstance(item, str)]
        regions = [item for item in items if not isinstance(item, str)]
        conditions = [
            f"id IN ({schema.quoted(ids[start : start + _CHUNK])})"
            for start in range(0, len(ids), _CHUNK)
        ] + [
            " OR ".join(
                f"(id = {schema.quoted([id])} AND region = {schema.quoted([region])})"
                for id, region in regions[start : start + 100]
            )
            for start in range(0, len(regions), 100)
        ]
        for where in conditions:
            with store_errors(self._path):
                self._items.delete(where)
            self._failures.remove(where)
            self._commits += 1
        for id in (*ids, *(id for id, _ in regions)):
            self._seen.pop(id, None)
        if conditions:
            self._flusher.request()
        return int(before - self._items.count_rows())

    def rename(self, renaming: Renaming) -> Renamed:
        """Gives items other ids, see `penult.collection.renaming`: rows, marks, failures and what
        was computed of them."""
        self._flusher.sync()
        tables = {
            lance.ITEMS: self._items, failure_log.NAME: self._failures.table, "runs": self._runs
        }  # fmt: skip
        did = rename(self._path, renaming, tables, self._flusher.sync)
        self._seen.clear()
        self._ids = None
        return did

    def fail(
        self, failures: Iterable[Failure], tried: bool = True, limits: str | None = None
    ) -> Recorded:
        """Records failures; a later one of the same (id, region) replaces the earlier. Gives how
        many are new. tried: whether the items were opened. limits: under which they were judged."""
        recorded = self._failures.record(failures, self._now(), tried, limits)
        self._flusher.request()
        return recorded

    def finish(
        self, status: str = "done", counts: Mapping[str, int] | None = None, engine: str = ""
    ) -> None:
        """Closes the run with its status (done, stopped, failed), counts of items and the engines
        that gave its rows; all of it is on the disk then.

        Tidies up after a run that is done; one that has been stopped should end at once.

        Raises:
            StoreError: the disk did not take what was written last.
        """
        if status not in STATUSES or not set(counts or {}) <= set(COUNTS):
            raise ValueError(f"status {status!r}, counts {counts}: not {STATUSES} and {COUNTS}")
        self._failures.heal()
        values = {"status": status, "ended": self._now(), **(counts or {})}
        values |= {"engine": engine} if engine else {}
        with store_errors(self._path):
            # A run is done when its rows are on the disk, not before.
            self._flusher.sync()
            self._runs.update(where=f"run_id = {schema.quoted([self.run_id])}", values=values)
            self._flusher.sync()
        self.finished = True
        if status == "done":
            self._tidy_up()
        with store_errors(self._path):
            on_disk = self._flusher.sync()
            for name in (lance.ITEMS, *lance.SIDE):
                on_disk.shorten(name)
            on_disk.close()
            repair.keep_manifest(self._path)

    def _tidy_up(self) -> None:
        sync = self._flusher.sync
        if lance.is_untidy(self._items, self._path / f"{lance.ITEMS}.lance"):
            lance.tidy(self._items, self._path, index="id", journal=sync)
        for name in lance.SIDE:
            table = lance.open_table(self._path, name)  # marks were made meanwhile, without a lock
            if table is not None and lance.fragments(table) >= lance.MANY:
                lance.tidy(table, self._path, journal=sync)

    def _lookup(self, table: Any, ids: Sequence[str], columns: list[str]) -> Iterator[Any]:
        unique = list(dict.fromkeys(ids))
        for start in range(0, len(unique), _CHUNK):
            where = f"id IN ({schema.quoted(unique[start : start + _CHUNK])})"
            with store_errors(self._path):
                query = table.search().where(where).select(columns).limit(None)
                found = query.to_arrow()
            yield from found.to_pylist()

    def _read(self, ids: Sequence[str]) -> pa.Table:
        with store_errors(self._path):
            query = self._items.search().where(f"id IN ({schema.quoted(ids)})").limit(None)
            return query.to_arrow()

    @staticmethod
    def _merge(table: Any, new: pa.Table) -> None:
        merge = table.merge_insert(list(schema.KEY)).when_matched_update_all()
        merge.when_not_matched_insert_all().execute(new)

    def _take_in(self, columns: pa.Schema) -> None:
        own, metadata = schema.metadata_of(self._items.schema), schema.metadata_of(columns)
        if any(own.get(name) != kind for name, kind in metadata.items()):
            lance.add_metadata(self._items, metadata, self._path)

    def _clear(self, keys: set[Key]) -> None:
        """Notes regions that are there now, so that their failures go."""
        self._failures.mend(keys)

    def _committed(self, added: int) -> None:
        self._commits += 1
        self._added += added
        if lance.is_due(self._commits, self._added, self._items.count_rows()):
            sync = self._flusher.sync
            lance.tidy(self._items, self._path, index="id", ended=False, journal=sync)
            self._commits = self._added = 0
        self._flusher.request()

    def _start(self, run: Mapping[str, Any]) -> None:
        """Marks runs that nobody ended as killed, completes their work, records this one."""
        with store_errors(self._path):
            left = self._runs.search().where("status = 'running'").select(["run_id"]).limit(None)
            for row in left.to_list():
                self._failures.complete(row["run_id"], self._items)
                where = f"run_id = {schema.quoted([row['run_id']])}"
                self._runs.update(where=where, values={"status": "killed"})
            times = self._runs.search().select(["started", "ended"]).limit(None).to_arrow()
            self._clock = Clock(after=[*times["started"].to_pylist(), *times["ended"].to_pylist()])
            self._runs.add(pa.Table.from_pylist([self._row(run)], schema=lance.SIDE["runs"]))
        self._flusher.request()

    def _now(self) -> datetime:
        return self._clock.now()

    def _row(self, run: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"run_id": self.run_id, "started": self._now(), "status": "running"}
        rest = dict(run)
        if "versions" in rest:
            row["versions"] = json.dumps(rest.pop("versions"))
        for name in ("command", "model", "revision", "device", "engine", "precision"):
            if name in rest:
                row[name] = str(rest.pop(name))
        return row | {"info": json.dumps(rest, default=str) if rest else None}


def _command() -> str:
    """The command line of this process, such that it can be typed again."""
    name, *arguments = sys.argv or [""]
    return utf8(shlex.join([Path(name).name or "python", *arguments]))


@contextlib.contextmanager
def writing(
    path: Path,
    manifest: Manifest,
    metadata: Mapping[str, pa.DataType] | None = None,
    run: Mapping[str, Any] | None = None,
    wait: bool = False,
) -> Iterator[Writer]:
    """Locks a collection, makes or completes it, and gives its writer; ends the run at exit.

    Raises:
        CollectionLocked: another process writes. FingerprintMismatch: another embedder's vectors.
    """
    run = {"command": _command(), **(run or {})}
    exists(path)  # refuses other folders before anything is put into them
    with store_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path, str(run["command"]), wait), flushing(path) as flusher:
        repair.step_back(path)
        complete(path)
        items = _items(path, manifest, metadata or {})
        sides = {name: lance.side_table(path, name) for name in lance.SIDE}
        run_id = f"{now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        writer = Writer(path, items, sides, run_id, flusher)
        writer._start(run)
        try:
            yield writer
        except BaseException as error:
            if not writer.finished:
                with contextlib.suppress(StoreError):  # then the next writer marks it as killed
                    writer.finish("failed" if isinstance(error, Exception) else "stopped")
            raise
        if not writer.finished:
            writer.finish("done")


@contextlib.contextmanager
def flushing(path: Path) -> Iterator[Flusher]:
    """Brings commits to the disk, beside. Versions with a file that the disk refused are set aside:
    they can be read now, and no longer when the system has forgotten them."""
    flusher = Flusher(path)
    try:
        yield flusher
    finally:
        flusher.close()
        for name in flusher.broken:
            on_disk = journal.last(path, name)
            if on_disk is not None:
                with contextlib.suppress(StoreError):
                    place = repair.set_aside(path, name, on_disk.version)
                    if place is None:  # nothing was committed since: there is nothing to lose
                        continue
                    again = "embeds their items" if name == lance.ITEMS else "has to make them"
                    log.warning(
                        "%s: the disk did not take the last commits to %s. They are in %s; "
                        "the next run %s again",
                        *(path, name, place, again),
                    )


def viewed(path: Path) -> Writer | None:
    """A writer's view of a collection, to look things up in: it takes no lock, and nothing can be
    written with it. None before the first row."""
    items = lance.open_table(path, lance.ITEMS) if exists(path) else None
    if items is None:
        return None
    return Writer(
        path,
        items,
        {name: lance.open_table(path, name) for name in lance.SIDE},
        "",
        journal.Flusher(path),
    )


def _items(path: Path, manifest: Manifest, metadata: Mapping[str, pa.DataType]) -> Any:
    """The table of rows, in step with the manifest. A collection without rows is nobody's yet."""
    columns = schema.row_schema(manifest.dim, manifest.n_logits, manifest.logits, manifest.dtype)
    items = lance.open_table(path, lance.ITEMS)
    empty = items is None or items.count_rows() == 0
    if exists(path):
        ours = read_manifest(path)
        try:
            check_same(path, ours, manifest)
            manifest = completed(ours, manifest)
        except CollectionError:
            if not empty:
                raise
        if manifest != ours:
            write_manifest(path, manifest)
    else:
        write_manifest(path, manifest)
    if items is None:
        items = lance.create_table(path, lance.ITEMS, columns)
    elif empty and lance.own_columns(items.schema) != list(columns):
        items = lance.recreate_table(path, lance.ITEMS, columns)
    lance.add_metadata(items, metadata, path)
    return items
