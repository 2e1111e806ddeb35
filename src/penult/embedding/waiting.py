"""Regions that wait for their forward pass, and results that wait for their turn.

Knows when there is enough for a batch; neither how one is run nor what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penult.batches.planner import Planner
from penult.classifiers.base import Inputs
from penult.embedding.opening import Content
from penult.engines.law import ALONE, Law
from penult.regions import Region
from penult.sources import Item


@dataclass(frozen=True, slots=True)
class Ready:
    """A region that waits for its forward pass."""

    item: Item
    region: Region
    content: Content
    inputs: Inputs

    @property
    def size(self) -> int:
        """Numbers in the largest of its inputs."""
        return max(value.numel() for value in self.inputs.tensors.values())


class Waiting:
    """Regions by their numbers, given back in batches.

    law: how they may share one; it is asked for once there are two of them.
    """

    def __init__(self, planner: Planner, law: Callable[[], Law]) -> None:
        self.planner, self._law = planner, law
        self._regions: dict[int, Ready] = {}
        self._single: int | None = None  # waits alone, and was not offered to the planner

    def __bool__(self) -> bool:
        return bool(self._regions)

    def add(self, number: int, ready: Ready) -> None:
        """One more."""
        self._regions[number] = ready
        if len(self._regions) == 1:
            self._single = number
            return
        if self._single is not None:
            self._offer(self._single)
            self._single = None
        self._offer(number)

    def _offer(self, number: int) -> None:
        ready, law = self._regions[number], self._law()
        kind = number if law.name == ALONE else law.kind(ready.inputs.tensors)
        self.planner.offer(number, ready.size, kind)

    @property
    def due(self) -> bool:
        """Whether a batch is to be taken before more is added."""
        return self.planner.full or (bool(self.planner) and self._law().name == ALONE)

    def take(self) -> dict[int, Ready]:
        """The next batch, the region that has waited longest in it."""
        numbers = self.planner.take()
        if not numbers and self._single is not None:
            numbers, self._single = [self._single], None
        return {number: self._regions.pop(number) for number in numbers}


class InOrder:
    """Results that come in any order, given in that of their numbers."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, results: Mapping[int, Any]) -> None:
        """Some more, by their numbers."""
        self._held.update(results)

    def take(self) -> Iterator[Any]:
        """Those whose turn it is."""
        while self._next in self._held:
            yield self._held.pop(self._next)
            self._next += 1
