"""Unknowns: the level that is stated beside the share that is real, and none where no data support
one; the probability of one class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import penult
from penult.analysis.space import SeenRows, fit, fit_seen
from penult.embedding.embedder import Embedder
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import Examples
from penult.fewshot.fitted import FittedClasses

DIM = 64
CLIPS = Path(penult.__file__).parent / "demo" / "clips"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


def cloud(kind: int, n: int, seed: int, spread: float = 0.35) -> np.ndarray:
    """(n, d) vectors of a kind: a common part, which all kinds have, the kind's own, and noise."""
    random = np.random.default_rng(seed)
    own = np.random.default_rng(1000 + kind).standard_normal(DIM)
    common = 5 * np.random.default_rng(999).standard_normal(DIM)
    noise = spread * random.standard_normal((n, DIM)) * np.linspace(3, 0.3, DIM)
    return (common + own + noise).astype(np.float32)


def unknown(space: ClassSpace, vectors: np.ndarray) -> float:
    """The share that is called unknown."""
    return float(np.mean([one.label is None for one in space.predict_vectors(vectors)]))


def within(share: float, level: float, n: int) -> bool:
    """Whether a share of n draws does not speak against the level (four standard errors)."""
    return share <= level + 4 * (level * (1 - level) / n) ** 0.5


def test_only_normal_is_known(embedder: Embedder) -> None:
    shares = []
    for seed in range(6):
        space = ClassSpace(embedder)
        space.add_vectors("normal", cloud(0, 60, seed))
        assert space.space.recipe == "raw"
        assert unknown(space, cloud(1, 50, 50 + seed)) > 0.9
        shares.append(unknown(space, cloud(0, 200, 90 + seed)))
    assert within(float(np.mean(shares)), 0.05, 6 * 60)


@pytest.mark.parametrize(("kinds", "each"), [(2, 2), (1, 3), (2, 3), (1, 5)])
def test_levels_of_very_few_examples(kinds: int, each: int) -> None:
    """Members that lie as far away as they like: some near, some far."""
    shares = []
    for seed in range(60):
        random = np.random.default_rng(seed)

        def members(kind: int, n: int, random: np.random.Generator = random) -> np.ndarray:
            far = random.lognormal(0.0, 0.3, (n, 1))
            rows = np.random.default_rng(1000 + kind).standard_normal(DIM)
            return (rows + 0.5 * far * random.standard_normal((n, DIM))).astype(np.float32)

        examples = Examples.empty(DIM)
        for kind in range(kinds):
            keys = [(f"{kind}/{i}", "whole") for i in range(each)]
            examples = examples.with_marks(f"c{kind}", keys, members(kind, each))
        fitted = FittedClasses(examples, fit("raw", examples.vectors), "prototype")
        if fitted.level(0.05).level is not None:
            asked = np.concatenate([members(kind, 100) for kind in range(kinds)])
            shares.append(float((fitted.judge(asked, 0.05).label < 0).mean()))
        else:
            assert "too few" in str(fitted.level(0.05).why)
    if (kinds, each) == (2, 2):  # two cosines in all, each of them twice
        assert not shares
    else:
        error = np.std(shares) / len(shares) ** 0.5
        assert len(shares) == 60 and np.mean(shares) <= 0.05 + 2 * error


def test_two_classes_that_are_all_there_is(embedder: Embedder) -> None:
    space = ClassSpace(embedder)
    for kind in (0, 1):
        space.add_vectors(f"c{kind}", cloud(kind, 60, kind))
    assert space.fitted.level(0.05).level == 0.05
    assert unknown(space, cloud(2, 50, 7)) > 0.9
    assert within(unknown(space, cloud(0, 300, 8)), 0.05, 120)
    centred = ClassSpace(embedder, space="centre")
    centred.add_vectors("c0", cloud(0, 60, 0))
    found = centred.fitted.level(0.05)
    assert found.level is None and "as unlike their class as any vector is" in str(found.why)
    assert unknown(centred, cloud(2, 50, 7)) == 0
    assert centred.fitted.to_dict(0.05)["unknown"]["why"] == found.why


def test_other_rows_that_are_of_the_class_too_subtract_nothing() -> None:
    examples = Examples.empty(DIM)
    keys = [(str(i), "whole") for i in range(60)]
    examples = examples.with_marks("normal", keys, cloud(0, 60, 0))
    assert fit_to_examples("auto", examples, cloud(0, 100, 1)).is_raw
    # With rows of other kinds it is what tells the class from them best.
    others = np.concatenate([cloud(kind, 40, kind) for kind in range(1, 5)])
    found = fit_to_examples("auto", examples, others)
    asked = np.concatenate([cloud(0, 50, 3), cloud(9, 50, 4)])
    judged = FittedClasses(examples, found).judge(asked, 0.05)
    assert (judged.label[:50] == 0).mean() > 0.8 and (judged.label[50:] < 0).mean() > 0.9


