"""A classifier's cut as one plain module: tensors in, logits and pooled vectors out.

Runtimes that take a recorded graph (OpenVINO, ONNX Runtime) get this module, so that they run the
same embedder as torch does: masks, masked norms and pooling are inside, hidden states never leave.
Knows no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from penult.engines.base import EngineRequest, FloatArray, Reading, Readout, one_row_each
from penult.engines.batch_policy import probe
from penult.engines.batching import MASK, Batch, BatchPolicy
from penult.engines.pooling import pool
from penult.engines.positions import FilledPositions, frame_mask, masked_norms
from penult.engines.recorded_graph import LENGTHS, OWN, GraphInputs
from penult.engines.torch import own_positions, rows_of
from penult.errors import EngineError
from penult.locking import lock_of
from penult.models.base import Classifier
from penult.models.processors import quiet
from penult.tracing.head import logits_of
from penult.tracing.hooks import captured

FORM = "2"  # changes whenever the same cut is recorded in another way


class CutModule(nn.Module):
    """Logits and one vector per reading of a batch; every input and output is a plain tensor.

    names: of the inputs, in order: the model's arguments, `lengths` if norms are masked, `own` if
    a reading pools what a clip fills.
    """

    def __init__(
        self, classifier: Classifier, readings: Sequence[Reading], names: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = classifier.module
        self.readings, self.names = list(readings), list(names)
        self._base, self._output = classifier.structure.base, classifier.structure.output

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The model's arguments in the order of `names` → (logits, vector of each reading)."""
        tensors = dict(zip(self.names, values, strict=True))
        lengths, own = tensors.pop(LENGTHS, None), tensors.pop(OWN, None)
        norms: Any = nullcontext()
        if lengths is not None:
            longest = tensors[MASK].shape[1] if torch.compiler.is_exporting() else None
            norms = masked_norms(self.model, lengths, longest)
        base = self.model.get_submodule(self._base) if self._base else None
        with norms, captured(self.model, [one.tap.spot for one in self.readings]) as caught:
            logits = logits_of(self.model(**tensors), self._output)
        vectors = []
        for reading, hidden in zip(self.readings, caught(), strict=True):
            mask = own if reading.entry is not None else None
            if reading.entry is None and len(reading.tap.positions) == 1:
                mask = frame_mask(base, tensors, hidden.shape[reading.tap.positions[0]])
            vectors.append(pool(hidden, reading.pooling, reading.tap.channel, mask))
        return (logits.float(), *(vector.float() for vector in vectors))


class Recipe:
    """What a graph is recorded from: the batch that is traced, and the inputs that follow from it.

    policy: how items share a batch. key: what tells the graph from others of the classifier.
    """

    def __init__(
        self, classifier: Classifier, readings: Sequence[Reading], policy: BatchPolicy
    ) -> None:
        for reading in readings:
            if reading.tap.operation:
                raise EngineError(
                    f"tap {reading.tap.name!r} lies inside of a module ({reading.tap.place}), "
                    "where a recorded graph cannot be read"
                )
        self.key = [
            FORM,
            policy.name,
            policy.left,
            dict(policy.axes),
            [one.key for one in readings],
            # Graphs of 0.1.0 have the activation that is left off now: they are others.
            *(f"{key} {value}" for key, value in classifier.structure.activation.to_dict().items()),
        ]
        items = probe(classifier)
        if items is None:
            raise EngineError("the model takes no short synthetic item, on which to record it")
        self.example = policy.batch(items[:3]) if policy.pads else policy.batch(items[2:])
        own = any(reading.entry is not None for reading in readings)
        self.inputs = GraphInputs.of(self.example, policy, own)

    @property
    def names(self) -> list[str]:
        """Of the inputs, in order."""
        return [*self.inputs.names]


class ExportedGraph:
    """One recorded cut: how it is made, and how batches go in and readouts come out."""

    def __init__(self, request: EngineRequest) -> None:
        classifier, readings = request.classifier, request.readings
        recipe = self.recipe = Recipe(classifier, readings, request.policy)
        self.cut = CutModule(classifier, readings, recipe.names).eval()
        self._classes = len(classifier.labels)
        base = classifier.structure.base
        self._base = classifier.module.get_submodule(base) if base else None
        self._fillings = {
            reading.entry: FilledPositions(classifier.module, reading.entry)
            for reading in readings
            if reading.entry is not None
        }

    def inputs(self, batch: Batch) -> list[Tensor]:
        """The graph's inputs, in order."""
        return [*map(torch.from_numpy, self.arrays(batch))]

    def arrays(self, batch: Batch) -> list[npt.NDArray[Any]]:
        """The graph's inputs, in order, as arrays."""
        if self._fillings and batch.filled is None:
            batch = replace(batch, filled=[1.0] * len(batch))
        with lock_of(self.cut.model):
            own = own_positions(self._fillings, batch.tensors, batch)
        return self.recipe.inputs.arrays(batch, next(iter(own.values()), None))

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to record the pass on: of a padded batch, if any is to be padded."""
        example = self.recipe.example
        filled = [0.5] * len(example) if self._fillings else None
        return tuple(self.inputs(replace(example, filled=filled)))

    def readout(self, batch: Batch, values: Sequence[FloatArray]) -> Readout:
        """Logits and vectors of the batch's items, from the graph's outputs."""
        logits, *vectors = values
        scores = one_row_each(logits, len(batch), self._classes)
        rows = rows_of(scores, batch, self._base)
        return Readout(rows, vectors)


@contextmanager
def recording(module: nn.Module) -> Iterator[None]:
    """While a module's pass is recorded. Tracing warns of every Python branch; whether one matters
    is measured on items instead."""
    with lock_of(module), quiet(), torch.no_grad():
        yield
