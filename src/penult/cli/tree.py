"""Draw a module tree or a graph, repeated blocks folded, with the head marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:
    from torch import nn

    from penult.tracing.anatomy import Anatomy
    from penult.tracing.graph import Node
    from penult.tracing.graph_anatomy import GraphCut
    from penult.tracing.graph_structure import Segment


HEAD = "bold red"
QUIET = "dim"


def draw(
    module: nn.Module, head: Collection[str], last: Collection[str], depth: int | None = None
) -> Tree:
    """A tree of modules, neighbours of one shape folded.

    head: names of the modules that belong to the head. last: those of them that the prelogits
    enter. depth: how many levels to show.
    """
    tree = Tree(f"[bold]{type(module).__name__}[/] {_count(module)}", guide_style=QUIET)
    _grow(tree, module, "", Marks(frozenset(head), frozenset(last), False), depth)
    return tree


def draw_cut(module: nn.Module, head: Collection[str], pooling: str, depth: int = 2) -> Tree:
    """The model without the head, then the pooling of the output."""
    kept = sum(p.numel() for n, p in module.named_parameters() if not _within(n, head))
    title = f"[bold]{type(module).__name__}[/] without its head [{QUIET}]{readable(kept)}[/]"
    tree = Tree(title, guide_style=QUIET)
    _grow(tree, module, "", Marks(frozenset(head), frozenset(), True), depth)
    tree.add(f"[bold green]{pooling}[/]")
    return tree


class Marks(NamedTuple):
    """Modules of the head, modules that the prelogits enter, and whether to hide the head."""

    head: frozenset[str]
    last: frozenset[str]
    hidden: bool


def _within(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _grow(tree: Tree, module: nn.Module, path: str, marks: Marks, depth: int | None) -> None:
    if depth == 0:
        return
    children = [
        (name, f"{path}.{name}" if path else name, child) for name, child in module.named_children()
    ]
    if marks.hidden:
        children = [child for child in children if child[1] not in marks.head]
    for _, group in groupby(children, key=lambda c: _signature(c[0], c[2], c[1] in marks.head)):
        run = list(group)
        name, child_path, child = run[0]
        label = _label(name, child, run[-1][0], len(run))
        if child_path in marks.head:
            enters = ": the prelogits enter here" if child_path in marks.last else ""
            label = f"[{HEAD}]{label}  ← head{enters}[/]"
        _grow(tree.add(label), child, child_path, marks, None if depth is None else depth - 1)


def _signature(name: str, child: nn.Module, in_head: bool) -> object:
    """Equal for neighbours that fold into one row: numbered, of one class, weights of one shape."""
    if not name.isdigit() or in_head:
        return name
    shapes = tuple((n, tuple(p.shape)) for n, p in child.named_parameters())
    return type(child).__name__, shapes


def _label(name: str, child: nn.Module, last_name: str, count: int) -> str:
    kind = escape(type(child).__name__)
    settings = "" if list(child.children()) else escape(_settings(child))
    title = f"{count} × [bold]{kind}[/]" if count > 1 else kind
    names = f"{name}…{last_name}" if count > 1 else name
    return " ".join(filter(None, [f"[cyan]{escape(names)}[/]", title, settings, _count(child)]))


def _settings(leaf: nn.Module) -> str:
    """The settings of a layer in short: `768 → 256`, `kernel 10, stride 5`."""
    if hasattr(leaf, "in_features") and hasattr(leaf, "out_features"):
        return f"{leaf.in_features} → {leaf.out_features}"
    if hasattr(leaf, "in_channels") and hasattr(leaf, "kernel_size"):
        kernel, stride = ("×".join(map(str, _sizes(leaf, n))) for n in ("kernel_size", "stride"))
        return f"{leaf.in_channels} → {leaf.out_channels}, kernel {kernel}, stride {stride}"
    text = leaf.extra_repr().split(", ")[0]
    return text if len(text) <= 40 else text[:39] + "…"


def _sizes(leaf: nn.Module, name: str) -> tuple[int, ...]:
    value: Any = getattr(leaf, name)
    return value if isinstance(value, tuple) else (value,)


def _count(module: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in module.parameters())
    return f"[{QUIET}]{readable(total)}[/]" if total else ""


def readable(number: float) -> str:
    """94,371,712 → 94.4 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


SHOWN_KINDS = 6
SHOWN_STEPS = 12


def draw_graph(cut: GraphCut, name: str, anatomy: Anatomy, depth: int | None = None) -> Tree:
    """The path from input to output: stem, repeated blocks, head. depth: 1 hides the inside of
    blocks."""
    picture = _Picture(cut, anatomy)
    tree = Tree(f"[bold]{escape(name)}[/] {_size(cut.graph.parameters)}", guide_style=QUIET)
    _inputs(tree, cut)
    picture.front(tree, depth)
    for segment in picture.tail:
        tree.add(picture.row(segment))
    return tree


def draw_graph_cut(cut: GraphCut, name: str, anatomy: Anatomy, pooling: str) -> Tree:
    """The model without the head, then the pooling of the output."""
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
    """The steps up to the end of the backbone, the steps of the head, and the text of a row."""

    def __init__(self, cut: GraphCut, anatomy: Anatomy) -> None:
        from penult.tracing.graph_structure import chain, repeated

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
        """One row per step; the middle of a long run is folded."""
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
        """Each step with weights, joined with the steps without weights that follow it."""
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
        """The operations of one step, the output tensor and the shape of it."""
        size = _size(sum(self.cut.graph.weights_of(node) for node in segment.nodes))
        title = f"{self._kinds(segment.nodes)}  →  [cyan]{escape(segment.end)}[/]"
        label = f"{title} {_shape(self.cut, segment.end)} {size}".rstrip()
        if segment in self.tail:
            enters = any(node.index in self.heads for node in segment.nodes)
            where = ": the prelogits enter here" if enters else ""
            return f"[{HEAD}]{label}  ← head{where}[/]"
        return label

    def _kinds(self, nodes: Sequence[Node]) -> str:
        counts = Counter(node.shown for node in nodes if node.op != "Constant")
        kinds = [f"{n} {op}" if n > 1 else op for op, n in counts.most_common(SHOWN_KINDS)]
        return escape(", ".join(kinds) + (", …" if len(counts) > SHOWN_KINDS else ""))


def _shape(cut: GraphCut, name: str) -> str:
    shape = cut.shapes.get(name, ())[1:]
    return f"[{QUIET}]{' × '.join(map(str, shape))}[/]" if shape else ""


def _size(weights: int) -> str:
    return f"[{QUIET}]({readable(weights)})[/]" if weights else ""
