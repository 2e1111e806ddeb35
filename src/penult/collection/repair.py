"""Versions of a collection's tables that are whole: found, stepped back to, restored.

LanceDB opens the newest version, torn or not; one that is filled with zeros it opens as an empty
table. Nothing is deleted here: what is torn is moved into a folder beside the tables.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from penult.collection import journal
from penult.collection.access import locked
from penult.collection.journal import FOLDER, TABLE, VERSIONS, Journal, Sum, Synced
from penult.collection.manifest import (
    MANIFEST,
    now,
    panics_caught,
    read_manifest,
    require_disk,
    store_errors,
    write_aside,
)
from penult.data.files import file_aside, flush
from penult.data.items import is_object
from penult.errors import CollectionError, PenultError, StoreError, cause, listed

ASIDE = "torn"  # the folder that torn files are moved to
_PAGE = 4096  # bytes that a disk loses or keeps together
_AT_ONCE = 1024  # rows
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Version:
    """What a version of a table names. damaged: why, by file; fragments and indices that have such
    a file. rows: of all fragments; lost: of those that are damaged."""

    number: int
    rows: int
    damaged: dict[str, str] = field(default_factory=dict)
    fragments: dict[int, int] = field(default_factory=dict)
    indices: list[str] = field(default_factory=list)
    files: int = 0
    unknown: int = 0  # files without a checksum
    copy: Path | None = None  # of its own file, where that is torn

    @property
    def lost(self) -> int:
        """Rows of damaged fragments."""
        return sum(self.fragments.values())


def require_own(path: Path, data: Any) -> None:
    """Refuse a version of a table (Lance's own object) of which files lie in other folders or on
    other machines, as Lance allows: none of them has been read so far.

    Raises:
        StoreError: it has such files.
    """
    if places := [str(base.path) for base in data.base_paths().values()]:
        raise StoreError(
            f"{path}: files of a table of it lie in another place ({listed(places, 3)}), and "
            "nothing is read there: a collection is what lies in its folder. Whoever made it "
            "copies the table whole"
        )


def _opened(path: Path, table: Path, version: int | None = None) -> Any:
    import lance

    data = lance.dataset(str(table), version=version)
    require_own(path, data)
    return data


class Examination:
    """Looks at the versions of one table. deep: every byte, else what is there and how long."""

    def __init__(self, path: Path, name: str, deep: bool = False) -> None:
        self.path, self.name, self.deep = path, name, deep
        self.table = path / f"{name}{TABLE}"
        before = journal.read(path, name)
        self.known: dict[str, Sum] = {} if before is None else before.files
        self.found: dict[str, Sum] = {}  # checksums of files that had none
        # Since a file was written the machine has started again: its pages may be zeros.
        self._restarted = before is not None and not (before.boot and before.boot == journal.boot())
        self._verdicts: dict[str, str] = {}
        self._copies = journal.whole_copies(path, name, self.known) if deep else {}

    def versions(self) -> Iterator[Version]:
        """The versions that can be read, newest first."""
        for number in sorted({*journal.manifests(self.table), *self._copies}, reverse=True):
            if (version := self.version(number)) is not None:
                yield version

    def version(self, number: int) -> Version | None:
        """One version; None where its own file is torn and there is no copy of it."""
        file, copy, table = journal.manifests(self.table).get(number), None, self.table
        if file is None or self._verdict(f"{VERSIONS}/{file.name}", None):
            if (copy := self._copies.get(number)) is None:
                return None
            table = _view(self.path.absolute(), self.name, copy) / table.name
        try:
            with panics_caught():
                data = _opened(self.path, table, number)
                fragments = data.get_fragments()
                rows = int(data.count_rows())
                indices = data.list_indices()
        except (OSError, RuntimeError, ValueError, OverflowError):
            return None
        found = Version(number, rows, copy=copy)
        for fragment in fragments:
            self._take_fragment(found, fragment)
        for index in indices:
            self._take_index(found, str(index["name"]), f"_indices/{index['uuid']}")
        return found

    def _take_fragment(self, found: Version, fragment: Any) -> None:
        files = {f"data/{file.path}": file.file_size_bytes for file in fragment.data_files()}
        if (deletions := fragment.deletion_file()) is not None:
            files[deletions] = None
        bad = self._damaged(found, files)
        if not bad and self.deep and any(file not in self.known for file in files):
            try:
                with panics_caught():
                    _read_through(fragment)
            except (OSError, RuntimeError, ValueError) as error:
                bad = True
                found.damaged[next(iter(files))] = f"cannot be read: {cause(error)}"
        if bad:
            found.fragments[fragment.fragment_id] = _count(fragment)

    def _take_index(self, found: Version, name: str, folder: str) -> None:
        names = {entry.name for entry in _entries(self.table / folder)}
        names |= {file.rpartition("/")[2] for file in self.known if file.startswith(f"{folder}/")}
        if not names:
            found.damaged[folder] = "is gone"
        if not names or self._damaged(found, {f"{folder}/{one}": None for one in names}):
            found.indices.append(name)

    def _damaged(self, found: Version, files: dict[str, int | None]) -> bool:
        reasons = {file: self._verdict(file, size) for file, size in files.items()}
        found.files += len(files)
        found.unknown += sum(self.known.get(file, (0, None))[1] is None for file in files)
        found.damaged |= {file: reason for file, reason in reasons.items() if reason}
        return any(reasons.values())

    def _verdict(self, file: str, size: int | None) -> str:
        """What is wrong with a file; empty where nothing is."""
        if file not in self._verdicts:
            self._verdicts[file] = self._judged(file, size)
        return self._verdicts[file]

    def _judged(self, file: str, size: int | None) -> str:
        known, place = self.known.get(file), self.table / file
        if not _is_inside(file):
            return "is the name of a file elsewhere"
        try:
            there = place.stat().st_size
        except OSError as error:
            return "is gone" if isinstance(error, FileNotFoundError) else cause(error)
        expected = known[0] if size is None and known is not None else size
        if expected is not None and there != expected:
            return f"has {there:,} of its {expected:,} bytes"
        if not there:
            return "is empty"
        ends = file.endswith((".lance", ".manifest", ".idx"))
        if ends and not journal.is_closed(place):
            return "has no end"
        if known is None and self._restarted and _has_empty_page(place):
            return "has a part that was never written"
        if self.deep or (file.startswith(VERSIONS) and known is not None and known[1] is not None):
            return self._summed(file, None if known is None else known[1])
        return ""

    def _summed(self, file: str, expected: int | None) -> str:
        try:
            found = journal.sum_of(self.table / file)
        except OSError as error:
            return f"cannot be read: {cause(error)}"
        if expected is None:
            self.found[file] = found
        elif found[1] != expected:
            return "has other content than was written"
        return ""


def _is_inside(file: str) -> bool:
    """Whether a name that a version or a journal gives can be one of the table's own files."""
    return not Path(file).is_absolute() and not {"..", "."} & {*re.split(r"[\\/]", file)}


def _read_through(fragment: Any) -> None:
    """Not as a stream: of a damaged file its error may end the process, by a text with a zero."""
    count = int(fragment.count_rows())
    for start in range(0, count, _AT_ONCE):
        fragment.take(list(range(start, min(count, start + _AT_ONCE))))


def _count(fragment: Any) -> int:
    try:
        with panics_caught():
            return int(fragment.count_rows())
    except (OSError, RuntimeError, ValueError):  # its deletions cannot be read
        return int(fragment.physical_rows)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _has_empty_page(file: Path) -> bool:
    empty = bytes(_PAGE)
    with file.open("rb") as opened:
        return any(page == empty for page in iter(lambda: opened.read(_PAGE), b""))


# What was opened last of a table, and found whole: its version and the journal's.
_whole: dict[tuple[Path, str], tuple[int, Synced | None]] = {}


def is_whole(path: Path, name: str, version: int) -> bool:
    """Whether the version that LanceDB opens is the newest, and all that it names is there."""
    if is_object(path):  # where a file is there whole or not at all
        return True
    last = journal.last(path, name)
    if last is not None and version == last.version:
        return journal.is_as_flushed(path, name, last)
    if _whole.get((path, name)) == (version, last):
        return True
    examination = Examination(path, name)
    numbers = iter(journal.manifests(examination.table))
    newest = next(numbers, 0)
    # A writer may have committed meanwhile, and a version that was flushed may be gone.
    if version < newest or (last is not None and newest < last.version):
        return False
    found = examination.version(version)
    if found is None or found.damaged:
        return False
    _whole[path, name] = version, last
    return True


@dataclass(frozen=True, slots=True)
class Torn:
    """A table whose newest version is torn. version: the newest that is whole, and its rows; 0
    where the table was only being made, None where there is none."""

    name: str
    newest: int
    version: int | None
    rows: int
    reason: str

    @property
    def words(self) -> str:
        """In one sentence."""
        state = f"{self.name}: version {self.newest:,} is torn ({self.reason})"
        if self.version is None:
            return f"{state}, and no version is whole"
        if not self.version:
            return f"{state}; nothing of the table was on the disk yet"
        return f"{state}; the last whole one is {self.version:,}, with {self.rows:,} rows"


def torn(path: Path, name: str) -> Torn | None:
    """What is torn of a table, by what is there and how long it is; None where nothing is."""
    if is_object(path):
        return None
    examination = Examination(path, name)
    last = journal.last(path, name)  # first: others may commit meanwhile, and write it down
    newest = next(iter(journal.manifests(examination.table)), 0)
    reason = "its own file has no end"
    for found in examination.versions():
        if not found.damaged:
            if found.number < newest:
                return Torn(name, newest, found.number, found.rows, reason)
            if last is not None and newest < last.version:
                return Torn(name, last.version, newest, found.rows, "its own file is gone")
            return None
        if found.number == newest:
            file, what = next(iter(found.damaged.items()))
            reason = f"{file} {what}" + (
                f", {len(found.damaged):,} files in all" if len(found.damaged) > 1 else ""
            )
    if not newest and not _had_rows(path, name):
        return None
    whole = None if _was_on_disk(path, name) else 0
    return Torn(name, newest or (last.version if last else 0), whole, 0, reason)


def _was_on_disk(path: Path, name: str) -> bool:
    """Whether anything of a table without a whole version can have been there before a cut."""
    data, last = _entries(path / f"{name}{TABLE}" / "data"), journal.last(path, name)
    return (
        (last is not None and last.version > 0)
        or any(journal.is_closed(Path(entry.path)) for entry in data)
        or (name == "items" and _runs_wrote(path))
    )


def _had_rows(path: Path, name: str) -> bool:
    """Whether a table without any version ever had one."""
    last = journal.last(path, name)
    if (last is not None and last.version) or _entries(path / f"{name}{TABLE}" / "data"):
        return True
    return name == "items" and _runs_wrote(path)


def _runs_wrote(path: Path) -> bool:
    """Whether the runs of a collection say that they wrote rows."""
    if not journal.manifests(path / f"runs{TABLE}"):
        return False
    try:
        with panics_caught():
            runs = _opened(path, path / f"runs{TABLE}")
            return int(runs.count_rows("done > 0")) > 0
    except (OSError, RuntimeError, ValueError):
        return False


def require_never_written(path: Path, name: str) -> None:
    """Refuses a table without any version that had one: it would seem empty.

    Raises:
        StoreError: its versions are gone.
    """
    if _had_rows(path, name):
        raise StoreError(
            f"{path}: the table {name} was written, and the files of its versions "
            f"({name}{TABLE}/{VERSIONS}) are gone. penult repair {path} restores what can be; "
            "nothing of it is read as if it were empty"
        )


def stepped_back(path: Path, name: str) -> Any:
    """The last whole version of a table, to be read only; what is torn is left where it is. None
    where the table was only being made.

    Raises:
        StoreError: there is none.
    """
    found = torn(path, name)
    if found is None:  # a writer has committed between two looks
        return _connect(str(path.absolute())).open_table(name)
    _require_version(path, found)
    _say(path, found.words)
    if not found.version:
        return None
    if found.version == next(iter(journal.manifests(path / f"{name}{TABLE}")), 0):
        return _connect(str(path.absolute())).open_table(name)
    file = journal.manifests(path / f"{name}{TABLE}")[found.version]
    return _connect(str(_view(path.absolute(), name, file))).open_table(name)


def _require_version(path: Path, found: Torn) -> None:
    if found.version is None:
        raise StoreError(
            f"{path}: {found.words}. penult repair {path} restores what can be; a copy of the "
            "collection would be whole"
        )


def _connect(path: str) -> Any:
    import lancedb

    return lancedb.connect(path)


@lru_cache(maxsize=256)
def _say(path: Path, words: str) -> None:
    log.warning(
        "%s: %s, as after a power cut. penult repair %s sets aside what is torn", path, words, path
    )


@lru_cache(maxsize=32)
def _view(path: Path, name: str, version: Path) -> Path:
    """A folder elsewhere that has the version of this file only, and links to all other files."""
    place = Path(tempfile.mkdtemp(prefix="penult-view-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    table, own = path / f"{name}{TABLE}", place / f"{name}{TABLE}"
    (own / VERSIONS).mkdir(parents=True)
    for entry in _entries(table):
        if entry.name != VERSIONS:
            (own / entry.name).symlink_to(entry.path)
    shutil.copyfile(version, own / VERSIONS / version.name.removeprefix(f"{name}-"))
    return place


def step_back(path: Path, only: Sequence[str] | None = None) -> list[str]:
    """Before anything is written: sets aside what is torn of each table, such that the last whole
    version is the newest. Under the writer's lock. Gives what was done, in words.

    Raises:
        StoreError: a table has no whole version.
    """
    said, place = [], _new_place(path)
    for name in only or journal.tables(path):
        found = torn(path, name)
        if found is not None and _is_copied(path, name, place):
            found = torn(path, name)
        if found is None:
            # Older ones that are torn would stop every clean-up.
            if older := _without_end(path, name):
                set_aside(path, name, _NEWEST, older, place)
            continue
        _require_version(path, found)
        moved = set_aside(path, name, found.version or 0, _without_end(path, name), place)
        words = f"{found.words}" + (f". What is torn lies in {moved}" if moved else "")
        log.warning("%s: %s. The next run embeds the rest again", path, words)
        said.append(words)
    return said


def _is_copied(path: Path, name: str, place: Path) -> bool:
    """Puts back the file of the newest version that was on the disk, where there is a copy."""
    before, last = journal.read(path, name), journal.last(path, name)
    if before is None or last is None:
        return False
    newest = next(iter(journal.manifests(path / f"{name}{TABLE}")), 0)
    copy = journal.whole_copies(path, name, before.files).get(last.version)
    if copy is None or not newest or newest > last.version:  # a folder of none is no torn file
        return False
    with store_errors(path):
        _put_back(path, name, copy, place)
    log.warning(
        "%s: %s: the file of version %d is restored from its copy", path, name, last.version
    )
    return True


_NEWEST = 2**64  # above every version


def _without_end(path: Path, name: str) -> list[str]:
    """The files of a table's versions that are torn, by what is there of them."""
    files = journal.manifests(path / f"{name}{TABLE}").values()
    return [f"{VERSIONS}/{file.name}" for file in files if not journal.is_closed(file)]


def settle(path: Path, name: str) -> None:
    """As `step_back`, for one table, by somebody who does not have the lock."""
    journal.refuse_links(path)
    files, last = journal.manifests(path / f"{name}{TABLE}"), journal.last(path, name)
    newest = next(iter(files), 0)
    if (
        last is not None
        and 0 < last.version == newest
        and journal.is_closed(files[newest])
        and journal.is_as_flushed(path, name, last)
    ):
        return
    if torn(path, name) is not None:
        with locked(path, "repair"):
            step_back(path, [name])


def _new_place(path: Path) -> Path:
    return path / ASIDE / f"{now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def set_aside(
    path: Path, name: str, above: int, files: Sequence[str] = (), place: Path | None = None
) -> Path | None:
    """Moves the versions above one, and these files, out of a table; gives where to."""
    table, place = path / f"{name}{TABLE}", place or _new_place(path)
    moved = [file for number, file in journal.manifests(table).items() if number > above]
    moved += [table / file for file in files if _is_inside(file)]
    with store_errors(path):
        _move(path, moved, place)
        Journal(path).shorten(name)
    _whole.pop((path, name), None)
    return place if place.exists() else None


def _move(path: Path, files: Sequence[Path], place: Path) -> None:
    for file in files:
        if file.is_file():  # a folder that was named as gone may be there again by now
            target = place / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
            flush(target.parent)
            flush(file.parent)


def damage(path: Path) -> list[str]:
    """What is torn of a collection, in words; by what is there and how long it is."""
    found = (torn(path, name) for name in journal.tables(path))
    return [one.words for one in found if one is not None]


STATES = ("whole", "restored", "rows lost", "lost")


@dataclass(slots=True)
class TableRepair:
    """What a repair found and did, or would do, with one table. state: of STATES. version: the one
    that counts then, of those that were there, and its rows. lost: rows; None where the version
    that had them is torn. unknown: files without a checksum."""

    name: str
    state: str
    newest: int
    version: int | None
    rows: int
    lost: int | None = 0
    files: int = 0
    unknown: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    copy: str | None = None  # of the version's own file, which is put back
    fragments: list[int] = field(default_factory=list)
    indices: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Repair:
    """What a repair found and did, or would do. manifest: the state of collection.json."""

    path: Path
    done: bool
    manifest: str = "whole"
    tables: list[TableRepair] = field(default_factory=list)
    aside: Path | None = None  # where to what is torn was moved

    @property
    def is_whole(self) -> bool:
        """Whether nothing was damaged."""
        return all(state == "whole" for state in self._states)

    @property
    def is_lost(self) -> bool:
        """Whether something cannot be restored."""
        return "lost" in self._states

    @property
    def _states(self) -> list[str]:
        return [self.manifest, *(table.state for table in self.tables)]

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document."""
        return {
            "collection": str(self.path),
            "whole": self.is_whole,
            "repaired": self.done and not self.is_whole and not self.is_lost,
            "manifest": self.manifest,
            "tables": [asdict(table) for table in self.tables],
            "set_aside": None if self.aside is None else str(self.aside),
        }


def repair(path: Path, *, dry_run: bool = False, wait: bool = False) -> Repair:
    """Reads every file of a collection, and restores the last whole version of each table. Where
    an older version would have fewer rows than the newest one without its damaged parts, these go.

    Raises:
        CollectionError: there is no collection. CollectionLocked: another process writes.
    """
    require_disk(path, "penult repair")
    names = journal.tables(path) if path.is_dir() else []
    if "items" not in names and _had_rows(path, "items"):
        names.append("items")
    if not names and not (path / MANIFEST).exists():
        raise CollectionError(f"there is no collection at {path}")
    if dry_run:
        return _repair(path, names, False)
    with locked(path, "penult repair", wait):
        return _repair(path, names, True)


def _repair(path: Path, names: list[str], change: bool) -> Repair:
    with store_errors(path):
        place = _new_place(path) if change else None
        result = Repair(path, change, _repaired_manifest(path, place))
        for name in names:
            result.tables.append(_repaired_table(path, name, place))
        if place is not None:
            result.aside = place if place.exists() else None
            recorder = Journal(path)
            for table in result.tables:
                if table.state != "lost":
                    recorder.sync(table.name)
                    recorder.shorten(table.name)
            recorder.close()
    return result


def _repaired_manifest(path: Path, place: Path | None) -> str:
    try:
        if (path / MANIFEST).exists():
            read_manifest(path)
            return "whole"
    except PenultError:
        pass
    copy = path / FOLDER / MANIFEST
    try:
        text = copy.read_text("utf-8")
    except (OSError, ValueError):
        return "lost"
    if place is not None:
        if (path / MANIFEST).exists():
            place.mkdir(parents=True, exist_ok=True)
            (path / MANIFEST).rename(place / MANIFEST)
        write_aside(path / MANIFEST, text)
        read_manifest(path)
    return "restored"


def keep_manifest(path: Path) -> None:
    """Keeps a copy of collection.json beside the journal."""
    if is_object(path):
        return
    text, copy = (path / MANIFEST).read_text("utf-8"), path / FOLDER / MANIFEST
    copy.parent.mkdir(exist_ok=True)
    if not copy.exists() or copy.read_text("utf-8") != text:
        write_aside(copy, text)


def _repaired_table(path: Path, name: str, place: Path | None) -> TableRepair:
    """place: where to what is torn is moved; None changes nothing."""
    if not journal.manifests(path / f"{name}{TABLE}") and not _had_rows(path, name):
        return TableRepair(name, "whole", 0, None, 0)
    examination = Examination(path, name, deep=True)
    best = _plan(examination)
    if place is not None and best.version is not None and best.state != "whole":
        _carry_out(path, best, place)
    if place is not None and (older := _without_end(path, name)) and best.state != "lost":
        set_aside(path, name, _NEWEST, older, place)
    if place is not None and best.state == "whole":
        recorder = Journal(path)
        recorder.sync(name)
        recorder.note(name, examination.found)
    return best


def _plan(examination: Examination) -> TableRepair:
    files = journal.manifests(examination.table)
    last = journal.last(examination.path, examination.name)
    reached = max(next(iter(files), 0), last.version if last else 0)
    readable: Version | None = None
    whole: Version | None = None
    for found in examination.versions():
        readable = readable or found
        if not found.damaged:
            whole = found
            break
    plan = TableRepair(examination.name, "lost", reached, None, 0)
    torn_file = {f"{VERSIONS}/{next(iter(files.values())).name}": "is torn"} if files else {}
    if readable is None:
        plan.damaged, plan.lost = torn_file or {VERSIONS: "is gone"}, None
        if not _was_on_disk(examination.path, examination.name):
            plan.state, plan.version = "restored", 0
        return plan
    plan.files, plan.unknown, plan.damaged = readable.files, readable.unknown, readable.damaged
    if readable.number < reached or readable.copy is not None:
        plan.damaged = plan.damaged | (torn_file or {VERSIONS: "is gone"})
    kept = readable.rows - readable.lost
    if whole is not None and (whole is readable or (readable.fragments and whole.rows >= kept)):
        plan.version, plan.rows = whole.number, whole.rows
        plan.state = "whole" if whole.number == reached else "restored"
        plan.lost = 0 if whole is readable else max(0, readable.rows - whole.rows)
        best = whole
    else:
        best = readable
        plan.version, plan.rows, plan.lost = readable.number, kept, readable.lost
        plan.fragments, plan.indices = list(readable.fragments), readable.indices
        plan.state = "rows lost" if readable.fragments else "restored"
    if readable.number < reached:  # what it had more is not known
        plan.lost = None
    if best.copy is not None:
        plan.copy, plan.state = str(best.copy), "restored" if plan.state == "whole" else plan.state
    return plan


def _carry_out(path: Path, plan: TableRepair, place: Path) -> None:
    import lance

    parts = bool(plan.fragments or plan.indices)
    # Those of versions are gone with them; what is committed here may have the name of one.
    damaged = [file for file in plan.damaged if not file.startswith(VERSIONS)]
    if plan.copy is not None:  # first: the copy goes with the versions that are set aside
        _put_back(path, plan.name, Path(plan.copy), place)
    set_aside(path, plan.name, plan.version or 0, [] if parts else damaged, place)
    if not parts:
        return
    table = path / f"{plan.name}{TABLE}"
    data = lance.dataset(str(table))
    for index in plan.indices:
        data.drop_index(index)
    if plan.fragments:
        gone = lance.LanceOperation.Delete([], plan.fragments, "damaged")
        data = lance.LanceDataset.commit(str(table), gone, read_version=data.version)
    if plan.name == "items" and "vectors" in plan.indices:
        (path / "index.json").unlink(missing_ok=True)
    Journal(path).sync(plan.name)
    # The versions before name what is damaged, and are out of the way with it.
    _older_aside(path, plan.name, data.version, damaged, place)


def _put_back(path: Path, name: str, copy: Path, place: Path) -> None:
    file = copy.name.removeprefix(f"{name}-")
    target = path / f"{name}{TABLE}" / VERSIONS / file
    _move(path, [target], place)
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(target) as aside:
        aside.write_bytes(copy.read_bytes())


def _older_aside(path: Path, name: str, version: int, files: list[str], place: Path) -> None:
    table = path / f"{name}{TABLE}"
    examination = Examination(path, name)
    older = [number for number in journal.manifests(table) if number < version]
    names = []
    for number in older:
        found = examination.version(number)
        if found is None or set(found.damaged) & set(files):
            names.append(f"{VERSIONS}/{journal.manifests(table)[number].name}")
    set_aside(path, name, version, [*names, *files], place)
