"""Plan, execute, assemble: which regions are new, their outcomes, rows in batches to commit. Knows
no store.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from penult.collection.schema import Key, Known, patches_among
from penult.data.decode import Decoding, Limits, decoding_as, usual_decoding
from penult.data.files import file_size, item_error
from penult.data.folders import KnownFiles
from penult.data.items import (
    PAUSE,
    Entry,
    Failure,
    Item,
    Note,
    OneByOne,
    Pause,
    former_id,
    is_object,
)
from penult.data.recording_times import RECORDED_AT, RecordingTimes, at
from penult.data.regions import Box, Region, span_of, unpatched
from penult.data.sources import Source, UntilError
from penult.data.windows import Layout
from penult.data.workers import headers_in_workers
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, Stopwatch
from penult.embedding.scheduling import ReadAhead
from penult.errors import ItemError, PassingFault, UsageError
from penult.memory import Held
from penult.models.base import REGRESSION, Classifier, predict
from penult.models.patches import ROWS

Planned = Entry | Note


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows that a store holds by (id, region), their metadata, and failures that hold: not what the
    world did, nor what was judged under other limits. patches: the rows of a region that is kept as
    its patches; one is there once all of them are."""

    rows: Mapping[Key, Known] = field(default_factory=dict)
    metadata: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[Key, Failure] = field(default_factory=dict)
    doubtful: Collection[str] = ()  # items with failures that do not hold any more
    patches: Mapping[Key, Sequence[Key]] = field(default_factory=dict)

    @property
    def with_patches(self) -> Seen:
        """The same, with what its rows are patches of."""
        found = patches_among(self.rows)
        return replace(self, patches=found) if found else self

    def of(self, id: str) -> Seen:
        """What it has of one item."""
        kept = [{key: one for key, one in part.items() if key[0] == id}
                for part in (self.rows, self.metadata, self.failures, self.patches)]  # fmt: skip
        rows, metadata, failures, patches = kept
        doubtful = [id] if id in self.doubtful else []
        return Seen(rows, metadata, failures, doubtful, patches)  # type: ignore[arg-type]

    def keys(self, key: Key) -> Sequence[Key]:
        """The rows of a region: its patches, or the one of its own; empty where it has none."""
        return self.patches.get(key, (key,) if key in self.rows else ())


@dataclass(slots=True)
class CommitBatch:
    """Rows and changes to commit next.

    changed: ids whose content changed, with the new hash: their old rows go before the new ones
    come. revised: regions whose content is unchanged, with new values of other columns. Batches of
    different items may be committed in any order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    packed: list[pa.RecordBatch] = field(default_factory=list)  # rows of other machines
    failures: list[Failure] = field(default_factory=list)
    known: list[Failure] = field(default_factory=list)  # verdicts of earlier runs, not tried again
    changed: dict[str, str] = field(default_factory=dict)
    revised: dict[Key, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    updated: int = 0  # of those skipped, with other metadata
    truncated: int = 0
    mended: set[Key] = field(default_factory=set)  # unchanged rows of items that failed meanwhile
    notes: dict[str, str] = field(default_factory=dict)  # by id, of items that have any
    seconds: float = 0.0  # of audio or video in the new rows
    size: int = 0  # bytes of the new rows, about
    moved: dict[str, str] = field(default_factory=dict)  # former ids of files found again, with new
    former: Sequence[Key] = ()  # rows of annotations that their spans no longer have

    def __bool__(self) -> bool:
        return self != CommitBatch()

    @property
    def row_count(self) -> int:
        """How many rows it has."""
        packed: int = sum(part.num_rows for part in self.packed)
        return len(self.rows) + packed


def merge(batch: CommitBatch, other: CommitBatch) -> None:
    """Add to a batch what one of other items has."""
    for part in fields(batch):
        mine, new = getattr(batch, part.name), getattr(other, part.name)
        if isinstance(mine, dict | set):
            mine.update(new)
        elif isinstance(mine, list):
            mine.extend(new)
        elif part.name == "former":
            batch.former = new or mine
        else:
            setattr(batch, part.name, mine + new)


def pack(batch: CommitBatch, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The rows of a batch as record batches, which it has in place of them from then on."""
    if batch.rows:
        batch.packed.append(record_batch(batch.rows, schema))
        batch.rows = []
    return batch.packed


def record_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as one record batch of the collection's schema."""
    return pa.RecordBatch.from_arrays(
        [_column([row.get(name) for row in rows], schema.field(name).type)
         for name in schema.names],
        schema=schema,
    )  # fmt: skip


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = np.concatenate(values).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


