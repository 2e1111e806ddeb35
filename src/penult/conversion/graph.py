"""An embedder as one module of tensors: what comes in → vector, logits, taught classes.

Front end, masks, masked norms, pooling and space are inside, so that a program that knows nothing
of Penult gets the same numbers. Knows no runtime and no file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penult.conversion.base import CLASSES, LOGITS, VECTOR
from penult.conversion.front_end import FrontEnd, front_end
from penult.conversion.taught import ClassesModule, SpaceModule
from penult.embedding.embedder import Embedder, fingerprint_of
from penult.engines.batching import MASK, MASKED_NORMS
from penult.engines.graph_export import CutModule, Recipe
from penult.engines.recorded_graph import LENGTHS
from penult.errors import EngineError
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.fitted import FittedClasses
from penult.models.synthetic import noise

SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input. axes: the names of the axes that are free, by their numbers."""

    name: str
    example: Tensor
    axes: Mapping[int, str]

    @property
    def words(self) -> str:
        """`samples float32 (n, T)`."""
        sizes = enumerate(self.example.shape)
        shape = ", ".join(self.axes.get(at, str(size)) for at, size in sizes)
        kind = str(self.example.dtype).removeprefix("torch.")
        return f"{self.name} {kind} ({shape}{',' if self.example.ndim == 1 else ''})"


class EmbedderGraph(nn.Module):
    """A batch's inputs, in the order of `inputs` → the outputs, in the order of `outputs`: `vector`
    (n, d) in the embedder's space, `logits` (n, K), and `classes` (n, C) probabilities where some
    are taught.

    Of a clip that is shorter than the batch is long, and whose model bears no padding, all outputs
    are NaN: a wrong vector would look like any other.

    Raises:
        EngineError: a model that is no torch module, or a reading that no graph can have.
    """

    def __init__(self, embedder: Embedder, classes: FittedClasses | None = None) -> None:
        super().__init__()
        classifier, readings = embedder.classifier, embedder.runner.readings
        if classifier.structure.engine != "torch":
            raise EngineError(
                f"{classifier.spec} is run by {classifier.structure.engine}, and graphs are "
                "recorded from torch modules; the embedder's own folder holds it as it is"
            )
        if any(one.entry is not None for one in readings):
            raise EngineError("pooling over valid positions is measured anew for each length, "
                              "which no graph does; leave --pool-over valid out")  # fmt: skip
        if embedder.pooling == "none":
            raise EngineError("pooling none keeps every position; a graph gives one vector an item")
        self.policy = embedder._policy
        recipe = Recipe(classifier, readings, self.policy)
        self.names = recipe.names
        self.cut = CutModule(classifier, readings, self.names).eval()
        self.front: FrontEnd | None = front_end(classifier)
        self.inputs = self._sound(classifier.rate or 1) if self.front else self._arguments(recipe)
        self.space = SpaceModule(embedder.space) if embedder.space is not None else None
        self.classes = ClassesModule(classes) if classes is not None else None
        self.outputs = [VECTOR, LOGITS, *([CLASSES] if classes is not None else [])]

    @property
    def bears_padding(self) -> bool:
        """Whether items of different length may share a batch."""
        fixed = self.front is not None and self.front.fixed
        return fixed or self.policy.pads or not self.policy.axes

    def _sound(self, rate: int) -> list[GraphInput]:
        clips = [noise(seed, seconds, rate) for seed, seconds in enumerate((1.0, 0.7))]
        samples = torch.zeros(2, len(clips[0]))
        for row, clip in zip(samples, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(clip)
        if not self.bears_padding:
            samples[1] = torch.from_numpy(noise(1, 1.0, rate))
            clips[1] = clips[0]
        lengths = torch.tensor([len(clip) for clip in clips])
        axes = {0: "n", 1: "T"}
        return [GraphInput(SAMPLES, samples, axes), GraphInput(LENGTHS, lengths, {0: "n"})]

    def _arguments(self, recipe: Recipe) -> list[GraphInput]:
        """The model's own arguments, where what prepares them stays outside."""
        values = recipe.inputs.arrays(recipe.example)
        axes = dict(self.policy.axes)
        grows = next(iter(axes.values()), None)
        found = []
        for name, value in zip(recipe.names, values, strict=True):
            free = {0: "n"}
            axis = axes.get(name, grows if name == MASK else None)
            if axis is not None:
                free[axis] = "T"
            found.append(GraphInput(name, torch.from_numpy(value), free))
        return found

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        if self.front is None:
            return self._read(*values)
        samples, lengths = values
        found = self._read(*self._prepared(samples, lengths))
        if self.bears_padding:
            return found
        short = (lengths < samples.shape[1])[:, None]
        return tuple(value.masked_fill(short, torch.nan) for value in found)

    def _prepared(self, samples: Tensor, lengths: Tensor) -> list[Tensor]:
        assert self.front is not None
        tensors, own = self.front(samples, lengths)
        tensors[LENGTHS] = own
        if MASK in self.names and MASK not in tensors:
            first = tensors[self.names[0]]
            axis = self.policy.axes.get(self.names[0], first.ndim - 1)
            places = torch.arange(first.shape[axis], device=first.device)
            tensors[MASK] = (places[None] < own[:, None]).long()
        return [tensors[name] for name in self.names]

    def _read(self, *values: Tensor) -> tuple[Tensor, ...]:
        logits, *vectors = self.cut(*values)
        raw = torch.cat(vectors, dim=1)
        vector = raw if self.space is None else self.space(raw)
        if self.classes is None:
            return vector, logits
        return vector, logits, self.classes(raw)

    @property
    def padding(self) -> str:
        """How items of different length share a batch, in words."""
        if self.front is not None and self.front.fixed:
            return "none needed: the model takes every clip at one length"
        if not self.policy.axes:
            return "none needed: the model takes every item in one size"
        if self.policy.pads:
            side = "left" if self.policy.left else "right"
            norms = ", group norms over each item's own positions" * (
                self.policy.name == MASKED_NORMS
            )
            return f"{side}, with zeros{norms}" if self.front else f"{side}, with a mask{norms}"
        if self.front is not None:
            return "not allowed: a clip shorter than the batch gives NaN; give equal lengths"
        return "not allowed: give items of equal length together, or one at a time"


def taught_classes(
    classes: ClassSpace | str | os.PathLike[str], embedder: Embedder
) -> FittedClasses:
    """Taught classes, or those of a file of `penult teach`, for vectors of this embedder.

    Raises:
        LabelsError: no such file. FingerprintMismatch: examples of another embedder.
    """
    space = classes if isinstance(classes, ClassSpace) else ClassSpace.load(classes)
    space.source.check(fingerprint_of(embedder), embedder.classifier.spec)
    return space.fitted
