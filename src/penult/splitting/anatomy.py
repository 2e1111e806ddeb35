"""A classifier's parts, measured on one short input: head, taps, the shape of its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from penult.errors import HeadNotFound, TapError
from penult.splitting.boundary import find_boundary
from penult.splitting.certificate import Certificate
from penult.splitting.head import Head, find_head, logits_of
from penult.splitting.taps import Tap, find_taps, tap_at
from penult.splitting.trace import Trace, record


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where things are in a model.

    head: None where none was found; refusal then says why. taps: by name. behind: modules that
    run behind the backbone tap, so that the embedder does not need them. certificate: the proof of
    the head, where it was asked for.
    """

    head: tuple[str, ...] | None
    refusal: str
    after: tuple[str, ...]
    taps: Mapping[str, Tap]
    logits: tuple[int, ...]
    behind: frozenset[str]
    certificate: Certificate | None = None

    @property
    def mixes_layers(self) -> bool:
        """Whether the head sees a learned mix of layers and not the last hidden states alone."""
        return "weighted" in self.taps


def dissect(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    base: str | None,
    output: str | int | None = None,
    named: str | None = None,
) -> Anatomy:
    """Run the model once on `tensors` and find its parts.

    output: which of several float outputs is meant. named: the module that the user calls head.
    """
    trace = record(module, kwargs=tensors)
    trace.output = logits_of(trace.output, output)
    head, refusal = locate(trace, named)
    taps = find_taps(trace, head, module, base)
    return Anatomy(
        head=head.names if head else None,
        refusal=refusal,
        after=head.after if head else (),
        taps=taps,
        logits=tuple(trace.output.shape),
        behind=_behind(trace, taps.get("backbone")),
    )


def locate(trace: Trace, named: str | None = None) -> tuple[Head | None, str]:
    """(the head, why there is none). named: the module that the user calls so."""
    try:
        found = find_head(trace) if named is None else find_boundary(trace, None, named).head
    except HeadNotFound as error:
        return None, str(error)
    return found, ""


def choose_tap(
    anatomy: Anatomy, module: nn.Module, tensors: Mapping[str, torch.Tensor], name: str
) -> Tap:
    """The tap called `name`: one of the named ones, `layer:-1` for the last layer, or a module.

    Raises:
        TapError: there is no such tap; the message lists those that there are.
    """
    layers = [tap for tap in anatomy.taps if tap.startswith("layer:")]
    if name.startswith("layer:-") and name[7:].isdigit() and 0 < int(name[7:]) <= len(layers):
        name = layers[-int(name[7:])]
    if name in anatomy.taps:
        return anatomy.taps[name]
    if name in dict(module.named_modules()) and name:
        return tap_at(record(module, kwargs=tensors), name)
    known = [tap for tap in anatomy.taps if tap not in layers]
    if layers:
        known.append(f"{layers[0]} … {layers[-1]}")
    raise TapError(
        f"this model has no tap {name!r}; it has {', '.join(known)}, or name one of its modules "
        "(penult inspect shows them)"
    )


def _behind(trace: Trace, backbone: Tap | None) -> frozenset[str]:
    """Modules that run only after the backbone's hidden states are there."""
    if backbone is None:
        return frozenset()
    calls = trace.calls_of(backbone.module)
    if not calls:
        return frozenset()
    done = calls[-1 - backbone.call].last
    late = {call.module for call in trace.calls if call.first >= done and call.module}
    return frozenset(late - {call.module for call in trace.calls if call.first < done})
