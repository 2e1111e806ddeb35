"""Cut a classifier in two, prelogits and logits, with the proof that the halves make the whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from penult.errors import HeadNotFound, PenultError, TapError, UsageError, cause
from penult.tracing.anatomy import Anatomy, Statement, state
from penult.tracing.certificate import Certificate
from penult.tracing.cut import CapturePlan, PassCut, cut
from penult.tracing.forward import SplitTarget, still
from penult.tracing.hooks import TensorReader, kind_of
from penult.tracing.inputs import CallInputs
from penult.tracing.proof import Proof, prove
from penult.tracing.replay import Program
from penult.tracing.spots import Tap
from penult.tracing.taps import tap_at
from penult.tracing.trace import Trace, ValueAddress


def check_model(model: Any) -> None:
    """Refuse what is no module with weights.

    Raises:
        UsageError: what it is, and what to do with it.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"split takes a torch module, not {type(model).__name__}{_instead(model)}")
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise UsageError(
            f"{', '.join(lazy[:3])} get their shapes in the first call (lazy layers): call the "
            "model once, then split it"
        )
    if any(p.device.type == "meta" for p in (*model.parameters(), *model.buffers())):
        raise UsageError("the model's weights are on the meta device: load them first")


def _instead(model: Any) -> str:
    if isinstance(model, str | bytes | os.PathLike):
        return ": open the file first, for example with penult.load"
    if isinstance(model, Mapping):
        return ": weights alone say nothing of how they are used; build the model and load them"
    if isinstance(model, type):
        return ": give an instance, not its class"
    if isinstance(model, torch.export.ExportedProgram):
        return ": give its .module()"
    return ""


def check_inputs(model: nn.Module, inputs: CallInputs) -> None:
    """Refuse inputs that no model could be tried on.

    Raises:
        UsageError: no tensor, an empty or a sparse one, or one on another device.
    """
    tensors = inputs.tensors()
    if not tensors:
        given = {type(value).__name__ for value in (*inputs.args, *inputs.kwargs.values())}
        raise UsageError(
            f"the example inputs hold no tensor but {', '.join(sorted(given)) or 'nothing'}; give "
            "what the model is called with"
        )
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_nested:
            raise UsageError(f"the example input {name} is {value.layout}; give a dense tensor")
        if value.ndim and not value.shape[0]:
            raise UsageError(f"the example input {name} is empty, {tuple(value.shape)}")
    there = {p.device for p in (*model.parameters(), *model.buffers())}
    here = {value.device for value in tensors.values()}
    if len(there) == 1 and not here & there:
        raise UsageError(f"the model is on {there.pop()}, the example inputs on {here.pop()}")


def check_shapes(inputs: CallInputs, other: CallInputs) -> None:
    """Refuse a second input that is not of the first one's shapes.

    Raises:
        UsageError: both shapes.
    """
    one, two = (
        {key: tuple(value.shape) for key, value in x.tensors().items()} for x in (inputs, other)
    )
    if one != two:
        raise UsageError(
            f"the two example inputs have different shapes, {one} and {two}; give two of one shape"
        )


class Delivery:
    """Gives the prelogits of any input."""

    def __init__(self, target: SplitTarget, reader: TensorReader) -> None:
        self._target = target
        self._reader = reader
        self._plans: dict[Any, CapturePlan | None] = {}
        self._needed: Collection[ValueAddress] = ()  # by the last pass that was cut

    def __call__(self, inputs: CallInputs) -> tuple[Tensor, ...]:
        """What enters the head, one tensor for each of its places."""
        kind = kind_of(inputs)
        plan = self._plans.get(kind)
        values = None if plan is None else self._hooked(inputs, plan)
        if values is not None:
            return values
        calls, one = self._target.from_trace(inputs, self._recorded, self._needed)
        self._needed = one.needed
        if kind not in self._plans:
            self._reader.learn(inputs, calls)
            agrees = one.plan is not None and self._agrees(inputs, one.plan, one.values)
            self._plans[kind] = one.plan if agrees else None
        return one.values

    def _recorded(self, trace: Trace, inputs: CallInputs) -> tuple[Counter[str], PassCut]:
        """(how often each module ran, the pass, cut)."""
        return Counter(call.module for call in trace.calls), cut(self._target, trace, inputs)

    def _hooked(self, inputs: CallInputs, plan: CapturePlan) -> tuple[Tensor, ...] | None:
        """The values by hooks; None where the head ran more or less often than it should."""
        try:
            values = tuple(self._reader.read(inputs, plan.spots))
        except (TapError, AttributeError):  # not reached, or no longer there
            return None
        calls = tuple(self._reader.calls(inputs, spot.place) for spot in plan.spots)
        return values if calls == plan.calls else None

    def _agrees(self, inputs: CallInputs, plan: CapturePlan, recorded: tuple[Tensor, ...]) -> bool:
        values = self._hooked(inputs, plan)
        return values is not None and all(
            torch.equal(one, other) for one, other in zip(values, recorded, strict=True)
        )


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
    """Find the head of any classifier and prove the cut, in 9 to 14 forward passes.

    example_inputs: one real, short input, as keyword arguments, positional arguments or one
    tensor, batch first. output: which of several float outputs. head: the module to cut in front
    of. missing: names of parameters that were not loaded. other_inputs: a second real input of the
    same shapes to prove it on, instead of one that is made up. The model is left as it was.

    Raises:
        UsageError: not a module, inputs that it does not accept or whose shapes differ, no such
            output or module.
    """
    check_model(model)
    target = SplitTarget(model, output, head, _named_base(model))
    return examine(target, example_inputs, missing, other_inputs)


