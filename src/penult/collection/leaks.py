"""Leaks between the sides of a split: a linear probe's score with and without them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penult.analysis.probe import linear_probe
from penult.collection.duplicates import Duplicates
from penult.collection.labels import labelled
from penult.collection.reader import Reader
from penult.errors import LabelsError


@dataclass(frozen=True, slots=True)
class LeakScore:
    """Accuracy of a linear probe on one side, trained on the others. rows: of the side that have a
    class. leaking: those of them with a double on another side. without: accuracy on the rest; None
    where nothing is left."""

    side: str
    rows: int
    leaking: int
    accuracy: float
    without: float | None


@dataclass(frozen=True, slots=True)
class LeakScores:
    """Scores by side of the split, in the order of their names."""

    sides: list[LeakScore]

    def to_dict(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [asdict(one) for one in self.sides]

    def words(self) -> list[str]:
        """A line for each side."""
        return [
            f"a probe trained without {one.side} has {one.accuracy:.1%} of its {one.rows:,} rows "
            + (
                "right, and none of them leaks"
                if not one.leaking
                else "right, and each of them leaks"
                if one.without is None
                else f"right, and {one.without:.1%} without the {one.leaking:,} that leak"
            )
            for one in self.sides
        ]


def leak_scores(reader: Reader, found: Duplicates, split: str, labels: str) -> LeakScores:
    """For each side of a split the accuracy of a probe that was trained on the other sides, on all
    of its rows and without those that have a double there.

    Raises:
        LabelsError: there is one side, or the others have fewer than two classes.
    """
    rows = labelled(reader, [split, labels])
    sides, names = (np.array([one or "" for one in rows.names[way]]) for way in (split, labels))
    leaking = {key for leak in found.leaks or () for key in (leak.row, leak.other)}
    leaks = np.array([key in leaking for key in rows.row_keys])
    known = (sides != "") & (names != "")
    scores = []
    for side in sorted(set(sides[known].tolist())):
        test = known & (sides == side)
        train = known & (sides != side)
        if len(set(names[train].tolist())) < 2:
            continue
        right = linear_probe().fit(rows.vectors[train], names[train]).predict(
            rows.vectors[test]
        ) == names[test]  # fmt: skip
        clean = ~leaks[test]
        scores.append(
            LeakScore(
                side,
                int(test.sum()),
                int((~clean).sum()),
                float(right.mean()),
                float(right[clean].mean()) if clean.any() else None,
            )
        )
    if not scores:
        raise LabelsError(f"{split!r} leaves no side with two classes by {labels!r} to train on")
    return LeakScores(scores)
