"""Calibration against scipy and tables made by hand: temperatures, Platt, levels, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from penult.analysis.metrics import calibration_error
from penult.errors import LabelsError
from penult.fewshot.calibration import Probabilities, Unknowns, probabilities

NAN, INF = np.nan, np.inf
NOTHING = np.zeros(0)


def grid(loss, *spans):
    """The smallest place of a loss on a grid that is refined six times: no gradient, no simplex."""
    spans = [list(span) for span in spans]
    for _ in range(6):
        axes = [np.linspace(low, high, 41) for low, high in spans]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        best = points[np.argmin([loss(*point) for point in points])]
        for span, place in zip(spans, best, strict=True):
            width = (span[1] - span[0]) / 8
            span[:] = place - width, place + width
    return best


def held_out(n: int = 30, classes: int = 4, seed: int = 0):
    """Scores (n, K) in which the own class is higher, and marks: 1 its own, -1 another's."""
    random = np.random.default_rng(seed)
    own = np.arange(n) % classes
    scores = 0.4 * random.standard_normal((n, classes)) + 0.5 * np.eye(classes)[own]
    return scores, np.where(np.eye(classes)[own] > 0, 1, -1).astype(np.int8)


def test_softmax_and_sigmoid() -> None:
    scores = np.array([[0.2, 0.7, -0.1], [1.0, 1.0, -INF]])
    found = Probabilities(0.25)(scores)
    np.testing.assert_allclose(found, special.softmax(scores / 0.25, axis=1), rtol=1e-12)
    assert found[1].tolist() == [0.5, 0.5, 0.0]
    each = Probabilities(0.25, 0.3, True)(scores)
    np.testing.assert_allclose(each, special.expit((scores - 0.3) / 0.25), rtol=1e-12)
    nothing = Probabilities(0.25)(np.full((1, 3), -INF))
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]
    large = Probabilities(1e-3)(np.array([[1000.0, 999.0]]))
    assert large.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("unrelated", [NOTHING, np.array([0.1, 0.5, 0.2, 0.4])])
def test_a_temperature_has_the_largest_likelihood(unrelated: np.ndarray) -> None:
    scores, marks = held_out()
    scores[3, 2] = NAN  # not scored, and a row of which no other class was
    scores[5] = [NAN, 0.4, NAN, NAN]
    guess = 1.2 * unrelated.std() if len(unrelated) else 0.3

    def loss(log: float) -> float:
        total = 0.5 * (log - math.log(guess)) ** 2
        for row, own in zip(scores, marks > 0, strict=True):
            known = ~np.isnan(row)
            if known.sum() > 1:
                total -= special.log_softmax(row[known] / math.exp(log))[own[known]].item()
        return total

    (expected,) = grid(loss, (math.log(0.01), math.log(10)))
    found = probabilities(scores, marks, False, unrelated)
    assert found.temperature == pytest.approx(math.exp(expected), rel=1e-3)
    assert found.offset == 0 and not found.several
    assert found.basis == "a temperature fitted to 29 held-out examples"


def test_the_guess_weighs_as_much_as_one_example() -> None:
    """One example that is right whatever the temperature: no certainty from it."""
    scores, marks = np.array([[0.9, 0.1]]), np.array([[1, -1]], np.int8)
    found = probabilities(scores, marks, False, NOTHING)
    expected = optimize.brentq(
        # the derivative of log(1 + exp(-0.8 / t)) + (log t - log 0.3)² / 2 by log t
        lambda log: special.expit(-0.8 / math.exp(log)) * 0.8 / math.exp(log)
        + (log - math.log(0.3)),
        -6.0,
        2.0,
    )  # fmt: skip
    assert found.temperature == pytest.approx(math.exp(expected), rel=1e-3)
    assert found.basis == "a temperature fitted to 1 held-out example"


