"""Chunks of planned items: what a worker of another machine is given and gives back, and the proof
that its vectors are those of the machine that asks. Knows no cluster.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.collection.ingest import (
    CommitBatch,
    Options,
    Planned,
    UnreadItem,
    assemble,
    execute,
    pack,
)
from penult.data.files import file_size
from penult.data.items import Failure, Item, Note, OneByOne, is_object
from penult.data.regions import WHOLE
from penult.embedding.behaviour import answers
from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.fingerprint import Fingerprint, differing
from penult.embedding.runner import Outcome, Stopwatch
from penult.engines.base import EXACT
from penult.engines.batching import Batch
from penult.errors import REFUSALS, PassingFault, PenultError, StoreError, cause
from penult.extras import package_versions
from penult.models.synthetic import noise

PROBES = 3
OTHER_RATE = 44_100  # of the sound that is resampled
TOLERANCES = {EXACT: 1e-5}  # by precision: relative to the length of a vector
TOLERANCE = 1.5e-2  # of others: a cosine of 0.9999, which is what they keep to torch in fp32
PART_ROWS, PART_SECONDS = 4096, 15.0  # of a chunk, in one part
DEATHS = 3  # of workers, with one item, behind which it is given up

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """What a worker opens: as `open_embedder` is called. The spec has to mean the same model on
    all machines; that it does is proved. folder: that relative paths start at, where a machine has
    it."""

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""

    def open(self) -> Embedder:
        """The embedder, on this machine."""
        with suppress(OSError):
            os.chdir(self.folder or ".")
        return open_embedder(self.spec, **self.options)


@dataclass(frozen=True, slots=True)
class MachineProof:
    """Vectors of synthetic items (`PROBES` or one more, d), and what else has to be equal.
    unread: why a file of the run cannot be read there."""

    vectors: FloatArray
    fingerprint: dict[str, str]
    precision: str
    versions: dict[str, str]
    unread: str = ""

    @classmethod
    def of(cls, embedder: Embedder, sample: Path | None = None) -> MachineProof:
        """Those of this machine. sample: a file that it has to read.

        Raises:
            StoreError: the model takes no synthetic item, so that nothing can be compared.
        """
        return cls(
            np.array(_synthetic_vectors(embedder), np.float32),
            dict(embedder.fingerprint),
            embedder.precision,
            package_versions(),
            "" if sample is None else unreadable(sample),
        )

    def refusal(self, other: MachineProof) -> str:
        """Why another machine's rows cannot stand beside those of this one, in words; empty if they
        can."""
        fields = differing(Fingerprint(self.fingerprint), Fingerprint(other.fingerprint))
        if fields:
            return (
                f"it has another embedder (other: {', '.join(fields)}){self._other_versions(other)}"
            )
        if other.unread:
            return f"{other.unread}. All machines have to find the items at one place and read them"
        if self.vectors.shape != other.vectors.shape:
            return f"its vectors have {other.vectors.shape[-1]} numbers, and {self.dim} are needed"
        far = distances(other.vectors, self.vectors)
        allowed = TOLERANCES.get(self.precision, TOLERANCE)
        if not far.max() <= allowed:
            return (
                f"its vectors differ by {far.max():.1e}, relative to their length, and "
                f"{allowed:.1e} is allowed{self._other_versions(other)}"
            )
        return ""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.vectors.shape[-1])

    def _other_versions(self, other: MachineProof) -> str:
        names = sorted({*self.versions, *other.versions})
        differing = [
            f"{name} {other.versions.get(name, 'missing')} there and "
            f"{self.versions.get(name, 'missing')} here"
            for name in names
            if self.versions.get(name) != other.versions.get(name)
        ]
        return f"; it has {', '.join(differing)}" if differing else ""


def unreadable(file: Path) -> str:
    """Why a file cannot be read on this machine, in words; empty if it can be."""
    try:
        if not is_object(file):
            file_size(file)  # refuses a pipe
        with file.open("rb") as opened:
            opened.read(1)
    except (OSError, PenultError) as error:
        reason = cause(error)
        place = "" if str(file) in reason else f" ({file})"
        return f"it cannot read the items: {reason}{place}"
    return ""


def distances(found: FloatArray, wanted: FloatArray) -> npt.NDArray[np.float64]:
    """(n,) distances of vectors (n, d), relative to the length of those that are wanted."""
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(other, axis=1), 1e-30)
    return np.asarray(np.linalg.norm(one - other, axis=1) / lengths)


def _synthetic_vectors(embedder: Embedder) -> list[FloatArray]:
    """Vectors (d,) of synthetic inputs, and of sound at another rate, which is resampled."""
    classifier, found = embedder.classifier, list[FloatArray]()
    try:
        for seed in range(PROBES):
            _, *vectors = embedder.runner.engine(Batch(classifier.example(seed).tensors)).row(0)
            found.append(np.concatenate([one.ravel() for one in vectors]))
    except REFUSALS as error:
        raise StoreError(
            "the model takes no synthetic item, so that the vectors of other machines cannot be "
            f"compared with those of this one: {cause(error)}"
        ) from error
    if classifier.modality == "audio":
        pair = Item("made-up", noise(0, 1.0, OTHER_RATE), rate=OTHER_RATE), WHOLE
        found += [answer.vector for _, answer in answers(embedder.runner, [pair])]
    return found


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items for a worker. regions: how many, before they are read. deaths: how often its worker
    died with it. one_by_one: each region in a pass of its own. number: of this attempt."""

    items: tuple[UnreadItem, ...]
    regions: int
    one_by_one: bool = False
    deaths: int = 0
    number: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether a worker died with it, so that it goes to one that has nothing else."""
        return self.deaths > 0

    def after_death(self, alone: bool) -> tuple[list[Chunk], list[Failure]]:
        """What is to be tried again, and the failures of an item that is given up.

        alone: whether the worker had nothing else. A chunk of several items that its worker died
        with while it was alone is halved, so that the item at fault is found.
        """
        again = replace(self, deaths=self.deaths + 1)
        if not self.is_suspect or not alone:
            return [replace(self, deaths=max(1, self.deaths))], []
        if len(self.items) > 1:
            middle = len(self.items) // 2
            parts = self.items[:middle], self.items[middle:]
            return [
                Chunk(part, sum(len(one.group) for one in part), self.one_by_one, 1)
                for part in parts
            ], []
        if again.deaths < DEATHS:
            return [again], []
        fault = PassingFault(
            f"the worker that embeds it died {again.deaths} times, with nothing else in it; the "
            "next run tries it again"
        )
        return [], self.items[0].failures(fault)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a worker has of a chunk, or the next part of it. more: parts follow. seconds: behind the
    last one, of each part of the work, see `Stopwatch`. elapsed: seconds since the chunk came.
    error: what ended the chunk before its end."""

    batch: CommitBatch
    more: bool
    seconds: Mapping[str, float]
    elapsed: float
    error: PenultError | None = None


