"""Probes: no group on both sides, measures as scikit-learn gives them, files that give the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from penult.analysis import probe_io
from penult.analysis.probe import confused, probe, trained
from penult.analysis.probe_io import join_features
from penult.collection.collection import Collection
from penult.data.roots import Root, Roots
from penult.errors import LabelsError, SourceError, UsageError
from test_cli import ask
from test_clusters import blobs
from test_collection import DIM, batch, filled


def classed(noise: float = 1.5, sizes: tuple[int, ...] = (60, 40, 20)) -> tuple[np.ndarray, list]:
    rows, truth = blobs(sizes, 16, noise)
    return rows, [f"class {number}" for number in truth]


def test_the_measures_are_scikit_learns() -> None:
    rows, names = classed()
    found = probe(rows, [*names[:-1], None])
    assert len(found.rows) == 119 and found.classes == ["class 0", "class 1", "class 2"]
    truth, said = found.truth, found.predicted
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, said))
    balanced = metrics.balanced_accuracy_score(truth, said)
    assert found.balanced_accuracy.value == pytest.approx(balanced)
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, said))
    table = metrics.precision_recall_fscore_support(truth, said)
    for one, *expected in zip(found.per_class, *table, strict=True):
        assert (one.precision, one.recall, one.f1, one.rows) == pytest.approx(tuple(expected))
    for one in (found.accuracy, found.balanced_accuracy, found.macro_f1):
        assert one.low < one.value < one.high
    assert confused(found)[0][2] == np.max(found.confusion * (1 - np.eye(3)))
    assert "1 rows have no class" in found.notes[0]


def test_a_group_is_never_on_both_sides() -> None:
    """Rows tell their group and nothing of their class, which is the group's by chance: whoever
    has seen the group knows the class, whoever has not can only guess."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 10)
    rows = np.eye(60)[group] + 0.05 * random.standard_normal((600, 60))
    names = [f"class {random_class}" for random_class in random.integers(0, 2, 60)[group]]
    leaky = probe(rows, names)
    assert leaky.accuracy.value > 0.99 and leaky.groups is None
    apart = probe(rows, names, [str(number) for number in group])
    assert apart.groups == 60 and apart.accuracy.value < 0.7
    width = [one.accuracy.high - one.accuracy.low for one in (apart, leaky)]
    assert width[0] > 5 * width[1]  # 60 groups say less than 600 rows


def test_results_repeat() -> None:
    rows, names = classed()
    one, other = probe(rows, names), probe(rows, names)
    assert np.array_equal(one.predicted, other.predicted) and one.accuracy == other.accuracy
    assert not np.array_equal(one.predicted, probe(rows, names, seed=1).predicted)


def test_small_classes_are_told() -> None:
    rows, names = classed(0.2, (30, 20, 3))
    found = probe(rows, names)
    assert "the smallest class has 3 rows, fewer than 5 folds" in found.notes
    names[names.index("class 2")] = "lone"
    found = probe(rows, names)
    assert "left out, of one row only: lone" in found.notes and len(found.rows) == 52
    rows, names = classed(0.2, (3, 2))
    assert probe(rows, names).folds == 3
    groups = ["a", "b", "a", "b", "a"]
    assert "2 folds, as there are 2 groups" in probe(rows, ["x", "x", "y", "y", "x"], groups).notes


def test_a_class_of_one_group_is_left_out() -> None:
    rows, names = classed(0.2, (30, 20, 20))
    groups = ["one" if name == "class 2" else str(i % 6) for i, name in enumerate(names)]
    found = probe(rows, names, groups)
    assert found.classes == ["class 0", "class 1"]
    assert "left out, of one group only: class 2" in found.notes


