"""TFLite files: heads, cuts and vectors against numpy and against the interpreter itself; integers;
the layouts of networks of bird sounds; what is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult import Embedder
from penult.errors import ItemError, ModelError, TapError, UsageError
from penult.tracing.graph import Quantisation
from test_cli import ask
from tflite_models import FloatNet, IntegerNet, SpectrogramNet, TfliteModel, dense, weights

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

if os.environ.get("CI") == "true":
    import_module("ai_edge_litert")
else:
    pytest.importorskip("ai_edge_litert")

RATE = 16_000


def to_picture(content: Any) -> Any:
    """A clip as the picture (32, 32, 3) of a test."""
    return np.resize(content, (32, 32, 3)).astype(np.float32) * 4


def to_features(content: Any) -> Any:
    return np.resize(content, 24).astype(np.float32) * 8


def to_integers(content: Any) -> Any:
    return IntegerNet().stored(to_features(content)).astype(np.int8)


def sounds(count: int = 3, seconds: float = 1.0) -> list[Any]:
    random = np.random.default_rng(0)
    shape = (count, round(seconds * RATE))
    return [(one.astype(np.float32), RATE) for one in 0.1 * random.standard_normal(shape)]


def opened(path: Path, prepare: Any = None, **asked: Any) -> Any:
    return penult.load(path, preprocess=prepare, sample_rate=RATE, modality="audio", **asked)


def interpreter(path: Path, x: Any, index: int = 0) -> Any:
    """What LiteRT itself gives for a batch."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(str(path))
    found.resize_tensor_input(found.get_input_details()[0]["index"], x.shape)
    found.allocate_tensors()
    found.set_tensor(found.get_input_details()[0]["index"], x)
    found.invoke()
    return found.get_tensor(found.get_output_details()[index]["index"])


# ---- floats


@pytest.mark.parametrize("softmax", [False, True])
def test_vectors_and_logits_are_those_of_numpy(softmax: bool, tmp_path: Path) -> None:
    net = FloatNet(softmax=softmax)
    classifier = opened(net.save(tmp_path / "m.tflite"), to_picture)
    x = np.stack([to_picture(samples) for samples, _ in sounds()])
    hidden, logits = net.hidden(x), net.logits(x)
    for tap, expected in (("prelogits", hidden.mean((1, 2))), ("backbone", hidden.mean((1, 2)))):
        found = Embedder.from_classifier(classifier, tap=tap).run(sounds())
        np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answers = classifier.classify(sounds())
    np.testing.assert_allclose([one.scores for one in answers], scores, atol=1e-6)
    if softmax:
        own = interpreter(tmp_path / "m.tflite", x)
        np.testing.assert_allclose([one.scores for one in answers], own, atol=1e-6)


def test_the_proof_reads_the_weights_too(tmp_path: Path) -> None:
    path = FloatNet().save(tmp_path / "m.tflite")
    proof = ask("inspect", path, "--json").json["head"]["certificate"]
    assert proof["ok"]
    checks = {one["name"]: one["figure"] for one in proof["checks"]}
    assert {"round trip", "closed form", "other batch size", "held out"} <= checks.keys()
    assert checks["closed form"] < 1e-6


def test_a_wrong_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penult.tracing.tflite_graph import TfliteGraph

    path = FloatNet().save(tmp_path / "m.tflite")
    read = TfliteGraph.linear

    def turned(self: Any, node: Any) -> Any:
        weight, bias = read(self, node)
        return -weight, bias

    monkeypatch.setattr(TfliteGraph, "linear", turned)
    proof = penult.load(path).structure.study().anatomy.certificate
    assert not proof.ok
    assert "closed form" in proof.refusal


