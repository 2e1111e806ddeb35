"""A saved embedder as a folder: written aside and renamed, and read again. Knows no classifier."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penult.analysis.space import Space
from penult.data.documents import of_others
from penult.data.files import folder_aside, user_path
from penult.data.hashes import LIST, list_hash, write_list
from penult.errors import ModelError, SpaceError, StoreError, UsageError, cause
from penult.models.specs import EMBEDDER, require_as_saved
from penult.tracing.spots import Tap

log = logging.getLogger(__name__)
FILE = EMBEDDER
SPACE = "space.npz"


@dataclass(frozen=True, slots=True)
class SavedEmbedder:
    """What a folder holds. description: as it was written, with at least `pooling` and
    `fingerprint`."""

    folder: Path
    description: dict[str, Any]
    taps: list[Tap]
    space: Space | None


def is_embedder(spec: str | os.PathLike[str]) -> bool:
    """Whether a folder is a saved embedder."""
    return (user_path(spec) / FILE).is_file()


def check_target(folder: str | os.PathLike[str]) -> Path:
    """The folder for an embedder, checked; also before long work.

    Raises:
        UsageError: it exists and is not an embedder.
    """
    target = user_path(folder).absolute()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; an embedder is saved as a folder, name another")
    if target.exists() and not (target / FILE).is_file() and any(target.iterdir()):
        raise UsageError(f"{target} exists and is not an embedder; name another folder")
    return target


def write(
    folder: str | os.PathLike[str],
    description: Mapping[str, Any],
    space: Space | None,
    parts: Callable[[Path], None],
) -> Path:
    """Write a folder, whole or not at all. parts: writes all the rest into it.

    Raises:
        UsageError: it exists and is not an embedder.
        StoreError: it cannot be written.
    """
    target = check_target(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(target) as aside:
            parts(aside)
            if space is not None:
                (aside / SPACE).write_bytes(space.to_bytes())
            (aside / FILE).write_text(json.dumps(description, indent=2), "utf-8")
            write_list(aside)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


_TOLD: set[Path] = set()  # folders without a list, of which it was said


def read(path: Path) -> SavedEmbedder:
    """Read a folder that `write` wrote: what it says of itself, and its space.

    Raises:
        ModelError: it is not a saved embedder, cannot be read, or is not as it was saved.
    """
    require_as_saved(path, (FILE, SPACE))
    if (path / FILE).is_file() and list_hash(path) is None and path.absolute() not in _TOLD:
        _TOLD.add(path.absolute())
        log.warning(
            "%s has no list of hashes (%s), so that a damaged file would not be seen: an earlier "
            "version saved it, or the list was removed. penult migrate %s writes one",
            path,
            LIST,
            path,
        )
    try:
        saved = of_others((path / FILE).read_text("utf-8"))
        taps = saved["taps"] if "taps" in saved else [saved["tap"]]
        chosen = [Tap(**{**tap, "shape": tuple(tap["shape"])}) for tap in taps]
        _ = saved["pooling"], dict(saved["fingerprint"])
        file = path / SPACE
        space = Space.from_bytes(file.read_bytes()) if file.is_file() else None
    except FileNotFoundError as error:
        raise ModelError(f"{path} is not a saved embedder: it has no {FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, SpaceError) as error:
        raise ModelError(f"{path / FILE} cannot be read: {cause(error)}") from error
    return SavedEmbedder(path.absolute(), saved, chosen, space)
