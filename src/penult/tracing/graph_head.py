"""The head of a graph: walk back from the logits to the last operation with weights, and cut there.

The rules are those of `head.py` and `boundary.py`, on a graph instead of a recorded forward pass:
names of operations and which tensors are constant, no names of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from penult.errors import HeadNotFound
from penult.tracing.graph import (
    CONTRACTIONS,
    CONVOLUTIONS,
    RESHAPES,
    SHAPE_ONLY,
    Feeds,
    Graph,
    Node,
    Session,
    Shape,
)
from penult.tracing.scores import class_count

# Operations with graphs inside, and those that decide instead of scoring.
NESTED = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_DECISIONS = frozenset({"ArgMax", "ArgMin", "TopK", "Hardmax", "OneHot", "NonMaxSuppression"})

# Operations between a linear head and the logits that bend nothing.
LINEAR_AFTER = frozenset(
    "Identity Cast CastLike Transpose Reshape Flatten Squeeze Unsqueeze Expand Gather GatherND "
    "GatherElements Slice Split Concat ReduceMean ReduceSum Mean Sum Add Sub Mul Div Neg Dropout "
    "GlobalAveragePool AveragePool DequantizeLinear QuantizeLinear".split()
)
_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}
_FEATURE_NORMS = {"LayerNormalization", "GroupNormalization", "SimplifiedLayerNormalization",
                  "SkipLayerNormalization", "RMSNormalization", "InstanceNormalization",
                  "LpNormalization"}  # fmt: skip
_NORMS = _FEATURE_NORMS | {"BatchNormalization"}
_ACTIVATIONS = {"Relu", "Gelu", "Elu", "LeakyRelu", "HardSwish", "Mish", "Clip", "Erf", "PRelu"}


def drawn_in(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each tensor of a graph that random numbers reach: the operations that draw them."""
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        reaching = [] if node.op in SHAPE_ONLY else [found.get(name, ()) for name in node.reads]
        words = [f"{node.shown} {node.name!r}"] if graph.draws(node) else []
        both = tuple(dict.fromkeys([*(one for some in reaching for one in some), *words]))
        found |= dict.fromkeys(node.writes, both) if both else {}
    return found


@dataclass(frozen=True, slots=True)
class GraphHeadCut:
    """Where a graph is cut. heads: the last nodes with weights. places: the tensors that enter
    them. tail: what runs behind. after: operations of the tail that are not linear."""

    heads: tuple[Node, ...]
    places: tuple[str, ...]
    tail: tuple[Node, ...]
    after: tuple[str, ...]


