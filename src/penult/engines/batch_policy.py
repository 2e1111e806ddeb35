"""How items may share a forward pass so that none can tell: measured on the model itself.

The padding law says that an item gives the same vector and logits alone and in any batch. Which
way of batching holds it is found by trying each on short items, alone against together, and never
by a list of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from penult.engines.base import Engine, Readout
from penult.engines.batching import MASK, Batch, Tensors, collate, fill_of, with_mask
from penult.errors import REFUSALS
from penult.models.base import Classifier
from penult.models.module import arguments
from penult.models.synthetic import content_of
from penult.tracing.forward import relative

BAR = 5e-6  # relative; half of what the law allows, since the probe's items are few and short
PADDED, MASKED_NORMS, EQUAL, ALONE = "padded", "masked norms", "equal lengths", "alone"

WORDS = {
    PADDED: "padded together, with the model's own mask",
    MASKED_NORMS: "padded together, with masks and group norms over each item's own frames",
    EQUAL: "together where their inputs have the same shape",
    ALONE: "one at a time",
}

# Sizes of the probe's items relative to the usual example, each with another number of frames; a
# twin of the last one makes them four.
_SIZES = (0.313, 0.787, 0.471)
_SHORTER_FAILS = (1, 2, 4)  # a model that takes no item that short is tried with longer ones


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How items may share a forward pass.

    name: `padded`, `masked norms`, `equal lengths` or `alone`. axes: for each input that grows
    with the item, the axis that does. fill: what these are padded with. left: padded in front.
    shortest: the least length for which padding was proved. errors: for each way that was tried,
    the largest relative difference between alone and together (inf: it does not run).
    """

    name: str = ALONE
    axes: Mapping[str, int] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    left: bool = False
    shortest: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def pads(self) -> bool:
        """Whether items of different length may share a batch."""
        return self.name in (PADDED, MASKED_NORMS)

    @property
    def words(self) -> str:
        """How items are batched, in words."""
        return WORDS[self.name]

    def length(self, tensors: Tensors) -> int:
        """An item's length along its growing axis; 1 where all items are of one size."""
        return next((tensors[name].shape[axis] for name, axis in self.axes.items()), 1)

    def kind(self, tensors: Tensors) -> tuple[Any, ...]:
        """Items of equal kinds may share a batch."""
        free = self.pads and self.length(tensors) >= self.shortest
        axes = self.axes if free else {}
        shapes = []
        for name, value in tensors.items():
            fixed = [size for axis, size in enumerate(value.shape) if axis != axes.get(name)]
            shapes.append((name, value.dtype, tuple(fixed)))
        return (free, *shapes)

    def batch(self, items: Sequence[Tensors]) -> Batch:
        """One batch of items of one kind."""
        lengths = [self.length(item) for item in items]
        if len(set(lengths)) < 2:
            return Batch(collate(items, {}, {}))
        axis = next(iter(self.axes.values()))
        axes = {**dict.fromkeys([MASK], axis), **self.axes}
        padded = collate([with_mask(item, axis) for item in items], axes, self.fill, self.left)
        return Batch(padded, lengths, self.left, self.name == MASKED_NORMS)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        document = asdict(self)
        document["errors"] = {n: e if np.isfinite(e) else None for n, e in self.errors.items()}
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> BatchPolicy:
        """The law that `to_dict` wrote."""
        errors = {n: np.inf if e is None else float(e) for n, e in document["errors"].items()}
        return cls(**{**document, "errors": errors})


def find_batch_policy(
    classifier: Classifier, engine: Engine, first: BatchPolicy | None = None, bar: float = BAR
) -> BatchPolicy:
    """The way of batching that holds the padding law for this model, readings and engine.

    Measured on four short items: each alone, then all of them together in two orders. first: what
    holds in torch, for an engine that runs the same passes: only it and lesser ones are tried. bar:
    the largest relative difference that the engine's precision allows.
    """
    items = probe(classifier)
    if items is None:
        return BatchPolicy()
    alone = [engine(Batch(item)) for item in items]
    errors: dict[str, float] = {}
    candidates = _candidates(classifier, items) if first is None else _lesser(first)
    for law in candidates:
        chosen = slice(None) if law.pads or not law.axes else slice(2, None)
        name = f"{law.name}, left" if law.left else law.name
        errors[name] = disagreement(engine, law, items[chosen], alone[chosen])
        if errors[name] <= bar:
            shortest = min(law.length(item) for item in items) if law.pads else 0
            return BatchPolicy(law.name, law.axes, law.fill, law.left, shortest, errors)
    return BatchPolicy(ALONE, axes_of(items), errors=errors)


