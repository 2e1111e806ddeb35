"""What labelled vectors are good for, all measures at once, with fixed seeds. Numpy in, a small
object out; knows no model and no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis import metrics
from penult.analysis.bootstrap import Estimate, estimate
from penult.analysis.candidates import Material, checked, constant, groups_of_classes, sample
from penult.analysis.episodes import CROWD, WAYS, Rows, TrialPlan, numbered, plan
from penult.analysis.probe import probe_hits
from penult.analysis.space import RAW, Space, fit
from penult.analysis.verification import cosines, equal_error, find_pairs
from penult.errors import LabelsError, SpaceError

MOST = 5000  # rows that are measured
PAIRS = 400_000  # that are compared at most
HUB_NEIGHBOURS = 10
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """estimates: accuracies and the mean average precision, each with its interval. figures: what
    has none. items, classes, groups: what was measured. notes: what was left out, and why."""

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


def evaluate(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    space: str | Space = RAW,
    ways: int = WAYS,
) -> Evaluation:
    """Measure (n, d) raw vectors with their classes and groups; rows without a class are left out.

    space: a recipe, or a space that was fitted elsewhere. For episodes and the crowd a recipe is
    fitted on the support sides; for the other measures, which have no sides, on all rows without
    their classes. ways: classes in an episode, fewer where there are fewer.

    Raises:
        LabelsError: too few classes, items or groups.
        SpaceError: values that are not finite, or a space that would see the labels.
    """
    _check_asked(space, ways)
    material, names, notes = _material(vectors, labels, groups)
    rows, classes, mates = material.vectors["rows"], material.labels, material.groups
    if ways > (there := len(names)) and ways != WAYS:
        raise LabelsError(f"--ways {ways} asks for more classes than there are: {there}")
    whole = fit(space, rows) if isinstance(space, str) else space
    moved = whole(rows)
    trials = plan(classes, mates, ways=ways, repeats=5, count=500)
    scores = trials.scores(
        rows, lambda seen: fit(space, rows[seen]) if isinstance(space, str) else space
    )
    estimates, more = _estimates(moved, scores, trials)
    return Evaluation(
        space=whole.recipe,
        estimates=estimates,
        figures=_figures(rows, moved, classes, mates),
        items=len(rows),
        classes=len(names),
        groups=len(np.unique(mates)),
        ways=trials.ways,
        shots=trials.shots,
        per_class=_per_class(scores[0], classes, names),
        notes=(*notes, *more),
    )


def _check_asked(space: str | Space, ways: int) -> None:
    if isinstance(space, str) and "within" in space.split("+"):
        raise SpaceError(
            f"the space {space!r} is fitted to the labels that it would be measured by; give one "
            "that does not look at labels, for example scale+l2"
        )
    if ways < 2:
        raise LabelsError(f"{ways}-way episodes ask nothing; give --ways 2 or more")


def _estimates(
    moved: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], trials: TrialPlan
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """What has an interval, and what is to be said of what has none. scores: of the trials."""
    classes, mates = trials.labels, trials.groups
    near = metrics.neighbours(moved, classes, mates, NEIGHBOURS)
    asked = near.rows
    probe, notes = _probe(moved, classes, mates)
    few = {}
    if trials.shots > 1:
        few[f"{trials.ways}-way {trials.shots}-shot"] = (scores[1], classes, mates)
    else:
        alone = "no few-shot episodes: most classes have too few items for two examples"
        notes = (alone, *notes)
    named = {
        f"{trials.ways}-way 1-shot": (scores[0], classes, mates),
        **few,
        f"1 example among {CROWD} of other classes": (scores[3], classes, mates),
        f"{NEIGHBOURS} nearest neighbours": (near.correct, classes[asked], mates[asked]),
        "linear probe": (probe, classes, mates),
        "retrieval, mean average precision": (near.precision, classes[asked], mates[asked]),
    }
    return {name: estimate(*one) for name, one in named.items()}, notes


def _figures(
    rows: npt.NDArray[np.float32], moved: npt.NDArray[np.float32], classes: Rows, mates: Rows
) -> dict[str, float]:
    """What has no interval. rows: raw. moved: in the space."""
    pairs = find_pairs(classes, mates, PAIRS)
    clusters = metrics.clustering(moved, classes)
    near = metrics.neighbours(moved, classes, mates, HUB_NEIGHBOURS)
    return {
        "verification, equal error rate": equal_error(cosines(moved, pairs), pairs.same).rate,
        **{f"k-means, {name.upper()}": value for name, value in clusters.items()},
        "hubness (skewness of 10-occurrence)": metrics.hubness(near.occurrence),
        "RankMe": metrics.rank_me(rows),
        "α-ReQ": metrics.alpha_req(rows),
    }


def _material(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str | None],
    groups: Sequence[str | None] | None,
) -> tuple[Material, list[str], tuple[str, ...]]:
    if len(labels) != len(vectors) or (groups is not None and len(groups) != len(vectors)):
        raise LabelsError(
            f"{len(vectors)} vectors, {len(labels)} labels"
            + (f" and {len(groups)} groups" if groups is not None else "")
            + ": give one for each vector"
        )
    held = np.array([name is not None for name in labels], bool)
    classes, names = numbered([name for name in labels if name is not None])
    own = [
        f"item {at}" if groups is None or groups[at] is None else f"group {groups[at]}"
        for at in np.flatnonzero(held).tolist()
    ]
    material = Material({"rows": vectors[held]}, classes, numbered(own)[0], "rows")
    found, notes = checked(material)
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
    return found.only(rows), names, notes


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
