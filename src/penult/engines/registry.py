"""Registry of engines and precisions: names, devices, arithmetic, and how each is opened.

Engines of other packages are registered by the entry point `penult.engines`. Choosing among them is
`autoselect`'s task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from penult import extras
from penult.engines.base import EXACT, FAST, PRECISIONS, TURBO, Engine, EngineRequest, EngineSpec
from penult.errors import EngineError, UsageError
from penult.models.base import Classifier

log = logging.getLogger(__name__)

AUTO = "auto"
DEFAULT = "torch"  # of a graph it means the graph's own engine


def _from(module: str, name: str) -> Callable[..., Any]:
    """A function of an engine's module, which is imported when it is called: a command that runs in
    one engine imports no other."""
    return lambda *asked: getattr(import_module(f"penult.engines.{module}"), name)(*asked)


# In the order in which `auto` tries them.
BUILT_IN = (
    EngineSpec(
        DEFAULT,
        _from("torch", "open_torch"),
        devices=("cuda", "mps", "cpu", "xpu"),
        arithmetic={EXACT: ("f32",), FAST: ("bf16",)},
    ),
    EngineSpec(
        "openvino",
        _from("openvino", "OpenVinoEngine"),
        arithmetic={EXACT: ("f32",), FAST: ("bf16",)},
        reopen=_from("openvino", "reopen"),
        modules=("openvino",),
        install="'penult[openvino]'",
    ),
    EngineSpec(
        "onnxruntime",
        _from("graph", "open_graph"),
        devices=("cuda", "cpu"),
        runs="onnxruntime",
        modules=("onnxruntime", "onnx"),
        install="'penult[onnx]'",
        has_device=_from("onnxruntime", "runtime_device"),
    ),
    EngineSpec(
        "litert",
        _from("graph", "open_graph"),
        runs="litert",
        modules=("ai_edge_litert",),
        install="'penult[litert]'",
    ),
)


class EngineMode(NamedTuple):
    """An engine, and the arithmetic of its products: f32 or bf16."""

    engine: str
    arithmetic: str = "f32"

    def batch_error(self, precision: str) -> float:
        """By how much an item alone and the same item in a batch may differ, relative."""
        return PRECISIONS[EXACT if self.arithmetic == "f32" else precision].batching

    @property
    def words(self) -> str:
        """`openvino bf16`."""
        return f"{self.engine} {self.arithmetic}"


def modes_of(spec: EngineSpec, precision: str) -> list[EngineMode]:
    """An engine's modes for a precision, in the order in which they are tried: those that this
    precision allows, then those of the stricter ones."""
    order = (EXACT,) if precision == EXACT else (FAST, EXACT)
    return [EngineMode(spec.name, one) for level in order for one in spec.arithmetic.get(level, ())]


def engine_names() -> list[str]:
    """The built-in engines, then those of other packages; none is imported."""
    return list(dict.fromkeys([*(spec.name for spec in BUILT_IN), *extras.plugins(extras.ENGINES)]))


def check(engine: str, precision: str) -> None:
    """Refuse unknown names; tell of a precision that there is no more.

    Raises:
        UsageError: no such engine or precision.
    """
    if engine not in (AUTO, *engine_names()):
        raise UsageError(
            f"no engine {engine!r}; there are {AUTO}, {', '.join(engine_names())} (another package "
            f"adds an engine by an entry point in {extras.ENGINES})"
        )
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}; there are {EXACT}, {FAST}")
    if precision == TURBO:
        log.warning(
            "precision %r was eight bits and is no more: run as %r, nearer to fp32", TURBO, FAST
        )


@cache
def plugin_spec(name: str) -> EngineSpec:
    """The engine that another package registers under a name.

    Raises:
        UsageError: it cannot be imported, or is no EngineSpec of that name.
    """
    entry = extras.plugins(extras.ENGINES)[name]
    spec, package = extras.load_plugin(entry), extras.package_of(entry)
    if not isinstance(spec, EngineSpec) or spec.name != name:
        raise UsageError(
            f"engine {name!r} of {package} is {spec!r:.60}, and has to be a "
            f"penult.engines.base.EngineSpec of the name {name!r}"
        )
    return spec


def specs_of(name: str) -> list[EngineSpec]:
    """Every engine of a name: for modules, and for graphs; empty if there is none.

    Raises:
        UsageError: the package that registers it cannot be imported.
    """
    built_in = [spec for spec in BUILT_IN if spec.name == name]
    if built_in or name not in extras.plugins(extras.ENGINES):
        return built_in
    return [plugin_spec(name)]


def native_spec(classifier: Classifier) -> EngineSpec:
    """The engine that runs a classifier as it is."""
    return find_spec_for(classifier, classifier.structure.engine)


def find_spec_for(classifier: Classifier, engine: str) -> EngineSpec:
    """The engine of a name for a classifier.

    Raises:
        EngineError: it does not run such a model.
    """
    native = classifier.structure.engine
    for spec in specs_of(native if engine == DEFAULT else engine):
        if spec.runs == native:
            return spec
    runs = ", ".join(spec.name for spec in candidates(classifier, ""))
    raise EngineError(
        f"engine {engine!r} does not run this model: an engine for {native!r} is needed, which are "
        f"{runs}; leave --engine out"
    )


def select_device(classifier: Classifier, engine: str, precision: str, device: str) -> str:
    """The device for an engine, `auto` resolved; several of them, with commas between.

    Raises:
        EngineError: this classifier is not for that engine, or not for that precision.
        UsageError: this machine, or the engine, has no such device.
    """
    native = classifier.structure.engine
    spec = find_spec_for(classifier, native if engine == AUTO else engine)
    if precision != EXACT and not any(
        set(one.arithmetic) - {EXACT} for one in (spec, *candidates(classifier, ""))
    ):
        raise EngineError(
            f"precision {precision!r} is for torch models; this one is run by {native} as it is, "
            f"with precision {EXACT}"
        )
    return spec.select_device(device)


def candidates(classifier: Classifier, device: str) -> Iterator[EngineSpec]:
    """The engines that `auto` tries for a classifier on a device (empty: on any), the native one
    among them, those of other packages last. One that cannot be imported is left out, with a
    warning."""
    native, kind = classifier.structure.engine, device.partition(":")[0]
    if "," in device:  # of the built-in engines one goes to several devices
        yield native_spec(classifier)
        return
    for name in engine_names():
        for spec in _importable_specs(name):
            tried = spec.auto and (not kind or kind in spec.devices)
            if spec.runs == native and (name == native or tried):
                yield spec


@cache
def _importable_specs(name: str) -> list[EngineSpec]:
    try:
        return specs_of(name)
    except UsageError as error:
        log.warning("left out: %s", error)
        return []


def missing(engine: str) -> str:
    """What to install for an engine; empty if it is here."""
    specs = specs_of(engine)
    if not specs:
        return f"engine {engine!r} is not installed; install the package that brings it"
    spec = specs[0]
    if all(find_spec(name) for name in spec.modules):
        return ""
    return f"{engine} is not installed; install it with: pip install {spec.install}"


def unusable(engine: str, classifier: Classifier) -> str:
    """Why an engine that was taken once does not run a classifier now; empty if it does."""
    if engine == AUTO:
        return ""
    if reason := missing(engine):
        return reason
    native = classifier.structure.engine
    if engine == DEFAULT or any(spec.runs == native for spec in specs_of(engine)):
        return ""
    return f"{engine} runs no models of {native} any more"


def open_mode(mode: EngineMode, request: EngineRequest) -> Engine:
    """The engine of a mode, for what a request holds.

    Raises:
        EngineError: it cannot run this model.
        MissingExtra: it is not installed.
    """
    spec = find_spec_for(request.classifier, mode.engine)
    return spec.open(request.with_arithmetic(mode.arithmetic))


def open_native(request: EngineRequest) -> Engine:
    """The engine that runs the classifier as it is, in fp32."""
    return native_spec(request.classifier).open(request)


def plugin_versions() -> dict[str, str]:
    """`NAME VERSION` of the package of each engine that another package registers."""
    found = extras.plugins(extras.ENGINES)
    return {name: extras.package_of(entry) for name, entry in found.items()}
