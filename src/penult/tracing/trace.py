"""Record one real forward pass: every operation, which module ran it, and what it read and
wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from penult.locking import lock_of
from penult.tracing.living import LivingTensors, TracedTensor, YoungestValues

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
    """A tensor as an operation or a module saw it, and the operation that had made it by then: both
    together are a value.

    producer is None for what the trace did not see being made: inputs, weights, constants.
    """

    tensor: TracedTensor
    producer: Op | None
    depends: bool  # on the model's input

    @property
    def random(self) -> bool:
        """Whether numbers that were drawn reach it."""
        return self.producer is not None and self.producer.random


# An operation of a forward pass: its name, its module, and how many such ran before it. So it is
# found again in a pass over another input.
Address = tuple[str, str, int]


class ValueAddress(NamedTuple):
    """A value of a pass: which operand of an operation before it runs, or which result of it."""

    operation: Address
    is_result: bool
    number: int


# Whether a value that a pass comes by is kept.
Keep = Callable[[ValueAddress, "TensorRead"], bool]


class ValuesNotKept(Exception):
    """A trace lacks values, which another pass can keep. addresses: of all that are needed."""

    def __init__(self, addresses: frozenset[ValueAddress]) -> None:
        super().__init__(addresses)
        self.addresses = addresses


@dataclass(slots=True, eq=False)
class Op:
    """One recorded operation. args and kwargs have traced tensors in them."""

    index: int
    name: str  # "aten.addmm"
    module: str  # qualified name of the innermost module that was running, "" for the root
    reads: list[TensorRead]
    writes: list[TracedTensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depends: bool
    func: Any = None  # what to call to run it again
    before: int = 0  # how many operations of its name ran in its module before it
    drawn: int | None = None  # hash of the generator's state, where random numbers are drawn
    random: bool = False  # whether numbers that were drawn reach the result

    @property
    def address(self) -> Address:
        """Where to find it in a pass over another input."""
        return self.name, self.module, self.before

    def result(self, number: int = 0) -> TensorRead:
        """One of the tensors that it gave, as it left it."""
        return TensorRead(self.writes[number], self, self.depends)


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module: what came in and what went out, flattened."""

    module: str
    inputs: list[TensorRead]
    outputs: list[TensorRead] = field(default_factory=list)
    first: int = 0  # index of the first operation inside
    last: int = 0  # one past the last operation inside


Value = tuple[TracedTensor, "Op | None"]  # a tensor, and the operation that had made it by then


class TraceValues:
    """The few values that a trace has. overwrites: by storage, the operations that wrote to it in
    place. youngest: made last. copies: of what was to be kept."""

    def __init__(
        self,
        ops: Sequence[Op],
        overwrites: Mapping[int, Sequence[int]],
        youngest: Mapping[Value, torch.Tensor],
        copies: Mapping[Value, torch.Tensor],
    ) -> None:
        self._ops, self._overwrites, self._youngest = ops, overwrites, youngest
        self._copies = dict(copies)

    def of(self, read: TensorRead) -> torch.Tensor:
        """What a tensor held when it was read so. It is not to be written to.

        Raises:
            ValuesNotKept: that was not kept.
        """
        self.require([read])
        found = self._found(read)
        assert found is not None
        return found

    def copy_of(self, read: TensorRead) -> torch.Tensor:
        """The same, in memory of its own, which outlives the trace; one copy of each value.

        Raises:
            ValuesNotKept: that was not kept.
        """
        key = read.tensor, read.producer
        if key not in self._copies:
            self._copies[key] = self.of(read).clone()
        return self._copies[key]

    def require(self, reads: Iterable[TensorRead]) -> None:
        """Look whether all these values were kept.

        Raises:
            ValuesNotKept: those that were not.
        """
        reads = list(reads)
        if any(self._found(read) is None for read in reads):
            raise ValuesNotKept(self.addresses(reads))

    def _found(self, read: TensorRead) -> torch.Tensor | None:
        key = read.tensor, read.producer
        tensor = self._copies.get(key, self._youngest.get(key))
        if tensor is None and self.unchanged(read.tensor, _next(read.producer), len(self._ops)):
            tensor = read.tensor.itself
        return tensor

    def addresses(self, reads: Iterable[TensorRead]) -> frozenset[ValueAddress]:
        """Where a pass over any input comes by these values."""
        return frozenset(filter(None, map(self._address, reads)))

    def _address(self, read: TensorRead) -> ValueAddress | None:
        """Where a value is made, else where it is read; None of a value that no operation meets."""
        op = read.producer
        if op is not None and read.tensor in op.writes:
            return ValueAddress(op.address, True, op.writes.index(read.tensor))
        for reader in self._ops[_next(op) :]:
            for number, other in enumerate(reader.reads):
                if other.tensor is read.tensor and other.producer is op:
                    return ValueAddress(reader.address, False, number)
        return None

    def unchanged(self, tensor: TracedTensor, since: int, until: int) -> bool:
        """Whether a tensor held the same numbers when these two operations were about to run."""
        writes = self._overwrites.get(tensor.storage, ())
        return not any(since <= index < until for index in writes)


