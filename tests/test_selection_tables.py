"""Raven selection tables over several recordings, written and read again by Raven's rules."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, clip
from penult.data.items import Failure
from penult.data.label_tracks import write_label_tracks
from penult.data.selection_tables import RavenSelection, write_selections
from penult.data.sources import from_paths
from penult.errors import UsageError
from test_cli import ask

SECONDS = {"b.flac": 1.25, "s1/a.wav": 2.0, "s2/a.wav": 1.1}  # in the order of their paths


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Three recordings of two channels, two of one name, of rates and lengths of their own."""
    for number, (name, seconds) in enumerate(SECONDS.items()):
        path = tmp_path / "field" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = round(seconds * RATE) + number  # no whole number of microseconds
        sound = np.random.default_rng(number).normal(0, 0.1, (frames, 2))
        soundfile.write(path, sound, RATE)
    return tmp_path / "field"


def places(found: list[Path], *more: Path) -> list[tuple[str, float | None, float | None, object]]:
    read = []
    for entry in from_paths([*found, *more], "audio"):
        assert not isinstance(entry, Failure), entry
        item, region = entry
        read.append((str(item.content), region.start, region.end, region.channel))
    return sorted(read, key=str)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def selections(field: Path) -> list[RavenSelection]:
    band = {"Low_Freq__Hz_": 100.5, "High_Freq__Hz_": 3000, "Species": "owl"}
    return [
        RavenSelection(str(field / "s2/a.wav"), 0.123457, 0.876543, None, {"Species": "tit"}),
        RavenSelection(str(field / "s1/a.wav"), 0.5, 1.75, 1, band),
        RavenSelection(str(field / "s1/a.wav"), 0.0, 0.25, 0, {"Species": "a\tb"}),
    ]


def test_one_table_counts_from_the_first_recording_of_its_list(field: Path, tmp_path: Path) -> None:
    given, out = selections(field), tmp_path / "all.txt"
    written = write_selections(out, given, [str(field / name) for name in SECONDS])
    assert written == [out, tmp_path / "all.list.txt"]
    listed = (tmp_path / "all.list.txt").read_text().splitlines()
    assert listed == [str(field / name) for name in SECONDS]
    lengths = [soundfile.info(one) for one in listed]
    begins = np.cumsum([0.0, *(about.frames / about.samplerate for about in lengths)])
    begin = dict(zip(listed, begins, strict=False))
    for row, one in zip(lines(out), given, strict=True):
        assert float(row["Begin Time (s)"]) == pytest.approx(begin[one.path] + one.start, abs=1e-6)
        assert float(row["End Time (s)"]) == pytest.approx(begin[one.path] + one.end, abs=1e-6)
        assert float(row["File Offset (s)"]) == one.start and row["Begin Path"] == one.path
    first, second, third = lines(out)
    assert (first["Channel"], first["Mixed Channels"]) == ("1", "all")
    assert (second["Channel"], second["Mixed Channels"]) == ("2", "")
    assert (first["Low Freq (Hz)"], first["High Freq (Hz)"]) == ("0", f"{RATE / 2:g}")
    assert (second["Low Freq (Hz)"], second["High Freq (Hz)"]) == ("100.5", "3000")
    assert third["Species"] == "a b" and [row["Selection"] for row in lines(out)] == [*"123"]
    wanted = sorted(((one.path, one.start, one.end, one.channel) for one in given), key=str)
    assert places([out]) == wanted


def test_a_folder_has_a_table_for_each_recording(field: Path, tmp_path: Path) -> None:
    given = selections(field)
    out = f"{tmp_path / 'tables.d'}/"
    written = write_selections(out, given, [str(field / name) for name in SECONDS])
    names = [one.name for one in written]
    assert names == ["b.selections.txt", "s1_a.selections.txt", "s2_a.selections.txt"]
    assert lines(written[0]) == [] and lines(written[2])[0]["Begin Time (s)"] == "0.123457"
    assert len({tuple(one.read_text().splitlines()[0].split("\t")[:10]) for one in written}) == 1
    wanted = sorted(((one.path, one.start, one.end, one.channel) for one in given), key=str)
    assert places(written) == wanted
    before = written[1].read_bytes()
    with pytest.raises(UsageError, match=r"b\.selections\.txt exists already"):
        write_selections(out, given[:1], [str(field / name) for name in SECONDS])
    assert written[1].read_bytes() == before
    odd = [
        RavenSelection(str(tmp_path / name), 0.0, 1.0) for name in ("x/c.wav", "x/c.flac", "C.wav")
    ]
    for one in odd:
        Path(one.path).parent.mkdir(exist_ok=True)
        soundfile.write(one.path, clip(1.0), RATE)
    found = {one.name for one in write_selections(f"{tmp_path / 'odd'}/", odd)}
    assert len({name.casefold() for name in found}) == 3 and places(
        sorted((tmp_path / "odd").iterdir())
    ) == sorted(((one.path, 0.0, 1.0, None) for one in odd), key=str)


