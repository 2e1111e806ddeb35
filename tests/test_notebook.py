"""The default embedder gives what the notebook gave, to the bit; `classify` gives the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import penult
from conftest import RATE, clip
from penult.models.specs import load
from zoo import AUDIO, CLASSES, audio_extractor, save_audio

TASKS = {
    "AutoModelForAudioClassification": sorted(AUDIO),
    "AutoModelForAudioXVector": [
        "data2vec-audio",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
        "wav2vec2-conformer",
        "wavlm",
    ],
    "AutoModelForAudioFrameClassification": [
        "data2vec-audio",
        "wav2vec2",
        "wav2vec2-bert",
        "wavlm",
    ],
}


def base_of(model: nn.Module) -> nn.Module:
    """As the notebook would: `base_model`, or the largest direct child."""
    if model.base_model is not model:
        return model.base_model  # type: ignore[return-value]
    return max(model.children(), key=lambda child: sum(p.numel() for p in child.parameters()))


KINDS = [(auto, kind) for auto, kinds in TASKS.items() for kind in kinds]


@pytest.mark.parametrize(("auto", "kind"), KINDS)
def test_notebook_equality(tmp_path: Path, auto: str, kind: str) -> None:
    save_audio(tmp_path, kind, auto)
    model = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    clips = [clip(seconds, i) for i, seconds in enumerate((1.0, 0.631, 1.37))]
    emb = penult.Embedder.from_classifier(load(tmp_path))
    result = emb.run(clips, alone=True)
    predictions = penult.load(tmp_path).classify(clips)
    for row, samples in enumerate(clips):
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            hidden = base_of(model)(**inputs).last_hidden_state
            logits = model(**inputs).logits[0].numpy()
        mask = inputs.get("attention_mask")
        if kind == "wav2vec2-bert" and not mask.bool().all():
            kept = hidden[0][mask[0].bool()].mean(dim=0).numpy()
            np.testing.assert_allclose(result.vectors[row], kept, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(result.vectors[row], hidden.mean(dim=1)[0].numpy())
        np.testing.assert_array_equal(predictions[row].logits, logits)
        np.testing.assert_array_equal(
            result.logits[row], logits if logits.ndim == 1 else logits.mean(axis=0)
        )


def test_odd_frame_count_is_masked(tmp_path: Path) -> None:
    """The case above is not vacuous: one of its clips has a frame that the processor masks."""
    extractor = audio_extractor("wav2vec2-bert")
    masks = [
        extractor(clip(s), sampling_rate=RATE, return_tensors="pt")["attention_mask"]
        for s in (1.0, 0.631, 1.37)
    ]
    assert any(not mask.bool().all() for mask in masks)


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """wav2vec2-base at its full size, without a mask and with one."""
    config = transformers.Wav2Vec2Config(num_labels=4)  # type: ignore[call-arg]
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path)
    model = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    samples = clip(1.7)
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model.wav2vec2(**inputs).last_hidden_state.mean(dim=1)[0].numpy()
        logits = model(**inputs).logits[0].numpy()
    result = penult.Embedder.from_classifier(penult.load(tmp_path)).run(samples)
    assert result.vectors.shape == (1, 768)
    np.testing.assert_array_equal(result.vectors[0], expected)
    np.testing.assert_array_equal(result.logits[0], logits)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper", "sew", "wav2vec2-bert"])
def test_weighted_layers(tmp_path: Path, kind: str) -> None:
    """A learned mix of layers is a tap of its own, and the backbone stays the notebook's."""
    save_audio(tmp_path, kind, use_weighted_layer_sum=True)
    model = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor([0.5, -1.0, 1.5]))
    model.save_pretrained(tmp_path)
    model = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    samples = clip(1.0)
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    mixed: list[torch.Tensor] = []
    model.projector.register_forward_pre_hook(lambda _, args: mixed.append(args[0].clone()))
    with torch.no_grad():
        model(**inputs)
        last = base_of(model)(**inputs).last_hidden_state.mean(dim=1)[0].numpy()
    clf = penult.load(tmp_path)
    weighted = penult.Embedder.from_classifier(clf, tap="weighted").embed(samples)[0]
    np.testing.assert_allclose(weighted, mixed[0].mean(dim=1)[0].numpy(), rtol=1e-5, atol=1e-6)
    backbone = penult.Embedder.from_classifier(clf).embed(samples)[0]
    np.testing.assert_array_equal(backbone, last)
    assert not np.allclose(weighted, backbone, atol=1e-3)
    assert penult.Embedder.from_classifier(clf)._anatomy.mixes_layers


def test_one_pass(tiny: Path, recordings: Path) -> None:
    """Label and vector come from one forward pass of the backbone, which is the expensive part."""
    emb = penult.Embedder.from_classifier(load(tiny))
    passes = {"model": 0, "backbone": 0}

    def counts(name: str) -> None:
        target = emb.classifier.module if name == "model" else emb.classifier.module.wav2vec2

        def count(*_: object) -> None:
            passes[name] += 1

        target.register_forward_pre_hook(count)

    counts("model")
    counts("backbone")
    result = emb.run(recordings)
    assert len(result.vectors) == 6
    assert passes["model"] == passes["backbone"] < 6


def test_kinds(tmp_path: Path) -> None:
    """Predictions say what they are, from the model's own configuration."""
    samples = clip(0.5)
    for problem, kind in (
        ("single_label_classification", "single-label"),
        ("multi_label_classification", "multi-label"),
        ("regression", "regression"),
        (None, "single-label"),
    ):
        folder = save_audio(tmp_path / str(problem), "wav2vec2", problem_type=problem)
        prediction = penult.load(folder).classify(samples)[0]
        assert prediction.kind == kind
        assert prediction.scores.shape == prediction.logits.shape == (CLASSES,)
        logits = torch.from_numpy(prediction.logits)
        expected = {
            "single-label": logits.softmax(-1),
            "multi-label": logits.sigmoid(),
            "regression": logits,
        }[kind]
        np.testing.assert_allclose(prediction.scores, expected.numpy(), rtol=1e-5)
        assert prediction.index == int(logits.argmax())
    one = save_audio(tmp_path / "one", "wav2vec2", num_labels=1)
    assert penult.load(one).classify(samples)[0].kind == "regression"


def test_nothing_is_changed_by_embedding(tiny: Path, recordings: Path) -> None:
    """Weights, buffers, mode and hooks of the model are as before."""
    clf = load(tiny)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clf.module.modules())

    with torch.no_grad():
        clf.module(**clf.example().tensors)  # transformers adds hooks of its own at first use
    hooked = hooks()
    before = {name: tensor.clone() for name, tensor in clf.module.state_dict().items()}
    emb = penult.Embedder.from_classifier(clf)
    emb.run(recordings)
    after = clf.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hooks() == hooked
    assert not clf.module.training


def test_a_vector_does_not_depend_on_the_folder(tiny: Path, recordings: Path) -> None:
    """Alone, in any order, among others: the same numbers; one at a time, the same bits."""
    emb = penult.Embedder.from_classifier(load(tiny))
    together = emb.run(recordings)
    paths = [Path(id) for id in together.ids]
    backwards = emb.run(paths[::-1])
    alone = emb.run(recordings, alone=True)
    scale = np.abs(alone.vectors).max(axis=1, keepdims=True)
    for other in (together.vectors, backwards.vectors[::-1]):
        assert np.abs((other - alone.vectors) / scale).max() <= 1e-5
    for row, path in enumerate(paths):
        np.testing.assert_array_equal(emb.embed(path)[0], alone.vectors[row])
