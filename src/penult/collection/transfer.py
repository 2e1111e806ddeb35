"""Between collections: merge, side tables, and the items of one to embed again with another
model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.collection import lance, schema
from penult.collection.access import locked
from penult.collection.ingest import Options
from penult.collection.manifest import (
    Manifest,
    check_same,
    require_one_embedder,
    store_errors,
)
from penult.collection.reader import Reader
from penult.collection.relocation import align
from penult.collection.renaming import Renaming
from penult.collection.schema import Key
from penult.collection.writer import Writer, writing
from penult.data.items import Entry, Failure, Item, file_item, text_item
from penult.data.regions import PATCH, Region, unpatched
from penult.data.roots import Roots
from penult.data.sources import Source
from penult.data.tables import PATH
from penult.data.windows import Layout
from penult.errors import CollectionError, SourceError, UsageError

log = logging.getLogger(__name__)
_SIDE_ROWS = 1000


def append_missing(
    source: Path, target: Path, name: str, by: str, renaming: Renaming = Renaming()
) -> int:
    """Appends the rows of a side table that the target's does not have, all columns alike; gives
    how many. by: the column to look them up with. renaming: from ids there to ids here."""
    theirs = lance.open_table(source, name)
    if theirs is None:
        return 0
    columns = lance.SIDE[name]
    ours = lance.create_table(target, name, columns)
    appended = 0
    with store_errors(source):
        batches = theirs.search().select(columns.names).limit(None).to_batches(_SIDE_ROWS)
    for batch in batches:
        table = renaming.of_columns(pa.Table.from_batches([batch]).cast(columns))
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
        found = (
            table.search().where(f"{column} IN ({schema.quoted(unique)})").limit(None).to_arrow()
        )
    listed: list[dict[str, Any]] = found.select(table.schema.names).to_pylist()
    return listed


def _whole(row: dict[str, Any]) -> str:
    return json.dumps(row, default=repr, sort_keys=True)


_MERGE_ROWS = 2048
_ITEM = ("", "whole")  # regions under which an item fails that could not be cut

Row = dict[str, Any]
Rank = tuple[Any, ...]


@dataclass(slots=True)
class MergeSummary:
    """What a merge did: rows that are new, that replaced an older one, that were there already.
    told: roots that were taken for one, or have another name."""

    new: int = 0
    replaced: int = 0
    there: int = 0
    failures: int = 0
    labels: int = 0
    spaces: int = 0
    runs: int = 0
    told: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document."""
        return asdict(self)


def merge(sources: Sequence[Reader], into: Reader, *, wait: bool = False) -> MergeSummary:
    """Brings all that the sources have into one collection, which may be there already.

    Of two rows with one key that of the newer run counts; values of metadata that it lacks are
    taken from the other. If an item's content differs, only the rows of the newer content stay.
    Labels and spaces are appended; a failure stays only if no source has its row.

    Raises:
        FingerprintMismatch: they are not of one embedder; names every field that differs.
        CollectionLocked: one of them is being written.
    """
    manifest = _one_manifest(sources, into)
    if into.manifest is None and manifest.roots is not None:
        manifest = replace(manifest, roots={})  # those of the sources follow
    did = MergeSummary()
    with contextlib.ExitStack() as held:
        for source in sources:
            if os.access(source.path, os.W_OK):  # else nobody here can write to it
                held.enter_context(locked(source.path, f"merge into {into.path}", wait))
        about = {"sources": [str(source.path.absolute()) for source in sources]}
        run = {"merged": about}
        writer = held.enter_context(writing(into.path, manifest, None, run, wait, alone=True))
        lance.add_metadata(writer.table, _common_metadata(sources), into.path)
        started: dict[str, Rank] = {}
        renamings = [_taken_roots(source, into, writer, did) for source in sources]
        for source, renaming in zip(sources, renamings, strict=True):
            did.runs += _take_runs(source, into, renaming)
        for run in into.side_table("runs").to_pylist():
            started[run["run_id"]] = (run["started"], run["run_id"])
        for source, renaming in zip(sources, renamings, strict=True):
            _RowMerge(source, writer, started, did, renaming).take()
        for source, renaming in zip(sources, renamings, strict=True):
            did.failures += _take_failures(source, writer, renaming)
            did.labels += append_missing(source.path, into.path, "labels", "id", renaming)
            did.spaces += append_missing(source.path, into.path, "spaces", by="space_id")
        counts = {"done": did.new, "replaced": did.replaced, "skipped": did.there}
        writer.finish("done", counts)
    return did


