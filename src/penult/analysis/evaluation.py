"""Evaluation of labelled vectors: few-shot, neighbours, probe, retrieval, pairs, clusters, hubness,
with fixed seeds. Numpy in, a small object out; knows no model and no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis import metrics
from penult.analysis.bootstrap import Estimate, estimate
from penult.analysis.candidates import (
    Material,
    constant,
    groups_of_classes,
    sample,
    sampled,
    usable,
)
from penult.analysis.episodes import CROWD, WAYS, Rows, TrialPlan, numbered, own_groups, plan
from penult.analysis.probe import probe_hits
from penult.analysis.space import RAW, Space, fit
from penult.analysis.verification import cosines, equal_error, find_pairs
from penult.errors import LabelsError, SpaceError

MOST = 5000  # rows that are measured
PAIRS = 400_000  # that are compared at most
HUB_NEIGHBOURS = 10
NEIGHBOURS = 5
ERROR = "verification, equal error rate"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures of labelled vectors.

    estimates: accuracies and the mean average precision, with intervals. figures: measures
    without one. items, classes, groups: how many were measured. per_class: one-shot accuracy, the
    hardest class first. notes: what was left out, and why.
    """

    space: str
    estimates: Mapping[str, Estimate]
    figures: Mapping[str, float]
    items: int
    classes: int
    groups: int
    ways: int
    shots: int
    per_class: Mapping[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult evaluate --json` prints it."""
        return {
            "space": self.space,
            "items": self.items,
            "classes": self.classes,
            "groups": self.groups,
            "ways": self.ways,
            "shots": self.shots,
            "estimates": {name: one.to_dict() for name, one in self.estimates.items()},
            "figures": dict(self.figures),
            "one_shot_by_class": dict(self.per_class),
            "notes": list(self.notes),
        }


def evaluate(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    space: str = RAW,
    ways: int = WAYS,
    fitted: Space | None = None,
) -> Evaluation:
    """Measure (n, d) raw vectors with their classes and groups; rows without a class are left out.

    space: a recipe. For episodes and the crowd it is fitted on the support sides; for the other
    measures, which have none, on all rows without their classes. ways: classes in an episode, fewer
    where there are fewer. fitted: a space that was fitted elsewhere, in place of the recipe.

    Raises:
        LabelsError: too few classes, items or groups.
        SpaceError: values that are not finite, or a space that would see the labels.
    """
    _check_arguments(space, ways)
    named, material, names, notes = _material(vectors, labels, groups)
    rows, classes, row_groups = material.vectors["rows"], material.labels, material.groups
    if ways > (there := len(names)) and ways != WAYS:
        raise LabelsError(f"--ways {ways} asks for more classes than there are: {there}")
    whole = fitted or fit(space, rows)
    moved = whole(rows)
    trials = plan(classes, row_groups, ways=ways, repeats=5, count=500)
    scores = trials.scores(rows, lambda seen: fitted or fit(space, rows[seen]))
    estimates, more = _estimates(moved, scores, trials)
    pairs = find_pairs(named.labels, named.groups, PAIRS)  # classes of one group too, as `verify`
    if drawn := pairs.note():
        more = (*more, f"the equal error rate is of {drawn}")
    error = equal_error(cosines(whole(named.vectors["rows"]), pairs), pairs.same).rate
    return Evaluation(
        space=whole.recipe,
        estimates=estimates,
        figures={ERROR: error, **_figures(rows, moved, trials)},
        items=len(rows),
        classes=len(names),
        groups=len(np.unique(row_groups)),
        ways=trials.ways,
        shots=trials.shots,
        per_class=_per_class(scores[0], classes, names),
        notes=(*notes, *more),
    )


def _check_arguments(space: str, ways: int) -> None:
    if "within" in space.split("+"):
        raise SpaceError(
            f"the space {space!r} is fitted to the labels that it would be measured by; give one "
            "that does not look at labels, for example scale+l2"
        )
    if ways < 2:
        raise LabelsError(f"{ways}-way episodes have nothing to tell apart; give --ways 2 or more")


def _estimates(
    moved: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], trials: TrialPlan
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """The measures with an interval, and notes on those that are missing. scores: of the trials."""
    classes, row_groups = trials.labels, trials.groups
    nearest = metrics.neighbours(moved, classes, row_groups, NEIGHBOURS)
    rows = nearest.rows
    probe, notes = _probe(moved, classes, row_groups)
    few = {}
    if trials.shots > 1:
        few[f"{trials.ways}-way {trials.shots}-shot"] = (scores[1], classes, row_groups)
    else:
        alone = "no few-shot episodes: most classes have too few items for two examples"
        notes = (alone, *notes)
    named = {
        f"{trials.ways}-way 1-shot": (scores[0], classes, row_groups),
        **few,
        f"1 example among {CROWD} of other classes": (scores[3], classes, row_groups),
        f"{NEIGHBOURS} nearest neighbours": (nearest.correct, classes[rows], row_groups[rows]),
        "linear probe": (probe, classes, row_groups),
        "retrieval, mean average precision": (nearest.precision, classes[rows], row_groups[rows]),
    }
    return {name: estimate(*one) for name, one in named.items()}, notes


def _figures(
    rows: npt.NDArray[np.float32], moved: npt.NDArray[np.float32], trials: TrialPlan
) -> dict[str, float]:
    """The measures without an interval. rows: raw. moved: in the space."""
    classes, row_groups = trials.labels, trials.groups
    clusters = metrics.clustering(moved, classes)
    nearest = metrics.neighbours(moved, classes, row_groups, HUB_NEIGHBOURS)
    return {
        **{f"k-means, {name.upper()}": value for name, value in clusters.items()},
        "hubness (skewness of 10-occurrence)": metrics.hubness(nearest.occurrence),
        "RankMe": metrics.rank_me(rows),
        "α-ReQ": metrics.alpha_req(rows),
    }


def _material(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str | None],
    groups: Sequence[str | None] | None,
) -> tuple[Material, Material, list[str], tuple[str, ...]]:
    """(the rows that have a class, those of them that are measured, names of their classes,
    notes)."""
    if len(labels) != len(vectors) or (groups is not None and len(groups) != len(vectors)):
        raise LabelsError(
            f"{len(vectors)} vectors, {len(labels)} labels"
            + (f" and {len(groups)} groups" if groups is not None else "")
            + ": give one for each vector"
        )
    held = np.array([name is not None for name in labels], bool)
    classes, names = numbered([name for name in labels if name is not None])
    own = np.array(own_groups([None] * len(labels) if groups is None else groups))[held]
    material = Material({"rows": vectors[held]}, classes, numbered(own)[0], "rows")
    found, notes = usable(material)
    if constant(found.vectors["rows"]):
        raise SpaceError(
            f"all {len(found.labels):,} vectors are the same, so that nothing can be measured; "
            "embed with another --tap or --pooling"
        )
    if len(found.labels) < len(material.labels):
        spread = groups_of_classes(material.labels, material.groups)
        names = [name for name, count in zip(names, spread, strict=True) if count > 1]
    rows = sample(found.labels, found.groups, MOST)
    names = [names[number] for number in np.unique(found.labels[rows])]
    if not rows.all():
        notes = (*notes, f"{int(rows.sum()):,} of {len(rows):,} rows were measured")
    if not held.all():
        notes = (*notes, f"{int((~held).sum()):,} of {len(held):,} rows have no class")
    return sampled(material, MOST), found.only(rows), names, notes


def _probe(
    vectors: npt.NDArray[np.float32], labels: Rows, groups: Rows
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    try:
        return probe_hits(vectors, labels, groups), ()
    except LabelsError as error:
        return np.full(len(labels), np.nan), (f"no linear probe: {error}",)


def _per_class(scores: npt.NDArray[np.float32], labels: Rows, names: list[str]) -> dict[str, float]:
    """One-shot accuracy of each class's queries, the hardest first."""
    found = {}
    for number, name in enumerate(names):
        own = scores[labels == number]
        if np.isfinite(own).any():
            found[name] = float(np.nanmean(own))
    return dict(sorted(found.items(), key=lambda pair: pair[1]))
