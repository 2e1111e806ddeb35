"""What every engine gives: for one batch, in one forward pass, the logits and each reading."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from penult.engines.batching import Batch, BatchPolicy
from penult.engines.graph_cache import Graphs, subject
from penult.engines.pooling import find_pooling
from penult.errors import EngineError, UsageError, cause
from penult.models.base import Classifier

if TYPE_CHECKING:
    from penult.tracing.spots import Tap

FloatArray = npt.NDArray[np.float32]

EXACT, FAST = "exact", "fast"
TURBO = "turbo"  # of collections and embedders of 0.1.0, in eight bits: `fast` holds it, and is run


@dataclass(frozen=True, slots=True)
class Precision:
    """How near vectors and logits are to those of torch in fp32, measured item by item.

    cosine: of two vectors of one item, at least. logits: their difference, relative to the largest
    logit of the item, at most; of `fast` it is measured and shown, and not bounded, since what it
    does to a label depends on the model. batching: by how much an item alone and the same item in a
    batch may differ, relative to the largest value.
    """

    name: str
    cosine: float
    logits: float
    batching: float


PRECISIONS = {
    EXACT: Precision(EXACT, 1 - 1e-6, 1e-4, 1e-5),
    FAST: Precision(FAST, 0.9999, float("inf"), 5e-2),
    TURBO: Precision(TURBO, 0.999, float("inf"), 5e-2),
}


class Reading(NamedTuple):
    """What an engine is asked to give: a tap and how to pool it.

    entry: the tap in front of the first block, if only those positions are pooled that a clip
    fills of an input of fixed length.
    """

    tap: Tap
    pooling: str
    entry: Tap | None = None

    @property
    def pool_over(self) -> str:
        """Which positions are pooled: `all`, or the `valid` ones."""
        return "all" if self.entry is None else "valid"

    @property
    def key(self) -> list[str]:
        """As text, without the names of the taps."""
        where = f"{self.tap.place}, tensor {self.tap.index}, call {self.tap.call}"
        pooling = find_pooling(self.pooling).key or self.pooling
        return [where, pooling, "all" if self.entry is None else self.entry.place]


class Readout(NamedTuple):
    """The results of a batch. logits: for each item, (…, K) as the model returned them for it,
    padding left out. vectors: one (B, d) per reading."""

    logits: list[FloatArray]
    vectors: list[FloatArray]

    def row(self, index: int) -> list[FloatArray]:
        """One item's logits, and its vector of each reading."""
        return [self.logits[index], *(vector[index] for vector in self.vectors)]

    def require_rows(self, items: int, classes: int | None) -> None:
        """Refuse a readout that has not exactly one row for each item of the batch.

        classes: K, where logits were asked for.

        Raises:
            EngineError: which result has how many rows, or numbers.
        """
        counts = {"logits": len(self.logits)}
        counts |= {f"reading {at + 1}": len(rows) for at, rows in enumerate(self.vectors)}
        for name, count in counts.items():
            if count != items:
                raise EngineError(
                    f"the model gives {count} rows of {name} for a batch of {items}, and every "
                    "item needs exactly one: rows could not be told apart. A model whose first "
                    "axis is not that of the items cannot be run here"
                )
        for row in self.logits if classes is not None else ():
            if row.ndim == 0 or row.shape[-1] != classes:
                raise EngineError(
                    f"the model gives {row.shape[-1] if row.ndim else 'a single number'} for an "
                    f"item, and it gave {classes} logits when it was opened"
                )


class Engine(Protocol):
    """Runs one batch; holds no state between batches. Opening one for a reading that it can't
    give is a TapError."""

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """The logits and the readings of every item of the batch. Where no logits are wanted, an
        engine may stop behind the last reading, and gives empty ones."""


def nothing(batch: Batch) -> list[FloatArray]:
    """In place of the logits, where none were asked for."""
    return [np.empty(0, np.float32) for _ in range(len(batch))]


