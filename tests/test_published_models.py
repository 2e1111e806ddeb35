"""Models as people publish and keep them: class names that count otherwise, quantised and adapted
folders, folders of timm, pointers in the place of files, factories with their weights inside."""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import penult
from penult.cli.main import run
from penult.errors import IncompleteWeights, ModelError, UntrustedCode, UsageError
from zoo import CLASSES, save_audio, save_image

RATE = 8000
CLIP = np.random.default_rng(0).standard_normal(RATE // 4).astype(np.float32)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.inner = nn.Linear(40, 4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.unfold(1, 40, 40))).mean(1))

def build(num_classes=3):
    return Net(num_classes)

def trained():
    torch.manual_seed(7)
    return Net()

def compiled():
    return torch.compile(trained())

def parallel():
    return nn.DataParallel(trained())

def broken():
    raise RuntimeError("no file w.pt")

def settings():
    return {"a": 1}

class Hidden(nn.Module):
    """As PEFT's models: the network's own signature is inside."""
    def __init__(self):
        super().__init__()
        self.base_model = trained()

    def get_base_model(self):
        return self.base_model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)
'''
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 343267312\n"
)
WORDS = "is a pointer of git-lfs, 134 bytes in the place of the file of 343,267,312 bytes"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "published_models.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    import published_models  # type: ignore[import-not-found]

    yield published_models
    sys.path.remove(str(folder))
    sys.modules.pop("published_models")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_image(tmp_path_factory.mktemp("vit") / "vit")


def changed(vit: Path, folder: Path, **settings: Any) -> Path:
    """A copy with other entries of config.json; None takes one out."""
    shutil.copytree(vit, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text and "\x1b" not in text
    return " ".join(text.split())


def numbered(*numbers: int) -> dict[str, str]:
    return {str(number): f"name {number}" for number in numbers}


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [((0, 1, 2, 3, 4, 5, 6), ()), ((6, 5, 4, 3, 2, 1, 0), ()), ((0, 1, 2, 4, 5, 6), (3,)),
     ((1, 2, 3, 4, 5, 6), (0,)), ((2, 6), (0, 1, 3, 4, 5))],
)  # fmt: skip
def test_class_names_are_taken_by_key(
    vit: Path, tmp_path: Path, numbers: tuple[int, ...], missing: tuple[int, ...]
) -> None:
    """In a model of seven classes; a class without a name is called by its number."""
    folder = changed(vit, tmp_path / "m", id2label=numbered(*numbers), label2id=None)
    names = penult.load(folder).labels
    assert names == tuple(f"class_{n}" if n in missing else f"name {n}" for n in range(CLASSES))
    np.testing.assert_array_equal(
        penult.load(folder).classify(PICTURE)[0].logits,
        penult.load(vit).classify(PICTURE)[0].logits,
    )


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [
        (range(1, 8), "id2label in config.json counts from 1, and the model's classes from 0 to 6"),
        (range(-1, 6), "names class -1 ('name -1'), and the model has 7 classes, from 0 to 6"),
        ((0, 1, 2, 3, 4, 5, 9), "names class 9 ('name 9'), and the model has 7 classes"),
        (range(5), "config.json names 5 classes, and the weights have 7: correct that"),
        (range(9), "config.json names 9 classes, and the weights have 7: correct that"),
    ],
)
def test_class_names_that_fit_no_class_are_refused(
    vit: Path, tmp_path: Path, numbers: Any, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(vit, tmp_path / "m", id2label=numbered(*numbers), label2id=None)
    PICTURE.save(tmp_path / "i.png")
    assert run(["classify", str(folder), str(tmp_path / "i.png")]) == 2
    assert cause in said(capsys)


def test_class_names_of_the_caller_go_before(vit: Path, tmp_path: Path) -> None:
    folder = changed(vit, tmp_path / "m", id2label=numbered(*range(1, 8)), label2id=None)
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    assert penult.load(folder, class_names=names).labels == tuple("abcdefg")


def test_a_key_that_is_no_number(vit: Path, tmp_path: Path) -> None:
    folder = changed(vit, tmp_path / "m", id2label={"LABEL_0": "ant"}, label2id=None)
    with pytest.raises(ModelError, match=r"the key 'LABEL_0' for 'ant', which is no number"):
        penult.load(folder)


def test_files_of_class_names(models: Any, tmp_path: Path) -> None:
    torch.save(models.trained().state_dict(), tmp_path / "w.pt")

    def names(text: str, file: str = "names.json") -> tuple[str, ...]:
        (tmp_path / file).write_text(text)
        return penult.load(
            "published_models:build",
            checkpoint=tmp_path / "w.pt",
            sample_rate=RATE,
            class_names=tmp_path / file,
        ).labels

    assert names('["a", "b", "c"]') == ("a", "b", "c")
    assert names('{"2": "c", "0": "a", "1": "b"}') == ("a", "b", "c")
    assert names('{"2": ["n02", "c"], "0": ["n00", "a"]}') == ("a", "class_1", "c")
    assert names('{"id2label": {"0": "a", "1": "b", "2": "c"}}') == ("a", "b", "c")
    assert names('{"c": 2, "a": 0, "b": 1}') == ("a", "b", "c")
    assert names("1 a\n2 b\n3 c\n", "n.txt") == ("1 a", "2 b", "3 c")
    with pytest.raises(UsageError, match=r"counts from 1"):
        names('{"1": "a", "2": "b", "3": "c"}')
    with pytest.raises(UsageError, match=r"line 1 of .* begins with 1, and names class 0"):
        names("1 b\n0 a\n2 c\n", "n.txt")
    with pytest.raises(UsageError, match="2 class names were given, and the model has 3 classes"):
        names('["a", "b"]')


METHODS = {
    "bitsandbytes": ({"load_in_8bit": True}, "pip install bitsandbytes"),
    "GPTQ": ({"bits": 4, "group_size": 128}, "pip install gptqmodel"),
    "AWQ": ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
    "torchao": (
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        "pip install torcha",
    ),
    "HQQ": ({"quant_method": "hqq"}, "pip install hqq"),
    "Quanto": ({"quant_method": "quanto", "weights": "int8"}, "pip install optimum-quanto"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "pip install compressed-tenso"),
    "FP8": ({"quant_method": "fp8"}, "give the model as it was before it was quantised"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_quantised_folder_is_named(
    vit: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One sentence with what to do; a folder of the library's name is no library."""
    settings, remedy = METHODS[name]
    folder = changed(vit, tmp_path / "m", quantization_config=settings)
    PICTURE.save(tmp_path / "i.png")
    (tmp_path / "torchao").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    if name == "FP8":  # with accelerate it is opened, in fp32
        library = import_module("transformers.quantizers.quantizer_finegrained_fp8")
        monkeypatch.setattr(library, "is_accelerate_available", lambda: False)
    assert run(["classify", str(folder), str(tmp_path / "i.png")]) == 2
    text = said(capsys)
    assert f"is quantised with {name}" in text and remedy in text


def adapter(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    about = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_adapter_folder_names_its_base(vit: Path, tmp_path: Path) -> None:
    sentence = r"holds an adapter \(LORA\) for owner/base, and no whole model: merge.*merge_and_unl"
    with pytest.raises(ModelError, match=sentence):
        penult.load(adapter(tmp_path / "alone"))
    shutil.copytree(vit, tmp_path / "beside")
    with pytest.raises(ModelError, match=sentence):
        penult.load(adapter(tmp_path / "beside"))
    (tmp_path / "beside" / "adapter_model.safetensors").unlink()  # merged: the settings are left
    assert len(penult.load(tmp_path / "beside").labels) == CLASSES


def timm_folder(folder: Path, **settings: Any) -> Any:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=4).eval()
    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors", {"format": "pt"})
    kept = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "mean", "std",
            "first_conv", "classifier")  # fmt: skip
    own = {name: module.pretrained_cfg[name] for name in kept}
    about = {"architecture": "test_vit", "num_classes": 4, "num_features": 64,
             "label_names": list("abcd"), "pretrained_cfg": own, **settings}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    return timm, module


def by_timm(timm: Any, module: nn.Module) -> np.ndarray:
    config = timm.data.resolve_model_data_config(module)
    pixels = timm.data.create_transform(**config, is_training=False)(PICTURE)
    with torch.no_grad():
        return module(pixels[None])[0].numpy()


def test_a_folder_of_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.json alone says how pictures are prepared; the logits are timm's own."""
    expected = by_timm(*timm_folder(tmp_path / "m"))
    classifier = penult.load(tmp_path / "m")
    found = classifier.classify(PICTURE)[0]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert found.label == "abcd"[int(expected.argmax())]
    assert run(["inspect", str(tmp_path / "m"), "--depth", "1"]) == 0
    assert "prepared 160 × 160 pixels, bicubic, center crop of 0.95" in " ".join(
        capsys.readouterr().out.split()
    )
    saved = penult.Embedder.from_classifier(classifier).save(tmp_path / "saved")
    again = penult.Embedder.load(saved)
    np.testing.assert_array_equal(again.classifier.classify(PICTURE)[0].logits, found.logits)


def test_folders_of_timm_of_other_days(tmp_path: Path) -> None:
    """Weights as pytorch_model.bin; class names by number; everything at the top of config.json."""
    from safetensors.torch import load_file

    timm, module = timm_folder(tmp_path / "bin", label_names={"0": "a", "3": "d"})
    torch.save(
        load_file(tmp_path / "bin" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin"
    )
    (tmp_path / "bin" / "model.safetensors").unlink()
    expected = by_timm(timm, module)
    classifier = penult.load(tmp_path / "bin")
    assert classifier.labels == ("a", "class_1", "class_2", "d")
    np.testing.assert_allclose(
        classifier.classify(PICTURE)[0].logits, expected, rtol=1e-5, atol=1e-6
    )
    timm_folder(tmp_path / "flat")
    about = json.loads((tmp_path / "flat" / "config.json").read_text())
    flat = about.pop("pretrained_cfg") | {"labels": about.pop("label_names")} | about
    (tmp_path / "flat" / "config.json").write_text(json.dumps(flat))
    classifier = penult.load(tmp_path / "flat")
    assert classifier.labels == tuple("abcd")
    np.testing.assert_allclose(
        classifier.classify(PICTURE)[0].logits, expected, rtol=1e-5, atol=1e-6
    )


def test_pointers_in_the_place_of_weights(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.pth").write_bytes(POINTER)
    commands = [["inspect", "torchvision:resnet18", "--checkpoint", str(tmp_path / "p.pth")]]
    for name in ("p.onnx", "p.h5", "p.keras", "p.pt2", "p.ts", "p.pt", "p.tflite", "p.safetensors"):
        (tmp_path / name).write_bytes(POINTER)
        commands.append(["inspect", str(tmp_path / name)])
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        folder = changed(vit, tmp_path / name.replace(".", "_"))
        (folder / name).write_bytes(POINTER)
        commands.append(["inspect", str(folder)])
    folder = changed(vit, tmp_path / "bin")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    for command in [*commands, ["inspect", str(folder)]]:
        assert run(command) == 2
        text = said(capsys)
        assert WORDS in text and "git lfs pull" in text, command


def test_pointers_in_the_place_of_items(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.mp3", "c.m4a"):
        (tmp_path / name).write_bytes(POINTER)
    (tmp_path / "d.flac").write_bytes(b"/annex/objects/SHA256E-s12--0123.flac\n")
    audio = [str(tmp_path / name) for name in ("a.wav", "b.mp3", "c.m4a", "d.flac")]
    assert run(["classify", "demo", *audio]) == 3
    text = said(capsys)
    assert text.count(WORDS) == 3 and text.count("git annex get") == 1
    (tmp_path / "p.png").write_bytes(POINTER)
    assert run(["classify", str(vit), str(tmp_path / "p.png")]) == 3
    assert WORDS in said(capsys)


def opened(content: Any, folder: Path, **options: Any) -> penult.Classifier:
    torch.save(content, folder / "w.pt", **options)
    return penult.load("published_models:build", checkpoint=folder / "w.pt", sample_rate=RATE)


LEFT_OUT = {
    "an accuracy as a tensor": {"best_prec1": torch.tensor(91.2)},
    "a mean as a tensor": {"mean": torch.ones(3)},
    "a state of a generator": {"rng": {"cpu": torch.zeros(5000, dtype=torch.uint8)}},
    "a number of numpy": {"best": np.float64(0.9)},
    "an array of numpy": {"curve": np.arange(3.0)},
    "a path": {"path": Path("w.pt")},
    "a dictionary with a default": {"seen": defaultdict(list, a=[1])},
}


@pytest.mark.parametrize("form", [True, False], ids=["zip", "of old"])
@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_lies_beside_a_state_dict(models: Any, tmp_path: Path, what: str, form: bool) -> None:
    module = models.trained()
    content = LEFT_OUT[what] | {"state_dict": module.state_dict()}
    with torch.no_grad():
        expected = module(torch.from_numpy(CLIP[None]))[0].numpy()
    classifier = opened(content, tmp_path, _use_new_zipfile_serialization=form)
    np.testing.assert_allclose(classifier.classify(CLIP)[0].logits, expected, rtol=1e-5)


class Settings:
    """A class of somebody's own."""


def test_an_object_of_a_checkpoint_is_named(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"state_dict": models.trained().state_dict(), "settings": Settings()}
    with pytest.raises(UntrustedCode, match=r"asks for test_published_models\.Settings\).*--trust"):
        opened(content, tmp_path)
    options = ["--checkpoint", str(tmp_path / "w.pt"), "--sample-rate", str(RATE)]
    assert run(["inspect", "published_models:build", *options]) == 2
    assert "asks for test_published_models.Settings" in said(capsys)
    for name in ("eval", "os.system"):
        command = f"c{'builtins' if name == 'eval' else 'os'}\n{name.rpartition('.')[2]}\n"
        (tmp_path / "bad.pkl").write_bytes(
            b"\x80\x02" + command.encode() + b"X\x01\x00\x00\x001\x85R."
        )
        with pytest.raises(ModelError):
            penult.load("published_models:build", checkpoint=tmp_path / "bad.pkl", sample_rate=RATE)


def test_files_of_other_runtimes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = b"\x20\0\0\0TFL3" + bytes(64)
    for name, words, remedy in (
        ("BirdNET.tflite", "is damaged", "schema has version 0"),
        ("model.bin", "is a TFLite model", "give it a name that ends in .tflite"),
    ):
        (tmp_path / name).write_bytes(damaged)
        assert run(["inspect", str(tmp_path / name)]) == 2
        text = said(capsys)
        assert words in text and remedy in text
    (tmp_path / "graph.pb").write_bytes(b"\x0a\x01x")
    assert run(["inspect", str(tmp_path / "graph.pb")]) == 2
    assert "frozen graph of TensorFlow" in said(capsys)


FACTORIES = ("trained", "compiled", "parallel", "Hidden")


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_factory_with_its_weights_inside(models: Any, tmp_path: Path, factory: str) -> None:
    """Opened, saved and opened again: the same vectors and logits as the network itself."""
    spec = f"published_models:{factory}"
    with pytest.raises(ModelError, match="--weights-inside if the factory loads them itself"):
        penult.load(spec, sample_rate=RATE)
    classifier = penult.load(spec, sample_rate=RATE, weights_inside=True)
    with torch.no_grad():
        expected = models.trained()(torch.from_numpy(CLIP[None]))[0].numpy()
    np.testing.assert_allclose(classifier.classify(CLIP)[0].logits, expected, rtol=1e-5)
    embedder = penult.Embedder.from_classifier(classifier, tap="prelogits")
    again = penult.Embedder.load(embedder.save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.embed([CLIP]), embedder.embed([CLIP]))


def test_weights_inside_in_the_command(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", 0.1 * CLIP, RATE)
    options = ["--weights-inside", "--sample-rate", str(RATE)]
    wav, store = str(tmp_path / "a.wav"), str(tmp_path / "c.lance")
    assert run(["embed", "published_models:trained", wav, "--into", store, *options]) == 0
    capsys.readouterr()
    assert run(["search", store, wav, "--json"]) == 0  # opens the model again by what is kept
    capsys.readouterr()
    for factory, cause in {
        "broken": "failed: RuntimeError: no file w.pt",
        "settings": "expected a torch module, received dict",
    }.items():
        assert run(["inspect", f"published_models:{factory}", *options]) == 2
        assert cause in said(capsys)
    assert run(["inspect", "demo", "--weights-inside"]) == 2
    assert "--weights-inside goes with a factory" in said(capsys)
    twice = ["--checkpoint", "w.pt", *options]
    assert run(["inspect", "published_models:trained", *twice]) == 2
    assert "exclude each other" in said(capsys)


WRAPPED = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", [*WRAPPED, "a part", "in place"])
def test_wrapped_modules_are_unwrapped(models: Any, wrapper: str) -> None:
    """The caller's own module is left as it is."""
    module = models.trained().eval()
    if wrapper == "a part":
        module.inner = torch.compile(module.inner)
        given = module
    elif wrapper == "in place":
        module.compile()
        given = module
    else:
        given = WRAPPED[wrapper](module)
    before = [type(child).__name__ for child in given.modules()]
    with torch.no_grad():
        expected = models.trained()(torch.from_numpy(CLIP[None]))[0].numpy()
    classifier = penult.load(given, sample_rate=RATE)
    assert classifier.describe()["class"] == "Net"
    np.testing.assert_allclose(classifier.classify(CLIP)[0].logits, expected, rtol=1e-5)
    assert penult.Embedder.from_classifier(classifier, tap="prelogits").embed([CLIP]).shape == (
        1,
        4,
    )
    assert [type(child).__name__ for child in given.modules()] == before
    if wrapper == "in place":
        assert module._compiled_call_impl is not None


def test_how_items_are_prepared_is_shown(
    models: Any, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(*command: str) -> str:
        assert run(["inspect", *command, "--depth", "1"]) == 0
        text = capsys.readouterr().out
        assert run(["inspect", *command, "--json"]) == 0
        words: str = json.loads(capsys.readouterr().out)["preparation"]
        assert f"prepared {words}" in text
        return words

    inside = ("published_models:trained", "--weights-inside", "--sample-rate", str(RATE))
    assert prepared(*inside) == "raw samples at 8,000 Hz"
    assert prepared(*inside, "--seconds", "0.5") == (
        "raw samples at 8,000 Hz, padded or cut to 0.5 s"
    )
    assert prepared(str(vit)) == (
        "resized to 32 × 32, bilinear, values × 0.003922, mean 0.5, deviation 0.5"
    )
    audio = save_audio(tmp_path / "audio", "wav2vec2")
    assert prepared(str(audio)) == "resampled to 16,000 Hz, each clip normalised"


def test_a_loader_of_others_with_names_that_do_not_fit(models: Any) -> None:
    from penult.models.module import make_classifier
    from penult.models.options import LoadOptions

    def opened(labels: Any) -> penult.Classifier:
        options = LoadOptions(sample_rate=RATE)
        return make_classifier(
            models.trained(), torch.from_numpy, options, loader="x", name="y", labels=labels
        )

    assert opened(()).labels == ("class_0", "class_1", "class_2")
    with pytest.raises(ModelError, match="2 names, and the model has 3 classes"):
        opened(["a", "b"])
    assert issubclass(IncompleteWeights, ModelError)