class GraphHead:
    """A graph, dissected on one input: shapes, head and cut.

    logits: the tensor with one number per class. output: what the file returns of it.
    """

    def __init__(self, graph: Graph, logits: str, output: str, examples: Sequence[Feeds]) -> None:
        self.graph = graph
        self.logits = logits
        self.output = output
        self.examples = list(examples)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every tensor's shape on the first example."""
        return self.graph.parts.shapes(self.examples[0])

    @cached_property
    def drawn(self) -> dict[str, tuple[str, ...]]:
        """For each tensor that random numbers reach: the operations that draw them."""
        return drawn_in(self.graph)

    @property
    def n_logits(self) -> int:
        """K."""
        return class_count(self.shapes[self.logits])

    @cached_property
    def cut(self) -> GraphHeadCut:
        """Where to cut.

        Raises:
            HeadNotFound: nowhere, and why.
        """
        heads, after = self._heads()
        places = list(dict.fromkeys(self._stepped_back(node) for node in heads))
        places = self._independent(places)
        tail, reached = self.between([self.logits, self.output], places)
        if reached:
            raise HeadNotFound(
                f"the input reaches the logits around the last weights (through {reached[0]!r}), "
                "so no tensor in front of them carries everything; read the graph at one of its "
                "other tensors"
            )
        self._refuse_encoders(heads, places)
        return GraphHeadCut(tuple(heads), tuple(places), tuple(tail), tuple(dict.fromkeys(after)))

    def _heads(self) -> tuple[list[Node], list[str]]:
        found, after = self._walk(self.logits)
        while len(found) == 1 and self._is_calibration(found[0]):
            upstream, between = self._walk(self._entering(found[0]))
            if not upstream or between or any(self._width(n) != self.n_logits for n in upstream):
                break
            found = upstream
        opaque = dict.fromkeys(own for op, own in after if op in NESTED | _DECISIONS)
        if opaque:
            raise HeadNotFound(
                f"the way from the last weights to the output runs through {', '.join(opaque)}: "
                "it decides or branches there, and gives no scores that a head could be found for"
            )
        if not found:
            seen = ", ".join(dict.fromkeys(own for _, own in after)) or "nothing"
            raise HeadNotFound(
                "no operation with weights lies between the input and the logits; seen on the "
                f"way: {seen}"
            )
        return sorted(found, key=lambda node: node.index), [own for _, own in after]

    def _walk(self, name: str) -> tuple[list[Node], list[tuple[str, str]]]:
        """Nodes with weights that are met first going back, and what bends on the way: names of
        operations in ONNX and in the file."""
        graph = self.graph
        found: list[Node] = []
        after: list[tuple[str, str]] = []
        pending, seen = [name], set()
        while pending:
            read = pending.pop()
            node = graph.producers.get(read)
            if node is None or node.index in seen:
                continue
            if node.op == "DynamicQuantizeLinear" and read != node.writes[0]:
                continue  # the scale of what enters an integer product, multiplied back behind it
            seen.add(node.index)
            if node.fused:
                after.append((node.fused, node.fused))
            if self.is_weight_layer(node):
                found.append(node)
                continue
            reads = [n for n in node.reads if n in graph.depends]
            if graph.chooses_shape(node):
                pending += reads
                continue
            if node.op not in LINEAR_AFTER or (node.op in {"Mul", "Div"} and len(reads) > 1):
                after.append((node.op, node.shown))
            pending += reads
        return found, after

    def is_weight_layer(self, node: Node) -> bool:
        """Whether a node contracts what depends on the input with what does not."""
        if node.op not in CONTRACTIONS:
            return self._spreads(node)
        pair = [node.operands[at] for at in CONTRACTIONS[node.op] if at < len(node.operands)]
        return len(pair) == 2 and sum(name in self.graph.depends for name in pair) == 1

    def _spreads(self, node: Node) -> bool:
        """As `head._spreads`: prototypes, met element by element."""
        if node.op not in {"Mul", "Sub"} or len(node.reads) != 2:
            return False
        depends = [name in self.graph.depends for name in node.reads]
        if sum(depends) != 1 or any(name not in self.shapes for name in node.reads):
            return False
        one, other = (self.shapes[name] for name in node.reads)
        z, weight = (one, other) if depends[0] else (other, one)
        rank = max(len(z), len(weight))
        z, weight = ((1,) * (rank - len(shape)) + shape for shape in (z, weight))
        pairs = list(zip(z, weight, strict=True))
        return any(a == 1 < b for a, b in pairs) and any(a == b > 1 for a, b in pairs)

    def _entering(self, node: Node) -> str:
        """What a weight layer reads of the input: in floats, before it was quantised."""
        places = CONTRACTIONS.get(node.op, (0, 1))
        name = next(n for p in places if (n := node.operands[p]) in self.graph.depends)
        maker = self.graph.producers.get(name)
        if maker is not None and maker.op in _QUANTIZERS:
            return maker.reads[0]
        return str(name)

    def _stepped_back(self, node: Node) -> str:
        """What enters, before it was folded into a matrix product's shape."""
        best = name = self._entering(node)
        batch = self.shapes[self.logits][0] if self.shapes[self.logits] else 1
        spread = node.op not in CONTRACTIONS  # z was given an axis for the prototypes
        while spread or self.shapes[best][:1] != (batch,):
            maker = self.graph.producers.get(name)
            if maker is None or maker.op not in RESHAPES:
                return best
            name = maker.reads[0]
            if self.shapes[name][:1] == (batch,):
                best = name
        return best

    def _is_calibration(self, node: Node) -> bool:
        """Whether a node maps K to K, and its input is not what the file calls an output."""
        entering = self._entering(node)
        weight = next((n for n in node.reads[:2] if n not in self.graph.depends), "")
        square = (self.n_logits, self.n_logits)
        shape = tuple(size for size in self.shapes.get(weight, ()) if size != 1)
        return shape == square and self.n_logits > 1 and entering not in self.graph.outputs

    def _width(self, node: Node) -> int:
        shape = self.shapes[node.writes[0]]
        place = self.graph.channel_place(len(shape))
        return shape[place if node.op in CONVOLUTIONS else -1]

    def between(self, ends: Iterable[str], places: Sequence[str]) -> tuple[list[Node], list[str]]:
        """(nodes between places and ends, inputs of the graph that reach the ends around them)."""
        graph, nodes, reached = self.graph, {}, []
        pending, ports = list(ends), {port.name for port in graph.inputs}
        while pending:
            name = pending.pop()
            if name in places:
                continue
            if name in ports:
                reached.append(name)
            node = graph.producers.get(name)
            if node is not None and node.index not in nodes:
                nodes[node.index] = node
                if node.op not in SHAPE_ONLY:
                    pending += node.reads
        return [nodes[index] for index in sorted(nodes)], reached

    def _independent(self, places: list[str]) -> list[str]:
        """Drop what is computed from the others alone."""
        for place in list(places):
            others = [other for other in places if other != place]
            if others and not self.between([place], others)[1]:
                places = others
        return places

    def _refuse_encoders(self, heads: Sequence[Node], places: Sequence[str]) -> None:
        """As `boundary._refuse_encoders`: features that were normed and activated are no scores."""
        outputs = [node.writes[0] for node in heads]
        tail, _ = self.between([self.logits], [*outputs, *places])
        after = {n.op for n in tail if not self.graph.depends.isdisjoint(n.writes)}
        norms = after & _NORMS
        if norms & _FEATURE_NORMS or (norms and after & _ACTIVATIONS):
            raise HeadNotFound(
                f"what the graph returns was normalised after its last weights "
                f"({', '.join(sorted(norms))}): these look like features of an encoder, not like "
                "scores of a classifier"
            )
        found = {node.index for node in heads}
        for node in heads:
            between, _ = self.between([self._entering(node)], places)
            ops = {n.op for n in between}
            if found & {n.index for n in between} and ops & _NORMS:
                raise HeadNotFound(
                    "a residual stream with norms in it reaches the output: this looks like an "
                    "encoder without a classifier"
                )
        ports = {port.name for port in self.graph.inputs}
        if ports & {*places} and len(places) > 1:
            raise HeadNotFound(
                "the input itself meets weights on a short cut to the logits, so nothing less "
                "than the whole input would do as prelogits"
            )

    def open_head(self) -> Session:
        """The second half by itself: prelogits in, logits and the file's output out."""
        cut = self.cut
        outputs = list(dict.fromkeys([self.logits, self.output]))
        return self.graph.parts.tail(cut.tail, cut.places, outputs, self.shapes)
