"""Folders as a stream of files, and where a recording lies that is known by name only."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from penult.data.items import Failure, Placed, file_item
from penult.data.regions import WHOLE
from penult.errors import SourceError

_NONE = "there is no recording"
_BARE = "without extension"
HIDDEN = "hidden"
ARRAYS_ALONE = (
    "; a model that takes sound, pictures or texts is given them with --sample-rate or --preprocess"
)

Index = dict[str, list[Path]]  # by name and by name without extension, in small letters


@dataclass(slots=True)
class KnownFiles:
    """Files that a store has as they lie on the disk: size in bytes and time in ns, by id. passed:
    how many of them a walk has left out so far."""

    states: Mapping[str, tuple[int, int]]
    passed: int = 0

    def has(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is as the store has it."""
        state = self.states.get(entry.path)
        if state is None:
            return False
        try:
            status = entry.stat()
        except OSError:
            return False
        return state == (status.st_size, status.st_mtime_ns)


def in_folder(
    folder: Path, accepted: frozenset[str], known: KnownFiles | None = None
) -> Iterator[Placed]:
    """Every file of a folder with one of the extensions; of those that are known only the number
    is kept."""
    for found in _walk(folder, set()):
        if isinstance(found, Failure):
            yield 0, found
        elif _suffix(found.name) in accepted:
            if known is not None and known.has(found):
                known.passed += 1
            else:
                yield 0, (file_item(Path(found.path)), WHOLE)


def walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path | Failure]:
    """Every file that is not hidden, each folder in the order of its names and entered once."""
    for found in _walk(folder, entered):
        yield found if isinstance(found, Failure) else Path(found.path)


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[os.DirEntry[str] | Failure]:
    levels: list[Iterator[os.DirEntry[str]]] = []  # no call in a call: folders may lie deep
    found: Path | None = folder
    while found is not None or levels:
        if found is not None:
            try:
                levels.append(_entries(found, entered))
            except OSError as error:
                reason = f"the folder cannot be read: {error.strerror}"
                yield Failure(str(found), WHOLE.key, SourceError.__name__, reason)
            found = None
            continue
        for entry in levels[-1]:
            if _is_folder(entry):
                found = Path(entry.path)
                break
            yield entry
        else:
            levels.pop()


