"""Unknowns: the level that is stated beside the share that is real, and none where no data support
one; the probability of one class.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

import penult
from conftest import thinned
from penult.analysis.space import SeenRows, fit, fit_seen
from penult.embedding.embedder import Embedder
from penult.fewshot.calibration import Unknowns
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.curve import precision_recall
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import CLUSTERS, Examples, Grouping, time_blocks
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.versions import LedgerEntry
from test_cli import ask

DIM = 64
CLIPS = Path(penult.__file__).parent / "demo" / "clips"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


def cloud(kind: int, n: int, seed: int, spread: float = 0.35) -> np.ndarray:
    """(n, d) vectors of a kind: a common part, which all kinds have, the kind's own, and noise."""
    random = np.random.default_rng(seed)
    own = np.random.default_rng(1000 + kind).standard_normal(DIM)
    common = 5 * np.random.default_rng(999).standard_normal(DIM)
    noise = spread * random.standard_normal((n, DIM)) * np.linspace(3, 0.3, DIM)
    return (common + own + noise).astype(np.float32)


def unknown(space: ClassSpace, vectors: np.ndarray) -> float:
    """The share that is called unknown."""
    return float(np.mean([one.label is None for one in space.predict_vectors(vectors)]))


def within(share: float, level: float, n: int) -> bool:
    """Whether a share of n draws does not speak against the level (four standard errors)."""
    return share <= level + 4 * (level * (1 - level) / n) ** 0.5


def test_only_normal_is_known(embedder: Embedder) -> None:
    shares = []
    for seed in range(6):
        space = ClassSpace(embedder)
        space.add_vectors("normal", cloud(0, 60, seed))
        assert space.space.recipe == "raw"
        assert unknown(space, cloud(1, 50, 50 + seed)) > 0.9
        shares.append(unknown(space, cloud(0, 200, 90 + seed)))
    assert within(float(np.mean(shares)), 0.05, 6 * 60)


@pytest.mark.parametrize(("kinds", "each"), [(2, 2), (1, 3), (2, 3), (1, 5)])
def test_levels_of_very_few_examples(kinds: int, each: int) -> None:
    """Members that lie as far away as they like: some near, some far."""
    shares = []
    for seed in range(60):
        random = np.random.default_rng(seed)

        def members(kind: int, n: int, random: np.random.Generator = random) -> np.ndarray:
            far = random.lognormal(0.0, 0.3, (n, 1))
            rows = np.random.default_rng(1000 + kind).standard_normal(DIM)
            return (rows + 0.5 * far * random.standard_normal((n, DIM))).astype(np.float32)

        examples = Examples.empty(DIM)
        for kind in range(kinds):
            keys = [(f"{kind}/{i}", "whole") for i in range(each)]
            examples = examples.with_marks(f"c{kind}", keys, members(kind, each))
        fitted = FittedClasses(examples, fit("raw", examples.vectors), "prototype")
        if fitted.level(0.05).level is not None:
            asked = np.concatenate([members(kind, 100) for kind in range(kinds)])
            shares.append(float((fitted.judge(asked, 0.05).label < 0).mean()))
        else:
            assert "too few" in str(fitted.level(0.05).why)
    if (kinds, each) == (2, 2):  # two cosines in all, each of them twice
        assert not shares
    else:
        error = np.std(shares) / len(shares) ** 0.5
        assert len(shares) == 60 and np.mean(shares) <= 0.05 + 2 * error


def of_speakers(seed: int, apart: float = 0.5) -> tuple[Examples, Grouping, np.ndarray]:
    """Eight examples of each of four classes by four speakers, and as many rows by four others."""
    random, dim, found = np.random.default_rng(seed), 24, Examples.empty(24)
    kinds, speakers = random.standard_normal((4, dim)), apart * random.standard_normal((8, dim))

    def clips(kind: int, speaker: int) -> np.ndarray:
        noise = 0.7 * random.standard_normal((8, dim))
        return (3 + kinds[kind] + speakers[speaker] + noise).astype(np.float32)

    for kind, speaker in np.ndindex(4, 4):
        keys = [(f"{kind} {speaker} {i}", "whole") for i in range(8)]
        found = found.with_marks(f"c{kind}", keys, clips(kind, speaker))
    rows = np.concatenate([clips(kind, speaker) for kind, speaker in np.ndindex(4, 8)
                           if speaker >= 4])  # fmt: skip
    return found, Grouping("given", tuple(id.split()[1] for id, _ in found.keys)), rows


