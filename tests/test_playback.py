"""Band-pass and playback rate: the vectors of a recording that is filtered or slowed by Penult are
those of a file that scipy and soundfile have filtered or slowed before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from scipy.signal import butter, sosfiltfilt

from penult.collection.collection import Collection
from test_cli import ask
from zoo import save_audio, save_image

QUIET = ("--workers", "0", "--engine", "torch")
HIGH = 48_000  # Hz, of the recordings
BAND = (500.0, 6000.0)
Samples = npt.NDArray[np.float64]


def chirp(number: int, seconds: float = 1.0) -> Samples:
    """A sweep with noise, for each number another one."""
    rng, t = np.random.default_rng(number), np.arange(int(seconds * HIGH)) / HIGH
    sweep = np.sin(2 * np.pi * (200 * (number + 1) + 4000 * t) * t)
    return 0.3 * sweep + 0.02 * rng.standard_normal(len(t))


def passed(samples: Samples) -> Samples:
    found: Samples = sosfiltfilt(butter(4, BAND, "bandpass", fs=HIGH, output="sos"), samples)
    return found


def written(folder: Path, clips: list[Samples], rate: int = HIGH) -> Path:
    folder.mkdir()
    for number, one in enumerate(clips):
        soundfile.write(folder / f"{number}.wav", one, rate, subtype="DOUBLE")
    return folder


def embedded(model: Any, recs: Path, into: Path, *options: str) -> Collection:
    done = ask("embed", model, recs, "--into", into, *options, "--json", *QUIET)
    assert done.code == 0, done.err + done.out
    return Collection.open(into)


def rows(collection: Collection) -> tuple[list[dict[str, Any]], npt.NDArray[np.float32]]:
    table, vectors = collection.vectors(columns=["id", "region", "start", "end", "truncated"])
    return table.to_pylist(), vectors


def assert_same(one: Collection, other: Collection) -> None:
    """Vectors are the same within 1e-5 of their length."""
    first, second = rows(one)[1], rows(other)[1]
    assert first.shape == second.shape and len(first)
    far = np.linalg.norm(first - second, axis=1) / np.linalg.norm(second, axis=1)
    assert far.max() < 1e-5


CLIPS = [chirp(number) for number in range(3)]


def test_a_band_is_that_of_scipy(tiny: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", CLIPS)
    before = written(tmp_path / "before", [passed(one) for one in CLIPS])
    filtered = embedded(tiny, plain, tmp_path / "a.lance", "--band", "500-6000")
    assert_same(filtered, embedded(tiny, before, tmp_path / "b.lance"))
    other = rows(embedded(tiny, plain, tmp_path / "c.lance"))[1]
    assert np.abs(rows(filtered)[1] - other).max() > 1e-3  # the filter does something
    # Again, by what the first run has kept of the model, and with decoding in other processes.
    done = ask("embed", tiny, plain, "--into", tmp_path / "d.lance", "--band", "500-6000",
               "--workers", "2", "--engine", "torch")  # fmt: skip
    assert done.code == 0, done.err
    assert_same(filtered, Collection.open(tmp_path / "d.lance"))


def test_a_window_is_filtered_as_the_file_that_is_cut_out(tiny: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", CLIPS)
    halves = [half for one in CLIPS for half in np.split(one, 2)]
    before = written(tmp_path / "before", [passed(half) for half in halves])
    cut = embedded(tiny, plain, tmp_path / "a.lance", "--band", "500-6000", "--window", "0.5s")
    assert_same(cut, embedded(tiny, before, tmp_path / "b.lance"))


def test_slow_playback_is_a_file_of_another_rate(tiny: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", CLIPS)
    slow = written(tmp_path / "slow", CLIPS, HIGH // 4)
    options = ("--playback-rate", "0.25", "--window", "0.25s")
    played = embedded(tiny, plain, tmp_path / "a.lance", *options)
    before = embedded(tiny, slow, tmp_path / "b.lance", "--window", "1s")
    assert_same(played, before)
    ours, theirs = rows(played)[0], rows(before)[0]
    assert len(ours) == 12
    assert [row["start"] for row in ours] == [row["start"] / 4 for row in theirs]
    assert [row["end"] for row in ours] == [row["end"] / 4 for row in theirs]
    both = written(tmp_path / "both", [passed(one) for one in CLIPS], HIGH // 4)
    options = ("--playback-rate", "0.25", "--band", "500-6000")
    assert_same(
        embedded(tiny, plain, tmp_path / "c.lance", *options),
        embedded(tiny, both, tmp_path / "d.lance"),
    )


def test_queries_and_predictions_are_read_as_the_rows(tiny: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", CLIPS)
    into, options = tmp_path / "a.lance", ("--band", "500-6000", "--playback-rate", "0.5")
    embedded(tiny, plain, into, *options)
    said = ask("search", into, plain / "1.wav", "-k", 1, "--json")
    assert said.code == 0, said.err
    (hit,) = json.loads(said.out)["hits"]
    assert hit["id"] == "plain/1.wav" and hit["similarity"] == pytest.approx(1, abs=1e-6)
    new = tmp_path / "copy.wav"
    new.write_bytes((plain / "2.wav").read_bytes())
    said = ask("search", into, new, "-k", 1, "--json")
    (hit,) = json.loads(said.out)["hits"]
    assert hit["id"] == "plain/2.wav" and hit["similarity"] == pytest.approx(1, abs=1e-6)
    for number in (0, 1):
        assert ask("teach", into, f"c{number}", plain / f"{number}.wav").code == 0
    said = ask("predict", into, plain / "1.wav", "--unknown", "0", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["predictions"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_a_saved_embedder_carries_band_and_rate(tiny: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", CLIPS)
    options = ("--band", "500-6000", "--playback-rate", "0.5")
    first = embedded(tiny, plain, tmp_path / "a.lance", *options)
    done = ask("convert", tiny, tmp_path / "saved", *options)
    assert done.code == 0, done.err
    assert_same(first, embedded(tmp_path / "saved", plain, tmp_path / "b.lance"))
    assert first.manifest is not None
    assert first.manifest.fingerprint["playback"] == "band 500-6000 Hz, playback rate 0.5"
    said = ask("embed", tiny, plain, "--into", tmp_path / "a.lance", *QUIET)
    assert said.code != 0 and "playback" in said.err


def test_what_a_fixed_length_sees_is_told_in_seconds_of_the_recording(
    tmp_path: Path,
) -> None:
    tiny_fixed = save_audio(tmp_path / "fixed", "audio-spectrogram-transformer")
    long = [chirp(number, 8.0) for number in range(2)]
    plain = written(tmp_path / "plain", long)
    slow = written(tmp_path / "slow", long, HIGH // 2)
    played = embedded(tiny_fixed, plain, tmp_path / "a.lance", "--playback-rate", "0.5")
    before = embedded(tiny_fixed, slow, tmp_path / "b.lance")
    assert_same(played, before)
    ours, theirs = rows(played)[0], rows(before)[0]
    assert ours[0]["truncated"] == pytest.approx(theirs[0]["truncated"] / 2)
    banded = written(tmp_path / "banded", [passed(one) for one in long])
    assert_same(
        embedded(tiny_fixed, plain, tmp_path / "c.lance", "--band", "500-6000"),
        embedded(tiny_fixed, banded, tmp_path / "d.lance"),
    )


def test_what_cannot_be_heard_so_is_refused(tiny: Path, tmp_path: Path) -> None:
    recs = written(tmp_path / "recs", CLIPS[:1])
    soundfile.write(recs / "low.wav", CLIPS[0][::6], HIGH // 6)
    done = ask("embed", tiny, recs, "--into", tmp_path / "c.lance", "--band", "500-6000",
               "--json", *QUIET)  # fmt: skip
    assert done.code == 3
    (failed,) = Collection.open(tmp_path / "c.lance").failures().to_pylist()
    assert failed["id"] == "recs/low.wav" and "beyond 4000 Hz" in failed["message"]
    for band in ("8000-500", "0-500", "bats"):
        said = ask("embed", tiny, recs, "--into", tmp_path / "d.lance", "--band", band, *QUIET)
        assert said.code == 2 and "500-8000" in said.err
    arguments = ("--into", tmp_path / "d.lance", "--playback-rate", "0", *QUIET)
    assert ask("embed", tiny, recs, *arguments).code == 2
    pictures = save_image(tmp_path / "pictures")
    said = ask("embed", pictures, recs, "--into", tmp_path / "d.lance", "--band", "500-6000")
    assert said.code == 2
    said = ask("inspect", pictures, "--band", "500-6000")
    assert said.code == 2 and "takes image" in said.err
