"""Deliver the prelogits of a proved cut: by hooks where these give what a recorded pass gives.

A recorded pass costs nearly two plain ones. Where what enters the head is what enters a module, a
hook on that module reads the same tensor in a plain pass. That it is the same, to the bit, is
measured on the first input of every kind; where it is not (functional heads, picking and averaging
that were moved in front of the head) each pass is recorded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from penult.errors import HeadNotFound, TapError
from penult.splitting.boundary import Boundary, Place, find_boundary
from penult.splitting.passes import cut
from penult.splitting.reading import Reader, kind_of
from penult.splitting.running import Question
from penult.splitting.taps import INPUT, Spot
from penult.splitting.trace import Trace
from penult.splitting.variants import Inputs


class Plan(NamedTuple):
    """Where hooks read the prelogits. calls: how often each spot's module ran."""

    spots: tuple[Spot, ...]
    calls: tuple[int, ...]


class Delivery:
    """Gives the prelogits of any input."""

    def __init__(self, question: Question, reader: Reader) -> None:
        self._question = question
        self._reader = reader
        self._plans: dict[Any, Plan | None] = {}

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What enters the head, one tensor for each of its places."""
        kind = kind_of(inputs)
        plan = self._plans.get(kind)
        values = None if plan is None else self._hooked(inputs, plan)
        if values is not None:
            return values
        trace, copies = self._question.record(inputs)
        values = cut(self._question, trace, copies).values
        if kind not in self._plans:
            self._reader.learn(inputs, trace)
            plan = self._planned(trace, len(values))
            del trace  # every activation of a pass
            self._plans[kind] = plan if plan and self._agrees(inputs, plan, values) else None
        return values

    def _hooked(self, inputs: Inputs, plan: Plan) -> tuple[Tensor, ...] | None:
        """The values by hooks; None where the head ran more or less often than it should."""
        try:
            values = tuple(self._reader.read(inputs, plan.spots))
        except (TapError, AttributeError):  # not reached, or no longer there
            return None
        calls = tuple(self._reader.calls(inputs, spot.place) for spot in plan.spots)
        return values if calls == plan.calls else None

    def _agrees(self, inputs: Inputs, plan: Plan, recorded: tuple[Tensor, ...]) -> bool:
        values = self._hooked(inputs, plan)
        return values is not None and all(
            torch.equal(one, other) for one, other in zip(values, recorded, strict=True)
        )

    def _planned(self, trace: Trace, count: int) -> Plan | None:
        """A spot for each tensor at the boundary, if all of them enter a module of the head."""
        try:
            boundary = find_boundary(trace, self._question.output, self._question.named)
        except HeadNotFound:
            return None
        if boundary.tail.open or len(boundary.places) != count:
            return None  # what is delivered was moved, and enters nothing
        spots = [_entering(trace, boundary, place) for place in boundary.places]
        found = tuple(spot for spot in spots if spot is not None)
        if len(found) < len(spots):
            return None
        return Plan(found, tuple(len(trace.calls_of(spot.module)) for spot in found))


def _entering(trace: Trace, boundary: Boundary, place: Place) -> Spot | None:
    """Where a tensor enters a module of the head, with the value that it has at the boundary."""
    value = trace.value(place.tensor, place.at)
    for name in boundary.head.names:
        calls = trace.calls_of(name)
        for number, call in enumerate(calls):
            for index, read in enumerate(call.inputs):
                # The same object: nothing was written to it in between.
                if read.tensor is place.tensor and trace.value(read.tensor, call.first) is value:
                    return Spot(name, INPUT, index, len(calls) - 1 - number)
    return None
