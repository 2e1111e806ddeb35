"""Repeated blocks of a model, and which axis of a recorded tensor holds the channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter

from torch import nn

from penult.tracing.head import logits_of
from penult.tracing.living import TracedTensor
from penult.tracing.trace import Op, TensorRead, Trace


def find_blocks(trace: Trace, before: set[int], module: nn.Module) -> list[str]:
    """The names of the repeated blocks, in the order in which they run.

    Blocks are modules of one class with numbered names, each of which runs on what the one before
    it left: in one container, or in several (a ResNet's stages). Blocks inside of blocks are none;
    of several kinds, those count that hold most of the weights.
    """
    modules = dict(module.named_modules())
    ran = {call.module for call in trace.calls}
    numbered = [n for n in modules if n.rpartition(".")[2].isdigit() and n in ran]
    kinds = Counter(type(modules[name]) for name in numbered)
    repeated = [name for name in numbered if kinds[type(modules[name])] > 1]
    by_class: dict[type[nn.Module], list[str]] = {}
    for name in repeated:
        if not any(name.startswith(f"{other}.") for other in repeated):
            by_class.setdefault(type(modules[name]), []).append(name)
    best: tuple[int, list[str]] = (0, [])
    for names in by_class.values():
        for chain in _chains(trace, names, before):
            size = sum(p.numel() for name in chain for p in modules[name].parameters())
            if len(chain) > 1 and size > best[0]:
                best = (size, chain)
    return best[1]


def first_float(reads: Sequence[TensorRead], least: int = 2) -> int | None:
    """Index of the first float tensor that depends on the input; least: axes that it has."""
    for index, read in enumerate(reads):
        if read.depends and read.tensor.is_floating_point() and read.tensor.ndim >= least:
            return index
    return None


def _chains(trace: Trace, names: Sequence[str], before: set[int]) -> Iterator[list[str]]:
    """Runs of modules, each of which reads what the one before it left."""
    batch = logits_of(trace.output).shape[0]
    chain: list[str] = []
    last: TensorRead | None = None
    for call in sorted((trace.calls_of(name)[-1] for name in names), key=attrgetter("first")):
        entry, leave = first_float(call.inputs, least=3), first_float(call.outputs, least=3)
        if entry is None or leave is None:
            continue
        left = call.outputs[leave]
        if left.producer is None or left.producer.index not in before:
            continue
        if left.tensor.shape[0] != batch:  # batch folded into another axis
            continue
        if last is not None and not _leads(trace, last, call.inputs[entry]):
            yield chain
            chain = []
        chain.append(call.module)
        last = left
    yield chain


def _leads(trace: Trace, source: TensorRead, target: TensorRead) -> bool:
    """Whether one tensor is made from another."""
    assert source.producer is not None
    for op in trace.upstream([target]):
        if op.index <= source.producer.index:
            return op is source.producer
    return False


# Operations with the channels at axis 1 of what they read.
_CHANNEL_FIRST = {"convolution", "native_batch_norm", "_native_batch_norm_legit_no_training",
                  "native_group_norm", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
                  "max_pool2d_with_indices", "avg_pool2d", "cudnn_batch_norm",
                  "_native_batch_norm_legit"}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "max", "logsumexp"}
# Matrix products, and which of their operands meets the weights with its last axis.
_PRODUCTS = {"mm": 0, "addmm": 1}


def channel_axis(trace: Trace, read: TensorRead) -> int:
    """Which axis of a tensor holds the channels, read off the operations that use or made it.

    Convolutions and batch norm have axis 1, layer norm and linear layers the last one, a mean over
    some axes the one that it leaves. Without evidence: the one axis of more than one number, axis 1
    of maps, else the last.
    """
    tensor = read.tensor
    if tensor.ndim == 2:
        return 1
    for axis in _evidence(trace, read):
        return axis
    wide = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] > 1]
    if len(wide) == 1:  # (B, C, 1), as pooling to one position leaves it
        return wide[0]
    return 1 if tensor.ndim == 4 else tensor.ndim - 1


def _evidence(trace: Trace, read: TensorRead) -> Iterator[int]:
    """Axes that operations point to: users first, in order, then the makers, latest first."""
    # Axes of a tensor, in terms of the tap's; -1 for one that the tap does not have.
    order = {read.tensor: tuple(range(read.tensor.ndim))}
    start = 0 if read.producer is None else read.producer.index + 1
    for op in trace.ops[start:]:
        for number, user in enumerate(op.reads):
            axes = order.get(user.tensor)
            if axes is None:
                continue
            axis = _channel_of(op, user.tensor, number)
            if axis is not None and axes[axis] > 0:
                yield axes[axis]
            for made in op.writes:
                moved = _moved(op, axes, user.tensor, made)
                if moved is not None:
                    order[made] = moved
    maker = read.producer
    while maker is not None and maker.writes and maker.writes[0].shape == read.tensor.shape:
        axis = _channel_of(maker, maker.writes[0])
        if axis is None and _is_product(maker):
            axis = read.tensor.ndim - 1
        if axis is not None and axis != 0:
            yield axis
        maker = next((r.producer for r in maker.reads if r.depends and r.producer), None)


def _is_product(op: Op) -> bool:
    """Whether an operation unfolds a matrix product: the end of a linear layer over positions."""
    source = op.reads[0] if op.reads else None
    if op.name not in _RESHAPES or source is None or source.producer is None:
        return False
    product = source.producer.name.removeprefix("aten.") in _PRODUCTS
    return product and source.tensor.shape[-1] == op.writes[0].shape[-1]


_RESHAPES = {"aten.view", "aten._unsafe_view", "aten.reshape"}
_SQUEEZES = {"aten.squeeze", "aten.unsqueeze"}


def _moved(
    op: Op, axes: tuple[int, ...], source: TracedTensor, made: TracedTensor
) -> tuple[int, ...] | None:
    """The axes of what an operation made of a tensor; None where they are others."""
    if op.name in {"aten.permute", "aten.transpose", "aten.t"}:
        return _permuted(op, axes)
    if op.name == "aten.select":
        left = list(axes)
        left.pop(op.args[1])
        return tuple(left)
    if made.shape == source.shape:
        return axes
    if op.name not in _RESHAPES | _SQUEEZES or made.shape[:1] != source.shape[:1]:
        return None
    wide = [axis for axis in range(1, source.ndim) if source.shape[axis] != 1]
    places = [axis for axis in range(1, made.ndim) if made.shape[axis] != 1]
    if [source.shape[axis] for axis in wide] != [made.shape[axis] for axis in places]:
        return None
    found = dict(zip(places, wide, strict=True))  # only axes of one position came or went
    rest = (axes[found[axis]] if axis in found else -1 for axis in range(1, made.ndim))
    return (axes[0], *rest)


def _channel_of(op: Op, tensor: TracedTensor, number: int = 0) -> int | None:
    """The channel axis of what an operation reads or makes, if the operation shows it. number: of
    the operand."""
    name, rank = op.name.removeprefix("aten."), tensor.ndim
    if _PRODUCTS.get(name) == number and rank == 2 and tensor is not op.writes[0]:
        return 1
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
