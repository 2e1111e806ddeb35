"""Probes of several labels and of values: measures as scikit-learn gives them, thresholds and
penalties from the training side alone, files that give the same, and how a column tells its task.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    r2_score,
)
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from penult.analysis import probe_io
from penult.analysis.prediction_measures import label_measures
from penult.analysis.probe_tasks import (
    PENALTIES,
    probe_labels,
    probe_values,
    trained_labels,
    trained_values,
)
from penult.collection.reader import append_labels
from penult.errors import LabelsError
from test_cli import ask
from test_collection import DIM, batch, filled

Made = tuple[np.ndarray, list[list[str]], list[str]]


def several(rows: int = 150, groups: int = 10, noise: float = 1.0, seed: int = 0) -> Made:
    """Vectors whose first three numbers tell three labels, some of each row; and groups."""
    random = np.random.default_rng(seed)
    truth = random.random((rows, 3)) < [0.5, 0.3, 0.2]
    vectors = random.standard_normal((rows, 8)) * noise
    vectors[:, :3] += 2.0 * truth
    names = [[n for n, one in zip("abc", own, strict=True) if one] for own in truth]
    return vectors, names, [f"g{row % groups}" for row in range(rows)]


def values_of(rows: int = 150, groups: int = 10, noise: float = 1.0, seed: int = 0) -> tuple:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, 8))
    values = 30 + 4 * vectors[:, 0] - 3 * vectors[:, 1] + noise * random.standard_normal(rows)
    return vectors, values.tolist(), [f"g{row % groups}" for row in range(rows)]


def test_measures_of_labels_are_scikit_learns() -> None:
    vectors, names, groups = several()
    found = probe_labels(vectors, [*names[:-1], None], groups)
    assert found.classes == ["a", "b", "c"] and len(found.rows) == 149 and found.groups == 10
    assert found.notes == ["1 rows have no labels and were left out"]
    truth = np.array([[one in own for one in "abc"] for own in names[:-1]])
    assert np.array_equal(found.truth, truth)
    measures = {name: one.value for name, one in found.measures.items()}
    expected = average_precision_score(truth, found.scores, average=None)
    assert [one.average_precision for one in found.per_class] == pytest.approx(expected)
    assert measures["mean_average_precision"] == pytest.approx(expected.mean())
    some = truth.any(axis=1)
    assert measures["lwlrap"] == pytest.approx(
        label_ranking_average_precision_score(
            truth[some], found.scores[some], sample_weight=truth[some].sum(axis=1)
        )
    )
    for kind in ("micro", "macro"):
        wanted = f1_score(truth, found.predicted, average=kind)
        assert measures[f"{kind}_f1"] == pytest.approx(wanted)
    assert [one.f1 for one in found.per_class] == pytest.approx(
        f1_score(truth, found.predicted, average=None)
    )
    assert found.chance["mean_average_precision"] == pytest.approx(truth.mean())
    assert measures["mean_average_precision"] > 0.8
    for one in found.measures.values():
        assert one.low < one.value < one.high


def test_scores_are_those_of_a_logistic_regression_each() -> None:
    """Two groups are two folds: each side's scores are of models of the other."""
    vectors, names, groups = several(groups=2)
    found = probe_labels(vectors, names, groups)
    assert found.folds == 2 and "2 folds, as there are 2 groups" in found.notes
    for number, name in enumerate("abc"):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        expected = cross_val_predict(
            model, vectors, [name in own for own in names], groups=groups,
            cv=LeaveOneGroupOut(), method="predict_proba",
        )  # fmt: skip
        assert found.scores[:, number] == pytest.approx(expected[:, 1], abs=1e-4)


def test_thresholds_see_the_training_side_alone() -> None:
    """Other labels of a group change what is predicted of the other group, never of its own."""
    vectors, names, groups = several(groups=2)
    first = np.array(groups) == "g0"
    # The labels of the first group, moved on by one row: as many of each.
    other = [own if group == "g1" else names[row - 2] for row, (own, group) in
             enumerate(zip(names, groups, strict=True))]  # fmt: skip
    one, two = probe_labels(vectors, names, groups), probe_labels(vectors, other, groups)
    assert one.classes == two.classes
    assert np.array_equal(one.predicted[first], two.predicted[first])
    assert not np.array_equal(one.predicted[~first], two.predicted[~first])


