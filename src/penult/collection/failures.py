"""The failures of a collection: when each was first met, what is tried again, which are mended."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from penult.collection import lance, schema
from penult.collection.manifest import store_errors
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.data.items import Failure
from penult.data.regions import unpatched
from penult.data.roots import Roots
from penult.errors import PassingFault

NAME = "failures"
OF_ITEM = ("", "whole")  # regions under which an item fails that could not be cut
_CHUNK = 1000  # ids in one filter
_FIELDS = ("id", "region", "error", "message", "size", "mtime_ns")  # of a Failure
# Of 0.1.0, which had one class for all: what the world may have done, and not the file.
_FORMER_FAULTS = re.compile(
    r"ends the process that decodes it|takes longer than .* to decode|cannot be read|no such file"
    r"|no permission to read|does not fit into memory|without an extra"
)

Row = dict[str, Any]


class Recorded(NamedTuple):
    """Of the failures of one commit, how many are new, and how many were met before: in the same
    content, and as a fault of the world or a verdict on the item both times."""

    new: int = 0
    known: int = 0


@dataclass(slots=True)
class FailureCounts:
    """Failures of a run: met for the first time, met before, mended; and of the first two, how many
    are faults of the world, which the next run tries again."""

    new: int = 0
    known: int = 0
    healed: int = 0
    passing: int = 0


def new_failures(reader: Reader) -> list[Row]:
    """Failures that the latest run met first. A merge is no such run."""
    runs = reader.side_table("runs").to_pylist()
    infos = [schema.run_info(reader.path, run["info"]) for run in runs]
    own = [run["run_id"] for run, info in zip(runs, infos, strict=True) if info.merged is None]
    rows = reader.side_table(NAME).to_pylist()
    return [row for row in rows if own and _first_run(row) == own[-1]]


class FailureLog:
    """The table of failures in the hands of a writer.

    Failures of regions that have rows now go at the end of a run, all in one commit; of a run that
    was killed before, at the beginning of the next one.
    """

    def __init__(self, path: Path, table: Any, run_id: str) -> None:
        self._path, self._table, self._run_id = path, table, run_id
        self._any = table is not None and table.count_rows() > 0
        self._met: set[Key] = set()  # in this run
        self._mended: set[Key] = set()

    @property
    def table(self) -> Any:
        """The table, as its writer sees it."""
        return self._table

    def refresh(self) -> None:
        """Sees what other processes have committed."""
        self._table.checkout_latest()
        self._any = self._any or self._table.count_rows() > 0

    def __len__(self) -> int:
        return int(self._table.count_rows()) if self._any else 0

    def of(self, ids: Sequence[str]) -> dict[Key, Failure]:
        """What is known of these items, by (id, region)."""
        return {key: _failure(row) for key, row in self.rows(ids).items()}

    def verdicts(self, ids: Sequence[str], limits: str) -> tuple[dict[Key, Failure], set[str]]:
        """Failures of these items that hold under these limits, and the items whose failures may
        be others now: faults of the world, and what was judged under other limits."""
        holding: dict[Key, Failure] = {}
        open_: set[str] = set()
        for key, row in self.rows(ids).items():
            failure = _failure(row)
            if failure.passing or row["limits"] not in (None, limits):
                open_.add(failure.id)
            else:
                holding[key] = failure
        return holding, open_

    def rows(self, ids: Sequence[str]) -> dict[Key, Row]:
        """All that is written down of these items' failures."""
        return {(row["id"], row["region"]): row for row in self._lookup(ids)}

    def record(
        self, failures: Iterable[Failure], when: datetime, tried: bool, limits: str | None
    ) -> Recorded:
        """Writes failures; a later one of the same (id, region) replaces the earlier, but not the
        time and the run in which it was first met. tried: whether the items were opened for it."""
        last = {(failure.id, failure.region): failure for failure in failures}
        if not last:
            return Recorded()
        before = self.rows([id for id, _ in last])
        new, records = 0, []
        for key, failure in last.items():
            row, old = self._row(failure, when, limits), before.get(key)
            if old is None or not _is_known(old, failure):
                new += 1
            else:
                new += _first_run(old) == self._run_id
                row |= _history(old)
                row["tries"] += tried
            records.append(row if tried else row | {"limits": old["limits"] if old else limits})
        self._write(records)
        self._met.update(last)
        self._mended.difference_update(last)
        return Recorded(new, len(records) - new)

    def take(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Takes failures as another collection has them, with their own runs and times; of two for
        one region the newer, first met when either was. Gives how many were taken."""
        before = self.rows([row["id"] for row in rows])
        taken, records = 0, []
        for row in rows:
            old = before.get((row["id"], row["region"]))
            if old is None or row["when"] > old["when"]:
                records.append(_earlier(dict(row), old))
                taken += 1
            elif (kept := _earlier(dict(old), row)) != old:
                records.append(kept)
        self._write(records)
        return taken

    def mend(self, keys: set[Key]) -> None:
        """Notes regions that have rows now. An earlier failure of a whole item goes with them; one
        of this run may have come while other regions were on the way."""
        keys = keys | {(id, unpatched(region)) for id, region in keys}
        for id, region in self.rows(list({id for id, _ in keys})):
            if (id, region) in keys or (region in OF_ITEM and (id, region) not in self._met):
                self._mended.add((id, region))

    def remove(self, where: str) -> None:
        """Removes the failures that match a filter, but for those that this run met."""
        if self._any:
            with store_errors(self._path):
                self._table.delete(f"({where}) AND run_id <> {schema.quoted([self._run_id])}")

    def heal(self) -> int:
        """Removes failures that are mended, in one commit; gives how many."""
        found = [
            place
            for key, place in self._places([id for id, _ in self._mended])
            if key in self._mended
        ]
        self._mended.clear()
        self._delete(found)
        return len(found)

    def mend_folders(self, roots: Roots) -> None:
        """Notes folders that can be listed now, so that their failures go."""
        rows = self._table.to_arrow().select(list(schema.KEY)) if self._any else None
        for key in schema.keys(rows) if rows is not None else ():
            if key not in self._met and _is_listed(roots.path_of(key[0])):
                self._mended.add(key)

    def complete(self, run_id: str, items: Any) -> None:
        """Removes what a killed run had no time to: failures older than the rows that it wrote."""
        older = self._table.search().where(f"run_id <> {schema.quoted([run_id])}")
        wrote = f"run_id = {schema.quoted([run_id])} AND id IN "
        found: list[int] = []
        batches = older.select(list(schema.KEY)).with_row_id(True).limit(None).to_batches(_CHUNK)
        for batch in batches:
            keys = schema.keys(batch)
            where = wrote + f"({schema.quoted([id for id, _ in keys])})"
            rows = items.search().where(where).select(list(schema.KEY)).limit(None).to_arrow()
            there = {(id, unpatched(region)) for id, region in schema.keys(rows)}
            ids = {id for id, _ in there}
            found += [
                place
                for (id, region), place in zip(
                    keys, batch.column(lance.ROW).to_pylist(), strict=True
                )
                if (id, region) in there or (region in OF_ITEM and id in ids)
            ]
        self._delete(found)

    def _row(self, failure: Failure, when: datetime, limits: str | None) -> Row:
        row: Row = {name: getattr(failure, name) for name in _FIELDS}
        row |= {"run_id": self._run_id, "when": when, "limits": limits}
        return row | {"since": when, "first_run": self._run_id, "tries": 1}

    def _write(self, records: list[Row]) -> None:
        if not records:
            return
        columns = lance.SIDE[NAME]
        with store_errors(self._path):
            lance.add_absent(self._table, columns)
            merge = self._table.merge_insert(list(schema.KEY)).when_matched_update_all()
            table = pa.Table.from_pylist(records, schema=columns)
            merge.when_not_matched_insert_all().execute(table)
        self._any = True

    def _lookup(self, ids: Sequence[str]) -> Iterator[Row]:
        unique = list(dict.fromkeys(ids)) if self._any else []
        absent = dict.fromkeys(lance.SIDE[NAME].names)
        for start in range(0, len(unique), _CHUNK):
            where = f"id IN ({schema.quoted(unique[start : start + _CHUNK])})"
            with store_errors(self._path):
                found = self._table.search().where(where).limit(None).to_arrow()
            yield from (absent | row for row in found.to_pylist())

    def _places(self, ids: Sequence[str]) -> Iterator[tuple[Key, int]]:
        for start in range(0, len(ids), _CHUNK):
            where = f"id IN ({schema.quoted(ids[start : start + _CHUNK])})"
            query = self._table.search().where(where).select(list(schema.KEY)).limit(None)
            with store_errors(self._path):
                found = query.with_row_id(True).to_arrow()
            yield from zip(schema.keys(found), found[lance.ROW].to_pylist(), strict=True)

    def _delete(self, places: Sequence[int]) -> None:
        if places:
            with store_errors(self._path):
                self._table.delete(f"{lance.ROW} IN ({', '.join(map(str, places))})")


def _failure(row: Row) -> Failure:
    failure = Failure(**{name: row[name] for name in _FIELDS})
    if row["since"] is None and _FORMER_FAULTS.search(failure.message):
        return replace(failure, error=PassingFault.__name__)
    return failure


def _is_listed(folder: Path) -> bool:
    try:
        with os.scandir(folder):
            return True
    except (OSError, ValueError):
        return False


def _is_known(old: Row, failure: Failure) -> bool:
    """Whether it is the failure that was met before, of the same content."""
    same = all(
        None in (old[name], getattr(failure, name)) or old[name] == getattr(failure, name)
        for name in ("size", "mtime_ns")
    )
    return same and (old["since"] is None or _failure(old).passing == failure.passing)


def _first_run(row: Row) -> str:
    return str(row["first_run"] or row["run_id"])


def _history(row: Row) -> Row:
    """When a failure was first met, in which run, and how often it was tried; a row of 0.1.0 says
    when it was met last."""
    return {
        "since": row["since"] or row["when"],
        "first_run": _first_run(row),
        "tries": row["tries"] or 1,
    }


def _earlier(row: Row, other: Mapping[str, Any] | None) -> Row:
    """The row, first met when either was."""
    if other is None:
        return row
    one, two = _history(row), _history(dict(other))
    first = one if one["since"] <= two["since"] else two
    return row | first | {"tries": max(one["tries"], two["tries"])}
