"""What the formats of converted embedders share: the request, and what a format's `write` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from penult.data.sources import Source
from penult.embedding.embedder import Embedder
from penult.extras import version_of
from penult.fewshot.fitted import FittedClasses

VECTOR, LOGITS, CLASSES = "vector", "logits", "classes"  # names of outputs
FACTS = "penult.json"  # in folders: what the folder says of itself


@dataclass(frozen=True, slots=True)
class Trial:
    """How a conversion is run to be measured. run: decoded contents of one batch → outputs by name.
    mixed: whether items of different length may share a batch."""

    run: Callable[[Sequence[Any]], Mapping[str, npt.NDArray[Any]]]
    mixed: bool = True


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """What is written. source: the user's items to measure on; None: made-up ones. classes: of a
    file of `penult teach`, whose probabilities are an output too."""

    embedder: Embedder
    source: Source | None = None
    classes: FittedClasses | None = None

    def facts(self) -> dict[str, Any]:
        """What the file says of itself: the reading, its fingerprint, and the proof of the head."""
        one = self.embedder
        classifier = one.classifier
        return {
            "penult": version_of("penult"),
            "model": classifier.spec,
            "modality": classifier.modality,
            "rate": classifier.rate,
            "seconds": classifier.input.seconds,
            "tap": one.tap.name,
            "pooling": one.pooling,
            "dim": one.dim if one.space is None else one.space.width,
            "space": None if one.space is None else one.space.recipe,
            "labels": list(classifier.labels),
            "classes": None if self.classes is None else list(self.classes.names),
            "fingerprint": one.fingerprint_id,
            "head_proved": one.certificate.ok,
        }


@dataclass(frozen=True, slots=True)
class Draft:
    """What a format's `write` made. facts: what is known of its inputs and outputs, for the file's
    own metadata. trial: how it is run to be measured. finish: writes the metadata. example: a
    program that runs it without Penult; empty where Penult is needed."""

    facts: dict[str, Any]
    trial: Trial
    finish: Callable[[Mapping[str, Any]], None]
    example: str = ""
