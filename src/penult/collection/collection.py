"""A collection: a folder of raw vectors, logits and metadata that is read, searched and labelled
here. Knows no model; `writer.py` commits to it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.space import RAW, Space
from penult.collection import forgetting, index, manifest, schema, search, spaces
from penult.collection import writer as commits
from penult.collection.index import Index
from penult.collection.manifest import Manifest
from penult.collection.reader import Reader, append_labels
from penult.collection.search import Hits, QueryVectors
from penult.data.places import place_of
from penult.errors import CollectionError

if TYPE_CHECKING:
    from penult.collection.add import Summary
    from penult.collection.ingest import Machines
    from penult.data.decode import Limits
    from penult.embedding.embedder import Embedder

RootPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Literal[False]


class CutOptions(TypedDict, total=False):
    """How items are cut, as in `penult.data.windows.Layout`.

    window, hop: seconds, or tokens of a text; one row for each window. tile, overlap: pixels; one
    row for each box of an image. pages: `each`, one row for each page or frame of an image.
    """

    window: float | None
    hop: float | None
    tile: int | None
    overlap: int
    pages: Literal["each"] | None


class AddOptions(CutOptions, total=False):
    """Further options of `Collection.add`; see `penult.collection.ingest.Options`."""

    logits: str
    max_seconds: float | None
    retry_failed: bool
    summary: Literal["mean", "max"] | None
    alone: bool
    workers: int
    time_limit: float
    commit_rows: int
    commit_seconds: float
    machines: Machines | None


_LAYOUT = tuple(CutOptions.__annotations__)
# Members of earlier versions, and where they are now.
_MOVED = {
    **{name: f"reader.{name}" for name in ("append", "ordered", "scan", "schema")},
    "columns": "reader.schema.names",
    "count_rows": "reader.count_rows",  # where a Collection is given for its reader
    "roots": "reader.roots",  # so too
    "exists": "manifest, None where there is no collection",
    "count_where": "reader.count_rows",
    "append_labels": "penult.collection.reader.append_labels",
    "add_space": "fit_space",
    "writer": "penult.collection.writer.writing",
}


class Collection:
    """A folder with LanceDB tables. Every call reads the latest commit; reading never locks.

    reader: its tables, for the functions of `penult.collection`.
    """

    def __init__(self, path: str | os.PathLike[str], root: RootPaths = ()) -> None:
        self.path, self._root = place_of(path), root
        self.reader = Reader(self.path)
        self._embedders = search.KeptEmbedder()

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, must_exist: bool = False, root: RootPaths = ()
    ) -> Collection:
        """Opens a collection, or names one that the first write will make.

        root: folders that ids of added items begin with, as DIR or NAME=DIR, where the folders and
        tables that are added are not meant (see `penult.data.roots`); False: ids are whole paths.

        Raises:
            CollectionError: something else is there, or nothing is and it must exist.
        """
        collection = cls(path, root)
        forgetting.complete_if_free(collection.path)
        if not manifest.exists(collection.path) and must_exist:
            raise CollectionError(
                f"there is no collection at {collection.path}; "
                f"penult embed MODEL FOLDER --into {collection.path} makes one"
            )
        return collection

    def __repr__(self) -> str:
        rows = "not written yet" if self.manifest is None else f"{self.count} rows"
        return f"Collection({str(self.path)!r}, {rows})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._root)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in _MOVED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(
                f"Collection.{name} goes with the next version; use {_MOVED[name]}",
                DeprecationWarning,
                stacklevel=2,
            )
            return self._former(name)

    def _former(self, name: str) -> Any:
        """A member of an earlier version."""
        reader = self.reader
        former: dict[str, Callable[[], Any]] = {
            "exists": lambda: manifest.exists(self.path),
            "columns": lambda: reader.schema.names,
            "count_where": lambda: reader.count_rows,
            "append_labels": lambda: partial(append_labels, reader),
            "add_space": lambda: partial(spaces.append_space, reader),
            "writer": lambda: partial(commits.writing, self.path),
        }
        return former.get(name, lambda: getattr(reader, name))()

    @property
    def manifest(self) -> Manifest | None:
        """The properties that all vectors share; None while the collection does not exist."""
        return self.reader.manifest

    @property
    def count(self) -> int:
        """The number of rows: regions, not items."""
        return self.reader.count_rows()

    def vectors(
        self,
        where: str | None = None,
        columns: Sequence[str] = schema.KEY,
        most: int | None = None,
        seed: int = 0,
    ) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        """The named columns of all rows as a table, and their vectors (n, d), in key order.

        most: of more rows, this many drawn at random, the same ones for a seed.
        """
        return self.reader.vectors(where, columns, most, seed)

    def get(self, id: str, region: str = "whole") -> dict[str, Any] | None:
        """One row; vector and logits as float32 arrays, top logits as a list of dicts. id: also a
        path, see `penult.data.roots`."""
        found = (self.reader.get(one, region) for one in self.reader.roots.ids_of(id))
        return next((row for row in found if row is not None), None)

    def add(
        self,
        embedder: Embedder,
        items: Any = None,
        *,
        like: Collection | str | os.PathLike[str] | None = None,
        prune: bool | Literal["all"] = False,
        columns: Mapping[str, str] = {},
        channel: int | Literal["each"] | None = None,
        limits: Limits | None = None,
        **options: Unpack[AddOptions],
    ) -> Summary:
        """Embeds what the collection does not have yet; see `penult.collection.add.add`.

        items: paths, folders, tables, arrays, bytes, images or texts. channel: of a recording, or
        `each`. options: windows, tiles and more, see `AddOptions`.

        like: in place of items, another collection, whose items, regions, metadata and labels are
        taken along. prune: remove the rows of files that are gone from the folders and tables,
        unless they are so many that a disk may be missing; `all`: in any case.
        limits: of pixels, characters and memory; `max_seconds` is among the options.
        columns: which columns of a table hold path, start, end, duration, channel or a box, as in
        `{"path": "IN FILE", "start": "OFFSET"}`.
        """
        from penult.collection.add import RunSettings, add
        from penult.collection.ingest import Options, decoding_of
        from penult.collection.transfer import source_from_collection
        from penult.data.roots import RootOptions
        from penult.data.sources import from_objects, named_columns
        from penult.data.windows import Layout
        from penult.data.workers import headers_in_workers

        given: dict[str, Any] = dict(options)
        root = self._root
        roots = RootOptions.of(() if root is False else root, absolute_ids=root is False)
        modality = embedder.classifier.modality
        layout = Layout(**{name: given.pop(name) for name in _LAYOUT if name in given})
        run = RunSettings(prune=prune, roots=roots)
        settings = Options(layout=layout, **given)
        if limits is not None:
            settings = replace(settings, limits=limits)
        if like is None:
            with named_columns(columns):
                describe = headers_in_workers(decoding_of(settings))
                source = from_objects(items, modality, channel, describe)
            return add(self.reader, embedder, source, settings, run)
        old = like if isinstance(like, Collection) else Collection.open(like, must_exist=True)
        source, settings = source_from_collection(
            old.reader, self.reader, modality, settings, given=items is not None or channel
        )
        return add(self.reader, embedder, source, settings, run, like=old.reader)

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

        Exact and flat, unless there is an index (`build_index`): that one is used for cosines,
        without `flat`, of raw vectors and in the spaces in which it was measured. indexed: use it
        even if it has not been measured yet.

        query: a raw vector (d,), or several (m, d), of which the nearest one counts for each row; a
        file, which is cut and embedded as the rows were; or the id of an item. embedder: for a
        file, in place of the collection's own (see `embedder`).

        space: compare in this space: one that is kept here, a recipe (fitted and kept at first
        use), or a `penult.analysis.space.Space`. Without the index every row goes through it.

        Ties are in the order of (id, region). A zero vector has no direction: no search by cosine
        finds it.

        Raises:
            CollectionError: a query of wrong size or not finite, a bad filter or metric, or the
                index asked for in a space by another metric than cosine.
            SpaceError: there is no such space.
            FingerprintMismatch: vectors of `embedder` are not comparable to the rows.
        """
        if k < 1:
            raise CollectionError(f"k = {k}: at least one neighbour has to be asked for")
        if isinstance(query, str | os.PathLike):
            read = self._query_vectors(query, embedder)
            near = self.search(
                read.query, k, where, metric, space=space, flat=flat, indexed=indexed
            )
            return read.named(near)
        if np.ndim(query) == 2 and np.size(query):
            rows = np.asarray(query)
            return self._search_by_several(rows, k, where, metric, (space, flat, indexed))
        manifest, table = self.reader.latest_rows()
        if table is None:
            return Hits()
        used, dim = spaces.resolved(self.reader, space), manifest.dim
        if used.is_raw:
            fast = indexed or (metric == "cosine" and not flat and index.is_ready(self.path))
            direction = search.as_query(query, dim, metric)
            return search.raw(self.path, table, direction, k, where, metric, fast)
        if indexed and metric != "cosine":
            raise CollectionError("in a space the index finds rows by cosine only")
        raw = search.as_query(query, dim, "l2")  # a space is fitted to vectors as they are
        if indexed or (metric == "cosine" and not flat and index.serves(self.path, used.id)):
            found = search.in_space_by_index(self.path, table, raw, k, where, used)
            if found is not None:
                return found
        moved = used(raw)
        point = search.as_query(moved, moved.size, metric)
        # Rows are streamed and then taken by their places, which a later commit may change.
        return search.in_space(
            self.path, self.reader.open_rows(), point[None], k, where, metric, used
        )

    def _search_by_several(
        self,
        queries: npt.NDArray[Any],
        k: int,
        where: str | None,
        metric: str,
        how: tuple[str | Space, bool, bool],
    ) -> Hits:
        """queries: (m, d). how: space, flat and indexed."""
        (space, flat, indexed), (manifest, table) = how, self.reader.latest_rows()
        if table is None:
            return Hits()
        used = spaces.resolved(self.reader, space)
        points = [search.as_query(query, manifest.dim, "l2") for query in queries]
        by_index = index.is_ready(self.path) if used.is_raw else index.serves(self.path, used.id)
        if indexed or (by_index and metric == "cosine" and not flat):
            found = (
                self.search(one, k, where, metric, space=used, indexed=indexed) for one in points
            )
            return search.nearest_of([*found], k)
        moved = [used(point) for point in points]
        stacked = np.stack([search.as_query(one, one.size, metric) for one in moved])
        return search.in_space(self.path, self.reader.open_rows(), stacked, k, where, metric, used)

    def _query_vectors(
        self, query: str | os.PathLike[str], embedder: Embedder | None
    ) -> QueryVectors:
        if embedder is None:
            return search.query_vectors(self.reader, query, self.embedder)
        search.check_embedder(self.reader.require_manifest(), embedder)
        return search.query_vectors(self.reader, query, lambda: embedder)

    def embedder(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        trust: bool = False,
    ) -> Embedder:
        """The embedder that the rows are from: opened when it is first needed, and kept as long as
        the collection is the same. model: where it is now, if it is not where it was. trust: code
        and models of the hub that the collection names may be run and fetched.

        Raises:
            FingerprintMismatch: what is there now would give other vectors.
            UntrustedCode: it names code that this user has neither typed nor trusted.
        """
        place = None if model is None else os.fspath(model)
        manifest = self.reader.require_manifest()
        return self._embedders.get(manifest, place, device, trust, str(self.path))

    def build_index(self, min_recall: float = 0.95, wait: bool = False) -> Index:
        """Makes searches by cosine fast and approximate, if the index is good enough; see
        `penult.collection.index.build`."""
        return index.build(
            self.reader,
            lambda query, k, space: self.search(query, k, space=space, indexed=True),
            min_recall,
            wait=wait,
        )

    def drop_index(self, wait: bool = False) -> bool:
        """Removes the index, so that searches are exact; gives whether there was one."""
        return index.drop(self.reader, wait)

    @property
    def index(self) -> Index | None:
        """What the index is, if there is one."""
        return index.read(self.reader)

    def failures(self) -> pa.Table:
        """What could not be embedded, and why, by id."""
        return self.reader.side_table("failures")

    def runs(self) -> pa.Table:
        """Who wrote, when, with what; in order of their beginning."""
        return self.reader.side_table("runs")

    def labels(self) -> pa.Table:
        """All marks ever made, in order of time; of several for one region the last one counts."""
        return self.reader.side_table("labels")

    def label(
        self, id: str, region: str, class_: str, mark: str = "yes", *, who: str, source: str
    ) -> None:
        """Appends one mark: that a region belongs to a class (yes), does not (no), or unsure. id:
        also the absolute path of a file in a root."""
        id = self.reader.roots.id_of(Path(id)) if os.path.isabs(id) else id  # noqa: PTH117
        record = {"id": id, "region": region, "class": class_, "mark": mark, "who": who}
        append_labels(self.reader, [record | {"source": source}])

    def spaces(self) -> pa.Table:
        """The fitted spaces, oldest first; of several with one name the last one counts."""
        return self.reader.side_table("spaces")

    def fit_space(self, recipe: str, name: str | None = None, where: str | None = None) -> Space:
        """Fits a space, such as `scale+l2`, on the raw vectors and keeps it; see
        `penult.collection.spaces.fit_space`."""
        return spaces.fit_space(self.reader, recipe, name, where)

    def space(self, name: str) -> Space:
        """The space that is kept under this name or recipe; of several the newest.

        Raises:
            SpaceError: there is none.
        """
        return spaces.space_of(self.reader, name)
