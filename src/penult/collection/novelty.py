"""Rows of a collection that are unlike its normal ones, with p-values; kept as derived columns."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.novelty import (
    AUTO,
    METHODS,
    NEW,
    MethodAurocs,
    choose_method,
    fold_scores,
    folds_of,
    novelty_scores,
    p_values,
)
from penult.analysis.space import RAW, check_finite
from penult.collection import schema, spaces
from penult.collection.columns import MADE
from penult.collection.derived import keep_values
from penult.collection.detectors import Detector
from penult.collection.labels import names_of
from penult.collection.reader import Reader
from penult.collection.row_layout import row_layout
from penult.errors import LabelsError, UsageError

NOVELTY, P_VALUE = "novelty", "novelty_p"  # the derived columns
ALPHA = 0.05  # of the level that is stated


@dataclass(frozen=True, slots=True)
class NoveltyRow:
    """A row. novelty: higher is less like the normal rows. p_value: the share of held-out normal
    rows that are as novel. normal: it is one of the normal rows."""

    id: str
    region: str
    novelty: float
    p_value: float
    normal: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult novelty --json` prints it."""
        return {
            "id": self.id,
            "region": self.region,
            "novelty": round(self.novelty, 6),
            "p_value": round(self.p_value, 6),
        }


@dataclass(frozen=True, slots=True)
class HeldOutLevel:
    """Which share of held-out normal rows have a p-value of at most `alpha`, by the rows of other
    groups. groups: how many there are; None where none were given: then the share is of rows dealt
    out by chance, and says nothing about new groups. lowest, highest: of a group."""

    alpha: float
    share: float
    groups: int | None = None
    lowest: float | None = None
    highest: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "alpha": self.alpha,
            "share": self.share,
            "for_new_groups": self.groups is not None,
            "groups": self.groups,
            "lowest_of_a_group": self.lowest,
            "highest_of_a_group": self.highest,
        }


@dataclass(frozen=True, slots=True)
class Novelty:
    """All rows, the most novel first. level: of the normal rows. notes: what is to be known. kept:
    as derived columns too. unheard: of planted changes those that the method does not hear."""

    rows: list[NoveltyRow]
    detector: Detector
    level: HeldOutLevel
    notes: list[str]
    kept: bool
    unheard: tuple[str, ...] = ()

    def table(self) -> pa.Table:
        """One line for each row: id, region, novelty, p_value, normal."""
        types = {"id": pa.string(), "region": pa.string(), "novelty": pa.float64(),
                 "p_value": pa.float64(), "normal": pa.bool_()}  # fmt: skip
        lines = [{name: getattr(row, name) for name in types} for row in self.rows]
        return pa.Table.from_pylist(lines, pa.schema(types))


def fit_detector(
    reader: Reader,
    normal: str,
    groups: str | None = None,
    space: str = RAW,
    method: str = AUTO,
    seed: int = 0,
) -> Detector:
    """A detector by the rows that a filter leaves.

    groups: a column, `folder` or another way of naming rows; a row is not scored by rows of its
    own group. A row without a group is one of its own. method: auto, knn, csls or mahalanobis.

    Raises:
        UsageError: no normal rows, too few, one group only, or no such method. LabelsError: the
            groups name nothing here. SpaceError: there is no such space, or values that are not
            finite.
    """
    if method not in (AUTO, *METHODS):
        raise UsageError(f"there is no method {method!r}; there are {AUTO}, {', '.join(METHODS)}")
    fitted = spaces.ready(reader, space)[0]
    table, vectors = reader.vectors(normal, schema.scalar_columns(reader.schema))
    if not len(table):
        raise UsageError(f"no row of {reader.path} matches {normal!r}: there are no normal rows")
    check_finite(vectors, name="normal vectors")
    names = None if groups is None else _names(reader, table, groups)
    folds = folds_of(names, len(table), seed)
    moved = fitted(vectors)
    auroc: dict[str, Any] = {}
    if method == AUTO:
        choice = choose_method(moved, folds, names, seed)
        method, auroc = choice.taken, choice.auroc
    held = novelty_scores(method, moved, folds, moved, folds)
    manifest = reader.require_manifest()
    about = {"normal": normal, "space": space, "seed": seed, "auroc": auroc}
    return Detector(
        method, vectors, folds, held, tuple(schema.keys(table)),
        None if names is None else tuple(names), groups, fitted, manifest.fingerprint,
        manifest.model, row_layout(reader).layout.window, about,
    )  # fmt: skip


