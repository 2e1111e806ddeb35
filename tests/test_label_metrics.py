"""Measures of predicted labels and values against scikit-learn, scipy and formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    r2_score,
)

from penult.analysis import metrics

Arrays = tuple[np.ndarray, np.ndarray]


def labelled(rows: int = 120, classes: int = 6, steps: int = 0, seed: int = 0) -> Arrays:
    """Truth (n, K), and scores (n, K) that know something of it; steps: of so many values only."""
    random = np.random.default_rng(seed)
    truth = random.random((rows, classes)) < np.linspace(0.05, 0.6, classes)
    truth[0] = True  # at least one of each
    scores = truth + random.standard_normal((rows, classes))
    return truth, np.round(scores * steps) / steps if steps else scores


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_average_precision_of_each_class_is_that_of_scikit_learn(steps: int) -> None:
    truth, scores = labelled(steps=steps)
    found = metrics.average_precisions(truth, scores)
    expected = average_precision_score(truth, scores, average=None)
    assert found == pytest.approx(expected, abs=1e-12)
    counts = np.random.default_rng(1).integers(0, 4, len(truth))
    again = average_precision_score(truth.repeat(counts, 0), scores.repeat(counts, 0), average=None)
    assert metrics.average_precisions(truth, scores, counts) == pytest.approx(again, abs=1e-12)


def test_labels_that_are_not_known_do_not_count() -> None:
    truth, scores = labelled()
    known = np.random.default_rng(2).random(truth.shape) < 0.7
    found = metrics.average_precisions(truth, scores, known)
    each, _, _ = metrics.f1_scores(truth, scores > 0.5, known)
    for number in range(truth.shape[1]):
        rows = known[:, number]
        mine, guess = truth[rows, number], scores[rows, number]
        assert found[number] == pytest.approx(average_precision_score(mine, guess), abs=1e-12)
        assert each[number] == pytest.approx(f1_score(mine, guess > 0.5), abs=1e-12)


def test_a_class_without_positives_has_no_precision_and_no_f1() -> None:
    truth, scores = labelled()
    truth[:, 2] = False
    found = metrics.average_precisions(truth, scores)
    assert np.isnan(found[2]) and np.isfinite(np.delete(found, 2)).all()
    each, micro, macro = metrics.f1_scores(truth, scores > 0)
    assert np.isnan(each[2]) and macro == pytest.approx(np.delete(each, 2).mean())
    assert micro == pytest.approx(f1_score(truth, scores > 0, average="micro"))
    thresholds = metrics.best_thresholds(truth, scores)
    assert np.isnan(thresholds[2]) and not (scores[:, 2] >= thresholds[2]).any()
    assert np.isnan(metrics.average_precisions(truth[:0], scores[:0])).all()
    assert np.isnan(metrics.best_thresholds(truth[:0], scores[:0])).all()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_lwlrap_is_that_of_the_challenge(steps: int) -> None:
    """The reference code of DCASE 2019 task 2 weights scikit-learn's LRAP by the number of labels;
    rows without labels are left out."""
    truth, scores = labelled(steps=steps, seed=3)
    truth[5] = False
    rows = truth.any(axis=1)
    expected = label_ranking_average_precision_score(
        truth[rows], scores[rows], sample_weight=truth[rows].sum(axis=1)
    )
    assert metrics.lwlrap(truth, scores) == pytest.approx(expected, abs=1e-12)
    counts = np.random.default_rng(4).integers(0, 4, len(truth))
    again = metrics.lwlrap(truth.repeat(counts, 0), scores.repeat(counts, 0))
    assert metrics.lwlrap(truth, scores, counts) == pytest.approx(again, abs=1e-12)


def test_lwlrap_by_hand() -> None:
    """Two labels at places 1 and 3 of one item (1/1 and 2/3), one label at place 2 of another."""
    truth = np.array([[1, 0, 1], [0, 1, 0]], bool)
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.1]])
    assert metrics.lwlrap(truth, scores) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert np.isnan(metrics.lwlrap(np.zeros((2, 3)), scores))


def test_f1_is_that_of_scikit_learn() -> None:
    truth, scores = labelled()
    predicted = scores > 0.5
    each, micro, macro = metrics.f1_scores(truth, predicted)
    assert each == pytest.approx(f1_score(truth, predicted, average=None))
    assert micro == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert macro == pytest.approx(f1_score(truth, predicted, average="macro"))
    counts = np.random.default_rng(5).integers(0, 4, len(truth))
    _, weighted, _ = metrics.f1_scores(truth, predicted, counts)
    again = f1_score(truth, predicted, average="micro", sample_weight=counts)
    assert weighted == pytest.approx(again)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_threshold_has_a_higher_f1(steps: int) -> None:
    truth, scores = labelled(steps=steps, seed=6)
    thresholds = metrics.best_thresholds(truth, scores)
    each, _, _ = metrics.f1_scores(truth, scores >= thresholds)
    for number in range(truth.shape[1]):
        mine, guess = truth[:, number], scores[:, number]
        tried = [f1_score(mine, guess >= one) for one in np.unique(guess)]
        assert each[number] == pytest.approx(max(tried), abs=1e-12)
    assert not np.isin(thresholds, scores)[thresholds > scores.min(axis=0)].any()


def test_thresholds_of_separate_classes_lie_half_way() -> None:
    truth = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.9], [0.7, 0.9], [0.3, 0.1], [0.1, 0.0]])
    assert metrics.best_thresholds(truth, scores) == pytest.approx([0.5, 0.5])
    weights = np.array([[1, 1], [0, 0], [1, 1], [1, 1]])
    assert metrics.best_thresholds(truth, scores, weights)[1] == pytest.approx(0.5)
    tight = np.array([[np.nextafter(0.5, 1)], [0.5], [0.5], [0.5]])
    chosen = metrics.best_thresholds(truth[:1].repeat(4, 0)[:, :1] & [[1], [0], [0], [0]], tight)
    assert (tight >= chosen).ravel().tolist() == [True, False, False, False]


def values(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    truth = 40 + 12 * random.standard_normal(200)
    return truth, 5 + 0.8 * truth + 6 * random.standard_normal(200)


def test_measures_of_values_are_those_of_others() -> None:
    truth, predicted = values()
    assert metrics.r_squared(truth, predicted) == pytest.approx(r2_score(truth, predicted))
    assert metrics.mean_absolute_error(truth, predicted) == pytest.approx(
        mean_absolute_error(truth, predicted)
    )
    assert metrics.pearson(truth, predicted) == pytest.approx(
        stats.pearsonr(truth, predicted).statistic
    )
    # Lin 1989, equation of the sample coefficient: 2 s12 / (s1² + s2² + (m1 − m2)²), all over n.
    s12 = np.mean((truth - truth.mean()) * (predicted - predicted.mean()))
    below = truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2
    assert metrics.concordance(truth, predicted) == pytest.approx(2 * s12 / below)


def test_weights_of_values_are_repetitions() -> None:
    truth, predicted = values(1)
    counts = np.random.default_rng(1).integers(0, 4, len(truth))
    for measure in (
        metrics.r_squared,
        metrics.concordance,
        metrics.mean_absolute_error,
        metrics.pearson,
    ):
        again = measure(truth.repeat(counts), predicted.repeat(counts))
        assert measure(truth, predicted, counts) == pytest.approx(float(again))
        both = measure(np.stack([truth, predicted], 1), np.stack([predicted, truth], 1))
        assert both == pytest.approx(
            [float(measure(truth, predicted)), float(measure(predicted, truth))]
        )


def test_concordance_sees_a_shift_and_a_scale() -> None:
    truth, _ = values()
    assert metrics.concordance(truth, truth) == pytest.approx(1)
    assert metrics.concordance(truth, -truth) < 0
    shift = 12.0
    expected = 2 * truth.var() / (2 * truth.var() + shift**2)
    assert metrics.concordance(truth, truth + shift) == pytest.approx(expected)
    assert metrics.pearson(truth, truth + shift) == pytest.approx(1)


def test_constant_values() -> None:
    truth, predicted = values()
    flat = np.full(len(truth), 0.1)
    assert np.isnan(metrics.r_squared(flat, predicted))
    assert np.isnan(metrics.pearson(flat, predicted)) and np.isnan(metrics.pearson(truth, flat))
    assert metrics.concordance(truth, flat) == pytest.approx(0, abs=1e-12)
    assert metrics.concordance(flat, predicted) == pytest.approx(0, abs=1e-12)
    assert np.isnan(metrics.concordance(flat, flat))
    assert metrics.mean_absolute_error(flat, flat) == 0
    none = np.zeros(len(truth))
    assert np.isnan(metrics.r_squared(truth, predicted, none))