def test_held_out_members_take_part_in_the_space_as_rows_do() -> None:
    """Rows that a space is fitted to lie nearer to its middle than what it has not seen: their
    level has to be of examples that were fitted to as well."""
    shares = []
    for seed in range(20):
        examples, groups, rows = of_speakers(seed)
        space = fit_to_examples("centre", examples, rows, groups)
        pair = []
        for one in (space, replace(space, others=None)):  # the second: examples outside of it
            fitted = FittedClasses(examples, one, "prototype", groups=groups)
            assert fitted.level(0.05).level == 0.05
            pair.append(float((fitted.judge(rows, 0.05).label < 0).mean()))
        shares.append(pair)
    inside, outside = np.mean(shares, axis=0)
    error = np.std(shares, axis=0, ddof=1) / len(shares) ** 0.5
    assert inside <= 0.05 + 2 * error[0] and outside > 0.05 + 2 * error[1]
    # The held-out scores by hand: the middle of the rows and of the speaker who is left out.
    examples, groups, rows = of_speakers(3)
    own, speaker = examples.vectors.astype(float), np.array(groups.names)
    kind, scores = np.array([id[0] for id, _ in examples.keys]), []
    for out in np.unique(speaker):
        middle = np.concatenate([rows, own[speaker == out]]).mean(axis=0)
        moved = (own - middle) / np.linalg.norm(own - middle, axis=1, keepdims=True)
        means = np.stack([moved[(speaker != out) & (kind == k)].mean(axis=0) for k in "0123"])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        scores += (moved[speaker == out] @ means.T).max(axis=1).tolist()
    fitted = FittedClasses(examples, fit_to_examples("centre", examples, rows, groups), "prototype",
                           groups=groups)  # fmt: skip
    assert fitted.level(0.05).threshold == pytest.approx(np.sort(scores)[5], abs=1e-5)  # 0.05 · 129
    # Among far more rows a few examples move nothing, and none is held out of another space.
    many = np.concatenate([rows] * 24)
    space = fit_to_examples("centre", examples, many, groups)
    thresholds = [FittedClasses(examples, one, "prototype", groups=groups).level(0.05).threshold
                  for one in (space, replace(space, others=None))]  # fmt: skip
    assert thresholds[0] == thresholds[1]


def test_a_level_comes_with_what_its_groups_support() -> None:
    """Stated 0.05 by 39 scores: the real share is that below the second lowest, drawn anew here."""
    lowest = np.sort(np.random.default_rng(0).random((20_000, 39)), axis=1)[:, 1]
    found = Unknowns(np.arange(39.0), "", groups=39)
    assert found.interval(0.05) == pytest.approx(np.quantile(lowest, [0.025, 0.975]), abs=3e-3)
    # Members of one group count once: three speakers support next to nothing.
    examples, groups, rows = of_speakers(0)
    fitted = FittedClasses(examples, fit("raw", rows), "prototype", groups=groups)
    level = fitted.level(0.05)
    assert (level.low, level.high) == Unknowns(np.zeros(1), "", groups=4).interval(0.05)
    assert level.high is not None and level.high > 0.3
    items = FittedClasses(examples, fit("raw", rows), "prototype").level(0.05)
    assert items.high is not None and items.high < 0.1  # 128 of them
    one = FittedClasses(
        Examples.empty(24).with_marks("c", examples.keys[:1], examples.vectors[:1]),
        fit("raw", rows), "prototype", background=lambda: rows,
    ).level(0.05)  # fmt: skip
    assert one.threshold is not None and one.low is one.high is None  # of no members


