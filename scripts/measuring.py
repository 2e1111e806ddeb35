"""Measurement in rounds, on a quiet machine: figures that other processes disturbed are taken again
or refused.

Knows no section and no model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from load_meter import QUIET, LoadMeter, Mark, Meter
from machine import measured_peaks
from page import Table

T = TypeVar("T")
WINDOW = 1.0  # seconds over which the load is looked at while nothing is measured
WINDOWS = 3  # quiet ones in a row before a section begins
LONG = 10.0  # seconds of a turn of all ways from which on each way is a round of its own
REPEATS = 3  # of a disturbed round, and of each section at least


class Busy(Exception):
    """Other processes kept the machine busy; nothing is known."""


class Fault(Exception):
    """What was measured breaks its bound, or is wrong."""


class Unmeasured(Exception):
    """This machine has no such thing; a reason, without a full stop."""


@dataclass(frozen=True, slots=True)
class Way:
    """One of the ways that are compared. before: is called before each round, and not timed."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None

    def timed(self) -> float:
        """Seconds of one call."""
        if self.before:
            self.before()
        return seconds(self.run)


Works = Mapping[str, Callable[[], object] | Way]


@dataclass
class Bench:
    """One section's measurements. Each round is repeated if others took QUIET or more of the
    processors meanwhile; when that happens too often, or waiting takes longer than
    `options.wait` seconds in all, `Busy` ends the section. `options.anyway`: measure regardless."""

    options: argparse.Namespace
    meter: Meter = field(default_factory=LoadMeter)
    sleep: Callable[[float], None] = time.sleep
    measure_peaks: Callable[[], dict[str, float]] = measured_peaks
    known_peaks: dict[str, float] = field(default_factory=dict)  # of this run of the bench
    blocks: list[str] = field(default_factory=list)
    written: list[Callable[[], object]] = field(default_factory=list)  # files beside the page
    shares: list[float] = field(default_factory=list)  # of each round that counts
    repeated: int = 0
    waited: float = 0.0
    averages: list[float] = field(default_factory=list)  # of the system, before and after
    around: list[float] = field(default_factory=list)  # shares before and after

    # ---- the machine

    def begin(self) -> None:
        """Wait for a quiet machine."""
        self.averages.append(_load_average())
        self.around.append(self._wait())

    def end(self) -> None:
        """Look at the load once more."""
        self.averages.append(_load_average())
        self.around.append(self._look())

    def _look(self) -> float:
        mark = self.meter.mark()
        self.sleep(WINDOW)
        return self._share(mark)

    def _share(self, mark: Mark) -> float:
        share = self.meter.share(mark)
        if share is not None:
            return share
        if self.options.anyway:
            return 1.0
        raise Busy("this system does not tell how busy its processors are; --anyway prints figures")

    def _wait(self) -> float:
        """Seconds pass until others leave the machine alone; the last share."""
        quiet, told, window = 0, False, 0.0
        while quiet < WINDOWS:
            window = self._look()
            if self.options.anyway:
                return window
            quiet = quiet + 1 if window < QUIET else 0
            if quiet:
                continue
            left = self.options.wait - self.waited
            if left < WINDOW:
                raise Busy(
                    f"other processes take {window:.0%} of the processors, and did for most of "
                    f"{self.options.wait:.0f} s (--wait): nothing is measured under load; "
                    "--anyway prints figures, and writes none"
                )
            self.waited += WINDOW
            if not told:
                tell(
                    f"other processes take {window:.0%} of the processors: waiting until it is "
                    f"less than {QUIET:.0%}, {left:.0f} s at most"
                )
                told = True
        return window

    @property
    def load(self) -> str:
        """The load of other processes, in a line."""
        before, after = (f"{share:.1%}" for share in self.around)
        averages = " and ".join(f"{value:.2f}" for value in self.averages)
        words = f"other processes took {before} of the processors before and {after} after"
        if self.shares:
            middle, most = statistics.fmean(self.shares), max(self.shares)
            words += (
                f", {middle:.1%} meanwhile (at most {most:.1%} in one of {len(self.shares)} rounds)"
            )
        words += f"; disturbed rounds repeated: {self.repeated}; load average {averages}"
        return words + ("; **under load**" if self.disturbed else "")

    @property
    def disturbed(self) -> bool:
        """Whether a figure was taken while others took too much."""
        return any(share >= QUIET for share in [*self.shares, *self.around[:1]])

    @property
    def peaks(self) -> dict[str, float]:
        """GFLOP/s of each engine's products, measured once."""
        if not self.known_peaks:
            self.known_peaks.update(self.once(self.measure_peaks))
        return self.known_peaks

    # ---- figures

    def once(self, work: Callable[[], T]) -> T:
        """What a piece of work gives; done again from the beginning where it was disturbed."""
        allowed = max(REPEATS, self.options.rounds)
        for _ in range(allowed + 1):
            mark = self.meter.mark()
            found = work()
            share = self._share(mark)
            if share < QUIET or self.options.anyway:
                self.shares.append(share)
                return found
            self.repeated += 1
            tell(f"disturbed: other processes took {share:.0%} of the processors; again")
            self._wait()
        raise Busy(f"disturbed {allowed + 1} times, at last by {share:.0%} of the processors")

    def rounds(self, works: Works, warm: bool = True) -> dict[str, list[float]]:
        """Seconds of each way, run in turns so that a machine that slows down slows all of them.
        warm: each runs once before, which is not counted."""
        ways = {name: one if isinstance(one, Way) else Way(one) for name, one in works.items()}

        def turn() -> dict[str, float]:
            return {name: way.timed() for name, way in ways.items()}

        # A long turn is looked at way by way: less is to be done again, and a short disturbance
        # does not vanish in the mean.
        long = not warm or seconds(turn) > LONG
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.options.rounds):
            times = (
                {name: self.once(way.timed) for name, way in ways.items()}
                if long
                else (self.once(turn))
            )
            for name, value in times.items():
                found[name].append(value)
        return found

    def paired(self, works: Works, warm: bool = True) -> dict[str, float]:
        """The median seconds of each way over the rounds."""
        found = self.rounds(works, warm)
        return {name: statistics.median(values) for name, values in found.items()}

    # ---- what is shown

    def show(self, table: Table) -> None:
        """Add a table to the section."""
        self.blocks.append(table.markdown())

    def note(self, words: str) -> None:
        """Add a paragraph to the section."""
        self.blocks.append(words)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. words: what is measured, for the page; run: measures and shows; options:
    of the command, that it looks at; rounds: where the command does not say."""

    title: str
    words: str
    run: Callable[[Bench], None]
    options: Sequence[str] = ()
    rounds: int = 3


def seconds(work: Callable[[], object]) -> float:
    """Wall clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(
    title: str, times: Mapping[str, float], column: str = "× the first", more: bool = False
) -> Table:
    """A table of medians, each also as a ratio to the first: how many times as fast, or with
    `more` how many times as long."""
    first = next(iter(times.values()))
    rows = [
        [name, f"{value / first if more else first / value:.2f}", digits(value)]
        for name, value in times.items()
    ]
    return Table((title, column, "seconds"), rows)


def digits(value: float) -> str:
    """Three that count, of seconds."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def tell(words: str) -> None:
    """Tell how the measurement goes on; no part of the figures."""
    print(words, file=sys.stderr, flush=True)


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
