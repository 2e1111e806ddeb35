"""Rows that should be marked next: which they are, and that marking them finds a class."""

from __future__ import annotations

import csv
import shlex
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from penult.analysis.space import RAW, fit
from penult.collection import lance
from penult.collection.collection import Collection
from penult.collection.reader import Reader
from penult.errors import LabelsError
from penult.fewshot import marks, scorers
from penult.fewshot.background import add_background
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.curve import precision_recall
from penult.fewshot.events import Window
from penult.fewshot.examples import Examples
from penult.fewshot.predictions import AssignmentLimits, ClassPrediction, Location
from penult.fewshot.suggestions import Ranking, Suggestion, answer_suggestions, suggest
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
DIM = 8


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def ranking(vectors: np.ndarray) -> Ranking:
    """Of a class with the rows 0 and 1; row 2 is none, row 3 is of another class, row 4 unsure."""
    examples = Examples.empty(DIM)
    for name, places, mark in (("c", [0, 1], "yes"), ("c", [2], "no"), ("d", [3], "yes"),
                               ("c", [4], "unsure"), ("d", [5], "no")):  # fmt: skip
        keys = [(f"{place:03}", "whole") for place in places]
        examples = examples.with_marks(name, keys, vectors[places], mark)
    return Ranking.of(examples, "c", fit(RAW, vectors), vectors[6:])


def places(n: int) -> list[Location]:
    return [Location(f"{i:03}", "whole") for i in range(n)]


def test_half_are_likely_and_the_others_uncertain_or_different() -> None:
    vectors = rows(200)
    one = ranking(vectors)
    found = one.best([(places(200), vectors)], 20)
    assert [s.reason for s in found] == ["likely"] * 10 + ["uncertain"] * 8 + ["different"] * 2
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = 1 / (1 + np.exp(-one.scorer(unit)[:, 0]))
    asked = [i for i in range(200) if i not in (0, 1, 2, 3, 4)]  # 5 is open: not known to be no c
    order = sorted(asked, key=lambda i: -scores[i])
    numbers = [int(s.id) for s in found]
    assert numbers[:10] == order[:10]
    assert np.allclose([s.score for s in found], scores[numbers])
    nearest_half = sorted(set(order) - set(order[:10]), key=lambda i: abs(scores[i] - 0.5))
    assert set(numbers[10:18]) == set(nearest_half[:8])
    assert np.allclose([s.similarity for s in found], (unit[numbers] @ unit[:2].T).max(axis=1))
    # Different ones: each is the farthest from what is marked or suggested, among likely rows.
    pool = [i for i in order[: 10 + 40] if i not in numbers[:18]]
    near = [0, 1, 2, 3, *numbers[:18]]
    for number in numbers[18:]:
        best = min(pool, key=lambda i: float((unit[i] @ unit[near].T).max()))
        assert number == best
        pool.remove(best)
        near.append(best)


@pytest.mark.parametrize("size", [1, 7, 199, 200, 500])
def test_suggestions_do_not_depend_on_batches(size: int) -> None:
    vectors = rows(200)
    one = ranking(vectors)
    batches = [(places(200)[i : i + size], vectors[i : i + size]) for i in range(0, 200, size)]
    found, whole = one.best(batches, 11), one.best([(places(200), vectors)], 11)
    assert [(s.id, s.reason) for s in found] == [(s.id, s.reason) for s in whole]
    assert np.allclose([s.score for s in found], [s.score for s in whole])


@pytest.mark.parametrize("k", [1, 4, 5, 195, 300])
def test_there_are_k_of_them_or_all_that_are_left(k: int) -> None:
    vectors = rows(200)
    vectors[50] = np.nan
    found = ranking(vectors[np.r_[:50, 51:200]]).best([(places(200), vectors)], k)
    ids = [s.id for s in found]
    assert len(ids) == len(set(ids)) == min(k, 194)
    assert not {"000", "001", "002", "003", "004", "050"} & set(ids)