def test_two_classes_that_are_all_there_is(embedder: Embedder) -> None:
    space = ClassSpace(embedder)
    for kind in (0, 1):
        space.add_vectors(f"c{kind}", cloud(kind, 60, kind))
    assert space.fitted.level(0.05).level == 0.05
    assert unknown(space, cloud(2, 50, 7)) > 0.9
    assert within(unknown(space, cloud(0, 300, 8)), 0.05, 120)
    centred = ClassSpace(embedder, space="centre")
    centred.add_vectors("c0", cloud(0, 60, 0))
    found = centred.fitted.level(0.05)
    assert found.level is None and "as unlike their class as any vector is" in str(found.why)
    assert unknown(centred, cloud(2, 50, 7)) == 0
    assert centred.fitted.to_dict(0.05)["unknown"]["why"] == found.why


def test_other_rows_that_are_of_the_class_too_subtract_nothing() -> None:
    examples = Examples.empty(DIM)
    keys = [(str(i), "whole") for i in range(60)]
    examples = examples.with_marks("normal", keys, cloud(0, 60, 0))
    assert fit_to_examples("auto", examples, cloud(0, 100, 1)).is_raw
    # With rows of other kinds it is what tells the class from them best.
    others = np.concatenate([cloud(kind, 40, kind) for kind in range(1, 5)])
    found = fit_to_examples("auto", examples, others)
    asked = np.concatenate([cloud(0, 50, 3), cloud(9, 50, 4)])
    judged = FittedClasses(examples, found).judge(asked, 0.05)
    assert (judged.label[:50] == 0).mean() > 0.8 and (judged.label[50:] < 0).mean() > 0.9


def drawn(own: float, other: float, n: int, seed: int, kinds: int = 30) -> Examples:
    """n examples of each kind: kinds lie in thirty directions, what has no kind varies in five."""
    random = np.random.default_rng(seed)
    examples = Examples.empty(DIM)
    for kind in range(kinds):
        rows = 0.3 * random.standard_normal((n, DIM))
        rows[:, kind] += own
        rows[:, -5:] += other * random.standard_normal((n, 5))
        keys = [(f"{kind}/{i}", "whole") for i in range(n)]
        examples = examples.with_marks(f"c{kind}", keys, rows.astype(np.float32))
    return examples


def test_shrink_is_taken_where_held_out_examples_do_not_speak_against_it() -> None:
    def recipe(own: float, other: float, n: int) -> str:
        others = drawn(own, other, 30, 1).vectors
        return fit_to_examples("auto", drawn(own, other, n, 2), others).recipe

    assert [recipe(1.5, 2.0, n) for n in (1, 2, 5, 20)] == ["centre", "shrink", "shrink", "shrink"]
    # Kinds are what varies most, and everything is right: of two examples nothing speaks for it.
    assert [recipe(3.0, 0.1, n) for n in (1, 2, 5)] == ["centre", "centre", "shrink"]
    # What all rows vary in tells the classes apart: it must not be damped.
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(12), 6)
    rows = 0.5 * random.standard_normal((72, DIM))
    rows[:, :2] += 6 * np.stack([np.cos(kinds), np.sin(kinds)], axis=1)
    examples = Examples.empty(DIM).with_named(
        [f"c{kind}" for kind in kinds],
        [(str(i), "whole") for i in range(72)],
        rows.astype(np.float32),
    )
    assert fit_to_examples("auto", examples, examples.vectors[:0]).recipe == "centre"


