"""ONNX files as people have them: scores spelt out, inputs that no item fills, 16 bits."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import penult
from penult.cli.main import run
from penult.errors import ModelError, UsageError
from penult.tracing.graph_proof import needed_power, tolerance_of

needed = import_module if os.environ.get("CI") == "true" else pytest.importorskip
onnx, onnxruntime = needed("onnx"), needed("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def value(name: str, shape: Any, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def array(name: str, *shape: int, scale: float = 1.0, dtype: str = "f4") -> Any:
    random = np.random.default_rng([*map(ord, name)])
    return numpy_helper.from_array((scale * random.standard_normal(shape)).astype(dtype), name)


def save(path: Path, nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options)


def six(image: Any) -> Any:
    return np.asarray(image.convert("L").resize((2, 3)), np.float32).reshape(-1) / 64 - 2


def pictures() -> list[Any]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (9, 8, 3), dtype=np.uint8)) for _ in range(3)]


def bodied(*last: Any) -> list[Any]:
    return [node("Gemm", "x w0", "h"), node("Relu", "h", "z"), node("Gemm", "z w", "a"), *last]


WEIGHTS = [array("w0", 6, 8), array("w", 8, 4)]


def load(path: Path, **asked: Any) -> Any:
    return penult.load(path, preprocess=six, modality="image", **asked)


# How scores are spelt → nodes behind the logits "a", and the kind
SPELT: dict[str, tuple[list[Any], str]] = {
    "softmax, cast and reshaped": (
        [node("Softmax", "a", "s"), node("Cast", "s", "c", to=FLOAT), node("Flatten", "c", "y")],
        "single-label"),
    "without the maximum": (
        [node("Exp", "a", "e"), node("ReduceSum", "e last", "s"), node("Div", "e s", "y")],
        "single-label"),
    "exponential of a log-softmax": (
        [node("LogSoftmax", "a", "l"), node("Exp", "l", "y")], "single-label"),
    "sigmoid by tanh": (
        [node("Mul", "a half", "b"), node("Tanh", "b", "t"), node("Mul", "t half", "u"),
         node("Add", "u half", "y")], "multi-label"),
    "two sigmoids, averaged": (
        [node("Sigmoid", "a", "s"), node("Mul", "a half", "b"), node("Sigmoid", "b", "t"),
         node("Mean", "s t", "y")], "multi-label"),
}  # fmt: skip
CONSTANTS = [
    numpy_helper.from_array(np.array([1]), "last"),
    numpy_helper.from_array(np.array(0.5, np.float32), "half"),
]


@pytest.mark.parametrize("form", SPELT)
def test_scores_are_those_of_the_file(form: str, tmp_path: Path) -> None:
    last, kind = SPELT[form]
    path = save(tmp_path / "m.onnx", bodied(*last), [value("x", ("n", 6))], [value("y", None)],
                [*WEIGHTS, *CONSTANTS])  # fmt: skip
    clf = load(path)
    assert clf.kind == kind
    for item in pictures():
        (own,) = session(path).run(["y"], {"x": six(item)[None]})
        np.testing.assert_allclose(clf.classify(item)[0].scores, own[0], atol=1e-6)
    averaged = form == "two sigmoids, averaged"
    assert clf.describe()["logits"] == ("y" if averaged else "a")
    assert ("log-odds" in clf.describe()["logits_from"]) == averaged
    assert clf.structure.study().prove()[0].ok


def test_the_state_of_a_collection_of_earlier_versions_still_fits(tmp_path: Path) -> None:
    """The name of the tensor in the fingerprint is the one that 0.1.0 wrote."""
    for last, name in (("without the maximum", "y"), ("softmax, cast and reshaped", "a")):
        path = save(tmp_path / "m.onnx", bodied(*SPELT[last][0]), [value("x", ("n", 6))],
                    [value("y", None)], [*WEIGHTS, *CONSTANTS])  # fmt: skip
        assert load(path).identity()["weights"].endswith(f"/{name}")


def linear_classifier(path: Path, zipmap: bool, names: list[str] | None) -> Path:
    """As skl2onnx writes a logistic regression: label and probabilities, in a ZipMap by default."""
    random = np.random.default_rng(0)
    labels: dict[str, Any] = (
        {"classlabels_ints": [3, 5, 9]} if names is None else {"classlabels_strings": names}
    )
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "raw"], domain="ai.onnx.ml",
            coefficients=random.standard_normal(18).tolist(), intercepts=[0.1, 0.2, 0.3],
            multi_class=1, post_transform="SOFTMAX", **labels,
        ),
        helper.make_node("Normalizer", ["raw"], ["probabilities"], domain="ai.onnx.ml", norm="L1"),
    ]  # fmt: skip
    kind = INT if names is None else TensorProto.STRING
    outputs = [value("label", (None,), kind), value("probabilities", (None, 3))]
    if zipmap:
        key = "classlabels_int64s" if names is None else "classlabels_strings"
        given = {key: next(iter(labels.values()))}
        nodes.append(helper.make_node("ZipMap", ["probabilities"], ["output_probability"],
                                      domain="ai.onnx.ml", **given))  # fmt: skip
        kinds = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(FLOAT, None))
        sequence = helper.make_sequence_type_proto(kinds)
        outputs[1] = helper.make_value_info("output_probability", sequence)
    return save(path, nodes, [value("x", (None, 6))], outputs)


@pytest.mark.parametrize("names", [None, ["ant", "bee", "cat"]])
@pytest.mark.parametrize("zipmap", [True, False])
def test_a_linear_model_of_scikit_learn(
    zipmap: bool, names: list[str] | None, tmp_path: Path
) -> None:
    path = linear_classifier(tmp_path / "m.onnx", zipmap, names)
    clf = load(path)
    assert clf.labels == tuple(names or ["3", "5", "9"])
    for item in pictures():
        label, own = session(path).run(None, {"x": six(item)[None]})
        own = [*own[0].values()] if zipmap else own[0]
        (found,) = clf.classify(item)
        np.testing.assert_allclose(found.scores, own, atol=1e-6)
        assert found.label == str(label[0])


RECURRENT = [
    node("Add", "x state", "b"),
    node("Gemm", "b w0", "h"),
    node("Tanh", "h", "z"),
    node("Gemm", "z w", "a"),
    node("Identity", "b", "stateN"),
]


def test_a_state_is_fresh_for_each_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(
        tmp_path / "m.onnx", RECURRENT, [value("x", ("n", 6)), value("state", ("n", 6))],
        [value("a", ("n", 4)), value("stateN", ("n", 6))], WEIGHTS,
    )  # fmt: skip
    clf = load(path)
    together = clf.classify(pictures())
    for item, found in zip(pictures(), together, strict=True):
        feeds = {"x": six(item)[None], "state": np.zeros((1, 6), np.float32)}
        (own,) = session(path).run(["a"], feeds)
        np.testing.assert_allclose(found.logits, own[0], rtol=1e-5)
    assert clf.structure.study().prove()[0].ok
    assert "fresh state" in clf.describe()["fixed_inputs"]["state"]


def test_two_inputs_that_only_share_a_name_with_a_state_are_inputs(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", bodied(node("Add", "a memory", "y")),
        [value("x", ("n", 6)), value("memory", ("n", 4))], [value("y", ("n", 4))], WEIGHTS,
    )  # fmt: skip
    clf = penult.load(path, modality="image", preprocess=lambda i: (six(i), np.ones(4, np.float32)))
    assert "fixed_inputs" not in clf.describe()


def test_a_sample_rate_and_a_switch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        node("Cast", "sr", "f", to=FLOAT), node("Div", "f kilo", "g"), node("Mul", "x g", "b"),
        node("Where", "training zero b", "c"), node("ReduceMean", "c", "r", axes=[1], keepdims=1),
        node("MatMul", "r v", "a"),
    ]  # fmt: skip
    weights = [
        numpy_helper.from_array(np.array(1000, np.float32), "kilo"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        array("v", 1, 4),
    ]
    inputs = [value("x", ("n", "t")), value("sr", (), INT), value("training", (), TensorProto.BOOL)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value("a", ("n", 4))], weights)
    with pytest.raises(UsageError, match=r"'sr'.*--sample-rate"):
        penult.load(path, preprocess=lambda clip: clip)
    clf = penult.load(path, sample_rate=8_000)
    sound = np.linspace(-0.5, 1, 800, dtype=np.float32)
    (own,) = session(path).run(
        None, {"x": sound[None], "sr": np.array(8_000), "training": np.array(False)}
    )
    np.testing.assert_allclose(clf.classify(sound)[0].logits, own[0], rtol=1e-4)
    assert clf.describe()["fixed_inputs"] == {"sr": "8000", "training": "False"}
    assert run(["inspect", str(path), "--sample-rate", "8000"]) == 0
    assert "input sr: 8000" in capsys.readouterr().out


def test_another_number_is_refused_by_name(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", bodied(node("Div", "a temperature", "y")),
        [value("x", ("n", 6)), value("temperature", ())], [value("y", ("n", 4))], WEIGHTS,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"'temperature', one number.*--input temperature=NUMBER"):
        load(path)


def test_several_rows_for_one_item_are_refused(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", bodied(node("Concat", "a a", "y", axis=0)),
        [value("x", ("n", 6))], [value("y", (None, 4))], WEIGHTS,
    )  # fmt: skip
    with pytest.raises(ModelError, match="2 rows of logits"):
        load(path)


@pytest.mark.parametrize("kind", [HALF, FLOAT])
def test_numbers_of_16_bits_are_proved_at_their_own_tolerance(kind: int, tmp_path: Path) -> None:
    """A convolution and a mean behind it: the runtime rounds to 16 bits where tensors are read."""
    dtype = "f2" if kind == HALF else "f4"
    shapes = {"k0": (16, 3, 3, 3), "k1": (32, 16, 3, 3), "w": (7, 32, 1, 1)}
    weights = [array(n, *s, scale=1.5 * np.prod(s[1:]) ** -0.5, dtype=dtype)
               for n, s in shapes.items()]  # fmt: skip
    nodes = [
        node("Conv", "x k0", "c0"), node("Relu", "c0", "r0"), node("Conv", "r0 k1", "c1"),
        node("Relu", "c1", "z"), node("Conv", "z w", "m"), node("Relu", "m", "p"),
        node("GlobalAveragePool", "p", "g"), node("Flatten", "g", "y"),
    ]  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, [value("x", ("n", 3, 20, 20), kind)],
                [value("y", ("n", 7), kind)], weights)  # fmt: skip
    clf = penult.load(path)
    study: Any = clf.structure.study()
    certificate = study.prove()[0]
    assert certificate.ok, certificate.refusal
    tolerance = tolerance_of(study.cut)
    assert tolerance == (4 * 2.0**-10 if kind == HALF else 1e-5)
    assert certificate.max_error <= tolerance
    assert certificate.power >= needed_power(tolerance)


def test_one_pixel_maps_have_as_many_classes_as_channels(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x k0", "c"), node("Relu", "c", "z"), node("GlobalAveragePool", "z", "g"),
        node("Conv", "g w1", "m"), node("Softmax", "m", "y", axis=1),
    ]  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, [value("x", ("n", 3, 9, 8))], [value("y", None)],
                [array("k0", 8, 3, 3, 3), array("w1", 5, 8, 1, 1)])  # fmt: skip
    clf = penult.load(
        path,
        modality="image",
        preprocess=lambda i: np.asarray(i.resize((8, 9)), np.float32).transpose(2, 0, 1) / 990,
    )
    item = pictures()[0]
    tensors = clf.preprocess(item).tensors["x"].numpy()
    (own,) = session(path).run(None, {"x": tensors})
    (found,) = clf.classify(item)
    np.testing.assert_allclose(found.scores, own.reshape(-1), atol=1e-6)


def test_json_of_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.onnx", bodied(*SPELT["without the maximum"][0]),
                [value("x", ("n", 6))], [value("y", None)], [*WEIGHTS, *CONSTANTS])  # fmt: skip
    assert run(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scores"] == "softmax"
    assert facts["logits_from"] == "what enters the last softmax"


def test_a_map_of_places_is_no_vector_of_classes(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k0", "c", pads=[1, 1, 1, 1]), node("Sigmoid", "c", "y")]
    path = save(tmp_path / "m.onnx", nodes, [value("x", ("n", 3, 32, 32))], [value("y", None)],
                [array("k0", 1, 3, 3, 3)])  # fmt: skip
    with pytest.raises(ModelError, match="a map of 32 × 32 places"):
        penult.load(path)


# ---- conditions that no item decides

CHOICE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 8] x, int64 sr) => (float[n, 3] y) {
    fast = Constant<value = int64 {16000}>()
    is_fast = Equal(sr, fast)
    y = If(is_fast) <
        then_branch = one () => (float[n, 3] a) {
            h = Tanh(x)
            b = MatMul(h, A)
            a = Softmax(b)
        },
        else_branch = other () => (float[n, 3] c) {
            h = Sigmoid(x)
            b = MatMul(h, B)
            c = Softmax(b)
        }
    >
}
"""


