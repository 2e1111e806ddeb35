"""The batch planner: from lengths alone to batches under a budget, with little padding.

A pure object, no thread and no I/O: who reads items offers them, who runs them takes batches. It
knows lengths and kinds, and nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

WASTE = 0.15  # the share of a batch that may be padding
HELD = 5_000_000  # numbers that may always be held back, 20 MB


@dataclass(frozen=True, slots=True)
class _Waiting:
    id: int
    length: int


class Planner:
    """Gathers items and gives them back in batches of similar length.

    budget: the longest length × the number of items of a batch stays below it; an item that is
    longer goes alone. most: items in a batch. waiting: items held back at most, so that there is
    something to choose from. `hold` bounds what is held in sum of lengths, too.
    """

    def __init__(self, budget: int, most: int = 64, waiting: int = 128) -> None:
        self.budget, self.most, self.waiting = budget, most, waiting
        self.hold = max(8 * budget, HELD)
        self._held: dict[int, Hashable] = {}  # id → kind, in the order of arrival
        self._kinds: dict[Hashable, list[_Waiting]] = {}
        self._length = 0

    def __len__(self) -> int:
        return len(self._held)

    def offer(self, id: int, length: int, kind: Hashable = None) -> None:
        """An item has arrived. Only items of one kind share a batch."""
        self._held[id] = kind
        self._kinds.setdefault(kind, []).append(_Waiting(id, length))
        self._length += length

    @property
    def full(self) -> bool:
        """Whether a batch is to be taken before more is offered."""
        return len(self._held) >= self.waiting or self._length >= self.hold

    def take(self) -> list[int]:
        """The ids of the next batch, longest first; empty if nothing waits.

        The item that has waited longest is always in it, so that no item waits for ever and
        results can be given in the order of arrival; around it, the neighbours in length that
        cost the least padding.
        """
        if not self._held:
            return []
        oldest, kind = next(iter(self._held.items()))
        group = sorted(self._kinds[kind], key=lambda one: (-one.length, one.id))
        first = last = next(i for i, one in enumerate(group) if one.id == oldest)
        while (wider := self._wider(group, first, last)) is not None:
            first, last = wider
        batch = group[first : last + 1]
        self._remove(kind, batch)
        return [one.id for one in batch]

    def _wider(self, group: list[_Waiting], first: int, last: int) -> tuple[int, int] | None:
        """The window with one neighbour more, whichever costs less padding, if one fits."""
        if last - first + 1 >= self.most:
            return None
        choices = []
        for start, end in ((first - 1, last), (first, last + 1)):
            if start < 0 or end >= len(group):
                continue
            padded = group[start].length * (end - start + 1)
            waste = padded - sum(one.length for one in group[start : end + 1])
            if padded <= self.budget and waste <= WASTE * padded:
                choices.append((waste, start, end))
        return min(choices)[1:] if choices else None

    def _remove(self, kind: Hashable, batch: list[_Waiting]) -> None:
        gone = {one.id for one in batch}
        for id in gone:
            del self._held[id]
        left = [one for one in self._kinds[kind] if one.id not in gone]
        if left:
            self._kinds[kind] = left
        else:
            del self._kinds[kind]
        self._length -= sum(one.length for one in batch)

    def shrink(self, length: int) -> None:
        """A batch of this padded length did not fit into memory: none gets longer than half."""
        self.budget = max(1, min(self.budget, length // 2))


def waste(lengths: list[int], batches: list[list[int]]) -> float:
    """The share of all padded positions that is padding. batches: indices into lengths."""
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded if padded else 0.0
