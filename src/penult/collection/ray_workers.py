"""Chunks of a run on the workers of a Ray cluster: who gets which, what becomes of those whose
worker dies, and when a run that makes no progress ends. Knows no model and no store.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from penult.collection.chunks import (
    Chunk,
    ChunkResult,
    ChunkWorker,
    MachineProof,
    WorkerModel,
    chunk_of,
    unreadable,
)
from penult.collection.ingest import (
    CommitBatch,
    FileMoved,
    Options,
    Planned,
    Tick,
    UnreadItem,
    assemble,
    merge,
)
from penult.data.items import Failure, Note, OneByOne, Pause
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Stopwatch
from penult.errors import PenultError, StoreError, UsageError, cause
from penult.extras import require

log = logging.getLogger(__name__)

LOCAL = "local"
_HOST = re.compile(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d+)")
_REACH = 10.0  # seconds in which a head node answers
LOCAL_WORKERS = 2
PATIENCE = 1200.0  # seconds without any progress, behind which a run ends
AHEAD = 2  # chunks of a worker: one is read while the other is in the model
SECONDS = 2.0  # of work in a chunk: a worker that dies loses no more than two of them
FIRST, MOST = 16, 512  # regions of a chunk
_HELD = 1 << 26  # bytes that the items of a chunk hold themselves
_POLL = 0.25  # seconds between two looks at the workers
_STAFFING = 10.0  # seconds between two looks at what the cluster has
_OPENINGS = 5  # workers that die before they are ready, one after the other
_ROWS = 8192  # of one commit, about
_NOTES = 1000  # notes in one go, so that results are looked after


class _Share(NamedTuple):
    """What each worker takes of a node, and how many there are of them."""

    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where workers are, and how many.

    address: `auto` for the cluster that this machine belongs to, `local` for workers on this
    machine alone, else as `ray.init` takes it. workers: None: one for each GPU, and where there is
    none, for each CPU but one. patience: seconds without progress, behind which a run ends.
    """

    address: str = "auto"
    workers: int | None = None
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} workers embed nothing; give 1 or more")
        if not self.patience > 0:
            raise UsageError(f"a patience of {self.patience:g} s ends each run; give more")


class RayWorkers:
    """The workers of a Ray cluster; see `Options.machines`. The cluster is joined with the first
    item that has to be read, and left behind the last one.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(self, options: RayOptions, model: WorkerModel) -> None:
        self._ray, self._options, self._model = require("ray"), options, model
        self._proof: MachineProof | None = None
        self._rows: pa.Schema | None = None
        self._embedder: Embedder | None = None
        self._is_ours = False

    def begin(self, embedder: Embedder, rows: pa.Schema) -> None:
        """For a run of this embedder, whose rows have this schema."""
        self._embedder, self._rows, self._proof = embedder, rows, None

    def batches(
        self, planned: Iterable[Planned], options: Options, tick: Tick, watch: Stopwatch | None
    ) -> Iterator[CommitBatch]:
        """What is planned as batches to commit, in any order of the items.

        Raises:
            StoreError: no cluster is there, no worker gives this machine's vectors, or none has
                given a result for the patience of the run; what was done before is in the batches.
        """
        assert self._embedder is not None
        feed = ChunkFeed(planned, self._embedder, options, tick)
        while not feed.look() and not feed.ended:
            if found := feed.notes():
                yield found
        if not feed.ended:
            yield from self._spread(feed, options, tick, watch)
        yield feed.notes(last=True)

    def _spread(
        self, feed: ChunkFeed, options: Options, tick: Tick, watch: Stopwatch | None
    ) -> Iterator[CommitBatch]:
        """As `batches`, from the first item on that has to be read."""
        crew = self._crew(options)
        try:
            while not (feed.ended and crew.idle):
                crew.feed(feed)
                if found := feed.notes():  # files that moved come before rows of theirs
                    yield found
                if found := crew.batch(tick, watch):
                    yield found
        except (KeyboardInterrupt, Exception):
            if found := crew.ready(tick, watch):
                yield found
            raise
        finally:
            crew.end()
            if self._is_ours:
                self._ray.shutdown()
                self._is_ours = False

    def _crew(self, options: Options) -> Crew:
        assert self._embedder is not None and self._rows is not None
        self._is_ours = _connect(self._ray, self._options)
        if self._proof is None:
            self._proof = MachineProof.of(self._embedder)
        plain = replace(options, machines=None, times=None)
        started = (self._model, self._rows, plain)
        return Crew(self._ray, self._options, started, self._proof)


def _connect(ray: Any, options: RayOptions) -> bool:
    """Join the cluster; whether it was joined here, and is to be left."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if options.address == LOCAL:
        # One CPU more than workers: what is counted is no more than a figure.
        workers = options.workers or LOCAL_WORKERS
        quiet |= {"num_cpus": workers + 1, "include_dashboard": False}
    try:
        if (place := _HOST.fullmatch(options.address)) is not None:  # Ray would wait for minutes
            socket.create_connection((place[1], int(place[2])), _REACH).close()
        with warnings.catch_warnings():
            # Of Lance, on a fork: what Ray forks becomes another program at once.
            warnings.filterwarnings("ignore", ".*fork.*")
            ray.init(address=options.address, **quiet)
    except Exception as error:  # of Ray, of gRPC, of the system
        raise StoreError(
            f"no Ray cluster at {options.address!r}: {cause(error)}. `ray start --head` begins one "
            "on this machine, and --ray local needs none"
        ) from error
    return True


