"""The process that decodes for a run: reads tasks from a pipe and writes contents to another."""

from __future__ import annotations

import signal
from contextlib import suppress
from importlib import import_module

from penult.data import sandbox

BOUNDS = sandbox.close_files()  # before any library has threads

from penult.data import messages  # noqa: E402
from penult.data.decode import DecodedRegion, DecodeTarget, Pair, open_regions  # noqa: E402
from penult.data.files import item_error  # noqa: E402
from penult.data.messages import Ready  # noqa: E402
from penult.errors import DecodeError, PenultError  # noqa: E402

# What every file of a modality needs, and what may look for its parts by running a program.
_LIBRARIES = {"audio": "soundfile", "image": "PIL.Image"}


def serve(tasks: int, answers: int) -> None:
    """Decode until the pipe of tasks ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # are for the process that started this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
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
        target = start.target
        while True:
            task = messages.read_task(pipe)
            if isinstance(task, DecodeTarget):
                target = task
            else:
                _answer(task, target, answers)


def _answer(pairs: list[Pair], target: DecodeTarget, answers: int) -> None:
    """One answer for each pair, whatever happens: its content and the seconds that it took."""
    done = 0
    try:
        for decoded in open_regions(pairs, target):
            assert isinstance(decoded, DecodedRegion)  # workers are sent regions only
            done += 1
            try:
                messages.send_answer(answers, decoded)
            except MemoryError as error:
                lost = DecodedRegion(decoded.item, decoded.region, item_error(error))
                messages.send_answer(answers, lost)
    except PenultError as error:
        for item, region in pairs[done:]:
            messages.send_answer(answers, DecodedRegion(item, region, DecodeError(str(error))))
