"""Streaming: many regions of one recording, each to the bit what it is alone, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import thinned
from penult.data import audio, audio_stream
from penult.data.regions import WHOLE, Region, windows
from penult.errors import ItemError
from test_media import EXACT, FORMATS, encoded, noise, pyav, wav, written

NAMES = [*FORMATS, "m4a", "lie.mp3"]  # the last one has no length


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two channels, three seconds, one of them silent."""
    folder = tmp_path_factory.mktemp("long")
    samples = noise(16000, 3.0, channels=2)
    samples[16000:32000] = 0
    found = {n: written(folder / f"a.{n}", samples, 16000, **FORMATS[n]) for n in FORMATS}
    try:
        pyav()
    except pytest.skip.Exception:
        return found
    found["m4a"] = encoded(folder / "a.m4a", "aac", 16000, samples)
    found["lie.mp3"] = encoded(folder / "b.mp3", "libmp3lame", 16000, samples, write_xing="0")
    return found


def alone(content: object, region: Region, rate: int = 16000, **rest) -> audio.Clip | ItemError:
    try:
        return audio.load(content, region, rate, **rest)
    except ItemError as error:
        return error


def assert_same(content: object, regions: list[Region], rate: int = 16000, **rest) -> None:
    found = list(audio.load_many(content, iter(regions), rate, **rest))
    assert len(found) == len(regions)
    for region, got in zip(regions, found, strict=True):
        wanted = alone(content, region, rate, **rest)
        assert type(got) is type(wanted), (region, got, wanted)
        if isinstance(got, audio.Clip):
            np.testing.assert_array_equal(got.samples, wanted.samples)
            assert got.samples.dtype == np.float32
            assert (got.seconds, got.start, got.end) == (wanted.seconds, wanted.start, wanted.end)
        else:
            assert str(got) == str(wanted), region


def every(length: float, window: float, hop: float, channel: int | None = None) -> list[Region]:
    return [Region("window", a, b, channel) for a, b in windows(length, window, hop)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [16000, 11025])
def test_windows_are_what_they_are_alone(recordings, name, rate):
    if name not in recordings:
        pytest.skip("needs PyAV")
    for window, hop in ((0.5, 0.5), (0.7, 0.13), (0.1, 0.6)):
        assert_same(recordings[name], every(3.0, window, hop), rate)


TIMES = st.integers(0, 3_300_000).map(lambda micros: micros / 1e6)


@st.composite
def some_regions(draw) -> Region:
    a, b = sorted((draw(TIMES), draw(TIMES)))
    channel = draw(st.sampled_from([None, 0, 1, 2]))
    start, end = draw(st.sampled_from([(a, b), (None, b), (a, None), (None, None)]))
    if end is not None and end <= (start or 0):
        end = None
    return Region("segment", start, end, channel)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(NAMES), st.lists(some_regions(), max_size=8), st.booleans(), st.data())
def test_any_regions_in_any_order(recordings, name, regions, in_order, data):
    if name not in recordings:
        return
    if in_order:
        regions.sort(key=lambda region: region.start or 0)
    limit = data.draw(st.sampled_from([None, 0.5, 2.0]))
    assert_same(recordings[name], regions, max_seconds=limit)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.999, 0.7, 0.31])
@pytest.mark.parametrize("kind", ["cut", "holed"])
def test_damaged_files_are_as_damaged_as_they_are_alone(recordings, name, share, kind):
    if name not in recordings:
        pytest.skip("needs PyAV")
    raw = bytearray(recordings[name].read_bytes())
    place = int(len(raw) * share)
    if kind == "cut":
        del raw[place:]
    else:
        raw[place : place + 400] = np.random.default_rng(0).bytes(len(raw[place : place + 400]))
    assert_same(bytes(raw), every(3.0, 0.2, 0.1))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_files(recordings, data):
    raw = bytearray(recordings[data.draw(st.sampled_from(sorted(recordings)))].read_bytes())
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 10))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert_same(bytes(raw), every(3.0, 0.5, 0.25), max_seconds=5)


@pytest.mark.parametrize("content", [b"", b"hello", Path("gone.wav"), "a.wav", wav(rate=200)])
def test_what_cannot_be_opened_fails_once_for_each(content):
    assert_same(content, [WHOLE, *every(2.0, 1.0, 1.0)])


def test_arrays(recordings):
    values = np.ascontiguousarray(noise(16000, 2.0, 2).T)
    regions = [*every(2.0, 0.5, 0.3), WHOLE, *every(2.0, 0.5, 0.5, channel=1)]
    assert_same(values, regions)
    assert_same(values, regions, source_rate=16000)
    assert_same(values, regions, 11025, source_rate=16000)


