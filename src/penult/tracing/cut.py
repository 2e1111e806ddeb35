"""Cut one recorded pass into prelogits and what follows; one program for several passes; picking
and averaging moved in front of a linear head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from penult.errors import HeadNotFound, UsageError
from penult.memory import trim
from penult.tracing.boundary import Boundary, CutPoint, find_boundary, stepped_back, subgraph
from penult.tracing.certificate import TOLERANCE
from penult.tracing.forward import SplitTarget, difference_of, ratio
from penult.tracing.head import LINEAR_AFTER, VIEWS, logits_of
from penult.tracing.hooks import captured
from penult.tracing.inputs import CallInputs, other_batch, other_lengths
from penult.tracing.living import TracedTensor
from penult.tracing.replay import Lister, Listing, Program, generalise
from penult.tracing.spots import INPUT, Spot
from penult.tracing.trace import Op, TensorRead, Trace, ValueAddress
from penult.tracing.weight_layers import entering, weight_of

_AFFINE = {"aten.addmm", "aten.mm", "aten.linear", "aten.matmul"}
_SCALED = {"aten.div", "aten.mul", "aten.div_", "aten.mul_"}
_JOINS = {"aten.stack", "aten.cat"}
_SIZED = {"aten.view", "aten._unsafe_view", "aten.reshape", "aten.expand"}


def affine(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over the last axis of z. weight: (D, K)."""
    y = torch.matmul(z, weight)
    return y if bias is None else y + bias


@dataclass(frozen=True, slots=True)
class Layer:
    """One run of a linear layer: what entered, (…, D), and what left, (…, K), its bias added."""

    entered: CutPoint
    left: TracedTensor
    bias: TensorRead | None


class Move:
    """A linear head whose outputs are joined by picks and averages. joint: what they join to."""

    def __init__(self, trace: Trace, boundary: Boundary) -> None:
        """Find what joins the scores.

        Raises:
            HeadNotFound: the head is not linear, or what follows it is no picking or averaging.
            ValuesNotKept: the trace lacks some of them.
        """
        self._trace = trace
        ops = boundary.head.ops
        if len({_identity(op) for op in ops}) != 1 or any(op.name not in _AFFINE for op in ops):
            raise HeadNotFound("and what follows can't be moved in front of this kind of head")
        self._op = ops[0]
        sizes = tuple(boundary.logits.tensor.shape)
        self._layers = [_layer(trace, op, sizes) for op in ops]
        self.needed = [place.read for place in boundary.places]
        self.needed += self._values_needed(boundary.logits)
        trace.values.require(self.needed)
        self.joint, self.prelogits = self._search(boundary.logits)

    @property
    def parameters(self) -> tuple[TensorRead, TensorRead | None]:
        """The head's weight (D, K), and its bias."""
        weight = weight_of(self._op)
        assert weight is not None
        return weight, self._layers[0].bias

    def _values_needed(self, logits: TensorRead) -> Iterator[TensorRead]:
        """What enters the layers and the head's parameters; what the scores may join to, and what
        they meet on the way there."""
        yield from (layer.entered.read for layer in self._layers)
        yield from (read for read in self.parameters if read is not None)
        for joint in self._joints(logits):
            yield joint
            moved = {layer.left for layer in self._layers}
            for op in takewhile(lambda op: op.name in LINEAR_AFTER, self._between(joint)):
                yield from (read for read in op.reads if read.tensor not in moved)
                moved.update(op.writes)

    def _search(self, logits: TensorRead) -> tuple[TensorRead, Tensor]:
        """The latest tensor up to which everything behind the layer commutes with it, and z."""
        weight, bias = (
            None if read is None else self._trace.values.of(read) for read in self.parameters
        )
        assert weight is not None
        reason = "and no operation joins it with the scores"
        for joint in self._joints(logits):
            try:
                z = self._moved(joint)
                expected = self._trace.values.of(joint)
                scores = affine(z, weight, bias).reshape(expected.shape)
                if torch.allclose(scores, expected, 1e-4, 1e-5):
                    return joint, z
                reason = "and it does not commute with the head"
            except HeadNotFound as error:
                reason = str(error)
            except RuntimeError:
                reason = "and it does not act alike on every feature"
        raise HeadNotFound(reason)

    def _joints(self, logits: TensorRead) -> list[TensorRead]:
        """What can be the joint: the last tensor that needs two that depend on the input, and
        its multiples by plain numbers (a sum over steps, then the division by their count). With
        none such, any tensor on the way."""
        scores = {layer.left for layer in self._layers}
        late: list[TensorRead] = []
        way: list[TensorRead] = []
        read = logits
        while read.producer is not None and read.tensor not in scores:
            needed = {r.tensor: r for r in read.producer.reads if r.depends}
            if len(needed) > 1 or read.producer.name in _JOINS:  # of one sample, maybe
                return [*late, read]
            if not needed:
                return []
            way.append(read)
            late = [*late, read] if read.producer.name in _SCALED else []
            read = next(iter(needed.values()))
        return way

    def _between(self, joint: TensorRead) -> Iterator[Op]:
        """The operations that lead from the layers' outputs to the joint."""
        moved = {layer.left for layer in self._layers}
        places = [
            CutPoint(TensorRead(left, None, True), len(self._trace.ops) + 1) for left in moved
        ]
        for op in subgraph(self._trace, joint, places).ops:
            if any(read.tensor in moved for read in op.reads):
                moved.update(op.writes)
                yield op

    def _moved(self, joint: TensorRead) -> Tensor:
        """What joins the scores, done to what entered the layer instead: (…, D)."""
        trace = self._trace
        values = {layer.left: trace.values.of(layer.entered.read) for layer in self._layers}
        n_scores, width = self._op.writes[0].shape[-1], next(iter(values.values())).shape[-1]
        for op in self._between(joint):
            if op.name not in LINEAR_AFTER:
                raise HeadNotFound(f"and {op.name} between the scores is no picking or averaging")
            if op.func._schema.is_mutable:
                values = {key: value.clone() for key, value in values.items()}
            args, kwargs = _widened(trace, op, values, n_scores, width)
            values.update(zip(op.writes, _tensors(op.func(*args, **kwargs)), strict=True))
        if joint.tensor not in values:
            raise HeadNotFound("and the scores do not reach where it is joined")
        return values[joint.tensor].clone()


