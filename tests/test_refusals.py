"""Bad models, files and options through the command line: one clean sentence with the whole
reason, and the right exit code."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import helper
from PIL import Image

from conftest import RATE, clip
from test_cli import Said, ask
from zoo import save_image, save_text

# What belongs to another library's insides, or to Python's.
INSIDES = re.compile(
    r"Traceback|\x1b|0x[0-9a-f]{6}|<class|"
    r"\.(?:cpp|cc|h|rs|py)[:(]\d|\[ONNXRuntimeError|Status Message|"
    r"Exception from|Nobody foresaw|Arguments received|weights_only=|LanceError|\[Errno"
)  # fmt: skip
CUT = re.compile(r"(?:[,;:(]|\b(?:the|a|of|to|and|or|is|in|for|from|with))$")


def sentences(said: Said, code: int, words: str) -> None:
    """Asserts the exit code, and that each line on stderr is clean and whole."""
    assert said.code == code, said
    assert words in said.err, said.err
    assert not INSIDES.search(said.err), said.err
    for line in said.err.splitlines():
        assert line.startswith(("penult: ", "failed ")) and not CUT.search(line), line
        assert line.count("(") == line.count(")"), line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The working folder, with a recording, networks and weights."""
    folder = tmp_path_factory.mktemp("refusals")
    soundfile.write(folder / "a.wav", clip(0.5), RATE)
    (folder / "refused_net.py").write_text(NETWORKS)
    (folder / "refused_syntax.py").write_text("def f(:\n")
    (folder / "refused_import.py").write_text("import no_such_module_xyz\ndef f(): pass\n")
    linear = {"head.weight": torch.zeros(3, 400), "head.bias": torch.zeros(3)}
    torch.save(linear, folder / "net.pt")
    (folder / "half.pt").write_bytes((folder / "net.pt").read_bytes()[:700])
    for name, content in WEIGHTS.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "odd.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"module":"keras","class_name":"Nope","config":{}}')
    with zipfile.ZipFile(folder / "odd.pt2", "w") as archive:
        archive.writestr("archive/version", "1")
    save_onnx(folder / "matmul.onnx", "MatMul", ["b", "n"])
    save_onnx(folder / "reshape.onnx", "Reshape", ["b", "n"])
    save_onnx(folder / "opset.onnx", "Nonsense", ["b", 8000])
    save_onnx(folder / "new.onnx", "MatMul", ["b", 8000], ir=99)
    assert ask("embed", tiny, folder / "a.wav", "--into", folder / "ok.lance").code == 0
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)


NETWORKS = '''
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(400, 3)
    def forward(self, x): return self.head(x)
class Device(Net):
    def forward(self, x):
        raise RuntimeError("CUDA error: device-side assert triggered\\nCUDA kernel errors might be "
            "asynchronously reported at some other API call.\\nFor debugging consider passing X=1")
class Wide(Net):
    def forward(self, x): return self.head(x[..., :10])
def net(): return Net()
def device(): return Device()
def wide(): return Wide()
def arguments(a, b): return Net()
def failing(): raise ValueError("first line\\n\\x1b[31msecond\\x1b[0m")
def number(): return 3
constant = 3
def prepare(x): return torch.from_numpy(x[:400].copy())
def missing(x): raise OSError(2, "No such file or directory", "means.npy")
def keyed(x): raise KeyError("mean")
def nothing(x): return None
def nan(x): return torch.full((400,), float("nan"))
'''  # fmt: skip

WEIGHTS = {
    "junk.pt": b"junk junk junk",
    "empty.pt": b"",
    "cut.pt": b"\x80\x02junk",
    "plain.pt": pickle.dumps({"w": np.zeros(3)}, protocol=4),
    "junk.safetensors": b"junk",
    "junk.onnx": b"junk junk junk",
    "junk.keras": b"junk",
    "junk.h5": b"junk",
    "junk.pt2": b"PK\x03\x04" + bytes(60),
    "junk.ts": b"junk",
    "junk.npz": b"junk",
    "junk.parquet": b"PAR1" + bytes(40) + b"PAR1",
    "junk.csv": b'path,x\n"a.wav,1\n',
    "latin.csv": b"path,x\n\xff\xfe\xe4,1\n",
}


def save_onnx(path: Path, op: str, shape: list[str | int], ir: int = 8) -> None:
    weights = np.ones((8000, 3), np.float32) if op != "Reshape" else np.array([2, 3])
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=ir, opset_imports=opsets)
    path.write_bytes(model.SerializeToString())


