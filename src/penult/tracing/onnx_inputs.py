"""Inputs of an ONNX file that no item fills (a sample rate, a switch, a state) made constants, and
what the operations of other libraries say of their classes.

All of it is done to the file's graph before anything else looks at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from penult.errors import UsageError
from penult.extras import require
from penult.tracing.graph import FileFacts
from penult.tracing.onnx_branches import take_branches

# Names of scalar inputs, in lower case and without what is no letter.
_RATES = frozenset(
    "sr fs rate samplerate samplingrate inputsr inputsamplerate samplingfrequency".split()
)
_SWITCHES = frozenset(
    "training istraining train istrain trainmode trainingmode phasetrain learningphase "
    "keraslearningphase istrainingphase".split()
)
_KEPT = frozenset("keepprob dropoutkeepprob".split())
# Words in the names of inputs that carry a state from call to call.
_STATES = frozenset(
    "h c h0 c0 hn cn hx cx hc state states hidden cell cache caches memory mem past rnn lstm "
    "gru".split()
)


def prepare_file(
    model: Any, sample_rate: int | None, name: str, given: Mapping[str, float] | None = None
) -> FileFacts:
    """Tensors in place of lists of dictionaries, constants in place of inputs that no item fills:
    changes the model. given: numbers of inputs, by name.

    Raises:
        UsageError: an input that is one number, and nothing says which; or there is none of a name.
    """
    labels = class_labels(model)
    open_maps(model)
    facts = fix_inputs(model, sample_rate, name, given)
    facts.metadata = {entry.key: entry.value for entry in model.metadata_props}
    facts.class_labels = labels
    take_branches(model)
    return facts


def fix_inputs(
    model: Any,
    sample_rate: int | None,
    name: str = "the graph",
    given: Mapping[str, float] | None = None,
) -> FileFacts:
    """Make initializers of a model's inputs that are no item: changes the model.

    sample_rate: for an input that takes one. Zeros for states, false for switches of training.

    Raises:
        UsageError: an input that is one number, and nothing says which.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    ports = [value for value in graph.input if value.name not in weights]
    fixed = FileFacts()
    values: dict[str, Any] = {}
    states = _states(ports, graph.output)
    require_inputs(given or {}, [port.name for port in ports], name)
    for port in ports:
        if port.name in (given or {}):
            values[port.name] = _as_given(port, (given or {})[port.name], name)
            fixed.values[port.name] = f"{(given or {})[port.name]:g}"
        elif port.name in states:
            values[port.name] = np.zeros(_sizes(port, port.name, name), _dtype(port))
            sizes = " × ".join(map(str, values[port.name].shape))
            fixed.values[port.name] = f"a fresh state for each item (zeros, {sizes})"
            fixed.stateful = True
        elif len(ports) > 1 and _is_scalar(port):
            value = _scalar(port, sample_rate, name)
            values[port.name] = value
            fixed.values[port.name] = str(value.reshape(-1)[0])
    if len(values) < len(ports):
        fixed.outputs = [output for state in states.values() for output in state]
        _replace(graph, values, fixed.outputs)
        return fixed
    return FileFacts()


def require_inputs(given: Mapping[str, float], names: Sequence[str], file: str) -> None:
    """Refuse names of inputs that a file has not, or that leave none for the items.

    Raises:
        UsageError: there are such.
    """
    for name in given:
        if name not in names:
            raise UsageError(f"--input {name}: {file} takes {', '.join(names)}")
    if given and len(given) == len(names):
        raise UsageError(
            f"--input {', '.join(given)}: {file} takes nothing else, so that items could not go "
            "into it"
        )


def _as_given(port: Any, value: float, name: str) -> Any:
    """The number in the type and shape of an input."""
    dims, dtype = _dims(port), _dtype(port)
    if dtype.kind in "iub" and not float(value).is_integer():
        raise UsageError(f"--input {port.name}={value:g}: {name} takes {dtype}, a whole number")
    return np.full(_sizes(port, port.name, name) if dims else [], value, dtype)


def _replace(graph: Any, values: dict[str, Any], outputs: Iterable[str]) -> None:
    from onnx import numpy_helper

    kept = [value for value in graph.input if value.name not in values]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in values.items())
    left = [value for value in graph.output if value.name not in {*outputs}]
    if left:
        del graph.output[:]
        graph.output.extend(left)


