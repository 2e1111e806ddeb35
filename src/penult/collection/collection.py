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

from penult.analysis.space import RAW, Space
from penult.collection import index, lance, manifest, search, spaces, writer
from penult.collection import schema as rows
from penult.collection.index import Index
from penult.collection.manifest import Manifest, Mark, store_errors
from penult.collection.search import Hits
from penult.collection.writer import Writer
from penult.errors import CollectionError

if TYPE_CHECKING:
    from penult.collection.add import Summary
    from penult.embedding.embedder import Embedder


MARKS = ("yes", "no", "unsure")


class Collection:
    """A folder with LanceDB tables. Every call reads the latest commit; reading never locks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._manifest: tuple[Mark, Manifest] | None = None
        self._table: tuple[Mark, Any] | None = None  # the rows, opened for searches
        self._embedders = search.KeptEmbedder()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, must_exist: bool = False) -> Collection:
        """Opens a collection, or names one that the first write will make.

        Raises:
            CollectionError: something else is there, or nothing is and it must exist.
        """
        collection = cls(path)
        if not manifest.exists(collection.path) and must_exist:
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
        return manifest.exists(self.path)

    @property
    def manifest(self) -> Manifest | None:
        """What all vectors share; None while the collection does not exist."""
        current = self._current()
        return None if current is None else current[1]

    @property
    def schema(self) -> pa.Schema:
        """The arrow schema of its rows."""
        if (table := lance.opened(self.path, lance.ITEMS)) is not None:
            with store_errors(self.path):
                return table.schema
        about = self._about()
        return rows.row_schema(about.dim, about.n_logits, about.logits, about.dtype)

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
        table = lance.opened(self.path, lance.ITEMS) if self._current() is not None else None
        if table is None:
            return 0
        with lance.asking(self.path, where, table.schema.names):
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
        chosen = lance.selected(self.path, table, columns)
        return lance.stream(self.path, table, chosen, where, batch_size)

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
        chosen = lance.selected(self.path, table, columns)
        return lance.ordered(self.path, table, chosen, where, batch_size)

    def vectors(
        self,
        where: str | None = None,
        columns: Sequence[str] = rows.KEY,
        most: int | None = None,
        seed: int = 0,
    ) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        """The chosen columns of all rows as a table, and their vectors (n, d), in key order.

        most: of more rows only so many, drawn by chance, the same ones for a seed.
        """
        table = self._items()
        if table is None:
            columns_of = pa.schema([self.schema.field(name) for name in columns])
            return columns_of.empty_table(), np.zeros((0, self._about().dim), np.float32)
        chosen = lance.selected(self.path, table, columns)
        return lance.vectors(self.path, table, chosen, where, most, seed)

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
        """Embeds what the collection does not have yet; see `penult.collection.add.add`.

        items: paths, folders, tables, arrays, bytes, images or texts. window, hop: seconds; one
        row for each window of a recording. tile, overlap: pixels; one row for each box of an
        image. options: those of `ingesting.ingest.Options` (logits, summary, max_seconds, …).

        like: in place of items, another collection, whose items, regions, metadata and labels are
        taken along. prune: remove the rows of files that are gone from the folders and tables.
        """
        from penult.collection.add import add
        from penult.collection.ingest import Options
        from penult.collection.transfer import source_from_collection
        from penult.data.sources import from_objects
        from penult.data.windows import Layout

        modality, layout = embedder.classifier.modality, Layout(window, hop, tile, overlap)
        asked = Options(layout=layout, **options)
        if like is None:
            source = from_objects(items, modality, channel)
            return add(self, embedder, source, asked, prune=prune)
        old = like if isinstance(like, Collection) else Collection.open(like, must_exist=True)
        source, asked = source_from_collection(
            old, self, modality, asked, given=items is not None or channel
        )
        return add(self, embedder, source, asked, like=old)

    def search(
        self,
        query: npt.ArrayLike | str | os.PathLike[str],
        k: int = 10,
        where: str | None = None,
        metric: str = "cosine",
        *,
        space: str | Space = RAW,
        flat: bool = False,
        indexed: bool = False,
        embedder: Embedder | None = None,
    ) -> Hits:
        """The k rows nearest to the query among those that match the filter: a list of `Hit`, with
        `searched`, `index` or `all rows`.

        Exact and flat, unless there is an index (`build_index`): that one is used for cosines of
        raw vectors, without `flat`. indexed: use it even if it has not been measured yet.

        query: a raw vector (d,), a file, which is embedded as the rows were, or the id of a row.
        embedder: for a file, in place of the collection's own (see `embedder`).

        space: compare in this space: one that is kept here, a recipe (fitted and kept at first
        use), or a `penult.analysis.space.Space`. Every row goes through it, so that it is always
        exact.

        Ties are in the order of (id, region). A zero vector has no direction: no search by cosine
        finds it.

        Raises:
            CollectionError: a query of wrong size or not finite, a bad filter or metric, or the
                index asked for in a space.
            SpaceError: there is no such space.
            FingerprintMismatch: vectors of `embedder` are not comparable to the rows.
        """
        if k < 1:
            raise CollectionError(f"k = {k}: at least one neighbour has to be asked for")
        if isinstance(query, str | os.PathLike):
            query = search.query_vector(self, query, embedder=embedder)
        manifest, table = self._latest()
        if table is None:
            return Hits()
        used, dim = spaces.resolved(self, space), manifest.dim
        if used.is_raw:
            fast = indexed or (metric == "cosine" and not flat and index.is_ready(self.path))
            direction = search.as_query(query, dim, metric)
            return search.raw(self.path, table, direction, k, where, metric, fast)
        if indexed:
            raise CollectionError("the index is of raw vectors; it cannot search in a space")
        moved = used(search.as_query(query, dim, "l2"))  # a space is fitted to vectors as they are
        asked = search.as_query(moved, moved.size, metric)
        # Rows are streamed and then taken by their places, which a later commit may change.
        return search.in_space(self.path, self._items(), asked, k, where, metric, used)

    def embedder(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        trust: bool = False,
    ) -> Embedder:
        """The embedder that the rows are from: opened when it is first needed, and kept as long as
        the collection is the same. model: where it is now, if it is not where it was.

        Raises:
            FingerprintMismatch: what is there now would give other vectors.
        """
        place = None if model is None else os.fspath(model)
        return self._embedders.get(self._about(), place, device, trust)

    def build_index(self, min_recall: float = 0.95) -> Index:
        """Makes searches by cosine fast and approximate, if the index is good enough; see
        `penult.collection.index.build`."""
        return index.build(self, min_recall)

    def drop_index(self) -> bool:
        """Removes the index, so that searches are exact; gives whether there was one."""
        return index.drop(self)

    @property
    def index(self) -> Index | None:
        """What the index is, if there is one."""
        return index.read(self)

    def get(self, id: str, region: str = "whole") -> dict[str, Any] | None:
        """One row; vector and logits as float32 arrays, top logits as a list of dicts."""
        _, table = self._latest()
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
        self.append("labels", records)

    def spaces(self) -> pa.Table:
        """The fitted spaces, oldest first; of several with one name the last one counts."""
        return self._side("spaces").sort_by("when")

    def add_space(self, space_id: str, name: str, about: Mapping[str, Any], data: bytes) -> None:
        """Appends a fitted space: what it is (kept as JSON) and its arrays as bytes."""
        record = {"space_id": space_id, "name": name, "about": json.dumps(about), "data": data}
        self.append("spaces", [record])

    def fit_space(self, recipe: str, name: str | None = None, where: str | None = None) -> Space:
        """Fits a space, such as `scale+l2`, on the raw vectors and keeps it; see
        `penult.collection.spaces.fit_space`."""
        return spaces.fit_space(self, recipe, name, where)

    def space(self, name: str) -> Space:
        """The space that is kept under this name or recipe; of several the newest.

        Raises:
            SpaceError: there is none.
        """
        return spaces.space_of(self, name)

    def append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends records to a side table (`penult.collection.lance.SIDE`); needs no lock."""
        self._about()
        columns = lance.SIDE[name]
        stamped = [{"when": manifest.now(), **record} for record in records]
        if stamped:
            table = lance.created(self.path, name, columns)
            with store_errors(self.path):
                table.add(pa.Table.from_pylist(stamped, schema=columns))

    def _current(self) -> tuple[Mark, Manifest] | None:
        """The manifest with its mark; read again only where another one was written."""
        mark, kept = manifest.mark(self.path), self._manifest
        if mark is None:
            return None
        if kept is None or kept[0] != mark:
            kept = self._manifest = (mark, manifest.read_manifest(self.path))
        return kept

    def _there(self) -> tuple[Mark, Manifest]:
        if (current := self._current()) is None:
            raise CollectionError(f"there is no collection at {self.path} yet")
        return current

    def _about(self) -> Manifest:
        return self._there()[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def _latest(self) -> tuple[Manifest, Any | None]:
        """The manifest, and the table of rows at its latest version, for questions that are one
        call: opened once, since to open it takes as long as a search in its index does."""
        (mark, manifest), kept = self._there(), self._table
        if kept is not None and kept[0] == mark:
            with store_errors(self.path):
                kept[1].checkout_latest()
            return manifest, kept[1]
        table = lance.opened(self.path, lance.ITEMS)
        self._table = None if table is None else (mark, table)
        return manifest, table

    def _items(self) -> Any | None:
        self._about()
        return lance.opened(self.path, lance.ITEMS)

    def _side(self, name: str) -> pa.Table:
        self._about()
        if (table := lance.opened(self.path, name)) is None:
            return lance.SIDE[name].empty_table()
        with store_errors(self.path):
            return table.to_arrow()
