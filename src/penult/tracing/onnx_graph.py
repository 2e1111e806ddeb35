"""An ONNX file as a graph and as an open session: what depends on what, which shapes, cut where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.errors import ModelError, UsageError, cause
from penult.extras import require
from penult.tracing.onnx_files import inlined, read_model, refuse_operators
from penult.tracing.onnx_inputs import prepare_file

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Session:
    """A graph, open in ONNX Runtime: arrays in, arrays out, batch axis first on both sides.

    Every operation runs as it stands in the file, one after the other: with graph optimisations the
    numbers would change with the tensors that are read, and head and encoder would not make
    exactly the whole. bare: the graph has no batch axis of its own. weights: those that `model`
    only names, as the runtime holds them; several sessions share them. once: it is not run often
    enough for weights to be laid out for speed first, and a tensor's shape is read as soon as it
    is there, so that it goes.
    """

    def __init__(
        self,
        model: bytes,
        threads: int = 1,
        device: str = "cpu",
        bare: bool = False,
        weights: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> None:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised
        if once:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
        if weights:
            options.add_external_initializers([*weights], [*weights.values()])
        try:
            self._session = runtime.InferenceSession(model, options, providers=_providers(device))
        except Exception as error:
            if not _of_the_runtime(error):
                raise
            raise ModelError(f"ONNX Runtime cannot open the graph: {cause(error)}") from error
        self.inputs = [port.name for port in self._session.get_inputs()]
        self.types = {port.name: str(port.type) for port in self._session.get_outputs()}
        self._bare = bare

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs, in their order.

        Raises:
            ValueError: the graph does not take these.
        """
        given = {name: feeds[name][0] if self._bare else feeds[name] for name in self.inputs}
        try:
            found = self._session.run(None, given)
        except Exception as error:
            if not _of_the_runtime(error):
                raise
            raise ValueError(cause(error)) from error
        return [value[None] for value in found] if self._bare else list(found)


def _of_the_runtime(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError)


