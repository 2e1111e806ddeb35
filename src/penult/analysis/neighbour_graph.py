"""Nearest rows of all rows by cosine: exact in blocks, or by inverted lists with a measured
recall.

Numpy in, places of rows out. Memory: the rows once more at length one, the lists, one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit

Matrix = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

NONE = -1  # the place of no row
_ROWS, _COLUMNS = 1024, 4096  # of one block of cosines: 16 MB
_EXACT_ROWS = 128  # whose cosines are computed in double precision at a time
_PROBES = 16  # lists that each row is looked for in, at first
_SAMPLE = 200  # rows whose recall is measured
_TRAINING = 50  # rows for each list, on which the lists' centres are fitted
_EQUAL = 1e-6  # cosines that differ by less are equally near: rounding of single precision


@dataclass(frozen=True, slots=True)
class NearestRows:
    """The k nearest other rows of each of n rows, nearest first; equally near ones in their order.

    places: (n, k), NONE where there are fewer. cosines: (n, k) float32, NaN where there are fewer.
    """

    places: Places
    cosines: Matrix


@dataclass(frozen=True, slots=True)
class Recall:
    """Of the k nearest rows of `sample` rows as large a share was found; an equally near row is as
    good. 1 where all rows were compared."""

    value: float = 1.0
    sample: int = 0


class NeighbourSearch:
    """Lists of nearest rows under way.

    vectors: (n, d). Rows without a direction (zero, not finite) have no neighbours and are none.
    apart: (n,) numbers of groups each; rows of one group are no neighbours. By default a row is not
    its own. candidates: (n,) the rows that may be in lists; by default all.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike,
        k: int,
        apart: Sequence[Places] = (),
        candidates: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        rows = np.asarray(vectors, np.float32)
        self.units: Matrix = np.empty_like(rows)
        able = np.zeros(len(rows), bool)
        for at in range(0, len(rows), _COLUMNS):
            block = slice(at, at + _COLUMNS)
            finite = np.isfinite(rows[block]).all(axis=1, keepdims=True)
            some = np.where(finite, rows[block], np.float32(0))
            peaks = np.abs(some).max(axis=1, initial=0, keepdims=True)
            units = unit(some / np.where(peaks > 0, peaks, 1))  # else squares may overflow
            self.units[block], able[block] = units, (units != 0).any(axis=1)
        self.able: Places = np.flatnonzero(able)
        self._apart = [np.asarray(one) for one in apart] or [np.arange(len(rows))]
        self._candidates = candidates
        self.places: Places = np.full((len(rows), k), NONE, np.int64)
        self.cosines: Matrix = np.full((len(rows), k), -np.inf, np.float32)

    def compare(self, new: Places, searched: Places | None = None) -> None:
        """Compares rows with all rows, and all rows with the new ones, so that lists which were
        whole without `new` are whole with them.

        new: places of rows that are in no list yet. searched: places of further rows whose own
        lists are empty, and which the others have in their lists already.
        """
        old = np.zeros(0, np.int64) if searched is None else np.intersect1d(searched, self.able)
        asked = np.concatenate([np.intersect1d(new, self.able), old])
        fresh = len(asked) - len(old)
        rest = np.setdiff1d(self.able, asked)
        for at in range(0, len(asked), _ROWS):
            mine = asked[at : at + _ROWS]
            added = max(0, min(fresh - at, len(mine)))  # of mine, those that are new
            for columns in _blocks(asked[at:]):
                cosines = self.units[mine] @ self.units[columns].T
                self._offer(mine, columns, cosines)
                others = ~np.isin(columns, mine)
                self._offer(columns[others], mine, cosines.T[others])
            for columns in _blocks(rest):
                cosines = self.units[mine] @ self.units[columns].T
                self._offer(mine, columns, cosines)
                if added:
                    self._offer(columns, mine[:added], cosines[:added].T)

    def compare_by_lists(self, min_recall: float, seed: int = 0) -> Recall:
        """As `compare` of all rows, approximately: rows are put into lists by the nearest of some
        centres (k-means), and compared with those of the nearest lists, of so many that the recall
        is enough."""
        from sklearn.cluster import MiniBatchKMeans

        random = np.random.default_rng(seed)
        count = max(1, round(math.sqrt(len(self.able))))
        drawn = random.choice(self.able, min(len(self.able), _TRAINING * count), replace=False)
        means = MiniBatchKMeans(count, n_init=1, batch_size=4096, random_state=seed)
        centres = unit(means.fit(self.units[np.sort(drawn)]).cluster_centers_.astype(np.float32))
        needed = self._needed(seed)
        lists = np.empty((len(self.able), min(count, _PROBES)), np.int32)
        probed = 0
        while True:
            for at in range(0, len(self.able), _ROWS):
                near = self.units[self.able[at : at + _ROWS]] @ centres.T
                lists[at : at + _ROWS] = np.argsort(-near, axis=1)[:, : lists.shape[1]]
            if not probed:
                home = lists[:, 0].copy()
            for number in range(count):
                asked = (lists[:, probed:] == number).any(axis=1)
                self._compare_list(self.able[home == number], self.able[asked])
            recall, probed = self._recall(needed), lists.shape[1]
            if recall.value >= min_recall or probed == count:
                return recall
            lists = np.empty((len(self.able), min(count, 2 * probed)), np.int32)

    def _compare_list(self, members: Places, asked: Places) -> None:
        for at in range(0, len(asked), _ROWS):
            mine = asked[at : at + _ROWS]
            for columns in _blocks(members):
                self._offer(mine, columns, self.units[mine] @ self.units[columns].T)

    def recall(self, seed: int = 0) -> Recall:
        """The share that the lists have of the nearest rows of a sample, which is compared with all
        rows."""
        return self._recall(self._needed(seed))

    def _recall(self, needed: tuple[Places, Matrix]) -> Recall:
        sample, least = needed
        found, some = self.cosines[sample] >= least - _EQUAL, np.isfinite(least[:, 0])
        return Recall(float(found[some].mean()) if some.any() else 1.0, int(some.sum()))

    def _needed(self, seed: int) -> tuple[Places, Matrix]:
        """Rows drawn by chance, and (m, 1) the cosine of the last of their k nearest rows; −inf
        where there are fewer. The lists stay as they are."""
        random = np.random.default_rng(seed)
        sample = np.sort(random.choice(self.able, min(_SAMPLE, len(self.able)), replace=False))
        before = self.places[sample].copy(), self.cosines[sample].copy()
        self.places[sample], self.cosines[sample] = NONE, -np.inf
        for columns in _blocks(self.able):
            self._offer(sample, columns, self.units[sample] @ self.units[columns].T)
        least: Matrix = self.cosines[sample][:, -1:].copy()
        self.places[sample], self.cosines[sample] = before
        return sample, least

    def _offer(self, rows: Places, columns: Places, cosines: Matrix) -> None:
        """Takes what is nearer than the last of a row's list. cosines: (rows, columns)."""
        if self._candidates is not None and not (some := self._candidates[columns]).all():
            columns, cosines = columns[some], cosines[:, some]
        k = self.places.shape[1]
        least = self.cosines[rows, -1]
        if len(open_ := np.flatnonzero(np.isneginf(least))):  # lists that are not full yet
            near = cosines[open_]
            for groups in self._apart:
                near[groups[rows[open_]][:, None] == groups[columns][None]] = -np.inf
            best = np.argsort(-near, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(near, best, axis=1)
            row, column = np.nonzero(np.isfinite(values))
            self._merge(rows[open_[row]], columns[best[row, column]], values[row, column])
        full = np.flatnonzero(~np.isneginf(least))
        if len(full):
            part = cosines if len(full) == len(rows) else cosines[full]
            row, column = np.nonzero(part > least[full][:, None])
            for groups in self._apart:
                apart = groups[rows[full[row]]] != groups[columns[column]]
                row, column = row[apart], column[apart]
            self._merge(rows[full[row]], columns[column], part[row, column])

    def _merge(self, rows: Places, places: Places, cosines: Matrix) -> None:
        """Puts found places (m,) into the lists of these rows (m,)."""
        if not len(rows):
            return
        k = self.places.shape[1]
        touched = np.unique(rows)
        row = np.concatenate([np.repeat(touched, k), rows])
        place = np.concatenate([self.places[touched].ravel(), places])
        cosine = np.concatenate([self.cosines[touched].ravel(), cosines])
        order = np.lexsort((place, -cosine, row))
        row, place, cosine = row[order], place[order], cosine[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        first = rank < k
        self.places[row[first], rank[first]] = place[first]
        self.cosines[row[first], rank[first]] = cosine[first]

    def found(self) -> NearestRows:
        """The lists, their cosines computed once more in double precision: so equal rows have equal
        ones, whichever block they were in."""
        for at in range(0, len(self.places), _EXACT_ROWS):
            rows = slice(at, at + _EXACT_ROWS)
            place = self.places[rows]
            near, own = (self.units[one].astype(np.float64) for one in (place, rows))
            cosine = np.clip(np.einsum("nkd,nd->nk", near, own), -1, 1).astype(np.float32)
            cosine[place == NONE] = -np.inf
            order = np.lexsort((place, -cosine), axis=1)
            self.places[rows] = np.take_along_axis(place, order, axis=1)
            self.cosines[rows] = np.take_along_axis(cosine, order, axis=1)
        missing = self.places == NONE
        return NearestRows(self.places, np.where(missing, np.float32(np.nan), self.cosines))


def nearest_between(
    vectors: npt.ArrayLike,
    others: npt.ArrayLike,
    apart: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> tuple[Places, Matrix]:
    """For each of n rows (n, d) the place (n,) of the nearest of other rows (m, d), NONE where
    there is none, and its cosine, NaN there; of equally near ones the first.

    apart: numbers of groups of the rows (n,) and of the others (m,); rows of one group are no
    neighbours.
    """
    one, other = (NeighbourSearch(rows, 1) for rows in (vectors, others))
    groups = None if apart is None else [np.asarray(numbers) for numbers in apart]
    places = np.full(len(one.units), NONE, np.int64)
    found = np.full(len(one.units), np.nan, np.float32)
    for at in range(0, len(one.able), _ROWS):
        mine = one.able[at : at + _ROWS]
        best, place = np.full(len(mine), -np.inf, np.float32), np.full(len(mine), NONE, np.int64)
        for columns in _blocks(other.able):
            cosines = one.units[mine] @ other.units[columns].T
            if groups is not None:
                cosines[groups[0][mine][:, None] == groups[1][columns][None]] = -np.inf
            highest = cosines.max(axis=1)
            first = (cosines >= highest[:, None] - _EQUAL).argmax(axis=1)
            nearer = highest > best + _EQUAL  # −inf is no nearer than −inf
            best[nearer], place[nearer] = highest[nearer], columns[first[nearer]]
        places[mine] = place
        some = place != NONE
        near = one.units[mine[some]].astype(np.float64), other.units[place[some]].astype(np.float64)
        found[mine[some]] = np.clip(np.einsum("nd,nd->n", *near), -1, 1)
    return places, found


def _blocks(places: Places) -> Iterator[Places]:
    return (places[at : at + _COLUMNS] for at in range(0, len(places), _COLUMNS))