@pytest.mark.parametrize(
    ("names", "groups", "says"),
    [
        (["a"] * 6, None, "all rows are 'a'"),
        (list("aaabcd"), None, "3 of 4 classes have one row only"),
        ([None] * 6, None, "no row has a class"),
        (list("aaabbb"), list("xxxyyy"), "2 of 2 classes have one group only"),
        (list("aabbb"), None, "5 names do not fit"),
        (list("aaabbb"), list("xy"), "2 groups do not fit 6 names"),
        (list("aaabbb"), [None] * 6, "no row has a class"),
    ],
)
def test_what_is_refused(names: list, groups: list | None, says: str) -> None:
    with pytest.raises(LabelsError, match=says):
        probe(np.eye(6), names, groups)


def test_numbers_that_are_none() -> None:
    rows = np.eye(6)
    with pytest.raises(LabelsError, match="two or more are needed"):
        probe(rows, list("aaabbb"), folds=1)
    with pytest.raises(LabelsError, match="cannot be"):
        probe(rows, list("aaabbb"), strength=0)
    rows[2, 2] = np.nan
    with pytest.raises(LabelsError, match="1 of 6 vectors have values that are not finite"):
        probe(rows, list("aaabbb"))
    same = probe(np.ones((12, 4)), list("aaaabbbbcccc"))
    assert same.accuracy.value <= 0.5


