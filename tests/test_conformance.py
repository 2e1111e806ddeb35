"""The cut of every classifier that can be built here: proved, or rightly refused, and never wrong.

A few of each kind run by default; `-m slow` runs them all and prints the table.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tiny_configs
from penult.splitting.cut import split

AUDIO, IMAGE, VIDEO = "AUDIO_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"
FRAMES, XVECTOR = "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"
TEXT, TOKENS = "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION"


def rouse(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that two inputs give clearly different scores."""
    random = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=random)
        if p.ndim >= 2:
            fan_in = p.numel() / p.shape[0]
            p.data.copy_(noise * 1.4 / math.sqrt(fan_in))
        elif name.endswith("bias"):
            p.data.copy_(0.1 * noise)
        elif name.endswith("weight"):
            p.data.copy_(1 + 0.1 * noise)
        elif p.numel() and float(p.detach().abs().max()) < 0.01:  # a layer scale
            p.data.copy_(0.5 + 0.1 * noise)
    return model.eval()


def transformers_classes(*tasks: str) -> Iterator[tuple[str, str]]:
    """(task, model type) of the classes in transformers' classification mappings."""
    from transformers.models.auto import modeling_auto

    for task in tasks:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        yield from ((task, model_type) for model_type in mapping)


def build(task: str, model_type: str) -> tuple[nn.Module, dict[str, Any]]:
    import transformers
    from transformers.models.auto import modeling_auto

    torch.manual_seed(0)
    config = tiny_configs.make_config(model_type)
    name = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")[model_type]
    name = name[0] if isinstance(name, list | tuple) else name
    model = rouse(getattr(transformers, name)(config))
    inputs = tiny_configs.make_inputs(task, model_type, config)
    with torch.no_grad():
        model(**inputs)
    return model, inputs


def verdict(model: nn.Module, inputs: Any, **how: Any) -> tuple[str, str]:
    """proved, refused or wrong, and why; what is proved is tried on inputs that it never saw."""
    cut = split(model, inputs, **how)
    if not cut.certificate.ok:
        return "refused", cut.certificate.refusal
    with torch.no_grad():
        output = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    expected = getattr(output, "logits", output)
    z = cut.prelogits(inputs)
    again = cut.logits(z)
    error = float((again - expected).abs().max() / expected.abs().max())
    if again.shape != expected.shape or not error <= 1e-5:
        return "wrong", f"off by {error}"
    if isinstance(z, torch.Tensor) and z.shape == expected.shape and torch.allclose(z, expected):
        return "wrong", "trivial"
    return "proved", ", ".join(cut.head.names)


_SMALL = ("test_", "atto", "femto", "pico", "nano", "tiny", "xxs", "_050", "small", "_s", "_0")


def timm_variants() -> list[str]:
    """The smallest looking variant of every timm module."""
    import timm

    names = []
    for module in timm.list_modules():
        models = [n for n in timm.list_models(module=module) if "384" not in n and "512" not in n]
        rank = {n: next((i for i, s in enumerate(_SMALL) if s in n), len(_SMALL)) for n in models}
        names += sorted(models, key=lambda n: (rank[n], len(n), n))[:1]
    return names


def build_timm(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    import timm

    torch.manual_seed(0)
    model = rouse(timm.create_model(name, pretrained=False, num_classes=7))
    size = model.default_cfg["input_size"]
    return model, (torch.randn(1, *size, generator=torch.Generator().manual_seed(1)),)


def torchvision_names() -> list[str]:
    import torchvision

    models = torchvision.models
    return [
        name
        for module in (models, models.quantization, models.video)
        for name in models.list_models(module=module)
        if module is not models.quantization
    ]


def build_torchvision(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    import torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aside = {"aux_logits": True, "init_weights": False} if "inception" in name else {}
        aside = {"init_weights": False} if name == "googlenet" else aside
        model = rouse(torchvision.models.get_model(name, weights=None, num_classes=7, **aside))
    video = "video" in type(model).__module__
    side = 224 if name.startswith(("vit", "swin", "maxvit", "mvit")) or "3d" in name else 96
    shape = (3, 16, side, side) if video else (3, side, side)
    return model, (torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)),)


SOME = [
    (AUDIO, "wav2vec2"),
    (AUDIO, "audio-spectrogram-transformer"),
    (FRAMES, "wavlm"),
    (XVECTOR, "unispeech-sat"),
    (IMAGE, "deit"),
    (IMAGE, "mobilevit"),
    (IMAGE, "swin"),
    (VIDEO, "vivit"),
    (TEXT, "bert"),
    (TEXT, "gpt2"),
    (TEXT, "bart"),
    (TEXT, "eurobert"),
    (TOKENS, "roberta"),
]
SOME_TIMM = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "levit_128s"]
SOME_TORCHVISION = ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "densenet121"]


def proved(model: nn.Module, inputs: Any) -> None:
    came_to, why = verdict(model, inputs)
    assert came_to == "proved", why


@pytest.mark.parametrize(("task", "model_type"), SOME)
def test_some_of_transformers(task: str, model_type: str) -> None:
    proved(*build(task, model_type))


@pytest.mark.parametrize("name", SOME_TIMM)
def test_some_of_timm(name: str) -> None:
    pytest.importorskip("timm")
    proved(*build_timm(name))


@pytest.mark.parametrize("name", SOME_TORCHVISION)
def test_some_of_torchvision(name: str) -> None:
    pytest.importorskip("torchvision")
    proved(*build_torchvision(name))


HEAVY = 150_000_000  # parameters: larger models are left out of the sweep


def tally(family: str, builds: Iterator[tuple[Any, Any]]) -> Counter[str]:
    """Run one family; print what was not proved, and the family's row of the table."""
    counts: Counter[str] = Counter()
    for name, build_one in builds:
        try:
            model, inputs = build_one()
        except Exception as error:  # this version can't build it, or needs another library
            counts["not built"] += 1
            print(f"{family} {name}: not built: {type(error).__name__}")
            continue
        if sum(p.numel() for p in model.parameters()) > HEAVY:
            counts["too large"] += 1
            continue
        came_to, why = verdict(model, inputs)
        counts[came_to] += 1
        if came_to != "proved":
            print(f"{family} {name}: {came_to}: {why}")
    n = counts["proved"] + counts["refused"] + counts["wrong"]
    print(f"{family}: N {n}, " + ", ".join(f"{key} {counts[key]}" for key in (
        "proved", "refused", "wrong", "not built", "too large")))  # fmt: skip
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("task", [AUDIO, FRAMES, XVECTOR, IMAGE, VIDEO, TEXT, TOKENS])
def test_all_of_transformers(task: str) -> None:
    pairs = [(f"{t} {m}", lambda t=t, m=m: build(t, m)) for t, m in transformers_classes(task)]
    counts = tally(f"transformers {task.lower()}", iter(pairs))
    assert not counts["wrong"]
    assert counts["refused"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["timm", "torchvision"])
def test_all_of(origin: str) -> None:
    pytest.importorskip(origin)
    names, how = (
        (timm_variants(), build_timm)
        if origin == "timm"
        else (torchvision_names(), build_torchvision)
    )
    counts = tally(origin, ((name, lambda name=name: how(name)) for name in names))
    assert not counts["wrong"]
