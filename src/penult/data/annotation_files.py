"""Segments as annotation programs write them: Raven, Audacity, RTTM, Praat. Knows no audio.

Each becomes a table with the columns path, start, end, channel, and the annotation's own ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.data import tables, textgrid
from penult.data.delimited import DelimitedText, decimal, head_of, lines
from penult.data.folders import Recordings
from penult.data.label_tracks import CHANNEL, SUFFIX
from penult.data.selection_tables import ALL, MIXED, list_of, read_list, sequence_of
from penult.data.table_roles import KNOWN
from penult.errors import SourceError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa


SUFFIXES = (".rttm", ".txt", textgrid.SUFFIX, ".csv", ".tsv")  # of files that may be annotations
PLACE = ("path", "start", "end", "channel")  # what every annotation becomes, besides metadata

_RTTM = ("file", "channel", "start", "duration", "orthography", "speaker_type", "speaker")
_RTTM_TYPES = frozenset(
    "SPEAKER SPKR-INFO SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT SU IP "
    "CB A/P END".split()
)
_AUDACITY = ("label", "low_frequency", "high_frequency")

Rows = Callable[[], Iterator[tables.Row]]
Annotations = tuple[Sequence[str], Rows, Sequence[str]]  # metadata columns, rows, notes


class _BadRow(Exception):
    """The fault of one row; the others go on."""


def kind_of(path: Path) -> str:
    """Which program's table a file is: raven, audacity, rttm or textgrid; empty if it is none.

    A .txt can be anything, so its first line decides; a .csv is Raven's by its columns.
    """
    suffix = path.suffix.lower()
    if suffix in (".rttm", textgrid.SUFFIX):
        return suffix[1:]
    if suffix not in (".txt", ".csv", ".tsv"):
        return ""
    if path.name.lower().endswith(SUFFIX):  # it may have no label
        return "audacity"
    start = head_of(path)
    first = next((line for line in start.splitlines() if line.strip()), "")
    names = {cell.strip(' "').casefold() for cell in re.split("[,;\t]", first)}
    if {"begin time (s)", "end time (s)"} <= names:
        return "raven"
    if suffix != ".txt":
        return ""
    if textgrid.is_textgrid(start):
        return "textgrid"
    cells = [cell.strip().casefold() for cell in first.split("\t")]
    if cells[0] == "selection" or "begin time (s)" in cells:
        return "raven"
    return "audacity" if _audacity_label(first) else ""


def unknown_text(path: Path) -> SourceError | None:
    """Why a text file is no table of annotations; None where it is no text."""
    start = head_of(path)
    if not start.strip() or any(ord(sign) < 9 for sign in start):
        return None
    first = next(line for line in start.splitlines() if line.strip()).strip()
    return SourceError(
        f"it is text, and no table of annotations that is known (Raven, BirdNET, Audacity, RTTM, "
        f"TextGrid); it begins with {first[:60]!r}. A table with other columns is read as .csv or "
        ".tsv: --column path=COLUMN,start=COLUMN,end=COLUMN"
    )


def read_annotations(path: Path, kind: str, recordings: Recordings) -> tables.TableRows:
    """An annotation as a table: rows are read anew at each call, a bad one is its reason.

    Raises:
        SourceError: no such format, or the recording of the whole table cannot be found.
    """
    read = {"raven": _raven, "audacity": _audacity, "rttm": _rttm, "textgrid": _textgrid}[kind]
    columns, rows, notes = read(path, recordings)
    types, total = tables.scan_types(lambda: _metadata(rows(), columns), list(columns))
    if kind != "raven":  # columns that the format has, and this table does not use
        used = {n for _, row in rows() for n in columns if isinstance(row, dict) and row[n]}
        types = {name: type for name, type in types.items() if name in used or name == "label"}
    return tables.TableRows("line", rows, {**_place_types(), **types}, total, tuple(notes))


def _place_types() -> dict[str, pa.DataType]:
    import pyarrow as pa

    return {"path": pa.string(), "start": pa.float64(), "end": pa.float64(), "channel": pa.int64()}


def _metadata(rows: Iterator[tables.Row], columns: Sequence[str]) -> Iterator[tables.Row]:
    for line, row in rows:
        yield line, row if isinstance(row, str) else {name: row[name] for name in columns}


def _row(
    path: Path | str, span: tuple[float, float], channel: int | None, metadata: dict[str, Any]
) -> dict[str, Any]:
    if isinstance(path, str):
        raise _BadRow(path)
    # Sums of decimals end in noise; keys are exact to the microsecond.
    start, end = (round(seconds, 6) for seconds in span)
    return {**metadata, "path": str(path), "start": start, "end": end, "channel": channel}


def _number(cell: str | None, name: str) -> float:
    number = None if cell is None else decimal(cell)
    if number is None:
        raise _BadRow(f"{name} {cell or ''!r} is not a number")
    return number


# ---- Raven: selection tables, as BirdNET writes them too


def _raven(path: Path, recordings: Recordings) -> Annotations:
    table = _Raven(path, recordings)
    return list(table.metadata.values()), table.rows, table.text.notes


class _Raven:
    """A selection table: its columns by their names in small letters."""

    def __init__(self, path: Path, recordings: Recordings) -> None:
        self._path = path
        is_text = path.suffix.lower() == ".txt" and "\t" in head_of(path)
        self.text = DelimitedText(path, "\t" if is_text else "", not is_text, KNOWN)
        header = self.text.header
        names = [name.casefold() for name in header]
        self._at = {name: index for index, name in enumerate(names)}
        if len(self._at) < len(names):
            twice = next(name for name in header if names.count(name.casefold()) > 1)
            raise SourceError(f"{path} has more than one column {twice!r}")
        for name in ("Begin Time (s)", "End Time (s)"):
            if name.casefold() not in self._at:
                raise SourceError(
                    f"{path}: line {self.text.line} names no column {name!r}, which a Raven "
                    f"selection table has; it names {', '.join(header)}"
                )
        self.metadata = {  # by the column's place
            index: f"{name}_given" if name in (*PLACE, "id") else name
            for index, name in enumerate(header)
            if name.casefold() not in _RAVEN_PLACE
        }
        self._found: dict[tuple[str | None, str | None, float], Path | str] = {}
        self._sequence = read_list(list_of(path))
        self._shown, files, paths = self._survey()
        self._recordings = recordings.of_paths(paths)
        self._recording = None if self._names_files else recordings.of_table()
        if len(files) > 1 and "file offset (s)" not in self._at:
            raise SourceError(
                f"{path} has selections in more than one file ({', '.join(sorted(files)[:2])}, …) "
                "and no column 'File Offset (s)', so where they lie in their files is not known; "
                "add that measurement in Raven, or save one table for each file"
            )

    @property
    def _names_files(self) -> bool:
        return "begin path" in self._at or "begin file" in self._at

    def rows(self) -> Iterator[tables.Row]:
        """Every selection once, or the reason why it cannot be used."""
        for line, record in self.text.rows():
            if isinstance(record, str):
                yield line, record
                continue
            if self._shown.get(self._selection(record), line) != line:
                continue
            try:
                yield line, self._row(record)
            except _BadRow as error:
                yield line, str(error)

    def _cell(self, record: list[str], name: str) -> str | None:
        index = self._at.get(name)
        return None if index is None or index >= len(record) else record[index] or None

    def _selection(self, record: list[str]) -> tuple[str | None, ...]:
        return tuple(self._cell(record, name) for name in _RAVEN_SELECTION)

    def _survey(self) -> tuple[dict[tuple[str | None, ...], int], set[str], set[str]]:
        """Which line to use of a selection that is listed for each view, the files and the paths
        that are named."""
        shown: dict[tuple[str | None, ...], int] = {}
        files, paths = set[str](), set[str]()
        for line, record in self.text.rows():
            if isinstance(record, str):
                continue
            paths.add(self._cell(record, "begin path") or "")
            files.add(self._cell(record, "begin file") or self._cell(record, "begin path") or "")
            view = self._cell(record, "view")
            if view:
                first = shown.setdefault(self._selection(record), line)
                if first != line and view.startswith("Spectrogram"):
                    shown[self._selection(record)] = line
        return shown, files - {""}, paths - {""}

    def _row(self, record: list[str]) -> dict[str, Any]:
        begin = _number(self._cell(record, "begin time (s)"), "Begin Time (s)")
        end = _number(self._cell(record, "end time (s)"), "End Time (s)")
        if "file offset (s)" in self._at:
            # Begin and end count from the first of several files, the offset within this one.
            offset = _number(self._cell(record, "file offset (s)"), "File Offset (s)")
            begin, end = offset, offset + (end - begin)
        first, last = self._cell(record, "begin file"), self._cell(record, "end file")
        if first and last and first != last:
            raise _BadRow(f"the selection goes on from {first} into {last}; make two of it")
        every = self._cell(record, MIXED.casefold()) == ALL
        channel = None if every else self._cell(record, "channel")
        metadata = {name: record[index] or None for index, name in self.metadata.items()}
        return _row(self._file(record), (begin, end), _channel_from_zero(channel), metadata)

    def _file(self, record: list[str]) -> Path | str:
        if self._recording is not None:
            return self._recording
        path, name = self._cell(record, "begin path"), self._cell(record, "begin file")
        named = path, name, self._begin_of_file(record) if self._sequence else 0.0
        if named not in self._found:
            self._found[named] = self._look_for(*named)
        return self._found[named]

    def _begin_of_file(self, record: list[str]) -> float:
        """Where the selection's file begins in the sequence of files, in seconds."""
        begin = decimal(self._cell(record, "begin time (s)") or "") or 0.0
        return round(begin - (decimal(self._cell(record, "file offset (s)") or "") or 0.0), 3)

    def _look_for(self, path: str | None, name: str | None, begin: float) -> Path | str:
        if path and name and not path.casefold().endswith(name.casefold()):
            path = None  # of another file than Raven has opened
        if path and (there := self._path.parent / path).is_file():
            return there
        if self._sequence and (listed := self._in_list(name or Path(path or "").name, begin)):
            return listed
        if path:
            return self._recordings.at(path)
        return self._recordings.named(name) if name else "Begin Path and Begin File are empty"

    def _in_list(self, name: str, begin: float) -> Path | None:
        """The file of that name in the list beside the table; of several the one that begins there
        in the sequence, by the lengths of those before it."""
        found = [one for one in self._sequence if one.name.casefold() == name.casefold()]
        if len(found) < 2:
            return next((one for one in found if one.is_file()), None)
        apart = {abs(self._begins[one] - begin): one for one in found if one in self._begins}
        return apart[min(apart)] if apart and min(apart) < _APART else None

    @cached_property
    def _begins(self) -> dict[Path, float]:
        """Where each file of the list begins; empty where the length of one is not known."""
        try:
            begins, _ = sequence_of([str(one) for one in self._sequence])
        except UsageError:
            return {}
        return {Path(one): begin for one, begin in begins.items()}


