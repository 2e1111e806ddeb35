"""Files of TorchScript, torch.export, Keras: taps inside of them, what they fix, may do, lack."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import penult
from conftest import clip
from penult.cli.main import run
from penult.embedding.embedder import Embedder
from penult.errors import MissingExtra, ModelError, PenultError, UntrustedCode, UsageError
from penult.models.options import kind_of
from penult.models.specs import load
from penult.tracing.hooks import captured
from penult.tracing.split import split
from penult.tracing.spots import Tap
from test_loader_contract import rouse

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is of yesterday


class Map(nn.Module):
    """A map of features, then a head; `how` says in which form the head is written."""

    def __init__(self, how: str = "module") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.weight = nn.Parameter(torch.randn(5, 8))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.conv(x)))
        if self.how == "map":
            return F.conv2d(hidden, self.weight[:, :, None, None]).mean((2, 3))
        if self.how == "tokens":
            return F.linear(hidden.flatten(2).transpose(1, 2), self.weight).mean(1)
        pooled = hidden.mean((2, 3))
        if self.how == "linear":
            return F.linear(pooled, self.weight)
        if self.how == "einsum":
            return torch.einsum("bd,kd->bk", pooled, self.weight)
        if self.how == "shared":
            return F.linear(pooled, self.weight) + torch.mm(pooled, self.weight.t()) ** 2
        return self.fc(pooled)


class Steps(nn.Module):
    """A recurrent body written out: how often its operations run depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(8, 8))
        self.b, self.c = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = torch.tanh(torch.mm(h, self.a) + torch.mm(x[:, t], self.b))
        return torch.mm(h, self.c)


def module(how: str = "module") -> nn.Module:
    torch.manual_seed(0)
    return rouse(Map(how))


def images(batch: int = 2, side: int = 33) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch + side))


def picture() -> Image.Image:
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(array)