def test_a_batch_changes_no_vector(tmp_path: Path) -> None:
    classifier = opened(SpectrogramNet(RATE, 30).save(tmp_path / "m.tflite"))
    embedder = Embedder.from_classifier(classifier)
    together = embedder.run(sounds(7)).vectors
    alone = np.concatenate([embedder.run([one]).vectors for one in sounds(7)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_a_file_that_fits_one_item_runs_item_by_item(tmp_path: Path) -> None:
    """The reshape in it names one item; the file says that its batch is free."""
    m, net = TfliteModel(), FloatNet()
    x = m.tensor("x", (-1, 24))
    shape = m.constant("shape", np.array([1, 24], np.int32))
    same = m.tensor("same", (1, 24))
    m.operator("RESHAPE", [x, shape], [same], of="ReshapeOptions")
    y = dense(m, same, weights(5, 24), net.bias, "y")
    classifier = opened(m.save(tmp_path / "m.tflite", [x], [y]), to_features)
    assert not classifier.structure.logits.graph.any_batch
    found = Embedder.from_classifier(classifier).run(sounds())
    own = weights(5, 24).astype(np.float32)
    expected = [to_features(one) @ own.T + net.bias.astype(np.float32) for one, _ in sounds()]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_flattens_its_input_itself(tmp_path: Path) -> None:
    m = TfliteModel()
    x, weight = m.tensor("x", (-1, 2, 3, 4)), weights(5, 24)
    y = m.tensor("y", (-1, 5))
    own, shift = m.constant("w", weight.astype("f4")), m.constant("b", np.zeros(5, "f4"))
    m.operator("FULLY_CONNECTED", [x, own, shift], [y], of="FullyConnectedOptions")
    classifier = opened(
        m.save(tmp_path / "m.tflite", [x], [y]), lambda one: to_features(one).reshape(2, 3, 4)
    )
    found = Embedder.from_classifier(classifier, tap="prelogits").run(sounds())
    expected = [to_features(one) for one, _ in sounds()]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)


def test_the_end_is_undone_and_what_is_fused_is_told(tmp_path: Path) -> None:
    m = TfliteModel()
    x = m.tensor("x", (-1, 24))
    inner = dense(m, x, weights(12, 24), np.zeros(12), "inner", fused=1)
    y = dense(m, inner, 3 * weights(1, 12, seed=1), np.zeros(1), "y")
    p = m.tensor("p", (-1, 1))
    m.operator("LOGISTIC", [y], [p])
    classifier = opened(m.save(tmp_path / "m.tflite", [x], [p]), to_features)
    assert (classifier.kind, classifier.describe()["scores"]) == ("binary", "sigmoid")
    answers = classifier.classify(sounds())
    features = np.stack([to_features(one) for one, _ in sounds()])
    hidden = np.maximum(features @ weights(12, 24).T, 0)
    logits = hidden @ (3 * weights(1, 12, seed=1)).T
    given = [one.logits for one in answers]
    np.testing.assert_allclose(given, logits, rtol=1e-4, atol=1e-5)
    m = TfliteModel()
    x = m.tensor("x", (-1, 24))
    y = dense(m, x, weights(6, 24), np.zeros(6), "y", fused=1)
    classifier = penult.load(m.save(tmp_path / "relu.tflite", [x], [y]))
    assert classifier.structure.study().anatomy.after == ("Relu",)


# ---- integers


@pytest.mark.parametrize("floats", [False, True])
def test_integers_are_those_of_numpy(floats: bool, tmp_path: Path) -> None:
    net = IntegerNet(floats)
    classifier = opened(net.save(tmp_path / "m.tflite"), to_features)
    found = Embedder.from_classifier(classifier, tap="prelogits").run(sounds(8))
    stored = net.stored(np.stack([to_features(one) for one, _ in sounds(8)]))
    inner = net.inner(stored)
    vectors = found.vectors
    integers = np.round(vectors / np.float32(net.z[0])) + net.z[1]
    np.testing.assert_allclose(vectors, (integers - net.z[1]) * np.float32(net.z[0]), rtol=1e-6)
    assert np.abs(integers - inner).max() <= 1  # kernels differ in their last rounding
    assert (integers == inner).mean() > 0.9
    logits = found.logits
    outer = np.round(logits / np.float32(net.y[0])) + net.y[1]
    assert np.abs(outer - net.outer(integers.astype(np.int64))).max() <= 1


def test_integers_are_those_of_the_interpreter(tmp_path: Path) -> None:
    path = IntegerNet().save(tmp_path / "m.tflite")
    stored = np.stack([to_integers(one) for one, _ in sounds(8)])
    own = np.concatenate([interpreter(path, one[None]) for one in stored])
    scale, zero = np.float32(IntegerNet().y[0]), IntegerNet().y[1]
    for prepare in (to_features, to_integers):  # numbers, and the integers that they are stored as
        found = Embedder.from_classifier(opened(path, prepare)).run(sounds(8))
        logits = found.logits
        np.testing.assert_array_equal(np.round(logits / scale) + zero, own)


def test_integers_of_another_type_are_refused(tmp_path: Path) -> None:
    path = IntegerNet().save(tmp_path / "m.tflite")
    with pytest.raises(ModelError, match="takes float32, or int8 as the file stores it"):
        opened(path, lambda one: to_integers(one).astype(np.uint8))


def test_numbers_go_through_integers_and_back() -> None:
    kind = Quantisation(np.dtype(np.int8), 0.25, 3)
    every = np.arange(-128, 128, dtype=np.int8)
    np.testing.assert_array_equal(kind.stored(kind.shown(every)), every)
    np.testing.assert_array_equal(
        kind.stored(np.array([0.125, -0.125, 99.0, -99.0])), [4, 2, 127, -128]
    )
    wide = Quantisation(np.dtype(np.int16), 3.1e-5, 0)
    every = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(wide.stored(wide.shown(every)), every)
    with pytest.raises(ValueError, match="not finite"):
        kind.stored(np.array([np.nan]))


def test_a_softmax_of_integers_is_undone(tmp_path: Path) -> None:
    m, net = TfliteModel(), IntegerNet()
    x = m.tensor("x", (1, 24), "int8", scale=net.x[0], zero=net.x[1])
    y = m.tensor("y", (1, 6), "int8", scale=0.2, zero=0)
    p = m.tensor("p", (1, 6), "int8", scale=1 / 256, zero=-128)
    w = m.constant("w", net.w2.repeat(2, axis=1)[:, :24].copy(), scale=net.s2)
    b = m.constant("b", net.b2, scale=net.s2 * net.x[0])
    m.operator("FULLY_CONNECTED", [x, w, b], [y], of="FullyConnectedOptions")
    m.operator("SOFTMAX", [y], [p], of="SoftmaxOptions", beta=1.0)
    path = m.save(tmp_path / "m.tflite", [x], [p])
    classifier = opened(path, to_features)
    assert classifier.describe()["logits_from"] == "what enters the last softmax"
    own = np.concatenate([interpreter(path, to_integers(one)[None]) for one, _ in sounds()])
    scores = [one.scores for one in classifier.classify(sounds())]
    np.testing.assert_allclose(scores, (own.astype(float) + 128) / 256, atol=1 / 128)


# ---- layouts that people publish


def test_the_layout_of_birdnet(tmp_path: Path) -> None:
    """48 kHz, three seconds, the spectrogram in the graph, one output of logits."""
    net = SpectrogramNet(144_000, 40)
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(f"Avis numero{i}_Bird No. {i}" for i in range(40)), "utf-8")
    asked = {"sample_rate": 48_000, "class_names": names, "kind": "multi-label"}
    classifier = penult.load(net.save(tmp_path / "bird.tflite"), **asked)
    assert classifier.input.seconds == 3.0
    random = np.random.default_rng(1)
    clips = [(0.1 * random.standard_normal(144_000)).astype(np.float32) for _ in range(3)]
    found = Embedder.from_classifier(classifier, tap="prelogits").run(
        [(one, 48_000) for one in clips]
    )
    np.testing.assert_allclose(found.vectors, net.embedding(np.stack(clips)), rtol=1e-3, atol=1e-4)
    logits = net.logits(np.stack(clips))
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-3)
    best = classifier.classify([(clips[0], 48_000)])[0]
    assert best.label == f"Avis numero{logits[0].argmax()}_Bird No. {logits[0].argmax()}"
    np.testing.assert_allclose(best.scores, 1 / (1 + np.exp(-logits[0])), atol=1e-4)


