"""A torch module as a classifier: assembled, its batch axis tried, its steadiness measured."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.errors import HeadNotFound, ModelError, PenultError, UsageError, first_line
from penult.models.base import (
    SINGLE_LABEL,
    Classifier,
    Inputs,
    complete_labels,
    digest,
    weights_digest,
)
from penult.models.checkpoints import built, read, require_filled
from penult.models.options import LoadOptions, Prepare, class_names_of
from penult.models.synthetic import content_of
from penult.tracing.head import floats_of, logits_of

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# What is done to what the preprocessing gives; nothing is: a batch axis is put in front.
BATCHED, CHANNEL = "batched", "channel"

# What a preprocessing is given of each modality.
_ITEMS = {
    "audio": "samples (n,) of float32",
    "image": "a PIL image",
    "video": "frames (n, height, width, 3) of uint8",
    "text": "a string",
}

# What modules raise for an input that they do not take.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError)


def fitting(classifier: ModuleClassifier, raw: bool) -> str:
    """Whether what is prepared has a batch axis already, or raw sound needs one of channels.

    Tried, not guessed. raw: samples go in as they are.

    Raises:
        ModelError: the module takes it in no way.
    """
    errors: list[tuple[Mapping[str, Tensor], Exception]] = []
    for fit in ("", CHANNEL) if raw else ("", BATCHED):
        tensors = _example(replace(classifier, fit=fit))
        if any(tensor.shape[:1] != (1,) for tensor in tensors.values()):
            continue
        try:
            with torch.no_grad():
                output = classifier.module(**tensors)
        except _REFUSALS as error:
            errors.append((tensors, error))
            continue
        if not raw or _one_row(output, classifier.output):
            return fit
        # A convolution takes (1, n) for one channel without a batch.
        errors.append((tensors, ValueError("what it gives has no batch axis of one")))
    taken, first = errors[0]
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in taken.items())
    raise ModelError(
        f"{classifier.facts.get('class', type(classifier.module).__name__)} does not take what its "
        f"preprocessing gives ({given}): {_innermost(first)}"
    ) from first


def _example(classifier: ModuleClassifier) -> Mapping[str, Tensor]:
    try:
        return classifier.example().tensors
    except PenultError:
        raise
    except Exception as error:  # the caller's own function may raise anything
        raise UsageError(
            f"the preprocessing does not take {_ITEMS[classifier.modality]}: "
            f"{type(error).__name__}: {first_line(error)}. If it is not made for "
            f"{classifier.modality} items, say which with --modality"
        ) from error


def _one_row(output: Any, which: str | int | None) -> bool:
    try:
        return logits_of(output, which).shape[:1] == (1,)
    except HeadNotFound:  # which of several outputs is meant is for others to say
        return True


def _innermost(error: Exception) -> str:
    """What is worth showing of an error: TorchScript and Keras say first where it was."""
    text = _COLOURS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("RuntimeError:", "AssertionError:"))]
    if told:
        return told[-1].partition(": ")[2]
    rest = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return (rest or lines or [type(error).__name__])[0][:300]


def require_steady(classifier: ModuleClassifier, instead: str) -> None:
    """Refuse a model that was saved as it was in training, with dropout or statistics at work.

    Raises:
        ModelError: the same input gives other scores, or a pass changes the weights.
    """
    tensors = classifier.example().tensors
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    with torch.no_grad():
        first, second = (floats_of(classifier.module(**tensors)) for _ in range(2))
    after = classifier.module.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed or not all(map(_equal, first, second)):
        what = f"a pass changes {changed[0]}" if changed else "the same input gives other scores"
        raise ModelError(
            f"{classifier.spec} was saved in training mode ({what}, every time it is asked): "
            f"{instead}"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


FILE = "classifier.json"
WEIGHTS = "model.safetensors"


@dataclass(eq=False, repr=False)
class ModuleClassifier(Classifier):
    """A torch module and what it takes to feed it; see `penult.models.base.Classifier`."""

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


def from_factory(
    factory: Callable[..., nn.Module], asked: LoadOptions
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
    asked: LoadOptions,
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
    classifier: ModuleClassifier, path: Path, origin: str, asked: LoadOptions
) -> ModuleClassifier:
    """Remember the file that a classifier was opened from: it is saved as it is."""
    classifier.facts["file"] = path.name
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": origin, "name": path.name, **asked.recipe()}
        classifier.files = [path]
    return classifier
