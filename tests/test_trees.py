"""Forests and boosted trees as ONNX files: no head, and the leaves that items fall into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

import penult
from penult import Embedder
from penult.errors import TapError
from test_cli import ask

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def ensemble(trees: list[Any], path: Path, features: int, classes: int) -> Path:
    """Trees of scikit-learn as its converters write them."""
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    scores: dict[str, list[Any]] = {
        f"class_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")
    }
    for number, tree in enumerate(trees):
        for at in range(tree.node_count):
            leaf = tree.children_left[at] < 0
            row = (number, at, 0 if leaf else tree.feature[at], "LEAF" if leaf else "BRANCH_LEQ",
                   0.0 if leaf else tree.threshold[at], 0 if leaf else tree.children_left[at],
                   0 if leaf else tree.children_right[at])  # fmt: skip
            for name, value in zip(names, row, strict=True):
                nodes[f"nodes_{name}"].append(
                    value if isinstance(value, str | float) else int(value)
                )
            values = np.resize(tree.value[at].ravel(), classes) if leaf else ()
            for one, value in enumerate(values):
                for name, held in zip(scores, (number, at, one, float(value)), strict=True):
                    scores[name].append(held)
    helper = onnx.helper
    node = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
        classlabels_int64s=list(range(classes)), post_transform="NONE", **nodes, **scores,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "trees", [value("x", 1, ("n", features))],
        [value("label", 7, ("n",)), value("scores", 1, ("n", classes))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    x, y = make_classification(300, 10, n_informative=6, n_classes=3, random_state=0)
    return x.astype(np.float32), y


def shares(leaves: Any) -> Any:
    """(n, n) the share of trees in which two items fall into one leaf, by scikit-learn."""
    return (leaves[:, None] == leaves[None]).mean(axis=-1)


@pytest.mark.parametrize("boosted", [False, True])
def test_items_are_as_like_as_the_leaves_that_they_share(
    boosted: bool, data: tuple[Any, Any], tmp_path: Path
) -> None:
    x, y = data
    if boosted:
        model = GradientBoostingClassifier(n_estimators=7, max_depth=3, random_state=0).fit(x, y)
    else:
        model = RandomForestClassifier(12, max_depth=5, random_state=0).fit(x, y)
    trees = [one.tree_ for one in np.ravel(model.estimators_)]
    path = ensemble(trees, tmp_path / "m.onnx", 10, 3)
    classifier = penult.load(path, modality="array")
    items = list(x[:40])
    vectors = Embedder.from_classifier(classifier, tap="leaves").run(items).vectors
    assert set(np.unique(vectors)) == {0.0, 1.0}
    assert vectors.shape[1] == sum(int((tree.children_left < 0).sum()) for tree in trees)
    np.testing.assert_array_equal(vectors.sum(axis=1), len(trees))
    similar = vectors @ vectors.T / len(trees)
    leaves = model.apply(x[:40]).reshape(40, -1)
    np.testing.assert_allclose(similar, shares(leaves), atol=1e-6)


def test_they_are_no_prelogits(data: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = data
    forest = RandomForestClassifier(5, max_depth=4, random_state=0).fit(x, y)
    path = ensemble([one.tree_ for one in forest.estimators_], tmp_path / "m.onnx", 10, 3)
    classifier = penult.load(path, modality="array")
    with pytest.raises(TapError, match=r"no tap 'prelogits'.*leaves"):
        Embedder.from_classifier(classifier, tap="prelogits")
    found = ask("inspect", path, "--modality", "array", "--json").json
    assert found["head"]["last_weight_layers"] is None and found["head"]["refusal"]
    tap = next(one for one in found["taps"] if one["name"] == "leaves")
    assert tap["statement"] == "unused"
    scores = np.stack([one.scores for one in classifier.classify(list(x[:20]))])
    np.testing.assert_allclose(scores.argmax(1), forest.predict(x[:20]))
