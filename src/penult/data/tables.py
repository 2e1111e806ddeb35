"""CSV, TSV, JSONL and Parquet tables as typed rows, and as items with metadata. Knows no
folders.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penult.data.decode import DecodeTarget, Describe, described
from penult.data.delimited import DelimitedText, decimal, lines
from penult.data.documents import of_others
from penult.data.folders import Recordings
from penult.data.items import (
    Entry,
    Item,
    Placed,
    as_id,
    failure,
    file_item,
    is_object,
    local,
    row_id,
    text_item,
)
from penult.data.regions import WHOLE, Region
from penult.data.table_roles import EDGES, FOLDERS, KNOWN, Roles, find_roles, unused_span
from penult.data.workers import headers
from penult.errors import ItemError, RegionError, SourceError, cause

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
_LONGEST_TEXT, _LONGER = 1 << 24, "(longer)"  # characters of a line of JSON, and a line of more


class TableRows(NamedTuple):
    """unit: what a row is called, line or row. types: by the table's own column names. notes: what
    is unusual about the file, in words."""

    unit: str
    rows: Callable[[], Iterator[Row]]
    types: dict[str, pa.DataType]
    total: int
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> TableRows:
    """A table's rows, its columns' types and its length; rows are read anew at each call.

    Raises:
        SourceError: it is not readable in the format of its suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        types, total = _parquet_types(path)
        return TableRows("row", partial(_parquet_rows, path), types, total)
    if suffix in (".jsonl", ".ndjson"):
        rows = partial(_jsonl_rows, path)
        return TableRows("line", rows, *scan_types(rows, []))
    text = DelimitedText(path, known=KNOWN)
    rows = partial(_csv_rows, text)
    return TableRows("line", rows, *scan_types(rows, text.header), tuple(text.notes))


def check_case(path: Path, names: Iterable[str]) -> None:
    """Refuse columns that cannot be told apart, since names of columns ignore case.

    Raises:
        SourceError: two of them differ in case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.strip().casefold(), name)) != name:
            raise SourceError(
                f"{path} has columns {other!r} and {name!r}, which differ in case only; names of "
                "columns ignore it, so rename one"
            )


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


def _csv_rows(text: DelimitedText) -> Iterator[Row]:
    for line, cells in text.rows():
        if isinstance(cells, str):
            yield line, cells
        else:
            row = zip(text.header, cells, strict=True)
            yield line, {name: value or None for name, value in row}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in lines(path, _LONGEST_TEXT, _LONGER):
        if line is _LONGER:
            yield number, f"it has more than {_LONGEST_TEXT:,} characters, too many for one line"
            continue
        if not line.strip():
            continue
        try:
            row = of_others(line)
        except ValueError as error:
            yield number, f"not JSON: {cause(error)}"
        else:
            yield number, row if isinstance(row, dict) else f"{line.strip()[:40]} is no object"


def _parquet_types(path: Path) -> tuple[dict[str, pa.DataType], int]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, total = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not readable as Parquet: {cause(error)}") from error
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
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        texts = [column.name for column in file.schema_arrow if _is_textual(column.type)]
        rows, size = file.metadata.num_rows, _unpacked_size(file.metadata)
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))
    number = 0
    # Texts as a dictionary: a file of 2 kB can have one of 50 MB in each of a million rows.
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(batch_size=step):
            names = batch.schema.names
            for values in zip(*map(_cells, batch.columns), strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))


_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 26  # of a Parquet file that are read at once


def _is_textual(type: pa.DataType) -> bool:
    return str(type) in ("string", "large_string", "string_view", "binary", "large_binary")


def _unpacked_size(metadata: Any) -> int:
    """Bytes of all row groups, dictionaries not applied."""
    groups = range(metadata.num_row_groups)
    return sum(int(metadata.row_group(number).total_byte_size) for number in groups)


def _is_large(column: Any) -> bool:
    """Whether a dictionary's texts might take much, were each row given its own."""
    from pyarrow import compute

    if not _is_textual(column.dictionary.type):
        return False
    longest = compute.max(compute.binary_length(column.dictionary)).as_py() or 0
    return bool(longest * len(column) > _BATCH_BYTES)


