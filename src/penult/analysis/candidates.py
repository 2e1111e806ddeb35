"""Candidates of a choice: readings × spaces on labelled vectors, ranked by few-shot trials."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from penult.analysis.episodes import Array, Mask, Rows, TrialPlan, centred_products, products
from penult.analysis.space import RAW, SeenRows, Space, check_finite, fit, fit_seen
from penult.errors import LabelsError

log = logging.getLogger(__name__)
LARGEST = 3000  # labelled rows, and unlabelled ones, that take part at all
MOST = 600  # rows that are tried; spaces are fitted on all
LEAST_EACH = 6  # rows of a class in a sample
SEED = 0
_ROUNDING = 1e-5  # of float32, added up over a network


@dataclass(frozen=True, slots=True)
class Setting:
    """Readings and a space to compare them in. readings: names, concatenated in this order. space:
    the recipe that is fitted to them."""

    readings: tuple[str, ...]
    space: str = RAW

    def words(self) -> str:
        """`layer:9 first & layer:10 first, scale+l2`."""
        return f"{' & '.join(self.readings)}, {self.space}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"readings": list(self.readings), "space": self.space}


@dataclass(frozen=True, slots=True)
class Material:
    """Labelled vectors of every reading. vectors: (n, d) by reading. labels, groups: (n,) numbers.
    unlabelled: (m, d) by reading, on which spaces are fitted too. baseline: the notebook's reading.
    chains: readings of one pooling in order of depth, so that neighbours are similar."""

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
        """The setting's space, fitted on these rows and on the unlabelled ones."""
        own = self.joined(setting.readings)[rows]
        labels: list[object] = list(self.labels[rows])
        if self.unlabelled:
            more = self.unlabelled_of(setting)
            own, labels = np.concatenate([own, more]), labels + [None] * len(more)
        return fit(setting.space, own, labels if "within" in setting.space else None)

    def final_space(self, setting: Setting) -> Space:
        """The setting's space, fitted on all rows, which it keeps as those that it has seen."""
        vectors, labels, groups = self.joined(setting.readings), self.labels, self.groups
        if self.unlabelled:
            more = self.unlabelled_of(setting)
            own = int(groups.max(initial=-1)) + 1 + np.arange(len(more))
            vectors, groups = np.concatenate([vectors, more]), np.concatenate([groups, own])
            labels = np.concatenate([labels, np.full(len(more), -1)])
        return fit_seen(setting.space, SeenRows(vectors, labels, groups))

    def unlabelled_of(self, setting: Setting) -> npt.NDArray[np.float32]:
        """(m, sum of d) the unlabelled vectors of a setting's readings."""
        return np.concatenate([self.unlabelled[name] for name in setting.readings], axis=1)

    def only(self, rows: Mask) -> Material:
        """The material of some of the labelled rows; numbers of labels and groups begin at 0."""
        vectors = {name: values[rows] for name, values in self.vectors.items()}
        labels, groups = (np.unique(way[rows], return_inverse=True)[1].reshape(-1)
                          for way in (self.labels, self.groups))  # fmt: skip
        return Material(vectors, labels, groups, self.baseline, self.unlabelled, self.chains)


def sampled(material: Material, most: int = MOST, seed: int = SEED) -> Material:
    """At most so many rows: `sample` of them."""
    if len(material.labels) <= most:
        return material
    return material.only(sample(material.labels, material.groups, most, seed))


def limited(material: Material, seed: int = SEED) -> Material:
    """The material with as many rows as a choice takes: LARGEST labelled ones, and as many others
    that spaces are fitted on."""
    material = sampled(material, LARGEST, seed)
    if (more := extra(material)) <= LARGEST:
        return material
    drawn = np.sort(np.random.default_rng(seed).choice(more, LARGEST, replace=False))
    unlabelled = {name: values[drawn] for name, values in material.unlabelled.items()}
    return replace(material, unlabelled=unlabelled)


