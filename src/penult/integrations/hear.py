"""An embedder behind the API of HEAR 2021: `load_model`, `get_scene_embeddings`,
`get_timestamp_embeddings` (Turian et al., 2022; https://hearbenchmark.com/hear-api.html).

`hear-validator penult.integrations.hear -m FOLDER` checks it. Neither HEAR's packages nor
TensorFlow are imported.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.frames import FrameReader

DEMO = "demo"


class HearModel(nn.Module):
    """What `load_model` gives. sample_rate: of the sound that it takes. scene_embedding_size,
    timestamp_embedding_size: numbers in a vector."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder, self.frames = embedder, FrameReader(embedder)
        self.sample_rate = self.frames.rate
        self.scene_embedding_size = embedder.dim
        self.timestamp_embedding_size = self.frames.dim


def load_model(model_file_path: str | os.PathLike[str] = DEMO) -> HearModel:
    """A saved embedder's folder, or what `penult.load` takes.

    Raises:
        UsageError: no embedder of sound. TapError: a tap without frames.
    """
    return HearModel(open_embedder(os.fspath(model_file_path) or DEMO))


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """(n, samples) → (n, d) float32, one vector for each clip."""
    return torch.from_numpy(model.embedder.embed(_clips(audio), logits=False)).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """(n, samples) → (n, frames, d) float32, and (n, frames) the milliseconds to the middle of each
    frame."""
    frames = np.stack(model.frames(_clips(audio)))
    times = np.tile(1000 * model.frames.times(frames.shape[1]), (len(frames), 1))
    embeddings = torch.from_numpy(frames).to(audio.device)
    return embeddings, torch.from_numpy(times).float().to(audio.device)


def _clips(audio: Tensor) -> list[Any]:
    return [*audio.detach().float().cpu().numpy()]
