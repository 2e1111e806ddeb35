"""An ONNX file as files: its graph, of operators that compute; the files of weights beside it
checked, read, copied.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from penult.errors import ModelError, cause
from penult.extras import require

_LARGEST = 2**31 - 1  # a serialised graph cannot be larger
_COPIED = 1 << 24  # bytes in memory while a file of weights is copied
# What no path beside a file has on any system: backslashes, drive letters, control characters.
_ODD = re.compile(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the numbers of a tensor lie: bytes of a file beside the model."""

    path: Path
    offset: int
    length: int | None

    @property
    def size(self) -> int:
        """How many bytes they are at most."""
        whole = self.path.stat().st_size
        return max(0, min(whole, whole - self.offset if self.length is None else self.length))

    def read(self) -> bytes:
        """The bytes; refused where they are not there.

        Raises:
            ValueError: in words.
        """
        with _opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            length = size - self.offset if self.length is None else self.length
            if not 0 <= self.offset <= self.offset + length <= size:
                raise ValueError(
                    f"{self.path.name} has {size} bytes, and a tensor says that its weights are "
                    f"{length} bytes from {self.offset} on"
                )
            file.seek(self.offset)
            return file.read(length)


def _opened(path: Path) -> BinaryIO:
    """A file of weights, open; a pipe or a device is none, and no link is followed any more."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
                         | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))  # fmt: skip
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is no file of weights")
    return os.fdopen(descriptor, "rb")


def read_model(path: Path, weights: bool = True) -> Any:
    """The model in a file, with the weights that lie beside it, or without them.

    Raises:
        ModelError: it is no ONNX file, or a part of it is missing, or lies elsewhere.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    except Exception as error:  # protobuf's own
        raise ModelError(f"{path} is no ONNX file: {cause(error)}") from error
    places = [(tensor, _place(path, tensor)) for tensor in _tensors(model)]
    # One file may be named many times, so that they are counted before any is read.
    if weights and sum(place.size for _, place in places if place) > _LARGEST:
        raise ModelError(f"{path} has more than 2 GB of weights, more than can be cut here")
    for tensor, place in places:
        if place is None:
            del tensor.external_data[:]
        elif weights:
            _fill(path, tensor, place)
    return model


# Where operators come from that compute; others are of whoever registered them.
_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
# Texts that an operator may take: a way to compute, a text to compute with. One that takes another
# (the `ep_cache_context` of EPContext is the name of a file, `func_name` of PythonOp is code) is
# refused, whatever a later runtime adds.
_TEXTS = frozenset(
    "activation activation_type activations aggregate_function approximate attention_mode "
    "auto_pad auxiliary_cache_layout beta_activation case_change_action cast_to cats_strings "
    "classes_strings classlabels_strings coordinate_transformation_mode default_string "
    "delimiter direction equation gate_activation indexshare_state_policy k_cache_dtype "
    "k_quant_type keep_aspect_ratio_policy kernel_type keys_strings kv_cache_layout locale "
    "map_form metric mode nearest_mode nodes_modes norm pad_value padding_mode pattern "
    "pixel_format plugin_version policy_mode pool_strings post_transform quant_type reduction "
    "round_mode selected_kv_source separators stopwords string_vocabulary to tokenexp "
    "update_rule v_cache_dtype v_quant_type value_string value_strings values_strings".split()
)
_MOST = 1_000_000  # operations of a graph, those of its functions for each call


@cache
def _schemas() -> dict[tuple[str, str], set[str]]:
    """(domain, operator) → the names of its texts, as ONNX Runtime has them."""
    found: dict[tuple[str, str], set[str]] = {}
    for one in require("onnxruntime.capi._pybind_state").get_all_operator_schema():
        texts = {name for name, own in one.attributes.items() if "STRING" in str(own.type)}
        found.setdefault((one.domain, one.name), set()).update(texts)
    return found


def refuse_operators(model: Any, name: str) -> None:
    """Refuse operators that do more than compute. name: of the file.

    Raises:
        ModelError: it has one.
    """
    for domain, op in dict.fromkeys(
        (node.domain, node.op_type) for node in _each(model.graph.node)
    ):
        shown = f"{domain}.{op}"[:80].removeprefix(".")
        if domain not in _DOMAINS:
            raise ModelError(
                f"{name} calls {shown}, an operator of a library of its own, which is not loaded "
                "here: export the model with the operators of ONNX"
            )
        if texts := _schemas().get((domain, op), set()) - _TEXTS:
            raise ModelError(
                f"{name} calls {shown}, which may reach files or code beside the graph (by its "
                f"{', '.join(sorted(texts))}); nothing was run. Give the model from before it was "
                "compiled for a device"
            )


