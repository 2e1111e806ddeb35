"""A recorded graph as it runs: which inputs it has, how a batch becomes them, and what its outputs
are. Knows arrays and no module, so that a graph runs where torch is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.engines.base import FloatArray, Readout, one_row_each
from penult.engines.batching import MASK, MASKED_NORMS, Batch, BatchPolicy, Value, mask_of_ones
from penult.errors import EngineError

LENGTHS = "lengths"  # (B,) valid positions of each item, for norms over these alone
OWN = "own"  # (B, positions) that a clip fills of an input of fixed length

# Arrays in the order of the graph's inputs → its outputs: logits, then a vector for each reading.
RunGraph = Callable[[list[npt.NDArray[Any]]], Sequence[FloatArray]]


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

    classes: K.
    """

    def __init__(self, inputs: GraphInputs, run: RunGraph, classes: int) -> None:
        self._inputs, self._run, self._classes = inputs, run, classes

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        scores, *vectors = self._run(self._inputs.arrays(batch))
        rows = one_row_each(scores, len(batch), self._classes)
        if rows.ndim != 2:
            raise EngineError(f"the graph gives logits of shape {rows.shape}, and not (B, K)")
        return Readout([*rows], [*vectors])
