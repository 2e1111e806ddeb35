"""The Hugging Face hub and other places of published weights: asked for what the user typed alone,
said, and never offline; what a file names is taken from what is on this machine.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from glob import escape
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

from penult.data.files import user_path
from penult.data.hashes import LIST, listed_names
from penult.errors import ModelError, cause
from penult.models.trust import is_typed, naming

log = logging.getLogger(__name__)

OFFLINE = "PENULT_OFFLINE"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a transformers checkpoint may consist of; nothing else is fetched from the hub.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py", LIST]
SAFE_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"]
PICKLED_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]

SAVED = "penult.json"  # of a saved embedder, whose list names all of its files
CLASSES = "classes.npz"  # of a class space that was pushed

# Ends of names of files: no id on the hub has one.
_SUFFIXES = {
    ".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl", ".pt2", ".ts", ".torchscript",
    ".jit", ".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".pb", ".mlmodel", ".json", ".npz",
    ".npy", ".lance", ".zip", ".gz", ".tgz", ".py", ".yaml", ".yml", ".txt", ".csv", ".parquet",
    ".wav", ".flac", ".mp3", ".jpg", ".png",
}  # fmt: skip
_ALIKE = 0.8  # as difflib has it: `modles` and `models`

_fetched: set[str] = set()  # said once in a process


def is_offline() -> bool:
    """Whether --offline or PENULT_OFFLINE=1 keeps the network from being asked."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off")


def may_ask(name: str, trust: bool = False) -> bool:
    """Whether the network may be asked for a model of this name."""
    return not is_offline() and (trust or is_typed(name))


def refuse(name: str, place: str) -> NoReturn:
    """Refuse a model that is not on this machine, and that the network is not asked for.

    place: where it was looked for.

    Raises:
        ModelError: the reason, and what would work.
    """
    by = naming()
    if is_offline():
        raise ModelError(
            f"{name!r} is not in {place}, and --offline ({OFFLINE}=1) keeps Penult from asking the "
            "network for it: leave that out once, or name a folder"
        )
    option = f"--model {name} fetches it, or --trust" if by.has_option else "--trust fetches it"
    raise ModelError(
        f"{by.file or 'a file'} names the model {name!r}, which is no folder here and not in "
        f"{place}; the network is asked for what you type alone: {option}"
    )


def refuse_path(name: str, forms: str = "") -> None:
    """Refuse a name that looks like a folder or file, and is none; the hub is not asked for it.

    forms: how a model may be named, for the error.

    Raises:
        ModelError: it does; the message names what is there and similar.
    """
    path = user_path(name)
    bare = name.partition("@")[0]
    by_form = (
        name.startswith((".", "/", "~", os.sep))
        or name.endswith(("/", os.sep))
        or "\\" in name
        or path.suffix.lower() in _SUFFIXES
        or bare.count("/") > 1
    )
    near = _near(path)
    if by_form:
        ways = f"; {forms}" if forms and not near else ""
        raise ModelError(_no_folder(name, near) + ways)
    if "@" in name or not is_typed(name):  # with a revision it is the hub's
        return
    if near or (path.parent != Path() and path.parent.is_dir()):
        raise ModelError(
            f"{_no_folder(name, near)}. If you mean the hub's model, name it with its revision: "
            f"{name}@main"
        )


def _no_folder(name: str, near: list[str]) -> str:
    similar = f"; similar are {', '.join(near)}" if near else ""
    return f"no model {name!r}: there is no such folder or file{similar}"


def _near(path: Path) -> list[str]:
    """What is there under a similar name: beside the path, or in a folder that is similar to its
    own."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        parent = path.parent
        if parent.is_dir():
            return [str(parent / name) for name in _similar(path.name, parent)]
        if parent.parent.is_dir():
            beside = (parent.parent / name for name in _similar(parent.name, parent.parent))
            return [
                str(folder / name)
                for folder in beside
                if folder.is_dir()
                for name in _similar(path.name, folder)
            ]
    return []


def _similar(name: str, folder: Path) -> list[str]:
    names = [entry.name for entry in os.scandir(folder)]
    return difflib.get_close_matches(name, names, 3, _ALIKE)


def fetch(
    spec: str, trust: bool = False, forms: str = "a model is a folder or a hub id"
) -> tuple[Path, str]:
    """Bring a hub id (`owner/name[@revision]`) into the local cache.

    Returns (folder, commit). safetensors are preferred; pickled weights are fetched only where
    there are none. Of an embedder that Penult saved all files are fetched that its list names.
    Without a network, or where it may not be asked, what the cache holds is used. forms: how a
    model may be named, for the error.

    Raises:
        ModelError: the hub has no such model, or cannot or may not be asked and the cache has none.
    """
    return _fetch(spec, _snapshot, trust, ("model", forms))


def is_repository(name: str) -> bool:
    """Whether a text that names a file or a folder means a repository on the hub: it is written as
    `owner/name[@revision]`, and nothing is here under that name or in a folder `owner`."""
    if not HUB_ID.fullmatch(name) or "/" not in name.partition("@")[0]:
        return False
    path = user_path(name)
    if path.exists() or path.suffix.lower() in _SUFFIXES:
        return False
    return "@" in name or not path.parent.is_dir()


def fetch_classes(spec: str) -> Path:
    """The file of a class space that was pushed to the hub, in the local cache.

    Raises:
        ModelError: as for `fetch`, or the repository holds no class space.
    """
    words = "class space or collection", "a class space is an .npz or a hub id"
    folder, _ = _fetch(spec, _classes_snapshot, False, words)
    if not (folder / CLASSES).is_file():
        raise ModelError(f"{spec!r} on the hub is no class space of penult push: no {CLASSES}")
    return folder / CLASSES


def _fetch(
    spec: str,
    snapshot: Callable[[str, bool], Path | None],
    trust: bool,
    words: tuple[str, str],
) -> tuple[Path, str]:
    """snapshot: (spec, whether the cache alone is asked) → the folder. words: what is fetched, and
    how it may be named."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    cached = snapshot(spec, True)
    pinned = _COMMIT.fullmatch(spec.partition("@")[2])
    if cached is not None and (pinned or not may_ask(spec, trust)):
        return cached, cached.name
    if not may_ask(spec, trust):
        refuse(spec, "the local hub cache")
    if spec not in _fetched and not constants.HF_HUB_OFFLINE:
        _fetched.add(spec)
        verb = "downloading" if cached is None else "looking for a newer state of"
        log.warning("%s %s from the Hugging Face hub", verb, spec)
    try:
        folder = snapshot(spec, False)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"no {words[0]} {spec!r}: there is no such folder here, it is not in the local hub "
            f"cache, and the hub cannot be reached; {words[1]}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"no {words[0]} {spec!r}: there is no such folder here, and the hub answers: "
            f"{cause(error)}"
        ) from error
    assert folder is not None
    return folder, folder.name


