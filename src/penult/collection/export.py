"""A collection as files for other tools, and a summary of what it holds."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from penult.collection import columns as derived
from penult.collection import schema
from penult.collection.access import Holder, writers
from penult.collection.index import read as read_index
from penult.collection.manifest import HISTORY, Manifest, store_errors
from penult.collection.reader import Reader
from penult.collection.repair import damage
from penult.data.files import file_aside, files_aside
from penult.data.formulas import Cells
from penult.data.items import as_id, is_object
from penult.data.regions import PATCH, Region
from penult.data.roots import Roots
from penult.data.selection_tables import RavenSelection, check_free, is_folder, write_selections
from penult.errors import CollectionError, StoreError, UsageError

if TYPE_CHECKING:
    from penult.collection.collection import Collection

_COUNT_ROWS = 8192


def describe(reader: Reader) -> dict[str, Any]:
    """For a JSON document; rows are counted, vectors are not read.

    Raises:
        CollectionError: there is no collection.
    """
    if (manifest := reader.manifest) is None:
        raise CollectionError(f"there is no collection at {reader.path}")
    kinds: Counter[str] = Counter()
    for batch in reader.scan(["kind"], batch_size=_COUNT_ROWS):
        kinds.update(batch.column("kind").to_pylist())
    runs, writing = _runs(reader)
    labels = reader.side_table("labels")
    index = read_index(reader)
    return {
        "collection": str(reader.path),
        "rows": sum(kinds.values()),
        "kinds": dict(kinds.most_common()),
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "logits": manifest.logits,
        "classes": len(manifest.labels),
        "model": manifest.model.get("spec"),
        "revision": manifest.model.get("revision"),
        "tap": manifest.model.get("tap"),
        "pooling": manifest.model.get("pooling"),
        "modality": manifest.model.get("modality"),
        "created": manifest.created,
        "roots": {name: str(reader.roots.place(name)) for name in reader.roots.roots},
        "fingerprint": dict(manifest.fingerprint),
        "migrations": list(manifest.model.get(HISTORY) or ()),
        "columns": reader.schema.names,
        "derived": derived.described(reader.path),
        "labels": {"marks": len(labels), "classes": sorted(set(labels["class"].to_pylist()))},
        "spaces": len(reader.side_table("spaces")),
        "failures": len(reader.side_table("failures")),
        "runs": [{name: run[name] for name in _RUN} for run in runs],
        "writer": next((asdict(one) for one in writing), None),
        "writers": [asdict(one) for one in writing],
        "bytes": _size(reader.path),
        "damage": damage(reader.path),
        "index": index.to_dict() if index else None,
    }


_RUN = (
    *("run_id", "status", "started", "ended", "command", "model", "revision", "device", "engine"),
    *("precision", "versions", "info", "done", "skipped", "replaced", "failed"),
)


def _runs(reader: Reader) -> tuple[list[dict[str, Any]], list[Holder]]:
    """The runs, and who is writing. One that says that it runs and has no writer was killed; the
    next writer will write that down."""
    before = reader.side_table("runs").to_pylist()
    found = writers(reader.path)
    if found is None:
        return before, []
    begun = {run["run_id"] for run in before} - {one.run_id for one in found}
    runs = reader.side_table("runs").to_pylist()
    for run in runs:  # one that began since then is none of them
        if run["status"] == "running" and run["run_id"] in begun:
            run["status"] = "killed"
    return runs, found


def _size(folder: Path) -> int:
    with store_errors(folder):
        if is_object(folder):
            return int(folder.size_below())  # type: ignore[attr-defined]
        return sum(
            os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - some thousand files
            for root, _, names in os.walk(folder)
            for name in names
        )


METADATA_KEY = b"penult"  # in a parquet file's schema: the manifest as JSON, fingerprint included
_BATCH = 4096  # rows held in memory, and rows in one group of a .parquet
Batches = Iterator[pa.RecordBatch]
Write = Callable[[list[Path], Manifest | None, pa.Schema, Batches], int]


def export(
    reader: Reader,
    out_path: str | os.PathLike[str],
    where: str | None = None,
    logits: bool = True,
    *,
    overwrite: bool = False,
    raw_cells: bool = False,
) -> int:
    """Writes the matching rows to a file by its suffix; gives their number.

    .parquet: all columns as they are. .npy: the vectors (n, d) float32, and beside it a .csv with
    the scalar columns in the same order. .csv: scalar columns, then v0 …, then logit_0 … (or
    top_0_index, top_0_logit … where only the top logits are kept). .txt: a Raven selection table of
    the segments and windows with their metadata, no vectors; the name of a folder, with a slash at
    its end: one for each recording (see `write_selections`). Where there are boxes, pages or
    windows of texts, columns with their edges (`left`, `top`, `right`, `bottom`), their numbers
    (`page`) or their characters (`first_char`, `end_char`) follow, and where ids begin with a root
    the `path` of the file. The files appear when complete.
    raw_cells: texts that a spreadsheet would run as formulas are written as they are.

    Raises:
        UsageError: an unknown suffix, an existing file without `overwrite`, a bad filter.
        StoreError: full disk, no permission; nothing appears then.
    """
    out = Path(out_path)
    cells = Cells(raw_cells)
    writers: dict[str, Write] = {
        ".parquet": _parquet,
        ".npy": partial(_npy, cells),
        ".csv": partial(_csv, cells),
    }
    if out.suffix.lower() == ".txt" or is_folder(out_path):
        check_free(out_path, overwrite)
        found = _selections(reader, where)
        write_selections(out_path, found, cells=cells, overwrite=overwrite)
        return len(found)
    if (write := writers.get(out.suffix.lower())) is None:
        raise UsageError(
            f"cannot export to {out.name!r}: the suffix decides; {', '.join(writers)}, .txt "
            "and the name of a folder work"
        )
    targets = [out] if out.suffix.lower() != ".npy" else [out, out.with_suffix(".csv")]
    for target in targets:
        if target.exists() and not overwrite:
            raise UsageError(_exists(target))
    all_columns = derived.wider(reader.path, reader.schema)
    names = [name for name in all_columns.names if logits or name != "logits"]
    columns = pa.schema([all_columns.field(name) for name in names])
    batches = reader.ordered(names, where, _BATCH)
    if places := _place_columns(reader):
        added = [pa.field(name, pa.int64()) for name in places]
        columns = pa.schema([*columns, *added])
        batches = (_with_places(batch, places) for batch in batches)
    if reader.roots.roots and PATH not in reader.schema.names:
        columns = columns.append(pa.field(PATH, pa.string()))
        batches = (_with_paths(batch, reader.roots) for batch in batches)
    try:
        with store_errors(out), files_aside(targets, overwrite=overwrite) as asides:
            rows = write(asides, reader.manifest, columns, batches)
    except StoreError as error:
        if isinstance(error.__cause__, FileExistsError):  # another export was sooner
            raise UsageError(_exists(error.__cause__.filename)) from error
        raise
    cells.tell(targets[-1])
    return rows


def _exists(target: object) -> str:
    return f"{target} exists; give another name, or overwrite it (--overwrite)"


def _selections(reader: Reader, where: str | None) -> list[RavenSelection]:
    """The rows with the columns of their tables, but no summaries.

    Raises:
        UsageError: the items have no seconds.
    """
    columns = schema.scalar_columns(derived.wider(reader.path, reader.schema))
    batches = reader.ordered(columns, where, _BATCH)
    return raven_selections(reader, [row for batch in batches for row in batch.to_pylist()])


def raven_selections(reader: Reader, rows: Sequence[Mapping[str, Any]]) -> list[RavenSelection]:
    """Rows, all scalar columns of them, as lines of a selection table; summaries are left out.

    Raises:
        UsageError: the items have no seconds.
    """
    modality = reader.require_manifest().model.get("modality")
    if modality not in ("audio", "video"):
        raise UsageError(f"a selection table has seconds, which {modality} has not; use .csv")
    own = (*schema.COLUMNS, *_OWN, PATH)
    original, roots = _original_names(reader), reader.roots
    found = []
    for row in rows:
        if row["kind"] == "summary":
            continue
        values = {original.get(name, name): value for name, value in row.items() if name not in own}
        path = as_id(roots.path_of(row.get(PATH) or row["id"]))
        place = path, row["start"] or 0.0, row["end"], row["channel"]
        found.append(RavenSelection(*place, values, row.get("Selection"), row.get("View")))
    return found


_OWN = ("Selection", "View")


def _original_names(reader: Reader) -> dict[str, str]:
    """The names that metadata columns had in the tables of the runs."""
    found: dict[str, str] = {}
    for run in reader.side_table("runs").to_pylist():
        renamed = schema.run_info(reader.path, run["info"]).renamed or {}
        found |= {new: old for old, new in renamed.items()}
    return found


PATH = "path"
_EDGES = ("left", "top", "right", "bottom")
_CHARACTERS = ("first_char", "end_char")


def _place_columns(reader: Reader) -> list[str]:
    """Columns for the places of boxes, pages, windows of texts and patches, where there are any;
    none that the metadata has already."""
    names: list[str] = []
    for columns, where in (
        (("page",), "starts_with(region, 'page:')"),
        (_EDGES, "kind = 'box'"),
        (_CHARACTERS, "starts_with(region, 'chars:')"),
        ((PATCH,), f"kind = '{PATCH}'"),
    ):
        names += columns if reader.count_rows(where) else ()
    taken = {name.lower() for name in reader.schema.names}
    return [name for name in names if name not in taken]


def _with_places(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """The batch with these columns of its regions' places."""
    keys = zip(batch.column("region").to_pylist(), batch.column("kind").to_pylist(), strict=True)
    places = [_place(Region.of_key(key, kind)) for key, kind in keys]
    for name in names:
        values = pa.array([place.get(name) for place in places], pa.int64())
        batch = batch.append_column(name, values)
    return batch


