"""Selection of a reading: finalists tried on held-out classes, and the decision between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import Estimate, estimate, estimates
from penult.analysis.candidates import (
    NOTEBOOK,
    SEED,
    Material,
    Setting,
    finalists,
    limited,
    sampled,
    score_all,
    smoothed,
    usable,
)
from penult.analysis.episodes import MEASURES, Array, Mask, Rows, numbered, partitions, plan
from penult.analysis.space import Space
from penult.errors import LabelsError, SpaceError

LEAST_CLASSES = 3  # that are divided into those that spaces are fitted on and those of the trials

Notify = Callable[[str], None]  # takes a line about the work that begins


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """values: (n,) by finalist, the scores of rows that it was not fitted on; NaN where none."""

    values: Mapping[str, npt.NDArray[np.float64]]
    labels: Rows
    groups: Rows
    by_class: bool

    @property
    def clusters(self) -> tuple[Rows, ...]:
        """What the bootstrap resamples: classes and groups, or groups where classes are few."""
        few = not self.by_class or self.classes_are_few
        return (self.groups,) if few else (self.labels, self.groups)

    @property
    def classes_are_few(self) -> bool:
        """Whether scores on other classes come from so few that no interval speaks of further ones:
        three gave 98 % (96 to 99) where seven others had 50 % (docs/results.md, fsdd)."""
        return self.by_class and len(np.unique(self.labels)) <= LEAST_CLASSES


def evaluate_held_out(material: Material, notify: Notify) -> HeldOutScores:
    """The scores of each finalist, fitted to one part of the material, on the rest.

    The parts are classes where there are three or more, else items.

    Raises:
        LabelsError: no division leaves enough on both sides.
    """
    n = len(material.labels)
    by_class = len(np.unique(material.labels)) >= LEAST_CLASSES
    folds = list(class_folds(material.labels) if by_class else _item_folds(material))
    total: dict[str, npt.NDArray[np.float64]] = {}
    count: dict[str, npt.NDArray[np.float64]] = {}
    for number, (train, test, trial_rows) in enumerate(folds):
        notify(f"trying the finalists on held-out classes: {number + 1} of {len(folds)}")
        for name, scores in _fold(material, train, test, trial_rows).items():
            known = np.isfinite(scores)
            total.setdefault(name, np.zeros(n))[known] += scores[known]
            count.setdefault(name, np.zeros(n))[known] += 1
    if not total:
        raise LabelsError(
            "no part of the labels leaves two classes to fit to and two to test on, with two "
            "items or groups each; give more items of each class, or no groups"
        )
    with np.errstate(invalid="ignore"):
        values_of = {
            name: total[name] / np.where(count[name], count[name], np.nan) for name in total
        }
    return HeldOutScores(values_of, material.labels, material.groups, by_class)


def _fold(
    material: Material, train: Mask, test: Mask, rows: Mask
) -> dict[str, npt.NDArray[np.float64]]:
    """(n,) scores by finalist in one division; empty where it leaves too little to test on."""
    part = sampled(material.only(train) if _several(material.labels[train]) else material)
    found: dict[str, npt.NDArray[np.float64]] = {}
    try:
        trials = plan(part.labels, part.groups, repeats=1, count=100)
        labels, groups = numbered(material.labels[rows])[0], numbered(material.groups[rows])[0]
        tests = plan(labels, groups, repeats=2, seed=SEED + 1)
        values = smoothed(score_all(part, trials), part.chains)
        for name, setting in finalists(values, part).items():
            try:
                space = material.space(setting, train)
            except SpaceError:  # nothing varies within these classes
                continue

            def fitted(_: Mask, space: Space = space) -> Space:
                return space

            scores = tests.scores(material.joined(setting.readings)[rows], fitted)
            found[name] = np.full(len(rows), np.nan)
            found[name][rows] = scores[MEASURES.index("in a crowd")]
            found[name][~test] = np.nan
    except LabelsError:
        return {}
    return found


def _several(labels: Rows) -> bool:
    return len(np.unique(labels)) > 1


def class_folds(
    labels: Rows, repeats: int = 2, seed: int = SEED
) -> Iterator[tuple[Mask, Mask, Mask]]:
    """(training rows, test rows, rows of the trials): folds of whole classes.

    Two or three parts of the classes, two or more in each, twice; each part is tested on while the
    others are trained on. Of three classes each one is trained on, and the others are tested on.
    """
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    for _ in range(repeats):
        for part in np.array_split(random.permutation(classes), 2 if len(classes) in (4, 5) else 3):
            test = np.isin(labels, part)
            # Of three classes two are tested on: a space that was fitted on the tested classes
            # puts its centre between them, which would flatter it.
            yield (~test, test, test) if len(classes) > 3 else (test, ~test, ~test)


def _item_folds(material: Material) -> Iterator[tuple[Mask, Mask, Mask]]:
    for side in partitions(material.labels, material.groups, 2, 2, SEED):
        yield ~side, side, np.ones(len(side), bool)


_PARTS = 10  # in which the decision is judged
PREFERRED = "5 fused, within classes"  # among those that are not clearly apart


@dataclass(frozen=True, slots=True)
class Score:
    """A candidate on the labelled items: an Estimate for each measure. rank_value: their mean,
    smoothed over neighbouring layers and over spaces, which it is ranked by."""

    setting: Setting
    measured: Mapping[str, Estimate]
    rank_value: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        measured = {name: found.to_dict() for name, found in self.measured.items()}
        return {**self.setting.to_dict(), **measured, "ranked_by": self.rank_value}


@dataclass(frozen=True, slots=True)
class Finalist:
    """A rule of choice, tried on held-out classes. setting: the one that it chooses from all the
    labels. value: its accuracy there. gain: over the notebook's recipe, paired."""

    name: str
    setting: Setting
    value: Estimate
    gain: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "setting": self.setting.to_dict(),
            "accuracy": self.value.to_dict(),
            "gain": self.gain.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The comparison behind a selection.

    setting: the chosen one. kept: whether that is the notebook's recipe. judged_on: `other
    classes`, or `other items` where there are two classes only. expected, gain: the accuracy of
    what is chosen, and how much more it is than the recipe's, each part scored by the finalist
    that the other parts choose: the finalists' own scores have chosen among them, and flatter the
    best. Of three classes they have no interval (NaN), for they say little of others. notes: what
    was left out, and why.
    """

    setting: Setting
    kept: bool
    scores: tuple[Score, ...]
    finalists: tuple[Finalist, ...]
    judged_on: str
    ways: int
    shots: int
    expected: Estimate
    gain: Estimate
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult choose --json` prints it."""
        return {
            "setting": self.setting.to_dict(),
            "kept_the_notebooks_recipe": self.kept,
            "judged_on": self.judged_on,
            "expected_accuracy": self.expected.to_dict(),
            "expected_gain": self.gain.to_dict(),
            "ways": self.ways,
            "shots": self.shots,
            "finalists": [one.to_dict() for one in self.finalists],
            "candidates": [one.to_dict() for one in self.scores],
            "notes": list(self.notes),
        }


def choose(material: Material, notify: Notify = lambda line: None) -> Choice:
    """Compare every reading and space, and decide.

    1. Every reading in every space is ranked by one-shot, few-shot and nearest-neighbour trials.
    2. The finalists are the best single one, and the best few readings fused.
    3. Each is fitted anew to a part of the classes and tested on the others, beside the notebook's
       recipe; the best is taken if its paired 95 % interval lies above zero.

    Raises:
        LabelsError: too few classes, items or groups, or vectors that are not finite.
    """
    material, notes = usable(material)
    material = limited(material)
    notify("ranking every layer, pooling and space")
    small = sampled(material)
    trials = plan(small.labels, small.groups, seed=SEED)
    table = score_all(small, trials)
    values = smoothed(table, small.chains)
    settings = finalists(values, small)
    held_out = evaluate_held_out(material, notify)
    finals = _estimated(settings, held_out)
    best = select_finalist(finals, held_out)
    notify("judging the decision on parts that it did not see")
    expected, gain = judge_decision(settings, held_out)
    return Choice(
        setting=best.setting,
        kept=best.name == NOTEBOOK,
        scores=_scores(table, values, small),
        finalists=finals,
        judged_on="other classes" if held_out.by_class else "other items",
        ways=trials.ways,
        shots=trials.shots,
        expected=expected,
        gain=gain,
        notes=notes,
    )


def judge_decision(
    settings: Mapping[str, Setting], held_out: HeldOutScores
) -> tuple[Estimate, Estimate]:
    """(the accuracy of what is chosen, its gain over the notebook's recipe): the rows of each part
    have the scores of the finalist that the rows of the other parts choose.

    Parts are classes, or groups where classes are few: ten at most. Of few classes there is no
    interval.
    """
    parts = held_out.clusters[0]
    part = np.unique(parts, return_inverse=True)[1].reshape(-1) % _PARTS
    base = held_out.values[NOTEBOOK]
    found = np.full(len(part), np.nan)
    for number in np.unique(part):
        out = part == number
        rest = {name: np.where(out, np.nan, own) for name, own in held_out.values.items()}
        others = HeldOutScores(rest, held_out.labels, held_out.groups, held_out.by_class)
        if np.isfinite(rest[NOTEBOOK]).any():
            chosen = select_finalist(_estimated(settings, others), others)
            found[out] = held_out.values[chosen.name][out]
    if held_out.classes_are_few:
        accuracy, gain = (float(np.nanmean(values)) for values in (found, found - base))
        return Estimate(accuracy, np.nan, np.nan), Estimate(gain, np.nan, np.nan)
    ways = held_out.clusters
    return estimate(found, *ways), estimate(found - base, *ways)


def _estimated(settings: Mapping[str, Setting], held_out: HeldOutScores) -> tuple[Finalist, ...]:
    base = held_out.values[NOTEBOOK]
    tried = {name: one for name, one in settings.items() if name in held_out.values}
    values = np.stack([held_out.values[name] for name in tried])
    measured = estimates(np.concatenate([values, values - base]), *held_out.clusters)
    accuracies, gains = measured[: len(tried)], measured[len(tried) :]
    return tuple(map(Finalist, tried, tried.values(), accuracies, gains))


def select_finalist(finals: Sequence[Finalist], held_out: HeldOutScores) -> Finalist:
    """The finalist that is chosen: of those that beat the notebook's recipe with the paired
    interval above zero the best, or the preferred one where the best does not beat it so."""
    better = {one.name: one for one in finals if one.gain.low > 0}
    if not better:
        return next(one for one in finals if one.name == NOTEBOOK)
    best = max(better.values(), key=lambda one: one.value.value)
    if PREFERRED in better:
        apart = held_out.values[best.name] - held_out.values[PREFERRED]
        # Of classes too: three say little about which of two good ways is better on others.
        if not estimate(apart, held_out.labels, held_out.groups).low > 0:
            return better[PREFERRED]
    return best


def _scores(
    table: Mapping[Setting, Array], values: Mapping[Setting, float], material: Material
) -> tuple[Score, ...]:
    """Every candidate with its intervals, the best first."""
    order = sorted(table, key=lambda setting: -values[setting])
    measured: list[dict[str, Estimate]] = [{} for _ in order]
    for number, measure in enumerate(MEASURES):
        rows = np.stack([table[setting][number] for setting in order])
        for found, one in zip(
            measured, estimates(rows, material.labels, material.groups), strict=True
        ):
            found[measure] = one
    return tuple(
        Score(setting, found, values[setting])
        for setting, found in zip(order, measured, strict=True)
    )
