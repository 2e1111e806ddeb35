"""A saved embedder carries the user's own modules: it opens without the project they came from,
runs the bytes that were hashed and asked for, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penult
from penult.cli.main import run
from penult.data.hashes import LIST, write_list
from penult.errors import ModelError, UntrustedCode
from penult.models import hub, source_code, trust

RATE = 8_000
NETS = """\
import carried_helpers
from carried_front.mel import scaled
from torch import nn

def build(num_classes=3):
    layers = [nn.Conv1d(1, 8, 16, 8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))

def prepare(samples):
    import carried_lazily
    return carried_helpers.cut(scaled(samples)) * carried_lazily.FACTOR
"""
MEL = """\
import numpy as np
from importlib.resources import files
from pathlib import Path
from . import offset as o

GAIN = np.load(Path(__file__).parent / "gain.npy")
AGAIN = np.load(files(__package__) / "gain.npy")

def scaled(samples):
    return (samples * GAIN * AGAIN + o.OFFSET).astype("float32")
"""
PROJECT = {
    "carried_nets.py": NETS,
    "carried_helpers.py": """\
import torch

def cut(samples):
    return torch.from_numpy(samples[:4000].copy())[None]
""",
    "carried_lazily.py": "FACTOR = 3\n",
    "carried_front/__init__.py": "",
    "carried_front/mel.py": MEL,
    "carried_front/offset.py": "OFFSET = 0.25\n",
}
CLIPS = [
    (0.1 * np.random.default_rng(n).standard_normal(4_000)).astype("float32") for n in range(3)
]


def ask(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run([*map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def new_process(patch: pytest.MonkeyPatch) -> None:
    """As if another process began: nothing typed or allowed, no module of the user's imported."""
    patch.setattr(trust, "_typed", set())
    patch.setattr(trust, "_allowed", set())
    patch.setattr(hub, "_fetched", set())
    patch.setattr(trust._FINDER, "folders", {})
    for name in [name for name in sys.modules if name.startswith(("carried_", "penult_code_"))]:
        patch.delitem(sys.modules, name)


def made(project: Path, patch: pytest.MonkeyPatch, factor: int = 3) -> penult.Embedder:
    """An embedder of the factory and the preprocessing in a new project."""
    (project / "carried_front").mkdir(parents=True)
    for name, text in PROJECT.items():
        (project / name).write_text(text)
    (project / "carried_lazily.py").write_text(f"FACTOR = {factor}\n")
    np.save(project / "carried_front" / "gain.npy", np.float32(2))
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(1, 8, 16, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1),
              torch.nn.Flatten(), torch.nn.Linear(8, 3)]  # fmt: skip
    torch.save(torch.nn.Sequential(*layers).state_dict(), project / "weights.pt")
    patch.chdir(project)
    classifier = penult.load(
        "carried_nets:build", preprocess="carried_nets:prepare", sample_rate=RATE,
        checkpoint=project / "weights.pt",
    )  # fmt: skip
    return penult.Embedder.from_classifier(classifier)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A saved embedder, its classifier alone, their vectors, a collection; the project is gone."""
    root = tmp_path_factory.mktemp("carried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(root / "home"))
        new_process(patch)
        embedder = made(root / "project", patch)
        np.save(root / "vectors.npy", embedder.embed([(clip, RATE) for clip in CLIPS]))
        (root / "fingerprint").write_text(embedder.fingerprint_id)
        embedder.save(root / "embedder")
        (root / "bare").mkdir()
        embedder.classifier.save(root / "bare")
        penult.Collection.open(root / "calls.lance").add(embedder, [(CLIPS[0], RATE)])
        new_process(patch)
    shutil.rmtree(root / "project")
    yield root


@pytest.fixture
def world(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy on another machine: another folder, no project, nothing typed or trusted."""
    copy = shutil.copytree(root, tmp_path / "world", ignore=shutil.ignore_patterns("home"))
    (copy / "elsewhere").mkdir()
    monkeypatch.setenv("PENULT_CACHE", str(copy / "home"))
    monkeypatch.chdir(copy / "elsewhere")
    new_process(monkeypatch)
    return Path(copy)


