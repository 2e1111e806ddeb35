"""Tables of annotations as programs write them: what they mean, and what a collection keeps."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import RATE, clip
from penult.collection import lance
from penult.collection.add import add
from penult.collection.collection import Collection
from penult.collection.labels import span_groups
from penult.collection.reader import Reader
from penult.data.items import Failure
from penult.data.regions import Region, span_of
from penult.data.sources import from_paths
from penult.data.table_roles import parse_columns
from penult.embedding.embedder import Embedder, open_embedder
from penult.errors import SourceError
from penult.fewshot.examples import Examples
from penult.fewshot.labelling import Groups
from test_cli import ask

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def sound(path: Path, seconds: float = 6.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip(seconds, seed), RATE)
    return path


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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
    assert said.code == 0 and "ch0:3-6 #2" in said.out and "ch0:3-6 #9" in said.out


def test_annotations_that_a_table_no_longer_has_are_named_and_pruned(tmp_path):
    """Numbers of annotations move up, so that the last one would stand twice."""
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav", seed=1)
    head, rest = "path,start,end,name", ("a.wav,1,2,d", "b.wav,0,1,e", "b.wav,0,1,f")
    lines = ("a.wav,0,1,x", "a.wav,0,1,y", "a.wav,0,1,z")
    marks = table(tmp_path / "t.csv", head, *lines, *rest)
    into = tmp_path / "c.lance"
    assert ask("embed", "demo", marks, "--into", into).code == 0
    table(marks, head, *lines[1:], *rest)
    said = ask("embed", "demo", marks, "--into", into)
    words = "1 annotation is no longer in the tables: "
    assert f"{words}{tmp_path.name}/a.wav 0-1#3; their rows are kept; --prune" in said.out
    assert len(rows(into)) == 6
    other = table(tmp_path / "u.csv", head, "a.wav,0,1,y", "b.wav,0,1,e")  # not its annotations
    assert words[1:13] not in ask("embed", "demo", other, "--into", into, "--prune").out
    bad = table(marks, head, lines[1], "a.wav,0,what,z", *rest)  # nothing is known of line 3
    assert ask("embed", "demo", bad, "--into", into, "--prune").code == 3
    assert len(rows(into)) == 6
    table(marks, head, *lines[1:], *rest)
    found = json.loads(ask("embed", "demo", marks, "--into", into, "--prune", "--json").out)
    assert found["former_annotations"] == {
        "count": 1,
        "first": [f"{tmp_path.name}/a.wav 0-1#3"],
        "rows_removed": 1,
    }
    assert found["gone"]["count"] == found["done"] == 0 and found["skipped"] == 5
    assert rows(into, "name") == [
        ("0-1", "y"),
        ("0-1#2", "z"),
        ("1-2", "d"),
        ("0-1", "e"),
        ("0-1#2", "f"),
    ]
    table(marks, head, *rest[1:])  # no annotation of a.wav at all: its rows stay, as its file does
    assert ask("embed", "demo", marks, "--into", into, "--prune").code == 0
    assert len(rows(into)) == 5


def test_annotations_of_whole_files_need_not_stand_together(tmp_path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav", seed=1)
    marks = table(tmp_path / "t.csv", "path,name", "a.wav,x", "b.wav,y", "a.wav,z")
    into = tmp_path / "c.lance"
    for count in (3, 0):
        said = ask("embed", "demo", marks, "--into", into, "--prune")
        assert said.code == 0 and f"{count} embedded" in said.out and "no longer" not in said.out
    assert rows(into, "name") == [("whole", "x"), ("whole#2", "z"), ("whole", "y")]


def test_a_span_may_have_thousands_of_annotations(tmp_path):
    sound(tmp_path / "a.wav")
    names = [f"x{number}" for number in range(3000)]
    marks = table(tmp_path / "t.csv", "path,name", *(f"a.wav,{name}" for name in names * 2))
    entries = list(from_paths([marks], "audio"))
    assert [item.metadata["name"] for item, _ in entries] == names
    keys = [region.key for _, region in entries]
    assert keys == ["whole", *(f"whole#{number}" for number in range(2, 3001))]


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


# ---- dialects


def found(*paths: Path, modality: str = "audio", **options: object) -> list[tuple[object, ...]]:
    """(file, region, name) of each item, or (line, what is wrong)."""
    entries = list(from_paths(list(paths), modality, **options))
    return [
        ("failed", entry.message)
        if isinstance(entry, Failure)
        else (entry[0].content.name, entry[1].key, *_name(entry[0].metadata))
        for entry in entries
    ]


def _name(metadata: Mapping[str, object]) -> list[object]:
    names = ("name", "label_given", "Annotation", "Common_Name", "Common_name", "MANUAL_ID")
    return [metadata[name] for name in names if name in metadata][:1]


SONGS = [("rec.wav", "0.5-1.5", "Kuckuck"), ("rec.wav", "2-3.25", "Käuzchen")]
CELLS = [("0.5", "1.5", "Kuckuck"), ("2", "3.25", "Käuzchen")]


def csv_text(comma: str = ",", decimal: str = ".", pad: str = "", end: str = "\n") -> str:
    rows = [(f"{pad}path", *(f"{pad}{name}" for name in ("start", "end", "name")))]
    rows += [("rec.wav", *(pad + c.replace(".", decimal) for c in cells[:2]), pad + cells[2])
             for cells in CELLS]  # fmt: skip
    return "".join(comma.join(row) + end for row in rows)


DIALECTS = {
    "plain.csv": csv_text().encode(),
    "bom.csv": csv_text(end="\r\n").encode("utf-8-sig"),
    "utf16.csv": csv_text().encode("utf-16"),
    "utf16le.csv": csv_text().encode("utf-16-le"),
    "utf16be.csv": b"\xfe\xff" + csv_text().encode("utf-16-be"),
    "windows.csv": csv_text().encode("cp1252"),
    "tabs.csv": csv_text("\t").encode(),
    "commas.tsv": csv_text().encode(),
    "german.csv": csv_text(";", ",").encode(),
    "excel.csv": b"sep=;\r\n" + csv_text(";", ",", end="\r\n").encode("cp1252"),
    "german.tsv": csv_text("\t", ",").encode(),
    "padded.csv": csv_text(pad=" ").encode(),
    "trailing.csv": csv_text(end=",,\n").encode(),
    "empty_lines.csv": b"\n\n" + csv_text(end="\n\n").encode() + b",,,\n\n",
    "upper.csv": csv_text().encode().replace(b"path,start,end", b"Path,START,End"),
    "quoted.csv": csv_text('","', ",", end='"\n').replace("\n", '\n"').encode()[:-1].replace(
        b"path", b'"path', 1
    ),
    "rows_padded.csv": csv_text(pad=" ").replace(" path, start, end, ", "path,start,end,").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_table_reads_the_same_in_every_dialect(tmp_path, name):
    (tmp_path / name).write_bytes(DIALECTS[name])
    assert found(tmp_path / name) == SONGS, DIALECTS[name]


RAVEN_ROWS = [
    f"{RAVEN}\tAnnotation",
    "1\tSpectrogram 1\t1\t0.5\t1.5\t1000.5\t2000\tKuckuck",
    "2\tSpectrogram 1\t1\t2\t3.25\t1000.5\t2000\tKäuzchen",
]
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 6
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "birds"
        xmin = 0
        xmax = 6
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.5
            text = "Kuckuck"
        intervals [3]:
            xmin = 1.5
            xmax = 2
            text = ""
        intervals [4]:
            xmin = 2
            xmax = 3.25
            text = "Käuzchen"
    item [2]:
        class = "TextTier"
        name = "clicks 1"
        xmin = 0
        xmax = 6
        points: size = 1
        points [1]:
            number = 0.7
            mark = "1 ""x"" "
"""
SHORT = """File type = "ooTextFile"
"TextGrid"
0
6
<exists>
1
"IntervalTier"
"birds"
0
6
2
0.5
1.5
"Kuckuck"
2
3.25
"Käuzchen"
"""
PROGRAMS = {
    "rec.Table.1.selections.txt": "\n".join(RAVEN_ROWS),
    "rec.Table.2.selections.txt": "\n".join(RAVEN_ROWS).replace(".5", ",5").replace(".25", ",25"),
    "rec.Table.3.selections.txt": "\n".join(RAVEN_ROWS).replace("\t", " \t ") + "\n\n",
    "rec.Table.4.selections.txt": "\n".join(RAVEN_ROWS).replace(" Time (s)", " time (S) "),
    "rec.Table.5.txt": "\n".join(RAVEN_ROWS).replace(".", ",").replace("\t", ";"),
    "rec.selections.csv": "\n".join(RAVEN_ROWS).replace("\t", ","),
    "rec.txt": "0.5\t1.5\tKuckuck\n2.000000\t3.250000\tKäuzchen\n",
    "rec.labels.txt": "0,500000\t1,500000\tKuckuck\n2,000000\t3,250000\tKäuzchen\n",
    "rec.spaces.txt": "0.5 1.5 Kuckuck\n2 3.25   Käuzchen\n",
    "rec.bands.txt": "0.5\t1.5\tKuckuck\n\\\t100\t200\n2\t3.25\tKäuzchen\n\\\t100,5\t-1\n",
    "rec.TextGrid": TEXTGRID,
    "rec.short.TextGrid": SHORT,
    "rec.praat.txt": TEXTGRID,
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "cp1252"])
def test_annotations_read_the_same_from_every_program(tmp_path, encoding):
    sound(tmp_path / "rec.wav")
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        songs = [(f, str(k).removeprefix("ch0:"), *rest) for f, k, *rest in found(tmp_path / name)]
        assert songs == SONGS, (name, encoding)


