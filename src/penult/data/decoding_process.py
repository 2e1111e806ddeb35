"""The process that decodes for a run: reads tasks from a pipe and writes contents to another."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

from penult.data import sandbox

BOUNDS = sandbox.close_files()  # before any library has threads

from penult.data import messages  # noqa: E402
from penult.data.decode import DecodedRegion, DecodeTarget, open_regions  # noqa: E402
from penult.data.files import item_error  # noqa: E402
from penult.data.items import is_object  # noqa: E402
from penult.data.messages import DecodeTask, Ready  # noqa: E402
from penult.errors import DecodeError, PenultError  # noqa: E402

# What every file of a modality needs, and what may look for its parts by running a program.
_LIBRARIES = {"audio": "soundfile", "image": "PIL.Image"}
_TOGETHER = 1 << 19  # bytes of answers that wait for further ones
_NICENESS = 5  # so that the model, which waits for none of the next files yet, goes first


def serve(tasks: int, answers: int) -> None:
    """Decode until the pipe of tasks ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # are for the process that started this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    with open(tasks, "rb") as pipe, suppress(EOFError, BrokenPipeError):
        start = messages.read_start(pipe)
        modality = start.target.modality
        try:
            if modality in _LIBRARIES:
                import_module(_LIBRARIES[modality])
            bounds = [*BOUNDS, *sandbox.close_system(start.memory)]
        except Exception as error:
            messages.send_ready(answers, Ready((), f"{type(error).__name__}: {error}"))
            return
        free = sandbox.try_bounds(start.trial, start.memory) if start.trial else ()
        messages.send_ready(answers, Ready(tuple(dict.fromkeys(bounds)), open=free))
        outbox, target = _Outbox(answers), start.target
        while True:
            task = messages.read_task(pipe)
            if isinstance(task, DecodeTarget):
                target = task
            else:
                if is_object_task(task):
                    _fetch_from_run(answers, pipe)
                _answer(task, target, outbox)


def is_object_task(task: DecodeTask) -> bool:
    """Whether its item lies in a store."""
    content = task.pairs[0][0].content
    return isinstance(content, Path) and is_object(content)


@cache
def _fetch_from_run(answers: int, tasks: IO[bytes]) -> None:
    """Objects are read through the run: here is no network."""
    from penult.data import object_store

    object_store.fetch_by(
        lambda uri, start, stop, etag: messages.ask_range(answers, tasks, uri, start, stop)
    )


class _Outbox:
    """Answers that are sent together: for a short file, waking up whoever reads them takes longer
    than decoding."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._size = pipe, 0
        self._parts: messages.Parts = []

    def put(self, decoded: DecodedRegion, more: bool) -> None:
        """Add an answer; without `more` to come, all are sent."""
        try:
            parts = messages.packed_answer(decoded)
        except MemoryError as error:
            lost = DecodedRegion(decoded.item, decoded.region, item_error(error))
            parts = messages.packed_answer(lost)
        self._parts += parts
        self._size += sum(map(len, parts))
        if more and self._size < _TOGETHER:
            return
        together, self._parts, self._size = self._parts, [], 0
        messages.write(self._pipe, together)


def _answer(task: DecodeTask, target: DecodeTarget, outbox: _Outbox) -> None:
    """One answer for each pair, whatever happens: its content and the seconds that it took."""
    done = 0
    try:
        for decoded in open_regions(task.pairs, target):
            assert isinstance(decoded, DecodedRegion)  # workers are sent regions only
            done += 1
            outbox.put(decoded, task.more)
    except PenultError as error:
        for item, region in task.pairs[done:]:
            outbox.put(DecodedRegion(item, region, DecodeError(str(error))), task.more)
