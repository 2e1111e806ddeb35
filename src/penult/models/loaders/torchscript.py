"""Open a TorchScript file as a classifier: what torch.jit.save wrote, scripted, traced or frozen.

TorchScript modules take no hooks, so nothing is seen of their inner modules being called; their
weights are shown as a tree of plain modules all the same, and taps name operations.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penult.errors import ModelError, UsageError, cause
from penult.models.base import Classifier, weights_digest
from penult.models.module import ModuleParts, SavedFile, assemble, require_steady
from penult.models.options import (
    LoadOptions,
    checkpoint_advice,
    existing,
    input_values,
    members,
    preprocessing_of,
    refuse_expanding,
)
from penult.models.processors import quiet
from penult.models.scripted_code import compiled, refuse_scripted_code
from penult.models.weight_files import refuse_stretched
from penult.tracing.activation import ends_with, is_layout
from penult.tracing.onnx_inputs import require_inputs

# Not part of what a model computes: where its source was, and which run wrote the archive.
_ASIDE = re.compile(r".*\.debug_pkl|\.data/.*|byteorder|version")
_RESET = "reset_states"  # the method by which a module of streams begins anew
_SHOWN = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride")


class Scripted(nn.Module):
    """A TorchScript module as a plain one: its weights by name, its forward, one way of running."""

    program: Any

    def __init__(
        self, program: torch.jit.ScriptModule, fixed: Mapping[str, Any] | None = None
    ) -> None:
        """fixed: arguments that are part of no item."""
        super().__init__()
        self.__dict__["program"] = program  # not a child: nothing of it takes hooks
        self.__dict__["fixed"] = dict(fixed or {})
        self.takes = tuple(name for name in _arguments(program) if name not in (fixed or {}))
        _show(self, program)

    def forward(self, **tensors: Tensor) -> Any:
        """What the module returns; not optimised, so that the tenth run is the first to the bit. A
        state that it keeps begins anew."""
        if (reset := getattr(self.program, _RESET, None)) is not None:
            reset()
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self.program(**tensors, **self.__dict__["fixed"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scripted:
        there = fn(torch.empty(0)).device
        if any(constant.device != there for constant in self.constants()):
            raise UsageError(
                f"this TorchScript module was frozen or traced with weights on "
                f"{self.constants()[0].device} inside of its code, which do not move to {there}: "
                f"say --device {self.constants()[0].device}, or save it again from there"
            )
        self.program._apply(fn)
        _show(self, self.program)
        return self

    def constants(self) -> list[Tensor]:
        """Weights that are part of the code: those of a frozen module."""
        graph = self.program.inlined_graph  # its nodes go when it goes
        nodes = graph.findAllNodes("prim::Constant")
        found = [node.t("value") for node in nodes if _is_tensor(node)]
        return [tensor for tensor in found if tensor.ndim]

    def without_activation(self) -> Scripted | None:
        """A copy whose code lacks the softmax or sigmoid that its results leave; None where there
        is none."""
        with quiet():
            buffer = io.BytesIO()
            torch.jit.save(self.program, buffer)
            buffer.seek(0)
            program: Any = torch.jit.load(buffer)  # type: ignore[no-untyped-call]
        graph = program.graph
        torch._C._jit_pass_inline(graph)  # calls of modules inside become their operations
        last = {node.output().debugName(): node for node in _last_activations(graph)}
        for node in last.values():  # before its first run: later it would be compiled already
            node.output().replaceAllUsesWith(node.inputsAt(0))
            node.destroy()
        return type(self)(program, self.__dict__["fixed"]) if last else None

    def digest(self) -> str:
        """Hash of the weights, also of those that are part of the code."""
        inside = {f"constant {number}": value for number, value in enumerate(self.constants())}
        fixed = self.__dict__["fixed"]
        return weights_digest(self, inside) + (f"/{fixed}" if fixed else "")


class _Part(nn.Module):
    """Stands for a module inside of a TorchScript module: shows its weights, and is never run."""


def _show(part: nn.Module, script: Any) -> None:
    """Give a module the parameters, buffers and parts of a TorchScript module, as they are now."""
    for name, parameter in script.named_parameters(recurse=False):
        part._parameters[name] = parameter  # a plain tensor there
    for name, buffer in script.named_buffers(recurse=False):
        part.register_buffer(name, buffer)
    for name, child in script.named_children():
        if name not in part._modules:
            kind = getattr(child, "original_name", "") or "Module"
            part.add_module(name, type(kind, (_Part,), {})())
            for setting in _SHOWN:
                if hasattr(child, setting):
                    part._modules[name].__dict__[setting] = getattr(child, setting)
        shown = part._modules[name]
        if shown is not None:
            _show(shown, child)


def _last_activations(graph: Any) -> Iterator[Any]:
    """The nodes of softmax or sigmoid whose result is returned, laid out anew at most."""
    pending = list(graph.outputs())
    while pending:
        node = pending.pop().node()
        kind = node.kind()
        if kind.startswith("prim::") and kind.endswith("Construct"):
            pending += node.inputs()
        elif ends_with(kind):
            yield node
        elif is_layout(kind):
            pending.append(node.inputsAt(0))


def _arguments(program: Any) -> list[str]:
    return [argument.name for argument in program.forward.schema.arguments[1:]]


def _fixed(program: Any, options: LoadOptions, spec: str) -> dict[str, Any]:
    """The arguments that the caller gives a number, in the type that the code declares.

    Raises:
        UsageError: there is none of a name, or nothing is left for an item.
    """
    given, names = input_values(options), _arguments(program)
    require_inputs(given, names, spec)
    kinds = {one.name: str(one.type) for one in program.forward.schema.arguments[1:]}
    found: dict[str, Any] = {}
    for name, value in given.items():
        kind = kinds[name]
        if kind in ("int", "bool") and not value.is_integer():
            raise UsageError(f"--input {name}={value:g}: {spec} takes {kind}, a whole number")
        types: dict[str, Callable[[float], Any]] = {
            "int": int, "bool": bool, "Tensor": torch.tensor
        }  # fmt: skip
        found[name] = types.get(kind, float)(value)
    return found


def _is_tensor(node: Any) -> bool:
    return bool(node.hasAttribute("value") and node.kindOf("value") == "t")


def open_torchscript(spec: str | Path, options: LoadOptions) -> Classifier:
    """A file that torch.jit.save wrote.

    Raises:
        ModelError: it is no TorchScript, or cannot be run on what it is given.
        UntrustedCode: its code would do more than compute, and `trust` was not given.
    """
    path = existing(spec, options)
    why = _no_torchscript(path)
    if why:
        raise ModelError(why)
    refuse_expanding(path)
    if not options.trust:
        refuse_scripted_code(path)
    try:
        with quiet():  # each version of torch says again that TorchScript is of yesterday
            program = compiled(path, options.trust)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be opened as TorchScript: {cause(error)}") from error
    refuse_stretched(path, [*program.parameters(), *program.buffers()])
    digest = _file_digest(path)
    saved = SavedFile(path, lambda: digest)
    return open_scripted(program, options, str(path), saved)


def open_scripted(
    program: Any, options: LoadOptions, spec: str, saved: SavedFile | None = None
) -> Classifier:
    """A TorchScript module that is at hand. saved: the file that it was read from."""
    if hasattr(program, "training"):  # a frozen one has no mode
        program.eval()
    name = getattr(program, "original_name", "") or "TorchScript"
    module: Scripted = type(name, (Scripted,), {})(program, _fixed(program, options, spec))
    parts = ModuleParts(
        module, preprocessing_of(options), spec, facts=_facts(module), weights=module.digest
    )
    if saved:
        parts = saved.of(parts, "torchscript", options)
    classifier = assemble(parts, options)
    require_steady(classifier, "save it again after model.eval()")
    return classifier


def _facts(module: Scripted) -> dict[str, Any]:
    weights, fixed = [*module.parameters(), *module.constants()], module.__dict__["fixed"]
    return {
        "origin": "torchscript",
        "parameters": sum(tensor.numel() for tensor in weights),
        "frozen": next(module.parameters(), None) is None,
        **({"fixed_inputs": {n: str(value) for n, value in fixed.items()}} if fixed else {}),
    }


def _no_torchscript(path: Path) -> str:
    """Why a file is no TorchScript; empty if it looks like some."""
    names = members(path)
    if any("/code/" in name for name in names):
        return ""
    if any(name.endswith("/data.pkl") for name in names):
        return f"{path} is what torch.save writes, and no TorchScript: {checkpoint_advice(path)}"
    return f"{path} is no TorchScript: torch.jit.save writes a zip archive with code in it"


def _file_digest(path: Path) -> str:
    """Hash of what the file computes with: code, constants, weights; not when and where it was
    saved."""
    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            inside = name.partition("/")[2]
            if not _ASIDE.fullmatch(inside):
                total.update(f"{inside}|".encode() + archive.read(name))
    return total.hexdigest()[:16]
