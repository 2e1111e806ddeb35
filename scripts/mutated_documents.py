"""Mutated files of Penult's own, of models, of tables and of the cache, for scripts/reliability.py.

Each is opened by a command, in a process that serves many of them and watches for what must not be:
a name that is looked up, a file that a payload would leave. Half of what is mutated is so inside of
its container (a member of an archive, a value of a JSON document), since damage to the container
itself is seen at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SECONDS = 120.0  # for one command
MEMORY = 12 << 30  # of the address space of one process
LONGEST = 6_000  # characters of a line
# What stands in a document in the place of a value.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "x" * 20_000, "os:abort",
    "../../../x", "/etc/passwd", "hub-owner/name", "\0", "\ud800", [], {}, [[]], {"a": []},
    ["x"] * 3, [1e9], "🐋",
)  # fmt: skip
PAYLOAD = "open({!r}, 'w').close()"
Mutation = Callable[[bytes, bytes, random.Random], bytes]


@dataclass(frozen=True, slots=True)
class Kind:
    """A file or folder and the commands that open it. {place}, {clip} and {out} stand in these.
    exact: whether every answer is that of the file as it was, or else something is said; is_kept:
    whether it lies in the cache, and is made anew where it is damaged."""

    place: Path
    commands: Sequence[Sequence[str]]
    exact: bool = False
    is_kept: bool = False


@dataclass(slots=True)
class Answer:
    """What a command came to. numbers: what it answered with, by item."""

    code: int
    out: str
    err: str
    alarms: list[str] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)


# ---- what is mutated


def changed(data: bytes, other: bytes, chance: random.Random, mutated: Mutation) -> bytes:
    """A file with something done to it, or to what it contains."""
    if chance.random() < 0.5:
        for inside in (_in_archive, _in_json, _in_safetensors):
            with contextlib.suppress(ValueError, zipfile.BadZipFile, RecursionError):
                return inside(data, other, chance, mutated)
    return mutated(data, other, chance)


def _in_archive(data: bytes, other: bytes, chance: random.Random, mutated: Mutation) -> bytes:
    """With another member, its checksum right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {one: archive.read(one) for one in archive.infolist()}
    victim = chance.choice(list(members))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in members.items():
            if info is victim:
                content = changed(content, other, chance, mutated)
            archive.writestr(zipfile.ZipInfo(info.filename), content)
    return file.getvalue()


def _in_json(data: bytes, _: bytes, chance: random.Random, mutated: Mutation) -> bytes:
    """With odd values in the place of one to three values, or with one that goes."""
    document = json.loads(data)
    if not isinstance(document, dict | list):
        raise ValueError("no document")
    for _number in range(chance.randint(1, 3)):
        holder: Any = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(holder[key], dict | list) and chance.random() < 0.7:
                holder = holder[key]
                continue
            if chance.random() < 0.2:
                del holder[key]
            else:
                holder[key] = chance.choice(ODD)
            break
    return json.dumps(document).encode()


