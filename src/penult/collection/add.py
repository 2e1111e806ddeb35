"""Run an ingest into a collection: each step is one commit, and the run is recorded."""

from __future__ import annotations

import logging
import platform
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from penult.analysis.adaptation import check_adaptation
from penult.collection.comparison import comparable, confirm, require_same_numbers
from penult.collection.failures import FailureCounts
from penult.collection.ingest import (
    CommitBatch,
    Lookup,
    Options,
    Preview,
    Seen,
    conditions,
    decoding_of,
    ingest,
    pack,
    preview,
)
from penult.collection.manifest import Manifest, store_errors
from penult.collection.pruning import Losses, check_prune, losses, runs_of
from penult.collection.reader import Reader
from penult.collection.relocation import PlannedRoots, align, plan_roots
from penult.collection.renaming import Renaming
from penult.collection.schema import Key, metadata_of, quoted, row_schema
from penult.collection.spaces import keep_own, own_spread
from penult.collection.timing import TIME, has_times, times_of_runs
from penult.collection.transfer import append_missing
from penult.collection.writer import IdFilter, Writer, note_info, viewed, writing
from penult.data.folders import KnownFiles
from penult.data.items import Entry, Failure, Item, failure, named
from penult.data.recording_times import RECORDED_AT, RecordingTimes
from penult.data.regions import WHOLE, Region
from penult.data.roots import RootOptions, Roots
from penult.data.sources import Source, left_out
from penult.data.tables import PATH, typed
from penult.embedding.embedder import Embedder, describe_fingerprint, keep_engine
from penult.embedding.fingerprint import Fingerprint
from penult.embedding.runner import Stopwatch
from penult.embedding.source_sample import SourceSample
from penult.engines.graph_cache import versions
from penult.engines.pooling import packages_of
from penult.engines.registry import AUTO, unusable
from penult.errors import (
    CollectionError,
    CollectionLocked,
    SourceError,
    SpaceError,
    StoreError,
    TapError,
    UsageError,
)
from penult.extras import version_of
from penult.locking import Guard, uninterrupted
from penult.models.base import own_code, reopen_options

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Findings:
    """What a run found beside the regions that it embedded.

    gone: ids whose files were deleted. losses: those, and what cannot be reached. kept_back: why
    rows were kept that were to be removed, in words. failures_removed: of files that are gone.
    former: further annotations, as (item, region), that earlier runs over the same tables had of a
    span and this one has no longer; former_removed: how many of their rows were removed. left_out:
    files of other kinds in the folders that were given, by their extensions. notes: by id, on items
    whose header is contradicted by what lies behind it. roots: what is to be told of them.
    moved: former ids of files that were found again by their content, with the new ones.
    failures: how many are new, and how many are mended. elsewhere: regions that were embedded here
    while another process added them, whose rows count. times: what was read of when items were
    recorded, if that was asked for.
    """

    gone: list[str] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    kept_back: str = ""
    failures_removed: int = 0
    former: Sequence[Key] = ()
    former_removed: int = 0
    roots: Sequence[str] = ()
    moved: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    failures: FailureCounts = field(default_factory=FailureCounts)
    elsewhere: int = 0
    times: RecordingTimes | None = None

    @property
    def former_words(self) -> list[str]:
        """Former annotations, each by item and region."""
        return [f"{id} {region}" for id, region in self.former]


