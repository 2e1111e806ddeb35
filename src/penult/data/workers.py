"""Worker processes that decode: one that dies on a file, or hangs on it, is replaced.

The file is tried once more, in a fresh worker; the files behind it wait for another one. A worker
finds no module in the working folder, reads files and changes nothing (`sandbox`), and its answers
are checked (`messages`). Every file that a user gives is opened in one, unless that is turned off;
a worker that has done its work waits for the next call.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from penult.data import messages, sandbox
from penult.data.decode import (
    BRIEF_LIMIT,
    PATIENCE,
    Content,
    DecodedRegion,
    DecodeTarget,
    Decoding,
    Describe,
    Pair,
    item_key,
    open_regions,
    usual_decoding,
)
from penult.data.files import NO_ROOM
from penult.data.items import PAUSE, Failure, Item, N, is_object
from penult.data.messages import Ready, Start, WorkerAnswer
from penult.errors import DecodeError, ItemError, PassingFault, StoreError, TooLong, cause
from penult.import_path import environment, isolated_path
from penult.locking import Guard
from penult.memory import Held, started

log = logging.getLogger(__name__)
AHEAD = 16  # items for each worker that are read ahead
_OBJECTS = 1024  # of a store, the latest that a worker was sent
_BRIEF = 1 << 18  # bytes of a file that is decoded in no time, and sent with others
_LATE = 5.0  # seconds for several such files: behind them each of them is opened alone
_GROWTH = 0.5  # seconds in which decoding is waited for, a third of them, before one more worker
HELD = 64  # decoded regions of a worker that wait for the model
_START_LIMIT = 60.0  # seconds for a process to come up
_STARTS = 3  # workers that do not come up, one after the other, before the run ends
_AT_ONCE = 1 << 18  # bytes that are read from a pipe at once
_PIPE = 1 << 20  # bytes that a pipe holds
_HEAVY = 1 << 20  # bytes of an item that is here already, of which few are read ahead
_HEADERS = 256  # regions of one item that are told at once what it is
_FAULTS = 3  # faults of the system, one after the other, before files are no longer tried again
_CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
)


def decode(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget, decoding: Decoding
) -> Generator[DecodedRegion | Failure | N, None, None]:
    """Each region's content, in order, in this process or in workers; failures and notes pass
    through. Close it where not all is taken, so that the workers end."""
    started()
    if not decoding.workers or not _has_processes():
        return open_regions(pairs, target)
    return _decode_in_workers(pairs, target, decoding)


def _has_processes() -> bool:
    """Whether this program can start Python with pipes: Windows passes none on, and a program that
    is frozen into one file would start itself."""
    usable = os.name != "nt" and sys.platform not in ("emscripten", "wasi")
    return usable and bool(sys.executable) and not getattr(sys, "frozen", False)


def headers_in_workers(decoding: Decoding) -> Describe:
    """`open_regions` for headers: in a process of their own where items are decoded in some."""
    return partial(decode, decoding=decoding.of_headers)


def headers(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget
) -> Generator[DecodedRegion | Failure | N, None, None]:
    """`open_regions` for headers, where a call does not say how items are opened."""
    return decode(pairs, target, usual_decoding().of_headers)


def prepare_worker(modality: str, decoding: Decoding | None = None) -> None:
    """Start a worker that the next call takes, while a model is loaded."""
    decoding = decoding or usual_decoding()
    start = Start(DecodeTarget(modality), decoding.share)
    if decoding.workers and _has_processes() and not _KEPT.has(start):
        with suppress(OSError):  # the one who needs it tells
            _KEPT.keep(_Worker(start, Held(0)))


def _decode_in_workers(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget, decoding: Decoding
) -> Generator[DecodedRegion | Failure | N, None, None]:
    with Decoders(target, decoding, _KEPT) as decoders:
        yield from decoders.open_regions(pairs)


@dataclass(frozen=True, slots=True)
class _Gone:
    """The worker is not there any more, or does not answer. crash: its decoder ended it.
    came_up: it was there at first."""

    words: str
    crash: bool = False
    came_up: bool = True


@dataclass(slots=True)
class _Task:
    """Consecutive regions of one item, or another object that passes through. brief: its answers
    may come with those of others, so that a fault may be theirs. fault: of the worker that had it
    first."""

    pairs: list[Any]
    worker: int | None = None  # None: not for a worker
    brief: bool = False
    fault: _Gone | None = None

    @property
    def is_heavy(self) -> bool:
        """Whether it holds much itself, and reading ahead of it helps no worker."""
        return (
            self.worker is None and type(self.pairs[0]) is tuple and self.pairs[0][0].held > _HEAVY
        )


class Decoders:
    """Worker processes that decode, each started as there is work for it; use as a context, so that
    they end. kept: where those wait that have no work, before and after."""

    def __init__(
        self, target: DecodeTarget, decoding: Decoding, kept: KeptWorkers | None = None
    ) -> None:
        self._start, self._decoding = Start(target, decoding.share), decoding
        self._count, self._limit = decoding.workers, decoding.time_limit
        self._pause = min(PATIENCE, self._limit)
        self._held = Held(decoding.limits.bound.waiting)
        self._workers: list[_Worker] = []
        self._kept = kept or KeptWorkers(0)
        # One more for what does not fit into a worker's share, once there is such an item.
        self._roomy = replace(self._start, memory=decoding.limits.bound.size // 2)
        self._spare: _Worker | None = None
        self._load = _Load(decoding.workers)
        self._faults = 0  # of the system, one after the other
        self._doing = "tell what it is" if target.header else "decode"

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._kept.keep(worker)
        if self._spare:
            self._spare.end()

    def _fresh(self, start: Start) -> _Worker:
        try:
            return _Worker(start, self._held)
        except OSError as error:
            raise StoreError(_NO_WORKER.format(cause(error))) from error

    def _send(self, task: _Task) -> None:
        """Give a task to its worker, which is started with its first one."""
        if task.worker is None:
            return
        while len(self._workers) <= task.worker:
            kept = self._kept.take(self._start, self._held)
            self._workers.append(kept or self._fresh(self._start))
        self._workers[task.worker].send(task.pairs, task.brief)

    def open_regions(
        self, pairs: Iterable[Pair | Failure | N]
    ) -> Iterator[DecodedRegion | Failure | N]:
        """Each region's content in order; failures and notes pass through.

        Raises:
            StoreError: no worker comes up.
        """
        tasks = self._tasks(pairs)
        ahead: deque[_Task] = deque()
        while True:
            began, most = time.monotonic(), AHEAD * self._load.workers
            # Several at a time: each that is sent by itself wakes up a thread and a process.
            for task in islice(tasks, most - len(ahead) if 2 * len(ahead) <= most else 0):
                if task.pairs[0] is PAUSE:
                    yield from task.pairs
                    break
                ahead.append(task)
                self._send(task)
                if ahead[0].worker is None:
                    break  # it is there: whoever gives items one by one has its result at once
                if time.monotonic() - began > self._pause and self._is_answered(ahead[0]):
                    break  # where items come slowly, a result waits for no more of them
                if task.is_heavy:
                    break
            else:
                if not ahead:
                    return
            if not ahead:
                continue
            task = ahead[0]
            if task.worker is None:
                yield from open_regions(task.pairs, self._start.target)
            else:
                yield from self._received(task, ahead)
            ahead.popleft()

    def _is_answered(self, task: _Task) -> bool:
        return task.worker is None or self._workers[task.worker].answers

    def _tasks(self, pairs: Iterable[Pair | Failure | N]) -> Iterator[_Task]:
        turn = 0
        for key, group in groupby(pairs, key=item_key):
            if key is None:
                yield from (_Task([one]) for one in group)
                continue
            # A recording is decoded in one go; of headers no more are read than are asked for.
            most = _HEADERS if self._start.target.header else None
            while regions := list[Any](islice(group, most)):
                if isinstance(regions[0][0].content, Path | bytes):
                    brief = self._decoding.retry and _is_brief(regions[0][0])
                    yield _Task(regions, turn % self._load.workers, brief)
                else:
                    yield from (_Task([one]) for one in regions)  # it is here already
            turn += 1

    def _received(self, task: _Task, ahead: deque[_Task]) -> Iterator[Any]:
        """A task's regions. What its worker fails at is tried once more; if that fails too, the
        rest of them are failures of its item."""
        assert task.worker is not None
        number = 0
        while number < len(task.pairs):
            item, region = task.pairs[number]
            answer = yield from self._answer(task, number, ahead)
            if isinstance(answer, _Gone):
                log.info("%s %s; another worker takes over", item.id, answer.words)
                again = task.fault is None and self._decoding.retry
                rest = task.pairs[number:]
                self._replace(task.worker, [rest] if again else [], ahead)
                if not again:
                    lost = _verdict(task.fault, answer)
                    yield from (DecodedRegion(one, part, lost) for one, part in rest)
                    return
                # Whose fault it was of several is found by opening each alone.
                task.fault, task.brief = None if task.brief else answer, False
                continue
            if self._lacks_room(answer.content):
                answer = yield from self._with_more_room((item, region), answer)
            yield DecodedRegion(item, region, answer.content, answer.seconds)
            number += 1

    def _lacks_room(self, content: object) -> bool:
        """Whether content did not fit into a worker's share of the memory, and there is more."""
        more = (self._roomy.memory or 0) > (self._start.memory or 0)
        return _is_cramped(content) and more and self._decoding.worker_memory is None

    def _with_more_room(
        self, pair: Pair, answer: WorkerAnswer
    ) -> Generator[Any, None, WorkerAnswer]:
        """The answer of the worker that has more room, or this one where that worker is lost."""
        self._spare = self._spare or self._fresh(self._roomy)
        self._spare.send([pair])
        found = yield from self._waited_for(self._spare, self._limit)
        if isinstance(found, WorkerAnswer):
            return found
        self._spare.end()
        self._spare = None
        return answer

    def _answer(
        self, task: _Task, number: int, ahead: deque[_Task]
    ) -> Generator[Any, None, WorkerAnswer | _Gone]:
        """The answer to this region of a task, from a worker that came up; pauses while it is
        waited for. After a fault of the system its worker counts as gone, so that the file is
        opened anew."""
        assert task.worker is not None
        words = ""
        for _ in range(_STARTS):
            limit = min(self._limit, _LATE) if task.brief else self._limit
            with self._load.waits():
                answer = yield from self._waited_for(self._workers[task.worker], limit)
            if isinstance(answer, WorkerAnswer):
                return self._counted(task, answer)
            if answer.came_up:
                return answer
            words = answer.words
            self._replace(task.worker, [task.pairs[number:]], ahead)
        raise StoreError(_NO_WORKER.format(words))

    def _waited_for(
        self, worker: _Worker, limit: float
    ) -> Generator[Any, None, WorkerAnswer | _Gone]:
        """The time limit is for the file: a process that starts on a busy machine has its own."""
        began, starts = time.monotonic(), True
        while (answer := worker.receive(self._pause)) is None:
            if starts and worker.ready is not None:
                began, starts = time.monotonic(), False
            waited = time.monotonic() - began
            if starts and waited >= max(_START_LIMIT, self._limit):
                return _Gone(f"does not start in {waited:.0f} s", came_up=False)
            if not starts and waited >= limit:
                return _Gone(f"takes longer than {limit:g} s to {self._doing}")
            if self._decoding.patience is not None:
                yield PAUSE
        return answer

    def _counted(self, task: _Task, answer: WorkerAnswer) -> WorkerAnswer | _Gone:
        if not isinstance(answer.content, PassingFault):
            self._faults = 0
            return answer
        self._faults += 1
        task.brief = False  # the fault is this file's, whatever was sent with it
        first = task.fault is None and self._faults <= _FAULTS and self._decoding.retry
        return _Gone(str(answer.content)) if first else answer

    def _replace(self, number: int, first: list[list[Pair]], ahead: deque[_Task]) -> None:
        """A fresh worker in the place of another, with what that one had not answered."""
        self._workers[number].end()
        self._workers[number] = again = self._fresh(self._start)
        for pairs in first:
            again.send(pairs)
        for later in islice(ahead, 1, None):
            if later.worker == number:
                later.brief = False
                again.send(later.pairs)


