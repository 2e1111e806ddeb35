"""Journal of a collection: which files of its tables are on the disk, with sizes and checksums.

LanceDB writes files and renames them, and flushes none. Here the files of a commit are flushed in
an order such that a version is never on the disk before what it names, and then written down. Knows
no rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from penult.data.files import file_aside, flush, one_at_a_time
from penult.data.items import is_object
from penult.errors import StoreError

FOLDER = "journal"
TABLE = ".lance"  # what the folder of a table ends with
VERSIONS = "_versions"
_PARTS = ("data", "_deletions")  # flat folders of a table; its transactions serve no reader
_INDICES = "_indices"
_LAST = 2**64 - 1  # file names of versions count down from here, or up from 1 in an older format
_MAGIC = b"LANC"  # at the end of every whole file of LanceDB's own formats
_SUFFIX = ".manifest"
_CHUNK = 1 << 20
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
Sum = tuple[int, int | None]  # bytes, CRC-32 where it is known


@dataclass(frozen=True, slots=True)
class Synced:
    """What the journal has of a table. version: the newest one of which every file was flushed.
    files: by their path in the table's folder. boot: of the machine when that was written."""

    version: int
    boot: str = ""
    files: dict[str, Sum] = field(default_factory=dict)


def boot() -> str:
    """What tells this start of the machine from others; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def tables(path: Path) -> list[str]:
    """The names of the tables whose folder or journal is there."""
    if is_object(path):
        return []  # what a store has taken is kept, and there is nothing to flush
    found = {entry.stem for entry in path.glob(f"*{TABLE}") if entry.is_dir()}
    return sorted(found | {entry.stem for entry in (path / FOLDER).glob("*.jsonl")})


def refuse_links(path: Path) -> None:
    """Refuse to write where a folder of a collection, or a journal, is a link: what is written,
    moved or removed there would be another place's. The collection itself may be behind one.

    Raises:
        StoreError: one is.
    """
    if is_object(path):
        return
    parts = [*_entries(path)]
    for folder in [one for one in parts if one.is_dir(follow_symlinks=False)]:
        parts += _entries(folder.path)
    for one in parts:
        journal = one.name.endswith(".jsonl")
        if one.is_symlink() and (journal or one.is_dir()):
            part = Path(one.path)
            raise StoreError(
                f"{path} is not written to: {part.relative_to(path)} in it is a link to "
                f"{str(part.readlink())!r}, and what lies there is not the collection's. Put the "
                "files themselves in its place; the collection as a whole may be behind a link"
            )


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [*os.scandir(folder)]
    return []


def manifests(table: Path) -> dict[int, Path]:
    """The files of a table's versions, newest first."""
    found: dict[int, Path] = {}
    if is_object(table):
        return found
    try:
        names = [entry.name for entry in os.scandir(table / VERSIONS)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for name in names:
        if (version := _version_of(name)) is not None:
            found[version] = table / VERSIONS / name
    return dict(sorted(found.items(), reverse=True))


def _version_of(name: str) -> int | None:
    number = name.removesuffix(_SUFFIX)
    if number == name or not number.isdecimal():
        return None
    return _LAST - int(number) if len(number) == len(str(_LAST)) else int(number)


def is_as_flushed(path: Path, name: str, synced: Synced) -> bool:
    """Whether the file of a version is what was written. It is small, and read at each opening: of
    columns that a flipped bit renamed or swapped nothing would be said."""
    for file, expected in synced.files.items():
        if file.startswith(VERSIONS) and _version_of(file.rpartition("/")[2]) == synced.version:
            try:
                return expected[1] is None or sum_of(path / f"{name}{TABLE}" / file) == expected
            except OSError:
                return False
    return True


def is_closed(file: Path) -> bool:
    """Whether a file of a version or of rows has its end; an empty or zero-filled one has none."""
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_MAGIC), os.SEEK_END)
            return opened.read() == _MAGIC
    except OSError:
        return False


def sum_of(file: Path) -> Sum:
    """Bytes and CRC-32 of a file."""
    size = checksum = 0
    with file.open("rb") as opened:
        while part := opened.read(_CHUNK):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return size, checksum


def read(path: Path, name: str) -> Synced | None:
    """The journal of a table; None where there is none. Lines that are torn do not count."""
    if is_object(path):
        return None
    lines = list(_lines(_file(path, name)))
    if not lines:
        return None
    files: dict[str, Sum] = {}
    for line in lines:
        files |= line.files
    return Synced(lines[-1].version, lines[-1].boot, files)


def last(path: Path, name: str) -> Synced | None:
    """The last line of the journal of a table, with the files of that line only."""
    if is_object(path):
        return None
    file = _file(path, name)
    try:
        with file.open("rb") as opened:
            length = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, length - 16_384))
            tail = opened.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    for text in reversed(tail.split(b"\n")):
        if (line := _parsed(text)) is not None:
            return line
    return next(iter(reversed(list(_lines(file)))), None)


