"""`penult forget`: after it no byte of a collection's folder has the names or vectors of what is
forgotten, also where it was killed on the way."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import lance as lance_format
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from conftest import RATE, clip
from penult.analysis.clustering import ClusterOptions
from penult.collection.collection import Collection
from penult.collection.derived import find_clusters, keep_clusters
from penult.collection.renaming import PENDING
from penult.fewshot.classspace import ClassSpace
from test_cli import ask

QUIET = ("--workers", "0", "--engine", "torch")
SECRET = "anna-4711"


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three speakers with marks, versions, clusters, a space, and failures."""
    place = tmp_path_factory.mktemp("made")
    for at, speaker in enumerate(("bert", SECRET, "cleo")):
        (place / "recs" / speaker).mkdir(parents=True)
        for number in range(3):
            path = place / "recs" / speaker / f"{speaker}-{number}.wav"
            soundfile.write(path, clip(0.3, 10 * at + number), RATE)
    (place / "recs" / SECRET / f"{SECRET}-bad.wav").write_bytes(b"no sound")
    store = place / "c.lance"
    run = ("embed", tiny, place / "recs", "--into", store, *QUIET)
    assert ask(*run).code == 3
    one = place / "recs" / SECRET / f"{SECRET}-0.wav"
    assert ask("embed", tiny, one, "--into", store, *QUIET).code == 0  # named in a run
    assert ask("teach", store, "--from", "folder").code == 0
    assert ask("predict", store, "--json").code == 0
    assert ask("teach", store, "bert", place / "recs" / "bert" / "bert-0.wav").code == 0
    collection = Collection(store)
    keep_clusters(collection.reader, find_clusters(collection.reader, ClusterOptions("kmeans", 2)))
    collection.fit_space("centre")
    return place


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(made / "c.lance", tmp_path / "c.lance"))


def vectors(store: Path) -> dict[str, bytes]:
    keys, rows = Collection(store).vectors(columns=["id"])
    return {id: row.astype("<f4").tobytes() for id, row in
            zip(keys["id"].to_pylist(), rows, strict=True)}  # fmt: skip


def traces(store: Path, names: list[bytes], rows: list[bytes]) -> list[str]:
    """Where a name or a vector is: in a file's bytes, or in a column of any version of a table,
    also inside of what is packed there."""
    found = []
    for file in store.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            if any(one in content for one in (*names, *rows)):
                found.append(str(file.relative_to(store)))
    for table in store.glob("*.lance"):
        data = lance_format.dataset(str(table))
        for version in data.versions():
            read = lance_format.dataset(str(table), version=version["version"]).to_table()
            for column in read.columns:
                if pa.types.is_fixed_size_list(column.type):
                    cells = [np.float32(v).astype("<f4").tobytes() for v in column.to_pylist()]
                elif pa.types.is_large_binary(column.type):
                    cells = [opened(cell) for cell in column.to_pylist() if cell]
                else:
                    cells = [str(cell).encode() for cell in column.to_pylist()]
                if any(one in cell for cell in cells for one in (*names, *rows)):
                    found.append(f"{table.name} version {version['version']}")
    return found


def opened(data: bytes) -> bytes:
    """What is packed in a cell, beside the cell itself."""
    try:
        return data + zlib.decompress(data)
    except zlib.error:
        pass
    try:
        with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
            return data + repr(stream.read_all().to_pylist()).encode()
    except pa.ArrowException:
        return data


def test_nothing_is_left_of_a_folder(store: Path, made: Path, tiny: Path) -> None:
    """Listed first, then gone; everything else stays, and the collection works."""
    before = vectors(store)
    theirs = [row for id, row in before.items() if SECRET in id]
    assert len(theirs) == 3 and traces(store, [SECRET.encode()], theirs)
    place = made / "recs" / SECRET
    listed = ask("forget", store, place, "--json").json
    assert (listed["rows"], listed["labels"], listed["failures"]) == (3, 3, 1)
    assert listed["versions"] and listed["derived"] == ["kmeans"] and listed["runs"] >= 1
    assert listed["spaces"] == ["centre"] and listed["done"] is False
    assert vectors(store) == before
    done = ask("forget", store, place, "--yes")
    assert done.code == 0, done.err
    assert "fitted anew" in done.out and "Collection.fit_space" in done.out
    assert traces(store, [SECRET.encode()], theirs) == []
    left = vectors(store)
    assert left == {id: row for id, row in before.items() if SECRET not in id}
    said = ask("predict", store, "--json")
    assert said.code == 0 and {one["label"] for one in said.json["predictions"]} <= {"bert", "cleo"}
    assert set(ClassSpace(Collection(store)).fitted.names) == {"bert", "cleo"}
    assert ask("repair", store, "--dry-run").code == 0
    again = ask("embed", tiny, made / "recs" / "bert", "--into", store, *QUIET, "--json").json
    assert (again["done"], again["skipped"]) == (0, 3)


def test_by_id_by_path_and_by_filter(store: Path, made: Path) -> None:
    before = vectors(store)
    one, two = f"recs/{SECRET}/{SECRET}-0.wav", made / "recs" / SECRET / f"{SECRET}-1.wav"
    assert ask("forget", store, one, two, "--where", "id LIKE '%cleo-2%'", "--yes").code == 0
    gone = {one, f"recs/{SECRET}/{SECRET}-1.wav", "recs/cleo/cleo-2.wav"}
    assert vectors(store).keys() == before.keys() - gone
    names = [f"{SECRET}-0".encode(), f"{SECRET}-1".encode(), b"cleo-2"]
    assert traces(store, names, [before[id] for id in gone]) == []
    for given, words in (
        ([], "name what is to be forgotten"),
        (["nobody.wav"], "is no item of"),
        (["--where", "id = 'x'"], "matches"),
    ):
        said = ask("forget", store, *given)
        assert said.code == 2 and words in said.err


def test_a_space_says_that_rows_of_it_are_forgotten(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collection = Collection(store)
    assert ask("forget", store, f"recs/{SECRET}", "--yes").code == 0
    collection.space("centre")
    assert "fitted when 3 rows were there that are forgotten" in caplog.text
    caplog.clear()
    collection.fit_space("centre")
    collection.space("centre")
    assert not caplog.text


KILLED = """
import os, sys
from pathlib import Path
from penult.collection import forgetting
from penult.collection.reader import Reader
step, store, item = sys.argv[1:]
setattr(forgetting, step, lambda *_, **__: os._exit(9))
forgetting.forget(Reader(store), [item])
"""


@pytest.mark.parametrize("step", ["_note_in_spaces", "_without_empty_roots", "_clear_files"])
def test_killed_in_the_middle(store: Path, step: str) -> None:
    """The next opening completes it."""
    before = vectors(store)
    theirs = [row for id, row in before.items() if SECRET in id]
    command = [sys.executable, "-c", KILLED, step, str(store), f"recs/{SECRET}"]
    assert subprocess.run(command, check=False).returncode == 9
    assert (store / PENDING).exists()
    Collection.open(store)
    assert not (store / PENDING).exists()
    assert traces(store, [SECRET.encode()], theirs) == []
    assert vectors(store) == {id: row for id, row in before.items() if SECRET not in id}
