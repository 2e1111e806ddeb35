"""Events of a class per hour and day, with the recorded time, by numbers counted here by hand."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, clip
from penult.analysis.activity import activity, union
from penult.collection.collection import Collection
from penult.data.recording_times import parse_zone
from test_cli import ask

QUIET = ("--workers", "0", "--engine", "torch")


def at(hour: int, minute: int = 0, day: int = 5, second: float = 0) -> datetime:
    return datetime(2021, 6, day, hour, minute, tzinfo=UTC) + timedelta(seconds=second)


def test_stretches_are_cut_at_full_hours_and_counted_once() -> None:
    recorded = [
        [(at(4, 30), at(5, 15)), (at(5, 0), at(5, 30))],  # overlapping windows, an hour together
        [(at(4, 50), at(5, 10))],  # another recorder
        [(at(23, 30), at(0, 30, day=6))],
    ]
    events = [(at(4, 59), at(5, 1)), (at(5, 20), at(5, 20)), (at(0, 10, 6), at(0, 11, 6))]
    hours = {cell.hour: cell for cell in activity(recorded, events, UTC, "hour")}
    assert len(hours) == 24
    assert {hour: cell.effort for hour, cell in hours.items() if cell.effort} == {
        4: 30 * 60 + 10 * 60, 5: 30 * 60 + 10 * 60, 23: 1800, 0: 1800}  # fmt: skip
    assert {hour: cell.events for hour, cell in hours.items() if cell.events} == {4: 1, 5: 1, 0: 1}
    assert (hours[4].seconds, hours[5].seconds) == (60, 60)
    assert hours[4].rate == pytest.approx(1.5)
    assert hours[23].rate == 0 and hours[12].rate is None  # silence, and absence
    days = activity(recorded, events, UTC, "day")
    assert [(one.day, one.events) for one in days] == [(date(2021, 6, 5), 2), (date(2021, 6, 6), 1)]
    field = activity(recorded, events, UTC, "day-hour")
    assert len(field) == 48
    assert sum(one.effort for one in field) == 2 * 3600 + 20 * 60 == sum(d.effort for d in days)


def test_hours_are_those_of_the_zone_also_where_the_clock_is_changed() -> None:
    berlin = parse_zone("Europe/Berlin")
    # 28 March 2021: 1:00 UTC is where 2:00 becomes 3:00.
    night = datetime(2021, 3, 28, 0, 30, tzinfo=UTC), datetime(2021, 3, 28, 1, 30, tzinfo=UTC)
    hours = {cell.hour: cell.effort for cell in activity([[night]], [], berlin) if cell.effort}
    assert hours == {1: 1800, 3: 1800}
    half = parse_zone("+05:30")
    hours = {cell.hour: cell.effort for cell in activity([[night]], [], half) if cell.effort}
    assert hours == {6: 3600}
    assert activity([], [], UTC, "day") == []


def test_a_union_has_each_second_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        marked, spans = np.zeros(200, bool), []
        for begin, length in zip(rng.integers(0, 150, 8), rng.integers(1, 50, 8), strict=True):
            marked[begin : begin + length] = True
            first = at(0) + timedelta(seconds=int(begin))
            spans.append((first, first + timedelta(seconds=int(length))))
        found = union(spans)
        assert sum((end - begin).total_seconds() for begin, end in found) == marked.sum()
        assert all(a[1] < b[0] for a, b in pairwise(found))


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two seconds at three hours, one without a date, and two classes."""
    folder = tmp_path_factory.mktemp("activity")
    (folder / "recs").mkdir()
    for number, name in enumerate(("20210605_043000", "20210605_053000", "20210607_043000", "x")):
        soundfile.write(folder / "recs" / f"{name}.wav", clip(2.0, number), RATE)
    done = ask("embed", tiny, folder / "recs", "--into", folder / "c.lance", "--window", "0.5s",
               "--time-zone", "Europe/Berlin", *QUIET)  # fmt: skip
    assert done.code == 0, done.err
    for name, start in (("early", "0"), ("late", "1.5")):
        row = f"{folder / 'recs/20210605_043000.wav'} {start}-{float(start) + 0.5:g}"
        said = ask("teach", folder / "c.lance", name, row)
        assert said.code == 0, said.err
    return folder


def counted(folder: Path, *arguments: str) -> dict[str, object]:
    said = ask("activity", folder / "c.lance", *arguments, "--json")
    assert said.code == 0, said.err
    found: dict[str, object] = json.loads(said.out)
    return found


