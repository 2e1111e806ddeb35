"""What every origin of classifiers gives: the module, its preprocessing, its labels, its identity.

A classifier describes and never runs itself: engines run it. It knows nothing of taps, pooling,
files or collections; what answers `classify` is handed to it by who joins classifiers and engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


FloatArray = npt.NDArray[np.float32]

SINGLE_LABEL = "single-label"
MULTI_LABEL = "multi-label"
REGRESSION = "regression"


@dataclass(frozen=True, slots=True)
class Inputs:
    """One item, ready for the model.

    tensors: keyword arguments of the model's forward, each with a batch axis of size 1.
    truncated: seconds (text: tokens) that the preprocessing kept, or None if it kept everything.
    """

    tensors: Mapping[str, torch.Tensor]
    truncated: float | None = None


class Classifier(ABC):
    """A trained model f that gives K scores for an input, and what it takes to feed it.

    spec: what `penult.load` was given. modality: audio, image, video or text.
    kind: single-label, multi-label or regression. labels: K names, in the order of the logits.
    rate: samples per second that audio is resampled to. frames: frames that a video is sampled to.
    base: dotted path of the backbone inside `module`, where the origin names one.
    engine: what runs it: torch, or onnxruntime for a graph, which has no module.
    reopen: what `load` was asked besides the spec, to open it again.
    """

    spec: str
    modality: str
    kind: str
    labels: tuple[str, ...]
    rate: int | None
    frames: int | None
    base: str | None
    engine: str
    reopen: dict[str, Any]

    # What gives `classify` its predictions; whoever joins classifiers and engines sets it.
    _answer: Callable[[Classifier, Any, str, str], list[Prediction]] | None = None

    if TYPE_CHECKING:  # fields of some classifiers, properties of others

        @property
        def module(self) -> nn.Module:
            """The torch module.

            Raises:
                UsageError: it has none.
            """

        @property
        def output(self) -> str | int | None:
            """Which of several outputs holds the logits, where the model does not say it."""

    @property
    @abstractmethod
    def holds(self) -> float | None:
        """Seconds of sound that an input of fixed length holds; None if it is as long as the
        clip."""

    @abstractmethod
    def preprocess(self, content: Any) -> Inputs:
        """Decoded content (samples, image, frames or text) → what the model's forward takes.

        Raises:
            ItemError: the content cannot be prepared.
        """

    @abstractmethod
    def example(self, seed: int = 0) -> Inputs:
        """A short synthetic input of the model's own kind, the same for the same seed."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """The classifier's fields of the fingerprint: `weights` and `preprocessing`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for people and for `runs`: origin, class, revision, parameters, versions."""

    @abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything that `penult.load(folder)` needs to open it again."""

    def classify(
        self, items: Any, on_error: Literal["raise", "skip"] = "raise", device: str = "auto"
    ) -> list[Prediction]:
        """The classifier's own answer for each item; `logits` are exactly what the model returns.

        items: paths, folders, tables, arrays (n,) at the model's rate or (array, rate), bytes,
        images or texts; one of them or many. `skip` leaves out the items that fail.

        Raises:
            ItemError: an item failed.
            UsageError: the classifier was opened by a loader alone.
        """
        if self._answer is None:
            raise UsageError(
                f"{self!r} was opened by a loader alone, which runs no model; penult.load opens "
                "one that classifies"
            )
        return self._answer(self, items, on_error, device)

    def __repr__(self) -> str:
        return f"Classifier({self.spec!r}, {len(self.labels)} classes)"

    if not TYPE_CHECKING:  # else every name would be known

        def __getattr__(self, name: str) -> Any:
            """`origin`, for one version more: what `penult.load` gives was once wrapped."""
            if name != "origin":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(
                "classifier.origin is the classifier itself: leave .origin out",
                DeprecationWarning,
                stacklevel=2,
            )
            return self


@dataclass(frozen=True, slots=True)
class Best:
    """One class of a prediction."""

    label: str
    index: int
    score: float
    logit: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one region.

    logits: exactly what the model returned, (K,) or (frames, K). scores: probabilities for
    single-label (softmax) and multi-label (sigmoid), the values themselves for regression.
    label, index, score: the highest one (of the mean over frames, where there are frames).
    """

    id: str
    region: str
    kind: str
    label: str | None
    index: int | None
    score: float
    scores: FloatArray
    logits: FloatArray
    labels: tuple[str, ...]

    def top(self, k: int = 5) -> list[Best]:
        """The k classes with the highest scores, best first."""
        scores, logits = (
            values.reshape(-1, values.shape[-1]).mean(axis=0)
            for values in (self.scores, self.logits)
        )
        order = np.argsort(-scores, kind="stable")[:k]
        return [Best(self.labels[i], int(i), float(scores[i]), float(logits[i])) for i in order]


def predict(
    kind: str, labels: Sequence[str], logits: FloatArray, id: str = "", region: str = "whole"
) -> Prediction:
    """Turn one item's logits (K,) or (frames, K) into a Prediction."""
    values = logits.astype(np.float64)
    if kind == SINGLE_LABEL:
        exponent = np.exp(values - values.max(axis=-1, keepdims=True))
        scores = exponent / exponent.sum(axis=-1, keepdims=True)
    elif kind == MULTI_LABEL:
        scores = 0.5 * (1.0 + np.tanh(0.5 * values))  # the sigmoid, without overflow
    else:
        scores = values
    mean = scores.reshape(-1, scores.shape[-1]).mean(axis=0)
    index = int(mean.argmax())
    single = kind == REGRESSION and len(mean) == 1
    return Prediction(
        id=id,
        region=region,
        kind=kind,
        label=labels[index],
        index=0 if single else index,
        score=float(mean[index]),
        scores=scores.astype(np.float32),
        logits=logits,
        labels=tuple(labels),
    )


def complete_labels(names: Sequence[str], n_logits: int) -> tuple[str, ...]:
    """The given names where they fit the logits, else class_0, class_1, …"""
    if len(names) == n_logits:
        return tuple(names)
    return tuple(f"class_{i}" for i in range(n_logits))


def digest(value: object) -> str:
    """Hash of a JSON-able description; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(module: nn.Module, beside: Mapping[str, Any] | None = None) -> str:
    """Hash of every parameter and buffer that is saved, and of further tensors beside them."""
    return tensors_digest({**module.state_dict(), **(beside or {})})


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """Hash of tensors: names, types, shapes and bytes."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(flat.numpy().data)
    return total.hexdigest()[:16]