def _with_paths(batch: pa.RecordBatch, roots: Roots) -> pa.RecordBatch:
    """The batch with the path of each row's file, as other programs need it."""
    paths = [roots.shown(id) for id in batch.column("id").to_pylist()]
    return batch.append_column(PATH, pa.array(paths, pa.string()))


def _place(region: Region) -> dict[str, int | None]:
    return {
        "page": region.page,
        PATCH: region.patch,
        **dict(zip(_EDGES, region.box or (), strict=False)),
        **dict(zip(_CHARACTERS, region.chars or (), strict=False)),
    }


def to_arrow(
    collection: Collection | Reader, where: str | None = None, vectors: bool = True
) -> pa.Table:
    """The matching rows in key order, with the `path` of each file; no logits. vectors: with the
    column `vector`, a list of d numbers. `.to_pandas()` of it is a DataFrame.

    Raises:
        CollectionError: there is no collection, or a filter that cannot be.
    """
    reader = collection if isinstance(collection, Reader) else collection.reader
    reader.require_manifest()
    found = derived.wider(reader.path, reader.schema)
    names = [n for n in found.names if n not in schema.ARRAYS or (vectors and n == "vector")]
    columns = pa.schema([found.field(name) for name in names])
    table = pa.Table.from_batches(reader.ordered(names, where, _BATCH), columns)
    if PATH not in names:
        paths = [reader.roots.shown(id) for id in table["id"].to_pylist()]
        table = table.append_column(PATH, pa.array(paths, pa.string()))
    return table


