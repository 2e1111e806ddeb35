"""CSV, TSV, JSONL and Parquet tables as typed rows, and as items with metadata. Knows no
folders.
"""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penult.data.items import Entry, Item, Placed, as_id, failure, file_item, local, text_item
from penult.data.regions import WHOLE, Region
from penult.errors import RegionError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa


Row = tuple[int, dict[str, Any] | str]  # its line, and its values or the reason why it has none

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

# ASCII: a Turkish ı is no i, and digits of other scripts would not read back the same.
_INT = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)
_FLOAT = re.compile(
    r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|-?inf", re.ASCII | re.IGNORECASE
)
_BOOL = ("true", "false")


class TableRows(NamedTuple):
    """unit: what a row is called, line or row. types: by the table's own column names."""

    unit: str
    rows: Callable[[], Iterator[Row]]
    types: dict[str, pa.DataType]
    total: int


def read_table(path: Path) -> TableRows:
    """A table's rows, its columns' types and its length; rows are read anew at each call.

    Raises:
        SourceError: it is not readable in the format of its suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        types, total = _parquet_types(path)
        return TableRows("row", partial(_parquet_rows, path), types, total)
    is_json = suffix in (".jsonl", ".ndjson")
    rows = partial(_jsonl_rows if is_json else _csv_rows, path)
    types, total = scan_types(rows, [] if is_json else next(_csv_records(path))[1])
    return TableRows("line", rows, types, total)


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both columns' values; null, of a column without any, fits all."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def typed(value: Any, type: pa.DataType) -> object:
    """A table's value as the Python type of its column."""
    name = str(type)
    if value is None:
        return None
    if name == "string":
        return as_text(value)
    if name == "bool":
        return value if isinstance(value, bool) else value.lower() == "true"
    return {"int64": int, "double": float}.get(name, lambda same: same)(value)


