"""A recorded graph as it runs: which inputs it has, how a batch becomes them, and what its outputs
are. Knows arrays and no module, so that a graph runs where torch is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.hashes import list_hash
from penult.data.notes import CachedNote
from penult.engines.autoselect import EngineChoice
from penult.engines.base import Engine, Readout, RunGraph, one_row_each
from penult.engines.batching import MASK, MASKED_NORMS, Batch, BatchPolicy, Value, mask_of_ones
from penult.engines.graph_cache import Graphs
from penult.engines.registry import EngineMode, missing, specs_of
from penult.engines.verified import VerifiedEngine
from penult.errors import EngineError
from penult.models.base import Classifier

LENGTHS = "lengths"  # (B,) valid positions of each item, for norms over these alone
OWN = "own"  # (B, positions) that a clip fills of an input of fixed length


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """names: of the inputs, in order: the model's arguments, `lengths` if norms are masked, `own`
    if a reading pools what a clip fills. policy: how items share a batch; where it pads, every pass
    gets a mask (of ones, where nothing is padded), so that one graph serves all batches."""

    names: tuple[str, ...]
    policy: BatchPolicy

    @classmethod
    def of(cls, example: Batch, policy: BatchPolicy, own: bool) -> GraphInputs:
        """Those of a batch that is recorded. own: whether a reading pools what a clip fills."""
        names = tuple(_masked(example, policy))
        further = [LENGTHS] * (policy.name == MASKED_NORMS) + [OWN] * own
        return cls((*names, *further), policy)

    def arrays(self, batch: Batch, own: Value = None) -> list[npt.NDArray[Any]]:
        """A batch's arrays in the order of `names`."""
        tensors = _masked(batch, self.policy)
        if LENGTHS in self.names:
            longest = self.policy.length(tensors)
            tensors[LENGTHS] = np.array(batch.lengths or [longest] * len(batch), np.int64)
        if OWN in self.names:
            if own is None:
                raise EngineError("the batch does not hold which positions each clip fills")
            tensors[OWN] = own
        if set(tensors) != set(self.names):
            raise EngineError(f"recorded with {[*self.names]}, received {list(tensors)}")
        return [np.asarray(tensors[name]) for name in self.names]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"names": [*self.names], "policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> GraphInputs:
        """What `to_dict` wrote."""
        return cls(tuple(document["names"]), BatchPolicy.from_dict(document["policy"]))


def _masked(batch: Batch, policy: BatchPolicy) -> dict[str, Value]:
    tensors = dict(batch.tensors)
    axis = next(iter(policy.axes.values()), None)
    if policy.pads and axis is not None and not any(name.endswith(MASK) for name in tensors):
        first = next(iter(tensors.values()))
        tensors[MASK] = mask_of_ones(first, (len(first), first.shape[axis]))
    return tensors


class GraphEngine:
    """Runs a recorded graph whose logits are one row for each item; holds no state between batches.

    classes: K. graph: the folder of the graph.
    """

    def __init__(self, inputs: GraphInputs, run: RunGraph, classes: int, graph: Path) -> None:
        self.inputs, self.graph = inputs, graph
        self._run, self._classes = run, classes

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        scores, *vectors = self._run(self.inputs.arrays(batch))
        rows = one_row_each(scores, len(batch), self._classes)
        if rows.ndim != 2:
            raise EngineError(f"the graph gives logits of shape {rows.shape}, and not (B, K)")
        return Readout([*rows], [*vectors])


def describe_graph(engine: Any, choice: EngineChoice) -> dict[str, Any] | None:
    """What opens an engine again without its model, for a note; None for one that runs no recorded
    graph, needs the model for each batch, or was not measured."""
    inputs, folder = getattr(engine, "inputs", None), getattr(engine, "graph", None)
    if not isinstance(inputs, GraphInputs) or not isinstance(folder, Path):
        return None
    if choice.parity is None or OWN in inputs.names:
        return None
    hashes = list_hash(folder)
    return {
        "choice": choice.to_dict(),
        "inputs": inputs.to_dict(),
        "graph": [folder.name, hashes],
    }


def reopened(
    note: CachedNote, graphs: Graphs, classifier: Classifier, native: Callable[[], Engine]
) -> tuple[EngineChoice, Engine] | None:
    """The engine of a note, open; None where its graph is gone or is another one. native: opens the
    classifier's own, for lengths at which the graph was not verified.

    Raises:
        EngineError: it cannot be opened any more.
    """
    try:
        own = EngineMode(classifier.structure.engine)
        known = EngineChoice.from_dict(note.answer["choice"], own)
        choice = replace(known, seconds={}, dropped={}, kept=note.when, unopened=True)
        inputs = GraphInputs.from_dict(note.answer["inputs"])
        name, hashes = note.answer["graph"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    open_graph = next((one.reopen for one in specs_of(choice.mode.engine) if one.reopen), None)
    folder = graphs.find(name, hashes) if open_graph and not missing(choice.mode.engine) else None
    if open_graph is None or folder is None:
        return None
    run = open_graph(folder, choice.mode.arithmetic)
    engine = GraphEngine(inputs, run, len(classifier.labels), folder)
    return choice, VerifiedEngine(engine, native, choice.mode.arithmetic, graphs)
