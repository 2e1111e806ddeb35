"""Settings judged on classes that they were not made from. Numpy in, numpy out; knows no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.choosing.material import SEED, Material, sampled
from penult.choosing.ranking import evened, finalists, ranked
from penult.errors import LabelsError, SpaceError
from penult.measuring.episodes import Mask, Rows, numbered, partitions
from penult.measuring.trials import MEASURES, plan
from penult.space import Space

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


def judged(material: Material, tell: Tell) -> Judged:
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
