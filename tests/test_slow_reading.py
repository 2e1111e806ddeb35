"""What comes slowly is committed as it comes: a run that is killed has lost little of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from conftest import RATE, clip
from penult.collection import ingest
from penult.collection.add import add
from penult.collection.collection import Collection
from penult.collection.ingest import Options
from penult.data import audio, decode, sources
from penult.data.sources import from_objects, from_paths
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.models.specs import load
from test_cli import ask

ITEMS = 300


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(ITEMS):
        soundfile.write(folder / f"{number:03}.wav", clip(0.1, number), RATE)
    return folder


class SlowStep:
    """A step of each item that takes its time, too little to count as standing still, until the
    first row is committed. given: items that it took for that."""

    def __init__(self, path: Path) -> None:
        self._path, self._taken = path, 0
        self.given: int | None = None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*rest: Any, **named: Any) -> Any:
            self.take()
            return function(*rest, **named)

        return slowly

    def take(self) -> None:
        if self.given is None:
            time.sleep(0.1)
            self._taken += 1
            there = (self._path / "collection.json").exists()
            if there and Collection.open(self._path).count:
                self.given = self._taken

    def each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.take()
            yield value


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("place", ["search", "length", "hash", "decoder", "generator"])
def test_slow_items_are_committed_as_they_come(
    place: str, tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowStep(tmp_path / "c.lance")
    files = sorted(many.glob("*.wav"))
    source = from_paths([many], "audio")
    if place == "search":
        own = sources.Source.__iter__
        monkeypatch.setattr(sources.Source, "__iter__", lambda self: slow.each(own(self)))
    elif place == "length":
        monkeypatch.setattr(decode, "_read_headers", slow(decode._read_headers))
    elif place == "hash":
        monkeypatch.setattr(ingest, "_content_hash", slow(ingest._content_hash))
    elif place == "decoder":
        monkeypatch.setattr(audio, "load_many", slow(audio.load_many))
    else:
        source = from_objects(slow.each(iter(files)), "audio")
    options = Options(commit_seconds=0.5, layout=Layout(0.05 if place == "length" else None))
    embedder = Embedder.from_classifier(load(tiny), engine="torch")
    embedder.embed(files[:8])  # how items share a batch is measured once
    reader = Collection.open(tmp_path / "c.lance").reader
    done = add(reader, embedder, source, options).done
    assert slow.given is not None and slow.given < ITEMS  # not at the end
    assert done == ITEMS * (2 if place == "length" else 1)


SLOW_LENGTHS = """
import sys, time
from penult.cli.main import main
from penult.data import decode
own = decode._read_headers
decode._read_headers = lambda *rest: time.sleep(0.2) or own(*rest)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_over_slow_items_is_gone_on_with(
    tiny: Path, many: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.lance"
    command = ["embed", tiny, many, "--into", path, "--engine", "torch", "--window", "0.05"]
    command += ["--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    call = [sys.executable, "-c", SLOW_LENGTHS, *map(str, command)]
    with subprocess.Popen(call, env=environment, **quiet) as process:
        while process.poll() is None:
            if (path / "collection.json").exists() and Collection.open(path).count:
                break
            time.sleep(0.2)
        assert process.poll() is None
        process.kill()
    rows = Collection.open(path).count
    assert 0 < rows < 2 * ITEMS
    done = ask(*command, "--json").json
    assert done["skipped"] == rows and done["done"] + rows == done["rows"] == 2 * ITEMS
