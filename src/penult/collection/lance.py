"""LanceDB tables of a collection: opening, queries, columns, upkeep, and rows as streams."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import repair
from penult.collection import schema as rows
from penult.collection.journal import Journal, compacting
from penult.collection.manifest import is_damage, panics_caught, store_errors
from penult.collection.schema import COLUMNS, metadata_types
from penult.data.items import is_object
from penult.errors import CollectionError, StoreError, cause, listed
from penult.locking import HomeProcess

ITEMS = "items"
log = logging.getLogger(__name__)
_TIME = pa.timestamp("us", "UTC")


def _columns(texts: str, **others: pa.DataType) -> pa.Schema:
    return pa.schema({**dict.fromkeys(texts.split(), pa.string()), **others})


_COUNTS = dict.fromkeys(("done", "skipped", "replaced", "failed"), pa.int64())
SIDE = {
    "labels": _columns("id region class mark who source", when=_TIME),
    "spaces": _columns("space_id name about", when=_TIME, data=pa.large_binary()),
    # One record is one clustering or map of many rows: whole or not there. data: an arrow stream.
    "clusters": _columns("clusters_id name about", when=_TIME, data=pa.large_binary()),
    "maps": _columns("map_id name about", when=_TIME, data=pa.large_binary()),
    # Graphs of neighbours and derived columns, by their names.
    "derived": _columns("derived_id name about", when=_TIME, data=pa.large_binary()),
    # What classes were fitted from, and the changes of marks between: `penult.fewshot.versions`.
    "taught": _columns("id kind about", when=_TIME, data=pa.large_binary()),
    "runs": _columns(
        "run_id status command model revision device engine precision versions info",
        **{"started": _TIME, "ended": _TIME, **_COUNTS},
    ),
    "failures": _columns(
        "id region error message run_id",
        when=_TIME,  # it was met last, in the run `run_id`
        size=pa.int64(),
        mtime_ns=pa.int64(),
        # Absent in 0.1.0, and added when the first failure is written: when and in which run it was
        # met first, how often the item was tried, and under which limits it was judged.
        since=_TIME,
        first_run=pa.string(),
        tries=pa.int64(),
        limits=pa.string(),
    ),
}

# A reader holds the version it began with, until its call returns; the longest calls are scans
# and exports. Older versions go after an hour: nightly runs then keep one night's leftovers, where
# LanceDB's own week would keep seven. A scan that takes longer says that it has to be repeated.
KEEP = timedelta(hours=1)
# Rows of a full fragment, which no compaction reads again: so neither its time nor its memory grows
# with the table. LanceDB's own 2^20 has it rewrite up to 3 GB of vectors at a time; fragments below
# 100,000 rows it counts as small.
FRAGMENT = 100_000
_AT_ONCE = 1024  # rows in memory while a fragment is rewritten
INDEX_FROM = 50_000  # rows; below, reading all ids takes less than 3 ms
MANY = 32  # fragments at the end of a run; fewer cost a lookup less than 4 ms
_WIDER = "__wider"  # a column's next form, while it is being widened


_REST_CLIENT = "lance_namespace_urllib3_client"


@cache
def lancedb() -> Any:
    """LanceDB. What it imports for catalogues on the network is the half of its start: that client
    is there, and its code runs when something of it is asked for."""
    spec = find_spec(_REST_CLIENT)
    if _REST_CLIENT not in sys.modules and spec is not None and spec.loader is not None:
        module, loader = module_from_spec(spec), spec.loader

        def load(name: str) -> Any:
            del module.__getattr__
            loader.exec_module(module)
            return getattr(module, name)

        module.__getattr__ = load  # type: ignore[method-assign]
        sys.modules[_REST_CLIENT] = module
    return import_module("lancedb")


@cache
def _session() -> Any:
    """What LanceDB keeps in memory, shared by all calls of this process: an index stays opened
    from one search to the next, and no more than this is kept (its own limits are 6 and 1 GB)."""
    return lancedb().Session(index_cache_size_bytes=2 << 30, metadata_cache_size_bytes=128 << 20)


@cache
def home() -> HomeProcess:
    """The process of LanceDB's threads, whose copy in a forked one may crash in the next call."""
    return HomeProcess("a collection")


