"""A file that a command takes is read as the rows of the collection were: windows, channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.collection.row_layout import RowLayout, row_layout
from penult.data.windows import Layout
from test_cli import ask
from zoo import save_text

WINDOW = 0.5


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of three channels, one of one, and one that lasts six windows."""
    root = tmp_path_factory.mktemp("recordings")
    for number in range(2):
        sound = np.stack([clip(0.6, 10 * number + channel) for channel in range(3)], axis=1)
        soundfile.write(root / f"three{number}.wav", sound, RATE)
    soundfile.write(root / "one.wav", clip(0.6, 30), RATE)
    soundfile.write(root / "long.wav", np.concatenate([clip(WINDOW, n) for n in range(6)]), RATE)
    return root


@pytest.fixture(scope="module")
def each(tiny: Path, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the channels of a recording of three."""
    path = tmp_path_factory.mktemp("each") / "each.lance"
    said = ask("embed", tiny, recordings / "three0.wav", "--into", path, "--channel", "each")
    assert said.code == 0
    return path


@pytest.fixture(scope="module")
def windows(tiny: Path, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the windows of the long recording."""
    path = tmp_path_factory.mktemp("windows") / "windows.lance"
    cut = ("--window", f"{WINDOW}s")
    assert ask("embed", tiny, recordings / "long.wav", "--into", path, *cut).code == 0
    return path


def cosines(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(n, m), computed by hand."""
    rows, queries = (
        one / np.linalg.norm(one, axis=1, keepdims=True)
        for one in (rows.astype(float), queries.astype(float))
    )
    return np.asarray(rows @ queries.T)


def cut_out(
    file: Path, to: Path, channel: int | None = None, seconds: slice = slice(0, None)
) -> Path:
    """A channel of a file, and a part of it, as a file of its own."""
    sound, rate = soundfile.read(file, always_2d=True)
    end = None if seconds.stop is None else int(seconds.stop * rate)
    part = sound[int(seconds.start * rate) : end]
    soundfile.write(to, part if channel is None else part[:, channel], rate)
    return to


def embedded(tiny: Path, files: list[Path]) -> np.ndarray:
    return penult.Embedder.from_classifier(penult.load(tiny)).embed(files)


def test_the_layout_of_rows_is_known(each: Path, windows: Path) -> None:
    assert row_layout(Collection.open(each).reader) == RowLayout(Layout(), "each")
    assert row_layout(Collection.open(windows).reader) == RowLayout(Layout(WINDOW))


def test_the_layout_is_that_of_most_rows_now(tiny: Path, recordings: Path, tmp_path: Path) -> None:
    made, file = tmp_path / "grows.lance", recordings / "long.wav"
    ask("embed", tiny, recordings / "one.wav", "--into", made)
    reader = Collection.open(made).reader
    assert row_layout(reader) == RowLayout()
    ask("embed", tiny, file, "--into", made, "--window", "1s", "--hop", "0.5s")
    assert row_layout(reader) == RowLayout(Layout(1.0, 0.5))  # five rows against one
    ask("embed", tiny, file, "--into", made, "--window", "0.25s", "--channel", 0)
    assert row_layout(reader) == RowLayout(Layout(0.25), 0)  # twelve rows against six
    said = ask("predict", made, file)
    assert said.code != 0  # no class yet
    assert ask("teach", made, "a", file, "--start", 0.25, "--end", 0.5).code == 0
    found = ask("predict", made, file, "--json").json["predictions"]
    assert len(found) == 12 and {one["channel"] for one in found} == {0}
    found = ask("predict", made, file, "--json", "--window", "whole", "--channel", "mix").json
    assert [one["region"] for one in found["predictions"]] == ["whole"]


def test_a_file_of_the_collection_is_searched_by_its_rows(each: Path, recordings: Path) -> None:
    said = ask("search", each, recordings / "three0.wav", "--json").json
    assert [round(hit["similarity"], 5) for hit in said["hits"]] == [1.0, 1.0, 1.0]
    assert all(hit["part"] == hit["region"] for hit in said["hits"])
    assert said["parts"] == ["ch0:whole", "ch1:whole", "ch2:whole"]


def test_channels_of_a_query_are_tried_one_by_one(
    each: Path, recordings: Path, tiny: Path, tmp_path: Path
) -> None:
    query = recordings / "three1.wav"
    said = ask("search", each, query)
    assert "3 parts (each channel by itself)" in said.err and "ch1 0.00-0.60" in said.out
    parts = [cut_out(query, tmp_path / f"{n}.wav", n) for n in range(3)]
    table, rows = Collection.open(each).vectors(columns=["region"])
    wanted = cosines(rows, embedded(tiny, parts))
    of_region = dict(zip(table["region"].to_pylist(), wanted, strict=True))
    for hit in ask("search", each, query, "--json").json["hits"]:
        own = of_region[hit["region"]]
        assert hit["similarity"] == pytest.approx(own.max(), abs=1e-5)
        assert hit["part"] == f"ch{own.argmax()}:whole"
    for channel in range(3):
        for hit in ask("search", each, query, "--channel", channel, "--json").json["hits"]:
            wanted_one = of_region[hit["region"]][channel]
            assert hit["similarity"] == pytest.approx(wanted_one, abs=1e-5)
    mixed = cosines(rows, embedded(tiny, [query]))[:, 0]
    found = ask("search", each, query, "--channel", "mix", "--json").json["hits"]
    assert [hit["similarity"] for hit in found] == pytest.approx(sorted(mixed)[::-1], abs=1e-5)
    hits = Collection.open(each).search(query)
    assert [hit.part for hit in hits] == [
        hit["part"] for hit in ask("search", each, query, "--json").json["hits"]
    ]


def test_a_query_of_one_channel_and_a_channel_that_is_not_there(
    each: Path, recordings: Path
) -> None:
    said = ask("search", each, recordings / "one.wav", "--json").json
    assert said["parts"] == ["ch0:whole"] and said["hits"][0]["part"] is None
    said = ask("search", each, recordings / "one.wav", "--channel", 4)
    assert said.code == 2 and "there is no channel 4" in said.err
    said = ask("search", each, recordings / "one.wav", "--channel", "left")
    assert said.code == 2 and "neither a number" in said.err


def test_a_long_query_is_searched_by_its_windows(
    windows: Path, recordings: Path, tiny: Path, tmp_path: Path
) -> None:
    query = cut_out(recordings / "long.wav", tmp_path / "part.wav", None, slice(0.25, 1.75))
    parts = [
        cut_out(query, tmp_path / f"{n}.wav", None, slice(n * WINDOW, (n + 1) * WINDOW))
        for n in range(3)
    ]
    said = ask("search", windows, query, "--json").json
    assert said["parts"] == ["0-0.5", "0.5-1", "1-1.5"] and "windows of 0.5 s" in said["notes"][0]
    table, rows = Collection.open(windows).vectors(columns=["region"])
    wanted = cosines(rows, embedded(tiny, parts))
    of_region = dict(zip(table["region"].to_pylist(), wanted, strict=True))
    for hit in said["hits"]:
        assert hit["similarity"] == pytest.approx(of_region[hit["region"]].max(), abs=1e-5)
    whole = cosines(rows, embedded(tiny, [query]))[:, 0]
    found = ask("search", windows, query, "--window", "whole", "--json").json
    assert found["parts"] == ["whole"]
    got = [hit["similarity"] for hit in found["hits"]]
    assert got == pytest.approx(sorted(whole)[::-1], abs=1e-5)
    # A part that is a row needs no model; a longer one is cut as rows are.
    long = recordings / "long.wav"
    said = ask("search", windows, long, "--start", 0.5, "--end", 1, "--json").json
    assert said["parts"] == ["0.5-1"] and said["hits"][0]["region"] == "0.5-1"
    said = ask("search", windows, long, "--start", 0.5, "--end", 1.5, "--json").json
    assert said["parts"] == ["0.5-1", "1-1.5"]


def test_an_example_is_one_row(each: Path, recordings: Path, tiny: Path, tmp_path: Path) -> None:
    made = tmp_path / "taught.lance"
    ask("embed", tiny, recordings / "three0.wav", "--into", made, "--channel", "each")
    three = recordings / "three1.wav"
    said = ask("teach", made, "a", three)
    assert said.code == 2 and "3 channels" in said.err and "--channel 0" in said.err
    assert ask("teach", made, "a", three, "--channel", 1).code == 0
    assert ask("teach", made, "b", three, "--channel", "each", "--mark", "no").code == 0
    assert ask("teach", made, "c", recordings / "one.wav").code == 0
    rows = Collection.open(made).vectors()[0].to_pylist()
    keys = {(Path(row["id"]).name, row["region"]) for row in rows}
    assert keys == {
        *(("three0.wav", f"ch{n}:whole") for n in range(3)),
        *(("three1.wav", f"ch{n}:whole") for n in range(3)),
        ("one.wav", "ch0:whole"),
    }


def test_a_text_is_shown_beside_its_label(tmp_path: Path) -> None:
    words = save_text(tmp_path / "words", "bert")
    said = ask("classify", words, "text:a bird sings")
    assert said.code == 0 and "a bird sings" in said.out.splitlines()[0]
