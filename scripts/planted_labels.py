"""Figures of docs/archive.md on suspect labels: errors planted among true labels, and how far up
`penult.analysis.label_suspects` ranks them. Five seeds; neighbours and folds keep the groups of
scripts/results.py apart. Found: of the errors, or of the rows looked at where errors are more.
Needs ../shared/data.

    python scripts/planted_labels.py fsdd librispeech_speakers kws_words imagenet banking77
    python scripts/planted_labels.py --vectors FOLDER NAME    (as scripts/results.py)
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scripts import results
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from penult.analysis.label_suspects import label_suspects

READING, ROWS, SEEDS, FIRST = "prelogits mean", 3_000, 5, 0.05
HEAD = ("errors", "share of rows", "average precision (worst)", "found in the first 5 %")


def neighbours(vectors: np.ndarray, groups: np.ndarray, k: int = 20) -> np.ndarray:
    """(n, k) the nearest rows of other groups by cosine, −1 where there are fewer."""
    model = NearestNeighbors(n_neighbors=len(vectors), metric="cosine", algorithm="brute")
    order = model.fit(vectors).kneighbors(vectors, return_distance=False)
    found = np.full((len(vectors), k), -1)
    for row, near in enumerate(order):
        other = near[groups[near] != groups[row]][:k]
        found[row, : len(other)] = other
    return found


def planted(labels: np.ndarray, like: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """The labels with some wrong. like: for each class the one that it is taken for; any other one
    without it."""
    random = np.random.default_rng(seed)
    given, classes = labels.copy(), int(labels.max()) + 1
    for row in random.choice(len(labels), max(1, round(share * len(labels))), replace=False):
        moved = (labels[row] + random.integers(1, classes)) % classes
        given[row] = moved if like is None else like[labels[row]]
    return given


def nearest_class(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,) of each class the class with the nearest mean by cosine."""
    means = np.stack([vectors[labels == one].mean(axis=0) for one in np.unique(labels)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T - 2 * np.eye(len(means))
    found: np.ndarray = cosines.argmax(axis=1)
    return found


def rows_of(items: results.Items) -> Iterator[str]:
    """The lines of a table."""
    some = np.random.default_rng(0).permutation(len(items.labels))[:ROWS]
    vectors = items.vectors[READING][some].astype(np.float64)
    labels = np.unique(items.labels[some], return_inverse=True)[1]
    groups = np.unique(items.groups[some], return_inverse=True)[1]
    near = neighbours(vectors, groups)
    names = [str(group) for group in groups] if len(np.unique(groups)) < len(groups) else None
    like = nearest_class(vectors, labels)
    for kind, taken in (("any other class", None), ("the class most alike", like)):
        for share in (0.02, 0.05, 0.1):
            precision, found = [], []
            for seed in range(SEEDS):
                given = planted(labels, taken, share, seed)
                ranked = label_suspects(
                    vectors, [str(one) for one in given], near, names, seed=seed
                )
                wrong = (given != labels)[ranked.rows]
                precision.append(float(average_precision_score(wrong, ranked.suspect)))
                first = max(1, round(FIRST * len(wrong)))
                found.append(wrong[:first].sum() / min(first, wrong.sum()))
            mean, worst = statistics.fmean(precision), min(precision)
            cells = (kind, f"{share:.0%}", f"{mean:.2f} ({worst:.2f})")
            yield f"| {' | '.join(cells)} | {statistics.fmean(found):.0%} |"


def main() -> None:
    typed = results.asked(list(results.SETS))
    for name in typed.names or results.SETS:
        print(f"### {name}\n\n{results.SETS[name].__doc__}\n")
        print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
        for line in rows_of(results.kept(name, results.SETS[name], typed.vectors)):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
