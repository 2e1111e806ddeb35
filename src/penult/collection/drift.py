"""Parts of a collection (weeks, sites, batches) that differ more than chance, since when, and the
rows that tell them apart; kept as a derived column.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.drift import DRAWS, LEAST, Contrast, DriftTest, drift_test
from penult.analysis.space import RAW, check_finite
from penult.collection import schema, spaces
from penult.collection.columns import MADE, wider
from penult.collection.derived import keep_values
from penult.collection.labels import names_of
from penult.collection.parts import NONE, Division, parts_of
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.errors import LabelsError, UsageError, listed

COLUMN = "drift"  # the derived column
ALPHA = 0.01


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """What is compared, and how. by: a column, `folder` or another way of naming rows. groups: what
    is permuted together; None is the item. every: the period of times. zone: of days. alpha: a
    p-value of an alarm. as_names: numbers and times have no order."""

    by: str
    groups: str | None = None
    every: str | None = None
    zone: str | None = None
    where: str | None = None
    space: str = RAW
    alpha: float = ALPHA
    draws: int = DRAWS
    seed: int = 0
    as_names: bool = False


@dataclass(frozen=True, slots=True)
class DriftPart:
    """A part against all others; or, of a split, all parts from this one on against those before.
    blocks: groups, or pieces of them, with rows in it. auroc, p_value: None of a part in fewer than
    three blocks. rows_most: its rows that are least like the others, by held-out scores."""

    part: str
    rows: int
    blocks: int
    auroc: float | None
    p_value: float | None
    rows_most: tuple[Key, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        found["rows_most"] = [{"id": id, "region": region} for id, region in self.rows_most]
        return found


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A row. drift: the share of rows on the other side that look less like this side: like what is
    behind the strongest split or, without an order, like the part that differs most."""

    id: str
    region: str
    part: str
    drift: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult drift --json` prints it."""
        return asdict(self) | {"drift": round(self.drift, 6)}


@dataclass(frozen=True, slots=True)
class Drift:
    """Which parts differ. parts: in their order. splits: of ordered parts, by the first part behind
    each. strongest: the split, or part, that `drift` of the rows is about. p_value: that nothing
    differs. smallest: no p-value can be lower. rows: the highest drift first. notes: what is to be
    known. kept: as a derived column too."""

    options: DriftOptions
    division: Division
    parts: list[DriftPart]
    splits: list[DriftPart]
    strongest: DriftPart
    p_value: float
    smallest: float
    rows: list[DriftRow]
    notes: list[str] = field(default_factory=list)
    kept: bool = False

    @property
    def is_alarm(self) -> bool:
        """Whether something differs more than chance."""
        return self.p_value <= self.options.alpha

    @property
    def since(self) -> DriftPart | None:
        """The split that separates best, where it does more than chance."""
        if not self.splits or (self.strongest.p_value or 1.0) > self.options.alpha:
            return None
        return self.strongest

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult drift --json` prints it."""
        since = self.since
        return {
            "by": self.options.by,
            "kind": self.division.kind,
            "every": self.division.period,
            "groups": self.options.groups,
            "alpha": self.options.alpha,
            "alarm": self.is_alarm,
            "p_value": self.p_value,
            "smallest_p_value": self.smallest,
            "draws": self.options.draws,
            "since": None if since is None else since.to_dict(),
            "parts": [one.to_dict() for one in self.parts],
            "splits": [one.to_dict() for one in self.splits],
            "notes": self.notes,
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self) -> pa.Table:
        """One line for each row: id, region, part, drift."""
        types = {"id": pa.string(), "region": pa.string(), "part": pa.string(),
                 "drift": pa.float64()}  # fmt: skip
        return pa.Table.from_pylist([asdict(row) for row in self.rows], pa.schema(types))


_MOST = 3  # rows that are named of each part


def find_drift(reader: Reader, options: DriftOptions) -> Drift:
    """Test which parts differ from the others more than chance and, of times and numbers, since
    when; keep `drift` as a derived column.

    Raises:
        UsageError: options that cannot be. LabelsError: the column names nothing here, has one
            value, or was computed from the rows; or no part has three groups. SpaceError: no such
            space, or vectors that are not finite.
    """
    if not 0 < options.alpha < 1:
        raise UsageError(f"--alpha {options.alpha:g} cannot be; it lies between 0 and 1")
    if options.groups == options.by:
        raise UsageError(
            f"--groups {options.by}: each group would be a part, and nothing could be permuted; "
            "groups are recordings, machines or days, of which a part has several"
        )
    space = spaces.ready(reader, options.space)[0]
    columns = schema.scalar_columns(wider(reader.path, reader.schema, [options.by, options.groups]))
    table, vectors = reader.vectors(options.where, columns)
    if not len(table):
        what = f"no row of {reader.path} matches {options.where!r}" if options.where else (
            f"{reader.path} has no rows"
        )  # fmt: skip
        raise UsageError(what)
    parts, notes = (
        parts_of(reader, table, options.by, options.every, options.zone, options.as_names),
        list[str](),
    )
    known = np.flatnonzero(parts.of_row != NONE)
    if without := len(table) - len(known):
        notes.append(f"{without:,} rows have no value by {options.by!r} and were left out")
        table, vectors = table.take(pa.array(known)), vectors[known]
    of_row, keys = parts.of_row[known], schema.keys(table)
    check_finite(vectors)
    groups = _groups(reader, table, options.groups)
    try:
        found = drift_test(space(vectors), of_row, groups, parts.is_ordered, options.draws,
                           options.seed)  # fmt: skip
    except LabelsError as error:
        raise LabelsError(_too_few(options, parts, of_row, groups)) from error
    return _told(reader, options, parts, of_row, keys, found, notes)


def _groups(reader: Reader, table: pa.Table, way: str | None) -> list[str]:
    """What is permuted together: the item where no other way is given, or a row has no group."""
    ids: list[str] = table["id"].to_pylist()
    if way is None:
        return ids
    names = names_of(reader, table, way)
    return [f"group {name}" if name else id for name, id in zip(names, ids, strict=True)]


def _too_few(
    options: DriftOptions, parts: Division, of_row: npt.NDArray[np.int64], groups: Sequence[str]
) -> str:
    unit = "items" if options.groups is None else "groups"
    if len(set(groups)) < 2:
        return (
            f"all {len(groups):,} rows are of one {unit[:-1]}, and what differs more than chance "
            "is told by several; --groups COLUMN names smaller groups, such as the day"
        )
    pairs = {*zip(of_row.tolist(), groups, strict=True)}
    most = int(np.bincount([part for part, _ in pairs]).max())
    longer = ", --every with a longer period" if parts.period else ""
    return (
        f"{len(parts.names):,} parts by {options.by!r} ({listed(parts.names, 3)}) have {most} "
        f"{unit} at most, and {LEAST} in a part and {LEAST} outside of it are needed: give a "
        f"column with fewer values{longer}, or rows of more {unit}"
    )


def _told(
    reader: Reader,
    options: DriftOptions,
    parts: Division,
    of_row: npt.NDArray[np.int64],
    keys: Sequence[Key],
    found: DriftTest,
    notes: list[str],
) -> Drift:
    tested = {one.number: at for at, one in enumerate(found.parts)}
    rows = np.bincount(of_row, minlength=len(parts.names))
    told = []
    for number, name in enumerate(parts.names):
        if (at := tested.get(number)) is None:
            told.append(DriftPart(name, int(rows[number]), found.blocks_of[number], None, None))
            continue
        most = _highest(found.scores[:, at], of_row == number)
        told.append(_part(name, found.parts[at], [keys[row] for row in most]))
    splits = []
    for at, one in enumerate(found.splits, len(found.parts)):
        most = _highest(found.scores[:, at], of_row >= one.number)
        splits.append(_part(parts.names[one.number], one, [keys[row] for row in most]))
    best = found.contrasts[found.strongest]
    inside = of_row >= best.number if found.splits else of_row == best.number
    scores = found.scores[:, found.strongest]
    share = _shares(scores, inside)
    order = np.argsort(-scores, kind="stable")  # shares at the ends are equal
    rows_in_order = (
        (*keys[at], parts.names[of_row[at]], float(share[at])) for at in order.tolist()
    )
    made = [DriftRow(*one) for one in rows_in_order]
    values = {COLUMN: (pa.float64(), {(row.id, row.region): row.drift for row in made})}
    notes += _notes(options, told, found)
    strongest = [*(one for one in told if one.p_value is not None), *splits][found.strongest]
    kept = keep_values(reader, _facts(reader, options, parts, strongest), values)
    return Drift(options, parts, told, splits, strongest, found.p_value, found.smallest, made,
                 notes, kept)  # fmt: skip


def _part(name: str, one: Contrast, most: Sequence[Key]) -> DriftPart:
    return DriftPart(name, one.rows, one.blocks, one.auroc, one.p_value, tuple(most))


def _highest(scores: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(inside)
    found: list[int] = rows[np.argsort(-scores[rows], kind="stable")[:_MOST]].tolist()
    return found


def _shares(
    scores: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """(n,) the share of rows outside with a lower score; equal ones count half. The mean of those
    inside is the AUROC."""
    outside = np.sort(scores[~inside])
    below, upto = (np.searchsorted(outside, scores, side=side) for side in ("left", "right"))
    found: npt.NDArray[np.float64] = (below + upto) / (2 * len(outside))
    return found


def _notes(options: DriftOptions, parts: Sequence[DriftPart], found: DriftTest) -> list[str]:
    unit, notes = "items" if options.groups is None else "groups", list[str]()
    if small := [one.part for one in parts if one.p_value is None]:
        notes.append(
            f"fewer than {LEAST} {unit} inside or outside, not tested alone: {listed(small, 5)}"
        )
    if found.crossed:
        notes.append(
            f"{found.crossed:,} of {found.groups:,} {unit} have rows of several parts: what they "
            "have in common is taken off, and parts are exchanged within each"
        )
    if found.smallest > options.alpha:
        notes.append(
            f"with {found.groups:,} {unit} no p-value can be below {found.smallest:.2g}, so that "
            f"nothing can differ at {options.alpha:g}: more {unit}, or a higher --alpha, tell more"
        )
    return notes


def _facts(
    reader: Reader, options: DriftOptions, parts: Division, strongest: DriftPart
) -> dict[str, Any]:
    words = ["penult", "drift", str(reader.path), "--by", options.by]
    given = {"groups": options.groups, "every": options.every, "time-zone": options.zone,
             "where": options.where, "space": options.space if options.space != RAW else None,
             "seed": options.seed or None}  # fmt: skip
    for name, value in given.items():
        words += [f"--{name}", str(value)] if value is not None else []
    words += ["--as-names"] if options.as_names else []
    side = "from" if parts.is_ordered else "of"
    return {MADE: shlex.join(words), "side": f"{side} {strongest.part}", **asdict(options)}