def _identity(op: Op) -> tuple[Any, ...]:
    weight = weight_of(op)
    tensor = weight.tensor if weight is not None else op.writes[0]
    return tensor.storage, tensor.offset, tensor.shape, tensor.strides


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
    trace: Trace, op: Op, values: Mapping[TracedTensor, Tensor], n_scores: int, width: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands of `op` for tensors that have `width` features where it had `n_scores`."""
    reads = {read.tensor: read for read in op.reads}

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, TracedTensor):
            return leaf
        if leaf in values:
            return values[leaf]
        side = trace.values.of(reads[leaf])
        if side.ndim and side.shape[-1] == n_scores != 1 and _constant_over_scores(side):
            return side[..., :1].expand(*side.shape[:-1], width)
        return side

    args, kwargs = tree_map(other, (op.args, op.kwargs))
    if op.name in _SIZED and args[1] and args[1][-1] == n_scores:
        args = (args[0], [*args[1][:-1], width], *args[2:])
    return args, kwargs


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
    for name in boundary.head.names:
        calls = trace.calls_of(name)
        for number, call in enumerate(calls):
            for index, read in enumerate(call.inputs):
                since, until = sorted((place.at, call.first))
                if read.tensor is place.tensor and trace.values.unchanged(
                    read.tensor, since, until
                ):
                    return Spot(name, INPUT, index, len(calls) - 1 - number)
    return None


class LawMeasure(NamedTuple):
    """By how much logits(prelogits(x)) is off, with which program. size: of the largest logit."""

    program: Program
    difference: float
    size: float


_LARGE = 2**20  # bytes of numbers that are let go, once the law was measured on them


@dataclass(frozen=True, slots=True)
class PassCut:
    """A pass, cut. values: the prelogits. listing: what led from them to the logits. names: of the
    head's modules. needed: where a pass comes by what cutting it takes. plan: where hooks read the
    prelogits, if they can. measured: by how much the law fails for it. inputs: of the pass, where
    large numbers were let go; the prelogits and logits are then shapes alone."""

    values: tuple[Tensor, ...]
    listing: Listing
    logits: Tensor
    names: tuple[str, ...]
    needed: frozenset[ValueAddress]
    plan: CapturePlan | None = None
    measured: LawMeasure | None = None
    inputs: CallInputs | None = None

    @property
    def sizes(self) -> list[int]:
        """The sizes of the prelogits, one after the other."""
        return [size for value in self.values for size in value.shape]

    def light(self, inputs: CallInputs, logits: bool = False) -> PassCut:
        """Without its numbers, where they are large and the law was measured. inputs: of the pass.
        logits: whether these stay."""
        held = (*self.values, *(() if logits else (self.logits,)))
        large = sum(value.nbytes for value in held) > _LARGE
        if self.measured is None or not large:
            return self
        outlines = tuple(value.to("meta") for value in self.values)
        kept = self.logits if logits else self.logits.to("meta")
        return replace(self, values=outlines, logits=kept, inputs=inputs)

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
        ValuesNotKept: the trace lacks values; see `SplitTarget.from_trace`.
    """
    boundary = find_boundary(trace, target.output, target.named)
    entered = [place.read for place in boundary.places]
    names = {id(tensor): name for name, tensor in target.weights().items()}
    move = _move(trace, boundary, inputs)
    needed = entered if move is None else move.needed
    trace.values.require(needed)
    lister = Lister(trace, names)
    by_sample = move is None and _are_samples(boundary)
    if move is None:
        values = tuple(map(trace.values.copy_of, entered))
        if by_sample:
            parted = all(value.shape[:1] == (1,) for value in values)
            values = (torch.cat(values) if parted else torch.stack(values),)
            lister.enter(values[0])
            apart = (torch.split, (values[0], 1)) if parted else (torch.unbind, (values[0],))
            samples = [read.tensor for read in entered]
            lister.add(apart[0], apart[0].__name__, (apart[1], {}), samples)
        else:
            for read in entered:
                lister.enter(read.tensor)
        lister.add_up_to(boundary.logits, boundary.places)
    else:
        values = (move.prelogits,)
        _list_moved(lister, move, values[0], boundary)
    sizes = [size for value in values for size in value.shape]
    listing = lister.finish(sizes, boundary.logits.tensor)
    plan = None if move is not None or by_sample else plan_capture(trace, boundary)
    logits = logits_of(trace.output, target.output).detach().clone()
    return PassCut(
        values, listing, logits, boundary.head.names, trace.values.addresses(needed), plan
    )


