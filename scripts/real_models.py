"""Preprocessing of the real classifiers that scripts/results.py measures, as in their sources."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@cache
def _frontend() -> dict[str, np.ndarray]:
    with np.load(SHARED / "w_yamnet_hf" / "frontend.npz") as saved:
        return {name: saved[name] for name in saved}


def yamnet(samples: np.ndarray) -> torch.Tensor:
    """Samples (n,) at 16 kHz → log-mel frames (1, T, 64) of 25 ms every 10 ms; 96 at least."""
    front = _frontend()
    samples = np.pad(samples, (0, max(0, 15_600 - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * front["window"]
    mel = np.abs(np.fft.rfft(frames, 512)) @ front["mel"].T
    return torch.from_numpy(np.log(mel + front["offset"]).astype(np.float32))[None]


def squeezenet(image: Image.Image) -> torch.Tensor:
    """A picture → BGR (3, 227, 227), minus the mean of ImageNet: the middle of 256 × 256."""
    image = image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.crop((14, 14, 241, 241)), np.float32)[..., ::-1]
    return torch.from_numpy((pixels - (104, 117, 123)).astype(np.float32).transpose(2, 0, 1).copy())
