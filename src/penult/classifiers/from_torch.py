"""Open any torch module as a classifier: one that is at hand, or one that a factory builds.

What a bare module cannot say, the caller says: labels, preprocessing, sample rate. timm's and
torchvision's models are opened through here too.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.classifiers.base import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Inputs,
    complete_labels,
    digest,
    weights_digest,
)
from penult.classifiers.checkpoints import built, read, require_filled
from penult.classifiers.examples import content_of
from penult.errors import ModelError, UsageError, first_line

Prepare = Callable[[Any], Any]

KINDS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
FILE = "classifier.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller says of a model that cannot say it itself.

    checkpoint: a file of weights, `FILE#entry` where it has several copies. preprocess: a function,
    or `package.module:function`, from decoded content (PIL image, samples (n,), frames, text) to
    the tensor or tensors of one item, without a batch axis. labels: names, or a file with one a
    line. sample_rate: makes the model one of audio. seconds: a fixed length of audio, to which
    shorter clips are padded with zeros at the end and longer ones cut. random: allow weights that
    nobody trained, to look at an architecture.
    """

    checkpoint: str | Path | None = None
    preprocess: Prepare | str | None = None
    labels: Sequence[str] | str | Path | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    modality: str | None = None
    kind: str | None = None
    trust: bool = False
    random: bool = False

    def reopen(self) -> dict[str, Any]:
        """What a collection keeps of it: everything that has a name, with whole paths."""
        kept = {
            "labels": self.labels if self.labels is None else _whole(self.labels),
            "checkpoint": self.checkpoint if self.checkpoint is None else _whole(self.checkpoint),
            **self.recipe(),
        }
        return {name: value for name, value in kept.items() if value is not None}

    def recipe(self) -> dict[str, Any]:
        """What a saved embedder keeps of it, to be asked again."""
        named = self.preprocess if isinstance(self.preprocess, str) else None
        return {
            "preprocess": named,
            "sample_rate": self.sample_rate,
            "seconds": self.seconds,
            "modality": self.modality,
            "kind": self.kind,
        }


@dataclass
class ModuleClassifier:
    """A torch module and what it takes to feed it; see `penult.classifiers.base.Classifier`."""

    spec: str
    modality: str
    kind: str
    labels: tuple[str, ...]
    rate: int | None
    frames: int | None
    module: nn.Module
    base: str | None
    prepare: Prepare
    settings: dict[str, Any]  # what the preprocessing is, for the fingerprint
    seconds: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)  # how to build it again
    facts: dict[str, Any] = field(default_factory=dict)
    reopen: dict[str, Any] = field(default_factory=dict)
    files: Sequence[Path] | None = None  # a checkpoint's own files, which are copied as they are
    batched: bool = False  # whether `prepare` gives a batch axis itself
    engine: str = "torch"

    def preprocess(self, content: Any) -> Inputs:
        """Decoded content → the model's arguments; see `Classifier.preprocess`."""
        truncated = None
        if self.seconds is not None and self.rate is not None:
            wanted = round(self.seconds * self.rate)
            truncated = self.seconds if len(content) > wanted else None
            content = np.pad(content[:wanted], (0, max(0, wanted - len(content))))
        value = self.prepare(content)
        tensors = value if isinstance(value, Mapping) else self._named(value)
        return Inputs({name: self._batch(item) for name, item in tensors.items()}, truncated)

    def _named(self, value: Any) -> dict[str, Any]:
        values = value if isinstance(value, tuple) else (value,)
        return dict(zip(arguments(self.module), values, strict=False))

    def _batch(self, value: Any) -> Tensor:
        tensor = torch.as_tensor(value)
        return tensor if self.batched else tensor[None]

    def example(self, seed: int = 0) -> Inputs:
        """Noise, or a few words, prepared as any other item."""
        return self.preprocess(content_of(self.modality, seed, self.rate, self.frames))

    def identity(self) -> dict[str, str]:
        """`weights` and `preprocessing` of the fingerprint."""
        return {
            "weights": weights_digest(self.module),
            "preprocessing": digest(self.settings),
            "truncation": "none" if self.seconds is None else f"first {self.seconds:g} s",
        }

    def describe(self) -> dict[str, Any]:
        """Facts for people and for a collection's runs."""
        return {
            "class": type(self.module).__name__,
            "modality": self.modality,
            "kind": self.kind,
            "classes": len(self.labels),
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "rate": self.rate,
            **self.facts,
        }

    def save(self, folder: Path) -> None:
        """Weights as safetensors, and how to build the module around them.

        Raises:
            UsageError: the module was given as an object, or its preprocessing as a function that
                has no importable name.
        """
        from safetensors.torch import save_file

        if not self.recipe:
            raise UsageError(
                "a module or a function that was given as an object cannot be built again from a "
                "folder; name both as package.module:function"
            )
        if self.files is None:
            state = self.module.state_dict()  # cloned: tied weights have two names and one storage
            save_file({n: v.clone().contiguous() for n, v in state.items()}, folder / WEIGHTS)
        else:
            for path in self.files:
                shutil.copyfile(path, folder / path.name)
        about = {**self.recipe, "labels": self.labels, "kind": self.kind}
        (folder / FILE).write_text(json.dumps(about, indent=2), "utf-8")


def _whole(value: Any) -> Any:
    """A path as it is called from anywhere; names stay."""
    return str(Path(value).expanduser().absolute()) if isinstance(value, str | Path) else [*value]


