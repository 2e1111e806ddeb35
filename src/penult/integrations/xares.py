"""An embedder as an encoder of X-ARES: frames of sound, one vector each, never pooled.

`xares.run` takes a file with an encoder: `from penult.integrations.xares import PenultEncoder` and
`encoder = PenultEncoder("my-embedder")` are such a file. X-ARES itself is not imported.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.frames import FrameReader


class PenultEncoder(nn.Module):
    """Frames of an embedder, with the attributes that X-ARES asks for.

    embedder: one, or a saved one's folder, or what `penult.load` takes. tap: where to read, in
    place of the embedder's own.

    Raises:
        UsageError: no embedder of sound. TapError: the tap has no frames.
    """

    def __init__(self, embedder: Embedder | str | os.PathLike[str], tap: str | None = None) -> None:
        super().__init__()
        opened = embedder if isinstance(embedder, Embedder) else open_embedder(embedder, tap)
        self._frames = FrameReader(opened)
        self.sampling_rate, self.output_dim = self._frames.rate, self._frames.dim
        self.hop_size_in_ms = 1000 * self._frames.hop

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) or (T,) at `sampling_rate` → (B, frames, output_dim)."""
        rows: Any = np.atleast_2d(audio.detach().float().cpu().numpy())
        return torch.from_numpy(np.stack(self._frames([*rows]))).to(audio.device)