def one_row_each(logits: Any, items: int, classes: int) -> Any:
    """Logits (B, …, K), an array or a tensor, of what a model returned for B items: one number for
    each as (B, 1), and the axes put back that a squeeze took of a single item."""
    if logits.ndim == 0 or (logits.ndim == 1 and classes == 1):
        return logits.reshape(-1, 1)
    if logits.ndim == 1 and items == 1:
        return logits[None]
    if logits.ndim > 2 and logits.shape[-1] == 1 and math.prod(logits.shape) == items * classes:
        return logits.reshape(items, classes)  # maps of one pixel
    return logits


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine is opened for.

    device: where, such as `cpu` or `cuda:0`. arithmetic: one of those in its `EngineSpec`. policy:
    how items share a batch in torch: from it follows whether a recorded graph has a mask and masked
    norms. graphs: where recorded graphs are stored; None: in the user's cache.
    """

    classifier: Classifier
    readings: Sequence[Reading]
    device: str = "cpu"
    arithmetic: str = "f32"
    policy: BatchPolicy = field(default_factory=BatchPolicy)
    graphs: Graphs | None = None

    def with_arithmetic(self, arithmetic: str) -> EngineRequest:
        """The same in another arithmetic."""
        return replace(self, arithmetic=arithmetic)

    def stored_graphs(self) -> Graphs:
        """Where recorded graphs are stored."""
        return self.graphs or Graphs(subject(self.classifier))


# Of Linux, where a driver has at least one of these.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


def may_be_here(kind: str) -> bool:
    """Whether it is worth importing torch to ask for a kind of device."""
    if kind == "mps":
        return sys.platform == "darwin"
    return kind != "cuda" or sys.platform != "linux" or any(map(os.path.exists, _DRIVERS))


def torch_device(name: str) -> str:
    """A device that torch has here.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "cpu":
        return name
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {name!r} here: {cause(error)}") from error
    return name


# Arrays in the order of a graph's inputs → its outputs: logits, then a vector for each reading.
RunGraph = Callable[[list[npt.NDArray[Any]]], Sequence[FloatArray]]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: where it runs, in which arithmetic, and how it is opened.

    name: as `--engine` takes it. open: gives the engine for a request, or raises EngineError where
    it cannot run the model. devices: kinds of device (cpu, cuda, mps), the one that `auto` prefers
    first. arithmetic: for each precision, what it allows beyond the stricter precisions; tried in
    this order. runs: the native engine of the classifiers that it runs: `torch` (modules) or
    `onnxruntime` (graphs). auto: whether `--engine auto` tries it. modules, install: what it
    imports, and what `pip install` needs for that. reopen: gives what runs one of its
    recorded graphs, from its folder and the arithmetic, without the model. has_device: gives a
    device by name if it is here, and raises UsageError if not.
    """

    name: str
    open: Callable[[EngineRequest], Engine]
    devices: tuple[str, ...] = ("cpu",)
    arithmetic: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {EXACT: ("f32",)})
    runs: str = "torch"
    auto: bool = True
    modules: tuple[str, ...] = ()
    install: str = ""
    reopen: Callable[[Path, str], RunGraph] | None = None
    has_device: Callable[[str], str] = torch_device

    def select_device(self, device: str) -> str:
        """The device by name, `auto` for the first that is here; several of them, with commas
        between.

        Raises:
            UsageError: this machine, or the engine, has no such device.
        """
        if "," in device:
            return ",".join(self.select_device(one.strip()) for one in device.split(","))
        if device == "auto":
            return self._first_device()
        if device.partition(":")[0] not in self.devices:
            raise UsageError(
                f"no device {device!r} for engine {self.name!r}, which runs on "
                f"{', '.join(self.devices)}"
            )
        return self.has_device(device)

    def _first_device(self) -> str:
        for kind in filter(may_be_here, self.devices):
            try:
                return self.has_device(kind)
            except UsageError:
                continue
        raise UsageError(
            f"engine {self.name!r} runs on {', '.join(self.devices)}, and none of these is here"
        )
