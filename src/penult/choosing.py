"""Which reading of a classifier, in which space, serves best: decided from labelled vectors.

Numpy in, a small object out; knows no model and no store. The recipe of the notebook (backbone,
mean, raw, cosine) is kept unless another one beats it on classes that the choice did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from penult.episodes import Array, Mask, Rows, numbered
from penult.errors import LabelsError, SpaceError
from penult.intervals import Estimate, estimate, estimates
from penult.space import RAW, Space, fit
from penult.trials import MEASURES, Plan, plan

SPACES = (RAW, "centre+l2", "scale+l2", "whiten+l2")
WHITEN_MOST = 1024  # numbers in a vector that is whitened
FUSED = "scale+l2"
WITHIN = "scale+within+l2"
SIZES = (1, 3, 5, 8, 16)  # how many readings are fused
WIDEST = 4096  # numbers in a fused vector
LEAST_CLASSES = 3  # that are divided into some to fit spaces on and some to be asked
NOTEBOOK = "notebook"
PREFERRED = "5 fused, within classes"  # among those that are not clearly apart
MOST = 600  # rows that are tried; spaces are fitted on all
SEED = 0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """readings: names, concatenated in this order. space: the recipe that is fitted to them."""

    readings: tuple[str, ...]
    space: str = RAW

    def words(self) -> str:
        """`layer:9 first & layer:10 first, scale+l2`."""
        return f"{' & '.join(self.readings)}, {self.space}"


@dataclass(frozen=True, slots=True)
class Material:
    """What is decided on. vectors: for each reading (n, d). labels, groups: (n,) numbers.
    unlabelled: for each reading (m, d); spaces are fitted on them too. baseline: the notebook's
    reading. chains: readings of one pooling in order of depth, in which neighbours are alike."""

    vectors: Mapping[str, npt.NDArray[np.float32]]
    labels: Rows
    groups: Rows
    baseline: str
    unlabelled: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    chains: Sequence[Sequence[str]] = ()

    def joined(self, readings: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, sum of d)."""
        return np.concatenate([self.vectors[name] for name in readings], axis=1)

    def space(self, setting: Setting, rows: Mask) -> Space:
        """The setting's space, fitted on these rows and on what has no label."""
        own = self.joined(setting.readings)[rows]
        labels: list[object] = list(self.labels[rows])
        if self.unlabelled:
            more = np.concatenate([self.unlabelled[name] for name in setting.readings], axis=1)
            own, labels = np.concatenate([own, more]), labels + [None] * len(more)
        return fit(setting.space, own, labels if "within" in setting.space else None)

    def only(self, rows: Mask) -> Material:
        """The same with some of the labelled rows; the others are as if they were not there."""
        kept = {name: values[rows] for name, values in self.vectors.items()}
        labels, groups = (np.unique(way[rows], return_inverse=True)[1].reshape(-1)
                          for way in (self.labels, self.groups))  # fmt: skip
        return Material(kept, labels, groups, self.baseline, self.unlabelled, self.chains)


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


def ranked(material: Material, trials: Plan) -> dict[Setting, Array]:
    """For every reading in every space that fits, the scores (4, n) of its trials."""
    found = {}
    count = len(material.labels) // 2 + _extra(material)
    for name, vectors in material.vectors.items():
        for recipe in fitting(count, vectors.shape[1]):
            setting = Setting((name,), recipe)
            found[setting] = tried(material, setting, trials)
    return found


def fitting(count: int, width: int) -> tuple[str, ...]:
    """The spaces that `count` vectors are enough for."""
    whole = count >= width and width <= WHITEN_MOST
    return SPACES if whole else SPACES[:-1]


def tried(material: Material, setting: Setting, trials: Plan) -> Array:
    """The scores (4, n) of a setting, its space fitted on each support side."""
    vectors = material.joined(setting.readings)
    return trials.scores(vectors, lambda rows: material.space(setting, rows))


