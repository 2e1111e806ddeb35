"""One contract for every origin of classifiers: what is opened, asked, embedded, saved, proved."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import penult
from conftest import clip
from penult import Embedder
from penult.errors import MissingExtra, UsageError
from penult.models.specs import demo_folder
from penult.tracing.head import logits_of
from zoo import save_audio, save_image, save_text

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is of yesterday

needed: Any = import_module if os.environ.get("CI") == "true" else pytest.importorskip

PACKAGE = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.conv(x)))
        return self.fc(self.drop(hidden.mean((2, 3))))

class Ears(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 400, 160)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean(-1))

class Ended(Net):
    def __init__(self, num_classes=5, end="logits"):
        super().__init__(num_classes)
        self.end = {"logits": nn.Identity(), "softmax": nn.Softmax(-1), "sigmoid": nn.Sigmoid(),
                    "log-softmax": nn.LogSoftmax(-1)}[end]

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.conv(x)))
        return self.end(6 * self.fc(hidden.mean((2, 3))))

def softmax_ended():
    return Ended(end="softmax")

def sigmoid_ended():
    return Ended(end="sigmoid")

def logits_ended():
    return Ended(end="logits")

def log_softmax_ended():
    return Ended(end="log-softmax")

def patches(samples):
    n = max(1, len(samples) // 8_000)
    return torch.from_numpy(np.resize(samples, (n, 3, 32, 32)).astype(np.float32))

def channels_last(image):
    return np.array(image.resize((32, 32)), np.float32) / 64

def to_tensor(image):
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 64
"""
PREPARE = "net_of_the_contract:to_tensor"


@dataclass
class Opened:
    """One origin. raw: the model's own logits of what was prepared. file: what is saved verbatim.
    bound: how far the logits may be from the raw ones, relative; 0 is to the bit."""

    spec: Any
    raw: Callable[[Mapping[str, Tensor]], Any]
    items: list[Any]
    asked: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    bound: float = 0.0
    savable: bool = True

    def load(self) -> Any:
        return penult.load(self.spec, **self.asked)


def rouse(module: nn.Module) -> nn.Module:
    """Weights with which two inputs give clearly different scores; the same ones every time."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                parameter.copy_(1.4 * noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return module.eval()


def pictures() -> list[Any]:
    random = np.random.default_rng(7)
    arrays = (random.integers(0, 256, (40 + 9 * i, 52, 3), dtype=np.uint8) for i in range(3))
    return [Image.fromarray(array) for array in arrays]


def clips(rate: int = 16_000) -> list[Any]:
    return [clip(seconds, i, rate) for i, seconds in enumerate((1.0, 0.63, 1.2))]


def network(name: str = "Net", nudge: float = 0.0, **settings: Any) -> nn.Module:
    """The user's own network, with weights that let every input count; one of them nudged."""
    torch.manual_seed(0)
    module: nn.Module = getattr(import_module("net_of_the_contract"), name)(**settings)
    rouse(module)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += nudge
    return module


def plain(module: nn.Module) -> Callable[[Mapping[str, Tensor]], Any]:
    def run(tensors: Mapping[str, Tensor]) -> Any:
        with torch.no_grad():
            return logits_of(module(**tensors)).numpy()

    return run


def in_order(module: Any) -> Callable[[Mapping[str, Tensor]], Any]:
    def run(tensors: Mapping[str, Tensor]) -> Any:
        with torch.no_grad():
            return logits_of(module(*tensors.values())).numpy()

    return run


def transformers_folder(save: Callable[..., Path], auto: str, items: list[Any]) -> Any:
    def build(folder: Path, nudge: float) -> Opened:
        import transformers
        from safetensors.torch import load_file, save_file

        save(folder)
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        tensors["classifier.weight"][0, 0] += nudge
        save_file(tensors, weights, {"format": "pt"})
        model = getattr(transformers, auto).from_pretrained(folder).eval()
        return Opened(folder, plain(model), items, file="model.safetensors")

    return build


