"""Roots of a collection: those of a run, and their new places, known by the files there."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from penult.collection import repair, schema
from penult.collection.access import locked
from penult.collection.forgetting import complete
from penult.collection.reader import Reader
from penult.collection.renaming import Renaming, rename
from penult.data.files import user_path
from penult.data.items import absolute, as_id, path_of
from penult.data.roots import AskedRoot, Root, RootOptions, Roots, folders_of
from penult.data.tables import PATH
from penult.errors import CollectionError, UsageError

SAMPLE = 20  # files that tell whether a folder is the new place of a root
_ROWS = 8192


@dataclass(slots=True)
class PlaceCheck:
    """Files of a root that were looked for at another place: as they are stored, others, missing.
    first: of the latter two, some names."""

    files: int = 0
    checked: int = 0
    same: int = 0
    differ: int = 0
    missing: int = 0
    first: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether the files there are those of the root; some may have been deleted."""
        return self.same > self.missing and not self.differ

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class PlannedRoots:
    """The roots of a run. renamed: what ids begin with of files that a new root holds, before and
    after. found: roots that were found at another place, in words."""

    roots: Roots
    renamed: list[tuple[str, str]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def plan_roots(
    reader: Reader,
    paths: Sequence[str],
    asked: RootOptions = RootOptions(),
    like: Reader | None = None,
) -> PlannedRoots:
    """The roots that a run over these folders, tables and files (absolute) has. like: of a new
    collection, whose items it takes.

    Raises:
        UsageError: roots where ids are absolute paths, or the reverse; names that are taken.
    """
    manifest = reader.manifest
    has_rows = manifest is not None and reader.count_rows() > 0
    if has_rows and manifest is not None and (manifest.roots is None or asked.absolute):
        _check_kind(reader, manifest.roots is not None, asked)
        return PlannedRoots(Roots())
    if asked.absolute:
        return PlannedRoots(Roots())
    own = (manifest.roots if manifest is not None else None) or {}
    if like is not None and not has_rows and not own:
        own = {name: Root.at(like.roots.place(name), reader.path) for name in like.roots.roots}
    planned = PlannedRoots(Roots(own, reader.path))
    for one in asked.roots:
        _add_asked(planned, one.place, one.name)
    for folder in sorted(folders_of(paths), key=lambda one: len(one.parts)):
        if planned.roots.within(folder) is None and not _find_again(reader, planned, folder):
            _add(planned, folder)
    return planned


def _check_kind(reader: Reader, has_roots: bool, asked: RootOptions) -> None:
    if has_roots:
        raise UsageError(
            f"ids of {reader.path} begin with roots ({', '.join(reader.roots.roots)}), so that "
            "--absolute-ids would name the same files anew; leave it out, or begin another "
            "collection"
        )
    if asked.roots:
        raise UsageError(
            f"ids of {reader.path} are absolute paths, so that --root would name the same files "
            f"anew: penult migrate {reader.path} --root {asked.roots[0].place} brings them to roots"
        )


def _add_asked(planned: PlannedRoots, place: Path, name: str) -> None:
    roots = planned.roots
    inside = roots.within(place)
    if inside is None or (name and inside != name and name not in roots.roots):
        if inside is not None:
            raise UsageError(f"--root {name}={place}: that folder is {inside!r} here already")
        _add(planned, place, name)
    elif name and inside != name:
        roots.free_name(place, name)  # says that it is taken


def _add(planned: PlannedRoots, place: Path, name: str = "") -> None:
    name = planned.roots.free_name(place, name)
    planned.roots = planned.roots.with_root(name, place)
    planned.renamed.append((as_id(place).rstrip("/") + "/", f"{name}/"))


def _find_again(reader: Reader, planned: PlannedRoots, folder: Path) -> bool:
    """Whether a folder is in a root whose place is lost, by its name and the files there; then that
    is its new place."""
    for name in planned.roots.roots:
        lost = planned.roots.place(name)
        if lost.exists():
            continue
        for place in (folder, *folder.parents):
            if place.name == lost.name and check_place(reader, name, place).is_same:
                planned.roots = planned.roots.with_root(name, place)
                planned.found.append(f"root {name}: {lost} → {place}, where its files are now")
                return True
    return False


@dataclass(slots=True)
class Alignment:
    """How ids of one collection are called in another one. roots: of that one, with those that it
    lacked. renaming: from ids here to ids there; own: of ids there that are in a new root. told:
    what was taken for granted, in words."""

    roots: Roots
    renaming: Renaming
    own: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def align(source: Reader, target: Roots) -> Alignment:
    """The roots of a collection among those of another one: one of equal place is the same; one of
    equal name is so where its files are found there, by a sample; else it gets another name."""
    prefixes = [(f"{as_id(target.place(name)).rstrip('/')}/", f"{name}/") for name in target.roots]
    did = Alignment(target, Renaming())
    for name in source.roots.roots:
        place = source.roots.place(name)
        there = did.roots.within(place)
        if there is None and _is_found(source, name, did.roots):
            there = name
            did.told.append(
                f"root {name} of {source.path} is at {place}; its files are found at "
                f"{did.roots.place(name)} too"
            )
        if there is None:
            there = did.roots.free_name(place, _if_free(did.roots, name))
            did.roots = did.roots.with_root(there, place)
            did.own.append((as_id(place).rstrip("/") + "/", f"{there}/"))
            if there != name:
                did.told.append(f"root {name} of {source.path} is called {there} here")
        if there != name:
            prefixes.append((f"{name}/", f"{there}/"))
    did.renaming = Renaming(prefixes)
    return did


def _is_found(source: Reader, name: str, roots: Roots) -> bool:
    return name in roots.roots and check_place(source, name, roots.place(name)).is_same


def _if_free(roots: Roots, name: str) -> str:
    """The name, if a new root may have it; else nothing."""
    try:
        return roots.free_name(Path(os.sep), name)
    except UsageError:
        return ""


def check_place(
    reader: Reader, name: str, place: Path, sample: int | None = SAMPLE, by_hash: bool = False
) -> PlaceCheck:
    """Looks for the files of a root, or of all ids under an absolute folder, at another place.

    sample: how many, drawn by chance, the same ones each time; None for all. by_hash: read each of
    them, also where size and time are as they are stored.
    """
    stored = list(files_in(reader, name))
    did = PlaceCheck(len(stored))
    if sample is not None and len(stored) > sample:
        stored = random.Random(0).sample(stored, sample)  # noqa: S311
    for rest, size, mtime, content in stored:
        did.checked += 1
        path = path_of(f"{as_id(place).rstrip('/')}/{rest}")
        verdict = _compared(path, size, mtime, content, by_hash)
        setattr(did, verdict, getattr(did, verdict) + 1)
        if verdict != "same" and len(did.first) < 5:
            did.first.append(rest)
    return did


def _compared(path: Path, size: int, mtime: int | None, content: str | None, by_hash: bool) -> str:
    try:
        status = path.stat()
        if status.st_size != size:
            return "differ"
        if content is None or (status.st_mtime_ns == mtime and not by_hash):
            return "same"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return "missing"
    return "same" if found == content else "differ"


def files_in(reader: Reader, name: str) -> Iterator[tuple[str, int, int | None, str | None]]:
    """(path in the root, bytes, time in ns, hash) of each file of a root, or of a folder by its
    absolute path."""
    if not reader.count_rows():
        return
    begins = schema.quoted([f"{name.rstrip('/')}/"])
    columns = [
        n for n in ("id", PATH, "size", "mtime_ns", "content_hash") if n in reader.schema.names
    ]
    named = [one for one in ("id", PATH) if one in columns]
    where = " OR ".join(f"starts_with(`{one}`, {begins})" for one in named)
    seen: set[str] = set()
    for batch in reader.scan(columns, f"size IS NOT NULL AND ({where})", _ROWS):
        for row in batch.to_pylist():
            path = row.get(PATH) or row["id"]
            if path not in seen and path.startswith(f"{name.rstrip('/')}/"):
                seen.add(path)
                rest = path[len(name.rstrip("/")) + 1 :]
                yield rest, row["size"], row["mtime_ns"], row["content_hash"]


@dataclass(slots=True)
class RootMigration:
    """What a collection of absolute paths became. roots: their places by name; outside: rows of
    files that lie in none and keep their paths."""

    roots: dict[str, str]
    rows: int = 0
    labels: int = 0
    failures: int = 0
    outside: int = 0
    written: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def migrate_to_roots(
    reader: Reader, asked: Sequence[AskedRoot], *, dry: bool = False, wait: bool = False
) -> RootMigration:
    """Brings ids that are absolute paths to roots: in rows, marks, failures, clusters, maps and
    versions of classes. Nothing is embedded.

    asked: without any, the folders and tables of all runs.

    Raises:
        UsageError: a name that is taken, or no folder to begin with.
        CollectionLocked: another process is writing.
    """
    planned = PlannedRoots(reader.roots if reader.roots else Roots({}, reader.path))
    for one in asked:
        _add_asked(planned, one.place, one.name)
    for folder in () if asked else _folders_of_runs(reader):
        if planned.roots.within(folder) is None:
            _add(planned, folder)
    if not planned.roots:
        raise UsageError(
            f"no run of {reader.path} says which folder it was over: name it, --root DIR"
        )
    renaming = Renaming(planned.renamed, roots=planned.roots.settled)
    did = RootMigration({name: str(planned.roots.place(name)) for name in planned.roots.roots})
    columns = [name for name in ("id", PATH) if name in reader.schema.names]
    for batch in reader.scan(columns) if reader.count_rows() else ():
        for row in batch.to_pylist():
            path = row.get(PATH) or row["id"]
            did.rows += renaming(path) != path
            did.outside += renaming(path) == path and path.startswith("/")
    if dry:
        return did
    with locked(reader.path, "migrate", wait):
        repair.step_back(reader.path)
        complete(reader.path)
        changed = rename(reader.path, renaming)
        repair.keep_manifest(reader.path)
    did.labels, did.failures = changed.labels, changed.failures
    did.written = True
    return did


def _folders_of_runs(reader: Reader) -> list[Path]:
    """The folders that runs were over, outer ones first; those of tables and files that are gone by
    their endings."""
    runs = reader.side_table("runs")["info"].to_pylist()
    named = [one for text in runs for one in schema.run_info(reader.path, text).sources or ()]
    paths = [one for one in dict.fromkeys(named) if one.startswith("/")]
    gone = [str(path) for path in map(path_of, paths) if not path.exists() and not path.suffix]
    found = [*folders_of([one for one in paths if one not in gone]), *map(Path, gone)]
    return sorted(dict.fromkeys(found), key=lambda one: len(one.parts))


@dataclass(slots=True)
class Relocation:
    """A new place. root: its name; empty for ids that are absolute paths, which begin with the new
    place from then on. found: the files that were looked for there."""

    root: str
    old: str
    new: str
    found: PlaceCheck
    rows: int = 0
    written: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def relocate(
    reader: Reader,
    old: str,
    new: Path,
    sample: int | None = 100,
    *,
    dry: bool = False,
    wait: bool = False,
) -> Relocation:
    """Names the new place of a root, or of all ids below an absolute folder. Rows, marks and
    classes stay; nothing is embedded, and no file is moved.

    old: a root's name or its place, or the folder. sample: files that are looked for there and
    compared by their hash; None for all, 0 for none.

    Raises:
        UsageError: no such root and no row below it, or the new place is no folder.
        CollectionError: files there are others, or more than half of them are missing.
        CollectionLocked: another process is writing.
    """
    name = _root_named(reader, old)
    place = reader.roots.place(name) if name else absolute(user_path(old))
    did = Relocation(name, str(place), str(new), PlaceCheck())
    if not new.is_dir() and sample != 0:
        raise UsageError(f"{new} is no folder; --check none takes a disk that is not here")
    did.found = check_place(reader, name or as_id(place), new, sample, by_hash=True)
    if not did.found.files and not name:
        raise UsageError(
            f"{reader.path} has no root {old!r} and no row below such a folder; its roots: "
            f"{', '.join(reader.roots.roots) or 'none, ids are absolute paths'}"
        )
    taken = reader.roots.within(new)
    if taken is not None and taken != name and not taken.startswith(f"{name}/"):
        raise UsageError(f"{new} is {taken!r} of {reader.path} already: two roots would be one")
    if did.found.checked and not did.found.is_same:
        raise CollectionError(
            f"{new} is not where the files of {name or place} are: of {did.found.checked:,} looked "
            f"for, {did.found.same:,} are as they are stored, {did.found.differ:,} are others and "
            f"{did.found.missing:,} are missing ({', '.join(did.found.first)}); nothing is "
            "changed. --check none takes it all the same"
        )
    below = (as_id(new).rstrip("/") + "/", f"{name}/")
    prefixes = [below] if name else [(as_id(place).rstrip("/") + "/", below[0])]
    roots = reader.roots.with_root(name, new).roots if name else None
    if dry:
        return did
    with locked(reader.path, "relocate", wait):
        repair.step_back(reader.path)
        complete(reader.path)
        did.rows = rename(reader.path, Renaming(prefixes, roots=roots)).rows
        repair.keep_manifest(reader.path)
    did.written = True
    return did


def _root_named(reader: Reader, old: str) -> str:
    """The root of this name or place; empty where there is none."""
    if old.rstrip("/") in reader.roots.roots:
        return old.rstrip("/")
    place = absolute(user_path(old))
    return next((n for n in reader.roots.roots if reader.roots.place(n) == place
                 or path_of(reader.roots.roots[n].place) == place), "")  # fmt: skip
