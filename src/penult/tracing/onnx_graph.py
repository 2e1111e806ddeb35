"""An ONNX file as a graph and as an open session: what depends on what, which shapes, cut where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from penult.errors import ModelError, UsageError, cause
from penult.extras import require
from penult.tracing.graph import (
    CONTRACTIONS,
    RESHAPES,
    SHAPE_ONLY,
    Array,
    Feeds,
    Graph,
    Node,
    Port,
    Shape,
    is_bare,
    producers_of,
    upstream_of,
)
from penult.tracing.onnx_files import inlined, read_model, refuse_operators
from penult.tracing.onnx_inputs import prepare_file
from penult.tracing.onnx_trees import add_leaves

ONNXRUNTIME = "onnxruntime"


class OnnxSession:
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


_SHARED_FROM = 1024  # numbers in a weight that sessions share; small ones tell shapes
_SHARED_TYPES = {1, 2, 3, 6, 7, 10, 11}  # float, uint8, int8, int32, int64, float16, double
_LARGEST = 2**31 - 1  # a serialised graph cannot be larger
# Operations that draw random numbers; a Dropout does where it is told that this is training.
_DRAWING = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli".split()
)


@dataclass(frozen=True, slots=True)
class OnnxNode(Node):
    """proto: the operation in the file."""

    proto: Any = None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or the default."""
        from onnx import helper

        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default


