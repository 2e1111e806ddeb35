"""Which positions of hidden states are an item's own: of padded batches by the model's mask, of
models of fixed length by measurement; and norms over these positions alone.

Models like AST and Whisper take every clip at one length and pad it. Which positions see the clip
is measured, not computed from a configuration: a part of the input is disturbed, and what enters
the first block is compared. Knows modules and inputs; no pooling.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from penult.engines.batching import MASK, Batch, Tensors
from penult.tracing.hooks import captured
from penult.tracing.spots import Tap


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


def frame_mask(backbone: nn.Module | None, tensors: Tensors, positions: int) -> Tensor | None:
    """(B, positions) of the valid positions, or None where the model is given no mask for them.

    A mask that the model takes at the resolution of its hidden states serves as it is; one over
    samples is reduced by the model itself, the way its own head does it (see also
    huggingface/transformers#25307, which asks for this mask).
    """
    mask = next((value for name, value in tensors.items() if name.endswith(MASK)), None)
    if mask is None or mask.ndim != 2:
        return None
    if mask.shape[1] == positions:
        return torch.as_tensor(mask).bool()
    reduce = getattr(backbone, "_get_feature_vector_attention_mask", None)
    if reduce is None:
        return None
    with torch.no_grad():
        return torch.as_tensor(reduce(positions, mask)).bool()


def own_frames(backbone: nn.Module | None, batch: Batch, frames: int) -> Tensor | None:
    """(B, frames): which frames of what a model returns are an item's own; None if all are."""
    own = batch.own
    return (
        None if own is None else frame_mask(backbone, {MASK: torch.from_numpy(own).long()}, frames)
    )


@contextmanager
def masked_norms(
    module: nn.Module, lengths: Sequence[int] | Tensor, longest: int | None = None
) -> Iterator[None]:
    """Group norms over time take their statistics from each item's own frames only.

    lengths: valid positions of each item along its time axis. longest: where that axis ends; None:
    with the longest item. How many frames of an item are valid behind a convolution follows from
    the convolution's own arithmetic, so that the statistics are those of the item alone. The hooks
    are gone afterwards. A pass that is being recorded takes the lengths as a tensor, one of its
    inputs.
    """
    own = torch.as_tensor(lengths)
    # Frames in the batch → valid ones of each item.
    valid = {_size(own.max() if longest is None else longest): own}

    def convolved(conv: nn.Conv1d, args: Any, output: Tensor) -> None:
        before = valid.get(_size(args[0].shape[-1]))
        if before is None or isinstance(conv.padding, str):
            return
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
        after = (before + 2 * conv.padding[0] - reach) // conv.stride[0] + 1
        valid[_size(output.shape[-1])] = after

    def normed(norm: nn.GroupNorm, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        frames = valid.get(_size(hidden.shape[-1]))
        if hidden.ndim != 3 or frames is None:
            return forward(hidden)
        return _group_norm(norm, hidden, frames.to(hidden.device))

    modules = list(module.modules())
    norms = [child for child in modules if isinstance(child, nn.GroupNorm)]
    with ExitStack() as kept:
        for child in modules:
            if isinstance(child, nn.Conv1d):
                kept.callback(child.register_forward_hook(convolved).remove)
        for norm in norms:  # in place of its own pass, which a hook could only throw away
            own_forward = norm.__dict__.get("forward")
            kept.callback(_put_back, norm, own_forward)
            norm.__dict__["forward"] = partial(normed, norm, norm.forward)
        yield


def _size(size: Any) -> Hashable:
    """A length to look up by; of a pass that is exported its formula, for a comparison of numbers
    would hold the graph to this one."""
    return str(size) if isinstance(size, torch.SymInt) else int(size)


def _put_back(norm: nn.GroupNorm, forward: Callable[[Tensor], Tensor] | None) -> None:
    """What a norm computes, as it was: its class's pass, or one of its own."""
    if forward is None:
        del norm.__dict__["forward"]
    else:
        norm.__dict__["forward"] = forward


def _group_norm(norm: nn.GroupNorm, hidden: Tensor, frames: Tensor) -> Tensor:
    """(B, C, T) normalised by the mean and variance of each item's first frames, per group.

    Sums over time are products with the mask, and the statistics become one scale and one shift for
    each channel: nothing of the size of the hidden states is made but the squares and the result.
    """
    size, channels, length = hidden.shape
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    own = (torch.arange(length, device=hidden.device) < frames[:, None]).to(hidden.dtype)
    count = frames[:, None, None].to(hidden.dtype)

    def mean_of(values: Tensor) -> Tensor:
        """(B, C, 1): the mean of each channel's group."""
        with torch.autocast(hidden.device.type, enabled=False):
            means = values @ own[..., None] / count
        if norm.num_groups == channels:
            return means
        of_groups = means.reshape(size, norm.num_groups, -1).mean(dim=2, keepdim=True)
        return of_groups.expand(-1, -1, channels // norm.num_groups).reshape(size, channels, 1)

    mean = mean_of(hidden)
    scale = torch.rsqrt(mean_of((hidden - mean).square()) + norm.eps)
    if norm.weight is None:
        return (hidden - mean) * scale
    scale = scale * norm.weight[:, None]
    return hidden * scale + (norm.bias[:, None] - mean * scale)
