"""Sound as files hold it: n samples in are n samples out, or what is missing is named."""

from __future__ import annotations

import io
import json
import struct
from functools import cache

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import penult
from penult.cli.main import app
from penult.data import audio
from penult.data.items import Failure, Item
from penult.data.regions import WHOLE, Region
from penult.data.windows import Layout
from penult.errors import DecodeError, EmptyItem, ItemError
from sound_formats import FORMATS, LENGTHS, Format, other_length, samples, written
from test_media import pyav

RATE = 16000
BY_NAME = {format.name: format for format in FORMATS}
NO_LENGTH = ("ADTS AAC", "AC-3", "AMR-NB")  # self-framed: nothing in the file has its length


def load(content: object, rate: int = RATE, region: Region = WHOLE) -> np.ndarray:
    return audio.load(content, region, rate).samples


@cache
def file_of(name: str, n: int, seed: int = 0) -> bytes:
    """The bytes of n samples in this format; skipped where the library lacks the encoder."""
    format = BY_NAME[name]
    try:
        return written(format, samples(n, format.rate, seed))
    except Exception as error:
        if format.by_ffmpeg and type(error).__module__.startswith("av."):
            pytest.skip(f"{name}: {error}")
        raise


def decoded(format: Format, raw: bytes) -> np.ndarray:
    """(n,) by the library itself, of one recording."""
    if not format.by_ffmpeg or format.name == "MP3 by LAME":
        return soundfile.read(io.BytesIO(raw), dtype="float32")[0]
    if format.name == "WAV MP3":
        return soundfile.SoundFile(io.BytesIO(raw)).read(dtype="float32")
    av = pyav()
    with av.open(io.BytesIO(raw)) as container:
        convert = av.AudioResampler(format="flt")
        pieces = [
            piece.to_ndarray().ravel()
            for frame in (*container.decode(audio=0), None)
            for piece in convert.resample(frame)
        ]
    return np.concatenate(pieces)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@settings(max_examples=3, deadline=None)
@given(st.integers(2000, 20_000))
def test_as_many_samples_come_out_as_went_in(format, n):
    n += 8000 * (format.name == "AC-3")  # FFmpeg knows it by several frames in a row
    raw = file_of(format.name, n)
    got = load(raw, format.rate)
    assert n - format.less <= len(got) <= n + format.more
    # The decoder of MP3 rounds otherwise where it is read in other blocks.
    np.testing.assert_allclose(got, decoded(format, raw), atol=2e-7 if "MP3" in format.name else 0)
    if format.exact:
        np.testing.assert_array_equal(got, samples(n, format.rate))
    assert audio.info(raw, exact=True).frames == len(got)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(2000, 20_000), min_size=2, max_size=3), st.data())
def test_joined_recordings_are_all_there(format, lengths, data):
    """The whole is what the parts are one by one; windows are stretches of the whole."""
    if format.name == "AC-3":
        lengths = [n + 8000 for n in lengths]  # FFmpeg knows it by several frames in a row
    parts = [file_of(format.name, n, seed) for seed, n in enumerate(lengths)]
    joined = b"".join(parts)
    try:
        got = load(joined, format.rate)
    except DecodeError as error:
        assert format.name in ("WavPack", "AMR-NB"), error  # FFmpeg's decoders refuse it
        return
    wanted = np.concatenate([decoded(format, part) for part in parts])
    if format.name in NO_LENGTH:  # FFmpeg reads on by itself
        assert len(got) >= sum(lengths)
        return
    np.testing.assert_allclose(got, wanted, atol=2e-7 if "MP3" in format.name else 0)
    assert audio.info(joined, exact=True).frames == len(wanted)
    starts = data.draw(st.lists(st.integers(0, len(wanted) - 900), min_size=1, max_size=4))
    regions = [
        Region("window", first / format.rate, (first + 800) / format.rate)
        for first in sorted(starts)
    ]
    for region, clip in zip(regions, audio.load_many(joined, regions, format.rate), strict=True):
        first = round(region.start * format.rate)
        assert isinstance(clip, audio.Clip), clip
        np.testing.assert_array_equal(clip.samples, got[first : first + len(clip.samples)])
        np.testing.assert_array_equal(clip.samples, load(joined, format.rate, region))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@settings(max_examples=6, deadline=None)
