"""Open a Keras model (`model.keras`, or a whole model in `.h5`) as a classifier, run by torch.

Keras 3 runs the same file on torch, JAX and TensorFlow; here it is told to use torch.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.errors import ModelError, UntrustedCode, UsageError, first_line
from penult.extras import require
from penult.models.base import Classifier, tensors_digest
from penult.models.module import ModuleParts, SavedFile, assemble
from penult.models.options import (
    LoadOptions,
    Preprocessing,
    existing,
    preprocessing_of,
    with_length,
)
from penult.models.processors import quiet

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
        """What the model returns."""
        given: Any = tensors if len(self.takes) > 1 else tensors[self.takes[0]]
        device = next(iter(tensors.values())).device
        with require("keras").device(str(device)):
            return self.__dict__["keras"](given, training=False)

    def digest(self) -> str:
        """Hash of the weights in their order: names of layers are counted on in one process."""
        weights = enumerate(self.__dict__["keras"].weights)
        return tensors_digest({f"{number:06}": weight.value for number, weight in weights})


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
    try:
        with quiet():
            model = keras.saving.load_model(path, compile=False, safe_mode=not options.trust)
    except Exception as error:  # Keras raises many kinds
        raise _refused(path, error) from error
    return open_model(model, options, str(path), SavedFile(path))


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
    model: Any, options: LoadOptions, spec: str, saved: SavedFile | None = None
) -> Classifier:
    """A Keras model that is at hand. saved: the file that it was read from."""
    imported_keras()
    shapes = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    shape = shapes[0] if len(shapes) == 1 else None
    sound = options.sample_rate is not None and options.preprocess is None
    preprocessing = _preprocessing(options, shape, _has_scaling(model), spec)
    unfixed = options
    if sound and shape is not None:
        options = with_length(options, shape[1] if len(shape) > 1 else None, spec)
    module = KerasModule(model)
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
        return
    import_h5: Callable[..., Any] = require("h5py").File
    try:
        with import_h5(path, "r") as file:
            whole = "model_config" in file.attrs
    except OSError as error:
        raise ModelError(f"{path} is no HDF5 file: {first_line(error)}") from error
    if not whole:
        raise ModelError(weights)


def _refused(path: Path, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    if "safe_mode" in text or "unsafe" in text.lower() or "enable_unsafe" in text:
        return UntrustedCode(
            f"{path} brings code of its own (a Lambda layer, or a function), which would run on "
            "this machine; nothing was run. If you trust whoever made it say --trust"
        )
    unknown = re.search(r"[Cc]ould not locate \w+ '([^']+)'", text)
    if unknown:
        return ModelError(
            f"{path} is made with {unknown[1]!r}, which Keras does not have; in Python, load it "
            "with keras.saving.load_model and custom_objects, and give penult.load the model"
        )
    return ModelError(f"{path} cannot be opened as a Keras model: {first_line(error)}")
