"""The padding law: an item gives the same vector and logits alone, in any batch, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import RATE, clip, thinned
from penult.embedding.embedder import Embedder, open_embedder
from penult.engines.batching import (
    ALONE,
    EQUAL,
    MASKED_NORMS,
    PADDED,
    BatchPolicy,
)
from penult.engines.parity import relative_error
from penult.engines.positions import masked_norms
from penult.errors import ItemError, TapError
from penult.models.specs import load
from test_notebook import TASKS
from zoo import build, save_audio, save_image, save_text

# What each model turns out to be, for vector and logits together; layer norm in front or group
# norm. `find_batch_policy` measures it; the list here is what it measured.
EXPECTED = {
    ("wav2vec2", "group"): MASKED_NORMS,
    ("wav2vec2", "layer"): PADDED,
    ("hubert", "group"): MASKED_NORMS,
    ("hubert", "layer"): PADDED,
    ("wavlm", "group"): MASKED_NORMS,
    ("wavlm", "layer"): PADDED,
    ("unispeech", "group"): MASKED_NORMS,
    ("unispeech", "layer"): PADDED,
    ("unispeech-sat", "group"): MASKED_NORMS,
    ("unispeech-sat", "layer"): PADDED,
    ("sew", "group"): EQUAL,
    ("sew", "layer"): EQUAL,
    ("sew-d", "group"): EQUAL,
    ("sew-d", "layer"): EQUAL,
    ("wav2vec2-bert", None): PADDED,
    ("wav2vec2-conformer", "group"): EQUAL,
    ("data2vec-audio", None): EQUAL,
    ("audio-spectrogram-transformer", None): EQUAL,
    ("whisper", None): EQUAL,
}
EACH_RUN = {"wav2vec2", "wavlm", "sew-d", "wav2vec2-bert", "whisper"}
CLIPS = [clip(s, i) for i, s in enumerate((1.0, 0.63, 1.37, 1.1, 0.9, 2.05, 0.63, 0.2, 1.0))]


def calls_of(module: nn.Module, run: Any) -> tuple[int, Any]:
    count = [0]
    handle = module.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        result = run()
    finally:
        handle.remove()
    return count[0], result


def held(alone: Any, other: Any, order: Any) -> None:
    for row, index in enumerate(order):
        for one, two in ((other.vectors, alone.vectors), (other.logits, alone.logits)):
            assert relative_error([one[row]], [two[index]]) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "norm"),
    thinned(EXPECTED, [case for case in EXPECTED if case[0] in EACH_RUN]),
    ids=lambda value: str(value),
)
def test_law_of_every_audio_model(tmp_path: Path, kind: str, norm: str | None) -> None:
    extra = {"feat_extract_norm": norm} if norm else {}
    emb = Embedder.from_classifier(load(save_audio(tmp_path / "m", kind, **extra)))
    assert emb.runner.policy.name == EXPECTED[kind, norm]
    module = emb.classifier.module
    many, alone = calls_of(module, lambda: emb.run(CLIPS, alone=True))
    order = list(range(len(CLIPS)))[::-1]
    few, together = calls_of(module, lambda: emb.run([CLIPS[i] for i in order]))
    assert many == len(CLIPS) > few
    held(alone, together, order)
    emb.save(tmp_path / "saved")
    assert Embedder.load(tmp_path / "saved").runner.policy == emb.runner.policy


@pytest.mark.parametrize(
    "auto",
    thinned(
        [auto for auto in TASKS if auto.endswith(("XVector", "FrameClassification"))],
        ["AutoModelForAudioFrameClassification"],
    ),
)
def test_law_of_other_heads(tmp_path: Path, auto: str) -> None:
    for kind in TASKS[auto]:
        emb = Embedder.from_classifier(load(save_audio(tmp_path / kind, kind, auto)))
        clips = [samples for samples in CLIPS if len(samples) > RATE // 2]
        held(emb.run(clips, alone=True), emb.run(clips), range(len(clips)))


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    order=st.permutations(range(len(CLIPS))),
    budget=st.integers(1, 200_000),
    pooling=st.sampled_from(["mean", "max", "first", "last", "mean+std"]),
)
def test_any_partition_gives_the_same_rows(
    embedders: dict[str, Embedder], order: list[int], budget: int, pooling: str
) -> None:
    emb = embedders[pooling]
    emb.runner.budget = budget
    held(emb.reference, emb.run([CLIPS[i] for i in order]), order)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Embedder]:
    clf = load(save_audio(tmp_path_factory.mktemp("m"), "wav2vec2"))
    made = {}
    for pooling in ("mean", "max", "first", "last", "mean+std"):
        emb = Embedder.from_classifier(clf, pooling=pooling)
        assert emb.runner.policy.name == MASKED_NORMS
        emb.reference = emb.run(CLIPS, alone=True)  # type: ignore[attr-defined]
        made[pooling] = emb
    return made


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """wav2vec2-base at its full size, with the group norm that sees padding."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(num_labels=4, num_hidden_layers=4)  # type: ignore[call-arg]
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    emb = Embedder.from_classifier(load(tmp_path))
    assert emb.runner.policy.name == MASKED_NORMS
    clips = [clip(1.0, 1), clip(1.1, 2)]
    calls, together = calls_of(emb.classifier.module, lambda: emb.run(clips))
    assert calls == 1
    held(emb.run(clips, alone=True), together, range(2))