@given(st.floats(0.05, 0.98))
def test_a_truncated_recording_is_refused_and_its_windows_are_what_is_there(format, share):
    n = 3 * format.rate
    raw = file_of(format.name, n)
    cut = raw[: int(len(raw) * share)]
    if format.name in NO_LENGTH:
        return
    try:
        clip = audio.load(cut, WHOLE, format.rate)
    except ItemError as error:
        assert str(error)
    else:
        # Nothing is lost but what the codec may lack at its end, or it is told.
        assert len(clip.samples) >= n - 4 * 1152 or clip.notes, (len(clip.samples), n)
    entries = list(Layout(0.5).apply([(Item("a", cut), WHOLE)], "audio"))
    regions = [entry[1] for entry in entries if not isinstance(entry, Failure)]
    clips = list(audio.load_many(cut, regions, format.rate))
    failed = any(isinstance(one, ItemError) for one in clips) or len(regions) < len(entries)
    whole = decoded(format, raw)
    for region, clip in zip(regions, clips, strict=True):
        if isinstance(clip, audio.Clip):
            first = round(region.start * format.rate)
            wanted = whole[first : first + len(clip.samples)]
            if format.exact:
                np.testing.assert_array_equal(clip.samples, wanted)
            else:
                failed = failed or bool(clip.notes)
    if len(cut) < 0.9 * len(raw):
        assert failed


@pytest.mark.parametrize(
    "format", [f for f in FORMATS if f.name.startswith(LENGTHS) and not f.by_ffmpeg],
    ids=lambda format: format.name,
)  # fmt: skip
@pytest.mark.parametrize("wrong", ["0", "short", "unknown", "long", "of the file"])
def test_a_wrong_length_in_the_header(format, wrong):
    n = 20_000
    raw = file_of(format.name, n)
    whole = decoded(format, raw)
    place = raw.find(b"SSND" if format.name.startswith("AIF") else b"data")
    length = (len(raw) - max(0, place)) * 5 // 6 // 64 * 64  # of the sound, or a little less
    other = {
        "0": 0, "short": length // 2 // 64 * 64, "unknown": None, "long": 3 * length,
        "of the file": len(raw),
    }[wrong]  # fmt: skip
    lying = other_length(format.name, raw, other)
    if wrong == "long" or (wrong == "of the file" and not format.name.startswith("WAV")):
        try:
            got = load(lying, format.rate)
        except DecodeError as error:
            assert "it promises" in str(error) or "bytes of sound" in str(error)
        else:
            assert len(got) >= n
        return
    clip = audio.load(lying, WHOLE, format.rate)
    assert n <= len(clip.samples) <= n + format.more + 8
    np.testing.assert_array_equal(clip.samples[:n], whole[:n])
    if wrong in ("0", "short"):
        assert any("bytes of sound" in note for note in clip.notes), clip.notes
    start = Region("segment", 0.5, 0.75)
    np.testing.assert_array_equal(load(lying, format.rate, start), whole[8000:12000])


# ---- WAV: chunks


DATA = (samples(RATE) * 2**15).astype("<i2").tobytes()


def chunk(name: bytes, data: bytes, size: int | None = None, pad: bool = True) -> bytes:
    told = struct.pack("<I", len(data) if size is None else size)
    return name + told + data + bytes(len(data) % 2 if pad else 0)


def form(bits: int = 16, bytes_a_second: int | None = None) -> bytes:
    a_second = RATE * bits // 8 if bytes_a_second is None else bytes_a_second
    return chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, a_second, bits // 8, bits))


