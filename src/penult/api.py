"""What `import penult` gives: models, embedders and collections, joined."""

from __future__ import annotations

import os
from typing import Any, Literal

from penult import classifiers
from penult.classifiers import base
from penult.classifiers.base import Prediction, predict
from penult.embedding.embedder import Embedder, open_embedder
from penult.embedding.runner import Outcome, Runner, device_of
from penult.errors import ItemError
from penult.sources import Failure, from_objects


class Classifier:
    """A classifier that is open and can be asked; `origin` is what its loader made.

    Everything that `penult.classifiers.base.Classifier` lists can be read here.
    """

    def __init__(self, origin: base.Classifier) -> None:
        self.origin = origin

    def __getattr__(self, name: str) -> Any:
        return getattr(self.origin, name)

    def classify(
        self, items: Any, on_error: Literal["raise", "skip"] = "raise", device: str = "auto"
    ) -> list[Prediction]:
        """The classifier's own answer for each item; `logits` are exactly what the model returns.

        items: paths, folders, tables, arrays (n,) at the model's rate or (array, rate), bytes,
        images or texts; one of them or many. `skip` leaves out the items that fail.
        """
        runner = Runner(self.origin, [], device_of(self.origin, device))
        predictions = []
        for outcome in runner.stream(from_objects(items, self.origin.modality)):
            if isinstance(outcome, Outcome):
                predictions.append(prediction_of(self.origin, outcome))
            elif on_error == "raise":
                raise ItemError(outcome.words())
        return predictions

    def __repr__(self) -> str:
        return f"Classifier({self.origin.spec!r}, {len(self.origin.labels)} classes)"


def prediction_of(classifier: base.Classifier, outcome: Outcome) -> Prediction:
    """A region's logits as a Prediction."""
    return predict(
        classifier.kind, classifier.labels, outcome.logits, outcome.item.id, outcome.region.key
    )


def load(spec: str | os.PathLike[str] | Any, **asked: Any) -> Classifier:
    """Open a classifier: a folder saved by transformers, a hub id (`owner/name[@revision]`), a
    saved embedder's folder, `timm:NAME`, `torchvision:NAME`, `package.module:factory`, a file
    (`.onnx`, TorchScript, torch.export's `.pt2`, `.keras`), a torch module, or `demo`, the bundled
    one.

    asked: what a bare file cannot say: checkpoint, preprocess, labels, sample_rate, seconds,
    modality, kind; trust allows code and pickles that come with the checkpoint to run. See
    `penult.classifiers.asked.Asked`.

    Raises:
        ModelError: there is no such model, or it is not a classifier that fills its weights.
    """
    return Classifier(classifiers.load(spec, **asked))


__all__ = ["Classifier", "Embedder", "Failure", "Prediction", "load", "open_embedder"]
