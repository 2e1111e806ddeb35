"""Several classes at once: thresholds of classes, what to expect of them, and labels in tables."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    precision_recall_curve,
)

import penult
from penult.analysis.space import fit, unit
from penult.collection.collection import Collection
from penult.data.items import names_in
from penult.embedding.embedder import Embedder
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import Examples
from penult.fewshot.fitted import CrossValidation, FittedClasses
from penult.fewshot.thresholds import NO_THRESHOLDS, LabelThresholds
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
VOICES = ("british-man", "oxford-woman", "new-york-man")
KINDS, DIM, GROUPS = 10, 16, 7


def mixes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n vectors, each the sum of one to three directions and noise, and the directions of each."""
    random = np.random.default_rng(seed)
    truth = np.zeros((n, KINDS), bool)
    for row in truth:
        row[random.choice(KINDS, random.integers(1, 4), replace=False)] = True
    spread = np.linspace(0.5, 1.0, KINDS)
    noise = random.standard_normal((n, DIM)) * (truth @ spread)[:, None] * 0.3
    return (truth @ np.eye(KINDS, DIM) + noise).astype(np.float32), truth


def taught(vectors: np.ndarray, truth: np.ndarray, **options: Any) -> FittedClasses:
    """Several at once, by prototypes in the raw space; a group for each row."""
    examples = Examples(
        vectors,
        tuple((f"{i}.wav", "whole") for i in range(len(vectors))),
        tuple({f"k{k}": "yes" for k in np.flatnonzero(row)} for row in truth),
    )
    groups = [f"g{i % GROUPS}" for i in range(len(vectors))]
    return FittedClasses(examples, fit("raw", vectors), "prototype", True, None, groups, **options)


