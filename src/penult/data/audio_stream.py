"""Blocks of an open recording, read forward: a file, bytes or an array in the order of time."""

from __future__ import annotations

import io
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from penult.data.containers import PLACEHOLDER, Part, Spliced, Survey, opened, survey
from penult.data.files import (
    ffmpeg_errors,
    file_size,
    item_error,
    names_passing,
    opened_by_ffmpeg,
    text_words,
)
from penult.data.items import is_object
from penult.data.levels import check_integers, check_scale
from penult.errors import DecodeError, EmptyItem, ItemError, PassingFault

if TYPE_CHECKING:
    from av.container import InputContainer


BLOCK = 1 << 16  # values per read: what bounds the memory of a many-channel file

# Seeking is exact here (measured). In Vorbis it lands elsewhere near the end of the file, in MP3
# the bit reservoir is missing and whole frames differ: these are decoded from the beginning.
_SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_PROBE, _PROBES = 1 << 12, 16  # values, and places, that show a file's scale
# Of these containers FFmpeg reads a length that is written down; else it guesses by the bit rate.
_LENGTH_WRITTEN = ("mov", "matroska", "flac", "tta", "wv", "caf", "ape")
_HEAD_BYTES = {"AIFF": 8, "W64": 24}  # of a chunk of sound that are none, by libsndfile's names
_HEADERLESS = (
    "not readable as audio: without a header nothing says its rate. Write one: for 16-bit samples "
    "of one channel, ffmpeg -f s16le -ar RATE -ac 1 -i FILE FILE.wav; in Python give (array, rate)"
)
# libsndfile's codes: an error of the system; format not recognised, encoding not supported.
_SYSTEM = 2
_LONGEST_NAME = 1000  # bytes of a path; libsndfile takes hardly more
_UNKNOWN_FORMAT = (1, 4)
_UNKNOWN_CODING = (64, 161)  # a `fmt ` chunk that it does not know, FLAC in Ogg as FFmpeg writes it