def test_labels_of_a_group_are_not_learnt_from_it() -> None:
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 8)
    vectors = np.eye(40)[group] + 0.05 * random.standard_normal((320, 40))
    of_group = [[n for n in "ab" if random.random() < 0.5] for _ in range(40)]
    names = [of_group[number] for number in group]
    leaky = probe_labels(vectors, names).measures["mean_average_precision"]
    apart = probe_labels(vectors, names, [str(n) for n in group]).measures["mean_average_precision"]
    assert leaky.value > 0.99 and apart.value < 0.75
    assert apart.high - apart.low > 5 * (leaky.high - leaky.low)


def test_what_labels_are_left_out() -> None:
    vectors, names, groups = several()
    names = [[*own, "all"] for own in names]
    names[0] = [*names[0], "lone"]
    found = probe_labels(vectors, names, groups)
    assert found.classes == ["a", "b", "c"]
    assert found.notes == [
        "left out, of one group only: lone",
        "left out, which all rows have: all",
    ]
    for labels, says in (
        ([None] * 150, "no row has labels"),
        ([["all"]] * 150, "of 1 classes 0 have one row only and 1 have all rows"),
        (names[:3], "3 names do not fit vectors"),
    ):
        with pytest.raises(LabelsError, match=says):
            probe_labels(vectors, labels)
    with pytest.raises(LabelsError, match="a probe needs two groups, one to train on"):
        probe_labels(vectors, names, ["g"] * 150)


def test_intervals_resample_groups() -> None:
    """The statistic of a draw is that of the repeated rows."""
    vectors, names, groups = several(40, 4)
    found = probe_labels(vectors, names, groups)
    random, own = np.random.default_rng(0), np.array([int(one[1:]) for one in groups])
    means = []
    for _ in range(500):
        drawn = random.multinomial(4, np.full(4, 0.25))[own]
        truth, scores = found.truth.repeat(drawn, 0), found.scores.repeat(drawn, 0)
        some = truth.any(axis=0)
        means.append(average_precision_score(truth[:, some], scores[:, some]))
    measured = label_measures(found.truth, found.scores, found.predicted, groups)
    one = measured["mean_average_precision"]
    assert [one.low, one.high] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_measures_of_values_are_scikit_learns() -> None:
    vectors, values, groups = values_of()
    values[3], values[4] = None, float("nan")
    found = probe_values(vectors, values, groups)
    assert len(found.rows) == 148 and found.groups == 10 and found.folds == 5
    truth = np.array([one for row, one in enumerate(values) if row not in (3, 4)])
    measures = {name: one.value for name, one in found.measures.items()}
    assert (
        measures["r2"] == pytest.approx(r2_score(truth, found.predicted)) and measures["r2"] > 0.9
    )
    assert measures["mae"] == pytest.approx(mean_absolute_error(truth, found.predicted))
    pair = np.cov(truth, found.predicted, ddof=0)
    below = pair[0, 0] + pair[1, 1] + (truth.mean() - found.predicted.mean()) ** 2
    assert measures["ccc"] == pytest.approx(2 * pair[0, 1] / below)
    for one in found.measures.values():
        assert one.low < one.value < one.high


def test_values_of_a_given_strength_are_those_of_ridge() -> None:
    vectors, values, groups = values_of(groups=3)
    found = probe_values(vectors, values, groups, strength=0.1)
    expected = cross_val_predict(
        make_pipeline(StandardScaler(), Ridge(10)), vectors, values, groups=groups,
        cv=LeaveOneGroupOut(),
    )  # fmt: skip
    assert found.predicted == pytest.approx(expected) and found.penalties == [10.0] * 3


@pytest.mark.parametrize("wide", [False, True])
def test_the_penalty_is_that_of_a_grid_search(wide: bool) -> None:
    """Of three groups one is tested on; the other two are each held out once."""
    vectors, values, groups = values_of(groups=3, noise=12)
    if wide:  # more numbers than rows
        vectors = np.concatenate([vectors, np.random.default_rng(2).normal(size=(150, 200))], 1)
    found = probe_values(vectors, values, groups)
    own, expected = np.array(groups), {}
    for group in sorted(set(groups)):
        train = own != group
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": PENALTIES},
            cv=LeaveOneGroupOut(),
            scoring="neg_mean_squared_error",
        ).fit(vectors[train], np.array(values)[train], groups=own[train])
        expected[group] = search.best_params_["ridge__alpha"]
        assert found.predicted[~train] == pytest.approx(search.predict(vectors[~train]))
    assert sorted(found.penalties) == sorted(expected.values())


