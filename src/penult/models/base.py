"""Classifier: a model's structure, its preprocessing, its labels, its identity, how it is saved.

A classifier describes and never runs itself: engines run it. Knows no pooling and no collection;
what answers `classify` is set where classifiers and engines are joined.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from penult.data.hashes import digest as digest
from penult.data.windows import TextDivider
from penult.errors import UsageError
from penult.models.trust import carry_code
from penult.tracing.scores import BINARY as BINARY
from penult.tracing.scores import MULTI_LABEL as MULTI_LABEL
from penult.tracing.scores import REGRESSION as REGRESSION
from penult.tracing.scores import SIGMOID as SIGMOID
from penult.tracing.scores import SINGLE_LABEL as SINGLE_LABEL
from penult.tracing.scores import Activation as Activation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from penult.models.code_bundle import CodeBundle
    from penult.tracing.anatomy import Anatomy, Statement
    from penult.tracing.certificate import Certificate
    from penult.tracing.spots import Tap

    Tensors = Mapping[str, torch.Tensor]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One item, ready for the model.

    tensors: keyword arguments of the model's forward, of torch or of numpy, each with a batch axis
    of 1; where the model's input has patches (`InputSpec.patches`) with the item's patches, none or
    more. truncated: seconds (text: tokens) that the preprocessing kept, or None if it kept
    everything. patch_times: the first and the last second of each patch in the item, where its
    preprocessing gives them.
    """

    tensors: Mapping[str, Any]
    truncated: float | None = None
    patch_times: tuple[tuple[float, float], ...] | None = None

    def divided(self) -> list[Inputs]:
        """Each patch by itself, with a batch axis of 1."""
        times = self.patch_times
        return [
            Inputs(
                {name: value[at : at + 1] for name, value in self.tensors.items()},
                self.truncated,
                None if times is None else times[at : at + 1],
            )
            for at in range(len(next(iter(self.tensors.values()))))
        ]


# Why no sound can be prepared for a model whose files do not say it.
NO_RATE = "nothing says at which rate the model takes sound: give --sample-rate"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The kind of input that a model takes.

    modality: audio, image, video or text. rate: samples per second that audio is resampled to.
    frames: to which a video is sampled. seconds: of sound in an input of fixed length; None if it
    is as long as the clip. refusal: why no item can be prepared; empty where items can be. divide:
    gives the first and last character of each window of a text, counted in tokens; None where the
    preprocessing has no tokenizer that could. beginning: whether a text or a recording that is
    longer than what the model takes gives the same input as a beginning of it that is longer, too.
    patches: how the patches that the preprocessing gives of one item become rows: `mean`, `max` or
    `rows`; None where each item is one input. band: of sound, Hz, that passes; playback_rate: at
    which it is played to the model, 0.1 is ten times slower (`penult.data.audio.Playback`).
    """

    modality: str
    rate: int | None = None
    frames: int | None = None
    seconds: float | None = None
    refusal: str = ""
    divide: TextDivider | None = field(default=None, compare=False, repr=False)
    beginning: bool = field(default=False, compare=False, repr=False)
    patches: str | None = None
    band: tuple[float, float] | None = None
    playback_rate: float = 1.0

    def require(self) -> None:
        """Refuse a model for which no item can be prepared.

        Raises:
            UsageError: the reason, and what would work.
        """
        if self.refusal:
            raise UsageError(self.refusal)


class Preparer(Protocol):
    """Preprocessing of one item; `digest` differs where two preprocessings differ."""

    @property
    def input(self) -> InputSpec:
        """What it prepares, and to which length."""

    def __call__(self, content: Any) -> Inputs:
        """Decoded content (samples, image, frames or text) as the model's inputs."""

    def example(self, seed: int) -> Inputs:
        """A short synthetic item, prepared as any other; the same for the same seed."""

    def digest(self) -> str:
        """Hash of every setting."""

    def truncation(self) -> str:
        """The limit of an item's length, in words, or `none`."""

    def description(self) -> str:
        """How an item is prepared, in words."""


class Study(Protocol):
    """A model's parts and their proof, measured on a few inputs."""

    @property
    def anatomy(self) -> Anatomy:
        """Head, backbone and named taps."""

    def tap(self, name: str) -> Tap:
        """The tap of a name.

        Raises:
            TapError: there is none; the message lists those that there are.
        """

    def prove(self, missing: Sequence[str] = ()) -> tuple[Certificate, str]:
        """(certificate of the head, remark on it). missing: weights that were not loaded."""

    def statements(self, taps: Sequence[Tap]) -> Mapping[str, Statement]:
        """How the logits depend on each tap."""

    def head(self) -> Callable[[FloatArray], FloatArray]:
        """The proved head: prelogits of one item (1, d) to logits (1, K).

        Raises:
            HeadNotFound: there is no proof.
        """