def test_regions_are_asked_for_one_at_a_time(recordings):
    asked: list[object] = []

    def endless():
        while True:
            asked.append(len(asked) / 10)
            yield Region("window", asked[-1], asked[-1] + 0.5)

    found = list(islice(audio.load_many(recordings["mp3"], endless(), 16000), 5))
    assert len(found) == len(asked) == 5
    assert list(audio.load_many("not opened at all", [], 16000)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_decoded_once(monkeypatch, recordings, name):
    if name not in recordings:
        pytest.skip("needs PyAV")
    frames, opened = [], []
    before = audio_stream.open_stream

    def counted(content, rate):
        opened.append(content)
        return before(content, rate)

    def read(tape, *span, real=None):
        block = real(tape)
        frames.append(0 if block is None else len(block))
        return block

    real = audio_stream.ForwardReader._next
    monkeypatch.setattr(audio_stream, "open_stream", counted)
    monkeypatch.setattr(audio_stream.ForwardReader, "_next", lambda self: read(self, real=real))
    list(audio.load_many(recordings[name], every(3.0, 0.5, 0.1), 16000))
    assert len(opened) == 1
    assert sum(frames) < 3.3 * 16000
    channels = [Region("window", r.start, r.end, c) for r in every(3, 1, 0.5) for c in (0, 1)]
    list(audio.load_many(recordings[name], channels, 16000))
    assert len(opened) == 2
    back = [*every(3.0, 0.5, 1.0), *every(3.0, 0.5, 1.0)]
    list(audio.load_many(recordings[name], back, 16000))
    assert len(opened) == (3 if name in EXACT else 4)  # where seeking is exact it is used


def test_lengths_are_counted_where_the_header_guesses(recordings):
    for name, path in recordings.items():
        about, counted = audio.info(path), audio.info(path, exact=True)
        assert counted.exact
        assert counted.missing == 0
        whole = audio.load(path, WHOLE, 16000)
        assert counted.frames == len(whole.samples)
        assert counted.seconds == whole.seconds
        if about.exact:
            assert about == counted
        assert about.exact == (name not in ("mp3", "m4a", "lie.mp3"))


# ---- memory


MEASURE = """
import json, sys
from pathlib import Path
from penult.data import audio
from penult.data.regions import Region, windows

def resident():  # the most so far, in MB; what getrusage says begins with the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

path, window, hop = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
list(audio.load_many(path, [Region("window", 0, window)], 16000))
before, count, seconds = resident(), 0, audio.info(path, exact=True).seconds
regions = (Region("window", a, b) for a, b in windows(seconds, window, hop))
for clip in audio.load_many(path, regions, 16000):
    assert isinstance(clip, audio.Clip), clip
    count += 1
print(json.dumps({"growth": resident() - before, "count": count, "seconds": seconds}))
"""


def streamed(path: Path, hours: float, rate: int, **kind: str) -> Path:
    """A long file, written as it is made."""
    minute = 0.1 * np.random.default_rng(0).standard_normal((rate * 60, 1))
    with soundfile.SoundFile(path, "w", rate, 1, **kind) as file:
        for _ in range(round(hours * 60)):
            for start in range(0, len(minute), 1 << 16):
                file.write(minute[start : start + (1 << 16)])
    return path


def measured(path: Path, window: float, hop: float) -> dict[str, float]:
    if not Path("/proc/self/status").exists():
        pytest.skip("no way to tell the memory here")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(window), str(hop)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", thinned(["a.wav", "a.mp3"], ["a.wav"]))
def test_memory_does_not_follow_the_length(tmp_path, name):
    found = measured(streamed(tmp_path / name, 0.25, 16000), 5.0, 2.5)
    assert found["count"] == 359
    assert found["growth"] < 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_two_hours_in_little_memory(tmp_path, name):
    found = measured(streamed(tmp_path / name, 2, 22050), 5.0, 2.5)
    assert found["count"] == pytest.approx(2 * 3600 / 2.5 - 1, abs=1)
    assert found["growth"] < 200


@pytest.mark.parametrize("name", NAMES)
def test_the_first_seconds(recordings, name):
    """What a proof reads of a long recording: its beginning, the rest is left."""
    if name not in recordings:
        pytest.skip("needs PyAV")
    path = recordings[name]
    for region in (WHOLE, Region("segment", 0.2, 0.7), Region("whole", channel=1)):
        whole = audio.load(path, region, 16000)
        for seconds, count in ((0.25, 4000), (10.0, len(whole.samples))):
            found = audio.load(path, region, 16000, first_seconds=seconds, max_seconds=0.1)
            np.testing.assert_array_equal(found.samples, whole.samples[:count])
            assert found.seconds == count / 16000
    assert_same(path, [WHOLE, *every(1.0, 0.5, 0.25)], first_seconds=0.1)
    beyond = Region("segment", 2.9, 9.0)
    assert str(alone(path, beyond, first_seconds=1.0)) == str(alone(path, beyond))


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_clip_is_decoded_once_for_the_proof_and_once_for_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The choice of an engine takes the proof's items."""
    from test_cli import ask

    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16000, 1.0), 16000)
    opened: list[object] = []
    before = soundfile.SoundFile.__init__

    def counted(self, file, *rest, **named):
        opened.append(file)
        before(self, file, *rest, **named)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", counted)
    into = tmp_path / "c.lance"
    said = ask("embed", tiny, path, "--into", into, "--engine", engine, "--workers", 0)
    assert said.code == 0 and "1 embedded" in said.out
    assert "head proved on a.wav" in said.out
    assert len(opened) == 2