class _Load:
    """How many of the workers are needed: one more where decoding is what is waited for, since
    beyond that they only take the processor away from the model."""

    def __init__(self, most: int) -> None:
        self.workers, self._most = 1, most
        self._since, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Around the wait for one answer."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self._waited += now - began
        if self.workers < self._most and now - self._since > _GROWTH:
            self.workers += 3 * self._waited > now - self._since
            self._since, self._waited = now, 0.0


def _is_brief(item: Item) -> bool:
    size = len(item.content) if isinstance(item.content, bytes) else item.size
    if isinstance(item.content, Path) and is_object(item.content):
        return False  # a store may take its time
    return size is not None and size <= _BRIEF


_NO_WORKER = (
    "no process for decoding comes up: {}; "
    "--workers 0, in Python decoding_as(Decoding()), needs none"
)


def _verdict(first: _Gone | None, last: _Gone) -> ItemError:
    """Why a file fails that its workers were lost on: a decoder that ends its process twice says
    something of the file; a process that is killed or stalls may do so for any other reason."""
    crashes = last.crash and (first is None or first.crash)
    words = f"{last.words}, twice" if first is not None else last.words
    return DecodeError(words) if crashes else PassingFault(words)


# What a worker runs first. Its pipes are neither its standard input nor its output, and nothing is
# imported before its path is set.
_CODE = """import sys
sys.path[:] = sys.argv[3:]
from penult.data.decoding_process import serve
serve(int(sys.argv[1]), int(sys.argv[2]))"""


