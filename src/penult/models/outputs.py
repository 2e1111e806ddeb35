"""The shape of a classifier's output: a vector of classes, or one for each frame, and no map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from penult.errors import ModelError

# Numbers from which an axis as long as the input's is taken for the same axis: behind frames, and
# where the input is sound itself.
_LONG, _SOUND = 100, 1000
_WANTED = {
    "image": "(items, classes)",
    "audio": "(items, classes), or (items, frames, classes) for scores of frames",
    "video": "(items, classes), or (items, frames, classes) for scores of frames",
    "text": "(items, classes), or (items, tokens, classes) for scores of tokens",
}


def require_classes(
    shape: Sequence[int], inputs: Mapping[str, Any], modality: str, spec: str
) -> None:
    """Refuse what is no vector of classes: the map of a detector or a segmenter, patches, a sound.

    shape: of one item's logits, its first axis that of the items. inputs: its tensors, by name.

    Raises:
        ModelError: the shape, and what would work.
    """
    require_no_map(shape, inputs, modality, spec)
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:  # (items, classes, 1, 1)
        sizes.pop()
    inner = [size for size in sizes[1:-1] if size > 1]
    if inner and (modality == "image" or len(sizes) > 3):
        raise _refused(shape, modality, spec, f"{len(inner) + 1} axes lie behind that of the items")
    for name, value in inputs.items():
        taken = [size for size in tuple(value.shape)[1:] if size > 1]
        is_sound = modality == "audio" and taken == sizes[1:] and sizes[-1] >= _SOUND
        behind = len(sizes) > 2 and sizes[-1] >= _LONG and sizes[-1] in taken
        if is_sound or (behind and sizes[1] not in taken):
            why = f"its last axis is as long as one of the input {name}, {tuple(value.shape)}"
            raise _refused(shape, modality, spec, why)


def require_no_map(
    shape: Sequence[int], inputs: Mapping[str, Any], modality: str, spec: str
) -> None:
    """Refuse a model of pictures that gives numbers for places; see `require_classes`.

    Raises:
        ModelError: the shape, and what would work.
    """
    if modality not in ("image", "video"):
        return
    if kept := map_of_image([value.shape for value in inputs.values()], shape):
        raise _refused(shape, modality, spec, f"a map of {kept[0]} × {kept[1]} places")


def map_of_image(inputs: Sequence[Sequence[int]], output: Sequence[int]) -> tuple[int, int] | None:
    """The rows and columns of an output (B, …) that keeps both axes of an image, as that of a
    detector or of a segmentation does, at its size or smaller by one whole factor; else None.

    inputs: shapes of what the model takes: (B, C, H, W) or (B, H, W, C) counts.
    """
    for _, *sizes in (shape for shape in inputs if len(shape) == 4):
        for height, width in (sizes[1:], sizes[:2]):
            for rows, columns in pairwise(output[1:]):
                if min(rows, columns) < 2 or height % rows or width % columns:
                    continue
                if height // rows == width // columns:
                    return rows, columns
    return None


def _refused(shape: Sequence[int], modality: str, spec: str, why: str) -> ModelError:
    return ModelError(
        f"{spec} gives {tuple(shape)} for one item: {why}, as detectors, segmenters and models of "
        "sound to sound do, and no vector of classes. A classifier gives "
        f"{_WANTED.get(modality, _WANTED['image'])}: name another output with --output, or give a "
        "module that pools these axes away, such as scores.mean((2, 3))"
    )