def test_the_penalty_is_chosen_on_the_training_side() -> None:
    vectors, values, groups = values_of()
    clear = probe_values(vectors, values, groups)
    blurred = probe_values(vectors, np.random.default_rng(1).standard_normal(150).tolist(), groups)
    assert max(clear.penalties) < min(blurred.penalties)
    assert blurred.measures["r2"].value > -0.2
    vectors, values, groups = values_of(groups=2)
    first = np.array(groups) == "g0"
    other = [one if group == "g1" else -one for one, group in zip(values, groups, strict=True)]
    one, two = probe_values(vectors, values, groups), probe_values(vectors, other, groups)
    assert np.array_equal(one.predicted[first], two.predicted[first])
    assert not np.allclose(one.predicted[~first], two.predicted[~first])


def test_values_that_cannot_be() -> None:
    vectors, values, groups = values_of()
    for given, says in (
        ([None] * 150, "no row has a value"),
        ([2.5] * 150, "all values are 2.5, so that there is nothing to predict"),
        ([*values[:-1], float("inf")], "1 values are infinite"),
    ):
        with pytest.raises(LabelsError, match=says):
            probe_values(vectors, given, groups)


def test_saved_probes_carry_their_task(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    onnxruntime = pytest.importorskip("onnxruntime")
    vectors, names, _ = several()
    probed = probe_labels(vectors, names)
    limits = [one.threshold for one in probed.per_class]
    about = {"task": "multi-label", "classes": probed.classes, "thresholds": limits}
    model = trained_labels(vectors, probed)
    expected = model.predict_proba(vectors)
    for suffix in probe_io.SUFFIXES:
        probe_io.save(tmp_path / f"labels{suffix}", model, about)
    again = probe_io.load(tmp_path / "labels.skops")
    assert np.array_equal(again.predict_proba(vectors), expected)
    assert json.loads(again.penult_) == about
    session = onnxruntime.InferenceSession(tmp_path / "labels.onnx")
    shares, held = session.run(None, {"vectors": vectors.astype(np.float32)})
    assert np.abs(shares - expected).max() < 1e-5
    clear = np.abs(expected - limits) > 1e-5
    assert np.array_equal(held[clear], (expected >= limits)[clear])

    vectors, values, _ = values_of()
    fitted = trained_values(vectors, probe_values(vectors, values))
    for suffix in probe_io.SUFFIXES:
        probe_io.save(tmp_path / f"values{suffix}", fitted, {"task": "regression"})
    again = probe_io.load(tmp_path / "values.skops")
    assert np.array_equal(again.predict(vectors), fitted.predict(vectors))
    session = onnxruntime.InferenceSession(tmp_path / "values.onnx")
    (said,) = session.run(None, {"vectors": vectors.astype(np.float32)})
    assert said == pytest.approx(fitted.predict(vectors), abs=1e-3) and said.shape == (150,)


def test_a_column_tells_its_task(tmp_path: Path) -> None:
    vectors, names, groups = several(60, 6)
    wide = np.zeros((60, DIM), np.float32)
    wide[:, : min(8, DIM)] = vectors[:, : min(8, DIM)]
    ages = [*(20.5 + 5 * wide[:-1, 0]).tolist(), None]
    made = filled(tmp_path / "c.lance", batch(
        [f"/a/{row:02}_{row % 4 + 1}.wav" for row in range(60)], vectors=wide, speaker=groups,
        tags=[";".join(own) or None for own in names],
        listed=[json.dumps(own) if own else None for own in names],
        age=ages, grade=[float(row % 3) for row in range(59)] + [None],
        count=[row % 3 for row in range(60)],
    ))  # fmt: skip
    some = sum(bool(own) for own in names)
    both = [ask("probe", made.path, "--by", by, "--json") for by in ("tags", "listed")]
    for said in both:
        assert said.json["task"] == "multi-label" and said.json["rows"] == some
        assert "task multi-label: a cell holds several labels (" in said.err
        assert said.json["classes"] == ["a", "b", "c"]
    assert both[0].json["measures"] == both[1].json["measures"]
    said = ask("probe", made.path, "--by", "tags", "--task", "single-label", "--json")
    assert said.json["task"] == "single-label" and "a;b" in said.json["classes"]
    said = ask("probe", made.path, "--by", "age", "--group", "speaker", "--json")
    assert said.json["task"] == "regression" and said.json["rows"] == 59
    assert said.json["groups"] == 6 and "task regression: age holds numbers such as" in said.err
    assert said.json["measures"]["vectors"]["r2"]["value"] > 0.9
    for by, classes in (("grade", ["0", "1", "2"]), ("count", ["0", "1", "2"])):
        said = ask("probe", made.path, "--by", by, "--json")
        assert (said.json["task"], said.json["classes"]) == ("single-label", classes)
    for by in ("count", "*_{}.wav"):
        said = ask("probe", made.path, "--by", by, "--task", "regression", "--json")
        assert said.json["task"] == "regression" and said.json["rows"] == 60
    for arguments, says in (
        (["--by", "tags", "--task", "regression"], "is no number; regression needs numbers"),
        (["--by", "tags", "--task", "labels"], "there is no task 'labels'; there are single-label"),
        (["--by", "age", "--picture", tmp_path / "a.png"], "the task is regression"),
    ):
        said = ask("probe", made.path, *arguments)
        assert said.code == 2 and says in said.error, said


def test_annotations_and_marks_tell_several_labels(tmp_path: Path) -> None:
    """Two rows of one span are one item of two labels; so is a row that is marked for two."""
    vectors, names, _ = several(60)
    names = [own or ["a"] for own in names]
    wide = np.zeros((60, DIM), np.float32)
    wide[:, : min(8, DIM)] = vectors[:, : min(8, DIM)]
    lines = [(row, place, name) for row, own in enumerate(names) for place, name in enumerate(own)]
    made = filled(tmp_path / "c.lance", batch(
        [f"/a/{row:02}.wav" for row, _, _ in lines],
        region=[f"0-1#{place + 1}" if place else "0-1" for _, place, _ in lines],
        vectors=wide[[row for row, _, _ in lines]], species=[name for *_, name in lines],
    ))  # fmt: skip
    said = ask("probe", made.path, "--by", "species", "--json")
    assert said.json["task"] == "multi-label" and said.json["rows"] == 60
    assert "annotations of one span differ" in said.err
    counts = {one["name"]: one["rows"] for one in said.json["per_class"]}
    assert counts == {name: sum(name in own for own in names) for name in "abc"}
    said = ask("probe", made.path, "--by", "species", "--task", "single-label", "--json")
    assert said.json["rows"] == len(lines)

    whole = filled(tmp_path / "w.lance", batch([f"/a/{row:02}.wav" for row in range(60)],
                                               vectors=wide))  # fmt: skip
    record = {"region": "whole", "who": "me", "source": "test"}
    append_labels(whole.reader, [
        *({**record, "id": f"/a/{row:02}.wav", "class": name, "mark": "yes"}
          for row, own in enumerate(names[:50]) for name in own),
        {**record, "id": "/a/50.wav", "class": "*", "mark": "no"},  # of none of the classes
        {**record, "id": "/a/51.wav", "class": "a", "mark": "no"},  # of the others nothing is known
    ])  # fmt: skip
    marked = ask("probe", whole.path, "--by", "labels", "--json")
    assert marked.json["task"] == "multi-label" and marked.json["rows"] == 51
    assert "a row is marked for several labels" in marked.err


def test_on_the_command_line(tmp_path: Path) -> None:
    """What is printed, with features and a saved probe."""
    pytest.importorskip("skops")
    vectors, names, groups = several(60, 6)
    wide = np.zeros((60, DIM), np.float32)
    wide[:, : min(8, DIM)] = vectors[:, : min(8, DIM)]
    made = filled(tmp_path / "c.lance", batch(
        [f"/a/{row:02}.wav" for row in range(60)], vectors=wide, speaker=groups,
        tags=[";".join(own) or None for own in names], age=(20.5 + 5 * wide[:, 0]).tolist(),
    ))  # fmt: skip
    table = tmp_path / "f.csv"
    table.write_text("\n".join(["id,x", *(f"/a/{row:02}.wav,{row}" for row in range(60))]))
    saved = tmp_path / "probe.skops"
    said = ask("probe", made.path, "--by", "tags", "--group", "speaker", "--features", table,
               "--save", saved)  # fmt: skip
    assert said.code == 0 and "average precision" in said.out and "both: mAP 0." in said.out
    assert "6 groups (speaker); baseline (frequencies): mAP 0." in said.out
    about = json.loads(probe_io.load(saved).penult_)
    assert about["task"] == "multi-label" and len(about["thresholds"]) == 3
    said = ask("probe", made.path, "--by", "age", "--save", tmp_path / "age.skops")
    assert re.search(r"R² 1\.000 \(\d\.\d+ to \d\.\d+\) · CCC 1\.000", said.out), said
    assert "baseline (the median): MAE" in said.out
    assert json.loads(probe_io.load(tmp_path / "age.skops").penult_)["task"] == "regression"
