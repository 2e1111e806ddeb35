"""Measure what spreading a run over machines costs; the figures of docs/many-machines.md.

    python scripts/many_machines.py [--only workers,rows,plan,commit] [--items N] [--planned N]

workers: rows a second of 1, 2 and 4 workers on this machine, of a model that sleeps 50 ms for each
item and computes next to nothing, each with as many items; once all of them are ready, up to the
last row. rows: seconds for each row of a model that costs nothing, on one machine and
with one worker. plan: the driver's memory and speed over so many items that are new, each planned,
looked up, put into a chunk and pickled, and then thrown away. commit: rows a second that the driver
takes from workers into the collection, 768 numbers each.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import soundfile

from penult.collection import ray_workers
from penult.collection.add import Summary, add, commit
from penult.collection.chunks import WorkerModel
from penult.collection.collection import Collection
from penult.collection.ingest import CommitBatch, Options, Planned, Tick
from penult.collection.manifest import Manifest
from penult.collection.ray_workers import MOST, ChunkFeed, Crew, RayOptions, RayWorkers
from penult.collection.schema import row_schema
from penult.collection.writer import writing
from penult.data.items import Entry, Item
from penult.data.regions import WHOLE
from penult.data.sources import Source, from_paths
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Stopwatch

RATE, DIM = 8000, 768
SECTIONS = ("workers", "rows", "plan", "commit")
NET = """
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.front = nn.Conv1d(1, 16, 40, 20)
        self.head = nn.Linear(16, 3)

    def forward(self, samples):
        time.sleep(self.seconds)
        return self.head(torch.relu(self.front(samples[:, None])).mean(dim=2))

def made(seconds):
    torch.manual_seed(0)
    return Net(seconds).eval()

def slow():
    return made(0.05)

def quick():
    return made(0.0)
"""


def model(name: str) -> WorkerModel:
    """A model of the module that stands in the working folder."""
    options = {"weights_inside": True, "sample_rate": RATE, "engine": "torch", "device": "cpu"}
    return WorkerModel(f"many_nets:{name}", options, str(Path.cwd()))


def write_clips(folder: Path, count: int) -> None:
    """Clips of 50 ms, no two alike."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        samples = 0.1 * random.standard_normal(RATE // 20)
        soundfile.write(folder / f"{number:05}.wav", samples, RATE)


