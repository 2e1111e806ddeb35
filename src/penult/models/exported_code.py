"""The program of a torch.export archive, looked through before torch reads it: operators, sizes,
guards, layouts of arguments, pickles."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from penult.errors import ModelError, UntrustedCode, cause
from penult.models.operators import computes
from penult.models.processors import quiet

_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.([a-zA-Z]\w*))?")
# Functions of Python; others of `operator` take what they are given apart, or call it.
_PYTHON = re.compile(
    r"torch\._?sym_\w+|math\.[a-z]\w*|_operator\.(i?(add|sub|mul|floordiv|truediv|mod|pow|and|or"
    r"|xor|lshift|rshift)_?|neg|pos|abs|inv|invert|not_|truth|index|eq|ne|lt|le|gt|ge|is_|is_not"
    r"|getitem)"
)
# Operators that run parts of the program itself. Others call what was compiled elsewhere.
_NESTED = frozenset(
    "cond while_loop map_impl scan associative_scan wrap_with_set_grad_enabled wrap_with_autocast "
    "wrap wrap_activation_checkpoint tag_activation_checkpoint invoke_subgraph strict_mode "
    "hints_wrapper auto_functionalized auto_functionalized_v2 flex_attention foreach_map "
    "out_dtype with_effects".split()
)
_SIZES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple,
)  # fmt: skip
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Abs|Mod|Max|Min|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|(Strict)?(Less|Greater)Than|Piecewise|ExprCondPair|Where|Identity"
    r"|ToFloat|(Bitwise|OpaqueUnary)\w*|(Floor|Ceil|Clean|IntTrue|FloatTrue)Div|PythonMod"
    r"|ModularIndexing|(Trunc|Round|Floor|Ceil)To(Int|Float)|RoundDecimal|PowByNatural|FloatPow"
    r"|[LR]Shift|IsNonOverlappingAndDenseIndicator|floor|ceiling|max|min|abs"
)
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_METHODS = {"size", "stride", "storage_offset", "item", "dim"}
_LARGEST = 2**64
# Values that a dictionary in the arguments may make for a key that it lacks.
_MADE = {"list", "dict", "set", "tuple", "int", "float", "str", "bool"}
_PLAIN = re.compile(r"[\w-][\w.-]*")


def refuse_exported_code(path: Path) -> None:
    """Look through an archive as torch will read it.

    Raises:
        ModelError: it is compiled for one kind of machine, or damaged.
        UntrustedCode: it would run more than torch's own arithmetic.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads archives of before 2.8 by this one
            if any(name.startswith("serialized_") for name in archive.namelist()):
                _refuse_older(path, archive)
                return
        reader = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        if len({name.casefold() for name in names}) < len(names):
            raise _untrusted(path, "two parts of it have one name")
        for name in names:
            if name.casefold().startswith("data/aotinductor/"):
                raise ModelError(
                    f"{path} holds compiled code (AOTInductor), in which no layer is left to be "
                    "found: save the exported program itself, with torch.export.save"
                )
            code = next(_code_in(name.casefold(), partial(reader.get_record, name)), "")
            if code:
                raise _untrusted(path, code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error


def _refuse_older(path: Path, archive: zipfile.ZipFile) -> None:
    """Look through an archive as torch 2.7 and older wrote them: a document and three pickles.

    Raises:
        UntrustedCode: it would run more than torch's own arithmetic, or holds anything else.
    """
    names = archive.namelist()
    parts = [name for name in names if not name.startswith("extra_files/")]
    newer = False
    with suppress(RuntimeError):  # torch looks for a program of today first
        newer = bool(torch._C.PyTorchFileReader(str(path)))
    if newer or len(set(names)) < len(names) or not _OLDER.issuperset(parts):
        raise _untrusted(path, "it is no archive as torch.export.save writes them")
    for name in parts:
        content = archive.read(name)
        if name == _PROGRAM:
            code = next(_beyond(json.loads(content)), "")
        else:
            fine = name == "version" or _only_tensors(content)
            code = "" if fine else f"its {name} is a pickle that asks to run code"
        if code:
            raise _untrusted(path, code)


_PROGRAM = "serialized_exported_program.json"
_OLDER = {
    "version", _PROGRAM, "serialized_state_dict.pt", "serialized_constants.pt",
    "serialized_example_inputs.pt", "serialized_state_dict.json", "serialized_constants.json",
}  # fmt: skip


def _untrusted(path: Path, code: str) -> UntrustedCode:
    return UntrustedCode(
        f"{path}: {code}; nothing was run. If you trust whoever made it say --trust"
    )


def _code_in(name: str, content: Callable[[], bytes]) -> Iterator[str]:
    """What a part of an archive would do beyond arithmetic. name: in small letters, as torch
    finds parts by any."""
    leaf = name.rpartition("/")[2]
    if leaf.startswith(("custom_obj", "opaque_obj")):
        yield f"it brings an object of a class of its own ({leaf})"
    elif name.startswith("models/"):
        yield from _beyond(json.loads(content()))
    elif name.endswith("_config.json"):
        yield from _odd_parts(json.loads(content())["config"].values())
    elif name.endswith(".pt") or name.startswith("data/sample_inputs/"):
        if not _only_tensors(content()):
            yield f"its {leaf} is a pickle that asks to run code"
    elif name.startswith("data/") and content()[:4] in _PICKLED and not _only_tensors(content()):
        yield f"its {leaf} is a pickle that asks to run code"


_PICKLED = {b"PK\3\4"}  # as torch.save begins


def _odd_parts(entries: Any) -> Iterator[str]:
    """Parts that are objects, or that would be looked for elsewhere than beside the list."""
    for entry in entries:
        name = str(entry["path_name"])
        if not _PLAIN.fullmatch(name) or name.startswith(("custom_obj", "opaque_obj")):
            yield f"it brings an object of a class of its own ({name[:80]})"
        elif entry.get("use_pickle") and not name.endswith(".pt"):
            yield f"its {name[:80]} is said to be a pickle"


def _only_tensors(content: bytes) -> bool:
    """Whether torch reads it without running code. Where that fails for any reason torch.export
    reads it again with code."""
    try:
        with quiet():
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a pickle may raise anything
        return not content
    return True


def _beyond(model: Any) -> Iterator[str]:
    """Operations and expressions of a program that are more than arithmetic."""
    for key, value in _strings(model):
        if key in ("target", "as_operator") and not _is_arithmetic(value):
            yield f"it calls {value[:80]}"
        elif key == "expr_str" and not _is_size(value):
            yield f"a size in it is {value[:80]!r}"
        elif key == "guards_code" and not _is_size(value, guard=True):
            yield f"a condition on its input is {value[:80]!r}"
        elif key in ("in_spec", "out_spec"):
            yield from _imports(json.loads(value))


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a document, with the name that it or its list stands under."""
    pending = [(key, value)]
    while pending:
        name, one = pending.pop()
        if isinstance(one, str):
            yield name, one
        elif isinstance(one, dict):
            pending += one.items()
        elif isinstance(one, list):
            pending += [(name, item) for item in one]


@cache
def _is_arithmetic(target: str) -> bool:
    """Whether a name stands for a function that computes and does nothing else."""
    if _PYTHON.fullmatch(target):
        return True
    found = _OPERATOR.fullmatch(target)
    if found is None:
        return False
    library, name, overload = found.groups()
    if library == "higher_order":
        return name in _NESTED and overload is None
    if not computes(f"{library}::{name}"):
        return False
    schemas = torch._C._jit_get_schemas_for_operator(f"{library}::{name}")
    return bool(schemas) and overload in {one.overload_name or "default" for one in schemas} | {
        None
    }


def _is_size(text: str, guard: bool = False) -> bool:
    """Whether an expression is made of numbers, symbols and functions of them alone, none of which
    grows without bound. guard: it speaks of an input's sizes, `L['x'].size()[0]`."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_part_of_size(node, guard) for node in nodes)


def _part_of_size(node: ast.AST, guard: bool) -> bool:
    if isinstance(node, ast.Constant):
        return _is_value(node.value, guard)
    if isinstance(node, ast.Call):
        own = node.func
        if isinstance(own, ast.Attribute):
            return guard and (own.attr in _METHODS or bool(_PYTHON.fullmatch(ast.unparse(own))))
        power = isinstance(own, ast.Name) and own.id in _POWERS and not _small(node.args)
        return isinstance(own, ast.Name) and bool(_FUNCTIONS.fullmatch(own.id)) and not power
    if isinstance(node, ast.BinOp) and isinstance(node.op, _RAISING):
        return _small([node.left, node.right])
    if guard and isinstance(node, ast.Attribute):
        return not node.attr.startswith("_")
    return isinstance(node, _SIZES) or (guard and isinstance(node, ast.Subscript))


def _is_value(value: Any, guard: bool) -> bool:
    if isinstance(value, str):
        return bool(_PLAIN.fullmatch(value)) if guard else value.isidentifier() or _number(value)
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST or value == float("inf")
    return value is None


def _number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,3})?", text))


