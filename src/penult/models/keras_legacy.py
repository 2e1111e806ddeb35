"""Files of Keras 2: their settings as Keras 3 reads them, and layers that it computes otherwise."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from penult.extras import require

# Settings of layers that Keras 2 wrote and Keras 3 refuses: those that say nothing about what is
# computed, or say what Keras 3 always does. Others are dropped where they are off.
_SPARE = {
    "groups": (1, re.compile(r"(Depthwise|Separable)Conv\dD|Conv\dDTranspose")),
    "rng_type": (None, re.compile(r"Random.*")),
    "noise_shape": (None, re.compile(r"SpatialDropout\dD")),
    "trainable": (None, re.compile(r"SpatialDropout\dD")),
    "query_shape": (None, re.compile("MultiHeadAttention")),
    "key_shape": (None, re.compile("MultiHeadAttention")),
    "value_shape": (None, re.compile("MultiHeadAttention")),
    # Of a separable convolution both factors have settings of their own.
    "kernel_initializer": (None, re.compile(r"SeparableConv\dD|DepthwiseConv\dD")),
    "kernel_regularizer": (None, re.compile(r"SeparableConv\dD|DepthwiseConv\dD")),
    "kernel_constraint": (None, re.compile(r"SeparableConv\dD|DepthwiseConv\dD")),
}
# Settings that every layer takes.
_OF_ALL = frozenset({"name", "dtype", "trainable", "activity_regularizer", "autocast",
                     "batch_input_shape", "batch_shape", "input_shape"})  # fmt: skip


def translate(settings: Any, keras_2: bool) -> bool:
    """Put the settings of Keras 2 into those of Keras 3 where that is exact; whether any was.
    keras_2: the file is of Keras 2."""
    if isinstance(settings, list):
        return sum(translate(value, keras_2) for value in settings) > 0  # each of them
    if not isinstance(settings, dict):
        return False
    kind, own = str(settings.get("class_name")), settings.get("config")
    changed = False
    if kind == "Sequential" and isinstance(own, list):  # as the first versions wrote it
        settings["config"] = own = {"name": "sequential", "layers": own}
        changed = True
    if isinstance(own, dict):
        changed |= _without_spare(kind, own) | _in_floats(own)
        changed |= _layers_translated(kind, own, keras_2)
    return changed + sum(translate(value, keras_2) for value in settings.values()) > 0


def _without_spare(kind: str, own: dict[str, Any]) -> bool:
    """Drop settings that Keras 3 does not take, where it does the same without them."""
    changed = False
    for key in _unread(kind, own):
        value, kinds = _SPARE.get(key, (False, None))
        spare = kinds is not None and kinds.fullmatch(kind) and value in (None, own[key])
        if spare or own[key] is None or own[key] is False:
            del own[key]
            changed = True
    return changed


def _layers_translated(kind: str, own: dict[str, Any], keras_2: bool) -> bool:
    """Names of layers, and how they are joined."""
    layers = [one for one in own.get("layers") or [] if isinstance(one, dict)]
    changed = _renamed(own)
    if kind == "Sequential":
        changed |= _with_input(own.get("layers") or [])
    if "input_layers" in own:
        changed |= keras_2 and _counted(layers, own)
        changed |= sum(map(_with_named_tensors, layers)) > 0
    return changed


def _unread(kind: str, own: Mapping[str, Any]) -> list[str]:
    """The settings that a layer of Keras 3 does not take."""
    layer = getattr(require("keras").layers, kind, None)
    if not isinstance(layer, type):
        return []
    taken = inspect.signature(layer.__init__).parameters  # type: ignore[misc]
    others = _OF_ALL if any(one.kind is one.VAR_KEYWORD for one in taken.values()) else frozenset()
    return [key for key in own if key not in taken and key not in others]


def _in_floats(own: dict[str, Any]) -> bool:
    """A layer that was trained in mixed precision computes in the type of its weights."""
    policy = own.get("dtype")
    name = policy.get("config", {}).get("name") if isinstance(policy, dict) else policy
    if not isinstance(name, str) or not name.startswith("mixed_"):
        return False
    own["dtype"] = "float32"
    return True


def _renamed(own: dict[str, Any]) -> bool:
    """Names of layers without slashes, which Keras 2 allowed; weights are found by their order."""
    layers = [one for one in own.get("layers") or [] if isinstance(one, dict)]
    names = {str(one.get("name", (one.get("config") or {}).get("name"))) for one in layers}
    slashed = {name for name in names if "/" in name}
    new = {name: name.replace("/", "_") for name in slashed}
    if not slashed or len({*new.values(), *names}) < len(names) + len(new):
        return False
    for one in layers:
        for place in (one, one.get("config") or {}):
            if place.get("name") in new:
                place["name"] = new[place["name"]]
        _replace_names(one.get("inbound_nodes"), new)
    for key in ("input_layers", "output_layers"):
        _replace_names(own.get(key), new)
    return True


def _replace_names(nodes: Any, new: Mapping[str, str]) -> None:
    """In references to layers: lists that begin with a name."""
    if isinstance(nodes, dict):
        nodes = list(nodes.values())
    for at, one in enumerate(nodes or ()):
        if isinstance(one, str) and at == 0 and one in new:
            nodes[at] = new[one]
        elif isinstance(one, list | dict):
            _replace_names(one, new)


def _counted(layers: list[Any], own: dict[str, Any]) -> bool:
    """A Sequential in a model counts its calls from one in Keras 2, from nought in Keras 3."""
    inner = {str(one.get("name")) for one in layers if one.get("class_name") == "Sequential"}
    changed = False
    for nodes in [*(one.get("inbound_nodes") for one in layers), own.get("output_layers")]:
        changed |= _count_down(nodes, inner)
    return changed


def _count_down(nodes: Any, inner: Set[str]) -> bool:
    if not isinstance(nodes, list):
        return False
    if len(nodes) > 1 and isinstance(nodes[0], str):
        counted = nodes[0] in inner and isinstance(nodes[1], int) and nodes[1] > 0
        nodes[1] -= 1 if counted else 0
        return counted
    return sum(_count_down(one, inner) for one in nodes) > 0


def _with_named_tensors(layer: dict[str, Any]) -> bool:
    """Calls that take tensors by name, such as the `value` of an attention, as Keras 3 writes
    them."""
    calls = layer.get("inbound_nodes")
    if not isinstance(calls, list) or not any(map(_names_tensors, calls)):
        return False
    layer["inbound_nodes"] = [
        {"args": [_tensor_of(call[0])],
         "kwargs": {k: _tensor_of(v) if _is_place(v) else v for k, v in call[0][3].items()}}
        if _names_tensors(call)
        else call
        for call in calls
    ]  # fmt: skip
    return True


def _names_tensors(call: Any) -> bool:
    """Whether a call of one tensor takes others by name."""
    one = call[0] if isinstance(call, list) and len(call) == 1 else None
    more = one[3] if isinstance(one, list) and len(one) == 4 else None
    return isinstance(more, dict) and any(map(_is_place, more.values()))


def _is_place(value: Any) -> bool:
    """Whether it is the output of a layer: its name, the number of the call, that of the output."""
    return isinstance(value, list) and [type(one) for one in value[:3]] == [str, int, int]


def _tensor_of(place: list[Any]) -> dict[str, Any]:
    about = {"shape": [None], "dtype": "float32", "keras_history": place[:3]}
    return {"class_name": "__keras_tensor__", "config": about}


def _with_input(layers: list[Any]) -> bool:
    """A first layer that names the shape of what it takes gets an input in front, of that shape."""
    first = layers[0] if layers else None
    if not isinstance(first, dict) or first.get("class_name") == "InputLayer":
        return False
    shape = (first.get("config") or {}).pop("batch_input_shape", None)
    if shape is None:
        return False
    kind = first["config"].get("dtype", "float32")
    dtype = kind if isinstance(kind, str) and first["class_name"] != "Embedding" else "float32"
    setting = {"batch_shape": shape, "dtype": dtype, "name": "input_of_the_first_layer"}
    layers.insert(0, {"class_name": "InputLayer", "config": setting})
    return True


def as_in_keras_2(model: Any) -> bool:
    """Let layers compute what their file means: changes the model; whether any was changed.

    Keras 2's hard sigmoid has another slope than that of Keras 3, and the mean of a pooling with
    padding "same" is that of the positions that are there.
    """
    keras, changed = require("keras"), False
    for layer in _every(model):
        for name in ("activation", "recurrent_activation"):
            if getattr(layer, name, None) is keras.activations.hard_sigmoid:
                setattr(layer, name, hard_sigmoid)
                changed = True
        kinds = keras.layers.AveragePooling1D, keras.layers.AveragePooling2D
        if isinstance(layer, (*kinds, keras.layers.AveragePooling3D)) and layer.padding == "same":
            layer.call = partial(_mean_of_what_is_there, layer)
            changed = True
    return changed


def _every(layer: Any) -> Iterator[Any]:
    yield layer
    for child in getattr(layer, "layers", None) or getattr(layer, "_layers", None) or []:
        yield from _every(child)


def hard_sigmoid(x: Any) -> Any:
    """0.2 x + 0.5, between 0 and 1."""
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def _mean_of_what_is_there(layer: Any, inputs: Tensor) -> Tensor:
    """(B, …, C) → the mean over each window, the padding left out; as TensorFlow has it."""
    x = inputs if layer.data_format == "channels_first" else inputs.movedim(-1, 1)
    pads: list[int] = []
    for size, window, stride in zip(x.shape[2:], layer.pool_size, layer.strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    pool = getattr(functional, f"avg_pool{x.ndim - 2}d")
    sums = pool(functional.pad(x, pads), tuple(layer.pool_size), tuple(layer.strides))
    there = functional.pad(torch.ones_like(x[:1, :1]), pads)
    found: Tensor = sums / pool(there, tuple(layer.pool_size), tuple(layer.strides))
    return found if layer.data_format == "channels_first" else found.movedim(1, -1)
