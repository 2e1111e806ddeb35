"""The sections of bench.py on whole commands: the time from the shell and back."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measuring import Bench, Fault, Section, digits, ratios, seconds, tell
from page import Table
from speed import models, saved, tokenizer, tones

PLAIN = """
import json, pathlib, sys
import torch
from transformers import {model}, {processor}
{read}
model = {model}.from_pretrained(sys.argv[1]).eval()
inputs = prepare({processor}.from_pretrained(sys.argv[1]), sys.argv[2])
held = []
model.base_model.register_forward_hook(lambda *passed: held.append(passed[-1].last_hidden_state))
with torch.inference_mode():
    logits = model(**inputs).logits
print(json.dumps([int(logits.argmax()), held[0].mean(1)[0].tolist()]))
"""
READ = {
    "audio": """
import soundfile
def prepare(processor, path):
    wave, rate = soundfile.read(path, dtype="float32")
    return processor(wave, sampling_rate=rate, return_tensors="pt")
""",
    "image": """
import PIL.Image
def prepare(processor, path):
    return processor(PIL.Image.open(path).convert("RGB"), return_tensors="pt")
""",
    "text": """
def prepare(processor, path):
    return processor(pathlib.Path(path).read_text(), return_tensors="pt")
""",
}
BOUND, GOAL = 1.2, 0.5  # of the plain script's seconds, by a second command
CLOSE = 1e-5  # of the second vector and the plain script's, relative
COMMANDS = ("embed", "search", "classify")


@dataclass(frozen=True, slots=True)
class Setting:
    """A model in a folder, two items, and the plain script for the first. work: a folder for more
    files."""

    title: str
    work: Path
    item: Path
    other: Path
    script: str

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.work / "model"

    def plain(self) -> list[str]:
        """The command of the plain script."""
        return [sys.executable, "-c", self.script, str(self.model), str(self.item)]

    def penult(self, name: str, store: Path, item: Path | None = None) -> list[str]:
        """A command of Penult; `embed` makes the collection, `search` looks into it."""
        words: dict[str, list[Path | str]] = {
            "embed": [self.model, item or self.item, "--pooling", "mean", "--into", store],
            "search": [store, self.item],
            "classify": [self.model, self.item],
        }
        return [sys.executable, "-m", "penult", name, *map(str, words[name]), "--json"]


def ran(command: list[str], cache: Path | None = None) -> str:
    """What a command prints. cache: the folder in which Penult keeps things.

    Raises:
        Fault: it failed.
    """
    more = {"PENULT_CACHE": str(cache)} if cache else {}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more})
    if done.returncode:
        raise Fault(f"{' '.join(command[:5])} ended with {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


def commands(bench: Bench) -> None:
    """`embed`, `search` with a file and `classify`, with an empty cache and a second time, against
    a script that imports torch and transformers, loads the model and makes one pass."""
    for kind in bench.options.kinds or SETTINGS:
        with models() as work:
            compared(bench, SETTINGS[kind](work))


def compared(bench: Bench, case: Setting) -> None:
    """One model and item, as one table."""
    stores = case.work / "stores"
    filled = stores / "filled"  # what is searched: it has the row of another item
    ran(case.penult("embed", filled, case.other), case.work / "cache")
    cells: dict[str, list[tuple[float, float]]] = {}
    for number in range(bench.options.rounds):
        for name, work in _ways(case, stores, filled).items():
            cells.setdefault(name, []).append(bench.once(lambda work=work: _timed(bench, work)))
            tell(f"{case.title}, {name}, round {number + 1}: {cells[name][-1][0]:.1f} s")
    medians = {
        name: [statistics.median(one) for one in zip(*found, strict=True)]
        for name, found in cells.items()
    }
    wall, processor = next(iter(medians.values()))
    rows = [
        [
            name,
            f"{value / wall:.2f}",
            digits(value),
            f"{cpu / processor:.2f}",
            digits(cpu),
            f"≤ {BOUND}, goal {GOAL}" if name.endswith("second") else "",
        ]
        for name, (value, cpu) in medians.items()
    ]
    columns = (case.title, "× the script", "seconds", "× its CPU", "CPU seconds", "bound")
    bench.show(Table(columns, rows))
    _compare_vectors(bench, case, stores / "embed")


def _ways(case: Setting, stores: Path, filled: Path) -> dict[str, Callable[[], object]]:
    """The script, and each command first with an empty cache and then again with what it kept."""
    ways: dict[str, Callable[[], object]] = {"the plain script": lambda: ran(case.plain())}
    for name in COMMANDS:
        store, cache = (filled if name == "search" else stores / name), case.work / f"kept-{name}"

        def first(name: str = name, store: Path = store, cache: Path = cache) -> None:
            shutil.rmtree(cache, ignore_errors=True)
            second(name, store, cache)

        def second(name: str = name, store: Path = store, cache: Path = cache) -> None:
            if name == "embed":
                shutil.rmtree(store, ignore_errors=True)
            ran(case.penult(name, store), cache)

        ways |= {f"{name}, first": first, f"{name}, second": second}
    return ways


def _timed(bench: Bench, work: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor seconds, of all processes."""
    before = bench.meter.mark().own
    took = seconds(work)
    return took, bench.meter.mark().own - before


