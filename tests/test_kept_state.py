"""Modules that keep something between calls: a state that reaches the scores is refused, a counter,
a cache or the last activations are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import penult
from penult.errors import ModelError, UsageError

RATE = 4000


class Recurrent(nn.Module):
    """A GRU over frames of raw sound; `step(self, frames)` gives what its head reads."""

    count: Tensor
    state: Tensor

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv1d(1, 8, 64, 32), nn.Linear(10, 4)
        self.rnn = nn.GRU(8, 10, batch_first=True)
        self.h: Tensor | None = None
        self.kept: dict[Any, Any] = {}
        self.n = 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("state", torch.zeros(1, 1, 10))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.step(self, self.conv(x[:, None]).relu().transpose(1, 2)))


def _same_batch(h: Tensor | None, n: int) -> Tensor | None:
    return None if h is None else h[:, :1].expand(-1, n, -1).contiguous()


def attribute(m: Recurrent, x: Tensor) -> Tensor:
    out, m.h = m.rnn(x, _same_batch(m.h, len(x)))
    return out[:, -1]


def buffer(m: Recurrent, x: Tensor) -> Tensor:
    out, h = m.rnn(x, _same_batch(m.state, len(x)))
    m.state.copy_(h[:, :1])
    return out[:, -1]


def dictionary(m: Recurrent, x: Tensor) -> Tensor:
    out, m.kept["h"] = m.rnn(x, _same_batch(m.kept.get("h"), len(x)))
    return out[:, -1]


def number(m: Recurrent, x: Tensor) -> Tensor:
    out = m.rnn(x)[0][:, -1]
    m.kept["level"] = 0.9 * m.kept.get("level", 0.0) + 0.1 * float(out.mean())
    return out - m.kept["level"]


def turns(m: Recurrent, x: Tensor) -> Tensor:
    m.n += 1
    return m.rnn(x)[0][:, -1] * (1 + m.n % 2)


@pytest.mark.parametrize("step", [attribute, buffer, dictionary, number, turns])
def test_a_state_between_calls_is_refused(step: Callable[[Any, Tensor], Tensor]) -> None:
    """Also one that long items forget, such as a GRU's: short ones do not."""
    with pytest.raises(ModelError, match=r"keeps a state between calls.*items before it"):
        penult.load(Recurrent(step).eval(), modality="audio", sample_rate=RATE)


def counted(m: Recurrent, x: Tensor) -> Tensor:
    m.n += 1
    m.count += 1
    return m.rnn(x)[0][:, -1]


def cached(m: Recurrent, x: Tensor) -> Tensor:
    out = m.rnn(x)[0]
    mask = m.kept.setdefault(x.shape[1], torch.linspace(0, 1, x.shape[1])[None, :, None])
    return (out * mask).mean(1)


def remembered(m: Recurrent, x: Tensor) -> Tensor:
    m.h = m.rnn(x)[0]
    return m.h[:, -1]


@pytest.mark.parametrize("step", [counted, cached, remembered])
def test_what_decides_nothing_may_change(step: Callable[[Any, Tensor], Tensor]) -> None:
    model = Recurrent(step).eval()
    embedder = penult.Embedder.from_classifier(
        penult.load(model, modality="audio", sample_rate=RATE), "prelogits"
    )
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (900, 1500, 900)]
    vectors = embedder.run(clips).vectors
    read: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
    with torch.no_grad():
        for clip in clips:
            model(torch.tensor(clip)[None])
    np.testing.assert_allclose(vectors, torch.cat(read).detach().numpy(), rtol=1e-4, atol=1e-5)


class Counting(nn.Module):
    """Scripted: a counter in a buffer, which decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return self.fc(torch.tanh(self.up(x)))


class Holding(nn.Module):
    """Scripted: a tensor that is no buffer is added to what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)
        self.last = torch.zeros(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(self.up(x) + self.last)[:1]
        return self.fc(self.last.expand(x.size(0), 5))


def _six(picture: Any) -> Tensor:
    return torch.tensor(np.asarray(picture, np.float32).reshape(-1)[:6] / 255)


def test_a_scripted_counter_is_no_state() -> None:
    model = Counting().eval()
    clf = penult.load(torch.jit.script(model), preprocess=_six, modality="image")
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with torch.no_grad():
        expected = model(_six(picture)[None])[0].numpy()
    np.testing.assert_allclose(clf.classify([picture])[0].logits, expected, rtol=1e-5, atol=1e-6)


def test_a_scripted_state_that_is_no_buffer_is_refused() -> None:
    with pytest.raises(ModelError, match="keeps a state between calls"):
        penult.load(torch.jit.script(Holding().eval()), preprocess=_six, modality="image")


class Stream(nn.Module):
    """Hears a recording in chunks: what it heard before is part of each answer, until it is told
    that another recording begins. The rate is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.fc = nn.Linear(8, 6), nn.Linear(6, 3)
        self.heard = torch.zeros(1, 6)

    @torch.jit.export
    def reset_states(self) -> None:
        self.heard = torch.zeros(1, 6)

    def forward(self, x: Tensor, sr: int) -> Tensor:
        louder = 2.0 if sr == 16000 else 1.0
        self.heard = torch.tanh(self.inner(louder * x) + self.heard)
        return self.fc(self.heard)


def test_a_scripted_state_begins_anew_for_each_item(tmp_path: Path) -> None:
    module = Stream().eval()
    torch.jit.save(torch.jit.script(module), tmp_path / "m.pt")
    items = list(np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    sounds = [(one, 8) for one in items]
    weight, bias = (value.detach().numpy() for value in (module.inner.weight, module.inner.bias))
    for rate, louder in ((16000, 2.0), (8000, 1.0)):
        classifier = penult.load(tmp_path / "m.pt", sample_rate=8, seconds=1.0, inputs={"sr": rate})
        assert classifier.describe()["fixed_inputs"] == {"sr": str(rate)}
        embedder = penult.Embedder.from_classifier(classifier, tap="prelogits")
        expected = np.tanh(louder * np.stack(items) @ weight.T + bias)
        np.testing.assert_allclose(embedder.run(sounds).vectors, expected, rtol=1e-4, atol=1e-5)
        alone = [embedder.run([one]).vectors[0] for one in sounds[::-1]]
        np.testing.assert_allclose(alone[::-1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"--input speed: .*m\.pt takes x, sr"):
        penult.load(tmp_path / "m.pt", sample_rate=8, inputs={"speed": 1})
    with pytest.raises(UsageError, match="array goes with ONNX and TFLite files"):
        penult.load(tmp_path / "m.pt", preprocess=torch.from_numpy, modality="array")
