"""Measures against scikit-learn, closed forms and known cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from penult.analysis import evaluation, metrics
from penult.analysis.clustering import ClusterOptions, agreement, cluster
from penult.analysis.evaluation import evaluate
from penult.analysis.probe import probe_hits
from penult.analysis.space import fit
from penult.analysis.verification import cosines, equal_error, find_pairs
from penult.errors import LabelsError, SpaceError


def blobs(classes: int = 5, each: int = 12, spread: float = 0.5, seed: int = 0) -> tuple:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = random.standard_normal((classes, 8))
    vectors = centres[labels] + spread * random.standard_normal((len(labels), 8))
    return vectors.astype(np.float32), labels


def test_neighbours_are_those_of_scikit_learn() -> None:
    vectors, labels = blobs(spread=1.2)
    groups = np.arange(len(labels)) % 6
    found = metrics.neighbours(vectors, labels, groups, k=1)
    for group in range(6):
        out = groups == group
        model = KNeighborsClassifier(1, metric="cosine").fit(vectors[~out], labels[~out])
        assert np.array_equal(found.correct[out] == 1, model.predict(vectors[out]) == labels[out])
    assert found.occurrence.sum() == len(labels)


def test_average_precision_is_that_of_scikit_learn() -> None:
    vectors, labels = blobs(spread=1.2)
    found = metrics.neighbours(vectors, labels, np.arange(len(labels)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(0, len(labels), 7):
        rest = np.arange(len(labels)) != row
        expected = average_precision_score(labels[rest] == labels[row], (unit @ unit[row])[rest])
        assert found.precision[row] == pytest.approx(expected, abs=1e-6)


def test_a_class_that_is_alone_has_no_precision() -> None:
    vectors, labels = blobs(2, 4)
    labels[0] = 2
    found = metrics.neighbours(vectors, labels, np.arange(8))
    assert np.isnan(found.precision[0]) and np.isfinite(found.precision[1:]).all()
    with pytest.raises(LabelsError, match="all items are of one group"):
        metrics.neighbours(vectors, labels, np.zeros(8, int))


def rate(same: Sequence[float], different: Sequence[float]) -> float:
    kinds = np.repeat([True, False], [len(same), len(different)])
    return equal_error(np.concatenate([same, different]), kinds).rate


def test_equal_error_rate() -> None:
    from scipy.stats import norm

    assert rate([0.9, 0.8], [0.1, 0.2]) == 0
    assert rate([0.1, 0.2], [0.9, 0.8]) == 1
    assert rate([0.5, 0.5], [0.5, 0.5]) == pytest.approx(0.5)
    random = np.random.default_rng(0)
    same, different = random.standard_normal(50_000) + 1, random.standard_normal(80_000) - 1
    assert rate(same, different) == pytest.approx(norm.cdf(-1), abs=0.004)
    with pytest.raises(LabelsError, match="pairs of both kinds; received 0 of one class"):
        rate([], [0.1])
    with pytest.raises(LabelsError, match="received 1 of one class and 0 of two"):
        rate([0.1], [])


def test_pairs_of_a_group_are_left_out() -> None:
    vectors, labels = blobs(3, 6)
    groups = np.arange(18) % 3
    found = find_pairs(labels, groups, most=200)
    assert found.same.sum() == 3 * 12 and (~found.same).sum() == 3 * 24
    few = find_pairs(labels, groups, most=20)
    assert few.same.sum() <= 10 and 0 < len(few.left) <= 20
    assert (groups[few.left] != groups[few.right]).all()
    assert (np.abs(cosines(vectors, few)) <= 1 + 1e-9).all()


def test_pairs_that_were_drawn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of two groups, counted one by one; a note only where some were left out."""
    vectors, labels = blobs(3, 20)
    groups = np.arange(60) % 7
    every = sum(a != b for a, b in itertools.combinations(groups.tolist(), 2))
    found = find_pairs(labels, groups, most=2000)
    assert found.possible == len(found.left) == every and found.note() == ""
    few = find_pairs(labels, groups, most=500)
    assert few.note() == f"{len(few.left):,} of {every:,} pairs, drawn with seed 0"
    named = [f"c{label}" for label in labels]
    whole = evaluation.evaluate(vectors.astype(np.float32), named)
    assert not any("pairs" in note for note in whole.notes)
    monkeypatch.setattr(evaluation, "PAIRS", 500)
    drawn = evaluation.evaluate(vectors.astype(np.float32), named)
    assert any("equal error rate is of" in n and "of 1,770 pairs" in n for n in drawn.notes)


def test_kmeans_is_that_of_cluster() -> None:
    """Directions, whatever the lengths: the same agreement as `cluster` finds with as many."""
    vectors, labels = blobs(4, 25, spread=0.6)
    random = np.random.default_rng(3)
    rows = (vectors * random.lognormal(sigma=1.5, size=(len(vectors), 1))).astype(np.float32)
    names = [f"c{label}" for label in labels]
    found = evaluation.evaluate(rows, names).figures
    clustered = cluster(rows, ClusterOptions("kmeans", 4), names)
    agreed = agreement(clustered.numbers, names)
    assert agreed is not None
    assert found["k-means, ARI"] == pytest.approx(agreed.ari, abs=1e-9)
    assert found["k-means, ARI"] > metrics_of_lengths(rows, labels) + 0.1


