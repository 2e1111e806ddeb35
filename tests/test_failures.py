"""Failures over many runs: what is tried again, what is new, what is mended."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soundfile

from conftest import RATE, clip, thinned
from penult.collection import lance
from penult.collection.add import add
from penult.collection.collection import Collection
from penult.collection.failures import FailureLog
from penult.collection.transfer import merge
from penult.collection.writer import writing
from penult.data import workers
from penult.data.items import Entry, Failure
from penult.data.sources import Source, from_paths
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome
from penult.models.specs import load
from test_cli import ask
from test_collection import MANIFEST, batch
from test_ingest import counted, rows

TORCH = ("--engine", "torch")
QUIET = ("--workers", "0", *TORCH)


@pytest.fixture
def embedder(tiny: Path) -> Embedder:
    return Embedder.from_classifier(load(tiny))


def of(path: Path) -> dict[str, dict[str, Any]]:
    """The failures of a collection by the name of their file."""
    return {Path(row["id"]).name: row for row in Collection.open(path).failures().to_pylist()}


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often the system refuses to open a file of this name, as a network disk does."""
    refusals: dict[str, int] = {}
    opening = Path.open

    def opened(path: Path, *rest: Any, **named: Any) -> Any:
        if refusals.get(path.name, 0) > 0:
            refusals[path.name] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return opening(path, *rest, **named)

    monkeypatch.setattr(Path, "open", opened)
    yield refusals


def test_new_failures_are_told_from_known_ones(
    tiny: Path, recordings: Path, tmp_path: Path
) -> None:
    """In the exit code, the summary, the JSON document and the list."""
    into = tmp_path / "c.lance"
    run = ("embed", tiny, recordings, "--into", into, *QUIET)
    for name in ("a.wav", "b.wav"):
        (recordings / name).write_bytes(b"no sound")
    said = ask(*run, "--fail-on", "new")
    assert said.code == 3 and "6 embedded, 2 failed in" in said.out
    first = of(into)
    assert ask(*run).code == 3 and ask(*run, "--fail-on", "none").code == 0
    assert ask(*run, "--fail-on", "new").code == 0
    (recordings / "c.wav").write_bytes(b"no sound either")
    said = ask(*run, "--fail-on", "new")
    assert said.code == 3 and "6 unchanged, 3 failed (1 new) in" in said.out
    found = ask("failures", into, "--new", "--json").json["failures"]
    assert [Path(row["id"]).name for row in found] == ["c.wav"]
    assert "c.wav" in (listed := ask("failures", into, "--new").out) and "a.wav" not in listed
    again = of(into)
    for name, row in first.items():  # first met when it was, met last by the last run; tried once
        assert (row["since"], row["first_run"]) == (again[name]["since"], again[name]["first_run"])
        assert row["since"] == row["when"] < again[name]["when"] and again[name]["tries"] == 1
        assert again[name]["run_id"] == again["c.wav"]["first_run"]
    soundfile.write(recordings / "a.wav", clip(0.5), RATE)
    (recordings / "b.wav").write_bytes(b"other bytes that are none")
    said = ask(*run, "--fail-on", "new", "--json")  # another content: not what was met before
    assert said.code == 3 and said.json["failed"] == 2
    assert said.json["failures"] == {"new": 1, "known": 1, "healed": 1, "passing": 0}
    assert of(into)["b.wav"]["since"] > first["b.wav"]["since"]
    assert ask("failures", into, "--new").out.splitlines()[1].startswith("recordings/b.wav")
    with pytest.raises(AssertionError):
        assert ask(*run, "--fail-on", "some").code != 2
    assert ask("failures", tmp_path / "c.lance", "--new", "--json").json["failures"]


