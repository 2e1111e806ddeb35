"""Runs that are stopped, watched, and whose output nobody can receive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from conftest import RATE, clip, thinned
from penult.collection.collection import Collection
from test_cli import ask

# Decoding that takes its time, in the process itself; a model that never returns, if asked for.
SLOW = """
import os, sys, time
from penult.cli.main import main
from penult.data import decode
reading = decode.open_regions
def slowly(pairs, target, **named):
    for one in reading(pairs, target, **named):
        time.sleep(float(os.environ.get("PAUSE", "0.05")))
        yield one
decode.open_regions = slowly
if "STUCK" in os.environ:
    import ctypes
    from penult.collection import add
    def stuck(step, summary):
        open(os.environ["STUCK"], "w").close()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # as a library that does not return: no handler runs
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    settings = add.RunSettings
    add.RunSettings = lambda *rest: settings(*rest[:4], stuck)
main(sys.argv[1:])
"""
QUIET = ("--workers", "0")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(400):
        soundfile.write(folder / f"{number:03}.wav", clip(0.1, number % 9), RATE)
    return folder


def start(
    *arguments: object, before: Callable[[], object] | None = None, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def wait_for_rows(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (path / "collection.json").exists() and Collection.open(path).count:
            return
        time.sleep(0.1)
    raise AssertionError("no row was committed")


def heeding() -> None:
    """As on a terminal: a shell's background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_terminal_that_closes_stops_a_run_in_order(
    light: Path, many: Path, tmp_path: Path
) -> None:
    """It is sent twice, by the kernel and by the shell. Meanwhile `info` knows the writer."""
    store = tmp_path / "c.lance"
    process = start("embed", light, many, "--into", store, *QUIET, before=heeding)
    wait_for_rows(store, process)
    told = ask("info", store, "--json").json
    assert told["runs"][-1]["status"] == "running" and told["writer"]["pid"] == process.pid
    assert f"by process {process.pid}" in ask("info", store).out
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Committed rows are kept" in err, err
    told = ask("info", store, "--json").json
    assert told["runs"][-1]["status"] == "stopped" and told["writer"] is None
    assert 0 < told["runs"][-1]["done"] == told["rows"] < 400


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_nohup_holds_and_a_killed_writer_is_seen(light: Path, many: Path, tmp_path: Path) -> None:
    store = tmp_path / "c.lance"
    ignoring = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = start("embed", light, many, "--into", store, *QUIET, before=ignoring)
    wait_for_rows(store, process)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    process.kill()
    process.communicate()
    told = ask("info", store, "--json").json
    assert told["runs"][-1]["status"] == "killed" and told["writer"] is None
    assert Collection.open(store).runs()["status"].to_pylist() == ["running"]  # as it was written
    assert "the last is killed" in ask("info", store).out


