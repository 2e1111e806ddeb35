"""An embedder in other people's benchmarks: MTEB (with its mock tasks of texts, pictures and
sound, offline), X-ARES and HEAR, each by the rules of its own checker; scikit-learn by its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, DatasetDict
from datasets.features import Audio
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from scipy.stats import spearmanr
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

import penult
import zoo
from conftest import clip
from penult.errors import TapError, UsageError
from penult.integrations import hear
from penult.integrations.mteb import MtebEncoder
from penult.integrations.xares import PenultEncoder
from penult.sklearn import EmbeddingTransformer

DEMO = Path(penult.__file__).parent / "demo" / "clips"


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` decodes sound by torchcodec, which needs an FFmpeg of the machine; by soundfile
    here, with what it gives in the same form."""

    def encode(self: Audio, value: Any) -> dict[str, Any]:
        file = io.BytesIO()
        samples = np.asarray(value["array"])
        soundfile.write(file, samples, value["sampling_rate"], "FLOAT", format="WAV")
        return {"bytes": file.getvalue(), "path": None}

    def decode(self: Audio, value: Any, token_per_repo_id: Any = None) -> dict[str, Any]:
        samples, rate = soundfile.read(io.BytesIO(value["bytes"]), dtype="float32")
        return {"array": samples, "sampling_rate": rate}

    monkeypatch.setattr(Audio, "encode_example", encode)
    monkeypatch.setattr(Audio, "decode_example", decode)


def passed(model: Any) -> list[str]:
    found = mteb.mock_run(MtebEncoder(model))
    taken = {name: status for name, status in found.items() if status is not None}
    failed = {n: str(s)[:300] for n, s in taken.items() if type(s).__name__ != "TaskResult"}
    assert not failed
    return [*taken]


def test_mock_tasks_of_texts(tmp_path: Path) -> None:
    assert len(passed(zoo.save_text(tmp_path / "model"))) > 20


def test_mock_tasks_of_pictures(tmp_path: Path) -> None:
    assert len(passed(zoo.save_image(tmp_path / "model"))) > 5


def test_mock_tasks_of_sound(decoder: None) -> None:
    assert len(passed("demo")) > 5


def test_a_task_of_local_data_runs_unchanged(tmp_path: Path) -> None:
    """Its score is Spearman's correlation of cosines, computed here by hand as well."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 14, (24, 2))
    pairs = [tuple(" ".join(random.choice(zoo.WORDS, n)) for n in pair) for pair in lengths]
    gold = random.random(24) * 5

    class LocalSTS(AbsTaskSTS):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="LocalSTS", description="pairs", reference=None,
            dataset={"path": "x", "revision": "1"}, type="STS", category="t2t",
            modalities=["text"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="cosine_spearman", date=None, domains=None,
            task_subtypes=None, license=None, annotations_creators=None, dialect=None,
            sample_creation=None, bibtex_citation=None,
        )  # fmt: skip
        min_score, max_score = 0, 5

        def load_data(self, *arguments: Any, **options: Any) -> None:
            one, two = zip(*pairs, strict=True)
            columns = {"sentence1": list(one), "sentence2": list(two), "score": gold.tolist()}
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

    model = zoo.save_text(tmp_path / "model")
    results = mteb.evaluate(MtebEncoder(model), LocalSTS(), cache=None, show_progress_bar=False)
    score = results.task_results[0].scores["test"][0]["cosine_spearman"]
    embedder = penult.Embedder.from_classifier(penult.load(model))
    left, right = (embedder.run([pair[n] for pair in pairs], alone=True).vectors for n in (0, 1))
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert score == pytest.approx(spearmanr(cosines, gold).statistic, abs=1e-6)


def test_mteb_vectors_are_the_embedders_in_any_batch() -> None:
    """Sound at two rates, of different lengths, in batches of two."""
    sounds = [(0.5, 8000), (1.1, 16_000), (0.8, 8000)]
    items = [
        {"array": clip(seconds, seed, rate), "sampling_rate": rate}
        for seed, (seconds, rate) in enumerate(sounds)
    ]
    found = MtebEncoder("demo").encode([{"audio": items[:2]}, {"audio": items[2:]}])
    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    alone = [embedder.embed([(one["array"], one["sampling_rate"])])[0] for one in items]
    assert np.abs(found - np.stack(alone)).max() < 1e-5 * np.abs(found).max()
    with pytest.raises(UsageError, match="takes audio"):
        MtebEncoder("demo").encode([{"text": ["a"]}])


def frames_by_hand(samples: np.ndarray) -> np.ndarray:
    """The demo's last hidden states, by transformers alone."""
    folder = Path(penult.__file__).parent / "demo" / "classifier"
    import transformers

    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with torch.no_grad():
        inputs = extractor(samples, sampling_rate=8000, return_tensors="pt")
        hidden = model.base_model(**inputs).last_hidden_state
    return np.asarray(hidden[0].numpy())


