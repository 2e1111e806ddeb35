"""The guided tour runs from beginning to end, and what it claims is what its clips give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import penult
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.models.specs import demo_folder


def test_the_tour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    out = tmp_path / "tour"
    assert run(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for step in (
        "1 · inspect",
        "2 · classify",
        "3 · embed",
        "4 · search",
        "5 · one-shot",
        "6 · map",
    ):
        assert step in said
    assert "← head" in said and "head proved" in said
    with Image.open(out / "map.png") as picture:
        assert min(picture.size) > 500 and len(set(picture.resize((60, 60)).getdata())) > 20

    assert run(["demo", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["embed"]["skipped"] == Collection.open(out / "clips.lance").count == 128
    # The card's figures, by clips and weights that come with the package.
    assert report["classify"] == {"right": 64, "of": 64}
    assert report["one_shot"]["right"] / report["one_shot"]["of"] > 0.9
    assert len(report["one_shot"]["words"]) == 8


def test_the_new_words_are_not_the_classifiers(tmp_path: Path) -> None:
    """The one-shot words have no class, and the clips of known words are right by the logits."""
    clf = penult.load("demo")
    clips = demo_folder().parent / "clips"
    assert not {"apple", "banana", "eight", "left", "nine", "no", "right", "yes"} & set(clf.labels)
    best = clf.classify(sorted(clips.glob("two_*.flac")))
    assert {p.label for p in best} == {"two"}
    assert all(np.argmax(p.logits) == clf.labels.index("two") for p in best)
