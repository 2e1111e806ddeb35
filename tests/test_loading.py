"""Opening checkpoints as people publish them, and refusing those that would be silently wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import penult
from conftest import RATE, clip
from penult.embedding.inspect import anatomy_of
from penult.errors import IncompleteWeights, ModelError, TapError, UntrustedCode, UsageError
from penult.models.specs import fetch, load  # type: ignore[attr-defined]
from zoo import CLASSES, save_audio, save_image, save_text, save_video


def edit(folder: Path, **changes: object) -> None:
    """Change entries of a config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def as_bin(folder: Path, rename: dict[str, str] | None = None, drop: tuple[str, ...] = ()) -> None:
    """Replace model.safetensors by the pytorch_model.bin of older days."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    for old, new in (rename or {}).items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(drop or "?")}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


OLD_NORM = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


@pytest.mark.parametrize("mix", [False, True])
def test_three_files_of_old(tmp_path: Path, mix: bool) -> None:
    """config with gradient_checkpointing, preprocessor, .bin with weight_g: as SUPERB publishes."""
    save_audio(tmp_path, "wav2vec2", use_weighted_layer_sum=mix)
    before = penult.Embedder.from_classifier(load(tmp_path)).embed(clip(0.7))
    as_bin(tmp_path, OLD_NORM)
    edit(tmp_path, gradient_checkpointing=True, transformers_version="4.6.0.dev0", dtype=None)
    for path in tmp_path.iterdir():
        assert path.name in {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    embedder = penult.Embedder.from_classifier(load(tmp_path))
    np.testing.assert_allclose(embedder.embed(clip(0.7)), before, rtol=1e-5, atol=1e-6)
    assert ("weighted" in anatomy_of(embedder.classifier).taps) is mix


@pytest.mark.parametrize("missing", ["classifier.weight", "projector.bias", "layer_weights"])
def test_missing_weights_are_named(tmp_path: Path, missing: str) -> None:
    save_audio(tmp_path, "wav2vec2", use_weighted_layer_sum=True)
    as_bin(tmp_path, drop=(missing,))
    with pytest.raises(IncompleteWeights, match=missing):
        load(tmp_path)


def test_missing_weights_that_the_logits_never_see(tmp_path: Path) -> None:
    """masked_spec_embed is for training only; many checkpoints lack it, and that is no harm."""
    save_audio(tmp_path, "wav2vec2")
    as_bin(tmp_path, drop=("wav2vec2.masked_spec_embed",))
    assert len(load(tmp_path).labels) == CLASSES


def test_mismatched_weights_are_named(tmp_path: Path) -> None:
    save_audio(tmp_path, "wav2vec2")
    names = {str(i): f"L{i}" for i in range(5)}
    edit(tmp_path, id2label=names, label2id={v: k for k, v in names.items()}, num_labels=None)
    with pytest.raises(IncompleteWeights, match=r"classifier\.weight.*\(7, 24\).*\(5, 24\)"):
        load(tmp_path)


def test_custom_head_is_refused(tmp_path: Path) -> None:
    """audeering's layout: an architecture that transformers does not know, a head of its own."""
    save_audio(tmp_path, "wav2vec2", num_labels=3)
    as_bin(
        tmp_path,
        {"projector.": "classifier.dense.", "classifier.weight": "classifier.out_proj.weight"},
        drop=("classifier.bias",),
    )
    edit(tmp_path, architectures=["Wav2Vec2ForSpeechClassification"])
    with pytest.raises(IncompleteWeights, match=r"classifier\.dense\.weight") as refused:
        load(tmp_path)
    assert "projector.weight: missing" in str(refused.value)


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/penult-pickle-ran",)


def test_an_embedder_goes_to_another_process_as_its_folder(tiny: Path, tmp_path: Path) -> None:
    made = penult.Embedder.from_classifier(load(tiny), pooling="max")
    with pytest.raises(UsageError, match="as its folder"):
        pickle.dumps(made)
    kept = penult.Embedder.load(made.save(tmp_path / "m"))
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(again.embed([clip(0.5)]), made.embed([clip(0.5)]))


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    save_audio(tmp_path, "wav2vec2")
    (tmp_path / "model.safetensors").unlink()
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        torch.save({"classifier.weight": _Code()}, file, pickle_module=pickle)
    with pytest.raises(UntrustedCode, match="--trust"):
        load(tmp_path)
    assert not Path("/tmp/penult-pickle-ran").exists()


