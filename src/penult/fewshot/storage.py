"""Convert a class space to and from its saved form: one npz of plain arrays and one JSON text."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space
from penult.collection.manifest import Manifest, fingerprint_in
from penult.data.files import user_path, write_file
from penult.errors import FingerprintMismatch, LabelsError, UsageError, cause
from penult.fewshot.examples import Examples, checked_mark, checked_name
from penult.fewshot.fitted import Settings
from penult.fewshot.labelling import Groups
from penult.fewshot.vectors import VectorSource
from penult.memory import check_unpacked

FORMAT = 1
SUFFIX = ".npz"


@dataclass(frozen=True)
class Saved:
    """The content of a class space's file. fingerprint, model: of the embedder of the vectors.
    settings: see `Settings`. groups: of each example."""

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
    target = check_suffix(user_path(path))
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
    parts = {
        "about": _bytes(json.dumps(about).encode()),
        "vectors": examples.vectors.astype("<f4"),
        "space": _bytes(saved.space.to_bytes()),
    }
    np.savez(buffer, **parts, hash=np.array(_hash_of(parts)))
    return write_file(target, [buffer.getvalue()])


def _hash_of(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of what a file holds and what it was made from, but for where that lies; 0.1.0
    wrote none."""
    about = {n: v for n, v in json.loads(bytes(parts["about"])).items() if n != "model"}
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in ("vectors", "space"):
        values = np.asarray(parts[name])
        found.update(f"{name} {values.dtype} {values.shape} ".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def check_suffix(path: Path) -> Path:
    """The path of a class space.

    Raises:
        LabelsError: it does not end in .npz.
    """
    if path.suffix != SUFFIX:
        raise LabelsError(f"a class space is saved as {SUFFIX}: {path.name}{SUFFIX} works")
    return path


def check_free(path: Path | None, overwrite: bool) -> None:
    """Refuse to write over a file.

    Raises:
        UsageError: it exists, and overwrite is not set.
    """
    if path is not None and not overwrite and user_path(path).exists():
        raise UsageError(f"{path} exists already; --overwrite replaces it")


def read(path: str | os.PathLike[str]) -> Saved:
    """The content of a file of `write`.

    Raises:
        LabelsError: there is no such file, or it is no class space.
    """
    source = user_path(path)
    try:
        if source.is_file() and not is_zipfile(source):
            raise ValueError("it is no npz archive")
        check_unpacked(source)
        with np.load(source, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about.get("kind") != "penult class space":
                raise ValueError(f"its kind is {about.get('kind')!r}")
            if about["format"] <= FORMAT:
                vectors = np.asarray(file["vectors"], np.float32)
                found = _checked(about, vectors, Space.from_bytes(file["space"].tobytes()))
                if "hash" in file and str(file["hash"]) != _hash_of(file):
                    raise ValueError("it is not as it was saved")
                return found
    except FileNotFoundError as error:
        raise LabelsError(
            f"there is no file {source}; penult classes COLLECTION --save {source} makes one, and "
            f"penult teach {source} CLASS EXAMPLES… --model MODEL begins one"
        ) from error
    except Exception as error:  # whatever a broken file makes of zip, numpy and JSON
        raise LabelsError(f"{source} is no saved class space: {cause(error)}") from error
    raise LabelsError(
        f"{source} has format {about['format']}, this Penult reads up to {FORMAT}: upgrade penult"
    )


def _checked(about: Mapping[str, Any], vectors: npt.NDArray[np.float32], space: Space) -> Saved:
    """The content of a file whose parts fit each other."""
    rows, groups = about["examples"], about.get("groups")
    if vectors.ndim != 2 or len(vectors) != len(rows) or vectors.shape[1] != space.dim:
        raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} examples")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors have values that are not finite")
    if groups is not None and len(groups) != len(rows):
        raise ValueError(f"{len(groups)} groups for {len(rows)} examples")
    keys = tuple((str(row["id"]), str(row["region"])) for row in rows)
    if len(set(keys)) < len(keys):
        raise ValueError("an example comes twice")
    marks = tuple(
        {checked_name(name): checked_mark(mark) for name, mark in row["marks"].items()}
        for row in rows
    )
    return Saved(Examples(vectors, keys, marks), space, dict(about["fingerprint"]),
                 dict(about["model"]), dict(about["settings"]), groups)  # fmt: skip


def _bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def migrate(path: str | os.PathLike[str], manifest: Manifest, dry: bool = False) -> bool:
    """Give a class file the fingerprint of a collection that took the place of its own; whether it
    had another one.

    Raises:
        FingerprintMismatch: the collection never had the file's fingerprint.
    """
    saved = read(path)
    theirs = fingerprint_in(Manifest(saved.fingerprint, 0, 0, saved.model))
    ours = fingerprint_in(manifest)
    if theirs.id == ours.id:
        return False
    if not ours.was(theirs):
        raise FingerprintMismatch(
            f"{path} holds vectors of another embedder than this collection has, or had before it "
            "was migrated: teach its classes again"
        )
    if not dry:
        write(path, replace(saved, fingerprint=manifest.fingerprint, model=manifest.model))
    return True


OF_EXAMPLES = "space_of_examples"  # the space is fitted again to the examples, as they change


def to_saved(
    source: VectorSource,
    settings: Settings,
    examples: Examples,
    space: Space,
    groups: Sequence[str | None] | None,
    of_examples: bool,
) -> Saved:
    """The parts of a class space as the content of its file."""
    manifest, about = source.manifest, settings.to_dict() | {OF_EXAMPLES: of_examples}
    return Saved(examples, space, manifest.fingerprint, manifest.model, about, groups)


def from_saved(
    saved: Saved, changed: Mapping[str, Any]
) -> tuple[VectorSource, Settings, Examples, Groups, Space | None]:
    """The parts of a class space from its file's content, with changed settings; a space of None is
    to be fitted."""
    settings, examples = Settings.of(saved.settings, changed), saved.examples
    manifest = Manifest(saved.fingerprint, examples.dim, len(examples.names), saved.model)
    known = {}
    if "groups" not in changed and saved.groups is not None:
        known = dict(zip(examples.keys, saved.groups, strict=True))
    fixed = "space" not in changed and not saved.settings.get(OF_EXAMPLES)
    groups = Groups(settings.groups, known)
    return VectorSource(manifest), settings, examples, groups, saved.space if fixed else None
