"""The table of formats that an embedder is written in, and the writing: aside, measured against
torch, then renamed.

A new format is a module with `write` and `run`, and one line in `FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penult.conversion.base import FACTS, ConversionRequest, Draft
from penult.conversion.parity import ConversionParity, measure
from penult.data.files import files_aside, folder_aside, user_path
from penult.data.sources import Source, from_objects
from penult.embedding.embedder import Embedder
from penult.errors import EngineError, StoreError, UsageError, listed
from penult.extras import require
from penult.fewshot.classspace import ClassSpace


@dataclass(frozen=True, slots=True)
class Conversion:
    """One conversion, done. path: of the file or folder. facts: its metadata."""

    path: Path
    format: str
    parity: ConversionParity
    facts: dict[str, Any]
    example: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class ConversionFormat:
    """One format.

    name: as `--format` takes it. module: of this package, with `write(request, path)`. suffix: of
    the file; empty: a folder. packages: to be imported for it. classes: whether taught classes can
    be in it. words: what it is for.
    """

    name: str
    module: str
    words: str
    suffix: str = ""
    packages: tuple[str, ...] = ()
    classes: bool = False
    beside: tuple[str, ...] = ()

    def write(self, request: ConversionRequest, path: Path) -> Draft:
        """Write it, without its metadata."""
        written: Draft = import_module(f"penult.conversion.{self.module}").write(request, path)
        return written


FORMATS = {
    one.name: one
    for one in (
        ConversionFormat(
            "onnx", "onnx", "one file for ONNX Runtime and all that reads ONNX",
            ".onnx", ("onnx", "onnxscript", "onnxruntime"), True,
        ),
        ConversionFormat(
            "openvino", "openvino", "OpenVINO's .xml, with its weights in a .bin beside",
            ".xml", ("openvino",), True, (".bin",),
        ),
        ConversionFormat("pt2", "torch_export", "one file for torch alone", ".pt2", (), True),
        ConversionFormat(
            "sentence-transformers", "sentence_transformers",
            "a folder for SentenceTransformer(OUT)", "", ("sentence_transformers",),
        ),
        ConversionFormat(
            "transformers", "transformers", "a folder for AutoModel and its processor, with a card"
        ),
    )
}  # fmt: skip


def find_format(name: str) -> ConversionFormat:
    """The format of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}; there are embedder, {', '.join(FORMATS)}")
    return FORMATS[name]


def check_target(path: str | os.PathLike[str], format: ConversionFormat) -> Path:
    """The file or folder to write, checked; also before long work.

    Raises:
        UsageError: another suffix, or something else is there.
    """
    target = user_path(path).absolute()
    if format.suffix:
        if target.suffix.lower() != format.suffix:
            raise UsageError(
                f"{target.name!r} is to hold --format {format.name}; name it with the suffix "
                f"{format.suffix}"
            )
        if target.is_dir():
            raise UsageError(f"{target} is a folder; {format.name} is a file, name another")
    elif target.exists() and not (target / FACTS).is_file() and not _is_empty(target):
        raise UsageError(f"{target} exists and is no such folder; name another folder")
    return target


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def convert(
    embedder: Embedder,
    path: str | os.PathLike[str],
    format: str,
    items: Any = None,
    classes: ClassSpace | str | os.PathLike[str] | None = None,
) -> Conversion:
    """Write an embedder for programs that know nothing of Penult, and measure it against torch
    before it takes its place: on `items` (as `Embedder.run` takes them), else on made-up ones.

    format: `onnx`, `openvino`, `pt2`, `sentence-transformers` or `transformers`. classes: taught
    ones, or their file, whose probabilities become an output.

    Raises:
        UsageError: no such format, or a target that cannot be. EngineError: the model cannot be
            recorded, or what was written gives other values. MissingExtra: a package is missing.
    """
    found = find_format(format)
    for package in found.packages:
        require(package)
    if classes is not None and not found.classes:
        able = [one.name for one in FORMATS.values() if one.classes]
        raise UsageError(f"--format {format} has no place for taught classes; {listed(able)} have")
    target = check_target(path, found)
    source = items
    if items is not None and not isinstance(items, Source):
        source = from_objects(items, embedder.classifier.modality)
    taught = None
    if classes is not None:
        from penult.conversion.graph import taught_classes

        taught = taught_classes(classes, embedder)
    request = ConversionRequest(embedder, source, taught)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not found.suffix:
            with folder_aside(target) as aside:
                return _made(found, request, aside, target)
        suffixes = (found.suffix, *found.beside)
        with TemporaryDirectory(prefix=".penult-", dir=target.parent) as scratch:
            written = Path(scratch, target.name)
            done = _made(found, request, written, target)
            with files_aside([target.with_suffix(suffix) for suffix in suffixes]) as asides:
                for suffix, aside in zip(suffixes, asides, strict=True):
                    written.with_suffix(suffix).replace(aside)
        return done
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error


def _made(
    format: ConversionFormat, request: ConversionRequest, aside: Path, target: Path
) -> Conversion:
    written = format.write(request, aside)
    parity = measure(request, written.trial)
    if not parity.ok:
        raise EngineError(
            f"{format.name}: what was written gives other values than torch ({parity.words}); "
            "nothing was kept"
        )
    facts = {
        "format": format.name,
        "name": target.name,
        **request.facts(),
        **written.facts,
        "parity": parity.to_dict(),
    }
    written.finish(facts)
    example = written.example.replace("OUT", target.name)
    return Conversion(target, format.name, parity, facts, example)
