"""Other inputs made from an example: other values, another batch size, length or mask.

Nothing here knows a model. Whether it accepts such an input is found by trying; the certificate's
checks are only as good as these inputs are different, and that difference is measured (power).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is called with: positional arguments and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, x: Any) -> Inputs:
        """From a mapping of keyword arguments, a tuple of arguments, or one tensor."""
        if isinstance(x, Mapping):
            return cls((), {str(key): value for key, value in x.items()})
        return cls(tuple(x), {}) if isinstance(x, tuple | list) else cls((x,), {})

    def tensors(self) -> dict[str | int, Tensor]:
        """The tensors among them, by name or position; nested ones as `name.0`, `name.1` …"""
        found: dict[str | int, Tensor] = {}

        def note(key: str | int, value: Tensor) -> Tensor:
            found[key] = value
            return value

        self.map(note)
        return found

    def map(self, change: Callable[[str | int, Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""

        def one(key: str | int, value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(key, value)
            leaves, spec = tree_flatten(value)
            changed = [
                change(f"{key}.{number}", leaf) if isinstance(leaf, Tensor) else leaf
                for number, leaf in enumerate(leaves)
            ]
            return tree_unflatten(changed, spec)

        return Inputs(
            tuple(one(index, value) for index, value in enumerate(self.args)),
            {key: one(key, value) for key, value in self.kwargs.items()},
        )

    def copy(self) -> Inputs:
        """A copy that a model may overwrite."""
        return self.map(lambda _, value: value.clone())

    @property
    def batch(self) -> int | None:
        """The size of the leading axis that all tensors share."""
        sizes = {value.shape[0] if value.ndim else 0 for value in self.tensors().values()}
        return sizes.pop() if len(sizes) == 1 else None


@dataclass(frozen=True, slots=True)
class Variant:
    """Another input, and in what it is other."""

    inputs: Inputs
    note: str


def is_mask(key: str | int, value: Tensor) -> bool:
    """Whether an input says which positions are valid."""
    named = not isinstance(key, str) or "mask" in key
    return named and value.ndim == 2 and bool(((value == 0) | (value == 1)).all())


def other_values(
    inputs: Inputs, special: Sequence[int] = (), seed: int = 0, gain: float = 1.0
) -> Inputs:
    """The same shapes and masks with other content.

    Floats: noise of the same mean, spread and range, every sample with a gain of its own. Without
    floats, the first integer tensor's ids are drawn anew among those that are there; ids that may
    mean something to the model (special, padded, first or last) stay in place.
    """
    random = torch.Generator().manual_seed(seed)
    mask = next((v for k, v in inputs.tensors().items() if is_mask(k, v)), None)
    floats = [k for k, v in inputs.tensors().items() if v.is_floating_point() and not is_mask(k, v)]
    ids = [k for k, v in inputs.tensors().items() if _is_ids(k, v)][:1] if not floats else []

    def change(key: str | int, value: Tensor) -> Tensor:
        if key in floats:
            return _noise(value, random, gain, mask)
        return _ids(value, random, special, mask) if key in ids else value.clone()

    return inputs.map(change)


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
    noise = mean + shift + spread * gains * torch.randn(data.shape or (1,), generator=random)
    noise = noise.reshape(data.shape)
    if gain == 1.0 and finite.numel() > 1 and finite.max() > finite.min():
        noise = noise.clamp(finite.min(), finite.max())
    if mask is not None and mask.shape == value.shape:
        noise = torch.where(mask.cpu() == 0, data, noise)
    return noise.to(value.dtype).to(value.device)


def _ids(
    value: Tensor, random: torch.Generator, special: Sequence[int], mask: Tensor | None
) -> Tensor:
    data = value.cpu()
    fixed = torch.isin(data, torch.tensor(list(special) or [-1], dtype=data.dtype))
    if data.ndim > 1:
        ends = torch.unique(torch.cat([data[:, :1].flatten(), data[:, -1:].flatten()]))
        fixed |= torch.isin(data, ends)
    if mask is not None and mask.shape == value.shape:
        fixed |= mask.cpu() == 0
    free = torch.unique(data[~fixed])
    if free.numel() < 2:
        return value.clone()
    drawn = free[torch.randint(free.numel(), data.shape, generator=random)]
    return torch.where(fixed, data, drawn).to(value.device)


def other_batch(inputs: Inputs, size: int) -> Inputs | None:
    """The same samples, repeated or cut to another batch size; None where there is no batch."""
    batch = inputs.batch
    if not batch:
        return None
    rows = torch.arange(size) % batch
    return inputs.map(lambda _, value: value[rows.to(value.device)].clone())


def other_mask(inputs: Inputs) -> Inputs | None:
    """The last quarter of what is valid in the first sample becomes padding."""
    masks = {key: value for key, value in inputs.tensors().items() if is_mask(key, value)}
    if not masks:
        return None

    def change(key: str | int, value: Tensor) -> Tensor:
        value = value.clone()
        if key in masks:
            valid = value[0].nonzero().flatten()
            if len(valid) >= 4:
                value[0, valid[-(len(valid) // 4) :]] = 0
        return value

    return inputs.map(change)


def other_lengths(inputs: Inputs) -> Iterator[Inputs]:
    """Inputs of another length, or images of another size, most likely first.

    Sequences lose a quarter of their positions, not at the ends: those may mean something.
    """
    tensors = inputs.tensors().values()
    rank = max((value.ndim for value in tensors), default=0)
    largest = max(tensors, key=lambda value: (value.ndim, value.numel()), default=None)
    if largest is None:
        return
    if rank == 4 and largest.is_floating_point():
        yield inputs.map(lambda _, value: _larger(value) if value.ndim == 4 else value.clone())
        return
    for axis in range(1, min(rank, 3)):
        length = largest.shape[axis]
        if length < 4:
            continue
        kept = torch.cat([torch.tensor([0]), torch.arange(1 + length // 4, length)])

        def shorter(_: str | int, value: Tensor, axis: int = axis, length: int = length) -> Tensor:
            if value.ndim <= axis or value.shape[axis] != length:
                return value.clone()
            return value.index_select(axis, kept.to(value.device))  # noqa: B023

        yield inputs.map(shorter)


def _larger(images: Tensor) -> Tensor:
    """Images with 32 more rows and columns, by reflection of what is there."""
    height, width = images.shape[-2:]
    rows = torch.arange(height + 32) % height
    columns = torch.arange(width + 32) % width
    return images[..., rows, :][..., columns].clone()
