"""How an embedder's engine is settled before a run: on a few of the items that the run will have.

Knows an embedder's parts and how items are opened; the measurement itself is the engines'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penult.data.decode import Decoding
from penult.data.items import Failure
from penult.data.sources import Source
from penult.data.windows import Layout
from penult.embedding.runner import Runner
from penult.embedding.scheduling import Ready
from penult.engines.base import EXACT, TURBO
from penult.engines.graph_cache import Graphs
from penult.engines.registry import AUTO, ONNXRUNTIME, TORCH
from penult.errors import EngineError, UsageError

SAMPLED = 8  # items at most on which engines are measured
SAMPLED_EIGHT_BITS = 32  # where nearest neighbours are counted
OPENED = 4  # of the source, from which these are taken


@dataclass(frozen=True, slots=True)
class EngineSample:
    """Prepared items, and how many of their kind the whole run will have (None: not known)."""

    items: Sequence[Any]
    total: float | None


def sample(
    runner: Runner,
    source: Iterable[Any],
    layout: Layout = Layout(),
    precision: str = EXACT,
    decoding: Decoding = Decoding(),
) -> EngineSample:
    """A few prepared items of a source that can be iterated again; the classifier's own example
    where none of them can be opened."""
    classifier = runner.classifier
    most = SAMPLED_EIGHT_BITS if precision == TURBO else SAMPLED
    first = [
        pair for pair in islice(source, max(most, OPENED * 4)) if not isinstance(pair, Failure)
    ]
    regions = [
        pair
        for pair in layout.apply(first, classifier.modality, classifier.rate)
        if not isinstance(pair, Failure)
    ]
    items: list[Any] = []
    size = 0
    for ready in runner.prepare(_spread(regions, most), decoding.briefly):
        if isinstance(ready, Ready):
            items.append(ready.inputs.tensors)
            size += max(value.numel() for value in ready.inputs.tensors.values())
        if len(items) == most or size > 2 * runner.budget * most / SAMPLED:  # enough to be timed
            break
    count = source.count() if isinstance(source, Source) else None
    total = None if count is None or not first else count * len(regions) / len(first)
    return EngineSample(items or [classifier.example().tensors], total)


def _spread(regions: Sequence[Any], most: int) -> Sequence[Any]:
    """Some of all of them, in their order."""
    step = max(1, len(regions) // most)
    return regions[::step]


def require_engine(classifier: Any, engine: str, precision: str, device: str) -> str:
    """The device for an engine, of what was asked for.

    Raises:
        EngineError: this classifier or device is not for that engine.
    """
    if classifier.engine != TORCH:
        if engine not in (AUTO, TORCH, ONNXRUNTIME):
            raise EngineError(
                f"an ONNX file is run by ONNX Runtime itself, not by {engine}; leave --engine out"
            )
        if precision != EXACT:
            raise EngineError(
                f"precision {precision!r} is for torch models; an ONNX file is run as it is"
            )
        return device
    if engine in (AUTO, TORCH) or device == "cpu":
        return device
    if device == "auto":
        return "cpu"
    raise UsageError(f"engine {engine!r} runs on the cpu here, not on {device!r}")


def graphs_of(classifier: Any, folder: Any) -> Graphs:
    """Where this classifier's recorded graphs are kept."""
    from penult.models.base import digest

    return Graphs(digest(classifier.identity()), folder)
