"""An ONNX file as files: its graph; the files of weights beside it checked, read, copied."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
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

    def read(self, largest: int) -> bytes:
        """The bytes; refused where they are not there, or more than `largest`.

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
            if length > largest:
                raise ValueError("it has more than 2 GB of weights, more than can be cut here")
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
    left = _LARGEST
    for tensor in _tensors(model):
        place = _place(path, tensor)
        if place is None:
            del tensor.external_data[:]
        elif weights:
            left -= _fill(path, tensor, place, left)
    return model


def _fill(path: Path, tensor: Any, place: Place, largest: int) -> int:
    """Put the numbers into a tensor; how many bytes they are."""
    try:
        tensor.raw_data = place.read(largest)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    tensor.data_location = tensor.DEFAULT
    del tensor.external_data[:]
    return len(tensor.raw_data)


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
