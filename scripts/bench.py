"""Print how fast things are on this machine: ratios side by side, measured in one run.

python scripts/bench.py [--only SECTION]… [--clips FOLDER] [--seconds 60]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peaks
import soundfile
import speed
from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 110)


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


def starting(options: argparse.Namespace) -> None:
    """How long it takes until a command answers."""

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    works = {
        "python -c pass": python("pass"),
        "import penult": python("import penult"),
        "penult --help": python("from penult.cli.main import run; run(['--help'])"),
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


def proving(options: argparse.Namespace) -> None:
    """What locating and proving a head costs, in forward passes over the same short input."""
    import torch
    import transformers

    torch.manual_seed(0)
    speech = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config())
    vision = transformers.ViTForImageClassification(transformers.ViTConfig())
    second, picture = torch.randn(1, 16_000), torch.randn(1, 3, 224, 224)
    for title, model, inputs in (
        ("wav2vec2-base size, 1 s", speech, {"input_values": second}),
        ("ViT-base size, 224 × 224", vision, {"pixel_values": picture}),
    ):
        show_passes(f"proving {title}, fp32", paired(of_module(roused(model), inputs), rounds=5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.onnx"
        exported(vision, picture, path)
        show_passes(
            "proving ViT-base size as ONNX, 224 × 224, fp32",
            paired(of_graph(path, picture.numpy()), rounds=3),
        )


def roused(model: Any) -> Any:
    """Weights large enough that two inputs give different scores: else nothing can be proved."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original" not in name:
                parameter.mul_(3.0)
    return model.eval()


def of_module(model: Any, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """A plain pass; the head and every tap located; the head proved; the prelogits."""
    import torch

    from penult.tracing.anatomy import dissect
    from penult.tracing.split import split

    def forward() -> None:
        with torch.inference_mode():
            model(**inputs)

    cut = split(model, inputs)
    if not cut.certificate.ok:
        raise SystemExit(f"the head is not proved, so there is no cost: {cut.certificate}")
    return {
        "one forward pass": forward,
        "locate the head and every tap": lambda: dissect(model, inputs, None),
        "locate and prove the head": lambda: split(model, inputs),
        "prelogits of a proved cut": lambda: cut.prelogits(inputs),
    }


def exported(model: Any, example: Any, path: Path) -> None:
    """The model as an ONNX file with a free batch size."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(),
            (example,),
            str(path),
            dynamo=False,  # the other exporter needs one more library
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        )


def of_graph(path: Path, picture: Any) -> dict[str, Callable[[], object]]:
    """A plain run of the open graph; all of it located and proved, opening the parts included."""
    from penult.tracing.onnx_anatomy import GraphCut, dissect_graph
    from penult.tracing.onnx_graph import OnnxGraph

    graph = OnnxGraph.read(path)
    name = graph.inputs[0].name
    random = np.random.default_rng(0)
    feeds = [{name: random.standard_normal(picture.shape).astype(np.float32)} for _ in range(3)]
    whole = graph.parts.session(["logits"])

    def located() -> object:
        fresh = OnnxGraph(graph.parts.model)  # nothing measured yet, no session open
        anatomy = dissect_graph(GraphCut(fresh, "logits", "logits", feeds))
        if anatomy.certificate is None or not anatomy.certificate.ok:
            raise SystemExit(f"the head is not proved, so there is no cost: {anatomy.certificate}")
        return anatomy

    return {
        "one run of the open graph": lambda: whole(feeds[0]),
        "read the file and open it": lambda: OnnxGraph.read(path).parts.session(["logits"]),
        "locate and prove the head and every tap": located,
    }


def show_passes(title: str, times: dict[str, float]) -> None:
    """A table of medians, each also as a number of the first."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "median seconds", "forward passes"):
        table.add_column(column, justify="left" if column == "what" else "right")
    first = next(iter(times.values()))
    for name, value in times.items():
        table.add_row(name, f"{value:.3f}", f"{value / first:.1f}")
    console.print(table, "")


# One function for each section; what it prints is a table or several.
def planning(options: argparse.Namespace) -> None:
    """How much of what is computed is padding: 2000 clips of 1 to 15 s, in three ways."""
    import numpy as np

    from penult.embedding.runner import BUDGETS
    from penult.engines.batching import Planner, waste

    lengths = [int(n) for n in np.random.default_rng(0).uniform(16_000, 240_000, 2_000)]
    planner, planned = Planner(BUDGETS["audio"]), []
    for id, length in enumerate(lengths):
        planner.offer(id, length)
        while planner.full:
            planned.append(planner.take())
    while planner:
        planned.append(planner.take())

    def eights(order: Sequence[int]) -> list[list[int]]:
        return [list(order[i : i + 8]) for i in range(0, len(order), 8)]

    ways = {
        "batches of 8 in order of arrival": eights(range(len(lengths))),
        "batches of 8, all clips sorted first": eights(np.argsort(lengths).tolist()),
        "planned, 128 clips known at a time": planned,
    }
    print("\npadding, as a share of what is computed")
    for words, batches in ways.items():
        print(f"  {words:40s} {waste(lengths, batches):6.1%}  in {len(batches)} batches")


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "starting": starting,
    "planning": planning,
    "proving": proving,
    **speed.SECTIONS,
    **peaks.SECTIONS,
}


def main() -> None:
    """Run every section, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; repeatable")
    parser.add_argument("--clips", type=Path, help="a folder of speech at 16 kHz")
    parser.add_argument("--seconds", type=float, default=45.0, help="of audio")
    parser.add_argument("--rounds", type=int, default=3, help="of each section on speed")
    parser.add_argument("--files", type=int, default=peaks.WHOLE, help="of the section memory")
    parser.add_argument("--bound", default=peaks.BOUND, help="of the memory of all processes")
    parser.add_argument("--memory", help="of the runs that are watched; default: the command's")
    parser.add_argument(
        "--models", action="append", choices=peaks.MODELS, help="of the section memory; repeatable"
    )
    options = parser.parse_args()
    for name in options.only or SECTIONS:
        SECTIONS[name](options)


if __name__ == "__main__":
    sys.modules["bench"] = sys.modules["__main__"]  # what speed.py imports is this
    main()
