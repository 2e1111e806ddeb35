"""Which axis of a recorded tensor holds the channels, read off the operations around it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penult.splitting.trace import Op, Read, Trace

# What an operation says about the channel axis of what it reads (rank → axis).
_CHANNEL_FIRST = {"convolution", "native_batch_norm", "_native_batch_norm_legit_no_training",
                  "native_group_norm", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
                  "max_pool2d_with_indices", "avg_pool2d", "cudnn_batch_norm",
                  "_native_batch_norm_legit"}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "max", "logsumexp"}


def channel_axis(trace: Trace, read: Read) -> int:
    """Which axis of a tensor holds the channels, read off the operations that use or made it.

    Convolutions and batch norm say axis 1, layer norm and linear layers say the last one, a mean
    over some axes says the one that it leaves. Without evidence: axis 1 of maps, else the last.
    """
    tensor = read.tensor
    if tensor.ndim == 2:
        return 1
    for axis in _evidence(trace, read):
        return axis
    return 1 if tensor.ndim == 4 else tensor.ndim - 1


def _evidence(trace: Trace, read: Read) -> Iterator[int]:
    """Axes that operations point to: users first, in order, then the makers, latest first."""
    order = {id(read.tensor): tuple(range(read.tensor.ndim))}  # axes of it, in terms of the tap's
    start = 0 if read.producer is None else read.producer.index + 1
    for op in trace.ops[start:]:
        for user in op.reads:
            axes = order.get(id(user.tensor))
            if axes is None:
                continue
            said = _says(op, user.tensor)
            if said is not None and axes[said] != 0:
                yield axes[said]
            for made in op.writes:
                if op.name in {"aten.permute", "aten.transpose", "aten.t"}:
                    order[id(made)] = _permuted(op, axes)
                elif made.shape == user.tensor.shape:
                    order[id(made)] = axes
    maker = read.producer
    while maker is not None and maker.writes and maker.writes[0].shape == read.tensor.shape:
        said = _says(maker, maker.writes[0])
        if said is not None and said != 0:
            yield said
        maker = next((r.producer for r in maker.reads if r.depends and r.producer), None)


def _says(op: Op, tensor: torch.Tensor) -> int | None:
    name, rank = op.name.removeprefix("aten."), tensor.ndim
    if name in _CHANNEL_FIRST:
        return 1
    if name == "native_layer_norm":
        return rank - 1 if len(op.args[1]) == 1 else None
    if name in {"view", "_unsafe_view", "reshape"}:
        # Positions folded into the batch for a matrix product: the last axis stays.
        made = op.writes[0]
        return rank - 1 if made.ndim == 2 and made.shape[-1] == tensor.shape[-1] else None
    if name in _REDUCTIONS and len(op.args) > 1:
        if op.writes[0].ndim == rank:
            return None  # kept for broadcasting: a norm's statistics, not a pooling
        dims = [op.args[1]] if isinstance(op.args[1], int) else list(op.args[1] or [])
        left = set(range(1, rank)) - {dim % rank for dim in dims}
        return left.pop() if len(left) == 1 else None
    return None


def _permuted(op: Op, axes: tuple[int, ...]) -> tuple[int, ...]:
    if op.name == "aten.permute":
        return tuple(axes[dim] for dim in op.args[1])
    first, second = (0, 1) if op.name == "aten.t" else op.args[1:3]
    swapped = list(axes)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)