def timm_name(folder: Path, nudge: float) -> Opened:
    timm = needed("timm")
    torch.manual_seed(0)
    module = rouse(timm.create_model("test_resnet", num_classes=5))
    with torch.no_grad():
        module.fc.weight[0, 0] += nudge
    torch.save({"state_dict": module.state_dict()}, folder / "m.pth.tar")
    return Opened(
        "timm:test_resnet", in_order(module), pictures(), {"checkpoint": folder / "m.pth.tar"}
    )


def torchvision_name(folder: Path, nudge: float) -> Opened:
    from safetensors.torch import save_file

    torchvision = needed("torchvision")
    torch.manual_seed(0)
    module = rouse(torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=5))
    with torch.no_grad():
        module.fc.weight[0, 0] += nudge
    save_file(module.state_dict(), folder / "m.safetensors")
    asked = {"checkpoint": folder / "m.safetensors", "preprocess": PREPARE}
    return Opened("torchvision:shufflenet_v2_x0_5", in_order(module), pictures(), asked)


def factory(folder: Path, nudge: float) -> Opened:
    from safetensors.torch import save_file

    module = network(nudge=nudge)
    save_file(module.state_dict(), folder / "m.safetensors")
    asked = {"checkpoint": folder / "m.safetensors", "preprocess": PREPARE}
    return Opened("net_of_the_contract:Net", plain(module), pictures(), asked)


def training_checkpoint(folder: Path, nudge: float) -> Opened:
    module = network(nudge=nudge, num_classes=9)
    weights = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {}}, folder / "best.pth.tar")
    asked = {
        "checkpoint": folder / "best.pth.tar",
        "preprocess": PREPARE,
        "class_names": [*"abcdefghi"],
    }
    return Opened("net_of_the_contract:Net", plain(module), pictures(), asked)


def module_object(folder: Path, nudge: float) -> Opened:
    module = network(nudge=nudge)
    return Opened(module, plain(module), pictures(), {"preprocess": PREPARE}, savable=False)


def scripted(how: Callable[[nn.Module], Any], name: str) -> Any:
    def build(folder: Path, nudge: float) -> Opened:
        torch.jit.save(how(network(nudge=nudge)), folder / name)
        raw = in_order(torch.jit.load(folder / name))
        return Opened(folder / name, raw, pictures(), {"preprocess": PREPARE}, file=name)

    return build


def scripted_sound(folder: Path, nudge: float) -> Opened:
    path = folder / "ears.pt"
    torch.jit.save(torch.jit.script(network("Ears", nudge)), path)
    return Opened(path, in_order(torch.jit.load(path)), clips(), {"sample_rate": 16_000},
                  file="ears.pt")  # fmt: skip


def exported(folder: Path, nudge: float) -> Opened:
    path = folder / "model.pt2"
    program = torch.export.export(network(nudge=nudge), (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, path)
    asked = {"preprocess": PREPARE}
    return Opened(path, in_order(program.module()), pictures(), asked, file="model.pt2")


def exported_sound(folder: Path, nudge: float) -> Opened:
    path = folder / "ears.pt2"
    sizes = {0: torch.export.Dim("batch", max=64), 2: torch.export.Dim("n", min=800, max=960_000)}
    program = torch.export.export(
        network("Ears", nudge), (torch.zeros(2, 1, 16_000),), dynamic_shapes={"x": sizes}
    )
    torch.export.save(program, path)
    raw = in_order(program.module())
    return Opened(path, raw, clips(), {"sample_rate": 16_000}, file="ears.pt2")


def onnx_file(folder: Path, nudge: float) -> Opened:
    onnx, onnxruntime = needed("onnx"), needed("onnxruntime")
    helper, as_tensor = onnx.helper, onnx.numpy_helper.from_array
    random = np.random.default_rng(0)
    k, w = (random.standard_normal(s).astype("f4") for s in ((8, 3, 8, 8), (128, 5)))
    k[0, 0, 0, 0] += nudge
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["m"], strides=[8, 8]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Flatten", ["r"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [value("x", float32, ("n", 3, 32, 32))], [value("y", float32, ("n", 5))],
        [as_tensor(k, "k"), as_tensor(w, "w")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def raw(tensors: Mapping[str, Tensor]) -> Any:
        return session.run(["y"], {name: value.numpy() for name, value in tensors.items()})[0]

    asked = {"preprocess": PREPARE}
    return Opened(folder / "model.onnx", raw, pictures(), asked, file="model.onnx", bound=1e-6)


def tflite_file(folder: Path, nudge: float) -> Opened:
    from tflite_models import FloatNet

    needed("ai_edge_litert")
    net = FloatNet(nudge)
    path = net.save(folder / "model.tflite")

    def raw(tensors: Mapping[str, Tensor]) -> Any:
        return net.logits(tensors["picture"].numpy()).astype(np.float32)

    asked = {"preprocess": "net_of_the_contract:channels_last"}
    return Opened(path, raw, pictures(), asked, file="model.tflite", bound=1e-5)


def keras_module() -> Any:
    from penult.models.loaders.keras import imported_keras

    try:
        return imported_keras()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


def keras_file(folder: Path, nudge: float) -> Opened:
    keras = keras_module()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((32, 32, 3))
    h = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 32)(x))
    h = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(h))
    model = keras.Model(x, layers.Dense(5)(layers.Dropout(0.3)(h)))
    weights = model.get_weights()
    weights[0][0, 0, 0, 0] += nudge
    model.set_weights([2 * w if w.ndim > 1 else w for w in weights])
    model.save(folder / "model.keras")
    return Opened(folder / "model.keras", in_order(model), pictures(), file="model.keras")


