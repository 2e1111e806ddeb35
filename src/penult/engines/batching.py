"""Batches: planned from lengths under a budget, padded, masked. Knows no model, no pooling and no
runtime."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

WASTE = 0.15  # the share of a batch that may be padding
HELD = 5_000_000  # numbers that may always be held back, 20 MB


@dataclass(frozen=True, slots=True)
class _Queued:
    id: int
    length: int


class Planner:
    """Gathers items and gives them back in batches of similar length.

    budget: the longest length × the number of items of a batch stays below it; an item that is
    longer goes alone. most: items in a batch. waiting: items held back at most, so that there is
    something to choose from. `hold` bounds what is held in sum of lengths, too.
    """

    def __init__(self, budget: int, most: int = 64, waiting: int = 128) -> None:
        self.budget, self.most, self.waiting = budget, most, waiting
        self.hold = max(8 * budget, HELD)
        self._held: dict[int, Hashable] = {}  # id → kind, in the order of arrival
        self._kinds: dict[Hashable, list[_Queued]] = {}
        self._length = 0

    def __len__(self) -> int:
        return len(self._held)

    def offer(self, id: int, length: int, kind: Hashable = None) -> None:
        """An item has arrived. Only items of one kind share a batch."""
        self._held[id] = kind
        self._kinds.setdefault(kind, []).append(_Queued(id, length))
        self._length += length

    @property
    def full(self) -> bool:
        """Whether a batch is to be taken before more is offered."""
        return len(self._held) >= self.waiting or self._length >= self.hold

    def take(self) -> list[int]:
        """The ids of the next batch, longest first; empty if nothing waits.

        The item that has waited longest is always in it, so that no item waits for ever and
        results can be given in the order of arrival; around it, the neighbours in length that
        cost the least padding.
        """
        if not self._held:
            return []
        oldest, kind = next(iter(self._held.items()))
        group = sorted(self._kinds[kind], key=lambda one: (-one.length, one.id))
        first = last = next(i for i, one in enumerate(group) if one.id == oldest)
        while (wider := self._wider(group, first, last)) is not None:
            first, last = wider
        batch = group[first : last + 1]
        self._remove(kind, batch)
        return [one.id for one in batch]

    def _wider(self, group: list[_Queued], first: int, last: int) -> tuple[int, int] | None:
        """The window with one neighbour more, whichever costs less padding, if one fits."""
        if last - first + 1 >= self.most:
            return None
        choices = []
        for start, end in ((first - 1, last), (first, last + 1)):
            if start < 0 or end >= len(group):
                continue
            padded = group[start].length * (end - start + 1)
            waste = padded - sum(one.length for one in group[start : end + 1])
            if padded <= self.budget and waste <= WASTE * padded:
                choices.append((waste, start, end))
        return min(choices)[1:] if choices else None

    def _remove(self, kind: Hashable, batch: list[_Queued]) -> None:
        gone = {one.id for one in batch}
        for id in gone:
            del self._held[id]
        left = [one for one in self._kinds[kind] if one.id not in gone]
        if left:
            self._kinds[kind] = left
        else:
            del self._kinds[kind]
        self._length -= sum(one.length for one in batch)

    def shrink(self, length: int) -> None:
        """A batch of this padded length did not fit into memory: none gets longer than half."""
        self.budget = max(1, min(self.budget, length // 2))


def waste(lengths: list[int], batches: list[list[int]]) -> float:
    """The share of all padded positions that is padding. batches: indices into lengths."""
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded if padded else 0.0


# An array of numpy, or a tensor of torch, as a preparation gives it.
Value = Any
Tensors = Mapping[str, Value]

MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that share a forward pass.

    tensors: the model's arguments, each with a batch axis in front. lengths: each item's valid
    positions, where items were padded. left: the padding is in front. norms: statistics over time
    are to be taken over each item's own positions. filled: the share that each item fills of an
    input of fixed length.
    """

    tensors: Tensors
    lengths: Sequence[int] | None = None
    left: bool = False
    norms: bool = False
    filled: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def own(self) -> npt.NDArray[np.bool_] | None:
        """(B, L) of the positions that are an item's own; None if nothing was padded."""
        if self.lengths is None:
            return None
        lengths = np.array(self.lengths)[:, None]
        places = np.arange(max(self.lengths))
        own: npt.NDArray[np.bool_] = places < lengths
        return places >= max(self.lengths) - lengths if self.left else own


def collate(
    items: Sequence[Tensors], axes: Mapping[str, int], fill: Mapping[str, float], left: bool = False
) -> dict[str, Value]:
    """One batch of items that each have a batch axis of 1.

    axes: for each input that grows with the item, the axis that does: it is padded at its end (or
    at its beginning) with `fill` (0 where nothing is named). Inputs of one shape are not padded.
    """
    return {
        name: _joined([item[name] for item in items], axes.get(name), fill.get(name, 0), left)
        for name in items[0]
    }


