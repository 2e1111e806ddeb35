"""A trained probe as a file: .skops (scikit-learn's own pipeline, without pickle) or .onnx. Knows
no collection.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penult.errors import StoreError, UsageError
from penult.extras import require

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SUFFIXES = (".skops", ".onnx")
_OPSET = 17


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raises UsageError if a probe cannot be kept under this name, before anything is trained."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a probe is saved as {' or '.join(SUFFIXES)}, not as {path.name!r}")
    require("skops" if path.suffix == ".skops" else "onnx")


def save(path: str | os.PathLike[str], pipeline: Pipeline, about: Mapping[str, Any]) -> None:
    """Writes a probe (`penult.uses.probing.trained`) aside and renames it.

    about: what it was trained on, kept with it: `pipeline.penult_` (JSON) or the graph's metadata.

    Raises:
        UsageError: another suffix. MissingExtra: skops or onnx is not there.
        StoreError: it cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix == ".skops":
        pipeline.penult_ = json.dumps(about, ensure_ascii=False)
        data = require("skops.io").dumps(pipeline)
    else:
        data = graph(pipeline, about).SerializeToString()
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Pipeline:
    """Opens a probe that was saved as .skops; nothing but scikit-learn's own types is read.

    Raises:
        UsageError: it is something else.
    """
    skops = require("skops.io")
    try:
        opened = skops.load(os.fspath(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # zip, JSON and type errors, each of its own kind
        raise UsageError(f"{path} is not a probe saved as .skops: {error}") from error
    if not hasattr(opened, "penult_"):
        raise UsageError(f"{path} is not a probe: it holds a {type(opened).__name__} of others")
    return opened


def graph(pipeline: Pipeline, about: Mapping[str, Any]) -> Any:
    """An ONNX model: `vectors` (n, d) float32 → `probabilities` (n, K) and `label` (n,) strings."""
    require("onnx")
    from onnx import TensorProto, checker, helper, numpy_helper

    scaler, head = (step for _, step in pipeline.steps)
    weights, bias = head.coef_, head.intercept_
    if len(head.classes_) == 2:  # one row for two classes: its logit against zero
        weights, bias = np.vstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
    constants = {
        "mean": scaler.mean_.astype(np.float32),
        "scale": scaler.scale_.astype(np.float32),
        "weights": np.ascontiguousarray(weights.T, np.float32),
        "bias": bias.astype(np.float32),
    }
    names = np.array([str(name).encode() for name in head.classes_], object)
    nodes = [
        helper.make_node("Sub", ["vectors", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["standardised"]),
        helper.make_node("Gemm", ["standardised", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["place"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "place"], ["label"], axis=0),
    ]
    made = helper.make_graph(
        nodes,
        "penult-probe",
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", len(scaler.mean_)])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", len(names)]),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
        ],
        [
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
            helper.make_tensor("classes", TensorProto.STRING, [len(names)], names.tolist()),
        ],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(made, opset_imports=[opset], producer_name="penult", ir_version=8)
    helper.set_model_props(model, {"penult": json.dumps(about, ensure_ascii=False)})
    checker.check_model(model)
    return model
