"""No run reports anything: no name is looked up, no connection made, nothing left in a new home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Commands in one process. What asks for a name or a connection by way of Python is an error.
SCRIPT = """
import sys

def refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (
        event == "socket.connect" and isinstance(args[1], tuple)
    ):
        print("NETWORK", event, args, file=sys.stderr, flush=True)

sys.addaudithook(refuse)
from penult.cli.main import run

for line in open(sys.argv[1]):
    code = run(line.rstrip("\\n").split("\\t"))
    print("CODE", code, line[:80], flush=True)
"""
# Written by libraries into a home; none of it is a report. In PENULT_CACHE or the caches of others.
KNOWN = (".cache/penult", ".cache/huggingface", ".cache/torch", ".cache/matplotlib",
         ".config/matplotlib", ".keras")  # fmt: skip


def traced(tmp_path: Path, lines: list[list[str]]) -> tuple[list[int], list[str], str]:
    """Exit codes of commands, files left in a new home, and what a tracer saw of the network."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "commands").write_text("".join("\t".join(line) + "\n" for line in lines))
    here = str(Path(__import__("penult").__file__).parents[1])
    own = ("XDG_", "ORT_", "PENULT_", "HF_", "MPL", "KERAS", "TORCH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env = {**kept, "HOME": str(home), "PYTHONPATH": here, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "commands")]
    if shutil.which("strace"):
        seen = tmp_path / "trace"
        tracer = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o",
                  str(seen)]  # fmt: skip
        if subprocess.run([*tracer, "true"], capture_output=True).returncode == 0:
            command = [*tracer, *command]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    codes = [int(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("CODE")]
    assert len(codes) == len(lines), done.stderr[-2000:]
    trace = tmp_path / "trace"
    network = [line for line in (trace.read_text().splitlines() if trace.exists() else [])
               if "AF_INET" in line]  # fmt: skip
    network += [line for line in done.stderr.splitlines() if line.startswith("NETWORK")]
    files = sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())
    return codes, files, "\n".join(network)


def model_file(path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import numpy as np

    random, info = np.random.default_rng(0), onnx.helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(random.standard_normal(s).astype("f4"), n)
               for n, s in (("a", (400, 8)), ("b", (8, 3)))]  # fmt: skip
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]),
         node("MatMul", ["r", "b"], ["y"])],
        "g", [info("x", 1, ["n", 400])], [info("y", 1, ["n", 3])], weights,
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def clips() -> str:
    return str(Path(__import__("penult").__file__).parent / "demo" / "clips")


def quiet(codes: list[int], files: list[str], network: str) -> None:
    assert set(codes) == {0}
    assert network == ""
    assert [name for name in files if not name.startswith(KNOWN)] == []
    assert not [name for name in files if name.endswith((".db", "deviceid"))]


@pytest.mark.slow
def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    model = str(model_file(tmp_path / "m.onnx"))
    rate = ["--sample-rate", "16000"]
    quiet(*traced(tmp_path, [
        ["inspect", model, *rate],
        ["convert", model, "saved", *rate],
        ["embed", "saved", clips(), "--into", "a.lance"],
        ["search", "a.lance", str(next(Path(clips()).glob("*.flac")))],
    ]))  # fmt: skip


def test_without_this_it_would(tmp_path: Path) -> None:
    """The user's word counts, and shows that the test above can fail."""
    model = str(model_file(tmp_path / "m.onnx"))
    script = "import onnxruntime as o, sys; o.InferenceSession(sys.argv[1])"
    env = {**os.environ, "HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    env.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", script, model], env=env, check=True, cwd=tmp_path)
    if not [p for p in tmp_path.rglob("*") if p.suffix == ".db" or p.name == "deviceid"]:
        pytest.skip("this version of ONNX Runtime, or its build, reports nothing")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_no_engine_asks_for_a_name(tmp_path: Path, engine: str) -> None:
    if find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    quiet(*traced(tmp_path, [
        ["embed", "demo", clips(), "--into", "a.lance", "--engine", engine],
        ["info", "a.lance"],
        ["export", "a.lance", "a.csv"],
        ["demo", "--json"],
        ["doctor"],
    ]))  # fmt: skip