def test_what_raven_saves_is_read_by_offset_and_file(field: Path, tmp_path: Path) -> None:
    """Cumulative times, `Begin File` and `File Offset (s)`; paths are gone, or are others."""
    given, out = selections(field), tmp_path / "all.txt"
    write_selections(out, given, [str(field / name) for name in SECONDS])
    wanted = sorted(((one.path, one.start, one.end, one.channel) for one in given), key=str)
    saved = lines(out)
    for path in ("", "D:\\elsewhere\\{}", str(field / "b.flac")):
        rows = [{**row, "Begin Path": path.format(row["Begin File"])} for row in saved]
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(saved[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
        assert places([out]) == wanted, path  # two files of one name are told apart by the list
    (tmp_path / "all.list.txt").unlink()
    failed = [one for one in from_paths([out, field], "audio") if isinstance(one, Failure)]
    assert failed and "may be any of 2 recordings" in failed[0].message


def test_lengths_that_are_not_known(field: Path, tmp_path: Path) -> None:
    gone = RavenSelection(str(field / "gone.wav"), 0.5, 1.0, 0)
    with pytest.raises(UsageError, match=r"length of .*gone\.wav cannot be read.*FOLDER/"):
        write_selections(tmp_path / "x.txt", [gone, *selections(field)])
    assert not (tmp_path / "x.txt").exists()
    write_selections(tmp_path / "one.txt", [gone])
    (row,) = lines(tmp_path / "one.txt")
    assert (row["Begin Time (s)"], row["Low Freq (Hz)"], row["High Freq (Hz)"]) == ("0.5", "0", "")
    assert not (tmp_path / "one.list.txt").exists()


def test_events_hits_and_exports_have_one_form(tiny: Path, field: Path, tmp_path: Path) -> None:
    into = tmp_path / "c.lance"
    cut = ("--window", "0.5s", "--channel", "each")
    assert ask("embed", tiny, field, "--into", into, *cut).code == 0
    for name, start in (("x", 0), ("y", 0.5)):
        part = ("--start", start, "--end", start + 0.5, "--channel", 0)
        assert ask("teach", into, name, field / "s1/a.wav", *part).code == 0
    for place, command in (
        ("events", ("predict", into, "--unknown", 0, "--out")),
        ("hits", ("search", into, field / "b.flac", "--start", 0, "--end", 0.5, "-k", 9, "--out")),
        ("rows", ("export", into)),
    ):
        for out in (f"{tmp_path / place}/", tmp_path / f"{place}.txt"):
            done = ask(*command, out)
            assert done.code == 0, done.err
            again = ask(*command, out)
            assert again.code == 2 and "--overwrite" in again.error
            assert ask(*command, out, "--overwrite").code == 0
        tables = sorted((tmp_path / place).iterdir())
        assert places(tables) == places([tmp_path / f"{place}.txt"])
        listed = (tmp_path / f"{place}.list.txt").read_text().splitlines()
        assert len(listed) == len(tables) > 1 and listed == sorted(listed)
        heads = {tuple(next(csv.reader(one.open(), delimiter="\t"))[:10]) for one in tables}
        assert len(heads) == 1 and "Channel" in next(iter(heads))
    hits = ask("search", into, field / "b.flac", "--start", 0, "--end", 0.5, "-k", 9, "--json")
    wanted = {(hit["start"], hit["end"], hit["channel"]) for hit in hits.json["hits"]}
    assert {one[1:] for one in places([tmp_path / "hits.txt"])} == wanted
    refused = ask("predict", into, "--out", tmp_path / "x.doc")
    assert refused.code == 2 and "or in / (a folder" in refused.error


def test_events_of_unknown_smoothed_and_without_summaries(tiny: Path, tmp_path: Path) -> None:
    into, folder = tmp_path / "c.lance", tmp_path / "rec"
    folder.mkdir()
    soundfile.write(folder / "a.wav", clip(4.0), RATE)
    cut = ("--window", "0.5s", "--summary", "mean")
    assert ask("embed", tiny, folder, "--into", into, *cut).code == 0
    for name, start in (("x", 0), ("y", 0.5)):
        part = ("--start", start, "--end", start + 0.5)
        assert ask("teach", into, name, folder / "a.wav", *part).code == 0
    said = ask("predict", into, "--min-similarity", 0.999999, "--json").json
    assert [one["region"] for one in said["predictions"]].count("summary") == 1
    wanted = {"start": 0.0, "end": 0.5, "label": "x", "labels": ["x"], "windows": 1}
    assert len(said["events"]) == 2
    assert {name: said["events"][0][name] for name in wanted} == wanted
    told = ask("predict", into, "--min-similarity", 0.999999)
    assert "--unknown-events lists them" in told.err
    out = tmp_path / "e.csv"
    asked = ("predict", into, "--min-similarity", 0.999999, "--unknown-events", "--out", out)
    assert ask(*asked).code == 0
    table = list(csv.DictReader(out.open()))
    assert [(row["class"], row["start"], row["end"]) for row in table] == [
        ("x", "0", "0.5"), ("y", "0.5", "1"), ("unknown", "1", "4")]  # fmt: skip
    assert table[2]["windows"] == "6" and table[2]["labels"] == "" and "p_value" in table[2]
    by_window = {p["start"]: p["score"] for p in said["predictions"] if p["region"] != "summary"}
    most = max(score for start, score in by_window.items() if start >= 1)
    assert float(table[2]["probability"]) == pytest.approx(most, rel=1e-5)
    smooth = ask(*asked[:-1], out, "--overwrite", "--smooth", 1.5, "--json").json["events"]
    assert [(one["label"], one["end"]) for one in smooth][-1] == ("unknown", 4.0)
    for wrong in (
        ("--smooth", 1, "--windows"),
        ("--smooth", -1),
        ("--unknown-events", "--windows"),
    ):
        assert ask("predict", into, *wrong).code == 2
    refused = ask("predict", into, folder / "a.wav", "--window", "whole", "--smooth", 1)
    assert refused.code == 2 and "no events to smooth" in refused.error


def test_a_label_track_is_as_audacity_documents_it(field: Path, tmp_path: Path) -> None:
    """Audacity Manual, Importing and Exporting Labels: six decimals, tabs, and a second line that
    begins with a backslash where a band is known, -1 for an edge that is not."""
    a = str(field / "s1/a.wav")
    given = [
        RavenSelection(a, 0.5, 1.75, 1, {"Class": "owl\t\n7", "high_frequency": 6334.5}),
        RavenSelection(a, 0.123457, 0.25, 1, {"Class": "tit", "Low Freq (Hz)": 100, "High": 9}),
    ]
    out = tmp_path / "a.txt"
    assert write_label_tracks(out, given) == [out]
    assert out.read_bytes() == (
        b"0.123457\t0.250000\ttit\n\\\t100.000000\t-1.000000\n"
        b"0.500000\t1.750000\towl  7\n\\\t-1.000000\t6334.500000\n"
    )
    with pytest.raises(UsageError, match=r"exists already; --overwrite"):
        write_label_tracks(out, given)
    several = [given[0], RavenSelection(a, 0.0, 1.0, 0)]
    with pytest.raises(UsageError, match=r"of one recording and channel, and these are 2; --out F"):
        write_label_tracks(out, several, overwrite=True)
    with pytest.raises(UsageError, match=r"needs seconds"):
        write_label_tracks(tmp_path / "x.txt", [RavenSelection(a, None, None)])


def test_label_tracks_of_a_folder_are_read_again(field: Path, tmp_path: Path) -> None:
    soundfile.write(field / "b.ch0.wav", clip(1.0), RATE)
    given = [
        *selections(field),
        RavenSelection(str(field / "b.flac"), 0.25, 0.5, None, {"Class": "owl"}),
        RavenSelection(str(field / "b.ch0.wav"), 0.25, 0.5, None, {"Class": "owl"}),
    ]
    recordings, out = [*(str(field / name) for name in SECONDS)], f"{tmp_path / 'tracks'}/"
    written = write_label_tracks(out, given, recordings)
    names = {str(one.relative_to(tmp_path / "tracks")) for one in written}
    assert names == {"b.labels.txt", "s1/a.ch0.labels.txt", "s1/a.ch1.labels.txt",
                     "s2/a.labels.txt", "b.ch0.labels.txt"}  # fmt: skip
    (field / "b.ch0.wav").unlink()  # else b.ch0 may be a channel of b
    (tmp_path / "tracks/b.ch0.labels.txt").unlink()
    tracks = sorted((tmp_path / "tracks").rglob("*.txt"))
    read = list(from_paths([*tracks, field], "audio"))
    found = [one for one in read if not isinstance(one, Failure) and one[1].start is not None]
    wanted = sorted(((one.path, one.start, one.end, one.channel) for one in given[:-1]), key=str)
    got = ((str(item.content), r.start, r.end, r.channel) for item, r in found)
    assert sorted(got, key=str) == wanted
    (banded,) = (i.metadata for i, r in found if r.channel == 1)
    assert (banded["low_frequency"], banded["high_frequency"]) == (100.5, 3000)
    write_label_tracks(out, given[:1], recordings, overwrite=True)
    assert (tmp_path / "tracks/s1/a.ch1.labels.txt").read_bytes() == b""  # none are left there
    assert all(start is None for _, start, _, _ in places([tracks[1]], field))


def test_events_and_hits_as_label_tracks_teach_again(
    tiny: Path, field: Path, tmp_path: Path
) -> None:
    into, out = tmp_path / "c.lance", f"{tmp_path / 'tracks'}/"
    cut = ("--window", "0.5s", "--channel", "each")
    assert ask("embed", tiny, field, "--into", into, *cut).code == 0
    for name, start in (("x", 0), ("y", 0.5)):
        part = ("--start", start, "--end", start + 0.5, "--channel", 0)
        assert ask("teach", into, name, field / "s1/a.wav", *part).code == 0
    done = ask("predict", into, "--unknown", 0, "--out", out, "--format", "audacity")
    assert done.code == 0 and "label tracks in" in done.out, done.err
    assert ask("predict", into, "--out", out, "--format", "audacity").code == 2  # they are there
    events = ask("predict", into, "--unknown", 0, "--json").json["events"]
    tracks = sorted((tmp_path / "tracks").rglob("*.labels.txt"))
    wanted = sorted(
        (str(field.parent / one["id"]), one["start"], one["end"], one["channel"]) for one in events
    )
    assert places(tracks, field)[: len(wanted)] == wanted
    one = tmp_path / "tracks/s1/a.ch0.labels.txt"
    taught = ask("teach", into, "--from", "label", one, "--audio", field, "--json")
    assert taught.code == 0, taught.error
    marked = {line.split("\t")[2].strip() for line in one.read_text().splitlines()}
    assert marked <= {one["name"] for one in taught.json["classes"]}
    part = ("--start", 0, "--end", 0.5, "-k", 3, "--out", f"{tmp_path / 'hits'}/")
    assert ask("search", into, field / "b.flac", *part, "--format", "audacity").code == 0
    hits = ask("search", into, field / "b.flac", *part[:-2], "--json").json["hits"]
    tracks = sorted((tmp_path / "hits").rglob("*.labels.txt"))
    assert {p[1:] for p in places(tracks, field) if p[1] is not None} == {
        (hit["start"], hit["end"], hit["channel"]) for hit in hits}  # fmt: skip
    for wrong in (("--format", "audacity"), ("--format", "doc", "--out", tmp_path / "x.txt"),
                  ("--format", "raven", "--out", tmp_path / "x.csv")):  # fmt: skip
        assert ask("predict", into, *wrong).code == 2


def test_raven_events_have_what_csv_events_have(tiny: Path, tmp_path: Path) -> None:
    folder, into = tmp_path / "rec", tmp_path / "c.lance"
    folder.mkdir()
    soundfile.write(folder / "a.wav", clip(3.0), RATE)
    table = folder / "t.csv"
    table.write_text("path,class,labels\na.wav,mine,own\n")
    assert ask("embed", tiny, table, "--into", into, "--window", "0.5s").code == 0
    for name, start in (("x", 0), ("y", 0.5), ("x", 1), ("y", 1.5)):
        part = ("--start", start, "--end", start + 0.5)
        assert ask("teach", into, name, folder / "a.wav", *part).code == 0
    for out in ("e.csv", "e.txt"):
        assert ask("predict", into, "--several", "--out", tmp_path / out).code == 0
    with (tmp_path / "e.csv").open() as file:
        by_csv = list(csv.DictReader(file))
    raven = lines(tmp_path / "e.txt")
    for name in ("p_value", "labels", "class_given", "labels_given"):
        assert [row[name] for row in raven] == [row[name] for row in by_csv], name
    assert any(row["labels"] for row in raven) and raven[0]["labels_given"] == "own"
    assert places([tmp_path / "e.txt"])  # no two columns that differ in case only
