"""Names of this machine's folders, taken out of what is published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

# What holds a path, if it has one, whether that is here or not.
_OF_FILES = frozenset({"source", "spec", "proved_on", "sources", "_name_or_path", "name_or_path",
                       "root", "model"})  # fmt: skip
_KEPT = frozenset({"fingerprint", "labels", "id2label", "label2id", "code"})  # never a path's
_READ = 1 << 20  # bytes at a time


def is_absolute(text: str) -> bool:
    """Whether a text is an absolute path, of this system or Windows."""
    return text.startswith("/") or (PureWindowsPath(text).is_absolute() and "\n" not in text)


def name_of(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name or path


def without_paths(value: Any, key: str = "") -> Any:
    """A JSON value in which absolute paths are the names of their files: those under keys that hold
    paths, and others that are on this machine."""
    if key in _KEPT:
        return value
    if isinstance(value, Mapping):
        return {name: without_paths(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one, key) for one in value]
    if isinstance(value, str) and is_absolute(value) and (key in _OF_FILES or _exists(value)):
        return name_of(value)
    return value


def _exists(text: str) -> bool:
    try:
        return len(text) < 4096 and Path(text).exists()
    except (OSError, ValueError):
        return False


def own_folders(source: Path) -> list[str]:
    """Folders of this machine whose names must not be published: the user's, the working one, and
    those of what is pushed."""
    found = [Path.home(), Path.cwd(), source.absolute().parent, source.resolve().parent]
    texts = dict.fromkeys(str(one).rstrip(os.sep) for one in found)
    return [text for text in texts if len(text) > 1]


def files_naming(files: Iterable[Path], folders: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """(file, folder) of the files in whose bytes a folder's name stands, as `FOLDER/…` or alone
    between quotes."""
    names = [(one, re.compile(re.escape(os.fsencode(one)) + rb"(?=[/\\\"'])")) for one in folders]
    for path in files:
        rest = b""
        with path.open("rb") as file:
            while block := file.read(_READ):
                text = rest + block
                for folder, pattern in names:
                    if pattern.search(text):
                        yield path, folder
                rest = text[-4096:]
