"""Zero-shot classes by their names (ConSE: convex combination of semantic embeddings)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit
from penult.collection import schema
from penult.collection.collection import Collection
from penult.data.files import user_path
from penult.data.items import Failure
from penult.embedding.runner import Outcome, Runner
from penult.errors import LabelsError, ModelError, UsageError, cause
from penult.extras import require
from penult.fewshot.predictions import ClassPrediction, Location
from penult.models.base import REGRESSION, SINGLE_LABEL, Activation, FloatArray
from penult.models.hub import closed
from penult.models.processors import quiet

Floats = npt.NDArray[np.float64]
Embed = Callable[[list[str]], npt.ArrayLike]  # n texts → (n, e)

TOP = 10  # labels that are mixed, as in the paper
_PLACEHOLDER = re.compile(r"(label|class)?[_ -]?\d+", re.IGNORECASE)


def conse(
    probabilities: npt.ArrayLike,
    labels: Sequence[str],
    names: Sequence[str],
    embed: Embed,
    top: int = TOP,
) -> Floats:
    """Scores (n, C) of unseen classes by their names: the cosine between a name and the mix of the
    classifier's `top` most probable labels, weighted by their probabilities (convex combination of
    semantic embeddings; Norouzi et al., 2013).

    probabilities: (n, K) of the classifier. labels: its K names. names: C others.

    Raises:
        LabelsError: labels that name nothing (LABEL_0), a name that is empty or comes twice,
            probabilities that do not fit.
    """
    shares = np.asarray(probabilities, np.float64)
    if shares.ndim != 2 or shares.shape[1] != len(labels):
        raise LabelsError(f"probabilities of shape {shares.shape} for {len(labels)} labels")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise LabelsError("probabilities have values that are negative or not finite")
    unseen_names = check_names(names)
    if nameless := [label for label in labels if _PLACEHOLDER.fullmatch(label.strip())]:
        raise LabelsError(
            f"the classifier's labels are no names of things ({nameless[0]!r}), so no name can be "
            "compared with them; give their names with --class-names FILE"
        )
    if top < 1:
        raise LabelsError(f"{top} labels cannot be mixed; give one or more")
    words = [worded(text) for text in (*labels, *unseen_names)]
    vectors = unit(np.asarray(embed(words), np.float64))
    known, unseen = vectors[: len(labels)], vectors[len(labels) :]
    order = np.argsort(-shares, axis=1, kind="stable")
    kept = np.zeros_like(shares)
    best = order[:, :top]
    np.put_along_axis(kept, best, np.take_along_axis(shares, best, axis=1), axis=1)
    total = kept.sum(axis=1, keepdims=True)
    mixed = (kept / np.where(total > 0, total, 1.0)) @ known
    return np.asarray(unit(mixed) @ unseen.T)


def check_names(names: Sequence[str]) -> list[str]:
    """The names without spaces around them.

    Raises:
        LabelsError: no name, an empty one, or one that comes twice.
    """
    stripped = [name.strip() for name in names]
    if not stripped or not all(stripped):
        raise LabelsError(f"names of classes are needed, and none empty; received {list(names)}")
    if len(set(stripped)) < len(stripped):
        twice = next(name for name in stripped if stripped.count(name) > 1)
        raise LabelsError(f"the name {twice!r} comes twice; name each class once")
    return stripped


def worded(label: str) -> str:
    """A label as words: `_silence_` → `silence`, `GreatTit` → `great tit`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.replace("_", " ").replace("-", " "))
    return " ".join(spaced.split()).lower() or label


_NO_CLASS = re.compile(r"_.+_")  # `_silence_`, `_unknown_`, as data sets mark non-classes


