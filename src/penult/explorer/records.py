"""Marks and runs of a collection, read once for each version of their tables."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from penult.collection.collection import Collection
from penult.collection.labels import TAKEN_BACK, standing
from penult.collection.schema import Key
from penult.explorer.watch import LABELS, RUNS, Stamp, Watch

Record = dict[str, Any]


class SideRecords:
    """Marks and runs. Threads may share one."""

    def __init__(self, collection: Collection, watch: Watch) -> None:
        self._collection, self._watch = collection, watch
        self._guard = threading.Lock()
        self._marks: tuple[Stamp | None, dict[Key, list[Record]]] = (None, {})
        self._classes: tuple[Stamp | None, list[Record]] = (None, [])
        self._runs: tuple[Stamp | None, dict[str, Record]] = (None, {})

    def marks(self, key: Key) -> dict[str, dict[str, str]]:
        """The marks of a row that count, by class and by who made them."""
        with self._guard:
            stamp = self._watch.stamp(LABELS)
            if self._marks[0] != stamp:
                read: dict[Key, list[Record]] = {}
                for one in self._collection.reader.side_table("labels").to_pylist():
                    read.setdefault((one["id"], one["region"]), []).append(one)
                self._marks = stamp, read
            records = self._marks[1].get(key, [])
        found: dict[str, dict[str, str]] = {}
        for one in records:
            marks = found.setdefault(one["class"], {})
            marks.pop(one["who"] or "", None)
            if one["source"] != TAKEN_BACK:
                marks[one["who"] or ""] = one["mark"]
        return {name: marks for name, marks in found.items() if marks}

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
