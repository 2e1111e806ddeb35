"""Hits and events cut out as files, the files of hits, and names of rows as commands print them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.collection.row_names import row_of_name, split_name
from penult.data.sources import from_paths
from test_cli import ask


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of three channels in 24 bits, in a folder with a blank in its name."""
    path = tmp_path_factory.mktemp("field work") / "site a.wav"
    sound = np.stack([clip(3.0, channel) for channel in range(3)], axis=1)
    soundfile.write(path, sound, RATE, subtype="PCM_24")
    return path


@pytest.fixture(scope="module")
def windows(tiny: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "windows.lance"
    cut = ("--channel", "each", "--window", "0.505s")
    assert ask("embed", tiny, recording, "--into", path, *cut).code == 0
    return path


def frames(path: Path, start: float = 0.0, end: float | None = None) -> np.ndarray:
    sound, rate = soundfile.read(path, dtype="int32", always_2d=True)
    return np.asarray(sound[round(start * rate) : None if end is None else round(end * rate)])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rec/a.wav ch0:450.5-451.475", ("rec/a.wav", "ch0:450.5-451.475")),
        ("rec/a.wav ch0 450.50-451.48", ("rec/a.wav", "ch0:450.5-451.48")),
        ("my file.wav 1.5-end", ("my file.wav", "1.5-end")),
        ("a.wav ch2", ("a.wav", "ch2:whole")),
        ("a.wav 1-2 #2", ("a.wav", "1-2#2")),
        ("b.png box 0,0,64,64", ("b.png", "box:0,0,64,64")),
        ("b.tif page 2 box 0,0,64,64", ("b.tif", "page:2:box:0,0,64,64")),
        ("t.csv:3 chars 0-42", ("t.csv:3", "chars:0-42")),
        ("a.wav", None),
        ("a.wav 3-2", None),
    ],
)
def test_printed_names_are_read_again(name: str, key: tuple[str, str] | None) -> None:
    assert split_name(name) == key


def test_what_search_prints_is_a_query_and_an_example(windows: Path, recording: Path) -> None:
    reader = Collection.open(windows).reader
    id, named = str(recording), reader.roots.id_of(recording)
    assert row_of_name(reader, f"{id} ch1 0.51-1.01") == (named, "ch1:0.505-1.01")
    assert row_of_name(reader, f"{named} ch1 0.51-1.01") == (named, "ch1:0.505-1.01")
    for name in (f"{id} ch1 0.51-1.01", f"{id} ch1:0.505-1.01"):
        said = ask("search", windows, name, "-k", 1, "--json").json
        hit = said["hits"][0]
        assert (hit["region"], said["parts"]) == ("ch1:0.505-1.01", ["ch1:0.505-1.01"])
        assert hit["similarity"] == pytest.approx(1.0, abs=1e-5)
    rows = Collection.open(windows).count
    assert ask("teach", windows, "call", f"{id} ch1 0.51-1.01").code == 0
    assert Collection.open(windows).count == rows
    assert f"{recording.name} ch1:0.505-1.01" in ask("classes", windows).out
    said = ask("search", windows, "nowhere.wav ch1:1-2")
    assert said.code == 2 and "'nowhere.wav ch1:1-2' is neither a file nor" in said.err


def test_hits_are_written_and_cut_out(windows: Path, recording: Path, tmp_path: Path) -> None:
    query = ("search", windows, recording, "--start", 1, "--end", 1.4, "--channel", 2, "-k", 5)
    hits = ask(*query, "--json").json["hits"]
    for name in ("hits.csv", "hits.txt", "hits.m3u"):
        assert ask(*query, "--out", tmp_path / name).code == 0
    assert ask(*query, "--out", tmp_path / "hits.csv").code == 2
    assert ask(*query, "--out", tmp_path / "hits.pdf").code == 2
    regions = {(region.channel, region.start) for _, region in from_paths(
        [tmp_path / "hits.txt"], "audio")}  # fmt: skip
    assert regions == {(hit["channel"], hit["start"]) for hit in hits}
    playlist = (tmp_path / "hits.m3u").read_text().splitlines()
    assert playlist[0] == "#EXTM3U" and playlist.count(str(recording)) == 5

    done = ask("clips", tmp_path / "hits.csv", "--out", tmp_path / "cut", "--json").json
    assert len(done["files"]) == 5 and done["failures"] == []
    for number, (file, hit) in enumerate(zip(done["files"], hits, strict=True), 1):
        name = f"{number:04}_site-a_{hit['start']:.3f}-{hit['end']:.3f}_ch{hit['channel']}_"
        assert Path(file).name.startswith(name)
        assert Path(file).stem.endswith(f"_{hit['similarity']:.3f}")
        about = soundfile.info(file)
        assert (about.channels, about.samplerate, about.subtype) == (3, RATE, "PCM_24")
        around = max(0.0, hit["start"] - 0.5), min(3.0, hit["end"] + 0.5)
        assert np.array_equal(frames(Path(file)), frames(recording, *around))
    again = ask("clips", tmp_path / "hits.csv", "--out", tmp_path / "cut")
    assert again.code == 2 and "4 more" in again.err and "--overwrite" in again.err
    # The same from --json on stdin, as FLAC without context.
    text = ask(*query, "--json").out
    how = ("--before", 0, "--after", 0, "--format", "flac", "--json")
    done = ask("clips", "-", "--out", tmp_path / "flac", *how, stdin=text).json
    for file, hit in zip(done["files"], hits, strict=True):
        assert np.array_equal(frames(Path(file)), frames(recording, hit["start"], hit["end"]))


