"""A TFLite file as a graph and as open interpreters.

Quantised tensors are shown as the numbers that they stand for: scale · (integer − zero point), and
taken as such; every integer comes back as the same integer.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from penult.errors import ModelError, UsageError, cause
from penult.extras import require
from penult.memory import free_memory, in_words
from penult.tracing.graph import (
    RESHAPES,
    SHAPE_ONLY,
    Array,
    Feeds,
    FileFacts,
    Graph,
    Node,
    Port,
    Quantisation,
    Shape,
    is_bare,
    upstream_of,
)
from penult.tracing.onnx_inputs import require_inputs
from penult.tracing.tflite_files import (
    TYPES,
    Flatbuffer,
    buffer_of,
    label_lists,
    names_of_operators,
    read_file,
    text_of,
)
from penult.tracing.tflite_operators import DRAWING, FUSED, MOVED, OPERATORS

LITERT = "litert"
_INTEGERS = frozenset({"int8", "uint8", "int16"})
_FREE = 16  # the length of an axis that the file leaves free, while batches are tried
_TRIED = 3  # items
_SAME = 1e-5  # relative, of an item alone and in a batch
# The attributes of ONNX's operators that constants hold in TFLite: (operator, operand) → name.
_HELD = {("Transpose", 1): "perm", ("ReduceMean", 1): "axes", ("ReduceSum", 1): "axes",
         ("ReduceMax", 1): "axes"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TfliteNode(Node):
    """operator: in the file. attributes: by their names in ONNX."""

    operator: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or the default."""
        return self.attributes.get(name, default)


