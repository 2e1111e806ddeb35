"""The first and the last bytes of a file, whatever is in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from penult.data.files import file_size
from penult.errors import DecodeError, EmptyItem, cause


class _Every(frozenset[str]):
    """Every extension, and none."""

    def __contains__(self, extension: object) -> bool:
        return True


EXTENSIONS: frozenset[str] = _Every()
BLOCK = 4096  # bytes of either end that are read


@dataclass(frozen=True, slots=True)
class FileEnds:
    """Both ends of a file, each of at most `BLOCK` bytes: of a small file they are the same bytes,
    or share some. size: bytes of the file."""

    first: bytes
    last: bytes
    size: int


def load(content: object) -> FileEnds:
    """Both ends of a file, or of bytes.

    Raises:
        DecodeError: there is no such file. EmptyItem: it is empty.
    """
    if isinstance(content, bytes):
        found = FileEnds(content[:BLOCK], content[-BLOCK:], len(content))
    elif isinstance(content, Path):
        found = _of_file(content)
    else:
        raise DecodeError(f"a {type(content).__name__} is no file; give a path or bytes")
    if not found.size:
        raise EmptyItem("the file is empty")
    return found


def _of_file(path: Path) -> FileEnds:
    size = file_size(path)
    try:
        with path.open("rb") as file:
            first = file.read(BLOCK)
            file.seek(max(0, size - BLOCK), os.SEEK_SET)
            return FileEnds(first, file.read(BLOCK), size)
    except OSError as error:
        raise DecodeError(f"cannot be read: {path}: {cause(error)}") from error
