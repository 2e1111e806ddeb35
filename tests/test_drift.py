"""Drift: numbers by hand, the level on shuffled weeks, planted changes, parts, refusals."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from penult.analysis.drift import DriftTest, drift_test
from penult.collection.collection import Collection
from penult.collection.parts import parts_of
from penult.collection.writer import writing
from penult.errors import LabelsError
from test_cli import Said, ask
from test_collection import DIM, MANIFEST, batch, filled

WEEKS, PER_WEEK, CHANGE = 8, 12, 5
BEGIN = datetime(2021, 6, 7, 4, 30, tzinfo=UTC)  # a Monday


def recorded(path: Path) -> Collection:
    """96 recordings of eight weeks, from the sixth on with another background; three sites, of
    which one differs in another direction."""
    count = WEEKS * PER_WEEK
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, DIM)) + 2
    site = np.arange(count) % 3
    vectors[CHANGE * PER_WEEK :, 0] += 2
    vectors[site == 1, 1] += 2.5
    when = [BEGIN + timedelta(days=7 * (row // PER_WEEK), hours=row) for row in range(count)]
    columns = {
        "when": when,
        "text_when": [f"{one:%Y%m%d}" for one in when],
        "site": [f"site {number}" for number in site],
        "gain": (np.arange(count) / 7).tolist(),
        "machine": [f"m{row % 4}" for row in range(count)],
        "half": [f"h{row // 48}" for row in range(count)],
        "one": ["x"] * count,
        "nan": [float("nan")] * count,
        "own": [f"v{row}" for row in range(count)],
    }
    types = {name: pa.string() for name in columns}
    types |= {"when": pa.timestamp("us", "UTC"), "gain": pa.float64(), "nan": pa.float64()}
    columns["when"] = pa.array(when, types["when"])
    ids = [f"{row:03}.wav" for row in range(count)]
    return filled(path, batch(ids, vectors=vectors, **columns), metadata=types)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return recorded(tmp_path_factory.mktemp("drift") / "c.lance")


def drift(store: Collection, *words: object) -> Said:
    return ask("drift", store.path, "--draws", 199, *words)


def document(store: Collection, *words: object) -> dict:
    said = drift(store, *words, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_scores_and_p_values_are_those_by_hand() -> None:
    """Eight recordings of three windows, each a fold of its own. Once more by loops: whitened rows,
    means of recordings, a discriminant by the seven others; all 35 ways of exchange."""
    random = np.random.default_rng(2)
    group = np.repeat(np.arange(8), 3)
    part = (group > 3).astype(int)
    vectors = random.standard_normal((8, 3))[group] + 0.3 * random.standard_normal((24, 3))
    vectors[part == 1, 0] += 1.5
    centred = vectors - vectors.mean(axis=0)
    values, turned = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    rows = centred @ (turned / np.sqrt(values) @ turned.T)
    means = np.array([rows[group == one].mean(axis=0) for one in range(8)])

    def direction(late: set[int], without: int) -> np.ndarray:
        others = [one for one in range(8) if one != without]
        inside = np.mean([means[one] for one in others if one in late], axis=0)
        return inside - np.mean([means[one] for one in others if one not in late], axis=0)

    def statistic(late: set[int]) -> float:
        scores = np.array([means[one] @ direction(late, one) for one in range(8)])
        inside = np.isin(np.arange(8), list(late))
        return scores[inside].mean() - scores[~inside].mean()

    found = drift_test(vectors, part, [f"r{one}" for one in group], draws=1999)
    scores = [row @ direction({4, 5, 6, 7}, one) for row, one in zip(rows, group, strict=True)]
    assert found.scores[:, 1] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert found.scores[:, 0] == pytest.approx(-np.array(scores), rel=1e-4, abs=1e-5)
    assert found.parts[1].auroc == pytest.approx(roc_auc_score(part, scores))
    every = [statistic(set(late)) for late in combinations(range(8), 4)]
    own = statistic({4, 5, 6, 7})
    assert 0.01 < np.mean([one >= own - 1e-9 for one in every]) < 0.4
    exact = np.mean([one >= own - 1e-9 for one in every])
    assert found.p_value == pytest.approx(exact, abs=0.03)
    strength = (own - np.mean(every)) / np.std(every)
    assert found.parts[1].strength == pytest.approx(strength, rel=0.1)
    assert found.smallest == pytest.approx(1 / 35) and found.groups == 8
    assert [(one.rows, one.blocks) for one in found.parts] == [(12, 4)] * 2


def shuffled(seed: int, draws: int, by_recording: bool) -> DriftTest:
    """Recordings of one to six windows, alike within, in weeks that mean nothing."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(40), random.integers(1, 7, 40))
    vectors = random.standard_normal((40, 5))[group] + 0.3 * random.standard_normal((len(group), 5))
    week = random.permutation(np.arange(40) // 10)[group]
    names = [f"r{one}" for one in group] if by_recording else None
    return drift_test(vectors, week, names, ordered=True, draws=draws, seed=seed)


def test_shuffled_weeks_are_no_alarm_where_recordings_stay_whole() -> None:
    whole = [shuffled(seed, 39, True).p_value for seed in range(20)]
    torn = [shuffled(seed, 39, False).p_value for seed in range(20)]
    assert sum(one <= 0.05 for one in whole) <= 3
    assert sum(one <= 0.05 for one in torn) >= 10


@pytest.mark.slow
def test_no_alarm_on_shuffled_weeks_in_95_of_100(store: Collection) -> None:
    _, vectors = store.vectors()
    p_values = []
    for seed in range(100):
        rows = np.random.default_rng(seed).permutation(len(vectors))
        week = np.arange(len(vectors)) // PER_WEEK
        p_values.append(drift_test(vectors[rows], week, ordered=True, draws=199).p_value)
    assert sum(one <= 0.01 for one in p_values) <= 5
    assert sum(one <= 0.05 for one in p_values) <= 11  # of 5 expected: 1 in 200 draws has more
    assert np.median(p_values) == pytest.approx(0.5, abs=0.15)


def test_what_groups_have_in_common_is_taken_off() -> None:
    """Four machines far apart, each in both halves: a change of all of them is found beside what
    tells machines apart, and what differs by machine only is none."""
    random = np.random.default_rng(0)
    machine = np.tile(np.arange(8), 24)
    late = np.repeat([0, 1], 96)
    vectors = 9 * random.standard_normal((8, 4))[machine] + random.standard_normal((192, 4))
    vectors[:, 0] += 1.2 * late
    names = [f"m{one}" for one in machine]
    found = drift_test(vectors, late, names, draws=499)
    assert found.crossed == 8 and found.parts[0].blocks == 8
    assert found.smallest == pytest.approx(2 / 2**8)
    assert found.p_value < 0.02 and found.parts[1].auroc > 0.7
    vectors[:, 0] -= 1.2 * late
    assert drift_test(vectors, late, names, draws=199).p_value > 0.05


def test_since_when_and_the_column(tmp_path: Path) -> None:
    store, out = recorded(tmp_path / "c.lance"), tmp_path / "all.csv"
    picture = tmp_path / "d.png"
    said = drift(store, "--by", "when", "--every", "week", "--out", out, "--picture", picture)
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    assert "since 2021-07-12" in text and "most and least like from 2021-07-12 on" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = document(store, "--by", "when", "--every", "week")
    assert found["alarm"] and found["every"] == "week" and found["kind"] == "time"
    assert [one["part"] for one in found["parts"]] == [
        f"{BEGIN + timedelta(days=7 * week):%Y-%m-%d}" for week in range(WEEKS)
    ]
    assert found["since"]["part"] == "2021-07-12" and found["since"]["p_value"] == 1 / 200
    rows = found["rows"]
    late = [row["id"] >= "060.wav" for row in rows]
    assert [row["drift"] for row in rows] == sorted((r["drift"] for r in rows), reverse=True)
    auroc = roc_auc_score(late, [row["drift"] for row in rows])
    assert auroc == pytest.approx(found["since"]["auroc"], abs=1e-6) and auroc > 0.85
    assert np.mean([r["drift"] for r, one in zip(rows, late, strict=True) if one]) == (
        pytest.approx(auroc, abs=1e-5)
    )
    assert found["since"]["rows_most"][0]["id"] == next(
        row["id"] for row, one in zip(rows, late, strict=True) if one
    )
    high = store.vectors("drift > 0.95")[0]["id"].to_pylist()
    assert high == sorted(row["id"] for row in rows if row["drift"] > 0.95)
    with out.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(["new.wav"], when=pa.array([BEGIN], pa.timestamp("us", "UTC"))))
    said = ask("search", store.path, "007.wav", "--where", "drift > 0.5")
    assert "drift is stale: 1 of 97 rows" in said.err and "--every week" in said.err