def _taken_roots(source: Reader, into: Reader, writer: Writer, did: MergeSummary) -> Renaming:
    """Takes the roots of a source; gives the way from its ids to those here."""
    found = align(source, into.roots)
    roots = found.roots.settled
    if into.require_manifest().roots is not None and roots != into.require_manifest().roots:
        writer.rename(Renaming(found.own, roots=roots))
    did.told += found.told
    return found.renaming


def _one_manifest(sources: Sequence[Reader], into: Reader) -> Manifest:
    places = [source.path.resolve() for source in sources]
    if not sources or into.path.resolve() in places or len(set(places)) < len(places):
        raise UsageError(
            "give collections that differ from each other and from the one that they go into"
        )
    manifests = [
        (c.path, c.manifest)
        for c in (into, *sources)
        if c.manifest and (c != into or c.count_rows())
    ]
    path, ours = manifests[0]
    for other, theirs in manifests[1:]:
        require_one_embedder(path, ours, other, theirs)
        check_same(path, ours, replace(theirs, fingerprint=ours.fingerprint))
        if (ours.roots is None) != (theirs.roots is None):
            one = path if ours.roots is None else other
            raise UsageError(
                f"ids of {one} are absolute paths, and those of the other one begin with roots: "
                f"penult migrate {one} --root DIR brings them to roots"
            )
    return ours


def _common_metadata(sources: Sequence[Reader]) -> dict[str, pa.DataType]:
    """The metadata columns of all sources, each with the type that holds all of its values.

    Raises:
        CollectionError: there is no such type.
    """
    found: dict[str, pa.DataType] = {}
    for source in sources:
        for name, kind in schema.metadata_of(source.schema).items():
            wider = lance.common_type(found.get(name, pa.null()), kind)
            if wider is None:
                raise CollectionError(
                    f"metadata column {name!r} holds {kind} in {source.path} and {found[name]} in "
                    "another collection, and no type holds both"
                )
            found[name] = wider
    return found


def _take_runs(source: Reader, into: Reader, renaming: Renaming) -> int:
    ours = set(into.side_table("runs")["run_id"].to_pylist())
    theirs = [run for run in source.side_table("runs").to_pylist() if run["run_id"] not in ours]
    for run in theirs:
        if run["status"] == "running":  # we hold its lock
            run["status"] = "killed"
        run["info"] = renaming.of_info(run["info"])
    if theirs:
        table = lance.create_table(into.path, "runs", lance.SIDE["runs"])
        with store_errors(into.path):
            table.add(pa.Table.from_pylist(theirs, schema=lance.SIDE["runs"]))
    return len(theirs)


