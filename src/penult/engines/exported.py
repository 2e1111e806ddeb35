"""Run a torch classifier in ONNX Runtime: the same cut, exported once, in fp32.

A classifier that is an ONNX file to begin with has an engine of its own, beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from penult.batches.padding import Batch
from penult.classifiers.base import Classifier
from penult.engines.base import Reading, Readout
from penult.engines.converting import Graph, Recipe, recording
from penult.engines.graphs import Graphs, versions
from penult.engines.law import Law
from penult.errors import EngineError, first_line
from penult.extras import require

FILE = "model.onnx"


class ExportedEngine:
    """Runs the exported cut; holds no state between batches. See `OpenVinoEngine`."""

    def __init__(
        self,
        classifier: Classifier,
        readings: Sequence[Reading],
        law: Law,
        graphs: Graphs,
        numbers: str = "f32",
    ) -> None:
        onnxruntime = require("onnxruntime")
        require("onnx")
        if numbers != "f32":
            raise EngineError(f"ONNX Runtime is run in fp32 here, not in {numbers}")
        self.readings = list(readings)
        self.numbers = numbers
        self._graph = Graph(classifier, readings, Recipe(classifier, readings, law))
        asked = ["onnxruntime", self._graph.recipe.key, versions("onnx", "onnxruntime")]
        folder = graphs.get(asked, lambda aside: _export(self._graph, aside))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise EngineError(f"ONNX Runtime cannot open it: {first_line(error)}") from error
        self._names = [one.name for one in self._session.get_inputs()]

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        inputs = zip(self._graph.recipe.names, self._graph.inputs(batch), strict=True)
        feeds = {name: value.numpy() for name, value in inputs if name in self._names}
        return self._graph.readout(batch, self._session.run(None, feeds))


def _export(graph: Graph, folder: Path) -> None:
    """Write the cut as an ONNX file, every axis of every input free.

    Raises:
        EngineError: the exporter does not take the model.
    """
    example = graph.example()
    names = graph.recipe.names
    try:
        with recording(graph.cut.model):
            torch.onnx.export(
                graph.cut,
                example,
                str(folder / FILE),
                dynamo=False,  # the other exporter needs one more library, and fixes more shapes
                input_names=names,
                dynamic_axes={
                    name: {axis: f"{name}_{axis}" for axis in range(value.ndim)}
                    for name, value in zip(names, example, strict=True)
                },
            )
    except Exception as error:  # whatever tracing or exporting a model may raise
        raise EngineError(f"the model cannot be exported to ONNX: {first_line(error)}") from error
