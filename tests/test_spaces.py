"""Spaces of a collection: fitted on raw vectors, kept, found again, and searched in exactly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penult.analysis.space import fit
from penult.collection import spaces
from penult.collection.collection import Collection
from penult.errors import CollectionError, SpaceError
from test_cli import ask
from test_collection import MANIFEST, batch, filled

DIM, N = 8, 300


def vectors(n: int = N, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spread = 10.0 ** random.uniform(-2, 1, DIM)
    return (random.standard_normal((n, DIM)) * spread + 5).astype(np.float32)


def named(n: int = N) -> list[str]:
    return [f"/calls/{number:04}.wav" for number in range(n)]


@pytest.fixture
def made(tmp_path: Path) -> Collection:
    parts = [batch(named()[at : at + 100], vectors=vectors()[at : at + 100], seed=at,
                   site=["A", "B"] * 50) for at in (200, 0, 100)]  # fmt: skip
    return filled(
        tmp_path / "c.lance", *parts, metadata={"site": parts[0].schema.field("site").type}
    )


def by_hand(query: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(rows - query, axis=1)
    if metric == "dot":
        return rows @ query
    return rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


def test_it_is_fitted_on_the_raw_vectors_and_found_again(made: Collection) -> None:
    space = made.fit_space("scale+l2")
    assert space.id == fit("scale+l2", vectors()).id
    again = Collection.open(made.path).space("scale+l2")
    assert again.id == space.id
    assert np.array_equal(again(vectors()), space(vectors()))
    assert made.count == N and np.array_equal(made.vectors()[1], vectors())  # nothing moved


def test_the_newest_of_a_name_counts(made: Collection) -> None:
    first = made.fit_space("centre", name="site A", where="site = 'A'")
    second = made.fit_space("centre", name="site A", where="site = 'B'")
    assert first.id == fit("centre", vectors()[::2]).id != second.id
    assert made.space("site A").id == second.id
    assert made.spaces()["name"].to_pylist() == ["site A", "site A"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("recipe", ["scale+l2", "whiten", "pca:3", "centre+l2"])
def test_searching_in_a_space_is_exact(made: Collection, recipe: str, metric: str) -> None:
    space = fit(recipe, vectors())
    query = vectors(1, seed=9)[0]
    expected = by_hand(space(query), space(vectors()), metric)
    nearest = np.argsort(-expected, kind="stable")[:7]
    hits = made.search(query, k=7, metric=metric, space=recipe)
    assert [hit.id for hit in hits] == [named()[place] for place in nearest]
    assert np.allclose([hit.similarity for hit in hits], expected[nearest], rtol=1e-4, atol=1e-5)
    assert [hit.metadata["site"] for hit in hits] == ["AB"[place % 2] for place in nearest]


def test_a_recipe_is_fitted_once_and_the_filter_filters(made: Collection) -> None:
    for _ in range(2):
        hits = made.search(named()[7], k=300, where="site = 'B'", space="scale+l2")
    assert len(made.spaces()) == 1
    assert len(hits) == N // 2 and hits[0].id == named()[7]
    assert hits[0].similarity == pytest.approx(1)
    assert made.search(vectors()[0], where="site = 'C'", space="scale+l2") == []


def test_ties_are_in_the_order_of_their_keys(tmp_path: Path) -> None:
    ids = [f"{number:03}" for number in range(40)]
    same = filled(tmp_path / "c.lance", batch(ids[::-1], vectors=np.tile(vectors(1), (40, 1))))
    hits = same.search(vectors(1)[0], k=5, space="l2")
    assert [hit.id for hit in hits] == ids[:5]
    with pytest.raises(CollectionError, match="zero vector"):
        same.search(vectors(1)[0], k=5, space="centre")


def test_of_many_rows_some_are_drawn(made: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "SAMPLE", 50)
    space, about = spaces.ready(made.reader, "centre")
    assert about is not None and (about.rows, about.matching) == (50, N)
    assert space.id != fit("centre", vectors()).id
    assert made.fit_space("centre").id == space.id  # the same rows each time
    keys, drawn = made.vectors(most=50)
    places = [named().index(id) for id in keys["id"].to_pylist()]
    assert places == sorted(set(places)) and np.array_equal(drawn, vectors()[places])


def test_what_is_refused(made: Collection, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="has no space 'l2' yet; it has raw"):
        made.space("l2")
    with pytest.raises(SpaceError, match="no space 'my calls' yet"):
        made.search(vectors()[0], space="my calls")
    with pytest.raises(SpaceError, match="cannot be fitted to"):
        made.fit_space("centre", where="site = 'C'")
    for name in (" ", "raw", "scale+l2"):
        with pytest.raises(SpaceError, match="cannot be called"):
            made.fit_space("centre", name=name)
    with pytest.raises(CollectionError, match="by cosine only"):
        made.search(vectors()[0], space="l2", metric="dot", indexed=True)
    with pytest.raises(CollectionError, match="has shape"):
        made.search(np.ones(3), space="l2")
    empty = filled(tmp_path / "empty.lance")
    with pytest.raises(SpaceError, match="it has no rows"):
        empty.fit_space("centre")
    one = filled(tmp_path / "one.lance", batch(["a"]))
    with pytest.raises(SpaceError, match="two vectors or more; received 1"):
        one.search(np.ones(DIM), space="scale+l2")
    with pytest.raises(CollectionError, match="no collection at"):
        Collection.open(tmp_path / "none.lance").fit_space("l2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_where_nothing_may_be_written_it_serves_once(
    made: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    made.path.chmod(0o500)
    try:
        assert made.search(vectors()[3], k=1, space="scale+l2")[0].id == named()[3]
        assert "could not be kept" in caplog.text
    finally:
        made.path.chmod(0o700)


def test_a_raw_space_changes_nothing(made: Collection) -> None:
    query = vectors(1, seed=9)[0]
    assert made.search(query, space="raw") == made.search(query)
    assert made.fit_space("raw").id == made.space("raw").id == "raw"
    assert len(made.spaces()) == 0


def test_half_precision_vectors(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, dtype="float16")
    kept = filled(tmp_path / "c.lance", batch(named(50), manifest=manifest, vectors=vectors(50)),
                  manifest=manifest)  # fmt: skip
    assert kept.search(vectors(50)[3], k=1, space="scale+l2")[0].id == named()[3]


def test_on_the_command_line(made: Collection) -> None:
    said = ask("search", made.path, named()[7], "--space", "scale+l2", "-k", 2)
    assert said.code == 0 and "0007.wav" in said.out
    assert said.err.startswith("space scale+l2: fitted on 300 rows, stored in ")
    again = ask("search", made.path, named()[7], "--space", "scale+l2", "-k", 2, "--json")
    assert again.err == "" and again.json["space"] == "scale+l2"
    wrong = ask("search", made.path, named()[7], "--space", "scaled")
    assert wrong.code == 2 and "has no space 'scaled' yet" in wrong.error