@pytest.mark.parametrize(
    "recipe", thinned(["auto", "centre", "scale", "shrink", "pca:10"], ["auto", "shrink"])
)
def test_a_space_is_never_fitted_to_an_example_that_it_judges(recipe: str) -> None:
    """Few examples of many numbers: held out of the method and not of the space, members would be
    nearer than new ones are."""
    shares = []
    for seed in range(12):
        examples = Examples.empty(DIM)
        for kind in range(4):
            keys = [(f"{kind}/{i}", "whole") for i in range(10)]
            examples = examples.with_marks(f"c{kind}", keys, cloud(kind, 10, 10 * seed + kind, 0.8))
        space = fit_to_examples(recipe, examples, np.zeros((0, DIM), np.float32))
        found = FittedClasses(examples, space)
        new = np.concatenate([cloud(kind, 100, 5000 + seed, 0.8) for kind in range(4)])
        shares.append((found.judge(new, 0.1).label < 0).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert 0.1 / 3 - 3 * error <= np.mean(shares) <= 0.1 + 3 * error


def test_a_space_fitted_with_labels_is_fitted_without_the_examples_that_are_held_out() -> None:
    """Labels of few items in many numbers: in the space that was fitted to them, their classes lie
    apart as no new item does."""
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 6)
    rows = np.concatenate([cloud(kind, 6, kind, 2.0) for kind in range(4)])
    recipe = "scale+within+l2"
    seen = fit_seen(recipe, SeenRows(rows, kinds, np.arange(24)))
    examples = Examples.empty(DIM)
    keys = [(str(i), "whole") for i in range(24)]
    examples = examples.with_named([f"c{kind}" for kind in kinds], keys, rows)
    found = FittedClasses(examples, seen, "prototype")
    new = np.concatenate([cloud(kind, 200, 70 + kind, 2.0) for kind in range(4)])
    truth = np.repeat(np.arange(4), 200)
    judged = found.judge(new)
    stated = found.accuracy["prototype"]
    real = (judged.label == truth).mean()
    assert abs(stated - real) < 3 * (real * (1 - real) / 24) ** 0.5
    assert (found.judge(new, 0.2).label < 0).mean() < 0.2 + 3 * (0.16 / 24) ** 0.5
    # A chosen embedder of an earlier version does not name its items: no level is made up.
    blind = FittedClasses(examples, fit(recipe, rows, kinds.tolist()))
    assert blind.level(0.05).level is None and np.isnan(blind.accuracy["prototype"])
    assert "fitted with labels" in str(blind.level(0.05).why)
    assert (blind.judge(new[random.permutation(800)[:50]], 0.05).label >= 0).all()


def test_one_example_each_of_one_speaker_gives_no_level() -> None:
    """None can be held out of its speaker: not turned round, not made up."""
    examples = Examples.empty(DIM)
    for kind in range(5):
        examples = examples.with_marks(f"c{kind}", [(f"{kind}", "whole")], cloud(kind, 1, kind))
    rows = np.concatenate([cloud(kind, 30, 40 + kind) for kind in range(5)])
    space = fit("centre", rows)
    found = FittedClasses(examples, space, background=lambda: rows, groups=["one"] * 5)
    level = found.level(0.05)
    assert level.level is None and level.threshold is None
    assert "5 examples are of one group" in str(level.why)
    judged = found.judge(rows, 0.05)
    assert (judged.label == np.repeat(np.arange(5), 30)).mean() > 0.9
    assert np.isnan(judged.p_value).all()


def windows(seconds: float, *starts: float) -> list[tuple[str, str]]:
    return [("night.wav", f"{start:g}-{start + seconds:g}") for start in starts]


def test_windows_of_one_recording_are_held_out_by_blocks_of_time(
    embedder: Embedder, tmp_path: Path
) -> None:
    """Two classes in turn, in pairs of windows that overlap: a pair is never on both sides."""
    starts = [10.0 * place + half for place in range(10) for half in (0.0, 0.5)]
    kinds = [place % 2 for place in range(10) for _ in range(2)]
    rows = np.concatenate([cloud(kind, 1, 60 + at) for at, kind in enumerate(kinds)])
    space = ClassSpace(embedder, space="raw", method="prototype", unknown=0.1)
    for kind in (0, 1):
        own = [at for at, one in enumerate(kinds) if one == kind]
        keys = windows(1.0, *(starts[at] for at in own))
        space.add_vectors(f"c{kind}", rows[own], keys)
    # By hand: each pair against the mean directions of the others of its class, and of the other.
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    held = []
    for pair in range(10):
        out = np.arange(20) // 2 == pair
        means = [unit[~out & (np.array(kinds) == kind)].mean(axis=0) for kind in (0, 1)]
        held += [max(row @ mean / np.linalg.norm(mean) for mean in means) for row in unit[out]]
    level = space.fitted.level(0.1)
    assert level.level == 0.1
    assert level.threshold == pytest.approx(sorted(held)[int(0.1 * 21) - 1], abs=1e-6)
    assert "in 10 blocks of time: for this recording, not for others" in str(level.basis)
    facts = space.fitted.to_dict(0.1)
    assert facts["groups"] == {"kind": "time", "by": None, "number": 10}
    assert precision_recall(space.fitted, "c1").yes == 10  # --curve has something to draw
    # Kept with the version, in a file too.
    again = ClassSpace.load(space.save(tmp_path / "night.npz"), embedder)
    assert again.fitted.to_dict(0.1) == facts
    # A class of other recordings can be held out by item, and then all are.
    for number in range(3):
        space.add_vectors("c2", cloud(2, 1, number), [(f"{number}.wav", "whole")])
    facts = space.fitted.to_dict(0.1)
    assert facts["groups"] == {"kind": "items", "by": None, "number": 4}


