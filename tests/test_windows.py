"""Windows and tiles against tables made by hand: ends, overlaps, the last one, channels, order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from penult.data.items import Failure, Item
from penult.data.regions import Region, frame_at, tiles, windows
from penult.data.windows import Layout, parse_seconds
from penult.errors import RegionError, UsageError
from test_media import wav

RATE = 1000


def item(seconds: float = 3.0, id: str = "a", **metadata: object) -> Item:
    return Item(id, np.zeros(round(seconds * RATE), np.float32), metadata)


def keys(found: object) -> list[str]:
    return [f"{e.error} {e.region}" if isinstance(e, Failure) else e[1].key for e in found]  # type: ignore[attr-defined]


def cut(layout: Layout, *regions: Region, seconds: float = 3.0, modality: str = "audio") -> list:
    one = item(seconds)
    return keys(layout.apply([(one, region) for region in regions], modality, RATE))


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "expected"),
    [
        (3.0, 1.0, None, ["0-1", "1-2", "2-3"]),
        (3.0, 1.0, 2.0, ["0-1", "2-3"]),
        (3.0, 2.0, 0.5, ["0-2", "0.5-2.5", "1-3"]),
        (3.0, 3.0, 0.1, ["0-3"]),
        (2.5, 1.0, None, ["0-1", "1-2", "1.5-2.5"]),
        (0.4, 1.0, None, ["0-0.4"]),
        (1.001, 1.0, None, ["0-1", "0.001-1.001"]),
    ],
)
def test_whole_recordings(
    seconds: float, window: float, hop: float | None, expected: list[str]
) -> None:
    assert cut(Layout(window, hop), Region(), seconds=seconds) == expected
    one = item(seconds)
    found = list(Layout(window, hop).apply([(one, Region())], "audio", RATE))
    assert {(entry[0] is one, entry[1].kind) for entry in found} == {(True, "window")}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.5, 2.0, ["0.5-1.5", "1-2"]),
        (0.5, None, ["0.5-1.5", "1.5-2.5", "2-3"]),
        (None, 1.2, ["0-1", "0.2-1.2"]),
        (2.5, 2.75, ["2.5-2.75"]),
        (2.0, 3.001, ["2-3"]),  # a millisecond late, as decoding allows, ends with the recording
        (2.0, 3.0015, ["RegionError 2-3.0015"]),
        (2.9999, None, ["2.9999-3"]),
        (2.999999, None, ["2.999999-3"]),  # the last microsecond
        (3.0, None, ["RegionError 3-end"]),  # it starts where nothing is left
        (3.5, 4.0, ["RegionError 3.5-4"]),
    ],
)
def test_segments(start: float | None, end: float | None, expected: list[str]) -> None:
    assert cut(Layout(1.0), Region("segment", start, end)) == expected


def test_what_lies_beyond_is_named() -> None:
    late = [Region("segment", 1.0, 9.0), Region("segment", 4.0, 9.0)]
    found = list(Layout(1.0).apply([(item(), one) for one in late], "audio", RATE))
    assert [one.message for one in found] == [
        "end 9 s lies beyond the end: it lasts 3 s",
        "start 4 s lies beyond the end: it lasts 3 s",
    ]


@pytest.mark.usefixtures("here")
def test_videos_may_end_a_tenth_of_a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    from penult.data import video

    monkeypatch.setattr(video, "seconds", lambda content: 3.0)
    assert cut(Layout(1.0), Region("segment", 2.0, 3.09), modality="video") == ["2-3"]
    found = cut(Layout(1.0), Region("segment", 2.0, 3.11), modality="video")
    assert found == ["RegionError 2-3.11"]


def test_channels_are_kept() -> None:
    two = Item("a", np.zeros((2, 3 * RATE), np.float32), {})
    regions = [(two, Region(channel=1)), (two, Region("segment", 0.5, 1.0, 0))]
    found = keys(Layout(2.0).apply(regions, "audio", RATE))
    assert found == ["ch1:0-2", "ch0:0.5-1", "ch1:1-3"]


def test_parts_come_by_start_then_end_then_as_given() -> None:
    parts = [
        Region("summary"),  # no start and no end: from the beginning, to the very end
        Region("window", 0.0, 2.0),
        Region("window", 0.0, 1.0),
        Region("window", 0.0, 1.0, 1),
        Region("window", 0.5, 1.0),
    ]
    assert cut(Layout(1.0), *parts) == ["0-1", "ch1:0-1", "0-2", "summary", "0.5-1"]
    ends = [Region("window", 1.0, None), Region("window", 1.0, 2.0), Region("window", 1.5, None)]
    assert cut(Layout(1.0), *ends) == ["1-2", "1-end", "1.5-end"]


def test_segments_that_overlap_share_windows() -> None:
    segments = [Region("segment", 0.0, 2.0), Region("segment", 1.0, 3.0)]
    assert cut(Layout(1.0), *segments) == ["0-1", "1-2", "2-3"]
    assert cut(Layout(1.0, 0.5), *segments) == ["0-1", "0.5-1.5", "1-2", "1.5-2.5", "2-3"]


def test_other_metadata_is_another_annotation_of_a_shared_window_only() -> None:
    content = item().content
    one, other = Item("a", content, {"site": "A"}), Item("a", content, {"site": "B"})
    pairs = [(one, Region("segment", 0.0, 2.0)), (other, Region("segment", 1.0, 3.0))]
    found = list(Layout(1.0).apply(pairs, "audio", RATE))
    assert keys(found) == ["0-1", "1-2", "1-2#2", "2-3"]
    assert [found[at][0].metadata["site"] for at in range(4)] == ["A", "A", "B", "B"]
    named = Item("a", content, {"site": "B", "Selection": 7})
    found = list(Layout(1.0).apply([pairs[0], (named, pairs[1][1])], "audio", RATE))
    assert keys(found) == ["0-1", "1-2", "1-2#7", "2-3"]
    apart = [(one, Region("segment", 0.0, 1.0)), (other, Region("segment", 1.0, 2.0))]
    assert keys(Layout(1.0).apply(apart, "audio", RATE)) == ["0-1", "1-2"]


def test_the_same_or_an_earlier_segment_is_given_anew() -> None:
    first, second = Region("segment", 0.0, 1.0), Region("segment", 1.0, 2.0)
    assert cut(Layout(1.0), first, first) == ["0-1", "0-1"]
    assert cut(Layout(1.0), second, first) == ["1-2", "0-1"]
    assert cut(Layout(1.0), first, second, second) == ["0-1", "1-2", "1-2"]
    longer = Region("segment", 0.0, 2.0)  # the same start is no repetition
    assert cut(Layout(1.0), first, longer) == ["0-1", "1-2"]


def test_items_are_told_apart_by_name_and_content() -> None:
    content = item().content
    pairs = [(Item(id, content), Region("segment", 0.0, 1.0)) for id in "ab"]
    assert keys(Layout(1.0).apply(pairs, "audio", RATE)) == ["0-1"] * 2
    short, long = item(1.0, "a"), item(2.0, "a")
    assert keys(Layout(1.0).apply([(short, Region()), (long, Region())], "audio", RATE)) == [
        "0-1", "0-1", "1-2",
    ]  # fmt: skip


def test_equal_bytes_and_paths_are_one_recording(tmp_path: Path) -> None:
    """Segments of one file whose rows name it anew share windows, as those of one object do."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(2000), RATE)
    copies = (
        [Path(str(path)), Path(str(path))],
        [path.read_bytes(), bytes(bytearray(path.read_bytes()))],
    )
    for one, other in copies:
        pairs = [(Item("a", one), Region("segment", 0.0, 2.0)),
                 (Item("a", other), Region("segment", 1.0, 2.0))]  # fmt: skip
        assert keys(Layout(1.0).apply(pairs, "audio")) == ["0-1", "1-2"]


