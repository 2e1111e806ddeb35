"""Documents cannot drift: generated pages are fresh, the README's code runs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import penult
from penult import errors

ROOT = Path(__file__).resolve().parents[1]


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, ROOT / "scripts" / script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_generated_pages_are_fresh() -> None:
    done = run_script("make_docs.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = ROOT / "scripts" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_names(reference: ModuleType) -> list[str]:
    return [name for section in reference.sections() for name in section.names]


def test_public_names_are_listed_once(reference: ModuleType) -> None:
    """What `import penult` gives, every error, and the transformer."""
    names = public_names(reference)
    assert len(names) == len(set(names))
    here = {f"penult.{name}" for name in penult.__all__} - {"penult.__version__"}
    raised = {f"penult.errors.{name}" for name, value in vars(errors).items()
              if isinstance(value, type) and issubclass(value, penult.PenultError)}  # fmt: skip
    last = {name.rpartition(".")[2]: name for name in names}
    assert {name for name in here if name.rpartition(".")[2] not in last} == set()
    assert raised <= set(names)
    assert "penult.sklearn.EmbeddingTransformer" in names
    objects = [reference.find_object(name) for name in names]
    assert all(a is not b for i, a in enumerate(objects) for b in objects[:i]), (
        "one thing, two names"
    )
    assert {id(getattr(penult, name.rpartition(".")[2])) for name in here} <= set(map(id, objects))


# Handed through by public objects as they are; their members are no promise.
INTERNAL = {"BatchPolicy", "Graphs", "OpenedItem", "Spot"}


def test_classes_that_public_names_return_are_public(reference: ModuleType) -> None:
    """Read from the annotations of results, properties and fields; class names are unique."""
    source = Path(penult.__file__).parent
    classes = {node.name for path in source.rglob("*.py")
               for node in ast.parse(path.read_text("utf-8")).body
               if isinstance(node, ast.ClassDef)}  # fmt: skip
    names = public_names(reference)
    public = {name.rpartition(".")[2] for name in names} | INTERNAL
    seen = set()

    def check(where: str, annotation: object) -> None:
        text = re.sub(r"\b(pa|np|npt|nn|torch)\.\w+", "", str(annotation))
        found = {word for word in re.findall(r"\w+", text) if word in classes}
        assert found <= public, f"{where}: {sorted(found - public)} is not in docs/reference.toml"
        seen.update(found)

    for name in names:
        owner = reference.find_object(name)
        if not isinstance(owner, type):
            check(name, owner.__annotations__.get("return"))
            continue
        for field, annotation in inspect.get_annotations(owner).items():
            if not field.startswith("_"):
                check(f"{name}.{field}", annotation)
        for member, value in reference.members(owner).items():
            function = value.fget if isinstance(value, property) else value
            function = getattr(function, "__func__", getattr(function, "_compute", function))
            result = getattr(function, "__annotations__", {}).get("return")
            if name != "penult.Embedder" or member != "settle":  # by what a run chose its engine
                check(f"{name}.{member}", result)
    assert len(seen) > 20


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "names.toml"
    file.write_text('[[section]]\ntitle = "Mistakes"\nnames = ["penult.load", "penult.lode"]\n')
    done = run_script("make_reference.py", "--out", tmp_path / "out", "--names", file)
    assert done.returncode == 1 and "no such name: penult.lode" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_without_a_docstring_is_found(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reference.missing_docstrings(reference.sections()) == []
    monkeypatch.setattr(penult.Collection.search, "__doc__", None)
    monkeypatch.setattr(penult.Prediction, "__doc__", "Prediction(id: str)")  # as a dataclass makes
    missing = reference.missing_docstrings(reference.sections())
    assert missing == ["penult.Collection.search", "penult.Prediction"]


def test_every_command_is_explained() -> None:
    from typer.main import get_command

    from penult.cli.main import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.help, f"penult {name} has no help"
        for param in command.params:
            assert param.name == "help" or param.help, f"penult {name} {param.name} has no help"
            assert (param.help or ".").endswith("."), f"penult {name} {param.name}: {param.help}"
        assert any("--json" in param.opts for param in command.params), f"penult {name}: no --json"


SLOW_PAGES = ("docs/uses.md", "docs/choosing.md")  # a grid search, a choice among all readings
PAGES = (
    "README.md",
    "docs/tour.md",
    "docs/classes.md",
    "docs/preprocess.md",
    "docs/explain.md",
    "docs/integrations.md",
    "docs/index.md",
    *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW_PAGES),
)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, in a folder that has the checkout's `src` and nothing else."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    assert blocks
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)


def commands_of(page: Path) -> list[list[str]]:
    """The `penult …` lines of a page's blocks, without what a shell takes for itself."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("penult ")]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda page: page.name)  # fmt: skip
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Each names a command that there is, and options that it has."""
    from typer.main import get_command

    from penult.cli import app

    group: Any = get_command(app)
    known = {o for param in group.params for o in param.opts}
    for words in commands_of(page):
        while words and words[0].startswith("-"):
            assert words[0].partition("=")[0] in known, words
            words = words[1 + ("=" not in words[0]) :]
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        assert words[0] in group.commands, f"{page.name}: penult {words[0]}"
        command = group.commands[words[0]]
        options = {o for param in command.params for o in (*param.opts, *param.secondary_opts)}
        for word in words[1:]:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in options, f"{page.name}: {words[0]} {word}"


def test_every_module_that_a_page_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("<!-- tree")[0]
    named = re.findall(r"`(?!tests|scripts)([a-z_]+/[a-z_/]*(?:\.py)?)`", text)
    assert len(named) > 40
    for name in named:
        assert (ROOT / "src" / "penult" / name).exists(), name


# A file, and groups of entry points: no names of Python.
NO_NAMES = {"penult.json", "penult.loaders", "penult.poolings", "penult.engines"}


def test_every_name_of_python_that_a_page_mentions_is_there() -> None:
    seen = set()
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"(?<![\w.\"-])penult(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")):
            if name not in NO_NAMES:
                try:
                    pkgutil.resolve_name(name)
                except (ImportError, AttributeError) as error:
                    raise AssertionError(f"{page.name}: {name}") from error
                seen.add(name)
    assert len(seen) > 20


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_every_test_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "README.md").read_text("utf-8"))
    assert len(named) >= 12
    for name in named:
        assert (ROOT / name).is_file(), name


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_with_python_is_run() -> None:
    """Here, or by tests/test_extending.py; docs/models by tests/test_recipes.py."""
    pages = {str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
             if "```python" in page.read_text("utf-8")}  # fmt: skip
    run = {"README.md", "docs/tour.md", "docs/classes.md", *SLOW_PAGES, "docs/extending.md"}
    run |= {"docs/preprocess.md", "docs/explain.md", "docs/integrations.md", "docs/index.md"}
    assert pages == run


def test_docstrings_of_public_names_begin_with_a_sentence(reference: ModuleType) -> None:
    """docs/reference.md shows it: the thing itself, and not its first field."""
    for name in public_names(reference):
        text = reference.own_docstring(reference.find_object(name))
        assert not re.match(r"\w+(, \w+)*: ", text), f"{name}: {text[:60]}"