def write_csv(out: str | os.PathLike[str], table: pa.Table, raw_cells: bool = False) -> None:
    """Writes a table as a CSV, which appears when it is complete, in place of an older one.
    raw_cells: as in `export`.

    Raises:
        StoreError: full disk, no permission.
    """
    import pyarrow.csv as pc

    out, cells = Path(out), Cells(raw_cells)
    with store_errors(out), file_aside(out) as aside:
        pc.write_csv(cells.columns(table), aside)
    cells.tell(out)


def _parquet(
    paths: list[Path], manifest: Manifest | None, columns: pa.Schema, batches: Batches
) -> int:
    import pyarrow.parquet as pq

    about = json.dumps(asdict(manifest) if manifest else {}, ensure_ascii=False)
    schema = columns.with_metadata({METADATA_KEY: about.encode()})
    count = 0
    with pq.ParquetWriter(paths[0], schema) as file:
        for batch in batches:
            file.write_batch(batch.cast(schema))
            count += batch.num_rows
    return count


def _npy(
    cells: Cells, paths: list[Path], _: Manifest | None, columns: pa.Schema, batches: Batches
) -> int:
    import pyarrow.csv as pc

    names = schema.scalar_columns(columns)
    first = cells.columns(pa.RecordBatch.from_pylist([], schema=columns).select(names))
    dim = columns.field("vector").type.list_size
    header = {"descr": "<f4", "fortran_order": False, "shape": (0, dim)}
    count = 0
    with paths[0].open("wb") as file, pc.CSVWriter(paths[1], first.schema) as table:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(schema.matrix(batch.column("vector")).astype("<f4").tobytes())
            table.write_batch(cells.columns(batch.select(names)))
            count += batch.num_rows
        # numpy leaves room in its header for more rows, so its length stays the same
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, dim)})
    return count


def _csv(
    cells: Cells, paths: list[Path], manifest: Manifest | None, columns: pa.Schema, batches: Batches
) -> int:
    import pyarrow.csv as pc

    top = int(manifest.logits.partition(":")[2] or 0) if manifest else 0
    count = 0
    first = cells.columns(_flat(pa.RecordBatch.from_pylist([], schema=columns), top))
    with pc.CSVWriter(paths[0], first.schema) as file:
        for batch in batches:
            file.write_batch(cells.columns(_flat(batch, top)))
            count += batch.num_rows
    return count


def _flat(batch: pa.RecordBatch, top: int) -> pa.RecordBatch:
    """The batch with one scalar column for each value of its vector and logits."""
    scalars = {name: batch.column(name) for name in schema.scalar_columns(batch.schema)}
    flat = _spread(batch.column("vector"), "v")
    if "logits" in batch.schema.names and top:
        lists = batch.column("logits").to_pylist()
        for place in range(top):
            for part, kind in (("index", pa.int32()), ("logit", pa.float32())):
                values = [row[place][part] if row and place < len(row) else None for row in lists]
                flat[f"top_{place}_{part}"] = pa.array(values, kind)
    elif "logits" in batch.schema.names:
        flat |= _spread(batch.column("logits"), "logit_")
    if clash := sorted(scalars.keys() & flat.keys()):
        raise UsageError(
            f"metadata column {clash[0]!r} has the name of a vector's or logits' column in a .csv; "
            "export to .parquet, or to .npy"
        )
    flat = scalars | flat
    return pa.RecordBatch.from_arrays(list(flat.values()), names=list(flat))


def _spread(column: pa.Array, prefix: str) -> dict[str, pa.Array]:
    missing = column.is_null().to_numpy(zero_copy_only=False)
    values = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values[~missing] = schema.matrix(column.drop_null())
    return {
        f"{prefix}{place}": pa.array(values[:, place], pa.float32(), mask=missing)
        for place in range(values.shape[1])
    }
