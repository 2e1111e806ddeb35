"""Regions that are read ahead and wait for a batch, the order of results, and engines that each
work in a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from itertools import count
from math import inf, prod
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from penult.data.decode import PATIENCE, Content
from penult.data.items import PAUSE, Failure, Item, Pause
from penult.data.regions import Region
from penult.engines.base import Engine
from penult.engines.batching import ALONE, BatchPolicy, Planner
from penult.errors import EndlessPass, ItemError, PassingFault, TooLong
from penult.locking import ENGINES
from penult.memory import Held
from penult.models.base import Inputs

T = TypeVar("T")
log = logging.getLogger(__name__)
_LEAVING = 2.0  # seconds that a thread may take to end; one that a file holds up is left behind


class ReadAhead(Generic[T]):
    """An iterable that a thread of its own reads ahead, with a `Pause` wherever none of its values
    has come for a while. Close it, so that the thread ends.

    most: values that wait at most. held, size: bounds what they weigh together; one may always
    wait.
    """

    def __init__(
        self,
        values: Iterable[T],
        most: int,
        held: Held | None = None,
        size: Callable[[Any], int] = lambda value: 0,
    ) -> None:
        self._held, self._size = held or Held(0), size
        self._waiting: deque[tuple[Any, int, BaseException | None]] = deque()
        self._most, self._changed = most, threading.Condition()
        self._left = threading.Event()
        target, context = self._read, copy_context()
        self._thread = threading.Thread(target=context.run, args=(target, values), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T | Pause]:
        while True:
            with self._changed:
                if not self._waiting:
                    self._changed.wait(PATIENCE)
                entry = self._waiting.popleft() if self._waiting else None
                # Half of them at a time: a thread that is woken up for each holds up the others.
                if len(self._waiting) == self._most // 2:
                    self._changed.notify_all()
            if entry is None:
                yield PAUSE
                continue
            value, size, ended = entry
            self._held.free(size)
            if isinstance(ended, _End):
                return
            if ended is not None:
                raise ended
            yield value

    def close(self) -> None:
        """End the thread, and what it reads."""
        self._left.set()
        with self._changed:
            for _, size, _ in self._waiting:
                self._held.free(size)
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(_LEAVING)

    def _read(self, values: Iterable[T]) -> None:
        reading, ended = iter(values), None
        try:
            for value in reading:
                size = self._size(value)
                self._held.take(size, lambda: not self._waiting or self._left.is_set())
                self._put((value, size, None))
                if self._left.is_set():
                    break
        except BaseException as error:  # raised where the values are used
            ended = error
        with suppress(Exception):
            getattr(reading, "close", lambda: None)()
        self._put((None, 0, ended or _End()))

    def _put(self, entry: tuple[Any, int, BaseException | None]) -> None:
        with self._changed:
            if len(self._waiting) >= self._most:
                room = self._most // 2
                self._changed.wait_for(lambda: len(self._waiting) <= room or self._left.is_set())
            if not self._left.is_set():
                self._waiting.append(entry)
                if len(self._waiting) == 1:
                    self._changed.notify_all()


class _End(Exception):
    """Nothing follows."""


@dataclass(frozen=True, slots=True)
class PreparedRegion:
    """A region that waits for its forward pass, or one of its patches. samples: of its sound; 0 of
    all else. patch, patches: which of how many that were prepared together, of the region with the
    key `asked`. What was decoded is not kept: `content` is without values."""

    item: Item
    region: Region
    content: Content
    inputs: Inputs
    samples: int = 0
    patch: int = 0
    patches: int = 1
    asked: str = ""

    @property
    def size(self) -> int:
        """Numbers in the largest of its inputs."""
        return max(int(prod(value.shape)) for value in self.inputs.tensors.values())

    @property
    def weight(self) -> int:
        """Bytes that it holds."""
        return 4 * self.size + self.item.held


class BatchQueue:
    """Prepared regions by their numbers, taken in batches.

    policy: gives how they may share one; called once there are two of them. most: bytes that their
    items may hold themselves, before a batch is due.
    """

    def __init__(
        self, planner: Planner, policy: Callable[[], BatchPolicy], most: float = inf
    ) -> None:
        self.planner, self._policy, self._most = planner, policy, most
        self._regions: dict[int, PreparedRegion] = {}
        self._since: dict[int, float] = {}
        self._single: int | None = None  # waits alone, and was not offered to the planner
        self._held = 0  # bytes of the items themselves

    def __bool__(self) -> bool:
        return bool(self._regions)

    def add(self, number: int, ready: PreparedRegion) -> None:
        """Add a region."""
        self._regions[number], self._since[number] = ready, time.monotonic()
        self._held += ready.item.held
        if len(self._regions) == 1:
            self._single = number
            return
        if self._single is not None:
            self._offer(self._single)
            self._single = None
        self._offer(number)

    def _offer(self, number: int) -> None:
        ready, policy = self._regions[number], self._policy()
        kind = number if policy.name == ALONE else policy.kind(ready.inputs.tensors)
        self.planner.offer(number, ready.size, kind)

    @property
    def due(self) -> bool:
        """Whether a batch is to be taken before more is added."""
        if self._single is not None:
            return False
        if self.planner.full or self._held > self._most:
            return True
        return bool(self.planner) and self._policy().name == ALONE

    @property
    def age(self) -> float:
        """Seconds that the first of the regions has waited."""
        return time.monotonic() - next(iter(self._since.values()), time.monotonic())

    def take(self) -> dict[int, PreparedRegion]:
        """The next batch, the region that has waited longest in it."""
        if self._single is not None:
            numbers, self._single = [self._single], None
        else:
            numbers = self.planner.take()
        for number in numbers:
            del self._since[number]
        batch = {number: self._regions.pop(number) for number in numbers}
        self._held -= sum(ready.item.held for ready in batch.values())
        return batch


Join = Callable[[list[Any]], Iterable[Any]]


class OrderedResults(dict[int, Any]):
    """Results by their numbers, put in any order and taken in that of the numbers; some of them as
    one. pauses: given where none have come."""

    def __init__(self, pauses: bool = False) -> None:
        super().__init__()
        self._next, self._pauses = 0, pauses
        self._joined: dict[int, tuple[int, Join]] = {}

    def join(self, first: int, count: int, join: Join) -> None:
        """Give so many results from a number on together, as what `join` makes of them."""
        self._joined[first] = count, join

    @property
    def late(self) -> int:
        """How many results wait for the turn of an earlier one, which is none of their own."""
        count, _ = self._joined.get(self._next, (1, None))
        return max(0, len(self) - count)

    def put(self, found: Iterable[Mapping[int, Any]]) -> Iterator[Any]:
        """Put these in, and take those whose turn it is."""
        for some in found:
            self.update(some)
            yield from self.take() if some or not self._pauses else [PAUSE]

    def take(self) -> Iterator[Any]:
        """The results whose turn it is."""
        while self._next in self:
            first = self._next
            count, join = self._joined.get(first, (1, None))
            if any(at not in self for at in range(first, first + count)):
                return
            self._joined.pop(first, None)
            self._next += count
            found = [self.pop(at) for at in range(first, first + count)]
            yield from found if join is None else join(found)


NOTICE = 600.0  # seconds of one pass, behind which it is told what is in the model
_NAMED = 5  # items that are named then


class PassWatch:
    """What is in the model, and since when. limit: the longest time of a pass in seconds."""

    def __init__(self, limit: float | None = None) -> None:
        self._limit, self._told = limit, set[int]()
        self._passes: dict[int, tuple[float, Sequence[PreparedRegion]]] = {}
        self._numbers = count()

    @contextmanager
    def under_way(self, regions: Sequence[PreparedRegion]) -> Iterator[None]:
        """Around a pass, in the thread of its engine."""
        number = next(self._numbers)
        self._passes[number] = (time.monotonic(), regions)
        try:
            yield
        finally:
            del self._passes[number]

    def check(self) -> None:
        """Called now and then, in the thread that waits for results.

        Raises:
            EndlessPass: a pass has taken longer than the limit.
        """
        for number, (since, regions) in list(self._passes.items()):
            seconds = time.monotonic() - since
            if self._limit is not None and seconds > self._limit:
                raise self._endless(regions, self._limit)
            if seconds > NOTICE and number not in self._told:
                self._told.add(number)
                log.warning(
                    "%s: in the model for %.0f minutes now. --max-model-seconds ends a run at such "
                    "a pass, and the next one leaves its item out",
                    _names(regions), seconds / 60,
                )  # fmt: skip

    def _endless(self, regions: Sequence[PreparedRegion], limit: float) -> EndlessPass:
        """A verdict on one item; of several any may be at fault, so that each has its turn alone
        in the next run."""
        reason: ItemError = TooLong(
            f"the model had not ended with it after {limit:g} s (--max-model-seconds); a higher "
            "limit and --retry-failed give it another try"
        )
        wholes = {(one.item.id, one.region.base): one.item for one in regions}
        if len(wholes) > 1:
            reason = PassingFault(
                f"the model had not ended after {limit:g} s (--max-model-seconds) with "
                f"{len(wholes)} items, this one among them; the next run tries each of them alone"
            )
        return EndlessPass(
            f"the model had not ended after {limit:g} s (--max-model-seconds) with "
            f"{_names(regions)}, noted as failed. What came before is committed; give the "
            "same command again for the rest",
            [Failure.of(item, region, reason) for (_, region), item in wholes.items()],
        )


def _names(regions: Sequence[PreparedRegion]) -> str:
    names = list(dict.fromkeys(one.item.id for one in regions))
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


AHEAD = 4  # pieces of work for each engine that are under way, so that none of them runs dry


class EnginePool(Generic[T]):
    """Gives pieces of work to free engines.

    hold: the largest sum of the sizes of pieces under way; beyond it the oldest is waited for.
    pause: given in between while a piece is waited for, where it is not None; `check` is called
    before.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        pool: ThreadPoolExecutor,
        hold: int,
        pause: T | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        self._engines, self._pool, self._hold, self._pause = engines, pool, hold, pause
        self._check = check
        self._flying: deque[tuple[Future[T], int]] = deque()

    def give(
        self, work: Callable[[Engine], T], size: int = 1, meanwhile: bool = True
    ) -> Iterator[T]:
        """Start a piece of work; yields results of the oldest ones, as many as make room.

        meanwhile: whether the caller has something else to do. If not, a single engine works in
        the caller's own thread.
        """
        if not meanwhile and len(self._engines) == 1:
            yield from self.rest()
            yield work(self._engines[0])
            return
        self._flying.append((self._pool.submit(self._work, work), size))
        while self._crowded:
            yield from self._oldest()
        yield from self.ended()

    @property
    def _crowded(self) -> bool:
        sizes = [size for _, size in self._flying]
        return len(sizes) >= AHEAD * len(self._engines) or sum(sizes) > self._hold

    @property
    def busy(self) -> bool:
        """Whether a piece of work is under way."""
        return bool(self._flying)

    def _oldest(self) -> Iterator[T]:
        """The result of the oldest piece, behind as many pauses as it takes."""
        future = self._flying[0][0]
        while self._pause is not None and not wait([future], PATIENCE).done:
            self._check()
            yield self._pause
        self._flying.popleft()
        yield future.result()

    def ended(self) -> Iterator[T]:
        """The results that are ready, the oldest first."""
        while self._flying and self._flying[0][0].done():
            yield from self._oldest()

    def rest(self) -> Iterator[T]:
        """The results that are still to come."""
        while self._flying:
            yield from self._oldest()

    def _work(self, work: Callable[[Engine], T]) -> T:
        engine = self._free.get()
        try:
            return work(engine)
        finally:
            self._free.put(engine)


@contextmanager
def engine_pool(
    engines: Sequence[Engine],
    hold: int,
    pause: Any = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[EnginePool[Any]]:
    """A pool for a `with` block; work that has not begun when the block is left is dropped, and a
    pass that does not end is left behind, with its thread."""
    pool = ThreadPoolExecutor(len(engines), thread_name_prefix=ENGINES)
    ends = True
    try:
        yield EnginePool(engines, pool, hold, pause, check)
    except EndlessPass:
        ends = False
        raise
    finally:
        pool.shutdown(wait=ends, cancel_futures=True)
