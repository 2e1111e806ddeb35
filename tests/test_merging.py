"""Class files of several people as one: whose mark holds, what is told, and that the way in which
files are merged makes no difference."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penult
from penult.analysis.space import RAW, fit
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.errors import FingerprintMismatch, LabelsError, StoreError
from penult.fewshot import merging, storage
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import Examples
from penult.fewshot.merging import merge_class_files
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
Marks = Mapping[str, Mapping[str, str]]


def vector_of(id: str) -> np.ndarray:
    """A vector that is the same for each item of this name."""
    seed = int(hashlib.sha256(id.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).normal(size=4).astype(np.float32)


def file_of(
    path: Path,
    marks: Marks,
    own: Mapping[str, Any] = {},
    background: Sequence[str] = (),
    weights: str = "x",
) -> Path:
    """A class file whose items have these marks."""
    vectors = np.stack([vector_of(id) for id in marks]) if marks else np.zeros((0, 4), np.float32)
    examples = Examples(vectors, tuple((id, "whole") for id in marks), tuple(marks.values()))
    rows = np.stack([vector_of(id) for id in background]) if background else None
    space = fit(RAW, np.eye(4))
    saved = storage.Saved(
        examples, space, {"weights": weights}, {}, {"space_of_examples": True, **own}, None, rows
    )
    return storage.write(path, saved)


def content(saved: storage.Saved) -> Any:
    """All that another file of the same classes would have too."""
    return (
        saved.examples.keys,
        saved.examples.vectors.tolist(),
        [dict(one) for one in saved.examples.marks],
        {key: list(map(tuple, one)) for key, one in saved.claims.items()},
        None if saved.background is None else saved.background.tolist(),
        {name: saved.settings.get(name) for name in ("space", "method", "several", "groups")},
    )


@st.composite
def files(draw: st.DrawFn) -> tuple[Marks, dict[str, Any], list[str]]:
    """Marks, settings and background; where an item has one class, no file says otherwise."""
    several = draw(st.sampled_from([None, False, True]))
    mark, marks = st.sampled_from(["yes", "no", "unsure"]), {}
    for id in draw(st.lists(st.sampled_from("abcd"), unique=True)):
        own: dict[str, str] = {}
        for name in draw(st.lists(st.sampled_from(["owl", "hawk", "lark"]), unique=True)):
            one = draw(mark)
            own[name] = "no" if several is False and one == "yes" in own.values() else one
        if own:
            marks[f"{id}.wav"] = own
    method = draw(st.sampled_from([None, "knn", "ridge"]))
    rows = draw(st.lists(st.sampled_from(["a.wav", "r.wav", "s.wav"]), unique=True))
    return marks, {"several": several, "method": method}, rows


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files(), files(), files())
def test_pairs_may_be_merged_in_any_order(tmp_path: Path, one: Any, two: Any, three: Any) -> None:
    paths = [file_of(tmp_path / f"{i}.npz", *each) for i, each in enumerate((one, two, three))]
    whole = merge_class_files(paths)._saved
    left = storage.write(tmp_path / "left.npz", merge_class_files(paths[:2])._saved)
    right = storage.write(tmp_path / "right.npz", merge_class_files(paths[1:])._saved)
    assert content(merge_class_files([left, paths[2]])._saved) == content(whole)
    assert content(merge_class_files([paths[0], right])._saved) == content(whole)
    # Whatever was merged already changes nothing, and no entry of the history is written for it.
    all_of_it = storage.write(tmp_path / "whole.npz", whole)
    again = merge_class_files([all_of_it, *paths, right, all_of_it])._saved
    assert content(again) == content(whole)
    assert again.store.entries()[0] == whole.store.entries()[0]


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files(), files())
def test_the_first_mark_of_each_class_holds(tmp_path: Path, one: Any, two: Any) -> None:
    """Counted by hand, mark by mark, where items may be of several classes."""
    ours, theirs = ({**each[1], "several": True} for each in (one, two))
    paths = [
        file_of(tmp_path / "1.npz", one[0], ours),
        file_of(tmp_path / "2.npz", two[0], theirs),
    ]
    merged = merge_class_files(paths)
    expected: dict[str, dict[str, str]] = {}
    told = 0
    for marks in (one[0], two[0]):
        for id, own in marks.items():
            for name, mark in own.items():
                told += expected.setdefault(id, {}).setdefault(name, mark) != mark
    found = merged._saved.examples
    assert {id: dict(m) for (id, _), m in zip(found.keys, found.marks, strict=True)} == expected
    assert len(merged.conflicts) == told
    for (id, _), row in zip(found.keys, found.vectors, strict=True):
        np.testing.assert_array_equal(row, vector_of(id))


def test_with_one_class_an_item_keeps_its_first(tmp_path: Path) -> None:
    single = {"several": False}
    one = file_of(tmp_path / "1.npz", {"a.wav": {"owl": "no"}}, single)
    two = file_of(tmp_path / "2.npz", {"a.wav": {"owl": "yes"}}, single)
    three = file_of(tmp_path / "3.npz", {"a.wav": {"hawk": "yes"}}, single)
    four = file_of(tmp_path / "4.npz", {"a.wav": {"lark": "yes"}}, single)
    found = merge_class_files([one, two, three, four])
    assert [dict(one) for one in found._saved.examples.marks] == [{"owl": "no", "hawk": "yes"}]
    assert [one.to_dict() for one in found.conflicts] == [
        {"id": "a.wav", "region": "whole", "class": "owl", "mark": "yes",
         "held": {"class": "owl", "mark": "no"}, "file": str(two)},
        {"id": "a.wav", "region": "whole", "class": "lark", "mark": "yes",
         "held": {"class": "hawk", "mark": "yes"}, "file": str(four)},
    ]  # fmt: skip


def test_one_item_by_two_paths(tmp_path: Path) -> None:
    """The same recording in the folders of two people is one item; another one of its name is
    refused where the whole path is the same."""
    vectors = vector_of("same")[None]

    def saved(name: str, id: str, mark: str, row: np.ndarray) -> Path:
        examples = Examples(row, ((id, "whole"),), ({"owl": mark},))
        own = storage.Saved(examples, fit(RAW, np.eye(4)), {"weights": "x"}, {})
        return storage.write(tmp_path / name, own)

    one = saved("1.npz", "/home/a/night.wav", "yes", vectors)
    two = saved("2.npz", "/home/b/night.wav", "no", vectors * (1 + 1e-5))
    other = saved("3.npz", "/home/c/night.wav", "no", vector_of("other")[None])
    found = merge_class_files([one, two, other])
    assert found._saved.examples.keys == (("/home/a/night.wav", "whole"),
                                         ("/home/c/night.wav", "whole"))  # fmt: skip
    assert [(one.mark, one.file) for one in found.conflicts] == [("no", str(two))]
    clash = saved("4.npz", "/home/a/night.wav", "yes", vector_of("other")[None])
    cosine = float(vectors[0] @ vector_of("other"))
    cosine /= float(np.linalg.norm(vectors) * np.linalg.norm(vector_of("other")))
    with pytest.raises(LabelsError, match=f"night.wav is another item.*cosine.*{cosine:.3f}"):
        merge_class_files([one, clash])


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    one = file_of(tmp_path / "1.npz", {"a.wav": {"owl": "yes"}}, {"method": "knn"})
    two = file_of(tmp_path / "2.npz", {}, {"method": "ridge", "groups": "folder", "unknown": 0.1})
    found = merge_class_files([one, two])
    assert found._saved.settings["method"] == "knn"
    assert found._saved.settings["groups"] == "folder" and found._saved.settings["unknown"] == 0.1
    assert found.notes == [f"method: knn holds; {two} has ridge"]


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    one = file_of(tmp_path / "1.npz", {"a.wav": {"owl": "yes"}})
    two = file_of(tmp_path / "2.npz", {"a.wav": {"owl": "yes"}}, weights="y")
    with pytest.raises(FingerprintMismatch, match=r"2\.npz --csv marks\.csv.*--from class marks"):
        merge_class_files([one, two])
    done = ask("merge", one, two, "--into", tmp_path / "3.npz")
    assert done.code == 2 and not (tmp_path / "3.npz").exists()
    done = ask("merge", one, tmp_path, "--into", tmp_path / "3.npz")
    assert done.code == 2 and "is a class file and" in done.err


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


def clip(word: str, voice: str) -> Path:
    return CLIPS / f"{word}_{voice}.flac"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> tuple[Path, Path]:
    """Two files by two people; they differ about one clip."""
    folder = tmp_path_factory.mktemp("two")
    one, other = ClassSpace(embedder), ClassSpace(embedder)
    for word in ("zero", "one"):
        one.add(word, [clip(word, voice) for voice in ("british-man", "oxford-woman")])
    for word in ("zero", "two"):
        other.add(word, [clip(word, voice) for voice in ("new-york-man", "scottish-man")])
    other.add("two", clip("one", "british-man"))
    return one.save(folder / "one.npz"), other.save(folder / "other.npz")


def test_a_merged_file_predicts_as_one_that_was_taught_all(
    two: tuple[Path, Path], embedder: Embedder, tmp_path: Path
) -> None:
    into = tmp_path / "both.npz"
    done = ask("merge", *two, "--into", into, "--json")
    assert done.code == 0, done.err
    assert done.json["added"] == {str(two[1]): 4}
    (conflict,) = done.json["conflicts"]
    assert conflict["id"].endswith("one_british-man.flac") and conflict["class"] == "two"
    assert conflict["held"] == {"class": "one", "mark": "yes"}
    taught = ClassSpace(embedder)
    for word in ("zero", "one"):
        taught.add(word, [clip(word, voice) for voice in ("british-man", "oxford-woman")])
    for word in ("zero", "two"):
        taught.add(word, [clip(word, voice) for voice in ("new-york-man", "scottish-man")])
    asked = [clip(word, "scottish-man") for word in ("zero", "one", "two")]
    merged = ClassSpace.load(into, embedder)
    for ours, theirs in zip(merged.predict(asked), taught.predict(asked), strict=True):
        assert ours.label == theirs.label
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    # Once more changes nothing, and the first mark is taken back with the merge.
    before = str(np.load(into)["hash"])
    assert ask("merge", *two, "--into", into).code == 0
    assert str(np.load(into)["hash"]) == before
    assert ask("teach", into, "--undo").code == 0
    assert ClassSpace.load(into).examples.keys == ClassSpace.load(two[0]).examples.keys


def test_what_is_taught_after_a_merge_holds(two: tuple[Path, Path], tmp_path: Path) -> None:
    into = tmp_path / "both.npz"
    assert ask("merge", *two, "--into", into).code == 0
    assert ask("teach", into, "three", clip("one", "british-man")).code == 0
    assert ask("merge", *two, "--into", into).code == 0
    space = ClassSpace.load(into)
    marks = dict(zip(space.examples.keys, space.examples.marks, strict=True))
    assert dict(marks[str(clip("one", "british-man")), "whole"]) == {"three": "yes"}


def test_a_class_file_teaches_a_collection_and_a_file(
    two: tuple[Path, Path], demo_collection: Path, tmp_path: Path
) -> None:
    """What is taught last counts there, as with every teaching; nothing is embedded."""
    store = Path(shutil.copytree(demo_collection, tmp_path / "words.lance"))
    rows = Collection.open(store).count
    done = ask("teach", store, "--from", "class", two[0], "--json")
    assert done.code == 0, done.err
    assert done.json["taught"] == {"zero": 2, "one": 2}
    done = ask("teach", store, "--from", "class", two[1], "--json")
    assert [one["new"] for one in done.json["moved"]] == ["two"]
    assert Collection.open(store).count == rows
    assert ask("teach", store, "--undo").code == 0
    assert {one.name for one in ClassSpace(Collection.open(store)).classes} == {"zero", "one"}
    copy = Path(shutil.copy(two[0], tmp_path / "copy.npz"))
    done = ask("teach", copy, "--from", "class", two[1], "--json")
    assert done.code == 0 and done.json["taught"] == {"zero": 2, "two": 3}
    done = ask("teach", copy, "--from", "folder", two[1])
    assert done.code == 2 and "--from class takes them" in done.err


def test_groups_that_only_one_file_knows_hold_for_all_examples(
    embedder: Embedder, tmp_path: Path
) -> None:
    """Else the level that is given for other speakers would rest on single clips of known ones."""
    voices = {"a": ("british-man", "oxford-woman"), "b": ("british-man", "new-york-man")}
    for file, names in voices.items():
        space = ClassSpace(embedder, groups="*_{}.flac" if file == "a" else None)
        for word in ("zero", "one") if file == "a" else ("two", "three"):
            space.add(word, [clip(word, voice) for voice in names])
        space.save(tmp_path / f"{file}.npz")
    done = ask("merge", tmp_path / "a.npz", tmp_path / "b.npz", "--into", tmp_path / "c.npz")
    assert done.code == 0, done.err
    space = ClassSpace.load(tmp_path / "c.npz", embedder)
    found = [Path(id).stem.partition("_")[2] for id, _ in space.examples.keys]
    assert list(space.fitted.grouping.names or ()) == found
    facts = space.fitted.to_dict(0.05)
    assert facts["groups"] == {"kind": "given", "by": "*_{}.flac", "number": 3}
    assert " in 3 groups by *_{}.flac, for other groups" in str(facts["unknown"])


def test_examples_without_a_group_are_told(tmp_path: Path) -> None:
    """Groups by a column are not in a file that was taught without them."""
    marks = {f"{name}{i}": {name: "yes"} for name in "ab" for i in range(4)}
    keys = list(marks)
    own = {"groups": "speaker", "space": "raw"}
    one = storage.read(file_of(tmp_path / "one.npz", {k: marks[k] for k in keys[:6]}, own))
    one = replace(one, groups=["p", "q"] * 3)
    storage.write(tmp_path / "one.npz", one)
    file_of(tmp_path / "two.npz", {k: marks[k] for k in keys[6:]}, {"space": "raw"})
    merged = merge_class_files([tmp_path / "one.npz", tmp_path / "two.npz"])
    (note,) = merged.notes
    assert "2 examples of" in note and "without a group by speaker" in note
    level = merged.space.fitted.level(0.05)
    said = f"{level.basis} {level.why}"
    assert "in 2 groups by speaker, for other groups (2 items without one count" in said


def test_what_another_process_writes_while_files_are_merged_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {"space": RAW}
    one = file_of(tmp_path / "one.npz", {"a.wav": {"owl": "yes"}}, raw)
    two = file_of(tmp_path / "two.npz", {"b.wav": {"owl": "yes"}}, raw)
    into, new = shutil.copy(one, tmp_path / "into.npz"), tmp_path / "new.npz"
    merged = merge_class_files([into, two])
    third = file_of(tmp_path / "third.npz", {"c.wav": {"owl": "yes"}}, raw)
    shutil.copy(third, into)
    with pytest.raises(StoreError, match="written by another process since it was read"):
        merged.space.save(into)

    def slowly(paths: Sequence[Path]) -> Any:
        found = merge_class_files(paths)
        for target in (into, new):  # meanwhile somebody else
            shutil.copy(third, target)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(merging, "merge_class_files", slowly)
        for target in (into, new):
            refused = ask("merge", two, "--into", target)
            assert refused.code == 1 and "written by another process" in refused.error
            assert storage.read(target).examples.keys == (("c.wav", "whole"),)
            new.unlink()
    merge_class_files([into, two]).space.save(into)
    assert [id for id, _ in storage.read(into).examples.keys] == ["c.wav", "b.wav"]
