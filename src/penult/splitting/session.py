"""A graph that is open in ONNX Runtime: arrays in, arrays out. Knows nothing of what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from penult.errors import ModelError, UsageError, first_line
from penult.extras import require

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Session:
    """A graph, open in ONNX Runtime: arrays in, arrays out, batch axis first on both sides.

    Every operation runs as the file says, one after the other: with graph optimisations the
    numbers would change with the tensors that are read, and head and encoder would not make
    exactly the whole. bare: the graph has no batch axis of its own. weights: those that `model`
    only names, as the runtime holds them; several sessions share them. once: it is not run often
    enough for weights to be laid out for speed first.
    """

    def __init__(
        self,
        model: bytes,
        threads: int = 1,
        device: str = "cpu",
        bare: bool = False,
        weights: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> None:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        if once:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if weights:
            options.add_external_initializers([*weights], [*weights.values()])
        try:
            self._session = runtime.InferenceSession(model, options, providers=_providers(device))
        except Exception as error:
            if not _of_the_runtime(error):
                raise
            raise ModelError(f"ONNX Runtime cannot open the graph: {first_line(error)}") from error
        self.inputs = [port.name for port in self._session.get_inputs()]
        self.types = {port.name: str(port.type) for port in self._session.get_outputs()}
        self._bare = bare

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs, in their order.

        Raises:
            ValueError: the graph does not take these.
        """
        given = {name: feeds[name][0] if self._bare else feeds[name] for name in self.inputs}
        try:
            found = self._session.run(None, given)
        except Exception as error:
            if not _of_the_runtime(error):
                raise
            raise ValueError(_readable(error)) from error
        return [value[None] for value in found] if self._bare else list(found)


def _of_the_runtime(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError)


def _readable(error: Exception) -> str:
    """What the runtime says, without its codes and the place in its own source."""
    lines = " ".join(str(error).split()).partition(" Please fix either")[0]
    return lines.rpartition("Status Message: ")[2].rpartition(" : ")[2][:300]


def _providers(device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind == "cuda" and has_cuda():
        return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
    raise UsageError(
        f"no device {device!r} for ONNX files here; this onnxruntime has "
        f"{', '.join(require('onnxruntime').get_available_providers())}: choose --device cpu"
    )


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime can use a CUDA device."""
    return "CUDAExecutionProvider" in require("onnxruntime").get_available_providers()
