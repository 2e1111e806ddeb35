"""Rows of a collection and their numbers: the same for as long as a session lasts."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.schema import Key


class RowTable:
    """The (id, region) of all rows, in an append-only list: rows that come are added behind the
    others, those that are gone keep their number. Threads may share one."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._guard = threading.Lock()
        self._keys: list[Key] = []
        self._numbers: dict[Key, int] = {}
        self.refresh()

    def refresh(self) -> range:
        """Looks for rows that are new; gives their numbers."""
        with self._guard:
            first = len(self._keys)
            for batch in self._collection.reader.ordered([*schema.KEY]):
                for key in schema.keys(batch):
                    if key not in self._numbers:
                        self._numbers[key] = len(self._keys)
                        self._keys.append(key)
            return range(first, len(self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> Key:
        """The (id, region) of a row."""
        return self._keys[row]

    def number(self, key: Key) -> int | None:
        """The number of a row; None where there is none."""
        return self._numbers.get(key)

    def keys(self, rows: Sequence[int]) -> list[Key]:
        """The (id, region) of rows."""
        return [self._keys[row] for row in rows]
