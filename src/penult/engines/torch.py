"""Run a classifier in eager torch: one forward pass gives the logits and every reading.

Hidden states are captured by hooks, pooled inside the pass and never leave it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penult.engines.base import (
    Engine,
    EngineRequest,
    FloatArray,
    Reading,
    Readout,
    nothing,
    one_row_each,
)
from penult.engines.batching import Batch
from penult.engines.pooling import pool
from penult.engines.positions import FilledPositions, frame_mask, masked_norms, own_frames
from penult.errors import EngineError
from penult.locking import HomeProcess, lock_of
from penult.memory import free_memory
from penult.models.base import Classifier, is_live
from penult.tracing.head import logits_of
from penult.tracing.hooks import Calls, captured
from penult.tracing.spots import Tap

# (B, …) as a tap gives it, and (B, P) of the positions that are pooled; None where all are.
HiddenStates = tuple[Tensor, Tensor | None]


class TorchEngine:
    """Runs the classifier's own module, one batch at a time; holds no state between batches.

    arithmetic: `f32`, or `bf16` for matrix products in bfloat16 (autocast: norms, sums in fp32).
    module: a copy of the classifier's, to run in its place.
    """

    def __init__(
        self,
        classifier: Classifier,
        readings: Sequence[Reading],
        device: str = "cpu",
        arithmetic: str = "f32",
        module: nn.Module | None = None,
    ) -> None:
        self.readings = list(readings)
        self.device = _numbered(torch.device(device))
        self.arithmetic = arithmetic
        self._classifier = classifier
        self._module = (module or classifier.module).to(self.device).eval()
        structure = classifier.structure
        self._base = self._module.get_submodule(structure.base) if structure.base else None
        self._output = structure.output
        self._calls = Calls()
        self._lock = lock_of(self._module)
        self._home = HomeProcess(f"the model on {self.device}") if device != "cpu" else None
        self._fillings = {
            reading.entry: FilledPositions(self._module, reading.entry)
            for reading in readings
            if reading.entry is not None
        }

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the model's arguments; without logits only as far as the readings."""
        scores, states = self._read(batch, logits)
        with torch.inference_mode(), self._arithmetic():
            vectors = [
                _as_array(pool(_floats(hidden), reading.pooling, reading.tap.channel, mask))
                for reading, (hidden, mask) in zip(self.readings, states, strict=True)
            ]
        rows = nothing(batch)
        if scores is not None:
            scores = one_row_each(scores, len(batch), len(self._classifier.labels))
            rows = rows_of(_as_array(scores), batch, self._base)
        return Readout(rows, vectors)

    def hidden_states(self, batch: Batch) -> list[HiddenStates]:
        """What each reading pools."""
        return self._read(batch, logits=False)[1]

    def _read(self, batch: Batch, logits: bool) -> tuple[Tensor | None, list[HiddenStates]]:
        if self._home is not None:
            self._home.require()
        tensors = {n: torch.as_tensor(value).to(self.device) for n, value in batch.tensors.items()}
        taps = [reading.tap for reading in self.readings]
        with self._lock:
            own = own_positions(self._fillings, tensors, batch)
        norms = masked_norms(self._module, batch.lengths or []) if batch.norms else nullcontext()
        with self._lock, torch.inference_mode(), self._arithmetic(), norms:
            ends = None if logits else self._calls.ends(tensors, taps)
            scores = None
            with captured(self._module, [tap.spot for tap in taps], ends) as caught:
                scores = logits_of(self._module(**tensors), self._output)
            if not caught.stopped:
                self._calls.learn(tensors, caught.counts)
            states = []
            for reading, hidden in zip(self.readings, caught(), strict=True):
                mask = None
                if reading.entry is not None and batch.filled is not None:
                    mask = own[reading.entry]
                elif len(reading.tap.positions) == 1:
                    length = hidden.shape[reading.tap.positions[0]]
                    mask = frame_mask(self._base, tensors, length)
                states.append((hidden, mask))
        return scores if logits else None, states

    def beside(self, device: str) -> TorchEngine:
        """The same on another device, with a copy of the module: both can run at once."""
        module = copy.deepcopy(self._module)
        return TorchEngine(self._classifier, self.readings, device, self.arithmetic, module)

    def _arithmetic(self) -> Any:
        # The caller's own autocast does not count.
        lower = self.arithmetic == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)


