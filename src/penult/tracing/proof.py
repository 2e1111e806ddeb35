"""Prove a cut: run the model on inputs that differ, and measure that the law holds for each.

The law is logits(prelogits(x)) = f(x), where `logits` sees nothing but the prelogits. Nine to
thirteen forward passes: a plain and a recorded one over the example, one for each other input, one
with the prelogits exchanged, two over batches and lengths that nothing was fitted to, one or two
with branches on tensor values inverted if it takes any, and a plain one at the end. Those over
other inputs are recorded too, unless what follows the head is a linear layer: its operations are
the same for every input, and the law shows it. One more, recorded, where what the cut needs is
larger than a trace keeps.

A pass takes the memory of a plain one; a batch of another size is as large as memory allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from penult.errors import HeadNotFound, cause, listed
from penult.tracing.anatomy import Anatomy, anatomy_of
from penult.tracing.boundary import Boundary, find_boundary
from penult.tracing.certificate import POWER, SMALL, TOLERANCE, Certificate, Check, largest_batch
from penult.tracing.cut import Fitting, Law, PassCut, cut, cut_by_hooks, recorded
from penult.tracing.forward import SplitTarget, State, moving_size, relative
from penult.tracing.head import logits_of
from penult.tracing.inputs import (
    CallInputs,
    Variant,
    held_out,
    largest_of,
    lengths_of_one,
    other_batches,
)
from penult.tracing.randomness import Randomness, states_of
from penult.tracing.replay import Program
from penult.tracing.trace import Inversion, Trace, ValuesNotKept, run_swapped


@dataclass(frozen=True, slots=True)
class Proof:
    """A program for what follows the head, and its certificate.

    names: modules of the head. anatomy: the model's parts, found in the same recorded pass; None
    where the model returned no logits. calls: how often each module ran in it.
    """

    program: Program | None
    certificate: Certificate
    names: tuple[str, ...] = ()
    anatomy: Anatomy | None = None
    calls: Mapping[str, int] = field(default_factory=dict)


def prove(
    target: SplitTarget,
    example: CallInputs,
    missing: Collection[str],
    state: State,
    other: CallInputs | None = None,
) -> Proof:
    """Find the cut and certify it, or say why not. state: of the model before any pass. other: a
    second input of the same shapes; without one, the example with other values in it.

    Raises:
        UsageError: the example does not fit, or the output to cut is not clear.
    """
    plain = target.first(example)  # goes as soon as it was compared
    proof = Proof(None, Certificate.refused(""))
    checks: list[Check] = []

    def begun(trace: Trace, inputs: CallInputs) -> _Prover:
        nonlocal proof
        if proof.anatomy is None:
            anatomy = anatomy_of(target.model, trace, target.base, target.output, target.named)
            calls = Counter(call.module for call in trace.calls)
            proof = replace(proof, calls=calls, anatomy=anatomy)
        first = cut(target, trace, inputs)
        proof = replace(proof, names=first.names)
        return _Prover(target, (example, other), trace, first, state)

    try:
        prover = target.from_trace(example, begun)
        checks = prover.checks
        prover.weights_loaded(missing)
        prover.no_draws()
        prover.same_twice(plain)
        plain = None
        prover.powered()
        prover.interchanged()
        prover.round_trips()
        prover.held_out()
        prover.control_flow()
        prover.same_afterwards()
    except HeadNotFound as error:
        return _certified(proof, Certificate.refused(_with_advice(str(error)), tuple(checks)))
    return _certified(replace(proof, program=prover.program), prover.certificate())


def _certified(proof: Proof, certificate: Certificate) -> Proof:
    anatomy = None if proof.anatomy is None else replace(proof.anatomy, certificate=certificate)
    return replace(proof, certificate=certificate, anatomy=anatomy)


def _with_advice(reason: str) -> str:
    if "head=" in reason or "; give " in reason:
        return reason
    return f"{reason}; name the module that is the head (head=), or read the model at another tap"


_STATE = (
    "two passes over the same input differ by {error:.1e}: the model is random in eval mode, or "
    "keeps a state, so no cut can give what it returns"
)


_FIXED = (
    ", so no cut can give what the model returns; give a functional dropout "
    "training=self.training, or a model with fixed scores"
)
_COUNTS = {"power", "weights loaded", "random operations"}  # checks whose figure is no error
_HELD_OUT = 2  # shapes that the law is tried with and that no program was fitted to
_REFITS = 2
_READ = 100  # values that Python may read of tensors in an inverted pass, besides ten for each


class _InputRefused(Exception):
    """The model does not take an input that was made for the proof."""


@dataclass(frozen=True, slots=True)
class _PassMemory:
    """Bytes that a pass over an input takes: weights, its own tensors, inputs; and what is read of
    it. batch: items in it."""

    weights: int
    activations: int
    inputs: int
    prelogits: int
    logits: int
    batch: int

    @classmethod
    def of(
        cls, target: SplitTarget, example: CallInputs, trace: Trace, first: PassCut
    ) -> _PassMemory:
        """Of the example's."""
        return cls(
            sum(value.nbytes for value in target.weights().values()),
            trace.peak,
            example.nbytes,
            sum(value.nbytes for value in first.values),
            first.logits.nbytes,
            max(example.batch or 1, 1),
        )

    @property
    def largest_batch(self) -> int:
        """The largest batch that the proof runs."""
        return largest_batch(self.weights, self.activations, self.inputs, self.batch)

    @property
    def is_large(self) -> bool:
        """Whether one item more, with what the proof holds, is too large for it."""
        most = max(self.activations + self.prelogits, self.prelogits + 2 * self.logits)
        larger = (most + 3 * self.inputs) * (self.batch + 1) // self.batch
        needed = self.weights + 2 * self.inputs + self.logits + larger
        plain = self.weights + self.activations + self.inputs
        return needed > max(2.5 * plain, SMALL)

    def at(self, part: float) -> _PassMemory:
        """Of an input that is a part as large."""
        return replace(
            self, activations=int(self.activations * part), inputs=int(self.inputs * part)
        )


