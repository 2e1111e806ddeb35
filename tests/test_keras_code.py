"""Keras files of strangers: nothing that they name runs, and no file that they name is read."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penult
from penult.errors import MissingExtra, ModelError, UntrustedCode

needed = import_module if os.environ.get("CI") == "true" else pytest.importorskip
h5py = needed("h5py")


@pytest.fixture(scope="module")
def keras() -> Any:
    from penult.models.loaders.keras import imported_keras

    try:
        return imported_keras()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def parts(keras: Any, tmp_path_factory: Any) -> dict[str, bytes]:
    """The parts of a file: four numbers to three classes."""
    path = tmp_path_factory.mktemp("keras") / "m.keras"
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"),
                              layers.Dense(3)])  # fmt: skip
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def four(_: Any) -> torch.Tensor:
    return torch.ones(4)


def saved(path: Path, parts: dict[str, bytes], change: Callable[[Any], None]) -> Path:
    settings = json.loads(parts["config.json"])
    change(settings)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "config.json": json.dumps(settings).encode()}.items():
            archive.writestr(name, content)
    return path


def layer(**own: Any) -> Callable[[Any], None]:
    """Put settings in the place of the first layer's."""

    def change(settings: Any) -> None:
        first = next(x for x in settings["config"]["layers"] if x["class_name"] == "Dense")
        own.setdefault("config", first["config"])
        first.update(own)

    return change


def activation(value: Any) -> Callable[[Any], None]:
    def change(settings: Any) -> None:
        first = next(x for x in settings["config"]["layers"] if x["class_name"] == "Dense")
        first["config"]["activation"] = value

    return change


def function(module: str, name: str) -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


