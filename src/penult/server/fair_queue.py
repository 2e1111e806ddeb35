"""A queue that serves clients in turns, by the work that each has had; and threads for it."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable

log = logging.getLogger(__name__)
Job = Callable[[], None]


class FairQueue:
    """Jobs of clients. The next one is of the client that has had the least work since it began to
    wait; of one client they come in their order.

    threads: how many take jobs. Of several at most all but one work for one client, so that one
    client's slow items never hold up everybody.
    """

    def __init__(self, threads: int) -> None:
        self._most = max(1, threads - 1)
        self._jobs: dict[str, deque[tuple[Job, float]]] = {}
        self._had: dict[str, float] = {}  # of those that have jobs or are worked for
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, client: str, job: Job, cost: float) -> None:
        """Add a job. cost: its work, compared with that of others."""
        with self._changed:
            if client not in self._had:  # who comes now has no credit for the time before
                self._had[client] = min(self._had.values(), default=0.0)
            self._jobs.setdefault(client, deque()).append((job, cost))
            self._changed.notify()

    def take(self) -> tuple[str, Job] | None:
        """The next job and its client, once there is one; None once the queue is closed. `done`
        has to follow."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next() is not None)
            client = self._next()
            if client is None:
                return None
            job, cost = self._jobs[client].popleft()
            if not self._jobs[client]:
                del self._jobs[client]
            self._had[client] += cost
            self._running[client] += 1
            return client, job

    def done(self, client: str) -> None:
        """A job that was taken has ended."""
        with self._changed:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]
                if client not in self._jobs:
                    del self._had[client]
            self._changed.notify_all()

    def close(self) -> None:
        """Jobs that wait are still taken; then `take` gives None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> str | None:
        free = [one for one in self._jobs if self._closed or self._running[one] < self._most]
        return min(free, key=lambda one: self._had[one], default=None)


class FairThreads:
    """Threads that work on the jobs of a fair queue."""

    def __init__(self, name: str, threads: int) -> None:
        self._queue = FairQueue(threads)
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, client: str, job: Job, cost: float = 1.0) -> None:
        """Add a job, which answers its own errors."""
        self._queue.put(client, job, cost)

    def close(self) -> None:
        """What waits is done; then the threads end."""
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (taken := self._queue.take()) is not None:
            client, job = taken
            try:
                job()
            except Exception:  # a thread that ends would serve nobody
                log.exception("a job failed without an answer")
            finally:
                self._queue.done(client)
