"""What is pushed to a Hub on this machine, and opened from there by its name."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import penult
from conftest import RATE, clip
from hub_standin import TOKEN, Hub, running
from penult import ClassSpace, Collection, Embedder
from penult.cli.main import run
from penult.data.hashes import write_list
from penult.embedding.embedder import open_embedder
from penult.errors import CollectionError, ModelError, StoreError, UsageError
from penult.models import hub as hub_cache
from penult.models.trust import named_by

SOUNDS = [(clip(1.0, seed), RATE) for seed in range(3)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, an empty cache, and the token of a user."""
    with running() as found:
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": found.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub cache"),
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(hub_cache, "_fetched", set())
        yield found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as an embedder with a space, at another tap than the usual one."""
    embedder = Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    from penult.analysis.space import fit

    embedder.space = fit("scale+l2", Embedder(embedder.classifier, embedder.tap, "mean").embed(
        [(clip(1.0, seed), RATE) for seed in range(20)]))  # fmt: skip
    return embedder.save(tmp_path_factory.mktemp("saved") / "mine")


def test_an_embedder_is_opened_from_the_hub(hub: Hub, saved: Path) -> None:
    done = penult.push(saved, "anna/mine", license="apache-2.0")
    assert done.repo_type == "model" and len(done.revision) == 40
    assert any(line.startswith("PUT /lfs/") for line in hub.asked)  # the weights
    files = hub.files("anna/mine")
    assert set(files) == {*done.files, ".gitattributes"}
    assert {"space.npz", "SHA256SUMS", "penult.json", "README.md"} <= files.keys()
    for opened in (open_embedder("anna/mine"), Embedder.load(f"anna/mine@{done.revision}")):
        assert np.array_equal(opened.embed(SOUNDS), Embedder.load(saved).embed(SOUNDS))
        assert (opened.tap.name, opened.space and opened.space.recipe) == ("prelogits", "scale+l2")
        assert opened.classifier.describe()["revision"] == done.revision
    assert penult.load("anna/mine").labels == penult.load("demo").labels


def test_a_graph_is_opened_from_the_hub(hub: Hub, light: Path) -> None:
    """Its file is none of those that a checkpoint of transformers has."""
    done = penult.push(light, "anna/graph")
    assert any(name.endswith(".onnx") for name in done.files)
    expected = Embedder.load(light)
    opened = open_embedder("anna/graph")
    assert np.array_equal(opened.embed(SOUNDS), expected.embed(SOUNDS))
    about = opened.classifier
    assert (about.spec, about.describe()["revision"]) == ("anna/graph", done.revision)


def test_a_collection_records_the_commit(hub: Hub, saved: Path, tmp_path: Path) -> None:
    done = penult.push(saved, "anna/mine")
    collection = Collection.open(tmp_path / "sounds.lance")
    collection.add(open_embedder("anna/mine"), SOUNDS, workers=0)
    model = collection.reader.require_manifest().model
    assert (model["spec"], model["revision"]) == ("anna/mine", done.revision)
    assert collection.runs()["revision"].to_pylist() == [done.revision]


def test_a_revision_stays_what_it_was(hub: Hub, saved: Path, tiny: Path, tmp_path: Path) -> None:
    first = penult.push(saved, "anna/mine")
    other = Embedder.from_classifier(penult.load(tiny), device="cpu").save(tmp_path / "other")
    second = penult.push(other, "anna/mine")
    assert first.revision != second.revision
    assert "space.npz" not in hub.files("anna/mine")  # what an earlier push left goes
    assert open_embedder(f"anna/mine@{first.revision}").tap.name == "prelogits"
    assert open_embedder("anna/mine").tap.name == "backbone"


def test_offline_the_cache_serves_and_nothing_is_asked(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    penult.push(saved, "anna/mine")
    expected = open_embedder("anna/mine").embed(SOUNDS)
    hub.asked.clear()
    monkeypatch.setenv("PENULT_OFFLINE", "1")
    assert np.array_equal(open_embedder("anna/mine").embed(SOUNDS), expected)
    with pytest.raises(UsageError, match="--offline"):
        penult.push(saved, "anna/mine")
    with pytest.raises(UsageError, match="--offline"):
        penult.pull("anna/words", "words.lance")
    with pytest.raises(ModelError, match="--offline"):
        open_embedder("anna/absent")
    assert hub.asked == []


def test_a_file_that_names_a_repository_asks_nobody(hub: Hub, saved: Path) -> None:
    penult.push(saved, "berta/mine")
    hub.asked.clear()
    with named_by("a table"), pytest.raises(ModelError, match="the network is asked for what you"):
        open_embedder("berta/mine")
    assert hub.asked == []


def test_code_is_not_run_out_of_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pushed_nets.py").write_text(NETS)
    classifier = penult.load("pushed_nets:make", weights_inside=True, sample_rate=8000)
    folder = Embedder.from_classifier(classifier, device="cpu").save(tmp_path / "mine")
    done = penult.push(folder, "anna/coded")
    assert "code/pushed_nets.py" in done.files and "Python code" in done.card
    for trust in (False, True):
        with pytest.raises(ModelError, match="hf download anna/coded --local-dir FOLDER"):
            open_embedder("anna/coded", trust=trust)


NETS = """
from torch import nn

