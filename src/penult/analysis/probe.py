"""Linear probes: how well classes can be read off vectors, in grouped cross-validation.

Numpy in, a small dataclass out; knows no model and no collection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import Estimate
from penult.analysis.episodes import Mask, partitions
from penult.analysis.prediction_measures import class_measures
from penult.analysis.space import check_finite
from penult.errors import LabelsError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")


def linear_probe(strength: float = 1.0) -> Pipeline:
    """Each number standardised, then multinomial logistic regression (Alain and Bengio, 2016).

    strength: inverse of the L2 penalty, scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _predictions(
    rows: FloatArray, labels: Places, sides: Iterable[Mask], strength: float = 1.0
) -> Iterator[tuple[Places, Places]]:
    """(places, predicted labels) of each test side (n,), by a probe that was fitted to the rest;
    sides that leave one class to train on are passed over."""
    for side in sides:
        if len(np.unique(labels[~side])) > 1:
            model = linear_probe(strength).fit(rows[~side], labels[~side])
            yield np.flatnonzero(side), model.predict(rows[side])


def probe_hits(
    vectors: npt.ArrayLike, labels: Places, groups: Places, folds: int = 5, seed: int = 0
) -> FloatArray:
    """(n,) whether a linear probe that was trained on other groups predicts a row's label; NaN for
    rows whose class is in one fold only.

    Raises:
        LabelsError: the groups leave no two classes to train on.
    """
    rows = np.asarray(vectors, np.float64)
    folds = min(folds, len(np.unique(groups)), int(np.bincount(labels)[np.unique(labels)].max()))
    right = np.full(len(rows), np.nan)
    sides = partitions(labels, groups, folds, 1, seed) if folds > 1 else ()
    for places, predicted in _predictions(rows, labels, sides):
        known = np.isin(labels[places], np.delete(labels, places))
        right[places[known]] = (predicted == labels[places])[known]
    if np.isnan(right).all():
        raise LabelsError("the groups leave no fold with two classes to train on and one to test")
    return right