def test_the_layout_of_perch(tmp_path: Path) -> None:
    """Two outputs, which a signature names: the logits are found, either can be asked for."""
    net = SpectrogramNet(16_000, 40, two=True)
    path = net.save(tmp_path / "perch.tflite")
    x = np.stack([one for one, _ in sounds()])
    for spec in (path, f"{path}#label", f"{path}#CLASS_DENSE_LAYER"):
        found = Embedder.from_classifier(penult.load(spec, sample_rate=RATE)).run(sounds())
        np.testing.assert_allclose(found.logits, net.logits(x), rtol=1e-3, atol=1e-3)
    tap = Embedder.from_classifier(penult.load(path, sample_rate=RATE), tap="embedding")
    np.testing.assert_allclose(tap.run(sounds()).vectors, net.embedding(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="'nothing' is no output"):
        penult.load(f"{path}#nothing", sample_rate=RATE)
    with pytest.raises(TapError, match="has no tap 'nothing'"):
        Embedder.from_classifier(penult.load(path, sample_rate=RATE), tap="nothing")


def test_a_custom_classifier_on_top(tmp_path: Path) -> None:
    """A user's own layer on the embedding of a published network: the head is the user's."""
    m = TfliteModel()
    x = m.tensor("embedding", (-1, 24))
    inner = dense(m, x, weights(16, 24), np.zeros(16), "inner", fused=1)
    y = dense(m, inner, 2 * weights(3, 16, seed=1), np.zeros(3), "mine")
    classifier = opened(m.save(tmp_path / "mine.tflite", [x], [y]), to_features)
    found = Embedder.from_classifier(classifier, tap="prelogits").run(sounds())
    features = np.stack([to_features(one) for one, _ in sounds()])
    expected = np.maximum(features @ weights(16, 24).astype("f4").T, 0)
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5)


