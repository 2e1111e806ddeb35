"""Values from examples: ridge, intervals that hold, what to expect, and what lies far off."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import lancedb
import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score

import penult
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.errors import LabelsError
from penult.fewshot import value_model
from penult.fewshot.value_model import FEWEST, FittedValue
from penult.fewshot.values import ValueSpace
from test_cli import Said, ask

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


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_values_of_any_size(size: float) -> None:
    vectors, values = drawn(30, 0)
    usual, other = (FittedValue(vectors, v, np.arange(30)) for v in (values, values * size))
    assert other.strength == usual.strength
    for name in ("r_squared", "concordance"):
        assert getattr(other.accuracy, name) == pytest.approx(getattr(usual.accuracy, name))
    for name in ("error", "baseline"):
        assert getattr(other.accuracy, name) / size == pytest.approx(getattr(usual.accuracy, name))
    (found, margin, _), (wanted, half, _) = other.judge(vectors), usual.judge(vectors)
    np.testing.assert_allclose(found / size, wanted)
    assert margin / size == pytest.approx(half)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of clips with the columns height, voice and odd."""
    folder = tmp_path_factory.mktemp("values")
    embedder = Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    words = ("zero", "one", "two", "three", "four", "five")
    voices = ("british-man", "oxford-woman", "new-york-man")
    lines = [
        f"{CLIPS / f'{word}_{voice}.flac'},{words.index(word) * 1.5 or ''},{voice},"
        f"{'inf' if word == 'one' else words.index(word)}"
        for word in words
        for voice in voices
    ]
    (folder / "t.csv").write_text("\n".join(["path,height,voice,odd", *lines]) + "\n")
    Collection.open(folder / "t.lance").add(embedder, folder / "t.csv")
    return folder / "t.lance"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "t.lance"))


ASKED = [CLIPS / f"{word}_lancashire-woman.flac" for word in ("one", "three", "five")]


def by_hand(store: Path, asked: list[Path], strength: float) -> np.ndarray:
    """The values of clips by ridge regression on the rows that have one."""
    table, rows = Collection.open(store).reader.vectors("height IS NOT NULL", ["height"])
    vectors = rows.astype(np.float64)
    scale = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    head = Ridge(alpha=strength * scale).fit(vectors, table["height"].to_pylist())
    embedder = Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    return np.asarray(head.predict(embedder.embed(asked).astype(np.float64)))


def values(done: Said) -> list[list[float]]:
    assert done.code == 0, done.err
    return [[one["value"], one["low"], one["high"]] for one in done.json["predictions"]]


