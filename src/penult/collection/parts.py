"""Rows of a collection in parts by a column: periods of time, ranges of numbers, or values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.collection.columns import names as derived_names
from penult.collection.labels import CLUSTER, PREDICTED, names_of
from penult.collection.reader import Reader
from penult.collection.timing import has_times, times_of_runs
from penult.data.recording_times import CLOCK, RECORDED_AT, parse_zone
from penult.errors import CollectionError, LabelsError, UsageError, listed

Places = npt.NDArray[np.int64]

NONE = -1  # the part of a row without a value
TIME, NUMBER, TEXT = "time", "number", "text"
PERIODS = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "month": 2_629_746,
           "year": 31_556_952}  # seconds  # fmt: skip
MOST = 200  # parts
_PERIODS_DRAWN = 60  # from the first time to the last, of a period that is not asked for
_VALUES = 50  # different whole numbers, up to which each is a part
_RANGES = 10
_FIRST_YEAR, _LAST_YEAR = 1980, 2099  # of dates of eight digits, without dashes


@dataclass(frozen=True, slots=True)
class Division:
    """Rows in parts. kind: time, number or text. names: of the parts, in order where there is one.
    of_row: (n,) the part of each row, NONE without a value. period: of parts by time."""

    kind: str
    names: list[str]
    of_row: Places
    period: str | None = None

    @property
    def is_ordered(self) -> bool:
        """Whether one part comes after another."""
        return self.kind != TEXT


def parts_of(
    reader: Reader,
    table: pa.Table,
    by: str,
    every: str | None = None,
    zone: str | None = None,
    as_names: bool = False,
) -> Division:
    """The parts of rows (all scalar columns of them) by a column, `folder` or another way of naming
    rows. Numbers of more than fifty values, or with fractions, are divided into ten ranges of as
    many rows.

    every: the period of times; None: the shortest with at most sixty parts. zone: the time zone of
    days and weeks; None: that of the collection's times. as_names: numbers and times are names,
    such as those of speakers, without an order.

    Raises:
        LabelsError: it names nothing here, one value, too many parts, or what was computed from the
            vectors. UsageError: no such period, or one for what is no time. CollectionError: times
            that the collection does not have.
    """
    if every is not None and every not in PERIODS:
        raise UsageError(f"--every {every!r} is no period; {', '.join(PERIODS)} are")
    _check_way(reader, by)
    texts = names_of(reader, table, by)
    values = list[datetime | float | str | None](texts) if as_names else _values(texts)
    there = [value for value in values if value is not None]
    if not there:
        raise LabelsError(f"none of {len(values):,} rows has a finite number by {by!r}")
    if isinstance(there[0], datetime):
        name = zone or times_of_runs(reader) or CLOCK
        found = _periods(values, every, name)
    elif every is not None or zone is not None:
        raise UsageError(
            f"--every and --time-zone divide times, and {by!r} holds {str(there[0])!r}; leave them "
            f"out, or give a column of times such as {RECORDED_AT}"
        )
    else:
        found = _numbers(values) if isinstance(there[0], float) else _texts(values)
    if len(found.names) < 2:
        what = f"in one {found.period}" if found.period else f"{found.names[0]!r}"
        advice = "; --every with a shorter period divides it" if found.period else ""
        raise LabelsError(
            f"all {len(there):,} rows with a value by {by!r} are {what}, and two parts or more are "
            f"compared{advice}"
        )
    if len(found.names) > MOST:
        advice = "; --every with a longer period has fewer" if found.period else ""
        raise LabelsError(
            f"{by!r} divides {len(there):,} rows into {len(found.names):,} parts "
            f"({listed(found.names, 3)}), and up to {MOST} are compared{advice}"
        )
    return found


def _check_way(reader: Reader, by: str) -> None:
    made = {PREDICTED, "score", *derived_names(reader.path)} - set(reader.schema.names)
    own = by not in reader.schema.names and by.partition(":")[0] == CLUSTER
    if own or by in made or by in (PREDICTED, "score"):
        raise LabelsError(
            f"{by!r} was computed from these very rows, so that parts by it differ in any case; "
            "give a column that was known before, such as a date, a site or a batch"
        )
    if by == RECORDED_AT and not has_times(reader):
        raise CollectionError(
            f"{reader.path} does not know when its rows were recorded: penult migrate "
            f"{reader.path} --times reads names and headers of its files"
        )


def _values(texts: Sequence[str | None]) -> list[datetime | float | str | None]:
    """Texts as times, else as numbers, where all of them are; None where there is none, and for
    numbers that are not finite."""
    for read in (_moment, _number):
        with suppress(ValueError):
            return [None if one is None else read(one) for one in texts]
    return list(texts)


def _moment(text: str) -> datetime:
    when = datetime.fromisoformat(text)  # of 8 digits too, which are a date or a number
    if text.isdecimal() and not _FIRST_YEAR <= when.year <= _LAST_YEAR:
        raise ValueError(text)
    return when


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _periods(values: Sequence[object], every: str | None, zone: str) -> Division:
    local = parse_zone(zone)
    moments = (value if isinstance(value, datetime) else None for value in values)
    times = [
        None if when is None else (when.astimezone(local) if when.tzinfo else when).replace(
            tzinfo=None
        )
        for when in moments
    ]  # fmt: skip
    period = every or _period(times)
    starts = [None if when is None else _start(when, period) for when in times]
    names = sorted({one for one in starts if one is not None})
    return Division(TIME, names, _numbered(starts, names), period)


def _period(times: Sequence[datetime | None]) -> str:
    """The shortest of which there are at most sixty from the first time to the last."""
    there = [when for when in times if when is not None]
    span = (max(there) - min(there)).total_seconds()
    found = (name for name, length in PERIODS.items() if span / length < _PERIODS_DRAWN)
    return next(found, "year")


def _start(when: datetime, period: str) -> str:
    """The beginning of the period of a time, such that texts stand in order."""
    if period == "week":
        return f"{when.date() - timedelta(days=when.weekday()):%Y-%m-%d}"
    form = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d",
            "month": "%Y-%m", "year": "%Y"}[period]  # fmt: skip
    return when.strftime(form)


def _numbers(values: Sequence[object]) -> Division:
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    known = numbers[np.isfinite(numbers)]
    single = np.unique(known)
    found: Places = np.full(len(numbers), NONE, np.int64)
    if len(single) == 1 or (len(single) <= _VALUES and (single % 1 == 0).all()):
        found[np.isfinite(numbers)] = np.searchsorted(single, known)
        return Division(NUMBER, [f"{one:.10g}" for one in single], found)
    ends = np.unique(np.quantile(known, np.linspace(0, 1, _RANGES + 1), method="lower"))
    found[np.isfinite(numbers)] = np.searchsorted(ends[1:-1], known, side="right")
    return Division(NUMBER, [f"{low:g} to {high:g}" for low, high in pairwise(ends)], found)


def _texts(values: Sequence[object]) -> Division:
    texts = [None if value is None else str(value) for value in values]
    names = sorted({one for one in texts if one is not None})
    return Division(TEXT, names, _numbered(texts, names))


def _numbered(values: Sequence[str | None], names: Sequence[str]) -> Places:
    place = {name: at for at, name in enumerate(names)}
    return np.array([NONE if one is None else place[one] for one in values], np.int64)
