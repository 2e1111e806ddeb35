"""The load of other processes: busy time of the processors less that of this process's tree.

Knows counters of the system only. Time that a host gives to other guests (steal) is load; waiting
for the disk is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from dataclasses import dataclass
from typing import Protocol

import psutil

QUIET = 0.05  # of the processors: below it figures are taken, from it on they are refused
FORGIVEN = 0.02  # seconds of a window: two ticks of the counters, which count by 10 ms
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # guests are counted in user and nice


@dataclass(frozen=True, slots=True)
class Mark:
    """Counters at one moment, in seconds. busy, all: of the processors together; own: of this
    process and all below it, ended ones included."""

    time: float
    busy: float
    all: float
    own: float


class Meter(Protocol):
    """Measures what others do between two moments."""

    def mark(self) -> Mark:
        """The counters now."""

    def share(self, since: Mark) -> float | None:
        """Share of the processors that other processes took since then, from 0 to 1; None: the
        system does not tell."""


class LoadMeter:
    """The system's own counters, of the processors that this process may use."""

    def __init__(self) -> None:
        adopt()
        self._me = psutil.Process()

    def mark(self) -> Mark:
        """The counters now."""
        own = self._own()  # before the others: what it costs is not theirs
        every = psutil.cpu_times(percpu=True)
        usable = [every[number] for number in processors() if number < len(every)]
        busy = sum(getattr(one, kind, 0.0) for one in usable for kind in BUSY)
        idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in usable)
        return Mark(time.perf_counter(), busy, busy + idle, own)

    def share(self, since: Mark) -> float | None:
        """Share of the processors that other processes took since then."""
        now = self.mark()
        return share_of(since, now, len(processors()))

    def _own(self) -> float:
        """Seconds of the tree. Of a process that its parent waited for, the parent has them."""
        total = sum(self._me.cpu_times()[:4])
        for process in self._me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
        return total


def share_of(since: Mark, now: Mark, count: int) -> float | None:
    """What others took of so many processors between two marks; None: the counters stand still."""
    capacity = (now.time - since.time) * count
    if capacity <= 0 or now.all - since.all < capacity / 2 - FORGIVEN:
        return None
    others = (now.busy - since.busy) - (now.own - since.own) - FORGIVEN
    return min(1.0, max(0.0, others / capacity))


def processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def adopt() -> None:
    """Processes whose parent ends become this one's children, and so stay in its tree (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
