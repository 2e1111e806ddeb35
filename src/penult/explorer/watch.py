"""What happens in a collection while a session looks at it: a version that goes up, and the process
that adds to it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penult.collection import manifest
from penult.collection.access import Holder, writers
from penult.collection.collection import Collection
from penult.explorer.rows import RowTable

ROWS, LABELS, DERIVED, CLUSTERS, RUNS = "items", "labels", "derived", "clusters", "runs"
_TABLES = (ROWS, LABELS, DERIVED, CLUSTERS, "taught")
_PATIENCE = 4  # times as long as reading the keys took, until they are read again
_SPAN = 60.0  # seconds over which the rate of a run is measured
_LEAST = 2.0  # seconds of growth that a rate says something of
Stamp = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """How a collection grows. since: seconds of the clock; first: rows when the writer was seen
    first."""

    writer: Holder
    since: float
    first: int


class Watch:
    """Looks at the files of a collection, in less than a millisecond where nothing has changed.
    follow: called when rows have come or gone. Threads may share one."""

    def __init__(
        self,
        collection: Collection,
        rows: RowTable,
        follow: Callable[[], None] = lambda: None,
    ) -> None:
        self._collection, self._rows, self._follow = collection, rows, follow
        self._guard, self._looking = threading.Lock(), threading.Lock()
        self._version = 1
        self._seen = self._stamps()
        self._not_before = 0.0
        self._growth: Growth | None = None
        self._counts: deque[tuple[float, int]] = deque()

    def look(self) -> int:
        """The version; rows that have come or gone are looked for, unless another thread does."""
        if self._looking.acquire(blocking=False):
            try:
                self._compare()
            finally:
                self._looking.release()
        return self._version

    @property
    def version(self) -> int:
        """As of the last look."""
        return self._version

    def bump(self) -> int:
        """The version goes up: something has changed that is on no disk."""
        with self._guard:
            self._version += 1
            return self._version

    def stamp(self, *names: str) -> Stamp:
        """What tells these tables, as they are now, from what they were."""
        return tuple(_stamp(self._collection, name) for name in names)

    def _stamps(self) -> dict[str, Any]:
        found = {name: _stamp(self._collection, name) for name in _TABLES}
        return found | {"manifest": manifest.mark(self._collection.path)}

    def _compare(self) -> None:
        now, began = self._stamps(), time.monotonic()
        if now == self._seen or (now[ROWS] != self._seen[ROWS] and began < self._not_before):
            return
        if now[ROWS] != self._seen[ROWS]:
            self._rows.refresh()
            self._follow()
            ended = time.monotonic()
            self._not_before = ended + _PATIENCE * (ended - began)
        self._seen = now
        self.bump()

    def running(self) -> dict[str, Any] | None:
        """The process that adds to the collection, and how fast; None where none does."""
        others = [one for one in writers(self._collection.path) or () if one.pid != os.getpid()]
        if not others:
            self._growth = None
            return None
        writer, now, count = others[0], time.monotonic(), int(self._rows.there.sum())
        if self._growth is None or self._growth.writer != writer:
            self._growth = Growth(writer, now, count)
            self._counts.clear()
        counts = self._counts
        if not counts or counts[-1][1] != count:
            counts.append((now, count))
        while len(counts) > 2 and now - counts[1][0] > _SPAN:
            counts.popleft()
        (began, before), (ended, _) = counts[0], counts[-1]
        rate = None if ended - began < _LEAST else max(0.0, (count - before) / (ended - began))
        grown = max(0, count - self._growth.first)
        return {"command": writer.command, "rows": grown, "rate": rate, "total": None, "left": None}


def _stamp(collection: Collection, table: str) -> Stamp:
    """The names of the versions that a table has; of many the first and the last."""
    try:
        names = os.listdir(collection.path / f"{table}.lance" / "_versions")  # noqa: PTH208
    except OSError:
        return ()
    return len(names), min(names, default=""), max(names, default="")