class _RowMerge:
    """Takes the rows of one source."""

    def __init__(
        self,
        source: Reader,
        writer: Writer,
        started: Mapping[str, Rank],
        did: MergeSummary,
        renaming: Renaming,
    ) -> None:
        self._renaming = renaming
        self._source, self._writer, self._started, self._did = source, writer, started, did
        self._scalars = [
            n for n in schema.scalar_columns(writer.table.schema) if n in source.schema.names
        ]
        self._metadata = list(schema.metadata_of(writer.table.schema))

    def take(self) -> None:
        """Batch by batch; each is a commit."""
        for rows in self._source.scan(batch_size=_MERGE_ROWS):
            batch = self._renaming.of_columns(rows)
            stored = self._stored(batch.column("id").to_pylist())
            if stored:
                batch = self._winning(batch, stored)
            written = self._writer.write(batch)
            self._did.new += written.new
            self._did.replaced += written.replaced

    def _stored(self, ids: Iterable[str]) -> dict[str, dict[str, Row]]:
        """What the collection has of these items, by id and region."""
        found: dict[str, dict[str, Row]] = {}
        columns = schema.scalar_columns(self._writer.table.schema)
        for row in self._writer.rows_of(list(ids), columns):
            found.setdefault(row["id"], {})[row["region"]] = row
        return found

    def _winning(self, batch: pa.RecordBatch, stored: dict[str, dict[str, Row]]) -> pa.RecordBatch:
        """The rows that are to be written, with metadata that only the older ones have."""
        theirs = batch.select(self._scalars).to_pylist()
        lost = self._older(theirs, stored)
        taken: list[int] = []
        filled: list[Row] = []
        revised: dict[Key, Row] = {}
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
        table = (
            schema.conform(table.to_batches(), self._writer.table.schema, "") if taken else table
        )
        table = schema.revised(table, filled)
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
        there = {self._renaming.reversed(id) for id in differ} | set(differ)
        where = f"id IN ({schema.quoted(sorted(there))})"
        for batch in self._source.scan(["id", "run_id"], where):
            for row in self._renaming.of_columns(batch).to_pylist():
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


def _take_failures(source: Reader, writer: Writer, renaming: Renaming) -> int:
    """Failures of what has no row; of two for one region the newer."""
    taken = 0
    for failures in _in_parts(renaming.of_columns(source.side_table("failures")).to_pylist()):
        ids = [row["id"] for row in failures]
        there = {(row["id"], row["region"]) for row in writer.rows_of(ids, list(schema.KEY))}
        items = {id for id, _ in there}
        fresh = [
            row
            for row in failures
            if (row["id"], row["region"]) not in there
            and not (row["region"] in _ITEM and row["id"] in items)
        ]
        taken += writer.failures.take(fresh)
    return taken


def _in_parts(failures: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(failures), _MERGE_ROWS):
        yield failures[start : start + _MERGE_ROWS]


_OWN = ("id", "region", "kind", "start")
_TEXT = "text"
_MADE = "kind = 'summary'"  # from the other rows, not from a file
_SOURCE_ROWS = 4096


def source_from_collection(
    old: Reader, new: Reader, modality: str, options: Options, given: object = False
) -> tuple[Source, Options]:
    """The source that a collection is, and the options with the way its summaries were made.

    given: whether something else was asked for, that the old collection decides.

    Raises:
        UsageError: the two are the same, or something else was given.
    """
    if old.path.absolute() == new.path.absolute():
        raise UsageError(f"{new.path} cannot be made like itself; name another collection")
    if given or options.layout != Layout():
        raise UsageError(
            f"items and their regions are taken from {old.path}: give no paths, no channel, "
            "no windows and no tiles with it"
        )
    summary, items = options.summary or summary_of(old), _Items(old, modality, _renaming(old, new))
    asked = replace(options, summary=summary, summarised=items.had_summary)  # type: ignore[arg-type]
    return items.source(), asked


def _renaming(old: Reader, new: Reader) -> Renaming:
    """From the ids of a collection to those of the one that its items are for."""
    theirs = new.manifest
    if theirs is None or not new.count_rows():
        return Renaming()
    ours = old.require_manifest()
    if (ours.roots is None) != (theirs.roots is None):
        one = old.path if ours.roots is None else new.path
        raise UsageError(
            f"ids of {one} are absolute paths, and those of the other one begin with roots: "
            f"penult migrate {one} --root DIR brings them to roots"
        )
    return align(old, new.roots).renaming


