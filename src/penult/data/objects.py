"""Python objects as items: bytes, open files, arrays with their rate, pictures and texts. Knows no
folders and no tables.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from penult.data.items import Item, absolute, file_item, sha, text_item
from penult.errors import SourceError, cause

ACCEPTED = "give paths, bytes, arrays, (array, rate) pairs, open binary files, PIL images or texts"
_NUMBERS = "biufc"  # kinds of arrays that hold them


def is_one(thing: object) -> bool:
    """Whether an object is a single item, or nothing that could be several."""
    if isinstance(thing, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)):
        return True
    if is_picture(thing) or is_file(thing) or _words(thing):
        return True
    if isinstance(thing, tuple) and len(thing) == 2:
        return any(_is_number(value) for value in thing)
    # A column of a data frame is an array too, but one of paths or texts.
    return hasattr(thing, "__array__") and np.asarray(thing).dtype.kind in _NUMBERS


def is_picture(thing: object) -> bool:
    """Whether it is a PIL image."""
    pillow = sys.modules.get("PIL.Image")  # a picture exists only where Pillow is imported
    return pillow is not None and isinstance(thing, pillow.Image)


def is_file(thing: object) -> bool:
    """Whether it is an open file, or an object that is read as one."""
    return callable(getattr(thing, "read", None)) and not hasattr(thing, "__array__")


def item_of(thing: Any, modality: str, index: int = 0) -> Item:
    """A path, bytes, an open file, an array, (array, rate), a PIL image or a text as an item. Of a
    file that can be sought all is read, wherever it stands, and it stands there again afterwards.

    Raises:
        SourceError: an object of another kind, or a file that cannot be read. index: its place,
            for the message.
    """
    if isinstance(thing, str) and modality == "text":
        return text_item(thing, metadata={"text": thing})
    if isinstance(thing, (str, os.PathLike)):
        return file_item(absolute(thing))
    if reason := _words(thing):
        raise SourceError(f"item {index} is {reason}")
    if isinstance(thing, memoryview) and thing.format not in ("B", "b", "c"):
        thing = np.asarray(thing)
    if is_file(thing):
        thing = file_content(thing, index)
        if isinstance(thing, str):
            return _item_of_text(thing, modality, index)
    if isinstance(thing, (bytes, bytearray, memoryview)):
        content = bytes(thing)
        return Item(sha(content), content)
    if is_picture(thing):
        return Item(sha(f"{thing.mode} {thing.size}".encode(), thing.tobytes()), thing)
    return _item_of_array(thing, modality, index)


def file_content(file: Any, index: int = 0) -> bytes | str:
    """All of an open file: bytes, or text where it was opened as such.

    Raises:
        SourceError: it cannot be read.
    """
    kind = type(file).__name__
    try:
        can_seek = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
        place = file.tell() if can_seek else 0
        if can_seek:
            file.seek(0)
        content = file.read()
        if can_seek:
            file.seek(place)
    except UnicodeDecodeError as error:
        raise SourceError(f"item {index} was opened as text; open it with 'rb'") from error
    except Exception as error:  # a file of somebody else may raise anything
        raise SourceError(f"item {index}, a {kind}, cannot be read: {cause(error)}") from error
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, str):
        return content
    raise SourceError(
        f"item {index}, a {kind}, gives {type(content).__name__} where bytes are read; {ACCEPTED}"
    )


def _item_of_text(text: str, modality: str, index: int) -> Item:
    if modality == "text":
        return text_item(text, metadata={"text": text})
    raise SourceError(
        f"item {index} is a file that was opened as text; open it with 'rb', or if it lists paths "
        "give them as a list"
    )


def _item_of_array(thing: Any, modality: str, index: int) -> Item:
    """An array, or (array, rate)."""
    rate = None
    if isinstance(thing, tuple) and len(thing) == 2:
        thing, rate = thing[0], _rate_of(thing[0], thing[1], index)
    if not hasattr(thing, "__array__"):
        raise SourceError(f"item {index} is of type {type(thing).__name__}; {ACCEPTED}")
    array = np.asarray(thing)
    if array.dtype.kind not in _NUMBERS:
        raise SourceError(f"item {index} is an array of {array.dtype}, not of numbers; {ACCEPTED}")
    about = f"{array.dtype.str} {array.shape}" + (f" {rate}" if modality == "audio" else "")
    return Item(sha(about.encode(), array.tobytes()), array, rate=rate)


def _rate_of(values: Any, rate: Any, index: int) -> int:
    if _is_number(values) and hasattr(rate, "__array__"):
        raise SourceError(f"item {index} is (rate, array), as scipy gives it; give (array, rate)")
    if not hasattr(values, "__array__") or not _is_number(rate):
        pair = f"({type(values).__name__}, {type(rate).__name__})"
        raise SourceError(
            f"item {index} is {pair}; a pair is an array and its rate in Hz; {ACCEPTED}"
        )
    if not (rate > 0 and float(rate).is_integer()):
        raise SourceError(f"item {index} has a rate of {rate} Hz; give a whole number above 0")
    return int(rate)


def _is_number(value: Any) -> bool:
    """Whether it is one number, of Python or of an array library."""
    if isinstance(value, (bool, np.bool_)) or getattr(value, "ndim", 0) != 0:
        return False
    if isinstance(value, float | np.floating):
        return True
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _words(thing: object) -> str:
    """What an object is, and what to give in its place; empty where it may be an item."""
    kind = type(thing).__name__
    if isinstance(thing, Mapping):
        return (
            f"a {kind}; of one with sound give (it['array'], it['sampling_rate']), of others a "
            "list of the values"
        )
    if hasattr(thing, "columns") and hasattr(thing, "iloc"):
        return f"a {kind}; give one of its columns, such as table['path']"
    if hasattr(thing, "readframes"):
        return f"a {kind} of the module wave; give the file's path, its bytes, or (array, rate)"
    if hasattr(thing, "samplerate") and is_file(thing):
        return f"a {kind}; give its path, or (file.read(always_2d=True).T, file.samplerate)"
    return ""
