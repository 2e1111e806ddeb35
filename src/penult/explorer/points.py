"""Points of a map: where each row lies, at once by two directions of largest variance, then by a
better projection that is made meanwhile and kept in the collection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis import projection
from penult.collection import derived
from penult.collection.collection import Collection
from penult.collection.reader import keep_derived, newest_records, read_derived
from penult.errors import MissingExtra, PenultError, StoreError
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
_FEW = 2_000  # rows without a place that are placed at once
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


@dataclass(frozen=True, slots=True, eq=False)
class _PlacedRows:
    """A map. places: (n, 2) by number, NaN where a row has none; in [-1, 1]. nearby: how many of
    them are the places of nearest rows."""

    method: str
    places: Floats
    nearby: int = 0


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
        thread = self._thread  # which lets go of its name at its end
        return thread is not None and thread.is_alive()

    def drawn(self) -> DrawnPoints:
        """The points as they are now."""
        with self._guard:
            stamp = self._rows.version, len(self._rows), self._vectors.version, self._layout
            if self._drawn is None or self._drawn[0] != stamp:
                if self._layout is None:
                    self._layout = self._first()
                self._layout, drawn = self._draw(self._layout)
                self._drawn = (*stamp[:3], self._layout), drawn
            return self._drawn[1]

    def close(self, patience: float = 0.0) -> None:
        """Wait for the map that is being made, so many seconds."""
        if (thread := self._thread) is not None:
            thread.join(patience)

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
                nearby = int(found.about.get("nearby", 0))
                best = _PlacedRows(method, self._placed(numbers[there], points[there]), nearby)
        wanted = min(int(self._rows.there.sum()), projection.MOST[PCA])
        return best if most and most >= _ENOUGH * wanted else None

    def _first(self) -> _PlacedRows:
        """A kept map that has places of all rows but for a few; else two directions of variance,
        and a better map is made in a thread."""
        kept, there = self._kept(), np.flatnonzero(self._rows.there)
        if kept is not None and np.isnan(kept.places[there, 0]).sum() <= _FEW:
            return kept
        found = self._by_variance(there)
        if len(there) >= 4 and self._thread is None:
            work = partial(self._make, kept)
            self._thread = threading.Thread(target=work, name="map", daemon=True)
            self._thread.start()
        return found

    def _by_variance(self, there: Numbers) -> _PlacedRows:
        sample = there = there[self._vectors.usable(there)]
        if len(there) > _SAMPLE:
            sample = np.sort(np.random.default_rng(_SEED).choice(there, _SAMPLE, replace=False))
        vectors = self._vectors.take(sample)
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
        places = np.full((len(self._rows), 2), np.nan, np.float32)
        if not len(numbers):
            return places
        low, high = points.min(axis=0), points.max(axis=0)
        half = float((high - low).max()) / 2 or 1.0
        places[numbers] = np.clip((points - (low + high) / 2) / half, -1, 1)
        return places

    def _make(self, kept: _PlacedRows | None) -> None:
        """kept: a map that has to be completed only."""
        try:
            layout = self._completed(kept or self._projected())
            with self._guard:
                self._layout = layout
        except PenultError as error:
            log.warning("no better map than by variance could be made: %s", error)
        except Exception:  # of a library: the page has a map
            log.exception("no better map than by variance could be made")
        finally:
            self._thread = None
            self._watch.bump()

    def _completed(self, layout: _PlacedRows) -> _PlacedRows:
        """The map with a place for each row; kept where that took long."""
        layout, without = self._filled(layout, np.flatnonzero(self._rows.there))
        if without > _FEW:
            numbers = np.flatnonzero(~np.isnan(layout.places[:, 0]))
            ids, regions = zip(*self._rows.keys(numbers.tolist()), strict=True)
            x, y = layout.places[numbers].T
            table = pa.table({"id": ids, "region": regions, "x": x, "y": y})
            about = {"method": layout.method, "nearby": layout.nearby}
            with suppress(StoreError):  # where nothing may be written it is made anew each time
                keep_derived(self._collection.reader, "maps", f"{layout.method}:all", about, table)
        return layout

    def _filled(self, layout: _PlacedRows, rows: Numbers) -> tuple[_PlacedRows, int]:
        """The map with places for these rows, and how many of them had none. Rows without a vector
        stay without: it may not have been read yet."""
        places = np.full((len(self._rows), 2), np.nan, np.float32)
        places[: len(layout.places)] = layout.places[: len(places)]
        without = rows[np.isnan(places[rows, 0])]
        if len(without):  # what is usable is known once all vectors are read
            without = without[self._vectors.usable(without)]
        if not len(without) and len(places) == len(layout.places):
            return layout, 0
        places[without] = self._near(places, without)
        return _PlacedRows(layout.method, places, layout.nearby + len(without)), len(without)

    def _projected(self) -> _PlacedRows:
        reader = self._collection.reader
        try:
            made = derived.make_map(reader)
        except MissingExtra as error:
            log.warning("%s; the map is made by t-SNE of a part of the rows", error)
            made = derived.make_map(reader, method="tsne")
        numbers = self._rows.numbers(made.rows)
        known = numbers >= 0
        return _PlacedRows(made.method, self._placed(numbers[known], made.points[known]))

    def _draw(self, layout: _PlacedRows) -> tuple[_PlacedRows, DrawnPoints]:
        """The points, and the map with the places of rows that it did not have yet."""
        there = np.flatnonzero(self._rows.there)
        rows = self._sampled(there) if len(there) > self._most else there
        layout, _ = self._filled(layout, rows)
        places = np.nan_to_num(layout.places[rows])  # the middle of those without a vector
        count = len(there)
        return layout, DrawnPoints(
            rows.astype(np.uint32), places, layout.method, layout.nearby, count
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
        anchors = anchors[self._vectors.usable(anchors)]
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
