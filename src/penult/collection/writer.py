"""A writer of a collection, one of several perhaps: each call is one commit, whole or not at all,
also when killed; one at most is not yet on the disk when the next one begins.
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
from penult.collection.access import Access, accessed
from penult.collection.failures import FailureLog, Recorded
from penult.collection.forgetting import complete
from penult.collection.journal import Flusher
from penult.collection.manifest import (
    Clock,
    Manifest,
    check_same,
    completed,
    exists,
    now,
    read_manifest,
    store_errors,
    write_manifest,
)
from penult.collection.renaming import PENDING, Renamed, Renaming, rename
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
    """Commits to a collection; made by `writing`, which has access to it. Each commit is made in a
    turn of its `access`, in which nobody else commits, and what others have committed is seen.

    elsewhere: how many rows were left out of commits, since another writer had added them."""

    def __init__(
        self,
        path: Path,
        items: Any,
        sides: Mapping[str, Any],
        run_id: str,
        flusher: Flusher,
        access: Access,
    ) -> None:
        self.run_id = run_id
        self._finished, self.elsewhere = False, 0
        self._path = path
        self._flusher, self.access = flusher, access
        access.follow(self._flushed, self._catch_up)
        self._items = items
        self._fragments: set[int] = set()  # of which `_ids` has the ids
        self._before: set[str] = set()  # runs that had ended when this one began
        self._met = False  # whether somebody else has committed rows since
        self._failures, self._runs = FailureLog(path, sides["failures"], run_id), sides["runs"]
        self._commits = lance.fragments(items)
        self._added = items.count_rows() if self._commits >= 100 else 0
        # The regions that the table has of an id, until somebody else writes; it spares `write` a
        # second lookup, which costs more with each commit until the next compaction.
        self._seen: dict[str, set[str]] = {}
        self._ids: IdFilter | None = None  # all that the table has, once it is asked for some
        self._clock = Clock()

    def known(
        self, ids: Sequence[str], metadata: Sequence[str] = ()
    ) -> tuple[dict[Key, Known], dict[Key, dict[str, Any]]]:
        """What the collection has of these items, and its values in these metadata columns."""
        self._refresh()
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
                if not self.access.is_alone:
                    self._fragments = set(_fragments(self._items.to_lance()))
        return self._ids.perhaps(ids)

    def _refresh(self) -> None:
        if self.access.missed:
            self._see()

    def _catch_up(self) -> None:
        """As `_see`, in a turn; first completes what one was at that was killed in its own."""
        if (self._path / PENDING).exists():
            complete(self._path)
        self._see()

    def _flushed(self) -> None:
        """Waits until what this writer has committed is on the disk."""
        with store_errors(self._path):
            self._flusher.wait()

    def _see(self) -> None:
        """Sees what others have committed."""
        with store_errors(self._path):
            self._items.checkout_latest()
            self._runs.checkout_latest()
            self._failures.refresh()
            self._met = True
            self._seen.clear()
            if self._ids is None:
                return
            data = self._items.to_lance()
            there = _fragments(data)
            new = [there[number] for number in there.keys() - self._fragments]
            if new:
                batches = data.scanner(columns=["id"], fragments=new).to_batches()
                for batch in batches:
                    self._ids.add(batch.column("id").to_pylist())
            self._fragments = set(there)

    @property
    def failures(self) -> FailureLog:
        """What could not be embedded, and why."""
        return self._failures

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

        Of several rows with one key the last counts; one that another writer has added since this
        run began is left out, if it is of the same content (see `elsewhere`). A null `run_id`
        becomes this run's. What the call before wrote is on the disk then; what this one writes is
        soon.

        Raises:
            CollectionError: columns that do not fit, or vectors that are not finite.
            StoreError: full disk, no permission; nothing of this call is in the collection. Or the
                disk did not take what the call before wrote, which is not in it then either.
        """
        parts = [batches] if isinstance(batches, pa.RecordBatch) else list(batches)
        parts = [part for part in parts if part.num_rows]
        if not parts:
            return Written(0, 0)
        with self.access.turn():
            for part in parts:
                self._take_in(part.schema)
            return self._write(schema.conform(parts, self._items.schema, self.run_id))

    def _write(self, table: pa.Table) -> Written:
        """In a turn."""
        if len(self._seen) > _SEEN:
            self._seen.clear()
        self._learn(list({id for id in table["id"].to_pylist() if id not in self._seen}))
        if self._met:
            given, table = len(table), self._without_others(table)
            self.elsewhere += given - len(table)
            if not len(table):
                return Written(0, 0)
        keys = set(schema.keys(table))
        there = {(id, region) for id, region in keys if region in self._seen[id]}
        with store_errors(self._path):
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

    def _without_others(self, table: pa.Table) -> pa.Table:
        """Without rows that another writer has added since this one began. Where it had another
        content of an item, its rows go: all rows of an item are of one content."""
        hashes = dict(zip(table["id"].to_pylist(), table["content_hash"].to_pylist(), strict=True))
        own, changed = set[Key](), dict[str, str]()
        columns = [*schema.KEY, "content_hash", "run_id"]
        for row in self._lookup(self._items, [id for id in hashes if self._seen[id]], columns):
            content = hashes[row["id"]]
            if row["run_id"] == self.run_id or row["run_id"] in self._before:
                continue
            if None in (content, row["content_hash"]) or row["content_hash"] == content:
                own.add((row["id"], row["region"]))
            else:
                changed[row["id"]] = content
        if changed:
            self.prune(changed)
            self._learn(list(changed))
        left = [key not in own or key[0] in changed for key in schema.keys(table)]
        return table if all(left) else table.filter(pa.array(left, pa.bool_()))

    def revise(self, changes: Mapping[Key, Mapping[str, Any]]) -> None:
        """Notes new values of regions whose content is unchanged: size, mtime_ns, metadata.

        Vectors and run stay. Rewrites the rows all the same: LanceDB updates single columns of a
        few rows at the price of the whole column. Keys that are not there are left out.

        Raises:
            CollectionError: a column that is not there, or a value that does not fit it.
        """
        ids = list(dict.fromkeys(id for id, _ in changes))
        for start in range(0, len(ids), _CHUNK):
            with self.access.turn():
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
        with self.access.turn():
            return self._prune(hashes)

    def _prune(self, hashes: Mapping[str, str]) -> int:
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
        with self.access.turn():
            return self._remove(items)

    def _remove(self, items: Sequence[str] | Sequence[Key]) -> int:
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
        with self.access.turn():
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
        with self.access.turn():
            failures = self._without_rows(failures) if self._met else failures
            recorded = self._failures.record(failures, self._now(), tried, limits)
        self._flusher.request()
        return recorded

    def _without_rows(self, failures: Iterable[Failure]) -> list[Failure]:
        """Failures without those of regions that another writer could embed meanwhile."""
        found = list(failures)
        rows = self.rows_of([one.id for one in found], [*schema.KEY, "run_id"])
        theirs = {
            (row["id"], region)
            for row in rows
            if row["run_id"] != self.run_id and row["run_id"] not in self._before
            for region in (row["region"], *failure_log.OF_ITEM)
        }
        return [one for one in found if (one.id, one.region) not in theirs]

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
        with self.access.turn():
            self._failures.heal()
        values = {"status": status, "ended": self._now(), **(counts or {})}
        values |= {"engine": engine} if engine else {}
        with store_errors(self._path):
            # A run is done when its rows are on the disk, not before.
            self._flusher.sync()
            self._tell(values)
            self._flusher.sync()
        self._finished = True
        if status == "done":
            with self.access.turn():
                self._tidy_up()
        with store_errors(self._path):
            on_disk = self._flusher.sync()
            for name in (lance.ITEMS, *lance.SIDE):
                on_disk.shorten(name)
            on_disk.close()
            with self.access.turn():
                repair.keep_manifest(self._path)

    def _tell(self, values: Mapping[str, Any]) -> None:
        with self.access.turn(), store_errors(self._path):
            self._runs.update(where=f"run_id = {schema.quoted([self.run_id])}", values=dict(values))

    def _tidy_up(self) -> None:
        sync = self._flusher.sync
        if lance.is_untidy(self._items, self._path / f"{lance.ITEMS}.lance"):
            ended = not self.access.others()  # else the last one does what takes longer
            lance.tidy(self._items, self._path, index="id", ended=ended, journal=sync)
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
        others = {one.run_id for one in self.access.others()}
        with store_errors(self._path):
            left = self._runs.search().where("status = 'running'").select(["run_id"]).limit(None)
            for row in left.to_list():
                if row["run_id"] in others:
                    continue
                self._failures.complete(row["run_id"], self._items)
                where = f"run_id = {schema.quoted([row['run_id']])}"
                self._runs.update(where=where, values={"status": "killed"})
            columns = ["run_id", "started", "ended"]
            times = self._runs.search().select(columns).limit(None).to_arrow()
            self._before = {*times["run_id"].to_pylist()} - others
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


