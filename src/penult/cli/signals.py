"""Signals that stop a command: the first one in order, a second one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from penult.cli.output import STOPPED

# What Ctrl-C sends, what a system sends that shuts down, and what a terminal sends that closes.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
# A terminal sends a signal to a command and to its parent, which may hand it on, and a supervisor
# sends two kinds behind each other: all that comes within these seconds is one request.
ONE_REQUEST = 1.0


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Inside the block any of these signals raises KeyboardInterrupt once, so that finished rows
    are committed; another one ends the process at once, even where a library does not return.

    A signal that is ignored stays so: SIGHUP under nohup, Ctrl-C in a script's background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    stop = _Stop()
    before = {number: signal.signal(number, stop.asked) for number in heeded}
    try:
        with _watched(stop):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """A request to stop, and what comes after it."""

    def __init__(self) -> None:
        self._raised = False
        self._since: float | None = None

    def asked(self, number: int, _: Any) -> None:
        """In the main thread, once it runs Python."""
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def seen(self, number: int) -> None:
        """In a thread of its own, at once."""
        if self._since is None:
            self._since = time.monotonic()
        elif number != getattr(signal, "SIGHUP", None) and (
            time.monotonic() - self._since > ONE_REQUEST
        ):
            os._exit(STOPPED)


@contextmanager
def _watched(stop: _Stop) -> Iterator[None]:
    """Tells of each signal as it comes: Python's own handlers wait for the main thread."""
    if os.name == "nt":  # wants a socket
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        with suppress(OSError):
            while received := os.read(reading, 64):
                for number in received:
                    stop.seen(number)
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread
