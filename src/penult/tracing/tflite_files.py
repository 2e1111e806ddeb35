"""A TFLite file: its graph read from the flatbuffer and checked, and parts of it written.

Nothing that a file says of itself (places, sizes, types) is believed before it is compared with
what is there.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.errors import ModelError, cause
from penult.extras import require
from penult.tracing.tflite_operators import OPERATORS, REMEDY, VARIABLES

MARK = b"TFL3"  # behind the first four bytes of every file
_LARGEST = 2**31 - 1  # bytes of a flatbuffer
_MOST = 1_000_000  # tensors, operators and their operands of a file
_GRAPHS = 1_000  # of a file
_LABELS = 1 << 22  # bytes of a list of class names
_NAME = 1_000  # characters of a name, those of a fused operator
_NEWEST = 3  # version of the schema

# Number of a type in the file → how numpy has it; a text, a handle and complex numbers have no
# place among inputs and outputs.
TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16",
         8: "complex64", 9: "int8", 10: "float64", 11: "complex128", 12: "uint64", 15: "uint32",
         16: "uint16", 17: "int4", 18: "bfloat16"}  # fmt: skip
_BITS = {"int4": 4, "bfloat16": 16}


def read_file(path: Path) -> Any:
    """The model in a file, as the schema's objects; every number in it lies in its bounds.

    Raises:
        ModelError: it is no TFLite file, or is damaged, or calls what is not run here.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    if content[4:8] != MARK:
        raise ModelError(f"{path} is no TFLite file: its first bytes are others")
    if len(content) > _LARGEST:
        raise ModelError(f"{path} has more than 2 GB, more than can be cut here")
    try:
        _refuse_many(schema.Model.GetRootAs(content, 0))
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        problem = _problem(model, len(content))
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, MemoryError) as error:
        raise ModelError(f"{path} is damaged: {cause(error)}") from error
    if problem:
        raise ModelError(f"{path} is damaged: {problem}")
    _refuse_operators(model, path.name)
    for graph in model.subgraphs:
        _separate_reshapes(schema, model, graph)
    return model


def _separate_reshapes(schema: Any, model: Any, graph: Any) -> None:
    """Put the reshape in front of a fully connected operator that flattens its input itself: what
    its weights meet is a tensor then."""
    codes = names_of_operators(model)
    found = []
    for one in _list(graph.operators):
        if codes[one.opcodeIndex] == "FULLY_CONNECTED" and (width := _flattened_to(graph, one)):
            entering = graph.tensors[_all(one.inputs)[0]]
            flat, shape = _copied(entering), schema.TensorT()
            rows = int(np.prod(_all(entering.shape), dtype=object)) // width
            flat.name = text_of(entering.name) + "/flat"
            flat.shape = np.array([rows, width], np.int32)
            flat.shapeSignature = np.array([-1, width], np.int32)
            shape.name, shape.shape, shape.type = flat.name + "/shape", np.array([2], np.int32), 2
            shape.buffer = len(model.buffers)
            model.buffers.append(buffer_of(np.array([-1, width], np.int32)))
            into, own = len(graph.tensors), _all(one.inputs)
            graph.tensors += [flat, shape]
            if "RESHAPE" not in codes:
                code = schema.BuiltinOperator.RESHAPE
                model.operatorCodes.append(schema.OperatorCodeT(code, None, 1, code))
                codes.append("RESHAPE")
            kind = codes.index("RESHAPE")
            found.append(schema.OperatorT(kind, [own[0], into + 1], [into]))
            one.inputs = [into, *own[1:]]
        found.append(one)
    graph.operators = found


def _flattened_to(graph: Any, operator: Any) -> int:
    """The width to which an operator flattens an input of more axes; 0 where it does not."""
    own = _all(operator.inputs)
    if getattr(operator.builtinOptions, "keepNumDims", False) or len(own) < 2 or own[1] < 0:
        return 0
    entering, weight = (_all(graph.tensors[at].shape) for at in own[:2])
    return weight[-1] if own[0] >= 0 and len(entering) > 2 and weight else 0


