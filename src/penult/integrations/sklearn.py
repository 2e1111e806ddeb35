"""An embedder as a step of scikit-learn's pipelines: items in, vectors out."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from penult.analysis import space
from penult.collection import schema
from penult.collection.collection import Collection
from penult.data.files import user_path
from penult.data.items import Entry, Failure
from penult.data.sources import from_objects
from penult.embedding.embedder import Embedder, fingerprint_of, open_embedder
from penult.embedding.saving import is_embedder
from penult.errors import ItemError, SourceError, UsageError
from penult.models.patches import ROWS
from penult.models.specs import saved_on_hub

FloatArray = npt.NDArray[np.float32]

_MODELS = 2  # classifiers kept open
_READINGS = 16  # taps and poolings of them
_VECTORS = 100_000  # vectors of files kept, so that folds and grids embed each file once


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A row of a collection, as an item. path: of the collection."""

    path: str
    id: str
    region: str


def rows_of(collection: Collection, where: str | None = None) -> list[CollectionRow]:
    """The matching rows in key order, as items that folds can divide.

    Raises:
        CollectionError: a filter that cannot be.
    """
    keys = collection.reader.ordered(schema.KEY, where)
    place = str(collection.path)
    return [CollectionRow(place, row["id"], row["region"]) for b in keys for row in b.to_pylist()]


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Files, arrays, images or texts → one vector each, by a classifier cut before its head.

    An item is also a segment (path, start, end) in seconds, in a table three columns, or a row of a
    collection of the same embedder (`rows_of`), whose vector is read there; a Collection in place
    of the items is all of its rows.

    model: what `penult.load` takes as a text or path, or a saved embedder's folder. tap, pooling:
    where to read; None takes the embedder's own, else `backbone` and `mean`. space: a recipe such
    as `scale+l2`, fitted in `fit` on the training items; None leaves vectors raw. device: as for an
    Embedder. on_error: `raise` stops at an item that fails, `nan` gives it a row of NaN. asked:
    what else `penult.load` takes (class_names, sample_rate, …).

    It is pickled and cloned as these settings, never with weights; models that are open, and the
    vectors of files that have not changed, are shared by all transformers of a process.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "demo",
        tap: str | None = None,
        pooling: str | None = None,
        space: str | None = None,
        device: str = "auto",
        on_error: str = "raise",
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tap = tap
        self.pooling = pooling
        self.space = space
        self.device = device
        self.on_error = on_error
        self.asked = asked

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit the space on these items; without one nothing is run.

        Raises:
            UsageError: settings or items that cannot be. ItemError: an item that fails.
        """
        items = self._items(X)
        self.n_items_ = len(items)
        if self.space is not None:
            vectors = self._vectors(items)
            whole = np.isfinite(vectors).all(axis=1)
            self.space_ = space.fit(self.space, vectors[whole])
        return self

    def transform(self, X: Any) -> FloatArray:  # noqa: N803
        """(n, d) float32, in the order of the items.

        Raises:
            NotFittedError: a space is named and has not been fitted.
        """
        self._check_fitted()
        vectors = self._vectors(self._items(X))
        if self.space is None:
            return vectors
        whole = np.isfinite(vectors).all(axis=1)
        moved = self.space_(vectors[whole])
        placed = np.full((len(vectors), self._width), np.nan, np.float32)
        placed[whole] = moved
        return placed

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """`embedding0`, `embedding1`, …: as many as a vector has numbers; opens the model."""
        self._check_fitted()
        return np.array([f"embedding{place}" for place in range(self._width)], dtype=object)

    @property
    def _width(self) -> int:
        dim = self.embedder.dim
        return dim if self.space is None else self.space_.width

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"the space {self.space!r} of this EmbeddingTransformer is not fitted yet: call "
                "fit with the training items first"
            )

    @property
    def embedder(self) -> Embedder:
        """The open embedder; opened at first use."""
        if not isinstance(self.model, str | os.PathLike):
            raise UsageError(
                f"model is a {type(self.model).__name__}; a transformer is copied and pickled, so "
                "it takes a model's name or a saved embedder's folder: embedder.save('my-embedder')"
            )
        options = tuple(sorted((self.asked or {}).items()))
        return _open_reading(os.fspath(self.model), self.tap, self.pooling, self.device, options)

    def _vectors(self, items: list[Any]) -> FloatArray:
        """The raw vectors; of files that were embedded before, from memory."""
        if self.on_error not in ("raise", "nan"):
            raise UsageError(f"on_error is {self.on_error!r}; raise and nan work")
        embedder = self.embedder
        text = embedder.classifier.modality == "text"
        keys = [_key(item, text) for item in items]
        place = embedder.fingerprint_id
        known = {
            k: v for k in set(keys) if k is not None and (v := _MEMORY.get((place, k))) is not None
        }
        fresh = _first_of_each(keys, known)
        new = self._run([items[number] for number in fresh])
        for number, vector in zip(fresh, new, strict=True):
            if (key := keys[number]) is not None:
                known[key] = vector
                _MEMORY.put((place, key), vector)
        own = dict(zip(fresh, new, strict=True))
        rows = [known[k] if (k := keys[n]) is not None else own[n] for n in range(len(items))]
        return np.stack(rows) if rows else np.zeros((0, embedder.dim), np.float32)

    def _run(self, items: list[Any]) -> FloatArray:
        """One vector for each item: what fails raises, or is a row of NaN."""
        from penult.data.regions import Region

        embedder = self.embedder
        if embedder.classifier.input.patches == ROWS:
            raise UsageError(
                "each item is one row here, and patches='rows' gives a row for each patch of it; "
                "pool them with patches='mean' or 'max'"
            )
        vectors = np.full((len(items), embedder.dim), np.nan, np.float32)
        rows = [place for place, item in enumerate(items) if isinstance(item, CollectionRow)]
        if rows:
            vectors[rows] = self._of_rows([items[place] for place in rows])
        others = [place for place, item in enumerate(items) if not isinstance(item, CollectionRow)]
        if not others:
            return vectors
        pairs = []
        for item in (items[place] for place in others):
            entries = list(_entries(item, embedder.classifier.modality))
            if len(entries) != 1:
                raise SourceError(
                    f"{item!r} stands for {len(entries)} items; give one file for each row"
                )
            one = entries[0]
            pairs.append(one if isinstance(one, Failure) else (one[0], one[1] or Region()))
        for row, outcome in zip(others, embedder.runner.stream(pairs), strict=True):
            if not isinstance(outcome, Failure):
                vectors[row] = outcome.vector
            elif self.on_error == "raise":
                raise ItemError(outcome.words())
        return vectors

    def _of_rows(self, rows: Sequence[CollectionRow]) -> FloatArray:
        """The vectors of rows of collections: what is no row raises, or is a row of NaN.

        Raises:
            FingerprintMismatch: a collection of another embedder.
        """
        from penult.fewshot.marks import vectors_of
        from penult.fewshot.vectors import VectorSource

        known = dict[CollectionRow, FloatArray]()
        for path in dict.fromkeys(row.path for row in rows):
            collection = Collection.open(path, must_exist=True)
            VectorSource.of(collection).check(fingerprint_of(self.embedder), str(self.model))
            found = vectors_of(
                collection, [(row.id, row.region) for row in rows if row.path == path]
            )
            known |= {CollectionRow(path, *key): vector for key, vector in found.items()}
        gone = next((row for row in rows if row not in known), None)
        if gone is not None and self.on_error == "raise":
            raise ItemError(f"{gone.id!r} ({gone.region}) is no row of {gone.path}")
        missing = np.full(self.embedder.dim, np.nan, np.float32)
        return np.stack([known.get(row, missing) for row in rows])

    def _items(self, items: Any) -> list[Any]:
        """One item a row: of a list, an array, a column of a table, a table of one column, or of
        path, start and end; or a collection."""
        if isinstance(items, Collection):
            return list(rows_of(items))
        if isinstance(items, str | bytes | os.PathLike):
            raise UsageError(f"one item was given, {items!r}; give a list: [{items!r}]")
        if hasattr(items, "to_numpy"):
            items = items.to_numpy()
        if isinstance(items, np.ndarray) and items.dtype.kind in "OUS" and items.ndim == 2:
            if items.shape[1] == 3:
                return [(str(path), float(start), float(end)) for path, start, end in items]
            if items.shape[1] != 1:
                raise UsageError(
                    f"{items.shape[1]} columns were given; items are one column, and segments the "
                    "three columns path, start and end (seconds)"
                )
            items = items[:, 0]
        if isinstance(items, np.ndarray) and items.ndim == 0:
            raise UsageError("a single value was given; give a list of items")
        return [str(item) if isinstance(item, np.str_) else item for item in items]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        tags.no_validation = True
        tags.requires_fit = self.space is not None
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return self.space is None or hasattr(self, "space_")


class _Memory:
    """The vectors used last, by embedder and file."""

    def __init__(self, most: int) -> None:
        self._most, self._kept, self._lock = (
            most,
            OrderedDict[Hashable, FloatArray](),
            threading.Lock(),
        )

    def get(self, key: Hashable) -> FloatArray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, vector: FloatArray) -> None:
        if not np.isfinite(vector).all():  # a file that failed may be whole by the next time
            return
        with self._lock:
            self._kept[key] = vector
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


_MEMORY = _Memory(_VECTORS)


def _key(item: Any, text: bool) -> Hashable | None:
    """What an item is known by: a file's path, size and time, or a text; arrays by nothing."""
    if text and isinstance(item, str):
        return item
    if _is_segment(item):
        file = _key(item[0], text)
        return None if file is None else (file, *item[1:])
    if not isinstance(item, str | os.PathLike):
        return None
    try:
        path = user_path(item).absolute()
        status = path.stat()
    except (OSError, ValueError):
        return None
    return str(path), status.st_size, status.st_mtime_ns


