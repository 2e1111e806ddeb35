"""Admission and turns: nobody waits for ever, nobody takes all, and Retry-After comes true."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penult.server.admission import Admission, TurnedAway
from penult.server.fair_queue import FairQueue, FairThreads


class Machine:
    """A model that works off one second of work in `slow` seconds, in the order of arrival."""

    def __init__(self, most: float, slow: float = 0.1) -> None:
        self.admission = Admission(most, rate=1 / slow)
        self.slow, self.now, self.free = slow, 0.0, 0.0
        self.under_way: list[tuple[float, str, float]] = []  # until, client, cost

    def until(self, now: float) -> None:
        for end, client, cost in [one for one in self.under_way if one[0] <= now]:
            self.admission.release(client, cost, end)
            self.under_way.remove((end, client, cost))
        self.now = now

    def ask(self, client: str, cost: float) -> int | None:
        """None where it is admitted, else the seconds to wait."""
        try:
            self.admission.admit(client, cost, self.now)
        except TurnedAway as error:
            return error.after
        self.free = max(self.free, self.now) + cost * self.slow
        self.under_way.append((self.free, client, cost))
        return None


COSTS = st.lists(st.floats(0.1, 20), min_size=1, max_size=60)


@given(costs=COSTS, clients=st.integers(1, 8), most=st.floats(5, 60), slow=st.floats(0.02, 3))
@settings(max_examples=60)
def test_all_of_a_crowd_are_admitted_when_they_come_again_as_told(
    costs: list[float], clients: int, most: float, slow: float
) -> None:
    machine = Machine(most, slow)
    names = [f"client {at % clients}" for at in range(len(costs))]
    waits = [machine.ask(name, cost) for name, cost in zip(names, costs, strict=True)]
    assert machine.admission.waiting <= max(most, max(costs))
    told = [(wait, at) for at, wait in enumerate(waits) if wait is not None]
    for when, at in sorted(told):
        machine.until(max(machine.now, when))
        assert machine.ask(names[at], costs[at]) is None


@given(
    rounds=st.lists(st.lists(st.floats(0.1, 20), min_size=1, max_size=8), min_size=1, max_size=8),
    most=st.floats(5, 60),
    slow=st.floats(0.02, 3),
)
@settings(max_examples=60)
def test_nobody_is_turned_away_twice_for_the_same_work(
    rounds: list[list[float]], most: float, slow: float
) -> None:
    machine = Machine(most, slow)
    due = [(0.01 * at, at) for at in range(len(rounds))]  # one client for each list of items
    tries = [0] * len(rounds)
    while due:
        due.sort()
        when, at = due.pop(0)
        machine.until(when)
        after = machine.ask(f"client {at}", rounds[at][0])
        tries[at] += 1
        assert tries[at] <= 2
        if after is None:
            rounds[at].pop(0)
            tries[at] = 0
            after = 0.01
        if rounds[at]:
            due.append((when + after, at))


def test_waiting_work_is_bounded_and_one_item_is_always_taken() -> None:
    machine = Machine(10)
    assert machine.ask("a", 50) is None  # more than all room, and nothing waits
    assert machine.ask("b", 1) == 5  # 41 s too many, at 10 s in a second
    machine.until(5.0)
    assert machine.admission.waiting == 0
    assert machine.ask("b", 1) is None
    for _ in range(8):
        machine.ask("c", 1)
    assert machine.admission.waiting <= 10


def test_a_greedy_client_leaves_room_for_others() -> None:
    machine = Machine(60, slow=1.0)
    taken = sum(machine.ask("greedy", 5) is None for _ in range(50))
    assert taken == 12  # all of the room
    wait = machine.ask("modest", 5)
    assert wait is not None
    for second in range(1, wait + 1):
        machine.until(float(second))
        machine.ask("greedy", 5)  # asks all the time, too early and anew
    assert machine.ask("modest", 5) is None


def test_places_lapse() -> None:
    machine = Machine(10, slow=1.0)
    assert machine.ask("a", 10) is None
    assert machine.ask("b", 10) is not None  # and never comes again
    machine.until(100.0)
    assert machine.ask("c", 10) is None
    assert machine.admission.waiting == 10


def test_turns_are_by_work_and_not_by_number() -> None:
    queue = FairQueue(threads=4)
    order: list[str] = []
    for _ in range(6):
        queue.put("long", lambda: order.append("long"), 10.0)
    for _ in range(6):
        queue.put("short", lambda: order.append("short"), 1.0)
    for _ in range(8):
        taken = queue.take()
        assert taken is not None
        taken[1]()
        queue.done(taken[0])
    assert Counter(order) == {"short": 6, "long": 2}
    assert order[:2] in (["long", "short"], ["short", "long"])


def test_a_client_who_comes_late_has_no_credit() -> None:
    queue = FairQueue(threads=2)
    for _ in range(3):
        queue.put("first", lambda: None, 5.0)
    for _ in range(2):
        taken = queue.take()
        assert taken is not None
        queue.done(taken[0])
    for _ in range(3):
        queue.put("second", lambda: None, 5.0)
    order = []
    for _ in range(4):
        taken = queue.take()
        assert taken is not None
        order.append(taken[0])
        queue.done(taken[0])
    assert order.count("first") == 1 and order.count("second") == 3  # in turns, from now on


def test_slow_items_of_one_client_leave_a_thread_for_others() -> None:
    threads, hold, served = FairThreads("test", 3), threading.Event(), threading.Event()
    for _ in range(5):
        threads.put("slow", lambda: hold.wait(10) and None)
    threads.put("other", served.set)
    try:
        assert served.wait(5)
    finally:
        hold.set()
        threads.close()


def test_a_job_that_raises_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = FairThreads("test", 1), threading.Event()
    threads.put("a", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    threads.put("a", done.set)
    assert done.wait(5)
    threads.close()
    assert "failed" in caplog.text
