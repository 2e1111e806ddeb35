"""Predictions of classes that were never taught, by their names alone: from a classifier's answers
and a local text model. Joins models, collections and `zeroshot.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penult.classifiers.base import REGRESSION, SINGLE_LABEL, FloatArray, predict
from penult.classifiers.quiet import quiet
from penult.embedding.runner import Outcome, Runner
from penult.errors import LabelsError, ModelError, UsageError, first_line
from penult.extras import require
from penult.sources import Failure
from penult.store.collection import Collection
from penult.teaching.predictions import ClassPrediction, Place
from penult.teaching.zeroshot import TOP, Embed, checked, conse

_NONE_OF_THEM = re.compile(r"_.+_")  # `_silence_`, `_unknown_`: how data sets mark what is no class


def text_embedder(folder: str | os.PathLike[str]) -> Embed:
    """A local sentence-transformers model as a function from texts to vectors.

    Raises:
        ModelError: there is no such model in the folder. Nothing is downloaded.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"{folder} is no folder; a sentence-transformers model is needed, saved by its save()"
        )
    models = require("sentence_transformers")
    try:
        with quiet():
            model = models.SentenceTransformer(str(path), device="cpu", local_files_only=True)
    except Exception as error:  # whatever a broken folder makes of the library
        raise ModelError(
            f"{folder} cannot be opened as a sentence-transformers model: {first_line(error)}"
        ) from error
    return lambda texts: model.encode(texts, show_progress_bar=False)


class ByName:
    """Unseen classes by name, for a classifier with these labels. `top`: labels that are mixed."""

    def __init__(
        self,
        labels: Sequence[str],
        kind: str,
        names: Sequence[str],
        embed: Embed,
        top: int = TOP,
    ) -> None:
        if kind == REGRESSION:
            raise LabelsError("a regression has no classes whose names could be compared")
        self.labels, self.kind, self.top, self._embed = labels, kind, top, embed
        self.names = tuple(checked(names))
        self._used = [k for k, label in enumerate(labels) if not _NONE_OF_THEM.fullmatch(label)]
        if not self._used:
            raise LabelsError(f"the classifier has no label that names something: {list(labels)}")
        self._vectors: dict[str, FloatArray] = {}
        self._scores(np.zeros((1, len(labels)), np.float32))  # refused before an item is opened

    def _texts(self, texts: list[str]) -> Any:
        """Each text embedded once."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            self._vectors |= dict(zip(new, np.asarray(self._embed(new)), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def _scores(self, shares: Any) -> Any:
        labels = [self.labels[k] for k in self._used]
        return conse(shares[:, self._used], labels, self.names, self._texts, self.top)

    def judge(self, logits: FloatArray, place: Place) -> ClassPrediction:
        """One region's logits (K,) or (frames, K) as a prediction; its scores are cosines."""
        said = predict(self.kind, self.labels, logits)
        shares = said.scores.reshape(-1, said.scores.shape[-1]).mean(axis=0, keepdims=True)
        scores = self._scores(shares)[0].astype(np.float32)
        best = int(scores.argmax())
        return ClassPrediction(
            id=place.id,
            region=place.region,
            kind=SINGLE_LABEL,
            label=self.names[best],
            index=best,
            score=float(scores[best]),
            scores=scores,
            logits=scores,
            labels=self.names,
            said=(self.names[best],),
            start=place.start,
            end=place.end,
            channel=place.channel,
        )

    def stream(self, runner: Runner, pairs: Iterable[Any]) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        for one in runner.stream(pairs):
            if isinstance(one, Outcome):
                place = Place(one.item.id, one.region.key, one.start, one.end, one.region.channel)
                yield self.judge(one.logits, place)
            else:
                yield one

    def predict_collection(
        self, collection: Collection, where: str | None = None
    ) -> Iterator[ClassPrediction]:
        """Predictions of a collection's rows, from the logits that it keeps.

        Raises:
            UsageError: it keeps none.
        """
        if "logits" not in collection.columns:
            raise UsageError(
                f"{collection.path} keeps no logits, which names are compared by; embed with "
                "--logits all, or give the model and the items"
            )
        columns = ["id", "region", "start", "end", "channel", "logits"]
        for batch in collection.ordered(columns, where):
            for row in batch.to_pylist():
                logits = row.pop("logits")
                if logits is not None:
                    yield self.judge(_whole(logits, len(self.labels)), Place(**row))


def _whole(logits: list[Any], count: int) -> FloatArray:
    """All K logits; of the top ones, those that were not kept count as impossible."""
    if not logits or not isinstance(logits[0], dict):
        return np.asarray(logits, np.float32)
    values = np.full(count, -np.inf, np.float32)
    for one in logits:
        values[one["index"]] = one["logit"]
    return values
