"""Optional dependencies and plugins: what other packages bring, found and imported in one place."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib.metadata import (
    EntryPoint,
    EntryPoints,
    PackageNotFoundError,
    entry_points,
    packages_distributions,
    version,
)
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from penult.errors import MissingExtra, UsageError, cause

log = logging.getLogger(__name__)

# import name -> (extra of this package, what it is needed for)
EXTRAS = {
    "datasets": ("datasets", "datasets of Hugging Face"),
    "langchain_core": ("langchain", "embeddings of LangChain"),
    "pgvector": ("pgvector", "PostgreSQL with pgvector"),
    "psycopg": ("pgvector", "PostgreSQL with pgvector"),
    "qdrant_client": ("qdrant", "Qdrant"),
    "ai_edge_litert": ("litert", "TFLite files"),
    "flatbuffers": ("litert", "TFLite files"),
    "fastapi": ("serve", "the server"),
    "prometheus_client": ("serve", "the server"),
    "python_multipart": ("serve", "the server"),
    "uvicorn": ("serve", "the server"),
    "av": ("video", "video and audio that libsndfile does not read (m4a, opus in mp4, …)"),
    "h5py": ("keras", "Keras models in HDF5 files"),
    "keras": ("keras", "Keras models"),
    "matplotlib": ("map", "pictures"),
    "mteb": ("mteb", "tasks of MTEB"),
    "obstore": ("object-storage", "files and collections in S3, Google Cloud Storage and Azure"),
    "onnx": ("onnx", "ONNX files"),
    "onnxruntime": ("onnx", "ONNX files"),
    "onnxscript": ("onnx", "writing ONNX files"),
    "openvino": ("openvino", "running a torch model in OpenVINO"),
    "sentencepiece": ("text", "tokenizers of text models"),
    "sentence_transformers": ("names", "classes by their names, and SentenceTransformer folders"),
    "skops": ("probe", "saved probes"),
    "tiktoken": ("text", "tokenizers of text models"),
    "timm": ("timm", "timm models"),
    "torchvision": ("image", "image and video preprocessing"),
    "ray": ("ray", "spreading a run over machines"),
    "umap": ("map", "maps"),
}

# What may give other numbers in another version.
PACKAGES = ("penult", "torch", "torchvision", "timm", "transformers", "tokenizers", "onnxruntime",
            "ai-edge-litert", "keras", "numpy", "pillow", "soundfile", "av", "soxr")  # fmt: skip

# What OpenVINO reports its use to the network with; where it cannot be imported, it reports
# nothing. A process that has imported it already goes on with it.
_REPORTING = "openvino_telemetry"
# ONNX Runtime reads this while it is imported, whoever imports it; without it, it keeps a database
# in the user's cache and sends that to its maker.
_SILENCE = "ORT_DISABLE_TELEMETRY"


@cache
def version_of(distribution: str) -> str:
    """The installed version, looked up once: a command asks for some of them many times.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return version(distribution)


def package_versions() -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version_of(name)
    return found


def installed(module: str) -> str | None:
    """The version of a module's distribution, whatever that is called (`umap` is umap-learn); None
    if the module is not installed. Imports nothing."""
    if find_spec(module) is None:
        return None
    names = _distributions().get(module, ())
    return version_of(names[0]) if names else "version not known"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """What brings each module; looking that up reads every distribution's list of files."""
    return packages_distributions()


def require(module: str) -> ModuleType:
    """Import an optional module by its dotted name.

    Raises:
        MissingExtra: it is not installed; the message names the extra that brings it.
    """
    _silence(module)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        extra, purpose = EXTRAS[package]
        raise MissingExtra(
            f"{package} is not installed; it is needed for {purpose}. "
            f"Install it with: pip install 'penult[{extra}]'"
        ) from error


def _silence(module: str) -> None:
    """Keep what is imported from reporting its use, unless the user has said that it may."""
    if module.startswith("openvino"):
        sys.modules.setdefault(_REPORTING, None)  # type: ignore[arg-type]
    if not os.environ.get(_SILENCE):
        os.environ[_SILENCE] = "1"  # also for the processes that this one starts
        if runtime := sys.modules.get("onnxruntime"):  # imported before, by somebody else
            runtime.disable_telemetry_events()


# Groups of entry points by which another package adds to this one, and what each adds.
LOADERS, POOLINGS, ENGINES = "penult.loaders", "penult.poolings", "penult.engines"
PLUGINS = {LOADERS: "loader", POOLINGS: "pooling", ENGINES: "engine"}


def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of installed packages in a group, by name; read from their metadata, none
    of them imported. Of two with one name the first on the path counts."""
    found: dict[str, EntryPoint] = {}
    for entry in _installed(tuple(map(_changed, sys.path)))[group]:
        first = found.setdefault(entry.name, entry)
        if package_of(first) != package_of(entry):
            log.warning(
                "two packages bring a %s %r: that of %s counts, and that of %s does not",
                PLUGINS[group],
                entry.name,
                package_of(first),
                package_of(entry),
            )
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def _installed(_: tuple[tuple[str, int], ...]) -> dict[str, EntryPoints]:
    """Those of every installed package, read again when a folder on the path has changed: to read
    them takes 10 ms, and a command asks several times."""
    found = entry_points()
    return {group: found.select(group=group) for group in PLUGINS}


def _changed(folder: str) -> tuple[str, int]:
    try:
        return folder, Path(folder).stat().st_mtime_ns
    except OSError:
        return folder, 0


def load_plugin(entry: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        UsageError: its package cannot be imported, or has no such name.
    """
    _silence(entry.module)
    try:
        return entry.load()
    except Exception as error:  # a package of somebody else may raise anything
        kind = PLUGINS.get(entry.group, "plugin")
        raise UsageError(
            f"{kind} {entry.name!r} of {package_of(entry)} cannot be imported from {entry.value}: "
            f"{cause(error, named=True)}. Mend or uninstall that package"
        ) from error


class PluginState(NamedTuple):
    """A plugin, as `penult doctor` shows it. error: why it cannot be imported; empty if it can."""

    kind: str
    name: str
    package: str
    error: str


def plugin_states(
    checks: Mapping[str, Callable[[str], object]] = MappingProxyType({}),
) -> list[PluginState]:
    """Every plugin that is installed, imported to see whether it can be.

    checks: for a group, what else a plugin's name is put to; it raises a UsageError.
    """
    states = []
    for group, kind in PLUGINS.items():
        for name, entry in plugins(group).items():
            error = ""
            try:
                load_plugin(entry)
                checks.get(group, str)(name)
            except UsageError as problem:
                error = str(problem)
            states.append(PluginState(kind, name, package_of(entry), error))
        states += [
            PluginState(
                kind, entry.name, package_of(entry), "another package with this name counts"
            )
            for entry in entry_points(group=group)
            if package_of(entry) != package_of(plugins(group)[entry.name])
        ]
    return states


def package_of(entry: EntryPoint) -> str:
    """`NAME VERSION` of the package that an entry point comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
