"""Rows of files that are gone: removed when asked, and kept where a disk may be missing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from conftest import RATE, clip
from penult.collection.collection import Collection
from test_cli import ask

QUIET = ("--workers", "0", "--engine", "torch")


@pytest.fixture(scope="module")
def archive(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings on one site and ten on another, and a collection of them."""
    root = tmp_path_factory.mktemp("archive")
    for number in range(20):
        path = root / "sites" / "ab"[number % 2] / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(0.3, number), RATE)
    assert ask("embed", tiny, root / "sites", "--into", root / "c.lance", *QUIET).code == 0
    return root


@pytest.fixture
def sites(archive: Path) -> Iterator[Path]:
    """The same place at every test: what a test changes is put back."""
    for name in ("sites", "c.lance"):
        shutil.copytree(archive / name, archive / f"kept-{name}", symlinks=True)
    yield archive / "sites"
    for name in ("sites", "c.lance"):
        shutil.rmtree(archive / name)
        (archive / f"kept-{name}").rename(archive / name)


def ids(root: Path) -> set[str]:
    found = Collection.open(root / "c.lance").vectors(columns=["id"])[0]["id"]
    return {Path(id).name for id in found.to_pylist()}


ALL = {f"{number:02}.wav" for number in range(20)}
EVEN = {f"{number:02}.wav" for number in range(0, 20, 2)}  # of site a


def test_a_disk_that_is_missing_is_not_pruned(tiny: Path, sites: Path) -> None:
    """The run does its other work; what it found is told with numbers, and removed if meant."""
    (sites / "b").rename(sites.parent / "elsewhere")
    soundfile.write(sites / "a" / "new.wav", clip(0.3, 77), RATE)
    run = ("embed", tiny, sites, "--into", sites.parent / "c.lance", *QUIET)
    said = ask(*run, "--prune")
    assert said.code == 1 and "1 embedded, 10 unchanged" in said.out
    assert said.error.startswith("10 of 21 files of these paths were deleted (48%), more than 10%")
    assert "--prune-all" in said.error and ids(sites.parent) == ALL | {"new.wav"}
    assert "their rows are kept\n" in said.out and "--prune removes" not in said.out
    said = ask(*run, "--prune", "--json")
    assert said.code == 1 and said.json["gone"]["count"] == 10
    assert said.json["gone"]["rows_removed"] == 0 and said.json["pruning"]["refused"]
    said = ask(*run)
    assert said.code == 0  # who does not ask to prune is not refused anything
    assert "their rows are kept; --prune-all removes them" in said.out
    said = ask(*run, "--prune-all", "--json")
    assert said.code == 0 and said.json["gone"]["rows_removed"] == 10
    assert said.json["pruning"]["refused"] is None and ids(sites.parent) == EVEN | {"new.wav"}
    (sites.parent / "elsewhere").rename(sites / "b")


def test_a_few_files_that_were_deleted_are_pruned(tiny: Path, sites: Path) -> None:
    (sites / "a" / "00.wav").unlink()
    (sites / "b" / "01.wav").unlink()
    said = ask("embed", tiny, sites, "--into", sites.parent / "c.lance", *QUIET, "--prune")
    assert said.code == 0 and "2 rows removed" in said.out
    assert ids(sites.parent) == ALL - {"00.wav", "01.wav"}


@pytest.mark.parametrize("left", ["nothing", "lost+found", "a link", "a link to the folder"])
def test_the_empty_place_of_a_disk_tells_nothing_of_its_files(
    tiny: Path, sites: Path, left: str
) -> None:
    """Three files at such a place, fewer than what is pruned without a word elsewhere."""
    for path in sorted((sites / "b").iterdir())[3:]:
        path.unlink()
    store = sites.parent / "c.lance"
    run = ("embed", tiny, sites, "--into", store, *QUIET)
    ask(*run, "--prune-all")
    (sites / "a" / "00.wav").unlink()
    for path in sorted((sites / "b").iterdir()):
        path.unlink()
        if left == "a link":
            path.symlink_to("/disk/that/is/gone" / Path(path.name))
    if left == "lost+found":
        (sites / "b" / "lost+found").mkdir()
    if left == "a link to the folder":
        (sites / "b").rmdir()
        (sites / "b").symlink_to("/disk/that/is/gone")
    on_b = {"01.wav", "03.wav", "05.wav"}
    said = ask(*run, "--prune")
    assert said.code == 1 and "3 files may be on a disk that is not mounted" in said.err
    assert "1 row removed" in said.out and ids(sites.parent) == EVEN - {"00.wav"} | on_b
    said = ask(*run, "--json")
    assert said.json["gone"]["count"] == 0 and said.json["pruning"]["unreachable"]["count"] == 3
    ask(*run, "--prune-all")
    assert ids(sites.parent) == EVEN - {"00.wav"}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOTCONN])