def find_novelty(
    reader: Reader,
    detector: Detector,
    source: str | None = None,
    alpha: float = ALPHA,
    any_window: bool = False,
) -> Novelty:
    """Score all rows of a collection, and keep `novelty` and `novelty_p` as derived columns.

    source: the file of the detector, for the command that makes the columns anew. alpha: of the
    level that is stated. any_window: also where most rows are windows of another length than the
    detector was made for.

    Raises:
        FingerprintMismatch: the detector is of another embedder. UsageError: no rows, or windows of
            another length. SpaceError: vectors that are not finite.
    """
    detector.check_embedder(reader.path, reader.require_manifest())
    lengths = detector.other_lengths(row_layout(reader).layout.window)
    if lengths and not any_window:
        made_so = f"with --window {detector.window:g}" if detector.window else "without --window"
        raise UsageError(
            f"{lengths}: scores of other lengths differ, and p-values do not hold; embed the items "
            f"of {reader.path} {made_so} into another collection, or make a detector of this one "
            "(penult novelty COLLECTION --normal WHERE --save FILE); --any-window "
            "(any_window=True) scores them all the same"
        )
    columns = schema.scalar_columns(reader.schema)
    table, vectors = reader.vectors(None, columns)
    if not len(table):
        raise UsageError(f"{reader.path} has no rows")
    keys, notes = schema.keys(table), list[str]()
    folds = _folds(reader, table, detector, notes)
    normal, rows = detector.space(detector.vectors), detector.space(vectors)
    scores = novelty_scores(detector.method, normal, detector.folds, rows, folds)
    by_fold = fold_scores(detector.method, normal, detector.folds, rows, folds)
    p_value = p_values(detector.held, detector.folds, by_fold, folds)
    if lengths:
        notes.append(f"{lengths}: scores of other lengths differ, and p-values do not hold")
    own = set(detector.keys)
    found = [
        NoveltyRow(*key, float(scores[at]), float(p_value[at]), key in own)
        for at, key in enumerate(keys)
    ]
    found.sort(key=lambda row: (-row.novelty, row.id, row.region))
    values = {
        NOVELTY: (pa.float64(), {(row.id, row.region): row.novelty for row in found}),
        P_VALUE: (pa.float64(), {(row.id, row.region): row.p_value for row in found}),
    }
    kept = keep_values(reader, _facts(reader, detector, source, bool(lengths)), values)
    level, unheard = level_of(detector, notes, alpha), _unheard(detector, notes)
    return Novelty(found, detector, level, notes, kept, unheard)


def _unheard(detector: Detector, notes: list[str]) -> tuple[str, ...]:
    """The planted changes that the method does not tell from held-out normal rows. notes: takes
    them in words."""
    auroc = detector.about.get("auroc") or {}
    if detector.method not in auroc:
        return ()
    every = MethodAurocs(detector.method, auroc).unheard(len(detector.keys))
    mine = tuple(every[detector.method])
    if all(len(names) == len(auroc[method]) for method, names in every.items()):
        values = [value for one in auroc.values() for value in one.values()]
        notes.append(
            "no method tells any planted change from held-out normal rows (AUROC "
            f"{min(values):.2f} to {max(values):.2f}; chance is 0.5): the choice of "
            f"{detector.method} says nothing, and this reading may not hear faults; try known "
            "faults, another tap or model, or more normal rows"
        )
    elif mine:
        said = ", ".join(f"{name} ({auroc[detector.method][name]:.2f})" for name in mine)
        notes.append(
            f"planted changes that {detector.method} does not hear (AUROC; chance is 0.5): {said}"
        )
    return mine


def level_of(detector: Detector, notes: list[str], alpha: float = ALPHA) -> HeldOutLevel:
    """The level on the normal rows themselves, each by the held-out scores of the others. notes:
    takes what it does not hold for."""
    folds = detector.folds
    held = np.tile(detector.held, (int(folds.max()) + 1, 1))
    low = p_values(detector.held, folds, held, folds) <= alpha
    texts_left_out = re.sub(r"'[^']*'", "", str(detector.about.get("normal")))
    if re.search(rf"\b{NOVELTY}(_p)?\b", texts_left_out, re.IGNORECASE):
        notes.append(
            "the normal rows were chosen by their own novelty: neither p-values nor the level hold"
        )
    smallest = 1 / (len(folds) + 1)
    if smallest > alpha:
        notes.append(
            f"with {len(folds)} normal rows no p-value can be below {smallest:.3g}; more normal "
            "rows tell more"
        )
    if detector.groups is None:
        notes.append(
            "without --groups the level holds for rows like the normal ones, not for new "
            "recordings, days or machines: windows of one recording confirm each other"
        )
        return HeldOutLevel(alpha, float(low.mean()))
    names = np.asarray(detector.groups)
    shares = [float(low[names == name].mean()) for name in np.unique(names)]
    return HeldOutLevel(alpha, float(np.mean(shares)), len(shares), min(shares), max(shares))


def _names(reader: Reader, table: pa.Table, way: str) -> list[str]:
    """The group of each row; a row without one is a group of its own."""
    found = names_of(reader, table, way)
    return [
        name or "\0".join(("", *key)) for name, key in zip(found, schema.keys(table), strict=True)
    ]


def _folds(
    reader: Reader, table: pa.Table, detector: Detector, notes: list[str]
) -> npt.NDArray[np.int64]:
    """(m,) the fold of each row: that of its group, or of the row itself, among the normal rows."""
    numbers = detector.folds.tolist()
    if detector.groups is not None and detector.way is not None:
        by_name = dict(zip(detector.groups, numbers, strict=True))
        try:
            names = _names(reader, table, detector.way)
            return np.array([by_name.get(name, NEW) for name in names], np.int64)
        except LabelsError as error:
            notes.append(f"all rows but the detector's own count as of new groups: {error}")
    by_key = dict(zip(detector.keys, numbers, strict=True))
    return np.array([by_key.get(key, NEW) for key in schema.keys(table)], np.int64)


def _facts(
    reader: Reader, detector: Detector, source: str | None, any_window: bool
) -> dict[str, Any]:
    words = ["penult", "novelty", str(reader.path)]
    if source is not None:
        words += ["--detector", source, *(["--any-window"] if any_window else [])]
    else:
        about = detector.about
        words += ["--normal", str(about["normal"])]
        words += ["--groups", detector.way] if detector.way else []
        words += ["--space", str(about["space"])] if about["space"] != RAW else []
        words += ["--method", detector.method]
        words += ["--seed", str(about["seed"])] if about["seed"] else []
    return {MADE: shlex.join(words), "method": detector.method, "groups": detector.way,
            **{name: detector.about.get(name) for name in ("normal", "space", "seed")}}  # fmt: skip