def test_windows_without_a_gap_are_one_block() -> None:
    keys = windows(1.0, *(0.5 * place for place in range(40)))
    assert len(set(time_blocks(keys))) == 1
    assert len(set(time_blocks(windows(1.0, *(2.0 * place for place in range(40)))))) == 10
    both = [*windows(1.0, 0.0, 5.0), ("other.wav", "0-1"), ("picture.png", "box:0,0,5,5")]
    assert len(set(time_blocks(both))) == 4


def test_a_version_of_before_is_grouped_by_items(embedder: Embedder) -> None:
    space = ClassSpace(embedder)
    space.add_vectors("a", cloud(0, 12, 0), windows(1.0, *(9.0 * place for place in range(12))))
    kept = space.fitted.to_dict(0.05)
    assert kept["groups"]["kind"] == "time" and kept["unknown"]["level"] == 0.05
    ledger, version = space._state._ledger, space.history.current
    assert version is not None
    about = {n: v for n, v in version.about.items() if n not in ("grouping", "calibration")}
    about["parts"] = {n: v for n, v in about["parts"].items() if n != "scores"}
    old = replace(version, _entry=LedgerEntry.of("version", about))
    taught = ledger.again(old, space.examples, space.space, None, None)
    level = taught.fit().level(0.05)
    assert taught.groups.kind == "items" and level.level is None
    assert "of one group or item" in str(level.why)


