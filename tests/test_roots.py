"""Ids begin with a root: a disk that is moved, a file that is renamed, and collections of absolute
paths keep their items, marks and classes."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

from conftest import RATE, clip
from penult.collection import renaming
from penult.collection.collection import Collection
from penult.collection.export import to_arrow
from penult.collection.manifest import read_manifest
from penult.data.roots import Root, Roots
from penult.fewshot.classspace import ClassSpace
from test_cli import Said, ask

QUIET = ("--workers", "0", "--engine", "torch")
SAVED = Path(__file__).parent / "saved_by_0_1_0"
NAMES = {f"recs/{site}/{site}{number}.wav" for site in "ab" for number in range(3)}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of two sites with a collection beside them, and two classes."""
    disk = tmp_path_factory.mktemp("made") / "disk"
    for name in NAMES:
        path = disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(0.3, sum(name.encode())), RATE)
    assert ask("embed", tiny, disk / "recs", "--into", disk / "c.lance", *QUIET).code == 0
    assert ask("teach", disk / "c.lance", "--from", "folder").code == 0
    return disk


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> Path:
    """The same at another place; the first one is hidden meanwhile."""
    return Path(shutil.copytree(made, tmp_path / "disk"))


@pytest.fixture
def alone(made: Path, disk: Path) -> Iterator[Path]:
    """The copy, while the place that the collection knows is gone."""
    made.rename(made.with_name("away"))
    try:
        yield disk
    finally:
        made.with_name("away").rename(made)


def rows(store: Path) -> dict[str, np.ndarray]:
    """Vectors by id."""
    keys, vectors = Collection.open(store, must_exist=True).vectors(columns=["id"])
    return dict(zip(keys["id"].to_pylist(), vectors, strict=True))


def predictions(done: Said) -> dict[str, tuple[str, float]]:
    assert done.code == 0, done.err
    # Sums of another order of rows differ in the last digit.
    return {one["id"]: (one["label"], round(one["score"], 12)) for one in done.json["predictions"]}


def versions(store: Path) -> list[tuple[int, bool]]:
    return [(one.number, one.current) for one in ClassSpace(Collection(store)).history.versions]


# ---- names


def test_a_path_and_its_id_name_each_other(tmp_path: Path) -> None:
    """Through the innermost root, as the path is written, also with bytes that are no UTF-8."""
    place = tmp_path / "recs"
    (place / "site").mkdir(parents=True)
    roots = Roots({"recs": Root(str(place)), "inner": Root(str(place / "site"))}, tmp_path)
    for path, id in {
        place / "a.wav": "recs/a.wav",
        place / "site" / "a.wav": "inner/a.wav",
        place / "site2" / "a.wav": "recs/site2/a.wav",
        tmp_path / "recs2" / "a.wav": str(tmp_path / "recs2" / "a.wav"),
        place / "caf\udce9.wav": "recs/caf\\udce9.wav",
        place / "back\\slash.wav": "recs/back\\slash.wav",
        place: "recs",
    }.items():
        if "\udce9" in path.name:
            path.write_bytes(b"")
        assert roots.id_of(path) == id
        assert roots.path_of(id) == path
    assert roots.path_of("recs/site/a.wav") == place / "site" / "a.wav"
    assert roots.path_of("of a table") == Path("of a table")
    assert set(roots.prefixes_in(tmp_path)) == {f"{tmp_path}/", "recs/", "inner/"}


def test_links_lead_into_a_root(tmp_path: Path) -> None:
    """A folder by another way has the same ids; a link in a root keeps its own name."""
    place, link = tmp_path / "recs", tmp_path / "link"
    place.mkdir()
    (place / "a.wav").write_bytes(b"a")
    link.symlink_to(place)
    (place / "b.wav").symlink_to(place / "a.wav")
    roots = Roots({"recs": Root(str(place))})
    assert roots.id_of(link / "a.wav") == "recs/a.wav" and roots.id_of(link) == "recs"
    assert roots.id_of(link / "b.wav") == "recs/b.wav"
    assert Roots({"l": Root(str(link))}).id_of(place / "a.wav") == "l/a.wav"


