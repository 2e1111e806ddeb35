"""Which engine runs the items at hand: each measured on some of them against torch in fp32.

What does not agree within the precision is dropped, and the fastest of the rest is taken. Knows
prepared items and ways; neither files nor stores.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penult.engines.base import EXACT, PRECISIONS, Engine, FloatArray, Reading
from penult.engines.batch_policy import BatchPolicy, find_batch_policy
from penult.engines.batching import Batch
from penult.engines.graph_cache import Graphs, versions
from penult.engines.graph_export import reading_key
from penult.engines.parity import Parity, compare
from penult.engines.registry import (
    AUTO,
    ENGINES,
    MODES,
    PLAIN,
    TORCH,
    EngineMode,
    missing,
    open_mode,
)
from penult.engines.torch import multiplies_bf16
from penult.errors import EngineError, MissingExtra, first_line
from penult.models.base import Classifier

LONG = 60.0  # seconds in torch from which on other engines are tried by `auto`
WORTH = 1.3  # times as fast as without them, or eight bits are not worth what they cost

Rows = list[list[FloatArray]]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The way that was taken. seconds: of each way that agreed, over the same items. dropped: why
    each of the others was not. estimate: seconds that the whole run would take in torch."""

    way: EngineMode
    find_law: Callable[[], BatchPolicy]
    parity: Parity | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    estimate: float | None = None

    @property
    def law(self) -> BatchPolicy:
        """How items share a batch of this engine."""
        return self.find_law()

    @property
    def words(self) -> str:
        """In a line."""
        said = f"engine {self.way.words}"
        plain = self.seconds.get(PLAIN.words)
        if self.way != PLAIN and plain:
            said += f", {plain / self.seconds[self.way.words]:.1f} × as fast as {PLAIN.words}"
        if self.way != PLAIN and self.parity is not None:
            said += f"; {self.parity.words}"
        elif self.estimate is not None and self.estimate < LONG:
            said += f": about {self.estimate:.0f} s of work, others are tried from {LONG:.0f} s on"
        return said + "".join(f"; not {name}: {why}" for name, why in self.dropped.items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "engine": self.way.engine,
            "numbers": self.way.numbers,
            "law": self.law.to_dict(),
            "parity": self.parity.to_dict() if self.parity else None,
            "seconds": self.seconds,
            "dropped": self.dropped,
            "estimate": self.estimate,
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> EngineChoice:
        """The choice that `to_dict` wrote."""
        law = BatchPolicy.from_dict(document["law"])
        return cls(
            EngineMode(document["engine"], document["numbers"]),
            lambda: law,
            Parity(**document["parity"]) if document["parity"] else None,
            document["seconds"],
            document["dropped"],
            document["estimate"],
        )


@dataclass(slots=True)
class EngineTrial:
    """What is to be run. items: some that are prepared, like those that the run will have; total:
    how many of such it will have, if that is known. find_law: gives how they share a batch in
    torch, measured only where that matters."""

    classifier: Classifier
    readings: Sequence[Reading]
    device: str
    find_law: Callable[[], BatchPolicy]
    plain: Engine
    graphs: Graphs
    items: Sequence[Any]
    total: float | None = None


def choose(question: EngineTrial, engine: str, precision: str) -> tuple[EngineChoice, Engine]:
    """The way to run it, and its engine, open.

    engine: `auto`, or the one that was asked for: then its best numbers that hold the precision.

    Raises:
        EngineError: the engine that was asked for cannot run this model at this precision.
        MissingExtra: it is not installed.
    """
    estimate = _estimate(question) if engine == AUTO else None
    if estimate is not None and estimate < LONG:
        return EngineChoice(PLAIN, question.find_law, estimate=estimate), question.plain
    items, _ = _runnable_items(question, len(question.items))
    question = replace(question, items=items)
    if engine == AUTO and not items:
        return EngineChoice(PLAIN, question.find_law), question.plain
    readings = [reading_key(reading) for reading in question.readings]
    asked = [
        engine,
        precision,
        question.find_law().name,
        readings,
        versions("openvino", "onnxruntime", "nncf"),
    ]
    noted = question.graphs.recall(asked)
    if noted is not None:
        known = EngineChoice.from_dict(noted)
        with contextlib.suppress(EngineError, MissingExtra):  # it is measured anew
            return known, _open(question, known.way)
    trial = _Trial(question, precision, estimate)
    for name in ENGINES if engine == AUTO else (engine,):
        if why := missing(name):
            if engine != AUTO:
                raise MissingExtra(why)
            continue  # what is not installed is no candidate, and no news
        trial.engine(name)
    if engine == AUTO and PLAIN.words not in trial.choices:
        trial.way(PLAIN)
    trial.weigh_eight_bits()
    if not trial.choices:
        raise EngineError("; ".join(f"{name}: {why}" for name, why in trial.dropped.items()))
    best = min(trial.choices, key=lambda name: trial.seconds[name])
    choice = trial.taken(trial.choices[best])
    question.graphs.note(asked, choice.to_dict())
    return choice, trial.engines[best]


def _open(question: EngineTrial, way: EngineMode) -> Engine:
    if way == PLAIN:
        return question.plain
    q = question
    return open_mode(way, q.classifier, q.readings, q.device, q.find_law(), q.graphs)


def _estimate(question: EngineTrial) -> float | None:
    """Seconds that the whole run would take in torch, from the first items; None: not known."""
    if question.total is None:
        return None
    items, seconds = _runnable_items(question, _TIMED)
    return seconds * question.total / len(items) if items else None


def _runnable_items(question: EngineTrial, most: int) -> tuple[list[Any], float]:
    """The first items that torch takes (one that is too short fails in the run, and is named
    there), and the seconds that they took."""
    taken, seconds = [], 0.0
    for item in question.items:
        began = time.perf_counter()
        with contextlib.suppress(Exception):  # a model may raise anything on what it can't take
            question.plain(Batch(item))
            seconds += time.perf_counter() - began
            taken.append(item)
        if len(taken) == most:
            break
    return taken, seconds


class _Trial:
    """Ways that were tried on the same items."""

    def __init__(self, question: EngineTrial, precision: str, estimate: float | None) -> None:
        self._q, self._precision = question, precision
        self.choices: dict[str, EngineMode] = {}
        self.engines: dict[str, Engine] = {}
        self.seconds: dict[str, float] = {}
        self.dropped: dict[str, str] = {}
        self._parities: dict[str, Parity] = {}
        self._laws: dict[str, BatchPolicy] = {PLAIN.words: question.find_law()}
        self._reference, _ = _run(question.plain, question.find_law(), question.items)
        self.estimate = estimate

    def engine(self, name: str) -> None:
        """Try an engine's numbers until some hold the precision; eight bits are compared with
        what would be taken without them."""
        held = False
        for way in MODES[self._precision]:
            if way.engine != name or (way.quantised and held):
                continue
            held = self.way(way) or held
            if held and not way.quantised and way.words in self.choices:
                return

    def weigh_eight_bits(self) -> None:
        """Drop eight bits if they are hardly faster than the best without them."""
        others = {name: self.seconds[name] for name in self.choices if not self._eight(name)}
        for name in [name for name in self.choices if self._eight(name)]:
            if others and self.seconds[name] * WORTH > min(others.values()):
                best = min(others, key=lambda other: others[other])
                times = others[best] / self.seconds[name]
                self.dropped[name] = f"only {times:.1f} × as fast as {best}"
                del self.choices[name]

    def _eight(self, name: str) -> bool:
        return self.choices[name].quantised

    def way(self, way: EngineMode) -> bool:
        """Try one way; whether it agrees with torch in fp32."""
        bars = PRECISIONS[self._precision]
        try:
            if way == EngineMode(TORCH, "bf16") and not multiplies_bf16(self._q.device):
                raise EngineError("bfloat16 is no faster than fp32 here")
            engine = _open(self._q, way)
            if way != PLAIN:
                bar = PRECISIONS[EXACT if way.numbers == "f32" else self._precision].law / 2
                law = find_batch_policy(self._q.classifier, engine, self._q.find_law(), bar)
                self._laws[way.words] = law
            rows, _ = _run(engine, self._laws[way.words], self._q.items)
        except (EngineError, MissingExtra) as error:
            self.dropped[way.words] = first_line(error)
            return False
        except (RuntimeError, ValueError, IndexError) as error:  # an engine on a model it can't run
            self.dropped[way.words] = first_line(error)
            return False
        parity = compare(rows, self._reference)
        if not parity.holds(bars):
            self.dropped[way.words] = f"{parity.words}, and {self._precision} asks for more"
            return False
        self._parities[way.words] = parity
        self.seconds[way.words] = _run(engine, self._laws[way.words], self._q.items)[1]
        self.choices[way.words], self.engines[way.words] = way, engine
        return True

    def taken(self, way: EngineMode) -> EngineChoice:
        """The choice of a way."""
        law = self._laws[way.words]
        return EngineChoice(
            way,
            lambda: law,
            self._parities.get(way.words),
            self.seconds,
            self.dropped,
            self.estimate,
        )


def _run(engine: Engine, law: BatchPolicy, items: Sequence[Any]) -> tuple[Rows, float]:
    """Each item's row, in batches as a run makes them; and the seconds that it took."""
    rows: dict[int, list[FloatArray]] = {}
    groups: dict[Any, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(law.kind(item) if law.name != "alone" else number, []).append(number)
    began = time.perf_counter()
    for group in groups.values():
        group.sort(key=lambda i: -law.length(items[i]))
        for first in range(0, len(group), _TOGETHER):
            part = group[first : first + _TOGETHER]
            tensors = [items[i] for i in part]
            readout = engine(Batch(tensors[0]) if len(part) == 1 else law.batch(tensors))
            rows |= {number: readout.row(row) for row, number in enumerate(part)}
    return [rows[i] for i in range(len(items))], time.perf_counter() - began


_TOGETHER, _TIMED = 4, 2  # items in a batch; items whose time tells that of the run
