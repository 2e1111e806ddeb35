"""Classes from examples: scores, levels and probabilities on vectors whose truth is known."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import binom

from penult.analysis.metrics import calibration_error
from penult.analysis.space import RAW, fit
from penult.analysis.verification import verify
from penult.errors import LabelsError, SpaceError, UsageError
from penult.fewshot import scorers, storage
from penult.fewshot.calibration import Unknowns, probabilities
from penult.fewshot.events import Window, merged, smoothed, to_csv, to_raven
from penult.fewshot.examples import Examples
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.zeroshot import conse, worded

DIM = 16


def blobs(
    n: int, kinds: int = 4, spread: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """n vectors of each of so many kinds around directions that are at right angles."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(kinds), n)
    noise = spread * random.standard_normal((len(names), DIM)) / DIM**0.5 * 2
    return (np.eye(DIM)[names] + noise).astype(np.float32), names


def taught_examples(vectors: np.ndarray, names: np.ndarray) -> Examples:
    examples = Examples.empty(DIM)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        examples = examples.with_marks(
            f"c{name}", [(f"{row}.wav", "whole") for row in rows], vectors[rows]
        )
    return examples


def taught(n: int, method: str | None = None, seed: int = 0, **options: object) -> FittedClasses:
    vectors, names = blobs(n, seed=seed)
    return FittedClasses(taught_examples(vectors, names), fit(RAW, vectors), method, **options)  # type: ignore[arg-type]


