"""Which kind of model file a path names, read off its contents where a suffix promises little.

Opens archives to list them and loads nothing.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from penult.errors import ModelError

TORCHSCRIPT, EXPORT, KERAS = "torchscript", "export", "keras"

# What a suffix promises. `.pt` and `.pth` promise nothing: most of them are checkpoints.
SUFFIXES = {
    ".ts": TORCHSCRIPT,
    ".torchscript": TORCHSCRIPT,
    ".jit": TORCHSCRIPT,
    ".pt2": EXPORT,
    ".keras": KERAS,
    ".h5": KERAS,
    ".hdf5": KERAS,
}
CHECKPOINTS = {".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl"}


def kind_of(spec: str | Path) -> str | None:
    """torchscript, export or keras, if a file of that kind is named; whether it exists or not."""
    path = Path(spec).expanduser()
    promised = SUFFIXES.get(path.suffix.lower())
    if promised == KERAS or path.is_dir():
        return None if path.is_dir() else promised
    if promised is None and path.suffix.lower() not in CHECKPOINTS:
        return None
    return _kind_inside(members(path)) or promised


def _kind_inside(names: list[str]) -> str | None:
    """What an archive is, by what torch puts into each kind of it, below one folder."""
    inside = {name.partition("/")[2] for name in names}
    if "archive_format" in inside or any(name.startswith("serialized_exported") for name in names):
        return EXPORT
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return TORCHSCRIPT
    return None


def existing_file(spec: str | Path) -> Path:
    """The absolute path of a file.

    Raises:
        ModelError: there is none.
    """
    path = Path(spec).expanduser().absolute()
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    return path


def members(path: Path) -> list[str]:
    """Names in a zip archive; none if it is no such archive, or not there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def checkpoint_advice(path: Path) -> str:
    """What would work for a file of weights that was named as a model."""
    return (
        "it holds weights, or a pickled module, and no network that can be run: give what builds "
        f"the network as the model, and this file with --checkpoint {path.name} "
        "(package.module:factory, timm:NAME or torchvision:NAME)"
    )
