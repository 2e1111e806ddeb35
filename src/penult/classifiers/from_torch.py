"""Open any torch module as a classifier: one that is at hand, or one that a factory builds.

What a bare module cannot say, the caller says: class names, preprocessing, sample rate. timm's and
torchvision's models are opened through here too.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.classifiers.asked import Asked, Prepare, class_names_of, imported, preparation
from penult.classifiers.base import (
    SINGLE_LABEL,
    Classifier,
    Inputs,
    complete_labels,
    digest,
    weights_digest,
)
from penult.classifiers.checkpoints import built, read, require_filled
from penult.classifiers.examples import content_of
from penult.classifiers.fitting import BATCHED, CHANNEL, fitting
from penult.errors import ModelError, UsageError, first_line

FILE = "classifier.json"
WEIGHTS = "model.safetensors"


@dataclass(eq=False, repr=False)
class ModuleClassifier(Classifier):
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
    fit: str = ""  # what is done to what `prepare` gives: a batch axis, or another one before it
    weigh: Callable[[], str] | None = None  # hash of the weights, where the state has not all
    engine: str = "torch"
    output: str | int | None = None  # which of several holds the logits

    @property
    def holds(self) -> float | None:
        """Seconds in an input of fixed length; see `Classifier.holds`."""
        return self.seconds

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
        return {"": tensor[None], BATCHED: tensor, CHANNEL: tensor[None, None]}[self.fit]

    def example(self, seed: int = 0) -> Inputs:
        """Noise, or a few words, prepared as any other item."""
        return self.preprocess(content_of(self.modality, seed, self.rate, self.frames))

    def identity(self) -> dict[str, str]:
        """`weights` and `preprocessing` of the fingerprint."""
        return {
            "weights": self.weigh() if self.weigh else weights_digest(self.module),
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

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Weights as safetensors, and how to build the module around them.

        Raises:
            UsageError: the module was given as an object, or its preprocessing as a function that
                has no importable name.
        """
        folder = Path(folder)
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


def arguments(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes."""
    takes: Any = getattr(module, "takes", None)
    if takes is not None:  # what another runtime's file says of itself
        return list(takes)
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def open_module(module: Any, asked: Asked, spec: str = "") -> ModuleClassifier:
    """A model that is at hand, with its weights in it: torch, TorchScript, torch.export, Keras."""
    if isinstance(module, torch.jit.ScriptModule):
        from penult.classifiers.from_torchscript import open_scripted

        return open_scripted(module, asked, spec or "a TorchScript module")
    if is_keras(module):
        from penult.classifiers.from_keras import open_model

        return open_model(module, asked, spec or type(module).__name__)
    if isinstance(module, torch.export.ExportedProgram):
        from penult.classifiers.from_export import open_program

        return open_program(module, asked, spec or "an exported program")
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
    asked.require_kind()
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
        output=asked.which,
        facts=facts or {},
    )
    raw = asked.sample_rate is not None and asked.preprocess is None
    classifier.fit = fitting(classifier, raw)
    n_logits = require_filled(
        module, classifier.example().tensors, loose, (), spec, classifier.output
    )
    classifier.labels = complete_labels(class_names_of(asked.class_names, n_logits), n_logits)
    return classifier


def from_file(
    classifier: ModuleClassifier, path: Path, origin: str, asked: Asked
) -> ModuleClassifier:
    """Remember the file that a classifier was opened from: it is saved as it is."""
    classifier.facts["file"] = path.name
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": origin, "name": path.name, **asked.recipe()}
        classifier.files = [path]
    return classifier


def is_keras(model: Any) -> bool:
    """Whether an object is a model of Keras; nothing is imported to tell."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, getattr(keras, "Layer", ()))
