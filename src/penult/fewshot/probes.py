"""Predictions by a saved probe of rows and items of the embedder that it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis import probe_io
from penult.analysis.prediction_measures import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.manifest import Manifest, fingerprint_in
from penult.data.decode import usual_decoding
from penult.data.items import Entry, Failure
from penult.data.windows import Layout
from penult.embedding.fingerprint import compare
from penult.errors import FingerprintMismatch, UsageError, cause
from penult.extras import require
from penult.fewshot.predictions import ClassPrediction, Location
from penult.fewshot.values import ValuePrediction
from penult.fewshot.vectors import VectorSource, run_items

Matrix = npt.NDArray[np.float32]
ProbePrediction = ClassPrediction | ValuePrediction
_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True)
class SavedProbe:
    """A probe from its file. task: single-label, multi-label or regression. classes: nothing for a
    regression. thresholds: (K,) of several labels. by: what it predicts. answer: raw vectors (n, d)
    → probabilities (n, K), or values (n,). fingerprint: of the embedder of the vectors."""

    path: str
    task: str
    by: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    fingerprint: Mapping[str, str]
    answer: Callable[[Matrix], npt.NDArray[np.float64]]

    @property
    def several(self) -> bool:
        """Whether an item may have several labels."""
        return self.task == MULTI_LABEL

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedProbe:
        """The probe of `penult probe --save`, .skops or .onnx.

        Raises:
            UsageError: no probe, or one that was trained with further columns (--features).
            MissingExtra: skops or onnxruntime is not installed.
        """
        probe_io.check_suffix(path)
        about, answer = (_skops if Path(path).suffix == ".skops" else _onnx)(path)
        own = [f"v{place}" for place in range(len(about["features"]))]
        if more := [name for name in about["features"] if name not in own]:
            raise UsageError(
                f"{path} was trained with further columns (--features: {', '.join(more[:5])}), "
                "which predict has not: train it on the vectors alone"
            )
        classes = tuple(map(str, about.get("classes", ())))
        usual = [0.5] * len(classes)
        return cls(
            str(path), about.get("task", SINGLE_LABEL), str(about["by"]), classes,
            tuple(about.get("thresholds", usual)), about["fingerprint"], answer,
        )  # fmt: skip

    def check(self, manifest: Manifest, name: str) -> None:
        """Refuse vectors of another embedder.

        Raises:
            FingerprintMismatch: the fingerprint differs; the message lists the differences.
        """
        own = fingerprint_in(Manifest(self.fingerprint, manifest.dim, 0, {}))
        found = compare(own, fingerprint_in(manifest), "", "")
        if found.refused:
            raise FingerprintMismatch(
                f"{name} holds other vectors than {self.path} was trained on: {found.words}. Train "
                f"it again: penult probe {name} --by … --save {self.path}"
            )

    def rows(self, collection: Collection, where: str | None = None) -> Iterator[ProbePrediction]:
        """Predictions of the rows of a collection, in the order of their keys."""
        self.check(collection.reader.require_manifest(), str(collection.path))
        extra = list(schema.metadata_of(collection.reader.schema))
        for batch in collection.reader.ordered([*_COLUMNS, *extra, "vector"], where):
            places = [Location.of_row(row) for row in batch.drop_columns("vector").to_pylist()]
            vectors = schema.matrix(batch.column("vector")).astype(np.float32)
            finite = np.flatnonzero(np.isfinite(vectors).all(axis=1))
            yield from self.vectors([places[at] for at in finite], vectors[finite])

    def items(
        self,
        source: VectorSource,
        pairs: Iterable[Entry],
        layout: Layout | None = None,
        channel: int | str | None = None,
    ) -> Iterator[ProbePrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        from penult.embedding.runner import Outcome

        decoding = usual_decoding()
        for one in run_items(source, source.cut(pairs, layout, channel, decoding), decoding):
            if isinstance(one, Outcome):
                yield from self.vectors([Location.of(one)], one.vector[None])
            else:
                yield one

    def vectors(self, places: Sequence[Location], vectors: Matrix) -> Iterator[ProbePrediction]:
        """Predictions of raw vectors (m, d) from these places."""
        if not len(places):
            return
        found = np.asarray(self.answer(vectors), np.float64)
        for place, own in zip(places, found, strict=True):
            if self.task == REGRESSION:
                yield ValuePrediction(
                    place.id, place.region, float(own), -np.inf, np.inf, None, None, self.by,
                    place.start, place.end, place.channel, place.metadata,
                )  # fmt: skip
            else:
                yield self._classes(place, own.astype(np.float32))

    def _classes(self, place: Location, shares: Matrix) -> ClassPrediction:
        best = int(shares.argmax())
        order = [int(k) for k in np.argsort(-shares, kind="stable")]
        held = [k for k in order if shares[k] >= self.thresholds[k]] if self.several else [best]
        first = held[0] if held else None
        score = float(shares[best if first is None else first])
        return ClassPrediction(
            id=place.id, region=place.region, kind=self.task,
            label=None if first is None else self.classes[first], index=first, score=score,
            scores=shares, logits=np.full(len(shares), np.nan, np.float32), labels=self.classes,
            detection=place.window(
                {self.classes[k]: float(shares[k]) for k in held}, {}, (score, np.nan), np.nan
            ),
        )  # fmt: skip


def _skops(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Callable[[Matrix], Any]]:
    pipeline: Any = probe_io.load(path)
    about = json.loads(pipeline.penult_)
    if about.get("task") == REGRESSION:
        return about, lambda rows: pipeline.predict(rows.astype(np.float64)).reshape(-1)
    if about.get("task", SINGLE_LABEL) == SINGLE_LABEL:
        about["classes"] = [str(name) for name in pipeline.classes_]
    return about, lambda rows: pipeline.predict_proba(rows.astype(np.float64))


def _onnx(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Callable[[Matrix], Any]]:
    runtime = require("onnxruntime")
    try:
        session = runtime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map["penult"])
    except Exception as error:  # whatever the runtime makes of another file
        raise UsageError(f"{path} is not a probe saved as .onnx: {cause(error)}") from error
    name = "values" if about.get("task") == REGRESSION else "probabilities"
    return about, lambda rows: session.run([name], {"vectors": rows})[0]
