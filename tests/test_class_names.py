"""The model's own classes are named by one word everywhere, and the word of old still works."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import penult
from conftest import thinned
from penult.embedding.embedder import open_embedder
from penult.errors import UsageError
from penult.sklearn import EmbeddingTransformer
from test_cli import Said, ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
FIVE = [CLIPS / f"{word}_{who}.flac" for word in ("five", "one")
        for who in ("british-man", "scottish-man")]  # fmt: skip
VOICES = sorted(path.stem.split("_")[1] for path in CLIPS.glob("five_*.flac"))[:4]
SAMPLE = np.sin(np.arange(4000) / 9).astype(np.float32)
NAMES = [f"name {number}" for number in range(len(penult.load("demo").labels))]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path / "names.txt"


def classified(folder: Path, *options: object) -> tuple[Said, Any]:
    said = ask("classify", "demo", *FIVE, *options, "--json")
    return said, said.json["labels"] if not said.code else None


def inspected(folder: Path, *options: object) -> tuple[Said, Any]:
    said = ask("inspect", "demo", *options, "--json")
    return said, said.json["labels"] if not said.code else None


def converted(folder: Path, *options: object) -> tuple[Said, Any]:
    said = ask("convert", "demo", folder / "out", *options)
    if said.code:
        return said, None
    shown = ask("classify", folder / "out", FIVE[0], "--json").json["labels"]
    assert shown == list(penult.Embedder.load(folder / "out").classifier.labels)
    return said, shown


def embedded(folder: Path, *options: object) -> tuple[Said, Any]:
    into = folder / "c.lance"
    said = ask("embed", "demo", *FIVE, "--into", into, "--workers", "0", *options)
    if said.code:
        return said, None
    again = ask("search", into, FIVE[0], "-k", "1", "--json")  # opens the model with these names
    assert again.code == 0, again.err
    assert "--labels" not in again.err
    manifest = penult.Collection.open(into).manifest
    assert manifest is not None
    assert manifest.model["asked"]["labels"] == str(folder / "names.txt")  # the key of old
    return said, list(manifest.labels)


def checked(folder: Path, *options: object) -> tuple[Said, Any]:
    return ask("check", "demo", *FIVE, *options), NAMES


def chosen(folder: Path, *options: object) -> tuple[Said, Any]:
    words = [
        CLIPS / f"{word}_{who}.flac" for word in ("five", "one", "six", "two") for who in VOICES
    ]
    said = ask("choose", "demo", *words, "--labels", "{}_*", "--into", folder / "best", *options)
    return said, None if said.code else list(penult.load(folder / "best").labels)


COMMANDS = {
    "classify": classified, "inspect": inspected, "convert": converted, "embed": embedded,
    "check": checked, "choose": chosen,
}  # fmt: skip


@pytest.mark.parametrize("command", thinned(COMMANDS, COMMANDS.keys() - {"choose"}))
def test_a_command_takes_class_names(command: str, tmp_path: Path, names: Path) -> None:
    said, found = COMMANDS[command](tmp_path, "--class-names", names)
    assert said.code == 0, said.err
    assert found == NAMES
    assert "is called" not in said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_class_names_that_do_not_fit_are_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("only one\n")
    said, _ = COMMANDS[command](tmp_path, "--class-names", tmp_path / "few.txt")
    assert said.code == 2
    assert f"1 class names were given, and the model has {len(NAMES)} classes" in said.err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "choose"])
def test_the_option_of_old_works_with_a_note(command: str, tmp_path: Path, names: Path) -> None:
    said, found = COMMANDS[command](tmp_path, "--labels", names)
    assert said.code == 0, said.err
    assert found == NAMES
    assert "--labels FILE is now called --class-names FILE" in said.err
    said, _ = COMMANDS[command](tmp_path / "again", "--labels", names, "--class-names", names)
    assert said.code == 2 and "given twice" in said.err


def test_every_command_that_opens_a_model_takes_them() -> None:
    commands = [line.split()[1] for line in ask("--help").out.splitlines()
                if line.startswith("│ ") and line[2].isalpha()]  # fmt: skip
    opening = []
    for name in commands:
        text = ask(name, "--help").out
        if "--checkpoint" in text:
            opening.append(name)
            assert "--class-names" in text, name
            assert ("--labels" in text) == (name == "choose"), name
    assert {*COMMANDS, "predict"} <= set(opening)


def test_python_takes_class_names() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(penult.load("demo", class_names=NAMES).labels) == NAMES
        embedder = open_embedder("demo", class_names=NAMES)
        transformer = EmbeddingTransformer("demo", asked={"class_names": tuple(NAMES)})
        transformer.fit_transform([SAMPLE, SAMPLE])
    assert embedder.run(SAMPLE).labels[0] in NAMES


def test_python_takes_labels_for_one_more_version() -> None:
    with pytest.warns(DeprecationWarning, match="labels= is called class_names=") as seen:
        assert list(penult.load("demo", labels=NAMES).labels) == NAMES
    assert seen[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="labels= is called class_names="):
        assert list(open_embedder("demo", labels=NAMES).classifier.labels) == NAMES
    with pytest.raises(UsageError, match="given twice"):
        penult.load("demo", labels=NAMES, class_names=NAMES)
    with pytest.raises(UsageError, match=r"no file of class names 'absent.txt'"):
        penult.load("demo", class_names="absent.txt")


def test_a_saved_embedder_keeps_its_names(tmp_path: Path) -> None:
    """Under the key that files always had; opening it warns of nothing."""
    torch.manual_seed(0)
    model = torch.jit.trace(nn.Sequential(nn.Linear(4000, 6), nn.Tanh(), nn.Linear(6, 3)).eval(),
                            torch.zeros(1, 4000))  # fmt: skip
    model.save(tmp_path / "model.pt")
    given = ["high", "low", "noise"]
    written = _written(tmp_path / "names.txt", given)
    saved = ask("convert", tmp_path / "model.pt", tmp_path / "out", "--sample-rate", "16000",
                "--seconds", "0.25", "--class-names", written)  # fmt: skip
    assert saved.code == 0, saved.err
    assert json.loads((tmp_path / "out" / "classifier.json").read_text())["labels"] == given
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="labels= is called")
        assert list(penult.load(tmp_path / "out").labels) == given


def test_class_names_given_for_a_saved_embedder_count(tmp_path: Path) -> None:
    saved = open_embedder("demo", class_names=NAMES).save(tmp_path / "out")
    again = [f"other {number}" for number in range(len(NAMES))]
    assert list(penult.load(saved).labels) == NAMES
    assert list(penult.load(saved, class_names=again).labels) == again
    plain = open_embedder("demo").save(tmp_path / "plain")
    assert list(penult.load(plain).labels) == list(penult.load("demo").labels)
    assert not (plain / "classifier.json").exists()  # transformers' own files say everything


def _written(path: Path, names: list[str]) -> Path:
    path.write_text("\n".join(names))
    return path


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'name 1' is given more than once"):
        penult.load("demo", class_names=[*NAMES[:-1], "name 1"])


def test_a_name_that_stands_twice_is_two_classes(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    names = ["crane", "heron", "crane", "maillot", "maillot", "crane (0)"]
    wanted = ["crane (0) (0)", "heron", "crane (2)", "maillot (3)", "maillot (4)", "crane (0)"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "resnet", embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic",
        id2label=dict(enumerate(names)), num_labels=6,
    )  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32},
                    "do_resize": True, "do_normalize": False})
    )  # fmt: skip
    classifier = penult.load(tmp_path / "m")
    assert list(classifier.labels) == wanted
    space = penult.ClassSpace(penult.Embedder.from_classifier(classifier, tap="prelogits"))
    assert space.add_head() == wanted
    space.save(tmp_path / "head.npz")
    head = penult.ClassSpace.load(tmp_path / "head.npz")
    weight = classifier.module.classifier[-1].weight.detach().numpy()  # type: ignore[index, union-attr]
    found = {name: head.examples.vectors[i] for i, name in enumerate(head.examples.names)}
    for name, row in zip(wanted, weight, strict=True):
        np.testing.assert_allclose(found[name], row, rtol=1e-4, atol=1e-6)
