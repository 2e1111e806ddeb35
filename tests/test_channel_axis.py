"""Vectors of tensors with one position: pooled to one, shrunk to one, or one token, in every order
of axes; compared with numbers of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import penult

RATE, CHANNELS, CLASSES = 4000, 12, 4


class Raw(nn.Module):
    """A convolutional net on raw sound, which ends as `end` says."""

    def __init__(self, end: Callable[[Raw, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv1d(1, 8, 64, 16), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, CHANNELS, 3)
        )
        self.pool, self.map_pool = nn.AdaptiveAvgPool1d(1), nn.AdaptiveAvgPool2d(1)
        self.shrink = nn.Conv1d(CHANNELS, CHANNELS, 128)
        self.drop, self.norm = nn.Dropout(0.5), nn.LayerNorm(CHANNELS)
        self.fc, self.conv = nn.Linear(CHANNELS, CLASSES), nn.Conv1d(CHANNELS, CLASSES, 1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.features(x[:, None]))


ENDS: dict[str, Callable[[Raw, Tensor], Tensor]] = {
    "flatten": lambda m, h: m.fc(m.pool(h).flatten(1)),
    "squeeze": lambda m, h: m.fc(m.pool(h).squeeze(-1)),
    "view": lambda m, h: m.fc(m.drop(m.pool(h)).view(len(h), -1)),
    "index": lambda m, h: m.fc(m.pool(h)[:, :, 0]),
    "transpose": lambda m, h: m.fc(m.pool(h).transpose(1, 2)[:, 0]),
    "convolution": lambda m, h: m.conv(m.pool(h)).squeeze(-1),
    "mean": lambda m, h: m.fc(m.drop(h.mean(-1, keepdim=True)).flatten(1)),
    "largest": lambda m, h: m.fc(m.drop(h.amax(-1, keepdim=True)).squeeze(2)),
    "shrunk": lambda m, h: m.fc(m.shrink(h[..., :128]).flatten(1)),
    "map": lambda m, h: m.fc(m.drop(m.map_pool(h[:, :, None])).flatten(1)),
    "token": lambda m, h: m.fc(m.norm(h.transpose(1, 2).mean(1, keepdim=True))[:, 0]),
    "einsum": lambda m, h: torch.einsum("bct,kc->bk", m.drop(m.pool(h)), m.fc.weight),
}


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(RATE).astype(np.float32) * 0.1 for _ in range(3)]


@pytest.mark.parametrize("end", ENDS)
def test_one_position_is_no_channel(end: str) -> None:
    """The vector at the backbone is what the last layer with weights reads."""
    model = Raw(ENDS[end]).eval()
    entered: list[Tensor] = []
    head = model.conv if end == "convolution" else model.fc
    head.register_forward_pre_hook(lambda _, args: entered.append(args[0].flatten(1).clone()))
    classifier = penult.load(model, modality="audio", sample_rate=RATE, seconds=1.0)
    embedder = penult.Embedder.from_classifier(classifier, "backbone")
    vectors = embedder.run(clips()).vectors
    assert vectors.shape == (3, CHANNELS)
    if end == "einsum":
        expected = model.features(torch.tensor(np.stack(clips()))[:, None]).mean(-1).detach()
    else:
        entered.clear()
        with torch.no_grad():
            model(torch.tensor(np.stack(clips())))
        expected = entered[0]
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_frames_before_the_pooling_keep_their_channels() -> None:
    """A layer of many frames has its own channels, whatever its neighbour has."""
    model = Raw(ENDS["flatten"]).eval()
    classifier = penult.load(model, modality="audio", sample_rate=RATE, seconds=1.0)
    embedder = penult.Embedder.from_classifier(classifier, "features")
    with torch.no_grad():
        expected = model.features(torch.tensor(np.stack(clips()))[:, None]).mean(-1).numpy()
    np.testing.assert_allclose(embedder.run(clips()).vectors, expected, rtol=1e-4, atol=1e-5)
