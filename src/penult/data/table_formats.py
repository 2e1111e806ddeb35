"""Formats of annotation programs that selections are written in, by their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from penult.data import label_tracks, selection_tables
from penult.errors import UsageError, listed


@dataclass(frozen=True, slots=True)
class TableFormat:
    """title: of one of its files, in words. check_free(out, overwrite): refuses to write over
    files. write(out, selections, recordings, cells=, overwrite=): gives the files that it wrote;
    see `write_selections`."""

    title: str
    check_free: Callable[[str | os.PathLike[str], bool], None]
    write: Callable[..., list[Path]]


TABLE_FORMATS: Mapping[str, TableFormat] = {
    "raven": TableFormat(
        "Raven table", selection_tables.check_free, selection_tables.write_selections
    ),
    "audacity": TableFormat(
        "label track", label_tracks.check_free, label_tracks.write_label_tracks
    ),
}
RAVEN = "raven"  # of a .txt file or a folder where nothing else is asked for


def table_format(name: str | None) -> TableFormat:
    """The format of this name; None: Raven's.

    Raises:
        UsageError: there is none.
    """
    found = TABLE_FORMATS.get(name or RAVEN)
    if found is None:
        raise UsageError(f"--format {name!r}: {listed(TABLE_FORMATS)}")
    return found
