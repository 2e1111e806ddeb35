"""Second commands over the same files: what an earlier one noted, and runs on its recorded graph
that import neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import penult
from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.models.base import Inputs
from penult.models.plain_preparation import plain_form, preparation
from zoo import WORDS, save_audio, save_image, save_text

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


def image(folder: Path) -> tuple[Path, list[Path]]:
    model = save_image(folder / "model")
    items = [folder / f"{number}.png" for number in range(4)]
    random = np.random.default_rng(0)
    for number, file in enumerate(items):
        pixels = random.integers(0, 256, (40 + 31 * number, 57, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return model, items


def text(folder: Path) -> tuple[Path, list[Path]]:
    model = save_text(folder / "model")
    items = [folder / f"{number}.txt" for number in range(4)]
    for number, file in enumerate(items):
        file.write_text(" ".join(WORDS[number :: number + 1]) + " 東京 unknown", "utf-8")
    return model, items


@pytest.mark.parametrize("kind", [audio, image, text])
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


@pytest.mark.parametrize("name", ["ViT", "CLIP", "ConvNext", "DeiT", "Bit"])
@settings(max_examples=12, deadline=None)
@given(
    size=st.tuples(st.integers(30, 300), st.integers(30, 300)),
    seed=st.integers(0, 9),
    cubic=st.booleans(),
)
def test_pictures_are_prepared_as_by_their_processor(
    name: str, size: tuple[int, int], seed: int, cubic: bool
) -> None:
    """Or left to it: for sizes that no made-up item had."""
    import transformers

    short = {"height": 64, "width": 48} if name in ("ViT", "DeiT") else {"shortest_edge": 64}
    cut = {} if name in ("ViT", "ConvNext") else {"crop_size": {"height": 48, "width": 40}}
    maker = getattr(transformers, f"{name}ImageProcessor")
    processor = maker(size=short, resample=3 if cubic else 2, **cut)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        asked = SimpleNamespace(
            modality="image",
            preprocess=lambda item: Inputs(dict(processor(images=item, return_tensors="pt"))),
        )
        form = plain_form(asked, Path(folder))  # type: ignore[arg-type]
    assert (form is None) == (name == "ConvNext")  # another rule of sizes, and left to it
    found = None if form is None else preparation(form)(pixels)
    if found is not None:
        values = found.tensors["pixel_values"]
        assert np.abs(values - expected.numpy()).max() <= 1e-6 * max(1, float(expected.abs().max()))
