"""Choosing on synthetic layers whose truth is known, and through Python and the command line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.analysis.candidates import NOTEBOOK, Material, Setting, sample, sampled, score_all
from penult.analysis.episodes import numbered
from penult.analysis.episodes import plan as planned
from penult.analysis.metrics import rank_without_labels
from penult.analysis.selection import HeldOutScores, choose, judge_decision
from penult.analysis.space import fit
from penult.collection import spaces
from penult.embedding.embedder import Embedder
from penult.errors import ItemError, LabelsError, SpaceError, TapError
from test_cli import ask

LAYERS = 5
CHAIN = [f"layer:{number} mean" for number in range(LAYERS)]
BASE = "backbone mean"


def layers(
    seed: int, good: int | None, classes: int = 7, each: int = 6, width: int = 16
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The backbone and five layers: each its class's centre in noise; `good` has the least of it,
    and without one the backbone has."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    meaning = random.standard_normal((classes, width))[labels]

    def noisy(amount: float) -> np.ndarray:
        values = meaning + amount * random.standard_normal((len(labels), width))
        return values.astype(np.float32)

    vectors = {BASE: noisy(1.0 if good is None else 2.5)}
    for number, name in enumerate(CHAIN):
        far = LAYERS if good is None else abs(number - good)
        vectors[name] = noisy(0.7 + 0.8 * far)
    return vectors, labels


def material(vectors: dict[str, np.ndarray], labels: np.ndarray, groups: object = None) -> Material:
    mates = np.arange(len(labels)) if groups is None else numbered(np.asarray(groups))[0]
    return Material(vectors, numbered(labels)[0], mates, BASE, chains=[[*CHAIN, BASE]])


@pytest.mark.parametrize("good", [1, 3])
def test_the_good_layer_is_found(good: int) -> None:
    choice = choose(material(*layers(0, good)))
    assert not choice.kept and choice.judged_on == "other classes"
    assert f"layer:{good} mean" in choice.setting.readings
    assert choice.scores[0].setting.readings == (f"layer:{good} mean",)
    chosen = next(one for one in choice.finalists if one.setting == choice.setting)
    assert chosen.gain.low > 0 and chosen.gain.value > 0.15


def test_raw_and_centred_readings_are_ranked_from_one_product(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = material(*layers(0, 2))
    plan = planned(given.labels, given.groups, repeats=1, count=20)
    fitted: list[Setting] = []
    real = Material.space
    monkeypatch.setattr(Material, "space", lambda self, setting, rows: (
        fitted.append(setting) or real(self, setting, rows)))  # fmt: skip
    with caplog.at_level("INFO", "penult"):
        found = score_all(given, plan)
    assert len(found) == 6 * 4 and Counter(one.space for one in fitted) == {
        "scale+l2": 6 * len(plan.sides),
        "whiten+l2": 6 * len(plan.sides),
    }
    (told,) = [one.getMessage() for one in caplog.records if "settings" in one.getMessage()]
    assert told == (
        "ranked 24 settings: 12 from one product of all rows (raw, centre+l2), 12 with a space "
        f"fitted to each of {len(plan.sides)} sides"
    )
    for setting in found:  # the long way says the same
        if setting.space in ("raw", "centre+l2"):
            rows = given.joined(setting.readings)
            long = plan.scores(rows, lambda side, s=setting: real(given, s, side))
            np.testing.assert_allclose(found[setting], long, atol=1e-5)


def test_what_is_expected_was_not_decided_on() -> None:
    """Finalists that are all noise around one accuracy: the best of them is flattered, and what the
    other classes choose is not."""
    flattered, expected = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = np.repeat(np.arange(12), 4)
        names = [NOTEBOOK, *(f"{n} fused" for n in range(9))]
        by_class = {name: random.normal(size=12)[labels] for name in names}
        values = {name: 0.5 + (0.0 if name == NOTEBOOK else 0.3) + 0.2 * own
                  for name, own in by_class.items()}  # fmt: skip
        held_out = HeldOutScores(values, labels, np.arange(48), True)
        settings = {name: Setting((name,)) for name in names}
        found = judge_decision(settings, held_out)
        flattered.append(max(value.mean() for name, value in values.items() if name != NOTEBOOK))
        expected.append(found[0].value)
        assert found[1].value == pytest.approx(found[0].value - values[NOTEBOOK].mean(), abs=1e-9)
    assert np.mean(flattered) > 0.86
    assert np.mean(expected) == pytest.approx(0.8, abs=0.02)


def test_what_is_expected_by_hand() -> None:
    """Of four classes, each best by another finalist: the other three never choose its own."""
    labels = np.repeat(np.arange(4), 5)
    values = {NOTEBOOK: np.zeros(20)}
    values |= {f"{k} fused": np.where(labels == k, 1.0, 0.5) - 0.1 * (labels == (k + 1) % 4)
               for k in range(4)}  # fmt: skip
    held_out = HeldOutScores(values, labels, np.arange(20), True)
    settings = {name: Setting((name,)) for name in values}
    expected, gain = judge_decision(settings, held_out)
    # Without class k the mean of finalist k is 0.5 − 0.1/3, of k − 1 (whose 0.1 lay on k) 2/3, of
    # the two others 2/3 − 0.1/3: k − 1 is chosen, and has 0.4 on class k.
    assert expected.value == pytest.approx(0.4) and gain.value == pytest.approx(0.4)


@pytest.mark.parametrize(("classes", "interval"), [(2, True), (3, False), (4, True)])
def test_three_classes_say_little_of_others(classes: int, interval: bool) -> None:
    """Of two classes other items are spoken of."""
    choice = choose(material(*layers(0, 3, classes=classes, each=12)))
    for one in (choice.expected, choice.gain):
        assert np.isfinite(one.value)
        assert np.isfinite([one.low, one.high]).all() == interval
    assert all(np.isfinite(one.value.low) for one in choice.finalists)  # they decide


def test_the_notebooks_recipe_is_kept_where_nothing_is_better() -> None:
    assert sum(map(keeps, range(3))) == 3


@pytest.mark.slow
def test_the_notebooks_recipe_is_kept_nineteen_times_of_twenty() -> None:
    assert sum(map(keeps, range(40))) >= 38


def keeps(seed: int) -> bool:
    """Of three, four or six classes, where the backbone has the least noise."""
    vectors, labels = layers(seed, None, classes=(3, 4, 6)[seed % 3], each=6)
    few = {name: vectors[name] for name in (BASE, *CHAIN[:2])}
    return choose(material(few, labels)).kept


def test_it_decides_the_same_again() -> None:
    one, two = (choose(material(*layers(3, 2, classes=4))) for _ in range(2))
    assert one == two


def test_a_leak_between_groups_does_not_help() -> None:
    """A layer that tells the group, and the class within it only: perfect, were groups mixed."""
    random = np.random.default_rng(0)
    vectors, labels = layers(1, None, classes=5, each=40)
    groups = np.tile(np.arange(4), 50)
    vectors = {name: vectors[name] for name in (BASE, "layer:3 mean")}
    code = 5 * random.standard_normal((24, 16))[labels * 4 + groups]
    vectors["layer:3 mean"] = (code + 0.01 * random.standard_normal(code.shape)).astype(np.float32)
    mixed = choose(material(vectors, labels))
    held = choose(material(vectors, labels, groups))

    def place(choice: object) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for score in choice.scores:  # type: ignore[attr-defined]
            found.setdefault(score.setting.readings, score.measured["neighbours"].value)
        return found

    assert place(mixed)[("layer:3 mean",)] > 0.9
    assert place(held)[("layer:3 mean",)] < 0.4
    assert "layer:3 mean" not in held.setting.readings


def test_a_nuisance_that_the_labels_show_is_damped() -> None:
    random = np.random.default_rng(0)
    vectors, labels = layers(2, None, classes=9, each=6)
    push = random.standard_normal((2, 16))
    for name in vectors:
        loud = 8 * random.standard_normal((len(labels), 2)) @ push
        vectors[name] = (vectors[name] + loud).astype(np.float32)
    choice = choose(material(vectors, labels))
    assert not choice.kept
    assert "within" in choice.setting.space or "whiten" in choice.setting.space


def test_two_classes_are_judged_on_other_items() -> None:
    choice = choose(material(*layers(0, 3, classes=2, each=12)))
    assert choice.judged_on == "other items" and choice.finalists[0].name == NOTEBOOK


def test_classes_of_one_group_are_left_out_and_named() -> None:
    vectors, labels = layers(0, 2)
    groups = np.where(labels == 0, 99, np.arange(len(labels)))
    choice = choose(material(vectors, labels, groups))
    assert choice.notes == ("1 of 7 classes were left out: all their items are of one group",)


def test_a_class_of_equal_examples_stops_nothing() -> None:
    vectors, labels = layers(0, 2)
    for values in vectors.values():
        values[labels < 3] = values[labels < 3][0]
    assert choose(material(vectors, labels)).finalists
    flat = {name: np.ones_like(values) for name, values in vectors.items()}
    assert choose(material(flat, labels)).kept


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_reading_that_is_the_same_for_every_item_is_left_out(noise: float) -> None:
    """Rounding is part of it, and may even follow the class, as a batch does."""
    vectors, labels = layers(0, 2, classes=5)
    rounding = noise * np.random.default_rng(0).standard_normal((5, 16))[labels]
    vectors["layer:0 mean"] = (3 + rounding).astype(np.float32)
    vectors["dead mean"] = np.zeros((len(labels), 16), np.float32)
    choice = choose(material(vectors, labels))
    assert choice.notes == ("left out, the same vector for every item: layer:0 mean, dead mean",)
    shown = {name for one in choice.scores for name in one.setting.readings}
    finals = {name for one in choice.finalists for name in one.setting.readings}
    assert not {"layer:0 mean", "dead mean"} & (shown | finals)


@pytest.mark.slow
def test_of_very_many_classes_some_are_tried() -> None:
    labels = np.repeat(np.arange(400), 3)
    groups = np.arange(1200)
    kept = sample(labels, groups, 600)
    sizes = np.bincount(labels[kept])
    assert kept.sum() == 300 and set(sizes[sizes > 0]) == {3}
    random = np.random.default_rng(0)
    rows = random.standard_normal((400, 4))[labels] + 0.1 * random.standard_normal((1200, 4))
    assert choose(material({BASE: rows.astype(np.float32)}, labels)).kept


def test_values_of_unlabelled_items_are_checked() -> None:
    vectors, labels = layers(0, 2, classes=4)
    other = {name: values[:5].copy() for name, values in vectors.items()}
    other["layer:2 mean"][3] = np.inf
    given = replace(material(vectors, labels), unlabelled=other)
    with pytest.raises(SpaceError, match=r"unlabelled vectors of layer:2 mean .* at row 3"):
        choose(given)


def test_a_sample_is_spread_over_classes_and_groups() -> None:
    vectors, labels = layers(0, 2, classes=3, each=300)
    small = sampled(material(vectors, labels, np.tile(np.arange(6), 150)))
    assert len(small.labels) == 600
    assert np.bincount(small.labels * 6 + small.groups).min() >= 33


def test_what_cannot_be_chosen_on() -> None:
    vectors, labels = layers(0, 2)
    with pytest.raises(LabelsError, match="all 42 items are of one class"):
        choose(material(vectors, 0 * labels))
    with pytest.raises(LabelsError, match="of 42 classes 0 have two items or more"):
        choose(material(vectors, np.arange(42)))
    with pytest.raises(LabelsError, match="of 7 classes 0 have two groups or more"):
        choose(material(vectors, labels, labels))
    with pytest.raises(LabelsError, match="42 vectors, 41 labels"):
        choose(material(vectors, labels[1:]))
    vectors[BASE][5] = np.nan
    with pytest.raises(SpaceError, match="the first at row 5"):
        choose(material(vectors, labels))
    with pytest.raises(LabelsError, match="3 items without labels"):
        rank_without_labels({BASE: np.zeros((3, 4), np.float32)})


# ---- through a classifier


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four kinds of tone by three voices: `high_a_0.wav`."""
    root = tmp_path_factory.mktemp("tones")
    for kind, pitch in enumerate(("low", "mid", "high", "top")):
        for voice in range(3):
            for take in range(2):
                random = np.random.default_rng([kind, voice, take])
                time = np.arange(RATE // 2) / RATE
                tone = np.sin(2 * np.pi * (220 * 2**kind + 9 * voice) * time)
                wave = 0.4 * tone + 0.05 * random.standard_normal(len(time))
                soundfile.write(root / f"{pitch}_{'abc'[voice]}_{take}.wav", wave, RATE)
    return root


def test_choose_gives_an_embedder_that_is_saved_and_loaded(tones: Path, tiny: Path) -> None:
    files = sorted(tones.glob("*.wav"))
    labels = [path.name.split("_")[0] for path in files]
    found = penult.choose(penult.load(tiny), files, labels, [path.name[-7] for path in files])
    assert found.counts == {"labelled": 24, "unlabelled": 0} and not found.failures
    emb = found.embedder
    assert emb.tap.name == ",".join(name.split(" ")[0] for name in found.setting.readings)
    some = [None if at % 4 == 3 else name for at, name in enumerate(labels)]
    part = penult.choose(penult.load(tiny), files, some, unlabelled=files[:5])
    assert part.counts == {"labelled": 18, "unlabelled": 11}


def test_several_readings_and_a_space(tones: Path, tiny: Path, tmp_path: Path) -> None:
    files = sorted(tones.glob("*.wav"))[:6]
    clf = penult.load(tiny)
    one = Embedder.from_classifier(clf, "layer:1", "max").embed(files)
    two = Embedder.from_classifier(clf, "backbone", "mean+std").embed(files)
    joined = Embedder.from_classifier(clf, "layer:1,backbone", "max,mean+std")
    raw = joined.embed(files)
    assert joined.dim == raw.shape[1] == one.shape[1] + two.shape[1]
    assert np.array_equal(raw, np.concatenate([one, two], axis=1))
    space = fit("scale+l2", raw)
    placed = Embedder.from_classifier(clf, "layer:1,backbone", "max,mean+std", space=space)
    assert np.array_equal(placed.embed(files), space(raw))
    assert placed.fingerprint_id == joined.fingerprint_id
    loaded = Embedder.load(placed.save(tmp_path / "e"))
    assert np.array_equal(loaded.embed(files), space(raw)) and loaded.space.id == space.id
    assert loaded.run([]).vectors.shape == (0, joined.dim)
    col = penult.Collection.open(tmp_path / "c.lance")
    col.add(loaded, files)
    stored = col.vectors()[1]
    assert np.allclose(stored, raw, atol=1e-5)  # raw in a collection
    query = clip(0.5, 7)
    soundfile.write(tmp_path / "q.wav", query, RATE)
    assert len(col.search(tmp_path / "q.wav", k=2)) == 2
    with pytest.raises(TapError, match=r"3 poolings .* for 2 taps"):
        Embedder.from_classifier(clf, "layer:1,backbone", "max,mean,first")
    with pytest.raises(SpaceError, match="does not fit vectors of"):
        Embedder.from_classifier(clf, "backbone", "mean", space=space)


def test_a_chosen_embedder_knows_the_items_that_it_was_chosen_by(
    tones: Path, tiny: Path, tmp_path: Path
) -> None:
    files = sorted(tones.glob("*.wav"))
    seen, new = files[:18], files[18:]
    labels = [None if at % 6 == 5 else path.name[:3] for at, path in enumerate(seen)]
    chosen = penult.choose(penult.load(tiny), seen, labels, "*_{}_*").embedder
    readings = chosen.tap.name, chosen.pooling
    raw = Embedder.from_classifier(chosen.classifier, *readings).embed(seen)
    known = [at for at, label in enumerate(labels) if label]
    material = Material(
        {"x": raw[known]},
        numbered([labels[at] for at in known])[0],
        numbered([seen[at].name[-7] for at in known])[0],
        "x",
        {"x": raw[[at for at in range(18) if at not in known]]},
    )
    space = material.final_space(Setting(("x",), "scale+within+l2"))
    emb = Embedder.from_classifier(chosen.classifier, *readings, space=space)
    loaded = Embedder.load(emb.save(tmp_path / "chosen"))
    col = penult.Collection.open(tmp_path / "c.lance")
    col.add(loaded, files)  # in batches of its own; the rows of the collection are raw
    stored = spaces.meant(col.reader, "auto")
    assert stored is not None and stored.id == space.id and stored.seen is not None
    table, rows = col.vectors(columns=["id"])
    places = dict(zip(table["id"].to_pylist(), stored.seen.places(rows).tolist(), strict=True))
    found = [places[str(path)] for path in [*(seen[at] for at in known), *new]]
    assert found == [*range(len(known)), *[-1] * len(new)]
    of_a = stored.seen.beside([0])[: len(known)]
    assert of_a.tolist() == [seen[at].name[-7] == seen[known[0]].name[-7] for at in known]


def test_choose_in_python_refuses(tones: Path, tiny: Path) -> None:
    clf, files = penult.load(tiny), sorted(tones.glob("*.wav"))
    with pytest.raises(LabelsError, match="3 labels were given for 24 items"):
        penult.choose(clf, files, ["a", "b", "c"])
    with pytest.raises(LabelsError, match="no item has a name by"):
        penult.choose(clf, tones, "{}-nothing.wav")
    with pytest.raises(LabelsError, match="no item has a class"):
        penult.choose(clf, files, [None] * 24)
    with pytest.raises(LabelsError, match="groups were given without labels"):
        penult.choose(clf, files, groups=["a"] * 24)
    with pytest.raises(LabelsError, match="unlabelled items were given without labels"):
        penult.choose(clf, files, unlabelled=files)
    with pytest.raises(ItemError):
        penult.choose(clf, [*files, files[0].with_name("absent.wav")], ["a", "b"] * 12 + ["a"])


def test_choose_without_labels_keeps_the_recipe(tones: Path, tiny: Path) -> None:
    found = penult.choose(penult.load(tiny), tones)
    assert found.setting == Setting((BASE,)) and found.report is None
    ranks = [one.rank_me for one in found.ranking or []]
    assert len(ranks) > 5 and ranks == sorted(ranks, reverse=True)


def test_the_command_line(tones: Path, tiny: Path, tmp_path: Path) -> None:
    into, page = tmp_path / "best", tmp_path / "r.html"
    said = ask("choose", tiny, tones, "--labels", "{}_*", "--groups", "*_{}_*", "--into", into,
               "--report", page, "--json")  # fmt: skip
    assert said.code == 0, said.err
    facts = said.json
    assert "held-out classes: 4 of 4" in said.err  # progress, beside the one document on stdout
    assert facts["labelled"] == 24 and facts["judged_on"] == "other classes"
    assert facts["finalists"][0]["name"] == NOTEBOOK and len(facts["candidates"]) > 20
    text = page.read_text("utf-8")
    assert "data:image/png;base64" in text and "http" not in text.replace("http-equiv", "")[:2000]
    made = ask("embed", into, tones, "--into", tmp_path / "c.lance", "--json")
    assert made.code == 0 and made.json["tap"] == facts["tap"]
    asked = ("evaluate", tmp_path / "c.lance", "--by", "{}_*", "--groups", "*_{}_*")
    first = ask(*asked, "--report", tmp_path / "e.html", "--json")
    again = ask(*asked, "--json")
    assert first.code == 0 and first.json == again.json
    assert "4-way 1-shot" in first.json["estimates"] and first.json["groups"] == 3
    assert "<table>" in (tmp_path / "e.html").read_text("utf-8")
    done = ask("choose", tiny, tones, "--labels", "{}_*", "--into", into,
               "--report", tmp_path / "c.png")  # fmt: skip
    assert done.code == 0 and "chosen" in done.out and "judging" not in done.out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    free = ask("choose", tiny, tones, "--into", into, "--report", tmp_path / "c.json")
    assert free.code == 0
    assert json.loads((tmp_path / "c.json").read_text())["ranked_without_labels"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--labels", "nothing"), "no item has a name by 'nothing'"),
        (("--labels", "{}-x"), "no item has a name by"),
        (("--labels", "folder"), "are of one class"),
        (("--labels", "{}_*", "--groups", "{}_*"), "0 have two groups or more"),
        (("--labels", "{}_*", "--report", "r.pdf"), "has to end in .html or .json or .png"),
        (("--report", "r.html"), "has to end in .json"),
        (("--groups", "{}_*"), "--groups and --unlabelled need --labels"),
        (("--unlabelled", "."), "--groups and --unlabelled need --labels"),
    ],
)
def test_wrong_usage_of_choose(
    tones: Path, tiny: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    said = ask("choose", tiny, tones, "--into", tmp_path / "e", *options)
    assert said.code == 2 and words in said.err and "Traceback" not in said.err
    assert not (tmp_path / "e").exists()


def test_a_folder_that_is_something_else_is_refused_before_the_work(
    tones: Path, tiny: Path
) -> None:
    said = ask("choose", tiny, tones, "--labels", "{}_*", "--into", tones)
    assert said.code == 2 and "exists and is not an embedder" in said.err
    assert "reading" not in said.err


def test_wrong_usage_of_evaluate(tones: Path, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "c.lance"
    assert ask("embed", tiny, tones, "--into", store).code == 0
    for options, words in (
        (("--by", "nothing"), "'nothing' names nothing"),
        (("--by", "folder"), "are of one class"),
        (("--by", "labels"), "no row of"),
        (("--by", "{}_*", "--space", "center"), "has no space 'center' yet"),
        (("--by", "{}_*", "--space", "within+l2"), "fitted to the labels"),
        (("--by", "{}_*", "--ways", "9"), "more classes than there are: 4"),
        (("--by", "{}_*", "--report", "x.png"), "has to end in .html or .json"),
    ):
        said = ask("evaluate", store, *options)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err, said.err
