"""Frames sampled uniformly from a video. Knows nothing of its sound, of windows or of models.

The i-th of n frames is the one on screen at (i + 0.5) / n of the region's time; a video with fewer
frames repeats them. The file is read twice: once for its times, once decoded frame by frame, so
that only the sampled frames are ever kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penult.data.files import file_size, opened_by_ffmpeg, text_words
from penult.data.image import check_pixels
from penult.data.regions import Region
from penult.errors import DecodeError, EmptyItem, RegionError, TooLong
from penult.memory import in_words

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg"}
    | {".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv", ".3gp"}
)
SAMPLING = "centres-of-n-equal-parts/1"  # for fingerprints: which frames a model is shown

_TOLERANCE = 0.1  # s: by how much a header may promise more than there is, and a region's end
_NO_SECONDS = "an array of frames has no seconds to cut at; cut it yourself"
_MOST_PIXELS = 1 << 26  # per frame, twice an 8K frame: a header alone can ask for any memory


def load(
    content: object,
    region: Region,
    frames: int,
    max_pixels: int | None = None,
    largest: int | None = None,
) -> np.ndarray:
    """(frames, height, width, 3) uint8, sampled over the region's seconds, upright.

    `content` is a Path, bytes or an array (n, height, width, 3) uint8: n frames of no known rate,
    so only as a whole. max_pixels: of a frame. largest: bytes of all frames together.

    Raises:
        DecodeError: not a video, truncated, frames too large.
        EmptyItem: no frames.
        RegionError: a start or end that the video does not have.
        TooLong: larger than the limits.
    """
    if isinstance(content, np.ndarray):
        return _of_array(content, region, frames)
    begin, length = _measured(content)
    first, last = _seconds_of(region, length)
    times = [begin + first + (i + 0.5) / frames * (last - first) for i in range(frames)]
    assert isinstance(content, (Path, bytes))  # else it was refused when it was measured
    with opened_by_ffmpeg(content, "video") as container:
        stream = _stream_of(container)
        _check_frames((frames, stream.width, stream.height), max_pixels, largest)
        shown = _shown_at(times, container, stream)
        one = next(shown)
        together = np.empty((frames, *one.shape), np.uint8)
        for number, frame in enumerate(chain([one], shown)):
            together[number] = frame
    return together


def _check_frames(size: tuple[int, int, int], max_pixels: int | None, largest: int | None) -> None:
    frames, width, height = size
    check_pixels(width, height, max_pixels)
    if largest is not None and 3 * frames * width * height > largest:
        raise TooLong(
            f"{frames} frames of {width} x {height} pixels take "
            f"{in_words(3 * frames * width * height)} decoded, more than the {in_words(largest)} "
            "that one item may take; give the run more (--memory)"
        )


def seconds(content: object) -> float:
    """How long a Path's or bytes' video lasts; nothing is decoded.

    Raises:
        DecodeError, EmptyItem: as `load`.
        RegionError: an array of frames, which has no seconds.
    """
    if isinstance(content, np.ndarray):
        raise RegionError(_NO_SECONDS)
    return _measured(content)[1]


def _measured(content: object) -> tuple[float, float]:
    """When a video begins and how long it lasts."""
    if not isinstance(content, (Path, bytes)):
        raise DecodeError(
            f"a {type(content).__name__} is no video; give a Path, bytes or an array of frames"
        )
    if not (len(content) if isinstance(content, bytes) else file_size(content)):
        raise DecodeError("the file is empty (0 bytes)")
    try:
        with opened_by_ffmpeg(content, "video") as container:
            return _span(container)
    except DecodeError as error:
        if words := text_words(content):
            raise DecodeError(f"not readable as video: {words}") from error
        raise


def _of_array(values: np.ndarray, region: Region, frames: int) -> np.ndarray:
    if values.ndim != 4 or values.shape[3] != 3 or values.dtype != np.uint8:
        raise DecodeError(
            f"an array of shape {values.shape} and type {values.dtype} is no video; "
            "give (frames, height, width, 3) uint8"
        )
    if values.size == 0:
        raise EmptyItem(f"an array of shape {values.shape} has no pixels")
    if region.start is not None or region.end is not None:
        raise RegionError(_NO_SECONDS)
    return values[[int((i + 0.5) / frames * len(values)) for i in range(frames)]]


def _stream_of(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise DecodeError("the file holds no pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError("not readable as video: FFmpeg has no decoder for it")
    if stream.width * stream.height > _MOST_PIXELS:
        raise DecodeError(f"frames of {stream.width}x{stream.height} pixels are too large to open")
    return stream


def _span(container: InputContainer) -> tuple[float, float]:
    """When the first frame is shown and how long all last, in seconds; nothing is decoded."""
    stream = _stream_of(container)
    if stream.time_base is None:
        raise DecodeError("the file holds no times")
    begin, end, count = math.inf, -math.inf, 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the empty packet that ends a stream
        count += 1
        if packet.pts is not None:
            begin = min(begin, packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
    if not count:
        raise EmptyItem("holds no frames")
    if end <= begin:  # no times, or a single frame: count them
        begin, end = 0.0, count / float((stream.average_rate or 25) * stream.time_base)
    unit = float(stream.time_base)
    length, promised = (end - begin) * unit, (stream.duration or 0) * unit
    if length + max(_TOLERANCE, 2 * length / count) < promised:
        raise DecodeError(
            f"truncated or damaged: holds {length:.6g} s of the {promised:.6g} s it promises"
        )
    return begin * unit, length


def _seconds_of(region: Region, length: float) -> tuple[float, float]:
    first = region.start or 0.0
    last = length if region.end is None else region.end
    if first >= length or last > length + _TOLERANCE:
        what = f"start {first:g} s" if first >= length else f"end {last:g} s"
        raise RegionError(f"{what} lies beyond the end: it lasts {length:.6g} s")
    return first, min(last, length)


def _shown_at(
    times: list[float], container: InputContainer, stream: VideoStream
) -> Iterator[np.ndarray]:
    """For each of the ascending times the frame on screen, (height, width, 3)."""
    stream.thread_type = "AUTO"
    pending, size = list(reversed(times)), None
    shown: VideoFrame | None = None
    step = 1 / float(stream.average_rate or 25)
    for index, frame in enumerate(container.decode(stream)):
        time = index * step if frame.time is None else frame.time
        size = size or (frame.width, frame.height)
        if shown is not None:
            yield from _repeated(shown, size, pending, before=time)
        if not pending:
            return
        shown = frame
    if shown is None or size is None:
        raise EmptyItem("holds no frames")
    yield from _repeated(shown, size, pending, before=math.inf)


def _repeated(
    frame: VideoFrame, size: tuple[int, int], pending: list[float], before: float
) -> Iterator[np.ndarray]:
    """The frame once for each time it is on screen; `pending` loses these times."""
    picture = None
    while pending and pending[-1] < before:
        pending.pop()
        if picture is None:
            # A stream may change its size on the way: the first frame's holds for all.
            flat = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            picture = np.rot90(flat, (frame.rotation // 90) % 4)
        yield picture