def _in_safetensors(data: bytes, other: bytes, chance: random.Random, mutated: Mutation) -> bytes:
    """With other names, shapes or places of tensors, its length right."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= len(data) - 8:
        raise ValueError("no file of tensors")
    header = _in_json(data[8 : 8 + size], other, chance, mutated)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# ---- the files as they are before


def kinds(root: Path) -> dict[str, Kind]:
    """What there is to mutate; `root` is also the working folder."""
    for number in range(4):
        _sound(root / "clips" / f"{number}.wav", number)
    _picture(root / "picture.png")
    found: dict[str, Kind] = {}
    for make in (_own, _tables, _weights, _programs, _onnx, _keras):
        try:
            found |= make(root)
        except ImportError as error:
            print(f"  no {make.__name__.strip('_')}: {error}")
    return found


def _sound(path: Path, number: int) -> None:
    import soundfile

    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(number).standard_normal(4_000 + 400 * number) * 0.1
    soundfile.write(path, values.astype(np.float32), 8000)


def _picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(path)


def _own(root: Path) -> dict[str, Kind]:
    """A collection with classes and a space, a saved embedder, classes of their own, the cache."""
    clips, calls = str(root / "clips"), str(root / "own" / "calls.lance")
    (root / "own").mkdir()
    engine = ("--engine", "openvino") if _has("openvino") else ()
    for line in (
        ("embed", "demo", clips, "--into", calls, "--workers", "0", *engine),
        ("teach", calls, "a", f"{clips}/0.wav", f"{clips}/1.wav"),
        ("teach", calls, "b", f"{clips}/2.wav", f"{clips}/3.wav"),
        ("search", calls, f"{clips}/0.wav", "--space", "centre+l2"),
        ("classes", calls, "--save", str(root / "own" / "classes.npz")),
        ("convert", "demo", str(root / "own" / "embedder")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "penult", *line], capture_output=True, text=True, cwd=root
        )
        if done.returncode:
            raise RuntimeError(f"{line[0]}: {done.stderr}")
    embed = ("--into", "{out}", "--workers", "0")
    return {
        "collection": Kind(
            Path(calls),
            [("info", "{place}", "--json"), ("search", "{place}", "{clip}", "--json"),
             ("predict", "{place}", "{clip}", "--json"), ("repair", "{place}", "--json"),
             ("export", "{place}", "{out}.csv"), ("classes", "{place}", "--json"),
             ("failures", "{place}", "--json"), ("info", "{place}"),
             ("search", "{place}", "{clip}", "--space", "centre+l2", "--json"),
             ("embed", "demo", clips, "--into", "{place}", "--workers", "0")],
        ),
        "embedder": Kind(
            root / "own" / "embedder",
            [("embed", "{place}", clips, *embed), ("classify", "{place}", "{clip}", "--json"),
             ("inspect", "{place}", "--json")],
            exact=True,
        ),
        "classes": Kind(
            root / "own" / "classes.npz",
            [("predict", "{place}", "{clip}", "--json"), ("classes", "{place}", "--json")],
            exact=True,
        ),
        "cache": Kind(
            root / "cache", [("embed", "demo", clips, *embed, *engine)], exact=True, is_kept=True
        ),
    }  # fmt: skip


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _tables(root: Path) -> dict[str, Kind]:
    """Tables of files, of segments and of texts, and what programs for annotation write."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    folder = root / "tables"
    folder.mkdir()
    rows = [
        {"path": str(root / "clips" / f"{n}.wav"), "site": "AB"[n % 2], "depth": n / 2, "start": s}
        for n in range(4)
        for s in (0.0, 0.1)
    ]
    rows = [{**row, "end": float(row["start"]) + 0.2} for row in rows]  # type: ignore[arg-type]
    table = pa.Table.from_pylist(rows)
    pa.csv.write_csv(table, folder / "table.csv")
    pa.parquet.write_table(table, folder / "table.parquet")
    pa.csv.write_csv(table, folder / "table.tsv", pa.csv.WriteOptions(delimiter="\t"))
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wide.csv").write_bytes((folder / "table.csv").read_text().encode("utf-16"))
    for name in ("raven", "labels", "grid"):
        shutil.copy(root / "clips" / "3.wav", folder / f"{name}.wav")
    raven = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
    lines = [f"{n}\tSpectrogram 1\t1\t{n / 10}\t{n / 10 + 0.1}\t100\t900" for n in range(4)]
    (folder / "raven.txt").write_text("\n".join([raven, *lines, ""]))
    (folder / "labels.txt").write_text("0.1\t0.2\towl\n0.2\t0.4\tfox\n\\\t100\t900\n")
    (folder / "grid.TextGrid").write_text(
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.6\n<exists>\n1\n'
        '"IntervalTier"\n"calls"\n0\n0.6\n2\n0\n0.3\n"owl"\n0.3\n0.6\n"fox"\n'
    )
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".wav")
    return {
        f"table {name}": Kind(
            folder / name,
            [("embed", "demo", "{place}", "--into", "{out}", "--workers", "0"),
             ("classify", "demo", "{place}", "--json")],
        )
        for name in names
    }  # fmt: skip


FACTORY = """
import torch
def factory():
    return torch.nn.Sequential(torch.nn.Linear(400, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
"""


