"""Marks and runs of a collection, read once for each version of their tables."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from penult.collection.collection import Collection
from penult.collection.labels import standing
from penult.collection.schema import Key
from penult.explorer.watch import LABELS, RUNS, Stamp, Watch
from penult.fewshot.votes import Votes, votes_of

Record = dict[str, Any]


class SideRecords:
    """Marks and runs. Threads may share one."""

    def __init__(self, collection: Collection, watch: Watch) -> None:
        self._collection, self._watch = collection, watch
        self._guard = threading.Lock()
        self._marks: tuple[Stamp | None, Votes] = (None, {})
        self._classes: tuple[Stamp | None, list[Record]] = (None, [])
        self._runs: tuple[Stamp | None, dict[str, Record]] = (None, {})

    def marks(self, key: Key) -> dict[str, dict[str, str]]:
        """The marks of a row that count, by class and by who made them."""
        with self._guard:
            stamp = self._watch.stamp(LABELS)
            if self._marks[0] != stamp:
                self._marks = stamp, votes_of(self._collection.reader)
            found = self._marks[1].get(key, {})
        return {name: dict(said) for name, said in found.items()}

    def classes(self) -> list[Record]:
        """The classes by name, with the rows that are marked yes, no and unsure."""
        with self._guard:
            stamp = self._watch.stamp(LABELS)
            if self._classes[0] != stamp:
                counts: dict[str, Counter[str]] = {}
                for marks in standing(self._collection.reader).values():
                    for name, mark in marks.items():
                        counts.setdefault(name, Counter())[mark] += 1
                found = [
                    {"name": name, **{mark: count[mark] for mark in ("yes", "no", "unsure")}}
                    for name, count in sorted(counts.items())
                ]
                self._classes = stamp, found
            return self._classes[1]

    def run(self, id: str) -> Record:
        """A run by its id; nothing where it is not known."""
        with self._guard:
            stamp = self._watch.stamp(RUNS)
            if self._runs[0] != stamp:
                runs = self._collection.reader.side_table("runs").to_pylist()
                self._runs = stamp, {one["run_id"]: one for one in runs}
            return self._runs[1].get(id, {})
