"""Clusters of a collection's rows: worked out, kept beside the rows, and given again as names.

Knows a collection; no row is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penult.errors import LabelsError, UsageError
from penult.ingesting import rows
from penult.space import RAW
from penult.store import placed, spaces
from penult.store.labelled import PREDICTED, labelled
from penult.uses import clusters
from penult.uses.clusters import Agreement, Clustering, How

if TYPE_CHECKING:
    from penult.store.collection import Collection


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

    def table(self) -> pa.Table:
        """For each row its id, region, cluster (−1 is noise), the cluster's name, and its cosine
        to the middle of it."""
        numbers = self.clustering.numbers.tolist()
        called = [None if n < 0 else self.clustering.clusters[n].name for n in numbers]
        table = self.keys.append_column("cluster", pa.array(numbers, pa.int32()))
        table = table.append_column("name", pa.array(called, pa.string()))
        return table.append_column("central", pa.array(self.clustering.central, from_pandas=True))


def find_clusters(
    collection: Collection,
    how: How,
    space: str = RAW,
    where: str | None = None,
    by: str | None = None,
) -> Clustered:
    """Clusters the rows that a filter leaves, in a space, and compares them with their names `by`
    something, as `penult.store.labelled.labelled` takes it.

    Raises:
        UsageError: no rows, or too few for what was asked.
    """
    found = labelled(collection, [PREDICTED, *([by] if by else [])], where)
    if not len(found.keys):
        what = f"no row of {collection.path} matches {where!r}" if where else "it has no rows"
        raise UsageError(f"there is nothing to cluster in {collection.path}: {what}")
    vectors = spaces.ready(collection, space)[0](found.vectors)
    ids: list[str] = found.keys["id"].to_pylist()
    clustering = clusters.cluster(vectors, how, found.names[PREDICTED], ids)
    names = found.names[by] if by else None
    agreement = clusters.agreement(clustering.numbers, names) if names else None
    return Clustered(found.keys, clustering, space, where, by, names, agreement)


def keep(collection: Collection, made: Clustered, name: str | None = None) -> str:
    """Keeps a clustering beside the rows, under a name, else its method's; the newest of a name
    counts. Gives the name."""
    name = name or made.clustering.how.method
    about: dict[str, Any] = {
        "how": asdict(made.clustering.how),
        "space": made.space,
        "where": made.where,
        "stability": made.clustering.stability,
        "clusters": [asdict(one) for one in made.clustering.clusters],
        "noise": made.clustering.noise,
    }
    placed.keep(collection, "clusters", name, about, made.table())
    return name


def cluster_names(
    collection: Collection, way: str, keys: Sequence[tuple[str, str]]
) -> list[str | None]:
    """The name of each row's cluster by the clustering `cluster` (the newest) or `cluster:NAME`;
    None for noise, and for a row that was not there.

    Raises:
        LabelsError: there is no such clustering.
    """
    _, _, name = way.partition(":")
    found = placed.kept(collection, "clusters", name or None)
    if found is None:
        called = f" called {name!r}" if name else ""
        raise LabelsError(
            f"{collection.path} has no clusters{called} yet; "
            f"penult cluster {collection.path} finds and keeps them"
        )
    names = dict(zip(rows.keys(found.table), found.table["name"].to_pylist(), strict=True))
    return [names.get(key) for key in keys]