def evened(table: Mapping[Setting, Array], chains: Sequence[Sequence[str]]) -> dict[Setting, float]:
    """What settings are ranked by: the mean of the measures, half of it shared with the
    neighbouring layers, and half with the reading's other spaces. The best of hundreds of noisy
    values is not the best setting; neighbours tell noise from merit."""
    means = {setting: float(np.nanmean(scores_mean(scores))) for setting, scores in table.items()}
    beside: dict[str, list[str]] = {}
    for chain in chains:
        for at, name in enumerate(chain):
            beside[name] = [chain[i] for i in (at - 1, at + 1) if 0 <= i < len(chain)]
    smooth = {}
    for setting, mean in means.items():
        near = [
            means[other]
            for name in beside.get(setting.readings[0], [])
            if (other := Setting((name,), setting.space)) in means
        ]
        smooth[setting] = (2 * mean + sum(near)) / (2 + len(near))
    by_reading: dict[str, list[float]] = {}
    for setting, mean in smooth.items():
        by_reading.setdefault(setting.readings[0], []).append(mean)
    return {
        setting: 0.5 * mean + 0.5 * float(np.mean(by_reading[setting.readings[0]]))
        for setting, mean in smooth.items()
    }


def scores_mean(scores: Array) -> Array:
    """(4,) means over rows, without the measures that could not be taken."""
    known = np.isfinite(scores).any(axis=1)
    means: Array = np.nanmean(scores[known], axis=1)
    return means


def finalists(values: Mapping[Setting, float], material: Material) -> dict[str, Setting]:
    """The settings that are judged, by the name of the way in which they were made."""
    order = sorted(values, key=lambda setting: -values[setting])
    found = {NOTEBOOK: Setting((material.baseline,)), "best single": order[0]}
    readings = list(dict.fromkeys(setting.readings[0] for setting in order))
    for size in SIZES:
        names = _within_width(readings[:size], material)
        if size > 1:
            found[f"{size} fused"] = Setting(names, FUSED)
        found[f"{size} fused, within classes" if size > 1 else "best single, within classes"] = (
            Setting(names, WITHIN)
        )
    return found


def _within_width(readings: Sequence[str], material: Material) -> tuple[str, ...]:
    """The first of these, and the others as long as the vectors do not grow too wide."""
    chosen: list[str] = []
    width = 0
    for name in readings:
        own = material.vectors[name].shape[1]
        if not chosen or width + own <= WIDEST:
            chosen.append(name)
            width += own
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Judged:
    """values: for each finalist (n,) answers on what it did not see, NaN where never asked."""

    values: Mapping[str, Array]
    labels: Rows
    groups: Rows
    by_class: bool

    @property
    def clusters(self) -> tuple[Rows, ...]:
        """What is resampled: classes and groups; groups alone where the classes are too few to
        say how much they differ."""
        several = self.by_class and len(np.unique(self.labels)) > 3
        return (self.labels, self.groups) if several else (self.groups,)


def judged(material: Material, tell: Tell) -> Judged:
    """Each finalist made from a part of the material and asked about the rest.

    The parts are classes where there are three or more, else items.
    """
    n = len(material.labels)
    by_class = len(np.unique(material.labels)) >= LEAST_CLASSES
    folds = list(class_folds(material.labels) if by_class else _item_folds(material))
    total: dict[str, Array] = {}
    count: dict[str, Array] = {}
    for number, (learn, asked, trials_rows) in enumerate(folds):
        tell(f"judging the finalists on what they did not see: {number + 1} of {len(folds)}")
        part = sampled(material.only(learn) if _several(material.labels[learn]) else material)
        values = evened(
            ranked(part, plan(part.labels, part.groups, repeats=1, count=100)), part.chains
        )
        for name, setting in finalists(values, part).items():
            space = material.space(setting, learn)
            answers = _asked(material, setting, space, asked, trials_rows)
            known = np.isfinite(answers)
            total.setdefault(name, np.zeros(n))[known] += answers[known]
            count.setdefault(name, np.zeros(n))[known] += 1
    with np.errstate(invalid="ignore"):
        values_of = {
            name: total[name] / np.where(count[name], count[name], np.nan) for name in total
        }
    return Judged(values_of, material.labels, material.groups, by_class)


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
    from penult.episodes import partitions

    for side in partitions(material.labels, material.groups, 2, 2, SEED):
        yield ~side, side, np.ones(len(side), bool)


