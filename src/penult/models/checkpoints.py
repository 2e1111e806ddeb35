"""Weights files: read without running code, fill a module with them, refuse those that do not
fit.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penult.errors import IncompleteWeights, ModelError, UntrustedCode, first_line
from penult.models.processors import quiet
from penult.tracing.head import logits_of
from penult.tracing.trace import record

Weights = Mapping[str, Tensor]

# What wrappers put in front of every name: DataParallel, torch.compile, Lightning and others.
PREFIXES = ("", "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "classifier.")

# Where training scripts keep the weights, in the order in which they are preferred.
ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file's weights. where: the entry that they were taken from. others: further ones in it."""

    weights: Weights
    where: str
    others: tuple[str, ...]


def read(path: Path, entry: str | None = None, *, trust: bool = False) -> Checkpoint:
    """Open a checkpoint file. entry: which of several copies to take (`state_dict_ema`, …).

    Raises:
        ModelError: no such file, not a checkpoint, or no such entry; the message lists those there.
        UntrustedCode: it is a pickle that asks to run code.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint {str(path)!r}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return Checkpoint(load_file(path), "", ())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not readable as safetensors: {error}") from error
    found = _copies(_unpickled(path, trust))
    if not found:
        raise ModelError(f"{path} holds no weights: expected a mapping of names to tensors")
    if entry is None:
        entry = next((name for name in ENTRIES if name in found), next(iter(found)))
    if entry not in found:
        raise ModelError(f"{path} has no entry {entry!r}; it has {', '.join(map(repr, found))}")
    return Checkpoint(found[entry], entry, tuple(name for name in found if name != entry))


def _unpickled(path: Path, trust: bool) -> Any:
    # Training scripts keep their arguments beside the weights; a Namespace holds values, no code.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise UntrustedCode(
            f"{path} is a pickle that asks for more than tensors ({first_line(error)}); nothing "
            "was run. Save its state_dict alone, as safetensors, or if you trust whoever made it "
            "say --trust"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is not readable as a checkpoint: {first_line(error)}") from error


def _copies(value: Any, name: str = "") -> dict[str, Weights]:
    """Every mapping of names to tensors in a loaded file, by the name of its entry."""
    if isinstance(value, nn.Module):  # only a trusted file gives one
        return {name: value.state_dict()}
    if not isinstance(value, Mapping):
        return {}
    tensors = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
    if tensors and len(tensors) >= len(value) / 2:
        return {name: tensors}
    found: dict[str, Weights] = {}
    for key, item in value.items():
        found |= _copies(item, f"{name}.{key}" if name else str(key))
    return {key: item for key, item in found.items() if not key.startswith("optim")}


def fitted(module: nn.Module, weights: Weights) -> Weights:
    """The weights with the prefix taken off (or put on) that fits most names of the module."""
    names = module.state_dict().keys()

    def renamed(drop: str, put: str) -> dict[str, Tensor]:
        return {put + name.removeprefix(drop): tensor for name, tensor in weights.items()}

    drops = [a + b for a, b in product(PREFIXES, PREFIXES)]
    options = [(drop, put) for drop in dict.fromkeys(drops) for put in PREFIXES[:4]]
    # The first of equals wins: the plain names, then single prefixes.
    best = max(options, key=lambda option: len(renamed(*option).keys() & names))
    return renamed(*best)


def fill(module: nn.Module, weights: Weights) -> dict[str, str]:
    """Put weights into a module, in place.

    Returns what could not be filled: name → why (`missing`, or both shapes). Whether that matters
    is for the trace to say: only what the logits depend on does.
    """
    fitting = fitted(module, weights)
    loose: dict[str, str] = {}
    good: dict[str, Tensor] = {}
    for name, own in module.state_dict().items():
        stored = fitting.get(name)
        if stored is None:
            loose[name] = "missing"
        elif stored.shape != own.shape:
            loose[name] = (
                f"{tuple(stored.shape)} in the checkpoint, {tuple(own.shape)} in the model"
            )
        else:
            good[name] = stored
    if not good:
        raise IncompleteWeights(
            f"no weight of the checkpoint fits {type(module).__name__}: it has "
            f"{_some(weights)}, the model has {_some(module.state_dict())}"
        )
    module.load_state_dict(good, strict=False)
    return loose


def built(
    factory: Callable[..., nn.Module], weights: Weights | None, classes: int | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """Call a factory, with as many classes as the weights have, and fill what it makes.

    The number of classes is read off the weights: where they differ from the model's own in their
    first axis only, and all in the same way, that axis counts the classes.
    """
    module = factory() if classes is None else factory(num_classes=classes)
    if weights is None:
        return module, {}
    fitting = fitted(module, weights)
    counts = {
        fitting[name].shape[0]
        for name, own in module.state_dict().items()
        if name in fitting
        and own.ndim > 0
        and fitting[name].shape != own.shape
        and fitting[name].shape[1:] == own.shape[1:]
    }
    if len(counts) == 1 and classes is None:
        # A factory may take no number of classes: then what does not fit is told by name.
        with suppress(TypeError):
            module = factory(num_classes=counts.pop())
    return module, fill(module, weights)


def require_filled(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    loose: Mapping[str, str],
    spare: Iterable[str],
    spec: str,
    output: str | int | None = None,
) -> int:
    """Number of logits; refuse a model whose logits depend on weights that were never loaded.

    loose: parameters that could not be filled, and why. spare: what the checkpoint has instead.
    output: which of several holds the logits. Run on `tensors` once: a parameter matters if the
    logits were computed from it.

    Raises:
        IncompleteWeights: each such parameter is named.
    """
    trace = record(module, kwargs=tensors)
    logits = logits_of(trace.output, output)
    root = next(read for read in trace.reads if read.tensor is logits)
    used = trace.weights_used([root])
    bad = {name: why for name, why in loose.items() if name in used}
    if bad:
        listed = "; ".join(f"{name}: {why}" for name, why in sorted(bad.items())[:12])
        more = f"; and {len(bad) - 12} more" if len(bad) > 12 else ""
        other = ", ".join(sorted(map(str, spare))[:8])
        raise IncompleteWeights(
            f"{spec!r} does not fill {type(module).__name__}; its logits would come from random "
            f"weights. {listed}{more}."
            + (f" The checkpoint has instead: {other}." if other else "")
            + " Build the class that it was trained with: --checkpoint with a factory of yours, or "
            "penult.load(module) in Python"
        )
    return int(logits.shape[-1])


def _some(weights: Weights) -> str:
    names = list(weights)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# TorchScript cannot reach Python, but two of its operations read and write files.
_FILES = re.compile(rb"(?:\btorch|\bops\.\w+)\.(save|from_file)\(")
_ARITHMETIC = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized|quantized_decomposed|torchvision)\.[\w.]+"
    r"|_operator\.\w+|math\.\w+|torch\.(_?sym_\w+)"
)
_AT_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save)\b.*")
# Sizes are written as `Add(Symbol('s27', integer=True), Integer(-400))`.
_SIZES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple,
)  # fmt: skip


def refuse_scripted_code(path: Path) -> None:
    """Look through a TorchScript archive.

    Raises:
        UntrustedCode: its code reads or writes files.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            found = _FILES.search(archive.read(name)) if name.endswith(".py") else None
            if found:
                code = f"its code calls {found[1].decode()}, which reads or writes files"
                raise _untrusted(path, code)


