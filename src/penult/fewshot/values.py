"""Values from examples: a number such as an age or a temperature, by ridge regression on vectors of
a collection, with an interval and what to expect of other items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import concordance, mean_absolute_error, r_squared
from penult.analysis.space import AUTO
from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.collection.spaces import meant
from penult.data.regions import span_of
from penult.errors import LabelsError
from penult.fewshot import scorers
from penult.fewshot.calibration import Unknowns
from penult.fewshot.scorers import YES, Floats
from penult.fewshot.vectors import VectorSource, pairs_of, roots_of

LEVEL = 0.9  # of intervals
FEWEST = 10  # examples
_FAR = 0.05  # of examples lie as far from all others
_STRENGTHS = np.logspace(-4, 3, 15)  # of the ridge, in mean squared lengths of centred vectors


@dataclass(frozen=True, slots=True)
class ValuePrediction:
    """The value of one region. low, high: the interval; infinite where too few groups support its
    level. far: whether it is as unlike all examples as hardly any of them is unlike the others.
    outside: whether the value is below or above those of all examples."""

    id: str
    region: str
    value: float
    low: float
    high: float
    far: bool
    outside: bool


@dataclass(frozen=True, slots=True)
class ValueAccuracy:
    """Measures on examples whose group was held out. error: the mean absolute one, in the unit of
    the values. baseline: that of the mean of the other examples."""

    r_squared: float
    concordance: float
    error: float
    baseline: float
    examples: int
    groups: int


class FittedValue:
    """A ridge regression of values (n,) on raw vectors (n, d), in its dual form: examples may be
    fewer than numbers.

    groups: (n,) numbers; a group is held out as a whole, in ten folds or fewer. The strength is the
    one with the least squared error on held-out examples; for each of these it is chosen without
    their own fold. Vectors are centred by the examples of a fit, so that nothing of what is held
    out takes part.

    Raises:
        LabelsError: fewer than ten examples, one group, equal values, or none that is finite.
    """

    def __init__(
        self, vectors: npt.ArrayLike, values: npt.ArrayLike, groups: npt.NDArray[np.int64]
    ) -> None:
        self._rows = np.asarray(vectors, np.float64)
        self.values, self._groups = np.asarray(values, np.float64), groups
        if len(self.values) < FEWEST:
            raise LabelsError(f"{len(self.values)} examples of a value; {FEWEST} are needed")
        if not (np.isfinite(self._rows).all() and np.isfinite(self.values).all()):
            raise LabelsError("vectors and values have to be finite numbers; leave others out")
        if np.ptp(self.values) == 0:
            raise LabelsError(f"all examples have the value {self.values[0]:g}; give others")
        if len(np.unique(groups)) < 2:
            raise LabelsError("the examples are of one group or item, so that none can be held out")

    @cached_property
    def _folds(self) -> npt.NDArray[np.int64]:
        same = np.full((len(self.values), 1), YES, np.int8)
        return scorers.groups_as_folds(same, self._groups, scorers.FOLDS, scorers.FOLDS)

    @cached_property
    def _held_out(self) -> tuple[Floats, Floats]:
        """((strengths, n) predictions without the own fold, (n,) the means of the others)."""
        found, means = np.empty((len(_STRENGTHS), len(self.values))), np.empty(len(self.values))
        for fold in np.unique(self._folds):
            out = self._folds == fold
            found[:, out] = _ridge(self._rows[~out], self.values[~out], self._rows[out])
            means[out] = self.values[~out].mean()
        return found, means

    @property
    def held_out(self) -> Floats:
        """(n,) predictions of the examples without their fold."""
        errors = (self._held_out[0] - self.values) ** 2
        found = np.empty(len(self.values))
        for fold in np.unique(self._folds):
            out = self._folds == fold
            found[out] = self._held_out[0][errors[:, ~out].sum(axis=1).argmin(), out]
        return found

    @property
    def strength(self) -> float:
        """Of the ridge, in mean squared lengths of centred vectors."""
        return float(_STRENGTHS[self._strength])

    @property
    def _strength(self) -> int:
        return int(((self._held_out[0] - self.values) ** 2).sum(axis=1).argmin())

    @cached_property
    def accuracy(self) -> ValueAccuracy:
        """What to expect of items of other groups."""
        truth, found = self.values, self.held_out
        return ValueAccuracy(
            float(r_squared(truth, found)), float(concordance(truth, found)),
            float(mean_absolute_error(truth, found)),
            float(mean_absolute_error(truth, self._held_out[1])),
            len(truth), len(np.unique(self._groups)),
        )  # fmt: skip

    def margin(self, level: float = LEVEL) -> float:
        """Half of the width of an interval: the residual of held-out examples that this share of
        them does not exceed, with one more group of unknown residuals; all groups weigh the same
        (Dunn et al., JASA 2022; where each example is a group, conformal: Vovk et al., 2005).
        Infinite with fewer groups than the level needs, 9 at 0.9.

        Raises:
            LabelsError: a level outside of 0 to 1.
        """
        if not 0.0 < level < 1.0:
            raise LabelsError(f"an interval of {level:g}: the level lies between 0 and 1, as 0.9")
        _, group, sizes = np.unique(self._groups, return_inverse=True, return_counts=True)
        residuals = np.abs(self.values - self.held_out)
        order = residuals.argsort()
        share = (1.0 / (sizes[group] * (len(sizes) + 1.0)))[order].cumsum()
        place = int(np.searchsorted(share, level - 1e-9))
        return float(residuals[order][place]) if place < len(order) else math.inf

    @cached_property
    def _distances(self) -> Unknowns:
        """How like the examples are to those of other groups, by the nearest of them."""
        cosines = self._cosines(self._rows)
        cosines[self._groups[:, None] == self._groups] = -1.0
        return Unknowns(np.sort(cosines.max(axis=1)), "")

    def _cosines(self, rows: Floats) -> Floats:
        own, others = (one - self._rows.mean(axis=0) for one in (self._rows, rows))
        lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (others, own)]
        scaled = [one / np.where(length > 0, length, 1.0)
                  for one, length in zip((others, own), lengths, strict=True)]  # fmt: skip
        return np.asarray(scaled[0] @ scaled[1].T)

    def judge(
        self, vectors: npt.ArrayLike, level: float = LEVEL
    ) -> tuple[Floats, float, npt.NDArray[np.bool_]]:
        """((m,) the values of raw vectors (m, d), half of the width of their interval, (m,) whether
        each is far from all examples).

        Raises:
            LabelsError: vectors that are not finite, or a level that cannot be.
        """
        rows = np.atleast_2d(np.asarray(vectors, np.float64))
        if not np.isfinite(rows).all():
            raise LabelsError("a vector has values that are not finite; leave it out")
        found = _ridge(self._rows, self.values, rows)[self._strength]
        far = self._distances.p_values(self._cosines(rows).max(axis=1)) < _FAR
        return found, self.margin(level), np.asarray(far)


def _ridge(rows: Floats, values: Floats, others: Floats) -> Floats:
    """(strengths, m) the predictions of others (m, d) by examples (n, d) with values (n,)."""
    middle, mean = rows.mean(axis=0), values.mean()
    own = rows - middle
    gram = own @ own.T
    roots, directions = np.linalg.eigh(gram)
    scale = np.trace(gram) / len(rows) or 1.0
    weights = (directions.T @ (values - mean)) / (np.maximum(roots, 0.0) + scale
                                                  * _STRENGTHS[:, None])  # fmt: skip
    return np.asarray(weights @ (directions.T @ (own @ (others - middle).T)) + mean)


class ValueSpace:
    """A value taught by the rows of a collection that have one, and predicted of items.

    by: the column (or pattern of the path) with the number of each row; rows without one are left
    out. where: a filter of these rows. groups: a column, `folder` or pattern, see
    `penult.ClassSpace`. Nothing is kept: another object with the same rows gives the same.

    Raises:
        LabelsError: no such column, a cell that is no number, or see `FittedValue`.
    """

    def __init__(
        self, source: Collection, by: str, *, where: str | None = None, groups: str | None = None
    ) -> None:
        self.source, self.by = VectorSource.of(source), by
        found = labelled(source.reader, [by, *([groups] if groups else [])], where)
        numbers = [_number(name, by, key) for key, name in zip(
            found.row_keys, found.names[by], strict=True)]  # fmt: skip
        kept = [at for at, one in enumerate(numbers) if one is not None]
        values = [one for one in numbers if one is not None]
        self.keys = [found.row_keys[at] for at in kept]
        named = found.names[groups] if groups else [f"{i} {span_of(r)}" for i, r in found.row_keys]
        self._space = meant(source.reader, AUTO)
        rows = self._moved(found.vectors[kept])
        grouped = scorers.groups_of(rows, [key[0] for key in self.keys], [named[i] for i in kept])
        self.fitted = FittedValue(rows, values, grouped)

    def _moved(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return vectors if self._space is None else self._space(vectors)

    def predict(self, items: Any, *, level: float = LEVEL) -> list[ValuePrediction]:
        """The values of items, in their order; nothing is added to the collection. items: as for
        `penult.ClassSpace.predict`, read as the rows of the collection. level: of the intervals.

        Raises:
            ItemError: an item that cannot be embedded.
        """
        from penult.fewshot.vectors import embed

        pairs = self.source.cut(pairs_of(items, self.source.modality, roots_of(self.source)))
        found = embed(self.source.embedder, pairs)
        if not found:
            return []
        return list(self._predictions(list(found), np.stack(list(found.values())), level))

    def predict_collection(
        self, where: str | None = None, *, level: float = LEVEL
    ) -> Iterator[ValuePrediction]:
        """The values of the rows of the collection, in the order of their keys."""
        assert self.source.collection is not None
        for batch in self.source.collection.reader.ordered([*schema.KEY, "vector"], where):
            keys = list(zip(batch["id"].to_pylist(), batch["region"].to_pylist(), strict=True))
            vectors = schema.matrix(batch.column("vector")).astype(np.float32)
            yield from self._predictions(keys, vectors, level)

    def _predictions(
        self, keys: Sequence[schema.Key], vectors: npt.NDArray[np.float32], level: float
    ) -> Iterator[ValuePrediction]:
        values, margin, far = self.fitted.judge(self._moved(vectors), level)
        least, most = self.fitted.values.min(), self.fitted.values.max()
        for key, value, apart in zip(keys, values.tolist(), far.tolist(), strict=True):
            outside = not least <= value <= most
            yield ValuePrediction(*key, value, value - margin, value + margin, apart, outside)


def _number(name: str | None, by: str, key: schema.Key) -> float | None:
    if name is None:
        return None
    try:
        return float(name)
    except ValueError:
        raise LabelsError(f"{key[0]}: {by} is {name!r}, which is no number") from None
