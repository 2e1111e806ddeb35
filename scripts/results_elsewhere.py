"""Equal error rates of docs/choosing.md: a space that was fitted to the labels of one set, on
another set, as it is and adapted to it without labels. Needs ../shared/data.

    python scripts/results_elsewhere.py [--vectors FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import results, results_unseen  # noqa: E402
from scripts.results import Items, kept  # noqa: E402

from penult.analysis.adaptation import ADAPTATIONS, adapt, spread  # noqa: E402
from penult.analysis.candidates import Setting  # noqa: E402
from penult.analysis.verification import verify  # noqa: E402

SPACE = "scale+within+l2"
SOUNDS = (
    tuple(f"layer:{number} mean+std" for number in (8, 7, 9, 12, 10)),
    tuple(f"layer:{number} mean+std" for number in (14, 15, 16, 13)),
)
WORDS = (
    ("layer:10 first", "layer:11 first", "layer:9 first", "prelogits mean", "layer:8 first"),
    tuple(f"layer:{number} mean+std" for number in (4, 5, 6)),
)


def turned(items: Items) -> Items:
    """With groups for labels, and labels for groups."""
    return Items(items.vectors, items.groups, items.labels, items.chains)


def row(words: str, chosen_on: Items, other: Items, readings: tuple[str, ...]) -> None:
    space = chosen_on.material(np.ones(len(chosen_on.labels), bool)).final_space(
        Setting(readings, SPACE)
    )
    vectors = np.concatenate([other.vectors[name] for name in readings], axis=1)
    names, groups = other.labels.tolist(), other.groups.tolist()
    forms = [vectors, vectors - vectors.mean(axis=0), space(vectors)]
    forms += [adapt(space, vectors, how)(vectors) for how in ADAPTATIONS]
    rates = [f"{100 * verify(form, names, groups).eer:.1f}" for form in forms]
    cosine = spread(space, vectors).space
    cells = [words, readings[0], *rates, f"{cosine:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    folder = results.asked([]).vectors
    spoken = kept("unseen-digits", results_unseen.digits, folder)
    read = kept("librispeech_speakers", results.librispeech_speakers, folder)
    digits, words = (kept(one.__name__, one, folder) for one in (results.fsdd, results.kws_words))
    head = ("from → to", "first reading", "raw", "centre", "as chosen", *ADAPTATIONS, "mean cosine")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for readings in SOUNDS:
        row("speakers of fsdd → LibriSpeech", turned(spoken), read, readings)
        row("speakers of LibriSpeech → fsdd", read, turned(spoken), readings)
    for readings in WORDS:
        row("digits → words in noise", digits, words, readings)
        row("words in noise → digits", words, digits, readings)


if __name__ == "__main__":
    main()
