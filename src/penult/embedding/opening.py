"""Decode regions: sound, images, frames and texts out of items, in the order they come.

Knows files and how each modality is read; no model. Regions of one item that come one after the
other are cut out of one decoding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, tee
from pathlib import Path
from typing import Any

from penult.errors import DecodeError, ItemError, RegionError, TooLong, first_line
from penult.media import audio, image, text, video
from penult.regions import Region
from penult.sources import Item

# What a library may raise on a file that it was not written for.
UNFORESEEN = (ValueError, RuntimeError, IndexError, TypeError, AssertionError, ZeroDivisionError)

Pair = tuple[Item, Region]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model takes: its modality, samples per second of sound, frames of a video; and the
    longest region, in seconds, that is read at all."""

    modality: str
    rate: int | None = None
    frames: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """A region's decoded content, and where in the item it lies (seconds; None: no time axis)."""

    values: Any
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A region and its content, or why there is none; and the seconds that this took."""

    item: Item
    region: Region
    content: Content | ItemError
    seconds: float = 0.0


def open_regions(pairs: Iterable[Pair | Any], wanted: Wanted) -> Iterator[Opened | Any]:
    """Each region's content, in order; what is no pair is handed on as it is."""
    for key, group in groupby(pairs, key=same_item):
        if key is None:
            yield from group
        else:
            yield from _opened(group, wanted)


def same_item(value: Any) -> tuple[str, Any] | None:
    """What regions of one item have in common; None for what is no pair."""
    if type(value) is not tuple:
        return None
    content = value[0].content
    return value[0].id, content if isinstance(content, Path) else id(content)


def _opened(group: Iterator[Pair], wanted: Wanted) -> Iterator[Opened]:
    """The regions of one item, from one pass over it."""
    asked: deque[Pair] = deque()
    first = next(group)

    def regions() -> Iterator[Region]:
        for pair in chain([first], group):
            asked.append(pair)
            yield pair[1]

    try:
        began = time.perf_counter()
        for content in _READERS[wanted.modality](first[0], regions(), wanted):
            item, region = asked.popleft()
            yield Opened(item, region, content, time.perf_counter() - began)
            began = time.perf_counter()
    except (OSError, MemoryError, ItemError, *UNFORESEEN) as error:  # ends this item, not the run
        rest = [*(asked or [first]), *group]
        yield from (Opened(item, region, _unforeseen(error)) for item, region in rest)


Contents = Iterator[Content | ItemError]


def _sounds(item: Item, regions: Iterator[Region], wanted: Wanted) -> Contents:
    ahead, regions = tee(regions)
    clips = audio.load_many(
        item.content,
        ahead,
        wanted.rate or 0,
        max_seconds=wanted.max_seconds,
        source_rate=item.rate,
    )
    for clip, region in zip(clips, regions, strict=True):
        if isinstance(clip, ItemError):
            yield clip
            continue
        start = region.start or 0.0
        yield Content(
            clip.samples, start, start + clip.seconds if region.end is None else region.end
        )


def _pictures(item: Item, regions: Iterator[Region], wanted: Wanted) -> Contents:
    pictures = image.load_many(item.content, (_box(region) for region in regions))
    for picture in pictures:
        yield picture if isinstance(picture, ItemError) else Content(picture)


def _box(region: Region) -> Any:
    if region.start is not None or region.end is not None:
        raise RegionError(f"an image has no time axis to cut {region.key!r} from")
    return region.box


def _videos(item: Item, regions: Iterator[Region], wanted: Wanted) -> Contents:
    for region in regions:
        try:
            frames = video.load(item.content, region, wanted.frames or 16)
            yield Content(frames, region.start, region.end)
        except ItemError as error:
            yield error


def _texts(item: Item, regions: Iterator[Region], wanted: Wanted) -> Contents:
    for region in regions:
        try:
            if region.kind != "whole":
                raise RegionError(f"text has no time axis to cut {region.key!r} from")
            yield Content(text.load(item.content))
        except ItemError as error:
            yield error


_READERS = {"audio": _sounds, "image": _pictures, "video": _videos, "text": _texts}


def _unforeseen(error: BaseException) -> ItemError:
    if isinstance(error, ItemError):
        return error
    if isinstance(error, MemoryError):
        return TooLong("does not fit into memory; set --max-seconds or cut it with --window")
    return DecodeError(f"cannot be read: {first_line(error)}")