def _asked(material: Material, setting: Setting, space: Space, asked: Mask, rows: Mask) -> Array:
    """(n,) how the rows that are asked do in a crowd."""
    chosen = np.flatnonzero(rows)
    labels, _ = numbered(material.labels[chosen])
    groups, _ = numbered(material.groups[chosen])
    trials = plan(labels, groups, repeats=2, seed=SEED + 1)
    answers = np.full(len(material.labels), np.nan)
    scores = trials.scores(material.joined(setting.readings)[chosen], lambda _: space)
    answers[chosen] = scores[MEASURES.index("in a crowd")]
    answers[~asked] = np.nan
    return answers


def _estimated(settings: Mapping[str, Setting], trial_of: Judged) -> tuple[Finalist, ...]:
    base = trial_of.values[NOTEBOOK]
    found = []
    for name, setting in settings.items():
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
        if not estimate(apart, *trial_of.clusters).low > 0:
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


def _extra(material: Material) -> int:
    return len(next(iter(material.unlabelled.values()))) if material.unlabelled else 0


def sampled(material: Material, most: int = MOST, seed: int = SEED) -> Material:
    """At most so many rows, as many of each class as there are, spread over its groups."""
    n = len(material.labels)
    if n <= most:
        return material
    random = np.random.default_rng(seed)
    shuffled = random.permutation(n)
    # Turn by turn: the first of each class and group, then the second of each, …
    turn = np.zeros(n, np.int64)
    for keys in (material.labels * (int(material.groups.max()) + 1) + material.groups,):
        order = shuffled[np.argsort(keys[shuffled], kind="stable")]
        starts = np.r_[True, np.diff(keys[order]) != 0]
        first = np.maximum.accumulate(np.where(starts, np.arange(n), 0))
        turn[order] = np.arange(n) - first
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    order = order[np.argsort(_turns(material.labels[order]), kind="stable")]
    rows = np.zeros(n, bool)
    rows[order[:most]] = True
    return material.only(rows)


def _turns(labels: Rows) -> Rows:
    """For each row, how many rows of its class stand before it."""
    order = np.argsort(labels, kind="stable")
    starts = np.r_[True, np.diff(labels[order]) != 0]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(labels)), 0))
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - first
    return turns


def checked(material: Material) -> tuple[Material, tuple[str, ...]]:
    """The material without the classes that cannot be tried, and what is to be said of them.

    Raises:
        LabelsError: nothing can be compared on what is left.
    """
    for name, vectors in material.vectors.items():
        if len(vectors) != len(material.labels) or len(material.groups) != len(material.labels):
            raise LabelsError(
                f"{len(vectors)} vectors, {len(material.labels)} labels and "
                f"{len(material.groups)} groups: give one label and one group for each item"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise SpaceError(
                f"{int(bad.sum())} of {len(bad)} vectors of {name} are not finite, the first in "
                f"row {int(bad.argmax())}; leave these items out"
            )
    classes = np.unique(material.labels)
    if len(classes) < 2:
        raise LabelsError(
            f"all {len(material.labels)} items are of one class; a choice needs items of two "
            "classes or more"
        )
    pairs = np.unique(np.stack([material.labels, material.groups]), axis=1)
    spread = np.bincount(pairs[0], minlength=int(classes.max()) + 1)
    good = np.isin(material.labels, np.flatnonzero(spread > 1))
    if len(np.unique(material.labels[good])) < 2:
        single = len(np.unique(material.groups)) == len(material.groups)
        what = "items" if single else "groups"
        raise LabelsError(
            f"of {len(classes)} classes {len(np.unique(material.labels[good]))} have two {what} or "
            "more, and two such classes are needed: one example serves as the support, and one of "
            f"another {'item' if single else 'group'} as the query"
        )
    left = len(classes) - len(np.unique(material.labels[good]))
    if not left:
        return material, ()
    note = f"{left} of {len(classes)} classes were left out: all their items are of one group"
    return material.only(good), (note,)
