"""What is kept between runs and given to others: graphs, choices, proofs, saved embedders, classes,
spaces. A damaged or foreign one is made anew, refused or told, and never gives other vectors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import penult
from conftest import RATE, clip, thinned
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.data.hashes import LIST, damage, write_list
from penult.embedding.embedder import Embedder
from penult.engines.autoselect import EngineChoice
from penult.engines.graph_cache import Graphs
from penult.engines.parity import relative_error
from penult.engines.registry import BUILT_IN
from penult.engines.torch import TorchEngine
from penult.errors import EngineError, LabelsError, ModelError, SpaceError
from penult.models.base import digest
from penult.tracing.certificate import UNFINISHED, Certificate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PENULT_CACHE", str(folder))
    return folder


def flip(path: Path, bits: int = 200) -> None:
    """Turn bits of a file over, the same ones each time."""
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(0, 8 * len(data), bits):
        data[place // 8] ^= 1 << int(place % 8)
    path.write_bytes(bytes(data))


class Command:
    """`penult …` in this process: what it wrote to stdout and stderr."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tmp_path, self.capsys, self.stores = tmp_path, capsys, 0

    def __call__(self, *arguments: Any, code: int = 0) -> tuple[str, str]:
        self.capsys.readouterr()
        found = run([*map(str, arguments)])
        out, err = self.capsys.readouterr()
        assert found == code, err + out
        assert "Traceback" not in err
        return out, " ".join(err.split())

    def embed(self, model: Path, items: Path, *how: str) -> tuple[np.ndarray, dict[str, Any], str]:
        """The vectors of items in a new collection, the JSON document, and stderr."""
        self.stores += 1
        into = self.tmp_path / f"{self.stores}.lance"
        out, err = self("embed", model, items, "--into", into, "--json", "--device", "cpu", *how)
        return Collection.open(into).vectors()[1], json.loads(out), err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.fixture(scope="session")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved embedder with a recorded graph."""
    folder = tmp_path_factory.mktemp("converted") / "saved"
    assert run(["convert", str(tiny), str(folder), "--engine", "openvino"]) == 0
    return folder


@pytest.fixture
def saved(converted: Path, tmp_path: Path) -> Path:
    """As somebody gets it: nothing in the cache knows of it."""
    return Path(shutil.copytree(converted, tmp_path / "saved"))


CLIPS = [clip(0.3 + 0.1 * number, number) for number in range(3)]


def vectors_of(model: Path, engine: str) -> tuple[np.ndarray, EngineChoice]:
    """Vectors of three clips, as a new process would make them, and the choice."""
    embedder = Embedder.from_classifier(penult.load(model), engine=engine, device="cpu")
    vectors = embedder.embed(CLIPS)
    assert embedder.runner.choice is not None
    return vectors, embedder.runner.choice


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of three short sounds."""
    (tmp_path / "sounds").mkdir()
    for number, samples in enumerate(CLIPS):
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", samples, RATE)
    return tmp_path / "sounds"


