"""Measure what the logits of a graph need of a tensor: run the rest of the graph with it exchanged.

The same question as in `statements.py`, asked of an ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence

from penult.splitting.certificate import POWER, TOLERANCE
from penult.splitting.graph import Node
from penult.splitting.graph_head import GraphHead
from penult.splitting.graph_proof import relative
from penult.splitting.session import Array, Feeds, Session
from penult.splitting.statements import Statement
from penult.splitting.taps import Tap


def state_graph(cut: GraphHead, taps: Sequence[Tap]) -> dict[str, Statement]:
    """For each tap: what enters from the first example, everything else from another one."""
    if not taps:
        return {}
    names = list(dict.fromkeys(tap.module for tap in taps))
    whole = cut.graph.session([cut.logits, *names])
    mine, *values = whole(cut.examples[0])
    seen = dict(zip(names, values, strict=True))
    other, theirs = _other(cut, whole, mine)
    if other is None or theirs is None:
        return {tap.name: "not proved" for tap in taps}
    found: dict[str, Statement] = {}
    for tap in taps:
        mixed = exchanged(cut, other, tap.module, seen[tap.module])
        if mixed is None:
            found[tap.name] = "not proved"
        elif relative(mine, mixed) <= TOLERANCE:
            found[tap.name] = "sufficient"
        else:
            found[tap.name] = "unused" if relative(theirs, mixed) <= TOLERANCE else "partial"
    return found


def _other(cut: GraphHead, whole: Session, mine: Array) -> tuple[Feeds | None, Array | None]:
    """Another example of the same shapes whose logits differ enough, and its logits."""
    first = cut.examples[0]
    for feeds in cut.examples[1:]:
        if any(feeds[name].shape != first[name].shape for name in first):
            continue
        theirs = whole(feeds)[0]
        if POWER * TOLERANCE <= relative(mine, theirs) < float("inf"):
            return feeds, theirs
    return None, None


def exchanged(cut: GraphHead, other: Feeds, name: str, value: Array) -> Array | None:
    """The other input's logits with the tensor `name` taken from elsewhere; None if that does not
    run."""
    graph = cut.graph
    if name == cut.logits:
        return value
    nodes = _around(cut, name)
    read = {tensor for node in nodes for tensor in node.reads}
    ports = {port.name for port in graph.inputs} & read
    inputs = {tensor: cut.shapes[tensor] for tensor in (name, *sorted(ports))}
    model = graph.tail(nodes, inputs, [cut.logits], light=True)
    for node in model.graph.node:  # what makes it, where that makes something else as well
        for number, written in enumerate(node.output):
            if written == name:
                node.output[number] = f"{name}\0own"
    try:
        return graph.opened(model)({**other, name: value})[0]
    except ValueError:
        return None


def _around(cut: GraphHead, name: str) -> list[Node]:
    """Every node that the logits need once the tensor `name` is given."""
    found: dict[int, Node] = {}
    pending = [cut.logits]
    while pending:
        tensor = pending.pop()
        node = cut.graph.producers.get(tensor)
        if tensor != name and node is not None and node.index not in found:
            found[node.index] = node
            pending += node.reads
    return [found[index] for index in sorted(found)]
