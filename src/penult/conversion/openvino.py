"""An embedder as OpenVINO's .xml and .bin, by way of torch.export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penult.conversion.base import ConversionRequest, Draft
from penult.conversion.graph import EmbedderGraph
from penult.conversion.recorded import describe, first_cause, graph_trial, program_of, python_of
from penult.engines.graph_export import recording
from penult.errors import EngineError
from penult.extras import require

EXAMPLE = """\
import numpy as np, openvino, soundfile

embed = openvino.Core().compile_model("OUT", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
clips = [soundfile.read(name, dtype="float32")[0] for name in ("one.wav", "two.wav")]  # RATE
lengths = np.array([len(clip) for clip in clips])
samples = np.zeros((len(clips), lengths.max()), np.float32)
for row, clip in zip(samples, clips):
    row[: len(clip)] = clip
found = embed({"samples": samples, "lengths": lengths})
vector, logits = found["vector"], found["logits"]
"""


def write(request: ConversionRequest, path: Path) -> Draft:
    """Record and write it.

    Raises:
        EngineError: torch or OpenVINO lacks an operation of the model.
    """
    openvino: Any = require("openvino")
    graph = EmbedderGraph(request.embedder, request.classes)
    try:
        program = program_of(graph)
        with recording(graph.cut.model):
            model = openvino.convert_model(program)
    except EngineError:
        raise
    except Exception as error:  # whatever converting a model may raise
        raise EngineError(f"OpenVINO cannot take the model: {first_cause(error)}") from error
    for value, one in zip(model.inputs, graph.inputs, strict=True):
        value.get_tensor().set_names({one.name})
    for value, name in zip(model.outputs, graph.outputs, strict=True):
        value.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", hint)

    def run(values: list[Any]) -> list[Any]:
        found = compiled(values)
        return [found[at].copy() for at in range(len(graph.outputs))]

    def finish(facts: Mapping[str, Any]) -> None:
        model.set_rt_info(json.dumps(facts), "penult")
        openvino.save_model(model, path, compress_to_fp16=False)

    example = python_of(EXAMPLE, request, graph)
    return Draft(describe(graph), graph_trial(graph, request, run), finish, example)