def test_a_row_of_several_own_classes_counts_their_sum() -> None:
    scores = np.array([[0.5, 0.3, -0.4], [0.6, 0.1, 0.0]] * 4)
    marks = np.array([[1, 1, -1], [1, -1, -1]] * 4, np.int8)

    def loss(log: float) -> float:
        shares = special.softmax(scores / math.exp(log), axis=1)
        right = (shares * (marks > 0)).sum(axis=1)
        return float(-np.log(right).sum() + 0.5 * (log - math.log(0.3)) ** 2)

    (expected,) = grid(loss, (math.log(0.01), math.log(10)))
    found = probabilities(scores, marks, False, NOTHING)
    assert found.temperature == pytest.approx(math.exp(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([[NAN, NAN]], "nothing was held out"),
        ([[0.5, NAN]], "no other class"),
        ([[-INF, 0.5]], "its own class is ruled out"),
        ([[NAN, 0.5]], "its own class was not scored"),
    ],
)
def test_where_nothing_can_be_measured_a_spread_is_the_guess(scores: list, why: str) -> None:
    marks = np.array([[1, -1]], np.int8)
    found = probabilities(np.array(scores), marks, False, np.array([0.0, 1.0, 2.0]))
    assert found.temperature == pytest.approx(1.2 * math.sqrt(2 / 3)), why
    assert "guessed, not measured" in found.basis
    assert probabilities(np.array(scores), marks, False, np.arange(2.0)).temperature == 0.3
    assert probabilities(np.array(scores), marks, False, np.ones(9)).temperature == 0.3


def test_platt_has_the_largest_likelihood_with_both_sides_alike() -> None:
    scores, marks = held_out()
    scores[2, 1], scores[3, 0], marks[4, 1] = NAN, -INF, 0  # 0: open, neither yes nor no
    pairs = [(s, m) for s, m in zip(scores.flat, marks.flat, strict=True) if np.isfinite(s) and m]
    values, truth = np.array(pairs).T
    yes = truth > 0

    def loss(log: float, offset: float) -> float:
        shares = np.clip(special.expit((values - offset) / math.exp(log)), 1e-300, 1 - 1e-16)
        right, wrong = -np.log(shares[yes]).mean(), -np.log(1 - shares[~yes]).mean()
        return float(len(values) * (right + wrong) / 2 + 0.5 * (log - math.log(0.3)) ** 2)

    log, offset = grid(loss, (math.log(0.02), math.log(5)), (-1, 2))
    found = probabilities(scores, marks, True, NOTHING)
    assert found.temperature == pytest.approx(math.exp(log), rel=2e-3)
    assert found.offset == pytest.approx(offset, abs=2e-3)
    assert found.several
    assert f"fitted to {yes.sum()} held-out pairs" in found.basis
    assert f"and {(~yes).sum()} that do not" in found.basis


@pytest.mark.parametrize("mark", [1, -1])
def test_platt_of_one_side_is_a_guess(mark: int) -> None:
    scores = np.array([[0.2, 0.6], [NAN, -INF]])
    found = probabilities(scores, np.full((2, 2), mark, np.int8), True, NOTHING)
    assert (found.temperature, found.offset, found.several) == (0.3, pytest.approx(0.4), True)
    assert "no example could be held out on both sides" in found.basis
    none = probabilities(np.full((2, 2), NAN), np.full((2, 2), mark, np.int8), True, NOTHING)
    assert none.offset == 0.5


@pytest.mark.parametrize("several", [False, True])
def test_no_temperature_is_below_a_thousandth(several: bool) -> None:
    """Scores that hardly differ: what would fit is steeper than that."""
    scores = np.array([[2e-5, 0.0], [0.0, 2e-5]] * 20)
    marks = np.array([[1, -1], [-1, 1]] * 20, np.int8)
    found = probabilities(scores, marks, several, np.array([0.0, 1e-5, 2e-5]))
    assert found.temperature == pytest.approx(1e-3, rel=1e-3)


def test_ranks_by_hand() -> None:
    found = Unknowns(np.array([0.1, 0.2, 0.2, 0.4]), "four")
    asked = np.array([0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.9])
    np.testing.assert_allclose(found.p_values(asked), np.array([1, 2, 2, 4, 4, 5, 5]) / 5)
    other = Unknowns(found.scores, "four", background=True)
    np.testing.assert_allclose(other.p_values(asked), np.array([0, 1, 1, 3, 3, 4, 4]) / 4)


