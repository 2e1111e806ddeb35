"""Pairs as same or different: error rates and costs against tables worked out by hand, and the
trials of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penult.analysis.verification import (
    Cohort,
    OperatingPoint,
    Pairs,
    cllr,
    detection_cost,
    equal_error,
    held_out_cllr,
    least_cllr,
    s_norm,
    verify,
)
from penult.errors import LabelsError
from test_cli import ask
from test_collection import MANIFEST, batch, filled

# Scores of pairs of one class, of two, and where the two error rates are equal, by hand.
BY_HAND = {
    "separable": ([0.9, 0.8], [0.2, 0.1], 0),
    "turned round": ([0.2, 0.1], [0.9, 0.8], 1),
    "all the same": ([0.5, 0.5, 0.5], [0.5, 0.5], 1 / 2),
    # At 0.6, one of four is missed and one of four accepted.
    "one of four": ([0.9, 0.8, 0.7, 0.3], [0.6, 0.2, 0.1, 0.0], 1 / 4),
    # Above 0.5: missed 1/2, accepted 0; from 0.5 on: missed 0, accepted 1/2. Half way: 1/4.
    "a tie": ([0.9, 0.5], [0.5, 0.1], 1 / 4),
    # From 0.5 on: missed 1/2, accepted 1/3; from 0.4 on: missed 0, accepted 1/3.
    "between two thresholds": ([0.9, 0.4], [0.5, 0.3, 0.2], 1 / 3),
    "one pair of each kind": ([0.3], [0.3], 1 / 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_equal_error_rate_by_hand(name: str) -> None:
    same, different, expected = BY_HAND[name]
    kinds = np.repeat([True, False], [len(same), len(different)])
    scores = np.array([*same, *different])
    assert equal_error(scores, kinds).rate == pytest.approx(expected, abs=1e-12)
    # The same of pairs in another order, and of pairs that count double by a weight.
    order = np.random.default_rng(1).permutation(len(scores))
    assert equal_error(scores[order], kinds[order]).rate == pytest.approx(expected, abs=1e-12)
    twice = equal_error(scores, kinds, np.where(kinds, 2.0, 3.0))
    assert twice.rate == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ([True, True], "2 of one class and 0 of two"),
        ([False, False], "0 of one class and 2 of two"),
    ],
)
def test_pairs_of_one_kind_have_no_error_rate(kinds: Sequence[bool], says: str) -> None:
    with pytest.raises(LabelsError, match=says):
        equal_error([0.1, 0.2], kinds)


WORDS, VOICES = "yes no stop".split(), "ann bob cat".split()


def spoken() -> tuple[np.ndarray, list[str], list[str]]:
    """Each word by each voice. Cosines: 0.80 of one word, 0.90 of one voice, 0.72 of neither."""
    rows, words, voices = [], [], []
    for word in range(3):
        for voice in range(3):
            parts = (np.ones(1), np.eye(3)[word], np.eye(3)[voice], np.eye(9)[3 * word + voice])
            shares = (0.72, 0.08, 0.18, 0.02)
            rows.append(
                np.concatenate([np.sqrt(s) * p for s, p in zip(shares, parts, strict=True)])
            )
            words.append(WORDS[word])
            voices.append(VOICES[voice])
    return np.array(rows, np.float32), words, voices


@pytest.fixture
def store(tmp_path: Path) -> Path:
    vectors, words, voices = spoken()
    manifest = replace(MANIFEST, dim=vectors.shape[1])
    ids = [f"{word}-{voice}.wav" for word, voice in zip(words, voices, strict=True)]
    columns = {"word": words, "voice": voices, "room": ["hall"] * 9}
    rows = batch(ids, manifest=manifest, vectors=vectors, **columns)
    filled(tmp_path / "said.lance", rows, manifest=manifest,
           metadata=dict.fromkeys(columns, pa.string()))  # fmt: skip
    return tmp_path / "said.lance"


EER = "verification, equal error rate"


@pytest.mark.parametrize(
    ("groups", "same", "different", "expected"),
    [
        # Of one voice: 9 pairs of two words at 0.90. Then 9 of one word at 0.80, and 18 at 0.72.
        # Above 0.80: missed 1, accepted 1/3; from 0.80 on: missed 0, accepted 1/3.
        ((), 9, 27, 1 / 3),
        # Without pairs of one voice, each at 0.80 is of one word and each at 0.72 of two.
        (("--groups", "voice"), 9, 18, 0.0),
    ],
)
def test_verify_and_evaluate_say_the_same(
    store: Path, groups: tuple[str, ...], same: int, different: int, expected: float
) -> None:
    verified = ask("verify", store, "--by", "word", *groups, "--space", "raw", "--json").json
    assert (verified["same"], verified["different"]) == (same, different)
    assert verified["eer"] == pytest.approx(expected, abs=1e-12)
    measured = ask("evaluate", store, "--by", "word", *groups, "--space", "raw", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["figures"][EER] == pytest.approx(expected, abs=1e-12)


def test_verify_and_evaluate_agree_on_vectors_at_random(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    names = [f"c{number % 6}" for number in range(120)]
    groups = [f"g{random.integers(5)}" for _ in names]
    centres = random.normal(size=(6, 8)) + 0.0
    shift = {group: random.normal(size=8) for group in set(groups)}
    rows = np.array([centres[int(name[1])] + shift[group] + random.normal(size=8)
                     for name, group in zip(names, groups, strict=True)], np.float32)  # fmt: skip
    made = batch([f"{n}.wav" for n in range(120)], vectors=rows, kindred=names, site=groups)
    metadata = dict.fromkeys(("kindred", "site"), pa.string())
    filled(tmp_path / "c.lance", made, metadata=metadata)
    how = ("--by", "kindred", "--groups", "site", "--space", "raw", "--json")
    verified = ask("verify", tmp_path / "c.lance", *how).json
    measured = ask("evaluate", tmp_path / "c.lance", *how).json
    assert 0.05 < verified["eer"] < 0.45
    assert measured["figures"][EER] == pytest.approx(verified["eer"], abs=1e-12)
    # Counted another way: every threshold, every pair.
    long = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    pairs = [(float(long[i] @ long[j]), names[i] == names[j])
             for i in range(120) for j in range(i) if groups[i] != groups[j]]  # fmt: skip
    same = np.array([score for score, one in pairs if one])
    other = np.array([score for score, one in pairs if not one])
    assert (verified["same"], verified["different"]) == (len(same), len(other))
    rates = [(float((same < at).mean()), float((other >= at).mean())) for at, _ in pairs]
    near = min(rates, key=lambda both: abs(both[0] - both[1]))
    assert verified["eer"] == pytest.approx(sum(near) / 2, abs=0.002)


def test_all_in_one_group_leave_no_pair(store: Path) -> None:
    said = ask("verify", store, "--by", "word", "--groups", "room")
    assert said.code == 2 and "give no pair of the same name from two groups" in said.err
    said = ask("evaluate", store, "--by", "word", "--groups", "room")
    assert said.code == 2 and "of 3 classes 0 have two groups or more" in said.err
    said = ask("verify", store, "--by", "room")
    assert said.code == 2 and "give no pair of the different name" in said.err


# ---- detection cost, Cllr, s-norm


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        # Of 0.9 0.8 0.7 0.3 against 0.6 0.2 0.1 0.0: from 0.7 on 1/4 is missed and none accepted,
        # from 0.3 on none is missed and 1/4 accepted. Prior 1/2: (1/2 · 1/4) / (1/2).
        (OperatingPoint(0.5), 1 / 4),
        (OperatingPoint(0.01), 1 / 4),  # the threshold without a false accept: 0.01 · 1/4 / 0.01
        (OperatingPoint(0.99), 1 / 4),  # that without a miss: 0.01 · 1/4 / 0.01
        # Prior 1/2, a miss of 3 and a false accept of 1: from 0.3 on 1/2 · 1/4, of 1/2 at most.
        (OperatingPoint(0.5, 3.0, 1.0), 1 / 4),
        # A miss costs a tenth: then nothing is missed cheaper than 1/2 · 0.1 · 1/4 of 1/2 · 0.1.
        (OperatingPoint(0.5, 0.1, 1.0), 1 / 4),
    ],
)
def test_the_detection_cost_by_hand(point: OperatingPoint, expected: float) -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.0])
    kinds = np.repeat([True, False], 4)
    assert detection_cost(scores, kinds, point) == pytest.approx(expected, abs=1e-12)
    assert detection_cost(-scores, kinds, point) == pytest.approx(1, abs=1e-12)


def test_the_detection_cost_over_every_threshold() -> None:
    from sklearn.metrics import roc_curve

    random = np.random.default_rng(0)
    kinds = random.random(3000) < 0.2
    scores = np.round(random.normal(size=3000) + 1.3 * kinds, 2)  # with ties
    for point in (OperatingPoint(), OperatingPoint(0.05), OperatingPoint(0.3, 10.0, 1.0)):
        accepted, found, _ = roc_curve(kinds, scores, drop_intermediate=False)
        cost = point.miss * point.p_target * (1 - found)
        cost += point.false_accept * (1 - point.p_target) * accepted
        least = cost.min() / min(
            point.miss * point.p_target, point.false_accept * (1 - point.p_target)
        )
        assert detection_cost(scores, kinds, point) == pytest.approx(least, rel=1e-12)
        assert 0 < least < 1
    found = equal_error(scores, kinds)
    crossing = np.argmin(np.abs(1 - roc_curve(kinds, scores)[1] - roc_curve(kinds, scores)[0]))
    assert found.rate == pytest.approx(roc_curve(kinds, scores)[0][crossing], abs=0.01)


@pytest.mark.parametrize(
    ("prior", "miss", "false_accept"), [(0, 1, 1), (1, 1, 1), (0.1, 0, 1), (0.1, 1, -1)]
)
def test_operating_points_that_cannot_be(prior: float, miss: float, false_accept: float) -> None:
    with pytest.raises(LabelsError, match=r"prior lies between|both are positive"):
        OperatingPoint(prior, miss, false_accept)


def test_cllr_by_its_formula() -> None:
    kinds = np.array([True, True, False])
    # ½ (½ (log₂(1 + 1/3) + log₂(1 + 1)) + log₂(1 + 1/7)) of ratios 3, 1 and 1/7.
    ratios = np.log([3, 1, 1 / 7])
    expected = 0.5 * (0.5 * (np.log2(4 / 3) + 1) + np.log2(8 / 7))
    assert cllr(ratios, kinds) == pytest.approx(expected, rel=1e-12)
    assert cllr(np.zeros(3), kinds) == pytest.approx(1)
    assert cllr([50, 50, -50], kinds) < 1e-12
    # The best rising map of 3, 2, 1 where the middle one is of two: the first is certain, of the
    # other two, pooled, the different pair weighs as much as both same ones: 1/3 to 2/3.
    kinds = np.array([True, False, True])
    pooled = 0.5 * (0.5 * np.log2(3) + np.log2(1.5))
    assert least_cllr([3, 2, 1], kinds) == pytest.approx(pooled, rel=1e-9)
    assert least_cllr([3, 1, 2], kinds) == pytest.approx(0, abs=1e-9)
    assert least_cllr([1, 1, 1], kinds) == pytest.approx(1)


def test_ratios_of_other_names_are_calibrated() -> None:
    random = np.random.default_rng(0)
    names = np.repeat(np.arange(40), 6)
    left, right = np.triu_indices(len(names), 1)
    same = names[left] == names[right]
    # Normal scores of equal spread: the true ratio is linear in them, and its Cllr is known.
    scores = random.normal(size=len(left)) + 2.0 * same
    pairs = Pairs(names[left], names[right], same)
    true = cllr(2.0 * scores - 2.0, same)
    assert held_out_cllr(scores, pairs) == pytest.approx(true, abs=0.01)
    assert least_cllr(scores, same) < held_out_cllr(scores, pairs)
    # Scores the wrong way round are no evidence, and not good evidence of the opposite.
    assert held_out_cllr(-scores, pairs) == pytest.approx(1) == least_cllr(-scores, same)
    few = same | (left < 3)
    two = Pairs(names[left][few] % 2, names[right][few] % 2, same[few])
    assert np.isnan(held_out_cllr(scores[few], two))


def test_scores_normalised_by_a_cohort() -> None:
    rows = np.eye(3)[[0, 0, 1]] + 0.5
    cohort = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    names, of_cohort = np.array([7, 7, 8]), np.array([7, -1, -1, -1])
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    scores = np.array([0.9, 0.3])
    found = s_norm(scores, pairs, Cohort(cohort, of_cohort, 2).statistics(rows, names))
    unit = cohort / np.linalg.norm(cohort, axis=1, keepdims=True)
    expected = []
    for one, other, score in zip(pairs.left, pairs.right, scores, strict=True):
        parts = []
        for side in (one, other):
            near = unit @ rows[side] / np.linalg.norm(rows[side])
            near = np.sort(near[of_cohort != names[side]])[-2:]
            parts.append((score - near.mean()) / near.std())
        expected.append(np.mean(parts))
    assert found == pytest.approx(expected, rel=1e-12)
    with pytest.raises(LabelsError, match="fewer than two rows of other names"):
        Cohort(cohort[:1], of_cohort[:1]).statistics(rows, names)
    with pytest.raises(LabelsError, match="all the same"):
        Cohort(np.ones((3, 3)), np.arange(3)).statistics(rows, names)


def test_normalised_scores_undo_a_shift_of_one_speaker() -> None:
    random = np.random.default_rng(2)
    names = [f"n{at}" for at in range(30) for _ in range(4)]
    voice = np.repeat(random.normal(size=(30, 24)), 4, axis=0)
    common = np.repeat(np.where(np.arange(30) % 2, 3.0, 0.0), 4)[:, None] * np.ones(24)
    rows = voice + common + 0.8 * random.normal(size=voice.shape)
    plain, normed = verify(rows, names), verify(rows, names, cohort=40)
    assert normed.eer < 0.7 * plain.eer
    assert (normed.same, normed.different) == (plain.same, plain.different)


# ---- trials of a file


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def trials_of(path: Path, form: str) -> tuple[Path, list[tuple[str, str, bool]]]:
    """Every pair of two voices as a trial of words."""
    ids = [(word, voice) for word in WORDS for voice in VOICES]
    pairs = [(f"{a}-{v}.wav", f"{b}-{w}.wav", a == b)
             for at, (a, v) in enumerate(ids) for b, w in ids[at + 1 :] if v != w]  # fmt: skip
    if form == "kaldi":
        rows = [f"{a[:-4]} {b[:-4]} {'target' if s else 'nontarget'}" for a, b, s in pairs]
    else:
        rows = [f"{int(s)} {a} {b}" for a, b, s in pairs]
    return lines(path, *rows), pairs


@pytest.mark.parametrize("form", ["kaldi", "voxceleb"])
def test_trials_are_judged_as_the_pairs_are(store: Path, tmp_path: Path, form: str) -> None:
    file, pairs = trials_of(tmp_path / "trials", form)
    out = tmp_path / "scores"
    asked = ("verify", store, "--trials", file, "--space", "raw", "--scores", out, "--json")
    found = ask(*asked).json
    plain = ask("verify", store, "--by", "word", "--groups", "voice", "--space", "raw", "--json")
    same = {"same", "different", "eer", "auc", "min_dcf", "least_cllr", "pairs", "strict", "missed"}
    assert {name: found[name] for name in same} == pytest.approx(
        {name: plain.json[name] for name in same}, abs=1e-9
    )
    assert found["utterances"] == 9 and found["notes"] == []
    written = [line.split() for line in out.read_text().splitlines()]
    assert len(written) == len(pairs) == 27
    rows = dict(zip((f"{w}-{v}.wav" for w in WORDS for v in VOICES), spoken()[0], strict=True))
    for (a, b, _), parts in zip(pairs, written, strict=True):
        score, *names = parts if form == "voxceleb" else [parts[2], *parts[:2]]
        assert names == ([a, b] if form == "voxceleb" else [a[:-4], b[:-4]])
        cosine = rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
        assert float(score) == pytest.approx(cosine, abs=1e-6)
    shown = ask("verify", store, "--trials", file, "--space", "raw").out
    assert "equal error rate 0.0 %" in shown and "minDCF 0.000 at a prior of 0.01" in shown
    assert "9 target trials, 18 nontarget trials, 9 utterances; space raw" in shown


def test_a_model_is_enrolled_by_several_utterances(store: Path, tmp_path: Path) -> None:
    enrol = lines(tmp_path / "spk2utt", *(f"{w} {w}-ann {w}-bob" for w in WORDS))
    trials = lines(tmp_path / "t", *(
        f"{m} {w}-cat {'target' if m == w else 'nontarget'}" for m in WORDS for w in WORDS
    ))  # fmt: skip
    out = tmp_path / "scores"
    asked = ("--trials", trials, "--enrol", enrol, "--space", "raw", "--scores", out)
    found = ask("verify", store, *asked, "--json").json
    assert (found["same"], found["different"], found["enrolled"], found["eer"]) == (3, 6, 3, 0)
    rows = dict(zip((f"{w}-{v}" for w in WORDS for v in VOICES), spoken()[0], strict=True))
    unit = {name: row / np.linalg.norm(row) for name, row in rows.items()}
    for line in out.read_text().splitlines():
        model, test, score = line.split()
        mean = unit[f"{model}-ann"] + unit[f"{model}-bob"]
        cosine = mean @ unit[test] / np.linalg.norm(mean)
        assert float(score) == pytest.approx(cosine, abs=1e-6)
    # One utterance a model, against two: the mean is nearer to a third one of its word.
    alone = lines(tmp_path / "t1", *(
        f"{m}-ann {w}-cat {'target' if m == w else 'nontarget'}" for m in WORDS for w in WORDS
    ))  # fmt: skip
    one = ask("verify", store, "--trials", alone, "--space", "raw", "--json").json
    assert found["threshold"] > one["threshold"]


def test_trials_that_cannot_be(store: Path, tmp_path: Path) -> None:
    good = "yes-ann yes-bob target", "yes-ann no-bob nontarget"
    wrong = {
        "line 2: 'yes-ann no-bob' is no trial": (good[0], "yes-ann no-bob"),
        "line 2: '0 yes-ann no-bob' is no trial": (good[0], "0 yes-ann no-bob"),
        "1 target and 0 nontarget trials": good[:1],
        "0 target and 0 nontarget trials": ("",),
        "1 of 4 utterances are no rows": (*good, "yes-ann who nontarget"),
    }
    for message, rows in wrong.items():
        said = ask("verify", store, "--trials", lines(tmp_path / "t", *rows))
        assert said.code == 2 and message in said.err.replace("\n", " "), said.err
    trials = lines(tmp_path / "t", *good)
    for rows, message in (("m",), "has no utterance"), (("m a", "m b"), "stands twice"):
        said = ask("verify", store, "--trials", trials, "--enrol", lines(tmp_path / "e", *rows))
        assert said.code == 2 and message in said.err
    usage = [
        (("--by", "word", "--trials", trials), "--by has no effect beside --trials"),
        (("--scores", tmp_path / "s"), "--scores has no effect without --trials"),
        (("--trials", trials, "--cohort", "id = 'x'"), "--cohort has no effect without --s-norm"),
        (("a", "b", "--s-norm", "--by", "word"), "a pair is judged by its cosine"),
        (("--by", "word", "--p-target", "1"), "a prior lies between 0 and 1"),
        (("--trials", tmp_path / "no"), "cannot be read"),
    ]
    for options, message in usage:
        said = ask("verify", store, *options)
        assert said.code == 2 and message in said.err.replace("\n", " "), said.err


def test_what_trials_tell_of_themselves(store: Path, tmp_path: Path) -> None:
    trials = lines(
        tmp_path / "t",
        "yes-ann yes-bob target", "yes-bob yes-cat target", "yes-ann yes-cat nontarget",
        "no-ann no-ann target", "yes-ann no-bob nontarget",
    )  # fmt: skip
    found = ask("verify", store, "--trials", trials, "--space", "raw", "--json").json
    assert found["notes"] == [
        "1 nontarget trials are of utterances that target trials join to one speaker",
        "1 trials compare an utterance with itself, which is no evidence",
    ]
    assert found["names"] == 3 and found["cllr"] is None
    # One speaker alone, whatever the scores, says nothing of others.
    one = lines(tmp_path / "one", "yes-ann yes-bob target", "yes-ann no-ann nontarget")
    shown = ask("verify", store, "--trials", one).out
    assert "(no interval: all same pairs are of one)" in shown
    found = ask("verify", store, "--trials", one, "--json").json
    assert found["low"] is found["high"] is None and found["eer"] is not None


def test_a_cohort_that_is_named_leaves_the_own_speaker_out(store: Path, tmp_path: Path) -> None:
    """Else an utterance is normalised by itself, and by what it is compared with."""
    file, pairs = trials_of(tmp_path / "trials", "voxceleb")
    out = tmp_path / "scores"
    how = ("--s-norm", "--cohort", "id != 'none'", "--space", "raw", "--scores", out, "--json")
    found = ask("verify", store, "--trials", file, *how).json
    assert found["notes"] == ["scores normalised by 9 rows where id != 'none', of other speakers, "
                              "as far as trials tell"]  # fmt: skip
    vectors = spoken()[0] / np.linalg.norm(spoken()[0], axis=1, keepdims=True)
    ids = [f"{w}-{v}.wav" for w in WORDS for v in VOICES]
    rows = dict(zip(ids, vectors, strict=True))

    def normed(score: float, name: str) -> float:
        others = [rows[one] @ rows[name] for one in ids if one.split("-")[0] != name.split("-")[0]]
        return float((score - np.mean(others)) / np.std(others))

    written = [float(line.split()[0]) for line in out.read_text().splitlines()]
    expected = [0.5 * (normed(rows[a] @ rows[b], a) + normed(rows[a] @ rows[b], b))
                for a, b, _ in pairs]  # fmt: skip
    assert written == pytest.approx(expected, abs=1e-4)


def test_scores_never_replace_what_is_read(store: Path, tmp_path: Path) -> None:
    file, _ = trials_of(tmp_path / "trials", "kaldi")
    enrol = lines(tmp_path / "spk2utt", "m yes-ann yes-bob")
    for scores in (file, enrol, tmp_path / "." / "trials"):
        before = scores.read_bytes()
        said = ask("verify", store, "--trials", file, "--enrol", enrol, "--scores", scores)
        assert said.code == 2 and "name another file in --scores" in said.err.replace("\n", " ")
        assert scores.read_bytes() == before
    kept = lines(tmp_path / "kept", "of another run")
    said = ask("verify", store, "--trials", file, "--scores", kept)
    assert said.code == 2 and "--overwrite replaces it" in said.err.replace("\n", " ")
    assert kept.read_text() == "of another run\n"
    said = ask("verify", store, "--trials", file, "--scores", kept, "--overwrite")
    assert said.code == 0 and len(kept.read_text().splitlines()) == 27
    said = ask("verify", store, "--trials", file, "--where", "id LIKE 'yes%'")
    assert "are no rows of" in said.err and "where id LIKE 'yes%'" in said.err.replace("\n", " ")


def test_windows_of_an_utterance_are_one_side(tmp_path: Path) -> None:
    vectors, words, voices = spoken()
    manifest = replace(MANIFEST, dim=vectors.shape[1])
    one = batch([f"a/{w}-{v}.wav" for w, v in zip(words, voices, strict=True)],
                manifest=manifest, vectors=vectors)  # fmt: skip
    other = batch(["b/yes-ann.wav"], manifest=manifest, vectors=vectors[:1])
    filled(tmp_path / "c.lance", one, other, manifest=manifest)
    trials = lines(tmp_path / "t", "a/yes-ann a/yes-bob target", "a/no-ann a/yes-bob nontarget")
    assert ask("verify", tmp_path / "c.lance", "--trials", trials).code == 0
    trials = lines(tmp_path / "t", "yes-ann yes-bob target", "no-ann yes-bob nontarget")
    said = ask("verify", tmp_path / "c.lance", "--trials", trials)
    assert said.code == 2 and "is 2 items of" in said.err.replace("\n", " ")


def test_a_class_of_one_group_counts_as_different_in_both(store: Path, tmp_path: Path) -> None:
    vectors, words, voices = spoken()
    manifest = replace(MANIFEST, dim=vectors.shape[1])
    some = [at for at in range(9) if not (words[at] == "stop" and voices[at] != "ann")]
    rows = batch([f"{at}.wav" for at in some], manifest=manifest, vectors=vectors[some],
                 word=[words[at] for at in some], voice=[voices[at] for at in some])  # fmt: skip
    filled(tmp_path / "c.lance", rows, manifest=manifest,
           metadata=dict.fromkeys(("word", "voice"), pa.string()))  # fmt: skip
    how = ("--by", "word", "--groups", "voice", "--space", "raw", "--json")
    verified, evaluated = (ask(c, tmp_path / "c.lance", *how) for c in ("verify", "evaluate"))
    assert (verified.json["same"], verified.json["different"]) == (6, 10)  # with stop: 4 pairs more
    assert evaluated.json["classes"] == 2
    assert evaluated.json["figures"][EER] == pytest.approx(verified.json["eer"], abs=1e-12)
