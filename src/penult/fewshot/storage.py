"""Convert a class space to and from its saved form: one npz of plain arrays and one JSON text."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt

from penult.analysis.space import RAW, Space
from penult.collection.manifest import Manifest, fingerprint_in
from penult.collection.row_layout import RowLayout
from penult.collection.schema import Key
from penult.data.files import user_path, write_file
from penult.data.windows import Layout
from penult.errors import FingerprintMismatch, LabelsError, StoreError, UsageError, cause
from penult.fewshot.examples import Examples, checked_mark, checked_name
from penult.fewshot.versions import FileStore
from penult.memory import check_unpacked, free_memory
from penult.models.hub import fetch_classes, is_repository
from penult.models.trust import typed

FORMAT = 2  # 1 had no background, and no versions
SUFFIX = ".npz"
State = tuple[int, int, int]
Claims = Mapping[Key, Sequence[tuple[str, str]]]
_PART = "part:"  # how the names of parts of earlier versions begin


@dataclass(frozen=True)
class Saved:
    """The content of a class space's file. fingerprint, model: of the embedder of the vectors.
    settings: see `Settings`. groups: of each example. background: (m, d) raw vectors of other
    items, where thresholds need them. store: the versions, with those before. seconds: the
    lengths of examples that have one. claims: all marks (class, mark) of items that were marked
    differently in files that were merged, in their order: the first hold. rows: how files are
    read, as the rows of the collection, or as examples were read last. read: the file that it was
    read from, as that was before."""

    examples: Examples
    space: Space
    fingerprint: Mapping[str, str]
    model: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[str | None] | None = None
    background: npt.NDArray[np.float32] | None = None
    store: FileStore = field(default_factory=FileStore)
    seconds: Mapping[Key, float] = field(default_factory=dict)
    claims: Claims = field(default_factory=dict)
    rows: RowLayout = field(default_factory=RowLayout)
    read: tuple[Path, State] | None = field(default=None, compare=False)


def write(path: str | os.PathLike[str], saved: Saved) -> Path:
    """Write the file, aside first.

    Raises:
        LabelsError: a name that does not end in .npz.
        StoreError: it cannot be written.
    """
    target = check_suffix(user_path(path))
    examples = saved.examples
    entries, more = saved.store.entries()
    about: dict[str, Any] = {
        "format": FORMAT,
        "kind": "penult class space",
        "fingerprint": dict(saved.fingerprint),
        "model": dict(saved.model),
        "settings": dict(saved.settings),
        "examples": [
            {"id": id, "region": region, "marks": dict(marks)}
            | ({"seconds": saved.seconds[id, region]} if (id, region) in saved.seconds else {})
            for (id, region), marks in zip(examples.keys, examples.marks, strict=True)
        ],
        "groups": None if saved.groups is None else list(saved.groups),
        "versions": entries,
    }
    if saved.claims:
        about["claims"] = [[*key, [list(one) for one in of]] for key, of in saved.claims.items()]
    if saved.rows:
        about["rows"] = asdict(saved.rows)
    buffer = io.BytesIO()
    parts = {
        "about": _bytes(json.dumps(about).encode()),
        "vectors": examples.vectors.astype("<f4"),
        "space": _bytes(saved.space.to_bytes()),
        **{_PART + id: _bytes(data) for id, data in more.items()},
    }
    if saved.background is not None:
        parts["background"] = saved.background.astype("<f4")
    np.savez(buffer, **parts, hash=np.array(_hash_of(parts)))
    return write_file(target, [buffer.getvalue()])


def _hash_of(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of what a file holds and what it was made from, but for where that lies; 0.1.0
    wrote none."""
    about = {n: v for n, v in json.loads(bytes(parts["about"])).items() if n != "model"}
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    own = ("vectors", "space")
    more = [name for name in parts if name.startswith(_PART) or name == "background"]
    for name in (*own, *sorted(more)):
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


def state_of(path: str | os.PathLike[str]) -> State | None:
    """What is another one once somebody has written the file; None where there is none."""
    try:
        found = user_path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def check_unchanged(path: str | os.PathLike[str], read: State | None) -> None:
    """Refuse to write over what somebody else has written since the file was read, or looked for
    and not found (None).

    Raises:
        StoreError: somebody has.
    """
    if state_of(path) not in (None, read):
        raise StoreError(
            f"{path} was written by another process since it was read here, and nothing was "
            "changed: do it again, with what it holds now"
        )


def check_free(path: Path | None, overwrite: bool) -> None:
    """Refuse to write over a file.

    Raises:
        UsageError: it exists, and overwrite is not set.
    """
    if path is not None and not overwrite and user_path(path).exists():
        raise UsageError(f"{path} exists already; --overwrite replaces it")


