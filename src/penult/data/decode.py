"""Regions to decoded values: sound, images, frames and texts, in order, in worker processes.
Knows no model.

A worker that dies on a file, or hangs on it, is replaced, and the file is named as a failure.
Regions of one item that come one after the other are cut out of one decoding.
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
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, tee
from pathlib import Path
from typing import IO, Any

from penult.data import audio, image, text, video
from penult.data.items import Failure, Item, N
from penult.data.regions import Region
from penult.errors import DecodeError, ItemError, PenultError, RegionError, TooLong, cause

# What a library may raise on a file that it was not written for.
UNFORESEEN = (ValueError, RuntimeError, IndexError, TypeError, AssertionError, ZeroDivisionError)

Pair = tuple[Item, Region]


@dataclass(frozen=True, slots=True)
class DecodeTarget:
    """What a model takes: modality, samples per second of sound, frames of a video. For sound:
    the longest region, in seconds, that is read at all, and how many of its first are enough."""

    modality: str
    rate: int | None = None
    frames: int | None = None
    max_seconds: float | None = None
    first_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """A region's decoded content, and where in the item it lies (seconds; None: no time axis).
    pages: of a picture, how many were decoded where it has more; else None. notes: of an
    item that was read against its own header."""

    values: Any
    start: float | None = None
    end: float | None = None
    pages: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedRegion:
    """A region and its content, or why there is none; and the seconds that this took."""

    item: Item
    region: Region
    content: Content | ItemError
    seconds: float = 0.0


def open_regions(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget
) -> Generator[DecodedRegion | Failure | N, None, None]:
    """Each region's content, in order, decoded here; failures and notes pass through."""
    groups: Iterable[tuple[Any, Iterator[Any]]] = groupby(pairs, key=item_key)
    for key, group in groups:
        if key is None:
            yield from group
        else:
            yield from _decode_item(group, target)


def item_key(value: Any) -> tuple[str, Any] | None:
    """Equal for regions of one item; None for a failure or a note."""
    if type(value) is not tuple:
        return None
    content = value[0].content
    return value[0].id, content if isinstance(content, Path) else id(content)


def _decode_item(group: Iterator[Pair], target: DecodeTarget) -> Iterator[DecodedRegion]:
    """The regions of one item, from one pass over it."""
    pending: deque[Pair] = deque()
    first = next(group)

    def regions() -> Iterator[Region]:
        for pair in chain([first], group):
            pending.append(pair)
            yield pair[1]

    try:
        began = time.perf_counter()
        for content in _READERS[target.modality](first[0], regions(), target):
            item, region = pending.popleft()
            yield DecodedRegion(item, region, content, time.perf_counter() - began)
            began = time.perf_counter()
    except (OSError, MemoryError, ItemError, *UNFORESEEN) as error:  # ends this item, not the run
        rest = [*(pending or [first]), *group]
        yield from (DecodedRegion(item, region, _unforeseen(error)) for item, region in rest)


Contents = Iterator[Content | ItemError]


