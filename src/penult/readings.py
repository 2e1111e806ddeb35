"""Every reading of a classifier: its taps × poolings, read of each item in one forward pass.

Knows the classifier and how to run it; nothing of labels, and not which reading is good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from penult.batching import find_law
from penult.classifiers.base import Classifier
from penult.engines.base import Reading
from penult.proving import anatomy_of
from penult.runner import Outcome, Runner, device_of
from penult.sources import Failure, Item
from penult.splitting.taps import Tap

FloatArray = npt.NDArray[np.float32]

SEQUENCE = ("mean", "max", "first", "last", "mean+std")
MAP = ("mean", "max", "mean+std")  # the corner of a picture says nothing of it
LIMIT_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Read:
    """What was read. vectors: for each reading (n, d) float32, rows in the order of `items`.
    failures: the items that gave no row."""

    readings: list[Reading]
    vectors: list[FloatArray]
    items: list[Item]
    failures: list[Failure]


def readings_of(classifier: Classifier) -> list[Reading]:
    """Every named tap with every pooling that fits it; the notebook's own reading comes first.

    A place that has several names is read once, by its first name.
    """
    taps: dict[tuple[object, ...], Tap] = {}
    for tap in anatomy_of(classifier).taps.values():
        place = (tap.module, tap.side, tap.index, tap.call, tap.operation, tap.later, tap.channel)
        taps.setdefault(place, tap)
    return [Reading(tap, pooling) for tap in taps.values() for pooling in poolings_of(tap)]


def poolings_of(tap: Tap) -> tuple[str, ...]:
    """The poolings that differ at a tap: one where it has no positions."""
    return {0: ("mean",), 1: SEQUENCE}.get(len(tap.positions), MAP)


def name_of(reading: Reading) -> str:
    """`layer:7 mean+std`."""
    return f"{reading.tap.name} {reading.pooling}"


def read_all(
    classifier: Classifier,
    pairs: Iterable[object],
    readings: Sequence[Reading],
    device: str = "auto",
    tick: Callable[[bool, float], None] = lambda embedded, seconds: None,
) -> Read:
    """Run items once and keep every reading of each."""
    where = device_of(classifier, device)
    runner = Runner(classifier, readings, where, cache(lambda: find_law(classifier, runner.engine)))
    rows: list[tuple[FloatArray, ...]] = []
    items: list[Item] = []
    failures: list[Failure] = []
    for outcome in runner.stream(pairs):
        if isinstance(outcome, Outcome):
            rows.append(outcome.vectors)
            items.append(outcome.item)
        else:
            failures.append(outcome)
        tick(isinstance(outcome, Outcome), 0.0)
    vectors = [
        np.array([row[number] for row in rows], np.float32) for number in range(len(readings))
    ]
    return Read(list(readings), vectors, items, failures)
