"""Batches and lengths that a proof was not fitted to: the law holds there, or there is no proof.

Each form is tried at sizes of which the proof sees none, against the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import penult
from conftest import thinned
from penult.errors import HeadNotFound

T, C, D, K = 12, 5, 16, 7
Head = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """(B, T, C) → hidden frames (B, T, D), of any length; then the head."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mix = nn.Linear(C, D), nn.RNN(D, D, batch_first=True)
        self.fc, self.gate, self.part = nn.Linear(D, K), nn.Linear(D, 1), nn.Linear(D // 2, K)
        self.w = nn.Parameter(torch.randn(K, D))
        self.head = head
        for parameter in self.parameters():
            parameter.data.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.mix(torch.tanh(self.up(x)))[0])


def waves(batch: int, length: int = T, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, C, generator=torch.Generator().manual_seed(seed))


def filled(m: Any, h: Tensor) -> Tensor:
    out = h.new_zeros(len(h), K)
    for number in range(len(h)):
        out[number] = m.fc(h[number].mean(0))
    return out


HEADS: dict[str, Head] = {
    "an einsum over frames": lambda m, h: torch.einsum("btd,kd->bk", h, m.w),
    "an einsum for each frame": lambda m, h: torch.einsum("btd,kd->btk", h, m.w).mean(1),
    "an einsum with weights of frames": lambda m, h: torch.einsum(
        "btk,bt->bk", m.fc(h), m.gate(h)[..., 0].softmax(1)
    ),
    "samples stacked": lambda m, h: torch.stack([m.fc(v) for v in h.mean(1)]),
    "frames of samples stacked": lambda m, h: torch.stack([m.fc(v) for v in h]).mean(1),
    "samples stacked, bent": lambda m, h: torch.stack([m.fc(v).softmax(-1) for v in h.mean(1)]),
    "samples by number": lambda m, h: torch.cat(
        [m.fc(h[i : i + 1].mean(1)) for i in range(len(h))]
    ),
    "samples written": filled,
    "attention of each sample": lambda m, h: torch.stack(
        [(m.gate(v).softmax(0) * m.fc(v)).sum(0) for v in h]
    ),
    "halves of the batch": lambda m, h: torch.cat([m.fc(v) for v in h.mean(1).chunk(2)]),
    "pairs of the batch": lambda m, h: torch.cat([m.fc(v).tanh() for v in h.mean(1).split(2)]),
    "samples unbound behind": lambda m, h: torch.stack(
        [v.tanh() for v in m.fc(h.mean(1)).unbind()]
    ),
    "halves of the channels": lambda m, h: sum(m.part(v) for v in h.mean(1).chunk(2, -1)),  # type: ignore[return-value]
    "thirds of the frames": lambda m, h: sum(m.fc(v).mean(1) for v in h.chunk(3, 1)),  # type: ignore[return-value]
    "frame by frame": lambda m, h: torch.stack([m.fc(v) for v in h.unbind(1)], 1).amax(1),
    "mapped": lambda m, h: torch.vmap(m.fc)(h.mean(1)),
    "the size of the batch added": lambda m, h: m.fc(h.mean(1)) + 0.1 * len(h),
    "less the batch's mean": lambda m, h: m.fc(h.mean(1)) - 0.5 * m.fc(h.mean(1)).mean(0),
    "softly largest of frames": lambda m, h: m.fc(h).logsumexp(1) / h.shape[1],
}


@pytest.mark.parametrize("example", thinned([1, 2], [1]))
@pytest.mark.parametrize("name", HEADS)
def test_a_proved_head_is_right_at_every_batch_size(name: str, example: int) -> None:
    model = Net(HEADS[name]).eval()
    cut = penult.split(model, waves(example))
    assert cut.certificate.ok, cut.certificate
    for batch in (1, 2, 3, 4, 5, 8, 13, 16):
        for length in (T, T - 2, T + 9):
            x = waves(batch, length, seed=batch + length)
            expected = model(x).detach()
            found = cut.logits(cut.prelogits(x))
            assert found.shape == expected.shape
            assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 24), length=st.integers(3, 30), seed=st.integers(0, 99))
def test_any_batch_of_any_length(batch: int, length: int, seed: int) -> None:
    model, cut = _stacked()
    x = waves(batch, length, seed)
    expected = model(x).detach()
    np.testing.assert_allclose(cut.logits(cut.prelogits(x)), expected, rtol=1e-4, atol=1e-5)


_KEPT: list[Any] = []


def _stacked() -> Any:
    if not _KEPT:
        model = Net(HEADS["samples stacked, bent"]).eval()
        _KEPT[:] = [model, penult.split(model, waves(1))]
    return _KEPT