def test_what_a_textgrid_leaves_out_is_noted(tmp_path):
    sound(tmp_path / "rec.wav")
    grid = tmp_path / "rec.TextGrid"
    grid.write_text(TEXTGRID, encoding="utf-8")
    source = from_paths([grid], "audio")
    assert [item.metadata["tier"] for item, _ in source] == ["birds", "birds"]
    assert source.notes == (
        "rec.TextGrid: points have no length; the tier 'clicks 1' is left out",
        "rec.TextGrid: 2 intervals without a text are left out",
    )
    for text, reason in [
        (TEXTGRID[: TEXTGRID.index('text = "Kä')], "ends too early"),
        ("ooBinaryFile\x08TextGrid", "binary TextGrid"),
        (TEXTGRID.replace("xmax = 1.5", "xmax = soon", 1), "ends too early|not a number|order"),
        ("hello\n", "does not begin as a TextGrid"),
    ]:
        grid.write_text(text, encoding="utf-8")
        with pytest.raises(SourceError, match=reason):
            from_paths([grid], "audio")


def test_what_is_unusual_about_a_table_is_noted(tmp_path):
    for name, note in {
        "plain.csv": (),
        "german.csv": ("german.csv has decimal commas (0,5 is read as 0.5) in 'start', 'end'",),
        "windows.csv": ("windows.csv is not UTF-8 and is read as Windows-1252",),
    }.items():
        (tmp_path / name).write_bytes(DIALECTS[name])
        assert from_paths([tmp_path / name], "audio").notes == note


