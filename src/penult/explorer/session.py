"""A session of the explorer: a collection, and what is made of it."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

from penult.collection.collection import Collection
from penult.explorer.media import MediaFiles
from penult.explorer.points import PointMap
from penult.explorer.records import SideRecords
from penult.explorer.rows import RowTable
from penult.explorer.teaching import TeachingLoop
from penult.explorer.values import ColourValues
from penult.explorer.vectors import VectorMatrix
from penult.explorer.watch import Watch

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


class Explorer:
    """A collection as the page sees it. Threads may share one.

    id: names this session, for pages that were opened in an earlier one. rows, vectors: of the
    collection. watch: what happens in it meanwhile. teaching: its classes. values: what points are
    coloured by. points: where rows lie on the map. records: marks and runs. media: sounds,
    pictures and frames.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.id = secrets.token_hex(8)
        self.rows = RowTable(collection)
        self.vectors = VectorMatrix(collection, self.rows)
        self.watch = Watch(collection, self.rows, self.vectors.refresh)
        self.teaching = TeachingLoop(collection, self.rows, self.vectors)
        self.values = ColourValues(collection, self.rows, self.watch, self.teaching.scores)
        self.points = PointMap(
            collection,
            self.rows,
            self.vectors,
            self.watch,
            lambda: self.values.of("label").values,
        )
        self.records = SideRecords(collection, self.watch)
        self.media = MediaFiles(collection)
        self._guard = threading.Lock()
        self._embedder: Embedder | None = None

    def embedder(self) -> Embedder:
        """The embedder of the collection, opened once.

        Raises:
            PenultError: the model cannot be opened.
        """
        with self._guard:
            if self._embedder is None:
                self._embedder = self.collection.embedder()
            return self._embedder

    def close(self) -> None:
        """Give back what the session holds."""
        self.points.close()
        self.vectors.close()