def row_of(classifier: Classifier, outcome: Outcome, content: str, logits: str) -> dict[str, Any]:
    """A region's row. content: its item's hash. logits: `all`, `top:K` or `none` of them."""
    values = outcome.class_logits
    prediction = predict(
        classifier.kind, classifier.labels, values, activation=classifier.structure.activation
    )
    row: dict[str, Any] = {
        "id": outcome.item.id,
        "region": outcome.region.key,
        "kind": outcome.region.kind,
        "channel": outcome.region.channel,
        "start": outcome.start,
        "end": outcome.end,
        "vector": outcome.vector,
        "label": None if classifier.kind == REGRESSION else prediction.label,
        "score": prediction.score,
        "truncated": outcome.truncated,
        "content_hash": content,
        "size": outcome.item.size,
        "mtime_ns": outcome.item.mtime_ns,
        **outcome.item.metadata,
        **at(outcome.item, outcome.start),
    }
    if logits == "all":
        row["logits"] = values
    elif logits != "none":
        best = np.argsort(-values, kind="stable")[: int(logits.partition(":")[2])]
        row["logits"] = [{"index": int(i), "logit": float(values[i])} for i in best]
    return row


class Coverage:
    """The part of an item that regions have covered so far: seconds of a recording, characters of a
    text, pixels of each page of a picture."""

    def __init__(self) -> None:
        self.start: float | None = None  # seconds
        self.end: float | None = None
        self._chars = 0
        self._bottoms: dict[int | None, np.ndarray] = {}  # by page: of each column of pixels

    def add(self, region: Region, start: float | None, end: float | None) -> float:
        """How much of a region no earlier one covered; 1 where that cannot be measured. Regions
        come by their start, boxes by their upper edge. start, end: seconds."""
        if region.box is not None:
            return self._add_box(region.page, region.box)
        if region.chars is not None:
            first, last = region.chars
            new, self._chars = last - max(self._chars, first), max(self._chars, last)
            return float(max(0, new))
        if start is None or end is None:
            return 1.0
        covered = start if self.end is None else max(self.end, start)
        self.start = start if self.start is None else self.start
        self.end = max(self.end or 0.0, end)
        return max(0.0, end - covered)

    def _add_box(self, page: int | None, box: Box) -> float:
        left, top, right, bottom = box
        bottoms = self._bottoms.setdefault(page, np.zeros(0, np.int64))
        if len(bottoms) < right:
            bottoms = np.concatenate([bottoms, np.zeros(2 * right - len(bottoms), np.int64)])
            self._bottoms[page] = bottoms
        columns = bottoms[left:right]
        # Earlier boxes begin no lower than this one, so each covers a column down to its bottom.
        new = np.maximum(bottom - np.maximum(columns, top), 0)
        np.maximum(columns, bottom, out=columns)
        return float(new.sum())


class Summing:
    """The summary of one item's windows, pages or tiles, or of one channel's: their mean, each
    weighted by the seconds, characters or pixels that no earlier one covered, or their maximum,
    number by number."""

    def __init__(self, how: str, item: Item, channel: int | None) -> None:
        self.how, self.item, self.channel = how, item, channel
        self._sums: list[Any] = []
        self._weight = 0.0
        self._covered = Coverage()

    def add(self, outcome: Outcome) -> None:
        """One more part, in the order of their starts, or of their upper edges."""
        weight = self._covered.add(outcome.region, outcome.start, outcome.end)
        values = [np.asarray(v, np.float64) for v in (*outcome.vectors, outcome.class_logits)]
        if self.how == "max":
            self._sums = [
                np.maximum(*two) for two in zip(self._sums or values, values, strict=True)
            ]
            return
        weighted = [weight * value for value in values]
        before = self._sums or [np.zeros_like(value) for value in values]
        self._sums = [a + b for a, b in zip(before, weighted, strict=True)]
        self._weight += weight

    def outcome(self) -> Outcome | None:
        """The summary; None if no window could be embedded."""
        if not self._sums:
            return None
        share = 1.0 if self.how == "max" else max(self._weight, 1e-12)
        *vectors, logits = [(value / share).astype(np.float32) for value in self._sums]
        region = Region("summary", channel=self.channel)
        start, end = self._covered.start, self._covered.end
        return Outcome(self.item, region, tuple(vectors), logits, start, end)


Lookup = Callable[[Sequence[str]], Seen]
# Of a new file, and what reads its hash: the id of a file that is gone.
FindMoved = Callable[[Item, Callable[[], str]], str | None]
Tick = Callable[[bool, float], None]

CHUNK = 1000  # regions in one lookup in the store
MAX_SECONDS = 3600.0  # of a recording in one piece


def _usual_seconds() -> float:
    return usual_decoding().max_seconds or MAX_SECONDS


T = TypeVar("T")


