"""Names of a model's classes: by their keys, or in their order, from settings and from files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penult.data.documents import of_others
from penult.data.files import user_path
from penult.errors import ModelError, UsageError, cause
from penult.models.base import complete_labels, distinct

REMEDY = "correct that, or give --class-names FILE: one name a line, from class 0 on"


def keyed(names: Any, where: str) -> dict[int, str]:
    """Names by the number of their class. names: a mapping from numbers, or to them, or a sequence.
    where: what holds them, for messages.

    Raises:
        ModelError: a key is no whole number, or names nothing.
    """
    if not isinstance(names, Mapping):
        return {number: _named(name) for number, name in enumerate(names)}
    if all(type(value) is int for value in names.values()):  # label2id
        names = {number: name for name, number in names.items()}
    found: dict[int, str] = {}
    for key, name in names.items():
        if isinstance(key, bool) or not re.fullmatch(r"\s*-?\d+\s*", str(key)):
            raise ModelError(
                f"{where} has the key {key!r} for {_named(name)!r}, which is no number of a class: "
                "classes are numbered from 0 on"
            )
        if int(key) in found:
            raise ModelError(f"{where} names class {int(key)} twice: {REMEDY}")
        found[int(key)] = _named(name)
    return found


def _named(name: Any) -> str:
    """A name, or the last of several for one class: `["n01440764", "tench"]`."""
    several = isinstance(name, Sequence) and not isinstance(name, str) and len(name) > 0
    return str(name[-1] if several else name)


def complete(names: Any, n_logits: int, where: str) -> tuple[str, ...]:
    """K names: those that are there by key, `class_3` for a class without one, and for all where
    there are none. A sequence names every class or is refused.

    Raises:
        ModelError: there is a name for a class that the model does not have, or a sequence is too
            short, so that nothing says which name is whose.
    """
    found = keyed(names, where)
    if not found:
        return complete_labels((), n_logits)
    classes = f"the model has {n_logits} class{'es' if n_logits > 1 else ''}"
    outside = [key for key in sorted(found) if not 0 <= key < n_logits]
    if outside and sorted(found) == list(range(1, n_logits + 1)):
        raise ModelError(
            f"{where} counts from 1, and the model's classes from 0 to {n_logits - 1}: nothing "
            f"says which name is whose; {REMEDY}"
        )
    if outside and isinstance(names, Mapping):
        raise ModelError(
            f"{where} names class {outside[-1]} ({found[outside[-1]]!r}), and {classes}, from 0 to "
            f"{n_logits - 1}: {REMEDY}"
        )
    if len(found) != n_logits and not isinstance(names, Mapping):
        raise ModelError(f"{where} has {len(found)} names, and {classes}: {REMEDY}")
    return distinct([found.get(number, f"class_{number}") for number in range(n_logits)])


def class_names_of(
    names: Sequence[str] | Mapping[int, str] | str | os.PathLike[str] | None, n_logits: int
) -> tuple[str, ...]:
    """Class names as they are, by key, or from a file: one a line, or JSON.

    Raises:
        UsageError: there are more or fewer of them than logits, or one of a list stands twice.
    """
    if names is None:
        return ()
    file = isinstance(names, str | os.PathLike)
    given: Any = _read(user_path(names)) if isinstance(names, str | os.PathLike) else names
    if isinstance(given, Mapping):
        return complete(given, n_logits, str(names) if file else "the mapping of class names")
    labels = tuple(keyed(given, "").values())
    if len(labels) != n_logits:
        raise UsageError(
            f"{len(labels)} class names were given, and the model has {n_logits} classes"
        )
    if twice := [name for name, count in Counter(labels).items() if count > 1]:
        raise UsageError(
            f"the class name {twice[0]!r} is given more than once; a name has to tell one class "
            "from the others"
        )
    return labels


def _read(path: Path) -> Any:
    """The names in a file: a list, or a mapping from numbers."""
    if not path.is_file():
        raise UsageError(f"no file of class names {str(path)!r}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"{path} cannot be read as class names, one a line in UTF-8: {cause(error)}"
        ) from error
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    _refuse_other_order(path, lines)
    return lines


def _from_json(path: Path, text: str) -> Any:
    try:
        value = of_others(text)
    except ValueError as error:
        raise UsageError(f"{path} is not readable as JSON: {error}") from error
    if isinstance(value, Mapping):
        value = value.get("id2label", value)
    if not isinstance(value, Mapping | list):
        raise UsageError(f"{path} holds no list of class names, and no mapping from their numbers")
    return value


def _refuse_other_order(path: Path, lines: Sequence[str]) -> None:
    """Refuse lines that count their classes in another order than they stand."""
    found = [re.match(r"(\d+)(?:[\s,:;]|$)", line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    whole = len(numbers) == len(lines) and sorted(numbers) == list(range(len(lines)))
    if whole and numbers != sorted(numbers):
        at = next(row for row, number in enumerate(numbers) if number != row)
        raise UsageError(
            f"line {at + 1} of {path} begins with {numbers[at]}, and names class {at} by its "
            "place: put the lines in the order of the classes, or give JSON from number to name"
        )