def graph_of(place: Path, pattern: str) -> Path:
    (found,) = place.glob(f"**/{pattern}")
    return found.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("openvino", ("model.bin", "model.xml", LIST)),
    ],
)
def test_a_damaged_graph_is_made_anew(
    engine: str, names: tuple[str, ...], tiny: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, first = vectors_of(tiny, engine)
    assert first.mode.words == f"{engine} f32" and not first.kept
    for name in names:
        folder = graph_of(cache, names[0])
        flip(folder / name)
        vectors, choice = vectors_of(tiny, engine)
        assert "is made anew" in caplog.text, name
        caplog.clear()
        assert relative_error(vectors, expected) < 1e-6
        assert choice.mode == first.mode and not damage(folder)
    (folder / names[0]).unlink()
    assert relative_error(vectors_of(tiny, engine)[0], expected) < 1e-6
    caplog.clear()
    assert vectors_of(tiny, engine)[1].kept and not caplog.records


@pytest.mark.slow
def test_what_a_graph_was_made_from_counts(
    tiny: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph of another model, whole in itself; and the same weights in another structure."""
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, other / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    expected, _ = vectors_of(tiny, "openvino")
    ours = graph_of(cache, "model.bin")
    assert relative_error(vectors_of(other, "openvino")[0], expected) > 1e-3
    (theirs,) = (path.parent for path in cache.glob("**/model.bin") if path.parent != ours)
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    assert relative_error(vectors_of(tiny, "openvino")[0], expected) < 1e-6
    assert "from another model" in caplog.text
    config = json.loads((tiny / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    shutil.copyfile(tiny / "model.safetensors", other / "model.safetensors")
    vectors, choice = vectors_of(other, "openvino")
    assert relative_error(vectors, expected) > 1e-5  # a hash of the weights sees no difference
    native = Embedder.from_classifier(penult.load(other), device="cpu").embed(CLIPS)
    assert relative_error(vectors, native) < 1e-5 and choice.mode.engine == "openvino"


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _better(path: Path) -> None:
    document = json.loads(path.read_text())
    document["answer"]["seconds"] = dict.fromkeys(document["answer"]["seconds"], 1e-09)
    path.write_text(json.dumps(document))


def _nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def test_a_damaged_choice_is_measured_anew(tiny: Path, cache: Path) -> None:
    expected, _ = vectors_of(tiny, "openvino")
    for change in (flip, _truncated, _better, _nested):
        (note,) = cache.glob("**/choice-*.json")
        change(note)
        vectors, choice = vectors_of(tiny, "openvino")
        assert not choice.kept and choice.seconds["openvino f32"] > 1e-6, change
        assert relative_error(vectors, expected) < 1e-6
    again = vectors_of(tiny, "openvino")[1]
    assert again.kept and again.seconds == choice.seconds


@pytest.mark.slow
def test_a_kept_speed_is_told_as_kept(
    tiny: Path, sounds: Path, cache: Path, tmp_path: Path, command: Command,
    eager: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And the parity is of this run, on its first batch: of a kept choice with the same graph, on
    one item."""
    slow = TorchEngine.__call__

    def slower(self: TorchEngine, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return slow(self, *args, **kwargs)

    monkeypatch.setattr(TorchEngine, "__call__", slower)
    two = [spec for spec in BUILT_IN if spec.name in ("torch", "openvino")]
    monkeypatch.setattr("penult.engines.portfolio.candidates", lambda *_: iter(two))
    how = ("--engine", "auto", "--alone")
    first = command.embed(tiny, sounds, *how)[1]["choice"]
    assert first["kept"] is None and first["engine"] != "torch" and first["parity"]["items"] == 2
    assert first["rows"] == {"torch f32": 1, f"{first['engine']} f32": 2}
    extra = sounds / "3.wav"
    soundfile.write(extra, clip(0.9, 9), RATE)
    for note in cache.glob("**/engine-*.json"):  # by which a few items need no model
        note.unlink()
    into = tmp_path / "told.lance"
    told = command("embed", tiny, sounds, "--into", into, "--precision", "exact", "--alone")[1]
    assert "× as fast as torch f32 when it was measured on 20" in told and "(kept)" in told
    assert "on 1 item" in told and "rows:" not in told


def test_check_measures_the_engine_itself(saved: Path, sounds: Path, command: Command) -> None:
    how = ("--engine", "openvino", "--json")
    report = json.loads(command("check", saved, sounds, *how)[0])
    assert report["parity"]["items"] == len(report["items"]) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_another_users_cache_is_not_believed(tiny: Path, cache: Path) -> None:
    expected, _ = vectors_of(tiny, "openvino")
    folder = graph_of(cache, "model.bin")
    for path in (folder, *folder.iterdir(), *cache.glob("**/*.json")):
        os.chown(path, 12345, -1)
    vectors, choice = vectors_of(tiny, "openvino")
    assert relative_error(vectors, expected) < 1e-6 and not choice.kept
    assert {path.lstat().st_uid for path in graph_of(cache, "model.bin").iterdir()} == {0}


def test_two_record_one_graph_at_once(cache: Path) -> None:
    barrier = threading.Barrier(4)
    found: list[bytes] = []

    def make(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"graph")
        barrier.wait(10)

    def record() -> None:
        found.append((Graphs("one").get("asked", make) / "model.bin").read_bytes())

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"graph"] * 4 and len(list((cache / "engines" / "one").iterdir())) == 1


def test_a_cache_that_cannot_be_written_serves(cache: Path) -> None:
    """What is whole in it is read; what is not there is refused with another place."""
    made = Graphs("one").get("asked", lambda folder: None)
    shutil.rmtree(cache / "engines" / "one" / made.name)
    (cache / "engines" / "one" / made.name).write_text("a file in its place")
    again = Graphs("one").get("asked", lambda folder: None)
    assert again.is_dir() and not damage(again)


# ---- saved embedders


def test_a_damaged_file_of_an_embedder_is_refused(
    saved: Path, sounds: Path, command: Command
) -> None:
    names = [path.name for path in saved.iterdir() if path.is_file()]
    assert {"penult.json", "model.safetensors", LIST} <= set(names)
    for name in names:
        kept = (saved / name).read_bytes()
        flip(saved / name, 1)
        for order in (("classify", saved, sounds), ("inspect", saved)):
            told = command(*order, code=2)[1]
            assert "is not as it was saved" in told and (name in told or name == LIST)
        (saved / name).write_bytes(kept)
    penult.load(saved)


def _escape(folder: Path) -> None:
    (folder.parent / "x").write_text("outside")
    text = (folder / LIST).read_text()
    (folder / LIST).write_text(f"{hashlib.sha256(b'outside').hexdigest()}  ../x\n{text}")


def _absolute(folder: Path) -> None:
    text = (folder / LIST).read_text()
    (folder / LIST).write_text(f"{hashlib.sha256(b'').hexdigest()}  /dev/null\n{text}")


def _twice(folder: Path) -> None:
    (folder / LIST).write_text((folder / LIST).read_text() + f"{'0' * 64}  penult.json\n")


def _extra(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _link(folder: Path) -> None:
    (folder / "extra").symlink_to(folder.parent)


def _missing(folder: Path) -> None:
    (folder / "config.json").unlink()


def _shorter_list(folder: Path) -> None:
    lines = (folder / LIST).read_text().splitlines()
    (folder / LIST).write_text("\n".join(one for one in lines if "config" not in one) + "\n")


def _other_file(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


def _pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


LISTS = [_escape, _absolute, _twice, _extra, _link, _missing, _shorter_list, _other_file]


@pytest.mark.parametrize("attack", [*LISTS, *([_pipe] if hasattr(os, "mkfifo") else [])])
def test_a_list_that_does_not_fit_is_refused(attack: Callable[[Path], None], saved: Path) -> None:
    attack(saved)
    with pytest.raises(ModelError, match="is not as it was saved"):
        Embedder.load(saved)


def test_what_people_put_beside_is_let_be(saved: Path) -> None:
    """Signatures, notes, what git and file managers write; and files that are links to it."""
    (saved / "README.md").write_text("mine")
    (saved / f"{LIST}.sig").write_text("signed")
    (saved / ".DS_Store").write_bytes(b"\0")
    (saved / ".git").mkdir()
    (saved / ".git" / "HEAD").write_text("ref")
    weights = saved.parent / "store"
    (saved / "model.safetensors").rename(weights)
    (saved / "model.safetensors").symlink_to(weights)
    assert Embedder.load(saved).certificate.ok


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_other_tools_read_the_list(saved: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", LIST]
    assert subprocess.run(command, cwd=saved, check=False).returncode == 0
    flip(graph_of(saved, "model.bin") / "model.bin")
    assert subprocess.run(command, cwd=saved, check=False, capture_output=True).returncode == 1


def test_a_graph_that_came_with_an_embedder_is_a_claim(
    saved: Path, sounds: Path, cache: Path, command: Command
) -> None:
    """It is measured here, also where all hashes fit; a wrong one gives no vector."""
    expected, _, _ = command.embed(saved, sounds, "--engine", "torch")
    shutil.rmtree(cache, ignore_errors=True)
    how = ("--engine", "openvino")
    told = command("embed", saved, sounds, "--into", saved.parent / "a.lance", *how)[1]
    assert "with the graph that came with the embedder" in told and not list(cache.glob("**/*.xml"))
    assert relative_error(Collection.open(saved.parent / "a.lance").vectors()[1], expected) < 1e-5
    folder = graph_of(saved, "model.bin")
    _change_weights(folder / "model.bin")
    for place in (folder, saved):  # by somebody who can count
        (place / LIST).unlink()
        write_list(place)
    shutil.rmtree(cache, ignore_errors=True)
    told = command("embed", saved, sounds, "--into", saved.parent / "b.lance", *how, code=2)[1]
    assert "exact asks for more" in told
    assert not (saved.parent / "b.lance" / "items.lance").exists()


def _change_weights(path: Path) -> None:
    """path: of the recorded graph's weights; `.xml` beside them."""
    import openvino
    from openvino import opset13 as ops

    model = openvino.Core().read_model(path.with_suffix(".xml"))
    for one in model.get_ops():
        if one.get_type_name() != "Constant" or len(one.shape) < 2 or one.data.dtype != np.float32:
            continue
        other = ops.constant(one.data * np.float32(1.01))
        for target in one.output(0).get_target_inputs():
            target.replace_source_output(other.output(0))
    changed = path.with_name("changed.xml")
    openvino.save_model(model, changed, compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        changed.with_suffix(suffix).rename(path.with_suffix(suffix))


def test_a_proof_that_came_with_an_embedder_is_a_claim(
    saved: Path, sounds: Path, cache: Path, command: Command
) -> None:
    """Of another model, or invented: the head is proved here, once, and then told as kept."""
    about = json.loads((saved / "penult.json").read_text())
    about["certificate"] |= {"max_error": 0.123, "kept": "1999-01-01"}
    about["certificate"]["checks"] = about["certificate"]["checks"][:1]
    about["proved_on"] = ["theirs.wav"]
    (saved / "penult.json").write_text(json.dumps(about))
    (saved / LIST).unlink()
    write_list(saved)
    shutil.rmtree(cache, ignore_errors=True)
    first = command.embed(saved, sounds, "--engine", "torch")[1]
    assert first["certificate"]["ok"] and first["certificate"]["max_error"] < 1e-5
    assert not first["certificate"]["kept"] and "theirs.wav" not in first["proved_on"]
    again = command.embed(saved, sounds, "--engine", "torch")[1]
    assert again["certificate"]["kept"] and again["proved_on"] == first["proved_on"]
    said = command("embed", saved, sounds, "--into", cache.parent / "x.lance")[0]
    assert f"head proved here on {again['certificate']['kept']} (kept), with " in said
    (note,) = cache.glob("**/proof-*.json")
    _truncated(note)
    assert not command.embed(saved, sounds, "--engine", "torch")[1]["certificate"]["kept"]


@contextlib.contextmanager
def passes_of(name: str) -> Iterator[list[int]]:
    """Grows by one with each forward pass of a module of this class."""
    found: list[int] = []

    def seen(module: torch.nn.Module, _: Any) -> None:
        if type(module).__name__ == name:
            found.append(1)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(seen)
    try:
        yield found
    finally:
        hook.remove()


def test_a_second_run_proves_and_measures_nothing(
    tiny: Path, sounds: Path, command: Command
) -> None:
    """Of a model that was not saved as an embedder either, into any collection."""
    counts, said, vectors = [], [], []
    for _ in range(2):
        with passes_of("Wav2Vec2ForSequenceClassification") as passes:
            found, document, _ = command.embed(tiny, sounds, "--engine", "torch")
        counts.append(len(passes))
        said.append(document["certificate"])
        vectors.append(found)
    assert not said[0]["kept"] and said[1]["kept"]
    assert {**said[1], "kept": ""} == said[0]
    np.testing.assert_array_equal(*vectors)
    # The parts are found, noise is embedded twice, and the items: nothing else.
    assert counts[1] <= 6 and counts[0] >= counts[1] + 9, counts


@pytest.mark.parametrize("reason", thinned(["", "the halves differ", f"{UNFINISHED}: full"], [""]))
def test_why_a_head_is_not_proved_is_kept(
    reason: str, tiny: Path, sounds: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other items too, unless they may settle it (here the reason is the model's: its logits
    hardly differ); not what another run may not meet; and of this package's code alone."""
    from penult.embedding import embedder as module

    model = Path(shutil.copytree(tiny, command.tmp_path / "model"))
    if not reason:
        weights = load_file(model / "model.safetensors")
        weights["classifier.weight"] *= 1e-9
        weights["classifier.bias"] += 1
        save_file(weights, model / "model.safetensors", {"format": "pt"})
    asked, prove = [], module.certify_on  # type: ignore[attr-defined]

    def certify_on(*how: Any) -> Any:
        asked.append(how)
        return (Certificate.refused(reason), ["0.wav"]) if reason else prove(*how)

    monkeypatch.setattr(module, "certify_on", certify_on)
    other = command.tmp_path / "other"
    other.mkdir()
    shutil.copyfile(sounds / "2.wav", other / "a.wav")
    found = [command.embed(model, files)[1]["certificate"] for files in (sounds, sounds, other)]
    assert not any(one["ok"] for one in found) and found[0]["refusal"] == found[1]["refusal"]
    # Whether the same items, and other ones, were asked again.
    again = {"": (False, True), "the halves differ": (False, False)}.get(reason, (True, True))
    assert [not one["kept"] for one in found] == [True, *again]
    assert len(asked) == 1 + sum(again)
    monkeypatch.setattr(module, "package_hash", lambda: "other code")
    assert not command.embed(model, sounds)[1]["certificate"]["kept"]


def test_other_weights_are_proved(
    tiny: Path, sounds: Path, command: Command, tmp_path: Path
) -> None:
    command.embed(tiny, sounds, "--engine", "torch")
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["classifier.weight"] *= 2
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert not command.embed(other, sounds, "--engine", "torch")[1]["certificate"]["kept"]


def test_a_live_object_is_proved_each_time(tiny: Path) -> None:
    """Code may do something else under the same weights."""
    factor = [1.0]

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(RATE, 8), torch.nn.Linear(8, 3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.last(torch.relu(self.first(values)))
            return scores if factor[0] else scores + values.mean()

    for expected in (True, False):
        factor[0] = float(expected)
        classifier = penult.load(Scaled().eval(), sample_rate=RATE, modality="audio")
        certificate = Embedder.from_classifier(classifier).certificate
        assert certificate.ok is expected and not certificate.kept


def test_a_head_that_is_not_proved_here_is_told(
    saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    refused = Certificate.refused("the halves differ")
    monkeypatch.setattr("penult.embedding.embedder.certify", lambda _: refused)
    assert not Embedder.load(saved).certificate.ok
    assert "says that its head was proved; here it is not: the halves differ" in caplog.text


# ---- classes, spaces, manifests


def test_a_class_file_carries_its_hash(saved: Path, sounds: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(saved, engine="torch")
    classes = penult.ClassSpace(embedder)
    files = sorted(sounds.rglob("*.wav"))
    classes.add("a", files[:2])
    classes.add("b", files[2:4])
    path = classes.save(tmp_path / "classes.npz")
    expected = classes.examples.vectors
    with np.load(path) as file:
        parts = dict(file)
    assert np.array_equal(penult.ClassSpace.load(path).examples.vectors, expected)
    parts["vectors"] = parts["vectors"] * np.float32(1.01)  # a whole archive with other numbers
    np.savez(tmp_path / "other.npz", **parts)
    with pytest.raises(LabelsError, match="not as it was saved"):
        penult.ClassSpace.load(tmp_path / "other.npz")
    del parts["hash"]  # as 0.1.0 wrote it
    np.savez(tmp_path / "older.npz", **parts)
    penult.ClassSpace.load(tmp_path / "older.npz")


def test_a_space_is_what_its_hash_says(
    tiny: Path, sounds: Path, tmp_path: Path, command: Command
) -> None:
    from penult.collection.spaces import append_space

    command.embed(tiny, sounds)
    store = Collection.open(tmp_path / "1.lance")
    fitted, other = store.fit_space("scale"), store.fit_space("centre")
    assert store.space("scale").id == fitted.id
    append_space(store.reader, fitted.id, "scale", {}, other.to_bytes())
    with pytest.raises(SpaceError, match="not as it was stored"):
        store.space("scale")


def test_a_manifest_that_was_changed_is_told(
    tiny: Path, sounds: Path, tmp_path: Path, command: Command
) -> None:
    command.embed(tiny, sounds)
    file = tmp_path / "1.lance" / "collection.json"
    assert "is not as Penult wrote it" not in command("info", tmp_path / "1.lance")[1]
    manifest = json.loads(file.read_text())
    manifest["labels"][0] = "other"
    file.write_text(json.dumps(manifest))
    told = command("info", tmp_path / "1.lance")[1]
    assert told.count("is not as Penult wrote it") == 1
    del manifest["model"]["hash"]  # as 0.1.0 wrote it
    file.write_text(json.dumps(manifest))
    assert "is not as Penult wrote it" not in command("info", tmp_path / "1.lance")[1]


def test_hashes_of_a_folder_with_odd_names(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("names that Windows has not")
    for name in ("with space", "ümlaut", "  two  ", os.fsdecode(b"no\xff utf"), "a/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, "utf-8", "surrogateescape")
    write_list(tmp_path)
    assert not damage(tmp_path)
    (tmp_path / "a" / "b").write_text("other")
    assert damage(tmp_path) == "a/b is not the file that was saved"
    (tmp_path / "new\nline").write_text("")
    with pytest.raises(ValueError, match="cannot name"):
        write_list(tmp_path)


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=40)
def test_one_bit_of_any_file_is_seen(place: int, bit: int) -> None:
    """Or it changes nothing that counts (the sign between a hash and its name)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").write_bytes(b"weights")
        (folder / "b").write_bytes(b"settings")
        write_list(folder)
        before = {one: (folder / one).read_bytes() for one in "ab"}
        files = sorted(folder.iterdir())
        size = sum(file.stat().st_size for file in files)
        place %= size
        for file in files:
            if place < file.stat().st_size:
                break
            place -= file.stat().st_size
        data = bytearray(file.read_bytes())
        data[place] ^= 1 << bit
        file.write_bytes(bytes(data))
        if not damage(folder):
            assert file.name == LIST and before == {x: (folder / x).read_bytes() for x in "ab"}


def test_a_proof_of_another_model_in_the_cache_is_not_believed(
    converted: Path, tmp_path: Path, cache: Path
) -> None:
    """A whole note, at the place of another one."""
    saved = Path(shutil.copytree(converted, tmp_path / "one"))
    assert not Embedder.load(saved).certificate.kept
    (note,) = cache.glob("**/proof-*.json")
    other = note.with_name(f"proof-{'0' * 16}.json")
    note.rename(other)
    shutil.copyfile(other, note)
    assert Embedder.load(saved).certificate.kept  # its own
    document = json.loads(note.read_text())
    document["of"] = other.name
    body = {name: value for name, value in document.items() if name != "hash"}
    note.write_text(json.dumps({**body, "hash": digest(body)}))
    assert not Embedder.load(saved).certificate.kept


def test_a_cache_on_a_disk_that_is_read_only_serves(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = vectors_of(tiny, "openvino")
    make = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.is_relative_to(cache):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    vectors, choice = vectors_of(tiny, "openvino")
    assert choice.kept and relative_error(vectors, expected) < 1e-6
    shutil.rmtree(cache)
    with pytest.raises(EngineError, match="PENULT_CACHE names another folder"):
        vectors_of(tiny, "openvino")


def test_a_model_is_known_by_its_record(
    tiny: Path, sounds: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run opens the model for its items alone: nothing is traced, and what is told and
    stored is the same."""
    first, told, _ = command.embed(tiny, sounds, "--engine", "torch")
    for place in ("tracing.anatomy", "models.checkpoints"):
        name = f"penult.{place}.record"
        monkeypatch.setattr(name, lambda *a, **k: pytest.fail("a pass was recorded"))
    second, again, _ = command.embed(tiny, sounds, "--engine", "torch")
    np.testing.assert_array_equal(first, second)
    for name in ("fingerprint", "fingerprint_id", "tap", "pooling", "dim", "batching", "engine"):
        assert told[name] == again[name], name


@pytest.mark.parametrize("part", thinned(["weights", "settings", "preparation"], ["weights"]))
def test_a_record_is_of_its_files(
    tiny: Path, sounds: Path, command: Command, part: str, tmp_path: Path
) -> None:
    """Whatever of a folder changes, the next run sees it."""
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    _, told, _ = command.embed(folder, sounds, "--engine", "torch")
    if part == "weights":
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["classifier.weight"] += 1
        about = file.stat()
        save_file(weights, file, {"format": "pt"})
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        file = folder / {"settings": "config.json", "preparation": "preprocessor_config.json"}[part]
        document = json.loads(file.read_text())
        if part == "settings":
            document["id2label"] = {**document["id2label"], "0": "another name"}
        else:
            document["do_normalize"] = not document["do_normalize"]
        file.write_text(json.dumps(document))
    _, other, _ = command.embed(folder, sounds, "--engine", "torch")
    if part == "settings":
        printed, _ = command("classify", folder, sounds, "--json")
        assert "another name" in printed
    else:
        assert other["fingerprint"] != told["fingerprint"]


def test_a_model_that_was_changed_in_memory_has_no_record(tiny: Path, sounds: Path) -> None:
    """Neither is the change noted under the files' name, nor what was noted told of the change."""
    from penult.embedding.embedder import open_embedder

    files = sorted(sounds.iterdir())[:2]
    plain = open_embedder(tiny).run(files).logits
    for _ in range(2):
        changed = open_embedder(tiny)
        with torch.no_grad():
            changed.classifier.module.classifier.weight.mul_(2)  # type: ignore[union-attr, operator]
        assert changed.fingerprint["weights"] != open_embedder(tiny).fingerprint["weights"]
        assert np.abs(changed.run(files).logits - plain).max() > 1e-3
        np.testing.assert_array_equal(open_embedder(tiny).run(files).logits, plain)