def note_info(writer: Writer, info: Mapping[str, Any]) -> None:
    """Other entries for the `info` of a writer's run than were given at its beginning."""
    writer._tell({"info": writer._row(info)["info"]})


def _fragments(data: Any) -> dict[int, Any]:
    """The fragments of a table (Lance's own object) by their numbers, none of which comes twice."""
    return {one.fragment_id: one for one in data.get_fragments()}


@contextlib.contextmanager
def writing(
    path: Path,
    manifest: Manifest,
    metadata: Mapping[str, pa.DataType] | None = None,
    run: Mapping[str, Any] | None = None,
    wait: bool = False,
    *,
    alone: bool = False,
) -> Iterator[Writer]:
    """Makes or completes a collection, and gives a writer, one of several perhaps; ends the run at
    exit. alone: no other writer meanwhile.

    Raises:
        CollectionLocked: another process works alone, or writes where this one is to be alone, and
            `wait` is false. FingerprintMismatch: another embedder's vectors.
    """
    run = {"command": _command(), **(run or {})}
    exists(path)  # refuses other folders before anything is put into them
    with store_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    run_id = f"{now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    with (
        accessed(path, str(run["command"]), run_id, alone=alone, wait=wait) as access,
        flushing(path, access) as flusher,
    ):
        with access.turn():
            if not access.others():  # what they write is whole by now, and not what is under way
                repair.step_back(path)
            access.register()
            complete(path)
            items = _items(path, manifest, metadata or {})
            sides = {name: lance.side_table(path, name) for name in lance.SIDE}
            writer = Writer(path, items, sides, run_id, flusher, access)
            writer._start(run)
        try:
            yield writer
        except BaseException as error:
            if not writer._finished:
                with contextlib.suppress(StoreError):  # then the next writer marks it as killed
                    writer.finish("failed" if isinstance(error, Exception) else "stopped")
            raise
        if not writer._finished:
            writer.finish("done")


@contextlib.contextmanager
def flushing(path: Path, access: Access) -> Iterator[Flusher]:
    """Brings commits to the disk, beside. Versions with a file that the disk refused are set aside:
    they can be read now, and no longer when the system has forgotten them."""
    flusher = Flusher(path)
    try:
        yield flusher
    finally:
        flusher.close()
        if flusher.broken:
            access.follow(lambda: None, lambda: None)  # what would wait for that disk
            with access.turn():
                _set_aside(path, flusher.broken, access)


def _set_aside(path: Path, broken: Iterable[str], access: Access) -> None:
    if others := access.others():  # whose commits lie above these
        log.warning(
            "%s: the disk did not take the last commits to %s, and %s is writing: when that has "
            "ended, penult repair %s says what is whole, and restores that",
            *(path, " and ".join(sorted(broken)), others[0].words, path),
        )
        return
    for name in broken:
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
        Access(path),
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
