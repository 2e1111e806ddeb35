"""Cut a classifier in two, prelogits and logits, with the proof that the halves make the whole.

`split` is the way in. It locates the head in a recorded forward pass, proves the cut, and gives a
`Split` that runs either half. A cut that can't be proved is given back as a refusal, in words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound, PenultError, TapError, UsageError, first_line
from penult.splitting.anatomy import locate
from penult.splitting.asking import check_inputs, check_model, check_shapes
from penult.splitting.certificate import Certificate
from penult.splitting.delivery import Delivery
from penult.splitting.head import logits_of
from penult.splitting.program import Program
from penult.splitting.proof import Proof, prove
from penult.splitting.reading import Reader
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
    other_inputs: Mapping[str, Any] | tuple[Any, ...] | Tensor | None = None,
) -> Split:
    """Find the head of any classifier and prove the cut, in less than 12 forward passes.

    example_inputs: one real, short input, as keyword arguments, positional arguments or one
    tensor, batch first. output: which of several float outputs. head: the module to cut in front
    of. missing: names of parameters that were not loaded. other_inputs: a second real input of the
    same shapes to prove it on, instead of one that is made up. The model is left as it was.

    Raises:
        UsageError: not a module, inputs that it does not accept or whose shapes differ, no such
            output or module.
    """
    check_model(model)
    inputs = Inputs.of(example_inputs)
    check_inputs(model, inputs)
    if head is not None and head not in dict(model.named_modules()):
        raise UsageError(f"head={head!r}: the model has no module of that name")
    other = None if other_inputs is None else Inputs.of(other_inputs)
    if other is not None:
        check_shapes(inputs, other)
    question = Question(model, output, head)
    with still(model) as state_before:
        proof = prove(question, inputs, missing, state_before, other)
    return Split(question, (inputs, other), proof)


class Split:
    """A classifier, cut. The law: logits(prelogits(x)) is what f(x) returns, for every x."""

    def __init__(
        self, question: Question, inputs: tuple[Inputs, Inputs | None], proof: Proof
    ) -> None:
        self._question = question
        self._example, self._other = inputs
        self._program = proof.program
        self._reader = Reader(question.model)
        self._deliver = Delivery(question, self._reader)
        self._modules: dict[str, Tap] = {}  # taps that were named by their module
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
        with self._accepting(inputs):
            values = self._deliver(inputs)
        return values[0] if len(values) == 1 else values

    def read(
        self, x: Mapping[str, Any] | tuple[Any, ...] | Tensor, taps: Sequence[str]
    ) -> dict[str, Tensor]:
        """The hidden states at several taps, in one forward pass that ends behind the last one.

        taps: names of taps, or of modules for what leaves them. The first pass over inputs of a
        shape is whole: it counts how often each module runs.

        Raises:
            TapError: there is no such tap.
            HeadNotFound: prelogits of a cut that was refused.
            UsageError: the model does not accept the input.
        """
        if "prelogits" in taps:
            self._proved()
        found = dict(zip(taps, self._found(taps), strict=True))
        inputs = Inputs.of(x)
        with self._accepting(inputs):
            values = self._reader.taps(inputs, list(found.values()))
        return dict(zip(found, values, strict=True))

    @contextmanager
    def _accepting(self, inputs: Inputs) -> Iterator[None]:
        """Run the model on an input of the caller's: what it raises is told in a sentence."""
        with still(self._question.model):
            try:
                yield
            except PenultError:
                raise
            except Exception as error:
                shapes = ", ".join(str(tuple(v.shape)) for v in inputs.tensors().values())
                raise UsageError(
                    f"the model does not accept this input ({shapes}): {first_line(error)}"
                ) from error

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
        self._reader.learn(self._example, trace)
        try:
            trace.output = logits_of(trace.output, self._question.output)
        except HeadNotFound:
            return {}
        head, _ = locate(trace, self._question.named)
        prefix = getattr(model, "base_model_prefix", "")
        base = prefix if prefix and prefix in dict(model.named_children()) else None
        return find_taps(trace, head, model, base)

    def tap(self, name: str) -> Tap:
        """A named tap, or the output of any module.

        Raises:
            TapError: there is none of that name.
        """
        return self._found([name])[0]

    def _found(self, names: Iterable[str]) -> list[Tap]:
        """The taps of these names; modules that were not asked for before share one pass."""
        names = list(names)
        known = {**self.taps, **self._modules}
        new = [name for name in dict.fromkeys(names) if name not in known]
        modules = dict(self._question.model.named_modules())
        for name in new:
            if not name or name not in modules:
                raise TapError(f"no tap {name!r}; there are {', '.join(self.taps)}, and any module")
        if new:
            with still(self._question.model):
                trace, _ = self._question.record(self._example)
            self._modules |= {name: tap_at(trace, name) for name in new}
        known |= self._modules
        return [known[name] for name in names]

    def statement(self, name: str) -> Statement:
        """What the logits need of a tap, measured: `sufficient`, `partial` or `unused`."""
        return self.statements([name])[name]

    def statements(self, names: Iterable[str] | None = None) -> dict[str, Statement]:
        """What the logits need of each tap, of all named ones by default: two passes, and one
        more for each."""
        taps = self._found(self.taps if names is None else names)
        with still(self._question.model):
            return state(self._question, self._example, taps, self._other)

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
        lines += [f"  {name}: {tap.describe()} ({tap.place})"
                  for name, tap in self.taps.items()]  # fmt: skip
        return "\n".join(lines)
