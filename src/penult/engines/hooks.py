"""Read hidden states out of a plain forward pass, and end it where nothing behind is wanted.

Knows modules and taps; nothing of pooling, batches or engines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.splitting.operations import watching
from penult.splitting.taps import INPUT, Tap

Place = tuple[str, str]  # a module and a side of it

SHAPES = 3  # of inputs, in which the same count is taken to hold for every shape


class Enough(BaseException):
    """All that was wanted is read. No Exception, so that a model that catches those lets it go."""


class Calls:
    """How often the places of taps are passed, learnt from whole passes.

    What was counted holds for inputs of the same shape; and for all, once it was the same for
    several shapes (such as the law's probes). Of a module that runs once per chunk it is not.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, dict[Place, int]] = {}

    def learn(self, tensors: Mapping[str, Tensor], counts: Mapping[Place, int]) -> None:
        """Keep what a whole pass counted."""
        if len(self._seen) < SHAPES:
            self._seen.setdefault(_shape(tensors), dict(counts))

    def ends(self, tensors: Mapping[str, Tensor], taps: Sequence[Tap]) -> dict[Place, int] | None:
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
    """What a pass left at the taps. counts: how often each place of theirs was passed."""

    def __init__(self, taps: Sequence[Tap], ends: Mapping[Place, int] | None) -> None:
        self.counts: dict[Place, int] = {}
        self._taps, self._ends = list(taps), ends
        self._inside: dict[Tap, deque[Tensor]] = {
            tap: deque(maxlen=tap.later + 1) for tap in taps if tap.operation
        }
        self._wanted: dict[Place, set[int]] = {}
        for tap in taps:
            if not tap.operation:
                self._wanted.setdefault((tap.module, tap.side), set()).add(tap.index)
        self._seen: dict[Place, list[dict[int, Tensor]]] = {}

    def __call__(self) -> list[Tensor]:
        """One tensor per tap."""
        for tap, values in self._inside.items():
            if len(values) <= tap.later:
                raise RuntimeError(f"the pass does not come by tap {tap.name!r} ({tap.place})")
        return [
            self._inside[tap][0]
            if tap.operation
            else self._seen[tap.module, tap.side][-1 - tap.call][tap.index]
            for tap in self._taps
        ]

    def inside(self, tap: Tap, tensor: Tensor) -> None:
        """Keep the tensor of an operation."""
        self._inside[tap].append(tensor.clone())

    def keep(self, place: Place, values: Any) -> None:
        """Keep the tensors at a place. A clone of each: wav2vec2 zeroes the projector's output in
        place after it left the module."""
        leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        kept = {index: leaves[index].clone() for index in self._wanted[place]}
        self._seen.setdefault(place, []).append(kept)
        self.counts[place] = self.counts.get(place, 0) + 1
        if self._ends is not None and self.counts == self._ends:
            raise Enough

    def hook(self, module: nn.Module) -> Iterator[Any]:
        """Set the hooks; their handles."""
        for place in self._wanted:
            target = module.get_submodule(place[0])
            if place[1] == INPUT:

                def before(_: Any, args: Any, kwargs: Any, place: Place = place) -> None:
                    self.keep(place, (args, kwargs))

                yield target.register_forward_pre_hook(before, with_kwargs=True)
            else:

                def after(_: Any, args: Any, output: Any, place: Place = place) -> None:
                    self.keep(place, output)

                yield target.register_forward_hook(after)


@contextmanager
def captured(
    module: nn.Module, taps: Sequence[Tap], ends: Mapping[Place, int] | None = None
) -> Iterator[Captured]:
    """Watch the taps' places in the passes that are run meanwhile.

    ends: how often each place will be passed; the pass ends behind the last of them with `Enough`.
    Nothing is left on the module afterwards, whatever happened.
    """
    found = Captured(taps, ends)
    inside = list(dict.fromkeys(tap for tap in taps if tap.operation))
    handles: list[Any] = []
    try:
        handles.extend(found.hook(module))
        with watching(module, inside, found.inside) if inside else nullcontext():
            yield found
    finally:
        for handle in handles:
            handle.remove()
