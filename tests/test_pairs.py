"""Pairs as same or different: one error rate, against tables worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penult.analysis.verification import equal_error
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