def _cells(column: Any) -> list[Any]:
    """A column's values in Python; large ones that a dictionary has once are one object."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        if _is_large(column):
            places, known = column.indices.to_pylist(), column.dictionary
            values = {at: known[at].as_py() for at in set(places) - {None}}
            return [values.get(at) for at in places]
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type):
        column = column.cast(_simple_type(column.type), safe=False)
    values_of: list[Any] = column.to_pylist()
    return values_of


RESERVED = frozenset(
    {"id", "region", "kind", "channel", "start", "end", "vector", "logits", "label", "score"}
    | {"truncated", "content_hash", "size", "mtime_ns", "run_id"}
)  # a collection's own columns, which metadata cannot be called

PATH = "path"  # the metadata column with the file of an item whose id is another
Finder = Callable[[str], "Path | str"]  # the file that a path of a table means, or what is wrong


@dataclass(frozen=True, slots=True)
class Table:
    """A table of items, read anew for each iteration."""

    path: Path
    modality: str
    unit: str  # "line" or "row"
    rows: Callable[[], Iterator[Row]]
    types: dict[str, pa.DataType]  # by the table's own names
    total: int
    roles: Roles  # what the items are, by the table's own names: path, start, id …
    names: dict[str, str]  # metadata: the table's name -> the collection's
    keeps_path: bool = False  # as metadata, because the id is another
    find: Finder | None = None  # where the table names files as another computer had them
    fractions: bool = False  # of a picture's width and height, in place of pixels
    notes: tuple[str, ...] = ()

    def entries(
        self, columns: dict[str, pa.DataType], describe: Describe = headers
    ) -> Iterator[Placed]:
        """Its rows as items whose metadata has the types of `columns`.

        Segments of one file come together and by their start, so that it is decoded once.
        describe: reads the sizes of pictures, for boxes that are fractions of them.
        """
        rows = self.rows()
        if {"start", "end"} & self.roles.keys() and not _in_order(self.rows(), self.roles):
            rows = _ordered(rows, self.roles)
        if self.fractions:
            yield from self._in_pixels(rows, columns, describe)
            return
        for line, row in rows:
            yield line, self._entry(line, row, columns)

    def _in_pixels(
        self, rows: Iterable[Row], columns: dict[str, pa.DataType], describe: Describe
    ) -> Iterator[Placed]:
        """As `entries`, of boxes that are fractions of their pictures."""

        def placed() -> Iterator[tuple[tuple[int, _Edges | None], Entry]]:
            for line, row in rows:
                entry = self._entry(line, row, columns)
                has_box = isinstance(entry, tuple) and isinstance(row, dict)
                yield (line, _box(self._place(row)) if has_box else None), entry  # type: ignore[arg-type]

        target = DecodeTarget("image", header="size")
        for (line, box), entry, size in described(
            placed(), target, lambda place, _: place[1] is not None, describe
        ):
            if size is None:
                yield line, entry
                continue
            item, _ = entry
            try:
                if isinstance(size, ItemError):
                    raise size
                edges = zip(box or (), (*size, *size), strict=True)
                left, top, right, bottom = (round(edge * whole) for edge, whole in edges)
                yield line, (item, Region("box", box=(left, top, right, bottom)))
            except ItemError as error:
                yield line, failure(item, WHOLE.key, error, self._where(line))

    def _place(self, row: dict[str, Any]) -> dict[str, Any]:
        return {role: row.get(column) for role, column in self.roles.items()}

    def _where(self, line: int) -> str:
        return f"{self.path.name} {self.unit} {line}"

    def _entry(self, line: int, row: dict[str, Any] | str, columns: dict[str, Any]) -> Entry:
        where = self._where(line)
        nowhere = Item(f"{self.path}:{line}", "")
        if isinstance(row, str):
            return failure(nowhere, WHOLE.key, SourceError(row), where)
        place = self._place(row)
        id = None if place.get("id") is None else as_text(place["id"])
        metadata = {new: typed(row.get(old), columns[new]) for old, new in self.names.items()}
        if "text" in place:
            text = as_text("" if place["text"] is None else place["text"])
            return text_item(text, id or row_id(self.path, line), metadata), WHOLE
        subject = _path_in(place)
        if subject is None:
            return failure(nowhere, WHOLE.key, SourceError("the path is empty"), where)
        try:
            path = self._file(subject)
            if self.keeps_path and id is not None:
                metadata[PATH] = as_id(path)
            item = file_item(path, id, metadata)
        except SourceError as error:
            unknown = nowhere if self.find else Item(id or subject, "")
            return failure(unknown, WHOLE.key, error, where)
        try:
            return item, self._region(item, place)
        except ItemError as error:
            span = f"{place.get('start') or 0}-{place.get('end') or 'end'}"
            return failure(item, span if "start" in place else WHOLE.key, error, where)

    def _file(self, subject: str) -> Path:
        if is_object(subject):
            from penult.data.object_store import known_path

            return known_path(subject)
        if self.find is None:
            return local(subject, str(self.path.parent))
        found = self.find(subject)
        if isinstance(found, str):
            raise SourceError(found)
        return found

    def _region(self, item: Item, place: dict[str, Any]) -> Region:
        if self.modality != "image":
            return _segment(place)
        box = _box(place)
        if box is None:
            return WHOLE
        if self.fractions:
            return WHOLE  # until the size of the picture is known
        left, top, right, bottom = (round(edge) for edge in box)
        return Region("box", box=(left, top, right, bottom))


def open_table(
    path: Path,
    modality: str,
    rows: TableRows,
    given: Mapping[str, str] = {},
    recordings: Recordings | None = None,
) -> Table:
    """A table whose columns say what the items are. given: columns of roles, as `find_roles` takes
    them. recordings: where files are looked for that the table names as another computer had them.

    Raises:
        SourceError: no column does, or two would have the same name in a collection.
    """
    types, notes = rows.types, list(rows.notes)
    check_case(path, types)
    roles: Roles
    if modality == "text" and "text" in map(str.casefold, types) and not given:
        # A text has no file to open: it is kept as metadata, to be read in results.
        roles = {
            name.casefold(): name for name in types if name == "id" or name.casefold() == "text"
        }
        claimed = {"id"}
    elif modality == "text" and PATH not in map(str.casefold, types) and PATH not in given:
        raise SourceError(
            f"{path} has no column `text` or `path`; it has {', '.join(types) or 'none'}"
        )
    else:
        roles = find_roles(str(path), types, modality, given, partial(_holds_numbers, rows))
        claimed = set(roles.values())
    if other := [
        f"{role} from {name!r}" for role, name in roles.items() if role != name.casefold()
    ]:
        notes.append(f"{path.name}: {', '.join(other)}")
    if modality in ("audio", "video") and (
        span := unused_span(types, roles, partial(_holds_numbers, rows))
    ):
        start, end = span
        notes.append(
            f"{path.name}: each row is a whole file; {start!r} and {end!r} are metadata. For "
            f"segments in seconds: --column start={start},"
            f"{'duration' if end.casefold().startswith('duration') else 'end'}={end}"
        )
    names = _metadata_names(path, [name for name in types if name not in claimed])
    find, read = _finder(path, rows.rows, roles, given, recordings), rows.rows
    if PATH not in roles and "text" not in roles:
        assert recordings is not None
        roles, read = {**roles, PATH: _OWN}, partial(_with_file, read, recordings.of_table())
    # Where its file lies cannot be told from an id of the table's own.
    keeps_path = "id" in roles and PATH in roles and PATH not in map(str.lower, names.values())
    fractions = modality == "image" and _has_fractions(path, read, roles)
    return Table(path, modality, rows.unit, read, types, rows.total, roles, names, keeps_path,
                 find, fractions, tuple(notes))  # fmt: skip


_LOOKED_AT = 1000  # rows that tell whether a column of texts holds numbers


def _holds_numbers(rows: TableRows, column: str) -> bool:
    """Whether a column is one of numbers, for the most part: a slip in one row does not make its
    column another one."""
    if (kind := str(rows.types[column])) != "string":
        return kind in ("int64", "double", "null")
    first = islice(rows.rows(), _LOOKED_AT)
    values = [row[column] for _, row in first if isinstance(row, dict) and row.get(column)]
    return 2 * sum(decimal(as_text(value)) is not None for value in values) > len(values)


_OWN = "\0path"  # no column: the file that the table's own name names


def _with_file(rows: Callable[[], Iterator[Row]], file: Path) -> Iterator[Row]:
    for line, row in rows():
        yield line, row if isinstance(row, str) else {**row, _OWN: str(file)}


def _finder(
    path: Path,
    rows: Callable[[], Iterator[Row]],
    roles: Roles,
    given: Mapping[str, str],
    recordings: Recordings | None,
) -> Finder | None:
    """How files are found. Paths of a column `path` are meant as they are, or as ids of the
    collection that is written to; those of a program's table may come from another computer."""
    if recordings is None or PATH not in roles:
        return None
    shelf = recordings.shelf
    if roles[PATH].casefold() == PATH and PATH not in given and not shelf.folders:
        return None if shelf.place_of is None else partial(_of_id, path.parent, shelf.place_of)
    places = ({r: row.get(c) for r, c in roles.items()} for _, row in rows() if type(row) is dict)
    named = recordings.of_paths(one for place in places if (one := _path_in(place)))

    def find(subject: str) -> Path | str:
        there = _of_id(path.parent, shelf.place_of, subject)
        below = (local(subject, str(folder)) for folder in shelf.folders)
        found = next((one for one in (there, *below) if one.is_file()), None)
        return named.at(subject) if found is None else found

    return find


