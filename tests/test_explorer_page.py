"""The page of the explorer, driven in a browser as a user would: seen, heard, searched, taught."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
from PIL import Image

import penult
from live_explorer import PENULT, chromium, exploring, launched

WAIT = 30.0  # seconds: machines of tests are busy
DESK, PHONE = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
AXE = Path(__file__).resolve().parents[1] / "explorer" / "node_modules" / "axe-core" / "axe.min.js"
HEARD = """
window.heard = 0;
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {
  this.addEventListener("playing", () => window.heard++, {once: true});
  return play.call(this);
};
"""


def ran(*words: str | Path) -> str:
    """What a command prints."""
    done = subprocess.run([*PENULT, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(page: Any, expression: str, given: Any = None) -> Any:
    """What an expression gives in the page, once it is true."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if found := page.evaluate(expression, given):
            return found
        time.sleep(0.05)
    shown = page.evaluate("document.querySelector('[data-testid=message]')?.innerText")
    raise AssertionError(f"not so within {WAIT:g} s ({given!r}; message {shown!r}): {expression}")


SENT = """() => {
  const ask = window.fetch;
  window.fetch = (address, how) => {
    const body = how?.body;
    const all = body instanceof FormData ? [...body.values()] : [body];
    const file = all.find(one => one instanceof Blob);
    if (file) window.sent = file;
    return ask(address, how);
  };
}"""


