"""Read tensors out of plain forward passes by hooks; a pass stops once nothing behind is needed.

Nothing is recorded here, so a pass costs what the model itself costs, or less. Every hook is gone
afterwards, also when the model raises, and acts in the pass that set it alone: not in a pass that
another thread makes of the same module, and not in one that runs inside of this one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from penult.errors import TapError
from penult.splitting.operations import watching
from penult.splitting.taps import INPUT, OUTPUT, Tap
from penult.splitting.trace import Trace
from penult.splitting.variants import Inputs

REMEMBERED = 1000  # shapes of which the number of calls is kept

Place = tuple[str, str]  # a module and a side of it
# What is called at a place: the call's number, from 1, and the tensors there. It may give others.
Look = Callable[[Place, int, list[Tensor]], list[Tensor] | None]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a tensor is read. index: which of those there, flattened. call: which call of the
    module, counted from the last."""

    module: str
    side: str
    index: int
    call: int = 0

    @classmethod
    def of(cls, tap: Tap) -> Spot:
        """A tap's."""
        return cls(tap.module, tap.side, tap.index, tap.call)

    @property
    def place(self) -> Place:
        """The module and its side."""
        return self.module, self.side


class _Enough(BaseException):
    """Everything was read. No Exception, so that a model that catches those lets it through."""


_running = threading.local()


@contextmanager
def looking(model: nn.Module, places: Iterable[Place], look: Look) -> Iterator[dict[Place, int]]:
    """Call `look` whenever one of the places is passed; what is yielded counts the calls."""
    calls = dict.fromkeys(places, 0)
    token, outer = object(), getattr(_running, "token", None)
    handles = []

    def see(place: Place, values: Any) -> Any:
        if getattr(_running, "token", None) is not token:
            return None  # a pass of another thread, or one inside of this one
        leaves, spec = tree_flatten(values)
        calls[place] += 1
        made = look(place, calls[place], [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        if made is None:
            return None
        others = iter(made)
        changed = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tree_unflatten(changed, spec)

    try:
        for place in calls:
            module = model.get_submodule(place[0])
            if place[1] == INPUT:

                def enter(_: Any, args: Any, kwargs: Any, place: Place = place) -> Any:
                    return see(place, (args, kwargs))

                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            else:

                def leave(_: Any, args: Any, output: Any, place: Place = place) -> Any:
                    return see(place, output)

                handles.append(module.register_forward_hook(leave))
        _running.token = token
        yield calls
    finally:
        _running.token = outer
        for handle in handles:
            handle.remove()


class Reader:
    """Reads spots of one model.

    How often a module runs may depend on the input, so the first pass over inputs of a shape is
    whole and counts; later ones of that shape stop behind the last call that is needed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: dict[Any, dict[Place, int]] = {}

    def learn(self, inputs: Inputs, trace: Trace) -> None:
        """Count the calls of a whole pass that was recorded."""
        counts: dict[Place, int] = {}
        for call in trace.calls:
            for side in (INPUT, OUTPUT):
                counts[call.module, side] = counts.get((call.module, side), 0) + 1
        self._remember(inputs, counts)

    def _remember(self, inputs: Inputs, counts: Mapping[Place, int]) -> None:
        if len(self._calls) > REMEMBERED:
            self._calls.clear()
        self._calls.setdefault(shape_of(inputs), {}).update(counts)

    def calls(self, inputs: Inputs, place: Place) -> int | None:
        """How often a place is passed for inputs of this shape; None if that is not known."""
        return self._calls.get(shape_of(inputs), {}).get(place)

    def taps(self, inputs: Inputs, taps: Sequence[Tap]) -> list[Tensor]:
        """A copy of the tensor at each tap, in one pass; a whole one where operations are read.

        Raises:
            TapError: the pass does not come by one of them.
        """
        spots = [Spot.of(tap) for tap in taps if not tap.operation]
        inside = [tap for tap in taps if tap.operation]
        if not inside:
            return self.read(inputs, spots)
        seen: dict[Tap, deque[Tensor]] = {tap: deque(maxlen=tap.later + 1) for tap in inside}
        with watching(self._model, inside, lambda tap, tensor: seen[tap].append(tensor.clone())):
            at_modules = iter(self.read(inputs, spots, whole=True))
        missed = next((tap for tap in inside if len(seen[tap]) <= tap.later), None)
        if missed is not None:
            raise TapError(f"the {missed.place} was not reached in a forward pass over this input")
        return [seen[tap][0] if tap.operation else next(at_modules) for tap in taps]

    def read(self, inputs: Inputs, spots: Sequence[Spot], whole: bool = False) -> list[Tensor]:
        """A copy of the tensor at each spot, in one pass. whole: do not stop before its end.

        Raises:
            TapError: the pass does not come by one of them.
        """
        places = {spot.place for spot in spots}
        known = {place: self.calls(inputs, place) for place in places}
        ends = {place: count for place, count in known.items() if count is not None}
        kept = _Kept(spots, ends if len(ends) == len(places) and not whole else None)
        copy = inputs.copy()
        try:
            with looking(self._model, places, kept.look) as calls:
                self._model(*copy.args, **copy.kwargs)
        except _Enough:
            return kept.values()
        if kept.ends is not None and not kept.complete:  # a model that was changed since
            self._calls.pop(shape_of(inputs), None)
            return self.read(inputs, spots)
        self._remember(inputs, calls)
        return kept.values()


class _Kept:
    """What was read in one pass. ends: how often each place will be passed, where it is known."""

    def __init__(self, spots: Sequence[Spot], ends: Mapping[Place, int] | None) -> None:
        self.ends = ends
        self._spots = list(spots)
        self._seen: dict[Spot, deque[Tensor]] = {
            spot: deque(maxlen=spot.call + 1 if ends is None else 1) for spot in spots
        }

    def look(self, place: Place, number: int, tensors: list[Tensor]) -> None:
        for spot, seen in self._seen.items():
            if spot.place != place or spot.index >= len(tensors):
                continue
            if self.ends is None or number == self.ends[place] - spot.call:
                # A copy: wav2vec2 zeroes its projector's output in place afterwards.
                seen.append(tensors[spot.index].detach().clone())
        if self.ends is not None and self.complete:
            raise _Enough

    @property
    def complete(self) -> bool:
        return all(len(seen) == seen.maxlen for seen in self._seen.values())

    def values(self) -> list[Tensor]:
        for spot, seen in self._seen.items():
            if len(seen) != seen.maxlen:
                raise TapError(
                    f"the {spot.side} of {spot.module or 'the model'} was not reached in a forward "
                    "pass over this input"
                )
        return [self._seen[spot][0] for spot in self._spots]


def shape_of(inputs: Inputs) -> Any:
    """What two inputs share if a model runs the same modules on them: everything but values."""
    return _outline(inputs, lambda tensor: (tuple(tensor.shape), tensor.dtype))


def kind_of(inputs: Inputs) -> Any:
    """What two inputs share if they are of one kind: names, types, ranks, one item or several."""
    return _outline(inputs, lambda tensor: (tensor.ndim, tensor.dtype, tensor.shape[:1] == (1,)))


def _outline(inputs: Inputs, said: Callable[[Tensor], Any]) -> Any:
    leaves, spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
    return str(spec), tuple(
        said(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