def read(path: str | os.PathLike[str]) -> Saved:
    """The content of a file of `write`, or of one that was pushed to the hub
    (`owner/name[@revision]`).

    Raises:
        LabelsError: there is no such file, or it is no class space.
        StoreError: it is one, and damaged; with what of it is whole.
    """
    source = _located(path)
    state = state_of(source)  # before it is read
    try:
        if source.is_file() and not is_zipfile(source):
            raise ValueError("it is no npz archive")
        check_unpacked(source)
        with np.load(source, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about.get("kind") == "penult taught value":
                raise ValueError(f"it holds the value {about['name']!r}, for penult predict")
            if about.get("kind") != "penult class space":
                raise ValueError(f"its kind is {about.get('kind')!r}")
            if about["format"] <= FORMAT:
                vectors = np.asarray(file["vectors"], np.float32)
                found = _checked(about, vectors, Space.from_bytes(file["space"].tobytes()))
                found = replace(found, **_later(about, file, found.space.dim))
                if "hash" in file and str(file["hash"]) != _hash_of(file):
                    raise ValueError("it is not as it was saved")
                return found if state is None else replace(found, read=(source.resolve(), state))
    except FileNotFoundError as error:
        raise LabelsError(
            f"there is no file {source}; penult classes COLLECTION --save {source} makes one, and "
            f"penult teach {source} CLASS EXAMPLES… --model MODEL begins one"
        ) from error
    except Exception as error:  # whatever a broken file makes of zip, numpy and JSON
        if (whole := read_damaged(source)) is not None:
            raise StoreError(f"{source} is damaged: {whole[1]}") from error
        raise LabelsError(f"{source} is no saved class space: {cause(error)}") from error
    raise LabelsError(
        f"{source} has format {about['format']}, this Penult reads up to {FORMAT}: upgrade penult"
    )


def _located(path: str | os.PathLike[str]) -> Path:
    """The file, fetched if it is on the hub."""
    name = os.fspath(path)
    if not isinstance(name, str) or not is_repository(name):
        return user_path(path)
    typed(name)
    return fetch_classes(name)


_NAMES = {"about": "its text", "vectors": "the vectors of its examples", "space": "its space",
          "background": "its background", "hash": "its hash"}  # fmt: skip
_HEADER = struct.Struct("<4s5H3L2H")  # of a member of a zip archive
_LARGE = 0xFFFFFFFF  # a size that stands in the extra field instead


def read_damaged(path: Path) -> tuple[Saved, str] | None:
    """(What is whole of a damaged file, in words what is not and what would work); None where the
    bytes are as they were written, or nothing tells what they were. Of examples whose vectors are
    damaged the marks alone are left, with vectors of no numbers.
    """
    try:
        data = b"" if 2 * path.stat().st_size > free_memory() else path.read_bytes()
        parts, damaged = _members(data)
        about = json.loads(bytes(parts["about"]))
        if about["kind"] != "penult class space" or about["format"] > FORMAT:
            return None
        damaged += [name for name in _NAMES if name not in (*parts, *damaged, "background")]
        rows, vectors = about["examples"], parts.get("vectors", np.zeros((0, 0)))
        lost = len(vectors) != len(rows) or not np.isfinite(vectors).all()
        kept = np.zeros((len(rows), 0)) if lost else vectors
        saved = _checked(about, kept.astype(np.float32), Space(RAW, kept.shape[1]))
        if not damaged and str(parts["hash"]) != _hash_of(parts):
            return None  # it was written so
    except Exception:  # whatever a broken file makes of numpy and JSON
        return None
    named = dict.fromkeys(_NAMES.get(name, "its history") for name in damaged)
    cut = ", which embeds their recordings anew (--audio FOLDER: where they are)" if lost else ""
    rest = f"The marks of its {len(rows)} examples" if lost else \
        f"Its {len(rows)} examples, with marks and vectors,"  # fmt: skip
    return saved, (
        f"{', '.join(named) or 'its list of parts'} cannot be read. {rest} are whole: penult "
        f"teach NEW.npz --from class {path} --model MODEL makes a file of them{cut}, without "
        "settings and history; or take a copy of the file"
    )


def _members(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """(The arrays of an npz whose bytes are whole, the names of others) by the header in front of
    each, since a file that was cut off has lost the list at its end."""
    found: dict[str, Any] = {}
    damaged, at = [], data.find(b"PK\x03\x04")
    while at >= 0 and at + _HEADER.size <= len(data):
        _, _, _, method, _, _, crc, size, _, name_size, extra_size = _HEADER.unpack_from(data, at)
        start = at + _HEADER.size + name_size + extra_size
        name = data[at + _HEADER.size : start - extra_size].decode(errors="replace")
        extra = data[start - extra_size : start]
        if size == _LARGE and len(extra) >= 20:  # id and length, then the size unpacked and packed
            size = int.from_bytes(extra[12:20], "little")
        content, name = data[start : start + size], name.removesuffix(".npy")
        if not method and len(content) == size and zlib.crc32(content) == crc:
            found[name] = np.load(io.BytesIO(content), allow_pickle=False)
            at = data.find(b"PK\x03\x04", start + size)
        else:  # a space is an archive itself: its own headers are none of these
            damaged += [name] if name in _NAMES or name.startswith(_PART) else []
            end = start + size if data[start + size : start + size + 2] == b"PK" else at + 4
            at = data.find(b"PK\x03\x04", end)
    return found, damaged


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


def _later(about: Mapping[str, Any], file: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """What format 1 had not."""
    named = {name for name in file if name.startswith(_PART)}
    parts = {name.removeprefix(_PART): np.asarray(file[name]).tobytes() for name in named}
    background = np.asarray(file["background"], np.float32) if "background" in file else None
    if background is not None and (background.ndim != 2 or background.shape[1] != dim
                                   or not np.isfinite(background).all()):  # fmt: skip
        raise ValueError(f"a background of shape {background.shape}")
    entries = [(str(id), str(text)) for id, text in about.get("versions") or ()]
    seconds = {(str(one["id"]), str(one["region"])): float(one["seconds"])
               for one in about["examples"] if one.get("seconds") is not None}  # fmt: skip
    claims = {(str(id), str(region)): [(str(name), checked_mark(mark)) for name, mark in of]
              for id, region, of in about.get("claims") or ()}  # fmt: skip
    rows = about.get("rows") or {}
    read = RowLayout(Layout(**rows.get("layout", {})), rows.get("channel"))
    return {"background": background, "store": FileStore(entries, parts), "seconds": seconds,
            "claims": claims, "rows": read}  # fmt: skip


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


def manifest_of(saved: Saved) -> Manifest:
    """What all vectors of a file share."""
    examples = saved.examples
    return Manifest(saved.fingerprint, examples.dim, len(examples.names), saved.model)
