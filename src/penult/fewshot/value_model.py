"""Values from examples: a number such as an age or a temperature, by ridge regression on vectors of
a collection, with an interval and what to expect of other items. Numpy in; knows no model and no
collection.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import concordance, mean_absolute_error, one_value, r_squared
from penult.analysis.space import unit
from penult.errors import LabelsError
from penult.fewshot import scorers
from penult.fewshot.calibration import Unknowns
from penult.fewshot.scorers import YES, Floats

LEVEL = 0.9  # of intervals
FEWEST = 10  # examples
_FAR = 0.05  # of examples lie as far from all others
_STRENGTHS = np.logspace(-4, 3, 15)  # of the ridge, in mean squared lengths of centred vectors
_AT_ONCE = 1000  # rows that are compared with all examples


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


@dataclass(frozen=True, slots=True)
class ValueModel:
    """A fitted value, as a version keeps it: nothing is fitted to predict.

    weights, middle: (d,), and offset: the value of a vector is (vector − middle) · weights +
    offset. strength: of the ridge. residuals, groups: (n,) of examples that were held out. near:
    (n, d) the examples' vectors, in the space. likeness: (n,) ascending, the cosine of each to the
    nearest one of another group. span: the least and the most of the examples' values.
    """

    weights: Floats
    middle: Floats
    residuals: Floats
    groups: npt.NDArray[np.int64]
    near: npt.NDArray[np.float32]
    likeness: Floats
    offset: float
    strength: float
    span: tuple[float, float]
    accuracy: ValueAccuracy

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
        _, group, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        residuals = np.abs(self.residuals)
        order = residuals.argsort()
        share = (1.0 / (sizes[group] * (len(sizes) + 1.0)))[order].cumsum()
        place = int(np.searchsorted(share, level - 1e-9))
        return float(residuals[order][place]) if place < len(order) else math.inf

    def judge(
        self, vectors: npt.ArrayLike, level: float = LEVEL
    ) -> tuple[Floats, float, npt.NDArray[np.bool_]]:
        """((m,) the values of vectors (m, d), half of the width of their interval, (m,) whether
        each is far from all examples).

        Raises:
            LabelsError: vectors that are not finite, or a level that cannot be.
        """
        rows = np.atleast_2d(np.asarray(vectors, np.float64))
        if not np.isfinite(rows).all():
            raise LabelsError("a vector has values that are not finite; leave it out")
        found = (rows - self.middle) @ self.weights + self.offset
        cosines = _nearest(rows, np.asarray(self.near, np.float64))
        far = Unknowns(self.likeness, "").p_values(cosines) < _FAR
        return found, self.margin(level), np.asarray(far)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        names = ("offset", "strength", "span")
        return {name: getattr(self, name) for name in names} | {"accuracy": asdict(self.accuracy)}


def model_bytes(model: ValueModel) -> bytes:
    """The arrays of a model but for `near`, as npz."""
    names = ("weights", "middle", "residuals", "groups", "likeness")
    arrays: dict[str, Any] = {name: getattr(model, name) for name in names}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def model_from(data: bytes, near: npt.NDArray[np.float32], facts: Mapping[str, Any]) -> ValueModel:
    """A model from its `model_bytes`, the examples' vectors and its `to_dict`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as parts:
        arrays: dict[str, Any] = {name: parts[name] for name in parts}
    return ValueModel(
        **arrays, near=near, offset=facts["offset"], strength=facts["strength"],
        span=tuple(facts["span"]), accuracy=ValueAccuracy(**facts["accuracy"]),
    )  # fmt: skip


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
        if one_value(self.values) is not None:
            raise LabelsError(f"all examples have the value {self.values[0]:g}; give others")
        if len(np.unique(groups)) < 2:
            raise LabelsError(
                "the examples are of one group or item, so that none can be held out; "
                "give rows of others, or no groups"
            )
        # Squares of 1e200 are infinite, and of 1e-200 zero. A power of two rounds nothing.
        exponent = max(-1000, int(np.frexp(np.abs(self.values).max())[1]) - 1)
        self._unit = 2.0**exponent
        self._scaled = self.values / self._unit

    @cached_property
    def _folds(self) -> npt.NDArray[np.int64]:
        same = np.full((len(self.values), 1), YES, np.int8)
        return scorers.groups_as_folds(same, self._groups, scorers.FOLDS, scorers.FOLDS)

    @cached_property
    def _held_out(self) -> tuple[Floats, Floats]:
        """((strengths, n) predictions without the own fold, (n,) the means of the others), in the
        unit."""
        found, means = np.empty((len(_STRENGTHS), len(self.values))), np.empty(len(self.values))
        for fold in np.unique(self._folds):
            out = self._folds == fold
            middle, means[out], weights = _ridge(self._rows[~out], self._scaled[~out])
            found[:, out] = weights @ (self._rows[out] - middle).T + means[out][0]
        return found, means

    @property
    def held_out(self) -> Floats:
        """(n,) predictions of the examples without their fold."""
        return np.asarray(self._held_out_scaled * self._unit)

    @property
    def _held_out_scaled(self) -> Floats:
        errors = (self._held_out[0] - self._scaled) ** 2
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
        return int(((self._held_out[0] - self._scaled) ** 2).sum(axis=1).argmin())

    @cached_property
    def accuracy(self) -> ValueAccuracy:
        """What to expect of items of other groups."""
        truth, found = self._scaled, self._held_out_scaled
        return ValueAccuracy(
            float(r_squared(truth, found)), float(concordance(truth, found)),
            float(mean_absolute_error(truth, found)) * self._unit,
            float(mean_absolute_error(truth, self._held_out[1])) * self._unit,
            len(truth), len(np.unique(self._groups)),
        )  # fmt: skip

    @cached_property
    def model(self) -> ValueModel:
        """What predictions are made from."""
        middle, mean, weights = _ridge(self._rows, self._scaled)
        return ValueModel(
            weights[self._strength] * self._unit, middle, self.values - self.held_out,
            self._groups, self._rows.astype(np.float32), self._likeness, mean * self._unit,
            self.strength,
            (float(self.values.min()), float(self.values.max())), self.accuracy,
        )  # fmt: skip

    def margin(self, level: float = LEVEL) -> float:
        """Half of the width of an interval, see `ValueModel.margin`."""
        return self.model.margin(level)

    def judge(
        self, vectors: npt.ArrayLike, level: float = LEVEL
    ) -> tuple[Floats, float, npt.NDArray[np.bool_]]:
        """Values, half of their interval, and what is far, see `ValueModel.judge`."""
        return self.model.judge(vectors, level)

    @property
    def _likeness(self) -> Floats:
        """How like the examples are to those of other groups, by the nearest of them."""
        return np.sort(_nearest(self._rows, self._rows, self._groups))