@dataclass(frozen=True, slots=True)
class PerClass:
    """Precision, recall and F1 of one class; rows: how many it has."""

    name: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Cross-validated predictions of a probe and their accuracy.

    rows: the places of the rows that took part. truth, predicted: their classes, as numbers in
    `classes`. confusion: (K, K) counts, true by predicted. chance: the share of the most frequent
    class.
    """

    classes: list[str]
    rows: Places
    truth: Places
    predicted: Places
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    per_class: list[PerClass]
    confusion: Places
    chance: float
    folds: int
    groups: int | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self, name: str = "vectors") -> dict[str, Any]:
        """For JSON. name: of the matrix that was probed."""
        return {
            "rows": len(self.rows),
            "classes": self.classes,
            "folds": self.folds,
            "groups": self.groups,
            "chance": self.chance,
            "measures": {name: {each: getattr(self, each).to_dict() for each in _MEASURES}},
            "per_class": [asdict(one) for one in self.per_class],
            "confusion": self.confusion.tolist(),
            "notes": self.notes,
        }


def probe(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    folds: int = 5,
    seed: int = 0,
    strength: float = 1.0,
) -> ProbeResult:
    """Train and test a linear probe (Alain and Bengio, 2016) by stratified cross-validation.

    vectors: (n, d). names: the class of each row; rows without one take no part. groups: such as
    the speaker; each is on one side of every fold. A class in one row, or one group, is left out.

    Raises:
        LabelsError: fewer than two classes are left, lengths that differ, or vectors that are not
            finite.
    """
    every = check_rows(vectors, names, groups, folds, strength)
    notes: list[str] = []
    rows, notes = classes_taking_part(names, groups, notes)
    classes = sorted({str(names[row]) for row in rows})
    number = {name: place for place, name in enumerate(classes)}
    truth = np.array([number[str(names[row])] for row in rows], np.int64)
    own = None if groups is None else np.array([str(groups[row]) for row in rows])
    sides = test_sides(truth, own, folds, seed, notes)
    predicted = np.full(len(rows), np.bincount(truth).argmax())
    for places, found in _predictions(every[rows], truth, sides, strength):
        predicted[places] = found
    measured = class_measures(
        truth, predicted, len(classes), None if own is None else own.tolist(), seed
    )
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return ProbeResult(
        classes,
        rows,
        truth,
        predicted,
        measured["accuracy"],
        measured["balanced_accuracy"],
        measured["macro_f1"],
        _per_class(classes, confusion),
        confusion,
        float(np.bincount(truth).max() / len(truth)),
        len(sides),
        None if own is None else len(set(own)),
        notes,
    )


def trained(vectors: npt.ArrayLike, probed: ProbeResult, strength: float = 1.0) -> Pipeline:
    """The probe fitted to all rows that took part; its classes are names."""
    names = np.array(probed.classes)[probed.truth]
    return linear_probe(strength).fit(np.asarray(vectors, np.float64)[probed.rows], names)


def check_rows(
    vectors: npt.ArrayLike,
    names: Sequence[object],
    groups: Sequence[str | None] | None,
    folds: int,
    strength: float,
) -> FloatArray:
    """The vectors (n, d) as float64.

    Raises:
        LabelsError: lengths that differ, numbers that are not finite, fewer than two folds.
    """
    every = np.asarray(vectors, np.float64)
    if every.ndim != 2 or len(every) != len(names):
        raise LabelsError(f"{len(names)} names do not fit vectors of shape {every.shape}")
    if groups is not None and len(groups) != len(names):
        raise LabelsError(f"{len(groups)} groups do not fit {len(names)} names")
    check_finite(every, LabelsError)
    if folds < 2:
        raise LabelsError(f"{folds} folds: two or more are needed, one to test on")
    if not strength > 0:
        raise LabelsError(f"a strength of {strength:g} cannot be; it is more than 0")
    return every


def rows_with(
    target: str, known: Sequence[bool], groups: Sequence[str | None] | None, notes: list[str]
) -> list[int]:
    """The rows whose target is known and, where there are groups, whose group is; the others are
    counted in the notes. target: its name in a sentence, `a class`.

    Raises:
        LabelsError: no target is known.
    """
    rows = [row for row, one in enumerate(known) if one]
    if not rows:
        raise LabelsError(f"no row has {target}")
    if without := len(known) - len(rows):
        notes.append(f"{without:,} rows have no {target.removeprefix('a ')} and were left out")
    if groups is not None:
        grouped = [row for row in rows if groups[row] is not None]
        if without := len(rows) - len(grouped):
            notes.append(f"{without:,} rows have no group and were left out")
        rows = grouped
    return rows


def classes_taking_part(
    names: Sequence[str | None], groups: Sequence[str | None] | None, notes: list[str]
) -> tuple[Places, list[str]]:
    """The rows of classes that can be on both sides, with a group where there are groups."""
    named = rows_with("a class", [name is not None for name in names], groups, notes)
    places: dict[str, set[object]] = {}
    for row in named:
        places.setdefault(str(names[row]), set()).add(row if groups is None else groups[row])
    lone = sorted(name for name, found in places.items() if len(found) < 2)
    unit = "row" if groups is None else "group"
    if len(places) - len(lone) < 2:
        received = f"{len(lone)} of {len(places)} classes have one {unit} only"
        if not lone:
            received = f"all rows are {next(iter(places))!r}" if places else "no row has a class"
        raise LabelsError(
            f"a probe needs two classes, each in two {unit}s or more, so that "
            f"it can be trained on one and tested on another: {received}"
        )
    if lone:
        listed = ", ".join(lone[:5]) + (", …" if len(lone) > 5 else "")
        notes.append(f"left out, of one {unit} only: {listed}")
    return np.array([row for row in named if names[row] not in set(lone)], np.int64), notes


def test_sides(
    truth: Places, groups: npt.NDArray[Any] | None, folds: int, seed: int, notes: list[str]
) -> list[Mask]:
    """The test side (n,) of each fold."""
    least, largest = int(np.bincount(truth).min()), int(np.bincount(truth).max())
    own = np.arange(len(truth)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count, unit = int(own.max()) + 1, "rows" if groups is None else "groups"
    if folds > count:
        notes.append(f"{count} folds, as there are {count} {unit}")
        folds = count
    if count == len(truth) and largest < folds:
        notes.append(f"{largest} folds: the largest class has {largest} rows")
        folds = largest
    elif count == len(truth) and least < folds:
        notes.append(f"the smallest class has {least} rows, fewer than {folds} folds")
    sides = [side for side in partitions(truth, own, folds, 1, seed) if side.any()]
    unseen = sum(len(set(truth[side]) - set(truth[~side])) for side in sides)
    if unseen:
        notes.append(f"{unseen} times a class was tested that was not trained on; it counts wrong")
    return sides


def _per_class(classes: list[str], confusion: Places) -> list[PerClass]:
    hits, rows, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        PerClass(
            name,
            int(rows[place]),
            float(hits[place] / max(1, named[place])),
            float(hits[place] / max(1, rows[place])),
            float(2 * hits[place] / max(1, rows[place] + named[place])),
        )
        for place, name in enumerate(classes)
    ]


def confused(probed: ProbeResult, most: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent confusions: (true class, predicted class, count)."""
    counts = Counter(
        {
            (probed.classes[true], probed.classes[other]): int(probed.confusion[true, other])
            for true, other in zip(*np.nonzero(probed.confusion), strict=True)
            if true != other
        }
    )
    return [(true, other, count) for (true, other), count in counts.most_common(most)]