def drawn(own: float, other: float, n: int, seed: int, kinds: int = 30) -> Examples:
    """n examples of each kind: kinds lie in thirty directions, what has no kind varies in five."""
    random = np.random.default_rng(seed)
    examples = Examples.empty(DIM)
    for kind in range(kinds):
        rows = 0.3 * random.standard_normal((n, DIM))
        rows[:, kind] += own
        rows[:, -5:] += other * random.standard_normal((n, 5))
        keys = [(f"{kind}/{i}", "whole") for i in range(n)]
        examples = examples.with_marks(f"c{kind}", keys, rows.astype(np.float32))
    return examples


def test_shrink_is_taken_where_held_out_examples_do_not_speak_against_it() -> None:
    def recipe(own: float, other: float, n: int) -> str:
        others = drawn(own, other, 30, 1).vectors
        return fit_to_examples("auto", drawn(own, other, n, 2), others).recipe

    assert [recipe(1.5, 2.0, n) for n in (1, 2, 5, 20)] == ["centre", "shrink", "shrink", "shrink"]
    # Kinds are what varies most, and everything is right: of two examples nothing speaks for it.
    assert [recipe(3.0, 0.1, n) for n in (1, 2, 5)] == ["centre", "centre", "shrink"]
    # What all rows vary in tells the classes apart: it must not be damped.
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(12), 6)
    rows = 0.5 * random.standard_normal((72, DIM))
    rows[:, :2] += 6 * np.stack([np.cos(kinds), np.sin(kinds)], axis=1)
    examples = Examples.empty(DIM).with_named(
        [f"c{kind}" for kind in kinds],
        [(str(i), "whole") for i in range(72)],
        rows.astype(np.float32),
    )
    assert fit_to_examples("auto", examples, examples.vectors[:0]).recipe == "centre"


@pytest.mark.parametrize("recipe", ["auto", "centre", "scale", "shrink", "pca:10"])
def test_a_space_is_never_fitted_to_an_example_that_it_judges(recipe: str) -> None:
    """Few examples of many numbers: held out of the method and not of the space, members would be
    nearer than new ones are."""
    shares = []
    for seed in range(12):
        examples = Examples.empty(DIM)
        for kind in range(4):
            keys = [(f"{kind}/{i}", "whole") for i in range(10)]
            examples = examples.with_marks(f"c{kind}", keys, cloud(kind, 10, 10 * seed + kind, 0.8))
        space = fit_to_examples(recipe, examples, np.zeros((0, DIM), np.float32))
        found = FittedClasses(examples, space)
        new = np.concatenate([cloud(kind, 100, 5000 + seed, 0.8) for kind in range(4)])
        shares.append((found.judge(new, 0.1).label < 0).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert 0.1 / 3 - 3 * error <= np.mean(shares) <= 0.1 + 3 * error


def test_a_space_fitted_with_labels_is_fitted_without_the_examples_that_are_held_out() -> None:
    """Labels of few items in many numbers: in the space that was fitted to them, their classes lie
    apart as no new item does."""
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 6)
    rows = np.concatenate([cloud(kind, 6, kind, 2.0) for kind in range(4)])
    recipe = "scale+within+l2"
    seen = fit_seen(recipe, SeenRows(rows, kinds, np.arange(24)))
    examples = Examples.empty(DIM)
    keys = [(str(i), "whole") for i in range(24)]
    examples = examples.with_named([f"c{kind}" for kind in kinds], keys, rows)
    found = FittedClasses(examples, seen, "prototype")
    new = np.concatenate([cloud(kind, 200, 70 + kind, 2.0) for kind in range(4)])
    truth = np.repeat(np.arange(4), 200)
    judged = found.judge(new)
    stated = found.accuracy["prototype"]
    real = (judged.label == truth).mean()
    assert abs(stated - real) < 3 * (real * (1 - real) / 24) ** 0.5
    assert (found.judge(new, 0.2).label < 0).mean() < 0.2 + 3 * (0.16 / 24) ** 0.5
    # A chosen embedder of an earlier version does not name its items: no level is made up.
    blind = FittedClasses(examples, fit(recipe, rows, kinds.tolist()))
    assert blind.level(0.05).level is None and np.isnan(blind.accuracy["prototype"])
    assert "fitted with labels" in str(blind.level(0.05).why)
    assert (blind.judge(new[random.permutation(800)[:50]], 0.05).label >= 0).all()


