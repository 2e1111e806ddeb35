"""Draw a model as a tree that folds its repeated layers and shows where the head begins."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:
    from torch import nn

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
    """What is left without the head, and what is done with it."""
    kept = sum(p.numel() for n, p in module.named_parameters() if not _within(n, head))
    title = f"[bold]{type(module).__name__}[/] without its head [{QUIET}]{readable(kept)}[/]"
    tree = Tree(title, guide_style=QUIET)
    _grow(tree, module, "", Marks(frozenset(head), frozenset(), True), depth)
    tree.add(f"[bold green]{pooling}[/]")
    return tree


class Marks(NamedTuple):
    """Which modules are the head, which of them the prelogits enter, and whether to hide it."""

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
    """What two neighbours must share to be folded: numbered names, one class, equal weights."""
    if not name.isdigit() or in_head:
        return name
    shapes = tuple((n, tuple(p.shape)) for n, p in child.named_parameters())
    return type(child).__name__, shapes


def _label(name: str, child: nn.Module, last_name: str, count: int) -> str:
    kind = escape(type(child).__name__)
    what = "" if list(child.children()) else escape(_settings(child))
    title = f"{count} × [bold]{kind}[/]" if count > 1 else kind
    names = f"{name}…{last_name}" if count > 1 else name
    return " ".join(filter(None, [f"[cyan]{escape(names)}[/]", title, what, _count(child)]))


def _settings(leaf: nn.Module) -> str:
    """What a layer says of itself, in short: `768 → 256`, `kernel 10, stride 5`."""
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
