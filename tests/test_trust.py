"""What a file says is no permission: code that it names runs only if this user typed or trusted it,
the network is asked for what the user typed alone, and nothing of a stranger's leaves a mark.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import py_compile
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import penult
from penult.cli.main import run
from penult.data.hashes import LIST, write_list
from penult.errors import ModelError, UntrustedCode
from penult.models import hub, trust
from penult.models.source_code import code_of_module
from zoo import save_audio

RATE = 8_000
OPTIONS = ("--preprocess", "trusted_nets:prepare", "--sample-rate", RATE)
NETS = """
import trusted_helpers
from torch import nn

def build(num_classes=3):
    import trusted_lazily
    layers = [nn.Conv1d(1, 8, 16, 8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))

def prepare(samples):
    return trusted_helpers.scaled(samples)
"""
HELPERS = """
import torch

def scaled(samples):
    return torch.from_numpy(samples[:4000].copy())[None]
"""
PAYLOAD = """
from pathlib import Path
Path({mark!r}).touch()

def factory(*given, **named):
    Path({mark!r}).touch()
    raise SystemExit("the payload ran")
"""


def ask(*arguments: object) -> tuple[int, str]:
    """(exit code, what is on stderr) of a command."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        code = run([*map(str, arguments)])
    return code, err.getvalue()


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process began: nothing typed in it, no module of the user's imported."""
    monkeypatch.setattr(trust, "_typed", set())
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.setattr(hub, "_fetched", set())
    monkeypatch.setattr(trust._FINDER, "folders", {})
    for name in [name for name in sys.modules if name.startswith(("trusted_", "stranger"))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's project, and what was made of its factory by the command line: a collection, an
    embedder, a class space. `home` is that user's cache."""
    root = tmp_path_factory.mktemp("trust")
    project, clips = root / "project", root / "clips"
    project.mkdir(), clips.mkdir(), (root / "elsewhere").mkdir()
    for name, text in (("nets", NETS), ("helpers", HELPERS), ("lazily", "")):
        (project / f"trusted_{name}.py").write_text(text)
    # What an installed package may look for, and this user means something else by.
    (project / "onnx.py").write_text("raise SystemExit('not that onnx')")
    for number in range(3):
        sound = 0.1 * np.random.default_rng(number).standard_normal(RATE // 2)
        soundfile.write(clips / f"{number}.wav", sound.astype(np.float32), RATE)
    shutil.copy(clips / "0.wav", root / "query.wav")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(root / "home"))
        new_process(patch)
        patch.chdir(project)
        sys.path.append(str(project))
        from trusted_nets import build  # type: ignore[import-not-found]

        torch.manual_seed(0)
        torch.save(build().state_dict(), root / "weights.pt")
        sys.path.remove(str(project))
        new_process(patch)
        model = ("trusted_nets:build", *OPTIONS, "--checkpoint", root / "weights.pt")
        calls = root / "calls.lance"
        commands: list[tuple[object, ...]] = [
            ("embed", model[0], clips, *model[1:], "--into", calls),
            ("convert", model[0], root / "embedder", *model[1:]),
            ("teach", calls, "one", clips / "0.wav"),
            ("teach", calls, "other", clips / "1.wav", clips / "2.wav"),
            ("classes", calls, "--save", root / "classes.npz"),
        ]
        for command in commands:
            assert ask(*command)[0] == 0, ask(*command)
    yield root


@pytest.fixture
def world(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, in a process that begins, in a folder that is not the project's."""
    copy = shutil.copytree(files, tmp_path / "world", ignore=shutil.ignore_patterns("project"))
    monkeypatch.setenv("PENULT_CACHE", str(files / "home"))
    monkeypatch.chdir(copy / "elsewhere")
    new_process(monkeypatch)
    return Path(copy)


@pytest.fixture
def elsewhere(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same on a machine where the user has named nothing yet."""
    monkeypatch.setenv("PENULT_CACHE", str(world / "other home"))
    return world


@pytest.fixture
def mark(world: Path) -> Path:
    """A payload lies in the working folder; the file that it would leave."""
    mark = world / "mark"
    (world / "elsewhere" / "stranger.py").write_text(PAYLOAD.format(mark=str(mark)))
    return mark


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `model_…` in a manifest's `model`."""
    document = json.loads(path.read_text("utf-8"))
    for name, value in changes.items():
        inner = name.removeprefix("model_")
        (document["model"] if inner != name else document)[inner] = value
    path.write_text(json.dumps(document))
    if (path.parent / LIST).is_file():  # whoever changes a file makes its hashes fit
        write_list(path.parent)


def edit_classes(path: Path, **model: Any) -> None:
    """Change the `model` of a class space's file."""
    with np.load(path) as file:
        parts = {name: file[name] for name in file if name != "hash"}
    about = json.loads(parts["about"].tobytes())
    about["model"] |= model
    parts["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **parts)


def uses(world: Path) -> dict[str, tuple[object, ...]]:
    """Commands that need the model, each through another kind of file."""
    return {
        "collection": ("search", world / "calls.lance", world / "query.wav"),
        "class space": ("predict", world / "classes.npz", world / "query.wav"),
        "embedder": ("classify", world / "embedder", world / "query.wav"),
    }


def without_code(world: Path) -> None:
    """The embedder as an earlier version saved it; see `test_carried_code` for what is carried."""
    shutil.rmtree(world / "embedder" / "code")
    write_list(world / "embedder")


# ---- what was typed once goes on


def test_what_was_typed_once_goes_on(world: Path) -> None:
    for command in uses(world).values():
        code, said = ask(*command)
        assert code == 0, said
    assert ask("embed", world / "embedder", world / "clips", "--into", world / "n.lance")[0] == 0
    opened = penult.Embedder.load(world / "embedder", device="cpu")
    assert pickle.loads(pickle.dumps(opened)).fingerprint_id == opened.fingerprint_id


@pytest.mark.parametrize("file", ["collection", "class space", "embedder"])
def test_elsewhere_it_is_refused_in_a_sentence(file: str, elsewhere: Path) -> None:
    without_code(elsewhere)
    code, said = ask(*uses(elsewhere)[file])
    assert code == 2 and "Traceback" not in said
    assert "'trusted_nets:build'" in said and "nothing was run" in said and "--trust" in said
    assert ("--model trusted_nets:build" in said) == (file != "embedder")
    assert "go to the folder that has trusted_nets.py" in said
    code, said = ask(*uses(elsewhere)[file], "--trust")
    assert code == 2 and "in the folder that has trusted_nets.py" in said
    assert "trusted_nets" not in sys.modules


def test_trust_is_enough_and_remembered(
    files: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files / "project")
    without_code(elsewhere)
    command = uses(elsewhere)["collection"]
    code, said = ask(*command)
    assert code == 2 and str(files / "project" / "trusted_nets.py") in said
    assert "go to the folder" not in said
    assert ask(*command, "--trust")[0] == 0
    monkeypatch.chdir(elsewhere)
    new_process(monkeypatch)
    assert ask(*command)[0] == 0, "from another folder, without a flag"
    assert ask(*uses(elsewhere)["embedder"])[0] == 0
    folder = elsewhere / "other home" / "trusted"
    kept = [*folder.glob("*/*.json")]
    assert len(kept) == 2 and {one.stat().st_mode & 0o777 for one in kept} == {0o600}
    assert {one.stat().st_mode & 0o777 for one in (folder, *folder.iterdir())} == {0o700}


def test_changed_code_asks_again(
    files: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shutil.copytree(files / "project", tmp_path / "project")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "home"))
    monkeypatch.chdir(project)
    model = ("trusted_nets:build", *OPTIONS, "--checkpoint", files / "weights.pt")
    query = world / "query.wav"
    assert ask("classify", model[0], query, *model[1:])[0] == 0
    new_process(monkeypatch)
    without_code(world)
    command = uses(world)["embedder"]
    assert ask(*command)[0] == 0
    helpers = project / "trusted_helpers.py"
    helpers.write_text(HELPERS + "\n# as fast as before\n")
    new_process(monkeypatch)
    code, said = ask(*command)
    assert code == 2 and "trusted_helpers.py changed" in said
    assert ask("classify", model[0], query, *model[1:])[0] == 0, "typed again"
    new_process(monkeypatch)
    assert ask(*command)[0] == 0
    helpers.write_text(HELPERS)
    new_process(monkeypatch)
    assert ask(*command)[0] == 0, "as it was when it was typed first"


def test_python_counts_as_typing(elsewhere: Path, files: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(files / "project")
    found = penult.load(
        "trusted_nets:build",
        preprocess="trusted_nets:prepare",
        sample_rate=RATE,
        checkpoint=files / "weights.pt",
    )
    assert len(found.labels) == 3
    new_process(monkeypatch)
    monkeypatch.chdir(elsewhere)
    assert penult.Collection.open(elsewhere / "calls.lance").search(elsewhere / "query.wav")


def test_an_embedder_in_another_process(elsewhere: Path) -> None:
    opened = penult.Collection.open(elsewhere / "calls.lance")
    with pytest.raises(UntrustedCode, match="trusted_nets:build"):
        opened.search(elsewhere / "query.wav")
    with pytest.raises(UntrustedCode, match=r"classifier\.json names a factory"):
        penult.Embedder.load(elsewhere / "embedder")
    with pytest.raises(UntrustedCode, match="trusted_nets:build"):
        penult.ClassSpace.load(elsewhere / "classes.npz").predict(elsewhere / "query.wav")


# ---- the working folder


def test_the_working_folder_serves_its_own_code_alone(
    files: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factory is imported although it lies beside a `numpy.py`, which nothing else finds."""
    project = shutil.copytree(files / "project", world / "mine")
    for name in ("numpy", "trusted_unasked"):
        (project / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(project)
    before = list(sys.path)
    trust.typed("trusted_nets:build")
    built = trust.imported("trusted_nets:build", "a factory")
    built()  # which imports a module of the folder only now
    assert "trusted_lazily" in sys.modules and sys.path == before
    assert importlib.util.find_spec("trusted_unasked") is None
    assert sys.modules["numpy"] is np


def test_a_folder_without_an_init_is_a_package(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "elsewhere" / "trusted_models").mkdir()
    (world / "elsewhere" / "trusted_models" / "nets.py").write_text("def build(): return 1")
    trust.typed("trusted_models.nets:build")
    assert trust.imported("trusted_models.nets:build", "a factory")() == 1
    new_process(monkeypatch)
    monkeypatch.chdir(world)
    assert trust.imported("trusted_models.nets:build", "a factory")() == 1


# ---- attacks: a file names code

CODE = [
    "stranger:factory",
    "os:abort",
    "subprocess:getoutput",
    "builtins:breakpoint",
    "penult.cli.main:main",
    "__main__:main",
    "trusted_nets:prepare2",
]


@pytest.mark.parametrize("spec", CODE)
@pytest.mark.parametrize("file", ["collection", "class space", "embedder"])
@pytest.mark.parametrize("role", ["factory", "preprocess"])
def test_code_that_a_file_names(spec: str, file: str, role: str, world: Path, mark: Path) -> None:
    asked = {"preprocess": spec, "sample_rate": RATE, "checkpoint": str(world / "weights.pt")}
    changes: dict[str, Any] = {"asked": asked} if role == "preprocess" else {"spec": spec}
    if file == "collection":
        edit(world / "calls.lance/collection.json", **{f"model_{n}": v for n, v in changes.items()})
    elif file == "class space":
        edit_classes(world / "classes.npz", **changes)
    else:
        changes = {"preprocess": spec} if role == "preprocess" else {"name": spec}
        edit(world / "embedder/classifier.json", **changes)
    code, said = ask(*uses(world)[file])
    assert code == 2 and repr(spec) in said and "nothing was run" in said
    assert not mark.exists() and "stranger" not in sys.modules


def test_code_on_pythons_path(world: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a package is imported to look at it, its `__init__` neither."""
    package = world / "path" / "stranger_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PAYLOAD.format(mark=str(mark)))
    (package / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    monkeypatch.syspath_prepend(world / "path")
    edit(
        world / "embedder/classifier.json", origin="torch", name="stranger_package.payload:factory"
    )
    code, said = ask(*uses(world)["embedder"])
    assert code == 2 and str(package / "payload.py") in said and not mark.exists()
    found = code_of_module("stranger_package.payload")
    assert [*found] == ["stranger_package/__init__.py", "stranger_package/payload.py"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trust": True}, "'trust'"),
        ({"random": True}, "'random'"),
        ({"checkpoint": "/etc/hostname"}, "'checkpoint'"),
        ({"class_names": "/etc/passwd"}, "'class_names'"),
        ({"auto_map": {}}, "'auto_map'"),
        ({"origin": "timm", "name": "resnet18", "weights_inside": True}, "weights_inside"),
        ({"name": ["trusted_nets:build"]}, "name is list"),
        ({"preprocess": {"a": 1}}, "preprocess is dict"),
        ({"labels": "abc"}, "labels has to be a list"),
        ({"name": "..stranger:factory"}, "stranger"),
        ({"name": "stranger:factory\nx"}, "stranger"),
        ({"name": "stranger\0:factory"}, "stranger"),
        ({"origin": "onnx", "name": "../other.onnx"}, "no file in its folder"),
        ({"origin": "keras", "name": "/etc/model.keras"}, "no file in its folder"),
        ({"origin": "torch", "name": "//server/share/x:f"}, "no file in its folder"),
        ({"origin": "stranger", "name": "x"}, "not installed"),
    ],
)
def test_what_a_saved_model_may_say(
    changes: dict[str, Any], words: str, world: Path, mark: Path
) -> None:
    edit(world / "embedder/classifier.json", **changes)
    code, said = ask(*uses(world)["embedder"])
    assert code == 2 and words in said and "Traceback" not in said
    assert not mark.exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"trust": True}, "'trust'"),
        ({"random": True}, "'random'"),
        ({"device": "cpu"}, "'device'"),
        ({"tap": "x"}, "'tap'"),
        ({"preprocess": ["stranger:factory"]}, "preprocess"),
        ({"checkpoint": {"trust": True}}, "checkpoint"),
        ({"checkpoint": "//server/share/w.pt"}, "another machine"),
        (["trust"], "asked"),
    ],
)
def test_what_a_collection_may_ask(asked: Any, words: str, world: Path, mark: Path) -> None:
    edit(world / "calls.lance/collection.json", model_asked=asked)
    code, said = ask(*uses(world)["collection"])
    assert code == 2 and words in said and not mark.exists()


class Bomb:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_a_file_names(world: Path, mark: Path) -> None:
    torch.save({"w": Bomb(mark)}, world / "bomb.pt")
    asked = {"preprocess": "trusted_nets:prepare", "sample_rate": RATE, "trust": True,
             "checkpoint": str(world / "bomb.pt")}  # fmt: skip
    path = world / "calls.lance/collection.json"
    edit(path, model_asked=asked)
    assert ask(*uses(world)["collection"])[0] == 2
    edit(path, model_asked={name: value for name, value in asked.items() if name != "trust"})
    code, said = ask(*uses(world)["collection"])
    assert code == 2 and "pickle" in said and not mark.exists()


def test_an_embedder_inside_of_a_collection(world: Path, mark: Path) -> None:
    inside = shutil.copytree(world / "embedder", world / "calls.lance" / "model")
    edit(inside / "classifier.json", name="stranger:factory")
    edit(world / "calls.lance/collection.json", model_spec=str(inside))
    code, said = ask(*uses(world)["collection"])
    assert code == 2 and "classifier.json names a factory" in said and not mark.exists()


def test_commands_that_need_no_model_open_none(world: Path, mark: Path) -> None:
    edit(world / "calls.lance/collection.json", model_spec="stranger:factory")
    calls, other = world / "calls.lance", world / "other.lance"
    row = str(next(iter(penult.Collection.open(calls).vectors()[0]["id"].to_pylist())))
    for command in (
        ("info", calls),
        ("search", calls, row),
        ("merge", calls, "--into", other),
        ("export", calls, world / "out.csv"),
        ("predict", calls, "--collection"),
        ("cluster", calls),
    ):
        code, said = ask(*command)
        assert "stranger:factory" not in said or code in (0, 2)
        assert not mark.exists(), command
    code, said = ask("check", calls, world / "query.wav")
    assert code == 2 and "stranger:factory" in said and not mark.exists()


def test_compiled_code_beside_a_copy(
    files: Path, world: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of trusted code with another `.pyc` beside it, in the working folder."""
    project = shutil.copytree(files / "project", world / "theirs")
    source = project / "trusted_nets.py"
    text = source.read_text()
    source.write_text(PAYLOAD.format(mark=str(mark)))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), invalidation_mode=unchecked)
    source.write_text(text)
    monkeypatch.chdir(project)
    assert ask(*uses(world)["collection"])[0] == 0, "the user's own, from where it was typed"
    new_process(monkeypatch)
    monkeypatch.syspath_prepend(project)
    code, said = ask(*uses(world)["collection"])
    assert code == 2 and "nothing was run" in said
    assert not mark.exists()


# ---- the memory


def test_a_memory_that_came_along_is_none(
    world: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = trust.NamedCode.find("stranger:factory", [str(Path.cwd())])
    monkeypatch.setenv("PENULT_CACHE", "cache")  # relative: it would lie in the folder that came
    trust.CodeMemory("stranger:factory").add(code)
    folder = Path("cache/trusted") / trust._digest("stranger:factory")
    assert not folder.exists()
    folder.mkdir(parents=True)
    path = folder / f"{code.digest}.json"
    text = json.dumps({"spec": code.spec, "root": code.root, "files": dict(code.files)})
    path.write_text(text)
    path.chmod(0o600)
    assert not trust.CodeMemory(code.spec).has(code)
    monkeypatch.setenv("PENULT_CACHE", str(Path("cache").absolute()))
    folder.parent.chmod(0o700), folder.chmod(0o700)
    assert trust.CodeMemory(code.spec).has(code), "the same as this user would write it"
    path.chmod(0o666)
    assert not trust.CodeMemory(code.spec).has(code), "anybody could have written it"
    path.chmod(0o600)
    path.rename(folder / "other.json")
    (folder / path.name).symlink_to("other.json")
    assert not trust.CodeMemory(code.spec).has(code), "a link"
    path.unlink()
    for wrong in ("{", "[]", "{}", text.replace("factory", "other"), "x" * 9):
        path.write_text(wrong)
        path.chmod(0o600)
        assert not trust.CodeMemory(code.spec).has(code)
    path.write_text(text)
    path.chmod(0o600)
    folder.chmod(0o777)
    assert not trust.CodeMemory(code.spec).has(code), "anybody could have put it there"
    assert not mark.exists()


def test_a_memory_that_cannot_be_written_is_said(
    files: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "file").write_text("")
    monkeypatch.setenv("PENULT_CACHE", str(world / "file"))
    monkeypatch.chdir(files / "project")
    code, said = ask(
        "classify", "trusted_nets:build", world / "query.wav", *OPTIONS,
        "--checkpoint", files / "weights.pt",
    )  # fmt: skip
    assert code == 0 and "cannot be remembered" in said and "PENULT_CACHE" in said


def test_hashes_without_importing(world: Path) -> None:
    assert [*code_of_module("os")] == ["os.py"] and [*code_of_module("sys")] == ["python"]
    assert {"torch/nn/__init__.py", "torch"} == set(code_of_module("torch.nn"))
    assert code_of_module("stranger_nowhere.x") == {}
    for wrong in ("..x:f", "a b:f", ":f", "a:", "a\n:f", "a\0:f", "a..b:f", ""):
        trust.typed(wrong)
        with pytest.raises(ModelError, match=r"package\.module:function"):
            trust.imported(wrong, "a factory")


# ---- the network


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that any library looked up, and addresses that it reached for; none is answered."""
    from huggingface_hub import constants

    found: list[str] = []

    def refuse(host: Any, *more: Any, **named: Any) -> Any:
        found.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
    return found


def test_the_hub_is_asked_for_what_is_typed_and_said(
    world: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = ask("classify", "owner/no-such-model", world / "query.wav")
    assert code == 2 and asked
    assert "downloading owner/no-such-model from the Hugging Face hub" in said
    assert "no such folder" in said


@pytest.mark.parametrize("file", ["collection", "class space"])
@pytest.mark.parametrize("spec", ["owner/no-such-model", "MyNet", "timm:resnet10t.c3_in1k",
                                  "torchvision:squeezenet1_1"])  # fmt: skip
def test_a_file_asks_no_network(file: str, spec: str, world: Path, asked: list[str]) -> None:
    if spec.startswith(("timm", "torchvision")):
        pytest.importorskip(spec.partition(":")[0])
    if file == "collection":
        edit(world / "calls.lance/collection.json", model_spec=spec, model_asked={})
    else:
        edit_classes(world / "classes.npz", spec=spec, asked={})
    code, said = ask(*uses(world)[file])
    assert code == 2 and spec in said and f"--model {spec}" in said and "--trust" in said
    assert asked == []


def test_what_the_hub_cache_has_serves_a_file(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--birds"
    save_audio(repo / "snapshots" / commit, "wav2vec2")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    trust.typed("owner/other")
    with trust.named_by("calls.lance"):
        found = penult.load("owner/birds")
    assert found.describe()["revision"] == commit and asked == []
    penult.load(f"owner/birds@{commit}")
    assert asked == [], "a commit that is here does not change"
    penult.load("owner/birds")
    assert asked, "typed: there may be a newer one"


@pytest.mark.parametrize(
    "spec",
    ["./models/birds", "models/birds/", "models/brids", "modles/birds", "model", "models\\birds",
     "/nowhere/birds", "~/nowhere/birds", "birds.onnx", "calls.lance", "owner/weights.safetensors",
     "a/b/c", ".", "../x"],
)  # fmt: skip
def test_a_mistyped_folder_is_no_request(spec: str, world: Path, asked: list[str]) -> None:
    (world / "elsewhere" / "models" / "birds").mkdir(parents=True)
    code, said = ask("classify", spec, world / "query.wav")
    assert code == 2 and asked == [] and "downloading" not in said
    if spec in ("models/brids", "modles/birds"):
        assert "models/birds" in said and f"{spec}@main" in said
    if spec == "model":
        assert "models" in said


def test_offline(world: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    query = world / "query.wav"
    for spec in ("owner/no-such-model", "timm:resnet10t.c3_in1k", "torchvision:squeezenet1_1"):
        if ":" in spec:
            pytest.importorskip(spec.partition(":")[0])
        for command in (
            ("--offline", "classify", spec, query),
            ("classify", spec, query, "--offline"),
        ):
            code, said = ask(*command)
            assert code == 2 and spec in said and "--offline" in said and asked == []
        monkeypatch.setenv("PENULT_OFFLINE", "1")
        code, said = ask("classify", spec, query)
        assert code == 2 and "PENULT_OFFLINE" in said and asked == []
        with pytest.raises(ModelError, match="PENULT_OFFLINE"):
            penult.load(spec)
        assert asked == []
        monkeypatch.delenv("PENULT_OFFLINE")
    assert ask("classify", "demo", query, "--offline")[0] == 0
    assert "PENULT_OFFLINE" not in os.environ


def test_offline_holds_for_the_users_own_code(world: Path, monkeypatch: Any) -> None:
    (world / "elsewhere" / "trusted_fetching.py").write_text(
        "import socket\ndef build():\n    socket.getaddrinfo('weights.example.org', 443)\n"
    )
    command = ("classify", "trusted_fetching:build", world / "query.wav", "--weights-inside",
               "--sample-rate", RATE, "--offline")  # fmt: skip
    code, said = ask(*command)
    assert code == 2 and "weights.example.org is not asked: --offline" in said


def with_settings(folder: Path, **settings: Any) -> Path:
    save_audio(folder, "wav2vec2")
    path = folder / "config.json"
    found = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: v for name, v in found.items() if v is not None}))
    return folder


@pytest.mark.parametrize("source", ["hf-hub:owner/name", "local-dir:/srv/x", "owner/name"])
def test_settings_that_name_another_model(source: str, tmp_path: Path, asked: list[str]) -> None:
    folder = with_settings(tmp_path, model_type=None, architecture=source)
    with pytest.raises(ModelError, match="which is another model"):
        penult.load(folder, trust=True)
    assert asked == []


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel@main:f"},
        {"experts_implementation": "owner/kernel"},
    ],
)
def test_settings_that_name_kernels_of_the_hub(
    settings: dict[str, Any], tmp_path: Path, asked: list[str]
) -> None:
    assert len(penult.load(with_settings(tmp_path, **settings)).labels)
    assert asked == []


