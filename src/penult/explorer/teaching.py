"""The teaching loop: marks, scores of all rows after each of them, and rows to be marked next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penult.collection.collection import Collection
from penult.explorer.rows import RowTable
from penult.explorer.vectors import VectorMatrix


class TeachingLoop:
    """Classes of a collection as they are taught. Threads may share one."""

    def __init__(self, collection: Collection, rows: RowTable, vectors: VectorMatrix) -> None:
        self._collection, self._rows, self._vectors = collection, rows, vectors

    def scores(self, name: str) -> npt.NDArray[np.float32]:
        """(n,) the score of each row for a class, by its number."""
        raise NotImplementedError
