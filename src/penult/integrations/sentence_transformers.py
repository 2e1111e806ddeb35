"""An embedder as a module of sentence-transformers: any items of one kind in, our vectors out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from penult.data.files import user_path
from penult.embedding.embedder import Embedder
from penult.errors import UsageError
from penult.extras import require

require("sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules.input_module import InputModule  # noqa: E402

EMBEDDER = "embedder"  # the folder of the embedder, in an exported one
_ITEMS = "items"  # in place of tensors: an embedder prepares and batches by itself


class EmbedderModule(InputModule):
    """The only module of a `SentenceTransformer`, as `penult convert --format
    sentence-transformers` writes it. Texts, paths of files, images, arrays of samples at the
    model's rate, and `{"array": (n,), "sampling_rate": int}`.

    folder: of a saved embedder.
    """

    save_in_root = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = Path(folder)
        self._open: Embedder | None = None
        self.register_buffer("_place", torch.empty(0), persistent=False)  # the device to run on

    @property
    def embedder(self) -> Embedder:
        """The embedder, open on the module's device."""
        place: Any = self._place
        device = str(place.device)
        if self._open is None or self._open.device.split(":")[0] != device.split(":")[0]:
            self._open = Embedder.load(self._folder, device=device)
        return self._open

    @property
    def modalities(self) -> list[Any]:
        """What the model takes."""
        return [self.embedder.classifier.modality]

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        one = self.embedder
        return one.dim if one.space is None else one.space.width

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Items as they are, in one entry.

        Raises:
            UsageError: a prompt for anything but texts.
        """
        if prompt:
            if self.embedder.classifier.modality != "text":
                raise UsageError("a prompt goes before texts, and this model takes none")
            inputs = [f"{prompt}{text}" for text in inputs]
        return {_ITEMS: [_item(one) for one in inputs]}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """`sentence_embedding` (n, d) of the items."""
        place: Any = self._place
        vectors = self.embedder.embed(features[_ITEMS], logits=False)
        return {**features, "sentence_embedding": torch.from_numpy(vectors).to(place.device)}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the embedder there."""
        self.embedder.save(output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> Self:
        """Open the embedder in a folder, or in a repository of the hub."""
        known = ("token", "cache_folder", "revision", "local_files_only")
        options = {name: kwargs[name] for name in known if name in kwargs}
        folder = cls.load_dir_path(model_name_or_path, subfolder=subfolder, **options)
        if folder is None:
            raise UsageError(f"{model_name_or_path} has no folder {subfolder!r} with an embedder")
        return cls(folder)


def open_model(folder: str | os.PathLike[str], **options: Any) -> SentenceTransformer:
    """A folder of `penult convert --format sentence-transformers`, or a saved embedder, as a
    SentenceTransformer. options: what that takes beside the modules (device, prompts, …).

    Raises:
        ModelError: the folder holds no embedder.
    """
    path = user_path(folder)
    inside = path / EMBEDDER
    module = EmbedderModule(inside if inside.is_dir() else path)
    _ = module.embedder  # refused now, and not with the first item
    return SentenceTransformer(modules=[module], **{"similarity_fn_name": "cosine", **options})


def _item(one: Any) -> Any:
    """An item as an embedder takes it."""
    if isinstance(one, dict) and "array" in one:
        array = np.asarray(one["array"], np.float32)
        return (array, int(one["sampling_rate"])) if one.get("sampling_rate") else array
    if isinstance(one, torch.Tensor):
        return one.numpy()
    return one
