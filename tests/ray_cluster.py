"""Nodes of Ray on this machine, and the command that embeds on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import psutil
import soundfile

from conftest import clip
from penult.collection.collection import Collection
from penult.errors import PenultError
from test_ingest import rows

RATE = 8000
ITEMS = 150
MODEL = ("many_net:build", "--weights-inside", "--sample-rate", str(RATE))
FLOATS = ("vector", "logits", "score")
NET = '''
"""A model that takes 30 ms for each item where there is a file `slow`; the process that comes first
to a folder `odd` differs from all others."""
import os, sys, time
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


def is_odd():
    odd = HERE / "odd"
    if not odd.is_dir() or "ray" not in sys.modules or os.environ.get("MANY_DRIVER"):
        return False
    try:
        (odd / "taken").open("x").write(str(os.getpid()))
    except FileExistsError:
        pass
    return (odd / "taken").read_text() in ("", str(os.getpid()))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(1, 16, 40, 20)
        self.head = nn.Linear(16, 3)

    def forward(self, samples):
        if (HERE / "slow").exists():
            time.sleep(0.03 * len(samples))
        deadly = (HERE / "deadly").exists() and not os.environ.get("MANY_DRIVER")
        if deadly and samples.abs().max() > 0.95:
            os.kill(os.getpid(), 9)
        if (HERE / "odd").exists() and is_odd():
            samples = samples * 1.01
        return self.head(torch.relu(self.front(samples[:, None])).mean(dim=2))


def build():
    torch.manual_seed(0)
    return Net().eval()
'''


def assert_same(path: Path, whole: Path, folder: str = "") -> None:
    """Keys, metadata and failures are equal, vectors to 1e-5; each key has one row. folder: where
    items lie in two places, the name of the folder that they have in both; times and
    hashes differ then."""
    one, other = (_placed(rows(place), folder) for place in (whole, path))
    assert one.keys() == other.keys()
    assert Collection.open(path).count == Collection.open(whole).count == len(one)
    for key, row in one.items():
        assert row.keys() == other[key].keys()
        for name in row:
            if name in FLOATS and row[name] is not None:
                expected, found = np.float64(row[name]), np.float64(other[key][name])
                assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
            else:
                assert row[name] == other[key][name], name
    expected, found = (
        sorted((_behind(row["id"], folder), row["region"], row["error"], row["message"]) for row in
               Collection.open(place).failures().to_pylist())
        for place in (whole, path)
    )  # fmt: skip
    assert expected == found


def _behind(id: str, folder: str) -> str:
    return f"/{id}".rpartition(f"/{folder}/")[2] if folder else id


def _placed(found: dict[tuple[str, str], dict[str, Any]], folder: str) -> dict[Any, dict[str, Any]]:
    dropped = {"id", "mtime_ns", "content_hash"} if folder else set()
    return {
        (_behind(id, folder), region): {k: v for k, v in row.items() if k not in dropped}
        for (id, region), row in found.items()
    }


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with two CPUs each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # tests run side by side
    from ray.cluster_utils import Cluster as Nodes

    found = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found.add_node(num_cpus=2)
    try:
        yield found
    finally:
        found.shutdown()


def make_project(folder: Path) -> Path:
    """A model of one's own, clips in folders, a file that is none."""
    (folder / "many_net.py").write_text(NET)
    for number in range(ITEMS):
        place = folder / "clips" / f"s{number % 3}" / f"{number:03}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, clip(0.05, number, RATE), RATE)
    (folder / "clips" / "bad.wav").write_bytes(b"no")
    return folder


class Driver:
    """`penult embed` over the project's clips, as a process. What it says goes to a file, so that
    nobody has to read it meanwhile."""

    def __init__(
        self, project: Path, into: Path | str, *options: str, source: str = "clips"
    ) -> None:
        net, *how = MODEL
        arguments = ["-m", "penult", "embed", net, source, *how, "--into", str(into), *options]
        environment = {**os.environ, "MANY_DRIVER": "1"}
        with NamedTemporaryFile(dir=project, suffix=".told", delete=False) as file:
            self._told = Path(file.name)
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=project, env=environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def told(self) -> str:
        """What it has said so far, in one line."""
        return " ".join(self._told.read_text().split())

    def ended(self, seconds: float = 200.0) -> tuple[int, str]:
        """Its exit code and what it said, once it has ended."""
        try:
            return self.process.wait(seconds), self.told
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {seconds:g} s: {self.told}") from None

    def wait_for(self, condition: Callable[[], object], seconds: float = 120.0) -> None:
        """Until something is so, or the run has ended."""
        until = time.monotonic() + seconds
        while self.is_alive and not condition():
            assert time.monotonic() < until, f"nothing happens: {self.told}"
            time.sleep(0.05)


def undisturbed(project: Path) -> Path:
    """The collection of one machine that nobody disturbed."""
    path = project / "whole.lance"
    _, told = Driver(project, path, "--engine", "torch").ended()
    assert Collection.open(path).count == ITEMS, told
    return path


def workers() -> list[psutil.Process]:
    """Actors of the nodes, which are children of this process."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::RayWorker"):
                found.append(one)
    return found


def count(path: Path | str) -> int:
    """Rows, of a collection that may not be there yet."""
    try:
        return Collection.open(path).count
    except PenultError:
        return 0