def prepare(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 64


def read(model: nn.Module, tap: Tap, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), captured(model, [tap.spot, tap.spot]) as caught:
        model(x)
        first, second = caught()
    assert torch.equal(first, second)
    return first


FORMS: dict[str, Callable[[], nn.Module]] = {
    **{how: lambda how=how: module(how) for how in ("linear", "einsum", "map", "tokens", "shared")},
    "script": lambda: torch.jit.script(rouse(nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))),
    "trace": lambda: torch.jit.trace(module(), images()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2048, 5)).eval())),
    "exported": lambda: torch.export.export(module(), (images(),)).module(),
    "unflattened": lambda: torch.export.unflatten(
        torch.export.export(module("linear"), (images(),))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_prelogits_are_a_tap_also_where_no_module_carries_them(form: str) -> None:
    """And give what split's own prelogits are, to the bit."""
    model = FORMS[form]()
    hooks = hooks_of(model)
    cut = split(model, images())
    assert cut.certificate.ok, cut.certificate.refusal
    tap = cut.taps["prelogits"]
    assert tap.operation
    for x in (images(), images(2, 33) * 2):
        z = cut.prelogits(x)
        assert isinstance(z, torch.Tensor)
        assert torch.equal(read(model, tap, x), z)
    assert hooks_of(model) == hooks


def hooks_of(model: nn.Module) -> Any:
    """A program's own hooks check its inputs."""
    return [[*part._forward_hooks, *part._forward_pre_hooks] for part in model.modules()]


@pytest.mark.parametrize("form", ["script", "trace", "exported"])
def test_backbone_is_a_tap_where_no_module_is_seen(form: str) -> None:
    model = FORMS[form]()
    cut = split(model, images())
    tap = cut.taps["backbone"]
    assert (tap.operation, len(tap.positions)) != ("", 0)
    hidden = read(model, tap, images())
    prelogits = read(model, cut.taps["prelogits"], images())
    torch.testing.assert_close(hidden.mean((2, 3)), prelogits.flatten(1))
    assert (tap.shape[tap.channel], tap.channel) == (8, 1)


def test_an_operation_is_counted_from_the_end() -> None:
    """A recurrent body runs its operations more often for longer inputs."""
    torch.manual_seed(0)
    model = rouse(Steps())
    cut = split(model, torch.randn(2, 6, 4))
    tap = cut.taps["prelogits"]
    assert tap.operation == "aten.mm"
    for length in (3, 6, 11):
        x = torch.randn(2, length, 4)
        assert torch.equal(read(model, tap, x), cut.prelogits(x))


def test_a_tap_that_a_pass_does_not_come_by_is_told() -> None:
    gone = Tap("prelogits", "", "input", 0, (1, 8), 1, operation="aten.bmm")
    said = pytest.raises(RuntimeError, match=r"the input of bmm in the model was not reached")
    with captured(module("linear"), [gone.spot]) as caught, said:
        caught()


def test_taps_of_older_embedders_are_read(tmp_path: Path) -> None:
    """penult.json as it was written before taps could name operations."""
    embedder = Embedder.from_classifier(load("demo"))
    path = embedder.save(tmp_path / "emb") / "penult.json"
    saved = json.loads(path.read_text())
    del saved["tap"]["operation"], saved["tap"]["later"]
    path.write_text(json.dumps(saved))
    (tmp_path / "emb" / "SHA256SUMS").unlink()  # nor was there a list of hashes
    assert Embedder.load(tmp_path / "emb").tap == embedder.tap


def scripted(path: Path, model: nn.Module | None = None) -> Path:
    torch.jit.save(torch.jit.script(model or module()), path)
    return path


def exported(path: Path, model: nn.Module, *example: torch.Tensor, **how: Any) -> Path:
    torch.export.save(torch.export.export(model, example, **how), path)
    return path


def test_the_contents_say_what_a_file_is(tmp_path: Path) -> None:
    torch.save(module().state_dict(), tmp_path / "weights.pt")
    assert kind_of(scripted(tmp_path / "a.pt")) == "torchscript"
    assert kind_of(scripted(tmp_path / "a.pth")) == "torchscript"
    assert kind_of(scripted(tmp_path / "a.pt2")) == "torchscript"
    path = exported(tmp_path / "b.pt2", module(), images(1, 32))
    path.rename(tmp_path / "b.pt")
    assert kind_of(tmp_path / "b.pt") == "export"
    assert kind_of(tmp_path / "weights.pt") is None
    assert kind_of(tmp_path / "none.keras") == "keras"
    assert kind_of(tmp_path) is None
    assert load(tmp_path / "b.pt", preprocess=prepare).describe()["origin"] == "export"


@pytest.mark.parametrize("name", ["weights.pt", "weights.ts", "pickled.pt", "weights.safetensors"])
def test_weights_alone_are_no_model(tmp_path: Path, name: str) -> None:
    what: Any = module() if name.startswith("pickled") else module().state_dict()
    torch.save(what, tmp_path / name)
    with pytest.raises(ModelError, match=rf"--checkpoint {name} .*package\.module:factory"):
        load(tmp_path / name, preprocess=prepare)


@pytest.mark.parametrize("name", ["m.pt", "m.pt2", "m.ts", "m.keras", "m.h5"])
def test_a_file_that_is_not_there_or_damaged(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / name, preprocess=prepare)
    (tmp_path / name).write_bytes(b"\x00\xffPK not an archive" * 30)
    with pytest.raises(ModelError, match=r"is no|weights"):
        load(tmp_path / name, preprocess=prepare)
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("model/notes.txt", "nothing")
    with pytest.raises(ModelError):
        load(tmp_path / name, preprocess=prepare)


def test_what_is_asked_of_a_file_must_fit_it(tmp_path: Path) -> None:
    path = scripted(tmp_path / "m.pt")
    for asked, said in (
        ({"checkpoint": "other.pt"}, "brings its own weights"),
        ({"kind": "many"}, "single-label"),
        ({"class_names": ["a"]}, "1 class names were given, and the model has 5"),
        ({"preprocess": None}, "--preprocess package.module:function"),
        ({"modality": "text"}, "does not take a string"),
        ({"preprocess": None, "sample_rate": 8000}, r"\(x \(1, 8000\)\)"),
    ):
        with pytest.raises(PenultError, match=said):
            load(path, **{"preprocess": prepare, **asked})
    clf = load(path, preprocess=prepare, class_names=[*"abcde"], kind="multi-label")
    assert (clf.labels, clf.kind) == (tuple("abcde"), "multi-label")


def test_saved_in_training_mode(tmp_path: Path) -> None:
    """A traced or exported module keeps its dropout at work: told, and not embedded."""
    model = nn.Sequential(module(), nn.Dropout(0.5)).train()
    torch.jit.save(torch.jit.trace(model, images(1, 32), check_trace=False), tmp_path / "m.pt")
    exported(tmp_path / "m.pt2", model, images(1, 32))
    for name in ("m.pt", "m.pt2"):
        with pytest.raises(ModelError, match=r"training mode.*model\.eval\(\)"):
            load(tmp_path / name, preprocess=prepare)
    assert load(scripted(tmp_path / "s.pt", model), preprocess=prepare).labels  # knows both modes


def test_models_at_hand_are_opened_too() -> None:
    for model in (torch.jit.script(module()), torch.export.export(module(), (images(1, 32),))):
        clf = penult.load(model, preprocess=prepare)
        np.testing.assert_allclose(
            clf.classify(picture())[0].logits,
            penult.load(module(), preprocess=prepare).classify(picture())[0].logits,
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


class Ears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(1, 8, 400, 160), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean(-1))


def test_a_fixed_length_is_read_off_the_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exported(tmp_path / "m.pt2", rouse(Ears()), torch.zeros(1, 1, 16_000))
    clf = load(path, sample_rate=16_000)
    assert clf.describe()["inputs"] == ["x float32 (1, 1, 16000)"]
    assert clf.describe()["batch"] == 1
    assert clf.identity()["truncation"] == "first 1 s"
    assert clf.preprocess(clip(1.5)).truncated == 1.0
    assert Embedder.from_classifier(clf).embed([clip(0.4), clip(1.5)]).shape == (2, 8)
    with pytest.raises(UsageError, match="exactly 16000 samples, 1 s at 16000 Hz"):
        load(path, sample_rate=16_000, seconds=2)


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2", module(), images(2, 32))
    with pytest.raises(ModelError, match=r"batches of exactly 2.*dynamic_shapes"):
        load(path, preprocess=prepare)


def test_the_programs_modules_have_their_names_and_classes(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2", module(), images(1, 32))
    found = load(path, preprocess=prepare).module
    assert {name: type(part).__name__ for name, part in found.named_modules()} == {
        "": "Map", "conv": "Conv2d", "norm": "BatchNorm2d", "fc": "Linear",
    }  # fmt: skip
    shown = load(scripted(tmp_path / "m.pt"), preprocess=prepare).module
    assert {name: type(part).__name__ for name, part in shown.named_modules()} == {
        "": "Map", "conv": "Conv2d", "norm": "BatchNorm2d", "fc": "Linear",
    }  # fmt: skip
    assert set(shown.state_dict()) == set(module().state_dict())


def test_scripts_that_write_files_are_not_loaded(tmp_path: Path) -> None:
    path = scripted(tmp_path / "m.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".py"):
                content = content.replace(b"torch.tanh(", b"torch.save(")
            new.writestr(name.replace("m/", "bad/", 1), content)
    with pytest.raises(UntrustedCode, match=r"calls save.*--trust"):
        load(tmp_path / "bad.pt", preprocess=prepare)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch penult-export-ran",)


def tampered(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    target = path.with_name("bad.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in more.items():
            new.writestr(f"m/{name}", content)
    return target


def _pickled(name: str, content: bytes) -> bytes:
    return pickle.dumps(_Code()) if name.endswith("sample_inputs/model.pt") else content


def _target(name: str, content: bytes) -> bytes:
    return content.replace(b"torch.ops.aten.tanh.default", b"torch.hub.load")


def _size(name: str, content: bytes) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    evil = json.dumps("__import__('os').system('touch penult-export-ran')").encode()
    return content.replace(b'"expr_str": "', b'"expr_str": ' + evil + b', "was": "', 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [(_pickled, "pickle that asks to run code"), (_target, r"calls torch\.hub\.load"),
     (_size, "a size in it is")],
)  # fmt: skip
def test_exported_programs_that_would_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    monkeypatch.chdir(tmp_path)  # where code that runs would leave its mark
    path = exported(tmp_path / "m.pt2", module(), images(), dynamic_shapes={"x": sizes})
    with pytest.raises(UntrustedCode, match=rf"{said}.*--trust"):
        load(tampered(path, change), preprocess=prepare)
    assert not (tmp_path / "penult-export-ran").exists()


def test_compiled_packages_have_nothing_to_cut(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2", module(), images(1, 32))
    more = {"data/aotinductor/model/x.so": b"ELF"}
    with pytest.raises(ModelError, match="compiled code"):
        load(tampered(path, lambda _, content: content, **more), preprocess=prepare)


@pytest.fixture(scope="module")
def keras() -> Any:
    from penult.models.loaders.keras import imported_keras

    try:
        return imported_keras()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


def strong(model: Any) -> Any:
    model.set_weights([2 * w if w.ndim > 1 else w for w in model.get_weights()])
    return model


def pooled(keras: Any, *last: Any, scaling: bool = True, **first: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    scale = [layers.Rescaling(1 / 32)] if scaling else []
    body = keras.Sequential([layers.Conv2D(8, 3, **first), layers.ReLU()], name="body")
    parts = [*scale, body, layers.GlobalAveragePooling2D(), *last]
    return strong(keras.Sequential([keras.Input((24, 24, 3)), *parts]))


def test_keras_scores_are_what_the_model_returns(keras: Any, tmp_path: Path) -> None:
    """A last softmax or sigmoid is left off, in whatever form it is written."""
    layers = keras.layers
    for last, kind in (
        ([layers.Dense(5, activation="softmax")], "single-label"),
        ([layers.Dense(5), layers.Softmax()], "single-label"),
        ([layers.Dense(5, activation="sigmoid")], "multi-label"),
        ([layers.Dense(5), layers.Activation("sigmoid")], "multi-label"),
    ):
        model = pooled(keras, *last)
        model.save(tmp_path / "m.keras")
        clf = penult.load(tmp_path / "m.keras")
        assert clf.kind == kind
        prediction = clf.classify(picture())[0]
        with torch.no_grad():
            expected = model(clf.preprocess(picture()).tensors["inputs"])[0]
        np.testing.assert_allclose(prediction.scores, expected.numpy(), rtol=1e-5, atol=1e-6)
        head = [layer.name for layer in model.layers if isinstance(layer, layers.Dense)]
        cut = split(clf.module, clf.example().tensors)
        assert cut.head.names == head, cut
        found = penult.load(model).classify(picture())[0]  # at hand, and as it was afterwards
        np.testing.assert_allclose(found.logits, prediction.logits, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            again = model(clf.preprocess(picture()).tensors["inputs"])[0]
        assert torch.equal(again, expected)


def test_keras_layers_are_taps(keras: Any, tmp_path: Path) -> None:
    pooled(keras, keras.layers.Dense(5)).save(tmp_path / "m.h5")
    clf = load(tmp_path / "m.h5")
    tap = Embedder.from_classifier(clf).tap
    assert tap.place == "output of body/re_lu" or tap.place.startswith("output of body")
    assert tap.describe() == "height 22 × width 22 × channel 8"


def test_keras_images_are_prepared_as_keras_does(keras: Any, tmp_path: Path) -> None:
    """Resized as its own data sets are; the range of values is said, or scaled by the model."""
    picture().save(tmp_path / "p.png")
    loaded = keras.utils.load_img(tmp_path / "p.png")
    array = keras.utils.img_to_array(loaded)
    expected = keras.ops.image.resize(array, (24, 24), data_format="channels_last").cpu().numpy()
    pooled(keras, keras.layers.Dense(5)).save(tmp_path / "m.keras")
    clf = load(tmp_path / "m.keras")
    np.testing.assert_array_equal(clf.preprocess(picture()).tensors["inputs"][0], expected)
    assert clf.describe()["preprocessing"] == "resized to 24×24, bilinear, RGB, values 0..255"
    pooled(keras, keras.layers.Dense(5), scaling=False).save(tmp_path / "m.keras")
    with pytest.raises(UsageError, match=r"range of values.*0\.\.255, 0\.\.1, -1\.\.1"):
        load(tmp_path / "m.keras")
    scaled = load(tmp_path / "m.keras", preprocess="-1..1")
    values = scaled.preprocess(picture()).tensors["inputs"][0]
    np.testing.assert_allclose(values, expected / 127.5 - 1, atol=1e-6)
    assert scaled.identity()["preprocessing"] != load(
        tmp_path / "m.keras", preprocess="0..1").identity()["preprocessing"]  # fmt: skip


@pytest.mark.parametrize("shape", [(8000,), (8000, 1), (None, 1)])
def test_keras_sound(keras: Any, tmp_path: Path, shape: tuple[Any, ...]) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    h = x if len(shape) == 2 else layers.Reshape((8000, 1))(x)
    h = layers.GlobalAveragePooling1D()(layers.Conv1D(8, 80, 40, activation="relu")(h))
    strong(keras.Model(x, layers.Dense(4)(h))).save(tmp_path / "m.keras")
    clf = load(tmp_path / "m.keras", sample_rate=8000)
    assert clf.modality == "audio"
    assert clf.input.seconds == (1.0 if shape[0] else None)
    assert Embedder.from_classifier(clf).embed([clip(0.5, 0, 8000)]).shape == (1, 8)
    with pytest.raises(UsageError, match="--sample-rate"):
        load(tmp_path / "m.keras")


def test_keras_code_needs_trust(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: 2 * x),
                              keras.layers.Dense(3)])  # fmt: skip
    model.save(tmp_path / "m.keras")
    with pytest.raises(UntrustedCode, match=r"Lambda.*--trust"):
        load(tmp_path / "m.keras", preprocess=lambda image: torch.ones(4))


def test_keras_files_that_are_no_model(keras: Any, tmp_path: Path) -> None:
    model = pooled(keras, keras.layers.Dense(5))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ModelError, match=r"weights of Keras and no network.*model\.save"):
        load(tmp_path / "m.weights.h5")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match="SavedModel of TensorFlow"):
        load(tmp_path / "saved")

    class Mine(keras.layers.Layer):
        def call(self, values: Any) -> Any:
            return values * 2

    keras.Sequential([keras.Input((4,)), Mine(), keras.layers.Dense(3)]).save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"'Mine'.*custom_objects"):
        load(tmp_path / "m.keras")


def test_keras_on_another_backend_is_told(keras: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pooled(keras, keras.layers.Dense(5)).save(tmp_path / "m.keras")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"jax backend.*KERAS_BACKEND=torch"):
        load(tmp_path / "m.keras")


@pytest.mark.slow
def test_keras_runs_on_torch_whatever_the_environment_says(keras: Any, tmp_path: Path) -> None:
    pooled(keras, keras.layers.Dense(5)).save(tmp_path / "m.keras")
    code = (
        f"import os, penult; penult.load({str(tmp_path / 'm.keras')!r})\n"
        "print(os.environ['KERAS_BACKEND'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("jax\n", "")


def test_the_command_line_takes_files(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "front_of_mine.py").write_text(
        "import numpy as np, torch\n"
        "def prepare(image):\n"
        "    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 64\n"
    )
    path = scripted(tmp_path / "m.pt")
    picture().save(tmp_path / "p.png")
    asked = ["--preprocess", "front_of_mine:prepare"]
    assert run(["classify", str(path), str(tmp_path / "p.png"), "--json", *asked]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = penult.load(path, preprocess=prepare).classify(picture())[0].logits
    np.testing.assert_array_equal(np.float32(said["predictions"][0]["logits"]), expected)
    assert run(["inspect", str(path), "--json", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["origin"] == "torchscript"
    torch.save(module().state_dict(), tmp_path / "w.pt")
    assert run(["inspect", str(tmp_path / "w.pt")]) == 2
    assert "--checkpoint w.pt" in capsys.readouterr().err


class Constant(nn.Module):
    """Its head is a tensor that is no parameter: part of the program."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean((2, 3)) @ self.head


def test_weights_that_are_no_parameters_are_of_the_identity_too(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = Constant(seed).eval()
        path = exported(tmp_path / "m.pt2", model, images(1, 32))
        torch.jit.save(torch.jit.trace(model, images(1, 32)), tmp_path / "m.pt")
        for spec in (path, tmp_path / "m.pt", torch.jit.load(tmp_path / "m.pt")):
            found.append(load(spec, preprocess=prepare).identity()["weights"])
    assert len(set(found)) == 6


def test_a_script_moves_as_a_whole(tmp_path: Path) -> None:
    """What is shown of it and what is run are the same tensors, also after .to()."""
    shown = load(scripted(tmp_path / "m.pt"), preprocess=prepare).module
    shown.to(torch.float64)
    assert shown(x=images().double()).dtype == torch.float64
    with torch.no_grad():
        before = shown(x=images().double())
        shown.get_submodule("fc").bias.add_(1)
        torch.testing.assert_close(shown(x=images().double()), before + 1)
    assert {value.dtype for value in shown.state_dict().values()} == {torch.float64, torch.int64}
