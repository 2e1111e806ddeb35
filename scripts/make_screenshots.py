"""Pictures of the explorer for docs/explorer.md, from the bundled clips.

    python scripts/make_screenshots.py

Writes docs/explorer.png, docs/explorer-dark.png and docs/explorer-phone.png. It needs playwright
and a chromium, and the page, built as in explorer/build.mjs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "src" / "penult" / "demo" / "clips" / "clips.csv"
PENULT = (sys.executable, "-m", "penult")
WAIT = 60_000  # milliseconds
MARKS = 12
LARGEST = 200_000  # bytes of a picture


@contextmanager
def exploring(collection: Path) -> Iterator[str]:
    """The address of a page on a collection."""
    command = [*PENULT, "explore", str(collection), "--port", "0", "--no-browser", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        yield str(json.loads("".join(lines))["url"])
    finally:
        process.terminate()
        process.wait(20)


def settled(page: Page, script: str, what: object = None) -> None:
    """Wait until a script says so: the page's policy lets no function be waited for."""
    until = time.monotonic() + WAIT / 1000
    while not page.evaluate(script, what):
        if time.monotonic() > until:
            raise TimeoutError(script)
        time.sleep(0.05)


def opened(browser: Browser, url: str, **how: Any) -> Page:
    """The page, once all points are drawn and the better map is there."""
    page = browser.new_context(**how).new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.get_by_test_id("colour-by").select_option("column:word")
    return page


def find(page: Page, words: str) -> None:
    """Open the first row with these words."""
    page.get_by_test_id("find").fill(words)
    page.get_by_test_id("find").press("Enter")
    page.get_by_test_id("result").first.click()
    page.get_by_test_id("row-id").wait_for()
    page.evaluate("document.activeElement.blur()")


def teach(page: Page, name: str, first: str) -> None:
    """Mark suggestions as the names of the clips say."""
    find(page, first)
    page.get_by_test_id("tab-teach").click()
    page.get_by_test_id("teach-class").fill(name)
    page.get_by_test_id("teach-class").press("Enter")
    page.evaluate("document.activeElement.blur()")
    for _ in range(MARKS):
        before = page.get_by_test_id("detail").get_attribute("data-row")
        said = page.get_by_test_id("row-id").inner_text()
        page.keyboard.press("y" if f"/{name}_" in said else "n")
        settled(page, """row => {
          const now = document.querySelector("[data-testid=detail]");
          return now.dataset.row !== row && now.getAttribute("aria-busy") !== "true";
        }""", before)  # fmt: skip
    settled(page, "document.querySelector('[data-testid=held-out]').dataset.score !== ''")


def write(page: Page, name: str) -> None:
    """A picture of what is seen, in 256 colours where it is large."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(2500)
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    path = ROOT / "docs" / name
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes; {LARGEST:,} at most")
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Make all three."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["PENULT_CACHE"] = str(Path(folder, "cache"))
        collection = Path(folder, "words.lance")
        subprocess.run([*PENULT, "embed", "demo", CLIPS, "--into", collection], check=True)
        subprocess.run([*PENULT, "map", collection, Path(folder, "words.html")], check=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        desk, phone = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
        with exploring(collection) as url:
            page = opened(browser, url, viewport=desk)
            find(page, "banana")
            page.keyboard.press("s")
            write(page, "explorer.png")
            page = opened(browser, url, viewport=desk, color_scheme="dark")
            teach(page, "banana", "banana_british")
            write(page, "explorer-dark.png")
            page = opened(browser, url, viewport=phone)
            find(page, "apple")
            page.get_by_test_id("pane-detail").click()
            write(page, "explorer-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
