"""Where recorded graphs are kept between runs: with a saved embedder, or in the user's cache.

Recording a model takes seconds and its file is as large as the weights, so it is done once for each
fingerprint, kind of batch and set of versions. Knows files; no runtime.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from penult.data.files import file_aside
from penult.errors import EngineError
from penult.models.base import digest

FOLDER = "engines"  # inside of a saved embedder
CHOICE = "choice"
log = logging.getLogger(__name__)


def user_cache() -> Path:
    """The user's folder for what can be made again; PENULT_CACHE names another."""
    if named := os.environ.get("PENULT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penult"


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in ("penult", "torch", "transformers", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> str:
    """What a measurement of speed holds for: the processor and how many of it are at hand."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("model name", "flags")):
                name += line
            if line.startswith("flags"):
                break
    return digest([name, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0])


class Graphs:
    """The graphs of one embedder, by its fingerprint.

    embedder: its folder, if it is saved; where that cannot be written, the user's cache serves.
    """

    def __init__(self, fingerprint: str, embedder: Path | None = None) -> None:
        self.fingerprint = fingerprint
        self.used: list[Path] = []  # folders of graphs that were opened
        self.places = [user_cache() / FOLDER / fingerprint]
        if embedder is not None:
            self.places.insert(0, embedder / FOLDER)

    def get(self, asked: Any, make: Callable[[Path], None]) -> Path:
        """The folder of the graph for what is asked; made by `make` in a folder aside if there is
        none, and then renamed, so that it is whole or absent."""
        folder = self._found(digest([self.fingerprint, asked]), make)
        self.used.append(folder)
        return folder

    def copy(self, embedder: Path) -> None:
        """Put the graphs that were opened into a folder where an embedder is being saved."""
        for folder in dict.fromkeys(self.used):
            if folder.is_dir():
                shutil.copytree(folder, embedder / FOLDER / folder.name, dirs_exist_ok=True)

    def _found(self, name: str, make: Callable[[Path], None]) -> Path:
        for place in self.places:
            if (place / name).is_dir():
                return place / name
        for place in self.places:
            aside = place / f".{name}-{uuid.uuid4().hex[:8]}"
            try:
                aside.mkdir(parents=True)
            except OSError as error:
                if place is self.places[-1]:
                    raise EngineError(
                        f"a graph cannot be kept in {place}: {error.strerror}; PENULT_CACHE names "
                        "another folder"
                    ) from error
                continue
            try:
                make(aside)
                log.info("graph recorded in %s", place / name)
                with contextlib.suppress(OSError):  # another process was faster
                    aside.rename(place / name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return place / name
        raise AssertionError("there is always the user's cache")

    def recall(self, asked: Any) -> dict[str, Any] | None:
        """What was noted for this question on a machine like this one."""
        for place in self.places:
            with contextlib.suppress(OSError, ValueError):
                noted = json.loads(self._note(place, asked).read_text("utf-8"))
                if isinstance(noted, dict):
                    return noted
        return None

    def note(self, asked: Any, answer: dict[str, Any]) -> None:
        """Keep an answer; it is measured again where it cannot be written."""
        for place in self.places:
            path = self._note(place, asked)
            try:
                place.mkdir(parents=True, exist_ok=True)
                with file_aside(path) as aside:
                    aside.write_text(json.dumps(answer, indent=1), "utf-8")
            except OSError:
                continue
            return

    def _note(self, place: Path, asked: Any) -> Path:
        return place / f"{CHOICE}-{digest([self.fingerprint, machine(), asked])}.json"
