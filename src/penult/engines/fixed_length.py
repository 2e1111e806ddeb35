"""Which positions of a fixed-length model's hidden states are an item's own.

Models like AST and Whisper take every clip at one length and pad it. Which positions see the clip
is measured, not computed from a configuration: a part of the input is disturbed, and what enters
the first block is compared. Knows modules and inputs; no pooling.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from penult.tracing.hooks import captured
from penult.tracing.taps import Tap


class FilledPositions:
    """Own positions of items that fill only the beginning of the input.

    module: the model. entry: the tap in front of the first block, behind which positions mix. A
    position is an item's own if the middle of what it sees of the input is; positions that see
    nothing of it, like class tokens, are nobody's.
    """

    def __init__(self, module: nn.Module, entry: Tap) -> None:
        self._module, self._entry = module, entry
        self._known: dict[int, Tensor] = {}
        self._reach: int | None = None

    def mask(self, tensors: Mapping[str, Tensor], filled: Sequence[float]) -> Tensor:
        """(B, positions), True for an item's own. filled: the share of the input of each."""
        probe = _Probe({name: value[:1] for name, value in tensors.items()})
        if self._reach is None:
            self._reach = self._measure_reach(probe)
        own = []
        for share in filled:
            valid = min(probe.length, math.ceil(share * probe.length))
            if valid not in self._known:
                self._known[valid] = self._touched(probe, 0, max(1, valid - self._reach))
            own.append(self._known[valid])
        return torch.stack(own)

    def _touched(self, probe: _Probe, first: int, last: int) -> Tensor:
        """(positions,) that change if the input does between two of its positions."""
        plain, other = (self._entering(x) for x in (probe.noise(0, 0), probe.noise(first, last)))
        return (plain != other).flatten(2).any(dim=2)[0]

    def _measure_reach(self, probe: _Probe) -> int:
        """How far a position sees to either side, in positions of the input."""
        seeing = self._touched(probe, 0, probe.length).nonzero().flatten()
        middle = int(seeing[len(seeing) // 2])
        ends = range(1, probe.length + 1)
        first = bisect_left(ends, True, key=lambda end: bool(self._touched(probe, 0, end)[middle]))
        last = bisect_left(
            ends, True, key=lambda end: not self._touched(probe, end, probe.length)[middle]
        )
        return (last - first) // 2

    def _entering(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(1, positions, channels) in front of the first block; the pass ends there."""
        spot = replace(self._entry.spot, call=0)
        with (
            torch.inference_mode(),
            captured(self._module, [spot], ends={spot.place: 1}) as caught,
        ):
            self._module(**tensors)
        return caught()[0].movedim(self._entry.positions[0], 1)


class _Probe:
    """An input like the given one, with noise in a part of it and zeros elsewhere."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._name = max(tensors, key=lambda name: tensors[name].numel())
        shape = tensors[self._name].shape
        self._axis = max(range(1, len(shape)), key=lambda axis: shape[axis])  # time is the longest
        self.length = shape[self._axis]

    def noise(self, first: int, last: int) -> dict[str, Tensor]:
        """The model's arguments with noise from `first` to `last` along time."""
        like = self._tensors[self._name]
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
        value = torch.zeros_like(like)
        part = noise.narrow(self._axis, first, last - first).to(like.device, like.dtype)
        value.narrow(self._axis, first, last - first).copy_(part)
        return {**self._tensors, self._name: value}
