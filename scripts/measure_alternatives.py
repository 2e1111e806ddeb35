"""Measure ways of using the unlabelled queries of an episode, which Penult doesn't build, beside
the prototype: soft k-means (Ren et al. 2018), label propagation (Zhou et al. 2004), mean shift of
the prototypes. Needs ../shared/data.

    python scripts/measure_alternatives.py digits characters words

Printed for each: the share of known queries that get their class, where queries are of the
episode's classes in equal numbers (balanced), and where class sizes fall off and as many queries
are of no class of the episode (skewed); and there the area under the ROC curve of known against
unknown. Means over episodes, and the gain over the prototype with its standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import results_unseen  # noqa: E402

from penult.analysis.space import fit, unit  # noqa: E402

WAYS, EPISODES, SHOTS = 5, 200, (1, 2)
SKEWED = (12, 6, 3, 2, 1)  # queries of each class, as far as there are so many
SHARPNESS = 10.0  # of cosines in a softmax, as is usual for unit vectors
READING = "prelogits mean"
Array = np.ndarray
# (support (WAYS, shots, d), queries (n, d)), unit vectors → (n, WAYS) scores
Way = Callable[[Array, Array], Array]


@dataclass
class Episode:
    """Rows of one task. truth: the class of each query, −1 for none."""

    support: Array
    query: Array
    truth: Array


def episodes(labels: Array, groups: Array, shots: int, skewed: bool) -> Iterator[Episode]:
    """Tasks whose queries are of other groups than the support."""
    names, every = np.unique(labels), np.unique(groups)
    for seed in range(EPISODES):
        random = np.random.default_rng(seed)
        shown = np.isin(groups, random.permutation(every)[: max(1, len(every) // 2)])
        order = random.permutation(names)
        support, query, truth = [], list[int](), list[int]()
        for number, name in enumerate(order[:WAYS]):
            own = random.permutation(np.flatnonzero((labels == name) & shown))
            asked = random.permutation(np.flatnonzero((labels == name) & ~shown))
            asked = asked[: SKEWED[number] if skewed else 6]
            support.append(own[:shots])
            query += asked.tolist()
            truth += [number] * len(asked)
        if skewed:
            others = np.flatnonzero(np.isin(labels, order[WAYS:]) & ~shown)
            query += random.permutation(others)[: len(query)].tolist()
            truth += [-1] * (len(query) - len(truth))
        if min(map(len, support)) == shots:
            yield Episode(np.array(support), np.array(query), np.array(truth))


def prototype(support: Array, query: Array) -> Array:
    return query @ unit(support.mean(axis=1)).T


def soft_k_means(support: Array, query: Array) -> Array:
    """Ten rounds in which each query counts for a class as far as it is thought to be of it."""
    total, count, scores = support.sum(axis=1), support.shape[1], prototype(support, query)
    for _ in range(10):
        share = np.exp(SHARPNESS * scores)
        share /= share.sum(axis=1, keepdims=True)
        means = (total + share.T @ query) / (count + share.sum(axis=0)[:, None])
        scores = query @ unit(means).T
    return scores


def label_propagation(support: Array, query: Array) -> Array:
    """Over the graph of ten nearest neighbours, α = 0.9, in closed form."""
    rows = np.concatenate([support.reshape(-1, support.shape[2]), query])
    near = np.exp(SHARPNESS * (rows @ rows.T - 1))
    np.fill_diagonal(near, 0)
    near[near < np.sort(near, axis=1)[:, [-min(10, len(rows) - 1)]]] = 0
    near = np.maximum(near, near.T)
    root = 1 / np.sqrt(near.sum(axis=1))
    given = np.zeros((len(rows), len(support)))
    given[np.arange(len(rows) - len(query)), np.repeat(range(len(support)), support.shape[1])] = 1
    spread = np.linalg.solve(np.eye(len(rows)) - 0.9 * root[:, None] * near * root, given)
    scores: Array = spread[-len(query) :]
    return scores


def mean_shift(support: Array, query: Array) -> Array:
    """Five steps of each prototype to the mean of its support and of its five nearest queries."""
    centres = unit(support.mean(axis=1))
    for _ in range(5):
        nearest = np.argsort(-(query @ centres.T), axis=0)[:5]
        moved = [
            np.concatenate([own, query[near]]) for own, near in zip(support, nearest.T, strict=True)
        ]
        centres = unit(np.stack([rows.mean(axis=0) for rows in moved]))
    return query @ centres.T


WAYS_TO_SCORE: dict[str, Way] = {
    "prototype": prototype,
    "soft k-means": soft_k_means,
    "label propagation": label_propagation,
    "mean shift": mean_shift,
}


def measured(vectors: Array, labels: Array, groups: Array, shots: int, skewed: bool) -> (
    dict[str, list[tuple[float, float]]]
):  # fmt: skip
    """For each way the accuracy and the area under the ROC curve of every episode."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS_TO_SCORE}
    for one in episodes(labels, groups, shots, skewed):
        known = one.truth >= 0
        for name, way in WAYS_TO_SCORE.items():
            scores = way(vectors[one.support], vectors[one.query])
            right = float((scores.argmax(axis=1) == one.truth)[known].mean())
            area = roc_auc_score(known, scores.max(axis=1)) if skewed else np.nan
            found[name].append((right, area))
    return found


def told(values: Array, base: Array) -> str:
    gain = values - base
    return f"{values.mean():.3f} ({gain.mean():+.3f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.3f})"


def main() -> None:
    print(
        "| data | examples | way | balanced | skewed | unknown, area |\n|---|---|---|---|---|---|"
    )
    for name in sys.argv[1:] or ("digits", "characters", "words"):
        items = results_unseen.SETS[name]()
        vectors = items.vectors[READING]
        vectors = unit(fit("shrink", vectors)(vectors).astype(np.float64))
        for shots in SHOTS:
            even = measured(vectors, items.labels, items.groups, shots, False)
            uneven = measured(vectors, items.labels, items.groups, shots, True)
            for way in WAYS_TO_SCORE:
                cells = [
                    told(np.array(part[way])[:, at], np.array(part["prototype"])[:, at])
                    for part, at in ((even, 0), (uneven, 0), (uneven, 1))
                ]
                print(f"| {name} | {shots} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
