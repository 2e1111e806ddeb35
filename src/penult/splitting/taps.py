"""The named places where hidden states can be read, found in a recorded forward pass.

A tap names a module, a side of it and one of the tensors there, so that a plain hook can deliver
it. Which axis of that tensor is the channel is read off what the model itself does with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from penult.errors import TapError
from penult.splitting.head import Head, logits_of
from penult.splitting.trace import Call, Op, Read, Trace

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, slots=True)
class Tap:
    """A place to read hidden states.

    module: qualified name. side: what enters it or what leaves it. index: which of the tensors
    there, flattened. call: which call of the module, counted from the last (0 is the last).
    shape: as measured on the example, batch first. channel: the axis that pooling never touches.
    """

    name: str
    module: str
    side: str
    index: int
    shape: tuple[int, ...]
    channel: int
    call: int = 0

    @property
    def width(self) -> int:
        """Numbers per position."""
        return self.shape[self.channel]

    @property
    def positions(self) -> tuple[int, ...]:
        """Axes over which pooling runs: time, tokens, or height and width."""
        return tuple(i for i in range(1, len(self.shape)) if i != self.channel)

    def describe(self, sequence: str = "position") -> str:
        """The shape in words: `time 49 × channel 768`. sequence: what a single axis counts."""
        names = {0: (), 1: (sequence,), 2: ("height", "width"), 3: ("time", "height", "width")}
        roles = dict(zip(self.positions, names.get(len(self.positions), ()), strict=False))
        roles[self.channel] = "channel"
        return " × ".join(
            f"{roles.get(axis, 'position')} {self.shape[axis]}"
            for axis in range(1, len(self.shape))
        )


def find_taps(
    trace: Trace, head: Head | None, module: nn.Module, base: str | None
) -> dict[str, Tap]:
    """Every named tap of a model: `backbone`, `prelogits`, `weighted`, `layer:0` … `layer:N`."""
    entering = trace.reads if head is None else head.prelogits
    before = {op.index for op in trace.upstream(entering)}
    backbone = _backbone(trace, before, base)
    taps = {"backbone": backbone} if backbone else {}
    prelogits = _prelogits(trace, head) if head is not None else None
    if prelogits is not None:
        taps["prelogits"] = prelogits
        taps.setdefault("backbone", _renamed(prelogits, "backbone"))
    weighted = _weighted(trace, taps.get("backbone"))
    if weighted is not None:
        taps["weighted"] = weighted
    for number, tap in enumerate(_layers(trace, before, module)):
        taps[f"layer:{number}"] = _renamed(tap, f"layer:{number}")
    return taps


def tap_at(trace: Trace, name: str) -> Tap:
    """The output of the module called `name`, as a tap.

    Raises:
        TapError: the model has no such module, or it gave no float tensor.
    """
    calls = trace.calls_of(name)
    if not calls:
        raise TapError(f"no module called {name!r} ran in the forward pass")
    index = _first_float(calls[-1].outputs)
    if index is None:
        raise TapError(f"{name!r} returns no float tensor with a batch axis")
    return _tap(trace, name, calls[-1], OUTPUT, index)


def _tap(trace: Trace, name: str, call: Call, side: str, index: int) -> Tap:
    read = (call.inputs if side == INPUT else call.outputs)[index]
    calls = trace.calls_of(call.module)
    return Tap(
        name=name,
        module=call.module,
        side=side,
        index=index,
        shape=tuple(read.tensor.shape),
        channel=channel_axis(trace, read),
        call=len(calls) - 1 - next(i for i, other in enumerate(calls) if other is call),
    )


def _renamed(tap: Tap, name: str) -> Tap:
    return Tap(name, tap.module, tap.side, tap.index, tap.shape, tap.channel, tap.call)


def _first_float(reads: Sequence[Read], least: int = 2) -> int | None:
    for index, read in enumerate(reads):
        if read.depends and read.tensor.is_floating_point() and read.tensor.ndim >= least:
            return index
    return None


def _backbone(trace: Trace, before: set[int], base: str | None) -> Tap | None:
    """What the named base returns first; else the last thing before the head with a position axis.

    before: operations upstream of the head. A base that returns the logits, or something behind
    the head, is no backbone.
    """
    end = max(before, default=0)
    for call in reversed(trace.calls_of(base) if base else []):
        index = _first_float(call.outputs)
        producer = call.outputs[index].producer if index is not None else None
        # A norm of a base that the head leaves aside is not upstream of it, and still its end.
        if index is not None and producer is not None and producer.index <= end:
            return _tap(trace, "backbone", call, OUTPUT, index)
    candidates = [
        (producer.index, -call.module.count("."), call, index)
        for call in trace.calls
        if (index := _first_float(call.outputs, least=3)) is not None
        if (producer := call.outputs[index].producer) is not None and producer.index in before
    ]
    if not candidates:
        return None
    _, _, call, index = max(candidates, key=lambda candidate: candidate[:2])
    return _tap(trace, "backbone", call, OUTPUT, index)


def _prelogits(trace: Trace, head: Head) -> Tap | None:
    """The input of the head's module, where the head is one module that reads one tensor."""
    if len(head.names) != 1:
        return None
    calls = trace.calls_of(head.names[0])
    index = _first_float(calls[-1].inputs) if calls else None
    return None if index is None else _tap(trace, "prelogits", calls[-1], INPUT, index)


