"""Record one real forward pass: every operation, which module ran it, and what it read and
wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from penult.locking import lock_of

# Operations whose whole number is a choice among positions, and no length.
_CHOICES = {f"aten.{name}" for name in ("argmax", "argmin", "max", "min", "topk", "sort")}

# Operations whose result has nothing of their operand but its shape.
SHAPE_ONLY = frozenset(
    f"aten.{name}"
    for name in (
        "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
        "new_empty", "zero_",
    )
)  # fmt: skip

# How values leave torch without an operation.
_LEAVING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}


@dataclass(slots=True)
class TensorRead:
    """A tensor as an operation or a module saw it, and the operation that had made it by then.

    producer is None for what the trace did not see being made: inputs, weights, constants.
    """

    tensor: torch.Tensor
    producer: Op | None
    depends: bool  # on the model's input

    @property
    def random(self) -> bool:
        """Whether numbers that were drawn reach it."""
        return self.producer is not None and self.producer.random


@dataclass(slots=True, eq=False)
class Op:
    """One recorded operation."""

    index: int
    name: str  # "aten.addmm"
    module: str  # qualified name of the innermost module that was running, "" for the root
    reads: list[TensorRead]
    writes: list[torch.Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depends: bool
    func: Any = None  # what to call to run it again
    drawn: int | None = None  # hash of the generator's state, where random numbers are drawn
    random: bool = False  # whether numbers that were drawn reach the result


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module: what came in and what went out, flattened."""

    module: str
    inputs: list[TensorRead]
    outputs: list[TensorRead] = field(default_factory=list)
    first: int = 0  # index of the first operation inside
    last: int = 0  # one past the last operation inside