def connect(path: Path) -> Any:
    """The folder as a LanceDB database, which keeps nothing of what is in it.

    Raises:
        UsedBeforeFork: this process was forked from one that has used a collection.
    """
    home().require()
    with store_errors(path):
        if is_object(path):
            from penult.data.object_store import lance_options, settings

            return _connected(str(path), settings(), tuple(lance_options(str(path)).items()))
        return _connected(str(path.absolute()))


@lru_cache(maxsize=64)
def _connected(path: str, settings: object = None, options: tuple[Any, ...] = ()) -> Any:
    more = {"storage_options": dict(options)} if options else {}
    return lancedb().connect(path, session=_session(), **more)


def open_table(path: Path, name: str) -> Any | None:
    """A table at its latest version, which the handle keeps while others write; None if absent.

    Where that is torn it is the last whole one, to be read only, with a warning.

    Raises:
        StoreError: no version is whole, or those that it had are gone.
    """
    with store_errors(path):
        try:
            with panics_caught():
                table = connect(path).open_table(name)
            if repair.is_whole(path, name, table.version):
                repair.require_own(path, table.to_lance())
                return table
        except ValueError as error:
            if "was not found" not in str(error):
                raise
            repair.require_never_written(path, name)
            return None
        except (OSError, RuntimeError):  # perhaps of a version that is torn
            if repair.torn(path, name) is None:
                raise
        return repair.stepped_back(path, name)


def is_current(path: Path, table: Any) -> bool:
    """Whether a table is the collection's own, and no earlier version in its place."""
    if is_object(path):
        return str(table.uri).rpartition("/")[0] == str(path)
    return Path(table.uri).parent == path.absolute()


def create_table(path: Path, name: str, columns: pa.Schema) -> Any:
    """The table, made if it is absent, or if a killed creation left a part of it."""
    with store_errors(path):
        return connect(path).create_table(name, schema=columns, exist_ok=True)


def side_table(path: Path, name: str) -> Any:
    """A side table, made if it is absent. One of an earlier version may lack columns."""
    table = open_table(path, name)
    return create_table(path, name, SIDE[name]) if table is None else table


def add_absent(table: Any, columns: pa.Schema) -> None:
    """Adds the columns that a side table of an earlier version lacks, null in its rows."""
    there = table.schema.names
    if absent := [field for field in columns if field.name not in there]:
        table.add_columns(absent)


def recreate_table(path: Path, name: str, columns: pa.Schema) -> Any:
    """The table, empty and with these columns, whatever it was before."""
    with store_errors(path):
        return connect(path).create_table(name, schema=columns, mode="overwrite")


@contextlib.contextmanager
def query_errors(path: Path, where: str | None, columns: list[str]) -> Iterator[None]:
    """Translates errors of one query: its filter's in words, the system's as StoreError."""
    with store_errors(path):
        try:
            if where is not None and ";" in re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", where):
                raise ValueError("one condition is expected, without ';'")  # LanceDB drops the rest
            with panics_caught():
                yield
        except (ValueError, RuntimeError) as error:
            text = str(error)
            if where is None or "os error" in text or "LanceError(IO)" in text:
                raise
            if is_damage(error, where):  # no filter's fault
                raise
            reason = re.sub(r"\.? ?Valid fields are .*", "", cause(error))
            reason = reason.replace("Invalid input, ", "").replace("lance error: ", "").strip()
            raise CollectionError(
                f"the filter {where!r} does not work: {reason}. Columns: "
                f"{listed(columns)}. Texts stand in single quotes (site = 'A'), column names "
                "with spaces or signs in backticks (`my column` > 1)"
            ) from error


def add_metadata(table: Any, wanted: Mapping[str, pa.DataType], path: Path) -> None:
    """Adds absent metadata columns (null for earlier rows), and widens those whose type does not
    hold the new values: integers to floats, anything to text. A column without any value takes the
    new type: what no row has decides nothing.

    Raises:
        CollectionError: a column of lists or other nested values, and new values that are none.
    """
    wanted = metadata_types(wanted)
    with store_errors(path):
        _finish_widening(table)
        present = {field.name: field.type for field in table.schema}
        if absent := [pa.field(name, kind) for name, kind in wanted.items() if name not in present]:
            table.add_columns(absent)
        for name, kind in wanted.items():
            if name not in present or present[name] == kind:
                continue
            if not table.count_rows(f"`{name}` IS NOT NULL"):
                table.add_columns([pa.field(name + _WIDER, kind)])
                _swap(table, name)
            elif (wider := _wider(table, name, present[name], kind)) != present[name]:
                table.add_columns({name + _WIDER: _cast(name, present[name], wider)})
                _swap(table, name)


