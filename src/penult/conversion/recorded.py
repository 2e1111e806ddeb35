"""What the formats of recorded graphs share: the exported program, its inputs from items, the words
and the example for its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penult.conversion.base import ConversionRequest, Trial
from penult.conversion.graph import EmbedderGraph
from penult.engines.batching import Batch
from penult.engines.graph_export import recording
from penult.engines.recorded_graph import GraphInputs
from penult.errors import EngineError, cause


def program_of(graph: EmbedderGraph) -> Any:
    """The pass as torch.export records it, of any number of items and any length.

    Raises:
        EngineError: torch cannot record the model, or only for one number or one length.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(one.axes, free) for one in graph.inputs)
    example = tuple(one.example for one in graph.inputs)
    try:
        with recording(graph.cut.model):
            return torch.export.export(graph, example, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever recording a model may raise
        raise EngineError(
            f"torch.export cannot record the model for any length: {first_cause(error)}"
        ) from error


def first_cause(error: BaseException) -> str:
    """What an error goes back to: converters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return cause(error)


def arrays_of(
    graph: EmbedderGraph, request: ConversionRequest, contents: Sequence[Any]
) -> list[npt.NDArray[Any]]:
    """One batch of decoded items as the graph's inputs, in order."""
    if graph.front is not None:
        lengths = np.array([len(one) for one in contents], np.int64)
        samples = np.zeros((len(contents), int(lengths.max())), np.float32)
        for row, clip in zip(samples, contents, strict=True):
            row[: len(clip)] = clip
        return [samples, lengths]
    classifier = request.embedder.classifier
    items = [classifier.preprocess(one).tensors for one in contents]
    batch: Batch = graph.policy.batch(items)
    return GraphInputs(tuple(graph.names), graph.policy).arrays(batch)


def graph_trial(
    graph: EmbedderGraph,
    request: ConversionRequest,
    run: Callable[[list[npt.NDArray[Any]]], Sequence[npt.NDArray[Any]]],
) -> Trial:
    """A runtime on decoded items. run: arrays in the order of the inputs → the outputs."""

    def outputs(contents: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        found = run(arrays_of(graph, request, contents))
        return dict(zip(graph.outputs, found, strict=True))

    return Trial(outputs, graph.bears_padding)


def describe(graph: EmbedderGraph) -> dict[str, Any]:
    """Inputs, outputs and how items share a batch, for the file's metadata."""
    return {
        "inputs": [one.words for one in graph.inputs],
        "outputs": graph.outputs,
        "front_end": "inside" if graph.front is not None else "outside",
        "padding": graph.padding,
    }


def python_of(example: str, request: ConversionRequest, graph: EmbedderGraph) -> str:
    """An example for this model; empty where its inputs are not sound."""
    if graph.front is None:
        return ""
    return example.replace("RATE", f"mono, {request.embedder.classifier.rate:,} Hz")
