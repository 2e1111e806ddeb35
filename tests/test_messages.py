"""Messages: whole causes of other libraries' errors, in one line; nothing else on the terminal."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from conftest import RATE, clip
from penult.cli import output
from penult.errors import ModelError, cause
from test_cli import ask

# ---- the cause of another library's error


def raised(function: object, *arguments: object) -> Exception:
    """The error that a call ends in."""
    with pytest.raises(Exception) as caught:
        function(*arguments)  # type: ignore[operator]
    return caught.value


class Global:
    pass


def checkpoint(value: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def onnx_session(op: str, ir: int = 8) -> onnxruntime.InferenceSession:
    kind, shape = (7, [2]) if op == "Reshape" else (1, [3, 4])
    weights = onnx.helper.make_tensor("w", kind, shape, [2, 3] if op == "Reshape" else range(12))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["a", "b"])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [weights],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, ir_version=ir, opset_imports=opsets)
    return onnxruntime.InferenceSession(model.SerializeToString())


def test_torch() -> None:
    linear = torch.nn.Linear(3, 4)
    shapes = "mat1 and mat2 shapes cannot be multiplied (1x5 and 3x4)"
    for module in (torch.jit.script(linear), torch.jit.trace(linear, torch.zeros(1, 3)), linear):
        assert cause(raised(module, torch.zeros(1, 5))).removeprefix("addmm: ") == shapes
    assert cause(raised(linear.load_state_dict, torch.nn.Linear(5, 4).state_dict())) == (
        "Error(s) in loading state_dict for Linear: size mismatch for weight: copying a param with "
        "shape (4, 5) from checkpoint, the shape in current model is (4, 3)"
    )
    refused = cause(raised(torch.load, checkpoint({"a": Global()})))
    assert refused.startswith("Unsupported global: GLOBAL ") and refused.endswith(" by default")
    old = io.BytesIO(pickle.dumps({"a": 1}, protocol=4))
    assert cause(raised(torch.load, old)) == "Unsupported operand 149"


def test_onnxruntime() -> None:
    feeds = {"x": np.zeros((2, 5), np.float32)}
    assert cause(raised(onnx_session("Reshape").run, None, feeds)) == (
        "The input tensor cannot be reshaped to the requested shape. Input shape:{2,5}, requested "
        "shape:{2,3}"
    )
    assert "Unsupported model IR version: 99" in cause(raised(onnx_session, "MatMul", 99))
    odd = {"x": np.zeros((2, 5, 1), np.float32)}
    assert cause(raised(onnx_session("MatMul").run, None, odd)) == (
        "Invalid rank for input: x Got: 3 Expected: 2"
    )
    assert "No Op registered for Nonsense" in cause(raised(onnx_session, "Nonsense"))


def test_openvino(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    core = openvino.Core()
    assert cause(raised(core.read_model, tmp_path / "gone.xml")).startswith(
        "ir: Could not open the file: "
    )
    said = cause(raised(core.read_model, tmp_path / "bad.onnx"))
    assert said.startswith("Unable to read the model: ") and "src/" not in said


# As other libraries word them; what needs their rarer parts, or a device that is not here.
TEXTS = {
    "Exception encountered when calling Sequential.call().\n\n\x1b[1mInput 0 with name 'None' of "
    "layer 'dense' is incompatible with the layer\x1b[0m\n\nArguments received by "
    "Sequential.call():\n  • inputs=torch.Tensor(shape=torch.Size([1, 5]))\n  • training=None": (
        "Input 0 with name 'None' of layer 'dense' is incompatible with the layer"
    ),
    "lance error: LanceError(Arrow): Cast error: Cannot cast to FixedSizeList(2): value at index 0 "
    "has length 3, /root/.cargo/registry/src/index.crates.io-19/lance-13.0.0/src/utils.rs:51:31": (
        "Cast error: Cannot cast to FixedSizeList(2): value at index 0 has length 3"
    ),
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported "
    "at some other API call, so the stacktrace below might be incorrect.\nFor debugging consider "
    "passing CUDA_LAUNCH_BLOCKING=1": "CUDA error: device-side assert triggered",
    "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in "
    "the cached files.\nCheck your internet connection or see how to run the library": (
        "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
        "in the cached files"
    ),
    "Validation error for field 'hidden_size':\n    TypeError: Field 'hidden_size' expected int, "
    "got str (value: 'abc')": (
        "Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected int, "
        "got str (value: 'abc')"
    ),
    "Unrecognized configuration class <class 'transformers.models.llama.LlamaConfig'> for this "
    "kind of AutoModel: AutoModelForAudioClassification.\nModel type should be one of ASTConfig.": (
        "Unrecognized configuration class LlamaConfig for this kind of AutoModel: "
        "AutoModelForAudioClassification"
    ),
    "Unsupported \x0b\x1c\x85 thing": "Unsupported thing",
    "a \x1b]0;title\x07name\x1b[31m": "a name",
    "verbose is false. The rest": "verbose is false. The rest",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_words_of_other_libraries(text: str) -> None:
    assert cause(ValueError(text)) == TEXTS[text]


def test_errors_without_words_have_a_name() -> None:
    assert cause(KeyError("x")) == "KeyError: 'x'"
    assert cause(AssertionError()) == "AssertionError"
    assert cause(IndexError("3")) == "IndexError: 3"
    assert cause(FileNotFoundError(2, "No such file or directory", "a.pt")) == (
        "No such file or directory: a.pt"
    )
    assert cause(KeyError("x"), named=True) == "KeyError: 'x'"
    assert cause(ValueError("no room"), named=True) == "ValueError: no room"
    assert cause(ModelError("Ours. Please read\non: it is whole")) == (
        "Ours. Please read on: it is whole"
    )


@given(text=st.text(max_size=300))
def test_a_cause_is_one_clean_line(text: str) -> None:
    found = cause(ValueError(text))
    assert found and found.isprintable() and found == " ".join(found.split())
    assert cause(ValueError(found)) in (found, f"ValueError: {found}")


def test_a_long_cause_ends_at_a_word() -> None:
    words = cause(ValueError("the shape " + "is not right " * 100))
    assert len(words) <= 402 and words.endswith(("right …", "not …", "is …"))
    for long in ("x" * 10_000_000, "a." * 20_000, "a/" * 20_000, "<function " * 4_000):
        assert cause(ValueError(long)).endswith("…")
    for empty in (" " * 40_000, "\n" * 40_000):  # none is walked again from each of its characters
        assert cause(ValueError(empty)) == "ValueError"


# ---- the terminal


STEERING = "\x1b[31m\x07\x9b2J\x7f\u202e"


def steers(text: str) -> bool:
    return any((ord(c) < 32 and c not in "\n\t") or c in "\x7f\x9b\u202e" for c in text)


def test_no_control_character_is_printed(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"a{STEERING}b"
    folder.mkdir()
    soundfile.write(folder / "a.wav", clip(0.4), RATE)
    (folder / f"bad{STEERING}.wav").write_bytes(b"no sound at all")
    table = folder / "t.csv"
    table.write_text(f'path,site\na.wav,"x{STEERING}y"\n')
    store = tmp_path / "s.lance"
    for arguments in (
        ("embed", tiny, table, folder, "--into", store),
        ("embed", tiny, table, folder, "--into", store, "--json"),
        ("failures", store),
        ("failures", store, "--json"),
        ("search", store, folder / "a.wav"),
        ("search", store, folder / "a.wav", "--json"),
        ("info", store),
        ("info", store, "--json"),
        ("classify", tiny, folder),
        ("classify", folder / "gone", table),
        ("search", store, folder / "a.wav", "--where", f"x = {STEERING}"),
        ("embed", tiny, f"--{STEERING}"),
        ("embed", tiny, table, "--into", tmp_path / f"s{STEERING}.lance"),
    ):  # fmt: skip
        said = ask(*arguments)
        assert not steers(said.out + said.err), (arguments, said)
        assert said.out or said.err
    found = ask("failures", store, "--json").json["failures"]
    # JSON gives the name itself; a root's name has _ for signs below a space.
    root = "".join("_" if sign < " " else sign for sign in f"a{STEERING}b")
    assert found[0]["id"] == f"{root}/a.wav"


def test_the_consoles_keep_their_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (output.stdout, output.stderr):
        text = io.StringIO()
        monkeypatch.setattr(console, "_file", text)
        monkeypatch.setattr(console, "_force_terminal", True)
        monkeypatch.setattr(console, "_color_system", Console(force_terminal=True)._color_system)
        console.print(f"[bold red]penult:[/] a{STEERING}b\tc")
        assert "penult:" in text.getvalue() and not steers(text.getvalue().split("a", 1)[1][:30])


NOISY = """
import logging, os, sys, warnings
import torch
class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(4000, 8), torch.nn.Linear(8, 3)
    def forward(self, x):
        warnings.warn("a warning of a library")
        logging.getLogger("library").error("a log of a library")
        print("progress of a library", file=sys.stderr)
        os.write(2, b"[mp3 @ 0x55] a line of C\\n")
        return self.head(torch.tanh(self.body(x)))
def factory(): return Noisy()
def prepare(samples): return {"x": torch.from_numpy(samples[:4000])[None]}
"""


def test_only_own_lines_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "noisy_net.py").write_text(NOISY)
    script = "import noisy_net, torch; torch.save(noisy_net.factory().state_dict(), 'w.pt')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    soundfile.write(tmp_path / "a.wav", clip(0.5), RATE)
    arguments = ["classify", "noisy_net:factory", "a.wav", "--checkpoint", "w.pt",
                 "--sample-rate", str(RATE), "--preprocess", "noisy_net:prepare"]  # fmt: skip
    script += "; from penult.cli.main import main; main()"

    def said(*log: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *log, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    quiet = said()
    assert quiet.returncode == 0, quiet.stderr
    assert "library" not in quiet.stderr + quiet.stdout and "a line of C" not in quiet.stderr
    loud = said("--log", "info").stderr
    assert "a warning of a library" in loud and "a line of C" in loud
    assert "progress of a library" in loud