def _snapshot(spec: str, local: bool = False) -> Path | None:
    """The folder of a hub id; None where only the cache is asked and it has none."""
    try:
        folder = _download(spec, [*SMALL_FILES, *SAFE_WEIGHTS], local)
        if (folder / SAVED).is_file() and (folder / LIST).is_file():
            return _saved_snapshot(spec, folder, local)
        if not any(folder.glob("model*.safetensors")):
            _download(spec, [*SMALL_FILES, *PICKLED_WEIGHTS], local)
    except (OSError, ValueError):
        if local:
            return None
        raise
    return folder


def _saved_snapshot(spec: str, folder: Path, local: bool) -> Path | None:
    """The folder with all that its list names, of the same commit."""
    names = listed_names(folder)
    if all((folder / name).is_file() for name in names):
        return folder
    if local:
        return None
    commit = f"{spec.partition('@')[0]}@{folder.name}"
    return _download(commit, [escape(name) for name in names], local)


def _classes_snapshot(spec: str, local: bool = False) -> Path | None:
    try:
        folder = _download(spec, [CLASSES], local)
    except (OSError, ValueError):
        if local:
            return None
        raise
    return None if local and not (folder / CLASSES).is_file() else folder


def _download(spec: str, patterns: list[str], local: bool) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = spec.partition("@")
    return Path(
        snapshot_download(
            repo, revision=revision or None, allow_patterns=patterns, local_files_only=local
        )
    )


_guarded = [0]  # blocks of `offline` that run; audit hooks stay as long as the process


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside the block no Python code of this process reaches another machine, whichever library
    or model of the user's it belongs to; processes that are started keep the settings."""
    settings = {OFFLINE: "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    if _guarded == [0]:
        sys.addaudithook(_refuse_network)
        _guarded[0] = 1
    _guarded.append(1)
    try:
        yield
    finally:
        _guarded.pop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_HERE = ("localhost", "127.", "::1")


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket.") or len(_guarded) < 2:
        return
    host = arguments[0] if event in _LOOKUPS else None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if isinstance(name, str) and name and not name.startswith(_HERE):
        raise ConnectionError(f"{name} is not asked: --offline ({OFFLINE}=1)")


_closed: ContextVar[bool] = ContextVar("closed", default=False)


class _Switch:
    """huggingface_hub's own switch, and closed where a block of `closed` runs."""

    def __init__(self, was: object) -> None:
        self.was = was

    def __bool__(self) -> bool:
        return bool(self.was) or _closed.get() or is_offline()


@contextlib.contextmanager
def closed(trust: bool = False) -> Iterator[None]:
    """Inside the block no library asks the hub, in this thread: a folder's settings may name
    other models, and say nothing of what the user wants. trust: what they name may be fetched."""
    from huggingface_hub import constants

    if not isinstance(constants.HF_HUB_OFFLINE, _Switch):
        switch: Any = _Switch(constants.HF_HUB_OFFLINE)
        constants.HF_HUB_OFFLINE = switch
    constants.HF_HUB_DISABLE_TELEMETRY = True
    token = _closed.set(not trust)
    try:
        yield
    finally:
        _closed.reset(token)


@contextlib.contextmanager
def published(name: str, url: str | None, trust: bool = False) -> Iterator[None]:
    """Inside the block the weights that a library publishes under a name (`timm:NAME`) are opened:
    fetched where the user typed that name, else found on this machine. url: where they are, if not
    on the hub.

    Raises:
        ModelError: they are not here, and the network may not be asked.
    """
    if may_ask(name, trust):
        if name not in _fetched and not _has_cached(url):
            _fetched.add(name)
            log.warning("%s: published weights, downloaded if this machine has none", name)
        yield
        return
    cache = "the cache of published weights"
    if url is not None and not _has_cached(url):
        refuse(name, cache)
    try:
        with closed():
            yield
    except OSError:
        refuse(name, cache)


def _has_cached(url: str | None) -> bool:
    """Whether torch has downloaded a file before."""
    from torch import hub

    if url is None:
        return False
    return (Path(hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name).is_file()
