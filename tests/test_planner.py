"""The batch planner: each item once, under the budget, little waste, and nobody waits for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penult.engines.batching import WASTE, Planner, waste

LENGTHS = st.lists(st.integers(1, 500), max_size=120)


def planned(
    planner: Planner, lengths: list[int], kinds: list[int] | None = None
) -> list[list[int]]:
    batches = []
    for id, length in enumerate(lengths):
        planner.offer(id, length, kinds[id] if kinds else None)
        while planner.full:
            batches.append(planner.take())
    while planner:
        batches.append(planner.take())
    assert planner.take() == []
    return batches


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), st.integers(1, 9))
def test_every_item_once_and_under_the_budget(
    lengths: list[int], budget: int, waiting: int, most: int
) -> None:
    batches = planned(Planner(budget, most, waiting), lengths)
    assert sorted(id for batch in batches for id in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[id] for id in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert waste(lengths, [batch]) <= WASTE + 1e-9


@given(LENGTHS, st.integers(1, 40))
def test_memory_is_bounded_and_nobody_waits_for_ever(lengths: list[int], waiting: int) -> None:
    planner = Planner(1000, 8, waiting)
    arrived: list[int] = []
    for id, length in enumerate(lengths):
        planner.offer(id, length)
        arrived.append(id)
        while planner.full:
            batch = planner.take()
            assert min(arrived) in batch  # whoever waited longest
            arrived = [other for other in arrived if other not in batch]
        assert len(planner) == len(arrived) < waiting
        assert sum(lengths[other] for other in arrived) < planner.hold


@given(LENGTHS, st.randoms(use_true_random=False))
def test_kinds_never_share_a_batch(lengths: list[int], random: object) -> None:
    kinds = [random.randrange(3) for _ in lengths]  # type: ignore[attr-defined]
    for batch in planned(Planner(1000), lengths, kinds):
        assert len({kinds[id] for id in batch}) == 1


@given(LENGTHS)
def test_the_same_lengths_give_the_same_plan(lengths: list[int]) -> None:
    assert planned(Planner(700), lengths) == planned(Planner(700), lengths)


def test_after_a_batch_that_did_not_fit_they_are_smaller() -> None:
    planner = Planner(1000)
    planner.shrink(800)
    assert planner.budget == 400
    planner.shrink(5000)
    assert planner.budget == 400
    assert all(len(batch) * 100 <= 400 for batch in planned(planner, [100] * 9))


def test_waste_against_arrival_order() -> None:
    """Clips of 1 to 15 s, as they come: a tenth of the padding that batches of eight have."""
    lengths = [int(x) for x in np.random.default_rng(0).uniform(16_000, 240_000, 2_000)]
    plan = planned(Planner(640_000), lengths)
    arrival = [list(range(i, min(i + 8, len(lengths)))) for i in range(0, len(lengths), 8)]
    assert waste(lengths, plan) < 0.1 * waste(lengths, arrival)


def taken(lengths: list[int], **options: int) -> list[list[int]]:
    """The lengths of each batch, everything offered before the first is taken."""
    planner = Planner(**{"budget": 1000, **options})
    for id, length in enumerate(lengths):
        planner.offer(id, length)
    batches = []
    while planner:
        batches.append([lengths[id] for id in planner.take()])
    return batches


def test_plans_by_hand() -> None:
    """The oldest, then whichever neighbour costs less padding, while all of it fits."""
    # 90 beside 100: 10 of 200 are padding; 84 more: 26 of 300; 70 more would be 56 of 400, which
    # is 14 %; 60 would be 96 of 500, which is more than 15 %.
    assert taken([100, 90, 84, 70, 60]) == [[100, 90, 84, 70], [60]]
    # Around the oldest, in both directions: 99 costs 1, 101 costs more (1 + 2), and so on.
    assert taken([100, 101, 99]) == [[101, 100, 99]]
    assert taken([100, 115, 99], most=2) == [[100, 99], [115]]
    assert taken([100, 102, 97], most=2) == [[102, 100], [97]]
    assert taken([100, 102, 98], most=2) == [[102, 100], [98]]  # of equals the longer neighbour


def test_places_beyond_the_ends_are_no_neighbours() -> None:
    """Seven of 100, and 120 beside them: 140 of 960 are padding, and all go together."""
    assert taken([100] * 7 + [120], budget=10_000) == [[120] + [100] * 7]
    assert taken([120] + [100] * 7, budget=10_000) == [[120] + [100] * 7]


def test_the_budget_by_hand() -> None:
    assert taken([10] * 7, budget=30) == [[10] * 3, [10] * 3, [10]]
    assert taken([10] * 7, budget=29) == [[10] * 2] * 3 + [[10]]
    assert taken([10, 11], budget=21) == [[10], [11]]  # 2 × 11 is over it
    assert taken([10, 11], budget=22) == [[11, 10]]
    assert taken([500, 10], budget=30) == [[500], [10]]  # alone, though it is longer
    assert taken([10] * 5, most=4) == [[10] * 4, [10]]
    assert taken([10] * 130) == [[10] * 64, [10] * 64, [10] * 2]


def test_fifteen_of_a_hundred_may_be_padding() -> None:
    assert taken([100, 70]) == [[100, 70]]  # 30 of 200
    assert taken([100, 69]) == [[100], [69]]
    assert taken([70, 100]) == [[100, 70]]
    assert taken([69, 100]) == [[69], [100]]


def test_when_a_batch_is_to_be_taken() -> None:
    planner = Planner(1000, waiting=3)
    for id in range(3):
        assert not planner.full
        planner.offer(id, 10)
    assert planner.full and len(planner) == 3
    assert planner.take() == [0, 1, 2] and not planner.full and len(planner) == 0
    assert Planner(1000).hold == 5_000_000 and Planner(1_000_000).hold == 8_000_000
    assert Planner(1000).waiting == 128
    long = Planner(1000)
    long.offer(0, 4_999_999)
    assert not long.full
    long.offer(1, 1)
    assert long.full
    assert long.take() == [0] and not long.full  # what was taken is no longer held
    long.offer(2, 4_999_998)
    assert not long.full
    long.offer(3, 1)
    assert long.full


def test_shrinking_by_hand() -> None:
    planner = Planner(100)
    planner.shrink(31)
    assert planner.budget == 15
    planner.shrink(1)
    assert planner.budget == 1
    planner.shrink(0)
    assert planner.budget == 1


def test_waste_by_hand() -> None:
    assert waste([10, 6, 5], [[0, 1], [2]]) == 1 - 21 / 25
    assert waste([10, 6, 5], [[0, 1, 2]]) == 1 - 21 / 30
    assert waste([], []) == 0.0