def _small(parts: list[ast.expr]) -> bool:
    """Whether a power stays a number: a small exponent as it stands, and no power below it."""
    inner = [one for part in parts for one in ast.walk(part)]
    nested = any(
        (isinstance(one, ast.BinOp) and isinstance(one.op, _RAISING))
        or (isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in _POWERS)
        for one in inner
    )
    return len(parts) == 2 and not nested and _is_exponent(parts[1])


_RAISING = (ast.Pow, ast.BitXor, ast.LShift)  # sympy reads ^ as a power


def _is_exponent(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_exponent(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        numbers = node.func.id in ("Integer", "Float", "Rational")
        return node.func.id == "Symbol" or (numbers and all(map(_is_exponent, node.args)))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return abs(node.value) <= 64
    return isinstance(node, ast.Name)


def _imports(value: Any) -> Iterator[str]:
    """Modules that a layout of arguments would import; it has documents inside of texts."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str) and one[:1] in '{["':
            with suppress(ValueError):
                pending.append(json.loads(one))
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            made = one.get("default_factory_module"), one.get("default_factory_name")
            if "__enum__" in one:
                yield f"its arguments import {str(one.get('fqn'))[:80]}"
            elif made != (None, None) and not (made[0] == "builtins" and made[1] in _MADE):
                yield f"its arguments import {made[0]!s:.80}"
            pending += one.values()
