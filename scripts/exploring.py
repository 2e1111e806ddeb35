"""The section of bench.py on the explorer, in headless Chromium without a GPU: first pictures,
panning, sound after a click, new scores of all rows after a mark."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from measuring import Bench, Fault, Section, Unmeasured, digits
from page import Table
from scale import DIM, made
from serving import served

from penult.collection.add import Summary, commit
from penult.collection.collection import Collection
from penult.collection.derived import make_map
from penult.collection.manifest import Manifest
from penult.collection.schema import row_schema

SMALL = 10_000
COMMIT = 20_000
# Seconds: all points are drawn, of few and of many; a frame; a sound; new scores.
FEW, MANY, FRAME, SOUND, MARK = 1.0, 5.0, 1.0, 0.2, 1.0
TIMES = 5
CLIPS = Path(__file__).resolve().parents[1] / "src" / "penult" / "demo" / "clips" / "clips.csv"


def filled(path: Path, rows: int) -> Path:
    """A collection of synthetic rows with a map."""
    import pyarrow as pa

    collection, metadata = Collection.open(path), {"site": pa.string()}
    manifest = Manifest({"weights": "synthetic", "dim": str(DIM)}, DIM, 3, labels=("a", "b", "c"))
    columns, summary = row_schema(DIM, 3, metadata=metadata), Summary()
    with collection.writer(manifest, metadata, {"command": "scripts/exploring.py"}) as writer:
        for first in range(0, rows, COMMIT):
            commit(writer, made(first, min(COMMIT, rows - first)), columns, summary)
        writer.finish("done", summary.counts())
    make_map(collection.reader, method="pca", most=rows)
    return path


@contextmanager
def page_of(url: str) -> Iterator[tuple[Any, float]]:
    """The page, and the seconds until all points were drawn."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise Unmeasured("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        began = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
        yield page, time.perf_counter() - began
        browser.close()


def frame(page: Any) -> float:
    """Seconds of a frame while the map is panned."""
    box = page.get_by_test_id("map-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    first, began = page.evaluate("window.penult.frames"), time.perf_counter()
    for step in range(60):
        page.mouse.move(x + 2 * step, y + step)
        page.wait_for_timeout(16)
    took = time.perf_counter() - began
    drawn = page.evaluate("window.penult.frames") - first
    page.mouse.up()
    if not drawn:
        raise Fault("panning drew no frame")
    return took / drawn


def sound(page: Any) -> float:
    """Seconds from a click on a row to its sound."""
    page.get_by_test_id("find").fill("man")  # 64 of the clips
    page.get_by_test_id("find").press("Enter")
    results = page.get_by_test_id("result")
    results.first.wait_for()
    page.evaluate(
        """() => {
          window.heard = [];
          const play = HTMLMediaElement.prototype.play;
          HTMLMediaElement.prototype.play = function () {
            this.addEventListener("playing", () => heard.push(performance.now()), {once: true});
            return play.call(this);
          };
          addEventListener("click", () => { window.clicked = performance.now(); }, true);
        }"""
    )
    times = []
    for number in range(1, TIMES + 2):
        page.evaluate("window.heard.length = 0")
        results.nth(number).click()
        while not page.evaluate("window.heard.length"):
            page.wait_for_timeout(20)
        times.append(page.evaluate("window.heard[0] - window.clicked") / 1e3)
    return statistics.median(times[1:])


def marked(url: str) -> float:
    """Seconds from a mark to the new scores of all rows."""
    found = urlsplit(url)
    times = []
    with httpx.Client(base_url=f"{found.scheme}://{found.netloc}", timeout=600) as client:
        client.get(f"/?{found.query}")
        for number in range(TIMES + 1):
            began = time.perf_counter()
            mark = {"row": 100 * number, "mark": "yes" if number % 2 == 0 else "no"}
            body = {"class": "one", "marks": [mark], "who": "bench"}
            client.post("/api/marks", json=body).raise_for_status()
            client.get("/api/values", params={"by": "score:one"}).raise_for_status()
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def explorer(bench: Bench) -> None:
    """Pictures, frames, scores and sound, against their bounds."""
    lines, beyond = [], []

    def add(words: str, took: float, bound: float) -> None:
        lines.append([words, digits(took), digits(bound)])
        if took > bound:
            beyond.append(f"{words}: {took:.2f} s")

    with tempfile.TemporaryDirectory(prefix="penult-bench-", dir=bench.options.folder) as name:
        for rows, bound in ((SMALL, FEW), (bench.options.points, MANY)):
            path = filled(Path(name) / f"{rows}.lance", rows)
            with served("explore", path, "--no-browser") as url:
                with page_of(url) as (page, first):
                    add(f"first picture of {rows:,} points", first, bound)
                    add(f"a frame while panning {rows:,} points", frame(page), FRAME)
                add(f"from a mark to new scores of {rows:,} × {DIM} rows", marked(url), MARK)
        clips = Path(name) / "clips.lance"
        words = [sys.executable, "-m", "penult", "embed", "demo", str(CLIPS), "--into", str(clips)]
        subprocess.run(words, check=True, capture_output=True)
        with served("explore", clips, "--no-browser") as url, page_of(url) as (page, _):
            add("from a click to sound", sound(page), SOUND)
    bench.show(Table(("headless Chromium without a GPU", "seconds", "bound"), lines))
    if beyond:
        raise Fault("; ".join(beyond))


SECTIONS = {
    "explorer": Section(
        "The explorer",
        "Synthetic rows with a PCA map, server and browser on one machine; medians of 5 marks and "
        "clicks. First picture: from the address to all points drawn, the server had just started.",
        explorer,
        ("points",),
    )
}
