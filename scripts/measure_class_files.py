"""Print what other items give a class file of few examples: accuracy, unknowns and their level.

    python scripts/measure_class_files.py COLLECTION --by COLUMN --groups COLUMN [--draws 6]

Each draw teaches three classes with three examples each of half of the groups (speakers, sites),
and predicts all rows of the other half; the background is a hundred other rows of the first half,
whatever they are. Nothing else of the collection is seen, as in a file that began without one.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
from sklearn.metrics import roc_auc_score

from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import Examples
from penult.fewshot.fitted import FittedClasses

CLASSES, EXAMPLES, OTHERS, LEVEL = 3, 3, 100, 0.05


def main() -> None:
    """Print one line without a background, and one with."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("collection")
    parser.add_argument("--by", required=True)
    parser.add_argument("--groups", required=True)
    parser.add_argument("--draws", type=int, default=6)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    found = labelled(Collection.open(asked.collection).reader, [asked.by, asked.groups])
    names, groups = (np.array(found.names[way], str) for way in (asked.by, asked.groups))
    results: dict[int, list[tuple[float, ...]]] = {0: [], OTHERS: []}
    for seed in range(asked.draws):
        for number, result in draw(found.vectors, names, groups, seed).items():
            results[number].append(result)
    print("background  accuracy (worst)  AUROC of unknowns  known called unknown  unknown as known")
    for number, rows in results.items():
        mean, worst = np.mean(rows, axis=0), min(row[0] for row in rows)
        print(f"{number:10}  {mean[0]:.3f} ({worst:.3f})     {mean[1]:.3f}              "
              f"{mean[2]:.3f}                 {mean[3]:.3f}")  # fmt: skip


def draw(
    vectors: np.ndarray, names: np.ndarray, groups: np.ndarray, seed: int
) -> dict[int, tuple[float, ...]]:
    """Accuracy, AUROC, share of known that is called unknown, share of unknown taken for known,
    without and with a background."""
    random = np.random.default_rng(seed)
    classes = random.permutation(np.unique(names))[:CLASSES]
    voices = random.permutation(np.unique(groups))
    taught = np.isin(groups, voices[: len(voices) // 2])
    examples, used = Examples.empty(vectors.shape[1]), np.zeros(len(vectors), bool)
    for name in classes:
        places = random.permutation(np.flatnonzero((names == name) & taught))[:EXAMPLES]
        keys = [(f"row {place}", "whole") for place in places]
        examples = examples.with_marks(str(name), keys, vectors[places])
        used[places] = True
    others = random.permutation(np.flatnonzero(taught & ~used))
    results = {}
    for number in (0, OTHERS):
        background = vectors[others[:number]]
        space = fit_to_examples("auto", examples, background)
        fitted = FittedClasses(examples, space, None, False, lambda rows=background: rows)
        judged = fitted.judge(vectors[~taught], LEVEL)
        truth = names[~taught]
        known = np.isin(truth, classes)
        best = np.array(fitted.names)[judged.probability.argmax(axis=1)]
        results[number] = (
            float((best == truth)[known].mean()),
            float(roc_auc_score(known, judged.similarity.max(axis=1))),
            float((judged.label[known] < 0).mean()),
            float((judged.label[~known] >= 0).mean()),
        )
    return results


if __name__ == "__main__":
    main()
