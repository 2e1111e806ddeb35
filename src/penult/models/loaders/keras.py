"""Open a Keras model (`model.keras`, or a whole model in `.h5`) as a classifier, run by torch.

Keras 3 runs the same file on torch, JAX and TensorFlow; here it is told to use torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.errors import ModelError, UntrustedCode, UsageError, cause
from penult.extras import require
from penult.models.base import Classifier, tensors_digest
from penult.models.keras_code import beyond, outside, unknown
from penult.models.keras_legacy import as_in_keras_2, translate
from penult.models.module import ModuleParts, SavedFile, assemble
from penult.models.options import (
    LoadOptions,
    Preprocessing,
    existing,
    preprocessing_of,
    refuse_expanding,
    with_length,
)
from penult.models.processors import quiet

_OPERATIONS = {"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod"}

# What --preprocess may be called for images: the range of values that the model was trained on.
RANGES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (2 / 255, -1.0)}


class KerasModule(nn.Module):
    """A Keras model with its layers as children, in a flat list: `block/conv1` lies in `block`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.__dict__["keras"] = model
        inputs = getattr(model, "inputs", None) or []
        self.takes = tuple(x.name for x in inputs) if len(inputs) > 1 else ("inputs",)
        for name, layer in _layers(model, ""):
            self._modules[name] = layer

    def forward(self, **tensors: Tensor) -> Any:
        """What the model returns; several outputs by their names."""
        given: Any = tensors if len(self.takes) > 1 else tensors[self.takes[0]]
        device = next(iter(tensors.values())).device
        with require("keras").device(str(device)):
            returned = self.__dict__["keras"](given, training=False)
        names = getattr(self.__dict__["keras"], "output_names", None) or []
        if isinstance(returned, list | tuple) and len(returned) == len(names) > 1:
            return dict(zip(names, returned, strict=True))
        return returned

    def digest(self) -> str:
        """Hash of the weights in their order: names of layers are counted on in one process."""
        weights = enumerate(self.__dict__["keras"].weights)
        found = tensors_digest({f"{number:06}": weight.value for number, weight in weights})
        return found + ("/2" if self.__dict__.get("old") else "")  # they gave other vectors before


