"""Make small random changes in the core modules, and see whether their tests notice.

    python scripts/mutants.py [--modules NAME …] [--count N] [--seed N] [--jobs N] [--json]

A mutant is one change: an operator, a comparison, a constant, a short text, a condition turned
round, a sign or a `not` dropped. Each is made in a copy of `src` and `tests`, never in the working
tree, and the tests about its module (MODULES) run until the first that fails. A mutant is noticed
if one does, or if they run far longer than without it. The same seed gives the same mutants.

Libraries that do this (mutmut, cosmic-ray) go through every mutant of a module; a fixed random
sample per module, each against the tests about it, is what a night has time for.

Survivors that may live stand in `scripts/mutants_kept.toml`, each with the reason, and do not
count. Prints the survivors of each module as diffs; exit 1 where less than 90 % were noticed,
2 where the table below does not fit the tree.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "scripts" / "mutants_kept.toml"
BAR = 0.9
MEMORY = 12 << 30  # bytes of data that a run may have: a mutant may never end

# Each module and the tests about it, the quickest first.
CUTS = "tests/test_cut_values.py tests/test_splitting.py"
TAUGHT = "tests/test_calibration.py tests/test_classes.py"
WEIGHTS = (
    "tests/test_checkpoints.py "
    "tests/test_model_files.py::test_exported_programs_that_would_run_code "
    "tests/test_model_files.py::test_scripts_that_write_files_are_not_loaded"
)
MODULES = {
    "pooling": ("penult.engines.pooling", "tests/test_pooling.py"),
    "batching": ("penult.engines.batching", "tests/test_planner.py tests/test_padding.py"),
    "batch policy": ("penult.engines.batch_policy", "tests/test_batch_policy.py"),
    "space": ("penult.analysis.space", "tests/test_space.py tests/test_space_values.py"),
    "calibration": ("penult.fewshot.calibration", TAUGHT),
    "checkpoints": ("penult.models.checkpoints", WEIGHTS),
    "weight_files": ("penult.models.weight_files", WEIGHTS),
    "regions": ("penult.data.regions", "tests/test_windows.py tests/test_regions.py"),
    "windows": ("penult.data.windows", "tests/test_windows.py tests/test_layout.py"),
    "head": ("penult.tracing.head", CUTS),
    "boundary": ("penult.tracing.boundary", CUTS),
    "cut": ("penult.tracing.cut", CUTS),
    "proof": ("penult.tracing.proof", CUTS),
    "certificate": ("penult.tracing.certificate", CUTS),
}  # fmt: skip
# Imported once; every run is forked from here.
PRELOADED = (
    "hypothesis numpy pandas PIL.Image pytest scipy.optimize scipy.stats sklearn.covariance "
    "soundfile torch torch.utils._python_dispatch transformers"
).split()

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
             ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
             ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult, ast.And: ast.Or,
             ast.Or: ast.And}  # fmt: skip
COMPARISONS = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
               ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
               ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
               ast.NotIn: (ast.In,)}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module's text with one change in it; `before` and `after` are the lines that differ."""

    module: str
    path: str
    text: str
    before: str
    after: str
    diff: str


