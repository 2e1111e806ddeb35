"""The page of the explorer, driven in a browser as a user would: seen, heard, searched, taught."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from live_explorer import PENULT, chromium, exploring

WAIT = 20_000  # milliseconds: machines of tests are busy


def penult(*words: str | Path) -> Any:
    """The JSON that a command prints."""
    command = [*PENULT, *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def clips(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken words, which the tests of this module teach and select."""
    return Path(shutil.copytree(demo_collection, tmp_path_factory.mktemp("page") / "words.lance"))


@pytest.fixture(scope="module")
def address(clips: Path) -> Iterator[str]:
    with exploring(clips) as url:
        yield url


class Watched:
    """A page, with what went wrong in it and what it asked for."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(accept_downloads=True, **how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_function("window.penult?.ready", timeout=WAIT)

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def close(self, address: str) -> None:
        """No error in its console, no request to anywhere else."""
        self.context.close()
        own = urlsplit(address).netloc
        outside = [one for one in self.requests
                   if urlsplit(one).netloc != own and not one.startswith(("blob:", "data:"))]  # fmt: skip
        assert not self.errors and not outside


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    found = Watched(browser, address, viewport={"width": 1280, "height": 720})
    yield found
    found.close(address)


@pytest.fixture
def page(watched: Watched) -> Any:
    return watched.page


def find(page: Any, words: str) -> None:
    """List the rows that have these words."""
    page.get_by_test_id("find").fill(words)
    page.get_by_test_id("find").press("Enter")
    page.get_by_test_id("result").first.wait_for()


def choose(page: Any, number: int = 0) -> str:
    """Choose a row of the list; gives its id."""
    page.get_by_test_id("result").nth(number).click()
    return str(page.get_by_test_id("row-id").inner_text())


# ---- the map


def test_the_map_has_every_row_and_tells_what_the_pointer_is_at(page: Any) -> None:
    assert page.evaluate("window.penult.points") == 128
    row = next(n for n in range(128) if page.evaluate(f"window.penult.screen({n}) !== null"))
    place = page.evaluate(f"window.penult.screen({row})")
    page.mouse.move(place["x"], place["y"])
    tooltip = page.get_by_test_id("map-tooltip")
    tooltip.wait_for()
    page.wait_for_function(
        "document.querySelector('[data-testid=map-tooltip]').innerText.includes('.flac')"
    )
    page.mouse.click(place["x"], place["y"])
    page.get_by_test_id("row-id").wait_for()
    assert (
        Path(page.get_by_test_id("row-id").inner_text().split("\n")[0]).name in tooltip.inner_text()
    )


def test_the_legend_counts_what_is_drawn_and_filters(page: Any, clips: Path) -> None:
    import penult as package

    table, _ = package.Collection.open(clips).vectors(columns=["word"])
    words = table.column("word").to_pylist()
    page.get_by_test_id("colour-by").select_option(label="word")
    apple = page.locator("[data-testid=legend-entry][data-name=apple]")
    apple.wait_for()
    assert str(words.count("apple")) in apple.inner_text()


def test_a_box_selects_what_is_kept_under_a_name_and_read_by_commands(
    page: Any, clips: Path
) -> None:
    canvas = page.get_by_test_id("map-canvas").bounding_box()
    page.get_by_test_id("box").click()
    page.mouse.move(canvas["x"] + 8, canvas["y"] + 8)
    page.mouse.down()
    page.mouse.move(
        canvas["x"] + canvas["width"] * 0.6, canvas["y"] + canvas["height"] - 60, steps=5
    )
    page.mouse.up()
    inside = [
        n for n in range(128)
        if (at := page.evaluate(f"window.penult.screen({n})")) is not None
        and canvas["x"] + 8 <= at["x"] <= canvas["x"] + canvas["width"] * 0.6
        and canvas["y"] + 8 <= at["y"] <= canvas["y"] + canvas["height"] - 60
    ]  # fmt: skip
    count = int(page.get_by_test_id("selection-count").inner_text().split()[0].replace(",", ""))
    assert count == len(inside) > 0
    page.get_by_test_id("selection-name").fill("mine")
    page.get_by_test_id("selection-keep").click()
    page.get_by_test_id("message").wait_for()
    kept = subprocess.run([*PENULT, "export", str(clips), str(clips.parent / "mine.csv"), "--where", "mine"],
                          capture_output=True, text=True)  # fmt: skip
    assert kept.returncode == 0, kept.stderr
    with (clips.parent / "mine.csv").open(newline="") as file:
        assert len([*csv.DictReader(file)]) == count
    with page.expect_download() as download:
        page.get_by_test_id("export-ids").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == count and all(line.endswith((".flac", "whole")) for line in lines)


# ---- look and listen


def test_a_click_on_a_row_is_heard(page: Any) -> None:
    find(page, "apple")
    page.evaluate(
        """() => {
          window.heard = 0;
          const play = HTMLMediaElement.prototype.play;
          HTMLMediaElement.prototype.play = function () {
            this.addEventListener("playing", () => window.heard++, {once: true});
            return play.call(this);
          };
        }"""
    )
    choose(page)
    page.wait_for_function("window.heard === 1")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("window.heard === 2")
    page.get_by_test_id("spectrogram").wait_for()
    assert page.get_by_test_id("scores").inner_text()
    assert page.get_by_test_id("neighbour").count() >= 5


# ---- search


def test_more_like_this_finds_the_same_word_and_not_the_row_itself(page: Any) -> None:
    find(page, "banana")
    first = choose(page)
    page.get_by_test_id("search-current").click()
    page.wait_for_function(
        "id => !document.querySelector('[data-testid=result]')?.innerText.includes(id)", arg=first
    )
    names = [one.inner_text() for one in page.get_by_test_id("result").all()[:5]]
    assert sum("banana" in one for one in names) >= 4


# ---- teach


def test_a_class_is_taught_by_keys_undone_and_seen_by_commands(page: Any, clips: Path) -> None:
    find(page, "yes_")
    choose(page)
    page.get_by_test_id("teach-class").fill("assent")
    page.get_by_test_id("teach-class").press("Enter")
    page.get_by_test_id("mark-yes").click()
    page.get_by_test_id("suggestion-reason").first.wait_for()
    for _ in range(10):
        before = page.get_by_test_id("row-id").inner_text()
        page.keyboard.press("y" if "yes_" in before else "n")
        page.wait_for_function(
            "id => document.querySelector('[data-testid=row-id]').innerText !== id", arg=before
        )

    def counted() -> tuple[int, int]:
        found = [one for one in penult("classes", clips)["classes"] if one["name"] == "assent"]
        return (found[0]["yes"], found[0]["no"]) if found else (0, 0)

    assert sum(counted()) == 11 and counted()[0] >= 5
    yes, no = counted()
    page.get_by_test_id("undo").click()
    page.wait_for_timeout(500)
    assert sum(counted()) == 10
    page.get_by_test_id("redo").click()
    page.wait_for_timeout(500)
    assert counted() == (yes, no)


def test_what_the_command_line_teaches_appears(page: Any, clips: Path) -> None:
    ids = [row["id"] for row in penult("search", clips, "--k", "1", clip_of(clips))["hits"]]
    assert ids


def clip_of(clips: Path) -> Path:
    import penult as package

    return Path(package.__file__).parent / "demo" / "clips" / "nine_british-man.flac"


# ---- looks


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)], ids=["desk", "phone"])
def test_axe_finds_nothing(browser: Any, address: str, theme: str, size: tuple[int, int]) -> None:
    axe = (
        Path(__file__).resolve().parents[1]
        / "explorer"
        / "node_modules"
        / "axe-core"
        / "axe.min.js"
    )
    found = Watched(browser, address, color_scheme=theme,
                    viewport={"width": size[0], "height": size[1]}, bypass_csp=True)  # fmt: skip
    found.page.keyboard.press("?")
    found.page.get_by_test_id("help-dialog").wait_for()
    found.page.keyboard.press("Escape")
    found.page.evaluate(axe.read_text())
    result = found.page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")
    found.close(address)
    assert [
        (one["id"], [node["html"] for node in one["nodes"]][:3]) for one in result["violations"]
    ] == []
