"""Open a torch.export file (`model.pt2`) as a classifier, with its tree of modules built again.

What the program fixes (a batch of one, a length of sound) is read off it and told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.unflatten import UnflattenedModule
from torch.utils._pytree import tree_unflatten

from penult.errors import ModelError, UsageError, cause
from penult.models.base import Classifier, weights_digest
from penult.models.exported_code import refuse_exported_code
from penult.models.module import ModuleParts, SavedFile, assemble, require_steady
from penult.models.options import (
    LoadOptions,
    existing,
    members,
    preprocessing_of,
    refuse_expanding,
    with_length,
)
from penult.models.weight_files import refuse_stretched


class Exported(UnflattenedModule):
    """An exported program as a tree of modules, called by the names of what it takes."""

    takes: tuple[str, ...]  # names of the tensors
    slots: list[tuple[str, Any]]  # everything it takes, in order; what was no tensor is fixed
    layout: Any  # of positional and keyword arguments

    @classmethod
    def of(cls, program: ExportedProgram) -> Exported:
        """The program's modules, under the names that they had."""
        module: Any = torch.export.unflatten(program)
        names = _classes(program)
        kinds: dict[tuple[str, type], type] = {}  # one for each, so that equal layers are seen
        for path, part in module.named_modules():
            own = type(part) if path else cls
            name = names.get(path, type(part).__name__)
            part.__class__ = kinds.setdefault((name, own), type(name, (own,), {}))
        specs = program.graph_signature.input_specs
        given = [spec.arg for spec in specs if spec.kind.name == "USER_INPUT"]
        module.slots = [(arg.name, getattr(arg, "value", None)) for arg in given]
        module.takes = tuple(port.name for port in ports(program))
        module.layout = program.call_spec.in_spec
        return module  # type: ignore[no-any-return]

    def forward(self, **tensors: Tensor) -> Any:
        """What the program returns."""
        if set(tensors) != set(self.takes):
            raise TypeError(f"it takes {', '.join(self.takes)}, received {', '.join(tensors)}")
        values = [tensors.get(name, value) for name, value in self.slots]
        args, kwargs = tree_unflatten(values, self.layout)
        return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]


def ports(program: ExportedProgram) -> list[Any]:
    """The graph's nodes for the tensors that it takes, in order."""
    wanted = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [n for n in nodes if n.name in wanted and isinstance(n.meta.get("val"), Tensor)]


def open_export(spec: str | Path, options: LoadOptions) -> Classifier:
    """A file that torch.export.save wrote.

    Raises:
        ModelError: it is no exported program, or cannot be run on what it is given.
        UntrustedCode: it would run more than torch's own arithmetic, and `trust` was not given.
    """
    path = existing(spec, options)
    if not members(path):
        raise ModelError(f"{path} is no torch.export file: torch.export.save writes a zip archive")
    refuse_expanding(path)
    if not options.trust:
        refuse_exported_code(path)
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as error:  # its own kinds of error, and those of what it is made of
        raise ModelError(
            f"{path} cannot be opened by torch {torch.__version__}: {_reason(error)}. "
            "Files of torch.export may need the torch that saved them"
        ) from error
    refuse_stretched(path, [*program.state_dict.values(), *program.constants.values()])
    return open_program(program, options, str(path), SavedFile(path))


def _reason(error: Exception) -> str:
    """Why a file cannot be opened; torch logs that, and raises an error without it."""
    reason = cause(error)
    return "it cannot be deserialised" if reason.startswith("We ran into an error") else reason


def open_program(
    program: ExportedProgram, options: LoadOptions, spec: str, saved: SavedFile | None = None
) -> Classifier:
    """An exported program that is at hand. saved: the file that it was read from."""
    taken = ports(program)
    if not taken:
        raise ModelError(f"{spec} takes no tensor, so it classifies nothing")
    shape = taken[0].meta["val"].shape
    batch = shape[0] if len(shape) else 1
    if isinstance(batch, int) and batch != 1:
        raise ModelError(
            f"{spec} was exported for batches of exactly {batch}, and items come one at a time: "
            "export it again with a batch of one, or with dynamic_shapes for its first axis"
        )
    if options.sample_rate and options.preprocess is None and len(shape) not in (2, 3):
        raise UsageError(
            f"{spec} takes {_port(taken[0])}, which is no raw sound: give --preprocess "
            "package.module:function, which makes that of samples"
        )
    length = shape[-1] if len(shape) and isinstance(shape[-1], int) else None
    preprocessing = preprocessing_of(options)
    unfixed, options = options, with_length(options, length, spec)
    try:
        with _quiet():
            module = Exported.of(program)
    except Exception as error:  # a tree of modules that cannot be built again
        raise ModelError(f"{spec} cannot be taken apart: {cause(error)}") from error
    # Tensors that were no parameter and no buffer when it was exported are kept beside them.
    constants = {f"constant {name}": value for name, value in program.constants.items()}
    facts = {
        "origin": "export",
        "inputs": [_port(node) for node in taken],
        **({"batch": 1} if isinstance(batch, int) else {}),
    }
    weights = partial(weights_digest, module, constants)
    parts = ModuleParts(module.eval(), preprocessing, spec, facts=facts, weights=weights)
    if saved:
        parts = saved.of(parts, "export", unfixed)
    classifier = assemble(parts, options)
    require_steady(classifier, "export it again after model.eval()")
    return classifier


def _classes(program: ExportedProgram) -> dict[str, str]:
    """Path → class of the modules that were exported, which the operations remember."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in program.graph.nodes]
    entries = [entry for stack in stacks for entry in stack.values()]
    names = {path: kind if isinstance(kind, str) else kind.__name__ for path, kind in entries}
    return {path: name.rpartition(".")[2] for path, name in names.items()}


def _port(node: Any) -> str:
    value = node.meta["val"]
    sizes = ", ".join(str(size) for size in value.shape)
    return f"{node.name} {str(value.dtype).removeprefix('torch.')} ({sizes})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's own reports off the terminal: what matters is raised."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
