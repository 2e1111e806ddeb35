"""Regions that wait for a batch, the order of results, and engines that each work in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from penult.data.decode import Content
from penult.data.items import Item
from penult.data.regions import Region
from penult.engines.base import Engine
from penult.engines.batching import ALONE, BatchPolicy, Planner
from penult.models.base import Inputs


@dataclass(frozen=True, slots=True)
class PreparedRegion:
    """A region that waits for its forward pass."""

    item: Item
    region: Region
    content: Content
    inputs: Inputs

    @property
    def size(self) -> int:
        """Numbers in the largest of its inputs."""
        return max(value.numel() for value in self.inputs.tensors.values())


class BatchQueue:
    """Prepared regions by their numbers, taken in batches.

    policy: gives how they may share one; called once there are two of them.
    """

    def __init__(self, planner: Planner, policy: Callable[[], BatchPolicy]) -> None:
        self.planner, self._policy = planner, policy
        self._regions: dict[int, PreparedRegion] = {}
        self._single: int | None = None  # waits alone, and was not offered to the planner

    def __bool__(self) -> bool:
        return bool(self._regions)

    def add(self, number: int, ready: PreparedRegion) -> None:
        """Add a region."""
        self._regions[number] = ready
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
        return self.planner.full or (bool(self.planner) and self._policy().name == ALONE)

    def take(self) -> dict[int, PreparedRegion]:
        """The next batch, the region that has waited longest in it."""
        if self._single is not None:
            numbers, self._single = [self._single], None
        else:
            numbers = self.planner.take()
        return {number: self._regions.pop(number) for number in numbers}


class OrderedResults(dict[int, Any]):
    """Results by their numbers, put in any order and taken in that of the numbers."""

    _next = 0

    def take(self) -> Iterator[Any]:
        """The results whose turn it is."""
        while self._next in self:
            yield self.pop(self._next)
            self._next += 1


T = TypeVar("T")
AHEAD = 4  # pieces of work for each engine that are under way, so that none of them runs dry


class EnginePool(Generic[T]):
    """Gives pieces of work to free engines.

    hold: the largest sum of the sizes of pieces under way; beyond it the oldest is waited for.
    """

    def __init__(self, engines: Sequence[Engine], pool: ThreadPoolExecutor, hold: int) -> None:
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        self._engines, self._pool, self._hold = engines, pool, hold
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
            yield self._oldest()
        yield from self.ended()

    @property
    def _crowded(self) -> bool:
        sizes = [size for _, size in self._flying]
        return len(sizes) >= AHEAD * len(self._engines) or sum(sizes) > self._hold

    def _oldest(self) -> T:
        return self._flying.popleft()[0].result()

    def ended(self) -> Iterator[T]:
        """The results that are ready, the oldest first."""
        while self._flying and self._flying[0][0].done():
            yield self._oldest()

    def rest(self) -> Iterator[T]:
        """The results that are still to come."""
        while self._flying:
            yield self._oldest()

    def _work(self, work: Callable[[Engine], T]) -> T:
        engine = self._free.get()
        try:
            return work(engine)
        finally:
            self._free.put(engine)


@contextmanager
def engine_pool(engines: Sequence[Engine], hold: int) -> Iterator[EnginePool[Any]]:
    """A pool for a `with` block; work that has not begun when the block is left is dropped."""
    pool = ThreadPoolExecutor(len(engines), thread_name_prefix="engine")
    try:
        yield EnginePool(engines, pool, hold)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
