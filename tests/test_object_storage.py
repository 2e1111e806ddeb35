"""Object storage: items and collections in S3 give the rows of a disk, whatever the store does."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import object_store as s3
import penult
from penult.cli.main import run
from penult.collection import leases
from penult.collection.collection import Collection
from penult.collection.leases import Lease
from penult.data.items import checked_uri, is_object
from penult.data.object_store import ObjectPath
from penult.data.places import place_of
from penult.data.sources import from_paths
from penult.errors import CollectionLocked, PenultError, SourceError, StoreError, UsageError

RATE = 16_000
COUNT = 8


class Stores:
    """A server with a proxy before it, and buckets."""

    def __init__(self, port: int, proxy: s3.Proxy) -> None:
        self.port, self.proxy = port, proxy
        self.archive, self.vectors = (s3.bucket(port, name) for name in ("archive", "vectors"))
        self._number = 0

    def new(self) -> str:
        """A collection that is not there yet."""
        self._number += 1
        return f"s3://vectors/{os.getpid()}/calls{self._number}.lance"


@pytest.fixture(scope="module")
def server() -> Iterator[Stores]:
    with s3.s3_server() as port, s3.proxied(port) as proxy:
        yield Stores(port, proxy)


@pytest.fixture(autouse=True)
def stores(server: Stores, monkeypatch: pytest.MonkeyPatch) -> Stores:
    for name, value in s3.environment(server.proxy.port).items():
        monkeypatch.setenv(name, value)
    server.proxy.reset()
    return server


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory, server: Stores) -> Path:
    """Recordings, one that is none, one hidden, one of another kind; also in the archive."""
    folder = tmp_path_factory.mktemp("sounds") / "2026"
    (folder / "märz 1").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(COUNT):
        sound = 0.1 * random.normal(size=RATE // 2 * (1 + number % 3))
        name = f"{number}.{'flac' if number % 2 else 'wav'}"
        soundfile.write(folder / ("märz 1" if number > 3 else "") / name, sound, RATE)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    (folder / ".hidden.wav").write_bytes(b"RIFF")
    (folder / "notes.md").write_text("none")
    s3.upload(server.archive, folder, "2026")
    return folder


@pytest.fixture(scope="module")
def embedder(light: Path) -> penult.Embedder:
    return penult.Embedder.load(light)


@pytest.fixture(scope="module")
def on_disk(
    embedder: penult.Embedder, sounds: Path, tmp_path_factory: pytest.TempPathFactory
) -> Collection:
    collection = Collection.open(tmp_path_factory.mktemp("disk") / "calls.lance")
    collection.add(embedder, sounds, window=0.5)
    return collection


def rows_of(collection: Collection) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows without what a place gives them, and their vectors."""
    names = ["id", "region", "kind", "start", "end", "label", "score", "size"]
    table, vectors = collection.vectors(columns=names)
    rows = [{**row, "id": row["id"].rpartition("2026/")[2]} for row in table.to_pylist()]
    order = sorted(range(len(rows)), key=lambda at: (rows[at]["id"], rows[at]["start"]))
    return [rows[at] for at in order], vectors[order]


def failures_of(collection: Collection) -> list[tuple[str, ...]]:
    found = collection.reader.side_table("failures").to_pylist()
    return sorted(
        (one["id"].rpartition("2026/")[2], one["region"], one["error"], one["message"])
        for one in found
    )


def same(one: Collection, other: Collection) -> None:
    (rows, vectors), (others, theirs) = rows_of(one), rows_of(other)
    assert rows and rows == others
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)
    assert failures_of(one) == failures_of(other) != []