@dataclass(slots=True)
class Summary:
    """Counts of a run.

    Regions embedded anew, left alone, replaced, failed; of those left alone, how many have other
    metadata now; of those embedded, how many the model did not see the whole of; seconds of media;
    seconds that each part of the work took, much of it at the same time (see `Stopwatch`); labels
    taken along; how many rows of files that are gone were removed; the engine, and why, where there
    was a choice; what was found besides.
    """

    run_id: str = ""
    done: int = 0
    skipped: int = 0
    replaced: int = 0
    failed: int = 0
    updated: int = 0
    truncated: int = 0
    media_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    labels: int = 0
    pruned: int = 0
    engine: str = ""
    found: Findings = field(default_factory=Findings)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in ("gone", "left_out"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(
                f"Summary.{name} goes with the next version; use found.{name}",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(self.found, name)

    def counts(self) -> dict[str, int]:
        """As the runs table keeps them."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "replaced": self.replaced,
            "failed": self.failed,
        }


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run writes. dtype: of stored vectors, float32 or float16. wait: for work that has the
    collection alone, and to be alone to prune, instead of being refused. prune: remove the rows of
    files that are gone from the folders and tables of the source. info: further entries for the row
    in `runs`. adapt: refit the embedder's space to the rows, see
    `penult.collection.spaces.keep_own`. roots: what was asked about ids."""

    dtype: str = "float32"
    wait: bool = False
    prune: bool | Literal["all"] = False
    info: Mapping[str, Any] = field(default_factory=dict)
    follow: Callable[[CommitBatch, Summary], None] = lambda step, summary: None
    adapt: str | None = None
    roots: RootOptions = field(default_factory=RootOptions)


def add(
    reader: Reader,
    embedder: Embedder,
    source: Source,
    options: Options = Options(),
    run: RunSettings = RunSettings(),
    *,
    tick: Callable[[bool, float], None] = lambda embedded, seconds: None,
    like: Reader | None = None,
) -> Summary:
    """Embed into a collection what it does not have yet; go on where an earlier run stopped.

    like: whose labels are taken along, where `source` comes from `source_from_collection`.

    Raises:
        FingerprintMismatch: the collection holds another embedder's vectors.
        CollectionLocked: another process has it alone.
        TapError: the pooling leaves more than one vector per item.
        StoreError: full disk, no permission.
    """
    _check_run(embedder, options, run, source)
    options, source = _with_times(reader, source, options, like)
    settle(reader, embedder, SourceSample(source, options.layout, decoding_of(options)))
    summary = Summary(found=Findings(times=options.times or None))
    ours = reader.manifest
    manifest = comparable(reader, ours, embedder, manifest_of(embedder, options.logits, run.dtype))
    columns = dict(source.columns)
    row_schema(manifest.dim, manifest.n_logits, options.logits, run.dtype, columns)  # or refused
    planned = plan_roots(reader, source.paths, run.roots, like)
    about = {**run_facts(embedder), **_run_options(source, options, like, planned), **run.info}
    with writing(reader.path, manifest, columns, about, run.wait) as writer:
        summary.run_id = writer.run_id
        _be_alone_to_rename(writer, planned, run.wait)
        with writer.access.turn():
            confirm(reader, ours, manifest)
            if reader.require_manifest().roots != (ours.roots if ours is not None else None):
                planned = plan_roots(reader, source.paths, run.roots, like)  # of another process
                note_info(writer, {**_run_options(source, options, like, planned), **run.info})
            summary.found.roots = _take_roots(reader, writer, planned)
        stored = {n: t for n, t in metadata_of(writer.table.schema).items() if n in columns}
        rows = row_schema(manifest.dim, manifest.n_logits, options.logits, run.dtype, stored)
        source = _as_stored(replace(source, roots=reader.roots), stored)
        try:
            # What is known is asked for in another thread than commits are made.
            turn, watch = Guard(), Stopwatch()
            lookup = _lookup(writer, list(columns), conditions(options), turn)
            known = cache(partial(_known_files, writer, turn, reader.roots, options.times))
            find = MovedFiles(reader.path, writer, turn, reader.roots).find
            if options.machines is not None:
                options.machines.begin(embedder, rows)
            for step in ingest(embedder, source, lookup, options, tick, watch, known, find):
                with watch.timed("write"), turn, writer.access.turn(), uninterrupted():
                    commit(writer, step, rows, summary, conditions(options))
                run.follow(step, summary)
            summary.seconds, summary.engine = watch.seconds, engine_words(reader, embedder)
        except (KeyboardInterrupt, SourceError):
            writer.finish("stopped", summary.counts(), _engines(embedder))
            raise
        except Exception:
            with suppress(StoreError):  # then the next writer marks it as killed
                writer.finish("failed", summary.counts(), _engines(embedder))
            raise
        if like is not None:
            renaming = align(like, reader.roots).renaming
            with writer.access.turn():
                summary.labels = append_missing(like.path, reader.path, "labels", "id", renaming)
        _complete(reader, embedder, writer, source, run, summary, known)
    return summary


def _complete(
    reader: Reader,
    embedder: Embedder,
    writer: Writer,
    source: Source,
    run: RunSettings,
    summary: Summary,
    known: Any,
) -> None:
    """The end of a run: what it found, what goes, what is kept for later ones."""
    found = summary.found
    found.losses = _nothing_lost(writer, known) or losses(reader, source.paths)
    found.gone = found.losses.gone
    found.left_out = dict(left_out(source, embedder.classifier.modality))
    found.former = _of_these_runs(writer, reader, found.former, source.paths)
    if run.prune:
        _prune(writer, summary, run)
    _keep(reader, embedder, run.adapt, summary.done + summary.replaced > 0)
    with writer.access.turn():
        writer.failures.mend_folders(reader.roots)
        found.failures.healed = writer.failures.heal()
    writer.finish("done", summary.counts(), _engines(embedder))


def _with_times(
    reader: Reader, source: Source, options: Options, like: Reader | None
) -> tuple[Options, Source]:
    """The options and the source of a run that reads when items were recorded, if this one does: it
    was asked for, or the collection's runs before it did.

    Raises:
        UsageError: a table has a column of this name. CollectionError: so has the collection, and
            with values that are no times.
    """
    times, asked = options.times, bool(options.times)
    zone = times_of_runs(like or reader)
    if times is None and zone is not None:
        times = RecordingTimes(zone)
    elif times and zone is not None:
        times.anew = times.zone != zone
    if not times or (RECORDED_AT in source.columns and like is None and not asked):
        return options, source
    kind = reader.schema.field(RECORDED_AT).type if has_times(reader) else TIME
    if kind != TIME:
        raise CollectionError(
            f"{reader.path} has a column {RECORDED_AT} of type {kind}, and times are kept as "
            f"{TIME}; leave --times out"
        )
    if RECORDED_AT in source.columns and like is None:
        raise UsageError(
            f"the table has a column {RECORDED_AT} itself, which is kept as it is; "
            "leave --times out, or rename the column"
        )
    columns = {**source.columns, RECORDED_AT: source.columns.get(RECORDED_AT, TIME)}
    return replace(options, times=times), replace(source, columns=columns)


def _take_roots(reader: Reader, writer: Writer, planned: PlannedRoots) -> list[str]:
    """Write the roots of a run, and give files of new ones the ids that they have now; what is to
    be told."""
    roots, manifest = planned.roots.settled, reader.require_manifest()
    if not roots or roots == manifest.roots:
        return planned.found
    renaming = Renaming(planned.renamed, roots=roots)
    did = writer.rename(renaming)
    told = [f"{did.rows:,} rows have ids that begin with a root now"] if did.rows else []
    return [*planned.found, *told]


def _check_run(embedder: Embedder, options: Options, run: RunSettings, source: Source) -> None:
    """Refuse a run before anything is written."""
    if embedder.pooling == "none":
        raise TapError(
            "pooling 'none' gives one vector per position, and a collection keeps one per item; "
            "choose mean, max, first, last, gem, mean+std or mean+std+delta"
        )
    options.layout.of([], embedder.classifier.input)
    check_adaptation(embedder.space, run.adapt)
    check_prune(run.prune, source)


def _keep(reader: Reader, embedder: Embedder, adapt: str | None, changed: bool) -> None:
    """What later runs take up: the embedder's space, and an engine on a recorded graph. changed:
    there are new rows."""
    if embedder.space is not None:
        try:
            news = keep_own(reader, embedder.space, adapt)
        except SpaceError as error:  # the rows are written, and may be more another time
            log.warning("the embedder's space was not adapted: %s", error)
            news = keep_own(reader, embedder.space)
        found = own_spread(reader) if news or changed else None
        if found is not None and found.is_collapsed:
            log.warning(
                "the embedder's space was fitted to other data than these rows, and hardly tells "
                "them apart: %s. --adapt mean or --adapt coral refits it to them, without labels",
                found.words(),
            )
    keep_engine(embedder)


def _be_alone_to_rename(writer: Writer, planned: PlannedRoots, wait: bool) -> None:
    """Where rows get other ids by the new roots of a run, nobody else writes.

    Raises:
        CollectionLocked: somebody does.
    """
    begins = [f"starts_with(id, {quoted([old])})" for old, _ in planned.renamed]
    if begins and writer.access.others() and writer.table.count_rows(" OR ".join(begins)):
        writer.access.be_alone(wait)


_PATIENCE = 10.0  # seconds in which what a page or a server adds has ended


def _prune(writer: Writer, summary: Summary, run: RunSettings) -> None:
    """Remove what is gone, or say why that is left."""
    found, lost = summary.found, summary.found.losses
    items, former = [*lost.gone, *lost.without_rows], found.former
    if run.prune == "all":
        items += lost.unreachable
    elif refusal := lost.refusal(len(former)):
        items, former, found.kept_back = [], (), refusal
    else:
        found.kept_back = lost.doubt
    if items or former:
        try:
            writer.access.be_alone(run.wait, _PATIENCE)
        except CollectionLocked as error:
            found.kept_back = f"--prune removes nothing while others write: {error}"
            return
    failed = len(writer.failures)
    summary.pruned = writer.remove(items)
    found.former_removed = writer.remove(former)
    found.failures_removed = failed - len(writer.failures)


def survey(
    reader: Reader,
    embedder: Embedder,
    source: Source,
    options: Options = Options(),
    roots: RootOptions = RootOptions(),
) -> tuple[Preview, Losses]:
    """What a run would embed and leave, and what it would find gone. Writes nothing.

    Raises:
        FingerprintMismatch: the collection holds another embedder's vectors.
    """
    if (ours := reader.manifest) is not None:
        theirs = Fingerprint(embedder.fingerprint, own_code(embedder.classifier))
        require_same_numbers(reader.path, ours, theirs)
    source = in_roots(reader, source, roots)
    view = viewed(reader.path)
    if view is None:
        lookup: Lookup = lambda ids: Seen()  # noqa: E731
    else:
        lookup = _lookup(view, (), conditions(options), Guard())
    regions = options.layout.of(source, embedder.classifier.input)
    found = preview(regions, lookup, options)
    lost = Losses()
    if view is not None:
        lost = losses(reader, source.paths)
        found.former = _of_these_runs(view, reader, found.former, source.paths)
    return found, lost


def in_roots(reader: Reader, source: Source, asked: RootOptions) -> Source:
    """The source with the ids that a run would give its items."""
    return replace(source, roots=plan_roots(reader, source.paths, asked).roots)


def _as_stored(source: Source, stored: Mapping[str, pa.DataType]) -> Source:
    """The source with metadata of the types that the collection has; a value that does not go
    into its column is a Failure that names it."""
    differing = {n: kind for n, kind in stored.items() if source.columns[n] != kind}
    if not differing:
        return source

    def entries() -> Iterator[Entry]:
        for entry in source:
            yield entry if isinstance(entry, Failure) else _entry_as_stored(*entry, differing)

    return replace(source, start=entries)


def _entry_as_stored(item: Item, region: Region, types: Mapping[str, pa.DataType]) -> Entry:
    metadata = dict(item.metadata)
    for name, kind in types.items():
        try:
            metadata[name] = _value_as_stored(metadata.get(name), kind)
        except (TypeError, ValueError, OverflowError) as error:
            reason = SourceError(
                f"{name} {metadata[name]!r} does not go into the collection's column of type "
                f"{kind}: {error}"
            )
            return failure(item, region.key, reason)
    return replace(item, metadata=metadata), region


def _value_as_stored(value: object, kind: pa.DataType) -> object:
    if isinstance(value, float) and str(kind) == "string":
        return named(value)  # 7.0 of a column of floats was 7, as text
    stored = typed(value, kind)
    if isinstance(stored, float) and isinstance(value, int) and stored != value:
        raise ValueError("it has more digits than a float keeps")
    return stored


def _of_these_runs(
    writer: Writer, reader: Reader, keys: Sequence[Key], given: Sequence[str]
) -> list[Key]:
    """Of these rows, those that runs over no other tables wrote."""
    if not keys:
        return []
    runs, wanted = set(runs_of(reader, set(given))), set(keys)
    rows = writer.rows_of([id for id, _ in keys], ["id", "region", "run_id"])
    found = ((row["id"], row["region"]) for row in rows if row["run_id"] in runs)
    return sorted(key for key in found if key in wanted)


_NOTED = 100  # items whose notes are in a description
_NAMED = 5  # ids of deleted files in a description


def describe_run(summary: Summary, reader: Reader) -> dict[str, Any]:
    """A run and the size of the collection after it, for JSON, as `penult embed --json` prints."""
    found = summary.found
    return {
        "collection": str(reader.path),
        **summary.counts(),
        "failures": asdict(found.failures),
        "updated": summary.updated,
        "gone": {
            "count": len(found.gone),
            "first": found.gone[:_NAMED],
            "rows_removed": summary.pruned,
        },
        "former_annotations": {
            "count": len(found.former),
            "first": found.former_words[:_NAMED],
            "rows_removed": found.former_removed,
        },
        "pruning": {
            "items": found.losses.items,
            "unreachable": {
                "count": len(found.losses.unreachable),
                "first": found.losses.unreachable[:_NAMED],
            },
            "failures_removed": found.failures_removed,
            "refused": found.kept_back or None,
        },
        "roots": {name: str(reader.roots.place(name)) for name in reader.roots.roots},
        "moved": {
            "count": len(found.moved),
            "first": dict(islice(found.moved.items(), _NAMED)),
        },
        "times": None if found.times is None else found.times.to_dict(),
        "added_by_others": found.elsewhere,
        "labels_taken": summary.labels,
        "left_out": found.left_out,
        "notes": {
            "count": len(found.notes),
            "first": dict(islice(found.notes.items(), _NOTED)),
        },
        "rows": reader.count_rows(),
        "seconds_of_media": summary.media_seconds,
        "spent": summary.seconds,
        "run": summary.run_id,
    }


def describe_survey(found: Preview, lost: Losses, reader: Reader) -> dict[str, Any]:
    """A dry run, for JSON, as `penult embed --dry-run --json` prints; lists are complete."""
    former = [f"{id} {region}" for id, region in found.former]
    return {
        "collection": str(reader.path),
        "dry_run": True,
        "new": found.new,
        "touched": found.touched,
        "unchanged": found.unchanged,
        "known_failures": found.known_failures,
        "gone": {
            "count": len(lost.gone),
            "ids": lost.gone,
            "rows": lost.gone_rows,
            "failures_only": lost.without_rows,
        },
        "former_annotations": {"count": len(former), "ids": former},
        "unreachable": {"count": len(lost.unreachable), "ids": lost.unreachable},
        "items": lost.items,
        "refused": lost.refusal(len(former)) or lost.doubt or None,
    }


def _run_options(
    source: Source, options: Options, like: Reader | None, planned: PlannedRoots
) -> dict[str, Any]:
    """What was asked of a run, for its `info`: sources, and options that are not the usual ones."""
    usual = Options()
    asked: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("logits", "max_seconds", "retry_failed", "summary", "alone", "time_limit")
        if getattr(options, name) != getattr(usual, name)
    }
    if options.limits != usual.limits:
        asked |= {"limits": asdict(options.limits)}
    asked |= {name: value for name, value in asdict(options.layout).items() if value}
    asked |= {"times": options.times.zone} if options.times else {}
    asked |= {} if source.channel is None else {"channel": source.channel}
    if own := [*(planned.roots.id_of(Path(path)) for path in source.paths), *source.uris]:
        asked |= {"sources": own}
    asked |= {"renamed": source.renamed} if source.renamed else {}
    return asked | ({"like": str(like.path.absolute())} if like is not None else {})


def settle(reader: Reader, embedder: Embedder, sample: SourceSample) -> None:
    """Take the engine for a run that begins: where `auto` is asked for, that of the collection's
    first one, if it was another than the model's own."""
    if (ours := reader.manifest) is not None:  # another embedder's vectors need no engine
        theirs = Fingerprint(embedder.fingerprint, own_code(embedder.classifier))
        require_same_numbers(reader.path, ours, theirs)
    engine = None
    if embedder.runner.choice is None and (first := _first_engine(reader, embedder)):
        reason = unusable(first, embedder.classifier)
        if reason:
            log.warning("the collection's first run was in %s, and %s", first, reason)
        engine = None if reason else first
    embedder.settle(sample, engine, ahead=False)


def engine_words(reader: Reader, embedder: Embedder) -> str:
    """The engine of a run, and why; empty where there was no choice."""
    choice, said = embedder.runner.choice, ""
    if choice is None:
        return said
    if choice.mode.engine == _first_engine(reader, embedder) and embedder.runner.portfolio is None:
        said = "as the collection's first run: "
    return said + choice.words


def _first_engine(reader: Reader, embedder: Embedder) -> str:
    """The engine of a collection's first run, where `auto` is to follow it."""
    ours, native = reader.manifest, embedder.classifier.structure.engine
    if ours is None or embedder.engine != AUTO or ours.engine == native:
        return ""
    return ours.engine


def _engines(embedder: Embedder) -> str:
    """What gave the rows of a run: `torch bf16, openvino bf16`."""
    choice = embedder.runner.choice
    return ", ".join(choice.rows if choice else ()) or embedder.runner.mode.words


def commit(
    writer: Writer, step: CommitBatch, rows: Any, summary: Summary, limits: str | None = None
) -> None:
    """Write one step. Old rows of changed items go first: killed in between, the item counts as
    not embedded, and the next run embeds it. limits: under which failures were judged."""
    if step.moved:
        writer.rename(Renaming(ids=step.moved))
        summary.found.moved |= step.moved
    gone = writer.prune(step.changed) if step.changed else 0
    if count := step.row_count:
        before = writer.elsewhere
        written = writer.write(pack(step, rows))
        elsewhere = writer.elsewhere - before
        own = count - elsewhere
        replaced = min(gone + written.replaced, own)
        summary.replaced += replaced
        summary.done += own - replaced
        summary.skipped += elsewhere
        summary.found.elsewhere += elsewhere
    if step.revised:
        writer.revise(step.revised)
    if step.mended:
        writer.failures.mend(step.mended)
    _record(writer, step, summary, limits)
    summary.skipped += step.skipped
    summary.updated += step.updated
    summary.failed += len(step.failures) + len(step.known)
    summary.truncated += step.truncated
    summary.found.former = step.former or summary.found.former
    summary.found.notes |= step.notes
    summary.media_seconds += step.seconds


def _record(writer: Writer, step: CommitBatch, summary: Summary, limits: str | None) -> None:
    """Write the failures of one step, and count them."""
    counts = summary.found.failures
    for failures, tried in ((step.failures, True), (step.known, False)):
        if failures:
            recorded = writer.fail(failures, tried, limits)
            counts.new += recorded.new
            counts.known += len(failures) - recorded.new
            counts.passing += sum(failure.passing for failure in failures)


def _lookup(
    writer: Writer, metadata: Sequence[str], under: str, turn: Guard
) -> Callable[[Sequence[str]], Seen]:
    def lookup(ids: Sequence[str]) -> Seen:
        with turn:
            return Seen(*writer.known(ids, metadata), *writer.failures.verdicts(ids, under))

    return lookup


class MovedFiles:
    """Files that are gone from their places and come again at others, known by their content."""

    def __init__(self, path: Path, writer: Writer, turn: Guard, roots: Roots) -> None:
        self._path, self._writer, self._turn, self._roots = path, writer, turn, roots
        self._taken: set[str] = set()
        self._known: IdFilter | None = None  # hashes of the content that there was at first
        self._sizes: npt.NDArray[np.int64] | None = None  # of the files, in order
        columns = ("id", "size", PATH)
        self._columns = [name for name in columns if name in writer.table.schema.names]

    def find(self, item: Item, read: Callable[[], str]) -> str | None:
        """The id of rows with this content whose file is gone; of several the one whose file had
        the same name, the same folder, or else the first. Ids that a table gave are no paths. read:
        gives the hash, and is asked where there are rows of files of this size."""
        if not isinstance(item.content, Path) or not self._has_size(item.size):
            return None
        if item.id != self._roots.id_of(item.content):
            return None
        content = read()
        with self._turn, store_errors(self._path):
            rows = self._with_content(content)
        gone: list[str] = sorted({
            row["id"] for row in rows
            if row["size"] is not None and row.get(PATH) is None and row["id"] not in self._taken
            and self._is_gone(row["id"], item.content)
        }, key=partial(_unlike, item.content))  # fmt: skip
        if not gone:
            return None
        self._taken.add(gone[0])
        return gone[0]

    def _has_size(self, size: int | None) -> bool:
        """Whether a file of this size had rows at first."""
        if self._sizes is None:
            with self._turn, store_errors(self._path):
                found = self._writer.table.search().select(["size"]).limit(None).to_batches(8192)
                parts = [np.unique(batch.column(0).drop_null().to_numpy()) for batch in found]
            self._sizes = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
        if not len(self._sizes):
            return False
        at = int(np.searchsorted(self._sizes, size or 0))
        return at < len(self._sizes) and int(self._sizes[at]) == size

    def _with_content(self, content: str) -> list[dict[str, Any]]:
        items = self._writer.table
        if self._known is None:
            found = items.search().select(["content_hash"]).limit(None).to_batches(8192)
            self._known = IdFilter(batch.column(0).drop_null().to_pylist() for batch in found)
        if not self._known.perhaps([content]):
            return []
        query = items.search().where(f"content_hash = {quoted([content])}").select(self._columns)
        rows: list[dict[str, Any]] = query.limit(None).to_arrow().to_pylist()
        return rows

    def _is_gone(self, id: str, path: Path) -> bool:
        former = self._roots.path_of(id)
        if not former.is_absolute():
            return False
        try:
            former.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return False
        # A disk for which both are one name of one file: another case, another normal form.
        one, other = (unicodedata.normalize("NFC", str(p)).casefold() for p in (former, path))
        return one == other and former.samefile(path)


def _unlike(path: Path, id: str) -> tuple[bool, bool, str]:
    """How far an id is from a path; smaller is nearer."""
    name, folder = Path(id).name, Path(id).parent.name
    return name != path.name, folder != path.parent.name, id


_MOST_KNOWN = 500_000  # rows; of more, files are asked for as they come


def _known_files(
    writer: Writer, turn: Guard, roots: Roots, times: RecordingTimes | Literal[False] | None
) -> KnownFiles | None:
    """The files of a collection that have one row and no failure, as they were then; None where
    they are too many to be kept in mind. times: only those whose row has its time, if it is read
    at all, and none where it is read anew."""
    if times and times.anew:
        return None
    with turn:
        table = writer.table
        if table.count_rows() > _MOST_KNOWN:
            return None
        columns = ["id", "region", "size", "mtime_ns"]
        query = table.search()
        if times:
            query = query.where(f"{RECORDED_AT} IS NOT NULL")
        rows = query.select(columns).limit(None).to_arrow()
        failed = writer.failures.table.search().select(["id"]).limit(None).to_arrow()
    whole = rows.filter(pc.and_(pc.equal(rows["region"], WHOLE.key), pc.is_valid(rows["size"])))
    others = rows.filter(pc.match_substring(rows["region"], "#"))
    ids, *states = (whole[name].to_pylist() for name in ("id", "size", "mtime_ns"))
    known = dict(zip(ids, zip(*states, strict=True), strict=True))
    for id in (*others["id"].to_pylist(), *failed["id"].to_pylist()):
        known.pop(id, None)
    return KnownFiles({str(roots.path_of(id)): state for id, state in known.items()})


def _nothing_lost(writer: Writer, asked: Any) -> Losses | None:
    """That no file is gone, where each row is of one that the walk has just passed; else None.
    asked: gives the known files, once they were asked for."""
    known = asked() if asked.cache_info().currsize else None
    rows = int(writer.table.count_rows())
    if known is None or len(writer.failures) or not known.passed == len(known.states) == rows:
        return None
    return Losses(items=rows, rows=rows)


def manifest_of(embedder: Embedder, logits: str = "all", dtype: str = "float32") -> Manifest:
    """What all rows of this embedder share."""
    classifier = embedder.classifier
    packages = packages_of(embedder.pooling.split(","))
    return Manifest(
        fingerprint=embedder.fingerprint,
        dim=embedder.dim,
        n_logits=len(classifier.labels),
        model={
            "spec": classifier.spec,
            "tap": embedder.tap.name,
            "taps": [asdict(one.tap) for one in embedder.runner.readings],
            "pooling": embedder.pooling,
            **({"packages": packages} if packages else {}),
            "pool_over": embedder.runner.readings[0].pool_over,
            "modality": classifier.modality,
            "kind": classifier.kind,
            **(
                {"scores": classifier.structure.activation.name}
                if classifier.structure.activation.name
                else {}
            ),
            "asked": reopen_options(classifier),
            "revision": classifier.describe().get("revision"),
            **describe_fingerprint(embedder),
        },
        labels=classifier.labels,
        logits=logits,
        dtype=dtype,
        engine=embedder.runner.mode.engine,
        precision=embedder.precision,
    )


def run_facts(embedder: Embedder) -> dict[str, Any]:
    """What a row of `runs` says of how it was made."""
    packages = ("penult", "torch", "transformers", "numpy", "lancedb", "soundfile", "soxr")
    return {
        "model": embedder.classifier.spec,
        "revision": embedder.classifier.describe().get("revision") or "",
        "device": embedder.device,
        "engine": embedder.runner.mode.words,
        "precision": embedder.precision,
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in packages},
            **versions(embedder.runner.mode.engine),
        },
    }
