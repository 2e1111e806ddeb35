"""Walk back from the logits to the head: the last contraction with weights of its own.

Works on a recorded trace alone: no list of model names, no guess by attribute names. What it finds
is a candidate: whether the cut is exact is measured by the proof.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penult.errors import HeadNotFound, UsageError
from penult.tracing.living import TracedTensor
from penult.tracing.trace import SHAPE_ONLY, Op, TensorRead, Trace, tensors_in
from penult.tracing.weight_layers import (
    CONTRACTIONS,
    carriers,
    entering,
    is_weight_layer,
    operands,
    plain_name,
    weight_of,
)

# Operations that give another view of the same numbers.
VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze",
        "alias", "detach", "expand",
    )
)  # fmt: skip

_SOFTMAX = {"aten._softmax", "aten._log_softmax", "aten._safe_softmax"}

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
    enters each. after: operations on the way to the logits that are not linear. features: what
    meets weights that the head makes from the input, and where.
    """

    ops: tuple[Op, ...]
    names: tuple[str, ...]
    prelogits: tuple[TensorRead, ...]
    n_logits: int
    after: tuple[str, ...]
    features: tuple[tuple[Op, TensorRead], ...] = ()


def floats_of(output: Any) -> list[torch.Tensor]:
    """The float tensors in what a model returned, in order."""
    return [leaf for leaf in tensors_in(output) if leaf.is_floating_point()]


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
    choice = "; say which is meant (output=, --output)" if floats else ""
    raise HeadNotFound(
        f"the model returned {type(output).__name__} with {_named_shapes(output, floats)}; a "
        f"classifier returns one float tensor of logits, or names one of them `logits`{choice}"
    )


def _named_shapes(output: Any, floats: list[torch.Tensor]) -> str:
    """The float tensors of an output by name or number: `0 (1, 5), 1 (1, 8)`."""
    pairs = output.items() if isinstance(output, dict) else enumerate(floats)
    shown = [f"{name} {tuple(leaf.shape)}" for name, leaf in pairs
             if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]  # fmt: skip
    return ", ".join(shown) or ", ".join(str(tuple(f.shape)) for f in floats) or "no float tensor"


def read_logits(trace: Trace, output: str | int | None = None) -> TensorRead:
    """The logits of a recorded pass, as they were returned.

    Raises:
        HeadNotFound: there are none, or what was returned makes them anew whenever it is asked.
    """
    logits = logits_of(trace.output, output)
    read = trace.read_of(logits)
    if read is not None:
        return read
    raise HeadNotFound(
        f"the logits of {type(trace.output).__name__} are no tensor that the model returned: they "
        "are made when they are asked for; name a tensor of the output (output=)"
    )


def find_head(trace: Trace, output: str | int | None = None) -> Head:
    """Locate the head in a recorded forward pass. output: which of several outputs is meant.

    Raises:
        HeadNotFound: no contraction with input-independent weights lies on the way to the logits.
    """
    root = read_logits(trace, output)
    logits = root.tensor
    if not root.depends:
        raise HeadNotFound(
            "no recorded operation leads from the input to the logits: they are constant, or "
            "computed outside of torch (numpy, a kernel of the model's own)"
        )
    n_logits = logits.shape[-1] if logits.ndim > 1 else 1
    way = _walk(trace, root, n_logits)
    if not way.layers:
        raise HeadNotFound(
            "no layer with weights lies between the input and the logits; "
            f"seen on the way: {', '.join(dict.fromkeys(way.bends)) or 'nothing'}"
        )
    embeddings = {read.tensor for read in trace.reads if read.tensor is not logits}
    found = {op.index: op for op in _before_scores(trace, way.layers, n_logits, embeddings)}
    ops = tuple(found[index] for index in sorted(found))
    return Head(
        ops=ops,
        names=tuple(dict.fromkeys(name for op in ops for name in _owners(trace, op))),
        prelogits=tuple(entering(op) for op in ops),
        n_logits=n_logits,
        after=tuple(dict.fromkeys(way.bends)),
        features=tuple(way.features),
    )


@dataclass(slots=True)
class _WalkBack:
    """What is met going back from a tensor. layers: the first ones with weights. bends: names of
    what is not linear in between. features: what meets weights that are made from the input, or
    goes around a layer. joined: whether one way ended at what enters a layer of another."""

    layers: list[Op] = field(default_factory=list)
    bends: list[str] = field(default_factory=list)
    features: list[tuple[Op, TensorRead]] = field(default_factory=list)
    joined: bool = False


