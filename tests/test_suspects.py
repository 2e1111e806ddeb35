"""Labels that are perhaps wrong: planted errors, the numbers by hand, groups, columns, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from penult.analysis.episodes import partitions
from penult.analysis.label_suspects import label_suspects
from penult.collection.collection import Collection
from penult.collection.writer import writing
from penult.errors import LabelsError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled

NAMES = ("curlew", "dunlin", "knot")


def clusters(count: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Rows of three classes, one after the other."""
    centres = 3 * np.eye(3, DIM)
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    rows = centres[kinds] + noise * random.standard_normal((count, DIM))
    return rows.astype(np.float32), [NAMES[kind] for kind in kinds]


def nearest(vectors: np.ndarray, k: int) -> np.ndarray:
    model = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute")
    return model.fit(np.float64(vectors)).kneighbors(np.float64(vectors), return_distance=False)[
        :, 1:
    ]


@pytest.fixture
def store(tmp_path: Path) -> Collection:
    """Ninety rows; 7, 40 and 83 are said to be of another class than they are."""
    vectors, names = clusters(90)
    for row in (7, 40, 83):
        names[row] = NAMES[(NAMES.index(names[row]) + 1) % 3]
    columns = {"species": names, "weight": (np.arange(90) / 7).tolist(), "one": ["x"] * 90}
    types = {"species": pa.string(), "weight": pa.float64(), "one": pa.string()}
    rows = batch([f"{row:02}.wav" for row in range(90)], vectors=vectors, **columns)
    return filled(tmp_path / "c.lance", rows, metadata=types)