_APART = 0.5  # s: half of the shortest recording that two of one name can be told apart by
_RAVEN_PLACE = ("begin time (s)", "end time (s)", "channel", "begin path", "begin file",
                "file offset (s)", "end file", "end path", MIXED.casefold())  # fmt: skip
_RAVEN_SELECTION = ("selection", "channel", "begin time (s)", "end time (s)", "begin path",
                    "begin file", "file offset (s)")  # fmt: skip


def _channel_from_zero(cell: str | None) -> int | None:
    """A channel counted from 1 as one counted from 0; None for 0, which stands for all of them."""
    if cell is None:
        return None
    if not cell.isdecimal():
        raise _BadRow(f"channel {cell!r} is not a whole number; the first one is 1")
    return int(cell) - 1 if int(cell) else None


# ---- Audacity: labels


def _audacity_label(line: str) -> list[str] | None:
    """Start, end and text of a label, with tabs or spaces between; None if it is none."""
    cells = line.rstrip("\r\n").split("\t" if "\t" in line else None, 2)
    if len(cells) < 2 or decimal(cells[0]) is None or decimal(cells[1]) is None:
        return None
    return cells


def _audacity(path: Path, recordings: Recordings) -> Annotations:
    recording = recordings.of_table()
    found = CHANNEL.search(path.name)
    is_channel = found and path.name[: found.start()] in (recording.stem, recording.name)
    of = recording, int(found[1]) if found and is_channel else None

    def rows() -> Iterator[tables.Row]:
        waiting: tuple[int, str] | None = None
        for number, line in lines(path):
            if not line.strip():
                continue
            if not line.lstrip().startswith("\\"):
                if waiting:
                    yield _label(of, *waiting, [])
                waiting = number, line
            elif waiting:
                yield _label(of, *waiting, line.split()[1:])
                waiting = None
            else:
                yield number, "a frequency range without a label before it"
        if waiting:
            yield _label(of, *waiting, [])

    return _AUDACITY, rows, []


