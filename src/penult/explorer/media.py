"""Sounds, pictures, frames and texts of rows, from their files as they are now. Files are opened as
for a model: in worker processes, within limits.
"""

from __future__ import annotations

import io
import threading
import wave
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from penult.collection.collection import Collection
from penult.collection.transfer import item_of_row
from penult.data.audio import AudioInfo
from penult.data.decode import (
    MAX_CHARACTERS,
    MAX_PIXELS,
    DecodedRegion,
    DecodeTarget,
    HeaderPart,
    usual_decoding,
)
from penult.data.items import Failure, Item
from penult.data.regions import Region, frame_at
from penult.data.tables import PATH
from penult.data.text import text_in
from penult.data.workers import decode, prepare_worker
from penult.errors import ItemError, RegionError, SourceError, UsageError

LONGEST = 120.0  # seconds of sound in one answer
SMALLEST, LARGEST = 16, 4096  # pixels of a picture's longer side
_FRAMES = 8  # of a video that are offered
_FRAME = 960  # pixels of a frame's longer side
_SHOWN = 500  # bytes of a file of any kind
_HELD = 256 << 20  # bytes of answers that are kept
_AT_ONCE = 4  # files that are opened
_QUALITY = 88
_SHORT = 0.04  # seconds of a video that a frame is asked of
COLUMNS = ("id", "region", "kind", "start", "end", "channel", "size", "mtime_ns")
T = TypeVar("T")
Facts = Mapping[str, Any]  # of a row: COLUMNS, and `path` and `text` where there are such columns


@dataclass(frozen=True, slots=True)
class MediaAnswer:
    """Bytes for a page. start: seconds in the recording where a sound begins."""

    content: bytes
    type: str
    start: float = 0.0


class LatestUsed:
    """Answers of the last calls, up to so many bytes. Threads may share one."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._guard = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What is kept under a key, else what is made now."""
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: T = self._kept[key][0]
                return found
        made = make()
        with self._guard:
            self._size += size(made) - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = made, size(made)
            while self._size > self._most:
                self._size -= self._kept.popitem(last=False)[1][1]
        return made


