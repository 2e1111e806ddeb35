"""What origins of classifiers have of their own: checkpoints, names, preprocessing, real models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import penult
from conftest import clip
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.errors import IncompleteWeights, ModelError, UntrustedCode, UsageError
from penult.models.specs import load

PACKAGE = """
import numpy as np
import torch
from torch import nn

def build(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))

def to_tensor(image):
    return torch.from_numpy(np.asarray(image.resize((32, 32)))).permute(2, 0, 1) / 255

def to_batch(image):
    return to_tensor(image)[None]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's own package with a factory and a preprocessing, importable."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "birdnet_of_mine.py").write_text(PACKAGE)
    sys.path.insert(0, str(folder))
    return "birdnet_of_mine"


def picture(seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def trained(module: nn.Module, path: Path, wrap: Callable[[dict[str, Any]], Any]) -> Path:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    torch.save(wrap(weights), path)
    return path


def prefixed(prefix: str) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


LAYOUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda weights: weights,
    "nested": lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"state": {}}},
    "data parallel": lambda weights: {"model": prefixed("module.")(weights)},
    "compiled": lambda weights: {"state_dict": prefixed("_orig_mod.")(weights)},
    "both": lambda weights: prefixed("module._orig_mod.")(weights),
    "with arguments": lambda weights: {
        "arch": "net",
        "args": argparse.Namespace(lr=0.1, model="net"),
        "state_dict": weights,
        "state_dict_ema": {name: value * 2 for name, value in weights.items()},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [4, 9])
def test_checkpoints_as_people_have_them(
    package: str, tmp_path: Path, layout: str, classes: int
) -> None:
    """Any nesting and prefix; the number of classes is read off the weights."""
    build = sys.modules[package].build if package in sys.modules else __import__(package).build
    module = build(classes)
    path = trained(module, tmp_path / "best.pth.tar", LAYOUTS[layout])
    clf = penult.load(f"{package}:build", checkpoint=path, preprocess=f"{package}:to_tensor")
    assert clf.labels == tuple(f"class_{i}" for i in range(classes))
    prediction = clf.classify(picture())[0]
    with torch.no_grad():
        expected = module.eval()(sys.modules[package].to_tensor(picture())[None])[0].numpy()
    np.testing.assert_allclose(prediction.logits, expected, rtol=1e-5, atol=1e-6)


def test_an_ema_copy_can_be_chosen(package: str, tmp_path: Path) -> None:
    path = trained(__import__(package).build(), tmp_path / "m.pth", LAYOUTS["with arguments"])
    plain, ema = (
        load(f"{package}:build", checkpoint=f"{path}{entry}", preprocess=f"{package}:to_tensor")
        for entry in ("", "#state_dict_ema")
    )
    assert plain.describe()["other_copies"] == ["state_dict_ema"]
    torch.testing.assert_close(ema.module[4].weight, plain.module[4].weight * 2)
    with pytest.raises(ModelError, match="'state_dict', 'state_dict_ema'"):
        load(f"{package}:build", checkpoint=f"{path}#ema", preprocess=f"{package}:to_tensor")


def test_what_does_not_fit_is_named(package: str, tmp_path: Path) -> None:
    def without_head(weights: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in weights.items() if name != "4.bias"}

    path = trained(__import__(package).build(), tmp_path / "m.pth", without_head)
    with pytest.raises(IncompleteWeights, match=r"4\.bias: missing"):
        load(f"{package}:build", checkpoint=path, preprocess=f"{package}:to_tensor")
    torch.save({"something": torch.zeros(3), "else": torch.ones(2)}, path)
    with pytest.raises(IncompleteWeights, match="no weight of the checkpoint fits"):
        load(f"{package}:build", checkpoint=path, preprocess=f"{package}:to_tensor")
    torch.save({"state_dict": {"0.weight": torch.zeros(1), "f": print}}, path)
    with pytest.raises(UntrustedCode, match="--trust"):
        load(f"{package}:build", checkpoint=path, preprocess=f"{package}:to_tensor")


