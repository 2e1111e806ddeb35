"""The machine that figures are of: its features, versions, and the peak of its products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from load_meter import processors

# What a processor calls it: what people do.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
}
OF_ARM = {"asimd": "NEON", "sve": "SVE", "bf16": "bf16", "i8mm": "int8 products"}
PACKAGES = ("penult", "torch", "transformers", "openvino", "onnxruntime")


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def flags() -> set[str]:
    """Instruction sets, as the system names them; empty where it does not tell."""
    told = _cpuinfo()
    return set((told.get("flags") or told.get("Features") or "").split())


def has_amx() -> bool:
    """Whether products in bfloat16 have tiles of their own."""
    return "amx_bf16" in flags()


def cuda() -> list[str]:
    """Names of the CUDA devices."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def features() -> str:
    """Processor, cores, instruction sets it has and lacks, memory and devices, in a line."""
    import torch

    found, known = flags(), FEATURES if platform.machine() in ("x86_64", "AMD64") else OF_ARM
    has = ", ".join(words for name, words in known.items() if name in found)
    lacks = ", ".join(words for name, words in known.items() if name not in found)
    sets = f"{has or 'none'}; without: {lacks or 'none'}" if found else "not told by the system"
    name = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{name}, {len(processors())} cores ({torch.get_num_threads()} threads); {sets}; "
        f"{memory:.0f} GB of memory; CUDA: {', '.join(cuda()) or 'none'}"
    )


def versions() -> str:
    """Of the system, Python and the libraries that are installed, in a line."""
    found = [f"{platform.system()} {platform.release()}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


SIDE = 2048  # of the squares that are multiplied
REPEATS = 8


def measured_peaks() -> dict[str, float]:
    """GFLOP/s of a large matrix product in each engine, in fp32 (f32) and, where the processor has
    it, in bfloat16 (bf16): the best of some."""
    found = {}
    for name, (work, products) in _products().items():
        work()
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        found[name] = 2e-9 * SIDE**3 * products / min(times)
    return found


def tops(peaks: Mapping[str, float]) -> dict[str, float]:
    """The best engine's GFLOP/s in f32 and, where there is one, in bf16."""
    best: dict[str, float] = {}
    for name, value in peaks.items():
        kind = name.split()[1]
        best[kind] = max(value, best.get(kind, 0.0))
    return best


def peaks_in_words(peaks: Mapping[str, float]) -> str:
    """In a line."""
    told = ", ".join(f"{name} {value:.0f}" for name, value in peaks.items())
    more = "" if "bf16" in tops(peaks) else "; bfloat16 is not faster here"
    return f"{told} GFLOP/s (a matrix product of {SIDE} × {SIDE}){more}"


def _products() -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, and how many products it has."""
    import torch

    from penult.engines.torch import multiplies_bf16
    from penult.errors import MissingExtra
    from penult.extras import require

    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    works: dict[str, tuple[Callable[[], object], int]] = {"torch f32": (lambda: a @ b, 1)}
    if flags() & {"avx512_bf16", "amx_bf16", "bf16"} or multiplies_bf16("cpu"):
        works["torch bf16"] = (lambda x=a.bfloat16(), y=b.bfloat16(): x @ y, 1)
    try:
        openvino = require("openvino")  # a plain import would report its use to the network
    except MissingExtra:
        return works
    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for kind in ("f32", "bf16") if "BF16" in capable else ("f32",):
        works[f"openvino {kind}"] = (_of_openvino(kind, a.numpy(), b.numpy()), 4)
    return works


def _of_openvino(kind: str, a: Any, b: Any) -> Callable[[], object]:
    """Several products in a row, so that copies in and out count for less."""
    import torch

    from penult.extras import require

    openvino, ops = require("openvino"), require("openvino.opset13")

    entry = ops.parameter([SIDE, SIDE], np.float32)
    product = ops.matmul(entry, ops.constant(b), False, False)
    for _ in range(3):
        product = ops.matmul(product, ops.constant(b / SIDE), False, False)
    settings = {
        "INFERENCE_PRECISION_HINT": kind,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    run = openvino.Core().compile_model(openvino.Model([product], [entry]), "CPU", settings)
    return lambda: run([a])
