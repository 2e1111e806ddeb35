"""Run a torch classifier in OpenVINO: the same cut, recorded once, in fp32 or bfloat16."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from penult.engines.base import EngineRequest, FloatArray, Readout
from penult.engines.batching import Batch
from penult.engines.graph_cache import versions
from penult.errors import EngineError, cause
from penult.extras import require
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.engines.graph_export import ExportedGraph

FILE = "model.xml"
_FULL = 1 << 20  # bytes: less is left of a disk that was too small for what it has so far


class CompiledGraph:
    """A recorded graph, compiled for this processor: arrays in, arrays out, one pass at a time.

    arithmetic: `f32` or `bf16`, in which the processor multiplies.
    """

    def __init__(self, file: Path, arithmetic: str) -> None:
        openvino = require("openvino")
        if arithmetic == "bf16" and not multiplies_bf16():
            raise EngineError("this processor does not multiply in bfloat16")
        self._guard = Guard()  # a compiled model has one request
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "LATENCY",
            **_threads(),
        }
        try:
            self._run = core.compile_model(core.read_model(file), "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run the model: {cause(error)}") from error

    def __call__(self, arrays: Sequence[npt.NDArray[Any]]) -> list[FloatArray]:
        """The graph's outputs, in order."""
        with self._guard:
            found = self._run([*arrays])
        return [found[at] for at in range(len(found))]


def reopen(folder: Path, arithmetic: str) -> CompiledGraph:
    """A recorded graph, without the model that it was recorded from."""
    return CompiledGraph(folder / FILE, arithmetic)


def _threads() -> dict[str, int]:
    """As many as torch takes, where it is there; else as many as the user says, or all."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    said = os.environ.get("OMP_NUM_THREADS", "")
    return {"INFERENCE_NUM_THREADS": int(said)} if said.isdigit() and int(said) else {}


class OpenVinoEngine:
    """Runs the recorded cut; holds no state between batches.

    request: its arithmetic is one that `CompiledGraph` takes. graph: the folder of the recorded
    graph. inputs: how a batch becomes its inputs.
    """

    def __init__(self, request: EngineRequest) -> None:
        from penult.engines.graph_export import ExportedGraph

        require("openvino")
        arithmetic, graphs = request.arithmetic, request.stored_graphs()
        if arithmetic == "bf16" and not multiplies_bf16():
            raise EngineError("this processor does not multiply in bfloat16")
        exported = self._exported = ExportedGraph(request)
        key = ["openvino", exported.recipe.key, versions("openvino")]
        self.graph = graphs.get(key, lambda aside: _record(exported, aside))
        self.inputs = exported.recipe.inputs
        self._run = CompiledGraph(self.graph / FILE, arithmetic)

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments."""
        return self._exported.readout(batch, self._run(self._exported.arrays(batch)))


def _record(graph: ExportedGraph, folder: Path) -> None:
    """Record the cut on the example of its recipe, and write it.

    Raises:
        EngineError: OpenVINO does not take the model.
        OSError: it cannot be written.
    """
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from penult.engines.graph_export import recording

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
    try:
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
    except RuntimeError as error:  # "basic_ios::clear: iostream error" says neither where nor why
        full = shutil.disk_usage(folder).free < _FULL
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error


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
