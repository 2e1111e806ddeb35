"""Sound from a file, bytes or an array, cut, mixed to one channel and resampled, in this order.

Knows nothing of windows, batches or models. Cutting at the file's own rate comes first, so that a
segment has the samples of the cut-out file. libsndfile reads what it can, PyAV the rest.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penult.errors import DecodeError, EmptyItem, RegionError, TooLong
from penult.media import file_size, opened_by_ffmpeg
from penult.regions import Region

if TYPE_CHECKING:
    from av.container import InputContainer

_LIBSNDFILE = "wav wave bwf flac mp3 ogg oga opus aiff aif aifc au snd caf w64 rf64"
_FFMPEG = "m4a m4b aac mka webm wma amr ac3 wv ape"
EXTENSIONS = frozenset(f".{name}" for name in f"{_LIBSNDFILE} {_FFMPEG}".split())
RESAMPLER: str  # names the resampler, for fingerprints; made when it is first asked for

_BLOCK = 1 << 16  # values per read: what bounds the memory of a many-channel file
_HIGHEST_RATE = 10_000_000  # Hz; ultrasound recorders stay below 1 MHz
_LOWEST_SHARE = 8  # below an eighth of the model's rate, nothing that it hears can be in the file
# Writers that cannot seek back leave one of these sizes: the length is then simply not known.
_PLACEHOLDER = 0x7FFFF000
# Seeking is exact here (measured). In Vorbis it lands elsewhere near the end of the file, in MP3
# the bit reservoir is missing and whole frames differ: these are decoded from the beginning.
_SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_HEADERLESS = "not readable as audio: without a header nothing says its rate"
_UNKNOWN_FORMAT = (1, 4)  # libsndfile's codes: format not recognised, encoding not supported


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header says. `exact`: decoding gives this number of frames; else about as many.

    `rate` is in Hz; it and `seconds` are 0 for an array whose rate was not given.
    """

    rate: int
    channels: int
    frames: int
    seconds: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """One channel of sound: `samples` (n,) float32 at the rate that was asked for.

    `seconds` is its length before resampling, `start` and `end` are the region's.
    """

    samples: np.ndarray
    seconds: float
    start: float | None
    end: float | None


@dataclass(frozen=True, slots=True)
class _Stream:
    """Sound that is open: `read(first)` yields blocks (n, channels) float32 from that frame on."""

    rate: int
    channels: int
    frames: int | None  # None: not known before decoding
    slack: int | None  # by how much decoding may fall short of `frames`; None: it is an estimate
    missing: int  # frames that the header promises and the file does not hold
    read: Callable[[int], Iterator[np.ndarray]]


def info(content: object, *, source_rate: int | None = None) -> AudioInfo:
    """Rate, channels and length of a Path's, bytes' or an array's sound.

    It is decoded only where the header has no length.

    Raises:
        DecodeError, EmptyItem: as `load`.
    """
    with _opened(content, source_rate or 0) as stream:
        frames, exact = stream.frames, stream.slack == 0
        if frames is None:
            frames, exact = sum(len(block) for block in stream.read(0)), True
        seconds = frames / stream.rate if stream.rate > 0 else 0.0
        return AudioInfo(stream.rate, stream.channels, frames, seconds, exact)


def load(
    content: object,
    region: Region,
    rate: int,
    *,
    max_seconds: float | None = None,
    source_rate: int | None = None,
) -> Clip:
    """The region's samples at `rate` Hz: one channel of it, or the mean over all.

    `content` is a Path, bytes or an array: (n,) or (channels, n) at `source_rate` (None: already at
    `rate`), integers being scaled to ±1. `max_seconds` limits the region's length, and the memory.

    Raises:
        DecodeError: no sound, damaged, shorter than its header says, a rate that cannot be.
        EmptyItem: no samples, nothing but zeros, values that are not finite.
        TooLong: the region is longer than `max_seconds`.
        RegionError: a start, end or channel that the item does not have.
    """
    with _opened(content, rate if source_rate is None else source_rate) as stream:
        _check_rate(stream.rate, rate)
        if region.channel is not None and region.channel >= stream.channels:
            raise RegionError(
                f"there is no channel {region.channel}: the sound has {stream.channels} "
                "(they count from 0)"
            )
        first, last = _frames_of(region, stream)
        limit = None if max_seconds is None else math.floor(max_seconds * stream.rate)
        if limit is not None and stream.slack is not None:
            _check_length((stream.frames if last is None else last) or 0, first, limit, stream)
        mono = _collect(stream, first, last, region.channel, limit)
        _check_complete(stream, first, last, len(mono))
    seconds = len(mono) / stream.rate
    _check_signal(mono)
    if stream.rate != rate:
        mono = _resample(mono, stream.rate, rate)
    return Clip(mono, seconds, region.start, region.end)


