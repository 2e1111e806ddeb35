"""Regions to decoded values: sound, images, frames and texts, in order. Knows no model.

Regions of one item that come one after the other are cut out of one decoding.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, tee
from pathlib import Path
from typing import Any, Literal, TypeVar

from penult.data import array, audio, image, text, video
from penult.data import bytes as file_bytes
from penult.data.files import item_error
from penult.data.items import Entry, Failure, Item, N, Note, Pause, UntilError
from penult.data.regions import Region
from penult.errors import EmptyItem, ItemError, PenultError, RegionError, UsageError
from penult.memory import MemoryBound, bytes_of, check_size, parse_size

# What a library may raise on a file that it was not written for.
UNFORESEEN = (ValueError, RuntimeError, IndexError, TypeError, AssertionError, ZeroDivisionError)

Pair = tuple[Item, Region]
P = TypeVar("P")

# length: of sound or video, of sound only as exact as the region needs it. sound: as its header
# has it. size: of a picture's page. pages: of a picture.
HeaderPart = Literal["length", "sound", "size", "pages"]
Header = audio.AudioInfo | float | int | tuple[int, int]
HEADERS = (audio.AudioInfo, float, int, tuple)


@dataclass(frozen=True, slots=True)
class DecodeTarget:
    """What a model takes: modality, samples per second of sound, frames of a video. For sound:
    the longest region, in seconds, that is read at all, and how many of its first are enough. Of
    pictures and frames: the most pixels; of texts: the first characters that are kept. largest:
    bytes of one item's content, decoded. kept_seconds: what a model of a fixed length takes of a
    sound, and a margin; what lies behind is read and checked, and not kept. header: what is read
    of an item's header in place of its content. band, playback_rate: as `audio.Playback`."""

    modality: str
    rate: int | None = None
    frames: int | None = None
    max_seconds: float | None = None
    first_seconds: float | None = None
    max_pixels: int | None = None
    max_characters: int | None = None
    largest: int | None = None
    kept_seconds: float | None = None
    header: HeaderPart | None = None
    band: tuple[float, float] | None = None
    playback_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Content:
    """A region's decoded content, and where in the item it lies (seconds; None: no time axis).
    pages: of a picture, how many were decoded where it has more; else None. notes: of an
    item that was read against its own header. left: characters of a text behind those in
    `values`."""

    values: Any
    start: float | None = None
    end: float | None = None
    pages: int | None = None
    notes: tuple[str, ...] = ()
    left: int = 0

    @property
    def size(self) -> int:
        """Bytes of the values, about."""
        return bytes_of(self.values)


@dataclass(frozen=True, slots=True)
class DecodedRegion:
    """A region and its content, or why there is none; and the seconds that this took."""

    item: Item
    region: Region
    content: Content | ItemError
    seconds: float = 0.0


def open_regions(
    pairs: Iterable[Pair | Failure | N], target: DecodeTarget
) -> Generator[DecodedRegion | Failure | N, None, None]:
    """Each region's content, in order, decoded here; failures and notes pass through."""
    groups: Iterable[tuple[Any, Iterator[Any]]] = groupby(pairs, key=item_key)
    for key, group in groups:
        if key is None:
            yield from group
        else:
            yield from _decode_item(group, target)


def item_key(value: Any) -> tuple[str, Any] | None:
    """Equal for regions of one item; None for a failure or a note."""
    if type(value) is not tuple:
        return None
    content = value[0].content
    return value[0].id, content if isinstance(content, Path) else id(content)


def _decode_item(group: Iterator[Pair], target: DecodeTarget) -> Iterator[DecodedRegion]:
    """The regions of one item, from one pass over it."""
    pending: deque[Pair] = deque()
    first = next(group)

    def regions() -> Iterator[Region]:
        for pair in chain([first], group):
            pending.append(pair)
            yield pair[1].base  # a patch is cut by the preprocessing

    try:
        began = time.perf_counter()
        read = _headers if target.header else _READERS[target.modality]
        for content in read(first[0], regions(), target):
            item, region = pending.popleft()
            # Of an object in a store whose bytes did not come, and whose decoder could not tell.
            content = getattr(first[0].content, "failure", None) or content
            yield DecodedRegion(item, region, content, time.perf_counter() - began)
            began = time.perf_counter()
    except Exception as error:  # ends this item, not the run
        if isinstance(error, PenultError) and not isinstance(error, ItemError):
            raise
        reason = item_error(error)
        rest = [*(pending or [first]), *group]
        yield from (DecodedRegion(item, region, reason) for item, region in rest)


Contents = Iterator[Content | ItemError]