def make():
    parts = [nn.Conv1d(1, 8, 64, 32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(nn.Unflatten(1, (1, -1)), *parts, nn.Linear(8, 3))
"""


def test_a_damaged_file_of_the_hub_is_seen(hub: Hub, saved: Path) -> None:
    penult.push(saved, "anna/mine")
    files = hub.files("anna/mine")
    files["config.json"] = files["config.json"].replace(b"{", b"{ ", 1)
    with pytest.raises(ModelError, match=r"config\.json is not the file that was saved"):
        open_embedder("anna/mine")


def test_the_card_says_what_it_is(hub: Hub, saved: Path) -> None:
    penult.push(saved, "anna/mine", license="apache-2.0")
    card = hub.files("anna/mine")["README.md"].decode()
    _, metadata, text = card.split("---\n", 2)
    about = yaml.safe_load(metadata)
    assert (about["license"], about["library_name"]) == ("apache-2.0", "penult")
    assert {"penult", "audio"} <= set(about["tags"])
    described = json.loads((saved / "penult.json").read_text())
    checks = described["certificate"]["checks"]
    assert f"{len(checks)} of {len(checks)} checks" in text
    for word in ("`prelogits`", "`scale+l2`", "zero, one, two", 'open_embedder("anna/mine")'):
        assert word in text
    assert Embedder.load(saved).fingerprint_id in text


def test_the_card_says_how_near_a_fast_engine_is(hub: Hub, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "fast"))
    described = json.loads((folder / "penult.json").read_text())
    parity = {"items": 8, "cosine": 0.99999912, "logits": 2e-4, "labels": 1.0, "neighbours": 1.0}
    described["choice"] = {"engine": "openvino", "numbers": "bf16", "parity": parity}
    (folder / "penult.json").write_text(json.dumps(described))
    write_list(folder)
    card = penult.push(folder, "anna/fast", dry_run=True).card
    assert "| parity | openvino bf16: cosine ≥ 0.99999" in card and "on 8 items |" in card
    assert "parity" not in penult.push(saved, "anna/mine", dry_run=True).card


def test_nothing_of_this_machine_is_pushed(
    hub: Hub, tiny: Path, recordings: Path, tmp_path: Path
) -> None:
    embedder = Embedder.from_classifier(penult.load(tiny), device="cpu")
    embedder.proved_on = [str(recordings / "a" / "1.wav")]
    folder = embedder.save(tmp_path / "mine")
    assert str(tiny) in (folder / "penult.json").read_text()
    collection = Collection.open(tmp_path / "calls.lance")
    collection.add(embedder, recordings, workers=0)
    first = collection.vectors()[0]["id"].to_pylist()[0]
    collection.label(first, "whole", "loud", who="anna", source="test")
    classes = ClassSpace(embedder)
    classes.add("low", [recordings / "a" / "1.wav", recordings / "b" / "0.wav"])
    classes.save(tmp_path / "classes.npz")
    penult.push(folder, "anna/mine")
    penult.push(tmp_path / "calls.lance", "anna/calls")
    penult.push(tmp_path / "classes.npz", "anna/low")
    for (_, repo), found in hub.repositories.items():
        for name, content in found.commits[-1][1].items():
            for secret in (str(tmp_path), str(tiny), str(Path.home()) + "/", TOKEN):
                assert secret.encode() not in content, (repo, name)
    taught = np.load(io.BytesIO(hub.files("anna/low")["classes.npz"]))
    assert str(tmp_path).encode() not in taught["about"].tobytes()


def test_a_collection_comes_back(
    hub: Hub, demo_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = Collection.open(shutil.copytree(demo_collection, tmp_path / "words.lance"))
    keys, vectors = ours.vectors(columns=ours.reader.schema.names[:6])
    ours.label(keys["id"].to_pylist()[3], "whole", "loud", who="anna", source="test")
    ours.fit_space("pca:4", name="four")
    done = penult.push(ours.path, "anna/words", private=True)
    assert done.repo_type == "dataset" and hub.repositories["dataset", "anna/words"].private
    assert run(["pull", "anna/words", str(tmp_path / "back.lance")]) == 0
    back = Collection.open(tmp_path / "back.lance")
    theirs, others = back.vectors(columns=keys.column_names)
    assert others.tobytes() == vectors.tobytes() and theirs.equals(keys)
    assert back.labels()["class"].to_pylist() == ["loud"]
    assert np.array_equal(back.space("four")(vectors), ours.space("four")(vectors))
    runs = back.runs().to_pylist()
    assert runs[-1]["command"] == f"penult pull anna/words@{done.revision}"
    assert [one["run_id"] for one in runs[:-1]] == ours.runs()["run_id"].to_pylist()
    near = [hit.id for hit in back.search(vectors[0], k=5)]
    assert near == [hit.id for hit in ours.search(vectors[0], k=5)]
    assert done.revision in capsys.readouterr().out
    with pytest.raises(CollectionError, match="exists"):
        penult.pull("anna/words", back.path)


def test_absolute_ids_stay_here(hub: Hub, recordings: Path, tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "calls.lance", root=False)
    collection.add(open_embedder("demo"), recordings, workers=0)
    with pytest.raises(CollectionError, match=r"penult migrate .* --root DIR"):
        penult.push(collection.path, "anna/calls")
    assert not hub.repositories


def test_classes_are_predicted_by_the_name_of_the_repository(
    hub: Hub, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(recordings.rglob("*.wav"))
    classes = ClassSpace(open_embedder("demo"), unknown=0)
    classes.add("low", files[:2])
    classes.add("high", files[3:5])
    classes.save(tmp_path / "classes.npz")
    expected = [one.label for one in classes.predict(files)]
    done = penult.push(tmp_path / "classes.npz", "anna/calls")
    found = ClassSpace.load(f"anna/calls@{done.revision}")
    assert [one.label for one in found.predict(files)] == expected
    capsys.readouterr()
    assert run(["predict", "anna/calls", str(recordings), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["predictions"]) == len(files)
    card = hub.files("anna/calls")["README.md"].decode()
    assert "| low | 2 examples |" in card and "penult predict anna/calls" in card
    with pytest.raises(ModelError, match="no class space"):
        penult.push(tmp_path / "classes.npz", "anna/calls")
        hub.files("anna/calls")["other.npz"] = hub.files("anna/calls").pop("classes.npz")
        ClassSpace.load("anna/calls")


def test_a_dry_run_lists_the_files_and_asks_nobody(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(saved), "anna/mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model anna/mine" in out and "space.npz" in out and "## Certificate" in out
    assert hub.asked == [] and TOKEN not in out


def test_refusals(hub: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note.txt").write_text("mine")
    for path, repo, words in (
        (tmp_path / "note.txt", "anna/mine", "nothing that can be pushed"),
        (saved, "mine", "owner/name"),
    ):
        with pytest.raises(UsageError, match=words):
            penult.push(path, repo)
    with pytest.raises(UsageError, match="of the kind embedder, and --kind says classes"):
        penult.push(saved, "anna/mine", kind="classes")
    with pytest.raises(StoreError, match="rights"):
        penult.push(saved, "others/mine")
    penult.push(saved, "anna/mine")
    files = hub.files("anna/mine")
    files["weights.bin"] = files.pop("penult.json")
    with pytest.raises(UsageError, match="holds something else"):
        penult.push(saved, "anna/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_anotherSecret")
    with pytest.raises(StoreError, match="hf auth login") as refused:
        penult.push(saved, "anna/new")
    assert "hf_anotherSecret" not in str(refused.value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="on the hub"):
        penult.push(saved, "anna/mine")


def test_another_push_meanwhile_is_not_lost(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    penult.push(saved, "anna/mine")
    from huggingface_hub import HfApi

    before = HfApi.repo_info

    def later(self: HfApi, *given: object, **more: object) -> object:
        found = before(self, *given, **more)  # type: ignore[arg-type]
        hub.repositories["model", "anna/mine"].commit({"penult.json": b"{}"})
        return found

    monkeypatch.setattr(HfApi, "repo_info", later)
    with pytest.raises(StoreError, match="Somebody else has pushed meanwhile"):
        penult.push(saved, "anna/mine")


def test_the_command_pushes_and_says_no_token(hub: Hub, saved: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-m", "penult", "--log", "debug", "push", str(saved), "anna/mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pushes ") and lines[-1].startswith("revision ")
    assert hub.repositories["model", "anna/mine"].commits[-1][0] in lines[-1]
    logging.getLogger("penult").setLevel(logging.NOTSET)
