"""A graph that is recorded in a process beside the run: a copy of this one, which ends with it.

Recording a model holds Python's lock for seconds: in a thread of this process hardly a row would be
made meanwhile. A copied process has the weights already, and no hook that it sets is seen here.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from penult.engines.graph_cache import Graphs
from penult.errors import cause
from penult.locking import lock_of

LIMIT = 300.0  # seconds, behind which a recording counts as hanging
_DONE = b"\x06"
_WORDS = 4000  # bytes of a reason: less than a pipe holds


def can_copy_process() -> bool:
    """Whether this process may be copied: other systems than Linux break in a copy, and so does
    CUDA."""
    torch: Any = sys.modules.get("torch")
    return sys.platform == "linux" and not (torch is not None and torch.cuda.is_initialized())


class GraphRecording:
    """Work in a copy of this process, which leaves its graph in the cache.

    module: what is run by it; no pass of it may be under way when the process is copied. memory:
    bytes that it may take beyond what this process has.

    Raises:
        OSError: the process cannot be copied now.
    """

    def __init__(
        self, work: Callable[[], object], module: Any, graphs: Graphs, memory: int
    ) -> None:
        self._began = time.monotonic()
        self._words, told = os.pipe()
        watched, alive = os.pipe()  # closing `alive`, as a kill does, ends the process too
        try:
            with lock_of(module) if module is not None else nullcontext():
                pid = _copied()
                if pid == 0:
                    _record(work, graphs, told, watched, memory)
        except OSError:
            for one in (self._words, alive):
                os.close(one)
            raise
        finally:
            for one in (told, watched):
                os.close(one)
        ends = [self._words, alive]
        self._end = weakref.finalize(self, _end, os.getpid(), pid, ends, graphs)

    def outcome(self) -> str | None:
        """None while it is under way; then why it failed, empty where it did not."""
        if time.monotonic() - self._began > LIMIT:
            self.close()
            return f"its recording had not ended after {LIMIT:.0f} s"
        if not select.select([self._words], [], [], 0)[0]:
            return None
        words = os.read(self._words, _WORDS)
        self.close()
        if words == _DONE:
            return ""
        return words.decode("utf-8", "replace") or "the process that recorded it was ended"

    def close(self) -> None:
        """End the process; what it has not recorded to the end is gone."""
        self._end()


def _copied() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads and libraries that a copy has no part of
        return os.fork()


def _end(parent: int, pid: int, ends: list[int], graphs: Graphs) -> None:
    if os.getpid() != parent:  # a copy that somebody else made has no part in it
        return
    for end in ends:
        os.close(end)
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    graphs.forget_unfinished(pid)


def _record(
    work: Callable[[], object], graphs: Graphs, told: int, watched: int, memory: int
) -> None:
    """The copied process; it never returns."""
    try:
        _detach(told, watched)
        threading.Thread(target=_end_with_parent, args=(watched, graphs), daemon=True).start()
        _limit(memory)
        work()
        os.write(told, _DONE)
    except BaseException as error:
        with suppress(BaseException):
            os.write(told, (cause(error) or type(error).__name__).encode()[:_WORDS])
    finally:
        os._exit(0)


def _detach(*kept: int) -> None:
    """Leave what belongs to the other process: its signals, its files, its terminal."""
    for number in (signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    for file in list(Path("/proc/self/fd").iterdir()):
        if int(file.name) not in kept:
            with suppress(OSError):
                os.close(int(file.name))
    for _ in range(3):  # the lowest that are free
        os.open(os.devnull, os.O_RDWR)


def _end_with_parent(watched: int, graphs: Graphs) -> None:
    os.read(watched, 1)  # nothing is ever written: it ends with the other process
    graphs.forget_unfinished(os.getpid())
    os._exit(1)


def _limit(memory: int) -> None:
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
