"""State that a module keeps from one call to the next: whether any of it reaches what it returns.

A counter, a cache of masks or the last attention map changes in every pass and decides nothing. A
state is what a pass reads, did not make itself, and finds changed after another item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from penult.errors import REFUSALS
from penult.tracing.forward import relative
from penult.tracing.head import floats_of
from penult.tracing.trace import SHAPE_ONLY, TensorRead, Trace, record

_BOUND = 1e-6  # relative, of what a module returns for one input
_DEPTH = 4  # containers inside of containers
_LARGE = 1 << 20  # numbers of a tensor that changes and is no weight

Held = dict[str, Any]  # by name: (tensor, its version), or a number


def held_by(module: nn.Module) -> Held:
    """Every tensor and number that a module holds, also in lists and dictionaries of its own."""
    found: Held = {}
    for name, child in module.named_modules():
        for own, value in vars(child).items():
            if own == "_modules":
                continue
            place = name if own in {"_parameters", "_buffers"} else f"{name}.{own}"
            for inside, leaf in _leaves(value, _DEPTH):
                found[f"{place}{inside}".strip(".")] = leaf
    return found


def _leaves(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield "", (value, None if value.is_inference() else value._version)
    elif isinstance(value, int | float | complex):
        yield "", value
    elif depth and isinstance(value, Mapping):
        for key, one in value.items():
            yield from ((f".{key}{name}", leaf) for name, leaf in _leaves(one, depth - 1))
    elif depth and isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from ((f".{number}{name}", leaf) for name, leaf in _leaves(one, depth - 1))


def changed_between(before: Held, after: Held) -> list[str]:
    """Names of what a pass changed or added."""
    return [name for name, leaf in after.items() if not _same(before.get(name, ()), leaf)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and one[0] is other[0] and one[1] == other[1]
    return type(one) is type(other) and (one == other or one != one)


def keeps_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether what a module returns depends on the items before: in values, or because a tensor
    that its passes read is another one after another item. Four passes."""
    other = {name: _turned(value) for name, value in tensors.items()}
    first, before = _pass(module, tensors)
    second, _ = _pass(module, tensors)
    try:
        _run(module, other)
    except REFUSALS:  # it takes no such item: this one again
        _run(module, tensors)
    third, after = _pass(module, tensors)
    if any(len(one) != len(first) for one in (second, third)):
        return True
    pairs = [*zip(first, second, strict=True), *zip(first, third, strict=True)]
    if any(relative(one, another) > _BOUND for one, another in pairs):
        return True
    read = [key for key in after if key in before]
    return any(not _equal(before[key], after[key]) for key in read)


def _turned(value: Tensor) -> Tensor:
    """Another item of the same shape: turned round, and quieter."""
    turned = value.flip(-1) if value.ndim else value
    return turned * 0.7 if value.is_floating_point() else turned


def _run(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        module(**{name: value.clone() for name, value in tensors.items()})


Read = dict[tuple[int, str, int], Tensor]  # by number and name of the operation, and its operand


def _pass(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], Read]:
    """(what it returns, copies of the tensors on the way there that the pass did not make)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copies = {name: value.clone() for name, value in tensors.items()}
        trace = record(module, kwargs=copies, keep=lambda _, read: _is_state(read))
    return [one.clone() for one in floats_of(trace.output)], dict(_read(trace))


def _read(trace: Trace) -> Iterator[tuple[tuple[int, str, int], Tensor]]:
    for op in trace.upstream(trace.reads):
        # Norms in training write their statistics, and read none of them.
        if op.name in SHAPE_ONLY or (
            "batch_norm" in op.name and any(given is True for given in op.args)
        ):
            continue
        for number, read in enumerate(op.reads):
            if _is_state(read):
                yield (op.index, op.name, number), trace.values.of(read)


def _is_state(read: TensorRead) -> bool:
    """Whether it may be state: what the pass did not make, and no weight."""
    found = read.tensor.itself
    if found is None or read.producer is not None or read.depends:
        return False
    weight = found.requires_grad or found.numel() > _LARGE
    return not weight and found.layout == torch.strided and not found.is_quantized


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return relative(one, other) <= _BOUND if one.is_floating_point() else torch.equal(one, other)
