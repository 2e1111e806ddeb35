"""Every classifier that can be built here, with random weights that make a difference.

A family runs in processes of its own, so that a model which needs too much memory ends that one
and is named, and the rest goes on: `python tests/sweep.py FAMILY` prints a line of JSON per model.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tiny_configs

MEMORY = 5 * 2**30  # bytes that a process may have
KEPT = 2 * 2**30  # bytes with which a process goes on to the next model
SLOWEST = 900  # seconds without a word

AUDIO, IMAGE, VIDEO = "AUDIO_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"
FRAMES, XVECTOR = "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"
TEXT, TOKENS = "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION"
TASKS = (AUDIO, FRAMES, XVECTOR, IMAGE, VIDEO, TEXT, TOKENS)
FAMILIES = (*(f"transformers {task.lower()}" for task in TASKS), "timm", "torchvision")

Built = tuple[nn.Module, Any]


# ---- weights


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


def tune(model: nn.Module, inputs: Any) -> nn.Module:
    """Scale what every layer gives to a spread of one, in the order in which they run, and centre
    it where the layer has a bias: no signal dies, and gates stand neither open nor shut."""

    def hook(module: nn.Module, _: Any, out: Any) -> Any:
        if not isinstance(out, Tensor) or out.numel() < 2 or id(module) in done:
            return None
        done.add(id(module))
        spread = float(out.double().std())
        if not 1e-12 < spread < 1e12 or 0.3 < spread < 3:
            return None
        with torch.no_grad():
            for name in ("weight", "bias"):
                if isinstance(getattr(module, name, None), nn.Parameter):
                    getattr(module, name).div_(spread)
        return out / spread

    done: set[int] = set()
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    for handle in handles:
        handle.remove()
    return model


# ---- transformers


def transformers_types(task: str) -> list[str]:
    """The model types in one of transformers' classification mappings."""
    from transformers.models.auto import modeling_auto

    return list(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))


def build_transformers(task: str, model_type: str) -> Built:
    import transformers
    from transformers.models.auto import modeling_auto

    torch.manual_seed(0)
    config = tiny_configs.make_config(model_type)
    name = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")[model_type]
    name = name[0] if isinstance(name, list | tuple) else name
    model = rouse(getattr(transformers, name)(config))
    inputs = tiny_configs.make_inputs(task, model_type, config)
    return tune(model, inputs), inputs


# ---- timm


_SMALL = ("test_", "atto", "femto", "pico", "nano", "tiny", "xxs", "_050", "small", "_s", "_0")


def timm_variants() -> list[str]:
    """The smallest looking variant of every timm module."""
    import timm

    names = []
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        rank = {n: next((i for i, s in enumerate(_SMALL) if s in n), len(_SMALL)) for n in models}
        large = {n: any(side in n for side in ("384", "448", "512")) for n in models}
        names += sorted(models, key=lambda n: (large[n], rank[n], len(n), n))[:1]
    return names


SHALLOW: tuple[dict[str, Any], ...] = (
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {},
)


def build_timm(name: str) -> Built:
    """The model with few blocks and for small images where it allows that, else as it is."""
    import timm

    failed: Exception | None = None
    for side, sized in ((64, True), (64, False), (128, True), (128, False), (0, False)):
        for blocks in SHALLOW:
            try:
                torch.manual_seed(0)
                how = {**blocks, **({"img_size": side} if sized else {})}
                model = timm.create_model(name, pretrained=False, num_classes=7, **how)
                depth, height, width = model.default_cfg["input_size"]
                shape = (2, depth, side or height, side or width)
                inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)
                return tune(rouse(model), inputs), inputs
            except Exception as error:  # it has no such option, or is too small for it
                failed = error.with_traceback(None)  # which would keep the model alive
    assert failed is not None
    raise failed


# ---- torchvision


def torchvision_names() -> list[str]:
    import torchvision

    models = torchvision.models
    detection = {"quantization", "segmentation", "detection", "optical_flow"}
    return [
        name
        for name in models.list_models()
        if not detection & set(models.get_model_builder(name).__module__.split("."))
    ]


def build_torchvision(name: str) -> Built:
    """The model for small images where it allows that, else for its own."""
    import torchvision

    aside: dict[str, Any] = {"aux_logits": True} if "inception" in name else {}
    aside |= {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    video = ".video" in torchvision.models.get_model_builder(name).__module__
    failed: Exception | None = None
    for side, how in (
        (64, {"image_size": 64}), (56, {"image_size": 56}), (64, {}), (96, {}), (224, {}),
    ):  # fmt: skip
        try:
            torch.manual_seed(0)
            with warnings.catch_warnings(), _small_clips():
                warnings.simplefilter("ignore")
                model = rouse(torchvision.models.get_model(name, num_classes=7, **aside, **how))
            frames = () if not video else (4,) if name.startswith("mvit") else (16,)
            shape = (2 if side < 224 else 1, 3, *frames, side, side)
            inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)
            return tune(model, inputs), inputs
        except Exception as error:  # it has no such option, or is made for one size
            failed = error.with_traceback(None)  # which would keep the model alive
    assert failed is not None
    raise failed


