"""Admission: how much may wait, shared fairly between clients, and when to come again.

Work is counted in seconds (of sound and video their own, of pictures and texts those of the model).
Pure: no thread and no clock of its own.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MOST_BOOKED = 1000  # places of one client that are kept; of more the first ones lapse
_SLOW = 1e-3  # seconds of work in one second: no machine is taken for slower than that
_RECENT = 30.0  # seconds of work that the rate is measured over, about


class TurnedAway(Exception):
    """There is no room now. after: seconds in which there is, for this client."""

    def __init__(self, after: int) -> None:
        super().__init__(f"too much work waits; come again in {after} s")
        self.after = after


@dataclass(slots=True)
class _Booking:
    """Room that is kept for a client that was turned away. due: when it was told to come again.
    until: when the place lapses."""

    cost: float
    due: float
    until: float


@dataclass(slots=True)
class _Client:
    waiting: float = 0.0
    places: deque[_Booking] = field(default_factory=deque)

    @property
    def booked(self) -> float:
        return sum(one.cost for one in self.places)


class Admission:
    """Admits work while it fits.

    Each client that has work waiting, or was turned away, has an equal share of the room. A client
    that was turned away has a place from the moment on that it was told to come again, so that it
    is not turned away twice for the same work.
    most: seconds of work. rate: seconds of work that are done in a second, until that is measured.
    """

    def __init__(self, most: float, rate: float = 1.0) -> None:
        self.most, self.rate = most, rate
        self._clients: dict[str, _Client] = {}
        self._busy_since: float | None = None
        self._done, self._busy = 0.0, 0.0

    @property
    def waiting(self) -> float:
        """Seconds of work that were admitted and are not done."""
        return sum(one.waiting for one in self._clients.values())

    def admit(self, client: str, cost: float, now: float) -> None:
        """Admit work of a client, or say when to come again. now: seconds of a clock.

        Raises:
            TurnedAway: there is no room.
        """
        self._lapse(now)
        one = self._clients.setdefault(client, _Client())
        if not (self._takes_place(one, cost, now) or self._fits(one, cost)):
            raise TurnedAway(self._book(one, cost, now))
        if not self.waiting:
            self._busy_since = now
        one.waiting += cost

    def release(self, client: str, cost: float, now: float, done: bool = True) -> None:
        """Work of a client has ended. done: it was worked on, and not given up."""
        one = self._clients.setdefault(client, _Client())
        one.waiting = max(0.0, one.waiting - cost)
        if one.waiting < 1e-9:
            one.waiting = 0.0
        if done:
            self._done += cost
        if self._busy_since is not None:
            self._busy += now - self._busy_since
            self._busy_since = now if self.waiting else None
        if self._busy > 0 and self._done >= 1e-9:
            self.rate = max(_SLOW, self._done / self._busy)
        if self._done > _RECENT:  # older work counts less and less
            self._done, self._busy = self._done / 2, self._busy / 2
        self._lapse(now)

    def _fits(self, one: _Client, cost: float) -> bool:
        others = sum(
            min(other.booked, self._share) for other in self._clients.values() if other is not one
        )
        if not self.waiting and not others:
            return True  # more than the whole room, too: else it would never be admitted
        own = one.waiting + one.booked + cost
        return self.waiting + others + cost <= self.most and own <= self._share

    @property
    def _active(self) -> int:
        return max(1, sum(bool(one.waiting or one.places) for one in self._clients.values()))

    @property
    def _share(self) -> float:
        return self.most / self._active

    @staticmethod
    def _takes_place(one: _Client, cost: float, now: float) -> bool:
        """Whether a client has come again as it was told."""
        due = [p for p in one.places if p.due <= now and cost <= p.cost * 1.001]
        if due:  # the smallest: another request of this client needs the larger one
            one.places.remove(min(due, key=lambda place: place.cost))
        return bool(due)

    def _book(self, one: _Client, cost: float, now: float) -> int:
        """Keep a place for a client; gives the seconds until it is there."""
        ahead = self.waiting + sum(min(o.booked, self._share) for o in self._clients.values())
        own = one.waiting + one.booked
        one.places.append(_Booking(cost, math.inf, math.inf))
        if len(one.places) > MOST_BOOKED:
            one.places.popleft()
        # In the room of all, and in the client's own share of what is done.
        everyone = (ahead + min(cost, self.most) - self.most) / self.rate
        alone = (own + min(cost, self._share) - self._share) * self._active / self.rate
        after = max(1, math.ceil(max(everyone, alone)))
        place = one.places[-1]
        place.due, place.until = now + after - 0.5, now + 2 * after + 10  # clocks are not exact
        return after

    def _lapse(self, now: float) -> None:
        for name, one in list(self._clients.items()):
            while one.places and one.places[0].until < now:
                one.places.popleft()
            if not one.waiting and not one.places:
                del self._clients[name]
