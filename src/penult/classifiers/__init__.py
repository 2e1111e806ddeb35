"""`load(spec)`: from what a user names to an open classifier; one file per origin does the rest."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from penult.classifiers.base import Classifier
from penult.errors import ModelError, first_line

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")

WHAT_WORKS = (
    "a model is a folder saved by transformers (with config.json), an id on the Hugging Face hub "
    "(owner/name or owner/name@revision), or 'demo'"
)

# What a transformers checkpoint may consist of; nothing else is fetched from the hub.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py"]
SAFE_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
PICKLED_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def load(spec: str | Path, *, trust: bool = False) -> Classifier:
    """Open a classifier by what a user calls it: a folder, a hub id, or `demo`.

    Raises:
        ModelError: there is no such model, or it is not a classifier.
        IncompleteWeights: its weights do not fill it.
        UntrustedCode: it brings code, and `trust` was not given.
    """
    folder, name, revision = locate(spec)
    from penult.classifiers.from_transformers import open_folder

    return open_folder(folder, name, trust=trust, facts={"revision": revision})


def modality_of(spec: str | Path, *, trust: bool = False) -> str:
    """What a model takes (audio, image, video or text), without loading its weights."""
    folder, name, _ = locate(spec)
    from penult.classifiers.from_transformers import read_modality

    return read_modality(folder, name, trust)


def locate(spec: str | Path) -> tuple[Path, str, str | None]:
    """(folder, the name to remember, revision) of a model, fetched if it is on the hub.

    Raises:
        ModelError: there is no such model.
    """
    name = str(spec)
    if name == "demo":
        return demo_folder(), name, "bundled"
    path = Path(name).expanduser()
    if path.is_dir():
        return path, str(path.resolve()), None
    if path.exists():
        raise ModelError(f"{name!r} is a file; {WHAT_WORKS}")
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"no model {name!r}: there is no such folder; {WHAT_WORKS}")
    folder, revision = fetch(name)
    return folder, name, revision


def demo_folder() -> Path:
    """Where the bundled classifier lies."""
    return Path(str(files("penult") / "demo" / "classifier"))


def fetch(spec: str) -> tuple[Path, str]:
    """Bring a hub id (`owner/name[@revision]`) into the local cache.

    Returns (folder, commit). safetensors are preferred; pickled weights are fetched only where
    there are none. Without a network, what the cache holds is used.

    Raises:
        ModelError: the hub has no such model, or cannot be reached and the cache has none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = spec.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=[*SMALL_FILES, *SAFE_WEIGHTS]
            )
        )
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(
                repo, revision=revision or None, allow_patterns=[*SMALL_FILES, *PICKLED_WEIGHTS]
            )
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"no model {spec!r}: there is no such folder here, it is not in the local hub cache, "
            f"and the hub cannot be reached; {WHAT_WORKS}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"no model {spec!r}: there is no such folder here, and the hub answers: "
            f"{first_line(error)}"
        ) from error
    return folder, folder.name
