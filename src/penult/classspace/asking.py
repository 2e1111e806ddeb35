"""What items, rows and raw vectors are, by classes that were taught, as a stream of predictions.
Knows how to get their vectors; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.classspace.origin import Origin
from penult.embedding.workers import Decoding
from penult.errors import LabelsError
from penult.ingesting import rows
from penult.sources import Entry, Failure
from penult.sources.layout import Layout
from penult.store.collection import Collection
from penult.teaching.predictions import ClassPrediction, Place, predictions
from penult.teaching.taught import Taught

_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True, slots=True)
class Question:
    """taught: the classes. level: about this share of the members of known ones is called unknown,
    at most. nearest: so many of the nearest examples are named."""

    taught: Taught
    level: float
    nearest: int = 0

    def __post_init__(self) -> None:
        # What cannot be judged is refused before any item is opened.
        if self.level:
            self.taught.threshold(self.level)
        if self.nearest < 0:
            raise LabelsError(f"{self.nearest} nearest examples cannot be named; give 0 or more")

    def vectors(
        self, vectors: npt.NDArray[np.float32], places: list[Place]
    ) -> Iterator[ClassPrediction]:
        """What raw vectors (m, d) from these places are."""
        return predictions(self.taught, vectors, places, self.level, self.nearest)

    def items(
        self, origin: Origin, pairs: Iterable[Entry], layout: Layout, workers: int = 0
    ) -> Iterator[ClassPrediction | Failure]:
        """What items are, as they come, and those that failed."""
        from penult.embedding.runner import Outcome

        classifier = origin.embedder.classifier
        cut = layout.apply(pairs, classifier.modality, classifier.rate)
        for one in origin.embedder.runner.stream(cut, Decoding(workers=workers)):
            if isinstance(one, Outcome):
                place = Place(one.item.id, one.region.key, one.start, one.end, one.region.channel)
                yield from self.vectors(one.vector[None], [place])
            else:
                yield one

    def rows(
        self, origin: Origin, collection: Collection | None, where: str | None
    ) -> Iterator[ClassPrediction]:
        """What the rows of a collection are, by their keys.

        Raises:
            LabelsError: no collection.
            FingerprintMismatch: it holds vectors of another embedder.
        """
        asked = collection or origin.collection
        if asked is None:
            raise LabelsError("name the collection whose rows are meant")
        if (manifest := asked.manifest) is None:
            raise LabelsError(f"there is no collection at {asked.path}")
        origin.check(manifest.fingerprint, str(asked.path))
        for batch in asked.ordered([*_COLUMNS, "vector"], where):
            places = [Place(**row) for row in batch.select(list(_COLUMNS)).to_pylist()]
            yield from self.vectors(rows.matrix(batch.column("vector")).astype(np.float32), places)