def test_a_truncated_recording_names_what_is_lost() -> None:
    """16,000 frames of 1 s are there and 32,000 are promised."""
    one = Item("a", wav(size=64_000, data=b"\x01\x02" * 16_000))
    found = list(Layout(0.5).apply([(one, Region())], "audio"))
    assert sorted(keys(found)) == ["0-0.5", "0.5-1", "DecodeError 1-end"]
    inside = Region("segment", 0.0, 0.5)  # which it is not cut short for
    assert keys(Layout(0.5).apply([(one, inside)], "audio")) == ["0-0.5"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3us", 3e-6), ("3µs", 3e-6), ("7ms", 7e-3), ("2m", 120), ("2min", 120), ("1.5h", 5400),
     ("0.000001", 1e-6), ("10.", 10), ("1 S", 1)],
)  # fmt: skip
def test_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["0.9us", "0us", "9" * 400])
def test_lengths_that_nothing_can_be_cut_at(text: str) -> None:
    with pytest.raises(UsageError, match="is no length of time to cut at"):
        parse_seconds(text)


def test_the_shortest_window() -> None:
    Layout(1e-6, 1e-6)
    with pytest.raises(UsageError, match="a window of 9e-07 s"):
        Layout(9e-7)
    with pytest.raises(UsageError, match="a hop of 0 s"):
        Layout(1.0, 0.0)