class ChunkFeed:
    """The plan of a run as chunks for workers; what needs none is assembled here.

    planned: of `plan` for other machines; notes and items that have to be read.
    """

    def __init__(
        self, planned: Iterable[Planned], embedder: Embedder, options: Options, tick: Tick
    ) -> None:
        self._planned = iter(planned)
        self._classifier, self._options, self._tick = embedder.classifier, options, tick
        self._items: list[UnreadItem] = []
        self._regions = self._held = 0
        self._notes: list[Note | Failure] = []
        self._since = time.monotonic()
        self._one_by_one = False
        self._exhausted = False
        self.sample: Path | None = None  # a file of the latest item that has one

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to give."""
        return self._exhausted and not self._items

    @property
    def has_items(self) -> bool:
        """Whether an item waits for a worker."""
        return bool(self._items)

    def look(self, regions: int = FIRST) -> bool:
        """Read the plan up to a full chunk, or a pause; whether there is a chunk."""
        seen = 0
        while not self._exhausted and not self._is_full(regions):
            entry = next(self._planned, None)
            if entry is None:
                self._exhausted = True
            elif isinstance(entry, UnreadItem):
                self._add(entry)
            elif isinstance(entry, Pause):
                break
            elif isinstance(entry, OneByOne):
                self._one_by_one = True
                break
            else:
                assert not isinstance(entry, tuple)  # the plan reads nothing itself
                self._notes.append(entry)
                seen += 1
                if seen >= _NOTES:
                    return False
        return bool(self._items)

    def _is_full(self, regions: int) -> bool:
        return self._regions >= regions or self._held > _HELD

    def _add(self, item: UnreadItem) -> None:
        self._items.append(item)
        self._regions += len(item.group)
        self._held += item.item.held
        if isinstance(item.item.content, Path):
            self.sample = item.item.content

    def take(self, regions: int) -> Chunk | None:
        """The next chunk of about so many regions, if there is one now."""
        if not self.look(regions):
            return None
        chunk = chunk_of(self._items, self._one_by_one)
        self._items, self._regions, self._held = [], 0, 0
        return chunk

    def notes(self, last: bool = False) -> CommitBatch:
        """What needs no worker, once it is due, as a batch."""
        late = time.monotonic() - self._since > self._options.commit_seconds
        if not (last or late or len(self._notes) >= _NOTES or self._moves):
            return CommitBatch()
        whole = replace(self._options, commit_rows=1 << 60, commit_seconds=1 << 30)
        notes, self._notes, self._since = self._notes, [], time.monotonic()
        found = CommitBatch()
        for batch in assemble(self._classifier, notes, whole, self._tick):
            merge(found, batch)
        return found

    @property
    def _moves(self) -> bool:
        """Whether rows get other ids, which comes before any of the new ones."""
        return any(isinstance(note, FileMoved) for note in self._notes[-_NOTES:])


@dataclass(slots=True)
class _Member:
    """A worker: an actor, and its chunks by the reference of their results. ready: of the proof,
    None once it has given this machine's vectors. sample: a file that it has to read for that."""

    actor: Any
    ready: Any
    sample: Path | None = None
    place: str = "a worker"
    chunks: dict[Any, Chunk] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)  # of its last sign

    @property
    def room(self) -> int:
        """How many more chunks it takes."""
        if self.ready is not None or any(one.is_suspect for one in self.chunks.values()):
            return 0
        return AHEAD - len(self.chunks)


