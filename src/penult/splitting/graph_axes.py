"""Which axis of a graph's tensor holds the channels, read off the operations around it."""

from __future__ import annotations

from penult.splitting.graph import Node
from penult.splitting.graph_head import CONVOLUTIONS, RESHAPES, GraphHead

# What an operation says about the channel axis of what it reads or makes.
_CHANNEL_FIRST = {"BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
                  "AveragePool", "InstanceNormalization", "GroupNormalization",
                  *CONVOLUTIONS}  # fmt: skip


_FOLDS = RESHAPES - {"Cast", "Identity"}


def channel_axis(cut: GraphHead, name: str) -> int:
    """Which axis holds the channels, as `taps.channel_axis` reads it off a trace."""
    shape = cut.shapes[name]
    if len(shape) == 2:
        return 1
    axis = _said_by_users(cut, name)
    if axis is None:
        axis = _said_by_makers(cut, name)
    return axis if axis is not None else (1 if len(shape) == 4 else len(shape) - 1)


def _said_by_users(cut: GraphHead, name: str) -> int | None:
    order = {name: tuple(range(len(cut.shapes[name])))}  # axes of each tensor, in the tap's terms
    maker = cut.graph.producers.get(name)
    for node in cut.graph.nodes[maker.index + 1 if maker else 0 :]:
        for read in node.reads:
            axes = order.get(read)
            if axes is None:
                continue
            said = _says(cut, node, read)
            if said is not None and axes[said] != 0:
                return axes[said]
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


def _said_by_makers(cut: GraphHead, name: str) -> int | None:
    node = cut.graph.producers.get(name)
    while node is not None:
        made = node.writes[0]
        said = 1 if node.op in CONVOLUTIONS else _says(cut, node, made)
        if said:
            return said
        same = [r for r in node.reads if r in cut.graph.depends
                and cut.shapes.get(r) == cut.shapes.get(made)]  # fmt: skip
        if not same or node.op in RESHAPES:
            return None
        node = cut.graph.producers.get(same[0])
    return None


def _says(cut: GraphHead, node: Node, name: str) -> int | None:
    """The channel axis of `name` (read or made by `node`), if the node tells it."""
    rank = len(cut.shapes[name])
    if node.op in _CHANNEL_FIRST:
        return 1
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
