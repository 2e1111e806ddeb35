"""Measure what the logits need of a tap: all of what they need, a part of it, or nothing.

A statement is no proof: any set of tensors that cuts the model is sufficient, deep or shallow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from penult.errors import HeadNotFound, TapError
from penult.splitting.certificate import POWER, TOLERANCE
from penult.splitting.head import VIEWS, logits_of
from penult.splitting.running import Question, relative
from penult.splitting.taps import INPUT, Tap
from penult.splitting.trace import Address, Op, Read, Trace, address_of, run_swapped
from penult.splitting.variants import Inputs

Statement = Literal["sufficient", "partial", "unused", "not proved"]


def state(
    question: Question, example: Inputs, taps: Sequence[Tap], given: Inputs | None = None
) -> dict[str, Statement]:
    """Run another input with a tap's tensor taken from the example, and compare the logits.

    One recorded pass over the example finds every tap's tensor, one is over the other input, and
    one for each tap has its tensor exchanged. given: the other input, where the caller has one.
    `not proved`: the logits of the two inputs do not differ enough to tell, or the pass over the
    other one runs elsewhere.

    Raises:
        TapError: the example does not come by a tap.
    """
    trace, _ = question.record(example)
    mine = logits_of(trace.output, question.output)
    swaps = [_swap(trace, tap, mine) for tap in taps]
    mine = mine.clone()
    del trace  # every activation of a pass
    other, theirs = _other(question, example, given, mine)
    if other is None or theirs is None:
        return {tap.name: "not proved" for tap in taps}
    return {
        tap.name: _compared(_exchanged(question, other, swap), mine, theirs)
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


def _swap(trace: Trace, tap: Tap, logits: Tensor) -> _Swap | Statement:
    """Where to exchange a tap's tensor, or what is to be said of it without a pass.

    Not where it leaves the module: what ran inside may have used it by then. BERT's pooler reads
    the last hidden states in the base model that returns both.
    """
    read = _read_at(trace, tap)
    same, made = _aliases(read)
    for op in trace.ops[0 if made is None else made.index + 1 :]:
        if op.name in VIEWS and any(id(tensor) in same for tensor in op.writes):
            continue  # another view of the same numbers
        for number, operand in enumerate(op.reads):
            if id(operand.tensor) in same:
                value = trace.value(operand.tensor, op.index).clone()
                return _Swap(address_of(trace, op), number, value)
    return "sufficient" if id(logits) in same else "unused"


def _read_at(trace: Trace, tap: Tap) -> Read:
    """The tensor that the tap names, as it was in this pass."""
    if tap.operation:
        ops = [op for op in trace.ops if (op.name, op.module) == (tap.operation, tap.module)]
        if len(ops) > tap.later:
            op = ops[-1 - tap.later]
            reads = op.reads if tap.side == INPUT else [Read(t, op, op.depends) for t in op.writes]
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


def _aliases(read: Read) -> tuple[set[int], Op | None]:
    """(identities of the tensors that are views of the same numbers, what made those)."""
    same, maker = {id(read.tensor)}, read.producer
    while maker is not None and maker.name in VIEWS:
        source = next((r for r in maker.reads if r.depends), None)
        if source is None or source.tensor.numel() != read.tensor.numel():
            break
        same |= {id(source.tensor), *(id(tensor) for tensor in maker.writes)}
        maker = source.producer
    return same, maker


def _compared(mixed: Tensor | None, mine: Tensor, theirs: Tensor) -> Statement:
    if mixed is None:
        return "not proved"
    if relative(mixed, mine) <= TOLERANCE:
        return "sufficient"
    return "unused" if relative(mixed, theirs) <= TOLERANCE else "partial"


def _other(
    question: Question, example: Inputs, given: Inputs | None, mine: Tensor
) -> tuple[Inputs | None, Tensor | None]:
    """Another input whose logits differ enough, and its logits; None where there is none."""
    for inputs, _ in question.others(example, given):
        try:
            theirs = question.logits(inputs)
        except Exception:  # noqa: S112  the model has its own idea of what an input is
            continue
        if POWER * TOLERANCE <= relative(theirs, mine) < float("inf"):
            return inputs, theirs
    return None, None


def _exchanged(question: Question, other: Inputs, swap: _Swap) -> Tensor | None:
    """The other input's logits with the tensor exchanged; None where the pass never came by."""
    copy = other.copy()
    swaps = {swap.address: [(swap.number, swap.value)]}
    try:
        with torch.no_grad():
            output = run_swapped(question.model, copy.args, copy.kwargs, swaps)
            return None if output is None else logits_of(output, question.output).clone()
    except (RuntimeError, HeadNotFound):  # the tensor has another shape for the other input
        return None
