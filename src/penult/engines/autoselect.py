"""Choice of an engine in advance: each is measured on a few items against the native one.

An engine that does not agree within the precision is dropped, and the fastest of the rest is
chosen. For an engine by name, and for what is saved or checked; a run under `auto` chooses while it
goes on, see `portfolio`. Knows prepared items and engines; no files and no collection.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from penult.data.notes import CachedNote
from penult.engines.base import (
    PRECISIONS,
    Engine,
    EngineRequest,
    EngineSpec,
    FloatArray,
    Reading,
)
from penult.engines.batch_policy import find_batch_policy
from penult.engines.batching import ALONE, Batch, BatchPolicy
from penult.engines.graph_cache import Graphs, versions
from penult.engines.parity import Parity, compare
from penult.engines.registry import (
    AUTO,
    EngineMode,
    candidates,
    find_spec_for,
    missing,
    modes_of,
    open_mode,
    plugin_versions,
)
from penult.engines.verified import VerifiedEngine
from penult.errors import EngineError, MissingExtra, cause
from penult.models.base import Classifier

log = logging.getLogger(__name__)

Rows = list[list[FloatArray]]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The mode that was chosen. find_policy: gives how items share a batch of it. seconds: of each
    mode that agreed, over the same items. dropped: the reason for each of the others. kept: the day
    on which seconds and reasons were measured, in an earlier run; empty for this one. The parity is
    always of this run. given: the graph came with the embedder's folder. unopened: the model was
    not opened, so that the parity is of that day, too. rows: of the run, by the engine that gave
    them, where it may change."""

    mode: EngineMode
    find_policy: Callable[[], BatchPolicy]
    native: EngineMode
    parity: Parity | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    kept: str = ""
    given: bool = False
    unopened: bool = False
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def policy(self) -> BatchPolicy:
        """How items share a batch of this engine."""
        return self.find_policy()

    @property
    def words(self) -> str:
        """In a line."""
        words = f"engine {self.mode.words}"
        native = self.seconds.get(self.native.words)
        if self.mode != self.native and native:
            times = native / self.seconds[self.mode.words]
            words += f", {times:.1f} × as fast as {self.native.words}"
            words += f" when it was measured on {self.kept} (kept)" if self.kept else ""
        if self.mode != self.native and self.parity is not None:
            words += f"; {self.parity.words}"
            words += ", with the graph that came with the embedder" if self.given else ""
            words += f", measured on {self.kept} (kept)" if self.unopened else ""
        if len(self.rows) > 1:
            words += f"; rows: {', '.join(f'{n:,} {name}' for name, n in self.rows.items())}"
        kept = f" (kept from {self.kept})" if self.kept else ""
        return words + "".join(f"; not {name}: {why}{kept}" for name, why in self.dropped.items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "engine": self.mode.engine,
            "numbers": self.mode.arithmetic,
            "law": self.policy.to_dict(),
            "parity": self.parity.to_dict() if self.parity else None,
            "seconds": self.seconds,
            "dropped": self.dropped,
            "estimate": None,  # of earlier versions
            "kept": self.kept or None,
            "rows": self.rows,
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any], native: EngineMode) -> EngineChoice:
        """The choice that `to_dict` wrote."""
        policy = BatchPolicy.from_dict(document["law"])
        return cls(
            EngineMode(document["engine"], document["numbers"]),
            lambda: policy,
            native,
            Parity(**document["parity"]) if document["parity"] else None,
            document["seconds"],
            document["dropped"],
        )


@dataclass(slots=True)
class EngineTrial:
    """A run for which an engine is chosen. find_policy: gives how items share a batch of the native
    engine, measured only where that matters. native: that engine, open. items: a few that are
    prepared, like those of the run."""

    classifier: Classifier
    readings: Sequence[Reading]
    device: str
    find_policy: Callable[[], BatchPolicy]
    native: Engine
    graphs: Graphs
    items: Sequence[Any] = ()

    @property
    def native_mode(self) -> EngineMode:
        """The native engine, in fp32."""
        return EngineMode(self.classifier.structure.engine)

    def open(self, mode: EngineMode, graphs: Graphs | None = None) -> Engine:
        """The engine of a mode. graphs: others than those of the trial.

        Raises:
            EngineError: it cannot run the model. MissingExtra: it is not installed.
        """
        if mode == self.native_mode:
            return self.native
        graphs = graphs or self.graphs
        policy = self.find_policy()
        request = EngineRequest(
            self.classifier, self.readings, self.device, policy=policy, graphs=graphs
        )
        engine = open_mode(mode, request)
        if mode.engine == self.native_mode.engine:  # the module itself, in another arithmetic
            return engine
        return VerifiedEngine(engine, lambda: self.native, mode.arithmetic, graphs)

    def as_native(self) -> tuple[EngineChoice, Engine]:
        """The native engine, without a measurement."""
        return EngineChoice(self.native_mode, self.find_policy, self.native_mode), self.native


