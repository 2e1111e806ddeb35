"""Tables of annotations as programs write them: what they mean, and what a collection keeps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from conftest import RATE, clip
from penult.collection import lance
from penult.collection.add import add
from penult.collection.reader import Reader
from penult.data.regions import Region, span_of
from penult.data.sources import from_paths
from penult.embedding.embedder import Embedder, open_embedder
from test_cli import ask

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def sound(path: Path, seconds: float = 6.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip(seconds, seed), RATE)
    return path


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@cache
def demo() -> Embedder:
    return open_embedder("demo", engine="torch")


def embed(*paths: Path, into: Path) -> dict[str, int]:
    """Counts of a run with the bundled classifier."""
    return add(Reader(into), demo(), from_paths(list(paths), "audio")).counts()


NOTHING = {"done": 0, "skipped": 0, "replaced": 0, "failed": 0}


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
    assert embed(marks, into=into) == {
        "done": 3,
        "skipped": 0,
        "replaced": 0,
        "failed": 0,
    }
    found = rows(into, "start", "end", "Selection", "Common_Name", "vector")
    assert [row[:5] for row in found] == [
        ("ch0:3-6", 3.0, 6.0, 1, "Great Horned Owl"),
        ("ch0:3-6#2", 3.0, 6.0, 2, "Red-breasted Nuthatch"),
        ("ch0:6-9", 6.0, 9.0, 3, "Red-breasted Nuthatch"),
    ]
    first, again, other = (np.array(row[5]) for row in found)
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert embed(marks, into=into)["skipped"] == 3
    table(marks, *OWLS, "9\tSpectrogram 1\t1\t3.0\t6.0\t150\t12000\tWren\t0.5")
    assert embed(marks, into=into) == {
        "done": 1,
        "skipped": 3,
        "replaced": 0,
        "failed": 0,
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
    assert embed(marks, into=into)["done"] == 3
    assert rows(into, "name") == [("whole", "x"), ("whole#2", "y"), ("whole#3", "z")]
    assert embed(marks, into=into)["skipped"] == 3
    for key, kind in (("whole#2", "whole"), ("ch1:0.5-end#7", "segment"), ("box:0,1,2,3#a", "box")):
        assert Region.of_key(key, kind).key == key


def test_a_span_that_fails_fails_for_each_of_its_annotations(tmp_path):
    sound(tmp_path / "a.wav", 1.0)
    marks = table(tmp_path / "t.csv", "path,start,end,name", "a.wav,5,6,x", "a.wav,5,6,y")
    assert embed(marks, into=tmp_path / "c.lance") == {
        "done": 0,
        "skipped": 0,
        "replaced": 0,
        "failed": 2,
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
    assert embed(marks, into=into) == {
        "done": 2,
        "skipped": 0,
        "replaced": 0,
        "failed": failed,
    }
    assert embed(marks, into=into) == {
        "done": 0,
        "skipped": 2,
        "replaced": 0,
        "failed": failed,
    }
    assert rows(into, "name") == [("0-1", "x"), ("4-5", "z")]


# ---- types of columns


def kind(path: Path, name: str) -> str:
    columns = Reader(path).schema
    return str(columns.field(name).type) if name in columns.names else "absent"


def test_a_column_without_a_value_has_no_type(tmp_path):
    for name in "abc":
        sound(tmp_path / f"{name}.wav", 1.0)
    into = tmp_path / "c.lance"
    first = table(tmp_path / "1.csv", "path,temperature", "a.wav,")
    assert embed(first, into=into)["failed"] == 0
    assert kind(into, "temperature") == "absent"
    assert embed(table(tmp_path / "2.csv", "path,temperature", "b.wav,7"), into=into)["done"]
    assert embed(first, into=into)["skipped"] == 1
    assert rows(into, "temperature") == [("whole", None), ("whole", 7)]
    # a column of texts that has no value in any row, as former versions made it
    lance.open_table(into, "items").add_columns([pa.field("wind", pa.string())])
    assert embed(table(tmp_path / "3.csv", "path,wind", "c.wav,2.5"), into=into)["done"] == 1
    assert rows(into, "wind") == [("whole", None), ("whole", None), ("whole", 2.5)]


def test_a_run_that_found_no_recording_fixes_no_type(tmp_path):
    marks = table(
        tmp_path / "tables" / "x1.txt",
        f"{RAVEN}\tBegin File",
        "1\tSpectrogram 1\t1\t0.5\t1.5\t1000\t2000\tx1.wav",
    )
    sound(tmp_path / "audio" / "x1.wav", 4.0)
    into = tmp_path / "c.lance"
    assert embed(marks, into=into)["failed"] == 1
    assert embed(marks, tmp_path / "audio", into=into)["done"] == 1
    assert kind(into, "Selection") == "int64"
    # a run whose rows all failed when they were read leaves no type either
    (tmp_path / "bad.wav").write_bytes(b"RIFF....WAVE")
    table(tmp_path / "t.csv", "path,site", "bad.wav,3")
    assert embed(tmp_path / "t.csv", into=into)["failed"] == 1
    sound(tmp_path / "bad.wav", 1.0)
    table(tmp_path / "t.csv", "path,site", "bad.wav,true")
    assert embed(tmp_path / "t.csv", into=into)["done"] == 1
    assert kind(into, "site") == "bool"


STEPS = [
    (["7"], "int64", [7]),
    (["7", "2.5"], "double", [7.0, 2.5]),
    (["7", "2.5", "deep"], "string", ["7", "2.5", "deep"]),
    (["true", "deep"], "string", ["true", "deep"]),
    (["true", "3"], "string", ["true", "3"]),
    (["deep", "3"], "string", ["deep", "3"]),
    (["2.5", "3"], "double", [2.5, 3.0]),
    ([str(2**53 + 1), "0.5"], "string", [str(2**53 + 1), "0.5"]),
]


@pytest.mark.parametrize(("values", "type", "stored"), STEPS)
def test_types_widen_and_earlier_rows_stay(tmp_path, values, type, stored):
    into, tables = tmp_path / "c.lance", []
    for number, value in enumerate(values):
        sound(tmp_path / f"{number}.wav", 0.5, number)
        tables.append(table(tmp_path / f"{number}.csv", "path,depth", f"{number}.wav,{value}"))
        assert embed(tables[-1], into=into)["done"] == 1
    assert kind(into, "depth") == type
    assert [depth for _, depth in rows(into, "depth")] == stored
    for one in tables:  # and nothing is embedded again
        assert embed(one, into=into) == {**NOTHING, "skipped": 1}
    assert [depth for _, depth in rows(into, "depth")] == stored


def test_the_change_of_a_type_is_told(tmp_path):
    sound(tmp_path / "a.wav", 0.5)
    into = tmp_path / "c.lance"
    first = table(tmp_path / "1.csv", "path,depth", "a.wav,7")
    assert embed(first, into=into)["done"] == 1
    said = ask("embed", "demo", table(first, "path,depth", "a.wav,deep"), "--into", into)
    assert said.code == 0, said
    assert "metadata depth: int64 in earlier rows, now string in all" in said.err
    assert rows(into, "depth") == [("whole", "deep")]


def test_a_value_that_does_not_go_into_its_column_is_named(tmp_path):
    sound(tmp_path / "a.wav", 0.5)
    sound(tmp_path / "b.wav", 0.5)
    into = tmp_path / "c.lance"
    assert embed(table(tmp_path / "1.csv", "path,n", "a.wav,2.5"), into=into)["done"] == 1
    lines = ("path,n", "a.wav,3", f"b.wav,{2**60 + 1}")
    found = embed(table(tmp_path / "2.csv", *lines), into=into)
    assert (found["skipped"], found["failed"]) == (1, 1)
    (failure,) = ask("failures", into, "--json").json["failures"]
    assert (
        f"n {2**60 + 1} does not go into the collection's column of type double"
        in (failure["message"])
    )