def test_annotations_of_one_span_are_one_question() -> None:
    vectors = np.repeat(rows(30), 2, axis=0)
    spans = [Location(f"{i // 2:03}", f"0-1#{i % 2 + 1}" if i % 2 else "0-1") for i in range(60)]
    examples = Examples.empty(DIM).with_marks("c", [("003", "0-1#2")], vectors[6:7])
    one = Ranking.of(examples, "c", fit(RAW, vectors), vectors)
    for size in (1, 3, 60):
        batches = [(spans[i : i + size], vectors[i : i + size]) for i in range(0, 60, size)]
        assert len({s.id for s in one.best(batches, 20)}) == 20
    found = one.best([(spans, vectors)], 40)
    assert Counter(s.id for s in found) == Counter(f"{i:03}" for i in range(30) if i != 3)


def test_what_is_refused() -> None:
    vectors = rows(20)
    with pytest.raises(LabelsError, match="k = 0"):
        ranking(vectors).best([(places(20), vectors)], 0)
    with pytest.raises(LabelsError, match=r"class 'e' has no example.*there are c"):
        examples = Examples.empty(DIM).with_marks("c", [("0", "whole")], vectors[:1])
        Ranking.of(examples, "e", fit(RAW, vectors), vectors)
    with pytest.raises(LabelsError, match="counter-examples"):
        Ranking.of(examples, "c", fit(RAW, vectors), vectors[:0])


# ---- through a collection


@pytest.fixture(scope="module")
def taught(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    path = Path(shutil.copytree(demo_collection, folder / "words.lance"))
    assert ask("teach", path, "zero", CLIPS / "zero_british-man.flac").code == 0
    return path


@pytest.fixture
def store(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "words.lance"))


def test_suggest_tells_why_and_how_to_mark(store: Path) -> None:
    done = ask("suggest", store, "zero", "-k", 10, "--json")
    found = done.json["suggestions"]
    assert done.json["class"] == "zero"
    assert Counter(one["reason"] for one in found) == {"likely": 5, "uncertain": 4, "different": 1}
    assert not any("zero_british-man" in one["id"] for one in found)
    assert found[0]["metadata"]["voice"]
    shown = ask("suggest", store, "zero", "-k", 10)
    lines = shown.out.splitlines()
    assert lines[0].split()[:4] == ["why", "score", "similarity", "item"]
    for line, one in zip(lines[1:], found, strict=True):
        figures = (f"{one[name]:.3f}" for name in ("score", "similarity"))
        assert line.split()[:3] == [one["reason"], *figures]
        assert Path(one["id"]).name in line
    # The command that is printed marks the first one, which does not come again.
    command = shlex.split(shown.err.split("to mark one: penult ")[1].split(" (or")[0])
    assert ask(*command).code == 0
    after = ask("suggest", store, "zero", "-k", 10, "--json").json["suggestions"]
    assert found[0]["id"] not in [one["id"] for one in after]
    classes = ask("classes", store, "--json").json["classes"]
    assert classes[0]["yes"] == 2


def test_no_and_unsure_are_answers_too(store: Path) -> None:
    first, second = (s.id for s in suggest(ClassSpace(Collection.open(store)), "zero", 2))
    ask("teach", store, "zero", first, "--mark", "no")
    ask("teach", store, "zero", second, "--mark", "unsure")
    left = [s.id for s in suggest(ClassSpace(Collection.open(store)), "zero", 1000)]
    count = Collection.open(store).count
    assert len(left) == count - 3 and not {first, second} & set(left)