class OnnxGraph(Graph):
    """A file's graph, with its functions inlined."""

    runtime = ONNXRUNTIME
    format = "ONNX"
    suffix = ".onnx"
    nodes: list[OnnxNode]
    parts: OnnxParts

    def __init__(
        self,
        model: Any,
        sample_rate: int | None = None,
        name: str = "the graph",
        given: Mapping[str, float] | None = None,
    ) -> None:
        """sample_rate: for an input that takes one. name: of the file, for messages. given: numbers
        of inputs that are part of no item."""
        model = inlined(model, name)
        refuse_operators(model, name)
        self.facts = prepare_file(model, sample_rate, name, given)
        self.leaves = add_leaves(model)
        graph = model.graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.inputs = [_port(v) for v in graph.input if v.name not in weights]
        self.outputs = [value.name for value in graph.output]
        there = {*weights, *sparse, *(port.name for port in self.inputs)}
        self.nodes = [_node(index, proto) for index, proto in enumerate(_in_order(graph, there))]
        self.parts = OnnxParts(model, weights, self.nodes, self.inputs, self.depends)
        self._sizes = {name: int(np.prod(tensor.dims)) for name, tensor in weights.items()}

    @classmethod
    def read(
        cls,
        path: Path,
        sample_rate: int | None = None,
        given: Mapping[str, float] | None = None,
    ) -> OnnxGraph:
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
        return cls(model, sample_rate, path.name, given)

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
        if not isinstance(node, OnnxNode) or node.op != "Constant":
            return None
        for attribute in node.proto.attribute:
            if attribute.name == "value":
                return np.asarray(numpy_helper.to_array(attribute.t))
            if attribute.name.startswith(("value_int", "value_float")):
                return np.asarray(helper.get_attribute_value(attribute))
        return None

    def declared(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of an output in the file, None where a size is free."""
        value = next(v for v in self.parts.model.graph.output if v.name == name)
        kind = value.type.tensor_type
        return _sizes(kind) if kind.HasField("shape") else None

    def size_of(self, name: str) -> int:
        """Numbers in an initializer."""
        return self._sizes.get(name, 0)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        from onnx import helper

        return sum(
            int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            for tensor in self.parts.weights.values()
        )

    def draws(self, node: Node) -> bool:
        """Whether an operation, or one of a graph inside of it, draws random numbers."""
        assert isinstance(node, OnnxNode)
        return self._draws(node.proto)

    def _draws(self, proto: Any) -> bool:
        if proto.op_type in _DRAWING:
            return True
        if proto.op_type == "Dropout" and len(proto.input) > 2 and proto.input[2]:
            training = self.constant(proto.input[2])
            ratio = self.constant(proto.input[1]) if proto.input[1] else None
            off = training is not None and not training.any()
            return not (off or (ratio is not None and not ratio.any()))
        inside = [nested for one in proto.attribute for nested in (*one.graphs, one.g)]
        return any(self._draws(node) for nested in inside for node in nested.node)

    def branch_ops(self, node: Node) -> set[str]:
        """Names of the operations that make what the branches of an `If` give."""
        assert isinstance(node, OnnxNode)
        return _ops_of_branches(node.proto) if node.op == "If" else set()

    def chooses_shape(self, node: Node) -> bool:
        """Whether an `If` has nothing but reshapes in its branches."""
        assert isinstance(node, OnnxNode)
        return node.op == "If" and _copies(node.proto)


def _copies(proto: Any) -> bool:
    inner = [one for attribute in proto.attribute for one in attribute.g.node]
    plain = RESHAPES - {"Transpose"} | {"Constant"}
    return all(_copies(one) if one.op_type == "If" else one.op_type in plain for one in inner)


def _ops_of_branches(proto: Any) -> set[str]:
    found: set[str] = set()
    for branch in (attribute.g for attribute in proto.attribute if attribute.HasField("g")):
        producers = {name: node for node in branch.node for name in node.output}
        pending, seen = [value.name for value in branch.output], set[str]()
        while pending:
            node = producers.get(pending.pop())
            if node is None or node.op_type in CONTRACTIONS or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            found.add(node.op_type)
            pending += node.input
            if node.op_type == "If":
                found |= _ops_of_branches(node)
    return found


class OnnxParts:
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
        model = self._copied(upstream_of(self._producers, names), names, light=True)
        found = self._open(model, once=True).types
        types = {
            name: kind.removeprefix("tensor(").removesuffix(")") for name, kind in found.items()
        }
        return {**types, **{port.name: str(port.dtype) for port in self._ports}}

    def shapes(self, feeds: Feeds) -> dict[str, Shape]:
        """The measured shape of every tensor, in one run that keeps none of them."""
        from onnx import helper

        types = self.types
        names = [n for node in self._nodes for n in node.writes if "(" not in types[n]]
        model = self._copied(self._nodes, [f"{name}\0shape" for name in names], light=True)
        for name in names:
            model.graph.node.append(helper.make_node("Shape", [name], [f"{name}\0shape"]))
        arrays = {name: value[0] if self._bare else value for name, value in feeds.items()}
        found = self._open(model, bare=False, once=True)(arrays)
        measured = {n: tuple(map(int, value)) for n, value in zip(names, found, strict=True)}
        measured.update({name: tuple(tensor.dims) for name, tensor in self.weights.items()})
        measured.update({name: value.shape for name, value in arrays.items()})
        if self._bare:
            for name in self._depends & measured.keys():
                measured[name] = (1, *measured[name])
        return measured

    def session(self, outputs: Sequence[str], threads: int = 1, device: str = "cpu") -> OnnxSession:
        """A session that gives the named tensors; all sessions of a graph share its weights."""
        model = self._copied(upstream_of(self._producers, outputs), outputs, light=True)
        return self._open(model, threads, device)

    def tail(
        self,
        nodes: Iterable[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        shapes: Mapping[str, Shape],
    ) -> OnnxSession:
        """A session of some of the nodes that starts at tensors in the middle of the graph.

        A shape of something in front of them is a constant, but for the size of the batch, which is
        that of the first input.
        """
        from onnx import TensorProto, helper

        nodes = list(nodes)
        model = self._copied(nodes, outputs, light=True)
        del model.graph.input[:]
        kinds = {"float": "FLOAT", "float32": "FLOAT", "float64": "DOUBLE"}
        for name in inputs:
            kind = self.types[name]
            number = TensorProto.DataType.Value(kinds.get(kind, kind.upper()))
            free = [None] * (len(shapes[name]) - self._bare)
            model.graph.input.append(helper.make_tensor_value_info(name, number, free))
        there = {name for node in nodes for name in node.writes} | {*inputs}
        del model.graph.node[:]
        for node in nodes:
            assert isinstance(node, OnnxNode)
            source = node.reads[0] if node.reads else ""
            if node.op in SHAPE_ONLY and source not in there and source not in self.weights:
                model.graph.node.extend(_shape_from(node, shapes, inputs[0]))
                continue
            model.graph.node.append(node.proto)
            for number, written in enumerate(node.proto.output):
                if written in inputs:  # what is given, where its node makes something else as well
                    model.graph.node[-1].output[number] = f"{written}\0own"
        return self._open(model)

    def _open(
        self,
        model: Any,
        threads: int = 1,
        device: str = "cpu",
        bare: bool | None = None,
        once: bool = False,
    ) -> OnnxSession:
        """A session of a model that was cut from this graph, given the weights that it names."""
        names = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
        weights = {name: self._shared[name] for name in names}
        bare = self._bare if bare is None else bare
        return OnnxSession(_bytes(model), threads, device, bare, weights, once)

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

        light: its large weights are only named, for `_open`.
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
        graph.node.extend(node.proto for node in nodes if isinstance(node, OnnxNode))
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
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return Port(value.name, dtype, _sizes(kind) if kind.HasField("shape") else None)


def _sizes(kind: Any) -> tuple[int | None, ...]:
    return tuple(
        one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else None
        for one in kind.shape.dim
    )


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


def _node(index: int, proto: Any) -> OnnxNode:
    operands, writes = tuple(proto.input), tuple(name for name in proto.output if name)
    reads, op = tuple(_reads(proto)), proto.op_type
    return OnnxNode(index, op, proto.name, operands, reads, writes, op, "", proto)


def _shape_from(node: OnnxNode, shapes: Mapping[str, Shape], place: str) -> list[Any]:
    """What a shape of the first half was, with the batch size of the tensor `place` in it.

    Only where the rest of the shape is the same for every input is that right: the proof sees.
    """
    from onnx import helper, numpy_helper

    shape = shapes[node.reads[0]]
    name, write = node.name or node.writes[0], node.writes[0]
    if node.op == "Size" or shape[:1] != shapes[place][:1]:
        value = np.array(int(np.prod(shape)) if node.op == "Size" else shape, np.int64)
        return [helper.make_node("Constant", [], [write], value=numpy_helper.from_array(value))]
    start, end = node.attribute("start", 0), node.attribute("end", len(shape))
    parts = {f"{name}\0zero": [0], f"{name}\0rest": shape[1:], f"{name}\0start": [start],
             f"{name}\0end": [end]}  # fmt: skip
    made = [
        helper.make_node("Constant", [], [key],
                         value=numpy_helper.from_array(np.array(value, np.int64)))
        for key, value in parts.items()
    ]  # fmt: skip
    zero, rest, first, last = parts
    return [
        *made,
        helper.make_node("Shape", [place], [f"{name}\0place"]),
        helper.make_node("Gather", [f"{name}\0place", zero], [f"{name}\0batch"]),
        helper.make_node("Concat", [f"{name}\0batch", rest], [f"{name}\0all"], axis=0),
        helper.make_node("Slice", [f"{name}\0all", first, last], [write]),
    ]


def _captured(proto: Any) -> Iterator[str]:
    """What the nested graphs of an If, Loop or Scan take from outside."""
    for attribute in proto.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                yield from (n for n in (*node.input, *_captured(node)) if n and n not in own)
                own.update(node.output)
            yield from (value.name for value in graph.output if value.name not in own)
