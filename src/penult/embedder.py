"""The embedder: a classifier and one reading of it; items in, vectors and logits out, in one pass.

Knows items and how to open them, and no store.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from penult import classifiers
from penult.classifiers.base import Classifier, digest
from penult.classifiers.from_onnx import OnnxClassifier
from penult.engines.torch import Reading
from penult.errors import (
    ItemError,
    ModelError,
    PenultError,
    StoreError,
    TapError,
    UsageError,
    first_line,
)
from penult.media import audio, video
from penult.pooling import POOLINGS, pooled_width, unknown
from penult.regions import Region
from penult.runner import Outcome, Runner, device_of
from penult.sources import Failure, from_objects
from penult.splitting.anatomy import Anatomy, choose_tap, dissect
from penult.splitting.certificate import Certificate
from penult.splitting.onnx import dissect_graph, tap_of_graph
from penult.splitting.taps import Tap

FloatArray = npt.NDArray[np.float32]

RECIPE = "1"  # changes whenever the same settings would give other vectors
FILE = "penult.json"

# What a model that does not take the proof's variants of an input may raise.
_REFUSALS = (PenultError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave, in the order of the items.

    vectors: (n, d) float32. logits: (n, K). labels: the n predicted labels. item_index: for each
    row, the item's place in the input. failures: the items that gave no row.
    """

    vectors: FloatArray
    logits: FloatArray
    labels: list[str]
    ids: list[str]
    regions: list[Region]
    item_index: npt.NDArray[np.int64]
    failures: list[Failure]


