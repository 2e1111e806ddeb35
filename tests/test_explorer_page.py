"""The page of the explorer, driven in a browser as a user would: seen, heard, searched, taught."""

from __future__ import annotations

import csv
import io
import json
import shutil
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
from live_explorer import chromium, exploring, launched
from penult.collection import derived
from penult.collection.access import accessed
from penult.collection.labels import standing
from test_cli import ask
from test_explorer_rows import made

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
    """What a command prints: here, and not in the server's process."""
    done = ask(*words)
    assert done.code == 0, done.err
    return done.out


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
    """Spoken words, which the tests of this module teach and select. They have a map, so that no
    point moves in a test."""
    path = tmp_path_factory.mktemp("page") / "words.lance"
    derived.make_map(penult.Collection.open(shutil.copytree(demo_collection, path)).reader)
    return path


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


def places(page: Any, count: int = 128) -> np.ndarray:
    """(count, 2) where the points of the first rows lie on the page."""
    every = f"[...Array({count}).keys()].map(row => window.penult.screen(row))"
    return np.array([[one["x"], one["y"]] for one in page.evaluate(every)])


def has(page: Any, name: str, words: str) -> None:
    """Wait until a control has these words."""
    text = f"document.querySelector('[data-testid={name}]')?.innerText ?? ''"
    until(page, f"words => ({text}).includes(words)", words)


# ---- the map


def test_a_point_tells_what_it_is_and_opens(page: Any) -> None:
    assert page.evaluate("window.penult.points") == 128
    x, y = places(page)[17]
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
    inside = (places(page) <= (right, low)).all(axis=1)
    count = selected(page)
    assert count == inside.sum() > 0
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


COUNT = "document.querySelector('[data-testid=selection-count]')"


def selected(page: Any) -> int:
    return int(by(page, "selection-count").inner_text().split()[0])


def test_a_lasso_selects_what_lies_in_it(page: Any) -> None:
    """And takes out what lies in it, with Alt."""
    canvas = by(page, "map-canvas").bounding_box()
    left, top = canvas["x"], canvas["y"]
    wide, high = canvas["width"], canvas["height"]
    corners = np.array([[0.15, 0.1], [0.85, 0.25], [0.3, 0.75]]) * (wide, high) + (left, top)

    def drawn(outline: np.ndarray) -> None:
        page.mouse.move(*outline[0])
        page.mouse.down()
        for corner in [*outline[1:], outline[0]]:
            page.mouse.move(*corner, steps=8)
        page.mouse.up()

    def within(outline: np.ndarray) -> np.ndarray:
        """On the same side of all edges; at an edge neither (pixels are not exact)."""
        sides = []
        for one, other in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            along, to = other - one, places(page) - one
            sides.append((along[0] * to[:, 1] - along[1] * to[:, 0]) / np.hypot(*along))
        found = np.array(sides)
        assert (np.abs(found) > 1.5).all(axis=0).mean() > 0.9
        return np.where((np.abs(found) > 1.5).all(axis=0), (found > 0).all(axis=0), np.nan)

    by(page, "lasso").click()
    drawn(corners)
    by(page, "selection-bar").wait_for()
    inside = within(corners)
    least, unclear = np.nansum(inside), np.isnan(inside).sum()
    assert 0 < least <= selected(page) <= least + unclear < 128
    before = selected(page)
    parts = [0.7 * corners + 0.3 * corner for corner in corners]  # of it, at each of its corners
    part = next(one for one in parts if 0 < np.nansum(within(one)) < least)
    by(page, "map-canvas").focus()
    page.keyboard.press("l")
    page.keyboard.down("Alt")
    drawn(part)
    page.keyboard.up("Alt")
    inner = within(part)
    until(page, f"parseInt({COUNT}.innerText) !== {before}")
    taken = before - selected(page)
    assert 0 < np.nansum(inner) <= taken <= np.nansum(inner) + np.isnan(inner).sum()


# ---- look and listen


def test_rows_are_heard_one_after_the_other(page: Any) -> None:
    find(page, "apple_")
    opened(page)
    until(page, "window.heard === 1")
    page.keyboard.press("ArrowDown")
    until(page, "window.heard === 2")
    pixels = "one => one?.getContext('2d').getImageData(0, 0, one.width, one.height).data"
    canvas = "document.querySelector('canvas[data-testid=spectrogram]')"
    until(page, f"new Set(({pixels})({canvas})).size > 20")
    by(page, "neighbour").nth(4).wait_for()
    has(page, "origin", "demo")


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


