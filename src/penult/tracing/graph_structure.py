"""Repeated blocks of a graph, and which axis of a graph's tensor holds the channels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penult.tracing.graph import CONVOLUTIONS, RESHAPES, SHAPE_ONLY, Graph, Node
from penult.tracing.graph_head import GraphHead

# Operations that keep the channels of what they read at one axis.
_CHANNELLED = {"BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
                  "AveragePool", "InstanceNormalization", "GroupNormalization",
                  *CONVOLUTIONS}  # fmt: skip


_FOLDS = RESHAPES - {"Cast", "Identity"}


def channel_axis(cut: GraphHead, name: str) -> int:
    """Which axis holds the channels, as `taps.channel_axis` reads it off a trace."""
    shape = cut.shapes[name]
    if len(shape) == 2:
        return 1
    axis = _axis_from_users(cut, name)
    if axis is None:
        axis = _axis_from_makers(cut, name)
    if axis is not None:
        return axis
    wide = [place for place in range(1, len(shape)) if shape[place] > 1]
    if len(wide) == 1:  # (B, C, 1), as pooling to one position leaves it
        return wide[0]
    return cut.graph.channel_place(4) if len(shape) == 4 else len(shape) - 1


def _axis_from_users(cut: GraphHead, name: str) -> int | None:
    order = {name: tuple(range(len(cut.shapes[name])))}  # axes of each tensor, in the tap's terms
    maker = cut.graph.producers.get(name)
    for node in cut.graph.nodes[maker.index + 1 if maker else 0 :]:
        for read in node.reads:
            axes = order.get(read)
            if axes is None:
                continue
            axis = _channel_of(cut, node, read)
            if axis is not None and axes[axis] != 0:
                return axes[axis]
            for made in node.writes:
                if node.op == "Transpose":
                    order[made] = tuple(axes[place] for place in _moved(cut, node, len(axes)))
                elif cut.shapes.get(made) == cut.shapes[read] and node.op not in _FOLDS:
                    order[made] = axes
    return None


def _moved(cut: GraphHead, node: Node, rank: int) -> list[int]:
    """The order of axes that a Transpose makes, with the batch axis that a bare graph lacks."""
    bare = int(cut.graph.bare)
    moved = list(node.attribute("perm") or range(rank - bare)[::-1])
    return [0, *(place + 1 for place in moved)] if bare else moved


def _axis_from_makers(cut: GraphHead, name: str) -> int | None:
    node = cut.graph.producers.get(name)
    while node is not None:
        made = node.writes[0]
        axis = _channel_of(cut, node, made)
        if axis:
            return axis
        same = [r for r in node.reads if r in cut.graph.depends
                and cut.shapes.get(r) == cut.shapes.get(made)]  # fmt: skip
        if not same or node.op in RESHAPES:
            return None
        node = cut.graph.producers.get(same[0])
    return None


def _channel_of(cut: GraphHead, node: Node, name: str) -> int | None:
    """The channel axis of `name` (read or made by `node`), if the node shows it."""
    rank = len(cut.shapes[name])
    if node.op in _CHANNELLED:
        return cut.graph.channel_place(rank)
    if node.op.endswith("LayerNormalization"):
        return rank - 1 if node.attribute("axis", -1) in (-1, rank - 1) else None
    if node.op in {"MatMul", "Gemm"} and cut.is_weight_layer(node):
        return rank - 1 if node.reads[0] in cut.graph.depends else max(rank - 2, 0)
    if node.op in {"ReduceMean", "ReduceMax", "ReduceSum"} and name in node.reads:
        gone = _reduced(cut, node, rank)
        if node.attribute("keepdims", 1) and len(gone) < 2:
            return None  # kept for broadcasting: a norm's statistics, not a pooling
        left = set(range(1, rank)) - gone
        return left.pop() if len(left) == 1 else None
    if node.op == "Gather" and name == node.reads[0] and rank == 3:
        left = {1, 2} - {node.attribute("axis", 0) % rank}
        return left.pop() if len(left) == 1 else None
    return None


def _reduced(cut: GraphHead, node: Node, rank: int) -> set[int]:
    axes = node.attribute("axes")
    if axes is None and len(node.reads) > 1:
        value = cut.graph.constant(node.reads[1])
        axes = None if value is None else value.reshape(-1).tolist()
    return {int(axis) % rank for axis in axes or ()}


_NUMBER = re.compile(r"(?<=[./])\d+(?=[./])")


@dataclass(frozen=True, slots=True)
class Segment:
    """What lies between two cut points. start, end: the tensors that enter and leave."""

    start: str
    end: str
    nodes: tuple[Node, ...]

    @property
    def signature(self) -> tuple[str, ...]:
        """The operations, in order."""
        return tuple(node.op for node in self.nodes)


def chain(graph: Graph, end: str) -> list[Segment]:
    """The way from the first input to `end`, parted where all of it runs through a single tensor.

    Further inputs, masks for example, may reach into every part.
    """
    nodes, depends = _from_first_input(graph, end)
    last = {end: len(graph.nodes)}
    for node in nodes:
        for name in node.reads:
            if name in depends and name != end:
                last[name] = max(last.get(name, 0), node.index)
    start = graph.inputs[0].name if graph.inputs[0].name in last else ""
    live, found, run = {start} - {""}, [], []
    for node in nodes:
        run.append(node)
        live |= {name for name in node.writes if last.get(name, -1) > node.index}
        live = {name for name in live if last[name] > node.index}
        if len(live) == 1 and not live.isdisjoint(node.writes):
            here = next(iter(live))
            found.append(Segment(start, here, tuple(run)))
            start, run = here, []
    return found


def _from_first_input(graph: Graph, end: str) -> tuple[list[Node], set[str]]:
    """What depends on the first input and leads to `end`: the nodes, and all such tensors."""
    depends, nodes = {graph.inputs[0].name}, []
    for node in graph.upstream([end]):
        if node.op not in SHAPE_ONLY and not depends.isdisjoint(node.reads):
            depends.update(node.writes)
            nodes.append(node)
    return nodes, depends


def cut_points(graph: Graph, end: str) -> list[str]:
    """Tensors that carry everything that `end` needs of the input, in order, `end` left out."""
    return [segment.end for segment in chain(graph, end) if segment.end != end]


def layers(graph: Graph, end: str) -> list[str]:
    """What enters the first of the repeated blocks, and what leaves each of them."""
    blocks = repeated(graph, end)
    return [blocks[0][0].start, *(block[-1].end for block in blocks)] if blocks else []


def repeated(graph: Graph, end: str) -> list[list[Segment]]:
    """The repeated blocks that hold most of the weights, each a run of segments."""
    segments = chain(graph, end)
    candidates = [*_by_names(segments), *_by_operations(segments)]

    def size(blocks: Sequence[Sequence[Segment]]) -> int:
        return sum(graph.weights_of(n) for block in blocks for s in block for n in s.nodes)

    best = max(candidates, key=size, default=[])
    return best if best and best[0][0].start and size(best) else []


def _by_names(segments: Sequence[Segment]) -> Iterable[list[list[Segment]]]:
    """Blocks by node names such as /encoder/layers.3/…: a container with two numbers or more."""
    where: dict[str, dict[int, list[int]]] = {}
    for place, segment in enumerate(segments):
        names = [set(_containers(node.name)) for node in segment.nodes if node.op != "Constant"]
        for prefix, number in set.intersection(*names) if names else ():
            where.setdefault(prefix, {}).setdefault(number, []).append(place)
    for numbers in where.values():
        places = [numbers[number] for number in sorted(numbers)]
        flat = [place for block in places for place in block]
        if len(places) > 1 and flat == list(range(flat[0], flat[0] + len(flat))):
            yield [[segments[place] for place in block] for block in places]


def _containers(name: str) -> Iterable[tuple[str, int]]:
    for match in _NUMBER.finditer(name):
        yield name[: match.start()], int(match.group())


def _by_operations(segments: Sequence[Segment]) -> Iterable[list[list[Segment]]]:
    """Blocks by operations alone: runs in which the same ones come again and again."""
    kinds = [segment.signature for segment in segments]
    for period in range(1, len(kinds) // 2 + 1):
        place = 0
        while place + 2 * period <= len(kinds):
            length = 0
            while place + length + period < len(kinds) and (
                kinds[place + length] == kinds[place + length + period]
            ):
                length += 1
            blocks = (length + period) // period
            if blocks > 1:
                yield [
                    list(segments[place + i * period : place + (i + 1) * period])
                    for i in range(blocks)
                ]
            place += length + 1
