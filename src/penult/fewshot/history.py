"""The history of a class space: the versions that were kept, and going back to an earlier one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.collection.schema import Key
from penult.errors import LabelsError, UsageError
from penult.fewshot import marks
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.predictions import ClassPrediction, Location
from penult.fewshot.query import Query
from penult.fewshot.state import BACKGROUND, ClassSpaceState
from penult.fewshot.vectors import VectorSource, pairs_of, roots_of
from penult.fewshot.versions import TaughtVersion


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows of a collection by two versions. changed: (label before, label now) and how often, the
    most first; None is unknown. examples: (id, region) of the first row of each."""

    rows: int
    changed: dict[tuple[str | None, str | None], int]
    examples: dict[tuple[str | None, str | None], Key]


class History:
    """The versions of a class space: what was fitted, kept until somebody teaches."""

    def __init__(self, state: ClassSpaceState, source: VectorSource) -> None:
        self._state, self._source = state, source

    @property
    def versions(self) -> list[TaughtVersion]:
        """All of them, oldest first."""
        return self._state.versions()

    @property
    def current(self) -> TaughtVersion | None:
        """The one that predictions are from; None where what was fitted is not kept."""
        return self._state.version

    @property
    def damage(self) -> str | None:
        """Why the version that predictions were from cannot be used, in words; None where nothing
        is damaged."""
        return self._state._damage

    @property
    def overridden(self) -> dict[str, Any]:
        """Settings of what is fitted that were given for this object, and are not kept."""
        return self._state.overridden

    def refit(self) -> None:
        """Fit everything anew, to the rows and with the settings there are now, and keep it."""
        self._state.refit()

    @property
    def background(self) -> int | None:
        """The number of rows that serve as background; None where no other rows are known."""
        collection, rows = self._source.collection, self._state.rows
        if collection is not None:
            return min(collection.count, BACKGROUND)
        return None if rows is None else len(rows)

    def give_background(self, items: Any) -> int:
        """Vectors of other items than the examples, for a class file: the space is fitted to them,
        unless it came from a collection, and thresholds rest on them. Gives their number.

        items: files, folders, tables, or a collection of the same embedder.

        Raises:
            UsageError: a collection, which has rows of its own.
            LabelsError: no item.
        """
        source, examples = self._source, self._state.examples
        if source.collection is not None:
            raise UsageError(
                f"{source.collection.path} has rows of its own, which serve as background; "
                "other items are for a class file (FILE.npz), and a number such as --background 50 "
                "holds so many random rows to be of no class"
            )
        if isinstance(items, Collection):
            if (manifest := items.manifest) is None:
                raise LabelsError(f"there is no collection at {items.path}")
            source.check(fingerprint_in(manifest), str(items.path))
            rows = marks.sample(items, BACKGROUND, examples.keys)
        else:
            found = source.vectors_of(pairs_of(items, source.modality, roots_of(source)))
            own = [row for key, row in found.items() if key not in set(examples.keys)]
            rows = np.stack(own) if own else np.zeros((0, examples.dim), np.float32)
        if not len(rows):
            raise LabelsError("no other item for the background; give files that are no examples")
        self._state.change(lambda same: same, f"background of {len(rows)} items", rows=rows)
        return len(rows)

    def undo(self) -> str:
        """Take the last teaching back: marks are appended, and the version before is the current
        one again. Gives what was undone, in words.

        Raises:
            LabelsError: there is nothing to take back.
        """
        return self._state.undo()

    def diff(
        self, old: int | None = None, new: int | None = None, rows: Collection | None = None
    ) -> Difference:
        """The rows of the collection that two versions label differently; of a class file its
        examples, and its background (`background`, its number). old: None is the current one. new:
        None is what a refit would give now. rows: another collection, whose rows are meant.

        Raises:
            LabelsError: no such version.
            FingerprintMismatch: rows of another embedder.
        """
        one = self._state.fitted if old is None else self._fitted(old)
        other = self._state.at(None) if new is None else self._fitted(new)
        level = self._state.settings.unknown
        changed: Counter[tuple[str | None, str | None]] = Counter()
        examples: dict[tuple[str | None, str | None], Key] = {}
        number = 0
        pairs = (self._predicted(Query(each, level), rows) for each in (one, other))
        for before, after in zip(*pairs, strict=True):
            number += 1
            names = (_names_of(before), _names_of(after))
            if names[0] != names[1]:
                changed[names] += 1
                examples.setdefault(names, (before.id, before.region))
        return Difference(number, dict(changed.most_common()), examples)

    def _predicted(self, query: Query, rows: Collection | None) -> Iterator[ClassPrediction]:
        if rows is not None or self._source.collection is not None:
            return query.rows(self._source, rows, None)
        examples, background = self._state.examples, self._state.rows
        places = [Location(*key) for key in examples.keys]
        found = query.vectors(examples.vectors, places)
        if background is None:
            return found
        others = [Location("background", str(place)) for place in range(len(background))]
        return chain(found, query.vectors(background, others))

    def _fitted(self, number: int) -> FittedClasses:
        versions = self.versions
        if not 1 <= number <= len(versions):
            raise LabelsError(
                f"there is no version {number}; "
                + (
                    f"there are 1 to {len(versions)}"
                    if len(versions) > 1
                    else "there is 1 alone"
                    if versions
                    else "none was kept yet"
                )
            )
        return self._state.at(versions[number - 1])


def _names_of(one: ClassPrediction) -> str | None:
    """All classes of an item, with ; between; None is unknown."""
    return ";".join(sorted(one.detection.probabilities)) or None
