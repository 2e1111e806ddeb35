"""Delimited text as records: encoding, delimiter, quotes, decimal commas. Knows no roles.

Only the dialect is found out here, and what was found beside the usual one is noted.
"""

from __future__ import annotations

import codecs
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import chain, count
from pathlib import Path

from penult.data.formulas import read_cells
from penult.errors import SourceError

_HEAD = 1 << 16  # bytes that suffice to recognise a table
_CHUNK = 1 << 20
_BYTE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as Python escapes it
_OTHER = re.compile("[\x80-\U0010ffff]")
_UNUSED = frozenset("\udc81\udc8d\udc8f\udc90\udc9d")  # bytes that Windows-1252 does not use
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}", re.ASCII)  # which 1,234 could be, or 1.234

_NUMBER = re.compile(r"\s*[-+]?[\d.,]+([eE][-+]?\d+)?\s*", re.ASCII)
_SEPARATOR = re.compile(r'"?sep=(\\t|.)"?\s*', re.IGNORECASE)  # a line that Excel writes in front
_SPACED = re.compile("(^|\x1f)[ \t]|[ \t](\x1f|$)")
_TEXTS = frozenset({"text"})  # whose spaces count

Record = tuple[int, list[str]]  # its line, and its cells


def encoding_of(path: Path) -> str:
    """UTF-8, UTF-16 or Windows-1252, by the mark at the beginning or by what the bytes can be.

    Raises:
        SourceError: it is none of them, or no text.
    """
    status = path.stat()
    return _encoding(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _encoding(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        start = file.read(_HEAD)
        for mark, name in _BOMS:
            if start.startswith(mark):
                return name
        if b"\0" in start:
            if half := _half_empty(start):
                return half
            raise SourceError(f"{path} is no text: it holds zero bytes")
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        line, bad, proper = 1, "", False
        for chunk in chain(iter(partial(file.read, _CHUNK), b""), [b""]):
            text = decoder.decode(chunk, final=not chunk)
            found = _BYTE.findall(text)
            if found and not bad:
                line += text[: text.index(found[0])].count("\n")
                bad = found[0]
            elif not bad:
                line += text.count("\n")
            unused = next((one for one in found if one in _UNUSED), "")
            proper = proper or bool(unused) or len(_OTHER.findall(text)) > len(found)
    if not bad:
        return "utf-8"
    if proper:  # in parts UTF-8: read as another encoding, these parts would be wrong
        raise SourceError(
            f"{path}: line {line} is not UTF-8 (byte 0x{ord(bad) - 0xDC00:02x}), and the file is "
            "not Windows-1252 either; save the table as UTF-8"
        )
    return "cp1252"


def _half_empty(start: bytes) -> str:
    """UTF-16 without a mark: every second byte of plain text is zero."""
    pairs = len(start) // 2
    low, high = start[: 2 * pairs : 2].count(0), start[1 : 2 * pairs : 2].count(0)
    if 2 * high > pairs and not low:
        return "utf-16-le"
    return "utf-16-be" if 2 * low > pairs and not high else ""


def head_of(path: Path) -> str:
    """The beginning of a text file, for a look at its format; empty where it is no text."""
    try:
        encoding = encoding_of(path)
        with path.open("rb") as file:
            return file.read(_HEAD).decode(encoding, "replace").removeprefix("\ufeff")
    except (OSError, SourceError):
        return ""


LONGEST_LINE = 1 << 27  # characters: whole texts stand in one


def lines(
    path: Path, longest: int = LONGEST_LINE, instead: str | None = None
) -> Iterator[tuple[int, str]]:
    """The lines of a text file, each with its number and its end; none that is longer than
    `longest` is held. instead: what comes in the place of such a line.

    Raises:
        SourceError: its encoding is none of `encoding_of`; a longer line, and nothing instead.
    """
    encoding = encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        number = 0
        try:
            for number, line in enumerate(iter(partial(file.readline, longest), ""), 1):
                if len(line) == longest and not line.endswith(("\n", "\r")):
                    if instead is None:
                        raise SourceError(
                            f"{path}: line {number} has more than {longest:,} characters"
                        )
                    while (rest := file.readline(longest)) and not rest.endswith(("\n", "\r")):
                        pass
                    line = instead
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{path}: what comes after line {number} is not {encoding}: {error.reason}"
            ) from error


def decimal(text: str) -> float | None:
    """A cell as a finite number, with a decimal point or comma; None if it is none."""
    text = text.strip()
    if _COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


@dataclass(frozen=True)
class DelimitedText:
    """A table of text: its header, and its records read anew each time.

    delimiter, quotes: given by a format; else the delimiter is found in the header. known: names
    of columns, in small letters, that tell the right delimiter, and that hold numbers.
    """

    path: Path
    delimiter: str = ""
    quotes: bool = True
    known: frozenset[str] = field(default_factory=frozenset)
    _repeated: dict[str, str] = field(default_factory=dict, init=False)

    @cached_property
    def _start(self) -> tuple[int, str]:
        """The lines before the header, and the header."""
        for number, line in lines(self.path):
            if line.strip() and not _SEPARATOR.fullmatch(line):
                return number - 1, line
        raise SourceError(f"{self.path} is empty; a table's first line names its columns")

    @cached_property
    def separator(self) -> str:
        """What stands between the cells."""
        if self.delimiter:
            return self.delimiter
        before, header = self._start
        if before and (said := _SEPARATOR.fullmatch(next(lines(self.path))[1])):
            return said[1].replace("\\t", "\t")
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","

        def fits(delimiter: str) -> tuple[int, int, bool]:
            names = [name.strip(' "\r\n').casefold() for name in header.split(delimiter)]
            return sum(name in self.known for name in names), len(names), delimiter == usual

        return max((",", ";", "\t", "|"), key=fits)

    @cached_property
    def header(self) -> list[str]:
        """The columns' names; empty ones at the end are left out, as their cells have to be. Of two
        with one name the second is called `name_2`.

        Raises:
            SourceError: two have the same name that says what the items are, or the header is not
                in the dialect.
        """
        names = next(self._cells())[1]
        while names and not names[-1]:
            names.pop()
        for index, name in enumerate(names):
            if name not in names[:index]:
                continue
            if not name or name.casefold() in self.known:
                raise SourceError(f"{self.path} has more than one column {name!r}")
            others = set(names)
            names[index] = next(new for at in count(2) if (new := f"{name}_{at}") not in others)
            self._repeated[names[index]] = name
        return names

    @property
    def line(self) -> int:
        """The line of the header."""
        return self._start[0] + 1

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """The cells of each record, as many as the header has; or the reason why there are none.

        Spaces around a cell count where it is a text; in a table that pads its cells they do not.
        """
        width, commas = len(self.header), self.commas
        for line, record in self._records():
            if len(record) < width or any(cell.strip() for cell in record[width:]):
                yield line, f"{len(record)} fields, where the header names {width}"
                continue
            cells = record[:width]
            for index in commas:
                cells[index] = cells[index].replace(",", ".")
            yield line, cells

    @cached_property
    def commas(self) -> frozenset[int]:
        """The columns whose numbers have decimal commas.

        A table has them if it is divided by semicolons, or if a column that is known to hold
        numbers has them. 1,234 alone may be a thousand and more: it needs another sign.
        """
        if self.separator == ",":
            quoted = any('"' in line for _, line in lines(self.path))
            if not quoted:
                return frozenset()
        found, sure = self._numbers_with_commas()
        places = {i for i in found if self.header[i].casefold() in self.known}
        if self.separator != ";" and not places & sure:
            return frozenset()
        return frozenset(found)

    def _numbers_with_commas(self) -> tuple[set[int], set[int]]:
        """Columns of whole numbers and numbers with a comma, and those in which it is surely one of
        decimals."""
        width = len(self.header)
        found, sure, other = set[int](), set[int](), set[int]()
        for _, record in self._records():
            for index, cell in enumerate(record[:width]):
                if index in other or not cell:
                    continue
                if _COMMA.fullmatch(cell):
                    found.add(index)
                    if not _THOUSANDS.fullmatch(cell):
                        sure.add(index)
                elif not _INTEGER.fullmatch(cell):
                    other.add(index)
        return found - other, sure - other

    @property
    def notes(self) -> list[str]:
        """What is unusual about the dialect, in words."""
        found = []
        encoding = encoding_of(self.path)
        if encoding == "cp1252":
            found.append(f"{self.path.name} is not UTF-8 and is read as Windows-1252")
        if self.commas:
            names = ", ".join(repr(self.header[index]) for index in sorted(self.commas))
            found.append(f"{self.path.name} has decimal commas (0,5 is read as 0.5) in {names}")
        for new, name in self._repeated.items():
            found.append(f"{self.path.name} has more than one column {name!r}; one is {new!r} here")
        return found

    def _records(self) -> Iterator[Record]:
        """Those behind the header that are not blank."""
        known = {i for i, name in enumerate(self.header) if name.casefold() in self.known - _TEXTS}
        texts = {i for i, name in enumerate(self.header) if name.casefold() in _TEXTS}
        padded = self._is_padded
        records = self._cells()
        next(records)
        for line, record in records:
            if _SPACED.search("\x1f".join(record)):
                for index, cell in enumerate(record):
                    number = index not in texts and _NUMBER.fullmatch(cell)
                    if padded or index in known or number:
                        record[index] = cell.strip(" \t")
            if record:
                yield line, record

    @cached_property
    def _is_padded(self) -> bool:
        """Whether all cells of the header or of the first record, but for the first and the last
        one, have a space on the same side."""
        if not self.quotes:
            return True
        names = self._start[1].rstrip("\r\n").split(self.separator)
        records = self._cells()
        next(records)
        first = next((record for _, record in records if record), [])
        return any(
            _all_padded(cells[1:], 0) or _all_padded(cells[:-1], -1) for cells in (names, first)
        )

    def _cells(self) -> Iterator[Record]:
        """The records, the header first, each with the line it ends on."""
        before, head = self._start
        numbered = lines(self.path)
        rest = (line for number, line in numbered if number > before + 1)
        separator = self.separator
        csv.field_size_limit(max(csv.field_size_limit(), 1 << 27))  # whole texts stand in one field
        # Strict: a quote that is never closed would otherwise swallow the rest of the table.
        reader = csv.reader(
            chain([head], rest),
            delimiter=separator,
            strict=self.quotes,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            skipinitialspace=f"{separator} " in head,
        )
        try:
            head_cells = read_cells(next(reader))
            yield before + reader.line_num + 1, [name.strip() for name in head_cells]
            for record in reader:
                filled = any(map(str.strip, record))
                yield before + reader.line_num, read_cells(record) if filled else []
        except csv.Error as error:
            line = before + reader.line_num
            raise SourceError(f"{self.path}: line {line} is not CSV: {error}") from error


def _all_padded(cells: list[str], side: int) -> bool:
    filled = [cell for cell in cells if cell]
    return len(filled) > 1 and all(cell[side] == " " and cell.strip() for cell in filled)
