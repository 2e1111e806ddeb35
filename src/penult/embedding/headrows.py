"""The rows of a classifier's linear head: one vector for each of its classes, at the prelogits.

Measured on the proved head itself, whatever it is made of. Knows embedders; no collection.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from penult.classifiers.from_onnx import OnnxClassifier
from penult.embedding.embedder import Embedder
from penult.embedding.proving import example_of
from penult.errors import HeadNotFound, UsageError

Floats = npt.NDArray[np.float64]
_LINEAR = 1e-4  # largest error of W z + b against the head, relative to the largest logit
_OTHER = (
    "what works: classes from a collection's own labels (penult teach COLLECTION --from label, a "
    "column or folder), or examples"
)


def head_rows(embedder: Embedder) -> npt.NDArray[np.float32]:
    """(K, d): for each class of the classifier the weights that its logit gives to the prelogits.

    Raises:
        HeadNotFound: the reading is not the prelogits, the head is not proved, or it is not linear
            with one row for each class; the message says what works.
    """
    if embedder.tap.name != "prelogits" or embedder.tap.positions:
        raise HeadNotFound(
            f"the vectors are read at {embedder.tap.name}, pooled by {embedder.pooling}; the "
            "classifier's own classes are rows of its head, which lie at the tap prelogits where "
            f"it has one vector for each item. {_OTHER}"
        )
    head = _head(embedder)
    d, k = embedder.dim, len(embedder.classifier.labels)
    try:
        offset = head(np.zeros((1, d), np.float32))
        rows = np.concatenate([head(one[None]) for one in np.eye(d, dtype=np.float32)]) - offset
        tried = np.random.default_rng(0).standard_normal((4, d)).astype(np.float32)
        found = np.concatenate([head(one[None]) for one in tried])
    except (ValueError, RuntimeError, UsageError) as problem:
        raise HeadNotFound(f"the head does not take its prelogits alone: {problem}") from problem
    if rows.shape != (d, k):
        raise HeadNotFound(f"the head gives {rows.shape[-1]} numbers for {k} classes. {_OTHER}")
    expected = tried @ rows + offset
    error = float(np.abs(expected - found).max() / max(float(np.abs(found).max()), 1e-30))
    if not error <= _LINEAR:
        raise HeadNotFound(
            f"the head is not linear (it differs from W z + b by {error:.1e}, relative), so its "
            f"classes are no rows. {_OTHER}"
        )
    return np.asarray(rows.T, np.float32)


def _head(embedder: Embedder) -> Callable[[npt.NDArray[np.float32]], Floats]:
    """The proved head as a function of one item's prelogits, (1, d) → (1, K)."""
    classifier = embedder.classifier
    if isinstance(classifier, OnnxClassifier):
        cut = classifier.cut
        if not cut.certificate.ok:
            raise HeadNotFound(f"the head is not proved: {cut.certificate.refusal}. {_OTHER}")
        session, place = cut.graph.opened(cut.head_model()), cut.cut.places[0]
        return lambda z: np.asarray(session({place: z})[0], np.float64).reshape(1, -1)

    import torch

    from penult.splitting.cut import split

    halves = split(classifier.module, example_of(classifier), output=classifier.output)
    if not halves.certificate.ok:
        raise HeadNotFound(f"the head is not proved: {halves.certificate.refusal}. {_OTHER}")

    def run(z: npt.NDArray[np.float32]) -> Floats:
        values = halves.logits(torch.as_tensor(z, device=embedder.device))
        return np.asarray(values.detach().cpu().numpy(), np.float64).reshape(1, -1)

    return run
