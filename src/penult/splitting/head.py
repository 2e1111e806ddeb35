"""Walk back from the logits to the head: the last contraction with weights of its own.

Works on a recorded trace alone: no list of model names, no guess by attribute names. What it finds
is a candidate; it says nothing about whether the cut is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound
from penult.splitting.trace import Op, Read, Trace

# Operations that contract an operand with another. Which of the two is a weight is read off the
# trace: the one that does not depend on the input.
CONTRACTIONS = frozenset(
    f"aten.{name}"
    for name in (
        "addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear",
        "matmul", "convolution", "_convolution", "_cdist_forward", "mkldnn_linear",
        "_weight_int8pack_mm", "_weight_int4pack_mm",
    )
)  # fmt: skip

# Operations that lie between a linear head and the logits without bending anything.
LINEAR_AFTER = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "select", "slice", "index",
        "gather", "permute", "transpose", "t", "expand", "repeat", "cat", "stack", "split",
        "split_with_sizes", "clone", "detach", "alias", "contiguous", "_to_copy", "copy_",
        "mean", "sum", "add", "add_", "sub", "rsub", "mul", "mul_", "div", "div_", "neg",
        "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "masked_fill",
        "masked_fill_", "index_put_", "native_dropout", "unbind", "index_select", "lift_fresh",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """The last weight layer(s), in the order in which they ran.

    names: the modules that own the weights, [] for a functional head. prelogits: the tensor that
    enters each. after: operations on the way to the logits that are not linear.
    """

    ops: tuple[Op, ...]
    names: tuple[str, ...]
    prelogits: tuple[Read, ...]
    n_logits: int
    after: tuple[str, ...]


def logits_of(output: Any) -> torch.Tensor:
    """The logits in what a model returned: `.logits`, the tensor itself, or the only float tensor.

    Raises:
        HeadNotFound: there is none, or several and none is called logits.
    """
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    floats = [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    if len(floats) == 1:
        return floats[0]
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in floats) or "no float tensor"
    raise HeadNotFound(
        f"the model returned {type(output).__name__} with {shapes}; a classifier returns one "
        "float tensor of logits, or names one of them `logits`"
    )


def find_head(trace: Trace) -> Head:
    """Locate the head in a recorded forward pass.

    Raises:
        HeadNotFound: no contraction with input-independent weights lies on the way to the logits.
    """
    logits = logits_of(trace.output)
    root = next(read for read in trace.reads if read.tensor is logits)
    if not root.depends:
        raise HeadNotFound("the logits do not depend on the input")
    n_logits = logits.shape[-1] if logits.ndim > 1 else 1
    others = {id(read.tensor) for read in trace.reads if read.tensor is not logits}
    found, after = _walk(root)
    while (
        len(found) == 1
        and _is_square(found[0], n_logits)
        and id(entering(found[0]).tensor) not in others  # the model itself calls that its embedding
    ):
        upstream, between = _walk(entering(found[0]))
        if not upstream or between or any(_width(op) != n_logits for op in upstream):
            break
        found = upstream
    if not found:
        raise HeadNotFound(
            "no layer with weights lies between the input and the logits; "
            f"seen on the way: {', '.join(after) or 'nothing'}"
        )
    found.sort(key=lambda op: op.index)
    names = dict.fromkeys(name for op in found for name in _owners(trace, op))
    return Head(
        ops=tuple(found),
        names=tuple(names),
        prelogits=tuple(entering(op) for op in found),
        n_logits=n_logits,
        after=tuple(dict.fromkeys(after)),
    )


def _walk(root: Read) -> tuple[list[Op], list[str]]:
    """Contractions with weights that are first met going back from `root`, and what bends on
    the way."""
    found: list[Op] = []
    after: list[str] = []
    pending = [root.producer] if root.producer else []
    seen: set[int] = set()
    while pending:
        op = pending.pop()
        if op.index in seen:
            continue
        seen.add(op.index)
        if is_weight_layer(op):
            found.append(op)
            continue
        if op.name not in LINEAR_AFTER or sum(r.depends for r in _floats(op)) > 1:
            bends = op.name not in LINEAR_AFTER or op.name in {"aten.mul", "aten.div"}
            if bends:
                after.append(op.name)
        pending += [read.producer for read in _floats(op) if read.depends and read.producer]
    return found, after


def _floats(op: Op) -> Iterator[Read]:
    return (read for read in op.reads if read.tensor.is_floating_point())


def operands(op: Op) -> list[Read]:
    """The two tensors that a contraction contracts (a bias is not one of them)."""
    reads = list(_floats(op))
    biased = op.name in {"aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv"}
    return reads[1:3] if biased else reads[:2]


def is_weight_layer(op: Op) -> bool:
    """Whether an operation contracts something that depends on the input with something that
    does not."""
    if op.name not in CONTRACTIONS:
        return False
    pair = operands(op)
    return len(pair) == 2 and sum(read.depends for read in pair) == 1


def entering(op: Op) -> Read:
    """The input-dependent operand of a weight layer: the prelogits, if it is the last one."""
    return next(read for read in operands(op) if read.depends)


def _weight(op: Op) -> Read:
    return next(read for read in operands(op) if not read.depends)


def _is_square(op: Op, n_logits: int) -> bool:
    return tuple(_weight(op).tensor.shape) == (n_logits, n_logits) and n_logits > 1


def _width(op: Op) -> int:
    axis = 1 if op.name.endswith("convolution") else -1
    return int(op.writes[0].shape[axis])


def _owners(trace: Trace, op: Op) -> list[str]:
    """The module that runs a weight layer, if the weight is a parameter or buffer of its own."""
    names = trace.weights_used([_weight(op)])
    return [op.module] if op.module and any(n.startswith(op.module + ".") for n in names) else []
