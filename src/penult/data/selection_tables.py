"""Raven selection tables: one for each recording, or one over all of them with their list.

Raven opens several files as one sequence. Begin and end of a selection count from the first file
on, in the order of the list that was opened; where a selection lies in its file is told by
`Begin Path`, `Begin File` and `File Offset (s)`, which Raven works out anew when it saves a table
(Rraven, issue 3). Opened as a sound selection table, `Begin Path` and `File Offset (s)` count
instead.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from penult.data import audio
from penult.data.files import files_aside, user_path, write_file
from penult.data.formulas import Cells
from penult.data.items import absolute, as_id, path_of
from penult.errors import ItemError, StoreError, UsageError

log = logging.getLogger(__name__)

SUFFIX, LIST_SUFFIX = ".selections.txt", ".list.txt"
VIEW = "Spectrogram 1"
CLASS = "Class"  # the column of what a selection was predicted or found to be
LOW, HIGH = "Low Freq (Hz)", "High Freq (Hz)"
# Raven counts channels from 1 and has no word for all of them: such a selection is shown in the
# first one, and this column, which Raven keeps as an annotation, has `all`.
MIXED, ALL = "Mixed Channels", "all"
COLUMNS = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", LOW, HIGH,
           "Begin Path", "Begin File", "File Offset (s)")  # fmt: skip
_LOW, _HIGH = ("lowfreqhz", "lowfrequency"), ("highfreqhz", "highfrequency")  # see `_plain`


@dataclass(frozen=True, slots=True)
class RavenSelection:
    """A part of a recording from start to end, seconds in its file. channel: from 0; None: all.

    path: of the file, as an id has it. values: further columns by their names, several texts of a
    cell as a tuple; those of a low and a
    high frequency (Raven's, Audacity's) become Raven's own. number, view: Raven's own; numbers are
    kept where all selections of a table have one and no two the same, and order them.
    """

    path: str
    start: float | None
    end: float | None
    channel: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None
    view: str | None = None


def is_folder(out: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a folder: one that exists, or ends with a slash."""
    text = os.fspath(out)
    return text.endswith(("/", os.sep)) or user_path(text).is_dir()


def list_of(table: Path) -> Path:
    """Where the files of a table over several recordings are listed."""
    return table.with_suffix(LIST_SUFFIX)


def read_list(path: Path) -> list[Path]:
    """The files of such a list; empty where there is none, or no text."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [path_of(line.strip()) for line in lines if line.strip()]


def check_free(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write over tables, before any work is done: the table, its list, or in a folder any
    table that is called as those of recordings are.

    Raises:
        UsageError: there is one, and overwrite is not set; or a file is where a folder has to be.
    """
    path = user_path(out)
    if is_folder(out):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; name a folder, or another file")
        # Raven's own tables are called a.Table.1.selections.txt and are none of these
        found = [p for p in sorted(path.glob(f"*{SUFFIX}")) if ".Table." not in p.name]
    else:
        found = [one for one in (path, list_of(path)) if one.exists()]
    if found and not overwrite:
        raise UsageError(f"{found[0]} exists already; --overwrite replaces it")