def test_a_column_that_stands_twice_is_kept_under_another_name(tmp_path):
    marks = table(tmp_path / "t.csv", "path,start,end,name,name,name_2", "rec.wav,0,1,x,y,z")
    source = from_paths([marks], "audio")
    ((item, region),) = source
    assert region.key == "0-1"
    assert item.metadata == {"name": "x", "name_3": "y", "name_2": "z"}
    assert source.notes == ("t.csv has more than one column 'name'; one is 'name_3' here",)


def test_a_comma_that_may_divide_thousands_is_no_number(tmp_path):
    marks = table(tmp_path / "t.tsv", "path\tstart\tend", "rec.wav\t1,234\t2,345")
    assert "start '1,234' is not a number; write it with a point" in found(marks)[0][1]
    table(marks, "path\tstart\tend\tname", "rec.wav\t1,234\t2,5\tx", "rec.wav\t3\t4\t5,6")
    assert found(marks) == [("rec.wav", "1.234-2.5", "x"), ("rec.wav", "3-4", "5,6")]
    # lists of numbers in a table that has points
    table(marks, "path\tstart\tend\tname", "rec.wav\t0.5\t1\t1,2")
    assert found(marks) == [("rec.wav", "0.5-1", "1,2")]


# ---- tables of programs, known by their columns