FETCH = {"fname": "a", "origin": "http://127.0.0.1:9/a"}
ATTACKS = {
    "get_file": layer(module="keras.utils", class_name="get_file", config=FETCH),
    "load_model": layer(module="keras.models", class_name="load_model", config={"x": "other"}),
    "unsafe": layer(module="keras.config", class_name="enable_unsafe_deserialization", config={}),
    "saving": layer(module="keras.saving", class_name="CustomObjectScope", config={}),
    "torch": layer(class_name="TorchModuleWrapper", config={"module": "AAAA"}),
    "saved model": layer(class_name="TFSMLayer", config={"filepath": "/etc"}),
    "lambda": layer(class_name="Lambda", config={"function": ["4wEAAA==", None, None]}),
    "lambda by name": layer(class_name="Lambda", config={"function": "system"}),
    "lambda of utils": layer(
        class_name="Lambda", config={"function": function("keras.utils", "get_file")}
    ),
    "activation": activation(function("keras.utils", "get_file")),
    "of a module": activation(function("os", "system")),
    "a lambda": activation({"class_name": "__lambda__", "config": {"value": "AAAA"}}),
    "a vocabulary": layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
    "weights of words": layer(class_name="TextVectorization", config={"idf_weights": "/etc/a"}),
    "nested": layer(class_name="TimeDistributed", config={
        "layer": {"class_name": "Bidirectional", "module": "keras.layers", "config": {"layer": {
            "class_name": "get_file", "module": "keras.utils", "config": FETCH}}}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_that_would_run_code(parts: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "m.keras", parts, ATTACKS[name])
    with pytest.raises(UntrustedCode, match="--trust"):
        penult.load(path, preprocess=four)


def test_a_module_is_not_imported(
    parts: dict[str, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    change = layer(module="payload", class_name="Net", registered_name="a>Net", config={})
    with pytest.raises(ModelError, match="'Net', which Keras does not have"):
        penult.load(saved(tmp_path / "m.keras", parts, change), preprocess=four)
    assert not (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore")
def test_the_older_form(keras: Any, tmp_path: Path) -> None:
    layers, path = keras.layers, tmp_path / "m.h5"
    keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)]).save(path)
    # Keras reads this as HDF5, whatever follows
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with h5py.File(path, "r+") as file:
        settings = json.loads(file.attrs["model_config"])
        layer(class_name="Lambda", config={"function": ["4wEAAA==", None, None]})(settings)
        file.attrs["model_config"] = json.dumps(settings)
    with pytest.raises(UntrustedCode, match=r"Lambda.*--trust"):
        penult.load(path, preprocess=four)


def outside(parts: dict[str, bytes], path: Path, change: Callable[[Any, str], None]) -> Path:
    """The file with a weight changed. change: takes an HDF5 group and the name of its weight."""
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = next(n for n in names if isinstance(file[n], h5py.Dataset) and file[n].ndim == 2)
        folder, _, leaf = name.rpartition("/")
        change(file[folder], leaf)
    return saved(path, {**parts, "model.weights.h5": buffer.getvalue()}, lambda _: None)


def test_weights_that_lie_in_other_files(parts: dict[str, bytes], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 8 * 4))

    def raw(group: Any, name: str) -> None:
        del group[name]
        group.create_dataset(name, (4, 8), "f4", external=[(str(secret), 0, 128)])

    def linked(group: Any, name: str) -> None:
        del group[name]
        group[name] = h5py.ExternalLink(str(secret), "/x")

    def virtual(group: Any, name: str) -> None:
        del group[name]
        layout = h5py.VirtualLayout((4, 8), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "x", (4, 8))
        group.create_virtual_dataset(name, layout)

    def huge(group: Any, name: str) -> None:
        del group[name]
        group.create_dataset(name, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))

    for change in (raw, linked, virtual, huge):
        path = outside(parts, tmp_path / "m.keras", change)
        with pytest.raises(UntrustedCode, match="--trust"):
            penult.load(path, preprocess=four)


def test_honest_files_load(keras: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", parts, lambda _: None)
    clf = penult.load(path, preprocess=four)
    own = keras.saving.load_model(path)(np.ones((1, 4), "f4")).detach().numpy()[0]
    found = clf.classify([np.zeros((4, 4, 3), np.uint8)])
    np.testing.assert_allclose(found[0].logits, own, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_how_a_model_was_trained_is_not_looked_at(keras: Any, tmp_path: Path, suffix: str) -> None:
    """Names of outputs stand among the settings there, with texts behind them."""
    taken = keras.Input((4,), name="filename")
    given = keras.layers.Dense(3, name="url")(keras.layers.Dense(8, "relu")(taken))
    model = keras.Model(taken, {"url": given})
    model.compile(loss={"url": "categorical_crossentropy"}, metrics={"url": ["accuracy"]})
    model.save(tmp_path / f"m{suffix}")
    assert len(penult.load(tmp_path / f"m{suffix}", preprocess=four).labels) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_of_a_package_that_is_not_there(keras: Any, tmp_path: Path, suffix: str) -> None:
    class Twice(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    keras.saving.register_keras_serializable("theirs")(Twice)
    try:
        layers = keras.layers
        model = keras.Sequential([keras.Input((4,)), layers.Dense(8), Twice(), layers.Dense(3)])
        model.save(tmp_path / f"m{suffix}")
        assert len(penult.load(tmp_path / f"m{suffix}", preprocess=four).labels) == 3
    finally:
        del keras.saving.get_custom_objects()["theirs>Twice"]
    with pytest.raises(ModelError, match=r"Twice', which Keras does not have.*custom_obj"):
        penult.load(tmp_path / f"m{suffix}", preprocess=four)


@pytest.mark.filterwarnings("ignore")
def test_settings_of_honest_layers_are_not_refused(keras: Any, tmp_path: Path) -> None:
    from penult.models.keras_code import beyond, unknown

    layers = keras.layers
    x = keras.Input((16, 16, 3))
    h = layers.Rescaling(1 / 255)(layers.RandomFlip("horizontal")(x))
    h = layers.Conv2D(4, 3, kernel_regularizer="l2", kernel_initializer="he_normal",
                      activation=keras.activations.gelu)(h)  # fmt: skip
    h = keras.ops.relu(keras.ops.mean(h, axis=(1, 2))) + keras.ops.sum(x, axis=(1, 2, 3))[:, None]
    h = layers.Lambda(keras.activations.tanh)(layers.UnitNormalization()(h))
    model = keras.Model(x, layers.Dense(3, activation="softmax", dtype="float32")(h))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    config = {"name": "lookup", "vocabulary": ["a", "=b"], "idf_weights": None}
    words = {"class_name": "StringLookup", "module": "keras.layers", "config": config}
    for settings in (json.loads(json.dumps(keras.saving.serialize_keras_object(model))), words):
        assert [*beyond(settings), *unknown(settings)] == []


def test_layers_that_the_caller_made_known(keras: Any, tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class Known(keras.layers.Layer):
        def call(self, values: Any) -> Any:
            return values * 2

    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((4,)), Known(), keras.layers.Dense(3)]).save(path)
    assert len(penult.load(path, preprocess=four).labels) == 3


def test_layers_of_published_architectures(keras: Any) -> None:
    """Keras has layers beside the functions that build an architecture and fetch its weights."""
    from penult.models.keras_code import beyond, unknown

    fine = [("keras.src.applications.convnext", "LayerScale"),
            ("keras.src.applications.inception_resnet_v2", "CustomScaleLayer"),
            ("keras._legacy.layers", "ThresholdedReLU")]  # fmt: skip
    odd = [("keras.src.applications.convnext", "ConvNeXtTiny"),
           ("keras.applications", "MobileNet"),
           ("keras.src.legacy.preprocessing.image", "Iterator")]  # fmt: skip
    for module, name in fine + odd:
        one = {"class_name": name, "module": module, "config": {}, "registered_name": name}
        assert bool([*beyond(one), *unknown(one)]) is ((module, name) in odd), one
