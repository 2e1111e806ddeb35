"""A session of the explorer: one collection, and what is made of it when it is first needed."""

from __future__ import annotations

import secrets
import threading
from functools import cached_property
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

    id: names this session, for pages that were opened in an earlier one.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.id = secrets.token_hex(8)
        self._guard = threading.Lock()
        self._embedder: Embedder | None = None

    @cached_property
    def rows(self) -> RowTable:
        """Its rows and their numbers."""
        return RowTable(self.collection)

    @cached_property
    def vectors(self) -> VectorMatrix:
        """The vectors of all rows."""
        return VectorMatrix(self.collection, self.rows)

    @cached_property
    def teaching(self) -> TeachingLoop:
        """Classes as they are taught."""
        return TeachingLoop(self.collection, self.rows, self.vectors)

    @cached_property
    def watch(self) -> Watch:
        """What happens in the collection meanwhile."""
        return Watch(self.collection, self.rows, self._follow)

    @cached_property
    def values(self) -> ColourValues:
        """What points are coloured by."""
        return ColourValues(
            self.collection, self.rows, self.watch, lambda name: self.teaching.scores(name)
        )

    @cached_property
    def points(self) -> PointMap:
        """Where the rows lie on the map."""
        labels = lambda: self.values.of("label").values  # noqa: E731
        return PointMap(self.collection, self.rows, self.vectors, self.watch, labels)

    @cached_property
    def records(self) -> SideRecords:
        """Its marks and runs."""
        return SideRecords(self.collection, self.watch)

    @cached_property
    def media(self) -> MediaFiles:
        """Sounds, pictures and frames of the rows."""
        return MediaFiles(self.collection)

    def _follow(self) -> None:
        """Rows have come or gone."""
        if "vectors" in self.__dict__:
            self.vectors.refresh()

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
        if "vectors" in self.__dict__:
            self.vectors.close()
