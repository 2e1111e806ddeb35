"""Run a classifier in eager torch: one forward pass gives the logits and every reading.

Hidden states are captured by hooks, pooled inside the pass and never leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.classifiers.base import Classifier
from penult.errors import UsageError, first_line
from penult.padding import frame_mask
from penult.pooling import pool
from penult.splitting.head import logits_of
from penult.splitting.taps import INPUT, Tap

FloatArray = npt.NDArray[np.float32]


class Reading(NamedTuple):
    """What an engine is asked to give: a tap and how to pool it."""

    tap: Tap
    pooling: str


class Readout(NamedTuple):
    """logits: (B, …, K) as the model returned them. vectors: one (B, d) per reading."""

    logits: FloatArray
    vectors: list[FloatArray]


class TorchEngine:
    """Runs the classifier's own module; holds no state between batches."""

    def __init__(
        self, classifier: Classifier, readings: Sequence[Reading], device: str = "cpu"
    ) -> None:
        self.readings = list(readings)
        self.device = torch.device(device)
        self._module = classifier.module.to(self.device).eval()
        self._base = self._module.get_submodule(classifier.base) if classifier.base else None

    def __call__(self, tensors: Mapping[str, Tensor]) -> Readout:
        """Run one batch: the model's keyword arguments, each with a batch axis in front."""
        batch = {name: value.to(self.device) for name, value in tensors.items()}
        taps = [reading.tap for reading in self.readings]
        with torch.inference_mode(), captured(self._module, taps) as caught:
            logits = logits_of(self._module(**batch))
            vectors = []
            for reading, hidden in zip(self.readings, caught(), strict=True):
                mask = None
                if len(reading.tap.positions) == 1:
                    length = hidden.shape[reading.tap.positions[0]]
                    mask = frame_mask(self._base, batch, length)
                vectors.append(pool(hidden, reading.pooling, reading.tap.channel, mask))
        return Readout(_array(logits), [_array(vector) for vector in vectors])


def _array(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.float().cpu().numpy()
    return array


@contextmanager
def captured(module: nn.Module, taps: Sequence[Tap]) -> Iterator[Any]:
    """Hook the taps' modules; what is yielded gives, after a forward pass, one tensor per tap.

    What is captured is cloned: wav2vec2 zeroes the projector's output in place after it left the
    module. The hooks are gone afterwards, whatever happened.
    """
    seen: dict[tuple[str, str], list[dict[int, Tensor]]] = {}
    wanted: dict[tuple[str, str], set[int]] = {}
    for tap in taps:
        wanted.setdefault((tap.module, tap.side), set()).add(tap.index)

    def keep(key: tuple[str, str], values: Any) -> None:
        leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        seen.setdefault(key, []).append({index: leaves[index].clone() for index in wanted[key]})

    handles = []
    try:
        for key in wanted:
            target = module.get_submodule(key[0])
            if key[1] == INPUT:

                def before(_: Any, args: Any, kwargs: Any, key: Any = key) -> None:
                    keep(key, (args, kwargs))

                handles.append(target.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def after(_: Any, args: Any, output: Any, key: Any = key) -> None:
                    keep(key, output)

                handles.append(target.register_forward_hook(after))
        yield lambda: [seen[tap.module, tap.side][-1 - tap.call][tap.index] for tap in taps]
    finally:
        for handle in handles:
            handle.remove()


def pick_device(wanted: str = "auto") -> str:
    """The device that is meant: `auto` takes the first of cuda, mps and cpu that is there.

    Raises:
        UsageError: this machine has no such device.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {wanted!r} here: {first_line(error)}") from error
    return wanted
