"""Doubles in a collection: rows of the same content, and rows nearly the same by their vectors,
above a similarity that is measured on re-encodings of the collection's own items.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.neighbour_graph import NONE
from penult.analysis.space import RAW
from penult.collection import schema, spaces
from penult.collection.columns import MADE, ROW, VALUE, VERSION, wider
from penult.collection.derived import check_name, keep_column
from penult.collection.labels import names_of
from penult.collection.neighbours import GraphOptions, Neighbours, find_neighbours
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder

COLUMN = "duplicate_of"  # the derived column: the row that is kept in place of this one
FOUND = 0.95  # of re-encodings that are to be found
SPARED = 0.99  # of nearest different items that are not to be taken for doubles
_SAMPLE = 64  # rows that are re-encoded
_OTHERS = 400  # rows whose nearest row of another item is listened to, or looked at
_LEAST = 8
SAME, NEAR = "same content", "nearly the same"  # kinds of doubles


@dataclass(frozen=True, slots=True)
class MeasuredThreshold:
    """From which similarity rows are nearly the same, as measured on re-encoded items.

    sample: rows that were re-encoded. found: the share of their re-encodings above the threshold;
    by_change: of each kind. different: rows whose nearest row of another item is of other content
    by its signal; mistaken: the share of them that is above the threshold all the same. Both shares
    are None where the threshold was given by hand.
    """

    value: float
    sample: int = 0
    found: float | None = None
    by_change: dict[str, float] = field(default_factory=dict)
    different: int = 0
    mistaken: float | None = None


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Items that are doubles of each other. ids: the one that is kept first. why: it is kept.
    kind: `same content`, or `nearly the same`. similarity: the least to the one that is kept.
    parts: how many rows of each item, such as windows, are doubles."""

    ids: list[str]
    kind: str
    why: str
    similarity: float
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Leak:
    """A pair of doubles on two sides of a split."""

    row: Key
    split: str
    other: Key
    other_split: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Doubles of a collection. rows: how many were compared. doubles: how many of them are the
    double of a row that is kept. leaks: None where no split was asked for."""

    rows: int
    doubles: int
    groups: list[DuplicateGroup]
    threshold: MeasuredThreshold | None
    leaks: list[Leak] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult duplicates --json` prints it."""
        return {
            "rows": self.rows,
            "doubles": self.doubles,
            "groups": [one.ids for one in self.groups],
            "details": [asdict(one) for one in self.groups],
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "leaks": None if self.leaks is None else [asdict(one) for one in self.leaks],
        }

    def table(self) -> pa.Table:
        """One line for each item of a group: group, id, kept, kind, why, similarity, parts."""
        lines = [
            {"group": number, "id": id, "kept": not place, "kind": one.kind,
             "why": one.why if not place else None, "similarity": one.similarity,
             "parts": one.parts}
            for number, one in enumerate(self.groups, 1) for place, id in enumerate(one.ids)
        ]  # fmt: skip
        kinds = {"group": pa.int64(), "id": pa.string(), "kept": pa.bool_(), "kind": pa.string(),
                 "why": pa.string(), "similarity": pa.float64(), "parts": pa.int64()}  # fmt: skip
        return pa.Table.from_pylist(lines, schema=pa.schema(kinds))