def _check_rate(rate: int, wanted: int) -> None:
    if not 0 < rate <= _HIGHEST_RATE:
        raise DecodeError(f"a sample rate of {rate} Hz cannot be; the header is wrong")
    if rate * _LOWEST_SHARE < wanted:
        raise DecodeError(
            f"a sample rate of {rate} Hz holds nothing above {rate // 2} Hz, too little for a "
            f"model that hears {wanted} Hz; the header is wrong, or this is no recording for it"
        )


def _frames_of(region: Region, stream: _Stream) -> tuple[int, int | None]:
    """The region's first and last frame, checked where the length is known; None is the end."""
    for value in (region.start, region.end):
        if value is not None and not math.isfinite(value):
            raise RegionError(f"a region's seconds must be finite, not {value}")
    first = round((region.start or 0.0) * stream.rate)
    last = None if region.end is None else round(region.end * stream.rate)
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


def _check_length(last: int, first: int, limit: int, stream: _Stream) -> None:
    if last - first > limit:
        raise TooLong(
            f"lasts {(last - first) / stream.rate:.6g} s, longer than the limit of "
            f"{limit / stream.rate:.6g} s; raise the limit or cut it into windows"
        )


def _collect(
    stream: _Stream, first: int, last: int | None, channel: int | None, limit: int | None
) -> np.ndarray:
    """(n,) float32 of one channel, or of the mean over all."""
    parts, got = [], 0
    for block in stream.read(first):
        block = block if last is None else block[: last - first - got]
        # Summed in float64: the same mean whatever the block, and never an overflow.
        one = block.mean(axis=1, dtype=np.float64) if channel is None else block[:, channel]
        parts.append(one.astype(np.float32))
        got += len(block)
        if limit is not None:
            _check_length(first + got, first, limit, stream)
        if last is not None and first + got >= last:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _check_complete(stream: _Stream, first: int, last: int | None, got: int) -> None:
    """Compare what was decoded with what the header and the region promise."""
    end = first + got
    if last is not None and end >= last:
        return
    promised = 0 if stream.frames is None or stream.slack is None else stream.frames
    if end + (stream.slack or 0) < promised:
        raise _truncated(end, promised)
    if last is not None and end + _tolerance(stream.rate) < last:
        raise _beyond(f"end {last / stream.rate:g} s", end, stream.rate)
    if got == 0 and first > 0:
        raise RegionError(f"start {first / stream.rate:g} s lies beyond the end")


def _check_signal(mono: np.ndarray) -> None:
    if len(mono) == 0:
        raise EmptyItem("holds no samples")
    if not np.isfinite(mono).all():
        raise EmptyItem("holds samples that are not finite (NaN or infinite)")
    if not mono.any():
        raise EmptyItem("nothing but zeros (digital silence)")


def _resample(mono: np.ndarray, source: int, rate: int) -> np.ndarray:
    import soxr

    # HQ computes in float32 whatever it is given: float64 gives the same samples (measured).
    samples: np.ndarray = soxr.resample(mono, source, rate, quality="HQ")
    if len(samples) == 0:
        raise EmptyItem(f"{len(mono)} samples at {source} Hz are none at {rate} Hz")
    return samples


@contextmanager
def _opened(content: object, array_rate: int) -> Iterator[_Stream]:
    if isinstance(content, np.ndarray):
        yield _of_array(content, array_rate)
        return
    if not isinstance(content, (Path, bytes)):
        raise DecodeError(f"a {type(content).__name__} is no sound; give a Path, bytes or an array")
    if not (len(content) if isinstance(content, bytes) else file_size(content)):
        raise EmptyItem("the file is empty (0 bytes)")
    import soundfile

    with ExitStack() as stack:
        source = _Bytes(content) if isinstance(content, bytes) else _named(content)
        handle = None
        try:
            handle = stack.enter_context(_forward_reader()(source))
        except TypeError as error:  # what soundfile says of .raw
            raise DecodeError(_HEADERLESS) from error
        except soundfile.LibsndfileError as error:
            if error.code not in _UNKNOWN_FORMAT:
                said = error.error_string.strip()
                raise DecodeError(f"not readable as audio: libsndfile: {said}") from error
        if handle is None:
            yield _of_container(stack.enter_context(opened_by_ffmpeg(content, "audio")))
        else:
            yield _of_libsndfile(handle, content)


def _of_array(values: np.ndarray, rate: int) -> _Stream:
    if values.ndim not in (1, 2):
        raise DecodeError(f"an array of shape {values.shape} is no sound; give (n,), (channels, n)")
    if values.ndim == 2 and values.shape[0] > values.shape[1]:
        raise DecodeError(
            f"an array of shape {values.shape} has more channels than samples; give (channels, n)"
        )
    columns = np.atleast_2d(values).T
    size = values.dtype.itemsize
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            columns = columns.astype(np.float32)
    elif values.dtype.kind in "iu" and size <= 4:
        middle = 0 if values.dtype.kind == "i" else 2 ** (8 * size - 1)
        columns = ((columns.astype(np.float64) - middle) / 2 ** (8 * size - 1)).astype(np.float32)
    else:
        raise DecodeError(f"samples of type {values.dtype} have no known scale; give floats in ±1")
    return _Stream(
        rate, columns.shape[1], len(columns), 0, 0, lambda first: iter((columns[first:],))
    )