def ask(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


# ---- items


def test_items_of_a_store_are_those_of_a_disk(
    stores: Stores, embedder: Any, sounds: Path, on_disk: Collection, tmp_path: Path
) -> None:
    collection = Collection.open(tmp_path / "calls.lance")
    first = collection.add(embedder, "s3://archive/2026/", window=0.5)
    assert first.failed == 1
    same(collection, on_disk)
    stores.proxy.reset()
    again = collection.add(embedder, "s3://archive/2026/", window=0.5)
    assert again.done == again.replaced == 0
    lines = [line for line in stores.proxy.log if "/archive/2026/" in line]
    # Windows ask for the lengths of files; nothing of an unchanged one is read for its hash.
    assert len(lines) <= COUNT + 2


def test_unchanged_is_size_and_version(stores: Stores, embedder: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    file = tmp_path / "a.wav"
    for name in "ab":
        soundfile.write(file, 0.1 * random.normal(size=RATE), RATE)
        stores.archive.put(f"changing/{name}.wav", file.read_bytes())
    collection = Collection.open(tmp_path / "calls.lance")
    assert collection.add(embedder, "s3://archive/changing").done == 2
    before = collection.get("s3://archive/changing/a.wav")
    stores.proxy.reset()
    assert collection.add(embedder, "s3://archive/changing").skipped == 2
    assert not [line for line in stores.proxy.log if line.startswith("GET /archive/changing/")]
    soundfile.write(file, 0.1 * random.normal(size=RATE), RATE)  # of the same size
    stores.archive.put("changing/a.wav", file.read_bytes())
    summary = collection.add(embedder, "s3://archive/changing")
    assert (summary.replaced, summary.skipped) == (1, 1)
    after = collection.get("s3://archive/changing/a.wav")
    assert before is not None and after is not None
    assert before["size"] == after["size"] and before["mtime_ns"] != after["mtime_ns"]
    assert np.abs(before["vector"] - after["vector"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_only_needed_bytes_of_a_long_recording_are_read(
    stores: Stores, embedder: Any, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"long.{kind}"
    soundfile.write(file, 0.1 * np.random.default_rng(1).normal(size=RATE * 400), RATE)
    size = file.stat().st_size
    stores.archive.put(f"long/long.{kind}", file.read_bytes())
    start = 350
    for place, path in (("local", file), ("stored", f"s3://archive/long/long.{kind}")):
        with (tmp_path / f"{place}.csv").open("w") as table:
            csv.writer(table).writerows([["path", "start", "end"], [path, start, start + 5]])
    stores.proxy.reset()
    stored, local = (Collection.open(tmp_path / f"{place}.lance") for place in ("stored", "local"))
    stored.add(embedder, tmp_path / "stored.csv")
    assert 0 < stores.proxy.sent < size / 8
    local.add(embedder, tmp_path / "local.csv")
    (rows, one), (_, other) = stored.vectors(), local.vectors()
    assert rows["id"].to_pylist() == [f"s3://archive/long/long.{kind}"]
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_object_that_a_table_names_and_that_is_not_there(embedder: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\ns3://archive/gone.wav\n")
    collection = Collection.open(tmp_path / "calls.lance")
    assert collection.add(embedder, tmp_path / "t.csv", window=0.5).failed == 1
    (failed,) = collection.reader.side_table("failures").to_pylist()
    assert failed["id"] == "s3://archive/gone.wav" and "no such" in failed["message"]


@pytest.mark.slow
def test_listing_is_streamed(stores: Stores) -> None:
    for number in range(1100):
        stores.archive.put(f"many/{number:05}.wav", b"RIFF")
    stores.proxy.reset()
    entries = iter(from_paths("s3://archive/many/", "audio"))
    next(entries)
    pages = len(stores.proxy.log)
    assert sum(1 for _ in entries) == 1099
    assert len(stores.proxy.log) > pages


def test_a_local_path_loads_nothing_of_stores(light: Path, sounds: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from penult.cli.main import run; code = run(sys.argv[1:]);"
        "print([n for n in sys.modules if n.startswith(('obstore', 'penult.data.object_store',"
        " 'penult.collection.leases', 'boto', 's3fs'))]); sys.exit(code)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "embed", light, sounds / "0.wav", "--into", tmp_path / "c"],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines()[-1] == "[]"


# ---- collections


def test_a_collection_in_a_store_is_that_of_a_disk(
    stores: Stores, embedder: Any, sounds: Path, on_disk: Collection, tmp_path: Path
) -> None:
    collection = Collection.open(stores.new())
    collection.add(embedder, sounds, window=0.5)
    same(collection, on_disk)
    again = collection.add(embedder, sounds, window=0.5)
    assert (again.done, again.replaced) == (0, 0)
    found = collection.search(sounds / "0.wav", embedder=embedder)
    assert [(hit.id, hit.region) for hit in found] == [
        (hit.id, hit.region) for hit in on_disk.search(sounds / "0.wav", embedder=embedder)
    ]
    assert not (Path.cwd() / "s3:").exists()


def test_commands_take_a_collection_in_a_store(
    stores: Stores, light: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sounds: Path
) -> None:
    place = stores.new()
    assert ask("embed", light, "s3://archive/2026/", "--into", place, "--json") == 3
    assert json.loads(capsys.readouterr().out)["collection"] == place
    assert ask("info", place, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == COUNT
    assert ask("search", place, sounds / "0.wav", "--json") == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits["hits"][0]["id"] == "s3://archive/2026/0.wav"
    assert ask("failures", place) == 0
    assert "broken.wav" in capsys.readouterr().out
    assert ask("export", place, tmp_path / "rows.parquet") == 0
    for command in (["explore"], ["repair"], ["forget", "--where", "id = 'x'"]):
        assert ask(command[0], place, *command[1:]) == 1
        assert f"{place} is in an object store: copy it" in capsys.readouterr().err


def _embeds(light: Path, place: str, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penult", "embed", light, "s3://archive/2026/", *more]
    return subprocess.Popen(
        [*map(str, command), "--into", place], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_runs_at_once_give_every_item_once(
    stores: Stores, light: Path, embedder: Any, on_disk: Collection
) -> None:
    place = stores.new()
    runs = [_embeds(light, place, "--window", "500ms") for _ in range(2)]
    for one in runs:
        said = one.communicate(timeout=100)
        assert one.returncode == 3, said  # one item failed
    collection = Collection.open(place)
    rows, _ = rows_of(collection)
    keys = [(row["id"], row["region"]) for row in rows]
    assert len(keys) == len(set(keys))
    same(collection, on_disk)
    states = [one["status"] for one in collection.reader.side_table("runs").to_pylist()]
    assert states == ["done", "done"]


@pytest.mark.parametrize(
    "faults", [{"every": 10}, pytest.param({"stall": 45}, marks=pytest.mark.slow)]
)
def test_faults_change_nothing(
    stores: Stores,
    embedder: Any,
    on_disk: Collection,
    faults: dict[str, int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    stores.proxy.reset(**faults)
    collection = Collection.open(stores.new())
    with caplog.at_level(logging.WARNING):
        collection.add(embedder, "s3://archive/2026/", window=0.5)
    happened = stores.proxy.faults
    stores.proxy.reset()
    assert happened >= 3
    assert "; again in " in caplog.text
    same(collection, on_disk)


def test_a_lease_is_taken_from_whoever_is_gone(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE", 0.5)
    uri = f"{stores.new()}/turn.lease"
    one, other = Lease(uri), Lease(uri)
    assert one.take() and not other.take()
    one.write("sign of one")
    one.free()
    assert other.take() and other.read() == "sign of one" and not one.take()
    began = time.monotonic()
    while not one.take():  # the other does not renew it
        assert time.monotonic() - began < 5
        time.sleep(0.05)
    assert time.monotonic() - began > 0.4
    with pytest.raises(StoreError, match="was taken by another writer"):
        other.renew()
    assert not other.is_held


def test_work_alone_waits_for_writers(stores: Stores, embedder: Any, sounds: Path) -> None:
    from penult.collection.access import accessed

    collection = Collection.open(stores.new())
    collection.add(embedder, sounds / "0.wav")
    path = collection.path
    with accessed(path, "one", "run-one", alone=False) as first, first.turn():
        pass
    with (
        accessed(path, "one", "run-one", alone=False),
        accessed(path, "two", "run-two", alone=False) as second,
    ):
        with second.turn():
            assert [holder.command for holder in second.others()] == ["one"]
        with (
            pytest.raises(CollectionLocked, match=r"is being written by process .*one"),
            accessed(path, "three", alone=True),
        ):
            pass
    with accessed(path, "three", alone=True), pytest.raises(CollectionLocked):  # noqa: SIM117
        with accessed(path, "four", alone=False):
            pass
    with accessed(path, "three", "run-three", alone=True) as late:
        (path / "writers" / "run-three.json").unlink()  # somebody has counted it as gone
        with pytest.raises(StoreError, match="was taken by another writer"), late.turn():
            pass


LATE = """
import os, signal, sys
from penult.collection import leases
from penult.cli.main import run
leases.LEASE = 3.0
if sys.argv[1] == "late":
    from lancedb.table import LanceTable
    real = LanceTable.{call}
    def late(self, *given, **named):
        if self.name == "items" and not os.path.exists(sys.argv[2]):
            open(sys.argv[2], "x").close()
            os.kill(os.getpid(), signal.SIGSTOP)  # it stands still, and has the turn
        return real(self, *given, **named)
    LanceTable.{call} = late
sys.exit(run(sys.argv[3:]))
"""


@pytest.mark.parametrize("call", ["add", "search"])
def test_a_commit_that_comes_too_late_is_refused(
    call: str, stores: Stores, light: Path, sounds: Path, tmp_path: Path, on_disk: Collection
) -> None:
    """A writer that stands still within its turn, as a suspended machine does, while another one
    takes over: no row is there twice, and it says what happened."""
    place, flag = stores.new(), tmp_path / "stopped"
    command = ["embed", str(light), "s3://archive/2026/", "--into", place, "--window", "0.5"]

    def started(how: str) -> subprocess.Popen[str]:
        script = LATE.format(call=call)
        arguments = [sys.executable, "-c", script, how, str(flag), *command]
        return subprocess.Popen(arguments, text=True, stderr=subprocess.PIPE)

    late = started("late")
    began = time.monotonic()
    while not flag.exists():
        assert time.monotonic() - began < 120 and late.poll() is None
        time.sleep(0.1)
    other = started("in time")
    _, said = other.communicate(timeout=120)
    assert other.returncode == 3, said
    late.send_signal(signal.SIGCONT)
    _, said = late.communicate(timeout=120)
    assert late.returncode == 1, said
    assert "was taken by another writer" in said and "start the run again" in said
    same(Collection.open(place), on_disk)
    assert ask(*command) == 3
    same(Collection.open(place), on_disk)
    statuses = Collection.open(place).runs()["status"].to_pylist()
    assert sorted(statuses) == ["done", "done", "killed"]


# ---- credentials and addresses


def test_credentials_stand_nowhere(
    sounds: Path, stores: Stores, light: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = stores.new()
    stores.proxy.reset(every=10)
    ask("embed", light, "s3://archive/2026/", "--into", place)
    stores.proxy.reset()
    said = "".join(capfd.readouterr())
    written = b"".join(
        bytes(stores.vectors.get(meta["path"]).bytes())
        for page in stores.vectors.list(place.removeprefix("s3://vectors/"))
        for meta in page
    )
    assert written
    for secret in s3.KEYS.values():
        assert secret not in said and secret.encode() not in written


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@archive/2026/",
        "s3://hush@archive/2026/",
        "s3://archive/a.wav?X-Amz-Signature=hush",
        "az://box/a.wav?sv=1&sig=hush",
        "gs://box/a.wav?X-Goog-Signature=hush",
        "s3://box/a.wav?access_key=hush",
        "s3://box/a.wav?session_token=hush",
    ],
)
def test_an_address_with_credentials_is_refused(
    uri: str, light: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stores: Stores
) -> None:
    assert ask("embed", light, uri, "--into", tmp_path / "c") == 2
    first = capsys.readouterr().err
    assert ask("info", uri) == 2
    second = capsys.readouterr().err
    for said in (first, second):
        assert "with credentials in it" in said and "hush" not in said
    assert not stores.proxy.requests


def test_an_endpoint_with_credentials_is_refused(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, stores: Stores
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:hush@store.example")
    with pytest.raises(UsageError, match="credentials in it") as refused:
        list(from_paths("s3://archive/2026/", "audio"))
    assert "hush" not in str(refused.value) and not stores.proxy.requests


def test_plain_http_is_asked_for(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, stores: Stores, tmp_path: Path, embedder: Any
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    for start in (
        lambda: from_paths("s3://archive/2026/", "audio"),
        lambda: Collection.open("s3://vectors/x.lance"),
    ):
        with pytest.raises(UsageError, match=r"AWS_ALLOW_HTTP=true"):
            start()
    assert not stores.proxy.requests


def test_a_store_that_refuses_is_told_without_secrets(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, stores: Stores
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3._free_port()}")
    monkeypatch.setattr("penult.data.object_store._TRIES", 2)
    with pytest.raises(PenultError) as refused:
        from_paths("s3://archive/2026/", "audio")
    assert "s3://archive/2026/" in str(refused.value) and "2 times" in str(refused.value)
    assert not any(secret in str(refused.value) for secret in s3.KEYS.values())


def test_addresses_of_other_stores() -> None:
    for uri in ("gs://box/2026/a.wav", "az://box/2026/a.wav", "s3://box/2026/a.wav"):
        path = place_of(uri)
        assert isinstance(path, ObjectPath) and is_object(path)
        assert str(path) == os.fspath(path) == uri == str(place_of(Path(uri)))
        assert str(path.parent) == uri.removesuffix("/a.wav") and path.suffix == ".wav"
        assert str(path.parent / "b" / "c.wav") == uri.replace("a.wav", "b/c.wav")
    with pytest.raises(SourceError, match="names no bucket"):
        checked_uri("gs://")
    with pytest.raises(SourceError, match="fetches no remote URL"):
        from_paths("https://example.org/a.wav", "audio")
    with pytest.raises(SourceError, match="is a table; download it"):
        from_paths("s3://archive/list.csv", "audio")
    assert not is_object("s3:") and not is_object("/s3://x") and not is_object("s3x/a")


def test_a_file_address_is_a_path(embedder: Any, sounds: Path, tmp_path: Path) -> None:
    collection = Collection.open((tmp_path / "c.lance").as_uri())
    assert collection.add(embedder, (sounds / "0.wav").as_uri()).done == 1
    assert (tmp_path / "c.lance" / "collection.json").is_file()


def test_prune_is_refused(sounds: Path, embedder: Any, tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c.lance")
    with pytest.raises(UsageError, match="--prune looks for deleted files on disks"):
        collection.add(embedder, "s3://archive/2026/", prune=True)


def test_the_server_fetches_no_address(sounds: Path, embedder: Any, stores: Stores) -> None:
    from live_server import running

    with running(embedder) as live:
        stores.proxy.reset()
        for address in ("s3://archive/2026/0.wav", "gs://box/a.wav", "file:///etc/passwd"):
            answer = live.post("/v1/embeddings", {"input": address})
            assert answer.status_code == 400 and "are not opened" in answer.text
        assert not stores.proxy.requests