class Clock:
    """When rows came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, embedded: bool, seconds: float) -> None:
        """A row came, or not."""
        if embedded:
            self.times.append(time.perf_counter())

    @property
    def rate(self) -> float:
        """Rows a second from the first result to the last, without the rows of the first."""
        later = [one for one in self.times if one - self.times[0] > 0.01]
        return len(later) / (self.times[-1] - self.times[0])


def run(clips: Path, named: str, workers: int | None, options: Options) -> Clock:
    """Embed the clips into a new collection; on this machine alone where there are no workers."""
    clock, wanted = Clock(), model(named)
    if workers is not None:
        machines = RayWorkers(RayOptions("local", workers), wanted)
        options = Options(alone=options.alone, machines=machines)
    with tempfile.TemporaryDirectory() as folder:
        source = from_paths([clips], "audio")
        add(Collection.open(Path(folder) / "c").reader, wanted.open(), source, options,
            tick=clock.tick)  # fmt: skip
    return clock


class WholeCrew(Crew):
    """Gives no work before all workers are ready, so that none of them is measured alone."""

    began = 0.0

    def feed(self, feed: ChunkFeed) -> None:
        """See `Crew`."""
        if not WholeCrew.began:
            self._staff()
            while any(one.ready is not None for one in self._members):
                self.ready(lambda embedded, seconds: None, None)
                time.sleep(0.05)
            WholeCrew.began = time.perf_counter()
        super().feed(feed)


def measure_workers(items: int) -> None:
    """Rows a second of 1, 2 and 4 workers, each with as many items."""
    one = 0.0
    for workers in (1, 2, 4):
        clips, WholeCrew.began = Path(f"clips{workers}"), 0.0
        write_clips(clips, items * workers)
        with patch.object(ray_workers, "Crew", WholeCrew):
            clock = run(clips, "slow", workers, Options(alone=True))
        rate = items * workers / (clock.times[-1] - WholeCrew.began)
        one = one or rate
        print(
            f"workers: {workers}: {rate:.1f} rows/s, {rate / workers / one:.2f} of {workers} × one "
            f"worker ({items * workers:,} items, 50 ms each: {20 * workers} rows/s at most)",
            flush=True,
        )


def measure_rows(items: int) -> None:
    """Milliseconds for each row of a model that costs nothing."""
    clips = Path("clips")
    write_clips(clips, items)
    for workers in (None, 1):
        clock = run(clips, "quick", workers, Options())
        where = "one machine" if workers is None else "one worker of Ray"
        print(f"rows: {where}: {1000 / clock.rate:.2f} ms for each row ({items:,} items)")


class Nowhere:
    """Machines that take every chunk, pickled, and give nothing back."""

    def __init__(self, most: int) -> None:
        self.peak, self.sizes, self.most, self.chunks = 0, 0, most, 0

    def begin(self, embedder: Embedder, rows: pa.Schema) -> None:
        """Nothing begins."""
        self.embedder = embedder

    def batches(
        self, planned: Iterable[Planned], options: Options, tick: Tick, watch: Stopwatch | None
    ) -> Iterator[CommitBatch]:
        """Empty batches."""
        feed = ChunkFeed(planned, self.embedder, options, tick)
        while not feed.ended:
            if (chunk := feed.take(MOST)) is not None:
                self.sizes += len(pickle.dumps(chunk))
                self.chunks += 1
                if self.chunks % 20 == 1:
                    self.peak = max(self.peak, memory())
            if found := feed.notes():
                yield found
        yield feed.notes(last=True)


def memory() -> int:
    """Bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def measure_plan(most: int) -> None:
    """The driver's memory and speed, over ten thousand items and more."""
    embedder = model("quick").open()
    count = 10_000
    while count <= most:

        def entries(count: int = count) -> Iterator[Entry]:
            for number in range(count):
                id = f"/archive/{number // 1000:06}/{number:09}.flac"
                yield Item(id, Path(id), {}, 100_000 + number, number), WHOLE

        machines = Nowhere(count)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            add(Collection.open(Path(folder) / "c").reader, embedder,
                Source(start=entries, columns={}), Options(machines=machines))  # fmt: skip
            seconds = time.perf_counter() - began
        print(
            f"plan: {count:,} items: {count / seconds:,.0f} items/s, the driver takes "
            f"{machines.peak / 1e6:,.0f} MB, {machines.sizes / count:,.0f} bytes for each item to "
            "a worker"
        )
        count *= 10


def measure_commit(rows: int) -> None:
    """Rows a second into a collection, as they come from workers."""
    random, schema = np.random.default_rng(0), row_schema(DIM, 0, "none")
    part, summary = 4096, Summary()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest(
            fingerprint={"model": "none"}, dim=DIM, n_logits=0, model={}, labels=[], logits="none",
            dtype="float32", engine="torch", precision="exact",
        )  # fmt: skip
        with writing(Path(folder) / "c", manifest) as writer:
            seconds = 0.0
            for start in range(0, rows, part):
                ids = [f"/archive/{number:09}.flac" for number in range(start, start + part)]
                batch = _rows_of(ids, random, schema)
                writer.known(ids)
                began = time.perf_counter()
                commit(writer, CommitBatch(packed=[batch]), schema, summary)
                seconds += time.perf_counter() - began
        print(f"commit: {rows:,} rows of {DIM} numbers: {rows / seconds:,.0f} rows/s")


def _rows_of(ids: list[str], random: np.random.Generator, schema: pa.Schema) -> pa.RecordBatch:
    flat = pa.array(random.standard_normal(len(ids) * DIM).astype(np.float32))
    columns: dict[str, Any] = {
        "id": ids,
        "region": ["whole"] * len(ids),
        "kind": ["whole"] * len(ids),
        "content_hash": ids,
        "vector": pa.FixedSizeListArray.from_arrays(flat, DIM),
    }
    arrays = [
        pa.array(columns[one.name], one.type) if isinstance(columns.get(one.name), list)
        else columns.get(one.name, pa.nulls(len(ids), one.type))
        for one in schema
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def main() -> int:
    """Measure the sections that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--planned", type=int, default=1_000_000)
    given = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # others are at work here too
    chosen = given.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("many_nets.py").write_text(NET)
        if "workers" in chosen:
            measure_workers(given.items)
        if "rows" in chosen:
            measure_rows(10 * given.items)
        if "plan" in chosen:
            measure_plan(given.planned)
        if "commit" in chosen:
            measure_commit(20 * 4096)
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