def refuse_exported_code(path: Path) -> None:
    """Look through a torch.export archive.

    Raises:
        ModelError: it is compiled for one kind of machine, or damaged.
        UntrustedCode: it would run more than torch's own arithmetic.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inside = name.partition("/")[2]
                if inside.startswith("data/aotinductor/"):
                    raise ModelError(
                        f"{path} holds compiled code (AOTInductor), in which no layer is left to "
                        "be found: save the exported program itself, with torch.export.save"
                    )
                code = "".join(_code_in(inside, archive, name))
                if code:
                    raise _untrusted(path, code)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error


def _untrusted(path: Path, code: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path}: {code}; nothing was run. If you trust whoever made it say --trust"
    )


def _code_in(inside: str, archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    """The first thing that a member of a torch.export archive would do beyond arithmetic."""
    leaf = inside.rpartition("/")[2]
    if leaf.startswith(("custom_obj", "opaque_obj")):
        yield f"it brings an object of a class of its own ({leaf})"
    elif inside.startswith(("data/sample_inputs/", "data/weights/", "data/constants/")):
        if leaf.endswith(".json"):
            pickled = _pickled(json.loads(archive.read(name)), archive, name)
            yield from (f"its {leaf} is a pickle that asks to run code" for leaf in pickled[:1])
        elif leaf.endswith(".pt") and not _only_tensors(archive.read(name)):
            yield f"its {leaf} is a pickle that asks to run code"
    elif inside.startswith("models/"):
        yield from list(_beyond(json.loads(archive.read(name))))[:1]
    elif name.startswith("serialized_"):
        yield "it was saved by an older torch, as pickles (save it again with a newer one)"


def _pickled(config: Any, archive: zipfile.ZipFile, name: str) -> list[str]:
    """Pickled tensors that are more than tensors."""
    entries = [entry for entry in config["config"].values() if entry.get("use_pickle")]
    paths = {str(entry["path_name"]) for entry in entries}
    folder = name.rpartition("/")[0]
    return [path for path in sorted(paths) if not _only_tensors(archive.read(f"{folder}/{path}"))]


def _only_tensors(content: bytes) -> bool:
    try:
        with quiet():
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _beyond(model: Any) -> Iterator[str]:
    """Operations and expressions of a program that are more than arithmetic."""
    for key, value in _strings(model):
        if key == "target" and value.count("."):
            if not _ARITHMETIC.fullmatch(value) or _AT_FILES.fullmatch(value):
                yield f"it calls {value}"
        elif key == "expr_str" and not _is_size(value):
            yield f"a size in it is {value[:80]!r}"


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)


def _is_size(text: str) -> bool:
    """Whether an expression is made of numbers, symbols and sympy's functions alone."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return False
    words = [node.value for node in nodes if isinstance(node, ast.Constant)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return (
        all(isinstance(node, _SIZES) for node in nodes)
        and all(isinstance(func, ast.Name) and func.id[:1].isupper() for func in called)
        and all(not isinstance(word, str) or word.isidentifier() for word in words)
    )
