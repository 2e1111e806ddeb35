"""What a run would cost before it begins: items, hours, rows, disk and time, and failures that the
headers foretell. Embeds nothing into the collection."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from penult.collection.add import in_roots, settle, survey
from penult.collection.ingest import Options, decoding_of
from penult.collection.reader import Reader
from penult.data.audio import AudioInfo
from penult.data.decode import DecodeTarget, HeaderPart, described
from penult.data.items import Failure, Item, is_object
from penult.data.regions import Region
from penult.data.roots import RootOptions
from penult.data.sources import Source
from penult.data.workers import headers_in_workers
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome
from penult.embedding.source_sample import SourceSample
from penult.errors import ItemError, TooLong

SAMPLE = 32  # regions that are measured, after some to warm up
_WARM = 4
_BESIDE = 300  # bytes of a row besides its numbers, about
_PARTS: dict[str, HeaderPart] = {"audio": "length", "video": "length", "image": "size"}


@dataclass(slots=True)
class RunPlan:
    """What a run would do and take.

    items: files and other things, failures included. rows: regions to embed, those of files
    that changed included. unchanged: rows that are there. seconds: of media, of all items. disk:
    bytes of the new rows, about; free: bytes where the collection lies, None in
    an object store. time: seconds that the new
    rows take, by `measured` rows here, on the machine as it is now; None without any. opening:
    seconds until the first few rows were there, which opens the model; what the rows took is
    the smaller part of it, and what comes before (libraries, proof) is not in it. failures:
    items that will fail, by their headers. known_failures: that failed before, or in the plan.
    """

    items: int = 0
    rows: int = 0
    unchanged: int = 0
    known_failures: int = 0
    seconds: float = 0.0
    disk: int = 0
    free: int | None = 0
    time: float | None = None
    opening: float = 0.0
    measured: int = 0
    engine: str = ""
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult embed --plan --json` prints it."""
        return {
            "items": self.items,
            "rows": self.rows,
            "unchanged": self.unchanged,
            "known_failures": self.known_failures,
            "hours": self.seconds / 3600,
            "bytes": self.disk,
            "free": self.free,
            "seconds": self.time,
            "seconds_opening": self.opening,
            "measured": self.measured,
            "engine": self.engine,
            "failures": [one.to_dict() for one in self.failures],
        }


def plan_run(
    reader: Reader,
    embedder: Embedder,
    source: Source,
    options: Options = Options(),
    roots: RootOptions = RootOptions(),
    dtype: str = "float32",
) -> RunPlan:
    """Look at all headers, and measure a few regions.

    Raises:
        FingerprintMismatch: the collection holds another embedder's vectors.
    """
    found, _ = survey(reader, embedder, source, options, roots)
    did = RunPlan(rows=found.new + found.touched, unchanged=found.unchanged)
    did.known_failures = found.known_failures
    source = in_roots(reader, source, roots)
    _look_at_headers(embedder, source, options, did)
    did.disk = did.rows * _row_bytes(embedder, options.logits, dtype)
    did.free = None
    if not is_object(reader.path):
        did.free = shutil.disk_usage(_existing(reader.path)).free
    if did.rows:
        settle(reader, embedder, SourceSample(source, options.layout, decoding_of(options)))
        _measure(embedder, source, options, did)
    return did


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _look_at_headers(embedder: Embedder, source: Source, options: Options, did: RunPlan) -> None:
    """Count items and seconds, and what will fail."""
    modality, last = embedder.classifier.modality, None
    target = DecodeTarget(modality, embedder.classifier.rate, header=_PARTS.get(modality))
    describe = headers_in_workers(decoding_of(options))
    wanted = bool(target.header)
    for _, entry, header in described(
        ((None, one) for one in source), target, lambda _, region: wanted, describe
    ):
        if not isinstance(entry, tuple | Failure):
            continue
        id = entry.id if isinstance(entry, Failure) else entry[0].id
        did.items += id != last
        last = id
        if isinstance(entry, Failure):
            did.failures.append(entry)
        elif (failed := _failure(entry[0], entry[1], header, options)) is not None:
            did.failures.append(failed)
        else:
            did.seconds += _length(entry[1], header)


def _failure(item: Item, region: Region, header: Any, options: Options) -> Failure | None:
    if isinstance(header, ItemError):
        return Failure.of(item, region, header)
    length, limit = _length(region, header), options.max_seconds
    if limit is not None and options.layout.window is None and length > limit:
        words = f"lasts {length:.6g} s, longer than the limit of {limit:.6g} s; --window cuts it"
        return Failure.of(item, region, TooLong(words))
    return None


def _length(region: Region, header: Any) -> float:
    """Seconds of a region; 0 of what has none."""
    whole = header.seconds if isinstance(header, AudioInfo) else header
    if not isinstance(whole, float):
        return 0.0
    return (whole if region.end is None else region.end) - (region.start or 0.0)


def _row_bytes(embedder: Embedder, logits: str, dtype: str) -> int:
    """Of a row: its vector, its logits, and what stands beside them."""
    count = len(embedder.classifier.labels)
    numbers = embedder.dim * (2 if dtype == "float16" else 4)
    if logits == "all":
        numbers += 4 * count
    elif logits != "none":
        numbers += 8 * int(logits.partition(":")[2])
    return numbers + _BESIDE


def _measure(embedder: Embedder, source: Source, options: Options, did: RunPlan) -> None:
    """The time of the run by that of a few regions, once the model is warm."""

    def regions() -> Iterator[Any]:
        entries = (one for one in source if not isinstance(one, Failure))
        for one in options.layout.of(entries, embedder.classifier.input):
            if isinstance(one, tuple):
                yield one

    pairs = list(islice(regions(), _WARM + SAMPLE))
    decoding = decoding_of(options)
    began = time.perf_counter()
    for _ in embedder.runner.stream(pairs[:_WARM], decoding, options.alone):
        pass
    did.opening, began = time.perf_counter() - began, time.perf_counter()
    measured = embedder.runner.stream(pairs[_WARM:] or pairs, decoding, options.alone)
    did.measured = sum(isinstance(one, Outcome) for one in measured)
    if did.measured:
        did.time = (time.perf_counter() - began) / did.measured * did.rows
    did.engine = embedder.runner.mode.words