class Watched:
    """A page, with what went wrong in it and what it asked for."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.address = address
        self.context = browser.new_context(accept_downloads=True, **{"viewport": DESK, **how})
        self.context.set_default_timeout(WAIT * 1e3)
        self.page = self.context.new_page()
        self.page.add_init_script(HEARD)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.ready()

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def ready(self) -> None:
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def close(self) -> None:
        """No error in its console, no request to anywhere else."""
        self.context.close()
        own = urlsplit(self.address).netloc
        asked = [one for one in self.requests if not one.startswith(("blob:", "data:"))]
        assert {urlsplit(one).netloc for one in asked} == {own}
        assert not self.errors


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


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    found = Watched(browser, address)
    yield found
    found.close()


@pytest.fixture
def page(watched: Watched) -> Any:
    return watched.page


def by(page: Any, name: str) -> Any:
    return page.get_by_test_id(name)


def find(page: Any, words: str) -> None:
    """List the rows that have these words."""
    by(page, "find").fill(words)
    by(page, "find").press("Enter")
    by(page, "result").first.wait_for()
    text = "[...document.querySelectorAll('[data-testid=result]')].map(one => one.innerText)"
    until(page, f"words => {text}.every(one => one.includes(words))", words)


def shown(page: Any) -> str:
    """The row in the detail, once it is there."""
    by(page, "row-id").wait_for()
    return str(by(page, "row-id").inner_text())


def opened(page: Any, number: int = 0) -> str:
    """Open a row of the list."""
    row = by(page, "result").nth(number)
    name = row.get_attribute("data-row")
    row.click()
    until(page, f"document.querySelector('[data-testid=detail]').dataset.row === '{name}'")
    return shown(page)


def place(page: Any, row: int) -> tuple[float, float]:
    at = page.evaluate(f"window.penult.screen({row})")
    return at["x"], at["y"]


def has(page: Any, name: str, words: str) -> None:
    """Wait until a control has these words."""
    text = f"document.querySelector('[data-testid={name}]')?.innerText ?? ''"
    until(page, f"words => ({text}).includes(words)", words)


# ---- the map


def test_a_point_tells_what_it_is_and_opens(page: Any) -> None:
    assert page.evaluate("window.penult.points") == 128
    x, y = place(page, 17)
    page.mouse.move(x, y)
    has(page, "map-tooltip", ".flac")
    words = by(page, "map-tooltip").inner_text()
    page.mouse.click(x, y)
    assert Path(shown(page).split("\n")[0]).name.split(".")[0] in words


def test_the_legend_counts_rows_and_shows_one_class_alone(page: Any, clips: Path) -> None:
    table, _ = penult.Collection.open(clips).vectors(columns=["word"])
    words = table.column("word").to_pylist()
    by(page, "colour-by").select_option(label="word")
    apple = page.locator("[data-testid=legend-entry][data-name=apple]")
    apple.wait_for()
    assert str(words.count("apple")) in apple.inner_text()
    apple.click()
    by(page, "map-canvas").focus()
    page.keyboard.press("Control+a")  # all that are shown
    has(page, "selection-count", str(words.count("apple")))


def test_a_box_selects_what_commands_read_under_its_name(page: Any, clips: Path) -> None:
    canvas = by(page, "map-canvas").bounding_box()
    right, low = canvas["x"] + canvas["width"] * 0.55, canvas["y"] + canvas["height"] - 90
    by(page, "box").click()
    page.mouse.move(canvas["x"] + 4, canvas["y"] + 4)
    page.mouse.down()
    page.mouse.move(right, low, steps=5)
    page.mouse.up()
    by(page, "selection-bar").wait_for()
    places = [place(page, row) for row in range(128)]
    inside = {row for row, (x, y) in enumerate(places) if x <= right and y <= low}
    count = int(by(page, "selection-count").inner_text().split()[0])
    assert count == len(inside) > 0
    with page.expect_download() as download:
        by(page, "export-ids").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == count
    by(page, "selection-name").fill("mine")
    by(page, "selection-keep").click()
    by(page, "kept-selection").wait_for()
    out = clips.parent / "mine.csv"
    ran("export", clips, out, "--where", "mine")
    with out.open(newline="") as file:
        assert len([*csv.DictReader(file)]) == count


def test_a_lasso_selects_what_lies_in_it(page: Any) -> None:
    """Around the points on the right of the middle, by a triangle."""
    frame = by(page, "map-canvas").bounding_box()
    left, top = frame["x"] + frame["width"] / 2, frame["y"] + 4
    right, low = frame["x"] + frame["width"] - 4, frame["y"] + frame["height"] - 4
    corners = [(left, top), (right, top), (right, low)]
    by(page, "lasso").click()
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in (*corners[1:], corners[0]):
        page.mouse.move(*corner, steps=12)
    page.mouse.up()
    by(page, "selection-bar").wait_for()
    places = [place(page, row) for row in range(128)]

    def above(x: float, y: float) -> bool:
        """Right of the side that falls from the first corner to the last."""
        return (y - top) * (right - left) < (x - left) * (low - top)

    inside = sum(left <= x <= right and top <= y <= low and above(x, y) for x, y in places)
    count = int(by(page, "selection-count").inner_text().split()[0])
    assert 0 < count < 128 and abs(count - inside) <= 2  # points on the line itself


# ---- look and listen


def test_rows_are_heard_one_after_the_other(page: Any) -> None:
    find(page, "apple_")
    opened(page)
    until(page, "window.heard === 1")
    page.keyboard.press("ArrowDown")
    until(page, "window.heard === 2")
    drawn = page.locator("[data-testid=spectrogram] canvas, canvas[data-testid=spectrogram]").first
    pixels = "one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data"
    assert drawn.evaluate(f"one => new Set(({pixels})(one)).size") > 20
    assert by(page, "neighbour").count() >= 5
    assert "demo" in by(page, "origin").inner_text()


# ---- search


def test_rows_like_one_are_those_that_the_command_finds_without_itself(
    page: Any, clips: Path
) -> None:
    find(page, "banana_")
    id = opened(page).split("\n")[0]
    page.keyboard.press("s")
    by(page, "similarity").first.wait_for()
    found = json.loads(ran("search", clips, id, "-k", "7", "--json"))["hits"]
    expected = [one["id"] for one in found if one["id"] != id][:6]
    names = [one.inner_text() for one in by(page, "result").all()[:6]]
    assert [Path(one).name for one in expected] == [
        next(line.split(" ")[0] for line in name.split("\n") if ".flac" in line) for name in names
    ]


def test_a_part_that_is_drawn_is_searched_by(page: Any, clips: Path) -> None:
    """Most of a word is nearest to the same word in other voices."""
    find(page, "seven_")
    opened(page)
    frame = by(page, "spectrogram").bounding_box()
    page.mouse.move(frame["x"] + 0.05 * frame["width"], frame["y"] + 10)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.95 * frame["width"], frame["y"] + frame["height"] - 10, steps=8)
    page.mouse.up()
    by(page, "search-region").click()
    by(page, "similarity").first.wait_for()
    text = "[...document.querySelectorAll('[data-testid=result]')].slice(0, 3)"
    until(page, f"{text}.some(one => one.innerText.includes('seven_'))")


def test_a_file_is_searched_by(page: Any) -> None:
    path = Path(penult.__file__).parent / "demo" / "clips" / "nine_british-man.flac"
    by(page, "tab-search").click()
    by(page, "upload-file").set_input_files(path)
    by(page, "similarity").first.wait_for()
    text = "document.querySelector('[data-testid=result]')?.innerText ?? ''"
    until(page, f"({text}).includes('.flac')")  # what a row is comes behind its similarity
    assert "nine_" in by(page, "result").first.inner_text()


def test_the_microphone_is_searched_by(browser: Any, address: str, tmp_path: Path) -> None:
    """A recording that the browser takes for what its microphone hears."""
    clip = Path(penult.__file__).parent / "demo" / "clips" / "nine_british-man.flac"
    samples, rate = soundfile.read(clip)
    quiet = np.zeros(rate // 4)
    soundfile.write(tmp_path / "heard.wav", np.concatenate([quiet, samples, quiet]), rate)
    own = launched(
        browser.browser_type,
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'heard.wav'}",
    )  # fmt: skip
    found = Watched(own, address, permissions=["microphone"])
    found.page.evaluate(SENT)
    by(found.page, "tab-search").click()
    by(found.page, "microphone").click()
    by(found.page, "microphone-stop").wait_for()
    found.page.wait_for_timeout(2000)
    by(found.page, "microphone-stop").click()
    by(found.page, "similarity").first.wait_for()
    body = bytes(found.page.evaluate("sent.arrayBuffer().then(all => [...new Uint8Array(all)])"))
    found.close()
    own.close()
    heard, of_browser = soundfile.read(io.BytesIO(body))
    heard = soxr.resample(heard, of_browser, rate)
    assert 1.0 < len(heard) / rate < 10
    # The word is in it: the product at the best place is near that of the word with itself.
    own_words = samples - samples.mean()
    products = scipy.signal.correlate(heard, own_words, "valid")
    energy = scipy.signal.correlate(heard**2, np.ones(len(samples)), "valid")
    energy = np.maximum(energy, 1e-3 * energy.max())  # of silence
    assert (products / np.sqrt(energy * (own_words**2).sum())).max() > 0.8


# ---- teach


def counts(clips: Path, name: str) -> tuple[int, int]:
    """(yes, no) as the command line has them."""
    document = json.loads(ran("classes", clips, "--json"))
    (found,) = [one for one in document["classes"] if one["name"] == name]
    return found["yes"], found["no"]


def marked(page: Any, number: int, word: str) -> int:
    """Answer so many suggestions by key; gives the number of those that were of the class."""
    right = 0
    for _ in range(number):
        row = page.evaluate("document.querySelector('[data-testid=detail]').dataset.row")
        yes = Path(shown(page).split("\n")[0]).name.startswith(word)
        right += yes
        waits = "document.querySelector('[data-testid=mark-yes]').getAttribute('aria-disabled')"
        until(page, f"{waits} !== 'true'")
        page.keyboard.press("y" if yes else "n")
        until(page, f"document.querySelector('[data-testid=detail]').dataset.row !== '{row}'")
    return right


def test_a_class_is_taught_by_keys_undone_and_seen_by_commands(page: Any, clips: Path) -> None:
    find(page, "six_")
    opened(page)
    by(page, "tab-teach").click()
    by(page, "teach-class").fill("half a dozen")
    by(page, "teach-class").press("Enter")
    page.keyboard.press("Escape")
    by(page, "mark-yes").click()
    by(page, "suggestion-reason").first.wait_for()
    right = marked(page, 9, "six_")
    assert right >= 3  # of the 7 others among 127; by chance 0.5
    assert counts(clips, "half a dozen") == (1 + right, 9 - right)
    said = "fetch('/api/state').then(answer => answer.json())"
    total = f"{said}.then(state => state.classes.find(one => one.name === 'half a dozen'))"
    for control, number in (("undo", 9), ("redo", 10)):
        by(page, control).click()
        until(page, f"number => {total}.then(one => one.yes + one.no === number)", number)
    assert counts(clips, "half a dozen") == (1 + right, 9 - right)
    predicted = json.loads(ran("predict", clips, clips, "--json"))
    assert {one["label"] for one in predicted["predictions"]} <= {"half a dozen", None}


def test_what_a_command_teaches_or_adds_appears(page: Any, clips: Path) -> None:
    clip = Path(penult.__file__).parent / "demo" / "clips" / "left_british-man.flac"
    ran("teach", clips, "sinister", clip)
    by(page, "tab-teach").click()
    page.locator("[data-testid=class][data-name=sinister]").wait_for()


def test_two_browsers_see_what_the_other_one_teaches(
    browser: Any, address: str, page: Any, clips: Path
) -> None:
    other = Watched(browser, address)
    by(other.page, "tab-teach").click()
    find(page, "four_")
    opened(page)
    by(page, "tab-teach").click()
    by(page, "teach-class").fill("of both")
    by(page, "teach-class").press("Enter")
    page.keyboard.press("Escape")
    by(page, "mark-yes").click()
    other.page.locator("[data-testid=class][data-name='of both']").wait_for()
    other.close()
    assert counts(clips, "of both") == (1, 0)


def test_a_mark_that_changes_nothing_is_no_step_to_undo(page: Any, clips: Path) -> None:
    """Another window has made the same mark meanwhile."""
    find(page, "two_")
    opened(page)
    by(page, "tab-teach").click()
    by(page, "teach-class").fill("twice")
    by(page, "teach-class").press("Enter")
    page.keyboard.press("Escape")
    by(page, "mark-yes").click()
    until(
        page,
        "document.querySelector('[data-testid=undo]')?.getAttribute('aria-disabled') !== 'true'",
    )
    row = "+document.querySelector('[data-testid=result]').dataset.row"
    body = f"{{class: 'twice', marks: [{{row: {row}, mark: 'yes'}}], who: ''}}"
    answer = page.evaluate(
        f"""() => fetch('/api/state').then(found => found.json()).then(state =>
            fetch('/api/marks', {{method: 'POST', headers: {{'content-type': 'application/json'}},
                  body: JSON.stringify({{...{body}, who: state.user}})}}))
            .then(found => found.json())"""
    )
    assert answer["changed"] is False
    by(page, "undo").click()
    until(page, "!document.querySelector(\"[data-testid=class][data-name='twice']\")")


def test_a_reload_keeps_what_was_taught(watched: Watched, clips: Path) -> None:
    ran("teach", clips, "kept", Path(penult.__file__).parent / "demo/clips/no_british-man.flac")
    watched.page.reload()
    watched.ready()
    by(watched.page, "tab-teach").click()
    watched.page.locator("[data-testid=class][data-name=kept]").wait_for()


def test_the_page_goes_on_where_its_server_was_started_again(
    browser: Any, demo_collection: Path, tmp_path: Path
) -> None:
    import socket

    clips = Path(shutil.copytree(demo_collection, tmp_path / "c.lance"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with exploring(clips, "--port", port) as url:
        found = Watched(browser, url)
        by(found.page, "find").wait_for()
    has(found.page, "cut-off", "does not answer")
    with exploring(clips, "--port", port):
        until(found.page, "!document.querySelector('[data-testid=cut-off]')")
        find(found.page, "six_")
        assert "six_" in opened(found.page)
    found.context.close()


# ---- looks


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(browser: Any, address: str, theme: str, size: Any) -> None:
    found = Watched(browser, address, color_scheme=theme, viewport=size, bypass_csp=True)
    find(found.page, "zero_")
    opened(found.page)
    found.page.evaluate(AXE.read_text())
    for state in ("row", "help"):
        if state == "help":
            found.page.keyboard.press("?")
            by(found.page, "help-dialog").wait_for()
        wanted = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}"
        result = found.page.evaluate(f"axe.run({wanted})")
        faults = [(one["id"], one["nodes"][0]["html"]) for one in result["violations"]]
        assert not faults
    found.close()


def test_a_phone_scrolls_in_one_direction_alone(browser: Any, address: str) -> None:
    found = Watched(browser, address, viewport=PHONE)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found.close()


# ---- what rows may hold


def test_hostile_names_and_metadata_stay_text(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["path,note"]
    for number in range(6):
        name = f"{number}<script>window.broken=1<i>'&.png"
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
        lines.append(f'"{folder / name}","</style><script>window.broken=1</script>{number}"')
    (tmp_path / "t.csv").write_text("\n".join(lines))
    collection = tmp_path / "c.lance"
    from zoo import save_image

    ran("embed", save_image(tmp_path / "model"), tmp_path / "t.csv", "--into", collection)
    with exploring(collection) as url:
        found = Watched(browser, url)
        by(found.page, "colour-by").select_option(label="note")
        by(found.page, "legend-entry").first.wait_for()
        find(found.page, "0<script>")
        opened(found.page)
        by(found.page, "picture").wait_for()
        has(found.page, "metadata", "</style><script>")
        assert found.page.evaluate("window.broken") is None
        found.close()