def test_the_command_counts_a_columns_value_and_what_was_recorded(made: Path) -> None:
    rows = [
        row
        for batch in Collection.open(made / "c.lance").reader.scan(["id", "start", "label"])
        for row in batch.to_pylist()
    ]
    label = rows[0]["label"]
    expected = 0  # runs of windows that follow each other
    for name in {row["id"] for row in rows} - {"recs/x.wav"}:
        own = sorted((r["start"], r["label"] == label) for r in rows if r["id"] == name)
        flags = [False, *(flag for _, flag in own)]
        expected += sum(b and not a for a, b in pairwise(flags))
    found = counted(made, f"label={label}")
    assert found["events"] == expected
    assert found["effort_seconds"] == 6
    assert found["time_zone"] == "Europe/Berlin"
    cells = found["cells"]
    assert isinstance(cells, list) and len(cells) == 24
    assert {cell["hour"]: cell["effort"] for cell in cells if cell["effort"]} == {4: 4.0, 5: 2.0}
    assert found["without_time"]["rows"] == 4  # type: ignore[index]
    utc = counted(made, f"label={label}", "--time-zone", "UTC")["cells"]
    assert isinstance(utc, list)
    assert {cell["hour"]: cell["effort"] for cell in utc if cell["effort"]} == {2: 4.0, 3: 2.0}
    days = counted(made, f"label={label}", "--by", "day")["cells"]
    assert isinstance(days, list)
    assert [(one["day"], one["effort"]) for one in days] == [
        ("2021-06-05", 4.0), ("2021-06-06", 0.0), ("2021-06-07", 2.0)]  # fmt: skip
    assert days[1]["rate"] is None
    some = counted(made, f"label={label}", "--where", "id LIKE '%0607%'")
    assert some["effort_seconds"] == 2


def test_the_events_of_a_taught_class_are_those_of_predict(made: Path, tmp_path: Path) -> None:
    said = ask("predict", made / "c.lance", "--json")
    assert said.code == 0, said.err
    events = [one for one in json.loads(said.out)["events"] if one["label"] == "early"]
    dated = [one for one in events if one["id"] != "recs/x.wav"]
    found = counted(made, "early")
    assert dated and found["events"] == len(dated)
    assert found["without_time"]["events"] == len(events) - len(dated)  # type: ignore[index]
    out = tmp_path / "activity.csv"
    said = ask("activity", made / "c.lance", "early", "--by", "day-hour", "--out", out)
    assert said.code == 0, said.err
    with out.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 72
    assert sum(int(line["events"]) for line in lines) == len(dated)
    assert {line["events_per_hour"] for line in lines if line["effort_seconds"] == "0"} == {""}
    assert ask("activity", made / "c.lance", "early", "--out", out).code == 2
    shown = ask("activity", made / "c.lance", "early")
    assert "04" in shown.out and "recorded" in shown.out


def test_predictions_of_files_tell_their_time(made: Path) -> None:
    said = ask("predict", made / "c.lance", made / "recs/20210605_043000.wav", "--json", *QUIET[:2])
    assert said.code == 0, said.err
    first = json.loads(said.out)["predictions"][1]
    assert first["metadata"]["recorded_at"] == "2021-06-05 02:30:00.500000+00:00"


@pytest.mark.parametrize("by", ["hour", "day", "day-hour"])
def test_pictures(made: Path, tmp_path: Path, by: str) -> None:
    from PIL import Image

    out = tmp_path / "a.png"
    assert ask("activity", made / "c.lance", "early", "--by", by, "--out", out).code == 0
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert min(picture.shape[:2]) > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_what_cannot_be_counted_is_refused(tiny: Path, made: Path, tmp_path: Path) -> None:
    said = ask("activity", made / "c.lance", "robin")
    assert said.code == 2 and "early" in said.err and "COLUMN=VALUE" in said.err
    assert ask("activity", made / "c.lance", "early", "--by", "week").code == 2
    assert ask("activity", made / "c.lance", "early", "--out", tmp_path / "a.doc").code == 2
    assert ask("embed", tiny, made / "recs", "--into", tmp_path / "c.lance", *QUIET).code == 0
    said = ask("activity", tmp_path / "c.lance", "label=0")
    assert said.code == 2 and "migrate" in said.err
