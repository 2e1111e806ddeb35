"""Decoding: a segment is the cut-out file, bit for bit; what cannot be read says why."""

from __future__ import annotations

import importlib
import io
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from penult.data import audio, audio_stream, image, text, video
from penult.data import files as media_files
from penult.data.regions import WHOLE, Region
from penult.errors import DecodeError, EmptyItem, ItemError, RegionError, SourceError, TooLong

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CI = os.environ.get("CI") == "true"  # where nothing may be missing
FORMATS = {
    "wav": {},
    "w64": {},
    "aiff": {},
    "caf": {},
    "flac": {},
    "ogg": {},
    "mp3": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
EXACT = ("wav", "w64", "aiff", "caf", "flac")


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        (pytest.fail if CI else pytest.skip)(f"no shared data: {name}")
    return SHARED / name


def pyav() -> Any:
    return importlib.import_module("av") if CI else pytest.importorskip("av")


def noise(rate: int, seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    """(n, channels) of noise with a sweep in it: no two stretches are alike."""
    n = round(rate * seconds)
    time = np.arange(n)[:, None] / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 90 * time) * time)
    return sweep + 0.1 * np.random.default_rng(seed).standard_normal((n, channels))


def written(path: Path, samples: np.ndarray, rate: int, **kind: str) -> Path:
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], **kind) as file:
        for start in range(0, len(samples), 4096):
            file.write(samples[start : start + 4096])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    samples = noise(48000, 2.3, channels=2)
    return {
        name: written(folder / f"a.{name}", samples, 48000, **FORMATS[name]) for name in FORMATS
    }


# ---- sound: cutting, mixing, resampling


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.7001, 1.9), (2.0, None), (None, 1.0)])
def test_a_segment_is_the_cut_out_file(tmp_path, files, name, start, end):
    samples, rate = soundfile.read(files[name], dtype="int16", always_2d=True)
    first, last = round((start or 0) * rate), len(samples) if end is None else round(end * rate)
    cut = written(tmp_path / f"cut.{name}", samples[first:last], rate)
    segment = audio.load(files[name], Region("segment", start, end), 16000)
    whole = audio.load(cut, WHOLE, 16000)
    np.testing.assert_array_equal(segment.samples, whole.samples)
    assert segment.seconds == whole.seconds == (last - first) / rate
    assert (segment.start, segment.end) == (start, end)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])  # those that Opus has
@pytest.mark.parametrize("name", FORMATS)
def test_a_segment_is_a_part_of_the_whole(tmp_path, name, rate):
    """Also where seeking is not exact, and near the end, where Vorbis goes astray."""
    path = written(tmp_path / f"a.{name}", noise(rate, 2.0), rate, **FORMATS[name])
    whole = audio.load(path, WHOLE, rate).samples
    for start in (0.1, 0.5001, 1.0, 1.77, 1.9, 1.999):
        first = round(start * rate)
        part = audio.load(path, Region("segment", start, None), rate).samples
        np.testing.assert_array_equal(part, whole[first:])


def test_what_is_read_does_not_depend_on_the_size_of_the_reads(monkeypatch, files):
    for name, path in files.items():
        big = audio.load(path, WHOLE, 48000).samples
        monkeypatch.setattr(audio_stream, "BLOCK", 1000)
        np.testing.assert_array_equal(audio.load(path, WHOLE, 48000).samples, big, err_msg=name)
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["mp3", "ogg", "flac"])
def test_two_decoders_agree(files, name):
    with media_files.opened_by_ffmpeg(files[name], "audio") as container:
        other = np.concatenate([*audio_stream._of_container(container).read(0, None)]).mean(axis=1)
    np.testing.assert_allclose(audio.load(files[name], WHOLE, 48000).samples, other, atol=1e-5)


def test_bytes_and_files_give_the_same(files):
    for path in files.values():
        region = Region("segment", 0.5, 1.5)
        one, other = (audio.load(c, region, 16000) for c in (path, path.read_bytes()))
        np.testing.assert_array_equal(one.samples, other.samples)
        assert audio.info(path) == audio.info(path.read_bytes())


