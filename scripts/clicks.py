"""Clicks of the explorer's loop, over HTTP: how much of a class they find from one example, and how
long a mark takes until all rows have their new scores.

    penult embed kwt1.onnx fsdd/recordings --sample-rate 16000 --seconds 1 --tap prelogits \\
        --into prelogits.lance
    python scripts/clicks.py found prelogits.lance backbone.lance --by '{}_*' --each 42
    python scripts/clicks.py found prelogits.lance --by '{}_*' --each 42 --order likely --batch 1
    python scripts/clicks.py speed --rows 1000000

found: a user who knows the truth answers what the page offers. Each collection is copied, with
`--each` rows of each class drawn anew for each seed; what is found is the share of the other members
that are among the answers, beside that among the hits of one query.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from penult.analysis.space import fit, unit
from penult.collection import lance
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.collection.manifest import Manifest
from penult.collection.schema import row_schema
from penult.collection.writer import writing
from penult.explorer.routes import build
from penult.explorer.session import Explorer

DIM = 768
AT_ONCE = 20_000  # rows of a commit


class Page:
    """The page as far as it teaches: what it asks the server, and how long that takes."""

    def __init__(self, collection: Collection) -> None:
        self.explorer = Explorer(collection)
        self.client = TestClient(build(self.explorer))
        self.marked: list[float] = []  # seconds of each mark

    def mark(self, name: str, marks: dict[int, str]) -> dict[str, Any]:
        """Mark rows."""
        began = time.perf_counter()
        rows = [{"row": row, "mark": mark} for row, mark in marks.items()]
        answer = self.client.post("/api/marks", json={"class": name, "marks": rows})
        self.marked.append(time.perf_counter() - began)
        answer.raise_for_status()
        return dict(answer.json())

    def suggested(self, name: str, order: str, k: int) -> list[int]:
        """Rows to mark next."""
        query: dict[str, Any] = {"class": name, "order": order, "k": k}
        answer = self.client.get("/api/suggest", params=query)
        answer.raise_for_status()
        return [one["row"] for one in answer.json()["rows"]]


def made(path: Path, batches: Iterator[dict[str, Any]], dim: int) -> Collection:
    """A collection of rows that are given as columns."""
    collection = Collection.open(path)
    manifest = Manifest(
        {"weights": "clicks", "dim": str(dim)}, dim, 1, {"modality": "audio"}, logits="none"
    )
    columns = row_schema(dim, 1, "none")
    with writing(collection.path, manifest, {}, {"command": "scripts/clicks.py"}) as writer:
        writer.write(table_of(next(batches), dim, columns).to_batches()[0])
        writer.finish("done", {})
    for batch in batches:  # all rows are new: nothing is looked up
        lance.open_table(collection.path, lance.ITEMS).add(table_of(batch, dim, columns))
    return collection


def table_of(batch: dict[str, Any], dim: int, columns: pa.Schema) -> pa.Table:
    """Rows, with nulls where nothing is given."""
    number = len(batch["id"])
    vector = pa.FixedSizeListArray.from_arrays(pa.array(batch["vector"].reshape(-1)), dim)
    given = {"id": pa.array(batch["id"]), "region": pa.array(["whole"] * number),
             "kind": pa.array(["whole"] * number), "run_id": pa.array(["clicks"] * number),
             "vector": vector}  # fmt: skip
    arrays = [given.get(field.name, pa.nulls(number, field.type)) for field in columns]
    return pa.Table.from_arrays(arrays, schema=columns)


def drawn(names: np.ndarray, each: int, random: np.random.Generator) -> np.ndarray:
    """`each` rows of each class, or all of them with 0."""
    if not each:
        return np.arange(len(names))
    parts = [random.permutation(np.flatnonzero(names == name))[:each] for name in np.unique(names)]
    return np.sort(np.concatenate(parts))


def one_query(vectors: np.ndarray, member: np.ndarray, first: int, answers: int) -> float:
    """The share of the other members among the hits of one query, as `penult search` ranks."""
    rows = unit(fit("centre", vectors)(vectors).astype(np.float64))
    scores = rows @ rows[first]
    scores[first] = -np.inf
    return float(member[np.argsort(-scores, kind="stable")[:answers]].sum() / (member.sum() - 1))


def clicked(page: Page, name: str, member: np.ndarray, first: int, asked: Any) -> float:
    """The share of the other members that so many answers find."""
    page.mark(name, {first: "yes"})
    given: dict[int, str] = {}
    while len(given) < asked.answers:
        found = page.suggested(name, asked.order, min(asked.batch, asked.answers - len(given)))
        if not found:
            break
        answers = {row: "yes" if member[row] else "no" for row in found}
        page.mark(name, answers)
        given |= answers
    yes = sum(mark == "yes" for mark in given.values())
    return yes / (int(member.sum()) - 1)


def found(asked: Any) -> None:
    """Print a line for each collection: what clicks find, beside one query."""
    for path in asked.collections:
        table = labelled(Collection.open(path, must_exist=True), [asked.by])
        every, results, times = np.array(table.names[asked.by]), [], []
        for seed in range(asked.seeds):
            random = np.random.default_rng(seed)
            rows = drawn(every, asked.each, random)
            names, vectors = every[rows], table.vectors[rows]
            ids = [f"{place:06}" for place in range(len(rows))]
            for name in np.unique(names)[: asked.classes]:
                first = int(random.choice(np.flatnonzero(names == name)))
                query = one_query(vectors, names == name, first, asked.answers)
                with tempfile.TemporaryDirectory() as folder:
                    batch = {"id": ids, "vector": np.ascontiguousarray(vectors)}
                    store = made(Path(folder) / "clicks.lance", iter([batch]), vectors.shape[1])
                    page = Page(store)
                    share = clicked(page, str(name), names == name, first, asked)
                results.append((share, query))
                times += page.marked
        means, worst = np.mean(results, axis=0), np.min(results, axis=0)
        print(f"{path} {asked.order} in batches of {asked.batch}: {asked.answers} clicks find "
              f"{means[0]:.3f} (worst {worst[0]:.3f}), one query {means[1]:.3f} ({worst[1]:.3f}); "
              f"{len(results)} classes, answers to a page {statistics.median(times) * 1e3:.0f} ms",
              flush=True)  # fmt: skip


def synthetic(rows: int) -> Iterator[dict[str, Any]]:
    """Rows around 200 centres, with a part that all have in common."""
    common = np.random.default_rng(1).standard_normal(DIM, np.float32)
    centres = common + np.random.default_rng(0).standard_normal((200, DIM), np.float32)
    for first in range(0, rows, AT_ONCE):
        random, number = np.random.default_rng(2 + first), min(AT_ONCE, rows - first)
        chosen = centres[random.integers(0, len(centres), number)]
        ids = [f"{place // 1000:05}/{place:09}.wav" for place in range(first, first + number)]
        noise = random.standard_normal((number, DIM), np.float32)
        yield {"id": ids, "vector": chosen + 0.7 * noise}


def speed(asked: Any) -> None:
    """Print how long a mark and all scores take."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(asked.keep or folder) / f"speed_{asked.rows}.lance"
        if path.exists():
            store = Collection.open(path)
        else:
            store = made(path, synthetic(asked.rows), DIM)
        began = time.perf_counter()
        page = Page(store)
        count = len(page.explorer.rows)
        print(f"{count:,} rows × {DIM}: numbers of rows {time.perf_counter() - began:.1f} s",
              flush=True)  # fmt: skip
        began = time.perf_counter()
        page.explorer.vectors.wait(600)
        print(f"vectors in memory after {time.perf_counter() - began:.1f} s", flush=True)
        direction = np.ones((1, DIM), np.float32)
        for turn in range(4):
            began = time.perf_counter()
            page.explorer.vectors.products(direction)
            print(f"product with all rows: {time.perf_counter() - began:.3f} s"
                  + (" (with their lengths)" if turn == 0 else ""), flush=True)  # fmt: skip
        random = np.random.default_rng(0)
        lines = []
        for turn, row in zip(range(asked.marks), itertools.count(17, 1 + count // 97)):
            began = time.perf_counter()
            page.mark("call", {row % count: "yes" if turn % 3 == 0 else "no"})
            posted = time.perf_counter() - began
            page.explorer.teaching.scores("call")
            scored = time.perf_counter() - began
            page.suggested("call", "mixed", 5)
            lines.append((posted, scored, time.perf_counter() - began))
            print("mark {:.3f} s, with scores {:.3f} s, with suggestions {:.3f} s".format(
                *lines[-1]), flush=True)  # fmt: skip
            time.sleep(float(random.uniform(0.2, 1.0)))  # a person listens
        last = np.median(np.array(lines[2:]), axis=0)
        print("median from the third mark on: mark {:.3f} s, with scores {:.3f} s, with "
              "suggestions {:.3f} s".format(*last))  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("found")
    one.add_argument("collections", nargs="+")
    one.add_argument("--by", required=True)
    one.add_argument("--order", default="mixed")
    one.add_argument("--batch", type=int, default=5)
    one.add_argument("--answers", type=int, default=50)
    one.add_argument("--each", type=int, default=42, help="rows of each class; 0: all")
    one.add_argument("--seeds", type=int, default=1)
    one.add_argument("--classes", type=int, default=100, help="as many of them, in their order")
    one.set_defaults(run=found)
    other = parts.add_parser("speed")
    other.add_argument("--rows", type=int, default=1_000_000)
    other.add_argument("--marks", type=int, default=10)
    other.add_argument("--folder", help="where the collection is made")
    other.add_argument("--keep", help="a folder in which it stays, for the next time")
    other.set_defaults(run=speed)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
