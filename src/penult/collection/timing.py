"""When the rows of a collection were recorded: the column `recorded_at`, and filling it where the
rows are there already. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from penult.collection import schema
from penult.collection.reader import Reader
from penult.collection.writer import writing
from penult.data.items import file_item
from penult.data.recording_times import RECORDED_AT, RecordingTimes
from penult.data.tables import PATH
from penult.errors import CollectionError

TIME = pa.timestamp("us", "UTC")
_BATCH = 8192  # rows


def has_times(reader: Reader) -> bool:
    """Whether rows have the column."""
    return reader.manifest is not None and RECORDED_AT in reader.schema.names


def times_of_runs(reader: Reader) -> str | None:
    """The time zone with which the newest run that read times did so; None where none did."""
    if not has_times(reader):
        return None
    infos = reader.side_table("runs")["info"].to_pylist()
    zones = [schema.run_info(reader.path, info).times for info in infos]
    return next((zone for zone in reversed(zones) if zone is not None), None)


@dataclass(slots=True)
class Dating:
    """Rows that were gone through, and those whose time is another one now. times: what was read.
    written: whether the rows have it."""

    times: RecordingTimes
    rows: int = 0
    changed: int = 0
    written: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.rows,
            "changed": self.changed,
            "written": self.written,
            "times": self.times.to_dict(),
        }


def date_rows(
    reader: Reader, times: RecordingTimes, *, dry: bool = False, wait: bool = False
) -> Dating:
    """Fill the column `recorded_at` of all rows by their files' headers and names. Files that are
    gone have their names. Nothing is embedded.

    Raises:
        CollectionError: the column is there, and holds something else.
        CollectionLocked: another process is writing.
    """
    manifest = reader.require_manifest()
    if has_times(reader) and (kind := reader.schema.field(RECORDED_AT).type) != TIME:
        raise CollectionError(
            f"{reader.path} has a column {RECORDED_AT} of type {kind}, and times are kept as {TIME}"
        )
    did = Dating(times)
    if dry:
        for changes in _changes(reader, did):
            did.changed += len(changes)
        return did
    run, columns = {"times": times.zone}, {RECORDED_AT: TIME}
    with writing(reader.path, manifest, columns, run, wait, alone=True) as writer:
        for changes in _changes(reader, did):
            writer.revise(changes)
            did.changed += len(changes)
    did.written = True
    return did


def _changes(reader: Reader, did: Dating) -> Any:
    """For some rows at a time the new values, by their keys."""
    names = [*schema.KEY, "start", *(n for n in (PATH, RECORDED_AT) if n in reader.schema.names)]
    changes: dict[schema.Key, dict[str, datetime | None]] = {}
    batches = reader.ordered(names, None, _BATCH)
    rows = (row for batch in batches for row in batch.to_pylist())
    for id, group in groupby(rows, key=itemgetter("id")):
        found = list(group)
        when = _beginning(reader, id, found, did.times)
        for row in found:
            value = None if when is None else when + timedelta(seconds=row["start"] or 0.0)
            if row.get(RECORDED_AT) != value:
                changes[id, row["region"]] = {RECORDED_AT: value}
        did.rows += len(found)
        if len(changes) >= _BATCH:
            yield changes
            changes = {}
    if changes:
        yield changes


def _beginning(
    reader: Reader, id: str, rows: Sequence[dict[str, Any]], times: RecordingTimes
) -> datetime | None:
    path = rows[0].get(PATH) or id
    if path.startswith("sha256:"):
        return None
    return times.of(file_item(reader.roots.path_of(path), id))
