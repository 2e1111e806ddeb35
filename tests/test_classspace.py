"""A class space on an embedder, on a collection and in its file; the classifier's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.errors import (
    CollectionError,
    FingerprintMismatch,
    HeadNotFound,
    ItemError,
    LabelsError,
    SpaceError,
    UsageError,
)
from penult.fewshot.classspace import ClassSpace
from zoo import save_text

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
WORDS = ("one", "two", "three", "four")
KNOWN = ("british-man", "oxford-woman", "american-woman")


def clips_of(word: str, voices: tuple[str, ...] = KNOWN) -> list[Path]:
    return [CLIPS / f"{word}_{voice}.flac" for voice in voices]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


@pytest.fixture
def words(demo_collection: Path, tmp_path: Path) -> Collection:
    import shutil

    return Collection.open(shutil.copytree(demo_collection, tmp_path / "words.lance"))


@pytest.fixture
def space(embedder: Embedder) -> ClassSpace:
    found = penult.ClassSpace(embedder)
    for word in WORDS:
        assert len(found.add(word, clips_of(word))) == 3
    return found


def test_taught_with_three_voices_it_knows_a_fourth(space: ClassSpace) -> None:
    asked = [CLIPS / f"{word}_lancashire-woman.flac" for word in WORDS]
    said = space.predict(asked, nearest=2)
    assert [one.label for one in said] == list(WORDS)
    assert isinstance(said[0], penult.Prediction) and said[0].labels == WORDS
    assert said[0].top(1)[0].label == "one" and 0.5 < said[0].score <= 1
    assert [Path(near.id).name.split("_")[0] for near in said[0].nearest] == ["one", "one"]
    assert said[0].nearest[0].similarity >= said[0].nearest[1].similarity
    near = space.predict(asked[:1], unknown=0, nearest=1)[0].nearest[0]
    assert near.id == said[0].nearest[0].id
    assert near.similarity == pytest.approx(said[0].nearest[0].similarity, abs=1e-5)


def test_a_segment_an_array_and_a_row_are_examples(space: ClassSpace, words: Collection) -> None:
    samples, rate = soundfile.read(CLIPS / "six_british-man.flac", dtype="float32")
    keys = space.add("six", [(samples, rate), (CLIPS / "six_oxford-woman.flac", 0.0, 0.4)])
    assert keys[0][0].startswith("sha256:") and keys[1][1] == "0-0.4"
    taught = ClassSpace(words)
    id = words.reader.roots.id_of(CLIPS / "six_british-man.flac")
    assert id == "clips/six_british-man.flac"
    assert taught.add("six", (id, "whole")) == taught.add("six", id) == [(id, "whole")]
    assert taught.classes[0].yes == 1


def test_names_change_and_predictions_with_them(space: ClassSpace) -> None:
    asked = CLIPS / "two_lancashire-woman.flac"
    space.rename("two", "deux")
    assert space.predict(asked)[0].label == "deux"
    space.merge(["deux", "one"], "small")
    assert space.predict(asked)[0].label == "small"
    space.remove("small")
    assert space.predict(asked, unknown=0)[0].label in ("three", "four")
    assert [one.name for one in space.classes] == ["three", "four"]


def test_an_example_marked_no_is_never_said_again(space: ClassSpace) -> None:
    asked = CLIPS / "three_lancashire-woman.flac"
    assert space.predict(asked)[0].label == "three"
    space.add("three", asked, mark="no")
    changed = space.predict(asked, unknown=0)[0]
    assert changed.label != "three" and changed.scores[changed.labels.index("three")] == 0
    space.add("three", asked, mark="unsure")  # the last mark counts
    assert space.predict(asked)[0].label == "three"


def test_adding_a_class_takes_milliseconds(words: Collection) -> None:
    space = ClassSpace(words)
    space.add_named(None, "word", where="known")
    space.predict_vectors(words.vectors()[1][:1])
    times = []
    for voice in ("british-man", "oxford-woman", "american-woman", "new-york-man", "scottish-man"):
        began = time.perf_counter()
        space.add("apple", CLIPS / f"apple_{voice}.flac")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.25  # a look-up and an append; no model is opened


def test_a_collection_keeps_the_marks(words: Collection, embedder: Embedder) -> None:
    space = ClassSpace(words)
    counts = space.add_named(
        None, "word", where="voice IN ('british-man', 'oxford-woman') AND known"
    )
    assert counts == dict.fromkeys(
        ("zero", "one", "two", "three", "four", "five", "six", "seven"), 2
    )
    space.add("one", CLIPS / "nine_british-man.flac", mark="no")
    space.rename("two", "deux")
    space.remove("seven")
    again = ClassSpace(words)
    assert [(c.name, c.yes, c.no) for c in sorted(again.classes, key=lambda c: c.name)] == [
        (c.name, c.yes, c.no) for c in sorted(space.classes, key=lambda c: c.name)
    ]
    marks = words.labels().to_pylist()
    assert len(marks) == 16 + 1 + 2 * 2 + 2  # nothing was taken out of the table
    rows = [one for one in again.predict_collection(where="known") if one.label]
    right = [one.label == Path(one.id).name.split("_")[0].replace("two", "deux") for one in rows]
    assert np.mean(right) > 0.8
    # Another reading of the same items: marks are taken along, and vectors are not.
    other = Collection.open(words.path.parent / "other.lance")
    other.add(Embedder.from_classifier(penult.load("demo"), device="cpu"), like=words)
    moved = ClassSpace(other)
    assert {c.name: (c.yes, c.no) for c in moved.classes} == {
        c.name: (c.yes, c.no) for c in again.classes
    }
    assert moved.source.manifest.dim != again.source.manifest.dim


def test_an_example_from_elsewhere_becomes_a_row(words: Collection, tmp_path: Path) -> None:
    path = tmp_path / "new.wav"
    soundfile.write(path, clip(0.6, 3, 8000), 8000)
    before = words.count
    space = ClassSpace(words)
    space.add("glide", [path, (path, 0.1, 0.5)])
    assert words.count == before + 2
    assert words.get(str(path), "0.1-0.5") is not None
    with pytest.raises(LabelsError, match="neither a file nor a row"):
        space.add("glide", tmp_path / "absent.wav")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(ItemError, match="not readable"):
        space.add("glide", tmp_path / "bad.wav")
    assert ClassSpace(words).classes[0].yes == 2


def test_the_file_predicts_as_the_space_did(
    space: ClassSpace, embedder: Embedder, tmp_path: Path
) -> None:
    path = space.save(tmp_path / "words.npz")
    assert path.stat().st_size < 20_000
    again = ClassSpace.load(path, embedder)
    vectors = embedder.embed([CLIPS / f"{word}_scottish-man.flac" for word in WORDS])
    one, other = space.predict_vectors(vectors), again.predict_vectors(vectors)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(one, other, strict=True))
    assert [a.label for a in one] == [b.label for b in other]
    another = ClassSpace.load(path, embedder, space="scale+l2", method="knn", unknown=0.2)
    assert another.fitted.method == "knn" and another.space.recipe == "scale+l2"
    reopened = ClassSpace.load(path)  # from what the file says of the model
    assert reopened.predict(CLIPS / "two_scottish-man.flac")[0].label == "two"


def test_another_space_is_fitted_to_the_same_examples(words: Collection) -> None:
    ClassSpace(words).add_named(None, "word", where="voice = 'british-man' AND known")
    raw, scaled = ClassSpace(words, space="raw"), ClassSpace(words, space="scale+l2")
    one, other = (list(s.predict_collection(where="known")) for s in (raw, scaled))
    assert np.array_equal(raw.examples.vectors, scaled.examples.vectors)
    assert any(a.scores.tolist() != b.scores.tolist() for a, b in zip(one, other, strict=True))
    assert ClassSpace(words).space.recipe == "centre"


def test_groups_are_read_from_columns_and_paths(
    words: Collection, space: ClassSpace, embedder: Embedder, tmp_path: Path
) -> None:
    found = ClassSpace(words, groups="voice")
    found.add_named(None, "word", where="known")
    groups = found.fitted.grouping.names
    assert groups is not None and len(set(groups)) == 8
    path = space.save(tmp_path / "s.npz")
    by_path = ClassSpace.load(path, embedder, groups="*_{}.flac")
    assert set(by_path.fitted.grouping.names or []) == set(KNOWN)
    again = ClassSpace.load(by_path.save(tmp_path / "t.npz"), embedder)
    assert again.fitted.grouping.names == by_path.fitted.grouping.names
    with pytest.raises(LabelsError, match="no example has a group by"):
        ClassSpace.load(path, embedder, groups="no_{}_").predict(CLIPS / "one_british-man.flac")


def test_windows_of_a_recording(space: ClassSpace, tmp_path: Path) -> None:
    parts = [soundfile.read(CLIPS / f"{w}_scottish-man.flac")[0] for w in ("one", "two")]
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), 8000)
    said = space.predict(tmp_path / "long.wav", window=0.4, hop=0.2, unknown=0)
    assert [one.region for one in said][:2] == ["0-0.4", "0.2-0.6"]
    assert said[1].detection.start == 0.2
    assert said[1].detection.probabilities.keys() == {said[1].label}


# ---- the classifier's own classes


def test_the_heads_rows_are_its_classes(words: Collection, embedder: Embedder) -> None:
    from penult.embedding.readings import head_rows

    weight = embedder.classifier.module.classifier.weight.detach().numpy()
    assert np.allclose(head_rows(embedder), weight, atol=1e-5)
    space = ClassSpace(words, unknown=0)
    space.source.use(embedder)
    names = space.add_head()
    assert names == list(embedder.classifier.labels)
    said = list(space.predict_collection(where="known"))
    own = [row["label"] for row in words.vectors("known", ["label"])[0].to_pylist()]
    assert np.mean([one.label == label for one, label in zip(said, own, strict=True)]) > 0.95
    space.add("apple", clips_of("apple"))  # one more beside them
    assert space.predict(CLIPS / "apple_scottish-man.flac")[0].label == "apple"
    assert not any(row["id"].startswith("classifier:") for row in words.labels().to_pylist())


def test_where_the_head_gives_no_classes_it_says_what_works(tiny: Path) -> None:
    for asked in ("backbone", "layer:1"):
        space = ClassSpace(Embedder.from_classifier(penult.load(tiny), tap=asked, device="cpu"))
        with pytest.raises(HeadNotFound, match=r"tap prelogits.*--from label"):
            space.add_head()


def test_a_head_that_bends_is_refused(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    from penult.embedding import readings

    def bent(embedder: Embedder, _: object) -> Callable[[np.ndarray], np.ndarray]:
        weights = np.ones((embedder.dim, len(embedder.classifier.labels)))
        return lambda z: np.tanh(z @ weights)

    monkeypatch.setattr(readings, "_head", bent)
    with pytest.raises(HeadNotFound, match="not linear"):
        readings.head_rows(embedder)


def test_the_heads_rows_survive_examples_of_another_size(embedder: Embedder) -> None:
    """Rows of weights are shorter than vectors of items: a mean of both would belong to neither."""
    space = ClassSpace(embedder, unknown=0)
    space.add_head()
    for word in ("apple", "banana", "no", "yes"):
        space.add(word, clips_of(word))
    space.add("eight", sorted(CLIPS.glob("eight_*.flac")))
    assert len(space.examples.keys) >= 20 + 8 and space.space.recipe == "raw"
    asked = [CLIPS / f"{w}_scottish-man.flac" for w in ("zero", "one", "two", "five", "six")]
    said = [one.label for one in space.predict(asked)]
    assert said == ["zero", "one", "two", "five", "six"]


def test_an_id_that_looks_like_one_of_the_head_is_kept(embedder: Embedder, tmp_path: Path) -> None:
    col = Collection.open(tmp_path / "c.lance")
    (tmp_path / "t.csv").write_text(f"path,id\n{CLIPS / 'one_british-man.flac'},classifier:1\n")
    col.add(embedder, tmp_path / "t.csv")
    ClassSpace(col).add("one", ("classifier:1", "whole"))
    assert [one.yes for one in ClassSpace(col).classes] == [1]


def test_vectors_that_begin_alike_are_different_examples(embedder: Embedder) -> None:
    space = ClassSpace(embedder, unknown=0)
    vectors = np.zeros((2, embedder.dim), np.float32)
    vectors[[0, 1], [-1, -2]] = 1  # what a ReLU gives begins with zeros
    space.add_vectors("a", vectors[:1])
    space.add_vectors("b", vectors[1:])
    assert len(space.examples.keys) == 2
    assert [one.label for one in space.predict_vectors(vectors)] == ["a", "b"]


def test_a_file_goes_on_as_the_space_would(embedder: Embedder, tmp_path: Path) -> None:
    """Its space is fitted to the examples: with more of them, to more."""
    live = ClassSpace(embedder)
    live.add("one", clips_of("one"))
    again = ClassSpace.load(live.save(tmp_path / "s.npz"), embedder)
    for space in (live, again):
        assert space.space.recipe == "raw"
        for word in ("two", "three", "four", "five", "six", "seven"):
            space.add(word, clips_of(word))
        assert space.space.recipe == "shrink"
    assert live.space.id == again.space.id


def test_nothing_is_embedded_for_a_mark_that_there_is_not(words: Collection) -> None:
    before = words.count
    space = ClassSpace(words)
    for teach in (space.add, space.add_named):
        with pytest.raises(LabelsError, match="mark 'maybe'"):
            teach("folder", [CLIPS.parent], mark="maybe")  # type: ignore[arg-type]
    assert words.count == before


# ---- what cannot be done


def test_a_setting_that_there_is_not_is_refused(space: ClassSpace, tmp_path: Path) -> None:
    path = space.save(tmp_path / "s.npz")
    with pytest.raises(UsageError, match="no setting 'methd'"):
        ClassSpace.load(path, methd="knn")
    with pytest.raises(LabelsError, match="method 'svm'"):
        ClassSpace.load(path, method="svm")
    with pytest.raises(LabelsError, match="lies between 0 and 1"):
        ClassSpace.load(path, unknown="much")
    with pytest.raises(UsageError, match="not of a str"):
        ClassSpace.load(path, "demo")  # type: ignore[arg-type]
    with pytest.raises(LabelsError, match="0 or more"):
        space.predict(clips_of("one"), nearest=-1)


def test_vectors_of_another_embedder_are_refused(
    space: ClassSpace, tiny: Path, tmp_path: Path, recordings: Path
) -> None:
    other = Embedder.from_classifier(penult.load(tiny), tap="backbone", device="cpu")
    path = space.save(tmp_path / "s.npz")
    with pytest.raises(FingerprintMismatch, match=r"weights: .* against"):
        ClassSpace.load(path, other)
    col = Collection.open(tmp_path / "other.lance")
    col.add(other, recordings)
    with pytest.raises(FingerprintMismatch, match=r"other\.lance gives other vectors"):
        list(space.predict_collection(col))


def test_bad_input_is_refused_in_words(
    embedder: Embedder, space: ClassSpace, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not of a str"):
        ClassSpace("words")  # type: ignore[arg-type]
    with pytest.raises(LabelsError, match="there is no collection"):
        ClassSpace(Collection.open(tmp_path / "none.lance"))
    with pytest.raises(LabelsError, match="lies between 0 and 1"):
        ClassSpace(embedder, unknown=1.5)
    with pytest.raises(LabelsError, match="mark 'maybe'"):
        space.add("x", clips_of("one"), mark="maybe")  # type: ignore[arg-type]
    with pytest.raises(LabelsError, match="no example of class 'x'"):
        space.add("x", [])
    with pytest.raises(LabelsError, match="whose rows could have names"):
        space.add_named(None, "word")
    with pytest.raises(SpaceError, match="not finite"):
        space.predict_vectors(np.full((1, embedder.dim), np.nan))
    with pytest.raises(SpaceError, match="do not fit"):
        space.predict_vectors(np.ones((1, 3)))
    with pytest.raises(LabelsError, match="not finite"):
        space.add_vectors("x", np.full((1, embedder.dim), np.inf))
    with pytest.raises((UsageError, CollectionError, ItemError)):
        space.predict(tmp_path / "absent.wav")
    alone = ClassSpace(embedder)
    with pytest.raises(LabelsError, match="no class has an example"):
        alone.predict(CLIPS / "one_british-man.flac")
    alone.add("one", CLIPS / "one_british-man.flac")
    assert alone.predict(CLIPS / "one_british-man.flac")[0].label == "one"
    assert "1 example of 1 class in all: too few" in str(alone.fitted.level(0.05).why)
    assert alone.predict(CLIPS / "one_british-man.flac", unknown=0)[0].label == "one"


def test_one_example_in_a_collection_is_told_from_its_rows(words: Collection) -> None:
    space = ClassSpace(words)
    space.add("six", CLIPS / "six_british-man.flac")
    said = [Path(one.id).name.split("_")[0] for one in space.predict_collection() if one.label]
    assert 3 <= len(said) <= 10 and said.count("six") >= len(said) / 2
    found = space.fitted.level(0.05)
    assert found.level is None and "rows of the collection" in str(found.basis)


def test_items_that_fail_are_skipped_if_asked(space: ClassSpace, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "good.wav", clip(0.5, 1), RATE)
    with pytest.raises(ItemError, match="not readable"):
        space.predict(tmp_path, unknown=0)
    assert len(space.predict(tmp_path, unknown=0, on_error="skip")) == 1


def test_texts_are_examples_and_rows(tmp_path: Path) -> None:
    embedder = Embedder.from_classifier(penult.load(save_text(tmp_path / "texts")), device="cpu")
    store = Collection.open(tmp_path / "texts.lance")
    store.add(embedder, ["where is my card", "is my card lost"])
    (tmp_path / "note.txt").write_text("a note in a file")
    space = ClassSpace(store)
    long = "a very long text " * 300
    assert space.add("card", ["where is my card", long])[0][0].startswith("sha256:")
    space.add("note", tmp_path / "note.txt")
    assert store.count == 4
    assert long in [row["text"] for row in store.vectors(columns=["text"])[0].to_pylist()]
    assert space.predict("where is my card", unknown=0)[0].label == "card"
    assert [one.name for one in ClassSpace(store).classes] == ["card", "note"]


def test_the_embedders_own_space_serves_unasked(tmp_path: Path) -> None:
    from penult.analysis.space import fit
    from penult.models.specs import demo_folder, load

    clips = sorted((demo_folder().parent / "clips").glob("t*.flac"))
    plain = penult.Embedder.from_classifier(load("demo"), tap="prelogits")
    own = fit("scale+l2", plain.embed(clips))
    embedder = penult.Embedder.from_classifier(load("demo"), tap="prelogits", space=own)
    saved = embedder.save(tmp_path / "own")
    collection = penult.Collection.open(tmp_path / "c.lance")
    collection.add(penult.Embedder.load(saved), clips)
    assert collection.space("embedder").id == own.id
    collection.add(penult.Embedder.load(saved), clips)
    assert len(collection.spaces()) == 1  # kept once
    assert np.array_equal(collection.vectors()[1], plain.embed(clips))  # rows stay raw
    cls = penult.ClassSpace(collection)
    for word in ("two", "three"):
        cls.add(word, [clip for clip in clips if clip.stem.startswith(word)][:3])
    assert cls.space.id == own.id
    assert [one.label for one in cls.predict(clips[-1:])] == ["two"]
    assert penult.ClassSpace(penult.Embedder.load(saved)).settings.space == "auto"


def test_former_names_work_with_a_warning(space: ClassSpace, words: Collection) -> None:
    clips, old = clips_of("one")[:1], cast(Any, space)
    values = {
        "taught": space.fitted,
        "collection": space.source.collection,
        "manifest": space.source.manifest,
        "embedder": space.source.embedder,
    }
    for name, value in values.items():
        with pytest.warns(DeprecationWarning, match=f"ClassSpace.{name} goes with the next"):
            assert getattr(space, name) is value
    with pytest.warns(DeprecationWarning):
        assert old.to_csv() == space.examples.to_csv()
    one = space.predict(clips, unknown=0, nearest=2)[0]
    with pytest.warns(DeprecationWarning):
        assert old.nearest(clips, 2) == [one.nearest]
    with pytest.warns(DeprecationWarning):
        old.use(space.source.embedder)
    with pytest.warns(DeprecationWarning):
        old.opens(lambda: space.source.embedder)
    of_rows: Any = ClassSpace(words)
    with pytest.warns(DeprecationWarning):
        counts = of_rows.add_from("word", "known", "unsure")
    assert counts == ClassSpace(words).add_named(None, "word", "unsure", "known")
    for name, value in {
        "said": (one.label,),
        "start": one.detection.start,
        "end": one.detection.end,
        "channel": one.detection.channel,
    }.items():
        with pytest.warns(DeprecationWarning, match=f"ClassPrediction.{name} goes with the next"):
            assert getattr(one, name) == value
    with pytest.warns(DeprecationWarning):
        assert cast(Any, one).window() == one.detection
    for absent in (space, one):
        with pytest.raises(AttributeError, match="no attribute 'lable'"):
            _ = cast(Any, absent).lable
