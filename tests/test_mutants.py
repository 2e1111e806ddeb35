"""`scripts/mutants.py`: what it changes, that its table and its list of survivors fit the tree."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


SOURCE = '''"""A docstring that stays."""
LIMIT: int = 3  # and an annotation

def scaled(values: list[int], sign: str = "up") -> float | None:
    """Another."""
    if not values or len(values) >= LIMIT:
        raise ValueError(f"{len(values) + 1} are too many")
    return -sum(v * 2 for v in values if v is not None) if sign == "up" else 0.5
'''


def test_each_change_is_one_and_runs(mutants: ModuleType) -> None:
    found = [(one.before, one.after) for one in mutants.mutants_of("m", "m.py", SOURCE)]
    assert len(found) == len(set(found))
    lines = {after for _, after in found}
    for after in (
        "LIMIT: int = 4  # and an annotation",
        "def scaled(values: list[int], sign: str = 'upx') -> float | None:",
        "if (not values and len(values) >= LIMIT):",
        "if values or len(values) >= LIMIT:",
        "if not values or (len(values) > LIMIT):",
        "if not values or (len(values) < LIMIT):",
        "if (not (not values or len(values) >= LIMIT)):",
        'return (sum((v * 2 for v in values if v is not None))) if sign == "up" else 0.5',
        'return -sum((v / 2) for v in values if v is not None) if sign == "up" else 0.5',
        'return -sum(v * 3 for v in values if v is not None) if sign == "up" else 0.5',
        'return -sum(v * 2 for v in values if (v is None)) if sign == "up" else 0.5',
        "return -sum(v * 2 for v in values if v is not None) if (sign != 'up') else 0.5",
        'return -sum(v * 2 for v in values if v is not None) if sign == "up" else 1.0',
    ):
        assert after in lines, (after, lines)
    for one in mutants.mutants_of("m", "m.py", SOURCE):
        ast.parse(one.text)
        assert "stays." in one.text and "Another." in one.text and "+ 1} are" in one.text
        assert one.text.replace(one.after, one.before) != one.text


def test_the_table_fits_the_tree(mutants: ModuleType) -> None:
    assert set(mutants.checked(list(mutants.MODULES))) == set(mutants.MODULES)


def test_survivors_that_may_live_are_still_possible(mutants: ModuleType) -> None:
    kept = tomllib.loads(mutants.KEPT.read_text())["kept"]
    for one in kept:
        (source,) = mutants.checked([one["module"]]).values()
        possible = mutants.mutants_of(one["module"], "", source)
        assert (one["before"], one["after"]) in [(m.before, m.after) for m in possible], one
        assert len(one["why"].split()) > 4


def test_a_module_that_is_not_there(
    mutants: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mutants.MODULES, "moved", ("penult.no.such", "tests/test_space.py"))
    with pytest.raises(SystemExit) as ended:
        mutants.checked(["moved"])
    assert ended.value.code == 2
    assert "moved: there is no src/penult/no/such.py; " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no module nowhere in the table; it has pooling, "):
        mutants.checked(["nowhere"])


@pytest.mark.slow
def test_two_mutants_of_pooling(mutants: ModuleType) -> None:
    """The working tree stays as it is, and the figures add up."""
    module = ROOT / mutants.path_of("pooling")
    before = module.read_bytes()
    command = [
        sys.executable,
        "scripts/mutants.py",
        "--modules",
        "pooling",
        "--count",
        "2",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (row,) = json.loads(done.stdout)["modules"]
    assert row["tried"] == 2 == row["noticed"] + len(row["survivors"]) + row["kept"]
    assert module.read_bytes() == before
