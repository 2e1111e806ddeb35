"""Selection of a reading: finalists judged on held-out classes, and the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import Estimate, estimate, estimates
from penult.analysis.candidates import (
    NOTEBOOK,
    SEED,
    Material,
    Setting,
    checked,
    evened,
    finalists,
    ranked,
    sampled,
)
from penult.analysis.episodes import MEASURES, Array, Mask, Rows, numbered, partitions, plan
from penult.analysis.space import Space
from penult.errors import LabelsError, SpaceError

LEAST_CLASSES = 3  # that are divided into some to fit spaces on and some to be asked

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """values: for each finalist (n,) answers on what it did not see, NaN where never asked."""

    values: Mapping[str, npt.NDArray[np.float64]]
    labels: Rows
    groups: Rows
    by_class: bool

    @property
    def clusters(self) -> tuple[Rows, ...]:
        """What is resampled: classes and groups; groups alone where the classes are too few to
        say how much they differ."""
        several = self.by_class and len(np.unique(self.labels)) > 3
        return (self.labels, self.groups) if several else (self.groups,)


def evaluate_held_out(material: Material, tell: Tell) -> Judged:
    """Each finalist made from a part of the material and asked about the rest.

    The parts are classes where there are three or more, else items.
    """
    n = len(material.labels)
    by_class = len(np.unique(material.labels)) >= LEAST_CLASSES
    folds = list(class_folds(material.labels) if by_class else _item_folds(material))
    total: dict[str, npt.NDArray[np.float64]] = {}
    count: dict[str, npt.NDArray[np.float64]] = {}
    for number, (learn, asked, trials_rows) in enumerate(folds):
        tell(f"judging the finalists on what they did not see: {number + 1} of {len(folds)}")
        for name, answers in _fold(material, learn, asked, trials_rows).items():
            known = np.isfinite(answers)
            total.setdefault(name, np.zeros(n))[known] += answers[known]
            count.setdefault(name, np.zeros(n))[known] += 1
    if not total:
        raise LabelsError(
            "no part of the labels leaves two classes to learn from and two to be asked, with two "
            "items or groups each; give more items of each class, or no groups"
        )
    with np.errstate(invalid="ignore"):
        values_of = {
            name: total[name] / np.where(count[name], count[name], np.nan) for name in total
        }
    return Judged(values_of, material.labels, material.groups, by_class)


def _fold(
    material: Material, learn: Mask, asked: Mask, rows: Mask
) -> dict[str, npt.NDArray[np.float64]]:
    """Each finalist's answers (n,) in one division; none where it leaves too little to ask."""
    part = sampled(material.only(learn) if _several(material.labels[learn]) else material)
    answers: dict[str, npt.NDArray[np.float64]] = {}
    try:
        trials = plan(part.labels, part.groups, repeats=1, count=100)
        labels, groups = numbered(material.labels[rows])[0], numbered(material.groups[rows])[0]
        asking = plan(labels, groups, repeats=2, seed=SEED + 1)
        values = evened(ranked(part, trials), part.chains)
        for name, setting in finalists(values, part).items():
            try:
                space = material.space(setting, learn)
            except SpaceError:  # nothing varies within these classes
                continue

            def fitted(_: Mask, space: Space = space) -> Space:
                return space

            scores = asking.scores(material.joined(setting.readings)[rows], fitted)
            answers[name] = np.full(len(rows), np.nan)
            answers[name][rows] = scores[MEASURES.index("in a crowd")]
            answers[name][~asked] = np.nan
    except LabelsError:
        return {}
    return answers


def _several(labels: Rows) -> bool:
    return len(np.unique(labels)) > 1


def class_folds(
    labels: Rows, repeats: int = 2, seed: int = SEED
) -> Iterator[tuple[Mask, Mask, Mask]]:
    """(the rows to learn from, the rows that are asked, the rows in the trials).

    Two or three parts of the classes, two or more in each, twice; each part is asked while the
    others are learnt from. Of three classes each one is learnt from, and the others are asked.
    """
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    for _ in range(repeats):
        for part in np.array_split(random.permutation(classes), 2 if len(classes) in (4, 5) else 3):
            asked = np.isin(labels, part)
            # Of three classes two are asked: a space that was fitted on the classes that are asked
            # puts its centre between them, which would flatter it.
            yield (~asked, asked, asked) if len(classes) > 3 else (asked, ~asked, ~asked)


