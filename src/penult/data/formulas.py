"""Cells that a spreadsheet would run as formulas: written to be shown, read as they were."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

# How a cell begins that is run, or that puts what follows it into a cell of its own; with the signs
# that East Asian input writes for the same. A number is none.
_BEGIN = "[ \u00a0]*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]"
_FORMULA = re.compile(rf"'*(?=({_BEGIN}))(?s:(.*))")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?|[+-]?(inf|nan)", re.IGNORECASE)


def harmless(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet would run it; numbers stay."""
    return f"'{text}" if _is_formula(text) else text


def original(text: str) -> str:
    """What `harmless` made of a text, as it was."""
    return text[1:] if text[:1] == "'" and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    found = _FORMULA.fullmatch(text)
    return found is not None and not _NUMBER.fullmatch(found[2])


class Cells:
    """How texts are written into a table. raw: as they are. changed: how many were not; paths: how
    many of these are paths that begin with `./` now."""

    def __init__(self, raw: bool = False) -> None:
        self.raw = raw
        self.changed = self.paths = 0

    def __call__(self, value: Any) -> Any:
        """A text that a spreadsheet shows; any other value as it is."""
        if self.raw or not isinstance(value, str):
            return value
        written = harmless(value)
        self.changed += written != value
        return written

    def path(self, value: str) -> str:
        """A path for programs that open it: begun with `./`, which names the same file."""
        if self.raw or not _is_formula(value):
            return value
        self.changed += 1
        self.paths += 1
        return f"./{value}"

    def joined(self, texts: Sequence[str], sign: str = ";") -> str:
        """Texts in one cell, none of which begins a formula where the sign parts cells."""
        return sign.join([*texts[:1], *map(self, texts[1:])])

    def columns(self, batch: pa.RecordBatch | pa.Table) -> Any:
        """A batch or a table with its texts, and the names of its columns, as cells."""
        columns = [self._column(column) for column in batch.columns]
        names = [self(name) for name in batch.schema.names]
        return type(batch).from_arrays(columns, names=names)

    def _column(self, column: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if self.raw or not texts:
            return column
        if not pc.any(pc.match_substring_regex(column, f"^'*{_BEGIN}")).as_py():
            return column
        return pa.array([self(value) for value in column.to_pylist()], column.type)

    def tell(self, out: str | os.PathLike[str]) -> None:
        """Log how many cells of a file were changed, if any."""
        if self.changed:
            one = self.changed == 1
            log.warning(
                "%s: %s that a spreadsheet would run as %s with %s; --raw-cells keeps %s as %s",
                out,
                "1 text" if one else f"{self.changed:,} texts",
                "a formula begins" if one else "formulas begin",
                " or ".join(
                    ["an apostrophe"] * (self.changed > self.paths) + ["./"] * (self.paths > 0)
                ),
                *(("it", "it is") if one else ("them", "they are")),
            )


def read_cells(record: Iterable[str]) -> list[str]:
    """A record of a table, as it was before it was written."""
    return [original(cell) if cell[:1] == "'" else cell for cell in record]
