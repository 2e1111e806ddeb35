"""The user's own module of a fixture: a network of sound and how it is fed. Its bytes are part of a
fingerprint: an edit of this file makes the saved embedder another one, which is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def build(num_classes: int = 5) -> nn.Sequential:
    """Samples (n, 1, 2000) → logits (n, 5)."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 16, 8),
        nn.ReLU(),
        nn.Conv1d(8, 16, 4, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def to_tensor(samples: np.ndarray) -> Tensor:
    """One clip at the same loudness."""
    scaled = samples / max(float(np.abs(samples).max()), 1e-6)
    return torch.from_numpy(scaled.astype(np.float32))[None]