class Structure(Protocol):
    """A model as it is studied and run: a torch module, or a graph.

    engine: the engine that runs it as it is, by its name in `penult.engines.registry`. output: the
    output that holds the logits, where there are several. base: dotted path of the backbone in the
    module, where the origin names one. proved_on_items: a proof on real inputs says more than one
    on synthetic inputs (a graph is the same for every input).
    """

    @property
    def engine(self) -> str:
        """The native engine."""

    @property
    def proved_on_items(self) -> bool:
        """Whether a proof on real inputs says more."""

    @property
    def module(self) -> nn.Module:
        """The torch module.

        Raises:
            UsageError: there is none.
        """

    @property
    def base(self) -> str | None:
        """Dotted path of the backbone."""

    @property
    def output(self) -> str | int | None:
        """Name or number of the output that holds the logits."""

    @property
    def activation(self) -> Activation:
        """The softmax or sigmoid that the whole model applies to its logits."""

    def modules(self) -> Iterable[nn.Module]:
        """Every torch module inside, the whole one first; none of a graph."""

    def place(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Inputs on the device where the model is now."""

    def entry(self, anatomy: Anatomy) -> Tap | None:
        """The tap in front of the first block, where positions can be followed from there."""

    def study(self, examples: Sequence[Tensors] = (), head: str | None = None) -> Study:
        """The model, studied on one or two inputs, or on synthetic ones.

        Raises:
            UsageError: there is no module of the name `head`.
        """

    def describe(self) -> dict[str, Any]:
        """`class` and the number of `parameters`."""

    def digest(self) -> str:
        """Hash of the weights."""

    def save(self, folder: Path) -> None:
        """Write the weights into a folder."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How a classifier is saved.

    recipe: what opens it again from its folder (`origin`, `name`, options), without labels and
    kind; None where the files say everything. files: copied as they are, each under its name;
    None: the structure writes the weights. refusal: why it cannot be saved.
    """

    recipe: Mapping[str, Any] | None = None
    files: Mapping[str, Path] | None = None
    refusal: str = ""


NOT_STORED = Storage(
    refusal="a module or a function that was given as an object cannot be built again from a "
    "folder; name both as package.module:function"
)
FILE = "classifier.json"

# Attributes of earlier versions, and where their values are now.
_MOVED = {
    "origin": "",
    "frames": "input.frames",
    "holds": "input.seconds",
    "seconds": "input.seconds",
    "base": "structure.base",
    "output": "structure.output",
    "engine": "structure.engine",
}


class Classifier:
    """A trained model that gives K scores for an input, and what it takes to feed it.

    spec: what `penult.load` was given. kind: single-label, multi-label, binary or regression.
    labels: K names, in the order of the logits. input: modality, sample rate, frames and fixed
    length of what the model takes. structure: the model inside, studied and proved through it.
    """

    # Gives `classify` its predictions; set where classifiers and engines are joined.
    _answer: Callable[[Classifier, Any, str, str], list[Prediction]] | None = None

    def __init__(
        self,
        spec: str,
        kind: str,
        labels: Sequence[str],
        structure: Structure,
        preparer: Preparer,
        facts: Mapping[str, Any] | None = None,
        storage: Storage = NOT_STORED,
    ) -> None:
        self.spec = spec
        self.kind = kind
        self.labels = tuple(labels)
        self.structure = structure
        self._preparer = preparer
        self._facts = dict(facts or {})
        self._storage = storage
        self._options: dict[str, Any] = {}
        self._playback: dict[str, Any] = {}  # band and playback_rate, of sound
        self._code: dict[str, dict[str, str]] | None = None
        self._record: Any = None
        self._bundle: CodeBundle | None = None  # the user's own modules in its folder

    @property
    def input(self) -> InputSpec:
        """What an item has to be: modality, sample rate, frames, fixed length."""
        given = self._preparer.input
        return replace(given, **self._playback) if self._playback else given

    @property
    def modality(self) -> str:
        """audio, image, video or text."""
        return self.input.modality

    @property
    def rate(self) -> int | None:
        """Samples per second that audio is resampled to."""
        return self.input.rate

    @property
    def module(self) -> nn.Module:
        """The torch module.

        Raises:
            UsageError: the classifier is a graph, and has none.
        """
        return self.structure.module

    def preprocess(self, content: Any) -> Inputs:
        """Decoded content (samples, image, frames or text) as the model's inputs.

        Raises:
            ItemError: the content cannot be prepared.
        """
        return self._preparer(content)

    def example(self, seed: int = 0) -> Inputs:
        """A short synthetic input of the model's own kind, the same for the same seed."""
        return self._preparer.example(seed)

    def identity(self) -> dict[str, str]:
        """The classifier's fields of the fingerprint: weights, preprocessing, truncation; patches,
        where an item has several; playback, where sound is filtered or slowed; and code, where a
        part of it is the user's own."""
        code, patches = own_code(self), self.input.patches
        played = playback_words(self.input)
        return {
            "weights": self.structure.digest(),
            "preprocessing": self._preparer.digest(),
            "truncation": self._preparer.truncation(),
            **({"patches": patches} if patches else {}),
            **({"playback": played} if played else {}),
            **({"code": digest(code)} if code else {}),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for people and for `runs`: origin, class, revision, parameters, versions."""
        about = self.structure.describe()
        return {
            "class": about["class"],
            "modality": self.modality,
            "kind": self.kind,
            "classes": len(self.labels),
            "parameters": about["parameters"],
            "rate": self.rate,
            "preparation": self._preparer.description(),
            **self._facts,
            **self.structure.activation.to_dict(),
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything that `penult.load(folder)` needs to open it again.

        Raises:
            UsageError: it was made of objects that have no importable name.
        """
        stored = self._storage
        self.input.require()
        if stored.refusal:
            raise UsageError(stored.refusal)
        folder = Path(folder)
        if stored.files is None:
            self.structure.save(folder)
        for name, path in (stored.files or {}).items():
            shutil.copyfile(path, folder / name)
        if stored.recipe is not None:
            about = {**stored.recipe, "labels": self.labels, "kind": self.kind}
            (folder / FILE).write_text(json.dumps(about, indent=2), "utf-8")
            self._save_code(folder, stored.recipe)

    def _save_code(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Copy the user's own modules that a recipe names: those beside the model that it was
        opened from, or those that were imported."""
        factory = recipe.get("name") if recipe.get("origin") == "torch" else None
        names = [recipe.get("preprocess"), factory]
        specs = [name for name in names if name and ":" in name]
        if self._bundle is not None:
            self._bundle.copy(folder)
        elif specs:
            in_use = {name: one for files in own_code(self).values() for name, one in files.items()}
            carry_code(folder, specs, in_use)

    def classify(
        self, items: Any, on_error: Literal["raise", "skip"] = "raise", device: str = "auto"
    ) -> list[Prediction]:
        """The classifier's own answer for each item. `scores` are the model's own; `logits` are
        what it returns, or what enters its last softmax or sigmoid.

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
            """Attributes of earlier versions, for one version more."""
            if name not in _MOVED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            place = _MOVED[name]
            remedy = (
                f"classifier.{place}" if place else "the classifier itself, and leave .origin out"
            )
            warnings.warn(
                f"classifier.{name} goes in the next version: use {remedy}",
                DeprecationWarning,
                stacklevel=2,
            )
            return attrgetter(place)(self) if place else self


def playback_words(input: InputSpec) -> str:
    """`band 500-8000 Hz, playback rate 0.1`; empty where sound is taken as it was recorded."""
    band = [] if input.band is None else [f"band {input.band[0]:g}-{input.band[1]:g} Hz"]
    rate = [] if input.playback_rate == 1.0 else [f"playback rate {input.playback_rate:g}"]
    return ", ".join(band + rate)


def set_playback(
    classifier: Classifier, band: tuple[float, float] | None, rate: float | None
) -> None:
    """Change how sound is read for a classifier: the band (Hz) that passes, the rate of playback.

    Raises:
        UsageError: it takes no sound.
    """
    given = {"band": band, "playback_rate": None if rate == 1.0 else rate}
    given = {name: value for name, value in given.items() if value is not None}
    if given and classifier.modality != "audio":
        raise UsageError(
            f"--{next(iter(given)).replace('_', '-')} is for sound, and {classifier.spec!r} takes "
            f"{classifier.modality}"
        )
    classifier._playback = given


def reopen_options(classifier: Classifier) -> dict[str, Any]:
    """The options of `load` that open a classifier again, besides its spec."""
    return dict(classifier._options)


def remember_options(classifier: Classifier, options: Mapping[str, Any]) -> None:
    """Keep the options of `load` with a classifier, for `reopen_options`."""
    classifier._options = dict(options)


def own_code(classifier: Classifier) -> dict[str, dict[str, str]]:
    """Hashes of the user's own files behind the `model` and its `preprocess`, as they were when the
    classifier was first asked; see `penult.models.source_code`. Empty where there are none."""
    if classifier._code is None:
        parts = {"model": classifier.structure, "preprocess": classifier._preparer}
        # A loader of another package need not know of it.
        found = {role: dict(getattr(part, "code", dict)()) for role, part in parts.items()}
        classifier._code = {role: files for role, files in found.items() if files}
    return classifier._code


def is_live(classifier: Classifier) -> bool:
    """Whether it was made of objects in memory, which no name and no file gives again."""
    return bool(classifier._storage.refusal)


def record_of(classifier: Classifier) -> Any:
    """Its record, where one is kept; see `penult.models.record`."""
    return classifier._record


def keep_record(classifier: Classifier, record: Any) -> None:
    """Note what is measured of a classifier, and nobody may have changed, in its record."""
    classifier._record = record


def note_facts(classifier: Classifier, facts: Mapping[str, Any]) -> None:
    """Further facts for `describe`."""
    classifier._facts |= facts


def keep_bundle(classifier: Classifier, bundle: CodeBundle | None) -> None:
    """Note the user's own modules that lie in a classifier's folder, which go with it."""
    classifier._bundle = bundle


def store_as(classifier: Classifier, storage: Storage) -> None:
    """Say how a classifier is saved, where what opened it could not know."""
    classifier._storage = storage


@dataclass(frozen=True, slots=True)
class Best:
    """One class of a prediction."""

    label: str
    index: int
    score: float
    logit: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classifier's answer for one region.

    logits: what the model returned, (K,) or (frames, K), or what enters its last softmax or
    sigmoid. scores: probabilities for single-label (softmax), multi-label and binary (sigmoid),
    the values themselves for regression; where the model returns probabilities, those.
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: logits and scores as lists."""
        return {
            "id": self.id,
            "region": self.region,
            "label": self.label,
            "index": self.index,
            "score": self.score,
            "scores": self.scores.tolist(),
            "logits": self.logits.tolist(),
        }


def predict(
    kind: str,
    labels: Sequence[str],
    logits: FloatArray,
    id: str = "",
    region: str = "whole",
    activation: Activation = Activation(),
) -> Prediction:
    """One item's logits, (K,) or (frames, K), as a Prediction."""
    scores = activation.scores(kind, logits)
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


def kind_of_scores(kind: str | None, activation: Activation, n_logits: int, spec: str) -> str:
    """What K logits are: by the caller or the model's origin, else by the activation.

    Raises:
        UsageError: one logit, of which nothing says what it is; several that are called binary.
    """
    if kind == BINARY and n_logits != 1:
        raise UsageError(
            f"--kind {BINARY} is for a model that gives one number for an item, and {spec} gives "
            f"{n_logits}: say {SINGLE_LABEL} or {MULTI_LABEL}"
        )
    if kind is not None:
        return kind
    if activation.name == SIGMOID:
        return BINARY if n_logits == 1 else MULTI_LABEL
    if n_logits > 1:
        return SINGLE_LABEL
    raise UsageError(
        f"{spec} gives one number for an item, and nothing says what it is: give --kind "
        f"{BINARY} for a logit, whose sigmoid is the probability of the one class, or --kind "
        f"{REGRESSION} for a value"
    )


def complete_labels(names: Sequence[str], n_logits: int) -> tuple[str, ...]:
    """The given names where they fit the logits, each once; else class_0, class_1, …"""
    if len(names) == n_logits:
        return distinct(names)
    return tuple(f"class_{i}" for i in range(n_logits))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Class names, and behind each that stands twice the number of its class: ImageNet's two cranes
    are `crane (134)` and `crane (517)`."""
    counts = Counter(names)
    found: list[str] = []
    for number, name in enumerate(names):
        own = name
        while counts[own] > 1 or (own != name and counts[own]):
            own = f"{own} ({number})"
        found.append(own)
    return tuple(found)


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
