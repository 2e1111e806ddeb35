"""Figures of docs/archive.md on novel rows: digits 0 to 4 of some speakers are normal, and digits 5
to 9 of others are strangers among their digits 0 to 4. Five draws of three speakers.

    python scripts/novelty_figures.py digits.lance    (a collection of ../shared/data/fsdd)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from penult.analysis.novelty import (
    METHODS,
    NEW,
    choose_method,
    fold_scores,
    folds_of,
    novelty_scores,
    p_values,
)
from penult.collection.collection import Collection

SEEDS, ALPHA, PARTIAL = 5, 0.05, 0.1


def main() -> None:
    keys, vectors = Collection.open(sys.argv[1], must_exist=True).vectors()
    parts = [Path(id).stem.split("_") for id in keys["id"].to_pylist()]
    digits, speakers = np.array([int(part[0]) for part in parts]), np.array([p[1] for p in parts])
    table: dict[str, list[list[float]]] = {name: [] for name in ("auto", *METHODS)}
    for seed in range(SEEDS):
        known = np.random.default_rng(seed).permutation(np.unique(speakers))[:3]
        own = np.isin(speakers, known)
        normal, asked, strange = vectors[own & (digits < 5)], vectors[~own], digits[~own] > 4
        groups = speakers[own & (digits < 5)].tolist()
        folds, none = folds_of(groups, len(normal)), np.full(len(asked), NEW)
        choice = choose_method(normal, folds, groups, seed)
        for name in METHODS:
            scores = novelty_scores(name, normal, folds, asked, none)
            held = novelty_scores(name, normal, folds, normal, folds)
            alike = np.tile(held, (folds.max() + 1, 1))
            stated = (p_values(held, folds, alike, folds) <= ALPHA).mean()
            by_fold = fold_scores(name, normal, folds, asked, none)
            low = p_values(held, folds, by_fold, none) <= ALPHA
            line = [
                float(roc_auc_score(strange, scores)),
                float(roc_auc_score(strange, scores, max_fpr=PARTIAL)),
                float(stated),
                float(low[~strange].mean()),
                float(low[strange].mean()),
                choice.means()[name],
            ]
            table[name].append(line)
            if name == choice.taken:
                table["auto"].append(line)
        print(f"seed {seed}: {', '.join(known)} known, auto takes {choice.taken}", flush=True)
    head = ("method", "AUROC (worst)", f"partial, FPR ≤ {PARTIAL:g}", f"p ≤ {ALPHA:g}: stated",
            "new normal rows (range)", "strangers", "planted changes")  # fmt: skip
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, lines in table.items():
        values = np.array(lines)
        mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        real = f"{mean[3]:.1%} ({low[3]:.1%} to {high[3]:.1%})"
        cells = (name, f"{mean[0]:.3f} ({low[0]:.3f})", f"{mean[1]:.3f}", f"{mean[2]:.1%}", real,
                 f"{mean[4]:.0%}", f"{mean[5]:.3f}")  # fmt: skip
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
