"""A collection: a folder of raw vectors, logits and metadata that is read, searched and labelled
here. Knows no model; `writer.py` commits to it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult import indexing, rows, search, store, tables, writer
from penult.errors import CollectionError
from penult.indexing import Index
from penult.search import Hit
from penult.store import Manifest, store_errors
from penult.writer import Writer

if TYPE_CHECKING:
    from penult.adding import Summary
    from penult.embedder import Embedder

MARKS = ("yes", "no", "unsure")
_ROW = "_rowid"


class Collection:
    """A folder with LanceDB tables. Every call reads the latest commit; reading never locks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, must_exist: bool = False) -> Collection:
        """Opens a collection, or names one that the first write will make.

        Raises:
            CollectionError: something else is there, or nothing is and it must exist.
        """
        collection = cls(Path(path))
        if not store.exists(collection.path) and must_exist:
            raise CollectionError(
                f"there is no collection at {path}; "
                f"penult embed MODEL FOLDER --into {path} makes one"
            )
        return collection

    def __repr__(self) -> str:
        rows = f"{self.count} rows" if self.exists else "not written yet"
        return f"Collection({str(self.path)!r}, {rows})"

    @property
    def exists(self) -> bool:
        """Whether it has been written to."""
        return store.exists(self.path)

    @property
    def manifest(self) -> Manifest | None:
        """What all vectors share; None while the collection does not exist."""
        return store.read_manifest(self.path) if self.exists else None

    @property
    def schema(self) -> pa.Schema:
        """The arrow schema of its rows."""
        if (table := tables.opened(self.path, tables.ITEMS)) is not None:
            with store_errors(self.path):
                return table.schema
        about = self._about()
        return rows.schema(about.dim, about.n_logits, about.logits, about.dtype)

    @property
    def columns(self) -> list[str]:
        """The names of its columns, metadata last."""
        return list(self.schema.names)

    @property
    def count(self) -> int:
        """The number of rows: regions, not items."""
        return self.count_where(None)

    def count_where(self, where: str | None) -> int:
        """The number of rows that a filter leaves."""
        table = self._items() if self.exists else None
        if table is None:
            return 0
        with tables.asking(self.path, where, table.schema.names):
            return int(table.count_rows(where))

    @contextlib.contextmanager
    def writer(
        self,
        manifest: Manifest,
        metadata: Mapping[str, pa.DataType] | None = None,
        run: Mapping[str, Any] | None = None,
        *,
        wait: bool = False,
    ) -> Iterator[Writer]:
        """The writer, for a `with` block; makes the collection if needed.

        `metadata` are the types of the columns to come; `run` is what the row in `runs` says:
        command, model, revision, device, engine, precision, versions (a dict); others go to its
        `info`. A block that raises ends the run as failed, Ctrl-C as stopped.

        Raises:
            CollectionLocked: another process writes, and `wait` is false.
            FingerprintMismatch: the collection holds another embedder's vectors.
        """
        with writer.writing(self.path, manifest, metadata, run, wait) as opened:
            yield opened

    def scan(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_size: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Streams rows in no particular order, all of one commit."""
        table = self._items()
        if table is None:
            return iter(())
        return self._stream(table, self._selected(table, columns), where, batch_size)

    def ordered(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_size: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Streams rows by id, then channel, start and end: the same order after any history.

        Holds the keys of all rows in memory, the rest of `batch_size` rows.
        """
        table = self._items()
        if table is None:
            return iter(())
        chosen = self._selected(table, columns)
        places = self._places(table, where)
        chunks = (places[at : at + batch_size] for at in range(0, len(places), batch_size))
        return (batch for chunk in chunks for batch in self._taken(table, chosen, chunk))

    def vectors(
        self, where: str | None = None, columns: Sequence[str] = rows.KEY
    ) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        """The chosen columns of all rows as a table, and their vectors (n, d), in key order."""
        table = self._items()
        wanted = self._selected(table, columns) if table is not None else list(columns)
        if table is None:
            about = self._about()
            columns_of = pa.schema([self.schema.field(name) for name in wanted])
            return columns_of.empty_table(), np.zeros((0, about.dim), np.float32)
        places = self._places(table, where)
        vectors = np.empty((len(places), self._about().dim), np.float32)
        by_row = np.argsort(places)
        parts = []
        filled: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
        for batch in self._stream(table, [*dict.fromkeys([*wanted, "vector"])], where, 1024, True):
            row = batch.column(_ROW).to_numpy()
            place = by_row[np.searchsorted(places, row, sorter=by_row)]
            vectors[place] = rows.matrix(batch.column("vector"))
            parts.append(batch.select(wanted))
            filled.append(place)
        keys = pa.Table.from_batches(parts, pa.schema([table.schema.field(n) for n in wanted]))
        return keys.take(np.argsort(np.concatenate(filled))), vectors

    def add(
        self,
        embedder: Embedder,
        items: Any = None,
        *,
        like: Collection | str | os.PathLike[str] | None = None,
        prune: bool = False,
        channel: int | Literal["each"] | None = None,
        window: float | None = None,
        hop: float | None = None,
        tile: int | None = None,
        overlap: int = 0,
        **options: Any,
    ) -> Summary:
        """Embeds what the collection does not have yet; see `penult.adding.add`.

        items: paths, folders, tables, arrays, bytes, images or texts. window, hop: seconds; one
        row for each window of a recording. tile, overlap: pixels; one row for each box of an
        image. options: those of `penult.ingest.Options` (logits, summary, max_seconds, …).

        like: in place of items, another collection, whose items, regions, metadata and labels are
        taken along. prune: remove the rows of files that are gone from the folders and tables.
        """
        from penult.adding import add
        from penult.ingest import Options
        from penult.layout import Layout
        from penult.sources import from_objects
        from penult.taking import taken

        modality, layout = embedder.classifier.modality, Layout(window, hop, tile, overlap)
        asked = Options(layout=layout, **options)
        if like is None:
            source = from_objects(items, modality, channel)
            return add(self, embedder, source, asked, prune=prune)
        old = like if isinstance(like, Collection) else Collection.open(like, must_exist=True)
        source, asked = taken(old, self, modality, asked, given=items is not None or channel)
        return add(self, embedder, source, asked, like=old)

    def search(
        self,
        query: npt.ArrayLike | str | Path,
        k: int = 10,
        where: str | None = None,
        metric: str = "cosine",
        *,
        flat: bool = False,
        indexed: bool = False,
    ) -> list[Hit]:
        """The k rows nearest to the query among those that match the filter.

        Exact and flat, unless there is an index (`build_index`): that one is used for cosines,
        without `flat`. indexed: use it even if it has not been measured yet.

        query: a raw vector (d,), a file, which is embedded as the rows were, or the id of a row.

        Ties are in the order of (id, region). A stored zero vector has no direction: no search by
        cosine finds it.

        Raises:
            CollectionError: a query of wrong size or not finite, a bad filter or metric.
        """
        if k < 1:
            raise CollectionError(f"k = {k}: at least one neighbour has to be asked for")
        if isinstance(query, str | Path):
            from penult.querying import query_vector

            query = query_vector(self, query)
        query = search.as_query(query, self._about().dim, metric)
        table = self._items()
        if table is None:
            return []
        names = [*rows.scalar_columns(table.schema), search.DISTANCE]
        fits = metric == "cosine" and not flat
        approximate = indexed or (fits and indexing.is_ready(self.path))
        asked, matching, probes = k + 16, 0, 0
        if approximate:
            with tables.asking(self.path, where, table.schema.names):
                count = matching = int(table.count_rows())
                if where is not None:
                    matching = int(table.count_rows(where))
            probes = indexing.probes(count, matching)
        while True:
            with tables.asking(self.path, where, table.schema.names):
                builder = table.search(query, vector_column_name="vector").distance_type(metric)
                if where is not None:
                    builder = builder.where(where, prefilter=True)
                builder = indexing.asked(builder, probes)
                found = builder.select(names).limit(asked).to_arrow()
            if probes and len(found) < min(asked, matching):  # too few rows in those lists
                probes = 0
            elif not search.is_cut_in_a_tie(found[search.DISTANCE].to_numpy(), k, asked):
                return search.hits(found, k, metric)
            else:
                asked *= 4

    def build_index(self, min_recall: float = 0.95) -> Index:
        """Makes searches by cosine fast and approximate, if the index is good enough; see
        `penult.indexing.build`."""
        return indexing.build(self, min_recall)

    def drop_index(self) -> bool:
        """Removes the index, so that searches are exact; gives whether there was one."""
        return indexing.drop(self)

    @property
    def index(self) -> Index | None:
        """What the index is, if there is one."""
        return indexing.read(self)

    def get(self, id: str, region: str = "whole") -> dict[str, Any] | None:
        """One row; vector and logits as float32 arrays, top logits as a list of dicts."""
        table = self._items()
        if table is None:
            return None
        where = f"id = {rows.quoted([id])} AND region = {rows.quoted([region])}"
        with store_errors(self.path):
            found = table.search().where(where).limit(1).to_arrow()
        if not len(found):
            return None
        row: dict[str, Any] = found.drop_columns(["vector"]).to_pylist()[0]
        row["vector"] = rows.matrix(found["vector"])[0]
        if "logits" in row and pa.types.is_fixed_size_list(found["logits"].type):
            row["logits"] = rows.matrix(found["logits"])[0] if row["logits"] is not None else None
        return {name: row[name] for name in found.column_names}

    def failures(self) -> pa.Table:
        """What could not be embedded, and why, by id."""
        return self._side("failures").sort_by([("id", "ascending"), ("region", "ascending")])

    def runs(self) -> pa.Table:
        """Who wrote, when, with what; in order of their beginning."""
        return self._side("runs").sort_by("started")

    def labels(self) -> pa.Table:
        """All marks ever made, in order of time; of several for one region the last one counts."""
        return self._side("labels").sort_by("when")

    def label(
        self, id: str, region: str, class_: str, mark: str = "yes", *, who: str, source: str
    ) -> None:
        """Appends one mark: that a region belongs to a class (yes), does not (no), or unsure."""
        record = {"id": id, "region": region, "class": class_, "mark": mark, "who": who}
        self.append_labels([record | {"source": source}])

    def append_labels(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends marks with id, region, class, mark, who, source and, if not now, when.

        Needs no lock: also possible while a run is writing.

        Raises:
            CollectionError: there is no collection, a value is missing or a mark unknown.
        """
        for record in records:
            missing = [name for name in ("id", "region", "class") if not record.get(name)]
            if missing or record.get("mark") not in MARKS:
                raise CollectionError(
                    f"a label needs id, region, class and a mark out of {', '.join(MARKS)}; "
                    f"received {dict(record)}"
                )
        self._append("labels", records)

    def spaces(self) -> pa.Table:
        """The fitted spaces, oldest first; of several with one name the last one counts."""
        return self._side("spaces").sort_by("when")

    def add_space(self, space_id: str, name: str, about: Mapping[str, Any], data: bytes) -> None:
        """Appends a fitted space: what it is (kept as JSON) and its arrays as bytes."""
        record = {"space_id": space_id, "name": name, "about": json.dumps(about), "data": data}
        self._append("spaces", [record])

    def _append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        self._about()
        columns = tables.SIDE[name]
        stamped = [{"when": store.now(), **record} for record in records]
        if stamped:
            table = tables.created(self.path, name, columns)
            with store_errors(self.path):
                table.add(pa.Table.from_pylist(stamped, schema=columns))

    def _about(self) -> Manifest:
        if (manifest := self.manifest) is None:
            raise CollectionError(f"there is no collection at {self.path} yet")
        return manifest

    def _items(self) -> Any | None:
        self._about()
        return tables.opened(self.path, tables.ITEMS)

    def _side(self, name: str) -> pa.Table:
        self._about()
        if (table := tables.opened(self.path, name)) is None:
            return tables.SIDE[name].empty_table()
        with store_errors(self.path):
            return table.to_arrow()

    def _selected(self, table: Any, columns: Sequence[str] | None) -> list[str]:
        names = list(table.schema.names)
        if unknown := [name for name in columns or () if name not in names]:
            raise CollectionError(
                f"there is no column {unknown[0]!r} in {self.path}; columns: {', '.join(names)}"
            )
        return names if columns is None else list(columns)

    def _stream(
        self, table: Any, columns: list[str], where: str | None, size: int, row_id: bool = False
    ) -> Iterator[pa.RecordBatch]:
        names = table.schema.names
        with tables.asking(self.path, where, names):
            query = table.search().select(columns).limit(None).with_row_id(row_id)
            if where is not None:
                query = query.where(where)
            reader = query.to_batches(size)

        def batches() -> Iterator[pa.RecordBatch]:
            while True:
                with tables.asking(self.path, where, names):
                    batch = next(reader, None)
                if batch is None:
                    return
                yield batch

        return batches()

    def _taken(
        self, table: Any, columns: list[str], places: npt.NDArray[np.uint64]
    ) -> list[pa.RecordBatch]:
        """The rows at these places in the given order; LanceDB gives them in its own."""
        with store_errors(self.path):
            found = table.take_row_ids(places.tolist()).select(columns).with_row_id().to_arrow()
        order = np.argsort(found[_ROW].to_numpy())[np.argsort(np.argsort(places))]
        batches: list[pa.RecordBatch] = (
            found.take(order).select(columns).combine_chunks().to_batches()
        )
        return batches

    def _places(self, table: Any, where: str | None) -> npt.NDArray[np.uint64]:
        """The row ids of the matching rows, in the order of their keys."""
        parts = list(self._stream(table, list(rows.ORDER), where, 8192, True))
        if not parts:
            return np.zeros(0, np.uint64)
        keys = pa.Table.from_batches(parts)
        for name in ("channel", "start"):  # null comes first here, and last for an end
            filled = pc.fill_null(keys[name], -1)
            keys = keys.set_column(keys.schema.get_field_index(name), name, filled)
        order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in rows.ORDER])
        places: npt.NDArray[np.uint64] = keys[_ROW].take(order).to_numpy()
        return places
