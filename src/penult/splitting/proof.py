"""Prove a cut: run the model on inputs that differ, and measure that the law holds for each.

The law is logits(prelogits(x)) = f(x), where `logits` sees nothing but the prelogits. Six to nine
forward passes: a plain one, one recorded for each other input, one with the prelogits exchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound, UsageError, first_line
from penult.splitting.boundary import Boundary, find_boundary
from penult.splitting.certificate import POWER, TOLERANCE, Certificate, Check
from penult.splitting.head import floats_of, logits_of
from penult.splitting.passes import Cut, cut
from penult.splitting.program import Program, generalise
from penult.splitting.running import Question, relative
from penult.splitting.trace import Trace, address_of, run_swapped
from penult.splitting.variants import (
    Inputs,
    Variant,
    other_batch,
    other_lengths,
    other_mask,
    other_values,
)


@dataclass(frozen=True, slots=True)
class Proof:
    """A program for what follows the head, and its certificate."""

    program: Program | None
    certificate: Certificate
    names: tuple[str, ...] = ()


def prove(question: Question, example: Inputs, missing: Collection[str]) -> Proof:
    """Find the cut and certify it, or say why not.

    Raises:
        UsageError: the example does not fit, or the output to cut is not clear.
    """
    plain = _first_run(question, example)
    try:
        trace, inputs = question.record(example)
        first = cut(question, trace, inputs)
    except HeadNotFound as error:
        return Proof(None, Certificate.refused(_with_advice(str(error))))
    prover = _Prover(question, example, trace, first)
    del trace, inputs  # every activation of a pass: one such at a time is enough
    try:
        prover.weights_loaded(missing)
        prover.same_twice(plain)
        prover.powered()
        prover.interchanged()
        prover.round_trips()
    except HeadNotFound as error:
        return Proof(
            None, Certificate.refused(_with_advice(str(error)), tuple(prover.checks)), first.names
        )
    return Proof(prover.program, prover.certificate(), first.names)


def _first_run(question: Question, example: Inputs) -> Tensor | None:
    """f(x) on the example; None if it has no logits.

    Raises:
        UsageError: the model does not accept the example, or returns several float tensors.
    """
    copy = example.copy()
    try:
        with torch.no_grad():
            output = question.model(*copy.args, **copy.kwargs)
    except Exception as error:
        shapes = ", ".join(f"{k}: {tuple(v.shape)}" for k, v in example.tensors().items())
        raise UsageError(
            f"the model does not accept the example inputs ({shapes or 'no tensor'}): "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    try:
        return logits_of(output, question.output).clone()
    except HeadNotFound as error:
        if floats_of(output):
            raise UsageError(f"{error}; say which is meant (output=)") from error
        return None


def _with_advice(reason: str) -> str:
    if "head=" in reason:
        return reason
    return f"{reason}; name the module that is the head (head=), or read the model at another tap"


class _Prover:
    """The checks, one after the other; each raises HeadNotFound if the proof ends with it."""

    def __init__(self, question: Question, example: Inputs, trace: Trace, first: Cut) -> None:
        self.question, self.example, self.first = question, example, first
        self.checks: list[Check] = []
        self.program: Program | None = None
        self.power = 0.0
        self._second: tuple[Inputs, Cut] | None = None
        boundary = find_boundary(trace, question.output, question.named)
        self._swaps = _swaps(trace, boundary)
        self._used = trace.weights_used([boundary.logits])

    def _check(self, name: str, passed: bool, figure: float | None, note: str, why: str) -> None:
        self.checks.append(Check(name, passed, figure, note))
        if not passed:
            raise HeadNotFound(why)

    def weights_loaded(self, missing: Collection[str]) -> None:
        """No parameter on the way to the logits is one that the checkpoint did not fill."""
        weights = self.question.weights()
        aliases: dict[int, set[str]] = {}  # a tied weight is loaded if any of its names is
        for name, tensor in weights.items():
            aliases.setdefault(id(tensor), set()).add(name)
        absent = sorted(
            n for n in self._used if n in weights and aliases[id(weights[n])] <= set(missing)
        )
        named = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
        self._check(
            "weights loaded",
            not absent,
            float(len(absent)),
            f"{len(self._used)} tensors lead to the logits, {len(absent)} not loaded",
            f"{named} on the way to the logits was not loaded: the scores are random",
        )

    def same_twice(self, plain: Tensor | None) -> None:
        """The recorded pass gives what the plain one gave."""
        error = float("inf") if plain is None else relative(self.first.logits, plain)
        self._check(
            "same twice",
            error <= TOLERANCE,
            error,
            "recorded against plain pass",
            f"two passes over the same input differ by {error:.1e}: the model is random "
            "in eval mode, or keeps a state, so no cut can give what it returns",
        )

    def powered(self) -> None:
        """A second input whose logits are clearly different."""
        config = getattr(self.question.model, "config", None)
        special = [
            value
            for name in ("pad_token_id", "eos_token_id", "sep_token_id", "bos_token_id")
            for value in tree_leaves(getattr(config, name, None))
            if isinstance(value, int)
        ]
        for seed, gain in ((1, 1.0), (2, 4.0)):
            inputs = other_values(self.example, special, seed, gain)
            try:
                second = cut(self.question, *self.question.record(inputs))
            except HeadNotFound as error:
                raise HeadNotFound(f"for another input, {error}") from error
            except Exception as error:  # the model has its own idea of what an input is
                if seed == 1:
                    continue
                raise HeadNotFound(f"no other input could be made: {first_line(error)}") from error
            power = relative(second.logits, self.first.logits) / TOLERANCE
            if power > self.power:
                self.power, self._second = power, (inputs, second)
            if self.power >= POWER:
                break
        note = "tolerances between the logits of two inputs"
        self._check(
            "power",
            POWER <= self.power < float("inf"),
            self.power,
            note,
            f"not proved: two clearly different inputs differ by {self.power:.0f} "
            f"tolerances in their logits, and {POWER:.0f} are needed to test anything; "
            "give example inputs that the model tells apart, or check its weights",
        )

    def interchanged(self) -> None:
        """The second input with the head's input taken from the first gives the first's logits."""
        assert self._second is not None
        copy = self._second[0].copy()
        try:
            output = run_swapped(self.question.model, copy.args, copy.kwargs, self._swaps)
            error = float("inf")
            if output is not None:
                error = relative(logits_of(output, self.question.output), self.first.logits)
        except RuntimeError:  # what enters the head has another shape for the other input
            error = float("inf")
        self._check(
            "interchange",
            error <= TOLERANCE,
            error,
            "head's input taken from another run",
            f"with the head's input exchanged the logits are off by {error:.1e}: they "
            "depend on something else than what enters "
            f"{', '.join(self.first.names) or 'the functional head'}",
        )

    def round_trips(self) -> None:
        """Closed form on the example, then the law for every other input."""
        assert self._second is not None
        cuts = [("other values", self._second[1])]
        for variants in _variants(self._second[0]):
            for variant in variants:
                try:
                    trace, inputs = self.question.record(variant.inputs)
                except Exception:  # noqa: S112  the model does not take such an input
                    continue
                try:
                    cuts.append((variant.note, cut(self.question, trace, inputs)))
                except HeadNotFound as error:
                    raise HeadNotFound(f"with {variant.note}, {error}") from error
                break
            else:
                self.checks.append(
                    Check(
                        "round trip",
                        True,
                        None,
                        f"{variants[-1].note if variants else 'other shape'}: "
                        "not applicable, the model refuses it",
                    )
                )
        self.program = self._program(cuts)
        self._law("closed form", "replay on the captured tensor", self.first)
        for note, other in cuts:
            self._law("round trip", note, other)

    def _program(self, cuts: list[tuple[str, Cut]]) -> Program:
        """A program for all the cuts; where none fits all, one for single samples and one for
        larger batches, on two more inputs that are added to `cuts`."""
        reason = HeadNotFound("what follows the head is not the same for every shape")
        try:
            program = self._general([self.first, *(other for _, other in cuts)])
            if all(self._error(program, other) <= TOLERANCE for _, other in cuts):
                return program
        except HeadNotFound as error:
            reason = error
        cuts += self._by_batch()
        return self._split_by_batch([self.first, *(other for _, other in cuts)], reason)

    def _general(self, cuts: list[Cut]) -> Program:
        return generalise([c.listing for c in cuts], [v.ndim for v in self.first.values])

    def _by_batch(self) -> list[tuple[str, Cut]]:
        """Two more inputs, so that batches of one and of several are both seen at two lengths."""
        assert self._second is not None
        inputs = self._second[0]
        three = other_batch(inputs, 3)
        found: list[tuple[str, Cut]] = []
        for note, other in (
            ("batch 1", other_batch(inputs, 1)),
            ("batch 3 and another length", next(other_lengths(three), None) if three else None),
        ):
            try:
                if other is not None:
                    found.append((note, cut(self.question, *self.question.record(other))))
            except (HeadNotFound, RuntimeError, ValueError, TypeError, IndexError):
                continue
        return found

    def _split_by_batch(self, cuts: list[Cut], reason: HeadNotFound) -> Program:
        """One program for batches of one and another for all others: torch's own shortcuts
        (einsum drops axes of size 1) make these the two forms that a tail can take."""
        single = [c for c in cuts if c.values[0].shape[0] == 1]
        several = [c for c in cuts if c.values[0].shape[0] != 1]
        if not single or not several:
            raise reason
        return replace(self._general(several), single=self._general(single))

    def _error(self, program: Program, one: Cut) -> float:
        """By how much the law fails for one input."""
        try:
            with torch.no_grad():
                again = program.run(one.values, self.question.weights())
        except (RuntimeError, UsageError, TypeError, ValueError, IndexError):
            return float("inf")  # the tail does not even run for this shape
        return relative(again, one.logits)

    def _law(self, name: str, note: str, one: Cut) -> None:
        assert self.program is not None
        error = self._error(self.program, one)
        dtype = str(one.logits.dtype).removeprefix("torch.")
        short = "" if dtype in {"float32", "float64"} else f" ({dtype}: try float32)"
        self._check(
            name,
            error <= TOLERANCE,
            error,
            note,
            f"logits(prelogits(x)) is off by {error:.1e}{short} for {note}",
        )

    def certificate(self) -> Certificate:
        """The certificate of a proof whose checks all passed."""
        errors = [
            c.figure
            for c in self.checks
            if c.figure is not None and c.name not in {"power", "weights loaded"}
        ]
        return Certificate(True, max(errors), self.power, tuple(self.checks))


def _swaps(trace: Trace, boundary: Boundary) -> dict[Any, list[tuple[int, Tensor]]]:
    """For each tensor at the boundary: the first operation behind that reads it, and its value."""
    swaps: dict[Any, list[tuple[int, Tensor]]] = {}
    for place in boundary.places:
        value = trace.value(place.tensor, place.at).clone()
        for op in boundary.tail.ops:
            number = next((n for n, r in enumerate(op.reads) if r.tensor is place.tensor), None)
            if number is not None and op.index >= place.at:
                swaps.setdefault(address_of(trace, op), []).append((number, value))
                break
    return swaps


def _variants(inputs: Inputs) -> Iterator[list[Variant]]:
    """Kinds of other inputs, each with what to try in order."""
    three, one = other_batch(inputs, 3), other_batch(inputs, 1)
    batches = []
    if three is not None:
        three = other_values(three, seed=3) if _has_floats(three) else three
        masked = other_mask(three)
        if masked is not None:
            batches.append(Variant(masked, "batch 3 and another mask"))
        batches.append(Variant(three, "batch 3"))
    yield batches
    lengths = [Variant(v, "batch 1 and another length") for v in other_lengths(one)] if one else []
    if one is not None:
        lengths.append(Variant(one, "batch 1"))
    yield lengths


def _has_floats(inputs: Inputs) -> bool:
    return any(value.is_floating_point() for value in inputs.tensors().values())
