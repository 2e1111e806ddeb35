"""What a power cut leaves: torn versions are stepped back from, said and repaired; commits are on
the disk before they are reported."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult.collection.repair as repairing
import power_cut
from penult.cli.main import run
from penult.collection import journal, lance, manifest
from penult.collection.collection import Collection
from penult.collection.export import describe, export
from penult.collection.labels import standing
from penult.collection.manifest import store_errors
from penult.collection.repair import repair
from penult.collection.transfer import merge
from penult.collection.writer import writing
from penult.data.files import file_aside, files_aside, folder_aside
from penult.data.items import Failure
from penult.errors import CollectionError, PenultError, StoreError, UsageError
from test_cli import ask
from test_collection import MANIFEST, batch


def names(number: int, count: int = 20) -> list[str]:
    return [f"/{number}/{place}.wav" for place in range(count)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four commits of twenty rows, in two runs."""
    path: Path = tmp_path_factory.mktemp("written") / "c.lance"
    for numbers in ((0, 1), (2, 3)):
        with writing(path, MANIFEST) as writer:
            for number in numbers:
                writer.write(batch(names(number), seed=number))
            writer.finish("done", {"done": 40})
    return path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    """A copy, with the times of its files."""
    return Path(shutil.copytree(written, tmp_path / "c.lance"))


def newest(path: Path, name: str = "items") -> Path:
    return next(iter(journal.manifests(path / f"{name}.lance").values()))


def latest_data(path: Path, name: str = "items") -> Path:
    return max(
        (path / f"{name}.lance" / "data").iterdir(), key=lambda file: file.stat().st_mtime_ns
    )


def ids(path: Path) -> set[str]:
    return set(Collection.open(path, must_exist=True).vectors()[0]["id"].to_pylist())


