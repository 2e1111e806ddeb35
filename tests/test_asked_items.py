"""A verdict on made-up input refuses nothing where items can be asked; outputs that are no vector
of classes; models without positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import penult
from penult.collection.collection import Collection
from penult.data.sources import from_objects
from penult.embedding.embedder import require_proof
from penult.embedding.readings import head_rows
from penult.embedding.source_sample import SourceSample
from penult.errors import HeadNotFound, ModelError, TapError
from penult.fewshot.labelling import by_head
from penult.fewshot.vectors import VectorSource

RATE, C, D, K = 800, 64, 8, 5


def _loud(samples: np.ndarray) -> Tensor:
    """What of a sound exceeds 0.9: nothing of noise, something of clicks."""
    return torch.relu(torch.from_numpy(samples[:C]).float() - 0.9) * 20


def clip(seed: int, loud: bool) -> np.ndarray:
    random = np.random.default_rng(seed)
    samples = 0.05 * random.standard_normal(RATE)
    if loud:
        samples[random.integers(0, C, 24)] = random.uniform(0.92, 1.0, 24)
    return samples.astype(np.float32)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(C, D), nn.Tanh(), nn.Linear(D, K)).eval()


def _graph(folder: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    net = _net()
    held = [
        numpy_helper.from_array(value.detach().numpy().copy(), name)
        for name, value in (
            ("w", net[0].weight.T), ("b", net[0].bias), ("v", net[2].weight.T), ("c", net[2].bias)
        )
    ]  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["u"]),
        helper.make_node("Tanh", ["u"], ["z"]),
        helper.make_node("Gemm", ["z", "v", "c"], ["logits"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", C), ("logits", K))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "g.onnx"))
    return folder / "g.onnx"


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_prelogits_are_given_where_real_items_prove_the_head(kind: str, tmp_path: Path) -> None:
    """On noise the scores stay the same; on the items they do not: the first two are quiet."""
    model = _net() if kind == "torch" else _graph(tmp_path)
    loaded = penult.load(model, preprocess=_loud, sample_rate=RATE, kind="single-label")
    assert loaded.structure.study().prove()[0].ok is (kind == "torch")
    items = [clip(0, False), clip(1, False), clip(2, True), clip(3, True)]
    embedder = penult.Embedder.from_classifier(loaded, tap="prelogits")
    require_proof(embedder, SourceSample(from_objects(items, "audio")))
    assert embedder.certificate.ok, embedder.certificate
    assert embedder.certificate.power >= 1000
    expected = [_net()[:2](_loud(item)[None]).detach().numpy()[0] for item in items]
    np.testing.assert_allclose(embedder.embed(items), expected, rtol=1e-4, atol=1e-5)


def test_items_that_tell_nothing_are_still_refused() -> None:
    net = _net()
    net[2].weight.data.mul_(1e-7)
    loaded = penult.load(net, preprocess=_loud, sample_rate=RATE, kind="single-label")
    embedder = penult.Embedder.from_classifier(loaded, tap="prelogits")
    items = [clip(seed, seed > 0) for seed in range(3)]
    with pytest.raises(HeadNotFound, match="two clearly different inputs differ by"):
        require_proof(embedder, SourceSample(from_objects(items, "audio")))


class Picture(nn.Module):
    def __init__(self, after: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.conv, self.fc = (
            nn.Conv2d(3, D, 3, 2, 1),
            nn.Conv2d(D, K, 1),
            nn.Linear(D, K),
        )
        self.one, self.after = nn.Conv2d(D, 1, 1), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self, torch.relu(self.body(x)))


def _pixels(image: Image.Image) -> Tensor:
    values = np.asarray(image.convert("RGB").resize((32, 32)), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1)


def _larger(scores: Tensor) -> Tensor:
    return F.interpolate(scores, scale_factor=2.0)


MAPS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "segmentation": (lambda m, h: _larger(m.conv(h)), "(1, 5, 32, 32)"),
    "segmentation in a mapping": (lambda m, h: {"out": _larger(m.conv(h))}, "(1, 5, 32, 32)"),
    "one map": (lambda m, h: _larger(m.one(h)), "(1, 1, 32, 32)"),
    "depth": (lambda m, h: _larger(m.one(h))[:, 0], "(1, 32, 32)"),
    "a coarse map": (lambda m, h: m.conv(h), "(1, 5, 16, 16)"),
    "patches": (lambda m, h: m.conv(h).flatten(2).transpose(1, 2), "(1, 256, 5)"),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_no_vector_of_classes(name: str) -> None:
    after, shape = MAPS[name]
    with pytest.raises(ModelError) as caught:
        penult.load(Picture(after).eval(), preprocess=_pixels, modality="image")
    said = str(caught.value)
    assert shape in said and "no vector of classes" in said and "--output" in said
    assert "\n" not in said


VECTORS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pooled": lambda m, h: m.fc(h.mean((2, 3))),
    "one position": lambda m, h: m.fc(h.mean((2, 3)))[:, None],
    "a convolution on one position": lambda m, h: m.conv(h.mean((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_classes_is_one(name: str) -> None:
    loaded = penult.load(Picture(VECTORS[name]).eval(), preprocess=_pixels, modality="image")
    assert len(loaded.labels) == K
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    expected = loaded.module(x=_pixels(picture)[None]).detach().numpy().reshape(-1)
    assert np.allclose(loaded.classify([picture])[0].logits.reshape(-1), expected, atol=1e-5)


class Sound(nn.Module):
    def __init__(self, after: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Conv1d(1, D, 8, 4), nn.Linear(D, K)
        self.same, self.after = nn.Conv1d(1, K, 3, padding=1), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, x[:, None])


@pytest.mark.parametrize("name", ["enhanced", "classes in front of samples", "frames", "clips"])
def test_sound_to_sound_is_no_classifier_and_scores_of_frames_are(name: str) -> None:
    after: Callable[[Any, Tensor], Tensor] = {
        "enhanced": lambda m, x: m.same(x).mean(1),
        "classes in front of samples": lambda m, x: m.same(x),
        "frames": lambda m, x: m.fc(torch.relu(m.body(x)).transpose(1, 2)),
        "clips": lambda m, x: m.fc(torch.relu(m.body(x)).mean(2)),
    }[name]
    if name in {"frames", "clips"}:
        assert len(penult.load(Sound(after).eval(), sample_rate=8000).labels) == K
        return
    with pytest.raises(ModelError, match="its last axis is as long as one of the input x"):
        penult.load(Sound(after).eval(), sample_rate=8000)


def test_choose_on_a_model_without_positions() -> None:
    """One reading only, which is the prelogits; the notebook's recipe is kept."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(RATE, D), nn.Tanh(), nn.Linear(D, K)).eval()
    loaded = penult.load(net, sample_rate=RATE, seconds=1)
    random = np.random.default_rng(0)
    items = [random.standard_normal(RATE).astype(np.float32) for _ in range(12)]
    chosen = penult.choose(loaded, items, labels=["a", "b", "c"] * 4)
    assert len(chosen.embedder.embed(items[:2])) == 2
    assert penult.choose(loaded, items).setting.readings == ("prelogits mean",)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(RATE, D), nn.Linear(RATE, D)
        self.a, self.b = nn.Linear(D, K), nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.tanh(self.one(x))) + self.b(torch.tanh(self.two(x)))


