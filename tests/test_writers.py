"""Several writers of one collection: what they add merges, nothing comes twice, and work that has
to be alone waits or is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from penult.collection import access
from penult.collection.access import writers
from penult.collection.collection import Collection
from penult.collection.export import describe
from penult.collection.forgetting import forget
from penult.collection.repair import repair
from penult.collection.writer import writing
from penult.data.items import Failure
from penult.errors import CollectionLocked, StoreError
from test_collection import MANIFEST, all_keys, batch

_PROCESS = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_collection import MANIFEST, batch
    from penult.collection.writer import writing
    from penult.data.items import Failure
    with writing(Path({path!r}), MANIFEST, run={{"command": {name!r}}}) as writer:
        for line in sys.stdin:
            print(eval(line), flush=True)
            if line == "'end'\\n":
                break
"""


class Process:
    """A writer in a process of its own, which does what it is told."""

    def __init__(self, path: Path, name: str) -> None:
        code = textwrap.dedent(_PROCESS).format(
            tests=str(Path(__file__).parent), path=str(path), name=name
        )
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()

    def answer(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()


@contextmanager
def processes(path: Path, *names: str) -> Iterator[list[Process]]:
    found = [Process(path, name) for name in names]
    try:
        yield found
    finally:
        for one in found:
            one.popen.kill()
            one.popen.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.lance"


def keys_once(path: Path) -> set[str]:
    keys = all_keys(Collection.open(path).reader)
    assert len(keys) == len(set(keys))
    return {id for id, _ in keys}


def states(path: Path) -> list[tuple[str, str]]:
    return sorted(
        (run["command"], run["status"]) for run in describe(Collection(path).reader)["runs"]
    )


SAME = (
    "(sum(writer.write(batch([f'{k}-{j}' for j in range(3)])).new for k in range(12)), "
    "writer.elsewhere)"
)


def test_two_processes_one_is_killed(path: Path) -> None:
    """The same rows to both, then others with columns of their own, all at once; work that is to be
    alone is refused meanwhile; then one is killed, and the other goes on."""
    with processes(path, "one", "two") as (one, two):
        for process in (one, two):
            process.tell("'there'")
        assert (one.answer(), two.answer()) == ("there", "there")
        for process in (one, two):
            process.tell(SAME)
        counts = [json.loads(p.answer().replace("(", "[").replace(")", "]")) for p in (one, two)]
        assert sum(new for new, _ in counts) == 36
        assert [new + elsewhere for new, elsewhere in counts] == [36, 36]
        assert keys_once(path) == {f"{k}-{j}" for k in range(12) for j in range(3)}

        for process, name, value in ((one, "a", "1"), (two, "b", "'x'")):
            rows = f"batch([f'{name}{{k}}'], site_{name}=[{value}])"
            process.tell(f"[writer.write({rows}) for k in range(4)] and 1")
        assert (one.answer(), two.answer()) == ("1", "1")
        rows = Collection.open(path).vectors("id >= 'a'", ["id", "site_a", "site_b"])[0].to_pylist()
        assert [(row["id"], row["site_a"], row["site_b"]) for row in rows] == [
            *((f"a{k}", 1, None) for k in range(4)), *((f"b{k}", None, "x") for k in range(4))
        ]  # fmt: skip

        facts = describe(Collection(path).reader)
        assert {(w["pid"], w["command"]) for w in facts["writers"]} == {
            (one.popen.pid, "one"), (two.popen.pid, "two")
        }  # fmt: skip
        assert facts["writer"] == facts["writers"][0]
        assert states(path) == [("one", "running"), ("two", "running")]
        for work in (
            lambda: repair(path),
            lambda: forget(Collection(path).reader, ["a1"]),
            lambda: Collection(path).drop_index(),
        ):
            with pytest.raises(
                CollectionLocked, match=r"process \d+ \((one|two)\) since 20.*--wait"
            ):
                work()

        one.tell("[writer.write(batch([f'c{k}'])) and print(k, flush=True) for k in range(10000)]")
        assert one.answer() == "0"
        one.popen.kill()
        one.popen.wait()
        assert states(path) == [("one", "killed"), ("two", "running")]
        two.tell("writer.write(batch(['c0', 'last'], seed=0)).new")
        assert two.answer() == "1"
        two.tell("'end'")
        assert two.answer() == "end" and two.popen.wait(60) == 0
    assert {"0-0", "a0", "b0", "c0", "last"} <= keys_once(path)
    assert forget(Collection(path).reader, ["a1"]).done and repair(path).is_whole
    with writing(path, MANIFEST, run={"command": "three"}):
        pass
    stored = Collection(path).runs().select(["command", "status"]).to_pylist()
    assert sorted(tuple(run.values()) for run in stored) == [
        ("one", "killed"), ("three", "done"), ("two", "done")
    ]  # fmt: skip
    assert not [*(path / "writers").glob("*.json")] and writers(path) == []


def test_of_another_content_all_rows_of_an_item_are_the_last_ones(path: Path) -> None:
    """Two runs read a file before and after it was changed."""
    regions = ["0-1", "1-2"]
    with writing(path, MANIFEST) as one, writing(path, MANIFEST) as two:
        one.known(["x"])
        assert two.write(batch(["x", "x"], region=regions, seed=1)).new == 2
        assert one.write(batch(["x"], region=["1-2"], seed=2)) == (1, 0)
        assert one.elsewhere == 0 and keys_once(path) == {"x"}
        assert all_keys(Collection(path).reader) == [("x", "1-2")]
        assert two.write(batch(["x", "x"], region=regions, seed=2)) == (1, 0)
        assert two.elsewhere == 1
    hashes = Collection(path).vectors(columns=["content_hash"])[0]["content_hash"].to_pylist()
    assert hashes == ["hash-2", "hash-2"]


def test_a_run_sees_what_another_has_done_meanwhile(path: Path) -> None:
    """Also what it renamed, removed, compacted and failed at."""
    with writing(path, MANIFEST) as one:
        one.write(batch(["a", "b"]))
        assert not one.known(["c"])[0]
        with writing(path, MANIFEST) as two:
            two.write(batch(["c", "d"]))
            two.remove(["a"])
            assert set(one.known(["a", "b", "c"])[0]) == {("b", "whole"), ("c", "whole")}
            two.fail([Failure("e", "whole", "ItemError", "short")])
            assert set(one.known(["e"])[0]) == set() and len(one.failures) == 1
            one.fail(
                [Failure("d", "whole", "ItemError", "a disk"), Failure("f", "", "ItemError", "x")]
            )
            two._tidy_up()
        one.write(batch(["e"]))  # which mends it
        assert one.revise({("c", "whole"): {"size": 7}}) is None
    found = Collection(path)
    assert keys_once(path) == {"b", "c", "d", "e"}
    assert found.get("c")["size"] == 7  # type: ignore[index]
    assert found.failures()["id"].to_pylist() == ["f"]


def test_many_threads_of_one_process(path: Path) -> None:
    """As a server has them: short runs at once, each with rows of its own and common ones."""

    def work(number: int) -> None:
        try:
            for k in range(2):
                with writing(path, MANIFEST) as writer:
                    writer.write(batch([f"own-{number}-{k}", *(f"all-{j}" for j in range(5))]))
        except Exception as error:  # shown by the test
            faults.append(error)

    faults: list[Exception] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    own = {f"own-{number}-{k}" for number in range(4) for k in range(2)}
    assert keys_once(path) == own | {f"all-{j}" for j in range(5)}
    assert Collection(path).runs()["status"].to_pylist() == ["done"] * 8


def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("20 s")


def test_who_waits_to_be_alone_gets_its_turn(path: Path) -> None:
    """Others may begin as long as it has to wait for one that was there before; then no longer."""
    done: list[str] = []

    def alone() -> None:
        with writing(path, MANIFEST, run={"command": "index"}, wait=True, alone=True):
            done.append("index")

    thread = threading.Thread(target=alone)
    with ExitStack() as second:
        with writing(path, MANIFEST, run={"command": "first"}):
            thread.start()
            until(lambda: [*(path / "writers").glob("next-*")])
            second.enter_context(writing(path, MANIFEST, run={"command": "second"}))
        until(lambda: is_refused(path))
        words = r"wanted alone by process \d+ \(index\)"
        with pytest.raises(CollectionLocked, match=words), writing(path, MANIFEST):
            pass
        assert not done
    thread.join(20)
    assert done == ["index"]
    with writing(path, MANIFEST):
        pass


def is_refused(path: Path) -> bool:
    try:
        with access.accessed(path, "", alone=False):
            return False
    except CollectionLocked:
        return True


def test_a_disk_without_locks_has_one_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "fcntl", None)
    with writing(path, MANIFEST, run={"command": "first"}) as writer:
        writer.write(batch(["a"]))
        with pytest.raises(CollectionLocked, match="first"), writing(path, MANIFEST):
            pass
        assert describe(Collection(path).reader)["writers"] == []
    with writing(path, MANIFEST) as writer:
        assert writer.known(["a"])[0]


def test_a_disk_that_refuses_a_commit_below_those_of_others(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the others is set aside; the message says what to do."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "/data/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell the path of an open file")
    with writing(path, MANIFEST, run={"command": "other"}) as other:
        other._flushed()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(StoreError), writing(path, MANIFEST) as writer:
                writer.write(batch(["a"]))
                writer.write(batch(["b"]))
        assert "(other)" in caplog.text and "penult repair" in caplog.text
        other.write(batch(["c"]))
    assert "c" in keys_once(path) and not (path / "torn").exists()


def test_what_a_process_that_was_killed_in_its_turn_left_is_completed(path: Path) -> None:
    """A moved file has its new name in some tables only; another writer is there already."""
    with writing(path, MANIFEST) as one, writing(path, MANIFEST) as two:
        one.write(batch(["old"]))
        text: dict[str, Any] = {"rename": {"prefixes": [], "ids": {"old": "new"}, "roots": None}}
        (path / "pending.json").write_text(json.dumps(text))
        assert two.write(batch(["new", "more"])).new == 1
    assert keys_once(path) == {"new", "more"} and not (path / "pending.json").exists()
