"""Conditions in an ONNX file that no item decides, such as that of a sample rate: the branch that
is always taken is put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from penult.extras import require

# Operations on constants by which such a condition is computed.
_PLAIN = frozenset("Identity Equal Not And Or Cast Greater Less GreaterOrEqual LessOrEqual".split())
_SMALL = 64  # numbers in a constant that a condition may be made of


def take_branches(model: Any) -> None:
    """Put the nodes of the branch that is always taken in the place of each `If` whose condition
    is made of constants: changes the model."""
    onnx = require("onnx")
    graph = model.graph
    given = {value.name for value in graph.input}
    known = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer
             if np.prod(one.dims) <= _SMALL and one.name not in given}  # fmt: skip
    used = {*given, *(one.name for one in graph.initializer)}
    used |= {name for node in graph.node for name in node.output}
    nodes: list[Any] = []
    changed = False
    pending = list(graph.node)[::-1]
    while pending:
        node = pending.pop()
        if node.op_type == "If" and not node.domain and node.input[0] in known:
            taken = "then_branch" if bool(known[node.input[0]].any()) else "else_branch"
            branch = next(one.g for one in node.attribute if one.name == taken)
            names = _names(branch, used)
            used.update(names.values())
            graph.initializer.extend(_renamed_weights(branch, names))
            pending += _inlined(node, branch, names)[::-1]
            changed = True
            continue
        known |= _value_of(node, known)
        nodes.append(node)
    if changed:
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)


def _value_of(node: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The value of a node that is made of known ones, by name; empty of any other."""
    onnx = require("onnx")
    if node.op_type == "Constant":
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        small = value is not None and np.prod(value.dims) <= _SMALL
        return {node.output[0]: onnx.numpy_helper.to_array(value)} if small else {}
    if node.domain or node.op_type not in _PLAIN or any(name not in known for name in node.input):
        return {}
    from onnx.reference import ReferenceEvaluator

    try:
        found = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
    except Exception:  # what cannot be computed stays a node
        return {}
    return dict(zip(node.output, map(np.asarray, found), strict=False))


def _names(branch: Any, used: Set[str]) -> dict[str, str]:
    """What a branch makes or holds itself → a name that nothing else has."""
    own = [one.name for one in branch.initializer]
    own += [name for node in branch.node for name in node.output if name]
    return {name: _free(name, used) for name in own}


def _free(name: str, used: Set[str]) -> str:
    return name if name not in used else _free(f"{name}'", used)


def _renamed_weights(branch: Any, names: Mapping[str, str]) -> Iterable[Any]:
    for one in branch.initializer:
        copy = type(one).FromString(one.SerializeToString())
        copy.name = names[one.name]
        yield copy


def _inlined(node: Any, branch: Any, names: Mapping[str, str]) -> list[Any]:
    """The nodes of a branch, and one for each output of the `If`."""
    helper = require("onnx").helper
    found = []
    for one in branch.node:
        copy = type(one).FromString(one.SerializeToString())
        _rename(copy, names)
        found.append(copy)
    for made, wanted in zip(branch.output, node.output, strict=False):
        if wanted:
            found.append(helper.make_node("Identity", [names.get(made.name, made.name)], [wanted]))
    return found


def _rename(node: Any, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        for at, name in enumerate(field):
            field[at] = names.get(name, name)
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inner = {name: new for name, new in names.items()
                     if name not in {value.name for value in graph.input}}  # fmt: skip
            for one in graph.node:
                _rename(one, inner)
            for value in graph.output:
                value.name = inner.get(value.name, value.name)