class _Items:
    """The items and regions of a collection with their metadata, in the order of their ids.

    Holds the keys of all rows in memory. What has no file any more comes as a Failure, or fails
    when it is read.
    """

    def __init__(self, old: Reader, modality: str, renaming: Renaming) -> None:
        self._renaming = renaming
        had = old.manifest.model.get("modality") if old.manifest else None
        if had not in (None, modality):
            raise UsageError(f"{old.path} holds {had} items, and this model takes {modality}")
        self._old, self._modality = old, modality
        self._metadata = schema.metadata_of(old.schema)
        self._summed: set[str] = set()  # of items that are on their way

    def source(self) -> Source:
        """All but the summaries, which are made of the others and not of files."""
        return Source(self._entries, self._metadata, self._old.count_rows(f"NOT ({_MADE})"))

    def had_summary(self, id: str) -> bool:
        """Whether the item that was given had one; to be asked once."""
        had = id in self._summed
        self._summed.discard(id)
        return had

    def _entries(self) -> Iterator[Entry]:
        batches = self._old.ordered([*_OWN, *self._metadata], None, _SOURCE_ROWS)
        found = (row for batch in batches for row in batch.to_pylist())
        for id, group in groupby(found, key=itemgetter("id")):
            # Channels of one recording together, by their start, so that it is decoded once.
            given: set[str] = set()
            for row in sorted(group, key=lambda row: row["start"] or 0.0):
                if row["kind"] == "summary":
                    self._summed.add(self._renaming(id))
                    continue
                # Patches are made by the other model's preprocessing, of a region that is given.
                row["region"] = unpatched(row["region"])
                if row["region"] not in given:
                    given.add(row["region"])
                    entry = _entry(row, list(self._metadata), self._modality, self._old.roots)
                    yield self._under_new_id(entry)

    def _under_new_id(self, entry: Entry) -> Entry:
        if isinstance(entry, Failure):
            return replace(entry, id=self._renaming(entry.id))
        item, region = entry
        metadata = dict(item.metadata)
        if isinstance(path := metadata.get(PATH), str):
            metadata[PATH] = self._renaming(path)
        return replace(item, id=self._renaming(item.id), metadata=metadata), region


def summary_of(old: Reader) -> str | None:
    """How the summaries of a collection were made, as its runs say; None if it has none.

    Raises:
        UsageError: it has some, and no run or more than one way is written down.
    """
    if not old.count_rows(_MADE):
        return None
    texts = old.side_table("runs")["info"].to_pylist()
    infos = [schema.run_info(old.path, text) for text in texts]
    ways = sorted({way for info in infos if (way := info.summary)})
    if len(ways) != 1:
        known = f"made in {len(ways)} ways ({', '.join(ways)})" if ways else "nobody wrote down how"
        raise UsageError(f"{old.path} has summaries, {known}; say which: --summary mean or max")
    return str(ways[0])


def _entry(row: dict[str, Any], metadata: list[str], modality: str, roots: Roots) -> Entry:
    item = item_of_row(row, {name: row[name] for name in metadata}, modality, roots)
    if isinstance(item, Failure):
        return item
    kind = None if row["kind"] == PATCH else row["kind"]
    return item, Region.of_key(row["region"], kind)


def item_of_row(row: Row, metadata: dict[str, Any], modality: str, roots: Roots) -> Item | Failure:
    """The item of a row, with these values of its metadata; a Failure where it has no file."""
    id = row["id"]
    if modality == _TEXT and isinstance(metadata.get(_TEXT), str):
        return text_item(metadata[_TEXT], id, metadata)
    path = roots.path_of(metadata.get(PATH) or id)
    if path.is_absolute():
        return file_item(path, id, metadata)
    what = "was an array or bytes" if id.startswith("sha256:") else "has no path"
    message = f"{id} {what}, so there is no file to embed anew; give it to the new model yourself"
    return Failure(id, row["region"], SourceError.__name__, message)
