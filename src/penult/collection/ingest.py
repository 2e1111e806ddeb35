"""Items in, batches of rows out: new ones are embedded, known ones left alone. Knows no store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penult.collection.schema import Known
from penult.data.decode import TIME_LIMIT, Decoding
from penult.data.files import file_size
from penult.data.items import Failure, Item
from penult.data.regions import Region
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, Stopwatch
from penult.errors import DecodeError, ItemError, UsageError
from penult.models.base import REGRESSION, Classifier, predict

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a store knows: rows by (id, region), their metadata, and failures."""

    rows: Mapping[Key, Known] = field(default_factory=dict)
    metadata: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[Key, Failure] = field(default_factory=dict)


@dataclass(slots=True)
class CommitBatch:
    """What is to be committed next.

    changed: ids whose content is another now, with its hash: their old rows go before the new
    ones come. revised: regions whose content is unchanged, with what else is new of them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    revised: dict[Key, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    truncated: int = 0
    seconds: float = 0.0  # of audio or video in the new rows

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """The rows as one record batch of the collection's schema."""
        return pa.RecordBatch.from_arrays(
            [_column([row.get(name) for row in self.rows], schema.field(name).type)
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
    prediction = predict(classifier.kind, classifier.labels, values)
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
    }
    if logits == "all":
        row["logits"] = values
    elif logits != "none":
        best = np.argsort(-values, kind="stable")[: int(logits.partition(":")[2])]
        row["logits"] = [{"index": int(i), "logit": float(values[i])} for i in best]
    return row


class Summing:
    """The summary of one item's windows, or of one channel's: their mean, each weighted by the
    seconds that no earlier window covered, or their maximum, number by number."""

    def __init__(self, how: str, item: Item, channel: int | None) -> None:
        self.how, self.item, self.channel = how, item, channel
        self._sums: list[Any] = []
        self._weight = 0.0
        self._start: float | None = None
        self._end: float | None = None

    def add(self, outcome: Outcome) -> None:
        """One more window, in the order of their starts."""
        weight = 1.0
        if outcome.start is not None and outcome.end is not None:
            covered = outcome.start if self._end is None else max(self._end, outcome.start)
            weight = max(0.0, outcome.end - covered)
            self._start = outcome.start if self._start is None else self._start
            self._end = max(self._end or 0.0, outcome.end)
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
        return Outcome(self.item, region, tuple(vectors), logits, self._start, self._end)


Pair = tuple[Item, Region]
Lookup = Callable[[Sequence[str]], Seen]
Tick = Callable[[bool, float], None]

CHUNK = 1000  # regions per question to the store


@dataclass(frozen=True, slots=True)
class Options:
    """How to ingest. Rows are handed on after `commit_rows` or `commit_seconds`, so that a killed
    run loses no more than that.

    layout: how items are cut into windows or tiles. summary: one more row for each item that is
    cut, the mean or maximum of its parts; `summarised` says for which ids, None is all of them.
    alone: one region in each forward pass. max_seconds, workers, time_limit: see `Decoding`.
    """

    logits: str = "all"
    max_seconds: float | None = None
    retry_failed: bool = False
    layout: Layout = field(default_factory=Layout)
    summary: Literal["mean", "max"] | None = None
    summarised: Callable[[str], bool] | None = None
    alone: bool = False
    workers: int = 0
    time_limit: float = TIME_LIMIT
    commit_rows: int = 256
    commit_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"a limit of {self.max_seconds:g} s lets nothing through; give more")
        if not self.time_limit > 0:
            raise UsageError(f"no file is decoded in {self.time_limit:g} s; give more")
        if self.summary not in (None, "mean", "max"):
            raise UsageError(f"no summary {self.summary!r}; choose mean or max")

    @property
    def decoding(self) -> Decoding:
        """How items are opened."""
        return Decoding(self.max_seconds, self.workers, self.time_limit)


def ingest(
    embedder: Embedder,
    pairs: Iterable[Pair | Failure],
    lookup: Lookup,
    options: Options = Options(),
    tick: Tick = lambda embedded, seconds: None,
    watch: Stopwatch | None = None,
) -> Iterator[CommitBatch]:
    """Embed what the store does not have yet; `tick` hears of every region, whether it was
    embedded and how many seconds of media that were; `watch` keeps the seconds of the run.

    A file whose size and time are unchanged is not read; one whose time is new is hashed, and
    embedded again only if the hash is new. The last step is given even if it is empty.
    """
    classifier = embedder.classifier
    regions = options.layout.apply(pairs, classifier.modality, classifier.rate)
    deciding = _IngestPlanner(lookup, options)
    gathering = _RowAssembler(embedder, options, deciding.hashes)
    since = time.monotonic()
    try:
        wanted = deciding.wanted(regions)
        outcomes = embedder.runner.stream(wanted, options.decoding, options.alone, watch=watch)
        for result in outcomes:
            rows, seconds = len(gathering.step.rows), gathering.step.seconds
            gathering.take(result)
            step = gathering.step
            if isinstance(result, Outcome | Failure | _Unchanged):
                tick(len(step.rows) > rows, step.seconds - seconds)
            late = time.monotonic() - since > options.commit_seconds
            if len(step.rows) >= options.commit_rows or late:
                yield step
                gathering.step, since = CommitBatch(), time.monotonic()
    except KeyboardInterrupt:
        yield gathering.step  # what is done by now is not lost
        raise
    yield gathering.step


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """A region that the store has, and what else is new of it."""

    key: Key
    fresh: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Changed:
    """An item whose content is another now, with its hash."""

    id: str
    content: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """All regions of an item were given; these channels of it are summed up."""

    item: Item
    channels: tuple[int | None, ...] = ()


