"""The rows of a collection: their arrow schema, keys and checks. Knows no store and no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.data import documents
from penult.data.items import utf8
from penult.data.regions import unpatched
from penult.data.tables import typed
from penult.errors import CollectionError, StoreError, cause, listed

Key = tuple[str, str]  # id and region
COLUMNS = (
    *("id", "region", "kind", "channel", "start", "end", "vector", "logits", "label", "score"),
    *("truncated", "content_hash", "size", "mtime_ns", "run_id"),
)
KEY = ("id", "region")
ARRAYS = ("vector", "logits")  # every other column holds one scalar a row
ORDER = ("id", "channel", "start", "end", "region")  # a total order: the last one completes KEY

_COLUMNS = 2_000  # of metadata: of ten times as many, Lance replaces one row in a minute and more

# Names that LanceDB keeps for itself, in a query or in a filter.
RESERVED = ("_distance", "_score", "_relevance_score", "_rowid", "_rowaddr", "_rowoffset")


@dataclass(frozen=True, slots=True)
class Known:
    """What a collection knows of a region's file: bytes, nanoseconds since 1970, hash; and where
    the region begins in it, in seconds."""

    size: int | None
    mtime_ns: int | None
    content_hash: str | None
    start: float | None = None


def row_schema(
    dim: int,
    n_logits: int,
    logits: str = "all",
    dtype: str = "float32",
    metadata: Mapping[str, pa.DataType] | None = None,
) -> pa.Schema:
    """The arrow schema of a collection's rows: own columns in fixed order, then metadata.

    `vector` is a fixed_size_list of `dim` values of `dtype` (float32 or float16). `logits` is
    "all" (fixed_size_list<float32>[n_logits]), "top:K" (list<struct<index, logit>>) or "none"
    (no such column).

    Raises:
        CollectionError: an unknown `logits` or `dtype`, or a metadata name that cannot be stored.
    """
    if dtype not in ("float32", "float16"):
        raise CollectionError(f"vectors cannot be kept as {dtype!r}; float32 and float16 work")
    value = pa.float32() if dtype == "float32" else pa.float16()
    fields = [pa.field(name, _SCALARS[name]) for name in COLUMNS if name not in ARRAYS]
    fields.insert(6, pa.field("vector", pa.list_(value, dim)))
    if (kind := _logits_type(logits, n_logits)) is not None:
        fields.insert(7, pa.field("logits", kind))
    extra = metadata_types(metadata or {})
    return pa.schema(fields + [pa.field(name, kind) for name, kind in extra.items()])


_SCALARS = {
    **dict.fromkeys(("id", "region", "kind", "label", "content_hash", "run_id"), pa.string()),
    **dict.fromkeys(("start", "end", "truncated"), pa.float64()),
    **dict.fromkeys(("size", "mtime_ns"), pa.int64()),
    "channel": pa.int32(),
    "score": pa.float32(),
}


def _logits_type(logits: str, n_logits: int) -> pa.DataType | None:
    if logits == "none":
        return None
    if logits == "all":
        return pa.list_(pa.float32(), n_logits)
    mode, _, k = logits.partition(":")
    if mode == "top" and k.isdigit() and int(k) > 0:
        return pa.list_(pa.struct([("index", pa.int32()), ("logit", pa.float32())]))
    raise CollectionError(f"logits {logits!r} is not known; all, none and top:K (top:5) work")


def metadata_types(metadata: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Metadata columns with the types that are stored; columns without any value drop out.

    Raises:
        CollectionError: a name that is empty, has a dot, or is taken by a column of ours; too many.
    """
    if len(metadata) > _COLUMNS:
        raise CollectionError(
            f"{len(metadata):,} columns of metadata ({listed(metadata, 3)}): a collection keeps up "
            f"to {_COLUMNS:,}; leave the others out of the table"
        )
    stored: dict[str, pa.DataType] = {}
    for name, kind in metadata.items():
        if name in COLUMNS or name in RESERVED:
            raise CollectionError(f"a metadata column cannot be called {name!r}: the name is taken")
        if not name or "." in name:
            raise CollectionError(
                f"a metadata column cannot be called {name!r}: "
                "names must not be empty nor have a dot; rename it"
            )
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not pa.types.is_null(kind):
            stored[name] = pa.string() if pa.types.is_large_string(kind) else kind
    return stored


def metadata_of(columns: pa.Schema) -> dict[str, pa.DataType]:
    """The metadata columns of a schema of rows."""
    return {field.name: field.type for field in columns if field.name not in COLUMNS}


def scalar_columns(columns: pa.Schema) -> list[str]:
    """The names of a schema's columns that hold one scalar a row: all but vector and logits."""
    return [name for name in columns.names if name not in ARRAYS]


def misfit(columns: pa.Schema, wanted: pa.Schema) -> str:
    """The first column of ours that a table lacks, or has with another type, in words; empty where
    the table fits."""
    for field in wanted:
        place = columns.get_field_index(field.name)
        if place < 0:
            return f"its rows have no column {field.name!r}"
        if columns.field(place).type != field.type:
            return f"column {field.name!r} of its rows is {columns.field(place).type}"
    return ""


