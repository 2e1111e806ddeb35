"""Doubles between two collections of one embedder, such as a new delivery and an archive: rows of
the first with the same content as rows of the other, or nearly the same by their vectors.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.neighbour_graph import NONE, nearest_between
from penult.analysis.space import RAW
from penult.collection import schema, spaces
from penult.collection.columns import MADE
from penult.collection.derived import check_name, keep_values
from penult.collection.duplicates import (
    NEAR,
    SAME,
    MeasuredThreshold,
    NearestElsewhere,
    check_threshold,
    measure_threshold,
)
from penult.collection.manifest import require_one_embedder
from penult.collection.neighbours import GraphOptions, find_neighbours
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder

COLUMN = "duplicate_in_other"  # the derived column: the row of the other collection
_COLUMNS = (*schema.KEY, "content_hash")


@dataclass(frozen=True, slots=True)
class SharedItems:
    """An item of the other collection, which is kept, and the items of the first that are doubles
    of it. kind: `same content`, or `nearly the same`. similarity: the least to the one that is
    kept. parts: how many rows of an item, such as windows, are doubles."""

    kept: str
    ids: list[str]
    kind: str
    similarity: float
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a collection that another one has. paths: of both. rows: of each. doubles: rows of
    the first with a double in the other, by key, and that row's key. parted: rows of the first
    whose file the other has in other parts, such as windows of another length. kept: as a derived
    column too."""

    paths: tuple[str, str]
    rows: tuple[int, int]
    doubles: dict[Key, Key]
    groups: list[SharedItems]
    threshold: MeasuredThreshold | None
    parted: int
    kept: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult duplicates C OTHER --json` prints it; in a group the one that is
        kept is the first, and of the other collection."""
        return {
            "rows": self.rows[0],
            "other_rows": self.rows[1],
            "doubles": len(self.doubles),
            "groups": [[one.kept, *one.ids] for one in self.groups],
            "details": [
                {
                    "rows": [
                        {"collection": self.paths[1 if not place else 0], "id": id}
                        for place, id in enumerate([one.kept, *one.ids])
                    ],
                    "kind": one.kind,
                    "similarity": one.similarity,
                    "parts": one.parts,
                }
                for one in self.groups
            ],
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "parted": self.parted,
        }

    def table(self) -> pa.Table:
        """One line for each item of a group: group, collection, id, kept, kind, similarity,
        parts."""
        lines = [
            {"group": number, "collection": self.paths[1 if not place else 0], "id": id,
             "kept": not place, "kind": one.kind, "similarity": one.similarity, "parts": one.parts}
            for number, one in enumerate(self.groups, 1)
            for place, id in enumerate([one.kept, *one.ids])
        ]  # fmt: skip
        kinds = {"group": pa.int64(), "collection": pa.string(), "id": pa.string(),
                 "kept": pa.bool_(), "kind": pa.string(), "similarity": pa.float64(),
                 "parts": pa.int64()}  # fmt: skip
        return pa.Table.from_pylist(lines, schema=pa.schema(kinds))


def find_overlap(
    reader: Reader,
    other: Reader,
    opener: Callable[[], Embedder],
    *,
    threshold: float | None = None,
    near: bool = True,
    space: str = RAW,
) -> Overlap:
    """Rows of a collection that are doubles of rows of another one: the same file by its hash and
    the same region, or the nearest row with a cosine of at least the threshold. The name of that
    row is kept as the derived column `duplicate_in_other`; the other collection is only read.

    Other parts of one file, by its hash, are no doubles. The space is that of the first collection.
    opener: gives the embedder, where the threshold is measured (None), on items of the first and
    their nearest ones in both. near: also by vectors.

    Raises:
        UsageError: one collection twice, no rows, a threshold that cannot be, items that cannot be
            re-encoded, or rows with a column `duplicate_in_other` of their own.
        FingerprintMismatch: collections of two embedders.
    """
    check_threshold(threshold)
    _check(reader, other)
    if near:
        fitted = spaces.ready(reader, space)[0]
        one, vectors = reader.vectors(columns=_COLUMNS)
        two, others = other.vectors(columns=_COLUMNS)
        vectors, others = fitted(vectors), fitted(others)
    else:
        one, two = (pa.Table.from_batches(list(r.ordered(_COLUMNS))) for r in (reader, other))
    keys, theirs = schema.keys(one), schema.keys(two)
    places, files = _by_content(one, two)
    parted = int(((places == NONE) & np.isin(files[0], files[1])).sum())
    similarity = np.where(places != NONE, 1.0, np.nan)
    measured = None
    if near:
        nearest, cosines = nearest_between(vectors, others, files)
        measured = MeasuredThreshold(threshold) if threshold is not None else measure_threshold(
            reader, opener(), find_neighbours(reader, GraphOptions(space=space, groups="id")),
            space, NearestElsewhere(other, {
                key: (theirs[place], float(cosine))
                for key, place, cosine in zip(keys, nearest.tolist(), cosines, strict=True)
                if place != NONE
            }),
        )  # fmt: skip
        close = (places == NONE) & (np.nan_to_num(cosines, nan=-2.0) >= measured.value)
        places, similarity = (
            np.where(close, nearest, places), np.where(close, cosines, similarity)
        )  # fmt: skip
    doubles = {keys[row]: theirs[places[row]] for row in np.flatnonzero(places != NONE)}
    kept = _keep(reader, other, doubles, measured, space)
    groups = _groups(keys, theirs, places, similarity, _same(one, two, places))
    return Overlap((str(reader.path), str(other.path)), (len(keys), len(theirs)), doubles, groups,
                   measured, parted, kept)  # fmt: skip


def _check(reader: Reader, other: Reader) -> None:
    if reader.path.resolve() == other.path.resolve():
        raise UsageError(
            f"{reader.path} was given twice; penult duplicates {reader.path} compares its own rows"
        )
    ours, theirs = reader.require_manifest(), other.require_manifest()
    require_one_embedder(reader.path, ours, other.path, theirs)
    for one in (reader, other):
        if not one.count_rows():
            raise UsageError(f"{one.path} has no rows yet, and so no doubles")
    check_name(reader, COLUMN)


def _by_content(
    one: pa.Table, two: pa.Table
) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each row the place of the row with the same content in the other table, of several the
    first; NONE where there is none. And numbers of the files of both, one for equal content."""
    contents = [table["content_hash"].to_pylist() for table in (one, two)]
    first: dict[tuple[str, str], int] = {}
    for place, (content, (_, region)) in enumerate(zip(contents[1], schema.keys(two), strict=True)):
        if content is not None:
            first.setdefault((content, region), place)
    own = zip(contents[0], schema.keys(one), strict=True)
    places = [first.get((content, region), NONE) for content, (_, region) in own]
    number = {content: at for at, content in enumerate(dict.fromkeys([*contents[0], *contents[1]]))}
    files = [np.array([number[content] if content is not None else -1 - at - side * len(one)
                       for at, content in enumerate(contents[side])], np.int64)
             for side in (0, 1)]  # fmt: skip
    return np.array(places, np.int64), (files[0], files[1])


def _same(one: pa.Table, two: pa.Table, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(n,) whether a row's double is of the same content."""
    own, theirs = (table["content_hash"].to_pylist() for table in (one, two))
    return np.array([place != NONE and own[at] is not None and own[at] == theirs[place]
                     for at, place in enumerate(places.tolist())], bool)  # fmt: skip


def _groups(
    keys: list[Key],
    theirs: list[Key],
    places: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float64],
    same: npt.NDArray[np.bool_],
) -> list[SharedItems]:
    """One for each item of the other collection, the largest first."""
    found: dict[str, list[int]] = {}
    for row in np.flatnonzero(places != NONE).tolist():
        found.setdefault(theirs[places[row]][0], []).append(row)
    groups = []
    for id, rows in found.items():
        parts = Counter(keys[row][0] for row in rows)
        kind = SAME if same[rows].all() else NEAR
        least = float(similarity[rows].min())
        groups.append(SharedItems(id, sorted(parts), kind, least, max(parts.values())))
    return sorted(groups, key=lambda one: (-len(one.ids), one.kept))


def _keep(
    reader: Reader,
    other: Reader,
    doubles: dict[Key, Key],
    measured: MeasuredThreshold | None,
    space: str,
) -> bool:
    words = ["penult", "duplicates", str(reader.path), str(other.path)]
    words += ["--space", space] if space != RAW else []
    words += ["--exact"] if measured is None else []
    if measured is not None and measured.found is None:
        words += ["--threshold", f"{measured.value:g}"]
    about = {MADE: shlex.join(words), "other": str(other.path),
             "threshold": None if measured is None else asdict(measured)}  # fmt: skip
    names = {key: id if region == "whole" else f"{id} {region}"
             for key, (id, region) in doubles.items()}  # fmt: skip
    return keep_values(reader, about, {COLUMN: (pa.string(), names)})