def vectors(embedder: penult.Embedder) -> np.ndarray:
    return embedder.embed([(clip, RATE) for clip in CLIPS])


def by_hand(clip: np.ndarray, weights: dict[str, torch.Tensor], factor: float = 3) -> np.ndarray:
    """The mean over positions of the rectified convolution, by numpy alone."""
    samples = (clip * 4 + 0.25).astype("float32") * factor
    frames = np.lib.stride_tricks.sliding_window_view(samples, 16)[::8]
    kernel, bias = weights["0.weight"].numpy()[:, 0], weights["0.bias"].numpy()
    return np.asarray(np.maximum(frames @ kernel.T + bias, 0).mean(axis=0))


def test_it_is_refused_and_shown_and_opens_with_trust(
    root: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, said = ask("inspect", world / "embedder")
    assert code == 2 and "nothing was run" in said and "Traceback" not in said
    assert f"penult inspect {world / 'embedder'} --trust" in said
    named = world / "embedder/code/carried_nets.py"
    assert f"{named}  sha256 {hashlib.sha256(NETS.encode()).hexdigest()}" in said
    assert "| import carried_helpers" in said and "| def build(num_classes=3):" in said
    for name in ("carried_helpers.py", "carried_lazily.py", "carried_front/mel.py"):
        file = world / "embedder/code" / name
        assert f"{file}  sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in said
    assert not [name for name in sys.modules if name.startswith("penult_code_")]
    with pytest.raises(UntrustedCode, match="trust=True"):
        penult.Embedder.load(world / "embedder")
    trust.typed("carried_nets:build", "carried_nets:prepare")
    with pytest.raises(UntrustedCode):  # a name is no permission for a stranger's code
        penult.load(world / "bare")

    before = [*sys.path]
    opened = penult.Embedder.load(world / "embedder", trust=True)
    assert np.array_equal(vectors(opened), np.load(root / "vectors.npy"))
    weights = opened.classifier.module.state_dict()
    expected = np.stack([by_hand(clip, weights) for clip in CLIPS])
    assert np.allclose(vectors(opened), expected, rtol=1e-5, atol=1e-6)
    assert opened.fingerprint_id == (root / "fingerprint").read_text()
    assert sys.path == before and "carried_nets" not in sys.modules
    assert "carried_nets:prepare" in opened.classifier.describe()["preparation"]
    assert "penult_code_" not in opened.classifier.describe()["preparation"]
    assert not [*world.rglob("*.pyc")] and not [*world.rglob("__pycache__")]

    collection = penult.Collection.open(world / "calls.lance")
    collection.add(opened, [(CLIPS[1], RATE), (CLIPS[0], RATE)])
    assert len(collection.vectors()[1]) == 2, "the first clip is known"

    new_process(monkeypatch)  # remembered by its hashes, wherever the same bytes lie
    moved = (world / "embedder").rename(world / "moved")
    assert ask("inspect", moved)[0] == 0


def test_who_saved_it_is_not_asked(root: Path, world: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(root / "home"))
    opened = penult.Embedder.load(world / "embedder")
    assert np.array_equal(vectors(opened), np.load(root / "vectors.npy"))


def test_saved_again_it_carries_the_same(root: Path, world: Path) -> None:
    opened = penult.Embedder.load(world / "embedder", trust=True)
    again = opened.save(world / "again")
    assert (again / "code" / LIST).read_bytes() == (world / "embedder/code" / LIST).read_bytes()
    shutil.rmtree(world / "embedder")
    assert np.array_equal(vectors(penult.Embedder.load(again)), np.load(root / "vectors.npy"))


def test_neither_a_module_of_that_name_nor_another_folder_is_mistaken_for_it(
    root: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project goes on, in the same process, and is saved a second time."""
    newer = made(world / "newer", monkeypatch, factor=5)
    five = vectors(newer)
    newer.save(world / "five")
    three = penult.Embedder.load(world / "embedder", trust=True)
    opened = penult.Embedder.load(world / "five")
    assert np.array_equal(vectors(three), np.load(root / "vectors.npy"))
    assert np.array_equal(vectors(opened), five) and not np.allclose(five, vectors(three))
    weights = opened.classifier.module.state_dict()
    assert np.allclose(five[0], by_hand(CLIPS[0], weights, 5), rtol=1e-5, atol=1e-6)
    assert sys.modules["carried_lazily"].FACTOR == 5
    assert three.fingerprint["code"] != opened.fingerprint["code"] == newer.fingerprint["code"]


def test_the_bytes_that_were_shown_are_those_that_run(root: Path, world: Path) -> None:
    """A module that is imported only while an item is prepared is changed after it was hashed."""
    opened = penult.load(world / "bare", trust=True)
    lazily = world / "bare/code/carried_lazily.py"
    mark = world / "mark"
    for name in [name for name in sys.modules if name.endswith(".carried_lazily")]:
        del sys.modules[name]
    lazily.write_text(f"open({str(mark)!r}, 'w')\nFACTOR = 3\n")
    prepared = opened.preprocess(CLIPS[0]).tensors
    assert not mark.exists() and np.allclose(
        next(iter(prepared.values())).numpy().ravel(), (CLIPS[0] * 4 + 0.25) * 3
    )


def test_one_changed_byte_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = world / "embedder/code/carried_helpers.py"
    penult.Embedder.load(world / "embedder", trust=True)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ModelError, match=r"carried_helpers\.py is not the file that was saved"):
        penult.Embedder.load(world / "embedder", trust=True)
    write_list(world / "embedder")
    with pytest.raises(ModelError, match=r"carried_helpers\.py is not the file that was saved"):
        penult.Embedder.load(world / "embedder", trust=True)
    write_list(world / "embedder/code"), write_list(world / "embedder")
    new_process(monkeypatch)
    code, _, said = ask("inspect", world / "embedder")
    assert code == 2 and "carried_helpers.py changed" in said and "nothing was run" in said


def _link(code: Path) -> None:
    (code / "carried_helpers.py").rename(code.parent / "helpers")
    (code / "carried_helpers.py").symlink_to(code.parent / "helpers")


def _linked_folder(code: Path) -> None:
    (code / "carried_front").rename(code.parent / "front")
    (code / "carried_front").symlink_to(code.parent / "front")


def _linked_whole(code: Path) -> None:
    code.rename(code.parent / "other")
    code.symlink_to(code.parent / "other")


def _listed(name: str) -> Any:
    def change(code: Path) -> None:
        content = b"open('mark', 'w')\n"
        (code.parent / "outside.py").write_bytes(content)
        with (code / LIST).open("a") as file:
            file.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n")

    return change


def _named(name: str) -> Any:
    def change(code: Path) -> None:
        path = code / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('mark', 'w')\n")
        write_list(code)

    return change


def _added(code: Path) -> None:
    (code / "carried_extra.py").write_text("open('mark', 'w')\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link, r"carried_helpers\.py is a link"),
        (_linked_folder, "is a link, or lies behind one"),
        (_linked_whole, "is a link, and the code"),
        (_listed("../outside.py"), "not inside of the folder"),
        (_listed("/etc/passwd"), "not inside of the folder"),
        (_listed("C:/outside.py"), "not inside of the folder"),
        (_listed("carried_front/../../outside.py"), "not inside of the folder"),
        (_listed("absent.py"), r"absent\.py is missing"),
        (_named("numpy.py"), r"numpy\.py has the name of"),
        (_named("torch/__init__.py"), r"torch/__init__\.py has the name of"),
        (_named("json.py"), r"json\.py has the name of"),
        (_named("sys.py"), r"sys\.py has the name of"),
        (_named("penult/x.py"), "penult.* has the name of"),
        (_added, r"carried_extra\.py was added"),
    ],
)
def test_what_has_no_place_in_there(change: Any, words: str, world: Path) -> None:
    change(world / "bare/code")
    with pytest.raises(ModelError, match=words):
        penult.load(world / "bare", trust=True)
    assert not [*world.rglob("mark")] and not Path("mark").exists()


def test_what_the_first_lines_do_to_a_terminal(world: Path) -> None:
    first = f"x = '\x1b[2J \u202e'  # {'y' * 300}"
    (world / "bare/code/carried_nets.py").write_text(f"{first}\n{NETS}")
    write_list(world / "bare/code")
    code, _, said = ask("inspect", world / "bare")
    assert code == 2 and "\x1b" not in said and "\u202e" not in said
    assert r"| x = '\x1b[2J \u202e'  # yyy" in said and f"… ({len(first)} characters)" in said


def test_code_that_the_folder_does_not_have(world: Path) -> None:
    """A recipe that names another module is not served by what lies beside it, nor by trust."""
    recipe = json.loads((world / "bare/classifier.json").read_text())
    recipe["name"] = "carried_other:build"
    (world / "bare/classifier.json").write_text(json.dumps(recipe))
    with pytest.raises(ModelError, match="carried_other"):
        penult.load(world / "bare", trust=True)
    helpers = world / "bare/code/carried_helpers.py"
    helpers.write_text("import nowhere_installed\n" + helpers.read_text())
    write_list(world / "bare/code")
    recipe["name"] = "carried_nets:build"
    (world / "bare/classifier.json").write_text(json.dumps(recipe))
    with pytest.raises(ModelError, match="does not carry nowhere_installed"):
        penult.load(world / "bare", trust=True)


def test_what_is_not_carried_is_said(
    world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = made(world / "mine", monkeypatch)
    code, said, _ = ask(
        "convert", "carried_nets:build", world / "out", "--preprocess", "carried_nets:prepare",
        "--sample-rate", RATE, "--checkpoint", world / "mine/weights.pt", "--json",
    )  # fmt: skip
    found = json.loads(said)
    assert code == 0 and found["needs"] == ["numpy", "torch"]
    files = {name: (world / "mine" / name).read_bytes() for name in found["code"]}
    assert found["code"] == {n: hashlib.sha256(one).hexdigest() for n, one in files.items()}
    assert files.keys() == {*PROJECT, "carried_front/gain.npy"}

    with monkeypatch.context() as patch:
        patch.setattr(source_code, "LARGEST", 100)
        embedder.save(world / "small")
    assert "does not carry carried_front/gain.npy" in caplog.text
    assert not (world / "small/code/carried_front/gain.npy").exists()
    (world / "mine/carried_helpers.py").write_text("# another one\n")
    embedder.save(world / "edited")
    assert "carried_helpers.py changed since the model was opened" in caplog.text
    assert not (world / "edited/code").exists()


def test_another_process_opens_it_from_its_folder(root: Path, world: Path) -> None:
    """What a worker is sent: the embedder pickled, as a folder and whether it is trusted."""
    opened = penult.Embedder.load(world / "embedder", device="cpu", trust=True)
    (world / "sent.pkl").write_bytes(pickle.dumps(opened))
    np.save(world / "clips.npy", np.stack(CLIPS))
    program = (
        "import pickle, sys, numpy as np\n"
        f"sent, clips, out = sys.argv[1:]\n"
        "embedder = pickle.load(open(sent, 'rb'))\n"
        f"np.save(out, embedder.embed([(one, {RATE}) for one in np.load(clips)]))\n"
    )
    files = [world / name for name in ("sent.pkl", "clips.npy", "out.npy")]
    subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, files)], cwd=world, check=True, timeout=300
    )
    assert np.array_equal(np.load(world / "out.npy"), np.load(root / "vectors.npy"))
    assert not [*(world / "embedder").rglob("*.pyc")]