def test_suggest_reads_rows_in_blocks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = ClassSpace(Collection.open(store))
    whole = suggest(space, "zero", 30)
    table, vectors = space.source.collection.reader.vectors(columns=("id", "region", "voice"))
    every = [Location(row["id"], row["region"]) for row in table.to_pylist()]
    weak = marks.sample(space.source.collection, scorers.WEAK, space.examples.keys)
    at_once = Ranking.of(space.examples, "zero", space.space, weak).best([(every, vectors)], 30)
    facts = ("id", "region", "reason")
    assert [[getattr(one, name) for name in facts] for one in whole] == [
        [getattr(one, name) for name in facts] for one in at_once
    ]
    for one, other in zip(whole, at_once, strict=True):
        assert [one.similarity, one.score] == pytest.approx([other.similarity, other.score], 1e-5)
    voices = {row["id"]: row["voice"] for row in table.to_pylist()}
    assert [one.metadata["voice"] for one in whole] == [voices[one.id] for one in whole]
    real, alive, most, rows = Reader.ordered, list[Any](), [0], [0]

    def watched(self: Reader, columns: Any, where: Any = None, *_: int, **how: int) -> Any:
        for batch in real(self, columns, where, 10, **how):
            alive.append(weakref.ref(batch))
            most[0] = max(most[0], sum(one() is not None for one in alive))
            rows[0] += len(batch)
            assert len(batch) <= 10 and set(columns) <= {*Location.__slots__, "vector"}
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "ordered", watched)
        again = suggest(ClassSpace(Collection.open(store)), "zero", 30)
    assert [one.id for one in again] == [one.id for one in whole]
    assert most[0] <= 2 and rows[0] >= len(every)  # two blocks in memory, whatever there is


def test_a_sample_reads_the_rows_that_it_takes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(store)
    _, vectors = collection.reader.vectors()
    real, taken = lance.take_rows, list[int]()
    monkeypatch.setattr(lance, "take_rows", lambda path, table, columns, wanted: (
        taken.append(len(wanted)) or real(path, table, columns, wanted)))  # fmt: skip
    np.testing.assert_array_equal(marks.sample(collection, 20), vectors[::7])  # 128 rows
    assert sum(taken) == 19


def test_suggest_into_files(store: Path, tmp_path: Path) -> None:
    where = "voice = 'scottish-man'"
    done = ask("suggest", store, "zero", "--where", where, "--out", tmp_path / "ask.csv")
    assert done.code == 0, done.err
    lines = list(csv.DictReader((tmp_path / "ask.csv").open()))
    assert {line["voice"] for line in lines} == {"scottish-man"}
    assert {line["class"] for line in lines} == {"zero"}
    asked = ask("suggest", store, "zero", "--where", where, "--json").json["suggestions"]
    files = [str(CLIPS.parent / one["id"]) for one in asked]
    assert [line["path"] for line in lines] == files
    assert [line["reason"] for line in lines] == [one["reason"] for one in asked]
    again = ask("suggest", store, "zero", "--out", tmp_path / "ask.csv")
    assert again.code == 2 and "--overwrite" in again.error
    assert ask("suggest", store, "zero", "--out", tmp_path / "ask.doc").code == 2


def test_suggest_windows_as_a_raven_table(tmp_path: Path) -> None:
    words = ("three_scottish-man", "zero_british-man", "three_british-man", "five_british-man")
    sounds = [soundfile.read(CLIPS / f"{word}.flac") for word in words]
    long, store = tmp_path / "long.wav", tmp_path / "long.lance"
    soundfile.write(long, np.concatenate([sound for sound, _ in sounds]), sounds[0][1])
    done = ask("embed", "demo", long, "--into", store, "--tap", "prelogits", "--window", "400ms",
               "--hop", "200ms")  # fmt: skip
    assert done.code == 0, done.err
    assert ask("teach", store, "three", long, "--start", 0, "--end", 0.4).code == 0
    assert ask("suggest", store, "three", "-k", 3, "--out", tmp_path / "a.txt").code == 0
    lines = list(csv.DictReader((tmp_path / "a.txt").open(), delimiter="\t"))
    found = ask("suggest", store, "three", "-k", 3, "--json").json["suggestions"]
    assert [float(line["Begin Time (s)"]) for line in lines] == [one["start"] for one in found]
    shown = ask("suggest", store, "three", "-k", 3)
    command = shlex.split(shown.err.split("to mark one: penult ")[1].split(" (or")[0])
    before = Collection.open(store).count
    assert ask(*command).code == 0
    assert Collection.open(store).count == before  # the mark is of the row, not of a new one