def test_a_folder_that_cannot_be_looked_into_has_lost_nothing(
    tiny: Path, sites: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    stat, listing = Path.stat, os.scandir

    def refuse(path: Any) -> None:
        if str(path).startswith(str(sites / "b")):
            raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "stat", lambda path, **n: refuse(path) or stat(path, **n))
    monkeypatch.setattr(os, "scandir", lambda path=".": refuse(path) or listing(path))
    run = ("embed", tiny, sites, "--into", sites.parent / "c.lance", *QUIET, "--prune", "--json")
    said = ask(*run)
    assert said.code == 3 and said.json["failed"] == 1  # the folder
    assert said.json["gone"]["count"] == 0 and ids(sites.parent) == ALL


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.lstat() for path in root.rglob("*")}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def test_a_dry_run_changes_nothing_and_says_all(tiny: Path, sites: Path) -> None:
    shutil.rmtree(sites / "b")
    soundfile.write(sites / "a" / "new.wav", clip(0.3, 77), RATE)
    os.utime(sites / "a" / "02.wav", (1, 1))
    store = sites.parent / "c.lance"
    before = snapshot(store)
    run = ("embed", tiny, sites, "--into", store, *QUIET, "--prune", "--dry-run")
    said = ask(*run)
    assert said.code == 0 and "1 new, 1 of another size or time, 9 unchanged" in said.out
    assert "--prune-all would remove: 10 deleted files with 10 rows: " in said.out
    assert "10 of 20 files" in said.out and "--prune removes nothing" in said.out
    everything = ask(*run, "--prune-all").out
    assert (
        "--prune-all would remove: 10 deleted" in everything and "removes nothing" not in everything
    )
    found = ask(*run, "--json").json
    assert sorted(Path(id).name for id in found["gone"]["ids"]) == sorted(ALL - EVEN)
    assert (found["new"], found["touched"], found["unchanged"]) == (1, 1, 9)
    assert snapshot(store) == before
    other = sites.parent / "other.lance"
    assert "11 new" in ask("embed", tiny, sites, "--into", other, *QUIET, "--dry-run").out
    assert not other.exists()


def test_failures_of_files_that_are_gone_go_with_prune(tiny: Path, sites: Path) -> None:
    store, run = sites.parent / "c.lance", ("embed", tiny, sites, "--into")
    (sites / "bad.wav").write_bytes(b"no sound")
    (sites / "worse.wav").write_bytes(b"no sound")
    ask(*run, store, *QUIET)
    (sites / "bad.wav").unlink()
    ask(*run, store, *QUIET)
    assert len(Collection.open(store).failures()) == 2
    found = ask(*run, store, *QUIET, "--prune", "--dry-run", "--json").json
    assert found["gone"]["failures_only"] == ["sites/bad.wav"]
    said = ask(*run, store, *QUIET, "--prune", "--json")
    assert said.code == 3 and said.json["pruning"]["failures_removed"] == 1
    assert [Path(id).name for id in Collection.open(store).failures()["id"].to_pylist()] == [
        "worse.wav"
    ]
    assert ids(sites.parent) == ALL


def test_half_a_table_is_no_reason_to_prune(tiny: Path, sites: Path) -> None:
    lines = [f"sites/a/00.wav,note {number}" for number in range(12)]
    table, store = sites.parent / "notes.csv", sites.parent / "notes.lance"
    table.write_text("\n".join(["path,note", *lines]))
    ask("embed", tiny, table, "--into", store, *QUIET)
    table.write_text("\n".join(["path,note", *lines[:5]]))
    run = ("embed", tiny, table, "--into", store, *QUIET)
    said = ask(*run, "--prune", "--json")
    assert said.code == 1 and said.json["former_annotations"]["rows_removed"] == 0
    assert "7 of 12 rows are of annotations" in said.err
    found = ask(*run, "--prune", "--dry-run", "--json").json
    assert found["former_annotations"]["count"] == 7
    assert ask(*run, "--prune-all", "--json").json["former_annotations"]["rows_removed"] == 7
    shutil.rmtree(store)


def test_a_mounted_disk_and_its_place_without_it(tiny: Path, sites: Path) -> None:
    place, store = sites / "c", sites.parent / "c.lance"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    run = ("embed", tiny, sites, "--into", store, *QUIET)
    try:
        soundfile.write(place / "mounted.wav", clip(0.3, 99), RATE)
        assert ask(*run).code == 0
    finally:
        subprocess.run(["umount", place], check=True)
    said = ask(*run, "--prune")
    assert said.code == 1 and "1 file may be on a disk that is not mounted" in said.err
    assert "mounted.wav" in ids(sites.parent)
