"""Second commands over the same files: what an earlier one noted, and runs on its recorded graph
that import neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.collection.collection import Collection
from zoo import WORDS, save_audio, save_text

# Runs one command, and prints what it imported of the libraries that take seconds.
RUN = """
import sys
from penult.cli.main import run
code = run(sys.argv[1:])
print("imported:", *sorted({"torch", "transformers", "timm"} & set(sys.modules)))
sys.exit(code)
"""


class Commands:
    """Commands in processes of their own, with one user's cache."""

    def __init__(self, cache: Path) -> None:
        self._environment = {**os.environ, "PENULT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: Any) -> tuple[str, str]:
        """What a command printed, and what it imported."""
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        out, _, imported = done.stdout.rpartition("imported:")
        return out, imported.strip()


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "user cache")


def audio(folder: Path) -> tuple[Path, list[Path]]:
    model = save_audio(folder / "model", "wav2vec2")
    items = [folder / f"{number}.wav" for number in range(4)]
    for number, file in enumerate(items):
        soundfile.write(file, clip(0.4 + 0.3 * number, number), RATE)
    return model, items


def text(folder: Path) -> tuple[Path, list[Path]]:
    model = save_text(folder / "model")
    items = [folder / f"{number}.txt" for number in range(4)]
    for number, file in enumerate(items):
        file.write_text(" ".join(WORDS[number :: number + 1]) + " 東京 unknown", "utf-8")
    return model, items


@pytest.mark.parametrize("kind", [audio, text])
def test_a_graph_that_is_kept_needs_no_model(kind: Any, tmp_path: Path, commands: Commands) -> None:
    """embed, search with a file and classify: the vectors and labels that torch gives."""
    pytest.importorskip("openvino")
    model, items = kind(tmp_path)
    into = tmp_path / "c.lance"
    _, imported = commands("embed", model, items[0], "--into", into, "--engine", "openvino")
    assert "torch" in imported
    said, imported = commands("embed", model, *items[1:3], "--into", into, "--json")
    told = json.loads(said)
    assert imported == "" and told["engine"] == "openvino f32" and told["done"] == 2
    said, imported = commands("search", into, items[3], "--json")
    assert imported == "" and len(json.loads(said)["hits"]) == 3
    said, imported = commands("classify", model, *items, "--json")
    assert imported == ""
    predictions = json.loads(said)["predictions"]

    classifier = penult.load(model)
    plain = penult.Embedder.from_classifier(classifier, engine="torch").run(items)
    rows, vectors = Collection.open(into).vectors()
    names = [Path(id).name for id in rows["id"].to_pylist()]
    by_id = dict(zip(names, vectors, strict=True))
    for number, file in enumerate(items[:3]):
        expected = plain.vectors[number]
        assert np.abs(by_id[file.name] - expected).max() <= 1e-5 * np.abs(expected).max()
    for number, prediction in enumerate(predictions):
        np.testing.assert_allclose(prediction["logits"], plain.logits[number], atol=1e-5)
        assert prediction["label"] == plain.labels[number]


@pytest.mark.slow
def test_other_files_open_the_model(tmp_path: Path, commands: Commands) -> None:
    """Weights that were changed in place have another graph, and are proved."""
    from safetensors.torch import load_file, save_file

    pytest.importorskip("openvino")
    model, items = audio(tmp_path)
    commands("embed", model, items[0], "--into", tmp_path / "c.lance", "--engine", "openvino")
    weights = load_file(model / "model.safetensors")
    weights["classifier.weight"] *= 2
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    said, imported = commands("embed", model, items[1], "--into", tmp_path / "d.lance", "--json")
    assert "torch" in imported and not json.loads(said)["certificate"]["kept"]


@pytest.mark.parametrize("damage", ["graph", pytest.param("note", marks=pytest.mark.slow)])
def test_a_damaged_graph_opens_the_model(damage: str, tmp_path: Path, commands: Commands) -> None:
    pytest.importorskip("openvino")
    model, items = audio(tmp_path)
    commands("embed", model, items[0], "--into", tmp_path / "c.lance", "--engine", "openvino")
    pattern = "model.bin" if damage == "graph" else "engine-*.json"
    (file,) = (tmp_path / "user cache").glob(f"engines/*/**/{pattern}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    _, imported = commands("embed", model, items[1], "--into", tmp_path / "c.lance")
    assert "torch" in imported
    plain = penult.Embedder.from_classifier(penult.load(model), engine="torch").run(items[:2])
    rows, vectors = Collection.open(tmp_path / "c.lance").vectors()
    order = np.argsort(rows["id"].to_pylist())
    np.testing.assert_allclose(vectors[order], plain.vectors, atol=1e-5)


@pytest.mark.slow
def test_many_items_open_the_model(tmp_path: Path, commands: Commands) -> None:
    """Engines take turns in a long run, so that an old choice is no verdict."""
    pytest.importorskip("openvino")
    model, items = audio(tmp_path)
    commands("embed", model, items[0], "--into", tmp_path / "c.lance", "--engine", "openvino")
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        soundfile.write(folder / f"{number}.wav", clip(0.3, number), RATE)
    _, imported = commands("embed", model, folder, "--into", tmp_path / "d.lance")
    assert "torch" in imported
