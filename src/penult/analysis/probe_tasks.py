"""Linear probes of several labels an item and of values, in grouped cross-validation: what
`penult.analysis.probe` is for one class an item. Numpy in, a small dataclass out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.analysis import metrics
from penult.analysis.bootstrap import Estimate
from penult.analysis.episodes import partitions
from penult.analysis.prediction_measures import (
    LWLRAP,
    MAP,
    MULTI_LABEL,
    REGRESSION,
    label_measures,
    value_measures,
)
from penult.analysis.probe import check_rows, linear_probe, rows_with
from penult.errors import LabelsError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_INNER = 3  # folds inside of a training side
PENALTIES = tuple(10.0**power for power in range(-2, 8))  # of ridge, on standardised numbers
_BINS = 10  # of values, that are spread over the folds


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One class of several labels: rows that have it, average precision, F1, and the threshold that
    all rows together give."""

    name: str
    rows: int
    average_precision: float
    f1: float
    threshold: float


@dataclass(frozen=True, slots=True)
class MultiLabelProbe:
    """Cross-validated scores of one logistic regression for each class.

    rows: the places of the rows that took part. truth, predicted: (n, K) their labels. scores:
    (n, K) probabilities by probes that did not see the row's group. measures: see
    `label_measures`. chance: mAP and lwlrap of the classes' frequencies alone.
    """

    classes: list[str]
    rows: Rows
    truth: Mask
    scores: FloatArray
    predicted: Mask
    measures: dict[str, Estimate]
    per_class: list[LabelScore]
    chance: dict[str, float]
    folds: int
    groups: int | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self, name: str = "vectors") -> dict[str, Any]:
        """For JSON. name: of the matrix that was probed."""
        return {
            "task": MULTI_LABEL,
            "rows": len(self.rows),
            "classes": self.classes,
            "folds": self.folds,
            "groups": self.groups,
            "chance": self.chance,
            "measures": {name: {each: one.to_dict() for each, one in self.measures.items()}},
            "per_class": [asdict(one) for one in self.per_class],
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True)
class RegressionProbe:
    """Cross-validated values by ridge regression.

    rows: the places of the rows that took part. truth, predicted: (n,). measures: see
    `value_measures`. chance: the mean absolute error of the training sides' median. penalties: the
    penalty of each fold, chosen inside of its training side.
    """

    rows: Rows
    truth: FloatArray
    predicted: FloatArray
    measures: dict[str, Estimate]
    chance: dict[str, float]
    penalties: list[float]
    folds: int
    groups: int | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self, name: str = "vectors") -> dict[str, Any]:
        """For JSON. name: of the matrix that was probed."""
        return {
            "task": REGRESSION,
            "rows": len(self.rows),
            "folds": self.folds,
            "groups": self.groups,
            "chance": self.chance,
            "penalties": self.penalties,
            "range": [float(self.truth.min()), float(self.truth.max())],
            "measures": {name: {each: one.to_dict() for each, one in self.measures.items()}},
            "notes": self.notes,
        }


def probe_labels(
    vectors: npt.ArrayLike,
    labels: Sequence[Sequence[str] | None],
    groups: Sequence[str | None] | None = None,
    folds: int = 5,
    seed: int = 0,
    strength: float = 1.0,
) -> MultiLabelProbe:
    """One logistic regression for each class, tested by cross-validation; the threshold of each
    class is the best one for F1 on held-out scores inside of the training side.

    vectors: (n, d). labels: of each row, several or none of them; rows with None take no part.
    groups: such as the recording; each is on one side of every fold. A class of one row, or one
    group, is left out, and so is one that all rows have.

    Raises:
        LabelsError: no class is left, lengths that differ, or vectors that are not finite.
    """
    every = check_rows(vectors, labels, groups, folds, strength)
    rows, own, notes = _taking_part([one is not None for one in labels], groups, "labels")
    classes, truth = _label_table([labels[row] or () for row in rows], own, notes)
    # Of an item's labels the rarest decides in which fold it is missed most.
    rarity = np.where(truth, truth.sum(axis=0), len(rows) + 1)
    strata = np.where(truth.any(axis=1), rarity.argmin(axis=1), len(classes))
    sides = _sides(strata, own, folds, seed, notes)
    scores, predicted = np.zeros(truth.shape), np.zeros(truth.shape, bool)
    matrix = every[rows]
    for side in sides:
        train = ~side
        scores[side] = _label_scores(matrix[train], truth[train], matrix[side], strength)
        limits = _thresholds(matrix[train], truth[train], strata[train], own[train], seed, strength)
        predicted[side] = scores[side] >= limits
    grouped = None if groups is None else own.tolist()
    each, _, _ = metrics.f1_scores(truth, predicted)
    precisions = metrics.average_precisions(truth, scores)
    # For all rows: of the scores that no probe was fitted to.
    limits = metrics.best_thresholds(truth, scores)
    return MultiLabelProbe(
        classes,
        rows,
        truth,
        scores,
        predicted,
        label_measures(truth, scores, predicted, grouped, seed),
        [LabelScore(name, int(truth[:, k].sum()), *(float(one[k]) for one in
                    (precisions, each, limits))) for k, name in enumerate(classes)],
        _chance(truth),
        len(sides),
        None if groups is None else len(set(own.tolist())),
        notes,
    )  # fmt: skip


