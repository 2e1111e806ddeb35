"""Where recorded graphs and measurements are kept between runs: in the user's cache.

Recording a model takes seconds and its file is as large as the weights, so it is done once for each
fingerprint, kind of batch and set of versions. A graph carries a list of its hashes and the name of
what it was made from, a note the hash of itself and of its question; what does not fit these, or
belongs to another user, is made anew. Knows files; no runtime.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from copy import copy
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from penult.data.hashes import damage, digest, list_hash, write_list
from penult.data.notes import CachedNote, Notes, is_own, own_places
from penult.errors import EngineError
from penult.extras import version_of
from penult.models.base import Classifier

FOLDER = "engines"  # in the user's cache, and inside of a saved embedder
# Kinds of notes; of a choice and an engine they hold on one machine.
CHOICE, ENGINE, PROOF, POLICY = "choice", "engine", "proof", "batching"
_MADE_FROM = "graph.json"
log = logging.getLogger(__name__)


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in ("penult", "torch", "transformers", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version_of(name)
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


_ADDRESS = re.compile(r"0x[0-9a-f]+")
_OF_FILES = ("transformers_version", "dtype", "torch_dtype")  # settings that are not the network's


def subject(classifier: Classifier, identity: Mapping[str, str] | None = None) -> str:
    """Hash of what graphs, proofs and measurements of a classifier hold for: its weights, its
    preparation, its code, and its structure: the same weights can be put together in another way.

    identity: the classifier's, where it is known: it takes a hash over all weights.
    """
    module = next(iter(classifier.structure.modules()), None)
    settings: Any = {}
    with contextlib.suppress(Exception):  # whatever a user's module calls its `config`
        settings = module.config.to_dict()  # type: ignore[union-attr, operator]
    if isinstance(settings, dict):
        settings = {
            name: value
            for name, value in settings.items()
            if not str(name).startswith("_") and name not in _OF_FILES
        }
    about = classifier.structure.activation.to_dict()
    return digest(
        [identity or classifier.identity(), _ADDRESS.sub("", repr(module)), settings, about]
    )


class Graphs:
    """The graphs and notes of one embedder, by the hash of its `subject`.

    embedder: its folder, if it is saved: graphs in it came with it. Whoever opens one of them
    measures it before the first row, as any other.
    """

    def __init__(self, subject: str, embedder: Path | None = None) -> None:
        self.subject = subject
        self.used: dict[Path, str] = {}  # folders of graphs that were opened, and their hashes
        self.places = own_places(FOLDER, subject)
        self._given = None if embedder is None else embedder / FOLDER
        self._records = True
        self.lacks = False  # whether a graph was asked for that is not there

    def only_kept(self) -> Graphs:
        """The same places; a graph that is not there is not recorded, but an EngineError."""
        kept = copy(self)
        kept._records, kept.lacks = False, False
        return kept

    def get(self, asked: Any, make: Callable[[Path], None]) -> Path:
        """The folder of the graph for what is asked; made by `make` in a folder aside if there is
        none that is whole, and then renamed.

        Raises:
            EngineError: it cannot be written, or is not there and only kept ones are wanted.
        """
        name = digest([self.subject, asked])
        folder = next((one for one in self._folders(name) if _is_whole(one, name)), None)
        if folder is None and not self._records:
            self.lacks = True
            raise EngineError("its graph is not recorded yet")
        folder = folder or self._made(name, make)
        self.used[folder] = list_hash(folder) or ""
        return folder

    def find(self, name: str, hashes: str) -> Path | None:
        """The folder of a graph that this user recorded, if it has this list of hashes."""
        for folder in (place / name for place in self.places):
            if is_own(folder) and list_hash(folder) == hashes and _is_whole(folder, name):
                self.used[folder] = hashes
                return folder
        return None

    def _folders(self, name: str) -> list[Path]:
        own = [place / name for place in self.places if is_own(place / name)]
        return own if self._given is None else [*own, self._given / name]

    def copy(self, embedder: Path) -> None:
        """Put the graphs that were opened into a folder where an embedder is being saved."""
        for folder in self.used:
            if folder.is_dir():
                shutil.copytree(folder, embedder / FOLDER / folder.name, dirs_exist_ok=True)

    @property
    def hashes(self) -> dict[str, str]:
        """Of the graphs that were opened, by name."""
        return {folder.name: found for folder, found in self.used.items()}

    @property
    def given(self) -> bool:
        """Whether one of these came with the embedder's folder."""
        return any(folder.parent == self._given for folder in self.used)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        reason: OSError | None = None
        for place in self.places:
            aside = place / f".{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            try:
                aside.mkdir(parents=True)
            except OSError as error:
                reason = reason or error
                continue
            try:
                make(aside)
                _seal(aside, name)
                _put(aside, place / name)
            except OSError as error:
                reason = reason or error
                continue
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            log.info("graph recorded in %s", place / name)
            return place / name
        raise EngineError(
            f"a graph cannot be kept in {self.places[0]}: {reason and reason.strerror}; "
            "PENULT_CACHE names another folder"
        ) from reason

    def forget_unfinished(self, process: int) -> None:
        """Remove what a process has left behind that was ended while it recorded."""
        for place in self.places:
            for aside in place.glob(f".*-{process}-*"):
                shutil.rmtree(aside, ignore_errors=True)

    def recall(self, asked: Any, kind: str = CHOICE) -> CachedNote | None:
        """What this user noted for this question; of a choice on a machine like this one."""
        return Notes(self.places).recall(self._name(kind, asked))

    def note(self, asked: Any, answer: dict[str, Any], kind: str = CHOICE) -> None:
        """Keep an answer; it is measured again where it cannot be written."""
        Notes(self.places).note(self._name(kind, asked), answer)

    def _name(self, kind: str, asked: Any) -> str:
        on = machine() if kind in (CHOICE, ENGINE) else ""
        return f"{kind}-{digest([self.subject, on, asked])}.json"


def _seal(folder: Path, name: str) -> None:
    """Write what a graph was made from, and the list of hashes."""
    (folder / _MADE_FROM).write_text(json.dumps({"graph": name}), "utf-8")
    write_list(folder)
    for file in folder.iterdir():
        file.chmod(file.stat().st_mode & ~0o022)


def _is_whole(folder: Path, name: str) -> bool:
    """Whether a folder holds the graph of this name as it was recorded."""
    if not folder.is_dir():
        return False
    reason = damage(folder) or ("" if list_hash(folder) else "it has no list of hashes")
    if not reason:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads((folder / _MADE_FROM).read_text("utf-8"))["graph"] == name:
                return True
        reason = "it was recorded from another model"
    log.warning("the recorded graph in %s is made anew: %s", folder, reason)
    return False


def _put(aside: Path, target: Path) -> None:
    """Rename a whole folder; one that is there stays if it is whole (another process was faster),
    else goes."""
    for _ in range(3):
        with contextlib.suppress(OSError):
            aside.rename(target)
            return
        if is_own(target) and _is_whole(target, target.name):
            return
        old = aside.with_name(f"{aside.name}-old")
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    aside.rename(target)
