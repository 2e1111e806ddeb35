"""The parts of an item that one vector describes. Knows nothing of files or models.

Seconds are exact to the microsecond here and in keys, so that ten hours of windows do not drift.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from penult.errors import RegionError, UsageError

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

_MICRO = 1_000_000
_BOX_KEY = re.compile(r"(?:page:(\d+)(?::(?=box)|$))?(?:box:(\d+),(\d+),(\d+),(\d+))?")
_CHARS_KEY = re.compile(r"chars:(\d+)-(\d+)")
PATCH = "patch"
_PATCH_KEY = re.compile(r"(.*:)?patch:(\d+)")
_CHANNEL_KEY = re.compile(r"ch\d+")
_KEY = re.compile(r"(?:ch(\d+):)?(?:(whole|summary)|(?:summary:)?([\d.]+)-(end|[\d.]+))")
_NEGLIGIBLE = 500  # µs: a window that ends so close to the end is the last one


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an item: the whole of it, a segment or window of all channels mixed or of one, a
    page or a box of a picture, a window of a text, one of the patches that a preprocessing cuts any
    of these into, or the summary of the parts.

    `start` and `end` are seconds from the item's beginning; None is its beginning and its end.
    `channel` counts from 0; None is the mean over all channels. `box` is in pixels of the upright
    picture: left, top, right, bottom, the last two just outside of it. `page` counts the pages of
    a TIFF and the frames of an animation from 1; None is the first. `chars` are the first character
    of a text's window, from 0, and the one just behind it. `patch` counts the patches of what the
    others name, from 0.
    `annotation` tells apart several annotations of one span, such as two species in one window; the
    first has none.
    """

    kind: str = "whole"  # whole, window, segment, page, box, patch or summary
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    box: Box | None = None
    annotation: str = ""
    page: int | None = None
    chars: tuple[int, int] | None = None
    patch: int | None = None

    def __post_init__(self) -> None:
        if (self.patch is not None) != (self.kind == PATCH) or (self.patch or 0) < 0:
            raise RegionError(f"a region of kind {self.kind!r} with patch {self.patch} cannot be")
        if self.page is not None and self.page < 1:
            raise RegionError(f"page {self.page} cannot be; pages count from 1")
        if self.chars is not None and not 0 <= self.chars[0] < self.chars[1]:
            raise RegionError(f"characters {self.chars} of a text cannot be; they count from 0")
        if self.channel is not None and self.channel < 0:
            raise RegionError(f"channel {self.channel} is negative; channels count from 0")
        if self.start is not None and not self.start >= 0:
            raise RegionError(f"start {self.start} s lies before the beginning")
        if self.end is not None and not self.end > (self.start or 0.0):
            raise RegionError(
                f"end {self.end} s is not after start {self.start or 0.0} s; both are seconds"
            )
        if self.box is not None or self.kind == "box":
            self._check_box()

    def _check_box(self) -> None:
        if self.box is None or self.kind not in ("box", PATCH):
            raise RegionError(f"a region of kind {self.kind!r} with box {self.box} cannot be")
        if not (self.start is self.end is self.channel is None):
            raise RegionError(f"a box in a picture has no seconds and no channel: {self}")
        if len(self.box) != 4 or any(type(edge) is not int for edge in self.box):
            raise RegionError(f"box {self.box} is not four whole numbers: left, top, right, bottom")
        left, top, right, bottom = self.box
        if not (0 <= left < right and 0 <= top < bottom):
            raise RegionError(
                f"box {self.box} has no area in the picture: left, top, right, bottom count pixels "
                "from 0, and right and bottom lie beyond left and top"
            )

    @property
    def key(self) -> str:
        """The region's part of a collection's key, exact to the microsecond: `whole`, `1.5-2.25`,
        `ch0:1.5-end`, `box:0,0,512,512`, `page:2`, `page:2:box:0,0,512,512`, `chars:0-420`,
        `summary`, `ch0:summary:1.5-2.25`; of a patch `patch:3`, `1.5-2.25:patch:3`; of a further
        annotation of the same span `1.5-2.25#2`."""
        return self._span + (f"#{self.annotation}" if self.annotation else "")

    @property
    def span(self) -> Region:
        """The part of the item itself, whichever annotation of it this is."""
        return replace(self, annotation="") if self.annotation else self

    @property
    def base(self) -> Region:
        """What a patch is one of; every other region itself."""
        return self if self.patch is None else Region.of_key(unpatched(self.key))

    @property
    def _span(self) -> str:
        if self.patch is not None:
            kind = "whole" if self.box is None else "box"
            base = replace(self, kind=kind, patch=None)._span.removesuffix("whole")
            return f"{base}{':' if base and not base.endswith(':') else ''}{PATCH}:{self.patch}"
        if self.box is not None or self.page is not None:
            page = [] if self.page is None else [f"page:{self.page}"]
            return ":".join([*page, *([] if self.box is None else [f"box:{_joined(self.box)}"])])
        if self.chars is not None:
            return f"chars:{self.chars[0]}-{self.chars[1]}"
        channel = "" if self.channel is None else f"ch{self.channel}:"
        if self.start is None and self.end is None:
            return channel + self.kind
        end = "end" if self.end is None else _seconds(self.end)
        # The summary of a segment is not the segment's own row.
        kind = "summary:" if self.kind == "summary" else ""
        return f"{channel}{kind}{_seconds(self.start or 0.0)}-{end}"

    @classmethod
    def of_key(cls, key: str, kind: str | None = None) -> Region:
        """The region with this key and kind, as a collection keeps them. kind: None is read from
        the key, which does not tell a window of seconds from a segment.

        Raises:
            RegionError: no region has that key.
        """
        span, _, annotation = key.partition("#")
        if found := _PATCH_KEY.fullmatch(span):
            base = cls.of_key(unpatched(span))
            return replace(base, kind=PATCH, patch=int(found[2]), annotation=annotation)
        kind = _kind_of(span) if kind is None else kind
        if span and (found := _BOX_KEY.fullmatch(span)) and kind in ("box", "page"):
            page, *edges = (None if number is None else int(number) for number in found.groups())
            left, top, right, bottom = edges
            if left is None or top is None or right is None or bottom is None:
                return cls(kind, page=page, annotation=annotation)
            box = left, top, right, bottom
            return cls(kind, box=box, page=page, annotation=annotation)
        if found := _CHARS_KEY.fullmatch(span):
            return cls(kind, chars=(int(found[1]), int(found[2])), annotation=annotation)
        found = _KEY.fullmatch(span)
        if found is None:
            raise RegionError(f"{key!r} is no {kind} of an item, as a collection names them")
        channel, _, start, end = found.groups()
        return cls(
            kind,
            None if start is None else float(start),
            None if end in (None, "end") else float(end),
            None if channel is None else int(channel),
            annotation=annotation,
        )


