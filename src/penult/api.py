"""What `import penult` gives: models, embedders and collections, joined."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from penult.data.items import Failure
from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.runner import enable_classify
from penult.models import specs
from penult.models.base import Classifier, Prediction
from penult.models.options import MoreLoadOptions


def load(
    spec: str | os.PathLike[str] | Any,
    *,
    class_names: Sequence[str] | Mapping[int, str] | str | os.PathLike[str] | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    trust: bool = False,
    **more: Unpack[MoreLoadOptions],
) -> Classifier:
    """Open a classifier: a folder saved by transformers, a hub id (`owner/name[@revision]`), a
    saved embedder's folder, `timm:NAME`, `torchvision:NAME`, `package.module:factory`, a file
    (`.onnx`, TorchScript, torch.export's `.pt2`, `.keras`), a torch module, or `demo`, the bundled
    one.

    The options say what a bare file cannot. class_names: of the outputs, in their order or by
    number, or a file with one a line, or JSON. sample_rate: samples per second of a model of audio.
    seconds: its fixed length. preprocess: a function, or `package.module:function`, from decoded
    content to the tensors of one item. checkpoint: a file of weights. trust: code and pickles of
    the checkpoint may run. more: modality, kind, output (name or number of the one that holds the
    logits), patches (`mean`, `max` or `rows`, where the function gives several patches of an item
    in the first axis of its tensors), weights_inside (a factory's model has its trained weights in
    it), random (weights that nobody trained).

    Raises:
        ModelError: there is no such model, or it is not a classifier that fills its weights.
    """
    return enable_classify(
        specs.load(
            spec,
            class_names=class_names,
            sample_rate=sample_rate,
            seconds=seconds,
            preprocess=preprocess,
            checkpoint=checkpoint,
            trust=trust,
            **more,
        )
    )


__all__ = ["Classifier", "Embedder", "Failure", "Prediction", "load", "open_embedder"]
