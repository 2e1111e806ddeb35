"""Tables of any format as rows of typed values: CSV, TSV, JSONL, Parquet. Knows no items.

Types are found by reading a table once before it is used; nothing is held in memory.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penult.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[int, dict[str, Any] | str]  # its line, and its values or what is wrong with it

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

# ASCII: a Turkish ı is no i, and digits of other scripts would not read back the same.
_INT = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)
_FLOAT = re.compile(
    r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|-?inf", re.ASCII | re.IGNORECASE
)
_BOOL = ("true", "false")


class Opened(NamedTuple):
    """unit: what a row is called, line or row. types: by the table's own column names."""

    unit: str
    rows: Callable[[], Iterator[Row]]
    types: dict[str, pa.DataType]
    total: int


def opened(path: Path) -> Opened:
    """A table's rows, its columns' types and its length; rows are read anew at each call.

    Raises:
        SourceError: it is not readable as what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        types, total = _parquet_types(path)
        return Opened("row", partial(_parquet_rows, path), types, total)
    is_json = suffix in (".jsonl", ".ndjson")
    rows = partial(_jsonl_rows if is_json else _csv_rows, path)
    types, total = scanned(rows, [] if is_json else next(_csv_records(path))[1])
    return Opened("line", rows, types, total)


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both columns' values."""
    import pyarrow as pa

    if one == other:
        return one
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
    """A cell as text; what is not text already, as JSON."""
    if isinstance(value, str):
        return value
    is_json = isinstance(value, (bool, int, float, list, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)


def scanned(
    rows: Callable[[], Iterator[Row]], names: list[str]
) -> tuple[dict[str, pa.DataType], int]:
    """Each column's type, the narrowest that holds all its values, and how many rows there are.

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
        if kinds and kinds <= {"int", "wide int"}:
            types[name] = pa.int64()
        elif kinds and kinds <= {"int", "float"}:
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
    return type if pa.types.is_boolean(type) or pa.types.is_date(type) else pa.string()


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