def find_duplicates(
    reader: Reader,
    opener: Callable[[], Embedder],
    *,
    threshold: float | None = None,
    near: bool = True,
    space: str = RAW,
    split: str | None = None,
) -> Duplicates:
    """Doubles among the rows of different items: the same file by its hash, or a cosine of at least
    the threshold. Windows, pages and other parts of one item are no doubles of each other.

    Of rows that are doubles the largest file is kept, of equal ones the first id, and each other
    row is the double of a kept one that is as near as the threshold says. It is kept as the derived
    column `duplicate_of`.

    opener: gives the embedder, where the threshold is measured (None). near: also by vectors.
    split: the way in which rows are named by sides, such as a column; doubles across are leaks.

    Raises:
        UsageError: a threshold that cannot be, no rows, items that cannot be re-encoded, or rows
            with a column `duplicate_of` of their own.
        LabelsError: `split` names nothing here.
    """
    check_threshold(threshold)
    if not reader.count_rows():
        raise UsageError(f"{reader.path} has no rows yet, and so no doubles")
    check_name(reader, COLUMN)
    columns = schema.scalar_columns(wider(reader.path, reader.schema, [split]))
    columns = [name for name in columns if name != COLUMN]
    graph = find_neighbours(reader, GraphOptions(space=space, groups="id")) if near else None
    table = pa.Table.from_batches(list(reader.ordered(columns)))
    keys = schema.keys(table)
    if graph is not None and graph.keys != keys:
        raise UsageError(f"rows of {reader.path} came in the meantime; ask again")
    measured = None
    if graph is not None:
        measured = MeasuredThreshold(threshold) if threshold is not None else measure_threshold(
            reader, opener(), graph, space
        )  # fmt: skip
    pairs = _DoublePairs.of(table, graph, 2.0 if measured is None else measured.value)
    kept, similarity = pairs.kept()
    _keep(reader, table, kept, measured, space, split)
    leaks = None if split is None else _leaks(pairs, keys, names_of(reader, table, split))
    groups = _groups(table, kept, similarity)
    return Duplicates(len(keys), int((kept != NONE).sum()), groups, measured, leaks)


