"""A class space as one small file: an npz of plain arrays and one JSON text, nothing that can run.

Knows no model and no collection.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penult.errors import LabelsError, SpaceError, StoreError, UsageError
from penult.examples import Examples
from penult.space import Space

FORMAT = 1
SUFFIX = ".npz"


@dataclass(frozen=True)
class Saved:
    """Examples with all that is needed to judge with them again. fingerprint, model: of the
    embedder that gave the vectors. settings: method, several, level. groups: of
    each example."""

    examples: Examples
    space: Space
    fingerprint: Mapping[str, str]
    model: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[str | None] | None = None


def write(path: str | os.PathLike[str], saved: Saved) -> Path:
    """Write the file, aside first.

    Raises:
        LabelsError: a name that does not end in .npz.
        StoreError: it cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix != SUFFIX:
        raise LabelsError(f"a class space is saved as {SUFFIX}: {target.with_suffix(SUFFIX)}")
    examples = saved.examples
    about = {
        "format": FORMAT,
        "kind": "penult class space",
        "fingerprint": dict(saved.fingerprint),
        "model": dict(saved.model),
        "settings": dict(saved.settings),
        "examples": [
            {"id": id, "region": region, "marks": dict(marks)}
            for (id, region), marks in zip(examples.keys, examples.marks, strict=True)
        ],
        "groups": None if saved.groups is None else list(saved.groups),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=_bytes(json.dumps(about).encode()),
        vectors=examples.vectors.astype("<f4"),
        space=_bytes(saved.space.to_bytes()),
    )
    return write_aside(target, buffer.getvalue())


def check_free(path: Path | None, overwrite: bool) -> None:
    """Refuse to write over a file.

    Raises:
        UsageError: there is one, and it was not said that it may go.
    """
    if path is not None and not overwrite and path.expanduser().exists():
        raise UsageError(f"{path} exists already; --overwrite replaces it")


def write_aside(path: Path, data: bytes) -> Path:
    """Write a file, aside first, so that one of that name is whole or absent.

    Raises:
        StoreError: it cannot be written.
    """
    target = path.expanduser()
    aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(data)
        aside.replace(target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return target


def read(path: str | os.PathLike[str]) -> Saved:
    """What `write` wrote.

    Raises:
        LabelsError: there is no such file, or it is no class space.
    """
    source = Path(path).expanduser()
    try:
        with np.load(source, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            vectors = np.asarray(file["vectors"], np.float32)
            space = Space.from_bytes(file["space"].tobytes())
        if about.get("kind") != "penult class space":
            raise ValueError("it says so nowhere")
        if about["format"] > FORMAT:
            raise LabelsError(
                f"{source} has format {about['format']}, this Penult reads up to {FORMAT}: "
                "upgrade penult"
            )
        rows = about["examples"]
        if vectors.ndim != 2 or len(vectors) != len(rows) or vectors.shape[1] != space.dim:
            raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} examples")
        empty = Examples.empty(vectors.shape[1])
        examples = Examples(
            vectors if len(rows) else empty.vectors,
            tuple((row["id"], row["region"]) for row in rows),
            tuple({str(n): str(m) for n, m in row["marks"].items()} for row in rows),
        )
        about = {"groups": None, **about}
        model, settings = dict(about["model"]), dict(about["settings"])
        return Saved(examples, space, dict(about["fingerprint"]), model, settings, about["groups"])
    except FileNotFoundError as error:
        raise LabelsError(
            f"there is no file {source}; penult classes COLLECTION --save {source} makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, SpaceError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise LabelsError(f"{source} is no saved class space: {error}") from error


def _bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)