def _start_process(tasks: int, answers: int) -> subprocess.Popen[bytes]:
    """A worker that reads from one pipe and writes to another.

    Of threads that libraries keep for matrices it needs none. It stands in the root folder, since
    the system's loader of libraries may look where a process stands.
    """
    threads = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    options = ["-P", "-B", f"-Xutf8={sys.flags.utf8_mode}"]
    return subprocess.Popen(
        [sys.executable, *options, "-c", _CODE, str(tasks), str(answers), *isolated_path()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # decoders print warnings there
        pass_fds=(tasks, answers),
        cwd=os.path.abspath(os.sep),  # noqa: PTH100
        env=environment() | threads,
    )


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Worker:
    """One process: tasks go to it through one thread and answers come back through another, so that
    neither side ever waits for the other to read."""

    start: Start
    held: Held
    process: subprocess.Popen[bytes] = field(init=False)
    ready: Ready | None = None
    _ended: bool = False
    _due: int = 0  # answers that have not been taken
    _full: bool = False  # something did not fit: what earlier files left may be in its way
    _pipes: tuple[int, ...] = ()
    _surroundings: dict[str, str] = field(default_factory=lambda: _surroundings())
    _tasks: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _answers: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(HELD))
    _objects: dict[str, Any] = field(default_factory=dict)  # whose bytes it may ask for

    def __post_init__(self) -> None:
        tasks, to_worker = os.pipe()
        from_worker, answers = os.pipe()
        try:
            self.process = _start_process(tasks, answers)
        except BaseException:
            os.close(to_worker)
            os.close(from_worker)
            raise
        finally:
            os.close(tasks)
            os.close(answers)
        # A thread that is left behind at the end of the run does not end what hangs.
        weakref.finalize(self, self.process.kill)
        _widen(from_worker)
        self._pipes = to_worker, from_worker
        first = messages.start_header(self.start)
        for work in (partial(self._write, to_worker, first), partial(self._read, from_worker)):
            threading.Thread(target=work, daemon=True).start()

    def send(self, pairs: list[Pair], brief: bool = False) -> None:
        """brief: the answers may come with those of others that are."""
        self._due += len(pairs)
        content = pairs[0][0].content
        if isinstance(content, Path) and is_object(content):
            self._objects[str(content)] = content
            while len(self._objects) > _OBJECTS:
                del self._objects[next(iter(self._objects))]
        self._tasks.put((pairs, brief))

    def fits(self, start: Start) -> bool:
        """Whether it is there, without work, for what another start would make: a share of what is
        free is never the same twice."""
        memory, wanted = self.start.memory or 0, start.memory or 0
        return (
            self.start.target.modality == start.target.modality
            and not start.trial
            and 0.75 * wanted <= memory <= 1.1 * wanted
            and self._surroundings == _surroundings()
            and self.is_idle
        )

    @property
    def is_idle(self) -> bool:
        """Whether its process lives, with nothing to do and nothing to tell."""
        done = not self._due and not self._ended and not self._full
        return done and not self.answers and self.process.poll() is None

    def turn_to(self, target: DecodeTarget, held: Held) -> None:
        """Go on with another target, once nothing is due."""
        self.start, self.held = replace(self.start, target=target), held
        self._objects.clear()
        self._tasks.put(target)

    def forget(self) -> None:
        """In a forked process, which has neither its threads nor its process."""
        for pipe in self._pipes:
            with suppress(OSError):
                os.close(pipe)

    def receive(self, limit: float) -> WorkerAnswer | _Gone | None:
        """The next answer, or why there is none; None where none comes within so many seconds."""
        answer: WorkerAnswer | BaseException
        try:
            answer, size = self._answers.get(timeout=limit)
        except queue.Empty:
            return None
        self.held.free(size)
        if isinstance(answer, WorkerAnswer):
            self._due -= 1
            self._full |= _is_cramped(answer.content)
            return answer
        if self.ready is None or self.ready.failure:
            reason = self.ready.failure if self.ready else self._end_words()[0]
            return _Gone(reason, came_up=False)
        if isinstance(answer, MemoryError):
            return _Gone("does not fit into the memory that there is now")
        if isinstance(answer, EOFError):
            return _Gone(*self._end_words())
        return _Gone("makes the process that decodes it answer in no known form", crash=True)

    @property
    def answers(self) -> bool:
        """Whether an answer is there."""
        return not self._answers.empty()

    def wait_ready(self, limit: float) -> Ready | None:
        """What the process tells of itself; None where it does not come up."""
        self._tasks.put(None)  # it ends once it has told
        with suppress(queue.Empty):
            self._answers.get(timeout=limit)
        return self.ready if self.ready and not self.ready.failure else None

    def _end_words(self) -> tuple[str, bool]:
        """How the process ended, and whether its decoder did it."""
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "makes the process that decodes it close its pipe", True
        if code >= 0:
            return f"ends the process that decodes it (exit code {code})", True
        known = signal.Signals(-code) if -code in {*signal.Signals} else None
        how = known.name if known else f"signal {-code}"
        return f"ends the process that decodes it ({how})", known in _CRASHES

    def end(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # it may hang in a disk that does not answer
            self.process.wait(_PATIENCE)
        self._tasks.put(None)
        self._ended = True
        with suppress(queue.Empty):  # makes room for the thread that may wait to give an answer
            while True:
                self.held.free(self._answers.get_nowait()[1])

    def _write(self, pipe: int, first: messages.Head) -> None:
        try:
            messages.send(pipe, first)
            waiting: deque[Any] = deque()
            while (task := waiting.popleft() if waiting else self._tasks.get()) is not None:
                if isinstance(task, DecodeTarget):
                    messages.send_target(pipe, task)
                    continue
                if isinstance(task, bytes | ItemError):
                    messages.send_range(pipe, task)
                    continue
                with suppress(queue.Empty):
                    while len(waiting) < AHEAD:
                        waiting.append(self._tasks.get_nowait())
                together = [task[0]]
                while task[1] and waiting and type(waiting[0]) is tuple and waiting[0][1]:
                    together.append(waiting.popleft()[0])
                messages.send_tasks(pipe, together)
        except BaseException as error:  # the thread that reads finds the process gone
            log.debug("a worker cannot be written to: %s", error)
            self.process.kill()
        finally:
            os.close(pipe)

    def _range(self, wanted: messages.RangeRequest) -> bytes | ItemError:
        """Bytes of an object that the process was sent, and of no other."""
        from penult.data.object_store import fetched

        try:
            return fetched(self._objects[wanted.uri], wanted.start, wanted.stop)
        except ItemError as error:
            return error

    def _read(self, pipe: int) -> None:
        most = self.start.memory or _memory()
        answer: WorkerAnswer | BaseException
        with open(pipe, "rb", _AT_ONCE) as answers:
            while True:
                try:
                    if self.ready is None:
                        self.ready = messages.read_ready(answers)
                        continue
                    message = messages.receive_answer(answers, most)
                    if (wanted := messages.range_of(message)) is not None:
                        self._tasks.put(self._range(wanted))
                        continue
                    target = self.start.target  # of now: it may have waited long for a message
                    answer = messages.answer_of(message, target.modality, target.header)
                except BaseException as error:  # whatever it is, the file's failure tells it
                    answer = error
                size = _size(answer)
                # One answer of each worker may always wait: it may be the one that is asked for.
                self.held.take(size, lambda: self._ended or self._answers.empty())
                self._answers.put((answer, size))
                if not isinstance(answer, WorkerAnswer):
                    return


def _widen(pipe: int) -> None:
    """Let a pipe hold several short sounds, where the system lets it."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


def _is_cramped(content: object) -> bool:
    return isinstance(content, TooLong) and str(content) == NO_ROOM


def _surroundings() -> dict[str, str]:
    """What tells a worker where modules are."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}


class KeptWorkers:
    """Workers without work, of the whole process: to start one takes some tenths of a second. Files
    of several calls are then opened in one of them, one after the other."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._workers: list[_Worker] = []
        self._guard = Guard()

    def has(self, start: Start) -> bool:
        """Whether there is one that does as well as a fresh one."""
        with self._guard:
            return any(worker.fits(start) for worker in self._workers)

    def keep(self, worker: _Worker) -> None:
        """A worker that waits from now on, unless it has work left; of too many the one ends that
        waits longest."""
        with self._guard:
            waiting = [*self._workers, *([worker] if worker.is_idle else [])]
            self._workers = waiting[max(0, len(waiting) - self._most) :]
            over = [one for one in (*waiting, worker) if one not in self._workers]
        for one in dict.fromkeys(over):
            one.end()

    def take(self, start: Start, held: Held) -> _Worker | None:
        """One that does as well as a fresh one, if there is one."""
        with self._guard:
            found = next((one for one in self._workers if one.fits(start)), None)
            unfit = [one for one in self._workers if not one.is_idle]
            self._workers = [one for one in self._workers if one not in (found, *unfit)]
        for worker in unfit:
            worker.end()
        if found is not None:
            found.turn_to(start.target, held)
        return found

    def forget(self) -> None:
        """In a forked process: they are the parent's."""
        for worker in self._workers:
            worker.forget()
        self._workers = []


_KEPT = KeptWorkers(4)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_KEPT.forget)


