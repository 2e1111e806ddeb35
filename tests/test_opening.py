"""Files that a user gives, to any command or call, are opened in a worker: one with which a decoder
is owned, killed or held up is named, and takes nothing with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import penult
from conftest import RATE, clip, make_hostile
from penult.collection.collection import Collection
from penult.data import audio, image, workers
from penult.data.decode import DecodeTarget, Decoding, decoding_as
from penult.data.sources import from_paths
from penult.embedding.embedder import Embedder
from penult.errors import ItemError, UsageError
from penult.fewshot.classspace import ClassSpace
from penult.models.specs import load
from penult.sklearn import EmbeddingTransformer
from test_cli import ask

WANTED = DecodeTarget("audio", RATE)
GOOD = ("a", "b", "y", "z")


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good sounds in `in`, of which one has a name that is hostile later, and their collection."""
    place = tmp_path_factory.mktemp("opening")
    (place / "in").mkdir()
    names = [f"name{number}" for number in range(len(load(tiny).labels))]
    (place / "names.txt").write_text("\n".join(names))
    for number, name in enumerate([*GOOD, "crash"]):
        soundfile.write(place / "in" / f"{name}.wav", clip(0.4, number), RATE)
    shutil.copytree(place / "in", place / "new")
    shutil.copytree(place / "in", place / "more")
    for number in range(8):  # layers are ranked by ten items
        soundfile.write(place / "more" / f"{number}.wav", clip(0.2, number), RATE)
    assert (
        ask("embed", tiny, place / "in", "--into", place / "c.lance", "--engine", "torch").code == 0
    )
    space = ClassSpace(Collection.open(place / "c.lance"))
    for number, name in enumerate(GOOD):
        space.add(f"class {number % 2}", [(str(place / "in" / f"{name}.wav"), "whole")])
    return place


