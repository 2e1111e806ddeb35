"""Selections of rows: kept as derived columns that filters read, and as files for other tools."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penult.collection import columns as derived
from penult.collection import schema
from penult.collection.derived import keep_column
from penult.collection.export import raven_selections, write_csv
from penult.collection.reader import Reader, drop_derived
from penult.collection.row_names import names_text
from penult.data.formulas import Cells
from penult.data.items import path_of
from penult.data.selection_tables import table_text
from penult.errors import CollectionError, UsageError
from penult.explorer.rows import NoSuchRow, Numbers
from penult.explorer.session import Explorer
from penult.fewshot.events import of_rows, to_m3u

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_WORDS = frozenset(
    "all and any as asc between by case cast desc distinct else end escape exists extract false "
    "from group having ilike in interval is join like limit not null offset on or order over "
    "select set then true union when where with".split()
)  # of filters
_ABOUT = "selection"  # in what a column says of itself
_PATH = "path"


class RowSelections:
    """The selections of a collection. Threads may share one."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    @property
    def _reader(self) -> Reader:
        return self._explorer.collection.reader

    def keep(self, name: str, rows: Sequence[int]) -> None:
        """Keeps rows under a name, in place of the selection that had it.

        Raises:
            UsageError: a name that no filter could use, or that another column has. NoSuchRow: a
                number of no row. StoreError: nothing can be written.
        """
        explorer = self._explorer
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"a selection cannot be called {name!r}: it is the name of a column in filters, of "
                "small letters, digits and _, a letter first"
            )
        if name in _WORDS:
            raise UsageError(f"{name!r} is a word of filters; give the selection another name")
        if name in derived.names(explorer.collection.path) and not self._is_selection(name):
            raise UsageError(f"there is a derived column {name!r} already; give another name")
        chosen = self._numbers(rows)
        there = np.flatnonzero(explorer.rows.there)
        inside = np.zeros(len(explorer.rows), bool)
        inside[chosen] = True
        columns = [
            *(explorer.rows.column(one).take(pa.array(there)) for one in schema.KEY),
            explorer.rows.column(derived.VERSION).take(pa.array(there)),
            pa.array(np.arange(len(there))),
            pa.array(inside[there]),
        ]
        names = [*schema.KEY, derived.VERSION, derived.ROW, derived.VALUE]
        about = {derived.MADE: f"penult explore {explorer.collection.path}", _ABOUT: True}
        keep_column(self._reader, name, about, pa.table(columns, names=names))
        try:
            self._reader.count_rows(name)
        except CollectionError as error:
            drop_derived(self._reader, derived.KIND, derived.record_name(name))
            raise UsageError(
                f"a selection cannot be called {name!r}, a word that filters use; give another name"
            ) from error
        finally:
            explorer.watch.bump()

    def remove(self, name: str) -> None:
        """Removes a selection; its rows stay.

        Raises:
            UsageError: there is none of this name.
        """
        self._require(name)
        drop_derived(self._reader, derived.KIND, derived.record_name(name))
        self._explorer.watch.bump()

    def rows(self, name: str) -> list[int]:
        """The numbers of its rows, without those that are gone.

        Raises:
            UsageError: there is none of this name.
        """
        self._require(name)
        found: list[int] = self._inside(name).tolist()
        return found

    def listed(self) -> list[dict[str, Any]]:
        """For JSON: the name and the number of rows of each."""
        path = self._explorer.collection.path
        made = [one["name"] for one in derived.described(path) if _is_ours(one["made"])]
        return [
            {"name": name, "rows": len(self._inside(name))}
            for name in made
            if self._is_selection(name)
        ]

    def exported(self, rows: Sequence[int], format: str) -> tuple[bytes, str, str]:
        """Rows as a file: its content, its type and its name.

        Raises:
            UsageError: an unknown format, or rows that it cannot hold. NoSuchRow: a number of no
                row.
        """
        if format not in _FORMATS:
            raise UsageError(f"format {format!r} is not known; {', '.join(_FORMATS)} work")
        write, kind, suffix = _FORMATS[format]
        content = write(self, self._numbers(rows))
        return content, kind, f"{self._explorer.collection.path.stem}.{suffix}"

    def _numbers(self, rows: Sequence[int]) -> Numbers:
        """The rows once each, in their order, without those that are gone."""
        wanted = np.array([*dict.fromkeys(rows)], np.int64)
        table = self._explorer.rows
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(table)):
            raise NoSuchRow(f"there is no row {wanted.max()}; there are {len(table):,}")
        return wanted[table.there[wanted]]

    def _is_selection(self, name: str) -> bool:
        return bool(self._explorer.values.derived(name)[0].about.get(_ABOUT))

    def _require(self, name: str) -> None:
        if name not in [one["name"] for one in self.listed()]:
            raise UsageError(f"there is no selection {name!r}")

    def _inside(self, name: str) -> Numbers:
        values = self._explorer.values.derived(name)[1].fill_null(False)
        return np.flatnonzero(values.to_numpy(zero_copy_only=False).astype(bool))

    def _table(self, rows: Numbers) -> pa.Table:
        """All scalar columns of rows, the names of their clusters, and the path where an id begins
        with a root."""
        explorer, reader = self._explorer, self._reader
        names = schema.scalar_columns(reader.schema)
        names += [one for one in explorer.values.metadata_names() if one not in names]
        wanted = pa.array(rows)
        table = pa.table([explorer.values.by_number(one).take(wanted) for one in names], names)
        for one in explorer.values.clusterings():
            column, own = f"cluster:{one['name']}", explorer.values.cluster_names(one["name"])
            if column not in names:
                table = table.append_column(column, own.take(wanted))
        if reader.roots.roots and _PATH not in names:
            paths = [reader.roots.shown(id) for id in table["id"].to_pylist()]
            table = table.append_column(_PATH, pa.array(paths, pa.string()))
        return table

    def _csv(self, rows: Numbers) -> bytes:
        with tempfile.TemporaryDirectory(prefix="penult-") as folder:
            file = Path(folder, "rows.csv")
            write_csv(file, self._table(rows))
            return file.read_bytes()

    def _raven(self, rows: Numbers) -> bytes:
        found = raven_selections(self._reader, self._table(rows).to_pylist())
        recordings = sorted({one.path for one in found}, key=path_of)
        return table_text(found, recordings, Cells()).encode("utf-8", "backslashreplace")

    def _playlist(self, rows: Numbers) -> bytes:
        table = self._explorer.rows
        labels = table.column("label").take(pa.array(rows)).to_pylist()
        places = of_rows(table.keys(rows.tolist()), self._reader.roots, labels)
        return to_m3u(places).encode("utf-8", "backslashreplace")

    def _ids(self, rows: Numbers) -> bytes:
        keys = self._explorer.rows.keys(rows.tolist())
        return names_text(keys).encode("utf-8", "backslashreplace")


_FORMATS: dict[str, tuple[Callable[[RowSelections, Numbers], bytes], str, str]] = {
    "csv": (RowSelections._csv, "text/csv; charset=utf-8", "csv"),
    "raven": (RowSelections._raven, "text/plain; charset=utf-8", "selections.txt"),
    "m3u": (RowSelections._playlist, "audio/x-mpegurl; charset=utf-8", "m3u8"),
    "ids": (RowSelections._ids, "text/plain; charset=utf-8", "ids.txt"),
}


def _is_ours(command: str) -> bool:
    return command.startswith("penult explore ")
