"""Detectors of novel rows in their saved form: one npz of plain arrays and one JSON text."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt

from penult.analysis.novelty import METHODS
from penult.analysis.space import Space
from penult.collection.manifest import Manifest, fingerprint_in
from penult.collection.schema import Key
from penult.data.files import user_path, write_file
from penult.embedding.fingerprint import compare
from penult.errors import FingerprintMismatch, UsageError, cause
from penult.memory import check_unpacked

FORMAT, KIND, SUFFIX = 1, "penult novelty detector", ".npz"
_ARRAYS = ("vectors", "folds", "held", "space")


@dataclass(frozen=True)
class Detector:
    """The normal rows, and what scores others by them.

    method: knn, csls or mahalanobis. vectors: (n, d) raw. folds: (n,) of which a row does not
    score another. held: (n,) scores by the other folds. keys: of the normal rows. groups: their
    names; None where none were given. way: how groups are named. fingerprint, model: of the
    embedder. window: of most rows, in seconds (texts: tokens); None where items are whole.
    about: what it was made with: `normal`, `space`, `seed`, `auroc`.
    """

    method: str
    vectors: npt.NDArray[np.float32]
    folds: npt.NDArray[np.int64]
    held: npt.NDArray[np.float64]
    keys: tuple[Key, ...]
    groups: tuple[str, ...] | None
    way: str | None
    space: Space
    fingerprint: Mapping[str, str]
    model: Mapping[str, Any]
    window: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def check_embedder(self, path: Path, manifest: Manifest) -> None:
        """Refuse a collection of another embedder.

        Raises:
            FingerprintMismatch: with what differs.
        """
        own = Manifest(self.fingerprint, self.vectors.shape[1], 0, self.model)
        ours, theirs = fingerprint_in(own), fingerprint_in(manifest)
        found = compare(ours, theirs, "the detector has", "the collection")
        if found.refused or own.dim != manifest.dim:
            raise FingerprintMismatch(
                f"the detector was made with another embedder than {path} holds vectors of: "
                + (found.words or f"{own.dim} numbers a vector, not {manifest.dim}")
                + "; make one of this collection: penult novelty COLLECTION --normal WHERE --save"
            )

    def other_lengths(self, window: float | None) -> str:
        """In words that most rows of a collection are of another length; empty where they are
        not. window: of theirs."""
        if window == self.window:
            return ""
        unit = "tokens" if self.model.get("modality") == "text" else "s"
        own, theirs = (
            f"windows of {one:g} {unit}" if one else "whole items" for one in (self.window, window)
        )
        return f"the detector was made for {own}, and most rows here are {theirs}"


def write(path: str | os.PathLike[str], detector: Detector) -> Path:
    """Write the file, aside first.

    Raises:
        UsageError: a name that does not end in .npz. StoreError: it cannot be written.
    """
    target = check_suffix(user_path(path))
    about = {
        "format": FORMAT,
        "kind": KIND,
        "method": detector.method,
        "keys": [list(key) for key in detector.keys],
        "groups": detector.groups,
        "way": detector.way,
        "fingerprint": dict(detector.fingerprint),
        "model": dict(detector.model),
        "window": detector.window,
        "about": dict(detector.about),
    }
    parts = {
        "about": _bytes(json.dumps(about).encode()),
        "vectors": detector.vectors.astype("<f4"),
        "folds": detector.folds.astype("<i8"),
        "held": detector.held.astype("<f8"),
        "space": _bytes(detector.space.to_bytes()),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **parts, hash=np.array(_hash_of(parts)))
    return write_file(target, [buffer.getvalue()])


def check_suffix(path: Path) -> Path:
    """The path of a detector.

    Raises:
        UsageError: it does not end in .npz.
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"a detector is saved as {SUFFIX}: {path.name}{SUFFIX} works")
    return path


def read(path: str | os.PathLike[str]) -> Detector:
    """The detector of a file of `write`.

    Raises:
        UsageError: there is no such file, or it is no detector.
    """
    source = user_path(path)
    try:
        if source.is_file() and not is_zipfile(source):
            raise ValueError("it is no npz archive")
        check_unpacked(source)
        with np.load(source, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about.get("kind") != KIND:
                raise ValueError(f"its kind is {about.get('kind')!r}")
            if about["format"] <= FORMAT:
                if str(file["hash"]) != _hash_of(file):
                    raise ValueError("it is not as it was saved")
                return _checked(about, file)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no file {source}; penult novelty COLLECTION --normal WHERE --save {source} "
            "makes one"
        ) from error
    except Exception as error:  # whatever a broken file makes of zip, numpy and JSON
        raise UsageError(f"{source} is no saved detector: {cause(error)}") from error
    raise UsageError(
        f"{source} has format {about['format']}, this Penult reads up to {FORMAT}: upgrade penult"
    )


def _checked(about: Mapping[str, Any], file: Mapping[str, Any]) -> Detector:
    vectors, folds = np.asarray(file["vectors"], np.float32), np.asarray(file["folds"], np.int64)
    held, space = np.asarray(file["held"], np.float64), Space.from_bytes(file["space"].tobytes())
    keys = tuple((str(id), str(region)) for id, region in about["keys"])
    groups = about["groups"]
    n = len(keys)
    if vectors.shape != (n, space.dim) or folds.shape != (n,) or held.shape != (n,):
        raise ValueError(f"arrays of shape {vectors.shape} and {held.shape} for {n} normal rows")
    if not (np.isfinite(vectors).all() and np.isfinite(held).all()):
        raise ValueError("values that are not finite")
    if about["method"] not in METHODS or (groups is not None and len(groups) != n):
        raise ValueError(f"the method {about['method']!r}, and groups that do not fit {n} rows")
    return Detector(
        about["method"], vectors, folds, held, keys,
        None if groups is None else tuple(map(str, groups)), about["way"], space,
        dict(about["fingerprint"]), dict(about["model"]), about["window"], dict(about["about"]),
    )  # fmt: skip


def _hash_of(parts: Mapping[str, Any]) -> str:
    found = hashlib.sha256(np.asarray(parts["about"]).tobytes())
    for name in _ARRAYS:
        values = np.asarray(parts[name])
        found.update(f"{name} {values.dtype} {values.shape} ".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def _bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)
