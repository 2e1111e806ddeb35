"""The tensors of a running pass, told apart without being kept alive: form, memory, and the numbers
of the youngest.

Knows nothing of operations and modules.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Bytes of the youngest tensors whose numbers are kept: most heads lie there, and what a cut needs
# beyond is read in one more pass.
YOUNGEST = 2**24


@dataclass(slots=True, eq=False)
class TracedTensor:
    """A tensor as a recorded pass had it: everything but its numbers.

    shape, strides, offset: as they were last; `transpose_` changes them. storage: number of the
    memory that it lay in, which views share; offset: where in it. itself: the tensor, where the
    pass did not make it: an input, a weight, a constant.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    is_quantized: bool
    storage: int
    itself: Tensor | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """How many numbers it had."""
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numel() * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether it held floats."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Whether it held complex numbers."""
        return self.dtype.is_complex


class LivingTensors:
    """What is known of the tensors that are alive in a pass, by identity.

    A tensor that the pass made goes when the pass lets go of it; one that it did not make is kept.
    peak: the largest number of bytes that the pass's own tensors took at once.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._bytes = 0
        self._known: dict[int, TracedTensor] = {}  # by id, as long as the tensor lives
        self._storages: dict[int, int] = {}  # by address, as long as the memory is in use
        self._ends: dict[Any, weakref.ref[Any]] = {}  # of both
        self._sizes: list[int] = []  # of each storage's numbers; 0 of what the pass did not make

    def of(self, tensor: Tensor) -> TracedTensor:
        """A tensor that an operation or a module reads; one not seen being made is kept."""
        found = self._known.get(id(tensor))
        if found is None:
            found = self._known[id(tensor)] = self._described(tensor, itself=tensor)
        return found

    def made(self, tensor: Tensor) -> TracedTensor:
        """A tensor that an operation gives: a new one, or the one that it wrote to."""
        found = self._known.get(id(tensor))
        if found is None:
            found = self._known[id(tensor)] = self._described(tensor, itself=None)
            self._until_gone(tensor, id(tensor), partial(self._known.pop, id(tensor)))
        found.shape, found.strides, found.offset = _layout(tensor)
        return found

    def memory(self, traced: TracedTensor) -> int:
        """Bytes of the memory that a tensor lies in; 0 where the pass did not make it."""
        return self._sizes[traced.storage]

    def storages(self, named: Iterable[tuple[str, Tensor]]) -> dict[int, str]:
        """The names of tensors that the pass did not make, by the number of their memory."""
        return {self.of(tensor).storage: name for name, tensor in named}

    def release(self) -> None:
        """Let go of every tensor."""
        self._ends.clear()
        self._known.clear()

    def _described(self, tensor: Tensor, itself: Tensor | None) -> TracedTensor:
        shape, strides, offset = _layout(tensor)
        return TracedTensor(
            shape,
            strides,
            offset,
            tensor.dtype,
            tensor.device,
            tensor.is_quantized,
            self._storage(tensor, is_own=itself is None),
            itself,
        )

    def _storage(self, tensor: Tensor, is_own: bool) -> int:
        try:
            memory = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and opaque (mkldnn) tensors have none
            return self._new_storage(tensor.numel() * tensor.dtype.itemsize if is_own else 0)
        # The storage's own address: that of the numbers is none where there are no numbers.
        address = memory._cdata
        if address not in self._storages:
            number = self._new_storage(memory.nbytes() if is_own else 0)
            self._storages[address] = number
            self._bytes += self._sizes[number]
            self.peak = max(self.peak, self._bytes)
            self._until_gone(memory, ("storage", address), partial(self._freed, address))
        return self._storages[address]

    def _new_storage(self, size: int) -> int:
        self._sizes.append(size)
        return len(self._sizes) - 1

    def _freed(self, address: int) -> None:
        self._bytes -= self._sizes[self._storages.pop(address)]

    def _until_gone(self, value: Any, key: Any, forget: Callable[[], object]) -> None:
        """Forget what lives no longer: identities are reused."""

        def gone(_: Any) -> None:
            del self._ends[key]
            forget()

        self._ends[key] = weakref.ref(value, gone)


class YoungestValues:
    """The values that a pass made last, as far as `YOUNGEST` bytes of them go."""

    def __init__(self) -> None:
        self._values: deque[_YoungValue] = deque()
        self._of: dict[int, list[_YoungValue]] = {}  # by storage
        self._bytes = 0

    def add(self, traced: TracedTensor, maker: Any, tensor: Tensor, memory: int) -> None:
        """A value: a tensor, and what made it so. memory: of all that it keeps alive."""
        value = _YoungValue(traced, maker, tensor, memory)
        self._values.append(value)
        self._of.setdefault(traced.storage, []).append(value)
        self._bytes += memory
        while self._bytes > YOUNGEST:
            oldest = self._values.popleft()
            self._bytes -= oldest.memory
            self._of[oldest.traced.storage].remove(oldest)

    def overwritten(self, storage: int) -> list[tuple[TracedTensor, Tensor]]:
        """Copy what lies in memory that is about to be written to; the tensors that lie there."""
        found = [value for value in self._of.get(storage, ()) if not value.is_copy]
        tensors = {value.traced: value.tensor for value in found}
        for value in found:
            value.tensor, value.is_copy = value.tensor.clone(), True
        return list(tensors.items())

    def by_maker(self) -> dict[tuple[TracedTensor, Any], Tensor]:
        """The values, by tensor and maker."""
        return {(value.traced, value.maker): value.tensor for value in self._values}


@dataclass(slots=True, eq=False)
class _YoungValue:
    traced: TracedTensor
    maker: Any
    tensor: Tensor
    memory: int
    is_copy: bool = False


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    """(shape, strides, offset in its memory), as far as a tensor has them."""
    if tensor.is_nested:  # rows of several lengths
        return torch.Size((tensor.numel(),)), (), 0
    if tensor.layout != torch.strided:
        return tensor.shape, (), 0
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())
