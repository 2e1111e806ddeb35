"""Pictures as files hold them: bit depths, tags, pages, profiles; against numpy's arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import penult
from penult.collection.collection import Collection
from penult.collection.ingest import Coverage
from penult.data import image
from penult.data.regions import Region
from penult.embedding.embedder import Embedder
from penult.errors import DecodeError, EmptyItem, ItemError, RegionError, UsageError
from test_cli import ask

Y, X = np.mgrid[0:60, 0:80]
EIGHT = (X * 3).astype(np.uint8)  # 0..237


def written(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    """A picture as a file's bytes."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def tiff(
    values: np.ndarray, photometric: int = 1, bits: int = 0, extra: int | None = None
) -> bytes:
    """An uncompressed little-endian TIFF of one strip, with these tags."""
    samples = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if bits == 12:  # two values in three bytes
        flat = values.reshape(-1, 2).astype(np.uint32)
        both = flat[:, 0] << 12 | flat[:, 1]
        data = np.stack([both >> 16, both >> 8 & 255, both & 255], 1).astype(np.uint8).tobytes()
    depth = bits or values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: list[tuple[int, list[int]]] = [
        *((256, [values.shape[1]]), (257, [values.shape[0]]), (258, [depth] * samples)),
        *((259, [1]), (262, [photometric]), (273, [0]), (277, [samples])),
        *((278, [values.shape[0]]), (279, [len(data)]), (339, [kind] * samples)),
    ]
    if extra is not None:
        tags = sorted([*tags, (338, [extra])])
    after = 8 + 2 + 12 * len(tags) + 4
    entries, beside = b"", b""
    for tag, content in tags:
        if tag == 279:
            entries += struct.pack("<HHII", tag, 4, 1, content[0])
        elif tag == 273:
            entries += struct.pack("<HHII", tag, 4, 1, 0xFFFFFFFF)
        elif len(content) <= 2:
            entries += struct.pack("<HHI", tag, 3, len(content)) + struct.pack(
                "<HH", *content, *[0] * (2 - len(content))
            )
        else:
            entries += struct.pack("<HHII", tag, 3, len(content), after + len(beside))
            beside += struct.pack(f"<{len(content)}H", *content)
    place = struct.pack("<I", after + len(beside))
    entries = entries.replace(struct.pack("<I", 0xFFFFFFFF), place)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", 0) + beside + data


def shown(content: object, **options: Any) -> np.ndarray:
    """(height, width, 3) as it is decoded."""
    return np.asarray(image.load(content, **options))


def grey(values: np.ndarray) -> np.ndarray:
    """The same value in each colour."""
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (written(EIGHT), EIGHT),
        (written(EIGHT.astype(np.int32), "TIFF"), EIGHT),
        (tiff(EIGHT), EIGHT),
        (tiff(EIGHT, photometric=0), 255 - EIGHT),
        (written((X * 800).astype(np.uint16)), X * 800 >> 8),
        (written((X * 800).astype(np.uint16), "TIFF", compression="tiff_lzw"), X * 800 >> 8),
        (tiff((X * 800).astype(np.uint16)), X * 800 >> 8),
        (tiff((X * 800).astype(np.uint16), photometric=0), 255 - (X * 800 >> 8)),
        (tiff((X * 50).astype(np.uint16), bits=12), X * 50 >> 4),
        (tiff((X / 100).astype(np.float32)), np.rint((X / 100).astype(np.float32) * 255)),
        (tiff((X / 100).astype(np.float32), photometric=0),
         255 - np.rint((X / 100).astype(np.float32) * 255)),
        (written((X * 800).astype(np.int32), "TIFF"), X * 800 >> 8),
        (written(np.zeros((60, 80), np.uint16)), 0 * X),
        (written(np.full((60, 80), 40000, np.uint16)), 0 * X + (40000 >> 8)),
        (b"P5 80 60 4095\n" + (X * 50).astype(">u2").tobytes(),
         np.round(X * 50 / 4095 * 65535).astype(int) >> 8),
        (written(Image.fromarray(X % 7 < 3)), np.where(X % 7 < 3, 255, 0)),
    ],
    ids=["8", "32 small", "tiff 8", "white 8", "16", "16 lzw", "tiff 16", "white 16", "packed 12",
         "float", "white float", "32 of 16", "black", "constant", "pgm 12", "1 bit"],
)  # fmt: skip
def test_grey_of_every_depth_is_what_a_viewer_shows(raw: bytes, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(shown(raw), grey(wanted))


DEEP = np.stack([X * 800, Y * 900, (X + Y) * 400], 2).astype(np.uint16)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)),
         chunk(b"IEND", b"")]
    )  # fmt: skip


