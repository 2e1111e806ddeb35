"""The sections of bench.py on what is known before a model runs: proofs and planned batches."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Bench, Section, ratios
from page import Table


def proving(bench: Bench) -> None:
    """What locating and proving a head costs, in forward passes over the same short input."""
    import torch
    import transformers

    torch.manual_seed(0)
    speech = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config())
    vision = transformers.ViTForImageClassification(transformers.ViTConfig())
    second, picture = torch.randn(1, 16_000), torch.randn(1, 3, 224, 224)
    for title, model, inputs in (
        ("wav2vec2-base size, 1 s, fp32", speech, {"input_values": second}),
        ("ViT-base size, 224 × 224, fp32", vision, {"pixel_values": picture}),
    ):
        times = bench.paired(of_module(roused(model), inputs))
        bench.show(ratios(title, times, "forward passes", more=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.onnx"
        exported(vision, picture, path)
        times = bench.paired(of_graph(path, picture.numpy()))
        bench.show(ratios("ViT-base size as ONNX, 224 × 224, fp32", times, "passes", more=True))


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
    from penult.tracing.graph_anatomy import GraphCut, dissect_graph
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


def planning(bench: Bench) -> None:
    """How much of what is computed is padding: 2000 clips of 1 to 15 s, in three ways."""
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
    rows = [
        [words, f"{waste(lengths, batches):.1%}", str(len(batches))]
        for words, batches in ways.items()
    ]
    bench.show(Table(("2,000 clips of 1 to 15 s", "padding in what is computed", "batches"), rows))


SECTIONS = {
    "proving": Section(
        "Locating and proving a head",
        "In forward passes over the same short input, with random weights at the real sizes.",
        proving,
        ("rounds",),
    ),
    "planning": Section(
        "Padding in planned batches", "How much of what is computed is padding.", planning
    ),
}