class _Prover:
    """The checks, one after the other; each raises HeadNotFound if the proof ends with it."""

    def __init__(
        self,
        target: SplitTarget,
        inputs: tuple[CallInputs, CallInputs | None],
        trace: Trace,
        first: PassCut,
        state: State,
    ) -> None:
        self.target, (self.example, self.given), self.state = target, inputs, state
        self.law, self.first = Law(target), first
        self.checks: list[Check] = []
        self.program: Program | None = None
        self.power = 0.0
        self._second: tuple[CallInputs, PassCut] | None = None  # and its cut
        boundary = find_boundary(trace, target.output, target.named)
        self._swaps = _swaps(trace, boundary)
        self._random = Randomness.of(trace, boundary.logits)
        self._used = trace.weights_used([boundary.logits])
        self._deciding = list(dict.fromkeys(name or "the model" for name in trace.decisions))
        self._reads = _READ + 10 * (len(trace.decisions) + len(trace.chances))
        self._cuts: list[tuple[str, PassCut]] = []  # that the program is fitted to
        self._taken: list[Variant] = []  # of other shapes, without their numbers
        self._memory = _PassMemory.of(target, self.example, trace, first)
        self._base: CallInputs | None = None  # what other batches are made from, where smaller
        self._linear = first.program() if first.listing.is_linear else None

    def _check(self, name: str, passed: bool, figure: float | None, note: str, why: str) -> None:
        self.checks.append(Check(name, passed, figure, note))
        if not passed:
            raise HeadNotFound(why)

    def weights_loaded(self, missing: Collection[str]) -> None:
        """No parameter on the way to the logits is one that the checkpoint did not fill."""
        weights = self.target.weights()
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

    def no_draws(self) -> None:
        """No random number on the way to the logits; others are told."""
        found = self._random
        if not found.states:
            return
        note = f"drawn elsewhere, and not on the way to the logits: {listed(found.elsewhere, 3)}"
        why = ""
        if (found.reaching or found.read) and self._seeded():
            note = "every pass draws from the same seed, which the model sets"
        elif found.reaching:
            why = f"random numbers reach the logits ({listed(found.reaching, 3)}){_FIXED}"
        elif found.read and not self._unmoved_by_chance():
            why = f"random numbers decide how the scores are computed (in {listed(found.read, 3)})"
            why += _FIXED
        count = float(len(found.reaching) + len(found.read)) if why else 0.0
        note = listed(found.reaching or found.read, 3) if why else note
        self._check("random operations", not why, count, note, why)

    def _seeded(self) -> bool:
        """Whether another pass draws the same numbers, from the same states of the generator."""
        return states_of(self.target.record(self.example)[0]) == self._random.states

    def _unmoved_by_chance(self) -> bool:
        """Whether the logits stay when random values that Python reads are turned round."""
        for forced in (1e30, -1e30):
            inversion = Inversion(forced, self._reads)
            try:
                trace, _ = self.target.record(self.example, chance=inversion)
                error = relative(logits_of(trace.output, self.target.output), self.first.logits)
            except Exception:  # it takes no such value
                return False
            if error > TOLERANCE:
                return False
            if not inversion.floats:
                break
        return True

    def same_twice(self, plain: Tensor | None) -> None:
        """The recorded pass gives what the plain one gave."""
        if not torch.isfinite(self.first.logits).any():
            raise HeadNotFound("the logits are not finite; give an example that gets scores")
        error = float("inf") if plain is None else relative(self.first.logits, plain)
        self._check(
            "same twice",
            error <= TOLERANCE,
            error,
            "recorded against plain pass",
            _STATE.format(error=error),
        )

    def same_afterwards(self) -> None:
        """An earlier call changes nothing: the example gives the same once other inputs went
        through, or, if they left something behind, another input gives the same without it."""
        assert self._second is not None
        inputs, before = self.example, self.first.logits
        note = "the example once more, after others"
        if self.state.changed():
            inputs, second = self._second
            before = self.target.logits(inputs) if second.logits.is_meta else second.logits
            self.state.put_back()
            note = "another input, without what earlier calls left behind"
        error = relative(self.target.logits(inputs), before, self.law.largest)
        self._check("same afterwards", error <= TOLERANCE, error, note, _STATE.format(error=error))

    def control_flow(self) -> None:
        """Branches on tensor values (`if scores.max() > 0.9`), inverted, change nothing.

        A model that does not run that way, or gives no scores, is not held against it.
        """
        assert self.program is not None
        for forced in (1e30, -1e30) if self._deciding else ():
            inversion = Inversion(forced, self._reads)
            try:
                other = recorded(self.target, self.example, self.first.needed, inversion)
            except Exception:  # noqa: S110  most often a check that raises, or a loop without end
                pass
            else:
                error = self._law_error(self.program, other)
                where = ", ".join(self._deciding[:3])
                self._check(
                    "control flow",
                    error <= TOLERANCE,
                    error,
                    "branches on tensor values inverted",
                    f"branches on tensor values (in {where}) decide how the scores are computed: "
                    f"inverted, logits(prelogits(x)) is off by {error:.1e}",
                )
            if not inversion.floats:
                return  # another number to invert floats with makes no difference

    def powered(self) -> None:
        """A second input whose logits are clearly different."""
        self.first = self.law.measured(self.first).light(self.example, logits=True)
        failed = ""
        between = "two inputs"
        for inputs, note in self.target.others(self.example, self.given):
            try:
                second = self._cut(inputs)
            except HeadNotFound as error:
                raise HeadNotFound(f"for another input, {error}") from error
            except Exception as error:  # the model has its own idea of what an input is
                failed = cause(error)  # the error itself would keep the pass's tensors
                continue
            size = moving_size(second.logits, self.first.logits)
            power = relative(second.logits, self.first.logits, size) / TOLERANCE
            if power > self.power:
                stays = self.state.changed()  # what it gave is compared once more then
                self.power, between = power, note
                self._second = inputs, second.light(inputs, logits=stays)
                self.law = Law(self.target, 10 * size)
            del second
            if self.power >= POWER:
                break
        if failed and self._second is None:
            raise HeadNotFound(f"no other input could be made: {failed}")
        note = f"tolerances between the logits of {between}"
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
        copy = self.target.copy(self._second[0])
        try:
            output = run_swapped(self.target.model, copy.args, copy.kwargs, self._swaps)
            error = float("inf")
            if output is not None:
                logits = logits_of(output, self.target.output)
                error = relative(logits, self.first.logits, self.law.largest)
        except RuntimeError:  # what enters the head has another shape for the other input
            error = float("inf")
        self._swaps.clear()
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
        self._cuts = [("other values", self._second[1])]
        lengths = lengths_of_one(self._second[0], self._memory.is_large)
        if self._memory.is_large:  # what it takes of another length, is what batches are made of
            self._try("round trip", lengths)
            self._base = self._taken[0].whole if self._taken else None
        inputs, most = self._made_from
        self._try("round trip", other_batches(inputs, min(3, most)))
        if not self._memory.is_large:
            self._try("round trip", lengths)
        self._fit()
        self._law("closed form", "replay on the captured tensor", self.first)
        for note, other in self._cuts:
            self._law("round trip", note, other)

    @property
    def _made_from(self) -> tuple[CallInputs, int]:
        """What other batches are made from, and the largest of them."""
        assert self._second is not None
        whole = self._second[0]
        if self._base is None:
            return whole, self._memory.largest_batch
        return self._base, self._memory.at(self._base.nbytes / whole.nbytes).largest_batch

    def _try(self, name: str, variants: Iterable[Variant]) -> None:
        """Fit the program to one of several inputs, too, where the model takes any."""
        found = self._first_taken(name, variants)
        if found is not None:
            variant, one = found
            self._cuts.append((variant.note, one.light(variant.inputs)))
            self._taken.append(replace(variant, inputs=variant.inputs.outline()))

    def _fit(self) -> None:
        assert self._second is not None
        inputs, most = self._made_from
        self.program, more = Fitting(self.law, self.first, most).program(self._cuts, inputs)
        self._cuts += more

    def _first_taken(
        self, name: str, variants: Iterable[Variant]
    ) -> tuple[Variant, PassCut] | None:
        """The first of several inputs that the model takes, cut; None, and a check that says so,
        where it refuses all of them."""
        note = "other shape"
        for variant in variants:
            note = variant.note
            if self._base is not None and (largest := largest_of(variant.inputs)) is not None:
                variant = replace(variant, note=f"{note}, {tuple(largest.shape)}")
            try:
                return variant, self._cut(variant.inputs)
            except _InputRefused:
                continue
            except HeadNotFound as error:
                raise HeadNotFound(f"with {variant.note}, {error}") from error
        refused = f"{note}: not applicable, the model refuses it"
        self.checks.append(Check(name, True, None, refused))
        return None

    def held_out(self) -> None:
        """The law for two batch sizes and two lengths that the program was not fitted to, where
        the model takes them. One that breaks it is fitted to, and others are held out."""
        assert self._second is not None and self.program is not None
        batches = any(one.inputs.batch not in (1, self.example.batch) for one in self._taken)
        other = next((v.inputs for v in self._taken if "another length" in v.note), None)
        inputs, most = self._made_from
        if self._base is not None:
            other = self._second[0]  # of which lengths are that differ from the smaller one's
        passed: list[tuple[str, PassCut]] = []
        refits = 0
        for variants in held_out(inputs, batches, other, most):
            found = self._first_taken("held out", variants)
            if found is None:
                break
            note, one = found[0].note, found[1]
            if refits < _REFITS and self._law_error(self.program, one) > TOLERANCE:
                refits += 1
                again = recorded(self.target, found[0].inputs, one.needed)
                self._cuts.append((note, self.law.measured(again)))
                try:
                    self._fit()
                except HeadNotFound as error:
                    raise HeadNotFound(f"with {note}, {error}") from error
                continue
            passed.append((note, one.light(found[0].inputs)))
            del found, one
            if len(passed) == _HELD_OUT:
                break
        for note, one in passed:
            self._law("held out", note, one)

    def _cut(self, inputs: CallInputs) -> PassCut:
        """A pass over another input, cut: a plain one with hooks where what follows the head is a
        linear layer, which the law is tried with at once; else, or if it fails, a recorded one.

        Raises:
            HeadNotFound: it can't be cut.
            _InputRefused: the model does not take such an input.
        """
        try:
            known = self.program or self._linear
            if known is not None:
                one = cut_by_hooks(self.target, inputs, self.first)
                one = None if one is None else self.law.measured(one, known)
                if one is not None and self._law_error(known, one) <= TOLERANCE:
                    return one
                del one
            trace, copy = self.target.record(inputs, keep=self.first.needed)
        except HeadNotFound:
            raise
        except Exception as error:
            raise _InputRefused(cause(error)) from error
        needed = self.first.needed
        try:
            found = cut(self.target, trace, copy)
        except ValuesNotKept as error:
            needed = error.addresses
            found = None
        del trace, copy
        return self.law.measured(found or recorded(self.target, inputs, needed))

    def _law_error(self, program: Program, one: PassCut) -> float:
        return self.law.error(program, one)

    def _law(self, name: str, note: str, one: PassCut) -> None:
        assert self.program is not None
        error = self._law_error(self.program, one)
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
        errors = [c.figure for c in self.checks if c.figure is not None and c.name not in _COUNTS]
        return Certificate(True, max(errors), self.power, tuple(self.checks))


def _swaps(trace: Trace, boundary: Boundary) -> dict[Any, list[tuple[int, Tensor]]]:
    """For each tensor at the boundary: the first operation behind that reads it, and its value."""
    swaps: dict[Any, list[tuple[int, Tensor]]] = {}
    for place in boundary.places:
        value = trace.values.copy_of(place.read)
        for op in boundary.tail.ops:
            number = next((n for n, r in enumerate(op.reads) if r.tensor is place.tensor), None)
            if number is not None and op.index >= place.at:
                swaps.setdefault(op.address, []).append((number, value))
                break
    return swaps
