"""The sections of bench.py on collections: cost of a row and memory as one grows, files that are
known, search with an index.

Rows are synthetic and clustered; they take the way of `penult embed`: asked for by their ids,
made into a batch, committed 256 at a time.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from commands import ran
from measuring import Bench, Fault, Section, digits, seconds, tell
from page import Table
from speed import models, tones

from penult.collection.add import Summary, commit
from penult.collection.collection import Collection
from penult.collection.ingest import CommitBatch
from penult.collection.manifest import Manifest
from penult.collection.schema import row_schema

COMMIT = 256
CLUSTER = 200  # rows around each centre
DIM = 768
AGE = 10**18  # of known files, in nanoseconds since 1970
SPACES = ("centre", "centre+scale", "whiten", "pca:64")
PLOT = Path(__file__).resolve().parents[1] / "docs" / "growth.png"


def resident() -> float:
    """MB of memory that this process holds and that no file could give back."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def vectors(rows: int, first: int, spread: float = 0.7) -> np.ndarray:
    """(rows, DIM) around centres that are the same in every call, on a hypersphere."""
    random = np.random.default_rng(first)
    centres = np.stack(
        [
            np.random.default_rng(10**9 + number // CLUSTER).standard_normal(DIM, np.float32)
            for number in range(first, first + rows, CLUSTER)
        ]
    )
    chosen = centres[random.integers(0, len(centres), rows)]
    return chosen + spread * random.standard_normal((rows, DIM), np.float32)


def made(first: int, rows: int) -> CommitBatch:
    """A step as the ingest gives it, with these rows."""
    step = CommitBatch()
    found = vectors(rows, first)
    for place in range(rows):
        number = first + place
        step.rows.append(
            {
                "id": f"{number // 1000:04}/{number:08}.wav", "region": "whole", "kind": "whole",
                "start": 0.0, "end": 5.0, "vector": found[place],
                "logits": np.float32([0.1, 0.2, 0.7]), "label": "c", "score": 0.7,
                "content_hash": f"{number:064x}", "site": f"s{number % 50}", "size": 1,
                "mtime_ns": 1,
            }
        )  # fmt: skip
    return step


@contextmanager
def growing(collection: Collection) -> Iterator[Any]:
    """A function that commits so many further rows; it gives the cost of a row in ms and the
    longest commit in seconds."""
    import pyarrow as pa

    manifest = Manifest({"weights": "synthetic", "dim": str(DIM)}, DIM, 3, labels=("a", "b", "c"))
    metadata = {"site": pa.string()}
    columns, summary = row_schema(DIM, 3, metadata=metadata), Summary()
    with collection.writer(manifest, metadata, {"command": "scripts/scale.py"}) as writer:
        count = collection.count

        def grow(more: int) -> tuple[float, float]:
            nonlocal count
            first, longest, whole = count, 0.0, 0.0
            while count < first + more:
                step = made(count, min(COMMIT, first + more - count))
                began = time.perf_counter()
                ids = [row["id"] for row in step.rows]
                if writer.known(ids, ["site"])[0] or writer.failures.of(ids):
                    raise Fault("new rows are known")
                commit(writer, step, columns, summary)
                took = time.perf_counter() - began
                whole, longest = whole + took, max(longest, took)
                count += len(step.rows)
            return whole / more * 1e3, longest

        yield grow
        writer.finish("done", summary.counts())


STRETCHES = 20  # a table has a line for every fourth


def scale(bench: Bench) -> None:
    """A collection as it grows, then its index."""
    with tempfile.TemporaryDirectory(prefix="penult-bench-", dir=bench.options.folder) as name:
        collection, rows = Collection.open(Path(name) / "scale.lance"), bench.options.rows
        points = []
        with growing(collection) as grow:
            while not points or points[-1][0] < rows:  # a disturbed stretch is followed by another
                cost, longest = bench.once(lambda: grow(rows // STRETCHES))
                count = (points[-1][0] if points else 0) + rows // STRETCHES
                points.append((count, cost, longest, resident()))
                tell(f"{count:,} rows: {cost:.3f} ms a row")
        every = max(1, len(points) // 5)
        lines = [
            [
                f"to {part[-1][0]:,}",
                f"{statistics.fmean(point[1] for point in part):.3f}",
                f"{max(point[2] for point in part):.1f}",
                f"{part[-1][3]:.0f}",
            ]
            for part in (points[at : at + every] for at in range(0, len(points), every))
        ]
        columns = (f"rows of {DIM}", "ms to store a row", "longest commit, s", "memory, MB")
        bench.show(Table(columns, lines))
        if bench.options.write:
            title = f"{rows:,} rows × {DIM}, {os.cpu_count()} cores"
            bench.written.append(lambda: plot(points, title))
            bench.note("![cost of a row and memory as the collection grows](growth.png)")
        indexing(bench, collection)


def plot(points: list[tuple[int, float, float, float]], title: str) -> None:
    """Cost of a row and memory over the number of rows."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    rows = [point[0] for point in points]
    cost.plot(rows, [point[1] for point in points], ".-")
    cost.set(xlabel="rows", ylabel="ms per row, to store it", ylim=(0, None))
    memory.plot(rows, [point[3] for point in points], ".-", color="tab:orange")
    memory.set(xlabel="rows", ylabel="resident memory, MB", ylim=(0, None))
    figure.suptitle(title, fontsize=9)
    figure.savefig(PLOT, dpi=110)


def queries(collection: Collection, number: int) -> list[np.ndarray]:
    """Vectors near the collection's own."""
    step = max(1, collection.count // number)
    return [vectors(1, at * step)[0] for at in range(number)]


def searched(collection: Collection, number: int, **how: Any) -> list[Any]:
    """The hits of so many searches."""
    return [collection.search(query, **how) for query in queries(collection, number)]


def indexing(bench: Bench, collection: Collection, spaces: Sequence[str] = ()) -> None:
    """The index: its build, and searches without it, with it, with filters and in spaces."""
    rows: list[list[str]] = []

    def line(title: str, number: int, built: str = "", **how: Any) -> None:
        exact = searched(collection, 20, **{**how, "flat": True})
        found = searched(collection, 20, **how)
        kept = [
            len({hit.id for hit in one} & {hit.id for hit in other}) / max(1, len(other))
            for one, other in zip(found, exact, strict=True)
        ]
        asked = queries(collection, number)
        times = bench.once(
            lambda: [seconds(partial(collection.search, query, **how)) for query in asked]
        )
        way = found[0].searched
        rows.append(
            [
                title,
                way,
                f"{statistics.median(times) * 1e3:.1f}",
                f"{statistics.fmean(kept):.3f}",
                built,
            ]
        )
        tell(" ".join(rows[-1]))

    line("no index", 5)
    took = bench.once(lambda: seconds(lambda: collection.build_index(0.0)))
    line("index", 50, f"{took:.0f}")
    line("all rows", 5, flat=True)
    line("a filter that leaves 2 %", 20, where="site = 's7'")
    line("a filter that leaves 98 %", 20, where="site <> 's7'")
    for space in spaces:
        collection.search(queries(collection, 1)[0], space=space)  # fitted and stored
        line(f"space {space}", 20, space=space)
    columns = (
        f"{collection.count:,} rows",
        "looked into",
        "ms (median)",
        "recall@10",
        "s to build",
    )
    bench.show(Table(columns, rows))


FRESH = """
import json, sys, time
import numpy as np
import penult
queries, times = np.load(sys.argv[2]), []
began = time.perf_counter()
collection = penult.Collection.open(sys.argv[1])
collection.get("nothing")
times.append(time.perf_counter() - began)
for query in queries:
    began = time.perf_counter()
    found = collection.search(query)
    times.append(time.perf_counter() - began)
print(json.dumps([found.searched, *times]))
"""


def search(bench: Bench) -> None:
    """100,000 rows with an index, in one process and from the shell."""
    with tempfile.TemporaryDirectory(prefix="penult-bench-", dir=bench.options.folder) as name:
        collection = Collection.open(Path(name) / "search.lance")
        with growing(collection) as grow:
            grow(bench.options.searched)
        indexing(bench, collection, SPACES)
        np.save(f"{name}/queries.npy", np.stack(queries(collection, 20)))
        command = [sys.executable, "-c", FRESH, str(collection.path), f"{name}/queries.npy"]
        found = [json.loads(bench.once(lambda: ran(command))) for _ in range(bench.options.rounds)]
        loading, first = (statistics.median(one[at] for one in found) for at in (1, 2))
        further = statistics.median(time for one in found for time in one[3:])
        query = f"{0:04}/{0:08}.wav"
        shell = [sys.executable, "-m", "penult", "search", str(collection.path), query, "--json"]
        whole = bench.paired({"nothing": lambda: ran([sys.executable, "-c", "pass"]),
                              "search": lambda: ran(shell)})  # fmt: skip
        lines = [
            ["a new process opens the collection, libraries included", digits(loading * 1e3), ""],
            ["its first search", digits(first * 1e3), "≤ 50"],
            ["further ones", digits(further * 1e3), "≤ 50"],
            [
                "`penult search STORE ROW`, from the shell and back",
                digits(whole["search"] * 1e3),
                "",
            ],
        ]
        bench.show(Table((f"{collection.count:,} rows, {found[0][0]}", "ms", "bound"), lines))


def known_files(bench: Bench) -> None:
    """A second run over files that are all known, through the command."""
    with models() as work:
        files, few, store = work / "files", work / "few", work / "store"
        number = bench.options.known
        ids = list(written(files, number)) + list(written(few, 2))
        fill(store, work, ids)

        def again(folder: Path, expected: int) -> None:
            command = [sys.executable, "-m", "penult", "embed", "demo", str(folder), "--json"]
            found = json.loads(ran([*command, "--into", str(store)]))
            if found["skipped"] != expected or found["done"]:
                raise Fault(f"{found['skipped']} of {expected} known files were skipped")

        times = bench.paired(
            {
                "a bare walk with stat": lambda: walk(files),
                "a second run over two of them": lambda: again(few, 2),
                f"a second run over {number:,} files": lambda: again(files, number),
            }
        )
        bare, start, whole = times.values()
        ratio = f"{(whole - start) / bare:.2f}"
        rows = [[name, "", digits(value), ""] for name, value in times.items()]
        rows.append(["the difference of the last two", ratio, digits(whole - start), "≤ 2"])
        columns = (f"{number:,} known files", "× the walk", "seconds", "bound")
        bench.show(Table(columns, rows))


def written(folder: Path, number: int) -> Iterator[str]:
    """Files of one byte and a known age, a thousand to a folder; their paths."""
    for at in range(number):
        path = folder / f"{at // 1000:04}" / f"{at:08}.wav"
        if at % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        os.utime(path, ns=(AGE, AGE))
        yield str(path)


def fill(store: Path, work: Path, ids: list[str]) -> None:
    """Make a collection of the bundled model with rows of these files, all with one vector."""
    one = work / "one.wav"
    soundfile.write(one, tones(np.random.default_rng(0), 16_000), 16_000)
    ran([sys.executable, "-m", "penult", "embed", "demo", str(one), "--into", str(store)])
    collection, summary = Collection.open(store), Summary()
    row = collection.get(str(one))
    if row is None or collection.manifest is None:
        raise Fault("the bundled model's collection has no row")
    with collection.writer(collection.manifest, run={"command": "scripts/scale.py"}) as writer:
        for first in range(0, len(ids), 10_000):
            step = CommitBatch()
            for number, id in enumerate(ids[first : first + 10_000], first):
                new = {"id": id, "content_hash": f"{number:064x}", "size": 1, "mtime_ns": AGE}
                step.rows.append({**row, **new})
            commit(writer, step, row_schema(128, 8), summary)
        writer.finish("done", summary.counts())


def walk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            total += os.stat(os.path.join(place, name)).st_size  # noqa: PTH116, PTH118
    return total


_RECALL = (
    "Recall: of the ten nearest rows of 20 queries, against all rows. These clusters are easy: "
    "what counts is the recall that `penult index` measures on your own vectors."
)
SECTIONS = {
    "known-files": Section(
        "A second run over known files",
        "`penult embed` over files that its collection has already, against a walk over them that "
        "asks for each file's size. A bare start is the same command over two files.",
        known_files,
        ("known", "rounds"),
    ),
    "search": Section(
        "Search with an index",
        f"Synthetic rows in clusters of {CLUSTER}, `penult index` as it is. {_RECALL}",
        search,
        ("searched", "rounds"),
    ),
    "scale": Section(
        "A collection as it grows",
        f"Synthetic rows in clusters of {CLUSTER} take the way of `penult embed`, {COMMIT} to a "
        "commit. The longest commits are those that compact. Files of 100,000 rows are never "
        "rewritten, and the index on ids is brought up to date when there are an eighth more of "
        "them, so that a row costs the same at any size. Memory is what the process holds itself "
        f"(RssAnon). {_RECALL} Why this kind of index: "
        "[decisions](decisions/2026-11-22-large-collections.md).",
        scale,
        ("rows",),
    ),
}