def _layers(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every layer below one, containers before what is in them, by path."""
    inside = getattr(layer, "layers", None) or getattr(layer, "_layers", None) or []
    taken: set[str] = set()
    for child in inside:
        if type(child).__name__ == "InputLayer" or not isinstance(child, nn.Module):
            continue
        own: Any = child
        _ = own.torch_params  # Keras shows a layer's variables to torch once somebody asks
        name = prefix + str(own.name).replace(".", "_")
        while name in taken or hasattr(nn.Module, name):
            name += "_"
        taken.add(name)
        yield name, child
        yield from _layers(child, f"{name}/")


def open_keras(spec: str | Path, options: LoadOptions) -> Classifier:
    """A file that `model.save` of Keras wrote.

    Raises:
        ModelError: it is no Keras model, or cannot be run on what it is given.
        UntrustedCode: it brings code, and `trust` was not given.
        UsageError: Keras was imported before with another backend than torch.
    """
    path = existing(spec, options)
    _require_model(path)
    keras = imported_keras()
    if not options.trust:
        _refuse_code(path)
    try:
        with quiet(), _readable(path) as file:
            model = keras.saving.load_model(file, compile=False, safe_mode=not options.trust)
    except Exception as error:  # Keras raises many kinds
        raise _refused(path, error) from error
    old = written_by_keras_2(path) and as_in_keras_2(model)
    return open_model(model, options, str(path), SavedFile(path), old)


def imported_keras() -> Any:
    """Keras, on torch, whatever the environment says.

    Raises:
        UsageError: it was imported before, with another backend.
        MissingExtra: it is not installed.
    """
    if "keras" not in sys.modules:
        before = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "torch"
        try:
            require("keras")
        finally:
            if before is None:
                del os.environ["KERAS_BACKEND"]
            else:
                os.environ["KERAS_BACKEND"] = before
    keras = require("keras")
    if keras.backend.backend() != "torch":
        raise UsageError(
            f"keras was imported before, with its {keras.backend.backend()} backend, and runs here "
            "on torch: set KERAS_BACKEND=torch in the environment before keras is imported"
        )
    return keras


def open_model(
    model: Any,
    options: LoadOptions,
    spec: str,
    saved: SavedFile | None = None,
    old: bool = False,
) -> Classifier:
    """A Keras model that is at hand. saved: the file that it was read from. old: some of its layers
    compute as in Keras 2."""
    imported_keras()
    shapes = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    shape = shapes[0] if len(shapes) == 1 else None
    sound = options.sample_rate is not None and options.preprocess is None
    preprocessing = _preprocessing(options, shape, _has_scaling(model), spec)
    unfixed = options
    if sound and shape is not None:
        options = with_length(options, shape[1] if len(shape) > 1 else None, spec)
    module = KerasModule(model)
    module.__dict__["old"] = old
    module.__class__ = type(type(model).__name__, (KerasModule,), {})
    facts: dict[str, Any] = {
        "origin": "keras",
        "parameters": model.count_params(),
        **({"inputs": [str(shape)]} if shape else {}),
    }
    if "keras" in preprocessing.settings:
        facts["preprocessing"] = preprocessing.settings["keras"]
    parts = ModuleParts(module, preprocessing, spec, facts=facts, weights=module.digest)
    if saved:
        parts = saved.of(parts, "keras", unfixed)
    return assemble(parts, options)


def _preprocessing(
    options: LoadOptions, shape: tuple[int | None, ...] | None, scaled: bool, spec: str
) -> Preprocessing:
    """What the caller says; sound in the rank that the model takes; else images of its size.

    Images become what `keras.utils.image_dataset_from_directory` gives: resized, without keeping
    the aspect, to the model's size. Their values are 0 to 255 where the model scales them itself.
    """
    if options.preprocess is None and options.sample_rate is not None:
        return _samples(options, shape, spec)
    if options.preprocess is not None and options.preprocess not in RANGES:
        return preprocessing_of(options)
    pictures = shape is not None and len(shape) == 4 and {shape[1], shape[3]} & {1, 3}
    if not pictures or shape is None or options.modality not in (None, "image"):
        takes = "several inputs, or of unknown shape" if shape is None else str(shape)
        raise UsageError(
            f"{spec} takes {takes}, and nothing says how an item is prepared for it: give "
            "--preprocess package.module:function, or --sample-rate if it takes raw samples"
        )
    if options.preprocess is None and not scaled:
        raise UsageError(
            f"{spec} has no Rescaling or Normalization layer, so nothing says which range of "
            f"values it was trained on: give --preprocess {', '.join(RANGES)}, or "
            "package.module:function"
        )
    named = options.preprocess if isinstance(options.preprocess, str) else "0..255"
    return _images(shape, named)


def _samples(
    options: LoadOptions, shape: tuple[int | None, ...] | None, spec: str
) -> Preprocessing:
    """Raw sound, with a channel axis behind it where the model takes one."""
    if shape is None or len(shape) == 2:
        return preprocessing_of(options)
    if len(shape) != 3 or shape[2] != 1:
        raise UsageError(
            f"{spec} takes {shape}, which is no raw sound: give --preprocess "
            "package.module:function, which makes that of samples"
        )
    return Preprocessing(
        lambda samples: torch.from_numpy(samples)[:, None],
        {"samples": options.sample_rate},
        raw=True,
    )


def _images(shape: tuple[int | None, ...], named: str) -> Preprocessing:
    """Pictures resized to the model's size, with values in a range."""
    last = shape[3] in (1, 3)
    channels = shape[3] if last else shape[1]
    size = shape[1:3] if last else shape[2:4]
    scale, offset = RANGES[named]

    def prepare(image: Any) -> Tensor:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if None not in size:
            resize = require("keras").ops.image.resize
            with require("keras").device("cpu"):
                resized = resize(pixels, size, "bilinear", data_format="channels_last")
            pixels = resized.numpy()
        tensor = torch.from_numpy(np.ascontiguousarray(pixels * scale + offset, np.float32))
        return tensor if last else tensor.permute(2, 0, 1)

    sizes = "as they are" if None in size else f"resized to {size[0]}×{size[1]}, bilinear"
    colour = "grey" if channels == 1 else "RGB"
    return Preprocessing(prepare, {"keras": f"{sizes}, {colour}, values {named}"})


def _has_scaling(model: Any) -> bool:
    """Whether the model scales its values itself."""
    kinds = {type(layer).__name__ for _, layer in _layers(model, "")}
    return bool(kinds & {"Rescaling", "Normalization"})


def _require_model(path: Path) -> None:
    weights = (
        f"{path} holds weights of Keras and no network: save the whole model, model.save('m.keras')"
    )
    if path.name.endswith(".weights.h5"):
        raise ModelError(weights)
    if path.suffix.lower() == ".keras":
        if not zipfile.is_zipfile(path):
            raise ModelError(f"{path} is no Keras model: Keras 3 writes a zip archive")
        refuse_expanding(path)
        return
    import_h5: Callable[..., Any] = require("h5py").File
    try:
        with import_h5(path, "r") as file:
            whole = "model_config" in file.attrs
    except OSError as error:
        raise ModelError(f"{path} is no HDF5 file: {cause(error)}") from error
    if not whole:
        raise ModelError(weights)


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """The file, or a copy of it with its settings as Keras 3 reads them."""
    name, text = _settings(path)
    settings = json.loads(text) if text else None
    if settings is None or not translate(settings, written_by_keras_2(path)):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        if name:
            with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
                for entry in old.infolist():
                    own = entry.filename == name
                    new.writestr(entry, json.dumps(settings) if own else old.read(entry))
        else:
            shutil.copyfile(path, copy)
            with require("h5py").File(copy, "r+") as file:
                file.attrs["model_config"] = json.dumps(settings)
        yield copy


def _is_archive(path: Path) -> bool:
    """As Keras decides it: a file may be both."""
    return path.suffix.lower() == ".keras"


def _refuse_code(path: Path) -> None:
    """Look through the settings and the weights of a file.

    Raises:
        ModelError: it is damaged, or has classes that are not of Keras.
        UntrustedCode: it would do more than compute.
    """
    try:
        settings = json.loads(_settings(path)[1] or "null")
        if isinstance(settings, dict):  # how it was trained is not read: outputs may be named `url`
            settings.pop("compile_config", None)
        found = next(beyond(settings), "") or next(_outside(path), "")
        foreign = next(unknown(settings), "")
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be read as a Keras model: {cause(error)}") from error
    if found:
        raise _untrusted(path, found)
    if foreign:
        raise _foreign(path, foreign)


def _outside(path: Path) -> Iterator[str]:
    h5 = require("h5py").File
    if not _is_archive(path):
        with h5(path, "r") as file:
            yield from outside(file)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".h5"):
                with archive.open(name) as member, h5(io.BytesIO(member.read()), "r") as file:
                    yield from outside(file)


