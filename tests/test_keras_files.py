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
