"""Measure what the logits need of a tap: all of what they need, a part of it, or nothing.

A statement is no proof: any set of tensors that cuts the model is sufficient, deep or shallow.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from penult.errors import TapError
from penult.splitting.certificate import POWER, TOLERANCE
from penult.splitting.running import Question, relative
from penult.splitting.taps import INPUT, Tap
from penult.splitting.variants import Inputs, other_values

Statement = Literal["sufficient", "partial", "unused", "not proved"]


def state(question: Question, example: Inputs, tap: Tap) -> Statement:
    """Run another input with the tap's values taken from the example, and compare the logits.

    Three passes: one that reads the tap, one over the other input, one with it exchanged.
    `not proved` if the two inputs' logits do not differ enough to tell.
    """
    seen: list[Tensor] = []
    mine = _hooked(question, example, tap, lambda leaf, _: seen.append(leaf.clone()))
    if not seen:
        raise TapError(f"{tap.name!r} was not reached by the example")
    other = other_values(example, seed=1)
    theirs = question.logits(other)
    if relative(theirs, mine) < POWER * TOLERANCE:
        return "not proved"
    number = len(seen) - 1 - tap.call

    def exchange(leaf: Tensor, call: int) -> None:
        if call == number and leaf.shape == seen[number].shape:
            leaf.copy_(seen[number])

    mixed = _hooked(question, other, tap, exchange)
    if relative(mixed, mine) <= TOLERANCE:
        return "sufficient"
    return "unused" if relative(mixed, theirs) <= TOLERANCE else "partial"


def _hooked(question: Question, inputs: Inputs, tap: Tap, see: Any) -> Tensor:
    """One pass; `see` gets the tap's tensor and the number of the call, every time it is there."""
    calls = 0

    def look(values: Any) -> None:
        nonlocal calls
        leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        see(leaves[tap.index], calls)
        calls += 1

    module = question.model.get_submodule(tap.module)
    if tap.side == INPUT:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: look((args, kwargs)), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda _, args, output: look(output))
    try:
        with torch.no_grad():
            return question.logits(inputs)
    finally:
        handle.remove()