def as_text(value: Any) -> str:
    """A cell as text; other values as JSON."""
    if isinstance(value, str):
        return value
    is_json = isinstance(value, (bool, int, float, list, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)


def scan_types(
    rows: Callable[[], Iterator[Row]], names: list[str]
) -> tuple[dict[str, pa.DataType], int]:
    """Each column's type, the narrowest that holds all its values (null: it has none), and how
    many rows there are.

    `names` are the columns of a table whose cells are texts; empty: cells have their own types.
    """
    import pyarrow as pa

    seen: dict[str, set[str]] = {name: set() for name in names}
    total = 0
    for _, row in rows():
        total += 1
        for name, value in ({} if isinstance(row, str) else row).items():
            kinds = seen.setdefault(name, set())
            if value is not None and "string" not in kinds:
                kinds.add(_kind(value, textual=bool(names)))
    types = {}
    for name, kinds in seen.items():
        if not kinds:
            types[name] = pa.null()  # no value, no type
        elif kinds <= {"int", "wide int"}:
            types[name] = pa.int64()
        elif kinds <= {"int", "float"}:
            types[name] = pa.float64()
        else:
            types[name] = pa.bool_() if kinds == {"bool"} else pa.string()
    return types, total


def _kind(value: Any, textual: bool) -> str:
    if textual:  # a CSV's cell; what does not read back the same, as 007, stays a string
        if _INT.fullmatch(value):
            value = int(value)
        elif _FLOAT.fullmatch(value):
            return "float"
        else:
            return "bool" if value.lower() in _BOOL else "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):  # a double holds whole numbers up to 2**53 only
        return "int" if abs(value) <= 2**53 else "wide int" if abs(value) < 2**63 else "string"
    return "float" if isinstance(value, float) else "string"


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, each with its number.

    Raises:
        SourceError: a line is not UTF-8.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{raw[error.start]:02x}"
                raise SourceError(
                    f"{path}: line {number} is not UTF-8 (byte {byte}); save the table as UTF-8"
                ) from error
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, the header first, each with the line it ends on."""
    numbered = lines(path)
    before, head = next(((n - 1, line) for n, line in numbered if line.strip()), (0, ""))
    if not head:
        raise SourceError(f"{path} is empty; a table's first line names its columns")
    comma = ";" if ";" in head and "," not in head else ","
    delimiter = "\t" if path.suffix.lower() == ".tsv" else comma
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 27))  # whole texts stand in one field
    # Strict: a quote that is never closed would otherwise swallow the rest of the table.
    reader = csv.reader(
        chain([head], (line for _, line in numbered)), delimiter=delimiter, strict=True
    )
    try:
        header = [name.strip() for name in next(reader)]
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if repeated:
            raise SourceError(f"{path} has more than one column {repeated[0]!r}")
        yield before + reader.line_num, header
        yield from ((before + reader.line_num, record) for record in reader if record)
    except csv.Error as error:
        line = before + reader.line_num
        raise SourceError(f"{path}: line {line} is not CSV: {error}") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    records = _csv_records(path)
    _, header = next(records)
    for line, record in records:
        if len(record) == len(header):
            yield line, {name: value or None for name, value in zip(header, record, strict=True)}
        else:
            yield line, f"{len(record)} fields, where the header names {len(header)}"


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else f"{line.strip()[:40]} is no object"


def _parquet_types(path: Path) -> tuple[dict[str, pa.DataType], int]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, total = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not readable as Parquet: {error}") from error
    if len(set(schema.names)) < len(schema.names):
        raise SourceError(f"{path} has columns of the same name: {', '.join(schema.names)}")
    return {column.name: _simple_type(column.type) for column in schema}, total


def _simple_type(type: pa.DataType) -> pa.DataType:
    """The column type that metadata of an Arrow type is kept in; nested values become JSON."""
    import pyarrow as pa

    if pa.types.is_dictionary(type):
        return _simple_type(type.value_type)
    if pa.types.is_integer(type) and not pa.types.is_uint64(type):  # which may not fit int64
        return pa.int64()
    if pa.types.is_floating(type) or pa.types.is_decimal(type):
        return pa.float64()
    if pa.types.is_timestamp(type):
        return pa.timestamp("us", type.tz)  # Python's datetime has no nanoseconds
    kept = pa.types.is_boolean(type) or pa.types.is_date(type) or pa.types.is_null(type)
    return type if kept else pa.string()


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            columns = [
                column.cast(_simple_type(column.type), safe=False)
                if pa.types.is_timestamp(column.type)
                else column
                for column in batch.columns
            ]
            for row in pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist():
                number += 1
                yield number, row


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
    rows: Callable[[], Iterator[Row]]
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
        id = None if row.get("id") is None else as_text(row["id"])
        metadata = {new: typed(row.get(old), columns[new]) for old, new in self.names.items()}
        if self.subject == "text":
            text = as_text("" if subject is None else subject)
            return text_item(text, id, metadata), WHOLE
        try:
            path = local(as_text(subject), str(self.path.parent))
            if self.keeps_path and id is not None:
                metadata[PATH] = as_id(path)
            item = file_item(path, id, metadata)
        except SourceError as error:
            return failure(Item(id or as_text(subject), ""), WHOLE.key, error, where)
        try:
            return item, _region(row, self.modality)
        except RegionError as error:
            span = f"{row.get('start') or 0}-{row.get('end') or 'end'}"
            return failure(item, span, error, where)


def open_table(path: Path, modality: str, rows: TableRows) -> Table:
    """A table whose columns say what the items are.

    Raises:
        SourceError: no column does, or two would have the same name in a collection.
    """
    unit, read_rows, types, total = rows
    subject = "text" if modality == "text" and "text" in types else "path"
    if subject not in types:
        needed = "`text` or `path`" if modality == "text" else "`path`"
        raise SourceError(f"{path} has no column {needed}; it has {', '.join(types) or 'none'}")
    # A text has no file to open: it is kept as metadata, to be read in results.
    claimed = ("id",) if subject == "text" else _UNDERSTOOD[modality]
    names: dict[str, str] = {}
    for old in types:
        if old in claimed:
            continue
        new = _column_name(old)
        if new in names.values():
            raise SourceError(f"{path}: two columns would both be called {new}; rename {old!r}")
        names[old] = new
    # Where its file lies cannot be told from an id of the table's own.
    keeps_path = "id" in types and subject == "path" and PATH not in map(str.lower, names.values())
    return Table(path, modality, unit, read_rows, types, total, subject, names, keeps_path)


def columns_of(tables: list[Table]) -> tuple[dict[str, pa.DataType], dict[str, str]]:
    """The metadata columns of all tables together, and which of them were renamed."""
    import pyarrow as pa

    columns: dict[str, pa.DataType] = {}
    renamed: dict[str, str] = {}
    for table in tables:
        for old, new in table.names.items():
            columns[new] = common(columns.get(new, table.types[old]), table.types[old])
            if old != new:
                renamed[old] = new
        if table.keeps_path:
            columns[PATH] = pa.string()
    return columns, renamed


def _region(row: dict[str, Any], modality: str) -> Region:
    fields = {name: row.get(name) for name in _UNDERSTOOD[modality] if name not in ("path", "id")}
    start, end = _number(fields, "start"), _number(fields, "end")
    channel = _number(fields, "channel")
    if channel is not None and not channel.is_integer():
        raise RegionError(f"channel {fields['channel']!r} is not a whole number")
    return Region(
        kind="whole" if start is None and end is None else "segment",
        start=start,
        end=end,
        channel=None if channel is None else int(channel),
    )


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
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
    """The file and the start of a row; a bad row keeps its place among the files."""
    if isinstance(row, str):
        return None, 0.0
    try:
        start = _number(row, "start") or 0.0
    except RegionError:
        start = 0.0
    return as_text(row["path"]) if row.get("path") is not None else None, start


def _in_order(rows: Iterator[Row]) -> bool:
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


def _ordered(rows: Iterator[Row]) -> Iterator[Row]:
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
