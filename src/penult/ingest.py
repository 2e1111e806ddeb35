"""Items in, batches of rows out: what is new is embedded, what is known is left alone.

A pure generator. It asks two questions of whoever stores the rows ("what do you know of these
ids?", "what failed before?") and knows no store; whoever runs it commits each step.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penult.classifiers.base import REGRESSION, predict
from penult.embedder import Embedder
from penult.errors import DecodeError, UsageError
from penult.regions import Region
from penult.rows import Known
from penult.runner import Outcome
from penult.sources import Failure, Item

Key = tuple[str, str]

CHUNK = 256  # items per question to the store


@dataclass(frozen=True, slots=True)
class Seen:
    """What a store knows: rows by (id, region), their metadata, and failures."""

    rows: Mapping[Key, Known] = field(default_factory=dict)
    metadata: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[Key, Failure] = field(default_factory=dict)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = np.concatenate(values).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


Lookup = Callable[[Sequence[str]], Seen]


@dataclass(slots=True)
class Step:
    """What is to be committed next.

    changed: ids whose content is another now, with its hash: their old rows go before the new
    ones come. revised: regions whose content is unchanged, with what else is new of them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    revised: dict[Key, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0  # of audio or video in the new rows

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """The rows as one record batch of the collection's schema."""
        return pa.RecordBatch.from_arrays(
            [_column([row.get(name) for row in self.rows], schema.field(name).type)
             for name in schema.names],
            schema=schema,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How to ingest. Rows are handed on after `commit_rows` or `commit_seconds`, so that a killed
    run loses no more than that."""

    logits: str = "all"
    max_seconds: float | None = None
    retry_failed: bool = False
    commit_rows: int = 256
    commit_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"a limit of {self.max_seconds:g} s lets nothing through; give more")


def ingest(
    embedder: Embedder,
    pairs: Iterable[tuple[Item, Region] | Failure],
    lookup: Lookup,
    options: Options = Options(),
    tick: Callable[[bool, float], None] = lambda embedded, seconds: None,
) -> Iterator[Step]:
    """Embed what the store does not have yet; `tick` hears of every item, whether it was embedded
    and how many seconds of media that were.

    A file whose size and time are unchanged is not read; one whose time is new is hashed, and
    embedded again only if the hash is new. The last step is given even if it is empty.
    """
    hashes = _Hashes()
    step, since = Step(), time.monotonic()
    try:
        for chunk in _chunks(pairs):
            seen = lookup([pair.id if isinstance(pair, Failure) else pair[0].id for pair in chunk])
            for pair in chunk:
                rows, seconds = len(step.rows), step.seconds
                _one(embedder, pair, seen, options, hashes, step)
                tick(len(step.rows) > rows, step.seconds - seconds)
                full = len(step.rows) >= options.commit_rows
                if full or time.monotonic() - since > options.commit_seconds:
                    yield step
                    step, since = Step(), time.monotonic()
    except KeyboardInterrupt:
        yield step  # what is done by now is not lost
        raise
    yield step


def _chunks(pairs: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(pairs)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _one(
    embedder: Embedder,
    pair: tuple[Item, Region] | Failure,
    seen: Seen,
    options: Options,
    hashes: _Hashes,
    step: Step,
) -> None:
    """Decide what one pair needs, do it, and note it in `step`."""
    if isinstance(pair, Failure):
        step.failures.append(pair)
        return
    item, region = pair
    key = item.id, region.key
    before = seen.failures.get(key)
    if before is not None and not options.retry_failed and _same_file(before, item):
        step.failures.append(before)
        return
    known = seen.rows.get(key)
    if known is not None and _same_file(known, item) and item.size is not None:
        _revise(item, key, seen, step, {})
        return
    try:
        content = hashes.of(item)
    except OSError as error:
        step.failures.append(
            _failure(item, region, DecodeError(f"cannot be read: {error.strerror}"))
        )
        return
    if known is not None and known.content_hash == content:
        fresh = {} if _same_file(known, item) else {"size": item.size, "mtime_ns": item.mtime_ns}
        _revise(item, key, seen, step, fresh)
        return
    if known is not None:
        step.changed[item.id] = content
    outcome = next(embedder.runner.stream([pair], options.max_seconds))
    if isinstance(outcome, Failure):
        step.failures.append(outcome)
        return
    step.rows.append(_row(embedder, outcome, content, options.logits))
    if outcome.start is not None and outcome.end is not None:
        step.seconds += outcome.end - outcome.start


def _revise(item: Item, key: Key, seen: Seen, step: Step, fresh: dict[str, Any]) -> None:
    """Content is unchanged: keep the vector, and note metadata that is new."""
    stored = seen.metadata.get(key, {})
    fresh |= {
        name: value
        for name, value in item.metadata.items()
        if stored.get(name) != value and not (value is None and name not in stored)
    }
    if fresh:
        step.revised[key] = fresh
    step.skipped += 1


def _same_file(stored: Known | Failure, item: Item) -> bool:
    return stored.size == item.size and stored.mtime_ns == item.mtime_ns


def _failure(item: Item, region: Region, error: Exception) -> Failure:
    return Failure(item.id, region.key, type(error).__name__, str(error), item.size, item.mtime_ns)


def _row(embedder: Embedder, outcome: Outcome, content: str, logits: str) -> dict[str, Any]:
    classifier = embedder.classifier
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


class _Hashes:
    """Content hashes; remembers the last file, since a table's segments often share one."""

    def __init__(self) -> None:
        self._last: tuple[Path, str] | None = None

    def of(self, item: Item) -> str:
        content = item.content
        if isinstance(content, Path):
            if self._last is None or self._last[0] != content:
                with content.open("rb") as file:
                    self._last = content, hashlib.file_digest(file, "sha256").hexdigest()
            return self._last[1]
        if isinstance(content, str):
            return hashlib.sha256(content.encode()).hexdigest()
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        return item.id.removeprefix("sha256:")
