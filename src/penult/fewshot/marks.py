"""Marks of examples in a collection: read from its append-only table, changed by appending. Knows
no model.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.labels import TAKEN_BACK, groups_of, labelled, standing
from penult.collection.reader import append_labels
from penult.collection.schema import Key
from penult.data.regions import span_of, unpatched
from penult.errors import LabelsError
from penult.fewshot.examples import Examples, Marks
from penult.fewshot.mark_table import MARK, mark_in

SAMPLE = 50_000  # rows that a space is fitted to, or that serve as background
_AT_ONCE = 200  # ids in one query


def read_examples(collection: Collection, marks: Marks | None = None) -> tuple[Examples, list[Key]]:
    """(the marked rows with their vectors, the marked keys that are no rows any more). marks: those
    that stand; None reads them."""
    manifest = collection.manifest
    empty = Examples.empty(manifest.dim if manifest else 0)
    if marks is None:
        marks = standing(collection.reader)
    found = vectors_of(collection, list(marks))
    there = [key for key in marks if key in found]
    if not there:
        return empty, list(marks)
    vectors = np.stack([found[key] for key in there])
    examples = Examples(vectors, tuple(there), tuple(marks[key] for key in there))
    return examples, [key for key in marks if key not in found]


def vectors_of(collection: Collection, keys: Sequence[Key]) -> dict[Key, npt.NDArray[np.float32]]:
    """The raw vectors of these rows, and of the patches of these regions; without the keys that are
    no rows."""
    requested = set(keys)
    ids = list(dict.fromkeys(id for id, _ in keys))
    found: dict[Key, npt.NDArray[np.float32]] = {}
    for at in range(0, len(ids), _AT_ONCE):
        where = f"id IN ({schema.quoted(ids[at : at + _AT_ONCE])})"
        for batch in collection.reader.scan([*schema.KEY, "vector"], where):
            vectors = schema.matrix(batch.column("vector"))
            pairs = zip(batch["id"].to_pylist(), batch["region"].to_pylist(), strict=True)
            for key, vector in zip(pairs, vectors, strict=True):
                if key in requested or (key[0], unpatched(key[1])) in requested:
                    found[key] = vector.astype(np.float32)
    return found


def seconds_of(collection: Collection, keys: Sequence[Key]) -> dict[Key, float]:
    """The lengths of these rows in seconds, of those that have some."""
    requested, found = set(keys), dict[Key, float]()
    ids = list(dict.fromkeys(id for id, _ in keys))
    for at in range(0, len(ids), _AT_ONCE):
        where = f"id IN ({schema.quoted(ids[at : at + _AT_ONCE])})"
        for batch in collection.reader.scan([*schema.KEY, "start", "end"], where):
            for row in batch.to_pylist():
                key = row["id"], row["region"]
                if key in requested and None not in (row["start"], row["end"]):
                    found[key] = row["end"] - row["start"]
    return found


def write_changes(
    collection: Collection, before: Marks, after: Marks, source: str, who: str | None = None
) -> int:
    """Append the records that turn the marks `before` into those `after`; gives their number."""
    by = who or user()
    records: list[dict[str, Any]] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, {}), after.get(key, {})
        record = {"id": key[0], "region": key[1], "who": by}
        gone = [name for name in old if name not in new]
        records += [record | {"class": n, "mark": "unsure", "source": TAKEN_BACK} for n in gone]
        records += [record | {"class": name, "mark": mark, "source": source}
                    for name, mark in new.items() if old.get(name) != mark]  # fmt: skip
    append_labels(collection.reader, records)
    return len(records)


def named_rows(
    collection: Collection, by: str, where: str | None, mark: str | None = "yes"
) -> list[tuple[Key, str, str | None]]:
    """The rows that have a name, with it and its mark; see `penult.collection.labels.labelled`.
    mark: of all; None is what the column `mark` has, None where it is empty, and yes where there is
    no such column.

    Raises:
        LabelsError: a way that names nothing here, no row, or a cell that is no mark.
    """
    found = labelled(collection.reader, [by], where)
    named = [(key, name) for key, name in zip(found.row_keys, found.names[by], strict=True)
             if name is not None]  # fmt: skip
    if not named:
        raise LabelsError(f"no row of {collection.path} matches the filter")
    if mark is not None or MARK not in map(str.casefold, collection.reader.schema.names):
        return [(*one, mark or "yes") for one in named]
    cells = groups_of(collection.reader, [key for key, _ in named], MARK)
    return [(key, name, mark_in(cells[key], name, key[0])) for key, name in named]


def sample(
    collection: Collection, most: int = SAMPLE, without: Iterable[Key] = ()
) -> npt.NDArray[np.float32]:
    """(n, d) raw vectors of the rows, or of `most` of them, evenly by key, without rows that have
    values that are not finite. without: rows to leave out, with all annotations of their spans,
    which have the same vector."""
    every = max(1, -(-collection.count // most))
    left_out, parts = {(id, span_of(region)) for id, region in without}, []
    for batch in collection.reader.ordered([*schema.KEY, "vector"], every=every):
        vectors = schema.matrix(batch.column("vector"))
        keys = zip(batch["id"].to_pylist(), batch["region"].to_pylist(), strict=True)
        kept = [(id, span_of(region)) not in left_out for id, region in keys]
        kept_rows = vectors[np.array(kept, bool)].astype(np.float32)
        parts.append(kept_rows[np.isfinite(kept_rows).all(axis=1)])
    dim = collection.manifest.dim if collection.manifest else 0
    return np.concatenate([np.zeros((0, dim), np.float32), *parts])


def user() -> str:
    """The name of the account, for the author of marks."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name
        return "unknown"
