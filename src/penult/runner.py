"""Items through a classifier: open a region, prepare it, run it; one failure never stops the rest.

Knows how to open what a source gives, and which readings it was asked for; no store, no faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penult.classifiers.base import Classifier
from penult.engines.torch import Reading, Readout, TorchEngine, pick_device
from penult.errors import (
    DecodeError,
    EmptyItem,
    ItemError,
    PenultError,
    RegionError,
    StoreError,
    TooLong,
    TooShort,
    UsageError,
    first_line,
)
from penult.media import audio, image, text, video
from penult.regions import Region
from penult.sources import Failure, Item

FloatArray = npt.NDArray[np.float32]

# What preprocessing and models raise for an input that they cannot take.
_REFUSALS = (ValueError, RuntimeError, IndexError, TypeError, AssertionError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Content:
    """A region's decoded content, and where in the item it lies (seconds; None: no time axis)."""

    values: Any
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one region gave. vectors: (d,) for each reading. logits: as the model returned them,
    (…, K). start, end: seconds from the item's beginning, where it has a time axis."""

    item: Item
    region: Region
    vectors: tuple[FloatArray, ...]
    logits: FloatArray
    start: float | None = None
    end: float | None = None
    truncated: float | None = None

    @property
    def vector(self) -> FloatArray:
        """The vector of the first reading."""
        return self.vectors[0]

    @property
    def class_logits(self) -> FloatArray:
        """(K,): where a model gives logits per frame, their mean over the frames."""
        flat: FloatArray = self.logits.reshape(-1, self.logits.shape[-1])
        one: FloatArray = flat[0] if len(flat) == 1 else flat.mean(axis=0)
        return one


Engine = Callable[[Mapping[str, torch.Tensor]], Readout]


def open_engine(classifier: Classifier, readings: Sequence[Reading], device: str) -> Engine:
    """What runs the classifier: torch for its module, ONNX Runtime for its graph."""
    if classifier.engine == "torch":
        return TorchEngine(classifier, readings, device)
    from penult.classifiers.from_onnx import OnnxClassifier
    from penult.engines.onnxruntime import OnnxEngine

    if not isinstance(classifier, OnnxClassifier):
        raise UsageError(f"there is no engine {classifier.engine!r}")
    classifier.preparation()  # refused now, and not once for each item
    return OnnxEngine(classifier, readings, device)


def device_of(classifier: Classifier, wanted: str = "auto") -> str:
    """The device that is meant, of those that the classifier's engine has.

    Raises:
        UsageError: this machine has no such device.
    """
    if classifier.engine == "torch":
        return pick_device(wanted)
    from penult.engines.onnxruntime import pick_onnx_device

    return pick_onnx_device(wanted)


class Runner:
    """Runs regions through a classifier, one at a time, for the given readings."""

    def __init__(
        self, classifier: Classifier, readings: Sequence[Reading], device: str = "cpu"
    ) -> None:
        self.classifier = classifier
        self._engine = open_engine(classifier, readings, device)

    def stream(
        self, pairs: Iterable[tuple[Item, Region] | Failure], max_seconds: float | None = None
    ) -> Iterator[Outcome | Failure]:
        """Run one region after the other; a region that fails is handed on as a Failure.

        Regions are run one at a time: nothing that else is in the folder can change a vector.
        """
        for pair in pairs:
            if isinstance(pair, Failure):
                yield pair
                continue
            item, region = pair
            try:
                yield self.one(item, region, max_seconds)
            except ItemError as error:
                yield Failure(
                    item.id,
                    region.key,
                    type(error).__name__,
                    str(error),
                    item.size,
                    item.mtime_ns,
                )

    def one(self, item: Item, region: Region, max_seconds: float | None = None) -> Outcome:
        """Run one region of one item.

        Raises:
            ItemError: it cannot be decoded, or the model cannot take it.
        """
        try:
            content = self.open(item, region, max_seconds)
        except PenultError:
            raise
        except MemoryError as error:
            raise TooLong("does not fit into memory; set --max-seconds or cut it") from error
        except (OSError, *_REFUSALS) as error:  # what no reader foresaw must not end the run
            raise DecodeError(f"cannot be read: {first_line(error)}") from error
        truncated, readout = self._run(content)
        vectors = tuple(vector[0] for vector in readout.vectors)
        if not all(np.isfinite(vector).all() for vector in (*vectors, readout.logits)):
            raise EmptyItem("the model gave values that are not finite")
        return Outcome(
            item=item,
            region=region,
            vectors=vectors,
            logits=readout.logits[0],
            start=content.start,
            end=content.end,
            truncated=truncated,
        )

    def open(self, item: Item, region: Region, max_seconds: float | None = None) -> Content:
        """Decode one region: samples, image, frames or text."""
        kind = self.classifier.modality
        if kind == "audio":
            clip = audio.load(
                item.content,
                region,
                self.classifier.rate or 0,
                max_seconds=max_seconds,
                source_rate=item.rate,
            )
            start = region.start or 0.0
            end = start + clip.seconds if region.end is None else region.end
            return Content(clip.samples, start, end)
        if kind == "video":
            frames = video.load(item.content, region, self.classifier.frames or 16)
            return Content(frames, region.start, region.end)
        if region.kind != "whole":
            raise RegionError(f"{kind} has no time axis to cut {region.key!r} from")
        return Content(image.load(item.content) if kind == "image" else text.load(item.content))

    def _run(self, content: Content) -> tuple[float | None, Readout]:
        try:
            inputs = self.classifier.preprocess(content.values)
            return inputs.truncated, self._engine(inputs.tensors)
        except torch.OutOfMemoryError as error:
            raise StoreError(f"the device ran out of memory: {first_line(error)}") from error
        except PenultError:
            raise
        except _REFUSALS as error:
            raise self._refused(content, error) from error

    def _refused(self, content: Content, error: Exception) -> ItemError:
        if self.classifier.modality == "audio" and len(content.values) < self.shortest:
            rate = self.classifier.rate or 1
            return TooShort(
                f"{len(content.values) / rate:.3f} s is shorter than what the model needs "
                f"({self.shortest / rate:.3f} s)"
            )
        return ItemError(f"the model cannot take it: {first_line(error)}")

    @cached_property
    def shortest(self) -> int:
        """The fewest samples that the model takes, measured; 0 if a second is not enough."""
        rate = self.classifier.rate or 0
        clip = (0.1 * np.random.default_rng(0).standard_normal(rate)).astype(np.float32)
        low, high = 0, len(clip)
        if not self._takes(clip):
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._takes(clip[:middle]) else (middle, high)
        return high

    def _takes(self, clip: FloatArray) -> bool:
        try:
            readout = self._engine(self.classifier.preprocess(clip).tensors)
        except _REFUSALS:
            return False
        return all(np.isfinite(values).all() for values in (*readout.vectors, readout.logits))