def riff(*parts: bytes, magic: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(parts)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0abcde")
NO_PAD = chunk(b"LIST", b"INFOISFT\x05\0\0\0abcde", pad=False)
LONG = chunk(b"ds64", struct.pack("<QQQI", 72 + len(DATA), len(DATA), RATE, 0))
NEVER = chunk(b"ds64", bytes(28))
UNKNOWN = chunk(b"data", DATA, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        (riff(form(), chunk(b"data", DATA)), ""),
        (riff(LIST, form(), LIST, chunk(b"data", DATA), LIST), ""),
        (riff(form(), NO_PAD, chunk(b"data", DATA)), ""),
        (riff(form(), form(), chunk(b"data", DATA)), ""),
        (riff(form(), chunk(b"data", DATA)) + bytes(4096), ""),
        (riff(form(), chunk(b"data", DATA)) + b"\xff" * 4096, ""),  # of erased memory
        (riff(form(), chunk(b"data", DATA)) + b"TAG" + bytes(125), ""),
        (riff(form(), chunk(b"data", DATA)) + b"ID3\4\0\0\0\0\1\0" + bytes(128), ""),
        (riff(form(), chunk(b"data", DATA)) + b"ten bytes.", ""),
        (riff(form(), UNKNOWN), ""),
        (riff(form(), UNKNOWN, size=0xFFFFFFFF), ""),
        (riff(LONG, form(), UNKNOWN, magic=b"RF64"), ""),
        (riff(LONG, form(), UNKNOWN, magic=b"BW64"), ""),
        (riff(NEVER, form(), UNKNOWN, magic=b"RF64"), "gives 0 bytes of sound"),
        (riff(form(), chunk(b"data", DATA, 0)), "gives 0 bytes of sound and 32,000 lie there"),
        (riff(form(), chunk(b"data", DATA, 0), size=0), "gives 0 bytes of sound"),
        (riff(form(), chunk(b"data", DATA, 9000)), "gives 9,000 bytes of sound and 32,000"),
        (riff(form(), chunk(b"data", DATA, 32_044)), "gives 32,044 bytes of sound and 32,000"),
        (riff(form(bytes_a_second=12345), chunk(b"data", DATA)), "gives 12,345 bytes a second"),
        (riff(form(), chunk(b"data", b""), chunk(b"data", DATA)), ""),
    ],
)
def test_wav_as_recorders_and_programs_leave_it(tmp_path, raw, note):
    path = tmp_path / "a.wav"
    path.write_bytes(raw)
    for content in (raw, path):
        clip = audio.load(content, WHOLE, RATE)
        np.testing.assert_array_equal(clip.samples, samples(RATE))
        assert note in "; ".join(clip.notes)
        assert bool(note) == bool(clip.notes)
        assert audio.info(content).frames == RATE


def test_of_two_chunks_of_sound_the_first_is_read_and_the_other_told():
    """As sox and FFmpeg read them."""
    for between in (b"", LIST):
        raw = riff(form(), chunk(b"data", DATA[:16_000]), between, chunk(b"data", DATA[16_000:]))
        clip = audio.load(raw, WHOLE, RATE)
        np.testing.assert_array_equal(clip.samples, samples(RATE)[:8000])
        assert "2 chunks of sound; the first was read" in clip.notes[0]
        assert "16,000 bytes of sound behind it were not" in clip.notes[0]


def test_eight_bits_of_an_odd_number():
    data = DATA[:15_999]
    for pad in (True, False):
        raw = riff(form(8), chunk(b"data", data, pad=pad), LIST)
        assert len(load(raw)) == 15_999
    joined = riff(form(8), chunk(b"data", data)) * 2
    assert len(load(joined)) == 2 * 15_999


def test_an_empty_recording_is_empty():
    with pytest.raises(EmptyItem, match="no samples"):
        load(riff(form(), chunk(b"data", b""), LIST))


def adpcm(a_second: int) -> bytes:
    """IMA ADPCM with this byte rate in its header: 4 bits a sample, in blocks of 256 bytes."""
    file = io.BytesIO()
    soundfile.write(file, samples(11025, 11025), 11025, format="WAV", subtype="IMA_ADPCM")
    raw = bytearray(file.getvalue())
    struct.pack_into("<I", raw, raw.index(b"fmt ") + 16, a_second)
    return bytes(raw)


