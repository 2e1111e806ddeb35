"""Files of Keras as people have them: several outputs, settings that Keras 2 wrote."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import penult
from penult.cli.main import run
from penult.errors import MissingExtra, ModelError, UsageError

SIZE = (16, 16, 3)


@pytest.fixture(scope="module")
def keras() -> Any:
    from penult.models.loaders.keras import imported_keras

    try:
        return imported_keras()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[:2], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    return tmp_path / "i.png"


def values(path: Path) -> Any:
    return np.asarray(Image.open(path), np.float32)[None]


def two_outputs(keras: Any, path: Path) -> Any:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input(SIZE)
    h = layers.Conv2D(6, 3, activation="relu")(layers.Rescaling(1 / 255)(x))
    e = layers.GlobalAveragePooling2D(name="embedding")(h)
    model = keras.Model(x, [layers.Dense(3, activation="softmax", name="species")(e), e])
    model.save(path)
    return model


@pytest.mark.parametrize("output", ["0", "species"])
def test_an_output_is_named_or_numbered(
    keras: Any, tmp_path: Path, picture: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_outputs(keras, tmp_path / "two.keras")
    asked = ["classify", str(tmp_path / "two.keras"), str(picture), "--output", output, "--json"]
    assert run(asked) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    with torch.no_grad():
        own = model(values(picture))[0].numpy()[0]
    np.testing.assert_allclose(found["scores"], own, atol=1e-6)


def test_the_other_output_by_number(keras: Any, tmp_path: Path, picture: Path) -> None:
    model = two_outputs(keras, tmp_path / "two.keras")
    clf = penult.load(tmp_path / "two.keras", output="1")
    with torch.no_grad():
        own = model(values(picture))[1].numpy()[0]
    np.testing.assert_allclose(clf.classify(picture)[0].logits, own, rtol=1e-5)


@pytest.mark.parametrize("output", [None, "specie"])
def test_outputs_are_listed_where_none_is_meant(
    keras: Any, tmp_path: Path, output: str | None
) -> None:
    two_outputs(keras, tmp_path / "two.keras")
    with pytest.raises(UsageError) as error:
        penult.load(tmp_path / "two.keras", output=output)
    assert "species" in str(error.value) and "embedding" in str(error.value)


def layered(keras: Any, layer: Callable[[Any], Any], shape: tuple[int, ...] = SIZE) -> Any:
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    h = layer(x)
    if len(h.shape) == 4:
        h = keras.layers.GlobalAveragePooling2D()(h)
    return keras.Model(x, keras.layers.Dense(3, activation="softmax")(h))


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """The settings in a file, changed to what another version of Keras writes."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        settings = json.loads(entries["config.json"])
        change(settings)
        entries["config.json"] = json.dumps(settings).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return
    import h5py

    with h5py.File(path, "r+") as file:
        settings = json.loads(file.attrs["model_config"])
        change(settings)
        file.attrs["model_config"] = json.dumps(settings)


def setting(kind: str, **more: Any) -> Callable[[Any], None]:
    def change(settings: Any) -> None:
        for layer in settings["config"]["layers"]:
            if layer["class_name"] == kind:
                layer["config"] |= more

    return change


