"""Linear probes: how well classes can be read off vectors, on rows kept apart, group by group.

Numpy in, a small dataclass out; knows no model and no collection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import linear_probe
from penult.errors import LabelsError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_DRAWS = 2000  # resamples for an interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure with its 95 % interval: of groups (else of rows) drawn with replacement."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PerClass:
    """One class: rows of it, and how well it was told."""

    name: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe gave on rows that it was not trained on.

    rows: the places of those that took part. predicted: their classes, as numbers in `classes`.
    confusion: (K, K) counts, true by predicted. chance: the share of the most frequent class.
    """

    classes: list[str]
    rows: Places
    truth: Places
    predicted: Places
    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    per_class: list[PerClass]
    confusion: Places
    chance: float
    folds: int
    groups: int | None
    notes: list[str] = field(default_factory=list)


def probe(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    folds: int = 5,
    seed: int = 0,
    strength: float = 1.0,
) -> Probed:
    """Train and test a linear probe (Alain and Bengio, 2016) by stratified cross-validation.

    vectors: (n, d). names: the class of each row; rows without one take no part. groups: what must
    not be on both sides, such as the speaker. A class that cannot be on both sides is left out.

    Raises:
        LabelsError: fewer than two classes are left, lengths that differ, or vectors that are not
            finite.
    """
    every = _checked(vectors, names, groups, folds, strength)
    notes: list[str] = []
    rows, notes = _taking_part(names, groups, notes)
    classes = sorted({str(names[row]) for row in rows})
    number = {name: place for place, name in enumerate(classes)}
    truth = np.array([number[str(names[row])] for row in rows], np.int64)
    own = None if groups is None else np.array([str(groups[row]) for row in rows])
    splits, folds = _splits(truth, own, folds, seed, notes)
    predicted = np.full(len(rows), -1, np.int64)
    for train, test in splits:
        fitted = linear_probe(strength).fit(every[rows[train]], truth[train])
        predicted[test] = fitted.predict(every[rows[test]])
    accuracy, balanced, f1 = _intervals(truth, predicted, own, len(classes), seed)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return Probed(
        classes,
        rows,
        truth,
        predicted,
        accuracy,
        balanced,
        f1,
        _per_class(classes, confusion),
        confusion,
        float(np.bincount(truth).max() / len(truth)),
        folds,
        None if own is None else len(set(own)),
        notes,
    )


def trained(vectors: npt.ArrayLike, probed: Probed, strength: float = 1.0) -> Pipeline:
    """The probe on all rows that took part, to be kept; its classes are names."""
    names = np.array(probed.classes)[probed.truth]
    return linear_probe(strength).fit(np.asarray(vectors, np.float64)[probed.rows], names)


def _checked(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None,
    folds: int,
    strength: float,
) -> FloatArray:
    every = np.asarray(vectors, np.float64)
    if every.ndim != 2 or len(every) != len(names):
        raise LabelsError(f"{len(names)} names do not fit vectors of shape {every.shape}")
    if groups is not None and len(groups) != len(names):
        raise LabelsError(f"{len(groups)} groups do not fit {len(names)} names")
    if bad := int(np.logical_not(np.isfinite(every).all(axis=1)).sum()):
        raise LabelsError(f"{bad} of {len(every)} vectors have values that are not finite")
    if folds < 2:
        raise LabelsError(f"{folds} folds: two or more are needed, one to test on")
    if not strength > 0:
        raise LabelsError(f"a strength of {strength:g} cannot be; it is more than 0")
    return every


def _taking_part(
    names: Sequence[str | None], groups: Sequence[str | None] | None, notes: list[str]
) -> tuple[Places, list[str]]:
    """The rows with a class that can be on both sides, and a group where groups are asked for."""
    named = [row for row, name in enumerate(names) if name is not None]
    if not named:
        raise LabelsError("no row has a class")
    if without := len(names) - len(named):
        notes.append(f"{without:,} rows have no class and were left out")
    if groups is not None:
        grouped = [row for row in named if groups[row] is not None]
        if without := len(named) - len(grouped):
            notes.append(f"{without:,} rows have no group and were left out")
        named = grouped
    places: dict[str, set[object]] = {}
    for row in named:
        places.setdefault(str(names[row]), set()).add(row if groups is None else groups[row])
    lone = sorted(name for name, found in places.items() if len(found) < 2)
    what = "one row" if groups is None else "one group"
    if len(places) - len(lone) < 2:
        told = f"{len(lone)} of {len(places)} classes have {what} only"
        if not lone:
            told = f"all rows are {next(iter(places))!r}" if places else "no row has a class"
        raise LabelsError(
            f"a probe needs two classes, each in two {what.removeprefix('one ')}s or more, so that "
            f"it can be trained on one and tested on another: {told}"
        )
    if lone:
        listed = ", ".join(lone[:5]) + (", …" if len(lone) > 5 else "")
        notes.append(f"left out, of {what} only: {listed}")
    return np.array([row for row in named if names[row] not in set(lone)], np.int64), notes


