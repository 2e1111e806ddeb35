"""An embedder as one ONNX file, recorded by torch.export, run by ONNX Runtime."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penult.conversion.base import ConversionRequest, Draft
from penult.conversion.graph import EmbedderGraph
from penult.conversion.recorded import describe, first_cause, graph_trial, program_of, python_of
from penult.engines.graph_export import recording
from penult.errors import EngineError
from penult.extras import require

_LARGEST = 2**31 - 1  # bytes that one file of protocol buffers holds

EXAMPLE = """\
import numpy as np, onnxruntime, soundfile

session = onnxruntime.InferenceSession("OUT")
clips = [soundfile.read(name, dtype="float32")[0] for name in ("one.wav", "two.wav")]  # RATE
lengths = np.array([len(clip) for clip in clips])
samples = np.zeros((len(clips), lengths.max()), np.float32)
for row, clip in zip(samples, clips):
    row[: len(clip)] = clip
vector, logits = session.run(["vector", "logits"], {"samples": samples, "lengths": lengths})
"""


def write(request: ConversionRequest, path: Path) -> Draft:
    """Record and write it.

    Raises:
        EngineError: torch or ONNX lacks an operation of the model, or it is too large.
    """
    graph = EmbedderGraph(request.embedder, request.classes)
    model = _recorded(graph)
    if model.ByteSize() > _LARGEST:
        raise EngineError(
            "the model is larger than the 2 GB of one ONNX file; --format openvino or pt2 has it"
        )
    path.write_bytes(model.SerializeToString())
    session = require("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(values: list[Any]) -> list[Any]:
        names = [one.name for one in graph.inputs]
        found: list[Any] = session.run(graph.outputs, dict(zip(names, values, strict=True)))
        return found

    def finish(facts: Mapping[str, Any]) -> None:
        require("onnx").helper.set_model_props(model, {"penult": json.dumps(facts)})
        path.write_bytes(model.SerializeToString())

    example = python_of(EXAMPLE, request, graph)
    return Draft(describe(graph), graph_trial(graph, request, run), finish, example)


def _recorded(graph: EmbedderGraph) -> Any:
    import torch

    require("onnxscript")
    program = program_of(graph)
    names = [one.name for one in graph.inputs]
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with recording(graph.cut.model):
            found = torch.onnx.export(
                program, input_names=names, output_names=graph.outputs, dynamo=True, verbose=False
            )
    except Exception as error:  # whatever converting a model may raise
        raise EngineError(f"the model cannot be written as ONNX: {first_cause(error)}") from error
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
    assert found is not None
    model = found.model_proto
    for value in (*model.graph.input, *model.graph.output):
        _name_axes(value, {one.name: one.axes for one in graph.inputs})
    return model


def _name_axes(value: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """`n` and `T` in place of the names that the recording invents."""
    for at, dimension in enumerate(value.type.tensor_type.shape.dim):
        if at in axes.get(value.name, {0: "n"}) and not dimension.HasField("dim_value"):
            dimension.dim_param = axes.get(value.name, {0: "n"})[at]
