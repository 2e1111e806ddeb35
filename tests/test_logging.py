"""What happens on the way is logged under `penult`, never printed; the command line shows it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

import penult
from conftest import RATE, clip, thinned
from penult.cli.main import run

CRASHING = """
import os, sys
if "from penult.data.decoding_process import serve" in " ".join(sys.orig_argv):
    import soundfile
    read = soundfile.SoundFile.__init__
    def fatal(self, file, *rest, **named):
        if "crash" in str(getattr(file, "name", file)):
            os.kill(os.getpid(), 11)
        read(self, file, *rest, **named)
    soundfile.SoundFile.__init__ = fatal
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PENULT_LOG", raising=False)


def test_an_engine_and_its_graph(
    tiny: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed() -> list[str]:
        caplog.clear()
        classifier = penult.load(tiny)
        penult.Embedder.from_classifier(classifier, engine="openvino").embed([clip(0.4)])
        return [f"{one.levelname} {one.getMessage()}" for one in caplog.records]

    with caplog.at_level(logging.INFO, "penult"):
        first, again = embed(), embed()
    assert any(one.startswith("INFO graph recorded in ") for one in first)
    for lines in (first, again):
        assert any(one.startswith("INFO engine openvino") for one in lines)
    assert not any("recorded" in one for one in again)  # it was kept
    assert all(one.name.startswith("penult.") for one in caplog.records)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that die of a segmentation fault on a file of that name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING)
    paths = [tmp_path / "site", Path(penult.__file__).parents[1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))


@pytest.mark.usefixtures("crashing")
def test_a_worker_that_dies(
    tiny: Path, recordings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(recordings / "crash.wav", clip(1.0), RATE)
    embedder = penult.Embedder.from_classifier(penult.load(tiny))
    collection = penult.Collection.open(tmp_path / "c.lance")
    with caplog.at_level(logging.INFO, "penult"):
        assert collection.add(embedder, recordings, workers=1).failed == 1
    told = [one.getMessage() for one in caplog.records if "worker" in one.getMessage()]
    # With others that were sent with it, alone, and once more in a fresh one.
    assert len(told) == 3
    for line in told:
        assert line.startswith(f"{recordings.name}/crash.wav") and "SIGSEGV" in line


def test_a_program_without_logging_sees_nothing(tmp_path: Path) -> None:
    script = "import penult, logging; logging.getLogger('penult.collection').warning('full')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("", "")


def lines(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("how", thinned(["option", "variable"], ["option"]))
def test_the_command_line_shows_it(
    how: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    soundfile.write(tmp_path / "a.wav", clip(0.4), RATE)
    command = ["embed", str(tiny), str(tmp_path / "a.wav"), "--engine", "openvino", "--into"]
    assert run([*command, str(tmp_path / "plain.lance")]) == 0
    assert "graph recorded" not in lines(capsys)
    before = list(logging.getLogger("penult").handlers)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "another"))
    if how == "variable":
        monkeypatch.setenv("PENULT_LOG", "info")
    option = ["--log", "info"] if how == "option" else []
    assert run([*option, *command, str(tmp_path / "logged.lance")]) == 0
    assert f"graph recorded in {tmp_path / 'another'}" in lines(capsys)
    assert logging.getLogger("penult").handlers == before


def test_a_level_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--log", "loud", "doctor"]) == 2
    assert "'loud' is not one of 'debug', 'info', 'warning', 'error'" in lines(capsys)
    monkeypatch.setenv("PENULT_LOG", "loud")
    assert run(["doctor"]) == 2
    assert "PENULT_LOG" in lines(capsys)


@pytest.mark.usefixtures("crashing")
def test_a_name_in_a_line_moves_no_cursor(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "crash\x1b[2J[red].wav", clip(1.0), RATE)
    soundfile.write(tmp_path / "fine.wav", clip(0.4), RATE)
    command = ["embed", str(tiny), str(tmp_path), "--into", str(tmp_path / "c.lance")]
    assert run(["--log", "info", *command, "--workers", "1"]) == 3
    shown = lines(capsys)
    assert "\\x1b[2J[red].wav ends the process that decodes it (SIGSEGV)" in shown
    assert "\x1b[2J" not in shown