@pytest.fixture
def hostile(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hostile decoders in workers; in this process none may be asked at all."""
    make_hostile(tmp_path, monkeypatch, "audio.load_many", "audio.info")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a file is opened in the process of the command")

    monkeypatch.setattr(audio, "open_stream", opened)
    monkeypatch.setattr(image, "_opened", opened)
    monkeypatch.setattr(Image, "open", opened)
    return made


Command = Callable[[Path, Path], list[object]]  # of the made things and the model
NAMED: dict[str, Command] = {
    "classify": lambda made, model: ["classify", model, made / "new"],
    "predict": lambda made, model: ["predict", made / "c.lance", made / "new"],
    "names": lambda made, model: [
        *("predict", model, made / "new", "--names", "dog,cat", "--names-model", made),
        *("--class-names", made / "names.txt"),
    ],
    "choose": lambda made, model: ["choose", model, made / "more", "--into", made / "chosen"],
    "check": lambda made, model: [
        *("check", model, made / "new", "--dump", made / "values.npz", "--engine", "torch")
    ],
    "embed": lambda made, model: [
        *("embed", model, made / "new", "--into", made / "new.lance", "--engine", "torch")
    ],
}


@pytest.mark.parametrize("name", NAMED)
def test_a_command_names_the_file_and_goes_on(
    name: str, hostile: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {"dog": 0}
    monkeypatch.setattr(
        "penult.fewshot.zeroshot.text_embedder",
        lambda _: lambda texts: np.eye(99)[[vectors.setdefault(x, len(vectors)) for x in texts]],
    )
    for folder in ("chosen", "new.lance"):
        shutil.rmtree(hostile / folder, ignore_errors=True)
    said = ask(*NAMED[name](hostile, tiny))
    assert said.code == 3, said.out + said.err
    assert "Traceback" not in said.out + said.err
    whole = " ".join((said.out + said.err).split())
    assert "crash.wav" in whole and "SIGSEGV" in whole
    if name in ("classify", "predict", "names"):
        assert all(f"{good}.wav" in said.out for good in GOOD)


REFUSED: dict[str, Command] = {
    "search": lambda made, model: ["search", made / "c.lance", made / "new" / "crash.wav"],
    "teach": lambda made, model: ["teach", made / "c.lance", "x", made / "new" / "crash.wav"],
    "inspect": lambda made, model: ["inspect", model, "--verify", made / "new" / "crash.wav"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_for_one_file_is_an_error_in_words(name: str, hostile: Path, tiny: Path) -> None:
    said = ask(*REFUSED[name](hostile, tiny))
    assert said.code == (3 if name == "teach" else 2), said.out + said.err
    assert "crash.wav" in said.err and "SIGSEGV" in said.err and "Traceback" not in said.err


def test_good_files_alone(hostile: Path, tiny: Path, tmp_path: Path) -> None:
    """All of these open their files in a worker, since nothing else can here."""
    good = hostile / "new" / "a.wav"
    assert ask("search", hostile / "c.lance", good).code == 0
    assert ask("inspect", tiny, "--verify", good).code == 0
    assert ask("convert", tiny, tmp_path / "e", "--verify", good).code == 0
    assert ask("classify", tiny, good, "--workers", 0).code == 3  # here none may be opened


@pytest.mark.parametrize("name", ["hang", "alloc"])
def test_a_file_that_hangs_or_takes_all_memory(
    name: str, hostile: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(hostile / "in", folder)
    (folder / "crash.wav").rename(folder / f"{name}.wav")
    said = ask("classify", tiny, folder, "--time-limit", 3, "--workers", 1)
    assert said.code == 3
    assert ("3 s" if name == "hang" else "memory") in said.err
    assert all(f"{good}.wav" in said.out for good in GOOD)


def test_rows_that_are_embedded_again(
    hostile: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(hostile / "c.lance", tmp_path / "c.lance")
    said = ask("embed", tiny, hostile / "in", "--into", tmp_path / "c.lance", "--engine", "torch")
    assert said.code == 0, said.err  # the first rows are compared, and a lost one is no evidence
    monkeypatch.setattr(audio, "RESAMPLER", "another version")
    said = ask("migrate", tmp_path / "c.lance")
    assert said.code == 3, said.out + said.err
    assert "crash.wav" in said.err and "SIGSEGV" in said.err and "4 rows of 5" in said.out


def test_calls_of_python(hostile: Path, tiny: Path) -> None:
    bad, good = hostile / "new" / "crash.wav", hostile / "new" / "a.wav"
    classifier, collection = load(tiny), Collection.open(hostile / "c.lance")
    embedder = Embedder.from_classifier(classifier)
    calls: dict[str, Callable[[Path], Any]] = {
        "classify": classifier.classify,
        "embed": embedder.embed,
        "windows": lambda path: embedder.run(path, window=0.2),
        "predict": ClassSpace(collection).predict,
        "transform": lambda path: EmbeddingTransformer(tiny).fit_transform([path]),
        "search": lambda path: collection.search(path, embedder=embedder),
    }
    for name, call in calls.items():
        assert len(getattr(call(good), "ids", call(good))), name
        kind = UsageError if name == "search" else ItemError
        with pytest.raises(kind, match="SIGSEGV"):
            call(bad)
    summary = collection.add(embedder, hostile / "new")
    assert (summary.done, summary.failed) == (4, 1)


def test_one_worker_for_many_calls(made: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is started once, and for arrays never; whoever wants none has none."""
    start, started = workers._start_process, list[int]()

    def counted(*pipes: int) -> Any:
        process = start(*pipes)
        started.append(process.pid)
        return process

    monkeypatch.setattr(workers, "_start_process", counted)
    monkeypatch.setattr(workers, "_KEPT", workers.KeptWorkers(4))
    classifier = penult.load(tiny)
    paths = [made / "in" / f"{name}.wav" for name in GOOD]
    classifier.classify([soundfile.read(path, dtype="float32")[0] for path in paths])
    assert not started
    with decoding_as(Decoding()):
        here = [classifier.classify(path)[0].logits for path in paths]
    assert not started
    there = [classifier.classify(path)[0].logits for path in paths]
    assert len(started) == 1
    assert np.array_equal(here, there)
    os.kill(started[0], 9)  # while it waits
    assert classifier.classify(paths[0])[0].label and len(started) == 2


def test_a_forked_process_has_workers_of_its_own(made: Path, tiny: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    path = made / "in" / "a.wav"
    expected = penult.load(tiny).classify(path)[0].label  # a worker waits now
    child = os.fork()
    if not child:
        found = list(workers.decode(from_paths([path], "audio"), WANTED, Decoding(workers=1)))
        os._exit(0 if len(found[0].content.values) == int(0.4 * RATE) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert penult.load(tiny).classify(path)[0].label == expected