class Machines(Protocol):
    """Workers of other machines, which read, embed and assemble what is planned here."""

    def begin(self, embedder: Embedder, rows: pa.Schema) -> None:
        """For a run of this embedder, whose rows have this schema."""

    def batches(
        self, planned: Iterable[Planned], options: Options, tick: Tick, watch: Stopwatch | None
    ) -> Iterator[CommitBatch]:
        """What is planned as batches to commit, in any order of the items."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run. A batch ends after `commit_rows` or `commit_seconds`, so that a killed run
    loses no more than that; also one that is not full, where reading or decoding is slow.

    layout: how items are cut into windows or tiles. summary: one more row for each item that is
    cut, the mean or maximum of its parts; `summarised` says for which ids, None is all of them.
    alone: one region in each forward pass. max_seconds, workers, time_limit,
    limits: see `Decoding`. patient: items
    are read and decoded in threads of their own, so that slow ones hold up no commit. times: reads
    when items were recorded, for the column `recorded_at`; None: as the collection's last run.
    machines: where all of that is done, in place of this process.
    """

    logits: str = "all"
    max_seconds: float | None = field(default_factory=_usual_seconds)
    retry_failed: bool = False
    layout: Layout = field(default_factory=Layout)
    summary: Literal["mean", "max"] | None = None
    summarised: Callable[[str], bool] | None = None
    alone: bool = False
    workers: int = field(default_factory=lambda: usual_decoding().workers)
    time_limit: float = field(default_factory=lambda: usual_decoding().time_limit)
    limits: Limits = field(default_factory=lambda: usual_decoding().limits)
    patient: bool = True
    times: RecordingTimes | Literal[False] | None = None
    machines: Machines | None = None
    _patched: bool = False  # the embedder gives a row for each patch of a region
    commit_rows: int = 256
    commit_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"a limit of {self.max_seconds:g} s lets nothing through; give more")
        if not self.time_limit > 0:
            raise UsageError(f"no file is decoded in {self.time_limit:g} s; give more")
        if self.summary not in (None, "mean", "max"):
            raise UsageError(f"no summary {self.summary!r}; choose mean or max")


def decoding_of(options: Options) -> Decoding:
    """How a run opens its items."""
    return Decoding(
        options.max_seconds,
        options.workers,
        options.time_limit,
        limits=options.limits,
        patience=options.commit_seconds,
        apart=options.patient,
    )


_NO_CONDITIONS = (
    *("logits", "retry_failed", "layout", "summary", "summarised", "alone", "workers"),
    *("patient", "times", "machines", "commit_rows", "commit_seconds", "_patched"),
)


