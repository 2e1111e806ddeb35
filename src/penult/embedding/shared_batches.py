"""Items of many callers through one embedder at the same time, in batches that they share: each
caller has a future of its own. Knows no network.

The model runs in a thread of its own, and takes the next batch as soon as it is free: a single
region waits for nobody, and while a pass is under way others gather.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from penult.data.decode import Content, DecodedRegion, DecodeTarget, Decoding
from penult.data.items import Entry, Failure, Item
from penult.data.regions import Region
from penult.data.windows import Layout
from penult.data.workers import decode, headers_in_workers
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, RunnerPasses
from penult.embedding.scheduling import PreparedRegion
from penult.engines.base import Engine
from penult.errors import ItemError, PassingFault
from penult.locking import ENGINES

log = logging.getLogger(__name__)
WAITING = 64  # prepared regions that wait for the model; what comes then waits undecoded
OF_ONE = 16  # of them, and in the model, of one item: a long recording lets others in between

Rows = Sequence[Outcome | Failure]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchNote:
    """A pass that has ended. sizes: numbers in each region's largest input. seconds: of the model.
    waiting: regions that wait behind it."""

    sizes: tuple[int, ...]
    seconds: float
    waiting: int


@dataclass(frozen=True, slots=True)
class RegionRows:
    """The rows of one region. shared: regions in the largest pass that it was in."""

    rows: Rows
    shared: int


@dataclass(slots=True)
class _SharedRegion:
    """The patches of one region, one as a rule, and their outcomes by number."""

    numbers: list[int]
    asked: str
    future: Future[RegionRows]
    found: dict[int, Outcome | Failure] = field(default_factory=dict)
    shared: int = 0


def _settled_here(kind: type[T]) -> Future[T]:
    """A future that whoever waits for it cannot cancel: it always takes a result."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    return future


def as_exception(raised: BaseException) -> Exception:
    """What was raised, for another thread: a SystemExit of a model's code ends no server."""
    if isinstance(raised, Exception):
        return raised
    return RuntimeError(f"the model raised {type(raised).__name__}")