def conform(batches: Iterable[pa.RecordBatch], columns: pa.Schema, run_id: str) -> pa.Table:
    """The batches as one table of exactly `columns`, one row per key: the last one given.

    Missing columns are null, metadata is cast without loss, a null `run_id` becomes `run_id`, and
    NaN in a column of numbers becomes null.

    Raises:
        CollectionError: a column of another type, a null key, values that are not finite.
    """
    table = pa.concat_tables(
        [pa.Table.from_batches([batch]) for batch in batches], promote_options="default"
    )
    arrays = [_column(table, field, run_id) for field in columns]
    table = pa.Table.from_arrays(arrays, schema=columns).combine_chunks()
    _check(table)
    last = {key: index for index, key in enumerate(keys(table))}
    return table if len(last) == len(table) else table.take(sorted(last.values()))


def _column(table: pa.Table, field: pa.Field, run_id: str) -> pa.Array:
    if field.name not in table.column_names:
        column = pa.nulls(len(table), field.type)
    else:
        column = table.column(field.name)
    if column.type != field.type:
        try:
            column = column.cast(field.type)
        except pa.ArrowException as error:
            raise CollectionError(
                f"column {field.name!r} is kept as {field.type}, "
                f"and these {column.type} values do not fit: {cause(error)} "
                f"({_rows_in(table, column)})"
            ) from error
    return pc.fill_null(column, run_id) if field.name == "run_id" else without_nan(column)


def without_nan(column: Any) -> Any:
    """The values with null in place of NaN, which filters would take for more than any number."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _rows_in(table: pa.Table, column: pa.ChunkedArray) -> str:
    """The first rows that have a value in a column, for a message."""
    held = table.filter(pc.is_valid(column))["id"].to_pylist()
    return f"rows {', '.join(map(str, held[:3]))}{', …' if len(held) > 3 else ''}"


def _check(table: pa.Table) -> None:
    if any(table.column(name).null_count for name in (*KEY, "vector")):
        raise CollectionError("a row needs an id, a region and a vector; one of them is null")
    bad = ~np.isfinite(matrix(table.column("vector"))).all(axis=1)
    what = "vector"
    logits = table.column("logits") if "logits" in table.column_names else None
    if not bad.any() and logits is not None and pa.types.is_fixed_size_list(logits.type):
        # -inf is a classifier's way to mask a class; NaN says nothing.
        bad, what = np.isnan(matrix(logits)).any(axis=1), "logits"
    if bad.any():
        key = keys(table)[int(bad.argmax())]
        raise CollectionError(
            f"{int(bad.sum())} of {len(table)} rows have {what} that are not finite as "
            f"{table.schema.field(what).type.value_type}, the first is {key}"
        )


def revised(table: pa.Table, values: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table with some values replaced: of each row, those named.

    Raises:
        CollectionError: a column that is not there or must not change, or a value of another type.
    """
    names = dict.fromkeys(name for row in values for name in row)
    for name in names:
        if name not in table.column_names or name in (*KEY, *ARRAYS, "content_hash", "run_id"):
            raise CollectionError(f"column {name!r} of an embedded row cannot be revised")
        kind = table.schema.field(name).type
        old = table.column(name).to_pylist()
        try:
            new = [
                typed(row[name], kind) if name in row else before
                for row, before in zip(values, old, strict=True)
            ]
            column = without_nan(pa.array(new, kind))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise CollectionError(f"column {name!r} is kept as {kind}: {cause(error)}") from error
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), column
        )
    return table


def keys(table: pa.Table | pa.RecordBatch) -> list[Key]:
    """The (id, region) of every row."""
    ids, regions = (table.column(name).to_pylist() for name in KEY)
    return list(zip(ids, regions, strict=True))


def patches_among(keys: Iterable[Key]) -> dict[Key, list[Key]]:
    """The keys that are patches, by the key of what each is a patch of."""
    found: dict[Key, list[Key]] = {}
    for id, region in keys:
        if (base := unpatched(region)) != region:
            found.setdefault((id, base), []).append((id, region))
    return found


def matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """A fixed_size_list column without nulls as an (n, d) array in float32."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    rows: npt.NDArray[np.float32] = flat.reshape(-1, width).astype(np.float32, copy=False)
    return rows


def quoted(values: Sequence[str]) -> str:
    """Strings as a list of SQL literals; what is not UTF-8 as ids have it (`as_id`)."""
    return ", ".join("'" + utf8(value).replace("'", "''") + "'" for value in values)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is read again of the column `info` of a run."""

    merged: Any = None
    renamed: dict[str, str] | None = None
    sources: list[str] | None = None
    summary: str | None = None
    window: float | None = None
    hop: float | None = None
    tile: int | None = None
    overlap: int = 0
    pages: Literal["each"] | None = None
    channel: int | Literal["each"] | None = None
    times: str | None = None


def run_info(path: Path, text: str | None) -> RunInfo:
    """What a run tells of itself beside its columns.

    Raises:
        StoreError: it is not what Penult wrote.
    """
    info: RunInfo = _document(path, "runs", "info", text or "{}", RunInfo)
    return info


def derived_about(path: Path, text: str) -> dict[str, Any]:
    """What derived values were made from.

    Raises:
        StoreError: it is not what Penult wrote.
    """
    about: dict[str, Any] = _document(path, "derived values", "about", text, dict[str, Any])
    return about


def _document(path: Path, table: str, column: str, text: str, kind: Any) -> Any:
    try:
        return documents.parse(text, kind)
    except ValueError as error:
        raise StoreError(
            f"{path}: the column {column} of its {table} is damaged: {error}. penult repair {path} "
            "checks its files"
        ) from error
