"""Random operations: found in what a pass runs, also where they change one value in a thousand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penult
from penult.errors import ModelError, TapError

T, C, D, K = 12, 5, 16, 7
RARE = 1e-3
Head = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """(B, T, C) → hidden frames (B, T, D); `body` makes the vector, `fc` the scores."""

    def __init__(self, after: Head) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.fc, self.drop, self.after = nn.Linear(C, D), nn.Linear(D, K), Drop(), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, 2 * torch.tanh(2 * self.up(x)))


class Drop(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.dropout(h, RARE, training=True)


def waves() -> Tensor:
    return torch.randn(2, T, C, generator=torch.Generator().manual_seed(1))


def _if_drawn(m: Any, h: Tensor) -> Tensor:
    return m.fc(h.mean(1) * (2 if torch.rand(1) < RARE else 1))


def _attention(chance: float) -> Head:
    return lambda m, h: m.fc(F.scaled_dot_product_attention(h, h, h, dropout_p=chance).mean(1))


# name → the head, and the operation that the refusal names
DRAWN: dict[str, tuple[Head, str]] = {
    "dropout": (lambda m, h: m.fc(F.dropout(h.mean(1), RARE, True)), "bernoulli_ in the model"),
    "dropout in a module": (lambda m, h: m.fc(m.drop(h).mean(1)), "bernoulli_ in drop"),
    "dropout that was never put to sleep": (
        lambda m, h: m.fc(nn.Dropout(RARE)(h.mean(1))), "bernoulli_",
    ),
    "dropout in place": (lambda m, h: m.fc(F.dropout(1 * h, RARE, True, True)[:, 0]), "bernoulli_"),
    "dropout of features": (lambda m, h: m.fc(F.dropout1d(h, RARE, True).mean(1)), "bernoulli_"),
    "alpha dropout": (lambda m, h: m.fc(F.alpha_dropout(h, RARE, True).mean(1)), "bernoulli_"),
    "alpha dropout of features": (
        lambda m, h: m.fc(F.feature_alpha_dropout(h, RARE, True).mean(1)), "bernoulli_",
    ),
    "dropout in attention": (_attention(RARE), "bernoulli_"),
    "rand": (lambda m, h: m.fc(h.mean(1) + 1e-9 * torch.rand(D)), "rand in the model"),
    "randn_like": (lambda m, h: m.fc(h + 1e-9 * torch.randn_like(h)).mean(1), "randn_like"),
    "noise on the scores": (lambda m, h: m.fc(h.mean(1)) + 1e-9 * torch.randn(K), "randn"),
    "written in place": (
        lambda m, h: m.fc(h.mean(1).add_(torch.empty(D).normal_(0, 1e-9))), "normal_",
    ),
    "randperm": (lambda m, h: m.fc(h[:, torch.randperm(h.shape[1])].mean(1)), "randperm"),
    "bernoulli": (
        lambda m, h: m.fc(h.mean(1)) * (1 - torch.bernoulli(torch.tensor(RARE))), "bernoulli in",
    ),
    "multinomial": (
        lambda m, h: m.fc(h.mean(1)) * torch.multinomial(torch.tensor([RARE, 1 - RARE]), 1),
        "multinomial",
    ),
    "rrelu": (
        lambda m, h: m.fc(F.rrelu(h.mean(1), 0.2, 0.2 + 1e-9, training=True)), "rrelu_with_noise",
    ),
    "gumbel": (lambda m, h: F.gumbel_softmax(m.fc(h.mean(1)), tau=1e-4), "exponential_"),
    "a normal distribution": (
        lambda m, h: m.fc(h.mean(1) + torch.distributions.Normal(0.0, 1e-9).sample((D,))), "normal",
    ),
    "a number that Python reads": (
        lambda m, h: m.fc(h.mean(1)) * (1 + 1e-9 * float(torch.rand(1))), "in the model",
    ),
    "a list that Python reads": (
        lambda m, h: m.fc(h.mean(1)) * (1 + 1e-9 * torch.rand(1).tolist()[0]), "in the model",
    ),
    "a branch": (_if_drawn, "in the model"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_on_the_way_to_the_logits_are_refused(name: str) -> None:
    after, named = DRAWN[name]
    for seed in range(3):
        torch.manual_seed(seed)
        certificate = penult.split(Net(after).eval(), waves()).certificate
        assert not certificate.ok
        assert certificate.refusal.startswith("random numbers ")
        assert named in certificate.refusal and "training=self.training" in certificate.refusal
        assert certificate.checks[-1].name == "random operations"


def _seeded(m: Any, h: Tensor) -> Tensor:
    """A fixed random projection, as Performer and Reformer draw it."""
    torch.manual_seed(5)
    return m.fc(torch.tanh(h.mean(1) @ torch.randn(D, D)))


def _own_generator(m: Any, h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return m.fc(torch.tanh(h.mean(1) @ torch.randn(D, D, generator=generator)))


def _layer_drop(m: Any, h: Tensor) -> Tensor:
    """As the encoders of wav2vec2 and Whisper have it: drawn always, used in training."""
    skipped = m.training and torch.rand([]) < 0.1
    return m.fc(h[:, 0] if skipped else h.mean(1))


def _layer_drop_read(m: Any, h: Tensor) -> Tensor:
    skipped = torch.rand([]).item() < 0.1 and m.training
    return m.fc(h[:, 0] if skipped else h.mean(1))


def _aside(m: Any, h: Tensor) -> Tensor:
    m.fc(m.drop(h))
    return m.fc(h.mean(1))


# name → the head, and what the certificate says of it
HARMLESS: dict[str, tuple[Head, str]] = {
    "a probability of zero": (lambda m, h: m.fc(F.dropout(h.mean(1), 0.0, True)), ""),
    "eval mode": (lambda m, h: m.fc(F.dropout(h.mean(1), 0.5, m.training)), ""),
    "attention without dropout": (_attention(0.0), ""),
    "rrelu asleep": (lambda m, h: m.fc(F.rrelu(h.mean(1), training=False)), ""),
    "a fixed seed": (_seeded, "the same seed"),
    "a generator of its own": (_own_generator, "the same seed"),
    "layers dropped in training": (_layer_drop, ""),
    "layers dropped in training, read first": (_layer_drop_read, "rand in the model"),
    "only the shape": (lambda m, h: m.fc(h.mean(1)) + torch.zeros_like(torch.rand(K)), "elsewhere"),
    "in a branch without an end": (_aside, "bernoulli_ in drop"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_draws_nothing_that_reaches_the_logits_is_proved(name: str) -> None:
    after, note = HARMLESS[name]
    model = Net(after).eval()
    cut = penult.split(model, waves())
    assert cut.certificate.ok, cut.certificate
    said = [check.note for check in cut.certificate.checks if check.name == "random operations"]
    assert note in "".join(said) and bool(said) is bool(note)
    close = cut.logits(cut.prelogits(waves())) - model(waves()).detach()
    assert float(close.abs().max()) <= 1e-5


def _frames(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples[: T * C].reshape(T, C) * 10)


def test_taps_of_a_model_that_sets_its_seed_are_read() -> None:
    loaded = penult.load(Net(_seeded).eval(), preprocess=_frames, sample_rate=800)
    clip = np.random.default_rng(0).standard_normal(800).astype(np.float32)
    for tap in ("prelogits", "up"):
        embedder = penult.Embedder.from_classifier(loaded, tap=tap)
        assert np.array_equal(embedder.embed([clip]), embedder.embed([clip]))


def test_a_tap_that_random_numbers_reach_is_refused() -> None:
    """The vectors in front of the dropout are as good as ever; those behind are not."""
    loaded = penult.load(
        Net(lambda m, h: m.fc(m.drop(h).mean(1))).eval(), preprocess=_frames, sample_rate=800
    )
    embedder = penult.Embedder.from_classifier(loaded, tap="up")
    clips = [np.random.default_rng(n).standard_normal(800).astype(np.float32) for n in range(2)]
    assert np.array_equal(embedder.embed(clips), embedder.embed(clips))
    for tap in ("drop", "backbone"):
        with pytest.raises(TapError, match=r"random numbers reach it \(bernoulli_ in drop\)"):
            penult.Embedder.from_classifier(loaded, tap=tap)


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_files_of_torch_that_draw_are_refused(kind: str, tmp_path: Path) -> None:
    def after(m: Any, h: Tensor) -> Tensor:
        return m.fc(F.dropout(h.mean(1), RARE, True))

    for drawing in (False, True):
        model = Net(after if drawing else lambda m, h: m.fc(h.mean(1))).eval()
        example = waves()[:1]
        path = tmp_path / ("m.pt" if kind == "torchscript" else "m.pt2")
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))
        else:
            torch.export.save(torch.export.export(model, (example,)), str(path))
        if drawing:
            with pytest.raises(ModelError, match="draws random numbers"):
                penult.load(path, preprocess=_frames, modality="audio")
        else:
            loaded = penult.load(path, preprocess=_frames, modality="audio")
            assert loaded.structure.study().prove()[0].ok


GRAPHS: dict[str, tuple[list[tuple[Any, ...]], str]] = {
    "Dropout in training": ([("Dropout", ["h", "rare", "on"], "r")], "Dropout"),
    "Dropout asleep": ([("Dropout", ["h", "rare", "off"], "r")], ""),
    "Dropout by default": ([("Dropout", ["h"], "r")], ""),
    "Dropout of nothing": ([("Dropout", ["h", "none", "on"], "r")], ""),
    "RandomNormalLike": (
        [("RandomNormalLike", ["h"], "n"), ("Mul", ["n", "rare"], "m"), ("Add", ["h", "m"], "r")],
        "RandomNormalLike",
    ),
    "RandomUniform": (
        [("RandomUniform", [], "n"), ("Mul", ["n", "rare"], "m"), ("Add", ["h", "m"], "r")],
        "RandomUniform",
    ),
    "Bernoulli": (
        [("Mul", ["none", "h"], "z"), ("Bernoulli", ["z"], "n"), ("Add", ["h", "n"], "r")],
        "Bernoulli",
    ),
    "only its shape": (
        [("RandomNormalLike", ["h"], "n"), ("Shape", ["n"], "s"), ("Reshape", ["h", "s"], "r")],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_draw_are_refused(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    middle, named = GRAPHS[name]
    nodes = [
        ("MatMul", ["x", "w"], "u"),
        ("Tanh", ["u"], "h"),
        *middle,
        ("MatMul", ["r", "v"], "logits"),
    ]
    made = [helper.make_node(op, reads, [write], name=f"/{write}") for op, reads, write in nodes]
    for node in made:
        if node.op_type == "RandomUniform":
            node.attribute.append(helper.make_attribute("shape", [1, D]))
    held = [
        numpy_helper.from_array(value, key)
        for key, value in {
            "w": random.standard_normal((C, D)).astype(np.float32),
            "v": random.standard_normal((D, K)).astype(np.float32),
            "rare": np.array(RARE, np.float32), "none": np.array(0, np.float32),
            "on": np.array(True), "off": np.array(False),
        }.items()
    ]  # fmt: skip
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", C]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", K]),
    ]
    graph = helper.make_graph(made, "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, str(tmp_path / "g.onnx"))
    loaded = penult.load(
        tmp_path / "g.onnx", sample_rate=800, preprocess=lambda s: torch.from_numpy(s[:C])
    )
    certificate, _ = loaded.structure.study().prove()
    assert certificate.ok is (not named), certificate
    if named:
        assert f"random numbers reach the logits ({named} '/" in certificate.refusal
        for tap in ("r", "prelogits"):
            with pytest.raises(TapError, match="random numbers reach"):
                penult.Embedder.from_classifier(loaded, tap=tap)
        assert penult.Embedder.from_classifier(loaded, tap="h").dim == D


def test_random_scores_are_told_when_a_model_is_opened(caplog: pytest.LogCaptureFixture) -> None:
    """Also by a command that reads no tap; a model without draws is opened without a word."""

    def opened(head: Head) -> Any:
        caplog.clear()
        return penult.load(
            Net(head).eval(),
            modality="audio",
            sample_rate=100,
            preprocess=lambda x: x[: T * C].reshape(T, C),
        )

    with caplog.at_level(logging.WARNING, "penult"):
        random = opened(lambda m, h: m.fc(F.dropout(h.mean(1), RARE, training=True)))
    assert random.describe()["random_scores"] == ["bernoulli_ in the model"]
    assert "random numbers reach the scores (bernoulli_ in the model)" in caplog.text
    for head in (lambda m, h: m.fc(F.dropout(h.mean(1), RARE, training=False)), _same_draws):
        assert "random_scores" not in opened(head).describe()
        assert "random numbers" not in caplog.text


def _same_draws(m: Any, h: Tensor) -> Tensor:
    torch.manual_seed(1)
    return m.fc(h.mean(1) + torch.randn(D))