def demo(folder: Path, nudge: float) -> Opened:
    import transformers

    auto = transformers.AutoModelForAudioClassification
    if not nudge:
        return Opened("demo", plain(auto.from_pretrained(demo_folder()).eval()), clips())
    model = auto.from_pretrained(demo_folder()).eval()
    with torch.no_grad():
        model.classifier.weight[0, 0] += nudge
    model.save_pretrained(folder)
    for name in ("preprocessor_config.json",):
        (folder / name).write_bytes((demo_folder() / name).read_bytes())
    return Opened(folder, plain(model), clips())


def saved_embedder(folder: Path, nudge: float) -> Opened:
    first = factory(folder, nudge)
    saved = Embedder.from_classifier(first.load()).save(folder / "emb")
    return Opened(saved, first.raw, first.items, file="model.safetensors")


ORIGINS: dict[str, Callable[[Path, float], Opened]] = {
    "transformers audio": transformers_folder(
        lambda folder: save_audio(folder, "wav2vec2"), "AutoModelForAudioClassification", clips()
    ),
    "transformers image": transformers_folder(
        save_image, "AutoModelForImageClassification", pictures()
    ),
    "transformers text": transformers_folder(
        save_text,
        "AutoModelForSequenceClassification",
        ["the quick fox", "grey whales sing", "rain"],
    ),
    "timm": timm_name,
    "torchvision": torchvision_name,
    "factory": factory,
    "training checkpoint": training_checkpoint,
    "module": module_object,
    "scripted": scripted(torch.jit.script, "model.pt"),
    "traced": scripted(lambda m: torch.jit.trace(m, torch.zeros(1, 3, 32, 32)), "model.ts"),
    "frozen": scripted(lambda m: torch.jit.freeze(torch.jit.script(m)), "model.torchscript"),
    "scripted, sound": scripted_sound,
    "exported": exported,
    "exported, sound of any length": exported_sound,
    "onnx": onnx_file,
    "tflite": tflite_file,
    "keras": keras_file,
    "demo": demo,
    "saved embedder": saved_embedder,
}


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A user's own package with networks and a preprocessing, importable."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "net_of_the_contract.py").write_text(PACKAGE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def built(name: str, nudge: float = 0.0) -> Opened:
        return ORIGINS[name](tmp_path_factory.mktemp("origin"), nudge)

    return built


