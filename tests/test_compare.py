"""Two embedders side by side: CKA, neighbours and paired differences by hand, a page, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from penult.analysis.episodes import numbered, own_groups, partitions
from penult.analysis.similarity import estimate_cka, linear_cka, moved, paired_measures
from penult.collection.collection import Collection
from penult.errors import LabelsError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled

ROWS = 60
OTHER = replace(MANIFEST, dim=5, fingerprint={"weights": "sha256:bbbb"}, model={"spec": "other"})


def vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Rows of three classes and six groups by one embedder, and by one that knows less."""
    random = np.random.default_rng(seed)
    kind, group = np.arange(ROWS) % 3, np.arange(ROWS) // 10
    rows = 2 * np.eye(3, DIM)[kind] + 0.8 * random.standard_normal((ROWS, DIM)) + 1
    others = rows @ random.standard_normal((DIM, 5)) + 2 * random.standard_normal((ROWS, 5))
    names = [("knot", "ruff", "stint")[one] for one in kind]
    return rows, others, names, [f"site {one}" for one in group]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Collection, Collection]:
    """Two of the second's rows are in it alone, three of the first's."""
    rows, others, names, groups = vectors()
    ids = [f"{row:02}.wav" for row in range(ROWS)]
    types = {"species": pa.string(), "site": pa.string(), "one": pa.string()}
    first = filled(
        tmp_path / "a.lance",
        batch([*ids, "x.wav", "y.wav", "z.wav"], vectors=np.concatenate([rows, rows[:3]]),
              species=[*names, *names[:3]], site=[*groups, *groups[:3]], one=["x"] * 63),
        metadata=types,
    )  # fmt: skip
    second = filled(
        tmp_path / "b.lance",
        batch([*ids[::-1], "p.wav", "q.wav"], manifest=OTHER,
              vectors=np.concatenate([others[::-1], others[:2]])),
        manifest=OTHER,
    )  # fmt: skip
    return first, second


def test_cka_is_that_of_the_products_of_rows() -> None:
    """The HSIC without bias by (n, n) matrices, of rows that are not centred."""
    rows, others, _, _ = vectors()

    def hsic(one: np.ndarray, other: np.ndarray) -> float:
        k, m = one @ one.T, other @ other.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        n = len(k)
        both = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return (np.trace(k @ m) + both) / (n * (n - 3))

    by_hand = hsic(rows, others) / np.sqrt(hsic(rows, rows) * hsic(others, others))
    assert linear_cka(rows, others) == pytest.approx(by_hand)
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0]
    assert linear_cka(rows, 3 * rows @ turned + 5) == pytest.approx(1)
    noise = np.random.default_rng(2)
    apart = [linear_cka(noise.standard_normal((12, 30)), noise.standard_normal((12, 30)))
             for _ in range(50)]  # fmt: skip
    assert abs(np.mean(apart)) < 0.06  # the biased one is above 0.6 here
    assert np.isnan(linear_cka(np.ones((9, 2)), rows[:9]))
    with pytest.raises(LabelsError, match="4 or more rows"):
        linear_cka(rows[:3], rows[:3])


def test_the_interval_of_cka_leaves_out_one_group_at_a_time(
    stores: tuple[Collection, Collection],
) -> None:
    rows, others, _, groups = vectors()
    first, second = stores
    said = ask("compare", first.path, second.path, "--groups", "site", "--json")
    found = json.loads(said.out)["cka"]
    left = [linear_cka(rows[mine], others[mine])
            for mine in (np.array(groups) != name for name in np.unique(groups))]  # fmt: skip
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((left - np.mean(left)) ** 2).sum())
    middle = linear_cka(rows, others)
    assert [found["low"], found["high"]] == pytest.approx([middle - half, middle + half], abs=1e-4)
    shown = ask("compare", first.path, second.path, "--groups", "site").out
    assert f"{middle:.3f} ({middle - half:.3f} to {middle + half:.3f})" in shown
    alone = estimate_cka(rows, others, ["one"] * ROWS)
    assert alone.value == pytest.approx(middle) and np.isnan([alone.low, alone.high]).all()