def _item_folds(material: Material) -> Iterator[tuple[Mask, Mask, Mask]]:
    for side in partitions(material.labels, material.groups, 2, 2, SEED):
        yield ~side, side, np.ones(len(side), bool)


LARGEST = 3000  # rows that take part at all
PREFERRED = "5 fused, within classes"  # among those that are not clearly apart


@dataclass(frozen=True, slots=True)
class Score:
    """What one candidate did on the labelled items: an Estimate for each measure. rank_value: what
    it is ranked by, evened out over neighbouring layers and over spaces."""

    setting: Setting
    measured: Mapping[str, Estimate]
    rank_value: float


@dataclass(frozen=True, slots=True)
class Finalist:
    """A way to choose, judged on classes that it did not see. setting: what it chooses from all
    the labels. value: its accuracy there. gain: over the notebook's recipe, paired."""

    name: str
    setting: Setting
    value: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Choice:
    """setting: what was chosen. kept: whether that is the notebook's recipe. judged_on: `other
    classes`, or `other items` where there are two classes only. notes: what was left
    out, and why."""

    setting: Setting
    kept: bool
    scores: tuple[Score, ...]
    finalists: tuple[Finalist, ...]
    judged_on: str
    ways: int
    shots: int
    notes: tuple[str, ...] = ()


def choose(material: Material, tell: Tell = lambda what: None) -> Choice:
    """Compare every reading and space, and decide.

    1. Every reading in every space is ranked by one-shot, few-shot and nearest-neighbour trials.
    2. The finalists are the best single one, and the best few readings fused.
    3. Each is made anew from a part of the classes and judged on the others, beside the notebook's
       recipe; the best is taken if its paired 95 % interval lies above zero.

    Raises:
        LabelsError: too few classes, items or groups, or vectors that are not finite.
    """
    material, notes = checked(material)
    material = sampled(material, LARGEST)
    tell("ranking every layer, pooling and space")
    small = sampled(material)
    trials = plan(small.labels, small.groups, seed=SEED)
    table = ranked(small, trials)
    values = evened(table, small.chains)
    settings = finalists(values, small)
    trial_of = evaluate_held_out(material, tell)
    finals = _estimated(settings, trial_of)
    best = select_finalist(finals, trial_of)
    return Choice(
        setting=best.setting,
        kept=best.name == NOTEBOOK,
        scores=_scores(table, values, small),
        finalists=finals,
        judged_on="other classes" if trial_of.by_class else "other items",
        ways=trials.ways,
        shots=trials.shots,
        notes=notes,
    )


def _estimated(settings: Mapping[str, Setting], trial_of: Judged) -> tuple[Finalist, ...]:
    base = trial_of.values[NOTEBOOK]
    found = []
    for name, setting in settings.items():
        if name not in trial_of.values:
            continue
        values = trial_of.values[name]
        ways = trial_of.clusters
        found.append(
            Finalist(name, setting, estimate(values, *ways), estimate(values - base, *ways))
        )
    return tuple(found)


def select_finalist(finals: Sequence[Finalist], trial_of: Judged) -> Finalist:
    """The finalist that is chosen: of those that beat the notebook's recipe with the paired
    interval above zero the best, or the preferred one where the best does not beat it so."""
    better = {one.name: one for one in finals if one.gain.low > 0}
    if not better:
        return next(one for one in finals if one.name == NOTEBOOK)
    best = max(better.values(), key=lambda one: one.value.value)
    if PREFERRED in better:
        apart = trial_of.values[best.name] - trial_of.values[PREFERRED]
        # Of classes too: three say little about which of two good ways is better on others.
        if not estimate(apart, trial_of.labels, trial_of.groups).low > 0:
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
