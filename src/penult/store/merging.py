"""Several collections of one embedder as one: by key, the newest run's row where two differ.

Rows stream from one table to the other and each batch is a commit; done again, also after a kill,
it gives the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from penult.errors import FingerprintMismatch, UsageError
from penult.ingesting import rows
from penult.store import sides, tables
from penult.store.collection import Collection
from penult.store.folder import Manifest, check_same, differing, locked, store_errors
from penult.store.writer import Writer

_BATCH = 2048
_ITEM = ("", "whole")  # regions under which an item fails that could not be cut

Row = dict[str, Any]
Rank = tuple[Any, ...]


@dataclass(slots=True)
class Merged:
    """What a merge did: rows that are new, that replaced an older one, that were there already."""

    new: int = 0
    replaced: int = 0
    there: int = 0
    failures: int = 0
    labels: int = 0
    spaces: int = 0
    runs: int = 0

    def to_dict(self) -> dict[str, int]:
        """For a JSON document."""
        return asdict(self)


def merge(sources: Sequence[Collection], into: Collection, *, wait: bool = False) -> Merged:
    """Brings all that the sources have into one collection, which may be there already.

    Of two rows with one key that of the newer run counts; values of metadata that it lacks are
    taken from the other. If an item's content differs, only the rows of the newer content stay.
    Labels and spaces are appended; a failure stays only if no source has its row.

    Raises:
        FingerprintMismatch: they are not of one embedder; names every field that differs.
        CollectionLocked: one of them is being written.
    """
    manifest = _one_manifest(sources, into)
    did = Merged()
    with contextlib.ExitStack() as held:
        for source in sources:
            if os.access(source.path, os.W_OK):  # else nobody here can write to it
                held.enter_context(locked(source.path, f"merge into {into.path}", wait))
        about = {"sources": [str(source.path.absolute()) for source in sources]}
        writer = held.enter_context(into.writer(manifest, None, {"merged": about}, wait=wait))
        for source in sources:
            tables.add_metadata(writer.table, rows.metadata_of(source.schema), into.path)
        started: dict[str, Rank] = {}
        for source in sources:
            did.runs += _take_runs(source, into)
        for run in into.runs().to_pylist():
            started[run["run_id"]] = (run["started"], run["run_id"])
        for source in sources:
            _Rows(source, writer, started, did).take()
        for source in sources:
            did.failures += _take_failures(source, writer)
            did.labels += sides.append_missing(source.path, into.path, "labels", by="id")
            did.spaces += sides.append_missing(source.path, into.path, "spaces", by="space_id")
        counts = {"done": did.new, "replaced": did.replaced, "skipped": did.there}
        writer.finish("done", counts)
    return did


def _one_manifest(sources: Sequence[Collection], into: Collection) -> Manifest:
    places = [source.path.resolve() for source in sources]
    if not sources or into.path.resolve() in places or len(set(places)) < len(places):
        raise UsageError(
            "give collections that differ from each other and from the one that they go into"
        )
    found = [
        (c.path, c.manifest) for c in (into, *sources) if c.manifest and (c != into or c.count)
    ]
    path, ours = found[0]
    for other, theirs in found[1:]:
        if lines := differing(ours, theirs, f"{path} has", f"{other}"):
            raise FingerprintMismatch(
                f"{other} and {path} hold vectors of different embedders, which cannot be "
                "compared:\n" + "\n".join(lines) + "\nEmbed the items of one of them anew: "
                f"penult embed MODEL --like {other} --into another.lance"
            )
        check_same(path, ours, theirs)
    return ours


def _take_runs(source: Collection, into: Collection) -> int:
    ours = set(into.runs()["run_id"].to_pylist())
    theirs = [run for run in source.runs().to_pylist() if run["run_id"] not in ours]
    for run in theirs:
        if run["status"] == "running":  # we hold its lock
            run["status"] = "killed"
    if theirs:
        table = tables.created(into.path, "runs", tables.SIDE["runs"])
        with store_errors(into.path):
            table.add(pa.Table.from_pylist(theirs, schema=tables.SIDE["runs"]))
    return len(theirs)


class _Rows:
    """Takes the rows of one source."""

    def __init__(
        self, source: Collection, writer: Writer, started: Mapping[str, Rank], did: Merged
    ) -> None:
        self._source, self._writer, self._started, self._did = source, writer, started, did
        self._scalars = [n for n in rows.scalar_columns(writer.table.schema) if n in source.columns]
        self._metadata = list(rows.metadata_of(writer.table.schema))

    def take(self) -> None:
        """Batch by batch; each is a commit."""
        for batch in self._source.scan(batch_size=_BATCH):
            stored = self._stored(batch.column("id").to_pylist())
            if stored:
                batch = self._winning(batch, stored)
            written = self._writer.write(batch)
            self._did.new += written.new
            self._did.replaced += written.replaced

    def _stored(self, ids: Iterable[str]) -> dict[str, dict[str, Row]]:
        """What the collection has of these items, by id and region."""
        found: dict[str, dict[str, Row]] = {}
        columns = rows.scalar_columns(self._writer.table.schema)
        for row in self._writer.rows_of(list(ids), columns):
            found.setdefault(row["id"], {})[row["region"]] = row
        return found

    def _winning(self, batch: pa.RecordBatch, stored: dict[str, dict[str, Row]]) -> pa.RecordBatch:
        """The rows that are to be written, with metadata that only the older ones have."""
        theirs = batch.select(self._scalars).to_pylist()
        lost = self._older(theirs, stored)
        taken: list[int] = []
        filled: list[Row] = []
        revised: dict[tuple[str, str], Row] = {}
        for place, row in enumerate(theirs):
            ours = stored.get(row["id"], {}).get(row["region"])
            if row["id"] in lost:
                self._did.there += 1
            elif ours is None:
                taken.append(place)
                filled.append({})
            elif self._rank(row) > self._rank(ours):
                taken.append(place)
                filled.append(self._lacking(row, ours))
            else:
                self._did.there += 1
                if lacking := self._lacking(ours, row):
                    revised[row["id"], row["region"]] = lacking
        self._writer.revise(revised)
        table = pa.Table.from_batches([batch]).take(pa.array(taken, pa.int64()))
        for name in self._metadata:
            if name not in table.column_names:
                kind = self._writer.table.schema.field(name)
                table = table.append_column(kind, pa.nulls(len(table), kind.type))
        table = rows.conform(table.to_batches(), self._writer.table.schema, "") if taken else table
        table = rows.revised(table, filled)
        chunks: list[pa.RecordBatch] = table.combine_chunks().to_batches()
        return chunks[0] if chunks else batch.slice(0, 0)

    def _older(self, theirs: list[Row], stored: dict[str, dict[str, Row]]) -> set[str]:
        """The ids whose content here is newer; of those whose content there is newer, what is
        stored goes away."""
        hashes = {row["id"]: row["content_hash"] for row in theirs}
        differ = [id for id in hashes if self._hash(stored.get(id)) not in (None, hashes[id])]
        differ = [id for id in differ if hashes[id] is not None]
        if not differ:
            return set()
        newest: dict[str, Rank] = {}
        where = f"id IN ({rows.quoted(differ)})"
        for batch in self._source.scan(["id", "run_id"], where):
            for row in batch.to_pylist():
                rank = self._started.get(row["run_id"], ())
                newest[row["id"]] = max(newest.get(row["id"], ()), rank)
        ours = {
            id: max(self._started.get(row["run_id"], ()) for row in stored[id].values())
            for id in differ
        }
        newer = {id: hashes[id] for id in differ if newest.get(id, ()) > ours[id]}
        self._writer.prune(newer)
        for id in newer:
            stored.pop(id)
        return set(differ) - newer.keys()

    @staticmethod
    def _hash(stored: dict[str, Row] | None) -> str | None:
        hashes = [row["content_hash"] for row in (stored or {}).values() if row["content_hash"]]
        return hashes[0] if hashes else None

    def _rank(self, row: Row) -> Rank:
        """Greater for newer rows; total, so that the order of the sources does not matter."""
        run = self._started.get(row["run_id"], ())
        rest = {name: row.get(name) for name in sorted(self._scalars)}
        return (*run, row["mtime_ns"] or 0, json.dumps(rest, default=str))

    def _lacking(self, row: Row, other: Row) -> Row:
        names = [n for n in self._metadata if row.get(n) is None and other.get(n) is not None]
        return {name: other[name] for name in names}


def _take_failures(source: Collection, writer: Writer) -> int:
    """Failures of what has no row; of two for one region the newer."""
    taken = 0
    for failures in _in_parts(source.failures().to_pylist()):
        ids = [row["id"] for row in failures]
        there = {(row["id"], row["region"]) for row in writer.rows_of(ids, list(rows.KEY))}
        items = {id for id, _ in there}
        before = writer.failure_rows(ids)
        fresh = [
            row
            for row in failures
            if (row["id"], row["region"]) not in there
            and not (row["region"] in _ITEM and row["id"] in items)
            and _is_newer(row, before.get((row["id"], row["region"])))
        ]
        writer.fail_again(fresh)
        taken += len(fresh)
    return taken


def _is_newer(row: Row, before: Row | None) -> bool:
    return before is None or row["when"] > before["when"]


def _in_parts(failures: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(failures), _BATCH):
        yield failures[start : start + _BATCH]
