"""Run a model without leaving a mark on it: plainly or recorded, always on copies of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound, UsageError, cause
from penult.locking import Guard, lock_of
from penult.memory import trim
from penult.tracing.head import floats_of, logits_of
from penult.tracing.inputs import CallInputs, other_values
from penult.tracing.trace import Trace, ValueAddress, ValuesNotKept, record

T = TypeVar("T")

_PIECE = 2**17  # numbers that are compared at once

# Modes, buffers and random state belong to everyone who holds the model: one at a time.
_ALONE = Guard()


@dataclass(frozen=True, slots=True)
class SplitTarget:
    """A model to cut. output: which of several float outputs holds the logits. named: the module
    that the user calls head. base: the module whose first output is the backbone's."""

    model: nn.Module
    output: str | int | None
    named: str | None
    base: str | None = None

    def first(self, example: CallInputs) -> Tensor | None:
        """f(x) on the example; None if it has no logits.

        Raises:
            UsageError: the model does not accept the example, or returns several float tensors.
        """
        copy = self.copy(example)
        try:
            with torch.no_grad():
                output = self.model(*copy.args, **copy.kwargs)
        except Exception as error:
            shapes = ", ".join(f"{k}: {tuple(v.shape)}" for k, v in example.tensors().items())
            raise UsageError(
                f"the model does not accept the example inputs ({shapes}): "
                f"{cause(error, named=True)}"
            ) from error
        try:
            return logits_of(output, self.output).clone()
        except HeadNotFound as error:
            if floats_of(output):
                raise UsageError(str(error)) from error
            return None

    def copy(self, inputs: CallInputs) -> CallInputs:
        """A copy for a pass, which may overwrite it; the memory of earlier passes is given back,
        since one over another shape finds no use for it."""
        trim()
        return inputs.copy()

    def logits(self, inputs: CallInputs) -> Tensor:
        """f(x), in one plain pass."""
        with torch.no_grad():
            copy = self.copy(inputs)
            return logits_of(self.model(*copy.args, **copy.kwargs), self.output).clone()

    def record(
        self,
        inputs: CallInputs,
        decide: Callable[[Any], Any] | None = None,
        chance: Callable[[Any], Any] | None = None,
        keep: Collection[ValueAddress] = (),
    ) -> tuple[Trace, CallInputs]:
        """A recorded pass, and the very tensors that it was run on. decide, chance: as there.
        keep: where it comes by values that are kept."""
        copy = self.copy(inputs)
        kept = (lambda address, _: address in keep) if keep else None
        return record(self.model, copy.args, copy.kwargs, decide, chance, kept), copy

    def from_trace(
        self,
        inputs: CallInputs,
        read: Callable[[Trace, CallInputs], T],
        needed: Collection[ValueAddress] = (),
        decide: Callable[[Any], Any] | None = None,
    ) -> T:
        """What is read of a recorded pass; of a second one, where the first kept too few values.

        read: is given the trace, and the very tensors that the pass ran on. needed: where a pass
        comes by values that it will most likely need. decide: as in `record`.

        Raises:
            HeadNotFound: a second pass does not come by the values that the first one lacked.
        """
        try:
            return read(*self.record(inputs, decide, keep=needed))
        except ValuesNotKept as error:
            missing = error.addresses
        try:
            return read(*self.record(inputs, decide, keep=missing))
        except ValuesNotKept as error:
            raise HeadNotFound(
                "two passes over the same input run other operations, so what one of them shows "
                "cannot be read in the other"
            ) from error

    def others(
        self, example: CallInputs, given: CallInputs | None
    ) -> Iterator[tuple[CallInputs, str]]:
        """Inputs of the example's shapes with other content, the likeliest first, and what they
        are. given: one that the caller has."""
        if given is not None:
            yield given, "the two given inputs"
        config = getattr(self.model, "config", None)
        special = [
            value
            for name in ("pad_token_id", "eos_token_id", "sep_token_id", "bos_token_id")
            for value in tree_leaves(getattr(config, name, None))
            if isinstance(value, int)
        ]
        for seed, gain in ((1, 1.0), (2, 4.0)):
            yield other_values(example, special, seed, gain), "two inputs"

    def weights(self) -> dict[str, Tensor]:
        """The parameters and buffers, by name."""
        return {
            **dict(self.model.named_buffers(remove_duplicate=False)),
            **dict(self.model.named_parameters(remove_duplicate=False)),
        }


