"""Vectors of all rows, in the memory of the machine, for scores of all rows at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penult.analysis.space import RAW, Space, unit
from penult.collection.collection import Collection
from penult.explorer.rows import RowTable


class VectorMatrix:
    """The vectors of all rows by their numbers, of length one, in the space of the classes."""

    def __init__(self, collection: Collection, rows: RowTable) -> None:
        self._collection, self._rows = collection, rows
        self.space = Space(RAW, collection.reader.require_manifest().dim)

    def products(self, directions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, m): the inner product of each row with each of the directions (m, d); NaN where a row
        has no finite vector, or is gone."""
        found: npt.NDArray[np.float32] = self._matrix() @ directions.T
        return found

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(k, d): vectors of these rows."""
        return self._matrix()[rows]

    def _matrix(self) -> npt.NDArray[np.float32]:
        keys, vectors = self._collection.reader.vectors()
        numbers = self._rows.numbers(keys)
        found = np.full((len(self._rows), vectors.shape[1]), np.nan, np.float32)
        found[numbers[numbers >= 0]] = unit(vectors)[numbers >= 0]
        return found

    def refresh(self) -> None:
        """Take what has come or gone since."""

    def close(self) -> None:
        """Give back memory and files."""