def recorded(
    target: SplitTarget,
    inputs: CallInputs,
    needed: Collection[ValueAddress] = (),
    decide: Callable[[Any], Any] | None = None,
) -> PassCut:
    """A pass over an input, recorded and cut; two where the first kept too few values. needed:
    where it comes by values that it will most likely need. decide: as in `record`.

    Raises:
        HeadNotFound: it can't be cut, and why.
    """
    return target.from_trace(inputs, partial(cut, target), needed, decide)


def cut_by_hooks(target: SplitTarget, inputs: CallInputs, first: PassCut) -> PassCut | None:
    """A plain pass, cut by hooks where `first`, a recorded one, was cut, and taken to have the same
    tail; None where the prelogits are not read by hooks, or the head runs more or less often."""
    if first.plan is None:
        return None
    spots, calls = first.plan
    copy = target.copy(inputs)
    with torch.no_grad(), captured(target.model, spots) as found:
        output = target.model(*copy.args, **copy.kwargs)
    if tuple(found.counts[spot.place] for spot in spots) != calls:
        return None
    logits = logits_of(output, target.output).detach().clone()
    return replace(first, values=tuple(found()), logits=logits)


def _move(trace: Trace, boundary: Boundary, inputs: CallInputs) -> Move | None:
    """Picking and averaging behind the head, where there is some to be moved in front of it."""
    around = boundary.tail.open
    alone = len(boundary.places) == 1 and not boundary.joined and not _is_folded(boundary)
    if not around and alone:
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
        seen = sorted({keys.get(id(read.tensor.itself), "the input") for read in around})
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


def _are_samples(boundary: Boundary) -> bool:
    """Whether each sample enters the head on its own."""
    shapes = [tuple(place.tensor.shape) for place in boundary.places]
    samples = (*boundary.logits.tensor.shape, 0)[0]
    alike = len(set(shapes)) == 1 and len(shapes) == samples
    return alike and (len(shapes[0]) == 1 or shapes[0][:1] != (samples,))


def _list_moved(lister: Lister, move: Move, z: Tensor, boundary: Boundary) -> None:
    """The moved head as a layer over the last axis, then everything behind the joint."""
    joint = move.joint
    lister.enter(z)
    weight, bias = move.parameters
    for read in (weight, bias):
        if read is not None:
            lister.add_up_to(read, ())
    operands = [z, *(read.tensor for read in (weight, bias) if read is not None)]
    made = z.new_empty(0)  # stands for the layer's output
    lister.add(affine, "affine", (tuple(operands), {}), [made])
    shape = [*joint.tensor.shape]
    lister.add(torch.reshape, "reshape", ((made, shape), {}), [joint.tensor])
    index = len(boundary.tail.ops) and joint.producer and joint.producer.index + 1
    lister.add_up_to(boundary.logits, [CutPoint(joint, int(index or 0))])


