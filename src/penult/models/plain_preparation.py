"""Preparations that need no library of models: a checkpoint's settings carried out in numpy, used
only where they give what the checkpoint's own preprocessing gives, measured on made-up items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.models.base import Classifier, Inputs
from penult.models.synthetic import noise

Arrays = Mapping[str, npt.NDArray[Any]]
Preparation = Callable[[Any], Inputs | None]  # None: the library's own is needed for this item

SETTINGS, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
_EXACT = 1e-6  # relative to the largest value
_CHARACTERS = 16  # for each token that is kept; a longer text is left to the tokenizer's own rules
_TEXTS = (
    "a", "Eight words, of which none is very long.", "  two   blanks\tand a tab\nand a line  ",
    "ÄÖÜ ß é ñ — “quotes” … 東京 Москва שלום 👩‍🔬", "1,234.56 % of €99 <b>tags</b> [MASK] [SEP]",
    "aVeryLongWordThatNoVocabularyHasInOnePiece" * 4, "word " * 3_000,
)  # fmt: skip


def plain_form(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """How a checkpoint's items are prepared without its library; None where that gives anything
    else on made-up items, or is not known."""
    find, items = {"audio": (_waveform, _sounds), "text": (_tokens, _texts)}.get(
        classifier.modality, (None, None)
    )
    form = None if find is None else find(classifier, folder)
    if form is None or items is None:
        return None
    prepare = preparation(form)
    for item in items(classifier):
        found = prepare(item)
        if found is not None and not _alike(found, classifier.preprocess(item)):
            return None
    return form


def preparation(form: Mapping[str, Any]) -> Preparation:
    """The function of a form. Raises KeyError or OSError for one that is not known here."""
    if form["name"] == "waveform":
        return partial(_of_samples, bool(form["normalised"]), bool(form["mask"]))
    if form["name"] == "tokens":
        return _TokenRules(Path(form["file"]), form["names"], form["longest"])
    raise KeyError(form["name"])


def _waveform(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """Samples as they are, or each clip with mean 0 and deviation 1."""
    settings = _settings(folder)
    names = ("feature_extractor_type", "do_normalize", "return_attention_mask")
    kind, normalised, mask = (settings.get(name) for name in names)
    if kind != "Wav2Vec2FeatureExtractor" or classifier.input.seconds is not None:
        return None
    return {"name": "waveform", "normalised": bool(normalised), "mask": bool(mask)}


def _of_samples(normalised: bool, mask: bool, samples: Any) -> Inputs:
    values = np.asarray(samples, np.float32)
    if normalised:
        values = (values - values.mean()) / np.sqrt(values.var() + 1e-7)
    tensors = {"input_values": values[None].astype(np.float32)}
    if mask:
        tensors["attention_mask"] = np.ones((1, len(values)), np.int64)
    return Inputs(tensors)


def _sounds(classifier: Classifier) -> list[Any]:
    rate = classifier.rate or 1
    sounds = [noise(seed, seconds, rate) for seed, seconds in enumerate((0.05, 0.313, 1.0, 2.77))]
    return [*sounds, 0.001 * sounds[1], sounds[2] + 0.5, np.zeros(rate // 4, np.float32)]


def _tokens(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """Token ids by the checkpoint's own rules."""
    file = folder / TOKENIZER
    words = classifier._preparer.truncation().split()  # `first 512 tokens`
    example = classifier.preprocess("a")
    if not file.is_file() or not set(example.tensors) <= set(_PARTS):
        return None
    longest = int(words[1]) if words[0] == "first" else None
    names = [*example.tensors]
    return {"name": "tokens", "file": str(file), "names": names, "longest": longest}


# The names of a model's inputs, and what an encoded text calls them.
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class _TokenRules:
    """A text as its token ids, by the rules in tokenizer.json."""

    def __init__(self, file: Path, names: list[str], longest: int | None) -> None:
        from tokenizers import Tokenizer

        self._rules, self._names, self._longest = Tokenizer.from_file(str(file)), names, longest
        self._rules.no_padding()
        if longest is None:
            self._rules.no_truncation()
        else:
            self._rules.enable_truncation(longest)

    def __call__(self, content: Any) -> Inputs | None:
        longest = self._longest
        if longest is not None and len(content) > _CHARACTERS * longest:
            return None
        found = self._rules.encode(content)
        rows = {name: np.array([getattr(found, _PARTS[name])], np.int64) for name in self._names}
        return Inputs(rows, float(longest) if longest is not None and found.overflowing else None)


def _texts(classifier: Classifier) -> list[str]:
    return [*_TEXTS]


def _settings(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alike(found: Inputs, expected: Inputs) -> bool:
    """Whether two preparations of one item are the same: whole numbers to the bit."""
    if found.tensors.keys() != expected.tensors.keys() or found.truncated != expected.truncated:
        return False
    for name, value in found.tensors.items():
        own = np.asarray(expected.tensors[name])
        if value.shape != own.shape or (value.dtype.kind != own.dtype.kind):
            return False
        if value.dtype.kind != "f":
            if not np.array_equal(value, own):
                return False
        elif np.abs(value - own).max(initial=0) > _EXACT * np.abs(own).max(initial=1e-30):
            return False
    return True
