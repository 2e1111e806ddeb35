"""Parts of a classifier, measured on one short input: head, taps, and what the logits need of a
tap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from penult.errors import HeadNotFound, TapError, listed
from penult.tracing.boundary import find_boundary
from penult.tracing.certificate import POWER, TOLERANCE, Certificate
from penult.tracing.forward import SplitTarget, relative
from penult.tracing.head import VIEWS, Head, find_head, logits_of
from penult.tracing.inputs import CallInputs
from penult.tracing.living import TracedTensor
from penult.tracing.randomness import sources, states_of, words
from penult.tracing.spots import INPUT, Tap
from penult.tracing.taps import find_taps, tap_at
from penult.tracing.trace import Address, Op, TensorRead, Trace, record, run_swapped


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where things are in a model.

    head: None where none was found; refusal then says why. taps: by name. behind: modules that
    run behind the backbone tap, so that the embedder does not need them. certificate: the proof of
    the head, where there is one. random: what is drawn on the way to a tap, by its name.
    """

    head: tuple[str, ...] | None
    refusal: str
    after: tuple[str, ...]
    taps: Mapping[str, Tap]
    logits: tuple[int, ...]
    behind: frozenset[str]
    certificate: Certificate | None = None
    random: Mapping[str, str] = field(default_factory=dict)

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

    base: the module whose first output is the backbone's. output: which of several float outputs
    holds the logits. named: the module that the user calls head.

    Raises:
        HeadNotFound: the model returns no logits.
    """
    trace = record(module, kwargs=tensors)
    anatomy = anatomy_of(module, trace, base, output, named)
    if anatomy.random and _is_seeded(module, tensors, trace):
        anatomy = replace(anatomy, random={})
    return anatomy


def _is_seeded(module: nn.Module, tensors: Mapping[str, torch.Tensor], trace: Trace) -> bool:
    """Whether another pass draws the same random numbers, because the model sets the seed."""
    return states_of(record(module, kwargs=tensors)) == states_of(trace)


def anatomy_of(
    module: nn.Module,
    trace: Trace,
    base: str | None,
    output: str | int | None = None,
    named: str | None = None,
) -> Anatomy:
    """The parts of a model, from a recorded pass; as `dissect`.

    Raises:
        HeadNotFound: the model returned no logits.
    """
    trace = replace(trace, output=logits_of(trace.output, output))
    head, refusal = locate(trace, named)
    taps = find_taps(trace, head, module, base)
    drawn = {
        name: listed(words(sources(trace, _read_at(trace, tap))), 3) for name, tap in taps.items()
    }
    return Anatomy(
        head=head.names if head else None,
        refusal=refusal,
        after=head.after if head else (),
        taps=taps,
        logits=tuple(trace.output.shape),
        behind=_behind(trace, taps.get("backbone")),
        random={name: found for name, found in drawn.items() if found},
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
        refuse_random(name, anatomy.random.get(name, ""))
        return anatomy.taps[name]
    if name in dict(module.named_modules()) and name:
        trace = record(module, kwargs=tensors)
        tap = tap_at(trace, name)
        drawn = listed(words(sources(trace, _read_at(trace, tap))), 3)
        if drawn and not _is_seeded(module, tensors, trace):
            refuse_random(name, drawn)
        return tap
    known = [tap for tap in anatomy.taps if tap not in layers]
    if layers:
        known.append(f"{layers[0]} … {layers[-1]}")
    if not known:
        why = anatomy.refusal or "no part of it was found"
        raise TapError(
            f"this model has no tap {name!r}, since {why}; "
            "name one of its modules (penult inspect shows them)"
        )
    raise TapError(
        f"this model has no tap {name!r}; it has {', '.join(known)}, or name one of its modules "
        "(penult inspect shows them)"
    )


def refuse_random(name: str, drawn: str) -> None:
    """Refuse a tap that random numbers reach. drawn: the operations that draw them, if any do.

    Raises:
        TapError: what draws them, and what would work.
    """
    if drawn:
        raise TapError(
            f"tap {name!r} gives another vector in every pass, since random numbers reach it "
            f"({drawn}): read a tap in front of these, or turn them off in the model (a functional "
            "dropout takes training=self.training)"
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


Statement = Literal["sufficient", "partial", "unused", "not proved"]


def state(
    target: SplitTarget, example: CallInputs, taps: Sequence[Tap], given: CallInputs | None = None
) -> dict[str, Statement]:
    """Run another input with a tap's tensor taken from the example, and compare the logits.

    One recorded pass over the example finds every tap's tensor, a second one reads them where they
    are large, one is over the other input, and one for each tap has its tensor exchanged. given:
    the other input, where the caller has one. `not proved`: the logits of the two inputs do not
    differ enough to tell, or the pass over the other one runs elsewhere.

    Raises:
        TapError: the example does not come by a tap.
    """
    mine, swaps = target.from_trace(example, partial(_swaps, taps, target.output))
    other, theirs = _other(target, example, given, mine)
    if other is None or theirs is None:
        return {tap.name: "not proved" for tap in taps}
    return {
        tap.name: _compared(_exchanged(target, other, swap), mine, theirs)
        if isinstance(swap, _Swap)
        else swap
        for tap, swap in zip(taps, swaps, strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Swap:
    """Where a tensor is met first after it was made: which operand of an operation, its value."""

    address: Address
    number: int
    value: Tensor


def _swaps(
    taps: Sequence[Tap], output: str | int | None, trace: Trace, _: CallInputs
) -> tuple[Tensor, list[_Swap | Statement]]:
    """(the logits, for each tap where to exchange its tensor, or the statement where no pass is
    needed).

    Raises:
        ValuesNotKept: the trace lacks the tensors.
    """
    logits = logits_of(trace.output, output)
    read = trace.read_of(logits)
    met = [_met(trace, tap, None if read is None else read.tensor) for tap in taps]
    trace.values.require(
        op.reads[number] for op, number in (one for one in met if isinstance(one, tuple))
    )
    return logits.clone(), [
        one
        if isinstance(one, str)
        else _Swap(one[0].address, one[1], trace.values.of(one[0].reads[one[1]]).clone())
        for one in met
    ]


def _met(trace: Trace, tap: Tap, logits: TracedTensor | None) -> tuple[Op, int] | Statement:
    """The operand that is a tap's tensor first after it was made.

    Not where it leaves the module: what ran inside may have used it by then. BERT's pooler reads
    the last hidden states in the base model that returns both.
    """
    same, made = _aliases(_read_at(trace, tap))
    for op in trace.ops[0 if made is None else made.index + 1 :]:
        if op.name in VIEWS and any(tensor in same for tensor in op.writes):
            continue  # another view of the same numbers
        for number, operand in enumerate(op.reads):
            if operand.tensor in same:
                return op, number
    return "sufficient" if logits in same else "unused"


def _read_at(trace: Trace, tap: Tap) -> TensorRead:
    """The tensor that the tap names, as it was in this pass."""
    if tap.operation:
        ops = [op for op in trace.ops if (op.name, op.module) == (tap.operation, tap.module)]
        if len(ops) > tap.later:
            op = ops[-1 - tap.later]
            reads = op.reads if tap.side == INPUT else [*map(op.result, range(len(op.writes)))]
            if tap.index < len(reads):
                return reads[tap.index]
    else:
        calls = trace.calls_of(tap.module)
        if len(calls) > tap.call:
            call = calls[-1 - tap.call]
            reads = call.inputs if tap.side == INPUT else call.outputs
            if tap.index < len(reads):
                return reads[tap.index]
    raise TapError(f"{tap.name!r} was not reached by the example")


def _aliases(read: TensorRead) -> tuple[set[TracedTensor], Op | None]:
    """(the tensors that are views of the same numbers, what made those)."""
    same, maker = {read.tensor}, read.producer
    while maker is not None and maker.name in VIEWS:
        source = next((r for r in maker.reads if r.depends), None)
        if source is None or source.tensor.numel() != read.tensor.numel():
            break
        same |= {source.tensor, *maker.writes}
        maker = source.producer
    return same, maker


def _compared(mixed: Tensor | None, mine: Tensor, theirs: Tensor) -> Statement:
    if mixed is None:
        return "not proved"
    if relative(mixed, mine) <= TOLERANCE:
        return "sufficient"
    return "unused" if relative(mixed, theirs) <= TOLERANCE else "partial"


def _other(
    target: SplitTarget, example: CallInputs, given: CallInputs | None, mine: Tensor
) -> tuple[CallInputs | None, Tensor | None]:
    """Another input whose logits differ enough, and its logits; None where there is none."""
    for inputs, _ in target.others(example, given):
        try:
            theirs = target.logits(inputs)
        except Exception:  # noqa: S112  the model has its own idea of what an input is
            continue
        if POWER * TOLERANCE <= relative(theirs, mine) < float("inf"):
            return inputs, theirs
    return None, None


def _exchanged(target: SplitTarget, other: CallInputs, swap: _Swap) -> Tensor | None:
    """The other input's logits with the tensor exchanged; None where the pass never came by."""
    copy = target.copy(other)
    swaps = {swap.address: [(swap.number, swap.value)]}
    try:
        with torch.no_grad():
            output = run_swapped(target.model, copy.args, copy.kwargs, swaps)
            return None if output is None else logits_of(output, target.output).clone()
    except (RuntimeError, HeadNotFound):  # the tensor has another shape for the other input
        return None