def _sounds(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    ahead, regions = tee(regions)
    clips = audio.load_many(
        item.content,
        ahead,
        target.rate or 0,
        max_seconds=target.max_seconds,
        source_rate=item.rate,
        first_seconds=target.first_seconds,
    )
    for clip, region in zip(clips, regions, strict=True):
        if isinstance(clip, ItemError):
            yield clip
            continue
        start = region.start or 0.0
        is_open = region.end is None or target.first_seconds is not None
        end = start + clip.seconds if is_open else region.end
        yield Content(clip.samples, start, end, notes=clip.notes)


def _pictures(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    ahead, behind = tee(regions)
    boxes, pages = tee(ahead)
    pictures = image.load_many(
        item.content, (_box(region) for region in boxes), (region.page for region in pages)
    )
    several: bool | None = None
    for picture, region in zip(pictures, behind, strict=True):
        if isinstance(picture, ItemError):
            yield picture
            continue
        if several is None and region.page is None:
            several = image.count_pages(item.content) > 1
        yield Content(picture, pages=1 if several and region.page is None else None)


def _box(region: Region) -> Any:
    if region.start is not None or region.end is not None:
        raise RegionError(f"an image has no time axis to cut {region.key!r} from")
    return region.box


def _videos(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    for region in regions:
        try:
            frames = video.load(item.content, region, target.frames or 16)
            yield Content(frames, region.start, region.end)
        except ItemError as error:
            yield error


def _texts(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    for region in regions:
        try:
            if region.kind != "whole" and region.chars is None:
                raise RegionError(f"text has no time axis to cut {region.key!r} from")
            yield Content(text.load(item.content, region.chars))
        except ItemError as error:
            yield error


_READERS = {"audio": _sounds, "image": _pictures, "video": _videos, "text": _texts}


def _unforeseen(error: BaseException) -> ItemError:
    if isinstance(error, ItemError):
        return error
    if isinstance(error, MemoryError):
        return TooLong("does not fit into memory; set --max-seconds or cut it with --window")
    return DecodeError(f"cannot be read: {cause(error)}")


log = logging.getLogger(__name__)
AHEAD = 8  # items for each worker that are read ahead
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
    one region, behind which its file counts as hanging. first_seconds: of each region of sound as
    many are read, and the rest is left, however long it is.
    """

    max_seconds: float | None = None
    workers: int = 0
    time_limit: float = TIME_LIMIT
    first_seconds: float | None = None

    @property
    def briefly(self) -> Decoding:
        """For a look at a few items: one process at most, and less patience."""
        limit = min(self.time_limit, BRIEF_LIMIT)
        return Decoding(self.max_seconds, min(1, self.workers), limit)


@dataclass(slots=True)
class _Task:
    """Consecutive regions of one item, or another object that passes through."""

    pairs: list[Any]
    worker: int | None = None  # None: not for a worker


def decode(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget, decoding: Decoding
) -> Generator[DecodedRegion | Failure | N, None, None]:
    """Each region's content, in order, in this process or in workers; failures and notes pass
    through. Close it where not all is taken, so that the workers end."""
    if not decoding.workers:
        return open_regions(pairs, target)
    return _decode_in_workers(pairs, target, decoding)


def _decode_in_workers(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget, decoding: Decoding
) -> Generator[DecodedRegion | Failure | N, None, None]:
    with Decoders(target, decoding) as decoders:
        yield from decoders.open_regions(pairs)


class Decoders:
    """Worker processes that decode; use as a context, so that they end."""

    def __init__(self, target: DecodeTarget, decoding: Decoding) -> None:
        self._target, self._count, self._limit = target, decoding.workers, decoding.time_limit
        self._workers: list[_Worker] = []

    def __enter__(self) -> Decoders:
        self._workers = [_Worker(self._target) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def open_regions(
        self, pairs: Iterable[Pair | Failure | N]
    ) -> Iterator[DecodedRegion | Failure | N]:
        """Each region's content in order; failures and notes pass through."""
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
                yield from open_regions(task.pairs, self._target)
            else:
                yield from self._received(task, ahead)
            ahead.popleft()

    def _tasks(self, pairs: Iterable[Pair | Failure | N]) -> Iterator[_Task]:
        turn = 0
        for key, group in groupby(pairs, key=item_key):
            if key is None or not isinstance(key[1], Path):
                yield from (_Task([one]) for one in group)  # it is here already
            else:
                yield _Task(list(group), turn % self._count)
                turn += 1

    def _received(self, task: _Task, ahead: deque[_Task]) -> Iterator[DecodedRegion]:
        """A task's regions; if its worker fails, the rest of them are failures of its item."""
        assert task.worker is not None
        worker = self._workers[task.worker]
        for number, (item, region) in enumerate(task.pairs):
            answer = worker.receive(self._limit)
            if isinstance(answer, _Gone):
                lost = DecodeError(answer.words)
                log.info("%s %s; another worker takes over", item.id, answer.words)
                yield from (DecodedRegion(one, part, lost) for one, part in task.pairs[number:])
                worker.end()
                self._workers[task.worker] = again = _Worker(self._target)
                for later in islice(ahead, 1, None):
                    if later.worker == task.worker:
                        again.send(later.pairs)
                return
            if isinstance(answer, PenultError):
                raise answer
            yield DecodedRegion(item, region, *answer)


@dataclass(frozen=True, slots=True)
class _Gone:
    """The worker is not there any more, or does not answer."""

    words: str


@dataclass(slots=True)
class _Worker:
    """One process: tasks go to it through one thread and answers come back through another, so that
    neither side ever waits for the other to read."""

    target: DecodeTarget
    process: subprocess.Popen[bytes] = field(init=False)
    _tasks: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _answers: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(HELD))

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from penult.data.decode import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print warnings there
        )
        self.send(self.target)
        for target in (self._write, self._read):
            threading.Thread(target=target, daemon=True).start()

    def send(self, message: Any) -> None:
        self._tasks.put(message)

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
        self._tasks.put(None)
        with suppress(queue.Empty):  # makes room for the thread that may wait to give an answer
            while True:
                self._answers.get_nowait()

    def _write(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with suppress(OSError, ValueError), pipe:
            while (message := self._tasks.get()) is not None:
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
    """A worker: read tasks from standard input and write contents, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  what a decoder prints is no answer
        os.dup2(nowhere.fileno(), 1)
    with suppress(EOFError, BrokenPipeError):
        target = _get(sys.stdin.buffer)
        while True:
            for content in _contents(_get(sys.stdin.buffer), target):
                _put(answers, content)


def _contents(pairs: list[Pair], target: DecodeTarget) -> Iterator[Any]:
    """One answer for each pair, whatever happens: its content and the seconds that it took."""
    done = 0
    try:
        for decoded in open_regions(pairs, target):
            assert isinstance(decoded, DecodedRegion)  # workers are sent regions only
            done += 1
            yield decoded.content, decoded.seconds
    except PenultError as error:  # an extra that is missing: the run ends with it
        yield from [error] * (len(pairs) - done)


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