class MediaFiles:
    """The media of a collection's rows. Threads may share one."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._kept = LatestUsed(_HELD)
        self._turns = threading.BoundedSemaphore(_AT_ONCE)

    @property
    def modality(self) -> str:
        """Of all items: audio, image, video, text, array or bytes."""
        return str(self._collection.reader.require_manifest().model.get("modality"))

    def prepare(self) -> None:
        """Start a worker that the first sound is decoded in."""
        prepare_worker(self.modality, usual_decoding().briefly)

    def sound(self, row: Facts, before: float = 0.0, after: float = 0.0) -> MediaAnswer:
        """The sound of a row and what is around it, LONGEST at most: WAV with 16 bits, at the rate
        of the recording, of the row's channel or the mean over all.

        Raises:
            ItemError: the file is gone or cannot be read. UsageError: the row is no sound.
        """
        self._check("audio")
        item = self._item(row)
        about = self._sound_header(item)
        start = max(0.0, (row["start"] or 0.0) - before)
        end = about.seconds if row["end"] is None else row["end"] + after
        if about.exact:
            end = min(end, about.seconds)
        first = frame_at(start, about.rate)
        frames = min(frame_at(end, about.rate) - first, int(LONGEST * about.rate))
        if frames < 1:
            raise RegionError(
                f"start {start:g} s lies beyond the end: it lasts {about.seconds:g} s"
            )
        key = ("audio", *_file_key(item), first, frames, row["channel"])

        def make() -> MediaAnswer:
            # To the end, and so many of its first: a header may promise less or more than there is.
            region = Region("segment", start, None, row["channel"])
            enough = (frames + 0.5) / about.rate
            target = DecodeTarget("audio", about.rate, first_seconds=enough)
            samples = self._decoded(item, region, target)
            return MediaAnswer(_wav(samples, about.rate), "audio/wav", first / about.rate)

        return self._kept.get(key, make, _size)

    def picture(self, row: Facts, size: int = 512) -> MediaAnswer:
        """The whole picture of a row, or its page, its longer side scaled down to so many pixels.

        Raises:
            ItemError: the file is gone or cannot be read. UsageError: the row is no picture.
        """
        self._check("image")
        item, page = self._item(row), _region(row).page
        key = ("image", *_file_key(item), page, size)

        def make() -> MediaAnswer:
            region = Region() if page is None else Region("page", page=page)
            target = DecodeTarget("image", max_pixels=MAX_PIXELS)
            return _scaled(self._decoded(item, region, target), size)

        return self._kept.get(key, make, _size)

    def frame(self, row: Facts, at: float) -> MediaAnswer:
        """The frame of a video that is on screen at so many seconds.

        Raises:
            ItemError: the file is gone or cannot be read. UsageError: the row is no video.
        """
        self._check("video")
        item = self._item(row)
        seconds = float(self._header(item, "length", Region()))
        first = max(0.0, min(at, seconds - _SHORT))
        key = ("video", *_file_key(item), round(first, 3))

        def make() -> MediaAnswer:
            region = Region("segment", first, min(first + _SHORT, seconds) or None)
            target = DecodeTarget("video", frames=1, max_pixels=MAX_PIXELS)
            return _scaled(self._decoded(item, region, target)[0], _FRAME)

        return self._kept.get(key, make, _size)

    def path(self, row: Facts) -> Path:
        """The file of a row.

        Raises:
            SourceError: it has none, or none is there.
        """
        content = self._item(row).content
        if not isinstance(content, Path):
            raise SourceError("this row is of a text that is in no file of its own")
        return content

    def document(self, row: Facts) -> dict[str, Any]:
        """For JSON: where the media of a row are, and what their headers say; or why there are
        none."""
        kind, region = self.modality, _region(row)
        found: dict[str, Any] = dict.fromkeys(
            ("url", "start", "end", "seconds", "rate", "width", "height", "box", "text", "error")
        )
        found |= {"kind": kind, "frames": [], "start": row["start"], "end": row["end"]}
        found["box"] = None if region.box is None else list(region.box)
        try:
            found |= _DOCUMENTS[kind](self, row)
        except (ItemError, UsageError) as error:
            found["error"] = str(error)
        return found

    def is_changed(self, row: Facts) -> bool:
        """Whether the file of a row is there and another one than was embedded."""
        try:
            item = self._item(row)
        except SourceError:
            return False
        return (item.size, item.mtime_ns) != (row["size"], row["mtime_ns"])

    def _sound_document(self, row: Facts) -> dict[str, Any]:
        about = self._sound_header(self._item(row))
        return {"url": _url("audio", row), "seconds": about.seconds, "rate": about.rate}

    def _picture_document(self, row: Facts) -> dict[str, Any]:
        page = _region(row).page
        region = Region() if page is None else Region("page", page=page)
        width, height = self._header(self._item(row), "size", region)
        return {"url": _url("image", row), "width": width, "height": height}

    def _video_document(self, row: Facts) -> dict[str, Any]:
        seconds = float(self._header(self._item(row), "length", Region()))
        start = row["start"] or 0.0
        length = (seconds if row["end"] is None else min(row["end"], seconds)) - start
        times = [round(start + (at + 0.5) / _FRAMES * length, 3) for at in range(_FRAMES)]
        urls = [_url("frame", row, at=time) for time in times]
        return {"url": urls[0], "frames": urls, "seconds": seconds}

    def _text_document(self, row: Facts) -> dict[str, Any]:
        if isinstance(row.get("text"), str):
            return {"text": text_in(row, row["region"])}
        target = DecodeTarget("text", max_characters=MAX_CHARACTERS)
        return {"text": self._decoded(self._item(row), _region(row), target)}

    def _array_document(self, row: Facts) -> dict[str, Any]:
        values = self._decoded(self._item(row), _region(row), DecodeTarget("array"))
        sizes = " × ".join(map(str, values.shape))
        return {"text": f"an array of {sizes} numbers, {values.dtype}"}

    def _bytes_document(self, row: Facts) -> dict[str, Any]:
        ends = self._decoded(self._item(row), _region(row), DecodeTarget("bytes"))
        shown = ends.first[:_SHOWN].decode("utf-8", "replace")
        plain = "".join(one if one.isprintable() or one in "\n\t" else "·" for one in shown)
        return {"text": f"{ends.size:,} bytes\n\n{plain}{'…' if ends.size > _SHOWN else ''}"}

    def _check(self, modality: str) -> None:
        if self.modality != modality:
            raise UsageError(f"the rows of this collection are {self.modality}, not {modality}")

    def _item(self, row: Facts) -> Item:
        """The item of a row.

        Raises:
            SourceError: it has no file, or none is there.
        """
        roots = self._collection.reader.roots
        item = item_of_row(dict(row), {PATH: row.get(PATH)}, self.modality, roots)
        if isinstance(item, Failure):
            what = "bytes or an array" if row["id"].startswith("sha256:") else "no file by its id"
            raise SourceError(f"this row was given as {what}, so that there is nothing to open")
        if item.size is None:
            old = roots.root_of(row["id"]) or "OLD_FOLDER"
            raise SourceError(
                f"there is no file {item.content!s} now; if it was moved, `penult relocate "
                f"{self._collection.path} {old} NEW_FOLDER` names its new place"
            )
        return item

    def _sound_header(self, item: Item) -> AudioInfo:
        found = self._header(item, "sound", Region())
        assert isinstance(found, AudioInfo)
        return found

    def _header(self, item: Item, part: HeaderPart, region: Region) -> Any:
        target = DecodeTarget(self.modality, header=part)
        key = (part, *_file_key(item), region.key)
        return self._kept.get(key, lambda: self._decoded(item, region, target), lambda _: 256)

    def _decoded(self, item: Item, region: Region, target: DecodeTarget) -> Any:
        with self._turns:
            found = decode([(item, region)], target, usual_decoding().briefly)
            with closing(found):
                one = next(iter(found))
        assert isinstance(one, DecodedRegion)
        if isinstance(one.content, ItemError):
            raise one.content
        return one.content.values


_DOCUMENTS: dict[str, Callable[[MediaFiles, Facts], dict[str, Any]]] = {
    "audio": MediaFiles._sound_document,
    "image": MediaFiles._picture_document,
    "video": MediaFiles._video_document,
    "text": MediaFiles._text_document,
    "array": MediaFiles._array_document,
    "bytes": MediaFiles._bytes_document,
}


def _region(row: Facts) -> Region:
    return Region.of_key(row["region"], row["kind"]).base


def _file_key(item: Item) -> tuple[Any, ...]:
    """Of a file as it is now."""
    return str(item.content), item.size, item.mtime_ns


def _url(kind: str, row: Facts, **more: Any) -> str:
    return f"/media/{kind}?{urlencode({'id': row['id'], 'region': row['region'], **more})}"


def _size(answer: MediaAnswer) -> int:
    return len(answer.content)


def _wav(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """One channel with 16 bits; samples of 16 bits come out as they were."""
    whole = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(whole.tobytes())
    return file.getvalue()


def _scaled(picture: Any, size: int) -> MediaAnswer:
    """A picture, or (height, width, 3) uint8, as a JPEG no larger than so many pixels."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    size = min(max(size, SMALLEST), LARGEST)
    picture = picture.convert("RGB")
    if max(picture.size) > size:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Small ones are looked at pixel by pixel.
    if max(picture.size) <= 256:
        picture.save(file, "PNG")
        return MediaAnswer(file.getvalue(), "image/png")
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(file, "JPEG", quality=_QUALITY)
    return MediaAnswer(file.getvalue(), "image/jpeg")