@dataclass(slots=True)
class _Running:
    """A chunk that a worker is at."""

    batches: Iterator[CommitBatch] = field(default_factory=lambda: iter(()))
    watch: Stopwatch = field(default_factory=Stopwatch)
    began: float = field(default_factory=time.perf_counter)
    ended: bool = False


class ChunkWorker:
    """Embeds chunks with one embedder, which is opened once. rows: the schema of the rows. A chunk
    with many rows, or that takes long, comes back in parts, so that none of them is large."""

    def __init__(self, model: WorkerModel, rows: pa.Schema, options: Options) -> None:
        self._rows = rows
        self._options = replace(options, commit_rows=PART_ROWS, commit_seconds=PART_SECONDS)
        self._running: dict[int, _Running] = {}
        self._embedder = model.open()

    def prove(self, sample: Path | None = None) -> MachineProof:
        """What has to be equal on all machines, and whether this one can read a file of the run."""
        return MachineProof.of(self._embedder, sample)

    def run(self, chunk: Chunk) -> ChunkResult:
        """The rows and failures of a chunk's items, or the first of them."""
        self._running[chunk.number] = running = _Running()
        results = self._results(chunk, running)
        running.batches = assemble(self._embedder.classifier, results, self._options)
        return self.go_on(chunk.number)

    def go_on(self, number: int) -> ChunkResult:
        """The next part of a chunk that has more."""
        running, batch = self._running[number], CommitBatch()
        error: PenultError | None = None
        try:
            batch = next(running.batches, batch)
            if running.ended:
                next(running.batches, None)  # raises what ended it
        except PenultError as raised:
            error = raised
        except Exception as raised:  # an engine may end in any way
            words = cause(raised, named=True)
            error = StoreError(f"the model failed on {platform.node()}: {words}")
        more = not running.ended and error is None
        if not more:
            del self._running[number]
        pack(batch, self._rows)
        seconds = {} if more else running.watch.seconds
        return ChunkResult(batch, more, seconds, time.perf_counter() - running.began, error)

    def _results(self, chunk: Chunk, running: _Running) -> Iterator[Outcome | Failure | Note]:
        try:
            planned = self._planned(chunk)
            with closing(execute(self._embedder, planned, self._options, running.watch)) as found:
                yield from found
        finally:
            running.ended = True

    def _planned(self, chunk: Chunk) -> Iterator[Planned]:
        if chunk.one_by_one:
            yield OneByOne()
        for item in chunk.items:
            yield from item.plan(self._options)

    def place(self) -> str:
        """The machine and the process, for messages."""
        return f"{platform.node()} (process {os.getpid()})"


def chunk_of(items: Iterable[UnreadItem], one_by_one: bool) -> Chunk:
    """The items as one chunk."""
    found = tuple(items)
    return Chunk(found, sum(len(one.group) for one in found), one_by_one)
