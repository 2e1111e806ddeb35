"""Doubles: by content and by vectors, the measured threshold, leaks; subsets without doubles."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import penult
from penult.analysis.coverage import k_centre, quotas, typical
from penult.collection.collection import Collection
from penult.collection.duplicates import Duplicates, _threshold, find_duplicates
from penult.collection.forgetting import forget
from penult.collection.neighbours import GraphOptions, find_neighbours
from penult.collection.subsets import SubsetOptions, select_rows
from penult.collection.writer import writing
from penult.embedding.reencoding import is_same_content
from penult.errors import LabelsError, UsageError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled

CLIPS = Path(penult.__file__).parent / "demo" / "clips"


def never() -> penult.Embedder:
    raise AssertionError("no threshold is to be measured")


def planted(path: Path, **columns: list[str]) -> Collection:
    """Ten rows: 0 and 5 have the same content, 1 is near 6 and 7, 8 is near 7 only."""
    random = np.random.default_rng(0)
    rows = np.linalg.qr(random.standard_normal((DIM, DIM)))[0].astype(np.float32)
    vectors = rows[[0, 1, 2, 3, 4, 0, 1, 1, 1, 5]]
    vectors[6:9] += rows[[6, 7, 7]] * np.float32([[0.2], [0.2], [0.5]])
    hashes = [f"h{number}" for number in (0, 1, 2, 3, 4, 0, 6, 7, 8, 9)]
    sizes = [100, 100, 100, 100, 100, 100, 900, 100, 100, 100]
    ids = [f"/a/{number}.wav" for number in range(10)]
    return filled(path, batch(ids, vectors=vectors, content_hash=hashes, size=sizes, **columns))


def found_in(store: Collection, threshold: float = 0.95, **options: object) -> Duplicates:
    return find_duplicates(store.reader, never, threshold=threshold, **options)  # type: ignore[arg-type]


def test_groups_and_which_row_is_kept(tmp_path: Path) -> None:
    store = planted(tmp_path / "c.lance")
    found = found_in(store)
    # By numpy: 6-1 0.981, 7-1 0.981, 6-7 0.962, 8-7 0.96, 8-1 0.894, 8-6 0.877.
    _, vectors = store.vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = {(i, j) for i in range(10) for j in range(i) if unit[i] @ unit[j] >= 0.95}
    assert near == {(5, 0), (6, 1), (7, 1), (7, 6), (8, 7)}
    names = [[id[3:-4] for id in group.ids] for group in found.groups]
    assert names == [["6", "1", "7"], ["0", "5"]]  # 8 is near 7 alone, which goes
    first, second = found.groups
    assert (first.kind, first.why) == ("nearly the same", "largest file")
    assert first.similarity == pytest.approx(float(unit[6] @ unit[7]), abs=1e-6)
    assert (second.kind, second.similarity) == ("same content", 1.0)
    assert (found.rows, found.doubles) == (10, 3)
    left = found_in(store, near=False).groups
    assert [group.ids for group in left] == [["/a/0.wav", "/a/5.wav"]]


def test_no_two_rows_that_are_left_are_doubles(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((120, 3)) @ np.eye(3, DIM)
    ids = [f"/a/{number:03d}.wav" for number in range(120)]
    hashes = [str(number) for number in range(120)]
    store = filled(tmp_path / "c.lance", batch(ids, vectors=vectors, content_hash=hashes))
    found_in(store, 0.99)
    _, left = store.vectors("duplicate_of IS NULL")
    _, gone = store.vectors("duplicate_of IS NOT NULL")
    left, gone = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, gone))
    assert len(left) + len(gone) == 120 and len(gone) > 20
    assert (gone @ left.T).max(axis=1).min() >= 0.99 - 1e-6


def test_parts_of_one_item_are_no_doubles_and_those_of_copies_are_one_group(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, DIM))
    regions = ["0-2", "1-3", "2-4"]
    same = rows[[0, 0, 1]]  # the first two windows are equal
    one = [batch([id] * 3, region=regions, vectors=same, content_hash=["h"] * 3) for id in "ab"]
    store = filled(tmp_path / "c.lance", *one)
    found = found_in(store)
    assert [(group.ids, group.parts) for group in found.groups] == [(["a", "b"], 3)]
    assert found.doubles == 3
    alone = filled(tmp_path / "d.lance", one[0])
    assert found_in(alone).groups == []


def test_the_column_in_filters_exports_and_stale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = planted(tmp_path / "c.lance")
    found_in(store)
    table, _ = store.vectors(columns=["id", "duplicate_of"])
    of = dict(zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))
    assert {one: other for one, other in of.items() if other} == {
        "/a/1.wav": "/a/6.wav", "/a/7.wav": "/a/6.wav", "/a/5.wav": "/a/0.wav",
    }  # fmt: skip
    assert store.reader.count_rows("duplicate_of = '/a/6.wav'") == 2
    assert (
        ask("export", store.path, tmp_path / "a.csv", "--where", "duplicate_of IS NULL").code == 0
    )
    with (tmp_path / "a.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    facts = ask("info", store.path, "--json").json["derived"]
    made = {one["name"]: one["made"] for one in facts}
    assert made["duplicate_of"] == f"penult duplicates {store.path} --threshold 0.95"
    forget(store.reader, ["/a/6.wav"])
    assert store.reader.count_rows("duplicate_of IS NOT NULL") == 1  # its name is gone
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(["/a/new.wav"]))
    with caplog.at_level(logging.WARNING):
        store.reader.count_rows("duplicate_of IS NULL")
    assert "the column duplicate_of is stale: 1 of 10 rows" in caplog.text


def test_leaks_and_the_score_without_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((2, DIM))
    truth = np.arange(40) % 2
    vectors = 0.1 * centres[truth] + random.standard_normal((40, DIM))
    vectors[30:35] = vectors[:5]  # of the test side, in train
    side, word = ["train"] * 30 + ["test"] * 10, [f"w{number}" for number in truth]
    word[30:35] = word[:5]
    ids = [f"/a/{number:02d}.wav" for number in range(40)]
    hashes = [str(number) for number in range(40)]
    store = filled(
        tmp_path / "c.lance",
        batch(ids, vectors=vectors, content_hash=hashes, side=side, word=word),
    )
    command = ("duplicates", store.path, "--threshold", 0.999, "--split", "side")
    document = ask(*command, "--labels", "word", "--json").json
    pairs = {(one["row"][0], one["other"][0]) for one in document["leaks"]}
    assert pairs == {(ids[number], ids[30 + number]) for number in range(5)}
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    _, rows = store.vectors()
    scaler = StandardScaler().fit(rows[:30])
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(rows[:30]), word[:30])
    right = model.predict(scaler.transform(rows[30:])) == np.array(word[30:])
    score = next(one for one in document["scores"] if one["side"] == "test")
    assert (score["rows"], score["leaking"]) == (10, 5)
    assert score["accuracy"] == pytest.approx(right.mean())
    assert score["without"] == pytest.approx(right[5:].mean())
    said = ask(*command)
    assert "5 pairs of doubles on two sides" in said.out and "given by hand" in said.out


def test_the_threshold_lies_between_copies_and_others_or_spares_others() -> None:
    copies = {"a": np.linspace(0.9, 1, 21), "b": np.full(21, 0.99)}
    apart = _threshold(copies, np.linspace(0.1, 0.5, 200), 21)
    low = np.quantile(np.concatenate([*copies.values()]), 0.05)
    high = np.quantile(np.linspace(0.1, 0.5, 200), 0.99)
    assert apart.value == pytest.approx((low + high) / 2)
    assert (apart.found, apart.mistaken, apart.by_change) == (1, 0, {"a": 1, "b": 1})
    mixed = _threshold(copies, np.linspace(0.5, 0.95, 200), 21)
    assert mixed.value == pytest.approx(np.quantile(np.linspace(0.5, 0.95, 200), 0.99))
    assert mixed.mistaken == pytest.approx(0.01)
    assert mixed.by_change["a"] == pytest.approx((copies["a"] >= mixed.value).mean())


def test_same_content_by_the_signal() -> None:
    random = np.random.default_rng(0)
    sound, other = (random.standard_normal(4000).astype(np.float32) for _ in range(2))
    assert is_same_content(sound, 0.1 * sound[100:], "audio")
    assert not is_same_content(sound, other, "audio")
    assert is_same_content(np.zeros(5), np.zeros(9), "audio")
    values = random.integers(0, 255, (8, 8, 3), np.uint8)
    picture = Image.fromarray(values).resize((90, 90))
    other_picture = Image.fromarray(values.transpose(1, 0, 2)).resize((90, 90))
    assert is_same_content(picture, picture.resize((40, 40)), "image")
    assert not is_same_content(picture, other_picture, "image")
    pasted = picture.copy()  # the corner is another picture, and so bright that all seems different
    pasted.paste((255, 255, 255), (40, 40, 90, 90))
    grey = [np.asarray(one.convert("L"), float).ravel() for one in (picture, pasted)]
    assert np.corrcoef(*grey)[0, 1] < 0.8  # type: ignore[call-overload]
    assert is_same_content(picture, pasted, "image")
    assert not is_same_content(other_picture, pasted, "image")
    flat = Image.new("RGB", (90, 90), (9, 9, 9))
    flat.paste(picture.resize((20, 20)), (0, 0))
    assert not is_same_content(flat, picture, "image")


def test_planted_copies_are_found_at_the_measured_threshold(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    clips = sorted(CLIPS.glob("*.flac"))[::5]
    for clip in clips:
        shutil.copy(clip, tmp_path / "in")
    shutil.copy(clips[0], tmp_path / "in" / "copy.flac")
    for number, (name, level) in enumerate((("v.ogg", 1.0), ("m.mp3", 1.0), ("q.wav", 0.4)), 1):
        samples, rate = soundfile.read(clips[number], dtype="float32")
        soundfile.write(tmp_path / "in" / name, level * samples, rate)
    store = tmp_path / "c.lance"
    quiet = ("--workers", "0", "--engine", "torch")
    assert ask("embed", "demo", tmp_path / "in", "--into", store, *quiet).code == 0
    document = ask("duplicates", store, "--out", tmp_path / "d.csv", "--json").json
    groups = {frozenset(Path(id).name for id in group) for group in document["groups"]}
    wanted = [(clips[0].name, "copy.flac"), (clips[1].name, "v.ogg"), (clips[2].name, "m.mp3"),
              (clips[3].name, "q.wav")]  # fmt: skip
    assert sum(frozenset(pair) in groups for pair in wanted) >= 3
    assert frozenset(wanted[0]) in groups
    threshold = document["threshold"]
    assert threshold["sample"] == len(clips) + 4 and 0 <= threshold["mistaken"] <= 0.1
    assert set(threshold["by_change"]) == {
        "Vorbis, lowest", "half the rate", "level -20 dB", "2 % cut off",
    }  # fmt: skip
    with (tmp_path / "d.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(map(len, document["groups"]))
    shutil.rmtree(tmp_path / "in")
    said = ask("duplicates", store)
    assert said.code == 2 and "could be opened again" in said.err and "--threshold" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "2"), "a cosine lies between -1 and 1"),
        (("--labels", "label"), "give --split COLUMN too"),
        (("--exact", "--threshold", "0.9"), "give one"),
        (("--exact", "--split", "nope"), "'nope' names nothing"),
    ],
)
def test_what_cannot_be(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    said = ask("duplicates", planted(tmp_path / "c.lance").path, *arguments)
    assert said.code == 2 and message in said.err


def blobs(order: np.ndarray) -> list:
    """Three clusters of 30, 20 and 10 rows in an order of their own."""
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [30, 20, 10])
    vectors = 3 * np.eye(3, DIM)[truth] + 0.3 * random.standard_normal((60, DIM))
    ids = np.array([f"/a/{number:02d}.wav" for number in range(60)])
    site = np.array(["x", "y", "z"])[truth]
    hashes = ids.tolist()
    return [
        batch([ids[at]], vectors=vectors[[at]], content_hash=[hashes[at]], site=[site[at]])
        for at in order
    ]


@pytest.mark.parametrize("by", ["diverse", "typical", "balanced"])
def test_a_selection_does_not_depend_on_the_order_of_rows(tmp_path: Path, by: str) -> None:
    orders = [np.arange(60), np.random.default_rng(1).permutation(60)]
    stores = [filled(tmp_path / f"{at}.lance", *blobs(order)) for at, order in enumerate(orders)]
    one, other = (select_rows(store.reader, SubsetOptions(9, by, seed=3)) for store in stores)
    assert one.keys == other.keys and len(set(one.keys)) == 9
    again = select_rows(stores[0].reader, SubsetOptions(9, by, seed=3))
    assert again.keys == one.keys
    assert stores[0].reader.count_rows("selected IS NOT NULL") == 9
    even = select_rows(stores[0].reader, SubsetOptions(9, by, over="site"))
    assert even.to_dict()["strata"] == {"x": 3, "y": 3, "z": 3}
    if by != "balanced":
        three = select_rows(stores[0].reader, SubsetOptions(3, by))
        assert {int(id[3:5]) // 10 for id, _ in three.keys} <= {0, 1, 2, 3, 4, 5}
        sites = stores[0].reader.scan(["site"], "selected IS NOT NULL")
        assert sorted(s for b in sites for s in b["site"].to_pylist()) == ["x", "y", "z"]


def test_each_row_of_k_centre_is_the_farthest_from_those_before() -> None:
    rows = np.random.default_rng(0).standard_normal((80, 5))
    chosen = k_centre(rows, 12, seed=1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for place in range(1, 12):
        nearest = (unit @ unit[chosen[:place]].T).max(axis=1)
        assert nearest[chosen[place]] == pytest.approx(nearest.min(), abs=1e-6)
    assert len(set(typical(rows, 12).tolist())) == 12
    assert quotas({"a": 1, "b": 10, "c": 10}, 8) == {"a": 1, "b": 4, "c": 3}
    assert quotas({"a": 2, "b": 2}, 9) == {"a": 2, "b": 2}


def test_no_doubles_are_selected(tmp_path: Path) -> None:
    store = planted(tmp_path / "c.lance")
    found = select_rows(store.reader, SubsetOptions(9))
    assert ("/a/5.wav", "whole") not in found.keys and found.doubles == 1
    assert not found.known_doubles
    found_in(store)
    found = select_rows(store.reader, SubsetOptions(7))
    assert found.known_doubles and found.doubles == 3
    assert {int(id[3:-4]) for id, _ in found.keys} == {0, 2, 3, 4, 6, 8, 9}
    with pytest.raises(UsageError, match=r"8 rows were asked for, and 7 are there.*3 of them"):
        select_rows(store.reader, SubsetOptions(8))
    for options, error in (
        (SubsetOptions(0), UsageError), (SubsetOptions(1, "best"), UsageError),
        (SubsetOptions(1, over="nope"), LabelsError),
    ):  # fmt: skip
        with pytest.raises(error):
            select_rows(store.reader, options)


def test_the_selection_as_files(tmp_path: Path) -> None:
    store = planted(tmp_path / "c.lance")
    document = ask("select", store.path, "-k", 3, "--out", tmp_path / "a.csv", "--json").json
    ids = [row["id"] for row in document["rows"]]
    with (tmp_path / "a.csv").open() as file:
        assert [line["id"] for line in csv.DictReader(file)] == ids
    for ending in ("txt", "m3u"):
        assert ask("select", store.path, "-k", 3, "--out", tmp_path / f"a.{ending}").code == 0
    assert (tmp_path / "a.txt").read_text().split() == ids
    lines = (tmp_path / "a.m3u").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ids
    assert not any("nan" in line for line in lines)
    assert ask("select", store.path, "-k", 3, "--out", tmp_path / "a.pdf").code == 2
    assert "3 rows of 10, diverse" in ask("select", store.path, "-k", 3).out


def test_the_graph_of_doubles_is_kept_apart_by_item(tmp_path: Path) -> None:
    store = planted(tmp_path / "c.lance")
    found_in(store)
    graph = find_neighbours(store.reader, GraphOptions(groups="id"))
    assert graph.made.new == 0  # it is there
