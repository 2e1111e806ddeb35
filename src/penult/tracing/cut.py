"""Cut one recorded pass into prelogits and what follows; one program for several passes; picking
and averaging moved in front of a linear head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from penult.errors import HeadNotFound, UsageError
from penult.tracing.boundary import Boundary, CutPoint, find_boundary, stepped_back, subgraph
from penult.tracing.certificate import TOLERANCE
from penult.tracing.forward import SplitTarget, relative
from penult.tracing.head import LINEAR_AFTER, VIEWS, logits_of
from penult.tracing.hooks import captured
from penult.tracing.inputs import CallInputs, other_batch, other_lengths
from penult.tracing.replay import Lister, Listing, Program, generalise
from penult.tracing.taps import INPUT, Spot
from penult.tracing.trace import Op, TensorRead, Trace
from penult.tracing.weight_layers import entering, weight_of

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

    entered: CutPoint
    left: Tensor
    bias: TensorRead | None


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
    def parameters(self) -> tuple[TensorRead, TensorRead | None]:
        """The head's weight (D, K), and its bias."""
        weight = weight_of(self._op)
        assert weight is not None
        return weight, self._layers[0].bias

    def _search(self, logits: TensorRead) -> tuple[TensorRead, Tensor]:
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

    def _joints(self, logits: TensorRead) -> list[TensorRead]:
        """What can be the joint: the last tensor that needs two that depend on the input, and
        its multiples by plain numbers (a sum over steps, then the division by their count). With
        none such, any tensor on the way."""
        scores = {id(layer.left) for layer in self._layers}
        late: list[TensorRead] = []
        way: list[TensorRead] = []
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

    def _moved(self, joint: TensorRead) -> Tensor:
        """What joins the scores, done to what entered the layer instead: (…, D)."""
        trace = self._trace
        values: dict[int, Tensor] = {
            id(x.left): trace.value(x.entered.tensor, x.entered.at) for x in self._layers
        }
        n_scores, width = self._op.writes[0].shape[-1], next(iter(values.values())).shape[-1]
        places = [
            CutPoint(TensorRead(x.left, None, True), len(trace.ops) + 1) for x in self._layers
        ]
        for op in subgraph(trace, joint, places).ops:
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
        return Layer(CutPoint(entering(op), op.index), op.writes[0], bias)
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


class CapturePlan(NamedTuple):
    """Where hooks read the prelogits. calls: how often each spot's module ran."""

    spots: tuple[Spot, ...]
    calls: tuple[int, ...]


def plan_capture(trace: Trace, boundary: Boundary) -> CapturePlan | None:
    """A spot for each tensor at the boundary; None unless all of them enter a module of the head
    and carry everything."""
    if boundary.tail.open:
        return None  # the prelogits were moved, and enter nothing
    spots = [_entry_of(trace, boundary, place) for place in boundary.places]
    found = tuple(spot for spot in spots if spot is not None)
    if len(found) < len(spots):
        return None
    return CapturePlan(found, tuple(len(trace.calls_of(spot.module)) for spot in found))


def _entry_of(trace: Trace, boundary: Boundary, place: CutPoint) -> Spot | None:
    """Where a tensor enters a module of the head, with the value that it has at the boundary."""
    value = trace.value(place.tensor, place.at)
    for name in boundary.head.names:
        calls = trace.calls_of(name)
        for number, call in enumerate(calls):
            for index, read in enumerate(call.inputs):
                # The same object: nothing was written to it in between.
                if read.tensor is place.tensor and trace.value(read.tensor, call.first) is value:
                    return Spot(name, INPUT, index, len(calls) - 1 - number)
    return None


@dataclass(frozen=True, slots=True)
class PassCut:
    """A pass, cut. values: the prelogits. listing: what led from them to the logits. names: of the
    head's modules. plan: where hooks read the prelogits, if they can."""

    values: tuple[Tensor, ...]
    listing: Listing
    logits: Tensor
    names: tuple[str, ...]
    plan: CapturePlan | None = None

    def program(self, others: Sequence[PassCut] = ()) -> Program:
        """What runs the tail of this pass, and of others.

        Raises:
            HeadNotFound: no program runs all of them.
        """
        listings = [one.listing for one in (self, *others)]
        return generalise(listings, [value.ndim for value in self.values])


def cut(target: SplitTarget, trace: Trace, inputs: CallInputs) -> PassCut:
    """Cut a recorded pass.

    Raises:
        HeadNotFound: it can't be cut, and why.
    """
    boundary = find_boundary(trace, target.output, target.named)
    names = {id(tensor): name for name, tensor in target.weights().items()}
    move = _move(trace, boundary, inputs)
    lister = Lister(trace, names)
    if move is None:
        values = tuple(trace.value(p.tensor, p.at).clone() for p in boundary.places)
        for place in boundary.places:
            lister.enter(place.tensor)
        lister.add_up_to(boundary.logits, boundary.places)
    else:
        values = (move.prelogits,)
        _list_moved(lister, move, values[0], boundary)
    sizes = [size for value in values for size in value.shape]
    logits = boundary.logits.tensor
    listing = lister.finish(sizes, logits)
    plan = plan_capture(trace, boundary) if move is None else None
    return PassCut(values, listing, logits.detach().clone(), boundary.head.names, plan)