def _dims(value: Any) -> list[int | None] | None:
    """Sizes of a value, None where free; None as a whole where nothing is known."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in kind.shape.dim]  # fmt: skip


def _dtype(value: Any) -> Any:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.rpartition("/")[2].partition(":")[0].lower())


def _is_scalar(value: Any) -> bool:
    """One number: no axis at all, or a single axis of one that is called like a setting."""
    dims = _dims(value)
    return dims == [] or (dims == [1] and _letters(value.name) in _RATES | _SWITCHES | _KEPT)


def _scalar(port: Any, sample_rate: int | None, name: str) -> Any:
    letters, dtype = _letters(port.name), _dtype(port)
    shape = [1] * len(_dims(port) or ())
    if letters in _RATES:
        if sample_rate is None:
            raise UsageError(
                f"{name} takes the sample rate of its sound as an input, {port.name!r}: give it "
                "with --sample-rate"
            )
        return np.full(shape, sample_rate, dtype)
    if letters in _SWITCHES:
        return np.full(shape, 0, dtype)
    if letters in _KEPT:
        return np.full(shape, 1, dtype)
    raise UsageError(
        f"{name} takes {port.name!r}, one number of {dtype} and part of no item, and nothing says "
        f"which: give it with --input {port.name}=NUMBER"
    )


def _states(ports: list[Any], outputs: Iterable[Any]) -> dict[str, list[str]]:
    """Inputs that carry a state, and the outputs that are the next one of each."""
    shapes = {output.name: _dims(output) for output in outputs}
    found: dict[str, list[str]] = {}
    for port in ports:
        dims = _dims(port)
        if not dims or not _words(port.name) & _STATES or _dtype(port).kind != "f":
            continue
        taken = {name for names in found.values() for name in names}
        next_ones = [
            name
            for name, other in shapes.items()
            if name not in taken and _words(name) & _STATES and _agree(dims, other)
        ]
        if next_ones:
            found[port.name] = next_ones[:1]
    return found if len(found) < len(ports) else {}


def _words(name: str) -> set[str]:
    """`stateN` → state; `lstm_h_in` → lstm, h, in."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return {word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word} | {
        word.lower() for word in re.split(r"[^A-Za-z]+", spaced) if word
    }


def _agree(dims: list[int | None], other: list[int | None] | None) -> bool:
    """Whether two shapes can be the same; an unknown one can be any."""
    return not other or (
        len(dims) == len(other)
        and all(a is None or b is None or a == b for a, b in zip(dims, other, strict=True))
    )


def _sizes(port: Any, label: str, name: str) -> list[int]:
    dims = _dims(port) or []
    if sum(size is None for size in dims) > 1:
        raise UsageError(
            f"{name} keeps a state from call to call, and takes it as {label!r}, of free length: a "
            "fresh one for each item can't be made up. Export the model without that input, or "
            "with its sizes fixed"
        )
    return [1 if size is None else size for size in dims]


def open_maps(model: Any) -> None:
    """Put the tensor of probabilities in place of the list of dictionaries that scikit-learn's
    exports return (ZipMap): changes the model."""
    helper = require("onnx").helper
    for node in model.graph.node:
        if node.op_type != "ZipMap":
            continue
        for value in model.graph.output:
            if value.name == node.output[0]:
                value.CopyFrom(helper.make_tensor_value_info(value.name, 1, None))
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]


def class_labels(model: Any) -> list[str]:
    """The class names that operations of ai.onnx.ml carry, or the list that an index picks a label
    from; empty where there are none."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name.startswith("classlabels_"):
                found = [*attribute.strings, *attribute.ints]
                if found:
                    return [v.decode() if isinstance(v, bytes) else str(v) for v in found]
    return next(_picked_labels(model), [])


def _picked_labels(model: Any) -> Iterator[list[str]]:
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    best = {name for node in model.graph.node if node.op_type in ("ArgMax", "TopK")
            for name in node.output}  # fmt: skip
    for node in model.graph.node:
        if node.op_type != "ArrayFeatureExtractor" or not best & {*node.input}:
            continue
        if node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]]).reshape(-1)
            yield [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
