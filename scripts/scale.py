"""Measure a collection as it grows: cost of a row, memory, a second run, search and its index.

python scripts/scale.py FOLDER [--rows 1000000] [--dim 768] [--files 100000] [--plot FILE.png]

Rows are synthetic and clustered; they take the way of `penult embed`: asked for by their ids,
made into a batch, committed 256 at a time. FOLDER is kept, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from penult.collection.add import Summary, commit
from penult.collection.collection import Collection
from penult.collection.ingest import CommitBatch
from penult.collection.manifest import Manifest
from penult.collection.schema import row_schema

COMMIT = 256
CLUSTER = 200  # rows around each centre


def resident() -> float:
    """MB of memory that this process holds and that no file could give back."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def vectors(rows: int, first: int, dim: int, spread: float = 0.7) -> np.ndarray:
    """(rows, dim) around centres that are the same in every call, on a hypersphere."""
    random = np.random.default_rng(first)
    centres = np.stack(
        [
            np.random.default_rng(10**9 + number // CLUSTER).standard_normal(dim, np.float32)
            for number in range(first, first + rows, CLUSTER)
        ]
    )
    chosen = centres[random.integers(0, len(centres), rows)]
    return chosen + spread * random.standard_normal((rows, dim), np.float32)


def made(first: int, rows: int, options: argparse.Namespace) -> CommitBatch:
    """A step as the ingest gives it, with these rows; the first ones have files."""
    step = CommitBatch()
    found = vectors(rows, first, options.dim)
    for place in range(rows):
        number = first + place
        file = options.folder / "files" / f"{number // 1000:04}" / f"{number:08}.wav"
        known = {"size": 1, "mtime_ns": 1}
        step.rows.append(
            {
                "id": str(file), "region": "whole", "kind": "whole", "start": 0.0, "end": 5.0,
                "vector": found[place], "logits": np.float32([0.1, 0.2, 0.7]), "label": "c",
                "score": 0.7, "content_hash": f"{number:064x}", "site": f"s{number % 50}", **known,
            }
        )  # fmt: skip
    return step


def grow(collection: Collection, options: argparse.Namespace) -> list[dict[str, float]]:
    """Commits rows until there are enough; measures each stretch."""
    import pyarrow as pa

    fingerprint = {"weights": "synthetic", "dim": str(options.dim)}
    manifest = Manifest(fingerprint, options.dim, 3, labels=("a", "b", "c"))
    metadata = {"site": pa.string()}
    columns = row_schema(options.dim, 3, metadata=metadata)
    points: list[dict[str, float]] = []
    with collection.writer(manifest, metadata, {"command": "scripts/scale.py"}) as writer:
        count, summary = collection.count, Summary()
        making = writing = longest = 0.0
        since = count
        while count < options.rows:
            began = time.perf_counter()
            step = made(count, min(COMMIT, options.rows - count), options)
            making += time.perf_counter() - began
            began = time.perf_counter()
            ids = [row["id"] for row in step.rows]
            known, failed = writer.known(ids, ["site"])[0], writer.failed(ids)
            assert not known and not failed
            commit(writer, step, columns, summary)
            took = time.perf_counter() - began
            writing, longest = writing + took, max(longest, took)
            count += len(step.rows)
            if count - since >= options.rows // 100 or count >= options.rows:
                points.append(
                    {
                        "rows": count, "ms_per_row": writing / (count - since) * 1e3,
                        "longest_commit_s": longest, "resident_mb": resident(),
                    }
                )  # fmt: skip
                print(json.dumps(points[-1]), flush=True)
                writing = longest = 0.0
                since = count
        began = time.perf_counter()
        writer.finish("done", summary.counts())
    print(f"end of the run: {time.perf_counter() - began:.1f} s", flush=True)
    return points


def again(collection: Collection, options: argparse.Namespace) -> dict[str, float]:
    """A second run over files that are all known: through source, ingest and store."""
    from penult.collection.ingest import Options, Seen, ingest
    from penult.data.sources import from_paths

    for number in range(options.files):
        file = options.folder / "files" / f"{number // 1000:04}" / f"{number:08}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_bytes(b"x")
        os.utime(file, ns=(1, 1))

    class Unused:
        """An embedder that has nothing to do."""

        class classifier:  # noqa: N801
            modality, rate, kind, labels = "audio", 16_000, "single-label", ("a", "b", "c")

        class runner:  # noqa: N801
            @staticmethod
            def stream(wanted: Any, *_: Any, **__: Any) -> Iterator[Any]:
                for one in wanted:
                    assert not isinstance(one, tuple), "not known"
                    yield one

    manifest = collection.manifest
    assert manifest is not None
    began, before = time.perf_counter(), resident()
    with collection.writer(manifest, run={"command": "scripts/scale.py again"}) as writer:

        def lookup(ids: Any) -> Seen:
            found, values = writer.known(ids)
            return Seen(found, values, writer.failed(ids))

        summary = Summary()
        source = from_paths([options.folder / "files"], "audio")
        for step in ingest(Unused(), source, lookup, Options()):  # type: ignore[arg-type]
            commit(writer, step, None, summary)
    assert summary.skipped == options.files, summary
    took = time.perf_counter() - began
    began = time.perf_counter()
    from penult.collection.add import gone

    assert gone(collection.reader, [str(options.folder / "files" / "0000")]) == []
    return {
        "files": options.files, "seconds": took, "more_mb": resident() - before,
        "seconds_gone_in_one_folder": time.perf_counter() - began,
    }  # fmt: skip


def searching(collection: Collection, options: argparse.Namespace, **how: Any) -> dict[str, float]:
    """Milliseconds of searches with vectors near the collection's own."""
    times = []
    for number in range(options.queries):
        query = vectors(1, number * (options.rows // options.queries), options.dim)[0]
        began = time.perf_counter()
        collection.search(query, **how)
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return {"p50_ms": statistics.median(times), "p95_ms": times[int(0.95 * len(times))]}


def filtered(collection: Collection, options: argparse.Namespace, where: str) -> dict[str, float]:
    """How many of the ten nearest that a filter leaves the index finds, and how fast."""
    found = []
    for number in range(5):
        query = vectors(1, number * 1000, options.dim)[0]
        exact = {hit.id for hit in collection.search(query, where=where, flat=True)}
        found.append(len(exact & {hit.id for hit in collection.search(query, where=where)}) / 10)
    return {"recall": statistics.fmean(found), **searching(collection, options, where=where)}


def plot(points: list[dict[str, float]], file: Path, title: str) -> None:
    """Cost of a row and memory over the number of rows."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    rows = [point["rows"] for point in points]
    cost.plot(rows, [point["ms_per_row"] for point in points], ".-")
    cost.set(xlabel="rows", ylabel="ms per row, to store it", ylim=(0, None))
    memory.plot(rows, [point["resident_mb"] for point in points], ".-", color="tab:orange")
    memory.set(xlabel="rows", ylabel="resident memory, MB", ylim=(0, None))
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run what was asked for, and print one JSON document a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    collection = Collection.open(options.folder / "scale.lance")
    said = f"{date.today()}, {os.cpu_count()} cores, {options.rows:,} rows × {options.dim}"
    points = grow(collection, options)
    kept = options.folder / "points.json"
    points = points or json.loads(kept.read_text())
    kept.write_text(json.dumps(points))
    if options.plot:
        plot(points, options.plot, said)
    print("again", json.dumps(again(collection, options)), flush=True)
    collection.drop_index()
    flat = argparse.Namespace(**{**vars(options), "queries": 10})
    print("flat", json.dumps(searching(collection, flat)), flush=True)
    print("index", json.dumps(collection.build_index(0.0).to_dict()), flush=True)
    print("indexed", json.dumps(searching(collection, options)), flush=True)
    for where in ("site = 's7'", "site <> 's7'"):
        print("where", where, json.dumps(filtered(collection, options, where)), flush=True)


if __name__ == "__main__":
    main()