@pytest.mark.parametrize("a_second", [5588, 5589, 5590, 5644, 5513])
def test_adpcm_has_a_rounded_byte_rate(a_second):
    raw = adpcm(a_second)
    wanted, rate = soundfile.read(io.BytesIO(raw), dtype="float32")
    clip = audio.load(raw, WHOLE, rate)
    np.testing.assert_array_equal(clip.samples, wanted)
    assert np.corrcoef(clip.samples[:11025], samples(11025, 11025))[0, 1] > 0.98
    assert clip.notes == ()


# ---- chains, by hand


def test_a_chain_of_ogg_and_joined_mp3_are_two_seconds(tmp_path):
    for name, kind in {
        "a.ogg": {"format": "OGG", "subtype": "VORBIS"},
        "a.opus": {"format": "OGG", "subtype": "OPUS"},
        "a.mp3": {"format": "MP3"},
    }.items():
        path = tmp_path / name
        soundfile.write(path, samples(RATE), RATE, **kind)
        one, _ = soundfile.read(path, dtype="float32")
        path.write_bytes(path.read_bytes() * 2)
        clip = audio.load(path, WHOLE, RATE)
        assert clip.seconds == 2.0
        np.testing.assert_allclose(clip.samples, np.concatenate([one, one]), atol=2e-7)
        found = list(Layout(0.5).apply([(Item("a", path), WHOLE)], "audio"))
        assert [entry[1].key for entry in found] == ["0-0.5", "0.5-1", "1-1.5", "1.5-2"]


def test_joined_mp3_with_tags_and_without_lengths():
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    one = file_of("MP3", 20_000)
    assert len(load(one + tag + one)) == 40_000
    assert len(load(tag + one + tag + one + b"TAG" + bytes(125))) == 40_000
    assert len(load(one + b"TAG" + bytes(125))) == 20_000


def ape_tag(size: int) -> bytes:
    """A tag of that many bytes between its header and the end of its footer."""
    ends = [struct.pack("<IIII", 2000, size, 0, flags) + bytes(8) for flags in (5 << 29, 1 << 31)]
    return b"APETAGEX" + ends[0] + bytes(size - 32) + b"APETAGEX" + ends[1]


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), ape_tag(200), ape_tag(9000)])
def test_mp3_joined_with_tags_at_their_ends(tag):
    """As players leave them: a tag stands between one recording and the next."""
    one, other = file_of("MP3", 20_000), file_of("MP3", 9000, 1)
    wanted = np.concatenate([load(one), load(other)])
    for raw in (one + tag + other, one + tag + other + tag, one + ape_tag(40) + tag + other):
        np.testing.assert_allclose(load(raw), wanted, atol=2e-7)
    assert len(load(one + tag)) == 20_000


def test_recordings_of_chunks_joined_behind_other_chunks():
    """The second one is no chunk of the first."""
    for kind, note in (("WAV", LIST), ("AIFF", b"ANNO\0\0\0\x64" + bytes(100))):
        files = []
        for values in (samples(20_000), samples(9000, seed=1)):
            file = io.BytesIO()
            soundfile.write(file, values, RATE, format=kind)
            body = file.getvalue() + note
            size = struct.pack("<I" if kind == "WAV" else ">I", len(body) - 8)
            files.append(body[:4] + size + body[8:])
        got = load(b"".join(files))
        wanted = [soundfile.read(io.BytesIO(one), dtype="float32")[0] for one in files]
        np.testing.assert_array_equal(got, np.concatenate(wanted))
        assert len(load(files[0])) == 20_000


def test_a_flac_with_a_tag_of_mp3():
    raw = file_of("FLAC", 20_000) + b"TAG" + bytes(125)
    np.testing.assert_array_equal(load(raw), samples(20_000))


@pytest.mark.parametrize("other", [{"rate": 8000}, {"channels": 2}])
@pytest.mark.parametrize("kind", ["OGG", "MP3", "FLAC", "WAV"])
def test_parts_of_other_rates_or_channels_are_refused_by_place(kind, other):
    files = []
    for rate, channels in ((RATE, 1), (other.get("rate", RATE), other.get("channels", 1))):
        file = io.BytesIO()
        values = np.stack([samples(2 * rate, rate)] * channels, axis=1)
        soundfile.write(file, values, rate, format=kind)
        files.append(file.getvalue())
    with pytest.raises(DecodeError, match=r"2 recordings joined .* part 2, from 2 s on, has a"):
        load(b"".join(files))