def _suffix(name: str) -> str:
    """The extension of a file in small letters, as `Path.suffix` has it."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _entries(folder: Path, entered: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """What a folder holds that is not hidden, by name; nothing of one that was entered.

    Raises:
        OSError: it cannot be read.
    """
    status = folder.stat()
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    if (status.st_dev, status.st_ino) in entered:
        return iter(())  # a link that leads back, or a second way to the same folder
    entered.add((status.st_dev, status.st_ino))
    return (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that fails when it is read
        return False


def count_others(folder: Path, accepted: frozenset[str]) -> Counter[str]:
    """How many files have none of the extensions, by their own."""
    files = (found for found in _walk(folder, set()) if not isinstance(found, Failure))
    suffixes = (_suffix(file.name) for file in files)
    return Counter(suffix or _BARE for suffix in suffixes if suffix not in accepted)


def count_hidden(folder: Path, accepted: frozenset[str]) -> int:
    """How many files have one of the extensions, and are hidden or lie in a hidden folder."""
    number, waiting = 0, [(folder, False)]  # no call in a call: folders may lie deep
    while waiting:
        place, is_hidden = waiting.pop()
        try:
            with os.scandir(place) as listing:
                entries = list(listing)
        except OSError:
            continue
        for entry in entries:
            hidden = is_hidden or entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), hidden))
            elif hidden and _suffix(entry.name) in accepted:
                number += 1
    return number


def check_folder(folder: Path, accepted: frozenset[str]) -> None:
    """Stops at the first file that fits.

    Raises:
        SourceError: the folder has nothing to offer.
    """
    for found in _walk(folder, set()):
        if not isinstance(found, Failure) and _suffix(found.name) in accepted:
            return
    kinds = count_others(folder, accepted)
    if not accepted:  # every file would do
        raise SourceError(f"{folder} holds no files")
    raise SourceError(
        f"{folder} holds no file that is {' '.join(sorted(accepted))}; "
        + (f"it holds {in_words(kinds)}" if kinds else "it holds no files")
        + (ARRAYS_ALONE if accepted == {".npy"} else "")
    )


def count_files(folder: Path, accepted: frozenset[str]) -> int:
    """How many entries `in_folder` gives."""
    return sum(
        isinstance(found, Failure) or _suffix(found.name) in accepted
        for found in _walk(folder, set())
    )


def in_words(kinds: Mapping[str, int], most: int = 5) -> str:
    """`12 .txt, 3 .csv and others`, the most frequent first."""
    first = ", ".join(f"{count:,} {name}" for name, count in Counter(kinds).most_common(most))
    return first + (" and others" if len(kinds) > most else "")


class Shelf:
    """The recordings of folders by their names, each folder looked through once, when needed."""

    def __init__(
        self,
        folders: Sequence[Path],
        accepted: frozenset[str],
        place_of: Callable[[str], Path] | None = None,
    ) -> None:
        """place_of: the path that an id of a collection means."""
        self.folders, self.accepted, self.place_of = folders, accepted, place_of
        self._beside: dict[Path, Index] = {}

    def beside(self, table: Path) -> Index:
        """The recordings in the same folder as a table."""
        folder = table.parent
        if folder not in self._beside:
            self._beside[folder] = self._listed(folder)
        return self._beside[folder]

    def _listed(self, folder: Path) -> Index:
        with os.scandir(folder) as listing:
            paths = [Path(entry.path) for entry in listing if not entry.name.startswith(".")]
        return self._index(paths)

    def below(self, table: Path, folders: Sequence[str]) -> Index:
        """The recordings at the longest end of a path's folders that a table's folder has."""
        for first in range(len(folders)):
            inner = table.parent.joinpath(*folders[first:])
            if inner not in self._beside and ".." not in folders and inner.is_dir():
                self._beside[inner] = self._listed(inner)
            if index := self._beside.get(inner):
                return index
        return {}

    @cached_property
    def searched(self) -> Index:
        """The recordings anywhere in the folders."""
        entered: set[tuple[int, int]] = set()
        found = [path for folder in self.folders for path in walk(folder, entered)]
        return self._index([path for path in found if isinstance(path, Path)])

    def _index(self, paths: list[Path]) -> Index:
        index: Index = {}
        for path in sorted(paths):
            if path.suffix.lower() in self.accepted:
                for name in (path.name, path.stem):
                    index.setdefault(name.casefold(), []).append(path)
        return index


@dataclass(frozen=True, slots=True)
class Recordings:
    """The files that a table may mean by a name: below and beside it, then those of the shelf."""

    table: Path
    shelf: Shelf
    named_there: Mapping[str, frozenset[tuple[str, ...]]] = field(default_factory=dict)

    def of_paths(self, paths: Iterable[str]) -> Recordings:
        """The same, knowing all paths of the table: one file is not taken for two of them."""
        found: dict[str, set[tuple[str, ...]]] = {}
        for path in set(paths):
            *folders, name = _parts(path)
            if folders:
                found.setdefault(name.casefold(), set()).add(tuple(folders))
        named = {name: frozenset(all) for name, all in found.items() if len(all) > 1}
        return replace(self, named_there=named)

    def named(self, name: str) -> Path | str:
        """The file of that name, with or without its extension, or what is wrong with the name."""
        return self.at(name)

    def at(self, path: str) -> Path | str:
        """The file that a path means which may be another computer's, or what is wrong with it:
        of the files of its name that with the longest end in common, those beside the table first.
        """
        *folders, name = _parts(path)
        found: list[Path] = []
        below = self.shelf.below(self.table, folders)
        for index in (below, self.shelf.beside(self.table), self.shelf.searched):
            named = index.get(name.casefold(), [])
            named = (
                [path for path in named if path.name == name]
                or [path for path in named if path.stem == name]
                or named  # recorders and tables disagree about .WAV and .wav
            )
            if named and not folders:
                found = named
                break
            found += [path for path in named if path not in found]
        if not found:
            return self._not_found(name)
        longest = max(_common_end(path, folders) for path in found)
        if longest == 0 and any(path.parent == self.table.parent for path in found):
            found = [path for path in found if path.parent == self.table.parent]
        found = [path for path in found if _common_end(path, folders) == longest]
        if len(found) > 1:
            listed = ", ".join(map(str, found[:3])) + (", …" if len(found) > 3 else "")
            return f"{path!r} may be any of {len(found)} recordings: {listed}; leave one of them"
        return self._other_meaning(path, folders, found[0]) or found[0]

    def _other_meaning(self, path: str, folders: Sequence[str], file: Path) -> str:
        """Why a file is not what a path means: another path of the table fits it as well."""
        fits = _common_end(file, folders)
        for other in sorted(self.named_there.get(_parts(path)[-1].casefold(), ())):
            shared = _shared_end(other, folders)
            if shared < min(len(other), len(folders)) and _common_end(file, other) >= fits:
                return (
                    f"there is no recording {path!r}: {file} is as well or better "
                    f"{'/'.join(other)}/{file.name}, which the table names too"
                )
        return ""

    def of_table(self) -> Path:
        """The recording that is called as the table, as `rec.wav` is by `rec.Table.1.txt`.

        Raises:
            SourceError: there is none, or more than one.
        """
        parts = self.table.name.split(".")
        for count in range(len(parts) - 1, 0, -1):  # the longest name that fits is meant
            found = self.named(".".join(parts[:count]))
            if isinstance(found, Path):
                return found
            if not found.startswith(_NONE):
                # of files of one name, the one in folders that are called as the table's
                placed = self.at(str(self.table.with_name(".".join(parts[:count]))))
                if isinstance(placed, Path):
                    return placed
                raise SourceError(f"{self.table}: {found}")
        raise SourceError(
            f"{self.table} names no recording, and {self._not_found(parts[0])}; put the "
            "recording beside the table, call both the same, or give its folder with the table"
        )

    def _not_found(self, name: str) -> str:
        any_extension = "" if Path(name).suffix.lower() in self.shelf.accepted else ".*"
        further = "".join(f", nor in {folder}" for folder in self.shelf.folders)
        return f"{_NONE} {name + any_extension!r} beside {self.table.name}{further}"


def _parts(path: str) -> list[str]:
    """The folders and the name, of a path from any system; a drive's letter is none of them."""
    parts = [part for part in re.split(r"[\\/]", path) if part not in ("", ".")]
    if len(parts) > 1 and re.fullmatch("[A-Za-z]:|file:", parts[0]):
        parts = parts[1:]
    return parts or [path]


def _common_end(path: Path, folders: Sequence[str]) -> int:
    """How many of the folders above a file are those of a path, from the last one on."""
    return _shared_end(path.parts[:-1], folders)


def _shared_end(some: Sequence[str], others: Sequence[str]) -> int:
    count = 0
    for one, other in zip(reversed(some), reversed(others), strict=False):
        if one.casefold() != other.casefold():
            break
        count += 1
    return count
