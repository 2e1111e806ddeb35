"""Figures of docs/classes.md: the space that classes from examples take, beside `centre`, on other
data and classifiers; the stated level of unknown beside the real one. Needs ../shared/data.

    python scripts/measure_spaces.py fsdd librispeech_speakers kws_words omniglot imagenet banking77

Each of five draws leaves a third of 30 classes out as unknowns, teaches the others by examples of a
half of the groups (speakers, noises, drawers; or items, where there are none) and asks about the
other half. Spaces are fitted as a collection does it: to all rows but the examples, without labels.

With --groupings: what is stated as 5 % for items of new groups, where items, clusters or groups are
held out, and the number of draws that have a level; also `alphabets` (of omniglot; its characters
are the groups) and `sexes` (of librispeech_speakers; the speakers are).

With --chosen: three layers joined in a space that is fitted with the labels of the very items that
are then taught, as `penult choose` does it; the stated accuracy and level beside the real ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import results

from penult.analysis.space import SeenRows, fit, fit_seen, unit
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import CLUSTERS, GIVEN, Examples, Grouping
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.scorers import prototypes

SEEDS, CLASSES, SHOTS, NEAREST = 5, 30, (1, 2, 5, 10, 20), 10
VECTORS: list[Path | None] = [None]
MEASURES = ("accuracy", "AUROC of unknowns", "known called unknown")


def omniglot() -> results.Items:
    """The 136 characters of five alphabets by eight drawers; SqueezeNet."""
    folder = Path(tempfile.mkdtemp())
    with zipfile.ZipFile(results.SHARED / "omniglot" / "images_background_small1.zip") as archive:
        archive.extractall(folder)
    files = [path for path in sorted(folder.rglob("*.png")) if int(path.stem.split("_")[1]) <= 8]
    labels = ["/".join(path.parts[-3:-1]) for path in files]
    drawers = [path.stem.split("_")[1] for path in files]
    return results.read(results.pictures(), files, labels, drawers)


SETS = {**results.SETS, "omniglot": omniglot}


def readings_of(items: results.Items) -> list[str]:
    """The notebook's reading, the prelogits, and layers at a half and at the last but one."""
    layers = [name for name in items.vectors if name.startswith("layer:")]
    wide = [name for name in layers if name.endswith("mean+std")] or layers
    first = [name for name in layers if name.endswith(" first")] or wide
    names = ["backbone mean", "prelogits mean", wide[len(wide) // 2], first[-2]]
    return [name for name in dict.fromkeys(names) if name in items.vectors]


def draw(
    items: results.Items, vectors: np.ndarray, shots: int, seed: int
) -> dict[str, tuple[float, ...]] | None:
    """The measures by space; None where the classes have too few examples."""
    random = np.random.default_rng(seed)
    classes = random.permutation(np.unique(items.labels))[:CLASSES]
    sides = random.permutation(np.unique(items.groups))
    known = classes[max(1, len(classes) // 3) :]
    teach = np.isin(items.groups, sides[: len(sides) // 2])
    examples, groups = Examples.empty(vectors.shape[1]), []
    for name in known:
        rows = random.permutation(np.flatnonzero((items.labels == name) & teach))[:shots]
        if len(rows) < shots:
            return None
        examples = examples.with_marks(
            str(name), [(str(row), "whole") for row in rows], vectors[rows]
        )
        groups += [str(items.groups[row]) for row in rows]
    own = np.isin(np.arange(len(vectors)), [int(id) for id, _ in examples.keys])
    asked = ~teach & np.isin(items.labels, classes)
    is_known = np.isin(items.labels[asked], known)
    if is_known.all() or not is_known.any():
        return None
    # Groups are given where several examples can share one.
    named = groups if len(sides) < len(vectors) else None
    found = {}
    for recipe in ("centre", "auto"):
        grouping = None if named is None else Grouping(GIVEN, tuple(named))
        space = fit_to_examples(recipe, examples, vectors[~own], grouping)
        if recipe == "centre":
            space = fit("centre", vectors)  # as it was
        taught = FittedClasses(examples, space, "prototype", groups=named)
        judged = taught.judge(vectors[asked], 0.05)
        truth = np.array([taught.names.index(n) if n in taught.names else -1
                          for n in items.labels[asked]])  # fmt: skip
        best = judged.similarity
        stated = taught.level(0.05).level
        unknown = (judged.label[is_known] < 0).mean() if stated else np.nan
        found[recipe] = (
            float((best.argmax(axis=1) == truth)[is_known].mean()),
            float(roc_auc_score(is_known, best.max(axis=1))),
            float(unknown),
        )
        found[f"{recipe} space"] = space.recipe
    found["CSLS"] = (csls(examples, vectors, ~own, np.flatnonzero(asked), is_known),)
    return found


def csls(
    examples: Examples, vectors: np.ndarray, rest: np.ndarray, asked: np.ndarray, known: np.ndarray
) -> float:
    """The area under the ROC curve by 2 · cosine − mean cosines of the ten nearest other rows on
    either side (Conneau et al., 2018), in the space `shrink`."""
    space = fit("shrink", vectors[rest])
    rows, questions = unit(space(vectors[rest])), unit(space(vectors[asked]))
    means = prototypes(space(examples.vectors), examples.targets(examples.names)).means
    among = questions @ rows.T
    place = np.cumsum(rest) - 1
    among[np.arange(len(asked)), place[asked]] = -np.inf  # itself
    near = [np.sort(one, axis=1)[:, -NEAREST:].mean(axis=1) for one in (among, means @ rows.T)]
    scores = 2 * questions @ means.T - near[0][:, None] - near[1][None]
    return float(roc_auc_score(known, scores.max(axis=1)))


def nested(name: str) -> tuple[results.Items, np.ndarray, np.ndarray] | None:
    """Items of a set with coarser classes, and their former classes as groups."""
    if name == "alphabets":
        items = results.kept("omniglot", omniglot, VECTORS[0])
        return items, np.array([label.split("/")[0] for label in items.labels]), items.labels
    if name == "sexes":
        items = results.kept("librispeech_speakers", SETS["librispeech_speakers"], VECTORS[0])
        women = np.isin(items.labels, ["367", "533", "1688", "1998", "3080", "3331"])
        return items, np.where(women, "f", "m"), items.labels
    return None


def by_grouping(
    items: results.Items, reading: str, shots: int, seed: int, kinds: tuple | None
) -> dict[str, tuple[float, float]] | None:
    """For each grouping (the share of known items of new groups that is called unknown, the share
    of unknown ones that is taken for known) at 0.05. kinds: classes and groups that nest in them,
    else those of the items."""
    vectors = items.vectors[reading].astype(np.float32)
    labels, groups = kinds or (items.labels, items.groups)
    random = np.random.default_rng(seed)
    classes = random.permutation(np.unique(labels))[:CLASSES]
    known = classes[len(classes) // 3 if len(classes) > 2 else 0 :]
    parts = [groups[labels == name] for name in classes] if kinds else [groups]
    sides = [random.permutation(np.unique(part)) for part in parts]
    teach = np.isin(groups, np.concatenate([side[: max(1, len(side) // 2)] for side in sides]))
    examples, taken = Examples.empty(vectors.shape[1]), list[int]()
    for name in known:
        rows = random.permutation(np.flatnonzero((labels == name) & teach))[:shots]
        if len(rows) < shots:
            return None
        keys = [(str(row), "whole") for row in rows]
        examples = examples.with_marks(str(name), keys, vectors[rows])
        taken += rows.tolist()
    own, is_known = np.isin(np.arange(len(vectors)), taken), np.isin(labels, known)
    space = fit_to_examples("auto", examples, vectors[~own])
    other = ~teach & np.isin(labels, classes) & ~is_known
    found = {}
    for kind, grouping in (("items", Grouping()), ("clusters", Grouping(CLUSTERS)),
                           ("given", Grouping(GIVEN, tuple(map(str, groups[taken]))))):  # fmt: skip
        taught = FittedClasses(examples, space, "prototype", groups=grouping)
        shares = [(taught.judge(vectors[rows], 0.05).label < 0).mean() if rows.any() else np.nan
                  for rows in (~teach & is_known, other)]  # fmt: skip
        stated = taught.level(0.05).level is not None
        found[kind] = (shares[0], 1 - shares[1]) if stated else (np.nan, np.nan)
    return found


def groupings(sets: list[str]) -> None:
    """A line for each reading and number of examples: what is stated as 5 %, by grouping."""
    kinds = ("items", "clusters", "given")
    print("| set, reading | examples | " + " | ".join(f"known called unknown, {k}" for k in kinds)
          + " | " + " | ".join(f"unknown taken for known, {k}" for k in kinds) + " |\n"
          + "|---" * 8 + "|", flush=True)  # fmt: skip
    for name in sets:
        if (found := nested(name)) is not None:
            items, *coarse = found
        else:
            items, coarse = results.kept(name, SETS[name], VECTORS[0]), []
        for reading in readings_of(items)[:2] if name != "sexes" else ["backbone mean"]:
            for shots in SHOTS[1:]:
                drawn = [by_grouping(items, reading, shots, seed, tuple(coarse) or None)
                         for seed in range(SEEDS)]  # fmt: skip
                if not (lines := [one for one in drawn if one is not None]):
                    continue
                cells = [words([one[k][m] for one in lines])
                         + f" ({sum(not np.isnan(one[k][0]) for one in lines)})" * (not m)
                         for m in (0, 1) for k in kinds]  # fmt: skip
                print(f"| {name}, {reading} | {shots} | " + " | ".join(cells) + " |", flush=True)


def words(values: list[float]) -> str:
    """Mean ± half of the 95 % interval over the draws that have a value, and their number if these
    are not all."""
    from scipy.stats import t

    known = np.array([one for one in values if not np.isnan(one)])
    if not len(known):
        return "none"
    half = (
        t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
        if len(known) > 1
        else 0
    )
    return f"{known.mean():.3f} ± {half:.3f}"


def chosen(items: results.Items, seed: int) -> tuple[float, float, float]:
    """(the stated accuracy, the real one, the share of known items that is called unknown)."""
    layers = [name for name in items.vectors if name.startswith("layer:")]
    names = [layers[at * len(layers) // 4] for at in (1, 2, 3)]
    vectors = np.concatenate([items.vectors[name] for name in names], axis=1).astype(np.float32)
    random = np.random.default_rng(seed)
    classes = random.permutation(np.unique(items.labels))[:12]
    each = [random.permutation(np.flatnonzero(items.labels == name)) for name in classes]
    taught = [rows[: max(2, min(10, len(rows) // 2))] for rows in each]
    asked = np.concatenate([rows[len(own) :] for rows, own in zip(each, taught, strict=True)])
    rows, kinds = np.concatenate(taught), np.repeat(np.arange(len(classes)), [*map(len, taught)])
    space = fit_seen("scale+within+l2", SeenRows(vectors[rows], kinds, np.arange(len(rows))))
    keys = [(str(row), "whole") for row in rows]
    named = [str(classes[kind]) for kind in kinds]
    examples = Examples.empty(vectors.shape[1]).with_named(named, keys, vectors[rows])
    found = FittedClasses(examples, space, "prototype")
    judged = found.judge(vectors[asked], 0.05)
    best = np.array(found.names)[judged.similarity.argmax(axis=1)]
    right = float((best == items.labels[asked]).mean())
    unknown = float((judged.label < 0).mean()) if found.level(0.05).level else float("nan")
    return found.accuracy["prototype"], right, unknown


def main() -> None:
    """A line for each reading and number of examples, and the worst difference at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--vectors", type=Path, help="folder of vectors that were made before")
    parser.add_argument("--chosen", action="store_true")
    parser.add_argument("--groupings", action="store_true")
    asked = parser.parse_args()
    VECTORS[0] = asked.vectors
    if asked.groupings:
        groupings(asked.sets)
        return
    if asked.chosen:
        print("| set | accuracy, stated | real | known called unknown at 0.05 |\n|---|---|---|---|")
        for name in asked.sets:
            items = results.kept(name, SETS[name], asked.vectors)
            columns = zip(*[chosen(items, seed) for seed in range(SEEDS)], strict=True)
            print(
                f"| {name} | " + " | ".join(words(list(one)) for one in columns) + " |", flush=True
            )
        return
    head = ("set, reading", "examples", "accuracy, centre", "auto", "difference (worst draw)",
            "AUROC of unknowns, centre", "auto", "shrink and CSLS",
            "known called unknown at 0.05, centre", "auto", "spaces")  # fmt: skip
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    gains: dict[int, list[float]] = {}
    for name in asked.sets:
        items = results.kept(name, SETS[name], asked.vectors)
        for reading in readings_of(items):
            vectors = items.vectors[reading].astype(np.float32)
            for shots in SHOTS:
                drawn = [draw(items, vectors, shots, seed) for seed in range(SEEDS)]
                found = [one for one in drawn if one is not None]
                if not found:
                    continue
                by = [[[one[recipe][m] for one in found] for recipe in ("centre", "auto")]
                      for m in range(len(MEASURES))]  # fmt: skip
                gain = 100 * (np.array(by[0][1]) - np.array(by[0][0]))
                gains.setdefault(shots, []).append(float(gain.mean()))
                spaces = ", ".join(sorted({one["auto space"] for one in found}))
                cells = [f"{name}, {reading}", str(shots), *(words(one) for one in by[0]),
                         f"{gain.mean():+.1f} ({gain.min():+.1f})", *(words(one) for one in by[1]),
                         words([one["CSLS"][0] for one in found]), *(words(one) for one in by[2]),
                         spaces]  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)
    for shots, values in gains.items():
        print(f"{shots} examples: mean {np.mean(values):+.1f} points, worst {min(values):+.1f}, "
              f"{len(values)} pairs of data and reading")  # fmt: skip


if __name__ == "__main__":
    main()