def _refuse_many(root: Any) -> None:
    """Refuse a file whose parts stand for each other so often that they would fill the memory."""
    total, graphs = 0, root.SubgraphsLength()
    if graphs > _GRAPHS:
        raise ValueError(f"it has {graphs} graphs")
    total += root.BuffersLength() + root.OperatorCodesLength()
    for number in range(graphs):
        graph = root.Subgraphs(number)
        total += graph.TensorsLength() + graph.OperatorsLength()
        for at in range(graph.OperatorsLength() if total < _MOST else 0):
            operator = graph.Operators(at)
            total += operator.InputsLength() + operator.OutputsLength()
            if total > _MOST:
                break
        if total > _MOST:
            raise ValueError(f"it has more than {_MOST:,} tensors and operators")


def _problem(model: Any, size: int) -> str:
    """What is wrong with the numbers of a model; empty where they fit each other."""
    if model.version != _NEWEST:
        return f"its schema has version {model.version}, and {_NEWEST} is read"
    buffers, codes, graphs = model.buffers or [], model.operatorCodes or [], model.subgraphs or []
    if not graphs or not all(map(len, map(_all, (graphs[0].inputs, graphs[0].outputs)))):
        return "it holds no graph with inputs and outputs"
    if any(one.offset > 1 or one.size > 1 for one in buffers):
        return "its weights lie outside of the flatbuffer, which is not read"
    return next((words for graph in graphs for words in _problems(graph, buffers, len(codes))), "")


def _problems(graph: Any, buffers: Sequence[Any], codes: int) -> Iterator[str]:
    tensors = [] if graph.tensors is None else graph.tensors
    for number, tensor in enumerate(tensors):
        if words := _of_tensor(tensor, buffers):
            yield f"tensor {number} {words}"
    for number, one in enumerate([] if graph.operators is None else graph.operators):
        if not 0 <= one.opcodeIndex < codes:
            yield f"operator {number} has a kind that is not there"
        if not len(_all(one.inputs)) or not len(_all(one.outputs)):
            yield f"operator {number} has no inputs or no outputs"
        for places, least in ((one.inputs, -1), (one.outputs, 0), (one.intermediates, 0)):
            if any(not least <= at < len(tensors) for at in _all(places)):
                yield f"operator {number} names a tensor that is not there"
    for places in (graph.inputs, graph.outputs):
        if any(not 0 <= at < len(tensors) for at in _all(places)):
            yield "its inputs and outputs name a tensor that is not there"


def buffer_of(values: npt.NDArray[Any]) -> Any:
    """Values as a file holds them."""
    schema = require("ai_edge_litert.schema_py_generated")
    return schema.BufferT(np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8))


def _all(places: Any) -> Sequence[int]:
    return [] if places is None else [int(at) for at in places]


def _of_tensor(tensor: Any, buffers: Sequence[Any]) -> str:
    if not 0 <= tensor.buffer < len(buffers):
        return "has values that are not there"
    shape = _all(tensor.shape)
    if any(size < 0 for size in shape):
        return f"has the shape {shape}"
    if tensor.sparsity is not None:
        return "is sparse, which is not read"
    values = buffers[tensor.buffer].data
    if values is None or not len(values) or tensor.type not in TYPES:
        return ""
    kind = TYPES[tensor.type]
    bits = _BITS.get(kind) or 8 * np.dtype(kind).itemsize
    expected = (bits * int(np.prod(shape, dtype=object)) + 7) // 8
    return (
        "" if len(values) == expected else f"has {len(values)} bytes, and {expected} fit its shape"
    )


def names_of_operators(model: Any) -> list[str]:
    """The name of each kind of operator of a model, by its number; `CUSTOM:name` of its own."""
    schema = require("ai_edge_litert.schema_py_generated")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()
             if isinstance(number, int)}  # fmt: skip
    found = []
    for one in model.operatorCodes:
        name = names.get(max(one.builtinCode, one.deprecatedBuiltinCode), "UNKNOWN")
        found.append(f"{name}:{text_of(one.customCode)}" if name == "CUSTOM" else name)
    return found