MODELS = {
    "junk.onnx": "is no ONNX file",
    "opset.onnx --sample-rate 16000": "No Op registered for Nonsense",
    "new.onnx --sample-rate 16000": "Unsupported model IR version: 99, max supported IR version: ",
    "matmul.onnx --sample-rate 16000": "Compute MatMul dimension mismatch",
    "reshape.onnx --sample-rate 16000": "The input tensor cannot be reshaped to the requested",
    "junk.keras": "Keras 3 writes a zip archive",
    "odd.keras": "Could not deserialize 'keras.Nope'",
    "junk.h5": "is no HDF5 file: Unable to synchronously open file (file signature not found)",
    "junk.pt2": "torch.export.save writes a zip archive",
    "odd.pt2": "it cannot be deserialised. Files of torch.export may need the torch that saved",
    "junk.ts": "torch.jit.save writes a zip archive",
    "junk.safetensors": "is no model by itself",
    "refused_import:f": "No module named 'no_such_module_xyz'",
    "refused_syntax:f": "cannot be imported: SyntaxError: invalid syntax",
    "refused_net:nope": "module 'refused_net' has no attribute 'nope'",
    "refused_net:constant": "is of type int, which cannot be called",
    "timm:nonsense": "timm has no model 'nonsense'",
    "torchvision:nonsense": "torchvision has no classifier 'nonsense'",
    "owner/name": "the hub cannot be reached",
    "demo --device nonsense": "no device 'nonsense'",
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    name, *options = model.split()
    sentences(ask("classify", name, "a.wav", *options), 2, MODELS[model])


CHECKPOINTS = {
    "junk.pt": "it is damaged, cut off, or no file that torch.save wrote",
    "empty.pt": "it is damaged, cut off, or no file that torch.save wrote",
    "cut.pt": "it is damaged, cut off, or no file that torch.save wrote",
    "half.pt": "failed finding central directory",
    "plain.pt": "nothing was run",
    "junk.safetensors": "Error while deserializing header: header too small",
    "nope.pt": "there is no such file",
}


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_checkpoints(file: str) -> None:
    said = classified("net", "prepare", file)
    sentences(said, 2, CHECKPOINTS[file])


def classified(factory: str, function: str, checkpoint: str = "net.pt") -> Said:
    return ask("classify", f"refused_net:{factory}", "a.wav", "--checkpoint", checkpoint,
               "--sample-rate", RATE, "--preprocess", f"refused_net:{function}")  # fmt: skip


OWN = {
    ("device", "prepare"): (2, "CUDA error: device-side assert triggered"),
    ("wide", "prepare"): (2, "mat1 and mat2 shapes cannot be multiplied (1x10 and 400x3)"),
    ("arguments", "prepare"): (2, "missing 2 required positional arguments: 'a' and 'b'"),
    ("failing", "prepare"): (2, "the factory failed: ValueError: first line second"),
    ("number", "prepare"): (2, "the factory gave int, not a torch module"),
    ("net", "missing"): (2, "FileNotFoundError: No such file or directory: means.npy. If it"),
    ("net", "keyed"): (2, "samples (n,) of float32: KeyError: 'mean'. If it"),
    ("net", "nothing"): (2, "Could not infer dtype of NoneType"),
    ("net", "nan"): (3, "the model gave values that are not finite"),
}


@pytest.mark.parametrize("case", OWN, ids="-".join)
def test_code_of_ones_own(case: tuple[str, str]) -> None:
    sentences(classified(*case), *OWN[case])


def test_own_code_that_is_right() -> None:
    assert classified("net", "prepare").code == 0


def written(folder: Path, name: str, content: str | bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content)


SETTINGS = "preprocessor_config.json"
FOLDERS: dict[str, tuple[str, str, str | bytes | None, str]] = {
    "no JSON": ("audio", "config.json", "{bad", "is not readable as JSON: Expecting property"),
    "weights damaged": ("audio", "model.safetensors", b"junk", "its safetensors are damaged"),
    "weights gone": ("audio", "model.safetensors", None, "holds no weights"),
    "settings damaged": ("audio", SETTINGS, "{bad", "is not a valid JSON file"),
    "settings gone": ("audio", SETTINGS, None, "has no preprocessor_config.json"),
    "another size": ("image", SETTINGS, '{"a": 1}', "(224*224) doesn't match model (32*32)"),
    "tokenizer damaged": ("text", "tokenizer.json", "{bad", "its tokenizer.json cannot be used"),
    "tokenizer of nothing": ("text", "tokenizer.json", "{}", "KeyError: 'added_tokens'"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case: str, tiny: Path, tmp_path: Path) -> None:
    modality, name, content, words = FOLDERS[case]
    folder = tmp_path / "model"
    if modality == "audio":
        shutil.copytree(tiny, folder)
    else:
        (save_image if modality == "image" else save_text)(folder)
    written(folder, name, content)
    sentences(ask("classify", folder, "a.wav"), 2, words)


CONFIGS = {
    '{"model_type": "nonsense"}': "does not recognize this architecture",
    '{"hidden_size": "abc"}': "Field 'hidden_size' expected int, got str",
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}': "is not a classifier",
}


@pytest.mark.parametrize("change", CONFIGS)
def test_configurations(change: str, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(change)))
    sentences(ask("classify", tmp_path / "model", "a.wav"), 2, CONFIGS[change])