def test_names_behind_the_graph(tmp_path: Path) -> None:
    path = FloatNet().save(tmp_path / "m.tflite")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "ant\nbee\ncat\ndog\neel\n")
    assert penult.load(path).labels == ("ant", "bee", "cat", "dog", "eel")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.txt", "a\nb\nc\nd\ne\n")
    assert penult.load(path).labels[0] == "class_0"  # two lists would fit


def test_a_saved_embedder_opens_elsewhere(tmp_path: Path) -> None:
    net = SpectrogramNet(RATE, 30)
    classifier = penult.load(net.save(tmp_path / "m.tflite"), sample_rate=RATE)
    embedder = Embedder.from_classifier(classifier)
    saved = embedder.save(tmp_path / "emb")
    (tmp_path / "m.tflite").unlink()
    again = Embedder.load(saved)
    assert again.fingerprint == embedder.fingerprint
    np.testing.assert_array_equal(again.run(sounds(1)).vectors, embedder.run(sounds(1)).vectors)


# ---- what is refused


def refusal(path: Path) -> str:
    found = ask("inspect", path)
    assert found.code == 2, (found.out, found.err)
    return found.error


def test_operators_that_are_not_known_are_refused_by_name(tmp_path: Path) -> None:
    m = TfliteModel()
    x, y = m.tensor("x", (1, 8)), m.tensor("y", (1, 8))
    m.operator("CUSTOM:FlexErf", [x], [y])
    assert "'FlexErf'" in refusal(m.save(tmp_path / "own.tflite", [x], [y]))
    m = TfliteModel()
    x, y = m.tensor("x", (1, 8)), m.tensor("y", (1, 8))
    m.operator("VAR_HANDLE", [x], [y], of="VarHandleOptions")
    assert "VAR_HANDLE, which keeps values" in refusal(m.save(tmp_path / "var.tflite", [x], [y]))


def test_autoencoders_are_refused_as_such(tmp_path: Path) -> None:
    m = TfliteModel()
    x = m.tensor("x", (-1, 40))
    inner = dense(m, x, weights(8, 40), np.zeros(8), "inner", fused=1)
    y = dense(m, inner, weights(40, 8), np.zeros(40), "y")
    path = m.save(tmp_path / "auto.tflite", [x], [y])
    assert "as an autoencoder does" in refusal(path)
    assert len(penult.load(path, class_names=[f"c{i}" for i in range(40)]).labels) == 40


