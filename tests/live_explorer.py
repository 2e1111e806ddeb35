"""The explorer as its command starts it, and the browser of the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PENULT = (sys.executable, "-c", "from penult.cli.main import main; main()")


@contextmanager
def exploring(collection: Path, *more: str, cache: Path | None = None) -> Iterator[str]:
    """The address that `penult explore` prints."""
    words = [*PENULT, "explore", str(collection), "--no-browser", "--json", *more]
    if "--port" not in more:
        words += ["--port", "0"]
    surroundings = {**os.environ, **({"PENULT_CACHE": str(cache)} if cache else {})}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=surroundings)
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        document: dict[str, Any] = json.loads("".join(lines))
        yield document["url"]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def launched(kind: Any, *more: str) -> Browser:
    """The machine's browser, headless, without a GPU. kind: of Playwright. more: arguments."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: .ci/run installs it")
        pytest.skip("there is no chromium on this machine")
    plain = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    found: Browser = kind.launch(executable_path=path, args=[*plain, *more])
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for as long as it is needed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright.chromium)
        yield browser
        browser.close()
