"""Rows of a collection whose labels are perhaps wrong, with the rows that speak against them; kept
as derived columns.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penult.analysis.label_suspects import label_suspects
from penult.analysis.neighbour_graph import NONE, Places
from penult.analysis.prediction_measures import SINGLE_LABEL
from penult.collection import schema
from penult.collection.columns import MADE
from penult.collection.derived import keep_values
from penult.collection.neighbours import GraphOptions, find_neighbours
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.collection.targets import read_targets
from penult.errors import UsageError

SUSPECT, SUGGESTED = "suspect", "suggested_label"  # the derived columns
_AGAINST = 3  # neighbours that are named


@dataclass(frozen=True, slots=True)
class SuspectRow:
    """A row and what speaks against its label. suspect: from 0 to 1, above 0.5 the suggested label
    is likelier. against: its nearest rows of the suggested label."""

    id: str
    region: str
    label: str
    suggested: str
    suspect: float
    against: tuple[Key, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult suspects --json` prints it."""
        return {
            "id": self.id,
            "region": self.region,
            "label": self.label,
            "suggested": self.suggested,
            "suspect": round(self.suspect, 6),
            "against": [{"id": id, "region": region} for id, region in self.against],
        }


@dataclass(frozen=True, slots=True)
class Suspects:
    """Rows with a label, the most suspect first. likely: how many are likelier of another label.
    notes: what was left out. kept: as derived columns too."""

    rows: list[SuspectRow]
    likely: int
    notes: list[str]
    kept: bool

    def table(self) -> pa.Table:
        """One line for each row: id, region, label, suggested, suspect, and the ids of the rows
        that speak against the label, with spaces between."""
        names = ("id", "region", "label", "suggested", "suspect")
        lines = [
            {name: getattr(row, name) for name in names}
            | {"against": " ".join(id for id, _ in row.against)}
            for row in self.rows
        ]
        types = {name: pa.float64() if name == "suspect" else pa.string()
                 for name in (*names, "against")}  # fmt: skip
        return pa.Table.from_pylist(lines, pa.schema(types))


def find_suspects(
    reader: Reader,
    labels: str,
    graph: GraphOptions = GraphOptions(),
    where: str | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Suspects:
    """Rank the rows with a label by how much speaks against the label, and keep `suspect` and
    `suggested_label` as derived columns.

    labels: a column, `folder` or another way of naming rows. graph: how neighbours are found; its
    groups (speaker, site) are kept on one side of every fold too. where: rows that are compared.

    Raises:
        LabelsError: `labels` or the groups name nothing here, several labels in a cell, numbers, or
            fewer than two classes. SpaceError: there is no such space.
    """
    found = read_targets(reader, labels, graph.groups, where)
    if found.task != SINGLE_LABEL:
        raise UsageError(
            f"{labels!r} is {found.task} ({found.note}); suspects are found among labels of one "
            "class a row"
        )
    keys = schema.keys(found.rows)
    near = find_neighbours(reader, graph)
    places = _among(near.keys, near.places, keys)
    ranked = label_suspects(found.vectors, found.names, places, found.groups, folds, seed)
    rows = []
    for at, given, suggested, suspect in zip(
        ranked.rows, ranked.given, ranked.suggested, ranked.suspect, strict=True
    ):
        name = ranked.classes[suggested]
        speaking = [place for place in places[at] if place != NONE and found.names[place] == name]
        against = tuple(keys[place] for place in speaking[:_AGAINST])
        (id, region), label = keys[at], ranked.classes[given]
        rows.append(SuspectRow(id, region, label, name, float(suspect), against))
    about = {"labels": labels, "space": graph.space, "groups": graph.groups, "where": where,
             "folds": folds, "seed": seed, "k": graph.k}  # fmt: skip
    kept = _keep(reader, rows, about)
    return Suspects(rows, ranked.likely, ranked.notes, kept)


def _among(every: Sequence[Key], places: Places, keys: Sequence[Key]) -> Places:
    """The lists of some rows: places among these rows, −1 for neighbours that are others."""
    place = {key: at for at, key in enumerate(keys)}
    new = np.array([*(place.get(key, NONE) for key in every), NONE], np.int64)
    old = {key: at for at, key in enumerate(every)}
    found: Places = new[places[[old[key] for key in keys]]]  # −1 is the last one
    return found


def _keep(reader: Reader, rows: Sequence[SuspectRow], about: Mapping[str, Any]) -> bool:
    words = ["penult", "suspects", str(reader.path), "--labels", about["labels"]]
    words += ["--space", about["space"]] if about["space"] != "raw" else []
    for option in ("groups", "where"):
        words += [f"--{option}", about[option]] if about[option] else []
    suspect = {(row.id, row.region): row.suspect for row in rows}
    suggested = {(row.id, row.region): row.suggested for row in rows}
    values: dict[str, tuple[pa.DataType, Mapping[Key, Any]]] = {
        SUSPECT: (pa.float64(), suspect),
        SUGGESTED: (pa.string(), suggested),
    }
    return keep_values(reader, {MADE: shlex.join(words), **about}, values)
