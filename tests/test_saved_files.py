"""What version 0.1.0 wrote is opened by this one, elsewhere, and gives the numbers that it gave."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

import penult
from penult.cli.main import run
from penult.errors import UntrustedCode
from penult.models import trust

SAVED = Path(__file__).parent / "saved_by_0_1_0"
SOXR = "1.1.0"
CLIPS = [f"wavs/{kind}_{number}.wav" for kind in ("low", "high", "noise") for number in (0, 1, 4)]


def ask(*arguments: object) -> Any:
    """What a command says with --json."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run([*map(str, arguments), "--json"])
    assert code == 0, err.getvalue()
    return json.loads(out.getvalue())


def numbers(values: Any) -> Any:
    """Floats as lists of eight digits."""
    if isinstance(values, float):
        return float(f"{values:.8g}")
    return [numbers(value) for value in np.asarray(values, np.float64).tolist()]


def embedder(root: Path, name: str) -> penult.Embedder:
    folder = root / "embedders" / name
    if name == "factory":  # 0.1.0 did not remember what its user had typed
        with pytest.raises(UntrustedCode, match="saved_factory:build"):
            penult.Embedder.load(folder)
    return penult.Embedder.load(folder, device="cpu", trust=name == "factory")


def run_of(name: str) -> Callable[[Path], Any]:
    """Opened, and run over clips of two rates, and over windows."""

    def read(root: Path) -> Any:
        opened = embedder(root, name)
        found = opened.run([root / clip for clip in CLIPS])
        windows = opened.run(root / "wavs/long.wav", window=0.2, hop=0.1)
        said = penult.load(root / "embedders" / name).classify(root / CLIPS[0], device="cpu")[0]
        return {
            # 0.1.0 did not hash the code of a user's own model; all that it hashed is the same.
            "fingerprint": {n: v for n, v in opened.fingerprint.items() if n != "code"},
            "tap": opened.tap.name,
            "pooling": opened.pooling,
            "space": opened.space.recipe if opened.space else None,
            "proved": opened.certificate.ok,
            "kind": opened.classifier.kind,
            "class names": list(opened.classifier.labels),
            "labels": found.labels,
            "vectors": numbers(found.vectors),
            "logits": numbers(found.logits),
            "windows": [region.key for region in windows.regions],
            "vectors of windows": numbers(windows.vectors),
            "said": [said.label, numbers(said.scores)],
        }

    return read


def rows(root: Path) -> Any:
    store = penult.Collection.open(root / "calls.lance", must_exist=True)
    assert store.manifest is not None
    shown = "id region kind channel start end label truncated kind_of_call site depth night path"
    table, vectors = store.vectors(columns=[*shown.split(), "score", "content_hash"])
    whole = store.get("low-0")
    assert whole is not None
    return {
        "columns": store.reader.schema.names,
        "about": [store.manifest.format, store.manifest.dim, dict(store.manifest.fingerprint)],
        "rows": table.select(shown.split()).to_pylist(),
        "hashes": table["content_hash"].to_pylist(),
        "scores": numbers(table["score"].to_pylist()),
        "vectors": numbers(vectors),
        "logits of one": numbers(whole["logits"]),
        "at night": store.reader.count_rows("night AND depth > 0.8"),
        "index": store.index,
    }


def rows_by_path(root: Path) -> Any:
    """A collection whose ids are paths, which are gone now; with half the digits of each number."""
    store = penult.Collection.open(root / "paths.lance")
    table, vectors = store.vectors(columns=["id", "region", "label", "logits"])
    hits = store.search("/srv/penult-fixture/wavs/high_0.wav", k=3, space="embedder")
    best = [row[0] for row in table["logits"].to_pylist()]
    return {
        "about": [store.manifest.dtype, store.manifest.logits],  # type: ignore[union-attr]
        "ids": table["id"].to_pylist(),
        "labels": table["label"].to_pylist(),
        "vectors": numbers(vectors),
        "best": [one["index"] for one in best],
        "logits": numbers([one["logit"] for one in best]),
        "found": [hit.id for hit in hits],
        "similarities": numbers([hit.similarity for hit in hits]),
        "failed": store.failures()["id"].to_pylist(),
    }


