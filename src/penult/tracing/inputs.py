"""Other inputs made from an example: other values, another batch size, length or mask.

Nothing here knows a model. Whether it accepts such an input is found by trying; the certificate's
checks are only as good as these inputs are different, and that difference is measured (power).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True, slots=True)
class CallInputs:
    """What a model is called with: positional arguments and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, x: Any) -> CallInputs:
        """From a mapping of keyword arguments, a tuple of arguments, or one tensor."""
        if isinstance(x, Mapping):
            return cls((), {str(key): value for key, value in x.items()})
        return cls(tuple(x), {}) if isinstance(x, tuple | list) else cls((x,), {})

    def tensors(self) -> dict[str | int, Tensor]:
        """The tensors among them, by name or position; nested ones as `name.0`, `name.1` …"""
        found: dict[str | int, Tensor] = {}
        named: list[tuple[str | int, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for key, value in named:
            for number, leaf in enumerate(tree_leaves(value)):
                if isinstance(leaf, Tensor):
                    found[key if leaf is value else f"{key}.{number}"] = leaf
        return found

    def with_tensors(self, tensors: Iterable[Tensor]) -> CallInputs:
        """The same with other tensors, in the order of `tensors()`."""
        leaves, spec = tree_flatten((self.args, dict(self.kwargs)))
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return CallInputs(*tree_unflatten(leaves, spec))

    def copy(self) -> CallInputs:
        """A copy that a model may overwrite."""
        return self.with_tensors([value.clone() for value in self.tensors().values()])

    def outline(self) -> CallInputs:
        """The same shapes and types without numbers, on the meta device."""
        return self.with_tensors([value.to("meta") for value in self.tensors().values()])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    @property
    def batch(self) -> int | None:
        """The size of the first tensor's leading axis, which is the batch if any is."""
        first = next(iter(self.tensors().values()))
        return first.shape[0] if first.ndim else None


@dataclass(frozen=True, slots=True)
class Variant:
    """Another input, and in what it is other. whole: a batch of the example's size, of this length;
    where that is smaller than the example."""

    inputs: CallInputs
    note: str
    whole: CallInputs | None = None


def is_mask(key: str | int, value: Tensor) -> bool:
    """Whether an input says which positions are valid."""
    named = not isinstance(key, str) or "mask" in key
    return named and value.ndim == 2 and bool(((value == 0) | (value == 1)).all())


def other_values(
    inputs: CallInputs, special: Sequence[int] = (), seed: int = 0, gain: float = 1.0
) -> CallInputs:
    """The same shapes and masks with other content.

    Floats: noise of the same mean, spread and range, every sample with a gain of its own. Without
    floats, the first integer tensor's ids are drawn anew among those that are there; ids that may
    mean something to the model (special, padded, first or last) stay in place. gain: 1, or larger
    for the bolder second try, which draws anew whatever is not padded.
    """
    random = torch.Generator().manual_seed(seed)
    tensors = inputs.tensors()
    mask = next((value for key, value in tensors.items() if is_mask(key, value)), None)
    floats = any(v.is_floating_point() and not is_mask(k, v) for k, v in tensors.items())
    ids = None if floats else next((k for k, v in tensors.items() if _is_ids(k, v)), None)
    changed = []
    for key, value in tensors.items():
        if value.is_floating_point() and not is_mask(key, value):
            changed.append(_noise(value, random, gain, mask))
        elif key == ids:
            changed.append(_ids(value, random, special, mask, gain > 1))
        else:
            changed.append(value.clone())
    return inputs.with_tensors(changed)


def _is_ids(key: str | int, value: Tensor) -> bool:
    whole = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
    return whole and value.ndim >= 1 and not is_mask(key, value)


def _noise(value: Tensor, random: torch.Generator, gain: float, mask: Tensor | None) -> Tensor:
    data = value.detach().float().cpu()
    finite = data[torch.isfinite(data)]
    mean = finite.mean() if finite.numel() else torch.tensor(0.0)
    spread = finite.std(correction=0) if finite.numel() > 1 else torch.tensor(0.0)
    spread = spread if spread > 0 else mean.abs().clamp(min=1.0)
    rows = (max(data.shape[0], 1) if data.ndim else 1,) + (1,) * max(data.ndim - 1, 0)
    gains = gain * (0.5 + torch.rand(rows, generator=random))
    shift = spread * torch.randn(rows, generator=random) * gain
    noise = torch.randn(data.shape or (1,), generator=random)
    noise = noise.mul_(spread * gains).add_(mean + shift).reshape(data.shape)
    if gain == 1.0 and finite.numel() > 1 and finite.max() > finite.min():
        noise.clamp_(finite.min(), finite.max())
    if mask is not None and mask.shape == value.shape:
        noise = torch.where(mask.cpu() == 0, data, noise)
    return noise.to(value.dtype).to(value.device)


def _ids(
    value: Tensor, random: torch.Generator, special: Sequence[int], mask: Tensor | None, bold: bool
) -> Tensor:
    data = value.cpu()
    fixed = torch.isin(data, torch.tensor(list(special) or [-1], dtype=data.dtype))
    if data.ndim > 1:
        ends = torch.unique(torch.cat([data[:, :1].flatten(), data[:, -1:].flatten()]))
        fixed |= torch.isin(data, ends)
    padded = torch.zeros_like(fixed)
    if mask is not None and mask.shape == value.shape:
        padded = mask.cpu() == 0
    free = torch.unique(data[~(fixed | padded)])
    if free.numel() < 2:
        return value.clone()
    fixed = padded if bold else fixed | padded
    drawn = free[torch.randint(free.numel(), data.shape, generator=random)]
    return torch.where(fixed, data, drawn).to(value.device)


def other_batch(inputs: CallInputs, size: int) -> CallInputs | None:
    """The same samples, repeated or cut to another batch size; None where there is no batch.

    What has another leading size (a graph that all samples share) stays as it is.
    """
    batch = inputs.batch
    if not batch:
        return None
    rows = torch.arange(size) % batch
    return inputs.with_tensors(
        value[rows.to(value.device)] if value.ndim and value.shape[0] == batch else value.clone()
        for value in inputs.tensors().values()
    )


def other_mask(inputs: CallInputs) -> CallInputs | None:
    """The last quarter of what is valid in the first sample becomes padding."""
    tensors = inputs.copy().tensors()
    masks = [value for key, value in tensors.items() if is_mask(key, value)]
    for value in masks:
        valid = value[0].nonzero().flatten()
        if len(valid) >= 4:
            value[0, valid[-(len(valid) // 4) :]] = 0
    return inputs.with_tensors(tensors.values()) if masks else None


def other_lengths(inputs: CallInputs) -> Iterator[CallInputs]:
    """Inputs of another length, or images of another size, most likely first.

    Sequences lose a quarter of their positions, not at the ends: those may mean something. Odd
    sizes come first: a model that pads to a multiple and trims its scores shows only there. No two
    axes that were equal stay equal: a number must come from one of them alone.
    """
    largest = largest_of(inputs)
    if largest is None:
        return
    rank = largest.ndim
    images = rank in {4, 5} and largest.is_floating_point()
    for rows, columns in ((37, 75), (32, 64), (32, 32)) if images else ():
        larger = _resized(inputs, rank, rows, columns)
        if rank == 5:
            yield from _shortened(larger)
        yield larger
    if rank != 4 or not images:
        yield from _shortened(inputs)


# Batch sizes, odd ones first; even ones for models that fold two views of an item into the batch.
_ODD, _EVEN = (5, 17, 7, 11), (4, 16, 8, 6)
_LARGE = 2**23  # numbers in a batch that is not small


def held_out(
    inputs: CallInputs, batches: bool, other: CallInputs | None, most: int
) -> Iterator[Iterator[Variant]]:
    """Batch sizes and lengths that nothing was fitted to: for each check, what to try in order.

    batches: whether the model takes odd batches. other: an input of another length that it takes,
    if it takes any. most: the largest batch.
    """
    numbers = max((value.numel() for value in inputs.tensors().values()), default=0)
    numbers //= max(inputs.batch or 1, 1)
    sizes = [
        size
        for size in (_ODD if batches else _EVEN)
        if size * numbers <= _LARGE and size != inputs.batch
    ]
    sizes = [size for size in (*sizes, 2, 4) if size <= most]
    for number, size in enumerate((sizes if len(sizes) > 1 else sizes * 2)[:4]):
        batch = _drawn_batch(inputs, size, number)
        if batch is None:
            yield iter(())
            continue
        own = Variant(batch, f"batch {size}")
        single = None if batches or other is None else _drawn_batch(inputs, 1, number)
        if single is None or other is None:
            yield chain(_at_lengths(batch, other, number), [own])
        else:  # most likely it takes single items alone
            yield chain([own], _at_lengths(single, other, number))


def _drawn_batch(inputs: CallInputs, size: int, number: int) -> CallInputs | None:
    """A batch of so many, of other values for each number."""
    batch = other_batch(inputs, size)
    if batch is None or not any(v.is_floating_point() for v in inputs.tensors().values()):
        return batch
    return other_values(batch, seed=10 + number)


def _at_lengths(batch: CallInputs, other: CallInputs | None, number: int) -> Iterator[Variant]:
    """A batch at further lengths."""
    note = f"batch {batch.batch} and a further length"
    found = () if other is None else _further_lengths(batch, other, number)
    return (Variant(variant, note) for variant in found)


def _further_lengths(inputs: CallInputs, other: CallInputs, number: int) -> Iterator[CallInputs]:
    """Lengths that differ from those of the inputs and of `other`, and for each number; in the
    axes in which these two differ. Short ones first."""
    mine, theirs = largest_of(inputs), largest_of(other)
    if mine is None or theirs is None:
        return
    changes = {
        axis: theirs.shape[axis] - size
        for axis, size in enumerate(mine.shape)
        if axis and theirs.shape[axis] != size
    }
    rank = mine.ndim
    if {rank - 2, rank - 1} == {*changes} and rank > 3:
        rows, columns = changes.values()
        steps = (8, 17) if rows % 2 else (min(abs(rows), 32), min(abs(columns), 64))
        for times in (-1 - number, 2 + number):
            height, width = (
                size + times * step for size, step in zip(mine.shape[-2:], steps, strict=True)
            )
            if min(height, width) >= 16:
                yield _resized(inputs, rank, times * steps[0], times * steps[1])
        return
    fractions = ((7, 8), (5, 8), (15, 16), (11, 16))  # one frame alone is a case of its own
    for over, under in (fractions[number % 4], fractions[(number + 2) % 4]):
        for axis in [*changes][:1]:
            length = mine.shape[axis]
            fewer = length * over // under
            if 2 <= fewer < length and fewer != theirs.shape[axis]:
                yield _cut_to(inputs, axis, length, fewer)


def largest_of(inputs: CallInputs) -> Tensor | None:
    """The tensor with most axes; of several, that with most numbers."""
    tensors = inputs.tensors().values()
    rank = max((value.ndim for value in tensors), default=0)
    return max((v for v in tensors if v.ndim == rank), key=Tensor.numel, default=None)


def _shortened(inputs: CallInputs) -> Iterator[CallInputs]:
    """A quarter of the positions fewer, in every tensor that is as long as the largest."""
    largest = largest_of(inputs)
    sizes = () if largest is None else largest.shape[1:3]
    for length, axis in sorted(zip(sizes, (1, 2), strict=False), key=itemgetter(0), reverse=True):
        fewer = length - length // 4
        odd = fewer - 1 + fewer % 2
        if length >= 8 and odd < fewer:
            yield _cut_to(inputs, axis, length, odd)
        if length >= 4:
            yield _cut_to(inputs, axis, length, fewer)


def _cut_to(inputs: CallInputs, axis: int, length: int, fewer: int) -> CallInputs:
    kept = torch.cat([torch.tensor([0]), torch.arange(length - fewer + 1, length)])
    return inputs.with_tensors(
        value.index_select(axis, kept.to(value.device))
        if value.ndim > axis and value.shape[axis] == length
        else value.clone()
        for value in inputs.tensors().values()
    )


def _resized(inputs: CallInputs, rank: int, rows: int, columns: int) -> CallInputs:
    """Images with more rows and columns, by repetition of what is there; or with fewer."""
    changed = []
    for value in inputs.tensors().values():
        if value.ndim == rank:
            height, width = value.shape[-2:]
            value = value[..., torch.arange(height + rows) % height, :]
            value = value[..., torch.arange(width + columns) % width]
        changed.append(value.clone())
    return inputs.with_tensors(changed)


def smaller_lengths(inputs: CallInputs) -> Iterator[CallInputs]:
    """Inputs of about half the length, or images of half the size, odd ones first."""
    largest = largest_of(inputs)
    if largest is None:
        return
    rank = largest.ndim
    if rank in {4, 5} and largest.is_floating_point():
        height, width = largest.shape[-2:]
        even = height // 64 * 32, width // 64 * 32
        for rows, columns in (
            (height // 2 | 1, (width // 2 - 16) | 1), (even[0], even[1] - 32), even
        ):  # fmt: skip
            if 32 <= rows < height and 32 <= columns < width:
                yield _resized(inputs, rank, rows - height, columns - width)
        return
    sizes = sorted(zip(largest.shape[1:3], (1, 2), strict=False), key=itemgetter(0), reverse=True)
    for length, axis in sizes:
        for fewer in (length // 2 | 1, length // 2) if length >= 64 else ():
            yield _cut_to(inputs, axis, length, fewer)


def other_batches(inputs: CallInputs, size: int) -> Iterator[Variant]:
    """Another batch size, with another mask where there is one: what to try in order."""
    batch = other_batch(inputs, size)
    if batch is None:
        return
    if any(value.is_floating_point() for value in inputs.tensors().values()):
        batch = other_values(batch, seed=3)
    masked = other_mask(batch)
    if masked is not None:
        yield Variant(masked, f"batch {size} and another mask")
    yield Variant(batch, f"batch {size}")


def lengths_of_one(inputs: CallInputs, smaller: bool = False) -> Iterator[Variant]:
    """One item of another length: what to try in order. smaller: of half the length first."""
    for whole in smaller_lengths(inputs) if smaller else ():
        single, largest = other_batch(whole, 1), largest_of(whole)
        if single is not None and largest is not None:
            shape = 1, *largest.shape[1:]
            yield Variant(single, f"batch 1 and another length, {shape}", whole)
    one = other_batch(inputs, 1)
    if one is not None:
        for variant in other_lengths(one):
            yield Variant(variant, "batch 1 and another length")
        yield Variant(one, "batch 1")