def test_masked_norm_is_the_norm_of_the_item_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 6, 5, stride=2), nn.GroupNorm(3, 6), nn.Conv1d(6, 4, 3)).eval()
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    lengths = [40, 33, 21]
    items = [torch.randn(1, n) for n in lengths]
    batch = torch.stack([nn.functional.pad(item, (0, 40 - item.shape[1])) for item in items])
    with torch.no_grad(), masked_norms(net, lengths):
        together = net(batch)
    assert not any(module._forward_hooks for module in net.modules())
    for row, item in zip(together, items, strict=True):
        alone = net(item[None])[0]
        torch.testing.assert_close(row[:, : alone.shape[1]], alone, rtol=1e-5, atol=1e-6)


class Coupled(nn.Module):
    """A classifier whose every item sees the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(50, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(x.unfold(1, 50, 50))
        return self.head((hidden - hidden.mean(dim=0)).mean(dim=1) + hidden.mean(dim=1))


def test_a_model_that_mixes_its_batch_runs_one_at_a_time() -> None:
    torch.manual_seed(0)
    emb = Embedder.from_classifier(load(Coupled().eval(), sample_rate=RATE))
    assert emb.runner.policy.name == ALONE
    clips = [clip(1.0, seed) for seed in range(5)]
    calls, result = calls_of(emb.classifier.module, lambda: emb.run(clips))
    assert calls == 5
    held(emb.run(clips, alone=True), result, range(5))


class Small(nn.Module):
    """A classifier on a machine with little memory."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(100, 3)
        self.sizes: list[int] = []
        self.most = 10**9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if x.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return self.head(x.unfold(1, 100, 100).mean(dim=1))


def test_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    torch.manual_seed(0)
    module = Small().eval()
    emb = Embedder.from_classifier(load(module, sample_rate=RATE))
    assert emb.runner.policy.name == EQUAL
    clips = [clip(0.5, seed) for seed in range(16)]
    module.sizes.clear()
    whole = emb.run(clips)
    assert module.sizes == [16]
    module.most = 4 * 8_000
    module.sizes.clear()
    halved = emb.run(clips)
    assert module.sizes == [16, 8, 4, 4, 8, 4, 4]
    np.testing.assert_allclose(halved.vectors, whole.vectors, rtol=1e-5, atol=1e-6)
    module.sizes.clear()
    emb.run(clips)
    assert max(module.sizes) <= 4


def test_what_does_not_fit_alone_fails_alone() -> None:
    module = Small().eval()
    emb = Embedder.from_classifier(load(module, sample_rate=RATE))
    assert emb.runner.policy.name == EQUAL
    module.most = 8_000
    clips = [clip(0.5, 0), clip(0.8, 1), clip(0.5, 2)]
    result = emb.run(clips, on_error="skip")
    assert list(result.item_index) == [0, 2]
    assert "does not fit into memory" in result.failures[0].message
    assert "--window" in result.failures[0].message
    with pytest.raises(ItemError, match="does not fit into memory"):
        emb.run(clips)


def test_a_bad_item_in_a_batch_fails_alone(tiny: Path) -> None:
    emb = Embedder.from_classifier(load(tiny))
    clips = [clip(1.0, 0), clip(0.001, 1), np.zeros(RATE, np.float32), clip(1.0, 2), clip(0.9, 3)]
    result = emb.run(clips, on_error="skip")
    assert list(result.item_index) == [0, 3, 4]
    assert [failure.error for failure in result.failures] == ["TooShort", "EmptyItem"]
    held(emb.run([clips[i] for i in (0, 3, 4)], alone=True), result, range(3))


