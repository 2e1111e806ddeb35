"""Preparations that need no library of models: a checkpoint's settings carried out in numpy, used
only where they give what the checkpoint's own preprocessing gives, measured on made-up items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.models.base import Classifier, Inputs
from penult.models.synthetic import noise

Preparation = Callable[[Any], Inputs | None]  # None: the library's own is needed for this item

TOKENIZER = "tokenizer.json"
_EXACT = 1e-6  # relative to the largest value, or to 1: normalised values are about as large
_CHARACTERS = 16  # for each token that is kept; a longer text is left to the tokenizer's own rules
_TEXTS = (
    "a", "Eight words, of which none is very long.", "  two   blanks\tand a tab\nand a line  ",
    "ÄÖÜ ß é ñ — “quotes” … 東京 Москва שלום 👩‍🔬", "1,234.56 % of €99 <b>tags</b> [MASK] [SEP]",
    "aVeryLongWordThatNoVocabularyHasInOnePiece" * 4, "word " * 3_000,
)  # fmt: skip


def plain_form(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """How a checkpoint's items are prepared without its library; None where that gives anything
    else on made-up items, or is not known."""
    find, items = _OF_MODALITY.get(classifier.modality, (None, None))
    if find is None or items is None:
        return None
    try:
        form: dict[str, Any] | None = find(classifier, folder)
        if form is None:
            return None
        prepare = preparation(form)
        prepared = [(item, prepare(item)) for item in items(classifier)]
    except Exception:  # settings that mean something to the library alone
        return None
    for item, found in prepared:
        if found is not None and not _alike(found, classifier.preprocess(item)):
            return None
    return form


def preparation(form: Mapping[str, Any]) -> Preparation:
    """The function of a form. Raises KeyError or OSError for one that is not known here."""
    if form["name"] == "waveform":
        return partial(_of_samples, bool(form["normalised"]), bool(form["mask"]))
    if form["name"] == "pixels":
        return _Pixels(form["settings"])
    if form["name"] == "tokens":
        return _TokenRules(_rules(form), form["names"], form["longest"])
    raise KeyError(form["name"])


def _waveform(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """Samples as they are, or each clip with mean 0 and deviation 1."""
    settings = _settings(classifier)
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
    preparer = classifier._preparer
    rules = preparer.rules() if hasattr(preparer, "rules") else None
    words = preparer.truncation().split()  # `first 512 tokens`
    example = classifier.preprocess("a")
    if rules is None or not set(example.tensors) <= set(_PARTS):
        return None
    longest = int(words[1]) if words[0] == "first" else None
    if longest is not None and not classifier.input.beginning:  # it keeps others than the first
        return None
    file = folder / TOKENIZER
    # Other files may add tokens to those of this one.
    short, whole = {"file": str(file)}, {"rules": rules}
    same = file.is_file() and _rules(short).to_str() == _rules(whole).to_str()
    own = short if same else whole
    return {"name": "tokens", **own, "names": [*example.tensors], "longest": longest}


# The names of a model's inputs, and what an encoded text calls them.
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def _rules(form: Mapping[str, Any]) -> Any:
    """A tokenizer by its `file`, or by the `rules` that stand in one; it neither cuts nor pads."""
    from tokenizers import Tokenizer

    written = "rules" in form
    found = Tokenizer.from_str(form["rules"]) if written else Tokenizer.from_file(form["file"])
    found.no_padding()
    found.no_truncation()
    return found


class _TokenRules:
    """A text as its token ids, by a tokenizer's rules."""

    def __init__(self, rules: Any, names: list[str], longest: int | None) -> None:
        self._rules, self._names, self._longest = rules, names, longest
        if longest is not None:
            self._rules.enable_truncation(longest)

    def __call__(self, content: Any) -> Inputs | None:
        longest = self._longest
        if longest is not None and len(content) > _CHARACTERS * longest:
            return None
        found = self._rules.encode(content)
        rows = {name: np.array([getattr(found, _PARTS[name])], np.int64) for name in self._names}
        return Inputs(rows, float(longest) if longest is not None and found.overflowing else None)


def _pixels(classifier: Classifier, folder: Path) -> dict[str, Any] | None:
    """Resized, cut out in the middle, rescaled, normalised."""
    settings = _settings(classifier)
    names = (
        "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale",
        "rescale_factor", "do_normalize", "image_mean", "image_std",
    )  # fmt: skip
    return {"name": "pixels", "settings": {name: settings.get(name) for name in names}}