def test_what_is_no_file_of_this_kind(tmp_path: Path) -> None:
    whole = FloatNet().save(tmp_path / "m.tflite").read_bytes()
    for name, content in {
        "empty": b"", "short": whole[:12], "cut": whole[: len(whole) // 2],
        "other": b"\x00" * 64, "marked": b"\x20\0\0\0TFL3" + b"\0" * 64,
        "loop": struct.pack("<I", 8) + b"TFL3" + b"\xff" * 64,
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        assert "is no TFLite file" in refusal(path) or "is damaged" in refusal(path), name
    other = tmp_path / "model.bin"
    other.write_bytes(whole)
    assert "give it a name that ends in .tflite" in refusal(other)


MUTANTS = """
import random, sys
from pathlib import Path
import penult
from penult.errors import PenultError
ENDS = b"\\xff" * 4, b"\\0" * 4, b"\\xff\\xff\\xff\\x7f"
files, count = [Path(one) for one in sys.argv[2:]], int(sys.argv[1])
for number in range(count):
    r = random.Random(number)
    content = bytearray(files[number % len(files)].read_bytes())
    for _ in range(r.choice((1, 2, 8))):
        at = r.randrange(len(content) - 4)
        content[at:at + 4] = r.choice((*ENDS, bytes([r.randrange(256)]) * 4))
    path = files[0].with_name("mutant.tflite")
    path.write_bytes(content)
    print(number, flush=True)
    try:
        penult.load(path).structure.study().anatomy
    except PenultError:
        pass
"""


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_end_no_process(count: int, tmp_path: Path) -> None:
    files = [FloatNet(softmax=True).save(tmp_path / "a.tflite"),
             IntegerNet().save(tmp_path / "b.tflite"),
             SpectrogramNet(4000, 9, two=True).save(tmp_path / "c.tflite")]  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", MUTANTS, str(count), *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, (found.stdout[-20:], found.stderr[-2000:])


def test_an_item_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    classifier = opened(SpectrogramNet(RATE, 30).save(tmp_path / "m.tflite"))
    bad = (np.full(RATE, np.nan, np.float32), RATE)
    embedder = Embedder.from_classifier(classifier)
    with pytest.raises(ItemError):
        embedder.run([bad])
    found = embedder.run([*sounds(2), bad], on_error="skip")
    assert len(found.vectors) == 2 and len(found.failures) == 1


def test_head_and_outputs_are_named_in_the_words_of_the_file(tmp_path: Path) -> None:
    path = FloatNet().save(tmp_path / "m.tflite")
    found = ask("inspect", path, "--head", "fc")
    assert found.code == 2
    assert "a TFLite file has tensors" in found.error and "FILE.tflite#OUTPUT" in found.error
    m = TfliteModel()
    x = m.tensor("x", (-1, 24))
    one = dense(m, x, weights(5, 24), np.zeros(5), "one")
    two = dense(m, x, weights(4, 24), np.zeros(4), "two")
    with pytest.raises(ModelError, match=r"'one'.*'two'.*FILE\.tflite#OUTPUT"):
        penult.load(m.save(tmp_path / "two.tflite", [x], [one, two]))


# ---- inputs that are part of no item


def gained_tflite(folder: Path) -> Path:
    m = TfliteModel()
    x, gain = m.tensor("x", (-1, 24)), m.tensor("gain", (1, 1))
    louder = m.tensor("louder", (-1, 24))
    m.operator("MUL", [x, gain], [louder], of="MulOptions")
    y = dense(m, louder, weights(5, 24), np.zeros(5), "y")
    return m.save(folder / "gain.tflite", [x, gain], [y])


def gained_onnx(folder: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,24] x, float gain) => (float[n,5] y) '
        "{ louder = Mul(x, gain)\n y = MatMul(louder, W) }"
    )
    weight = onnx.numpy_helper.from_array(weights(5, 24).T.astype(np.float32), "W")
    model.graph.initializer.append(weight)
    onnx.save(model, folder / "gain.onnx")
    return folder / "gain.onnx"


@pytest.mark.parametrize("build", [gained_tflite, gained_onnx])
def test_an_input_that_is_part_of_no_item(build: Any, tmp_path: Path) -> None:
    path = build(tmp_path)
    items = list(np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32))
    found = {}
    for gain in (2.0, 0.5):
        classifier = penult.load(path, modality="array", inputs={"gain": gain})
        assert classifier.describe()["fixed_inputs"] == {"gain": f"{gain:g}"}
        embedder = Embedder.from_classifier(classifier, tap="prelogits")
        vectors = embedder.run(items).vectors
        np.testing.assert_allclose(vectors, gain * np.stack(items), rtol=1e-6)
        found[gain] = embedder.fingerprint["weights"]
    assert found[2.0] != found[0.5]
    again = Embedder.load(embedder.save(tmp_path / "emb"))
    np.testing.assert_array_equal(again.run(items).vectors, vectors)
    folder = tmp_path / "items"
    folder.mkdir()
    np.save(folder / "a.npy", items[0])
    asked = ("--modality", "array", "--input", "gain=2", "--tap", "prelogits")
    assert ask("embed", path, folder, "--into", tmp_path / "c.lance", *asked).code == 0
    stored = penult.Collection.open(tmp_path / "c.lance").vectors()[1]
    np.testing.assert_allclose(stored[0], 2 * items[0], rtol=1e-6)
    hits = ask("search", tmp_path / "c.lance", folder / "a.npy", "--json").json["hits"]
    assert hits[0]["similarity"] == pytest.approx(1.0)


@pytest.mark.parametrize("build", [gained_tflite, gained_onnx])
@pytest.mark.parametrize(
    ("given", "says"),
    [("loud=2", "--input loud: gain."), ("gain=two", "give NAME=NUMBER, such as sr=16000"),
     ("gain=nan", "give NAME=NUMBER"), ("gain", "give NAME=NUMBER")],
)  # fmt: skip
def test_inputs_that_are_none(build: Any, given: str, says: str, tmp_path: Path) -> None:
    found = ask("inspect", build(tmp_path), "--modality", "array", "--input", given)
    assert found.code == 2
    assert says in found.error


def test_inputs_are_those_of_graphs(tmp_path: Path) -> None:
    refused = ask("inspect", "demo", "--input", "a=1").error
    assert "it goes with ONNX, TFLite and TorchScript files" in refused
    path = FloatNet().save(tmp_path / "m.tflite")
    assert "items could not go" in ask("inspect", path, "--input", "picture=1").error
