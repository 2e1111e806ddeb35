"""Print the structure of the code, and fail where it is over a bound.

    python scripts/structure.py [--walk] [--verbose] [--json] [--src FOLDER]

Circles: every `import` and `from` of a file is an edge, at its top, inside of a function or under
`if TYPE_CHECKING`. `from a.b import c` leads to the module a.b.c if there is one, else to a.b.
Modules named in text (the lazy table in `penult/__init__.py`, `import_module`) are no imports.

Chain: modules are collapsed to what stands directly under the root package, whose own `__init__` is
left out. A chain's length is the number of packages (folders) on it. A single module such as
`errors` counts nothing, but a chain may lead through it. Packages that import each other in a
circle are one step of a chain, and all count.

Classes: `Kept` and `_Kept` are one name. Members are methods, properties, attributes and fields of
the class and of its bases here, and what `__init__` sets on self.

Functions: the median is of whole functions, from `def` to the end; a body begins at the first
statement, the docstring. Nested ones count for themselves and in the one around them. Every name in
a signature is a parameter, but for a method's self or cls. Lambdas have no length.

Walk: embed one bundled clip, search for it, and search for another that is no row, through the
command's entry point, in one process (what is cached by then does not run again), with a profile on
every thread. A function is a `def` or `lambda` of the package that ran, however often; a
comprehension belongs to the function around it. Bodies of modules and classes do not count, nor
what runs while a module of the package is imported, nor code made at run time (a dataclass's
`__init__`). A switch is a call, or a generator going on, in another file than the nearest frame of
the package below it. A decode is an opening of the clip by soundfile or another program, a read one
by Python's `open` (hashing, sizes). A recorded pass is an entry into a class that derives directly
from TorchDispatchMode.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
FILES = 369
CHAIN = 9
MEMBERS, MEMBERS_OF_MAIN, MAIN = 17, 20, {"ClassPrediction", "ClassSpace", "Collection", "Embedder"}
# What head, proof and taps ask of a file's graph, whichever runtime holds it: to be parted.
MEMBERS_OF_GRAPHS, GRAPHS = 35, {"Graph", "OnnxGraph", "TfliteGraph"}
# A path, which has the members of `pathlib.Path` that the package uses.
MEMBERS_OF_PATHS, PATHS = 36, {"ObjectPath"}
MEDIAN, BODY, PARAMETERS, COMMAND_LINE = 9, 60, 8, "cli"
Bounds = tuple[int, int, int | None, int | None]  # functions, modules, decodes, recorded passes
EMBED: Bounds = (300, 45, 2, 4)
SEARCH: Bounds = (150, 30, None, None)

# Names that told a stranger nothing (HOUSE.md, table B): no module may come back here. Modules may
# still be called selection, tables, examples and quiet.
OLD_PATHS = """
    batches: filling
    choosing: deciding freely judging material
    classifiers: asked fitting preparing
    classspace: asking byname fitting gathering keeping origin teaching verifying
    cli: architecture graphs grouping mappage opened said tour upkeep
    embedding: artefact asked fleet headrows inspection opening proving settling waiting
    engines: converting exported graphs law ways
    ingesting: rows steps
    measuring: measures trials
    media: streams tape
    sources: annotated layout naming tabular
    splitting: asking deciding delivery fitting moving operations passes program reading running
    splitting: statements variants
    store: adding clustered describing folder gone labelled mapped marking nearest newness placed
    store: querying scanning sides taking
    teaching: classes classfile spooled taught
    uses: diffusion joining probefiles probing
"""

Graph = dict[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Check:
    """A figure and its bound, None where it is only printed; found: what it is made of."""

    what: str
    value: float
    bound: int | None = None
    found: list[str] = field(default_factory=list)
    terse: bool = False  # what it is made of is printed on request only

    @property
    def ok(self) -> bool:
        """Whether the figure is within its bound."""
        return self.bound is None or self.value <= self.bound

    def line(self) -> str:
        """What, value, bound, verdict."""
        bound = "" if self.bound is None else f"≤ {self.bound}"
        verdict = "" if self.bound is None else "ok" if self.ok else "over"
        return f"{self.what:<58}{self.value:>8g}  {bound:<6}{verdict}".rstrip()


@dataclass
class Module:
    """A parsed file; name: dotted, a package's own for its `__init__`."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """What relative imports start from."""
        inside = self.path.stem == "__init__"
        return self.name if inside else self.name.rpartition(".")[0]

    @property
    def short(self) -> str:
        """The name below the root package."""
        return self.name.partition(".")[2] or self.name