class _Pixels:
    """A picture as its pixel values (1, 3, height, width), by an image processor's settings.

    Resizing is torchvision's of whole numbers: along one axis after the other, with weights of 16
    bits and results rounded to 8.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        if settings["do_resize"] and settings["resample"] not in _FILTERS:
            raise KeyError(settings["resample"])

    def __call__(self, content: Any) -> Inputs | None:
        own, pixels = self._settings, np.asarray(content)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            return None
        if own["do_resize"]:
            size = _new_size(own["size"], pixels.shape[0], pixels.shape[1])
            pixels = _resized(pixels, size, int(own["resample"]))
        if own["do_center_crop"]:
            found = _middle(pixels, own["crop_size"])
            if found is None:
                return None
            pixels = found
        values = pixels.astype(np.float32)
        if own["do_rescale"]:
            values = values * np.float32(own["rescale_factor"])
        if own["do_normalize"]:
            values = (values - np.float32(own["image_mean"])) / np.float32(own["image_std"])
        return Inputs({"pixel_values": np.ascontiguousarray(values.transpose(2, 0, 1)[None])})


def _new_size(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    if "height" in size:
        return int(size["height"]), int(size["width"])
    short = int(size["shortest_edge"])
    long = int(short * max(height, width) / min(height, width))
    return (short, long) if height <= width else (long, short)


def _middle(pixels: npt.NDArray[Any], size: Mapping[str, int]) -> npt.NDArray[Any] | None:
    """The middle of a picture; None where it is smaller."""
    height, width = int(size["height"]), int(size["width"])
    if height > pixels.shape[0] or width > pixels.shape[1]:
        return None
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _linear(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1 - distance, 0)


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


_FILTERS = {2: (_linear, 1), 3: (_cubic, 2)}  # Pillow's numbers → filter, its reach in pixels
_BITS = 15  # of a weight, its sign aside
_MOST_BITS = 22
_TOGETHER = 1 << 22  # values that are eight times as large meanwhile


@lru_cache(maxsize=8)  # of a large picture some megabytes each
def _weights(size: int, new: int, resample: int) -> tuple[npt.NDArray[np.float64], int]:
    """(new, size) weights of the old pixels for the new ones, whole numbers; and by how many bits
    they are too large."""
    shape, reach = _FILTERS[resample]
    scale = size / new
    wide = max(scale, 1.0)
    weights = np.zeros((new, size))
    for at in range(new):
        middle = scale * (at + 0.5)
        first = max(int(middle - reach * wide + 0.5), 0)
        last = min(int(middle + reach * wide + 0.5), size)
        row = shape(np.abs((np.arange(first, last) - middle + 0.5) / wide))
        weights[at, first:last] = row / row.sum()
    bits, largest = 0, float(weights.max())
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << _BITS:
        bits += 1
    return np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)), bits


def _resized(
    pixels: npt.NDArray[np.uint8], size: tuple[int, int], resample: int
) -> npt.NDArray[np.uint8]:
    """Along the width first."""
    for axis, new in ((1, size[1]), (0, size[0])):
        if pixels.shape[axis] != new:
            count = max(1, pixels.size // _TOGETHER)
            parts = np.array_split(pixels, count, axis=1 - axis)
            pixels = np.concatenate(
                [_resized_along(part, axis, new, resample) for part in parts], axis=1 - axis
            )
    return pixels


def _resized_along(
    pixels: npt.NDArray[np.uint8], axis: int, new: int, resample: int
) -> npt.NDArray[np.uint8]:
    """Sums of whole numbers are exact in float64."""
    weights, bits = _weights(pixels.shape[axis], new, resample)
    sums = np.moveaxis(np.tensordot(weights, pixels.astype(np.float64), (1, axis)), 0, axis)
    rounded = np.floor((sums + (1 << (bits - 1))) / (1 << bits))
    return np.clip(rounded, 0, 255).astype(np.uint8)


_SIZES = ((240, 320), (224, 224), (333, 501), (90, 71), (37, 401), (1001, 777))


def _pictures(classifier: Classifier) -> list[Any]:
    """Noise, and smooth slopes with edges, which a filter's rounding shows on."""
    from PIL import Image

    random = np.random.default_rng(0)
    noisy = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
    rows, columns = np.mgrid[:200, :301]
    slope = np.stack([rows % 256, columns % 256, (rows * columns) % 256], axis=2)
    return [Image.fromarray(one) for one in (*noisy, slope.astype(np.uint8))]


def _settings(classifier: Classifier) -> Mapping[str, Any]:
    """Of what prepares its items, as the library completed them: a file of an older version names
    sizes otherwise, or leaves out what its class has."""
    settings = getattr(classifier._preparer, "settings", dict)
    found: Mapping[str, Any] = settings()
    return found


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
        elif not np.abs(value - own).max(initial=0) <= _EXACT * np.abs(own).max(initial=1.0):
            return False  # or it is no number
    return True


_OF_MODALITY: dict[str, tuple[Any, Any]] = {
    "audio": (_waveform, _sounds),
    "image": (_pixels, _pictures),
    "text": (_tokens, lambda classifier: _TEXTS),
}
