"""The service behind the routes: items of clients, admitted, decoded and run in shared batches."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from penult.collection.row_layout import RowLayout
from penult.data.bytes import FileEnds
from penult.data.decode import Decoding
from penult.data.items import Failure
from penult.data.sources import from_objects
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome
from penult.embedding.scheduling import PreparedRegion
from penult.embedding.shared_batches import BatchNote, ItemRows, SharedEmbedder, as_exception
from penult.engines.parity import relative_error
from penult.errors import ItemError, TooLong
from penult.models.base import Classifier
from penult.models.synthetic import content_of
from penult.server.admission import Admission
from penult.server.bodies import Item
from penult.server.fair_queue import FairThreads
from penult.server.limits import ServerLimits
from penult.server.metrics import Metrics

T = TypeVar("T")
TOLERANCE = 1e-5  # relative: what a vector in a batch may differ from the item alone
_MEASURING = 2  # threads that read headers
_ANSWERING = 4  # threads that read bodies and make answers
_PIECE = 300.0  # seconds of sound in one pass, which nothing can interrupt
_PROBING = 5.0  # seconds between two probes in live batches, and for one to be answered
_LENGTHS = (1.0, 0.5, 2.0, 4.0, 8.0, 16.0)  # of the probes: seconds, and of texts times 8 words
_WARM = 3  # passes that the time of one is measured over
_READY = 1.0  # seconds that an answer of /ready holds


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """What became of one item. found: its regions, those that failed among them. error: why the
    item fails, where those are not skipped."""

    found: Sequence[Outcome | Failure] = ()
    error: Failure | None = None
    size: int = 0

    @property
    def rows(self) -> list[Outcome]:
        """Its regions that did not fail."""
        return [one for one in self.found if isinstance(one, Outcome)]


@dataclass(slots=True)
class _Work:
    """An item on its way. cost: seconds of work."""

    content: Item
    rows: RowLayout
    regions: Iterator[int]  # shared by the items of a request
    cost: float = 0.0
    left: threading.Event = field(default_factory=threading.Event)


class Service:
    """One embedder for many clients.

    decoding: how items are opened, each in a worker process; as many at once as it has workers,
    two at least. Close it.
    """

    def __init__(self, embedder: Embedder, limits: ServerLimits, decoding: Decoding) -> None:
        self.embedder, self.limits = embedder, limits
        self.modality = embedder.classifier.modality
        self._timed = self.modality in ("audio", "video")
        own = replace(
            decoding,
            workers=min(1, decoding.workers),
            patience=None,
            max_seconds=decoding.max_seconds or _longest_piece(embedder),
        )
        self._longest = own.max_seconds
        self.admission = Admission(limits.waiting)
        self.metrics = Metrics(lambda: self.admission.waiting)
        self._probe: _LiveProbe | None = None
        self._shared = SharedEmbedder(embedder, own, self._batch_ended)
        self._measure = FairThreads("header", _MEASURING)
        self._decode = FairThreads("decode", max(_MEASURING, decoding.workers))
        self._answer = FairThreads("answer", _ANSWERING)
        self._ready = FairThreads("ready", 1)
        self._probe = probe = _LiveProbe(self._shared, self.metrics)
        # Seconds of the model for a number of an input, of texts and pictures. Not measured again:
        # who comes again as told must not have become dearer meanwhile.
        self._size, self._unit = probe.size, probe.unit

    def close(self) -> None:
        """What is under way is answered; then the threads end."""
        if self._probe is not None:
            self._probe.close()
        for threads in (self._measure, self._decode, self._answer, self._ready):
            threads.close()
        self._shared.close()

    async def ready(self) -> str | None:
        """Why the probe item has not its known vector now; None where it has."""
        if self._probe is None:
            return None
        try:
            async with asyncio.timeout(_PROBING):
                return await self._in(self._ready, "", self._probe.check)
        except TimeoutError:
            return f"the model has not answered in {_PROBING:g} s"

    async def aside(self, client: str, call: Callable[[], T]) -> T:
        """What a call gives that takes a while, made in its client's turn."""
        return await self._in(self._answer, client, call)

    async def answers(
        self, contents: Sequence[Item], rows: RowLayout, client: str, skip: bool
    ) -> list[ItemAnswer]:
        """The rows of items, in their order. skip: an item that fails is answered as such.

        Raises:
            ItemError: an item that fails, without `skip`; `place_of` has its number.
            TurnedAway: there is too much work already.
        """
        regions = count()
        works = [_Work(one, rows, regions) for one in contents]
        with _left_set(works):
            answers = await self._measured(works, client, skip)
            admitted = [work for work, known in zip(works, answers, strict=True) if known is None]
            cost = sum(work.cost for work in admitted)
            self.admission.admit(client, cost, time.monotonic())
            owed = _Owed(self.admission, client, cost)
            try:
                running = [self._run(work, client, owed) for work in admitted]
                found = iter(await _all(running, skip))
            finally:
                owed.settle()
        return [self._counted(next(found) if known is None else known) for known in answers]

    async def _measured(
        self, works: Sequence[_Work], client: str, skip: bool
    ) -> list[ItemAnswer | None]:
        """Set the costs of items; gives those that cannot be read."""
        if not self._timed:
            for work in works:
                work.cost = self._unit * self._size_of(work.content)
            return [None] * len(works)

        def measure(work: _Work) -> None:
            layout = work.rows.layout
            seconds = self._shared.seconds_of(self._entries(work))
            if self._longest and seconds > self._longest and layout.window is None:
                raise TooLong(
                    f"lasts {seconds:,.1f} s; this server takes {self._longest:,.0f} s in one "
                    "piece; `window` cuts it"
                )
            overlap = 1.0 if not (layout.window and layout.hop) else layout.window / layout.hop
            work.cost = seconds * max(1.0, overlap)

        jobs = [
            self._in(self._measure, client, partial(measure, work), work.left) for work in works
        ]
        return [
            None if isinstance(one, ItemAnswer) and one.error is None else one
            for one in await _all(jobs, skip)
        ]

    def _size_of(self, content: Item) -> int:
        """Numbers of an input, about: of a text four characters are a token."""
        return max(1, len(content) // 4) if isinstance(content, str) else self._size

    def _counting(self, regions: Iterator[int]) -> Callable[[], None]:
        def count_one() -> None:
            if next(regions) >= self.limits.regions:
                raise TooLong(
                    f"a request may have {self.limits.regions:,} windows, tiles or pages; make "
                    "them larger, or send fewer items"
                )

        return count_one

    def _entries(self, work: _Work) -> Iterator[Any]:
        channel = work.rows.channel
        return iter(from_objects([work.content], self.modality, channel))

    async def _run(self, work: _Work, client: str, owed: _Owed) -> ItemAnswer:
        """Decode an item in its turn, and run it."""

        def start() -> Future[ItemRows]:
            return self._shared.start(
                self._entries(work), work.rows.layout, work.left, self._counting(work.regions)
            )

        future = await self._in(self._decode, client, start, work.left, work.cost)
        found = await asyncio.wrap_future(future)
        failed = next((one for one in found.rows if isinstance(one, Failure)), None)
        owed.pay(work.cost, done=failed is None)
        return ItemAnswer(found.rows, failed, found.size)

    async def _in(
        self,
        threads: FairThreads,
        client: str,
        call: Callable[[], T],
        left: threading.Event | None = None,
        cost: float = 1.0,
    ) -> T:
        """What a call gives, made in one of these threads."""
        future: Future[T] = Future()

        def job() -> None:
            if (left and left.is_set()) or not future.set_running_or_notify_cancel():
                return  # nobody waits for it
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(as_exception(error))

        threads.put(client, job, cost)
        return await asyncio.wrap_future(future)

    def _counted(self, answer: ItemAnswer) -> ItemAnswer:
        self.metrics.items.labels("embedded" if answer.rows else "failed").inc()
        seconds = sum(one.end - (one.start or 0.0) for one in answer.rows if one.end is not None)
        self.metrics.media.inc(max(0.0, seconds))
        return answer

    def _batch_ended(self, note: BatchNote) -> None:
        self.metrics.batch_ended(note)
        if self._probe is not None:
            self._probe.batch_ended(note.sizes)

    def vectors(self, rows: Sequence[Outcome]) -> npt.NDArray[np.float32]:
        """(n, d): in the embedder's space, if it has one."""
        raw = raw_vectors(rows, self.embedder.dim)
        return raw if self.embedder.space is None else self.embedder.space(raw)


def _longest_piece(embedder: Embedder) -> float | None:
    model = embedder.classifier.input
    return _PIECE if model.modality == "audio" and model.seconds is None else None


def raw_vectors(rows: Sequence[Outcome], dim: int) -> npt.NDArray[np.float32]:
    """(n, d) as the model gave them."""
    return np.array([one.vector for one in rows], np.float32).reshape(len(rows), dim)


class _Owed:
    """Work of a request that was admitted: it is released once, as it is done or given up."""

    def __init__(self, admission: Admission, client: str, cost: float) -> None:
        self._admission, self._client, self._left = admission, client, cost

    def pay(self, cost: float, done: bool) -> None:
        """An item has ended. done: and was embedded; one that fails says nothing about speed."""
        cost = min(cost, self._left)
        self._left -= cost
        self._admission.release(self._client, cost, time.monotonic(), done)

    def settle(self) -> None:
        """The rest is given up."""
        self._admission.release(self._client, self._left, time.monotonic(), done=False)
        self._left = 0.0


@contextmanager
def _left_set(works: Sequence[_Work]) -> Iterator[None]:
    """Whatever has not begun when the block is left does not begin."""
    try:
        yield
    finally:
        for work in works:
            work.left.set()


async def _all(running: Sequence[Coroutine[Any, Any, Any]], skip: bool) -> list[Any]:
    """The results in their order; the first failure ends all of them, unless they are skipped."""

    async def one(at: int, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            answer = await coroutine
        except ItemError as error:
            answer = ItemAnswer(error=Failure("", "whole", type(error).__name__, str(error)))
        if answer is None:
            return ItemAnswer()
        if answer.error is not None and not skip:
            raise ItemFailed(at, answer.error)
        return answer

    tasks = [asyncio.ensure_future(one(at, each)) for at, each in enumerate(running)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in running:  # also of a task that was cancelled before it began
            each.close()


class ItemFailed(ItemError):
    """An item of a request failed. at: its place in the input."""

    def __init__(self, at: int, failure: Failure) -> None:
        super().__init__(failure.message)
        self.at, self.failure = at, failure


@dataclass(frozen=True, slots=True)
class _KnownItem:
    """A made-up item, prepared, and the vector that it has alone. size: of its input."""

    region: list[PreparedRegion]
    vector: npt.NDArray[np.float32]
    size: int


def _made_up(classifier: Classifier, length: float) -> Any:
    """An item that nobody sent."""
    one = classifier.input
    if one.modality == "array":
        return next(iter(classifier.example(0).tensors.values()))[0].numpy()
    content = content_of(one.modality, 0, one.rate, one.frames, length)
    return content.first if isinstance(content, FileEnds) else content


class _LiveProbe:
    """Made-up items that are known: run alone at first, then now and then among items of clients,
    the one whose length is the most like theirs.

    unit: seconds of the model for each number of an input. size: of the first item's input.
    """

    def __init__(self, shared: SharedEmbedder, metrics: Metrics) -> None:
        self._shared, self._metrics = shared, metrics
        classifier = shared.embedder.classifier
        lengths = _LENGTHS if classifier.modality in ("audio", "text") else _LENGTHS[:1]
        self._items = [self._known(_made_up(classifier, length)) for length in lengths]
        self.size = self._items[0].size
        began = time.perf_counter()
        for _ in range(_WARM):
            self._run(self._items[0])
        self.unit = (time.perf_counter() - began) / max(1, self.size) / _WARM
        self._guard, self._told = threading.Lock(), (-math.inf, "")
        self._alike = 0  # the length that regions shared a pass at
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="probe", daemon=True)
        self._thread.start()

    def _known(self, content: Any) -> _KnownItem:
        entries = from_objects([content], self._shared.embedder.classifier.modality)
        ready = next(iter(self._shared.prepare(entries, Layout())))
        if isinstance(ready, Failure):
            raise ItemError(f"the probe item cannot be embedded: {ready.message}")
        row = self._shared.submit(ready).result().rows[0]
        if isinstance(row, Failure):
            raise ItemError(f"the probe item cannot be embedded: {row.message}")
        return _KnownItem(ready, row.vector, sum(one.size for one in ready))

    def _run(self, item: _KnownItem, limit: float | None = None) -> tuple[float, int]:
        """How much its vector differs, relative, and how many regions shared the pass."""
        found = self._shared.submit(item.region).result(limit)
        row = found.rows[0]
        if isinstance(row, Failure):
            raise ItemError(row.message)
        return relative_error([row.vector], [item.vector]), found.shared

    def batch_ended(self, sizes: Sequence[int]) -> None:
        """Regions of these sizes have shared a pass."""
        if len(sizes) > 1:
            self._alike = max(sizes)

    def check(self) -> str | None:
        """Why an item has not its known vector; None where it has."""
        with self._guard:
            when, reason = self._told
            if time.monotonic() - when > _READY:
                reason = self._checked()
                self._told = time.monotonic(), reason
        return reason or None

    def _checked(self) -> str:
        try:
            error, _ = self._run(self._items[0], _PROBING)
        except TimeoutError:
            return f"the model has not answered in {_PROBING:g} s"
        except Exception as raised:
            return f"the model failed: {type(raised).__name__}"
        if not error <= TOLERANCE:
            return f"the probe's vector differs by {error:.2g} from the known one"
        return ""

    def _watch(self) -> None:
        """Among live items, where some share their passes."""
        largest = 0.0
        while not self._stopped.wait(_PROBING):
            alike, self._alike = self._alike, 0
            if not alike:
                continue
            item = min(self._items, key=lambda one: abs(one.size - alike))
            try:
                error, shared = self._run(item)
            except Exception:
                error, shared = math.inf, 2
            if shared > 1:
                largest = max(largest, error)
                self._metrics.difference.set(largest)
                self._metrics.probes.inc()

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()