@pytest.mark.parametrize(("rate", "name"), [(16_000, "A"), (8_000, "B")])
def test_the_branch_that_a_rate_takes_is_read(rate: int, name: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(CHOICE)
    random = np.random.default_rng(0)
    own = {one: random.standard_normal((8, 3)).astype(np.float32) for one in "AB"}
    for one, value in own.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, one))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    classifier = penult.load(path, modality="array", inputs={"sr": rate})
    assert classifier.structure.study().anatomy.certificate.ok
    items = list(random.standard_normal((4, 8)).astype(np.float32))
    x = np.stack(items)
    hidden = np.tanh(x) if name == "A" else 1 / (1 + np.exp(-x))
    found = penult.Embedder.from_classifier(classifier, tap="prelogits").run(items)
    np.testing.assert_allclose(found.vectors, hidden, rtol=1e-5)
    np.testing.assert_allclose(found.logits, hidden @ own[name], rtol=1e-4, atol=1e-5)
    whole = onnxruntime.InferenceSession(str(path))
    expected = whole.run(None, {"x": x, "sr": np.array(rate)})[0]
    scores = [one.scores for one in classifier.classify(items)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_choice_between_shapes_is_no_decision(tmp_path: Path) -> None:
    """As exporters write `squeeze`: at run time, by the length of an axis."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 8] x) => (float[m, 3] y) {
            h = Tanh(x)
            b = MatMul(h, A)
            shape = Shape(b)
            two = Constant<value = int64 {2}>()
            rank = Size(shape)
            flat = Equal(rank, two)
            y = If(flat) <
                then_branch = one () => (float[m, 3] a) { a = Identity(b) },
                else_branch = other () => (float[m, 3] c) { c = Flatten(b) }
            >
        }
        """
    )
    weight = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "A"))
    onnx.save(model, tmp_path / "m.onnx")
    classifier = penult.load(tmp_path / "m.onnx", modality="array")
    items = list(np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32))
    found = penult.Embedder.from_classifier(classifier, tap="prelogits").run(items)
    np.testing.assert_allclose(found.vectors, np.tanh(np.stack(items)), rtol=1e-5)
