"""One array of numbers from a .npy file, from the bytes of one, or as it is at hand."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.files import read_bytes
from penult.data.folders import ARRAYS_ALONE
from penult.errors import DecodeError, EmptyItem

EXTENSIONS = frozenset({".npy"})
_NUMBERS = "biuf"  # kinds of arrays that hold them


def load(content: object) -> npt.NDArray[Any]:
    """The array: floats as float32, integers as they are.

    Raises:
        DecodeError: no .npy file, or one of objects or texts. EmptyItem: there is nothing in it.
    """
    found = content if isinstance(content, np.ndarray) else _of_file(content)
    if found.dtype.kind not in _NUMBERS:
        raise DecodeError(f"an array of {found.dtype} holds no numbers")
    if not found.size:
        raise EmptyItem(f"an array of shape {found.shape} is empty")
    return found.astype(np.float32) if found.dtype.kind == "f" else found


def _of_file(content: object) -> npt.NDArray[Any]:
    if not isinstance(content, Path | bytes):
        raise DecodeError(f"a {type(content).__name__} is no array; give one, or a .npy file")
    raw = read_bytes(content)
    try:
        found = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, MemoryError, OverflowError):
        raise DecodeError(f"is no whole .npy file of numbers{ARRAYS_ALONE}") from None
    return np.ascontiguousarray(found)
