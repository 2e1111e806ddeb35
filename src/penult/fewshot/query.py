"""Predictions of vectors, items or rows by fitted classes, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.data.decode import usual_decoding
from penult.data.items import Entry, Failure
from penult.data.windows import Layout
from penult.errors import LabelsError
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.predictions import AssignmentLimits, ClassPrediction, Location, predictions
from penult.fewshot.vectors import VectorSource, run_items

_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True, slots=True)
class Query:
    """fitted: the classes. level: the share of the members of known ones that is called unknown, at
    most. nearest: the number of nearest examples that are named. least: the least probability of an
    assigned class, see `FittedClasses.judge`."""

    fitted: FittedClasses
    level: float
    nearest: int = 0
    least: float | None = None

    def __post_init__(self) -> None:
        # A level that cannot be is refused before any item is opened.
        if self.level:
            self.fitted.level(self.level)
        if self.nearest < 0:
            raise LabelsError(f"{self.nearest} nearest examples cannot be named; give 0 or more")
        AssignmentLimits(self.least)  # refused outside of 0 to 1

    def vectors(
        self, vectors: npt.NDArray[np.float32], places: list[Location]
    ) -> Iterator[ClassPrediction]:
        """Predictions of raw vectors (m, d) from these places."""
        judged = self.fitted.judge(vectors, self.level, self.least)
        return predictions(self.fitted, vectors, places, judged, self.nearest)

    def items(
        self,
        source: VectorSource,
        pairs: Iterable[Entry],
        layout: Layout | None,
        workers: int | None = None,
        channel: int | str | None = None,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of items as they come, and the items that failed."""
        from penult.embedding.runner import Outcome

        decoding = usual_decoding()
        if workers is not None:
            decoding = replace(decoding, workers=workers)
        cut = source.cut(pairs, layout, channel, decoding)
        for one in run_items(source, cut, decoding):
            if isinstance(one, Outcome):
                yield from self.vectors(one.vector[None], [Location.of(one)])
            else:
                yield one

    def rows(
        self, source: VectorSource, collection: Collection | None, where: str | None
    ) -> Iterator[ClassPrediction]:
        """Predictions of the rows of a collection, in the order of their keys.

        Raises:
            LabelsError: no collection.
            FingerprintMismatch: it holds vectors of another embedder.
        """
        rows = collection or source.collection
        if rows is None:
            raise LabelsError("name the collection whose rows are meant")
        if (manifest := rows.manifest) is None:
            raise LabelsError(f"there is no collection at {rows.path}")
        source.check(fingerprint_in(manifest), str(rows.path))
        extra = list(schema.metadata_of(rows.reader.schema))
        for batch in rows.reader.ordered([*_COLUMNS, *extra, "vector"], where):
            places = [Location.of_row(row) for row in batch.drop_columns("vector").to_pylist()]
            yield from self.vectors(
                schema.matrix(batch.column("vector")).astype(np.float32), places
            )
