"""Events of predictions: neighbouring windows of one class in one recording, merged; as a Raven
selection table or CSV. Knows no model and no collection.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from statistics import median
from typing import Any

from penult.collection.schema import Key
from penult.data.formulas import Cells
from penult.data.items import path_of
from penult.data.recording_times import RECORDED_AT
from penult.data.regions import Region
from penult.data.roots import Roots
from penult.data.selection_tables import CLASS, RavenSelection, table_text
from penult.errors import UsageError

UNKNOWN = "unknown"  # how items of none of the classes are called in tables
OF_HITS = ("path", "start", "end", "channel", "class", "probability", "similarity", "windows")
MARK = "mark"  # the column of tables that says yes or no to a class
COLUMNS = (*OF_HITS, "p_value", "labels")


@dataclass(frozen=True, slots=True)
class Event:
    """A class from start to end (seconds; None: the item has none).

    label: the class, or `unknown`; then probability and similarity are those of the nearest class.
    probability, similarity, p_value: the highest of its windows. windows: how many were merged.
    labels: all classes that its windows were assigned. metadata: of the item, as far as it is the
    same for all of them; `recorded_at` is that of the first window.
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
    p_value: float = math.nan
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult predict --json` prints it."""
        return {**asdict(self), "labels": list(self.labels)}


@dataclass(frozen=True, slots=True)
class Window:
    """A region and the classes assigned to it, best first, with their probabilities and raw
    similarities. start, end: seconds, or None. metadata: of the item. nearest: probability and
    similarity of the nearest class, assigned or not. p_value: see `ClassPrediction`."""

    id: str
    channel: int | None
    start: float | None
    end: float | None
    probabilities: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    similarities: Mapping[str, float] = field(default_factory=dict)
    nearest: tuple[float, float] = (math.nan, math.nan)
    p_value: float = math.nan

    def events(self, unknown: bool = False) -> list[Event]:
        """One event for each class. unknown: of a window without any, one of `unknown`."""
        place, labels = (self.id, self.channel, self.start, self.end), tuple(self.probabilities)
        if not labels and unknown:
            share, similarity = self.nearest
            return [Event(*place, UNKNOWN, share, 1, self.metadata, similarity, self.p_value)]
        similar = self.similarities
        return [
            Event(*place, name, share, 1, self.metadata, similar.get(name, math.nan), self.p_value,
                  labels)
            for name, share in self.probabilities.items()
        ]  # fmt: skip


def smoothed(windows: Iterable[Window], seconds: float) -> list[Window]:
    """The windows with the median of each class's probabilities over the windows of the same
    recording and channel whose middles lie within half of these seconds; where a class was not
    assigned it has none, and counts as 0. So a class holds where it was assigned to more than half
    of them, none where more than half have none, and where neither is so a window keeps its own.

    As a median filter in sound event detection (Cakir et al., 2017). Windows without seconds stay.

    Raises:
        UsageError: no length of time.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"events are smoothed over a number of seconds above 0, not {seconds:g}")
    found: list[Window] = []
    tracks: dict[tuple[str, int | None], list[Window]] = {}
    for one in windows:
        if one.start is None or one.end is None:
            found.append(one)
        else:
            tracks.setdefault((one.id, one.channel), []).append(one)
    for track in tracks.values():
        middles = [((one.start or 0.0) + (one.end or 0.0)) / 2 for one in track]
        order = sorted(range(len(track)), key=middles.__getitem__)
        track, middles = [track[i] for i in order], sorted(middles)
        for one, middle in zip(track, middles, strict=True):
            first = bisect_left(middles, middle - seconds / 2 - _SAME)
            last = bisect_right(middles, middle + seconds / 2 + _SAME)
            found.append(_median(one, track[first:last]))
    return found


_SAME = 5e-7  # s: times are exact to the microsecond


def _median(window: Window, around: Sequence[Window]) -> Window:
    names = dict.fromkeys(name for one in around for name in one.probabilities)
    low = (len(around) - 1) // 2  # of an even number the lower one: half of them is no majority
    middle = {
        name: sorted(one.probabilities.get(name, 0.0) for one in around)[low] for name in names
    }
    held = {name: share for name, share in middle.items() if share > 0}
    none = sum(not one.probabilities for one in around)
    if not held and 2 * none <= len(around):
        return window
    similar = {
        name: median(one.similarities[name] for one in around if name in one.similarities)
        for name in held
        if any(name in one.similarities for one in around)
    }
    best = dict(sorted(held.items(), key=lambda pair: -pair[1]))
    return replace(window, probabilities=best, similarities=similar)


def merged(windows: Iterable[Window], gap: float = 0.0, unknown: bool = False) -> list[Event]:
    """Windows of one recording and channel that follow each other and have the same class, as one
    event; by recording, channel and start. A window without seconds is an event of its own.

    gap: seconds; windows of one class no farther apart are one event too, whatever class lies
    between. unknown: stretches of windows without a class are events too, which no gap joins.

    Raises:
        UsageError: a gap that is negative.
    """
    if not gap >= 0:
        raise UsageError(f"a gap of {gap} s between events is negative; give 0 or more seconds")
    tracks: dict[tuple[str, int], list[Window]] = {}
    found: list[Event] = []
    for window in windows:
        if window.start is None or window.end is None:
            found += window.events(unknown)
        else:
            channel = -1 if window.channel is None else window.channel
            tracks.setdefault((window.id, channel), []).append(window)
    for track in tracks.values():
        found += _joined(sorted(track, key=lambda w: (w.start, w.end)), gap, unknown)
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


def to_csv(
    events: Sequence[Event],
    cells: Cells | None = None,
    roots: Roots = Roots(),
    columns: Sequence[str] = COLUMNS,
) -> str:
    """One line for each event, with its metadata. roots: what the ids begin with. columns: the
    first of `COLUMNS`."""
    cells = cells or Cells()
    names = list(dict.fromkeys(name for event in events for name in event.metadata))
    events = [replace(event, id=roots.shown(event.id)) for event in events]
    rows = (
        [*_cells(event, cells)[: len(columns)], *(event.metadata.get(name) for name in names)]
        for event in events
    )
    return "".join(csv_lines(with_metadata(columns, names), rows, cells))


def with_metadata(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    """A table's header with columns of metadata behind it. One of the same name is `…_given`, in
    whatever case, since `teach --from` reads names so, and one called `mark` too: there it would
    say yes or no to what was predicted."""
    header, taken = list(columns), {MARK, *(name.casefold() for name in columns)}
    for name in names:
        while name.casefold() in taken:
            name = f"{name}_given"
        taken.add(name.casefold())
        header.append(name)
    return header


def _cells(e: Event, cells: Cells) -> list[Any]:
    times = (_seconds(e.start), _seconds(e.end), "" if e.channel is None else e.channel)
    shares = _share(e.probability), _share(e.similarity)
    return [e.id, *times, e.label, *shares, e.windows, _share(e.p_value), cells.joined(e.labels)]


def to_raven(events: Sequence[Event], cells: Cells | None = None, roots: Roots = Roots()) -> str:
    """A Raven selection table, over several recordings in the order of their paths. roots: what the
    ids begin with.

    Raises:
        UsageError: an event without seconds, or a path that the format cannot hold.
    """
    found = selections_of(events, roots)
    return table_text(found, sorted({one.path for one in found}, key=path_of), cells)


def selections_of(
    events: Iterable[Event], roots: Roots = Roots(), columns: Sequence[str] = COLUMNS
) -> list[RavenSelection]:
    """The events as lines of a Raven selection table, with their metadata. roots: see `to_raven`.
    columns: `OF_HITS` leaves `p_value` and `labels` out, which hits have not.

    The columns of a table that an item came from come again, but for its `View`.
    """
    found = []
    for e in events:
        own: dict[str, Any] = {CLASS: e.label, "Confidence": _share(e.probability)}
        if columns == COLUMNS:
            own |= {"p_value": _share(e.p_value), "labels": e.labels}
        taken = {name.casefold() for name in own}  # names of columns ignore case
        further = {f"{n}_given" if n.casefold() in taken else n: v
                   for n, v in e.metadata.items() if n != "View"}  # fmt: skip
        found.append(RavenSelection(roots.shown(e.id), e.start, e.end, e.channel, own | further))
    return found


def of_rows(
    keys: Sequence[Key], roots: Roots, labels: Sequence[str | None] | None = None
) -> list[Event]:
    """The places of rows by their (id, region), for playlists. labels: of each, if any."""
    found = []
    for at, (id, key) in enumerate(keys):
        region, label = Region.of_key(key), (labels[at] if labels else None) or ""
        place = roots.shown(id), region.channel, region.start, region.end
        found.append(Event(*place, label, math.nan))
    return found


def to_m3u(events: Sequence[Event]) -> str:
    """A playlist in the order of the events, each from its start to its end where the player knows
    VLC's options."""
    lines = ["#EXTM3U"]
    for e in events:
        length = -1 if e.start is None or e.end is None else round(e.end - e.start)
        title = f"{PurePath(e.id).name} {_seconds(e.start)}-{_seconds(e.end)} {e.label}"
        similar = "" if math.isnan(e.similarity) else f" {e.similarity:.3f}"
        lines.append(f"#EXTINF:{length},{' '.join(title.split())}{similar}")
        for name, value in (("start", e.start), ("stop", e.end)):
            if value is not None:
                lines.append(f"#EXTVLCOPT:{name}-time={_seconds(value)}")
        lines.append(e.id)
    return "\n".join([*lines, ""])


def _joined(track: Sequence[Window], gap: float, unknown: bool) -> list[Event]:
    done: list[Event] = []
    last: dict[str, tuple[int, Event]] = {}  # of each class: its last window's place, and the event
    for place, window in enumerate(track):
        for event in window.events(unknown):
            before, open_event = last.get(event.label, (-1, None))
            wide = 0.0 if event.label == UNKNOWN else gap
            if open_event is not None and _goes_on(open_event, event, place - before == 1, wide):
                event = replace(
                    open_event,
                    end=max(open_event.end or 0.0, event.end or 0.0),
                    probability=_highest(open_event.probability, event.probability),
                    similarity=_highest(open_event.similarity, event.similarity),
                    p_value=_highest(open_event.p_value, event.p_value),
                    labels=tuple(dict.fromkeys([*open_event.labels, *event.labels])),
                    windows=open_event.windows + 1,
                    metadata=_common(open_event.metadata, event.metadata),
                )
            elif open_event is not None:
                done.append(open_event)
            last[event.label] = place, event
    return done + [event for _, event in last.values()]


def _highest(one: float, other: float) -> float:
    return one if math.isnan(other) or one > other else other


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
