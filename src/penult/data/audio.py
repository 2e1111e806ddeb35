"""Sound from a file, bytes or an array, cut, mixed to one channel, filtered and resampled, in
this order.

Knows nothing of windows, batches or models. Cutting at the file's own rate comes first, so that a
segment has the samples of the cut-out file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from penult.data.audio_stream import UNFORESEEN, ForwardReader, Stream, open_stream
from penult.data.files import item_error
from penult.data.levels import Beyond, Mono, check_levels
from penult.data.regions import WHOLE, Region, frame_at
from penult.errors import DecodeError, EmptyItem, ItemError, RegionError, TooLong

_LIBSNDFILE = "wav wave bwf flac mp3 ogg oga opus aiff aif aifc au snd caf w64 rf64"
_FFMPEG = "m4a m4b aac mka webm wma amr ac3 wv ape"
EXTENSIONS = frozenset(f".{name}" for name in f"{_LIBSNDFILE} {_FFMPEG}".split())
RESAMPLER: str  # names the resampler, for fingerprints; made at its first use

_HIGHEST_RATE = 10_000_000  # Hz; ultrasound recorders stay below 1 MHz
_LOWEST_SHARE = 8  # below an eighth of the model's rate, nothing that it hears can be in the file


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The header of a recording. `exact`: decoding gives this number of frames; else about as many.

    `rate` is in Hz; it and `seconds` are 0 for an array whose rate was not given. `missing` are
    the frames that are promised beyond those `frames`, and are not there; `cut` tells what shows
    that the end is missing where no header has the length.
    """

    rate: int
    channels: int
    frames: int
    seconds: float
    exact: bool
    missing: int = 0
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """One channel of sound: `samples` (n,) float32 at the rate of the request.

    `seconds` is its length before resampling, `start` and `end` are the region's. `notes`: what the
    file's header has wrong, and was read nevertheless.
    """

    samples: np.ndarray
    seconds: float
    start: float | None
    end: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Playback:
    """How sound is changed between a recording and a model: the band (Hz) that passes, and the rate
    of playback; 0.1 is ten times slower and lower, as ultrasound is made audible. Seconds of
    regions stay those of the recording.
    """

    band: tuple[float, float] | None = None
    rate: float = 1.0

    def filtered(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Samples (n,) float32 at `rate` Hz behind the band-pass: a Butterworth filter of order 4
        forward and backward, so that nothing is shifted in time.

        Raises:
            RegionError: the band reaches half of the rate.
        """
        if self.band is None:
            return samples
        low, high = self.band
        if not high < rate / 2:
            raise RegionError(
                f"the band {low:g}-{high:g} Hz reaches beyond {rate / 2:g} Hz, half of the sample "
                f"rate of {rate} Hz; give a lower band"
            )
        from scipy.signal import butter, sosfiltfilt

        passes = butter(_ORDER, self.band, "bandpass", fs=rate, output="sos")
        # As scipy pads by itself, or what a shorter clip has.
        padding = min(3 * (2 * len(passes) + 1), len(samples) - 1)
        found: np.ndarray = sosfiltfilt(passes, samples.astype(np.float64), padlen=padding)
        return found.astype(np.float32)


AS_RECORDED = Playback()
_ORDER = 4


def info(content: object, *, source_rate: int | None = None, exact: bool = False) -> AudioInfo:
    """Rate, channels and length of a Path's, bytes' or an array's sound.

    It is decoded only where the header has no length, or, with `exact`, where that is not exact.

    Raises:
        DecodeError, EmptyItem: as `load`.
    """
    with open_stream(content, source_rate or 0) as stream:
        frames, missing, known = stream.frames, stream.missing, stream.slack == 0
        if frames is None or (exact and not known):
            frames, promised = sum(len(block) for block in stream.read(0, None)), frames
            if promised is not None and stream.slack is not None:
                short = promised - frames
                missing = short if short > stream.slack else 0
            known = True
        seconds = frames / stream.rate if stream.rate > 0 else 0.0
        return AudioInfo(stream.rate, stream.channels, frames, seconds, known, missing, stream.cut)


def load(
    content: object,
    region: Region,
    rate: int,
    *,
    max_seconds: float | None = None,
    source_rate: int | None = None,
    first_seconds: float | None = None,
    kept_seconds: float | None = None,
    playback: Playback = AS_RECORDED,
) -> Clip:
    """The region's samples at `rate` Hz: one channel of it, or the mean over all.

    `content` is a Path, bytes or an array: (n,) or (channels, n) at `source_rate` (None: already at
    `rate`), integers being scaled to ±1. `max_seconds` limits the region's length, and the memory;
    with `first_seconds` the rest of a longer region is left, and `max_seconds` does not matter.
    `playback` is applied to the region's own samples, before they are resampled.
    With `kept_seconds` neither does it: what lies behind them is read and checked, but not among
    the samples, which are those that the whole region begins with.

    Raises:
        DecodeError: no sound, damaged, shorter than its header says, a rate that cannot be.
        EmptyItem: no samples, zeros, one constant value, values that are not finite, channels
            whose mean cancels them.
        TooLong: the region is longer than `max_seconds`.
        RegionError: a start, end or channel that the item does not have, or a band that it cannot
            have.
    """
    with open_stream(content, rate if source_rate is None else source_rate) as stream:
        limits = max_seconds, first_seconds, kept_seconds
        mono = _cut(stream, stream.read, region, rate / playback.rate, limits)
    return _clip(mono, stream, rate, region, playback)


def load_many(
    content: object,
    regions: Iterable[Region],
    rate: int,
    *,
    max_seconds: float | None = None,
    source_rate: int | None = None,
    first_seconds: float | None = None,
    kept_seconds: float | None = None,
    playback: Playback = AS_RECORDED,
) -> Iterator[Clip | ItemError]:
    """For each region what `load` gives, to the bit, or the error that it raises, in their order.

    The sound is opened once and read forward; blocks are kept from the last region's start on. So
    starts should not decrease: one that does is decoded from the beginning again, or sought for. A
    whole item that comes first is loaded by itself.
    """
    alone = partial(
        load,
        content,
        rate=rate,
        max_seconds=max_seconds,
        source_rate=source_rate,
        first_seconds=first_seconds,
        kept_seconds=kept_seconds,
        playback=playback,
    )
    regions = iter(regions)
    first = next(regions, None)
    if first == WHOLE:
        yield _clip_or_error(partial(alone, first))
        first = next(regions, None)
    if first is None:
        return
    with ForwardReader(content, rate if source_rate is None else source_rate) as reader:
        limits = max_seconds, first_seconds, kept_seconds
        for region in chain([first], regions):
            yield _clip_or_error(
                partial(_read_region, reader, region, rate, limits, alone, playback)
            )


def _clip_or_error(load_one: Callable[[], Clip]) -> Clip | ItemError:
    try:
        return load_one()
    except ItemError as error:
        return error.with_traceback(None)  # which would keep the samples alive
    except (MemoryError, *UNFORESEEN) as error:  # as in a run of single items
        return item_error(error)


def _read_region(
    reader: ForwardReader,
    region: Region,
    rate: int,
    limits: _Limits,
    alone: Callable[[Region], Clip],
    playback: Playback,
) -> Clip:
    """alone: loads a region anew: another way to the same place may lead around damage."""
    stream = reader.stream
    try:
        mono = _cut(stream, reader.read, region, rate / playback.rate, limits)
        if not (reader.damaged and stream.seeks):
            return _clip(mono, stream, rate, region, playback)
    except ItemError:
        if not (reader.damaged and stream.seeks):
            raise
    reader.close()
    return alone(region)


_Read = Callable[[int, int | None], Iterator[np.ndarray]]
# max_seconds, first_seconds, kept_seconds
_Limits = tuple[float | None, float | None, float | None]


def _cut(stream: Stream, read: _Read, region: Region, rate: float, limits: _Limits) -> Mono:
    """The region at the stream's own rate, one channel or the mean over all."""
    _check_rate(stream.rate, rate)
    if region.channel is not None and region.channel >= stream.channels:
        raise RegionError(
            f"there is no channel {region.channel}: the sound has {stream.channels} "
            "(they count from 0)"
        )
    first, last = _frames_of(region, stream)
    longest, enough, kept = (
        None if one is None or one == math.inf else math.floor(one * stream.rate) for one in limits
    )
    stop = last
    if enough is not None:
        stop = first + enough if last is None else min(last, first + enough)
    elif longest is not None and kept is None and stream.slack is not None:
        _check_length((stream.frames if last is None else last) or 0, first, longest, stream)
    limit = longest if enough is None and kept is None else None
    mono = _collect(stream, read(first, stop), (first, stop), region.channel, (limit, kept))
    if stop == last or first + mono.frames != stop:
        _check_complete(stream, first, last, mono.frames)
    return mono


def _clip(mono: Mono, stream: Stream, rate: int, region: Region, playback: Playback) -> Clip:
    seconds = mono.frames / stream.rate
    try:
        check_levels(mono)
    except ItemError as error:
        raise type(error)(f"{_place(region, stream)}{error}") from None
    samples = playback.filtered(mono.samples, stream.rate)
    # 0.1 as binary is a little more than a tenth: a rate that is whole is taken as it is meant.
    played = round(stream.rate * playback.rate, 6)
    if played != rate:
        samples = _resample(samples, played, rate)
    return Clip(samples, seconds, region.start, region.end, stream.notes)


def _place(region: Region, stream: Stream) -> str:
    """Where in the item a region lies, in front of a message; empty for the whole of it."""
    parts = [] if region.channel is None else [f"channel {region.channel}"]
    if region.start is not None or region.end is not None:
        end = "the end" if region.end is None else f"{region.end:g} s"
        parts.append(f"from {region.start or 0:g} s to {end}")
    return ", ".join(parts) + ": " if parts else ""


def _check_rate(rate: int, model_rate: float) -> None:
    if not 0 < rate <= _HIGHEST_RATE:
        raise DecodeError(f"a sample rate of {rate} Hz cannot be; the header is wrong")
    if rate * _LOWEST_SHARE < model_rate:
        raise DecodeError(
            f"a sample rate of {rate} Hz holds nothing above {rate // 2} Hz, too little for a "
            f"model that hears {model_rate:.6g} Hz; the header is wrong, or this is no recording "
            "for it"
        )


def _frames_of(region: Region, stream: Stream) -> tuple[int, int | None]:
    """The region's first and last frame, checked where the length is known; None is the end."""
    for value in (region.start, region.end):
        if value is not None and not math.isfinite(value):
            raise RegionError(f"a region's seconds must be finite, not {value}")
    first = frame_at(region.start or 0.0, stream.rate)
    last = None if region.end is None else frame_at(region.end, stream.rate)
    if stream.frames is None or stream.slack is None:
        return first, last
    total = stream.frames + stream.missing
    if region.start is not None and first >= total + stream.slack:
        raise _beyond(f"start {region.start:g} s", total, stream.rate)
    if last is not None and last > total + stream.slack + _tolerance(stream.rate):
        raise _beyond(f"end {region.end:g} s", total, stream.rate)
    if last is not None and stream.slack == 0:
        last = min(last, total)
    if stream.missing and (last is None or last > stream.frames):
        raise _truncated(stream.frames, total)
    return first, last


def _tolerance(rate: int) -> int:
    return max(1, rate // 1000)  # a millisecond: what rounding in a table may cost


def _beyond(what: str, frames: int, rate: int) -> RegionError:
    return RegionError(f"{what} lies beyond the end: it lasts {frames / rate:.6g} s")


def _truncated(found: int, promised: int) -> DecodeError:
    return DecodeError(f"truncated or damaged: holds {found} frames of the {promised} it promises")


def _check_length(last: int, first: int, limit: int, stream: Stream) -> None:
    if last - first > limit:
        raise TooLong(
            f"lasts {(last - first) / stream.rate:.6g} s, longer than the limit of "
            f"{limit / stream.rate:.6g} s; cut it into windows (--window), or raise the limit "
            "(--max-seconds)"
        )


def _collect(
    stream: Stream,
    blocks: Iterator[np.ndarray],
    span: tuple[int, int | None],
    channel: int | None,
    limits: tuple[int | None, int | None],
) -> Mono:
    """One channel, or the mean over all. limits: frames that there may be, and that are kept."""
    (first, last), (limit, kept), parts, got, beyond = span, limits, [], 0, Beyond()
    mixed = channel is None and stream.channels > 1
    sums = np.zeros((2, stream.channels))  # of the samples and of their squares
    for block in blocks:
        block = block if last is None else block[: last - first - got]
        # Summed in float64: the same mean whatever the block, and never an overflow.
        one = block.mean(axis=1, dtype=np.float64) if channel is None else block[:, channel]
        one, room = one.astype(np.float32), len(one) if kept is None else max(0, kept - got)
        if room:  # an empty part would keep the whole block
            parts.append(one[:room])
        beyond.add(one[room:], stream.channels)
        if mixed:
            exact = block.astype(np.float64)
            sums += exact.sum(axis=0), np.einsum("nc,nc->c", exact, exact)
        got += len(block)
        if limit is not None:
            _check_length(first + got, first, limit, stream)
        if last is not None and first + got >= last:
            break
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    moments = (sums / max(1, got)) if mixed else None
    return Mono(samples, stream.channels, moments, beyond if beyond.frames else None)


def _check_complete(stream: Stream, first: int, last: int | None, got: int) -> None:
    """Compare what was decoded with what the header and the region promise."""
    end = first + got
    if last is not None and end >= last:
        return
    if stream.cut:
        raise DecodeError(
            f"truncated or damaged: {stream.cut}; {end / stream.rate:.6g} s can be read, "
            "with --window"
        )
    promised = 0 if stream.frames is None or stream.slack is None else stream.frames
    if end + (stream.slack or 0) < promised:
        raise _truncated(end, promised)
    if last is not None and end + _tolerance(stream.rate) < last:
        raise _beyond(f"end {last / stream.rate:g} s", end, stream.rate)
    if got == 0 and first > 0:
        raise RegionError(f"start {first / stream.rate:g} s lies beyond the end")


def _resample(mono: np.ndarray, source: float, rate: int) -> np.ndarray:
    import soxr

    # HQ computes in float32 whatever it is given: float64 gives the same samples (measured).
    samples: np.ndarray = soxr.resample(mono, source, rate, quality="HQ")
    if len(samples) == 0:
        raise EmptyItem(f"{len(mono)} samples at {source:g} Hz are none at {rate} Hz")
    return samples


if not TYPE_CHECKING:  # a type checker would take every name of this module for a str

    def __getattr__(name: str) -> str:
        if name != "RESAMPLER":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import soxr

        return f"soxr-HQ/{soxr.__version__} (libsoxr {soxr.__libsoxr_version__})"