@pytest.fixture(scope="module", params=ORIGINS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def origin(name: str, build: Any) -> Opened:
    opened: Opened = build(name)
    return opened


@pytest.fixture(scope="module")
def embedder(origin: Opened) -> Embedder:
    return Embedder.from_classifier(origin.load())


def test_it_says_what_it_is(origin: Opened) -> None:
    clf = origin.load()
    inputs = clf.preprocess(origin.items[0]).tensors
    assert len(clf.labels) == origin.raw(inputs).shape[-1]
    assert all(isinstance(label, str) for label in clf.labels)
    assert all(tensor.shape[0] == 1 for tensor in inputs.values())
    about = json.loads(json.dumps(clf.describe(), allow_nan=False))
    assert about["classes"] == len(clf.labels)
    assert about["parameters"] > 0
    assert about["modality"] == clf.modality


def test_its_example_is_the_same_for_the_same_seed(origin: Opened) -> None:
    clf = origin.load()
    first, again, other = (clf.example(seed).tensors for seed in (0, 0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_its_identity_is_that_of_its_weights(name: str, origin: Opened, build: Any) -> None:
    identity = origin.load().identity()
    assert origin.load().identity() == identity
    other = build(name, 0.25).load().identity()
    assert other["weights"] != identity["weights"]
    assert {**other, "weights": ""} == {**identity, "weights": ""}


def test_classify_gives_the_models_own_logits(origin: Opened) -> None:
    clf = origin.load()
    for item in origin.items:
        logits = clf.classify(item)[0].logits
        expected = origin.raw(clf.preprocess(item).tensors)[0]
        if origin.bound:
            assert np.abs(logits - expected).max() <= origin.bound * np.abs(expected).max()
        else:
            np.testing.assert_array_equal(logits, expected)


def test_embed_gives_vectors_and_leaves_no_mark(origin: Opened, embedder: Embedder) -> None:
    embedder.embed(origin.items[0])  # transformers' modules hook themselves in their first pass
    state = None
    if embedder.classifier.structure.engine == "torch":
        module = embedder.classifier.module
        state = {key: value.clone() for key, value in module.state_dict().items()}
        before = [marks(part) for part in module.modules()]
    vectors = embedder.embed(origin.items)
    assert vectors.shape == (len(origin.items), embedder.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], vectors[1])
    if state is not None:
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert [marks(part) for part in module.modules()] == before


def test_a_run_gives_the_models_own_labels(origin: Opened, embedder: Embedder) -> None:
    result = embedder.run(origin.items, alone=True)
    said = embedder.classifier.classify(origin.items)
    assert result.labels == [one.label for one in said]
    for row, one in zip(result.logits, said, strict=True):
        np.testing.assert_allclose(row, one.logits.reshape(-1, len(row)).mean(0), rtol=1e-5)


def test_its_vectors_make_a_class_space(origin: Opened, embedder: Embedder, tmp_path: Path) -> None:
    space = penult.ClassSpace(embedder, space="raw", unknown=0)
    for name, item in zip("abc", origin.items, strict=True):
        space.add(name, [item])
    assert [one.label for one in space.predict(origin.items)] == [*"abc"]
    if origin.savable:
        again = penult.ClassSpace.load(space.save(tmp_path / "c.npz"), source=embedder)
        assert [one.label for one in again.predict(origin.items)] == [*"abc"]


def test_what_is_opened_is_a_classifier(origin: Opened) -> None:
    clf = origin.load()
    assert isinstance(clf, penult.Classifier)
    assert repr(clf) == f"Classifier({clf.spec!r}, {len(clf.labels)} classes)"
    with pytest.warns(DeprecationWarning, match=r"leave \.origin out"):
        assert clf.origin is clf  # type: ignore[attr-defined]
    assert not hasattr(clf, "no_such_name")
    again = copy.copy(clf)
    assert type(again) is type(clf) and again.labels == clf.labels and again.classify


ENDS = ("logits", "softmax", "sigmoid", "log-softmax")


def ended(name: str, end: str, folder: Path) -> tuple[Any, dict[str, Any], Any]:
    """(spec of a model of one loader that ends so, options of load, tensor → its logits)."""
    x = torch.zeros(1, 3, 32, 32)
    asked: dict[str, Any] = {"preprocess": PREPARE}
    if name == "keras":
        return (*ended_in_keras(end, folder),)
    if name == "onnx":
        return (*ended_in_onnx(end, folder),)
    model = network("Ended", end=end)
    bare = network("Ended", end="logits")
    path: Any = model
    if name == "factory":
        from safetensors.torch import save_file

        save_file(model.state_dict(), folder / "m.safetensors")
        asked |= {"checkpoint": folder / "m.safetensors"}
        path = f"net_of_the_contract:{end.replace('-', '_')}_ended"
    elif name == "exported":
        path = folder / "m.pt2"
        torch.export.save(torch.export.export(model, (x,)), path)
    elif name != "module":
        path = folder / "m.ts"
        module: Any = torch.jit.trace(model, x) if name == "traced" else torch.jit.script(model)
        torch.jit.save(torch.jit.freeze(module) if name == "frozen" else module, path)
    return path, asked, plain(bare)


def ended_in_keras(end: str, folder: Path) -> tuple[Any, dict[str, Any], Any]:
    keras = keras_module()
    layers = keras.layers
    x = keras.Input((32, 32, 3))
    h = layers.Conv2D(8, 3, activation="tanh")(layers.Rescaling(1 / 32)(x))
    logits = layers.Dense(5, kernel_initializer=keras.initializers.RandomNormal(0, 3, 0))(
        layers.GlobalAveragePooling2D()(h)
    )
    last = {
        "logits": lambda z: z,
        "softmax": lambda z: layers.Activation("softmax")(z),
        "sigmoid": lambda z: keras.ops.sigmoid(z),
        "log-softmax": lambda z: keras.ops.log_softmax(z),
    }[end]
    keras.Model(x, last(logits)).save(folder / "m.keras")
    return folder / "m.keras", {}, in_order(keras.Model(x, logits))


def ended_in_onnx(end: str, folder: Path) -> tuple[Any, dict[str, Any], Any]:
    """As jax2tf spells them out: no operation of the graph is called Softmax."""
    onnx, onnxruntime = needed("onnx"), needed("onnxruntime")
    helper, as_tensor = onnx.helper, onnx.numpy_helper.from_array
    random = np.random.default_rng(0)
    weights = [as_tensor(random.standard_normal(s).astype("f4") * c, n)
               for n, s, c in (("k", (8, 3, 8, 8), 0.1), ("w", (128, 5), 0.2))]  # fmt: skip
    weights += [as_tensor(np.ones(1, "f4"), "one"), as_tensor(np.array([1]), "last")]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "k"], ["m"], strides=[8, 8]),
        node("Relu", ["m"], ["r"]),
        node("Flatten", ["r"], ["z"]),
        node("MatMul", ["z", "w"], ["a"]),
    ]
    stable = [
        node("ReduceMax", ["a"], ["top"], axes=[1]),
        node("Sub", ["a", "top"], ["low"]),
        node("Exp", ["low"], ["e"]),
        node("ReduceSum", ["e", "last"], ["s"]),
    ]
    nodes += {
        "logits": [node("Identity", ["a"], ["y"])],
        "softmax": [*stable, node("Div", ["e", "s"], ["y"])],
        "sigmoid": [
            node("Neg", ["a"], ["n"]), node("Exp", ["n"], ["e"]), node("Add", ["one", "e"], ["s"]),
            node("Reciprocal", ["s"], ["y"]),
        ],
        "log-softmax": [*stable, node("Log", ["s"], ["l"]), node("Sub", ["low", "l"], ["y"])],
    }[end]  # fmt: skip
    value, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [value("x", kind, ("n", 3, 32, 32))], [value("y", kind, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    model.graph.output.append(value("a", kind, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())

    def logits(tensors: Mapping[str, Tensor]) -> Any:
        return session.run(["a"], {name: one.numpy() for name, one in tensors.items()})[0]

    return folder / "m.onnx", {"preprocess": PREPARE}, logits


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "loader",
    ["module", "factory", "scripted", "traced", "frozen", "exported", "keras", "onnx"],
)
def test_scores_are_the_models_own_and_logits_are_logits(
    loader: str, end: str, tmp_path: Path
) -> None:
    spec, asked, logits_of_tensors = ended(loader, end, tmp_path)
    clf = penult.load(spec, **asked)
    assert clf.kind == ("multi-label" if end == "sigmoid" else "single-label")
    facts = clf.describe()
    assert facts.get("scores") == (None if end == "logits" else end)
    for item in pictures():
        z = np.asarray(logits_of_tensors(clf.preprocess(item).tensors)[0], np.float64)
        (found,) = clf.classify(item)
        e = np.exp(z - z.max())
        own = 1 / (1 + np.exp(-z)) if end == "sigmoid" else e / e.sum()
        np.testing.assert_allclose(found.scores, own, atol=2e-6)
        expected = np.log(own) if end == "log-softmax" else z
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)
        assert found.index == int(z.argmax())
        assert found.score == pytest.approx(own.max(), abs=2e-6)
    embedder = Embedder.from_classifier(clf)
    assert embedder.certificate.ok, embedder.certificate.refusal
    if loader != "module":
        (again,) = penult.load(embedder.save(tmp_path / "e")).classify(item)
        np.testing.assert_allclose(again.scores, found.scores, atol=2e-6)


@pytest.mark.parametrize(
    "loader", ["module", "factory", "scripted", "traced", "frozen", "exported", "onnx"]
)
def test_several_patches_of_one_item_are_refused(loader: str, tmp_path: Path) -> None:
    if loader == "exported":
        sizes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
        program = torch.export.export(
            network("Ended"), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=sizes
        )
        torch.export.save(program, tmp_path / "m.pt2")
        spec: Any = tmp_path / "m.pt2"
        asked: dict[str, Any] = {}
    else:
        spec, asked, _ = ended(loader, "logits", tmp_path)
    asked |= {"preprocess": "net_of_the_contract:patches", "sample_rate": 16_000}
    with pytest.raises(UsageError, match=r"2 patches for one item.*--window"):
        penult.load(spec, **asked)  # a second of sound is two patches
    asked["sample_rate"] = 8_000
    clf = penult.load(spec, **asked)  # a second is one patch
    assert Embedder.from_classifier(clf).embed(clip(1.0, 0, 8_000)).shape[0] == 1
    with pytest.raises(UsageError, match=r"3 patches for one item"):
        clf.classify([clip(1.0, 0, 8_000), clip(3.0, 1, 8_000)])


def marks(part: nn.Module) -> Any:
    return part.training, [*part._forward_hooks], [*part._forward_pre_hooks]


def test_what_is_saved_is_the_same_embedder(
    origin: Opened, embedder: Embedder, tmp_path: Path
) -> None:
    if not origin.savable:
        with pytest.raises(UsageError, match=r"package\.module:function"):
            embedder.save(tmp_path / "emb")
        return
    again = Embedder.load(embedder.save(tmp_path / "emb"))
    (found,) = again.classifier.classify(origin.items[0])
    np.testing.assert_array_equal(found.logits, again.run(origin.items[0]).logits[0])
    assert again.fingerprint == embedder.fingerprint
    assert again.classifier.labels == embedder.classifier.labels
    assert again.classifier.kind == embedder.classifier.kind
    assert again.tap == embedder.tap
    np.testing.assert_array_equal(again.embed(origin.items), embedder.embed(origin.items))
    if origin.file:
        there = Path(origin.spec) if Path(origin.spec).is_file() else origin.spec / origin.file
        assert (tmp_path / "emb" / origin.file).read_bytes() == there.read_bytes()


def test_its_head_is_proved_and_its_prelogits_are_read(origin: Opened, embedder: Embedder) -> None:
    assert embedder.certificate.ok, embedder.certificate.refusal
    clf = embedder.classifier
    reader = Embedder.from_classifier(clf, tap="prelogits")
    if clf.structure.engine != "torch":
        assert reader.embed(origin.items[0]).shape == (1, reader.dim)
        return
    for item in origin.items[:2]:
        inputs = clf.preprocess(item).tensors
        z = penult.split(clf.module, inputs).prelogits(inputs)
        if z.ndim == 2:  # nothing to be pooled
            np.testing.assert_array_equal(reader.embed(item), z.numpy())