@cache
def decoder_versions() -> dict[str, str]:
    """Versions of what reads files: an item that one of them cannot read, another may."""
    found = {}
    for name in ("penult", "soundfile", "av", "pillow"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def conditions(options: Options) -> str:
    """What a verdict on an item depends on besides its content: limits that are not the usual ones,
    and what decodes; as text, to be compared."""
    with decoding_as(Decoding()):  # not as this run has it
        usual = Options()
    own = replace(options, limits=replace(options.limits, model_seconds=None))
    asked = {
        name: getattr(own, name)
        for name in Options.__dataclass_fields__
        if name not in _NO_CONDITIONS and getattr(own, name) != getattr(usual, name)
    }
    return json.dumps({**asked, **decoder_versions()}, sort_keys=True, default=str)


def ingest(
    embedder: Embedder,
    pairs: Iterable[Entry],
    lookup: Lookup,
    options: Options = Options(),
    tick: Tick = lambda embedded, seconds: None,
    watch: Stopwatch | None = None,
    known: Callable[[], KnownFiles | None] = lambda: None,
    find: FindMoved = lambda item, content: None,
) -> Iterator[CommitBatch]:
    """Embed the regions that the store lacks: plan, execute and assemble, in this process.

    tick: called for every region: whether it was embedded, and seconds of media. watch: collects
    the seconds of the run. known: gives the files that a walk through a folder may leave out, since
    the store has them as they are. find: for files that were moved. The last batch is given even if
    it is empty.
    """
    classifier = embedder.classifier
    if getattr(pairs, "once", False):
        options = replace(options, patient=False)
    files = None
    options = replace(options, _patched=classifier.input.patches == ROWS)
    whole = options.layout == Layout() and options.summary is None
    if whole and isinstance(pairs, Source) and pairs.folder and (files := known()):
        pairs = pairs.beyond(files)
    given, bound = UntilError(pairs), options.limits.bound
    with ExitStack() as stack:

        def apart(values: Iterable[T]) -> Iterable[T]:
            """In a thread of its own, so that what is slow holds up nothing else."""
            if not options.patient:
                return values
            ahead = ReadAhead(values, CHUNK, Held(bound.queue), _held)
            stack.callback(ahead.close)
            return ahead  # type: ignore[return-value]

        describe = headers_in_workers(decoding_of(options))
        regions = apart(options.layout.of(given, classifier.input, describe, bound))
        planned = apart(plan(regions, lookup, options, find))
        if options.machines is not None:
            spread = options.machines.batches(planned, options, tick, watch)
            yield from given.then(_with_known(spread, files, tick))
            return
        results = execute(embedder, planned, options, watch)
        with closing(results):
            yield from given.then(assemble(classifier, results, options, tick, files))


def _with_known(
    batches: Iterator[CommitBatch], files: KnownFiles | None, tick: Tick
) -> Iterator[CommitBatch]:
    """The batches, with the files counted that the walk has left out meanwhile."""
    counted = 0
    with closing(batches):  # type: ignore[type-var]
        for batch in batches:
            new, counted = (files.passed - counted, files.passed) if files else (0, 0)
            batch.skipped += new
            for _ in range(new):
                tick(False, 0.0)
            yield batch


def plan(
    regions: Iterable[Entry],
    lookup: Lookup,
    options: Options = Options(),
    find: FindMoved = lambda item, content: None,
) -> Iterator[Entry | Note]:
    """Regions to embed, and in the places of all others a Failure or a Note on why not.

    A file whose size and time are unchanged is not read; one whose time is new is hashed, and
    embedded again only if the hash is new. Regions of one item come together, behind the item's
    `ContentHash`, before its `ItemEnd`. A new file with the content of one that is gone takes over
    its rows. Items that met a fault of the world before come last, since
    they may take the whole time limit again. All of it can be pickled and executed elsewhere: for
    other machines each item that has to be read is an `UnreadItem`, and read there.
    """
    plan_item = _plan_item if options.machines is None else _plan_unread
    renamed: dict[str, str] = {}
    last: list[tuple[Sequence[Entry], Seen]] = []
    annotations = _Annotations()
    most = options.limits.bound.queue
    for chunk in _chunks(regions, options.commit_seconds / 10, most):
        if not chunk:
            yield PAUSE
            continue
        former = {id: old for id, group in chunk if (old := _former_id(group)) is not None}
        seen = lookup([*(id for id, _ in chunk), *former.values()]).with_patches
        there = {id for id, _ in seen.rows}
        for id, group in chunk:
            old = former.get(id)
            # Of several lines with the same text, the first has the rows of 0.1.0.
            if old in there and id not in there and renamed.setdefault(old, id) == id:
                group = _under(old, group)
            group = _dated(group, seen, options.times)
            annotations.add(group)
            if id in seen.doubtful and len(last) < CHUNK:
                last.append((group, seen))
                continue
            hashes: dict[str, str] = {}
            if id not in there and (old := _moved_from(group, find, hashes)) is not None:
                yield FileMoved(old, id)
                yield from plan_item(group, _under_id(lookup([old]), id), options, hashes)
            else:
                yield from plan_item(group, seen, options, hashes)
        annotations.compare(seen)
    if last:
        yield OneByOne()
    for faulty, known in last:
        yield from plan_item(faulty, known, options)
    if gone := annotations.former():
        yield FormerAnnotations(gone)


def _dated(
    group: list[Entry], seen: Seen, times: RecordingTimes | Literal[False] | None
) -> list[Entry]:
    """The regions of an item with its beginning, which is read unless all rows have theirs."""
    pairs = [entry for entry in group if isinstance(entry, tuple)] if times else []
    if not times or not pairs or RECORDED_AT in pairs[0][0].metadata:
        return group
    if not times.anew and all(_is_dated(*pair, seen) for pair in pairs):
        return group
    when = times.of(pairs[0][0])
    return [
        one if isinstance(one, Failure) else (replace(one[0], recorded_at=when), one[1])
        for one in group
    ]


def _is_dated(item: Item, region: Region, seen: Seen) -> bool:
    """Whether the store has the beginning of an unchanged file's region."""
    rows = seen.keys((item.id, region.key))
    stored = (seen.metadata.get(row, {}).get(RECORDED_AT) for row in rows)
    return bool(rows) and _same_file(seen.rows[rows[0]], item) and None not in stored


def _moved_from(group: Sequence[Entry], find: FindMoved, hashes: dict[str, str]) -> str | None:
    """The id that a new file had before it was moved. hashes: takes its own, by id."""
    item = next((one[0] for one in group if isinstance(one, tuple)), None)
    if item is None or item.size is None:
        return None

    def read() -> str:
        hashes[item.id] = _read_hash(item)
        return hashes[item.id]

    try:
        return find(item, read)
    except ItemError:  # each region will say so
        return None


def _under_id(seen: Seen, id: str) -> Seen:
    """What the store has of one item, under another id."""
    return Seen(
        {(id, region): known for (_, region), known in seen.rows.items()},
        {(id, region): values for (_, region), values in seen.metadata.items()},
        {(id, region): replace(one, id=id) for (_, region), one in seen.failures.items()},
        [id for _ in seen.doubtful][:1],
    )


@dataclass(slots=True)
class Preview:
    """What a run would do: regions that are new, of another size or time than before (embedded only
    if the content is another), unchanged, and failed before without being tried again."""

    new: int = 0
    touched: int = 0
    unchanged: int = 0
    known_failures: int = 0
    former: Sequence[Key] = ()


def preview(regions: Iterable[Entry], lookup: Lookup, options: Options = Options()) -> Preview:
    """What a plan would find, without a look into any file."""
    found, annotations = Preview(), _Annotations()
    for chunk in _chunks(regions):
        seen = lookup([id for id, _ in chunk]).with_patches
        for _, group in chunk:
            annotations.add(group)
            for entry in group:
                _look_at(entry, seen, options, found)
        annotations.compare(seen)
    found.former = annotations.former()
    return found


def _look_at(entry: Entry, seen: Seen, options: Options, found: Preview) -> None:
    if isinstance(entry, Failure):
        found.known_failures += 1
        return
    key, item = (entry[0].id, entry[1].key), entry[0]
    failed, rows = seen.failures.get(key), seen.keys(key)
    if failed is not None and not options.retry_failed and _same_file(failed, item):
        found.known_failures += 1
    elif not rows:
        found.new += 1
    elif item.size is not None and _same_file(seen.rows[rows[0]], item):
        found.unchanged += len(rows)
    else:
        found.touched += len(rows)


def execute(
    embedder: Embedder,
    planned: Iterable[Entry | Note],
    options: Options = Options(),
    watch: Stopwatch | None = None,
) -> Generator[Outcome | Failure | Note, None, None]:
    """The outcome of each planned region, in order; failures and notes stay in their places."""
    return embedder.runner.stream(planned, decoding_of(options), options.alone, watch=watch)


def assemble(
    classifier: Classifier,
    results: Iterable[Outcome | Failure | Note],
    options: Options = Options(),
    tick: Tick = lambda embedded, seconds: None,
    files: KnownFiles | None = None,
) -> Iterator[CommitBatch]:
    """Rows of executed regions, in the order of the plan, as batches to commit; see `ingest`.
    files: those that are left out are counted.

    An error, and Ctrl-C, give the rows that are complete, and are raised behind them.
    """
    assembler, most = _RowAssembler(classifier, options, tick, files), options.limits.bound.queue
    since = time.monotonic()
    try:
        for result in results:
            assembler.take(result)
            late = time.monotonic() - since > options.commit_seconds
            full = len(assembler.batch.rows) >= options.commit_rows or assembler.batch.size > most
            if (late or full) and assembler.batch:
                yield assembler.batch
                assembler.batch, since = CommitBatch(), time.monotonic()
    except (KeyboardInterrupt, Exception):  # an engine may end in any way
        yield assembler.batch  # complete rows are not lost
        raise
    assembler.count_known()
    yield assembler.batch


@dataclass(frozen=True, slots=True)
class UnreadItem(Note):
    """The regions of an item whose content has to be read, and what the store has of it."""

    group: tuple[Entry, ...]
    seen: Seen

    @property
    def item(self) -> Item:
        """The item."""
        return next(entry[0] for entry in self.group if isinstance(entry, tuple))

    def plan(self, options: Options) -> Iterator[Planned]:
        """What `plan` gives for it, with its content read here."""
        return _plan_item(self.group, self.seen, options)

    def failures(self, reason: ItemError) -> list[Failure]:
        """All of its regions as failures, for one reason."""
        return [one if isinstance(one, Failure) else Failure.of(*one, reason) for one in self.group]


def _plan_unread(
    group: Sequence[Entry], seen: Seen, options: Options, hashes: dict[str, str] | None = None
) -> Iterator[Planned]:
    """As `_plan_item`, without a look into any file: what has to be embedded, or read to know that,
    stays as it is. What is in memory already is hashed here."""
    regions = [entry for entry in group if not isinstance(entry, Failure)]
    if regions and isinstance(regions[0][0].content, Path):
        id = regions[0][0].id
        channels = _summed_channels(id, regions, options)
        summaries = [(id, Region("summary", channel=channel).key) for channel in channels]
        settled = all(_plan_by_name(*pair, seen, options) is not None for pair in regions)
        if not settled or any(key not in seen.rows for key in summaries):
            yield UnreadItem(tuple(group), seen.of(id))
            return
    planned = list(_plan_item(group, seen, options, hashes))
    if any(isinstance(one, tuple) for one in planned):
        yield UnreadItem(tuple(group), seen.of(regions[0][0].id))
    else:
        yield from planned


@dataclass(frozen=True, slots=True)
class ContentHash(Note):
    """The content hash of the item whose regions follow."""

    id: str
    content: str


@dataclass(frozen=True, slots=True)
class ContentChanged(Note):
    """An item whose rows are of another content; the new content's hash."""

    id: str
    content: str


@dataclass(frozen=True, slots=True)
class FileMoved(Note):
    """A file with rows under a former id, which is at another place now."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class KnownFailure(Note):
    """A region that failed in an earlier run, and is not tried again: its content is the same."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class RegionUnchanged(Note):
    """A region that the store holds, and new values of columns that can be revised. mended: the
    item had failed meanwhile, and can be read now."""

    key: Key
    revised: dict[str, Any]
    mended: bool = False


@dataclass(frozen=True, slots=True)
class SpanAgain(Note):
    """A further annotation of the region before it, whose outcome is its own too."""

    item: Item
    region: Region


@dataclass(frozen=True, slots=True)
class FormerAnnotations(Note):
    """Rows of further annotations that their spans had in an earlier run, and have no longer."""

    keys: tuple[Key, ...]


class _Annotations:
    """The further annotations of a run's spans, and those that the store has of them besides."""

    def __init__(self) -> None:
        self._given: set[Key] = set()
        self._stored: set[Key] = set()
        self._spans: set[Key] = set()  # since the last comparison
        self._unsure: set[str] = set()  # items with a row that cannot be used

    def add(self, group: Sequence[Entry]) -> None:
        for entry in group:
            if isinstance(entry, Failure):
                self._unsure.add(entry.id)
                continue
            item, region = entry
            self._spans.add((item.id, region.span.key))
            if region.annotation:
                self._given.add((item.id, region.key))

    def compare(self, seen: Seen) -> None:
        """Note what the store has of the spans that came since."""
        for id, key in seen.rows:
            if "#" in key and (id, span_of(unpatched(key))) in self._spans:
                self._stored.add((id, key))
        self._spans.clear()

    def former(self) -> tuple[Key, ...]:
        former = (key for key in self._stored if (key[0], unpatched(key[1])) not in self._given)
        return tuple(sorted(key for key in former if key[0] not in self._unsure))


@dataclass(frozen=True, slots=True)
class ItemEnd(Note):
    """The last region of an item was given; a summary is made of each of these channels."""

    channels: tuple[int | None, ...] = ()


def _plan_item(
    group: Sequence[Entry], seen: Seen, options: Options, hashes: dict[str, str] | None = None
) -> Iterator[Planned]:
    """All regions of one item; those that failed already stay in their places. hashes: of contents
    that were read, by id."""
    regions = [entry for entry in group if not isinstance(entry, Failure)]
    if not regions:
        yield from group
        return
    item, hashes = regions[0][0], {} if hashes is None else hashes
    if options.summary is not None and any(region.box for _, region in regions):
        group = sorted(group, key=_upper_edge)
        regions = [entry for entry in group if not isinstance(entry, Failure)]
    planned: list[list[Planned]] = [
        [entry] if isinstance(entry, Failure) else _plan_region(*entry, seen, options, hashes)
        for entry in group
    ]
    channels = _summed_channels(item.id, regions, options)
    keys = [(item.id, Region("summary", channel=channel).key) for channel in channels]
    embeds = any(isinstance(notes[-1], tuple) for notes in planned)
    if not (embeds or any(key not in seen.rows for key in keys)):
        channels = ()
        yield from _revised_summaries(item, keys, seen)
    if channels:  # a summary needs the vectors of all parts, also of those that the store has
        planned = [
            [entry] if isinstance(notes[-1], RegionUnchanged) else notes
            for entry, notes in zip(group, planned, strict=True)
        ]
        hashes = hashes or _stored_hash(item, regions, seen)
    if item.id in hashes:
        yield ContentHash(item.id, hashes[item.id])
    for notes in _spans_once(planned):
        yield from notes
    yield ItemEnd(channels)


def _revised_summaries(item: Item, keys: Sequence[Key], seen: Seen) -> Iterator[RegionUnchanged]:
    """Summaries of an unchanged item that get another time."""
    when = item.recorded_at
    for key in keys if when is not None else ():
        if new := _new_metadata(item, key, seen):
            yield RegionUnchanged(key, new)


def _former_id(group: Sequence[Entry]) -> str | None:
    """The id that 0.1.0 gave to a text of a table."""
    return next((former_id(e[0]) for e in group if not isinstance(e, Failure)), None)


def _under(id: str, group: Sequence[Entry]) -> list[Entry]:
    """The regions of an item under another id."""
    return [
        replace(one, id=id) if isinstance(one, Failure) else (replace(one[0], id=id), one[1])
        for one in group
    ]


def _upper_edge(entry: Entry) -> tuple[int, ...]:
    """Where a box begins, page by page and from above, so that their order is that of the picture
    and not of a table."""
    if isinstance(entry, Failure):
        return ()
    page, box = entry[1].page or 0, entry[1].box or (0, 0, 0, 0)
    return page, box[1], box[0], box[3], box[2]


def _spans_once(planned: Sequence[list[Planned]]) -> Iterable[list[Planned]]:
    """The same, but each span is embedded once: further annotations of it follow as notes."""
    embedded: dict[Region, list[Planned]] = {}
    found: list[list[Planned]] = []
    for notes in planned:
        pair = notes[-1]
        if isinstance(pair, tuple) and pair[1].span in embedded:
            embedded[pair[1].span] += [*notes[:-1], SpanAgain(*pair)]
            continue
        if isinstance(pair, tuple):
            embedded[pair[1].span] = notes
        found.append(notes)
    return found


def _summed_channels(
    id: str, regions: Sequence[tuple[Item, Region]], options: Options
) -> tuple[int | None, ...]:
    """The channels of an item that have a summary; an item that is one whole row has none."""
    chosen = options.summarised is None or options.summarised(id)
    cut = options._patched or any(region.kind != "whole" for _, region in regions)
    if options.summary is None or not chosen or not cut:
        return ()
    return tuple(dict.fromkeys(region.channel for _, region in regions))


def _plan_region(
    item: Item, region: Region, seen: Seen, options: Options, hashes: dict[str, str]
) -> list[Planned]:
    """One region's pair, or a note on why it is not embedded. hashes: of contents read so far, by
    id."""
    if (notes := _plan_by_name(item, region, seen, options)) is not None:
        return notes
    rows, mended = seen.keys((item.id, region.key)), item.id in seen.doubtful
    known = seen.rows[rows[0]] if rows else None
    try:
        if item.id not in hashes:
            hashes[item.id] = _read_hash(item)
    except ItemError as error:
        return [Failure.of(item, region, error)]
    content = hashes[item.id]
    if known is None:
        return [(item, region)]
    if known.content_hash != content:
        return [ContentChanged(item.id, content), (item, region)]
    stat = {} if _same_file(known, item) else {"size": item.size, "mtime_ns": item.mtime_ns}
    return [RegionUnchanged(row, stat | _new_metadata(item, row, seen), mended) for row in rows]


def _plan_by_name(item: Item, region: Region, seen: Seen, options: Options) -> list[Planned] | None:
    """Notes on why a region is not embedded, by its file's size and time; None where its content
    has to be read."""
    key = item.id, region.key
    failed, rows = seen.failures.get(key), seen.keys(key)
    known = seen.rows[rows[0]] if rows else None
    # 0.1.0 took a text's second line for a failure of the first one, which has its row.
    has_row = known is not None and isinstance(item.content, str)
    again = options.retry_failed or has_row
    if failed is not None and not again and _same_file(failed, item):
        return [KnownFailure(failed)]
    mended = item.id in seen.doubtful
    if known is not None and item.size is not None and _same_file(known, item):
        return [RegionUnchanged(row, _new_metadata(item, row, seen), mended) for row in rows]
    return None


def _stored_hash(item: Item, regions: Sequence[tuple[Item, Region]], seen: Seen) -> dict[str, str]:
    """The hash that the stored rows of an unchanged item have, by its id."""
    known = (seen.rows[row] for _, region in regions for row in seen.keys((item.id, region.key)))
    stored = next((row.content_hash for row in known if row.content_hash), None)
    return {item.id: stored or _content_hash(item)}


class _RowAssembler:
    """Collects results and notes in the batch that is committed next."""

    def __init__(
        self, classifier: Classifier, options: Options, tick: Tick, files: KnownFiles | None
    ) -> None:
        self._classifier, self._options, self._tick = classifier, options, tick
        self._files, self._counted = files, 0
        self._content = ""  # hash of the item whose regions come
        self._sums: dict[int | None, Summing] = {}
        self._latest: list[Outcome] | Failure | None = None
        self._patches: list[Outcome] = []  # of a region, until all of them are there
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            Outcome: self._add_outcome,
            Failure: self._add_failure,
            KnownFailure: self._add_known,
            ContentHash: self._begin,
            ContentChanged: self._change,
            FileMoved: self._move,
            RegionUnchanged: self._skip,
            SpanAgain: self._add_again,
            FormerAnnotations: self._add_former,
            ItemEnd: self._end,
            Pause: lambda note: None,
            OneByOne: lambda note: None,
        }
        self.batch = CommitBatch()

    def take(self, result: Outcome | Failure | Note) -> None:
        """One result or note, in the order of the plan."""
        self._handlers[type(result)](result)
        self.count_known()

    def count_known(self) -> None:
        """Count the files that the walk has left out meanwhile."""
        new = self._files.passed - self._counted if self._files else 0
        self._counted += new
        self.batch.skipped += new
        for _ in range(new):
            self._tick(False, 0.0)

    def _begin(self, note: ContentHash) -> None:
        self._content = note.content

    def _change(self, note: ContentChanged) -> None:
        self.batch.changed[note.id] = note.content

    def _move(self, note: FileMoved) -> None:
        self.batch.moved[note.old] = note.new

    def _skip(self, note: RegionUnchanged) -> None:
        self.batch.skipped += 1
        self.batch.updated += bool(note.revised.keys() - {"size", "mtime_ns"})
        if note.revised:
            self.batch.revised[note.key] = note.revised
        if note.mended:
            self.batch.mended.add(note.key)
        self._tick(False, 0.0)

    def _add_former(self, note: FormerAnnotations) -> None:
        self.batch.former = note.keys

    def _add_failure(self, failure: Failure) -> None:
        self._latest = failure
        self.batch.failures.append(failure)
        self._tick(False, 0.0)

    def _add_known(self, note: KnownFailure) -> None:
        self._latest = note.failure
        self.batch.known.append(note.failure)
        self._tick(False, 0.0)

    def _add_again(self, note: SpanAgain) -> None:
        if isinstance(self._latest, Failure):
            self._add_failure(replace(self._latest, region=note.region.key))
            return
        assert self._latest is not None  # the plan puts it behind its span
        again = [
            replace(one, item=note.item, region=_of_annotation(one.region, note.region))
            for one in self._latest
        ]
        self.batch.rows += [self._row(one) for one in again]
        for one in again:
            self.batch.truncated += one.truncated is not None
            self._tick(True, 0.0)

    def _add_outcome(self, outcome: Outcome) -> None:
        self._patches.append(outcome)
        if outcome.more:
            return
        # All in one commit: a region that has a patch in the store has all of them there.
        self._latest, self._patches = self._patches, []
        self.batch.rows += [self._row(one) for one in self._latest]
        for one in self._latest:
            self._count(one)

    def _count(self, outcome: Outcome) -> None:
        batch, region, seconds = self.batch, outcome.region, 0.0
        if outcome.start is not None and outcome.end is not None:
            seconds = outcome.end - outcome.start
        batch.truncated += outcome.truncated is not None
        if outcome.notes:
            batch.notes[outcome.item.id] = "; ".join(outcome.notes)
        batch.seconds += seconds
        if (how := self._options.summary) and region.kind != "whole":
            new = Summing(how, outcome.item, region.channel)
            self._sums.setdefault(region.channel, new).add(outcome)
        self._tick(True, seconds)

    def _end(self, note: ItemEnd) -> None:
        for channel in note.channels:
            summary = self._sums[channel].outcome() if channel in self._sums else None
            if summary is not None:
                self.batch.rows.append(self._row(summary))
        self._sums.clear()

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        self.batch.size += outcome.item.held + outcome.vector.nbytes + outcome.class_logits.nbytes
        return row_of(self._classifier, outcome, self._content, self._options.logits)


