"""Second commands over the same files: what an earlier one noted, and runs on its recorded graph
that import neither torch nor transformers.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import suppress
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
from conftest import RATE, clip, thinned
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.data.hashes import write_list
from penult.embedding.embedder import Embedder, open_embedder
from penult.errors import ModelError, PenultError
from penult.models import specs
from penult.models.base import Classifier
from penult.models.plain_preparation import plain_form, preparation
from penult.models.processors import ImagePreparer
from penult.models.record import _installed, is_recorded, prepare_plainly
from zoo import WORDS, save_audio, save_image, save_text

# Runs commands, each behind a "+", and prints after each what is imported of the libraries that
# take seconds.
RUN = """
import itertools, sys
from penult.cli.main import run
for plus, words in itertools.groupby(sys.argv[1:], "+".__eq__):
    if not plus:
        code = run([*words])
        print("imported:", *sorted({"torch", "transformers", "timm"} & set(sys.modules)))
        if code:
            sys.exit(code)
"""


class Commands:
    """Commands in processes of their own, with one user's cache."""

    def __init__(self, cache: Path) -> None:
        self._environment = {**os.environ, "PENULT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: Any) -> tuple[str, str]:
        """What a command printed, and what it imported."""
        (said,) = self.in_turn(arguments)
        return said

    def in_turn(self, *commands: tuple[Any, ...]) -> list[tuple[str, str]]:
        """The same of several, in one process."""
        words = [str(word) for command in commands for word in ("+", *command)]
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"(.*?)^imported: *(.*?)\n", done.stdout, re.S | re.M)


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


@pytest.mark.parametrize(
    "kind",
    [audio, *(pytest.param(one, marks=pytest.mark.slow) for one in (image, text))],
)
def test_a_graph_that_is_kept_needs_no_model(kind: Any, tmp_path: Path, commands: Commands) -> None:
    """embed, search with a file and classify: the vectors and labels that torch gives."""
    pytest.importorskip("openvino")
    model, items = kind(tmp_path)
    into = tmp_path / "c.lance"
    _, imported = commands("embed", model, items[0], "--into", into, "--engine", "openvino")
    assert "torch" in imported
    embedded, searched, classified = commands.in_turn(
        ("embed", model, *items[1:3], "--into", into, "--json"),
        ("search", into, items[3], "--json"),
        ("classify", model, *items, "--json"),
    )
    said, imported = embedded
    told = json.loads(said)
    assert imported == "" and told["engine"] == "openvino f32" and told["done"] == 2
    said, imported = searched
    assert imported == "" and len(json.loads(said)["hits"]) == 3
    said, imported = classified
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


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["graph", "note"])
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


@pytest.mark.parametrize(
    "name", thinned(["ViT", "CLIP", "ConvNext", "DeiT", "Bit"], ["ViT", "CLIP"])
)
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
        prepare = ImagePreparer(processor)
        asked = SimpleNamespace(modality="image", preprocess=prepare, _preparer=prepare)
        form = plain_form(asked, Path(folder))  # type: ignore[arg-type]
    assert (form is None) == (name == "ConvNext")  # another rule of sizes, and left to it
    if form is not None:
        found = preparation(form)(pixels)
        assert found is not None
        values = found.tensors["pixel_values"]
        assert np.abs(values - expected.numpy()).max() <= 1e-6 * max(1, float(expected.abs().max()))


def test_a_large_picture_is_prepared_in_parts() -> None:
    """With a few times its own size of memory, and to the same values."""
    import transformers

    processor = transformers.CLIPImageProcessor(
        size={"height": 48, "width": 64}, crop_size={"height": 40, "width": 40}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2_000, 3_001, 3), dtype=np.uint8)
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    settings = ImagePreparer(processor).settings()
    prepare = preparation({"name": "pixels", "settings": settings})
    tracemalloc.start()
    found = prepare(pixels)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None and most < 6 * pixels.nbytes
    np.testing.assert_allclose(found.tensors["pixel_values"], expected.numpy(), atol=1e-6)


def _older(settings: dict[str, Any]) -> None:
    settings["size"] = 32


def _cut_older(settings: dict[str, Any]) -> None:
    settings |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}}
    settings |= {"do_center_crop": True, "crop_size": 32}


def _silent(settings: dict[str, Any]) -> None:
    for name in ("image_mean", "image_std", "rescale_factor", "resample"):
        del settings[name]


