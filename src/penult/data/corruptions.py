"""Common corruptions of sounds and pictures: what another recorder, room, codec or camera changes
while the content stays (as Hendrycks and Dietterich, 2019, have them for pictures).

Numpy or Pillow in and out; the same values give the same values.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

Samples = npt.NDArray[np.float32]  # (n,) of one channel
_REVERBERATION = 0.5  # seconds until a room's sound has fallen by 60 dB
_SILENCE = 0.5  # seconds before and behind
_BLOCK = 1 << 14  # samples that the encoder takes at once: of very many it needs too deep a stack


def _quieter(samples: Samples, rate: int) -> Samples:
    return 0.1 * samples


def _clipped(samples: Samples, rate: int) -> Samples:
    most = 0.5 * float(np.abs(samples).max(initial=0.0))
    return np.clip(samples, -most, most)


def _encoded(samples: Samples, rate: int) -> Samples:
    """Ogg Vorbis of the lowest quality, and back."""
    import soundfile

    whole = io.BytesIO()
    with soundfile.SoundFile(
        whole, "w", rate, 1, "VORBIS", format="OGG", compression_level=1.0
    ) as file:
        for at in range(0, len(samples), _BLOCK):
            file.write(np.clip(samples[at : at + _BLOCK], -1, 1))
    whole.seek(0)
    found, _ = soundfile.read(whole, dtype="float32")
    return _fitted(found, len(samples))


def _halved(samples: Samples, rate: int) -> Samples:
    """Half of the rate and back: the upper half of the band is gone."""
    import soxr

    there = soxr.resample(samples, rate, rate / 2)
    return _fitted(soxr.resample(there, rate / 2, rate), len(samples))


def _noisy(decibels: float) -> Callable[[Samples, int], Samples]:
    def changed(samples: Samples, rate: int) -> Samples:
        noise = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
        power = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))) if len(samples) else 0.0
        return samples + power * 10 ** (-decibels / 20) * noise

    return changed


def _offset(samples: Samples, rate: int) -> Samples:
    return samples + 0.1 * float(np.abs(samples).max(initial=0.0))


def _reverberant(samples: Samples, rate: int) -> Samples:
    """A room in which as much energy comes by reflections as directly: noise that decays."""
    from scipy.signal import fftconvolve

    time = np.arange(int(_REVERBERATION * rate)) / rate
    tail = np.random.default_rng(0).standard_normal(len(time))
    tail *= 10 ** (-3 * time / _REVERBERATION)
    tail[0] = 0.0
    tail /= max(float(np.linalg.norm(tail)), 1e-12)
    tail[0] = 1.0
    return np.asarray(fftconvolve(samples, tail)[: len(samples)], np.float32)


def _padded(samples: Samples, rate: int) -> Samples:
    return np.pad(samples, int(_SILENCE * rate))


def _fitted(samples: npt.NDArray[np.float32], length: int) -> Samples:
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


# From (n,) samples and their rate in Hz.
SOUND: Mapping[str, Callable[[Samples, int], Samples]] = {
    "level -20 dB": _quieter,
    "clipped at half": _clipped,
    "Vorbis, lowest": _encoded,
    "half the rate": _halved,
    "noise 20 dB": _noisy(20.0),
    "noise 10 dB": _noisy(10.0),
    "DC 10 %": _offset,
    "reverb 0.5 s": _reverberant,
    "silence 2 x 0.5 s": _padded,
}


def _jpeg(picture: Image.Image) -> Image.Image:
    whole = io.BytesIO()
    picture.save(whole, "JPEG", quality=20)
    return Image.open(whole).convert("RGB")


def _smaller(picture: Image.Image) -> Image.Image:
    half = [max(1, side // 2) for side in picture.size]
    small = picture.resize((half[0], half[1]), Image.Resampling.BICUBIC)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def _grainy(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, np.float32)
    noise = 25 * np.random.default_rng(0).standard_normal(values.shape)
    return Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))


def _cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    edge = (width // 20, height // 20)
    return picture.crop(
        (*edge, max(edge[0] + 1, width - edge[0]), max(edge[1] + 1, height - edge[1]))
    )


# From a picture in RGB.
PICTURE: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "brightness 0.6": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "contrast 0.6": lambda picture: ImageEnhance.Contrast(picture).enhance(0.6),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "JPEG 20": _jpeg,
    "half the size": _smaller,
    "noise 10 %": _grainy,
    "cropped by 5 %": _cropped,
}
