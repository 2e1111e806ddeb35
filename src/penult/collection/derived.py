"""Derived per-row values (cluster ids, map coordinates) in a side table, one record per
computation.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.analysis import clustering as clusters
from penult.analysis import projection
from penult.analysis.clustering import Agreement, Clustering, ClusterOptions
from penult.analysis.space import RAW
from penult.collection import columns, schema, spaces
from penult.collection.labels import PREDICTED, labelled, names_of
from penult.collection.reader import (
    Reader,
    keep_derived,
    newest_records,
    read_derived,
    replace_derived,
)
from penult.collection.schema import Key
from penult.errors import StoreError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clustered:
    """A clustering of the rows `keys` (their id and region, in key order). names: what the rows
    are called by what was asked for; agreement: how far the clusters agree with it."""

    keys: pa.Table
    clustering: Clustering
    space: str
    where: str | None
    by: str | None = None
    names: list[str | None] | None = None
    agreement: Agreement | None = None

    def row_name(self, row: int) -> str:
        """The id of a row, and its region where that is not the whole item."""
        id, region = (self.keys[name][row].as_py() for name in ("id", "region"))
        return id if region == "whole" else f"{id} {region}"

    def majorities(self) -> list[tuple[str, float] | None]:
        """The most frequent class of each cluster by `names`, with the share of named rows; None
        where no row has a name."""
        counts: list[Counter[str]] = [Counter() for _ in self.clustering.clusters]
        for number, name in zip(self.clustering.numbers.tolist(), self.names or [], strict=False):
            if number >= 0 and name is not None:
                counts[number][name] += 1
        most = [count.most_common(1) for count in counts]
        return [
            (top[0][0], top[0][1] / count.total()) if top else None
            for top, count in zip(most, counts, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult cluster --json` prints it; medoids are names of rows."""
        found = self.clustering.to_dict()
        clusters, notes = found.pop("clusters"), found.pop("notes")
        for one in clusters:
            one["medoids"] = [self.row_name(row) for row in one["medoids"]]
        agreement = self.agreement.to_dict() if self.agreement else None
        return {
            **found,
            "by": self.by,
            "agreement": agreement,
            "clusters": clusters,
            "notes": notes,
        }

    def table(self) -> pa.Table:
        """For each row its id, region, cluster (−1 is noise), the cluster's name, and its cosine
        to the middle of it."""
        numbers = self.clustering.numbers.tolist()
        called = [None if n < 0 else self.clustering.clusters[n].name for n in numbers]
        table = self.keys.append_column("cluster", pa.array(numbers, pa.int32()))
        table = table.append_column("name", pa.array(called, pa.string()))
        return table.append_column("central", pa.array(self.clustering.central, from_pandas=True))


def find_clusters(
    reader: Reader,
    options: ClusterOptions,
    space: str = RAW,
    where: str | None = None,
    by: str | None = None,
) -> Clustered:
    """Clusters the rows that a filter leaves, in a space, and compares them with their names `by`
    something, as `penult.collection.labels.labelled` takes it.

    Raises:
        UsageError: no rows, or too few for what was asked.
    """
    found = labelled(reader, [PREDICTED, *([by] if by else [])], where)
    if not len(found.keys):
        what = f"no row of {reader.path} matches {where!r}" if where else "it has no rows"
        raise UsageError(f"there is nothing to cluster in {reader.path}: {what}")
    vectors = spaces.ready(reader, space)[0](found.vectors)
    ids: list[str] = found.keys["id"].to_pylist()
    clustering = clusters.cluster(vectors, options, found.names[PREDICTED], ids)
    names = found.names[by] if by else None
    agreement = clusters.agreement(clustering.numbers, names) if names else None
    return Clustered(found.keys, clustering, space, where, by, names, agreement)


def keep_clusters(reader: Reader, made: Clustered, name: str | None = None) -> str:
    """Keeps a clustering beside the rows, under a name, else its method's; the newest of a name
    counts. Gives the name."""
    name = name or made.clustering.options.method
    about: dict[str, Any] = {
        "how": asdict(made.clustering.options),
        "space": made.space,
        "where": made.where,
        "stability": made.clustering.stability,
        "clusters": [asdict(one) for one in made.clustering.clusters],
        "noise": made.clustering.noise,
    }
    keep_derived(reader, "clusters", name, about, made.table())
    return name


@dataclass(frozen=True, slots=True)
class KeptClustering:
    """A clustering that is kept, without its rows. clusters: number, size, name and more."""

    name: str
    clusters: list[dict[str, Any]]


def clusterings(reader: Reader) -> list[KeptClustering]:
    """The clusterings that are kept, of each name the newest, the newest first."""
    found = newest_records(reader, "clusters")
    return [
        KeptClustering(name, schema.derived_about(reader.path, row["about"])["clusters"])
        for name, row in reversed(found.items())
    ]


def rename_cluster(reader: Reader, clustering: str, number: int, name: str) -> None:
    """Gives one cluster another name, in a new version of its clustering.

    Raises:
        UsageError: there is no such cluster, or a name that is empty.
    """
    found = read_derived(reader, "clusters", clustering)
    clusters = [] if found is None else found.about["clusters"]
    one = next((one for one in clusters if one["number"] == number), None)
    if found is None or one is None or not name.strip():
        what = "a name that is empty" if one else f"no cluster {number} of {clustering!r}"
        raise UsageError(f"{what}: a cluster that is kept, and a new name, are needed")
    one["name"] = name
    table = found.table
    inside = pc.equal(table["cluster"], number)
    names = pc.if_else(inside, pa.scalar(name, pa.string()), table["name"])
    place = table.schema.get_field_index("name")
    keep_derived(
        reader, "clusters", clustering, found.about, table.set_column(place, "name", names)
    )