def test_a_value_is_taught_by_a_command_and_stays_what_it_was(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "height.npz"
    done = ask("teach", store, "--value", "height", "--groups", "voice", "--save", file, "--json")
    assert done.code == 0, done.err
    facts = done.json["value"]
    assert (facts["number"], facts["examples"], facts["left_out"]) == (1, 15, 3)
    assert facts["accuracy"]["groups"] == 3 and facts["span"] == [1.5, 7.5]
    taught = ValueSpace(Collection.open(store), "height", groups="voice").fitted
    # From here on nothing is fitted.
    monkeypatch.setattr(value_model, "_ridge", None)
    before = ask("predict", store, *ASKED, "--level", 0.7, "--json")
    found = np.array(values(before))
    np.testing.assert_allclose(found[:, 0], by_hand(store, ASKED, taught.strength), rtol=1e-4)
    np.testing.assert_allclose(found[:, 2] - found[:, 0], taught.margin(0.7))
    assert values(ask("predict", file, *ASKED, "--level", 0.7, "--json")) == found.tolist()
    assert [one["name"] for one in before.json["predictions"]] == ["height"] * 3
    # Three groups support no interval at 0.9, which is said; limits are null.
    wide = ask("predict", store, *ASKED, "--json")
    assert [one[1:] for one in values(wide)] == [[None, None]] * 3
    assert "which support 0.750 at most" in ask("predict", store, ASKED[0]).err
    rows = ask("predict", file, store, "--where", "voice = 'british-man'", "--level", 0.7, "--json")
    assert len(rows.json["predictions"]) == 6
    monkeypatch.undo()
    # Rows that come change nothing until it is taught again; undone, it is as before.
    more = tmp_path / "more.csv"
    more.write_text("path,height,voice\n" + "".join(f"{one},99,x\n" for one in ASKED))
    assert ask("embed", "demo", more, "--tap", "prelogits", "--into", store).code == 0
    assert values(ask("predict", store, *ASKED, "--level", 0.7, "--json")) == found.tolist()
    assert (
        ask("teach", store, "--value", "height", "--refit", "--json").json["value"]["groups"]
        == "voice"
    )
    again = ask("predict", store, *ASKED, "--level", 0.7, "--json")
    assert again.json["values"]["height"]["examples"] == 18 and values(again) != found.tolist()
    history = ask("classes", store, "--history", "--json").json["values"]
    assert [(one["number"], one["current"]) for one in history] == [(1, False), (2, True)]
    assert "version 1 holds again" in ask("teach", store, "--value", "height", "--undo").out
    assert values(ask("predict", store, *ASKED, "--level", 0.7, "--json")) == found.tolist()
    assert "no longer taught" in ask("teach", store, "--value", "height", "--undo").out
    gone = ask("predict", store, *ASKED, "--value", "height")
    assert gone.code == 2 and "no value 'height' is taught here" in gone.error


def test_values_and_classes_stand_side_by_side(store: Path, tmp_path: Path) -> None:
    assert ask("teach", store, "--from", "{}_*").code == 0
    classes = ask("predict", store, *ASKED, "--json").json["predictions"]
    assert ask("teach", store, "--value", "height").code == 0
    both = ask("predict", store, *ASKED, "--json")
    assert both.json["predictions"] == classes
    assert "--value height predicts one" in ask("predict", store, *ASKED).err
    out = tmp_path / "v.csv"
    done = ask("predict", store, *ASKED, "--value", "height", "--out", out)
    assert done.code == 0 and "3 predictions" in done.out
    with out.open() as file:
        lines = list(csv.DictReader(file))
    found = values(ask("predict", store, *ASKED, "--value", "height", "--json"))
    assert [float(one["value"]) for one in lines] == pytest.approx([v for v, _, _ in found], 1e-5)
    assert [float(one["high"]) for one in lines] == pytest.approx([v for _, _, v in found], 1e-5)
    listed = ask("classes", store, "--json").json
    assert [one["name"] for one in listed["values"]] == ["height"]
    assert len(listed["classes"]) == 6 and "height" in ask("classes", store).out
    # Undoing classes leaves the value, and the other way round.
    assert "teach --from" in ask("teach", store, "--undo").out
    assert values(ask("predict", store, *ASKED, "--json")) == found
    # What one item gave is gone with it, and said.
    told = ask("forget", store, CLIPS / "five_british-man.flac", "--yes")
    assert told.code == 0 and "values" in told.out
    assert ask("classes", store, "--json").json["values"] == []


def test_what_cannot_be_taught_or_predicted_is_said(store: Path, tmp_path: Path) -> None:
    for options, words in (
        (("voice",), "voice is 'british-man', which is no number"),
        (("nosuch",), "'nosuch' names nothing"),
        (("odd",), "odd is inf, which is no finite number"),
        (("height", "--where", "voice = 'oxford-woman'"), "5 rows have a value 'height' and pass"),
        (("height", "--groups", "run_id"), "of one group"),
        (("height", "x.wav"), "x.wav is for classes"),
        (("height", "--undo"), "no value 'height' is taught here"),
        (("height", "--save", tmp_path / "a.txt"), ".npz"),
    ):
        done = ask("teach", store, "--value", *options)
        assert done.code == 2 and words in done.error, done.err
    assert ask("classes", store, "--json").json["values"] == []
    assert ask("teach", store, "--value", "odd", "--where", "odd BETWEEN 0 AND 9").code == 0
    for options, words in (
        (("--unknown", 0.1), "--unknown is for classes"),
        (("--level", 90), "between 0 and 1"),
        (("--out", tmp_path / "v.txt"), ".csv"),
        (("--value", "height"), "odd is"),
    ):
        done = ask("predict", store, *options)
        assert done.code == 2 and words in done.error, done.err
    file = tmp_path / "odd.npz"
    assert ask("teach", store, "--value", "odd", "--refit", "--save", file).code == 0
    assert ask("teach", store, "--value", "odd", "--refit", "--save", file).code == 2  # exists
    done = ask("teach", file, "--value", "odd")
    assert done.code == 2 and "is taught by the rows of a collection" in done.error
    assert "holds the value" in ask("classes", file).error
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    done = ask("predict", file, ASKED[0])
    assert done.code == 2 and "no saved" in done.error


@pytest.mark.parametrize("n", [30, 400])
def test_more_examples_than_numbers_give_the_same_regression(n: int) -> None:
    """The dual form and the primal one, against scikit-learn; 400 rows are compared in blocks."""
    vectors, truth = drawn(n, 3)
    fitted, others = FittedValue(vectors, truth, np.arange(n)), drawn(50, 4)[0]
    scale = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    wanted = Ridge(alpha=fitted.strength * scale).fit(vectors, truth)
    np.testing.assert_allclose(fitted.judge(others)[0], wanted.predict(others))
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose(fitted.model.likeness, np.sort(cosines.max(axis=1)))


@pytest.mark.parametrize("part", ["entry", "model"])
def test_a_damaged_value_is_named_and_taught_anew(store: Path, part: str) -> None:
    teach = ("teach", store, "--value", "height")
    assert ask(*teach).code == 0
    first = values(ask("predict", store, "--json"))
    assert ask(*teach, "--where", "height > 1.5").code == 0
    table = lancedb.connect(store).open_table("taught")
    row = table.to_arrow().sort_by("when").filter(pc.field("kind") == "value").to_pylist()[-1]
    about = json.loads(row["about"])[1]
    if part == "entry":
        text = row["about"].replace('"when": "2', '"when": "3')
        table.update(where=f"id = '{row['id']}'", values={"about": text})
    else:
        table.delete(f"id = '{about['parts']['model']}'")
    refused = ask("predict", store)
    assert refused.code == 1 and "is not as it was kept" in refused.error
    assert "--value height --refit" in refused.error
    assert ask("classes", store, "--history").code == 0
    assert ask(*teach, "--refit").code == 0
    again = ask("predict", store, "--json")
    assert again.code == 0
    if part == "entry":  # as the whole version before was taught
        np.testing.assert_allclose(values(again), first)