def test_a_factory_needs_weights_and_preprocessing(package: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--checkpoint"):
        load(f"{package}:build", preprocess=f"{package}:to_tensor")
    path = trained(__import__(package).build(), tmp_path / "m.pth", LAYOUTS["plain"])
    with pytest.raises(UsageError, match="--preprocess"):
        load(f"{package}:build", checkpoint=path)
    with pytest.raises(ModelError, match=r"cannot be imported.* folder that has no_such_package"):
        load("no_such_package_at_all:build", checkpoint=path)
    with pytest.raises(ModelError, match="cannot be imported"):
        load(f"{package}:no_such", checkpoint=path)
    with pytest.raises(UsageError, match="3 class names were given, and the model has 4 classes"):
        load(
            f"{package}:build",
            checkpoint=path,
            preprocess=f"{package}:to_tensor",
            class_names=["a", "b", "c"],
        )
    clf = load(
        f"{package}:build",
        checkpoint=path,
        preprocess=f"{package}:to_batch",
        class_names=list("abcd"),
    )
    assert clf.labels == ("a", "b", "c", "d")


def test_a_collection_finds_its_way_back(package: str, tmp_path: Path) -> None:
    """A collection opens a user's own network again to search in it."""
    path = trained(__import__(package).build(), tmp_path / "m.pth", LAYOUTS["nested"])
    asked = {"checkpoint": path, "preprocess": f"{package}:to_tensor", "class_names": list("wxyz")}
    emb = Embedder.from_classifier(load(f"{package}:build", **asked), tap="prelogits")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        picture(i).save(pictures / f"{i}.png")
    collection = Collection.open(tmp_path / "c")
    assert collection.add(emb, pictures).done == 3
    picture(2).save(tmp_path / "query.png")
    assert collection.search(tmp_path / "query.png", k=1)[0].id == f"{pictures.name}/2.png"


def test_preprocessing_is_part_of_the_fingerprint(package: str, tmp_path: Path) -> None:
    def one(image: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((32, 32)))).permute(2, 0, 1) / 255

    module = __import__(package).build()
    named = Embedder.from_classifier(load(module, preprocess=f"{package}:to_tensor"))
    other = Embedder.from_classifier(load(module, preprocess=one))
    assert named.fingerprint["weights"] == other.fingerprint["weights"]
    assert named.fingerprint["preprocessing"] != other.fingerprint["preprocessing"]
    with pytest.raises(UsageError, match=r"package\.module:function"):
        other.save(tmp_path / "emb")


