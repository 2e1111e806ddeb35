"""Evaluation by several labels, by values, and of a classifier's own predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    r2_score,
)
from sklearn.neighbors import KNeighborsRegressor

from penult.analysis.metrics import calibration_error
from penult.analysis.probe_tasks import probe_values
from penult.analysis.task_evaluation import (
    evaluate_labels,
    evaluate_predicted_classes,
    evaluate_predicted_labels,
    evaluate_predicted_values,
    evaluate_values,
)
from penult.collection.collection import Collection
from penult.errors import LabelsError
from test_cli import ask
from test_collection import MANIFEST, batch, filled

CLASSES = ["a", "b", "c"]


def drawn(rows: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors (n, 6) that tell labels (n, 3), and groups."""
    random = np.random.default_rng(seed)
    truth = random.random((rows, 3)) < [0.5, 0.4, 0.3]
    vectors = random.standard_normal((rows, 6))
    vectors[:, :3] += 2.5 * truth
    return vectors.astype(np.float32), truth, [f"g{row % 9}" for row in range(rows)]


def names(truth: np.ndarray) -> list[list[str]]:
    return [[n for n, one in zip(CLASSES, own, strict=True) if one] for own in truth]


def test_neighbours_of_several_labels() -> None:
    """Each row against those of other groups, one by one."""
    vectors, truth, groups = drawn()
    found = evaluate_labels(vectors, names(truth), groups)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    own, precision, shares = np.array(groups), [], []
    for row in range(len(vectors)):
        others = np.flatnonzero(own != own[row])
        cosine = unit[others] @ unit[row]
        shares.append(truth[others[np.argsort(-cosine)[:10]]].mean(axis=0))
        if truth[row].any():
            shared = (truth[others] & truth[row]).any(axis=1)
            precision.append(average_precision_score(shared, cosine))
    estimates = {name: one.value for name, one in found.estimates.items()}
    assert estimates["retrieval of a shared label, mAP"] == pytest.approx(np.mean(precision))
    expected = average_precision_score(truth, np.array(shares), average=None)
    assert estimates["10 nearest neighbours, mAP"] == pytest.approx(expected.mean())
    assert dict(found.per_class) == pytest.approx(dict(zip(CLASSES, expected, strict=True)))
    macro = f1_score(truth, np.array(shares) >= 0.5, average="macro")
    assert estimates["10 nearest neighbours, macro F1"] == pytest.approx(macro)
    with pytest.raises(LabelsError, match="all items are of one group"):
        evaluate_labels(vectors, names(truth), ["g"] * 90)


def test_neighbours_of_values() -> None:
    vectors, truth, groups = drawn()
    values = truth @ [1.0, 2.0, 4.0] + 0.1
    found = evaluate_values(vectors, [*values[:-1].tolist(), None], groups)
    own, predicted = np.array(groups)[:-1], np.empty(89)
    for group in set(groups):
        test = own == group
        model = KNeighborsRegressor(10, metric="cosine").fit(
            vectors[:-1][~test], values[:-1][~test]
        )
        predicted[test] = model.predict(vectors[:-1][test])
    estimates = {name: one.value for name, one in found.estimates.items()}
    assert estimates["10 nearest neighbours, R²"] == pytest.approx(r2_score(values[:-1], predicted))
    assert estimates["10 nearest neighbours, MAE"] == pytest.approx(
        mean_absolute_error(values[:-1], predicted)
    )
    assert found.notes == ("1 of 90 rows have no value",) and found.items == 89


def test_predicted_classes() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, 200)
    logits = random.standard_normal((200, 3)) + 1.5 * np.eye(3)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = [CLASSES[one] for one in truth]
    found = evaluate_predicted_classes([*given[:-2], "z", None], shares, CLASSES)
    held, predicted = truth[:-2], shares[:-2].argmax(axis=1)
    expected = {
        "accuracy": accuracy_score(held, predicted),
        "balanced": balanced_accuracy_score(held, predicted),
        "macro F1": f1_score(held, predicted, average="macro"),
    }
    assert {name: one.value for name, one in found.estimates.items()} == pytest.approx(expected)
    ece = calibration_error(shares[:-2].max(axis=1), held == predicted)
    assert found.figures["ECE"] == pytest.approx(ece)
    assert "2 rows have no class that the classifier knows" in found.notes
    assert "not among the classifier's classes: z" in found.notes
    with pytest.raises(LabelsError, match="rows have z, the classifier a, b, c"):
        evaluate_predicted_classes(["z"] * 200, shares, CLASSES)


def test_predicted_labels_and_values() -> None:
    _, truth, groups = drawn()
    truth[:, 2] = False  # a class that no row has
    scores = np.clip(0.3 * truth + np.random.default_rng(2).random(truth.shape) * 0.6, 0, 1)
    found = evaluate_predicted_labels(names(truth), scores, CLASSES, groups)
    estimates = {name: one.value for name, one in found.estimates.items()}
    each = average_precision_score(truth[:, :2], scores[:, :2], average=None)
    assert estimates["mAP"] == pytest.approx(each.mean())
    assert list(found.per_class) == [CLASSES[place] for place in np.argsort(each)]
    some = truth.any(axis=1)
    assert estimates["lwlrap"] == pytest.approx(label_ranking_average_precision_score(
        truth[some], scores[some], sample_weight=truth[some].sum(axis=1)))  # fmt: skip
    assert estimates["micro F1"] == pytest.approx(f1_score(truth, scores >= 0.5, average="micro"))
    values = np.random.default_rng(3).standard_normal(90)
    found = evaluate_predicted_values(values.tolist(), 0.5 * values + 1)
    assert found.estimates["R²"].value == pytest.approx(r2_score(values, 0.5 * values + 1))
    assert found.estimates["Pearson r"].value == pytest.approx(1)
    assert found.estimates["CCC"].value < 0.8