def metrics_of_lengths(rows: np.ndarray, labels: np.ndarray) -> float:
    """The agreement of k-means by Euclidean distance."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    return float(
        adjusted_rand_score(labels, KMeans(4, n_init=10, random_state=0).fit_predict(rows))
    )


def test_clusters_of_blobs() -> None:
    vectors, labels = blobs(spread=0.02)
    assert metrics.clustering(vectors, labels) == {"ari": 1.0, "nmi": 1.0}
    noise = np.random.default_rng(0).standard_normal((60, 8))
    assert metrics.clustering(noise, labels)["ari"] < 0.2


def test_hubs() -> None:
    assert metrics.hubness(np.full(50, 5)) == 0
    assert metrics.hubness(np.r_[np.full(49, 1), 300]) > 6


def test_probe_never_sees_a_group_twice() -> None:
    """Vectors that tell the group, and the label only within it: no use across groups."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    labels = np.tile([0, 1], 60)
    code = random.standard_normal((24, 30))[groups * 2 + labels]
    vectors = code + 0.01 * random.standard_normal((120, 30))
    leaked = np.nanmean(probe_hits(vectors, labels, np.arange(120)))
    held = np.nanmean(probe_hits(vectors, labels, groups))
    assert leaked > 0.95 and held < 0.75
    true, kinds = blobs(3, 20, 0.1)
    assert np.nanmean(probe_hits(true, kinds, np.arange(60))) == 1


def test_label_free_ranks() -> None:
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 8)))
    assert metrics.rank_me(turned) == pytest.approx(8, rel=1e-4)
    assert metrics.rank_me(np.outer(np.arange(1, 9), np.ones(4))) == pytest.approx(1, abs=1e-3)
    assert metrics.rank_me(np.zeros((4, 3))) == 0
    ranks = np.arange(1, 9)
    centred, _ = np.linalg.qr(turned - turned.mean(axis=0))
    assert metrics.alpha_req(centred * ranks**-0.75) == pytest.approx(1.5, abs=1e-6)
    assert np.isnan(metrics.alpha_req(np.ones((5, 4))))


def test_within_damps_what_varies_within_classes() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 5)
    vectors = random.standard_normal((40, 6))[labels] + 0.3 * random.standard_normal((200, 6))
    vectors[:, 2] += 6 * random.standard_normal(200)  # a nuisance
    one = evaluate(vectors.astype(np.float32), [str(label) for label in labels])
    rest = np.r_[labels[:100].tolist(), [None] * 100]
    space = fit("scale+within+l2", vectors, rest)
    two = evaluate(vectors.astype(np.float32), [str(label) for label in labels], fitted=space)
    name = "20-way 1-shot"
    assert two.estimates[name].value > one.estimates[name].value + 0.2
    with pytest.raises(SpaceError, match="a class of two vectors or more"):
        fit("within", vectors[:5], list("abcde"))
    with pytest.raises(SpaceError, match="got none"):
        fit("within", vectors)
    with pytest.raises(SpaceError, match="are all the same"):
        fit("within", np.ones((4, 3)), [0, 0, 1, 1])


def test_an_evaluation_repeats_and_says_what_it_left_out() -> None:
    vectors, labels = blobs()
    names: list[str | None] = [f"class {label}" for label in labels]
    names[0] = None
    one, two = (evaluate(vectors, names, space="scale+l2") for _ in range(2))
    assert one == two
    assert one.items == 59 and one.classes == 5 and one.notes == ("1 of 60 rows have no class",)
    assert one.estimates["5-way 1-shot"].value > 0.8
    assert list(one.per_class.values()) == sorted(one.per_class.values())


def test_equally_near_rows_are_not_in_favour_of_the_first_class() -> None:
    """Vectors that tell nothing: rows in the order of their classes give no better figures."""
    labels = np.repeat(np.arange(4), 25)
    near = metrics.neighbours(np.ones((100, 3)), labels, np.arange(100))
    first = near.precision[labels == 0].mean()
    assert abs(first - near.precision[labels == 3].mean()) < 0.2 and first < 0.5
    names = [f"class {label}" for label in labels]
    with pytest.raises(SpaceError, match="all 100 vectors are the same"):
        evaluate(np.ones((100, 3), np.float32), names)


def test_an_evaluation_of_very_many_classes_names_them_rightly() -> None:
    """Class 7 alone is noise, and it is not shown under another's name."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 4)
    rows = 5 * random.standard_normal((60, 8))[labels] + 0.1 * random.standard_normal((240, 8))
    rows[labels == 7] = 5 * random.standard_normal((4, 8))
    groups = np.where(labels == 3, "one", np.arange(240).astype(str)).tolist()
    found = evaluate(rows.astype(np.float32), [f"{label:02}" for label in labels], groups)
    assert next(iter(found.per_class)) == "07" and "03" not in found.per_class
    assert found.classes == 59


def test_what_cannot_be_evaluated() -> None:
    vectors, labels = blobs()
    names = [str(label) for label in labels]
    with pytest.raises(LabelsError, match="all 60 items are of one class"):
        evaluate(vectors, ["a"] * 60)
    with pytest.raises(LabelsError, match="60 vectors, 3 labels"):
        evaluate(vectors, ["a", "b", "c"])
    with pytest.raises(LabelsError, match="of 60 classes 0 have two items or more"):
        evaluate(vectors, [str(row) for row in range(60)])
    with pytest.raises(LabelsError, match="of 5 classes 0 have two groups or more"):
        evaluate(vectors, names, names)
    with pytest.raises(LabelsError, match="--ways 9 asks for more classes than there are: 5"):
        evaluate(vectors, names, ways=9)
    with pytest.raises(SpaceError, match="fitted to the labels"):
        evaluate(vectors, names, space="within+l2")
    vectors[3, 1] = np.nan
    with pytest.raises(SpaceError, match="the first at row 3"):
        evaluate(vectors, names)
