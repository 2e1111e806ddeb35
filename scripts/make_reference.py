"""The reference of the public names: docs/reference.md, and the pages of the site.

    python scripts/make_reference.py [--out FOLDER] [--names FILE.toml]

Writes the pages that scripts/make_site.py has filled from docstrings. The names are those of
docs/reference.toml; one that does not exist, or has no docstring, is an error.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from penult.locking import Once

ROOT = Path(__file__).resolve().parents[1]
NAMES = ROOT / "docs" / "reference.toml"


class Section(NamedTuple):
    """A part of the reference."""

    title: str
    text: str
    names: list[str]


def sections(file: Path = NAMES) -> list[Section]:
    """The public names, by section."""
    return [
        Section(one["title"], one.get("text", ""), one["names"])
        for one in tomllib.loads(file.read_text("utf-8"))["section"]
    ]


def find_object(name: str) -> Any:
    """What a dotted name leads to: a module's member, where a package may give it lazily.

    Raises:
        LookupError: there is no such name.
    """
    module, _, member = name.rpartition(".")
    try:
        return getattr(import_module(module), member)
    except (ImportError, AttributeError, ValueError) as error:
        raise LookupError(f"{name}: {error}") from error


def own_docstring(found: Any) -> str:
    """The docstring written for a class or function; empty for an inherited or made one."""
    if inspect.isclass(found):
        text = found.__dict__.get("__doc__") or ""
        return "" if text.startswith(f"{found.__name__}(") else inspect.cleandoc(text)  # dataclass
    return inspect.cleandoc(found.__doc__ or "") if inspect.isroutine(found) else ""


def members(found: type) -> dict[str, Any]:
    """The public methods and properties of a class that Penult wrote, its bases' included."""
    ours = [base for base in found.__mro__ if base.__module__.startswith("penult")]
    named = {name: value for base in reversed(ours) for name, value in vars(base).items()}
    kinds = (property, classmethod, staticmethod, Once)
    return {
        name: value
        for name, value in named.items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def first_sentence(text: str) -> str:
    """The first sentence of a docstring's first paragraph, or all of it up to a colon's list."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def page() -> str:
    """docs/reference.md: every public name in one line."""
    parts = [
        "# Public names",
        "Written by `make docs` from `docs/reference.toml` and the docstrings; `make site` "
        "builds the whole reference, with members and signatures, as part of the site. A name "
        "that is not listed here may change without notice; one that is keeps working, or works "
        "one version longer under its former name, with a `DeprecationWarning`.",
    ]
    for section in sections():
        rows = ["| name | |", "|---|---|"]
        for name in section.names:
            sentence = first_sentence(own_docstring(find_object(name))).replace("|", "\\|")
            rows.append(f"| `{name}` | {sentence} |")
        parts += [f"## {section.title}", *([section.text] if section.text else []), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def pages(chosen: list[Section] | None = None) -> dict[str, str]:
    """One page of the whole reference for each section: file → what mkdocstrings makes it of."""
    found = {}
    for section in chosen if chosen is not None else sections():
        text = re.sub(r"\]\((?!\w+:)", "](../", section.text)  # these pages lie in a folder
        parts = [f"# {section.title}", text] if text else [f"# {section.title}"]
        for name in section.names:
            one = find_object(name)
            shown = list(members(one)) if _has_members(one) else []
            options = {
                "heading": name,
                "toc_label": name.rpartition(".")[2],
                "members": shown or False,
                "inherited_members": bool(shown),
            }
            place = f"{one.__module__}.{one.__qualname__}"
            parts.append(f"::: {place}\n    options: {json.dumps(options)}")
        file = re.sub(r"\W+", "-", section.title.lower())
        found[f"{file}.md"] = "\n\n".join(parts) + "\n"
    return found


def _has_members(found: Any) -> bool:
    return inspect.isclass(found) and not issubclass(found, BaseException)


def missing_docstrings(chosen: list[Section]) -> list[str]:
    """Public names, and members of public classes, that have no docstring of their own."""
    missing = []
    for name in (name for section in chosen for name in section.names):
        found = find_object(name)
        if not own_docstring(found):
            missing.append(name)
        for member, value in members(found).items() if inspect.isclass(found) else ():
            if not (getattr(value, "__doc__", None) or "").strip():
                missing.append(f"{name}.{member}")
    return missing


def main() -> None:
    """Write the pages, or say why they cannot be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reference")
    parser.add_argument("--names", type=Path, default=NAMES)
    options = parser.parse_args()
    try:
        chosen = sections(options.names)
        if missing := missing_docstrings(chosen):
            sys.exit(f"no docstring: {', '.join(missing)}")
        written = pages(chosen)
    except LookupError as error:
        sys.exit(f"no such name: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for file, text in written.items():
        (options.out / file).write_text(text, "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
