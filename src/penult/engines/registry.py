"""The ways of running a classifier: which engine, in which numbers, and how one is opened.

Knows the engines; which way is best for a run is not its.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from penult.engines.base import EXACT, FAST, PRECISIONS, TURBO, Engine, Reading
from penult.engines.batch_policy import BatchPolicy
from penult.engines.graph_cache import Graphs
from penult.engines.openvino import GROUPS
from penult.engines.torch import TorchEngine
from penult.errors import UsageError
from penult.models.base import Classifier

AUTO, TORCH, OPENVINO, ONNXRUNTIME = "auto", "torch", "openvino", "onnxruntime"
ENGINES = (TORCH, OPENVINO, ONNXRUNTIME)


class EngineMode(NamedTuple):
    """An engine, and the numbers in which it multiplies: f32, bf16 or a form of int8."""

    engine: str
    numbers: str = "f32"

    @property
    def quantised(self) -> bool:
        """Whether it multiplies whole numbers of eight bits."""
        return self.numbers in GROUPS

    @property
    def words(self) -> str:
        """`openvino bf16`."""
        return f"{self.engine} {self.numbers}"


PLAIN = EngineMode(TORCH)
_EXACT = (PLAIN, EngineMode(OPENVINO), EngineMode(ONNXRUNTIME))
_FAST = (EngineMode(OPENVINO, "bf16"), EngineMode(TORCH, "bf16"))
_TURBO = tuple(EngineMode(OPENVINO, numbers) for numbers in GROUPS)
# In the order in which they are tried; of one engine the first that agrees is taken.
MODES: dict[str, tuple[EngineMode, ...]] = {
    EXACT: _EXACT,
    FAST: (*_FAST, *_EXACT),
    TURBO: (*_TURBO, *_FAST, *_EXACT),
}


def check(engine: str, precision: str) -> None:
    """Refuse what there is not.

    Raises:
        UsageError: no such engine or precision.
    """
    if engine not in (AUTO, *ENGINES):
        raise UsageError(f"no engine {engine!r}; there are {AUTO}, {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")


def missing(engine: str) -> str:
    """What to install for an engine; empty if it is here."""
    needed = {OPENVINO: ("openvino",), ONNXRUNTIME: ("onnxruntime", "onnx")}.get(engine, ())
    if all(find_spec(name) for name in needed):
        return ""
    extra = "onnx" if engine == ONNXRUNTIME else engine
    return f"{engine} is not installed; install it with: pip install 'penult[{extra}]'"


def open_mode(
    way: EngineMode,
    classifier: Classifier,
    readings: Sequence[Reading],
    device: str,
    law: BatchPolicy,
    graphs: Graphs,
) -> Engine:
    """The engine of a way. law: how items share a batch in torch.

    Raises:
        EngineError: it cannot run this model.
        MissingExtra: it is not installed.
    """
    if way.engine == TORCH:
        return TorchEngine(classifier, readings, device, way.numbers)
    if way.engine == OPENVINO:
        from penult.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(classifier, readings, law, graphs, way.numbers)
    from penult.engines.onnxruntime import ExportedEngine

    return ExportedEngine(classifier, readings, law, graphs, way.numbers)
