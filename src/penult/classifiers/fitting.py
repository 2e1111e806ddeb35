"""Try how a module takes what is prepared for it, and whether it stays as it is when it is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penult.errors import HeadNotFound, ModelError, PenultError, UsageError, first_line
from penult.splitting.head import floats_of, logits_of

if TYPE_CHECKING:
    from penult.classifiers.from_torch import ModuleClassifier

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