def tear(file: Path, how: str) -> None:
    size = file.stat().st_size
    if how == "gone":
        file.unlink()
        return
    content = {
        "empty": b"",
        "half": file.read_bytes()[: size // 2],
        "zeros": bytes(size),
        "zero page": file.read_bytes()[:-4096] + bytes(4096),
    }[how]
    file.write_bytes(content)


def listed(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("how", ["empty", "half", "zeros", "gone"])
def test_a_torn_version_is_stepped_back_from_and_said(
    store: Path, how: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for copy in journal.copies(store, "items").values():
        copy.unlink()  # as of a run that was cut
    before = listed(store)
    tear(newest(store), how)
    torn = listed(store)
    assert ids(store) == {id for number in range(3) for id in names(number)}
    collection = Collection.open(store)
    assert collection.count == 60
    hits = collection.search(np.ones(8, np.float32), k=3)
    assert len(hits) == 3
    assert listed(store) == torn  # a reader writes nothing
    assert "items: version" in caplog.text and "penult repair" in caplog.text
    assert run(["info", str(store), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 60 and len(facts["damage"]) == 1 and "torn" in facts["damage"][0]
    assert before.keys() - torn.keys() <= {str(newest(store).relative_to(store)), *before}
    # The next writer sets the torn version aside, and embeds again what was lost.
    with writing(store, MANIFEST) as writer:
        assert not writer.known(names(3))[0]
        writer.write(batch(names(3), seed=3))
    assert ids(store) == {id for number in range(4) for id in names(number)}
    assert describe(collection.reader)["damage"] == []
    if how != "gone":
        assert list((store / "torn").rglob("*.manifest"))


@pytest.mark.parametrize("how", ["empty", "half", "gone"])
def test_torn_rows_of_a_whole_version(store: Path, how: str) -> None:
    with writing(store, MANIFEST) as writer:
        journal_before = (store / "journal" / "items.jsonl").read_bytes()
        writer.write(batch(names(4), seed=4))
    # As if the power had gone before the last commit was flushed and written down.
    (store / "journal" / "items.jsonl").write_bytes(journal_before)
    tear(latest_data(store), how)
    assert ids(store) == {id for number in range(4) for id in names(number)}


def test_zeros_within_rows_of_another_start_of_the_machine(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(store, MANIFEST) as writer:
        journal_before = (store / "journal" / "items.jsonl").read_bytes()
        writer.write(batch(names(4, 400), seed=4))
    (store / "journal" / "items.jsonl").write_bytes(journal_before)
    content = bytearray(latest_data(store).read_bytes())
    content[4096:8192] = bytes(4096)
    latest_data(store).write_bytes(content)
    monkeypatch.setattr(journal, "boot", lambda: "another")
    assert len(ids(store)) == 80


def test_a_killed_writer_is_no_power_cut(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was committed and not written down in the journal is believed where it is whole."""
    with writing(store, MANIFEST) as writer:
        journal_before = (store / "journal" / "items.jsonl").read_bytes()
        writer.write(batch(names(4), seed=4))
    (store / "journal" / "items.jsonl").write_bytes(journal_before)
    assert len(ids(store)) == 100
    shutil.rmtree(store / "journal")  # as of an earlier version
    assert len(ids(store)) == 100
    assert repair(store).is_whole and len(ids(store)) == 100
    assert "torn" not in caplog.text


def test_versions_that_are_gone_are_no_empty_collection(store: Path) -> None:
    shutil.rmtree(store / "items.lance" / "_versions")
    with pytest.raises(StoreError, match="penult repair"):
        _ = Collection.open(store).count
    with pytest.raises(StoreError, match="penult repair"), writing(store, MANIFEST):
        pass
    assert run(["repair", str(store), "--dry-run"]) == 1
    assert run(["repair", str(store)]) == 0
    assert len(ids(store)) == 80
    shutil.rmtree(store / "items.lance")
    with pytest.raises(StoreError, match="penult repair"):
        ids(store)
    shutil.rmtree(store / "journal")
    with pytest.raises(StoreError, match="penult repair"):
        ids(store)
    assert run(["repair", str(store)]) == 1


@pytest.mark.parametrize("repaired", [True, False])
def test_a_cut_while_a_collection_is_made(tmp_path: Path, repaired: bool) -> None:
    path = tmp_path / "c.lance"
    with writing(path, MANIFEST):
        pass
    shutil.rmtree(path / "journal")
    for name in ("items", *lance.SIDE):
        for file in journal.manifests(path / f"{name}.lance").values():
            tear(file, "empty")
        shutil.rmtree(path / f"{name}.lance" / "data", ignore_errors=True)
    collection = Collection.open(path)
    assert collection.count == 0 and len(collection.labels()) == 0
    if repaired:
        assert run(["repair", str(path)]) == 0 and repair(path).is_whole
    with writing(path, MANIFEST) as writer:
        writer.write(batch(names(0)))
    assert len(ids(path)) == 20 and repair(path).is_whole


def test_a_collection_without_its_manifest_is_restored(store: Path) -> None:
    text = (store / "collection.json").read_text("utf-8")
    for damage in ("", "{", None):
        (store / "collection.json").unlink()
        if damage is not None:
            (store / "collection.json").write_text(damage)
        with pytest.raises(PenultError):
            ids(store)
        assert run(["repair", str(store)]) == 0
        assert (store / "collection.json").read_text("utf-8") == text
    assert len(ids(store)) == 80


@pytest.mark.parametrize("table", ["items", "labels", "failures", "spaces", "runs"])
@pytest.mark.parametrize("how", ["empty", "zeros"])
def test_repair_of_every_table(
    store: Path, table: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = Collection.open(store)
    for mark in ("yes", "no"):
        collection.label(names(0)[0], "whole", "cat", mark, who="me", source="test")
    collection.fit_space("centre", "one")
    collection.fit_space("scale", "two")
    with writing(store, MANIFEST) as writer:
        for number in range(2):
            writer.fail([Failure(f"/{number}.wav", "", "DecodeError", "no")])
    before = {name: len(collection.reader.side_table(name)) for name in lance.SIDE}
    assert run(["repair", str(store)]) == 0
    assert "is whole" in capsys.readouterr().out
    if how == "empty":
        for copy in journal.copies(store, table).values():
            copy.unlink()
    tear(newest(store, table), how)
    torn = listed(store)
    assert run(["repair", str(store), "--dry-run", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    states = {one["name"]: one["state"] for one in found["tables"]}
    assert states.pop(table) == "restored" and set(states.values()) == {"whole"}
    assert listed(store) == torn
    assert run(["repair", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repaired"]
    kept = listed(Path(found["set_aside"]))
    assert len(kept) == 1  # nothing was deleted
    assert repair(store).is_whole
    after = {name: len(collection.reader.side_table(name)) for name in lance.SIDE}
    # A version that is only whole in the copy of its file is restored from it; else the one before.
    for name in before:
        one_less = how == "empty" and name == table and name != "runs"
        assert after[name] == before[name] - one_less
    collection.label(names(0)[1], "whole", "cat", who="me", source="test")
    with writing(store, MANIFEST) as writer:
        writer.write(batch(names(9), seed=9))
    assert repair(store).is_whole


def test_rows_that_changed_on_the_disk_are_found_and_embedded_again(store: Path) -> None:
    """A flipped bit, which LanceDB reads as a number like others: rows of its part go."""
    whole = Collection.open(store).vectors()
    data = sorted((store / "items.lance" / "data").iterdir(), key=lambda f: f.stat().st_mtime_ns)[1]
    content = bytearray(data.read_bytes())
    content[200] ^= 16
    data.write_bytes(content)
    assert len(ids(store)) == 80
    found = repair(store, dry_run=True)
    state = next(table for table in found.tables if table.name == "items")
    assert state.state == "rows lost" and state.lost == 20 and len(state.damaged) == 1
    assert repair(store).is_lost is False
    assert ids(store) == {id for number in (0, 2, 3) for id in names(number)}
    assert repair(store).is_whole
    with writing(store, MANIFEST) as writer:
        assert not writer.known(names(1))[0]
        writer.write(batch(names(1), seed=1))
    again = Collection.open(store).vectors()
    assert whole[0].equals(again[0]) and np.array_equal(whole[1], again[1])


def test_a_damaged_index_goes_and_no_row_with_it(tmp_path: Path) -> None:
    path = tmp_path / "c.lance"
    with writing(path, MANIFEST) as writer:
        writer.write(batch(names(0, 2000)))
    collection = Collection.open(path)
    collection.build_index(0)
    assert repair(path).is_whole
    index = next((path / "items.lance" / "_indices").rglob("index.idx"))
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    found = next(table for table in repair(path).tables if table.name == "items")
    assert found.state == "restored" and found.indices == ["vectors"] and found.lost == 0
    assert collection.count == 2000 and Collection.open(path).index is None
    assert repair(path).is_whole


def test_repair_of_what_is_no_collection(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CollectionError, match="no collection"):
            repair(path)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files and folders that were flushed, by their path, with the bytes that they had."""
    found: set[str] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = f":{os.fstat(descriptor).st_size}" if place.is_file() else ""
        found.add(f"{place}{size}")

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell the path of an open file")
    monkeypatch.setattr(os, "fsync", fsync)
    return found


def required(path: Path, name: str = "items") -> set[str]:
    """What the newest version of a table names, by LanceDB's own word."""
    import lance as files

    table = path.resolve() / f"{name}.lance"
    data = files.dataset(str(table))
    found = [newest(path, name).resolve()]
    for fragment in data.get_fragments():
        found += [table / "data" / file.path for file in fragment.data_files()]
        found += [table / fragment.deletion_file()] if fragment.deletion_file() else []
    for index in data.list_indices():
        found += (table / "_indices" / index["uuid"]).iterdir()
    folders = {file.parent for file in found} | {table, path.resolve(), path.resolve().parent}
    return {f"{file}:{file.stat().st_size}" for file in found} | {str(one) for one in folders}


def test_every_file_of_a_commit_is_flushed_before_it_is_reported(
    tmp_path: Path, flushed: set[str]
) -> None:
    path = tmp_path / "new" / "c.lance"
    with writing(path, MANIFEST) as writer:
        for number in range(3):
            before = required(path) if number else set()
            writer.write(batch(names(number), seed=number))
            assert before <= flushed  # the commit before
        before = required(path)
        writer.write(batch(names(1)[:5], seed=7))  # replaces, and deletes
        writer.remove([names(0)[3]])
        writer.fail([Failure("/x.wav", "", "DecodeError", "no")])
        assert before <= flushed
    for name in ("items", *lance.SIDE):
        assert required(path, name) <= flushed, name
    assert f"{path.resolve()}/collection.json:{(path / 'collection.json').stat().st_size}" not in (
        flushed
    )  # it was flushed under the name that it had before
    assert any("collection.json-" in place for place in flushed)
    collection = Collection.open(path)
    collection.label(names(0)[0], "whole", "cat", who="me", source="test")
    assert required(path, "labels") <= flushed
    collection.fit_space("centre")
    assert required(path, "spaces") <= flushed
    flushed.clear()
    out = tmp_path / "out.csv"
    export(collection.reader, out)
    assert any(re.search(r"\.out\.csv-", place) for place in flushed) and str(tmp_path) in flushed


def test_old_versions_go_after_new_ones_are_flushed(
    tmp_path: Path, flushed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lance as files

    path = tmp_path / "c.lance"
    monkeypatch.setattr(lance, "KEEP", timedelta(0))
    monkeypatch.setattr(lance, "MANY", 3)
    real, seen = files.LanceDataset.cleanup_old_versions, []

    def cleaned(data: Any, *arguments: Any, **options: Any) -> Any:
        if "items" in data.uri:
            seen.append(required(path) <= flushed)
        return real(data, *arguments, **options)

    monkeypatch.setattr(files.LanceDataset, "cleanup_old_versions", cleaned)
    with writing(path, MANIFEST) as writer:
        for number in range(6):
            writer.write(batch(names(number), seed=number))
    assert seen == [True]
    assert len(list((path / "items.lance" / "data").iterdir())) == 1 and repair(path).is_whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_late(
    store: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system takes the bytes, and says when they are flushed that the disk has no room."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "/data/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell the path of an open file")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match=os.strerror(number)), writing(store, MANIFEST) as w:
            w.write(batch(names(5), seed=5))
            w.write(batch(names(6), seed=6))
    assert "did not take" in caplog.text
    assert ids(store) == {id for number in range(4) for id in names(number)}
    assert repair(store).is_whole
    with writing(store, MANIFEST) as writer:
        assert not writer.known(names(5))[0]
        writer.write(batch(names(5), seed=5))
    assert len(ids(store)) == 100


def test_an_older_version_that_is_torn(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk keeps no order: the newest version is there, and one before it is not."""
    tear(list(journal.manifests(store / "items.lance").values())[1], "empty")
    assert len(ids(store)) == 80
    monkeypatch.setattr(lance, "MANY", 2)
    monkeypatch.setattr(lance, "KEEP", timedelta(0))
    with writing(store, MANIFEST) as writer:
        writer.write(batch(names(4), seed=4))
    assert len(ids(store)) == 100 and len(journal.manifests(store / "items.lance")) == 1
    assert list((store / "torn").rglob("*.manifest")) and repair(store).is_whole


def test_a_torn_journal_is_no_harm(store: Path) -> None:
    file = store / "journal" / "items.jsonl"
    content = file.read_bytes()
    for torn in (
        b"",
        content[:-40],
        content + bytes(300),
        content + b"12345678 {}\n",
        b"\xff" * 50,
    ):
        file.write_bytes(torn)
        assert len(ids(store)) == 80
        with writing(store, MANIFEST):
            pass
        assert repair(store).is_whole
        assert journal.last(store, "items") is not None


CUTS = power_cut.unavailable()


@pytest.mark.skipif(bool(CUTS), reason=CUTS)
def test_a_power_cut(tmp_path: Path) -> None:
    found = power_cut.trial(tmp_path, commits=8, cuts=1)
    assert len(found) == 2
    for one in found:
        assert one.is_kept, one


# Clocks and names.


def test_marks_count_by_their_order_and_not_by_the_clock(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, id = Collection.open(store), names(0)[0]
    year = [2030]
    monkeypatch.setattr(manifest, "now", lambda: datetime(year[0], 1, 1, tzinfo=UTC))
    for year[0], mark in ((2030, "yes"), (2020, "no"), (2025, "yes"), (2021, "unsure")):
        collection.label(id, "whole", "cat", mark, who="me", source="test")
    assert collection.labels()["mark"].to_pylist() == ["yes", "no", "yes", "unsure"]
    assert standing(collection.reader)[id, "whole"] == {"cat": "unsure"}
    for year[0], recipe in ((2030, "centre"), (2020, "scale")):
        collection.fit_space(recipe, "mine")
    assert collection.space("mine").recipe == "scale"
    other = tmp_path / "all.lance"
    merge([collection.reader], Collection.open(other).reader)
    merged = Collection.open(other)
    assert merged.labels()["mark"].to_pylist() == ["yes", "no", "yes", "unsure"]
    year[0] = 2001
    merged.label(id, "whole", "cat", "no", who="me", source="test")
    assert standing(merged.reader)[id, "whole"] == {"cat": "no"}


def test_runs_and_failures_with_a_clock_set_back(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in (2040, 2010):
        now = datetime(year, 1, 1, tzinfo=UTC)
        monkeypatch.setattr(manifest, "now", lambda now=now: now)
        with writing(store, MANIFEST, run={"command": str(year)}) as writer:
            writer.fail([Failure("/x.wav", "", "DecodeError", str(year))])
    runs = Collection.open(store).runs().to_pylist()
    assert [run["command"] for run in runs][-2:] == ["2040", "2010"]
    assert all(run["started"] < run["ended"] for run in runs[-2:])
    assert runs[-2]["ended"] < runs[-1]["started"]
    failure = Collection.open(store).failures().to_pylist()[0]
    assert failure["message"] == "2010" and failure["when"] > runs[-2]["ended"]


def exported(path: Path, out: Path, mark: str, begin: Any) -> None:
    begin.wait(30)
    for _ in range(5):
        export(Collection.open(path).reader, out, f"id LIKE '/{mark}/%'", overwrite=True)


def test_exports_to_one_name_at_once(store: Path, tmp_path: Path) -> None:
    """The .npy and the .csv beside it are of one of them."""
    out, begin = tmp_path / "out.npy", threading.Barrier(3)
    threads = [
        threading.Thread(target=exported, args=(store, out, str(number), begin))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    rows = (tmp_path / "out.csv").read_text().splitlines()[1:]
    marks = {row.split("/")[1] for row in rows}
    assert len(rows) == 20 and len(marks) == 1
    expected = Collection.open(store).vectors(f"id LIKE '/{marks.pop()}/%'")[1]
    assert np.array_equal(np.load(out), expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.lance", "out.csv", "out.npy"]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with (
        pytest.raises(FileExistsError),
        files_aside([out, tmp_path / "b.csv"], overwrite=False) as (one, other),
    ):
        one.write_text("mine")
        other.write_text("mine")
        out.write_text("theirs")
    assert out.read_text() == "theirs" and [f.name for f in tmp_path.iterdir()] == ["out.csv"]


def test_an_export_of_a_name_that_is_taken_meanwhile(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penult.collection import export as exports

    out, real = tmp_path / "out.csv", exports._csv

    def slow(*arguments: Any) -> int:
        out.write_text("theirs")
        return real(*arguments)

    monkeypatch.setattr(exports, "_csv", slow)
    with pytest.raises(UsageError, match="exists; give another name"):
        export(Collection.open(store).reader, out)
    assert out.read_text() == "theirs"


def _killed(path: Path, hold: Any) -> None:
    with file_aside(path) as aside:
        aside.write_text("part")
        hold.set()
        time.sleep(60)


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("files are not held there")
    context = multiprocessing.get_context("spawn")
    hold, out = context.Event(), tmp_path / "out.csv"
    process = context.Process(target=_killed, args=(out, hold))
    process.start()
    assert hold.wait(60)
    left = next(file for file in tmp_path.iterdir())
    old = time.time() - 3600
    others = [tmp_path / ".out.csv-notes", tmp_path / ".other.csv-0123456789abcdef0123456789abcdef"]
    for other in others:
        other.write_text("mine")
        os.utime(other, (old, old))
    os.utime(left, (old, old))
    with file_aside(out) as aside:
        aside.write_text("whole")
    assert left.exists() and out.read_text() == "whole"
    process.kill()
    process.join()
    with file_aside(out) as aside:
        aside.write_text("again")
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])


def test_a_folder_changes_in_one_step(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for text in ("one", "two"):
        with folder_aside(place) as aside:
            (aside / text).write_text(text)
        assert [file.name for file in place.iterdir()] == [text]
    with pytest.raises(RuntimeError), folder_aside(place) as aside:
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert (place / "two").read_text() == "two"


def test_the_warning_is_said_once(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    tear(newest(store), "empty")
    with caplog.at_level(logging.WARNING, logger="penult"):
        for _ in range(3):
            _ = Collection.open(store).count
    assert caplog.text.count("the last whole one") == 1


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_the_file_of_a_version_is_no_other_column(store: Path) -> None:
    """LanceDB reads a name or a number of a column that changed as it stands."""
    collection = Collection.open(store)
    for place in range(3):
        collection.label(names(place)[0], "whole", "cat", who="me", source="test")
    with writing(store, MANIFEST) as writer:
        writer.write(batch(names(4), seed=4))
    before = listed(store)
    for name in ("items", "labels"):
        file = newest(store, name)
        for place in range(7, file.stat().st_size - 20, file.stat().st_size // 2):
            flip(file, place)
            assert describe(collection.reader)["damage"], place
            assert len(ids(store)) in (80, 100)
            # The writer has a copy: nothing is lost, and no mark is made again.
            with writing(store, MANIFEST):
                pass
            assert len(ids(store)) == 100 and len(collection.labels()) == 3
            assert describe(collection.reader)["damage"] == []
            shutil.rmtree(store)
            for relative, content in before.items():
                (store / relative).parent.mkdir(parents=True, exist_ok=True)
                (store / relative).write_bytes(content)


def test_damage_that_the_store_finds_is_said_in_words(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words of its own it says "corrupt", which is neither the filter's fault nor a flaw."""

    class Damaged:
        schema = Collection.open(store).reader.schema

        def search(self) -> Damaged:
            raise RuntimeError("lance error: Encountered corrupt file mini-block: 101 < 144")

    for where in (None, "id <> 'x'"):
        with pytest.raises(StoreError, match="penult repair"):
            list(lance.stream_rows(store, Damaged(), ["id"], where, 10))


def test_marks_made_one_by_one_are_compacted(store: Path, tmp_path: Path) -> None:
    """Else each takes longer than the one before. Nothing of them changes, in order or number."""
    collection = Collection.open(store)
    given = [f"class {number}" for number in range(lance.MANY + 3)]
    for number, name in enumerate(given):
        if number % 20 == 0:
            collection = Collection.open(store)
        collection.label(names(0)[0], "whole", name, who="me", source="test")
    table = lance.open_table(store, "labels")
    assert lance.fragments(table) < lance.MANY
    assert collection.labels()["class"].to_pylist() == given
    assert repair(store).is_whole
    copy = Path(shutil.copytree(store, tmp_path / "copy.lance"))
    assert Collection.open(copy).labels()["class"].to_pylist() == given


def _mark(path: Path, who: str, times: int) -> None:
    collection = Collection.open(path)
    for number in range(times):
        collection.label(names(0)[0], "whole", f"{who}{number}", who=who, source="test")


@pytest.mark.slow
def test_marks_of_two_processes_are_compacted_by_one(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    times = lance.MANY + 4
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_mark, args=(store, who, times)) for who in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    found = Collection.open(store).labels()["class"].to_pylist()
    for who in "ab":
        assert [one for one in found if one[0] == who] == [f"{who}{n}" for n in range(times)]
    assert repair(store).is_whole
    assert "conflict" not in capfd.readouterr().err


def test_a_run_compacts_marks_that_were_made_before(store: Path) -> None:
    former, lance.MANY = lance.MANY, 10_000
    try:
        _mark(store, "a", 40)
    finally:
        lance.MANY = former
    with writing(store, MANIFEST):
        pass
    assert lance.fragments(lance.open_table(store, "labels")) < lance.MANY
    assert len(Collection.open(store).labels()) == 40


def test_a_disk_that_refuses_what_was_there_before(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of that table was written since, so nothing is set aside, and that is not said."""
    Collection.open(store).label(names(0)[0], "whole", "cat", who="me", source="test")
    last = journal.last(store, "labels")
    assert last is not None
    known = journal.Synced(last.version, last.boot)  # its lines before were lost
    (store / "journal" / "labels.jsonl").write_bytes(journal._line(known))
    real = journal.flush  # type: ignore[attr-defined]

    def flush(target: Path) -> None:
        if "labels.lance" in str(target):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(target)

    monkeypatch.setattr(journal, "flush", flush)
    with pytest.raises(StoreError), writing(store, MANIFEST):
        pass
    assert "labels" not in caplog.text and "in None" not in caplog.text
    monkeypatch.undo()
    assert len(Collection.open(store).labels()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4] + data[-4:][::-1],  # no file of the store
        lambda data: data[:-8] + b"\x63\0\x63\0" + data[-4:],  # of a format to come
        lambda data: data.replace(b"PageLayout", b"PageL\x7fyout"),
        lambda data: data.replace(b"ColumnEncoding", b"ColumnEnc\x7fding"),
    ],
)
def test_a_file_of_rows_that_the_store_cannot_take_is_said_in_words(
    store: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Whatever the store says of it, and where there is a filter, not as the filter's fault."""
    for file in (store / "items.lance" / "data").glob("*.lance"):
        file.write_bytes(damage(file.read_bytes()))
    reader = Collection.open(store).reader
    for where in (None, "id <> 'x'"):
        with pytest.raises(StoreError, match=r"damaged.*penult repair"):
            reader.vectors(where)
    said = ask("export", store, store.parent / "out.csv")
    assert said.code == 1
    assert "penult repair" in said.err
    assert "Nobody foresaw" not in said.err


class RustPanic(Exception):
    """What LanceDB raises where its decoder stops; it can be imported from nowhere."""


class PanicException(BaseException):
    """The same from Lance, which is no Exception."""


@pytest.mark.parametrize("panic", [RustPanic, PanicException])
def test_a_decoder_of_the_store_that_stops_has_met_damage(
    store: Path, monkeypatch: pytest.MonkeyPatch, panic: type[BaseException]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise panic("rust future panicked: unknown error")

    for where in (None, "id <> 'x'"):
        with pytest.raises(StoreError, match="penult repair"), lance.query_errors(store, where, []):
            stop()
    with pytest.raises(StoreError, match="penult repair"), store_errors(store):
        stop()
    with pytest.raises(KeyboardInterrupt), store_errors(store):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="of ours"), store_errors(store):
        raise ValueError("of ours")
    monkeypatch.setattr(repairing, "_opened", stop)
    assert not repair(store).is_whole


@pytest.mark.parametrize("where", ["corrupt = 1", "`storage version` > 3", "id = 'corrupt"])
def test_words_of_a_filter_are_no_damage(store: Path, where: str) -> None:
    with pytest.raises(CollectionError, match="the filter"):
        Collection.open(store).reader.vectors(where)


@pytest.mark.parametrize("versions", ["gone", "torn"])
def test_rows_and_versions_are_damaged(store: Path, versions: str) -> None:
    """Either the folder of versions was moved away as a whole, with the restored version in it, or
    the version that the repair had committed, by the name of a torn one."""
    damaged = sorted((store / "items.lance" / "data").iterdir())[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    if versions == "gone":
        shutil.rmtree(store / "items.lance" / "_versions")
    else:
        newest(store).write_bytes(b"")
        for copy in (store / "journal").glob("items-*"):
            copy.unlink()
    before = ids(store) if versions == "torn" else set()
    found = repair(store)
    (items,) = (table for table in found.tables if table.name == "items")
    assert items.state in ("restored", "rows lost")
    assert len(ids(store)) == items.rows and repair(store).is_whole
    assert items.rows >= (60 if versions == "gone" else len(before) - 20)


def test_damage_without_checksums_ends_no_process(store: Path) -> None:
    """As in a collection of 0.1.0. An error of Lance with a zero in its text aborted the process
    where rows came as a stream."""
    shutil.rmtree(store / "journal")
    file, mark = latest_data(store), b"/lance.encodings21"
    content = file.read_bytes()
    place = content.rindex(mark)
    file.write_bytes(content[: place + 3] + bytes(len(mark) - 3) + content[place + len(mark) :])
    assert not repair(store, dry_run=True).is_whole
    repair(store)
    assert len(ids(store)) >= 60
