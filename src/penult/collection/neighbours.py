"""The graph of nearest rows of a collection: kept in a side table, extended when rows come.

Knows no model. What counts neighbours reads it from here.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.neighbour_graph import NONE, NeighbourSearch, Places, Recall
from penult.analysis.space import RAW
from penult.collection import schema, spaces
from penult.collection.columns import KIND, MADE, ROW, VALUE, VERSION, wider
from penult.collection.columns import read as read_column
from penult.collection.derived import keep_column
from penult.collection.labels import names_of
from penult.collection.reader import Derived, Reader, read_derived, replace_derived
from penult.collection.schema import Key
from penult.data.regions import span_of
from penult.errors import StoreError, UsageError

log = logging.getLogger(__name__)
K = 20
EXACT_ROWS = 100_000  # more are compared by lists
MIN_RECALL = 0.95
ALL_ROWS, LISTS = "all rows", "lists"  # how rows were compared
COLUMN = "nearest_similarity"  # the derived column: the cosine to the nearest row
_PLACES, _COSINES, _GROUP = "nearest", "cosines", "group"  # columns of the record


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """How a graph was made. searched: whether all rows were compared or those of like `lists`; then
    `recall` is the share found of the k nearest of `sample` rows. new, gone: rows that came, or are
    others, and went since it was kept. undirected: rows of zeros, which have no neighbours and are
    none."""

    space: str
    groups: str | None = None
    searched: str = ALL_ROWS
    recall: float = 1.0
    sample: int = 0
    new: int = 0
    gone: int = 0
    undirected: int = 0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest other rows of each row of a collection by cosine, nearest first; equally near
    ones in the order of their keys.

    keys: the (id, region) of n rows, in key order. places: (n, k) the places in `keys` of their
    nearest rows, −1 where there are fewer. cosines: (n, k) float32, NaN where there are fewer.

    Further annotations of a span have neighbours and are none; rows of one span, or of one group
    where `groups` was asked for, are no neighbours of each other.
    """

    keys: list[Key]
    places: Places
    cosines: npt.NDArray[np.float32]
    made: GraphSummary

    @property
    def k(self) -> int:
        """How many neighbours a row has, where there are as many."""
        return int(self.places.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult neighbours --json` prints it, without the lists."""
        return {"rows": len(self.keys), "k": self.k, **asdict(self.made), "fewer": self.fewer}

    @property
    def fewer(self) -> int:
        """How many rows have fewer than k neighbours, none among them."""
        return int((self.places[:, -1] == NONE).sum())

    def hubs(self, most: int) -> list[tuple[int, int]]:
        """The places of the rows that are neighbours most often, and of how many rows."""
        counts = np.bincount(self.places[self.places != NONE], minlength=len(self.keys))
        order = np.argsort(-counts, kind="stable")[:most]
        return [(int(row), int(counts[row])) for row in order if counts[row]]

    @property
    def nearest(self) -> npt.NDArray[np.float32]:
        """(m,) the cosines to their nearest row of the rows that have one, from low to high."""
        first = self.cosines[:, 0]
        return np.sort(first[np.isfinite(first)])

    def table(self) -> pa.Table:
        """One line for each row and neighbour: id, region, rank from 1, neighbour,
        neighbour_region, similarity."""
        row, rank = np.nonzero(self.places != NONE)
        ids, regions = (pa.array([key[part] for key in self.keys], pa.string()) for part in (0, 1))
        own, other = pa.array(row), pa.array(self.places[row, rank])
        columns = {
            "id": ids.take(own),
            "region": regions.take(own),
            "rank": pa.array(rank + 1),
            "neighbour": ids.take(other),
            "neighbour_region": regions.take(other),
            "similarity": pa.array(self.cosines[row, rank]),
        }
        return pa.table(columns)


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """How a graph is made. groups: a column, `folder` or another way of naming rows; rows of one
    group are no neighbours. exact: compare all rows; None: of up to 100,000 rows. min_recall: else
    so many lists are compared that the recall is as high."""

    k: int = K
    space: str = RAW
    groups: str | None = None
    exact: bool | None = None
    min_recall: float = MIN_RECALL

    def check(self) -> None:
        """Raises:
        UsageError: no neighbour is asked for, or a recall that is none.
        """
        if self.k < 1:
            raise UsageError(f"-k {self.k}: at least one neighbour has to be asked for")
        if not 0 <= self.min_recall <= 1:
            raise UsageError(f"a recall of {self.min_recall:g} cannot be; it lies between 0 and 1")

    @property
    def name(self) -> str:
        """Under which the graph is kept."""
        return ":".join(["neighbours", self.space, *([self.groups] if self.groups else [])])


def find_neighbours(reader: Reader, options: GraphOptions = GraphOptions()) -> Neighbours:
    """The graph of all rows in a space: as it is kept, or brought up to date and kept.

    Rows that came or are others are compared with all rows, and the lists of others take them where
    they are nearer; rows that lost a neighbour are compared with all rows again. A graph of another
    version of the space, of fewer neighbours, or of which half is new, is made anew.

    Raises:
        UsageError: no rows, or options that cannot be.
        SpaceError: there is no such space. LabelsError: `groups` names nothing here.
    """
    options.check()
    if not reader.count_rows():
        raise UsageError(f"{reader.path} has no rows yet, and so no neighbours")
    space = spaces.ready(reader, options.space)[0]
    record = read_derived(reader, KIND, options.name)
    if record is not None and not _serves(record, options, space.id):
        record = None
    columns = [*schema.KEY, VERSION]
    if options.groups is not None:
        columns = schema.scalar_columns(wider(reader.path, reader.schema, [options.groups]))
    if record is not None:
        batches = list(reader.ordered(columns))
        rows = _Rows.of(reader, pa.Table.from_batches(batches), options.groups)
        if (there := _Lists.of(record, rows)).is_current:
            _keep_nearest(reader, rows, there, options)
            return _shown(rows, there, record.about, options, np.zeros(0, np.int64), 0)
    table, vectors = reader.vectors(columns=columns)
    rows = _Rows.of(reader, table, options.groups)
    kept = _Lists.of(record, rows) if record is not None else None
    search, about = _searched(rows, space(vectors), kept, record, options)
    found = search.found()
    about |= {"space": options.space, "space_id": space.id, "groups": options.groups}
    about["undirected"] = len(rows.keys) - len(search.able)
    lists = _Lists(found.places, found.cosines, np.ones(len(rows.keys), bool))
    _keep(reader, rows, lists, about, options)
    new = np.arange(len(rows.keys)) if kept is None else np.flatnonzero(~kept.known)
    return _shown(rows, lists, about, options, new, 0 if kept is None else kept.gone)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a collection in key order. versions: their runs. groups: their names, where
    groups are kept apart."""

    keys: list[Key]
    versions: list[str]
    groups: list[str | None]

    @classmethod
    def of(cls, reader: Reader, table: pa.Table, groups: str | None) -> _Rows:
        named: list[str | None] = [None] * len(table)
        if groups:
            named = names_of(reader, table, groups)
        return cls(schema.keys(table), table[VERSION].to_pylist(), named)

    def table(self) -> pa.Table:
        """For a record, with numbers for the rows."""
        ids, regions = zip(*self.keys, strict=True)
        columns = {"id": ids, "region": regions, VERSION: self.versions}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        return table.append_column(ROW, pa.array(np.arange(len(self.keys)), pa.int64()))

    def apart(self) -> tuple[list[Places], npt.NDArray[np.bool_]]:
        """Numbers of spans, and of groups where there are some; and the first row of each span."""
        spans = [(id, span_of(region)) for id, region in self.keys]
        number = {span: at for at, span in enumerate(dict.fromkeys(spans))}
        of_spans = np.array([number[span] for span in spans], np.int64)
        first = np.zeros(len(spans), bool)
        first[np.unique(of_spans, return_index=True)[1]] = True
        if not any(self.groups):
            return [of_spans], first
        of_group = {name: -1 - at for at, name in enumerate(dict.fromkeys(self.groups))}
        groups = [span if name is None else of_group[name]
                  for name, span in zip(self.groups, of_spans.tolist(), strict=True)]  # fmt: skip
        return [of_spans, np.array(groups, np.int64)], first


@dataclass(frozen=True, slots=True)
class _Lists:
    """Lists of neighbours of the rows that there are. known: (n,) the rows that a record has.
    gone: how many of its rows are there no longer. lost: (n,) rows with a neighbour that is gone
    behind which others may be the next."""

    places: Places
    cosines: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    gone: int = 0
    lost: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def is_current(self) -> bool:
        return bool(self.known.all()) and not self.gone and not self.lost.any()

    @classmethod
    def of(cls, record: Derived, rows: _Rows) -> _Lists:
        """As a record has them, by the places of the rows now."""
        table = record.table
        k = record.about["k"]
        now = {key: at for at, key in enumerate(zip(rows.keys, rows.versions, rows.groups,
               strict=True))}  # fmt: skip
        then = zip(schema.keys(table), *(table[name].to_pylist() for name in (VERSION, _GROUP)),
                   strict=True)  # fmt: skip
        place = np.array([now.get(key, NONE) for key in then], np.int64)
        numbers = table[ROW].to_numpy()
        near = _matrix(table[_PLACES], k)
        spot = np.minimum(np.searchsorted(numbers, near), len(numbers) - 1)
        there = (near != NONE) & (numbers[spot] == near)
        near_now = np.where(there, place[spot], NONE)
        missing = ((near != NONE) & (near_now == NONE)).any(axis=1)
        own = place != NONE
        lists = cls(
            np.full((len(rows.keys), k), NONE, np.int64),
            np.full((len(rows.keys), k), -np.inf, np.float32),
            np.zeros(len(rows.keys), bool),
            int((~own).sum()) + len(np.unique(near[(near != NONE) & ~there])),
            np.zeros(len(rows.keys), bool),
        )
        cosines = np.where(near_now == NONE, -np.inf, _matrix(table[_COSINES], k))
        order = np.argsort(-cosines, axis=1, kind="stable")
        lists.places[place[own]] = np.take_along_axis(near_now, order, axis=1)[own]
        lists.cosines[place[own]] = np.take_along_axis(cosines, order, axis=1)[own]
        lists.known[place[own]] = True
        lists.lost[place[own]] = missing[own]
        return lists


def _matrix(column: pa.ChunkedArray, k: int) -> npt.NDArray[Any]:
    flat: npt.NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, k)


def _serves(record: Derived, options: GraphOptions, space_id: str) -> bool:
    about = record.about
    enough = bool(about["k"] >= options.k and about["space_id"] == space_id)
    if about["searched"] == ALL_ROWS:
        return enough
    return enough and not options.exact and bool(about["recall"] >= options.min_recall)


def _searched(
    rows: _Rows,
    vectors: npt.NDArray[np.float32],
    kept: _Lists | None,
    record: Derived | None,
    options: GraphOptions,
) -> tuple[NeighbourSearch, dict[str, Any]]:
    k = options.k if kept is None else kept.places.shape[1]
    search = NeighbourSearch(vectors, k, *rows.apart())
    if kept is not None and record is not None and kept.known.mean() >= 0.5:
        fine = kept.known & ~kept.lost
        search.places[fine], search.cosines[fine] = kept.places[fine], kept.cosines[fine]
        search.compare(np.flatnonzero(~kept.known), np.flatnonzero(kept.lost))
        searched = record.about["searched"]
        recall = Recall() if searched == ALL_ROWS else search.recall()
        if recall.value >= options.min_recall:
            return search, _about(k, searched, recall)
        search = NeighbourSearch(vectors, k, *rows.apart())
    exact = len(rows.keys) <= EXACT_ROWS if options.exact is None else options.exact
    if exact:
        search.compare(np.arange(len(rows.keys)))
        return search, _about(k, ALL_ROWS, Recall())
    return search, _about(k, LISTS, search.compare_by_lists(options.min_recall))


def _about(k: int, searched: str, recall: Recall) -> dict[str, Any]:
    return {"k": k, "searched": searched, "recall": recall.value, "sample": recall.sample}


def _keep(
    reader: Reader, rows: _Rows, lists: _Lists, about: dict[str, Any], options: GraphOptions
) -> None:
    """Keeps the graph; a collection that may only be read has it made anew each time."""
    k = lists.places.shape[1]
    near, cosines = (
        pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), kind), k)
        for flat, kind in ((lists.places, pa.int64()), (lists.cosines, pa.float32()))
    )
    table = rows.table().append_column(_GROUP, pa.array(rows.groups, pa.string()))
    table = table.append_column(_PLACES, near).append_column(_COSINES, cosines)
    try:
        replace_derived(reader, KIND, options.name, about, table)
    except StoreError as error:
        log.warning("the neighbours were found and could not be kept: %s", error)
        return
    _keep_nearest(reader, rows, lists, options)


def _keep_nearest(reader: Reader, rows: _Rows, lists: _Lists, options: GraphOptions) -> None:
    """Keeps the cosine to the nearest row as a derived column, unless it is there."""
    about = {MADE: _command(reader, options), "space": options.space, "groups": options.groups}
    near = np.where(lists.places[:, 0] == NONE, np.nan, lists.cosines[:, 0]).astype(np.float32)
    table = rows.table().append_column(VALUE, pa.array(near, from_pandas=True))  # NaN is null
    there = read_column(reader.path, COLUMN)
    if there is not None and there.about == about and there.table.equals(table):
        return
    try:
        keep_column(reader, COLUMN, about, table)
    except (StoreError, UsageError) as error:
        log.warning("the column %s could not be kept: %s", COLUMN, error)


def _command(reader: Reader, options: GraphOptions) -> str:
    words = ["penult", "neighbours", str(reader.path)]
    words += ["--space", options.space] if options.space != RAW else []
    words += ["--groups", options.groups] if options.groups else []
    return shlex.join(words)


def _shown(
    rows: _Rows,
    lists: _Lists,
    about: dict[str, Any],
    options: GraphOptions,
    new: Places,
    gone: int,
) -> Neighbours:
    facts = {name: about[name] for name in ("searched", "recall", "sample", "undirected")}
    made = GraphSummary(options.space, options.groups, new=len(new), gone=gone, **facts)
    places, cosines = lists.places[:, : options.k], lists.cosines[:, : options.k]
    cosines = np.where(places == NONE, np.float32(np.nan), cosines)
    return Neighbours(rows.keys, places, cosines, made)