def _joined(values: Sequence[Value], axis: int | None, fill: float, left: bool) -> Value:
    longest = 0 if axis is None else max(value.shape[axis] for value in values)
    if not all(isinstance(value, np.ndarray) for value in values):
        return _joined_in_torch(values, axis, longest, fill, left)
    if axis is not None:
        values = [
            np.pad(value, _sides(value, axis, longest, left), constant_values=fill)
            for value in values
        ]
    return np.concatenate(values)


def _joined_in_torch(
    values: Sequence[Value], axis: int | None, longest: int, fill: float, left: bool
) -> Value:
    """The same of tensors, which may be of types that numpy lacks, as bfloat16."""
    import torch

    if axis is not None:
        sides = [_sides(value, axis, longest, left)[::-1] for value in values]  # last axis first
        values = [
            torch.nn.functional.pad(value, [*chain(*side)], value=fill)
            for value, side in zip(values, sides, strict=True)
        ]
    return torch.cat([*values])


def _sides(value: Value, axis: int, longest: int, left: bool) -> list[tuple[int, int]]:
    """(before, after) of each axis, so that one of them gets as long as the longest."""
    sides = [(0, 0)] * value.ndim
    more = longest - value.shape[axis]
    sides[axis] = (more, 0) if left else (0, more)
    return sides


def with_mask(tensors: Tensors, axis: int) -> dict[str, Value]:
    """An item's inputs and a mask of ones over `axis` of the first of them, if it has no mask."""
    if any(name.endswith(MASK) for name in tensors):
        return dict(tensors)
    first = next(iter(tensors.values()))
    return {**tensors, MASK: mask_of_ones(first, (1, first.shape[axis]))}


def mask_of_ones(first: Value, shape: tuple[int, ...]) -> Value:
    """A mask of ones, int64, of the library that an input is of."""
    ones = np.ones(shape, np.int64)
    return ones if isinstance(first, np.ndarray) else first.new_tensor(ones).long()


PADDED, MASKED_NORMS, EQUAL, ALONE = "padded", "masked norms", "equal lengths", "alone"

WORDS = {
    PADDED: "padded together, with the model's own mask",
    MASKED_NORMS: "padded together, with masks and group norms over each item's own frames",
    EQUAL: "together where their inputs have the same shape",
    ALONE: "one at a time",
}


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How items may share a forward pass.

    name: `padded`, `masked norms`, `equal lengths` or `alone`. axes: for each input that grows
    with the item, the axis that does. fill: what these are padded with. left: padded in front.
    shortest: the least length for which padding was proved. errors: for each way that was tried,
    the largest relative difference between alone and together (inf: it does not run).
    """

    name: str = ALONE
    axes: Mapping[str, int] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    left: bool = False
    shortest: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def pads(self) -> bool:
        """Whether items of different length may share a batch."""
        return self.name in (PADDED, MASKED_NORMS)

    @property
    def words(self) -> str:
        """How items are batched, in words."""
        return WORDS[self.name]

    def length(self, tensors: Tensors) -> int:
        """An item's length along its growing axis; 1 where all items are of one size."""
        return next((tensors[name].shape[axis] for name, axis in self.axes.items()), 1)

    def kind(self, tensors: Tensors) -> tuple[Any, ...]:
        """Items of equal kinds may share a batch."""
        free = self.pads and self.length(tensors) >= self.shortest
        axes = self.axes if free else {}
        shapes = []
        for name, value in tensors.items():
            fixed = [size for axis, size in enumerate(value.shape) if axis != axes.get(name)]
            shapes.append((name, value.dtype, tuple(fixed)))
        return (free, *shapes)

    def batch(self, items: Sequence[Tensors]) -> Batch:
        """One batch of items of one kind."""
        lengths = [self.length(item) for item in items]
        if len(set(lengths)) < 2:
            return Batch(collate(items, {}, {}))
        axis = next(iter(self.axes.values()))
        axes = {**dict.fromkeys([MASK], axis), **self.axes}
        padded = collate([with_mask(item, axis) for item in items], axes, self.fill, self.left)
        return Batch(padded, lengths, self.left, self.name == MASKED_NORMS)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        document = asdict(self)
        document["errors"] = {n: e if math.isfinite(e) else None for n, e in self.errors.items()}
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> BatchPolicy:
        """The policy that `to_dict` wrote."""
        errors = {n: math.inf if e is None else float(e) for n, e in document["errors"].items()}
        return cls(**{**document, "errors": errors})


def fill_of(module: nn.Module) -> dict[str, float]:
    """What each input is padded with, where that is not 0: token ids with the model's own id."""
    config = getattr(module, "config", None)
    for holder in (config, getattr(config, "text_config", None)):
        id = getattr(holder, "pad_token_id", None)
        if isinstance(id, int) and id >= 0:
            return {"input_ids": id}
    return {}
