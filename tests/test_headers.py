"""Headers that are read to cut windows, tiles, pages and channels: in a worker, so that a file that
crashes its parser, holds it up or asks for all memory takes no run with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from conftest import RATE, clip, make_hostile
from penult.collection.collection import Collection
from penult.data import audio, image
from penult.data.decode import Decoding
from penult.data.messages import _header_of
from penult.data.sources import from_objects, from_paths
from penult.data.windows import Layout
from penult.data.workers import headers_in_workers
from test_cli import ask

BAD = ("crash", "hang", "alloc")
SAYS = {"crash": "SIGSEGV", "hang": "longer than 4 s", "alloc": "memory"}


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile parsers in workers; in this process none may be asked at all."""
    make_hostile(tmp_path, monkeypatch, "audio.info", "image.size", "image.count_pages")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a file is opened in the process of the run")

    monkeypatch.setattr(audio, "open_stream", opened)
    monkeypatch.setattr(image, "_opened", opened)
    monkeypatch.setattr(Image, "open", opened)


def sound(path: Path, number: int) -> None:
    values = np.stack([clip(0.5, number), clip(0.5, number + 100)], axis=1)
    soundfile.write(path, values, RATE)


def picture(path: Path, number: int) -> None:
    values = np.random.default_rng(number).integers(0, 255, (2, 32, 48, 3), np.uint8)
    first, second = map(Image.fromarray, values)
    pages = {"save_all": True, "append_images": [second]} if path.suffix == ".tif" else {}
    first.save(path, **pages)


def folder_of(place: Path, suffix: str, write: Callable[[Path, int], None]) -> Path:
    """Good files around bad ones."""
    place.mkdir()
    for number, name in enumerate(["a", *BAD, "g", "z"]):
        write(place / f"{name}{suffix}", number)
    return place


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zoo import save_image

    return save_image(tmp_path_factory.mktemp("models") / "picture")


@pytest.mark.parametrize(
    ("cut", "suffix", "rows"),
    [
        (["--window", "0.25"], ".wav", 2),
        (["--channel", "each"], ".wav", 2),
        (["--tile", "32"], ".png", 2),
        (["--pages", "each"], ".tif", 2),
    ],
    ids=["windows", "channels", "tiles", "pages"],
)
def test_a_file_whose_header_is_hostile(
    cut: list[str],
    suffix: str,
    rows: int,
    tiny: Path,
    picture_model: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model, write = (tiny, sound) if suffix == ".wav" else (picture_model, picture)
    folder = folder_of(tmp_path / "in", suffix, write)
    request.getfixturevalue("hostile")
    options = ["--time-limit", 4, "--workers", 1, "--engine", "torch", "--memory", "2GB"]
    said = ask("embed", model, folder, "--into", tmp_path / "c.lance", *cut, *options)
    assert said.code == 3, said.err
    assert "Traceback" not in said.out + said.err
    collection = Collection.open(tmp_path / "c.lance")
    found = [Path(row["id"]).name for row in collection.vectors()[0].to_pylist()]
    assert {name: found.count(name) for name in found} == {
        f"{name}{suffix}": rows for name in ("a", "g", "z")
    }
    why = {Path(row["id"]).stem: row["message"] for row in collection.failures().to_pylist()}
    assert set(why) == set(BAD)
    for name, words in why.items():
        assert SAYS[name] in words, words


def layouts() -> list[tuple[str, Layout, str]]:
    return [
        ("audio", Layout(0.2, 0.1), ".wav"),
        ("image", Layout(tile=20, overlap=4), ".png"),
        ("image", Layout(pages="each"), ".tif"),
        ("image", Layout(tile=20, pages="each"), ".tif"),
    ]


def test_the_same_regions_as_in_this_process(tmp_path: Path) -> None:
    """Also of files that are broken, cut off, no sound at all, bytes and arrays."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        sound(folder / f"{number}.wav", number)
        picture(folder / f"{number}.png", number)
        picture(folder / f"{number}.tif", number)
    for suffix in (".wav", ".png", ".tif"):
        (folder / f"text{suffix}").write_text("no such thing")
        (folder / f"empty{suffix}").touch()
        whole = (folder / f"1{suffix}").read_bytes()
        (folder / f"torn{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
    describe = headers_in_workers(Decoding(workers=2))
    for modality, layout, suffix in layouts():
        files = sorted(folder.glob(f"*{suffix}"))
        assert len(files) == 15
        things = [*files, files[2].read_bytes()]
        if suffix == ".wav":
            things.append(np.zeros((1, RATE), np.float32))  # type: ignore[arg-type]
        here = list(layout.apply(from_objects(things, modality), modality, RATE))
        there = list(layout.apply(from_objects(things, modality), modality, RATE, None, describe))
        assert [repr(one) for one in here] == [repr(one) for one in there]
        assert len(here) > 15


def test_boxes_that_are_fractions_and_channels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_text("no picture")
    sound(tmp_path / "a.wav", 1)
    (tmp_path / "b.wav").write_text("no sound")
    rows = ["a.png,0.25,0.5,0.75,1", "b.png,0,0,0.5,1", "a.png,,,,", "a.png,0,0,0.001,0.001"]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(["path,left,top,right,bottom", *rows]) + "\n")
    describe = headers_in_workers(Decoding(workers=1))
    sounds = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for paths, modality, channel in ((table, "image", None), (sounds, "audio", "each")):
        here, there = (
            list(from_paths(paths, modality, channel, **how))  # type: ignore[arg-type]
            for how in ({}, {"describe": describe})
        )
        assert [repr(one) for one in here] == [repr(one) for one in there]
    boxes = [entry[1].box for entry in from_paths(table, "image") if isinstance(entry, tuple)]
    assert boxes == [(12, 16, 36, 32), None]


def test_no_worker_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "a.wav", 1)
    monkeypatch.setattr("penult.data.workers._start_process", None)
    describe = headers_in_workers(Decoding(workers=0))
    pairs = from_paths(str(tmp_path / "a.wav"), "audio")
    assert len(list(Layout(0.25).apply(pairs, "audio", describe=describe))) == 2


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([16000, 1, 10, 0.1, True, 0], "length"),
        ([16000, 1, 10, float("nan"), True, 0, ""], "length"),
        ([16000, 1, -1, 0.1, True, 0, ""], "sound"),
        ([16000, "1", 10, 0.1, True, 0, ""], "sound"),
        ([16000, 1, 10, 0.1, 1, 0, ""], "sound"),
        ([0, 5], "size"),
        ([5, 1 << 60], "size"),
        ([5], "size"),
        (0, "pages"),
        (True, "pages"),
        ("3", "pages"),
        (None, "length"),
    ],
)
def test_what_a_worker_that_a_file_owns_says_of_a_header(values: object, part: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        _header_of(values, part, "audio")  # type: ignore[arg-type]


def test_headers_of_bytes_hold_up_nothing(tmp_path: Path) -> None:
    """More items than are read ahead, some of them asked for nothing, in their order."""
    sound(tmp_path / "a.wav", 1)
    content = (tmp_path / "a.wav").read_bytes()
    for number in range(40):
        shutil.copy(tmp_path / "a.wav", tmp_path / f"{number:02}.wav")
    things = [*sorted(tmp_path.glob("??.wav")), content, *sorted(tmp_path.glob("a.wav"))]
    describe = headers_in_workers(Decoding(workers=1))
    pairs = from_objects(things, "audio")
    cut = list(Layout(0.25).apply(pairs, "audio", describe=describe))
    assert [one[0].id for one in cut[::2]] == [item.id for item, _ in pairs]  # type: ignore
