"""What the sources of a collection have no longer: files that were deleted, and the brake on the
removal of their rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from penult.collection import failures, schema
from penult.collection.reader import Reader
from penult.data.items import TEXT_ROW, utf8
from penult.data.roots import Roots
from penult.data.sources import Source
from penult.data.tables import PATH
from penult.errors import UsageError

FEW = 5  # items, or annotations, whose rows are removed whatever their share is
SHARE = 0.1  # of those of the sources; above it a disk is rather missing than emptied

_BATCH = 8192
_NO_CONTENT = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})


@dataclass(slots=True)
class Losses:
    """What is no longer there of the files behind the rows and failures of some sources.

    gone: ids of files that were deleted; without_rows: further ones, which have failures only.
    unreachable: ids of files that may be on a disk that is not there now: their folder is empty, or
    a link on their way leads nowhere. items, rows: of these sources, that the collection holds;
    gone_rows: of the files that were deleted.
    """

    gone: list[str] = field(default_factory=list)
    without_rows: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    items: int = 0
    rows: int = 0
    gone_rows: int = 0

    def refusal(self, former: int) -> str:
        """Why so many are rather a disk that is missing, or half of a table; empty where they are
        not. former: rows of annotations that their tables no longer have."""
        for number, of_all, what in (
            (len(self.gone), self.items, "files of these paths were deleted"),
            (former, self.rows, "rows are of annotations that their tables no longer have"),
        ):
            if number > FEW and number > SHARE * of_all:
                return (
                    f"{number:,} of {of_all:,} {what} ({number / of_all:.0%}), more than "
                    f"{SHARE:.0%}, so that --prune removes nothing. Is a disk missing, or a part "
                    "of it? --prune --dry-run lists them, --prune-all removes their rows"
                )
        return ""

    @property
    def doubt(self) -> str:
        """What cannot be reached, in words; empty where all can be."""
        if not self.unreachable:
            return ""
        number, first = len(self.unreachable), self.unreachable[0]
        files = "1 file" if number == 1 else f"{number:,} files"
        return (
            f"{files} may be on a disk that is not mounted, since a folder on the way is empty or "
            f"a link leads nowhere ({first}{', …' if number > 1 else ''}): "
            f"{'its' if number == 1 else 'their'} rows are kept; --prune-all removes them"
        )


def check_prune(prune: object, source: Source) -> None:
    """Refuse to look for deleted objects.

    Raises:
        UsageError: it is asked for, of a source in an object store.
    """
    if prune and source.uris:
        raise UsageError(
            f"--prune looks for deleted files on disks, and {source.uris[0]} is in an object "
            "store: leave --prune out; rows of deleted objects stay"
        )


def gone(reader: Reader, given: Sequence[str]) -> list[str]:
    """The ids of files that were deleted, each once. given: absolute paths of folders and tables.

    A file that cannot be looked at, because a folder is closed to us, is not gone.
    """
    return losses(reader, given).gone


def losses(reader: Reader, given: Sequence[str]) -> Losses:
    """What is no longer there of these folders and tables, given as absolute paths."""
    asked = _filter_of(reader, given)
    if not asked:
        return Losses()
    found, presence, last, state = Losses(), _Presence(reader.roots), None, _THERE
    states: dict[str, str] = {}  # of those that are not there
    hashes: list[npt.NDArray[np.int64]] = []
    for ids, sizes, paths in _scan(reader, asked):
        found.rows += len(ids)
        hashes.append(_hashes(ids))
        for id, size, path in zip(ids, sizes, paths, strict=True):
            if id != last:
                # What has no size was no file: a text in a table, an array or bytes.
                state = _THERE if size is None else states.get(id) or presence.of(path or id)
                if state != _THERE:
                    states[id] = state
            found.gone_rows += state == _GONE
            last = id
    found.gone = [id for id, state in states.items() if state == _GONE]
    failed = _failed(reader, given)
    further = {id: presence.of(id) for id in failed if id not in states}
    found.without_rows = [id for id, state in further.items() if state == _GONE]
    lost = {**states, **further}
    found.unreachable = [id for id, state in lost.items() if state == _UNREACHABLE]
    found.items = len(np.unique(np.concatenate([*hashes, _hashes(failed)])))
    return found


def _hashes(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.unique(np.fromiter(map(hash, ids), np.int64, len(ids)))


def _scan(reader: Reader, asked: str) -> Iterator[tuple[list[str], list[int | None], list[str]]]:
    """Ids, sizes and paths of the rows that match."""
    if not reader.count_rows():
        return
    columns = [name for name in ("id", "size", PATH) if name in reader.schema.names]
    for batch in reader.scan(columns, asked, _BATCH):
        paths = batch.column(PATH if PATH in columns else "id")
        yield (*(batch.column(name).to_pylist() for name in ("id", "size")), paths.to_pylist())


def _failed(reader: Reader, given: Sequence[str]) -> list[str]:
    """The ids of files that failed, of these sources."""
    folders = tuple(_beginnings(reader, given))
    runs = set(runs_of(reader, given))
    return [
        row["id"]
        for row in reader.side_table(failures.NAME).to_pylist()
        if (row["id"].startswith(folders) or row["run_id"] in runs)
        and not (row["size"] is None and TEXT_ROW.fullmatch(row["id"]))  # a text
    ]


def _filter_of(reader: Reader, given: Sequence[str]) -> str:
    """A filter for the rows that a run over these folders and tables is about."""
    begins = _beginnings(reader, given)
    conditions = [f"starts_with(id, {schema.quoted([one])})" for one in begins]
    if runs := list(runs_of(reader, given)):
        conditions.append(f"run_id IN ({schema.quoted(runs)})")
    return " OR ".join(conditions)


def _beginnings(reader: Reader, given: Sequence[str]) -> list[str]:
    """What the ids of files in these folders begin with."""
    roots = reader.roots
    found = (roots.prefixes_in(Path(one)) for one in given if Path(one).is_dir())
    return list(dict.fromkeys(one for prefixes in found for one in prefixes))


def runs_of(reader: Reader, given: Iterable[str]) -> Iterator[str]:
    """The runs over some of these folders and tables (absolute), and over nothing else."""
    asked, roots = {utf8(one) for one in given}, reader.roots
    asked |= {roots.id_of(Path(one)) for one in given}
    for run in reader.side_table("runs").to_pylist():
        sources = schema.run_info(reader.path, run["info"]).sources
        if sources and asked.issuperset(sources):
            yield run["run_id"]


_THERE, _GONE, _UNREACHABLE = "there", "gone", "unreachable"


class _Presence:
    """Whether files are there. A folder is looked at once."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._folders: dict[Path, str] = {}  # what a file is that is not in it

    def of(self, id: str) -> str:
        file = self._roots.path_of(id)
        with suppress(OSError, ValueError):
            if file.is_absolute():
                os.stat(file)  # noqa: PTH116 (of many files, most of which are there)
                return _THERE
        if not file.is_absolute():
            return _THERE  # a text, an array, or bytes
        try:
            return self._look_for(file)
        except (OSError, ValueError):
            return _THERE  # closed to us, or the disk fails

    def _look_for(self, file: Path) -> str:
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            # A link that leads nowhere was not deleted.
            return _UNREACHABLE if file.is_symlink() else self._missing_in(file.parent)
        return _THERE

    def _missing_in(self, folder: Path) -> str:
        if folder not in self._folders:
            self._folders[folder] = self._look(folder)
        return self._folders[folder]

    def _look(self, folder: Path) -> str:
        try:
            with os.scandir(folder) as listing:
                filled = any(
                    not entry.name.startswith(".") and entry.name not in _NO_CONTENT
                    for entry in listing
                )
        except FileNotFoundError:
            if folder.is_symlink() or folder == folder.parent:
                return _UNREACHABLE
            return self._missing_in(folder.parent)
        except NotADirectoryError:
            return _GONE  # a file stands where the folder was
        except OSError:
            return _UNREACHABLE
        return _GONE if filled else _UNREACHABLE  # as the place of a disk that is not mounted
