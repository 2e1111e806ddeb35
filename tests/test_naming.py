"""The name of an item for a purpose: from its folder, a column, a pattern, or its marks."""

from __future__ import annotations

import pytest

from penult.data.items import namer
from penult.errors import LabelsError


@pytest.mark.parametrize(
    ("by", "id", "name"),
    [
        ("folder", "/data/apple/1.wav", "apple"),
        ("{}_*", "/data/7_jackson_32.wav", "7"),
        ("*_{}_*", "/data/7_jackson_32.wav", "jackson"),
        ("{}_*_*.wav", "/data/7_jackson_32.flac", None),
        ("{}/*/*.flac", "/data/367/293981/a.flac", "367"),
        ("{}.png", "/data/a.b.png", "a.b"),
        ("[{}]*.wav", "/data/[cat] 1.wav", "cat"),
    ],
)
def test_from_the_path(by: str, id: str, name: str | None) -> None:
    assert namer(by, [])(id, {}) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("A", "A"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (None, None),
        (float("nan"), None),
        (" ", None),
    ],
)
def test_from_a_column(value: object, name: str | None) -> None:
    assert namer("site", ["site"])("x", {"site": value}) == name


def test_a_column_wins_over_a_word() -> None:
    assert namer("folder", ["folder"])("/data/apple/1.wav", {"folder": "B"}) == "B"


@pytest.mark.parametrize("by", ["speaker", "{}_{}", "{speaker}_*", "{"])
def test_what_names_nothing(by: str) -> None:
    with pytest.raises(LabelsError, match=r"speaker|needs one \{\}|site"):
        namer(by, ["site"])