def test_a_site_that_differs(store: Collection) -> None:
    found = document(store, "--by", "site")
    assert found["kind"] == "text" and found["since"] is None and found["splits"] == []
    best = max(found["parts"], key=lambda one: one["auroc"])
    assert best["part"] == "site 1" and best["p_value"] <= 0.01
    assert sum(row["part"] == "site 1" for row in found["rows"][:20]) >= 18
    shown = drift(store, "--by", "site")
    assert "parts that differ from all others more than chance: " in shown.out
    quiet = drift(store, "--by", "machine")
    assert "4 parts differ no more than chance" in quiet.out and "since" not in quiet.out
    alone = drift(store, "--by", "when", "--every", "minute").out
    assert "96 minutes, each too small to be tested alone; since 2021-07-1" in alone


def test_a_filter_leaves_rows_out(store: Collection) -> None:
    found = document(store, "--by", "site", "--where", "site <> 'site 1'")
    assert not found["alarm"] and len(found["rows"]) == 64
    before = document(store, "--by", "when", "--every", "week", "--where", "id < '060.wav'")
    assert before["since"] is None and not before["alarm"]


def test_parts_of_times_numbers_and_texts(store: Collection) -> None:
    table = store.vectors(columns=["id", "when", "text_when", "gain", "site", "machine"])[0]
    assert parts_of(store.reader, table, "when").period == "day"
    weeks = parts_of(store.reader, table, "when", "week")
    assert weeks.of_row.tolist()[::PER_WEEK] == list(range(WEEKS))
    dates = parts_of(store.reader, table, "text_when", "month")
    assert (dates.kind, dates.names) == ("time", ["2021-06", "2021-07"])
    # 23:30 in UTC is the next day in Berlin.
    one = parts_of(store.reader, table, "when", "day").names
    other = parts_of(store.reader, table, "when", "day", "+14:00").names
    assert one != other
    ranges = parts_of(store.reader, table, "gain")
    assert len(ranges.names) == 10 and ranges.names[0].startswith("0 to ")
    counts = np.bincount(ranges.of_row)
    assert counts.min() >= 9 and counts.max() <= 11 and (np.diff(ranges.of_row) >= 0).all()
    numbers = parts_of(store.reader, table, "{}.wav")  # 96 of them
    assert numbers.kind == "number" and len(numbers.names) == 10
    assert not parts_of(store.reader, table, "site").is_ordered
    assert parts_of(store.reader, table, "text_when", as_names=True).kind == "text"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--by", "one"], "all 96 rows with a value by 'one' are 'x'"),
        (["--by", "nan"], "no row of"),
        (["--by", "own"], "96 parts by 'own' (v0, v1, v10 and 93 more) have 1 items at most"),
        (["--by", "label"], "'label' was computed from these very rows"),
        (["--by", "cluster"], "'cluster' was computed from these very rows"),
        (["--by", "nothing"], "'nothing' names nothing"),
        (["--by", "recorded_at"], "penult migrate"),
        (["--by", "site", "--every", "week"], "'site' holds 'site 0'"),
        (["--by", "when", "--every", "fortnight"], "'fortnight' is no period"),
        (["--by", "when", "--every", "year"], "are in one year"),
        (["--by", "site", "--groups", "site"], "each group would be a part"),
        (["--by", "half", "--groups", "one"], "all 96 rows are of one group"),
        (["--by", "site", "--where", "id < '0'"], "no row of"),
        (["--by", "site", "--where", "id < '006.wav'"], "3 parts by 'site'"),
        (["--by", "site", "--alpha", "0"], "--alpha 0 cannot be"),
        (["--by", "site", "--space", "nowhere"], "nowhere"),
        (["--by", "site", "--picture", "d.gif"], "a picture is written as"),
    ],
)  # fmt: skip
def test_refusals(store: Collection, words: list[str], text: str) -> None:
    said = drift(store, *words)
    assert said.code == 2 and text in " ".join(said.err.split()), said.err


def test_few_groups_are_told(store: Collection) -> None:
    said = drift(store, "--by", "half", "--groups", "machine")
    assert said.code == 0
    told = " ".join(said.err.split())
    assert "4 of 4 groups have rows of several parts" in told
    assert "with 4 groups no p-value can be below 0.13" in told
    assert "2 parts differ no more than chance" in said.out


def test_refusals_of_vectors() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 3))
    with pytest.raises(LabelsError, match="one part"):
        drift_test(rows, np.zeros(12, int))
    with pytest.raises(LabelsError, match="do not fit vectors"):
        drift_test(rows, np.zeros(11, int))
    with pytest.raises(LabelsError, match="11 groups"):
        drift_test(rows, np.arange(12) % 2, ["a"] * 11)
    with pytest.raises(LabelsError, match="of one group"):
        drift_test(rows, np.arange(12) % 2, ["a"] * 12)