@pytest.mark.parametrize("sizes", [(60, 40), (60, 40, 20)])
def test_saved_probes_give_the_same(sizes: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("skops")
    onnxruntime = pytest.importorskip("onnxruntime")
    rows, names = classed(1.5, sizes)
    rows = 100 * rows + 1000
    rows[:, 3] = 7  # a number that never changes
    probed = probe(rows, names)
    model = trained(rows, probed)
    expected = model.predict_proba(rows)
    for suffix in probe_io.SUFFIXES:
        probe_io.save(tmp_path / f"probe{suffix}", model, {"classes": probed.classes})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe.onnx", "probe.skops"]
    again = probe_io.load(tmp_path / "probe.skops")
    assert np.array_equal(again.predict_proba(rows), expected)
    assert json.loads(again.penult_)["classes"] == probed.classes == list(again.classes_)
    session = onnxruntime.InferenceSession(tmp_path / "probe.onnx")
    said, label = session.run(None, {"vectors": rows.astype(np.float32)})
    assert np.abs(said - expected).max() < 1e-5
    assert list(label) == list(model.predict(rows))
    assert json.loads(session.get_modelmeta().custom_metadata_map["penult"])["classes"]


def test_what_cannot_be_saved_or_opened(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    with pytest.raises(UsageError, match=r"saved as \.skops or \.onnx, not as 'probe.pkl'"):
        probe_io.check_suffix(Path("probe.pkl"))
    (tmp_path / "a.skops").write_text("nothing")
    for name in ("a.skops", "none.skops"):
        with pytest.raises(UsageError):
            probe_io.load(tmp_path / name)


def table(path: Path, *rows: list) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_features_are_joined_by_id(tmp_path: Path) -> None:
    ids = [str(tmp_path / "a.wav"), "b", "c"]
    given = table(tmp_path / "f.csv", ["path", "x", "y"], ["b", 1, 0.5], ["a.wav", 2, 0.25])
    found = join_features(given, ids, ["whole"] * 3)
    assert found.names == ["x", "y"] and found.complete.tolist() == [True, True, False]
    assert found.values[:2].tolist() == [[2, 0.25], [1, 0.5]]
    given = table(tmp_path / "g.csv", ["id", "region", "x"], ["b", "0-1", 1], ["b", "1-2", 2])
    assert join_features(given, ["b", "b"], ["1-2", "0-1"]).values.ravel().tolist() == [2, 1]
    roots = Roots({"recs": Root(str(tmp_path))})
    given = table(tmp_path / "i.csv", ["Path", "x"], ["a.wav", 1], ["s2/b.wav", 2], ["b.wav", 3])
    own = ["recs/a.wav", "recs/s2/b.wav", "recs/b.wav", "far/x/s2/b.wav"]
    found = join_features(given, own[:3], ["whole"] * 3, roots)
    assert found.values.ravel().tolist() == [1, 2, 3]
    elsewhere = table(tmp_path / "t" / "i.csv", ["ID", "x"], ["s2/b.wav", 2], ["a.wav", 1])
    found = join_features(elsewhere, own[:2], ["whole"] * 2, roots)
    assert found.values.ravel().tolist() == [1, 2]
    with pytest.raises(SourceError, match=r"'s2/b\.wav' may be 'far/x/s2/b\.wav' or '"):
        join_features(elsewhere, own, ["whole"] * 4, roots)
    for rows, says in (
        ([["name", "x"], ["b", 1]], "no column id or path"),
        ([["id"], ["b"]], "no column besides its ids"),
        ([["id", "x"], ["b", "loud"]], "the column 'x' holds string"),
        ([["id", "x"], ["b", 1], ["b", 2]], "'b' comes twice"),
        ([["id", "x"], ["z", 1]], "none of its ids is a row's"),
    ):
        with pytest.raises(SourceError, match=says):
            join_features(table(tmp_path / "h.csv", *rows), ids, ["whole"] * 3)
    with pytest.raises(SourceError, match="cannot be read as a table"):
        join_features(tmp_path / "none.csv", ids, ["whole"] * 3)


@pytest.fixture
def made(tmp_path: Path) -> Collection:
    rows, truth = blobs((40, 30, 20), DIM, noise=1.0)
    ids = [f"/calls/{'abc'[t]}_{i % 6}_{i:02}.wav" for i, t in enumerate(truth.tolist())]
    return filled(tmp_path / "c.lance", batch(ids, vectors=rows))


def test_on_the_command_line(made: Collection, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, saved = tmp_path / "confusion.png", tmp_path / "probe.onnx"
    by = ["--by", "{}_*_*.wav"]
    said = ask(
        "probe", made.path, *by, "--group", "*_{}_*.wav", "--picture", picture, "--save", saved
    )
    assert said.code == 0 and "6 groups (*_{}_*.wav); baseline" in said.out
    assert picture.read_bytes()[:4] == b"\x89PNG" and saved.is_file()
    ids = made.vectors()[0]["id"].to_pylist()
    lines = [[id, "abc".index(Path(id).name[0])] for id in ids[5:]]
    given = table(tmp_path / "f.csv", ["id", "which"], *lines)
    said = ask("probe", made.path, *by, "--features", given, "--json")
    assert "5 rows lack some of the features" in said.err
    measures = said.json["measures"]
    assert list(measures) == ["vectors", "features", "both"] and said.json["rows"] == 85
    assert measures["both"]["accuracy"]["value"] > measures["vectors"]["accuracy"]["value"]
    assert measures["features"]["accuracy"]["value"] == 1


def test_mistakes_on_the_command_line(made: Collection, tmp_path: Path) -> None:
    empty = filled(tmp_path / "empty.lance")
    for arguments, says in (
        ([made.path], "by"),
        ([made.path, "--by", "word"], "'word' names nothing"),
        ([made.path, "--by", "labels"], "has a name by 'labels'"),
        ([made.path, "--by", "cluster"], "has no clusters yet"),
        ([made.path, "--by", "folder"], "all rows are 'calls'"),
        ([made.path, "--by", "{}_*_*.wav", "--group", "{}_*_*.wav"], "one group only"),
        ([made.path, "--by", "{}_*_*.wav", "--save", "p.pickle"], "saved as .skops or .onnx"),
        ([made.path, "--by", "{}_*_*.wav", "--picture", tmp_path / "a.gif"], "written as .png"),
        ([made.path, "--by", "folder", "--where", "id = 'x'"], "no row"),
        ([empty.path, "--by", "folder"], "has no rows"),
    ):
        said = ask("probe", *arguments)
        assert said.code == 2 and says in said.error, said