def changed(node: ast.AST) -> Iterator[ast.expr]:
    """What may stand in a node's place."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        other = copy.copy(node)
        other.op = OPERATORS[type(node.op)]()
        yield other
    elif isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            for kind in COMPARISONS[type(op)]:
                other = copy.copy(node)
                other.ops = [*node.ops[:at], kind(), *node.ops[at + 1 :]]
                yield other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield ast.Constant(not value)
        elif isinstance(value, int | float):
            yield ast.Constant(value + 1 if isinstance(value, int) else value * 2 + (value == 0))
        elif isinstance(value, str) and 0 < len(value) <= 20:
            yield ast.Constant(value + "x")


def places(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a module that run: no annotation, decorator, docstring or message."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.Assign) and getattr(child.targets[0], "id", "") == "__all__":
                continue
            yield child
            yield from places(child)


def mutants_of(module: str, path: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its text."""
    data, lines = source.encode(), source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node in places(ast.parse(source)):
        options = list(changed(node))
        turned = [getattr(node, "test", None), *getattr(node, "ifs", [])]
        spots = [(node, option) for option in options]
        spots += [(test, ast.UnaryOp(ast.Not(), test)) for test in turned
                  if test is not None and not isinstance(test, ast.Compare | ast.UnaryOp)
                  and not isinstance(node, ast.Assert)]  # fmt: skip
        for spot, option in spots:
            first = starts[spot.lineno - 1] + spot.col_offset
            last = starts[spot.end_lineno - 1] + spot.end_col_offset
            inner = ast.unparse(option)
            inner = inner if isinstance(option, ast.Constant | ast.Name) else f"({inner})"
            text = (data[:first] + inner.encode() + data[last:]).decode()
            diff = list(difflib.unified_diff(source.splitlines(), text.splitlines(), path, path,
                                             lineterm="", n=0))  # fmt: skip
            before, after = (" ".join(line[1:].strip() for line in diff[2:] if line[0] == sign)
                             for sign in "-+")  # fmt: skip
            found.append(Mutant(module, path, text, before, after, "\n".join(diff)))
    return found


def run_tests(folder: Path, tests: list[str]) -> None:
    """In a process of its own: the tests of a copy, on its sources. Exits as pytest does."""
    os.setsid()
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path[:0] = [str(folder / "src"), str(folder / "tests")]
    os.environ["PYTHONPATH"] = str(folder / "src")
    import pytest

    found = importlib.util.find_spec("penult")
    assert found and found.origin and found.origin.startswith(str(folder)), found
    code = pytest.main(["-x", "-q", "--strict-markers", "-m", "not slow", "-p", "no:xdist",
                        "-p", "no:cacheprovider", "--hypothesis-seed=0", "-o", "addopts=",
                        "-W", "ignore::DeprecationWarning", *tests])  # fmt: skip
    os.write(1, f"\nexit {int(code)}\n".encode())
    os._exit(int(code))


class Slot:
    """A copy of the tree, in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hidden = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests", "scripts", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=hidden)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self, path: str, text: str, tests: str, limit: float) -> None:
        """Put a module's text there and run the tests about it."""
        target = self.folder / path
        self.original = target, target.read_text()
        self.put(target, text)
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=run_tests, args=(self.folder, tests.split()))
        self.process.start()
        self.began, self.limit = time.monotonic(), limit

    @staticmethod
    def put(target: Path, text: str) -> None:
        """Write a module, and forget how it was compiled: same size and second look the same."""
        target.write_text(text)
        Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)

    def finished(self) -> tuple[int, float] | None:
        """(pytest's code, or -9 where it ran too long or out of memory; seconds); None: it runs."""
        assert self.process is not None and self.process.pid is not None
        seconds = time.monotonic() - self.began
        if self.process.is_alive() and seconds < self.limit:
            return None
        with suppress(ProcessLookupError):  # with whatever the tests have started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        code = self.process.exitcode
        self.put(*self.original)
        self.process = None
        return (-9 if code is None else code), seconds


def tried(slots: list[Slot], work: list[tuple[str, str, str, float]]) -> list[tuple[int, float]]:
    """Run (path, text, tests, limit) in slots side by side; for each, its code and seconds. On
    stderr, a dot for each that fails and S for each that passes."""
    results: dict[int, tuple[int, float]] = {}
    pending, running = list(enumerate(work)), dict[int, Slot]()
    while pending or running:
        free = [slot for slot in slots if slot.process is None]
        while free and pending:
            number, one = pending.pop(0)
            running[number] = free.pop()
            running[number].start(*one)
        for number, slot in list(running.items()):
            if (result := slot.finished()) is not None:
                results[number] = result
                del running[number]
                sys.stderr.write("." if result[0] else "S")
                sys.stderr.flush()
        time.sleep(0.05)
    sys.stderr.write("\n")
    return [results[number] for number in range(len(work))]


