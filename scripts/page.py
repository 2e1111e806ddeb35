"""docs/benchmarks.md: a part for each section of the bench, between markers, replaced as a whole.

Knows text only; what is measured comes from the sections.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
WIDTH = 118  # of the lines of the page
UNMEASURED = "Not measured"  # the beginning of what stands in the place of figures
_PART = re.compile(r"^<!-- section: ([a-z-]+) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Table:
    """A table. columns: the first one says what each row is; the others are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Columns of one width each, so that it can be read as it is."""
        lines = [list(self.columns), *map(list, self.rows)]
        widths = [max(3, *(len(line[at]) for line in lines)) for at in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            first = cells[0].ljust(widths[0])
            rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            return f"| {' | '.join([first, *rest])} |"

        rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


@dataclass(frozen=True, slots=True)
class Head:
    """What a part's figures are of. load: of other processes; peaks: of products in this run."""

    date: str
    command: str
    machine: str
    versions: str
    peaks: str
    load: str

    def markdown(self) -> str:
        """A list, in the order in which the figures were taken."""
        return "\n".join(
            (
                f"- {self.date}: `{self.command}`",
                f"- Machine: {self.machine}",
                f"- Versions: {self.versions}",
                f"- Peaks: {self.peaks}",
                f"- Load: {self.load}",
            )
        )


def part(title: str, words: str, head: Head | None, blocks: Sequence[str]) -> str:
    """The text of a part. head: None where nothing was measured."""
    wrapped = textwrap.fill(words, WIDTH, break_long_words=False, break_on_hyphens=False)
    pieces = [f"## {title}", wrapped, *([head.markdown()] if head else []), *blocks]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def placeholder(title: str, words: str, command: str) -> str:
    """A part whose figures are still to be taken."""
    return part(title, words, None, [f"{UNMEASURED} yet: `{command}`"])


def parts(text: str) -> dict[str, str]:
    """The parts of a page by the names of their sections, in its order."""
    return dict(_PART.findall(text))


def replaced(text: str, name: str, body: str) -> str:
    """The page with another text for one part; every other byte stays.

    Raises:
        ValueError: the page has no such part, or two, or the text would end the part early.
    """
    if text.count(f"<!-- section: {name} -->") != 1 or name not in parts(text):
        raise ValueError(f"the page has no place for {name!r}, or not one alone")
    if "<!--" in body:
        raise ValueError(f"the text of {name!r} has a marker in it")

    def anew(found: re.Match[str]) -> str:
        if found[1] != name:
            return found[0]
        return f"<!-- section: {name} -->\n{body}<!-- end -->"

    return _PART.sub(anew, text)


def write(name: str, body: str, path: Path = PAGE) -> None:
    """Replace a part of the page on the disk."""
    changed = replaced(path.read_bytes().decode("utf-8"), name, body)
    path.write_bytes(changed.encode("utf-8"))
