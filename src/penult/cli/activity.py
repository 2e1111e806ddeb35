"""`penult activity`: events of a class, or of rows by a column, by hour and day, with the recorded
time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Store, Where
from penult.cli.options import Json, Overwrite, check_output
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    stdout,
    working,
)
from penult.errors import CollectionError, UsageError, listed

if TYPE_CHECKING:
    from penult.analysis.activity import ActivityCell, Span
    from penult.collection.reader import Reader
    from penult.fewshot.events import Event

HEADER = ("day", "hour", "effort_seconds", "events", "event_seconds", "events_per_hour")
_BATCH = 8192
_UNIT = {"hour": "hour of the day", "day": "day", "day-hour": "hour of each day",
         "elapsed": "hour of the recording"}  # fmt: skip
_CONDITION = re.compile(r"([^=<>]+?)\s*(<=|>=|<|>|=)\s*(.*)", re.DOTALL)  # of the words for CLASS


def activity(
    collection: Store,
    class_: Annotated[
        str,
        typer.Argument(
            metavar="CLASS",
            help="A taught class, or COLUMN=VALUE: rows with this value, for example label=dog; "
            "of numbers also COLUMN<=VALUE, as 'novelty_p<=0.05'.",
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            help="hour (of the day), day, day-hour, or elapsed: hours since the beginning of each "
            "recording, which need no times."
        ),
    ] = "hour",
    time_zone: Annotated[
        str | None,
        typer.Option(
            help="Zone of days and hours, as Europe/Berlin, UTC or +02:00. Default: that of "
            "the collection's times."
        ),
    ] = None,
    where: Where = None,
    merge_gap: Annotated[
        float,
        typer.Option(min=0.0, help="Longest gap in seconds between windows of one event."),
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the cells to a .csv file, or a picture (.png, .svg, .pdf)."),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Count the events of a class by hour of the day or by day, and how long was recorded then.

    An hour without recordings is empty, one with recordings and without events is 0. The rows need
    times, but for --by elapsed: penult embed --times, or penult migrate C --times.
    """
    from penult.analysis.activity import BY
    from penult.analysis.activity import activity as cells_of
    from penult.collection.collection import Collection
    from penult.collection.timing import times_of_runs
    from penult.data.recording_times import CLOCK, parse_zone

    if by not in BY:
        raise UsageError(f"--by {by!r} is none of {', '.join(BY)}")
    _check_out(out, overwrite)
    reader = Collection.open(collection, must_exist=True).reader
    elapsed = by == "elapsed"
    if elapsed and time_zone is not None:
        raise UsageError(
            "--by elapsed counts from the beginning of recordings: it has no time zone"
        )
    name = time_zone or times_of_runs(reader) or CLOCK
    zone = UTC if elapsed else parse_zone(name)
    with working("reading when rows were recorded"):
        begins, spans, undated = _recorded(reader, where, elapsed)
    with working("looking for events"):
        found = _events(str(collection), reader, class_, where, merge_gap)
    events = [_span(begins[one.id], one) for one in found if one.id in begins]
    cells = cells_of(spans.values(), events, zone, by)
    facts = {
        "class": class_, "by": by, "time_zone": None if elapsed else name or "UTC",
        "events": len(events),
        "effort_seconds": sum(cell.effort for cell in cells),
        "without_time": {"rows": undated, "events": len(found) - len(events)},
    }  # fmt: skip
    if out is not None:
        _write(out, cells, facts)
    if json:
        each = [cell.to_dict() for cell in cells]
        print_json({"collection": str(collection), **facts, "cells": each, "out": out})
        return
    if out is None:
        _show(cells)
    _sum_up(facts, out)


def _check_out(out: Path | None, overwrite: bool) -> None:
    from penult.fewshot.storage import check_free
    from penult.viz.plots import PICTURES, check_picture

    if out is None:
        return
    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in ("csv", *PICTURES):
        raise UsageError(f"--out {out}: .csv and .{', .'.join(PICTURES)} are written")
    if suffix != "csv":
        check_picture(out)
    check_output(out, create=True)
    check_free(out, overwrite)


def _recorded(
    reader: Reader, where: str | None, elapsed: bool
) -> tuple[dict[str, datetime], dict[str, list[Span]], int]:
    """Of each recording its beginning and the stretches that have rows; how many rows have no time.
    elapsed: as if all began together.

    Raises:
        CollectionError: no row has one, or none has seconds.
    """
    from penult.analysis.activity import BEGINNING
    from penult.collection.timing import has_times
    from penult.data.recording_times import RECORDED_AT

    if not elapsed and not has_times(reader):
        raise CollectionError(
            f"{reader.path} does not know when its rows were recorded: penult migrate "
            f"{reader.path} --times reads names and headers of its files; --by elapsed counts "
            "hours since the beginning of each recording"
        )
    begins: dict[str, datetime] = {}
    spans: dict[str, list[Span]] = {}
    undated = 0
    columns = ["id", "start", "end", *([] if elapsed else [RECORDED_AT])]
    rows = _rows(reader, columns, _both("kind <> 'summary'", where))
    for row in rows:
        start, end = row["start"], row["end"]
        when = row.get(RECORDED_AT)
        if elapsed and start is not None:
            when = BEGINNING + timedelta(seconds=start)
        if not isinstance(when, datetime) or start is None or end is None:
            undated += 1
            continue
        begins[row["id"]] = when - timedelta(seconds=start)
        spans.setdefault(row["id"], []).append((when, when + timedelta(seconds=end - start)))
    if not spans and elapsed:
        raise CollectionError(
            f"none of the {undated:,} rows of {reader.path} has seconds: its items were read "
            "whole; penult embed --window cuts recordings"
        )
    if not spans:
        raise CollectionError(
            f"none of the {undated:,} rows of {reader.path} has a time and seconds; "
            "penult migrate COLLECTION --times reads names and headers of its files"
        )
    return begins, spans, undated