def test_choose_on_a_model_without_a_tap_is_one_sentence() -> None:
    loaded = penult.load(TwoHeads().eval(), sample_rate=RATE, seconds=1)
    random = np.random.default_rng(0)
    items = [random.standard_normal(RATE).astype(np.float32) for _ in range(4)]
    with pytest.raises(TapError, match="no hidden states that could be compared by name"):
        penult.choose(loaded, items, labels=["a", "b"] * 2)


@pytest.mark.parametrize("wrap", ["compiled", "DataParallel", "both"])
def test_wrapped_modules_are_opened_as_what_is_inside(wrap: str) -> None:
    net = nn.Sequential(nn.Linear(C, D), nn.Tanh(), nn.Linear(D, K)).eval()
    wrapped: Any = nn.DataParallel(net) if wrap != "compiled" else net
    if wrap != "DataParallel":
        wrapped = torch.compile(wrapped, backend="eager")
    items = [clip(seed, True) for seed in range(3)]
    found = penult.load(wrapped, preprocess=_loud, sample_rate=RATE)
    assert found.structure.study().prove()[0].ok
    embedder = penult.Embedder.from_classifier(found, tap="prelogits")
    expected = [net[:2](_loud(item)[None]).detach().numpy()[0] for item in items]
    np.testing.assert_allclose(embedder.embed(items), expected, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """Adds up what it has seen, as streaming models do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(C, D), nn.Linear(D, K)
        self.register_buffer("state", torch.zeros(1, D))

    def forward(self, x: Tensor) -> Tensor:
        self.state.copy_(torch.tanh(self.up(x) + self.state)[:1])
        return self.fc(torch.tanh(self.up(x) + self.state))


def test_a_scripted_module_that_keeps_a_state_is_refused_for_it() -> None:
    with pytest.raises(ModelError, match="keeps a state between calls"):
        penult.load(torch.jit.script(Recurrent().eval()), preprocess=_loud, sample_rate=RATE)


def test_classes_of_the_head_are_proved_on_the_collections_items(tmp_path: Path) -> None:
    """Noise tells nothing of the graph's head; the recordings of the collection do."""
    sf = pytest.importorskip("soundfile")
    for number in range(4):
        sf.write(tmp_path / f"{number}.wav", clip(number, number > 1), RATE, subtype="FLOAT")
    loaded = penult.load(_graph(tmp_path), preprocess=_loud, sample_rate=RATE, kind="single-label")
    embedder = penult.Embedder.from_classifier(loaded, tap="prelogits")
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    collection = Collection(tmp_path / "c.lance")
    collection.add(embedder, files)
    with pytest.raises(HeadNotFound, match="hardly change"):
        head_rows(embedder)
    source = VectorSource.of(collection)
    source.use(embedder)
    found = by_head(source)
    assert found.names == list(loaded.labels)
    sample = SourceSample(from_objects(files, "audio"))
    weight = _net()[2].weight.detach().numpy()
    np.testing.assert_allclose(head_rows(embedder, sample), weight, atol=1e-5)