@contextmanager
def _small_clips() -> Iterator[None]:
    """MViT is built for one size of clip, and asks for none: four frames of 64 × 64 here."""
    from torchvision.models.video import mvit

    def small(*args: Any, spatial_size: Any, temporal_size: Any, **kwargs: Any) -> nn.Module:
        return whole(*args, spatial_size=(64, 64), temporal_size=4, **kwargs)

    whole, mvit._mvit = mvit._mvit, small
    try:
        yield
    finally:
        mvit._mvit = whole


def members(family: str) -> dict[str, Callable[[], Built]]:
    """The models of a family, and how to build each."""
    if family == "timm":
        return {name: lambda name=name: build_timm(name) for name in timm_variants()}
    if family == "torchvision":
        return {name: lambda name=name: build_torchvision(name) for name in torchvision_names()}
    task = family.removeprefix("transformers ").upper()
    return {
        kind: lambda kind=kind: build_transformers(task, kind) for kind in transformers_types(task)
    }


# ---- what the library itself calls the classifier


def said_by_the_library(model: nn.Module) -> set[str]:
    """Names of the parameters of what timm's get_classifier or an attribute of that name gives."""
    found: list[Any] = []
    if callable(getattr(model, "get_classifier", None)):
        given = model.get_classifier()
        found = list(given) if isinstance(given, tuple | list) else [given]
    elif not isinstance(model, nn.Sequential):
        found = [getattr(model, n, None) for n in ("classifier", "score", "fc", "head", "heads")][:]
    modules = [m for m in found if isinstance(m, nn.Module)][:2]
    last = [_last_layer(m) for m in modules]
    wanted = {id(p) for m in last for p in m.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def _last_layer(module: nn.Module) -> nn.Module:
    layers = [m for m in module.modules() if isinstance(getattr(m, "weight", None), Tensor)
              and m.weight.ndim > 1]  # fmt: skip
    return layers[-1] if layers else module


# ---- the run


@dataclass
class Row:
    """One model: proved, refused, wrong, or not built, and why."""

    name: str
    came_to: str
    why: str
    share: float = 0.0
    tried: int = 0
    power: float = 0.0
    agrees: bool | None = None  # with what the library calls the classifier


def examine_one(name: str, build: Callable[[], Built]) -> Row:
    from oracle import examine

    try:
        model, inputs = build()
    except Exception as error:
        return Row(
            name, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    try:
        found = examine(model, inputs)
    except Exception as error:
        return Row(name, "wrong", f"raised {type(error).__name__}: {error}".splitlines()[0][:300])
    said = said_by_the_library(model)
    agrees = bool(said & set(found.head)) if said and found.came_to == "proved" else None
    return Row(name, found.came_to, found.why, found.share, found.tried, found.power, agrees)


def main(family: str, done: int) -> None:
    """Print a row for every member from number `done` on, or for as many as memory allows."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    everything = list(members(family).items())
    print(json.dumps({"members": [name for name, _ in everything]}), flush=True)
    for name, build in everything[done:]:
        print(json.dumps(vars(examine_one(name, build))), flush=True)
        gc.collect()
        if _resident() > KEPT:
            return  # what large models leave behind is given back only with the process


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def rows(family: str) -> Iterator[Row]:
    """Run a family; a model that ends its process is wrong, and the next process goes on."""
    here = Path(__file__)
    names: list[str] = []
    done = 0
    while not names or done < len(names):
        command = [sys.executable, str(here), family, str(done)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              cwd=here.parent) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith("{"):
                    continue
                document = json.loads(line)
                if "members" in document:
                    names = document["members"]
                else:
                    done += 1
                    yield Row(**document)
        if not names:
            raise RuntimeError(f"{family}: the process ended with {process.returncode}")
        if done < len(names) and process.returncode:
            yield Row(names[done], "wrong", f"the process ended with {process.returncode}")
            done += 1


def line(family: str, found: Sequence[Row]) -> tuple[str, ...]:
    """A family's row of the table: how many came to what, and where the library agrees."""
    counts = Counter(row.came_to for row in found)
    tried = counts["proved"] + counts["refused"] + counts["wrong"]
    agree = sum(row.agrees is True for row in found)
    named = sum(row.agrees is not None for row in found)
    figures = (tried, counts["proved"], counts["refused"], counts["wrong"])
    return (family, *(str(n) for n in figures), f"{agree} of {named}", str(counts["not built"]))


HEADINGS = ("family", "N", "proved", "refused", "wrong", "library agrees", "not built")


if __name__ == "__main__":
    importlib.import_module("conftest")
    main(sys.argv[1], int(sys.argv[2]))
