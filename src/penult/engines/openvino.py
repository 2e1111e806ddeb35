"""Run a torch classifier in OpenVINO: the same cut, recorded once, in fp32, bfloat16 or int8."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from penult.engines.base import EngineRequest, Readout
from penult.engines.batching import Batch
from penult.engines.graph_cache import versions
from penult.engines.graph_export import ExportedGraph, recording
from penult.errors import EngineError, cause
from penult.extras import require
from penult.locking import Guard

# Numbers that share a scale: more of them are faster, and rounded more coarsely.
GROUPS = {"int8 by 128": 128, "int8 by 64": 64, "int8 by 32": 32}


def quantise(recorded: Path, target: Path) -> None:
    """Write a recorded OpenVINO graph again with weights in eight bits.

    Raises:
        EngineError: a graph that cannot be quantised.
        MissingExtra: the tool for it is not installed.
    """
    nncf = require("nncf")
    import openvino

    model = openvino.Core().read_model(recorded)
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            smaller = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    except Exception as error:  # its own errors, and those of the runtime below
        raise EngineError(f"the model cannot be quantised: {cause(error)}") from error
    openvino.save_model(smaller, target, compress_to_fp16=False)


FILE = "model.xml"


class OpenVinoEngine:
    """Runs the recorded cut; holds no state between batches.

    request: its arithmetic is `f32` or `bf16`, in which the processor multiplies, or one of GROUPS.
    """

    def __init__(self, request: EngineRequest) -> None:
        openvino = require("openvino")
        arithmetic, graphs = request.arithmetic, request.stored_graphs()
        self.readings = list(request.readings)
        self._graph = ExportedGraph(request)
        if arithmetic == "bf16" and not multiplies_bf16():
            raise EngineError("this processor does not multiply in bfloat16")
        key = ["openvino", self._graph.recipe.key, versions("openvino")]
        file = graphs.get(key, lambda aside: _record(self._graph, aside)) / FILE
        if arithmetic in GROUPS:
            recorded = file
            key = ["int8", *key, versions("nncf")]
            file = graphs.get(key, lambda aside: quantise(recorded, aside / FILE)) / FILE
        self._guard = Guard()  # a compiled model has one request, for one pass at a time
        core = openvino.Core()
        settings = {
            **_settings(arithmetic),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._run = core.compile_model(core.read_model(file), "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run the model: {cause(error)}") from error

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        values = self._graph.arrays(batch)
        with self._guard:
            found = self._run(values)
        return self._graph.readout(batch, [found[i] for i in range(len(self.readings) + 1)])


def _settings(arithmetic: str) -> dict[str, Any]:
    """The arithmetic of the processor's products, as its options."""
    if arithmetic not in GROUPS:
        return {"INFERENCE_PRECISION_HINT": arithmetic}
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if multiplies_bf16() else "f32",  # all the rest
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUPS[arithmetic],
    }


def _record(graph: ExportedGraph, folder: Path) -> None:
    """Record the cut on the example of its recipe, and write it.

    Raises:
        EngineError: OpenVINO does not take the model.
    """
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with recording(graph.cut.model), _root_logger_kept():
            # Nothing is traced twice to compare: what the graph gives is measured on real items.
            decoder = TorchScriptPythonDecoder(
                graph.cut,
                example_input=graph.example(),
                trace_kwargs={"check_trace": False},
            )
            model = openvino.convert_model(decoder)
    except Exception as error:  # whatever tracing a model may raise
        raise EngineError(f"OpenVINO cannot record the model: {cause(error)}") from error
    if len(model.inputs) != len(graph.recipe.names):
        raise EngineError(
            f"OpenVINO recorded {len(model.inputs)} inputs of {len(graph.recipe.names)}"
        )
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """OpenVINO sets the root logger, and leaves it so where a conversion fails: warnings of all
    packages would be lost from then on."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for it: without them it is no faster."""
    import openvino

    capable: Any = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capable