def _of_annotation(region: Region, other: Region) -> Region:
    """A region, or a patch of it, for another annotation of the same span."""
    return other if region.patch is None else replace(region, annotation=other.annotation)


def _chunks(
    regions: Iterable[Entry], most_seconds: float = math.inf, most_bytes: float = math.inf
) -> Iterator[list[tuple[str, list[Entry]]]]:
    """Regions by item, with its id, some items at a time: those that there are where a pause comes,
    and behind them an empty chunk; fewer where they come slowly, so that none waits for longer, or
    hold more bytes themselves."""
    chunk: list[tuple[str, list[Entry]]] = []
    size, held, since = 0, 0, time.monotonic()
    for entry in regions:
        if isinstance(entry, Pause):  # the last item may have more regions
            if chunk[:-1]:
                yield chunk[:-1]
                chunk = chunk[-1:]
                size, held = len(chunk[0][1]), _held(chunk[0][1][0])
            yield []
            continue
        id = entry.id if isinstance(entry, Failure) else entry[0].id
        if not chunk or chunk[-1][0] != id:
            late = chunk and time.monotonic() - since > most_seconds
            if size >= CHUNK or late or held > most_bytes:
                yield chunk
                chunk, size, held = [], 0, 0
            if not chunk:
                since = time.monotonic()
            chunk.append((id, []))
            held += _held(entry)
        chunk[-1][1].append(entry)
        size += 1
    if chunk:
        yield chunk


