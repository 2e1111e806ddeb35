"""A subset of a collection's rows, for labelling or listening: diverse, typical or balanced."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penult.analysis.coverage import Places, drawn, k_centre, quotas, typical
from penult.analysis.space import RAW
from penult.collection import columns, schema, spaces
from penult.collection.columns import MADE
from penult.collection.derived import keep_values
from penult.collection.duplicates import COLUMN as DUPLICATE
from penult.collection.labels import names_of
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.data.regions import span_of
from penult.errors import UsageError

COLUMN = "selected"  # the derived column: the number of a row in the last subset
DIVERSE, TYPICAL, BALANCED = "diverse", "typical", "balanced"
WAYS: dict[str, Callable[[Any, int, int], Places]] = {
    DIVERSE: k_centre,
    TYPICAL: typical,
    BALANCED: drawn,
}


@dataclass(frozen=True, slots=True)
class SubsetOptions:
    """How many rows, and by what. by: diverse, typical or balanced. over: a way of naming rows,
    such as a column; each name gives as many rows, as far as it has them. Without it balanced is
    over clusters. where: a filter."""

    k: int
    by: str = DIVERSE
    over: str | None = None
    space: str = RAW
    where: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subset:
    """Rows in the order in which they were taken. strata: what each is called by `over`. matching:
    rows that the filter leaves. doubles: those of them that were left out as doubles of others;
    undirected: those of zeros. known_doubles: whether `penult duplicates` has looked for near ones.
    """

    keys: list[Key]
    strata: list[str] | None
    matching: int
    doubles: int
    undirected: int
    known_doubles: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult select --json` prints it."""
        return {
            "rows": [
                {"id": id, "region": region, "stratum": self.strata[at] if self.strata else None}
                for at, (id, region) in enumerate(self.keys)
            ],
            "matching": self.matching,
            "doubles": self.doubles,
            "undirected": self.undirected,
            "near_doubles_known": self.known_doubles,
            "strata": dict(Counter(self.strata)) if self.strata else None,
        }

    def table(self) -> pa.Table:
        """One line for each row: number, id, region, stratum."""
        strata: list[str] | list[None] = self.strata or [None] * len(self.keys)
        return pa.table(
            {
                "number": pa.array(range(1, len(self.keys) + 1), pa.int64()),
                "id": pa.array([id for id, _ in self.keys], pa.string()),
                "region": pa.array([region for _, region in self.keys], pa.string()),
                "stratum": pa.array(strata, pa.string()),
            }
        )


def select_rows(reader: Reader, options: SubsetOptions) -> Subset:
    """A subset of the rows, which is kept as the derived column `selected`.

    No doubles are among them: of rows with the same content or vector the first, and none that
    `duplicate_of` names as the double of another. The same rows, whatever the order in which they
    came, and seed give the same subset.

    Raises:
        UsageError: fewer rows than were asked for, or a way that is none.
        LabelsError: `over` names nothing here.
    """
    if options.by not in WAYS:
        raise UsageError(f"--by {options.by!r} is not known; {', '.join(WAYS)} work")
    if options.k < 1:
        raise UsageError(f"-k {options.k}: at least one row has to be asked for")
    every = columns.wider(reader.path, reader.schema, [options.over, DUPLICATE])
    table, vectors = reader.vectors(options.where, schema.scalar_columns(every))
    vectors = spaces.ready(reader, options.space)[0](vectors)
    able = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    single = _without_doubles(table, vectors)
    places = np.flatnonzero(able & single)
    if len(places) < options.k:
        raise UsageError(
            f"{options.k:,} rows were asked for, and {len(places):,} are there: {len(table):,} "
            f"match, {int((~single).sum()):,} of them are doubles of others, "
            f"{int((~able).sum()):,} are zeros"
        )
    strata = _strata(reader, table, vectors, places, options)
    chosen = _chosen(vectors, places, strata, options)
    keys = schema.keys(table)
    found = Subset(
        [keys[row] for row in chosen],
        None if strata is None else [strata[row] for row in chosen],
        len(table),
        int((~single).sum()),
        int((~able).sum()),
        DUPLICATE in every.names,
    )
    _keep(reader, found, options)
    return found


def _without_doubles(table: pa.Table, vectors: Any) -> Any:
    """(n,) whether a row is no double of an earlier one, or of another that is kept."""
    single = np.ones(len(table), bool)
    seen: set[object] = set()
    marks: list[tuple[object, ...]] = []
    for (id, region), content in zip(
        schema.keys(table), table["content_hash"].to_pylist(), strict=True
    ):
        marks.append((content or id, span_of(region)))
    for row, mark in enumerate(marks):
        own = {mark, vectors[row].tobytes()}
        single[row] = seen.isdisjoint(own)
        seen |= own
    if DUPLICATE in table.column_names:
        single &= table[DUPLICATE].is_null().to_numpy()
    return single


def _strata(
    reader: Reader, table: pa.Table, vectors: Any, places: Places, options: SubsetOptions
) -> dict[int, str] | None:
    """The stratum of each of these rows; of several clusters those of k-means."""
    if options.over is not None:
        names = names_of(reader, table, options.over)
        return {row: names[row] or "(none)" for row in places.tolist()}
    if options.by != BALANCED:
        return None
    from penult.analysis.clustering import ClusterOptions, cluster

    count = max(2, round(len(places) ** 0.5 / 2))
    if len(places) < 2 * count:
        return None
    made = cluster(vectors[places], ClusterOptions("kmeans", count, None, options.seed), runs=0)
    return {row: f"cluster {number}" for row, number in
            zip(places.tolist(), made.numbers.tolist(), strict=True)}  # fmt: skip


def _chosen(
    vectors: Any, places: Places, strata: dict[int, str] | None, options: SubsetOptions
) -> list[int]:
    way = WAYS[options.by]
    if strata is None:
        found: list[int] = places[way(vectors[places], options.k, options.seed)].tolist()
        return found
    members: dict[str, list[int]] = {}
    for row in places.tolist():
        members.setdefault(strata[row], []).append(row)
    shares = quotas({name: len(rows) for name, rows in members.items()}, options.k)
    chosen: list[int] = []
    for name in sorted(members):
        rows = np.array(members[name], np.int64)
        chosen += rows[way(vectors[rows], shares[name], options.seed)].tolist()
    return chosen


def _keep(reader: Reader, found: Subset, options: SubsetOptions) -> None:
    words = ["penult", "select", str(reader.path), "-k", str(options.k), "--by", options.by]
    for name in ("over", "space", "where", "seed"):
        value = getattr(options, name)
        if value not in (None, RAW, 0):
            words += [f"--{name}", str(value)]
    number = {key: at for at, key in enumerate(found.keys, 1)}
    keep_values(reader, {MADE: shlex.join(words)}, {COLUMN: (pa.int64(), number)})
