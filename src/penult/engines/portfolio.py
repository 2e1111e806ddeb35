"""Engines of a run under `auto`: each batch goes to one, and what it takes there is the trial.

A run begins in the engine that is at hand. Others are opened, or their graphs recorded beside the
run, where the rest of the work is worth it; on the first batch one is held against the native
engine in fp32, then batches alternate. The faster one goes on, and is held against the other again
from time to time, and when it gets slower. Knows batches and engines; no items and no collection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any, NamedTuple

from penult.data.notes import CachedNote
from penult.engines.autoselect import EngineChoice, EngineTrial, Rows
from penult.engines.base import EXACT, FAST, PRECISIONS, Engine
from penult.engines.batch_policy import find_batch_policy
from penult.engines.batching import BatchPolicy
from penult.engines.graph_cache import versions
from penult.engines.parity import Parity, compare
from penult.engines.recording import GraphRecording, can_copy_process
from penult.engines.registry import (
    AUTO,
    EngineMode,
    candidates,
    missing,
    modes_of,
    plugin_versions,
)
from penult.errors import cause
from penult.memory import in_words

log = logging.getLogger(__name__)
OPENING = 1.0  # seconds to open a recorded graph and to measure how batches are padded in it
RECORDING = (1.0, 2e-8)  # seconds, and seconds for each number of the weights, to record a graph
WORTH = {EXACT: 5.0, FAST: 14.0}  # times a recording's seconds: as much work is worth it, or more
UNKNOWN = 5.0  # seconds of work behind which a run of unknown length is taken for a long one
INLINE = 60.0  # seconds of work that are worth a recording during which no row is made
COPIES, SPACE = 4, 1 << 30  # times the weights, and bytes besides: memory of a recording
CLEAR, AHEAD = 1.15, 1.02  # times as fast: clear from one pair; enough for the middle of PAIRS
CLEARLY_SLOW = 0.5  # times as fast, from one pair: a first pass is often slower than later ones
PAIRS = 3
ITEMS = 2  # on as many at least another engine is held against the native one
AGAIN = 48  # batches until engines are compared again; doubled each time that nothing changes
SLOWER = 0.6  # of its usual speed, twice in a row: then sooner, after a quarter of these batches

# Rows of the items of a batch at these places, in an engine and under its law.
Passes = Callable[[Engine, Callable[[], BatchPolicy], Sequence[int]], Rows]


@dataclass(slots=True, eq=False)
class Contender:
    """An engine that is open. rates: numbers of input per second, of its last batches. kept: what
    an earlier run measured. pairs: times as fast as the engine in use, on batches alike; single:
    its own half of a pair. found, expected: rows of it and of the native engine."""

    mode: EngineMode
    engine: Engine
    find_policy: Callable[[], BatchPolicy]
    kept: _Kept | None = None
    law: BatchPolicy | None = None
    parity: Parity | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    pairs: list[float] = field(default_factory=list)
    single: float = 0.0
    found: Rows = field(default_factory=list)
    expected: Rows = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Its usual speed; 0 where it is not known."""
        return median(self.rates) if self.rates else self.kept.rate if self.kept else 0.0

    def policy(self) -> BatchPolicy:
        """How items share a batch, measured once there is a batch of two."""
        if self.law is None:
            self.law = (self.kept and self.kept.law) or self.find_policy()
        return self.law


class _Kept(NamedTuple):
    """What an earlier run on a machine like this one measured of a mode."""

    rate: float
    law: BatchPolicy | None
    when: str
    graphs: dict[str, str]


@dataclass(slots=True)
class _Prospect:
    """Modes of one engine that are not open yet, in the order in which they are tried. lacks: their
    graph is not recorded. recorded: it was, in this run."""

    modes: list[EngineMode]
    lacks: bool = False
    recorded: bool = False

    @property
    def mode(self) -> EngineMode:
        return self.modes[0]


