"""How a classifier prepares sound, as tensors: samples in, the model's arguments out, so that a
recorded graph takes sound as it is.

Nothing is taken from a list of names: a front end is used where it gives what the classifier's own
preparation gives, measured on noise, silence and quiet sound. Knows no runtime and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from penult.engines.batching import MASK
from penult.models.base import Classifier
from penult.models.synthetic import noise

_SAME = 1e-4  # of the largest value, by which a front end may differ: features are logarithms
_SECONDS = (0.313, 1.0, 2.771)
_LONGEST = 35.0  # seconds: beyond what models of one length keep


class FrontEnd(nn.Module):
    """Samples and lengths → the model's arguments.

    fixed: whether every clip becomes an input of one length. silence: whether it is the same to the
    last digits for silence, which a division by a deviation of 0 blows up.
    """

    fixed = False
    silence = True

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(n, T) float32 and (n,) int64 → the arguments by name, and (n,) the positions of the
        first of them that are each clip's own."""
        raise NotImplementedError


class Waveform(FrontEnd):
    """Samples as they are, or each clip with mean 0 and deviation 1.

    name: of the argument. channel: whether it is (n, 1, T). length: samples of an input of one
    length.
    """

    def __init__(
        self, name: str, normalised: bool = False, channel: bool = False, length: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.normalised, self.channel, self.length = name, normalised, channel, length
        self.fixed = length is not None

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(n, T) or (n, 1, T)."""
        values = masked(samples, lengths)
        if self.normalised:
            count = lengths[:, None].to(samples.dtype)
            mean = values.sum(dim=1, keepdim=True) / count
            apart = masked(values - mean, lengths)
            deviation = (apart.square().sum(dim=1, keepdim=True) / count + 1e-7).sqrt()
            values = apart / deviation
        if self.length is not None:
            values, lengths = to_length(values, self.length), lengths.clamp(max=self.length)
        return {self.name: values[:, None] if self.channel else values}, lengths


class FilterBank(nn.Module):
    """Logarithms of the power in bands of frequency, frame by frame.

    bank: (fft // 2 + 1, bands). Each step before the power is linear in a frame's samples (offset,
    pre-emphasis, window, Fourier transform), so that all are one product, in double precision as
    the libraries that trained on it have it.
    """

    def __init__(
        self,
        bank: npt.NDArray[Any],
        window: npt.NDArray[Any],
        hop: int,
        fft: int,
        *,
        emphasis: float = 0.0,
        offset: bool = False,
        scale: float = 1.0,
        floor: float = 1e-10,
    ) -> None:
        super().__init__()
        size = len(window)
        frame = np.eye(size) * scale
        if offset:
            frame = frame - frame.mean(axis=1, keepdims=True)
        if emphasis:
            before = np.concatenate([frame[:, :1], frame[:, :-1]], axis=1)
            frame = frame - emphasis * before
        wave = np.fft.rfft(frame * window, fft, axis=1)
        self.register_buffer("wave", torch.from_numpy(np.hstack([wave.real, wave.imag])))
        self.register_buffer("bank", torch.from_numpy(np.asarray(bank, np.float64)))
        self.size, self.hop, self.floor = size, hop, floor
        self.wave: Tensor
        self.bank: Tensor

    def frames(self, lengths: Tensor) -> Tensor:
        """How many whole frames a clip of so many samples has."""
        return (lengths - self.size).div(self.hop, rounding_mode="floor") + 1

    def forward(self, samples: Tensor) -> Tensor:
        """(n, T) → (n, frames, bands) float64, natural logarithms."""
        framed = samples.to(self.wave.dtype).unfold(1, self.size, self.hop)
        real, imaginary = (framed @ self.wave).chunk(2, dim=2)
        power = real.square() + imaginary.square()
        return (power @ self.bank).clamp(min=self.floor).log()


class FixedBank(FrontEnd):
    """A filter bank of the first frames, filled up with zeros, then scaled (AST)."""

    fixed = True

    def __init__(self, name: str, bank: FilterBank, frames: int, mean: float, spread: float):
        super().__init__()
        self.name, self.features, self.length = name, bank, frames
        self.mean, self.spread = mean, spread

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(n, frames, bands)."""
        enough = self.length * self.features.hop + self.features.size
        values = self.features(to_length(samples, enough))[:, : self.length]
        own = self.features.frames(lengths).clamp(max=self.length)
        values = (masked(values, own) - self.mean) / self.spread
        return {self.name: values.float()}, own


class CentredBank(FrontEnd):
    """A filter bank of a clip of one length whose frames are centred, as decimal logarithms down to
    eight below the largest (Whisper)."""

    fixed = True

    def __init__(self, name: str, bank: FilterBank, length: int) -> None:
        super().__init__()
        self.name, self.features, self.length = name, bank, length

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(n, bands, frames)."""
        values = to_length(masked(samples, lengths), self.length)
        half = self.features.size // 2
        values = nn.functional.pad(values[:, None], (half, half), mode="reflect")[:, 0]
        found = self.features(values)[:, :-1] / float(np.log(10))
        found = torch.maximum(found, found.amax(dim=(1, 2), keepdim=True) - 8.0)
        own = lengths.clamp(max=self.length).div(self.features.hop, rounding_mode="floor")
        return {self.name: ((found + 4.0) / 4.0).float().transpose(1, 2)}, own


class StackedBank(FrontEnd):
    """A filter bank whose bands have mean 0 and deviation 1 over a clip, two frames as one (the
    extractor of SeamlessM4T, which wav2vec2-BERT has too)."""

    silence = False

    def __init__(self, name: str, bank: FilterBank, stride: int) -> None:
        super().__init__()
        self.name, self.features, self.stride = name, bank, stride

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(n, frames / stride, stride × bands)."""
        own = self.features.frames(lengths)
        values = masked(self.features(samples), own)
        count = own[:, None, None].to(values.dtype)
        mean = values.sum(dim=1, keepdim=True) / count
        apart = masked(values - mean, own)
        variance = apart.square().sum(dim=1, keepdim=True) / (count - 1)
        values = (apart / (variance + 1e-7).sqrt()).float()
        number = (values.shape[1] + self.stride - 1) // self.stride
        values = nn.functional.pad(values, (0, 0, 0, self.stride - 1))[:, : number * self.stride]
        stacked = values.reshape(values.shape[0], number, self.stride * values.shape[2])
        return {self.name: stacked}, own.div(self.stride, rounding_mode="floor")


def masked(values: Tensor, lengths: Tensor) -> Tensor:
    """(n, T, …) with zeros behind each item's own positions."""
    own = torch.arange(values.shape[1], device=values.device)[None] < lengths[:, None]
    shape = (*own.shape, *(1 for _ in values.shape[2:]))
    return values.masked_fill(~own.reshape(shape), 0.0)


def to_length(values: Tensor, length: int) -> Tensor:
    """(n, T) → (n, length): zeros behind, or cut."""
    return nn.functional.pad(values, (0, length))[:, :length]


def front_end(classifier: Classifier) -> FrontEnd | None:
    """The front end that gives what the classifier's own preparation gives; None where none does,
    or the classifier takes no sound."""
    if classifier.modality != "audio" or classifier.rate is None or classifier.input.patches:
        return None
    with suppress(Exception):  # settings that mean something to their library alone
        for candidate in _candidates(classifier):
            if _agrees(classifier, candidate.eval()):
                return candidate
    return None


def _candidates(classifier: Classifier) -> Iterator[FrontEnd]:
    rate = classifier.rate or 1
    items = [classifier.preprocess(noise(seed, 1.0 + seed, rate)).tensors for seed in (0, 1)]
    name = next(iter(items[0]))
    shapes = [tuple(item[name].shape) for item in items]
    if len(shapes[0]) in (2, 3) and shapes[0][:-1] in ((1,), (1, 1)):
        length = shapes[0][-1] if shapes[0] == shapes[1] else None
        for normalised in (False, True):
            yield Waveform(name, normalised, len(shapes[0]) == 3, length)
    settings: Mapping[str, Any] = getattr(classifier._preparer, "settings", dict)()
    make = _BANKS.get(str(settings.get("feature_extractor_type")))
    if make is not None:
        yield make(name, settings)


def _ast(name: str, settings: Mapping[str, Any]) -> FrontEnd:
    bank = FilterBank(
        _kaldi_bands(settings["num_mel_bins"], settings["sampling_rate"]),
        np.hanning(400),
        hop=160,
        fft=512,
        emphasis=0.97,
        offset=True,
        floor=1.192092955078125e-07,
    )
    scaled = settings["do_normalize"]
    mean, spread = (settings["mean"], 2 * settings["std"]) if scaled else (0.0, 1.0)
    return FixedBank(name, bank, settings["max_length"], mean, spread)


def _whisper(name: str, settings: Mapping[str, Any]) -> FrontEnd:
    from transformers.audio_utils import mel_filter_bank

    size, rate = settings["n_fft"], settings["sampling_rate"]
    bands = mel_filter_bank(
        1 + size // 2,
        settings["feature_size"],
        0.0,
        8000.0,
        rate,
        norm="slaney",
        mel_scale="slaney",
    )
    window = np.hanning(size + 1)[:-1]
    bank = FilterBank(bands, window, settings["hop_length"], size)
    return CentredBank(name, bank, settings["chunk_length"] * rate)


def _seamless(name: str, settings: Mapping[str, Any]) -> FrontEnd:
    bank = FilterBank(
        _kaldi_bands(settings["num_mel_bins"], settings["sampling_rate"]),
        np.hanning(400) ** 0.85,  # Povey's window
        hop=160,
        fft=512,
        emphasis=0.97,
        offset=True,
        scale=2.0**15,
        floor=1.192092955078125e-07,
    )
    return StackedBank(name, bank, settings["stride"])


def _kaldi_bands(number: int, rate: int) -> npt.NDArray[Any]:
    from transformers.audio_utils import mel_filter_bank

    bands: npt.NDArray[Any] = mel_filter_bank(
        257, number, 20, rate // 2, rate, None, "kaldi", triangularize_in_mel_space=True
    )
    return bands


_BANKS = {
    "ASTFeatureExtractor": _ast,
    "WhisperFeatureExtractor": _whisper,
    "SeamlessM4TFeatureExtractor": _seamless,
}


def _agrees(classifier: Classifier, front: FrontEnd) -> bool:
    """Whether it gives what the classifier's own preparation gives, alone and padded."""
    rate = classifier.rate or 1
    clips = [noise(seed, seconds, rate) for seed, seconds in enumerate(_SECONDS)]
    clips += [0.001 * clips[0], clips[1] + 0.3]
    if front.silence:
        clips.append(np.zeros(rate // 2, np.float32))
    if front.fixed:
        clips.append(noise(9, min(_LONGEST, 1.1 * (classifier.input.seconds or 1.0)), rate))
    for clip in clips:
        expected = {
            name: np.asarray(value) for name, value in classifier.preprocess(clip).tensors.items()
        }
        padded = torch.from_numpy(np.concatenate([clip, np.ones(rate // 7, np.float32)]))[None]
        with torch.no_grad():
            found, own = front(padded, torch.tensor([len(clip)]))
        if set(expected) - set(found) - {MASK}:
            return False
        for name, value in found.items():
            if not _alike(value, expected[name], None if front.fixed else int(own[0])):
                return False
    return True


def _alike(found: Tensor, expected: npt.NDArray[Any], own: int | None) -> bool:
    """Whether two inputs are the same; own: as far as the clip goes, along the longest axis."""
    one, other = found.numpy(), expected
    if own is not None:
        axis = max(range(1, one.ndim), key=lambda axis: one.shape[axis])
        if other.shape[axis] < own:
            return False
        one, other = (value.take(range(own), axis) for value in (one, other))
    if one.shape != other.shape or not np.isfinite(one).all():
        return False
    return bool(np.abs(one - other).max(initial=0) <= _SAME * np.abs(other).max(initial=1e-3))