def disagreement(
    engine: Engine, law: BatchPolicy, items: Sequence[Tensors], alone: Sequence[Readout]
) -> float:
    """By how much items together differ from each alone, in both orders; inf: it does not run."""
    worst = 0.0
    for order in (range(len(items)), range(len(items) - 1, -1, -1)):
        try:
            together = engine(law.batch([items[i] for i in order]))
        except REFUSALS:
            return float("inf")
        for row, index in enumerate(order):
            worst = max(worst, difference(together.row(row), alone[index].row(0)))
    return worst


def difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference between two items' values, relative to the largest of `other`."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = torch.as_tensor(np.asarray(a)), torch.as_tensor(np.asarray(b))
        if not b.isfinite().all():
            return float("inf")
        worst = max(worst, relative(a, b))
    return worst


def axes_of(items: Sequence[Tensors]) -> dict[str, int]:
    """For each input whose shape differs between items, the one axis in which it does."""
    axes = {}
    for name in items[0]:
        shapes = np.array([item[name].shape for item in items])
        differs = [int(axis) for axis in np.flatnonzero((shapes != shapes[0]).any(axis=0))]
        if len(differs) == 1:
            axes[name] = differs[0]
    return axes


def probe(classifier: Classifier) -> list[Tensors] | None:
    """Four prepared items of different content, the last two of one shape; None if the model takes
    no short synthetic item."""
    for factor in _SHORTER_FAILS:
        try:
            items = [_item(classifier, seed, factor * size) for seed, size in enumerate(_SIZES)]
            return [*items, _twin(classifier, items[-1], factor * _SIZES[-1])]
        except REFUSALS:
            continue
    return None


def _twin(classifier: Classifier, item: Tensors, size: float) -> Tensors:
    """Another item of the same shape: a text's length in tokens follows from its words."""
    shapes = [value.shape for value in item.values()]
    for seed in range(len(_SIZES), 64):
        other = _item(classifier, seed, size)
        if [value.shape for value in other.values()] == shapes:
            return other
    return item


def _item(classifier: Classifier, seed: int, size: float) -> Tensors:
    content = content_of(classifier.modality, seed, classifier.rate, classifier.input.frames, size)
    return classifier.preprocess(content).tensors


def _candidates(classifier: Classifier, items: Sequence[Tensors]) -> Iterator[BatchPolicy]:
    """Ways of batching, the most useful one first."""
    axes = axes_of(items)
    if axes and _masks(classifier, items):
        module = next(iter(classifier.structure.modules()), None)
        fill = fill_of(module) if module is not None else {}
        yield BatchPolicy(PADDED, axes, fill)
        yield BatchPolicy(PADDED, axes, fill, left=True)
        if module is not None and any(isinstance(m, nn.GroupNorm) for m in module.modules()):
            yield BatchPolicy(MASKED_NORMS, axes, fill)
    yield BatchPolicy(EQUAL, axes)


def _lesser(law: BatchPolicy) -> Iterator[BatchPolicy]:
    """A law that is known to hold elsewhere, and what is left where it does not hold here."""
    if law.name != ALONE:
        yield law
    if law.pads:
        yield BatchPolicy(EQUAL, law.axes)


def _masks(classifier: Classifier, items: Sequence[Tensors]) -> bool:
    """Whether the model can be told which positions are padding."""
    if any(name.endswith(MASK) for name in items[0]):
        return True
    module = next(iter(classifier.structure.modules()), None)
    return module is not None and MASK in arguments(module)
