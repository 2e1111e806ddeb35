"""The bench on memory: its files, what it counts, and that it can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import peaks  # noqa: E402


@pytest.mark.parametrize("files", [20, 60, 10_000])
def test_a_mix_has_as_many_files_as_are_asked_for(files: int) -> None:
    mix = peaks.Mix.of(files)
    assert sum(mix.counts.values()) == files and min(mix.counts.values()) > 1


def test_the_whole_mix_is_the_promised_one() -> None:
    mix = peaks.Mix.of(10_000)
    assert (mix.photos, mix.long_sound, mix.long_text) == (301, 7200, 100_000_000)


def test_files_are_the_same_each_time_and_no_two_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "PHOTO", (400, 300))
    mix = peaks.Mix.of(40)
    for name in "ab":
        peaks.write_mix(tmp_path / name, mix)
    first, second = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in "ab"
    )
    assert first == second and len(first) == 40
    assert len(set(first.values())) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is told there only")
def test_the_peak_is_that_of_all_processes_at_once() -> None:
    child = "import time; held = b'1' * 90_000_000; time.sleep(1.5)"
    code = (
        "import subprocess, sys; own = b'1' * 80_000_000; "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    ran = peaks.watched([sys.executable, "-c", code])
    assert ran.code == 0
    assert 170_000_000 <= ran.peak < 240_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "code"), [("3GB", 0), ("64MB", 1)])
def test_the_bench_tells_a_run_that_takes_more_than_its_bound(bound: str, code: int) -> None:
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--only", "memory", "--files", "30"]
    ran = subprocess.run(
        [*command, "--models", "ViT", "--bound", bound], capture_output=True, text=True
    )
    assert ran.returncode == code, ran.stderr
    assert ("more than 64 MB" in ran.stderr) == bool(code)
    assert "12 files" in ran.stdout
