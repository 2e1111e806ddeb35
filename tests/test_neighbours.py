"""The graph of nearest rows: exact, extended, with ties and odd rows; columns in filters."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from penult.analysis.neighbour_graph import NONE, NeighbourSearch
from penult.collection import neighbours as graph
from penult.collection.collection import Collection
from penult.collection.columns import names, read
from penult.collection.export import export
from penult.collection.forgetting import forget
from penult.collection.neighbours import COLUMN, GraphOptions, Neighbours, find_neighbours
from penult.collection.renaming import Renaming, rename
from penult.collection.writer import writing
from penult.errors import LabelsError, SpaceError, UsageError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def ids(n: int, start: int = 0) -> list[str]:
    return [f"/calls/{number:04d}.wav" for number in range(start, start + n)]


def expected(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and places of the nearest other rows, as scikit-learn has them."""
    model = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute")
    far, places = model.fit(np.float64(vectors)).kneighbors(np.float64(vectors))
    return 1 - far[:, 1:], places[:, 1:]


def assert_same(found: Neighbours, collection: Collection) -> None:
    """The graph is that of the rows now, by scikit-learn."""
    table, vectors = collection.vectors()
    assert found.keys == list(zip(*(table[name].to_pylist() for name in ("id", "region")),
                                  strict=True))  # fmt: skip
    cosines, places = expected(vectors, found.k)
    assert np.array_equal(found.places, places)
    assert np.abs(found.cosines - cosines).max() < 1e-6


@pytest.fixture
def store(tmp_path: Path) -> Collection:
    return filled(tmp_path / "c.lance", batch(ids(60), vectors=rows(60), site=["a", "b"] * 30))


def test_the_graph_is_exact_and_kept(store: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_neighbours(store.reader, GraphOptions(7))
    assert_same(first, store)
    assert (first.made.new, first.made.gone, first.made.searched, first.made.recall) == (
        60,
        0,
        "all rows",
        1,
    )
    monkeypatch.setattr(graph, "NeighbourSearch", None)  # nothing is compared again
    again = find_neighbours(store.reader, GraphOptions(4))
    assert np.array_equal(again.places, first.places[:, :4]) and (
        again.made.new,
        again.made.gone,
    ) == (0, 0)


def test_rows_that_come_change_and_go(store: Collection) -> None:
    find_neighbours(store.reader, GraphOptions(7))
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(ids(20, 60), vectors=rows(20, 1)))  # new
        writer.write(batch(ids(3), vectors=rows(3, 2), seed=2))  # other vectors
        writer.remove(ids(5, 30))
    found = find_neighbours(store.reader, GraphOptions(7))
    assert_same(found, store)
    assert (found.made.new, found.made.gone) == (23, 8)


def test_only_new_rows_and_those_that_lost_a_neighbour_are_compared(
    store: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_neighbours(store.reader, GraphOptions(3))
    asked: list[tuple[list[int], list[int]]] = []
    compare = NeighbourSearch.compare

    def spied(self: NeighbourSearch, new: np.ndarray, lost: np.ndarray) -> None:
        asked.append((new.tolist(), lost.tolist()))
        compare(self, new, lost)

    monkeypatch.setattr(NeighbourSearch, "compare", spied)
    before = find_neighbours(store.reader, GraphOptions(3))
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(ids(2, 60), vectors=rows(2, 1)))
        writer.remove(ids(1))
    assert_same(find_neighbours(store.reader, GraphOptions(3)), store)
    [(new, lost)] = asked
    assert new == [59, 60]
    assert lost == [row - 1 for row in range(60) if 0 in before.places[row]]


def test_a_graph_survives_new_names_and_forgets(store: Collection) -> None:
    before = find_neighbours(store.reader, GraphOptions(7))
    rename(store.path, Renaming([("/calls/", "/moved/")]))
    again = find_neighbours(store.reader, GraphOptions(7))
    assert (again.made.new, again.made.gone) == (0, 0) and np.array_equal(
        again.places, before.places
    )
    assert again.keys[0][0] == "/moved/0000.wav"
    forget(store.reader, ["/moved/0007.wav"])
    found = find_neighbours(store.reader, GraphOptions(7))
    assert (found.made.new, found.made.gone) == (0, 1)
    assert_same(found, store)