def _wider(table: Any, name: str, old: pa.DataType, new: pa.DataType) -> pa.DataType:
    """The type for a column's values, those that are stored and the new ones."""
    kind = common_type(old, new)
    if kind is None:
        held = f"`{name}` IS NOT NULL"
        rows = table.search().where(held).select(["id"]).limit(3).to_arrow()["id"].to_pylist()
        raise CollectionError(
            f"metadata column {name!r} holds {old} in {table.count_rows(held):,} rows "
            f"({', '.join(rows)}, …) and {new} in the new items, and no type holds both; "
            "give the column of the new ones another name"
        )
    if pa.types.is_floating(kind) and pa.types.is_integer(old):
        exact = 2**53  # a double has every whole number up to here
        if table.count_rows(f"`{name}` > {exact} OR `{name}` < -{exact}"):
            return pa.string()
    return kind


def _cast(name: str, old: pa.DataType, new: pa.DataType) -> str:
    """SQL for a column's values as another type. Whole numbers of a column of floats are as text
    what they were in a table: 7, not 7.0."""
    plain = f"cast(`{name}` as {_SQL.get(str(new), 'double')})"
    if not (pa.types.is_floating(old) and pa.types.is_string(new)):
        return plain
    return f"regexp_replace({plain}, '[.]0$', '')"


def common_type(old: pa.DataType, new: pa.DataType) -> pa.DataType | None:
    """The narrowest type for the values of both; None where nested values meet others."""
    if old == new or pa.types.is_null(new):
        return old
    if pa.types.is_null(old):
        return new
    if pa.types.is_nested(old) or pa.types.is_nested(new):
        return None
    if pa.types.is_binary(old) or pa.types.is_binary(new):
        return None
    numbers = all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (old, new))
    if not numbers:
        return pa.string()
    if pa.types.is_floating(old) != pa.types.is_floating(new):
        return pa.float64()
    return max(old, new, key=lambda kind: (kind.bit_width, str(kind)))


_SQL = {
    "double": "double",
    "float": "float",
    "int64": "bigint",
    "int32": "int",
    "int16": "smallint",
    "string": "string",
}
# A column is widened in three commits, the middle one of which swaps: no reader ever misses it.


def _swap(table: Any, name: str) -> None:
    table.alter_columns(
        {"path": name, "rename": name + _WIDER + "_old"},
        {"path": name + _WIDER, "rename": name},
    )
    table.drop_columns([name + _WIDER + "_old"])


def _finish_widening(table: Any) -> None:
    """Takes away what a killed widening left: the column is there before and after the swap."""
    left = [name for name in table.schema.names if name.endswith((_WIDER, _WIDER + "_old"))]
    if left:
        table.drop_columns(left)


def is_due(commits: int, added: int, total: int) -> bool:
    """Whether to compact after `commits` commits that added `added` of `total` rows.

    Often enough that lookups stay below a few hundred ms, seldom enough that rewriting costs no
    more than a few writes of each row: when the new rows weigh as much as what is rewritten.
    """
    return commits >= 1000 or (commits >= 100 and 2 * added >= total % FRAGMENT)


def tidy(
    table: Any,
    path: Path,
    index: str | None = None,
    ended: bool = True,
    journal: Callable[[], Journal] | None = None,
) -> None:
    """Compacts, updates the index on `index` (made once it pays) and drops versions over KEEP.

    ended: whether the run is at its end, where an index of vectors is brought up to date, too.
    journal: brings all to the disk and gives the journal. Compaction needs room on the disk;
    without it the table stays as it is, which is no failure.
    """
    try:
        with store_errors(path), compacting(path, table.name) as alone:
            if not alone:
                return
            table.checkout_latest()
            if index and table.count_rows() >= INDEX_FROM and not _has_index(table, index):
                from lancedb.index import BTree

                table.create_index(index, config=BTree())
            data = table.to_lance()  # LanceDB's own `optimize` has none of these settings
            data.optimize.compact_files(
                target_rows_per_fragment=FRAGMENT, batch_size=_AT_ONCE, num_threads=1
            )
            if stale := _stale(table, index, ended):
                data.optimize.optimize_indices(index_names=stale)
            table.checkout_latest()
            # What is cleaned up is gone at once: the new files have to be on the disk before.
            on_disk = journal() if journal is not None else Journal(path)
            on_disk.sync(table.name)
            data.cleanup_old_versions(KEEP)
            on_disk.shorten(table.name)
        log.info("%s: compacted %s", path, table.name)
    except StoreError as error:
        log.warning("could not be compacted, nothing is lost: %s", error)


