"""Cut a classifier in two, prelogits and logits, with the proof that the halves make the whole.

`split` is the way in. It locates the head in a recorded forward pass, proves the cut, and gives a
`Split` that runs either half. A cut that can't be proved is given back as a refusal, in words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound, TapError, UsageError, first_line
from penult.splitting.certificate import Certificate
from penult.splitting.head import find_head, logits_of
from penult.splitting.passes import cut
from penult.splitting.program import Program
from penult.splitting.proof import Proof, prove
from penult.splitting.running import Question, still
from penult.splitting.statements import Statement, state
from penult.splitting.taps import Tap, find_taps, tap_at
from penult.splitting.variants import Inputs


class HeadNames(NamedTuple):
    """The head. names: the modules of the last weight layers; empty for a functional head."""

    names: list[str]


def split(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | Tensor,
    *,
    output: str | int | None = None,
    head: str | None = None,
    missing: Collection[str] = (),
) -> Split:
    """Find the head of any classifier and prove the cut, in less than 12 forward passes.

    example_inputs: one real, short input, as keyword arguments, positional arguments or one
    tensor, batch first. output: which of several float outputs. head: the module to cut in front
    of. missing: names of parameters that were not loaded. The model is left as it was.

    Raises:
        UsageError: not a module, inputs that it does not accept, no such output or module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"split takes a torch module, not {type(model).__name__}")
    inputs = Inputs.of(example_inputs)
    if not inputs.tensors():
        raise UsageError("the example inputs hold no tensor; give what the model is called with")
    _same_device(model, inputs)
    if head is not None and head not in dict(model.named_modules()):
        raise UsageError(f"head={head!r}: the model has no module of that name")
    question = Question(model, output, head)
    with still(model):
        proof = prove(question, inputs, missing)
    return Split(question, inputs, proof)


def _same_device(model: nn.Module, inputs: Inputs) -> None:
    there = {p.device for p in model.parameters()} | {b.device for b in model.buffers()}
    if any(device.type == "meta" for device in there):
        raise UsageError("the model's weights are on the meta device: load them first")
    here = {value.device for value in inputs.tensors().values()}
    if len(there) == 1 and here and not here & there:
        raise UsageError(f"the model is on {there.pop()}, the example inputs on {here.pop()}")


class Split:
    """A classifier, cut. The law: logits(prelogits(x)) is what f(x) returns, for every x."""

    def __init__(self, question: Question, example: Inputs, proof: Proof) -> None:
        self._question = question
        self._example = example
        self._program = proof.program
        self.certificate: Certificate = proof.certificate
        self.head = HeadNames(list(proof.names))

    def prelogits(
        self, x: Mapping[str, Any] | tuple[Any, ...] | Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """What enters the head for this input: one tensor, or a tuple in the head's order.

        Raises:
            HeadNotFound: the cut was refused.
            UsageError: the model does not accept the input.
        """
        self._proved()
        inputs = Inputs.of(x)
        with still(self._question.model):
            try:
                trace, copies = self._question.record(inputs)
            except Exception as error:
                shapes = ", ".join(str(tuple(v.shape)) for v in inputs.tensors().values())
                raise UsageError(
                    f"the model does not accept this input ({shapes}): {first_line(error)}"
                ) from error
            values = cut(self._question, trace, copies).values
        return values[0] if len(values) == 1 else values

    def logits(self, z: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The logits, from the prelogits alone.

        Raises:
            HeadNotFound: the cut was refused.
            UsageError: these are no prelogits of this model.
        """
        program = self._proved()
        values = (z,) if isinstance(z, Tensor) else tuple(z)
        try:
            with torch.no_grad():
                return program.run(values, self._question.weights())
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise UsageError(
                f"no prelogits of this model: {shapes}: {first_line(error)}"
            ) from error

    def _proved(self) -> Program:
        if self._program is None:
            raise HeadNotFound(self.certificate.refusal)
        return self._program

    @cached_property
    def taps(self) -> dict[str, Tap]:
        """The named places where hidden states can be read."""
        model = self._question.model
        with still(model):
            trace, _ = self._question.record(self._example)
            try:
                trace.output = logits_of(trace.output, self._question.output)
            except HeadNotFound:
                return {}
            try:
                head = find_head(trace)
            except HeadNotFound:
                head = None
            prefix = getattr(model, "base_model_prefix", "")
            base = prefix if prefix and prefix in dict(model.named_children()) else None
            return find_taps(trace, head, model, base)

    def tap(self, name: str) -> Tap:
        """A named tap, or the output of any module.

        Raises:
            TapError: there is none of that name.
        """
        if name in self.taps:
            return self.taps[name]
        if not name or name not in dict(self._question.model.named_modules()):
            raise TapError(f"no tap {name!r}; there are {', '.join(self.taps)}, and any module")
        with still(self._question.model):
            return tap_at(self._question.record(self._example)[0], name)

    def statement(self, name: str) -> Statement:
        """What the logits need of a tap, measured: `sufficient`, `partial` or `unused`."""
        with still(self._question.model):
            return state(self._question, self._example, self.tap(name))

    @property
    def remark(self) -> str:
        """Where the library's own word on its classifier differs from what was found; else empty.

        It is said and no more: what is proved does not rest on it.
        """
        says = getattr(self._question.model, "get_classifier", None)
        if not callable(says) or self._program is None:
            return ""
        try:
            named = says()
        except Exception:  # another library's method of the same name
            return ""
        modules = {id(m): name for name, m in self._question.model.named_modules()}
        wanted = [modules[id(m)] for m in tree_leaves(named) if id(m) in modules]
        if not wanted or set(wanted) & set(self.head.names):
            return ""
        return f"get_classifier() says {', '.join(wanted)}; the trace says otherwise"

    def __str__(self) -> str:
        names = ", ".join(self.head.names) or ("functional" if self._program else "not found")
        lines = [f"head: {names}", f"certificate: {self.certificate}"]
        lines += [f"remark: {self.remark}"] if self.remark else []
        lines += ["taps:"]
        lines += [f"  {name}: {tap.describe()} ({tap.side} of {tap.module or 'the model'})"
                  for name, tap in self.taps.items()]  # fmt: skip
        return "\n".join(lines)