@dataclass(slots=True)
class Trace:
    """A recorded forward pass: what ran, and few of its numbers.

    output: whatever the module returned; reads: its tensors, as they were returned.
    peak: the largest number of bytes that the pass's own tensors took at once.
    """

    ops: list[Op]
    calls: list[Call]
    output: Any
    _returned: list[tuple[torch.Tensor, TensorRead]]
    leaves: dict[int, str]  # storage → name of the parameter or buffer that lives there
    decisions: list[str]  # modules in which Python read values that depend on the input
    chances: list[str]  # modules in which Python read values that are random
    makers: dict[TracedTensor, Op]  # what first returned a tensor
    values: TraceValues
    peak: int

    @property
    def reads(self) -> list[TensorRead]:
        """The tensors that the module returned."""
        return [read for _, read in self._returned]

    def read_of(self, output: torch.Tensor) -> TensorRead | None:
        """A tensor that the module returned; None if it is none of these."""
        return next((read for tensor, read in self._returned if tensor is output), None)

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
        storages = {read.tensor.storage for read in reads if read.producer is None}
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


def _next(op: Op | None) -> int:
    """The index of the operation behind this one; of the first, behind none."""
    return 0 if op is None else op.index + 1


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        decide: Callable[[Any], Any] | None = None,
        chance: Callable[[Any], Any] | None = None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decide = decide
        self._chance = chance
        self._keep = keep
        self.decisions: list[str] = []
        self.chances: list[str] = []
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.living = LivingTensors()
        self.youngest = YoungestValues()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._made: dict[TracedTensor, Op] = {}  # what last returned a tensor
        self._inputs = {self.living.of(tensor).storage for tensor in inputs}
        self.makers: dict[TracedTensor, Op] = {}
        self.overwrites: dict[int, list[int]] = {}
        self.kept: dict[Value, torch.Tensor] = {}

    def read(self, tensor: torch.Tensor) -> TensorRead:
        traced = self.living.of(tensor)
        producer = self._made.get(traced)
        written = self.overwrites.get(traced.storage)
        if written and (producer is None or written[-1] > producer.index):
            producer = self.ops[written[-1]]
        depends = producer.depends if producer else traced.storage in self._inputs
        return TensorRead(traced, producer, depends)

    def reads(self, values: Any) -> list[TensorRead]:
        return [self.read(tensor) for tensor in _tensors(values)]

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
        op = self._begun(func, args, kwargs)
        self._keep_values(op, op.reads, (args, kwargs), is_result=False)
        mutated = {self.living.of(tensor).storage for tensor in _mutated(func, args, kwargs)}
        rewritten = [pair for storage in mutated for pair in self.youngest.overwritten(storage)]
        if op.name == "aten.nonzero" and op.depends:
            args = (args[0] == 0,) if self.read_by_python(True) is False else args
        result = func(*args, **kwargs)
        self.ops.append(op)
        decides = op.depends and _is_decision(op, result)
        chance = op.random and isinstance(result, bool | int | float)
        if decides or chance:
            return self.read_by_python(result, decides, chance)
        made = [(self.living.made(tensor), tensor) for tensor in _tensors(result)]
        for traced, _ in made:
            op.writes.append(traced)
            self._made[traced] = op
            self.makers.setdefault(traced, op)
        for traced, tensor in {**dict(rewritten), **dict(made)}.items():
            self.youngest.add(traced, op, tensor, self.living.memory(traced))
        for storage in mutated:
            self.overwrites.setdefault(storage, []).append(op.index)
        self._keep_values(op, map(op.result, range(len(op.writes))), result, is_result=True)
        return result

    def _begun(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Op:
        """An operation that is about to run."""
        name, module = _name(func), self.stack[-1].module if self.stack else ""
        reads = self.reads((args, kwargs))
        drawn = _generator_state(args, kwargs) if draws(func, args, kwargs) else None
        reached = name not in SHAPE_ONLY and any(read.random for read in reads)
        self._counts[name, module] += 1
        return Op(
            index=len(self.ops),
            name=name,
            module=module,
            reads=reads,
            writes=[],
            args=_mapped(args, self.living.of),
            kwargs=_mapped(kwargs, self.living.of),
            depends=any(read.depends for read in reads),
            func=func,
            before=self._counts[name, module] - 1,
            drawn=drawn,
            random=drawn is not None or reached,
        )

    def _keep_values(
        self, op: Op, reads: Iterable[TensorRead], values: Any, is_result: bool
    ) -> None:
        """Copy what is to be kept of an operation's operands, or of its results."""
        if self._keep is None:
            return
        for number, (read, tensor) in enumerate(zip(reads, _tensors(values), strict=True)):
            value = read.tensor, read.producer
            if value not in self.kept and self._keep(
                ValueAddress(op.address, is_result, number), read
            ):
                self.kept[value] = tensor.clone()


# Operands in which no tensor lies: most of those of an operation.
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout})


