"""Figures of docs/results.md for data that the rule of `choose` was not made on: `results.py`
on other tasks, takes and alphabets. Needs ../shared/data.

    python scripts/results_unseen.py speakers alphabets characters digits words
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import results  # noqa: E402
from scripts.results import SHARED, Items, read  # noqa: E402

from penult.models import specs  # noqa: E402
from penult.models.base import Classifier  # noqa: E402

TAKES = range(10, 14)  # of spoken digits: none of those that the rule was made on


def sounds() -> Classifier:
    return specs.load(
        SHARED / "w_yamnet_hf",
        preprocess="scripts.real_models:yamnet",
        sample_rate=16_000,
        modality="audio",
    )


def spoken(takes: range) -> tuple[list[Path], list[list[str]]]:
    """Files of fsdd, and the digit, speaker and take of each."""
    files = sorted((SHARED / "fsdd" / "recordings").glob("*.wav"))
    files = [path for path in files if int(path.stem.split("_")[2]) in takes]
    return files, [path.stem.split("_") for path in files]


def speakers() -> Items:
    """The speakers of fsdd, four takes a digit; the bundled keyword classifier; support and query
    say different digits. Chosen on three speakers, judged on the other three."""
    files, parts = spoken(TAKES)
    return read(specs.load("demo"), files, [p[1] for p in parts], [p[0] for p in parts])


def digits() -> Items:
    """The digits of fsdd, four takes of six speakers; YAMNet; support and query from different
    speakers."""
    files, parts = spoken(TAKES)
    return read(sounds(), files, [p[0] for p in parts], [p[1] for p in parts])


def words() -> Items:
    """39 words, one clip each, in six noises, as `kws_words`; YAMNet; support and query in
    different noises."""
    clf, results.keywords = results.keywords, sounds
    try:
        return results.kws_words()
    finally:
        results.keywords = clf


def drawn(first: int, drawers: range) -> list[Path]:
    """Pictures of omniglot's two small background sets: the first characters of each alphabet."""
    folder = Path(tempfile.mkdtemp())
    for name in ("images_background_small1", "images_background_small2"):
        with zipfile.ZipFile(SHARED / "omniglot" / f"{name}.zip") as archive:
            archive.extractall(folder / name[-1])
    files = sorted(folder.rglob("*.png"))
    twice = {path.name for path in (folder / "1").glob("*/*")}
    return [
        path
        for path in files
        if int(path.parts[-2][-2:]) <= first
        and int(path.stem.split("_")[1]) in drawers
        and not (path.parts[-4].endswith("2") and path.parts[-3] in twice)
    ]


def alphabets() -> Items:
    """The eight alphabets of omniglot's small background sets, twelve characters each by two
    drawers; SqueezeNet; support and query are different characters."""
    files = drawn(12, range(9, 11))
    labels = [path.parts[-3] for path in files]
    return read(results.pictures(), files, labels, ["/".join(p.parts[-3:-1]) for p in files])


def characters() -> Items:
    """Twenty characters of each of the alphabets that the second small background set has alone,
    by four drawers; SqueezeNet; support and query by different drawers."""
    seen = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    files = [path for path in drawn(20, range(9, 13)) if path.parts[-3] not in seen]
    labels = ["/".join(path.parts[-3:-1]) for path in files]
    return read(results.pictures(), files, labels, [path.stem.split("_")[1] for path in files])


SETS = {one.__name__: one for one in (speakers, alphabets, characters, digits, words)}


def main() -> None:
    typed = results.asked(list(SETS))
    for name in typed.names or SETS:
        print(f"### {name}\n\n{SETS[name].__doc__}\n")
        print(f"| {' | '.join(results.HEAD)} |\n{'|---' * len(results.HEAD)}|", flush=True)
        items = results.kept(f"unseen-{name}", SETS[name], typed.vectors)
        results.across_classes(items, typed.split)


if __name__ == "__main__":
    main()