def _file(path: Path, name: str) -> Path:
    return path / FOLDER / f"{name}.jsonl"


def _lines(file: Path) -> Iterator[Synced]:
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    for text in content.split(b"\n"):
        if (line := _parsed(text)) is not None:
            yield line


def _parsed(text: bytes) -> Synced | None:
    checksum, _, rest = text.partition(b" ")
    if not rest or checksum != b"%08x" % zlib.crc32(rest):
        return None
    try:
        found = json.loads(rest)
        files = {
            str(file): (int(size), None if crc is None else int(crc))
            for file, (size, crc) in found["files"].items()
        }
        return Synced(int(found["version"]), str(found["boot"]), files)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _line(entry: Synced) -> bytes:
    about = {"version": entry.version, "boot": entry.boot, "files": entry.files}
    text = json.dumps(about, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _at_once(function: Callable[[_Given], _Found], given: Iterable[_Given]) -> list[_Found]:
    # Threads of this call: those of a pool that is kept are gone after a fork.
    with ThreadPoolExecutor(8, "penult-flush") as pool:
        return list(pool.map(function, given))


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process has cleaned up
        flush(folder)


@dataclass(frozen=True, slots=True)
class _New:
    """What is new in a table. summed: whether checksums are to be made of it."""

    name: str
    version: int
    files: list[str]
    summed: bool


class Journal:
    """Flushes what was written to a collection, and writes it down. Not for two threads at once.

    broken: the names of tables with a file that the disk did not take.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Synced] = {}
        self._there: set[Path] = set()  # folders whose own entry was flushed
        self._appended: set[Path] = set()
        self.broken: set[str] = set()

    def sync(self, *names: str) -> None:
        """Flushes all that is new in these tables, or in every one.

        Raises:
            OSError: the disk did not take it; the journal does not have it then.
        """
        if is_object(self._path):
            return
        found = (self._new(name) for name in names or tables(self._path))
        work = [one for one in found if one is not None]
        # All at once: a file system flushes many files in hardly more time than one.
        sums = self._flush([(one, file) for one in work for file in one.files])
        folders = {(self._table(one.name) / file).parent for one in work for file in one.files}
        _at_once(_flush_folder, [*folders, *self._above(folders)])
        for one in work:
            self._append(one.name, one.version, sums.get(one.name, {}))

    def _table(self, name: str) -> Path:
        return self._path / f"{name}{TABLE}"

    def _before(self, name: str) -> Synced | None:
        if name not in self._known and (before := read(self._path, name)) is not None:
            self._known[name] = before
        return self._known.get(name)

    def _new(self, name: str) -> _New | None:
        before, table = self._before(name), self._table(name)
        if not table.is_dir():
            return None
        known = {} if before is None else before.files
        # Versions first: whatever they name was there before them.
        versions = manifests(table)
        version = next(iter(versions), 0)
        files = [f"{VERSIONS}/{file.name}" for file in versions.values()]
        files = [file for file in (*_content(table), *files) if file not in known]
        if not files and version == (before.version if before is not None else 0):
            return None
        # What an earlier Penult wrote is not read for its checksums: a repair does that.
        return _New(name, version, files, before is not None or version <= 2)

    def _flush(self, work: list[tuple[_New, str]]) -> dict[str, dict[str, Sum]]:
        """Files to the disk; gives their checksums, by table. Those that a clean-up took meanwhile
        are gone."""

        def one(job: tuple[_New, str]) -> Sum | None:
            new, place = job[0], self._table(job[0].name) / job[1]
            try:
                flush(place)
                return sum_of(place) if new.summed else (place.stat().st_size, None)
            except FileNotFoundError:
                return None
            except OSError:
                self.broken.add(new.name)
                raise

        sums: dict[str, dict[str, Sum]] = {new.name: {} for new, _ in work}
        for (new, file), found in zip(work, _at_once(one, work), strict=True):
            if found is not None:
                sums[new.name][file] = found
        return sums

    def _above(self, folders: Iterable[Path]) -> set[Path]:
        """The folders that have the entries of these, each once, up to the collection's own."""
        found: set[Path] = set()
        for folder in folders:
            while folder not in self._there and folder != self._path.parent:
                self._there.add(folder)
                folder = folder.parent
                found.add(folder)
        return found

    def _append(self, name: str, version: int, sums: Mapping[str, Sum]) -> None:
        """One line, which comes to the disk with the next flush: without it more is looked at."""
        file, entry = _file(self._path, name), Synced(version, boot(), dict(sums))
        file.parent.mkdir(exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with (
            one_at_a_time(self._path),
            os.fdopen(os.open(file, flags, 0o666), "ab+") as opened,
        ):
            length = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, length - 1))
            torn = length > 0 and opened.read(1) != b"\n"
            opened.write(b"\n" * torn + _line(entry))
        self._appended.add(file)
        before = self._known.get(name)
        self._known[name] = replace(entry, files=(before.files if before else {}) | entry.files)

    def close(self) -> None:
        """The journal itself to the disk."""
        files, self._appended = self._appended, set()
        _at_once(flush, [*files, *({self._path / FOLDER, self._path} if files else ())])

    def note(self, name: str, sums: Mapping[str, Sum]) -> None:
        """Writes down checksums that were found later."""
        before = self._before(name)
        if before is not None and sums:
            self._append(name, before.version, sums)

    def shorten(self, name: str) -> None:
        """Writes the journal of a table anew, without files that are gone, and keeps a copy of the
        newest version's file."""
        if is_object(self._path):
            return
        with one_at_a_time(self._path):
            self._shorten(name)

    def _shorten(self, name: str) -> None:
        before, table = read(self._path, name), self._table(name)  # others have written, too
        if before is None:
            return
        versions = manifests(table)
        there = {*_content(table), *(f"{VERSIONS}/{file.name}" for file in versions.values())}
        kept = {file: total for file, total in before.files.items() if file in there}
        newest = next((v for v, f in versions.items() if f"{VERSIONS}/{f.name}" in kept), 0)
        self._known[name] = Synced(newest, before.boot, kept)
        if kept != before.files or newest != before.version:
            with file_aside(_file(self._path, name)) as aside:
                # A short line at the end: it is what is read each time that the table is opened.
                own = [f"{VERSIONS}/{versions[newest].name}"] if newest else []
                rest = Synced(newest, before.boot, {file: kept[file] for file in own})
                aside.write_bytes(_line(self._known[name]) + _line(rest))
        self._copy(name, versions.get(newest))

    def _copy(self, name: str, version: Path | None) -> None:
        former = copies(self._path, name)
        if version is None or version.name in former:
            return
        with file_aside(self._path / FOLDER / f"{name}-{version.name}") as aside:
            aside.write_bytes(version.read_bytes())
        for copy in former.values():
            copy.unlink(missing_ok=True)


