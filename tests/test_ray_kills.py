"""A run over nodes of Ray, of which some die: the table is that of one machine which nobody
disturbed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penult.collection.collection import Collection
from ray_cluster import (
    Driver,
    assert_same,
    count,
    make_project,
    two_nodes,
    undisturbed,
    workers,
)

KINDS = ["worker", "driver", "node", "worker", "interrupt"]


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


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, nodes: Any, project: Path, whole: Path, tmp_path: Path
) -> None:
    """Workers and drivers are killed, a driver is interrupted, a node is taken away and another
    comes."""
    chance, path = random.Random(kills), tmp_path / "killed.lance"
    options = ("--ray", nodes.address, "--ray-workers", "2")
    (project / "slow").touch()
    driver, lost_node = Driver(project, path, *options), False
    try:
        for number in range(kills):
            before, kind = count(path), KINDS[number % len(KINDS)]
            if number % 5 in (0, 2, 4):  # the others come right behind
                driver.wait_for(lambda: count(path) > before)  # noqa: B023
            time.sleep(chance.uniform(0.0, 0.3))
            if driver.is_alive:
                disturb(kind, driver, nodes, chance)
            else:
                after_end(driver, lost_node, path, whole)
            lost_node |= kind == "node"
            if kind in ("driver", "interrupt") or not driver.is_alive:
                driver.ended()
                driver, lost_node = Driver(project, path, *options), False
        code, told = driver.ended()
        if lost_node and code == 1:
            code, told = Driver(project, path, *options).ended()
    finally:
        driver.process.kill()
        (project / "slow").unlink()
    assert code == 3, told  # of bad.wav
    assert_same(path, whole)
    statuses = Collection.open(path).runs()["status"].to_pylist()
    assert statuses[-1] == "done" and set(statuses[:-1]) <= {"killed", "stopped"}


def after_end(driver: Driver, lost_node: bool, path: Path, whole: Path) -> None:
    """A run that ended by itself was whole before all kills had come, and begins anew; or it was
    on a node that went, and went with it (Ray notices that within seconds)."""
    code, told = driver.ended()
    if code == 3:
        assert_same(path, whole)
        shutil.rmtree(path)
    else:
        assert lost_node, f"{code}: {told}"


def disturb(kind: str, driver: Driver, nodes: Any, chance: random.Random) -> None:
    if kind == "node":
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        nodes.add_node(num_cpus=2)
    elif kind == "worker":
        if found := workers():
            chance.choice(found).kill()
    else:
        driver.process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGINT)
