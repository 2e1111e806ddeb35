"""Evaluation of vectors by several labels or by values, through their nearest neighbours, and of a
classifier's own predictions of any kind. Numpy in, a small object out; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis import metrics
from penult.analysis.bootstrap import Estimate, estimate
from penult.analysis.episodes import numbered, own_groups
from penult.analysis.prediction_measures import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    WORDS,
    class_measures,
    label_measures,
    value_measures,
)
from penult.analysis.space import unit
from penult.errors import LabelsError

FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NEIGHBOURS = 10
ASSIGNED = 0.5  # the score from which a label of several counts as predicted
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class TaskEvaluation:
    """Measures of one task. measured: `vectors` or `predictions`. estimates: with intervals.
    figures: without one. per_class: average precision (multi-label) or recall (single-label), the
    hardest class first. notes: what was left out, and why."""

    task: str
    measured: str
    estimates: Mapping[str, Estimate]
    figures: Mapping[str, float]
    items: int
    groups: int | None
    per_class: Mapping[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult evaluate --json` prints it."""
        return {
            "task": self.task,
            "measured": self.measured,
            "items": self.items,
            "groups": self.groups,
            "estimates": {name: one.to_dict() for name, one in self.estimates.items()},
            "figures": dict(self.figures),
            "by_class": dict(self.per_class),
            "notes": list(self.notes),
        }


def evaluate_labels(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[Sequence[str] | None],
    groups: Sequence[str | None] | None = None,
) -> TaskEvaluation:
    """Measure (n, d) vectors, in their space, by the labels of their nearest neighbours of other
    groups: retrieval of rows that share a label (mean average precision), and the share of the
    ten nearest rows that have a label as its score. Rows with None take no part.

    Raises:
        LabelsError: no labels, or all rows are of one group.
    """
    known = np.array([one is not None for one in labels], bool)
    classes = sorted({name for own in labels for name in own or ()})
    if not classes:
        raise LabelsError("no row has labels")
    truth = np.array([[name in own for name in classes] for own in labels if own is not None], bool)
    rows, own, notes = vectors[known], _groups_of(groups, known), _left_out(known, "labels")
    scores, precision = np.full(truth.shape, np.nan), np.full(len(truth), np.nan)
    for mine, order, others in _nearest(rows, own):
        shares = truth[order[:, :NEIGHBOURS]] * others[:, :NEIGHBOURS, None]
        scores[mine] = shares.sum(axis=1) / others[:, :NEIGHBOURS].sum(axis=1)[:, None]
        relevant = np.take_along_axis((truth[mine].astype(np.int64) @ truth.T) > 0, order, axis=1)
        precision[mine] = metrics.ranked_precision(relevant, others)
    there = np.isfinite(scores[:, 0])
    used = None if groups is None else own[there].tolist()
    measures = label_measures(truth[there], scores[there], scores[there] >= ASSIGNED, used)
    each = metrics.average_precisions(truth[there], scores[there])
    return TaskEvaluation(
        MULTI_LABEL,
        "vectors",
        {
            "retrieval of a shared label, mAP": estimate(precision[there], own[there]),
            **{f"{NEIGHBOURS} nearest neighbours, {WORDS[name]}": one
               for name, one in measures.items()},
        },
        {},
        int(there.sum()),
        None if groups is None else len(set(own.tolist())),
        _hardest(classes, each),
        notes,
    )  # fmt: skip