def test_mixing_is_the_mean_and_a_channel_is_itself(tmp_path):
    samples = noise(16000, 0.5, channels=8).astype(np.float32)
    path = written(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    mean = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(audio.load(path, WHOLE, 16000).samples, mean)
    np.testing.assert_array_equal(audio.load(samples.T, WHOLE, 16000).samples, mean)
    for channel in range(8):
        one = audio.load(path, Region(channel=channel), 16000).samples
        np.testing.assert_array_equal(one, samples[:, channel])
    with pytest.raises(RegionError, match="no channel 8: the sound has 8"):
        audio.load(path, Region(channel=8), 16000)


def test_resampling_is_soxr_after_the_cut(tmp_path):
    samples = noise(44100, 1).astype(np.float32)
    path = written(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    clip = audio.load(path, Region("segment", 0.25, 0.75), 16000)
    wanted = soxr.resample(samples[11025:33075, 0], 44100, 16000, quality="HQ")
    np.testing.assert_array_equal(clip.samples, wanted)
    assert clip.samples.dtype == np.float32
    assert clip.seconds == 0.5
    assert soxr.__version__ in audio.RESAMPLER


def test_a_tone_keeps_its_pitch_and_level(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)[:, None]
    clip = audio.load(written(tmp_path / "a.wav", tone, 44100), WHOLE, 16000)
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(clip.samples[500:-500], wanted[500:-500], atol=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "float16", "float64"])
def test_arrays_are_scaled_to_one(dtype):
    wave = noise(16000, 0.1)[:, 0].clip(-1, 1) * 0.9
    if np.dtype(dtype).kind == "f":
        given = wave.astype(dtype)
    else:
        size = 8 * np.dtype(dtype).itemsize - 1
        given = (wave * 2**size + (2**size if dtype[0] == "u" else 0)).round().astype(dtype)
    error = 2**-6 if np.dtype(dtype).itemsize == 1 else 1e-3
    np.testing.assert_allclose(audio.load(given, WHOLE, 16000).samples, wave, atol=error)


def test_arrays_have_a_rate_or_the_models():
    wave = noise(8000, 1)[:, 0]
    assert len(audio.load(wave, WHOLE, 16000).samples) == 8000
    assert len(audio.load(wave, WHOLE, 16000, source_rate=8000).samples) == 16000
    assert audio.info(np.stack([wave] * 3)).channels == 3
    assert audio.info(wave, source_rate=8000).seconds == 1


@pytest.mark.parametrize(
    ("array", "error", "reason"),
    [
        (np.zeros((2, 3, 4)), DecodeError, r"shape \(2, 3, 4\)"),
        (np.ones((16000, 2)), DecodeError, "more channels than samples"),
        (np.ones(100, np.int64), DecodeError, "no known scale"),
        (np.array(["a"]), DecodeError, "no known scale"),
        (np.zeros(0), EmptyItem, "no samples"),
        (np.zeros(100), EmptyItem, "nothing but zeros"),
        (np.array([0.1, np.nan]), EmptyItem, "not finite"),
        (np.array([0.1, np.inf]), EmptyItem, "not finite"),
        (np.full(100, 1e300), EmptyItem, "not finite"),
    ],
)
def test_arrays_that_are_no_sound(array, error, reason):
    with pytest.raises(error, match=reason):
        audio.load(array, WHOLE, 16000)


def test_a_region_ends_within_the_file(tmp_path):
    path = written(tmp_path / "a.wav", noise(8000, 1), 8000)
    assert len(audio.load(path, Region("segment", 0.5, 1.0009), 8000).samples) == 4000
    for region, reason in [
        (Region("segment", 0.5, 1.01), "end 1.01 s lies beyond the end: it lasts 1 s"),
        (Region("segment", 1.0, None), "start 1 s lies beyond the end: it lasts 1 s"),
        (Region("segment", 7.0, 8.0), "start 7 s lies beyond"),
        (Region("segment", float("inf"), None), "finite"),
    ]:
        with pytest.raises(RegionError, match=reason):
            audio.load(path, region, 8000)
    with pytest.raises(EmptyItem, match="no samples"):
        audio.load(path, Region("segment", 0.5, 0.50001), 8000)


def test_what_is_too_long_is_not_decoded(monkeypatch, tmp_path):
    path = written(tmp_path / "a.wav", noise(8000, 3), 8000)
    assert audio.load(path, WHOLE, 8000, max_seconds=3).seconds == 3
    assert audio.load(path, Region("segment", 1, 2), 8000, max_seconds=1).seconds == 1
    assert audio.load(path, WHOLE, 8000, max_seconds=float("inf")).seconds == 3
    monkeypatch.setattr(audio, "_collect", None)
    with pytest.raises(TooLong, match=r"lasts 3 s, longer than the limit of 2\.5 s") as raised:
        audio.load(path, WHOLE, 8000, max_seconds=2.5)
    assert "--max-seconds" in str(raised.value) and "--window" in str(raised.value)


def test_a_streamed_flac_has_no_length_but_can_be_read(tmp_path):
    path = written(tmp_path / "a.flac", noise(16000, 2), 16000)
    wanted = audio.load(path, Region("segment", 1.5, None), 16000).samples
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0  # the number of samples is the 36 bits from here on
    raw[22:26] = bytes(4)
    assert audio.info(bytes(raw)) == audio.AudioInfo(16000, 1, 32000, 2.0, True)
    got = audio.load(bytes(raw), Region("segment", 1.5, None), 16000).samples
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(TooLong):
        audio.load(bytes(raw), WHOLE, 16000, max_seconds=1)
    with pytest.raises(RegionError, match="end 3 s lies beyond the end: it lasts 2 s"):
        audio.load(bytes(raw), Region("segment", 1.0, 3.0), 16000)
    with pytest.raises(RegionError, match="start 3 s lies beyond"):
        audio.load(bytes(raw), Region("segment", 3.0, None), 16000)


# ---- sound: files that lie


def wav(
    rate=16000, channels=1, byte_rate=None, data=b"\x01\x02\x03\x02" * 4000, size=None
) -> bytes:
    align = 2 * channels
    byte_rate = rate * align if byte_rate is None else byte_rate
    head = struct.pack("<HHIIHH", 1, channels, rate, byte_rate & 0xFFFFFFFF, align, 16)
    size = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("raw", "error", "reason"),
    [
        (b"", EmptyItem, "empty"),
        (b"hello", DecodeError, "not readable as audio"),
        (b"RIFF\x10\0\0\0WAVEfmt ", DecodeError, "not readable as audio"),
        (wav(data=b""), EmptyItem, "no samples"),
        (wav(data=bytes(8000)), EmptyItem, "nothing but zeros"),
        (wav(channels=0, byte_rate=32000), DecodeError, "Channel count is zero"),
        (wav(rate=0), DecodeError, "not readable as audio"),
        (wav(rate=200), DecodeError, "200 Hz holds nothing above 100 Hz"),
        (wav(rate=2**31 - 1), DecodeError, "cannot be"),
        (wav(size=10**6), DecodeError, "holds 8000 frames of the 500000 it promises"),
    ],
)
def test_headers_that_lie(tmp_path, raw, error, reason):
    path = tmp_path / "a.wav"
    path.write_bytes(raw)
    for content in (raw, path):
        with pytest.raises(error, match=reason):
            audio.load(content, WHOLE, 16000)


