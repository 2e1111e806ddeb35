"""What every engine gives: for one batch, in one forward pass, the logits and each reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from penult.engines.batching import Batch
from penult.tracing.taps import Tap

FloatArray = npt.NDArray[np.float32]

EXACT, FAST, TURBO = "exact", "fast", "turbo"


@dataclass(frozen=True, slots=True)
class Precision:
    """How near vectors and logits are to those of torch in fp32, measured item by item.

    cosine: of two vectors of one item, at least. logits: their difference, relative to the largest
    logit of the item, at most; of `fast` and `turbo` it is measured and shown, and not bounded,
    since what it does to a label depends on the model. law: by how much an item alone and the same
    item in a batch may differ, relative to the largest value. neighbours: the share of items that
    keep their nearest neighbour among those measured, at least.
    """

    name: str
    cosine: float
    logits: float
    law: float
    neighbours: float = 0.0


PRECISIONS = {
    EXACT: Precision(EXACT, 1 - 1e-6, 1e-4, 1e-5),
    FAST: Precision(FAST, 0.9999, float("inf"), 5e-2),
    TURBO: Precision(TURBO, 0.999, float("inf"), 5e-2, 0.99),
}


class Reading(NamedTuple):
    """What an engine is asked to give: a tap and how to pool it.

    entry: the tap in front of the first block, if only those positions are pooled that a clip
    fills of an input of fixed length.
    """

    tap: Tap
    pooling: str
    entry: Tap | None = None

    @property
    def pool_over(self) -> str:
        """Which positions are pooled: `all`, or the `valid` ones."""
        return "all" if self.entry is None else "valid"


class Readout(NamedTuple):
    """logits: for each item, (…, K) as the model returned them for it, padding left out.
    vectors: one (B, d) per reading."""

    logits: list[FloatArray]
    vectors: list[FloatArray]

    def row(self, index: int) -> list[FloatArray]:
        """One item's logits, and its vector of each reading."""
        return [self.logits[index], *(vector[index] for vector in self.vectors)]


class Engine(Protocol):
    """Runs one batch; holds no state between batches. Opening one for a reading that it can't
    give is a TapError."""

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """The logits and the readings of every item of the batch. Where no logits are wanted, an
        engine may stop behind the last reading, and gives empty ones."""


def nothing(batch: Batch) -> list[FloatArray]:
    """In place of the logits, where none were asked for."""
    return [np.empty(0, np.float32) for _ in range(len(batch))]


def as_array(tensor: Tensor) -> FloatArray:
    """float32, on the host."""
    array: FloatArray = tensor.float().cpu().numpy()
    return array
