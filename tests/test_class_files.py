"""Files of class spaces, and what must not break them: odd files, names and numbers."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.analysis.space import RAW, fit
from penult.embedding.embedder import Embedder
from penult.errors import LabelsError, StoreError
from penult.fewshot import storage
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import Examples
from test_cli import ask

Change = Callable[[dict[str, Any]], object]


def examples() -> Examples:
    e = Examples.empty(2).with_marks("a", [("1.wav", "whole"), ("2.wav", "whole")], np.eye(2))
    return e.with_marks("b", [("3.wav", "0-1")], [[1, 1]])


def changed(path: Path, change: Change, **arrays: Any) -> Path:
    """The file with another JSON text, or other arrays."""
    storage.write(path, storage.Saved(examples(), fit(RAW, np.eye(2)), {"weights": "x"}, {}))
    with np.load(path) as file:
        held = dict(file)
    about = json.loads(held["about"].tobytes())
    change(about)
    held["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{**held, **arrays})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["examples"][0]["marks"].update(a="maybe"), "mark 'maybe'"),
        (lambda a: a["examples"][0]["marks"].update({" ": "yes"}), "needs a name"),
        (lambda a: a.update(groups=["one"]), "1 groups for 3 examples"),
        (lambda a: a["examples"][0].update(id="2.wav"), "comes twice"),
        (lambda a: a["examples"].pop(), "for 2 examples"),
        (lambda a: a["examples"][0].pop("region"), "region"),
        (lambda a: a.update(kind="other"), "its kind is 'other'"),
        (lambda a: a.update(format="new"), "'<='"),
        (lambda a: a.update(format=9), "format 9.*upgrade penult"),
        (lambda a: a.update(settings=7), "not iterable"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, change: Change, message: str
) -> None:
    path = changed(tmp_path / "x.npz", change)
    with pytest.raises(LabelsError, match=f"x.npz .*{message}"):
        storage.read(path)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [0, np.nan], [1, 1]], np.float32)
    with pytest.raises(LabelsError, match="not finite"):
        storage.read(changed(tmp_path / "x.npz", lambda a: None, vectors=vectors))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, about=np.arange(5000), vectors=np.eye(2))
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(LabelsError, match="is no saved class space"):
        storage.read(path)


def damaged(path: Path, member: str | None = None, cut: int | None = None) -> Path:
    """A copy of the file with other bytes in the middle of a member, or cut off there."""
    data = bytearray(path.read_bytes())
    if member is not None:
        with zipfile.ZipFile(path) as archive:
            found = archive.getinfo(f"{member}.npy")
        at = found.header_offset + found.file_size // 2 + 60
        data[at : at + 2] = bytes(255 - one for one in data[at : at + 2])
        data = data[:at] if cut == 0 else data
    elif cut is not None:
        data = data[:-cut]
    made = path.with_name(f"{member}-{cut}.npz")
    made.write_bytes(data)
    return made


def test_a_damaged_class_file_names_what_is_damaged_and_gives_what_is_whole(
    tiny: Path, tmp_path: Path
) -> None:
    place, sounds = tmp_path / "own.npz", tmp_path / "sounds"
    sounds.mkdir()
    for number in range(6):
        soundfile.write(sounds / f"{'xy'[number % 2]}{number}.wav", clip(1.0, number), RATE)
    for name in "xy":
        taught = ask("teach", place, name, *sorted(sounds.glob(f"{name}*")), "--model", tiny)
        assert taught.code == 0, taught.err
    with np.load(place) as file:
        scores = next(name for name in file if name.startswith("part:"))
        vectors = file["vectors"]
    whole = storage.read(place).examples
    by = {
        damaged(place, "space"): "its space cannot be read. Its 6 examples",
        damaged(place, scores): "its history cannot be read. Its 6 examples",
        damaged(place, "space", 0): "its space, its hash cannot be read. Its 6 examples",
        damaged(place, cut=60): "its list of parts cannot be read. Its 6 examples",
        damaged(place, "vectors"): "the vectors of its examples cannot be read. The marks of its 6",
    }
    for number, (path, words) in enumerate(by.items()):
        refused = ask("predict", path, sounds)
        assert refused.code == 1 and f"{path.name} is damaged: {words}" in refused.error
        assert "teach NEW.npz --from class" in refused.error
        assert ask("classes", path, "--history").code == 1
        new = tmp_path / f"new{number}.npz"
        done = ask("teach", new, "--from", "class", path, "--model", tiny)
        assert done.code == 0 and f"{path.name} is damaged" in done.err, done.err
        found = storage.read(new).examples
        marks = dict(zip(found.keys, found.marks, strict=True))
        assert marks == dict(zip(whole.keys, whole.marks, strict=True))
        assert np.allclose(found.vectors, vectors, atol=1e-5)
        assert ask("predict", new, sounds).code == 0
    # Without its text nothing tells what the rest was; a changed file is no damaged one.
    assert "is no saved class space" in ask("predict", damaged(place, "about"), sounds).error
    other = changed(tmp_path / "other.npz", lambda a: a["settings"].update(unknown=0.5))
    assert "not as it was saved" in ask("predict", other, sounds).error


def test_names_of_files_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    key = ("caf\udce9 ;\n.wav", "whole")
    odd = Examples(np.array([[1, 0]], np.float32), (key,), ({"a\u2028b": "yes"},))
    saved = storage.Saved(odd, fit(RAW, np.eye(2)), {}, {})
    assert storage.read(storage.write(tmp_path / "x.npz", saved)).examples.keys == odd.keys


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", "no class can be called 'unknown'"),
        (" Unknown ", "no class can be called 'Unknown'"),
        ("a\nb", "would break the lines"),
        ("a\tb", "would break the lines"),
        ("*", "stands for every class"),
        ("  ", "a class needs a name"),
    ],
)
def test_names_that_no_class_can_have(tmp_path: Path, name: str, words: str) -> None:
    """At every entrance; the file is as it was."""
    saved = storage.Saved(examples(), fit(RAW, np.eye(2)), {"weights": "x"}, {"modality": "audio"})
    path = storage.write(tmp_path / "words.npz", saved)
    about = json.loads(np.load(path)["about"].tobytes())
    space = penult.ClassSpace.load(path)
    with pytest.raises(LabelsError, match=re.escape(words)):
        space.add_vectors(name, np.eye(2))
    with pytest.raises(LabelsError, match=re.escape(words)):
        space.add(name, "nowhere.wav")
    if name != "*":
        for refused in (lambda: space.rename("a", name), lambda: space.merge(["a", "b"], name)):
            with pytest.raises(LabelsError, match=re.escape(words)):
                refused()
    table = tmp_path / "marks.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "region", "class"), ("1.wav", "whole", name)])
    for words_of in (
        ("teach", path, name, "1.wav"),
        ("teach", path, "--from", "class", table),
        ("classes", path, "--rename", "a", name),
    ):
        done = ask(*words_of)
        assert done.code == 2 and done.err.count("\n") <= 3, done.err
    assert json.loads(np.load(path)["about"].tobytes()) == about


def test_old_files_with_a_class_unknown_open(tmp_path: Path) -> None:
    marks = ({"unknown": "yes"}, {"a": "yes"}, {"b": "yes"})
    old = Examples(np.eye(3, 2, dtype=np.float32) + 1, examples().keys, marks)
    saved = storage.Saved(old, fit(RAW, np.eye(2)), {"weights": "x"}, {})
    path = storage.write(tmp_path / "words.npz", saved)
    space = penult.ClassSpace.load(path)
    assert [one.name for one in space.classes] == ["unknown", "a", "b"]
    assert space.predict_vectors([[2, 1]], unknown=0)[0].label == "unknown"
    space.rename("unknown", "other")
    assert [one.name for one in space.classes] == ["other", "a", "b"]


def test_a_class_file_reads_files_as_its_examples_were_read(tiny: Path, tmp_path: Path) -> None:
    long, into, saved = tmp_path / "long.wav", tmp_path / "c.lance", tmp_path / "c.npz"
    soundfile.write(long, np.stack([clip(2.0, 0), clip(2.0, 1)], axis=1), RATE)
    cut = ("--window", "0.5s", "--channel", "each")
    assert ask("embed", tiny, long, "--into", into, *cut).code == 0
    for name, start in (("x", 0), ("y", 0.5)):
        part = ("--start", start, "--end", start + 0.5, "--channel", 1)
        assert ask("teach", into, name, long, *part).code == 0
    assert ask("classes", into, "--save", saved).code == 0
    by = {}
    for place in (into, saved):
        done = ask("predict", place, long, "--json")
        assert done.code == 0, done.err
        by[place] = [(one["region"], one["label"]) for one in done.json["predictions"]]
        assert "windows of 0.5 s" in done.err and "each channel by itself" in done.err
    assert by[saved] == by[into] and len(by[saved]) == 8
    assert "as the examples: windows" in ask("predict", saved, long).err
    whole = ask("predict", saved, long, "--window", "whole", "--channel", "mix", "--json").json
    assert [one["region"] for one in whole["predictions"]] == ["whole"]
    # A file that began without a collection: what was asked for at the last teaching holds.
    own = tmp_path / "own.npz"
    first = ask("teach", own, "x", long, "--model", tiny, "--window", "1s", "--channel", 0)
    assert first.code == 0, first.err
    said = ask("predict", own, long, "--json").json
    assert [one["region"] for one in said["predictions"]] == ["ch0:0-1", "ch0:1-2"]
    refused = ask("teach", own, "x", long, "--channel", "mix")
    assert refused.code == 2 and "--window" in refused.error
    both = ask("merge", saved, own, "--into", tmp_path / "both.npz", "--json")
    assert both.code == 0, both.err
    assert any("files are read as windows of 0.5 s" in note for note in both.json["notes"])
    assert len(ask("predict", tmp_path / "both.npz", long, "--json").json["predictions"]) == 8


def test_of_two_teachings_at_once_none_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "two.npz"
    space = ClassSpace(Embedder.from_classifier(penult.load("demo"), tap="prelogits"))
    space.add_vectors("a", np.eye(2, space.examples.dim))
    space.save(file)
    one, other = ClassSpace.load(file), ClassSpace.load(file)
    one.add_vectors("b", np.eye(3, space.examples.dim)[2:])
    one.save(file)
    other.add_vectors("c", np.eye(4, space.examples.dim)[3:])
    with pytest.raises(StoreError, match="written by another process since it was read"):
        other.save(file)
    assert {c.name for c in ClassSpace.load(file).classes} == {"a", "b"}
    other.save(tmp_path / "elsewhere.npz")
    one.add_vectors("d", np.eye(5, space.examples.dim)[4:])
    one.save(file)  # its own writing is none of another
    assert {c.name for c in ClassSpace.load(file).classes} == {"a", "b", "d"}
