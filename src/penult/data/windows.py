"""Recordings and texts divided into windows, pictures into pages and tiles. Knows no models.

A stage between a source and the runner: pairs of (item, region) in, more of them out, lazily. Only
headers are read, except where a header's length is not exact.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

from penult.data import audio, text
from penult.data.decode import DecodeTarget, Describe, described, usual_decoding
from penult.data.files import file_size
from penult.data.items import Entry, Failure, Item, further_annotation
from penult.data.regions import Region, span_of, tiles, windows
from penult.data.workers import headers
from penult.errors import DecodeError, ItemError, RegionError, TooLong, UsageError
from penult.memory import MemoryBound, in_words

_UNITS = {
    "": 1.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
}
_TIME = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zµ]*)\s*", re.IGNORECASE)
_LATE = {"audio": 0.001, "video": 0.1}  # s: how much later a segment may end, as in decoding


def parse_seconds(text: str) -> float:
    """A length of time as people write it: `5s`, `5`, `250ms`, `1.5`, `2min`.

    Raises:
        UsageError: it is none, or not positive.
    """
    match = _TIME.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit:
        raise UsageError(f"{text!r} is no length of time; 5s, 2.5, 250ms and 2min are")
    seconds = float(match[1]) * unit
    if not 1e-6 <= seconds < math.inf:
        raise UsageError(f"{text!r} is no length of time to cut at; give more than 0 s")
    return seconds


# (text, window, hop) to the first and last character of each window, counted in tokens.
TextDivider = Callable[[str, int, int | None], Iterable[tuple[int, int]]]


class ItemInput(Protocol):
    """The input of a model, as far as items are divided by it: modality, sample rate of sound, and
    the windows of a text by its tokens."""

    @property
    def modality(self) -> str:
        """audio, image, video or text."""

    @property
    def rate(self) -> int | None:
        """Samples per second of sound."""

    @property
    def divide(self) -> TextDivider | None:
        """Windows of a text, where its tokens can be counted."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Windows of `window` seconds, one each `hop` (default: as long as the window), or square tiles
    of `tile` pixels that have `overlap` pixels in common. Nothing given: regions stay as they are.

    Of texts, window and hop are tokens, special ones included. pages: `each` gives one region for
    each page of a TIFF or frame of an animation, or the tiles of each.
    """

    window: float | None = None
    hop: float | None = None
    tile: int | None = None
    overlap: int = 0
    pages: Literal["each"] | None = None

    def __post_init__(self) -> None:
        if self.pages not in (None, "each"):
            raise UsageError(f"pages {self.pages!r} cannot be chosen; `each` can")
        if self.hop is not None and self.window is None:
            raise UsageError(f"a hop of {self.hop:g} s needs a window; give both")
        for name, value in (("window", self.window), ("hop", self.hop)):
            if value is not None and not 1e-6 <= value < math.inf:
                raise UsageError(f"a {name} of {value:g} s cannot be; give seconds, more than 0")
        if self.overlap and self.tile is None:
            raise UsageError(f"an overlap of {self.overlap} pixels needs tiles; give their size")
        if self.tile is not None:
            tiles(0, 0, self.tile, self.overlap)  # raises where they cannot be

    def words(self, modality: str) -> str:
        """`windows of 5 s every 2.5 s`, `tiles of 512 pixels`, `each page`; empty where items stay
        whole."""
        unit = "tokens" if modality == "text" else "s"
        found = [] if self.pages is None else ["each page"]
        if self.tile is not None:
            found.append(f"tiles of {self.tile} pixels")
        if self.window is not None:
            step = "" if self.hop in (None, self.window) else f" every {self.hop:g} {unit}"
            found.append(f"windows of {self.window:g} {unit}{step}")
        return ", ".join(found)

    def apply(
        self,
        pairs: Iterable[Entry],
        modality: str,
        rate: int | None = None,
        divider: TextDivider | None = None,
        describe: Describe = headers,
        bound: MemoryBound | None = None,
    ) -> Iterator[Entry]:
        """The pairs with each whole item and each segment replaced by its windows or tiles.

        Windows of one item come by their start, also where segments overlap or channels are kept
        apart, so that a recording can be decoded once. `rate` is that of arrays without one.
        `divider` counts a text's tokens, within the memory of the `bound`, `describe` reads
        headers. What cannot be divided becomes a Failure.

        Raises:
            UsageError: this cannot be done to items of that kind.
        """
        if self.window is not None and modality == "image":
            raise UsageError(
                "image has no seconds to cut windows from; audio and video have; pictures can be "
                "cut into tiles"
            )
        if self.pages is not None and modality != "image":
            raise UsageError(f"pages are of images, not of {modality}")
        if self.tile is not None and modality != "image":
            raise UsageError(
                f"tiles are cut from images, not from {modality}"
                + ("" if modality == "text" else "; give a window in seconds instead")
            )
        if self.pages is not None:
            pairs = _paged(pairs, describe)
        if self.tile is not None:
            return self._tiled(pairs, describe)
        if self.window is not None and modality == "text":
            held = bound or usual_decoding().limits.bound
            return self._texts(pairs, self._tokens(divider), held.batch // _FOR_EACH_CHARACTER)
        if self.window is not None:
            return self._windowed(pairs, DecodeTarget(modality, rate, header="length"), describe)
        return iter(pairs)

    def of(
        self,
        pairs: Iterable[Entry],
        input: ItemInput,
        describe: Describe = headers,
        bound: MemoryBound | None = None,
    ) -> Iterator[Entry]:
        """`apply`, for the items of a model with this input."""
        return self.apply(pairs, input.modality, input.rate, input.divide, describe, bound)

    def _tiled(self, pairs: Iterable[Entry], describe: Describe) -> Iterator[Entry]:
        assert self.tile is not None
        target = DecodeTarget("image", header="size")
        found = _described(pairs, target, lambda region: region.box is None, describe)
        for entry, size in found:
            if not isinstance(entry, tuple):
                yield entry
                continue
            item, region = entry
            if isinstance(size, ItemError):
                yield Failure.of(item, region, size)
                continue
            left, top, right, bottom = region.box or (0, 0, *size)
            for a, b, c, d in tiles(right - left, bottom - top, self.tile, self.overlap):
                box = left + a, top + b, left + c, top + d
                yield item, replace(region, kind="box", box=box)

    def _tokens(self, divider: TextDivider | None) -> Callable[[str], Iterable[tuple[int, int]]]:
        """The windows of a text.

        Raises:
            UsageError: no whole numbers, or a model whose tokens cannot be counted.
        """
        if divider is None:
            raise UsageError(
                "texts are cut by the model's own tokenizer, and this model has none that tells "
                "where in the text its tokens stand; cut the texts, one in each row of a table"
            )
        size, step = self.window, self.hop
        assert size is not None
        for name, value in (("window", size), ("hop", step)):
            if value is not None and not (float(value).is_integer() and value >= 1):
                raise UsageError(f"a {name} of {value:g} tokens cannot be; give a whole number")
        divide, whole = divider, None if step is None else int(step)
        divide("", int(size), whole)  # refused now, not for each text
        return lambda content: divide(content, int(size), whole)

    @staticmethod
    def _texts(
        pairs: Iterable[Entry], divide: Callable[[str], Iterable[tuple[int, int]]], most: int
    ) -> Iterator[Entry]:
        """Windows of texts of at most so many characters; a text that fits into one stays whole."""
        for pair in pairs:
            if isinstance(pair, Failure) or pair[1].kind != "whole":
                yield pair
                continue
            item, region = pair
            try:
                spans = list(divide(_text_of(item.content, most)))
            except ItemError as error:
                yield Failure.of(item, region, error)
                continue
            if len(spans) < 2:
                yield item, region
                continue
            yield from ((item, replace(region, kind="window", chars=span)) for span in spans)

    def _windowed(
        self, pairs: Iterable[Entry], target: DecodeTarget, describe: Describe
    ) -> Iterator[Entry]:
        merged = _RegionMerger()
        for entry, found in _described(pairs, target, _is_cut, describe):
            if not isinstance(entry, tuple):
                yield entry
                continue
            item, region = entry
            yield from merged.before(item, region)
            if found is None:
                merged.put(item, iter((region,)))
                continue
            try:
                end = _end_of(found, region, _LATE[target.modality])
            except ItemError as error:
                yield Failure.of(item, region, error)
                continue
            merged.put(item, self._windows_of(region, end))
            if region.end is None and (lost := _lost(found)):
                yield Failure.of(item, replace(region, kind="segment", start=end), lost)
        yield from merged.rest()

    def _windows_of(self, region: Region, end: float) -> Iterator[Region]:
        assert self.window is not None
        begin = round(region.start or 0.0, 6)
        for start, stop in windows(end - begin, self.window, self.hop or self.window):
            yield replace(
                region, kind="window", start=round(begin + start, 6), end=round(begin + stop, 6)
            )


_FOR_EACH_CHARACTER = 200  # bytes that a tokenizer takes, about


def _text_of(content: object, most: int) -> str:
    """A text whose tokens are to be found all at once.

    Raises:
        TooLong: more characters than there is memory for.
        DecodeError, EmptyItem: as `text.load`.
    """
    size = file_size(content) if isinstance(content, Path) else 0
    if size > 4 * most:  # no character of UTF-8 has more bytes
        raise _too_many(f"{size:,} bytes", size / 4, most)
    found = text.load(content)
    if len(found) > most:
        raise _too_many(f"{len(found):,} characters", len(found), most)
    return found


def _too_many(what: str, least: float, most: int) -> TooLong:
    needed, held = (in_words(_FOR_EACH_CHARACTER * one) for one in (least, most))
    return TooLong(
        f"has {what}, whose tokens take about {needed} or more, and they may take {held}; divide "
        "the text, or give the run more (--memory)"
    )


def _described(
    pairs: Iterable[Entry],
    target: DecodeTarget,
    wanted: Callable[[Region], bool],
    describe: Describe,
) -> Iterator[tuple[Any, Any]]:
    """Each entry, or pause, and the header of its item where that is wanted."""
    placed = ((None, pair) for pair in pairs)
    found = described(placed, target, lambda _, region: wanted(region), describe)
    return ((entry, header) for _, entry, header in found)


def _paged(pairs: Iterable[Entry], describe: Describe) -> Iterator[Entry]:
    """Pictures of several pages as their pages, all others as they are."""
    target = DecodeTarget("image", header="pages")

    def is_whole(region: Region) -> bool:
        return region.page is None and region.box is None

    for entry, number in _described(pairs, target, is_whole, describe):
        if number is None or number == 1:
            yield entry
            continue
        item, region = entry
        if isinstance(number, ItemError):  # of its worker: the file tells none
            yield Failure.of(item, region, number)
        else:
            yield from (
                (item, replace(region, kind="page", page=page + 1)) for page in range(number)
            )


def _is_cut(region: Region) -> bool:
    return region.kind in ("whole", "segment")


def _end_of(found: audio.AudioInfo | float | ItemError, region: Region, late: float) -> float:
    """Where a region ends, in seconds from the item's beginning. late: how much later than the item
    it may end.

    Raises:
        ItemError: the item cannot be read, or does not reach as far as the region does.
    """
    if isinstance(found, ItemError):
        raise type(found)(str(found))
    if isinstance(found, audio.AudioInfo) and (region.channel or 0) >= found.channels:
        raise RegionError(
            f"there is no channel {region.channel}: the sound has {found.channels} (they count "
            "from 0)"
        )
    if isinstance(found, audio.AudioInfo) and not found.exact and region.end is not None:
        return region.end  # as far as can be told
    length = found.seconds if isinstance(found, audio.AudioInfo) else found
    for what, value, limit in (
        ("start", region.start, length - 1e-6),
        ("end", region.end, length + late),
    ):
        if value is not None and value > limit:
            raise RegionError(f"{what} {value:g} s lies beyond the end: it lasts {length:.6g} s")
    return length if region.end is None else min(region.end, length)


def _lost(found: object) -> DecodeError | None:
    """The error of an item whose header promises more than it holds; None if it does not."""
    if not isinstance(found, audio.AudioInfo) or not (found.missing or found.cut):
        return None
    reason = found.cut or (
        f"holds {found.frames} frames of the {found.frames + found.missing} it promises"
    )
    return DecodeError(f"truncated or damaged: {reason}; what is there was cut into windows")


class _RegionMerger:
    """The parts of one item's regions as one sequence by their start, each part once."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._start, self._regions = 0.0, set[str]()  # where the last region starts, and all there
        self._heap: list[tuple[float, float, int, Region, Item, Iterator[Region]]] = []
        self._order = count()
        self._place, self._given = -1.0, dict[str, Item]()  # the last part's start, and all there

    def before(self, item: Item, region: Region) -> Iterator[Entry]:
        """The parts that start before this region, which is the next one to be put."""
        start = region.start or 0.0
        # The same region again is the same thing given twice, and not another part of it.
        again = start < self._start or (start == self._start and region.key in self._regions)
        if self._item is None or not _same(item, self._item) or again:
            yield from self.rest()
            self._item = item
        if start != self._start:
            self._start, self._regions = start, set()
        self._regions.add(region.key)
        while self._heap and self._heap[0][0] < start:
            yield from self._pop()

    def put(self, item: Item, parts: Iterator[Region]) -> None:
        """Add the parts of a region, which are in the order of their starts."""
        part = next(parts, None)
        if part is not None:
            place = part.start or 0.0, math.inf if part.end is None else part.end
            heapq.heappush(self._heap, (*place, next(self._order), part, item, parts))

    def rest(self) -> Iterator[Entry]:
        """All that is left of the item."""
        while self._heap:
            yield from self._pop()
        self._start, self._regions = 0.0, set()
        self._place, self._given = -1.0, {}

    def _pop(self) -> Iterator[Entry]:
        start, _, _, part, item, parts = heapq.heappop(self._heap)
        if start != self._place:
            self._place, self._given = start, {}
        span = span_of(part.key)
        there = {key: one for key, one in self._given.items() if span_of(key) == span}
        # In several segments it is one window; of other metadata it is another annotation of it.
        if all(one.metadata != item.metadata for one in there.values()):
            if part.key in there:
                taken = [key.partition("#")[2] for key in there]
                part = replace(part, annotation=further_annotation(item, taken))
            self._given[part.key] = item
            yield item, part
        self.put(item, parts)


def _same(one: Item, other: Item) -> bool:
    a, b = one.content, other.content
    same = a is b or (isinstance(a, (Path, bytes)) and isinstance(b, (Path, bytes)) and a == b)
    return same and one.id == other.id
