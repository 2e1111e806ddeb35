"""The section of bench.py on CUDA devices: how many items each embeds in a second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import machine
from measuring import Bench, Section, Unmeasured, Works, tell
from page import Table
from speed import flops, made_pictures, mixed, models, read, saved

SECONDS = 1_200.0  # of sound
PICTURES = 1_024
SIDE = 8_192  # of the squares that are multiplied


def gpu(bench: Bench) -> None:
    """wav2vec2-base and ViT-base size on each device, in exact and in fast."""
    names = machine.cuda()
    if not names:
        raise Unmeasured("no CUDA device here")
    peaks = {number: _peak(number) for number in range(len(names))}
    with models() as work:
        _throughput(bench, _sound(work / "sound"), peaks)
    with models() as work:
        _throughput(bench, _pictures(work / "pictures"), peaks)


def _sound(work: Path) -> tuple[str, Path, Any, float, float]:
    """A title, the model, items, how much they are (in seconds), and GFLOP of all."""
    import transformers

    work.mkdir()
    config, extractor = transformers.Wav2Vec2Config(), transformers.Wav2Vec2FeatureExtractor()
    model = saved(work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor)
    paths = mixed(work, SECONDS, None)
    waves = [read(path) for path in paths]
    ten = dict(extractor(waves[0][:160_000], sampling_rate=16_000, return_tensors="pt"))
    gflop = flops(model, ten) / len(waves[0][:160_000]) * sum(map(len, waves))
    title = f"wav2vec2-base size, {len(waves)} clips of 1 to 15 s, seconds of sound"
    return title, work / "model", waves, sum(map(len, waves)) / 16_000, gflop


def _pictures(work: Path) -> tuple[str, Path, Any, float, float]:
    """The same for pictures, counted."""
    import transformers

    work.mkdir()
    config, processor = transformers.ViTConfig(), transformers.ViTImageProcessor()
    model = saved(work / "model", transformers.ViTForImageClassification(config), processor)
    pictures = made_pictures(PICTURES)
    gflop = flops(model, dict(processor(pictures[0], return_tensors="pt"))) * PICTURES
    return f"ViT-base size, {PICTURES} pictures", work / "model", pictures, PICTURES, gflop


def _throughput(
    bench: Bench, case: tuple[str, Path, Any, float, float], peaks: dict[int, float]
) -> None:
    """Items from memory through `Embedder.run`, preprocessing included."""
    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    title, folder, items, amount, gflop = case
    works: Works = {}
    where: dict[str, int] = {}
    for number in peaks:
        for precision in ("exact", "fast"):
            embedder = Embedder.from_classifier(
                load(folder), device=f"cuda:{number}", engine="auto", precision=precision
            )
            embedder.run(items)
            name = f"cuda:{number}, {embedder.runner.mode.words} ({precision})"
            tell(name)
            works = {**works, name: lambda one=embedder: one.run(items)}
            where[name] = number
    times = bench.paired(works)
    rows = [
        [name, f"{amount / took:.0f}", f"{gflop / took / peaks[where[name]]:.0%}", f"{took:.2f}"]
        for name, took in times.items()
    ]
    bench.show(Table((title, "in a second", "of its bf16 peak", "seconds"), rows))


def _peak(number: int) -> float:
    """GFLOP/s of a large product in bfloat16."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, device=f"cuda:{number}").bfloat16() for _ in range(2))
    times = []
    for _ in range(20):
        torch.cuda.synchronize(number)
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize(number)
        times.append(time.perf_counter() - began)
    return 2e-9 * SIDE**3 / min(times)


SECTIONS = {
    "gpu": Section(
        "On CUDA devices",
        "Items from memory, preprocessing included, in a second; the share of the best matrix "
        "product in bfloat16 of the same device in the same run.",
        gpu,
        ("rounds",),
    )
}