def test_the_interval_of_cka_holds_the_value_of_many_rows() -> None:
    """Groups with something in common: 40 draws of 12 groups of unequal size."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((4, 3))

    def draw(groups: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        own = np.repeat(np.arange(groups), random.integers(5, 25, groups))
        rows = random.standard_normal((groups, 4))[own] + random.standard_normal((len(own), 4))
        return rows, rows @ mix + random.standard_normal((len(own), 3)), [str(one) for one in own]

    truth = linear_cka(*draw(5000)[:2])
    found = [estimate_cka(*draw(12)) for _ in range(40)]
    held = np.mean([one.low <= truth <= one.high for one in found])
    assert held >= 0.85 and np.mean([one.high - one.low for one in found]) < 0.6


def test_neighbours_and_moved_rows_by_hand(stores: tuple[Collection, Collection]) -> None:
    rows, others, _, _ = vectors()
    first, second = stores
    said = ask("compare", first.path, second.path, "-k", 7, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["matched"], found["only"]) == (60, {"first": 3, "second": 2})
    near = [
        NearestNeighbors(n_neighbors=8, metric="cosine").fit(one).kneighbors(one)[1][:, 1:]
        for one in (rows, others)
    ]
    kept = [len(set(a) & set(b)) / 7 for a, b in zip(*near, strict=True)]
    by_id = {row["id"]: row for row in found["rows"]}
    assert [by_id[f"{row:02}.wav"]["neighbours_kept"] for row in range(ROWS)] == (
        pytest.approx(kept)
    )
    assert found["neighbours_kept"]["value"] == pytest.approx(np.mean(kept))
    assert found["neighbours_kept"]["chance"] == pytest.approx(7 / 59)
    assert found["cka"]["value"] == pytest.approx(linear_cka(rows, others), abs=1e-5)
    for row in (0, 31):
        cosines = [
            np.delete(one @ one[row] / np.linalg.norm(one, axis=1), row) for one in (rows, others)
        ]
        name = f"{row:02}.wav"
        assert by_id[name]["moved"] == pytest.approx(
            1 - np.corrcoef(np.array(cosines))[0, 1], abs=1e-5
        )
        beside = [one["id"] for one in by_id[name]["nearest"]]
        assert beside == [f"{lists[row, 0]:02}.wav" for lists in near]
    order = [row["moved"] for row in found["rows"]]
    assert order == sorted(order, reverse=True)
    assert moved(rows, 2 * rows) == pytest.approx(np.zeros(ROWS), abs=1e-9)


def test_paired_differences_by_hand() -> None:
    rows, others, names, groups = vectors()
    found = {one.name: one for one in paired_measures(rows, others, names, groups)}
    number, own = numbered(names)[0], numbered(own_groups(groups))[0]
    values = []
    for one in (rows, others):
        units = one / np.linalg.norm(one, axis=1, keepdims=True)
        precision = [
            average_precision_score(number[own != own[row]] == number[row],
                                    units[own != own[row]] @ units[row])
            for row in range(ROWS)
        ]  # fmt: skip
        right = np.zeros(ROWS)
        for side in partitions(number, own, 5, 1, 0):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            right[side] = probe.fit(one[~side], number[~side]).predict(one[side]) == number[side]
        values.append((np.mean(precision), right.mean()))
    for place, name in enumerate(("retrieval, mAP", "linear probe")):
        pair = found[name]
        assert pair.first.value == pytest.approx(values[0][place], abs=1e-4)
        assert pair.second.value == pytest.approx(values[1][place], abs=1e-4)
        assert pair.difference.value == pytest.approx(pair.second.value - pair.first.value)
        assert pair.difference.high < 0  # the second knows less, on the same rows
        width = pair.difference.high - pair.difference.low
        assert width < (pair.first.high - pair.first.low) + (pair.second.high - pair.second.low)
    same = paired_measures(rows, 3 * rows, names, groups)
    assert all(one.difference.to_dict() == {"value": 0, "low": 0, "high": 0} for one in same)


def test_a_page_columns_and_csv(stores: tuple[Collection, Collection], tmp_path: Path) -> None:
    first, second = stores
    page, out = tmp_path / "page.html", tmp_path / "rows.csv"
    said = ask("compare", first.path, second.path, "--labels", "species", "--groups", "site",
               "--html", page, "--out", out, "--rows", 4)  # fmt: skip
    assert said.code == 0, said.err
    text = page.read_text(encoding="utf-8")
    for words in ("60 rows of both; 3 rows in the first only, 2 rows in the second only",
                  "linear CKA", "retrieval, mAP", "Rows that moved most"):  # fmt: skip
        assert words in said.out and words in text
    with out.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == ROWS and text.count(".wav") >= 8
    values = [float(line["moved"]) for line in lines]
    high = second.vectors(f"moved >= {values[4]}")[0]["id"].to_pylist()
    assert high == sorted(line["id"] for line in lines[:5])
    same = ask("compare", first.path, first.path, "--json")
    found = json.loads(same.out)
    assert (
        found["cka"]["value"] == found["cka"]["high"] == pytest.approx(1)
        and found["neighbours_kept"]["value"] == 1
    )
    assert found["same_label"] is None or found["same_label"] == 1


def test_refusals(stores: tuple[Collection, Collection], tmp_path: Path) -> None:
    first, second = stores
    far = filled(tmp_path / "far.lance", batch([f"other{row}.wav" for row in range(9)]))
    for words, text in (
        ([first.path, far.path], "0 of 63 and 9 rows have the same id and region"),
        ([first.path, tmp_path / "none.lance"], "no collection at"),
        ([first.path, second.path, "-k", 60], "60 rows have 1 to 59 neighbours"),
        ([first.path, second.path, "--labels", "one"], "all rows are 'x'"),
        ([first.path, second.path, "--labels", "nothing"], "names nothing"),
        ([first.path, second.path, "--labels", "species", "--groups", "one"], "one group"),
        ([first.path, second.path, "--where", "id < '02'"], "2 of 2 and 62 rows"),
        ([first.path, second.path, "--html", tmp_path / "a.txt"], "has to end in .html"),
    ):
        said = ask("compare", *words)
        assert said.code == 2 and text in " ".join(said.err.split()), said.err
