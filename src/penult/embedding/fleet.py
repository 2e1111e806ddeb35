"""Work for engines, each in a thread of its own, so that nothing else has to wait for them.

Knows neither batches nor items: what is run is a function of an engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from penult.engines.base import Engine

T = TypeVar("T")
AHEAD = 4  # pieces of work for each engine that are under way, so that none of them runs dry


class Fleet(Generic[T]):
    """Gives pieces of work to whichever engine is free.

    hold: the sum of the sizes of what is under way; a piece that is larger is waited for.
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
        """Take on a piece of work; gives results of the oldest ones, as many as make room.

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
        """The results that are there already, the oldest first."""
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
def fleet(engines: Sequence[Engine], hold: int) -> Iterator[Fleet[Any]]:
    """A fleet for a `with` block; work that has not begun when the block is left is dropped."""
    pool = ThreadPoolExecutor(len(engines), thread_name_prefix="engine")
    try:
        yield Fleet(engines, pool, hold)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
