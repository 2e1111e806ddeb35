"""Tables of files, of segments or of texts as items with typed metadata. Knows no folders."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.errors import RegionError, SourceError
from penult.regions import WHOLE, Region
from penult.sources import tabular
from penult.sources.items import Entry, Item, Placed, as_id, failure, file_item, local, text_item

if TYPE_CHECKING:
    import pyarrow as pa

RESERVED = frozenset(
    {"id", "region", "kind", "channel", "start", "end", "vector", "logits", "label", "score"}
    | {"truncated", "content_hash", "size", "mtime_ns", "run_id"}
)  # a collection's own columns, which metadata cannot be called

PATH = "path"  # the metadata column with the file of an item whose id is another
_UNDERSTOOD = {  # what a table's columns can say besides metadata
    "audio": ("path", "id", "start", "end", "channel"),
    "video": ("path", "id", "start", "end"),
    "image": ("path", "id"),
    "text": ("path", "id"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of items, read anew for each iteration."""

    path: Path
    modality: str
    unit: str  # "line" or "row"
    rows: Callable[[], Iterator[tabular.Row]]
    types: dict[str, pa.DataType]  # by the table's own names
    total: int
    subject: str  # the column that holds the item: path or text
    names: dict[str, str]  # metadata: the table's name -> the collection's
    keeps_path: bool = False  # as metadata, because the id is another

    def entries(self, columns: dict[str, pa.DataType]) -> Iterator[Placed]:
        """Its rows as items whose metadata has the types of `columns`.

        Segments of one file come together and by their start, so that it is decoded once.
        """
        rows = self.rows()
        if self._has_segments and not _in_order(self.rows()):
            rows = _ordered(rows)
        for line, row in rows:
            yield line, self._entry(line, row, columns)

    @property
    def _has_segments(self) -> bool:
        understood = _UNDERSTOOD[self.modality]
        return any(name in understood and name in self.types for name in ("start", "end"))

    def _entry(self, line: int, row: dict[str, Any] | str, columns: dict[str, Any]) -> Entry:
        where = f"{self.path.name} {self.unit} {line}"
        nowhere = Item(f"{self.path}:{line}", "")
        if isinstance(row, str):
            return failure(nowhere, WHOLE.key, SourceError(row), where)
        subject = row.get(self.subject)
        if subject is None and self.subject == "path":
            return failure(nowhere, WHOLE.key, SourceError("the path is empty"), where)
        id = None if row.get("id") is None else tabular.as_text(row["id"])
        metadata = {
            new: tabular.typed(row.get(old), columns[new]) for old, new in self.names.items()
        }
        if self.subject == "text":
            text = tabular.as_text("" if subject is None else subject)
            return text_item(text, id, metadata), WHOLE
        try:
            path = local(tabular.as_text(subject), str(self.path.parent))
            if self.keeps_path and id is not None:
                metadata[PATH] = as_id(path)
            item = file_item(path, id, metadata)
        except SourceError as error:
            return failure(Item(id or tabular.as_text(subject), ""), WHOLE.key, error, where)
        try:
            return item, _region(row, self.modality)
        except RegionError as error:
            asked = f"{row.get('start') or 0}-{row.get('end') or 'end'}"
            return failure(item, asked, error, where)


def open_table(path: Path, modality: str, opened: tabular.Opened) -> Table:
    """A table whose columns say what the items are.

    Raises:
        SourceError: no column does, or two would have the same name in a collection.
    """
    unit, rows, types, total = opened
    subject = "text" if modality == "text" and "text" in types else "path"
    if subject not in types:
        wanted = "`text` or `path`" if modality == "text" else "`path`"
        raise SourceError(f"{path} has no column {wanted}; it has {', '.join(types) or 'none'}")
    # A text has no file to open: it is kept as metadata, to be read in results.
    taken = ("id",) if subject == "text" else _UNDERSTOOD[modality]
    names: dict[str, str] = {}
    for old in types:
        if old in taken:
            continue
        new = _column_name(old)
        if new in names.values():
            raise SourceError(f"{path}: two columns would both be called {new}; rename {old!r}")
        names[old] = new
    # Where its file lies cannot be told from an id of the table's own.
    keeps_path = "id" in types and subject == "path" and PATH not in map(str.lower, names.values())
    return Table(path, modality, unit, rows, types, total, subject, names, keeps_path)


def columns_of(tables: list[Table]) -> tuple[dict[str, pa.DataType], dict[str, str]]:
    """The metadata columns of all tables together, and which of them were renamed."""
    import pyarrow as pa

    columns: dict[str, pa.DataType] = {}
    renamed: dict[str, str] = {}
    for table in tables:
        for old, new in table.names.items():
            columns[new] = tabular.common(columns.get(new, table.types[old]), table.types[old])
            if old != new:
                renamed[old] = new
        if table.keeps_path:
            columns[PATH] = pa.string()
    return columns, renamed


def _region(row: dict[str, Any], modality: str) -> Region:
    given = {name: row.get(name) for name in _UNDERSTOOD[modality] if name not in ("path", "id")}
    start, end = _number(given, "start"), _number(given, "end")
    channel = _number(given, "channel")
    if channel is not None and not channel.is_integer():
        raise RegionError(f"channel {given['channel']!r} is not a whole number")
    return Region(
        kind="whole" if start is None and end is None else "segment",
        start=start,
        end=end,
        channel=None if channel is None else int(channel),
    )


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RegionError(f"{name} {value!r} is not a number")
    return number


def _column_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if not name.startswith("_"):
        plain = plain.lstrip("_") or "unnamed"
    if plain[0].isdigit():
        plain = f"c{plain}"
    # Names that begin with _ are the store's.
    return f"{plain}_given" if plain in RESERVED or plain.startswith("_") else plain


# ---- the order of segments


def _place(row: dict[str, Any] | str) -> tuple[object, float]:
    """The file and the start of a row; what is no row keeps its place among the files."""
    if isinstance(row, str):
        return None, 0.0
    try:
        start = _number(row, "start") or 0.0
    except RegionError:
        start = 0.0
    return tabular.as_text(row["path"]) if row.get("path") is not None else None, start


def _in_order(rows: Iterator[tabular.Row]) -> bool:
    seen: set[int] = set()  # a hash for each file, not for each row
    file: object = None
    latest = 0.0
    for _, row in rows:
        path, start = _place(row)
        if path is None:
            continue
        if path != file:
            if hash(path) in seen:
                return False
            seen.add(hash(path))
            file, latest = path, start
        if start < latest:
            return False
        latest = start
    return True


def _ordered(rows: Iterator[tabular.Row]) -> Iterator[tabular.Row]:
    """The rows by file, in the order in which the files first come, and by start."""
    # A million rows of six columns: 300 MB packed, 860 MB as they are (measured).
    held: list[tuple[int, float, bytes]] = []
    numbers: dict[object, int] = {}
    for row in rows:
        path, start = _place(row[1])
        number = len(numbers) if path is None else numbers.setdefault(path, len(numbers))
        held.append((number, start, pickle.dumps(row)))
    held.sort(key=lambda one: one[:2])  # stable: equal ones as in the table
    return (pickle.loads(packed) for _, _, packed in held)  # noqa: S301 - our own