def evaluate_values(
    vectors: npt.NDArray[np.float32],
    values: Sequence[float | None],
    groups: Sequence[str | None] | None = None,
) -> TaskEvaluation:
    """Measure (n, d) vectors, in their space, by k-nearest-neighbour regression: the mean value of
    the ten nearest rows of other groups. Rows with None or NaN take no part.

    Raises:
        LabelsError: no values, one value alone, or all rows are of one group.
    """
    known = np.array([one is not None and bool(np.isfinite(one)) for one in values], bool)
    if not known.any():
        raise LabelsError("no row has a value")
    truth = np.array([one for one, there in zip(values, known, strict=True) if there], np.float64)
    metrics.check_varied(truth)
    rows, own, notes = vectors[known], _groups_of(groups, known), _left_out(known, "value")
    predicted = np.full(len(truth), np.nan)
    for mine, order, others in _nearest(rows, own):
        weights = others[:, :NEIGHBOURS].astype(np.float64)
        predicted[mine] = (truth[order[:, :NEIGHBOURS]] * weights).sum(1) / weights.sum(1)
    there = np.isfinite(predicted)
    used = None if groups is None else own[there].tolist()
    measures = value_measures(truth[there], predicted[there], used)
    named = {f"{NEIGHBOURS} nearest neighbours, {WORDS[n]}": one for n, one in measures.items()}
    return TaskEvaluation(
        REGRESSION,
        "vectors",
        named,
        {},
        int(there.sum()),
        None if groups is None else len(set(own.tolist())),
        {},
        (*notes, *_hardly_varied(truth[there], predicted[there])),
    )


def evaluate_predicted_classes(
    truth: Sequence[str | None],
    scores: npt.ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str | None] | None = None,
) -> TaskEvaluation:
    """Accuracy, balanced accuracy, macro F1 and expected calibration error of probabilities (n, K);
    rows without a class, or of one that the classifier does not know, take no part.

    Raises:
        LabelsError: no row's class is one of the classifier's.
    """
    number = {name: place for place, name in enumerate(classes)}
    known = np.array([one in number for one in truth], bool)
    notes = _unknown([[one] for one in truth if one is not None], classes, int((~known).sum()))
    held = np.array([number[one] for one in truth if one in number], np.int64)
    shares = np.asarray(scores, np.float64)[known]
    predicted, own = shares.argmax(axis=1), _groups_of(groups, known)
    used = None if groups is None else own.tolist()
    measures = class_measures(held, predicted, len(classes), used)
    counts = np.bincount(held, minlength=len(classes))
    hits = np.bincount(held[held == predicted], minlength=len(classes))
    recall = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return TaskEvaluation(
        SINGLE_LABEL,
        "predictions",
        {WORDS[name]: one for name, one in measures.items()},
        {WORDS["ece"]: metrics.calibration_error(shares.max(axis=1), held == predicted)},
        len(held),
        None if groups is None else len(set(own.tolist())),
        _hardest(classes, recall),
        notes,
    )


def evaluate_predicted_labels(
    truth: Sequence[Sequence[str] | None],
    scores: npt.ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str | None] | None = None,
) -> TaskEvaluation:
    """mAP, lwlrap, and F1 where a score of 0.5 assigns a label, of scores (n, K); rows with None
    take no part, and classes without a row count in no mean.

    Raises:
        LabelsError: no row has a label that is one of the classifier's.
    """
    known = np.array([one is not None for one in truth], bool)
    labels = [one for one in truth if one is not None]
    notes = (*_left_out(known, "labels"), *_unknown(labels, classes, 0))
    held = np.array([[name in own for name in classes] for own in map(set, labels)], bool)
    given, own = np.asarray(scores, np.float64)[known], _groups_of(groups, known)
    used = None if groups is None else own.tolist()
    measures = label_measures(held, given, given >= ASSIGNED, used)
    return TaskEvaluation(
        MULTI_LABEL,
        "predictions",
        {WORDS[name]: one for name, one in measures.items()},
        {"classes with rows": float(held.any(axis=0).sum())},
        len(held),
        None if groups is None else len(set(own.tolist())),
        _hardest(classes, metrics.average_precisions(held, given)),
        notes,
    )


