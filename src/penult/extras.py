"""Optional dependencies: the one place that imports them, and knows which extra brings them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from types import ModuleType

from penult.errors import MissingExtra

# import name -> (extra of this package, what it is needed for)
EXTRAS = {
    "av": ("video", "video and audio that libsndfile does not read (m4a, opus in mp4, …)"),
    "evoc": ("cluster", "clusters"),
    "h5py": ("keras", "Keras models in HDF5 files"),
    "keras": ("keras", "Keras models"),
    "matplotlib": ("map", "pictures"),
    "nncf": ("openvino", "running a model in eight bits"),
    "onnx": ("onnx", "ONNX files"),
    "onnxruntime": ("onnx", "ONNX files"),
    "openvino": ("openvino", "running a torch model in OpenVINO"),
    "sentencepiece": ("text", "tokenizers of text models"),
    "sentence_transformers": ("names", "classes by their names"),
    "skops": ("probe", "saved probes"),
    "tiktoken": ("text", "tokenizers of text models"),
    "timm": ("timm", "timm models"),
    "torchvision": ("image", "image and video preprocessing"),
    "umap": ("map", "maps"),
}

# What OpenVINO and NNCF report their use to the network with; where it cannot be imported, they
# report nothing. A process that has imported it already goes on with it.
_REPORTING = "openvino_telemetry"


def installed(module: str) -> str | None:
    """The version of a module's distribution, whatever that is called (`umap` is umap-learn); None
    if the module is not installed. Imports nothing."""
    if find_spec(module) is None:
        return None
    names = _distributions().get(module, ())
    return version(names[0]) if names else "version not known"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """What brings each module; looking that up reads every distribution's list of files."""
    return packages_distributions()


def require(module: str) -> ModuleType:
    """Import an optional module by its dotted name.

    Raises:
        MissingExtra: it is not installed; the message names the extra that brings it.
    """
    if module.startswith(("openvino", "nncf")):
        sys.modules.setdefault(_REPORTING, None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        extra, purpose = EXTRAS[package]
        raise MissingExtra(
            f"{package} is not installed; it is needed for {purpose}. "
            f"Install it with: pip install 'penult[{extra}]'"
        ) from error