def test_xares_gets_frames() -> None:
    """By the rules of its `check_audio_encoder`, and the numbers of transformers."""
    encoder = PenultEncoder("demo")
    assert type(encoder).__name__.endswith("Encoder") and isinstance(encoder, torch.nn.Module)
    audio = torch.from_numpy(np.stack([clip(2.0, seed, 8000) for seed in range(3)]))
    found = encoder(audio)
    assert found.ndim == 3 and found.shape[0] == 3 and found.shape[2] == encoder.output_dim == 128
    assert found.shape[1] == pytest.approx(2000 / encoder.hop_size_in_ms, abs=2)
    strides = encoder._frames._embedder.classifier.module.config.conv_stride
    assert encoder.hop_size_in_ms == pytest.approx(1000 * np.prod(strides) / 8000)
    for row, one in zip(found.numpy(), audio.numpy(), strict=True):
        expected = frames_by_hand(one)
        assert row.shape == expected.shape
        assert np.abs(row - expected).max() < 1e-5 * np.abs(expected).max()
        alone = encoder(torch.from_numpy(one)).numpy()[0]
        assert np.abs(row - alone).max() < 1e-5 * np.abs(alone).max()
    with pytest.raises(TapError, match="no frames"):
        PenultEncoder("demo", tap="prelogits")


def test_frames_of_patches_are_means_over_frequency(tmp_path: Path) -> None:
    """AST: rows of patches, one behind the other, with two tokens in front."""
    model = zoo.save_audio(tmp_path / "model", "audio-spectrogram-transformer")
    encoder = PenultEncoder(model)
    config = encoder._frames._embedder.classifier.module.config
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    audio = clip(0.26, 1)
    found = encoder(torch.from_numpy(audio)[None]).numpy()[0]
    classifier = penult.load(model)
    with torch.no_grad():
        inputs = classifier.preprocess(audio).tensors
        hidden = classifier.module.base_model(**inputs).last_hidden_state[0, 2:].numpy()
    expected = hidden.reshape(-1, columns, hidden.shape[1]).mean(axis=0)
    assert found.shape == expected.shape == (columns, 32)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_short_clip_of_a_fixed_length_has_its_own_frames(tmp_path: Path) -> None:
    model = zoo.save_audio(tmp_path / "model", "whisper")
    encoder = PenultEncoder(model)
    assert encoder.hop_size_in_ms == pytest.approx(20.0)
    assert encoder(torch.from_numpy(clip(0.5))[None]).shape[1] == 25
    assert encoder(torch.from_numpy(clip(1.0))[None]).shape[1] == 50


def test_hear_api(tmp_path: Path) -> None:
    """Every rule of hear-validator for a module of torch."""
    model = hear.load_model(str(zoo.save_audio(tmp_path / "model", "wav2vec2")))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert type(model.scene_embedding_size) is int is type(model.timestamp_embedding_size)
    audio = torch.rand(16, 2 * model.sample_rate) * 2 - 1
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[0] == 16
    assert embeddings.shape[:2] == times.shape
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = torch.diff(times)
    assert (steps - steps.mean()).abs().max() < 1e-3 and steps.mean() <= 50.0
    assert times[0, 0] >= 0 and times[0, -1] <= 2000
    scenes = hear.get_scene_embeddings(torch.rand(8, int(3.74 * 16_000)) * 2 - 1, model)
    assert scenes.dtype == torch.float32 and scenes.shape == (8, model.scene_embedding_size)
    # A scene of the mean is the mean of its frames.
    mean = embeddings.mean(dim=1)
    assert (hear.get_scene_embeddings(audio, model) - mean).abs().max() < 1e-5 * mean.abs().max()


def test_scikit_learns_own_checks() -> None:
    """None fails. Most are not run: they fit a matrix, and items are files, arrays, texts (the tag
    `two_d_array` says so). Those that need none run in test_sklearn_bridge."""
    with pytest.warns(SkipTestWarning, match="two_d_array=False"):
        found = check_estimator(EmbeddingTransformer(), on_fail=None)
    assert {one["check_name"]: one["status"] for one in found} == {
        "check_estimator_cloneable": "passed"
    }
