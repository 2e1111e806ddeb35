"""Layouts: items become windows or tiles as they are asked for; what cannot be divided is named."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from penult.data import audio, image, video
from penult.data.items import Failure, Item
from penult.data.regions import WHOLE, Region
from penult.data.sources import from_objects, from_paths
from penult.data.windows import Layout, parse_seconds
from penult.errors import ItemError, UsageError
from test_media import PIXELS, encoded, film, noise, png, shared, wav, written


def keys(found) -> list[str]:
    return [f"failed {e.region}" if isinstance(e, Failure) else e[1].key for e in found]


def of(path: Path, id: str | None = None, **metadata: object) -> Item:
    return Item(id or str(path), path, metadata)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        f"{seconds}": written(folder / f"{seconds}.wav", noise(8000, seconds, 2), 8000)
        for seconds in (0.5, 2.0, 2.3)
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("5", 5),
        ("250ms", 0.25),
        ("1.5", 1.5),
        (" 2 min ", 120),
        (".5S", 0.5),
        ("1h", 3600),
    ],
)
def test_lengths_of_time(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "five", "-1", "0", "0ms", "1e3", "5 parsecs", "nan", "1,5"]
)
def test_what_is_no_length_of_time(text):
    with pytest.raises(UsageError, match="no length of time"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"window": 0}, "a window of 0 s"),
        ({"window": float("nan")}, "a window of nan s"),
        ({"window": float("inf")}, "a window of inf s"),
        ({"window": 1, "hop": -1}, "a hop of -1 s"),
        ({"hop": 1}, "needs a window"),
        ({"tile": 0}, "tiles of 0 pixels"),
        ({"tile": 10, "overlap": 10}, "overlap of 10"),
        ({"tile": 10, "overlap": -1}, "overlap of -1"),
        ({"overlap": 5}, "needs tiles"),
    ],
)
def test_layouts_that_cannot_be(arguments, reason):
    with pytest.raises(UsageError, match=reason):
        Layout(**arguments)


@pytest.mark.parametrize(
    ("layout", "modality", "reason"),
    [
        (Layout(window=1), "text", "cut the texts, one in each row of a table"),
        (Layout(window=1), "image", "cut into tiles"),
        (Layout(tile=9), "text", "not from text"),
        (Layout(tile=9), "audio", "give a window"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(layout, modality, reason):
    with pytest.raises(UsageError, match=reason):
        layout.apply(iter(()), modality)


def test_nothing_asked_for_changes_nothing(clips):
    pairs = [(of(clips["0.5"]), WHOLE), Failure("a", "whole", "DecodeError", "no")]
    assert list(Layout().apply(pairs, "audio")) == pairs
    assert list(Layout().apply(pairs, "text")) == pairs


# ---- windows


def test_recordings_become_windows(clips):
    found = list(Layout(1.0, 0.5).apply(from_paths([*clips.values()], "audio"), "audio"))
    assert keys(found) == [
        *("0-0.5",),
        *("0-1", "0.5-1.5", "1-2"),
        *("0-1", "0.5-1.5", "1-2", "1.3-2.3"),
    ]
    assert {region.kind for _, region in found} == {"window"}
    assert keys(Layout(1.0).apply([(of(clips["2.3"]), WHOLE)], "audio")) == [
        "0-1",
        "1-2",
        "1.3-2.3",
    ]
    for item, region in found:
        size = audio.load(item.content, region, 8000).samples.size
        assert size == round(8000 * (region.end - region.start))


def test_windows_of_a_segment_stay_inside_it(clips):
    item = of(clips["2.3"])
    pairs = [(item, Region("segment", 0.25, 1.5)), (item, Region("segment", 2.0, 2.2, 1))]
    assert keys(Layout(0.5).apply(pairs, "audio")) == [
        "0.25-0.75",
        "0.75-1.25",
        "1-1.5",
        "ch1:2-2.2",
    ]
    pairs = [(item, Region("segment", 1.5, None)), (item, Region("segment", 1.7, 2.3009))]
    assert keys(Layout(0.5).apply(pairs, "audio")) == ["1.5-2", "1.7-2.2", "1.8-2.3"]
    wrong = [(item, Region("segment", 1.5, 9.0)), (item, Region("segment", 7.0, None))]
    found = list(Layout(0.5).apply(wrong, "audio"))
    assert keys(found) == ["failed 1.5-9", "failed 7-end"]
    assert "end 9 s lies beyond the end: it lasts 2.3 s" in found[0].message
    assert {failure.error for failure in found} == {"RegionError"}


def test_windows_of_channels_and_of_overlapping_segments_come_by_their_start(clips):
    pairs = from_paths([clips["2.0"]], "audio", channel="each")
    assert keys(Layout(1.0).apply(pairs, "audio")) == ["ch0:0-1", "ch1:0-1", "ch0:1-2", "ch1:1-2"]
    item = of(clips["2.3"], site="A")
    pairs = [(item, Region("segment", a, b)) for a, b in ((0, 2), (0.25, 1.25), (0.5, 1.5))]
    found = keys(Layout(0.5).apply(pairs, "audio"))
    assert found == ["0-0.5", "0.25-0.75", "0.5-1", "0.75-1.25", "1-1.5", "1.5-2"]
    other = of(clips["2.3"], site="B")
    pairs = [(item, Region("segment", 0.0, 1.0)), (other, Region("segment", 0.5, 1.5))]
    *_, clash, last = Layout(0.5).apply(pairs, "audio")
    assert (clash[0].metadata, clash[1].key) == ({"site": "B"}, "0.5-1#2")
    assert (last[0].metadata, last[1].key) == ({"site": "B"}, "1-1.5")


def test_the_same_item_twice_is_divided_twice(clips):
    pairs = from_objects([clips["2.0"], clips["2.0"]], "audio")
    assert keys(Layout(1.0).apply(pairs, "audio")) == ["0-1", "1-2"] * 2
    item = of(clips["2.0"])
    pairs = [(item, Region("segment", a, a + 1)) for a in (1.0, 0.0, 1.0)]
    assert keys(Layout(1.0).apply(pairs, "audio")) == ["1-2", "0-1", "1-2"]


def test_what_is_a_window_already_stays_one(clips):
    pairs = [(of(clips["2.0"]), Region("window", 0.1, 1.9)), (of(clips["2.0"]), Region("summary"))]
    assert list(Layout(1.0).apply(pairs, "audio")) == pairs


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path, clips):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    empty = written(tmp_path / "empty.wav", np.zeros((0, 1)), 8000)
    pairs = [
        (of(tmp_path / "bad.wav"), WHOLE),
        (of(tmp_path / "gone.wav"), Region(channel=1)),
        Failure("x", "whole", "SourceError", "as it came"),
        (of(empty), WHOLE),
        (of(clips["0.5"]), WHOLE),
    ]
    *failed, (item, _) = Layout(1.0).apply(pairs, "audio")
    assert [(failure.error, failure.region) for failure in failed] == [
        ("DecodeError", "whole"),
        ("DecodeError", "ch1:whole"),
        ("SourceError", "whole"),
        ("EmptyItem", "whole"),
    ]
    assert item.content == clips["0.5"]


def test_a_truncated_recording_gives_what_is_there_and_says_so(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(size=64_000, data=b"\x01\x02\x03\x02" * 8_000))
    failure, *found = Layout(0.4).apply([(of(path), WHOLE)], "audio")
    assert keys([failure]) == ["failed 1-end"]
    assert "holds 16000 frames of the 32000 it promises" in failure.message
    assert keys(found) == ["0-0.4", "0.4-0.8", "0.6-1"]
    assert all(
        isinstance(c, audio.Clip) for c in audio.load_many(path, [r for _, r in found], 16000)
    )


def test_arrays_have_windows_if_they_have_a_rate():
    values = noise(8000, 1.0)[:, 0]
    assert keys(Layout(0.5).apply(from_objects((values, 8000), "audio"), "audio")) == [
        "0-0.5",
        "0.5-1",
    ]
    assert keys(Layout(0.5).apply(from_objects(values, "audio"), "audio", 16000)) == ["0-0.5"]
    (failure,) = Layout(0.5).apply(from_objects(values, "audio"), "audio")
    assert "an array without a rate" in failure.message


def test_only_what_is_asked_for_is_read(clips):
    def endless():
        while True:
            yield of(clips["2.3"]), WHOLE

    assert len(list(islice(Layout(0.5).apply(endless(), "audio"), 20))) == 20


@pytest.mark.usefixtures("here")
def test_one_recording_is_measured_once(monkeypatch, clips):
    asked = []
    before = audio.info
    monkeypatch.setattr(audio, "info", lambda *a, **b: (asked.append(b), before(*a, **b))[1])
    pairs = [(of(clips["2.3"], n=n), Region("segment", n / 10, 2.0)) for n in range(10)]
    list(Layout(0.5).apply(pairs, "audio"))
    assert len(asked) == 1


@pytest.mark.usefixtures("here")
def test_a_guessed_length_is_counted_only_if_it_is_needed(monkeypatch, tmp_path):
    path = encoded(tmp_path / "a.mp3", "libmp3lame", 44100, noise(44100, 2, 2), write_xing="0")
    exact = audio.info(path, exact=True).seconds
    assert audio.info(path).seconds != exact
    found = [region for _, region in Layout(0.5).apply([(of(path), WHOLE)], "audio")]
    assert found[-1].end == round(exact, 6)
    assert all(isinstance(clip, audio.Clip) for clip in audio.load_many(path, found, 16000))
    asked = []
    before = audio.info
    monkeypatch.setattr(audio, "info", lambda *a, **b: (asked.append(b), before(*a, **b))[1])
    list(Layout(0.5).apply([(of(path), Region("segment", 0.5, 1.5))], "audio"))
    assert not any(given["exact"] for given in asked)
    (failure,) = Layout(0.5).apply([(of(path), Region("segment", 0.5, 9.0))], "audio")
    assert "lies beyond the end" in failure.message


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 3000), st.integers(1, 3000))
def test_windows_of_a_recording_are_all_there(frames, window, hop):
    content = wav(data=np.resize(np.int16([513, 514]), frames).tobytes())
    layout = Layout(window / 1000, max(hop, frames // 160) / 1000)
    regions = [region for _, region in layout.apply([(Item("a", content), WHOLE)], "audio")]
    size = min(frames, 16 * window)
    sizes = {
        len(clip.samples) if isinstance(clip, audio.Clip) else str(clip)
        for clip in audio.load_many(content, regions, 16000)
    }
    assert sizes == {size}


def test_videos_become_windows(tmp_path):
    path = film(tmp_path / "a.mp4")  # two seconds
    assert video.seconds(path) == pytest.approx(2.0)
    found = list(Layout(0.8).apply([(of(path), WHOLE)], "video"))
    assert keys(found) == ["0-0.8", "0.8-1.6", "1.2-2"]
    assert video.load(path, found[1][1], 4).mean() == pytest.approx(115, abs=8)
    pairs = [(Item("a", np.zeros((5, 4, 4, 3), np.uint8)), WHOLE), (of(tmp_path / "b.mp4"), WHOLE)]
    first, second = Layout(1.0).apply(pairs, "video")
    assert "no seconds to cut at" in first.message
    assert "no such file" in second.message


# ---- tiles


def test_pictures_become_tiles(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))  # 9 x 6
    items = [of(tmp_path / "a.png"), Item("b", PIXELS), Item("c", Image.fromarray(PIXELS))]
    for item in items:
        found = list(Layout(tile=4, overlap=1).apply([(item, WHOLE)], "image"))
        assert keys(found) == [
            f"box:{left},{top},{left + 4},{top + 4}" for top in (0, 2) for left in (0, 3, 5)
        ]
        for _, region in found:
            left, top, right, bottom = region.box
            np.testing.assert_array_equal(
                np.asarray(image.load(item.content, region.box)), PIXELS[top:bottom, left:right]
            )
    assert keys(Layout(tile=100).apply([(items[0], WHOLE)], "image")) == ["box:0,0,9,6"]
    box = Region("box", box=(1, 1, 6, 4))
    assert keys(Layout(tile=3).apply([(items[0], box)], "image")) == ["box:1,1,4,4", "box:3,1,6,4"]


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    pairs = [(Item("a", b"no picture"), WHOLE), (of(tmp_path / "gone.png"), WHOLE)]
    found = list(Layout(tile=4).apply(pairs, "image"))
    assert keys(found) == ["failed whole"] * 2
    assert "not an image" in found[0].message


# ---- real recordings


def test_real_recordings():
    folder = shared("librispeech_speakers")
    paths = sorted(folder.rglob("*.flac"))[:4]
    for path in paths:
        pairs = list(Layout(2.0, 0.7).apply([(of(path), WHOLE)], "audio"))
        regions = [region for _, region in pairs]
        assert abs(regions[-1].end - audio.info(path).seconds) < 1e-3
        for region, clip in zip(regions, audio.load_many(path, regions, 8000), strict=True):
            assert not isinstance(clip, ItemError)
            np.testing.assert_array_equal(clip.samples, audio.load(path, region, 8000).samples)