def _of_id(folder: Path, place_of: Callable[[str], Path] | None, subject: str) -> Path:
    """The file of a path that starts at a folder, or where there is none, of an id."""
    there = local(subject, str(folder))
    if place_of is None or there.is_file():
        return there
    return placed if (placed := place_of(subject)).is_file() else there


def _metadata_names(path: Path, columns: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for old in columns:
        new = _column_name(old)
        if new in names.values():
            raise SourceError(f"{path}: two columns would both be called {new}; rename {old!r}")
        names[old] = new
    return names


def _path_in(place: Mapping[str, Any]) -> str | None:
    """The path of a row; of several columns it is joined, as Kaleidoscope divides it."""
    if place.get(PATH) is None:
        return None
    parts = [place.get(role) for role in (*FOLDERS, PATH)]
    return "/".join(as_text(part) for part in parts if part is not None)


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


def _segment(place: Mapping[str, Any]) -> Region:
    start, end, length, channel = (
        _number(place, name) for name in ("start", "end", "duration", "channel")
    )
    if end is None and length is not None:
        end = round((start or 0.0) + length, 6)
    if channel is not None and not channel.is_integer():
        raise RegionError(f"channel {place['channel']!r} is not a whole number")
    return Region(
        kind="whole" if start is None and end is None else "segment",
        start=start,
        end=end,
        channel=None if channel is None else int(channel),
    )


_Edges = tuple[float, float, float, float]


def _box(place: Mapping[str, Any]) -> _Edges | None:
    """left, top, right, bottom; None where a row has no box."""
    if place.get("box") is not None:
        place = {**place, **_edges_of(place["box"])}
    found = {name: _number(place, name) for name in EDGES}
    if all(value is None for value in found.values()):
        return None
    left, top, right, bottom, width, height = found.values()
    if left is not None and right is None and width is not None:
        right = left + width
    if top is not None and bottom is None and height is not None:
        bottom = top + height
    if left is None or top is None or right is None or bottom is None:
        raise RegionError(f"a box has four edges, or a corner, width and height, not {found}")
    return left, top, right, bottom


def _edges_of(box: object) -> dict[str, Any]:
    """COCO's [x, y, width, height], as a list or as its JSON."""
    try:
        values = of_others(box) if isinstance(box, str) else box
        left, top, width, height = values  # type: ignore[misc]
    except (ValueError, TypeError) as error:
        raise RegionError(f"box {box!r} is not a list of x, y, width and height") from error
    return {"left": left, "top": top, "width": width, "height": height}


def _has_fractions(path: Path, rows: Callable[[], Iterator[Row]], roles: Roles) -> bool:
    """Whether a table's boxes are fractions of the picture.

    Raises:
        SourceError: they may be pixels or fractions, or corners or centres.
    """
    if not {*EDGES, "box"} & roles.keys():
        return False
    largest, whole, any_box = 0.0, True, False
    for _, row in rows():
        try:
            box = None if isinstance(row, str) else _box({r: row.get(c) for r, c in roles.items()})
        except RegionError:
            continue  # that row's failure, later
        if box is not None:
            any_box, largest = True, max(largest, *box)
            whole = whole and all(edge.is_integer() for edge in map(float, box))
    if not any_box or largest > 1:
        return False
    columns = ", ".join(repr(roles[role]) for role in (*EDGES, "box") if role in roles)
    if whole:
        raise SourceError(
            f"{path}: no box in {columns} goes beyond 1, so that pixels and fractions of the "
            "picture cannot be told apart; give pixels"
        )
    if "width" in roles and roles.get("left") in ("x", "X"):
        raise SourceError(
            f"{path}: {columns} are fractions of the picture, whose x and y may be a box's centre "
            "(as in YOLO) or its corner; give left, top, right and bottom"
        )
    return True


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        comma = "; write it with a point" if "," in str(value) else ""
        raise RegionError(f"{name} {value!r} is not a number{comma}")
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


def _place(row: dict[str, Any] | str, roles: Roles) -> tuple[object, float]:
    """The file and the start of a row; a bad row keeps its place among the files."""
    if isinstance(row, str):
        return None, 0.0
    try:
        start = _number({"start": row.get(roles.get("start", ""))}, "start") or 0.0
    except RegionError:
        start = 0.0
    parts = {role: row.get(roles[role]) for role in (*FOLDERS, PATH) if role in roles}
    return _path_in(parts), start


def _in_order(rows: Iterator[Row], roles: Roles) -> bool:
    seen: set[int] = set()  # a hash for each file, not for each row
    file: object = None
    latest = 0.0
    for _, row in rows:
        path, start = _place(row, roles)
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


def _ordered(rows: Iterator[Row], roles: Roles) -> Iterator[Row]:
    """The rows by file, in the order in which the files first come, and by start."""
    # A million rows of six columns: 300 MB packed, 860 MB as they are (measured).
    held: list[tuple[int, float, bytes]] = []
    numbers: dict[object, int] = {}
    for row in rows:
        path, start = _place(row[1], roles)
        number = len(numbers) if path is None else numbers.setdefault(path, len(numbers))
        held.append((number, start, pickle.dumps(row)))
    held.sort(key=lambda one: one[:2])  # stable: equal ones as in the table
    return (pickle.loads(packed) for _, _, packed in held)  # noqa: S301 - our own