class Embedder:
    """A classifier and one reading (tap and pooling) of it."""

    def __init__(
        self,
        classifier: Classifier,
        tap: Tap,
        pooling: str,
        *,
        device: str = "auto",
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise TapError(unknown(pooling))
        if not tap.positions and pooling == "mean+std":
            raise TapError(
                f"tap {tap.name!r} gives one vector per item, so there is nothing to pool: "
                "choose pooling mean, or a tap with positions"
            )
        self.classifier = classifier
        self.tap = tap
        self.pooling = pooling
        self.device = device_of(classifier, device)
        self.runner = Runner(classifier, [Reading(tap, pooling)], self.device)
        self._saved = dict(saved or {})

    @classmethod
    def from_classifier(
        cls,
        classifier: Classifier,
        tap: str = "backbone",
        pooling: str = "mean",
        space: None = None,
        precision: Literal["exact"] = "exact",
        engine: Literal["torch"] = "torch",
        device: str = "auto",
    ) -> Embedder:
        """Read `classifier` at `tap`, pooled by `pooling`.

        Raises:
            TapError: the model has no such tap, or the pooling does not fit it.
        """
        if space is not None or precision != "exact" or engine != "torch":
            raise UsageError(
                f"space={space!r}, precision={precision!r}, engine={engine!r}: this version has "
                "no spaces, and runs in torch at exact precision (fp32) only"
            )
        return cls(classifier, tap_of(classifier, tap), pooling, device=device)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return pooled_width(self.pooling, self.tap.width)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The classifier's parts, measured once."""
        return anatomy_of(self.classifier)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What makes two vectors comparable, field by field."""
        reader = {"audio": audio.RESAMPLER, "video": video.SAMPLING}
        return {
            **self.classifier.identity(),
            "reader": reader.get(self.classifier.modality, "1"),
            "tap": f"{self.tap.name} ({self.tap.side} of {self.tap.module or 'the model'})",
            "pooling": self.pooling,
            "precision": "exact",
            "recipe": RECIPE,
        }

    @cached_property
    def certificate(self) -> Certificate:
        """The proof of the head, measured once and saved with the embedder."""
        saved = self._saved.get("certificate")
        return Certificate.from_dict(saved) if saved else certify(self.classifier)

    @property
    def fingerprint_id(self) -> str:
        """The fingerprint's hash."""
        return digest(self.fingerprint)

    def run(self, items: Any, on_error: Literal["raise", "skip"] = "raise") -> Result:
        """Vectors, logits and labels of items, in one forward pass each.

        items: paths, folders, tables, arrays (n,) at the model's rate or (array, rate), bytes,
        images, texts; one of them or many. on_error: `raise` stops at the first item that fails,
        `skip` goes on and lists it in `failures`.
        """
        rows: list[Outcome] = []
        failures: list[Failure] = []
        index: list[int] = []
        for number, outcome in enumerate(
            self.runner.stream(from_objects(items, self.classifier.modality))
        ):
            if isinstance(outcome, Outcome):
                rows.append(outcome)
                index.append(number)
            elif on_error == "raise":
                raise ItemError(outcome.words())
            else:
                failures.append(outcome)
        n_logits = len(self.classifier.labels)
        logits = np.array([row.class_logits for row in rows], np.float32).reshape(-1, n_logits)
        vectors = np.array([row.vector for row in rows], np.float32)
        return Result(
            vectors=vectors if rows else vectors.reshape(0, self.dim),
            logits=logits,
            labels=[self.classifier.labels[i] for i in logits.argmax(axis=1)],
            ids=[row.item.id for row in rows],
            regions=[row.region for row in rows],
            item_index=np.array(index, np.int64),
            failures=failures,
        )

    def embed(self, items: Any) -> FloatArray:
        """`run(items).vectors`, (n, d) float32."""
        return self.run(items).vectors

    def save(self, folder: str | Path) -> Path:
        """Save the classifier and the reading; `Embedder.load` opens them again.

        Written aside and renamed, so that a folder of that name is whole or absent.

        Raises:
            UsageError: the folder exists and is not an embedder.
            StoreError: it cannot be written.
        """
        target = Path(folder).expanduser().absolute()
        if target.exists() and not target.is_dir():
            raise UsageError(f"{target} is a file; an embedder is saved as a folder, name another")
        if target.exists() and not (target / FILE).is_file() and any(target.iterdir()):
            raise UsageError(f"{target} exists and is not an embedder; name another folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
            aside.mkdir()
            try:
                self.classifier.save(aside)
                (aside / FILE).write_text(json.dumps(self._description(), indent=2), "utf-8")
                _replace(aside, target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
        return target

    def _description(self) -> dict[str, Any]:
        return {
            "format": 1,
            "source": self.classifier.spec,
            "tap": asdict(self.tap),
            "pooling": self.pooling,
            "fingerprint": self.fingerprint,
            "certificate": self.certificate.to_dict(),
            "classifier": self.classifier.describe(),
        }

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", trust: bool = False) -> Embedder:
        """Open a saved embedder.

        Raises:
            ModelError: not an embedder, or its weights are not those that were saved.
        """
        path = Path(folder).expanduser()
        try:
            saved = json.loads((path / FILE).read_text("utf-8"))
            tap = dict(saved["tap"])
            tap["shape"] = tuple(tap["shape"])
            chosen, pooling, expected = Tap(**tap), saved["pooling"], saved["fingerprint"]
        except FileNotFoundError as error:
            raise ModelError(f"{path} is not a saved embedder: it has no {FILE}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path / FILE} cannot be read: {first_line(error)}") from error
        classifier = classifiers.load(path, trust=trust)
        embedder = cls(classifier, chosen, pooling, device=device, saved=saved)
        differs = differences(expected, embedder.fingerprint)
        if differs:
            raise ModelError(f"{path} was changed since it was saved: {'; '.join(differs)}")
        return embedder

    def __repr__(self) -> str:
        return (
            f"Embedder({self.classifier.spec!r}, tap={self.tap.name!r}, "
            f"pooling={self.pooling!r}, dim={self.dim})"
        )


def anatomy_of(classifier: Classifier) -> Anatomy:
    """A classifier's parts, measured: of its module, or of its graph."""
    if isinstance(classifier, OnnxClassifier):
        return dissect_graph(classifier.cut)
    return dissect(classifier.module, example_of(classifier), classifier.base)


def tap_of(classifier: Classifier, name: str) -> Tap:
    """The tap of that name.

    Raises:
        TapError: there is none; the message lists those that there are.
    """
    if isinstance(classifier, OnnxClassifier):
        return tap_of_graph(classifier.cut, name)
    anatomy, example = anatomy_of(classifier), example_of(classifier)
    return choose_tap(anatomy, classifier.module, example, name)


def certify(classifier: Classifier) -> Certificate:
    """Prove the classifier's head on an example of its own kind, in a few forward passes."""
    if classifier.engine != "torch":
        proved = dissect_graph(classifier.cut).certificate  # type: ignore[attr-defined]
        return proved or Certificate.refused("the graph's head was not located")
    from penult.splitting.cut import split

    try:
        return split(classifier.module, example_of(classifier)).certificate
    except _REFUSALS as error:  # a head that cannot be proved stops no other tap
        return Certificate.refused(f"the proof could not be run: {first_line(error)}")


def example_of(classifier: Classifier) -> dict[str, Tensor]:
    """The classifier's example, on the device where its module is now."""
    tensors = classifier.example().tensors
    parameter = next(classifier.module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def open_embedder(
    spec: str | Path,
    tap: str | None = None,
    pooling: str | None = None,
    *,
    device: str = "auto",
    **asked: Any,
) -> Embedder:
    """Open a saved embedder, or make one from a classifier; tap and pooling override its own.

    asked: what else `penult.classifiers.load` takes.
    """
    if is_embedder(spec):
        saved = Embedder.load(spec, device=device, trust=bool(asked.get("trust")))
        if tap is None:
            if pooling is None or pooling == saved.pooling:
                return saved
            return Embedder(saved.classifier, saved.tap, pooling, device=device)
        return Embedder.from_classifier(
            saved.classifier, tap, pooling or saved.pooling, device=device
        )
    classifier = classifiers.load(spec, **asked)
    return Embedder.from_classifier(classifier, tap or "backbone", pooling or "mean", device=device)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The fields in which two fingerprints differ, in words."""
    return [
        f"{name}: {one.get(name, 'absent')} against {other.get(name, 'absent')}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def is_embedder(spec: str | Path) -> bool:
    """Whether a folder is a saved embedder."""
    return (Path(spec).expanduser() / FILE).is_file()


def _replace(aside: Path, target: Path) -> None:
    """Put a finished folder in place; an older one there goes only once the new one is whole."""
    if not target.exists():
        aside.rename(target)
        return
    old = aside.with_name(f"{aside.name}-old")
    target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