def _splits(
    truth: Places, groups: npt.NDArray[Any] | None, folds: int, seed: int, notes: list[str]
) -> tuple[list[tuple[Places, Places]], int]:
    """Rows to train on and to test on, for each fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    least = int(np.bincount(truth).min())
    most = len(truth) if groups is None else len(set(groups))
    if folds > most:
        notes.append(f"{most} folds, as there are {most} {'rows' if groups is None else 'groups'}")
        folds = most
    if groups is None and least < folds:
        folds_of = int(np.bincount(truth).max())
        if folds_of < folds:
            notes.append(f"{folds_of} folds: the largest class has {folds_of} rows")
            folds = folds_of
        else:
            notes.append(f"the smallest class has {least} rows, fewer than {folds} folds")
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    splits = [
        (np.asarray(train), np.asarray(test))
        for train, test in _quietly(splitter, truth, groups)
        if len(test)
    ]
    unseen = sum(len(set(truth[test]) - set(truth[train])) for train, test in splits)
    if unseen:
        notes.append(f"{unseen} times a class was tested that was not trained on; it counts wrong")
    return splits, len(splits)


def _quietly(splitter: Any, truth: Places, groups: npt.NDArray[Any] | None) -> list[Any]:
    """The splits, without scikit-learn's warning of small classes: that is told in `notes`."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(np.zeros((len(truth), 1)), truth, groups))


def _intervals(
    truth: Places, predicted: Places, groups: npt.NDArray[Any] | None, count: int, seed: int
) -> list[Interval]:
    """Accuracy, balanced accuracy and macro F1, each with the middle 95 % of resamples."""
    own = np.arange(len(truth)) if groups is None else np.unique(groups, return_inverse=True)[1]
    drawn = np.random.default_rng(seed)
    size = int(own.max()) + 1
    values = np.array(
        [
            _measures(
                truth, predicted, count, drawn.multinomial(size, np.full(size, 1 / size))[own]
            )
            for _ in range(_DRAWS)
        ]
    )
    low, high = np.nanpercentile(values, [2.5, 97.5], axis=0)
    exact = _measures(truth, predicted, count, np.ones(len(truth)))
    return [
        Interval(float(v), float(a), float(b)) for v, a, b in zip(exact, low, high, strict=True)
    ]


def _measures(
    truth: Places, predicted: Places, count: int, weight: npt.NDArray[Any]
) -> tuple[float, float, float]:
    """Of rows that count so often; over the classes that any of them has."""
    right = truth == predicted
    hits = np.bincount(truth[right], weight[right], count)
    rows, said = np.bincount(truth, weight, count), np.bincount(predicted, weight, count)
    there = rows > 0
    recall = hits[there] / rows[there]
    f1 = 2 * hits[there] / (rows + said)[there]
    return float(hits.sum() / rows.sum()), float(recall.mean()), float(f1.mean())


def _per_class(classes: list[str], confusion: Places) -> list[PerClass]:
    hits, rows, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        PerClass(
            name,
            int(rows[place]),
            float(hits[place] / max(1, said[place])),
            float(hits[place] / max(1, rows[place])),
            float(2 * hits[place] / max(1, rows[place] + said[place])),
        )
        for place, name in enumerate(classes)
    ]


def confused(probed: Probed, most: int = 5) -> list[tuple[str, str, int]]:
    """The pairs of classes that were taken for another most often: true, predicted, how often."""
    counts = Counter(
        {
            (probed.classes[true], probed.classes[said]): int(probed.confusion[true, said])
            for true, said in zip(*np.nonzero(probed.confusion), strict=True)
            if true != said
        }
    )
    return [(true, said, count) for (true, said), count in counts.most_common(most)]
