"""Read hidden states of one model, each in a pass that stops once nothing behind is needed.

How often a module runs is counted for each shape of inputs, in a whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from penult.errors import TapError
from penult.splitting.hooks import Unreached, captured
from penult.splitting.taps import INPUT, OUTPUT, Place, Spot, Tap
from penult.splitting.trace import Trace
from penult.splitting.variants import Inputs

REMEMBERED = 1000  # shapes of which the number of calls is kept


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
        return self.read(inputs, [tap.spot for tap in taps])

    def read(self, inputs: Inputs, spots: Sequence[Spot]) -> list[Tensor]:
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
