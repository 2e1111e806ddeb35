"""Draw an ONNX graph as a list that folds its repeated blocks and shows where the head begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.tree import Tree

from penult.cli.architecture import HEAD, QUIET, readable

if TYPE_CHECKING:
    from penult.splitting.anatomy import Anatomy
    from penult.splitting.graph import Node
    from penult.splitting.graph_blocks import Segment
    from penult.splitting.onnx import GraphCut

SHOWN_KINDS = 6
SHOWN_STEPS = 12


def draw_graph(cut: GraphCut, name: str, anatomy: Anatomy, depth: int | None = None) -> Tree:
    """The way from the input to the output: stem, repeated blocks, head. depth: 1 hides what is
    inside of a block."""
    picture = _Picture(cut, anatomy)
    tree = Tree(f"[bold]{escape(name)}[/] {_size(cut.graph.parameters)}", guide_style=QUIET)
    _inputs(tree, cut)
    picture.front(tree, depth)
    for segment in picture.tail:
        tree.add(picture.row(segment))
    return tree


def draw_graph_cut(cut: GraphCut, name: str, anatomy: Anatomy, pooling: str) -> Tree:
    """What is left without the head, and what is done with it."""
    picture = _Picture(cut, anatomy)
    nodes = [node for segment in picture.steps for node in segment.nodes]
    kept = sum(cut.graph.weights_of(node) for node in nodes)
    tree = Tree(f"[bold]{escape(name)}[/] without its head {_size(kept)}", guide_style=QUIET)
    _inputs(tree, cut)
    picture.front(tree, 1)
    tree.add(f"[bold green]{pooling}[/]")
    return tree


def _inputs(tree: Tree, cut: GraphCut) -> None:
    for port in cut.graph.inputs:
        tree.add(f"[{QUIET}]input[/] [cyan]{escape(port.name)}[/] {_shape(cut, port.name)}")


class _Picture:
    """The steps in front of the backbone's end, those behind it, and how a row of them reads."""

    def __init__(self, cut: GraphCut, anatomy: Anatomy) -> None:
        from penult.splitting.graph_blocks import chain, repeated

        self.cut = cut
        self.heads = {node.index for node in cut.cut.heads} if anatomy.head else set()
        steps = chain(cut.graph, cut.output)
        first = next(
            (i for i, s in enumerate(steps) if s.end in anatomy.behind), len(steps)
        )  # fmt: skip
        self.steps, self.tail = steps[:first], steps[first:]
        blocks = repeated(cut.graph, self.steps[-1].end) if self.steps else []
        self.blocks = [[segment.nodes for segment in block] for block in blocks]

    def front(self, tree: Tree, depth: int | None) -> None:
        """Everything in front of the head, the repeated blocks folded into one row."""
        if not self.blocks:
            self._run(tree, self.steps)
            return
        first, last = self.blocks[0][0][0].index, self.blocks[-1][-1][-1].index
        self._run(tree, [s for s in self.steps if s.nodes[-1].index < first])
        nodes = [node for part in self.blocks[0] for node in part]
        label = f"{len(self.blocks)} × [bold]block[/] of {self._kinds(nodes)}"
        whole = sum(self.cut.graph.weights_of(n) for b in self.blocks for p in b for n in p)
        branch = tree.add(f"{label} {_size(whole)}")
        if depth is None or depth > 1:
            for segment in self.steps:
                if first <= segment.nodes[-1].index <= nodes[-1].index:
                    branch.add(self.row(segment))
        self._run(tree, [s for s in self.steps if s.nodes[0].index > last])

    def _run(self, tree: Tree, segments: Sequence[Segment]) -> None:
        """One row each; a long run is folded in its middle."""
        segments, half = self._joined(segments), SHOWN_STEPS // 2
        if len(segments) <= SHOWN_STEPS + 1:
            for segment in segments:
                tree.add(self.row(segment))
            return
        for segment in segments[:half]:
            tree.add(self.row(segment))
        middle = [node for segment in segments[half:-half] for node in segment.nodes]
        size = _size(sum(self.cut.graph.weights_of(node) for node in middle))
        tree.add(f"[{QUIET}]…[/] {self._kinds(middle)} {size}")
        for segment in segments[-half:]:
            tree.add(self.row(segment))

    def _joined(self, segments: Sequence[Segment]) -> list[Segment]:
        """Steps with weights, and what follows them without any, as one."""
        found: list[Segment] = []
        for segment in segments:
            weights = any(self.cut.graph.weights_of(node) for node in segment.nodes)
            if weights or not found:
                found.append(segment)
            else:
                last = found[-1]
                found[-1] = replace(last, end=segment.end, nodes=(*last.nodes, *segment.nodes))
        return found

    def row(self, segment: Segment) -> str:
        """What runs in one step, the tensor that leaves it, and its shape."""
        size = _size(sum(self.cut.graph.weights_of(node) for node in segment.nodes))
        title = f"{self._kinds(segment.nodes)}  →  [cyan]{escape(segment.end)}[/]"
        label = f"{title} {_shape(self.cut, segment.end)} {size}".rstrip()
        if segment in self.tail:
            enters = any(node.index in self.heads for node in segment.nodes)
            where = ": the prelogits enter here" if enters else ""
            return f"[{HEAD}]{label}  ← head{where}[/]"
        return label

    def _kinds(self, nodes: Sequence[Node]) -> str:
        counts = Counter(node.op for node in nodes if node.op != "Constant")
        kinds = [f"{n} {op}" if n > 1 else op for op, n in counts.most_common(SHOWN_KINDS)]
        return escape(", ".join(kinds) + (", …" if len(counts) > SHOWN_KINDS else ""))


def _shape(cut: GraphCut, name: str) -> str:
    shape = cut.shapes.get(name, ())[1:]
    return f"[{QUIET}]{' × '.join(map(str, shape))}[/]" if shape else ""


def _size(weights: int) -> str:
    return f"[{QUIET}]({readable(weights)})[/]" if weights else ""