def _settings(path: Path) -> tuple[str, str]:
    """(the member of the zip archive that holds the layers' settings, its text); no member for
    HDF5."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            name = "config.json"
            return name, archive.read(name).decode() if name in archive.namelist() else ""
    with require("h5py").File(path, "r") as file:
        text = file.attrs["model_config"]
    return "", text.decode() if isinstance(text, bytes) else str(text)


def written_by_keras_2(path: Path) -> bool:
    """Whether the file says so, or says nothing, as the first versions did."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            text = archive.read("metadata.json") if "metadata.json" in archive.namelist() else b"{}"
        version = str(json.loads(text).get("keras_version", "3"))
    else:
        with require("h5py").File(path, "r") as file:
            found = file.attrs.get("keras_version", "2")
        version = found.decode() if isinstance(found, bytes) else str(found)
    return version.partition(".")[0] in ("1", "2")


def _refused(path: Path, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    if "safe_mode" in text or "unsafe" in text.lower() or "enable_unsafe" in text:
        return _untrusted(path, "brings code of its own (a Lambda layer, or a function)")
    named = re.search(r"(?:[Cc]ould not locate \w+|Unknown \w+:) '([^']+)'", text)
    if named and named[1] in _OPERATIONS:
        return ModelError(
            f"{path} holds bare operations of TensorFlow as layers ({named[1]}, of Keras 2), "
            "which Keras 3 cannot read: convert it in the Python that it was made with "
            "(tf.lite.TFLiteConverter.from_keras_model(model).convert(), written to model.tflite), "
            "or to ONNX with tf2onnx, and give that file"
        )
    if named:
        return _foreign(path, named[1])
    reason = text.rpartition("Exception encountered: ")[2] or cause(error)
    return ModelError(f"{path} cannot be opened as a Keras model: {reason[:300]}")


def _untrusted(path: Path, reason: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path} {reason}, which would run on this machine; nothing was run. If you trust whoever "
        "made it say --trust"
    )


def _foreign(path: Path, name: str) -> ModelError:
    return ModelError(
        f"{path} is made with {name!r}, which Keras does not have: in Python, load it with "
        "keras.saving.load_model and custom_objects, and give penult.load the model; or write a "
        "function that does so, and name it as package.module:function with --weights-inside"
    )