def test_faults_of_the_world_are_tried_again_and_verdicts_are_not(
    tiny: Path, recordings: Path, tmp_path: Path, stale: dict[str, int]
) -> None:
    into = tmp_path / "c.lance"
    run = ("embed", tiny, recordings, "--into", into, *QUIET, "--json")
    (recordings / "bad.wav").write_bytes(b"no sound")
    name = "3.wav"
    stale[name] = 1000
    said = ask(*run)
    assert said.code == 3 and said.json["done"] == 5
    assert said.json["failures"] == {"new": 2, "known": 0, "healed": 0, "passing": 1}
    for tries in (2, 3):
        stale[name] = 1000
        said = ask(*run, "--fail-on", "new")
        assert said.code == 0 and said.json["failed"] == 2
        assert {n: row["tries"] for n, row in of(into).items()} == {name: tries, "bad.wav": 1}
    assert of(into)[name]["error"] == "PassingFault"
    stale.clear()
    said = ask(*run)
    assert said.json["done"] == 1 and list(of(into)) == ["bad.wav"]
    assert said.json["failures"] == {"new": 0, "known": 1, "healed": 1, "passing": 0}
    assert ask(*run, "--retry-failed").json["failed"] == 1 and of(into)["bad.wav"]["tries"] == 2


def wait_until_ready(worker: Any) -> None:
    end = time.monotonic() + 120
    while worker.ready is None and time.monotonic() < end:
        time.sleep(0.02)
    assert worker.ready is not None