def _providers(device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind == "cuda" and has_cuda():
        return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
    raise UsageError(
        f"no device {device!r} for ONNX files here; this onnxruntime has "
        f"{', '.join(require('onnxruntime').get_available_providers())}: choose --device cpu"
    )


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime can use a CUDA device."""
    return "CUDAExecutionProvider" in require("onnxruntime").get_available_providers()


Shape = tuple[int, ...]

# Operations that look at their operand's shape alone.
SHAPE_ONLY = frozenset({"Shape", "Size"})
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)")
_SHARED_FROM = 1024  # numbers in a weight that sessions share; small ones tell shapes
_SHARED_TYPES = {1, 2, 3, 6, 7, 10, 11}  # float, uint8, int8, int32, int64, float16, double
_DTYPES = {"float16": "f2", "bfloat16": "f2", "double": "f8", "int64": "i8", "bool": "?",
           "int8": "i1", "uint8": "u1"}  # fmt: skip
_LARGEST = 2**31 - 1  # a serialised graph cannot be larger


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. reads: its inputs, those that a nested graph takes from outside included."""

    index: int
    op: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    proto: Any

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or the default."""
        from onnx import helper

        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default


@dataclass(frozen=True, slots=True)
class Port:
    """An input of the graph. shape: None where a length is free; None as a whole if unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = ["?" if size is None else str(size) for size in self.shape or ()]
        return f"{self.name} {self.dtype} ({', '.join(sizes)})"


def is_bare(ports: Sequence[Port]) -> bool:
    """Whether a graph of these inputs takes one item without a batch axis: samples alone."""
    return [port.shape is not None and len(port.shape) for port in ports] == [1]


def producers_of(nodes: Iterable[Node]) -> dict[str, Node]:
    """The node that writes each tensor."""
    return {name: node for node in nodes for name in node.writes}


def _upstream(producers: Mapping[str, Node], names: Iterable[str]) -> list[Node]:
    pending, found = list(names), {}
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.index not in found:
            found[node.index] = node
            pending += node.reads
    return [found[index] for index in sorted(found)]


class OnnxGraph:
    """A file's graph, with its functions inlined: what reads and writes what.

    depends: tensors whose values come from the inputs. parts: its runnable parts. facts: what
    the file says beside its operations.
    """

    def __init__(self, model: Any, sample_rate: int | None = None, name: str = "the graph") -> None:
        """sample_rate: for an input that takes one. name: of the file, for messages."""
        model = inlined(model, name)
        refuse_operators(model, name)
        self.facts = prepare_file(model, sample_rate, name)
        graph = model.graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.inputs = [_port(v) for v in graph.input if v.name not in weights]
        self.outputs = [value.name for value in graph.output]
        given = {*weights, *sparse, *(port.name for port in self.inputs)}
        self.nodes = [_node(index, proto) for index, proto in enumerate(_in_order(graph, given))]
        self.producers = producers_of(self.nodes)
        self.depends = self._dependent()
        self.parts = GraphParts(model, weights, self.nodes, self.inputs, self.depends)
        self._sizes = {name: int(np.prod(tensor.dims)) for name, tensor in weights.items()}
        self._weights: dict[int, int] = {}  # numbers in a node's weights

    @classmethod
    def read(cls, path: Path, sample_rate: int | None = None) -> OnnxGraph:
        """Open an ONNX file, with the files of weights beside it.

        Raises:
            ModelError: it is none, or a part of it is missing.
            UsageError: nothing says which number one of its inputs is.
        """
        model = read_model(path)
        if not model.graph.node or not model.graph.output:
            raise ModelError(f"{path} is no ONNX file: it holds no graph")
        if model.ByteSize() > _LARGEST:
            raise ModelError(f"{path} has more than 2 GB of weights, more than can be cut here")
        return cls(model, sample_rate, path.name)

    def _dependent(self) -> set[str]:
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
        """Whether several items fit into one run and leave each other alone there.

        A scale that is measured on the fly is measured on all of them together.
        """
        if (
            self.bare
            or self.facts.stateful
            or any(node.op.startswith("DynamicQuantize") for node in self.nodes)
        ):
            return False
        return all(port.shape and port.shape[0] is None for port in self.inputs)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or a Constant node; None of anything else."""
        from onnx import helper, numpy_helper

        if name in self.parts.weights:
            return np.asarray(numpy_helper.to_array(self.parts.weights[name]))
        node = self.producers.get(name)
        if node is None or node.op != "Constant":
            return None
        for attribute in node.proto.attribute:
            if attribute.name == "value":
                return np.asarray(numpy_helper.to_array(attribute.t))
            if attribute.name.startswith(("value_int", "value_float")):
                return np.asarray(helper.get_attribute_value(attribute))
        return None

    def upstream(self, names: Iterable[str]) -> list[Node]:
        """Every node that the tensors are computed from, constants included, in order."""
        return _upstream(self.producers, names)

    def weights_of(self, node: Node) -> int:
        """Numbers in the weights that a node reads, directly or through constant nodes."""
        if node.index not in self._weights:
            own = [name for name in node.reads if name not in self.depends]
            names = {*own, *(name for n in self.upstream(own) for name in n.reads)}
            self._weights[node.index] = sum(self._sizes.get(name, 0) for name in names)
        return self._weights[node.index]

    @cached_property
    def parameters(self) -> int:
        """Numbers in all weights."""
        read = {name for node in self.nodes for name in node.reads}
        return sum(size for name, size in self._sizes.items() if name in read)


class GraphParts:
    """Models of parts of a graph, and ONNX Runtime sessions of them, which share its weights.

    model: the whole file. weights: its initializers by name.
    """

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, Any],
        nodes: Sequence[Node],
        ports: Sequence[Port],
        depends: Set[str],
    ) -> None:
        self.model = model
        self.weights = weights
        self._nodes = nodes
        self._ports = ports
        self._depends = depends
        self._bare = is_bare(ports)
        self._producers = producers_of(nodes)

    @cached_property
    def types(self) -> dict[str, str]:
        """The type of every tensor that a node writes, as the runtime infers it."""
        names = [name for node in self._nodes for name in node.writes]
        model = self._copied(_upstream(self._producers, names), names, light=True)
        types = self.open_session(model, once=True).types
        return {**types, **{port.name: f"tensor({port.dtype})" for port in self._ports}}

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers."""
        return self.types.get(name, "") in (*FLOATS, "tensor(float32)", "tensor(float64)")

    def shapes(self, feeds: Feeds) -> dict[str, Shape]:
        """The measured shape of every tensor, in one run that keeps none of them."""
        from onnx import helper

        types = self.types
        names = [n for node in self._nodes for n in node.writes if types[n].startswith("tensor(")]
        model = self._copied(self._nodes, [f"{name}\0shape" for name in names], light=True)
        for name in names:
            model.graph.node.append(helper.make_node("Shape", [name], [f"{name}\0shape"]))
        arrays = {name: value[0] if self._bare else value for name, value in feeds.items()}
        found = self.open_session(model, bare=False, once=True)(arrays)
        measured = {n: tuple(map(int, value)) for n, value in zip(names, found, strict=True)}
        measured.update({name: tuple(tensor.dims) for name, tensor in self.weights.items()})
        measured.update({name: value.shape for name, value in arrays.items()})
        if self._bare:
            for name in self._depends & measured.keys():
                measured[name] = (1, *measured[name])
        return measured

    def nbytes(self, name: str, shapes: Mapping[str, Shape]) -> int:
        """Bytes of a tensor. shapes: of every tensor, as `shapes` measures them."""
        kind = self.types.get(name, "").removeprefix("tensor(").removesuffix(")")
        item = np.dtype(_DTYPES.get(kind, "float32")).itemsize
        return int(np.prod(shapes.get(name, (0,)))) * item

    def sizes(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(bytes of the weights, bytes that the other tensors of a run take at once)."""
        from onnx import helper

        last = {name: node.index for node in self._nodes for name in node.reads}
        now = most = 0
        for node in self._nodes:
            now += sum(self.nbytes(name, shapes) for name in node.writes)
            most = max(most, now)
            done = {n for n in (*node.reads, *node.writes) if last.get(n, -1) <= node.index}
            now -= sum(self.nbytes(name, shapes) for name in done if name in self._producers)
        weights = sum(
            int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            for tensor in self.weights.values()
        )
        return weights, most

    def encoder(self, outputs: Sequence[str]) -> bytes:
        """A model with the same inputs that gives the named tensors and holds no more."""
        return _bytes(self._copied(_upstream(self._producers, outputs), outputs))

    def tail(
        self,
        nodes: Iterable[Node],
        inputs: Mapping[str, Shape],
        outputs: Sequence[str],
        light: bool = False,
    ) -> Any:
        """A model of some of the nodes that starts at tensors in the middle of the graph.

        light: its large weights are only named, for `open_session`.
        """
        from onnx import TensorProto, helper

        model = self._copied(nodes, outputs, light)
        del model.graph.input[:]
        kinds = {"float": "FLOAT", "float32": "FLOAT", "float64": "DOUBLE"}
        for name, shape in inputs.items():
            kind = self.types[name].removeprefix("tensor(").removesuffix(")")
            number = TensorProto.DataType.Value(kinds.get(kind, kind.upper()))
            rank = len(shape) - self._bare
            free = [None] * rank
            model.graph.input.append(helper.make_tensor_value_info(name, number, free))
        return model

    def session(self, outputs: Sequence[str], threads: int = 1, device: str = "cpu") -> Session:
        """A session that gives the named tensors; all sessions of a graph share its weights."""
        model = self._copied(_upstream(self._producers, outputs), outputs, light=True)
        return self.open_session(model, threads, device)

    def open_session(
        self,
        model: Any,
        threads: int = 1,
        device: str = "cpu",
        bare: bool | None = None,
        once: bool = False,
    ) -> Session:
        """A session of a model that was cut from this graph, given the weights that it names."""
        names = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
        weights = {name: self._shared[name] for name in names}
        bare = self._bare if bare is None else bare
        return Session(_bytes(model), threads, device, bare, weights, once)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """The large weights as the runtime holds them: no session reads or keeps its own."""
        from onnx import numpy_helper

        runtime = require("onnxruntime")
        large = [
            tensor
            for tensor in self.weights.values()
            if np.prod(tensor.dims) >= _SHARED_FROM and tensor.data_type in _SHARED_TYPES
        ]
        values = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in large}
        return {n: runtime.OrtValue.ortvalue_from_numpy(value) for n, value in values.items()}

    def _named(self, name: str) -> Any:
        """An initializer without its values, which are handed over beside the model."""
        from onnx import TensorProto

        whole = self.weights[name]
        only = TensorProto(name=name, data_type=whole.data_type, dims=whole.dims)
        only.data_location = TensorProto.EXTERNAL
        only.external_data.add(key="location", value="shared")
        return only

    def _copied(self, nodes: Iterable[Node], outputs: Sequence[str], light: bool = False) -> Any:
        """A model of some of the nodes, its outputs not typed: the runtime infers them.

        light: its large weights are only named, for `open_session`.
        """
        onnx = require("onnx")
        nodes = list(nodes)
        model = onnx.ModelProto(
            ir_version=self.model.ir_version,
            opset_import=self.model.opset_import,
            producer_name="penult",
        )
        graph, read = model.graph, {name for node in nodes for name in node.reads} | {*outputs}
        graph.name = self.model.graph.name or "graph"
        graph.node.extend(node.proto for node in nodes)
        graph.input.extend(v for v in self.model.graph.input if v.name not in self.weights)
        own = [name for name in self.weights if name in read]
        named = {name for name in own if light and name in self._shared}
        graph.initializer.extend(
            self._named(name) if name in named else self.weights[name] for name in own
        )
        graph.sparse_initializer.extend(self.model.graph.sparse_initializer)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model


def _bytes(model: Any) -> bytes:
    return bytes(model.SerializeToString())


def _port(value: Any) -> Port:
    from onnx import helper

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        raise ModelError(f"the input {value.name!r} is no tensor, which can't be fed here")
    sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
             for d in kind.shape.dim]  # fmt: skip
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return Port(value.name, dtype, tuple(sizes) if kind.HasField("shape") else None)


def _in_order(graph: Any, given: set[str]) -> list[Any]:
    """The nodes, each behind what it reads: files from some converters are in disorder."""
    found: list[Any] = []
    there, pending = set(given), [(proto, _reads(proto)) for proto in graph.node]
    while pending:
        waiting = []
        for proto, reads in pending:
            if there.issuperset(reads):
                found.append(proto)
                there.update(proto.output)
            else:
                waiting.append((proto, reads))
        if len(waiting) == len(pending):
            missing = sorted({name for _, reads in waiting for name in reads} - there)
            raise ModelError(f"the graph reads {missing[0]!r}, which nothing in it writes")
        pending = waiting
    return found


def _reads(proto: Any) -> list[str]:
    return list(dict.fromkeys([*(name for name in proto.input if name), *_captured(proto)]))


def _node(index: int, proto: Any) -> Node:
    reads = _reads(proto)
    writes = tuple(name for name in proto.output if name)
    return Node(index, proto.op_type, proto.name, tuple(reads), writes, proto)


def _captured(proto: Any) -> Iterator[str]:
    """What the nested graphs of an If, Loop or Scan take from outside."""
    for attribute in proto.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                yield from (n for n in (*node.input, *_captured(node)) if n and n not in own)
                own.update(node.output)
            yield from (value.name for value in graph.output if value.name not in own)


def as_feeds(graph: OnnxGraph, tensors: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors or arrays in the types that the graph takes.

    Raises:
        ValueError: one is missing, or floats were given for whole numbers.
    """
    feeds = {}
    for port in graph.inputs:
        if port.name not in tensors:
            raise ValueError(f"the graph's input {port.name!r} was not given")
        value = np.asarray(tensors[port.name])
        if value.dtype != port.dtype:
            if port.dtype.kind in "iu" and value.dtype.kind == "f":
                raise ValueError(f"{port.name!r} takes {port.dtype}, and was given {value.dtype}")
            value = value.astype(port.dtype)
        feeds[port.name] = np.ascontiguousarray(value)
    return feeds
