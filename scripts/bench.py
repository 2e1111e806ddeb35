"""Print how fast things are on this machine: ratios side by side, measured in one run.

python scripts/bench.py [--clips FOLDER] [--seconds 60]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

console = Console()


def seconds(work: Callable[[], object]) -> float:
    """Wall clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def paired(works: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each, run in turns so that a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, times: dict[str, float]) -> None:
    """A table of medians, each also as a ratio to the first."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "median seconds", "× the first"):
        table.add_column(column, justify="left" if column == "what" else "right")
    first = next(iter(times.values()))
    for name, value in times.items():
        table.add_row(name, f"{value:.3f}", f"{first / value:.2f}")
    console.print(table, "")


def starting() -> None:
    """How long it takes until a command answers."""

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    works = {
        "python -c pass": python("pass"),
        "import penult": python("import penult"),
        "penult --help": python("from penult.cli import run; run(['--help'])"),
        "import torch": python("import torch"),
    }
    show("starting", paired(works, rounds=5))


def made_clips(folder: Path, total: float) -> list[Path]:
    """Clips of 1 to 15 s at 16 kHz until `total` seconds: noise with tones, the same every time."""
    random = np.random.default_rng(0)
    paths: list[Path] = []
    while total > 0:
        length = min(float(random.uniform(1, 15)), max(total, 1.0))
        total -= length
        time_axis = np.arange(round(length * 16_000)) / 16_000
        wave = 0.2 * np.sin(2 * np.pi * random.uniform(80, 400) * time_axis)
        wave += 0.02 * random.standard_normal(len(wave))
        paths.append(folder / f"{len(paths):03d}.wav")
        soundfile.write(paths[-1], wave.astype(np.float32), 16_000)
    return paths


def the_notebook(paths: Sequence[Path], total: float, work: Path) -> None:
    """Label and vector at wav2vec2-base size: by hand in two passes and in one, and here."""
    import torch
    import transformers

    from penult.classifiers import load
    from penult.embedder import Embedder

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(num_labels=4)
    transformers.Wav2Vec2ForSequenceClassification(config).eval().save_pretrained(work)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(work)
    model = transformers.AutoModelForAudioClassification.from_pretrained(work).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(work)
    embedder = Embedder.from_classifier(load(work))

    def inputs(path: Path) -> dict[str, torch.Tensor]:
        wave, rate = soundfile.read(path, dtype="float32")
        return dict(extractor(wave, sampling_rate=rate, return_tensors="pt"))

    def two_passes() -> None:
        with torch.inference_mode():
            for path in paths:
                tensors = inputs(path)
                model(**tensors).logits.argmax(-1)
                model.wav2vec2(**tensors).last_hidden_state.mean(dim=1)

    def vector_only() -> None:
        with torch.inference_mode():
            for path in paths:
                model.wav2vec2(**inputs(path)).last_hidden_state.mean(dim=1)

    times = paired(
        {
            "the notebook: label, then vector (two passes)": two_passes,
            "the notebook: vector only (one pass)": vector_only,
            "Penult: label and vector (one pass)": lambda: embedder.run(paths),
        },
        rounds=3,
    )
    show(f"wav2vec2-base size, fp32, {len(paths)} clips, {total:.0f} s of audio", times)


def main() -> None:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="a folder of wav files at 16 kHz")
    parser.add_argument("--seconds", type=float, default=45.0, help="of audio, if made here")
    options = parser.parse_args()
    starting()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = (
            sorted(options.clips.rglob("*.wav"))
            if options.clips
            else made_clips(work, options.seconds)
        )
        total = sum(soundfile.info(path).duration for path in paths)
        the_notebook(paths, total, work / "model")


if __name__ == "__main__":
    main()