def test_tables_of_detectors_are_known_by_their_columns(tmp_path):
    for name in ("a", "b", "c", "rec"):
        sound(tmp_path / "data" / f"{name}.wav", 6.0)
    here = tmp_path / "data"
    for name, head, row, region in [
        # BirdNET: results, with and without the file, and its tables for R and Kaleidoscope
        ("a.BirdNET.results.csv", "Start (s),End (s),Scientific name,Common name,Confidence",
         "0.0,3.0,Parus major,Great Tit,0.9", ("a.wav", "0-3", "Great Tit")),
        ("x.csv", "Start (s),End (s),Scientific name,Common name,Confidence,File",
         "0.0,3.0,Parus major,Great Tit,0.9,/home/me/b.wav", ("b.wav", "0-3", "Great Tit")),
        ("r.csv", "filepath,start,end,scientific_name,common_name,confidence,lat,lon,week,overlap,"
         "sensitivity,min_conf,species_list,model",
         "C:\\rec\\b.wav,1.5,4.5,Parus major,Great Tit,0.9,-1,-1,-1,0.0,1.0,0.1,,m",
         ("b.wav", "1.5-4.5")),
        ("BirdNET_Kaleidoscope.csv", "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,"
         "common_name,confidence", "/mnt/x,data,a.wav,3.0,2.5,Parus major,Great Tit,0.9",
         ("a.wav", "3-5.5")),
        ("kaleidoscope.csv", "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,Fmin,MANUAL ID",
         "D:\\bats,,c.wav,0,1.0,0.5,20000,MYOLUC", ("c.wav", "ch0:1-1.5", "MYOLUC")),
        ("arbimon.csv", "recording,site,species,songtype,x1,x2,y1,y2,score",
         "c.wav,Stn01,Wren,Song,1.25,2,500,3000,0.7", ("c.wav", "1.25-2")),
        ("whombat.csv", "recording_path,start_time,end_time,low_freq,high_freq,name",
         "a.wav,1,2.5,100,2000,owl", ("a.wav", "1-2.5", "owl")),
        ("opensoundscape.csv", "file,start_time,end_time,name", "./b.wav,0,5,x",
         ("b.wav", "0-5", "x")),
        ("crowsetta.csv", "label,onset_s,offset_s,notated_path", "x,0.25,0.75,rec.wav",
         ("rec.wav", "0.25-0.75", "x")),
        ("dcase.tsv", "filename\tonset\toffset\tname", "rec.wav\t0.5\t1\tx",
         ("rec.wav", "0.5-1", "x")),
        ("c.wav.csv", "start_time,end_time,class", "1,2,Myotis", ("c.wav", "1-2")),
        ("seconds.csv", "path,Start (s),End (s),name", "rec.wav,0.5,1,x",
         ("rec.wav", "0.5-1", "x")),
    ]:  # fmt: skip
        assert found(table(here / name, head, row)) == [region], name
        (here / name).unlink()
    marks = table(tmp_path / "r.csv", "filepath,start,end", "C:\\rec\\b.wav,1.5,4.5")
    assert found(marks, here) == [("b.wav", "1.5-4.5")]  # looked for in the folder that is given
    assert from_paths([marks, here], "audio").notes == ("r.csv: path from 'filepath'",)


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("path,start_time,duration,name", "rec.wav,1714531200,6,x"),  # of the recording
        ("path,onset,offset,name", "rec.wav,1,2,x"),
        ("path,Start,name", "rec.wav,2024-05-01,x"),
        ("path,x1,x2,y1,y2,name", "rec.wav,1,2,3,4,x"),
    ],
)
def test_other_columns_beside_a_path_stay_metadata(tmp_path, head, row):
    assert found(table(tmp_path / "t.csv", head, row)) == [("rec.wav", "whole", "x")]


@pytest.mark.parametrize(
    ("head", "row", "option"),
    [
        ("path,start_time,end_time", "rec.wav,1,2", "start=start_time,end=end_time"),
        ("path,start_ms,end_ms", "rec.wav,1000,2000", "start=start_ms,end=end_ms"),
        ("path,Begin,duration", "rec.wav,1,0.5", "start=Begin,duration=duration"),
        ("path,start_date,end_date", "rec.wav,2024-05-01,2024-05-02", ""),
        ("path,starts,endemic,n", "rec.wav,1,2,3", ""),
        ("path,duration", "rec.wav,6", ""),
    ],
)
def test_columns_that_may_be_a_span_and_are_metadata_are_told(tmp_path, head, row, option):
    sound(tmp_path / "rec.wav")
    source = from_paths([table(tmp_path / "t.csv", head, row)], "audio")
    assert [region.key for _, region in source] == ["whole"]
    assert [note.partition("--column ")[2] for note in source.notes] == [option] * bool(option)
    if option:
        assert "t.csv: each row is a whole file; " in source.notes[0]