class SharedBatches:
    """The prepared regions of many callers in batches, through the engines of an embedder.

    told: called behind each pass, in the thread of its engine. Close it, so that its threads end.
    """

    def __init__(
        self, embedder: Embedder, decoding: Decoding, told: Callable[[BatchNote], None]
    ) -> None:
        self._passes = RunnerPasses(embedder.runner, decoding)
        self._queue, self._told = self._passes.queue(), told
        self._changed = threading.Condition()
        self._regions: dict[int, _SharedRegion] = {}
        self._number, self._count, self._closed = 0, 0, False
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"{ENGINES} {at}", daemon=True)
            for at, engine in enumerate(embedder.runner.engines)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, patches: Sequence[PreparedRegion]) -> Future[RegionRows]:
        """The rows of a region, given its patches or itself; waits where too many wait already.

        Raises:
            PassingFault: closed.
        """
        future = _settled_here(RegionRows)
        with self._changed:
            self._changed.wait_for(lambda: self._count < WAITING or self._closed)
            if self._closed:
                raise PassingFault("the server stops")
            numbers = list(range(self._number, self._number + len(patches)))
            self._number += len(patches)
            region = _SharedRegion(numbers, patches[0].asked, future)
            for number, patch in zip(numbers, patches, strict=True):
                self._regions[number] = region
                self._queue.add(number, patch)
            self._count += len(patches)
            self._changed.notify_all()
        return future

    @property
    def waiting(self) -> int:
        """Regions that wait for the model."""
        return self._count

    def close(self) -> None:
        """What waits is answered, then the threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, engine: Engine) -> None:
        while (batch := self._taken()) is not None:
            began = time.perf_counter()
            found: dict[int, Outcome | Failure] = {}
            error: Exception | None = None
            try:
                found = self._passes.outcomes(engine, batch)
            except BaseException as raised:  # answered to whoever waits; the next batch may do
                error = as_exception(raised)
            seconds = time.perf_counter() - began
            for number in batch:
                self._answer(number, found.get(number), error, len(batch))
            sizes = tuple(one.size for one in batch.values())
            try:
                self._told(BatchNote(sizes, seconds, self._count))
            except Exception:  # a thread that ends would serve nobody
                log.exception("a pass was not counted")

    def _taken(self) -> dict[int, PreparedRegion] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closed)
            if not self._queue:
                return None
            batch = self._queue.take()
            self._count -= len(batch)
            self._changed.notify_all()
            return batch

    def _answer(
        self,
        number: int,
        outcome: Outcome | Failure | None,
        error: Exception | None,
        shared: int,
    ) -> None:
        with self._changed:
            region = self._regions.pop(number)
            region.shared = max(region.shared, shared)
            if outcome is not None:
                region.found[number] = outcome
            ended = len(region.found) == len(region.numbers)
        if error is not None or outcome is None:
            if not region.future.done():
                region.future.set_exception(error or RuntimeError("the model gave no outcome"))
        elif ended and not region.future.done():
            rows = [region.found[one] for one in region.numbers]
            try:
                found = RegionRows(self._passes.joined(region.asked, rows), region.shared)
            except Exception as raised:
                region.future.set_exception(raised)
            else:
                region.future.set_result(found)


class SharedEmbedder:
    """Items of many callers: measured, decoded in worker processes and run in shared batches.

    decoding: how each of them is opened. told: see `SharedBatches`. Close it.
    """

    def __init__(
        self,
        embedder: Embedder,
        decoding: Decoding,
        told: Callable[[BatchNote], None] = lambda note: None,
    ) -> None:
        self.embedder = embedder
        self._batches = SharedBatches(embedder, decoding, told)
        # Looking at what is free takes a millisecond, which a run does once, and here each item.
        limits = replace(decoding.limits, memory=decoding.limits.bound.size)
        self._decoding = replace(decoding, limits=limits)

    @property
    def waiting(self) -> int:
        """Regions that wait for the model."""
        return self._batches.waiting

    def close(self) -> None:
        """What waits is answered; then nothing more is taken."""
        self._batches.close()

    def seconds_of(self, entries: Iterable[Entry]) -> float:
        """Seconds of sound or video, as their headers have it.

        Raises:
            ItemError: an item that cannot be read.
        """
        model = self.embedder.classifier.input
        target = DecodeTarget(model.modality, model.rate, header="length")
        whole = 0.0
        pairs = (self._checked(entry) for entry in entries)
        with closing(decode(pairs, target, self._decoding.of_headers)) as found:
            for one in found:
                if not isinstance(one, DecodedRegion):
                    continue
                if isinstance(one.content, ItemError):
                    raise one.content
                assert isinstance(one.content, Content)
                length = getattr(one.content.values, "seconds", one.content.values)
                end = one.region.end if one.region.end is not None else float(length)
                whole += max(0.0, end - (one.region.start or 0.0))
        return whole

    @staticmethod
    def _checked(entry: Entry) -> tuple[Item, Region]:
        if isinstance(entry, Failure):
            raise ItemError(entry.message)
        return entry

    def submit(self, patches: Sequence[PreparedRegion]) -> Future[RegionRows]:
        """See `SharedBatches.submit`."""
        return self._batches.submit(patches)

    def prepare(
        self, entries: Iterable[Entry], layout: Layout, counted: Callable[[], None] = lambda: None
    ) -> Iterator[list[PreparedRegion] | Failure]:
        """Each region ready for the model, with its patches, or why it is not. counted: called for
        each region before any is decoded; what it raises ends this."""
        model = self.embedder.classifier.input
        describe = headers_in_workers(self._decoding)
        divided = layout.of(entries, model, describe, self._decoding.limits.bound)
        regions = _told_of(divided, counted)
        patches: list[PreparedRegion] = []
        with closing(self.embedder.runner.prepare(regions, self._decoding)) as prepared:
            for ready in prepared:
                if isinstance(ready, Failure):
                    yield ready
                elif isinstance(ready, PreparedRegion):
                    patches.append(ready)
                    if len(patches) == ready.patches:
                        yield patches
                        patches = []

    def start(
        self,
        entries: Iterable[Entry],
        layout: Layout,
        left: threading.Event,
        counted: Callable[[], None] = lambda: None,
    ) -> Future[ItemRows]:
        """Decode here, in the caller's thread, and give the rows of all regions in their order as
        a future. left: set once nobody waits for them. counted: see `prepare`."""
        rows = _RowsOfItem()
        try:
            for ready in self.prepare(entries, layout, counted):
                if left.is_set():
                    break
                if isinstance(ready, Failure):
                    rows.put(rows.place(), [ready])
                    continue
                place = rows.place(sum(one.size for one in ready))
                future = self._batches.submit(ready)
                future.add_done_callback(partial(rows.take, place))
        except BaseException as error:
            rows.fail(as_exception(error))
        rows.end()
        return rows.future


def _told_of(entries: Iterable[Entry], counted: Callable[[], None]) -> Iterator[Entry]:
    for entry in entries:
        counted()
        yield entry


@dataclass(frozen=True, slots=True)
class ItemRows:
    """The rows of one item, and the regions that gave none. size: numbers in the largest input of
    each region together, of a text its tokens."""

    rows: Sequence[Outcome | Failure]
    size: int


class _RowsOfItem:
    """The rows of one item, as they come, in the order of its regions."""

    def __init__(self) -> None:
        self.future = _settled_here(ItemRows)
        self._size = 0
        self._room = threading.Semaphore(OF_ONE)
        self._guard = threading.Lock()
        self._found: dict[int, Rows] = {}
        self._places, self._ended, self._settled = 0, False, False
        self._error: BaseException | None = None

    def place(self, size: int = 0) -> int:
        """The number of the next region; waits where too many of this item are under way."""
        self._room.acquire()
        with self._guard:
            self._places += 1
            self._size += size
            return self._places - 1

    def take(self, place: int, future: Future[RegionRows]) -> None:
        """The rows of a region that has ended."""
        if (error := future.exception()) is not None:
            self.fail(error)
        self.put(place, [] if error is not None else future.result().rows)

    def put(self, place: int, rows: Rows) -> None:
        """The rows of a region."""
        self._room.release()
        with self._guard:
            self._found[place] = rows
        self._settle()

    def fail(self, error: BaseException) -> None:
        """The first error is the item's."""
        with self._guard:
            self._error = self._error or error

    def end(self) -> None:
        """No more regions follow."""
        with self._guard:
            self._ended = True
        self._settle()

    def _settle(self) -> None:
        with self._guard:
            if not self._ended or len(self._found) < self._places or self._settled:
                return
            self._settled = True
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            rows = [row for at in range(self._places) for row in self._found[at]]
            self.future.set_result(ItemRows(rows, self._size))
