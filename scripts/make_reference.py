"""Build the reference of the public names from their docstrings, as HTML.

    python scripts/make_reference.py [--out FOLDER] [--names FILE.toml]

The names are those of docs/reference.toml. Any warning is an error: a name that does not exist, a
docstring that is absent or cannot be laid out.
"""

from __future__ import annotations

import argparse
import inspect
import io
import re
import sys
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from penult.locking import Once

ROOT = Path(__file__).resolve().parents[1]
NAMES = ROOT / "docs" / "reference.toml"
CODE = re.compile(r"`([^`]+)`")


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
        "Written by `make docs` from `docs/reference.toml` and the docstrings; `make docs` also "
        "builds the whole reference as HTML in `build/reference`. A name that is not listed here "
        "may change without notice; one that is keeps working, or works one version longer under "
        "its former name, with a `DeprecationWarning`.",
    ]
    for section in sections():
        rows = ["| name | |", "|---|---|"]
        for name in section.names:
            sentence = first_sentence(own_docstring(find_object(name))).replace("|", "\\|")
            rows.append(f"| `{name}` | {sentence} |")
        parts += [f"## {section.title}", *([section.text] if section.text else []), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def as_rest(text: str) -> str:
    """Plain text with `code` in backticks, as docstrings have it, in reStructuredText."""
    pieces = re.split(r"(`[^`]+`)", text)
    for place, piece in enumerate(pieces):
        if place % 2:
            pieces[place] = f"`{piece}`"
        else:
            pieces[place] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", re.sub(r"([\\*|])", r"\\\1", piece))
    return "".join(pieces)


def write_sources(folder: Path, chosen: list[Section]) -> None:
    """One page per section, and the first page that lists them."""
    index = ["Penult", "======", "", ".. toctree::", "   :maxdepth: 2", ""]
    for section in chosen:
        file = re.sub(r"\W+", "_", section.title.lower())
        index.append(f"   {file}")
        lines = [section.title, "=" * len(section.title), "", as_rest(section.text), ""]
        for name in section.names:
            found = find_object(name)
            kind = "autoclass" if inspect.isclass(found) else "autofunction"
            lines += [f".. {kind}:: {name}", ""]
            if inspect.isclass(found) and not issubclass(found, BaseException):
                lines[-1:] = [f"   :members: {', '.join(members(found))}", ""]
        (folder / f"{file}.rst").write_text("\n".join(lines), "utf-8")
    (folder / "index.rst").write_text("\n".join([*index, ""]), "utf-8")


def _plain_docstring(*event: Any) -> None:
    *_, lines = event  # begun by an empty one: napoleon takes `word: …` of a property for its type
    lines[:] = ["", *as_rest("\n".join(lines)).split("\n")]


def build(out: Path, chosen: list[Section]) -> str:
    """Build the pages; gives the warnings."""
    from sphinx.application import Sphinx

    settings = {
        "project": "Penult",
        "extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon"],
        "autodoc_member_order": "bysource",
        "autodoc_typehints": "signature",
        "autodoc_inherit_docstrings": False,
        "python_maximum_signature_line_length": 90,
        "html_theme_options": {"nosidebar": False, "page_width": "80em"},
        "html_copy_source": False,
        "html_show_sourcelink": False,
        "copyright": "",
        "html_show_copyright": False,
    }
    warnings = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        write_sources(Path(folder), chosen)
        app = Sphinx(
            folder,
            None,
            out,
            Path(folder) / "doctrees",
            "html",
            settings,
            status=None,
            warning=warnings,
            freshenv=True,
        )
        app.connect("autodoc-process-docstring", _plain_docstring, priority=100)
        app.build(force_all=True)
    return warnings.getvalue()


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
    """Build the reference, or say why it cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reference")
    parser.add_argument("--names", type=Path, default=NAMES)
    options = parser.parse_args()
    chosen = sections(options.names)
    try:
        if missing := missing_docstrings(chosen):
            sys.exit(f"no docstring: {', '.join(missing)}")
        if warnings := build(options.out, chosen):
            sys.exit(warnings)
    except LookupError as error:
        sys.exit(f"no such name: {error}")
    print(options.out / "index.html")


if __name__ == "__main__":
    main()