@dataclass(frozen=True, slots=True)
class Stream:
    """Sound that is open: `read(first, last)` yields blocks (n, channels) float32 from frame
    `first` on, at least to frame `last`, to the end where that is None.

    Where `seeks`, it can be called again and again and reads no further than `last`, so that
    damage behind does not matter. Elsewhere it can be called once, and its blocks lie at the same
    places for every span: damage is met at the same frame by every read that reaches it.
    """

    rate: int
    channels: int
    frames: int | None  # None: not known before decoding
    slack: int | None  # by how much decoding may fall short of `frames`; None: it is an estimate
    missing: int  # frames that the header promises and the file does not hold
    seeks: bool
    read: Callable[[int, int | None], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()  # what a header has wrong, and was read nevertheless
    cut: str = ""  # what shows that the end is missing, where no header has the length


@contextmanager
def open_stream(content: object, array_rate: int) -> Iterator[Stream]:
    """The sound of a Path, of bytes, or of an array of that rate, until the `with` ends.

    Raises:
        DecodeError: it is no sound, or nothing here can read it.
        EmptyItem: no bytes, or no samples.
    """
    if isinstance(content, np.ndarray):
        yield _of_array(content, array_rate)
        return
    if not isinstance(content, (Path, bytes)):
        raise DecodeError(f"a {type(content).__name__} is no sound; give a Path, bytes or an array")
    if not (len(content) if isinstance(content, bytes) else file_size(content)):
        raise EmptyItem("the file is empty (0 bytes)")
    found = survey(content)
    with _opened_parts(content, found) as stream:
        missing = stream.missing if stream.slack is not None else 0
        if found.lost is not None and stream.slack is not None:
            missing = math.ceil(round((stream.frames or 0) * found.lost, 3))
        cut = "" if missing else found.cut
        yield replace(stream, missing=missing, notes=found.notes, cut=cut)


@contextmanager
def _opened_parts(content: Path | bytes, found: Survey) -> Iterator[Stream]:
    with ExitStack() as stack:
        try:
            if found.parts:
                file = stack.enter_context(opened(content))
            if len(found.parts) > 1:
                stream = _chain(file, found.parts)
            elif found.parts:
                stream = stack.enter_context(_opened_part(Spliced(file, found.parts[0])))
            else:
                stream = stack.enter_context(_opened_part(content))
        except DecodeError as error:
            if words := text_words(content):
                raise DecodeError(f"not readable as audio: {words}") from error
            if found.cut:
                raise DecodeError(f"truncated or damaged: {found.cut}; {error}") from error
            raise
        yield stream


@contextmanager
def _opened_part(content: Path | bytes | Spliced) -> Iterator[Stream]:
    """One recording: by libsndfile, or by FFmpeg what that does not know."""
    import soundfile

    with ExitStack() as stack:
        handle, refused, named = None, None, _named(content)
        if isinstance(named, bytes) and len(named) >= _LONGEST_NAME:
            named = stack.enter_context(Path(os.fsdecode(named)).open("rb"))
        try:
            handle = stack.enter_context(_unseekable_reader()(named))
        except TypeError as error:  # soundfile raises it for .raw
            raise DecodeError(_HEADERLESS) from error
        except soundfile.LibsndfileError as error:
            reason = error.error_string.strip()
            _check_system(error.code, reason)
            reason = _REASONS.get(reason, reason)
            refused = DecodeError(f"not readable as audio: libsndfile: {reason}")
            unknown = error.code in _UNKNOWN_FORMAT
            if not unknown and error.code not in _UNKNOWN_CODING:
                raise refused from error
        if handle is not None:
            yield _of_libsndfile(handle, content)
            return
        if isinstance(content, Spliced):
            content.seek(0)
        try:
            stream = _of_container(stack.enter_context(opened_by_ffmpeg(content, "audio")))
        except ItemError:
            if unknown or refused is None:
                raise
            raise refused from None  # which has the better reason
        yield stream


def _chain(file: BinaryIO, parts: tuple[Part, ...]) -> Stream:
    """Recordings that were joined in one file, as one."""
    streams: list[Stream] = []
    for part in parts:
        with _opened_part(Spliced(file, part)) as stream:
            streams.append(stream)
    _check_alike(streams)

    def read(first: int, last: int | None) -> Iterator[np.ndarray]:
        done = 0
        for number, part in enumerate(parts):
            begin = done
            with _opened_part(Spliced(file, part)) as stream:
                for block in stream.read(0, None):
                    if done + len(block) > first:
                        yield block[max(0, first - done) :]
                    done += len(block)
            part_frames, slack = streams[number].frames, streams[number].slack
            known = part_frames is not None and slack is not None and number + 1 < len(parts)
            if known and done - begin + (slack or 0) < (part_frames or 0):
                raise DecodeError(
                    f"truncated or damaged: part {number + 1} of {len(parts)} holds "
                    f"{done - begin} frames of the {part_frames} it promises"
                )

    frames = [stream.frames for stream in streams if stream.frames is not None]
    slack = [stream.slack for stream in streams if stream.slack is not None]
    complete = len(frames) == len(streams)
    return replace(
        streams[0],
        frames=sum(frames) if complete else None,
        slack=sum(slack) if complete and len(slack) == len(streams) else None,
        missing=streams[-1].missing,
        seeks=False,
        read=read,
    )


def _check_alike(streams: list[Stream]) -> None:
    first, begin = streams[0], 0.0
    for number, stream in enumerate(streams, 1):
        if (stream.rate, stream.channels) != (first.rate, first.channels):
            raise DecodeError(
                f"{len(streams)} recordings joined in one file, and part {number}, from "
                f"{begin:g} s on, has a rate of {stream.rate} Hz and {stream.channels} channels, "
                f"where the first has {first.rate} Hz and {first.channels}; convert them to one, "
                "or take the file apart"
            )
        begin += (stream.frames or 0) / stream.rate


def _of_array(values: np.ndarray, rate: int) -> Stream:
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
        check_scale([columns])
    elif values.dtype.kind in "iu" and size <= 4:
        check_integers(values)
        middle = 0 if values.dtype.kind == "i" else 2 ** (8 * size - 1)
        columns = ((columns.astype(np.float64) - middle) / 2 ** (8 * size - 1)).astype(np.float32)
    else:
        raise DecodeError(f"samples of type {values.dtype} have no known scale; give floats in ±1")
    return Stream(
        rate,
        columns.shape[1],
        len(columns),
        slack=0,
        missing=0,
        seeks=True,
        read=lambda first, last: iter((columns[first:last],)),
    )


def _named(content: Path | bytes | Spliced) -> bytes | Path | io.IOBase:
    """Content as soundfile takes it: a path as bytes, since it refuses a str that is not UTF-8."""
    if isinstance(content, Path) and is_object(content):
        return content.open_quietly()  # type: ignore[attr-defined,no-any-return]
    if isinstance(content, Path):
        return content if os.name == "nt" else os.fsencode(content)
    return _Bytes(content) if isinstance(content, bytes) else content


# Of a file that is there, and whose header it cannot follow, libsndfile says other things.
_REASONS = {
    "File does not exist or is not a regular file (possibly a pipe?).": "no sound is found in it",
    "Unspecified internal error.": "its header is damaged",
}


class _Bytes(io.BytesIO):
    """Bytes in which a seek to before the beginning, as damaged headers ask for, goes nowhere."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # would be printed, not raised, from within libsndfile
            return self.tell()


@cache
def _unseekable_reader() -> Any:
    """soundfile's reader without its habit of seeking after each read.

    That seek makes what MP3 and Opus decode depend on the size of the reads (measured).
    """
    import soundfile

    class Unseekable(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Unseekable


def _of_libsndfile(handle: Any, content: Path | bytes | Spliced) -> Stream:
    if handle.format == "RAW":  # libsndfile takes anything called .au or .vox for that
        raise DecodeError(_HEADERLESS)
    frames = handle.frames
    known = frames < 1 << 62  # a streamed FLAC has no length
    direct = known and handle.subtype.startswith(_SEEKABLE)
    if direct:
        check_scale(_probes(handle))

    def read(first: int, last: int | None) -> Iterator[np.ndarray]:
        import soundfile

        step = max(1, BLOCK // handle.channels)
        done = 0
        try:
            if direct:
                done = handle.seek(first)
            while size := step if last is None or not direct else min(step, last - done):
                block = handle.read(size, dtype="float32", always_2d=True)
                if not len(block):
                    break
                if done + len(block) > first:
                    yield block[max(0, first - done) :]
                done += len(block)
        except soundfile.LibsndfileError as error:
            _check_system(error.code, error.error_string.strip())
            promised = f" of the {frames} it promises" if known else ""
            raise DecodeError(
                f"truncated or damaged: some {done} frames{promised} can be read "
                f"({error.error_string.strip() or 'the decoder lost its way'})"
            ) from error

    return Stream(
        handle.samplerate,
        handle.channels,
        frames if known else None,
        _slack(handle, content) if known else None,
        _missing_frames(handle),
        direct,
        read,
    )


def _check_system(code: int, words: str) -> None:
    """Raises what libsndfile says of the system as a PassingFault."""
    if code == _SYSTEM and names_passing(words):
        raise PassingFault(f"cannot be read: {words}")


def _slack(handle: Any, content: Path | bytes | Spliced) -> int | None:
    if handle.format == "MP3":
        return 4 * 1152 if _mp3_has_length(content) else None
    return None if handle.subtype.startswith("MPEG") else 0  # in WAV: a mean over the bytes


def _probes(handle: Any) -> list[np.ndarray]:
    """Some blocks of a recording, spread evenly over it. The next read starts at its beginning."""
    import soundfile

    if handle.subtype not in ("FLOAT", "DOUBLE"):
        return []  # integers have a scale
    frames, size = handle.frames, max(1, _PROBE // handle.channels)
    blocks = []
    try:
        for start in np.linspace(0, max(0, frames - size), 1 if frames <= size else _PROBES):
            handle.seek(int(start))
            blocks.append(handle.read(size, dtype="float32", always_2d=True))
        handle.seek(0)
    except soundfile.LibsndfileError:  # told where it is read
        return blocks
    return blocks


def _missing_frames(handle: Any) -> int:
    """How many frames a header promises beyond the file's end: libsndfile only notes it."""
    log, frames, format = handle.extra_info, int(handle.frames), handle.format
    # Of the file's own size, which comes first in the log, some bytes are no sound.
    for name in ("data", "Data Size", "SSND", "riff", "Riff size"):
        pattern = rf"^\s*{name}\s*:\s*(\d+) \(should be (\d+)\)"
        for promised, found in re.findall(pattern, log, re.MULTILINE):
            sound = int(found) - _HEAD_BYTES.get(format, 0)
            excess = int(promised) - int(found)
            if excess > 0 and sound > 0 and int(promised) < PLACEHOLDER:
                return max(1, -(-frames * excess // sound))
    return 0


def _mp3_has_length(content: Path | bytes | Spliced) -> bool:
    """Whether an MP3's first frame carries its length; otherwise the bit rate gives a guess."""
    with nullcontext(content) if isinstance(content, Spliced) else opened(content) as file:
        place = file.tell()
        file.seek(0)
        head = file.read(10)
        if head.startswith(b"ID3"):
            size = 0
            for byte in head[6:10]:
                size = size << 7 | byte & 0x7F
            file.seek(10 + size)
            head = b""
        head += file.read(4096)
        file.seek(place)  # which libsndfile counts on
    return any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def _of_container(container: InputContainer) -> Stream:
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
    counted = container.format.name.startswith(_LENGTH_WRITTEN)

    def read(first: int, last: int | None) -> Iterator[np.ndarray]:
        convert, done = AudioResampler(format="flt"), 0
        with ffmpeg_errors("audio"):
            for frame in chain([head], decoded, [None]):
                for piece in convert.resample(frame):
                    block = piece.to_ndarray().reshape(-1, channels)
                    if done + len(block) > first:
                        yield block[max(0, first - done) :]
                    done += len(block)

    frames = None if length is None else round(length * rate)
    slack = max(rate // 10, 4096) if counted and frames is not None else None
    return Stream(rate, channels, frames, slack, 0, False, read)


UNFORESEEN = (OSError, ValueError, RuntimeError, IndexError, TypeError)  # what decoders raise


class ForwardReader:
    """`read` gives what the stream's own gives, and may be called again and again.

    A span that begins before the kept blocks is decoded from the beginning, or sought for where
    the format seeks exactly; so is a stretch far ahead. Where decoding fails, `damaged` is set,
    and every read that reaches it raises the same error.
    """

    def __init__(self, content: object, array_rate: int) -> None:
        self._content, self._array_rate = content, array_rate
        self._resources = ExitStack()
        self._stream: Stream | None = None
        self._unreadable: ItemError | None = None
        self._start(iter(()), 0)

    def __enter__(self) -> ForwardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything; the next use opens the stream again."""
        self._stream = None
        self._start(iter(()), 0)
        self._resources.close()

    @property
    def stream(self) -> Stream:
        """The stream, opened if it is not open.

        Raises:
            ItemError: it cannot be opened.
        """
        if self._unreadable is not None:
            raise _same_error(self._unreadable)
        if self._stream is None:
            try:
                self._stream = self._resources.enter_context(
                    open_stream(self._content, self._array_rate)
                )
            except ItemError as error:
                self._unreadable = _same_error(error)
                raise
            self._start(self._stream.read(0, None), 0)
        return self._stream

    def read(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Blocks (n, channels) float32 from frame `first` on, at least to `last` or to the end."""
        self._wind(first)
        for begin, block in tuple(self._kept):
            yield block[max(0, first - begin) :]
        while last is None or self._end < last:
            begin, found = self._end, self._next()
            if found is None:
                return
            self._forget(first)
            if self._end > first:
                yield found[max(0, first - begin) :]

    def _start(self, blocks: Iterator[np.ndarray], first: int) -> None:
        self._blocks = blocks
        self._kept: deque[tuple[int, np.ndarray]] = deque()
        self._begin = self._end = first
        self.damaged: ItemError | None = None

    def _wind(self, first: int) -> None:
        back = first < self._begin
        if self.stream.seeks and (back or first - self._end > BLOCK // self.stream.channels):
            self._start(self.stream.read(first, None), first)
        elif back:
            self.close()
            _ = self.stream
        self._forget(first)

    def _forget(self, first: int) -> None:
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= first:
            begin, block = self._kept.popleft()
            self._begin = begin + len(block)

    def _next(self) -> np.ndarray | None:
        if self.damaged is not None:
            raise _same_error(self.damaged)
        try:
            block = next(self._blocks, None)
        except ItemError as error:
            self.damaged = _same_error(error)
            raise
        except UNFORESEEN as error:
            self.damaged = item_error(error)
            raise _same_error(self.damaged) from error
        except BaseException:
            self.close()  # the decoder stopped half way, and would go on as if nothing were missing
            raise
        if block is not None:
            self._kept.append((self._end, block))
            self._end += len(block)
        return block


def _same_error(error: ItemError) -> ItemError:
    """The same error anew: one that is raised often would carry every place where it was raised."""
    return type(error)(str(error))