def test_colours_of_16_bits_lose_their_lower_byte() -> None:
    for raw in (deep_png(DEEP), tiff(DEEP, photometric=2)):
        np.testing.assert_array_equal(shown(raw), DEEP >> 8)
    np.testing.assert_array_equal(shown(deep_png(0 * DEEP)), 0 * DEEP)  # black is black
    alpha = np.concatenate([DEEP, np.full((60, 80, 1), 65535, np.uint16)], 2)
    np.testing.assert_array_equal(shown(deep_png(alpha)), DEEP >> 8)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (written((X * 50).astype(np.uint16)), DecodeError, "0..3950 fill 12 bits or less of 16"),
        (tiff((X * 3).astype(np.uint16)), DecodeError, "0..237 fill 12 bits"),
        (tiff((X * 50).astype(np.uint16), photometric=0), DecodeError, "0..3950 fill 12 bits"),
        (written((X * 50).astype(np.int32), "TIFF"), DecodeError, "0..3950 fill 12 bits or less"),
        (written((X * 50).astype(np.int32) - 9, "TIFF"), DecodeError, "-9..3941 are neither"),
        (written((X * 9000).astype(np.int32), "TIFF"), DecodeError, "0..711000 are neither 8-bit"),
        (tiff(X.astype(np.float32)), DecodeError, r"float pixels lie in 0..79; give floats"),
        (tiff(np.where(X == 3, np.nan, X / 100).astype(np.float32)), EmptyItem, "not finite"),
        (deep_png(DEEP // 16), DecodeError, "16-bit colours that fill 12 bits or less"),
        (deep_png(DEEP // 256), DecodeError, "16-bit colours that fill 12 bits or less"),
        (tiff(DEEP // 256, photometric=2), DecodeError, "16-bit colours that fill 12 bits or less"),
        (tiff((X / 100).astype(np.float64)[..., None].repeat(3, 2), photometric=2), DecodeError,
         "a TIFF of a kind that Pillow does not read; save it with 8 bits"),
    ],
)  # fmt: skip
def test_grey_whose_range_is_not_told_is_refused_in_words(
    raw: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        image.load(raw)


def test_colours_in_other_modes_are_what_a_viewer_shows() -> None:
    rgb = np.stack([X * 3, Y * 4, X + Y], 2).astype(np.uint8)
    alpha = (X * 3).astype(np.uint8)
    over = np.rint((rgb * (alpha[..., None] / 255.0)) + (255 - alpha[..., None]))
    straight = np.dstack([rgb, alpha])
    premultiplied = np.dstack([np.rint(rgb * (alpha[..., None] / 255.0)), alpha]).astype(np.uint8)
    for raw in (tiff(straight, 2, extra=2), tiff(premultiplied, 2, extra=1), written(straight)):
        assert abs(shown(raw).astype(int) - over).max() <= 2
    half = np.dstack([np.rint(EIGHT * (alpha / 255.0)), alpha]).astype(np.uint8)
    wanted = grey(np.rint(EIGHT * (alpha / 255.0) + 255 - alpha))
    for raw in (tiff(np.dstack([EIGHT, alpha]), 1, extra=2), tiff(half, 1, extra=1)):
        assert abs(shown(raw).astype(int) - wanted.astype(int)).max() <= 2
    clear = written(rgb, transparency=tuple(map(int, rgb[5, 7])))
    one = (rgb == rgb[5, 7]).all(axis=2)
    np.testing.assert_array_equal(shown(clear), np.where(one[..., None], 255, rgb))
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 255  # L* = 100, a* = b* = 0: white
    assert shown(tiff(lab, 8)).min() >= 254
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert abs(shown(written(cmyk, "TIFF"))[0, 0] - [255, 0, 0]).max() <= 1
    assert abs(shown(written(cmyk, "JPEG"))[0, 0].astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("big", ["profile", "texts"])
def test_a_png_with_a_large_profile_or_text_is_a_picture(big: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {"icc_profile": b"\0" * 3_000_000}
    if big == "texts":
        texts = PngInfo()
        texts.add_text("comment", "a" * 3_000_000, zip=True)
        options = {"pnginfo": texts}
    raw = written(EIGHT, **options)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"), Image.open(io.BytesIO(raw)) as opened:
        opened.load()
    np.testing.assert_array_equal(shown(raw), grey(EIGHT))
    with pytest.raises(DecodeError, match="not readable as an image"):
        image.load(raw[:-30])


def exif_of(orientation: int) -> bytes:
    """An orientation, and beside it an x-resolution of -1/0."""
    tags = [
        (0x112, 3, 1, struct.pack("<HH", orientation, 0)),
        (0x11A, 10, 1, struct.pack("<I", 8 + 2 + 24 + 4)),
    ]
    directory = b"".join(struct.pack("<HHI", *head) + value for *head, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, 2)
    return b"Exif\0\0" + head + directory + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)


def test_odd_rationals_in_the_exif_do_not_stop_a_picture_from_being_turned() -> None:
    turns = {
        1: EIGHT, 2: EIGHT[:, ::-1], 3: EIGHT[::-1, ::-1], 4: EIGHT[::-1], 5: EIGHT.T,
        6: np.rot90(EIGHT, -1), 7: np.rot90(EIGHT, 2).T, 8: np.rot90(EIGHT),
    }  # fmt: skip
    for orientation, wanted in turns.items():
        for form in ("PNG", "JPEG", "WEBP"):
            raw = written(EIGHT, form, exif=exif_of(orientation), quality=100)
            got = shown(raw)
            assert got.shape[:2] == wanted.shape
            assert image.size(raw) == wanted.shape[::-1]
            assert abs(got[..., 0].astype(int) - wanted).max() <= 6, (orientation, form)
    broken = written(EIGHT, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(shown(broken), grey(EIGHT))


FRAMES = [np.full((6, 8), value, np.uint8) for value in (10, 100, 200)]


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_each_page_or_frame_can_be_read(form: str, tmp_path: Path) -> None:
    first, *others = (Image.fromarray(frame).convert("RGB") for frame in FRAMES)
    options = {"lossless": True} if form == "WEBP" else {}
    raw = written(first, form, save_all=True, append_images=others, **options)
    (tmp_path / "a").write_bytes(raw)
    for content in (raw, tmp_path / "a"):
        assert image.count_pages(content) == 3
        pages = [image.load(content, page=page) for page in (1, 2, 3)]
        assert [round(float(np.mean(np.asarray(page)))) for page in pages] == pytest.approx(
            [10, 100, 200], abs=3
        )
        np.testing.assert_array_equal(shown(content), np.asarray(pages[0]))
    with pytest.raises(RegionError, match="page 4 is not there: it has 3"):
        image.load(raw, page=4)


def test_smaller_copies_in_a_tiff_and_previews_in_a_jpeg_are_no_pages() -> None:
    first, second, _ = map(Image.fromarray, FRAMES)
    second.encoderinfo = {"tiffinfo": {254: 1}}
    raw = written(first, "TIFF", save_all=True, append_images=[second, Image.fromarray(FRAMES[2])])
    assert image.count_pages(raw) == 2
    assert shown(raw, page=2).max() == 200
    several = written(first, "MPO", save_all=True, append_images=[Image.fromarray(FRAMES[1])])
    assert image.count_pages(several) == 1
    assert image.count_pages(written(EIGHT)) == image.count_pages(b"no picture") == 1


# ---- collections of pictures


class Brightness(nn.Module):
    """Logits from the mean of each colour, one weight layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(pixels.mean(dim=(2, 3)))


def as_pixels(picture: Image.Image) -> torch.Tensor:
    """(3, 16, 16) of floats in 0..1."""
    small = np.asarray(picture.resize((16, 16)), np.float32).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(small / 255))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    classifier = penult.load(Brightness().eval(), preprocess=as_pixels, modality="image")
    return Embedder.from_classifier(classifier, tap="prelogits")


def rows_of(place: Path) -> dict[str, dict[str, Any]]:
    """All rows by region."""
    found = Collection.open(place).reader.scan()
    return {row["region"]: row for batch in found for row in batch.to_pylist()}


def covered_mean(
    boxes: list[tuple[int, int, int, int]], vectors: list[Any], shape: tuple[int, int]
) -> np.ndarray:
    """The mean of vectors, each as often as its box has pixels that no box before it has."""
    covered, total = np.zeros(shape, bool), np.zeros(len(vectors[0]))
    for (left, top, right, bottom), vector in zip(boxes, vectors, strict=True):
        part = covered[top:bottom, left:right]
        total += np.count_nonzero(~part) * np.asarray(vector, np.float64)
        part[:] = True
    return total / np.count_nonzero(covered)


@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 7), (48, 20), (64, 0), (100, 0)])
def test_the_summary_of_tiles_weighs_them_by_the_pixels_that_they_newly_cover(
    embedder: Embedder, tmp_path: Path, tile: int, overlap: int
) -> None:
    picture = np.stack([X * 3, (X * Y) % 256, Y * 4], 2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    place = tmp_path / "c"
    Collection.open(place).add(
        embedder, tmp_path / "a.png", tile=tile, overlap=overlap, summary="mean"
    )
    found = rows_of(place)
    summary = found.pop("summary")
    boxes = sorted((Region.of_key(key, "box").box for key in found), key=lambda b: (b[1], b[0]))
    vectors = [found["box:" + ",".join(map(str, box))]["vector"] for box in boxes]
    wanted = covered_mean(boxes, vectors, picture.shape[:2])
    np.testing.assert_allclose(summary["vector"], wanted, rtol=1e-6)
    # `vector` holds the mean of each colour: of the tiles together it is that of the picture.
    if overlap == 0 and tile == 32:
        plain = np.mean(vectors, axis=0)
        assert abs(plain - wanted).max() > 0.01


boxes_of_pixels = st.tuples(
    *(st.integers(0, 30) for _ in range(2)), *(st.integers(1, 20) for _ in range(2))
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(boxes_of_pixels, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_newly_covered_pixels_are_those_of_a_mask(boxes: list[tuple[int, int, int, int]]) -> None:
    covered, mask = Coverage(), np.zeros((60, 60), bool)
    for box in sorted(boxes, key=lambda box: (box[1], box[0])):
        part = mask[box[1] : box[3], box[0] : box[2]]
        assert covered.add(Region("box", box=box), None, None) == np.count_nonzero(~part)
        part[:] = True


def test_each_page_is_a_region_of_its_own(embedder: Embedder, tmp_path: Path) -> None:
    first, *others = (Image.fromarray(frame).convert("RGB") for frame in FRAMES)
    first.save(tmp_path / "many.tif", save_all=True, append_images=others)
    first.save(tmp_path / "one.png")
    place = tmp_path / "c"
    collection = Collection.open(place)
    collection.add(embedder, [tmp_path / "many.tif"])
    assert [(key, row["truncated"]) for key, row in rows_of(place).items()] == [("whole", 1.0)]
    collection.add(embedder, [tmp_path / "many.tif"], pages="each", summary="mean")
    found = rows_of(place)
    assert [row["truncated"] for row in found.values()] == [1.0, None, None, None, None]
    for page, frame in enumerate(FRAMES, 1):
        row = found[f"page:{page}"]
        assert row["kind"] == "page"
        np.testing.assert_allclose(row["vector"], np.full(3, frame[0, 0] / 255), atol=1e-6)
    np.testing.assert_allclose(found["summary"]["vector"], np.full(3, 310 / 3 / 255), atol=1e-6)
    result = embedder.run([tmp_path / "many.tif", tmp_path / "one.png"], pages="each", tile=6)
    keys = [region.key for region in result.regions]
    tiles = ["box:0,0,6,6", "box:2,0,8,6"]
    assert keys == [f"page:{page}:{tile}" for page in (1, 2, 3) for tile in tiles] + tiles
    assert result.item_index.tolist() == [0] * 6 + [1] * 2
    for key, vector in zip(keys[:6], result.vectors[:6], strict=True):
        assert Region.of_key(key, "box").key == key
        np.testing.assert_allclose(vector, FRAMES[int(key[5]) - 1][0, 0] / 255, atol=1e-6)
    with pytest.raises(UsageError, match="pages 'all' cannot be chosen; `each` can"):
        embedder.run(tmp_path / "one.png", pages="all")  # type: ignore[arg-type]


def test_what_classify_sees_of_odd_files(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def prepare(picture: Image.Image) -> torch.Tensor:
        seen.append(np.asarray(picture))
        return as_pixels(picture)

    classifier = penult.load(Brightness().eval(), preprocess=prepare, modality="image")

    def given(name: str, raw: bytes) -> np.ndarray:
        (tmp_path / name).write_bytes(raw)
        classifier.classify(tmp_path / name)
        return seen[-1]

    eight = given("g8.png", written(EIGHT))
    np.testing.assert_array_equal(eight, grey(EIGHT))
    np.testing.assert_array_equal(given("i32.tif", written(EIGHT.astype(np.int32), "TIFF")), eight)
    assert given("odd.jpg", written(EIGHT, "JPEG", exif=exif_of(6))).shape == (80, 60, 3)
    with pytest.raises(ItemError, match=r"g12.png: grey values 0..3950 fill 12 bits or less of 16"):
        given("g12.png", written((X * 50).astype(np.uint16)))


# ---- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved image classifier in `model`, and pictures beside it."""
    from transformers import AutoConfig, AutoModelForImageClassification

    place = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "resnet", embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3
    )
    AutoModelForImageClassification.from_config(config).save_pretrained(place / "model")
    (place / "model" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}'
    )
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        values = draw.integers(0, 255, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(values).save(place / f"{name}.png")
    first, *others = (Image.fromarray(frame).convert("RGB") for frame in FRAMES)
    first.save(place / "pages.tif", save_all=True, append_images=others)
    return place


def test_tiles_are_shown_with_their_boxes(folder: Path, tmp_path: Path) -> None:
    model, store = folder / "model", tmp_path / "c.lance"
    said = ask("embed", model, folder / "a.png", folder / "b.png", "--into", store, "--tile", "40")
    assert said.code == 0, said.err
    plain = ask("search", store, folder / "a.png", "--box", "40,0,40,40", "-k", "2").out
    first = plain.splitlines()[1].split()
    assert plain.splitlines()[0].split()[:3] == ["similarity", "item", "part"]
    assert first[0] == "1.0000" and first[2:4] == ["box", "40,0,80,40"]
    # A box that is no row is embedded: it has the vector of the picture that is cut out.
    with Image.open(folder / "a.png") as picture:
        picture.crop((10, 20, 50, 60)).save(tmp_path / "cut.png")
    boxed = ask("search", store, folder / "a.png", "--box", "10,20,40,40", "--json").json
    cut = ask("search", store, tmp_path / "cut.png", "--json").json
    for one, other in zip(boxed["hits"], cut["hits"], strict=True):
        assert one["region"] == other["region"]
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-6)
    one, other = (
        ask("classify", model, *asked, "--json").json["predictions"][0]
        for asked in ((folder / "a.png", "--box", "10,20,40,40"), (tmp_path / "cut.png",))
    )
    assert one["region"] == "box:10,20,50,60"
    np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    for name in ("v.csv", "v.parquet"):
        assert ask("export", store, tmp_path / name, "--no-logits").code == 0
        table = (
            pa_csv.read_csv(tmp_path / name)
            if name.endswith(".csv")
            else pq.read_table(tmp_path / name)
        )
        rows = table.select(["id", "left", "top", "right", "bottom"]).to_pylist()
        wanted = [(0, 0, 40, 40), (40, 0, 80, 40), (0, 20, 40, 60), (40, 20, 80, 60)]
        assert [tuple(row.values())[1:] for row in rows] == wanted * 2  # as they lie


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,2,0,4", "-1,2,3,4"])
def test_a_box_that_is_none_is_refused(folder: Path, box: str) -> None:
    said = ask("classify", folder / "model", folder / "a.png", f"--box={box}")
    assert said.code == 2 and "--box" in said.error and "in pixels" in said.error


def test_predict_cuts_pictures(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "c.lance"
    ask("embed", folder / "model", folder / "a.png", folder / "b.png", "--into", store)
    ask("teach", store, "a", folder / "a.png")
    ask("teach", store, "b", folder / "b.png")
    asked = ("predict", store, folder / "pages.tif", folder / "a.png", "--unknown", "0")
    said = ask(*asked, "--pages", "each", "--tile", "60", "--json").json
    regions = [one["region"] for one in said["predictions"]]
    boxes = ["box:0,0,8,6"]
    tiles = ["box:0,0,60,60", "box:20,0,80,60"]
    assert regions == [f"page:{page}:{box}" for page in (1, 2, 3) for box in boxes] + tiles
    shown = ask(*asked, "--pages", "each").out
    assert "page 2" in shown and "page:2" not in shown
    said = ask("predict", store, folder / "a.png", "--box", "1,1,9,9", "--unknown", "0", "--json")
    assert [one["region"] for one in said.json["predictions"]] == ["box:1,1,10,10"]
    refused = ask("predict", store, "--tile", "8")
    assert refused.code == 2 and "leave --tile out" in refused.error


def test_a_run_tells_of_pages_that_were_left(folder: Path, tmp_path: Path) -> None:
    asked = ("embed", folder / "model", folder / "pages.tif", "--into", tmp_path / "c.lance")
    said = ask(*asked)
    assert "1 item with more pages or frames than the first" in said.out
    assert "--pages each embeds all" in said.out
    again = ask(*asked, "--pages", "each")
    assert "3 embedded" in again.out and "more pages" not in again.out