def test_one_example_each_of_one_speaker_gives_no_level() -> None:
    """None can be held out of its speaker: not turned round, not made up."""
    examples = Examples.empty(DIM)
    for kind in range(5):
        examples = examples.with_marks(f"c{kind}", [(f"{kind}", "whole")], cloud(kind, 1, kind))
    rows = np.concatenate([cloud(kind, 30, 40 + kind) for kind in range(5)])
    space = fit("centre", rows)
    found = FittedClasses(examples, space, background=lambda: rows, groups=["one"] * 5)
    level = found.level(0.05)
    assert level.level is None and level.threshold is None
    assert "5 examples are of one group" in str(level.why)
    judged = found.judge(rows, 0.05)
    assert (judged.label == np.repeat(np.arange(5), 30)).mean() > 0.9
    assert np.isnan(judged.p_value).all()


@pytest.mark.parametrize("grouped", [True, False])
def test_the_level_holds_for_new_groups_if_groups_are_given(grouped: bool) -> None:
    shares = []
    for seed in range(12):
        examples, groups, new = Examples.empty(DIM), [], []
        for kind in range(3):
            for group in range(8):
                shift = np.random.default_rng([seed, kind, group]).standard_normal(DIM)
                rows = cloud(kind, 3, 100 * seed + 10 * kind + group, 0.1) + 0.6 * shift
                keys = [(f"{kind}/{group}/{i}", "whole") for i in range(3)]
                if group < 6:
                    examples = examples.with_marks(f"c{kind}", keys, rows)
                    groups += [f"{kind}/{group}"] * 3
                else:
                    new.append(rows)
        space = fit("raw", examples.vectors)
        found = FittedClasses(examples, space, groups=groups if grouped else None)
        shares.append((found.judge(np.concatenate(new), 0.1).label < 0).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert (np.mean(shares) <= 0.1 + 3 * error) == grouped


@pytest.mark.parametrize("n", [1, 2, 4, 30])
@pytest.mark.parametrize("others", [0, 200])
def test_the_probability_of_one_class_grows_with_the_similarity(n: int, others: int) -> None:
    examples = Examples.empty(DIM).with_marks(
        "a", [(str(i), "whole") for i in range(n)], cloud(0, n, 0)
    )
    rows = np.concatenate([cloud(kind, 50, kind) for kind in range(1, 5)])[:others]
    found = FittedClasses(examples, fit("raw", examples.vectors), background=lambda: rows)
    asked = np.concatenate([cloud(0, 100, 5), cloud(8, 100, 6)])
    judged = found.judge(asked)
    order = judged.similarity[:, 0].argsort()
    sorted_ = judged.probability[order, 0]
    assert (np.diff(sorted_) > 0).all() and sorted_[0] > 0 and sorted_[-1] < 1
    unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    own = examples.vectors / np.linalg.norm(examples.vectors, axis=1, keepdims=True)
    mean = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
    np.testing.assert_allclose(judged.similarity[:, 0], unit @ mean, atol=1e-6)


def test_methods_and_hard_negatives_act_with_one_class(embedder: Embedder) -> None:
    def predicted(method: str | None, negatives: int) -> list[float]:
        space = ClassSpace(embedder, method=method)
        space.add_vectors("a", cloud(0, 12, 0))
        if negatives:
            space.add_vectors("a", cloud(3, negatives, 1), mark="no")
        asked = np.concatenate([cloud(0, 20, 5), cloud(3, 20, 6)])
        return [one.score for one in space.predict_vectors(asked)]

    assert predicted("prototype", 0) != predicted("knn", 0)
    before, after = np.array(predicted(None, 0)), np.array(predicted(None, 6))
    assert (after[20:] == 0).all() and (before[20:] > 0).all()
    assert after[:20].mean() == pytest.approx(before[:20].mean(), abs=0.1)
    heads = [np.array(predicted(method, 6)) for method in ("ridge", "logistic")]
    assert all(head[:20].min() > head[20:].max() for head in heads)


def test_predictions_have_the_raw_similarity_beside_the_probability(embedder: Embedder) -> None:
    space = penult.ClassSpace(embedder)
    for word in ("one", "two"):
        space.add(
            word, [CLIPS / f"{word}_{voice}.flac" for voice in ("british-man", "oxford-woman")]
        )
    one = space.predict(CLIPS / "one_lancashire-woman.flac", nearest=4, unknown=0)[0]
    mean = np.mean([near.similarity for near in one.nearest if near.marks == {"one": "yes"}])
    assert one.label == "one" and one.similarity >= mean  # of a mean direction, above the mean
    assert one.to_dict()["similarity"] == one.similarity
    assert one.detection.similarities == {"one": one.similarity}