def test_names_of_roots_tell_them_apart(tmp_path: Path) -> None:
    """No name begins another one, so that an id has one meaning."""
    roots = Roots()
    for folder in ("x/recs", "y/recs", "x/y/recs", "x/RECS", "recs/deep"):
        roots = roots.with_root(roots.free_name(tmp_path / folder), tmp_path / folder)
    named = list(roots.roots)
    assert named[:2] == ["recs", "y/recs"] and len(named) == 5
    folded = [f"{name.casefold()}/" for name in named]
    assert not any(a != b and a.startswith(b) for a in folded for b in folded)
    for name in named:
        assert roots.id_of(roots.place(name) / "1.wav") == f"{name}/1.wav"
        assert roots.path_of(f"{name}/1.wav") == roots.place(name) / "1.wav"


def test_two_disks_with_the_same_names(tiny: Path, tmp_path: Path) -> None:
    """Files of one name on two disks stay two items, each found by its path."""
    for number, site in enumerate("ab"):
        (tmp_path / site / "recs").mkdir(parents=True)
        soundfile.write(tmp_path / site / "recs" / "1.wav", clip(0.3, number), RATE)
    store = tmp_path / "c.lance"
    places = [tmp_path / site / "recs" for site in "ab"]
    assert ask("embed", tiny, *places, "--into", store, *QUIET).code == 0
    assert set(rows(store)) == {"recs/1.wav", "b/recs/1.wav"}
    for place, id in zip(places, ("recs/1.wav", "b/recs/1.wav"), strict=True):
        hit = ask("search", store, place / "1.wav", "-k", "1", "--json").json["hits"][0]
        assert hit["id"] == id
        assert hit["similarity"] == pytest.approx(1, abs=1e-6)
    again = ask("embed", tiny, places[1], "--into", store, *QUIET, "--json").json
    assert (again["done"], again["skipped"]) == (0, 1)
    assert again["roots"] == {"recs": str(places[0]), "b/recs": str(places[1])}


# ---- moved