class Crew:
    """The workers of one run and what they are at.

    started: what each `ChunkWorker` is made of. proof: of this machine.
    """

    def __init__(
        self,
        ray: Any,
        options: RayOptions,
        started: tuple[WorkerModel, pa.Schema, Options],
        proof: MachineProof,
    ) -> None:
        self._ray, self._options, self._proof = ray, options, proof
        self._started = tuple(ray.put(one) for one in started)
        self._workers = started[2].workers
        self._members: list[_Member] = []
        self._again: deque[Chunk] = deque()
        self._failed: list[Failure] = []
        self._refused: list[str] = []
        self._openings = 0  # workers that died before they were ready, one after the other
        self._regions = FIRST
        self._staffed = -_STAFFING
        self._progress = time.monotonic()
        self._number = 0  # of the last chunk
        self._begun = False  # whether a worker has had work
        self._error: PenultError | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, and nothing to be tried again."""
        left = self._again or self._failed or self._error is not None
        return not left and not any(one.chunks for one in self._members)

    def feed(self, feed: ChunkFeed) -> None:
        """Give each worker that has room its chunks."""
        self._staff(feed.sample)
        for member in sorted(self._members, key=lambda one: len(one.chunks)):
            while member.room > 0:
                if (chunk := self._next(member, feed)) is None:
                    return  # there is none now, and looking again takes time
                self._begun, self._number = True, self._number + 1
                chunk = replace(chunk, number=self._number)
                reference = member.actor.run.remote(chunk)
                if not member.chunks:
                    member.since = time.monotonic()
                member.chunks[reference] = chunk

    def _next(self, member: _Member, feed: ChunkFeed) -> Chunk | None:
        if self._again:
            if not self._again[0].is_suspect or not member.chunks:
                return self._again.popleft()
            return None  # it waits for one that has nothing else
        return feed.take(self._regions)

    def batch(self, tick: Tick, watch: Stopwatch | None) -> CommitBatch:
        """What has come back, together; waits a little where nothing has.

        Raises:
            StoreError: a worker's model failed, none is left, or nothing comes back any more.
        """
        if self._error is not None:
            raise self._error
        self._wait()
        found = self.ready(tick, watch)
        if not found and not self.idle:
            self._look_after()
        return found

    def _wait(self) -> None:
        waiting = [one.ready for one in self._members if one.ready is not None]
        waiting += [ref for one in self._members for ref in one.chunks]
        if waiting:
            self._ray.wait(waiting, num_returns=1, timeout=_POLL)
        else:
            time.sleep(_POLL)

    def ready(self, tick: Tick, watch: Stopwatch | None) -> CommitBatch:
        """What is there now, as one batch."""
        found = CommitBatch(failures=self._failed)
        for _ in self._failed:
            tick(False, 0.0)
        self._failed = []
        waiting = [ref for one in self._members for ref in one.chunks]
        waiting += [one.ready for one in self._members if one.ready is not None]
        done = set(self._done(waiting))
        for member in list(self._members):
            if member.ready in done:
                self._prove(member)
            self._collect(member, done, found, tick, watch)
        return found

    def _collect(
        self,
        member: _Member,
        done: Collection[Any],
        found: CommitBatch,
        tick: Tick,
        watch: Stopwatch | None,
    ) -> None:
        """Add what a worker has given, also where it died behind that."""
        error: Exception | None = None
        for reference in [one for one in member.chunks if one in done]:
            if found.row_count >= _ROWS:
                return
            try:
                result: ChunkResult = self._ray.get(reference)
            except Exception as raised:  # of Ray
                error = raised
                continue
            self._take(member, member.chunks.pop(reference), result, watch)
            _count(result.batch, tick)
            merge(found, result.batch)
        if error is not None:
            self._lose(member, error)

    def _done(self, references: list[Any]) -> list[Any]:
        if not references:
            return []
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        return list(done)

    def _take(
        self, member: _Member, chunk: Chunk, result: ChunkResult, watch: Stopwatch | None
    ) -> None:
        """Note that a chunk is done, and how long it took; or ask for its next part."""
        member.since = self._progress = time.monotonic()
        if result.more:
            member.chunks[member.actor.go_on.remote(chunk.number)] = chunk
            return
        self._resize(chunk, result)
        for part, seconds in result.seconds.items() if watch is not None else ():
            watch.add(part, seconds)  # type: ignore[union-attr]
        self._error = self._error or result.error

    def _resize(self, chunk: Chunk, result: ChunkResult) -> None:
        """Chunks of some seconds each."""
        if chunk.regions >= self._regions // 2:
            fitting = round(chunk.regions * SECONDS / max(result.elapsed, 1e-3))
            self._regions = max(1, min(fitting, 2 * self._regions, MOST))

    def _prove(self, member: _Member) -> None:
        """Let a worker have work once it has given this machine's vectors."""
        try:
            member.place, proof = self._ray.get(member.ready)
        except Exception as error:  # of Ray, or of the model as it is opened there
            self._lose(member, error)
            return
        self._openings = 0
        member.ready, member.since = None, time.monotonic()
        if not self._begun:  # one that comes in place of another is no progress
            self._progress = member.since
        if member.sample is not None and proof.unread and unreadable(member.sample):
            proof = replace(proof, unread="")  # it is gone from everywhere
        if refusal := self._proof.refusal(proof):
            self._refuse(member, f"the worker on {member.place} gets no work: {refusal}")

    def _refuse(self, member: _Member, words: str) -> None:
        log.warning("%s", words)
        self._refused.append(words)
        self._dismiss(member)
        if not self._members:
            reasons = "; ".join(dict.fromkeys(self._refused[-3:]))
            self._error = self._error or StoreError(f"no worker is left. {reasons}")

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        with suppress(Exception):  # it may be gone already
            self._ray.kill(member.actor)

    def _lose(self, member: _Member, error: Exception) -> None:
        """A worker that is gone, or raised: its chunks run elsewhere."""
        gone = isinstance(error, self._ray.exceptions.RayActorError)
        chunks = list(member.chunks.values())
        if member.ready is not None:
            raised = not gone or getattr(error, "actor_init_failed", False)
            self._openings += not _is_of_node(error)
            if raised or self._openings >= _OPENINGS:
                self._refuse(member, f"a worker could not open the model: {_reason(error)}")
                return
        elif not gone:
            self._error = StoreError(f"the worker on {member.place} failed: {_reason(error)}")
        self._dismiss(member)
        self._staffed = -_STAFFING
        if gone:
            log.info("the worker on %s is gone: %s", member.place, _reason(error))
            self._try_again(chunks, _is_of_node(error))

    def _try_again(self, chunks: list[Chunk], blameless: bool) -> None:
        for chunk in chunks:
            again, failures = [chunk], list[Failure]()
            if not blameless:
                again, failures = chunk.after_death(alone=len(chunks) == 1)
            self._again.extend(again)
            self._failed += failures
            if failures:
                self._progress = time.monotonic()

    def _look_after(self) -> None:
        """End workers that have shown no sign for half of the patience, and the run behind all of
        it."""
        now, patience = time.monotonic(), self._options.patience
        if now - self._progress > patience:
            at_work = sum(bool(one.chunks) for one in self._members)
            opening = sum(one.ready is not None for one in self._members)
            raise StoreError(
                f"no worker has given a result for {patience:g} s: {at_work} have work, {opening} "
                "are not ready (has the cluster room for them? `ray status` says so). What was "
                "done is committed; the same command goes on with the rest"
            )
        for member in list(self._members):
            if member.chunks and now - member.since > patience / 2:
                log.warning("the worker on %s does not answer; another takes over", member.place)
                chunks = list(member.chunks.values())
                self._dismiss(member)
                self._staffed = -_STAFFING
                self._try_again(chunks, blameless=False)

    def _staff(self, sample: Path | None) -> None:
        """As many workers as the cluster has room for, spread over its nodes; each has to read a
        file of the run before it has work."""
        now = time.monotonic()
        if now - self._staffed < _STAFFING:
            return
        self._staffed = now
        share = _share(self._ray, self._options)
        missing = share.workers - len(self._members) - len(self._refused)
        if missing <= 0:
            return
        actor = self._ray.remote(RayWorker).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            scheduling_strategy="SPREAD",
            max_concurrency=AHEAD,
            max_restarts=0,
            max_task_retries=0,
        )
        for _ in range(missing):
            made = actor.remote(*self._started)
            self._members.append(_Member(made, made.prove.remote(sample), sample))

    def end(self) -> None:
        """End all workers."""
        for member in list(self._members):
            self._dismiss(member)