def test_a_folder_asks_no_hub(tmp_path: Path, asked: list[str]) -> None:
    save_audio(tmp_path, "wav2vec2")
    assert len(penult.load(tmp_path).labels)
    from huggingface_hub import constants, is_offline_mode

    assert asked == [] and not is_offline_mode()
    with hub.closed():
        assert is_offline_mode() and constants.HF_HUB_OFFLINE
    assert not is_offline_mode()


@pytest.mark.slow
def test_processes_of_their_own(files: Path, world: Path) -> None:
    """The command itself: no look-up of a name without a network, and no flag."""
    trap = world / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import socket\ndef trap(*a, **k):\n    open({!r}, 'a').write(str(a) + '\\n')\n"
        "    raise socket.gaierror(-2, 'no')\nsocket.getaddrinfo = trap\n".format(
            str(world / "asked")
        )
    )
    source = str(Path(penult.__file__).parents[1])
    environment = {n: v for n, v in os.environ.items() if n != "HF_HUB_OFFLINE"}
    environment["PYTHONPATH"] = os.pathsep.join([source, str(trap)])
    for command in uses(world).values():
        words = [sys.executable, "-P", "-m", "penult", *map(str, command)]
        done = subprocess.run(words, cwd=world, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not (world / "asked").exists()
    environment["PENULT_CACHE"] = str(world / "other home")
    for command in uses(world).values():
        words = [sys.executable, "-P", "-m", "penult", *map(str, command)]
        done = subprocess.run(words, cwd=world, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "trusted_nets:build" in done.stderr
