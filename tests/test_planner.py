"""The batch planner: each item once, under the budget, little waste, and nobody waits for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penult.batches.planner import WASTE, Planner, waste

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