TEXTS = [
    "a dog",
    "the quick brown fox jumps over a lazy dog",
    "whales sing",
    "rain",
    "and rain falls",
]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "gpt2 without padding", "xlnet"])
def test_text_obeys_the_law(tmp_path: Path, kind: str) -> None:
    """Token masks; causal models that pick the last valid token; no padding token at all."""
    folder = save_text(tmp_path, "roberta" if kind == "roberta" else "bert")
    small = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0}
    if kind.startswith("gpt2"):
        small["pad_token_id"] = None if "without" in kind else 0
        config = transformers.GPT2Config(**small, n_embd=32, n_layer=2, n_head=2)
    elif kind == "xlnet":
        config = transformers.XLNetConfig(**small, d_model=32, n_layer=2, n_head=2, d_inner=32)
    else:
        config = None
    if config is not None:
        build("AutoModelForSequenceClassification", config).save_pretrained(folder)
    emb = Embedder.from_classifier(load(folder))
    calls, result = calls_of(emb.classifier.module, lambda: emb.run(TEXTS * 2))
    held(emb.run(TEXTS * 2, alone=True), result, range(10))
    alone = kind == "gpt2 without padding"
    assert emb.runner.policy.name == (ALONE if alone else PADDED)
    assert calls == 10 if alone else calls < 10


def test_images_obey_the_law(tmp_path: Path) -> None:
    emb = Embedder.from_classifier(load(save_image(tmp_path / "m")))
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (40 + 7 * i, 64, 3), dtype=np.uint8) for i in range(5)]
    calls, result = calls_of(emb.classifier.module, lambda: emb.run(images))
    assert calls < 5
    held(emb.run(images, alone=True), result, range(5))


def test_one_item_asks_for_no_law(tiny: Path) -> None:
    emb = open_embedder(tiny)
    emb.run(clip(1.0))
    assert "law" not in vars(emb)
    emb.run([clip(1.0), clip(1.1)])
    assert emb.runner.policy.pads


def test_a_law_is_json() -> None:
    law = BatchPolicy(
        PADDED, {"x": 1}, {"input_ids": 3}, True, 7, {"padded": 1e-7, "equal": float("inf")}
    )
    assert BatchPolicy.from_dict(law.to_dict()) == law


def test_windows_of_files_share_batches(tiny: Path) -> None:
    emb = Embedder.from_classifier(load(tiny))
    assert emb.runner.policy.pads
    clips = [clip(2.4, 0), clip(0.7, 1), clip(3.0, 2)]
    calls, result = calls_of(emb.classifier.module, lambda: emb.run(clips, window=1.0, hop=0.5))
    assert calls < len(result.ids) == 4 + 1 + 5
    assert list(result.item_index) == [0] * 4 + [1] + [2] * 5
    for row, region in enumerate(result.regions):
        source = clips[result.item_index[row]]
        cut = source[round((region.start or 0) * RATE) : round((region.end or 0) * RATE)]
        assert relative_error([result.vectors[row]], [emb.run(cut).vectors[0]]) <= 1e-5


def test_pooling_over_what_a_clip_fills(tmp_path: Path) -> None:
    """Whisper has one position for two frames of 10 ms: of 0.4 s the first 20 are the clip's."""
    clf = load(save_audio(tmp_path / "w", "whisper"))
    emb = Embedder.from_classifier(clf, pool_over="valid")
    clips = [clip(0.4, 0), clip(0.9, 1), clip(1.7, 2)]
    result = emb.run(clips)
    held(emb.run(clips, alone=True), result, range(3))
    for row, positions in enumerate((20, 45, 50)):
        tensors = clf.preprocess(clips[row]).tensors
        with torch.no_grad():
            hidden = clf.module.encoder(**tensors).last_hidden_state[0]
        assert (
            relative_error([result.vectors[row]], [hidden[:positions].mean(dim=0).numpy()]) <= 1e-5
        )
    assert emb.fingerprint != Embedder.from_classifier(clf).fingerprint
    again = Embedder.load(emb.save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.embed(clips[0]), emb.embed(clips[0]))


def test_pooling_over_valid_patches(tmp_path: Path) -> None:
    """AST's patches lie on a grid of bands and times, behind two tokens that see no clip."""
    clf = load(save_audio(tmp_path / "a", "audio-spectrogram-transformer"))
    emb = Embedder.from_classifier(clf, pool_over="valid")
    emb.run(clip(0.13))
    filling = next(iter(emb.runner.engine._fillings.values()))  # type: ignore[attr-defined]
    (mask,) = filling._known.values()
    config = clf.module.config
    times = (config.max_length - config.patch_size) // config.time_stride + 1
    grid = mask[2:].reshape(-1, times)
    assert not mask[:2].any() and 0 < mask.sum() < len(mask) - 2
    assert all(torch.equal(row, grid[0]) for row in grid)
    assert not (grid[0][1:] & ~grid[0][:-1]).any()  # its beginning, without a gap


@pytest.mark.parametrize(("over", "says"), [("valid", "at its own"), ("most", "all or valid")])
def test_pooling_over_that_does_not_fit(tiny: Path, over: str, says: str) -> None:
    with pytest.raises(TapError, match=says):
        Embedder.from_classifier(load(tiny), pool_over=over)
