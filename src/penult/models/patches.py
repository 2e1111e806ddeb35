"""Patches of one item, where a preprocessing gives several inputs for it: how they become rows, and
when in a recording each of them lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.errors import REFUSALS, TooShort, UsageError
from penult.models.base import Classifier, Inputs, InputSpec
from penult.models.synthetic import content_of, noise

MEAN, MAX, ROWS = PATCHES = ("mean", "max", "rows")
TIMES = "patch_times"  # the name under which a preprocessing gives (n, 2): first and last second

_SIZES = (1, 2, 4, 8, 16, 32)  # seconds of made-up sound, until one holds a patch
_SAME = 1e-5  # relative to the largest value: a sum of other samples in another order


def patches_refused(name: str, shape: Sequence[int]) -> str:
    """The words for a preprocessing that gives several patches of one item, unasked."""
    count = shape[0] if shape else 0
    return (
        f"the preprocessing gives {name} of shape {tuple(shape)}: {count} patches for one item, "
        "where the model's first axis counts items. One item has one row: pool its patches "
        "(--patches mean or --patches max), or keep a row for each (--patches rows). Else each "
        "item has to be one patch: cut recordings with --window into parts as long as a patch, or "
        "let the preprocessing return the one patch without a first axis"
    )


def patched(tensors: Mapping[str, Any], truncated: float | None, times: Any = None) -> Inputs:
    """Prepared patches of one item, none or more. times: of each, as the preprocessing gives them.

    Raises:
        UsageError: tensors with other first axes, or times that are none.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UsageError(
            f"the preprocessing gives {given or 'nothing'}: with --patches the first axis of each "
            "tensor counts the patches of an item, and has to be of one length"
        )
    count = next(iter(shapes.values()))[0]
    return Inputs(tensors, truncated, None if times is None else _times(times, count))


def _times(times: Any, count: int) -> tuple[tuple[float, float], ...]:
    try:
        found = np.asarray(times, np.float64)
    except (TypeError, ValueError):
        found = np.empty(())
    fine = found.shape == (count, 2) and np.isfinite(found).all()
    if not fine or (found[:, 0] < 0).any() or (found[:, 1] <= found[:, 0]).any():
        raise UsageError(
            f"the preprocessing gives {TIMES} of shape {found.shape} for {count} patches: it has "
            "to be (n, 2), the first and the last second of each patch"
        )
    return tuple((float(start), float(end)) for start, end in found)


def first_input(classifier: Classifier, content: Any) -> Inputs:
    """Decoded content as one input of the model: its first patch, where there are several.

    Raises:
        TooShort: it gives no patch.
    """
    inputs = classifier.preprocess(content)
    return inputs if classifier.input.patches is None else _first(inputs)


def _first(inputs: Inputs) -> Inputs:
    parts = inputs.divided()
    if not parts:
        raise TooShort("the preprocessing gives no patch of it")
    return parts[0]


def example_patch(prepare: Callable[[Any], Inputs], spec: InputSpec, seed: int) -> Inputs:
    """The first patch of a synthetic item; of sound and text the shortest of some that has one.

    Raises:
        Exception: what the preprocessing raised for the longest of them.
    """
    sizes = _SIZES if spec.modality in ("audio", "text") else _SIZES[:1]
    for size in sizes:
        try:
            return _first(prepare(content_of(spec.modality, seed, spec.rate, spec.frames, size)))
        except UsageError:
            raise
        except REFUSALS:  # the preprocessing is anyone's, and may not take short ones
            if size == sizes[-1]:
                raise
    raise AssertionError("the last size returns or raises")


def pooled(patches: str, values: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """The same vector, or the logits, of each patch as those of their item: the mean, or the
    maximum number by number. The order of the patches counts for nothing but the last digit."""
    stacked = np.stack([np.asarray(value, np.float64) for value in values])
    found = stacked.max(axis=0) if patches == MAX else stacked.mean(axis=0)
    return np.asarray(found, np.float32)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Patches that begin one hop after the other, at the beginning of the clip. hop, length: in
    samples. rate: samples per second."""

    hop: int
    length: int
    rate: int

    def times(self, patch: int, seconds: float) -> tuple[float, float]:
        """The first and the last second of a patch in a clip of so many seconds; behind the clip is
        padding."""
        start = round(patch * self.hop / self.rate, 6)
        end = round(start + self.length / self.rate, 3)
        return start, max(min(end, round(seconds, 6)), start)


def find_grid(prepare: Callable[[Any], Inputs], rate: int) -> PatchGrid | None:
    """When patches begin, measured on noise: the hop is how much longer a clip with one patch more
    is, and it is held against the patches themselves: patch k does not change with the samples
    before k hops, and changes with those behind. None where they lie otherwise (the last one moved
    to the end, values normalised over the whole clip, a fixed number of patches).
    """
    clips: dict[int, npt.NDArray[np.float32]] = {}

    def clip(size: int) -> npt.NDArray[np.float32]:
        needed = 1 << max(size, rate).bit_length()
        if needed not in clips:
            clips[needed] = noise(0, needed / rate, rate)
        return clips[needed][:size]

    def count(size: int) -> int:
        try:
            return len(prepare(clip(size)).divided())
        except REFUSALS:
            return 0

    longest = rate
    while count(longest) < _COUNTED:
        longest *= 2
        if longest > _SIZES[-1] * rate:
            return None
    second, third = (_fewest(lambda n, k=k: count(n) >= k, longest) for k in (2, 3))  # type: ignore[misc]
    hop = third - second
    if hop <= 0 or count(third + hop) != _COUNTED or count(third + hop - 1) != _COUNTED - 1:
        return None
    size = third + hop + hop // 2
    same = _Unchanged(prepare, noise(0, size / rate, rate), noise(1, size / rate, rate))
    slack = hop // 4  # frames that are centred on their time begin before it
    for patch in range(1, same.count):
        begin = patch * hop
        if not same(patch, 0, begin - slack) or same(patch, 0, begin + slack):
            return None
    length = _fewest(lambda n: same(0, n, size), size)
    return PatchGrid(hop, length, rate) if same.count == _COUNTED and length < size else None


_COUNTED = 4  # patches in the longest clip


def _fewest(holds: Callable[[int], bool], high: int) -> int:
    """The smallest number from 1 to `high` that holds; all above it do, `high` too."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class _Unchanged:
    """Whether a patch of a clip stays as it is where some samples are those of another clip."""

    def __init__(
        self,
        prepare: Callable[[Any], Inputs],
        clip: npt.NDArray[np.float32],
        other: npt.NDArray[np.float32],
    ) -> None:
        self._prepare, self._clip, self._other = prepare, clip, other
        self._parts = prepare(clip).divided()
        self.count = len(self._parts)

    def __call__(self, patch: int, start: int, end: int) -> bool:
        mixed = self._clip.copy()
        mixed[start:end] = self._other[start:end]
        try:
            parts = self._prepare(mixed).divided()
        except REFUSALS:
            return False
        if len(parts) != self.count:
            return False
        pairs = zip(self._parts[patch].tensors.values(), parts[patch].tensors.values(), strict=True)
        return all(_alike(np.asarray(one), np.asarray(two)) for one, two in pairs)


def _alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    a, b = (np.asarray(value, np.float64) for value in (one, other))
    return bool(np.abs(a - b).max(initial=0.0) <= _SAME * np.abs(a).max(initial=1e-30))