def side_tables(root: Path) -> Any:
    store = penult.Collection.open(root / "calls.lance")
    seen = "status command engine precision done skipped replaced failed".split()
    return {
        "failures": store.failures().select(["id", "region", "error", "message"]).to_pylist(),
        "runs": store.runs().select(seen).to_pylist(),
        "labels": store.labels().select(["id", "region", "class", "mark", "source"]).to_pylist(),
        "spaces": store.spaces()["name"].to_pylist(),
    }


def searches(root: Path) -> Any:
    store = penult.Collection.open(root / "calls.lance")
    asked = {
        "raw": store.search("low-0", k=5),
        "filtered": store.search("high-2", k=3, where="site = 'B'"),
        "in a space of a name": store.search("low-0", k=5, space="small"),
        "in a space of a recipe": store.search("noise-1", k=5, space="scale+l2"),
    }
    assert store.spaces().num_rows == 2, "a space that was kept is fitted once"
    found = {
        name: [[hit.id + " " + hit.region for hit in hits], numbers([h.similarity for h in hits])]
        for name, hits in asked.items()
    }
    model = ("--model", root / "embedders/transformers", "--device", "cpu")
    hits = ask("search", store.path, root / "wavs/high_1.wav", "-k", 3, *model)["hits"]
    by_file = [[hit["id"] for hit in hits], numbers([hit["similarity"] for hit in hits])]
    moved = store.space("small")(np.ones(store.manifest.dim))  # type: ignore[union-attr]
    return {**found, "a file": by_file, "moved": numbers(moved)}


def clusters_and_map(root: Path) -> Any:
    """Kept ones, read again: neither is worked out a second time."""
    store = root / "calls.lance"
    maps = _files(store / "maps.lance")
    ask("map", store, root / "map.html", "--method", "pca", "--by", "cluster:three")
    assert _files(store / "maps.lance") == maps
    return {
        "clusters": penult.ClassSpace(penult.Collection.open(store)).add_named(
            None, "cluster:three"
        )
    }


def _files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def classes_of_the_collection(root: Path) -> Any:
    return _classes(penult.ClassSpace(penult.Collection.open(root / "calls.lance")), root)


def class_space(root: Path) -> Any:
    return _classes(penult.ClassSpace.load(root / "classes.npz"), root)


def _classes(space: penult.ClassSpace, root: Path) -> Any:
    store = penult.Collection.open(root / "calls.lance")
    from_rows = list(space.predict_collection(store, unknown=0.1))
    space.source.use(embedder(root, "transformers"))
    from_files = space.predict([root / clip for clip in CLIPS], nearest=2)
    return {
        "classes": [[one.name, one.yes, one.no, one.unsure] for one in space.classes],
        "examples": space.examples.to_csv(),
        "method": space.fitted.method,
        "rows": [one.label for one in from_rows],
        "scores of rows": numbers([one.scores for one in from_rows]),
        "files": [one.label for one in from_files],
        "scores of files": numbers([one.scores for one in from_files]),
        "nearest": [[near.id for near in one.nearest] for one in from_files],
    }


def head_space(root: Path) -> Any:
    space = penult.ClassSpace.load(root / "head.npz", embedder(root, "factory"))
    found = space.predict([root / clip for clip in CLIPS])
    return {
        "classes": [one.name for one in space.classes],
        "unknown": space.settings.unknown,
        "examples": space.examples.to_csv(),
        "labels": [one.label for one in found],
        "scores": numbers([one.scores for one in found]),
    }


def probe_of_skops(root: Path) -> Any:
    pytest.importorskip("skops")
    from penult.analysis.probe_io import load

    probe = load(root / "probe.skops")
    vectors = embedder(root, "transformers").embed([root / clip for clip in CLIPS])
    about = json.loads(probe.penult_)
    return [about, probe.predict(vectors).tolist(), numbers(probe.predict_proba(vectors))]


def probe_of_onnx(root: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(root / "probe.onnx"))
    vectors = embedder(root, "transformers").embed([root / clip for clip in CLIPS])
    shares, names = session.run(["probabilities", "label"], {"vectors": vectors})
    about = json.loads(session.get_modelmeta().custom_metadata_map["penult"])
    return [about, names.tolist(), numbers(shares)]


def pickled_transformer(root: Path) -> Any:
    opened = pickle.loads((root / "transformer.pickle").read_bytes())
    return [opened.get_params(), opened.space_.recipe, numbers(opened.transform(CLIPS))]


