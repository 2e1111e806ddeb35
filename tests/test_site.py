"""The site: built with warnings as errors, every page in the menu, no dead link, nothing loaded
from elsewhere, and in the reference the public names and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the site was built in."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, str(SCRIPTS / "make_site.py"), "--work", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "site" / "index.html")
    return folder


class Page(HTMLParser):
    """What a page leads to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given.get("id", ""), given.get("name", "") if tag == "a" else ""}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset", "poster") if name in given]
        if tag == "link" and "href" in given:
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def pages(work: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in (work / "site").rglob("*.html")}


def menu(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from menu(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_menu(work: Path) -> None:
    listed = list(menu(yaml.safe_load((work / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert len(listed) == len(set(listed))
    written = {str(path.relative_to(work / "site-source"))
               for path in (work / "site-source").rglob("*.md")}  # fmt: skip
    assert written == set(listed)
    docs = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.*")
            if path.suffix in (".md", ".ipynb")}  # fmt: skip
    assert {str(path.with_suffix(".md")) for path in docs} <= written
    for page in written:
        assert (work / "site" / page).with_suffix(".html").is_file(), page


def test_no_link_is_dead(work: Path, pages: dict[Path, Page]) -> None:
    """In files as they lie, places within pages included."""
    seen = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data") or path.name == "404.html":
                continue
            assert not parts.scheme and not parts.netloc and not link.startswith("/"), link
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            aim = aim / "index.html" if aim.is_dir() else aim
            assert aim.is_file(), f"{path.name}: {link}"
            if parts.fragment and aim in pages:
                assert unquote(parts.fragment) in pages[aim].places, f"{path.name}: {link}"
                seen += 1
    assert len(pages) > 80 and seen > 500


def test_nothing_is_loaded_from_elsewhere(work: Path, pages: dict[Path, Page]) -> None:
    """No script, style, font or picture. The theme would fetch a drawing library for what has these
    classes."""
    for path, page in pages.items():
        away = [one[:80] for one in page.loaded if urlsplit(one).scheme in ("http", "https")]
        assert not away and not any(one.startswith("//") for one in page.loaded), (path, away)
        assert not page.classes & {"mermaid", "glightbox", "pyodide"}, path
    for path in (work / "site").rglob("*.css"):
        text = path.read_text("utf-8")
        assert "url(http" not in text and "url(//" not in text and "@import" not in text, path


def test_the_tutorial_has_its_plots_and_sounds(work: Path, pages: dict[Path, Page]) -> None:
    loaded = pages[work / "site" / "tutorial.html"].loaded
    assert sum(one.endswith(".png") for one in loaded) >= 3
    assert sum(one.startswith("data:audio/flac;base64,") for one in loaded) >= 6


def test_the_reference_has_the_public_names_and_nothing_else(
    work: Path, pages: dict[Path, Page]
) -> None:
    reference = script("make_reference")
    found = {place for path, page in pages.items() if path.parent.name == "reference"
             for place in page.places if place.startswith("penult.")}  # fmt: skip
    expected = set()
    for name in (name for section in reference.sections() for name in section.names):
        one = reference.find_object(name)
        place = f"{one.__module__}.{one.__qualname__}"
        expected.add(place)
        if isinstance(one, type) and not issubclass(one, Exception):
            expected |= {f"{place}.{member}" for member in reference.members(one)}
    assert found == expected
    assert "penult.embedding.embedder.Embedder.run" in found


def test_links_that_lead_nowhere_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script for files, by the builder for places in pages."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    site = script("make_site")
    with pytest.raises(SystemExit, match=r"tour\.md: nowhere\.md leads nowhere"):
        site.relinked("[x](nowhere.md)", ROOT / "docs" / "tour.md")
    page = site.relinked("[x](../SECURITY.md#a) [y](../src/penult/api.py)", ROOT / "docs" / "a.md")
    assert page == "[x](security.md#a) y"
    for page, code in (("# One\n\n[x](#one)\n", 0), ("# One\n\n[x](#two)\n", 1)):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "index.md").write_text(page, "utf-8")
        (tmp_path / "mkdocs.yml").write_text("site_name: x\nnav: [index.md]\n", "utf-8")
        done = site.build_strictly(tmp_path / "mkdocs.yml")
        assert bool(done.returncode) == bool(code), done.stdout + done.stderr


def test_pages_open_as_files_and_ask_no_network(work: Path) -> None:
    """In Chromium: no request leaves the folder, nothing fails, search finds, sounds can be played,
    and no page is wider than a phone."""
    from live_explorer import chromium

    asked: list[str] = []
    faults: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(f"{request.failure} {request.url}"))
        for name in ("results.html", "models/panns.html", "proof.html", "tutorial.html"):
            page.goto((work / "site" / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.wait_for_function(
            "[...document.querySelectorAll('audio')].every(one => one.duration > 0.3)"
        )
        page.set_viewport_size({"width": 1300, "height": 900})
        page.goto((work / "site" / "index.html").as_uri())
        page.get_by_role("button", name="Search").first.click()
        page.keyboard.type("padding law")
        page.wait_for_selector("text=Batches, windows and the padding law")
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    # A page that is left for the next one gives up what it was still asking for.
    assert [fault for fault in faults if not fault.startswith("net::ERR_ABORTED")] == []
