"""Labelled vectors of many readings, and a setting of some of them: what a choice is made from.

Numpy in, numpy out; knows no model, and not which setting is good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from penult.episodes import Mask, Rows
from penult.errors import LabelsError, SpaceError
from penult.space import RAW, Space, fit

MOST = 600  # rows that are tried; spaces are fitted on all
SEED = 0


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


def sampled(material: Material, most: int = MOST, seed: int = SEED) -> Material:
    """At most so many rows, as many of each class as there are, spread over its groups."""
    n = len(material.labels)
    if n <= most:
        return material
    order = np.random.default_rng(seed).permutation(n)
    # Turn by turn: the first of each class and group, then the second of each, …
    cells = material.labels * (int(material.groups.max()) + 1) + material.groups
    order = order[np.argsort(_turns(cells[order]), kind="stable")]
    order = order[np.argsort(_turns(material.labels[order]), kind="stable")]
    rows = np.zeros(n, bool)
    rows[order[:most]] = True
    return material.only(rows)


def _turns(labels: Rows) -> Rows:
    """For each row, how many rows of the same number stand before it."""
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
        bad: Mask = np.logical_not(np.isfinite(vectors).all(axis=1))
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
    good: Mask = (spread > 1)[material.labels]
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
