"""What an item is called for a purpose, its class or its group: read from its path or its metadata.

Knows paths and columns; opens nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath

from penult.errors import LabelsError
from penult.sources.items import path_of

FOLDER = "folder"
Namer = Callable[[str, Mapping[str, object]], str | None]


def namer(by: str, columns: Collection[str] | None = None) -> Namer:
    """From an item's id and metadata to its name; None where it has none.

    by: `folder`, the name of the folder that holds the file; a metadata column; or a pattern of
    the path's end with the name in braces, where * is anything: `{}_*_*.wav` reads 7 from
    `7_jackson_32.wav`, `{}/*/*.flac` the folder two levels up. columns: the metadata columns
    there are, if they are known.

    Raises:
        LabelsError: there is no such column, or the pattern has not one pair of braces.
    """
    if columns is not None and by in columns:
        return lambda id, metadata: named(metadata.get(by))
    if by == FOLDER:
        return lambda id, metadata: path_of(id).parent.name or None
    if "{" in by or "}" in by:
        return _pattern(by)
    if columns is None:
        return lambda id, metadata: named(metadata.get(by))
    there = f"columns: {', '.join(columns)}" if columns else "there are no metadata columns"
    raise LabelsError(
        f"{by!r} names nothing: {there}; `folder` and a pattern such as '{{}}_*.wav' work too"
    )


def named(value: object) -> str | None:
    """A value as a name; None for what is no name: null, NaN, an empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps becomes one of floats
    return str(value).strip() or None


def _pattern(by: str) -> Namer:
    if by.count("{}") != 1 or by.count("{") != 1 or by.count("}") != 1:
        raise LabelsError(f"the pattern {by!r} needs one {{}}, where the name stands: '{{}}_*.wav'")
    parts = PurePath(by).parts
    before, after = (
        "".join("[^/]*" if sign == "*" else re.escape(sign) for sign in half)
        for half in "/".join(parts).split("{}")
    )
    # The name takes as little as the signs behind it allow: {}_* is what stands before the first _.
    matcher = re.compile(f"{before}([^/]+?){after}", re.DOTALL)

    def name(id: str, metadata: Mapping[str, object]) -> str | None:
        tail = "/".join(path_of(id).parts[-len(parts) :])
        found = matcher.fullmatch(tail)
        return named(found[1]) if found else None

    return name