def test_suggest_refuses_by_a_sentence(store: Path, tmp_path: Path) -> None:
    done = ask("suggest", store, "apple")
    assert done.code == 2 and "'apple' has no example" in done.error and "zero" in done.error
    assert ask("suggest", store, "zero", "-k", 0).code == 2
    ask("classes", store, "--save", tmp_path / "words.npz")
    done = ask("suggest", tmp_path / "words.npz", "zero")
    assert done.code == 2 and "no rows to suggest" in done.error
    done = ask("suggest", store, "zero", "--where", "voice = 'nobody'")
    assert done.code == 0 and "no row is left to mark" in done.out


def test_ten_answers_find_most_of_a_class(store: Path) -> None:
    space = ClassSpace(Collection.open(store))

    def truth(one: Suggestion) -> str:
        return "yes" if one.metadata["word"] == "zero" else "no"

    members = Collection.open(store).count - sum(
        1 for s in suggest(space, "zero", 10_000) if s.metadata["word"] != "zero"
    )
    given = answer_suggestions(space, "zero", truth, answers=12, batch=4)
    assert len(given) == 12 and len({one.id for one, _ in given}) == 12
    found = sum(mark == "yes" for _, mark in given)
    assert found >= 0.7 * (members - 1)
    marks = {c.name: (c.yes, c.no) for c in ClassSpace(Collection.open(store)).classes}
    assert marks["zero"] == (1 + found, 12 - found)


# ---- a background: rows that are of none of the classes


def test_a_no_for_every_class_holds_where_there_is_no_other_mark() -> None:
    vectors = rows(4)
    examples = Examples.empty(DIM)
    examples = examples.with_marks("*", [(str(i), "whole") for i in range(4)], vectors, "no")
    examples = examples.with_marks("a", [("1", "whole")], vectors[1:2])
    examples = examples.with_marks("b", [("2", "whole")], vectors[2:3], "unsure")
    examples = examples.with_marks("b", [("4", "whole")], rows(1, seed=5))
    assert examples.names == ["a", "b"]
    assert examples.targets(["a", "b"]).tolist() == [[-2, -2], [1, -1], [-2, 0], [-2, -2], [-1, 1]]
    assert [(c.name, c.yes, c.no) for c in examples.classes()] == [
        ("a", 1, 0), ("b", 1, 0), ("*", 0, 4)]  # fmt: skip
    for refused in (
        lambda: examples.with_marks("*", [("9", "whole")], vectors[:1]),
        lambda: examples.renamed("*", "c"),
        lambda: examples.renamed("a", "*"),
        lambda: examples.merged(["a", "*"], "b"),
        lambda: examples.merged(["a", "b"], "*"),
    ):
        with pytest.raises(LabelsError, match="stands for every class"):
            refused()
    assert examples.without("*").names == ["a", "b"]
    assert len(examples.without("*").keys) == 3


def test_a_background_of_rows_is_drawn_from_those_without_a_mark(store: Path) -> None:
    space = ClassSpace(Collection.open(store))
    one = add_background(space, 10, "voice = 'scottish-man'")
    other = add_background(space, 10)
    assert len(set(one)) == len(set(other)) == 10 and not set(one) & set(other)
    assert all("scottish-man" in id for id, _ in one)
    assert not {key for key in one + other if "zero_british-man" in key[0]}
    again = {c.name: c.no for c in ClassSpace(Collection.open(store)).classes}
    assert again["*"] == 20
    left = {(s.id, s.region) for s in suggest(space, "zero", 1000)}
    assert not left & {*one, *other}
    everything = add_background(space, 10_000)
    assert len(everything) == Collection.open(store).count - 21
    with pytest.raises(LabelsError, match="no row without a mark"):
        add_background(space, 1)
    with pytest.raises(LabelsError, match="background of 0"):
        add_background(space, 0)


