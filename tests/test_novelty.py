"""Novel rows: scores by hand, the level on new groups, planted outliers, detectors, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from penult.analysis.novelty import (
    METHODS,
    NEW,
    MethodAurocs,
    choose_method,
    fold_scores,
    folds_of,
    novelty_scores,
    p_values,
)
from penult.collection import detectors
from penult.collection.collection import Collection
from penult.collection.detectors import Detector
from penult.collection.novelty import find_novelty, fit_detector
from penult.collection.writer import writing
from penult.errors import UsageError
from test_cli import Said, ask
from test_collection import DIM, MANIFEST, batch, filled

DAYS, PER_DAY, STRANGE = 6, 20, 12


def sounds(seed: int = 0) -> np.ndarray:
    """Normal rows of six days in their order, each with its own offset; then strangers."""
    random = np.random.default_rng(seed)
    centre = np.zeros(DIM)
    centre[0] = 4
    days = np.repeat(0.3 * random.standard_normal((DAYS, DIM)), PER_DAY, axis=0)
    normal = centre + days + 0.5 * random.standard_normal((DAYS * PER_DAY, DIM))
    strange = centre[::-1] + 0.5 * random.standard_normal((STRANGE, DIM))
    return np.concatenate([normal, strange]).astype(np.float32)


def recorded(path: Path) -> Collection:
    """120 normal rows of six days, and twelve strangers without a day."""
    count = DAYS * PER_DAY
    days = [f"day {row // PER_DAY}" for row in range(count)] + [None] * STRANGE
    columns = {
        "state": ["healthy"] * count + ["unknown"] * STRANGE,
        "day": days,
        "one": ["x"] * (count + STRANGE),
        "nan": [float("nan")] * (count + STRANGE),
    }
    types = {"state": pa.string(), "day": pa.string(), "one": pa.string(), "nan": pa.float64()}
    ids = [f"{row:03}.wav" for row in range(count + STRANGE)]
    return filled(path, batch(ids, vectors=sounds(), **columns), metadata=types)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """For tests that write no rows."""
    return recorded(tmp_path_factory.mktemp("novelty") / "c.lance")


@pytest.fixture
def growing(tmp_path: Path) -> Collection:
    """For tests that write rows."""
    return recorded(tmp_path / "c.lance")


def novelty(store: Collection, *words: object) -> Said:
    return ask("novelty", store.path, "--normal", "state = 'healthy'", *words)


def test_scores_are_those_by_hand() -> None:
    random = np.random.default_rng(3)
    normal, rows = random.standard_normal((40, 6)) + 1, random.standard_normal((5, 6))
    folds, none = np.arange(40) % 4, np.full(5, NEW)
    near = NearestNeighbors(n_neighbors=5, metric="cosine").fit(normal)
    knn = novelty_scores("knn", normal, folds, rows, none)
    assert knn == pytest.approx(near.kneighbors(rows)[0].mean(axis=1))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    around = [
        np.mean(sorted((cosine(one, two) for j, two in enumerate(normal) if j != i))[-10:])
        for i, one in enumerate(normal)
    ]
    csls = novelty_scores("csls", normal, folds, rows, none)
    for row, found in zip(rows, csls, strict=True):
        cosines = [cosine(row, one) for one in normal]
        own = np.mean(sorted(cosines)[-10:])
        likeness = [2 * c - own - r for c, r in zip(cosines, around, strict=True)]
        assert found == pytest.approx(-np.mean(sorted(likeness)[-5:]))
    covariance = np.cov(normal.T, bias=True)
    mean = np.trace(covariance) / 6
    inverse = np.linalg.inv(covariance + 3 * mean * np.eye(6)) * 3 * mean
    far = [mahalanobis(row, normal.mean(axis=0), inverse) for row in rows]
    found = novelty_scores("mahalanobis", normal, folds, rows, none)
    assert found == pytest.approx(far, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_fold_do_not_score_each_other(method: str) -> None:
    normal = np.random.default_rng(0).standard_normal((30, 5)) + 1
    folds = np.arange(30) % 3
    held = novelty_scores(method, normal, folds, normal, folds)
    for fold in range(3):
        rest = normal[folds != fold]
        alone = novelty_scores(method, rest, np.zeros(20, int), normal[folds == fold],
                               np.full(10, NEW))  # fmt: skip
        assert held[folds == fold] == pytest.approx(alone)


def test_p_values_count_held_out_rows_of_other_folds() -> None:
    held, folds = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1])
    asked = np.array([[2.0, 9.0, 3.5, 0.0], [3.5, 9.0, 3.5, 0.0]])
    found = p_values(held, folds, asked, np.array([NEW, NEW, 0, 1]))
    assert found == pytest.approx([3 / 5, 1 / 5, 2 / 3, 1])


def test_a_new_row_is_compared_with_each_fold_as_its_rows_were_scored() -> None:
    normal = np.random.default_rng(0).standard_normal((30, 5)) + 1
    rows, folds = normal[:3] + 0.1, np.arange(30) % 3
    found = fold_scores("knn", normal, folds, rows, np.array([NEW, NEW, 2]))
    for fold in range(3):
        for row, without in ((0, fold), (1, fold), (2, 2)):
            alone = novelty_scores("knn", normal[folds != without], np.zeros(20, int),
                                   rows[row : row + 1], np.array([NEW]))  # fmt: skip
            assert found[fold, row] == pytest.approx(alone[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_level_is_kept_on_normal_rows_of_new_groups(method: str) -> None:
    """Ten groups score rows of ten others, which differ as they do: p-values are uniform."""
    found = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        centres = np.repeat(0.3 * random.standard_normal((20, DIM)), 20, axis=0)
        rows = 2 + centres + 0.5 * random.standard_normal((400, DIM))
        normal, new = rows[:200], rows[200:]
        folds = folds_of([str(row // 20) for row in range(200)], 200)
        held = novelty_scores(method, normal, folds, normal, folds)
        none = np.full(200, NEW)
        scores = fold_scores(method, normal, folds, new, none)
        found.append(p_values(held, folds, scores, none))
    every = np.concatenate(found)
    for level, wide in ((0.05, 0.025), (0.2, 0.06), (0.5, 0.08)):
        assert (every <= level).mean() == pytest.approx(level, abs=wide)


def test_groups_share_folds_where_there_are_many() -> None:
    groups = [f"group {row // 3}" for row in range(90)]
    folds = folds_of(groups, 90)
    assert set(folds) == set(range(10)) and set(np.bincount(folds)) == {9}
    for name in set(groups):
        assert len({int(fold) for fold, own in zip(folds, groups, strict=True) if own == name}) == 1
    assert sorted(np.bincount(folds_of(None, 95, seed=1)).tolist()) == [9] * 5 + [10] * 5


@pytest.mark.parametrize("method", ["mahalanobis", "auto"])
def test_planted_strangers_come_first(store: Collection, method: str) -> None:
    said = novelty(store, "--groups", "day", "--method", method, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    rows = found["rows"]
    assert len(rows) == 132 and set(rows[0]) == {"id", "region", "novelty", "p_value"}
    assert [row["novelty"] for row in rows] == sorted((r["novelty"] for r in rows), reverse=True)
    truth = [row["id"] >= "120.wav" for row in rows]
    assert roc_auc_score(truth, [row["novelty"] for row in rows]) > 0.99
    assert all(row["p_value"] <= 0.05 for row in rows if row["id"] >= "120.wav")
    assert found["normal"] == 120 and found["groups"] == "day"
    level = found["level"]
    assert level["for_new_groups"] and level["groups"] == 6
    normal = [row for row in rows if row["id"] < "120.wav"]
    low = [sum(r["p_value"] <= 0.05 for r in normal if int(r["id"][:3]) // PER_DAY == day) / PER_DAY
           for day in range(DAYS)]  # fmt: skip
    assert level["share"] == pytest.approx(np.mean(low))
    assert (level["lowest_of_a_group"], level["highest_of_a_group"]) == (min(low), max(low))
    assert (found["auroc"] is not None) == (method == "auto")


def test_auto_takes_what_tells_planted_changes_best() -> None:
    """A dense and a sparse cluster: what lies half-way between rows is far from all, and CSLS lets
    the sparse ones be far. The AUROC again by numpy, on changes that are drawn anew."""
    random = np.random.default_rng(0)
    dense = 0.05 * random.standard_normal((100, DIM)) + 3 * np.eye(DIM)[0]
    normal = np.concatenate([dense, random.standard_normal((100, DIM)) + 3 * np.eye(DIM)[1]])
    folds = folds_of(None, 200)
    choice = choose_method(normal, folds)
    assert set(choice.auroc) == set(METHODS)
    assert all(set(one) == {"shifted", "between", "mixed"} for one in choice.auroc.values())
    means = choice.means()
    assert choice.taken == "knn" and means["knn"] > max(means["csls"], means["mahalanobis"]) + 0.05
    between = (normal + normal[np.random.default_rng(7).permutation(200)]) / 2
    units = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    scores = []
    for row, fold in zip(np.concatenate([normal, between]), [*folds, *folds], strict=True):
        cosines = np.sort(units[folds != fold] @ row / np.linalg.norm(row))
        scores.append(1 - cosines[-5:].mean())
    again = roc_auc_score([0] * 200 + [1] * 200, scores)
    assert choice.auroc["knn"]["between"] == pytest.approx(again, abs=0.08)
    assert choose_method(normal, folds) == choice


def test_without_groups_no_level_for_new_ones_is_stated(store: Collection) -> None:
    said = novelty(store, "--json")
    assert said.code == 0 and "windows of one recording confirm each other" in said.err
    level = json.loads(said.out)["level"]
    assert not level["for_new_groups"] and level["groups"] is None
    shown = novelty(store)
    assert "for new groups" not in shown.out and "120 normal rows" in shown.out
    with_days = novelty(store, "--groups", "day")
    assert "the level for new groups" in " ".join(with_days.out.split())


def test_all_rows_may_be_normal(store: Collection) -> None:
    said = ask("novelty", store.path, "--normal", "one = 'x'", "--method", "knn", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["normal"] == len(found["rows"]) == 132


def test_columns_serve_filters_and_are_told_to_be_stale(
    growing: Collection, tmp_path: Path
) -> None:
    out = tmp_path / "all.csv"
    said = novelty(growing, "--groups", "day", "--out", out)
    assert said.code == 0 and "12 of 12 other rows have p ≤ 0.05" in said.out
    with out.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 132 and {line["id"] for line in lines[:12]} >= {"120.wav", "131.wav"}
    low = [line["id"] for line in lines if float(line["p_value"]) <= 0.05]
    assert growing.vectors("novelty_p <= 0.05")[0]["id"].to_pylist() == sorted(low)
    with writing(growing.path, MANIFEST) as writer:
        writer.write(batch(["new.wav"], state=["unknown"], day=[None], one=["x"], nan=[1.0]))
    said = ask("search", growing.path, "007.wav", "--where", "novelty > 0.5")
    assert "novelty is stale: 1 of 133 rows" in said.err
    assert "--groups day" in " ".join(said.err.split())


@pytest.mark.parametrize("words", [("--groups", "day"), ("--space", "centre")])
def test_a_detector_says_the_same_tomorrow(
    growing: Collection, tmp_path: Path, words: tuple[str, ...]
) -> None:
    file = tmp_path / "pump.npz"
    said = novelty(growing, *words, "--save", file, "--json")
    assert said.code == 0, said.err
    before = {row["id"]: row for row in json.loads(said.out)["rows"]}
    ids = [f"x{row}.wav" for row in range(300)]
    more = batch(ids, seed=9, state=["healthy"] * 300, day=["day 0"] * 300, one=["x"] * 300,
                 nan=[1.0] * 300)  # fmt: skip
    with writing(growing.path, MANIFEST) as writer:
        writer.write(more)
    said = ask("novelty", growing.path, "--detector", file, "--json")
    assert said.code == 0, said.err
    after = {row["id"]: row for row in json.loads(said.out)["rows"]}
    assert len(after) == 432
    for id, row in before.items():
        assert after[id]["novelty"] == pytest.approx(row["novelty"], abs=2e-6)
        assert after[id]["p_value"] == row["p_value"]
    again = novelty(growing, *words, "--save", file)
    assert again.code == 2 and "--overwrite" in again.err
    assert novelty(growing, *words, "--save", file, "--overwrite").code == 0


def test_a_detector_is_for_its_embedder_and_its_windows(store: Collection, tmp_path: Path) -> None:
    made = fit_detector(store.reader, "state = 'healthy'", method="knn")
    file = detectors.write(tmp_path / "pump.npz", replace(made, window=2.0))
    lengths = "made for windows of 2 s, and most rows here are whole items"
    said = ask("novelty", store.path, "--detector", file)
    assert said.code == 2 and not said.out
    assert lengths in (told := " ".join(said.err.split())) and "--window 2" in told
    with pytest.raises(UsageError, match=lengths):
        find_novelty(store.reader, detectors.read(file))
    said = ask("novelty", store.path, "--detector", file, "--any-window", "--json")
    assert said.code == 0 and lengths in " ".join(said.err.split())
    plain = find_novelty(store.reader, made)
    assert json.loads(said.out)["rows"] == [row.to_dict() for row in plain.rows]
    other = replace(MANIFEST, fingerprint={**MANIFEST.fingerprint, "weights": "sha256:bbbb"})
    theirs = filled(tmp_path / "o.lance", batch(["a.wav"], manifest=other), manifest=other)
    said = ask("novelty", theirs.path, "--detector", file)
    assert said.code == 2 and "made with another embedder" in " ".join(said.err.split())
    assert "weights" in said.err


def test_another_collection_is_scored_by_a_detector(store: Collection, tmp_path: Path) -> None:
    """It lacks the column of the groups: its rows are of new ones."""
    made = fit_detector(store.reader, "state = 'healthy'", "day", method="knn")
    rows = batch(["p.wav", "q.wav"], vectors=sounds()[[0, -1]])
    theirs = filled(tmp_path / "o.lance", rows)
    found = find_novelty(theirs.reader, made)
    assert any("count as of new groups" in note for note in found.notes)
    assert [row.id for row in found.rows] == ["q.wav", "p.wav"]
    assert found.rows[0].p_value == pytest.approx(1 / 121)


def test_a_detector_that_was_changed_is_refused(store: Collection, tmp_path: Path) -> None:
    made = fit_detector(store.reader, "state = 'healthy'", "day")
    file = detectors.write(tmp_path / "pump.npz", made)
    read = detectors.read(file)
    assert isinstance(read, Detector) and (read.method, read.keys) == (made.method, made.keys)
    assert (read.vectors == made.vectors).all() and (read.held == made.held).all()
    with np.load(file) as saved:
        parts = {name: saved[name] for name in saved.files}
    parts["held"] = parts["held"] + 1
    np.savez(file, **parts)
    said = ask("novelty", store.path, "--detector", file)
    assert said.code == 2 and "not as it was saved" in " ".join(said.err.split())
    file.write_bytes(b"no archive")
    with pytest.raises(UsageError, match="no npz archive"):
        detectors.read(file)
    with pytest.raises(UsageError, match=r"--save .*makes one"):
        detectors.read(tmp_path / "none.npz")


def test_normal_rows_by_their_own_novelty_are_told(store: Collection) -> None:
    told = "chosen by their own novelty"
    assert told not in " ".join(novelty(store, "--method", "knn").err.split())
    said = ask("novelty", store.path, "--normal", "novelty_p > 0.2 AND state != 'novelty'")
    assert said.code == 0 and told in " ".join(said.err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--normal", "state = 'ill'"), "no normal rows"),
        (("--normal", "no_such = 1"), "the filter"),
        (("--normal", "id = '000.wav'"), "too few"),
        (("--normal", "one = 'x'", "--groups", "one"), "one group only"),
        (("--normal", "one = 'x'", "--groups", "no such column"), "no such column"),
        (("--normal", "one = 'x'", "--groups", "nan"), "nan"),
        (("--normal", "one = 'x'", "--method", "guess"), "mahalanobis"),
        (("--normal", "one = 'x'", "--space", "nowhere"), "nowhere"),
        (("--normal", "one = 'x'", "--save", "pump.bin"), "pump.bin.npz"),
        (("--normal", "one = 'x'", "--detector", "pump.npz"), "--normal WHERE"),
        (("--detector", "pump.npz", "--method", "knn"), "settled in the detector"),
        ((), "--normal WHERE"),
    ],
)
def test_what_cannot_be_is_told_in_words(
    store: Collection, words: tuple[str, ...], says: str
) -> None:
    said = ask("novelty", store.path, *words)
    assert said.code == 2 and says in " ".join(said.err.split()), said.err
    assert "Traceback" not in said.err


WINDOWS = 60  # of half a second, of each of four recordings


def run_of_pump(path: Path) -> Collection:
    """Windows of three normal recordings and one whose windows 10 to 19, 22 and 40 are strange."""
    random = np.random.default_rng(1)
    rows = 0.5 * random.standard_normal((4 * WINDOWS, DIM)) + 4 * np.eye(DIM)[0]
    strange = 3 * WINDOWS + np.array([*range(10, 20), 22, 40])
    rows[strange] += 20 * np.eye(DIM)[1]
    starts = [0.5 * (row % WINDOWS) for row in range(4 * WINDOWS)]
    found = batch(
        [f"{'abcd'[row // WINDOWS]}.wav" for row in range(4 * WINDOWS)],
        region=[f"{start:g}-{start + 0.5:g}" for start in starts],
        vectors=rows.astype(np.float32),
        state=["healthy"] * 3 * WINDOWS + ["unknown"] * WINDOWS,
    )
    for name, values in (("start", starts), ("end", [start + 0.5 for start in starts])):
        place = found.schema.get_field_index(name)
        found = found.set_column(place, found.schema.field(name), pa.array(values, pa.float64()))
    return filled(path, found, metadata={"state": pa.string()})


@pytest.fixture(scope="module")
def pump(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """For tests that write no rows; `novelty` has been asked once, at a level of 0.01."""
    made = run_of_pump(tmp_path_factory.mktemp("pump") / "p.lance")
    said = novelty(made, "--groups", "id", "--method", "knn", "--alpha", "0.01")
    assert said.code == 0, said.err
    return made


def test_novel_windows_that_follow_each_other_are_one_event(
    pump: Collection, tmp_path: Path
) -> None:
    said = novelty(pump, "--groups", "id", "--method", "knn", "--alpha", "0.01", "--json",
                   "--events", tmp_path / "e.csv")  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)
    scores = {(row["id"], row["region"]): row for row in found["rows"]}
    expected, normal = [], 0
    for name in "abcd":
        regions = [f"{0.5 * at:g}-{0.5 * at + 0.5:g}" for at in range(WINDOWS)]
        own = [scores[f"{name}.wav", region] for region in regions]
        low = [row["p_value"] <= 0.01 for row in own]
        for first in (at for at in range(WINDOWS) if low[at] and not (at and low[at - 1])):
            last = next(at for at in range(first, WINDOWS + 1) if at == WINDOWS or not low[at])
            most = max(row["novelty"] for row in own[first:last])
            least = min(row["p_value"] for row in own[first:last])
            expected.append((f"{name}.wav", first / 2, last / 2, last - first, most, least))
            normal += name != "d"
    assert [(e["id"], e["start"], e["end"], e["windows"]) for e in found["events"]] == [
        one[:4] for one in expected
    ]
    assert {("d.wav", 5.0, 10.0, 10), ("d.wav", 11.0, 11.5, 1)} <= {one[:4] for one in expected}
    for event, one in zip(found["events"], expected, strict=True):
        assert (event["novelty"], event["p_value"]) == pytest.approx(one[4:], abs=1e-6)
        assert event["normal"] == (event["id"] != "d.wav")
    rates = found["events_per_hour"]
    assert rates["normal"] == pytest.approx(normal * 3600 / 90)
    assert rates["others"] == pytest.approx((len(expected) - normal) * 3600 / 30)
    with (tmp_path / "e.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["path"], float(line["end"])) for line in lines] == [
        (one[0], one[2]) for one in expected
    ]
    wide = novelty(pump, "--groups", "id", "--method", "knn", "--alpha", "0.01", "--json",
                   "--merge-gap", "1")  # fmt: skip
    joined = [(e["start"], e["windows"]) for e in json.loads(wide.out)["events"]]
    assert (5.0, 11) in joined


def test_events_are_written_as_raven_tables(pump: Collection, tmp_path: Path) -> None:
    asked = ("--groups", "id", "--method", "knn", "--alpha", "0.01", "--events")
    said = novelty(pump, *asked, f"{tmp_path}/tables/")
    assert said.code == 0, said.err
    assert "4 Raven tables" in " ".join(said.out.split())
    table = next((tmp_path / "tables").glob("d.*")).read_text(encoding="utf-8").splitlines()
    head = table[0].split("\t")
    rows = [dict(zip(head, line.split("\t"), strict=True)) for line in table[1:]]
    first = next(row for row in rows if float(row["Begin Time (s)"]) == 5)
    assert (float(first["End Time (s)"]), first["windows"]) == (10, "10")
    assert {row["Class"] for row in rows if "Class" in row} <= {"novel"}
    for words, says in ((("--events", tmp_path / "e.png"), "has to end in .csv"),
                        (("--events", f"{tmp_path}/tables/"), "--overwrite"),
                        (("--alpha", "2"), "between 0 and 1")):  # fmt: skip
        said = novelty(pump, *words)
        assert said.code == 2 and says in " ".join(said.err.split()), said.err


def test_novel_events_are_counted_by_hour_of_the_recording(
    pump: Collection, tmp_path: Path
) -> None:
    said = ask("activity", pump.path, "novelty_p<=0.01", "--by", "elapsed", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    expected = json.loads(novelty(pump, "--groups", "id", "--method", "knn", "--alpha", "0.01",
                                  "--json").out)["events"]  # fmt: skip
    assert found["events"] == len(expected) and found["time_zone"] is None
    assert [(c["day"], c["hour"], c["effort"], c["events"]) for c in found["cells"]] == [
        (None, 0, 4 * WINDOWS / 2, len(expected))
    ]
    picture = tmp_path / "novel.png"
    said = ask("activity", pump.path, "novelty_p<=0.01", "--by", "elapsed", "--out", picture)
    assert said.code == 0 and picture.stat().st_size > 5000
    assert "by hour of the recording" in said.out
    by = ("--by", "elapsed")
    for words, says in ((("novelty_p<=0.01",), "--by elapsed"),
                        (("novelty_p<=low", *by), "'low' is no number"),
                        (("novelty_p<=0.01", *by, "--time-zone", "UTC"), "time zone")):  # fmt: skip
        said = ask("activity", pump.path, *words)
        assert said.code in (1, 2) and says in " ".join(said.err.split()), said.err


def test_changes_that_are_not_heard_are_told(tmp_path: Path) -> None:
    """Independent numbers about 0: no change of them is one."""
    rows = np.random.default_rng(0).standard_normal((200, DIM)).astype(np.float32)
    ids = [f"{row:03}.wav" for row in range(200)]
    store = filled(tmp_path / "n.lance", batch(ids, vectors=rows))
    said = ask("novelty", store.path, "--normal", "id < '190'", "--json")
    found = json.loads(said.out)
    n = 190
    bound = 0.5 + 2 * ((2 * n + 1) / (12 * n * n)) ** 0.5
    own = found["auroc"][found["method"]]
    assert found["unheard"] == [name for name, value in own.items() if value <= bound]
    assert "mixed" in found["unheard"]
    assert any("does not hear" in note or "no method tells" in note for note in found["notes"])
    assert "AUROC" in said.err
    alike = MethodAurocs("knn", {name: {"mixed": 0.5, "between": 0.55} for name in METHODS})
    assert alike.unheard(100_000)["csls"] == ["mixed"]
    assert alike.unheard(100)["csls"] == ["mixed", "between"]
    made = fit_detector(store.reader, "id < '190'", method="knn")
    nothing = replace(made, about={**made.about, "auroc": alike.auroc})
    notes = find_novelty(store.reader, nothing).notes
    assert any("no method tells any planted change" in note for note in notes)
    assert not find_novelty(store.reader, made).unheard