def _unknown(settings: dict[str, Any]) -> None:
    settings["resample"] = 1  # Lanczos


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("change", [_older, _cut_older, _silent, _unknown])
def test_settings_of_pictures_are_those_of_the_library(change: Any, tmp_path: Path) -> None:
    """A file of an older version has sizes in one number, or leaves out what its class has."""
    model = save_image(tmp_path / "model")
    file = model / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))
    _, second = opened_twice(model)
    assert prepare_plainly(second) == (change is not _unknown)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 91, 3), dtype=np.uint8)
    found = second.preprocess(Image.fromarray(pixels)).tensors["pixel_values"]
    assert is_recorded(second) == (change is not _unknown)
    expected = penult.load(model).preprocess(Image.fromarray(pixels)).tensors["pixel_values"]
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-6)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "added", [{"extra_special_tokens": ["seven"]}, {"mask_token": "grey"}, {"do_lower_case": True}]
)
def test_tokens_that_another_file_adds(added: dict[str, Any], tmp_path: Path) -> None:
    """Beside tokenizer.json, which does not name them."""
    model = save_text(tmp_path / "model")
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **added}))
    _, second = opened_twice(model)
    text = "The quick fox: seven grey <b>whales</b> [MASK] [SEP] sing"
    assert prepare_plainly(second)
    found = second.preprocess(text).tensors["input_ids"]
    assert is_recorded(second)
    np.testing.assert_array_equal(found, penult.load(model).preprocess(text).tensors["input_ids"])


def opened_twice(model: Any, **options: Any) -> tuple[Classifier, Classifier]:
    """A classifier as two commands open it, one after the other."""
    return specs.open_recorded(str(model), **options), specs.open_recorded(str(model), **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "user cache"))
    return tmp_path / "user cache"


@pytest.mark.usefixtures("cache")
def test_a_list_of_hashes_of_others_stands_for_nothing(tmp_path: Path) -> None:
    """Only that of a saved embedder was checked: else the files themselves count."""
    model = save_text(tmp_path / "model")
    write_list(model)
    first, second = opened_twice(model)
    assert is_recorded(second) and second.identity() == first.identity()
    file = model / "config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "id2label": {**document["id2label"], "0": "other"}}))
    assert specs.open_recorded(str(model)).labels[0] == "other"


@pytest.mark.usefixtures("cache")
def test_a_record_serves_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name that was noted means nothing elsewhere, where it may be another model's."""
    model, other = save_text(tmp_path / "a" / "model"), tmp_path / "b" / "model"
    monkeypatch.chdir(tmp_path / "a")
    specs.open_recorded("model")
    shutil.copytree(model, other)
    rules = json.loads((other / "tokenizer.json").read_text())
    words = rules["model"]["vocab"]
    rules["model"]["vocab"] = dict(zip(words, reversed(words.values()), strict=True))
    (other / "tokenizer.json").write_text(json.dumps(rules))
    monkeypatch.chdir(tmp_path / "b")
    found = specs.open_recorded("../a/model")
    plain = penult.load("../a/model")
    assert is_recorded(found) and found.spec == plain.spec
    assert prepare_plainly(found)
    text = " ".join(WORDS[:5])
    prepared = found.preprocess(text).tensors["input_ids"]
    np.testing.assert_array_equal(prepared, plain.preprocess(text).tensors["input_ids"])
    assert is_recorded(found)
    for name, path in (found._storage.files or {}).items():
        assert path == model / name


@pytest.mark.usefixtures("cache")
def test_what_lies_beside_is_not_read(tmp_path: Path) -> None:
    """Pipes, other checkpoints and hidden folders; names that are not UTF-8."""
    model = save_text(tmp_path / "model")
    for folder in (".git/lfs", "checkpoint-500"):
        (model / folder).mkdir(parents=True)
        (model / folder / "model.safetensors").write_bytes(b"1")
    with suppress(OSError):  # a file system that has no such names
        Path(os.fsdecode(os.fsencode(model) + b"/caf\xe9.txt")).write_text("")
    opened_twice(model)
    (model / "checkpoint-500" / "model.safetensors").write_bytes(b"2")
    assert is_recorded(specs.open_recorded(str(model)))
    if hasattr(os, "mkfifo"):
        os.mkfifo(model / "pipe")
        assert not any(map(is_recorded, opened_twice(model)))


@pytest.mark.usefixtures("cache")
def test_items_that_are_known_open_no_model(tmp_path: Path) -> None:
    """A second run has nothing to run."""
    model, items = audio(tmp_path)
    store = Collection.open(tmp_path / "c.lance")
    store.add(open_embedder(model), items)
    again = open_embedder(model)
    summary = store.add(again, items)
    assert (summary.done, summary.skipped) == (0, 4) and is_recorded(again.classifier)
    assert len(again.run(items).ids) == 4