def _label(
    of: tuple[Path, int | None], line: int, text: str, frequencies: list[str]
) -> tuple[int, dict[str, Any] | str]:
    try:
        cells = _audacity_label(text)
        if cells is None:
            first, *rest = text.rstrip("\r\n").split("\t")
            if not rest:
                raise _BadRow(f"{first[:40]!r} is no label: start, end and text, with tabs between")
            cells = [first, *rest]
        start, end = _number(cells[0], "start"), _number(cells[1], "end")
        if start == end:
            raise _BadRow(f"a point label at {start:g} s has no length; make it a region")
        low, high = ([*frequencies, "", ""])[:2]
        texts = ("\t".join(cells[2:]).strip(), _frequency(low), _frequency(high))
        metadata = {name: text or None for name, text in zip(_AUDACITY, texts, strict=True)}
        return line, _row(of[0], (start, end), of[1], metadata)
    except _BadRow as error:
        return line, str(error)


def _frequency(cell: str) -> str:
    number = decimal(cell)
    return "" if number is None or number < 0 else cell.strip().replace(",", ".")  # -1: none given


# ---- Praat: intervals of a TextGrid


def _textgrid(path: Path, recordings: Recordings) -> Annotations:
    recording, grid = recordings.of_table(), textgrid.read_textgrid(path)

    def rows() -> Iterator[tables.Row]:
        for one in grid.intervals:
            metadata = {"label": one.text, "tier": one.tier}
            yield one.line, _row(recording, (one.start, one.end), None, metadata)

    return ("label", "tier"), rows, grid.notes


