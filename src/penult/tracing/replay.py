"""Run what follows the head again, as a pure function of the prelogits.

A recorded tail is a list of torch operations with the sizes of one input in it. Several recordings
of inputs of different shape, laid over each other, show which numbers are sizes; each is written
as a product of the prelogits' own sizes. A number that no such product explains means that the
tail needs more of the input than the prelogits, and is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from penult.errors import HeadNotFound, UsageError
from penult.tracing.boundary import CutPoint, subgraph
from penult.tracing.living import TracedTensor
from penult.tracing.steps import LayerSteps, ReplayStep, Shape, Slot, Weight, renumbered
from penult.tracing.trace import SHAPE_ONLY, Op, TensorRead, Trace

_AXES = {f"aten.{name}" for name in ("permute", "transpose", "unsqueeze", "squeeze", "sum", "mean")}
_RESHAPES = {"aten.view", "aten._unsafe_view", "aten.reshape"}


@dataclass(frozen=True, slots=True)
class Size:
    """A number that is factor × the product of powers of the prelogits' sizes + offset."""

    factor: Fraction
    powers: tuple[tuple[int, int], ...]  # (which of the sizes, power)
    offset: int
    whole: bool

    def at(self, sizes: Sequence[int]) -> int | float:
        """The number, for prelogits of these sizes."""
        value = self.factor * prod(Fraction(sizes[i]) ** p for i, p in self.powers) + self.offset
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A tensor of one number, which is a size. like: one that the trace showed."""

    size: Size
    like: Tensor

    def at(self, sizes: Sequence[int]) -> Tensor:
        """The tensor, for prelogits of these sizes."""
        return torch.full_like(self.like, self.size.at(sizes))


@dataclass(frozen=True, slots=True)
class Listing:
    """A tail as one trace shows it. sizes: of the tensors that enter, one after the other."""

    steps: tuple[ReplayStep, ...]
    sizes: tuple[int, ...]
    result: int

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer over (B, D) and nothing else, which torch runs in the same
        way for every B."""
        return all(step.name == "layer" for step in self.steps)


@dataclass(frozen=True, slots=True)
class Program:
    """A tail for prelogits of any shape. ranks: of the tensors that enter."""

    steps: tuple[ReplayStep, ...]
    ranks: tuple[int, ...]
    result: int
    single: Program | None = None  # what runs instead for a batch of one
    by_sample: bool = False  # the steps are those of one sample, and run for each

    def run(
        self, values: Sequence[Tensor], weights: Mapping[str, Tensor], shared: bool = False
    ) -> Tensor:
        """The logits. values: the prelogits, which are left as they are. shared: the logits may lie
        in their memory."""
        if [value.ndim for value in values] != list(self.ranks):
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise UsageError(f"prelogits of {shapes}; these have {self.ranks} axes in this model")
        sizes = [size for value in values for size in value.shape]
        if self.single is not None and values[0].shape[0] == 1:
            return self.single.run(values, weights)
        if self.by_sample and values[0].shape[0] != 1:
            single = replace(self, by_sample=False)
            samples = zip(*(torch.split(value, 1) for value in values), strict=True)
            return torch.cat([single.run(sample, weights) for sample in samples])
        shared = shared and not any(step.writes for step in self.steps)
        slots: dict[int, Any] = dict(enumerate(values))
        if not shared:
            slots = {number: value.clone() for number, value in slots.items()}
        last = {slot: at for at, step in enumerate(self.steps) for slot in step.reads}
        for at, step in enumerate(self.steps):
            args, kwargs = tree_unflatten(
                [_filled_in(leaf, slots, weights, sizes, step.writes) for leaf in step.leaves],
                step.spec,
            )
            made = tree_flatten(step.func(*args, **kwargs))[0]
            tensors = [leaf for leaf in made if isinstance(leaf, Tensor)]
            slots.update(zip(step.makes, tensors, strict=True))
            del args, kwargs, made, tensors
            for slot in {*step.reads, *step.makes} - {self.result}:
                if last.get(slot, at) <= at:  # large ones make room for the next
                    slots.pop(slot, None)
        result: Tensor = slots[self.result]
        return result

    def repeats(self, other: Program, sizes: Sequence[int]) -> bool:
        """Whether it runs the very operations that another program runs, for prelogits of these
        sizes."""
        if self is other:
            return True
        if self.ranks != other.ranks or not sizes:
            return False
        one, two = (p.single if p.single and sizes[0] == 1 else p for p in (self, other))
        if sizes[0] != 1 and (one.by_sample or two.by_sample):
            return False
        steps = zip(one.steps, two.steps, strict=False)
        return (len(one.steps), one.result) == (len(two.steps), two.result) and all(
            (a.func, a.name, a.spec, a.makes) == (b.func, b.name, b.spec, b.makes)
            and all(_same_at(x, y, sizes, a.name) for x, y in zip(a.leaves, b.leaves, strict=True))
            for a, b in steps
        )