def test_a_disk_is_mounted_elsewhere(
    alone: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collection and recordings together: nothing is embedded again, and each command finds each
    file by its path."""
    store, before = alone / "c.lance", rows(alone / "c.lance")
    assert set(before) == NAMES
    monkeypatch.chdir(alone / "recs" / "a")
    hits = ask("search", "../../c.lance", "a0.wav", "-k", "1", "--json").json["hits"]
    assert hits[0]["id"] == "recs/a/a0.wav"
    new = clip(0.3, 99)
    soundfile.write(alone / "recs" / "b" / "new.wav", new, RATE)
    said = ask("embed", tiny, "..", "--into", "../../c.lance", "--prune", *QUIET, "--json")
    assert (said.json["done"], said.json["skipped"], said.json["gone"]["count"]) == (1, 6, 0)
    assert said.json["roots"] == {"recs": str(alone / "recs")}
    after = rows(store)
    assert all(np.array_equal(after[id], vector) for id, vector in before.items())
    (alone / "recs" / "b" / "new.wav").unlink()
    said = ask("embed", tiny, alone / "recs", "--into", store, "--prune", *QUIET, "--json")
    assert said.json["gone"] == {"count": 1, "first": ["recs/b/new.wav"], "rows_removed": 1}


def test_recordings_alone_are_moved(disk: Path, made: Path, alone: Path, tiny: Path) -> None:
    """A folder of the same name with the same files is the root at its new place; one with other
    files is a new root."""
    store = disk.parent / "elsewhere" / "c.lance"
    store.parent.mkdir()
    (disk / "c.lance").rename(store)
    said = ask("embed", tiny, disk / "recs", "--into", store, *QUIET)
    assert "root recs: " in said.out and "where its files are now" in said.out
    assert set(rows(store)) == NAMES
    assert read_manifest(store).roots["recs"].place == str(disk / "recs")
    other = disk.parent / "other" / "recs"
    other.mkdir(parents=True)
    soundfile.write(other / "a.wav", clip(0.3, 5), RATE)
    shutil.move(disk / "recs", disk / "hidden")
    assert ask("embed", tiny, other, "--into", store, *QUIET).code == 0
    assert set(rows(store)) == NAMES | {"other/recs/a.wav"}


def test_classes_go_on_at_the_new_place(alone: Path) -> None:
    """Marks are found, taught by path and predicted by path; tables name files that are there."""
    store = alone / "c.lance"
    before = predictions(ask("predict", store, "--json"))
    by_path = predictions(ask("predict", store, alone / "recs", "--json"))
    assert by_path.keys() == before.keys() == NAMES
    assert by_path == {id: (label, pytest.approx(score)) for id, (label, score) in before.items()}
    said = ask("teach", store, "third", alone / "recs" / "a" / "a1.wav", "--several")
    assert said.code == 0, said.err
    marks = {(row["id"], row["class"]) for row in Collection(store).labels().to_pylist()}
    assert ("recs/a/a1.wav", "third") in marks
    for name in ("p.csv", "p.txt"):
        out = alone / name
        if name == "p.csv":
            assert ask("predict", store, "--out", out).code == 0
            paths = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
            assert sorted(paths) == sorted(str(alone / id) for id in NAMES)
    table = alone / "marks.csv"
    assert ask("classes", store, "--csv", table).code == 0
    back = ask("teach", store, "--from", "class", table, "--json")
    assert back.code == 0, back.err
    assert len(rows(store)) == 6  # all of its lines were rows


def test_the_map_and_failures_name_files_of_the_root(alone: Path, tiny: Path) -> None:
    store, page = alone / "c.lance", alone / "map.html"
    (alone / "recs" / "a" / "broken.wav").write_bytes(b"no sound")
    said = ask("embed", tiny, alone / "recs", "--into", store, *QUIET)
    assert said.code == 3
    failures = ask("failures", store, "--json").json["failures"]
    assert [one["id"] for one in failures] == ["recs/a/broken.wav"]
    assert ask("map", store, page).code == 0
    text = page.read_text("utf-8")
    data = json.loads(text.split('id="data"')[1].split(">", 1)[1].split("</script>")[0])
    assert {unquote(url) for url in data["at"].values()} == {f"file://{alone / 'recs'}/"}


# ---- renamed within a root


def test_renamed_files_keep_vectors_marks_and_classes(alone: Path, tiny: Path) -> None:
    """Recognised by content, also with --prune; vectors to the bit, the same version of classes."""
    store, recs = alone / "c.lance", alone / "recs"
    before, answers = rows(store), predictions(ask("predict", store, "--json"))
    kept = versions(store)
    (recs / "a").rename(recs / "moved")
    (recs / "b" / "b0.wav").rename(recs / "b" / "näu.wav")
    said = ask("embed", tiny, recs, "--into", store, "--prune", *QUIET, "--json").json
    new = {
        **{f"recs/a/a{number}.wav": f"recs/moved/a{number}.wav" for number in range(3)},
        "recs/b/b0.wav": "recs/b/näu.wav",
    }
    assert said["moved"]["count"] == 4 and said["moved"]["first"] == new
    assert (said["done"], said["replaced"], said["gone"]["count"]) == (0, 0, 0)
    after = rows(store)
    assert after.keys() == {new.get(id, id) for id in before}
    assert all(np.array_equal(after[new.get(id, id)], row) for id, row in before.items())
    now = predictions(ask("predict", store, "--json"))
    assert now == {new.get(id, id): answer for id, answer in answers.items()}
    assert versions(store) == kept  # nothing was fitted anew
    taught = ClassSpace(Collection(store))
    assert {id for id, _ in taught.examples.keys} == after.keys() and not taught.source.missing
    assert ask("teach", store, "--undo").code == 0  # of a time when they had other names


def test_a_copy_stays_an_item_of_its_own(alone: Path, tiny: Path) -> None:
    """As long as the first one is there; of two that are gone each is taken once."""
    store, recs = alone / "c.lance", alone / "recs"
    shutil.copy(recs / "a" / "a0.wav", recs / "b" / "copy.wav")
    said = ask("embed", tiny, recs, "--into", store, *QUIET, "--json").json
    assert (said["moved"]["count"], said["done"]) == (0, 1)
    (recs / "new").mkdir()
    (recs / "a" / "a0.wav").rename(recs / "new" / "one.wav")
    (recs / "b" / "copy.wav").rename(recs / "new" / "copy.wav")
    said = ask("embed", tiny, recs, "--into", store, *QUIET, "--json").json
    assert said["moved"]["first"] == {
        "recs/b/copy.wav": "recs/new/copy.wav",
        "recs/a/a0.wav": "recs/new/one.wav",
    }
    assert said["done"] == 0 and len(rows(store)) == 7


def test_windows_of_a_renamed_recording(tiny: Path, tmp_path: Path) -> None:
    """All of its rows go along; a file that failed takes its verdict along."""
    recs = tmp_path / "recs"
    recs.mkdir()
    soundfile.write(recs / "long.wav", clip(1.0, 3), RATE)
    store = tmp_path / "c.lance"
    run = ("embed", tiny, recs, "--into", store, "--window", "0.4", *QUIET, "--json")
    assert ask(*run).code == 0
    count = len(Collection(store).vectors()[0])
    (recs / "long.wav").rename(recs / "other.wav")
    said = ask(*run).json
    assert (said["done"], said["moved"]["count"], said["rows"]) == (0, 1, count)
    assert set(Collection(store).vectors()[0]["id"].to_pylist()) == {"recs/other.wav"}


# ---- options


def test_roots_that_are_named(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """A folder of its own name, files outside, and absolute ids when they are asked for."""
    recs, store = alone / "recs", tmp_path / "named.lance"
    run = ("embed", tiny, recs / "a", recs / "b" / "b0.wav", "--into", store, *QUIET)
    assert ask(*run, "--root", f"calls/2024={recs}").code == 0
    assert set(rows(store)) == {f"calls/2024/a/a{n}.wav" for n in range(3)} | {
        "calls/2024/b/b0.wav"
    }
    whole = tmp_path / "whole.lance"
    assert ask("embed", tiny, recs / "a", "--into", whole, "--absolute-ids", *QUIET).code == 0
    assert set(rows(whole)) == {str(recs / "a" / f"a{n}.wav") for n in range(3)}
    assert read_manifest(whole).format == 1
    for place, options, words in (
        (store, ["--absolute-ids"], "begin with roots"),
        (whole, ["--root", recs], "penult migrate"),
        (tmp_path / "x.lance", ["--root", tmp_path / "none"], "there is no folder"),
        (tmp_path / "x.lance", ["--root", f"../x={recs}"], "cannot be the name"),
        (tmp_path / "x.lance", ["--root", recs, "--absolute-ids"], "asks for none"),
        (store, ["--root", f"calls={tmp_path}"], "no name may begin another one"),
    ):
        said = ask("embed", tiny, recs, "--into", place, *options, *QUIET)
        assert said.code == 2 and words in said.err, said.err


def test_files_outside_of_all_roots_come_into_one(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """Single paths of Python have whole paths as ids; a root that holds them renames their rows."""
    import penult

    store, recs = tmp_path / "c.lance", alone / "recs"
    collection = Collection.open(store)
    embedder = penult.Embedder.from_classifier(penult.load(str(tiny)), device="cpu")
    collection.add(embedder, sorted((recs / "a").iterdir()))
    first = str(recs / "a" / "a0.wav")
    assert first in rows(store)
    collection.label(first, "whole", "owl", who="me", source="test")
    # Rows of absolute paths and no root: a collection of that kind.
    with pytest.raises(penult.errors.UsageError, match="migrate"):
        Collection.open(store, root=recs).add(embedder, recs)
    done = ask("migrate", store, "--root", recs, "--json").json
    assert (done["rows"], done["labels"], done["outside"]) == (3, 1, 0)
    assert set(rows(store)) == {f"recs/a/a{n}.wav" for n in range(3)}
    assert collection.get(first) is not None and collection.get("recs\\a\\a0.wav") is not None
    assert collection.labels()["id"].to_pylist() == ["recs/a/a0.wav"]
    outside = tmp_path / "out.wav"
    soundfile.write(outside, clip(0.3, 8), RATE)
    collection.add(embedder, [outside, recs / "b" / "b0.wav"])
    assert set(rows(store)) - {f"recs/a/a{n}.wav" for n in range(3)} == {
        str(outside),
        "recs/b/b0.wav",
    }


def test_python_names_roots_as_the_command_does(alone: Path, tiny: Path, tmp_path: Path) -> None:
    import penult

    embedder = penult.Embedder.from_classifier(penult.load(str(tiny)), device="cpu")
    recs = alone / "recs"
    for root, begin in (
        (f"calls={recs}", "calls/"),
        (alone, f"{alone.name}/recs/"),
        (False, f"{recs}/"),
    ):
        store = tmp_path / f"{begin.strip('/').replace('/', '-')}.lance"
        collection = penult.Collection.open(store, root=root)
        collection.add(embedder, recs / "a")
        assert set(rows(store)) == {f"{begin}a/a{n}.wav" for n in range(3)}
        assert pickle.loads(pickle.dumps(collection))._root == root


def test_other_normal_form(alone: Path) -> None:
    """An id that is typed composed finds a name that is stored decomposed."""
    collection, name = Collection(alone / "c.lance"), "recs/é.wav"
    rename = renaming.Renaming(ids={"recs/a/a0.wav": unicodedata.normalize("NFD", name)})
    renaming.rename(alone / "c.lance", rename)
    assert collection.get(unicodedata.normalize("NFC", name)) is not None


# ---- collections of absolute paths


@pytest.mark.parametrize("name", ["calls", "paths"])
def test_a_collection_of_0_1_0_is_brought_to_roots(name: str, tmp_path: Path) -> None:
    """Whole paths are ids of one, and in the column `path` of the other, whose ids are a table's.
    Vectors, marks and clusters are those of before."""
    store = Path(shutil.copytree(SAVED / f"{name}.lance", tmp_path / f"{name}.lance"))
    place, before, collection = "/srv/penult-fixture/wavs", rows(store), Collection(store)
    marks, failed = collection.labels().to_pylist(), collection.failures()["id"].to_pylist()
    assert read_manifest(store).roots is None and read_manifest(store).format == 1
    dry = ask("migrate", store, "--root", place, "--dry-run", "--json").json
    assert dry["written"] is False and read_manifest(store).roots is None
    done = ask("migrate", store, "--root", f"calls={place}", "--json").json
    assert done["written"] and (done["rows"], done["outside"]) == (collection.count, 0)

    def new(id: str) -> str:
        return id.replace(place, "calls", 1)

    after = rows(store)
    assert after.keys() == {new(id) for id in before}
    assert all(np.array_equal(after[new(id)], row) for id, row in before.items())
    assert [row["id"] for row in collection.labels().to_pylist()] == [new(m["id"]) for m in marks]
    assert collection.failures()["id"].to_pylist() == [new(id) for id in failed]
    if name == "calls":
        paths = collection.vectors(columns=["path"])[0]["path"].to_pylist()
        assert all(path.startswith("calls/") for path in paths)
    found = ask("info", store, "--json").json
    assert found["roots"] == {"calls": place} and found["damage"] == []
    assert ask("repair", store, "--dry-run").code == 0
    auto = Path(shutil.copytree(SAVED / f"{name}.lance", tmp_path / "auto.lance"))
    assert ask("migrate", auto, "--root", "auto", "--json").json["roots"] == {"wavs": place}


def test_paths_of_runs_are_the_roots(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """--root auto takes the folders of all runs; a run over them goes on, and prunes."""
    store, recs = tmp_path / "c.lance", alone / "recs"
    run = ("embed", tiny, recs, "--into", store, *QUIET, "--json")
    assert ask(*run, "--absolute-ids").code == 0
    assert ask("teach", store, "--from", "folder").code == 0
    answers, kept = predictions(ask("predict", store, "--json")), versions(store)
    assert ask("migrate", store, "--root", "auto").code == 0
    now = predictions(ask("predict", store, "--json"))
    assert now == {id.replace(str(recs), "recs", 1): one for id, one in answers.items()}
    assert versions(store) == kept
    (recs / "a" / "a0.wav").unlink()
    said = ask(*run, "--prune").json
    assert (said["done"], said["skipped"], said["gone"]["rows_removed"]) == (0, 5, 1)


@pytest.mark.parametrize("step", ["_in_derived", "_in_runs", "_in_versions", "_without_twins"])
def test_a_renaming_that_was_stopped_is_completed(
    alone: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever was done of it; the next writer does the rest."""
    store, recs = alone / "c.lance", alone / "recs"
    answers, kept = predictions(ask("predict", store, "--json")), versions(store)
    moved = renaming.Renaming([("recs/a/", "recs/x/")])
    (recs / "a").rename(recs / "x")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(renaming, step, stop)
        renaming.rename(store, moved)
    assert (store / renaming.PENDING).exists()
    said = ask("embed", tiny, recs, "--into", store, *QUIET, "--json").json
    assert (said["done"], said["skipped"]) == (0, 6)
    assert not (store / renaming.PENDING).exists()
    now = predictions(ask("predict", store, "--json"))
    assert now == {moved(id): one for id, one in answers.items()} and versions(store) == kept


def test_an_export_names_the_files_of_now(alone: Path) -> None:
    assert ask("export", alone / "c.lance", alone / "v.csv").code == 0
    with (alone / "v.csv").open(newline="") as file:
        found = {row["id"]: row["path"] for row in csv.DictReader(file)}
    assert found == {id: str(alone / id) for id in rows(alone / "c.lance")}
    assert all(Path(path).is_file() for path in found.values())


# ---- relocate


def test_a_root_is_named_at_its_new_place(alone: Path, made: Path, tmp_path: Path) -> None:
    """Only where its files are there, by their content; nothing else changes."""
    store, new = tmp_path / "c.lance", tmp_path / "other name"
    (alone / "c.lance").rename(store)
    shutil.move(alone / "recs", new)
    before, answers = rows(store), predictions(ask("predict", store, "--json"))
    dry = ask("relocate", store, "recs", new, "--dry-run", "--json").json
    assert (dry["found"]["same"], dry["written"], dry["old"]) == (6, False, str(made / "recs"))
    assert read_manifest(store).roots["recs"].place == str(made / "recs")
    (new / "a" / "a0.wav").write_bytes(b"another content")
    said = ask("relocate", store, "recs", new)
    assert said.code == 2 and "1 are others" in said.err and "nothing is changed" in said.err
    (new / "a" / "a0.wav").unlink()
    said = ask("relocate", store, made / "recs", new, "--check", "all")
    assert said.code == 0 and "5 of 6 files compared, and the same, 1 missing" in said.out
    assert read_manifest(store).roots["recs"].place == str(new)
    after = rows(store)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[id], row) for id, row in before.items())
    assert predictions(ask("predict", store, "--json")) == answers
    for options, words in (
        (["nothing", new], "has no root 'nothing'"),
        (["recs", tmp_path / "none"], "is no folder"),
        (["recs", new, "--check", "some"], "neither a number"),
    ):
        said = ask("relocate", store, *options)
        assert said.code == 2 and words in said.err
    assert ask("relocate", store, "recs", tmp_path / "none", "--check", "none").code == 0