BROKEN: dict[str, Head] = {
    "a cubic that vanishes at 1, 2 and 3": lambda m, h: (
        m.fc(h.mean(1)) + 1e-3 * (len(h) - 1) * (len(h) - 2) * (len(h) - 3)
    ),
    "the square of the batch": lambda m, h: m.fc(h.mean(1)) + 0.1 * len(h) ** 2,
    "the batch up to four": lambda m, h: m.fc(h.mean(1)) + 0.1 * min(len(h), 4),
    "the batch modulo four": lambda m, h: m.fc(h.mean(1)) + 0.1 * (len(h) % 4),
    "from sixteen on": lambda m, h: m.fc(h.mean(1)) + (0.5 if len(h) >= 16 else 0.0),
    "another head from sixteen on": lambda m, h: (
        m.part(h.mean(1)[:, : D // 2]) if len(h) >= 16 else m.fc(h.mean(1))
    ),
    "a length up to nine": lambda m, h: m.fc(h).sum(1) / min(h.shape[1], 9),
    "a number of the largest frames": lambda m, h: m.fc(h).topk(h.shape[1] // 4, 1).values.mean(1),
}


@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_replayed_in_general_is_not_proved(name: str, example: int) -> None:
    model = Net(BROKEN[name]).eval()
    cut = penult.split(model, waves(example))
    assert not cut.certificate.ok
    said = ("is no size of the prelogits", "operations for one input", "other operands each time")
    assert any(one in cut.certificate.refusal for one in said), cut.certificate.refusal
    with pytest.raises(HeadNotFound):
        cut.logits(torch.zeros(2, D))


def _checks(model: nn.Module, x: Any) -> list[str]:
    certificate = penult.split(model, x).certificate
    assert certificate.ok, certificate
    return [check.note for check in certificate.checks if check.name == "held out"]


class Single(Net):
    """A batch of one, as of a text model without a token for padding; odd: or no odd batch."""

    takes: Callable[[int], bool]

    def forward(self, x: Tensor) -> Tensor:
        if not self.takes(len(x)):
            raise ValueError("cannot handle a batch of this size")
        return super().forward(x)


def test_the_certificate_says_which_batches_hold() -> None:
    plain = Net(lambda m, h: m.fc(h.mean(1))).eval()
    assert _checks(plain, waves(2)) == [
        "batch 5 and a further length", "batch 17 and a further length",
    ]  # fmt: skip
    model = Single(lambda m, h: m.fc(h.mean(1))).eval()
    model.takes = lambda size: size == 1
    assert _checks(model, waves(1)) == ["batch 1 and a further length"] * 2
    model.takes = lambda size: size % 2 == 0
    assert _checks(model, waves(2)) == ["batch 4", "batch 16"]
    notes = str(penult.split(model, waves(2)).certificate)
    assert "batch 3: not applicable, the model refuses it" in notes
    flat = nn.Sequential(nn.Flatten(), nn.Linear(T * C, D), nn.Tanh(), nn.Linear(D, K)).eval()
    assert _checks(flat, waves(2)) == ["batch 5", "batch 17"]


def test_images_of_further_sizes() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, D, 3, stride=2), nn.ReLU(), nn.Conv2d(D, D, 3, stride=2))
    for head in (
        lambda m, h: m[1](h.mean((2, 3))),
        lambda m, h: m[1](F.avg_pool2d(h, h.shape[2:]).flatten(1)),
    ):
        model = _Picture(body, head).eval()
        x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
        assert _checks(model, x) == [
            "batch 5 and a further length", "batch 17 and a further length",
        ]  # fmt: skip


class _Picture(nn.ModuleList):
    def __init__(self, body: nn.Module, head: Head) -> None:
        super().__init__([body, nn.Linear(D, K)])
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self[0](x))


def test_a_classifier_is_proved_on_further_batches() -> None:
    """As `inspect` and `embed` prove it: from one item."""
    vanishing = BROKEN["a cubic that vanishes at 1, 2 and 3"]
    for head, ok in ((HEADS["halves of the batch"], True), (vanishing, False)):
        loaded = penult.load(Net(head).eval(), preprocess=_frames, modality="audio")
        certificate, _ = loaded.structure.study().prove()
        assert certificate.ok is ok, certificate


def _frames(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples[: T * C].reshape(T, C) * 10)


def _graph(path: Path, term: bool) -> Path:
    """fc(mean of frames), and 1e-3 · (B − 1)(B − 2) added, so that a batch of two is not enough."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((C, D)), "v": random.standard_normal((D, K)),
        "one": np.array([1.0]), "two": np.array([2.0]), "small": np.array([1e-3]),
    }  # fmt: skip
    nodes = [
        ("MatMul", ["x", "w"], "h"), ("Tanh", ["h"], "t"), ("ReduceMean", ["t"], "z"),
        ("MatMul", ["z", "v"], "y"), ("Shape", ["x"], "s"), ("Cast", ["s"], "f"),
        ("Slice", ["f", "zero", "end"], "b"), ("Sub", ["b", "one"], "b1"),
        ("Sub", ["b", "two"], "b2"), ("Mul", ["b1", "b2"], "m"), ("Mul", ["m", "small"], "a"),
        ("Add", ["y", "a"], "logits"),
    ]  # fmt: skip
    made = [helper.make_node(op, reads, [write]) for op, reads, write in nodes]
    made[2].attribute.extend(
        [helper.make_attribute("axes", [1]), helper.make_attribute("keepdims", 0)]
    )
    made[5].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    if not term:
        made = [*made[:4], helper.make_node("Identity", ["y"], ["logits"])]
    held = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    held += [numpy_helper.from_array(np.array([n]), m) for n, m in ((0, "zero"), (1, "end"))]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", C]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", K]),
    ]
    graph = helper.make_graph(made, "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("term", [False, True])
def test_a_graph_is_proved_on_further_batches(term: bool, tmp_path: Path) -> None:
    loaded = penult.load(_graph(tmp_path / "g.onnx", term), modality="audio")
    certificate, _ = loaded.structure.study().prove()
    assert certificate.ok is not term, certificate
    names = [check.name for check in certificate.checks]
    assert names.count("held out") >= 2
    if term:
        assert certificate.refusal.startswith("held out: a batch of 5 against the same items alone")