def cut_by_hooks(target: SplitTarget, inputs: CallInputs, first: PassCut) -> PassCut | None:
    """A plain pass, cut by hooks where `first`, a recorded one, was cut, and taken to have the same
    tail; None where the prelogits are not read by hooks, or the head runs more or less often."""
    if first.plan is None:
        return None
    spots, calls = first.plan
    copy = inputs.copy()
    with torch.no_grad(), captured(target.model, spots) as found:
        output = target.model(*copy.args, **copy.kwargs)
    if tuple(found.counts[spot.place] for spot in spots) != calls:
        return None
    logits = logits_of(output, target.output).detach().clone()
    return replace(first, values=tuple(found()), logits=logits)


def _move(trace: Trace, boundary: Boundary, inputs: CallInputs) -> Move | None:
    """Picking and averaging behind the head, where there is some to be moved in front of it."""
    around = boundary.tail.open
    if not around and len(boundary.places) == 1 and not _is_folded(boundary):
        return None
    try:
        return Move(trace, boundary)
    except HeadNotFound as error:
        if not around:
            return None
        keys = {
            id(tensor): key if isinstance(key, str) else f"input {key}"
            for key, tensor in inputs.tensors().items()
        }
        seen = sorted({keys.get(id(read.tensor), "the input") for read in around})
        raise HeadNotFound(
            f"the logits depend on {', '.join(seen)} also around the head "
            f"({', '.join(boundary.head.names) or boundary.head.ops[-1].name}), {error}"
        ) from error


def _is_folded(boundary: Boundary) -> bool:
    """Whether windows or frames are folded into the batch where the head reads them, so that the
    number of samples can't be told from what enters."""
    entered, logits = boundary.places[0].tensor, boundary.logits.tensor
    if not entered.ndim or not logits.ndim or not logits.shape[0]:
        return False
    return entered.shape[0] > logits.shape[0] and entered.shape[0] % logits.shape[0] == 0


def _list_moved(lister: Lister, move: Move, z: Tensor, boundary: Boundary) -> None:
    """The moved head as a layer over the last axis, then everything behind the joint."""
    joint = move.joint
    lister.enter(z)
    weight, bias = move.parameters
    for read in (weight, bias):
        if read is not None:
            lister.add_up_to(read, ())
    operands = [z, weight.tensor] + ([] if bias is None else [bias.tensor])
    made = z.new_empty(0)  # stands for the layer's output
    lister.add(affine, "affine", (tuple(operands), {}), [made])
    shape = [*joint.tensor.shape]
    lister.add(torch.reshape, "reshape", ((made, shape), {}), [joint.tensor])
    index = len(boundary.tail.ops) and joint.producer and joint.producer.index + 1
    lister.add_up_to(boundary.logits, [CutPoint(joint, int(index or 0))])


def law_error(target: SplitTarget, program: Program, one: PassCut, largest: float) -> float:
    """By how much the law fails for one input. largest: see `relative`."""
    try:
        with torch.no_grad():
            again = program.run(one.values, target.weights())
    except (RuntimeError, UsageError, TypeError, ValueError, IndexError):
        return float("inf")  # the tail does not even run for this shape
    return relative(again, one.logits, largest)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Fits a program to the cut of the example, `first`, and to others."""

    target: SplitTarget
    first: PassCut
    largest: float

    def program(
        self, noted: Sequence[tuple[str, PassCut]], inputs: CallInputs
    ) -> tuple[Program, list[tuple[str, PassCut]]]:
        """A program for all the cuts; where none fits all, one for single samples and one for
        larger batches. With it, the cuts of more inputs that this took, and what they are.

        noted: the cuts of other inputs than the example, and what these are.

        Raises:
            HeadNotFound: no program fits.
        """
        others = [one for _, one in noted]
        reason = HeadNotFound("what follows the head is not the same for every shape")
        try:
            program = self.first.program(others)
            if all(self._fits(program, one) for one in others):
                return program, []
        except HeadNotFound as error:
            reason = error
        lengths = any("another length" in note for note, _ in noted)
        more = list(self._by_batch(inputs)) if lengths else []
        cuts = [self.first, *others, *(one for _, one in more)]
        # Torch's own shortcuts make these two forms: einsum drops axes of size 1.
        single = [one for one in cuts if one.values[0].shape[0] == 1]
        several = [one for one in cuts if one.values[0].shape[0] != 1]
        if not single or not several:
            raise reason
        return replace(several[0].program(several[1:]), single=single[0].program(single[1:])), more

    def _fits(self, program: Program, one: PassCut) -> bool:
        return law_error(self.target, program, one, self.largest) <= TOLERANCE

    def _by_batch(self, inputs: CallInputs) -> Iterator[tuple[str, PassCut]]:
        """So that batches of one and of several are both seen at two lengths."""
        one, three = other_batch(inputs, 1), other_batch(inputs, 3)
        if one is None or three is None:
            return
        tries = (("batch 1", [one]), ("batch 3 and another length", [*other_lengths(three)][:2]))
        for note, variants in tries:
            for variant in variants:
                try:
                    yield note, cut(self.target, *self.target.record(variant))
                    break
                except (HeadNotFound, RuntimeError, ValueError, TypeError, IndexError):
                    continue