def _nearest(rows: Floats, examples: Floats, groups: npt.NDArray[np.int64] | None = None) -> Floats:
    """(m,) the cosine of each row to the nearest example, after the examples' mean is taken away.
    groups: of rows that are the examples; those of their own do not count."""
    middle = examples.mean(axis=0)
    own, others = (unit(one - middle) for one in (examples, rows))
    found = np.empty(len(others))
    for at in range(0, len(others), _AT_ONCE):
        cosines = others[at : at + _AT_ONCE] @ own.T
        if groups is not None:
            cosines[groups[at : at + _AT_ONCE, None] == groups] = -1.0
        found[at : at + _AT_ONCE] = cosines.max(axis=1)
    return found


def _ridge(rows: Floats, values: Floats) -> tuple[Floats, float, Floats]:
    """((d,) the mean of examples (n, d), the mean of their values (n,), (strengths, d) weights of
    centred vectors); in the dual form where there are fewer examples than numbers."""
    middle, mean = rows.mean(axis=0), float(values.mean())
    own, left = rows - middle, values - mean
    dual = len(own) <= own.shape[1]
    gram = own @ own.T if dual else own.T @ own
    roots, directions = np.linalg.eigh(gram)
    scale = np.trace(gram) / len(rows) or 1.0
    shares = np.maximum(roots, 0.0) + scale * _STRENGTHS[:, None]
    found = (directions.T @ (left if dual else own.T @ left)) / shares @ directions.T
    return middle, mean, np.asarray(found @ own if dual else found)