def path_of(name: str) -> str:
    """Where a module of the table stands, from the root of the project."""
    return f"src/{MODULES[name][0].replace('.', '/')}.py"


def checked(names: list[str]) -> dict[str, str]:
    """The text of each module. Exits with a sentence where the table does not fit the tree."""
    unknown = sorted(set(names) - set(MODULES))
    if unknown:
        sys.exit(f"no module {', '.join(unknown)} in the table; it has {', '.join(MODULES)}")
    for name in names:
        for named in (path_of(name), *MODULES[name][1].split()):
            file = named.partition("::")[0]
            if not (ROOT / file).is_file():
                print(f"{name}: there is no {file}; where it was moved or renamed, change the "
                      "table MODULES in scripts/mutants.py", file=sys.stderr)  # fmt: skip
                sys.exit(2)
    return {name: (ROOT / path_of(name)).read_text() for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description="See whether the tests notice small changes.")
    parser.add_argument("--modules", nargs="+", default=list(MODULES), metavar="NAME")
    parser.add_argument("--count", type=int, default=10, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sources = checked(options.modules)
    listed = tomllib.loads(KEPT.read_text()).get("kept", []) if KEPT.exists() else []
    kept = {(one["module"], one["before"], one["after"]): one["why"] for one in listed}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("CI", None)  # real data is not copied, and tests that want it skip
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    chosen: list[Mutant] = []
    for name, source in sources.items():
        options_of = mutants_of(name, path_of(name), source)
        picked = random.Random(f"{options.seed} {name}").sample(
            range(len(options_of)), min(options.count, len(options_of)))  # fmt: skip
        chosen += [options_of[number] for number in sorted(picked)]
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        slots = [Slot(Path(folder).resolve() / str(n)) for n in range(options.jobs)]
        plain = {MODULES[name][1]: (path_of(name), sources[name]) for name in sources}
        usual = tried(slots, [(*one, tests, 1200.0) for tests, one in plain.items()])
        for tests, (code, _) in zip(plain, usual, strict=True):
            if code:
                print(f"{tests} fail (exit {code}) without any change", file=sys.stderr)
                return 2
        limits = {tests: 30 + 4 * seconds
                  for tests, (_, seconds) in zip(plain, usual, strict=True)}  # fmt: skip
        work = [(m.path, m.text, MODULES[m.module][1], limits[MODULES[m.module][1]])
                for m in chosen]  # fmt: skip
        results = tried(slots, work)
    return report(chosen, [code for code, _ in results], kept, options)


def report(
    chosen: list[Mutant], codes: list[int], kept: dict[tuple[str, str, str], str],
    options: argparse.Namespace,
) -> int:  # fmt: skip
    """Print what came of them; the exit code."""
    rows = []
    for name in options.modules:
        mine = [(m, code) for m, code in zip(chosen, codes, strict=True) if m.module == name]
        living = [m for m, code in mine if code == 0]
        known = [m for m in living if (m.module, m.before, m.after) in kept]
        rows.append({"module": name, "tried": len(mine), "noticed": len(mine) - len(living),
                     "kept": len(known), "survivors": [m.diff for m in living if m not in known],
                     "reasons": [kept[m.module, m.before, m.after] for m in known]})  # fmt: skip
    counted = sum(row["tried"] - row["kept"] for row in rows)
    noticed = sum(row["noticed"] for row in rows)
    share = noticed / counted if counted else 1.0
    if options.json:
        print(json.dumps({"seed": options.seed, "count": options.count, "share": share,
                          "modules": rows}, indent=2))  # fmt: skip
    else:
        for row in rows:
            print("\n".join([f"{row['module']}: {row['noticed']} of {row['tried']} noticed, "
                             f"{row['kept']} may live", *row["survivors"]]))  # fmt: skip
        print(f"all: {noticed} of {counted} noticed ({share:.0%}); {BAR:.0%} are asked for")
    return int(share < BAR)


if __name__ == "__main__":
    sys.exit(main())