class EnginePortfolio:
    """The engines of one embedder, of which one is in use. Several runs may share it: while one of
    them compares, the others go on with the engine in use."""

    def __init__(self, trial: EngineTrial, precision: str) -> None:
        self._trial, self._precision = trial, precision
        self._turn = threading.Lock()
        self._kept, self.dropped = self._recalled()
        self._lasting = dict(self.dropped)
        mode = trial.native_mode
        native = Contender(mode, trial.native, trial.find_policy)
        if (known := self._kept.get(mode.words)) is not None:
            native.kept = known._replace(law=None)
        self._native = self._leader = native
        self._agreed = [native]
        self._prospects = self._all_prospects()
        self._challenger: Contender | None = None
        self._opened: Contender | None = None  # the next one
        self._recording: GraphRecording | None = None
        self._since, self._period = 0, AGAIN
        self._before = self._seen = 0.0  # seconds of passes: of earlier runs, of this one
        self.begin(lambda: None, 0)

    def begin(self, count: Callable[[], int | None], memory: int) -> None:
        """A run begins. count: gives its items, None where they are not known, and is called where
        that matters; memory: bytes that the run may take."""
        self._total, self._memory = cache(count), memory
        self._before, self._seen = self._before + self._seen, 0.0
        self._items = self._work = self._current = 0
        self.given: dict[str, int] = {}

    @property
    def mode(self) -> EngineMode:
        """The engine in use."""
        return self._leader.mode

    @property
    def engine(self) -> Engine:
        """That engine itself."""
        return self._leader.engine

    @property
    def policy(self) -> BatchPolicy:
        """How items share a batch of it."""
        return self._leader.policy()

    def close(self) -> None:
        """End a recording that is under way."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def rows(self, passes: Passes, sizes: Sequence[int]) -> Rows:
        """Each item's row, in the engine whose turn it is; an exception where the native one raises
        it. sizes: numbers in the inputs of each item."""
        self._current = len(sizes)
        self._items += len(sizes)
        self._work += sum(sizes)
        if not self._turn.acquire(blocking=False):
            return self._row_of(self._leader, passes, sizes)[0]
        try:
            with self._at_no_cost():
                self._go_on()
            one = self._challenger
            if one is None:
                return self._row_of(self._leader, passes, sizes)[0]
            held = one.parity is not None or one is self._native
            return (self._paired if held else self._held)(one, passes, sizes)
        finally:
            self._turn.release()

    def _row_of(self, one: Contender, passes: Passes, sizes: Sequence[int]) -> tuple[Rows, float]:
        """The rows of a batch, and its rate; 0 where the engine fails and the native one does not:
        then it is dropped."""
        try:
            found, rate = self._timed(one, passes, sizes, range(len(sizes)))
        except Exception as error:  # an engine may raise anything
            if one is self._native:
                raise
            found, _ = self._timed(self._native, passes, sizes, range(len(sizes)))
            self._drop(
                one.mode, f"it fails where {self._native.mode.words} does not: {cause(error)}"
            )
            one, rate = self._native, 0.0
        self._count(one, len(sizes))
        return found, rate

    def _timed(
        self, one: Contender, passes: Passes, sizes: Sequence[int], at: Sequence[int]
    ) -> tuple[Rows, float]:
        began, aside = time.perf_counter(), getattr(one.engine, "aside", 0.0)
        rows = passes(one.engine, one.policy, at)
        aside = getattr(one.engine, "aside", 0.0) - aside  # is spent once for each new length
        seconds = max(time.perf_counter() - began - aside, 1e-6)
        rate = sum(sizes[i] for i in at) / seconds
        self._seen += seconds
        one.rates.append(rate)
        return rows, rate

    def _count(self, one: Contender, rows: int) -> None:
        self.given[one.mode.words] = self.given.get(one.mode.words, 0) + rows

    # ---- a challenger

    def _held(self, one: Contender, passes: Passes, sizes: Sequence[int]) -> Rows:
        """A batch in a challenger and in the native engine, in fp32; of one that held it in an
        earlier run with the same graph, the smallest item alone; of a second batch, the smallest
        of as many as are still asked for."""
        whole = range(len(sizes))
        few = 1 if one.kept else ITEMS - len(one.found) if one.found else len(sizes)
        at = sorted(whole, key=lambda i: sizes[i])[:few]
        expected, usual = self._timed(self._native, passes, sizes, at)
        try:
            if len(sizes) > 1:
                one.policy()  # whose measurement is no part of the batch
            found, rate = self._timed(one, passes, sizes, whole)
            one.found += [found[i] for i in at]
            one.expected += expected
            parity = compare(one.found, one.expected)
            holds = parity.holds(PRECISIONS[self._precision])
            why = "" if holds else f"{parity.words}, and {self._precision} asks for more"
        except Exception as error:  # an engine may raise anything on what it can't run
            why = cause(error) or type(error).__name__
        if why:
            if len(at) < len(sizes):  # where this raises too, it is no fault of the engine
                expected = self._timed(self._native, passes, sizes, whole)[0]
            self._drop(one.mode, why)
            self._count(self._native, len(sizes))
            return expected
        self._count(one, len(sizes))
        if self._leader is self._native and len(at) == len(sizes):
            one.pairs.append(rate / usual)
        if len(one.found) >= ITEMS or one.kept:
            one.parity, one.found, one.expected = parity, [], []
            self._agreed.append(one)
            if one.kept and self._leader.kept and one.kept.rate > self._leader.kept.rate:
                self._lead(one)
            elif one.pairs:
                self._weigh(one)
            else:
                one.single = rate
        return found

    def _paired(self, one: Contender, passes: Passes, sizes: Sequence[int]) -> Rows:
        """Batches alternate between a challenger and the engine in use."""
        turn = self._leader if one.single else one
        found, rate = self._row_of(turn, passes, sizes)
        if turn is one:
            one.single = rate
        elif rate:
            one.pairs.append(one.single / rate)
            self._weigh(one)
        return found

    def _weigh(self, one: Contender) -> None:
        """Decide where the pairs are clear."""
        one.single = 0.0
        middle = median(one.pairs)
        if CLEARLY_SLOW < middle < CLEAR and len(one.pairs) < PAIRS:
            return
        if middle > AHEAD:
            self._lead(one)
        else:
            self._period *= 2
        self._settled()

    def _lead(self, one: Contender) -> None:
        if self._leader is not one:
            log.info("%s goes on after %s", one.mode.words, self._leader.mode.words)
        self._leader, self._period = one, AGAIN
        self._settled()

    def _settled(self) -> None:
        if self._challenger is not None:
            self._challenger.pairs.clear()
        self._challenger, self._since = None, 0
        self._keep()

    def _drop(self, mode: EngineMode, why: str, lasting: bool = True) -> None:
        """Leave a mode, and try the next one of the same engine. lasting: in later runs too."""
        self.dropped[mode.words] = why
        log.info("not %s: %s", mode.words, why)
        self._agreed = [one for one in self._agreed if one.mode != mode]
        if self._challenger is not None and self._challenger.mode == mode:
            self._challenger = None
        if self._leader.mode == mode:
            self._leader = max(self._agreed, key=lambda one: one.rate)
        if lasting:
            self._lasting[mode.words] = why
            self._keep()

    # ---- what is tried next

    def _go_on(self) -> None:
        """Open or record what is worth it; find a challenger where there is none."""
        if self._recording is not None and (why := self._recording.outcome()) is not None:
            self._recording = None
            self._recorded(self._prospects[0], why)
        self._since += self._challenger is None
        due = self._since >= self._period or self._is_slower()
        if self._opened is None and self._recording is None:
            any(self._begins(prospect, due) for prospect in list(self._prospects))
        if self._challenger is None:
            self._challenger, self._opened = self._opened, None
        others = [one for one in self._agreed if self._may_be_faster(one)]
        if self._challenger is None and due and others:
            self._challenger = max(others, key=lambda one: one.rate)

    def _may_be_faster(self, one: Contender) -> bool:
        f32 = one.mode.arithmetic == "f32" != self._leader.mode.arithmetic
        return one is not self._leader and not f32

    def _is_slower(self) -> bool:
        rates = self._leader.rates
        return (
            4 * self._since >= self._period
            and len(rates) == rates.maxlen
            and max(list(rates)[-2:]) < SLOWER * median(rates)
        )

    def _begins(self, prospect: _Prospect, due: bool) -> bool:
        """Open a prospect, or begin to record it, if that is worth it. due: the engine in use has
        been in use for long, or gets slower."""
        mode, leader = prospect.mode, self._leader
        kept = self._kept.get(mode.words)
        if leader.mode.arithmetic != "f32" and mode.arithmetic == "f32":
            return False  # it is not as fast
        if not prospect.lacks:
            if kept and kept.rate < leader.rate:
                if not due:
                    return False
            elif mode.engine != leader.mode.engine and not self._is_worth_opening(kept):
                return False
            self._open(prospect, kept)
        if prospect.lacks and self._records(prospect):
            return True
        same = bool(prospect.modes) and prospect.mode == mode
        if same and prospect.recorded and not prospect.lacks and self._opened is None:
            self._open(prospect, None)  # it was recorded in this process
        return self._opened is not None

    @contextmanager
    def _at_no_cost(self) -> Iterator[None]:
        """Whatever goes wrong where others are tried is no fault of the batch."""
        try:
            yield
        except Exception as error:  # of a user's module, of a runtime
            log.warning("no other engine is tried: %s", cause(error))
            self._prospects.clear()

    def _is_worth_opening(self, kept: _Kept | None) -> bool:
        rest = self._rest()
        if rest is None:
            return self._seen >= UNKNOWN
        if rest and (self._total() or 0) <= ITEMS:  # a trial takes as many
            return False
        return rest * (1 - self._leader.rate / kept.rate if kept else 0.5) > OPENING

    def _rest(self) -> float | None:
        """Seconds that are left in the engine in use, this batch with them; None: not known."""
        if not self._leader.rate or not self._items:
            return 0.0
        if (total := self._total()) is None:
            return None
        each = self._work / self._items / self._leader.rate
        return max(0, total - self._items + self._current) * each

    def _open(self, prospect: _Prospect, kept: _Kept | None) -> None:
        """Open a prospect whose graph is recorded, or that needs none."""
        trial, mode = self._trial, prospect.mode
        graphs = trial.graphs.only_kept()
        try:
            engine = trial.open(mode, graphs)
        except Exception as error:  # whatever an engine raises on a model that it can't run
            prospect.lacks = graphs.lacks
            if not graphs.lacks:
                self._leave(prospect, cause(error))
            return
        self._next_mode(prospect)
        if kept and (graphs.given or not graphs.hashes.items() <= kept.graphs.items()):
            kept = None  # another graph than was measured
        bar = mode.batch_error(self._precision) / 2
        self._opened = Contender(
            mode,
            engine,
            lambda: find_batch_policy(trial.classifier, engine, trial.find_policy(), bar),
            kept,
        )

    def _leave(self, prospect: _Prospect, why: str, lasting: bool = True) -> None:
        mode = prospect.mode
        self._next_mode(prospect)
        self._drop(mode, why, lasting)

    def _next_mode(self, prospect: _Prospect) -> None:
        prospect.modes.pop(0)
        if not prospect.modes:
            self._prospects.remove(prospect)

    def _records(self, prospect: _Prospect) -> bool:
        """Record a prospect's graph beside the run, if that is worth it; whether another process
        does it now."""
        trial, mode = self._trial, prospect.mode
        modules = list(trial.classifier.structure.modules())[:1]
        numbers = sum(one.numel() for one in modules[0].parameters()) if modules else 0
        rest = self._rest()
        work = max(self._seen if rest is None else rest, self._before)
        if work < self._worth(numbers):
            return False
        if (memory := COPIES * 4 * numbers) > self._memory:
            why = f"to record it takes about {in_words(memory)} of memory, which the run has not"
            self._leave(prospect, why, lasting=False)
            return False
        trial.find_policy()  # which is not measured in the other process again
        if can_copy_process():
            with suppress(OSError):  # there is no room for another process
                module = next(iter(modules), None)
                self._recording = GraphRecording(
                    lambda: trial.open(mode), module, trial.graphs, memory + SPACE
                )
                self._prospects.remove(prospect)
                self._prospects.insert(0, prospect)
                log.info("the graph of %s is being recorded", mode.words)
                return True
        if work >= INLINE:
            self._recorded(prospect, _failure_of(lambda: trial.open(mode)))
        return False

    def _worth(self, numbers: int) -> float:
        """Seconds of work that are worth a recording of weights of as many numbers; of a second
        one more: it is hardly faster than the first."""
        others = {one.mode.engine for one in self._agreed} - {self._native.mode.engine}
        seconds = RECORDING[0] + RECORDING[1] * numbers
        return seconds * WORTH[self._precision] * (4 if others else 1)

    def _recorded(self, prospect: _Prospect, why: str) -> None:
        """A recording has ended. why: it failed."""
        if why or prospect.recorded:
            self._leave(prospect, why or "what was recorded of it is not kept", lasting=False)
        prospect.lacks, prospect.recorded = False, True

    def _all_prospects(self) -> list[_Prospect]:
        """The most promising first: what was fastest in an earlier run, then in the order of the
        registry."""
        found = []
        for spec in candidates(self._trial.classifier, self._trial.device):
            modes = [
                mode
                for mode in modes_of(spec, self._precision)
                if mode != self._trial.native_mode and mode.words not in self.dropped
            ]
            if modes and not missing(spec.name):
                found.append(_Prospect(modes))
        known = {n: one.rate for n, one in self._kept.items()}
        return sorted(found, key=lambda one: -known.get(one.mode.words, 0.0))

    # ---- what is kept, and said

    @property
    def choice(self) -> EngineChoice:
        """The engine in use, and why."""
        leader = self._leader
        rates = {one.mode.words: one.rate for one in self._agreed if one.rate}
        seconds = {name: max(1, self._work) / rate for name, rate in rates.items()}
        return EngineChoice(
            leader.mode,
            leader.policy,
            self._native.mode,
            leader.parity,
            seconds if len(rates) > 1 else {},
            dict(self.dropped),
            leader.kept.when if leader.kept and leader is not self._native else "",
            leader is not self._native and self._trial.graphs.given,
            rows=dict(self.given),
        )

    def _key(self) -> list[Any]:
        trial = self._trial
        readings = [reading.key for reading in trial.readings]
        packages = {**versions("openvino", "onnxruntime"), **plugin_versions()}
        return [AUTO, self._precision, trial.device, readings, packages]

    def _keep(self) -> None:
        """Note what was measured, for later runs."""
        known = {
            one.mode.words: {"rate": one.rate, "law": one.law and one.law.to_dict()}
            for one in self._agreed
            if one.rate
        }
        answer = {"modes": known, "dropped": self._lasting, "graphs": self._trial.graphs.hashes}
        self._trial.graphs.note(self._key(), answer)

    def _recalled(self) -> tuple[dict[str, _Kept], dict[str, str]]:
        """By their words, the modes that an earlier run measured; and those that it left, why."""
        note = self._trial.graphs.recall(self._key())
        if note is None:
            return {}, {}
        try:
            return _modes_of_note(note), dict(note.answer["dropped"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}, {}


def _modes_of_note(note: CachedNote) -> dict[str, _Kept]:
    graphs = dict(note.answer["graphs"])
    found = {}
    for words, one in note.answer["modes"].items():
        law = BatchPolicy.from_dict(one["law"]) if one["law"] else None
        found[words] = _Kept(float(one["rate"]), law, note.when, graphs)
    return found


def _failure_of(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # whatever recording a model may raise
        return cause(error)
    return ""