def _rows(reader: Reader, columns: list[str], where: str) -> Iterator[dict[str, Any]]:
    for batch in reader.scan(columns, where, batch_size=_BATCH):
        yield from batch.to_pylist()


def _both(one: str, other: str | None) -> str:
    return one if other is None else f"{one} AND ({other})"


def _events(place: str, reader: Reader, class_: str, where: str | None, gap: float) -> list[Event]:
    from penult.collection.schema import quoted
    from penult.fewshot import events

    found = _CONDITION.fullmatch(class_)
    if found is not None and _is_column(reader, found[1]):
        column, sign, value = found.groups()
        condition = f"CAST(`{column}` AS STRING) = {quoted([value])}"
        if sign != "=":
            condition = f"`{column}` {sign} {_number(class_, value)}"
        columns = ["id", "channel", "start", "end"]
        rows = _rows(reader, columns, _both(f"kind <> 'summary' AND {condition}", where))
        windows = (
            events.Window(row["id"], row["channel"], row["start"], row["end"], {value: 1.0})
            for row in rows
        )
        return events.merged(windows, gap)
    return _taught_events(place, class_, where, gap)


def _is_column(reader: Reader, name: str) -> bool:
    from penult.collection.columns import wider

    return name in wider(reader.path, reader.schema).names


def _number(class_: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{class_!r}: {value!r} is no number; COLUMN=VALUE is for names") from None


def _taught_events(place: str, class_: str, where: str | None, gap: float) -> list[Event]:
    from penult.cli.teach import load_class_space
    from penult.fewshot import events
    from penult.fewshot.predictions import Spool

    taught = load_class_space(place)
    if class_ not in taught.fitted.names:
        raise UsageError(
            f"{class_!r} is no class of {place}: {listed(taught.fitted.names)}; a column's value "
            "is COLUMN=VALUE"
        )
    with Spool() as spool:
        spool.extend(taught.predict_collection(None, where))
        found = events.merged(spool.windows(), gap)
    return [one for one in found if one.label == class_]


def _span(begin: datetime, event: Event) -> Span:
    start = event.start or 0.0
    return (
        begin + timedelta(seconds=start),
        begin + timedelta(seconds=start if event.end is None else event.end),
    )


def _write(out: Path, cells: list[ActivityCell], facts: dict[str, Any]) -> None:
    from penult.data.files import write_file
    from penult.fewshot.events import csv_lines
    from penult.viz.plots import draw_activity

    if out.suffix.lower() == ".csv":
        lines = csv_lines(HEADER, (_values(cell) for cell in cells))
        write_file(out, (line.encode() for line in lines))
    else:
        title = f"{facts['class']}: {facts['events']:,} events in {_hours(facts)} h recorded"
        draw_activity(out, cells, title, facts["time_zone"])


def _hours(facts: dict[str, Any]) -> str:
    return f"{facts['effort_seconds'] / 3600:,.3g}"


def _values(cell: ActivityCell) -> list[Any]:
    return [
        "" if cell.day is None else cell.day.isoformat(),
        "" if cell.hour is None else cell.hour,
        f"{cell.effort:.6g}",
        cell.events,
        f"{cell.seconds:.6g}",
        "" if cell.rate is None else f"{cell.rate:.6g}",
    ]


def _show(cells: list[ActivityCell]) -> None:
    """The cells as a table; those in which nothing was recorded are left out."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = [name for name in ("day", "hour") if getattr(cells[0], name) is not None]
    for name in (*names, "recorded", "events", "per hour"):
        table.add_column(name, justify="right")
    table.add_column("")
    most = max(cell.rate or 0.0 for cell in cells) or 1.0
    for cell in cells:
        if cell.rate is None:
            continue
        hour = [] if cell.hour is None else [f"{cell.hour:02d}"]
        day = [] if cell.day is None else [cell.day.isoformat()]
        bar = "█" * round(24 * cell.rate / most)
        table.add_row(*day, *hour, str(timedelta(seconds=round(cell.effort))),
                      f"{cell.events:,}", f"{cell.rate:.3g}", bar)  # fmt: skip
    print_table(table)


def _sum_up(facts: dict[str, Any], out: Path | None) -> None:
    zone = f" ({printable(facts['time_zone'])})" if facts["time_zone"] else ""
    stdout.print(
        f"[bold green]{counted(facts['events'], 'event')}[/] of {printable(facts['class'])} in "
        f"{_hours(facts)} h recorded, by {_UNIT[facts['by']]}{zone}",
        soft_wrap=True,
    )
    missing, lacking = facts["without_time"], "seconds" if facts["by"] == "elapsed" else "a time"
    if missing["rows"] or missing["events"]:
        print_note(
            f"[yellow]{counted(missing['rows'], 'row')} and {counted(missing['events'], 'event')} "
            f"of recordings without {lacking} are left out[/]"
        )
    if out is not None:
        stdout.print(f"written: [bold]{printable(str(out))}[/]", soft_wrap=True)