def test_planted_errors_come_first(store: Collection) -> None:
    said = ask("suspects", store.path, "--labels", "species", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    rows = found["rows"]
    assert len(rows) == 90 and found["likely"] == 3
    assert {row["id"] for row in rows[:3]} == {"07.wav", "40.wav", "83.wav"}
    assert [row["suspect"] for row in rows] == sorted((r["suspect"] for r in rows), reverse=True)
    assert rows[2]["suspect"] > 0.5 > rows[3]["suspect"]
    for row in rows[:3]:
        true = NAMES[int(row["id"][:2]) % 3]
        assert row["suggested"] == true and row["label"] != true
        beside = [int(one["id"][:2]) for one in row["against"]]
        assert len(beside) == 3 and all(NAMES[one % 3] == true for one in beside)


def test_the_numbers_are_those_of_confident_learning() -> None:
    """Again by scikit-learn and loops: half the probe's share, half the neighbours'; less the mean
    share of each class's own rows."""
    vectors, names = clusters(36, noise=2.0)
    names[5], names[20] = "knot", "curlew"
    near = nearest(vectors, 4)
    found = label_suspects(vectors, names, near, folds=3, seed=1)
    given = np.array([NAMES.index(name) for name in names])
    shares = np.zeros((36, 3))
    for side in partitions(given, np.arange(36), 3, 1, 1):
        scale = StandardScaler().fit(np.float64(vectors[~side]))
        model = LogisticRegression(C=0.1, max_iter=5000)
        model.fit(scale.transform(np.float64(vectors[~side])), given[~side])
        shares[side] = model.predict_proba(scale.transform(np.float64(vectors[side]))) / 2
    for row in range(36):
        for kind in range(3):
            votes = sum(given[other] == kind for other in near[row]) + (given == kind).mean()
            shares[row, kind] += votes / 5 / 2
    means = [shares[given == kind, kind].mean() for kind in range(3)]
    for place, row in enumerate(found.rows):
        own = shares[row, given[row]] - means[given[row]]
        others = {kind: shares[row, kind] - means[kind] for kind in {0, 1, 2} - {given[row]}}
        best = max(others, key=lambda kind: others[kind])
        assert found.classes[found.suggested[place]] == NAMES[best]
        assert found.suspect[place] == pytest.approx((2 + others[best] - own) / 4, abs=1e-4)


def test_a_class_that_is_hard_to_see_is_not_suspected_as_a_whole() -> None:
    """Half of a small class lies among a large one; planted errors still come before it."""
    random = np.random.default_rng(0)
    large, small = random.standard_normal((90, 6)), random.standard_normal((20, 6))
    large[:, 0] += 3
    small[:, 0] += 1.5
    far = random.standard_normal((40, 6)) - [3, 0, 0, 0, 0, 0]
    vectors = np.concatenate([large, small, far])
    names = ["large"] * 90 + ["small"] * 20 + ["far"] * 40
    wrong = [0, 1, 2, 110, 111]
    for row in wrong:
        names[row] = "far" if row < 90 else "large"
    found = label_suspects(vectors, names, nearest(vectors, 10))
    truth = np.isin(found.rows, wrong)
    assert average_precision_score(truth, found.suspect) > 0.9
    hard = np.isin(found.rows, np.arange(90, 110))
    assert (found.suspect[hard] > 0.5).mean() < 0.6


def test_rows_of_one_group_do_not_vouch_for_each_other(tmp_path: Path) -> None:
    """Ten windows of one recording, all with the wrong label: alone, they confirm each other."""
    vectors, names = clusters(120, noise=0.8)
    sites = [f"site {row}" for row in range(120)]
    kin = np.random.default_rng(5).standard_normal((10, DIM)) * 0.05
    middle = vectors[0] + np.random.default_rng(6).standard_normal(DIM)
    rows = np.concatenate([vectors, (middle + kin).astype(np.float32)])
    columns = {"species": names + ["dunlin"] * 10, "site": sites + ["site x"] * 10}
    made = batch([f"{row:03}.wav" for row in range(130)], vectors=rows, **columns)
    types = {"species": pa.string(), "site": pa.string()}
    store = filled(tmp_path / "c.lance", made, metadata=types)
    kept = ask("suspects", store.path, "--labels", "species", "--groups", "site", "--json")
    loose = ask("suspects", store.path, "--labels", "species", "--json")
    for said, least, most in ((kept, 10, 10), (loose, 0, 5)):
        first = [row["id"] for row in json.loads(said.out)["rows"][:10]]
        assert least <= sum(id >= "120.wav" for id in first) <= most


def test_columns_serve_filters_and_are_told_to_be_stale(store: Collection, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    said = ask("suspects", store.path, "--labels", "species", "--out", out)
    assert said.code == 0 and "3 of 90 rows (3.3%) are likelier of another label" in said.out
    with out.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 90 and {line["id"] for line in lines[:3]} == {"07.wav", "40.wav", "83.wav"}
    assert store.vectors("suspect > 0.5")[0]["id"].to_pylist() == ["07.wav", "40.wav", "83.wav"]
    wrong = "suspect > 0.5 AND suggested_label = 'dunlin'"
    ids = [id for id in ("07.wav", "40.wav", "83.wav") if NAMES[int(id[:2]) % 3] == "dunlin"]
    assert store.vectors(wrong)[0]["id"].to_pylist() == ids
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(["new.wav"], species=["knot"], weight=[1.0], one=["x"]))
    said = ask("search", store.path, "07.wav", "--where", "suspect > 0.5")
    assert "suspect is stale: 1 of 91 rows" in said.err
    assert f"penult suspects {store.path} --labels species" in " ".join(said.err.split())


def test_a_column_of_the_rows_own_is_left_alone_and_nothing_is_said_to_be_stored(
    tmp_path: Path,
) -> None:
    vectors, names = clusters(30)
    columns = {"species": names, "suspect": [0.25] * 30, "nearest_similarity": ["mine"] * 30}
    types = {"species": pa.string(), "suspect": pa.float64(), "nearest_similarity": pa.string()}
    rows = batch([f"{row:02}.wav" for row in range(30)], vectors=vectors, **columns)
    store = filled(tmp_path / "c.lance", rows, metadata=types)
    for words, column in (
        (("suspects", store.path, "--labels", "species"), "suspect"),
        (("neighbours", store.path), "nearest_similarity"),
    ):
        said = ask(*words)
        assert said.code == 0 and "stored" not in said.out
        assert f"have a column '{column}' of their own" in " ".join(said.err.split())
    assert store.vectors("suspect = 0.25 AND nearest_similarity = 'mine'")[1].shape == (30, DIM)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--labels", "weight"), "one class a row"),
        (("--labels", "one"), "two classes"),
        (("--labels", "no such column"), "no such column"),
        (("--labels", "species", "--groups", "one"), "one group only"),
        (("--labels", "species", "--where", "weight > 99"), "weight > 99"),
        (("--labels", "species", "--folds", "1"), "folds"),
        (("--labels", "species", "--space", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_told_in_words(
    store: Collection, words: tuple[str, ...], says: str
) -> None:
    said = ask("suspects", store.path, *words)
    assert said.code == 2 and says in " ".join(said.err.split()), said.err
    assert "Traceback" not in said.err


def test_lists_that_do_not_fit_are_refused() -> None:
    vectors, names = clusters(9)
    with pytest.raises(LabelsError, match=r"neighbours of shape \(4, 2\) do not fit 9 rows"):
        label_suspects(vectors, names, np.zeros((4, 2), np.int64))
