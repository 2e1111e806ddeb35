"""Taught classes mean the same until somebody teaches: versions, undo and refit."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import penult
from penult.analysis.space import Space
from penult.collection.collection import Collection
from penult.collection.reader import Reader
from penult.embedding.embedder import Embedder
from penult.errors import LabelsError, StoreError
from penult.fewshot import classspace, scorers, versions
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import Examples, moves, of_several
from test_cli import Said, ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
TAUGHT = ("british-man", "oxford-woman", "new-york-man")


def clips_of(*voices: str, words: tuple[str, ...] = WORDS) -> list[Path]:
    return [CLIPS / f"{word}_{voice}.flac" for word in words for voice in voices]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """A collection of the clips of three voices."""
    path = tmp_path_factory.mktemp("store") / "words.lance"
    Collection.open(path).add(embedder, clips_of(*TAUGHT))
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "words.lance"))


@pytest.fixture(scope="module")
def taught(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes of three examples; a test takes a copy."""
    place = Path(shutil.copytree(made, tmp_path_factory.mktemp("taught") / "words.lance"))
    done = ask("teach", place, "--from", "{}_*")
    assert done.code == 0, done.err
    return place


@pytest.fixture
def known(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "words.lance"))


@pytest.fixture
def asked(tmp_path: Path) -> list[Path]:
    """Clips that no collection has, under other names."""
    folder = tmp_path / "asked"
    folder.mkdir()
    return [Path(shutil.copy(clip, folder)) for clip in clips_of("scottish-man")[:4]]


def numbers(done: Said) -> list[Any]:
    """Labels, probabilities and p-values."""
    assert done.code == 0, done.err
    return [[p["id"], p["label"], p["scores"], p["p_value"]] for p in done.json["predictions"]]


def history(place: Path) -> list[tuple[int, bool, bool]]:
    done = ask("classes", place, "--history", "--json")
    return [(one["number"], one["current"], one["undone"]) for one in done.json["versions"]]


def test_recordings_that_are_added_change_no_prediction(
    known: Path, embedder: Embedder, asked: list[Path]
) -> None:
    windows = ("--window", 0.3, "--hop", 0.15)
    before, cut = (
        ask("predict", known, *asked, "--json"),
        ask("predict", known, *asked, *windows, "--json"),
    )
    more = clips_of("american-woman", "scottish-man", words=("apple", "banana", "yes", "no"))
    Collection.open(known).add(embedder, more)
    after = ask("predict", known, *asked, "--json")
    assert numbers(after) == numbers(before)
    assert numbers(ask("predict", known, *asked, *windows, "--json")) == numbers(cut)
    assert after.json["version"] == before.json["version"]
    assert after.json["unknown"] == before.json["unknown"]
    assert after.json["accuracy"] == before.json["accuracy"]
    # A refit sees the rows that came; undone, the numbers are those of yesterday again.
    assert ask("teach", known, "--refit").code == 0
    refitted = ask("predict", known, *asked, "--json")
    assert numbers(refitted) != numbers(before) and refitted.json["version"]["number"] == 2
    done = ask("teach", known, "--undo", "--json")
    assert done.json["undone"] == "refit" and done.json["version"]["number"] == 1
    assert numbers(ask("predict", known, *asked, "--json")) == numbers(before)


def test_few_examples_are_told_from_the_rows_that_were_there(
    store: Path, embedder: Embedder, asked: list[Path]
) -> None:
    """One example: thresholds come from other rows, which are kept with the version."""
    assert ask("teach", store, "three", CLIPS / "three_british-man.flac").code == 0
    before = ask("predict", store, *asked, "--json")
    Collection.open(store).add(embedder, clips_of("american-woman"))
    after = ask("predict", store, *asked, "--json")
    assert numbers(after) == numbers(before)
    assert after.json["unknown"] == before.json["unknown"]


