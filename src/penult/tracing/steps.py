"""Steps of a program: operations, with slots and weights in place of tensors.

Linear layers get one form, however torch ran them: over (B, T, D) it folds positions into the
batch, or multiplies and adds, as strides and sizes have it, and a single frame may take another way
than several. All of these become one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_flatten

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that the program makes, or is given, by number."""

    number: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer, looked up in the module at every run. turned: a matrix, transposed."""

    name: str
    shape: Shape
    turned: bool = False

    def at(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor, as it is now."""
        return weights[self.name].t() if self.turned else weights[self.name]


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One operation: `func(*args, **kwargs)`, flattened, with slots, weights and sizes in it."""

    func: Any
    name: str
    leaves: tuple[Any, ...]
    spec: Any
    makes: tuple[int, ...]

    @property
    def reads(self) -> list[int]:
        """The slots that it reads."""
        return [leaf.number for leaf in self.leaves if isinstance(leaf, Slot)]

    @property
    def writes(self) -> bool:
        """Whether it writes to one of its operands."""
        schema = getattr(self.func, "_schema", None)
        return schema is not None and bool(schema.is_mutable)


def layer(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over the last axis of z. weight: (D, K)."""
    return functional.linear(z, weight.t(), bias)


@dataclass(frozen=True, slots=True)
class _Found:
    """A layer: the steps that it is made of, what enters, its weight and bias, what leaves."""

    steps: tuple[int, ...]
    operands: tuple[Any, ...]
    leaves: int


class LayerSteps:
    """Steps, and the shapes of what their slots hold; see `joined`."""

    def __init__(
        self, steps: Sequence[ReplayStep], shapes: Mapping[int, Shape], result: int
    ) -> None:
        self._steps, self._shapes, self._result = steps, shapes, result
        self._makers: dict[int, int] = {}
        self._readers: dict[int, list[int]] = {}
        for number, step in enumerate(steps):
            for slot in step.makes:
                # What is made twice was written to.
                self._makers[slot] = -1 if slot in self._makers else number
            for leaf in step.leaves:
                if isinstance(leaf, Slot):
                    self._readers.setdefault(leaf.number, []).append(number)

    def joined(self) -> list[ReplayStep]:
        """The steps, each linear layer in one."""
        found = [one for one in map(self._layer, range(len(self._steps))) if one is not None]
        ends = {one.steps[-1]: one for one in found}
        inside = {number for one in found for number in one.steps}
        steps = []
        for number, step in enumerate(self._steps):
            if number in ends:
                leaves, spec = tree_flatten((ends[number].operands, {}))
                makes = (ends[number].leaves,)
                steps.append(ReplayStep(layer, "layer", tuple(leaves), spec, makes))
            elif number not in inside:
                steps.append(step)
        return steps

    def _layer(self, number: int) -> _Found | None:
        step = self._steps[number]
        if step.name == "aten.mm" and len(step.leaves) == 2:
            (entered, weight), bias = step.leaves, None
        elif step.name == "aten.addmm" and len(step.leaves) == 3:
            bias, entered, weight = step.leaves
        else:
            return None
        width = self._shapes[step.makes[0]][-1:]
        if not isinstance(entered, Slot) or (bias is not None and self._shape(bias) != width):
            return None
        steps, leaves = [number], step.makes[0]
        folded, unfolded = self._folded(entered, number), self._next(leaves, "reshape")
        if folded is not None and unfolded is not None:
            source = self._steps[folded].leaves[0]
            made = self._steps[unfolded].makes[0]
            if self._shapes[made] == (*self._shapes[source.number][:-1], *width):
                steps, leaves, entered = [folded, number, unfolded], made, source
        added = self._next(leaves, "aten.add")
        if bias is None and added is not None:
            first, *others = self._steps[added].leaves
            if len(others) == 1 and first == Slot(leaves) and self._shape(others[0]) == width:
                steps, leaves, bias = [*steps, added], self._steps[added].makes[0], others[0]
        between = self._steps[steps[0] : steps[-1] + 1]
        if any(one.writes for one in between) or self._makers.get(entered.number) == -1:
            return None
        operands = (entered, weight) if bias is None else (entered, weight, bias)
        return _Found(tuple(steps), operands, leaves)

    def _folded(self, entered: Slot, by: int) -> int | None:
        """The step that folded positions into the batch for a product."""
        number = self._makers.get(entered.number, -1)
        if number < 0 or self._steps[number].name != "reshape":
            return None
        source = self._steps[number].leaves[0]
        if self._readers[entered.number] != [by] or not isinstance(source, Slot):
            return None
        same = self._shapes[source.number][-1:] == self._shapes[entered.number][-1:]
        return number if same else None

    def _next(self, slot: int, name: str) -> int | None:
        """The step that alone reads a slot, if it is of that name."""
        readers = self._readers.get(slot, [])
        if len(readers) != 1 or slot == self._result or self._makers.get(slot, -1) < 0:
            return None
        return readers[0] if self._steps[readers[0]].name == name else None

    def _shape(self, leaf: Any) -> Shape | None:
        if isinstance(leaf, Slot):
            return self._shapes.get(leaf.number)
        shape = getattr(leaf, "shape", None)
        return None if shape is None else tuple(shape)


def renumbered(
    steps: Sequence[ReplayStep], entered: int, result: int
) -> tuple[list[ReplayStep], int]:
    """The steps that lead to the result, and their result, with slots in the order in which they
    are made; the first `entered` are given."""
    used = {result}
    needed = []
    for step in reversed(steps):
        if step.writes or used & {*step.makes}:
            used |= {leaf.number for leaf in step.leaves if isinstance(leaf, Slot)}
            needed.append(step)
    steps = needed[::-1]
    numbers = {number: number for number in range(entered)}
    found = []
    for step in steps:
        leaves = tuple(
            Slot(numbers[leaf.number]) if isinstance(leaf, Slot) else leaf for leaf in step.leaves
        )
        for slot in step.makes:
            numbers.setdefault(slot, len(numbers))
        makes = tuple(numbers[slot] for slot in step.makes)
        found.append(ReplayStep(step.func, step.name, leaves, step.spec, makes))
    return found, numbers[result]
