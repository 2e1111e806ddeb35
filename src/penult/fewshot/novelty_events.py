"""Events of novel rows: windows of a recording with low p-values that follow each other, merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from penult.analysis.activity import BEGINNING, Span, union
from penult.collection.novelty import ALPHA, Novelty
from penult.collection.reader import Reader
from penult.collection.timing import has_times
from penult.data.formulas import Cells
from penult.data.recording_times import RECORDED_AT
from penult.data.roots import Roots
from penult.data.selection_tables import CLASS, RavenSelection
from penult.fewshot.events import Window, csv_lines, merged

NOVEL = "novel"  # the class of these events
HEADER = ("path", "start", "end", "channel", "novelty", "p_value", "windows", "normal")


@dataclass(frozen=True, slots=True)
class NoveltyEvent:
    """A novel stretch from start to end (seconds; None: the item has none). novelty: the highest of
    its windows. p_value: the lowest. windows: how many were merged. normal: all of
    them are normal rows. recorded_at: of its first window, None where it is not known."""

    id: str
    channel: int | None
    start: float | None
    end: float | None
    novelty: float
    p_value: float
    windows: int
    normal: bool
    recorded_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        when = None if self.recorded_at is None else self.recorded_at.isoformat()
        return asdict(self) | {"recorded_at": when}


@dataclass(frozen=True, slots=True)
class NoveltyEvents:
    """Events by recording and start. seconds: recorded of normal rows (True) and of others, what
    overlaps once; 0 where items were read whole. recordings: all that were looked at."""

    events: list[NoveltyEvent]
    seconds: Mapping[bool, float]
    recordings: Sequence[str]

    def rate(self, normal: bool) -> float | None:
        """Events in each recorded hour of such rows; None where no seconds are known."""
        own = sum(one.normal == normal for one in self.events)
        return own / self.seconds[normal] * 3600 if self.seconds[normal] else None


def novelty_events(
    reader: Reader, found: Novelty, alpha: float = ALPHA, gap: float = 0.0
) -> NoveltyEvents:
    """Windows of a recording and channel that follow each other, with p-values of at most `alpha`,
    as one event. Rows without seconds are events of their own.

    gap: seconds; such windows no farther apart are one event too.

    Raises:
        UsageError: a gap that is negative.
    """
    scores = {(row.id, row.region): row for row in found.rows}
    windows: list[Window] = []
    spans: dict[bool, dict[str, list[Span]]] = {True: {}, False: {}}
    columns = ["id", "region", "channel", "start", "end"]
    columns += [RECORDED_AT] if has_times(reader) else []
    for batch in reader.ordered(columns, "kind <> 'summary'"):
        for row in batch.to_pylist():
            score = scores.get((row["id"], row["region"]))
            if score is None:  # it came since
                continue
            start, end = row["start"], row["end"]
            if start is not None and end is not None:
                span = BEGINNING + timedelta(seconds=start), BEGINNING + timedelta(seconds=end)
                spans[score.normal].setdefault(row["id"], []).append(span)
            # All others have no class, so that windows which follow each other are known. The least
            # p-value of an event is what `merged` keeps as the highest share.
            novel = {NOVEL: -score.p_value} if score.p_value <= alpha else {}
            about = {"normal": score.normal, RECORDED_AT: row.get(RECORDED_AT)}
            windows.append(Window(row["id"], row["channel"], start, end, novel, about,
                                  {NOVEL: score.novelty}))  # fmt: skip
    events = [
        NoveltyEvent(one.id, one.channel, one.start, one.end, one.similarity, -one.probability,
                     one.windows, bool(one.metadata.get("normal")), one.metadata[RECORDED_AT])
        for one in merged(windows, gap)
    ]  # fmt: skip
    seconds = {
        normal: sum((b - a).total_seconds() for each in own.values() for a, b in union(each))
        for normal, own in spans.items()
    }
    return NoveltyEvents(events, seconds, sorted({one.id for one in windows}))


def to_csv(found: NoveltyEvents, cells: Cells, roots: Roots = Roots()) -> Iterable[str]:
    """One line for each event. roots: what the ids begin with."""
    dated = any(one.recorded_at is not None for one in found.events)
    rows = (
        [roots.shown(one.id), one.start, one.end, one.channel, f"{one.novelty:.6g}",
         f"{one.p_value:.6g}", one.windows, one.normal, *([one.recorded_at] if dated else [])]
        for one in found.events
    )  # fmt: skip
    return csv_lines([*HEADER, *([RECORDED_AT] if dated else [])], rows, cells)


def to_selections(found: NoveltyEvents, roots: Roots = Roots()) -> list[RavenSelection]:
    """As lines of a Raven selection table, of the class `novel`."""
    return [
        RavenSelection(
            roots.shown(one.id), one.start, one.end, one.channel,
            {CLASS: NOVEL, "novelty": f"{one.novelty:.6g}", "p_value": f"{one.p_value:.6g}",
             "windows": one.windows},
        )
        for one in found.events
    ]  # fmt: skip