def copies(path: Path, name: str) -> dict[str, Path]:
    """Copies of the file of a table's newest version at the end of a run, by that file's name."""
    found = (path / FOLDER).glob(f"{name}-*{_SUFFIX}")
    return {copy.name.partition("-")[2]: copy for copy in found}


def whole_copies(path: Path, name: str, known: Mapping[str, Sum]) -> dict[int, Path]:
    """Those copies that are what was written, by version."""
    found: dict[int, Path] = {}
    for file, copy in copies(path, name).items():
        version, expected = _version_of(file), known.get(f"{VERSIONS}/{file}")
        with contextlib.suppress(OSError):
            if version is not None and is_closed(copy) and expected in (None, sum_of(copy)):
                found[version] = copy
    return found


def _content(table: Path) -> Iterator[str]:
    """The files of a table but those of its versions, by their path in its folder."""
    for part in _PARTS:
        try:
            names = [entry.name for entry in os.scandir(table / part)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (f"{part}/{name}" for name in names if not name.startswith("."))
    for root, _, names in os.walk(table / _INDICES):
        folder = Path(root).relative_to(table).as_posix()
        yield from (f"{folder}/{name}" for name in names if not name.startswith("."))


@contextlib.contextmanager
def compacting(path: Path, name: str) -> Iterator[bool]:
    """Whether nobody else compacts this table meanwhile; not waited for. Side tables are appended
    to, and then compacted, without the writer's lock."""
    if is_object(path):  # whose commits Lance tells apart: a compaction that comes too late fails
        yield True
        return
    from filelock import FileLock, Timeout

    folder = path / FOLDER
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Flusher:
    """A journal that flushes beside its writer, so that neither waits for the other for long."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._thread = ThreadPoolExecutor(1, "penult-journal")
        self._asked: list[Future[None]] = []

    def request(self) -> None:
        """All that was committed so far will be on the disk soon."""
        waiting = self._asked and not (self._asked[-1].running() or self._asked[-1].done())
        if not waiting:  # else that one has it, too
            self._asked.append(self._thread.submit(self._journal.sync))

    def wait(self) -> None:
        """Until all that was asked for is on the disk.

        Raises:
            OSError: the disk did not take it. It is not tried again: what a disk has refused once
                is gone from the system's memory, and the next attempt would succeed in vain.
        """
        while self._asked:
            self._asked[0].result()
            self._asked.pop(0)

    def sync(self) -> Journal:
        """All tables to the disk, now; gives the journal for further work in this thread."""
        self.wait()
        self._journal.sync()
        return self._journal

    @property
    def broken(self) -> set[str]:
        """The names of tables with a file that the disk did not take."""
        return self._journal.broken

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()