@pytest.mark.parametrize(
    "head",
    ["Path,Start,End", "File,Start (s),End (s)", "path,Start (s),End (s)", "IN FILE,start,end"],
)
def test_a_slip_in_one_row_leaves_the_columns_what_they_are(tmp_path, head):
    lines = ("rec.wav,0.5,1", "rec.wav,1.O,2", "rec.wav,2,3")
    sound(tmp_path / "rec.wav")
    (_, message), *good = sorted(found(table(tmp_path / "t.csv", head, *lines)))
    assert good == [("rec.wav", "0.5-1"), ("rec.wav", "2-3")]
    assert "start '1.O' is not a number" in message


def test_columns_can_be_named(tmp_path):
    sound(tmp_path / "rec.wav")
    lines = ("wave,from,len,ch,name", "rec.wav,1,0.5,0,x", "D:\\old\\rec.wav,2,0.5,0,y")
    marks = table(tmp_path / "t.csv", *lines)
    with pytest.raises(SourceError) as refused:
        found(marks)
    says = str(refused.value)
    assert "no column `path`; it has wave, from, len, ch, name" in says
    assert "--column path=COLUMN,start=COLUMN,end=COLUMN" in says
    columns = {"path": "wave", "start": "FROM", "duration": "len", "channel": "ch"}
    wanted = [("rec.wav", "ch0:1-1.5", "x"), ("rec.wav", "ch0:2-2.5", "y")]
    assert found(marks, columns=columns) == wanted
    assert parse_columns(["path=wave, start=from", "duration=a,b"]) == {
        "path": "wave", "start": "from", "duration": "a,b",
    }  # fmt: skip
    into = tmp_path / "c.lance"
    option = ("--column", "path=wave,start=from", "--column", "duration=len,channel=ch")
    said = ask("embed", "demo", marks, "--into", into, *option)
    assert said.code == 0, said
    assert "t.csv: path from 'wave', start from 'from'" in said.err
    assert rows(into, "name") == [("ch0:1-1.5", "x"), ("ch0:2-2.5", "y")]
    said = ask("classify", "demo", marks, *option)
    assert said.code == 0 and "ch0:2-2.5" in said.out
    collection = Collection.open(tmp_path / "d.lance")
    assert collection.add(demo(), marks, columns=columns).done == 2
    for wrong, reason in [
        ("path=waves", "no column 'waves' for path; it has wave, from"),
        ("file=wave", "names no role 'file'"),
        ("path=", "names no column"),
    ]:
        said = ask("classify", "demo", marks, "--column", wrong)
        assert (said.code, reason in said.err) == (2, True), said


# ---- the same name at several sites


def test_the_longest_matching_end_of_a_path_decides(tmp_path):
    for site in ("Stn01", "Stn02", "x/Stn02"):
        sound(tmp_path / "data" / site / "20240501_050000.WAV", 6.0)
    head = f"{RAVEN}\tBegin Path\tFile Offset (s)"
    row = "{}\tSpectrogram 1\t1\t{}\t{}\t0\t9000\t{}\t0"
    paths = [
        "D:\\data\\Stn01\\20240501_050000.WAV",
        "D:\\data\\Stn02\\20240501_050000.WAV",
        "/mnt/x/Stn02/20240501_050000.wav",
    ]
    marks = table(
        tmp_path / "marks" / "BirdNET_SelectionTable.txt",
        head,
        *(row.format(i, 3 * i, 3 * i + 3, path) for i, path in enumerate(paths)),
    )
    source = from_paths([marks, tmp_path / "data"], "audio")
    where = [str(item.content.relative_to(tmp_path / "data")) for item, _ in source]
    assert where == [f"{site}/20240501_050000.WAV" for site in ("Stn01", "Stn02", "x/Stn02")]
    # a real tie names both
    table(marks, head, row.format(1, 0, 3, "E:\\Stn09\\20240501_050000.WAV"))
    ((_, message),) = found(marks, tmp_path / "data")
    assert "may be any of 3 recordings" in message and "Stn01" in message and "Stn02" in message


