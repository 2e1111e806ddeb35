"""The section of bench.py on where a pass spends its time: shares of operators in each engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Bench, Section, digits, tell
from page import Table
from speed import made_pictures, made_texts, mixed, models, saved, tokenizer

# A part of an operator's name, of OpenVINO or torch, and what it is; the first that fits counts.
KINDS = (
    ("attention", "attention"),
    ("MHA", "attention"),
    ("oftmax", "softmax"),
    ("onvolution", "convolutions"),
    ("norm", "norms"),
    ("MVN", "norms"),
    ("RMS", "norms"),
    ("FullyConnected", "products"),
    ("MatMul", "products"),
    ("addmm", "products"),
    ("mm", "products"),
    ("linear", "products"),
    ("GELU", "GELU and sums"),
    ("gelu", "GELU and sums"),
    ("Eltwise", "GELU and sums"),
    ("Subgraph", "GELU and sums"),
    ("aten::add", "GELU and sums"),
    ("aten::mul", "GELU and sums"),
    *((part, "layout and copies") for part in (
        "Reorder", "Transpose", "Reshape", "Concat", "Split", "Slice", "Pad", "Convert", "Gather",
        "copy", "clone", "cat", "contiguous", "_to", "transpose", "view", "empty", "as_strided",
        "slice", "permute", "pad",
    )),
)  # fmt: skip
OTHER = "others"
ORDER = (*dict.fromkeys(kind for _, kind in KINDS), OTHER)


def kind_of(operator: str) -> str:
    """What an operator of a name is."""
    return next((kind for part, kind in KINDS if part in operator), OTHER)


@contextmanager
def openvino_profile() -> Iterator[Counter[str]]:
    """Seconds of each kind of operator in what OpenVINO runs, of models that are opened within."""
    from penult.extras import require

    openvino = require("openvino")
    found: Counter[str] = Counter()
    compile_model, infer = openvino.Core.compile_model, openvino.InferRequest.infer

    def compiled(core: Any, model: Any, device: Any = None, config: Any = None, **more: Any) -> Any:
        return compile_model(core, model, device, {**(config or {}), "PERF_COUNT": True}, **more)

    def inferred(request: Any, *values: Any, **more: Any) -> Any:
        result = infer(request, *values, **more)
        for one in request.get_profiling_info():
            found[kind_of(one.node_type)] += one.real_time.total_seconds()
        return result

    openvino.Core.compile_model, openvino.InferRequest.infer = compiled, inferred
    try:
        yield found
    finally:
        openvino.Core.compile_model, openvino.InferRequest.infer = compile_model, infer


@contextmanager
def torch_profile() -> Iterator[Counter[str]]:
    """The same of what torch runs within; known at the end."""
    from torch.profiler import ProfilerActivity, profile

    found: Counter[str] = Counter()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        yield found
    for one in run.key_averages():
        found[kind_of(one.key)] += one.self_cpu_time_total / 1e6


def profiled(folder: Path, items: Sequence[Any], engine: str, precision: str) -> Counter[str]:
    """Seconds of each kind in a run of warm items; empty where the engine is not here, or does not
    tell."""
    from penult.embedding.embedder import Embedder
    from penult.errors import PenultError
    from penult.models.specs import load

    def opened() -> Embedder:
        embedder = Embedder.from_classifier(load(folder), engine=engine, precision=precision)
        embedder.run(items)
        return embedder

    try:
        if engine == "torch":
            embedder = opened()
            with torch_profile() as found:
                embedder.run(items)
        else:
            with openvino_profile() as found:
                embedder = opened()
                found.clear()
                embedder.run(items)
    except PenultError as error:
        tell(f"{engine} {precision}: {error}")
        return Counter()
    return found


def operators(bench: Bench) -> None:
    """Four models in torch and OpenVINO."""
    columns = (("torch", "exact"), ("openvino", "exact"), ("openvino", "fast"))
    for title, make in MADE.items():
        with models() as work:
            items = make(bench, work)
            found = {
                f"{engine}, {precision}": bench.once(
                    partial(profiled, work / "model", items, engine, precision)
                )
                for engine, precision in columns
            }
        found = {name: seconds for name, seconds in found.items() if sum(seconds.values())}
        rows = [
            [kind, *(f"{one[kind] / sum(one.values()):.1%}" for one in found.values())]
            for kind in ORDER
            if any(one[kind] > 0.0005 * sum(one.values()) for one in found.values())
        ]
        rows.append(["seconds of all", *(digits(sum(one.values())) for one in found.values())])
        bench.show(Table((f"{title}, {len(items)} items", *found), rows))


def _sound(bench: Bench, work: Path) -> list[Any]:
    import transformers

    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config())
    saved(work / "model", model, transformers.Wav2Vec2FeatureExtractor())
    return list(mixed(work, 16.0, bench.options.clips))


def _spectrograms(bench: Bench, work: Path) -> list[Any]:
    import transformers

    model = transformers.ASTForAudioClassification(transformers.ASTConfig())
    saved(work / "model", model, transformers.ASTFeatureExtractor())
    return list(mixed(work, 8.0, bench.options.clips))


def _pictures(bench: Bench, work: Path) -> list[Any]:
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig())
    saved(work / "model", model, transformers.ViTImageProcessor())
    return made_pictures(8)


def _texts(bench: Bench, work: Path) -> list[Any]:
    import transformers

    tokens = tokenizer()
    config = transformers.BertConfig(vocab_size=len(tokens))
    saved(work / "model", transformers.BertForSequenceClassification(config), tokens)
    return made_texts(16)


MADE: dict[str, Callable[[Bench, Path], list[Any]]] = {
    "wav2vec2-base size": _sound,
    "ViT-base size": _pictures,
    "BERT-base size": _texts,
    "AST-base size": _spectrograms,
}
SECTIONS = {
    "profile": Section(
        "Where the time goes",
        "Shares of the operators' own time in a warm run, by the profilers of torch and OpenVINO. "
        "OpenVINO fuses: a GELU or a sum behind a product counts as the product, attention has its "
        "softmax in it.",
        operators,
        ("clips",),
    )
}