def _is_segment(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 3 and isinstance(item[0], str | os.PathLike)


def _entries(item: Any, modality: str) -> Iterable[Entry]:
    if not _is_segment(item):
        return from_objects([item], modality)
    from penult.fewshot.vectors import pairs_of

    return pairs_of(item, modality)


def _first_of_each(keys: Sequence[Hashable | None], known: Mapping[Hashable, Any]) -> list[int]:
    """The rows that are to be run: one for each key that is not known, and all without a key."""
    first = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}
    return [
        row
        for row, key in enumerate(keys)
        if key is None or (key not in known and first[key] == row)
    ]


@lru_cache(_MODELS)
def _classifier(model: str, model_options: tuple[tuple[str, Any], ...]) -> Any:
    from penult.models.specs import load

    return load(model, **dict(model_options))


@lru_cache(_READINGS)
def _open_reading(
    model: str,
    tap: str | None,
    pooling: str | None,
    device: str,
    model_options: tuple[tuple[str, Any], ...],
) -> Embedder:
    from penult.embedding.inspect import taps_of

    if is_embedder(model) or saved_on_hub(model) is not None:
        return open_embedder(model, tap, pooling, device=device, **dict(model_options))
    classifier = _classifier(model, model_options)
    place = taps_of(classifier, [tap or "backbone"])
    return Embedder(classifier, place, pooling or "mean", device=device)
