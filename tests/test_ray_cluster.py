"""Runs over two nodes of Ray on this machine, by the command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import object_store as s3
from conftest import clip
from penult.collection.collection import Collection
from penult.data.places import place_of
from ray_cluster import (
    ITEMS,
    RATE,
    Driver,
    assert_same,
    count,
    make_project,
    two_nodes,
    undisturbed,
)
from test_ingest import rows


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def whole(project: Path) -> Path:
    return undisturbed(project)


def test_a_worker_that_differs_gets_no_work(
    nodes: Any, project: Path, whole: Path, tmp_path: Path
) -> None:
    """One of two: named with what differs, and the other one does it all."""
    (project / "odd").mkdir()
    try:
        options = ("--ray", nodes.address, "--ray-workers", "2")
        code, told = Driver(project, tmp_path / "c", *options).ended()
        odd = (project / "odd" / "taken").read_text()
    finally:
        shutil.rmtree(project / "odd")
    assert code == 3, told
    assert f"(process {odd}) gets no work: its vectors differ by" in told
    assert "1.0e-05 is allowed" in told
    assert_same(tmp_path / "c", whole)


def test_an_item_that_kills_every_worker_is_a_named_failure(
    nodes: Any, project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deadly"
    (folder / "clips").mkdir(parents=True)
    shutil.copy(project / "many_net.py", folder)
    (folder / "deadly").touch()
    soundfile.write(folder / "clips" / "a.wav", clip(0.05, 1, RATE), RATE)
    loud = clip(0.05, 2, RATE)
    soundfile.write(folder / "clips" / "deadly.wav", 0.99 * loud / np.abs(loud).max(), RATE)
    path = tmp_path / "c"
    code, told = Driver(folder, path, "--ray", nodes.address, "--ray-workers", "2").ended()
    assert code == 3, told
    assert [Path(id).name for id, _ in rows(path)] == ["a.wav"]
    (failed,) = Collection.open(path).failures().to_pylist()
    assert Path(failed["id"]).name == "deadly.wav" and failed["error"] == "PassingFault"
    assert "the worker that embeds it died 3 times" in failed["message"]


def test_items_and_the_collection_lie_in_a_store(
    project: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers read objects, the driver commits to a store that fails at times: the table is that of
    a disk. Killed, the same command goes on."""
    with s3.s3_server() as port, s3.proxied(port) as proxy:
        for name, value in s3.environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        archive, _ = (s3.bucket(port, name) for name in ("archive", "vectors"))
        s3.upload(archive, project / "clips", "clips")
        place = "s3://vectors/calls.lance"
        options = ("--ray", "local", "--ray-workers", "2")
        (project / "slow").touch()
        try:
            killed = Driver(project, place, *options, source="s3://archive/clips/")
            killed.wait_for(lambda: count(place))
            killed.process.kill()
            killed.ended()
        finally:
            (project / "slow").unlink()
        assert 0 < count(place) < ITEMS
        proxy.reset(every=10)
        code, told = Driver(project, place, *options, source="s3://archive/clips/").ended()
        assert code == 3, told
        proxy.reset()
        assert_same(place_of(place), whole, "clips")