def _stale(table: Any, index: str | None, ended: bool) -> list[str]:
    """The indices to bring up to date. That costs as much as all rows of the index, so that on
    `index` it is done once there are an eighth more of them; the others are for searches."""
    found = []
    for one in table.list_indices():
        state = table.index_stats(one.name)
        late = state.num_unindexed_rows if state is not None else 0
        if late and (late > state.num_indexed_rows / 8 if list(one.columns) == [index] else ended):
            found.append(one.name)
    return found


def _has_index(table: Any, column: str) -> bool:
    return any(list(index.columns) == [column] for index in table.list_indices())


def is_untidy(table: Any, folder: Path) -> bool:
    """Whether a run should end with tidying: many commits, or files of versions past KEEP."""
    if fragments(table) >= MANY:
        return True
    if is_object(folder):  # the size of its files would be asked for one by one
        return False
    if not (folder / "data").is_dir():  # nothing has ever been written
        return False
    with store_errors(folder):
        used = sum(entry.stat().st_size for entry in os.scandir(folder / "data"))
        if used <= 1.5 * table.stats()["total_bytes"]:
            return False
        oldest = min(version["timestamp"] for version in table.list_versions())
    return bool(oldest.timestamp() < time.time() - KEEP.total_seconds())


def fragments(table: Any) -> int:
    """The number of small fragments: about one for each commit since the last compaction."""
    return int(table.stats()["fragment_stats"]["num_small_fragments"])


def own_columns(columns: pa.Schema) -> list[pa.Field]:
    """The fields of a schema that are no metadata."""
    return [field for field in columns if field.name in COLUMNS]


ROW = "_rowid"
_KEYS_AT_ONCE = 8192
_VECTORS_AT_ONCE = 1024
Places = npt.NDArray[np.uint64]


def check_columns(path: Path, table: Any, columns: Sequence[str] | None) -> list[str]:
    """The names of these columns, or of all.

    Raises:
        CollectionError: there is no such column.
    """
    names = list(table.schema.names)
    if unknown := [name for name in columns or () if name not in names]:
        raise CollectionError(
            f"there is no column {unknown[0]!r} in {path}; columns: {listed(names)}"
        )
    return names if columns is None else list(columns)


def stream_rows(
    path: Path, table: Any, columns: list[str], where: str | None, size: int, row_id: bool = False
) -> Iterator[pa.RecordBatch]:
    """The matching rows in no particular order, all of one commit; with `_rowid` if asked."""
    names = table.schema.names
    with query_errors(path, where, names):
        query = table.search().select(columns).limit(None).with_row_id(row_id)
        if where is not None:
            query = query.where(where)
        reader = query.to_batches(size)

    def batches() -> Iterator[pa.RecordBatch]:
        while True:
            with query_errors(path, where, names):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    return batches()


def stream_ordered(
    path: Path, table: Any, columns: list[str], where: str | None, size: int, every: int = 1
) -> Iterator[pa.RecordBatch]:
    """The matching rows in the order of their keys, or each so many-th of them."""
    found = find_places(path, table, where)[::every]
    chunks = (found[at : at + size] for at in range(0, len(found), size))
    return (batch for chunk in chunks for batch in take_rows(path, table, columns, chunk))


