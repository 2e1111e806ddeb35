"""Batching policy: which padding keeps every item's vector unchanged, measured on the model.

The padding law: an item has the same vector and logits alone and in any batch. The policy that
holds it is found by trying each on short items, alone against together, and never by a list of
names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from penult.engines.base import Engine, Readout
from penult.engines.batching import (
    ALONE,
    EQUAL,
    MASK,
    MASKED_NORMS,
    PADDED,
    Batch,
    BatchPolicy,
    Tensors,
    fill_of,
)
from penult.engines.parity import relative_error
from penult.errors import REFUSALS
from penult.models.base import Classifier
from penult.models.patches import first_input
from penult.models.synthetic import content_of

BAR = 5e-6  # relative; half of what the law allows, since the probe's items are few and short

# Sizes of the probe's items relative to the usual example, each with another number of frames; a
# twin of the last one makes them four, for batches of equal lengths.
_SIZES = (0.313, 0.787, 0.471)
_SHORTER_FAILS = (1, 2, 4)  # a model that takes no item that short is tried with longer ones


def find_batch_policy(
    classifier: Classifier, engine: Engine, first: BatchPolicy | None = None, bar: float = BAR
) -> BatchPolicy:
    """The policy that holds the padding law for this model, readings and engine.

    Measured on short items, two of them of one size: each alone, then those that may share a batch
    together, in two orders. first: the policy that holds in torch, for an engine that runs the same
    passes: only it and lesser ones are tried. bar: the largest relative difference that the
    engine's precision allows.
    """
    taken = _taken(classifier, engine)
    if taken is None:
        return BatchPolicy()
    items, alone = taken
    errors: dict[str, float] = {}
    candidates = _candidates(classifier, items) if first is None else _lesser(first)
    for policy in candidates:
        chosen = slice(3) if policy.pads else slice(2, None) if policy.axes else slice(None)
        name = f"{policy.name}, left" if policy.left else policy.name
        errors[name] = disagreement(engine, policy, items[chosen], alone[chosen], bar)
        if errors[name] <= bar:
            shortest = min(policy.length(item) for item in items) if policy.pads else 0
            return BatchPolicy(policy.name, policy.axes, policy.fill, policy.left, shortest, errors)
    return BatchPolicy(ALONE, axes_of(items), errors=errors)


def disagreement(
    engine: Engine,
    policy: BatchPolicy,
    items: Sequence[Tensors],
    alone: Sequence[Readout],
    bar: float = float("inf"),
) -> float:
    """By how much items together differ from each alone, in both orders; inf: it does not run.
    Above the bar in the first order, the second one is not run."""
    worst = 0.0
    for order in (range(len(items)), range(len(items) - 1, -1, -1)):
        if worst > bar:
            break
        try:
            together = engine(policy.batch([items[i] for i in order]))
            together.require_rows(len(order), None)
        except REFUSALS:
            return float("inf")
        for row, index in enumerate(order):
            worst = max(worst, relative_error(together.row(row), alone[index].row(0)))
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


def _taken(classifier: Classifier, engine: Engine) -> tuple[list[Tensors], list[Readout]] | None:
    """Items that the model takes, and what it gives for each alone. One that takes a single length,
    and does not say so, is given four of the usual one; None where it takes none of them."""
    for items in (probe(classifier), _of_one_size(classifier)):
        with suppress(*REFUSALS):
            if items is not None:
                return items, [engine(Batch(item)) for item in items]
    return None


def _of_one_size(classifier: Classifier) -> list[Tensors] | None:
    with suppress(*REFUSALS):
        return [_item(classifier, seed, 1.0) for seed in range(len(_SIZES) + 1)]
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
    return first_input(classifier, content).tensors


def _candidates(classifier: Classifier, items: Sequence[Tensors]) -> Iterator[BatchPolicy]:
    """Policies, the most useful one first."""
    axes = axes_of(items)
    if axes and _masks(classifier, items):
        module = next(iter(classifier.structure.modules()), None)
        fill = fill_of(module) if module is not None else {}
        yield BatchPolicy(PADDED, axes, fill)
        yield BatchPolicy(PADDED, axes, fill, left=True)
        if module is not None and _group_norms(module):
            yield BatchPolicy(MASKED_NORMS, axes, fill)
    yield BatchPolicy(EQUAL, axes)


def _group_norms(module: Any) -> bool:
    from torch import nn

    return any(isinstance(one, nn.GroupNorm) for one in module.modules())


def _lesser(policy: BatchPolicy) -> Iterator[BatchPolicy]:
    """A policy that holds in another engine, and the lesser ones for where it does not here."""
    if policy.name != ALONE:
        yield policy
    if policy.pads:
        yield BatchPolicy(EQUAL, policy.axes)


def _masks(classifier: Classifier, items: Sequence[Tensors]) -> bool:
    """Whether the model takes a mask of the positions that are padding."""
    if any(name.endswith(MASK) for name in items[0]):
        return True
    from penult.models.module import arguments

    module = next(iter(classifier.structure.modules()), None)
    return module is not None and MASK in arguments(module)
