"""Labels that are perhaps wrong: what a probe and the nearest rows, neither of which has seen a
row's own label, say against it.

Confident learning (Northcutt et al., 2021). Numpy in, a small dataclass out; knows no collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.episodes import Mask
from penult.analysis.neighbour_graph import NONE, Places
from penult.analysis.probe import check_rows, classes_taking_part, linear_probe, test_sides
from penult.errors import LabelsError

FloatArray = npt.NDArray[np.float64]


STRENGTH = 0.1  # of the probe: wrong labels are to be told, not fitted


@dataclass(frozen=True, slots=True)
class LabelSuspects:
    """Rows with a class, the most suspect first.

    classes: by name. rows: (m,) their places. given: (m,) the class that each is said to be of, a
    place in `classes`. suggested: (m,) the likeliest other class. suspect: (m,) from 0 to 1; above
    0.5 the suggested class is likelier than the given one, each by the measure of its own rows.
    notes: which rows were left out, and why.
    """

    classes: list[str]
    rows: Places
    given: Places
    suggested: Places
    suspect: FloatArray
    notes: list[str]

    @property
    def likely(self) -> int:
        """How many rows are likelier of another class."""
        return int((self.suspect > 0.5).sum())


def label_suspects(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    neighbours: Places,
    groups: Sequence[str | None] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> LabelSuspects:
    """Rank rows by how much speaks against their class.

    vectors: (n, d). names: (n,) the class of each row; rows without one take no part. neighbours:
    (n, k) the places of the nearest other rows, nearest first, −1 where there are fewer. groups:
    such as the speaker; each is on one side of every fold, and is to be kept apart in `neighbours`
    too. A class in one row, or one group, is left out.

    Raises:
        LabelsError: fewer than two classes are left, lengths that differ, or vectors that are not
            finite.
    """
    every = check_rows(vectors, names, groups, folds, STRENGTH)
    if neighbours.ndim != 2 or len(neighbours) != len(every):
        raise LabelsError(
            f"neighbours of shape {neighbours.shape} do not fit {len(every)} rows: (rows, k)"
        )
    rows, notes = classes_taking_part(names, groups, [])
    classes = sorted({str(names[row]) for row in rows})
    number = {name: place for place, name in enumerate(classes)}
    given = np.array([number[str(names[row])] for row in rows], np.int64)
    own = None if groups is None else np.array([str(groups[row]) for row in rows])
    sides = test_sides(given, own, folds, seed, notes)
    by_probe = _by_probe(every[rows], given, sides, len(classes))
    by_rows = _by_neighbours(neighbours, rows, given, len(every), len(classes))
    suspect, suggested = _against((by_probe + by_rows) / 2, given)
    order = np.lexsort((rows, -suspect))
    return LabelSuspects(
        classes, rows[order], given[order], suggested[order], suspect[order], notes
    )


def _by_probe(rows: FloatArray, given: Places, sides: Sequence[Mask], classes: int) -> FloatArray:
    """(n, K) what probes that were fitted to the other folds say; even shares where none was."""
    found = np.full((len(rows), classes), 1 / classes)
    for side in sides:
        known = np.unique(given[~side])
        if len(known) > 1:
            model = linear_probe(STRENGTH).fit(rows[~side], given[~side])
            found[side] = 0
            found[np.ix_(side, known)] = model.predict_proba(rows[side])
    return found


def _by_neighbours(
    neighbours: Places, rows: Places, given: Places, every: int, classes: int
) -> FloatArray:
    """(m, K) the classes of the nearest rows, with one vote more by the shares of all classes."""
    known = np.full(every + 1, NONE)  # the last one stands for neighbours that are none
    known[rows] = given
    near = known[np.where(neighbours[rows] == NONE, every, neighbours[rows])]
    votes = np.tile(np.bincount(given, minlength=classes) / len(given), (len(rows), 1))
    for column in near.T:
        there = np.flatnonzero(column != NONE)
        votes[there, column[there]] += 1
    shares: FloatArray = votes / votes.sum(axis=1, keepdims=True)
    return shares


def _against(shares: FloatArray, given: Places) -> tuple[FloatArray, Places]:
    """(suspect, suggested). A class counts by how far its share is above the mean share that rows
    which are said to be of the class have of it: the thresholds of confident learning. So a class
    that the model hardly sees is neither suspected as a whole nor never suggested."""
    rows, classes = np.arange(len(given)), shares.shape[1]
    own = np.array([shares[given == one, one].mean() for one in range(classes)])
    above = shares - own
    given_above = above[rows, given]
    above[rows, given] = -np.inf
    suggested = above.argmax(axis=1)
    return (2 + above[rows, suggested] - given_above) / 4, suggested
