"""Measure classes from examples on real data: accuracy, unknowns, calibration, time to add one.

    penult embed kwt1.onnx fsdd/recordings --sample-rate 16000 --seconds 1 --tap prelogits \\
        --into digits.lance
    python scripts/measure_classes.py digits.lance --by '{}_*' --groups '*_{}_*'

Examples and questions never share a group (a speaker); some classes are left out and asked about.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from penult.analysis import space
from penult.analysis.metrics import calibration_error
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.fewshot.examples import Examples
from penult.fewshot.fitted import FittedClasses


def episode(
    vectors: np.ndarray,
    names: np.ndarray,
    groups: np.ndarray,
    shots: int,
    left_out: int,
    recipe: str,
    method: str | None,
    level: float,
    seed: int,
    grouped: bool,
    mixed: bool,
) -> dict[str, float]:
    """One draw of classes, groups and examples."""
    random = np.random.default_rng(seed)
    classes, sides = random.permutation(np.unique(names)), random.permutation(np.unique(groups))
    known = np.isin(names, classes[left_out:])
    teach = np.isin(groups, sides[: len(sides) // 2]) | mixed
    examples = Examples.empty(vectors.shape[1])
    for name in classes[left_out:]:
        rows = random.permutation(np.flatnonzero((names == name) & teach))[:shots]
        keys = [(str(row), "whole") for row in rows]
        examples = examples.with_marks(str(name), keys, vectors[rows])
    fitted = space.fit(recipe, vectors)  # unlabelled, as a collection's space is
    sides_of = [str(groups[int(id)]) for id, _ in examples.keys] if grouped else None
    taught = FittedClasses(examples, fitted, method, groups=sides_of)
    asked = ~teach
    if mixed:  # the same groups on both sides, never the same item
        asked = ~np.isin(np.arange(len(names)), [int(id) for id, _ in examples.keys])
    judged = taught.judge(vectors[asked], level)
    free = taught.judge(vectors[asked], None)
    isknown, truth = known[asked], names[asked]
    label = np.array([taught.names[i] for i in free.label])
    right = label == truth
    near = taught._prototypes(fitted(vectors[asked])).max(axis=1)
    top = free.probability.max(axis=1)
    return {
        "accuracy": right[isknown].mean(),
        "ECE": calibration_error(top[isknown], right[isknown]),
        "AUROC": roc_auc_score(isknown, near),
        "known called unknown": (judged.label[isknown] < 0).mean(),
        "unknown taken for known": (judged.label[~isknown] >= 0).mean(),
    }


def seconds_to_add(vectors: np.ndarray, classes: int) -> float:
    """A further class of one example to so many of five, and one question, in seconds."""
    random = np.random.default_rng(0)
    examples = Examples.empty(vectors.shape[1])
    fitted = space.fit("centre", vectors)
    for number in range(classes):
        rows = random.choice(len(vectors), 5, replace=False)
        keys = [(f"{number}/{row}", "whole") for row in rows]
        examples = examples.with_marks(str(number), keys, vectors[rows])
    FittedClasses(examples, fitted, "prototype").judge(vectors[:1], 0.05)  # imports
    began = time.perf_counter()
    examples = examples.with_marks("new", [("new", "whole")], vectors[:1])
    FittedClasses(examples, fitted, "prototype").judge(vectors[:1], 0.05)
    return time.perf_counter() - began


def main() -> None:
    """Print a table, a line for each number of examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("--by", required=True)
    parser.add_argument("--groups", required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--left-out", type=int, default=3)
    parser.add_argument("--space", default="centre")
    parser.add_argument("--method")
    parser.add_argument("--level", type=float, default=0.05)
    parser.add_argument("--held-out-by-groups", action="store_true")
    parser.add_argument("--mixed", action="store_true", help="ask about the same groups too")
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    found = labelled(Collection.open(asked.collection, must_exist=True), [asked.by, asked.groups])
    names, groups = (np.array(found.names[by]) for by in (asked.by, asked.groups))
    print(f"space {asked.space}, level {asked.level}, {asked.seeds} seeds, "
          f"{asked.left_out} classes left out")  # fmt: skip
    for shots in asked.shots:
        results = [
            episode(found.vectors, names, groups, shots, asked.left_out, asked.space, asked.method,
                    asked.level, seed, asked.held_out_by_groups, asked.mixed)
            for seed in range(asked.seeds)
        ]  # fmt: skip
        line = [
            f"{key} {np.mean(values):.3f} ± {half:.3f}"
            for key in results[0]
            for values in [[one[key] for one in results]]
            for half in [1.96 * np.std(values, ddof=1) / len(values) ** 0.5]
        ]
        print(f"{shots:>3} examples: " + " · ".join(line), flush=True)
    for classes in (10, 100):
        taken = 1000 * seconds_to_add(found.vectors, classes)
        print(f"a class added to {classes}, everything fitted anew, one question: {taken:.1f} ms")


if __name__ == "__main__":
    main()
