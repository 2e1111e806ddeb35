"""Regions, windows and tiles: everything is covered, nothing twice, and nothing drifts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penult.data.regions import WHOLE, Region, frame_at, tiles, windows
from penult.errors import RegionError, UsageError

HALF_MS = 0.0005 + 1e-9


@pytest.mark.parametrize(
    ("region", "key"),
    [
        (WHOLE, "whole"),
        (Region(channel=2), "ch2:whole"),
        (Region("segment", 1.5, 2.25), "1.5-2.25"),
        (Region("window", 1.5, 2.25), "1.5-2.25"),
        (Region("window", 0.0, 10.0, 0), "ch0:0-10"),
        (Region("segment", 1 / 3, None), "0.333333-end"),
        (Region("box", box=(0, 0, 512, 512)), "box:0,0,512,512"),
        (Region("summary"), "summary"),
        (Region("summary", channel=0), "ch0:summary"),
        (Region("summary", 1.5, 2.25, 1), "ch1:summary:1.5-2.25"),
    ],
)
def test_keys(region, key):
    assert region.key == key


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "box"}, "with box None"),
        ({"kind": "window", "box": (0, 0, 1, 1)}, "'window' with box"),
        ({"kind": "box", "box": (0, 0, 1, 1), "start": 0.5}, "no seconds and no channel"),
        ({"kind": "box", "box": (0, 0, 1)}, "four whole numbers"),
        ({"kind": "box", "box": (0, 0, 1, 1.5)}, "four whole numbers"),
        ({"kind": "box", "box": (0, 0, 0, 1)}, "no area"),
        ({"kind": "box", "box": (-1, 0, 5, 1)}, "no area"),
        ({"kind": "box", "box": (0, 5, 5, 4)}, "no area"),
    ],
)
def test_regions_that_cannot_be(arguments, reason):
    with pytest.raises(RegionError, match=reason):
        Region(**arguments)


# ---- windows


@pytest.mark.parametrize(
    ("length", "window", "hop", "wanted"),
    [
        (10, 5, 5, [(0, 5), (5, 10)]),
        (10, 5, 2.5, [(0, 5), (2.5, 7.5), (5, 10)]),
        (11, 5, 5, [(0, 5), (5, 10), (6, 11)]),
        (3.2, 5, 5, [(0, 3.2)]),
        (5, 5, 1, [(0, 5)]),
        (10.0004, 5, 5, [(0, 5), (5, 10)]),  # no phantom of the last half millisecond
        (10.0006, 5, 5, [(0, 5), (5, 10), (5.0006, 10.0006)]),
        (4.9999, 5, 5, [(0, 4.9999)]),
        (12, 2, 5, [(0, 2), (5, 7), (10, 12)]),  # gaps, as asked
        (11, 2, 5, [(0, 2), (5, 7), (9, 11)]),
        (0, 5, 5, []),
    ],
)
def test_windows(length, window, hop, wanted):
    assert list(windows(length, window, hop)) == wanted


def test_ten_hours_do_not_drift():
    found = list(windows(36_000.0, 1.0, 0.1))
    assert len(found) == 359_991
    assert found[123_457] == (12_345.7, 12_346.7)
    assert found[-1] == (35_999.0, 36_000.0)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 60_000_000),
    st.integers(1, 20_000_000),
    st.integers(1, 20_000_000),
)
def test_every_window_is_full_and_everything_is_covered(length, window, hop):
    hop = max(hop, length // 2000)
    found = list(windows(length / 1e6, window / 1e6, hop / 1e6))
    starts = [start for start, _ in found]
    assert found[0][0] == 0
    assert all(a < b for a, b in pairwise(starts))
    if window > length:
        assert found == [(0, length / 1e6)]
        return
    assert {round((end - start) * 1e6) for start, end in found} == {window}
    assert abs(found[-1][1] - length / 1e6) <= HALF_MS
    assert found[-1][1] <= length / 1e6
    assert len(found) == 1 + max(0, math.ceil((length - 500 - window) / hop))
    if hop <= window:
        ends = [end for _, end in found]
        assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000, 256000]),
    st.integers(1, 3_000_000),
    st.sampled_from([0.25, 0.5, 1.0, 0.96, 2.5]),
    st.integers(50_000, 3_000_000),
)
def test_windows_of_whole_samples_all_have_them(rate, frames, window, hop):
    """Also the last one, and also where a start lies exactly between two samples."""
    size, rest = divmod(round(window * 1e6) * rate, 1_000_000)
    for start, end in windows(frames / rate, window, hop / 1e6):
        first, last = frame_at(start, rate), frame_at(end, rate)
        assert last <= frames
        if rest == 0 and frames >= size:
            assert last - first == size
    assert frames - last <= 0.0005 * rate + 1


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (-1, 1), (1e-9, 1), (math.inf, 1), (1, math.nan)])
def test_windows_that_cannot_be(pair):
    with pytest.raises(UsageError, match="must be positive"):
        windows(10, *pair)


# ---- tiles


def test_tiles():
    assert list(tiles(1000, 512, 512, 0)) == [(0, 0, 512, 512), (488, 0, 1000, 512)]
    assert list(tiles(300, 200, 512, 64)) == [(0, 0, 300, 200)]
    assert list(tiles(4, 4, 2, 1))[:4] == [(0, 0, 2, 2), (1, 0, 3, 2), (2, 0, 4, 2), (0, 1, 2, 3)]
    for size, overlap in ((0, 0), (5, 5), (5, -1), (-5, 0)):
        with pytest.raises(UsageError, match="overlap"):
            tiles(10, 10, size, overlap)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.data())
def test_every_pixel_lies_in_a_tile(width, height, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = list(tiles(width, height, size, overlap))
    assert len(set(found)) == len(found)
    across, down = (1 + max(0, math.ceil((n - size) / (size - overlap))) for n in (width, height))
    assert len(found) == across * down
    seen = set()
    for left, top, right, bottom in found:
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        assert Region("box", box=(left, top, right, bottom))
        seen |= {(x, y) for x in range(left, right) for y in range(top, bottom)}
    assert seen == {(x, y) for x in range(width) for y in range(height)}