def by_hand(truth: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The thresholds by scikit-learn's curves: the best F1, if it is better than at one half."""
    found = []
    for own, share in zip(truth.T, shares.T, strict=True):
        precision, recall, at = precision_recall_curve(own, share)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = f1[:-1].argmax()
        below = share[share < at[best]]
        half = f1_score(own, share >= 0.5)
        clear = f1[best] - half > np.sqrt(f1[best] * (1 - f1[best]) / own.sum())
        lower = (at[best] + below.max()) / 2 if len(below) else at[best]
        found.append(lower if clear else 0.5)
    return np.array(found)


def test_thresholds_and_measures_are_those_of_scikit_learn() -> None:
    vectors, truth = mixes(140)
    fitted = taught(vectors, truth)
    order = [int(name[1:]) for name in fitted.names]
    truth = truth[:, order]
    shares = fitted.held_out()[0]
    known = fitted.thresholds
    np.testing.assert_allclose(known.least, by_hand(truth, shares))
    assert known.chosen == tuple(one != 0.5 for one in known.least) and any(known.chosen)
    each = average_precision_score(truth, shares, average=None)
    np.testing.assert_allclose(known.average_precision, each)
    ranked = label_ranking_average_precision_score(truth, shares, sample_weight=truth.sum(axis=1))
    # F1 of decisions on each group, by thresholds that the other groups gave
    group, decided = np.arange(len(vectors)) % GROUPS, np.zeros(truth.shape, bool)
    for one in range(GROUPS):
        out = group == one
        decided[out] = shares[out] >= by_hand(truth[~out], shares[~out])
    np.testing.assert_allclose(known.f1, f1_score(truth, decided, average=None))
    wanted = [each.mean(), ranked, *(f1_score(truth, decided, average=a)
                                     for a in ("macro", "micro"))]  # fmt: skip
    assert list(known.expected.values()) == pytest.approx(wanted)
    assert known.examples == 140
    # and they are not better than what they give on the very examples that they are chosen on
    assert known.expected["f1_macro"] < f1_score(truth, shares >= known.least, average="macro")


def test_expected_measures_come_true_on_other_items() -> None:
    gaps, gains = [], []
    for seed in range(4):
        fitted = taught(*mixes(200, seed))
        others, truth = mixes(2000, 100 + seed)
        truth = truth[:, [int(name[1:]) for name in fitted.names]]
        judged = fitted.judge(others)
        found = [average_precision_score(truth, judged.probability),
                 f1_score(truth, judged.assigned, average="macro")]  # fmt: skip
        expected = fitted.thresholds.expected
        gaps.append(np.subtract(found, [expected["mean_average_precision"], expected["f1_macro"]]))
        half = f1_score(truth, judged.probability >= 0.5, average="macro")
        gains.append(found[1] - half)
    assert np.mean(gains) > 0.005  # one item in five is of each class
    assert np.abs(np.mean(gaps, axis=0)).max() < 0.03


@pytest.mark.slow
def test_intervals_of_few_examples_hold_what_comes_true() -> None:
    """From a dozen examples the figures alone are wide of the mark, average precision too high."""
    vectors, truth = mixes(1000, seed=5)
    inside, gaps, widths = [], [], []
    for seed in range(20):
        drawn = np.random.default_rng(seed).permutation(500)[:14]
        few = taught(vectors[drawn], truth[drawn])
        names, stated = few.names, few.to_dict()["expected"]
        found = few.judge(vectors[500:])
        marked = truth[500:][:, [int(name[1:]) for name in names]]
        real = {
            "f1_macro": f1_score(marked, found.assigned, average="macro"),
            "f1_micro": f1_score(marked, found.assigned, average="micro"),
            "mean_average_precision": average_precision_score(marked, found.probability),
        }
        for name, value in real.items():
            low, high = stated["intervals"][name]
            assert 0 <= low <= stated[name] <= high <= 1
            inside.append(low <= value <= high)
            gaps.append(abs(stated[name] - value))
            widths.append(high - low)
    assert np.mean(inside) >= 0.8 and max(gaps) > 0.1
    many = taught(vectors[:300], truth[:300]).to_dict()["expected"]["intervals"]
    assert np.subtract(*many["f1_macro"][::-1]) < 0.5 * np.median(widths)


def test_an_item_may_be_of_no_class_and_a_least_probability_overrides() -> None:
    vectors, truth = mixes(140)
    fitted, others = taught(vectors, truth), mixes(300, 9)[0]
    judged, least = fitted.judge(others), np.array(fitted.thresholds.least)
    np.testing.assert_array_equal(judged.assigned, judged.probability >= least)
    none = ~judged.assigned.any(axis=1)
    assert none.any() and (judged.label[none] == -1).all()
    some = np.flatnonzero(~none)
    best = np.where(judged.assigned, judged.probability, -1).argmax(axis=1)
    np.testing.assert_array_equal(judged.label[some], best[some])
    for level in (0.1, 0.9):
        given = fitted.judge(others, None, level)
        np.testing.assert_array_equal(given.assigned, given.probability >= level)
    # what is unknown by its level is of no class, whatever the probabilities
    strict = fitted.judge(others, 0.3, 0.0)
    far = strict.label == -1
    assert far.any() and not strict.assigned[far].any() and strict.assigned[~far].all()
    single = FittedClasses(fitted.examples, fitted.space, "prototype", False)
    plain, least_of_one = single.judge(others), single.judge(others, None, 0.3)
    reached = plain.probability.max(axis=1) >= 0.3
    np.testing.assert_array_equal(least_of_one.label, np.where(reached, plain.label, -1))


def test_without_thresholds_the_best_class_counts_and_those_above_one_half() -> None:
    vectors, truth = mixes(140)
    none = CrossValidation(thresholds=NO_THRESHOLDS)
    fitted, others = taught(vectors, truth, kept=none), mixes(300, 9)[0]
    judged = fitted.judge(others)
    best = judged.score.argmax(axis=1)
    np.testing.assert_array_equal(judged.label, best)
    wanted = (judged.probability >= 0.5) | (np.arange(KINDS) == best[:, None])
    np.testing.assert_array_equal(judged.assigned, wanted)
    few = taught(*mixes(4))  # none of the classes has three members to hold out
    assert few.thresholds == NO_THRESHOLDS
    assert few.to_dict()["thresholds"] is None and few.to_dict()["expected"] is None


def test_thresholds_are_kept_as_they_are() -> None:
    known = taught(*mixes(60)).thresholds
    assert LabelThresholds.from_dict(json.loads(json.dumps(known.to_dict()))) == known
    assert LabelThresholds.from_dict(None) == NO_THRESHOLDS


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("dog; rain", ["dog", "rain"]),
        ("dog;;dog;", ["dog"]),
        ('["dog", "rain"]', ["dog", "rain"]),
        ("['dog', 'rain']", ["dog", "rain"]),
        ("[]", []),
        ("[dog", ["[dog"]),
        ("[dog]", ["[dog]"]),
    ],
)
def test_a_cell_may_name_several_classes(cell: str, names: list[str]) -> None:
    assert names_in(cell) == names


