"""Episodes and intervals: who may be on which side, what is counted, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penult.analysis.bootstrap import estimate, estimates
from penult.analysis.candidates import Material, score_all
from penult.analysis.episodes import (
    Episodes,
    able,
    answered,
    centred_products,
    cosines,
    crowded,
    draw,
    numbered,
    partitions,
    plan,
    products,
    voted,
)
from penult.analysis.space import fit
from penult.errors import LabelsError


def crossed(classes: int = 6, groups: int = 4, each: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Every class in every group."""
    labels = np.repeat(np.arange(classes), groups * each)
    return labels, np.tile(np.repeat(np.arange(groups), each), classes)


@given(seed=st.integers(0, 500), shots=st.integers(1, 3), ways=st.integers(2, 6))
def test_no_group_is_on_both_sides(seed: int, shots: int, ways: int) -> None:
    labels, groups = crossed()
    for side in partitions(labels, groups, 2, 1, seed):
        episodes = draw(labels, side, ways, shots, 40, seed)
        assert episodes.support.shape == (40, ways, shots) and episodes.query.shape == (40, ways, 1)
        assert not set(groups[episodes.support.ravel()]) & set(groups[episodes.query.ravel()])
        own = labels[episodes.support]
        assert (own == own[:, :, :1]).all()
        assert (labels[episodes.query[..., 0]] == own[..., 0]).all()
        for row in own[..., 0]:
            assert len(set(row)) == ways
        if shots > 1:
            assert (np.diff(np.sort(episodes.support, axis=2), axis=2) > 0).all()


def test_the_same_seed_draws_the_same() -> None:
    labels, groups = crossed()
    one, other = (plan(labels, groups, seed=3) for _ in range(2))
    for a, b in zip(one.episodes, other.episodes, strict=True):
        assert np.array_equal(a[0].support, b[0].support)
    assert not np.array_equal(
        one.episodes[0][0].support, plan(labels, groups, seed=4).episodes[0][0].support
    )


def test_answers_are_those_of_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    labels, groups = crossed()
    vectors = random.standard_normal((len(labels), 7)).astype(np.float32)
    side = next(partitions(labels, groups, 2, 1, 0))
    episodes = draw(labels, side, 4, 3, 25, 0)
    found = answered(products(vectors), episodes)
    for event in range(25):
        prototypes = vectors[episodes.support[event]].mean(axis=1)
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        for way in range(4):
            nearest = (prototypes @ vectors[episodes.query[event, way, 0]]).argmax()
            assert found[event, way, 0] == (nearest == way)


def test_equal_prototypes_share_the_answer() -> None:
    vectors = np.ones((6, 3), np.float32)
    episodes = Episodes(np.array([[[0], [1], [2]]]), np.array([[[3], [4], [5]]]))
    assert np.allclose(answered(products(vectors), episodes), 1 / 3)
    assert np.allclose(answered(products(0 * vectors), episodes), 1 / 3)


def test_large_vectors_do_not_overflow() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((6, 3)).astype(np.float32)
    assert np.allclose(products(vectors), products(vectors * np.float32(1e30)), atol=1e-6)


def test_the_crowd_is_what_sampling_gives() -> None:
    random = np.random.default_rng(1)
    there = np.repeat([0, 1, 2], [4, 9, 2])
    near = random.random((1, len(there))).astype(np.float32)
    exact = crowded(near, np.array([0]), there, others=5)[0]
    hits, trials = 0, 40_000
    for _ in range(trials):
        own = near[0, random.integers(4)]
        classes = random.integers(1, 3, 5)
        rows = np.where(
            classes == 1, 4 + random.integers(9, size=5), 13 + random.integers(2, size=5)
        )
        hits += own > near[0, rows].max()
    assert abs(hits / trials - exact) < 0.01


def test_the_crowd_at_its_ends() -> None:
    there = np.array([0, 0, 1, 1])
    good, tied = np.array([[0.9, 0.8, 0.1, 0.2]]), np.full((1, 4), 0.5)
    assert crowded(good, np.array([0]), there)[0] == 1
    assert crowded(-good, np.array([0]), there)[0] == 0
    assert crowded(tied, np.array([0]), there)[0] == pytest.approx(1 / 20)
    assert np.isnan(crowded(good, np.array([2]), there)[0])