def test_levels_by_rank() -> None:
    found = Unknowns(np.arange(1.0, 20.0), "nineteen")
    assert found.threshold() == (1.0, "nineteen; by rank (conformal)")  # 0.05 of 20 is the first
    assert found.threshold(0.1)[0] == 2.0
    assert found.threshold(0.149)[0] == 2.0
    assert found.threshold(0.95)[0] == 19.0
    background = Unknowns(np.arange(1.0, 11.0), "ten", background=True)
    assert background.threshold(0.1) == (10.0, "ten")  # the tenth part is higher or equal
    assert background.threshold(0.5)[0] == 6.0


def test_levels_by_a_t_distribution() -> None:
    """The interval of a new value of a normal distribution, as textbooks have it."""
    scores = np.array([-INF, 0.3, 0.5, 0.6, 0.8])
    finite = scores[1:]
    value, basis = Unknowns(scores, "few").threshold(0.05)
    low, _ = stats.t.interval(0.9, 3, finite.mean(), math.sqrt(finite.var(ddof=1) * (1 + 1 / 4)))
    assert value == pytest.approx(low)
    assert basis == "few; by a t distribution, since a rank at 0.05 needs 19 scores"


def test_levels_of_few_cosines() -> None:
    """They lean to the left: a new one is normal by Fisher's transformation. Two examples of a
    class, each held out, have one cosine, which counts once."""
    cosines = np.array([0.6, 0.8, 0.9, 0.95])
    value, basis = Unknowns(cosines, "few", cosines=True).threshold(0.05)
    moved = 0.5 * np.log((1 + cosines) / (1 - cosines))
    scale = math.sqrt(moved.var(ddof=1) * (1 + 1 / 4))
    low, _ = stats.t.interval(0.9, 3, moved.mean(), scale)
    assert value == pytest.approx((math.exp(2 * low) - 1) / (math.exp(2 * low) + 1))
    assert value < Unknowns(cosines, "few").threshold(0.05)[0]
    twice = Unknowns(np.repeat(cosines, 2), "few", cosines=True)
    assert twice.threshold(0.05) == (value, basis)
    with pytest.raises(LabelsError, match="2 held-out scores are too few"):
        Unknowns(np.repeat(cosines[:2], 2), "few", cosines=True).threshold(0.05)
    same = Unknowns(np.array([0.9, 0.99, 1.0]), "", cosines=True).threshold(0.05)[0]
    assert -1 < same < 0.9


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, NAN])
def test_levels_that_cannot_be(level: float) -> None:
    with pytest.raises(LabelsError, match="lies between 0 and 1"):
        Unknowns(np.arange(99.0), "").threshold(level)


def test_too_few_scores() -> None:
    with pytest.raises(LabelsError, match=r"2 held-out scores are too few .* 3 are needed"):
        Unknowns(np.array([-INF, 0.1, 0.2]), "").threshold()
    Unknowns(np.array([0.1, 0.2, 0.3]), "").threshold()


def test_calibration_error_by_hand() -> None:
    """Bins of a fifth: (0.1, 0.15 | 0), (0.5 | 1), (0.9, 1.0, 1.0 | 1, 1, 0)."""
    said, right = [0.1, 0.15, 0.5, 0.9, 1.0, 1.0], [0, 0, 1, 1, 1, 0]
    expected = 2 / 6 * 0.125 + 1 / 6 * 0.5 + 3 / 6 * abs(2 / 3 - 2.9 / 3)
    assert calibration_error(said, right, 5) == pytest.approx(expected)
    assert calibration_error([0.9, 0.95], [1, 0], 1) == pytest.approx(0.425)
    # Fifteen bins if nothing is said: 0.06 and 0.07 are of two, which one bin would average out.
    assert calibration_error([0.06, 0.07], [1, 0]) == pytest.approx((0.94 + 0.07) / 2)
    assert calibration_error([0.070, 0.124], [1, 0]) == pytest.approx(abs(0.5 - 0.097))