def text_of(value: Any) -> str:
    """A name in the file, as it can be shown."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
    return "".join(one if one.isprintable() else "?" for one in text[:_NAME])


def _refuse_operators(model: Any, name: str) -> None:
    names = names_of_operators(model)
    used = {one.opcodeIndex for graph in model.subgraphs for one in _list(graph.operators)}
    for number in sorted(used):
        kind, _, own = names[number].partition(":")
        if kind in OPERATORS:
            continue
        if kind in VARIABLES:
            why = "keeps values beside the graph"
            remedy = "convert the model without a state or a table"
        else:
            why = "is not among those that are known to compute and do nothing else"
            remedy = REMEDY.get(kind, "convert the model again with other built-in operators")
        shown = f"the operator of its own {own[:80]!r}, which" if own else f"{kind}, which"
        raise ModelError(f"{name} calls {shown} {why}; nothing was run. {remedy.capitalize()}")


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def label_lists(path: Path) -> list[list[str]]:
    """The lists of names that a file carries behind its graph: texts with one name a line, in an
    archive that is appended (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata)."""
    found: list[list[str]] = []
    if not zipfile.is_zipfile(path):
        return found
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".txt") and entry.file_size <= _LABELS:
                    text = archive.read(entry).decode("utf-8-sig")
                    found.append([line.strip() for line in text.splitlines() if line.strip()])
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return []  # an archive that is none, or is locked: the graph is whole all the same
    return found


class Flatbuffer:
    """Writes parts of a model: some of its operators, with other inputs and outputs."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        """names: of the tensors of the first graph, each once."""
        self._schema = require("ai_edge_litert.schema_py_generated")
        self._model = model
        self._names = list(names)

    def write(
        self,
        operators: Iterable[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        constants: dict[int, Any],
    ) -> bytes:
        """A model of the operators, which may be others than the file's. inputs, outputs: numbers
        of tensors of the first graph. constants: of tensors that are given a value."""
        schema, model = self._schema, self._model
        first = model.subgraphs[0]
        operators = list(operators)
        nested = len(model.subgraphs) > 1
        used = sorted(
            {*inputs, *outputs, *constants}
            | {at for one in operators for at in (*_all(one.inputs), *_all(one.outputs),
                                                   *_all(one.intermediates)) if at >= 0}
        )  # fmt: skip
        places = {old: new for new, old in enumerate(used)} | {-1: -1}
        buffers = [*model.buffers] if nested else [schema.BufferT()]
        tensors = []
        for at in used:
            tensor = _copied(first.tensors[at])
            tensor.name = self._names[at]
            if at in constants:
                buffers.append(buffer_of(constants[at]))
                tensor.buffer = len(buffers) - 1
                tensor.shape = np.array(constants[at].shape, np.int32)
            elif at in inputs:
                tensor.buffer = 0
            elif not nested and (values := model.buffers[tensor.buffer].data) is not None:
                buffers.append(schema.BufferT(values))
                tensor.buffer = len(buffers) - 1
            elif not nested:
                tensor.buffer = 0
            tensors.append(tensor)
        moved = []
        for one in operators:
            own = _copied(one)
            for name in ("inputs", "outputs", "intermediates"):
                found = [places[at] for at in _all(getattr(one, name))]
                setattr(own, name, np.array(found, np.int32))
            moved.append(own)
        graph = schema.SubGraphT(
            tensors,
            np.array([places[at] for at in inputs], np.int32),
            np.array([places[at] for at in outputs], np.int32),
            moved,
            "main",
        )
        return self._packed(buffers, [graph, *model.subgraphs[1:]])

    def _packed(self, buffers: Sequence[Any], graphs: Sequence[Any]) -> bytes:
        flatbuffers, schema = require("flatbuffers"), self._schema
        whole = schema.ModelT(
            version=_NEWEST,
            operatorCodes=self._model.operatorCodes,
            subgraphs=[*graphs],
            description="penult",
            buffers=[_aligned(schema, one) for one in buffers],
        )
        builder = flatbuffers.Builder(1024)
        builder.Finish(whole.Pack(builder), file_identifier=MARK)
        return bytes(builder.Output())


def _copied(one: Any) -> Any:
    new = type(one)()
    new.__dict__.update(one.__dict__)
    return new


def _aligned(schema: Any, buffer: Any) -> Any:
    """The same buffer, which writes its bytes at a multiple of 16, as the runtime reads them."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            data = None
            if self.data is not None and len(self.data):
                values = np.ascontiguousarray(self.data, np.uint8)
                builder.StartVector(1, len(values), 16)
                builder.head -= len(values)
                builder.Bytes[builder.head : builder.head + len(values)] = values.tobytes()
                data = builder.EndVector()
            schema.BufferStart(builder)
            if data is not None:
                schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return Aligned(buffer.data)