def _walk(
    trace: Trace, root: TensorRead, n_logits: int, allowed: Collection[str] | None = None
) -> _WalkBack:
    """Go back from `root` to the layers with weights, latest operations first.

    What enters a layer that was found is not followed further: `(z @ W) * z` has one head. Nor is
    what that was made from without weights: it is kept as a feature, `(normed(z) @ W) * norm(z)`.
    But scores that reach the logits unbent are scores, whatever else reads them.
    allowed: what may bend on the way; the walk ends at anything else.
    """
    way = _WalkBack()
    pending = {root.producer.index: (root.producer, False)} if root.producer else {}
    entered: set[TracedTensor] = set()
    before: dict[TracedTensor, TensorRead] = {}
    while pending:
        op, bent = pending.pop(max(pending))
        is_layer = is_weight_layer(trace, op, n_logits)
        known = next((before[t] for t in op.writes if t in before), None)
        if known is not None and (bent or not is_layer):
            way.joined = True
            if known.tensor not in entered:
                way.features.append((op, known))
        elif is_layer:
            way.layers.append(op)
            reads = [read for read in operands(op) if read.depends]
            entered |= {view.tensor for read in reads for view in _views_back(read)}
            if pending:  # there is another way to the logits
                before |= _without_weights(trace, reads, n_logits)
        elif op.name not in SHAPE_ONLY:
            if _bends(op):
                bent = True
                way.bends.append(op.name)
                if allowed is not None and op.name not in allowed:
                    break
            for source in _sources(op, n_logits, way):
                known_bent = pending.get(source.index, (op, True))[1]
                pending[source.index] = source, bent and known_bent
    return way


def _bends(op: Op) -> bool:
    """Whether an operation is not linear in what it reads of the input."""
    if op.name not in LINEAR_AFTER:
        return True
    return op.name in {"aten.mul", "aten.div"} and sum(read.depends for read in carriers(op)) > 1


def _sources(op: Op, n_logits: int, way: _WalkBack) -> list[Op]:
    """The operations that made what an operation reads of the input; operands that are features
    without an axis of classes are noted instead."""
    lacks = _without_classes(op, n_logits)
    if lacks is not None:
        way.features.append((op, lacks))
    onward = [read for read in carriers(op) if read.depends and read is not lacks]
    return [read.producer for read in onward if read.producer is not None]


def _without_weights(
    trace: Trace, reads: Sequence[TensorRead], n_logits: int
) -> dict[TracedTensor, TensorRead]:
    """What tensors are made from, back to the layers with weights in front of them."""
    found: dict[TracedTensor, TensorRead] = {}
    pending = list(reads)
    while pending:
        read = pending.pop()
        op = read.producer
        if read.tensor in found or op is None:
            continue
        found[read.tensor] = read
        if not is_weight_layer(trace, op, n_logits):
            pending += [source for source in carriers(op) if source.depends]
    return found


def _views_back(read: TensorRead) -> Iterator[TensorRead]:
    """A tensor, and what it is a view of."""
    yield read
    while read.producer is not None and read.producer.name in VIEWS:
        source = next((r for r in read.producer.reads if r.depends), None)
        if source is None:
            return
        yield (read := source)


def _without_classes(op: Op, n_logits: int) -> TensorRead | None:
    """Of a product of two things made from the input, the one that has no axis of classes where
    the other has one: features that meet weights made from the input."""
    pair = operands(op)
    if n_logits < 2 or plain_name(op) not in CONTRACTIONS or not all(r.depends for r in pair):
        return None
    lacking = [read for read in pair if n_logits not in read.tensor.shape[1:]]
    return lacking[0] if len(pair) == 2 and len(lacking) == 1 else None


def _before_scores(
    trace: Trace, layers: Sequence[Op], n_logits: int, embeddings: Collection[TracedTensor]
) -> Iterator[Op]:
    """The layers, but for each that only works on scores: those that made the scores.

    embeddings: tensors that the model returns beside the logits, which are no scores.
    """
    for op in layers:
        way = _walk(trace, entering(op), n_logits, _SOFTMAX)
        scored = way.layers and entering(op).tensor not in embeddings
        if scored and _works_on_scores(op, way, n_logits):
            yield from _before_scores(trace, way.layers, n_logits, embeddings)
        else:
            yield op


def _works_on_scores(op: Op, way: _WalkBack, n_logits: int) -> bool:
    """Whether a layer calibrates, mixes or sums up scores: (K, K) after a linear head, a matrix
    that leaves the axis of classes alone, anything after a softmax."""
    if way.joined:
        return False  # more than scores enters it
    if way.bends:
        return set(way.bends) <= _SOFTMAX
    weight = weight_of(op)
    if n_logits < 2 or weight is None or any(_width(x) != n_logits for x in way.layers):
        return False
    shape = tuple(weight.tensor.shape)
    return shape == (n_logits, n_logits) or n_logits not in shape


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
