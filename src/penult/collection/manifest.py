"""A collection's folder: what it is, and its manifest. Knows nothing of the tables in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from penult.data import documents
from penult.data.files import file_aside
from penult.data.items import is_object
from penult.data.places import place_of
from penult.data.roots import Root
from penult.embedding.fingerprint import (
    Behaviour,
    Comparison,
    Fingerprint,
    compare,
    renamed,
)
from penult.errors import (
    CollectionError,
    FingerprintMismatch,
    StoreError,
    cause,
)
from penult.models.base import digest, distinct

FORMAT = 2  # the newest; of collections without roots it is 1, which version 0.1.0 reads
MANIFEST = "collection.json"
LOCK = "writer.lock"
HOLDER = "writer.json"  # of earlier versions: who has the lock
WRITERS = "writers"  # a folder: who writes, see `penult.collection.access`
Mark = tuple[int, int]
_MOST = 2**31  # numbers of a list in a row, in Arrow


@dataclass(frozen=True)
class Manifest:
    """What all vectors of a collection share.

    `fingerprint` maps each field to its value; `model` is what opens the embedder again (spec,
    revision, tap, pooling …), with `code`, hashes of the user's own files, and `behaviour`, what it
    gives for made-up items; `engine` and `precision` are those of the first run. `roots` are what
    ids begin with, by name, see `penult.data.roots`; None: ids are absolute paths.
    """

    fingerprint: Mapping[str, str]
    dim: int
    n_logits: int
    model: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    logits: str = "all"
    dtype: str = "float32"
    engine: str = ""
    precision: str = ""
    created: str = ""
    format: int = 1
    roots: Mapping[str, Root] | None = None

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class _ModelRecord:
    """Types of what `Manifest.model` may hold; each of them may be absent."""

    spec: str = ""
    tap: str = ""
    taps: list[dict[str, Any]] = field(default_factory=list)
    pooling: str = ""
    pool_over: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    modality: str = ""
    kind: str = ""
    scores: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    behaviour: dict[str, Any] | None = None
    code: dict[str, dict[str, str]] = field(default_factory=dict)


# The store's words for bytes that cannot be what was written; a decoder of it that stops (a panic)
# has met such bytes too.
_DAMAGED = re.compile(
    r"corrupt|panicked|Lance file|storage version|Protobuf|PageLayout|ColumnEncoding", re.IGNORECASE
)
_PANICS = ("RustPanic", "PanicException")  # the latter is no Exception


def is_damage(error: BaseException, where: str = "") -> bool:
    """Whether the store says that it has met a damaged file. where: a filter, whose own words say
    nothing of it; nor do the columns that the store lists."""
    if type(error).__name__ in _PANICS:
        return True
    words = _DAMAGED.findall(re.sub(r"Valid fields are .*", "", str(error), flags=re.DOTALL))
    return any(word.lower() not in where.lower() for word in words)


@contextlib.contextmanager
def panics_caught() -> Iterator[None]:
    """A decoder of the store that stops raises RuntimeError, as one that refuses does."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ in _PANICS:
            raise RuntimeError(f"a decoder panicked: {error}") from error
        raise


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Translates what the operating system or the store refuses into StoreError; lets all else
    pass.

    LanceDB raises RuntimeError for it, Lance OSError or ValueError, with the reason in its text
    only; a decoder that stops raises what is no Exception.
    """
    try:
        yield
    except BaseException as error:
        is_refusal = isinstance(error, OSError | RuntimeError | ValueError)
        if (is_refusal or type(error).__name__ in _PANICS) and (words := _refusal(path, error)):
            if is_object(path):
                raise StoreError(_QUERY.sub("?…", words)) from None
            raise StoreError(words) from error
        raise


_QUERY = re.compile(r"\?[^\s)\"']+")  # of an address: some stores have a signature in it


def require_disk(path: Path, what: str) -> None:
    """Refuse what only a folder of this machine can be used for.

    Raises:
        StoreError: the collection is in an object store.
    """
    if is_object(path):
        raise StoreError(
            f"{what} works on a collection on a disk, and {place_of(path)} is in an object store: "
            "copy it to a disk, and give its folder"
        )


def _refusal(path: Path, error: BaseException) -> str:
    """An error of the system or the store in words; empty for all else."""
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{path}: {error.object!r} is not UTF-8, and the tables of a collection hold and "
            "name nothing else; use another name"
        )
    text = str(error)
    if code := re.search(r"\(os error (\d+)\)", text):
        return f"{path}: {os.strerror(int(code[1]))}"
    if isinstance(error, OSError):
        # Arrow puts all of it into strerror.
        return f"{path}: {cause(Exception(error.strerror or error))}"
    if ("LanceError(IO)" in text or "lance error" in text) and "Not found" in text:
        return (
            f"{path}: a file of the collection is gone. Either it was damaged, or the reading "
            "took so long that a writer has cleaned up meanwhile; in this case read it again. "
            f"penult repair {path} says what is whole, and restores that"
        )
    if "Incompatible transaction" in text and "Restore" in text:  # a fence, see `leases`
        return (
            f"{path} was taken by another writer while this one stood still; start the run again, "
            "it goes on where this one ended"
        )
    if "Failed to parse path" in text:
        return f"{path} is no path for a collection: {cause(error)}"
    if "LanceError" in text or text.startswith("lance error") or is_damage(error):
        return (
            f"{path} cannot be read: a file in it is damaged ({cause(error)}). "
            f"penult repair {path} says what is whole, and restores that"
        )
    if _is_raised_by_store(error):
        return (
            f"{path}: the store fails ({cause(error)}): a file in it is damaged, or it was asked "
            f"for what it cannot do, a fault of Penult. penult repair {path} says which"
        )
    return ""


def _is_raised_by_store(error: BaseException) -> bool:
    """Whether it comes out of Lance or LanceDB, and not out of what was done between two calls."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    name = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    return name.partition(".")[0] in ("lance", "lancedb")


