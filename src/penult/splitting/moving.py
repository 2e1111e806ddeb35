"""Move picking and averaging in front of a linear head, where the model does them behind it.

Many text models score every token and then pick the last one's scores; which one is last depends
on the input, so the scores alone can't be computed from the hidden states alone. A linear layer
commutes with picking, stacking and averaging over positions: the same operations are run on what
entered the layer, and the layer afterwards. Whether they do commute is not decided here: the
certificate measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from penult.errors import HeadNotFound
from penult.splitting.boundary import Boundary, Place, region, stepped_back
from penult.splitting.head import LINEAR_AFTER, VIEWS
from penult.splitting.layers import entering, weight_of
from penult.splitting.trace import Op, Read, Trace

_AFFINE = {"aten.addmm", "aten.mm", "aten.linear", "aten.matmul"}
_SCALED = {"aten.div", "aten.mul", "aten.div_", "aten.mul_"}
_SIZED = {"aten.view", "aten._unsafe_view", "aten.reshape", "aten.expand"}


def affine(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over the last axis of z. weight: (D, K)."""
    y = torch.matmul(z, weight)
    return y if bias is None else y + bias


@dataclass(frozen=True, slots=True)
class Layer:
    """One run of a linear layer: what entered, (…, D), and what left, (…, K), its bias added."""

    entered: Place
    left: Tensor
    bias: Read | None


class Move:
    """A linear head whose outputs are joined by picks and averages. joint: what they join to."""

    def __init__(self, trace: Trace, boundary: Boundary) -> None:
        """Find what joins the scores.

        Raises:
            HeadNotFound: the head is not linear, or what follows it is no picking or averaging.
        """
        self._trace = trace
        ops = boundary.head.ops
        if len({_identity(op) for op in ops}) != 1 or any(op.name not in _AFFINE for op in ops):
            raise HeadNotFound("and what follows can't be moved in front of this kind of head")
        self._op = ops[0]
        sizes = tuple(boundary.logits.tensor.shape)
        self._layers = [_layer(trace, op, sizes) for op in ops]
        self.joint, self.prelogits = self._search(boundary.logits)

    @property
    def parameters(self) -> tuple[Read, Read | None]:
        """The head's weight (D, K), and its bias."""
        weight = weight_of(self._op)
        assert weight is not None
        return weight, self._layers[0].bias

    def _search(self, logits: Read) -> tuple[Read, Tensor]:
        """The latest tensor up to which everything behind the layer commutes with it, and z."""
        weight, bias = self.parameters
        reason = HeadNotFound("and no operation joins it with the scores")
        for joint in self._joints(logits):
            try:
                z = self._moved(joint)
                scores = affine(z, weight.tensor, None if bias is None else bias.tensor)
                expected = self._trace.value(joint.tensor, len(self._trace.ops))
                if torch.allclose(scores.reshape(expected.shape), expected, 1e-4, 1e-5):
                    return joint, z
                reason = HeadNotFound("and it does not commute with the head")
            except HeadNotFound as error:
                reason = error
            except RuntimeError:
                reason = HeadNotFound("and it does not act alike on every feature")
        raise reason

    def _joints(self, logits: Read) -> list[Read]:
        """What can be the joint: the last tensor that needs two that depend on the input, and
        its multiples by plain numbers (a sum over steps, then the division by their count). With
        none such, any tensor on the way."""
        scores = {id(layer.left) for layer in self._layers}
        late: list[Read] = []
        way: list[Read] = []
        read = logits
        while read.producer is not None and id(read.tensor) not in scores:
            needed = {id(r.tensor): r for r in read.producer.reads if r.depends}
            if len(needed) > 1:
                return [*late, read]
            if not needed:
                return []
            way.append(read)
            late = [*late, read] if read.producer.name in _SCALED else []
            read = next(iter(needed.values()))
        return way

    def _moved(self, joint: Read) -> Tensor:
        """What joins the scores, done to what entered the layer instead: (…, D)."""
        trace = self._trace
        values: dict[int, Tensor] = {
            id(x.left): trace.value(x.entered.tensor, x.entered.at) for x in self._layers
        }
        n_scores, width = self._op.writes[0].shape[-1], next(iter(values.values())).shape[-1]
        places = [Place(Read(x.left, None, True), len(trace.ops) + 1) for x in self._layers]
        for op in region(trace, joint, places).ops:
            if not any(id(read.tensor) in values for read in op.reads):
                continue
            if op.name not in LINEAR_AFTER:
                raise HeadNotFound(f"and {op.name} between the scores is no picking or averaging")
            if op.func._schema.is_mutable:
                values = {key: value.clone() for key, value in values.items()}
            made = op.func(*_widened(trace, op, values, n_scores, width), **op.kwargs)
            for old, new in zip(op.writes, _tensors(made), strict=True):
                values[id(old)] = new
        if id(joint.tensor) not in values:
            raise HeadNotFound("and the scores do not reach where it is joined")
        return values[id(joint.tensor)].clone()


def _identity(op: Op) -> tuple[Any, ...]:
    weight = weight_of(op)
    tensor = weight.tensor if weight is not None else op.writes[0]
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _tensors(made: Any) -> Sequence[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


def _layer(trace: Trace, op: Op, sizes: Sequence[int]) -> Layer:
    """A matrix product with what torch wraps around it: folding positions, adding the bias."""
    entered = stepped_back(op, sizes)
    left, bias = op.writes[0], op.reads[0] if op.name == "aten.addmm" else None
    shape = (*entered.tensor.shape[:-1], left.shape[-1])
    for later in trace.ops[op.index + 1 : op.index + 4]:
        if not later.reads or later.reads[0].tensor is not left or later.module != op.module:
            break
        if later.name in VIEWS and tuple(left.shape) != shape:
            left = later.writes[0]
        elif later.name in {"aten.add", "aten.add_"} and bias is None and len(later.reads) == 2:
            added = later.reads[1]
            if added.depends or tuple(added.tensor.shape) != shape[-1:]:
                break
            left, bias = later.writes[0], added
    if tuple(left.shape) != shape:
        return Layer(Place(entering(op), op.index), op.writes[0], bias)
    return Layer(entered, left, bias)


def _widened(
    trace: Trace, op: Op, values: Mapping[int, Tensor], n_scores: int, width: int
) -> tuple[Any, ...]:
    """The operands of `op` for tensors that have `width` features where it had `n_scores`."""

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in values:
            return values[id(leaf)]
        side = trace.value(leaf, op.index)
        if side.ndim and side.shape[-1] == n_scores != 1 and _constant_over_scores(side):
            return side[..., :1].expand(*side.shape[:-1], width)
        return side

    args = tree_map(other, op.args)
    if op.name in _SIZED and args[1] and args[1][-1] == n_scores:
        args = (args[0], [*args[1][:-1], width], *args[2:])
    return tuple(args)


def _constant_over_scores(side: Tensor) -> bool:
    return bool((side == side[..., :1]).all())
