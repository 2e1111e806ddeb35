"""A collection's vectors with a name for each row: its class or its group. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.collection import columns as derived
from penult.collection import schema
from penult.collection.reader import Reader, read_derived
from penult.collection.schema import Key
from penult.collection.schema import keys as keys_of
from penult.data.items import namer
from penult.data.regions import span_of
from penult.errors import LabelsError

MARKED = "labels"  # the marks that were given in the collection
PREDICTED = "label"  # the classifier's own label
CLUSTER = "cluster"  # of the clusters kept last; cluster:NAME of those kept under a name
TAKEN_BACK = "taken back"  # the source of a mark that undoes the one before it


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows in key order. keys: a table of their `id` and `region`. vectors: (n, d) float32, raw.
    names: for each way of naming that was asked for, one name a row, None where it has none."""

    keys: pa.Table
    vectors: npt.NDArray[np.float32]
    names: dict[str, list[str | None]]

    @property
    def row_keys(self) -> list[Key]:
        """The (id, region) of each row."""
        return keys_of(self.keys)


def labelled(reader: Reader, by: Sequence[str], where: str | None = None) -> Labelled:
    """The rows that a filter leaves, named in each of these ways.

    by: what `penult.data.items.namer` takes (a metadata column, `folder`, a pattern of the path) or
    `labels` (the marks given in the collection, the last yes for each row), `label` (the
    classifier's own) or, where no column is called so, `cluster` (of the clusters that were kept
    last) or `cluster:NAME`.

    Raises:
        LabelsError: a way that names nothing here; only the classifier itself may have no label.
    """
    columns = schema.scalar_columns(derived.wider(reader.path, reader.schema, by))
    table, vectors = reader.vectors(where, columns)
    names = {way: names_of(reader, table, way) for way in by}
    return Labelled(table.select(["id", "region"]), vectors, names)


def names_of(reader: Reader, table: pa.Table, way: str) -> list[str | None]:
    """What these rows (all scalar columns of them) are called in one way, as `labelled` has it.

    Raises:
        LabelsError: it names none of them; only the classifier itself may have no label.
    """
    rows = table.to_pylist()
    if way == PREDICTED:
        return [row["label"] for row in rows]
    if way == MARKED:
        marks = marked(reader)
        names = [marks.get((row["id"], row["region"])) for row in rows]
    elif way not in table.column_names and way.partition(":")[0] == CLUSTER:
        names = cluster_names(reader, way, keys_of(table))
    else:
        name = namer(way, table.column_names)
        names = [name(row["id"], row) for row in rows]
    if rows and not any(names):
        raise LabelsError(f"no row of {reader.path} has a name by {way!r}")
    return names


def cluster_names(reader: Reader, way: str, keys: Sequence[Key]) -> list[str | None]:
    """The name of each row's cluster by the clustering `cluster` (the newest) or `cluster:NAME`;
    None for noise, and for a row that was not there.

    Raises:
        LabelsError: there is no such clustering.
    """
    _, _, name = way.partition(":")
    found = read_derived(reader, "clusters", name or None)
    if found is None:
        called = f" called {name!r}" if name else ""
        raise LabelsError(
            f"{reader.path} has no clusters{called} yet; "
            f"penult cluster {reader.path} finds and keeps them"
        )
    names = dict(zip(keys_of(found.table), found.table["name"].to_pylist(), strict=True))
    return [names.get(key) for key in keys]


def marked(reader: Reader) -> dict[Key, str]:
    """The class of each marked row: of its marks with the same class the last one counts, and of
    its classes that are marked yes the one marked last."""
    yes = {
        key: [name for name, mark in classes.items() if mark == "yes"]
        for key, classes in standing(reader).items()
    }
    return {key: names[-1] for key, names in yes.items() if names}


def standing(reader: Reader) -> dict[Key, dict[str, str]]:
    """The marks that count, by row and class, the last one last. Nothing is ever taken out of the
    table: a mark whose source is TAKEN_BACK undoes those before it."""
    found: dict[Key, dict[str, str]] = {}
    for row in reader.side_table("labels").to_pylist():
        classes = found.setdefault((row["id"], row["region"]), {})
        classes.pop(row["class"], None)  # so that the last mark stands last
        if row["source"] != TAKEN_BACK:
            classes[row["class"]] = row["mark"]
    return {key: classes for key, classes in found.items() if classes}


def span_groups(keys: Sequence[Key]) -> list[str | None] | None:
    """A group for each span, where there are several annotations of one: its vector must not stand
    on both sides of a split. None where every row is a span of its own."""
    if not any("#" in region for _, region in keys):
        return None
    return [f"{id} {span_of(region)}" for id, region in keys]


_ASKED = 200  # ids in one question


def groups_of(reader: Reader, keys: Sequence[Key], by: str) -> dict[Key, str | None]:
    """The group of these rows; see `penult.data.items.namer`."""
    columns = schema.scalar_columns(derived.wider(reader.path, reader.schema, [by]))
    name_of = namer(by, columns)
    ids = list(dict.fromkeys(id for id, _ in keys))
    found: dict[Key, str | None] = {}
    for at in range(0, len(ids), _ASKED):
        where = f"id IN ({schema.quoted(ids[at : at + _ASKED])})"
        for batch in reader.scan(columns, where):
            found |= {(r["id"], r["region"]): name_of(r["id"], r) for r in batch.to_pylist()}
    return {key: found.get(key) for key in keys}