def _sounds(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    ahead, regions = tee(regions)
    clips = audio.load_many(
        item.content,
        ahead,
        target.rate or 0,
        max_seconds=target.max_seconds,
        source_rate=item.rate,
        first_seconds=target.first_seconds,
        kept_seconds=target.kept_seconds,
        playback=audio.Playback(target.band and tuple(target.band), target.playback_rate),  # type: ignore[arg-type]
    )
    for clip, region in zip(clips, regions, strict=True):
        if isinstance(clip, ItemError):
            yield clip
            continue
        start = region.start or 0.0
        is_open = region.end is None or target.first_seconds is not None
        end = start + clip.seconds if is_open else region.end
        yield Content(clip.samples, start, end, notes=clip.notes)


def _pictures(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    ahead, behind = tee(regions)
    boxes, pages = tee(ahead)
    pictures = image.load_many(
        item.content,
        (_box(region) for region in boxes),
        (region.page for region in pages),
        target.max_pixels,
    )
    several: bool | None = None
    for picture, region in zip(pictures, behind, strict=True):
        if isinstance(picture, ItemError):
            yield picture
            continue
        if several is None and region.page is None:
            several = image.count_pages(item.content) > 1
        yield Content(picture, pages=1 if several and region.page is None else None)


def _box(region: Region) -> Any:
    if region.start is not None or region.end is not None:
        raise RegionError(f"an image has no time axis to cut {region.key!r} from")
    return region.box


def _videos(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    for region in regions:
        try:
            frames = video.load(
                item.content, region, target.frames or 16, target.max_pixels, target.largest
            )
            yield Content(frames, region.start, region.end)
        except ItemError as error:
            yield error


def _texts(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    for region in regions:
        try:
            if region.kind != "whole" and region.chars is None:
                raise RegionError(f"text has no time axis to cut {region.key!r} from")
            kept, left = text.load_beginning(item.content, region.chars, target.max_characters)
            yield Content(kept, left=left)
        except ItemError as error:
            yield error


def _arrays(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    yield from _whole(array.load, item, regions)


def _bytes(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    yield from _whole(file_bytes.load, item, regions)


def _whole(load: Callable[[object], Any], item: Item, regions: Iterator[Region]) -> Contents:
    """Items that have no parts."""
    for region in regions:
        try:
            if region.kind != "whole":
                raise RegionError(f"it has no time axis to cut {region.key!r} from")
            yield Content(load(item.content))
        except ItemError as error:
            yield error


def _read_headers(
    item: Item, regions: Iterable[Region], part: HeaderPart, modality: str, rate: int | None = None
) -> Iterator[Header | ItemError]:
    """For each region of an item that part of its header, or why it cannot be read. rate: Hz of an
    array without one."""
    last: Header | ItemError | None = None
    for region in regions:
        try:
            if part == "length" and modality == "audio":
                last = _sound_length(item, region, item.rate or rate, last)
            elif part in ("size", "pages") or last is None:
                last = _HEADER_READERS[part](item, region)
        except ItemError as error:
            last = error.with_traceback(None)
        yield last


def _sound_length(
    item: Item, region: Region, rate: int | None, known: Header | ItemError | None
) -> Header | ItemError:
    """Lengths are measured once for all regions of an item in a row."""
    found = _sound(item, rate) if known is None else known
    if not isinstance(found, audio.AudioInfo) or found.exact:
        return found
    if region.end is not None and region.end <= found.seconds:
        return found  # as far as can be told: counting would decode the whole file
    return _sound(item, rate, exact=True)


def _sound(item: Item, rate: int | None, exact: bool = False) -> audio.AudioInfo:
    found = audio.info(item.content, source_rate=rate, exact=exact)
    if not found.frames:
        raise EmptyItem("holds no samples")
    if not found.rate:
        raise RegionError("an array without a rate has no seconds; give (array, rate)")
    return found


_HEADER_READERS: dict[str, Callable[[Item, Region], Header]] = {
    "length": lambda item, region: video.seconds(item.content),
    "sound": lambda item, region: audio.info(item.content, source_rate=item.rate),
    "size": lambda item, region: image.size(item.content, region.page),
    "pages": lambda item, region: image.count_pages(item.content),
}


def _headers(item: Item, regions: Iterator[Region], target: DecodeTarget) -> Contents:
    assert target.header
    for header in _read_headers(item, regions, target.header, target.modality, target.rate):
        yield header if isinstance(header, ItemError) else Content(header)


_READERS = {"audio": _sounds, "image": _pictures, "video": _videos, "text": _texts,
            "array": _arrays, "bytes": _bytes}  # fmt: skip


# As `open_regions`, in this process or in another one.
Describe = Callable[
    [Iterable[Pair | Failure | Any], DecodeTarget],
    Generator[DecodedRegion | Failure | Any, None, None],
]


def described(
    placed: Iterable[tuple[P, Entry | Pause]],
    target: DecodeTarget,
    wanted: Callable[[P, Region], bool],
    describe: Describe,
) -> Iterator[tuple[P, Any, Any]]:
    """Each entry in order, with its place and the header of its item, or the error in its stead:
    None where none is wanted, and for what is no region. Pauses of `describe` are left out where
    entries have places, and pass with the last place where not."""
    given, places = UntilError(placed), deque[P]()

    def asked() -> Iterator[Any]:
        for place, entry in given:
            places.append(place)
            is_apart = isinstance(entry, Pause | Failure) or not wanted(place, entry[1])
            yield _Apart(entry) if is_apart else entry

    with closing(describe(asked(), target)) as found:
        for one in found:
            if isinstance(one, DecodedRegion):
                content = one.content
                header = content.values if isinstance(content, Content) else content
                yield places.popleft(), (one.item, one.region), header
            elif isinstance(one, _Apart):
                yield places.popleft(), one.entry, None
            elif places and places[0] is None:
                yield places[0], one, None
    yield from given.then(())


@dataclass(frozen=True, slots=True)
class _Apart(Note):
    """An entry that no header is asked for."""

    entry: Any


PATIENCE = 0.25  # seconds without a region, behind which what waits is looked after
MAX_PIXELS = 1 << 27  # of a picture in one piece: cameras have up to 108 million
MAX_CHARACTERS = 1_000_000  # of a text that are looked at: tokenizers take some 200 bytes for each
TIME_LIMIT = 300.0  # seconds that one region may take to decode
BRIEF_LIMIT = 30.0  # where another item does as well


def default_workers() -> int:
    """Half of the machine's processors, four at most: a model is what needs most of them."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run takes in one piece, and holds at once.

    pixels: of a picture, a box of it or a frame; larger ones are refused. characters: of a text
    that are read; a model that needs more of it refuses it. memory: bytes, or `2GB` or `60%`, of
    what is decoded, prepared and computed in all processes; None: as `MemoryBound.by_default`.
    model_seconds: of one pass of the model; one that takes longer ends the run, and its items fail.
    Of the others None is no limit.
    """

    pixels: int | None = MAX_PIXELS
    characters: int | None = MAX_CHARACTERS
    memory: int | str | None = None
    model_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("pixels", "characters", "model_seconds"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                named = name.replace("_", " ")
                raise UsageError(f"a limit of {limit:g} {named} lets nothing through; give more")
        if self.memory is not None:
            _ = self.bound  # refused now

    @property
    def bound(self) -> MemoryBound:
        """The memory of a run."""
        given = self.memory
        if given is None:
            return MemoryBound.by_default()
        return MemoryBound(parse_size(given) if isinstance(given, str) else check_size(given))


@dataclass(frozen=True, slots=True)
class Decoding:
    """How items are opened.

    max_seconds: longer regions are refused, not read. workers: processes that decode; 0 decodes in
    this one, which a file can then crash or hold up. time_limit: seconds that a worker may take for
    one region, behind which its file counts as hanging. first_seconds: of each region of sound as
    many are read, and the rest is left, however long it is. worker_memory: bytes that each worker
    may take for what it decodes; None: its share of the run's. retry: what a worker dies or stalls
    on, or the system fails at, is tried once more in a fresh worker. limits: of what is decoded.
    patience: seconds that prepared regions may wait for company in a batch; with one, a `Pause`
    comes among the regions where none has for a while. apart: regions are then read and prepared
    in a thread of their own.
    """

    max_seconds: float | None = None
    workers: int = 0
    time_limit: float = TIME_LIMIT
    first_seconds: float | None = None
    worker_memory: int | None = None
    retry: bool = True
    limits: Limits = field(default_factory=Limits)
    patience: float | None = None
    apart: bool = True

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"a limit of {self.max_seconds:g} s lets nothing through; give more")

    @property
    def briefly(self) -> Decoding:
        """For a look at a few items: one process at most, and less patience."""
        limit = min(self.time_limit, BRIEF_LIMIT)
        return replace(
            self,
            workers=min(1, self.workers),
            time_limit=limit,
            first_seconds=None,
            retry=False,
            patience=None,
        )

    @property
    def of_headers(self) -> Decoding:
        """For headers: one process at most, beside those that decode."""
        return replace(self, workers=min(1, self.workers), worker_memory=self.share)

    @property
    def share(self) -> int:
        """Bytes of memory that one worker may take."""
        return self.worker_memory or self.limits.bound.size // max(2, self.workers)


_USUAL: ContextVar[Decoding | None] = ContextVar("usual_decoding", default=None)


def usual_decoding() -> Decoding:
    """How items are opened where a call does not say it: in a worker, unless `decoding_as` has it
    otherwise."""
    return _USUAL.get() or Decoding(workers=1)


@contextmanager
def decoding_as(decoding: Decoding) -> Iterator[None]:
    """Within the block, `usual_decoding` is this one."""
    token = _USUAL.set(decoding)
    try:
        yield
    finally:
        _USUAL.reset(token)
