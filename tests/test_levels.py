"""Numbers out of range, channels that cancel, constant levels: refused, with the figure."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import penult
from penult.cli.main import app
from penult.data import audio
from penult.data.regions import WHOLE, Region
from penult.errors import DecodeError, EmptyItem, ItemError, UsageError

RATE = 16000
RANDOM = np.random.default_rng(0)
TONE = (
    0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) + 0.05 * RANDOM.standard_normal(RATE)
).astype(np.float32)


def sound_file(values: np.ndarray, subtype: str = "FLOAT", rate: int = RATE) -> bytes:
    """values: (n,) or (n, channels)."""
    file = io.BytesIO()
    soundfile.write(file, values, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def load(content: object, region: Region = WHOLE) -> np.ndarray:
    return audio.load(content, region, RATE).samples


@pytest.mark.parametrize(
    ("scale", "divisor"), [(127, 128), (2**15, 32768), (2**23, 8388608), (2**31, 2147483648)]
)
def test_floats_in_the_range_of_integers_are_refused(scale, divisor):
    whole = np.rint(TONE * scale).astype(np.float32)
    for values in (TONE * scale, whole, np.stack([whole, -whole // 3], axis=1)):
        for content in (sound_file(values), values.T):
            with pytest.raises(DecodeError, match=rf"samples reach .* divide them by {divisor}"):
                load(content)


def test_quiet_windows_of_such_a_file_are_refused_with_it():
    """By themselves they lie within \u00b116, and would be too loud by the same factor."""
    quiet = TONE * np.geomspace(1e-4, 1, RATE).astype(np.float32)
    content = sound_file(quiet * 2**15)
    for start in (0.0, 0.1, 0.9):
        with pytest.raises(DecodeError, match="divide them by 32768"):
            load(content, Region("segment", start, start + 0.05))


@pytest.mark.parametrize("gain", [0.001, 0.9, 1.2, 4.0, 10.0])
def test_mixes_in_floating_point_may_go_above_one(gain):
    values = TONE * gain
    for content in (sound_file(values), values, values.astype(np.float64)):
        np.testing.assert_array_equal(load(content), values)


def test_a_click_far_above_one_fails_alone():
    values = TONE.copy()
    values[RATE // 2] = 1e30
    content = sound_file(values)
    with pytest.raises(DecodeError, match=r"samples reach 1e\+30.*damaged, or no sound"):
        load(content)
    np.testing.assert_array_equal(load(content, Region("segment", 0.0, 0.25)), TONE[: RATE // 4])


@pytest.mark.parametrize("gain", [2**-4, 2**-8, 2**-14])
def test_quiet_integers_are_sound(gain):
    """12 bits in 16, 24 in 32: quiet, and right as every player plays them."""
    values = np.rint(TONE * 2**15 * gain).astype(np.int16)
    for content in (sound_file(values, "PCM_16"), values):
        np.testing.assert_array_equal(load(content), values / np.float32(2**15))
    wide = np.rint(TONE * 2.0**23).astype(np.int32)
    np.testing.assert_array_equal(load(wide), (wide / 2.0**31).astype(np.float32))


def test_sixteen_bits_in_an_array_of_thirty_two_are_refused():
    values = np.rint(TONE * 2**15).astype(np.int32)
    with pytest.raises(DecodeError, match=r"int32 samples that reach \d+ of 2147483648.*int16"):
        load(values)
    np.testing.assert_array_equal(load(values << 16), load(values.astype(np.int16)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full(RATE, 0.25), "all 16000 samples are 0.25: a constant level"),
        (np.full((RATE, 2), -0.5), "constant level"),
        (np.zeros(RATE), "nothing but zeros"),
        (TONE * 1e-38, "digital silence with a residue"),
        (np.where(np.arange(RATE) == 7, np.nan, TONE), "not finite"),
        (np.where(np.arange(RATE) == 7, -np.inf, TONE), "not finite"),
    ],
)
def test_levels_that_are_no_sound(values, reason):
    for content in (sound_file(values.astype(np.float32)), values.T):
        with pytest.raises(EmptyItem, match=reason):
            load(content)


def test_a_constant_level_under_a_sound_is_let_alone():
    values = (TONE * 1e-3 + 0.25).astype(np.float32)
    np.testing.assert_array_equal(load(sound_file(values)), values)


# ---- channels that cancel


def decibels(left: np.ndarray, right: np.ndarray) -> float:
    """How far the mean of two channels lies below the louder one, computed another way."""
    loudest = max(np.std(left.astype(float)), np.std(right.astype(float)))
    mean = np.std((left.astype(float) + right.astype(float)) / 2)
    return 20 * float(np.log10(loudest / mean)) if mean else float("inf")


@settings(max_examples=25, deadline=None)
@given(st.floats(20, 100), st.floats(-0.3, 0.3), st.sampled_from(["FLOAT", "PCM_16", "PCM_24"]))
def test_channels_that_cancel_by_sixty_decibels_are_refused(level, offset, subtype):
    """offset: a constant level in one channel, which hides nothing."""
    other = -TONE + np.float32(2 * 10 ** (-level / 20)) * np.roll(TONE, 5000)
    pair = np.stack([TONE, other + np.float32(offset)], axis=1) * np.float32(0.5)
    content = sound_file(pair, subtype)
    decoded, _ = soundfile.read(io.BytesIO(content), always_2d=True)
    below = decibels(*decoded.T)
    if 59.9 < below < 60.1:
        return
    if below < 60:
        np.testing.assert_allclose(load(content), decoded.mean(axis=1), atol=1e-7)
        return
    with pytest.raises(EmptyItem, match=r"2 channels cancel .* lies \d+ dB below.*--channel 0"):
        load(content)
    for channel in (0, 1):
        one = load(content, Region(channel=channel))
        np.testing.assert_allclose(one, decoded[:, channel], atol=1e-7)


def test_exactly_opposite_channels_are_not_called_silent():
    for content in (sound_file(np.stack([TONE, -TONE], 1)), np.stack([TONE, -TONE])):
        with pytest.raises(EmptyItem, match=r"cancel .* nothing but zeros; take one with --ch"):
            load(content)
    with pytest.raises(EmptyItem, match=r"^nothing but zeros"):
        load(np.zeros((2, 100)))


def test_only_the_region_counts():
    """A window in which the channels cancel is refused; the rest of the recording is as it was."""
    right = TONE.copy()
    right[: RATE // 2] *= -1
    content = sound_file(np.stack([TONE, right], 1))
    np.testing.assert_allclose(load(content, Region("segment", 0.5, 1.0)), TONE[RATE // 2 :])
    load(content)
    with pytest.raises(EmptyItem, match=r"^from 0 s to 0\.5 s: the 2 channels cancel"):
        load(content, Region("segment", 0.0, 0.5))


def test_one_of_many_channels_is_no_cancellation():
    many = np.zeros((RATE, 64), np.float32)
    many[:, 5] = TONE
    np.testing.assert_allclose(load(sound_file(many)), TONE / 64, atol=1e-9)
    many[:, 6:8] = np.stack([TONE, -TONE], 1)
    np.testing.assert_allclose(load(sound_file(many)), TONE / 64, atol=1e-8)
    opposite = np.stack([TONE, -TONE] * 3 + [TONE * 0], 1)
    with pytest.raises(EmptyItem, match="7 channels cancel"):
        load(sound_file(opposite))


def test_every_command_refuses_channels_that_cancel(tmp_path):
    path = tmp_path / "xlr.wav"
    soundfile.write(path, np.stack([TONE, -TONE], 1), RATE)
    run = CliRunner().invoke
    into = str(tmp_path / "a.lance")
    for command in (
        ["classify", "demo", str(path)],
        ["embed", "demo", str(path), "--into", into, "--engine", "torch", "--workers", "0"],
    ):
        failed = run(app, command)
        assert failed.exit_code == 3, command
        assert "channels cancel each other" in failed.output.replace("\n", " ")
        assert run(app, [*command, "--channel", "0"]).exit_code == 0, command
    assert run(app, ["search", into, str(path)]).exit_code == 0  # by channel 0, as its rows
    failed = run(app, ["search", into, str(path), "--channel", "mix"])
    assert isinstance(failed.exception, UsageError)
    assert "channels cancel each other" in str(failed.exception)


def test_a_silent_turn_of_a_call_is_one_failure_with_channel_and_time(tmp_path):
    call = np.stack([TONE, TONE], 1)
    call[4000:8000, 1] = 0
    soundfile.write(tmp_path / "call.wav", call, RATE)
    table = tmp_path / "turns.csv"
    table.write_text(
        "path,start,end,channel\ncall.wav,0,0.25,1\ncall.wav,0.25,0.5,1\ncall.wav,0.5,1,1\n"
    )
    into = tmp_path / "a.lance"
    command = ["embed", "demo", str(table), "--into", str(into), "--engine", "torch"]
    done = CliRunner().invoke(app, [*command, "--workers", "0"])
    assert done.exit_code == 3
    assert "2 embedded, 1 failed" in done.output
    (failure,) = penult.Collection.open(into).failures().to_pylist()
    assert failure["region"] == "ch1:0.25-0.5"
    assert failure["message"].startswith("channel 1, from 0.25 s to 0.5 s: nothing but zeros")


def test_in_python_the_channels_are_named_too():
    with pytest.raises(ItemError, match="channels cancel each other"):
        penult.Embedder.from_classifier(penult.load("demo")).embed([np.stack([TONE, -TONE])])
