"""Vectors of all rows, in the memory of the machine, for scores of all rows at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penult.collection.collection import Collection
from penult.explorer.rows import RowTable


class VectorMatrix:
    """The vectors of all rows by their numbers, of length one, in the space of the classes."""

    def __init__(self, collection: Collection, rows: RowTable) -> None:
        self._collection, self._rows = collection, rows

    def products(self, directions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, m): the inner product of each row with each of the directions (m, d); NaN where a row
        has no finite vector, or is gone."""
        raise NotImplementedError

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(k, d): vectors of these rows."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back memory and files."""
