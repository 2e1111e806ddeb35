"""An engine on a recorded graph, held against the native one at each new length.

A recorded pass may hold a number that follows from the length it was recorded at (a table of
positions, a count of blocks), and give another value elsewhere without an error. So a graph is used
between the shortest and the longest input at which it gave what the native engine gives; what lies
outside is run by both, and widens the range or keeps the graph from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any

from penult.data.hashes import list_hash
from penult.engines.base import EXACT, FAST, PRECISIONS, Engine, Readout, nothing
from penult.engines.batching import Batch
from penult.engines.graph_cache import ENGINE, Graphs
from penult.engines.parity import compare
from penult.locking import Guard


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Numbers of an item's largest input. shortest, longest: at which a graph was verified; none
    so far where the first is larger. below, above: at which it gave something else."""

    shortest: float = inf
    longest: float = 0
    below: float = 0
    above: float = inf

    def holds(self, low: int, high: int) -> bool:
        """Whether the graph was verified for items of these and of all lengths between."""
        return self.shortest <= low and high <= self.longest

    def refuses(self, low: int, high: int) -> bool:
        """Whether it is known to give something else there."""
        return low <= self.below or high >= self.above

    def with_verified(self, low: int, high: int) -> LengthRange:
        """Wider by these lengths."""
        return replace(self, shortest=min(self.shortest, low), longest=max(self.longest, high))

    def with_refused(self, low: int, high: int) -> LengthRange:
        """Without what lies beyond these lengths."""
        if high > self.longest:
            return replace(self, above=min(self.above, high))
        return replace(self, below=max(self.below, low))


class VerifiedEngine:
    """Runs a recorded graph where it was verified, and the native engine where it gives something
    else.

    native: opens that engine. graphs: where the range is kept for later runs. graph, inputs: of an
    engine that can be opened again without its model. aside: seconds of passes that verified.
    """

    def __init__(
        self, engine: Engine, native: Callable[[], Engine], arithmetic: str, graphs: Graphs
    ) -> None:
        self._engine, self._native, self._graphs = engine, native, graphs
        self._precision = PRECISIONS[EXACT if arithmetic == "f32" else FAST]
        self.aside = 0.0
        graph = getattr(engine, "graph", None)
        self.graph = graph if isinstance(graph, Path) else None
        self.inputs: Any = getattr(engine, "inputs", None)
        hashes = None if self.graph is None else list_hash(self.graph)
        self._asked = None if hashes is None else ["lengths", hashes, arithmetic]
        self._guard, self._range = Guard(), self._recalled()

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        low, high = _lengths(batch)
        if self._range.holds(low, high):
            return self._engine(batch, logits)
        if self._range.refuses(low, high):
            return self._native()(batch, logits)
        return self._compared(batch, low, high, logits)

    def _compared(self, batch: Batch, low: int, high: int, logits: bool) -> Readout:
        known = self._range.longest > 0
        at = _extremes(batch)
        began = time.perf_counter()
        expected = self._native()(_rows(batch, at))
        self.aside += time.perf_counter() - began
        try:
            found = self._engine(batch)
            found.require_rows(len(batch), None)
            rows = [found.row(i) for i in at]
            same = compare(rows, [expected.row(i) for i in range(len(at))])
        except Exception:
            if not known:  # an engine that runs nothing is told by whoever tries it
                raise
            return self._refused(batch, low, high, logits)
        if same.cosine >= self._precision.cosine and same.logits <= self._precision.logits:
            self._note(self._range.with_verified(low, high))
        elif known:  # else measured, and dropped, by whoever tries it
            return self._refused(batch, low, high, logits)
        return found if logits else Readout(nothing(batch), found.vectors)

    def _refused(self, batch: Batch, low: int, high: int, logits: bool) -> Readout:
        self._note(self._range.with_refused(low, high))
        return self._native()(batch, logits)

    def _note(self, found: LengthRange) -> None:
        with self._guard:
            self._range = found
            if self._asked is not None:
                finite = {n: v for n, v in asdict(found).items() if abs(v) != inf}
                self._graphs.note(self._asked, finite, ENGINE)

    def _recalled(self) -> LengthRange:
        note = None if self._asked is None else self._graphs.recall(self._asked, ENGINE)
        try:
            return LengthRange() if note is None else LengthRange(**note.answer)
        except TypeError:
            return LengthRange()


def _extremes(batch: Batch) -> list[int]:
    """The places of the longest item and of the shortest."""
    lengths = batch.lengths or [1] * len(batch)
    places = range(len(lengths))
    return sorted({max(places, key=lengths.__getitem__), min(places, key=lengths.__getitem__)})


def _rows(batch: Batch, at: list[int]) -> Batch:
    """Some of a batch's items, its longest among them."""
    if len(at) == len(batch):
        return batch
    return replace(
        batch,
        tensors={name: value[at] for name, value in batch.tensors.items()},
        lengths=batch.lengths and [batch.lengths[i] for i in at],
        filled=batch.filled and [batch.filled[i] for i in at],
    )


def _lengths(batch: Batch) -> tuple[int, int]:
    """Numbers in the largest input of the shortest item, and of an item with its padding."""
    padded = max(prod(value.shape[1:]) for value in batch.tensors.values())
    if not batch.lengths:
        return padded, padded
    return padded * min(batch.lengths) // max(batch.lengths), padded
