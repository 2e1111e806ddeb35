"""What `import penult` gives: models, embedders and collections, joined."""

from __future__ import annotations

import os
from typing import Any

from penult.data.items import Failure
from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.runner import enable_classify
from penult.models import specs
from penult.models.base import Classifier, Prediction


def load(spec: str | os.PathLike[str] | Any, **asked: Any) -> Classifier:
    """Open a classifier: a folder saved by transformers, a hub id (`owner/name[@revision]`), a
    saved embedder's folder, `timm:NAME`, `torchvision:NAME`, `package.module:factory`, a file
    (`.onnx`, TorchScript, torch.export's `.pt2`, `.keras`), a torch module, or `demo`, the bundled
    one.

    asked: what a bare file cannot say: checkpoint, preprocess, class_names, sample_rate,
    seconds, modality, kind; trust allows code and pickles that come with the checkpoint to run. See
    `penult.models.options.LoadOptions`.

    Raises:
        ModelError: there is no such model, or it is not a classifier that fills its weights.
    """
    return enable_classify(specs.load(spec, **asked))


__all__ = ["Classifier", "Embedder", "Failure", "Prediction", "load", "open_embedder"]
