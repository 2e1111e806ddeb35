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

from penult.errors import HeadNotFound, UsageError
from penult.splitting.trace import Op, Read, Trace

# Operations that contract an operand with another. Which of the two is a weight is read off the
# trace: the one that does not depend on the input.
CONTRACTIONS = frozenset(
    f"aten.{name}"
    for name in (
        "addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear",
        "matmul", "convolution", "_convolution", "_cdist_forward", "_euclidean_dist",
        "mkldnn_linear",
        "_weight_int8pack_mm", "_weight_int4pack_mm",
    )
)  # fmt: skip

# Operations whose result has nothing of their operand but its shape.
SHAPE_ONLY = frozenset(
    f"aten.{name}"
    for name in (
        "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
        "new_empty", "zero_",
    )
)  # fmt: skip

# Contractions with packed weights, which no tensor operand shows.
PACKED = ("quantized.linear", "quantized.conv")

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


def floats_of(output: Any) -> list[torch.Tensor]:
    """The float tensors in what a model returned, in order."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def _chosen(output: Any, which: str | int) -> torch.Tensor:
    """The output that the caller named: a key, an attribute, or a place among the outputs."""
    try:
        if isinstance(which, str):
            found = output[which] if isinstance(output, dict) else getattr(output, which)
        else:
            found = tuple(output.values() if isinstance(output, dict) else output)[which]
    except (KeyError, AttributeError, IndexError, TypeError):
        found = None
    if isinstance(found, torch.Tensor) and found.is_floating_point():
        return found
    known = list(output) if isinstance(output, dict) else type(output).__name__
    raise UsageError(f"output={which!r} is no float tensor of what the model returned: {known}")


def logits_of(output: Any, which: str | int | None = None) -> torch.Tensor:
    """The logits in what a model returned: `.logits`, the tensor itself, or the only float tensor.

    Raises:
        HeadNotFound: there is none, or several and none is called logits.
        UsageError: `which` names none of them.
    """
    if which is not None:
        return _chosen(output, which)
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    floats = floats_of(output)
    if len(floats) == 1:
        return floats[0]
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in floats) or "no float tensor"
    raise HeadNotFound(
        f"the model returned {type(output).__name__} with {shapes}; a classifier returns one "
        "float tensor of logits, or names one of them `logits`"
    )


def find_head(trace: Trace, output: str | int | None = None) -> Head:
    """Locate the head in a recorded forward pass. output: which of several outputs is meant.

    Raises:
        HeadNotFound: no contraction with input-independent weights lies on the way to the logits.
    """
    logits = logits_of(trace.output, output)
    root = next(read for read in trace.reads if read.tensor is logits)
    if not root.depends:
        raise HeadNotFound(
            "no recorded operation leads from the input to the logits: they are constant, or "
            "computed outside of torch (numpy, a kernel of the model's own)"
        )
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
        if op.name in SHAPE_ONLY:
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
    """The tensors that a contraction contracts, most often two (a bias is not one of them)."""
    reads = list(_floats(op))
    if op.name == "aten._trilinear":  # a bilinear layer: both of its inputs, and its weight
        return list(_floats(op))[:3]
    biased = op.name in {"aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv"}
    return reads[1:3] if biased else reads[:2]


def is_weight_layer(op: Op) -> bool:
    """Whether an operation contracts something that depends on the input with something that
    does not."""
    if op.name.startswith(PACKED):
        return op.depends
    if op.name == "aten._trilinear":
        return op.depends and not all(read.depends for read in operands(op))
    if op.name not in CONTRACTIONS:
        return _spreads(op)
    pair = operands(op)
    return len(pair) == 2 and sum(read.depends for read in pair) == 1


def _spreads(op: Op) -> bool:
    """Whether an elementwise operation meets every feature with one weight per class and feature.

    `(z[:, None] * W).sum(-1)` and `(z[:, None] - prototypes).norm(dim=-1)` contract without a
    matrix product: the weight brings an axis that z lacks, and shares another one with it.
    """
    if op.name not in {"aten.mul", "aten.sub", "aten.rsub"}:
        return False
    reads = list(_floats(op))
    if len(reads) != 2 or sum(read.depends for read in reads) != 1:
        return False
    rank = max(read.tensor.ndim for read in reads)
    z, weight = (
        (1,) * (rank - read.tensor.ndim) + tuple(read.tensor.shape)
        for read in sorted(reads, key=lambda read: not read.depends)
    )
    pairs = list(zip(z, weight, strict=True))
    return any(a == 1 < b for a, b in pairs) and any(a == b > 1 for a, b in pairs)


def entering(op: Op) -> Read:
    """The input-dependent operand of a weight layer: the prelogits, if it is the last one."""
    return next(read for read in operands(op) if read.depends)


def weight_of(op: Op) -> Read | None:
    """The weight operand of a weight layer; None where the weights are packed."""
    return next((read for read in operands(op) if not read.depends), None)


def _is_square(op: Op, n_logits: int) -> bool:
    weight = weight_of(op)
    shape = None if weight is None else tuple(weight.tensor.shape)
    return shape == (n_logits, n_logits) and n_logits > 1


def _width(op: Op) -> int:
    axis = 1 if op.name.endswith("convolution") else -1
    return int(op.writes[0].shape[axis])


def _owners(trace: Trace, op: Op) -> list[str]:
    """The module that runs a weight layer, if the weight is a parameter or buffer of its own."""
    weight = weight_of(op)
    if weight is None:
        return [op.module] if op.module else []
    names = trace.weights_used([weight])
    if op.module and any(n.startswith(op.module + ".") for n in names):
        return [op.module]
    owners = {n.split(".parametrizations.")[0].rpartition(".")[0] for n in names} - {""}
    # Compiled, exported and scripted modules are not seen being called; a module that is, and
    # whose weight is used elsewhere (a tied table), is not the head.
    return sorted(owner for owner in owners if not trace.calls_of(owner))[:1]
