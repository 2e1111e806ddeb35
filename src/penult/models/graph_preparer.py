"""An item as the inputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penult.errors import DecodeError, UsageError
from penult.models.base import NO_RATE, Inputs, InputSpec, digest
from penult.models.byte_preparation import CONFIG, preparation_beside
from penult.models.module import (
    fixed_length,
    own_function,
    patches_of,
    prepared_words,
    truncation_of,
)
from penult.models.options import LoadOptions, Preprocessing, preprocessing_of
from penult.models.patches import TIMES, example_patch, patched, patches_refused
from penult.models.synthetic import content_of
from penult.tracing.graph import Graph, Port

# How long an axis is made that a graph leaves free.
_LENGTHS = {"audio": 16_000, "image": 224, "video": 16, "text": 8, "array": 16, "bytes": 2048}


class GraphPreparer:
    """An item as the inputs of a graph; see `penult.models.base.Preparer`. Where no preprocessing
    is known, examples are noise of the graph's own shapes, and items are refused."""

    def __init__(
        self,
        graph: Graph,
        input: InputSpec,
        preprocessing: Preprocessing | None,
        raw: bool,
    ) -> None:
        """raw: samples go in as they are."""
        self.input = input
        self._graph = graph
        self._preprocessing = preprocessing
        self._raw = raw

    def __call__(self, content: Any) -> Inputs:
        """Decoded content as the graph's inputs.

        Raises:
            UsageError: no preprocessing is known, or it does not give the graph's inputs.
        """
        self.input.require()
        assert self._preprocessing is not None
        content, truncated = fixed_length(content, self.input)
        value = self._preprocessing.function(content)
        values = value if isinstance(value, tuple) else (value,)
        named = dict(value) if isinstance(value, Mapping) else dict(
            zip((port.name for port in self._graph.inputs), values, strict=False)
        )  # fmt: skip
        if self.input.patches is None:
            return Inputs(self._tensors(named), truncated)
        times = named.pop(TIMES, None)
        return patched(self._tensors(named), truncated, times)

    def _tensors(self, named: Mapping[str, Any]) -> dict[str, Tensor]:
        ports = self._graph.inputs
        tensors = {}
        for port in ports:
            if port.name not in named:
                raise UsageError(
                    f"the preprocessing gives {', '.join(named) or 'nothing'}, and the graph "
                    f"takes {', '.join(p.name for p in ports)}"
                )
            tensors[port.name] = self._with_axes(port, torch.as_tensor(named[port.name]))
        return tensors

    def _with_axes(self, port: Port, given: Tensor) -> Tensor:
        """The tensor with a batch axis in front, and raw sound in the rank that the graph takes."""
        bare, tensor = self._graph.bare, given
        several = self.input.patches is not None
        free = tensor.ndim + (not several)
        rank = free if port.shape is None else len(port.shape) + bare
        if self._raw and tensor.ndim == 1 and rank == 3:
            tensor = tensor[:, None] if port.shape and port.shape[-1] == 1 else tensor[None]
        if tensor.ndim == rank - 1 and not several:
            tensor = tensor[None]
        if self.input.modality == "array" and not _fits(port, tensor, bare):
            raise DecodeError(
                f"an array of shape {tuple(given.shape)} does not fit: the graph takes {port}"
            )
        if tensor.ndim == rank and len(tensor) != 1 and not several:
            raise UsageError(patches_refused(port.name, tuple(tensor.shape)))
        if tensor.ndim != rank:
            raise UsageError(
                f"the graph takes {port}, and was given one of shape {tuple(tensor.shape)}"
                + (": with --patches its first axis counts the patches" if several else "")
            )
        return tensor

    def code(self) -> dict[str, str]:
        """Hashes of the code of a user's own function."""
        return {} if self._preprocessing is None else own_function(self._preprocessing)

    def example(self, seed: int) -> Inputs:
        """Noise, prepared as any other item; of the graph's shapes where nothing is known."""
        one = self.input
        if one.patches is not None:
            return example_patch(self, one, seed)
        if self._preprocessing is not None and one.modality != "array":
            return self(content_of(one.modality, seed, one.rate, one.frames))
        random = np.random.default_rng(seed)
        loud = (
            1.0 if seed % 3 == 2 else 0.1
        )  # what is quiet for a graph moves its logits too little
        ports = {port.name: self._noise(port, random, loud) for port in self._graph.inputs}
        return Inputs({name: torch.from_numpy(value) for name, value in ports.items()})

    def _noise(self, port: Port, random: np.random.Generator, loud: float) -> Any:
        sizes = [None] if port.shape is None else list(port.shape)
        shape = [1, *sizes] if self._graph.bare else [1, *sizes[1:]]
        kind = self.input.modality
        if kind == "array" and port.dtype.kind == "f" and len(shape) <= 2:
            kind = "audio"  # a free length of nothing but numbers is that of a sound
        shape = [_LENGTHS[kind] if size is None else size for size in shape]
        if (own := port.quantisation) is not None:  # all that its integers can stand for
            bounds = np.iinfo(own.dtype)
            return own.shown(random.integers(bounds.min, bounds.max, shape, endpoint=True))
        if port.dtype.kind == "f":
            return (loud * random.standard_normal(shape)).astype(port.dtype)
        if "mask" in port.name:
            return np.ones(shape, port.dtype)
        return random.integers(0, 2 if port.dtype.kind == "b" else 8, shape).astype(port.dtype)

    def digest(self) -> str:
        """Hash of the settings."""
        return digest({} if self._preprocessing is None else self._preprocessing.settings)

    def truncation(self) -> str:
        """`none`, or the seconds that are kept."""
        return truncation_of(self.input)

    def description(self) -> str:
        """By which function, and to which length; empty where nothing is known."""
        own = self._preprocessing
        return "" if own is None else prepared_words(own, self.input)


