"""The parts of an item that one vector describes. Knows nothing of files or models."""

from __future__ import annotations

from dataclasses import dataclass

from penult.errors import RegionError


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an item: the whole of it, or a segment, of all channels mixed or of one.

    `start` and `end` are seconds from the item's beginning; None is its beginning and its end.
    `channel` counts from 0; None is the mean over all channels.
    """

    kind: str = "whole"  # whole, window, segment, box or summary
    start: float | None = None
    end: float | None = None
    channel: int | None = None

    def __post_init__(self) -> None:
        if self.channel is not None and self.channel < 0:
            raise RegionError(f"channel {self.channel} is negative; channels count from 0")
        if self.start is not None and not self.start >= 0:
            raise RegionError(f"start {self.start} s lies before the beginning")
        if self.end is not None and not self.end > (self.start or 0.0):
            raise RegionError(
                f"end {self.end} s is not after start {self.start or 0.0} s; both are seconds"
            )

    @property
    def key(self) -> str:
        """The region's part of a collection's key, exact to the microsecond: `whole`,
        `1.5-2.25`, `ch0:1.5-end`."""
        channel = "" if self.channel is None else f"ch{self.channel}:"
        if self.start is None and self.end is None:
            return channel + self.kind
        end = "end" if self.end is None else _seconds(self.end)
        return f"{channel}{_seconds(self.start or 0.0)}-{end}"


WHOLE = Region()


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
