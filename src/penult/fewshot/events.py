"""Events of predictions: neighbouring windows of one class in one recording, merged; as a Raven
selection table or CSV. Knows no model and no collection.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any

from penult.data.formulas import Cells
from penult.data.items import path_of
from penult.data.recording_times import RECORDED_AT
from penult.data.roots import Roots
from penult.data.selection_tables import RavenSelection, table_text
from penult.errors import UsageError

COLUMNS = ("path", "start", "end", "channel", "class", "probability", "similarity", "windows")


@dataclass(frozen=True, slots=True)
class Event:
    """A class from start to end (seconds; None: the item has none).

    probability, similarity: the highest of its windows. windows: how many were merged. metadata: of
    the item, as far as it is the same for all of them; `recorded_at` is that of the first window.
    """

    id: str
    channel: int | None
    start: float | None
    end: float | None
    label: str
    probability: float
    windows: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)
    similarity: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult predict --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Window:
    """A region and the classes assigned to it, best first, with their probabilities and raw
    similarities. start, end: seconds, or None. metadata: of the item."""

    id: str
    channel: int | None
    start: float | None
    end: float | None
    probabilities: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    similarities: Mapping[str, float] = field(default_factory=dict)

    def events(self) -> list[Event]:
        """One event for each class."""
        place = self.id, self.channel, self.start, self.end
        return [
            Event(*place, name, share, 1, self.metadata, self.similarities.get(name, math.nan))
            for name, share in self.probabilities.items()
        ]


def merged(windows: Iterable[Window], gap: float = 0.0) -> list[Event]:
    """Windows of one recording and channel that follow each other and have the same class, as one
    event; by recording, channel and start. A window without seconds is an event of its own.

    gap: seconds; windows of one class no farther apart are one event too, whatever class lies
    between.

    Raises:
        UsageError: a gap that is negative.
    """
    if not gap >= 0:
        raise UsageError(f"a gap of {gap} s between events is negative; give 0 or more seconds")
    tracks: dict[tuple[str, int], list[Window]] = {}
    found: list[Event] = []
    for window in windows:
        if window.start is None or window.end is None:
            found += window.events()
        else:
            channel = -1 if window.channel is None else window.channel
            tracks.setdefault((window.id, channel), []).append(window)
    for track in tracks.values():
        found += _joined(sorted(track, key=lambda w: (w.start, w.end)), gap)
    return sorted(found, key=_order)


def csv_lines(
    header: Sequence[str], rows: Iterable[Sequence[Any]], cells: Cells | None = None
) -> Iterator[str]:
    """A CSV file line by line."""
    cells = cells or Cells()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in itertools.chain([header], rows):
        writer.writerow([cells(value) for value in row])
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def to_csv(events: Sequence[Event], cells: Cells | None = None, roots: Roots = Roots()) -> str:
    """One line for each event, with its metadata. roots: what the ids begin with."""
    names = list(dict.fromkeys(name for event in events for name in event.metadata))
    events = [replace(event, id=roots.shown(event.id)) for event in events]
    rows = ([*_cells(event), *(event.metadata.get(name) for name in names)] for event in events)
    return "".join(csv_lines(with_metadata(COLUMNS, names), rows, cells))


def with_metadata(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    """A table's header with columns of metadata behind it; one of the same name is `…_given`."""
    return [*columns, *(f"{name}_given" if name in columns else name for name in names)]


def _cells(e: Event) -> list[Any]:
    times = (_seconds(e.start), _seconds(e.end), "" if e.channel is None else e.channel)
    similarity = "" if math.isnan(e.similarity) else f"{e.similarity:.6g}"
    return [e.id, *times, e.label, _share(e.probability), similarity, e.windows]


def to_raven(events: Sequence[Event], cells: Cells | None = None, roots: Roots = Roots()) -> str:
    """A Raven selection table, over several recordings in the order of their paths. roots: what the
    ids begin with.

    Raises:
        UsageError: an event without seconds, or a path that the format cannot hold.
    """
    found = selections_of(events, roots)
    return table_text(found, sorted({one.path for one in found}, key=path_of), cells)


def selections_of(events: Iterable[Event], roots: Roots = Roots()) -> list[RavenSelection]:
    """The events as lines of a Raven selection table, with their metadata. roots: see `to_raven`.

    The columns of a table that an item came from come again, but for its `View`.
    """
    found = []
    for e in events:
        own = {"Class": e.label, "Confidence": _share(e.probability)}
        further = {f"{n}_given" if n in own else n: v for n, v in e.metadata.items() if n != "View"}
        found.append(RavenSelection(roots.shown(e.id), e.start, e.end, e.channel, own | further))
    return found


def to_m3u(events: Sequence[Event]) -> str:
    """A playlist in the order of the events, each from its start to its end where the player knows
    VLC's options."""
    lines = ["#EXTM3U"]
    for e in events:
        length = -1 if e.start is None or e.end is None else round(e.end - e.start)
        title = f"{PurePath(e.id).name} {_seconds(e.start)}-{_seconds(e.end)} {e.label}"
        lines.append(f"#EXTINF:{length},{' '.join(title.split())} {e.similarity:.3f}")
        for name, value in (("start", e.start), ("stop", e.end)):
            if value is not None:
                lines.append(f"#EXTVLCOPT:{name}-time={_seconds(value)}")
        lines.append(e.id)
    return "\n".join([*lines, ""])


def _joined(track: Sequence[Window], gap: float) -> list[Event]:
    done: list[Event] = []
    last: dict[str, tuple[int, Event]] = {}  # of each class: its last window's place, and the event
    for place, window in enumerate(track):
        for event in window.events():
            before, open_event = last.get(event.label, (-1, None))
            if open_event is not None and _goes_on(open_event, event, place - before == 1, gap):
                event = replace(
                    open_event,
                    end=max(open_event.end or 0.0, event.end or 0.0),
                    probability=max(open_event.probability, event.probability),
                    similarity=max(open_event.similarity, event.similarity),
                    windows=open_event.windows + 1,
                    metadata=_common(open_event.metadata, event.metadata),
                )
            elif open_event is not None:
                done.append(open_event)
            last[event.label] = place, event
    return done + [event for _, event in last.values()]


def _common(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata that two windows have in common, and when the first one was recorded."""
    return {
        name: value
        for name, value in one.items()
        if name == RECORDED_AT or other.get(name) == value
    }


def _goes_on(event: Event, other: Event, next_one: bool, gap: float) -> bool:
    # Times are exact to the microsecond; half of one is left for their difference.
    apart = (other.start or 0.0) - (event.end or 0.0) - 5e-7
    return apart <= gap if next_one or gap > 0 else False


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _order(event: Event) -> tuple[str, int, float, float, str]:
    channel = -1 if event.channel is None else event.channel
    return event.id, channel, event.start or 0.0, event.end or 0.0, event.label


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")