def _same_at(one: Any, other: Any, sizes: Sequence[int], name: str) -> bool:
    """Whether two arguments of an operation are the same for prelogits of these sizes."""
    one, other = (x.at(sizes) if isinstance(x, Size | Scalar) else x for x in (one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _same(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.ScriptObject):
        return one is other
    # One size of a shape may be left open: all others give it.
    return bool(one == other) or (name == "reshape" and type(one) is int and -1 in (one, other))


def _filled_in(
    leaf: Any,
    slots: Mapping[int, Any],
    weights: Mapping[str, Tensor],
    sizes: Sequence[int],
    writes: bool,
) -> Any:
    if isinstance(leaf, Slot):
        return slots[leaf.number]
    if isinstance(leaf, Weight):
        leaf = leaf.at(weights)
    if isinstance(leaf, Tensor):  # the model's own: what would write to it gets a copy
        return leaf.clone() if writes else leaf
    return leaf.at(sizes) if isinstance(leaf, Size | Scalar) else leaf


Value = Tensor | TracedTensor  # that the listing makes, or the trace had


class Lister:
    """Writes down one trace's tail, step by step. weights: id of a tensor → its name."""

    def __init__(self, trace: Trace, weights: Mapping[int, str]) -> None:
        self._trace = trace
        self._weights = weights
        self._slots: dict[Value, int] = {}
        self._turned: dict[Value, Weight] = {}  # a transposed weight
        self._count = 0
        self._steps: list[ReplayStep] = []
        self._done: set[int] = set()
        self._shapes: dict[int, Shape] = {}  # of what a slot holds
        self._entered = 0  # slots that are given

    def enter(self, tensor: Value) -> int:
        """A new slot, which holds `tensor` from now on."""
        self._slots[tensor] = self._count
        self._shapes[self._count] = tuple(tensor.shape)
        self._entered += not self._steps
        self._count += 1
        return self._count - 1

    def add(self, func: Callable[..., Any], name: str, args: Any, made: Sequence[Value]) -> None:
        """One step. args: (args, kwargs) as they were, tensors included."""
        leaves, spec = tree_flatten(args)
        written = tuple(self._reference(leaf) for leaf in leaves)
        makes = tuple(self._slots[t] if t in self._slots else self.enter(t) for t in made)
        self._steps.append(ReplayStep(func, name, written, spec, makes))

    def add_up_to(self, root: TensorRead, places: Sequence[CutPoint]) -> None:
        """Every operation between `places` and `root` that is not written down yet."""
        ops = subgraph(self._trace, root, places).ops
        overwrites = any(op.func._schema.is_mutable for op in ops)
        for op in ops:
            if op.index in self._done:
                continue
            self._done.add(op.index)
            if op.name == "aten.clone" and not overwrites and op.reads[0].tensor in self._slots:
                # Whether torch copies before it folds depends on strides, not on values.
                self._slots[op.writes[0]] = self._slots[op.reads[0].tensor]
            else:
                self._add_op(op)

    def _add_op(self, op: Op) -> None:
        made = op.writes
        if op.name in _RESHAPES:
            self.add(torch.reshape, "reshape", ((op.args[0], [*op.args[1]]), {}), made)
        elif op.name == "aten.t" and isinstance(self._reference(op.args[0]), Weight):
            weight = self._reference(op.args[0])
            self._turned[made[0]] = replace(
                weight, shape=weight.shape[::-1], turned=not weight.turned
            )
        elif op.name in SHAPE_ONLY:
            kwargs = {"dtype": made[0].dtype, "device": made[0].device}
            self.add(torch.full, op.name, (([*made[0].shape], _filling(op)), kwargs), made)
        else:
            args: tuple[Any, ...] = op.args
            if op.name == "aten.index_put_":  # leading axes of one were stripped off, or not
                args = (*args[:2], self._unstripped(op), *args[3:])
            self.add(op.func, op.name, (args, op.kwargs), made)

    def _unstripped(self, op: Op) -> TracedTensor:
        """What an operation writes, before it was given fewer axes."""
        value: TracedTensor = op.args[2]
        maker = self._trace.makers.get(value)
        if maker is None or maker.name not in _RESHAPES:
            return value
        source = maker.reads[0].tensor
        ones = (1,) * (source.ndim - value.ndim)
        return source if tuple(source.shape) == (*ones, *value.shape) else value

    def _reference(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | TracedTensor):
            return leaf
        if leaf in self._slots:
            return Slot(self._slots[leaf])
        if leaf in self._turned:
            return self._turned[leaf]
        tensor = leaf.itself if isinstance(leaf, TracedTensor) else leaf
        if tensor is None:
            raise HeadNotFound("what follows the head reads a tensor that is made around it")
        name = self._weights.get(id(tensor))
        return Weight(name, tuple(tensor.shape)) if name is not None else tensor

    def finish(self, sizes: Sequence[int], result: Value) -> Listing:
        """The listing whose result is the tensor `result`."""
        last = self._slots[result]
        steps = LayerSteps(self._steps, self._shapes, last).joined()
        steps, last = renumbered(steps, self._entered, last)
        return Listing(tuple(steps), tuple(sizes), last)


def _filling(op: Op) -> float:
    """The number that an operation fills a tensor with; 0 where it fills it with none."""
    name = op.name.removeprefix("aten.")
    if "full" not in name:
        return float("ones" in name)
    given = op.args[2:] if name == "new_full" else op.args[1:]
    return float(given[0] if given else op.kwargs["fill_value"])


def generalise(listings: Sequence[Listing], ranks: Sequence[int]) -> Program:
    """One program for every shape, from the same tail listed at several shapes; a single listing
    is a program as it is.

    Raises:
        HeadNotFound: the tails differ in more than sizes of the prelogits.
    """
    first = listings[0]
    if all(listing is first for listing in listings):
        return Program(first.steps, tuple(ranks), first.result)
    for other in listings[1:]:
        one, two = [s.name for s in first.steps], [s.name for s in other.steps]
        if one != two:
            parted = next((b for a, b in zip(one, two, strict=False) if a != b), two[-1])
            raise HeadNotFound(
                f"what follows the head is {len(one)} operations for one input and {len(two)} "
                f"others for another, {parted} for example: a loop over samples or positions, or "
                "something that depends on more than the prelogits"
            )
    steps = []
    for versions in zip(*(listing.steps for listing in listings), strict=True):
        if any(v.spec != versions[0].spec or v.makes != versions[0].makes for v in versions):
            raise HeadNotFound(f"{versions[0].name} after the head takes other operands each time")
        columns = zip(*(version.leaves for version in versions), strict=True)
        leaves = _leaves(list(columns), [x.sizes for x in listings], versions[0].name)
        steps.append(
            ReplayStep(
                versions[0].func, versions[0].name, leaves, versions[0].spec, versions[0].makes
            )
        )
    return Program(tuple(steps), tuple(ranks), first.result)


def _leaves(columns: Sequence[Any], sizes: Sequence[Any], name: str) -> tuple[Any, ...]:
    """What stands for all the versions of an operation's arguments. Of a shape, one size may be
    left open: the others give it."""
    found: list[Any] = []
    open_size = name == "reshape"
    for column in columns:
        try:
            found.append(_common(column, sizes, name))
        except HeadNotFound:
            if not open_size or not all(type(size) is int for size in column):
                raise
            found.append(-1)
            open_size = False
    return tuple(found)


def _common(column: Sequence[Any], sizes: Sequence[Sequence[int]], name: str) -> Any:
    """What stands for all the versions of one argument."""
    first = column[0]
    if isinstance(first, torch.ScriptObject):  # packed weights: no two can be compared
        return first
    if isinstance(first, Tensor):
        if all(isinstance(o, Tensor) and _same(first, o) for o in column):
            return first
        if all(isinstance(o, Tensor) and o.numel() == 1 for o in column):
            size = _explain([o.item() for o in column], sizes)
            if size is not None:
                return Scalar(size, first)
        raise HeadNotFound(
            f"{name} after the head takes a constant that changes with the input: a shape, or "
            "something computed outside of torch"
        )
    if all(type(o) is type(first) and o == first for o in column):
        return first
    numbers = name not in _AXES and all(isinstance(o, int | float) for o in column)
    if numbers and not any(isinstance(o, bool) for o in column):
        size = _explain(column, sizes)
        if size is not None:
            return size
    raise HeadNotFound(
        f"{name} after the head takes a value that changes with the input and is no size of the "
        "prelogits"
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    )


def _explain(numbers: Sequence[int | float], sizes: Sequence[Sequence[int]]) -> Size | None:
    """The simplest product of sizes that gives every one of the numbers."""
    whole = all(isinstance(number, int) for number in numbers)
    for powers in _products(len(sizes[0])):
        products = [prod(Fraction(size[i]) ** p for i, p in powers) for size in sizes]
        if any(p == 0 for p in products):
            continue
        ratios = [Fraction(n).limit_denominator(10**9) / p
                  for n, p in zip(numbers, products, strict=True)]  # fmt: skip
        if all(abs(float(r / (ratios[0] or 1)) - 1) < 1e-12 for r in ratios):
            return Size(ratios[0], powers, 0, whole)
        offsets = {Fraction(n) - p for n, p in zip(numbers, products, strict=True)}
        if whole and len(offsets) == 1:
            return Size(Fraction(1), powers, int(offsets.pop()), whole)
    return None


def _products(count: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Single sizes, then products and quotients of two, then products of three."""
    yield from (((i, 1),) for i in range(count))
    yield from (((i, -1),) for i in range(count))
    yield from (((i, 1), (j, 1)) for i, j in combinations(range(count), 2))
    yield from (((i, -1), (j, -1)) for i, j in combinations(range(count), 2))
    yield from (((i, 1), (j, 1), (k, 1)) for i, j, k in combinations(range(count), 3))
