"""Tables of annotations as programs write them: what they mean, and what a collection keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, clip
from penult.collection.reader import Reader
from penult.data.regions import Region, span_of
from penult.data.sources import from_paths
from test_cli import ask

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def sound(path: Path, seconds: float = 6.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip(seconds, seed), RATE)
    return path


def table(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def embed(*arguments: object) -> dict[str, int]:
    """Counts of a run with the bundled classifier."""
    options = ("--engine", "torch", "--workers", "0", "--json")
    done = ask("embed", "demo", *arguments, *options)
    counts = ("done", "skipped", "replaced", "failed")
    return {name: done.json[name] for name in counts} | {"code": done.code}


def rows(path: Path, *columns: str) -> list[tuple[object, ...]]:
    found = Reader(path).ordered(["region", *columns])
    return [tuple(row.values()) for batch in found for row in batch.to_pylist()]


# ---- several annotations of one span

OWLS = (
    f"{RAVEN}\tCommon Name\tScore",
    "1\tSpectrogram 1\t1\t3.0\t6.0\t150\t12000\tGreat Horned Owl\t0.165",
    "2\tSpectrogram 1\t1\t3.0\t6.0\t150\t12000\tRed-breasted Nuthatch\t0.955",
    "3\tSpectrogram 1\t1\t6.0\t9.0\t150\t12000\tRed-breasted Nuthatch\t0.962",
)


def test_two_species_in_one_window_are_two_rows_of_one_vector(tmp_path):
    sound(tmp_path / "G024.wav", 9.0)
    marks = table(tmp_path / "G024.BirdNET.selection.table.txt", *OWLS)
    into = tmp_path / "c.lance"
    assert embed(marks, "--into", into) == {
        "done": 3,
        "skipped": 0,
        "replaced": 0,
        "failed": 0,
        "code": 0,
    }
    found = rows(into, "start", "end", "Selection", "Common_Name", "vector")
    assert [row[:5] for row in found] == [
        ("ch0:3-6", 3.0, 6.0, 1, "Great Horned Owl"),
        ("ch0:3-6#2", 3.0, 6.0, 2, "Red-breasted Nuthatch"),
        ("ch0:6-9", 6.0, 9.0, 3, "Red-breasted Nuthatch"),
    ]
    first, again, other = (np.array(row[5]) for row in found)
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert embed(marks, "--into", into)["skipped"] == 3
    table(marks, *OWLS, "9\tSpectrogram 1\t1\t3.0\t6.0\t150\t12000\tWren\t0.5")
    assert embed(marks, "--into", into) == {
        "done": 1,
        "skipped": 3,
        "replaced": 0,
        "failed": 0,
        "code": 0,
    }
    assert [row[0] for row in rows(into)] == ["ch0:3-6", "ch0:3-6#2", "ch0:3-6#9", "ch0:6-9"]
    said = ask("classify", "demo", marks)
    assert said.code == 0 and "ch0:3-6#2" in said.out and "ch0:3-6#9" in said.out


def test_boxes_of_one_time_differ_in_their_frequencies(tmp_path):
    sound(tmp_path / "one.wav")
    marks = table(
        tmp_path / "one.Table.1.selections.txt",
        RAVEN,
        "1\tWaveform 1\t1\t1\t2\t1000\t2000",
        "1\tSpectrogram 1\t1\t1\t2\t1000\t2000",
        "2\tWaveform 1\t1\t1\t2\t4000\t8000",
        "2\tSpectrogram 1\t1\t1\t2\t4000\t8000",
    )
    found = [
        (region.key, item.metadata["Low_Freq__Hz_"])
        for item, region in from_paths([marks], "audio")
    ]
    assert found == [("ch0:1-2", 1000), ("ch0:1-2#2", 4000)]
    assert [span_of(key) for key, _ in found] == ["ch0:1-2", "ch0:1-2"]


def test_annotations_of_a_whole_file_and_of_the_same_lines_again(tmp_path):
    sound(tmp_path / "a.wav", 1.0)
    lines = ("path,name", "a.wav,x", "a.wav,y", "a.wav,x", "a.wav,y", "a.wav,z")
    marks = table(tmp_path / "t.csv", *lines)
    into = tmp_path / "c.lance"
    assert embed(marks, "--into", into)["done"] == 3
    assert rows(into, "name") == [("whole", "x"), ("whole#2", "y"), ("whole#3", "z")]
    assert embed(marks, "--into", into)["skipped"] == 3
    for key, kind in (("whole#2", "whole"), ("ch1:0.5-end#7", "segment"), ("box:0,1,2,3#a", "box")):
        assert Region.of_key(key, kind).key == key


def test_a_span_that_fails_fails_for_each_of_its_annotations(tmp_path):
    sound(tmp_path / "a.wav", 1.0)
    marks = table(tmp_path / "t.csv", "path,start,end,name", "a.wav,5,6,x", "a.wav,5,6,y")
    assert embed(marks, "--into", tmp_path / "c.lance") == {
        "done": 0,
        "skipped": 0,
        "replaced": 0,
        "failed": 2,
        "code": 3,
    }
    failures = ask("failures", tmp_path / "c.lance", "--json").json["failures"]
    assert [row["region"] for row in failures] == ["5-6", "5-6#2"]
    assert all("start 5 s lies beyond the end" in row["message"] for row in failures)


# ---- rows that cannot be used


BAD = ("3,3", "abc,1", "2,1", "-1,1", "1,99", "nan,1", "7,8")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_row_is_one_failure_wherever_it_stands(tmp_path, place):
    sound(tmp_path / "rec.wav")
    lines = ["rec.wav,0,1,x", "rec.wav,4,5,z"]
    lines[place:place] = [f"rec.wav,{bad},y" for bad in BAD]
    marks = table(tmp_path / "t.csv", "path,start,end,name", *lines)
    into, failed = tmp_path / "c.lance", len(BAD)
    assert embed(marks, "--into", into) == {
        "done": 2,
        "skipped": 0,
        "replaced": 0,
        "failed": failed,
        "code": 3,
    }
    assert embed(marks, "--into", into) == {
        "done": 0,
        "skipped": 2,
        "replaced": 0,
        "failed": failed,
        "code": 3,
    }
    assert rows(into, "name") == [("0-1", "x"), ("4-5", "z")]