def test_votes() -> None:
    near = np.array([[0.9, 0.8, 0.7, 0.1, 0.0]], np.float32)
    there = np.array([1, 0, 0, 1, 1])
    assert voted(near, np.array([0]), there, k=3)[0] == 1
    assert voted(near, np.array([1]), there, k=1)[0] == 1
    assert voted(near, np.array([1]), there, k=99)[0] == 1  # fewer than k are there


def test_cosines_are_those_of_the_sides() -> None:
    vectors = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    side = np.arange(8) % 2 == 0
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(cosines(products(vectors), side), unit[side] @ unit[~side].T, atol=1e-6)


def test_what_cannot_be_drawn() -> None:
    labels, groups = crossed()
    side = next(partitions(labels, groups, 2, 1, 0))
    with pytest.raises(LabelsError, match="7-way 1-shot episodes need 7 classes"):
        draw(labels, side, 7, 1, 5, 0)
    with pytest.raises(LabelsError, match="0 have them"):
        draw(labels, side, 2, 99, 5, 0)
    with pytest.raises(LabelsError, match="1 groups cannot be divided"):
        list(partitions(labels, np.zeros_like(labels), 2, 1, 0))
    one_group_each = np.repeat(np.arange(3), 4)
    with pytest.raises(LabelsError, match="no group is on both"):
        plan(one_group_each, one_group_each)
    assert len(able(labels, side, 1)) == 6


def test_names_become_numbers() -> None:
    numbers, names = numbered(["b", "a", "b", 3])
    assert names == ["3", "a", "b"] and numbers.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("classes", "groups"), [(4, 4), (10, 6), pytest.param(20, 20, marks=pytest.mark.slow)]
)
def test_intervals_hold_the_truth(classes: int, groups: int) -> None:
    """Classes and groups differ: an interval that took trials as independent would miss it."""
    hits, narrow = 0, 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        by_class = 0.5 * random.standard_normal(classes)[:, None, None]
        by_group = 0.3 * random.standard_normal(groups)[None, :, None]
        values = (by_class + by_group + random.standard_normal((classes, groups, 3))).ravel()
        labels, mates = crossed(classes, groups)
        found, naive = estimate(values, labels, mates), estimate(values)
        hits += found.low <= 0 <= found.high
        narrow += naive.low <= 0 <= naive.high
    assert hits >= 90 > narrow


def test_intervals_where_there_is_little() -> None:
    empty = estimate([])
    assert np.isnan(empty.value)
    single = estimate([1.0, 0.0], np.array([0, 0]))
    assert single.value == 0.5 and np.isnan(single.low)
    rows = estimates([[1, np.nan, 0.0], [np.nan] * 3], np.arange(3))
    assert rows[0].value == 0.5 and np.isnan(rows[1].value)
    assert estimate([0.2] * 9, np.arange(9)).words() == "20.0 % (20.0 to 20.0)"


@pytest.mark.parametrize("common", [0.0, 30.0])
@pytest.mark.parametrize("more", [0, 9])
def test_centred_products_are_those_of_the_space(common: float, more: int) -> None:
    """Fitted to each support side and the unlabelled rows; with a part that all rows have too."""
    random = np.random.default_rng(0)
    rows = common + random.standard_normal((40, 12))
    other = common + 2 + random.standard_normal((more, 12))
    inner_by = centred_products(rows, other)
    for seed in range(3):
        support = np.random.default_rng(seed).random(40) < 0.5
        space = fit("centre+l2", np.concatenate([rows[support], other]))
        moved = space(rows).astype(np.float64)
        assert np.allclose(inner_by(support), moved @ moved.T, atol=1e-5)
    at_the_mean = centred_products([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    assert not at_the_mean(np.array([True, True, False]))[2].any()


def test_a_choice_ranks_as_trials_in_each_space_do() -> None:
    """`choose` has a shorter way for raw and centred vectors, and is divided among threads."""
    random = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(6), 8), np.arange(48)
    vectors = {
        f"layer:{number} mean": (3 + random.standard_normal((6, 10))[labels]
                                 + random.standard_normal((48, 10))).astype(np.float32)
        for number in range(3)
    }  # fmt: skip
    material = Material(vectors, labels, groups, "layer:0 mean")
    trials = plan(labels, groups)
    found = score_all(material, trials)
    assert {one.space for one in found} == {"raw", "centre+l2", "scale+l2", "whiten+l2"}
    for setting, scores in found.items():
        rows = vectors[setting.readings[0]]
        expected = trials.scores(rows, lambda side, r=rows, s=setting: fit(s.space, r[side]))
        assert np.allclose(scores, expected, atol=1e-6, equal_nan=True)