def test_a_part_that_is_drawn_is_searched_by(page: Any) -> None:
    """Most of a word is nearest to the same word in other voices."""
    find(page, "seven_british")
    row = int(by(page, "result").first.get_attribute("data-row"))
    opened(page)
    until(page, "window.heard === 1")
    asked = f"fetch('/api/row?row={row}').then(one => one.json())"
    seconds = page.evaluate(f"{asked}.then(one => one.media.seconds)")
    box = by(page, "spectrogram").bounding_box()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + box["height"] - 10, steps=8)
    page.mouse.up()
    ends = [float(by(page, f"part-{end}").input_value()) for end in ("from", "to")]
    assert ends == pytest.approx([0.05 * seconds, 0.95 * seconds], abs=0.01)
    by(page, "search-region").click()
    by(page, "similarity").first.wait_for()
    assert (
        f"{ends[0]:.2f}–{ends[1]:.2f} s of seven_british" in by(page, "results-title").inner_text()
    )
    body = {"region": {"row": row, "start": ends[0], "end": ends[1]}, "k": 3}
    hits = page.evaluate(
        """body => fetch("/api/search", {method: "POST", body: JSON.stringify(body),
             headers: {"content-type": "application/json"}}).then(one => one.json())""",
        body,
    )["hits"]
    names = [one.get_attribute("data-row") for one in by(page, "result").all()[:3]]
    assert names == [str(one["row"]) for one in hits] and str(row) not in names
    text = "[...document.querySelectorAll('[data-testid=result]')].slice(0, 3)"
    until(page, f"{text}.some(one => one.innerText.includes('seven_'))")


def test_a_file_is_searched_by(page: Any) -> None:
    path = Path(penult.__file__).parent / "demo" / "clips" / "nine_british-man.flac"
    by(page, "tab-search").click()
    by(page, "upload-file").set_input_files(path)
    by(page, "similarity").first.wait_for()
    has(page, "result", "nine_british-man")


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
        waits = "document.querySelector('[data-testid=mark-yes]').getAttribute('aria-disabled')"
        until(page, f"{waits} !== 'true'")  # the row is there that the mark would be for
        row = page.evaluate("document.querySelector('[data-testid=detail]').dataset.row")
        yes = Path(shown(page).split("\n")[0]).name.startswith(word)
        right += yes
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
    said = "fetch('/api/state').then(answer => answer.json())"
    total = f"{said}.then(state => state.classes.find(one => one.name === 'half a dozen'))"
    until(page, f"{total}.then(one => one.yes + one.no === 10)")  # marks are sent one by one
    assert counts(clips, "half a dozen") == (1 + right, 9 - right)
    for (id, _), marks in standing(penult.Collection.open(clips).reader).items():
        if mark := marks.get("half a dozen"):
            assert mark == ("yes" if Path(id).name.startswith("six_") else "no")
    for control, number in (("undo", 9), ("redo", 10)):
        by(page, control).click()
        until(page, f"number => {total}.then(one => one.yes + one.no === number)", number)
    assert counts(clips, "half a dozen") == (1 + right, 9 - right)
    predicted = json.loads(ran("predict", clips, clips, "--json"))
    labels = {Path(one["id"]).name: one["label"] for one in predicted["predictions"]}
    assert set(labels.values()) == {"half a dozen", None}  # None: unknown
    found = [name.startswith("six_") for name, label in labels.items() if label]
    assert sum(found) >= 6 and sum(found) / len(found) > 0.8  # of 8 among 128


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
    assert counts(clips, "of both") == (1, 0)
    find(page, "four_")
    row = opened(page)
    find(other.page, "four_")
    assert opened(other.page) == row
    other.page.locator("[data-name='of both'] [data-testid=class-teach]").click()
    find(other.page, "four_")
    opened(other.page)
    pressed = "document.querySelector('[data-testid=mark-%s]').getAttribute('aria-pressed')"
    for one in (page, other.page):
        until(one, f"{pressed % 'yes'} === 'true'")
    by(other.page, "mark-no").click()
    until(page, f"{pressed % 'no'} === 'true'")  # in the window that said yes
    page.keyboard.press("z")
    until(page, f"{pressed % 'yes'} === 'true'")
    find(other.page, "four_")  # it has gone on to the next row
    opened(other.page)
    until(other.page, f"{pressed % 'yes'} === 'true'")
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