@pytest.mark.skipif(os.name == "nt", reason="workers need POSIX pipes")
def test_a_worker_that_is_killed_from_outside_costs_no_item(
    tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory ends: once for each of two workers, at their second item."""
    own, sent, killed = workers._Worker.send, Counter[int](), list[int]()

    def send(worker: Any, pairs: Any, brief: bool = False) -> None:
        own(worker, pairs, brief)
        sent[worker.process.pid] += 1
        if sent[worker.process.pid] == 2 and len(killed) < 2:
            wait_until_ready(worker)
            os.kill(worker.process.pid, signal.SIGKILL)
            killed.append(worker.process.pid)

    monkeypatch.setattr(workers._Worker, "send", send)
    into = tmp_path / "c.lance"
    said = ask("embed", tiny, recordings, "--into", into, *TORCH, "--workers", 2, "--json")
    assert len(set(killed)) == 2
    assert said.code == 0 and (said.json["done"], said.json["failed"]) == (6, 0)
    assert of(into) == {}


@pytest.mark.skipif(os.name == "nt", reason="workers need POSIX pipes")
@pytest.mark.parametrize("kind", thinned(["SIGKILL", "SIGSTOP"], ["SIGKILL"]))
def test_a_file_whose_workers_are_lost_is_tried_last_in_the_next_run(
    kind: str, tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed or stands still, twice: the other files are there, and the next run
    asks for the file behind what is new."""
    own, lost, asked = workers._Worker.send, [recordings / "a" / "1.wav"], list[str]()

    def send(worker: Any, pairs: Any, brief: bool = False) -> None:
        asked.append(Path(pairs[0][0].id).name)
        if pairs[0][0].content in lost:
            wait_until_ready(worker)
            os.kill(worker.process.pid, getattr(signal, kind))
        own(worker, pairs, brief)

    monkeypatch.setattr(workers._Worker, "send", send)
    into = tmp_path / "c.lance"
    command = ("embed", tiny, recordings, "--into", into, *TORCH, "--workers", 1, "--json")
    said = ask(*command, "--time-limit", 4)
    assert said.code == 3 and (said.json["done"], said.json["failed"]) == (5, 1)
    assert of(into)["1.wav"]["error"] == "PassingFault" and said.json["failures"]["passing"] == 1
    words = "SIGKILL" if kind == "SIGKILL" else "longer than 4 s"
    assert words in of(into)["1.wav"]["message"]
    lost.clear()
    asked.clear()
    soundfile.write(recordings / "b" / "new.wav", clip(0.5, 9), RATE)
    said = ask(*command)
    assert said.code == 0 and said.json["failures"]["healed"] == 1 and of(into) == {}
    assert asked[-2:] == ["new.wav", "1.wav"] and Collection.open(into).count == 7


def test_new_failures_of_a_list_on_stdin(tiny: Path, recordings: Path, tmp_path: Path) -> None:
    into = tmp_path / "c.lance"
    command = ("embed", tiny, "-", "--into", into, *QUIET, "--fail-on", "new", "--json")
    files = [str(file) for file in sorted(recordings.rglob("*.wav"))]
    (recordings / "bad.wav").write_bytes(b"no sound")
    one = "\n".join([*files[:2], str(recordings / "bad.wav")])
    said = ask(*command, stdin=one)
    assert said.code == 3 and said.json["failures"]["new"] == 1 and said.json["done"] == 2
    said = ask(*command, stdin=one)
    assert said.code == 0 and said.json["failures"]["known"] == 1 and said.json["skipped"] == 2
    (recordings / "worse.wav").write_bytes(b"no sound either")
    said = ask(*command, stdin="\n".join([one, files[2], str(recordings / "worse.wav")]))
    assert said.code == 3 and (said.json["done"], said.json["failed"]) == (1, 2)
    assert said.json["failures"] == {"new": 1, "known": 1, "healed": 0, "passing": 0}
    new = ask("failures", into, "--new", "--json").json["failures"]
    assert [Path(row["id"]).name for row in new] == ["worse.wav"]


def test_a_fault_over_a_row_that_is_there_is_mended(
    tiny: Path, recordings: Path, tmp_path: Path, stale: dict[str, int]
) -> None:
    """The row stays, and the failure goes once the file can be read: nothing is embedded anew."""
    into = tmp_path / "c.lance"
    run = ("embed", tiny, recordings, "--into", into, *QUIET, "--json")
    assert ask(*run).code == 0
    os.utime(recordings / "a" / "3.wav", (1, 1))  # its content has to be compared
    stale["3.wav"] = 1000
    assert ask(*run).code == 3 and Collection.open(into).count == 6
    stale.clear()
    said = ask(*run).json
    assert (said["done"], said["skipped"], said["failures"]["healed"]) == (0, 6, 1)
    assert of(into) == {}


def test_a_folder_that_was_closed_is_mended_once_it_is_read(
    tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "c.lance"
    run = ("embed", tiny, recordings, "--into", into, *QUIET, "--json")
    listing, closed = os.scandir, [str(recordings / "b")]

    def scandir(path: Any = ".") -> Any:
        if str(path) in closed:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert ask(*run).code == 3 and list(of(into)) == ["b"]
    assert ask(*run, "--fail-on", "new").code == 0 and list(of(into)) == ["b"]
    closed.clear()
    said = ask(*run)
    assert said.code == 0 and said.json["done"] == 3 and said.json["failures"]["healed"] == 1
    assert of(into) == {}


def test_a_verdict_holds_under_the_limits_that_it_was_made_with(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(recordings / "long.wav", clip(3.0), RATE)
    collection, run = Collection.open(tmp_path / "c"), counted(embedder, monkeypatch)
    for _ in range(2):
        summary = collection.add(embedder, recordings, max_seconds=2.0)
        assert summary.failed == 1
    run.clear()
    assert collection.add(embedder, recordings, max_seconds=2.0).found.failures.known == 1
    assert run == []
    assert collection.add(embedder, recordings).done == 1 and not of(tmp_path / "c")


def versions(path: Path) -> int:
    return len(list((path / "failures.lance" / "_versions").iterdir()))


@pytest.mark.parametrize("regions", ["whole", "own"])
def test_thousands_of_failures_are_mended_in_one_transaction(tmp_path: Path, regions: str) -> None:
    names = [f"it's {number}" for number in range(3000)]
    keys = [name if regions == "own" else "whole" for name in names]
    path = tmp_path / "c"
    with writing(path, MANIFEST) as writer:
        writer.fail(Failure(*key, "E", "x") for key in zip(names, keys, strict=True))
        writer.fail([Failure("another", "whole", "E", "x"), Failure(names[0], "0-9", "E", "x")])
    before = versions(path)
    with writing(path, MANIFEST) as writer:
        for start in range(0, 3000, 250):
            part = slice(start, start + 250)
            writer.write(batch(names[part], region=keys[part]))
        assert versions(path) == before
        assert writer.failures.heal() == 3000
    assert versions(path) == before + 1
    assert {(row["id"], row["region"]) for row in Collection.open(path).failures().to_pylist()} == {
        ("another", "whole"),
        (names[0], "0-9"),
    }


def test_what_a_killed_run_mended_goes_in_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, path = [str(number) for number in range(300)], tmp_path / "c"
    with writing(path, MANIFEST) as writer:
        writer.fail(Failure(name, "whole", "E", "x") for name in [*names, "another"])
    with monkeypatch.context() as patch, writing(path, MANIFEST) as writer:
        patch.setattr(FailureLog, "mend", lambda log, keys: None)
        writer.write(batch(names))
        writer._finished = True  # killed
    before = versions(path)
    with writing(path, MANIFEST):
        pass
    assert versions(path) == before + 1
    assert Collection.open(path).failures()["id"].to_pylist() == ["another"]


FORMER = pa.schema(list(lance.SIDE["failures"])[:8])


def former(path: Path, rows: list[dict[str, Any]]) -> None:
    """The failures of a collection as 0.1.0 wrote them."""
    table = lance.recreate_table(path, "failures", FORMER)
    table.add(pa.Table.from_pylist(rows, schema=FORMER))


def test_failures_of_the_former_version(
    tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read, and stand with the time that is known; what the world may have done is tried
    again, and nothing is new."""
    into = tmp_path / "c.lance"
    for name in ("bad.wav", "killed.wav"):
        (recordings / name).write_bytes(b"no sound")
    run = ("embed", tiny, recordings, "--into", into, *QUIET)
    ask(*run)
    names = FORMER.names
    old = [{name: row[name] for name in names} for row in of(into).values()]
    old[1] |= {"message": "ends the process that decodes it (SIGKILL)"}
    former(into, old)
    assert ask("failures", into, "--json").json["failures"][0]["since"] is None
    assert "bad.wav" in ask("failures", into).out
    soundfile.write(recordings / "killed.wav", clip(0.5), RATE)
    status = (recordings / "killed.wav").stat()
    former(into, [old[0], old[1] | {"size": status.st_size, "mtime_ns": status.st_mtime_ns}])
    said = ask(*run, "--json", "--fail-on", "new")
    assert said.code == 0 and said.json["done"] == 1
    assert said.json["failures"] == {"new": 0, "known": 1, "healed": 1, "passing": 0}
    row = of(into)["bad.wav"]
    assert row["since"] == old[0]["when"] and row["first_run"] == old[0]["run_id"]
    assert row["tries"] == 1


def test_a_merge_keeps_when_a_failure_was_first_met(tmp_path: Path) -> None:
    a, b, into = (Collection.open(tmp_path / name) for name in ("a", "b", "into"))
    for collection in (a, b, a):
        with writing(collection.path, MANIFEST) as writer:
            writer.fail([Failure("x", "whole", "E", f"of {collection.path.name}")])
    (first,) = a.failures().to_pylist()
    assert first["tries"] == 2
    for sources in ([a, b], [b, a], [a]):
        merge([one.reader for one in sources], into.reader)
        (found,) = into.failures().to_pylist()
        assert found == first
    merge([b.reader], (other := Collection.open(tmp_path / "other")).reader)
    (found,) = other.failures().to_pylist()
    merge([a.reader], other.reader)
    (found,) = other.failures().to_pylist()
    assert (found["message"], found["since"]) == ("of a", first["since"])


class Broken(Exception):
    """What nobody foresaw."""


@pytest.mark.parametrize("where", ["engine", "source"])
def test_what_is_complete_is_committed_before_an_error(
    embedder: Embedder,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    (recordings / "a" / "0.wav").write_bytes(b"no sound")
    source = from_paths([recordings], "audio")
    if where == "engine":
        stream = embedder.runner.stream

        def breaking(*rest: Any, **named: Any) -> Iterator[Any]:
            outcomes = 0  # alone: how many notes come between them depends on the machine
            for result in stream(*rest, **named):
                outcomes += isinstance(result, Outcome)
                if outcomes == 4:
                    raise Broken("device-side assert")
                yield result

        monkeypatch.setattr(type(embedder.runner), "stream", lambda _, *r, **n: breaking(*r, **n))
    else:
        source = Source(lambda: _until(source_entries, 4), total=None)
        source_entries: Callable[[], Iterator[Entry]] = from_paths([recordings], "audio").start
    collection = Collection.open(tmp_path / "c")
    with pytest.raises(Broken):
        add(collection.reader, embedder, source)
    (run,) = collection.runs().to_pylist()
    assert run["status"] == "failed" and run["done"] == collection.count > 0
    assert run["failed"] == 1 == len(collection.failures())
    monkeypatch.undo()
    collection.add(embedder, recordings)
    assert len(rows(tmp_path / "c")) == 6


def _until(entries: Callable[[], Iterator[Entry]], number: int) -> Iterator[Entry]:
    for place, entry in enumerate(entries()):
        if place == number:
            raise Broken("the table breaks off")
        yield entry