def test_prototypes_are_the_means_of_directions() -> None:
    vectors, names = blobs(5)
    targets = np.where(names[:, None] == np.arange(4), 1, -1).astype(np.int8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.stack([unit[names == k].mean(axis=0) for k in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(scorers.fit("prototype", vectors, targets)(7 * vectors), unit @ means.T)


@pytest.mark.parametrize("method", scorers.METHODS)
def test_every_method_finds_the_classes(method: str) -> None:
    fresh, truth = blobs(50, seed=9)
    judged = taught(8, method).judge(fresh)
    assert (judged.label == truth).mean() > 0.9
    assert np.allclose(judged.probability.sum(axis=1), 1)
    assert np.array_equal(judged.assigned.argmax(axis=1), judged.label)


@pytest.mark.parametrize("method", scorers.METHODS)
def test_a_hard_negative_changes_what_is_said(method: str) -> None:
    vectors, names = blobs(8)
    examples = taught_examples(vectors, names)
    lookalike = (np.eye(DIM)[0] + 0.9 * np.eye(DIM)[9]).astype(np.float32)[None]
    others = lookalike + 0.02 * np.random.default_rng(1).standard_normal((6, DIM))
    space = fit(RAW, vectors)
    before = FittedClasses(examples, space, method).judge(others)
    assert (before.label == 0).all()
    keys = [(f"no{i}", "whole") for i in range(3)]
    worse = examples.with_marks("c0", keys, others[:3], "no")
    after = FittedClasses(worse, space, method).judge(others)
    assert (after.score[:, 0] < before.score[:, 0] - 0.05).all()
    if method in ("prototype", "knn"):
        assert (after.label != 0).all()
        assert (after.probability[:, 0] == 0).all()
    members = FittedClasses(worse, space, method).judge(vectors[names == 0])
    assert (members.label == 0).mean() > 0.8


def test_an_agile_head_minimises_the_weighted_loss() -> None:
    """Against a general minimiser of the loss that docs/classes.md states."""
    random = np.random.default_rng(0)
    marked, weak = random.standard_normal((5, 3)), random.standard_normal((40, 3))
    targets = np.array([[1], [1], [-2], [-1], [0]], np.int8)  # the last one is open: not used
    rows = np.concatenate([marked[:4], weak])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sign = np.array([1.0, 1.0, *[-1.0] * 42])
    # Both sides weigh as much as the four marks; all weak negatives as four counter-examples do.
    weights = np.array([2.0, 2.0, *[4 / 6] * 2, *[4 * 4 / 6 / 40] * 40])

    def loss(at: np.ndarray) -> float:
        margins = sign * (rows @ at[:3] + at[3])
        return float(30 * (weights * np.logaddexp(0, -margins)).sum() + 0.5 * (at[:3] ** 2).sum())

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    found = scorers.fit("agile", marked, targets, 7 * weak)(np.eye(3))
    assert np.allclose(found[:, 0], best[:3] + best[3], atol=2e-2, rtol=1e-3)


def test_one_example_and_any_rows_are_enough_for_an_agile_head() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((300, DIM)).astype(np.float32)
    rows[:30] += 8 * np.eye(DIM, dtype=np.float32)[0]  # a tenth of them are members
    one = Examples.empty(DIM).with_marks("c", [("0", "whole")], rows[:1])
    found = FittedClasses(one, fit(RAW, rows), "agile", background=lambda: rows[1:])
    scores = found.judge(rows[1:]).score[:, 0]
    assert (np.argsort(-scores)[:29] < 29).mean() > 0.9
    with pytest.raises(LabelsError, match="agile head needs counter-examples"):
        FittedClasses(one, fit(RAW, rows), "agile").judge(rows)


def test_unsure_is_never_used() -> None:
    vectors, names = blobs(5)
    examples = taught_examples(vectors, names)
    more = examples.with_marks("c0", [("x", "whole")], vectors[names == 1][:1] * 3, "unsure")
    asked = blobs(20, seed=3)[0]
    one, other = (FittedClasses(e, fit(RAW, vectors)).judge(asked, 0.1) for e in (examples, more))
    assert np.array_equal(one.score, other.score) and np.array_equal(one.label, other.label)


def test_several_classes_at_once() -> None:
    random = np.random.default_rng(0)
    has = random.random((80, 3)) < 0.5
    vectors = (has @ np.eye(3, DIM) + 0.1 * random.standard_normal((80, DIM))).astype(np.float32)
    examples = Examples.empty(DIM)
    for k in range(3):
        rows = np.flatnonzero(has[:50, k])
        keys = [(str(row), "whole") for row in rows]
        examples = examples.with_marks(f"c{k}", keys, vectors[rows])
    found = FittedClasses(examples, fit(RAW, vectors), "ridge")
    assert found.several
    asked = has[50:].any(axis=1)
    said = found.judge(vectors[50:][asked]).assigned
    assert (said == has[50:][asked]).mean() > 0.85
    assert (said.sum(axis=1) > 1).any()


def test_the_method_is_chosen_and_the_simplest_wins_a_draw() -> None:
    assert taught(1).method == "prototype"
    assert np.isnan(taught(1).accuracy["prototype"])
    easy = taught(8)
    assert easy.method == "prototype"
    # Weak negatives are for ranking the rows of a collection: `agile` is taken when it is named.
    assert set(easy.accuracy) == set(scorers.METHODS) - {"agile"}
    # Each class lies on both sides of the middle: a mean says nothing, neighbours do.
    random = np.random.default_rng(0)
    names = np.repeat([0, 1], 60)
    vectors = np.eye(DIM)[names] * random.choice([-1, 1], 120)[:, None]
    vectors = (vectors + 0.05 * random.standard_normal((120, DIM))).astype(np.float32)
    assert FittedClasses(taught_examples(vectors, names), fit(RAW, vectors)).method == "knn"


def test_held_out_scores_never_saw_the_example() -> None:
    vectors, names = blobs(3, spread=2.0)
    targets = np.where(names[:, None] == np.arange(4), 1, -1).astype(np.int8)
    groups = scorers.groups_of(vectors, [str(i) for i in range(len(names))])
    found = scorers.held_out("prototype", vectors, targets, groups)
    for row in range(len(names)):
        rest = np.arange(len(names)) != row
        expected = scorers.fit("prototype", vectors[rest], targets[rest])(vectors[row][None])
        assert np.allclose(found.scores[row], expected[0])


def test_parts_of_one_item_equal_vectors_and_groups_stay_together() -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[3] = vectors[0]
    ids = ["a", "a", "b", "c", "d", "e"]
    assert len(set(scorers.groups_of(vectors, ids)[[0, 1, 3]])) == 1
    assert len(set(scorers.groups_of(vectors, ids))) == 4
    named = [None, None, "s", None, "s", None]
    groups = scorers.groups_of(vectors, ids, named)
    assert groups[2] == groups[4] and len(set(groups)) == 3


@pytest.mark.parametrize("level", [0.02, 0.05, 0.2])
def test_the_level_holds_on_average(level: float) -> None:
    """Over many draws of examples the share of members that is called unknown is about the level,
    and not above it by more than chance allows."""
    rates = []
    for seed in range(60):
        fresh, _ = blobs(50, seed=1000 + seed)
        rates.append((taught(15, "prototype", seed).judge(fresh, level).label < 0).mean())
    error = np.std(rates, ddof=1) / len(rates) ** 0.5
    assert np.mean(rates) <= level + 3 * error
    assert np.mean(rates) >= level / 3


@given(n=st.integers(19, 200), level=st.floats(0.05, 0.5), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_ranks_are_exact(n: int, level: float, seed: int) -> None:
    """Conformal by ranks: P(score < threshold) ≤ level, for scores drawn alike."""
    random = np.random.default_rng(seed)
    below = sum(
        (fresh := random.standard_normal(n + 1))[-1]
        < Unknowns(np.sort(fresh[:-1]), "").threshold(level)[0]
        for _ in range(200)
    )
    assert below <= binom.ppf(0.9999, 200, level)


def test_unknowns_are_found_and_p_values_agree_with_the_level() -> None:
    found = taught(20)
    strange = (np.eye(DIM)[10:14] + 0.05).astype(np.float32)
    assert (found.judge(strange, 0.05).label == -1).all()
    assert (found.judge(strange).label >= 0).all()
    asked = np.concatenate([strange, blobs(20, seed=5)[0]])
    judged = found.judge(asked, 0.05)
    assert np.array_equal(judged.label < 0, judged.p_value <= 0.05)


def test_what_a_level_rests_on_is_said() -> None:
    assert "by rank" in taught(20).level(0.05).basis
    assert "t distribution" in taught(3).level(0.05).basis
    assert "against the classes of the others" in taught(1).level(0.05).basis
    vectors, _ = blobs(1)
    one = Examples.empty(DIM).with_marks("a", [("x", "whole")], vectors[:1])
    alone = FittedClasses(one, fit(RAW, vectors))
    assert alone.level(0.05).level is None and alone.level(0.05).threshold is None
    assert "1 example of 1 class in all: too few" in str(alone.level(0.05).why)
    assert (alone.judge(vectors, 0.05).label == 0).all()  # nothing is called unknown
    rows = blobs(50)[0]
    some = FittedClasses(one, fit(RAW, vectors), background=lambda: rows)
    assert some.level(0.05).level is None and "too few" in str(some.level(0.05).why)
    assert "rows of the collection" in str(some.level(0.05).basis)
    assert (some.judge(rows, 0.05).label == 0).mean() == pytest.approx(0.05, abs=0.01)


def test_with_one_example_of_each_class_the_level_still_holds() -> None:
    rates = [(taught(1, seed=s).judge(blobs(50, seed=99 + s)[0], 0.1).label < 0).mean()
             for s in range(40)]  # fmt: skip
    assert np.mean(rates) <= 0.1


def test_one_class_only() -> None:
    vectors, names = blobs(30)
    one = taught_examples(vectors[names == 0], names[names == 0])
    found = FittedClasses(one, fit(RAW, vectors))
    assert found.method == "prototype"
    judged = found.judge(vectors, 0.05)
    assert (judged.label[names == 0] == 0).mean() > 0.9
    assert (judged.label[names != 0] == -1).mean() > 0.9
    with pytest.raises(LabelsError, match="needs counter-examples"):
        FittedClasses(one, fit(RAW, vectors), "ridge").judge(vectors)


def test_identical_examples_count_as_one() -> None:
    vectors, names = blobs(4)
    vectors[names == 0] = vectors[0]
    found = FittedClasses(taught_examples(vectors, names), fit(RAW, vectors))
    assert found.level(0.05).threshold is not None
    assert found.judge(vectors[:1], 0.05).label[0] == 0
    same = np.repeat(vectors[:1], 5, axis=0)
    alone = FittedClasses(taught_examples(same, np.zeros(5, int)), fit(RAW, vectors))
    assert alone.level(0.05).level is None
    assert "5 examples are of one group" in str(alone.level(0.05).why)


def test_probabilities_are_calibrated_where_examples_are_drawn_alike() -> None:
    errors, raw = [], []
    for seed in range(8):
        vectors, names = blobs(20, spread=1.2, seed=seed)
        found = FittedClasses(taught_examples(vectors, names), fit(RAW, vectors), "prototype")
        fresh, truth = blobs(250, spread=1.2, seed=500 + seed)
        judged = found.judge(fresh)
        right = judged.label == truth
        assert 0.4 < right.mean() < 0.99
        errors.append(calibration_error(judged.probability.max(axis=1), right))
        shares = np.exp(judged.score)
        raw.append(calibration_error((shares / shares.sum(1, keepdims=True)).max(axis=1), right))
    assert np.mean(errors) < 0.08 < np.mean(raw) / 3


def test_calibration_error_is_what_it_says() -> None:
    assert calibration_error([0.8] * 10, [1] * 8 + [0] * 2) == pytest.approx(0)
    assert calibration_error([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)


def test_a_guess_says_that_it_is_one() -> None:
    none = np.full((2, 2), np.nan)
    marks = np.array([[1, -1], [-1, 1]], np.int8)
    assert "guessed" in probabilities(none, marks, False, np.zeros(0)).basis


def test_members_that_a_negative_rules_out_count_as_unknown() -> None:
    """A tenth of the members lie beside a hard negative. They are called unknown, and with them no
    more than the level allows."""
    random = np.random.default_rng(0)
    rates = []
    for _ in range(20):
        vectors = np.eye(DIM)[np.zeros(400, int)] + 0.1 * random.standard_normal((400, DIM))
        odd = np.arange(400) % 10 == 0
        vectors[odd] += 2 * np.eye(DIM)[5]
        against = np.eye(DIM)[:1] + 2 * np.eye(DIM)[5:6]
        keys = [(str(i), "whole") for i in range(100)]
        examples = Examples.empty(DIM).with_marks("a", keys, vectors[:100])
        examples = examples.with_marks("a", [("no", "whole")], against, "no")
        found = FittedClasses(examples, fit(RAW, vectors), "prototype")
        judged = found.judge(vectors[100:], 0.2)
        assert (judged.label[odd[100:]] < 0).all()
        rates.append((judged.label < 0).mean())
    assert np.mean(rates) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("level", "n"), [(0.29, 99), (0.57, 99), (0.58, 99), (0.05, 19)])
def test_a_level_that_has_no_exact_binary_form_takes_the_rank_that_it_says(
    level: float, n: int
) -> None:
    scores = np.arange(float(n))
    found = Unknowns(scores, "")
    assert np.array_equal(scores < found.threshold(level)[0], found.p_values(scores - 0.5) < level)


def test_what_every_class_rules_out_is_no_hit() -> None:
    scores = np.array([[-np.inf, -np.inf], [0.1, -np.inf], [np.nan, np.nan]])
    marks = np.array([[1, -1], [1, -1], [1, -1]], np.int8)
    right = scorers.hits(scores, marks)
    assert right[:2].tolist() == [0, 1] and np.isnan(right[2])


def test_where_nothing_tells_how_usual_a_score_is_no_figure_is_made_up() -> None:
    vectors, _ = blobs(1)
    rows = blobs(50)[0]
    one = Examples.empty(DIM).with_marks("a", [("x", "whole")], vectors[:1])
    judged = FittedClasses(one, fit(RAW, vectors), background=lambda: rows).judge(rows, 0.05)
    assert np.isnan(judged.p_value).all()
    # How probable: it grows with the similarity, and rows as alike as most are are in the middle.
    order = judged.similarity[:, 0].argsort()
    assert (np.diff(judged.probability[order, 0]) > 0).all()
    assert 0.4 < judged.probability.mean() < 0.6
    assert np.isnan(FittedClasses(one, fit(RAW, vectors)).judge(rows).p_value).all()


def test_many_classes_of_many_examples_take_no_time() -> None:
    random = np.random.default_rng(0)
    names = [f"c{i % 300}" for i in range(6000)]
    keys = [(f"{i}.wav", "whole") for i in range(6000)]
    vectors = random.standard_normal((6000, 8)).astype(np.float32)
    began = time.perf_counter()
    found = Examples.empty(8).with_named(names, keys, vectors)
    counted = {one.name: one.yes for one in found.classes()}
    targets = found.targets(found.names)
    assert time.perf_counter() - began < 2  # by one class after another it takes minutes
    assert counted == dict.fromkeys(names, 20)
    assert ((targets == 1).sum(axis=1) == 1).all() and (targets != 0).all()


# ---- examples


def test_rename_merge_remove() -> None:
    e = Examples.empty(2)
    e = e.with_marks("a", [("1", "whole"), ("2", "whole")], np.eye(2))
    e = e.with_marks("b", [("2", "whole"), ("3", "0-1")], np.array([[0, 1], [1, 1]]))
    e = e.with_marks("b", [("1", "whole")], np.array([[1.0, 0]]), "no")
    e = e.with_marks("a", [("3", "0-1")], np.array([[1.0, 1]]), "no")
    assert e.keys == (("1", "whole"), ("2", "whole"), ("3", "0-1"))
    assert [(c.name, c.yes, c.no) for c in e.classes()] == [("a", 2, 1), ("b", 2, 1)]
    whole = e.merged(["a"], "b")
    assert [(c.name, c.yes, c.no) for c in whole.classes()] == [("b", 3, 0)]
    named = e.renamed("a", "x")
    assert sorted(named.names) == ["b", "x"] and len(named.keys) == 3
    assert [c.name for c in e.without("b").classes()] == ["a"]
    rest = e.without("a", [("1", "whole")]).classes()
    assert {c.name: (c.yes, c.no) for c in rest} == {"a": (1, 1), "b": (2, 1)}
    lines = list(csv.DictReader(io.StringIO(e.to_csv())))
    assert len(lines) == 6 and set(lines[0]) == {"path", "region", "class", "mark"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.renamed("q", "x"), "no class 'q'; there are a, b"),
        (lambda e: e.renamed("a", "b"), "a class 'b' already"),
        (lambda e: e.merged(["a"], "a"), "nothing to merge"),
        (lambda e: e.without("q"), "no class 'q'"),
        (lambda e: e.without("a", [("2", "whole")]), "none of these examples"),
        (lambda e: e.with_marks("a", [("9", "w")], [[np.nan, 1]]), "9 has values .* not finite"),
        (lambda e: e.with_marks("a", [("9", "w")], [[0.0, 0]]), "9 is zero"),
        (lambda e: e.with_marks("a", [("9", "w")], np.eye(2)), r"1 examples with vectors of shape"),
        (lambda e: e.with_marks("a", [("9", "w")], [[1.0, 2, 3]]), r"\(1, 3\); \(1, 2\)"),
        (lambda e: e.with_marks("a", [("9", "w")], [[1.0, 2]], "maybe"), "mark 'maybe'"),
        (lambda e: e.with_marks(" ", [("9", "w")], [[1.0, 2]]), "needs a name"),
    ],
)
def test_bad_examples_are_refused_in_words(change: object, message: str) -> None:
    e = Examples.empty(2).with_marks("a", [("1", "whole")], [[1, 0]])
    e = e.with_marks("b", [("2", "whole")], [[0, 1]])
    with pytest.raises(LabelsError, match=message):
        change(e)  # type: ignore[operator]


def test_bad_questions_are_refused_in_words() -> None:
    found = taught(3)
    with pytest.raises(SpaceError, match="not finite"):
        found.judge(np.full((1, DIM), np.nan))
    with pytest.raises(SpaceError, match="do not fit"):
        found.judge(np.ones((1, DIM + 1)))
    with pytest.raises(LabelsError, match="lies between 0 and 1"):
        found.judge(np.ones((1, DIM)), 1.5)
    with pytest.raises(LabelsError, match="method 'svm'"):
        taught(3, "svm")
    with pytest.raises(LabelsError, match="no class has an example"):
        FittedClasses(Examples.empty(3), fit(RAW, np.eye(3)))


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    vectors, names = blobs(3)
    examples = taught_examples(vectors, names).with_marks("c1", [("0.wav", "whole")],
                                                          vectors[:1], "no")  # fmt: skip
    saved = storage.Saved(examples, fit("centre", vectors), {"weights": "x"}, {"spec": "demo"},
                            {"method": None}, ["g"] * len(vectors))  # fmt: skip
    path = storage.write(tmp_path / "a.npz", saved)
    again = storage.read(path)
    assert again.examples.keys == examples.keys and again.groups == saved.groups
    assert [dict(m) for m in again.examples.marks] == [dict(m) for m in examples.marks]
    assert np.array_equal(again.examples.vectors, examples.vectors)
    assert again.space.id == saved.space.id and again.fingerprint == saved.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with np.load(path, allow_pickle=False) as file:  # nothing in it is pickled
        assert set(file) == {"about", "vectors", "space", "hash"}


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x80\x04N.", None])
def test_what_is_no_class_space_is_refused(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "x.npz"
    if data is None:
        np.savez(path, vectors=np.eye(2))
    else:
        path.write_bytes(data)
    with pytest.raises(LabelsError, match="is no saved class space"):
        storage.read(path)
    with pytest.raises(LabelsError, match="there is no file"):
        storage.read(tmp_path / "y.npz")
    with pytest.raises(LabelsError, match=r"saved as \.npz"):
        storage.write(tmp_path / "x.pkl", storage.Saved(Examples.empty(2), fit(RAW, np.eye(2)),
                                                            {}, {}))  # fmt: skip


# ---- events


def test_windows_that_follow_each_other_become_one_event() -> None:
    said = ["a", "a", None, "a", "b", "b", "a"]
    track = [Window("x.wav", None, i * 0.5, i * 0.5 + 1, {name: 0.5 + i / 100} if name else {})
             for i, name in enumerate(said)]  # fmt: skip
    found = merged([*reversed(track), Window("x.wav", 1, 0.0, 1.0, {"a": 0.9})])
    assert [(e.label, e.channel, e.start, e.end, e.windows) for e in found] == [
        ("a", None, 0.0, 1.5, 2),
        ("a", None, 1.5, 2.5, 1),
        ("b", None, 2.0, 3.5, 2),
        ("a", None, 3.0, 4.0, 1),
        ("a", 1, 0.0, 1.0, 1),
    ]
    assert found[0].probability == pytest.approx(0.51)
    wide = merged(track, gap=0.5)
    assert [(e.label, e.start, e.end) for e in wide] == [("a", 0.0, 4.0), ("b", 2.0, 3.5)]
    with pytest.raises(UsageError, match="gap of -1"):
        merged(track, -1)


def test_windows_with_room_between_are_events_of_their_own() -> None:
    track = [Window("x", None, i * 2.0, i * 2.0 + 1, {"a": 0.9}) for i in range(3)]
    assert len(merged(track)) == 3
    assert len(merged(track, gap=1.0)) == 1
    picture = [Window("x.png", None, None, None, {"a": 0.9})] * 2
    assert len(merged(picture)) == 2


def test_tables_of_events() -> None:
    event = merged([Window("/r/x.wav", 1, 0.25, 1.0, {"a, b": 0.9})])
    assert list(csv.reader(io.StringIO(to_csv(event))))[1] == [
        "/r/x.wav", "0.25", "1", "1", "a, b", "0.9", "", "1", "", "a, b"]  # fmt: skip
    like = Window("/r/x.wav", 1, 0.25, 1.0, {"a": 0.9}, similarities={"a": 0.5})
    more = Window("/r/x.wav", 1, 1.0, 2.0, {"a": 0.7}, similarities={"a": 0.625})
    assert next(csv.DictReader(io.StringIO(to_csv(merged([like, more])))))["similarity"] == "0.625"
    with pytest.raises(UsageError, match="needs seconds"):
        to_raven(merged([Window("x.png", None, None, None, {"a": 0.9})]))
    with pytest.raises(UsageError, match="tab or a line break"):
        to_raven(merged([Window("x\ty.wav", None, 0.0, 1.0, {"a": 0.9})]))


def test_unknown_stretches_are_events_where_they_are_wanted() -> None:
    shares = [{}, {}, {"a": 0.9}, {"a": 0.8, "b": 0.6}, {}]
    track = [
        Window("x", 0, float(i), i + 1.0, share, nearest=(0.3 + i / 10, 0.5), p_value=i / 100)
        for i, share in enumerate(shares)
    ]
    assert [one.label for one in merged(track)] == ["a", "b"]
    for gap in (0.0, 5.0):  # a gap joins no unknown stretches over a class
        found = [(e.label, e.start, e.end, e.windows) for e in merged(track, gap, unknown=True)]
        assert found == [("unknown", 0.0, 2.0, 2), ("a", 2.0, 4.0, 2), ("b", 3.0, 4.0, 1),
                         ("unknown", 4.0, 5.0, 1)]  # fmt: skip
    first, both, *_ = merged(track, unknown=True)
    assert (first.probability, first.similarity, first.p_value) == (0.4, 0.5, 0.01)
    assert (both.labels, both.p_value) == (("a", "b"), 0.03)
    line = next(csv.DictReader(io.StringIO(to_csv([both]))))
    assert (line["labels"], line["p_value"]) == ("a;b", "0.03")


def test_events_of_the_median_over_neighbours() -> None:
    rng = np.random.default_rng(0)
    for seconds, most in ((1.0, 1), (3.0, 3), (4.9, 5)):  # windows of 1 s, each second
        active = rng.random(40) < 0.6
        values = np.where(active, rng.uniform(0.5, 1.0, 40), 0.0)
        track = [
            Window("x", None, float(i), i + 1.0, {"a": float(v)} if v else {})
            for i, v in enumerate(values)
        ]
        found = [one.probabilities.get("a", 0.0) for one in smoothed(track[::-1], seconds)]
        half = most // 2
        inner = scipy.ndimage.median_filter(values, most)[half : 40 - half]
        assert found[half : 40 - half] == pytest.approx(list(inner))
    pair = [Window("x", None, 0.0, 1.0, {"a": 0.9}), Window("x", None, 1.0, 2.0, {"b": 0.8})]
    assert [list(one.probabilities) for one in smoothed(pair, 2.0)] == [["a"], ["b"]]  # no majority
    apart = [Window("x", c, float(i), i + 1.0, {"ab"[c]: 0.9}) for c in (0, 1) for i in range(3)]
    assert [(e.channel, e.label) for e in merged(smoothed(apart, 3.0))] == [(0, "a"), (1, "b")]
    with pytest.raises(UsageError, match="above 0"):
        smoothed(pair, 0.0)


# ---- by names, and pairs

WORDS = {"cat": [1, 0, 0], "dog": [0.9, 0.4, 0], "car": [0, 0, 1], "lorry": [0, 0.2, 1],
         "wolf": [0.8, 0.6, 0]}  # fmt: skip


def embed(texts: list[str]) -> np.ndarray:
    return np.array([WORDS[text] for text in texts])


def test_conse_is_the_cosine_to_the_mixed_names() -> None:
    shares = np.array([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9]])
    scores = conse(shares, ["cat", "dog", "car"], ["wolf", "lorry"], embed, top=2)
    unit = {k: np.array(v) / np.linalg.norm(np.array(v)) for k, v in WORDS.items()}
    mixed = (0.6 * unit["cat"] + 0.3 * unit["dog"]) / 0.9
    assert scores[0, 0] == pytest.approx(mixed @ unit["wolf"] / np.linalg.norm(mixed))
    assert scores.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (["LABEL_0", "LABEL_1"], ["wolf"], "are no names of things"),
        (["cat", "dog"], [], "names of classes are needed"),
        (["cat", "dog"], ["wolf", "wolf"], "comes twice"),
        (["cat"], ["wolf"], r"shape \(1, 2\) for 1 labels"),
    ],
)
def test_names_that_cannot_be_compared(labels: list[str], names: list[str], message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        conse(np.array([[0.5, 0.5]]), labels, names, embed)


def test_labels_as_words() -> None:
    assert worded("_silence_") == "silence"
    assert worded("GreatTit") == "great tit"
    assert worded("speech, male-voice") == "speech, male voice"


def test_equal_error_rate_against_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    vectors, names = blobs(20, spread=2.0)
    found = verify(vectors, [str(n) for n in names])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, right = np.triu_indices(len(names), 1)
    alike, same = (unit @ unit.T)[left, right], names[left] == names[right]
    false, hit, _ = roc_curve(same, alike, drop_intermediate=False)
    at = np.nanargmin(np.abs(1 - hit - false))
    assert found.eer == pytest.approx((1 - hit[at] + false[at]) / 2, abs=0.005)
    assert found.auc == pytest.approx(roc_auc_score(same, alike), abs=1e-6)
    assert found.low <= found.eer <= found.high
    accepted = alike >= found.threshold
    assert abs((~accepted[same]).mean() - accepted[~same].mean()) < 0.02
    assert found.same + found.different == len(alike)


def test_pairs_of_one_group_are_no_pairs_of_the_same() -> None:
    vectors = np.repeat(np.eye(4), 4, axis=0) + 0.01
    names, groups = list("aaaabbbbccccdddd"), [str(i // 2) for i in range(16)]
    assert verify(vectors, names).same == 24
    assert verify(vectors, names, groups).same == 16
    assert verify(vectors, names).eer == 0
    with pytest.raises(LabelsError, match="no pair of the same name from two groups"):
        verify(vectors, names, names)
    with pytest.raises(LabelsError, match="no pair of the different name"):
        verify(vectors, ["a"] * 16)
    with pytest.raises(LabelsError, match="are no pair"):
        verify(vectors, [None] * 16)


@pytest.mark.slow
def test_among_many_names_all_pairs_of_the_same_are_compared() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((5000, 8))
    rows = np.concatenate([centres, centres]) + 0.3 * random.standard_normal((10_000, 8))
    found = verify(rows, [str(i) for i in range(5000)] * 2)
    assert found.same == 5000 and found.different > 1_900_000
    assert found.low < found.eer < found.high < 0.2
    # Of very many pairs of the same as many are drawn.
    few = verify(np.concatenate([rows, rows[:1]]), ["a"] * 5000 + ["b"] * 5000 + ["a"])
    assert few.same == 1_000_000 and few.different > 400_000
    assert few.eer == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", [float("nan"), -0.1, 2.0])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(LabelsError, match="a rate lies between 0 and 1"):
        verify(np.eye(4), ["a", "a", "b", "b"], false_accepts=rate)


@pytest.mark.parametrize(("classes", "each"), [(30, 2), (30, 3), (4, 15)])
def test_of_very_many_examples_two_or_more_of_a_class_are_held_out(
    monkeypatch: pytest.MonkeyPatch, classes: int, each: int
) -> None:
    monkeypatch.setattr(scorers, "MOST", 20)
    random = np.random.default_rng(0)
    names = np.repeat(np.arange(classes), each)
    vectors = 5 * np.eye(classes)[names] + random.standard_normal((len(names), classes))
    targets = np.where(names[:, None] == np.arange(classes), scorers.YES, scorers.IMPLIED)
    found = scorers.held_out("prototype", vectors, targets.astype(np.int8), np.arange(len(names)))
    drawn = np.unique(names[found.rows], return_counts=True)[1]
    assert drawn.sum() == 20 and set(drawn) == ({2} if classes == 30 else {5})
    own = found.scores[np.arange(20), names[found.rows]]
    assert np.isfinite(own).all()  # each was scored for its own class
    best = np.nanargmax(found.scores, axis=1)
    assert (best == names[found.rows]).mean() > 0.8
