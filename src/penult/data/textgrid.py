"""Praat TextGrids, in the long and the short form, as intervals. Knows no recordings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from penult.data.delimited import encoding_of, lines
from penult.errors import SourceError

SUFFIX = ".textgrid"
_MARK = re.compile(r'\s*File type\s*=\s*"ooTextFile|\s*"?ooTextFile', re.IGNORECASE)
# What is written aside of texts, numbers and <exists> is for the reader: names, [1], ! comments.
_TOKEN = re.compile(
    r'"(?P<text>(?:[^"]|"")*)"|<(?P<flag>exists|absent)>|\[[^\]\n]*\]|![^\n]*'
    r"|(?<![\w.])(?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])"
)


class TierInterval(NamedTuple):
    """One interval of a tier: its line in the file, seconds, text."""

    line: int
    start: float
    end: float
    tier: str
    text: str


class TextGrid(NamedTuple):
    """intervals: those with a text. notes: what was left out, in words."""

    intervals: list[TierInterval]
    notes: list[str]


def is_textgrid(head: str) -> bool:
    """Whether a text begins as a TextGrid does."""
    return bool(_MARK.match(head)) and "TextGrid" in head[:400]


def read_textgrid(path: Path) -> TextGrid:
    """The intervals of all tiers, in the file's order.

    Raises:
        SourceError: it is no TextGrid in text, or ends too early.
    """
    with path.open("rb") as file:
        if file.read(12).startswith(b"ooBinaryFile"):
            raise SourceError(f"{path} is a binary TextGrid; save it in Praat as a text file")
    encoding_of(path)  # refuses what is no text
    text = "".join(line for _, line in lines(path))
    if not is_textgrid(text[:1000]):
        raise SourceError(f"{path} does not begin as a TextGrid does: {text[:40].strip()!r}")
    try:
        return _read(path, _Tokens(text))
    except ValueError as error:
        raise SourceError(f"{path} is not in the order of a TextGrid: {error}") from error


class _Tokens:
    """The values of a TextGrid, one after the other."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self.line = text, 0, 1
        self._found = (m for m in _TOKEN.finditer(text) if m.lastgroup)

    def __next__(self) -> str:
        found = next(self._found, None)
        if found is None:
            raise ValueError("it ends too early: tiers or intervals are missing")
        self.line += self._text.count("\n", self._at, found.start())
        self._at = found.start()
        kind = found.lastgroup or ""
        return found[kind].replace('""', '"') if kind == "text" else found[kind]

    def number(self) -> float:
        """The next value, which is a number."""
        value = next(self)
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"line {self.line}: {value[:40]!r} is not a number") from None


def _read(path: Path, tokens: _Tokens) -> TextGrid:
    for _ in range(2):  # what file it is, and of what
        next(tokens)
    tokens.number(), tokens.number()
    if next(tokens) != "exists":
        return TextGrid([], [])
    intervals: list[TierInterval] = []
    points: list[str] = []
    empty = 0
    for _ in range(int(tokens.number())):
        kind, name = next(tokens), next(tokens)
        tokens.number(), tokens.number()
        count = int(tokens.number())
        if kind != "IntervalTier":
            points.append(name)
            for _ in range(count):
                tokens.number(), next(tokens)
            continue
        for one in _intervals(tokens, name, count):
            if one.text:
                intervals.append(one)
            else:
                empty += 1
    notes = []
    if points:
        named = ", ".join(map(repr, points))
        notes.append(f"{path.name}: points have no length; the tier {named} is left out")
    if empty:
        notes.append(f"{path.name}: {empty:,} intervals without a text are left out")
    return TextGrid(intervals, notes)


def _intervals(tokens: _Tokens, tier: str, count: int) -> Iterator[TierInterval]:
    for _ in range(count):
        start = tokens.number()
        line = tokens.line
        yield TierInterval(line, start, tokens.number(), tier, next(tokens).strip())
