"""A user's own feature columns, joined to rows by their ids: a CSV in, a matrix out. Knows no
collection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from penult.errors import SourceError, first_line
from penult.sources.items import as_id, local

_ID = ("id", "path")


@dataclass(frozen=True, slots=True)
class Features:
    """names: the columns. values: (n, f), a row of NaN where an id is not in the table."""

    names: list[str]
    values: npt.NDArray[np.float64]

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Which rows have every value."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def joined(table: str | os.PathLike[str], ids: Sequence[str], regions: Sequence[str]) -> Features:
    """The numeric columns of a CSV for these rows, found by its column `id` or `path` (paths as in
    other tables: relative ones start at the table's folder), and by `region` if it has one.

    Raises:
        SourceError: no such table or column, a column of texts, an id twice, or no id in common.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    table = Path(table)
    try:
        read = pc.read_csv(table)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{table} cannot be read as a table: {first_line(error)}") from error
    key = next((name for name in _ID if name in read.column_names), None)
    if key is None:
        raise SourceError(
            f"{table} has no column id or path; it has {', '.join(read.column_names)}"
        )
    names = [name for name in read.column_names if name not in (*_ID, "region")]
    for name in names:
        kind = read.schema.field(name).type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise SourceError(
                f"{table}: the column {name!r} holds {kind}, and features are numbers"
            )
    if not names:
        raise SourceError(f"{table} has no column besides its ids")
    columns = [read[name].cast(pa.float64()) if not pa.types.is_boolean(read[name].type)
               else read[name].cast(pa.int8()).cast(pa.float64()) for name in names]  # fmt: skip
    values = np.stack([c.to_numpy() for c in columns], axis=1)
    region = read["region"].to_pylist() if "region" in read.column_names else None
    places = _places(table, [str(value) for value in read[key].to_pylist()], region)
    found = [_place(places, id, own) for id, own in zip(ids, regions, strict=True)]
    if ids and not any(place is not None for place in found):
        raise SourceError(f"{table}: none of its ids is a row's; a row's id is {ids[0]!r}")
    missing = np.full(len(names), np.nan)
    return Features(
        names,
        np.array([missing if p is None else values[p] for p in found]).reshape(-1, len(names)),
    )


Key = tuple[str, str | None]


def _places(table: Path, ids: list[str], regions: list[str] | None) -> dict[Key, int]:
    places: dict[Key, int] = {}
    for row, id in enumerate(ids):
        region = regions[row] if regions else None
        for name in {id, _absolute(id, table)}:
            if (name, region) in places:
                raise SourceError(f"{table}: {id!r} is there twice")
            places[name, region] = row
    return places


def _absolute(id: str, table: Path) -> str:
    try:
        return as_id(local(id, str(table.absolute().parent)))
    except SourceError:  # another machine's: an id as good as any
        return id


def _place(places: dict[Key, int], id: str, region: str) -> int | None:
    return places.get((id, region), places.get((id, None)))
