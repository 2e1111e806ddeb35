"""Levels of sound: what makes a signal none, a scale that is not ±1, channels that cancel.

Knows no files. Every refusal has its reason in numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from penult.errors import DecodeError, EmptyItem

# Mixes and recorders of floating-point sound go above 1, by a few dB; 24 dB leave room for them.
LOUDEST = 16.0
_LOUDEST_RMS = 4.0  # of a whole file: no mix is 12 dB above full scale all the time
FAINTEST = 1e-15  # what is left of a fade; no unit of any sensor is that small
CANCELLED = 60.0  # dB that the mean of two channels may lie below them
_SCALES = (2**7, 2**15, 2**23, 2**31)


@dataclass(slots=True)
class Beyond:
    """What is known of samples that were read and not kept: how many, the lowest, the highest,
    their sums, and by how much they miss whole numbers."""

    frames: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0
    fraction: float = 0.0

    def add(self, samples: np.ndarray, channels: int) -> None:
        """Take samples (n,) float32 in. channels: of which they are the mean."""
        if not len(samples):
            return
        exact = samples.astype(np.float64)
        whole = samples * np.float32(channels)
        self.frames += len(samples)
        self.low = float(np.minimum(self.low, samples.min()))  # not a number stays that
        self.high = float(np.maximum(self.high, samples.max()))
        self.total += float(exact.sum())
        self.squares += float(exact @ exact)
        with np.errstate(invalid="ignore"):  # infinite: refused for that
            missed = float(np.abs(whole - np.rint(whole)).max())
        self.fraction = max(self.fraction, missed)


@dataclass(frozen=True, slots=True)
class Mono:
    """`samples` (n,) float32 of one channel or of the mean over `channels`.

    moments: (2, channels), the mean and the mean square of each channel that was mixed. beyond: of
    samples behind these that were not kept.
    """

    samples: np.ndarray
    channels: int = 1
    moments: np.ndarray | None = None
    beyond: Beyond | None = None

    @property
    def frames(self) -> int:
        """Samples, with those that were not kept."""
        return len(self.samples) + (self.beyond.frames if self.beyond else 0)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest sample."""
        low, high = float(self.samples.min()), float(self.samples.max())
        if self.beyond is None:
            return low, high
        return float(np.minimum(low, self.beyond.low)), float(np.maximum(high, self.beyond.high))

    @property
    def variance(self) -> float:
        """Of all samples."""
        if self.beyond is None:
            return float(np.var(self.samples, dtype=np.float64))
        exact = self.samples.astype(np.float64)
        mean = (exact.sum() + self.beyond.total) / self.frames
        return float((exact @ exact + self.beyond.squares) / self.frames - mean**2)

    def is_whole(self, peak: float) -> bool:
        """Whether the sums over the channels are whole numbers."""
        rest = self.beyond.fraction if self.beyond else 0.0
        values = self.samples * np.float32(self.channels)
        return rest <= _missed(peak) and _are_whole(values, peak)


def check_levels(mono: Mono) -> None:
    """Refuse samples that are no sound in ±1.

    Raises:
        EmptyItem: none, not finite, all zero or constant, or a mean in which the channels cancel.
        DecodeError: a scale that is not ±1.
    """
    samples = mono.samples
    if len(samples) == 0:
        raise EmptyItem("holds no samples")
    low, high = mono.range
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EmptyItem("holds samples that are not finite (NaN or infinite)")
    _check_cancelled(mono)
    peak = max(-low, high)
    if peak == 0:
        raise EmptyItem("nothing but zeros (digital silence)")
    if low == high and mono.frames > 1:
        raise EmptyItem(f"all {mono.frames} samples are {high:g}: a constant level is no sound")
    if peak < FAINTEST:
        raise EmptyItem(f"no sample lies above {peak:.2g}: digital silence with a residue")
    if peak > LOUDEST or (peak >= 2 and mono.is_whole(peak)):
        raise _scale_error(peak)


def check_scale(blocks: list[np.ndarray]) -> None:
    """Refuse a file of floating-point samples by some of its blocks, each (n, channels).

    Its quiet windows would pass by themselves, and be too loud by the same factor.

    Raises:
        DecodeError: they are integers, or far above ±1 all the time.
    """
    finite = [block[np.isfinite(block)].astype(np.float64) for block in blocks]
    finite = [block for block in finite if len(block)]
    peak = max((float(np.abs(block).max()) for block in finite), default=0.0)
    if peak < 2:
        return
    # The median: a click is no reason to refuse what lies around it.
    level = float(np.median([np.sqrt(np.mean(np.square(block))) for block in finite]))
    if level > _LOUDEST_RMS or all(_are_whole(block, peak) for block in finite):
        raise _scale_error(peak)


def check_integers(values: np.ndarray) -> None:
    """Refuse integers that leave the upper half of their type's bits empty.

    Raises:
        DecodeError: int16 samples in int32, for example.
    """
    bits = 8 * values.dtype.itemsize
    if values.dtype.kind != "i" or bits < 32 or not values.size:
        return
    peak = max(-int(values.min()), int(values.max()))
    if 0 < peak <= 2 ** (bits // 2 - 1):
        raise DecodeError(
            f"{values.dtype} samples that reach {peak} of {2 ** (bits - 1)}: they seem to be "
            f"{bits // 2}-bit sound; give int{bits // 2}, or floats in ±1"
        )


def _check_cancelled(mono: Mono) -> None:
    if mono.moments is None:
        return
    means, squares = mono.moments
    power = squares - means**2  # without a constant level, which is not heard
    loudest = int(np.argmax(power))
    if not power[loudest] > 1e-12 * squares[loudest]:
        return
    # The mean over many channels lies below a single one that sounds; that is no cancellation.
    sound = mono.variance * (mono.channels / 2) ** 2
    below = math.inf if sound <= 0 else 10 * math.log10(power[loudest] / sound)
    if below < CANCELLED:
        return
    words = "is nothing but zeros" if math.isinf(below) else f"lies {below:.0f} dB below them"
    raise EmptyItem(
        f"the {mono.channels} channels cancel each other (opposite phase): their mean {words}; "
        "take one with --channel 0, or each with --channel each"
    )


def _are_whole(values: np.ndarray, peak: float) -> bool:
    """Whether these are whole numbers, as exactly as float32 has them."""
    return bool((np.abs(values - np.rint(values)) <= _missed(peak)).all())


def _missed(peak: float) -> float:
    return min(0.1, 1e-6 * peak)


def _scale_error(peak: float) -> DecodeError:
    scale = next((scale for scale in _SCALES if peak <= scale), None)
    remedy = (
        "they are damaged, or no sound"
        if scale is None
        else f"integers that were stored as floats, it seems; divide them by {scale}"
    )
    return DecodeError(
        f"samples reach {peak:.6g}, and sound in floating point lies within ±1: {remedy}"
    )