def test_folders_below_the_table_are_part_of_a_path(tmp_path):
    """The recording of another site beside the table is not taken for it."""
    sound(tmp_path / "a.wav")
    sound(tmp_path / "Stn01" / "a.wav")
    sound(tmp_path / "x" / "Stn01" / "a.wav")
    head = "INDIR,FOLDER,IN FILE,OFFSET,DURATION"
    for row, inner in [
        ("/mnt,Stn01,a.wav,1,2", "Stn01/a.wav"),
        ("D:\\x,Stn01,A.WAV,1,2", "x/Stn01/a.wav"),
        ("/mnt,,a.wav,1,2", "a.wav"),
    ]:
        ((item, _),) = from_paths([table(tmp_path / "k.csv", head, row)], "audio")
        assert item.content == tmp_path / inner, row


def test_one_recording_is_not_taken_for_two(tmp_path):
    sound(tmp_path / "data" / "Stn01" / "a.wav")
    head = "file,start_time,end_time"
    rows = ("D:\\Stn01\\a.wav,0,1", "D:\\Stn02\\a.wav,2,3")
    marks = table(tmp_path / "t" / "m.csv", head, *rows)
    good, (_, message) = sorted(found(marks, tmp_path / "data"))
    assert good == ("a.wav", "0-1")
    assert "there is no recording 'D:\\\\Stn02\\\\a.wav'" in message
    table(marks, head, "D:\\Stn08\\a.wav,0,1", "D:\\Stn09\\a.wav,0,1")
    assert [one[0] for one in found(marks, tmp_path / "data")] == ["failed", "failed"]
    table(marks, head, "D:\\Stn08\\a.wav,0,1")  # moved to another folder
    assert found(marks, tmp_path / "data") == [("a.wav", "0-1")]


# ---- boxes in pictures


def picture(path: Path) -> Path:
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(path)
    return path


def test_columns_of_a_box_are_regions_of_a_picture(tmp_path):
    picture(tmp_path / "a.png")
    for head, row, box in [
        ("path,left,top,right,bottom,name", "a.png,10,20,30,40,x", "10,20,30,40"),
        ("filename,width,height,name,xmin,ymin,xmax,ymax", "a.png,100,50,x,1,2,30,40", "1,2,30,40"),
        ("image_path,x_min,y_min,x_max,y_max,name", "a.png,1.6,2.4,30,40,x", "2,2,30,40"),
        ("path,x1,y1,x2,y2,name", "a.png,1,2,30,40,x", "1,2,30,40"),
        ("path,x,y,w,h,name", "a.png,1,2,30,40,x", "1,2,31,42"),
        ("path,x,y,width,height,name", "a.png,1,2,30,40,x", "1,2,31,42"),
        ("path,bbox,name", 'a.png,"[1, 2, 30, 40]",x', "1,2,31,42"),
        ("path,XMin,XMax,YMin,YMax,name", "a.png,0.1,0.5,0.2,1.0,x", "10,10,50,50"),
    ]:
        marks = table(tmp_path / "t.csv", head, row)
        assert found(marks, modality="image") == [("a.png", f"box:{box}", "x")], head
    marks = table(tmp_path / "t.csv", "path,left,top,right,bottom,name", "a.png,,,,,x")
    assert found(marks, modality="image") == [("a.png", "whole", "x")]
    lines = ("a.png,5,5,5,9,x", "a.png,1,2,,4,y", "a.png,1,2,3,4,z", "a.png,1,2,3,4,w")
    table(marks, "path,left,top,right,bottom,name", *lines)
    bad = found(marks, modality="image")
    assert "has no area" in bad[0][1] and "four edges" in bad[1][1]
    assert bad[2:] == [("a.png", "box:1,2,3,4", "z"), ("a.png", "box:1,2,3,4#2", "w")]


def test_boxes_that_may_be_read_in_two_ways_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    for head, row, reason in [
        ("path,left,top,right,bottom", "a.png,0,0,1,1", "pixels and fractions .* cannot be told"),
        ("path,x,y,w,h", "a.png,0.1,0.1,0.5,0.5", "centre"),
    ]:
        marks = table(tmp_path / "t.csv", head, row)
        with pytest.raises(SourceError, match=reason):
            found(marks, modality="image")