def exists(path: Path) -> bool:
    """Whether the folder is a collection. A killed creation leaves none.

    Raises:
        CollectionError: the path is something else.
    """
    if (path / MANIFEST).is_file():
        return True
    _check_free(path)
    return False


def _check_free(path: Path) -> None:
    """Refuses what is there and can become no collection.

    Raises:
        CollectionError: a file, or a folder with other things in it.
    """
    with store_errors(path):
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            if path.exists() and not path.is_dir():  # which another process may have made by now
                raise CollectionError(f"{path} is a file; a collection is a folder") from None
            return
    if MANIFEST in names:  # by now
        return
    # The manifest is written first, so nothing but these can come from us before it is there.
    own = (LOCK, HOLDER, WRITERS, MANIFEST, f".{HOLDER}-", f".{MANIFEST}-")
    foreign = [name for name in names if not name.startswith(own)]
    if foreign:
        kind = "a LanceDB folder without" if foreign[0].endswith(".lance") else "a folder without"
        raise CollectionError(
            f"{path} is not a collection but {kind} {MANIFEST}; it holds {len(foreign)} other "
            f"entries, such as {foreign[0]!r}. Give a new or empty folder, or a collection"
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest of an existing collection.

    Raises:
        CollectionError: damaged, or written by a newer Penult.
    """
    with store_errors(path / MANIFEST):
        content = (path / MANIFEST).read_bytes()
    try:
        values = documents.parse(content, dict[str, Any])
        version = values.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise CollectionError(
                f"{path} has format {version}, this Penult reads up to {FORMAT}: upgrade penult"
            )
        _check_hash(path, values)
        manifest = documents.check(values, Manifest)
        documents.check(manifest.model, _ModelRecord)
        if not (0 < manifest.dim < _MOST and 0 <= manifest.n_logits < _MOST):
            raise ValueError(f"{manifest.dim} numbers and {manifest.n_logits} logits in a row")
        if manifest.format < 1:
            raise ValueError(f"format {manifest.format}")
    except ValueError as error:
        raise CollectionError(f"{path / MANIFEST} is damaged: {cause(error)}") from error
    return replace(manifest, labels=distinct(manifest.labels))


def mark(path: Path) -> Mark | None:
    """What tells a collection from another one that was made at the same place later; None where
    there is none.

    Raises:
        CollectionError: the path is something else.
    """
    with store_errors(path / MANIFEST):
        try:
            status = (path / MANIFEST).stat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
    if status is None:
        _check_free(path)
        return None
    return status.st_ino, status.st_mtime_ns


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of a new collection in one step; gives it with its date."""
    created = manifest.created or now().isoformat(timespec="seconds")
    manifest = replace(manifest, created=created, format=1 if manifest.roots is None else FORMAT)
    document = json.loads(json.dumps(asdict(manifest)))
    if manifest.roots is None:
        del document["roots"]
    document["model"][HASH] = digest(document)
    write_aside(path / MANIFEST, json.dumps(document, ensure_ascii=False, indent=1))
    return manifest


def _check_hash(path: Path, values: dict[str, Any]) -> None:
    """Say once that a manifest was changed by something else; take its own hash out of it."""
    seal = values["model"].pop(HASH, None) if isinstance(values.get("model"), dict) else None
    found = digest(values)
    if seal not in (None, found) and (path, found) not in _TOLD:
        _TOLD.add((path, found))
        log.warning(
            "%s is not as Penult wrote it: it was damaged, or changed by hand. Its vectors are "
            "compared with the embedder as always; class names and settings are taken as they "
            "stand. penult migrate %s checks it and writes it anew",
            path / MANIFEST,
            path,
        )


def hash_written(path: Path) -> bool:
    """Whether the manifest carries a hash, and has it."""
    with store_errors(path / MANIFEST):
        values = json.loads((path / MANIFEST).read_text("utf-8"))
    model = values.get("model")
    seal = model.pop(HASH, None) if isinstance(model, dict) else None
    return bool(seal == digest(values))


HISTORY = "history"  # in `model`: the fingerprints before, of the oldest first
HASH = "hash"  # of the manifest, in `model`, where 0.1.0 lets it be
_TOLD: set[tuple[Path, str]] = set()
log = logging.getLogger(__name__)


def write_aside(path: Path, text: str) -> None:
    """Writes a file such that a kill leaves the old one or the new one, never a part."""
    with store_errors(path):
        if is_object(path):
            path.put_text(text)  # type: ignore[attr-defined]
            return
        with file_aside(path) as aside:
            aside.write_text(text, "utf-8")


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


_NEXT = timedelta(microseconds=1)  # what the tables keep of a time


class Clock:
    """Times that only go on, also where the computer's clock is set back meanwhile, or was ahead
    when the times `after` which these come were written."""

    def __init__(self, after: Iterable[datetime | None] = ()) -> None:
        self._start = max([now(), *(moment + _NEXT for moment in after if moment is not None)])
        self._began = time.monotonic()
        self._last = self._start - _NEXT

    def now(self) -> datetime:
        """The time, later than every one before."""
        passed = timedelta(seconds=time.monotonic() - self._began)
        self._last = max(self._start + passed, self._last + _NEXT)
        return self._last


def check_same(path: Path, ours: Manifest, theirs: Manifest) -> None:
    """Refuses a writer whose vectors or columns would not fit the collection's, by their hashes.

    Raises:
        FingerprintMismatch: another embedder; names every field that differs.
        CollectionError: the same embedder, but other logits, number type or class names.
    """
    one, other = (fingerprint_in(side).without_behaviour for side in (ours, theirs))
    require_comparable(path, ours, compare(one, other))
    require_same_shape(path, ours, theirs)


def require_same_shape(path: Path, ours: Manifest, theirs: Manifest) -> None:
    """Refuses other columns.

    Raises:
        CollectionError: other widths, logits, number type or class names.
    """
    for name in ("dim", "n_logits", "logits", "dtype"):
        old, new = getattr(ours, name), getattr(theirs, name)
        if old != new:
            raise CollectionError(
                f"{path} was made with {name} = {old}, now {name} = {new} is asked for; "
                "use the former, or another folder"
            )
    if differs := renamed(ours.labels, theirs.labels):
        raise CollectionError(
            f"{path} was made with other class names: {differs}. Its rows carry those names in the "
            "column label, so that one name would stand for two classes: give the same names "
            "(--class-names FILE), or another folder"
        )


def fingerprint_in(manifest: Manifest) -> Fingerprint:
    """The fingerprint that a manifest holds."""
    model = manifest.model
    measured = Behaviour.from_dict(model.get("behaviour"))
    former: list[str] = []
    for one in model.get(HISTORY) or ():
        with contextlib.suppress(KeyError, TypeError):
            former += [one["id"], digest(dict(one["fingerprint"]))]
    return Fingerprint(manifest.fingerprint, model.get("code") or {}, measured, former)


def require_comparable(path: Path, ours: Manifest, found: Comparison) -> None:
    """Refuse another embedder.

    Raises:
        FingerprintMismatch: names every difference.
    """
    if found.refused:
        raise FingerprintMismatch(
            f"{path} holds vectors of another embedder; new ones could not be compared to them:\n"
            + "\n".join(found.refused)
            + f"\nUse the collection's own embedder ({ours.model.get('spec', 'see its manifest')})"
            ", begin another collection: --into another.lance, or embed the items of this one "
            f"anew: penult embed MODEL --like {path} --into another.lance. If only a library has "
            f"another version, penult migrate {path} measures it on the collection's own rows"
        )


def require_one_embedder(path: Path, ours: Manifest, other: Path, theirs: Manifest) -> None:
    """Refuse two collections of different embedders.

    Raises:
        FingerprintMismatch: names every difference.
    """
    found = compare(fingerprint_in(ours), fingerprint_in(theirs), f"{path} has", f"{other}")
    if found.refused:
        raise FingerprintMismatch(
            f"{other} and {path} hold vectors of different embedders, which cannot be "
            "compared:\n" + "\n".join(found.refused) + "\nEmbed the items of one of them anew: "
            f"penult embed MODEL --like {other} --into another.lance"
        )
    for note in found.notes:
        log.warning("%s and %s: %s", other, path, note)


# What an earlier version, or another state of the same embedder, may not have written down.
LATER = ("code", "behaviour")


def completed(ours: Manifest, theirs: Manifest) -> Manifest:
    """Ours, with what it lacks and a comparable embedder has."""
    later = {name: theirs.model[name] for name in LATER if name in theirs.model}
    return replace(ours, model={**later, **ours.model}, labels=theirs.labels or ours.labels)
