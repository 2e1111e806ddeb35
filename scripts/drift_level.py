"""Figures of docs/archive.md on drift: alarms on shuffled weeks, and planted changes.

    python scripts/drift_level.py digits.lance [shuffles]    (a collection of ../shared/data/fsdd)

1,500 digits in ten weeks. Shuffled: of all speakers. Planted: of five speakers, and from the
seventh week on a share of the rows is of the sixth speaker; each speaker is the sixth in turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from penult.analysis.drift import drift_test
from penult.collection.collection import Collection
from penult.collection.drift import ALPHA

ROWS, WEEKS, CHANGE, DRAWS = 1500, 10, 6, 199
SHARES = (0.05, 0.1, 0.2, 0.4)
WEEK = np.arange(ROWS) * WEEKS // ROWS


def main() -> None:
    shuffles = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    keys, vectors = Collection.open(sys.argv[1], must_exist=True).vectors()
    who = np.array([Path(id).stem.split("_")[1] for id in keys["id"].to_pylist()])
    low = []
    for seed in range(shuffles):
        rows = np.random.default_rng(seed).permutation(len(vectors))[:ROWS]
        low.append(drift_test(vectors[rows], WEEK, ordered=True, draws=DRAWS, seed=seed).p_value)
    alarms, below = (int((np.array(low) <= level).sum()) for level in (ALPHA, 0.05))
    print(f"shuffled weeks: {alarms} of {shuffles} are alarms (p ≤ {ALPHA:g}); p ≤ 0.05: {below}\n")
    print(
        "| share of the sixth speaker | alarms | since, right | within a week | AUROC |\n|---"
        + "|---" * 4
        + "|"
    )
    for share in SHARES:
        found = []
        for seed, new in enumerate(np.unique(who)):
            random = np.random.default_rng(seed)
            rows = random.permutation(np.flatnonzero(who != new))[:ROWS]
            late = np.flatnonzero(WEEK >= CHANGE)
            some = random.permutation(late)[: round(share * len(late))]
            rows[some] = random.permutation(np.flatnonzero(who == new))[: len(some)]
            found.append(drift_test(vectors[rows], WEEK, ordered=True, draws=DRAWS, seed=seed))
        best = [one.contrasts[one.strongest] for one in found]
        alarms = sum(one.p_value <= ALPHA for one in found)
        exact = sum(one.number == CHANGE for one in best)
        near = sum(abs(one.number - CHANGE) <= 1 for one in best)
        auroc = np.mean([one.auroc for one in best])
        cells = f"{share:.0%} | {alarms} of {len(found)} | {exact} | {near} | {auroc:.3f}"
        print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