def test_remote_code_needs_trust(tmp_path: Path) -> None:
    save_audio(tmp_path, "wav2vec2")
    edit(tmp_path, auto_map={"AutoConfig": "mine.Config"})
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UntrustedCode, match="--trust"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.json", "no config.json"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("model.safetensors", "no weights"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, name: str, says: str) -> None:
    save_audio(tmp_path, "wav2vec2")
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=says):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff" * 40])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    save_audio(tmp_path, "wav2vec2")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        load(tmp_path)


def test_not_a_classifier(tmp_path: Path) -> None:
    save_audio(tmp_path, "wav2vec2")
    edit(tmp_path, architectures=["Wav2Vec2ForCTC"])
    with pytest.raises(ModelError, match=r"Wav2Vec2ForCTC, which is not a classifier"):
        load(tmp_path)
    edit(tmp_path, architectures=["ViTMAEModel"], model_type="vit_mae")
    with pytest.raises(ModelError, match="not a classifier"):
        load(tmp_path)


@pytest.mark.parametrize(
    "spec", ["owner/no-such-model", "owner/no-such-model@main", "no-such-model"]
)
def test_unknown_model_without_network(spec: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load(spec)


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in the local hub cache opens without a network, at the revision asked for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--birds"
    save_audio(repo / "snapshots" / commit, "wav2vec2")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    _, revision = fetch(f"owner/birds@{commit}")
    assert revision == commit
    assert load("owner/birds").describe()["revision"] == commit
    assert len(load(f"owner/birds@{commit}").labels) == CLASSES


def test_image_video_and_text(tmp_path: Path) -> None:
    """The same path for every modality; logits are the model's own."""
    from PIL import Image

    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (50, 40, 3), dtype=np.uint8))
    image = save_image(tmp_path / "image")
    model = transformers.AutoModelForImageClassification.from_pretrained(image).eval()
    inputs = transformers.AutoImageProcessor.from_pretrained(image)(picture, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0].numpy()
        hidden = model.vit(**inputs).last_hidden_state.mean(dim=1)[0].numpy()
    np.testing.assert_array_equal(penult.load(image).classify(picture)[0].logits, expected)
    np.testing.assert_array_equal(
        penult.Embedder.from_classifier(penult.load(image)).embed(picture)[0], hidden
    )

    text = save_text(tmp_path / "text")
    words = "the quick brown fox sings"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(text).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(text)(words, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0].numpy()
        hidden = model.bert(**inputs).last_hidden_state.mean(dim=1)[0].numpy()
    clf = penult.load(text)
    np.testing.assert_array_equal(clf.classify(words)[0].logits, expected)
    np.testing.assert_array_equal(penult.Embedder.from_classifier(clf).embed([words])[0], hidden)

    video = save_video(tmp_path / "video")
    clf = load(video)
    assert (clf.modality, clf.input.frames) == ("video", 4)
    assert penult.Embedder.from_classifier(clf).dim == 32


@pytest.mark.parametrize(("kind", "longest"), [("bert", 32), ("roberta", 32)])
def test_long_text_is_cut_and_said(tmp_path: Path, kind: str, longest: int) -> None:
    """RoBERTa has two positions fewer than its table of positions."""
    emb = penult.Embedder.from_classifier(load(save_text(tmp_path, kind)))
    from penult.data.sources import from_objects

    outcomes = list(emb.runner.stream(from_objects(["fox " * 200, "fox " * 5], "text")))
    assert [outcome.truncated for outcome in outcomes] == [longest, None]


@pytest.mark.parametrize(("kind", "kept"), [("whisper", 1.0), ("wav2vec2", None)])
def test_long_clip_is_cut_and_said(tmp_path: Path, kind: str, kept: float | None) -> None:
    from penult.data.sources import from_objects

    emb = penult.Embedder.from_classifier(load(save_audio(tmp_path, kind)))
    long, short = emb.runner.stream(from_objects([clip(3.0), clip(0.5)], "audio"))
    assert short.truncated is None
    assert long.truncated == kept