@dataclass(frozen=True, slots=True)
class Law:
    """The law of a cut, logits(prelogits(x)) = f(x), measured. largest: see `relative`."""

    target: SplitTarget
    largest: float = float("inf")

    def measured(self, one: PassCut, program: Program | None = None) -> PassCut:
        """A cut with what a program gives for it; by default its own operations, which is the same
        where those of the program that is found are the same for its shape."""
        try:
            program = program or one.program()
        except HeadNotFound:
            return one
        return replace(one, measured=LawMeasure(program, *self._off(program, one)))

    def error(self, program: Program, one: PassCut) -> float:
        """By how much the law fails for a cut; measured in another pass over its input where its
        numbers were let go, and other operations were measured on them."""
        known = one.measured
        if known is not None and program.repeats(known.program, one.sizes):
            return ratio(known.difference, known.size, self.largest)
        if one.inputs is not None:
            try:
                one = recorded(self.target, one.inputs, one.needed)
            except HeadNotFound:
                return float("inf")
        return ratio(*self._off(program, one), self.largest)

    def _off(self, program: Program, one: PassCut) -> tuple[float, float]:
        try:
            trim()  # of the pass
            with torch.no_grad():
                again = program.run(one.values, self.target.weights(), shared=True)
        except (RuntimeError, UsageError, TypeError, ValueError, IndexError):
            return float("inf"), 0.0  # the tail does not even run for this shape
        return difference_of(again, one.logits)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Fits a program to the cut of the example, `first`, and to others. most: the largest batch."""

    law: Law
    first: PassCut
    most: int

    def program(
        self, noted: Sequence[tuple[str, PassCut]], inputs: CallInputs
    ) -> tuple[Program, list[tuple[str, PassCut]]]:
        """A program for all the cuts; where none fits all, the one for single samples, run sample
        by sample, or one for single samples and one for larger batches. With it, the cuts of more
        inputs that this took, and what they are.

        noted: the cuts of other inputs than the example, and what these are.

        Raises:
            HeadNotFound: no program fits.
        """
        cuts = [self.first, *(one for _, one in noted)]
        reason, program = "the model takes inputs of one shape alone", None
        try:
            program = _program_of(cuts)
            if all(self.fits(program, one) for one in cuts):
                return program, []
        except HeadNotFound as error:
            reason = str(error)
        lengths = any("another length" in note for note, _ in noted)
        more: list[tuple[str, PassCut]] = []
        # A loop over samples takes as many operations as there are. And torch's own shortcuts make
        # two forms of an operation: einsum drops axes of size 1.
        forms = (_sample_by_sample, _by_batch)
        for form, further in zip(forms, self._further(inputs, lengths), strict=True):
            more += further
            found = [*cuts, *(one for _, one in more)]
            try:
                other = form(found)
                if all(self.fits(other, one) for one in found):
                    return other, more
            except HeadNotFound:
                continue
        if program is None:
            raise HeadNotFound(reason)
        return program, []  # by how much the law fails is told

    def fits(self, program: Program, one: PassCut) -> bool:
        """Whether the law holds for a cut."""
        return self.law.error(program, one) <= TOLERANCE

    def _further(self, inputs: CallInputs, lengths: bool) -> Iterator[list[tuple[str, PassCut]]]:
        """Cuts of further inputs: so that single samples are seen at two lengths; then so that
        larger batches are, in two sizes. lengths: whether the model takes another one."""
        one, two, three = (
            other_batch(inputs, size) if size <= self.most else None for size in (1, 2, 3)
        )
        yield [*self._cuts({"batch 1": [one]} if lengths and inputs.batch != 1 else {})]
        tries = {"batch 2": [two]} if inputs.batch in (1, 3) else {}
        if lengths and three is not None:
            tries["batch 3 and another length"] = [*islice(other_lengths(three), 2)]
        yield [*self._cuts(tries)]

    def _cuts(
        self, tries: Mapping[str, Sequence[CallInputs | None]]
    ) -> Iterator[tuple[str, PassCut]]:
        """For each note the cut of the first input that the model takes."""
        for note, variants in tries.items():
            for variant in variants:
                if variant is None:
                    continue
                try:
                    one = recorded(self.law.target, variant, self.first.needed)
                    yield note, self.law.measured(one).light(variant)
                    break
                except (HeadNotFound, RuntimeError, ValueError, TypeError, IndexError):
                    continue


def _batch(one: PassCut) -> int:
    """The size of the first axis of what was cut."""
    shape = one.values[0].shape
    return shape[0] if shape else 1


def _program_of(cuts: Sequence[PassCut]) -> Program:
    return cuts[0].program(cuts[1:])


def _sample_by_sample(cuts: Sequence[PassCut]) -> Program:
    """The program for one sample, which runs for each."""
    single = [one for one in cuts if _batch(one) == 1]
    for one in cuts:
        axes = [value.shape[:1] for value in (*one.values, one.logits)]
        if not axes[0] or any(axis != axes[0] for axis in axes):
            raise HeadNotFound("what enters the head has no axis of samples")
    if not single:
        raise HeadNotFound("the model takes no single sample")
    return replace(_program_of(single), by_sample=True)


def _by_batch(cuts: Sequence[PassCut]) -> Program:
    """A program for single samples, and one for larger batches."""
    single = [one for one in cuts if _batch(one) == 1]
    several = [one for one in cuts if _batch(one) != 1]
    if not single or not several:
        raise HeadNotFound("the model takes batches of one size alone")
    return replace(_program_of(several), single=_program_of(single))
