"""Look for code in a model file before anything of it is loaded, and refuse what is not trusted.

TorchScript and torch.export files hold programs. What they may do here is compute: no pickle that
runs code, no operation outside of torch's own arithmetic, no expression that Python would evaluate.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from penult.classifiers.quiet import quiet
from penult.errors import ModelError, UntrustedCode, first_line

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
                what = f"its code calls {found[1].decode()}, which reads or writes files"
                raise _untrusted(path, what)


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
                what = "".join(_told(inside, archive, name))
                if what:
                    raise _untrusted(path, what)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error


def _untrusted(path: Path, what: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path}: {what}; nothing was run. If you trust whoever made it say --trust"
    )


def _told(inside: str, archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    """What one member of a torch.export archive would do beyond arithmetic; the first of it."""
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