# ---- what becomes of the rows


def test_a_selection_table_is_written_back_as_it_came(tmp_path):
    sound(tmp_path / "G024.wav", 9.0)
    lines = [OWLS[0], *reversed(OWLS[1:])]
    marks = table(tmp_path / "G024.BirdNET.selection.table.txt", *lines)
    into, out = tmp_path / "c.lance", tmp_path / "out" / "back.txt"
    assert embed(marks, into=into)["done"] == 3
    out.parent.mkdir()
    said = ask("export", into, out)
    assert said.code == 0, said
    with out.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file, delimiter="\t"))
    with marks.open(encoding="utf-8", newline="") as file:
        given = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: row["Selection"])
    for row, before in zip(written, given, strict=True):
        for name in ("Selection", "View", "Channel", "Common Name", "Score"):
            assert row[name] == before[name]
        for name in ("Begin Time (s)", "End Time (s)", "Low Freq (Hz)"):
            assert float(row[name]) == float(before[name])
        assert row["Begin Path"] == str(tmp_path / "G024.wav")
    # and reads as the same species on the same spans
    again = [(r.span.key, i.metadata["Common_Name"]) for i, r in from_paths([out], "audio")]
    wanted = [(r.span.key, i.metadata["Common_Name"]) for i, r in from_paths([marks], "audio")]
    assert sorted(again) == sorted(wanted)
    said = ask("export", into, tmp_path / "owls.txt", "--where", "Common_Name LIKE '%Owl'")
    assert said.code == 0 and "Nuthatch" not in (tmp_path / "owls.txt").read_text()


def test_a_search_finds_each_span_once(tmp_path):
    sound(tmp_path / "a.wav", 9.0)
    names = [f"a.wav,{start},{start + 1},{name}" for start in range(4) for name in range(30)]
    marks = table(tmp_path / "t.csv", "path,start,end,name", *names)
    into = tmp_path / "c.lance"
    assert embed(marks, into=into)["done"] == 120
    collection = Collection.open(into)
    hits = collection.search(collection.get(str(tmp_path / "a.wav"), "1-2")["vector"], k=3)
    assert len({hit.region for hit in hits}) == 3 and hits[0].region == "1-2"
    assert all("#" not in hit.region for hit in hits)
    query = collection.get(str(tmp_path / "a.wav"), "2-3")["vector"]
    hits = collection.search(query, k=10, where="name = 7")
    assert sorted(hit.region for hit in hits) == ["0-1#8", "1-2#8", "2-3#8", "3-4#8"]
    with_space = collection.search(query, k=10, space="l2")
    assert with_space[0].start == 2.0 and len(with_space) == 4


def test_annotations_of_a_span_stand_on_one_side_of_every_split():
    assert span_groups([("a", "0-1"), ("b", "0-1")]) is None
    keys = [("a", "0-1"), ("a", "0-1#2"), ("b", "0-1"), ("a", "1-2")]
    assert span_groups(keys) == ["a 0-1", "a 0-1", "b 0-1", "a 1-2"]
    examples = Examples.empty(4).with_marks("x", keys, np.eye(4, dtype=np.float32), "yes")
    groups = Groups(None).of(None, examples).numbers(examples, np.arange(4))
    assert groups[0] == groups[1] != groups[2]  # of one item, which is held out as a whole


def test_rows_lie_in_the_order_of_their_places(tmp_path):
    sound(tmp_path / "a.wav", 12.0)
    starts = [10, 9, 2.5, 2, 0]
    names = [f"a.wav,{start},{start + 1},{name}" for start in starts for name in range(11)]
    marks = table(tmp_path / "t.csv", "path,start,end,name", *names)
    into = tmp_path / "c.lance"
    assert embed(marks, into=into)["done"] == 55
    found = rows(into, "start", "name")
    assert [row[1:] for row in found] == [(float(s), n) for s in sorted(starts) for n in range(11)]