def _tensors(values: Any) -> list[torch.Tensor]:
    """Every tensor in nested containers. Those that operations have are walked here: torch's own
    walk of any container takes several times as long, for every operation of every pass."""
    if isinstance(values, torch.Tensor):
        return [values]
    kind = type(values)
    if kind in _PLAIN:
        return []
    if kind is dict:
        values = values.values()
    elif kind is not tuple and kind is not list:
        return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [tensor for value in values for tensor in _tensors(value)]


def _mapped(values: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Nested containers with each tensor changed; as above."""
    if isinstance(values, torch.Tensor):
        return change(values)
    kind = type(values)
    if kind in _PLAIN:
        return values
    if kind is tuple or kind is list:
        return kind([_mapped(value, change) for value in values])
    if kind is dict:
        return {key: _mapped(value, change) for key, value in values.items()}
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, values)


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
    """The tensors that an operation writes to in place."""
    for position, name in _written(func):
        yield from _tensors(args[position] if position < len(args) else kwargs.get(name))


@cache
def _written(func: Any) -> list[tuple[int, str]]:
    """Which operands an operation writes to in place, read off its schema."""
    return [
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


@cache
def _name(func: Any) -> str:
    return str(func.overloadpacket)


@dataclass(slots=True)
class Inversion:
    """Inverts what Python reads of a tensor: booleans, choices, and floats, which become `forced`.

    most: values that a pass may read: a loop whose end depends on one (`while error > 1e-3`) would
    go on for ever. floats: whether a float was among them, so that another `forced` would be
    another pass.
    """

    forced: float
    most: int
    floats: bool = False

    def __call__(self, value: Any) -> Any:
        """Another value of the same type.

        Raises:
            EndlessLoop: the pass reads more values than it may.
        """
        self.most -= 1
        if self.most < 0:
            raise EndlessLoop("with its branches inverted the model does not end")
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


class EndlessLoop(Exception):
    """A pass whose branches are inverted does not come to its end."""


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
        self._ran: Counter[tuple[str, str]] = Counter()
        self.swapped = 0

    def reads(self, values: Any) -> list[TensorRead]:
        return []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        key = _name(func), self.stack[-1].module if self.stack else ""
        self._ran[key] += 1
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
    keep: Keep | None = None,
) -> Trace:
    """Run `module(*args, **kwargs)` once, without gradients, and record it.

    decide: gives another value for each that Python reads and that depends on the input. chance:
    the same for each that is random. keep: which values are kept, beside the youngest.

    The module's weights, buffers, hooks and mode are as before afterwards. The pass takes the
    memory of a plain one, and what is kept.
    """
    kwargs = dict(kwargs or {})
    recorder = _Recorder(_tensors((args, kwargs)), decide, chance, keep)
    living = recorder.living
    with torch.no_grad(), _watching(module, recorder), _PythonReads(recorder), recorder:
        output = module(*args, **kwargs)
    named = (*module.named_buffers(remove_duplicate=False),
             *module.named_parameters(remove_duplicate=False))  # fmt: skip
    trace = Trace(
        recorder.ops,
        recorder.calls,
        output,
        [(tensor, recorder.read(tensor)) for tensor in tensors_in(output)],
        living.storages(named),
        recorder.decisions,
        recorder.chances,
        recorder.makers,
        TraceValues(recorder.ops, recorder.overwrites, recorder.youngest.by_maker(), recorder.kept),
        living.peak,
    )
    living.release()
    return trace
