"""Points of a map: where each row lies, at once by two directions of largest variance, then by a
better projection that is made meanwhile and kept in the collection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis import projection
from penult.collection import derived
from penult.collection.collection import Collection
from penult.collection.reader import newest_records, read_derived
from penult.errors import MissingExtra, PenultError
from penult.explorer.rows import Numbers, RowTable
from penult.explorer.vectors import VectorMatrix
from penult.explorer.watch import Watch

log = logging.getLogger(__name__)
MOST = 1_000_000  # points that a page draws
PCA = "pca"
_SAMPLE = 20_000  # rows that directions of variance are found in
_KEPT = 8  # kept maps that are looked at, the newest first
_ENOUGH = 0.5  # of the rows that a map could have, else another one is made
_NEAREST = 5  # rows with a place, whose mean is the place of a row without
_ANCHORS = 5_000  # of them, where many rows have no place
_PRODUCTS = 1 << 31  # of vectors, for the rows without a place
_AT_ONCE = 256
_SEED = 0
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DrawnPoints:
    """rows: (m,) numbers. places: (m, 2) in [-1, 1]. method: of the map. nearby: how many rows came
    after the map was made, or were not among its rows, and lie where their nearest rows do. total:
    the rows that there are."""

    rows: npt.NDArray[np.uint32]
    places: Floats
    method: str
    nearby: int
    total: int

    @property
    def is_sample(self) -> bool:
        """Whether there are more rows."""
        return len(self.rows) < self.total

    def to_bytes(self) -> bytes:
        """Numbers, then x, then y, the lowest byte first."""
        columns = (self.places[:, axis].astype("<f4").tobytes() for axis in (0, 1))
        return b"".join([self.rows.astype("<u4").tobytes(), *columns])


@dataclass(frozen=True, slots=True)
class _PlacedRows:
    """A map. places: (n, 2) by number, NaN where a row has none; in [-1, 1]."""

    method: str
    places: Floats


class PointMap:
    """The map of a collection. labels: gives codes (n,) of the classifier's labels by number. most:
    points that are drawn. Threads may share one."""

    def __init__(
        self,
        collection: Collection,
        rows: RowTable,
        vectors: VectorMatrix,
        watch: Watch,
        labels: Callable[[], npt.NDArray[np.float64]],
        most: int = MOST,
    ) -> None:
        self._collection, self._rows, self._vectors = collection, rows, vectors
        self._watch, self._labels, self._most = watch, labels, most
        self._guard = threading.Lock()
        self._layout: _PlacedRows | None = None
        self._drawn: tuple[Any, DrawnPoints] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_making(self) -> bool:
        """Whether a better map is being made."""
        return self._thread is not None and self._thread.is_alive()

    def drawn(self) -> DrawnPoints:
        """The points as they are now."""
        with self._guard:
            stamp = self._rows.version, len(self._rows), self._layout
            if self._drawn is None or self._drawn[0] != stamp:
                if self._layout is None:
                    self._layout = self._kept() or self._begun()
                self._drawn = (*stamp[:2], self._layout), self._draw(self._layout)
            return self._drawn[1]

    def close(self, patience: float = 0.0) -> None:
        """Wait for the map that is being made, so many seconds."""
        if self._thread is not None:
            self._thread.join(patience)

    def _kept(self) -> _PlacedRows | None:
        """The map that the collection keeps of the most of its rows, the newest of equal ones."""
        reader, best, most = self._collection.reader, None, 0
        for name in [*reversed(newest_records(reader, "maps"))][:_KEPT]:
            found = read_derived(reader, "maps", name)
            if found is None or not {"x", "y"} <= set(found.table.column_names):
                continue
            numbers = self._rows.numbers(found.table)
            there = numbers >= 0
            there[there] &= self._rows.there[numbers[there]]
            if there.sum() > most:
                points = np.stack([found.table[axis].to_numpy() for axis in ("x", "y")], axis=1)
                method, most = str(found.about.get("method", "map")), int(there.sum())
                best = _PlacedRows(method, self._placed(numbers[there], points[there]))
        wanted = min(int(self._rows.there.sum()), projection.MOST[PCA])
        return best if most and most >= _ENOUGH * wanted else None

    def _begun(self) -> _PlacedRows:
        """Two directions of variance; a better map is made in a thread."""
        there = np.flatnonzero(self._rows.there)
        found = self._by_variance(there)
        if len(there) >= 4 and self._thread is None:
            self._thread = threading.Thread(target=self._make, name="map", daemon=True)
            self._thread.start()
        return found

    def _by_variance(self, there: Numbers) -> _PlacedRows:
        sample = there
        if len(there) > _SAMPLE:
            sample = np.sort(np.random.default_rng(_SEED).choice(there, _SAMPLE, replace=False))
        vectors = self._vectors.take(sample)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if len(vectors) < 2:
            return _PlacedRows(PCA, self._placed(there, np.zeros((len(there), 2), np.float32)))
        middle = vectors.mean(axis=0)
        _, axes = np.linalg.eigh(np.cov(vectors, rowvar=False).reshape(vectors.shape[1], -1))
        directions = np.ascontiguousarray(axes[:, ::-1][:, :2].T, np.float32)
        places = np.zeros((len(self._rows), 2), np.float32)
        found = self._vectors.products(directions)[: len(places)] - directions @ middle
        places[: len(found), : found.shape[1]] = found
        return _PlacedRows(PCA, self._placed(there, np.nan_to_num(places[there])))

    def _placed(self, numbers: Numbers, points: Floats) -> Floats:
        """(n, 2) by number, moved into [-1, 1] with the aspect kept."""
        low, high = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
        half = float((high - low).max(initial=0)) / 2 or 1.0
        places = np.full((len(self._rows), 2), np.nan, np.float32)
        places[numbers] = np.clip((points - (low + high) / 2) / half, -1, 1)
        return places

    def _make(self) -> None:
        try:
            made = self._projected()
            numbers = self._rows.numbers(made.rows)
            layout = _PlacedRows(
                made.method, self._placed(numbers[numbers >= 0], made.points[numbers >= 0])
            )
            with self._guard:
                self._layout = layout
        except PenultError as error:
            log.warning("no better map than by variance could be made: %s", error)
        except Exception:  # of a library: the page has a map
            log.exception("no better map than by variance could be made")
        finally:
            self._thread = None
            self._watch.bump()

    def _projected(self) -> derived.Map:
        try:
            return derived.make_map(self._collection.reader)
        except MissingExtra as error:
            log.warning("%s; the map is made by t-SNE of a part of the rows", error)
            return derived.make_map(self._collection.reader, method="tsne")

    def _draw(self, layout: _PlacedRows) -> DrawnPoints:
        there = np.flatnonzero(self._rows.there)
        rows = self._sampled(there) if len(there) > self._most else there
        places = np.full((len(self._rows), 2), np.nan, np.float32)
        places[: len(layout.places)] = layout.places[: len(places)]
        without = rows[np.isnan(places[rows, 0])]
        if len(without):
            places[without] = self._near(places, without)
        return DrawnPoints(
            rows.astype(np.uint32), places[rows], layout.method, len(without), len(there)
        )

    def _sampled(self, there: Numbers) -> Numbers:
        """So many rows, of each label its share and one at least, the same ones each time."""
        labels = np.nan_to_num(self._labels()[there], nan=-1)
        _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
        shares = np.maximum(1, np.floor(counts * (self._most / len(there)))).astype(np.int64)
        shuffled = np.random.default_rng(_SEED).permutation(len(there))
        order = shuffled[np.argsort(label[shuffled], kind="stable")]
        first = np.repeat(np.cumsum(counts) - counts, counts)
        chosen = order[np.arange(len(order)) - first < np.repeat(shares, counts)]
        return np.sort(there[chosen[: self._most] if len(chosen) > self._most else chosen])

    def _near(self, places: Floats, without: Numbers) -> Floats:
        """(k, 2) the mean place of the nearest rows that have one; the middle where none is."""
        anchors = np.flatnonzero(~np.isnan(places[:, 0]) & self._rows.there[: len(places)])
        found = np.zeros((len(without), 2), np.float32)
        if not len(anchors):
            return found
        if len(anchors) * len(without) > _PRODUCTS and len(anchors) > _ANCHORS:
            random = np.random.default_rng(_SEED)
            anchors = np.sort(random.choice(anchors, _ANCHORS, replace=False))
        others = np.nan_to_num(self._vectors.take(anchors))
        k = min(_NEAREST, len(anchors))
        for at in range(0, len(without), _AT_ONCE):
            own = np.nan_to_num(self._vectors.take(without[at : at + _AT_ONCE]))
            nearest = np.argpartition(-(own @ others.T), k - 1, axis=1)[:, :k]
            found[at : at + len(own)] = places[anchors[nearest]].mean(axis=1)
        return found
