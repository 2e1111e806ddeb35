"""Run in ONNX Runtime: a classifier that is a graph, or a torch classifier exported once, in
fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from penult.engines.base import Engine, EngineRequest, Reading, Readout, one_row_each
from penult.engines.batching import Batch
from penult.engines.graph_cache import versions
from penult.engines.graph_export import ExportedGraph, recording
from penult.engines.pooling import pool
from penult.errors import EngineError, ModelError, TapError, UsageError, cause
from penult.extras import require
from penult.models.base import Classifier
from penult.models.loaders.onnx import GraphStructure
from penult.tracing.onnx_files import inlined, read_model, refuse_operators
from penult.tracing.onnx_graph import Array, Session, as_feeds, has_cuda


class OnnxEngine:
    """Runs the graph as far as its readings need; holds no state between batches.

    device: cpu, cuda or cuda:N. threads: of one operation; as many as torch would take.
    """

    def __init__(
        self,
        classifier: Classifier,
        readings: Sequence[Reading],
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.readings = list(readings)
        self.device = device
        structure = cast(
            GraphStructure, classifier.structure
        )  # the one kind that names this engine
        self._graph = structure.logits.graph
        taps = [reading.tap.module for reading in self.readings]
        for name in taps:
            if name not in self._graph.depends:
                raise TapError(f"the graph has no tensor {name!r} that depends on its input")
        self._classes = len(classifier.labels)
        self._names = list(dict.fromkeys([structure.logits.name, *taps]))
        model = self._graph.parts.encoder(self._names)
        self._session = Session(model, threads or torch.get_num_threads(), device, self._graph.bare)

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the graph's inputs."""
        scores, states = self._read(batch)
        vectors = [
            pool(hidden.float(), reading.pooling, reading.tap.channel).numpy()
            for reading, (hidden, _) in zip(self.readings, states, strict=True)
        ]
        rows = one_row_each(scores, len(batch), self._classes)
        return Readout(list(rows), vectors)

    def hidden_states(self, batch: Batch) -> list[tuple[torch.Tensor, None]]:
        """What each reading pools: (B, …) as the tap gives it, over all positions."""
        return self._read(batch)[1]

    def _read(self, batch: Batch) -> tuple[Array, list[tuple[torch.Tensor, None]]]:
        tensors = {name: np.asarray(value) for name, value in batch.tensors.items()}
        found = dict(zip(self._names, self._run(as_feeds(self._graph, tensors)), strict=True))
        states = [(torch.from_numpy(found[one.tap.module]), None) for one in self.readings]
        return found[self._names[0]].astype(np.float32), states

    def _run(self, feeds: dict[str, Array]) -> list[Array]:
        """The whole batch at once, or item by item where the graph takes one only."""
        size = len(next(iter(feeds.values())))
        if size == 1 or self._graph.any_batch:
            return self._session(feeds)
        rows = [self._session({n: v[i : i + 1] for n, v in feeds.items()}) for i in range(size)]
        return [np.concatenate(values) for values in zip(*rows, strict=True)]


def runtime_device(name: str) -> str:
    """A device that the installed runtime has.

    Raises:
        UsageError: it has no CUDA.
    """
    if name != "cpu" and not has_cuda():
        raise UsageError(
            f"no device {name!r} here: the installed ONNX Runtime has no CUDA; install "
            "onnxruntime-gpu, or leave --device out"
        )
    return name


def open_graph(request: EngineRequest) -> Engine:
    """A classifier that is a graph, for a request."""
    return OnnxEngine(request.classifier, request.readings, request.device)


FILE = "model.onnx"


class ExportedEngine:
    """Runs the exported cut in fp32; holds no state between batches."""

    def __init__(self, request: EngineRequest) -> None:
        onnxruntime = require("onnxruntime")
        require("onnx")
        self.readings = list(request.readings)
        self._graph = ExportedGraph(request)
        key = ["onnxruntime", self._graph.recipe.key, versions("onnx", "onnxruntime")]
        graphs = request.stored_graphs()
        folder = graphs.get(key, lambda aside: _export(self._graph, aside))
        if graphs.given:
            _refuse_foreign(folder / FILE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise EngineError(f"ONNX Runtime cannot open it: {cause(error)}") from error
        self._names = [one.name for one in self._session.get_inputs()]

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        inputs = zip(self._graph.recipe.names, self._graph.arrays(batch), strict=True)
        feeds = {name: value for name, value in inputs if name in self._names}
        return self._graph.readout(batch, self._session.run(None, feeds))


def _refuse_foreign(path: Path) -> None:
    """Look through a graph that came with an embedder, as any ONNX file of a stranger.

    Raises:
        EngineError: it names files elsewhere, or calls what does more than compute.
    """
    try:
        refuse_operators(inlined(read_model(path, weights=False), path.name), str(path))
    except ModelError as error:
        raise EngineError(f"the graph that came with the embedder is refused: {error}") from error


def _export(graph: ExportedGraph, folder: Path) -> None:
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
        raise EngineError(f"the model cannot be exported to ONNX: {cause(error)}") from error
