"""Rows of a collection as a Raven selection table, with the columns that they came with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.collection import schema
from penult.collection.manifest import Manifest
from penult.collection.reader import Reader
from penult.data.formulas import Cells
from penult.data.tables import PATH
from penult.errors import UsageError

_OWN = ("Selection", "View")
_PLACE = ("Begin Time (s)", "End Time (s)")
_FILE = ("Begin Path", "File Offset (s)")
Write = Callable[[list[Path], Manifest | None, pa.Schema, Iterator[pa.RecordBatch]], int]


def raven_writer(reader: Reader, cells: Cells) -> Write:
    """The function that writes a collection's rows as a selection table.

    Selections and other columns of a Raven table are written back as they came; other rows are
    numbered. Channels count from 1; a row of all channels has 0, which Penult reads as such.
    Seconds count within each file, which `File Offset (s)` says too.
    """

    def write(
        paths: list[Path],
        manifest: Manifest | None,
        columns: pa.Schema,
        batches: Iterator[pa.RecordBatch],
    ) -> int:
        modality = manifest.model.get("modality") if manifest else None
        if modality not in ("audio", "video"):
            raise UsageError(f"a selection table has seconds, which {modality} has not; use .csv")
        rows = [row for batch in batches for row in batch.to_pylist() if row["kind"] != "summary"]
        metadata = [n for n in schema.metadata_of(columns) if n not in (*_OWN, PATH)]
        original, roots = _original_names(reader), reader.roots
        header = [*_OWN, "Channel", *_PLACE, *(original.get(n, n) for n in metadata), *_FILE]
        with paths[0].open("w", encoding="utf-8", newline="") as file:
            file.write("\t".join(_cell(cells(name)) for name in header) + "\n")
            for number, row in enumerate(_numbered(rows), 1):
                own = row.get("Selection") or number, row.get("View") or "Spectrogram 1"
                channel = 0 if row["channel"] is None else row["channel"] + 1
                start = row["start"] or 0.0
                path = cells.path(str(roots.path_of(row.get(PATH) or row["id"])))
                values = [*own, channel, start, row["end"], *(cells(row[n]) for n in metadata)]
                file.write("\t".join(map(_cell, [*values, path, start])) + "\n")
        return len(rows)

    return write


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with a selection of its own where theirs come from several tables."""
    given = [row.get("Selection") for row in rows]
    if None not in given and len(set(given)) == len(given):
        return sorted(rows, key=lambda row: row["Selection"])
    files = [(row["id"], row.get("Selection")) for row in rows]
    if None not in given and len(set(files)) == len(files):
        return rows  # each file's own numbers
    return [{**row, "Selection": None} for row in rows]


def _original_names(reader: Reader) -> dict[str, str]:
    """The names that metadata columns had in the tables of the runs."""
    found: dict[str, str] = {}
    for run in reader.side_table("runs").to_pylist():
        renamed = schema.run_info(reader.path, run["info"]).renamed or {}
        found |= {new: old for old, new in renamed.items()}
    return found


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(str(value).split("\t")).replace("\r", " ").replace("\n", " ")