# ---- RTTM: speaker turns


def _rttm(path: Path, recordings: Recordings) -> Annotations:
    columns = (*_RTTM[4:], "confidence", "lookahead")

    def rows() -> Iterator[tables.Row]:
        for number, line in lines(path):
            fields = line.split()
            if not fields or fields[0].startswith(";;"):
                continue
            if fields[0] not in _RTTM_TYPES:
                yield number, f"not RTTM: a line begins with SPEAKER, not {fields[0][:40]!r}"
            elif fields[0] == "SPEAKER":
                try:
                    yield number, _turn(fields[1:], columns, recordings)
                except _BadRow as error:
                    yield number, str(error)

    return columns, rows, []


def _turn(fields: list[str], columns: Sequence[str], recordings: Recordings) -> dict[str, Any]:
    if len(fields) < len(_RTTM):
        raise _BadRow(f"{len(fields) + 1} fields, where a SPEAKER line has 9 or 10")
    values = [None if field == "<NA>" else field for field in (*fields, "<NA>", "<NA>", "<NA>")]
    start, duration = _number(values[2], "start"), _number(values[3], "duration")
    metadata = dict(zip(columns, values[4:], strict=False))
    span = start, start + duration
    return _row(recordings.named(fields[0]), span, _channel_from_zero(values[1]), metadata)
