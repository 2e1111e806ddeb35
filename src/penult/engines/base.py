"""What every engine gives: for one batch, in one forward pass, the logits and each reading."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from penult.padding import Batch
from penult.splitting.taps import Tap

FloatArray = npt.NDArray[np.float32]


class Reading(NamedTuple):
    """What an engine is asked to give: a tap and how to pool it.

    entry: the tap in front of the first block, if only those positions are pooled that a clip
    fills of an input of fixed length.
    """

    tap: Tap
    pooling: str
    entry: Tap | None = None


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

    def __call__(self, batch: Batch) -> Readout:
        """The logits and the readings of every item of the batch."""


def as_array(tensor: Tensor) -> FloatArray:
    """float32, on the host."""
    array: FloatArray = tensor.float().cpu().numpy()
    return array
