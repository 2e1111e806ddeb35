"""The leaves of forests and boosted trees in an ONNX file: which of them each item falls into.

Trees have no head, and no prelogits. That two items fall into the same leaves of many trees is a
measure of their likeness (Breiman, 2001, the proximities of a random forest).
"""

from __future__ import annotations

from typing import Any

from penult.extras import require

LEAVES = "leaves"
_MOST = 1 << 16  # leaves, each of which is a number of the vector
_KINDS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_LEAF = "LEAF"


def add_leaves(model: Any) -> str:
    """Give a model of trees a tensor (items, leaves) with 1 at the leaf of each tree that an item
    falls into: changes the model; the tensor's name, or empty where there are no trees, several
    ensembles of them, or too many leaves.

    The same trees with one target for each leaf, so that the runtime itself decides.
    """
    helper = require("onnx").helper
    trees = [node for node in model.graph.node if node.op_type in _KINDS]
    if len(trees) != 1:
        return ""
    node = trees[0]
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    modes = [_text(one) for one in given.get("nodes_modes", ())]
    leaves = [at for at, mode in enumerate(modes) if mode == _LEAF]
    used = {name for one in model.graph.node for name in (*one.input, *one.output)}
    if not 0 < len(leaves) <= _MOST or LEAVES in used:
        return ""
    kept = {name: value for name, value in given.items() if name.startswith("nodes_")}
    model.graph.node.append(
        helper.make_node(
            "TreeEnsembleRegressor", [node.input[0]], [LEAVES], LEAVES, domain="ai.onnx.ml",
            n_targets=len(leaves), aggregate_function="SUM", post_transform="NONE",
            target_treeids=[given["nodes_treeids"][at] for at in leaves],
            target_nodeids=[given["nodes_nodeids"][at] for at in leaves],
            target_ids=list(range(len(leaves))), target_weights=[1.0] * len(leaves), **kept,
        )
    )  # fmt: skip
    return LEAVES


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
