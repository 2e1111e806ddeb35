"""Decode in worker processes, so that the model never waits and no file can take the run with it.

A worker that dies on a file, or hangs on it, is replaced, and the file is named as a failure.
Knows how to ask other processes for what `opening` does; no model.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

from penult.embedding.opening import Opened, Pair, Wanted, open_regions, same_item
from penult.errors import DecodeError, PenultError

log = logging.getLogger(__name__)
AHEAD = 8  # items for each worker that are read before the first of them is asked for
HELD = 64  # decoded regions of a worker that wait for the model
TIME_LIMIT = 300.0  # seconds that one region may take to decode
BRIEF_LIMIT = 30.0  # where another item does as well


def default_workers() -> int:
    """Half of the machine's processors, four at most: a model is what needs most of them."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, slots=True)
class Decoding:
    """How items are opened.

    max_seconds: longer regions are refused, not read. workers: processes that decode; 0 decodes in
    this one, which a file can then crash or hold up. time_limit: seconds that a worker may take for
    one region, behind which its file counts as hanging.
    """

    max_seconds: float | None = None
    workers: int = 0
    time_limit: float = TIME_LIMIT

    @property
    def briefly(self) -> Decoding:
        """For a look at a few items: one process at most, and less patience."""
        limit = min(self.time_limit, BRIEF_LIMIT)
        return Decoding(self.max_seconds, min(1, self.workers), limit)


@dataclass(slots=True)
class _Task:
    """Consecutive regions of one item, or something that is only handed on."""

    pairs: list[Any]
    worker: int | None = None  # None: not for a worker


class Decoders:
    """Worker processes that decode, if any; use as a context, so that they end."""

    def __init__(self, wanted: Wanted, decoding: Decoding) -> None:
        self._wanted, self._count, self._limit = wanted, decoding.workers, decoding.time_limit
        self._workers: list[_Worker] = []

    def __enter__(self) -> Decoders:
        self._workers = [_Worker(self._wanted) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def open_regions(self, pairs: Iterable[Pair | Any]) -> Iterator[Opened | Any]:
        """As `opening.open_regions`: each region's content in order, the rest handed on. To be
        asked again only once all of it is given."""
        if not self._workers:
            yield from open_regions(pairs, self._wanted)
            return
        tasks = self._tasks(pairs)
        ahead: deque[_Task] = deque()
        while True:
            for task in islice(tasks, AHEAD * self._count - len(ahead)):
                ahead.append(task)
                if task.worker is not None:
                    self._workers[task.worker].send(task.pairs)
            if not ahead:
                return
            task = ahead[0]
            if task.worker is None:
                yield from open_regions(task.pairs, self._wanted)
            else:
                yield from self._received(task, ahead)
            ahead.popleft()

    def _tasks(self, pairs: Iterable[Pair | Any]) -> Iterator[_Task]:
        turn = 0
        for key, group in groupby(pairs, key=same_item):
            if key is None or not isinstance(key[1], Path):
                yield from (_Task([one]) for one in group)  # it is here already
            else:
                yield _Task(list(group), turn % self._count)
                turn += 1

    def _received(self, task: _Task, ahead: deque[_Task]) -> Iterator[Opened]:
        """A task's regions; if its worker fails, the rest of them are failures of its item."""
        assert task.worker is not None
        worker = self._workers[task.worker]
        for number, (item, region) in enumerate(task.pairs):
            answer = worker.receive(self._limit)
            if isinstance(answer, _Gone):
                lost = DecodeError(answer.words)
                log.info("%s %s; another worker takes over", item.id, answer.words)
                yield from (Opened(one, part, lost) for one, part in task.pairs[number:])
                worker.end()
                self._workers[task.worker] = again = _Worker(self._wanted)
                for later in islice(ahead, 1, None):
                    if later.worker == task.worker:
                        again.send(later.pairs)
                return
            if isinstance(answer, PenultError):
                raise answer
            yield Opened(item, region, *answer)


@dataclass(frozen=True, slots=True)
class _Gone:
    """The worker is not there any more, or does not answer."""

    words: str


@dataclass(slots=True)
class _Worker:
    """One process: what it is asked goes through one thread, what it answers through another, so
    that neither side ever waits for the other to listen."""

    wanted: Wanted
    process: subprocess.Popen[bytes] = field(init=False)
    _asked: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _answers: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(HELD))

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from penult.embedding.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print there what they think of a file
        )
        self.send(self.wanted)
        for target in (self._write, self._read):
            threading.Thread(target=target, daemon=True).start()

    def send(self, message: Any) -> None:
        self._asked.put(message)

    def receive(self, limit: float) -> Any:
        """The next answer, or `_Gone`."""
        try:
            answer = self._answers.get(timeout=limit)
        except queue.Empty:
            return _Gone(f"takes longer than {limit:g} s to decode")
        if answer is not None:
            return answer
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Gone(f"ends the process that decodes it ({how})")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._asked.put(None)
        with suppress(queue.Empty):  # makes room for the thread that may wait to give an answer
            while True:
                self._answers.get_nowait()

    def _write(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with suppress(OSError, ValueError), pipe:
            while (message := self._asked.get()) is not None:
                _put(pipe, message)

    def _read(self) -> None:
        pipe = self.process.stdout
        assert pipe is not None
        with pipe:
            while True:
                try:
                    answer = _get(pipe)
                except (EOFError, OSError, ValueError):
                    answer = None
                self._answers.put(answer)
                if answer is None:
                    return


def serve() -> None:
    """A worker's life: read what to decode from standard input, write contents, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  what a decoder prints is no answer
        os.dup2(nowhere.fileno(), 1)
    with suppress(EOFError, BrokenPipeError):
        wanted = _get(sys.stdin.buffer)
        while True:
            for content in _contents(_get(sys.stdin.buffer), wanted):
                _put(answers, content)


def _contents(pairs: list[Pair], wanted: Wanted) -> Iterator[Any]:
    """One answer for each pair, whatever happens: its content and the seconds that it took."""
    given = 0
    try:
        for opened in open_regions(pairs, wanted):
            given += 1
            yield opened.content, opened.seconds
    except PenultError as error:  # an extra that is missing: the run ends with it
        yield from [error] * (len(pairs) - given)


def _put(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _get(pipe: IO[bytes]) -> Any:
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", size)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)  # noqa: S301  from our own process