READINGS: dict[str, Callable[[Path], Any]] = {
    "an embedder of a transformers folder": run_of("transformers"),
    "an embedder of two taps with a space": run_of("joined"),
    "an embedder of a factory": run_of("factory"),
    "an embedder of an ONNX file": run_of("onnx"),
    "the rows of a collection": rows,
    "the rows of one whose ids are paths": rows_by_path,
    "failures, runs, marks and spaces": side_tables,
    "searches": searches,
    "clusters and a map": clusters_and_map,
    "the classes that marks make": classes_of_the_collection,
    "a class space in a file": class_space,
    "a class space of a head": head_space,
    "a probe as .skops": probe_of_skops,
    "a probe as .onnx": probe_of_onnx,
    "a pickled step of scikit-learn": pickled_transformer,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in another place than they were made in, which is the working directory."""
    if soxr.__version__ != SOXR:  # part of every fingerprint of sound: it is refused, and rightly
        said = f"the files were written with soxr {SOXR}, and {soxr.__version__} is installed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(said)
    copied = Path(shutil.copytree(SAVED, tmp_path / "moved"))
    monkeypatch.chdir(copied)
    monkeypatch.syspath_prepend(copied)
    monkeypatch.delitem(sys.modules, "saved_factory", raising=False)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "_typed", set())
    return copied


def assert_same(found: Any, expected: Any, where: str) -> None:
    """Texts and counts equal; numbers to 1e-5 of the largest of their list."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and set(found) == set(expected), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}, {name}")
    elif isinstance(expected, list) and _are_floats(expected):
        one, other = np.array(found), np.array(expected)
        assert one.shape == other.shape, where
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), where
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}, {number}")
    else:
        assert found == expected, where


def _are_floats(values: Any) -> bool:
    if isinstance(values, list):
        return bool(values) and all(map(_are_floats, values))
    return isinstance(values, float)


@pytest.mark.parametrize("what", READINGS)
def test_it_says_what_0_1_0_said(what: str, root: Path) -> None:
    if "ONNX" in what:
        pytest.importorskip("onnxruntime")
    expected = json.loads((SAVED / "expected.json").read_text("utf-8"))[what]
    assert_same(READINGS[what](root), expected, what)


def test_classes_of_then_are_fitted_as_of_today_when_asked(root: Path) -> None:
    space = penult.ClassSpace(penult.Collection.open(root / "calls.lance"))
    assert space.space.recipe == "centre"
    ask("teach", root / "calls.lance", "--refit")
    space = penult.ClassSpace(penult.Collection.open(root / "calls.lance"))
    assert space.space.recipe == "shrink"


def test_all_that_was_said_is_asked_again() -> None:
    assert set(json.loads((SAVED / "expected.json").read_text("utf-8"))) == set(READINGS)


def test_a_collection_goes_on(root: Path) -> None:
    """What it has is known again, at other times and paths; new rows, marks and spaces join it."""
    for path in root.glob("wavs/*.wav"):
        os.utime(path, (1, 1))
    store, opened = penult.Collection.open(root / "calls.lance"), embedder(root, "transformers")
    before = store.count
    did = store.add(opened, root / "wavs/calls.csv")
    assert (did.done, did.replaced, did.skipped, did.failed) == (0, 0, 15, 1)
    did = store.add(opened, root / "wavs/long.csv", window=0.2, hop=0.1, summary="mean")
    assert (did.done, did.replaced, did.skipped) == (0, 0, 8)
    assert store.get("low-0")["path"] == str(root / "wavs/low_0.wav")  # type: ignore[index]
    samples = np.sin(np.arange(3000) / 7).astype(np.float32)
    soundfile.write(root / "wavs/new.wav", samples, 8000)
    assert store.add(opened, root / "wavs/new.wav").done == 1
    assert store.count == before + 1 and store.runs().num_rows == 6
    ask("teach", store.path, "low", root / "wavs/new.wav")
    assert {one.name: one.yes for one in penult.ClassSpace(store).classes}["low"] == 4
    assert store.fit_space("whiten").id == store.space("whiten").id


def test_collections_merge(root: Path) -> None:
    into = root / "all.lance"
    ask("merge", root / "calls.lance", "--into", into)
    old, new = penult.Collection.open(root / "calls.lance"), penult.Collection.open(into)
    assert np.array_equal(old.vectors()[1], new.vectors()[1])
    assert [one.name for one in penult.ClassSpace(new).classes] == [
        one.name for one in penult.ClassSpace(old).classes
    ]