def test_absolute_ids_are_relocated(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """All of a folder begin with another one; marks and classes follow."""
    store, new = tmp_path / "c.lance", tmp_path / "moved"
    run = ("embed", tiny, alone / "recs", "--into", store, *QUIET)
    assert ask(*run, "--absolute-ids").code == 0
    assert ask("teach", store, "--from", "folder").code == 0
    answers, kept = predictions(ask("predict", store, "--json")), versions(store)
    shutil.move(alone / "recs", new)
    done = ask("relocate", store, alone / "recs", new, "--json").json
    assert (done["rows"], done["root"]) == (6, "")
    now = predictions(ask("predict", store, "--json"))
    assert now == {id.replace(str(alone / "recs"), str(new)): one for id, one in answers.items()}
    assert versions(store) == kept
    said = ask("embed", tiny, new, "--into", store, *QUIET, "--json").json
    assert (said["done"], said["skipped"]) == (0, 6)


# ---- between collections


def test_shards_of_two_machines_are_merged(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """One root, though it was at two places; both parts are those of the same items."""
    other = Path(shutil.copytree(alone, tmp_path / "mnt" / "disk"))
    parts = []
    for number, place in enumerate((alone, other), 1):
        into = tmp_path / f"part{number}.lance"
        run = ("embed", tiny, place / "recs", "--into", into, "--shard", f"{number}/2", *QUIET)
        assert ask(*run).code == 0
        parts.append(into)
    assert sum(len(rows(part)) for part in parts) == 6
    both = tmp_path / "both.lance"
    said = ask("merge", *parts, "--into", both)
    assert said.code == 0, said.err
    assert set(rows(both)) == NAMES
    assert list(read_manifest(both).roots) == ["recs"]


def test_other_recordings_of_one_name_are_kept_apart(
    alone: Path, tiny: Path, tmp_path: Path
) -> None:
    """A root of one name with other files gets another name, and so do its rows and marks."""
    other = tmp_path / "b" / "recs"
    (other / "a").mkdir(parents=True)
    soundfile.write(other / "a" / "a0.wav", clip(0.3, 77), RATE)
    theirs = tmp_path / "theirs.lance"
    assert ask("embed", tiny, other, "--into", theirs, *QUIET).code == 0
    Collection(theirs).label("recs/a/a0.wav", "whole", "owl", who="me", source="x")
    vector = rows(theirs)["recs/a/a0.wav"]
    both = tmp_path / "both.lance"
    said = ask("merge", alone / "c.lance", theirs, "--into", both)
    assert said.code == 0 and "is called b/recs here" in said.err
    found = rows(both)
    assert found.keys() == NAMES | {"b/recs/a/a0.wav"}
    assert np.array_equal(found["b/recs/a/a0.wav"], vector)
    assert ("b/recs/a/a0.wav", "owl") in {
        (row["id"], row["class"]) for row in Collection(both).labels().to_pylist()
    }
    hit = ask("search", both, other / "a" / "a0.wav", "-k", "1", "--json").json["hits"][0]
    assert hit["id"] == "b/recs/a/a0.wav"


def test_kinds_of_ids_are_not_mixed(alone: Path, tiny: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.lance"
    run = ("embed", tiny, alone / "recs" / "a", "--into", whole, "--absolute-ids", *QUIET)
    assert ask(*run).code == 0
    for given in ((alone / "c.lance", whole), (whole, alone / "c.lance")):
        said = ask("merge", *given, "--into", tmp_path / "both.lance")
        assert said.code == 2 and f"penult migrate {whole} --root" in said.err


def test_another_model_takes_the_roots(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """--like: the same ids and marks, from the files where they are now."""
    store, new = alone / "c.lance", tmp_path / "new.lance"
    run = ("embed", tiny, "--like", store, "--into", new, "--tap", "prelogits", *QUIET, "--json")
    said = ask(*run)
    assert said.code == 0, said.err
    assert set(rows(new)) == NAMES and said.json["labels_taken"] == 6
    assert said.json["roots"] == {"recs": str(alone / "recs")}
    hashes = {row["id"]: row["content_hash"] for b in Collection(new).reader.scan()
              for row in b.to_pylist()}  # fmt: skip
    for id, found in hashes.items():
        assert found == hashlib.sha256((alone / id).read_bytes()).hexdigest()


def test_a_table_elsewhere_names_files_by_their_ids_or_below_a_folder(
    tiny: Path, disk: Path, tmp_path: Path
) -> None:
    """A column `path` with ids of the collection that is written to; `embed --audio` for others."""
    notes, store = tmp_path / "notes", disk / "c.lance"
    notes.mkdir()
    table = notes / "t.csv"
    table.write_text("path,start,end,call\n" + "".join(f"{n},0.05,0.2,x\n" for n in sorted(NAMES)))
    assert ask("relocate", store, "recs", disk / "recs").code == 0
    done = ask("embed", tiny, table, "--into", store, "--json", *QUIET)
    assert done.code == 0, done.err
    found = to_arrow(Collection.open(store), "call = 'x'").to_pylist()
    assert sorted((row["id"], row["region"]) for row in found) == [
        (name, "0.05-0.2") for name in sorted(NAMES)]  # fmt: skip
    below = notes / "below.csv"
    below.write_text(table.read_text().replace("recs/", ""))
    other = tmp_path / "d.lance"
    lost = ask("embed", tiny, below, "--into", other, *QUIET)
    assert lost.code == 3 and "no such file" in lost.err + lost.out
    done = ask("embed", tiny, below, "--audio", disk / "recs", "--into", other, "--json", *QUIET)
    assert done.code == 0 and done.json["done"] == len(NAMES), done.err
    wrong = ask("embed", tiny, below, "--audio", notes / "none", "--into", other, *QUIET)
    assert wrong.code == 2 and "there is no folder" in wrong.error
    moved = table.read_text().replace("recs/a/", "recs/z/")  # no file is taken for another one
    table.write_text(moved)
    done = ask("embed", tiny, table, "--into", store, "--json", *QUIET)
    assert done.code == 3 and done.json["failed"] == 3