def _fits(port: Port, tensor: Tensor, bare: bool) -> bool:
    """Whether one array has the sizes that a graph fixes."""
    if port.shape is None:
        return True
    shape = port.shape if bare else port.shape[1:]
    pairs = zip(shape, tensor.shape[1:], strict=False)
    same = len(shape) == tensor.ndim - 1 and all(one in (None, other) for one, other in pairs)
    return same and len(tensor) == 1


def preparer_of(path: Path, graph: Graph, options: LoadOptions) -> GraphPreparer:
    """The preprocessing of the options.

    Raises:
        UsageError: the graph takes no raw sound, or not of so many seconds.
    """
    rate, seconds = options.sample_rate, options.seconds
    own = _own_preparation(path, graph, options)
    known = options.preprocess is not None or rate is not None or own is not None
    raw = options.preprocess is None
    takes = ", ".join(map(str, graph.inputs))
    port = graph.inputs[0]
    if raw and rate and (len(graph.inputs) > 1 or port.dtype.kind != "f" or (
        port.shape is not None and len(port.shape) > 3)):  # fmt: skip
        raise UsageError(
            f"{path.name} takes {takes}, which is no raw sound: give --preprocess "
            "package.module:function, which makes that of samples"
        )
    if raw and rate and port.shape:
        length = max((size for size in port.shape[not graph.bare :] if size), default=None)
        if length and seconds is not None and round(seconds * rate) != length:
            raise UsageError(
                f"{path.name} takes exactly {length} samples, {length / rate:g} s at {rate} Hz, "
                f"and --seconds is {seconds:g}"
            )
        seconds = seconds if seconds is not None or not length else length / rate
    remedy = "--sample-rate if that is raw sound, or --preprocess package.module:function"
    if options.modality == "bytes":
        remedy = f"--preprocess package.module:function, or {CONFIG} beside it"
    refusal = "" if known else (
        f"nothing says how an item is prepared for {path.name}, which takes {takes}: give {remedy}"
    )  # fmt: skip
    modality = options.modality or ("audio" if rate else "array" if own else guessed(graph))
    if known and rate is None and modality == "audio":
        refusal = NO_RATE
    preprocessing = own or (preprocessing_of(options) if known else None)
    beginning = seconds is not None
    patches = patches_of(options, preprocessing)
    spec = InputSpec(
        modality, rate, seconds=seconds, refusal=refusal, beginning=beginning, patches=patches
    )
    return GraphPreparer(graph, spec, preprocessing, raw)


def _own_preparation(path: Path, graph: Graph, options: LoadOptions) -> Preprocessing | None:
    """How arrays and files are prepared, of which no user has to say more."""
    if options.preprocess is not None or options.sample_rate is not None:
        return None
    if options.modality == "bytes":
        found = preparation_beside(path)
        return None if found is None else Preprocessing(found, found.settings)
    if options.modality == "array" or (options.modality is None and graph.takes_arrays):
        return Preprocessing(_as_it_is, {"array": True})
    return None


def _as_it_is(content: Any) -> Any:
    return content


def guessed(graph: Graph) -> str:
    """What a graph takes, by the rank of its first input; the caller can say better."""
    port = graph.inputs[0]
    if port.dtype.kind in "iu" and port.shape is not None and len(port.shape) == 2:
        return "text"
    return {4: "image", 5: "video"}.get(len(port.shape or ()), "audio")
