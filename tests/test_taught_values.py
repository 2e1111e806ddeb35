"""Values from examples: ridge, intervals that hold, what to expect, and what lies far off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score

import penult
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.errors import LabelsError
from penult.fewshot.values import FEWEST, FittedValue, ValueSpace

CLIPS = Path(penult.__file__).parent / "demo" / "clips"


def drawn(n: int, seed: int, d: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and values that are a direction of them and noise."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((n, d)) + 3
    return vectors, 5 + 2 * vectors[:, :4].sum(axis=1) + random.standard_normal(n)


def test_a_value_is_that_of_ridge_regression() -> None:
    vectors, values = drawn(30, 0)  # fewer than numbers
    fitted, others = FittedValue(vectors, values, np.arange(30)), drawn(50, 1)[0]
    scale = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    wanted = Ridge(alpha=fitted.strength * scale).fit(vectors, values)
    np.testing.assert_allclose(fitted.judge(others)[0], wanted.predict(others))


def test_measures_are_of_held_out_groups() -> None:
    vectors, values = drawn(60, 0)
    groups = np.arange(60) // 10
    values = values + groups * 0.5  # which no vector tells
    fitted = FittedValue(vectors, values, groups)
    found = np.empty(60)
    every = {}
    for strength in np.logspace(-4, 3, 15):
        every[strength] = np.empty(60)
        for group in range(6):
            out = groups == group
            own = vectors[~out]
            scale = ((own - own.mean(axis=0)) ** 2).sum(axis=1).mean()
            head = Ridge(alpha=strength * scale).fit(own, values[~out])
            every[strength][out] = head.predict(vectors[out])
    for group in range(6):
        out = groups == group
        best = min(every, key=lambda s: ((every[s] - values)[~out] ** 2).sum())
        found[out] = every[best][out]
    np.testing.assert_allclose(fitted.held_out, found, rtol=1e-6)
    known = fitted.accuracy
    assert known.r_squared == pytest.approx(r2_score(values, found))
    assert known.error == pytest.approx(mean_absolute_error(values, found))
    shift = (values.mean() - found.mean()) ** 2
    ccc = 2 * np.cov(values, found, ddof=0)[0, 1] / (values.var() + found.var() + shift)
    assert known.concordance == pytest.approx(ccc)
    assert (known.examples, known.groups) == (60, 6) and known.baseline > known.error
    residuals = np.sort(np.abs(values - found))
    # six groups of ten, and a seventh that may be anything
    assert fitted.margin(0.8) == pytest.approx(residuals[int(np.ceil(0.8 * 70)) - 1])
    assert fitted.margin(0.9) == np.inf


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_intervals_hold_at_their_level(level: float) -> None:
    held = []
    for seed in range(20):
        fitted = FittedValue(*drawn(50, seed), np.arange(50))
        others, truth = drawn(300, 1000 + seed)
        values, margin, _ = fitted.judge(others, level)
        held.append((np.abs(values - truth) <= margin).mean())
    assert level - 0.03 < np.mean(held) < level + 0.06


def test_what_is_far_from_all_examples_is_told() -> None:
    random = np.random.default_rng(0)
    plane = random.standard_normal((2, 40))
    vectors = random.standard_normal((60, 2)) @ plane
    fitted = FittedValue(vectors, vectors[:, 0] * 2, np.arange(60))
    near = fitted.judge(random.standard_normal((200, 2)) @ plane)[2]
    assert near.mean() < 0.15
    assert fitted.judge(vectors.mean(axis=0) + 5 * random.standard_normal((50, 40)))[2].all()


def test_what_cannot_be_fitted_is_refused() -> None:
    vectors, values = drawn(20, 0)
    for rows, numbers, groups, why in (
        (vectors[:9], values[:9], np.arange(9), f"9 examples of a value; {FEWEST} are needed"),
        (vectors, values, np.zeros(20, int), "one group"),
        (vectors, np.ones(20), np.arange(20), "all examples have the value 1"),
        (vectors, np.where(np.arange(20) == 3, np.nan, values), np.arange(20), "finite"),
    ):
        with pytest.raises(LabelsError, match=why):
            FittedValue(rows, numbers, groups)
    fitted = FittedValue(vectors, values, np.arange(20))
    residuals = np.sort(np.abs(values - fitted.held_out))
    assert fitted.margin(0.9) == pytest.approx(residuals[int(np.ceil(0.9 * 21)) - 1])
    assert fitted.margin(0.99) == np.inf
    with pytest.raises(LabelsError, match="between 0 and 1"):
        fitted.margin(90)


def test_a_column_of_a_collection_teaches_a_value(tmp_path: Path) -> None:
    embedder = Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    words = ("zero", "one", "two", "three", "four", "five")
    voices = ("british-man", "oxford-woman", "new-york-man")
    lines = [f"{CLIPS / f'{word}_{voice}.flac'},{words.index(word) * 1.5 or ''},{voice}"
             for word in words for voice in voices]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,height,voice", *lines]) + "\n")
    store = Collection.open(tmp_path / "t.lance")
    store.add(embedder, tmp_path / "t.csv")
    space = ValueSpace(store, "height", groups="voice")
    assert len(space.keys) == 15 and space.fitted.accuracy.groups == 3  # zero has no value
    asked = [CLIPS / f"{word}_lancashire-woman.flac" for word in words[1:]]
    found = space.predict(asked, level=0.7)
    assert [Path(one.id).name for one in found] == [path.name for path in asked]
    for one in found:
        assert np.isfinite(one.high)
        assert one.high - one.value == pytest.approx(space.fitted.margin(0.7))
        assert one.outside == (not 1.5 <= one.value <= 7.5)
    rows = {one.id: one.value for one in space.predict_collection("height IS NOT NULL")}
    assert len(rows) == 15 and store.count == 18
    truth = [words.index(Path(id).name.split("_")[0]) * 1.5 for id in rows]
    assert r2_score(truth, list(rows.values())) > 0.5
    with pytest.raises(LabelsError, match="voice is 'british-man', which is no number"):
        ValueSpace(store, "voice")