# ---- by the command


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


def tags_of(word: str) -> list[str]:
    """Odd or even, and whether below four."""
    number = WORDS.index(word)
    return ["odd" if number % 2 else "even", *(["small"] if number < 4 else [])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """Clips of three voices, with their tags in one cell, and as a line each."""
    folder = tmp_path_factory.mktemp("store")
    clips = [(CLIPS / f"{word}_{voice}.flac", tags_of(word), voice)
             for word in WORDS for voice in VOICES]  # fmt: skip
    lines = [f"{path},{';'.join(tags)},{voice}" for path, tags, voice in clips]
    (folder / "cells.csv").write_text("\n".join(["path,tags,voice", *lines]) + "\n")
    lines = [f"{path},{tag}" for path, tags, _ in clips for tag in tags]
    (folder / "lines.csv").write_text("\n".join(["path,tag", *lines]) + "\n")
    items = (json.dumps({"path": str(path), "tags": tags}) for path, tags, _ in clips)
    (folder / "lists.jsonl").write_text("\n".join(items) + "\n")
    Collection.open(folder / "cells.lance").add(embedder, folder / "cells.csv")
    Collection.open(folder / "lines.lance").add(embedder, folder / "lines.csv")
    return folder


def marks(place: Path) -> dict[str, list[str]]:
    examples = ClassSpace(Collection.open(place)).examples
    return {Path(id).name: sorted(one) for (id, _), one in
            zip(examples.keys, examples.marks, strict=True)}  # fmt: skip


def test_tags_of_cells_lines_and_lists_are_the_same_classes(made: Path, tmp_path: Path) -> None:
    wanted = {f"{word}_{voice}.flac": sorted(tags_of(word)) for word in WORDS for voice in VOICES}
    for name, *source in (
        ("cells", "--from", "tags"),
        ("lines", "--from", "tag"),  # rows of the collection, several of one span
        ("cells", "--from", "tag", made / "lines.csv"),
        ("cells", "--from", "tags", made / "lists.jsonl"),
    ):
        store = tmp_path / f"{name}.lance"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(made / f"{name}.lance", store)
        rows = Collection.open(store).count
        done = ask("teach", store, *source, "--several", "--json")
        assert done.code == 0, done.err
        assert done.json["taught"] == {"even": 12, "small": 12, "odd": 12}
        assert marks(store) == wanted
        assert Collection.open(store).count == rows  # no row for a further annotation
    table = tmp_path / "marks.csv"
    assert ask("classes", store, "--csv", table).code == 0
    empty = Path(shutil.copytree(made / "cells.lance", tmp_path / "empty.lance"))
    assert ask("teach", empty, "--from", "class", table).code == 0
    assert marks(empty) == wanted


def test_a_list_of_classes_is_one_name_where_an_item_has_one_class(
    made: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(made / "cells.lance", tmp_path / "cells.lance"))
    done = ask("teach", store, "--from", "tags", "--json")
    assert done.json["taught"] == {"even;small": 6, "odd;small": 6, "even": 6, "odd": 6}
    assert "'even;small' is taken for the name of one class" in done.err
    assert "--several reads the parts" in done.err


def test_thresholds_are_kept_told_and_overridden(made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made / "cells.lance", tmp_path / "cells.lance"))
    assert ask("teach", store, "--from", "tags", "--several", "--groups", "voice").code == 0
    space = ClassSpace(Collection.open(store))
    known, names = space.fitted.thresholds, space.fitted.names
    assert known == space.history.current.thresholds and known.least  # type: ignore[union-attr]
    told = {one["name"]: one for one in ask("classes", store, "--json").json["classes"]}
    assert [told[name]["threshold"] for name in names] == pytest.approx(known.least)
    assert [told[name]["average_precision"] for name in names] == pytest.approx(
        known.average_precision
    )
    assert "threshold" in ask("classes", store).out.splitlines()[0]
    plain = ask("predict", store, "--unknown", 0, "--json").json
    assert plain["expected"]["examples"] == 24
    low, high = plain["expected"]["intervals"]["f1_macro"]
    assert low <= plain["expected"]["f1_macro"] <= high
    assert f"({low:.2f} to {high:.2f}) by class" in ask("predict", store).err
    assert plain["thresholds"]["odd"]["threshold"] == pytest.approx(told["odd"]["threshold"])
    least = dict(zip(names, known.least, strict=True))
    for options, wanted in ((), least), (("--min-probability", 0.2), dict.fromkeys(names, 0.2)):
        done = ask("predict", store, "--unknown", 0, *options)
        assert done.code == 0, done.err
        found = ask("predict", store, "--unknown", 0, *options, "--json").json["predictions"]
        for one in found:
            reached = [n for n in sorted(names, key=lambda n: -one["scores"][n])
                       if one["scores"][n] >= wanted[n] - 1e-7]  # fmt: skip
            assert sorted(one["labels"]) == sorted(reached) and one["said"] == one["labels"]
            assert one["label"] == (one["labels"][0] if one["labels"] else None)
        total = sum(len(one["labels"]) or 1 for one in found)
        counted = done.out.splitlines()[-1].partition(": ")[2]
        assert sum(int(part.split()[-1]) for part in counted.split(", ")) == total
        expected = "mAP" if not options else "each from a probability of 0.2 on"
        assert expected in done.err
    # The similarities of all classes, also of those that are not assigned.
    marked = space.examples
    rows_of = Collection.open(store).reader.vectors()
    directions = [unit(space.space(one)) for one in (marked.vectors, rows_of[1])]
    middle = unit(np.stack([
        directions[0][[of.get(name) == "yes" for of in marked.marks]].mean(0) for name in names
    ]))  # fmt: skip
    cosines = directions[1] @ middle.T
    for one, own in zip(plain["predictions"], cosines, strict=True):
        assert list(one["similarities"]) == list(names)
        np.testing.assert_allclose([*one["similarities"].values()], own, atol=1e-5)
    table = tmp_path / "out.csv"
    assert ask("predict", store, "--unknown", 0, "--out", table).code == 0
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    for row, one in zip(rows, plain["predictions"], strict=True):
        assert row["labels"] == ";".join(one["labels"])
        assert row["class"] == (one["label"] or "unknown")
        for name in names:
            assert float(row[f"probability:{name}"]) == pytest.approx(one["scores"][name], 1e-4)
    # another class's name, and rows that come later, leave them as they are
    assert ask("classes", store, "--rename", "odd", "uneven").code == 0
    Collection.open(store).add(space.source.embedder, CLIPS / "eight_british-man.flac")
    renamed = ClassSpace(Collection.open(store)).fitted
    assert renamed.thresholds == known
    assert renamed.names == tuple("uneven" if name == "odd" else name for name in names)
