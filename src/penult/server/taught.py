"""Classes that clients teach and ask for: kept in a class file, or as marks in a collection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penult.collection.row_layout import RowLayout
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome
from penult.errors import StoreError, UsageError
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.predictions import Location
from penult.fewshot.storage import state_of
from penult.server.service import raw_vectors


class TaughtClasses:
    """A class space that is saved behind each change, and read anew where somebody else has written
    its file. file: where; None for a collection's, which keeps its marks itself. Threads may share
    one."""

    def __init__(self, space: ClassSpace, embedder: Embedder, file: Path | None) -> None:
        self.space, self._embedder, self._file = space, embedder, file
        self._state = None if file is None else state_of(file)
        self._guard = threading.Lock()

    @classmethod
    def open(cls, file: Path, embedder: Embedder) -> TaughtClasses:
        """The classes in a file, or none yet.

        Raises:
            FingerprintMismatch: taught with another embedder.
        """
        if file.suffix != ".npz":
            raise UsageError(f"{file} is no name of a class file; give FILE.npz")
        return cls(_space_in(file, embedder), embedder, file)

    @property
    def rows(self) -> RowLayout:
        """How items are divided where a request does not say it."""
        return self.space.source.rows

    def documents(self) -> list[dict[str, Any]]:
        """Each class, as `penult classes --json` prints it."""
        with self._guard:
            self._renew()
            return [one.to_dict() for one in self.space.classes]

    def teach(self, name: str, rows: Sequence[Outcome], mark: Any) -> None:
        """Add examples."""
        keys = [(one.item.id, one.region.key) for one in rows]
        vectors = raw_vectors(rows, self._embedder.dim)
        self.change(lambda space: space.add_vectors(name, vectors, keys, mark))

    def teach_rows(self, name: str, keys: Sequence[tuple[str, str]], mark: Any) -> None:
        """Add rows of the collection as examples.

        Raises:
            UsageError: these are classes of a file.
        """
        collection = self.space.source.collection
        if collection is None:
            raise UsageError("these classes are in a file: give `input`, not `rows`")
        for id, region in keys:
            if collection.get(id, region) is None:  # a path is no row, and is not opened
                raise UsageError(f"the collection has no row {id!r}, {region!r}")
        self.change(lambda space: space.add(name, list(keys), mark))

    def change(self, change: Callable[[ClassSpace], Any]) -> Any:
        """Change the classes, and save them; where that fails the file holds.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._guard:
            self._renew()
            try:
                found = change(self.space)
                if self._file is not None:
                    self.space.save(self._file)
                    self._state = state_of(self._file)
            except StoreError:
                self._load()  # what is not in the file is not here either
                raise
            return found

    def _renew(self) -> None:
        if self._file is not None and state_of(self._file) not in (None, self._state):
            self._load()

    def _load(self) -> None:
        if self._file is not None:
            self._state = state_of(self._file)
            self.space = _space_in(self._file, self._embedder)

    def predict(
        self, rows: Sequence[Outcome], unknown: float | None, nearest: int
    ) -> list[dict[str, Any]]:
        """The predictions of rows, as `penult predict --json` prints them."""
        if not rows:
            return []
        vectors = raw_vectors(rows, self._embedder.dim)
        places = [Location.of(one) for one in rows]
        with self._guard:
            self._renew()
            query = self.space._query(unknown, nearest, None)
        return [one.to_dict() for one in query.vectors(vectors, places)]


def _space_in(file: Path, embedder: Embedder) -> ClassSpace:
    return ClassSpace.load(file, embedder) if file.exists() else ClassSpace(embedder)
