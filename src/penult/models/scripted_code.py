"""The code of a TorchScript archive: looked through before torch reads it, which runs some of it,
and once it is compiled, as the operators that will run.
"""

from __future__ import annotations

import ast
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from penult.errors import ModelError, UntrustedCode, cause
from penult.models.operators import computes

# Objects of C++ that hold packed weights, or mark a stretch of time; others open files (videos) or
# connections.
_PACKED = re.compile(
    r"__torch__\.torch\.classes\.(quantized\.(Conv[123]d|Linear|Embedding)PackedParamsBase"
    r"|rnn\.CellParamsBase|sparse\.LinearPackedParamsBase"
    r"|xnnpack\.(Linear|Conv2d|TransposeConv2d)OpContext|profiler\._RecordFunction)"
)
_NAMED = re.compile(r"\btorch\b[^\w]*\bclasses\b")
_SYNTAX = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign,
    ast.AugAssign, ast.AnnAssign, ast.Expr, ast.If, ast.While, ast.For, ast.Pass, ast.Break,
    ast.Continue, ast.Raise, ast.Assert, ast.With, ast.withitem, ast.Call, ast.keyword,
    ast.Attribute, ast.Name, ast.expr_context, ast.Constant, ast.List, ast.Tuple, ast.Dict,
    ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp, ast.Compare, ast.BoolOp, ast.IfExp,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Starred, ast.Delete, ast.Import,
    ast.alias,
)  # fmt: skip


def refuse_scripted_code(path: Path) -> None:
    """Look through an archive as torch will read it: its source, of which defaults of arguments
    and `__setstate__` run while it is read, and the objects that it names.

    Raises:
        ModelError: it is damaged.
        UntrustedCode: it would do more than compute.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        folded = [name.casefold() for name in names]
        if begin != b"PK\3\4" or len(set(folded)) < len(names) or "model.json" in folded:
            raise _untrusted(path, "it is no archive as torch.jit.save writes them")
        # What `_extra_files` of torch.jit.save put beside the program is not read by torch.
        for name in (name for name in names if not name.startswith("extra/")):
            if name.casefold().endswith(".py"):
                _refuse(path, _in_source(reader.get_record(name)))
            elif name.casefold().endswith(".pkl"):
                _refuse(path, _in_pickle(reader.get_record(name)))
    except RuntimeError as error:  # torch's own, of an archive that is cut off
        raise ModelError(f"{path} cannot be opened as TorchScript: {cause(error)}") from error


def compiled(path: Path, trust: bool = False) -> torch.jit.ScriptModule:
    """The module in an archive, on the CPU. trust: whatever it does.

    Raises:
        UntrustedCode: an operator of it, in whatever it can call, does more than compute.
    """
    unit: Any = torch._C.CompilationUnit()
    device = torch.device("cpu")
    module = torch._C.import_ir_module(unit, str(path), device, {}, False)  # type: ignore[call-arg]
    for function in unit.get_functions():
        nodes = [*_nodes(function.graph)]
        if not trust:
            _refuse(path, (reason for node in nodes if (reason := _beyond(node))))
        for node in nodes:
            if node.kind() == "prim::Print":  # on whichever stream: nothing of it is a result
                node.destroy()
    wrap: Any = torch.jit._recursive.wrap_cpp_module
    return wrap(module)  # type: ignore[no-any-return]


def _refuse(path: Path, reasons: Iterator[str]) -> None:
    if reason := next(reasons, None):
        raise _untrusted(path, reason)


def _untrusted(path: Path, reason: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path}: {reason}; nothing was run. If you trust whoever made it say --trust"
    )


def _in_source(content: bytes) -> Iterator[str]:
    """What a file of code asks for beyond computing. TorchScript has the syntax of Python."""
    try:
        tree = ast.parse(content.decode())
        nodes = [*ast.walk(tree)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield f"its code cannot be looked through ({cause(error)})"
        return
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if not isinstance(node, _SYNTAX):
            yield f"its code holds a {type(node).__name__}"
        elif id(node) not in inner and isinstance(node, ast.Attribute | ast.Name):
            yield from _beyond_name(_dotted(node))
        elif isinstance(node, ast.Import):
            others = [one.name for one in node.names if not one.name.startswith("__torch__.")]
            yield from (f"its code imports {name}" for name in others)


def _dotted(node: ast.expr) -> list[str]:
    """`a.b.c` as its parts; the first is empty where it is no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return parts[::-1]


def _beyond_name(parts: list[str]) -> Iterator[str]:
    """A name in the code that stands for more than what computes: `torch.X` and `ops.LIBRARY.X`
    are operators, and both are used whole."""
    root, *rest = parts
    operator = {"torch": ["aten", *rest], "ops": rest}.get(root)
    if rest[-1:] == ["ConstantMKLDNNTensor"]:
        yield (
            "it was saved behind torch.jit.optimize_for_inference, which torch itself does not "
            "read again: save the module from before that call"
        )
    if operator is not None and not (len(operator) == 2 and computes("::".join(operator))):
        yield f"its code calls {parts[-1]} ({'.'.join(parts)})"
    elif root == "__torch__":
        yield from _foreign(".".join(parts))


def _foreign(name: str) -> Iterator[str]:
    """A class of C++ that is more than packed weights or a mark."""
    if name.startswith("__torch__.torch.classes") and not _PACKED.fullmatch(name):
        yield f"it has an object of {name.removeprefix('__torch__.')}"


def _in_pickle(content: bytes) -> Iterator[str]:
    """Objects of C++ that a pickle asks torch to make; torch's reader makes nothing of Python."""
    if b"classes" not in content:
        return
    try:
        for code, value, _ in pickletools.genops(content):
            if isinstance(value, str) and _NAMED.search(value):
                yield from _foreign(value.replace(" ", ".") if code.name == "GLOBAL" else value)
    except ValueError as error:
        yield f"a part of it cannot be looked through ({cause(error)})"


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph, those of blocks and graphs inside of nodes included."""
    pending = [graph]
    while pending:
        for node in pending.pop().nodes():
            yield node
            pending += node.blocks()
            for name in node.attributeNames():
                kind = node.kindOf(name)
                pending += [node.g(name)] if kind == "g" else node.gs(name) if kind == "gs" else []


def _beyond(node: Any) -> str:
    """What a node does beyond computing, or nothing."""
    kind = node.kind()
    if not computes(kind):
        return f"it calls {kind}"
    if kind in ("prim::CreateObject", "prim::GetAttr", "prim::CallMethod"):
        value = node.inputsAt(0) if kind == "prim::CallMethod" else node.output()
        return next(_foreign(value.type().annotation_str), "")
    return ""