def sample(labels: Rows, groups: Rows, most: int, seed: int = SEED) -> Mask:
    """(n,) a sample of at most `most` rows, with as many of each class as possible, spread over its
    groups. Of very many classes some are drawn, with several rows each."""
    n = len(labels)
    rows = np.ones(n, bool)
    if n <= most:
        return rows
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    if len(classes) > most // LEAST_EACH:
        rows = np.isin(labels, random.choice(classes, max(2, most // LEAST_EACH), replace=False))
    order = random.permutation(n)
    # Turn by turn: the first of each class and group, then the second of each, …
    cells = labels * (int(groups.max()) + 1) + groups
    order = order[np.argsort(_turns(cells[order]), kind="stable")]
    order = order[np.argsort(_turns(labels[order]), kind="stable")]
    order = order[rows[order]]
    kept = np.zeros(n, bool)
    kept[order[:most]] = True
    return kept


def _turns(labels: Rows) -> Rows:
    """(n,) for each row, the count of earlier rows with the same number."""
    order = np.argsort(labels, kind="stable")
    starts = np.r_[True, np.diff(labels[order]) != 0]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(labels)), 0))
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - first
    return turns


def usable(material: Material) -> tuple[Material, tuple[str, ...]]:
    """The material without the readings and classes that cannot be tried, and notes on these.

    Raises:
        LabelsError: fewer than two classes with two groups are left.
        SpaceError: values that are not finite.
    """
    _check_vectors(material)
    classes = np.unique(material.labels)
    if len(classes) < 2:
        raise LabelsError(
            f"all {len(material.labels)} items are of one class; a choice needs items of two "
            "classes or more"
            if len(classes)
            else "no item has a class; a choice needs items of two classes or more"
        )
    material, note = _varying(material)
    spread = groups_of_classes(material.labels, material.groups)
    good: Mask = (spread > 1)[material.labels]
    able = len(np.unique(material.labels[good]))
    if able < 2:
        single = len(np.unique(material.groups)) == len(material.groups)
        unit = "items" if single else "groups"
        raise LabelsError(
            f"of {len(classes)} classes {able} have two {unit} or more, and two such classes are "
            "needed: one example serves as the support, and one of another "
            f"{'item' if single else 'group'} as the query"
        )
    if able == len(classes):
        return material, note
    left = len(classes) - able
    words = f"{left} of {len(classes)} classes were left out: all their items are of one group"
    return material.only(good), (*note, words)


def groups_of_classes(labels: Rows, groups: Rows) -> Rows:
    """(K,) the number of groups of each class."""
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    return np.bincount(pairs[0]).astype(np.int64)


def _check_vectors(material: Material) -> None:
    """Refuse vectors without a label each, and values that are not finite."""
    for vectors in material.vectors.values():
        if len(vectors) != len(material.labels) or len(material.groups) != len(material.labels):
            raise LabelsError(
                f"{len(vectors)} vectors, {len(material.labels)} labels and "
                f"{len(material.groups)} groups: give one label and one group for each item"
            )
    for kind, readings in (("", material.vectors), ("unlabelled ", material.unlabelled)):
        for name, vectors in readings.items():
            check_finite(vectors, name=f"{kind}vectors of {name}")


def constant(vectors: npt.NDArray[np.float32]) -> bool:
    """Whether all rows (n, d) are the same vector, but for rounding."""
    if not vectors.size:
        return True
    largest = float(np.abs(vectors).max())
    return bool((np.ptp(vectors, axis=0) <= _ROUNDING * largest).all())


def _varying(material: Material) -> tuple[Material, tuple[str, ...]]:
    """Without the readings that are the same for every item; the notebook's own always stays."""
    flat = [name for name, vectors in material.vectors.items() if constant(vectors)]
    out = [name for name in flat if name != material.baseline]
    if not out:
        return material, ()

    def without(
        vectors: Mapping[str, npt.NDArray[np.float32]],
    ) -> dict[str, npt.NDArray[np.float32]]:
        return {name: values for name, values in vectors.items() if name not in out}

    chains = [[name for name in chain if name not in out] for chain in material.chains]
    note = f"left out, the same vector for every item: {', '.join(out)}"
    changed = replace(material, vectors=without(material.vectors), chains=chains,
                      unlabelled=without(material.unlabelled))  # fmt: skip
    return changed, (note,)


CENTRED = "centre+l2"
SPACES = (RAW, CENTRED, "scale+l2", "whiten+l2")
WHITEN_MOST = 1024  # numbers in a vector that is whitened
FUSED = "scale+l2"
WITHIN = "scale+within+l2"
SHRUNK = "shrink+within+l2"
SIZES = (1, 3, 5, 8, 16)  # how many readings are fused
SHRUNK_SIZES = (1, 5)  # of which SHRUNK is tried too
WIDEST = 4096  # numbers in a fused vector
NOTEBOOK = "notebook"