def _size(answer: WorkerAnswer | BaseException) -> int:
    content = answer.content if isinstance(answer, WorkerAnswer) else None
    return content.size if isinstance(content, Content) else 0


@dataclass(frozen=True, slots=True)
class WorkerBounds:
    """What a worker is kept from (network, writes, processes, memory), each with what does that;
    nothing does where it is not kept from it. Found by a worker that tries."""

    kept_from: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: {"kept": bool(by), "by": by} for name, by in self.kept_from.items()}


def measure_bounds() -> WorkerBounds:
    """Start a worker and let it try what it is to be kept from.

    Raises:
        StoreError: it does not come up.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").touch()
        worker = _Worker(Start(DecodeTarget("text"), 1 << 28, folder), Held(0))
        try:
            ready = worker.wait_ready(BRIEF_LIMIT)
        finally:
            worker.end()
    if ready is None:
        raise StoreError("no process for decoding comes up")
    kept = {
        name: [] if name in ready.open else [one for one in ready.bounds if one.startswith(ways)]
        for name, ways in sandbox.KEPT_FROM.items()
    }
    return WorkerBounds(kept)


_PATIENCE = 10.0  # seconds for a process that is killed, or ends, to be gone


def _memory() -> int:
    """Bytes of the machine: no content is larger."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40