def test_equal_rows_zeros_and_fewer_rows_than_neighbours(tmp_path: Path) -> None:
    vectors = rows(6)
    vectors[1] = vectors[2] = vectors[0]
    vectors[4] = 0
    store = filled(tmp_path / "c.lance", batch(ids(6), vectors=vectors))
    found = find_neighbours(store.reader, GraphOptions(20))
    assert found.places[:3, :2].tolist() == [[1, 2], [0, 2], [0, 1]]  # in the order of keys
    assert found.cosines[:3, :2].tolist() == [[1, 1]] * 3
    assert (found.places[4] == NONE).all() and np.isnan(found.cosines[4]).all()
    assert not (found.places == 4).any()
    others = np.delete(np.arange(6), 4)
    assert (found.places[others, 3] != NONE).all() and (found.places[others, 4] == NONE).all()
    assert (found.fewer, found.made.undirected) == (6, 1)
    said = ask("neighbours", store.path)
    assert "1 row of zeros" in said.err and "5 rows with fewer than 20" in said.err
    single = filled(tmp_path / "one.lance", batch(["a"]))
    assert find_neighbours(single.reader).places.tolist() == [[NONE] * 20]
    huge = NeighbourSearch(np.float32([[1e30, 0], [1e30, 1e30], [np.nan, 1], [0, 1e-30]]), 2)
    huge.compare(np.arange(4))
    assert huge.found().places.tolist() == [[1, 3], [0, 3], [NONE, NONE], [1, 0]]


def test_annotations_of_a_span_are_no_neighbours_of_each_other(tmp_path: Path) -> None:
    vectors = rows(4)
    regions = ["0-1", "0-1#2", "0-1", "whole"]
    store = filled(
        tmp_path / "c.lance",
        batch(["a", "a", "b", "c"], region=regions, vectors=vectors[[0, 0, 1, 2]]),
    )
    found = find_neighbours(store.reader, GraphOptions(3))
    assert found.keys == [("a", "0-1"), ("a", "0-1#2"), ("b", "0-1"), ("c", "whole")]
    assert set(found.places[0]) == set(found.places[1]) == {2, 3, NONE}
    assert set(found.places[2]) == {0, 3, NONE}  # the span once


def test_rows_of_one_group_are_no_neighbours(store: Collection) -> None:
    found = find_neighbours(store.reader, GraphOptions(5, groups="site"))
    _, vectors = store.vectors()
    for half in (0, 1):
        mine, other = vectors[half::2], vectors[1 - half :: 2]
        model = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(other)
        places = 2 * model.kneighbors(mine)[1] + 1 - half
        assert np.array_equal(found.places[half::2], places)
    one = find_neighbours(store.reader, GraphOptions(5, groups="folder"))
    assert (one.places == NONE).all() and one.fewer == 60


def test_in_a_space_and_after_another_fit(store: Collection) -> None:
    store.fit_space("scale", "mine")
    options = GraphOptions(4, "mine")
    _, vectors = store.vectors()
    for _ in range(2):
        found = find_neighbours(store.reader, options)
        assert np.array_equal(found.places, expected(store.space("mine")(vectors), 4)[1])
        assert found.made.new == 60
        store.fit_space("whiten", "mine")