def score_all(material: Material, trials: TrialPlan) -> dict[Setting, Array]:
    """For every reading in every space that fits, the scores (4, n) of its trials."""
    count = len(material.labels) // 2 + extra(material)
    settings = [Setting((name,), recipe) for name, vectors in material.vectors.items()
                for recipe in spaces_for(count, vectors.shape[1])]  # fmt: skip
    # Side by side; within one setting most of the work is none that a library divides.
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as threads:
        scores = threads.map(lambda setting: trial_scores(material, setting, trials), settings)
        found = dict(zip(settings, scores, strict=True))
    once = [setting.space for setting, (_, short) in found.items() if short]
    log.info(
        "ranked %d settings: %d from one product of all rows (%s), %d with a space fitted to each "
        "of %d sides", len(found), len(once), ", ".join(dict.fromkeys(once)),
        len(found) - len(once), len(trials.sides),
    )  # fmt: skip
    return {setting: one for setting, (one, _) in found.items()}


def spaces_for(count: int, width: int) -> tuple[str, ...]:
    """The recipes that can be fitted to `count` vectors of `width` numbers."""
    whole = count >= width and width <= WHITEN_MOST
    return SPACES if whole else SPACES[:-1]


def trial_scores(material: Material, setting: Setting, trials: TrialPlan) -> tuple[Array, bool]:
    """(the scores (4, n) of a setting, its space fitted on each support side; whether one product
    of all rows served every side instead)."""
    vectors = material.joined(setting.readings)
    if setting.space == RAW:
        inner = products(vectors)
        return trials.scores_by(lambda _: inner), True
    if setting.space == CENTRED:
        more = material.unlabelled_of(setting) if material.unlabelled else None
        return trials.scores_by(centred_products(vectors, more)), True
    return trials.scores(vectors, lambda rows: material.space(setting, rows)), False


def smoothed(
    table: Mapping[Setting, Array], chains: Sequence[Sequence[str]]
) -> dict[Setting, float]:
    """The value that settings are ranked by: the mean of the measures, half of it shared with the
    neighbouring layers, and half with the reading's other spaces. The best of hundreds of noisy
    values is not the best setting; averaging over neighbours separates noise from merit."""
    means = {setting: float(np.nanmean(scores_mean(scores))) for setting, scores in table.items()}
    beside: dict[str, list[str]] = {}
    for chain in chains:
        for at, name in enumerate(chain):
            beside[name] = [chain[i] for i in (at - 1, at + 1) if 0 <= i < len(chain)]
    smooth = {}
    for setting, mean in means.items():
        neighbours = [
            means[other]
            for name in beside.get(setting.readings[0], [])
            if (other := Setting((name,), setting.space)) in means
        ]
        smooth[setting] = (2 * mean + sum(neighbours)) / (2 + len(neighbours))
    by_reading: dict[str, list[float]] = {}
    for setting, mean in smooth.items():
        by_reading.setdefault(setting.readings[0], []).append(mean)
    return {
        setting: 0.5 * mean + 0.5 * float(np.mean(by_reading[setting.readings[0]]))
        for setting, mean in smooth.items()
    }


def scores_mean(scores: Array) -> Array:
    """(4,) means over rows, of the measures that could be taken."""
    known = np.isfinite(scores).any(axis=1)
    means: Array = np.nanmean(scores[known], axis=1)
    return means


def finalists(values: Mapping[Setting, float], material: Material) -> dict[str, Setting]:
    """The settings that are tried on held-out classes, by the name of the rule that gives each."""
    order = sorted(values, key=lambda setting: -values[setting])
    found = {NOTEBOOK: Setting((material.baseline,)), "best single": order[0]}
    readings = list(dict.fromkeys(setting.readings[0] for setting in order))
    for size in SIZES:
        names = _within_width(readings[:size], material)
        name = f"{size} fused" if size > 1 else "best single"
        if size > 1:
            found[name] = Setting(names, FUSED)
        found[f"{name}, within classes"] = Setting(names, WITHIN)
        if size in SHRUNK_SIZES:
            found[f"{name}, shrunk within classes"] = Setting(names, SHRUNK)
    return found


def _within_width(readings: Sequence[str], material: Material) -> tuple[str, ...]:
    """The first of these, and the next ones that fit into WIDEST numbers."""
    chosen: list[str] = []
    width = 0
    for name in readings:
        own = material.vectors[name].shape[1]
        if not chosen or width + own <= WIDEST:
            chosen.append(name)
            width += own
    return tuple(chosen)


def extra(material: Material) -> int:
    """The number of unlabelled rows."""
    return len(next(iter(material.unlabelled.values()))) if material.unlabelled else 0
