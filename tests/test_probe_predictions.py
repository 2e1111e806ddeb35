"""`penult predict --probe`: a saved probe is applied to rows and files of its embedder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import penult
from penult.analysis.probe_io import load
from penult.collection.collection import Collection
from test_cli import ask
from test_task_evaluation import CLASSES, kept

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
random = np.random.default_rng(7)


def test_classes_of_rows_and_files(demo_collection: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(demo_collection, tmp_path / "words.lance"))
    where = ("--where", "voice IN ('scottish-man', 'british-man') AND known")
    skops, onnx = tmp_path / "p.skops", tmp_path / "p.onnx"
    for file in (skops, onnx):
        assert ask("probe", store, "--by", "word", "--save", file, *where).code == 0
    done = ask("predict", store, "--probe", skops, "--json")
    assert done.code == 0, done.err
    table, vectors = Collection.open(store).reader.vectors()
    pipeline = load(skops)
    shares = pipeline.predict_proba(vectors.astype(np.float64))
    assert (done.json["task"], done.json["by"]) == ("single-label", "word")
    for one, id, own in zip(done.json["predictions"], table["id"].to_pylist(), shares, strict=True):
        assert (one["id"], one["label"]) == (id, pipeline.classes_[own.argmax()])
        assert list(one["scores"]) == list(pipeline.classes_)
        np.testing.assert_allclose([*one["scores"].values()], own, atol=1e-6)
        assert one["score"] == pytest.approx(own.max(), abs=1e-6)
        assert one["similarity"] is None and one["metadata"]["voice"]
    graph = ask("predict", store, "--probe", onnx, "--json").json["predictions"]
    for one, other in zip(graph, done.json["predictions"], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    shown = ask("predict", store, "--probe", skops)
    assert shown.out.splitlines()[0].split() == ["item", "seconds", "class", "probability"]
    assert " nan" not in shown.out
    file = CLIPS / "three_scottish-man.flac"  # embedded as the rows are
    (one,) = ask("predict", store, file, "--probe", skops, "--json").json["predictions"]
    (row,) = [p for p in done.json["predictions"] if p["id"].endswith(file.name)]
    assert one["label"] == row["label"] == "three"
    assert one["score"] == pytest.approx(row["score"], abs=1e-5)
    out = tmp_path / "out.csv"
    assert ask("predict", store, "--probe", skops, "--min-probability", 0.9, "--out", out).code == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["class"] for row in rows] == [
        p["label"] if p["score"] >= 0.9 else "unknown" for p in done.json["predictions"]
    ]
    assert {row["similarity"] for row in rows} == {""}
    for options, words in (
        (("--method", "knn"), "--method does not apply to a probe"),
        (("--without", "horse"), "without 'horse'"),
    ):
        refused = ask("predict", store, "--probe", skops, *options)
        assert refused.code == 2 and words in refused.error
    about = json.loads(pipeline.penult_)
    assert about["fingerprint"]
    other = kept(tmp_path / "o.lance", "single-label", CLASSES, random.random((30, 3)))
    refused = ask("predict", other.path, "--probe", skops)
    assert refused.code == 2 and "other vectors than" in refused.error


def test_labels_and_values_of_rows(tmp_path: Path) -> None:
    logits = random.standard_normal((40, 3))
    tags = [";".join(n for n, own in zip(CLASSES, row, strict=True) if own > 0) or CLASSES[0]
            for row in logits]  # fmt: skip
    ages = (40 + 10 * logits[:, 0] + random.random(40)).tolist()
    made = kept(tmp_path / "m.lance", "multi-label", CLASSES, logits, tags=tags, age=ages)
    vectors = made.reader.vectors()[1].astype(np.float64)
    for suffix in ("skops", "onnx"):
        labels, value = tmp_path / f"l.{suffix}", tmp_path / f"v.{suffix}"
        assert ask("probe", made.path, "--by", "tags", "--save", labels).code == 0
        assert ask("probe", made.path, "--by", "age", "--save", value).code == 0
        if suffix == "skops":
            pipeline, values = load(labels), load(value)
            shares = pipeline.predict_proba(vectors)
            about = json.loads(pipeline.penult_)
        found = ask("predict", made.path, "--probe", labels, "--json").json
        assert found["task"] == "multi-label"
        for one, own in zip(found["predictions"], shares, strict=True):
            np.testing.assert_allclose([*one["scores"].values()], own, atol=1e-4)
            assert sorted(one["labels"]) == sorted(
                name for name, share, least in zip(
                    about["classes"], own, about["thresholds"], strict=True) if share >= least
            )  # fmt: skip
        less = ask("predict", made.path, "--probe", labels, "--min-probability", 0.0, "--json")
        assert {len(one["labels"]) for one in less.json["predictions"]} == {3}
        found = ask("predict", made.path, "--probe", value, "--json").json
        assert [one["value"] for one in found["predictions"]] == pytest.approx(
            values.predict(vectors).tolist(), rel=1e-4
        )
        assert found["predictions"][0]["low"] is found["predictions"][0]["far"] is None
    out = tmp_path / "out.csv"
    assert ask("predict", made.path, "--probe", value, "--out", out).code == 0
    lines = list(csv.DictReader(out.open()))
    assert float(lines[3]["value"]) == pytest.approx(found["predictions"][3]["value"], rel=1e-4)
    assert lines[3]["name"] == "age" and lines[3]["low"] == lines[3]["far"] == ""
    assert "age" in ask("predict", made.path, "--probe", value).out.splitlines()[0]
    refused = ask("predict", made.path, "--probe", value, "--min-probability", 0.5)
    assert refused.code == 2 and "does not apply to a probe of the task regression" in refused.error
    own = tmp_path / "mine.csv"
    ids = made.reader.vectors()[0]["id"].to_pylist()
    own.write_text("id,pitch\n" + "".join(f"{id},{n}\n" for n, id in enumerate(ids)))
    joined = tmp_path / "j.skops"
    assert ask("probe", made.path, "--by", "age", "--features", own, "--save", joined).code == 0
    refused = ask("predict", made.path, "--probe", joined)
    assert refused.code == 2 and "further columns (--features: pitch)" in refused.error
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    assert ask("predict", made.path, "--probe", tmp_path / "bad.onnx").code == 2
    assert ask("predict", made.path, "--probe", tmp_path / "none.skops").code == 2
