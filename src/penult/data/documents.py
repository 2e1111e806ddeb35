"""JSON documents: Penult's own, checked against the type that they hold, and those of others. Knows
no content.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 256 << 20  # bytes; the class names of the largest models take a few million
_SHOWN = 60  # characters of a value that does not fit
_FITTING = 3  # misfits that are named
# A backslash, a pair of surrogates, or one alone, as `json.dumps` writes a name that is not UTF-8.
_ESCAPED = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|\\u(d[89a-f]..)", re.IGNORECASE)


def parse(text: str | bytes, kind: type[T]) -> T:
    """A document as a value of a type: a dataclass, a TypedDict, `dict[str, str]`. Numbers, texts
    and lists are taken as what they are: "3" is no number. Names that are not UTF-8 come as `utf8`
    has them.

    Raises:
        ValueError: it is no JSON, too large or too deep, or something in it is of another type; in
            one line.
    """
    from pydantic import ValidationError

    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MB")
    if isinstance(text, str) and "\\ud" in text:
        text = _ESCAPED.sub(lambda one: rf"\\u{one[1]}" if one[1] else one[0], text)
    try:
        found: T = _adapter(kind).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        misfits = error.errors(include_url=False, include_context=False)
        more = f"; {len(misfits) - _FITTING} more" if len(misfits) > _FITTING else ""
        raise ValueError("; ".join(map(_words, misfits[:_FITTING])) + more) from None
    return found


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def check(value: Any, kind: type[T]) -> T:
    """A value that was read already, as `parse` has it.

    Raises:
        ValueError: something in it is of another type.
    """
    return parse(json.dumps(value), kind)


def of_others(text: str | bytes) -> Any:
    """A document that another program wrote, as Python reads it: NaN is a number.

    Raises:
        ValueError: it is no JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


def _words(misfit: Any) -> str:
    """`dim: Input should be a valid integer, not "x"`."""
    place = ".".join(str(part) for part in misfit["loc"])
    shown = repr(misfit["input"])
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
    if misfit["type"] == "json_invalid":
        return str(misfit["msg"])
    wanted = str(misfit["msg"]).replace("Input should be", "should be")
    received = "" if misfit["type"] == "missing" else f", not {shown}"
    words = f"{wanted}{received}"
    return f"{place[:_SHOWN]}: {words}" if place else words
