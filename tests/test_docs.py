"""Documents cannot drift: generated pages are fresh, the README's code runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_docs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_command_is_explained() -> None:
    from typer.main import get_command

    from penult.cli.main import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.help, f"penult {name} has no help"
        for param in command.params:
            assert param.name == "help" or param.help, f"penult {name} {param.name} has no help"
            assert (param.help or ".").endswith("."), f"penult {name} {param.name}: {param.help}"
        assert any("--json" in param.opts for param in command.params), f"penult {name}: no --json"


PAGES = ("README.md", "docs/tour.md")


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
