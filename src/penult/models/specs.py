"""From a model's spec to an open classifier: `load(spec)`, the table of loaders, the hub's
download.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.errors import ModelError, UsageError, first_line
from penult.models.base import Classifier, remember_options
from penult.models.options import (
    CHECKPOINTS,
    EXPORT,
    KERAS,
    TORCHSCRIPT,
    checkpoint_advice,
    existing_file,
    kind_of,
)

if TYPE_CHECKING:
    from penult.models.options import LoadOptions


Claims = Callable[[str], str | None]

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[\w.-]+")
ONNX = re.compile(r".+\.onnx(#.+)?", re.IGNORECASE)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")

WHAT_WORKS = (
    "a model is a folder saved by transformers (with config.json) or by penult convert, an id on "
    "the Hugging Face hub (owner/name or owner/name@revision), timm:NAME, torchvision:NAME, a file "
    "of ONNX (.onnx), TorchScript (.pt, .ts), torch.export (.pt2) or Keras (.keras, .h5), "
    "package.module:factory, or 'demo'"
)

# What a transformers checkpoint may consist of; nothing else is fetched from the hub.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py"]
SAFE_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
PICKLED_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def load(spec: str | os.PathLike[str] | Any, **asked: Any) -> Classifier:
    """Open a classifier by what a user calls it, or a module that is at hand.

    spec: a folder, a hub id, `timm:NAME`, `torchvision:NAME`, a file (`FILE.onnx`,
    `FILE.onnx#OUTPUT`, `FILE.pt` of TorchScript, `FILE.pt2`, `FILE.keras`), `demo`,
    `package.module:factory`, or an nn.Module, an ExportedProgram, a Keras model. asked: the fields
    of `penult.models.options.LoadOptions`.

    Raises:
        ModelError: there is no such model, or it is not a classifier.
        IncompleteWeights: its weights do not fill it.
        UntrustedCode: it brings code, and `trust` was not given.
    """
    from penult.models.options import CLASS_NAMES, LoadOptions, current

    if CLASS_NAMES in asked:
        warnings.warn(
            "labels= is called class_names=; it goes in the next version",
            DeprecationWarning,
            stacklevel=3,
        )
    spec = Path(spec) if isinstance(spec, os.PathLike) else spec
    files = {n: Path(value) for n, value in asked.items() if isinstance(value, os.PathLike)}
    what = LoadOptions(**current({**asked, **files}))
    if what.output is not None and isinstance(spec, str | Path) and is_onnx(spec):
        if "#" in str(spec):
            raise UsageError(f"output {what.output!r}: {spec} names an output already")
        spec, what = f"{spec}#{what.output}", replace(what, output=None)
    classifier = _opened(spec, what)
    remember_options(classifier, what.reopen())
    return classifier


def _opened(spec: str | Path | Any, what: LoadOptions) -> Classifier:
    if not isinstance(spec, str | Path):
        return _call("torch:open_module", spec, what)
    for claims, opens in ORIGINS:
        name = claims(str(spec))
        if name is not None:
            return _call(opens, name, what)
    return _open_folder(spec, what)


def _call(opens: str, spec: Any, what: LoadOptions) -> Classifier:
    module, _, function = opens.partition(":")
    home = import_module(f"penult.models.loaders.{module}")
    opened: Classifier = getattr(home, function)(spec, what)
    return opened


def _onnx(spec: str) -> str | None:
    return spec if is_onnx(spec) else None


def _file(kind: str) -> Claims:
    return lambda spec: spec if kind_of(spec) == kind else None


def _named(origin: str) -> Claims:
    return lambda spec: spec.removeprefix(f"{origin}:") if spec.startswith(f"{origin}:") else None


def _factory(spec: str) -> str | None:
    return spec if FACTORY.fullmatch(spec) and not Path(spec).exists() else None


# Who claims a spec (gives what its opener takes, or None), and what opens it: the first that does.
ORIGINS: tuple[tuple[Claims, str], ...] = (
    (_onnx, "onnx:open_onnx"),
    (_file(TORCHSCRIPT), "torchscript:open_torchscript"),
    (_file(EXPORT), "torch_export:open_export"),
    (_file(KERAS), "keras:open_keras"),
    (_named("timm"), "timm:open_timm"),
    (_named("torchvision"), "timm:open_torchvision"),
    (_factory, "torch:open_factory"),
)
# Origins whose classifiers are saved with their file as it is.
FILES = {
    "onnx": "onnx:open_onnx",
    TORCHSCRIPT: "torchscript:open_torchscript",
    EXPORT: "torch_export:open_export",
    KERAS: "keras:open_keras",
}


def _open_folder(spec: str | Path, asked: LoadOptions) -> Classifier:
    folder, name, revision = locate(spec)
    saved = folder / "classifier.json"
    if saved.is_file():
        return _open_saved(folder, saved, asked)
    if (folder / "saved_model.pb").is_file():
        raise ModelError(
            f"{name!r} is a SavedModel of TensorFlow, which only TensorFlow runs: save it from "
            "there as model.keras, or convert it to ONNX"
        )
    from penult.models.loaders.transformers import open_folder, open_prepared

    if asked.preprocess is not None:
        return open_prepared(folder, name, asked)
    if asked.checkpoint is not None:
        raise UsageError(
            f"{name!r} brings its own weights; --checkpoint goes with a name or a factory that "
            "brings none (timm:NAME, torchvision:NAME, package.module:factory)"
        )
    return open_folder(folder, name, asked, {"revision": revision})


def _open_saved(folder: Path, saved: Path, asked: LoadOptions) -> Classifier:
    """A folder that `ModuleClassifier.save` wrote: built again from its recipe."""
    try:
        recipe = json.loads(saved.read_text("utf-8"))
        origin, name, labels = recipe.pop("origin"), recipe.pop("name", None), recipe.pop("labels")
        again = replace(asked, **{"class_names": asked.class_names or labels, **recipe})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{saved} cannot be read: {first_line(error)}") from error
    if origin == "transformers":
        from penult.models.loaders.transformers import open_folder, open_prepared

        if again.preprocess is None:
            return open_folder(folder, str(folder.resolve()), again, {"revision": None})
        return open_prepared(folder, str(folder.resolve()), again)
    if origin in FILES:
        opened = _call(FILES[origin], folder / name, again)
        opened.spec = str(folder.resolve())
        return opened
    spec = name if origin == "torch" else f"{origin}:{name}"
    fields = {item.name: getattr(again, item.name) for item in dataclass_fields(again)}
    classifier = load(spec, **{**fields, "checkpoint": folder / "model.safetensors"})
    classifier.spec = str(folder.resolve())
    return classifier


def is_onnx(spec: str | Path) -> bool:
    """Whether an ONNX file is named: FILE.onnx, or FILE.onnx#OUTPUT."""
    return ONNX.fullmatch(str(spec)) is not None and not Path(spec).is_dir()


