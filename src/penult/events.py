"""Predictions of windows as events: neighbouring windows of one class in one recording become one.

Also as a Raven selection table or CSV, which `annotated.py` and any table reader take. Knows no
model and no collection.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from penult.errors import UsageError

RAVEN = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Begin Path",
         "Begin File", "File Offset (s)", "Class", "Confidence")  # fmt: skip
COLUMNS = ("path", "start", "end", "channel", "class", "probability", "windows")
VIEW = "Spectrogram 1"


@dataclass(frozen=True, slots=True)
class Event:
    """A class that was heard or seen from start to end (seconds; None: the item has none).

    probability: the highest of its windows. windows: how many there were.
    """

    id: str
    channel: int | None
    start: float | None
    end: float | None
    label: str
    probability: float
    windows: int = 1


def merged(events: Iterable[Event], gap: float = 0.0) -> list[Event]:
    """Events of one class in one recording and channel that overlap, touch, or lie no more than
    `gap` seconds apart, as one; by recording, channel and start. What has no seconds stays as it
    is.

    Raises:
        UsageError: a gap that is negative.
    """
    if not gap >= 0:
        raise UsageError(f"a gap of {gap} s between events cannot be; give 0 or more seconds")
    timed: dict[tuple[str, int, str], list[Event]] = {}
    found: list[Event] = []
    for event in events:
        if event.start is None or event.end is None:
            found.append(event)
        else:
            place = (event.id, -1 if event.channel is None else event.channel, event.label)
            timed.setdefault(place, []).append(event)
    for several in timed.values():
        found += _joined(sorted(several, key=lambda e: (e.start, e.end)), gap)
    return sorted(found, key=_order)


def to_csv(events: Iterable[Event]) -> str:
    """One line for each event."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for e in events:
        times = (_seconds(e.start), _seconds(e.end), "" if e.channel is None else e.channel)
        writer.writerow([e.id, *times, e.label, f"{e.probability:.6g}", e.windows])
    return text.getvalue()


def to_raven(events: Sequence[Event]) -> str:
    """A Raven selection table. Several recordings are told apart by path and offset; times count
    from the beginning of each.

    Raises:
        UsageError: an event without seconds, or a path that the format cannot hold.
    """
    channels = any(e.channel is not None for e in events)
    header = [name for name in RAVEN if channels or name != "Channel"]
    lines = ["\t".join(header)]
    for number, e in enumerate(events, 1):
        if e.start is None or e.end is None:
            raise UsageError(
                f"a Raven table needs seconds, and {e.id} has none; write .csv instead"
            )
        values = dict(zip(RAVEN, (
            str(number), VIEW, "0" if e.channel is None else str(e.channel + 1),
            _seconds(e.start), _seconds(e.end), e.id, PurePath(e.id).name, _seconds(e.start),
            e.label, f"{e.probability:.6g}"), strict=True))  # fmt: skip
        cells = [values[name] for name in header]
        if bad := next((c for c in cells if any(sign in c for sign in "\t\r\n")), None):
            raise UsageError(f"a Raven table cannot hold {bad!r}: it has a tab or a line break")
        lines.append("\t".join(cells))
    return "\n".join([*lines, ""])


def _joined(events: Sequence[Event], gap: float) -> list[Event]:
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        # Ends and starts are exact to the microsecond; half of one is left for their difference.
        if last and (event.start or 0.0) <= (last.end or 0.0) + gap + 5e-7:
            joined[-1] = replace(
                last,
                end=max(last.end or 0.0, event.end or 0.0),
                probability=max(last.probability, event.probability),
                windows=last.windows + event.windows,
            )
        else:
            joined.append(event)
    return joined


def _order(event: Event) -> tuple[str, int, float, float, str]:
    channel = -1 if event.channel is None else event.channel
    return event.id, channel, event.start or 0.0, event.end or 0.0, event.label


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")
