"""How near one engine's rows are to another's: vectors by cosine, logits by their difference.

Knows rows of numbers; neither engines nor items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.engines.base import FloatArray, Precision


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst of all items: cosine of the two vectors, difference of the logits relative to the
    largest logit; and the shares of items that keep their label, and their nearest neighbour among
    the others."""

    items: int
    cosine: float
    logits: float
    labels: float
    neighbours: float = 1.0

    def holds(self, precision: Precision) -> bool:
        """Whether it is as near as a precision promises."""
        return self.cosine >= precision.cosine and self.logits <= precision.logits

    @property
    def words(self) -> str:
        """In a line."""
        labels = "" if self.labels == 1 else f", {1 - self.labels:.1%} of labels differ"
        if self.neighbours < 1:
            labels += f", {1 - self.neighbours:.1%} of nearest neighbours differ"
        return (
            f"cosine ≥ {_floor(self.cosine)} to torch fp32, logits within {self.logits:.1e}"
            f"{labels}, on {self.items} item{'' if self.items == 1 else 's'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def compare(
    found: Sequence[Sequence[FloatArray]], expected: Sequence[Sequence[FloatArray]]
) -> Parity:
    """Rows of (logits, vector of each reading) against the reference's rows of the same items.

    Without a vector (a classifier asked for its labels only) the logits alone are compared.
    """
    pairs = list(zip(found, expected, strict=True))
    cosines = [cosine(a, b) for one, two in pairs for a, b in zip(one[1:], two[1:], strict=True)]
    return Parity(
        items=len(pairs),
        cosine=min(cosines, default=1.0),
        logits=max(relative_error(one[:1], two[:1]) for one, two in pairs),
        labels=sum(_label(one[0]) == _label(two[0]) for one, two in pairs) / len(pairs),
        neighbours=_neighbours([one[1:] for one, _ in pairs], [two[1:] for _, two in pairs]),
    )


def _neighbours(
    found: Sequence[Sequence[FloatArray]], expected: Sequence[Sequence[FloatArray]]
) -> float:
    """The share of items whose nearest neighbour by cosine is the same, over all readings."""
    if len(found) < 3:  # with two items there is no choice of neighbour
        return 1.0
    kept = []
    for one, two in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        kept.append(np.mean(_nearest(one) == _nearest(two)))
    return float(np.mean(kept)) if kept else 1.0


def _nearest(vectors: Sequence[FloatArray]) -> Any:
    rows = np.stack([vector.ravel() for vector in vectors]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)


def _label(logits: FloatArray) -> int:
    if not logits.size:  # none were asked for
        return 0
    return int(logits.reshape(-1, logits.shape[-1]).mean(axis=0).argmax())


def relative_error(found: Sequence[npt.ArrayLike], expected: Sequence[npt.ArrayLike]) -> float:
    """The largest difference between two items' values, each relative to the largest expected one;
    infinite for other shapes, and for values that are not finite."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return float("inf")
        largest = max(float(np.abs(b).max(initial=0.0)), 1e-30)
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)) / largest)
    return worst


def cosine(one: FloatArray, other: FloatArray) -> float:
    """Of two arrays as one vector each; -1 where they cannot be compared: other shapes, or values
    that are not finite."""
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return -1.0
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _floor(cosine: float) -> str:
    """Rounded down, so that it never says more than was measured."""
    return f"{np.floor(cosine * 1e7) / 1e7:.7f}"