def kept(
    path: Path, kind: str, labels: list[str], logits: np.ndarray, **columns: list
) -> Collection:
    """A collection of a classifier of this kind with these logits (n, K)."""
    manifest = replace(MANIFEST, n_logits=len(labels), labels=tuple(labels),
                       model={**MANIFEST.model, "kind": kind})  # fmt: skip
    rows = batch([f"/a/{row:02}.wav" for row in range(len(logits))], manifest=manifest, **columns)
    values = pa.FixedSizeListArray.from_arrays(
        pa.array(logits.astype(np.float32).ravel()), len(labels)
    )
    place = rows.schema.get_field_index("logits")
    return filled(path, rows.set_column(place, rows.schema.field("logits"), values),
                  manifest=manifest)  # fmt: skip


def test_predictions_of_each_kind_on_the_command_line(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    _, truth, _ = drawn(40)
    truth[~truth.any(axis=1), 0] = True
    logits = 2.0 * truth - 1 + random.standard_normal(truth.shape)
    tags = [";".join(own) for own in names(truth)]
    made = kept(tmp_path / "m.lance", "multi-label", CLASSES, logits, tags=tags)
    said = ask("evaluate", made.path, "--by", "tags", "--predictions", "--json")
    assert (said.json["task"], said.json["measured"]) == ("multi-label", "predictions")
    expected = f1_score(truth, logits >= 0, average="micro")  # a sigmoid of 0.5
    assert said.json["estimates"]["micro F1"]["value"] == pytest.approx(expected)
    assert ask("evaluate", made.path, "--by", "tags", "--predictions").code == 0

    single = random.integers(0, 3, 40)
    made = kept(tmp_path / "s.lance", "single-label", CLASSES, logits,
                word=[CLASSES[one] for one in single])  # fmt: skip
    said = ask("evaluate", made.path, "--by", "word", "--predictions", "--json")
    expected = accuracy_score(single, logits.argmax(axis=1))
    assert said.json["estimates"]["accuracy"]["value"] == pytest.approx(expected)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ece = calibration_error(shares.max(axis=1), logits.argmax(axis=1) == single)
    assert said.json["figures"]["ECE"] == pytest.approx(ece, abs=1e-5)

    ages = 40 + 10 * logits[:, 1] + random.standard_normal(40)
    made = kept(tmp_path / "r.lance", "regression", ["arousal", "age"], 40 + 10 * logits[:, :2],
                age=ages.tolist(), years=[int(one) for one in ages])  # fmt: skip
    said = ask("evaluate", made.path, "--by", "age", "--predictions", "--json")
    assert said.json["estimates"]["R²"]["value"] == pytest.approx(
        r2_score(ages, 40 + 10 * logits[:, 1]), abs=1e-5
    )
    named = ["--output", "age"]
    said = ask("evaluate", made.path, "--by", "years", "--predictions", *named, "--json")
    assert said.json["task"] == "regression" and said.json["estimates"]["CCC"]["value"] > 0.9
    for arguments, says in (
        (["--by", "years"], "the model gives 2 numbers (arousal, age), and none is called 'years'"),
        (["--by", "age", "--task", "multi-label"], "the classifier is regression"),
    ):
        said = ask("evaluate", made.path, "--predictions", *arguments)
        assert said.code == 2 and says in said.error, said
    said = ask("evaluate", made.path, "--by", "age")
    assert said.code == 0 and "10 nearest neighbours, R²" in said.out
    assert "task regression: age holds numbers" in said.err


def test_values_that_hardly_vary_are_told_in_words(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((30, 4)).astype(np.float32)
    for same in ([3.0] * 30, [0.1 + 0.2] * 15 + [0.3] * 15):  # CCC was 1.3 of the second
        with pytest.raises(LabelsError, match=r"all values are 0?.?3, so that there is nothing to"):
            evaluate_values(vectors, same)
        with pytest.raises(LabelsError, match="nothing to predict"):
            probe_values(vectors, same)
        told = evaluate_predicted_values(same, random.standard_normal(30))
        assert "have no value; MAE has" in told.notes[0]
        assert np.isnan(told.estimates["R²"].value) and told.estimates[
            "CCC"
        ].value == pytest.approx(0)
    assert "all predictions are 2" in evaluate_predicted_values(vectors[:, 0], [2.0] * 30).notes[0]
    few = evaluate_values(vectors, [3.0] * 28 + [4.0, 5.0])
    assert few.notes == ("28 of 30 values are 3: R², CCC and Pearson's r rest on the other 2",)

    truth = [40.0] * 30
    made = kept(tmp_path / "r.lance", "regression", ["age"], random.standard_normal((30, 1)),
                age=truth)  # fmt: skip
    refused = ask("evaluate", made.path, "--by", "age", "--task", "regression")
    assert refused.code == 2 and "all values are 40" in refused.error
    said = ask("evaluate", made.path, "--by", "age", "--predictions")
    assert said.code == 0 and "nan" not in said.out + said.err
    assert "all values are 40" in said.err and " none" in said.out
    figures = ask("evaluate", made.path, "--by", "age", "--predictions", "--json").json
    assert figures["estimates"]["R²"]["value"] is None
