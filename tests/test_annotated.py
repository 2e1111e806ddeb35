"""Annotations as programs write them: the same segments, whoever wrote them down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penult.data import audio
from penult.data.items import Failure
from penult.data.regions import WHOLE, Region
from penult.data.sources import from_paths
from penult.data.windows import Layout
from penult.errors import SourceError
from test_media import noise, shared, written


@pytest.fixture
def site(tmp_path) -> Path:
    """Two recordings of four seconds, of two channels each."""
    for number, name in enumerate(("one", "two")):
        written(tmp_path / f"{name}.wav", noise(8000, 4.0, 2, number), 8000)
    return tmp_path


def put(path: Path, *lines: str) -> Path:
    path.write_text("".join(line.replace(" | ", "\t") + "\n" for line in lines), encoding="utf-8")
    return path


def read(*paths: Path) -> list[tuple[str, str]]:
    """(file, region), or (what failed, why)."""
    return [
        ("failed", entry.message)
        if isinstance(entry, Failure)
        else (entry[0].content.name, entry[1].key)
        for entry in from_paths(list(paths), "audio")
    ]


def metadata(path: Path) -> list[dict[str, object]]:
    return [dict(e[0].metadata) for e in from_paths([path], "audio") if not isinstance(e, Failure)]


# ---- Raven

RAVEN = (
    "Selection | View | Channel | Begin Time (s) | End Time (s) | Low Freq (Hz) | High Freq (Hz)"
)


def test_a_selection_table_belongs_to_the_recording_it_is_called_after(site):
    for name in ("one.Table.1.selections.txt", "one.txt", "one.BirdNET.selection.table.txt"):
        table = put(
            site / name,
            f"{RAVEN} | Species",
            "1 | Spectrogram 1 | 1 | 0.5 | 1.25 | 100.0 | 900.0 | owl",
            "2 | Spectrogram 1 | 2 | 1 | 3 | 100.0 | 900.5 | ",
        )
        source = from_paths([table], "audio")
        assert read(table) == [("one.wav", "ch0:0.5-1.25"), ("one.wav", "ch1:1-3")]
        assert {name: str(type) for name, type in source.columns.items()} == {
            "Selection": "int64",
            "View": "string",
            "Low_Freq__Hz_": "double",
            "High_Freq__Hz_": "double",
            "Species": "string",
        }
        assert [row["Species"] for row in metadata(table)] == ["owl", None]
        assert source.total == 2
        table.unlink()


def test_a_selection_is_one_row_whatever_the_views(site):
    table = put(
        site / "one.txt",
        RAVEN,
        "1 | Waveform 1 | 1 | 0.5 | 1 | 1 | 2",
        "1 | Spectrogram 1 | 1 | 0.5 | 1 | 1 | 2",
        "2 | Waveform 2 | 2 | 0.5 | 1 | 1 | 2",
        "2 | Spectrogram 2 | 2 | 0.5 | 1 | 1 | 2",
        "3 | Waveform 1 | 1 | 2 | 3 | 1 | 2",
    )
    assert read(table) == [
        ("one.wav", "ch0:0.5-1"),
        ("one.wav", "ch1:0.5-1"),
        ("one.wav", "ch0:2-3"),
    ]
    views = [row["View"] for row in metadata(table)]
    assert views == ["Spectrogram 1", "Spectrogram 2", "Waveform 1"]
    assert from_paths([table], "audio").total == 3


def test_tables_of_several_files_use_the_offset_in_each(site):
    table = put(
        site / "all.txt",
        f"{RAVEN} | Begin File | File Offset (s) | Begin Path",
        f"1 | Spectrogram 1 | 1 | 0.1 | 0.4 | 1 | 2 | one.wav | 0.1 | {site / 'one.wav'}",
        "2 | Spectrogram 1 | 1 | 5.3 | 5.6 | 1 | 2 | two.wav | 1.3 | D:\\field\\two.wav",
        "3 | Spectrogram 1 | 1 | 3.9 | 4.5 | 1 | 2 | one.wav | 3.4 | ",
        "4 | Spectrogram 1 | 1 | 5.0 | 5.1 | 1 | 2 | six.wav | 1 | ",
        "5 | Spectrogram 1 | 1 | 5.0 | 5.1 | 1 | 2 |  | 1 | ",
        "6 | Spectrogram 1 | 1 | 5.0 | 5.1 | 1 | 2 | one.wav | x | ",
    )
    *found, six, none, bad = read(table)
    assert found == [
        ("one.wav", "ch0:0.1-0.4"),
        ("one.wav", "ch0:3.4-4"),
        ("two.wav", "ch0:1.3-1.6"),
    ]
    assert six[1] == "all.txt line 5: there is no recording 'six.wav' beside all.txt"
    assert none[1] == "all.txt line 6: Begin Path and Begin File are empty"
    assert bad[1] == "all.txt line 7: File Offset (s) 'x' is not a number"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.replace("File Offset (s)", "Other") for line in lines))
    with pytest.raises(SourceError, match=r"more than one file \(one.wav, six.wav, …\) and no col"):
        read(table)


def test_birdnet_names_paths(site):
    table = put(
        site / "BirdNET_SelectionTable.txt",
        f"{RAVEN} | Common Name | Species Code | Confidence | Begin Path | File Offset (s)",
        f"1 | Spectrogram 1 | 1 | 0 | 3 | 0 | 9000 | Tawny Owl | tawowl | 0.9 | {site}/one.wav | 0",
        f"2 | Spectrogram 1 | 1 | 4 | 7.0 | 0 | 15000 | nocall | nocall | 1.0 | {site}/two.wav | 0",
    )
    assert read(table) == [("one.wav", "ch0:0-3"), ("two.wav", "ch0:0-3")]
    assert metadata(table)[0]["Common_Name"] == "Tawny Owl"
    assert metadata(table)[0]["Confidence"] == 0.9


def test_selections_that_cannot_be_used_are_named(site):
    table = put(
        site / "one.txt",
        "Selection | Channel | Begin Time (s) | End Time (s) | Begin File | End File | start",
        "1 | 1 | 2 | 1 | one.wav | one.wav | a",
        "2 | 1 | x | 1 | one.wav | one.wav | b",
        "3 | 1 | 1 |  | one.wav | one.wav | c",
        "4 | left | 1 | 2 | one.wav | one.wav | d",
        "5 | 1 | 3 | 5 | one.wav | two.wav | e",
        "6 | 1 | 3",
        "7 | 1 | 3 | 3.5 | one.wav | one.wav | g",
        "8 |  | 3 | 3.5 | one.wav |  | h",
    )
    found = sorted(text for kind, text in read(table) if kind == "failed")
    assert [text.partition(";")[0] for text in found] == [
        "one.txt line 2: end 1.0 s is not after start 2.0 s",
        "one.txt line 3: Begin Time (s) 'x' is not a number",
        "one.txt line 4: End Time (s) '' is not a number",
        "one.txt line 5: channel 'left' is not a whole number",
        "one.txt line 6: the selection goes on from one.wav into two.wav",
        "one.txt line 7: 3 fields, where the header names 7",
    ]
    good = [entry for entry in from_paths([table], "audio") if not isinstance(entry, Failure)]
    assert [region.key for _, region in good] == ["ch0:3-3.5", "3-3.5"]
    assert [item.metadata["start_given"] for item, _ in good] == ["g", "h"]


def test_names_of_files_as_recorders_write_them(site):
    for name in ("one", "one.wav", "ONE.WAV"):
        table = put(
            site / "t.txt",
            "Selection | Begin Time (s) | End Time (s) | Begin File",
            f"1 | 3 | 3.5 | {name}",
        )
        assert read(table) == [("one.wav", "3-3.5")]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["Selection | Begin Time (s) | Low"], "line 1 names no column 'End Time \\(s\\)'"),
        (["", "Selection | Start | End"], "line 2 names no column 'Begin Time \\(s\\)'"),
        (["Selection | Begin Time (s) | End Time (s) | a | A"], "more than one column 'a'"),
    ],
)
def test_selection_tables_that_cannot_be_used(site, lines, reason):
    with pytest.raises(SourceError, match=reason):
        read(put(site / "one.txt", *lines))


def test_a_table_without_selections_is_no_error(site):
    assert read(put(site / "one.txt", RAVEN)) == []
    assert read(put(site / "speech.rttm", ";; nobody spoke")) == []


# ---- which recording


def test_the_recording_of_a_whole_table_must_be_one(site):
    table = put(site / "three.Table.1.txt", RAVEN, "1 | Spectrogram 1 | 1 | 0 | 1 | 1 | 2")
    with pytest.raises(
        SourceError, match=r"names no recording, and there is no recording 'three\.\*"
    ):
        read(table)
    written(site / "three.wav", noise(8000, 1), 8000)
    assert read(table) == [("three.wav", "ch0:0-1")]
    written(site / "three.flac", noise(8000, 1), 8000)
    with pytest.raises(SourceError, match=r"'three' may be any of 2 recordings: .*three\.flac, "):
        read(table)
    written(site / "three.Table.flac", noise(8000, 1), 8000)
    assert read(table) == [("three.Table.flac", "ch0:0-1")]


def test_folders_given_with_an_annotation_are_where_recordings_are_looked_for(site, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    table = put(labels / "one.txt", "0.5 | 1 | a")
    speech = put(labels / "speech.rttm", "SPEAKER two 1 0 1 <NA> <NA> anna <NA> <NA>")
    with pytest.raises(SourceError, match=r"there is no recording 'one\.\*' beside one.txt; put"):
        read(table)
    source = from_paths([table, site, speech], "audio")
    assert read(table, site, speech) == [("one.wav", "0.5-1"), ("two.wav", "ch0:0-1")]
    assert source.searched == (str(site),)
    assert source.total == 2
    assert read(table, site / "one.wav", site) == [("one.wav", "0.5-1"), ("one.wav", "whole")]
    other = tmp_path / "other"
    other.mkdir()
    written(other / "one.wav", noise(8000, 1), 8000)
    (site / "labels/one.txt").rename(other / "one.txt")
    assert [item.content for item, _ in from_paths([other / "one.txt", site], "audio")] == [
        other / "one.wav"  # the one beside the table
    ]
    (failed,) = read(put(labels / "s.rttm", "SPEAKER one 1 0 1 <NA> <NA> a <NA>"), site)
    assert "'one' may be any of 2 recordings" in failed[1]
    plain = put(labels / "t.csv", "path", str(site / "two.wav"))
    assert ("one.wav", "whole") in read(plain, site)  # no annotation: the folder is embedded


def test_texts_that_are_no_annotations_are_what_they_were(site):
    for content in ("notes of the day\n", "1\t\n", "a\tb\tc\n", "nan\t1\tx\n"):
        (site / "one.txt").write_text(content)
        (failed,) = from_paths([site / "one.txt"], "audio")
        assert "it is text, and no table of annotations that is known" in failed.message
        assert repr(content.strip()) in failed.message
    for content in (b"", b"RIFF\0\0\0\0WAVE"):
        (site / "one.txt").write_bytes(content)
        ((item, region),) = from_paths([site / "one.txt"], "audio")
        assert (item.content.name, region) == ("one.txt", WHOLE)
    put(site / "one.txt", "0.5 | 1 | a")
    ((item, _),) = from_paths([site / "one.txt"], "text")
    assert item.content == site / "one.txt"


# ---- Audacity


def test_labels(site):
    table = put(
        site / "one.txt",
        "2.000000 | 2.500000 | owl, far away",
        "\\ | -1.000000 | 6334.588867",
        "0.500000 | 1.500000 | rain",
        "1.000000 | 1.000000 | a click",
        "\\ | 6928.4 | 6928.4",
        "1.000000 | 3.000000",
        "3 | 2 | backwards",
        "three | 4 | words",
        "one word",
    )
    found = read(table)
    assert [key for kind, key in found if kind != "failed"] == ["0.5-1.5", "1-3", "2-2.5"]
    why = sorted(text for kind, text in found if kind == "failed")
    assert why == [
        "one.txt line 4: a point label at 1 s has no length; make it a region",
        "one.txt line 7: end 2.0 s is not after start 3.0 s; both are seconds",
        "one.txt line 8: start 'three' is not a number",
        "one.txt line 9: 'one word' is no label: start, end and text, with tabs between",
    ]
    assert metadata(table) == [
        {"label_given": "rain", "high_frequency": None},
        {"label_given": None, "high_frequency": None},
        {"label_given": "owl, far away", "high_frequency": 6334.588867},
    ]
    plain = put(site / "two.txt", "0 | 1 | a", "0.5 | 2 | b", "0 | 1 | a")
    assert list(from_paths([plain], "audio").columns) == ["label_given"]
    assert read(plain) == [("two.wav", "0-1"), ("two.wav", "0.5-2")]
    stray = put(site / "two.txt", "0 | 1 | a", "\\ | 1 | 2", "\\ | 1 | 2")
    assert ("failed", "two.txt line 3: a frequency range without a label before it") in read(stray)


# ---- RTTM


def test_who_speaks_when(site):
    table = put(
        site / "speech.rttm",
        ";; made by hand",
        "SPKR-INFO one 1 <NA> <NA> <NA> unknown anna <NA> <NA>",
        "SPEAKER one 1 0.1 0.2 <NA> <NA> anna 0.75 <NA>",
        "SPEAKER two   1   1.00 1.5 <NA> <NA> bert <NA> <NA>",
        "",
        "SPEAKER one 2 0.05 2 <NA> <NA> bert <NA> <NA>",
        "SPEAKER one 0 1 2 <NA> <NA> bert <NA> <NA>",
        "SPEAKER one <NA> 1.5 2 <NA> <NA> anna <NA>",
        "LEXEME one 1 1 2 hello lex anna <NA> <NA>",
        "SPEAKER gone 1 1 2 <NA> <NA> bert <NA> <NA>",
        "SPEAKER one 1 1 x <NA> <NA> bert <NA> <NA>",
        "SPEAKER one 1 1 0 <NA> <NA> bert <NA> <NA>",
        "SPEAKER one A 1 1 <NA> <NA> bert <NA> <NA>",
        "SPEAKER one 1 1",
        "anna speaks",
    )
    found = read(table)
    assert [pair for pair in found if pair[0] != "failed"] == [
        ("one.wav", "ch1:0.05-2.05"),
        ("one.wav", "ch0:0.1-0.3"),
        ("one.wav", "1-3"),
        ("one.wav", "1.5-3.5"),
        ("two.wav", "ch0:1-2.5"),
    ]
    why = sorted(text for kind, text in found if kind == "failed")
    assert [text.partition(": ")[2].partition(";")[0] for text in why] == [
        "there is no recording 'gone.*' beside speech.rttm",
        "duration 'x' is not a number",
        "end 1.0 s is not after start 1.0 s",
        "channel 'A' is not a whole number",
        "4 fields, where a SPEAKER line has 9 or 10",
        "not RTTM: a line begins with SPEAKER, not 'anna'",
    ]
    assert [text.partition(":")[0] for text in why] == [
        f"speech.rttm line {n}" for n in (10, 11, 12, 13, 14, 15)
    ]
    assert metadata(table)[1] == {"speaker": "anna", "confidence": 0.75}


# ---- the same segments from all


def test_every_way_to_write_a_segment_gives_the_same_samples(site):
    tables = [
        put(site / "t.csv", "path,start,end,channel", "one.wav,0.5,1.25,0", "one.wav,2,3.5,0"),
        put(
            site / "one.Table.1.txt",
            RAVEN,
            "1 | S | 1 | 0.5 | 1.25 | 1 | 2",
            "2 | S | 1 | 2 | 3.5 | 1 | 2",
        ),
        put(
            site / "a.rttm",
            "SPEAKER one 1 2 1.5 <NA> <NA> a <NA>",
            "SPEAKER one 1 0.5 0.75 <NA> <NA> b <NA>",
        ),
    ]
    wanted = [Region("segment", 0.5, 1.25, 0), Region("segment", 2.0, 3.5, 0)]
    for table in tables:
        assert [region for _, region in from_paths([table], "audio")] == wanted
    labels = put(site / "one.txt", "0.5 | 1.25 | a", "2 | 3.5 | b")
    ((item, one), _) = from_paths([labels], "audio")
    assert audio.load(item.content, one, 8000).seconds == 0.75
    layout = Layout(0.5).apply(from_paths([tables[1]], "audio"), "audio")
    keys = [region.key for _, region in layout]
    assert keys == ["ch0:0.5-1", "ch0:0.75-1.25", "ch0:2-2.5", "ch0:2.5-3", "ch0:3-3.5"]


def test_real_recordings_with_labels(tmp_path):
    folder = shared("fsdd")
    paths = sorted(folder.rglob("*.wav"))[:3]
    lines = [f"SPEAKER {path.stem} 1 0.05 0.2 <NA> <NA> someone <NA> <NA>" for path in paths]
    table = put(tmp_path / "digits.rttm", *lines)
    found = list(from_paths([table, folder], "audio"))
    assert [item.content for item, _ in found] == paths
    for item, region in found:
        (clip,) = audio.load_many(item.content, [region], 8000)
        whole = audio.load(item.content, WHOLE, 8000).samples
        np.testing.assert_array_equal(clip.samples, whole[400:2000])
