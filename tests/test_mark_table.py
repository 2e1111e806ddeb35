"""Marks as a table, and back: `classes --csv` and `suggest --out`, read by `teach --from class`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.data.regions import Region
from penult.embedding.embedder import Embedder
from penult.errors import LabelsError
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.suggestions import suggest
from penult.fewshot.vectors import roots_of
from test_cli import Said, ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
WORDS = ("zero", "one", "two", "three")
SPANS = ((0.0, 0.2), (0.1, 0.3), (0.2, 0.4))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recordings whose two channels are two voices."""
    folder = tmp_path_factory.mktemp("stereo")
    paths = []
    for word in WORDS:
        one, rate = soundfile.read(CLIPS / f"{word}_british-man.flac")
        other, _ = soundfile.read(CLIPS / f"{word}_oxford-woman.flac")
        size = min(len(one), len(other))
        paths.append(folder / f"{word}.wav")
        soundfile.write(paths[-1], np.stack([one[:size], other[:size]], axis=1), rate)
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, stereo: list[Path]) -> Path:
    """A collection of whole clips, and of segments of single channels."""
    folder = tmp_path_factory.mktemp("store")
    lines = [f"{path},{start},{end},{channel}" for path in stereo
             for start, end in SPANS for channel in (0, 1)]  # fmt: skip
    (folder / "segments.csv").write_text("\n".join(["path,start,end,channel", *lines]) + "\n")
    clips = [CLIPS / f"{word}_{voice}.flac" for word in WORDS for voice in
             ("british-man", "oxford-woman", "new-york-man", "scottish-man")]  # fmt: skip
    store = Collection.open(folder / "words.lance")
    store.add(embedder, clips)
    store.add(embedder, folder / "segments.csv")
    return folder / "words.lance"


@pytest.fixture
def empty(made: Path, tmp_path: Path) -> Path:
    """The same rows without a mark."""
    return Path(shutil.copytree(made, tmp_path / "empty.lance"))