def test_a_background_of_a_file_space_is_made_of_items(store: Path, tmp_path: Path) -> None:
    ask("classes", store, "--save", tmp_path / "words.npz")
    space = ClassSpace.load(tmp_path / "words.npz")
    with pytest.raises(LabelsError, match="give files"):
        add_background(space, 5)
    assert len(add_background(space, [CLIPS / "no_british-man.flac"])) == 1
    assert [(c.name, c.no) for c in space.classes] == [("zero", 0), ("*", 1)]


def test_a_background_keeps_other_sounds_out_of_the_classes(store: Path) -> None:
    """Words that were taught to nobody, as in a recording of something else."""
    asked = "word IN ('three', 'eight', 'yes', 'no', 'banana', 'nine') AND voice = 'scottish-man'"
    voices = ("british-man", "oxford-woman", "american-woman")
    for word in ("zero", "three"):
        assert ask("teach", store, word, *(CLIPS / f"{word}_{v}.flac" for v in voices)).code == 0
    before = ask("predict", store, "--where", asked, "--unknown", 0, "--json").json
    drawn = "word NOT IN ('zero', 'three') AND voice != 'scottish-man'"
    done = ask("teach", store, "--background", 20, "--where", drawn, "--json")
    assert done.code == 0 and done.json["taught"] == {"*": 20}, done.err
    assert "of none of the classes" in ask("classes", store).out
    after = ask("predict", store, "--where", asked, "--unknown", 0, "--json").json
    assert after["method"] == "agile" and after["classes"] == ["zero", "three"]
    labels = {one["id"].rsplit("/")[-1].split("_")[0]: one["label"] for one in after["predictions"]}
    assert labels["three"] == "three"
    assert sum(one["label"] is None for one in before["predictions"]) == 0
    assert sum(label is None for label in labels.values()) >= len(labels) - 2
    assert ask("teach", store, "--undo").code == 0
    assert ask("predict", store, "--unknown", 0, "--json").json["method"] != "agile"


# ---- limits of predictions


def test_limits_make_unknowns_of_weak_predictions(store: Path) -> None:
    for word in ("zero", "three", "five"):
        files = (CLIPS / f"{word}_{v}.flac" for v in ("british-man", "oxford-woman"))
        assert ask("teach", store, word, *files).code == 0
    plain = ask("predict", store, "--unknown", 0, "--json").json
    assert plain["limits"] == {"probability": None, "similarity": None, "without": []}
    places = [(one["id"], one["label"], one["score"], one["similarity"])
              for one in plain["predictions"]]  # fmt: skip
    middle = float(np.median([one[2] for one in places]))
    alike = float(np.median([one[3] for one in places]))
    for options, stays in (
        (("--min-probability", middle), lambda one: one[2] >= middle),
        (("--min-similarity", alike), lambda one: one[3] >= alike),
        (("--without", "zero", "--without", "five"), lambda one: one[1] == "three"),
    ):
        found = ask("predict", store, "--unknown", 0, *options, "--json").json["predictions"]
        expected = [one[1] if stays(one) else None for one in places]
        assert [one["label"] for one in found] == expected
        assert all(bool(one["said"]) == (one["label"] is not None) for one in found)
        assert None in expected and any(expected)
    assert ask("predict", store, "--without", "apple").code == 2
    assert ask("predict", store, "--min-probability", 2).code == 2
    with pytest.raises(LabelsError, match="least similarity of 2"):
        AssignmentLimits(similarity=2)


