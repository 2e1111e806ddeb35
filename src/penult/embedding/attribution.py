"""Attribution: a similarity, or a class score, as a sum over the positions of one item, which are
frames of sound or patches of a picture.

A pooling that scales with its hidden states is the sum over positions of gradient times hidden
state (Euler's theorem for functions of degree one); of `mean` that is each position's share of the
mean, as in class activation maps (Zhou et al., 2016). Whether the parts sum to the whole is
measured for each item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from penult.analysis.space import Space, unit
from penult.data.items import Item
from penult.data.regions import Region
from penult.embedding.embedder import Embedder
from penult.embedding.receptive_fields import OpenedItem, PositionPlaces, open_item, places_of
from penult.embedding.runner import open_engine
from penult.engines.base import Reading
from penult.engines.pooling import pool
from penult.errors import TapError, UsageError
from penult.locking import lock_of
from penult.models.base import Classifier
from penult.tracing.head import logits_of
from penult.tracing.hooks import captured
from penult.tracing.spots import INPUT, OUTPUT, Spot, Tap

Floats = npt.NDArray[np.float64]

SIMILARITY, LOGIT = "similarity", "logit"
EXACT = 1e-4  # of the largest of whole, parts and rest, by which an exact sum may miss the whole
_FALSE_ZERO = 1e-12  # of the largest value: noise that gives a constant channel a gradient


@dataclass(frozen=True, slots=True)
class Attribution:
    """A score of one item by its positions.

    name: of what is looked for. kind: `similarity`, and score is the cosine to it; `logit`, and
    score is that of a class. parts: (P,) of the score, one
    for each position. rest: of the score, which no position has. exact: whether parts and rest sum
    to the score; else the parts are first-order effects (gradient × input), and `rest` is what
    they leave. places: where the positions lie in the item. opened: the item, as it was decoded.
    """

    name: str
    kind: str
    score: float
    parts: Floats
    rest: float
    exact: bool
    places: PositionPlaces
    opened: OpenedItem

    @property
    def kept(self) -> float | None:
        """Seconds of the sound that the model takes, where that is not all."""
        return self.opened.kept

    @property
    def unplaced(self) -> float:
        """The sum of the parts of positions that see no place of the item, such as class tokens."""
        return float(self.parts[~self.places.placed].sum())

    def over_time(self) -> tuple[Floats, Floats]:
        """(n + 1,) edges in seconds, (n,) the sum of the parts in each cell of time."""
        return self.places.edges, self.places.by_time(self.parts)

    def segments(self) -> list[AttributionSegment]:
        """The stretches of sound in which each cell has more than its even share of the score,
        those first that have most beyond it."""
        edges, parts = self.over_time()
        even = max(0.0, float(parts.sum())) / max(1, len(parts))
        found: list[tuple[float, AttributionSegment]] = []
        first = None
        for at, high in enumerate([*(parts > even), False]):
            if high and first is None:
                first = at
            elif not high and first is not None:
                inside = parts[first:at]
                density = float(inside.mean() * len(parts))
                span = float(edges[first]), float(edges[at])
                one = AttributionSegment(*span, float(inside.sum()), density)
                found.append((float((inside - even).sum()), one))
                first = None
        return [one for _, one in sorted(found, key=lambda pair: -pair[0])]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult explain --json` prints it."""
        return {
            "of": self.name,
            "kind": self.kind,
            "score": self.score,
            "parts": self.parts.tolist(),
            "rest": self.rest,
            "exact": self.exact,
            "seconds_kept": self.kept,
            **self.places.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class AttributionSegment:
    """A stretch of sound. start, end: seconds in the recording. part: of the score. density: the
    score of an item whose every position gave as much as these do on average."""

    start: float
    end: float
    part: float
    density: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def attribute_similarity(
    embedder: Embedder,
    entry: tuple[Item, Region],
    like: npt.ArrayLike,
    space: Space | None = None,
    name: str = "",
) -> Attribution:
    """The cosine between an item and a point, by the positions of the item.

    like: (d',) a point of `space`, which is None for raw vectors, (d,). name: of the point.

    Raises:
        TapError: the embedder joins taps of different positions, or has none to tell apart.
        UsageError: a model of texts or videos, one that takes an item in patches, or pooling none.
        ItemError: the item cannot be opened.
    """
    _check(embedder)
    if any(one.pooling == "none" for one in embedder.runner.readings):
        raise UsageError("pooling none keeps every position: there is no one vector to explain")
    opened = open_item(embedder, entry)
    states = _hidden_states(embedder, opened)
    vector = np.concatenate([_pooled(*one) for one in states])
    direction, constant, length = _direction(vector, like, space)
    parts, at = np.zeros(_positions(states)), 0
    for reading, hidden, mask in states:
        width = len(_pooled(reading, hidden, mask))
        parts += _parts(reading, hidden, mask, direction[at : at + width])
        at += width
    score = (float(direction @ vector) + constant) / length
    filled = _filled(states)
    parts[filled] += constant / filled.sum()  # what the space subtracts, from all alike
    parts, places = parts / length, places_of(embedder, opened)
    missing = score - float(parts.sum())
    exact = abs(missing) <= EXACT * max(abs(score), float(np.abs(parts).sum()))
    rest = 0.0 if exact else missing
    return Attribution(name, SIMILARITY, score, parts, rest, exact, places, opened)


def attribute_logit(
    embedder: Embedder, entry: tuple[Item, Region], label: str | None = None
) -> Attribution:
    """A class's logit of an item, by the positions of the embedder's tap: gradient × hidden state.
    label: of the class; None: the one with the largest logit.

    It is exact where the logit is a bias and something that scales with the hidden states, as where
    a linear head follows their mean: the scaled hidden states are tried.

    Raises:
        TapError: the tap is at an operation, or has no positions. UsageError: the classifier has no
            such label, or is no torch module. ItemError: the item cannot be opened.
    """
    _check(embedder)
    classifier = embedder.classifier
    if label is not None and label not in classifier.labels:
        raise UsageError(
            f"{classifier.spec} has no class {label!r}: its {len(classifier.labels)} are "
            f"{', '.join(classifier.labels[:8])}{', …' if len(classifier.labels) > 8 else ''}"
        )
    if classifier.structure.engine != "torch":
        raise UsageError(
            f"{classifier.spec} is a graph, through which no gradient runs: teach the class "
            "(penult teach) and explain it from there, or give --like EXAMPLE"
        )
    reading = embedder.runner.readings[0]
    if len(embedder.runner.readings) > 1 or reading.tap.operation:
        raise TapError(
            f"a class's score is explained at one module's output, and not at {embedder.tap.name!r}"
            "; name one with --tap, such as backbone"
        )
    opened = open_item(embedder, entry)
    device = embedder.device.split(",")[0]
    module = classifier.module.to(device).eval()
    tensors = {
        name: torch.as_tensor(one).to(device) for name, one in opened.ready.inputs.tensors.items()
    }
    probe = _LogitProbe(classifier, module, tensors, reading.tap)
    with lock_of(module):
        spot, logits = probe.plain()
        number = int(logits.argmax()) if label is None else classifier.labels.index(label)
        score, parts = probe.parts(spot, number, 1.0)
        half, half_parts = probe.parts(spot, number, 0.5)
    rest = score - float(parts.sum())
    scale = max(abs(score), float(np.abs(parts).sum()), abs(rest), 1e-30)
    # Behind a norm a logit does not change with the scale, while its parts do not become smaller.
    missed = abs(half - (rest + 0.5 * float(parts.sum()))), np.abs(half_parts - parts / 2).sum()
    exact = bool(max(missed) <= EXACT * scale)
    name = classifier.labels[number]
    places = places_of(embedder, opened)
    return Attribution(name, LOGIT, score, parts, rest, exact, places, opened)


def _check(embedder: Embedder) -> None:
    model = embedder.classifier.input
    if model.modality not in ("audio", "image"):
        raise UsageError(
            f"explain shows the times of a sound and the places of a picture, and "
            f"{embedder.classifier.spec} takes {model.modality}"
        )
    if model.patches is not None:
        raise UsageError(
            f"{embedder.classifier.spec} takes an item in patches, each by itself: predict with "
            "--patches rows scores each"
        )


def _hidden_states(
    embedder: Embedder, opened: OpenedItem
) -> list[tuple[Reading, Tensor, Tensor | None]]:
    """Of each reading the hidden states (1, …), in double precision, and the mask of its
    positions."""
    runner = embedder.runner
    device = embedder.device.split(",")[0]
    engine: Any = open_engine(runner.classifier, runner.readings, device)
    found = engine.hidden_states(runner.batch([opened.ready]))
    states = [
        (reading, hidden.detach().double().cpu(), None if mask is None else mask.cpu())
        for reading, (hidden, mask) in zip(runner.readings, found, strict=True)
    ]
    joined = [hidden.ndim < 3 for _, hidden, _ in states]
    if all(joined):
        raise TapError(_no_positions(embedder.tap.name))
    if any(joined) or len({len(_rows(*one[:2])) for one in states}) > 1:
        raise TapError(
            f"the taps {embedder.tap.name} have different positions, so no position has a share of "
            "all; explain one of them (--tap)"
        )
    return states


def _no_positions(tap: str) -> str:
    return (
        f"tap {tap!r} has one vector for the whole item, and no positions to tell apart; read an "
        "earlier one, such as --tap backbone (penult inspect lists them)"
    )


def _rows(reading: Reading, hidden: Tensor) -> Tensor:
    """(P, C)."""
    return hidden.movedim(reading.tap.channel, -1).flatten(1, -2)[0]


def _positions(states: Sequence[tuple[Reading, Tensor, Tensor | None]]) -> int:
    return len(_rows(*states[0][:2]))


def _filled(states: Sequence[tuple[Reading, Tensor, Tensor | None]]) -> npt.NDArray[np.bool_]:
    """(P,) the positions that are pooled."""
    mask = states[0][2]
    return np.ones(_positions(states), bool) if mask is None else mask[0].numpy().astype(bool)


def _pooled(reading: Reading, hidden: Tensor, mask: Tensor | None) -> Floats:
    """(D,)."""
    found: Floats = pool(hidden, reading.pooling, reading.tap.channel, mask)[0].numpy()
    return found


def _parts(reading: Reading, hidden: Tensor, mask: Tensor | None, direction: Floats) -> Floats:
    """(P,) the share of each position in the product of the pooled vector with a direction (D,)."""
    if len(_rows(reading, hidden)) == 1:  # a deviation of one value has no gradient
        return np.array([_pooled(reading, hidden, mask) @ direction])
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).double()
    leaf = hidden + _FALSE_ZERO * float(hidden.abs().max()) * noise
    leaf.requires_grad_()
    pooled = pool(leaf, reading.pooling, reading.tap.channel, mask)[0]
    product = pooled @ torch.from_numpy(direction)
    (gradient,) = torch.autograd.grad(product, leaf)
    shares: Floats = _rows(reading, gradient * leaf.detach()).sum(dim=1).numpy()
    return shares


