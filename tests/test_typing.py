"""A user's program is checked against the types that the installed package promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import penult

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = '''\
"""Every public name once, as a user's strictly typed program has it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

import penult

Vectors = npt.NDArray[np.float32]


def opened(model: str | Path) -> tuple[penult.Classifier, list[penult.Prediction]]:
    classifier = penult.load(model)
    predictions = classifier.classify(["a.wav", "b.wav"], on_error="skip")
    return classifier, [one for one in predictions if one.label != "noise"]


def embedded(classifier: penult.Classifier, files: list[Path]) -> Vectors:
    embedder = penult.Embedder.from_classifier(classifier, tap="layer:2", pooling="mean")
    result: penult.Result = embedder.run(files, on_error="skip", window=1.0)
    folder: Path = embedder.save("reader")
    again = penult.Embedder.load(folder, device="cpu")
    width: int = again.dim
    assert result.vectors.shape[1] == width
    return again.embed(files)


def searched(place: Path, query: Vectors) -> list[tuple[str, float]]:
    collection = penult.Collection.open(place, must_exist=True)
    return [(hit.id, hit.similarity) for hit in collection.search(query, k=5, where="size > 3")]


def taught(embedder: penult.Embedder) -> str | None:
    space = penult.ClassSpace(embedder, unknown=0.05)
    space.add("frog", ["frog.wav"])
    space.save("frogs.npz")
    return space.predict(["pond.wav"])[0].label


def chosen(classifier: penult.Classifier, items: list[str], labels: list[str]) -> penult.Embedder:
    return penult.choose(classifier, items, labels, device="cpu").embedder


def cut(model: nn.Module, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    try:
        return penult.split(model, inputs).prelogits(inputs)
    except penult.PenultError:
        raise SystemExit(penult.__version__) from None
'''

WRONG = """\
import penult

penult.load(1, 2, 3)
penult.Embedder.load("reader", devise="cpu")
penult.Collection.open("calls.lance").search([1.0], k="five")
penult.choose(penult.load("demo"), [], on_error="ignore")
penult.split(None, (), output=1.5)
version: int = penult.__version__
penult.lode("demo")
penult.load("demo", class_name=["a"])
penult.load("demo", sample_rate="fast")
"""


def checked(folder: Path, name: str, text: str) -> tuple[int, str]:
    """The exit code and the messages of `mypy --strict` on a program outside of the project."""
    (folder / name).write_text(text)
    # A cache of its own: what it keeps is checked otherwise than by this project's settings.
    cache = ROOT / ".mypy_cache" / "users"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, name],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_users_program_is_well_typed(tmp_path: Path) -> None:
    code, messages = checked(tmp_path, "program.py", PROGRAM)
    assert code == 0, messages
    used = set(re.findall(r"penult\.(\w+)", PROGRAM))
    assert used == set(penult.__all__), "the program uses every public name and no other"


def test_every_wrong_use_is_reported(tmp_path: Path) -> None:
    code, messages = checked(tmp_path, "wrong.py", WRONG)
    reported = {int(line) for line in re.findall(r"^wrong\.py:(\d+): error", messages, re.M)}
    assert code == 1
    assert reported == set(range(3, len(WRONG.splitlines()) + 1)), messages
