"""Values of rows that points are coloured by, and their legends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import columns as derived
from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.derived import clusterings
from penult.collection.labels import marked
from penult.collection.reader import read_derived
from penult.data.items import utf8
from penult.errors import UsageError
from penult.explorer.rows import RowTable
from penult.explorer.watch import CLUSTERS, DERIVED, LABELS, Watch

MOST = 200  # entries of a legend; the others are one
OTHER, NOISE, UNNAMED = "other", "no cluster", "(empty)"
CATEGORY, NUMBER, DATE = "category", "number", "date"
_FEW = 24  # different whole numbers that count as categories
_HIDDEN = ("id", "region", "content_hash", "size", "mtime_ns", "run_id", "truncated", "path")
_OWN = {"label": "label of the classifier", "score": "score of the label", "start": "start",
        "end": "end", "kind": "kind of region", "channel": "channel"}  # fmt: skip
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ColourColumn:
    """What points can be coloured by. id: what a page asks for it with."""

    id: str
    title: str
    kind: str

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"id": self.id, "title": self.title, "kind": self.kind}


@dataclass(frozen=True, slots=True)
class RowValues:
    """A value for each row by number, NaN where it has none. names: of a category's codes."""

    column: ColourColumn
    values: Floats
    names: dict[int, str] = field(default_factory=dict)