def test_limits_keep_those_of_several_classes_that_reach_them() -> None:
    detection = Window("a", None, 0.0, 1.0, {"x": 0.9, "y": 0.6}, {}, {"x": 0.2, "y": 0.5})
    one = ClassPrediction("a", "whole", "multi-label", "x", 0, 0.9, np.array([0.9, 0.6]),
                          np.zeros(2), ("x", "y"), similarity=0.2, detection=detection)  # fmt: skip
    left = AssignmentLimits(similarity=0.4)(one)
    assert (left.label, left.index, left.score, left.similarity) == ("y", 1, 0.6, 0.5)
    assert dict(left.detection.probabilities) == {"y": 0.6}
    assert AssignmentLimits(probability=0.95)(one).label is None
    assert AssignmentLimits(probability=0.6)(one) is one


# ---- precision and recall of a class


def test_the_curve_of_a_class_on_held_out_marks(store: Path, tmp_path: Path) -> None:
    """Against counts that are made here from predictions without each example."""
    voices = ("british-man", "oxford-woman", "american-woman", "new-york-man")
    words = ("zero", "three", "eight")
    for word in words:
        assert ask("teach", store, word, *(CLIPS / f"{word}_{v}.flac" for v in voices)).code == 0
    space = ClassSpace(Collection.open(store), method="prototype")
    vectors, keys = space.space(space.examples.vectors).astype(float), space.examples.keys
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = np.array([Path(id).name.split("_")[0] for id, _ in keys])
    scores = np.empty((len(keys), 3))
    for i in range(len(keys)):
        others = np.arange(len(keys)) != i
        for k, word in enumerate(words):
            mean = vectors[others & (names == word)].mean(axis=0)
            scores[i, k] = vectors[i] @ mean / np.linalg.norm(mean)
    shares = space.fitted.probabilities(scores)
    order = [space.fitted.names.index(word) for word in words]
    assert order == [0, 1, 2]
    given = shares.argmax(axis=1) == 2
    curve = precision_recall(space.fitted, "eight")
    assert (curve.yes, curve.no) == (4, 8)
    for threshold, precision, recall in zip(
        curve.thresholds, curve.precision, curve.recall, strict=True
    ):
        said = given & (shares[:, 2] >= threshold - 1e-9)
        right = said & (names == "eight")
        assert np.isclose(precision, right.sum() / said.sum())
        assert np.isclose(recall, right.sum() / 4)
    assert len(curve.thresholds) == len(np.unique(shares[given, 2]))


def test_classes_print_a_curve_and_its_threshold(store: Path, tmp_path: Path) -> None:
    for word in ("zero", "three", "eight"):
        files = [
            CLIPS / f"{word}_{v}.flac" for v in ("british-man", "oxford-woman", "american-woman")
        ]
        assert ask("teach", store, word, *files).code == 0
    picture = tmp_path / "zero.png"
    options = ("--curve", "zero", "--precision", 0.8)
    done = ask("classes", store, *options, "--plot", picture, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["class"] == "zero" and (found["yes"], found["no"]) == (3, 6)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    point = found["wanted"]["point"]
    assert point in found["curve"] and point["precision"] >= 0.8
    assert point["recall"] == max(p["recall"] for p in found["curve"] if p["precision"] >= 0.8)
    shown = ask("classes", store, *options).out
    assert f"recall {point['recall']:.3f}" in shown and "3 examples and 6 others" in shown
    threshold = shown.split("--min-probability ")[1].split(",")[0]
    assert 0 <= point["threshold"] - float(threshold) < 2e-6
    assert ask("predict", store, "--min-probability", threshold).code == 0
    assert ask("classes", store, "--curve", "apple").code == 2
    assert ask("classes", store, "--curve", "zero", "--precision", 2).code == 2
    assert ask("classes", store, *options, "--plot", picture).code == 2


def test_a_curve_needs_marks_on_both_sides(store: Path) -> None:
    done = ask("classes", store, "--curve", "zero")
    assert done.code == 2 and "could be held out" in done.error
