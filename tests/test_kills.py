"""Killed again and again at random moments, and run once more: as if nothing had happened."""

from __future__ import annotations

import csv
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import clip
from penult.collection.collection import Collection
from test_ingest import rows

ITEMS, RATE = 600, 8000
FLOATS = ("vector", "logits", "score")


def work(table: Path, path: Path) -> None:
    """One run, in a process of its own: many items, a model that takes no time, many commits."""
    import torch
    from torch import nn

    import penult
    from penult.collection.add import add
    from penult.collection.ingest import Options
    from penult.data.sources import from_paths

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Conv1d(1, 16, 40, 20)
            self.head = nn.Linear(16, 3)

        def forward(self, samples: Any) -> Any:
            return self.head(torch.relu(self.front(samples[:, None])).mean(dim=2))

    clf = penult.load(Net().eval(), sample_rate=RATE, seconds=0.05)
    embedder = penult.Embedder.from_classifier(clf)
    options = Options(commit_rows=8, commit_seconds=0.02)
    add(Collection.open(path).reader, embedder, from_paths([table], "audio"), options)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short clips with metadata, a file that is none, and one that is not there."""
    folder = tmp_path_factory.mktemp("many")
    with (folder / "clips.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "site", "depth"])
        for number in range(ITEMS):
            name = f"{number:04}.wav"
            soundfile.write(folder / name, clip(0.04 + number % 9 / 1000, number, RATE), RATE)
            lines.writerow([name, f"s{number % 5}", number / 4])
        lines.writerows([["bad.wav", "s0", 1], ["none.wav", "s0", 2]])
    (folder / "bad.wav").write_bytes(b"no")
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Processes that have the libraries loaded already, but nothing of the store."""
    context = multiprocessing.get_context("forkserver")
    # lancedb itself starts a thread, which a fork would not have.
    slow = ["torch._dynamo", "lance_namespace", "test_kills"]
    slow += ["penult.embedding.embedder", "penult.collection.ingest"]
    context.set_forkserver_preload(slow)
    yield context
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture(scope="module")
def whole(table: Path, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection of a run that nobody stopped."""
    path: Path = tmp_path_factory.mktemp("store") / "whole"
    process = processes.Process(target=work, args=(table, path))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and Collection.open(path).count == ITEMS
    return path


def assert_same(path: Path, whole: Path) -> None:
    one, other = rows(whole), rows(path)
    assert one.keys() == other.keys()
    for key, row in one.items():
        assert row.keys() == other[key].keys()
        for name in row:
            if name in FLOATS:
                expected, found = np.float64(row[name]), np.float64(other[key][name])
                assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
            else:
                assert row[name] == other[key][name], name
    expected, found = (
        sorted((row["id"], row["error"]) for row in Collection.open(p).failures().to_pylist())
        for p in (whole, path)
    )
    assert expected == found and len(found) == 2


def files_of(path: Path) -> int:
    """Of rows that were committed, or nearly."""
    data = path / "items.lance" / "data"
    return len(list(data.iterdir())) if data.is_dir() else 0


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, table: Path, whole: Path, processes: Any, tmp_path: Path
) -> None:
    """A collection that is complete is compared and begun anew; kills that land are counted."""
    chance, path = random.Random(kills), tmp_path / "killed"
    landed = dead = 0
    while landed < kills:
        assert dead < 3 * kills + 9, f"only {landed} of {dead} kills landed between two rows"
        process = processes.Process(target=work, args=(table, path))
        commits = files_of(path)
        process.start()
        while process.is_alive() and files_of(path) == commits and chance.random() > 0.0005:
            time.sleep(0.005)  # now and then a kill comes before the first commit
        process.join(chance.uniform(0.0, 0.3))
        if process.is_alive():
            process.kill()
            process.join(60)
            dead += 1
            landed += path.exists() and 0 < Collection.open(path).count < ITEMS
        else:
            assert process.exitcode == 0
            assert_same(path, whole)
            shutil.rmtree(path)
    process = processes.Process(target=work, args=(table, path))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert_same(path, whole)
    statuses = Collection.open(path).runs()["status"].to_pylist()
    assert statuses[-1] == "done" and set(statuses[:-1]) <= {"killed"}