def modality_of(spec: str | os.PathLike[str], **asked: Any) -> str:
    """What a model takes (audio, image, video or text), without loading its weights."""
    spec = os.fspath(spec)
    if asked.get("modality"):
        return str(asked["modality"])
    if asked.get("sample_rate"):
        return "audio"
    if is_onnx(spec):
        from penult.models.loaders.onnx import modality_of_file

        return modality_of_file(spec)
    if kind_of(spec) is not None:
        existing_file(spec)
        return "image"
    if FACTORY.fullmatch(str(spec)) and not Path(spec).exists():  # timm:… and torchvision:… too
        return "image"
    folder, name, _ = locate(spec)
    if (folder / "classifier.json").is_file():
        recipe = json.loads((folder / "classifier.json").read_text("utf-8"))
        if recipe.get("modality") or recipe.get("sample_rate"):
            return str(recipe.get("modality") or "audio")
        if recipe["origin"] == "onnx":
            return modality_of(folder / recipe["name"])
        if recipe["origin"] != "transformers":
            return "image"
    from penult.models.loaders.transformers import read_modality

    return read_modality(folder, name, bool(asked.get("trust")))


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
        if path.suffix.lower() in CHECKPOINTS:
            raise ModelError(f"{name!r} is no model by itself: {checkpoint_advice(path)}")
        raise ModelError(f"{name!r} is a file; {WHAT_WORKS}")
    if path.suffix.lower() in CHECKPOINTS:
        existing_file(path)
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