class RayWorker:
    """A `ChunkWorker` as an actor of Ray."""

    def __init__(self, model: WorkerModel, rows: pa.Schema, options: Options) -> None:
        cpus = int(os.environ.get("OMP_NUM_THREADS") or 1)
        own = replace(options, workers=min(options.workers, max(1, cpus)))
        self._worker = ChunkWorker(model, rows, own)

    def prove(self, sample: Path | None) -> tuple[str, MachineProof]:
        """Where it runs, and its proof; see `ChunkWorker.prove`."""
        return self._worker.place(), self._worker.prove(sample)

    def run(self, chunk: Chunk) -> ChunkResult:
        """See `ChunkWorker.run`."""
        return self._worker.run(chunk)

    def go_on(self, number: int) -> ChunkResult:
        """See `ChunkWorker.go_on`."""
        return self._worker.go_on(number)


def _share(ray: Any, options: RayOptions) -> _Share:
    """What the nodes that are alive have for workers; one CPU is left for all else."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    free = max(1.0, cpus - 1)
    workers = options.workers or int(gpus or free)
    smallest = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    each = max(1.0, min(free // workers, smallest)) if options.workers else 1.0
    return _Share(workers, min(each, free), 1.0 if gpus else 0.0)


def _count(batch: CommitBatch, tick: Tick) -> None:
    """Tell of each region of a result."""
    rows = batch.row_count
    for _ in range(rows):
        tick(True, batch.seconds / rows)
    for _ in range(len(batch.failures) + len(batch.known) + batch.skipped):
        tick(False, 0.0)


def _reason(error: BaseException) -> str:
    """What a worker says, without the frames of Ray around it."""
    inner: Any = getattr(error, "cause", None)
    if isinstance(inner, BaseException):
        return cause(inner, named=not isinstance(inner, PenultError))
    text = str(error)
    for line in reversed(text.strip().splitlines()):
        if "Error" in line or "Worker exit detail" in line or "node" in line:
            return line.strip()
    return cause(error)


def _is_of_node(error: BaseException) -> bool:
    """Whether a whole machine went, for which no item is to blame."""
    text = str(error)
    return (
        bool(getattr(error, "preempted", False))
        or "node has died" in text
        or ("node was terminated" in text)
    )
