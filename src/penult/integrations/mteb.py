"""An embedder as a model of MTEB and its parts for pictures and sound (MIEB, MAEB)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penult.embedding.embedder import Embedder, open_embedder
from penult.errors import UsageError
from penult.extras import require

require("mteb")

from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.models.model_meta import ModelMeta  # noqa: E402

_TAKEN = {"text": "text", "image": "image", "audio": "audio"}  # a modality → its column in a batch


class MtebEncoder(AbsEncoder):
    """`mteb.evaluate(MtebEncoder("my-embedder"), tasks)`: vectors of texts, pictures or sounds, in
    the embedder's space. Sound is resampled by Penult, from the rate that it comes with.

    embedder: one, or a saved one's folder, or what `penult.load` takes.

    Raises:
        UsageError: a model of something that MTEB has no tasks for.
    """

    def __init__(
        self,
        embedder: Embedder | str | os.PathLike[str],
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(embedder, Embedder):
            embedder = open_embedder(embedder, device=device or "auto", **options)
        modality = embedder.classifier.modality
        if modality not in _TAKEN:
            raise UsageError(f"MTEB has tasks of {', '.join(_TAKEN)}; this model takes {modality}")
        self.model, self._column = embedder, _TAKEN[modality]
        space = embedder.space
        dim = embedder.dim if space is None else space.width
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"penult/{Path(embedder.classifier.spec).name}",
                "revision": revision or embedder.fingerprint_id,
                "modalities": [modality],
                "embed_dim": dim,
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], **options: Any) -> Any:
        """(n, d) float32 of all batches of a loader. No prompts: a classifier was trained
        without."""
        items = [item for batch in inputs for item in self._items(batch)]
        return self.model.embed(items, logits=False)

    def _items(self, batch: Mapping[str, Any]) -> Sequence[Any]:
        if self._column not in batch:
            raise UsageError(f"this model takes {self._column}, and the task gives {list(batch)}")
        values: Sequence[Any] = batch[self._column]
        return [_sound(one) for one in values] if self._column == "audio" else list(values)


def _sound(one: Mapping[str, Any]) -> tuple[Any, int]:
    """Samples (n,) and their rate; several channels are mixed."""
    samples = np.asarray(one["array"], np.float32)
    if samples.ndim > 1:
        samples = samples.mean(axis=int(samples.shape[0] > samples.shape[1]))
    return samples, int(one["sampling_rate"])