def text_embedder(folder: str | os.PathLike[str]) -> Embed:
    """A local sentence-transformers model as a function from texts to vectors.

    Raises:
        ModelError: there is no such model in the folder. Nothing is downloaded.
    """
    path = user_path(folder)
    if not path.is_dir():
        raise ModelError(
            f"{folder} is no folder; a sentence-transformers model is needed, saved by its save()"
        )
    models = require("sentence_transformers")
    try:
        with quiet(), closed():
            model = models.SentenceTransformer(str(path), device="cpu", local_files_only=True)
    except Exception as error:  # whatever a broken folder makes of the library
        raise ModelError(
            f"{folder} cannot be opened as a sentence-transformers model: {cause(error)}"
        ) from error
    return lambda texts: model.encode(texts, show_progress_bar=False)


class ByName:
    """Zero-shot classes for a classifier with these labels. top: labels that are mixed. activation:
    the function from logits to scores, where it is not that of the kind."""

    def __init__(
        self,
        labels: Sequence[str],
        kind: str,
        names: Sequence[str],
        embed: Embed,
        top: int = TOP,
        activation: Activation = Activation(),
    ) -> None:
        if kind == REGRESSION:
            raise LabelsError("a regression has no classes whose names could be compared")
        self.labels, self.kind, self.top, self._embed = labels, kind, top, embed
        self._activation = activation
        self.names = tuple(check_names(names))
        self._used = [k for k, label in enumerate(labels) if not _NO_CLASS.fullmatch(label)]
        if not self._used:
            raise LabelsError(f"the classifier has no label that names something: {list(labels)}")
        self._vectors: dict[str, FloatArray] = {}
        self._scores(np.zeros((1, len(labels)), np.float32))  # refuses before an item is opened

    def _texts(self, texts: list[str]) -> Any:
        """(n, e) vectors of n texts; each text is embedded once."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            self._vectors |= dict(zip(new, np.asarray(self._embed(new)), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def _scores(self, shares: Any) -> Any:
        # Of a name that stands twice, the number behind it is no word.
        labels = [self.labels[k].removesuffix(f" ({k})") for k in self._used]
        return conse(shares[:, self._used], labels, self.names, self._texts, self.top)

    def judge(self, logits: FloatArray, place: Location) -> ClassPrediction:
        """The prediction of logits (K,) or (frames, K); its scores are cosines."""
        own = self._activation.scores(self.kind, logits).astype(np.float32)
        shares = own.reshape(-1, own.shape[-1]).mean(axis=0, keepdims=True)
        scores = self._scores(shares)[0].astype(np.float32)
        best = int(scores.argmax())
        cosine = float(scores[best])
        assigned = {self.names[best]: cosine}
        return ClassPrediction(
            id=place.id,
            region=place.region,
            kind=SINGLE_LABEL,
            label=self.names[best],
            index=best,
            score=cosine,
            scores=scores,
            logits=scores,
            labels=self.names,
            similarity=cosine,
            detection=place.window(assigned, assigned, (cosine, cosine), math.nan),
        )

    def stream(self, runner: Runner, pairs: Iterable[Any]) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        for one in runner.stream(pairs):
            if isinstance(one, Outcome):
                yield self.judge(one.logits, Location.of(one))
            else:
                yield one

    def predict_collection(
        self, collection: Collection, where: str | None = None
    ) -> Iterator[ClassPrediction]:
        """Predictions of a collection's rows, from their stored logits.

        Raises:
            UsageError: the collection has no logits.
        """
        if "logits" not in collection.reader.schema.names:
            raise UsageError(
                f"{collection.path} has no logits, which names are compared by; embed with "
                "--logits all, or give the model and the items"
            )
        extra = schema.metadata_of(collection.reader.schema)
        columns = ["id", "region", "start", "end", "channel", *extra, "logits"]
        for batch in collection.reader.ordered(columns, where):
            for row in batch.to_pylist():
                logits = row.pop("logits")
                if logits is not None:
                    yield self.judge(_whole(logits, len(self.labels)), Location.of_row(row))


def _whole(logits: list[Any], count: int) -> FloatArray:
    """(K,) logits; where the top ones are stored, the others are minus infinity."""
    if not logits or not isinstance(logits[0], dict):
        return np.asarray(logits, np.float32)
    values = np.full(count, -np.inf, np.float32)
    for one in logits:
        values[one["index"]] = one["logit"]
    return values
