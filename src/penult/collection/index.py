"""An approximate index over a collection's vectors: made only with a measured recall.

Inverted lists of scalar-quantised vectors (IVF_SQ), asked for more rows than are wanted, whose
exact distances then decide. Rows written since are compared one by one, so none is ever missed
for being new. See docs/benchmarks.md for what was measured.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from penult.analysis.space import RAW, Space, unit
from penult.collection import lance, schema
from penult.collection.access import locked
from penult.collection.journal import Journal
from penult.collection.manifest import now, store_errors, write_aside
from penult.collection.spaces import space_of
from penult.data import documents
from penult.errors import CollectionError, IndexRefused, SpaceError, UsageError

if TYPE_CHECKING:
    from penult.collection.reader import Reader
from penult.collection.schema import Key

log = logging.getLogger(__name__)
NAME = "vectors"
ABOUT = "index.json"  # there as long as the index may be used: written after it was measured
MIN_ROWS = 1000
PROBES = 20  # lists that are looked into; more where a filter leaves few rows
REFINE = 4  # times as many rows as are wanted have their exact distances computed
K = 10
_SAMPLE = 100
_BATCH = 8192
_LOOK = ("id", "region", "vector")
Matrix = npt.NDArray[np.float32]


class Neighbour(Protocol):
    """A row that a search found."""

    @property
    def id(self) -> str:
        """The id of its item."""

    @property
    def region(self) -> str:
        """The key of its region."""

    @property
    def similarity(self) -> float:
        """The cosine to the query."""


# (d,) raw, k, a space → the k rows nearest in it by the index
Find = Callable[[Matrix, int, Space], Sequence[Neighbour]]


@dataclass(frozen=True, slots=True)
class SpaceRecall:
    """What the index of raw vectors finds of the ten nearest rows in a space. used: it is enough;
    without it all rows are compared."""

    name: str
    id: str
    recall: float
    milliseconds: float
    used: bool


@dataclass(frozen=True, slots=True)
class Index:
    """What an index is: measured on `sample` of the collection's own vectors against all rows."""

    kind: str
    metric: str
    rows: int
    recall: float  # of the ten nearest other rows
    sample: int
    milliseconds: float  # of a search, median
    seconds: float  # to build
    created: str
    since: int = 0  # rows written since, which are compared one by one
    spaces: tuple[SpaceRecall, ...] = ()  # those that there were

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document."""
        return asdict(self)


def is_ready(path: Path) -> bool:
    """Whether there is an index that was measured and not refused."""
    return (path / ABOUT).exists()


def read(reader: Reader) -> Index | None:
    """The index of a reader, and how many rows it does not have yet.

    Raises:
        CollectionError: its description is damaged.
    """
    if not is_ready(reader.path):
        return None
    table = lance.open_table(reader.path, lance.ITEMS)
    with store_errors(reader.path):
        state = table.index_stats(NAME) if table is not None else None
    about = _described(reader.path)
    return replace(about, since=state.num_unindexed_rows) if state else None


def serves(path: Path, space_id: str) -> bool:
    """Whether the index was measured in this space, and finds enough of its nearest rows."""
    if not is_ready(path):
        return False
    return any(one.id == space_id and one.used for one in _described(path).spaces)


def _described(path: Path) -> Index:
    with store_errors(path):
        content = (path / ABOUT).read_bytes()
    try:
        return documents.parse(content, Index)
    except ValueError as error:
        raise CollectionError(
            f"{path / ABOUT} is damaged: {error}; penult index {path} makes it anew"
        ) from error


def asked(builder: Any, probes: int) -> Any:
    """A query that looks into so many lists of the index; into none: that compares all rows."""
    if not probes:
        return builder.bypass_vector_index()
    return builder.nprobes(probes).refine_factor(REFINE)


def probes(count: int, matching: int) -> int:
    """Into how many lists to look where a filter leaves `matching` of `count` rows: the fewer, the
    further away the nearest of them may lie."""
    return min(_lists(count), math.ceil(PROBES * count / max(1, matching)))


def more_probes(count: int, matching: int) -> Iterator[int]:
    """`probes`, then twice as many each time up to all lists: for a search that has to find a
    number of rows, which lists of unequal length hold or do not."""
    lists, now = _lists(count), probes(count, matching)
    while now < lists:
        yield now
        now = min(2 * now, lists)
    yield lists


def _lists(count: int) -> int:
    return max(1, round(math.sqrt(count)))


def build(
    reader: Reader,
    find: Find,
    min_recall: float = 0.95,
    sample: int = _SAMPLE,
    wait: bool = False,
) -> Index:
    """Builds the index anew, measures it and describes it. find: a search by it.

    Raises:
        UsageError: too few rows, or a recall that is none.
        IndexRefused: its recall is lower; there is no index then.
        CollectionLocked: another process writes.
    """
    if not 0 <= min_recall <= 1:
        raise UsageError(f"a recall of {min_recall:g} cannot be; it lies between 0 and 1")
    path, count = reader.path, reader.count_rows()
    if count < MIN_ROWS:
        raise UsageError(
            f"{path} has {count} rows: comparing all of them takes a few ms, and an index needs at "
            f"least {MIN_ROWS}"
        )
    with locked(path, "penult index", wait):
        drop_now(path)
        seconds = _create(path, count)
        try:
            raw = Space(RAW, reader.require_manifest().dim)
            recall, milliseconds, used = measured(reader, find, sample, raw)
            if recall < min_recall:
                raise IndexRefused(
                    f"the index of {path} finds {recall:.3f} of the {K} nearest rows, less than "
                    f"{min_recall:g}: it was dropped, and searches stay exact. --min-recall "
                    f"{math.floor(recall * 100) / 100:g} accepts it"
                )
            spaces = tuple(_measured_in_spaces(reader, find, min_recall, sample))
        except BaseException:
            drop_now(path)
            raise
        made = now().isoformat("T", "seconds")
        index = Index(
            "IVF_SQ", "cosine", count, recall, used, milliseconds, seconds, made, spaces=spaces
        )
        write_aside(path / ABOUT, json.dumps(index.to_dict(), indent=1))
    return index


def drop(reader: Reader, wait: bool = False) -> bool:
    """Removes the index; gives whether there was one.

    Raises:
        CollectionError: there is no collection. CollectionLocked: another process writes.
    """
    if reader.manifest is None:
        raise CollectionError(f"there is no collection at {reader.path}")
    with locked(reader.path, "penult index --drop", wait):
        return drop_now(reader.path)


def _create(path: Path, count: int) -> float:
    from lancedb.index import IvfSq

    table = lance.open_table(path, lance.ITEMS)
    assert table is not None
    lists = _lists(count)
    config = IvfSq(distance_type="cosine", num_partitions=lists, max_iterations=20, sample_rate=64)
    began = time.perf_counter()
    with store_errors(path):
        table.create_index("vector", config=config, name=NAME, replace=True)
        Journal(path).sync(lance.ITEMS)
    return time.perf_counter() - began


def drop_now(path: Path) -> bool:
    """As `drop`, by the one who holds the lock."""
    with store_errors(path):
        (path / ABOUT).unlink(missing_ok=True)
        table = lance.open_table(path, lance.ITEMS)
        there = table is not None and NAME in [index.name for index in table.list_indices()]
        if table is not None and there:
            table.drop_index(NAME)
            Journal(path).sync(lance.ITEMS)
    return there


def _measured_in_spaces(
    reader: Reader, find: Find, min_recall: float, sample: int
) -> Iterator[SpaceRecall]:
    for name in dict.fromkeys(reader.side_table("spaces")["name"].to_pylist()):
        try:
            space = space_of(reader, name)
            if space.dim != reader.require_manifest().dim or space.is_raw:
                continue
        except SpaceError as error:
            log.warning("%s", error)
            continue
        recall, milliseconds, _ = measured(reader, find, sample, space)
        yield SpaceRecall(name, space.id, recall, milliseconds, recall >= min_recall)


def measured(reader: Reader, find: Find, sample: int, space: Space) -> tuple[float, float, int]:
    """Recall of the ten nearest rows besides the row itself, over rows drawn by chance; median
    milliseconds of a search; how many were asked. An equally near row is as good."""
    keys, queries = _drawn(reader, sample, space)
    needed = _tenth(reader, keys, queries, space)
    found, times = [], []
    for key, query, least in zip(keys, queries, needed, strict=True):
        began = time.perf_counter()
        hits = find(query, K + 1, space)
        times.append(time.perf_counter() - began)
        others = [hit.similarity for hit in hits if (hit.id, hit.region) != key][:K]
        found.append(sum(similarity >= least - 1e-5 for similarity in others) / K)
    return statistics.fmean(found), statistics.median(times) * 1e3, len(keys)


def _drawn(reader: Reader, sample: int, space: Space) -> tuple[list[Key], Matrix]:
    table = lance.open_table(reader.path, lance.ITEMS)
    assert table is not None
    with store_errors(reader.path):
        count = table.count_rows()
        places = np.random.default_rng(0).choice(count, min(2 * sample, count), replace=False)
        found = table.take_offsets(sorted(places.tolist())).select(list(_LOOK)).to_arrow()
    vectors = schema.matrix(found["vector"])
    some = np.flatnonzero(np.linalg.norm(space(vectors), axis=1) > 0)[:sample]
    keys = schema.keys(found)
    return [keys[place] for place in some], vectors[some]


def _tenth(reader: Reader, keys: list[Key], queries: Matrix, space: Space) -> Matrix:
    """The cosine of each query's tenth nearest row in a space, itself left out; all rows are
    compared."""
    units = unit(space(queries))
    own = {key: place for place, key in enumerate(keys)}
    best = np.full((len(keys), K), -np.inf, np.float32)
    for batch, raw in _vectors(reader):
        vectors = space(raw)
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = units @ (vectors / np.where(lengths > 0, lengths, 1)[:, None]).T
        cosines[:, lengths == 0] = -np.inf
        for row, key in enumerate(schema.keys(batch)):
            if key in own:
                cosines[own[key], row] = -np.inf
        both = np.concatenate([best, cosines], axis=1)
        best = -np.partition(-both, K - 1, axis=1)[:, :K]
    tenth: Matrix = best.min(axis=1)
    return tenth


def _vectors(reader: Reader) -> Iterator[tuple[Any, Matrix]]:
    for batch in reader.scan(_LOOK, batch_size=_BATCH):
        yield batch, schema.matrix(batch.column("vector"))