def _named(path: Path) -> bytes | Path:
    """A path as soundfile takes it: as bytes, since it refuses a str that is not UTF-8."""
    return path if os.name == "nt" else os.fsencode(path)


class _Bytes(io.BytesIO):
    """Bytes in which a seek to before the beginning, as damaged headers ask for, goes nowhere."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # would be printed, not raised, from within libsndfile
            return self.tell()


@cache
def _forward_reader() -> Any:
    """soundfile's reader without its habit of seeking after each read.

    That seek makes what MP3 and Opus decode depend on the size of the reads (measured).
    """
    import soundfile

    class ForwardReader(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return ForwardReader


def _of_libsndfile(handle: Any, content: Path | bytes) -> _Stream:
    if handle.format == "RAW":  # libsndfile takes anything called .au or .vox for that
        raise DecodeError(_HEADERLESS)
    log, frames = handle.extra_info, handle.frames
    wrong = re.search(r"Bytes/sec\s*:\s*(-?\d+) \(should be (-?\d+)\)", log)
    if wrong:
        raise DecodeError(
            f"the header contradicts itself: it says {wrong[1]} bytes a second, "
            f"and a rate and frame size that make {wrong[2]}"
        )
    slack: int | None = 0
    if handle.format == "MP3":
        slack = 4 * 1152 if _mp3_has_length(content) else None
    known = frames < 1 << 62  # a streamed FLAC has no length
    direct = known and handle.subtype.startswith(_SEEKABLE)

    def read(first: int) -> Iterator[np.ndarray]:
        import soundfile

        step = max(1, _BLOCK // handle.channels)
        done = 0
        try:
            if direct and first:
                done = handle.seek(first)
            while len(block := handle.read(step, dtype="float32", always_2d=True)):
                if done + len(block) > first:
                    yield block[max(0, first - done) :]
                done += len(block)
        except soundfile.LibsndfileError as error:
            promised = f" of the {frames} it promises" if known else ""
            raise DecodeError(
                f"truncated or damaged: some {done} frames{promised} can be read "
                f"({error.error_string.strip() or 'the decoder lost its way'})"
            ) from error

    return _Stream(
        handle.samplerate,
        handle.channels,
        frames if known else None,
        slack if known else None,
        _missing_frames(log, frames),
        read,
    )


def _missing_frames(log: str, frames: int) -> int:
    """How many frames a header promises beyond the file's end: libsndfile only notes it."""
    pattern = r"^\s*(data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)"
    for _, promised, found in re.findall(pattern, log, re.MULTILINE):
        excess = int(promised) - int(found)
        if excess > 0 and int(found) and int(promised) < _PLACEHOLDER:
            return max(1, round(frames * excess / int(found)))
    return 0


def _mp3_has_length(content: Path | bytes) -> bool:
    """Whether an MP3's first frame carries its length; otherwise the bit rate gives a guess."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):
            size = 0
            for byte in head[6:10]:
                size = size << 7 | byte & 0x7F
            file.seek(10 + size)
            head = b""
        head += file.read(4096)
    return any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def _of_container(container: InputContainer) -> _Stream:
    from av import AudioResampler

    if not container.streams.audio:
        raise DecodeError("the file holds no sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise DecodeError("not readable as audio: FFmpeg has no decoder for it")
    decoded = container.decode(stream)
    head = next(decoded, None)
    if head is None:
        raise EmptyItem("holds no samples")
    # The first frame knows: some AAC headers give half of the rate that is decoded.
    rate, channels = head.sample_rate, head.layout.nb_channels
    length = None
    if stream.duration is not None and stream.time_base is not None:
        length = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        length = container.duration / 1e6
    # Of these two the length is written down; elsewhere FFmpeg guesses it from the bit rate.
    counted = container.format.name.startswith(("mov", "matroska"))

    def read(first: int) -> Iterator[np.ndarray]:
        convert, done = AudioResampler(format="flt"), 0
        for frame in chain([head], decoded, [None]):
            for piece in convert.resample(frame):
                block = piece.to_ndarray().reshape(-1, channels)
                if done + len(block) > first:
                    yield block[max(0, first - done) :]
                done += len(block)

    frames = None if length is None else round(length * rate)
    slack = max(rate // 10, 4096) if counted and frames is not None else None
    return _Stream(rate, channels, frames, slack, 0, read)


if not TYPE_CHECKING:  # a type checker would take every name of this module for a str

    def __getattr__(name: str) -> str:
        if name != "RESAMPLER":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import soxr

        return f"soxr-HQ/{soxr.__version__} (libsoxr {soxr.__libsoxr_version__})"