def read_vectors(
    path: Path, table: Any, columns: list[str], where: str | None, most: int | None, seed: int
) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """The columns and the vectors (n, d) of the matching rows in the order of their keys; of more
    than `most`, so many drawn by chance, the same ones for a seed."""
    found = find_places(path, table, where)
    if most is not None and len(found) > most:
        drawn = np.random.default_rng(seed).choice(len(found), most, replace=False)
        found = found[np.sort(drawn)]
    matrix = np.empty((len(found), table.schema.field("vector").type.list_size), np.float32)
    by_row = np.argsort(found)
    parts: list[pa.RecordBatch] = []
    filled: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    wanted = [*dict.fromkeys([*columns, "vector"])]
    for batch in (
        stream_rows(path, table, wanted, where, _VECTORS_AT_ONCE, True) if len(found) else ()
    ):
        row = batch.column(ROW).to_numpy()
        spot = np.minimum(np.searchsorted(found, row, sorter=by_row), len(found) - 1)
        place = by_row[spot]
        if not (drawn_here := found[place] == row).all():
            batch, place = batch.filter(pa.array(drawn_here)), place[drawn_here]
        matrix[place] = rows.matrix(batch.column("vector"))
        parts.append(batch.select(columns))
        filled.append(place)
    schema = pa.schema([table.schema.field(name) for name in columns])
    keys = pa.Table.from_batches(parts, schema)
    return keys.take(np.argsort(np.concatenate(filled))), matrix


def take_rows(path: Path, table: Any, columns: list[str], wanted: Places) -> list[pa.RecordBatch]:
    """The rows at these places in the given order; LanceDB gives them in its own."""
    with store_errors(path):
        found = table.take_row_ids(wanted.tolist()).select(columns).with_row_id().to_arrow()
    order = np.argsort(found[ROW].to_numpy())[np.argsort(np.argsort(wanted))]
    batches: list[pa.RecordBatch] = found.take(order).select(columns).combine_chunks().to_batches()
    return batches


def read_keys(path: Path, table: Any, where: str | None = None) -> pa.Table:
    """The id, region and row id of the matching rows, in the order of their keys."""
    keys, order = _ordered_keys(path, table, where)
    return keys.select([*rows.KEY, ROW]).take(order)


def find_places(path: Path, table: Any, where: str | None) -> Places:
    """The row ids of the matching rows, in the order of their keys."""
    keys, order = _ordered_keys(path, table, where)
    found: Places = keys[ROW].take(order).to_numpy()
    return found


def _ordered_keys(path: Path, table: Any, where: str | None) -> tuple[pa.Table, pa.Array]:
    """The keys of the matching rows with their row ids, and the places of the first, the second …
    in their order."""
    columns = pa.schema([*map(table.schema.field, rows.ORDER), pa.field(ROW, pa.uint64())])
    parts = stream_rows(path, table, list(rows.ORDER), where, _KEYS_AT_ONCE, True)
    keys = pa.Table.from_batches(parts, columns)
    for name in ("channel", "start"):  # null comes first here, and last for an end
        filled = pc.fill_null(keys[name], -1)
        keys = keys.set_column(keys.schema.get_field_index(name), name, filled)
    *first, last = rows.ORDER
    inside = _numbers_in(keys[last])
    for name, column in inside.items():
        keys = keys.append_column(name, column)
    by = [(name, "ascending") for name in (*first, *inside, last)]
    return keys, pc.sort_indices(keys, sort_keys=by)


# Pages, boxes (row by row of a picture), characters and further annotations of a span lie in the
# order of their numbers: as text, 1024 stands in front of 256.
_NUMBERS = (
    r"page:(?P<page>\d+)",
    r"box:(?P<left>\d+),(?P<top>\d+),(?P<right>\d+),(?P<bottom>\d+)",
    r"chars:(?P<begin>\d+)-(?P<stop>\d+)",
    r"#(?P<annotation>\d+)$",
)
_IN_ORDER = ("page", "top", "left", "bottom", "right", "begin", "stop", "annotation")


def _numbers_in(regions: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The numbers that regions have beside seconds and channel; -1 where they have none."""
    if not pc.any(pc.match_substring_regex(regions, "page:|box:|chars:|#")).as_py():
        return {}
    found: dict[str, pa.ChunkedArray] = {}
    for pattern in _NUMBERS:
        values = pc.extract_regex(regions, pattern)
        for name in values.type.names:
            number = pc.cast(pc.struct_field(values, name), pa.int64())
            found[name] = pc.fill_null(number, -1)
    return {name: found[name] for name in _IN_ORDER}
