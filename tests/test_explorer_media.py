"""The explorer's media by HTTP: sounds, pictures, frames of rows; against soundfile and Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from test_explorer_rows import Page, made
from test_media import film

RATE = 250_000  # of ultrasound
STEREO = np.random.default_rng(5).integers(-30_000, 30_000, (RATE, 2)).astype(np.int16)
LONG = np.random.default_rng(6).integers(-9_000, 9_000, 8_000 * 150).astype(np.int16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("media")
    soundfile.write(place / "bat.wav", STEREO, RATE, subtype="PCM_16")
    soundfile.write(place / "long.flac", LONG, 8000, subtype="PCM_16")
    soundfile.write(place / "gone.wav", LONG[:8000], 8000)
    (place / "hostile.wav").write_bytes(b"RIFF\xff\xff\xff\x7fWAVEfmt " + bytes(range(200)))
    (place / "secret.txt").write_text("not for the page")
    down, across = np.mgrid[0:300, 0:1200]
    waves = [np.sin(across / 90) * np.cos(down / part) for part in (40, 60, 80)]
    picture = (127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)
    Image.fromarray(picture).save(place / "wide.png")
    Image.fromarray(picture[:100, :80]).save(place / "small.tif")
    bomb = Image.new("1", (30_000, 30_000))
    bomb.save(place / "bomb.png")
    (place / "page.png").write_text("<html><script>alert(1)</script></html>")
    film(place / "film.mp4")
    return place


def sound_rows(folder: Path) -> list[dict[str, Any]]:
    bat = str(folder / "bat.wav")
    return [
        {"id": bat, "region": "ch1:0.25-0.5", "kind": "segment", "channel": 1,
         "start": 0.25, "end": 0.5},
        {"id": bat, "region": "0-0.1", "kind": "window", "start": 0.0, "end": 0.1},
        {"id": str(folder / "long.flac"), "region": "whole", "start": 0.0, "end": 150.0},
        {"id": str(folder / "moved.wav"), "region": "whole", "start": 0.0, "end": 1.0},
        {"id": "sha256:" + "0" * 64, "region": "whole", "start": 0.0, "end": 1.0},
        {"id": str(folder / "hostile.wav"), "region": "whole", "start": 0.0, "end": 1.0},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sounds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("sounds") / "s.lance"
    rows = [{"size": 1, "mtime_ns": 1, "channel": None, **row} for row in sound_rows(folder)]
    with closing(Page(made(path, "audio", rows))) as page:
        yield page


@pytest.fixture(scope="module")
def pictures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("pictures") / "p.lance"
    box = {"region": "box:100,50,400,250", "kind": "box"}
    rows = [
        {"id": str(folder / "wide.png"), **box},
        *({"id": str(folder / name)} for name in ("wide.png", "small.tif", "bomb.png", "page.png")),
    ]
    with closing(Page(made(path, "image", rows))) as page:
        yield page


def fetched(page: Page, kind: str, id: object, region: str = "whole", **query: Any) -> Any:
    query |= {"id": str(id), "region": region}
    return page.client.get(f"/media/{kind}", params=query)


def samples(answer: Any) -> tuple[np.ndarray, int]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-content-type-options"] == "nosniff"
    with soundfile.SoundFile(io.BytesIO(answer.content)) as file:
        assert file.subtype == "PCM_16" and file.channels == 1
        return file.read(dtype="int16"), file.samplerate


def test_a_region_has_the_samples_of_its_channel_at_its_rate(sounds: Page, folder: Path) -> None:
    answer = fetched(sounds, "audio", folder / "bat.wav", "ch1:0.25-0.5")
    found, rate = samples(answer)
    assert rate == RATE and float(answer.headers["x-start"]) == 0.25
    np.testing.assert_array_equal(found, STEREO[RATE // 4 : RATE // 2, 1])
    answer = fetched(sounds, "audio", folder / "bat.wav", "ch1:0.25-0.5", before=0.1, after=60)
    assert float(answer.headers["x-start"]) == 0.15
    np.testing.assert_array_equal(samples(answer)[0], STEREO[round(0.15 * RATE) :, 1])
    mixed = samples(fetched(sounds, "audio", folder / "bat.wav", "0-0.1", before=5))[0]
    mean = STEREO[: RATE // 10].astype(float).mean(axis=1)
    assert np.abs(mixed - mean).max() <= 0.5


def test_no_more_than_two_minutes(sounds: Page, folder: Path) -> None:
    found, rate = samples(fetched(sounds, "audio", folder / "long.flac"))
    np.testing.assert_array_equal(found, LONG[: 120 * rate])
    assert fetched(sounds, "audio", folder / "long.flac", before=61).status_code == 400


def test_ranges_as_browsers_ask_for_them(sounds: Page, folder: Path) -> None:
    query = {"id": str(folder / "bat.wav"), "region": "0-0.1"}
    whole = sounds.client.get("/media/audio", params=query)
    assert whole.headers["accept-ranges"] == "bytes"

    def part(range: str) -> Any:
        return sounds.client.get("/media/audio", params=query, headers={"range": range})

    size = len(whole.content)
    for range, begin, end in (
        ("bytes=0-", 0, size), ("bytes=10-19", 10, 20), ("bytes=-7", size - 7, size),
        (f"bytes={size - 1}-{size + 50}", size - 1, size),
    ):  # fmt: skip
        answer = part(range)
        assert (answer.status_code, answer.content) == (206, whole.content[begin:end])
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for range in (f"bytes={size}-", "bytes=20-10", "bytes=-0"):
        answer = part(range)
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{size}"
    assert part("bytes=0-1,4-5").content == whole.content
    assert part("lines=1").content == whole.content
    known = {"if-none-match": whole.headers["etag"]}
    answer = sounds.client.get("/media/audio", params=query, headers=known)
    assert answer.status_code == 304 and not answer.content
    other = fetched(sounds, "audio", folder / "bat.wav", "ch1:0.25-0.5")
    assert other.headers["etag"] != whole.headers["etag"]


@pytest.mark.parametrize(
    ("id", "region"),
    [("/etc/passwd", "whole"), ("secret.txt", "whole"), ("bat.wav", "whole"), ("gone.wav", "whole"),
     ("long.flac/../secret.txt", "whole"), ("bat.wav\0", "0-0.1"), ("bat.wav", "0-0.1' OR '1'='1")],
)  # fmt: skip
def test_what_is_no_row_is_not_there(sounds: Page, folder: Path, id: str, region: str) -> None:
    for kind in ("audio", "image", "frame"):
        answer = fetched(sounds, kind, folder / id, region)
        assert answer.status_code == 404
        assert "no such row" in answer.json()["error"]["message"]


def test_files_that_cannot_be_read_are_told(sounds: Page, folder: Path) -> None:
    every = [sounds.get("/api/row", row=number) for number in range(6)]
    rows = {row["id"]: row for row in every}
    moved = rows[str(folder / "moved.wav")]["media"]
    assert moved["url"] is None and "penult relocate" in moved["error"]
    array = rows["sha256:" + "0" * 64]["media"]
    assert array["url"] is None and "bytes or an array" in array["error"]
    assert rows[str(folder / "hostile.wav")]["media"]["error"]
    for name in ("moved.wav", "hostile.wav"):
        answer = fetched(sounds, "audio", folder / name)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    for kind in ("image", "frame"):
        answer = fetched(sounds, kind, folder / "bat.wav", "0-0.1")
        assert answer.status_code == 400 and "are audio" in answer.json()["error"]["message"]
    assert samples(fetched(sounds, "audio", folder / "bat.wav", "0-0.1"))[1] == RATE  # it lives


def test_facts_of_a_sound(sounds: Page, folder: Path) -> None:
    keys = sounds.explorer.rows.keys(range(6))
    row = sounds.get("/api/row", row=keys.index((str(folder / "bat.wav"), "ch1:0.25-0.5")))
    media = row["media"]
    assert (media["kind"], media["rate"], media["seconds"]) == ("audio", RATE, 1.0)
    assert (media["start"], media["end"], row["channel"]) == (0.25, 0.5, 1)
    assert samples(sounds.client.get(media["url"]))[0].size == RATE // 4
    assert "changed since" in {one["title"]: one["value"] for one in row["origin"]}["file"]


def test_pictures_are_scaled_and_never_the_file_itself(pictures: Page, folder: Path) -> None:
    keys = pictures.explorer.rows.keys(range(5))
    row = pictures.get("/api/row", row=keys.index((str(folder / "wide.png"), "box:100,50,400,250")))
    media = row["media"]
    assert (media["width"], media["height"], media["box"]) == (1200, 300, [100, 50, 400, 250])
    answer = fetched(pictures, "image", folder / "wide.png", "box:100,50,400,250", size=400)
    assert answer.headers["content-type"] == "image/jpeg"
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.size == (400, 100)
    with Image.open(folder / "wide.png") as whole:
        expected = np.asarray(whole.resize((400, 100), Image.Resampling.LANCZOS), float)
    assert np.abs(np.asarray(shown, float) - expected).mean() < 3  # by JPEG
    answer = fetched(pictures, "image", folder / "small.tif", size=4096)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(folder / "small.tif") as whole:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), whole)
    for name in ("bomb.png", "page.png"):
        answer = fetched(pictures, "image", folder / name)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
        assert b"<script>" not in answer.content
    assert fetched(pictures, "image", folder / "wide.png", size=0).status_code == 400
    words = pictures.post("/api/search", 400, region={"row": 0, "start": 0, "end": 1})
    assert "no seconds" in words


def test_frames_of_a_video(folder: Path, tmp_path: Path) -> None:
    """Frame i of the film, at i / 10 s, is grey of the value 10 i."""
    id = str(folder / "film.mp4")
    row = {"id": id, "region": "1-2", "kind": "window", "start": 1.0, "end": 2.0}
    with closing(Page(made(tmp_path / "v.lance", "video", [row]))) as page:
        media = page.get("/api/row", row=0)["media"]
        assert media["seconds"] == pytest.approx(2.0) and len(media["frames"]) == 8
        assert media["url"] == media["frames"][0]
        for at, grey in ((0.0, 0), (0.55, 50), (1.25, 120), (99.0, 190)):
            answer = fetched(page, "frame", id, "1-2", at=at)
            assert answer.status_code == 200, answer.text
            shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
            assert shown.mean() == pytest.approx(grey, abs=4)


def test_texts(tmp_path: Path) -> None:
    text = "the owl & <b>the</b> tit"
    rows = [
        {"id": "sha256:aa", "region": "chars:4-7", "kind": "window", "text": text},
        {"id": "sha256:bb", "text": text},
    ]
    with closing(Page(made(tmp_path / "t.lance", "text", rows))) as page:
        found = [page.get("/api/row", row=number) for number in (0, 1)]
        assert [one["media"]["text"] for one in found] == ["owl", text]
        assert [one["text"] for one in found] == ["owl", text]
        assert [one["text"] for one in page.get("/api/rows", rows="0,1")["rows"]] == ["owl", text]
        assert found[0]["media"]["url"] is None and found[0]["media"]["error"] is None