def speakers(seed: int, kinds: int, number: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """(kinds · number · each, d) vectors, and the speaker of each, who shifts all kinds alike."""
    shifts = [np.random.default_rng([seed, one]).standard_normal(DIM) for one in range(number)]
    rows = [cloud(kind, each, 1000 * seed + 10 * kind + one, 0.1) + 0.6 * shift
            for kind in range(kinds) for one, shift in enumerate(shifts)]  # fmt: skip
    return np.concatenate(rows), np.tile(np.repeat(np.arange(number), each), kinds)


@pytest.mark.parametrize(("kind", "holds"), [("items", False), ("clusters", True)])
def test_clusters_stand_for_speakers_that_nobody_named(kind: str, holds: bool) -> None:
    shares = []
    for seed in range(12):
        rows, who = speakers(seed, 4, 8, 4)
        kinds = np.repeat(np.arange(4), 32)
        taught = who < 6
        keys = [(f"{place}.wav", "whole") for place in np.flatnonzero(taught)]
        examples = Examples.empty(DIM).with_named(
            [f"c{one}" for one in kinds[taught]], keys, rows[taught]
        )
        found = FittedClasses(examples, fit("raw", rows), "prototype", groups=Grouping(kind))
        assert found.level(0.1).level == 0.1
        shares.append((found.judge(rows[~taught], 0.1).label < 0).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert (np.mean(shares) <= 0.1 + 3 * error) == holds


def test_clusters_are_of_what_the_classes_do_not_explain(
    embedder: Embedder, tmp_path: Path
) -> None:
    """By hand: sklearn's Ward on the residuals, each cluster against the means of the rest."""
    rows, who = speakers(3, 4, 5, 4)
    kinds = np.repeat(np.arange(4), 20)
    space = ClassSpace(embedder, space="raw", method="prototype")
    for one in range(4):
        space.add_vectors(
            f"c{one}", rows[kinds == one], [(f"{one}/{i}", "whole") for i in range(20)]
        )
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    residuals = unit - np.stack([unit[kinds == one].mean(axis=0) for one in kinds])
    parts = AgglomerativeClustering(5, linkage="ward").fit_predict(residuals)
    assert adjusted_rand_score(parts, who) == 1.0
    held = []
    for part in range(5):
        means = [unit[(parts != part) & (kinds == one)].mean(axis=0) for one in range(4)]
        held += [max(row @ m / np.linalg.norm(m) for m in means) for row in unit[parts == part]]
    level = space.fitted.level(0.05)
    assert level.threshold == pytest.approx(sorted(held)[int(0.05 * 81) - 1], abs=1e-6)
    assert "in 5 clusters, in place of speakers, sites and days" in str(level.basis)
    facts = space.fitted.to_dict(0.05)
    assert facts["groups"] == {"kind": "clusters", "by": None, "number": 5}
    saved = space.save(tmp_path / "words.npz")
    assert ClassSpace.load(saved, embedder).fitted.to_dict(0.05) == facts
    # Items one by one, if the user says so: a higher threshold, for these speakers.
    alone = ClassSpace.load(saved, embedder, groups="items").fitted
    assert alone.to_dict(0.05)["groups"] == {"kind": "items", "by": "items", "number": 80}
    threshold = alone.level(0.05).threshold
    assert threshold is not None and level.threshold is not None and threshold > level.threshold


@pytest.mark.parametrize("grouped", thinned([True, False], [True]))
def test_the_level_holds_for_new_groups_if_groups_are_given(grouped: bool) -> None:
    shares = []
    for seed in range(12):
        examples, groups, new = Examples.empty(DIM), [], []
        for kind in range(3):
            for group in range(8):
                shift = np.random.default_rng([seed, kind, group]).standard_normal(DIM)
                rows = cloud(kind, 3, 100 * seed + 10 * kind + group, 0.1) + 0.6 * shift
                keys = [(f"{kind}/{group}/{i}", "whole") for i in range(3)]
                if group < 6:
                    examples = examples.with_marks(f"c{kind}", keys, rows)
                    groups += [f"{kind}/{group}"] * 3
                else:
                    new.append(rows)
        space = fit("raw", examples.vectors)
        found = FittedClasses(examples, space, groups=groups if grouped else None)
        shares.append((found.judge(np.concatenate(new), 0.1).label < 0).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert (np.mean(shares) <= 0.1 + 3 * error) == grouped


@pytest.mark.parametrize("n", [1, 2, 4, 30])
@pytest.mark.parametrize("others", [0, 200])
def test_the_probability_of_one_class_grows_with_the_similarity(n: int, others: int) -> None:
    examples = Examples.empty(DIM).with_marks(
        "a", [(str(i), "whole") for i in range(n)], cloud(0, n, 0)
    )
    rows = np.concatenate([cloud(kind, 50, kind) for kind in range(1, 5)])[:others]
    found = FittedClasses(examples, fit("raw", examples.vectors), background=lambda: rows)
    asked = np.concatenate([cloud(0, 100, 5), cloud(8, 100, 6)])
    judged = found.judge(asked)
    order = judged.similarity[:, 0].argsort()
    sorted_ = judged.probability[order, 0]
    assert (np.diff(sorted_) > 0).all() and sorted_[0] > 0 and sorted_[-1] < 1
    unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    own = examples.vectors / np.linalg.norm(examples.vectors, axis=1, keepdims=True)
    mean = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
    np.testing.assert_allclose(judged.similarity[:, 0], unit @ mean, atol=1e-6)


def test_methods_and_hard_negatives_act_with_one_class(embedder: Embedder) -> None:
    def predicted(method: str | None, negatives: int) -> list[float]:
        space = ClassSpace(embedder, method=method)
        space.add_vectors("a", cloud(0, 12, 0))
        if negatives:
            space.add_vectors("a", cloud(3, negatives, 1), mark="no")
        asked = np.concatenate([cloud(0, 20, 5), cloud(3, 20, 6)])
        return [one.score for one in space.predict_vectors(asked)]

    assert predicted("prototype", 0) != predicted("knn", 0)
    before, after = np.array(predicted(None, 0)), np.array(predicted(None, 6))
    assert (after[20:] == 0).all() and (before[20:] > 0).all()
    assert after[:20].mean() == pytest.approx(before[:20].mean(), abs=0.1)
    heads = [np.array(predicted(method, 6)) for method in ("ridge", "logistic")]
    assert all(head[:20].min() > head[20:].max() for head in heads)


def test_predictions_have_the_raw_similarity_beside_the_probability(embedder: Embedder) -> None:
    space = penult.ClassSpace(embedder)
    for word in ("one", "two"):
        space.add(
            word, [CLIPS / f"{word}_{voice}.flac" for voice in ("british-man", "oxford-woman")]
        )
    one = space.predict(CLIPS / "one_lancashire-woman.flac", nearest=4, unknown=0)[0]
    mean = np.mean([near.similarity for near in one.nearest if near.marks == {"one": "yes"}])
    assert one.label == "one" and one.similarity >= mean  # of a mean direction, above the mean
    assert one.to_dict()["similarity"] == one.similarity
    assert one.detection.similarities == {"one": one.similarity}


def test_the_accuracy_has_an_interval_and_is_of_what_was_held_out() -> None:
    """By hand: Wilson's interval of items; of three speakers it reaches over each of them."""
    random = np.random.default_rng(3)
    speakers = np.repeat(["a", "b", "c"], 12)
    classes = np.tile(np.repeat(np.eye(3, 8), 4, axis=0), (3, 1))
    places = random.standard_normal((3, 8))[np.repeat(np.arange(3), 12)]
    vectors = (classes + 0.9 * places + 0.3 * random.standard_normal((36, 8))).astype(np.float32)
    examples = Examples(
        vectors,
        tuple((f"{i}.wav", "whole") for i in range(36)),
        tuple({f"k{row.argmax()}": "yes"} for row in classes),
    )
    raw = fit("raw", vectors)
    facts = FittedClasses(examples, raw, "prototype", groups=Grouping(CLUSTERS)).to_dict()
    share, held = facts["accuracy"]["prototype"], facts["held_out"]
    wilson = binomtest(round(36 * share), 36).proportion_ci(method="wilson")
    assert held["kind"] == "items" and held["examples"] == 36
    assert (held["low"], held["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-4)
    given = FittedClasses(examples, raw, "prototype", groups=list(speakers))
    facts, shares = given.to_dict(), []
    for one in ("a", "b", "c"):  # each by prototypes of the two others
        known, out = vectors[speakers != one], vectors[speakers == one]
        of = classes[speakers != one].argmax(axis=1)
        known = known / np.linalg.norm(known, axis=1, keepdims=True)
        means = np.stack([known[of == k].mean(axis=0) for k in range(3)])
        means = means / np.linalg.norm(means, axis=1, keepdims=True)
        shares.append(np.mean((out @ means.T).argmax(axis=1) == np.repeat(np.arange(3), 4)))
    assert facts["accuracy"]["prototype"] == pytest.approx(np.mean(shares))
    assert facts["held_out"]["kind"] == "given" and min(shares) < max(shares)
    assert facts["held_out"]["low"] <= min(shares) + 1e-9
    assert facts["held_out"]["high"] >= max(shares) - 1e-9


def test_predict_says_for_what_the_accuracy_holds(embedder: Embedder, tmp_path: Path) -> None:
    voices = ("british-man", "oxford-woman", "new-york-man")
    space = ClassSpace(embedder)
    for word in ("zero", "one"):
        space.add(word, [CLIPS / f"{word}_{voice}.flac" for voice in voices])
    space.save(tmp_path / "words.npz")
    asked = CLIPS / "zero_scottish-man.flac"
    groups = ("--groups", "*_{}")
    for options, of in ((), "items of the same speakers"), (groups, "other groups"):
        done = ask("predict", tmp_path / "words.npz", asked, *options)
        assert done.code == 0, done.err
        held = ask("predict", tmp_path / "words.npz", asked, *options, "--json").json["held_out"]
        assert (
            f"({held['low']:.2f} to {held['high']:.2f})" in done.err and f"; for {of}" in done.err
        )
    assert ask("classes", tmp_path / "words.npz", "--remove", "one").code == 0
    assert "cross-validated" not in ask("predict", tmp_path / "words.npz", asked).err
