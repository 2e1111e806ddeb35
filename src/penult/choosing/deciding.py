"""Which reading of a classifier, in which space, serves best: decided from labelled vectors.

Numpy in, a small object out; knows no model and no store. The recipe of the notebook (backbone,
mean, raw, cosine) is kept unless another one beats it on classes that the choice did not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penult.choosing.judging import Judged, Tell, judged
from penult.choosing.material import SEED, Material, Setting, checked, sampled
from penult.choosing.ranking import NOTEBOOK, evened, finalists, ranked
from penult.measuring.episodes import Array
from penult.measuring.intervals import Estimate, estimate, estimates
from penult.measuring.trials import MEASURES, plan

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
    trial_of = judged(material, tell)
    finals = _estimated(settings, trial_of)
    best = taken(finals, trial_of)
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


def taken(finals: Sequence[Finalist], trial_of: Judged) -> Finalist:
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
