"""Short synthetic items of each modality, the same for the same seed, to measure models on."""

from __future__ import annotations

from typing import Any

import numpy as np

from penult.data.bytes import BLOCK, FileEnds

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "grey",
         "whales", "sing", "loudly")  # fmt: skip


def content_of(
    modality: str,
    seed: int,
    rate: int | None = None,
    frames: int | None = None,
    size: float = 1.0,
) -> Any:
    """One second of noise, a noise image of 320 × 240, as many frames of it, eight words, or the
    ends of a file of noise.

    size: of sound and text, relative to that.
    """
    random = np.random.default_rng(seed)
    if modality == "audio":
        return noise(seed, size, rate or 16_000)
    if modality == "text":
        return " ".join(random.choice(WORDS, max(1, round(8 * size))))
    if modality == "bytes":
        some = random.integers(0, 256, BLOCK, np.uint8).tobytes()
        return FileEnds(some, some, BLOCK)
    if modality == "video":
        return random.integers(0, 256, (frames or 16, 240, 320, 3), dtype=np.uint8)
    from PIL import Image

    return Image.fromarray(random.integers(0, 256, (240, 320, 3), dtype=np.uint8))


def noise(seed: int, seconds: float, rate: int) -> Any:
    """(seconds × rate,) float32 samples of white noise."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (0.1 * samples).astype(np.float32)