def test_a_length_that_was_never_filled_in_is_no_lie():
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        assert audio.load(wav(size=size), WHOLE, 16000).seconds == 0.5


def test_not_finite_samples_of_a_file(tmp_path):
    samples = noise(16000, 0.5).astype(np.float32)
    samples[777] = np.nan
    path = written(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(EmptyItem, match="not finite"):
        audio.load(path, WHOLE, 16000)
    assert audio.load(path, Region("segment", 0.1, None), 16000).seconds == 0.4


@pytest.mark.parametrize("name", ["wav", "aiff", "w64", "flac", "mp3"])
def test_a_truncated_file_names_both_lengths_and_gives_what_is_there(tmp_path, files, name):
    raw = files[name].read_bytes()
    (tmp_path / f"cut.{name}").write_bytes(raw[: len(raw) // 2])
    for content in (tmp_path / f"cut.{name}", raw[: len(raw) // 2]):
        with pytest.raises(DecodeError, match=r"truncated.* \d+ frames of the 110[34]\d\d it"):
            audio.load(content, WHOLE, 16000)
        part = audio.load(content, Region("segment", 0.0, 0.3), 48000).samples
        whole = audio.load(raw, Region("segment", 0.0, 0.3), 48000).samples
        np.testing.assert_array_equal(part, whole)


def test_an_mp3_without_a_length_is_not_called_truncated(tmp_path):
    """Its header's length is guessed from the bit rate, too long here: no one promised it."""
    path = encoded(tmp_path / "a.mp3", "libmp3lame", 44100, noise(44100, 2, 2), write_xing="0")
    guess = audio.info(path)
    clip = audio.load(path, WHOLE, 44100)
    assert not guess.exact
    assert clip.seconds == pytest.approx(2, abs=0.1)
    part = audio.load(path, Region("segment", 0.5, 1.9), 44100).samples
    np.testing.assert_array_equal(part, clip.samples[22050:83790])
    with pytest.raises(RegionError, match="lies beyond the end"):
        audio.load(path, Region("segment", 0.5, 2.5), 44100)
    with pytest.raises(TooLong):
        audio.load(path, WHOLE, 44100, max_seconds=1)


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(DecodeError, match="no such file"):
        audio.load(tmp_path / "gone.wav", WHOLE, 16000)
    with pytest.raises(DecodeError, match="is a folder"):
        audio.load(tmp_path, WHOLE, 16000)
    with pytest.raises(DecodeError, match="cannot be read"):
        audio.load(tmp_path / ("x" * 300 + ".wav"), WHOLE, 16000)
    with pytest.raises(DecodeError, match="cannot be read"):
        audio.load(Path("a\0.wav"), WHOLE, 16000)
    with pytest.raises(DecodeError, match="is no sound"):
        audio.load("a.wav", WHOLE, 16000)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(DecodeError, match="a pipe or a device"):
        audio.load(tmp_path / "pipe.wav", WHOLE, 16000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = written(tmp_path / "a.wav", noise(8000, 1), 8000)
    path.chmod(stat.S_IWUSR)
    with pytest.raises(DecodeError, match="no permission"):
        audio.load(path, WHOLE, 16000)


def test_a_raw_file_has_no_rate(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(DecodeError, match="without a header"):
        audio.load(tmp_path / "a.raw", WHOLE, 16000)


# ---- sound: through PyAV


def encoded(path: Path, codec: str, rate: int, samples: np.ndarray, **options: str) -> Path:
    av = pyav()
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            samples.T.astype(np.float32).copy(), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        for piece in av.AudioResampler(stream.format, "stereo", rate).resample(frame):
            fifo.write(piece)
        pieces = list(fifo.read_many(1024, partial=True))
        for piece in [*pieces, None]:
            container.mux(stream.encode(piece))
    return path


def test_what_libsndfile_does_not_read_goes_to_pyav(tmp_path):
    samples = noise(44100, 1.5, channels=2)
    path = encoded(tmp_path / "a.mka", "flac", 44100, samples)
    clip = audio.load(path, Region("segment", 0.5, 1.0, channel=1), 44100)
    np.testing.assert_allclose(clip.samples, samples[22050:44100, 1], atol=1e-4)
    whole = audio.load(path.read_bytes(), WHOLE, 44100).samples
    np.testing.assert_allclose(whole, samples.mean(axis=1), atol=1e-4)
    with pytest.raises(RegionError, match="lies beyond"):
        audio.load(path, Region("segment", 0.5, 9.0), 44100)
    raw = path.read_bytes()
    with pytest.raises(DecodeError):
        audio.load(raw[: len(raw) // 2], WHOLE, 44100)


def test_m4a(tmp_path):
    path = encoded(tmp_path / "a.m4a", "aac", 44100, noise(44100, 1.5, channels=2))
    assert audio.info(path).channels == 2
    assert audio.load(path, WHOLE, 16000).seconds == pytest.approx(1.5, abs=0.05)
    whole = audio.load(path, WHOLE, 44100).samples
    part = audio.load(path, Region("segment", 0.5, 1.0), 44100).samples
    np.testing.assert_array_equal(part, whole[22050:44100])
    with pytest.raises(DecodeError):
        audio.load(path.read_bytes()[:5000], WHOLE, 16000)


def test_without_pyav_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DecodeError, match=r"pip install 'penult\[video\]'"):
        audio.load(b"\0not sound", WHOLE, 16000)


def test_a_play_list_opens_no_other_file(files):
    pyav()
    for text_ in (f"ffconcat version 1.0\nfile '{files['wav']}'\n", f"#EXTM3U\n{files['wav']}\n"):
        with pytest.raises(DecodeError):
            audio.load(text_.encode(), WHOLE, 16000)


# ---- hostile bytes


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_sound_never_crashes(files, data):
    raw = bytearray(files[data.draw(st.sampled_from(sorted(FORMATS)))].read_bytes())
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 20))):
        if raw:  # mostly in the header, where it hurts
            place = data.draw(st.integers(0, min(len(raw), 200) - 1))
            raw[place] = data.draw(st.integers(0, 255))
    try:
        clip = audio.load(bytes(raw), WHOLE, 16000, max_seconds=5)
    except ItemError as error:
        assert str(error)
    else:
        assert np.isfinite(clip.samples).all()


@pytest.mark.parametrize("modality", ["audio", "image", "video", "text"])
def test_random_bytes_behind_every_extension(tmp_path, modality):
    random = np.random.default_rng(0)
    load = media_files.module(modality).load
    rest = {"audio": (WHOLE, 16000), "video": (WHOLE, 4)}.get(modality, ())
    for extension in sorted(media_files.extensions(modality)):
        path = tmp_path / f"a{extension}"
        for raw in (b"", random.bytes(3000), b"\0" * 100):
            path.write_bytes(raw)
            try:
                load(path, *rest)
            except ItemError as error:
                assert str(error)
            else:
                assert modality == "text"  # zeros are UTF-8
                assert raw == b"\0" * 100


# ---- pictures


def png(array: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(file, format, **options)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_a_picture_from_a_file_bytes_an_array_or_pil(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    for content in (tmp_path / "a.png", png(PIXELS), PIXELS, Image.fromarray(PIXELS)):
        got = image.load(content)
        assert got.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(got), PIXELS)
    np.testing.assert_array_equal(np.asarray(image.load(PIXELS / 255.0)), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(PIXELS),
    }[orientation]
    np.testing.assert_array_equal(np.asarray(image.load(png(PIXELS, exif=exif))), turned)


def test_modes_of_pictures():
    grey = PIXELS[..., 0]
    threefold = np.stack([grey] * 3, axis=-1)
    sixteen = grey.astype(np.uint16) << 8 | 7
    for raw in (
        png(grey),
        png(sixteen),
        png(sixteen, "TIFF"),
        png(Image.fromarray(grey / 255.0).convert("F"), "TIFF"),
    ):
        np.testing.assert_array_equal(np.asarray(image.load(raw)), threefold)
    np.testing.assert_array_equal(np.asarray(image.load(grey)), threefold)
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    assert image.load(png(cmyk, "TIFF")).getpixel((3, 3)) == tuple(PIXELS[3, 3])


def test_transparent_pixels_are_white():
    clear = np.concatenate([PIXELS, np.zeros((6, 9, 1), np.uint8)], axis=-1)
    clear[:, 4:, 3] = 255
    wanted = PIXELS.copy()
    wanted[:, :4] = 255
    np.testing.assert_array_equal(np.asarray(image.load(png(clear))), wanted)
    np.testing.assert_array_equal(np.asarray(image.load(clear)), wanted)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    shown = image.load(png(palette, transparency=1))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_the_first_frame_of_an_animation():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    raw = png(red, "GIF", save_all=True, append_images=[blue])
    assert image.load(raw).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (b"", DecodeError, "empty"),
        (b"hello", DecodeError, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", DecodeError, "not an image"),
        (png(PIXELS)[:150], DecodeError, "not readable as an image"),
        (np.zeros((2, 2, 7)), DecodeError, r"shape \(2, 2, 7\)"),
        (np.zeros((0, 2, 3), np.uint8), EmptyItem, "no pixels"),
        (np.full((2, 2, 3), np.nan), EmptyItem, "not finite"),
        (PIXELS.astype(float), DecodeError, "in 0..1"),
        (PIXELS.astype(np.int32), DecodeError, "uint8 or floats"),
        ("a.png", DecodeError, "a str is no image"),
    ],
)
def test_what_is_no_picture(content, error, reason):
    with pytest.raises(error, match=reason):
        image.load(content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "PPM"])
def test_the_size_is_that_of_the_upright_picture(tmp_path, format):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        try:
            raw = png(PIXELS, format, exif=exif.tobytes())
        except (OSError, KeyError):
            pytest.skip("this Pillow does not write it")
        assert image.size(raw) == image.load(raw).size
        left, top, right, bottom = box = (1, 2, 5, 6)
        whole = np.asarray(image.load(raw))
        np.testing.assert_array_equal(
            np.asarray(image.load(raw, box)), whole[top:bottom, left:right]
        )
    assert image.size(PIXELS) == (9, 6)


def test_boxes_lie_in_the_picture():
    raw = png(PIXELS)
    boxes = [
        (0, 0, 9, 6),
        (8, 5, 9, 6),
        None,
        (0, 0, 10, 6),
        (0, 0, 9, 7),
        (-1, 0, 4, 4),
        (4, 4, 4, 5),
    ]
    found = list(image.load_many(raw, iter(boxes)))
    for box, got in zip(boxes[:3], found[:3], strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(image.load(raw, box)))
    for box, got in zip(boxes[3:], found[3:], strict=True):
        assert isinstance(got, RegionError)
        assert "does not lie in the picture, which is 9 pixels wide and 6 high" in str(got)
        with pytest.raises(RegionError):
            image.load(raw, box)
    bad = list(image.load_many(b"no picture", boxes))
    assert {(type(error), str(error)) for error in bad} == {
        (DecodeError, "not an image that Pillow knows (10 bytes)")
    }


def test_a_bomb_is_not_opened(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DecodeError, match="too many pixels"):
        image.load(png(PIXELS))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
def test_damaged_pictures_never_crash(format, data):
    raw = bytearray(png(np.tile(PIXELS, (4, 4, 1)), format))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 10))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert image.load(bytes(raw)).mode == "RGB"
    except ItemError as error:
        assert str(error)


# ---- texts


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffein Satz über\n".encode())
    assert text.load(tmp_path / "a.txt") == "ein Satz über\n"
    assert text.load("a.txt") == "a.txt"
    for content, error, reason in [
        (b"ab\xffc", DecodeError, "byte 2 is 0xff"),
        (b"", EmptyItem, "is empty"),
        (" \n", EmptyItem, "white space"),
        (tmp_path, DecodeError, "is a folder"),
        (7, DecodeError, "an? int is no text"),
    ]:
        with pytest.raises(error, match=reason):
            text.load(content)


# ---- videos


def film(path: Path, frames: int = 20, rate: int = 10, codec: str = "mpeg4") -> Path:
    """Frame i is grey of the value 10 i."""
    av = pyav()
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            grey = np.full((48, 64, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def shown(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_frames_are_the_centres_of_equal_parts(tmp_path, name):
    path = film(tmp_path / name)
    got = video.load(path, WHOLE, 4)
    assert (got.shape, got.dtype) == ((4, 48, 64, 3), np.uint8)
    assert shown(got) == [2, 7, 12, 17]
    assert shown(video.load(path.read_bytes(), WHOLE, 20)) == list(range(20))
    assert shown(video.load(path, Region("segment", 1.0, 2.0), 5)) == [11, 13, 15, 17, 19]
    assert shown(video.load(path, Region("segment", 1.0, None), 1)) == [15]
    assert shown(video.load(path, WHOLE, 40)) == [i // 2 for i in range(40)]


def test_a_short_video_repeats_its_frames(tmp_path):
    assert shown(video.load(film(tmp_path / "a.mp4", frames=2), WHOLE, 5)) == [0, 0, 1, 1, 1]
    assert shown(video.load(film(tmp_path / "b.mp4", frames=1), WHOLE, 3)) == [0, 0, 0]
    stack = np.stack([np.full((2, 2, 3), 10 * i, np.uint8) for i in range(20)])
    assert shown(video.load(stack, WHOLE, 4)) == [2, 7, 12, 17]


def test_a_video_that_was_filmed_on_edge_is_upright(tmp_path):
    av = pyav()
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        halves = np.zeros((48, 64, 3), np.uint8)
        halves[:, 32:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(halves, format="rgb24")))
        container.mux(stream.encode(None))
    raw = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = raw.index(b"tkhd") + 44  # "turn me clockwise by 90 degrees", in 16.16 fixed point
    one = 1 << 16
    raw[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    (frame,) = video.load(bytes(raw), WHOLE, 1)
    assert frame.shape == (64, 48, 3)
    assert frame[:28].mean() < 20
    assert frame[36:].mean() > 235


def test_what_is_no_video(tmp_path):
    path = film(tmp_path / "a.mp4")
    raw = path.read_bytes()
    sound = written(tmp_path / "a.wav", noise(8000, 1), 8000)
    for content, region, error, reason in [
        (b"", WHOLE, DecodeError, "empty"),
        (b"hello", WHOLE, DecodeError, "not readable as video"),
        (raw[: len(raw) // 2], WHOLE, DecodeError, "not readable as video"),
        (sound, WHOLE, DecodeError, "no pictures"),
        (tmp_path / "gone.mp4", WHOLE, DecodeError, "no such file"),
        (path, Region("segment", 5.0, None), RegionError, "start 5 s lies beyond the end"),
        (path, Region("segment", 1.0, 5.0), RegionError, "end 5 s lies beyond the end"),
        (np.zeros((3, 4, 4), np.uint8), WHOLE, DecodeError, r"shape \(3, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), WHOLE, EmptyItem, "no pixels"),
        (np.zeros((3, 4, 4, 3), np.uint8), Region("segment", 1, 2), RegionError, "no seconds"),
        ("a.mp4", WHOLE, DecodeError, "a str is no video"),
    ]:
        with pytest.raises(error, match=reason):
            video.load(content, region, 4)


def test_a_truncated_video_is_told_by_its_own_promise(tmp_path):
    av = pyav()
    whole = film(tmp_path / "a.mp4")
    with (
        av.open(whole) as source,
        av.open(tmp_path / "b.mp4", "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    raw = (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(DecodeError):
        video.load(raw[: -len(raw) // 3], WHOLE, 4)


# ---- the package


def test_modalities():
    assert media_files.module("audio") is audio
    assert ".flac" in media_files.extensions("audio")
    with pytest.raises(SourceError, match="audio, image, text, video"):
        media_files.extensions("smell")
    for modality in media_files.MODALITIES:
        assert all(e == e.lower() and e[0] == "." for e in media_files.extensions(modality))


def test_importing_loads_nothing_heavy():
    program = (
        "import sys, penult.data.sources, penult.data.audio, penult.data.image, "
        "penult.data.text, penult.data.video\n"
        "print({'torch', 'transformers', 'pyarrow', 'soundfile', 'soxr', 'PIL', 'av'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_real_recordings():
    paths = sorted(shared("librispeech_speakers").rglob("*.flac"))[:5]
    assert len(paths) == 5
    for path in paths:
        about = audio.info(path)
        clip = audio.load(path, WHOLE, 8000)
        assert clip.seconds == about.seconds
        assert len(clip.samples) == pytest.approx(about.seconds * 8000, abs=1)
        part = audio.load(path, Region("segment", 0.5, 1.5), about.rate).samples
        whole = audio.load(path, WHOLE, about.rate).samples
        np.testing.assert_array_equal(part, whole[about.rate // 2 : 3 * about.rate // 2])
