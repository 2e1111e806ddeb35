"""Fill a module with weights, and refuse those that do not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor, nn

from penult.errors import IncompleteWeights, listed
from penult.models.leftovers import Way, notes_of, refuse_adapters, refuse_needed, sort
from penult.models.weight_files import Weights
from penult.models.wrappers import plain_name
from penult.tracing.head import logits_of
from penult.tracing.randomness import sources, states_of, words
from penult.tracing.scores import class_count
from penult.tracing.trace import TensorRead, Trace, record

log = logging.getLogger(__name__)

# What wrappers put in front of every name: DataParallel, torch.compile, Lightning and others.
PREFIXES = ("", "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "classifier.")
_PARALLEL = re.compile(r"(?<=\.)module\.")


@dataclass(frozen=True, slots=True)
class Filling:
    """How a module was filled. loose: name → why (`missing`, or both shapes) of what was not.
    spare: the checkpoint's tensors without a place. source: the file, as it was named. trained: the
    architecture that the file names."""

    loose: Mapping[str, str] = field(default_factory=dict)
    spare: Mapping[str, Tensor | None] = field(default_factory=dict)
    source: str = ""
    trained: str = ""


def fitted(module: nn.Module, weights: Weights) -> Weights:
    """The weights with the prefix taken off (or put on) that fits most names of the module."""
    own = {plain_name(name): name for name in module.state_dict()}
    plain = {plain_name(name): tensor for name, tensor in weights.items()}
    parallel = {_PARALLEL.sub("", name): tensor for name, tensor in plain.items()}
    drops = [*dict.fromkeys(a + b for a, b in product(PREFIXES, PREFIXES))]
    options = [
        (names, drop, put)
        for names in ([plain, parallel] if parallel.keys() != plain.keys() else [plain])
        for drop in drops
        for put in PREFIXES[:4]
    ]
    # The first of equals wins: the plain names, then single prefixes.
    best = max(options, key=lambda option: len(_renamed(*option).keys() & own.keys()))
    return {own.get(name, name): tensor for name, tensor in _renamed(*best).items()}


def _renamed(weights: Weights, drop: str, put: str) -> dict[str, Tensor]:
    """Names without one prefix and with another one; of two with one name, that which had it."""
    if not drop:
        return {put + name: tensor for name, tensor in weights.items()}
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(drop)}
    outside = {put + name: tensor for name, tensor in weights.items() if name not in inside}
    return outside | {put + name.removeprefix(drop): tensor for name, tensor in inside.items()}


def fill(module: nn.Module, weights: Weights) -> Filling:
    """Put weights into a module, in place.

    Returns what could not be filled, and what was left over. Whether that matters is for the trace
    to say: only what the logits depend on does.
    """
    fitting = fitted(module, weights)
    loose: dict[str, str] = {}
    good: dict[str, Tensor] = {}
    own = module.state_dict()
    for name, value in own.items():
        stored = fitting.get(name)
        if stored is None:
            loose[name] = "missing"
        elif stored.shape != value.shape:
            loose[name] = (
                f"{tuple(stored.shape)} in the checkpoint, {tuple(value.shape)} in the model"
            )
        else:
            good[name] = stored
    if not good:
        raise IncompleteWeights(
            f"no weight of the checkpoint fits {type(module).__name__}: it has "
            f"{listed(weights, 3)}, the model has {listed(own, 3)}"
        )
    module.load_state_dict(good, strict=False)
    return Filling(loose, {name: t for name, t in fitting.items() if name not in own})


def built(
    factory: Callable[..., nn.Module], weights: Weights | None, classes: int | None = None
) -> tuple[nn.Module, Filling]:
    """Call a factory, with as many classes as the weights have, and fill what it makes.

    The number of classes is read off the weights: where they differ from the model's own in their
    first axis only, and all in the same way, that axis counts the classes.
    """
    module = factory() if classes is None else factory(num_classes=classes)
    if weights is None:
        return module, Filling()
    fitting = fitted(module, weights)
    counts = {
        fitting[name].shape[0]
        for name, own in module.state_dict().items()
        if name in fitting
        and own.ndim > 0
        and fitting[name].shape != own.shape
        and fitting[name].shape[1:] == own.shape[1:]
    }
    if len(counts) == 1 and classes is None:
        # A factory may take no number of classes: then what does not fit is told by name.
        with suppress(TypeError):
            module = factory(num_classes=counts.pop())
    return module, fill(module, weights)


@dataclass(frozen=True, slots=True)
class Filled:
    """A model whose weights were found to be whole. shape: of its logits. facts: on tensors of the
    checkpoint that it has no place for; see `penult.models.leftovers`."""

    shape: tuple[int, ...]
    facts: Mapping[str, Any]

    @property
    def n_logits(self) -> int:
        """K."""
        return class_count(self.shape)


_whole: ContextVar[int | None] = ContextVar("whole", default=None)


@contextmanager
def found_whole(n_logits: int) -> Iterator[None]:
    """For models of files that an earlier run found to fill them: no pass is recorded to see it
    again. n_logits: K."""
    token = _whole.set(n_logits)
    try:
        yield
    finally:
        _whole.reset(token)


def require_filled(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    filling: Filling,
    spec: str,
    output: str | int | None = None,
) -> Filled:
    """Refuse a model whose logits depend on weights that were never loaded, or would depend on
    weights that it has no place for.

    output: which of several holds the logits. Run on `tensors` once: a parameter matters if the
    logits were computed from it, a leftover one if it lies inside of a module that they were
    computed in.

    Raises:
        IncompleteWeights: each such parameter is named.
    """
    if (classes := _whole.get()) is not None and not filling.loose:
        return Filled((1, classes), {})
    trace = record(module, kwargs=tensors)
    logits = logits_of(trace.output, output)
    root = trace.read_of(logits)
    assert root is not None
    used = trace.weights_used([root])
    facts: dict[str, Any] = {}
    if filling.spare:
        way = _way(module, {op.module for op in trace.upstream([root])}, used)
        left = sort(filling.spare, way)
        source = filling.source or spec
        refuse_adapters(left, source, way.modules)
        _refuse_missing(module, used, filling, spec)
        refuse_needed(left, source, type(module).__name__, way.modules, filling.trained)
        facts = left.facts(way.modules)
        if left.uncertain:
            log.warning(
                "%s: %s", source, notes_of({"uncertain_weights": facts["uncertain_weights"]})[0]
            )
    _refuse_missing(module, used, filling, spec)
    if drawn := _draws(module, tensors, trace, root):
        facts = {**facts, "random_scores": drawn}
        log.warning("%s: %s", spec, notes_of({"random_scores": drawn})[0])
    return Filled(tuple(logits.shape), facts)


def _draws(
    module: nn.Module, tensors: Mapping[str, Tensor], trace: Trace, root: TensorRead
) -> list[str]:
    """What draws random numbers that reach the logits, unless every pass draws the same ones."""
    drawn = [*words(sources(trace, root))]
    if drawn and states_of(record(module, kwargs=tensors)) == states_of(trace):
        return []
    return drawn


def _way(module: nn.Module, ran: set[str], used: set[str]) -> Way:
    """The modules of a model, without what wrappers put into their names."""
    sizes = {size for name, value in module.state_dict().items() if name in used
             for size in value.shape}  # fmt: skip
    # A module's weights may be used without the module being called.
    ran = ran | {name.rpartition(".")[0] for name in used}
    leading = {parent for name in ran for parent in _parents(plain_name(name))}
    # An Identity that holds a place counts as absent: nothing ran in it.
    there = {
        name
        for full, child in module.named_modules(remove_duplicate=False)
        if (name := plain_name(full)) in leading or next(iter(child.state_dict()), None) is not None
    }
    return Way(there, leading, sizes)


def _parents(name: str) -> Iterator[str]:
    """A module's path and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _refuse_missing(module: nn.Module, used: set[str], filling: Filling, spec: str) -> None:
    bad = {name: why for name, why in filling.loose.items() if name in used}
    if bad:
        listed = "; ".join(f"{name}: {why}" for name, why in sorted(bad.items())[:12])
        more = f"; and {len(bad) - 12} more" if len(bad) > 12 else ""
        other = ", ".join(sorted(filling.spare)[:8])
        raise IncompleteWeights(
            f"{spec!r} does not fill {type(module).__name__}; its logits would come from random "
            f"weights. {listed}{more}."
            + (f" The checkpoint has instead: {other}." if other else "")
            + " Build the class that it was trained with: --checkpoint with a factory of yours, or "
            "penult.load(module) in Python"
        )