def _held(entry: object) -> int:
    """Bytes that an entry's item holds itself."""
    return entry[0].held if isinstance(entry, tuple) else 0


def _new_metadata(item: Item, key: Key, seen: Seen) -> dict[str, Any]:
    """Metadata of an unchanged region that differs from what is stored."""
    stored = seen.metadata.get(key, {})
    now = {**item.metadata, **at(item, seen.rows[key].start)}
    return {
        name: value
        for name, value in now.items()
        if stored.get(name) != value
        and not ((value is None or value != value) and stored.get(name) is None)  # NaN is no value
    }


def _same_file(stored: Known | Failure, item: Item) -> bool:
    return stored.size == item.size and stored.mtime_ns == item.mtime_ns


def _read_hash(item: Item) -> str:
    """The content hash; what a disk or a network refuses once is asked for a second time.

    Raises:
        ItemError: refused again; a PassingFault if the system is at fault.
    """
    try:
        return _content_hash(item)
    except (OSError, PassingFault):
        try:
            return _content_hash(item)
        except OSError as error:
            raise item_error(error) from error


def _content_hash(item: Item) -> str:
    content = item.content
    if isinstance(content, Path) and is_object(content):
        return str(content.content_hash)  # type: ignore[attr-defined]
    if isinstance(content, Path):
        file_size(content)  # refuses a pipe, which could block for ever
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return item.id.removeprefix("sha256:")