def write_selections(
    out: str | os.PathLike[str],
    selections: Sequence[RavenSelection],
    recordings: Iterable[str] = (),
    *,
    cells: Cells | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a selection table, or into a folder (see `is_folder`) one for each recording; gives the
    files, tables first.

    One table of several recordings has times that count from the first one on, in the order of
    their paths, and a list of them beside it (`events.list.txt` of `events.txt`), a path on each
    line, which Raven opens. recordings: paths that are to be there without a selection too.

    Raises:
        UsageError: a selection without seconds, a value that the format cannot hold, a recording
            without a length in a table of several, a file that exists, without `overwrite`.
        StoreError: a file cannot be written.
    """
    cells, path = cells or Cells(), user_path(out)
    every = sorted({*recordings, *(one.path for one in selections)}, key=path_of)
    texts: dict[Path, str] = {}
    if is_folder(out):
        own: dict[str, list[RavenSelection]] = {recording: [] for recording in every}
        for one in selections:
            own[one.path].append(one)
        columns = _columns_of(selections)
        for name, recording in _table_names(every).items():
            texts[path / name] = table_text(own[recording], [recording], cells, columns)
    else:
        texts[path] = table_text(selections, every, cells)
        if len(every) > 1:
            files = [f"{as_id(absolute(path_of(one)))}\n" for one in every]
            texts[list_of(path)] = "".join(files)
    write_texts(path, texts, overwrite, in_folder=is_folder(out))
    cells.tell(path)
    return [*texts]


def write_texts(out: Path, texts: Mapping[Path, str], overwrite: bool, in_folder: bool) -> None:
    """Write files of text. in_folder: perhaps thousands in a folder, each of which is whole or
    absent for itself; else all of them or none.

    Raises:
        UsageError: one of them is there, and overwrite is not set.
        StoreError: one cannot be written.
    """
    if not overwrite and (there := [one for one in texts if one.exists()]):
        raise UsageError(f"{there[0]} exists already; --overwrite replaces it")
    try:
        _write(out if in_folder else None, texts, overwrite)
    except FileExistsError as error:  # another command was sooner
        raise UsageError(f"{error.filename} exists already; --overwrite replaces it") from error
    except OSError as error:
        raise StoreError(f"{out} cannot be written: {error.strerror or error}") from error


def _write(folder: Path | None, texts: Mapping[Path, str], overwrite: bool) -> None:
    encoded = {path: text.encode("utf-8", "backslashreplace") for path, text in texts.items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in encoded.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, [content])
        return
    with files_aside([*encoded], overwrite=overwrite) as asides:
        for aside, content in zip(asides, encoded.values(), strict=True):
            aside.write_bytes(content)


def table_text(
    selections: Sequence[RavenSelection],
    recordings: Sequence[str],
    cells: Cells | None = None,
    columns: Sequence[str] = (),
) -> str:
    """A table of selections in these recordings, opened in this order. columns: further ones that
    it has beside those of its selections.

    Raises:
        UsageError: see `write_selections`.
    """
    cells = cells or Cells()
    begins, highest = sequence_of(recordings)
    further = list(dict.fromkeys([*_columns_of(selections), *columns]))
    taken = {name.casefold() for name in (*COLUMNS, MIXED)}
    names = [f"{name}_given" if name.casefold() in taken else name for name in further]
    mixed = [MIXED] if any(one.channel is None for one in selections) else []
    header = [*COLUMNS, *mixed, *(cell_text(cells(name)) for name in names)]
    lines = [header]
    for number, one in _numbered(selections):
        if one.start is None or one.end is None:
            raise UsageError(
                f"a Raven table needs seconds, and {one.path} has none; write .csv instead"
            )
        begin, (low, high) = begins[one.path], band_of(one.values)
        high = highest[one.path] if high is None else high
        channel = 1 if one.channel is None else one.channel + 1
        place = (number, one.view or VIEW, channel, begin + one.start,
                 begin + one.end, 0 if low is None else low, high)  # fmt: skip
        file = cells.path(one.path), cells(PurePath(one.path).name), one.start
        of_all = [ALL if one.channel is None else ""] if mixed else []
        if any(sign in file[0] for sign in "\t\r\n"):
            raise UsageError(f"a Raven table cannot hold {file[0]!r}: it has a tab or a line break")
        values = [one.values.get(name) for name in further]
        rest = [
            cell_text(cells(cells.joined(value) if isinstance(value, tuple) else value))
            for value in values
        ]
        lines.append([*map(_number, (*place, *file)), *of_all, *rest])
    return "".join("\t".join(line) + "\n" for line in lines)


def _numbered(selections: Sequence[RavenSelection]) -> list[tuple[int, RavenSelection]]:
    own = {one.number: one for one in selections if one.number is not None}
    return sorted(own.items()) if len(own) == len(selections) else [*enumerate(selections, 1)]


def sequence_of(recordings: Sequence[str]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Where each recording begins when they are opened in this order, in seconds; and the half of
    its sample rate.

    Raises:
        UsageError: one of several has no length.
    """
    begins, highest = dict[str, float](), dict[str, float | None]()
    total, several = 0.0, len(recordings) > 1
    for recording in recordings:
        # To the microsecond, as starts and ends are: their difference stays what it is.
        begins[recording], highest[recording] = round(total, 6), None
        try:
            about = audio.info(path_of(recording), exact=several)
        except (ItemError, OSError) as error:
            if several:
                raise UsageError(
                    f"times of a Raven table over several recordings count from the first one on, "
                    f"and the length of {recording} cannot be read: {error}. --out FOLDER/ writes "
                    "a table for each recording, which needs no lengths; .csv needs none either"
                ) from error
            log.warning("%s cannot be read (%s): its selections have no %s", recording, error, HIGH)
            continue
        total += about.seconds
        highest[recording] = about.rate / 2
    return begins, highest


def _table_names(recordings: Sequence[str]) -> dict[str, str]:
    """The recording of each table's name: its own name without extension, with as many folders in
    front, and then the extension, as tell it from the others."""
    found: dict[str, str] = {}
    waiting = list(recordings)
    deepest = max((len(PurePath(one).parts) for one in recordings), default=0)
    for count in range(1, deepest + 2):
        names = {one: _table_name(one, count, count > deepest) for one in waiting}
        folded = [name.casefold() for name in names.values()]
        known = {name.casefold() for name in found}
        for one, name in names.items():
            if folded.count(name.casefold()) == 1 and name.casefold() not in known:
                found[name] = one
        named = set(found.values())
        waiting = [one for one in waiting if one not in named]
    found |= {f"{number}_{PurePath(one).name}{SUFFIX}": one for number, one in enumerate(waiting)}
    order = {one: number for number, one in enumerate(recordings)}
    return dict(sorted(found.items(), key=lambda pair: order[pair[1]]))


def _table_name(recording: str, count: int, whole: bool) -> str:
    path = PurePath(recording)
    folders = [part for part in path.parent.parts if part != path.anchor]
    inner = folders[len(folders) - count + 1 :] if count <= len(folders) else folders
    return "_".join([*inner, path.name if whole else path.stem]) + SUFFIX


def _columns_of(selections: Sequence[RavenSelection]) -> list[str]:
    """The further columns that selections have, but for those of a band."""
    names = dict.fromkeys(name for one in selections for name in one.values)
    return [name for name in names if _plain(name) not in (*_LOW, *_HIGH)]


def band_of(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The low and the high frequency, Hz, as far as columns have numbers for them."""
    edges: list[float | None] = []
    for names in (_LOW, _HIGH):
        found = (value for name, value in values.items() if _plain(name) in names)
        number = next((one for one in found if one is not None), None)
        try:
            edges.append(None if number is None else float(number))
        except (TypeError, ValueError):
            edges.append(None)
    return edges[0], edges[1]


def _plain(name: str) -> str:
    """A column's name as it is in every program and collection: small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _number(value: Any) -> str:
    """Seconds, hertz, a count or a text."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)


def cell_text(value: Any) -> str:
    """A value in a cell between tabs."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub("[\t\r\n]", " ", str(value))
