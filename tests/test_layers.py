"""The shape of the code: imports point down, every module says what it is, starting stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import penult

SOURCE = Path(penult.__file__).parent
# In this order data flows; a package imports from those above it, never from those below.
LAYERS = (
    ("base", ("import_path", "errors", "extras", "locking", "memory")),
    ("values", ("data",)),
    ("cut", ("tracing",)),
    ("classifier", ("models",)),
    ("numbers", ("analysis",)),
    ("engines", ("engines",)),
    ("pictures", ("viz",)),
    ("embed", ("embedding",)),
    ("store", ("collection",)),
    ("classes", ("fewshot",)),
    ("hub", ("publishing",)),
    ("api", ("api", "selection", "__init__")),
    ("bridges", ("integrations", "sklearn")),
    ("formats", ("conversion",)),
    ("faces", ("server", "explorer", "cli", "__main__")),
)
LEVEL = {name: level for level, name in enumerate(n for _, names in LAYERS for n in names)}
MODULES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of penult that a module imports from, at its top or later."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "penult":
                names |= {f"penult.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("penult.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    assert room(path) in LEVEL, f"{room(path)} has no layer: add it to the table"
    if path == SOURCE / "__init__.py":
        return  # it names homes as text, and imports them when asked
    for other in imports(path) & LEVEL.keys():
        assert LEVEL[other] <= LEVEL[room(path)], f"{path.name} imports up from {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{path} has no docstring"


def test_public_names() -> None:
    assert penult.__all__ == sorted(penult.__all__)
    for name in penult.__all__:
        assert getattr(penult, name) is not None
    with pytest.raises(AttributeError):
        _ = penult.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", ["import penult", "from penult.cli import run; run(['--help'])"])
def test_starting_loads_nothing_heavy(code: str) -> None:
    script = f"{code}\nimport sys\nprint('|'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.strip().splitlines()[-1].split("|")}
    heavy = {"torch", "transformers", "lancedb", "pyarrow", "sklearn", "matplotlib", "soundfile"}
    assert not loaded & heavy


def names_used(path: Path) -> set[str]:
    """Top packages that a module imports, lazily or not, and the functions that it calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
    return found


def test_pictures_print_nothing_and_the_command_line_draws_nothing() -> None:
    pictures = {path.name: names_used(path) for path in (SOURCE / "viz").glob("*.py")}
    commands = {path.name: names_used(path) for path in (SOURCE / "cli").glob("*.py")}
    assert any("matplotlib" in names for names in pictures.values())
    for module, names in pictures.items():
        assert not names & {"print", "typer", "rich", "logging"}, module
    for module, names in commands.items():
        assert not names & {"matplotlib", "html", "base64"}, module
        assert module in ("main.py", "output.py") or "print" not in names, module
