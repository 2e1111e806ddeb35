"""A graph of operations as the file of a runtime holds it: what reads and writes what, and its
runnable parts.

Head, cut, proof and taps know this alone. Operations have their names in ONNX, whatever the file
calls them; a format is one module that gives a `Graph`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Shape = tuple[int, ...]

# Operations that contract an operand with another, by the places of those two among the inputs.
CONTRACTIONS = {
    "Gemm": (0, 1), "MatMul": (0, 1), "Conv": (0, 1), "ConvTranspose": (0, 1), "Einsum": (0, 1),
    "MatMulInteger": (0, 1), "ConvInteger": (0, 1), "QLinearMatMul": (0, 3), "QLinearConv": (0, 3),
    "FusedMatMul": (0, 1), "FusedGemm": (0, 1), "FusedConv": (0, 1), "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1), "MatMulIntegerToFloat": (0, 1), "MatMulNBits": (0, 1),
    "CDist": (0, 1),
}  # fmt: skip
CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv"}
# Operations that give the values that they read, in another shape or type.
RESHAPES = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast"}
)
# Operations that look at their operand's shape alone.
SHAPE_ONLY = frozenset({"Shape", "Size"})
_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "double": 8, "float64": 8, "int64": 8, "uint64": 8,
               "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2}  # fmt: skip
_FLOATS = frozenset({"float", "float16", "float32", "float64", "double", "bfloat16"})


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. op: its name in ONNX. shown: as the file calls it. operands: its inputs in
    their places, empty where one is left out. reads: what it needs, the tensors that a nested graph
    takes from outside included. fused: the operation that is applied to its result, if there is
    one.
    """

    index: int
    op: str
    name: str
    operands: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shown: str = ""
    fused: str = ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, by its name in ONNX, or the default."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Integers that stand for numbers: scale · (integer − zero)."""

    dtype: np.dtype[Any]
    scale: float
    zero: int

    def shown(self, integers: Array) -> Array:
        """The numbers that integers stand for, float32."""
        numbers: Array = (integers.astype(np.float64) - self.zero) * self.scale
        return numbers.astype(np.float32)

    def stored(self, numbers: Array) -> Array:
        """The integers that are nearest to numbers; what lies beyond the largest is the largest.

        Raises:
            ValueError: numbers that are not finite.
        """
        if not np.isfinite(numbers).all():
            raise ValueError("values that are not finite cannot be quantised")
        whole = np.asarray(numbers, np.float64) / self.scale
        whole = np.trunc(whole + np.copysign(0.5, whole)) + self.zero  # halves away from zero
        bounds = np.iinfo(self.dtype)
        return np.clip(whole, bounds.min, bounds.max).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Port:
    """An input of the graph. shape: None where a length is free; None as a whole if unknown.
    quantisation: of an input that the file stores as integers, and numbers are given for."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    quantisation: Quantisation | None = None

    def __str__(self) -> str:
        sizes = ["?" if size is None else str(size) for size in self.shape or ()]
        own = f" as {self.quantisation.dtype}" if self.quantisation else ""
        return f"{self.name} {self.dtype}{own} ({', '.join(sizes)})"


class Session(Protocol):
    """A part of a graph, open in its runtime: arrays in, arrays out, batch axis first."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the tensors that it takes."""

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs, in their order.

        Raises:
            ValueError: the graph does not take these.
        """


class GraphParts(Protocol):
    """Runnable parts of a graph, which share its weights.

    types: the type of every tensor, as `float32`, `int8`.
    """

    @property
    def types(self) -> Mapping[str, str]:
        """The type of every tensor that depends on the input."""

    def shapes(self, feeds: Feeds) -> dict[str, Shape]:
        """The measured shape of every tensor, in one run that keeps none of them."""

    def session(self, outputs: Sequence[str], threads: int = 1, device: str = "cpu") -> Session:
        """A session that takes the inputs of the graph and gives the named tensors."""

    def tail(
        self,
        nodes: Iterable[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        shapes: Mapping[str, Shape],
    ) -> Session:
        """A session of some of the nodes that starts at tensors in the middle of the graph. shapes:
        of every tensor, as `shapes` measures them."""


@dataclass(slots=True)
class FileFacts:
    """What a file says beside its operations, and which inputs were made constants.

    values: such input → its value, in words. stateful: whether one of them is a state, which is
    fresh for each item. outputs: those that are next states. metadata: the file's description of
    itself. class_labels: the class names that it carries.
    """

    values: dict[str, str] = field(default_factory=dict)
    stateful: bool = False
    outputs: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    class_labels: list[str] = field(default_factory=list)


def is_bare(ports: Sequence[Port]) -> bool:
    """Whether a graph of these inputs takes one item without a batch axis: samples alone."""
    return [port.shape is not None and len(port.shape) for port in ports] == [1]


def producers_of(nodes: Iterable[Node]) -> dict[str, Node]:
    """The node that writes each tensor."""
    return {name: node for node in nodes for name in node.writes}


def upstream_of(producers: Mapping[str, Node], names: Iterable[str]) -> list[Node]:
    """Every node that the tensors are computed from, in order."""
    pending, found = list(names), {}
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.index not in found:
            found[node.index] = node
            pending += node.reads
    return [found[index] for index in sorted(found)]


class Graph:
    """A file's graph: what reads and writes what.

    inputs, outputs: of the file, outputs by name. nodes: in the order in which they run. depends:
    tensors whose values come from the inputs. parts: runnable parts. facts: what the file says
    beside its operations.
    """

    runtime: ClassVar[str]  # the engine that runs it
    format: ClassVar[str]  # of the file: `ONNX`
    suffix: ClassVar[str]  # `.onnx`
    channels_last: ClassVar[bool] = False  # of convolutions and poolings
    takes_arrays: ClassVar[bool] = False  # where nobody says what its items are
    copies: ClassVar[Set[str]] = RESHAPES  # operations that give the values that they read

    leaves: str = ""  # the tensor of the leaves that items fall into, of trees
    inputs: list[Port]
    outputs: list[str]
    nodes: Sequence[Node]
    parts: GraphParts
    facts: FileFacts

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor."""
        return producers_of(self.nodes)

    @cached_property
    def depends(self) -> Set[str]:
        """Tensors whose values come from the inputs; their shapes alone do not count."""
        found = {port.name for port in self.inputs}
        for node in self.nodes:
            if node.op not in SHAPE_ONLY and not found.isdisjoint(node.reads):
                found.update(node.writes)
        return found

    @property
    def bare(self) -> bool:
        """Whether the graph takes one item without a batch axis: samples and nothing else."""
        return is_bare(self.inputs)

    @property
    def any_batch(self) -> bool:
        """Whether several items fit into one run and leave each other alone there."""
        raise NotImplementedError

    def declared(self, name: str) -> tuple[int | None, ...] | None:
        """The shape that the file declares of an output, None where a size is free; None where it
        declares none."""
        raise NotImplementedError

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that the file holds; None of any other."""
        raise NotImplementedError

    def size_of(self, name: str) -> int:
        """Numbers in a weight; 0 of a tensor that is computed."""
        raise NotImplementedError

    def draws(self, node: Node) -> bool:
        """Whether an operation, or one of a graph inside of it, draws random numbers."""
        raise NotImplementedError

    def branch_ops(self, node: Node) -> set[str]:
        """Names of the operations that make what the branches of a condition give."""
        return set()

    def linear(self, node: Node) -> tuple[Array, Array] | None:
        """Weight (K, d) and bias (K,) of an operation that is x · weight.T + bias, in float64; None
        of any other, and where the runtime rounds on the way."""
        return None

    def resolution(self, name: str) -> float:
        """From one value that a tensor can have to the next; 0 of floats."""
        return 0.0

    def limits(self, name: str) -> tuple[float, float]:
        """The least and the largest value that a tensor can have."""
        return -np.inf, np.inf

    def find(self, name: str) -> str:
        """The tensor that a user calls so; the name itself where there is none."""
        return name

    def channel_place(self, rank: int) -> int:
        """Which axis of a convolution or pooling of that rank holds the channels."""
        return rank - 1 if self.channels_last else 1

    def chooses_shape(self, node: Node) -> bool:
        """Whether an operation is a condition whose branches give one thing in two shapes."""
        return False

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers, or integers that stand for some."""
        return self.parts.types.get(name, "") in _FLOATS

    def nbytes(self, name: str, shapes: Mapping[str, Shape]) -> int:
        """Bytes of a tensor. shapes: of every tensor, as `GraphParts.shapes` measures them."""
        return int(np.prod(shapes.get(name, (0,)))) * _ITEM_SIZES.get(
            self.parts.types.get(name, ""), 4
        )

    def memory(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(bytes of the weights, bytes that the other tensors of a run take at once)."""
        last = {name: node.index for node in self.nodes for name in node.reads}
        held: dict[str, int] = {}
        now = most = 0
        for node in self.nodes:
            own = {name: self.nbytes(name, shapes) for name in node.writes}
            held |= own
            now += sum(own.values())
            most = max(most, now)
            done = {n for n in (*node.reads, *node.writes) if last.get(n, -1) <= node.index}
            now -= sum(held.pop(name, 0) for name in done)
        return self.weight_bytes, most

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        raise NotImplementedError

    def upstream(self, names: Iterable[str]) -> list[Node]:
        """Every node that the tensors are computed from, constants included, in order."""
        return upstream_of(self.producers, names)

    @cached_property
    def _weights(self) -> dict[int, int]:
        return {}  # numbers in a node's weights

    def weights_of(self, node: Node) -> int:
        """Numbers in the weights that a node reads, directly or through constant nodes."""
        if node.index not in self._weights:
            own = [name for name in node.reads if name not in self.depends]
            names = {*own, *(name for n in self.upstream(own) for name in n.reads)}
            self._weights[node.index] = sum(map(self.size_of, names))
        return self._weights[node.index]

    @cached_property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(map(self.size_of, {name for node in self.nodes for name in node.reads}))


def as_feeds(graph: Graph, tensors: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors or arrays in the types that the graph takes.

    Raises:
        ValueError: one is missing, or floats were given for whole numbers.
    """
    feeds = {}
    for port in graph.inputs:
        if port.name not in tensors:
            raise ValueError(f"the graph's input {port.name!r} was not given")
        value, stored = np.asarray(tensors[port.name]), port.quantisation
        if stored is not None and value.dtype.kind in "iub":
            if value.dtype != stored.dtype:
                raise ValueError(
                    f"{port.name!r} takes {port.dtype}, or {stored.dtype} as the file stores it, "
                    f"and was given {value.dtype}"
                )
            value = stored.shown(value)
        if value.dtype != port.dtype:
            if port.dtype.kind in "iu" and value.dtype.kind == "f":
                raise ValueError(f"{port.name!r} takes {port.dtype}, and was given {value.dtype}")
            value = value.astype(port.dtype)
        feeds[port.name] = np.ascontiguousarray(value)
    return feeds