OLD: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], Callable[[Any], None]]] = {
    "DepthwiseConv2D": (
        lambda k: k.layers.DepthwiseConv2D(3), SIZE, setting("DepthwiseConv2D", groups=1)),
    "SeparableConv2D": (
        lambda k: k.layers.SeparableConv2D(4, 3), SIZE, setting("SeparableConv2D", groups=1)),
    "Conv2DTranspose": (
        lambda k: k.layers.Conv2DTranspose(4, 3), SIZE, setting("Conv2DTranspose", groups=1)),
    "LSTM": (lambda k: k.layers.LSTM(5), (16, 3), setting("LSTM", time_major=False)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", OLD)
def test_settings_of_keras_2_that_change_nothing(
    keras: Any, tmp_path: Path, picture: Path, name: str, suffix: str
) -> None:
    layer, shape, change = OLD[name]
    model = layered(keras, layer(keras), shape)
    path = tmp_path / f"m{suffix}"
    model.save(path)
    rewrite(path, change)
    before = path.read_bytes()
    if len(shape) == 3:
        clf = penult.load(path, preprocess="0..255")
        own = model(values(picture))
    else:
        clf = penult.load(
            path, preprocess=lambda i: np.asarray(i.resize((16, 16)), np.float32)[:, 0] / 255
        )
        own = model(values(picture)[:, :, 0] / 255)
    np.testing.assert_allclose(clf.classify(picture)[0].scores, own.detach().numpy()[0], atol=1e-6)
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore")
def test_a_first_layer_that_names_its_input(keras: Any, tmp_path: Path, picture: Path) -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input(SIZE), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]
    )
    model.save(tmp_path / "m.h5")

    def older(settings: Any) -> None:
        own = settings["config"]["layers"][1:]
        own[0]["config"]["batch_input_shape"] = [None, *SIZE]
        settings["config"] = own  # a bare list, as the first versions wrote it

    rewrite(tmp_path / "m.h5", older)
    clf = penult.load(tmp_path / "m.h5", preprocess="0..255")
    own = model(values(picture)).detach().numpy()[0]
    np.testing.assert_allclose(clf.classify(picture)[0].logits, own, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_settings_of_keras_2_that_change_something_are_refused(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    layered(keras, keras.layers.DepthwiseConv2D(3)).save(path)
    rewrite(path, setting("DepthwiseConv2D", groups=3))
    with pytest.raises(ModelError, match=r"DepthwiseConv2D.*groups.*3"):
        penult.load(path, preprocess="0..255")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, words",
    [("TFOpLambda", "tf2onnx"), ("MyLayer", "custom_objects.*--weights-inside")],
)
def test_layers_that_keras_does_not_have(keras: Any, tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "m.h5"
    layered(keras, keras.layers.ReLU()).save(path)

    def other(settings: Any) -> None:
        for layer in settings["config"]["layers"]:
            if layer["class_name"] == "ReLU":
                layer |= {"class_name": kind, "module": None, "registered_name": kind}

    rewrite(path, other)
    with pytest.raises(ModelError, match=f"{kind}.*{words}"):
        penult.load(path, preprocess="0..255")


# ---- what files of Keras 2 mean


def of_keras_2(path: Path, change: Callable[[Any], None] = lambda config: None) -> Path:
    """The file as if Keras 2 had written it. change: to the settings of the model."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.15.0"
        settings = json.loads(file.attrs["model_config"])
        change(settings["config"])
        file.attrs["model_config"] = json.dumps(settings)
    return path


def given(path: Path, x: Any) -> Any:
    """The logits or scores of a file."""
    classifier = penult.load(path, preprocess=lambda _: torch.from_numpy(x[0]), modality="image")
    with torch.no_grad():
        found = classifier.module(**{classifier.module.takes[0]: torch.from_numpy(x)})
    return found.cpu().numpy()


def saved(keras: Any, path: Path, shape: Any, body: Callable[[Any, Any], Any]) -> Any:
    keras.utils.set_random_seed(3)
    x = keras.Input(shape)
    model = keras.Model(x, keras.layers.Dense(3)(body(keras.layers, x)))
    model.save(path)
    return model


def head_of(model: Any, hidden: Any) -> Any:
    weight, bias = model.layers[-1].get_weights()
    return hidden @ weight + bias


def test_the_hard_sigmoid_of_keras_2(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    model = saved(
        keras, path, (8,), lambda layers, x: layers.Dense(6, activation="hard_sigmoid")(x)
    )
    x = 2 * np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    weight, bias = model.layers[1].get_weights()
    inner = x @ weight + bias
    new = head_of(model, np.clip(inner / 6 + 0.5, 0, 1))
    old = head_of(model, np.clip(0.2 * inner + 0.5, 0, 1))
    np.testing.assert_allclose(given(path, x), new, rtol=1e-5, atol=1e-6)
    asked: Any = {"preprocess": lambda _: torch.from_numpy(x[0]), "modality": "image"}
    before = penult.load(path, **asked).identity()["weights"]
    np.testing.assert_allclose(given(of_keras_2(path), x), old, rtol=1e-5, atol=1e-6)
    assert penult.load(path, **asked).identity()["weights"] == f"{before}/2"


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(15, 4, 4), (8, 3, 2), (11, 5, 3), (7, 3, 1)]
)
def test_the_mean_of_a_pooling_of_keras_2(
    keras: Any, tmp_path: Path, size: int, window: int, stride: int
) -> None:
    """Over the positions that are there, by a loop."""
    path = tmp_path / "m.h5"
    model = saved(
        keras, path, (size, size, 2),
        lambda layers, x: layers.Flatten()(layers.AveragePooling2D(window, stride, "same")(x)),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, size, size, 2)).astype(np.float32)
    steps = -(-size // stride)
    begin = max((steps - 1) * stride + window - size, 0) // 2
    spans = [
        slice(max(at * stride - begin, 0), max(at * stride - begin + window, 0))
        for at in range(steps)
    ]
    means = [[x[:, rows, columns].mean((1, 2)) for columns in spans] for rows in spans]
    hidden = np.stack([np.stack(row, 1) for row in means], 1).reshape(2, -1)
    np.testing.assert_allclose(
        given(of_keras_2(path), x), head_of(model, hidden), rtol=1e-4, atol=1e-5
    )


def test_names_with_slashes_and_spare_settings(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"

    def body(layers: Any, x: Any) -> Any:
        h = layers.SeparableConv2D(4, 3, name="conv")(layers.RandomFlip(name="flip")(x))
        return layers.GlobalAveragePooling2D()(h)

    saved(keras, path, (9, 9, 2), body)
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 2)).astype(np.float32)
    expected = given(path, x)

    def change(config: Any) -> None:
        text = json.dumps(config).replace('"conv"', '"block1/conv"')
        config.clear()
        config.update(json.loads(text))
        for layer in config["layers"]:
            if layer["class_name"] == "SeparableConv2D":
                layer["config"] |= {"kernel_initializer": "zeros", "kernel_constraint": None,
                                    "groups": 1, "dtype": "mixed_float16"}  # fmt: skip
            if layer["class_name"] == "RandomFlip":
                layer["config"]["rng_type"] = "stateful"

    np.testing.assert_allclose(given(of_keras_2(path, change), x), expected, rtol=1e-5, atol=1e-6)


def test_attention_of_keras_2(keras: Any, tmp_path: Path) -> None:
    """Its calls name their tensors, and its settings name three shapes."""
    path = tmp_path / "m.h5"
    saved(
        keras, path, (6, 8),
        lambda layers, x: layers.GlobalAveragePooling1D()(
            layers.MultiHeadAttention(2, 4, name="attend")(x, x)
        ),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    expected = given(path, x)

    def change(config: Any) -> None:
        first = config["layers"][0]["config"]["name"]
        for layer in config["layers"]:
            if layer["class_name"] == "MultiHeadAttention":
                layer["inbound_nodes"] = [[[first, 0, 0, {"value": [first, 0, 0]}]]]
                for name in ("query_shape", "key_shape", "value_shape"):
                    layer["config"][name] = [None, 6, 8]
                layer["config"]["softmax_robust_masking"] = False

    np.testing.assert_allclose(given(of_keras_2(path, change), x), expected, rtol=1e-5, atol=1e-6)


def test_a_sequential_in_a_model_of_keras_2(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    base = keras.Sequential(
        [keras.layers.InputLayer((8,)), keras.layers.Dense(5, activation="tanh")], name="base"
    )
    saved(keras, path, (8,), lambda layers, x: base(x))
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    expected = given(path, x)

    def change(config: Any) -> None:
        first = config["layers"][0]["config"]["name"]
        for layer in config["layers"]:
            if layer["class_name"] == "Sequential":
                layer["inbound_nodes"] = [[[first, 0, 0, {}]]]
            if layer["class_name"] == "Dense":
                layer["inbound_nodes"] = [[["base", 1, 0, {}]]]

    np.testing.assert_allclose(given(of_keras_2(path, change), x), expected, rtol=1e-5, atol=1e-6)
