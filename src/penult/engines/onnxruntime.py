"""ONNX Runtime: the devices that it has here."""

from __future__ import annotations

from penult.errors import UsageError
from penult.tracing.onnx_graph import has_cuda


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