def _kind_of(span: str) -> str:
    if "box:" in span or span.startswith("page:"):
        return "box" if "box:" in span else "page"
    if span.startswith("chars:"):
        return "window"
    if "summary" in span:
        return "summary"
    return "whole" if span.endswith("whole") else "segment"


def unpatched(key: str) -> str:
    """The key of what a patch is one of, with the same annotation; of other regions their own."""
    span, mark, annotation = key.partition("#")
    if found := _PATCH_KEY.fullmatch(span):
        span = (found[1] or "").removesuffix(":")
        span = span if span and not _CHANNEL_KEY.fullmatch(span) else f"{found[1] or ''}whole"
    return span + mark + annotation


def span_of(key: str) -> str:
    """The key of the part of the item itself: that of its first annotation."""
    return key.partition("#")[0]


WHOLE = Region()


def windows(length: float, window: float, hop: float) -> Iterator[tuple[float, float]]:
    """The (start, end) of every window over `length` seconds, one each `hop` seconds.

    The last one is moved back so that it ends with the recording; what is shorter than a window
    gives one, of its own length. A hop longer than the window leaves gaps.

    Raises:
        UsageError: a window or hop that is no length of time.
    """
    total, size, step = _micros(length), _micros(window), _micros(hop)
    if not (math.isfinite(window) and math.isfinite(hop) and size > 0 and step > 0):
        raise UsageError(f"a window of {window} s every {hop} s cannot be; both must be positive")
    return ((start / _MICRO, end / _MICRO) for start, end in _spans(total, size, step, _NEGLIGIBLE))


def tiles(width: int, height: int, size: int, overlap: int) -> Iterator[Box]:
    """Square boxes of `size` pixels that cover a picture row by row, with `overlap` in common.

    The last ones of a row and of a column are moved back to the edge; where the picture is smaller
    than a tile they are as wide or as high as the picture.

    Raises:
        UsageError: a size that is not positive, an overlap that is not smaller.
    """
    if not 0 <= overlap < size:
        raise UsageError(
            f"tiles of {size} pixels with an overlap of {overlap} cannot be; "
            "the overlap must be less than the tile, and not negative"
        )
    step = size - overlap
    return (
        (left, top, right, bottom)
        for top, bottom in _spans(height, size, step)
        for left, right in _spans(width, size, step)
    )


def frame_at(seconds: float, rate: int) -> int:
    """The frame that is nearest to a time, computed in integers from its microseconds.

    So equal keys mean equal samples, and windows of a whole number of samples all have it.
    """
    return (2 * _micros(seconds) * rate + _MICRO) // (2 * _MICRO)


def _spans(total: int, size: int, step: int, negligible: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces of `size` in `total`, the last one ending with it."""
    if total <= 0:
        return
    start = 0
    while start + size < total - negligible:
        yield start, start + size
        start = min(start + step, total - size)
    yield (start, start + size) if size <= total else (0, total)


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _micros(seconds: float) -> int:
    return round(seconds * _MICRO) if math.isfinite(seconds) else 0


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