class TfliteGraph(Graph):
    """The first graph of a file."""

    runtime = LITERT
    format = "TFLite"
    suffix = ".tflite"
    channels_last = True
    takes_arrays = True
    copies = RESHAPES | {"DequantizeLinear", "QuantizeLinear"}
    nodes: list[TfliteNode]
    parts: TfliteParts

    def __init__(
        self,
        model: Any,
        labels: Sequence[Sequence[str]] = (),
        given: Mapping[str, float] | None = None,
        name: str = "the graph",
    ) -> None:
        """model: as `read_file` gives it. labels: lists of names that the file carries. given:
        numbers of inputs that are part of no item. name: of the file, for messages."""
        table = TensorTable(model)
        table.fix(given or {}, name)
        graph = model.subgraphs[0]
        self._table = table
        self.inputs = [table.port(int(at)) for at in graph.inputs]
        self.outputs = [table.names[int(at)] for at in graph.outputs]
        kinds = names_of_operators(model)
        self.nodes = [
            table.node(number, kinds[one.opcodeIndex], one)
            for number, one in enumerate(graph.operators)
        ]
        self._refuse_unread()
        fixed = {one: f"{value:g}" for one, value in (given or {}).items()}
        self.facts = FileFacts(fixed, stateful=any(table.is_state(name) for name in table.names))
        last = {shape[-1] for name in self.outputs if (shape := self.declared(name))}
        fitting = [names for names in labels if len(names) in last]
        self.facts.class_labels = list(fitting[0]) if len(fitting) == 1 else []
        self.parts = TfliteParts(model, table, self.nodes, self.inputs)

    @classmethod
    def read(cls, path: Path, given: Mapping[str, float] | None = None) -> TfliteGraph:
        """Open a TFLite file.

        Raises:
            ModelError: it is none, is damaged, or calls operators that are not run here.
        """
        return cls(read_file(path), label_lists(path), given, path.name)

    def _refuse_unread(self) -> None:
        written = {*(port.name for port in self.inputs)}
        for node in self.nodes:
            for name in node.reads:
                if name not in written and not self._table.has_value(name):
                    raise ModelError(f"the graph reads {name!r}, which nothing in it writes")
            if again := written.intersection(node.writes):
                raise ModelError(f"two operators of the graph write {again.pop()!r}")
            written.update(node.writes)

    @cached_property
    def any_batch(self) -> bool:
        """Whether several items fit into one run and leave each other alone there: tried with
        noise, for a file says of its first axis only what its converter was told."""
        first = [port.shape[0] if port.shape else 0 for port in self.inputs]
        if self.bare or any(size not in (None, 1) for size in first):
            return False
        random = np.random.default_rng(0)
        items = [{port.name: _noise(port, random) for port in self.inputs} for _ in range(_TRIED)]
        together = {name: np.concatenate([one[name] for one in items]) for name in items[0]}
        try:
            session = self.parts.session(self.outputs)
            alone = [session(item) for item in items]
            found = session(together)
        except ValueError:
            return False
        if all(np.array_equal(one, other) for one, other in zip(alone[0], alone[1], strict=True)):
            return False  # items that a graph does not tell apart say nothing
        return all(
            len(values) == _TRIED and _close(values, np.concatenate([one[at] for one in alone]))
            for at, values in enumerate(found)
        )

    def declared(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of an output in the file, None where a size is free."""
        return self._table.shape(name)

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that the file holds, integers as they are."""
        found: Array | None = self._table.value(name)
        return found

    def size_of(self, name: str) -> int:
        """Numbers in a weight."""
        return self._table.size(name) if self._table.has_value(name) else 0

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self._table.weight_bytes

    def draws(self, node: Node) -> bool:
        """Whether an operation draws random numbers."""
        return node.op in DRAWING

    def limits(self, name: str) -> tuple[float, float]:
        """The least and the largest value that a quantised tensor can have."""
        kind = self._grid(name)
        if kind is None:
            return -np.inf, np.inf
        bounds = np.iinfo(kind.dtype)
        low, high = kind.shown(np.array([bounds.min, bounds.max]))
        return float(low), float(high)

    def linear(self, node: Node) -> tuple[Array, Array] | None:
        """Weight (K, d) and bias (K,) of a fully connected operator, in float64; None where its
        weights are integers and its input is not: the runtime rounds that input as it comes."""
        assert isinstance(node, TfliteNode)
        options = node.operator.builtinOptions
        if node.shown != "FULLY_CONNECTED" or options.weightsFormat or len(node.operands) < 2:
            return None
        entering, own, *more = node.operands
        weight, bias = self._real(own), self._real(more[0]) if more and more[0] else None
        whole = self._table.quantisation(entering) is not None
        if weight is None or whole != (self._table.type(own) in _INTEGERS):
            return None
        if more and more[0] and bias is None:
            return None
        return weight, np.zeros(len(weight)) if bias is None else bias

    def _real(self, name: str) -> Array | None:
        """The numbers of a weight, float64: those that integers and half floats stand for."""
        node = self.producers.get(name)
        if node is not None and node.op == "DequantizeLinear":
            return self._real(node.reads[0])
        value = self._table.value(name)
        return None if value is None else self._table.real(name, value)

    def _grid(self, name: str) -> Quantisation | None:
        kind, node = self._table.quantisation(name), self.producers.get(name)
        if kind is None and node is not None and node.op == "DequantizeLinear":
            kind = self._table.quantisation(node.reads[0])
        return kind

    def find(self, name: str) -> str:
        """The tensor of a name in full, or of an output's name in a signature, which stands above
        a tensor inside that is called so."""
        inside = name in self._table.numbers and name not in self._table.signed
        return name if name in self.outputs or inside else self._table.called.get(name, name)

    def resolution(self, name: str) -> float:
        """The scale of a quantised tensor, or of one that was quantised before."""
        kind = self._grid(name)
        return 0.0 if kind is None else kind.scale


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    largest = float(np.abs(one).max(initial=0.0))
    return bool(np.abs(one - other).max(initial=0.0) <= _SAME * max(largest, 1e-30))


def _bytes_of(detail: Mapping[str, Any]) -> int:
    shape = [int(size) for size in detail["shape"]]
    return math.prod(shape) * int(np.dtype(detail["dtype"]).itemsize)


def _noise(port: Port, random: np.random.Generator) -> Array:
    shape = [_FREE if size is None else size for size in (port.shape or (1,))]
    shape[0] = 1
    if (own := port.quantisation) is not None:
        bounds = np.iinfo(own.dtype)
        return own.shown(random.integers(bounds.min, bounds.max, shape, endpoint=True))
    if port.dtype.kind == "f":
        return random.standard_normal(shape).astype(port.dtype)
    return random.integers(0, 2, shape).astype(port.dtype)


class TensorTable:
    """The tensors of a file's first graph, each by a name of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tensors = list(model.subgraphs[0].tensors)
        own = [text_of(one.name) for one in self._tensors]
        counts = Counter(own)
        # A converter joins the names of all that it fused: the first of them will do.
        self.names = _distinct([name.partition(";")[0] for name in own])
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.signed = _signed(model, self.names)
        self.called = {
            name: self.names[number] for number, name in enumerate(own) if counts[name] == 1
        } | self.signed

    def __getitem__(self, name: str) -> Any:
        return self._tensors[self.numbers[name]]

    def fix(self, given: Mapping[str, float], file: str) -> None:
        """Make constants of inputs: changes the model.

        Raises:
            UsageError: there is none of a name, or it takes whole numbers.
        """
        graph = self._model.subgraphs[0]
        require_inputs(given, [self.names[int(at)] for at in graph.inputs], file)
        for name, value in given.items():
            port = self.port(self.numbers[name])
            if port.dtype.kind != "f" and not value.is_integer():
                raise UsageError(f"--input {name}={value:g}: {file} takes {port.dtype}")
            numbers = np.full(self.stored_shape(name), value, port.dtype)
            stored = numbers if port.quantisation is None else port.quantisation.stored(numbers)
            self._model.buffers.append(buffer_of(stored))
            self[name].buffer = len(self._model.buffers) - 1
            graph.inputs = [at for at in graph.inputs if int(at) != self.numbers[name]]

    def type(self, name: str) -> str:
        """As numpy has it, or the number of a type that numpy has not."""
        return TYPES.get(self[name].type, f"type {self[name].type}")

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape in the file, None where a size is free."""
        one = self[name]
        found = one.shape if one.shapeSignature is None else one.shapeSignature
        return () if found is None else tuple(None if s < 0 else int(s) for s in found)

    def stored_shape(self, name: str) -> Shape:
        """The shape in the file, with a size wherever one is free."""
        found = self[name].shape
        return () if found is None else tuple(int(size) for size in found)

    def quantisation(self, name: str) -> Quantisation | None:
        """How the integers of a tensor stand for numbers; None where they do not, or each channel
        has a scale of its own, as weights have."""
        one, kind = self[name].quantization, self.type(name)
        if one is None or kind not in _INTEGERS or one.scale is None or len(one.scale) != 1:
            return None
        zero = 0 if one.zeroPoint is None or not len(one.zeroPoint) else int(one.zeroPoint[0])
        scale = float(one.scale[0])
        if not (np.isfinite(scale) and scale > 0):
            raise ModelError(f"the tensor {name!r} has the scale {scale}, which is none")
        return Quantisation(np.dtype(kind), scale, zero)

    def port(self, number: int) -> Port:
        """An input of the graph."""
        name = self.names[number]
        kind, quantisation = self.type(name), self.quantisation(name)
        try:
            dtype = np.dtype(np.float32) if quantisation else np.dtype(kind)
        except TypeError:
            raise ModelError(f"the input {name!r} is of {kind}, which can't be fed here") from None
        return Port(name, dtype, self.shape(name), quantisation)

    def node(self, number: int, kind: str, operator: Any) -> TfliteNode:
        """An operator, with the attributes that the taps of a graph are found by."""
        op, options = OPERATORS[kind], operator.builtinOptions
        given = [self.names[int(at)] if at >= 0 else "" for at in operator.inputs]
        order = MOVED.get(kind, ())
        operands = [given[at] for at in order if at < len(given)]
        operands += [name for at, name in enumerate(given) if at not in order]
        held = {name: self.value(operands[at]).reshape(-1).tolist()
                for (of, at), name in _HELD.items()
                if of == op and at < len(operands) and self.has_value(operands[at])}  # fmt: skip
        own = {"axis": getattr(options, "axis", None), "keepdims": getattr(options, "keepDims", 0)}
        attributes = {name: value for name, value in own.items() if value is not None} | held
        writes = tuple(self.names[int(at)] for at in operator.outputs)
        return TfliteNode(
            number,
            op,
            writes[0] if writes else "",
            tuple(operands),
            tuple(dict.fromkeys(name for name in operands if name)),
            writes,
            kind,
            FUSED.get(getattr(options, "fusedActivationFunction", 0), "?"),
            operator,
            attributes,
        )

    def is_state(self, name: str) -> bool:
        """Whether a tensor keeps its values from run to run."""
        return bool(self[name].isVariable)

    def has_value(self, name: str) -> bool:
        """Whether the file holds the tensor's values, or it is a state."""
        return self._bytes(name) is not None or self.is_state(name) or 0 in self.stored_shape(name)

    def _bytes(self, name: str) -> Any:
        data = self._model.buffers[self[name].buffer].data
        return data if data is not None and len(data) else None

    def value(self, name: str) -> Any:
        """The values that the file holds of a tensor, integers as they are; None where it holds
        none, or numpy has no such type."""
        data = self._bytes(name) if name else None
        if data is None:
            return None
        try:
            found = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.dtype(self.type(name)))
        except TypeError:
            return None
        return found.reshape(self.stored_shape(name))

    def real(self, name: str, value: Array) -> Array | None:
        """The numbers that the stored values of a weight stand for, float64: each channel may have
        a scale of its own. None of integers that have no scale."""
        one = self[name].quantization
        if value.dtype.kind == "f":
            return value.astype(np.float64)
        if one is None or one.scale is None or not len(one.scale):
            return None
        scale = np.asarray(one.scale, np.float64)
        zero = np.asarray([0] if one.zeroPoint is None else one.zeroPoint, np.float64)
        shape = [1] * value.ndim
        if len(scale) > 1:
            shape[one.quantizedDimension] = len(scale)
            zero = np.resize(zero, len(scale))
        numbers: Array = (value.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)
        return numbers

    def size(self, name: str) -> int:
        """Numbers in a tensor, by its shape in the file."""
        return math.prod(self.stored_shape(name))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all values that the file holds."""
        return sum(len(one.data) for one in self._model.buffers if one.data is not None)


def _signed(model: Any, names: Sequence[str]) -> dict[str, str]:
    """What the signatures of a file call its outputs → the name of the tensor."""
    outputs = [one for signature in model.signatureDefs or () if signature.subgraphIndex == 0
               for one in signature.outputs or ()]  # fmt: skip
    return {text_of(one.name): names[one.tensorIndex] for one in outputs
            if 0 <= one.tensorIndex < len(names)}  # fmt: skip


def _distinct(names: Sequence[str]) -> list[str]:
    """Each name once: `tensor 7` for one that is empty, and a number behind a name that comes
    again."""
    found: list[str] = []
    seen: set[str] = set()
    for number, name in enumerate(names):
        own = name or f"tensor {number}"
        if own in seen:
            own = f"{own} ({number})"
        while own in seen:
            own += "'"
        seen.add(own)
        found.append(own)
    return found


class TfliteParts:
    """Models of parts of a file, and interpreters of them.

    nodes, ports: of the graph.
    """

    def __init__(
        self, model: Any, table: TensorTable, nodes: Sequence[TfliteNode], ports: Sequence[Port]
    ) -> None:
        self._writer = Flatbuffer(model, table.names)
        self._bare = is_bare(ports)
        self._table = table
        self._nodes = nodes
        self._ports = ports
        self._producers: dict[str, Node] = {n: node for node in nodes for n in node.writes}

    @cached_property
    def types(self) -> dict[str, str]:
        """The type of every tensor that is computed: `float32` of a quantised one."""
        names = [port.name for port in self._ports]
        names += [name for node in self._nodes for name in node.writes]
        table = self._table
        return {n: "float32" if table.quantisation(n) else table.type(n) for n in names}

    def shapes(self, feeds: Feeds) -> dict[str, Shape]:
        """The measured shape of every tensor, in one run that keeps none of them."""
        outputs = [name for node in self._nodes for name in node.writes]
        session = self._opened(self._nodes, self._ports, outputs[-1:], {}, plain=True)
        session(feeds)
        measured = session.shapes()
        found = {n: (1, *measured[n]) if self._bare else measured[n] for n in outputs}
        for name in self._table.names:
            if self._table.has_value(name):
                found.setdefault(name, self._table.stored_shape(name))
        return {**found, **{name: value.shape for name, value in feeds.items()}}

    def session(
        self, outputs: Sequence[str], threads: int = 1, device: str = "cpu"
    ) -> TfliteSession:
        """An interpreter that gives the named tensors.

        Raises:
            UsageError: the device is no processor.
        """
        if device != "cpu":
            raise UsageError(f"no device {device!r} for TFLite files: they run on --device cpu")
        nodes = upstream_of(self._producers, outputs)
        return self._opened(nodes, self._ports, outputs, {}, threads)

    def tail(
        self,
        nodes: Iterable[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        shapes: Mapping[str, Shape],
    ) -> TfliteSession:
        """An interpreter of some of the nodes that starts at tensors in the middle of the graph. A
        shape of something in front of them is a constant; where it differs with the input, the
        proof sees."""
        kept: list[Node] = []
        constants: dict[str, Array] = {}
        nodes = list(nodes)
        there = {name for node in nodes for name in node.writes} | {*inputs}
        for node in nodes:
            source = node.reads[0] if node.reads else ""
            if node.op in SHAPE_ONLY and source not in there and not self._table.has_value(source):
                name, shape = node.writes[0], shapes[source]
                value = shape if node.op == "Shape" else len(shape)
                constants[name] = np.array(value, self._table.type(name))
            else:
                kept.append(node)
        ports = [self._table.port(self._table.numbers[name]) for name in inputs]
        return self._opened(kept, [replace(port, shape=None) for port in ports], outputs, constants)

    def _opened(
        self,
        nodes: Iterable[Node],
        ports: Sequence[Port],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
        threads: int = 1,
        plain: bool = False,
    ) -> TfliteSession:
        """plain: every operator by itself, so that every shape is known."""
        numbers = self._table.numbers
        inputs = [port.name for port in ports]
        computed = [name for name in dict.fromkeys(outputs) if name not in inputs]
        content = self._writer.write(
            [node.operator for node in nodes if isinstance(node, TfliteNode)],
            [numbers[name] for name in inputs],
            [numbers[name] for name in computed],
            {numbers[name]: value for name, value in constants.items()},
        )
        quantised = {name: self._table.quantisation(name) for name in computed}
        session = TfliteSession(content, ports, outputs, quantised, threads, plain)
        session.bare = self._bare
        return session


class TfliteSession:
    """A part of a file, open in LiteRT: arrays in, arrays out. States are fresh in each run. One
    run at a time; threads wait for each other.

    ports: its inputs. outputs: names of what it gives. quantised: how each of those that it
    computes stands for numbers.
    """

    def __init__(
        self,
        content: bytes,
        ports: Sequence[Port],
        outputs: Sequence[str],
        quantised: Mapping[str, Quantisation | None],
        threads: int = 1,
        plain: bool = False,
    ) -> None:
        runtime = require("ai_edge_litert.interpreter")
        kinds = runtime.OpResolverType
        self.inputs = [port.name for port in ports]
        self.bare = False  # whether an item has no batch axis
        self._ports = list(ports)
        self._outputs = list(outputs)
        self._quantised = quantised
        self._lock = threading.Lock()
        try:
            self._interpreter = runtime.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=(
                    kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else kinds.AUTO
                ),
            )
            self._into = [one["index"] for one in self._interpreter.get_input_details()]
            self._from = [one["index"] for one in self._interpreter.get_output_details()]
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot open the graph: {cause(error)}") from error
        self._shapes: list[Shape] = []

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs, in their order.

        Raises:
            ValueError: the graph does not take these.
        """
        given = {name: feeds[name][0] if self.bare else feeds[name] for name in self.inputs}
        with self._lock:
            found = self._run(given)
        values = [given[name] if name in given else found[name] for name in self._outputs]
        return [value[None] for value in values] if self.bare else values

    def _run(self, given: Feeds) -> dict[str, Array]:
        interpreter = self._interpreter
        try:
            self._fit([given[name].shape for name in self.inputs])
            for port, at in zip(self._ports, self._into, strict=True):
                value = given[port.name]
                stored = value if port.quantisation is None else port.quantisation.stored(value)
                interpreter.set_tensor(at, np.ascontiguousarray(stored))
            interpreter.reset_all_variables()
            interpreter.invoke()
            found = [interpreter.get_tensor(at) for at in self._from]
        except RuntimeError as error:
            self._shapes = []
            raise ValueError(cause(error)) from error
        shown = zip(self._quantised.items(), found, strict=True)
        return {n: value if kind is None else kind.shown(value) for (n, kind), value in shown}

    def _fit(self, shapes: list[Shape]) -> None:
        if shapes == self._shapes:
            return
        for port, at, shape in zip(self._ports, self._into, shapes, strict=True):
            if not self._takes(port, shape):
                raise ValueError(f"the graph takes {port}, and was given one of shape {shape}")
            self._interpreter.resize_tensor_input(at, shape)
        self._interpreter.allocate_tensors()
        largest = max(map(_bytes_of, self._interpreter.get_tensor_details()))
        if largest > (free := free_memory()):  # memory is taken when it is written to
            sizes = in_words(largest), in_words(free)
            raise ValueError(f"a tensor takes {sizes[0]}, and {sizes[1]} of memory are free")
        self._shapes = shapes

    def _takes(self, port: Port, shape: Shape) -> bool:
        """Whether the sizes that the file fixes are those, the number of items left aside."""
        if port.shape is None:
            return True
        first = not self.bare
        pairs = zip(port.shape[first:], shape[first:], strict=False)
        return len(port.shape) == len(shape) and all(one in (None, other) for one, other in pairs)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor in the last run, by its name in the file."""
        details = self._interpreter.get_tensor_details()
        return {one["name"]: tuple(map(int, one["shape"])) for one in details}