def _numbered(device: torch.device) -> torch.device:
    """Which CUDA device is the current one depends on the thread, so that it is named."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def own_positions(
    fillings: Mapping[Tap, FilledPositions], tensors: Mapping[str, Tensor], batch: Batch
) -> dict[Tap, Tensor]:
    """For each entry, (B, positions) that the clips fill; empty if that was not said."""
    if batch.filled is None or not fillings:
        return {}
    tensors = {name: torch.as_tensor(value) for name, value in tensors.items()}
    return {entry: filling.mask(tensors, batch.filled) for entry, filling in fillings.items()}


def _as_array(tensor: Tensor) -> FloatArray:
    """float32, on the host."""
    array: FloatArray = tensor.float().cpu().numpy()
    return array


def rows_of(logits: FloatArray, batch: Batch, base: nn.Module | None) -> list[FloatArray]:
    """Each item's logits; of logits per frame, the item's own frames."""
    rows = list(logits)
    own = own_frames(base, batch, logits.shape[1]) if logits.ndim == 3 else None
    if own is None:
        return rows
    return [row[mask] for row, mask in zip(rows, own.numpy(), strict=True)]


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether there are instructions for products in bfloat16: a processor without them still gives
    them, a hundred times slower. Nothing is timed, which load would spoil."""
    place = torch.device(device)
    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if place.type != "cpu":
        return True
    capable: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    features = {name for name, here in capable.items() if here is True}
    with suppress(OSError, UnicodeError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                features |= set(line.split())
                break
    return not features.isdisjoint(_BF16)


# As x86 and ARM have them, with the names of torch and of Linux.
_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "svebf16", "arm_bf16", "arm_sve_bf16")


def open_torch(request: EngineRequest) -> Engine:
    """Eager torch for a request.

    Raises:
        EngineError: bfloat16 where the processor has no instructions for it.
    """
    module = None
    if request.arithmetic == "bf16":
        if not multiplies_bf16(request.device):
            raise EngineError("bfloat16 is no faster than fp32 here")
        live = is_live(request.classifier)  # its weights may change
        measured = any(reading.entry for reading in request.readings)  # which is done in fp32
        if request.device == "cpu" and not live and not measured:
            module = with_rounded_weights(request.classifier.module)
    return TorchEngine(
        request.classifier, request.readings, request.device, request.arithmetic, module
    )


_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d)  # by type: a subclass may do anything
_SHARE = 4  # of the memory that is free, a copy takes a part of this at most


def with_rounded_weights(module: nn.Module) -> nn.Module | None:
    """A copy for autocast, with the weights of products in bfloat16, which autocast else rounds
    anew in each pass; everything else is shared. None where there is no memory for it, or nothing
    to round, or the module cannot be copied.

    A weight that something else has too, as tied embeddings, stays as it is.
    """
    owners = Counter(id(p) for one in module.modules() for p in one._parameters.values())
    rounded = [
        parameter
        for one in module.modules()
        if type(one) in _ROUNDED
        for parameter in one._parameters.values()
        if parameter is not None and parameter.dtype == torch.float32 and owners[id(parameter)] == 1
    ]
    if not rounded or 2 * _SHARE * sum(p.numel() for p in rounded) > free_memory():
        return None
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    with torch.no_grad():
        for parameter in rounded:
            shared[id(parameter)] = nn.Parameter(parameter.bfloat16(), requires_grad=False)
    try:
        with lock_of(module):  # no hooks of a pass that is under way
            return copy.deepcopy(module, shared)
    except Exception:  # of a module that anyone wrote
        return None


def _floats(hidden: Tensor) -> Tensor:
    """In fp32, also of whole numbers with a scale."""
    return (hidden.dequantize() if hidden.is_quantized else hidden).float()
