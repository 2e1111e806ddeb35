"""What makes vectors comparable: hashes of the model, of the user's own code and of the files that
it loads; and what an embedder does, measured again when it writes into a collection that is there.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch import nn

import penult
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.collection.transfer import merge
from penult.embedding.fingerprint import newly_named, renamed
from penult.errors import CollectionError, FingerprintMismatch, ModelError
from penult.models.source_code import code_of, code_of_factory

RATE = 8000
NET = """
from torch import nn
from parts.pool import Pool

def build(num_classes=4):
    return nn.Sequential(nn.Conv1d(1, 8, 16, 8), nn.ReLU(), nn.Conv1d(8, 12, 4, 2), nn.ReLU(),
                         Pool(), nn.Linear(12, num_classes))
"""
POOL = """
from torch import nn

class Pool(nn.Module):
    def forward(self, x):
        return x.mean(dim=-1)
"""
FRONT = """
import json
from pathlib import Path
import numpy as np
import torch

GAIN = json.loads((Path(__file__).parent / "consts" / "gain.json").read_text())["gain"]

def front(samples):
    return torch.from_numpy((np.asarray(samples) * GAIN).astype(np.float32))[None]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own project: a factory, a module that it imports, a preprocessing and its constants,
    weights, and recordings at the model's rate and at another one."""
    root = tmp_path / "project"
    (root / "parts").mkdir(parents=True)
    (root / "consts").mkdir()
    (root / "net.py").write_text(NET)
    (root / "parts" / "__init__.py").write_text("")
    (root / "parts" / "pool.py").write_text(POOL)
    (root / "front.py").write_text(FRONT)
    (root / "consts" / "gain.json").write_text('{"gain": 2.0}')
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 8, 16, 8), nn.ReLU(), nn.Conv1d(8, 12, 4, 2), nn.ReLU(),
                           nn.Identity(), nn.Linear(12, 4))  # fmt: skip
    torch.save(module.state_dict(), root / "weights.pt")
    for name, rate in (("same", RATE), ("other", 16_000)):
        (root / name).mkdir()
        for number in range(2):
            sound = np.random.default_rng(number).standard_normal(rate // 2) * 0.2
            soundfile.write(root / name / f"{number}.wav", sound, rate)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    yield root
    forget()


MODEL = ("--checkpoint", "weights.pt", "--preprocess", "front:front", "--sample-rate", str(RATE))


MODULES = ("net", "front", "parts", "parts.pool")


def forget() -> None:
    """As a new process would, import the project's modules anew."""
    for name in MODULES:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def command(*arguments: str) -> tuple[int, str, str]:
    """`penult …` in the project: exit code, stdout, stderr."""
    forget()
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run([*map(str, arguments)])
    assert "Traceback" not in err.getvalue()
    return code, out.getvalue(), err.getvalue()


def embed(*what: str, code: int = 0) -> str:
    """What `penult embed` writes to stderr; its exit code is checked."""
    found, out, err = command("embed", "net:build", *(what or ("same",)), "--into", "../c.lance",
                              "--tap", "prelogits", "--device", "cpu", *MODEL)  # fmt: skip
    assert found == code, err + out
    return " ".join(err.split())  # lines may be wrapped


def rows(root: Path) -> int:
    return Collection.open(root.parent / "c.lance").count


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text or not old
    (root / file).write_text(text.replace(old, new) if old else text + new)


def test_a_comment_is_accepted_and_told(project: Path) -> None:
    """A comment in the factory's file and one in what it imports: the same vectors."""
    assert "accepted" not in embed()
    edit(project, "net.py", "", "\n# trained in May\n")
    edit(project, "parts/pool.py", "", "\n# the mean of all frames\n")
    told = embed("other")
    assert "net.py, parts/pool.py changed" in told and "accepted" in told
    assert told.count("accepted") == 1 and rows(project) == 4


CHANGES: dict[str, tuple[str, str, str, str]] = {
    "a module that the factory imports": (
        "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)", "parts/pool.py changed"),
    "the factory's file": ("net.py", "Pool(),", "Pool(), nn.Tanh(),", "net.py changed"),
    "the preprocessing": ("front.py", "* GAIN", "* GAIN + 0.1", "front.py changed"),
    "a file that the preprocessing loads": (
        "consts/gain.json", "2.0", "3.0", "consts/gain.json changed"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_code_that_gives_other_vectors_is_refused(what: str, project: Path) -> None:
    file, old, new, words = CHANGES[what]
    embed()
    edit(project, file, old, new)
    if "nn.Tanh" in new:  # the number of the last layer is part of its name in the checkpoint
        weights = torch.load(project / "weights.pt")
        torch.save({n.replace("5.", "6."): v for n, v in weights.items()}, project / "weights.pt")
        assert "weights: the collection has" in embed("other", code=2)
    else:
        told = embed("other", code=2)
        assert words in told and "a made-up item" in told and "--like" in told
    assert rows(project) == 2


def louder(patch: pytest.MonkeyPatch) -> None:
    """Another version of a library that the preprocessing calls."""
    tensor = torch.from_numpy
    patch.setattr(torch, "from_numpy", lambda values: tensor(values) * 1.1)


def test_equal_hashes_and_other_vectors_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that gives other values: no file of the user's has changed."""
    embed()
    with monkeypatch.context() as patch:
        louder(patch)
        told = embed("other", code=2)
    assert "behaviour: " in told and "code:" not in told and rows(project) == 2
    embed("other")  # and the collection is as it was


def test_another_version_of_a_package_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed()
    manifest = project.parent / "c.lance" / "collection.json"
    older = json.loads(manifest.read_text())
    older["model"]["behaviour"]["versions"]["numpy"] = "1.0"
    manifest.write_text(json.dumps(older))
    assert "numpy" not in embed()
    louder(monkeypatch)
    assert f"versions: numpy 1.0 → {np.__version__}" in embed("other", code=2)


def test_another_decoder_is_seen_in_the_first_rows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up items are decoded by nobody; the first rows' files are."""
    embed()
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, *a, **k: read(self, *a, **k) / 2)
    told = embed("other", "--workers", "0", code=2)
    assert "0.wav (whole)" in told and "made-up" not in told
    for file in (project / "same").iterdir():
        file.unlink()
    embed("other")


def halved(patch: pytest.MonkeyPatch) -> None:
    """Another version of the resampler, which gives other values."""
    resample = soxr.resample
    patch.setattr(soxr, "__version__", "9.9.9")
    patch.setattr(soxr, "resample", lambda x, *a, **k: resample(x, *a, **k) / 2)


def test_another_resampler_of_the_same_values_is_accepted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("other")
    monkeypatch.setattr(soxr, "__version__", "9.9.9")
    told = embed()
    assert "reader: the collection has 'soxr-HQ/1." in told and "accepted" in told
    assert rows(project) == 4


def test_another_resampler_is_accepted_where_it_touched_no_item(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed()
    halved(monkeypatch)
    assert "no file of its rows was resampled" in embed("same", "--workers", "0")
    assert "no file of its rows was resampled" not in embed("other")  # it counts from now on
    monkeypatch.undo()
    assert rows(project) == 4


def test_another_resampler_is_refused_where_it_touched_an_item(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("other")
    halved(monkeypatch)
    told = embed("same", "--workers", "0", code=2)
    assert "resampled noise" in told and rows(project) == 2


def test_the_query_side_compares_too(project: Path) -> None:
    """`search` with a file: a comment is accepted, another network is refused."""
    embed()
    query = ("search", "../c.lance", "other/0.wav", "--json")
    first = json.loads(command(*query)[1])["hits"]
    edit(project, "net.py", "", "\n# a word\n")
    code, out, err = command(*query)
    assert code == 0 and "accepted" in err
    assert json.loads(out)["hits"] == first
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    code, _, err = command(*query)
    assert code == 2 and "parts/pool.py changed" in " ".join(err.split())


def opened(**options: Any) -> penult.Classifier:
    """The project's classifier, its modules imported anew."""
    forget()
    given = {"checkpoint": "weights.pt", "preprocess": "front:front", "sample_rate": RATE}
    return penult.load("net:build", **{**given, **options})


def embedder(**options: Any) -> penult.Embedder:
    return penult.Embedder.from_classifier(opened(**options), tap="prelogits", device="cpu")


def test_a_saved_embedder_and_its_proof_go_with_the_code(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No proof of one network is told of another one; a comment costs a new proof, no more."""
    saved = embedder().save(tmp_path / "saved")
    about = json.loads((saved / "penult.json").read_text())
    assert about["code"]["model"].keys() == {"net.py", "parts/__init__.py", "parts/pool.py"}
    assert set(about["behaviour"]["answers"]) == {"noise", "resampled noise"}
    about["certificate"]["max_error"] = 0.123  # what a file says of itself is not believed

    def load() -> penult.Embedder:
        forget()
        return penult.Embedder.load(saved, device="cpu")

    with pytest.raises(ModelError, match=r"penult\.json is not the file that was saved"):
        (saved / "penult.json").write_text(json.dumps(about))
        load()
    (saved / "SHA256SUMS").unlink()
    first = load().certificate
    assert first.ok and first.max_error < 1e-5 and first.kept  # proved when it was saved
    assert load().certificate == first
    assert [record.message for record in caplog.records if "no list of hashes" in record.message]
    assert len(caplog.records) == 1
    edit(project, "net.py", "", "\n# a word\n")
    assert load().certificate == first  # the code that it carries is the one that was saved
    shutil.rmtree(saved / "code")  # as an earlier version saved it
    again = load()
    assert again.certificate.ok and again.certificate.max_error < 1e-5
    assert not again.certificate.kept  # of other code: proved in this run
    assert "net.py changed" in caplog.text and "accepted" in caplog.text
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    with pytest.raises(ModelError, match=r"changed since it was saved: .*parts/pool\.py changed"):
        load()
    code, _, err = command("embed", saved, "same", "--into", "../new.lance")
    assert code == 2 and "was changed since it was saved" in err


def test_a_collection_without_behaviour_is_measured_on_its_rows(project: Path) -> None:
    """As version 0.1.0 wrote it: neither code nor behaviour."""
    embed()
    manifest = project.parent / "c.lance" / "collection.json"
    older = json.loads(manifest.read_text())
    del older["model"]["code"], older["model"]["behaviour"], older["fingerprint"]["code"]
    manifest.write_text(json.dumps(older))
    kept = (project / "parts/pool.py").read_text()
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    assert "same/0.wav (whole)" in embed(code=2)
    assert json.loads(manifest.read_text()) == older
    (project / "parts/pool.py").write_text(kept)
    assert "note" not in embed("other")
    assert {"code", "behaviour"} <= json.loads(manifest.read_text())["model"].keys()
    for file in project.glob("*/*.wav"):
        file.unlink()
    manifest.write_text(json.dumps(older))
    soundfile.write(project / "new.wav", np.random.default_rng(9).standard_normal(4000) / 9, RATE)
    assert "compared by hashes alone" in embed("new.wav")
    assert "compared by hashes alone" not in embed("new.wav")


def test_in_python(project: Path, tmp_path: Path) -> None:
    """Collections, searches with an embedder, class spaces: one rule."""
    store = Collection.open(tmp_path / "c.lance")
    first = embedder()
    store.add(first, project / "same")
    space = penult.ClassSpace(first)
    edit(project, "net.py", "", "\n# a word\n")
    same = embedder()
    assert same.fingerprint != first.fingerprint
    assert store.add(same, project / "other").done == 2
    assert store.search(project / "same/0.wav", k=1, embedder=same)[0].similarity > 0.999
    space.source.use(same)
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    other = embedder()
    soundfile.write(project / "query.wav", np.random.default_rng(5).standard_normal(900) / 9, RATE)
    for refused in (
        lambda: store.add(other, project / "other"),
        lambda: store.search(project / "query.wav", embedder=other),
        lambda: space.source.use(other),
    ):
        with pytest.raises(FingerprintMismatch, match=r"parts/pool\.py changed"):
            refused()
    assert store.count == 4


def test_merging_compares_what_was_measured(project: Path, tmp_path: Path) -> None:
    def store(name: str) -> Collection:
        made = Collection.open(tmp_path / name)
        made.add(embedder(), project / "same")
        return made

    first = store("a.lance")
    edit(project, "net.py", "", "\n# a word\n")
    second = store("b.lance")
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    third = store("c.lance")
    into = Collection.open(tmp_path / "all.lance")
    assert merge([first.reader, second.reader], into.reader).new == 2
    with pytest.raises(FingerprintMismatch, match="behaviour: "):
        merge([first.reader, third.reader], into.reader)


def test_graphs_and_proofs_are_kept_by_code(project: Path) -> None:
    """Whatever is kept between runs goes by the classifier's identity."""
    one = opened().identity()
    assert opened().identity() == one
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.amax(dim=-1)")
    two = opened().identity()
    assert one["weights"] == two["weights"] and one["code"] != two["code"]


def test_a_model_that_gives_other_values_each_time_goes_on(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(project, "parts/pool.py", "x.mean(dim=-1)", "x.mean(-1) * (1 + 0.1 * random.random())")
    edit(project, "parts/pool.py", "from torch import nn", "import random\nfrom torch import nn")
    store = Collection.open(tmp_path / "c.lance")
    for name in ("same", "other"):
        store.add(embedder(), project / name)
    assert "gives other values each time" in caplog.text and store.count == 4


# --- the user's own code ----------------------------------------------------------------------


def test_code_is_the_same_at_another_place(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes go by the modules' names: another folder and other line ends are no other code."""

    def files() -> tuple[dict[str, str], dict[str, str]]:
        forget()
        net, front = importlib.import_module("net"), importlib.import_module("front")
        assert Path(net.__file__ or "").parent == Path.cwd()
        return code_of([net.build]), code_of([front.front])

    model, preprocess = files()
    assert list(model) == ["net.py", "parts/__init__.py", "parts/pool.py"]
    assert list(preprocess) == ["consts/gain.json", "front.py"]
    moved = Path(shutil.copytree(project, tmp_path / "elsewhere" / "deep"))
    (moved / "net.py").write_bytes((moved / "net.py").read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.chdir(moved)
    monkeypatch.syspath_prepend(moved)
    assert files() == (model, preprocess)


def test_code_of_installed_packages_is_left_out() -> None:
    assert code_of([nn.Linear, np.mean, json.dumps, len, torch.from_numpy]) == {}
    assert code_of([nn.Linear(2, 2)]) == {}
    own = code_of_factory(torch.nn.Linear)  # named as a factory: its module and the version
    assert own["torch"] == torch.__version__.partition("+")[0] or "torch" in own
    assert "torch/nn/modules/linear.py" in own


def test_code_behind_wrappers_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partials, methods, callable objects, relative and late imports, circles."""
    (project / "kit").mkdir()
    (project / "kit" / "__init__.py").write_text("from .one import Front, late")
    (project / "kit" / "one.py").write_text(
        "from . import two\n"
        "class Front:\n"
        "    def __call__(self, x): return x\n"
        "    def method(self, x): return x\n"
        "def late(x):\n"
        "    import lazy_part.deep as d\n"
        "    return d.f(x)\n"
    )
    (project / "kit" / "two.py").write_text("import kit.one")
    (project / "lazy_part").mkdir()
    (project / "lazy_part" / "__init__.py").write_text("")
    (project / "lazy_part" / "deep.py").write_text("import numpy, does_not_exist")
    monkeypatch.syspath_prepend(project)
    from functools import partial

    import kit  # type: ignore[import-not-found]

    expected = {"kit/__init__.py", "kit/one.py", "kit/two.py", "lazy_part/__init__.py",
                "lazy_part/deep.py"}  # fmt: skip
    for target in (kit.late, partial(kit.late), kit.Front, kit.Front(), kit.Front().method):
        assert set(code_of([target])) == expected, target
    for name in [name for name in sys.modules if name.partition(".")[0] in ("kit", "lazy_part")]:
        del sys.modules[name]


# --- class names ------------------------------------------------------------------------------


def test_class_names_that_change_are_refused(project: Path) -> None:
    (project / "names.txt").write_text("dog\ncat\nowl\nfox\n")
    (project / "turned.txt").write_text("cat\ndog\nowl\nfox\n")
    embed("same", "--class-names", "names.txt")
    told = embed("other", "--class-names", "turned.txt", code=2)
    assert "class 0 was 'dog' and is 'cat' now, class 1 was 'cat' and is 'dog' now" in told
    told = embed("other", code=2)  # without any
    assert "class 0 was 'dog' and is 'class_0' now" in told and "and 1 more" in told
    embed("other", "--class-names", "names.txt")
    labels = Collection.open(project.parent / "c.lance").vectors(columns=["label"])[0]
    assert set(labels["label"].to_pylist()) <= {"dog", "cat", "owl", "fox"}


def test_class_names_that_are_added_are_told(project: Path) -> None:
    (project / "names.txt").write_text("dog\ncat\nowl\nfox\n")
    embed()
    told = embed("other", "--class-names", "names.txt")
    assert "its classes had no names so far" in told and "'dog', 'cat', 'owl' and " in told
    assert Collection.open(project.parent / "c.lance").manifest.labels[0] == "dog"  # type: ignore[union-attr]
    embed("other", code=2)


def test_merging_refuses_other_class_names(project: Path, tmp_path: Path) -> None:
    stores = []
    for names in (["dog", "cat", "owl", "fox"], ["cat", "dog", "owl", "fox"]):
        stores.append(Collection.open(tmp_path / f"{names[0]}.lance"))
        stores[-1].add(embedder(class_names=names), project / "same")
    with pytest.raises(CollectionError, match="class 0 was 'dog'"):
        merge([one.reader for one in stores], Collection.open(tmp_path / "all").reader)


def test_names_of_classes_are_compared_one_by_one() -> None:
    assert renamed(["a", "class_1"], ["a", "b"]) == ""
    assert newly_named(["a", "class_1"], ["a", "b"]) == "'b'"
    assert renamed(["a", "class_0"], ["a", "b"]) == "class 1 was 'class_0' and is 'b' now"
    assert renamed(["LABEL_0", "LABEL_1"], ["x", "y"]) == ""
    assert renamed([], ["x"]) == newly_named([], ["x"]) == ""


def test_a_saved_embedder_tells_other_class_names(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = embedder(class_names=["dog", "cat", "owl", "fox"]).save(tmp_path / "saved")
    penult.Embedder.load(saved)
    assert not caplog.records
    file = saved / "classifier.json"
    file.write_text(file.read_text().replace('"dog"', '"wolf"'))
    with pytest.raises(ModelError, match=r"classifier\.json is not the file that was saved"):
        penult.Embedder.load(saved)
    (saved / "SHA256SUMS").unlink()
    penult.Embedder.load(saved)
    assert "class 0 was 'dog' and is 'wolf' now" in caplog.text


def test_other_weights_are_refused_unmeasured(project: Path, tmp_path: Path) -> None:
    """Weights are numbers: what a few items do not show, others would."""
    store = Collection.open(tmp_path / "c.lance")
    store.add(embedder(), project / "same")
    weights = torch.load(project / "weights.pt")
    weights["5.bias"] += 1e-7
    torch.save(weights, project / "weights.pt")
    with pytest.raises(FingerprintMismatch, match="weights: the collection has"):
        store.add(embedder(), project / "same")
    saved = embedder().save(tmp_path / "saved")
    other = json.loads((saved / "penult.json").read_text())
    other["fingerprint"]["weights"] = "0" * 16
    (saved / "penult.json").write_text(json.dumps(other))
    (saved / "SHA256SUMS").unlink()
    with pytest.raises(ModelError, match="weights"):
        penult.Embedder.load(saved)