def _weights(root: Path) -> dict[str, Kind]:
    """Folders of transformers, one of them with code, and weights for a factory of the user."""
    import torch
    from safetensors.torch import save_file

    from penult.models.specs import demo_folder

    honest, stranger, weights = root / "folder", root / "stranger", root / "weights"
    shutil.copytree(demo_folder(), honest)
    shutil.copytree(demo_folder(), stranger)
    config = json.loads((stranger / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForAudioClassification": "modeling.Model"}
    (stranger / "config.json").write_text(json.dumps(config))
    (stranger / "modeling.py").write_text(PAYLOAD.format(str(root / "mark")))
    (root / "users_models.py").write_text(FACTORY)
    weights.mkdir()
    made: dict[str, Any] = {}
    exec(FACTORY, made)
    state = made["factory"]().state_dict()
    torch.save(state, weights / "state.pt")
    torch.save(_Payload(str(root / "mark")), weights / "payload.pt")
    save_file(state, weights / "state.safetensors")
    ask = ("{clip}", "--json")
    shape = ("--sample-rate", "8000", "--seconds", "0.05")
    found = {
        path.name: Kind(path, [("classify", "{place}", *ask), ("inspect", "{place}", "--json")])
        for path in (honest, stranger)
    }
    for path in sorted(weights.iterdir()):
        named = ("classify", "users_models:factory", "--checkpoint", "{place}")
        found[path.name] = Kind(path, [(*named, *ask, *shape)])
    return found


class _Payload:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (PAYLOAD.format(self.mark),)


def _programs(root: Path) -> dict[str, Kind]:
    """TorchScript and torch.export, from the same small model."""
    import torch

    folder = root / "programs"
    folder.mkdir()
    made: dict[str, Any] = {}
    exec(FACTORY, made)
    model = made["factory"]().eval()
    torch.jit.script(model).save(str(folder / "script.pt"))
    torch.export.save(
        torch.export.export(
            model, (torch.randn(2, 400),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        ),
        folder / "program.pt2",
    )
    torch.save(model, folder / "pickled.pt")
    return {path.name: _model(path) for path in sorted(folder.iterdir())}


def _model(path: Path, *options: str, file: str = "") -> Kind:
    """A file of a model of sounds, unless options say of what; `file` in it, where it is a
    folder."""
    place = f"{{place}}/{file}" if file else "{place}"
    options = options or ("{clip}", "--sample-rate", "8000", "--seconds", "0.05")
    more = tuple(option for option in options if option != "{clip}")
    return Kind(
        path,
        [("classify", place, *options, "--json"), ("classify", place, *options),
         ("inspect", place, *[o for o in more if not o.endswith(".png")], "--json")],
    )  # fmt: skip


def _onnx(root: Path) -> dict[str, Kind]:
    """An ONNX file, and one whose weights lie beside it."""
    import onnx

    values, info = np.random.default_rng(0), onnx.helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(values.standard_normal(s).astype("f4"), n)
               for n, s in (("a", (400, 8)), ("b", (8, 3)))]  # fmt: skip
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]),
         node("MatMul", ["r", "b"], ["y"])],
        "g", [info("x", 1, ["n", 400])], [info("y", 1, ["n", 3])], weights,
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, str(root / "model.onnx"))
    (root / "onnx").mkdir()
    onnx.save(
        model, str(root / "onnx" / "model.onnx"), save_as_external_data=True, size_threshold=0,
        location="weights.bin",
    )  # fmt: skip
    return {
        "model.onnx": _model(root / "model.onnx"),
        "onnx with weights beside": _model(root / "onnx", file="model.onnx"),
    }


def _keras(root: Path) -> dict[str, Kind]:
    """Both formats of Keras, and one with a layer that would run code."""
    if not (_has("keras") and _has("h5py")):
        raise ImportError("keras and h5py are not installed")
    from penult.models.loaders.keras import imported_keras

    keras: Any = imported_keras()
    folder = root / "keras"
    folder.mkdir()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    plain = [keras.Input((32, 32, 3)), layers.Conv2D(4, 5, strides=4, activation="relu"),
             layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]  # fmt: skip
    for name, parts in {
        "plain.keras": plain, "plain.h5": plain,
        "lambda.keras": [*plain[:-1], layers.Lambda(lambda x: x * 2), plain[-1]],
    }.items():  # fmt: skip
        keras.Sequential(parts).save(folder / name)
    options = (str(root / "picture.png"), "--preprocess", "0..255")
    return {path.name: _model(path, *options) for path in sorted(folder.iterdir())}