def inlined(model: Any, name: str) -> Any:
    """The model with its functions put where they are called. name: of the file.

    Raises:
        ModelError: they call each other without end, are too many, or are in the place of
            operators that ONNX Runtime has: it would run those.
    """
    if not model.functions:
        return model
    functions = {(one.domain, one.name, one.overload): one for one in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        size = _size(model.graph.node, functions, sizes)
    except RecursionError:
        size = _MOST + 1
    if size > _MOST:
        raise ModelError(
            f"{name} has functions that call each other without end, or more than {_MOST:,} times"
        )
    for domain, op, _ in sizes:
        if ("" if domain == "ai.onnx" else domain, op) in _schemas():
            shown = f"{domain}.{op}".removeprefix(".")
            raise ModelError(
                f"{name} has a function in the place of {shown}, an operator of ONNX Runtime, "
                "which would run its own: call the function by another name, or put it into the "
                "graph (onnx.inliner)"
            )
    return require("onnx.inliner").inline_local_functions(model)


def _size(nodes: Iterable[Any], functions: Any, sizes: dict[tuple[str, str, str], int]) -> int:
    """Operations, those of functions for each call. sizes: of each function that is called."""
    total = 0
    for node in _each(nodes):
        key = (node.domain, node.op_type, node.overload)
        if key in functions and key not in sizes:
            sizes[key] = _MOST + 1  # one that calls itself
            sizes[key] = _size(functions[key].node, functions, sizes)
        total += sizes.get(key, 1)
    return total


def _each(nodes: Iterable[Any]) -> Iterator[Any]:
    """Every operation, those of graphs inside of operations included."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                own = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                pending += [graph.node for graph in own]


def _fill(path: Path, tensor: Any, place: Place) -> None:
    """Put the numbers into a tensor."""
    try:
        tensor.raw_data = place.read()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    tensor.data_location = tensor.DEFAULT
    del tensor.external_data[:]


def beside(path: Path) -> dict[str, Path]:
    """The files of weights that lie beside an ONNX file, by the names that it has for them.

    Raises:
        ModelError: as `read_model`.
    """
    found: dict[str, Path] = {}
    model = require("onnx").load(str(path), load_external_data=False)
    for tensor in _tensors(model):
        place = _place(path, tensor)
        if place is not None:
            found[os.path.normpath(_location(tensor))] = place.path
    return dict(sorted(found.items()))


def copy(path: Path, target: Path) -> None:
    """Write an ONNX file and the weights beside it, each as it is, beside each other as
    they were: no file that is there is written over.

    Raises:
        ModelError: two of them would have one name.
    """
    for name, source in {target.name: path.resolve(), **_apart(beside(path), target)}.items():
        aim = target.parent / name
        aim.parent.mkdir(parents=True, exist_ok=True)
        with _opened(source) as file, aim.open("xb") as new:
            while block := file.read(_COPIED):
                new.write(block)


def _apart(files: dict[str, Path], target: Path) -> dict[str, Path]:
    names = [name.casefold() for name in [target.name, *files]]
    if len(set(names)) < len(names):
        raise ModelError(
            f"{', '.join(files)}: a file of weights has the name of another file of the model, "
            f"which is {target.name} here: save the ONNX file again with another name for it"
        )
    return files


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever it stands: in graphs inside of operations, in functions,
    in what is sparse, in what was kept for training."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        named = descriptor.message_type.name
        many = value if hasattr(value, "__len__") else (value,)
        if named == "TensorProto":
            yield from many
        elif named not in _WITHOUT:
            for part in many:
                yield from _tensors(part)


_WITHOUT = {"ValueInfoProto", "StringStringEntryProto", "OperatorSetIdProto", "TypeProto"}


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _place(path: Path, tensor: Any) -> Place | None:
    """Where a tensor's numbers lie, or None where it holds them itself; what an entry names is
    checked in either case.

    Raises:
        ModelError: elsewhere than beside the model.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    outside = tensor.data_location == tensor.EXTERNAL
    if not entries and not outside:
        return None
    if len([e for e in tensor.external_data if e.key == "location"]) > 1:
        raise ModelError(f"{path} names two files for the weights of one tensor")
    location = entries.get("location", "")
    inside = _inside(path, location)
    if not outside:
        return None
    if not inside.is_file():
        missing = f"weights in {location[:200]!r}, and there is no such file beside it"
        raise ModelError(f"{path} has {missing}")
    try:
        offset, length = int(entries.get("offset", 0)), entries.get("length")
        return Place(inside, offset, None if length is None else int(length))
    except ValueError as error:
        raise ModelError(f"{path} is damaged: where weights begin is no number: {error}") from error


def _inside(path: Path, location: str) -> Path:
    """The file that a location names: one that lies, links followed, in the folder of the model,
    or in that of the file that the model is a link to, as in the cache of the hub.

    Raises:
        ModelError: one that lies elsewhere.
    """
    shown = location[:200]
    elsewhere = ModelError(
        f"{path} has weights in {shown!r}, which does not lie in its folder; nothing was read from "
        "there. Put the file beside the model, and save the model with its plain name"
    )
    parts = location.split("/")
    if not location or _ODD.search(location) or ".." in parts or parts[0] == "":
        raise elsewhere
    folders = {path.parent.resolve(), path.resolve().parent}
    try:
        named = (path.parent / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle
        raise ModelError(f"{path}: {shown!r} cannot be read: {cause(error)}") from error
    if not any(named.is_relative_to(folder) for folder in folders):
        raise elsewhere
    return named