def choose(trial: EngineTrial, engine: str, precision: str) -> tuple[EngineChoice, Engine]:
    """The engine for items like those of a trial, open.

    engine: `auto`, or one by name: then its fastest arithmetic that holds the precision.

    Raises:
        EngineError: the engine cannot run this model at this precision.
        MissingExtra: it is not installed.
    """
    key = _key(trial, engine, precision)
    note = trial.graphs.recall(key)
    if note is not None and (known := _confirmed(trial, note, precision)):
        return known
    items, rows = _runnable_items(trial)
    if engine == AUTO and not items:
        return trial.as_native()
    trial = replace(trial, items=items)
    measured = _measure(trial, engine, precision, rows)
    best = min(measured.modes, key=lambda name: measured.seconds[name])
    choice = measured.choice(measured.modes[best])
    trial.graphs.note(key, {**choice.to_dict(), _GRAPHS: trial.graphs.hashes})
    return replace(choice, given=trial.graphs.given), measured.engines[best]


_GRAPHS = "graphs"  # of a note: the hashes of the graphs that were measured


def _confirmed(
    trial: EngineTrial, note: CachedNote, precision: str
) -> tuple[EngineChoice, Engine] | None:
    """The choice of an earlier run, its parity measured again on the smallest items of this one;
    None where it does not hold any more."""
    few = sorted(trial.items, key=_size)[:CONFIRMED]
    try:
        known = EngineChoice.from_dict(note.answer, trial.native_mode)
        engine = trial.open(known.mode)
        graphs = note.answer[_GRAPHS]
        if any(graphs.get(name) != found for name, found in trial.graphs.hashes.items()):
            return None
        if known.mode == trial.native_mode:
            return replace(known, kept=note.when), engine
        items, reference = _runnable_items(replace(trial, items=few))
        parity = compare(_run(engine, known.policy, items)[0], reference)
    except Exception as error:  # an engine may raise anything on a graph that it does not take
        log.info("the choice of %s is measured anew: %s", note.when, cause(error))
        return None
    if not parity.holds(PRECISIONS[precision]):
        log.warning(
            "the choice of %s is measured anew: %s: %s", note.when, known.mode.words, parity.words
        )
        return None
    return replace(known, parity=parity, kept=note.when, given=trial.graphs.given), engine


def _key(trial: EngineTrial, engine: str, precision: str) -> list[Any]:
    """Whatever a choice depends on."""
    return [
        engine,
        precision,
        trial.find_policy().name,
        [reading.key for reading in trial.readings],
        {**versions("openvino", "onnxruntime"), **plugin_versions()},
    ]


def _measure(trial: EngineTrial, engine: str, precision: str, reference: Rows) -> _Measurements:
    """Every candidate measured, those that agree with the native engine kept. reference: the items'
    rows in that one.

    Raises:
        EngineError: none is left. MissingExtra: the engine is not installed.
    """
    measured = _Measurements(trial, precision, reference)
    if engine != AUTO:
        if reason := missing(engine):
            raise MissingExtra(reason)
        measured.try_engine(find_spec_for(trial.classifier, engine), timed=False)
    else:
        for spec in candidates(trial.classifier, trial.device):
            if not missing(spec.name):  # what is not installed is no candidate, and no news
                measured.try_engine(spec)
        if trial.native_mode.words not in measured.modes:
            measured.try_mode(trial.native_mode)
    if not measured.modes:
        raise EngineError("; ".join(f"{name}: {why}" for name, why in measured.dropped.items()))
    return measured