def test_a_raw_audio_module_of_fixed_length(tmp_path: Path) -> None:
    """Shorter clips are padded with zeros at the end, longer ones cut, and that is said."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 6, 80, 40)
            self.out = nn.Linear(6 * 199, 3)

        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return self.out(self.conv(samples[:, None]).relu().flatten(1))

    torch.manual_seed(0)
    clf = load(Net(), sample_rate=8000, seconds=1.0)
    short = clip(0.4, 0, 8000)
    padded = np.pad(short, (0, 8000 - len(short)))
    with torch.no_grad():
        expected = clf.module(torch.from_numpy(padded)[None])[0].numpy()
    np.testing.assert_array_equal(
        penult.Embedder.from_classifier(clf).run(short).logits[0], expected
    )
    assert clf.preprocess(clip(2.0, 0, 8000)).truncated == 1.0
    assert clf.preprocess(short).truncated is None


@pytest.mark.parametrize("entry", [None, "state_dict_ema"])
def test_timm_training_checkpoint(tmp_path: Path, entry: str | None) -> None:
    """As timm's training script writes it, with classes of the user's own."""
    timm = pytest.importorskip("timm")
    module = timm.create_model("resnet18", num_classes=5)
    path = trained(
        module,
        tmp_path / "model_best.pth.tar",
        lambda weights: {
            "epoch": 2,
            "arch": "resnet18",
            "state_dict": weights,
            "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": []},
            "version": 2,
            "args": argparse.Namespace(model="resnet18", lr=0.1),
            "state_dict_ema": weights,
            "metric": 71.2,
        },
    )
    checkpoint = f"{path}#{entry}" if entry else path
    clf = penult.load("timm:resnet18", checkpoint=checkpoint, class_names=list("abcde"))
    assert clf.labels == ("a", "b", "c", "d", "e")
    inputs = clf.preprocess(picture()).tensors
    with torch.no_grad():
        expected = module.eval()(*inputs.values())[0].numpy()
    np.testing.assert_allclose(clf.classify(picture())[0].logits, expected, rtol=1e-5, atol=1e-5)
    emb = penult.Embedder.from_classifier(clf)
    with torch.no_grad():
        hidden = module.forward_features(*inputs.values()).mean(dim=(2, 3))[0].numpy()
    np.testing.assert_allclose(emb.embed(picture())[0], hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", ["timm:no_such_model", "torchvision:no_such_model"])
def test_unknown_names(spec: str) -> None:
    with pytest.raises(ModelError, match="has no"):
        load(spec)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
def test_published_weights_without_network(spec: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched.*--checkpoint"):
        load(spec)


SQUEEZE = '''
import numpy as np
import torch

def caffe(image):
    """Shorter side 256, centre 227, BGR minus the channel means."""
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), 2)
    left, top = (image.size[0] - 227) // 2, (image.size[1] - 227) // 2
    pixels = np.asarray(image.crop((left, top, left + 227, top + 227)), np.float32)[:, :, ::-1]
    return torch.from_numpy((pixels - (104, 117, 123)).astype(np.float32)).permute(2, 0, 1)
'''


def test_squeezenet_real_weights(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real ImageNet weights through torchvision: right as often as measured elsewhere (62.5 %)."""
    import zipfile

    (tmp_path / "caffe_of_old.py").write_text(SQUEEZE)
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(shared / "imagenet_sample_1000" / "images.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".jpeg"))
        names = names or sorted(
            name for name in archive.namelist() if name.lower().endswith(".jpg")
        )
        archive.extractall(tmp_path / "images", names[::10])
    weights = shared / "w_squeezenet_dc" / "squeezenet1_0_dc_fp16.safetensors"
    clf = penult.load(
        "torchvision:squeezenet1_0", checkpoint=weights, preprocess="caffe_of_old:caffe"
    )
    predictions = clf.classify([tmp_path / "images" / name for name in names[::10]])
    truth = range(0, len(names), 10)
    right = sum(p.index == t for p, t in zip(predictions, truth, strict=True))
    assert len(predictions) == 100
    # 62.5 % on all 1000; on 100 of them the binomial's 99.9 % interval begins at 46.
    assert right >= 46


YAMNET = '''
from pathlib import Path

import numpy as np
import torch

front = np.load(Path(__file__).with_name("frontend.npz"))

def patch(samples):
    """15600 samples at 16 kHz -> log-mel (1, 96, 64)."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160][:96]
    power = np.abs(np.fft.rfft(frames * front["window"], 512)).astype(np.float32)
    return torch.from_numpy(np.log(power @ front["mel"].T + front["offset"])[None].astype("f4"))
'''


def test_yamnet_with_its_users_own_front_end(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a preprocessor, audio into an image class, 521 labels of its own."""
    (tmp_path / "yamnet_front.py").write_text(YAMNET)
    (tmp_path / "frontend.npz").write_bytes((shared / "w_yamnet_hf/frontend.npz").read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"preprocess": "yamnet_front:patch", "sample_rate": 16_000, "seconds": 0.975}
    clf = penult.load(shared / "w_yamnet_hf", **asked)
    assert (len(clf.labels), clf.labels[0]) == (521, "Speech")
    speech = sorted((shared / "librispeech_speakers").rglob("*.flac"))[:5]
    assert [p.label for p in clf.classify(speech)].count("Speech") >= 4
    emb = penult.Embedder.from_classifier(clf)
    assert emb.dim == 1024
    saved = Embedder.load(emb.save(tmp_path / "emb"))
    np.testing.assert_array_equal(saved.embed(speech[0]), emb.embed(speech[0]))