@pytest.mark.usefixtures("cache")
def test_a_converted_model_has_its_graph(tmp_path: Path) -> None:
    """Of `convert --engine openvino`: a second command needs no model, of the folder and of what it
    was made from."""
    pytest.importorskip("openvino")
    model, items = audio(tmp_path)
    saved = tmp_path / "saved"
    assert run(["convert", str(model), str(saved), "--engine", "openvino"]) == 0
    plain = penult.Embedder.from_classifier(penult.load(model), engine="torch").run(items)
    for folder in (model, saved):
        open_embedder(folder, engine="openvino").run(items)  # its lengths are verified and noted
        found = open_embedder(folder, engine="openvino")
        np.testing.assert_allclose(found.run(items).vectors, plain.vectors, atol=1e-5)
        assert is_recorded(found.classifier)


@pytest.mark.usefixtures("cache")
def test_weights_in_a_hidden_file_are_read(tmp_path: Path) -> None:
    """An index of weights may name any file beside it."""
    from safetensors.torch import load_file, save_file

    model = save_audio(tmp_path / "model", "wav2vec2")
    weights, file = load_file(model / "model.safetensors"), model / ".weights.safetensors"
    (model / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, file.name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(weights, file, {"format": "pt"})
    first, second = opened_twice(model)
    before = first.identity()["weights"]
    assert is_recorded(second)
    weights["classifier.weight"] *= 2
    save_file(weights, file, {"format": "pt"})
    assert specs.open_recorded(str(model)).identity()["weights"] != before


@pytest.mark.usefixtures("cache")
def test_files_that_are_no_model_are_not_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments in the wrong order: the folder of sounds may be large."""
    (tmp_path / "sounds").mkdir()
    for name in ("sounds/1.wav", "2.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
        monkeypatch.setattr("penult.models.record._hash", lambda file: pytest.fail(str(file)))
        with pytest.raises(PenultError):
            specs.open_recorded(str((tmp_path / name).parent if "/" in name else tmp_path / name))


@pytest.mark.usefixtures("cache")
def test_a_model_that_is_changed_before_it_is_opened(tmp_path: Path) -> None:
    """What was told of it by its record does not hold for what would run."""
    model = save_text(tmp_path / "model")
    _, second = opened_twice(model)
    rules = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(rules + "\n")
    with pytest.raises(ModelError, match="was changed while it was in use; open it again"):
        _ = second.module
    (model / "tokenizer.json").write_text(rules)
    assert second.module is not None


@pytest.mark.usefixtures("cache")
def test_other_packages_make_other_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that prepares items may be there from now on, or have another version."""
    model = save_text(tmp_path / "model")
    opened_twice(model)
    (tmp_path / "site" / "torchaudio-99.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    _installed.cache_clear()
    try:
        assert not is_recorded(specs.open_recorded(str(model)))
        assert is_recorded(specs.open_recorded(str(model)))
    finally:
        _installed.cache_clear()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_that_are_cut_on_either_side(side: str, tmp_path: Path) -> None:
    model = save_text(tmp_path / "model")
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "truncation_side": side}))
    _, second = opened_twice(model)
    assert prepare_plainly(second) == (side == "right")
    text = " ".join(WORDS * 10)
    prepared, expected = second.preprocess(text), penult.load(model).preprocess(text)
    assert expected.truncated and prepared.truncated == expected.truncated
    np.testing.assert_array_equal(prepared.tensors["input_ids"], expected.tensors["input_ids"])


@pytest.mark.usefixtures("cache")
def test_what_is_told_of_a_model_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = specs.load

    def warning(*spec: Any, **options: Any) -> Classifier:
        logging.getLogger("penult.models").warning("a fact of this model")
        return load(*spec, **options)

    model = save_text(tmp_path / "model")
    monkeypatch.setattr(specs, "load", warning)
    opened_twice(model)
    assert caplog.text.count("a fact of this model") == 2


def test_a_graph_refuses_clips_as_its_model_does(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a convolution has nothing left, another engine gives values instead of an error."""
    pytest.importorskip("openvino")
    model = save_audio(tmp_path / "model", "wav2vec2")
    clips = [clip(1.0, 0)[:size] for size in (RATE, 84, 20)]
    plain = open_embedder(model).run(clips, on_error="skip")
    assert [one.error for one in plain.failures] == ["TooShort", "TooShort"]
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, samples in zip(paths, clips, strict=True):
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    Collection.open(tmp_path / "c.lance").add(open_embedder(model, engine="openvino"), paths[0])
    again = open_embedder(model, engine="openvino")
    found = again.run(clips, on_error="skip")
    assert again.runner.choice is not None and is_recorded(again.classifier)
    assert [one.message for one in found.failures] == [one.message for one in plain.failures]
    for order in (clips, clips[::-1]):  # a choice is not measured on what is refused
        fresh = Embedder.from_classifier(penult.load(model), engine="openvino")
        found = fresh.run(order, on_error="skip")
        assert len(found.ids) == 1 and len(found.failures) == 2
        np.testing.assert_allclose(found.vectors, plain.vectors, atol=1e-5)