def _compare_vectors(bench: Bench, case: Setting, store: Path) -> None:
    """Whether the second `embed` gave the script's vector.

    Raises:
        Fault: it did not.
    """
    expected = np.array(json.loads(ran(case.plain()))[1])
    file = case.work / "vectors.npy"
    ran([sys.executable, "-m", "penult", "export", str(store), str(file), "--overwrite"])
    vectors = np.load(file)
    off = float(np.abs(vectors[0] - expected).max() / np.abs(expected).max())
    bench.note(
        f"The vector of the second `embed` differs from the script's by {off:.1e}, relative."
    )
    if off > CLOSE:
        raise Fault(f"{case.title}: the vectors differ by {off:.1e}, more than {CLOSE}")


def of_sound(work: Path) -> Setting:
    """wav2vec2-base size with a weighted sum of layers, and five seconds."""
    import transformers

    config = transformers.Wav2Vec2Config(num_labels=4, use_weighted_layer_sum=True)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    saved(work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor)
    items = (work / "clip.wav", work / "other.wav")
    for number, item in enumerate(items):
        soundfile.write(item, tones(np.random.default_rng(number), 5 * 16_000), 16_000)
    names = ("AutoModelForAudioClassification", "AutoFeatureExtractor")
    return _setting("wav2vec2-base size, one clip of 5 s", "audio", work, items, names)


def of_pictures(work: Path) -> Setting:
    """ViT-base size, and a photo."""
    import transformers
    from peaks import noise

    config = transformers.ViTConfig(num_labels=10)
    processor = transformers.ViTImageProcessor()
    saved(work / "model", transformers.ViTForImageClassification(config), processor)
    items = (work / "picture.jpg", work / "other.jpg")
    for number, item in enumerate(items):
        noise(np.random.default_rng(number), 640, 480).save(item, "JPEG")
    names = ("AutoModelForImageClassification", "AutoImageProcessor")
    return _setting("ViT-base size, one picture of 640 × 480", "image", work, items, names)


def of_texts(work: Path) -> Setting:
    """BERT-base size, and a text of 100 words."""
    import transformers

    tokens = tokenizer()
    config = transformers.BertConfig(vocab_size=len(tokens), num_labels=10)
    saved(work / "model", transformers.BertForSequenceClassification(config), tokens)
    items = (work / "text.txt", work / "other.txt")
    for number, item in enumerate(items):
        item.write_text(" ".join(f"w{word}" for word in range(number, number + 100)))
    names = ("AutoModelForSequenceClassification", "AutoTokenizer")
    return _setting("BERT-base size, one text of 100 words", "text", work, items, names)


def _setting(
    title: str, kind: str, work: Path, items: tuple[Path, Path], names: tuple[str, str]
) -> Setting:
    script = PLAIN.format(model=names[0], processor=names[1], read=READ[kind])
    return Setting(title, work, *items, script)


SETTINGS: dict[str, Callable[[Path], Setting]] = {
    "audio": of_sound,
    "image": of_pictures,
    "text": of_texts,
}


def starting(bench: Bench) -> None:
    """How long it takes until a command answers."""

    def python(code: str) -> Callable[[], object]:
        return lambda: ran([sys.executable, "-c", code])

    works = {
        "python -c pass": python("pass"),
        "import penult": python("import penult"),
        "penult --help": python("from penult.cli.main import run; run(['--help'])"),
        "import numpy": python("import numpy"),
        "import torch": python("import torch"),
    }
    bench.show(ratios("what a process does", bench.paired(works), "× nothing", more=True))


def short_clips(bench: Bench) -> None:
    """Many short clips: files, and the same samples in memory; the bundled model."""
    from penult.collection.collection import Collection
    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    with models() as work:
        folder, random = work / "clips", np.random.default_rng(0)
        folder.mkdir()
        embedder = Embedder.from_classifier(load("demo"))
        rate = embedder.classifier.input.rate
        arrays: list[Any] = []
        for number in range(bench.options.short):
            samples = round(float(random.uniform(0.3, 2.0)) * rate)
            arrays.append(tones(random, samples))
            soundfile.write(folder / f"{number:05d}.wav", arrays[-1], rate)
        paths = sorted(folder.iterdir())
        embedder.run(paths[:200])

        def added() -> None:
            with tempfile.TemporaryDirectory(dir=work) as name:
                Collection.open(Path(name) / "store").add(embedder, folder)

        works = {
            "samples in memory, Embedder.run": lambda: embedder.run(arrays),
            "files, Embedder.run": lambda: embedder.run(paths),
            "files into a collection, Collection.add": added,
        }
        title = f"{len(paths):,} clips of 0.3 to 2 s, bundled model"
        bench.show(ratios(title, bench.paired(works), "× the model's time", more=True))


SECTIONS = {
    "commands": Section(
        "Whole commands",
        "From the shell and back, in seconds and as times of a script that imports torch and "
        "transformers, loads the model and makes one pass (in `scripts/commands.py`). *first*: "
        "with an empty cache; *second*: once more, with what the first kept, `embed` into a new "
        "collection. Files are in the system's memory. Random weights at the real sizes.",
        commands,
        ("kinds", "rounds"),
        rounds=2,
    ),
    "starting": Section(
        "Starting", "Until a process has done so much and ended.", starting, ("rounds",)
    ),
    "short-clips": Section(
        "Short clips",
        "What decoding costs beyond the model, whose time is the first row.",
        short_clips,
        ("short", "rounds"),
        rounds=2,
    ),
}
