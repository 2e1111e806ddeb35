"""The one implementation of capture and early exit: read tensors out of a plain forward pass by
hooks.

Knows modules and taps; nothing of pooling, batches or engines.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from penult.errors import TapError
from penult.tracing.inputs import CallInputs
from penult.tracing.spots import INPUT, OUTPUT, ModuleSide, Spot, Tap
from penult.tracing.trace import TensorRead, _Recorder, _watching

SHAPES = 3  # of inputs, in which the same count is taken to hold for every shape

_running = threading.local()


class _Enough(BaseException):
    """Every tensor was read. No Exception, so that a model that catches those lets it through."""


class Unreached(RuntimeError):
    """A pass that went to its end without coming by a place."""


class Calls:
    """How often the places of taps are passed, learnt from whole passes.

    What was counted holds for inputs of the same shape; and for all, once it was the same for
    several shapes (such as the law's probes). Of a module that runs once per chunk it is not.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, dict[ModuleSide, int]] = {}

    def learn(self, tensors: Mapping[str, Tensor], counts: Mapping[ModuleSide, int]) -> None:
        """Keep what a whole pass counted."""
        if len(self._seen) < SHAPES:
            self._seen.setdefault(_shape(tensors), dict(counts))

    def ends(
        self, tensors: Mapping[str, Tensor], taps: Sequence[Tap]
    ) -> dict[ModuleSide, int] | None:
        """How often each place will be passed; None if that is not known."""
        if not taps or any(tap.operation for tap in taps):
            return None
        seen = list(self._seen.values())
        if len(seen) >= SHAPES and all(other == seen[0] for other in seen):
            return seen[0]
        return self._seen.get(_shape(tensors))


def _shape(tensors: Mapping[str, Tensor]) -> Any:
    return tuple((name, tuple(value.shape[1:])) for name, value in tensors.items())


class Captured:
    """The tensors that a pass left at some spots.

    counts: how often each place was passed. stopped: whether the pass ended early, at the last
    call that is needed; what a model returned all the same, is then no output of it.
    """

    def __init__(self, spots: Sequence[Spot], ends: Mapping[ModuleSide, int] | None) -> None:
        self.stopped = False
        self._spots, self._ends = list(spots), ends
        self._seen: dict[Spot, deque[Tensor]] = {
            spot: deque(maxlen=1 + (spot.later if spot.operation else spot.call)) for spot in spots
        }
        self._at: dict[ModuleSide, list[Spot]] = {}
        for spot in self._seen:
            if not spot.operation:
                self._at.setdefault(spot.place, []).append(spot)
        self.counts: dict[ModuleSide, int] = dict.fromkeys(self._at, 0)

    def __call__(self) -> list[Tensor]:
        """One tensor per spot.

        Raises:
            Unreached: the pass did not come by one of them.
        """
        return [self._value(spot) for spot in self._spots]

    def _value(self, spot: Spot) -> Tensor:
        back = spot.later
        if not spot.operation:
            back = spot.call - (self._left(spot.place) if self.stopped else 0)
        if len(self._seen[spot]) <= back:
            raise Unreached(f"the {spot.words} was not reached in a forward pass over this input")
        return self._seen[spot][-1 - back]

    def _left(self, place: ModuleSide) -> int:
        """Calls that are still to come at a place."""
        return max(0, self._ends[place] - self.counts[place]) if self._ends else 0

    def look(self, place: ModuleSide, leaves: Sequence[Any]) -> None:
        """Keep the tensors at a place. A clone of each: wav2vec2 zeroes the projector's output in
        place after it left the module."""
        if self.stopped:  # by a model that catches everything, and went on
            raise _Enough
        self.counts[place] += 1
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for spot in self._at[place]:
            if spot.index < len(tensors):
                self._seen[spot].append(tensors[spot.index].clone())
        if self._ends is not None and all(
            self._left(one) <= min(spot.call for spot in spots) for one, spots in self._at.items()
        ):
            self.stopped = True
            raise _Enough

    def inside(self, spot: Spot, tensor: Tensor) -> None:
        """Keep the tensor of an operation."""
        self._seen[spot].append(tensor.clone())

    def hook(self, model: nn.Module, token: object) -> Iterator[Any]:
        """Set the hooks, which act where this pass is running; their handles."""
        for place in self._at:
            module = model.get_submodule(place[0])
            if place[1] == INPUT:

                def enter(_: Any, args: Any, kwargs: Any, place: ModuleSide = place) -> None:
                    if getattr(_running, "token", None) is token:
                        self.look(place, tree_leaves((args, kwargs)))

                yield module.register_forward_pre_hook(enter, with_kwargs=True)
            else:

                def leave(_: Any, args: Any, output: Any, place: ModuleSide = place) -> None:
                    if getattr(_running, "token", None) is token:
                        self.look(place, tree_leaves(output))

                yield module.register_forward_hook(leave)


@contextmanager
def captured(
    model: nn.Module, spots: Sequence[Spot], ends: Mapping[ModuleSide, int] | None = None
) -> Iterator[Captured]:
    """Read the spots in the pass that is run meanwhile.

    ends: how often each place will be passed; behind the last call that is needed, the pass ends,
    and the `with` block with it. Nothing is left on the module afterwards, whatever happened.
    """
    found = Captured(spots, ends)
    inside = list(dict.fromkeys(spot for spot in spots if spot.operation))
    token, outer = object(), getattr(_running, "token", None)
    handles: list[Any] = []
    try:
        for handle in found.hook(model, token):
            handles.append(handle)  # one by one: those set are removed where a later one fails
        _running.token = token
        with watching(model, inside, found.inside) if inside else nullcontext():
            yield found
    except _Enough:
        pass
    finally:
        _running.token = outer
        for handle in handles:
            handle.remove()


See = Callable[[Spot, Tensor], None]


class _Watcher(_Recorder):  # type: ignore[no-untyped-call]
    """Shows the tensors of some operations as they run; records nothing."""

    def __init__(self, spots: Sequence[Spot], see: See) -> None:
        super().__init__([])
        self._see = see
        self._by_operation: dict[tuple[str, str], list[Spot]] = {}
        for spot in spots:
            self._by_operation.setdefault((spot.operation, spot.module), []).append(spot)

    def reads(self, values: Any) -> list[TensorRead]:
        return []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        key = str(func.overloadpacket), self.stack[-1].module if self.stack else ""
        spots = self._by_operation.get(key, ())
        self._show([spot for spot in spots if spot.side == INPUT], (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._show([spot for spot in spots if spot.side != INPUT], result)
        return result

    def _show(self, spots: Sequence[Spot], values: Any) -> None:
        if not spots:
            return
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        for spot in spots:
            if spot.index < len(tensors):
                self._see(spot, tensors[spot.index])


@contextmanager
def watching(module: nn.Module, spots: Sequence[Spot], see: See) -> Iterator[None]:
    """While a forward pass runs: `see(spot, tensor)` for every operation that a spot may mean.

    Operations of one name in one module are one from here; `Spot.later` separates them once the
    pass is over. An operand is shown before its operation runs, a result after it.
    """
    watcher = _Watcher(spots, see)
    # Inference mode hides what composite operations are made of; the trace was made without it.
    with torch.inference_mode(False), torch.no_grad(), _watching(module, watcher), watcher:
        yield


REMEMBERED = 1000  # shapes of which the number of calls is kept


class TensorReader:
    """Reads spots of one model.

    How often a module runs may depend on the input, so the first pass over inputs of a shape is
    whole and counts; later ones of that shape stop behind the last call that is needed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: dict[Any, dict[ModuleSide, int]] = {}

    def learn(self, inputs: CallInputs, calls: Mapping[str, int]) -> None:
        """Keep how often each module ran in a whole pass."""
        sides = (INPUT, OUTPUT)
        self._remember(inputs, {(name, side): n for name, n in calls.items() for side in sides})

    def _remember(self, inputs: CallInputs, counts: Mapping[ModuleSide, int]) -> None:
        if len(self._calls) > REMEMBERED:
            self._calls.clear()
        self._calls.setdefault(shape_of(inputs), {}).update(counts)

    def calls(self, inputs: CallInputs, place: ModuleSide) -> int | None:
        """How often a place is passed for inputs of this shape; None if that is not known."""
        return self._calls.get(shape_of(inputs), {}).get(place)

    def taps(self, inputs: CallInputs, taps: Sequence[Tap]) -> list[Tensor]:
        """A copy of the tensor at each tap, in one pass; a whole one where operations are read.

        Raises:
            TapError: the pass does not come by one of them.
        """
        return self.read(inputs, [tap.spot for tap in taps])

    def read(self, inputs: CallInputs, spots: Sequence[Spot]) -> list[Tensor]:
        """A copy of the tensor at each spot, in one pass; a whole one where operations are read.

        Raises:
            TapError: the pass does not come by one of them.
        """
        whole = any(spot.operation for spot in spots)
        known = {spot.place: self.calls(inputs, spot.place) for spot in spots}
        ends = {place: count for place, count in known.items() if count is not None}
        copy = inputs.copy()
        with captured(self._model, spots, None if whole or len(ends) < len(known) else ends) as got:
            self._model(*copy.args, **copy.kwargs)
        if not got.stopped:
            self._remember(inputs, got.counts)
        try:
            return [value.detach() for value in got()]
        except Unreached as error:
            raise TapError(str(error)) from error


def shape_of(inputs: CallInputs) -> Any:
    """What two inputs share if a model runs the same modules on them: everything but values."""
    return _outline(inputs, lambda tensor: (tuple(tensor.shape), tensor.dtype))


def kind_of(inputs: CallInputs) -> Any:
    """What two inputs share if they are of one kind: names, types, ranks, one item or several."""
    return _outline(inputs, lambda tensor: (tensor.ndim, tensor.dtype, tensor.shape[:1] == (1,)))


def _outline(inputs: CallInputs, describe: Callable[[Tensor], Any]) -> Any:
    leaves, spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
    return str(spec), tuple(
        describe(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