class _IngestPlanner:
    """Decides, region by region, what has to be embedded; the rest goes on as a note."""

    def __init__(self, lookup: Lookup, options: Options) -> None:
        self._lookup, self._options = lookup, options
        self.hashes = _Hashes()

    def wanted(self, regions: Iterable[Pair | Failure]) -> Iterator[Pair | Failure | Any]:
        """Pairs to embed, and in their places notes on what is not to be embedded."""
        for chunk in _chunks(regions):
            seen = self._lookup(
                [entry.id if isinstance(entry, Failure) else entry[0].id for entry, *_ in chunk]
            )
            for group in chunk:
                if isinstance(group[0], Failure):
                    yield from group
                else:
                    yield from self._item(group, seen)

    def _item(self, group: list[Any], seen: Seen) -> Iterator[Pair | Failure | Any]:
        item = group[0][0]
        decided = [self._one(one, region, seen) for one, region in group]
        if not self._is_summed(item.id) or all(region.kind == "whole" for _, region in group):
            yield from (note for notes in decided for note in notes)
            yield _Ended(item)
            return
        channels = tuple(dict.fromkeys(region.channel for _, region in group))
        summaries = [(item.id, Region("summary", channel=channel).key) for channel in channels]
        again = any(isinstance(notes[-1], tuple) for notes in decided) or any(
            key not in seen.rows for key in summaries
        )
        for pair, notes in zip(group, decided, strict=True):
            # A summary needs the vectors of all parts, also of those that the store has.
            yield from [pair] if again and isinstance(notes[-1], _Unchanged) else notes
        yield _Ended(item, channels if again else ())

    def _is_summed(self, id: str) -> bool:
        asked = self._options.summarised
        return self._options.summary is not None and (asked is None or asked(id))

    def _one(self, item: Item, region: Region, seen: Seen) -> list[Pair | Failure | Any]:
        """What one region needs: its pair, or a note on why it needs nothing."""
        key = item.id, region.key
        before = seen.failures.get(key)
        if before is not None and not self._options.retry_failed and _same_file(before, item):
            return [before]
        known = seen.rows.get(key)
        if known is not None and _same_file(known, item) and item.size is not None:
            return [_Unchanged(key, _news(item, key, seen))]
        try:
            content = self.hashes.of(item)
        except (OSError, ItemError) as error:
            reason = error
            if isinstance(error, OSError):
                reason = DecodeError(f"cannot be read: {error.strerror}")
            return [Failure.of(item, region, reason)]
        if known is None:
            return [(item, region)]
        if known.content_hash != content:
            return [_Changed(item.id, content), (item, region)]
        fresh = {} if _same_file(known, item) else {"size": item.size, "mtime_ns": item.mtime_ns}
        return [_Unchanged(key, fresh | _news(item, key, seen))]


class _RowAssembler:
    """Puts what the runner gives into the step that is committed next."""

    def __init__(self, embedder: Embedder, options: Options, hashes: _Hashes) -> None:
        self._classifier, self._options, self._hashes = embedder.classifier, options, hashes
        self._sums: dict[int | None, Summing] = {}
        self.step = CommitBatch()

    def take(self, result: Any) -> None:
        """One result or note, in the order of the regions."""
        step = self.step
        if isinstance(result, Failure):
            step.failures.append(result)
        elif isinstance(result, _Changed):
            step.changed[result.id] = result.content
        elif isinstance(result, _Unchanged):
            step.skipped += 1
            if result.fresh:
                step.revised[result.key] = result.fresh
        elif isinstance(result, _Ended):
            self._sum_up(result)
        else:
            self._row(result)

    def _row(self, outcome: Outcome) -> None:
        item, region = outcome.item, outcome.region
        self._add(outcome)
        self.step.truncated += outcome.truncated is not None
        if outcome.start is not None and outcome.end is not None:
            self.step.seconds += outcome.end - outcome.start
        if self._options.summary and region.kind != "whole":
            how = self._options.summary
            of = self._sums.setdefault(region.channel, Summing(how, item, region.channel))
            of.add(outcome)

    def _sum_up(self, ended: _Ended) -> None:
        for channel in ended.channels:
            summing = self._sums.get(channel)
            summary = summing.outcome() if summing is not None else None
            if summary is not None:
                self._add(summary)
        self._sums.clear()
        self._hashes.forget(ended.item)

    def _add(self, outcome: Outcome) -> None:
        content = self._hashes.of(outcome.item)
        self.step.rows.append(row_of(self._classifier, outcome, content, self._options.logits))


def _chunks(regions: Iterable[Pair | Failure]) -> Iterator[list[list[Any]]]:
    """Regions, one list for each item, some items at a time."""
    chunk: list[list[Any]] = []
    size = 0
    for _, group in groupby(regions, key=lambda e: e.id if isinstance(e, Failure) else e[0].id):
        chunk.append(list(group))
        size += len(chunk[-1])
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _news(item: Item, key: Key, seen: Seen) -> dict[str, Any]:
    """Metadata of an unchanged region that differs from what is stored."""
    stored = seen.metadata.get(key, {})
    return {
        name: value
        for name, value in item.metadata.items()
        if stored.get(name) != value and not (value is None and name not in stored)
    }


def _same_file(stored: Known | Failure, item: Item) -> bool:
    return stored.size == item.size and stored.mtime_ns == item.mtime_ns


class _Hashes:
    """Content hashes of the items that are on their way."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, item: Item) -> str:
        if item.id not in self._known:
            self._known[item.id] = _hash(item)
        return self._known[item.id]

    def forget(self, item: Item) -> None:
        self._known.pop(item.id, None)


def _hash(item: Item) -> str:
    content = item.content
    if isinstance(content, Path):
        file_size(content)  # refuses a pipe, which could block for ever
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return item.id.removeprefix("sha256:")