def probe_values(
    vectors: npt.ArrayLike,
    values: Sequence[float | None],
    groups: Sequence[str | None] | None = None,
    folds: int = 5,
    seed: int = 0,
    strength: float | None = None,
) -> RegressionProbe:
    """Ridge regression on standardised vectors, tested by cross-validation.

    vectors: (n, d). values: (n,); rows with None or NaN take no part. groups: such as the speaker;
    each is on one side of every fold. strength: inverse of the L2 penalty; None chooses it inside
    of each training side, by the squared error on held-out groups.

    Raises:
        LabelsError: fewer than two values or groups, lengths that differ, numbers that are not
            finite.
    """
    every = check_rows(vectors, values, groups, folds, 1.0 if strength is None else strength)
    known = [one is not None and not np.isnan(one) for one in values]
    rows, own, notes = _taking_part(known, groups, "a value")
    truth = np.array([values[row] for row in rows], np.float64)
    if not np.isfinite(truth).all():
        raise LabelsError(f"{int((~np.isfinite(truth)).sum())} values are infinite")
    metrics.check_varied(truth)
    sides = _sides(_strata(truth), own, folds, seed, notes)
    predicted, constant = np.zeros(len(truth)), np.zeros(len(truth))
    matrix, penalties = every[rows], list[float]()
    for side in sides:
        train = ~side
        model = _ridge(matrix[train], truth[train], own[train], seed, strength, folds)
        penalties.append(float(model[-1].alpha))
        predicted[side] = model.predict(matrix[side])
        constant[side] = np.median(truth[train])
    return RegressionProbe(
        rows,
        truth,
        predicted,
        value_measures(truth, predicted, None if groups is None else own.tolist(), seed),
        {"mae": float(np.abs(truth - constant).mean())},
        penalties,
        len(sides),
        None if groups is None else len(set(own.tolist())),
        notes,
    )


def trained_labels(
    vectors: npt.ArrayLike, probed: MultiLabelProbe, strength: float = 1.0
) -> Pipeline:
    """The probe fitted to all rows that took part; `predict_proba` gives (n, K)."""
    from sklearn.multiclass import OneVsRestClassifier

    pipeline = linear_probe(strength)
    pipeline.steps[-1] = ("onevsrestclassifier", OneVsRestClassifier(pipeline[-1]))
    return pipeline.fit(np.asarray(vectors, np.float64)[probed.rows], probed.truth.astype(np.int64))


def trained_values(
    vectors: npt.ArrayLike,
    probed: RegressionProbe,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
    strength: float | None = None,
) -> Pipeline:
    """The probe fitted to all rows that took part; `predict` gives (n,) values."""
    own = _numbers(None if groups is None else [groups[r] for r in probed.rows], len(probed.rows))
    matrix = np.asarray(vectors, np.float64)[probed.rows]
    return _ridge(matrix, probed.truth, own, seed, strength, probed.folds)


def _numbers(groups: Sequence[object] | None, count: int) -> Rows:
    if groups is None:
        return np.arange(count, dtype=np.int64)
    return np.unique([str(one) for one in groups], return_inverse=True)[1].astype(np.int64)


def _taking_part(
    known: Sequence[bool], groups: Sequence[str | None] | None, target: str
) -> tuple[Rows, Rows, list[str]]:
    """(rows with a target and a group, number of each one's group, notes)."""
    notes = list[str]()
    rows = rows_with(target, known, groups, notes)
    own = _numbers(None if groups is None else [groups[row] for row in rows], len(rows))
    if len(set(own.tolist())) < 2:
        unit = "row" if groups is None else "group"
        raise LabelsError(
            f"a probe needs two {unit}s, one to train on and one to test on: "
            f"received {len(set(own.tolist()))}"
        )
    return np.array(rows, np.int64), own, notes


def _label_table(
    labels: Sequence[Sequence[str]], groups: Rows, notes: list[str]
) -> tuple[list[str], Mask]:
    """The classes of two groups or more, and (n, K) which row has which."""
    places: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for own, group in zip(labels, groups.tolist(), strict=True):
        for name in dict.fromkeys(own):
            places.setdefault(name, set()).add(group)
            counts[name] = counts.get(name, 0) + 1
    lone = sorted(name for name, found in places.items() if len(found) < 2)
    full = sorted(name for name, count in counts.items() if count == len(labels))
    classes = sorted(set(places) - set(lone) - set(full))
    unit = "row" if len(set(groups.tolist())) == len(groups) else "group"
    if not classes:
        raise LabelsError(
            f"a probe needs a class in two {unit}s or more, that not all rows have: of "
            f"{len(places)} classes {len(lone)} have one {unit} only and {len(full)} have all rows"
        )
    for told, names in ((f"of one {unit} only", lone), ("which all rows have", full)):
        if names:
            listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            notes.append(f"left out, {told}: {listed}")
    held = [set(own) for own in labels]
    return classes, np.array([[name in own for name in classes] for own in held], bool)