def test_an_example_whose_row_went_stays_what_it_was(
    known: Path, asked: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    before = numbers(ask("predict", known, *asked, "--json"))
    gone = Collection.open(known)
    gone.reader.open_rows().delete("id LIKE '%zero_british-man%'")
    done = ask("predict", known, *asked, "--json")
    assert numbers(done) == before
    assert "1 mark" not in done.err
    refitted = ask("teach", known, "--refit")
    assert refitted.code == 0 and "1 mark not used" in ask("predict", known, *asked).err


def test_a_background_is_named_where_most_predictions_are_unknown(
    known: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classspace, "_MANY", len(asked))
    few = ask("predict", known, *asked, "--min-similarity", 1, "--json")
    note = few.json["background"]["note"]
    assert f"100% of {len(asked)} predictions are unknown" in note
    assert f"penult teach {known} --background 50" in note
    less = ask("predict", known, *asked[1:], "--min-similarity", 1, "--json")  # too few to tell
    assert less.json["background"]["note"] is None
    every = ask("predict", known, *asked, "--unknown", 0, "--json")
    assert every.json["background"]["note"] is None


def test_the_version_is_told_and_listed(known: Path, asked: list[Path]) -> None:
    shown = ask("predict", known, asked[0])
    assert "version 1 of " in shown.err and "teach --from {}_*: zero +3" in shown.err
    ask("teach", known, "extra", asked[0])
    found = ask("predict", known, asked[1], "--json").json["version"]
    assert (found["number"], found["change"], found["for_this_call"]) == (2, "teach: extra +1", {})
    assert (found["classes"], found["examples"]) == (9, 25)
    table = ask("classes", known, "--history").out
    assert "2 (current)" in table and "teach: extra +1" in table and "prototype" in table
    listed = ask("classes", known, "--history", "--json").json["versions"]
    assert [one["examples"] for one in listed] == [24, 25]
    assert listed[1]["level"]["level"] == 0.05 and listed[1]["settings"]["space"] == "auto"


def test_undo_goes_back_step_by_step(known: Path, asked: list[Path]) -> None:
    first = numbers(ask("predict", known, *asked, "--json"))
    ask("teach", known, "extra", asked[0])
    second = numbers(ask("predict", known, *asked, "--json"))
    ask("classes", known, "--merge", "one", "--into", "two")
    third = numbers(ask("predict", known, *asked, "--json"))
    assert first != second != third
    assert ask("teach", known, "--undo").out.startswith("taken back: merge: ")
    assert numbers(ask("predict", known, *asked, "--json")) == second
    assert ask("teach", known, "--undo").code == 0
    assert numbers(ask("predict", known, *asked, "--json")) == first
    assert history(known) == [(1, True, False), (2, False, True), (3, False, True)]
    assert ask("teach", known, "--undo", "--json").json["classes"] == []
    done = ask("teach", known, "--undo")
    assert done.code == 2 and "nothing to undo" in done.error
    # Nothing was taken out of the table of marks, and teaching goes on.
    assert len(Collection.open(known).labels()) > 24
    assert ask("teach", known, "zero", clips_of("british-man")[0]).code == 0
    assert history(known)[-1] == (4, True, False)


def test_settings_of_teach_are_kept_and_those_of_predict_are_not(
    known: Path, asked: list[Path]
) -> None:
    once = ask("predict", known, *asked, "--method", "knn", "--several", "--json").json
    assert (once["method"], once["several"]) == ("knn", True)
    assert once["version"]["for_this_call"] == {"method": "knn", "several": True}
    assert "method knn for this call" in ask("predict", known, *asked, "--method", "knn").err
    again = ask("predict", known, *asked, "--json").json
    assert (again["method"], again["several"]) == ("prototype", False)
    assert ask("teach", known, "--method", "knn", "--space", "raw").code == 0
    for _ in range(2):
        kept = ask("predict", known, *asked, "--json").json
        assert (kept["method"], kept["space"], kept["version"]["number"]) == ("knn", "raw", 2)
    ask("teach", known, "extra", asked[0])
    assert ask("predict", known, *asked, "--json").json["method"] == "knn"
    assert ask("predict", known, *asked, "--method", "prototype", "--json").json["space"] == "raw"
    assert ask("teach", known, "--method", "auto", "--json").json["version"]["method"]
    assert (
        ask("classes", known, "--history", "--json").json["versions"][-1]["settings"]["method"]
        is None
    )
    for _ in range(3):
        ask("teach", known, "--undo")
    first = ask("predict", known, *asked, "--json").json
    assert (first["method"], first["space"], first["version"]["number"]) == (
        "prototype",
        "shrink",
        1,
    )


def test_what_cannot_be_fitted_changes_nothing(store: Path) -> None:
    done = ask("teach", store, "one", clips_of("british-man")[1], "--method", "ridge")
    assert (
        done.code == 2 and "counter-examples" in done.error and "Nothing was changed" in done.error
    )
    assert ask("classes", store, "--json").json["classes"] == []
    assert ask("teach", store, "one", clips_of("british-man")[1]).code == 0


def test_an_example_of_another_class_is_told_and_moves(known: Path, asked: list[Path]) -> None:
    slip = clips_of("british-man", words=("zero",))[0]
    done = ask("teach", known, "one", slip, "--json")
    assert done.code == 0 and "was an example of 'zero' and is one of 'one' now" in done.err
    assert "--undo takes it back" in done.err and "--several" in done.err
    assert done.json["moved"] == [{"id": str(slip), "region": "whole", "old": "zero", "new": "one"}]
    counts = {one["name"]: one["yes"] for one in done.json["classes"]}
    assert (counts["zero"], counts["one"]) == (2, 4)
    assert not ask("predict", known, *asked, "--json").json["several"]
    back = ask("teach", known, "--undo", "--json").json
    assert {one["name"]: one["yes"] for one in back["classes"]} == dict.fromkeys(WORDS, 3)
    both = ask("teach", known, "one", slip, "--several", "--json")
    assert both.json["moved"] == [] and "was an example" not in both.err
    counts = {one["name"]: one["yes"] for one in both.json["classes"]}
    assert (counts["zero"], counts["one"]) == (3, 4)
    assert ask("predict", known, *asked, "--json").json["several"]  # kept


def test_marks_of_old_for_several_classes_go_on_and_are_told(
    store: Path, asked: list[Path]
) -> None:
    """A collection without versions, as earlier ones are."""
    collection = Collection.open(store)
    for word in ("zero", "one", "two"):
        for clip in clips_of(*TAUGHT, words=(word,)):
            collection.label(str(clip), "whole", word, who="me", source="test")
    twice = str(clips_of("british-man", words=("zero",))[0])
    collection.label(twice, "whole", "one", who="me", source="test")
    done = ask("predict", store, *asked, "--json")
    assert done.json["several"] and "marked for several classes each" in done.err
    assert ask("teach", store, "--single").code == 0
    assert not ask("predict", store, *asked, "--json").json["several"]


def test_marks_from_elsewhere_make_a_version(known: Path, asked: list[Path]) -> None:
    row = str(clips_of("british-man", words=("zero",))[0])
    Collection.open(known).label(row, "whole", "one", "no", who="me", source="test")
    done = ask("predict", known, *asked, "--json").json
    assert done["version"]["number"] == 2
    assert ask("predict", known, *asked, "--json").json["version"]["number"] == 2


def test_a_rename_changes_names_alone(known: Path, embedder: Embedder, asked: list[Path]) -> None:
    before = numbers(ask("predict", known, *asked, "--json"))
    Collection.open(known).add(embedder, clips_of("american-woman"))
    ask("classes", known, "--rename", "two", "deux")
    after = numbers(ask("predict", known, *asked, "--json"))
    named = [
        [i, "deux" if name == "two" else name, list(s.values()), p] for i, name, s, p in before
    ]
    assert [[i, name, list(s.values()), p] for i, name, s, p in after] == named


def test_versions_are_compared_where_none_is_the_current_one(store: Path) -> None:
    Collection.open(store).label(str(clips_of("british-man")[0]), "whole", "zero", who="me",
                                 source="test")  # fmt: skip
    done = ask("classes", store, "--diff", "99")
    assert done.code == 2 and "99:99" not in done.error and "--refit" in done.error


@pytest.mark.parametrize("low", [False, True])
def test_low_accuracy_is_told(store: Path, asked: list[Path], low: bool) -> None:
    """Two classes: words, of which some clips are of the other one, and clips of the same words."""
    clips = clips_of(*TAUGHT)
    one = clips[::2] if low else [*clips[:11], clips[15]]
    for name, some in (("knot", one), ("ruff", [clip for clip in clips if clip not in one])):
        assert ask("teach", store, name, *some).code == 0
    best = max(ask("predict", store, *asked, "--json").json["accuracy"].values())
    told = ask("predict", store, *asked).err
    assert (best < 0.75) == low == ("low accuracy" in told) and 0.4 < best < 0.99, best


def test_what_would_change_is_counted(known: Path, embedder: Embedder) -> None:
    none = ask("classes", known, "--diff", "now", "--json").json
    assert (none["changed"], none["rows"], none["old"], none["new"]) == (0, 24, 1, None)
    Collection.open(known).add(embedder, clips_of("scottish-man", words=("yes", "no", "apple")))
    before = ask("predict", known, "--json").json["predictions"]
    ask("classes", known, "--merge", "one", "--into", "two")
    now = ask("predict", known, "--json").json["predictions"]
    differ = [(a["label"], b["label"]) for a, b in zip(before, now, strict=True)
              if a["label"] != b["label"]]  # fmt: skip
    found = ask("classes", known, "--diff", "1", "--json").json
    assert found["rows"] == 27 and found["changed"] == len(differ) >= 3
    assert {(c["from"], c["to"]): c["rows"] for c in found["changes"]} == {
        pair: differ.count(pair) for pair in differ
    }
    assert (
        "would be labelled differently: version 1 → version 2"
        in ask("classes", known, "--diff", "1:2").out
    )
    for text, message in (
        ("x", "now, a version"),
        ("7", "there is no version 7"),
        ("1:", "now, a"),
    ):
        done = ask("classes", known, "--diff", text)
        assert done.code == 2 and message in done.error


def test_a_class_file_keeps_versions(known: Path, asked: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "words.npz"
    assert ask("classes", known, "--save", file).code == 0
    rows = numbers(ask("predict", known, *asked, "--json"))
    assert numbers(ask("predict", file, *asked, "--json")) == rows
    assert ask("teach", file, "extra", asked[0]).code == 0
    assert ask("classes", file, "--remove", "zero").code == 0
    assert history(file) == [(1, False, False), (2, False, False), (3, True, False)]
    assert ask("teach", file, "--undo").code == 0
    assert {one["name"] for one in ask("classes", file, "--json").json["classes"]} == {
        *WORDS,
        "extra",
    }
    assert ask("teach", file, "--undo").code == 0
    assert history(file) == [(1, True, False), (2, False, True), (3, False, True)]
    assert numbers(ask("predict", file, *asked, "--json")) == rows
    done = ask("classes", file, "--diff", "now", "--json")
    assert (done.json["rows"], done.json["changed"]) == (24, 0)


def test_one_example_in_a_file_keeps_the_rows_it_was_told_from(
    store: Path, asked: list[Path], tmp_path: Path
) -> None:
    ask("teach", store, "three", CLIPS / "three_british-man.flac")
    ask("classes", store, "--save", tmp_path / "c.npz")
    rows, file = (ask("predict", one, *asked, "--json") for one in (store, tmp_path / "c.npz"))
    assert numbers(rows) == numbers(file) and rows.json["unknown"] == file.json["unknown"]


def test_what_was_kept_is_checked(known: Path, asked: list[Path]) -> None:
    table = Collection.open(known).reader.side_table("taught")
    texts = [row["about"] for row in table.to_pylist() if row["kind"] == "version"]
    assert len(texts) == 1
    lancedb.connect(known).open_table("taught").update(
        where="kind = 'version'", values={"about": texts[0].replace("prototype", "knn")}
    )
    done = ask("predict", known, asked[0])
    assert done.code == 1 and "not as it was kept" in done.error


def test_other_numbers_from_the_same_version_are_told(
    known: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_TOLERANCE", -1.0)
    monkeypatch.setattr(versions, "_probabilities", lambda fitted: [[0.5]])
    assert "probabilities of its examples differ" in ask("predict", known, asked[0]).err


def test_where_nothing_may_be_written_it_predicts(
    store: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = str(clips_of(*TAUGHT)[0])
    Collection.open(store).label(row, "whole", "x", who="me", source="test")

    def refuse(*_: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(Reader, "append", refuse)
    done = ask("predict", store, *asked, "--json")
    assert done.code == 0 and done.json["version"] is None
    assert "could not be kept as a version: read-only" in done.err


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fitted to hold examples out: scorers, and spaces without some examples."""
    found: list[str] = []
    for place, name in ((scorers, "held_out"), (Space, "without")):
        real = getattr(place, name)

        def counted(*given: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            found.append(_name)
            return _real(*given, **options)

        monkeypatch.setattr(place, name, counted)
    return found


def without_scores(place: Path) -> None:
    """Make the one version of a collection one of before, which kept no held-out scores."""
    import lancedb

    table = lancedb.connect(place).open_table("taught")
    (row,) = [row for row in table.to_arrow().to_pylist() if row["kind"] == "version"]
    kind, about = json.loads(row["about"])
    del about["calibration"], about["parts"]["scores"]
    text = json.dumps([kind, about])
    id = hashlib.sha256(text.encode()).hexdigest()
    table.update(where="kind = 'version'", values={"about": text, "id": id})


@pytest.mark.parametrize(
    "settings",
    [
        (), ("--method", "agile"), ("--groups", "*_{}"),
        *(pytest.param(words, marks=pytest.mark.slow) for words in
          (("--method", "logistic"), ("--several",), ("--space", "raw"), ("one",))),
    ],
)  # fmt: skip
def test_a_prediction_holds_no_example_out_again(
    store: Path, asked: list[Path], folds: list[str], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    done = (
        ask("teach", store, "one", *clips_of(*TAUGHT, words=("one",)))
        if settings == ("one",)
        else ask("teach", store, "--from", "{}_*", *settings)
    )
    assert done.code == 0 and folds.count("held_out") > 0, done.err
    fresh = tmp_path / "c.npz"
    assert ask("classes", store, "--save", fresh).code == 0
    folds.clear()
    found, file = (ask("predict", place, *asked, "--json") for place in (store, fresh))
    assert folds == []
    assert numbers(file) == numbers(found)
    curve = ask("classes", store, "--curve", "one", "--json")
    assert curve.code == (2 if settings == ("one",) else 0) and folds == []
    # A version of before has no held-out scores: they come out again, and so does all else.
    without_scores(store)
    before = ask("predict", store, *asked, "--json")
    assert folds.count("held_out") > 0
    assert numbers(before) == numbers(found)
    assert {n: v for n, v in before.json.items() if n not in ("place", "version")} == {
        n: v for n, v in found.json.items() if n not in ("place", "version")
    }
    assert ask("classes", store, "--curve", "one", "--json").json == curve.json


def test_a_rename_and_an_undo_keep_the_held_out_scores(
    known: Path, asked: list[Path], folds: list[str], tmp_path: Path
) -> None:
    before = numbers(ask("predict", known, *asked, "--json"))
    assert ask("classes", known, "--rename", "zero", "nought").code == 0
    assert ask("teach", known, "one", CLIPS / "two_oxford-woman.flac", "--mark", "no").code == 0
    folds.clear()
    assert ask("teach", known, "--undo").code == 0 and ask("teach", known, "--undo").code == 0
    assert numbers(ask("predict", known, *asked, "--json")) == before and folds == []
    file = tmp_path / "c.npz"
    ask("classes", known, "--save", file)
    for mark in ("unsure", "no"):  # of earlier versions a file keeps no scores
        assert ask("teach", file, "one", CLIPS / "two_oxford-woman.flac", "--mark", mark).code == 0
    with np.load(file) as parts:
        own = [parts[name].tobytes() for name in parts if name.startswith("part:")]
    assert sum(one.startswith(b"PK") for one in own) == 1
    folds.clear()
    assert len(numbers(ask("predict", file, *asked, "--json"))) == 4 and folds == []


def test_each_vector_is_written_once(store: Path) -> None:
    """Examples that are taught one by one: the table grows with the examples, not their square."""
    space = ClassSpace(Collection.open(store))
    for clip in clips_of(*TAUGHT):
        space.add(clip.name.split("_")[0], clip)
        _ = space.fitted
    rows = Collection.open(store).reader.side_table("taught").to_pylist()
    parts = {row["id"]: row["data"] for row in rows if row["kind"] == "part"}
    last = [json.loads(row["about"])[1] for row in rows if row["kind"] == "version"][-1]
    vectors = [np.load(io.BytesIO(parts[id])) for id in last["parts"]["vectors"]]
    assert sum(len(one) for one in vectors) == 24 and last["examples"] == 24
    taught = ClassSpace(Collection.open(store))
    assert np.array_equal(taught.examples.vectors, space.examples.vectors)


def test_python_has_the_history(store: Path, asked: list[Path]) -> None:
    space = ClassSpace(Collection.open(store), method="knn")
    space.add("one", clips_of(*TAUGHT, words=("one",)))
    space.add("two", clips_of(*TAUGHT, words=("two",)))
    first = space.predict(asked)
    assert ClassSpace(Collection.open(store)).fitted.method == "knn"  # kept with the teaching
    space.add("two", clips_of("british-man", words=("one",)))
    assert [one.change for one in space.history.versions] == ["teach: two +3"]
    _ = space.fitted
    assert space.history.undo() == "teach: one −1, two +1"
    again = space.predict(asked)
    assert [p.scores.tolist() for p in again] == [p.scores.tolist() for p in first]
    assert space.history.current is not None and space.history.current.number == 1
    with pytest.raises(LabelsError, match="no version 9"):
        space.history.diff(9)


def test_moves_are_what_changed_class() -> None:
    one = Examples.empty(2).with_marks("a", [("1", "whole"), ("2", "whole")], np.eye(2))
    two = one.with_named(["b"], [("1", "whole")], [[1, 0]], several=False)
    assert [(m.id, m.old, m.new) for m in moves(one, two)] == [("1", "a", "b")]
    both = one.with_named(["b"], [("1", "whole")], [[1, 0]])
    assert moves(one, both) == [] and of_several(both) and not of_several(two)
    no = one.with_named(["b"], [("1", "whole")], [[1, 0]], "no", several=False)
    assert no.marks[0] == {"a": "yes", "b": "no"}


def damage(store: Path, kind: str, number: int = -1) -> str:
    """Change a byte of one entry, or of the first part that the last version names so; its id."""
    table = lancedb.connect(store).open_table("taught")
    rows = table.to_arrow().sort_by("when").to_pylist()
    if kind in ("change", "version", "undone"):
        row = [one for one in rows if one["kind"] == kind][number]
        text = row["about"].replace('"when": "2', '"when": "3', 1)
        table.update(where=f"id = '{row['id']}'", values={"about": text})
        return str(row["id"])
    of, name = kind.split(".")
    parts = json.loads([one for one in rows if one["kind"] == of][number]["about"])[1]["parts"]
    (row,) = [one for one in rows if one["id"] in (parts[name], parts[name][0])]
    broken = row["data"][:-1] + bytes([row["data"][-1] ^ 1])
    table.delete(f"id = '{row['id']}'")
    data = pa.table({name: [{**row, "data": broken}[name]] for name in table.schema.names},
                    schema=table.schema)  # fmt: skip
    table.add(data)
    return str(row["id"])


@pytest.fixture(scope="module")
def changed(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A collection of three versions, and the predictions of the second and of the third."""
    place = Path(shutil.copytree(taught, tmp_path_factory.mktemp("changed") / "words.lance"))
    assert ask("teach", place, "noise", CLIPS / "yes_british-man.flac").code == 0
    second = numbers(ask("predict", place, "--json"))
    assert ask("teach", place, "zero", CLIPS / "one_british-man.flac", "--mark", "no").code == 0
    return place, second, numbers(ask("predict", place, "--json"))


@pytest.fixture
def three(changed: tuple[Path, Any, Any], tmp_path: Path) -> tuple[Path, Any, Any]:
    return Path(shutil.copytree(changed[0], tmp_path / "words.lance")), *changed[1:]


@pytest.mark.parametrize("kind", ["version", "version.vectors", "version.space", "version.scores"])
def test_a_damaged_version_is_named_and_stepped_over(
    three: tuple[Path, Any, Any], kind: str
) -> None:
    store, second, third = three
    damage(store, kind)
    refused = ask("predict", store)
    assert refused.code == 1 and "version 3 of 2" in refused.error
    assert f"teach {store} --undo" in refused.error and "--refit" in refused.error
    listed = ask("classes", store, "--history", "--json")
    assert listed.code == 0 and "version 3 of 2" in listed.json["damage"]
    assert [one["damaged"] for one in listed.json["versions"]] == [False, False, kind == "version"]
    assert "version 3 of 2" in ask("classes", store).err  # and the marks are listed
    fitted = ask("teach", store, "--refit", "--json")  # the same rows and marks: the same classes
    assert fitted.code == 0 and fitted.json["version"]["number"] == 4
    assert numbers(ask("predict", store, "--json")) == third
    # A part of the same content is written anew, and so is whole again; a text is not.
    assert ask("teach", store, "--undo").code == (1 if kind == "version" else 0)
    assert ask("predict", store).code == (1 if kind == "version" else 0)
    assert ask("teach", store, "--undo").code == 0
    assert history(store)[1] == (2, True, False)
    assert numbers(ask("predict", store, "--json")) == second


def test_a_damaged_change_is_stepped_over(three: tuple[Path, Any, Any]) -> None:
    store, second, third = three
    damage(store, "change")
    assert numbers(ask("predict", store, "--json")) == third  # its version is whole
    undone = ask("teach", store, "--undo")
    assert undone.code == 0 and "damaged" in undone.out
    assert numbers(ask("predict", store, "--json")) == second
    damage(store, "undone")  # the change counts again, though its marks are gone
    refused = ask("predict", store)
    assert refused.code == 1 and "the undoing of 2" in refused.error
    assert ask("teach", store, "--undo").code == 0
    assert numbers(ask("predict", store, "--json")) == second


def test_a_damaged_first_change_says_what_works(known: Path) -> None:
    before = numbers(ask("predict", known, "--json"))
    damage(known, "change.marks")
    refused = ask("teach", known, "--undo")
    assert refused.code == 1 and "no version before it is whole. --refit" in refused.error
    assert numbers(ask("predict", known, "--json")) == before


def test_versions_of_a_class_file_are_compared(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.npz"
    voices = ("british-man", "oxford-woman")
    for name in ("zero", "one", "two"):
        files = clips_of(*voices, words=(name,))
        more = ("--model", "demo", "--tap", "prelogits") if name == "zero" else ()
        assert ask("teach", file, name, *files, *more).code == 0
    second = ClassSpace.load(file)
    second.history.undo()
    names = [[one.label for one in space.predict_collection(Collection.open(store))]
             for space in (second, ClassSpace.load(file))]  # fmt: skip
    wanted = sum(one != other for one, other in zip(*names, strict=True))
    done = ask("classes", file, "--diff", 2, "--rows", store, "--json")
    assert done.code == 0 and (done.json["rows"], done.json["changed"]) == (24, wanted)
    assert wanted and "two" in {one["to"] for one in done.json["changes"]}
    own = ask("classes", file, "--diff", "1:2", "--json")  # its examples: all were zero
    assert own.json["rows"] == 6 and {
        (one["from"], one["to"], one["rows"]) for one in own.json["changes"]
    } >= {("zero", "one", 2)}
    again = ask("classes", file, "--diff", "now")
    assert "0 of 6 rows" in again.out and "the 6 examples of the file" in again.err
    assert ask("teach", file, "--background", store).code == 0
    assert "18 rows of its background" in ask("classes", file, "--diff", 3).err
    assert ask("teach", file, "--undo").code == 0
    gone = ask("classes", file, "--diff", 4)
    assert gone.code == 2 and "that was taken back" in gone.error
    assert ask("classes", file, "--rows", store).code == 2