def arguments(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes."""
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]
        return [argument.name for argument in schema.arguments[1:]]
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def open_module(module: nn.Module, asked: Asked, spec: str = "") -> ModuleClassifier:
    """A module that is at hand, with its weights in it."""
    if not isinstance(module, nn.Module):
        raise ModelError(f"expected a torch module, received {type(module).__name__}")
    prepare, settings = preparation(asked)
    return assembled(module.eval(), asked, prepare, settings, {}, spec or type(module).__name__)


def open_factory(spec: str, asked: Asked) -> ModuleClassifier:
    """`package.module:factory`, called without arguments or with `num_classes`."""
    factory = imported(spec, "a factory")
    if asked.checkpoint is None and not asked.random:
        raise ModelError(
            f"{spec!r} builds a module, and nothing says that its weights are trained: give them "
            "with --checkpoint"
        )
    module, loose, facts = from_factory(factory, asked)
    prepare, settings = preparation(asked)
    facts = {"origin": "torch", **facts}
    classifier = assembled(module, asked, prepare, settings, loose, spec, facts)
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": "torch", "name": spec, **asked.recipe()}
    return classifier


def from_factory(
    factory: Callable[..., nn.Module], asked: Asked
) -> tuple[nn.Module, dict[str, str], dict[str, Any]]:
    """(module, what was not filled, facts), with the asked checkpoint in it."""
    weights, facts = None, {}
    if asked.checkpoint is not None:
        path, _, entry = str(asked.checkpoint).partition("#")
        checkpoint = read(Path(path).expanduser(), entry or None, trust=asked.trust)
        weights = checkpoint.weights
        facts = {
            "checkpoint": f"{path}#{checkpoint.where}" if checkpoint.where else path,
            "other_copies": list(checkpoint.others),
        }
    try:
        module, loose = built(factory, weights)
    except TypeError as error:
        raise ModelError(f"the factory cannot be called: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"the factory gave {type(module).__name__}, not a torch module")
    return module.eval(), loose, facts


def assembled(
    module: nn.Module,
    asked: Asked,
    prepare: Prepare,
    settings: dict[str, Any],
    loose: Mapping[str, str],
    spec: str,
    facts: dict[str, Any] | None = None,
) -> ModuleClassifier:
    """Put the parts together, and refuse weights that do not fill the module.

    Raises:
        ModelError: the module does not take what the preprocessing gives.
        IncompleteWeights: each parameter on the way to the logits that was not loaded is named.
    """
    if asked.kind not in (None, *KINDS):
        raise UsageError(f"kind {asked.kind!r} is not known; choose one of {', '.join(KINDS)}")
    classifier = ModuleClassifier(
        spec=spec,
        modality=asked.modality or ("audio" if asked.sample_rate else "image"),
        kind=asked.kind or SINGLE_LABEL,
        labels=(),
        rate=asked.sample_rate,
        frames=None,
        module=module,
        base=None,
        prepare=prepare,
        settings=settings,
        seconds=asked.seconds,
        facts=facts or {},
    )
    classifier.batched = _gives_batches(classifier)
    n_logits = require_filled(module, classifier.example().tensors, loose, (), spec)
    classifier.labels = complete_labels(label_names(asked.labels, n_logits), n_logits)
    return classifier


def _gives_batches(classifier: ModuleClassifier) -> bool:
    """Whether the preprocessing gives a batch axis of one itself: tried, not guessed."""
    errors: list[tuple[Mapping[str, Tensor], Exception]] = []
    for batched in (False, True):
        tensors = replace(classifier, batched=batched).example().tensors
        if batched and any(tensor.shape[:1] != (1,) for tensor in tensors.values()):
            continue
        try:
            with torch.no_grad():
                classifier.module(**tensors)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            errors.append((tensors, error))
        else:
            return batched
    taken, first = errors[0]
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in taken.items())
    raise ModelError(
        f"{type(classifier.module).__name__} does not take what its preprocessing gives "
        f"({given}): {first_line(first)}"
    ) from first


def label_names(labels: Sequence[str] | str | Path | None, n_logits: int) -> list[str]:
    """The labels that were given: names, or a file with one a line.

    Raises:
        UsageError: there are more or fewer of them than logits.
    """
    if labels is None:
        return []
    if isinstance(labels, str | Path):
        path = Path(labels).expanduser()
        if not path.is_file():
            raise UsageError(f"no file of labels {str(path)!r}")
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    else:
        names = [str(name) for name in labels]
    if len(names) != n_logits:
        raise UsageError(f"{len(names)} labels were given, and the model has {n_logits} classes")
    return names


def preparation(asked: Asked) -> tuple[Prepare, dict[str, Any]]:
    """The user's own preprocessing and what tells it from another one: its source.

    Without one, audio goes in as samples; anything else needs one.
    """
    prepare = asked.preprocess
    if isinstance(prepare, str):
        prepare = imported(prepare, "a preprocessing function")
    if prepare is None:
        if asked.sample_rate is None:
            raise UsageError(
                "nothing says how an item is prepared for this model: give "
                "--preprocess package.module:function, or --sample-rate if it takes raw samples"
            )
        return torch.from_numpy, {"samples": asked.sample_rate}
    return prepare, {"rate": asked.sample_rate, "source": source_of(prepare)}


def source_of(function: Callable[..., Any]) -> str:
    """Hash of the file that a function comes from, so that a change of it is a change."""
    target = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(target if hasattr(target, "__code__") else type(target))
        text = Path(path).read_bytes() if path else inspect.getsource(target).encode()
    except (TypeError, OSError):
        text = repr(target).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def imported(spec: str, what: str) -> Callable[..., Any]:
    """`package.module:name` → the object; the current folder is looked in too.

    Raises:
        ModelError: there is no such module or name, or it cannot be called.
    """
    import sys

    module, colon, name = spec.partition(":")
    if not colon or not name:
        raise ModelError(f"{what} is named as package.module:function, received {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{what} {spec!r} cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise ModelError(f"{what} {spec!r} is a {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]