def _direction(
    vector: Floats, like: npt.ArrayLike, space: Space | None
) -> tuple[Floats, float, float]:
    """(w, c, n): the cosine in the space is (w · vector + c) / n. For one item every step of a
    space is affine: what `l2` divides by is a number."""
    moved, lengths = vector[None], []
    steps = space.steps if space is not None else ()
    for step in steps:
        lengths.append(float(np.linalg.norm(moved)) or 1.0)
        moved = step(moved)
    direction = unit(np.asarray(like, np.float64)[None])[0]
    cosine_of = float(moved[0] @ direction)
    for step, length in zip(reversed(steps), reversed(lengths), strict=True):
        direction = step.back(direction) / (length if step.mean is None else 1.0)
    constant = cosine_of - float(direction @ vector)
    return direction, constant, float(np.linalg.norm(moved[0])) or 1.0


@dataclass(frozen=True, slots=True)
class _LogitProbe:
    """Passes of one item through a module whose hidden states at a tap are looked at."""

    classifier: Classifier
    module: nn.Module
    tensors: dict[str, Tensor]
    tap: Tap

    def plain(self) -> tuple[Spot, Tensor]:
        """Where the hidden states are replaced, its call counted from the first one, and the logits
        (K,)."""
        watched, read = _origins(self.module, self.tap), captured(self.module, [self.tap.spot])
        with torch.no_grad(), read as caught, watched as inside:
            logits = self._logits()
        if caught()[0].ndim < 3:
            raise TapError(_no_positions(self.tap.name))
        call = caught.counts[self.tap.spot.place] - 1 - self.tap.call
        return inside.get(call) or replace(self.tap.spot, call=call), logits

    def parts(self, spot: Spot, number: int, scale: float) -> tuple[float, Floats]:
        """A logit where the hidden states are scaled, and (P,) gradient × hidden state.

        Raises:
            TapError: the logit does not depend on the hidden states there.
        """
        with torch.enable_grad(), _replaced(self.module, spot, scale) as leaf:
            logit = self._logits()[number]
            gradient = None
            if logit.requires_grad:
                (gradient,) = torch.autograd.grad(logit, leaf[0], allow_unused=True)
        if gradient is None:
            raise TapError(
                f"the logits do not come from what tap {self.tap.name!r} gives ({self.tap.place}); "
                "read an earlier one, such as --tap layer:-1 (penult inspect lists them)"
            )
        shares = (gradient * leaf[0]).detach().double().movedim(self.tap.channel, -1)
        return float(logit.detach()), shares.flatten(1, -2)[0].sum(dim=1).cpu().numpy()

    def _logits(self) -> Tensor:
        """(K,), of logits per frame their mean."""
        found = logits_of(self.module(**self.tensors), self.classifier.structure.output)
        return found.reshape(-1, len(self.classifier.labels)).mean(dim=0)


