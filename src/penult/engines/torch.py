"""Run a classifier in eager torch: one forward pass gives the logits and every reading.

Hidden states are captured by hooks, pooled inside the pass and never leave it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.classifiers.base import Classifier
from penult.engines.base import FloatArray, Reading, Readout, as_array
from penult.errors import UsageError, first_line
from penult.filling import Filling
from penult.padding import Batch, frame_mask, masked_norms, own_frames
from penult.pooling import pool
from penult.splitting.head import logits_of
from penult.splitting.operations import watching
from penult.splitting.taps import INPUT, Tap


class TorchEngine:
    """Runs the classifier's own module; holds no state between batches."""

    def __init__(
        self, classifier: Classifier, readings: Sequence[Reading], device: str = "cpu"
    ) -> None:
        self.readings = list(readings)
        self.device = torch.device(device)
        self._module = classifier.module.to(self.device).eval()
        self._base = self._module.get_submodule(classifier.base) if classifier.base else None
        self._output = classifier.output
        self._fillings = {
            reading.entry: Filling(self._module, reading.entry)
            for reading in readings
            if reading.entry is not None
        }

    def __call__(self, batch: Batch) -> Readout:
        """Run one batch of the model's arguments."""
        tensors = {name: value.to(self.device) for name, value in batch.tensors.items()}
        taps = [reading.tap for reading in self.readings]
        own = {
            entry: filling.mask(tensors, batch.filled)
            for entry, filling in self._fillings.items()
            if batch.filled is not None
        }
        norms = masked_norms(self._module, batch.lengths or []) if batch.norms else nullcontext()
        with torch.inference_mode(), norms, captured(self._module, taps) as caught:
            logits = logits_of(self._module(**tensors), self._output)
            vectors = []
            for reading, hidden in zip(self.readings, caught(), strict=True):
                mask = None
                if reading.entry is not None and batch.filled is not None:
                    mask = own[reading.entry]
                elif len(reading.tap.positions) == 1:
                    length = hidden.shape[reading.tap.positions[0]]
                    mask = frame_mask(self._base, tensors, length)
                vectors.append(pool(hidden, reading.pooling, reading.tap.channel, mask))
        return Readout(self._rows(logits, batch), [as_array(vector) for vector in vectors])

    def _rows(self, logits: Tensor, batch: Batch) -> list[FloatArray]:
        """Each item's logits; of logits per frame, the item's own frames."""
        rows = list(as_array(logits))
        own = own_frames(self._base, batch, logits.shape[1]) if logits.ndim == 3 else None
        if own is None:
            return rows
        return [row[mask] for row, mask in zip(rows, own.numpy(), strict=True)]


@contextmanager
def captured(module: nn.Module, taps: Sequence[Tap]) -> Iterator[Any]:
    """Watch the taps' places; what is yielded gives, after a forward pass, one tensor per tap.

    What is captured is cloned: wav2vec2 zeroes the projector's output in place after it left the
    module. Nothing of it is left on the module afterwards, whatever happened.
    """
    inside = list(dict.fromkeys(tap for tap in taps if tap.operation))
    seen: dict[Tap, deque[Tensor]] = {tap: deque(maxlen=tap.later + 1) for tap in inside}

    def keep(tap: Tap, tensor: Tensor) -> None:
        seen[tap].append(tensor.clone())

    def caught() -> list[Tensor]:
        for tap, values in seen.items():
            if len(values) <= tap.later:
                raise RuntimeError(f"the pass does not come by tap {tap.name!r} ({tap.place})")
        at_modules = iter(hooked())
        return [seen[tap][0] if tap.operation else next(at_modules) for tap in taps]

    watched = watching(module, inside, keep) if inside else nullcontext()
    with _hooked(module, [tap for tap in taps if not tap.operation]) as hooked, watched:
        yield caught


@contextmanager
def _hooked(module: nn.Module, taps: Sequence[Tap]) -> Iterator[Any]:
    """`captured` for taps on the edge of a module."""
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
