"""Events of a command for what watches it: a JSON object on each line of stderr, and one at least
every few seconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

EVERY = 10.0  # seconds between two events at most
EVENTS = (
    *("start", "stage", "progress", "heartbeat", "commit", "failure", "note", "error", "end"),
)
Facts = Mapping[str, Any]


class EventLog:
    """Writes events as they come; see docs/runs.md. Used from several threads."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._lock = write, threading.Lock()
        self._measure: Callable[[], Facts] | None = None
        self._last: Facts = {}
        self._written = time.monotonic()
        self._ended = False
        self._changed = threading.Event()  # ended, or another pace: whoever waits looks again
        self.every = EVERY
        self.run: str | None = None
        self.totals: Facts = {}

    def start(self) -> None:
        """The first event, and a heartbeat from now on."""
        from penult import __version__

        self.emit("start", command=sys.argv, pid=os.getpid(), version=__version__)
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, event: str, **facts: Any) -> None:
        """One line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "run": self.run, **facts}, default=str)
        with self._lock:
            self._written = time.monotonic()
            self._write(line + "\n")

    def follow(self, measure: Callable[[], Facts] | None, every: float | None = None) -> None:
        """From now on the heartbeat tells these figures; None: no work is on the way.

        every: seconds between two events at most.
        """
        self._measure, self.every = measure, every or self.every
        self._changed.set()

    def end(self, code: int) -> None:
        """The last event."""
        if not self._ended:
            self._ended = True
            self._changed.set()
            self.emit("end", code=code, **self.totals)

    def _beat(self) -> None:
        while not self._ended:
            self._changed.wait(max(0.01, self._written + self.every - time.monotonic()))
            self._changed.clear()
            if not self._ended and time.monotonic() - self._written >= self.every:
                self._tell()

    def _tell(self) -> None:
        facts = self._measure() if self._measure is not None else {}
        still = all(facts.get(name) == self._last.get(name) for name in ("seen", "embedded"))
        self._last = facts
        self.emit("heartbeat" if still else "progress", **facts)