def check_threshold(threshold: float | None) -> None:
    """Raises:
    UsageError: it is no cosine.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise UsageError(f"a threshold of {threshold:g} cannot be; a cosine lies between -1 and 1")


@dataclass(frozen=True, slots=True)
class _DoublePairs:
    """Pairs of rows (m, 2) that are doubles, and their similarities: 1 of the same content."""

    count: int
    pairs: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float64]
    order: npt.NDArray[np.int64]  # of all rows, those first that are rather kept

    @classmethod
    def of(cls, table: pa.Table, graph: Neighbours | None, threshold: float) -> _DoublePairs:
        """Of equal rows all with the first: a clump of many is one group, and no list of neighbours
        holds it."""
        keys = schema.keys(table)
        sizes = [-(size or 0) for size in table["size"].to_pylist()]
        order = np.array(sorted(range(len(keys)), key=lambda row: (sizes[row], keys[row])))
        found: dict[tuple[int, int], float] = {}
        first: dict[tuple[str, str], list[int]] = {}
        contents = table["content_hash"].to_pylist()
        for row in order.tolist():
            if contents[row] is not None:
                first.setdefault((contents[row], keys[row][1]), []).append(row)
        for rows in first.values():
            for other in rows[1:]:
                if keys[rows[0]][0] != keys[other][0]:
                    found[rows[0], other] = 1.0
        if graph is not None:
            row, rank = np.nonzero((graph.places != NONE) & (graph.cosines >= threshold))
            for one, other, cosine in zip(
                row.tolist(), graph.places[row, rank].tolist(), graph.cosines[row, rank].tolist(),
                strict=True,
            ):  # fmt: skip
                if (other, one) not in found:
                    found.setdefault((one, other), float(cosine))
        pairs = np.array(list(found), np.int64).reshape(-1, 2)
        return cls(len(keys), pairs, np.array(list(found.values()), np.float64), order)

    def kept(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """For each row the one that is kept in its place, NONE where that is itself, and how
        similar it is. A row that is kept is the double of none."""
        near: list[list[tuple[int, float]]] = [[] for _ in range(self.count)]
        for (one, other), value in zip(self.pairs.tolist(), self.similarities, strict=True):
            near[one].append((other, float(value)))
            near[other].append((one, float(value)))
        instead = np.full(self.count, NONE, np.int64)
        similarity = np.full(self.count, np.nan)
        is_kept = np.zeros(self.count, bool)
        for row in self.order.tolist():
            if instead[row] != NONE:
                continue
            is_kept[row] = True
            for other, value in near[row]:
                if instead[other] == NONE and not is_kept[other]:
                    instead[other], similarity[other] = row, value
        return instead, similarity


def _groups(
    table: pa.Table, kept: npt.NDArray[np.int64], similarity: npt.NDArray[np.float64]
) -> list[DuplicateGroup]:
    """Groups of items; parts of the same items are one group. The largest groups first."""
    keys, sizes = schema.keys(table), table["size"].to_pylist()
    contents = table["content_hash"].to_pylist()
    members: dict[int, list[int]] = {}
    for row, other in enumerate(kept.tolist()):
        if other != NONE:
            members.setdefault(other, []).append(row)
    found: dict[tuple[str, ...], list[list[int]]] = {}
    for first, rows in members.items():
        ids = tuple(dict.fromkeys(keys[row][0] for row in [first, *rows]))
        found.setdefault(ids, []).append([first, *rows])
    groups = []
    for ids, parts in found.items():
        rows = [row for part in parts for row in part[1:]]
        same = all(contents[part[0]] is not None and contents[row] == contents[part[0]]
                   for part in parts for row in part[1:])  # fmt: skip
        own = parts[0]
        larger = all((sizes[own[0]] or 0) > (sizes[row] or 0) for row in own[1:])
        groups.append(
            DuplicateGroup(
                list(ids),
                SAME if same else NEAR,
                "largest file" if larger else "first id of the largest files",
                float(similarity[rows].min()),
                max(Counter(keys[row][0] for row in rows).values()),
            )
        )
    return sorted(groups, key=lambda one: (-len(one.ids), one.ids))


def _leaks(pairs: _DoublePairs, keys: Sequence[Key], sides: Sequence[str | None]) -> list[Leak]:
    """Pairs on two sides; of several rows of the same content all, not only those with the
    first."""
    found = {}
    by_content: dict[int, list[int]] = {}
    for (one, other), value in zip(pairs.pairs.tolist(), pairs.similarities.tolist(), strict=True):
        found[min(one, other), max(one, other)] = value
        if value == 1.0:
            by_content.setdefault(one, [one]).append(other)
    for rows in by_content.values():
        for place, one in enumerate(rows):
            found |= {(min(one, other), max(one, other)): 1.0 for other in rows[place + 1 :]}
    leaks = [
        Leak(keys[one], str(sides[one]), keys[other], str(sides[other]), value)
        for (one, other), value in found.items()
        if None not in (sides[one], sides[other]) and sides[one] != sides[other]
    ]
    return sorted(leaks, key=lambda one: (-one.similarity, one.row, one.other))


def _keep(
    reader: Reader,
    table: pa.Table,
    kept: npt.NDArray[np.int64],
    measured: MeasuredThreshold | None,
    space: str,
    split: str | None,
) -> None:
    words = ["penult", "duplicates", str(reader.path)]
    words += ["--space", space] if space != RAW else []
    words += ["--exact"] if measured is None else []
    if measured is not None and measured.found is None:
        words += ["--threshold", f"{measured.value:g}"]
    words += ["--split", split] if split else []
    about = {MADE: shlex.join(words), "refers": True,
             "threshold": None if measured is None else asdict(measured)}  # fmt: skip
    rows = table.select([*schema.KEY, VERSION])
    rows = rows.append_column(ROW, pa.array(np.arange(len(table)), pa.int64()))
    missing = kept == NONE
    keep_column(reader, COLUMN, about, rows.append_column(VALUE, pa.array(kept, mask=missing)))


@dataclass(frozen=True, slots=True)
class NearestElsewhere:
    """Another collection, and by the key of a row here the key of its nearest row there, and the
    cosine."""

    reader: Reader
    near: Mapping[Key, tuple[Key, float]]


def measure_threshold(
    reader: Reader,
    embedder: Embedder,
    graph: Neighbours,
    space: str = RAW,
    elsewhere: NearestElsewhere | None = None,
) -> MeasuredThreshold:
    """The similarity from which rows are nearly the same: 64 rows are re-encoded, cut and set to
    another level, and their nearest rows of other items, also elsewhere, are looked at.

    Where most re-encodings are nearer than most different items, the threshold lies between the
    two; else it spares different items, and fewer re-encodings are found. A nearest row that is the
    same content by its signal is no different item.

    Raises:
        UsageError: too few items can be opened, or items of a modality without re-encodings.
    """
    from penult.embedding.reencoding import REENCODINGS, is_same_content, reencoded

    by_hand = "--threshold 0.95 says it by hand, --exact compares contents only"
    modality = embedder.classifier.modality
    if modality not in REENCODINGS:
        raise UsageError(
            f"a threshold is measured on re-encoded sounds and pictures, and {reader.path} holds "
            f"{modality}; {by_hand}"
        )
    place = {key: at for at, key in enumerate(graph.keys)}
    table, _ = reader.vectors("kind <> 'summary'", schema.KEY, _OTHERS, 0)
    drawn = [key for key in schema.keys(table) if key in place]
    near = {key: (graph.keys[graph.places[place[key], 0]], float(graph.cosines[place[key], 0]))
            for key in drawn if graph.places[place[key], 0] != NONE}  # fmt: skip
    values = _opened(reader, embedder, [*drawn, *(key for key, _ in near.values())])
    able = [key for key in drawn if key in values]
    if len(able) < _LEAST:
        few = "it has no more" if len(drawn) < _LEAST else "files are gone or changed"
        raise UsageError(
            f"the threshold is measured on items of {reader.path}, and {len(able)} of {len(drawn)} "
            f"could be opened again, fewer than {_LEAST}: {few}; {by_hand}"
        )
    used = spaces.ready(reader, space)[0]
    again = [able[at] for at in np.unique(np.linspace(0, len(able) - 1, _SAMPLE).astype(int))]
    copies = reencoded(embedder, [values[key] for key in again], used)
    beside = [(near, values)]
    if elsewhere is not None:
        there = {key: elsewhere.near[key] for key in able if key in elsewhere.near}
        keys = [key for key, _ in there.values()]
        beside.append((there, _opened(elsewhere.reader, embedder, keys)))
    others = [
        cosine for found, opened in beside for key in able if key in found
        for nearest, cosine in (found[key],)
        if nearest in opened and not is_same_content(values[key], opened[nearest], modality)
    ]  # fmt: skip
    return _threshold(copies, np.array(others), len(again))


def _opened(reader: Reader, embedder: Embedder, keys: Sequence[Key]) -> dict[Key, Any]:
    """The decoded items of rows, of those whose files are as they were."""
    from penult.collection.comparison import entry_of
    from penult.embedding.robustness import opened_values

    if not keys:
        return {}
    columns, ids = schema.scalar_columns(reader.schema), sorted({id for id, _ in keys})
    rows: dict[Key, Any] = {}
    for batch in reader.scan(columns, f"id IN ({schema.quoted(ids)})"):
        rows |= dict(zip(schema.keys(batch), batch.to_pylist(), strict=True))
    found = (entry_of(rows[key], embedder, reader.roots) for key in dict.fromkeys(keys))
    values, _ = opened_values(embedder, [entry for entry in found if entry])
    return dict(values)


def _threshold(
    copies: dict[str, npt.NDArray[np.float64]], others: npt.NDArray[np.float64], sample: int
) -> MeasuredThreshold:
    """copies: (m,) similarities by re-encoding. others: of different items to their nearest."""
    every = np.concatenate(list(copies.values()))
    every = every[np.isfinite(every)]
    low = float(np.quantile(every, 1 - FOUND)) if len(every) else 1.0
    high = float(np.quantile(others, SPARED)) if len(others) else -1.0
    # Half-way where the two lie apart; else above the different items.
    value = (low + high) / 2 if 0 <= high < low else low if high < low else np.nextafter(high, 2)
    value = float(min(value, 1.0))
    return MeasuredThreshold(
        value,
        sample,
        float((every >= value).mean()) if len(every) else 0.0,
        {name: float(np.nanmean(np.where(np.isnan(one), np.nan, one >= value)))
         for name, one in copies.items() if np.isfinite(one).any()},
        len(others),
        float((others >= value).mean()) if len(others) else None,
    )  # fmt: skip
