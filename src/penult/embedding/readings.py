"""Every reading of a classifier: its taps × poolings, read of each item in one forward pass.

Knows the classifier and how to run it; nothing of labels, and not which reading is good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from penult.batches.pooling import pooled_width
from penult.classifiers.base import Classifier
from penult.embedding.proving import anatomy_of
from penult.embedding.runner import Outcome, Runner, device_of
from penult.engines.base import Reading
from penult.engines.law import find_law
from penult.errors import UsageError
from penult.sources import Failure, Item
from penult.splitting.taps import Tap

FloatArray = npt.NDArray[np.float32]

SEQUENCE = ("mean", "max", "first", "last", "mean+std")
MAP = ("mean", "max", "mean+std")  # the corner of a picture says nothing of it
LIMIT_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Read:
    """What was read. vectors: for each reading (n, d) float32. index: (n,) the place of each row's
    entry in the source. failures: the entries that gave no row."""

    readings: list[Reading]
    vectors: list[FloatArray]
    index: npt.NDArray[np.int64]
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


def chains_of(readings: Sequence[Reading]) -> list[list[str]]:
    """The names of the layers' readings in order of depth, the backbone last: one list for each
    pooling."""
    chains: dict[str, list[tuple[float, str]]] = {}
    for reading in readings:
        kind, _, number = reading.tap.name.partition(":")
        if kind == "layer" or reading.tap.name == "backbone":
            depth = float(number) if number else float("inf")
            chains.setdefault(reading.pooling, []).append((depth, name_of(reading)))
    return [[name for _, name in sorted(chain)] for chain in chains.values()]


def check_memory(readings: Sequence[Reading], count: int | None) -> None:
    """Refuse what would not fit.

    Raises:
        UsageError: all readings of so many items take more than 8 GB.
    """
    each = 4 * sum(pooled_width(one.pooling, one.tap.width) for one in readings)
    if count is not None and count * each > LIMIT_BYTES:
        raise UsageError(
            f"{len(readings)} readings of {count:,} items take {count * each / 2**30:.1f} GB, and "
            f"{LIMIT_BYTES >> 30} are allowed; give {LIMIT_BYTES // each:,} items or fewer: some "
            "dozens of each class are enough"
        )


def read_all(
    classifier: Classifier,
    entries: Iterable[object],
    readings: Sequence[Reading],
    device: str = "auto",
    tick: Callable[[bool, float], None] = lambda embedded, seconds: None,
) -> Read:
    """Run items once and keep every reading of each."""
    where = device_of(classifier, device)
    runner = Runner(classifier, readings, where, cache(lambda: find_law(classifier, runner.engine)))
    widths = [pooled_width(one.pooling, one.tap.width) for one in readings]
    rows: list[tuple[FloatArray, ...]] = []
    index: list[int] = []
    items: list[Item] = []
    failures: list[Failure] = []
    number = -1
    for outcome in runner.stream(_numbered(entries)):
        if isinstance(outcome, int):
            number = outcome
            continue
        if isinstance(outcome, Outcome):
            rows.append(outcome.vectors)
            index.append(number)
            items.append(outcome.item)
        else:
            failures.append(outcome)
        tick(isinstance(outcome, Outcome), 0.0)
    vectors = [
        np.array([row[at] for row in rows], np.float32).reshape(-1, width)
        for at, width in enumerate(widths)
    ]
    return Read(list(readings), vectors, np.array(index, np.int64), items, failures)


def _numbered(entries: Iterable[object]) -> Iterator[object]:
    for number, entry in enumerate(entries):
        yield number
        yield entry
