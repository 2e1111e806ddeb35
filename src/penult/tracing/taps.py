"""The named places where hidden states can be read, found in a recorded forward pass.

A tap names a module, a side of it and one of the tensors there, so that a plain hook can deliver
it. Where no module's edge carries the tensor (a functional head, TorchScript's insides), it names
an operation instead. Which axis is the channel is read off what the model itself does with it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from penult.errors import HeadNotFound, TapError
from penult.tracing.boundary import find_boundary
from penult.tracing.head import VIEWS, Head, logits_of
from penult.tracing.spots import INPUT, OUTPUT, Tap
from penult.tracing.structure import channel_axis, find_blocks, first_float
from penult.tracing.trace import Call, Op, Trace


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
        taps.setdefault("backbone", replace(prelogits, name="backbone"))
    weighted = _weighted(trace, taps.get("backbone"))
    if weighted is not None:
        taps["weighted"] = weighted
    return taps | {tap.name: tap for tap in _layers(trace, before, module)}


def tap_at(trace: Trace, name: str) -> Tap:
    """The output of the module called `name`, as a tap.

    Raises:
        TapError: the model has no such module, or it gave no float tensor.
    """
    calls = trace.calls_of(name)
    if not calls:
        raise TapError(f"no module called {name!r} ran in the forward pass")
    index = first_float(calls[-1].outputs)
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


def _backbone(trace: Trace, before: set[int], base: str | None) -> Tap | None:
    """What the named base returns first; else the last thing before the head with a position axis.

    before: operations upstream of the head. A base that returns the logits, or something behind
    the head, is no backbone.
    """
    end = max(before, default=0)
    for call in reversed(trace.calls_of(base) if base else []):
        index = first_float(call.outputs)
        producer = call.outputs[index].producer if index is not None else None
        # A norm of a base that the head leaves aside is not upstream of it, and still its end.
        if index is not None and producer is not None and producer.index <= end:
            return _tap(trace, "backbone", call, OUTPUT, index)
    candidates = [
        (producer.index, -call.module.count("."), call, index)
        for call in trace.calls
        if (index := first_float(call.outputs, least=3)) is not None
        if (producer := call.outputs[index].producer) is not None and producer.index in before
    ]
    if not candidates:
        return _backbone_inside(trace, before)
    _, _, call, index = max(candidates, key=lambda candidate: candidate[:2])
    return _tap(trace, "backbone", call, OUTPUT, index)


def _backbone_inside(trace: Trace, before: set[int]) -> Tap | None:
    """What an operation made last, before the head, that has more than one position.

    Where no module's output has any: modules that are not seen being called, functional models.
    """
    batch = logits_of(trace.output).shape[0]
    for op in reversed(trace.ops):
        if op.index not in before or op.name in VIEWS or not op.depends:
            continue
        for index, made in enumerate(op.writes[:1]):
            wide = sum(size > 1 for size in made.shape[1:]) >= 2
            if wide and made.is_floating_point() and made.shape[0] == batch:
                return _inside(trace, "backbone", op, OUTPUT, index)
    return None


def _prelogits(trace: Trace, head: Head) -> Tap | None:
    """The one tensor that enters the head: its module's input, or an operation's operand."""
    if len(head.names) == 1:
        calls = trace.calls_of(head.names[0])
        index = first_float(calls[-1].inputs) if calls else None
        if index is not None:
            return _tap(trace, "prelogits", calls[-1], INPUT, index)
    try:
        boundary = find_boundary(trace)
    except HeadNotFound:
        return None
    if len(boundary.places) != 1 or boundary.tail.open:
        return None  # several tensors, or one that is made only by moving what follows the head
    place = boundary.places[0]
    for op in trace.ops[place.at :]:
        for index, read in enumerate(op.reads):
            if read.tensor is place.tensor:
                return _inside(trace, "prelogits", op, INPUT, index)
    return None


def _inside(trace: Trace, name: str, op: Op, side: str, index: int) -> Tap:
    """A tensor of an operation as a tap. Counted from the end, where the head is: recurrent
    layers run more often for longer inputs."""
    read = op.reads[index] if side == INPUT else op.result(index)
    same = (o for o in trace.ops[op.index + 1 :] if (o.name, o.module) == (op.name, op.module))
    return Tap(
        name=name,
        module=op.module,
        side=side,
        index=index,
        shape=tuple(read.tensor.shape),
        channel=channel_axis(trace, read),
        operation=op.name,
        later=sum(1 for _ in same),
    )


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
    """What enters the first of the model's repeated blocks, and what leaves each of them."""
    calls = [trace.calls_of(name)[-1] for name in find_blocks(trace, before, module)]
    sides = [(calls[0], INPUT, calls[0].inputs)] if calls else []
    sides += [(call, OUTPUT, call.outputs) for call in calls]
    return [
        _tap(trace, f"layer:{number}", call, side, first_float(reads, least=3) or 0)
        for number, (call, side, reads) in enumerate(sides)
    ]
