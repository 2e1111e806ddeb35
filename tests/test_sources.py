"""What is given becomes items: the same ones in the same order, each row with typed metadata."""

from __future__ import annotations

import datetime
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from penult.data import audio, text
from penult.data.items import Failure, Item
from penult.data.regions import WHOLE, Region
from penult.data.sources import from_objects, from_paths
from penult.data.tables import RESERVED
from penult.errors import DecodeError, SourceError


def items(source) -> list[Item]:
    found = list(source)
    assert not [entry for entry in found if isinstance(entry, Failure)]
    return [item for item, _ in found]


def failures(source) -> list[Failure]:
    return [entry for entry in source if isinstance(entry, Failure)]


def table(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def wave(path: Path, channels: int = 1) -> Path:
    rng = np.random.default_rng(channels)
    soundfile.write(path, 0.1 * rng.standard_normal((800, channels)), 8000)
    return path


# ---- files and folders


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("b.wav", "a/z.FLAC", "a/y.mp3", "c/d/e.ogg", "c/notes.txt", ".hidden.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".git/x.wav", "a/._y.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(source, root: Path) -> list[str]:
    return [str(item.content.relative_to(root)) for item in items(source)]


def test_a_folder_in_the_order_of_its_names(tree):
    source = from_paths([tree], "audio")
    assert names(source, tree) == ["a/y.mp3", "a/z.FLAC", "b.wav", "c/d/e.ogg"]
    assert names(source, tree) == names(source, tree)
    assert names(from_paths(str(tree), "audio"), tree) == names(source, tree)
    assert source.total is None
    item, region = next(iter(source))
    assert region == WHOLE
    assert (item.id, item.content) == (str(tree / "a/y.mp3"), tree / "a/y.mp3")
    status = (tree / "a/y.mp3").stat()
    assert (item.size, item.mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_folder_is_read_as_it_is_walked(tree):
    walking = iter(from_paths([tree], "audio"))
    next(walking)
    (tree / "c/new.wav").touch()
    assert len(list(walking)) == 4


def test_links_that_lead_back_end(tree):
    (tree / "c/up").symlink_to(tree)
    (tree / "self.wav").symlink_to(tree / "self.wav")
    (tree / "gone.wav").symlink_to(tree / "nowhere.wav")
    (tree / "link.wav").symlink_to(tree / "b.wav")
    found = {item.content.name: item for item in items(from_paths([tree], "audio"))}
    assert len(found) == 7
    assert found["link.wav"].size == 0
    assert found["self.wav"].size is None
    assert found["gone.wav"].size is None


def test_relative_paths_become_absolute(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    assert names(from_paths(["../b.wav"], "audio"), tree) == ["b.wav"]
    assert names(from_objects(["../b.wav", Path("y.mp3")], "audio"), tree) == ["b.wav", "a/y.mp3"]
    assert names(from_paths(["."], "audio"), tree) == ["a/y.mp3", "a/z.FLAC"]


def test_a_folder_without_fitting_files_says_what_it_has(tree):
    for i in range(3):
        (tree / f"c/{i}.PDF").touch()
    with pytest.raises(SourceError, match=r"c/d holds no file that is .*\.jpg.*it holds 1 \.ogg"):
        from_paths([tree / "c/d"], "image")
    with pytest.raises(SourceError, match=r"it holds 3 \.pdf, 1 \.ogg, 1 \.txt"):
        from_paths([tree / "c"], "image")
    (tree / "empty").mkdir()
    with pytest.raises(SourceError, match="it holds no files"):
        from_paths([tree / "empty"], "audio")


def test_what_is_named_must_exist_and_is_tried(tree):
    with pytest.raises(SourceError, match=r"no such file or folder: .*gone\.wav"):
        from_paths([tree / "b.wav", tree / "gone.wav"], "audio")
    with pytest.raises(SourceError, match="fetches no remote URL: https://host/a"):
        from_paths(["https://host/a.wav"], "audio")
    with pytest.raises(SourceError, match="no path was given"):
        from_paths([], "audio")
    with pytest.raises(SourceError, match="no modality 'smell'"):
        from_paths([tree], "smell")
    source = from_paths([tree / "c/notes.txt", (tree / "b.wav").as_uri()], "audio")
    assert names(source, tree) == ["c/notes.txt", "b.wav"]
    assert source.total == 2


def test_the_same_file_twice_is_one_item(tree):
    source = from_paths([tree, tree / "b.wav", tree / "a"], "audio")
    assert names(source, tree) == ["a/y.mp3", "a/z.FLAC", "b.wav", "c/d/e.ogg"]


def test_names_that_are_not_utf8_can_be_stored(tree):
    try:
        (tree / os.fsdecode(b"a/\xff.wav")).touch()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    found = items(from_paths([tree / "a"], "audio"))
    assert found[-1].size == 0
    assert found[-1].id.encode("utf-8").endswith(b"\\udcff.wav")


def test_a_list_on_stdin(tree):
    lines = io.StringIO(f"{tree}/b.wav\n\n{tree}/gone.wav\r\nhttp://x.org/a.wav\n{tree}/b.wav")
    source = from_paths(["-"], "audio", stdin=lines)
    (first, _), (gone, _), failed = source
    assert (first.content, first.size) == (tree / "b.wav", 0)
    assert (gone.content, gone.size, gone.mtime_ns) == (tree / "gone.wav", None, None)
    with pytest.raises(DecodeError, match="no such file"):
        audio.load(gone.content, WHOLE, 16000)
    assert (failed.id, failed.error) == ("http://x.org/a.wav", "SourceError")
    assert failed.message.startswith("line 4: Penult fetches no remote URL")
    assert next(iter(source))[0] == first  # the proof of the head reads the beginning, too
    assert len(list(source)) == 3


def test_a_long_list_is_not_read_ahead():
    def endless():
        while True:
            yield "a.wav\n"

    assert isinstance(next(iter(from_paths(["-"], "audio", stdin=endless()))), tuple)


# ---- tables: items and regions


def test_a_table_of_segments(tmp_path):
    path = table(
        tmp_path / "calls.csv",
        "path,start,end,channel,site\n"
        "a.wav,,,,A\n"
        "a.wav,0.5,1.5,,A\n"
        f"{tmp_path}/b.wav,2,,1,B\n"
        f"{(tmp_path / 'c d.wav').as_uri()},,0.25,0.0,B\n",
    )
    source = from_paths([path], "audio")
    found = list(source)
    assert [region for _, region in found] == [
        WHOLE,
        Region("segment", 0.5, 1.5),
        Region("segment", 2.0, None, 1),
        Region("segment", None, 0.25, 0),
    ]
    assert [item.content.name for item, _ in found] == ["a.wav", "a.wav", "b.wav", "c d.wav"]
    assert all(item.id == str(tmp_path / item.content.name) for item, _ in found)
    assert [item.metadata for item, _ in found] == [{"site": s} for s in "AABB"]
    assert source.columns == {"site": pa.string()}
    assert source.total == 4
    assert list(source) == found


def test_a_bad_row_is_named_and_the_rest_goes_on(tmp_path):
    path = table(
        tmp_path / "calls.csv",
        "path,id,start,end,channel\n"
        "a.wav,1,2,1,\n"  # line 2: ends before it starts
        "a.wav,2,x,1,\n"
        "a.wav,3,-1,1,\n"
        "a.wav,4,,,1.5\n"
        "a.wav,5,,,-1\n"
        "a.wav,6,nan,,\n"
        "a.wav,7,0,0,\n"
        "a.wav,8,1,inf,\n"
        ",9,,,\n"
        "http://x.org/a.wav,10,,,\n"
        "a.wav,11\n"
        "a.wav,12,,,,,,x\n"
        "a.wav,13,0,1,0\n",
    )
    source = from_paths([path], "audio")
    bad = sorted(failures(source), key=lambda failure: int(failure.message.split()[2].strip(":")))
    good = [entry for entry in source if not isinstance(entry, Failure)]
    assert [item.id for item, _ in good] == ["13"]
    assert [failure.error for failure in bad] == ["RegionError"] * 8 + ["SourceError"] * 4
    assert [f"line {i}" in failure.message for i, failure in enumerate(bad, 2)] == [True] * 12
    assert bad[0].message == (
        "calls.csv line 2: end 1.0 s is not after start 2.0 s; both are seconds"
    )
    assert (bad[0].id, bad[0].region) == ("1", "2-1")
    assert "start 'x' is not a number" in bad[1].message
    assert "the path is empty" in bad[8].message
    assert "fetches no remote URL" in bad[9].message
    assert "2 fields, where the header names 5" in bad[10].message
    assert "8 fields, where the header names 5" in bad[11].message
    assert source.total == 13
    assert len({(failure.id, failure.region) for failure in bad}) == 12


def test_the_same_region_twice(tmp_path):
    path = table(
        tmp_path / "t.csv",
        "path,start,end,label\na.wav,0,1,x\na.wav,1,2,x\na.wav,0,1,x\na.wav,0.0,1.0000000001,y\n",
    )
    found = list(from_paths([path], "audio"))
    # By their start; the same row once, and other annotations of a span as regions of their own.
    assert [(region.key, item.metadata["label_given"]) for item, region in found] == [
        ("0-1", "x"),
        ("0-1#2", "y"),
        ("1-2", "x"),
    ]
    other = table(tmp_path / "u.csv", "path,start,end,label\na.wav,0,1,x\na.wav,1,2,z\n")
    (failed,) = failures(from_paths([path.rename(tmp_path / "v.csv"), other], "audio"))
    assert failed.message.startswith("u.csv line 3: same id and region (1-2) as in v.csv line 3")
    lines = "".join(f"{i}.wav,k{i % 2}\n" for i in range(3))
    (failed,) = failures(from_paths([table(tmp_path / "w.csv", "path,id\n" + lines)], "audio"))
    assert (failed.id, failed.region) == ("k0", "whole")


def test_segments_of_one_file_come_together_and_by_their_start(tmp_path):
    rows = [("b", 1), ("a", 5), ("b", 0.5), ("c", 0), ("a", 2), ("a", 5), ("b", 0.5)]
    lines = "".join(f"{name}.wav,{start},{start + 1},{n}\n" for n, (name, start) in enumerate(rows))
    path = table(tmp_path / "t.csv", "path,start,end,id\n" + lines)
    found = [(item.content.stem, region.start) for item, region in from_paths([path], "audio")]
    assert found == [
        *(("b", 0.5), ("b", 0.5), ("b", 1)),
        *(("a", 2), ("a", 5), ("a", 5)),
        ("c", 0),
    ]
    ids = [item.id for item, _ in from_paths([path], "audio")]
    assert ids == ["2", "6", "0", "4", "1", "5", "3"]  # equal ones as in the table
    whole = table(tmp_path / "w.csv", "path,id\nb.wav,1\na.wav,2\nb.wav,3\n")
    assert [item.id for item, _ in from_paths([whole], "audio")] == ["1", "2", "3"]


def test_lines_are_counted_from_the_top_of_the_file(tmp_path):
    path = table(tmp_path / "t.csv", "\n\npath,start\na.wav,0\n\na.wav,x\n")
    (failed,) = failures(from_paths([path], "audio"))
    assert failed.message.startswith("t.csv line 6: start 'x' is not a number")


def test_regions_belong_to_what_has_a_time_axis(tmp_path):
    path = table(tmp_path / "t.csv", "path,start,channel\na.jpg,5,1\n")
    source = from_paths([path], "image")
    ((item, region),) = source
    assert region == WHOLE
    assert item.metadata == {"start_given": 5, "channel_given": 1}


# ---- tables: metadata


def test_types_are_the_narrowest_that_hold_every_value(tmp_path):
    cells = {
        "whole": (["1", "-2", "", str(2**63 - 1)], "int64"),
        "real": (["1", "2.5", "", "1e-3"], "double"),
        "special": (["nan", "-inf", "", "0.5"], "double"),
        "truth": (["true", "False", "", "TRUE"], "bool"),
        "name": (["a", "1", "", "true"], "string"),
        "zeros": (["007", "1", "", "2"], "string"),
        "turkish": (["ınf", "1", "", "2"], "string"),
        "arabic": (["١", "1", "", "2"], "string"),
        "plus": (["+1", "1", "", "2"], "string"),
        "huge": (["1", str(2**63), "", "2"], "string"),
        "exact": (["0.5", str(2**53 + 1), "", "2"], "string"),
        "mixed": (["true", "1", "", "0"], "string"),
        "nothing": (["", "", "", ""], "null"),
    }
    rows = "".join(
        f"{i}.wav," + ",".join(values[i] for values, _ in cells.values()) + "\n" for i in range(4)
    )
    path = table(tmp_path / "t.csv", f"path,{','.join(cells)}\n{rows}")
    source = from_paths([path], "audio")
    assert {name: str(type) for name, type in source.columns.items()} == {
        name: type for name, (_, type) in cells.items()
    }
    found = [item.metadata for item in items(source)]
    assert found[0]["whole"] == 1
    assert found[3]["whole"] == 2**63 - 1
    assert found[3]["real"] == 0.001
    assert math.isnan(found[0]["special"])
    assert [row["truth"] for row in found] == [True, False, None, True]
    assert [row["zeros"] for row in found] == ["007", "1", None, "2"]
    assert found[1]["exact"] == str(2**53 + 1)
    assert all(value is None for value in found[2].values())
    typed = pa.Table.from_pylist(found, schema=pa.schema(list(source.columns.items())))
    assert typed.num_rows == 4


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6))
def test_typed_values_fit_their_columns_and_jsonl_keeps_them(tmp_path, rows):
    lines = [json.dumps({"path": f"{i}.wav", "a": a, "b": b}) for i, (a, b) in enumerate(rows)]
    source = from_paths([table(tmp_path / "t.jsonl", "\n".join(lines))], "audio")
    found = [dict(item.metadata) for item in items(source)]
    schema = pa.schema(list(source.columns.items()))
    assert pa.Table.from_pylist(found, schema=schema).to_pylist() == found
    for (a, _), row in zip(rows, found, strict=True):
        if source.columns["a"] == pa.string() and not isinstance(a, (str, type(None))):
            assert json.loads(row["a"]) == a
        else:
            assert row["a"] == a


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8")), min_size=1),
    st.sampled_from([".csv", ".tsv"]),
)
def test_any_text_survives_a_csv(tmp_path, texts, suffix):
    import csv

    path = tmp_path / f"t{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerow(["path", "note"])
        writer.writerows((f"{i}.wav", note) for i, note in enumerate(texts))
    source = from_paths([path], "audio")
    for item, note in zip(items(source), texts, strict=True):
        value = item.metadata["note"]
        if isinstance(value, str) or value is None:
            assert (value or "") == note
        elif isinstance(value, bool):
            assert str(value).lower() == note.lower()
        else:
            assert float(value) == float(note) or math.isnan(value)


def test_jsonl(tmp_path):
    path = table(
        tmp_path / "t.jsonl",
        '{"path": "a.wav", "n": 1, "tags": ["x", {"y": 1}], "start": 0.5, "end": "2"}\n'
        "\n"
        '{"path": "b.wav", "n": 2.5, "late": true, "start": null}\n'
        "not json\n"
        "[1, 2]\n"
        '{"path": "c.wav", "start": true}\n'
        '{"path": "d.wav", "id": 7}\n',
    )
    source = from_paths([path], "audio")
    assert {name: str(type) for name, type in source.columns.items()} == {
        "n": "double",
        "tags": "string",
        "late": "bool",
        "path": "string",  # kept because the table has ids of its own
    }
    found = [entry for entry in source if not isinstance(entry, Failure)]
    assert found[0][0].metadata == {"n": 1.0, "tags": '["x", {"y": 1}]', "late": None}
    assert found[0][1] == Region("segment", 0.5, 2.0)
    assert found[1][0].metadata == {"n": 2.5, "tags": None, "late": True}
    assert found[2][0].id == "7"
    messages = [failure.message for failure in failures(source)]
    assert [message[:14] for message in messages] == [
        "t.jsonl line 4",
        "t.jsonl line 5",
        "t.jsonl line 6",
    ]


def test_parquet(tmp_path):
    day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, 0, 500)
    columns = {
        "path": ["a.wav", "b.wav"],
        "start": pa.array([0.5, None]),
        "end": pa.array([1, None], pa.int32()),
        "small": pa.array([1, None], pa.int8()),
        "big": pa.array([2**64 - 1, 0], pa.uint64()),
        "half": pa.array([0.5, 1], pa.float32()),
        "truth": [True, None],
        "kind_of": pa.array(["x", "x"]).dictionary_encode(),
        "day": [day, None],
        "moment": pa.array([moment, None], pa.timestamp("ns")),
        "box": [[1, 2], None],
        "nested": [{"a": 1}, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = from_paths([tmp_path / "t.parquet"], "audio")
    (first, region), (second, whole) = source
    assert (region, whole) == (Region("segment", 0.5, 1.0), WHOLE)
    assert {name: str(type) for name, type in source.columns.items()} == {
        "small": "int64",
        "big": "string",
        "half": "double",
        "truth": "bool",
        "kind_of": "string",
        "day": "date32[day]",
        "moment": "timestamp[us]",
        "box": "string",
        "nested": "string",
    }
    assert first.metadata == {
        "small": 1,
        "big": str(2**64 - 1),
        "half": 0.5,
        "truth": True,
        "kind_of": "x",
        "day": day,
        "moment": moment,
        "box": "[1, 2]",
        "nested": '{"a": 1}',
    }
    assert {v for k, v in second.metadata.items() if k not in ("big", "half", "kind_of")} == {None}
    assert source.total == 2


def test_columns_of_several_tables_have_a_type_in_common(tmp_path):
    one = table(tmp_path / "1.csv", "path,n,m\na.wav,1,1\n")
    two = table(tmp_path / "2.jsonl", '{"path": "b.wav", "n": 2.5, "m": "x", "only": 1}\n')
    source = from_paths([one, two], "audio")
    assert {name: str(type) for name, type in source.columns.items()} == {
        "n": "double",
        "m": "string",
        "only": "int64",
    }
    assert [item.metadata for item in items(source)] == [
        {"n": 1.0, "m": "1"},
        {"n": 2.5, "m": "x", "only": 1},
    ]


def test_names_that_a_collection_cannot_have(tmp_path):
    header = ["path", "label", "_rowid", "sample rate", "größe", "2nd", "(x)", "text"]
    path = table(tmp_path / "t.csv", f"{','.join(header)}\na.wav,1,2,3,4,5,6,7\n")
    source = from_paths([path], "audio")
    assert source.renamed == {
        "label": "label_given",
        "_rowid": "_rowid_given",
        "sample rate": "sample_rate",
        "größe": "gr__e",
        "2nd": "c2nd",
        "(x)": "x_",
    }
    assert list(source.columns) == [*source.renamed.values(), "text"]
    assert items(source)[0].metadata["label_given"] == 1
    for name in RESERVED - {"id", "start", "end", "channel"}:
        head = table(tmp_path / "r.csv", f"path,{name}\na.wav,1\n")
        assert list(from_paths([head], "audio").columns) == [f"{name}_given"]
    with pytest.raises(SourceError, match="two columns would both be called a_b"):
        from_paths([table(tmp_path / "u.csv", "path,a b,a.b\nx.wav,1,2\n")], "audio")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"file,site\na,b\n", "no column `path`; it has file, site"),
        ("t.csv", b"path,start,start\nx,1,2\n", "more than one column 'start'"),
        ("t.csv", b"path,a\nx,b\xe9\n\xc3\xa9,1", r"line 2 is not UTF-8 \(byte 0xe9\)"),
        (
            "t.csv",
            b"path,a\nx,b\x81\n",
            r"line 2 is not UTF-8 \(byte 0x81\), and the file is not W",
        ),
        ("t.csv", b"path,a\nx,\x00\n", "is no text: it holds zero bytes"),
        ("t.csv", b'path,a\nx,"never closed\ny,2\n', "line 3 is not CSV"),
        ("t.jsonl", b'{"file": "a.wav"}\n', "no column `path`; it has file"),
        ("t.jsonl", b"", "no column `path`; it has none"),
        ("t.parquet", b"PAR1 hello", "not readable as Parquet"),
        ("t.parquet", b"", "not readable as Parquet"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        from_paths([tmp_path / name], "audio")


def test_dialects(tmp_path):
    (tmp_path / "bom.csv").write_bytes(b'\xef\xbb\xbfpath , note\r\na.wav,"two\r\nlines"\r\n')
    ((item, _),) = from_paths([tmp_path / "bom.csv"], "audio")
    assert item.metadata == {"note": "two\r\nlines"}
    for name, comma in (("t.tsv", "\t"), ("semicolon.csv", ";")):
        path = table(tmp_path / name, f"path{comma}n\na,b.wav{comma}1\n")
        ((item, _),) = from_paths([path], "audio")
        assert (item.content.name, item.metadata) == ("a,b.wav", {"n": 1})


# ---- texts


def test_texts_come_from_files_tables_and_python(tmp_path):
    (tmp_path / "a.txt").write_text("from a file")
    path = table(tmp_path / "t.csv", "text,category,path\nhello,x,p\nbye,y,q\n,z,r\n")
    source = from_paths([tmp_path / "a.txt", path], "text")
    found = items(source)
    assert found[0].content == tmp_path / "a.txt"
    assert [item.content for item in found[1:]] == ["hello", "bye", ""]
    assert found[1].metadata == {"text": "hello", "category": "x", "path": "p"}
    assert found[1].id == f"{tmp_path / 't.csv'}:2"  # by table and line
    assert items(from_objects("hello", "text"))[0].id.startswith(
        "sha256:2cf24dba5fb0a30e"
    )  # of its UTF-8
    assert found[1].size is None
    files = table(tmp_path / "f.csv", "path\na.txt\n")
    assert text.load(items(from_paths([files], "text"))[0].content) == "from a file"
    with pytest.raises(SourceError, match="no column `text` or `path`"):
        from_paths([table(tmp_path / "u.csv", "sentence\nhello\n")], "text")
    assert len(items(from_paths([tmp_path], "text"))) == 1


# ---- channels


def test_each_channel_is_a_region(tmp_path):
    mono, stereo = wave(tmp_path / "mono.wav"), wave(tmp_path / "stereo.wav", 2)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    source = from_paths([tmp_path], "audio", channel="each")
    bad, *found = source
    assert [(item.content, region) for item, region in found] == [
        (mono, Region(channel=0)),
        (stereo, Region(channel=0)),
        (stereo, Region(channel=1)),
    ]
    assert (bad.error, bad.region, bad.size) == ("DecodeError", "whole", 8)
    path = table(
        tmp_path / "t.csv", "path,start,end,channel\nstereo.wav,0,0.1,\nstereo.wav,0,0.1,1\n"
    )
    keys = [region.key for _, region in from_paths([path], "audio", channel="each")]
    assert keys == ["ch0:0-0.1", "ch1:0-0.1"]
    assert [region.channel for _, region in from_paths([path], "audio", channel=0)] == [0, 1]
    assert source.total is None


def test_channels_of_arrays_and_of_nothing_else(tmp_path):
    array = np.ones((3, 100), np.float32)
    regions = [region.channel for _, region in from_objects((array, 8000), "audio", "each")]
    assert regions == [0, 1, 2]
    for channel in (-1, "left", True):
        with pytest.raises(SourceError, match="neither a number"):
            from_objects(array, "audio", channel)
    with pytest.raises(SourceError, match="in audio only"):
        from_objects(["x"], "text", 0)


# ---- objects


def test_one_thing_or_many():
    array = np.arange(5, dtype=np.float32)
    picture = Image.new("RGB", (2, 2))
    for thing, modality in [
        (array, "audio"),
        ((array, 8000), "audio"),
        (b"bytes", "audio"),
        (picture, "image"),
        ("text", "text"),
    ]:
        one, many = (items(from_objects(t, modality)) for t in (thing, [thing, thing]))
        assert one[0].id == many[0].id == many[1].id
        assert one[0].id.startswith("sha256:")
        assert len(many) == 2
    ((item, region),) = from_objects((array, 8000), "audio")
    assert (item.rate, region) == (8000, WHOLE)
    assert item.content is array


def test_ids_tell_contents_apart():
    array = np.arange(6, dtype=np.float32)
    things = [
        array,
        array.astype(np.float64),
        array.reshape(2, 3),
        array + 1,
        (array, 8000),
        (array, 16000),
        array.tobytes(),
    ]
    ids = [item.id for item in items(from_objects(things, "audio"))]
    assert len(set(ids)) == len(things)
    assert ids[0] == items(from_objects(array[::-1][::-1], "audio"))[0].id


def test_lists_can_be_read_again_and_generators_only_once():
    source = from_objects(["a.wav", "b.wav"], "audio")
    assert source.total == 2
    assert list(source) == list(source)
    source = from_objects((name for name in ("a.wav", "b.wav")), "audio")
    assert source.total is None
    assert len(list(source)) == 2
    with pytest.raises(SourceError, match="only once"):
        list(source)


def test_a_single_path_is_a_file_a_folder_or_a_table(tree):
    assert len(items(from_objects(tree, "audio"))) == 4
    assert len(items(from_objects(str(tree), "audio"))) == 4
    assert len(items(from_objects(tree / "b.wav", "audio"))) == 1
    with pytest.raises(SourceError, match="no such file"):
        from_objects(str(tree / "gone.wav"), "audio")
    assert items(from_objects([tree / "gone.wav"], "audio"))[0].size is None
    ((item, _),) = from_objects(tree / "c/notes.txt", "text")
    assert isinstance(item.content, Path)


def test_columns_of_data_frames():
    class Column:  # as pandas has them: iterable, and an array of objects
        def __init__(self, values):
            self.values = values

        def __iter__(self):
            return iter(self.values)

        def __array__(self, dtype=None, copy=None):
            return np.array(self.values, dtype=object)

    assert [i.content for i in items(from_objects(Column(["a", "b"]), "text"))] == ["a", "b"]
    assert len(items(from_objects(Column(["a.wav", "b.wav"]), "audio"))) == 2
    assert len(items(from_objects(np.array(["a", "b"]), "text"))) == 2


@pytest.mark.parametrize("thing", [7, None, [7], [None], [[0.1, 0.2]], [("a.wav", 8000)]])
def test_things_that_are_no_items(thing):
    with pytest.raises(SourceError, match="give paths, bytes, arrays"):
        list(from_objects(thing, "audio"))


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    """As a shell gives it where a variable is not set."""
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    monkeypatch.chdir(tmp_path)
    for paths in ([""], ["a.wav", ""], ""):
        with pytest.raises(SourceError, match=r"one of the paths is empty; .* or \."):
            from_paths(paths, "audio")
    assert [Path(item.id).name for item, _ in from_paths(["."], "audio")] == ["a.wav"]


def test_a_table_may_have_bars_between_its_cells(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path|start|end|name\nb, c.wav|0|0.5|x;y\n")
    ((item, region),) = from_paths([table], "audio")
    assert (Path(item.id).name, region.key, item.metadata) == ("b, c.wav", "0-0.5", {"name": "x;y"})
    table.write_text("path,a|b\nc.wav,1|2\n")
    ((item, _),) = from_paths([table], "audio")
    assert (Path(item.id).name, item.metadata) == ("c.wav", {"a_b": "1|2"})
