"""Clusters: found where they are planted, measured, named, kept beside the rows; bad input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from penult.analysis.clustering import NOISE, ClusterOptions, agreement, cluster, diffused
from penult.collection import derived
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.collection.writer import writing
from penult.errors import LabelsError, UsageError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled


def blobs(
    sizes: tuple[int, ...], d: int = 64, noise: float = 0.3, stray: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one direction for each size, then stray ones; and which they are of (−1)."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    rows = random.standard_normal((len(sizes), d))[truth]
    rows = rows + noise * random.standard_normal(rows.shape)
    rows = np.concatenate([rows, random.standard_normal((stray, d))])
    truth = np.concatenate([truth, np.full(stray, -1)])
    order = random.permutation(len(truth))
    return rows[order].astype(np.float32), truth[order]


@pytest.mark.parametrize("sizes", [(100, 60, 30), (20,) * 30, (300, 12, 12)])
@pytest.mark.parametrize("d", [8, 64])
def test_planted_groups_are_found(sizes: tuple[int, ...], d: int) -> None:
    rows, truth = blobs(sizes, d, noise=0.1)
    found = cluster(rows, ClusterOptions(), runs=2)
    agree = agreement(found.numbers, [str(number) for number in truth])
    assert agree is not None and agree.ari > 0.95 and len(found.clusters) == len(sizes)
    assert [one.size for one in found.clusters] == sorted(sizes, reverse=True)
    assert found.stability is not None and found.stability > 0.95


def test_kmeans_and_what_is_said_of_a_cluster() -> None:
    rows, truth = blobs((60, 40, 20))
    labels = ["cat" if t == 0 else "dog" if i % 4 else None for i, t in enumerate(truth.tolist())]
    items = [f"{i // 5}" for i in range(len(rows))]
    found = cluster(rows, ClusterOptions("kmeans", 3), labels, items)
    first, second, third = found.clusters
    assert (first.size, second.size, third.size) == (60, 40, 20)
    assert (first.name, second.name, third.name) == ("cat", "dog", "dog · 2")
    assert first.labels[0].share == 1 and first.labels[0].count == 60
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for one in found.clusters:
        own = np.flatnonzero(found.numbers == one.number)
        assert one.medoids[0] == own[(unit[own] @ unit[own].T).sum(axis=1).argmax()]
        assert len({items[row] for row in one.medoids}) == len(one.medoids) == 3
        assert one.stability is not None and one.stability > 0.99
    assert found.noise == 0 and np.isfinite(found.central).all()


def test_stray_rows_are_noise_and_no_structure_is_unstable() -> None:
    rows, truth = blobs((80, 80), d=12, noise=0.1, stray=40)
    found = cluster(rows, ClusterOptions(), runs=2)
    assert (found.numbers[truth == -1] == NOISE).mean() > 0.8
    assert np.isnan(found.central[found.numbers == NOISE]).all()
    clear = cluster(blobs((50, 50, 50))[0], ClusterOptions("kmeans", 3)).stability
    shapeless = cluster(
        np.random.default_rng(0).standard_normal((150, 64)), ClusterOptions("kmeans", 3)
    )
    assert clear is not None and shapeless.stability is not None
    assert shapeless.stability < 0.3 < 0.99 < clear


def test_results_repeat_and_do_not_depend_on_the_lengths() -> None:
    rows, _ = blobs((50, 40, 30), stray=10)
    one, other = cluster(rows, ClusterOptions()), cluster(rows * 7, ClusterOptions())
    assert np.array_equal(one.numbers, other.numbers) and one.clusters == other.clusters


def test_more_rows_than_are_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penult.analysis.clustering._MOST", 200)
    rows, truth = blobs((500, 300, 200))
    found = cluster(rows, ClusterOptions("kmeans", 3), runs=1)
    assert agreement(found.numbers, [str(t) for t in truth]).ari == 1  # type: ignore[union-attr]
    assert "found on 200 rows" in found.notes[0]


def test_agreement() -> None:
    numbers = np.array([0, 0, 1, 1, -1, -1], np.int32)
    agree = agreement(numbers, ["a", "a", "b", "b", "a", None])
    assert agree is not None and agree.rows == 5 and agree.clustered_ari == 1 > agree.ari
    assert agreement(numbers, [None] * 6) is None


def test_diffusion_joins_what_hangs_together() -> None:
    """Two rings of the same middle: no direction tells them apart, the neighbours do."""
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    rows = np.concatenate([ring, 3 * ring])
    moved = diffused(rows, 6)
    assert np.array_equal(moved, diffused(rows, 6))
    means = [moved[:200].mean(axis=0), moved[200:].mean(axis=0)]
    near = np.linalg.norm(moved[:, None] - np.stack(means), axis=2).argmin(axis=1)
    assert (near[:200] == 0).all() and (near[200:] == 1).all()


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (np.zeros((0, 4)), ClusterOptions(), "two rows or more"),
        (np.ones((1, 4)), ClusterOptions(), "two rows or more"),
        (np.eye(4), ClusterOptions("dbscan"), "'dbscan' is not known; hdbscan and kmeans work"),
        (
            np.eye(4),
            ClusterOptions("evoc"),
            "'evoc', which is no longer there; hdbscan and kmeans work",
        ),
        (np.eye(4), ClusterOptions("kmeans"), "needs the number of clusters"),
        (np.eye(4), ClusterOptions("kmeans", 5), "5 clusters were asked for; 4 rows"),
        (np.eye(4)[[0, 0, 0, 1]], ClusterOptions("kmeans", 3), "2 of them different"),
        (np.eye(4), ClusterOptions("kmeans", 0), "have 1 to 4"),
        (np.eye(4), ClusterOptions("hdbscan", 3), "--method kmeans takes one"),
        (np.eye(4), ClusterOptions(min_size=9), "2 to 4 work"),
        (
            np.array([[1.0, np.nan]] * 5),
            ClusterOptions(),
            "5 of 5 vectors have values that are not finite",
        ),
    ],
)
def test_what_is_refused(rows: np.ndarray, options: ClusterOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cluster(rows, options)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 17])
def test_few_rows_and_equal_rows(n: int) -> None:
    random = np.random.default_rng(0)
    found = cluster(random.standard_normal((n, 32)), ClusterOptions())
    assert found.noise + sum(one.size for one in found.clusters) == n
    same = cluster(np.tile(random.standard_normal(32), (n, 1)), ClusterOptions())
    assert [one.size for one in same.clusters] == [n] and "are the same" in same.notes[0]
    twice = np.repeat(random.standard_normal((2, 32)), n, axis=0)
    assert [one.size for one in cluster(twice, ClusterOptions("kmeans", 2)).clusters] == [n, n]


@pytest.fixture
def made(tmp_path: Path) -> Collection:
    rows, truth = blobs((30, 20, 10), DIM, noise=0.1)
    ids = [f"/calls/{'abc'[t]}_{i:02}.wav" for i, t in enumerate(truth.tolist())]
    return filled(tmp_path / "c.lance", batch(ids, vectors=rows))


def test_they_are_kept_and_name_the_rows(made: Collection) -> None:
    before = made.vectors()[1]
    found = derived.find_clusters(made, ClusterOptions(), by="{}_*.wav")
    assert found.agreement is not None and found.agreement.ari == 1
    assert derived.keep_clusters(made, found) == "hdbscan"
    names = labelled(made, ["cluster", "cluster:hdbscan", "{}_*.wav"]).names
    assert names["cluster"] == names["cluster:hdbscan"]
    pairs = set(zip(names["cluster"], names["{}_*.wav"], strict=True))
    assert len(pairs) == 3 and {kept for kept, _ in pairs} == {
        "cluster 0",
        "cluster 1",
        "cluster 2",
    }
    derived.keep_clusters(made, derived.find_clusters(made, ClusterOptions("kmeans", 2)), "two")
    assert len(set(labelled(made, ["cluster"]).names["cluster"])) == 2
    assert len(set(labelled(made, ["cluster:hdbscan"]).names["cluster:hdbscan"])) == 3
    assert np.array_equal(made.vectors()[1], before)
    with pytest.raises(LabelsError, match="has no clusters called 'mine' yet"):
        labelled(made, ["cluster:mine"])


def test_rows_that_come_later_have_none(made: Collection) -> None:
    derived.keep_clusters(
        made, derived.find_clusters(made, ClusterOptions("kmeans", 2), where="id LIKE '/calls/a%'")
    )
    names = labelled(made, ["cluster"])
    with writing(made.path, MANIFEST) as writer:
        writer.write(batch(["/calls/z.wav"]))
    later = labelled(made, ["cluster"])
    assert later.names["cluster"] == [*names.names["cluster"], None]


def test_on_the_command_line(made: Collection, tmp_path: Path) -> None:
    out = tmp_path / "clusters.csv"
    said = ask("cluster", made.path, "--by", "{}_*.wav", "--out", out, "--space", "centre")
    assert said.code == 0 and "3 clusters of 60 rows, 0 (0%) in no cluster" in said.out
    assert "adjusted Rand index 1.000" in said.out
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 60 and {row["cluster"] for row in rows} == {"0", "1", "2"}
    said = ask("cluster", made.path, "--clusters", 2, "--json")
    assert said.json["asked"]["method"] == "kmeans" and len(said.json["clusters"]) == 2
    for options, says in (
        (["--where", "id = 'x'"], "no row"),
        (["--by", "words"], "'words' names nothing"),
        (["--clusters", 61], "61 clusters were asked for"),
        (["--method", "birch"], "'birch' is not known"),
        (["--space", "scael"], "has no space 'scael'"),
    ):
        wrong = ask("cluster", made.path, *options)
        assert wrong.code == 2 and says in wrong.error, wrong
    empty = filled(tmp_path / "empty.lance")
    assert "it has no rows" in ask("cluster", empty.path).error


def test_on_real_clips(tmp_path: Path) -> None:
    """Of the bundled clips, half the words of which the classifier never knew."""
    from penult.embedding.embedder import open_embedder
    from penult.models.specs import demo_folder

    col = Collection.open(tmp_path / "words.lance")
    col.add(open_embedder("demo"), demo_folder().parent / "clips" / "clips.csv")
    found = derived.find_clusters(col.reader, ClusterOptions(), by="word")
    assert found.agreement is not None and found.agreement.ari > 0.9