def check_name(reader: Reader, name: str) -> None:
    """Refuse a derived column that would stand behind one of the rows.

    Raises:
        UsageError: the rows have a column of this name already.
    """
    if name.lower() in (one.lower() for one in reader.schema.names):
        raise UsageError(
            f"the rows of {reader.path} have a column {name!r} of their own; a derived column "
            "needs another name"
        )


def keep_column(reader: Reader, name: str, about: Mapping[str, Any], table: pa.Table) -> None:
    """Keeps a derived column in place of the one of this name, as `penult.collection.columns` has
    it. table: all rows that there are, with `id`, `region`, `run_id`, `row` and `value`; `value` is
    null where a row has none.

    Raises:
        UsageError: the rows have a column of this name already.
    """
    check_name(reader, name)
    replace_derived(reader, columns.KIND, columns.record_name(name), about, table)


def keep_values(
    reader: Reader,
    about: Mapping[str, Any],
    values: Mapping[str, tuple[pa.DataType, Mapping[Key, Any]]],
) -> bool:
    """Keeps values of some rows as derived columns: for each column its type, and its values by the
    (id, region) of rows. False where one could not be kept, which is told: by then it was long
    computed, and is shown all the same."""
    table = pa.Table.from_batches(list(reader.ordered([*schema.KEY, columns.VERSION])))
    table = table.append_column(columns.ROW, pa.array(np.arange(len(table)), pa.int64()))
    keys = schema.keys(table)
    for name, (kind, found) in values.items():
        column = pa.array([found.get(key) for key in keys], kind)
        try:
            keep_column(reader, name, about, table.append_column(columns.VALUE, column))
        except (StoreError, UsageError) as error:
            log.warning("the column %s could not be kept: %s", name, error)
            return False
    return True


_HIDDEN = ("content_hash", "size", "mtime_ns", "run_id", "truncated")


@dataclass(frozen=True, slots=True)
class Map:
    """rows: their scalar columns, in key order. points: (n, 2). names: what each row is called by
    what was asked for. matching: the rows that there are, of which more than enough were drawn.
    kept: the map was there already."""

    rows: pa.Table
    points: npt.NDArray[np.float32]
    names: list[str | None]
    by: str
    method: str
    space: str
    matching: int
    kept: bool


def make_map(
    reader: Reader,
    by: str = PREDICTED,
    method: str | None = None,
    space: str = RAW,
    where: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Map:
    """Places the rows that a filter leaves on a plane and names them `by` what
    `penult.collection.labels.labelled` takes. Of more than `most` rows so many are drawn by chance.

    The coordinates are kept in the collection; the same map of the same rows is not made twice.

    Raises:
        UsageError: no rows, or an unknown method. LabelsError: `by` names nothing here.
    """
    matching = reader.count_rows(where)
    if not matching:
        what = f"no row of {reader.path} matches {where!r}" if where else "it has no rows"
        raise UsageError(f"there is nothing to draw of {reader.path}: {what}")
    chosen = method or projection.method_for(min(matching, most or matching))
    if chosen not in projection.MOST:
        raise UsageError(f"method {chosen!r} is not known; {', '.join(projection.MOST)} work")
    if most is not None and most < 1:
        raise UsageError(f"a map of {most} rows cannot be drawn; one or more can")
    every = schema.scalar_columns(columns.wider(reader.path, reader.schema))
    own = [name for name in every if name not in _HIDDEN]
    limit = most or projection.MOST[chosen]
    table, vectors = reader.vectors(where, own, most=limit, seed=seed)
    names = names_of(reader, table, by)
    used = spaces.ready(reader, space)[0]
    about = {"method": chosen, "space": used.id, "seed": seed, "dim": 2, "rows": _digest(vectors)}
    points = _read_map(reader, about, table)
    if points is None:
        found = projection.project(used(vectors), seed, chosen)
        _keep_map(reader, about, table, found)
        return Map(table, found, names, by, chosen, space, matching, False)
    return Map(table, points, names, by, chosen, space, matching, True)


def _digest(vectors: npt.NDArray[np.float32]) -> str:

    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:16]


def _map_name(about: dict[str, Any]) -> str:
    return ":".join(str(about[part]) for part in ("method", "space", "seed", "rows"))


def _read_map(
    reader: Reader, about: dict[str, Any], table: pa.Table
) -> npt.NDArray[np.float32] | None:
    """The coordinates, if this map of these very rows was made before."""
    found = read_derived(reader, "maps", _map_name(about))
    if found is None or schema.keys(found.table) != schema.keys(table):
        return None
    return np.stack([found.table[name].to_numpy() for name in ("x", "y")], axis=1)


def _keep_map(
    reader: Reader,
    about: dict[str, Any],
    table: pa.Table,
    points: npt.NDArray[np.float32],
) -> None:
    values = table.select(list(schema.KEY))
    for place, name in enumerate(("x", "y")):
        values = values.append_column(name, pa.array(points[:, place]))
    try:
        keep_derived(reader, "maps", _map_name(about), about, values)
    except StoreError:  # a collection that may only be read has its map made anew each time
        return
