"""Write what can be written from the code: docs/cli.md, docs/reference.md, and the tree in
docs/architecture.md.

With --check, write nothing and fail if a page is not what it would be.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

import make_reference
from typer.main import get_command

from penult.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree: written by make docs -->", "<!-- end of tree -->"


def cli_page() -> str:
    """Every command with its arguments and options."""
    group = get_command(app)
    parts = [
        "# The command line",
        "Written by `make docs` from the commands themselves.",
        "Every command has `--json`: one JSON document on stdout and nothing else there. Progress "
        "and messages go to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 done "
        "but some items failed, 130 stopped.",
    ]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts.append(f"## penult {name}")
        parts.append(_unwrapped(command.help or ""))
        rows = ["| argument or option | meaning |", "|---|---|"]
        shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
        rows += [f"| {_names(p)} | {_meaning(p)} |" for p in shown]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _unwrapped(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _names(param: object) -> str:
    if param.param_type_name == "argument":  # type: ignore[attr-defined]
        return f"`{param.name.upper()}`"  # type: ignore[attr-defined]
    options = [*param.opts, *param.secondary_opts]  # type: ignore[attr-defined]
    return ", ".join(f"`{option}`" for option in options)


def _meaning(param: object) -> str:
    text = " ".join((param.help or "").split()).replace("|", "\\|")  # type: ignore[attr-defined]
    default = getattr(param, "default", None)
    shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f"{text} Default: `{default}`." if shown else text


def tree() -> str:
    """One line per module: the first sentence of its docstring."""
    lines = ["```"]
    source = ROOT / "src" / "penult"
    for path in sorted(source.rglob("*.py"), key=lambda p: (len(p.relative_to(source).parts), p)):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        sentence = re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".")
        lines.append(f"{path.relative_to(ROOT / 'src')!s:<42} {sentence}")
    return "\n".join([*lines, "```"])


def with_tree(page: str) -> str:
    """A page with its tree up to date."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{tree()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    house = ROOT / "docs" / "architecture.md"
    pages = {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "reference.md": make_reference.page(),
        house: with_tree(house.read_text("utf-8")),
    }
    stale = [
        path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text
    ]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"not up to date: {names}; run make docs")
    for path in stale:
        path.write_text(pages[path], "utf-8")


if __name__ == "__main__":
    main()