def test_saved_embedder_gives_the_same_vectors(tiny: Path, tmp_path: Path) -> None:
    for tap, pooling in (("backbone", "mean"), ("layer:1", "mean+std"), ("prelogits", "mean")):
        emb = penult.Embedder.from_classifier(load(tiny), tap=tap, pooling=pooling)
        folder = emb.save(tmp_path / f"{tap}-{pooling}".replace(":", ""))
        again = penult.Embedder.load(folder)
        assert again.fingerprint == emb.fingerprint
        np.testing.assert_array_equal(again.embed(clip(0.8)), emb.embed(clip(0.8)))
        assert again.embed(clip(0.8)).shape == (1, emb.dim)
        assert transformers.AutoModelForAudioClassification.from_pretrained(folder) is not None


def test_embedder_that_was_changed_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = penult.Embedder.from_classifier(load(tiny)).save(tmp_path / "emb")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    with pytest.raises(
        ModelError, match=r"preprocessor_config\.json is not the file that was saved"
    ):
        penult.Embedder.load(folder)
    (folder / "SHA256SUMS").unlink()  # as earlier versions saved it
    with pytest.raises(ModelError, match="changed since it was saved: preprocessing"):
        penult.Embedder.load(folder)
    (folder / "penult.json").write_text("{}")
    with pytest.raises(ModelError, match=r"penult\.json cannot be read"):
        penult.Embedder.load(folder)


def test_a_foreign_folder_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    emb = penult.Embedder.from_classifier(load(tiny))
    with pytest.raises(UsageError, match="not an embedder"):
        emb.save(tmp_path / "mine")
    first = emb.save(tmp_path / "emb")
    assert emb.save(first) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb", "mine"]


@pytest.mark.parametrize("tap", ["projektor", "layer:9", "", "layer:x"])
def test_unknown_tap(tiny: Path, tap: str) -> None:
    with pytest.raises(TapError, match="backbone, prelogits, layer:0 … layer:2"):
        penult.Embedder.from_classifier(load(tiny), tap=tap)


def test_unknown_pooling(tiny: Path) -> None:
    with pytest.raises(TapError, match=r"last, mean\+std, gem or mean\+std\+delta"):
        penult.Embedder.from_classifier(load(tiny), pooling="median")
    with pytest.raises(TapError, match="nothing to pool"):
        penult.Embedder.from_classifier(load(tiny), tap="prelogits", pooling="mean+std")


def test_fingerprint_tells_readings_apart(tiny: Path, tmp_path: Path) -> None:
    """Weights, preprocessing, tap and pooling each change it; the place of the folder does not."""
    clf = load(tiny)
    base = penult.Embedder.from_classifier(clf).fingerprint_id
    assert penult.Embedder.from_classifier(clf, pooling="max").fingerprint_id != base
    assert penult.Embedder.from_classifier(clf, tap="layer:1").fingerprint_id != base
    copy = save_audio(tmp_path / "copy", "wav2vec2")
    assert penult.Embedder.from_classifier(load(copy)).fingerprint_id == base
    plain = save_audio(tmp_path / "plain", "wav2vec2", extractor={"do_normalize": False})
    assert penult.Embedder.from_classifier(load(plain)).fingerprint_id != base
    other = save_audio(tmp_path / "other", "wav2vec2", classifier_proj_size=20)
    assert penult.Embedder.from_classifier(load(other)).fingerprint_id != base


def test_clips_that_the_model_cannot_take(tiny: Path) -> None:
    """Shorter than the receptive field: named, with what would be long enough."""
    emb = penult.Embedder.from_classifier(load(tiny))
    shortest = emb.runner.shortest
    assert np.isfinite(emb.embed(clip(shortest / RATE))).all()
    result = emb.run([clip(0.5), clip((shortest - 1) / RATE), clip(0.6)], on_error="skip")
    assert result.item_index.tolist() == [0, 2]
    assert result.failures[0].error == "TooShort"
    assert f"{shortest / RATE:.3f} s" in result.failures[0].message