def test_tables_in_another_folder_than_their_recordings(recording: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    track = tables / f"{recording.stem}.txt"
    track.write_text("1.250000\t1.500000\tcall\n0.250000\t0.500000\tsong\n")
    table = tables / "events.csv"
    table.write_text(
        f"path,start,end,class\n{recording.name},2,2.5,late\n{recording.name},0.5,0.75,early\n"
    )
    cut = ("--before", 0, "--after", 0)
    for one in (track, table):
        said = ask("clips", one, "--out", tmp_path / "none", *cut)
        assert said.code != 0 and not [*(tmp_path / "none").glob("*.wav")]
    said = ask("clips", track, "--audio", recording.parent, "--out", tmp_path / "a", *cut, "--json")
    files = [Path(file) for file in said.json["files"]]
    found = {next(n for n in ("call", "song") if n in one.name): frames(one) for one in files}
    assert np.array_equal(found["call"], frames(recording, 1.25, 1.5))
    assert np.array_equal(found["song"], frames(recording, 0.25, 0.5)) and len(files) == 2
    said = ask("clips", table, "--audio", recording.parent, "--out", tmp_path / "b", *cut, "--json")
    first, second = map(Path, said.json["files"])  # as the table has them
    assert "late" in first.name and np.array_equal(frames(first), frames(recording, 2, 2.5))
    assert "early" in second.name and np.array_equal(frames(second), frames(recording, 0.5, 0.75))
    said = ask("clips", track, "--audio", tmp_path / "nowhere", "--out", tmp_path / "c")
    assert said.code == 2 and "there is no folder" in said.err


def test_parts_by_name_and_what_is_not_there(recording: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "out", f"{recording} 2.5-2.75"
    lines = f"{recording} ch1:0.25-0.5\n{recording} 9-10\n{gone}\n"
    said = ask("clips", "-", "--out", out, "--json", "--before", 0, "--after", 5, stdin=lines)
    assert said.code == 3 and len(said.json["files"]) == 2
    assert "lasts 3 s" in said.json["failures"][0]["message"]
    assert np.array_equal(frames(Path(said.json["files"][1])), frames(recording, 2.5, 3.0))
    assert ask("clips", "nothing here", "--out", out).code == 2
    assert ask("clips", recording, "--out", recording).code == 2
    assert ask("clips", recording, "--out", out, "--format", "mp3").code == 2


def test_boxes_of_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sheet.png")
    hit = {"id": str(tmp_path / "sheet.png"), "region": "box:10,5,30,25", "label": "a/b"}
    text = json.dumps({"hits": [hit]})
    done = ask("clips", "-", "--out", tmp_path / "cut", "--json", stdin=text).json
    assert [Path(file).name for file in done["files"]] == ["0001_sheet_box10-5-30-25_a-b.png"]
    assert np.array_equal(np.asarray(Image.open(done["files"][0])), pixels[5:25, 10:30])


def test_what_the_layout_leaves_out_is_told(tiny: Path, recording: Path, tmp_path: Path) -> None:
    into = tmp_path / "gaps.lance"
    said = ask("embed", tiny, recording, "--into", into, "--window", "0.5s", "--hop", "1s")
    assert said.code == 0 and "50% of each file lies in no window" in said.err
    into = tmp_path / "channel.lance"
    said = ask("embed", tiny, recording, "--into", into, "--window", "0.5s", "--channel", 4)
    failures = ask("failures", into, "--json").json["failures"]
    assert said.code == 3 and len(failures) == 1 and "no channel 4" in failures[0]["message"]
    said = ask("embed", tiny, recording, "--into", tmp_path / "sum.lance", "--summary", "mean")
    assert said.code == 0 and "--summary made no row" in said.err


def test_what_fails_for_one_reason_and_what_is_hidden_is_counted(
    tiny: Path, tmp_path: Path
) -> None:
    folder, into = tmp_path / "rec", tmp_path / "quiet.lance"
    (folder / ".trash").mkdir(parents=True)
    soundfile.write(folder / "loud.wav", clip(1.0), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(4 * RATE), RATE)
    for hidden in ("._loud.wav", ".trash/old.wav", ".trash/notes.txt"):
        (folder / hidden).write_bytes(b"")
    said = ask("embed", tiny, folder, "--into", into, "--window", "0.5s")
    assert said.code == 3 and "8 failed" in said.out and "hidden files left out: 2" in said.out
    lines = [line for line in said.out.splitlines() if "silent.wav" in line]
    assert len(lines) == 1 and "(8 parts)" in lines[0]
    listed = [line for line in ask("failures", into).out.splitlines() if "silent.wav" in line]
    assert len(listed) == 1 and "8 parts" in listed[0]
    assert len(ask("failures", into, "--json").json["failures"]) == 8
    assert ask("teach", into, "a", folder / "loud.wav", "--window", "0.5s").code == 0
    said = ask("predict", into, folder / "silent.wav")
    assert said.code == 3 and said.err.count("silent.wav") == 1
    said = ask("predict", into, f"{folder / 'loud.wav'} 0.50-1.00", "--json").json
    assert [one["region"] for one in said["predictions"]] == ["0.5-1"]