def _named_base(model: nn.Module) -> str | None:
    """The base of a transformers model, which names it itself."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix and prefix in dict(model.named_children()) else None


def examine(
    target: SplitTarget,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | Tensor,
    missing: Collection[str] = (),
    other_inputs: Mapping[str, Any] | tuple[Any, ...] | Tensor | None = None,
) -> Split:
    """Parts and proof of a model that is in one piece: `Split.anatomy` and `Split.certificate`,
    from one recorded pass over the example and the proof's passes over other inputs. The other
    parameters are those of `split`.

    Raises:
        UsageError: inputs that the model does not accept or whose shapes differ, no such output or
            module.
    """
    model, inputs = target.model, CallInputs.of(example_inputs)
    check_inputs(model, inputs)
    if target.named is not None and target.named not in dict(model.named_modules()):
        raise UsageError(f"head={target.named!r}: the model has no module of that name")
    other = None if other_inputs is None else CallInputs.of(other_inputs)
    if other is not None:
        check_shapes(inputs, other)
    with still(model) as state_before:
        proof = prove(target, inputs, missing, state_before, other)
    return Split(target, (inputs, other), proof)


class Split:
    """A classifier f in two parts: logits(prelogits(x)) equals f(x) for every x.

    anatomy: the model's parts; None where the model returns no logits. certificate: the proof.
    """

    def __init__(
        self, target: SplitTarget, inputs: tuple[CallInputs, CallInputs | None], proof: Proof
    ) -> None:
        self._target = target
        self._example, self._other = inputs
        self._program = proof.program
        self._calls = proof.calls
        self._modules: dict[str, Tap] = {}  # taps that were named by their module
        self.anatomy: Anatomy | None = proof.anatomy
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
        inputs = CallInputs.of(x)
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
        inputs = CallInputs.of(x)
        with self._accepting(inputs):
            values = self._reader.taps(inputs, list(found.values()))
        return dict(zip(found, values, strict=True))

    @contextmanager
    def _accepting(self, inputs: CallInputs) -> Iterator[None]:
        """Run the model on an input of the caller's: what it raises becomes one sentence."""
        with still(self._target.model):
            try:
                yield
            except PenultError:
                raise
            except Exception as error:
                shapes = ", ".join(str(tuple(v.shape)) for v in inputs.tensors().values())
                raise UsageError(
                    f"the model does not accept this input ({shapes}): {cause(error)}"
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
                return program.run(values, self._target.weights())
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise UsageError(f"no prelogits of this model: {shapes}: {cause(error)}") from error

    def _proved(self) -> Program:
        if self._program is None:
            raise HeadNotFound(self.certificate.refusal)
        return self._program

    @cached_property
    def _reader(self) -> TensorReader:
        reader = TensorReader(self._target.model)
        reader.learn(self._example, self._calls)
        return reader

    @cached_property
    def _deliver(self) -> Delivery:
        return Delivery(self._target, self._reader)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The named places where hidden states can be read."""
        return {} if self.anatomy is None else self.anatomy.taps

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
        modules = dict(self._target.model.named_modules())
        for name in new:
            if not name or name not in modules:
                raise TapError(f"no tap {name!r}; there are {', '.join(self.taps)}, and any module")
        if new:
            with still(self._target.model):
                trace, _ = self._target.record(self._example)
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
        with still(self._target.model):
            return state(self._target, self._example, taps, self._other)

    @property
    def remark(self) -> str:
        """Where the library's `get_classifier()` names another module than the head that was found;
        else empty. Information only: the proof does not rest on it."""
        get_classifier = getattr(self._target.model, "get_classifier", None)
        if not callable(get_classifier) or self._program is None:
            return ""
        try:
            named = get_classifier()
        except Exception:  # another library's method of the same name
            return ""
        modules = {id(m): name for name, m in self._target.model.named_modules()}
        theirs = [modules[id(m)] for m in tree_leaves(named) if id(m) in modules]
        if not theirs or set(theirs) & set(self.head.names):
            return ""
        found = ", ".join(self.head.names) or "functional"
        return f"get_classifier() names {', '.join(theirs)}; the head that was found is {found}"

    def __str__(self) -> str:
        names = ", ".join(self.head.names) or ("functional" if self._program else "not found")
        lines = [f"head: {names}", f"certificate: {self.certificate}"]
        lines += [f"remark: {self.remark}"] if self.remark else []
        lines += ["taps:"]
        lines += [f"  {name}: {tap.describe()} ({tap.place})"
                  for name, tap in self.taps.items()]  # fmt: skip
        return "\n".join(lines)