def test_boxes_lie_row_by_row():
    keys = ["page:2", "box:512,0,1024,9", "box:1024,0,1536,9", "whole", "box:0,9,512,1024",
            "box:0,0,512,9", "page:10", "chars:100-200", "chars:20-120", "box:0,0,512,9#10",
            "box:0,0,512,9#9"]  # fmt: skip
    columns = lance._numbers_in(pa.chunked_array([keys]))
    table = pa.table({**columns, "region": keys})
    order = table.sort_by([(name, "ascending") for name in table.column_names])["region"]
    assert order.to_pylist() == [
        *("whole", "chars:20-120", "chars:100-200"),
        *("box:0,0,512,9", "box:0,0,512,9#9", "box:0,0,512,9#10"),
        *("box:512,0,1024,9", "box:1024,0,1536,9", "box:0,9,512,1024", "page:2", "page:10"),
    ]


# ---- properties

_times = st.integers(0, 40_000).map(lambda milliseconds: milliseconds / 1000)
_spans = st.lists(
    st.tuples(_times, st.integers(1, 9000).map(lambda n: n / 1000), st.sampled_from("xyzä")),
    min_size=1,
    max_size=6,
)


def _decimals(value: float, comma: bool) -> str:
    text = f"{value:.6f}"
    return text.replace(".", ",") if comma else text


def _as_csv(rows: list[tuple[float, float, str]], comma: bool, separator: str) -> str:
    lines = [separator.join(("path", "start", "end", "name"))]
    lines += [
        separator.join(("rec.wav", _decimals(a, comma), _decimals(b, comma), name))
        for a, b, name in rows
    ]
    return "\n".join(lines)


def _as_raven(rows: list[tuple[float, float, str]], comma: bool, _: str) -> str:
    lines = [f"{RAVEN}\tAnnotation"]
    lines += [
        f"{n}\tSpectrogram 1\t0\t{_decimals(a, comma)}\t{_decimals(b, comma)}\t1\t2\t{name}"
        for n, (a, b, name) in enumerate(rows, 1)
    ]
    return "\n".join(lines)


def _as_audacity(rows: list[tuple[float, float, str]], comma: bool, separator: str) -> str:
    gap = " " if separator == ";" else "\t"
    return "\n".join(
        gap.join((_decimals(a, comma), _decimals(b, comma), name)) for a, b, name in rows
    )


def _as_textgrid(rows: list[tuple[float, float, str]], _: bool, __: str) -> str:
    parts = "\n".join(f'{a:.6f}\n{b:.6f}\n"{name}"' for a, b, name in rows)
    head = 'File type = "ooTextFile"\n"TextGrid"\n0\n60\n<exists>\n1\n"IntervalTier"\n"t"\n0\n60'
    return f"{head}\n{len(rows)}\n{parts}\n"


_WRITERS = {
    "t.csv": _as_csv,
    "rec.Table.1.selections.txt": _as_raven,
    "rec.txt": _as_audacity,
    "rec.TextGrid": _as_textgrid,
}


@given(
    _spans,
    st.sampled_from(sorted(_WRITERS)),
    st.booleans(),
    st.sampled_from("\t;"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_regions_whatever_the_dialect(tmp_path, spans, name, comma, separator, code, end):
    rows = sorted({(a, round(a + length, 6), text) for a, length, text in spans})
    text = _WRITERS[name](rows, comma, separator).replace("\n", end)
    if "ä" not in text and code == "cp1252":
        code = "utf-8"
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "rec.wav").touch()
    (folder / name).write_bytes(text.encode(code))
    read = [
        (region.start, region.end, *_name(item.metadata))
        for item, region in from_paths([folder / name], "audio")
    ]
    assert sorted(read) == rows


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_line_is_a_row_with_a_key_of_its_own(tmp_path, lines):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "a.wav").touch()
    text = [f"a.wav,{start},{start + 1},{name}" for start, name in lines]
    marks = table(folder / "t.csv", "path,start,end,name", *text)
    entries = list(from_paths([marks], "audio"))
    keys = [region.key for _, region in entries]
    assert len(set(keys)) == len(keys) == len(set(lines))
    # each span has one row with its own key, and what a line is called does not change with others
    assert {span_of(key) for key in keys} == {key for key in keys if "#" not in key}
    more = list(from_paths([table(marks, "path,start,end,name", *text, "a.wav,9,10,9")], "audio"))
    assert [(i.metadata, r.key) for i, r in more[:-1]] == [(i.metadata, r.key) for i, r in entries]