def _sides(strata: Rows, own: Rows, folds: int, seed: int, notes: list[str]) -> list[Mask]:
    """The test side (n,) of each fold."""
    count = len(set(own.tolist()))
    if folds > count:
        unit = "rows" if count == len(own) else "groups"
        notes.append(f"{count} folds, as there are {count} {unit}")
    return list(_divided(strata, own, min(folds, count), seed))


def _divided(strata: Rows, own: Rows, folds: int, seed: int) -> Iterator[Mask]:
    """Sides that share no group, with rows of each stratum; a stratum that is smaller than there
    are folds is one with the others of its kind."""
    sizes = np.bincount(strata)
    strata = np.where(sizes[strata] < folds, len(sizes), strata)
    if np.bincount(strata).max() < folds:
        strata = np.zeros(len(strata), np.int64)
    yield from (side for side in partitions(strata, own, folds, 1, seed) if side.any())


def _strata(values: FloatArray) -> Rows:
    """The tenth of all values that each lies in."""
    ranks = np.unique(values, return_inverse=True)[1].reshape(-1)
    return (ranks * _BINS // (int(ranks.max()) + 1)).astype(np.int64)


def _label_scores(rows: FloatArray, truth: Mask, others: FloatArray, strength: float) -> FloatArray:
    """(m, K) probabilities of other rows; a class that all rows have, or none, has their share."""
    pipeline = linear_probe(strength)
    scaler, head = pipeline[0].fit(rows), pipeline[-1]
    rows, others = scaler.transform(rows), scaler.transform(others)
    scores = np.empty((len(others), truth.shape[1]))
    for number, held in enumerate(truth.T):
        if held.all() or not held.any():
            scores[:, number] = held.mean()
        else:
            scores[:, number] = head.fit(rows, held).predict_proba(others)[:, 1]
    return scores


def _thresholds(
    rows: FloatArray, truth: Mask, strata: Rows, own: Rows, seed: int, strength: float
) -> FloatArray:
    """(K,) the best thresholds on scores of these rows that were held out of them in turn; one half
    where a side has no two groups."""
    folds = min(_INNER, len(set(own.tolist())))
    if folds < 2:
        return np.full(truth.shape[1], 0.5)
    scores = np.zeros(truth.shape)
    for side in _divided(strata, own, folds, seed):
        scores[side] = _label_scores(rows[~side], truth[~side], rows[side], strength)
    return metrics.best_thresholds(truth, scores)


def _ridge(
    rows: FloatArray, values: FloatArray, own: Rows, seed: int, strength: float | None, folds: int
) -> Pipeline:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    penalty = 1.0 if strength is None else 1 / strength
    folds = min(folds, len(set(own.tolist())))
    if strength is None and folds > 1:
        sides = _divided(_strata(values), own, folds, seed)
        errors = sum(_errors(rows[~side], values[~side], rows[side], values[side])
                     for side in sides)  # fmt: skip
        penalty = PENALTIES[int(np.argmin(errors))]
    return make_pipeline(StandardScaler(), Ridge(penalty)).fit(rows, values)


def _errors(
    rows: FloatArray, values: FloatArray, others: FloatArray, truth: FloatArray
) -> FloatArray:
    """The squared errors on other rows of ridge with each of the penalties, from one decomposition
    of the smaller of XᵀX and XXᵀ."""
    from sklearn.preprocessing import StandardScaler

    scaler, middle = StandardScaler().fit(rows), values.mean()
    rows, others = scaler.transform(rows), scaler.transform(others)
    if len(rows) < rows.shape[1]:
        gram, others, target = rows @ rows.T, others @ rows.T, values - middle
    else:
        gram, target = rows.T @ rows, rows.T @ (values - middle)
    powers, basis = np.linalg.eigh(gram)
    shares = (basis.T @ target)[:, None] / (powers.clip(0)[:, None] + np.array(PENALTIES))
    error: FloatArray = ((others @ basis @ shares + middle - truth[:, None]) ** 2).sum(axis=0)
    return error


def _chance(truth: Mask) -> dict[str, float]:
    """mAP and lwlrap of the same scores for every row: how frequent the classes are."""
    shares = truth.mean(axis=0)
    alike = np.broadcast_to(shares, truth.shape)
    return {MAP: float(shares.mean()), LWLRAP: metrics.lwlrap(truth, alike)}
