"""Every reading of a classifier in one pass, and the weight rows of a linear head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from penult.data.items import Entry, Failure, Item
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder, numbered_regions
from penult.embedding.inspect import anatomy_of, proved_head
from penult.embedding.runner import ItemNumber, Outcome, Runner, device_of
from penult.embedding.source_sample import SourceSample
from penult.engines.base import Reading
from penult.engines.batch_policy import find_batch_policy
from penult.engines.pooling import pooled_width, usable_poolings
from penult.errors import HeadNotFound, TapError, UsageError
from penult.models.base import Classifier
from penult.models.patches import ROWS
from penult.tracing.anatomy import refuse_random
from penult.tracing.spots import Tap

FloatArray = npt.NDArray[np.float32]

LIMIT_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class ReadingSet:
    """Vectors of every reading: for each (n, d) float32. index: (n,) the place of each row's entry
    in the source. failures: the entries that gave no row. regions: the key of each row's region.
    labels: (n,) the place of each row's largest logit."""

    readings: list[Reading]
    vectors: list[FloatArray]
    index: npt.NDArray[np.int64]
    items: list[Item]
    failures: list[Failure]
    regions: list[str] = field(default_factory=list)
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def readings_of(classifier: Classifier) -> list[Reading]:
    """Every named tap with every pooling that fits it; the notebook's own reading comes first.

    A place that has several names is read once, by its first name; one that random numbers reach
    is left out.

    Raises:
        TapError: there is none, or random numbers reach every one.
    """
    taps: dict[tuple[object, ...], Tap] = {}
    anatomy = anatomy_of(classifier)
    if not anatomy.taps:
        raise TapError(
            f"{classifier.spec} has no hidden states that could be compared by name: what enters "
            "its head is several tensors, and none has positions; name a module with --tap "
            "(penult inspect shows them)"
        )
    if anatomy.random and anatomy.random.keys() == anatomy.taps.keys():
        refuse_random(*next(iter(anatomy.random.items())))
    for tap in (tap for name, tap in anatomy.taps.items() if name not in anatomy.random):
        place = (tap.module, tap.side, tap.index, tap.call, tap.operation, tap.later, tap.channel)
        taps.setdefault(place, tap)
    return [Reading(tap, pooling) for tap in taps.values() for pooling in poolings_of(tap)]


def poolings_of(tap: Tap) -> tuple[str, ...]:
    """The poolings that differ at a tap, those of other packages too; one where it has no
    positions."""
    if not tap.positions:
        return ("mean",)
    return tuple(
        one.name
        for one in usable_poolings(tap.width)
        if one.one_vector and (one.on_maps or len(tap.positions) == 1)
    )


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
    entries: Iterable[Entry],
    readings: Sequence[Reading],
    device: str = "auto",
    tick: Callable[[bool, float], None] = lambda embedded, seconds: None,
) -> ReadingSet:
    """Run items once and keep every reading of each.

    Raises:
        UsageError: the model gives a row for each patch of an item.
    """
    if classifier.input.patches == ROWS:
        raise UsageError(
            "readings are compared on one row of each item, and --patches rows gives one for each "
            "patch; pool them with --patches mean or --patches max"
        )
    where = device_of(classifier, device)
    runner = Runner(
        classifier, readings, where, cache(lambda: find_batch_policy(classifier, runner.engine))
    )
    widths = [pooled_width(one.pooling, one.tap.width) for one in readings]
    rows: list[tuple[FloatArray, ...]] = []
    index: list[int] = []
    items: list[Item] = []
    regions: list[str] = []
    labels: list[int] = []
    failures: list[Failure] = []
    number = -1
    for outcome in runner.stream(numbered_regions(entries, Layout(), classifier)):
        if isinstance(outcome, ItemNumber):
            number = outcome.number
            continue
        if isinstance(outcome, Outcome):
            rows.append(outcome.vectors)
            index.append(number)
            items.append(outcome.item)
            regions.append(outcome.region.key)
            labels.append(int(outcome.class_logits.argmax()))
        else:
            failures.append(outcome)
        tick(isinstance(outcome, Outcome), 0.0)
    vectors = [
        np.array([row[at] for row in rows], np.float32).reshape(-1, width)
        for at, width in enumerate(widths)
    ]
    numbers, best = np.array(index, np.int64), np.array(labels, np.int64)
    return ReadingSet(list(readings), vectors, numbers, items, failures, regions, best)


Floats = npt.NDArray[np.float64]
_LINEAR = 1e-4  # largest error of W z + b against the head, relative to the largest logit
_OTHER = (
    "what works: classes from a collection's own labels (penult teach COLLECTION --from label, a "
    "column or folder), or examples"
)


def head_rows(embedder: Embedder, sample: SourceSample | None = None) -> npt.NDArray[np.float32]:
    """(K, d): for each class of the classifier the weights that its logit gives to the prelogits.
    sample: items to prove the head on, where made-up ones tell nothing.

    Raises:
        HeadNotFound: the reading is not the prelogits, the head is not proved, or it is not linear
            with one row for each class; the message says what works.
    """
    if embedder.tap.name != "prelogits" or embedder.tap.positions:
        raise HeadNotFound(
            f"the vectors are read at {embedder.tap.name}, pooled by {embedder.pooling}; the "
            "classifier's own classes are rows of its head, which lie at the tap prelogits where "
            f"it has one vector for each item. {_OTHER}"
        )
    head = _head(embedder, sample)
    d, k = embedder.dim, len(embedder.classifier.labels)
    try:
        offset = head(np.zeros((1, d), np.float32))
        rows = np.concatenate([head(one[None]) for one in np.eye(d, dtype=np.float32)]) - offset
        tried = np.random.default_rng(0).standard_normal((4, d)).astype(np.float32)
        found = np.concatenate([head(one[None]) for one in tried])
    except (ValueError, RuntimeError, UsageError) as problem:
        raise HeadNotFound(f"the head does not take its prelogits alone: {problem}") from problem
    if rows.shape != (d, k):
        raise HeadNotFound(f"the head gives {rows.shape[-1]} numbers for {k} classes. {_OTHER}")
    expected = tried @ rows + offset
    error = float(np.abs(expected - found).max() / max(float(np.abs(found).max()), 1e-30))
    if not error <= _LINEAR:
        raise HeadNotFound(
            f"the head is not linear (it differs from W z + b by {error:.1e}, relative), so its "
            f"classes are no rows. {_OTHER}"
        )
    return np.asarray(rows.T, np.float32)


def _head(embedder: Embedder, sample: SourceSample | None) -> Callable[[FloatArray], Floats]:
    """The proved head as a function of one item's prelogits, (1, d) → (1, K)."""
    try:
        head = proved_head(embedder.runner, sample)
    except HeadNotFound as error:
        raise HeadNotFound(f"{error}. {_OTHER}") from error
    return lambda prelogits: np.asarray(head(prelogits), np.float64)