class Class(NamedTuple):
    """A class, and the module that it stands in."""

    module: Module
    node: ast.ClassDef


def read(src: Path) -> dict[str, Module]:
    """Every module below a source folder, by dotted name."""
    modules = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return modules


def imported(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules that one imports, anywhere in its file."""
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, module)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else base for name in names}
    return (found & modules.keys()) - {module.name}


def base_of(node: ast.ImportFrom, module: Module) -> str:
    """The absolute name that stands between `from` and `import`."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one member, largest first."""
    reach = {node: reachable(graph, node) for node in graph}
    found = {frozenset(o for o in reach[node] if node in reach[o]) for node in graph}
    return sorted((sorted(circle) for circle in found if len(circle) > 1), key=len, reverse=True)


def reachable(graph: Graph, start: str) -> set[str]:
    """The nodes that some path of one edge or more leads to."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        new = graph.get(pending.pop(), set()) - seen
        seen |= new
        pending += new
    return seen


def rooms(modules: dict[str, Module]) -> Graph:
    """Modules collapsed to what stands directly under the root, which is left out itself."""
    graph: Graph = {}
    for module in modules.values():
        here = room(module.name)
        others = {room(name) for name in imported(module, modules)}
        graph.setdefault(here, set()).update(others - {here, ""})
    graph.pop("", None)
    return graph


def room(name: str) -> str:
    """The part of a dotted name below the root, empty for the root."""
    return [*name.split("."), ""][1]


def folders(modules: dict[str, Module]) -> set[str]:
    """The rooms that are packages."""
    return {room(m.name) for m in modules.values() if "." in m.package} - {""}


def longest_chain(graph: Graph, counted: set[str]) -> list[list[str]]:
    """The path with most counted rooms on it; each step is a room, or a circle of rooms."""
    home: dict[str, tuple[str, ...]] = {node: (node,) for node in graph}
    home |= {node: tuple(circle) for circle in circles(graph) for node in circle}

    @cache
    def best(step: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        onward = {home[other] for node in step for other in graph[node]} - {step}
        return (step, *max((best(s) for s in sorted(onward)), key=length, default=()))

    def length(chain: tuple[tuple[str, ...], ...]) -> int:
        return sum(node in counted for step in chain for node in step)

    chain = max((best(step) for step in sorted(home.values())), key=length, default=())
    return [named for step in chain if (named := [node for node in step if node in counted])]


def classes(modules: dict[str, Module]) -> list[Class]:
    """Every class, nested ones included."""
    return [
        Class(module, node)
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]


def duplicates(found: list[Class]) -> dict[str, list[str]]:
    """The class names that stand in more than one module, and those modules."""
    homes: dict[str, set[str]] = {}
    for one in found:
        homes.setdefault(one.node.name.lstrip("_"), set()).add(one.module.short)
    return {name: sorted(where) for name, where in sorted(homes.items()) if len(where) > 1}


def base_names(node: ast.ClassDef) -> list[str]:
    """The bases as they are written, `B` or `module.B`, without what stands in brackets."""
    return [ast.unparse(base).partition("[")[0] for base in node.bases]


def base_classes(one: Class, found: list[Class]) -> Iterator[Class]:
    """The bases of a class that stand in the source, by its module's names and imports."""
    home = one.module.name
    sources = {
        alias.asname or alias.name: (base_of(node, one.module), alias.name)
        for node in ast.walk(one.module.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for written in base_names(one.node):
        place, _, name = written.rpartition(".")
        if place:
            origin = ".".join(sources.get(place, (place,)))
        else:
            origin, name = sources.get(name, (home, name))
        if origin.partition(".")[0] == home.partition(".")[0]:
            alike = [other for other in found if other.node.name == name and other is not one]
            exact = [other for other in alike if other.module.name == origin]
            yield from exact[:1] or (alike if len(alike) == 1 else [])  # it may be handed on


def members(one: Class, found: list[Class]) -> set[str]:
    """Public members of a class, inherited ones included."""
    names = set(own_members(one.node))
    for base in base_classes(one, found):
        names |= members(base, found)
    return {name for name in names if not name.startswith("_")}


def own_members(node: ast.ClassDef) -> Iterator[str]:
    """Methods, attributes and fields of a class's body, and what `__init__` sets on self."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield item.name
        elif isinstance(item, ast.Assign | ast.AnnAssign):
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            stored = [name for target in targets for name in ast.walk(target)]
            yield from (name.id for name in stored if isinstance(name, ast.Name))
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            yield from set_on_self(item)


def set_on_self(function: ast.FunctionDef) -> Iterator[str]:
    """The attributes that a method sets on its first parameter."""
    own = [*function.args.posonlyargs, *function.args.args][0].arg
    for node in ast.walk(function):
        match node:
            case ast.Attribute(ast.Name(name), attribute, ast.Store()) if name == own:
                yield attribute


def functions(
    node: ast.AST, prefix: str = "", in_class: bool = False
) -> Iterator[tuple[str, Function, bool]]:
    """Every function below a node: its qualified name, and whether it is a class's own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child, in_class
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.", True)
        else:
            yield from functions(child, prefix, in_class)


def parameters(function: Function, in_class: bool) -> int:
    """How many parameters a caller sees."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    static = "staticmethod" in map(ast.unparse, function.decorator_list)
    return sum(arg is not None for arg in named) - (in_class and not static)


def quick(src: Path) -> list[Check]:
    """Everything that is read off the source without running it."""
    modules = read(src)
    checks = (check_imports, check_paths, check_classes, check_functions)
    return [one for check in checks for one in check(modules)]


def check_imports(modules: dict[str, Module]) -> list[Check]:
    """Circles of modules, and the longest chain of packages."""
    graph = {name: imported(module, modules) for name, module in modules.items()}
    found = [f"{len(circle)}: {', '.join(circle)}" for circle in circles(graph)]
    between, packages = rooms(modules), folders(modules)
    chain = longest_chain(between, packages)
    steps = [step[0] if len(step) == 1 else f"({' ⇄ '.join(step)})" for step in chain]
    loops = [", ".join(circle) for circle in circles(between)]
    return [
        Check("circles of modules", len(found), 0, found),
        Check("longest chain of packages", sum(map(len, chain)), CHAIN, [" → ".join(steps)]),
        Check("circles of packages and top modules", len(loops), None, loops),
    ]


def check_paths(modules: dict[str, Module]) -> list[Check]:
    """The number of files and of lines, and old names among the modules."""
    rows = [row.partition(": ") for row in OLD_PATHS.split("\n")]
    old = {f"{folder.strip()}.{name}" for folder, _, names in rows for name in names.split()}
    left = sorted({m.short for m in modules.values()} & old)
    largest = sorted(modules.values(), key=lambda m: -m.lines)[:10]
    sizes = [f"{m.lines}  {m.short}" for m in largest]
    return [
        Check("files", len(modules), FILES),
        Check("modules under an old path", len(left), 0, left),
        Check("lines", sum(m.lines for m in modules.values()), None, sizes),
    ]


def check_classes(modules: dict[str, Module]) -> list[Check]:
    """Names that stand twice, and public classes with too many members."""
    found = classes(modules)
    twice = [f"{name}: {', '.join(where)}" for name, where in duplicates(found).items()]
    public = [one for one in found if not one.node.name.startswith("_")]
    sizes = [(len(members(one, found)), f"{one.module.short}.{one.node.name}") for one in public]
    main = [size for size in sizes if size[1].rpartition(".")[2] in MAIN]
    graphs = [size for size in sizes if size[1].rpartition(".")[2] in GRAPHS]
    paths = [size for size in sizes if size[1].rpartition(".")[2] in PATHS]
    rest = [size for size in sizes if size not in (*main, *graphs, *paths)]
    return [
        Check("class names in two modules", len(twice), 0, twice),
        most("public members of a class", rest, MEMBERS),
        most(f"public members of {', '.join(sorted(MAIN))}", main, MEMBERS_OF_MAIN),
        most(f"public members of {', '.join(sorted(GRAPHS))}", graphs, MEMBERS_OF_GRAPHS),
        most(f"public members of {', '.join(sorted(PATHS))}", paths, MEMBERS_OF_PATHS),
    ]


def check_functions(modules: dict[str, Module]) -> list[Check]:
    """Lengths and parameters."""
    whole, bodies, takes = [], [], []
    for module in modules.values():
        for name, node, in_class in functions(module.tree):
            where = f"{module.short}:{name}"
            whole.append((node.end_lineno or 0) - node.lineno + 1)
            bodies.append(((node.end_lineno or 0) - node.body[0].lineno + 1, where))
            if room(module.name) != COMMAND_LINE:
                takes.append((parameters(node, in_class), where))
    return [
        Check("functions", len(whole)),
        Check("median lines of a function", statistics.median(whole or [0]), MEDIAN),
        most("lines of a function's body", bodies, BODY),
        most("parameters, outside of the command line", takes, PARAMETERS),
    ]


def most(what: str, sizes: list[tuple[int, str]], bound: int) -> Check:
    """The largest of some named figures, and all that are over the bound."""
    over = [f"{size}  {name}" for size, name in sorted(sizes, reverse=True) if size > bound]
    return Check(f"most {what}", max(sizes, default=(0, ""))[0], bound, over)


class Profile:
    """Which functions of a package run, on all threads, and how often the file changes."""

    def __init__(self, src: Path) -> None:
        self.root = f"{src}{os.sep}"
        self.visited: dict[str, dict[int, CodeType]] = {}  # file → id → code, in order of visit
        self.switches: Counter[int] = Counter()  # by thread, which alone counts its own

    @property
    def count(self) -> int:
        """Distinct functions that ran."""
        return sum(map(len, self.visited.values()))

    def route(self) -> list[str]:
        """How many functions of each file ran, in the order of first visits."""
        rows = self.visited.items()
        return [f"{len(codes):>3}  {file.removeprefix(self.root)}" for file, codes in rows]

    def __enter__(self) -> Profile:
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self.root):
            return
        below = self._below(frame)
        if below is None or not code.co_flags & 1:  # no CO_OPTIMIZED: a module's or class's body
            return
        if code.co_name[0] != "<" or code.co_name == "<lambda>":
            self.visited.setdefault(code.co_filename, {})[id(code)] = code
        if below not in ("", code.co_filename):
            self.switches[threading.get_ident()] += 1

    def _below(self, frame: FrameType) -> str | None:
        """The file of the package that called, empty if none; None while a module is imported."""
        caller, nearest = frame.f_back, ""
        while caller is not None:
            code = caller.f_code
            if code.co_filename.startswith(self.root):
                if code.co_name == "<module>":
                    return None
                nearest = nearest or code.co_filename
            caller = caller.f_back
        return nearest


@contextlib.contextmanager
def openings(path: Path) -> Iterator[Counter[str]]:
    """How often a file is read by Python, and decoded: by soundfile (any input) or a program."""
    import soundfile

    counts, live = Counter[str](), [True]

    def is_it(value: Any) -> bool:
        return isinstance(value, str | bytes | os.PathLike) and os.fsdecode(value) == str(path)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if live and event == "open":
            counts["read"] += is_it(args[0])
        elif live and event == "subprocess.Popen":
            counts["decode"] += any(map(is_it, args[1]))

    sys.addaudithook(audit)
    opened: Counter[str] = Counter()
    with counting(soundfile.SoundFile, "__init__", opened):
        yield counts
    counts["decode"] += opened.total()
    live.clear()  # a hook stays for good


def counting(
    owner: type, method: str, counts: Counter[str]
) -> contextlib.AbstractContextManager[Any]:
    """Count the calls of a method for a while, by the name of the object's class."""
    original = getattr(owner, method)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts[type(self).__name__] += 1
        return original(self, *args, **kwargs)

    return patch.object(owner, method, counted)


def recorders(modules: dict[str, Module]) -> list[type]:
    """The package's classes that derive directly from TorchDispatchMode, imported."""
    return [
        getattr(importlib.import_module(one.module.name), one.node.name)
        for one in classes(modules)
        if any(name.endswith("TorchDispatchMode") for name in base_names(one.node))
    ]


def command(src: Path) -> Callable[[list[str]], None]:
    """The package's command in this process: what it prints is kept back, unless it fails."""
    scripts = tomllib.loads((src.parent / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = next(iter(scripts.values())).partition(":")
    main = getattr(importlib.import_module(module), name)

    def call(arguments: list[str]) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main(arguments)
            except SystemExit as end:
                if end.code:
                    sys.exit(f"{' '.join(arguments)}\n{printed.getvalue()}")

    return call


def walk(src: Path) -> list[Check]:
    """Embed a clip, search for it, and for one that is no row."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(src))
    run, modes = command(src), recorders(read(src))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        clip, other, into = folder / "clip.flac", folder / "other.flac", str(folder / "clips.lance")
        for copy, source in zip((clip, other), sorted(src.rglob("*.flac")), strict=False):
            shutil.copy(source, copy)
        watch = Watch(src, run, modes)
        embed = ["embed", "demo", str(clip), "--into", into, "--workers", "0"]
        return [
            *watch.checks("embed", embed, clip, EMBED),
            *watch.checks("search by a row's file", ["search", into, str(clip)], clip, SEARCH),
            *watch.checks("search by a new file", ["search", into, str(other)], other, SEARCH),
        ]


@dataclass
class Watch:
    """Runs commands and counts. modes: the classes that record a forward pass."""

    src: Path
    run: Callable[[list[str]], None]
    modes: list[type]

    def checks(self, what: str, arguments: list[str], clip: Path, bounds: Bounds) -> list[Check]:
        """The figures of one command."""
        profile, entered = Profile(self.src), Counter[str]()
        with contextlib.ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(counting(mode, "__enter__", entered))
            opened = stack.enter_context(openings(clip))
            stack.enter_context(profile)
            self.run(arguments)
        if not profile.visited or not self.modes:
            sys.exit(f"nothing to count: {self.src} did not run, or has no TorchDispatchMode")
        recorded = sum(entered[mode.__name__] for mode in self.modes)
        return [
            Check(f"{what}: functions", profile.count, bounds[0], profile.route(), terse=True),
            Check(f"{what}: modules", len(profile.visited), bounds[1]),
            Check(f"{what}: switches of module", profile.switches.total()),
            Check(f"{what}: decodes of the clip", opened["decode"], bounds[2]),
            Check(f"{what}: reads of the clip", opened["read"]),
            Check(f"{what}: recorded passes", recorded, bounds[3]),
            Check(f"{what}: other passes under such a mode", entered.total() - recorded),
        ]


def main() -> int:
    """Print every figure; 1 where one is over its bound."""
    parser = argparse.ArgumentParser(description="The structure of the code, and its bounds.")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the source folder")
    parser.add_argument("--walk", action="store_true", help="also follow one clip (slow)")
    parser.add_argument("--verbose", action="store_true", help="what every figure is made of")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args()
    src = asked.src.resolve()
    checks = quick(src) + (walk(src) if asked.walk else [])
    if asked.json:
        print(json.dumps([{**vars(check), "ok": check.ok} for check in checks], indent=1))
    else:
        for check in checks:
            print(check.line())
            if asked.verbose or not check.terse:
                print("".join(f"    {line}\n" for line in check.found), end="")
    return int(not all(check.ok for check in checks))


if __name__ == "__main__":
    sys.exit(main())
