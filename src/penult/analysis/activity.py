"""Activity: events per hour of the day and per day, with the seconds that were recorded in each, so
that silence and absence differ. Knows no collection and no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Literal

By = Literal["hour", "day", "day-hour", "elapsed"]
BY: tuple[By, ...] = ("hour", "day", "day-hour", "elapsed")
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)  # of every recording, for `elapsed`
Span = tuple[datetime, datetime]  # begin and end, with time zones

_Cell = tuple[date | None, int | None]


@dataclass(frozen=True, slots=True)
class ActivityCell:
    """A day, an hour of the day (0 to 23), an hour of a day, or an hour of recordings (from 0).

    effort: seconds recorded in it, of all recordings together. events: how many began in it.
    seconds: of events in it.
    """

    day: date | None
    hour: int | None
    effort: float = 0.0
    events: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Events in each recorded hour; None where nothing was recorded."""
        return self.events / self.effort * 3600 if self.effort else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"rate": self.rate}
        return found | {"day": None if self.day is None else self.day.isoformat()}


def activity(
    recorded: Iterable[Sequence[Span]], events: Iterable[Span], zone: tzinfo, by: By = "hour"
) -> list[ActivityCell]:
    """Cells in order of time, in that time zone: all 24 hours, and each day from the first to the
    last one on which something was recorded; of `elapsed` all hours since BEGINNING.

    recorded: of each recording the stretches that were looked at; what overlaps counts once.
    """
    effort: dict[_Cell, float] = defaultdict(float)
    heard: dict[_Cell, float] = defaultdict(float)
    counts: dict[_Cell, int] = defaultdict(int)
    for stretches in recorded:
        for span in union(stretches):
            for cell, seconds in _pieces(span, zone, by):
                effort[cell] += seconds
    for span in events:
        for number, (cell, seconds) in enumerate(_pieces(span, zone, by)):
            heard[cell] += seconds
            counts[cell] += number == 0
    used = (*effort, *counts)
    return [
        ActivityCell(*cell, effort[cell], counts[cell], heard[cell]) for cell in _cells(by, used)
    ]


def union(stretches: Iterable[Span]) -> list[Span]:
    """Stretches without what they have in common, in order."""
    found: list[Span] = []
    for begin, end in sorted(stretches):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def _pieces(span: Span, zone: tzinfo, by: By) -> Iterator[tuple[_Cell, float]]:
    """A stretch cut at the full hours of a time zone, each piece with its seconds."""
    begin, end = (one.astimezone(UTC) for one in span)
    while True:
        local = begin.astimezone(zone)
        past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        until = min(end, begin + timedelta(hours=1) - past)
        day = local.date() if by in ("day", "day-hour") else None
        hour = (begin - BEGINNING) // timedelta(hours=1) if by == "elapsed" else local.hour
        yield (day, None if by == "day" else hour), (until - begin).total_seconds()
        if until >= end:
            return
        begin = until


def _cells(by: By, used: Sequence[_Cell]) -> Iterator[_Cell]:
    if by in ("hour", "elapsed"):
        last = max((hour for _, hour in used if hour is not None), default=-1)
        yield from ((None, hour) for hour in range(24 if by == "hour" else last + 1))
        return
    days = [day for day, _ in used if day is not None]
    for number in range((max(days) - min(days)).days + 1 if days else 0):
        day = min(days) + timedelta(days=number)
        yield from ((day, hour) for hour in (range(24) if by == "day-hour" else [None]))