def test_a_class_that_was_removed_comes_back_by_the_button(page: Any, clips: Path) -> None:
    find(page, "eight_")
    opened(page)
    by(page, "tab-teach").click()
    by(page, "annotator").fill("ann")
    by(page, "annotator").press("Enter")
    by(page, "teach-class").fill("ate")
    by(page, "teach-class").press("Enter")
    page.keyboard.press("Escape")
    colour = "name => getComputedStyle(document.querySelector(`[data-testid=${name}]`)).background"
    by(page, "mark-no").hover()
    plain = page.evaluate(colour, "mark-unsure")
    assert page.evaluate(colour, "mark-no") == plain  # it is not pressed
    by(page, "mark-yes").click()
    taught = page.locator("[data-testid=class][data-name=ate]")
    taught.get_by_test_id("class-remove").click()
    by(page, "class-remove-go").click()
    taught.wait_for(state="detached")
    assert not by(page, "mark-yes").is_visible()  # no class is in hand
    by(page, "undo").click()
    taught.wait_for()
    assert counts(clips, "ate") == (1, 0)
    records = penult.Collection.open(clips).reader.side_table("labels").to_pylist()
    assert {one["who"] for one in records if one["class"] == "ate"} == {"ann"}


def test_a_page_that_may_only_read_offers_no_marks(browser: Any, address: str) -> None:
    found = Watched(browser, address)

    def fixed(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "read_only": True})

    found.page.route("**/api/state*", fixed)
    found.page.reload()
    found.ready()
    find(found.page, "seven_")
    opened(found.page)
    by(found.page, "tab-teach").click()
    by(found.page, "teach-class").fill("digits")
    by(found.page, "teach-class").press("Enter")
    has(found.page, "suggestion-reason", "for reading only")
    assert by(found.page, "mark-yes").is_disabled()
    by(found.page, "map-canvas").focus()
    found.page.keyboard.press("Control+a")
    by(found.page, "selection-bar").wait_for()
    assert not by(found.page, "selection-keep").count()
    assert not by(found.page, "selection-yes").count()
    found.page.unroute_all(behavior="wait")
    found.close()


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
    by(found.page, "cluster-name").first.wait_for()
    over = """() => {
      const all = of => [...document.querySelectorAll(of)];
      const boxes = of => all(of).map(one => one.getBoundingClientRect());
      return boxes("[data-testid=cluster-name]").filter(one =>
        boxes(".map-caption, .map-tools").some(other => one.left < other.right &&
          one.right > other.left && one.top < other.bottom && one.bottom > other.top)).length;
    }"""
    assert found.page.evaluate(over) == 0
    found.close()


# ---- what rows may hold, and what others add


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of hostile names and metadata."""
    folder = tmp_path_factory.mktemp("pictures") / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    return made(folder.parent / "c.lance", "image", [picture(folder, n) for n in range(6)])


def picture(folder: Path, number: int) -> dict[str, Any]:
    """A row, with its file."""
    file = folder / f"{number}<script>window.broken=1<i>'&.png"
    pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    note = f"</style><script>window.broken=1</script>{number}"
    return {"id": str(file), "label": "cat", "score": 0.5, "note": note}


@pytest.fixture(scope="module")
def gallery(browser: Any, pictures: Path) -> Iterator[Watched]:
    with exploring(pictures) as url:
        found = Watched(browser, url)
        yield found
        found.close()


def test_hostile_names_and_metadata_stay_text(gallery: Watched) -> None:
    page = gallery.page
    by(page, "colour-by").select_option(label="note")
    by(page, "legend-entry").first.wait_for()
    find(page, "0<script>")
    opened(page)
    by(page, "picture").wait_for()
    has(page, "metadata", "</style><script>")
    assert page.evaluate("window.broken") is None


def test_rows_that_another_process_adds_appear(gallery: Watched, pictures: Path) -> None:
    page, count = gallery.page, gallery.page.evaluate("window.penult.points")
    with accessed(pictures, "penult embed more pictures", "run", alone=True):
        by(page, "running").wait_for()
        assert by(page, "running").get_attribute("title") == "penult embed more pictures"
    folder = pictures.with_name("<img src=x onerror=alert(1)>")
    made(pictures, "image", [picture(folder, count + n) for n in range(3)])
    until(page, "count => window.penult.points === count", count + 3)
    has(page, "rows", f"{count + 3} rows")
    find(page, f"{count + 2}<script>")
    assert f"{count + 2}<script>" in opened(page)
    by(page, "running").wait_for(state="detached")