def _weighted(trace: Trace, backbone: Tap | None) -> Tap | None:
    """The checkpoint's own learned mix of layers: a weight with one number per layer, outside of
    the backbone, meets a stack of hidden states; the mix is what the next module receives."""
    if backbone is None:
        return None
    for op in trace.ops:
        if op.name != "aten.mul" or not op.depends or op.module == backbone.module:
            continue
        mix = next((read for read in op.reads if not read.depends), None)
        if (
            mix is None
            or mix.producer is None
            or mix.tensor.numel() != max(mix.tensor.shape, default=0)
        ):
            continue
        stacked = tuple(op.writes[0].shape)
        if not trace.weights_used([mix]) or len(stacked) != len(backbone.shape) + 1:
            continue
        layers = len(stacked) - mix.tensor.ndim + mix.tensor.shape.index(mix.tensor.numel())
        tap = _receiver(trace, op, stacked[:layers] + stacked[layers + 1 :])
        if tap is not None:
            return tap
    return None


def _receiver(trace: Trace, source: Op, shape: tuple[int, ...]) -> Tap | None:
    """The first module behind `source` that receives a tensor of the given shape made from it."""
    behind = {source.index}
    for op in trace.ops[source.index + 1 :]:
        if any(read.producer is not None and read.producer.index in behind for read in op.reads):
            behind.add(op.index)
    for call in sorted(trace.calls, key=lambda call: call.first):
        if call.first <= source.index:
            continue
        for index, read in enumerate(call.inputs):
            made = read.producer is not None and read.producer.index in behind
            if made and tuple(read.tensor.shape) == shape:
                return _tap(trace, "weighted", call, INPUT, index)
    return None


def _layers(trace: Trace, before: set[int], module: nn.Module) -> list[Tap]:
    """What enters the first of the model's repeated blocks, and what leaves each of them.

    The blocks are the numbered children of the container that holds most of the weights; with
    equal weights the outermost one.
    """
    best: tuple[int, list[Tap]] = (0, [])
    for path, container in module.named_modules():
        children = [(n, child) for n, child in container.named_children() if n.isdigit()]
        kinds = [type(child) for _, child in children]
        if len(children) < 2 or len(set(kinds)) == len(kinds):
            continue
        size = sum(p.numel() for p in container.parameters())
        if size <= best[0]:
            continue
        prefix = f"{path}." if path else ""
        taps = list(_block_taps(trace, [prefix + name for name, _ in children], before))
        if len(taps) == len(children) + 1:
            best = (size, taps)
    return best[1]


def _block_taps(trace: Trace, names: Sequence[str], before: set[int]) -> Iterator[Tap]:
    batch = logits_of(trace.output).shape[0]
    for number, name in enumerate(names):
        calls = trace.calls_of(name)
        if not calls:
            return
        entry = _first_float(calls[-1].inputs, least=3)
        leave = _first_float(calls[-1].outputs, least=3)
        if entry is None or leave is None:
            return
        left = calls[-1].outputs[leave]
        if left.producer is None or left.producer.index not in before:
            return
        if left.tensor.shape[0] != batch:  # batch folded into another axis, or not in front
            return
        if number == 0:
            yield _tap(trace, name, calls[-1], INPUT, entry)
        yield _tap(trace, name, calls[-1], OUTPUT, leave)


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