@contextmanager
def _origins(module: nn.Module, tap: Tap) -> Iterator[dict[int, Spot]]:
    """For each call of a tap's module where the tensor that it gives was given last inside of it: a
    module that hands its hidden states on beside their mean has made the mean from that one."""
    found: dict[int, Spot] = {}
    last: dict[int, tuple[Callable[[], object], Spot]] = {}  # by the tensor's address
    calls: Counter[str] = Counter()
    handles = []

    def see(name: str, output: Any) -> None:
        tensors = [one for one in tree_flatten(output)[0] if isinstance(one, Tensor)]
        call = calls[name]
        calls[name] += 1
        if name == tap.module:
            given = tensors[tap.index] if tap.index < len(tensors) else None
            origin, spot = last.get(id(given), (None, None))
            if spot is not None and origin is not None and origin() is given:
                found[call] = spot
            return
        for index, one in enumerate(tensors):
            last[id(one)] = ref(one), Spot(name, OUTPUT, index, call)

    if tap.side == OUTPUT:
        part = module.get_submodule(tap.module) if tap.module else module
        for inside, one in part.named_modules(prefix=tap.module):
            hook = partial(lambda name, _, args, output: see(name, output), inside)
            handles.append(one.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(module: nn.Module, spot: Spot, scale: float) -> Iterator[list[Tensor]]:
    """Inside, one call of a module (counted from the first one) passes its hidden states on as a
    leaf, scaled; the list then has the leaf."""
    leaves: list[Tensor] = []
    seen = 0

    def swap(values: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen - 1 != spot.call:
            return None
        flat, form = tree_flatten(values)
        tensors = [at for at, one in enumerate(flat) if isinstance(one, Tensor)]
        at = tensors[spot.index]
        leaves.append((flat[at].detach() * scale).requires_grad_())
        flat[at] = leaves[0] * 1.0  # what is changed in place later is no leaf
        return tree_unflatten(flat, form)

    part = module.get_submodule(spot.module) if spot.module else module
    if spot.side == INPUT:
        hook = part.register_forward_pre_hook(
            lambda _, args, named: swap((args, named)), with_kwargs=True
        )
    else:
        hook = part.register_forward_hook(lambda _, args, output: swap(output))
    try:
        yield leaves
    finally:
        hook.remove()