COMMANDS = {
    "classify TINY junk.parquet": (2, "is not readable as Parquet: Couldn't deserialize thrift"),
    "classify TINY junk.csv": (2, "is not CSV: unexpected end of data"),
    "classify TINY a.wav --class-names a.wav": (2, "cannot be read as class names"),
    "search ok.lance a.wav --where nn>1": (2, "No field named nn. Columns: id, "),
    "search ok.lance a.wav --where sin(id)>2": (2, "argument types 'sin(Utf8)'. Columns: "),
    "search ok.lance a.wav --where id": (2, "does not return a boolean"),
    "predict junk.npz a.wav": (2, "is no saved class space: it is no npz archive"),
    "export ok.lance /dev/null/x.csv": (2, "cannot be written"),
    "embed TINY a.wav --into a.wav": (2, "a.wav is a file; a collection is a folder"),
    "embed TINY a.wav --into n.lance --tap nope": (2, "has no tap 'nope'; it has backbone"),
    "info nope.lance": (2, "there is no collection at nope.lance"),
    "search ok.lance a.wav -k x": (2, "unable to parse string as an integer"),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, tiny: Path) -> None:
    arguments = [str(tiny) if word == "TINY" else word for word in line.split()]
    sentences(ask(*arguments), *COMMANDS[line])


DAMAGED = {"data": "a file in it is damaged (", "_versions": "no version is whole. penult repair"}


@pytest.mark.parametrize("part", DAMAGED)
@pytest.mark.parametrize("command", ["info", "search"])
def test_a_damaged_collection(part: str, command: str, tmp_path: Path) -> None:
    shutil.copytree("ok.lance", tmp_path / "c.lance")
    for file in (tmp_path / "c.lance" / "items.lance" / part).iterdir():
        file.write_bytes(b"junk")
    more = ["a.wav"] if command == "search" else []
    said = ask(command, tmp_path / "c.lance", *more)
    sentences(said, 1, DAMAGED[part])


def test_a_collection_without_a_file(tmp_path: Path) -> None:
    shutil.copytree("ok.lance", tmp_path / "c.lance")
    for file in (tmp_path / "c.lance" / "items.lance" / "data").iterdir():
        file.unlink()
    sentences(ask("info", tmp_path / "c.lance"), 1, "a file of the collection is gone")


def test_damaged_files_of_every_kind(tiny: Path, tmp_path: Path) -> None:
    for kind in ("wav", "flac", "ogg", "mp3", "aiff"):
        path = tmp_path / f"whole.{kind}"
        soundfile.write(path, clip(0.5), RATE)
        content = path.read_bytes()
        path.unlink()
        for name, part in {"head": content[:30], "junk": b"junk junk", "empty": b""}.items():
            (tmp_path / f"{name}.{kind}").write_bytes(part)
    said = ask("classify", tiny, tmp_path)
    sentences(said, 3, "not readable as audio")
    assert said.err.count("\n") == 15
    assert "is not a regular file" not in said.err


def test_damaged_pictures_of_every_kind(tmp_path: Path) -> None:
    model, folder = save_image(tmp_path / "model"), tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for kind in ("png", "jpg", "tif", "gif", "bmp", "webp"):
        path = folder / f"cut.{kind}"
        Image.fromarray(pixels).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        for name, part in {"head": content[:20], "junk": b"junk", "empty": b""}.items():
            (folder / f"{name}.{kind}").write_bytes(part)
    said = ask("classify", model, folder)
    sentences(said, 3, "not readable as an image")
    assert said.err.count("\n") == 24


def test_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero\n\x1b[31mmore")

    monkeypatch.setattr("penult.collection.collection.Collection.open", broken)
    said = ask("info", "ok.lance")
    assert said.code == 1 and said.err.count("\n") == 1
    assert said.error.startswith("ZeroDivisionError: division by zero")
    with pytest.raises(ZeroDivisionError):
        ask("--log", "info", "info", "ok.lance")


def test_where_a_rate_is_missing_the_way_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(32_000))
    sentences(ask("classify", "demo", tmp_path / "x.raw"), 3, "ffmpeg -f s16le -ar RATE -ac 1")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor("w", onnx.TensorProto.FLOAT, [16, 3], np.ones(48, np.float32))],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    soundfile.write(tmp_path / "a.wav", clip(0.5), RATE)
    given = ("--preprocess", "numpy:asarray", "--modality", "audio")
    done = ask("classify", tmp_path / "m.onnx", tmp_path / "a.wav", *given)
    sentences(done, 2, "at which rate the model takes sound: give --sample-rate")
    for option, value in (("--sample-rate", 44100), ("--seconds", 2.0), ("--modality", "image")):
        done = ask("classify", "demo", tmp_path / "a.wav", option, value)
        sentences(done, 2, f"{option} {value}: demo has a preprocessing of its own, which says")