def test_ogg_without_its_last_page_is_told():
    raw = file_of("Ogg Vorbis", 20 * RATE)
    last = raw.rindex(b"OggS")
    clip = audio.load(raw[:last], WHOLE, RATE)
    assert "ends without the mark of the last page" in clip.notes[0]
    with pytest.raises(DecodeError, match="truncated or damaged: ends inside a page of Ogg"):
        load(raw[: last + 100])
    *windows, lost = Layout(1.0).apply([(Item("a", raw[: last + 100]), WHOLE)], "audio")
    assert isinstance(lost, Failure) or isinstance(windows[0], Failure)


def test_a_flac_with_too_few_samples_in_its_header():
    raw = bytearray(file_of("FLAC", 20_000))
    raw[22:26] = (8000).to_bytes(4, "big")
    clip = audio.load(bytes(raw), WHOLE, RATE)
    np.testing.assert_array_equal(clip.samples, samples(20_000))
    assert clip.notes == ("the header gives 8,000 frames and 20,000 lie there; read to the end",)


# ---- on the command line


def test_notes_are_printed_and_in_the_json(tmp_path, caplog):
    died = tmp_path / "died.wav"
    died.write_bytes(riff(form(), chunk(b"data", DATA, 0)))
    fine = tmp_path / "fine.wav"
    fine.write_bytes(riff(form(), chunk(b"data", DATA)))
    into = str(tmp_path / "a.lance")
    options = ["--into", into, "--engine", "torch", "--workers", "0"]
    done = CliRunner().invoke(app, ["embed", "demo", str(died), str(fine), *options])
    assert done.exit_code == 0, done.output
    assert "2 embedded" in done.output
    assert "1 file with a wrong header" in done.output
    vectors = penult.Collection.open(into).vectors()[1]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    document = json.loads(
        CliRunner().invoke(app, ["embed", "demo", str(died), *options, "--json"]).stdout
    )
    assert document["notes"] == {"count": 0, "first": {}}  # unchanged, so not read again
    other = ["--into", str(tmp_path / "b.lance"), *options[2:], "--json"]
    document = json.loads(CliRunner().invoke(app, ["embed", "demo", str(died), *other]).stdout)
    assert document["notes"]["count"] == 1
    [(id, note)] = document["notes"]["first"].items()
    assert id == f"{tmp_path.name}/died.wav" and "gives 0 bytes of sound" in note
    caplog.clear()
    CliRunner().invoke(app, ["classify", "demo", str(died)])
    (record,) = [one for one in caplog.records if one.name == "penult.embedding.runner"]
    assert "gives 0 bytes of sound" in record.getMessage()


# ---- text that is no sound


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            b"This is a letter, not a sound.",
            "it is text, which begins 'This is a letter, not a sound.'",
        ),
        ("Vögel im Mai\nund Juni".encode(), "it is text, which begins 'Vögel im Mai'"),
        (
            b"Selection\tView\tBegin Time (s)\n1\tWave\t0.5\n",
            "columns Selection, View, Begin Time (s)",
        ),
        ("Start;Ende\n1,5;2,5\n".encode("utf-16"), "a table with the columns Start, Ende"),
        (b"<!DOCTYPE html>\n<html><body>404", "it is a web page (HTML)"),
    ],
)
def test_text_that_is_no_sound_is_told_as_text(tmp_path, raw, words):
    path = tmp_path / "a.wav"
    path.write_bytes(raw)
    for content in (raw, path):
        with pytest.raises(DecodeError) as failed:
            load(content)
        assert words in str(failed.value)
        assert str(failed.value).startswith("not readable as audio: it is")
    with pytest.raises(DecodeError, match="not readable as audio: F"):
        load(bytes(range(256)) * 10)
