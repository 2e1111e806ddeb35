"""Scores of logits: the softmax or sigmoid between them, applied, undone, recognised by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SINGLE_LABEL = "single-label"
MULTI_LABEL = "multi-label"
REGRESSION = "regression"
BINARY = "binary"  # one logit, whose sigmoid is the probability of the one class

SOFTMAX, SIGMOID, LOG_SOFTMAX = "softmax", "sigmoid", "log-softmax"

_OF_KIND = {SINGLE_LABEL: SOFTMAX, MULTI_LABEL: SIGMOID, BINARY: SIGMOID}
_SMALLEST, _LARGEST = 1e-38, 1 - 2.0**-25  # of float32: the logits stay finite
_TOLERANCE = 1e-5
_HALF_TOLERANCE = 4e-3  # of numbers of 16 bits
_SUM = 1e-3  # by how much probabilities of one row may miss 1


@dataclass(frozen=True, slots=True)
class Activation:
    """The function that a model itself applies to its logits.

    name: softmax or sigmoid; empty: none, and the kind says which function gives scores. inside:
    the model returns the scores, and logits are computed back from them.
    """

    name: str = ""
    inside: bool = False

    def scores(self, kind: str, logits: Array) -> npt.NDArray[np.float64]:
        """(…, K) logits as the model's own scores, in float64."""
        name = self.name or _OF_KIND.get(kind, "")
        return applied(name, logits) if name else np.asarray(logits, np.float64)

    def logits(self, returned: Floats) -> Floats:
        """The logits of what the model returned, (…, K): its logarithm or log-odds where those
        are scores, finite where they are 0 or 1."""
        if not self.inside or not returned.size:
            return returned
        scores = np.clip(returned.astype(np.float64), _SMALLEST, 1.0)
        if self.name == SIGMOID:
            scores = np.minimum(scores, _LARGEST)
            return np.asarray(np.log(scores) - np.log1p(-scores), np.float32)
        return np.asarray(np.log(scores), np.float32)

    def to_dict(self) -> dict[str, str]:
        """`scores`, its name, and where the logits come from, in words; nothing for none."""
        if not self.name:
            return {}
        words = f"what enters the last {self.name}"
        if self.inside:
            inverse = "log-odds" if self.name == SIGMOID else "logarithms"
            words = f"{inverse} of the probabilities that the model returns"
        return {"scores": self.name, "logits_from": words}


def class_count(shape: Sequence[int]) -> int:
    """K of logits (B, …, K): (B,) has one, (B, K, 1, 1) has K, and so has (K,) of a single item."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return int(kept[-1]) if kept else 1


def applied(name: str, logits: Array) -> npt.NDArray[np.float64]:
    """Scores (…, K) of logits (…, K): their softmax over the classes, or the sigmoid of each."""
    values = np.asarray(logits, np.float64)
    if name == SIGMOID:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))  # without overflow
    exponent = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True))


def is_applied(
    name: str, logits: Array, scores: Array, half: bool = False, step: float = 0.0
) -> bool:
    """Whether the scores are that function of the logits, to within rounding. step: of scores that
    are stored as integers, from one value to the next."""
    if logits.shape != scores.shape or not np.isfinite(logits).all():
        return False
    error = np.abs(applied(name, logits) - scores).max(initial=0.0)
    return bool(error <= max(_HALF_TOLERANCE if half else _TOLERANCE, 1.5 * step))


def in_unit_range(values: Sequence[Array]) -> bool:
    """Whether every number could be a probability."""
    return all(
        one.size and np.isfinite(one).all() and one.min() >= -1e-6 and one.max() <= 1 + 1e-5
        for one in values
    )


def recognised(values: Sequence[Array]) -> str:
    """What the returned values (…, K) of several inputs show by themselves: `softmax` where rows of
    two classes or more sum to 1, `log-softmax` where their exponentials do; else nothing."""
    rows = [np.asarray(one, np.float64) for one in values]
    if not all(one.ndim and one.shape[-1] > 1 and np.isfinite(one).all() for one in rows):
        return ""
    if in_unit_range(rows) and all(_sums_to_one(one) for one in rows):
        return SOFTMAX
    if all(one.max() <= 1e-6 and _sums_to_one(np.exp(one)) for one in rows):
        return LOG_SOFTMAX
    return ""


def _sums_to_one(values: Array) -> bool:
    return bool(np.abs(values.sum(axis=-1) - 1).max(initial=0.0) <= _SUM)