@dataclass(slots=True)
class Trace:
    """A recorded forward pass. output: whatever the module returned; reads: its tensors."""

    ops: list[Op]
    calls: list[Call]
    output: Any
    reads: list[TensorRead]
    leaves: dict[int, str]  # storage → name of the parameter or buffer that lives there
    decisions: list[str]  # modules in which Python read values that depend on the input
    chances: list[str]  # modules in which Python read values that are random
    makers: dict[int, Op] = field(default_factory=dict)  # id of a tensor → what first returned it
    past: dict[int, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def value(self, tensor: torch.Tensor, at: int) -> torch.Tensor:
        """What a tensor held when operation number `at` was about to run."""
        for overwritten, before in self.past.get(id(tensor), ()):
            if overwritten >= at:
                return before
        return tensor

    def calls_of(self, module: str) -> list[Call]:
        """Every call of a module, in the order in which they ended."""
        return [call for call in self.calls if call.module == module]

    def upstream(self, roots: Sequence[TensorRead]) -> Iterator[Op]:
        """Every operation that the given tensors depend on, latest first."""
        pending = {read.producer.index: read.producer for read in roots if read.producer}
        while pending:
            op = pending.pop(max(pending))
            yield op
            for read in op.reads:
                if read.producer is not None:
                    pending[read.producer.index] = read.producer

    def weights_used(self, roots: Sequence[TensorRead]) -> set[str]:
        """Names of the parameters and buffers that the given tensors depend on."""
        reads = [*roots, *(read for op in self.upstream(roots) for read in op.reads)]
        storages = {_storage(read.tensor) for read in reads if read.producer is None}
        return {self.leaves[storage] for storage in storages if storage in self.leaves}


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Every tensor in nested containers, and in the attributes of objects that are none."""
    found = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            inner = tree_leaves(list(vars(leaf).values()))
            found += [value for value in inner if isinstance(value, torch.Tensor)]
    return found


def _storage(tensor: torch.Tensor) -> int:
    # A tensor of no elements has no address of its own.
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and opaque (mkldnn) tensors have none
        return id(tensor)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        decide: Callable[[Any], Any] | None = None,
        chance: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decide = decide
        self._chance = chance
        self.decisions: list[str] = []
        self.chances: list[str] = []
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self._made: dict[int, tuple[torch.Tensor, Op]] = {}  # id → (kept alive, its operation)
        self._written: dict[int, Op] = {}  # storage → the last operation that wrote to it
        self._inputs = {_storage(tensor) for tensor in inputs}
        self._living: dict[int, dict[int, torch.Tensor]] = {}  # storage → what was seen on it
        self.makers: dict[int, Op] = {}
        self.past: dict[int, list[tuple[int, torch.Tensor]]] = {}

    def read(self, tensor: torch.Tensor) -> TensorRead:
        made = self._made.get(id(tensor))
        written = self._written.get(_storage(tensor))
        producer = made[1] if made is not None else None
        if written is not None and (producer is None or written.index > producer.index):
            producer = written
        depends = producer.depends if producer else _storage(tensor) in self._inputs
        return TensorRead(tensor, producer, depends)

    def reads(self, values: Any) -> list[TensorRead]:
        return [self.read(leaf) for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]

    def enter(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        """A module begins to run: a pre-hook."""
        self.stack.append(Call(name, self.reads((args, kwargs)), first=len(self.ops)))

    def leave(self, name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A module has run: a hook."""
        call = self.stack.pop()
        while call.module != name:  # a child that raised, and was caught further out
            call = self.stack.pop()
        call.outputs, call.last = self.reads(output), len(self.ops)
        self.calls.append(call)

    def read_by_python(self, value: Any, depends: bool = True, random: bool = False) -> Any:
        """Note a value that depends on the input, or on chance; what Python gets in place of it."""
        module = self.stack[-1].module if self.stack else ""
        for on, notes, other in (
            (depends, self.decisions, self._decide),
            (random, self.chances, self._chance),
        ):
            if on:
                notes.append(module)
                value = value if other is None else other(value)
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = self.reads((args, kwargs))
        mutated = list(_mutated(func, args, kwargs))
        for read in reads:
            self._living.setdefault(_storage(read.tensor), {})[id(read.tensor)] = read.tensor
        for storage in {_storage(tensor) for tensor in mutated}:
            for key, tensor in self._living.get(storage, {}).items():
                self.past.setdefault(key, []).append((len(self.ops), tensor.clone()))
        if str(func.overloadpacket) == "aten.nonzero" and any(read.depends for read in reads):
            args = (args[0] == 0,) if self.read_by_python(True) is False else args
        drawn = _generator_state(args, kwargs) if draws(func, args, kwargs) else None
        result = func(*args, **kwargs)
        writes = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        op = Op(
            index=len(self.ops),
            name=str(func.overloadpacket),
            module=self.stack[-1].module if self.stack else "",
            reads=reads,
            writes=writes,
            args=args,
            kwargs=kwargs,
            depends=any(read.depends for read in reads),
            func=func,
            drawn=drawn,
        )
        op.random = drawn is not None or (
            op.name not in SHAPE_ONLY and any(read.random for read in reads)
        )
        self.ops.append(op)
        decides = op.depends and _is_decision(op, result)
        chance = op.random and isinstance(result, bool | int | float)
        if decides or chance:
            return self.read_by_python(result, decides, chance)
        for tensor in writes:
            self._made[id(tensor)] = (tensor, op)
            self.makers.setdefault(id(tensor), op)
            self._living.setdefault(_storage(tensor), {})[id(tensor)] = tensor
        for tensor in mutated:
            self._written[_storage(tensor)] = op
        return result


def draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers when it is called so: not with a probability of
    zero, nor where it is told that this is no training."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("train", True) is False or given.get("training", True) is False:
        return False
    if "noise" in given and "training" not in given:
        return False  # the slope of a leaky ReLU is drawn in training alone
    chances = [given[name] for name in ("p", "dropout_p", "dropout") if name in given]
    if "dropout_p" in names and not chances:
        return False
    return not any(isinstance(chance, int | float) and chance in (0, 1) for chance in chances)


def _generator_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Hash of the state of the generator that an operation draws from."""
    given = (*args, *kwargs.values())
    for value in given:
        if isinstance(value, torch.Generator):
            return hash(value.get_state().numpy().tobytes())
    on = kwargs.get("device") or next(
        (v.device for v in given if isinstance(v, torch.Tensor)), None
    )
    if on is not None and torch.device(on).type == "cuda":
        return hash(torch.cuda.get_rng_state(on).numpy().tobytes())
    return hash(torch.get_rng_state().numpy().tobytes())


def _is_decision(op: Op, result: Any) -> bool:
    """Whether the value that an operation gave to Python may decide something: a whole number only
    if it is a choice among positions, and no length."""
    if isinstance(result, bool | float):
        return True
    makers = {read.producer.name for read in op.reads if read.producer}
    return isinstance(result, int) and not makers.isdisjoint(_CHOICES)


def _mutated(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes to in place, read off its schema."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


@dataclass(slots=True)
class Inversion:
    """Inverts what Python reads of a tensor: booleans, choices, and floats, which become `forced`.

    floats: whether a float was among them, so that another `forced` would be another pass.
    """

    forced: float
    floats: bool = False

    def __call__(self, value: Any) -> Any:
        """Another value of the same type."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return 0 if value else 1
        if isinstance(value, list):
            return [one if type(one) is int else self(one) for one in value]
        if isinstance(value, np.ndarray) and value.dtype.kind == "b":
            return ~value
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            self.floats = True
            return np.full_like(value, self.forced)
        if isinstance(value, float):
            self.floats = True
            return self.forced
        return value


class _PythonReads(TorchFunctionMode):
    """Sees the values that leave torch by `.tolist()` and `.numpy()`."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _LEAVING:
            read = self._recorder.read(args[0])
            return self._recorder.read_by_python(result, read.depends, read.random)
        return result


class _Swapper(_Recorder):  # type: ignore[no-untyped-call]
    """Writes other values into operands, each just before its operation runs; records nothing."""

    def __init__(self, swaps: Mapping[Address, Sequence[tuple[int, torch.Tensor]]]) -> None:
        super().__init__([])
        self._swaps = swaps
        self._ran: dict[tuple[str, str], int] = {}
        self.swapped = 0

    def reads(self, values: Any) -> list[TensorRead]:
        return []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        key = str(func.overloadpacket), self.stack[-1].module if self.stack else ""
        self._ran[key] = self._ran.get(key, 0) + 1
        leaves, spec = tree_flatten((args, kwargs or {}))
        places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        for number, value in self._swaps.get((*key, self._ran[key] - 1), ()):
            tensor = leaves[places[number]]
            if 0 in tensor.stride():  # several positions share their memory
                leaves[places[number]] = value.clone()
            else:
                tensor.copy_(value)
            self.swapped += 1
        args, kwargs = tree_unflatten(leaves, spec)
        return func(*args, **kwargs)


@contextmanager
def _watching(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the recorder's stack of running modules; every hook is gone afterwards."""
    handles: list[Any] = []
    with lock_of(module):
        try:
            for name, child in module.named_modules():
                if isinstance(child, torch.jit.ScriptModule):
                    continue  # takes no hooks; its operations are seen all the same
                enter, leave = partial(recorder.enter, name), partial(recorder.leave, name)
                handles.append(child.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(child.register_forward_hook(leave, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


# An operation of a forward pass: its name, its module, and how many such ran before it.
Address = tuple[str, str, int]


def address_of(trace: Trace, op: Op) -> Address:
    """Where to find an operation again in a pass over another input of the same shape."""
    before = sum(o.name == op.name and o.module == op.module for o in trace.ops[: op.index])
    return op.name, op.module, before


def run_swapped(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    swaps: Mapping[Address, Sequence[tuple[int, torch.Tensor]]],
) -> Any:
    """What the module returns when operands are overwritten: per operation, which of its tensors
    and with what. None if not all of these operations ran."""
    swapper = _Swapper(swaps)
    with torch.no_grad(), _watching(module, swapper), swapper:
        output = module(*args, **kwargs)
    return output if swapper.swapped == sum(len(swap) for swap in swaps.values()) else None


def record(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    decide: Callable[[Any], Any] | None = None,
    chance: Callable[[Any], Any] | None = None,
) -> Trace:
    """Run `module(*args, **kwargs)` once, without gradients, and record it.

    decide: gives another value for each that Python reads and that depends on the input. chance:
    the same for each that is random.

    The module's weights, buffers, hooks and mode are as before afterwards. The trace keeps every
    intermediate tensor alive: use short inputs, and let go of it soon.
    """
    kwargs = dict(kwargs or {})
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    recorder = _Recorder(tensors, decide, chance)
    python_reads = _PythonReads(recorder)
    with torch.no_grad(), _watching(module, recorder), python_reads, recorder:
        output = module(*args, **kwargs)
    leaves = {
        _storage(tensor): name
        for source in (module.named_buffers, module.named_parameters)
        for name, tensor in source(remove_duplicate=False)
    }
    return Trace(
        recorder.ops,
        recorder.calls,
        output,
        [recorder.read(tensor) for tensor in tensors_in(output)],
        leaves,
        recorder.decisions,
        recorder.chances,
        recorder.makers,
        recorder.past,
    )