def _runnable_items(trial: EngineTrial) -> tuple[list[Any], Rows]:
    """The items that the native engine takes (one that is too short fails in the run, and is named
    there), and their rows."""
    items: list[Any] = []
    rows: Rows = []
    for item in trial.items:
        with contextlib.suppress(Exception):  # a model may raise anything on what it can't take
            rows.append(trial.native(Batch(item)).row(0))
            items.append(item)
    return items, rows


class _Measurements:
    """Modes that were tried on the same items."""

    def __init__(self, trial: EngineTrial, precision: str, reference: Rows) -> None:
        self._trial, self._precision, self._reference = trial, precision, reference
        self.modes: dict[str, EngineMode] = {}
        self.engines: dict[str, Engine] = {}
        self.seconds: dict[str, float] = {}
        self.dropped: dict[str, str] = {}
        self._parities: dict[str, Parity] = {}
        self._policies: dict[str, BatchPolicy] = {trial.native_mode.words: trial.find_policy()}

    def try_engine(self, spec: EngineSpec, timed: bool = True) -> None:
        """Try an engine's modes until one holds the precision. timed: others are tried, too."""
        for mode in modes_of(spec, self._precision):
            if self.try_mode(mode, timed):
                return

    def try_mode(self, mode: EngineMode, timed: bool = True) -> bool:
        """Try one mode; whether it agrees with the native engine in fp32."""
        try:
            engine, (rows, seconds) = self._opened(mode)
            parity = compare(rows, self._reference)
        except Exception as error:  # an engine may raise anything on a model that it can't run
            self.dropped[mode.words] = cause(error)
            return False
        if not parity.holds(PRECISIONS[self._precision]):
            self.dropped[mode.words] = f"{parity.words}, and {self._precision} asks for more"
            return False
        self._parities[mode.words] = parity
        if timed:  # a first pass is often slower than later ones
            seconds = _run(engine, self._policies[mode.words], self._trial.items)[1]
        self.seconds[mode.words] = seconds
        self.modes[mode.words], self.engines[mode.words] = mode, engine
        return True

    def _opened(self, mode: EngineMode) -> tuple[Engine, tuple[Rows, float]]:
        """The engine of a mode, and the rows that it gives, in batches that it may have, in so
        many seconds."""
        trial, engine = self._trial, self._trial.open(mode)
        if mode != trial.native_mode:
            bar = mode.batch_error(self._precision) / 2
            policy = find_batch_policy(trial.classifier, engine, trial.find_policy(), bar)
            self._policies[mode.words] = policy
        return engine, _run(engine, self._policies[mode.words], trial.items)

    def choice(self, mode: EngineMode) -> EngineChoice:
        """The choice of a mode."""
        policy = self._policies[mode.words]
        return EngineChoice(
            mode,
            lambda: policy,
            self._trial.native_mode,
            self._parities.get(mode.words),
            self.seconds,
            self.dropped,
        )


def _run(engine: Engine, policy: BatchPolicy, items: Sequence[Any]) -> tuple[Rows, float]:
    """Each item's row, in batches as a run makes them; and the seconds that it took."""
    rows: dict[int, list[FloatArray]] = {}
    groups: dict[Any, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(policy.kind(item) if policy.name != ALONE else number, []).append(number)
    began = time.perf_counter()
    for group in groups.values():
        group.sort(key=lambda i: -policy.length(items[i]))
        for first in range(0, len(group), _TOGETHER):
            part = group[first : first + _TOGETHER]
            rows |= zip(part, _rows_of(engine, policy, [items[i] for i in part]), strict=True)
    return [rows[i] for i in range(len(items))], time.perf_counter() - began


def _rows_of(engine: Engine, policy: BatchPolicy, items: Sequence[Any]) -> Rows:
    """Of items that share a batch; of each alone where the batch is refused, as a run does."""
    if len(items) == 1:
        return [engine(Batch(items[0])).row(0)]
    try:
        readout = engine(policy.batch(items))
        return [readout.row(row) for row in range(len(items))]
    except Exception:  # a model may raise anything on items that do not go together
        return [engine(Batch(item)).row(0) for item in items]


def _size(item: Any) -> int:
    """Numbers in an item's inputs."""
    return sum(prod(value.shape) for value in item.values())


_TOGETHER = 4  # items in a batch
CONFIRMED = 2  # items on which a kept choice is measured again
