"""ONNX files as classifiers: the head found on the graph, the cut proved by running both halves."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import penult
from conftest import RATE, clip
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.engines.base import Reading
from penult.engines.batching import Batch
from penult.engines.graph import RuntimeEngine
from penult.errors import ItemError, ModelError, TapError, UsageError
from penult.models.loaders.onnx import names_in
from penult.models.specs import load
from penult.tracing.graph_anatomy import (
    GraphCut,
    before_scores,
    dissect_graph,
    find_logits,
    tap_of_graph,
)
from penult.tracing.onnx_graph import OnnxGraph

needed = import_module if os.environ.get("CI") == "true" else pytest.importorskip
onnx, onnxruntime = needed("onnx"), needed("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def weight(name: str, *shape: int, seed: int = 0) -> Any:
    random = np.random.default_rng([seed, *map(ord, name)])
    return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)


def whole(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def save(
    path: Path,
    nodes: list[Any],
    weights: list[Any],
    shape: tuple[Any, ...],
    outputs: tuple[str, ...] = ("y",),
    metadata: dict[str, str] | None = None,
) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph(nodes, "test", [x], values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


def dissected(path: Path) -> GraphCut:
    graph = OnnxGraph.read(path)
    output = find_logits(graph)
    logits, _ = before_scores(graph, output)
    port = graph.inputs[0]
    shape = [1, *(size or 6 for size in (port.shape or ())[0 if graph.bare else 1 :])]
    feeds = [
        {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
        for seed in range(3)
    ]
    return GraphCut(graph, logits, output, feeds)


BODY = [node("Gemm", "x w0", "h"), node("Relu", "h", "z")]
W0 = weight("w0", 6, 8)
MAP = [node("Conv", "x k", "m"), node("Relu", "m", "z")]
K = weight("k", 8, 3, 3, 3)
SOUND = [node("Reshape", "x rows", "r"), node("MatMul", "r w0", "h"), node("Relu", "h", "z"),
         node("ReduceMean", "z", "p", axes=[1], keepdims=0), node("Gemm", "p w", "y")]  # fmt: skip

# name → nodes, weights, shape of the input, prelogits, last nodes with weights
FORMS: dict[str, tuple[list[Any], list[Any], tuple[Any, ...], str]] = {
    "gemm": ([*BODY, node("Gemm", "z w b", "y")], [W0, weight("w", 8, 4), weight("b", 4)],
             ("n", 6), "z"),
    "matmul and add": ([*BODY, node("MatMul", "z w", "a"), node("Add", "a b", "y")],
                       [W0, weight("w", 8, 4), weight("b", 4)], ("n", 6), "z"),
    "a weight behind constant nodes": (
        [*BODY, node("Transpose", "w", "wt"), node("Identity", "wt", "wi"),
         node("MatMul", "z wi", "y")], [W0, weight("w", 4, 8)], ("n", 6), "z"),
    "conv, then pool": (
        [*MAP, node("Conv", "z w b", "a"), node("GlobalAveragePool", "a", "p"),
         node("Flatten", "p", "y")],
        [K, weight("w", 4, 8, 1, 1), weight("b", 4)], ("n", 3, 9, 7), "z"),
    "pool, then conv": (
        [*MAP, node("GlobalAveragePool", "z", "p"), node("Conv", "p w b", "a"),
         node("Flatten", "a", "y")],
        [K, weight("w", 4, 8, 1, 1), weight("b", 4)], ("n", 3, 9, 7), "p"),
    "temperature and softmax": (
        [*BODY, node("Gemm", "z w", "a"), node("Div", "a t", "c"), node("Softmax", "c", "y")],
        [W0, weight("w", 8, 4), weight("t", 1)], ("n", 6), "z"),
    "matrix scaling": (
        [*BODY, node("Gemm", "z w", "a"), node("Gemm", "a s b", "y")],
        [W0, weight("w", 8, 4), weight("s", 4, 4), weight("b", 4)], ("n", 6), "z"),
    "two heads averaged": (
        [*BODY, node("Gemm", "z w", "a"), node("Gemm", "z v", "c"), node("Add", "a c", "d"),
         node("Mul", "d t", "y")],
        [W0, weight("w", 8, 4), weight("v", 8, 4), weight("t", 1)], ("n", 6), "z"),
    "heads of classes, concatenated": (
        [*BODY, node("Gemm", "z w", "a"), node("Gemm", "z v", "c"),
         node("Concat", "a c", "y", axis=1)],
        [W0, weight("w", 8, 3), weight("v", 8, 2)], ("n", 6), "z"),
    "tokens": (
        [node("MatMul", "x w0", "h"), node("Relu", "h", "r"), node("Gather", "r zero", "z", axis=1),
         node("Gemm", "z w", "y")],
        [W0, weight("w", 8, 4), numpy_helper.from_array(np.array(0), "zero")], ("n", 5, 6), "z"),
    "a reshape to the batch size of the input": (
        [node("Shape", "x", "s"), node("Gather", "s zero", "n0"),
         node("Concat", "n0 rest", "to", axis=0), node("Relu", "x", "r"),
         node("Gemm", "r w", "a"), node("Reshape", "a to", "y")],
        [weight("w", 6, 4), whole("zero", 0), whole("rest", 2, 2)], ("n", 6), "r"),
    "a product of whole numbers": (
        [*BODY, node("DynamicQuantizeLinear", "z", "q scale zero"),
         node("MatMulInteger", "q w8 zero", "i"), node("Cast", "i", "f", to=TensorProto.FLOAT),
         node("Mul", "scale t", "st"), node("Mul", "f st", "y")],
        [W0, weight("t", 1), numpy_helper.from_array(np.arange(32, dtype=np.uint8).reshape(8, 4),
                                                     "w8")], ("n", 6), "z"),
    "prototypes": (
        [*BODY, node("Unsqueeze", "z one", "u"), node("Sub", "u p", "d"), node("Mul", "d d", "d2"),
         node("ReduceSum", "d2 two", "s", keepdims=0), node("Neg", "s", "y")],
        [W0, weight("p", 1, 4, 8), whole("one", 1), whole("two", 2)], ("n", 6), "z"),
    "nodes in disorder": ([node("Gemm", "z w", "y"), *BODY[::-1]], [W0, weight("w", 8, 4)],
                          ("n", 6), "z"),
    "one item only": ([*BODY, node("Gemm", "z w b", "y")],
                      [W0, weight("w", 8, 4), weight("b", 4)], (1, 6), "z"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_heads(name: str, tmp_path: Path) -> None:
    """The cut is where it has to be, and both halves make the whole exactly."""
    nodes, weights, shape, place = FORMS[name]
    cut = dissected(save(tmp_path / "m.onnx", nodes, weights, shape))
    certificate = cut.certificate
    assert certificate.ok, certificate
    assert cut.cut.places == (place,)
    assert certificate.checks[0].figure == 0.0
    checks = [check.name for check in certificate.checks]
    whole_numbers = name == "a product of whole numbers"  # one scale for all items of a batch
    assert ("other batch size" in checks) == (shape[0] == "n" and not whole_numbers)
    feeds = cut.examples[0]
    original = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    z = cut.graph.parts.session([place])(feeds)[0]
    again = cut.open_head()({place: z})[-1]
    np.testing.assert_allclose(again, original.run(None, feeds)[0], rtol=1e-5, atol=1e-6)
    assert cut.taps["prelogits"].width == z.shape[1]


def refused(tmp_path: Path, nodes: list[Any], weights: list[Any], shape: tuple[Any, ...]) -> str:
    cut = dissected(save(tmp_path / "m.onnx", nodes, weights, shape))
    assert not cut.certificate.ok
    assert "prelogits" not in cut.taps
    assert dissect_graph(cut).head is None
    with pytest.raises(TapError, match="no tap 'prelogits'"):
        tap_of_graph(cut, "prelogits")
    return cut.certificate.refusal


def test_what_cannot_be_proved_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [node("Relu", "x", "r"), node("Softmax", "r", "y")], [], ("n", 6))
    assert "no operation with weights" in said
    residual = [*BODY, node("Gemm", "z w", "a"), node("Add", "a x", "y")]
    said = refused(tmp_path, residual, [W0, weight("w", 8, 6)], ("n", 6))
    assert "around the last weights" in said
    normed = [*BODY, node("Gemm", "z w", "a"), node("LayerNormalization", "a g", "y")]
    said = refused(tmp_path, normed, [W0, weight("w", 8, 6), weight("g", 6)], ("n", 6))
    assert "features of an encoder" in said
    decided = [*BODY, node("Gemm", "z w", "a"), node("ArgMax", "a", "i", axis=1),
               node("Cast", "i", "y", to=TensorProto.FLOAT)]  # fmt: skip
    assert "ArgMax" in refused(tmp_path, decided, [W0, weight("w", 8, 4)], ("n", 6))
    y = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    inner = helper.make_graph([node("Gemm", "z w", "e")], "inner", [], [y])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    by_item = [node("ReduceMax", "x", "most", keepdims=0), node("Greater", "most zero", "c")]
    nodes, weights = [*BODY, *by_item, branch], [W0, weight("w", 8, 4), zero]
    assert "If" in refused(tmp_path, nodes, weights, ("n", 6))
    true = numpy_helper.from_array(np.array(True), "c")  # no item decides that
    always = save(tmp_path / "m.onnx", [*BODY, branch], [W0, weight("w", 8, 4), true], ("n", 6))
    assert dissected(always).cut.places == ("z",)
    dead = [*BODY, node("Gemm", "z w", "a"), node("Mul", "a t", "c"), node("Add", "c b", "y")]
    tiny = numpy_helper.from_array(np.array([1e-9], np.float32), "t")
    weights = [W0, weight("w", 8, 4), tiny, weight("b", 4)]
    cut = dissected(save(tmp_path / "m.onnx", dead, weights, ("n", 6)))
    assert not cut.certificate.ok and "hardly change" in cut.certificate.refusal
    assert "prelogits" not in cut.taps and dissect_graph(cut).head is None
    # Noise refuses nothing: whoever reads it proves it on items first, see test_asked_items.
    assert cut.certificate.untested and tap_of_graph(cut, "prelogits").module == "z"


def test_layers_backbone_and_any_tensor(tmp_path: Path) -> None:
    """Blocks are found by what comes again, with names that say nothing."""
    nodes, weights, last = [], [weight("w", 6, 4), whole("one", 1)], "x"
    for number in range(4):
        names = f"{last} a{number}"
        nodes += [node("MatMul", names, f"h{number}"), node("Tanh", f"h{number}", f"t{number}"),
                  node("Add", f"{last} t{number}", f"o{number}")]  # fmt: skip
        weights.append(weight(f"a{number}", 6, 6))
        last = f"o{number}"
    nodes += [node("ReduceMean", last, "z", axes=[1], keepdims=0), node("Gemm", "z w", "y")]
    cut = dissected(save(tmp_path / "m.onnx", [node("Sin", "x", "s"), *renamed(nodes)], weights,
                         ("n", 5, 6)))  # fmt: skip
    taps = cut.taps
    assert [taps[f"layer:{i}"].module for i in range(5)] == ["s", "o0", "o1", "o2", "o3"]
    assert "layer:5" not in taps
    assert taps["backbone"].module == "o3" and taps["backbone"].shape == (1, 5, 6)
    assert (taps["backbone"].channel, taps["prelogits"].shape) == (2, (1, 6))
    assert tap_of_graph(cut, "layer:-1").module == "o3"
    assert tap_of_graph(cut, "t1").shape == (1, 5, 6)
    with pytest.raises(TapError, match="layer:0 … layer:4"):
        tap_of_graph(cut, "nothing")


def renamed(nodes: list[Any]) -> list[Any]:
    """The first block reads `s` instead of `x`."""
    for one in nodes[:3]:
        one.input[:] = ["s" if name == "x" else name for name in one.input]
    return nodes


def test_channels_come_first_in_maps(tmp_path: Path) -> None:
    nodes, weights, shape, _ = FORMS["pool, then conv"]
    cut = dissected(save(tmp_path / "m.onnx", nodes, weights, shape))
    assert cut.taps["backbone"].module == "z"
    assert (cut.taps["backbone"].channel, cut.taps["backbone"].width) == (1, 8)


def test_which_output_is_the_logits(tmp_path: Path) -> None:
    weights = [W0, weight("w", 8, 4), weight("v", 8, 5)]
    nodes = [*BODY, node("Gemm", "z w", "a"), node("Gemm", "z v", "c")]
    path = save(tmp_path / "m.onnx", nodes, weights, ("n", 6), ("z", "a"))
    assert find_logits(OnnxGraph.read(path)) == "a"  # the other one is what it is made of
    path = save(tmp_path / "m.onnx", nodes, weights, ("n", 6), ("a", "c"))
    with pytest.raises(ModelError, match=r"'a', 'c'; name one of them as FILE\.onnx#OUTPUT"):
        load(path)
    assert load(f"{path}#c").labels == tuple(f"class_{i}" for i in range(5))
    with pytest.raises(UsageError, match="'q' is no output of floats"):
        load(f"{path}#q")


def test_probabilities_have_their_logits_in_front(tmp_path: Path) -> None:
    """A file that ends in a softmax or a sigmoid: its own output is what the scores are."""
    rows = clip(1.0)[:6]
    for end, kind in (("Softmax", "single-label"), ("Sigmoid", "multi-label")):
        nodes = [*BODY, node("Gemm", "z w", "a"), node(end, "a", "y")]
        path = save(tmp_path / "m.onnx", nodes, [W0, weight("w", 8, 4)], ("n", 6),
                    metadata={"names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd'}"})  # fmt: skip
        clf = penult.load(path, sample_rate=6)
        assert (clf.kind, clf.labels) == (kind, tuple("abcd"))
        expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": rows[None]})[0][0]
        np.testing.assert_allclose(clf.classify(rows)[0].scores, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "labels"),
    [("{3: 'd', 0: 'a', 1: 'b'}", ("a", "b", "class_2", "d")),
     ("{1: 'a', 2: 'b', 3: 'c', 4: 'd'}", "counts from 1"),
     ("['a', 'b', 'c']", "has 3 names, and the model has 4 classes")],
)  # fmt: skip
def test_names_in_metadata_are_taken_by_key(tmp_path: Path, names: str, labels: Any) -> None:
    nodes = [*BODY, node("Gemm", "z w", "y")]
    path = save(tmp_path / "m.onnx", nodes, [W0, weight("w", 8, 4)], ("n", 6),
                metadata={"names": names})  # fmt: skip
    if isinstance(labels, str):
        with pytest.raises(ModelError, match=labels):
            penult.load(path, sample_rate=6)
        labels = tuple("wxyz")
        assert penult.load(path, sample_rate=6, class_names=labels).labels == labels
    else:
        assert penult.load(path, sample_rate=6).labels == labels


def test_names_in_metadata() -> None:
    # By key: in the order of the keys alone, y would be the name of class 1.
    assert names_in({"names": "{0: 'x', 10: 'z', 2: 'y'}"}) == {0: "x", 10: "z", 2: "y"}
    assert names_in({"labels": '["x", "y"]'}) == ["x", "y"]
    assert names_in({"classes": "x\ny\n"}) == ["x", "y"]
    assert names_in({"class_names": "x, y"}) == ["x", "y"]
    assert names_in({"id2label": '{"1": "y", "0": "x"}'}) == ["x", "y"]
    assert names_in({"author": "x"}) == []


@pytest.mark.parametrize("shape", [("n", 60), (1, 60), ("n", 1, 60), (1, 60, 1), (60,), ("t",)])
def test_raw_sound_in_any_rank(shape: tuple[Any, ...], tmp_path: Path) -> None:
    """Shorter clips are padded at the end, longer ones cut; a graph without a batch axis works."""
    path = save(tmp_path / "m.onnx", SOUND, [W0, weight("w", 8, 4), whole("rows", -1, 10, 6)],
                shape)  # fmt: skip
    clf = load(path, sample_rate=60, seconds=1)
    emb = Embedder.from_classifier(clf, tap="prelogits")
    long, short = clip(1.0)[:90], clip(1.0)[:30]
    np.testing.assert_array_equal(emb.embed([(long, 60)]), emb.embed([(long[:60], 60)]))
    padded = np.pad(short, (0, 30))
    np.testing.assert_array_equal(emb.embed([(short, 60)]), emb.embed([(padded, 60)]))
    assert clf.preprocess(long).truncated == 1.0 and clf.preprocess(short).truncated is None
    if shape[-1] == 60:
        assert load(path, sample_rate=30).identity()["truncation"] == "first 2 s"
        with pytest.raises(UsageError, match="takes exactly 60 samples"):
            load(path, sample_rate=60, seconds=2)


def test_a_batch_gives_what_each_item_gives(tmp_path: Path) -> None:
    for shape in (("n", 5, 6), (1, 5, 6)):
        nodes, weights, _, _ = FORMS["tokens"]
        clf = load(save(tmp_path / "m.onnx", nodes, weights, shape))
        tap = clf.structure.study().tap("backbone")
        engine = RuntimeEngine(clf, [Reading(tap, "mean"), Reading(tap, "mean+std")])
        x = torch.randn(3, 5, 6)
        together = engine(Batch({"x": x}))
        assert together.vectors[1].shape == (3, 16)
        for number in range(3):
            alone = engine(Batch({"x": x[number : number + 1]}))
            np.testing.assert_array_equal(alone.logits[0], together.logits[number])
            np.testing.assert_array_equal(alone.vectors[0][0], together.vectors[0][number])


def to_row(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples[:6].astype(np.float64))


def to_integers(samples: np.ndarray) -> torch.Tensor:
    return torch.zeros(7, dtype=torch.int64)


def test_a_users_preprocessing(tmp_path: Path) -> None:
    nodes, weights, shape, _ = FORMS["gemm"]
    path = save(tmp_path / "m.onnx", nodes, weights, shape)
    asked = {"preprocess": "test_onnx:to_row", "sample_rate": RATE}
    clf = penult.load(path, **asked, class_names=list("wxyz"))
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": clip(1.0)[None, :6]})[0][0]
    np.testing.assert_allclose(clf.classify(clip(1.0))[0].logits, expected, rtol=1e-5)
    emb = Embedder.from_classifier(clf, tap="prelogits")
    again = Embedder.load(emb.save(tmp_path / "emb"))
    assert (again.fingerprint, again.classifier.labels) == (emb.fingerprint, tuple("wxyz"))
    assert penult.load(path, sample_rate=RATE, preprocess=to_row).classify(clip(1.0))
    with pytest.raises(ModelError, match="does not run on an example of that"):
        load(path, preprocess=to_integers, sample_rate=RATE)
    with pytest.raises(UsageError, match="3 class names were given, and the model has 4"):
        load(path, **asked, class_names=list("abc"))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    nodes, weights, shape, _ = FORMS["conv, then pool"]
    path = save(tmp_path / "m.onnx", nodes, weights, shape)
    clf = load(path)
    assert clf.modality == "image" and clf.describe()["inputs"] == ["x float32 (?, 3, 9, 7)"]
    with pytest.raises(UsageError, match="--preprocess"):
        clf.preprocess(np.zeros(3))
    assert clf.structure.study().tap("backbone").shape == (1, 8, 7, 5)
    with pytest.raises(UsageError, match="how an item is prepared"):
        Embedder.from_classifier(clf)
    with pytest.raises(UsageError, match="how an item is prepared"):
        clf.save(tmp_path)
    with pytest.raises(UsageError, match="no raw sound"):
        load(path, sample_rate=RATE)
    with pytest.raises(UsageError, match="no torch module"):
        _ = clf.module
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    for name in ("bad.onnx", "empty.onnx"):
        (tmp_path / "empty.onnx").touch()
        with pytest.raises(ModelError, match="no ONNX file"):
            load(tmp_path / name)


def test_weights_in_a_file_beside(tmp_path: Path) -> None:
    nodes, weights, shape, _ = FORMS["gemm"]
    model = onnx.load(str(save(tmp_path / "m.onnx", nodes, weights, shape)))
    path = tmp_path / "big" / "m.onnx"
    path.parent.mkdir()
    onnx.save(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    emb = Embedder.from_classifier(load(path, sample_rate=6), tap="prelogits")
    again = Embedder.load(emb.save(tmp_path / "emb"))
    assert (tmp_path / "emb" / "m.data").is_file()
    np.testing.assert_array_equal(
        again.embed([(clip(1.0)[:6], 6)]), emb.embed([(clip(1.0)[:6], 6)])
    )


def test_an_input_that_the_graph_refuses_is_one_failure(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", SOUND, [W0, weight("w", 8, 4), whole("rows", 1, -1, 6)],
                ("n", "t"))  # fmt: skip
    clf = penult.load(path, sample_rate=60)
    with pytest.raises(ItemError, match="cannot take it"):
        clf.classify([(clip(1.0)[:61], 60)])


def test_exported_by_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                           nn.Linear(8, 4)).eval()  # fmt: skip
    with torch.no_grad():  # so that the logits follow the input
        for parameter in module.parameters():
            parameter.mul_(3)
    path = tmp_path / "m.onnx"
    torch.onnx.export(module, (torch.randn(1, 1, 400),), str(path), dynamo=True)
    clf = load(path, sample_rate=400)
    assert clf.structure.study().prove()[0].ok


@pytest.fixture(scope="module")
def keywords(shared: Path) -> tuple[Path, Path, dict[str, Any]]:
    folder = shared / "w_kwt1"
    asked = {"sample_rate": 16_000, "seconds": 1, "class_names": folder / "labels.txt"}
    return folder / "kwt1.onnx", shared / "kws_words" / "words", asked


def test_a_real_keyword_transformer(keywords: tuple[Path, Path, dict[str, Any]]) -> None:
    """All ten keywords right; the prelogits are the CLS vector that the file calls `embedding`."""
    path, words, asked = keywords
    clf = penult.load(path, **asked)
    clips = [words / f"{word}.wav" for word in KEYWORDS]
    assert [p.label for p in clf.classify(clips)] == list(KEYWORDS)
    certificate, _ = clf.structure.study().prove()
    assert certificate.ok and certificate.max_error == 0.0
    assert [check.name for check in certificate.checks] == [
        "round trip", "power", "other batch size", "held out", "held out"]  # fmt: skip
    result = Embedder.from_classifier(clf, tap="prelogits").run(clips)
    x = np.concatenate([clf.preprocess(soundfile.read(c, dtype="float32")[0]).tensors["waveform"]
                        for c in clips])  # fmt: skip
    model = onnx.load(str(path))
    model.graph.output.append(onnx.ValueInfoProto(name="embedding"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    logits, embedding = session.run(["logits", "embedding"], {"waveform": x})
    np.testing.assert_array_equal(result.vectors, embedding)
    np.testing.assert_array_equal(result.logits, logits)
    optimised = onnxruntime.InferenceSession(str(path)).run(None, {"waveform": x})[0]
    np.testing.assert_allclose(result.logits, optimised, atol=1e-5)
    taps = clf.structure.study().anatomy.taps
    assert taps["backbone"].describe("time") == "time 99 × channel 64"
    assert [name for name in taps if name.startswith("layer:")] == [f"layer:{i}" for i in range(13)]


def test_the_main_job_on_the_command_line(
    keywords: tuple[Path, Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, words, asked = keywords
    told = ["--sample-rate", "16000", "--seconds", "1", "--class-names", str(asked["class_names"])]
    assert run(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["head"]["last_weight_layers"] == ["/head/Gemm"]
    assert facts["head"]["certificate"]["ok"]
    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "12 × block" in shown and "the prelogits enter here" in shown and "proved" in shown
    into = tmp_path / "words.lance"
    assert run(["embed", str(path), str(words), "--into", str(into), "--json", *told]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 39
    collection = Collection.open(into)
    row = collection.get(str(words / "yes.wav"), "whole")
    assert row is not None and row["label"] == "yes"
    fresh = tmp_path / "fresh.wav"
    fresh.write_bytes((words / "go.wav").read_bytes())
    assert run(["search", str(into), str(fresh), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["hits"][0]["id"]).name == "go.wav"
    assert run(["convert", str(path), str(tmp_path / "emb"), "--tap", "prelogits", *told]) == 0
    saved = Embedder.load(tmp_path / "emb")
    straight = Embedder.from_classifier(load(path, **asked), tap="prelogits")
    np.testing.assert_array_equal(saved.embed([fresh]), straight.embed([fresh]))
    assert saved.fingerprint == straight.fingerprint
    assert run(["embed", str(path), str(words), "--into", str(tmp_path / "none.lance")]) == 2
    assert "--sample-rate" in capsys.readouterr().err
