"""Re-encodings of items: how similar their vectors are to those of the items themselves, and
whether two decoded items are the same content by their signals.

Knows an embedder and how to run it; no collection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from penult.analysis.space import Space, unit
from penult.data.corruptions import PICTURE, SOUND
from penult.data.items import Failure
from penult.data.objects import item_of
from penult.data.regions import WHOLE
from penult.embedding.embedder import Embedder, native_runner

Similarities = npt.NDArray[np.float64]
_SHIFT = 0.02  # of a recording's length
_SAME_SOUND = 0.8  # highest correlation of two waveforms over all shifts: the same recording
_SAME_PICTURE = 0.9  # correlation of two grey pictures of 32 × 32
_SIDE = 32
_TILES = 4  # to either side, of which half have such a correlation where a part is another one
_FLAT = 2.0  # of 255: deviation in a tile, below which nothing correlates


def _shifted(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    return samples[round(_SHIFT * len(samples)) :]


# What a copy of an item may have gone through, and still is the same recording or picture.
REENCODINGS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "audio": {
        **{name: SOUND[name] for name in ("Vorbis, lowest", "half the rate", "level -20 dB")},
        "2 % cut off": _shifted,
    },
    "image": {
        name: PICTURE[name]
        for name in ("JPEG 20", "half the size", "cropped by 5 %", "brightness 0.6")
    },
}


def reencoded(embedder: Embedder, values: Sequence[Any], space: Space) -> dict[str, Similarities]:
    """By re-encoding the cosines (m,) in a space between each item's vector and that of its
    re-encoded copy; NaN where one cannot be embedded. values: decoded sounds or pictures."""
    modality, rate = embedder.classifier.modality, embedder.classifier.rate
    base = _vectors(embedder, values, space)
    found = {}
    for name, change in REENCODINGS[modality].items():
        changed = [change(one, rate) if modality == "audio" else change(one) for one in values]
        found[name] = (base * _vectors(embedder, changed, space)).sum(axis=1)
    return found


def _vectors(embedder: Embedder, values: Sequence[Any], space: Space) -> npt.NDArray[np.float64]:
    """(m, d) of length one, NaN where an item failed."""
    modality, rate = embedder.classifier.modality, embedder.classifier.rate
    items = [item_of((one, rate) if modality == "audio" else one, modality, at)
             for at, one in enumerate(values)]  # fmt: skip
    found: dict[str, npt.NDArray[np.float64]] = {}  # by id, which is that of the values
    runner = native_runner(embedder)
    with closing(runner.stream([(item, WHOLE) for item in items], logits=False)) as outcomes:
        for one in outcomes:
            if not isinstance(one, Failure):
                found[one.item.id] = np.asarray(one.vector, np.float64)
    missing = np.full(space.dim, np.nan)
    rows = np.stack([found.get(item.id, missing) for item in items])
    return np.asarray(unit(space(rows)), np.float64)


def is_same_content(one: Any, other: Any, modality: str) -> bool:
    """Whether two decoded items are the same recording or picture by their signals, whatever their
    level, codec or size; of a picture a part may be another one, as where one was pasted in."""
    if modality == "audio":
        from scipy.signal import fftconvolve

        first, second = (np.asarray(samples, np.float64) for samples in (one, other))
        norms = np.linalg.norm(first) * np.linalg.norm(second)
        if not norms > 0:
            return bool(np.linalg.norm(first) == np.linalg.norm(second))
        return bool(np.abs(fftconvolve(first, second[::-1])).max() >= _SAME_SOUND * norms)
    small = [np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX),
             np.float64) for picture in (one, other)]  # fmt: skip
    if any(np.ptp(values) == 0 for values in small):
        return bool(np.ptp(small[0]) == np.ptp(small[1]))
    if np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] >= _SAME_PICTURE:
        return True
    tiles = [values.reshape(_TILES, -1, _TILES, _SIDE // _TILES).swapaxes(1, 2) for values in small]
    pairs = zip(*(values.reshape(_TILES**2, -1) for values in tiles), strict=True)
    same = [bool(np.corrcoef(a, b)[0, 1] >= _SAME_PICTURE) for a, b in pairs
            if a.std() > _FLAT and b.std() > _FLAT]  # fmt: skip
    return 2 * len(same) >= _TILES**2 and 2 * sum(same) >= len(same)
