"""Repeated blocks of a graph: found by their numbered names, or by operations that come again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penult.splitting.graph import SHAPE_ONLY, Graph, Node

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