def evaluate_predicted_values(
    truth: Sequence[float | None],
    predicted: npt.ArrayLike,
    groups: Sequence[str | None] | None = None,
) -> TaskEvaluation:
    """R², CCC, MAE and Pearson's r of predicted values (n,); rows with None or NaN take no part.

    Raises:
        LabelsError: no row has a value.
    """
    known = np.array([one is not None and bool(np.isfinite(one)) for one in truth], bool)
    if not known.any():
        raise LabelsError("no row has a value")
    held = np.array([one for one, there in zip(truth, known, strict=True) if there], np.float64)
    given, own = np.asarray(predicted, np.float64)[known], _groups_of(groups, known)
    measures = value_measures(held, given, None if groups is None else own.tolist())
    return TaskEvaluation(
        REGRESSION,
        "predictions",
        {WORDS[name]: one for name, one in measures.items()},
        {"mean of the truth": float(held.mean()), "mean predicted": float(given.mean())},
        len(held),
        None if groups is None else len(set(own.tolist())),
        {},
        (*_left_out(known, "value"), *_hardly_varied(held, given)),
    )


_MOSTLY = 0.9  # of the rows


def _hardly_varied(truth: FloatArray, predicted: FloatArray) -> tuple[str, ...]:
    """What measures cannot be, where values or predictions are one number, or nearly all are."""
    each, counts = np.unique(truth, return_counts=True)
    most = int(counts.argmax())
    if (one := metrics.one_value(truth)) is not None:
        return (f"all values are {one:g}: R² and Pearson's r, which compare with how they vary, "
                "have no value; MAE has",)  # fmt: skip
    if (one := metrics.one_value(predicted)) is not None:
        return (f"all predictions are {one:g}: Pearson's r has no value",)
    if counts[most] >= _MOSTLY * len(truth):
        others = len(truth) - int(counts[most])
        return (f"{counts[most]:,} of {len(truth):,} values are {each[most]:g}: R², CCC and "
                f"Pearson's r rest on the other {others:,}",)  # fmt: skip
    return ()


def _groups_of(groups: Sequence[str | None] | None, known: Mask) -> Rows:
    """(m,) numbers of the groups of the rows that take part; one without is a group of its own."""
    names = np.array(own_groups([None] * len(known) if groups is None else groups))
    return numbered(names[known])[0]


def _left_out(known: Mask, target: str) -> tuple[str, ...]:
    without = int((~known).sum())
    return (f"{without:,} of {len(known):,} rows have no {target}",) if without else ()


def _unknown(
    labels: Sequence[Sequence[str]], classes: Sequence[str], without: int
) -> tuple[str, ...]:
    """Notes on names that are none of the classifier's, and on rows that take no part."""
    there = {name for own in labels for name in own}
    foreign = sorted(there - set(classes))
    if not there & set(classes):
        raise LabelsError(
            f"no row's class is one of the classifier's: rows have {', '.join(foreign[:3])}, the "
            f"classifier {', '.join(classes[:3])}; name them alike, or leave --predictions out"
        )
    found = [f"{without:,} rows have no class that the classifier knows"] if without else []
    if foreign:
        listed = ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else "")
        found.append(f"not among the classifier's classes: {listed}")
    return tuple(found)


def _hardest(classes: Sequence[str], values: FloatArray) -> dict[str, float]:
    pairs = [(name, float(one)) for name, one in zip(classes, values, strict=True)]
    return dict(sorted((one for one in pairs if np.isfinite(one[1])), key=lambda one: one[1]))


def _nearest(
    vectors: npt.NDArray[np.float32], groups: Rows, seed: int = 0
) -> Iterator[tuple[Rows, Rows, Mask]]:
    """(rows (m,), all rows nearest first by cosine (m, n), whether these are of other groups), in
    blocks; equally near ones in a random order. Rows without any of another group are left out.

    Raises:
        LabelsError: all rows are of one group.
    """
    if len(set(groups.tolist())) < 2:
        raise LabelsError("all items are of one group; neighbours are of another group")
    rows = unit(np.asarray(vectors, np.float32))
    mixed = np.random.default_rng(seed).permutation(len(rows))
    for at in range(0, len(rows), _BLOCK):
        mine = np.arange(at, min(at + _BLOCK, len(rows)))
        cosine = (rows[mine] @ rows.T).astype(np.float64)
        cosine[groups[mine][:, None] == groups[None]] = -np.inf
        order = mixed[np.argsort(-cosine[:, mixed], axis=1, kind="stable")]
        yield mine, order, np.isfinite(np.take_along_axis(cosine, order, axis=1))