@pytest.fixture(scope="module")
def marked(made: Path, stereo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With marks of all kinds: of clips and segments, no, unsure, of several classes, and no for
    every class."""
    folder = tmp_path_factory.mktemp("marked")
    path = Path(shutil.copytree(made, folder / "words.lance"))
    for word in WORDS:
        clips = [CLIPS / f"{word}_{voice}.flac" for voice in ("british-man", "oxford-woman")]
        teach(path, word, *clips, "--several")
    table = folder / "segments.csv"
    table.write_text(f"path,start,end,channel\n{stereo[0]},0.1,0.3,1\n{stereo[1]},0.2,0.4,0\n")
    teach(path, "voiced", table)
    teach(path, "voiced", CLIPS / "one_oxford-woman.flac")  # which is a one as well
    cut = ("--start", 0, "--end", 0.2, "--channel", "mix")
    teach(path, "zero", stereo[1], *cut, "--mark", "no")
    teach(path, "two", CLIPS / "three_new-york-man.flac", "--mark", "unsure")
    teach(path, "--background", 3)
    return path


@pytest.fixture
def store(marked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(marked, tmp_path / "words.lance"))


def teach(*words: Any) -> Said:
    done = ask("teach", *words)
    assert done.code == 0, done.err
    return done


def table_of(place: Path, out: Path) -> str:
    done = ask("classes", place, "--csv", out, "--overwrite")
    assert done.code == 0, done.err
    return out.read_text()


def predictions(place: Path) -> list[Any]:
    done = ask("predict", place, *sorted(CLIPS.glob("*_lancashire-woman.flac"))[:6], "--json")
    assert done.code == 0, done.err
    return [[one[n] for n in ("id", "label", "scores", "p_value", "labels") if n in one]
            for one in done.json["predictions"]]  # fmt: skip


def test_marks_come_back_as_they_were(store: Path, empty: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    written = table_of(store, marks)
    lines = list(csv.DictReader(written.splitlines()))
    assert {"yes", "no", "unsure"} == {one["mark"] for one in lines}
    assert {"*", "voiced"} <= {one["class"] for one in lines}
    assert {"ch1:0.1-0.3", "0-0.2"} <= {one["region"] for one in lines}
    count = Collection.open(empty).count
    done = teach(empty, "--from", "class", marks, "--json")
    assert table_of(empty, tmp_path / "again.csv") == written
    # 0-0.2 of both channels is embedded where it is no row; all others are rows
    assert Collection.open(empty).count == count + 1
    numbers = {mark: sum(one["mark"] == mark for one in lines) for mark in ("yes", "no", "unsure")}
    assert done.json["marks"] == numbers and done.json["mark"] is None
    assert predictions(empty) == predictions(store)
    before = predictions(store)
    teach(store, "--from", "class", marks)  # into the same collection
    assert table_of(store, tmp_path / "again.csv") == written
    assert predictions(store) == before
    shown = teach(empty, "--from", "class", marks.rename(tmp_path / "MARKS.CSV")).out
    assert f"{len(lines)} examples of 5 classes, " in shown
    assert table_of(empty, tmp_path / "again.csv") == written
    assert f"marked {numbers['yes']} yes, {numbers['no']} no, {numbers['unsure']} unsure" in shown


@pytest.mark.slow
def test_regions_are_cut_from_files_that_are_no_rows(
    store: Path, embedder: Embedder, tmp_path: Path
) -> None:
    marks = tmp_path / "marks.csv"
    written = table_of(store, marks)
    other = tmp_path / "other.lance"
    Collection.open(other).add(embedder, CLIPS / "six_british-man.flac")
    teach(other, "--from", "class", marks)
    assert table_of(other, tmp_path / "again.csv") == written
    file = tmp_path / "words.npz"
    teach(file, "--from", "class", marks, "--model", "demo", "--tap", "prelogits")
    assert table_of(file, tmp_path / "again.csv") == written
    wanted = ClassSpace(Collection.open(store)).examples
    for place in (ClassSpace(Collection.open(other)), ClassSpace.load(file)):
        named = [
            (str(roots_of(place.source).path_of(id)), part) for id, part in place.examples.keys
        ]
        assert named == list(wanted.keys) and place.examples.marks == wanted.marks
        np.testing.assert_allclose(place.examples.vectors, wanted.vectors, atol=1e-4)
    teach(file, "--from", "class", marks)  # and again, into itself
    assert table_of(file, tmp_path / "again.csv") == written


def test_examples_that_are_no_files_stay_in_their_class_file(
    embedder: Embedder, tmp_path: Path
) -> None:
    space = ClassSpace(embedder)
    rng = np.random.default_rng(0)
    for name in "ab":
        space.add_vectors(name, rng.standard_normal((2, space.examples.dim)))
    space.add_head()
    space.save(tmp_path / "v.npz")
    written = table_of(tmp_path / "v.npz", tmp_path / "v.csv")
    teach(tmp_path / "v.npz", "--from", "class", tmp_path / "v.csv")
    assert table_of(tmp_path / "v.npz", tmp_path / "again.csv") == written
    refused = ask("teach", tmp_path / "new.npz", "--from", "class", tmp_path / "v.csv", "--model",
                  "demo", "--tap", "prelogits")  # fmt: skip
    assert refused.code == 2 and "v.csv line 2" in refused.err and "nor a file" in refused.err


def test_python_reads_what_it_writes(embedder: Embedder, tmp_path: Path) -> None:
    first = ClassSpace(embedder, several=True)
    for word in WORDS[:2]:
        first.add(
            word, [CLIPS / f"{word}_{voice}.flac" for voice in ("british-man", "lancashire-woman")]
        )
    first.add("one", (str(CLIPS / "zero_british-man.flac"), 0.1, 0.4), "no")
    first.add("one", CLIPS / "zero_british-man.flac")
    (tmp_path / "m.csv").write_text(first.examples.to_csv())
    for items in (str(tmp_path / "m.csv"), [tmp_path / "m.csv"]):
        space = ClassSpace(embedder)
        found = space.add_named(items, "class")
        assert found == {"zero": 2, "one": 4} and found.marks == {"yes": 5, "no": 1}
        assert space.examples.to_csv() == first.examples.to_csv()
        np.testing.assert_allclose(space.examples.vectors, first.examples.vectors, atol=1e-4)


@pytest.mark.slow
def test_one_class_is_not_taken_for_two_in_silence(
    store: Path, empty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "marks.csv"
    written = table_of(store, marks)
    teach(empty, "zero", CLIPS / "zero_british-man.flac")  # one class each is settled
    before = table_of(empty, tmp_path / "before.csv")
    refused = ask("teach", empty, "--from", "class", marks)
    assert refused.code == 2 and "one_oxford-woman.flac is marked for 'one' and" in refused.err
    assert "--several keeps both" in refused.err
    assert table_of(empty, tmp_path / "again.csv") == before
    teach(empty, "--from", "class", marks, "--several")
    assert table_of(empty, tmp_path / "again.csv") == written
    single = teach(empty, "--from", "class", marks, "--single")
    assert "the last one counts" in single.err
    assert ",one,yes" not in "".join(
        line for line in table_of(empty, tmp_path / "again.csv").splitlines()
        if "one_oxford-woman" in line
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{clip},whole,one,maybe", "line 3: mark 'maybe' is not known; yes, no, unsure"),
        ("{clip},whole,*,yes", "line 3: '*' stands for every class"),
        ("{clip},04-Mar,one,yes", "line 3: region '04-Mar' is none of an item"),
        ("{clip},3-1,one,yes", "line 3: region '3-1' is none"),
        ("{clip},1.2.3-4,one,yes", "line 3: region '1.2.3-4' is none"),
        ("{clip},summary,one,yes", "line 3: "),
        ("gone.wav,whole,one,no", "line 3: 'gone.wav' is neither a row that is here nor a file"),
        (",whole,one,no", "line 3: the path is empty"),
    ],
)
def test_a_line_that_cannot_be_is_named(empty: Path, tmp_path: Path, line: str, words: str) -> None:
    clip = CLIPS / "one_british-man.flac"
    marks, count = tmp_path / "marks.csv", Collection.open(empty).count
    head = "path,region,class,mark\n"
    marks.write_text(
        f"{head}{CLIPS / 'five_british-man.flac'},whole,five,yes\n{line.format(clip=clip)}\n"
    )
    refused = ask("teach", empty, "--from", "class", marks)
    assert refused.code == 2 and words in refused.err, refused.err
    assert Collection.open(empty).count == count
    assert not ClassSpace(Collection.open(empty)).examples.keys


def test_a_mark_that_is_given_counts_for_all_rows(empty: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    marks.write_text(
        f"path,class,mark\n{CLIPS / 'one_british-man.flac'},one,NO\n"
        f"{CLIPS / 'two_british-man.flac'},two, Yes \n{CLIPS / 'two_oxford-woman.flac'},two,\n"
    )
    done = teach(empty, "--from", "class", marks, "--json")
    assert done.json["marks"] == {"no": 1, "yes": 1} and done.json["left_out"] == 1
    assert done.json["taught"] == {"one": 1, "two": 1}
    done = teach(empty, "--from", "class", marks, "--mark", "unsure", "--json")
    assert done.json["marks"] == {"unsure": 3} and done.json["mark"] == "unsure"
    refused = ask("teach", empty, "two", marks)
    assert refused.code == 2 and "--from class" in refused.err
    assert teach(empty, "two", marks, "--mark", "yes").code == 0
    marks.write_text(f"path,class,mark\n{CLIPS / 'one_british-man.flac'},one,7\n")
    refused = ask("teach", empty, "--from", "class", marks)
    assert refused.code == 2 and "marks.csv line 2: mark 7" in refused.err.replace("'", "")


def test_a_table_beside_the_files_may_move_with_them(embedder: Embedder, tmp_path: Path) -> None:
    shutil.copy(CLIPS / "one_british-man.flac", tmp_path / "a.flac")
    (tmp_path / "m.csv").write_text("path,region,class\na.flac,0.1-0.4,one\na.flac,whole,two\n")
    space = ClassSpace(embedder)
    space.add_named(tmp_path / "m.csv", "class")
    id = str(tmp_path / "a.flac")
    assert space.examples.keys == ((id, "0.1-0.4"), (id, "whole"))
    (tmp_path / "m.csv").write_text("path,region,class\na.flac,Bavaria,one\n")  # another region
    space.add_named(tmp_path / "m.csv", "class")
    assert space.examples.marks[1] == {"one": "yes"}


def test_answers_to_suggestions_are_read(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "ask.csv"
    done = ask("suggest", store, "zero", "-k", 8, "--out", out)
    assert done.code == 0 and "--from class" in done.err and str(out) in done.err.replace("\n", "")
    lines = list(csv.DictReader(out.open()))
    assert [(one["class"], one["mark"]) for one in lines] == [("zero", "")] * 8
    refused = ask("teach", store, "--from", "class", out)
    assert refused.code == 2 and "no row has a mark" in refused.err
    answers = ["yes", "no", "", "unsure", "", "no", "", "yes"]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(one | {"mark": mark} for one, mark in zip(lines, answers, strict=True))
    shown = teach(store, "--from", "class", out)
    assert "3 rows without a mark left out" in shown.err and "2 yes, 2 no, 1 unsure" in shown.out
    space = ClassSpace(Collection.open(store))
    marks = dict(zip(space.examples.keys, space.examples.marks, strict=True))
    for one, mark in zip(lines, answers, strict=True):
        assert marks.get((one["path"], one["region"]), {}).get("zero", "") == mark
    again = {(one.id, one.region) for one in suggest(space, "zero", 8)}
    assert not again & {(o["path"], o["region"]) for o, m in zip(lines, answers, strict=True) if m}


@pytest.mark.parametrize(
    "region",
    [
        Region(), Region("segment", 1.5, 2.25), Region("segment", 1.5, None, 1),
        Region("whole", channel=0), Region("box", box=(0, 1, 5, 6)), Region("page", page=2),
        Region("box", box=(0, 1, 5, 6), page=2), Region("window", chars=(0, 420)),
        Region("summary"), Region("summary", 1.5, 2.25, 0), Region("whole", annotation="2"),
        Region("segment", 0.0, 1.0, annotation="b"),
    ],
)  # fmt: skip
def test_a_key_alone_tells_the_region(region: Region) -> None:
    assert Region.of_key(region.key) == region


def test_texts_are_found_by_their_table_and_line(tmp_path: Path) -> None:
    from penult.data.items import Item
    from penult.fewshot.mark_table import MarkTable

    (tmp_path / "t.csv").write_text("text\nan owl\na dog\n")
    id = f"{tmp_path / 't.csv'}:3"
    (tmp_path / "m.csv").write_text(f"path,region,class,mark\n{id},chars:2-5,dog,no\n")
    table = MarkTable.of(tmp_path / "m.csv")
    assert table is not None
    examples, _ = table.examples("class", None)
    found, new = table.placed(examples, {}, "text")
    item, region = new[id, "chars:2-5"]
    assert isinstance(item, Item) and item.content == "a dog" and region.chars == (2, 5)
    assert [(one.key, one.mark) for one in found] == [((id, "chars:2-5"), "no")]
    with pytest.raises(LabelsError, match=r"line 2.*nor a file"):
        table.placed([examples[0]._replace(key=(id[:-1] + "9", "whole"))], {}, "text")


def test_names_as_tables_print_them_and_columns_in_any_letters(tiny: Path, tmp_path: Path) -> None:
    folder, into = tmp_path / "rec", tmp_path / "c.lance"
    folder.mkdir()
    soundfile.write(folder / "a.wav", clip(2.0), RATE)
    cut = ("--window", "0.505s", "--channel", "each")
    assert ask("embed", tiny, folder, "--into", into, *cut).code == 0
    rows = Collection.open(into).count
    table = tmp_path / "marks.csv"
    table.write_text(
        "PATH,Species,MARK\n"
        "rec/a.wav ch0:0.505-1.01,owl,yes\n"
        f"{folder / 'a.wav'} ch0 1.01-1.52,owl,no\n"  # 1.01-1.515, in hundredths
        "rec/a.wav ch0 0.00-0.51,owl,\n"
    )
    done = ask("teach", into, "--from", "species", table, "--json")
    assert done.code == 0, done.err
    assert done.json["marks"] == {"yes": 1, "no": 1} and done.json["left_out"] == 1
    assert Collection.open(into).count == rows
    listed = tmp_path / "out.csv"
    assert ask("classes", into, "--csv", listed).code == 0
    regions = {line["region"]: line["mark"] for line in csv.DictReader(listed.open())}
    assert regions == {"ch0:0.505-1.01": "yes", "ch0:1.01-1.515": "no"}
    table.write_text("path,species\nrec/a.wav ch0:9-10,owl\n")
    refused = ask("teach", into, "--from", "species", table)
    assert refused.code != 0 and "a.wav" in refused.error
    (folder / "b.csv").write_text("Path,START,End,Mark,species\na.wav,0,0.505,yes,tit\n")
    done = ask("teach", into, "--from", "SPECIES", folder / "b.csv", "--channel", 0, "--json")
    assert done.json["taught"] == {"tit": 1} and Collection.open(into).count == rows
    for twice in ("path,Species,species\na.wav,x,y\n", "path,mark,MARK,species\na.wav,yes,no,x\n"):
        (folder / "b.csv").write_text(twice)
        refused = ask("teach", into, "--from", "species", folder / "b.csv")
        assert refused.code == 2 and "differ in case only" in refused.error


def test_a_column_mark_of_rows_counts_as_in_a_table(embedder: Embedder, tmp_path: Path) -> None:
    """Else a row that somebody has marked no would be taken for an example of its class."""
    marks = {"zero_british-man": "yes", "zero_oxford-woman": "No", "one_british-man": "yes",
             "one_oxford-woman": ""}  # fmt: skip
    table = tmp_path / "rows.csv"
    lines = [f"{CLIPS / name}.flac,{name.split('_')[0]},{mark}" for name, mark in marks.items()]
    table.write_text("\n".join(["path,word,Mark", *lines]))
    store = Collection.open(tmp_path / "rows.lance")
    store.add(embedder, table)
    done = ask("teach", store.path, "--from", "word", "--json")
    assert done.code == 0, done.err
    assert done.json["marks"] == {"yes": 2, "no": 1} and done.json["left_out"] == 1
    space = ClassSpace(Collection.open(store.path))
    found = {Path(key[0]).stem: dict(one) for key, one in zip(
        space.examples.keys, space.examples.marks, strict=True)}  # fmt: skip
    assert found == {"zero_british-man": {"zero": "yes"}, "zero_oxford-woman": {"zero": "no"},
                     "one_british-man": {"one": "yes"}}  # fmt: skip
    assert ask("teach", store.path, "--from", "word", "--mark", "yes", "--json").json[
        "marks"] == {"yes": 4}  # fmt: skip
    done = ask("teach", store.path, "--from", "word", "--where", '"Mark" IS NULL')
    assert done.code == 2 and "no row has a mark" in done.err
    done = ask("teach", store.path, "--from", "word", "--where", "word = 'two'")
    assert done.code == 2 and "matches the filter" in done.err


def test_tables_in_one_folder_and_recordings_in_another(tiny: Path, tmp_path: Path) -> None:
    audio, tables, into = tmp_path / "disk", tmp_path / "tables", tmp_path / "c.lance"
    for number, name in enumerate(("s1/a.wav", "s2/a.wav", "s2/b.wav")):
        (audio / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio / name, clip(2.0, number), RATE)
    tables.mkdir()
    assert ask("embed", tiny, audio, "--into", into, "--window", "0.5s").code == 0
    rows = Collection.open(into).count
    (tables / "own.csv").write_text("path,start,end,name\ns2/a.wav,0,0.5,owl\ns2/b.wav,1,1.5,tit\n")
    (tables / "marks.csv").write_text("path,region,class,mark\ns1/a.wav,0.5-1,owl,no\n")
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tSpecies\n"
    (tables / "raven.txt").write_text(f"{head}1\t1.5\t2\tb.wav\towl\n")
    lost = ask("teach", into, "--from", "name", tables / "own.csv")
    assert lost.code != 0 and "a.wav" in lost.error
    for by, table, taught in (
        ("name", "own.csv", {"owl": 1, "tit": 1}),
        ("class", "marks.csv", {"owl": 1}),
        ("species", "raven.txt", {"owl": 1}),
    ):
        done = ask("teach", into, "--from", by, tables / table, "--audio", audio, "--json")
        assert done.code == 0, done.err
        assert done.json["taught"] == taught
    assert Collection.open(into).count == rows  # all of them are rows that there were
    listed = tmp_path / "out.csv"
    assert ask("classes", into, "--csv", listed).code == 0
    found = {(line["path"], line["region"]) for line in csv.DictReader(listed.open())}
    assert {(path.rpartition("disk/")[2], region) for path, region in found} == {
        ("s2/a.wav", "0-0.5"), ("s2/b.wav", "1-1.5"), ("s1/a.wav", "0.5-1"), ("s2/b.wav", "1.5-2"),
    }  # fmt: skip
    (tables / "own.csv").write_text("path,start,end,name\na.wav,0,0.5,owl\n")
    unclear = ask("teach", into, "--from", "name", tables / "own.csv", "--audio", audio)
    assert unclear.code != 0 and "may be any of 2 recordings" in unclear.error
    refused = ask("teach", into, "--from", "name", tables / "own.csv", "--audio", tmp_path / "no")
    assert refused.code == 2 and "there is no folder" in refused.error


def test_metadata_of_predictions_is_taken_for_no_mark(tiny: Path, tmp_path: Path) -> None:
    """A column `mark` of the items is another thing than whether a class is right."""
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", clip(1.0, number), RATE)
    table, store = tmp_path / "items.csv", tmp_path / "c.lance"
    table.write_text("path,Mark,Class,class_given\n" + "".join(
        f"{number}.wav,no,c{number},x\n" for number in range(4)))  # fmt: skip
    assert ask("embed", tiny, table, "--into", store).code == 0
    for name, number in (("a", 0), ("b", 1)):
        assert ask("teach", store, name, tmp_path / f"{number}.wav").code == 0
    out = tmp_path / "out.csv"
    assert ask("predict", store, "--unknown", 0, "--out", out).code == 0
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0])[-3:] == ["Mark_given", "Class_given", "class_given_given"]
    assert [row["Class_given"] for row in rows] == ["c0", "c1", "c2", "c3"]
    taught = ask("teach", store, "--from", "class", out, "--json")
    assert taught.code == 0 and taught.json["marks"] == {"yes": 4}
