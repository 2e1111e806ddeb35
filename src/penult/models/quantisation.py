"""Weights in few bits, as a model's settings name them: the method, and what opens it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from penult.errors import ModelError, cause

# transformers' name of a method → (its own name, the module that opens it, what brings the module).
METHODS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes", "bitsandbytes"),
    "gptq": ("GPTQ", "gptqmodel", "gptqmodel"),
    "awq": ("AWQ", "gptqmodel", "gptqmodel"),
    "torchao": ("torchao", "torchao", "torchao"),
    "hqq": ("HQQ", "hqq", "hqq"),
    "quanto": ("Quanto", "optimum.quanto", "optimum-quanto"),
    "compressed-tensors": ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
    "aqlm": ("AQLM", "aqlm", "aqlm"),
    "auto-round": ("AutoRound", "auto_round", "auto-round"),
    "eetq": ("EETQ", "kernels", "kernels"),
    "higgs": ("HIGGS", "flute", "flute-kernel"),
    "spqr": ("SpQR", "spqr_quant", "spqr_quant"),
    "vptq": ("VPTQ", "vptq", "vptq"),
    "quark": ("Quark", "quark", "amd-quark"),
    "sinq": ("SINQ", "sinq", "sinq"),
    "fp8": ("FP8", "", ""),
    "fbgemm_fp8": ("FP8 of FBGEMM", "fbgemm_gpu", "fbgemm-gpu-genai"),
}


def method_of(settings: Mapping[str, Any]) -> str:
    """The method by which a model was quantised, as transformers calls it; empty for plain weights.

    settings: the content of config.json.
    """
    found = settings.get("quantization_config") or settings.get("compression_config")
    if not isinstance(found, Mapping):
        return ""
    if isinstance(found.get("quant_method"), str):
        return str(found["quant_method"]).lower().removesuffix("_4bit").removesuffix("_8bit")
    if found.get("load_in_8bit") or found.get("load_in_4bit"):
        return "bitsandbytes"
    return "gptq" if "bits" in found and "group_size" in found else "an unnamed method"


def require_library(spec: str, method: str) -> None:
    """Refuse a quantised model whose library is not installed.

    Raises:
        ModelError: the library is named, and what else would work.
    """
    name, module, package = METHODS.get(method, (method, "", ""))
    if module and not _there(module):
        raise ModelError(
            f"{spec!r} is quantised with {name}, and the library that opens it is not installed: "
            f"pip install {package}, or give the model as it was before it was quantised"
        )


def _there(module: str) -> bool:
    """Whether a module can be imported; a folder of its name without code is none."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # the package around it
        return False
    return spec is not None and spec.origin is not None


def refused(spec: str, method: str, error: Exception) -> ModelError:
    """A quantised model that its library did not open."""
    name, _, package = METHODS.get(method, (method, "", ""))
    remedy = (
        f"pip install {package}, or give" if package and isinstance(error, ImportError) else "give"
    )
    return ModelError(
        f"{spec!r} is quantised with {name}, and cannot be opened on this machine "
        f"({cause(error)}): {remedy} the model as it was before it was quantised"
    )