# ---- the process that answers


def serve() -> None:
    """Lines of arguments on stdin, one line of an answer to each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    alarms: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        away = event == "socket.connect" and isinstance(arguments[1], tuple)
        if away or event in ("socket.getaddrinfo", "socket.gethostbyname", "os.system"):
            alarms.append(f"{event} {arguments[:2]}")

    sys.addaudithook(watch)
    from penult.cli.main import run

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        alarms.clear()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = run(json.loads(line))
            except BaseException as error:  # what a user would see as a traceback
                code = -1
                err.write(f"Traceback: {type(error).__name__}: {error}")
        answer = [code, out.getvalue()[:2_000_000], err.getvalue()[:200_000], alarms]
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


class Served:
    """A process that answers commands, begun again when it is gone or after a number of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.process, self.left = root, None, 0
        self.log = (root / "stderr").open("w+")

    def __call__(self, arguments: Sequence[str]) -> Answer:
        """The answer to one command; code -9 or another negative one where there is none."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(list(arguments)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return Answer(*json.loads(line))
        code = process.wait()
        self.process = None
        self.log.seek(0)
        return Answer(min(code, -1), "", self.log.read()[-2_000:])

    def _running(self) -> subprocess.Popen[str]:
        self.left -= 1
        if self.process is None or self.left < 0:
            self.close()
            environment = {**os.environ, "PENULT_CACHE": str(self.root / "cache")}
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self.log, text=True, cwd=self.root, env=environment, start_new_session=True,
            )  # fmt: skip
            self.left = 100
        return self.process

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


# ---- what must not be


def asked(served: Served, kind: Kind, command: Sequence[str], place: Path, out: Path) -> Answer:
    """One command about one place, with the numbers that it gave."""
    clip = served.root / "clips" / "0.wav"
    values = {"place": place, "clip": clip, "out": out}
    answer = served([part.format(**values) for part in command])
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer.numbers = _numbers(json.loads(answer.out))
    if answer.code in (0, 3) and out.exists():
        answer.numbers = vectors(out)
    return answer


def _numbers(document: dict[str, Any]) -> dict[str, list[float]]:
    """Scores by item and label, of hits or predictions."""
    rows = document.get("hits") or document["predictions"]
    return {
        f"{row['id']} {row['region']} {row.get('label')}": [row.get("similarity", row["score"])]
        for row in rows
    }


def vectors(store: Path) -> dict[str, list[float]]:
    """Vectors by item and region."""
    import penult

    table, found = penult.Collection.open(store).vectors()
    rows = zip(table["id"].to_pylist(), table["region"].to_pylist(), found, strict=True)
    return {f"{id} {region}": list(map(float, vector)) for id, region, vector in rows}


def faults(kind: Kind, answer: Answer, expected: Answer) -> list[str]:
    """What must not be, in words."""
    words = answer.out + answer.err
    found = [f"asks: {alarm}" for alarm in answer.alarms]
    if answer.code not in (0, 1, 2, 3):
        found.append(f"ends with {answer.code}: {answer.err[-600:]}")
    elif "Traceback" in words or "Nobody foresaw" in words:
        found.append(f"unforeseen: {words[-600:]}")
    elif answer.code and not answer.err.strip() and not answer.out.strip():
        found.append(f"{answer.code} without a word")
    if max(map(len, answer.err.splitlines()), default=0) > LONGEST:
        found.append("a line without bound")
    if kind.is_kept and answer.code:
        found.append(f"a damaged cache is no reason for {answer.code}: {answer.err[-300:]}")
    for name, values in answer.numbers.items():
        if not np.isfinite(values).all():
            found.append(f"{name}: a number that is none")
        if kind.exact and not answer.code and _differ(values, expected.numbers.get(name)):
            found.append(f"{name}: another answer; said: {answer.err[-300:]!r}")
    return found


def _differ(values: list[float], expected: list[float] | None) -> bool:
    if expected is None or len(values) != len(expected):
        return True
    return float(np.abs(np.subtract(values, expected)).max()) > 1e-5 * max(map(abs, expected))


if __name__ == "__main__":
    serve()