class Codes:
    """Numbers of names, the same for as long as a session lasts: the most frequent ones of the time
    when they were first asked for, then those that come, MOST at most."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, texts: pa.Array | pa.ChunkedArray) -> Floats:
        """(n,) the code of each text, MOST for those without one of their own; NaN for null."""
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        coded = texts.dictionary_encode()
        places: Floats = coded.indices.to_numpy(zero_copy_only=False).astype(np.float64)
        if not len(coded.dictionary):
            return np.full(len(texts), np.nan)
        names = [utf8(name) if name else UNNAMED for name in coded.dictionary.to_pylist()]
        known = places[~np.isnan(places)].astype(np.int64)
        counts = np.bincount(known, minlength=len(names))
        for place in np.argsort(-counts, kind="stable")[: MOST + len(self.numbers)]:
            if len(self.numbers) < MOST:
                self.numbers.setdefault(names[place], len(self.numbers))
        codes = np.array([self.numbers.get(name, MOST) for name in names], np.float64)
        there = ~np.isnan(places)
        places[there] = codes[known]
        return places


class ColourValues:
    """What the points of a collection can be coloured by: read once for each version of what it is
    from. scores: (n,) of all rows for a taught class. Threads may share one."""

    def __init__(
        self,
        collection: Collection,
        rows: RowTable,
        watch: Watch,
        scores: Callable[[str], npt.NDArray[np.float32]],
    ) -> None:
        self._collection, self._rows, self._watch = collection, rows, watch
        self._scores = scores
        self._guard = threading.RLock()
        self._known: dict[str, tuple[Any, RowValues]] = {}
        self._codes: dict[str, Codes] = {}
        self._columns: tuple[Any, list[ColourColumn]] | None = None
        self._clusterings: tuple[Any, list[dict[str, Any]]] = (None, [])
        self._derived: tuple[Any, dict[str, tuple[derived.DerivedColumn, pa.Array]]] = (None, {})

    def columns(self) -> list[ColourColumn]:
        """What points can be coloured by, the most usual first."""
        with self._guard:
            stamp = self._stamp(DERIVED, CLUSTERS)
            if self._columns is None or self._columns[0] != stamp:
                self._columns = stamp, self._found()
            return self._columns[1]

    def of(self, by: str) -> RowValues:
        """The values of all rows.

        Raises:
            UsageError: there is no such column.
        """
        if by.startswith("score:"):  # as marks come, of all rows anew
            name = by.removeprefix("score:")
            column = ColourColumn(by, f"score of {name}", NUMBER)
            return RowValues(column, _finite(self._scores(name).astype(np.float64)))
        with self._guard:
            column = self._column(by)
            stamp = self._stamp(*_SOURCES.get(by.partition(":")[0], ()))
            known = self._known.get(by)
            if known is None or known[0] != stamp:
                known = self._known[by] = stamp, self._read(column)
            return known[1]

    def legend(self, by: str, drawn: npt.NDArray[Any]) -> dict[str, Any]:
        """For JSON, counted over the rows that are drawn (their numbers)."""
        found = self.of(by)
        values = found.values[drawn[drawn < len(found.values)]]
        there = values[~np.isnan(values)]
        entries: list[dict[str, Any]] = []
        if found.column.kind == CATEGORY:
            codes, counts = np.unique(there.astype(np.int64), return_counts=True)
            entries = [
                {"code": code, "name": found.names.get(code, OTHER), "count": count}
                for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
            ]
            entries.sort(key=lambda one: (one["code"] == MOST, -one["count"], one["code"]))
        ends = (there.min(), there.max()) if found.column.kind != CATEGORY and len(there) else ()
        low, high = (float(one) for one in ends) if ends else (None, None)
        document = {"by": by, "title": found.column.title, "kind": found.column.kind}
        none = len(drawn) - len(there)
        return {**document, "entries": entries, "none": none, "low": low, "high": high}

    def derived(self, name: str) -> tuple[derived.DerivedColumn, pa.Array]:
        """A derived column, and its values by number.

        Raises:
            UsageError: there is none.
        """
        with self._guard:
            stamp = self._stamp(DERIVED)
            if self._derived[0] != stamp:
                self._derived = stamp, {}
            known = self._derived[1]
            if name not in known:
                column = derived.read(self._collection.path, name)
                if column is None:
                    raise UsageError(f"there is no derived column {name!r}")
                known[name] = column, self._rows.derived(column)
            return known[name]

    def clusterings(self) -> list[dict[str, Any]]:
        """For JSON: the clusterings and the names and sizes of their clusters."""
        with self._guard:
            stamp = self._stamp(CLUSTERS)
            if self._clusterings[0] != stamp:
                self._clusterings = (
                    stamp,
                    [
                        {
                            "name": one.name,
                            "clusters": [
                                {"number": c["number"], "name": utf8(c["name"]), "size": c["size"]}
                                for c in one.clusters
                            ],
                        }
                        for one in clusterings(self._collection.reader)
                    ],
                )
            return self._clusterings[1]

    def cluster_names(self, name: str) -> pa.Array:
        """(n,) the name of each row's cluster, by number; null where it has none."""
        found = read_derived(self._collection.reader, "clusters", name)
        names: list[str | None] = [None] * len(self._rows)
        if found is not None:
            numbers = self._rows.numbers(found.table).tolist()
            for number, of in zip(numbers, found.table["name"].to_pylist(), strict=True):
                if number >= 0:
                    names[number] = of
        return pa.array(names, pa.string())

    def metadata_names(self) -> list[str]:
        """The columns of metadata, then the derived ones."""
        real = self._collection.reader.schema
        own = {name.lower() for name in real.names}
        path = self._collection.path
        later = [name for name in derived.names(path) if name.lower() not in own]
        return [*schema.metadata_of(real), *later]

    def by_number(self, name: str) -> pa.Array | pa.ChunkedArray:
        """(n,) a column of the rows, or a derived one."""
        if name in self._collection.reader.schema.names:
            return self._rows.column(name)
        return self.derived(name)[1]

    def _stamp(self, *names: str) -> Any:
        return (self._rows.version, len(self._rows), *self._watch.stamp(*names))

    def _column(self, by: str) -> ColourColumn:
        found = next((one for one in self.columns() if one.id == by), None)
        if found is None:
            raise UsageError(f"points cannot be coloured by {by!r}: there is no such column")
        return found

    def _found(self) -> list[ColourColumn]:
        found = []
        for name in ("label", "score"):
            if self._has(name, 1):
                found.append(ColourColumn(name, _OWN[name], _kind(self._rows.column(name))))
        found.append(ColourColumn("class", "taught class", CATEGORY))
        for one in self.clusterings():
            name = one["name"]
            found.append(ColourColumn(f"cluster:{name}", f"clusters: {utf8(name)}", CATEGORY))
        for name in self.metadata_names():
            if name not in _HIDDEN and (kind := _kind(self.by_number(name))):
                found.append(ColourColumn(f"column:{name}", utf8(name), kind))
        for name, least in (("start", 2), ("kind", 2), ("channel", 2)):
            if self._has(name, least):
                column = self._rows.column(name)
                kind = CATEGORY if name == "channel" else _kind(column)
                found.append(ColourColumn(name, _OWN[name], kind))
        return found

    def _has(self, name: str, least: int) -> bool:
        """Whether a column of the rows has so many different values."""
        return bool(pc.count_distinct(self._rows.column(name), mode="only_valid").as_py() >= least)

    def _read(self, column: ColourColumn) -> RowValues:
        source, _, name = column.id.partition(":")
        if source == "class":
            return self._coded(column, self._marked())
        if source == "cluster":
            return self._clusters(column, name)
        values = self.by_number(name) if name else self._rows.column(source)
        if column.kind == CATEGORY:
            return self._coded(column, _texts(values))
        return RowValues(column, _numbers(values))

    def _coded(self, column: ColourColumn, texts: Any) -> RowValues:
        codes = self._codes.setdefault(column.id, Codes())
        values = codes.of(texts)
        values[~self._rows.there[: len(values)]] = np.nan
        return RowValues(column, values, {code: name for name, code in codes.numbers.items()})

    def _marked(self) -> pa.Array:
        texts: list[str | None] = [None] * len(self._rows)
        for key, name in marked(self._collection.reader).items():
            number = self._rows.number(key)
            if number is not None and number < len(texts):
                texts[number] = name
        return pa.array(texts, pa.string())

    def _clusters(self, column: ColourColumn, name: str) -> RowValues:
        found = read_derived(self._collection.reader, "clusters", name)
        assert found is not None  # it is among the columns
        values = np.full(len(self._rows), np.nan)
        numbers = self._rows.numbers(found.table)
        codes = found.table["cluster"].to_numpy().astype(np.float64)
        codes[codes >= MOST] = MOST
        values[numbers[numbers >= 0]] = codes[numbers >= 0]
        names = {one["number"]: utf8(one["name"]) for one in found.about["clusters"][:MOST]}
        return RowValues(column, values, {**names, -1: NOISE})


_SOURCES = {"class": (LABELS,), "cluster": (CLUSTERS,), "column": (DERIVED,)}


def _kind(values: Any) -> str:
    """How values are shown; empty where they cannot be."""
    kind = values.type
    if len(values) == values.null_count:
        return ""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return CATEGORY
    if pa.types.is_temporal(kind):
        return DATE if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else ""
    if pa.types.is_integer(kind):
        return CATEGORY if pc.count_distinct(values).as_py() <= _FEW else NUMBER
    return NUMBER if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else ""


def _texts(values: Any) -> Any:
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def _numbers(values: Any) -> Floats:
    """(n,) in float64, seconds since 1970 of dates, NaN for null and what is not finite."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        values = pc.divide(values.cast(pa.float64()), 1e6)
    return _finite(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
