"""A graph as a classifier: which output is the logits, its taps, and its proved cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from penult.errors import HeadNotFound, ModelError, TapError, UsageError, listed
from penult.tracing.anatomy import Anatomy, refuse_random
from penult.tracing.certificate import Certificate
from penult.tracing.graph import CONTRACTIONS, Array, Feeds, Graph
from penult.tracing.graph_head import NESTED, GraphHead
from penult.tracing.graph_proof import prove
from penult.tracing.graph_structure import channel_axis, cut_points, layers
from penult.tracing.scores import (
    SIGMOID,
    SOFTMAX,
    Activation,
    class_count,
    in_unit_range,
    is_applied,
    recognised,
)
from penult.tracing.spots import Tap

TENSOR = "tensor"  # the side of a tap that is named by its tensor

# What turns logits into probabilities, and what the scores are then.
ENDS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def find_logits(graph: Graph, output: str | None = None, n_labels: int | None = None) -> str:
    """The name of the classifier's output.

    output: name or number of the user's choice. n_labels: the number of classes, where it is
    known.

    Raises:
        ModelError: none can be, or several can; they are named.
        UsageError: the named one is no output of floats.
    """
    is_float = graph.is_float
    floats = [name for name in graph.outputs if is_float(name) and name in graph.depends]
    if output is not None:
        numbered = {str(number): name for number, name in enumerate(graph.outputs)}
        for found in (output, graph.find(output), numbered.get(output)):  # names may be numbers
            if found in floats:
                return str(found)
        raise UsageError(
            f"{output!r} is no output of floats of this graph; it has "
            f"{listed(map(repr, floats)) or 'none'}"
        )
    if not floats:
        raise ModelError("the graph gives no tensor of floats, so no logits can be read from it")
    named = [name for name in floats if name.lower() == "logits"]
    above = {n for name in floats for node in graph.upstream([name]) for n in node.reads}
    last = named or [name for name in floats if name not in above]
    if len(last) > 1 and n_labels is not None:
        sizes = {name: graph.declared(name) for name in last}
        last = [n for n in last if (shape := sizes[n]) and shape[-1] == n_labels] or last
    if len(last) == 1:
        return str(last[0])
    raise ModelError(
        f"the graph has several outputs that could be the logits: {listed(map(repr, last))}; "
        f"name one of them as FILE{graph.suffix}#OUTPUT"
    )


def before_scores(graph: Graph, output: str) -> tuple[str, str]:
    """(the tensor that holds the logits, the function that the file applies to them): an output of
    probabilities has its logits in front of the last softmax or sigmoid."""
    name = output
    while (node := graph.producers.get(name)) is not None:
        if node.op in ENDS:
            return node.reads[0], ENDS[node.op]
        if node.op not in graph.copies:
            break
        name = node.reads[0]
    return output, ""


_SIGMOIDS = {"Sigmoid", "HardSigmoid"}
_FARTHEST = 48  # tensors in front of an output that are tried as its logits


def find_activation(
    graph: Graph, output: str, examples: Sequence[Feeds]
) -> tuple[str, Activation, str]:
    """(the tensor of logits, the activation behind it, the name of what the output shows).

    Found by value: the tensor whose softmax or sigmoid the output is, on every example. It may be
    spelt out (ReduceMax, Sub, Exp, ReduceSum, Div). Where there is none, probabilities that sum to
    1, or that come out of a sigmoid, are their own evidence.
    """
    session = graph.parts.session([output])
    scores = [session(feeds)[0] for feeds in examples]
    if in_unit_range(scores):
        name, kind = _undone(graph, output, examples, scores)
        if name:
            return name, Activation(kind), kind
    shown = recognised([flat(one) for one in scores])
    if not shown and in_unit_range(scores) and _SIGMOIDS & _ops_in_front(graph, output):
        shown = SIGMOID
    if shown in (SOFTMAX, SIGMOID):
        return output, Activation(shown, inside=True), shown
    return output, Activation(), shown


def _undone(
    graph: Graph, output: str, examples: Sequence[Feeds], scores: Sequence[Array]
) -> tuple[str, str]:
    """(the tensor that an activation makes the scores of, which one); empty where there is none."""
    near = _in_front(graph, output)
    session = graph.parts.session(near) if near else None
    found = [session(feeds) for feeds in examples] if session is not None else []
    half = graph.parts.types.get(output, "").endswith("float16")
    named = before_scores(graph, output)[0]
    several = class_count(scores[0].shape) > 1  # of one class a softmax is 1, whatever its logit
    for at, name in sorted(enumerate(near), key=lambda pair: pair[1] != named):
        pairs = [(values[at], one) for values, one in zip(found, scores, strict=True)]
        for kind in (SOFTMAX, SIGMOID) if several else (SIGMOID,):
            step = graph.resolution(output) if name == named else 0.0
            if all(_is_applied(kind, one, other, half, step) for one, other in pairs):
                return name, kind
    return "", ""


def flat(values: Array) -> Array:
    """(B, K, 1, 1) as (B, K)."""
    if values.ndim <= 2 or values.shape[-1] != 1:
        return values
    return flat(values[..., 0])


def _is_applied(kind: str, logits: Array, scores: Array, half: bool, step: float) -> bool:
    one, other = flat(logits), flat(scores)
    if one.size != other.size:
        return False
    return is_applied(kind, one.reshape(other.shape), other, half, step)


def _in_front(graph: Graph, output: str) -> list[str]:
    """Float tensors from which the output is made without weights, the farthest first."""
    found: list[str] = []
    pending, seen = [output], {output}
    while pending and len(found) < _FARTHEST:
        node = graph.producers.get(pending.pop(0))
        if node is None or node.op in CONTRACTIONS or node.op in NESTED - {"If"}:
            continue
        for name in node.reads:
            if name in graph.depends and name not in seen and graph.is_float(name):
                seen.add(name)
                found.append(name)
                pending.append(name)
    ports = {port.name for port in graph.inputs}
    order = {name: node.index for name, node in graph.producers.items()}
    return sorted((name for name in found if name not in ports), key=lambda name: order[name])


def _ops_in_front(graph: Graph, output: str) -> set[str]:
    """Names of the operations that make an output out of what leaves the last weights."""
    names = {output, *_in_front(graph, output)}
    makers = [node for name in names if (node := graph.producers.get(name)) is not None]
    return {node.op for node in makers}.union(*map(graph.branch_ops, makers))


class GraphCut(GraphHead):
    """A graph, dissected: head and cut, their proof, and the taps."""

    def tap(self, name: str, tensor: str) -> Tap:
        """A tensor of the graph as a tap."""
        return Tap(name, tensor, TENSOR, 0, self.shapes[tensor], channel_axis(self, tensor))

    @cached_property
    def taps(self) -> dict[str, Tap]:
        """`backbone`, `prelogits`, `layer:0` … `layer:N`."""
        try:
            places = self.cut.places if self.certificate.ok else ()
        except HeadNotFound:
            places = ()
        end = places[0] if len(places) == 1 else self.logits
        points = [name for name in cut_points(self.graph, end) if self._is_hidden(name)]
        taps = {}
        if points:
            taps["backbone"] = self.tap("backbone", points[-1])
        if len(places) == 1:
            taps["prelogits"] = self.tap("prelogits", places[0])
            taps.setdefault("backbone", self.tap("backbone", places[0]))
        if self.graph.leaves:
            taps["leaves"] = self.tap("leaves", self.graph.leaves)
        for number, name in enumerate(layers(self.graph, end)):
            if not self._is_hidden(name):
                continue  # the input itself enters the first block
            taps[f"layer:{number}"] = self.tap(f"layer:{number}", name)
        return taps

    def _is_hidden(self, name: str) -> bool:
        """Whether a tensor has items in front, positions and channels."""
        shape, batch = self.shapes.get(name, ()), len(next(iter(self.examples[0].values())))
        ports = {port.name for port in self.graph.inputs}
        return (
            len(shape) > 2
            and shape[0] == batch
            and name not in ports
            and self.graph.is_float(name)
            and sum(size > 1 for size in shape[1:]) > 1
        )

    @cached_property
    def certificate(self) -> Certificate:
        """The proof by running, or why there is none."""
        try:
            return prove(self)
        except HeadNotFound as error:
            return Certificate.refused(str(error))


def dissect_graph(cut: GraphCut) -> Anatomy:
    """The parts of a graph, as those of a torch model."""
    certificate = cut.certificate
    names: tuple[str, ...] | None = None
    after: tuple[str, ...] = ()
    if certificate.ok:
        names = tuple(node.name or node.writes[0] for node in cut.cut.heads)
        after = cut.cut.after
    taps = cut.taps
    behind = cut.between([cut.output], [taps["backbone"].module])[0] if "backbone" in taps else []
    return Anatomy(
        head=names,
        refusal=certificate.refusal,
        after=after,
        taps=taps,
        logits=cut.shapes[cut.logits],
        behind=frozenset(node.writes[0] for node in behind),
        certificate=certificate,
        random={
            name: ", ".join(cut.drawn[tap.module])
            for name, tap in taps.items()
            if tap.module in cut.drawn
        },
    )


def tap_of_graph(cut: GraphCut, name: str) -> Tap:
    """The tap of that name, `layer:-1` for the last layer, or any tensor of the graph.

    Raises:
        TapError: there is none, or it holds no numbers of one item.
    """
    taps = cut.taps
    numbered = [tap for tap in taps if tap.startswith("layer:")]
    if name.startswith("layer:-") and name[7:].isdigit() and 0 < int(name[7:]) <= len(numbered):
        name = numbered[-int(name[7:])]
    name = name if name in taps else cut.graph.find(name)
    place = taps[name].module if name in taps else name
    refuse_random(name, ", ".join(cut.drawn.get(place, ())))
    if name in taps:
        return taps[name]
    if name in {"prelogits", "backbone"} and cut.certificate.untested and len(cut.cut.places) == 1:
        return cut.tap(name, cut.cut.places[0])  # real items may prove it
    if name in cut.graph.depends:
        shape, batch = cut.shapes.get(name, ()), len(next(iter(cut.examples[0].values())))
        if len(shape) > 1 and shape[0] == batch and cut.graph.is_float(name):
            return cut.tap(name, name)
        raise TapError(f"the tensor {name!r} has shape {shape}: it holds no floats of one item")
    known = [tap for tap in taps if tap not in numbered]
    if numbered:
        known.append(f"{numbered[0]} … {numbered[-1]}")
    refused = f" ({cut.certificate.refusal})" if name == "prelogits" else ""
    raise TapError(
        f"this graph has no tap {name!r}{refused}; it has {', '.join(known) or 'none'}, or name "
        "one of its tensors (penult inspect shows them)"
    )