@pytest.mark.parametrize(("over", "expected"), [(0.0004, 1), (0.0005, 1), (0.000501, 2), (0.1, 2)])
def test_what_is_left_of_half_a_millisecond_is_no_window(over: float, expected: int) -> None:
    assert len(list(windows(1.0 + over, 1.0, 1.0))) == expected


@pytest.mark.parametrize(
    ("size", "overlap", "across"),
    [
        (4, 0, [0, 4, 6]),
        (4, 2, [0, 2, 4, 6]),
        (4, 1, [0, 3, 6]),
        (5, 0, [0, 5]),
        (9, 0, [0, 1]),
        (10, 9, [0]),
    ],
)
def test_tiles_of_a_picture(size: int, overlap: int, across: list[int]) -> None:
    """10 pixels wide and 3 high, from 2, 1 in the larger one."""
    expected = [(left, 0, left + size, 3) for left in across]
    assert list(tiles(10, 3, size, overlap)) == expected
    one = Item("a", np.zeros((8, 14, 3), np.uint8))
    box = Region("box", box=(2, 1, 12, 4))
    found = [
        region for _, region in Layout(tile=size, overlap=overlap).apply([(one, box)], "image")
    ]
    assert [region.box for region in found] == [(a + 2, 1, b + 2, 4) for a, _, b, _ in expected]
    assert {(r.kind, r.start, r.end, r.channel) for r in found} == {("box", None, None, None)}
    whole = [(one, Region())]
    assert len(list(Layout(tile=size, overlap=overlap).apply(whole, "image"))) == len(
        list(tiles(14, 8, size, overlap))
    )


def test_the_nearest_frame() -> None:
    assert [frame_at(s, 1000) for s in (0.0, 0.0004, 0.0005, 0.0014, 0.0015, 1.0)] == [
        0, 0, 1, 1, 2, 1000,
    ]  # fmt: skip
    assert frame_at(1 / 3, 44_100) == 14_700


@pytest.mark.parametrize(
    ("key", "kind", "expected"),
    [
        ("whole", "whole", Region()),
        ("ch2:whole", "whole", Region(channel=2)),
        ("1.5-2.25", "segment", Region("segment", 1.5, 2.25)),
        ("ch1:0-end", "window", Region("window", 0.0, None, 1)),
        ("ch1:summary:1.5-2.25", "summary", Region("summary", 1.5, 2.25, 1)),
        ("summary", "summary", Region("summary")),
        ("box:1,2,30,40", "box", Region("box", box=(1, 2, 30, 40))),
    ],
)
def test_keys_are_read_back(key: str, kind: str, expected: Region) -> None:
    assert Region.of_key(key, kind) == expected and expected.key == key


@pytest.mark.parametrize(
    ("key", "kind"), [("box:1,2,3,4", "window"), ("box:1,2,3", "box"), ("ch:0-1", "window")]
)
def test_keys_that_no_region_has(key: str, kind: str) -> None:
    with pytest.raises(RegionError, match="as a collection names them"):
        Region.of_key(key, kind)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"channel": -1}, "channel -1 is negative"),
        ({"kind": "segment", "start": -0.1}, "start -0.1 s lies before the beginning"),
        ({"kind": "segment", "start": 1.0, "end": 1.0}, "end 1.0 s is not after start 1.0 s"),
        ({"kind": "segment", "end": 0.0}, "end 0.0 s is not after start 0.0 s"),
        ({"kind": "box", "box": (2, 0, 2, 1)}, "no area"),
        ({"kind": "box", "box": (0, 1, 2, 1)}, "no area"),
        ({"kind": "box", "box": (0, -1, 2, 1)}, "no area"),
        ({"kind": "box", "box": (0, 0, 1, 1), "end": 1.0}, "no seconds and no channel"),
        ({"kind": "box", "box": (0, 0, 1, 1), "channel": 0}, "no seconds and no channel"),
    ],
)
def test_regions_that_cannot_be(arguments: dict, reason: str) -> None:
    with pytest.raises(RegionError, match=reason):
        Region(**arguments)


def test_regions_on_the_edge_of_what_can_be() -> None:
    assert Region(channel=0).key == "ch0:whole"
    assert Region("segment", 0.0, 1e-6).key == "0-0.000001"
    assert Region("box", box=(0, 0, 1, 1)).key == "box:0,0,1,1"