def test_lists_have_the_recall_that_they_state(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = rows(40)[random.integers(0, 40, 3000)] + 0.5 * rows(3000, 1)
    store = filled(tmp_path / "c.lance", batch(ids(3000), vectors=vectors))
    found = find_neighbours(store.reader, GraphOptions(10, exact=False, min_recall=0.9))
    cosines, places = expected(store.vectors()[1], 10)
    real = np.mean([len(np.intersect1d(*both)) / 10
                    for both in zip(found.places, places, strict=True)])  # fmt: skip
    assert found.made.searched == "lists" and found.made.sample == 200
    assert found.made.recall >= 0.9 and abs(found.made.recall - real) < 0.03
    exact = find_neighbours(store.reader, GraphOptions(10, exact=True))
    assert exact.made.searched == "all rows" and np.abs(exact.cosines - cosines).max() < 1e-6


def test_the_column_stands_in_filters_and_exports_and_becomes_stale(
    store: Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find_neighbours(store.reader)
    _, vectors = store.vectors()
    near = expected(vectors, 1)[0][:, 0]
    bound = float(np.sort(near)[50])
    chosen = {id for id, one in zip(ids(60), near, strict=True) if one >= bound}
    where = f"{COLUMN} >= {bound - 1e-6} AND site = 'a'"
    wanted = {id for number, id in enumerate(ids(60)) if id in chosen and number % 2 == 0}
    assert wanted and names(store.path) == [COLUMN]
    assert store.reader.count_rows(where) == len(wanted)
    assert {id for b in store.reader.scan(["id"], where) for id in b["id"].to_pylist()} == wanted
    assert set(store.vectors(where)[0]["id"].to_pylist()) == wanted
    for space in ("raw", "centre"):
        hits = store.search(vectors[0], k=60, where=where, space=space)
        assert {hit.id for hit in hits} == wanted
    assert store.reader.count_rows(f"{COLUMN} < 2") == 60
    assert store.reader.count_rows(f"NOT ({COLUMN} < 2)") == 0
    export(store.reader, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert np.abs([float(line[COLUMN]) for line in lines] - near).max() < 1e-6
    assert not caplog.records
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(["/calls/new.wav"], vectors=rows(1, 9)))
    with caplog.at_level(logging.WARNING):
        assert store.reader.count_rows(f"{COLUMN} IS NULL") == 1
    assert "nearest_similarity is stale: 1 of 61 rows" in caplog.text
    assert f"penult neighbours {store.path} makes it anew" in caplog.text


def test_the_command(store: Collection, tmp_path: Path) -> None:
    out = tmp_path / "near.csv"
    document = ask("neighbours", store.path, "-k", 2, "--out", out, "--json").json
    facts = ("rows", "k", "space", "searched", "recall", "new", "gone", "column")
    assert [document[name] for name in facts] == [
        60, 2, "raw", "all rows", 1.0, 60, 0, COLUMN,
    ]  # fmt: skip
    with out.open() as file:
        lines = list(csv.DictReader(file))
    cosines, places = expected(store.vectors()[1], 2)
    assert [line["neighbour"] for line in lines] == [ids(60)[place] for place in places.ravel()]
    assert lines[1]["rank"] == "2" and abs(float(lines[1]["similarity"]) - cosines[0, 1]) < 1e-6
    said = ask("neighbours", store.path)
    assert "20 nearest rows of 60 rows: 60 new" in said.out and "all rows were compared" in said.out
    assert "nothing has changed" in ask("neighbours", store.path).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GraphOptions(0), "at least one neighbour"),
        (GraphOptions(min_recall=1.5), "lies between 0 and 1"),
        (GraphOptions(space="nope"), "has no space 'nope'"),
        (GraphOptions(groups="nope"), "'nope' names nothing"),
    ],
)
def test_what_cannot_be(store: Collection, options: GraphOptions, message: str) -> None:
    with pytest.raises((UsageError, SpaceError, LabelsError), match=message):
        find_neighbours(store.reader, options)


def test_no_rows_and_a_column_of_the_rows_own(tmp_path: Path) -> None:
    empty = filled(tmp_path / "empty.lance")
    with pytest.raises(UsageError, match="has no rows yet"):
        find_neighbours(empty.reader)
    own = filled(tmp_path / "own.lance", batch(ids(3), nearest_similarity=[1.0, 2.0, 3.0]))
    said = ask("neighbours", own.path)
    assert said.code == 0 and "have a column 'nearest_similarity' of their own" in said.err
    assert own.reader.count_rows(f"{COLUMN} > 1.5") == 2


def test_a_collection_without_the_table_is_as_before(store: Collection) -> None:
    shutil.rmtree(store.path / "derived.lance")
    assert names(store.path) == [] and read(store.path, COLUMN) is None
    assert ask("export", store.path, store.path.parent / "a.csv", "--where", f"{COLUMN} > 1").code