@pytest.mark.skipif(os.name == "nt", reason="no such signals here")
@pytest.mark.parametrize("second", thinned([signal.SIGTERM, signal.SIGINT], [signal.SIGINT]))
def test_a_second_signal_ends_at_once(
    light: Path, many: Path, tmp_path: Path, second: signal.Signals
) -> None:
    """Even while a library does not return."""
    store = tmp_path / "c.lance"
    process = start(
        "embed", light, many, "--into", store, *QUIET, before=heeding, PAUSE="0",
        STUCK=str(stuck := tmp_path / "stuck"),
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not stuck.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(second)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert Collection.open(store).count > 0


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_tell_a_run_line_by_line(light: Path, many: Path, tmp_path: Path) -> None:
    (bad := many / "bad.wav").write_bytes(b"no sound")
    run = ("embed", light, many, "--into", tmp_path / "c.lance", *QUIET, "--heartbeat", "0.3")
    process = start(*run, "--log", "json", "--json", PAUSE="0.02")
    out, err = process.communicate(timeout=300)
    bad.unlink()
    done, found = json.loads(out), events(err)
    kinds = [one["event"] for one in found]
    assert kinds[0] == "start" and kinds[-1] == "end" and process.returncode == 3
    assert {"stage", "progress", "commit", "failure"} <= set(kinds)
    end = found[-1]
    assert end["code"] == 3 and end["run"] == done["run"] and end["failures"]["new"] == 1
    assert {name: end[name] for name in ("done", "failed")} == {"done": 400, "failed": 1}
    commits = [one for one in found if one["event"] == "commit"]
    assert sum(one["rows"] for one in commits) == 400 and commits[-1]["done"] == 400
    (failure,) = [one for one in found if one["event"] == "failure"]
    assert (
        failure["id"] == f"{bad.parent.name}/{bad.name}" and failure["error"] and failure["message"]
    )
    progress = [one for one in found if one["event"] == "progress"]
    assert [one["seen"] for one in progress] == sorted(one["seen"] for one in progress)
    assert progress[-1]["total"] == 401 and progress[-1]["eta"] >= 0 and progress[-1]["rate"] > 0
    times = [one["time"] for one in found]
    assert times == sorted(times)


def test_a_heartbeat_comes_while_nothing_moves(light: Path, many: Path, tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    soundfile.write(one / "slow.wav", clip(0.2), RATE)
    run = ("embed", light, one, "--into", tmp_path / "c.lance", *QUIET, "--heartbeat", "0.2")
    process = start("--log=json", *run, PAUSE="1.5")
    _, err = process.communicate(timeout=100)
    beats = [event for event in events(err) if event["event"] == "heartbeat" and "seen" in event]
    seen = [one["seen"] for one in beats]
    assert process.returncode == 0, err
    # None was done for the time of the pause; on a busy machine one comes behind the commit, too.
    assert seen.count(0) >= 3 and seen == sorted(seen), err


def test_lines_of_progress_where_stderr_is_no_terminal(
    light: Path, many: Path, tmp_path: Path
) -> None:
    run = ("embed", light, many, "--into", tmp_path / "c.lance", *QUIET, "--heartbeat", "0.3")
    _, err = (process := start(*run, PAUSE="0.01")).communicate(timeout=300)
    lines = [line for line in err.splitlines() if line.startswith("embedding: ")]
    assert process.returncode == 0 and len(lines) >= 2
    assert all("items/s" in line for line in lines) and any(" of 400 items" in x for x in lines)


def test_errors_are_events_too(tmp_path: Path) -> None:
    said = ask("--log", "json", "info", tmp_path / "nothing.lance")
    found = events(said.err)
    assert said.code == 2 and [one["event"] for one in found] == ["start", "error", "end"]
    assert "there is no collection" in found[1]["message"] and found[2]["code"] == 2
    assert ask("info", tmp_path / "nothing.lance").error  # the next command is told in words


FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def store(light: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    soundfile.write(root / "one.wav", clip(0.2), RATE)
    assert ask("embed", light, root / "one.wav", "--into", root / "c.lance", *QUIET).code == 0
    return root / "c.lance"


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = f'exec {sys.executable} -m penult "$@" {line}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("line", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", [["--json"], []])
def test_output_that_cannot_be_written_is_told(
    store: Path, line: str, arguments: list[str]
) -> None:
    done = shell(line, "info", store, *arguments)
    reason = "No space left on device" if "full" in line else "stdout is closed"
    assert done.returncode == 1
    assert done.stderr == f"penult: the output cannot be written: {reason}\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("line", thinned(["2>/dev/full", "2>&-", "2>&- <&-"], ["2>&-"]))
def test_messages_that_nobody_receives_change_nothing(
    light: Path, store: Path, tmp_path: Path, line: str
) -> None:
    done = shell(line, "info", store, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 1
    assert shell(line, "info", tmp_path / "nothing").returncode == 2
    run = ("embed", light, store.parent / "one.wav", "--into", tmp_path / "c", *QUIET, "--json")
    done = shell(line, "--log", "json", *run)
    assert done.returncode == 0 and json.loads(done.stdout)["done"] == 1
    assert b"{" not in (tmp_path / "c" / "writer.lock").read_bytes()  # no message in a file
