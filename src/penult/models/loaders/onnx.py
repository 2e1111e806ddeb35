"""Open an ONNX file as a classifier: its graph, what it takes, and which output is the logits.

What a graph cannot say, the caller says: sample rate, seconds, class names, preprocessing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from penult.errors import ModelError, UsageError, first_line
from penult.extras import require
from penult.models.base import (
    MULTI_LABEL,
    SINGLE_LABEL,
    Classifier,
    Inputs,
    complete_labels,
    digest,
)
from penult.models.module import FILE
from penult.models.options import LoadOptions, Prepare, class_names_of, preparation
from penult.models.synthetic import content_of
from penult.tracing.onnx_anatomy import GraphCut, before_scores, find_logits
from penult.tracing.onnx_graph import OnnxGraph, Port, Session, as_feeds

SUFFIX = ".onnx"
MODEL = "model.onnx"
EXAMPLES = 3  # inputs that a cut is proved on
# How long an axis is made that a graph leaves free.
_LENGTHS = {"audio": 16_000, "image": 224, "video": 16, "text": 8}
_NAMES = ("labels", "label_names", "class_names", "classes", "names", "id2label")


@dataclass(eq=False, repr=False)
class OnnxClassifier(Classifier):
    """An ONNX graph and what it takes to feed it; see `penult.models.base.Classifier`.

    logits: the tensor with one number per class. output: what the file returns of it. length: the
    fixed number of samples that the graph takes, if it is one of raw audio.
    """

    spec: str
    path: Path
    graph: OnnxGraph
    output: str
    logits: str
    scores: str
    modality: str
    kind: str
    asked: LoadOptions
    prepare: Prepare | None
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    rate: int | None = None
    frames: int | None = None
    base: str | None = None
    engine: str = "onnxruntime"
    reopen: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> NoReturn:
        """An ONNX file has none."""
        raise UsageError(f"{self.spec} is an ONNX file: it has a graph, and no torch module")

    @property
    def seconds(self) -> float | None:
        """The fixed length of audio, asked for or read off the graph."""
        length = self._length
        if self.asked.seconds is None and length is not None and self.rate:
            return length / self.rate
        return self.asked.seconds

    @property
    def _length(self) -> int | None:
        port = self.graph.inputs[0]
        if self.rate is None or self.asked.preprocess is not None or not port.shape:
            return None
        return max((size for size in port.shape[not self.graph.bare :] if size), default=None)

    @property
    def holds(self) -> float | None:
        """Seconds in an input of fixed length; see `Classifier.holds`."""
        return self.seconds

    def preprocess(self, content: Any) -> Inputs:
        """Decoded content → the graph's inputs; see `Classifier.preprocess`."""
        prepare = self.preparation()
        truncated = None
        if self.seconds is not None and self.rate is not None:
            wanted = round(self.seconds * self.rate)
            truncated = self.seconds if len(content) > wanted else None
            content = np.pad(content[:wanted], (0, max(0, wanted - len(content))))
        return Inputs(self._tensors(prepare(content)), truncated)

    def preparation(self) -> Prepare:
        """What makes the graph's inputs of an item.

        Raises:
            UsageError: nobody said it.
        """
        if self.prepare is None:
            raise UsageError(
                f"nothing says how an item is prepared for {self.path.name}, which takes "
                f"{', '.join(map(str, self.graph.inputs))}: give --sample-rate if that is raw "
                "sound, or --preprocess package.module:function"
            )
        return self.prepare

    def _tensors(self, value: Any) -> dict[str, torch.Tensor]:
        values = value if isinstance(value, tuple) else (value,)
        ports = self.graph.inputs
        named = dict(value) if isinstance(value, Mapping) else dict(
            zip((port.name for port in ports), values, strict=False)
        )  # fmt: skip
        given = {}
        for port in ports:
            if port.name not in named:
                raise UsageError(
                    f"the preprocessing gives {', '.join(named) or 'nothing'}, and the graph "
                    f"takes {', '.join(p.name for p in ports)}"
                )
            given[port.name] = self._batched(port, torch.as_tensor(named[port.name]))
        return given

    def _batched(self, port: Port, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with a batch axis in front, and raw sound in the rank that the graph takes."""
        rank = tensor.ndim + 1 if port.shape is None else len(port.shape) + self.graph.bare
        if self.asked.preprocess is None and tensor.ndim == 1 and rank == 3:
            tensor = tensor[:, None] if port.shape and port.shape[-1] == 1 else tensor[None]
        if tensor.ndim == rank - 1:
            tensor = tensor[None]
        if tensor.ndim != rank or len(tensor) != 1:
            raise UsageError(
                f"the graph takes {port}, and was given one of shape {tuple(tensor.shape)}"
            )
        return tensor

    def example(self, seed: int = 0) -> Inputs:
        """Noise, prepared as any other item; made to the graph's measure where nothing is known."""
        if self.prepare is not None:
            return self.preprocess(content_of(self.modality, seed, self.rate, self.frames))
        random = np.random.default_rng(seed)
        ports = {port.name: self._noise(port, random) for port in self.graph.inputs}
        return Inputs({name: torch.from_numpy(value) for name, value in ports.items()})

    def _noise(self, port: Port, random: np.random.Generator) -> Any:
        sizes = [None] if port.shape is None else list(port.shape)
        shape = [1, *sizes] if self.graph.bare else [1, *sizes[1:]]
        shape = [_LENGTHS[self.modality] if size is None else size for size in shape]
        if port.dtype.kind == "f":
            return (0.1 * random.standard_normal(shape)).astype(port.dtype)
        if "mask" in port.name:
            return np.ones(shape, port.dtype)
        return random.integers(0, 2 if port.dtype.kind == "b" else 8, shape).astype(port.dtype)

    @cached_property
    def cut(self) -> GraphCut:
        """The graph, dissected on a few inputs."""
        feeds = [
            as_feeds(self.graph, {n: t.numpy() for n, t in self.example(seed).tensors.items()})
            for seed in range(EXAMPLES)
        ]
        return GraphCut(self.graph, self.logits, self.output, feeds)

    def identity(self) -> dict[str, str]:
        """`weights` and `preprocessing` of the fingerprint."""
        total = hashlib.sha256()
        for path in [self.path, *external(self.path)]:
            total.update(path.read_bytes())
        return {
            "weights": f"{total.hexdigest()[:16]}/{self.logits}",
            "preprocessing": digest(self.settings),
            "truncation": "none" if self.seconds is None else f"first {self.seconds:g} s",
        }

    def describe(self) -> dict[str, Any]:
        """Facts for people and for a collection's runs."""
        return {
            "class": self.path.name,
            "modality": self.modality,
            "kind": self.kind,
            "classes": len(self.labels),
            "parameters": self.graph.parameters,
            "rate": self.rate,
            "origin": "onnx",
            "inputs": [str(port) for port in self.graph.inputs],
            "output": self.output,
            "logits": self.logits,
            **({"scores": self.scores} if self.scores else {}),
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """The file as it is, and what was asked of it.

        Raises:
            UsageError: nothing says how an item is prepared, or only a function without a name.
        """
        folder = Path(folder)
        self.preparation()
        if callable(self.asked.preprocess):
            raise UsageError(
                "a preprocessing function that was given as an object cannot be found again from a "
                "folder; name it as package.module:function"
            )
        shutil.copyfile(self.path, folder / MODEL)
        for path in external(self.path):
            target = folder / path.relative_to(self.path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        about = {
            **self.asked.recipe(),
            "origin": "onnx",
            "name": f"{MODEL}#{self.output}",
            "labels": self.labels,
            "kind": self.kind,
        }
        (folder / FILE).write_text(json.dumps(about, indent=2), "utf-8")


def parted(spec: str | Path) -> tuple[Path, str | None]:
    """(the file, the output that is named after `#`)."""
    name, mark, output = str(spec).partition(f"{SUFFIX}#")
    path = Path(name + SUFFIX if mark else name).expanduser().absolute()
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    return path, output or None


def open_onnx(spec: str | Path, asked: LoadOptions) -> OnnxClassifier:
    """`FILE.onnx` or `FILE.onnx#OUTPUT` as a classifier.

    Raises:
        ModelError: no ONNX file, or none of its outputs can be the logits.
        UsageError: what was asked does not fit the graph.
    """
    asked.require_kind()
    if asked.checkpoint is not None:
        raise UsageError(f"{spec} brings its own weights; --checkpoint goes with a factory")
    path, wanted = parted(spec)
    graph = OnnxGraph.read(path)
    known = names_in(graph.metadata)
    n_labels = len(label_list) if (label_list := asked.class_names or known) and not isinstance(
        label_list, str | os.PathLike) else None  # fmt: skip
    output = find_logits(graph, wanted, n_labels)
    logits, scores = before_scores(graph, output)
    prepare: Prepare | None = None
    settings: dict[str, Any] = {}
    if asked.preprocess is not None or asked.sample_rate is not None:
        prepare, settings = preparation(asked)
    classifier = OnnxClassifier(
        spec=f"{path}#{wanted}" if wanted else str(path),
        path=path,
        graph=graph,
        output=output,
        logits=logits,
        scores=scores,
        modality=asked.modality or ("audio" if asked.sample_rate else guessed(graph)),
        kind=asked.kind or (MULTI_LABEL if scores == "sigmoid" else SINGLE_LABEL),
        asked=asked,
        prepare=prepare,
        settings=settings,
        rate=asked.sample_rate,
    )
    _check_length(classifier)
    n_logits = _measured(classifier)
    given = class_names_of(asked.class_names, n_logits) or known
    classifier.labels = complete_labels(given, n_logits)
    return classifier


def _check_length(classifier: OnnxClassifier) -> None:
    """Refuse seconds that the graph does not take, and images without preprocessing."""
    length, rate, asked = classifier._length, classifier.rate, classifier.asked
    port = classifier.graph.inputs[0]
    if asked.preprocess is None and rate and (len(classifier.graph.inputs) > 1 or (
        port.shape is not None and len(port.shape) > 3) or port.dtype.kind != "f"):  # fmt: skip
        taken = ", ".join(map(str, classifier.graph.inputs))
        raise UsageError(
            f"{classifier.path.name} takes {taken}, which is no raw sound: give "
            "--preprocess package.module:function, which makes that of samples"
        )
    if length and rate and asked.seconds is not None and round(asked.seconds * rate) != length:
        raise UsageError(
            f"{classifier.path.name} takes exactly {length} samples, {length / rate:g} s at "
            f"{rate} Hz, and --seconds is {asked.seconds:g}"
        )


def _measured(classifier: OnnxClassifier) -> int:
    """K, from a run on one input."""
    graph = classifier.graph
    try:
        feeds = {n: t.numpy() for n, t in classifier.example().tensors.items()}
        session = Session(graph.encoder([classifier.logits]), bare=graph.bare)
        shape = session(as_feeds(graph, feeds))[0].shape
    except ValueError as error:
        raise ModelError(
            f"{classifier.path.name} takes {', '.join(map(str, graph.inputs))}, and does not run "
            f"on what it is given: {first_line(error)}"
        ) from error
    return int(shape[-1]) if len(shape) > 1 else 1


def guessed(graph: OnnxGraph) -> str:
    """What a graph takes, by the rank of its first input; the caller can say better."""
    port = graph.inputs[0]
    if port.dtype.kind in "iu" and port.shape is not None and len(port.shape) == 2:
        return "text"
    return {4: "image", 5: "video"}.get(len(port.shape or ()), "audio")


def modality_of_file(spec: str | Path) -> str:
    """What an ONNX file takes, without its weights."""
    path, _ = parted(spec)
    try:
        model = require("onnx").load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:  # protobuf's own
        raise ModelError(f"{path} is no ONNX file: {first_line(error)}") from error
    return guessed(OnnxGraph(model, path))


def names_in(metadata: Mapping[str, str]) -> list[str]:
    """The class names that a file's metadata carries: JSON, a Python literal, or one a line."""
    text = next((metadata[key] for key in _NAMES if metadata.get(key)), "")
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, Mapping):
            return [str(value[key]) for key in sorted(value, key=lambda key: int(key))]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [str(name) for name in value]
    lines = text.splitlines() if "\n" in text else text.split(",")
    return [name.strip() for name in lines if name.strip()]


def external(path: Path) -> list[Path]:
    """The files of weights that lie beside an ONNX file."""
    model = require("onnx").load(str(path), load_external_data=False)
    return sorted({path.parent / place for place in _places(model)})


def _places(model: Any) -> Iterator[str]:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield entry.value