def relative(one: Tensor, other: Tensor, largest: float = float("inf")) -> float:
    """The largest difference, relative to the largest of `other`; not finite numbers must agree.

    largest: numbers beyond this do not count as large: fillers, such as -1e9 for what is masked.
    """
    return ratio(*difference_of(one, other), largest)


def ratio(difference: float, size: float, largest: float = float("inf")) -> float:
    """A difference relative to a size. largest: as in `relative`."""
    return difference / min(max(size, 1e-30), max(largest, 1e-30))


def difference_of(one: Tensor, other: Tensor) -> tuple[float, float]:
    """(the largest difference, the largest of `other`); numbers that are not finite must agree."""
    if one.shape != other.shape:
        return float("inf"), 0.0
    size = difference = 0.0
    for a, b in _parts(one, other):
        finite = torch.isfinite(b)
        if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(
            torch.nan_to_num(a[~finite]), torch.nan_to_num(b[~finite])
        ):
            return float("inf"), 0.0
        if finite.any():
            size = max(size, float(b[finite].abs().max()))
            difference = max(difference, float((a[finite] - b[finite]).abs().max()))
    return difference, size


def _parts(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape piece by piece, in double precision: maps of scores are large."""
    pieces = (torch.split(tensor.detach().reshape(-1), _PIECE) for tensor in (one, other))
    return ((a.double(), b.double()) for a, b in zip(*pieces, strict=True))


def moving_size(one: Tensor, other: Tensor) -> float:
    """The largest score among those that differ between two inputs: fillers do not."""
    if one.shape != other.shape:
        return float("inf")
    size = 0.0
    for a, b in _parts(one, other):
        moving = (a != b) & torch.isfinite(a) & torch.isfinite(b)
        if moving.any():
            size = max(size, float(a[moving].abs().max()), float(b[moving].abs().max()))
    return size


class State:
    """What a model is made of besides its weights' values: modes, buffers, Python attributes."""

    def __init__(self, model: nn.Module, before: State | None = None) -> None:
        """before: a state since which no buffer has changed, so that its copies serve here too."""
        self._attributes = [(m, dict(m.__dict__)) for m in model.modules()]
        inner = [value for _, own in self._attributes for value in own.values()]
        self._lists = [(v, list(v)) for v in inner if type(v) is list]
        self._dicts = [(v, dict(v)) for v in inner if isinstance(v, dict)]
        self._buffers: list[tuple[Tensor, Tensor]] = (
            [(b, b.detach().clone()) for b in model.buffers()]
            if before is None
            else before._buffers
        )

    def changed(self) -> bool:
        """Whether a forward pass left something behind."""
        return (
            any(_other(m.__dict__, own) for m, own in self._attributes)
            or any(_other(dict(enumerate(v)), dict(enumerate(old))) for v, old in self._lists)
            or any(_other(v, old) for v, old in self._dicts)
            or any(not torch.equal(b, old) for b, old in self._buffers)
        )

    def put_back(self) -> None:
        """Undo whatever forward passes have changed."""
        for module, own in self._attributes:
            for name in [n for n in module.__dict__ if n not in own]:
                del module.__dict__[name]
            module.__dict__.update(own)
        for value, old in self._lists:
            value[:] = old
        for mapping, before in self._dicts:
            if _other(mapping, before):
                mapping.clear()
                mapping.update(before)
        with torch.no_grad():
            for buffer, content in self._buffers:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _other(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    return now.keys() != before.keys() or any(now[key] is not before[key] for key in before)


@contextmanager
def still(model: nn.Module) -> Iterator[State]:
    """Eval mode without gradients, one caller at a time; everything of the model, and torch's
    random state, is as before afterwards. Gives the state that the model is in by then."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with _ALONE, lock_of(model):
        before = State(model)
        # A frozen TorchScript module has no mode.
        modes = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
        try:
            with torch.random.fork_rng(devices=sorted(d or 0 for d in devices)), torch.no_grad():
                for module, _ in modes:
                    module.training = False
                yield State(model, before)
        finally:
            before.put_back()
            for module, mode in modes:
                module.training = mode
