"""The measure of the code's structure measures what it says, on small packages; then the code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


structure = _script()


@pytest.fixture
def package(tmp_path: Path) -> Any:
    def write(**files: str) -> Path:
        """Write pkg with these modules, a__b standing for a/b.py; every folder is a package."""
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "pkg" / f"{name.replace('__', '/') if name[0] != '_' else name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for folder in (tmp_path / "pkg").iterdir():
            if folder.is_dir():
                (folder / "__init__.py").touch()
        return tmp_path

    return write


def checked(src: Path, what: str) -> Any:
    return next(check for check in structure.quick(src) if check.what.startswith(what))


TYPE_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.b import x\n"
LAZY = "def f():\n    from pkg.b import x\n"


@pytest.mark.parametrize(
    "there",
    [
        "from pkg.b import x",
        "from pkg import b",
        "import pkg.b",
        "import pkg.b as other",
        "from . import b",
        "from .b import x",
        TYPE_ONLY,
        LAZY,
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(package: Any, there: str) -> None:
    check = checked(package(a=there, b="from pkg.a import y", c="import pkg.a"), "circles of mod")
    assert check.found == ["2: pkg.a, pkg.b"] and not check.ok


def test_a_circle_of_three_through_a_package(package: Any) -> None:
    src = package(a="from pkg.p.q import x", p__q="from ..c import y", c="from .a import f")
    assert checked(src, "circles of modules").found == ["3: pkg.a, pkg.c, pkg.p.q"]


def test_no_circle_by_text_or_from_a_package_to_its_module(package: Any) -> None:
    src = package(a="from pkg.b import x", b="HOMES = {'y': 'pkg.a'}", p__q="from pkg.p.r import z")
    (src / "pkg" / "p" / "__init__.py").write_text("from pkg.p import q")
    check = checked(src, "circles of modules")
    assert check.value == 0 and check.ok


def test_the_longest_chain_counts_folders_only(package: Any) -> None:
    src = package(
        top__m="from pkg.middle import x\nfrom pkg.low.m import y",
        middle="def f():\n    from pkg.low.m import z",
        low__m="from pkg.base.m import w\nfrom pkg.low.n import v",
        low__n="from pkg import base",
        base__m="import json\nfrom pkg import version",
        aside__m="",
    )
    (src / "pkg" / "__init__.py").write_text("from pkg.top.m import x")
    check = checked(src, "longest chain")
    assert (check.value, check.found) == (3, ["top → low → base"])


def test_packages_in_a_circle_all_count(package: Any) -> None:
    src = package(
        a__m="from pkg.b.m import x", b__m="from pkg.c.m import y", b__n="", c__m="import pkg.b.n"
    )
    check = checked(src, "longest chain")
    assert (check.value, check.found) == (3, ["a → (b ⇄ c)"])
    assert checked(src, "circles of packages").found == ["b, c"]
    assert checked(src, "circles of modules").value == 0


def test_class_names_that_stand_twice(package: Any) -> None:
    src = package(
        a="class Kept: ...\nclass One:\n    class Inner: ...",
        b="class _Kept: ...\ndef f():\n    class Inner: ...",
        c="class Other: ...\nclass _Other: ...",
    )
    assert checked(src, "class names").found == ["Inner: a, b", "Kept: a, b"]


def test_members_are_counted_with_inherited_ones(package: Any) -> None:
    base = (
        "class Base(Generic[T]):\n"
        "    field: int = 0\n"
        "    one = two = 1\n"
        "    def __init__(self, x):\n"
        "        self.set, self._hidden = x, x\n"
        "        self.noted: int = 1\n"
        "        x.elsewhere = 2\n"
        "    def method(self): ...\n"
        "    def _private(self): ...\n"
    )
    derived = (
        "from pkg.a import Base as Above\n"
        "class Derived(Above[int]):\n"
        "    def method(self): ...\n"
        "    @property\n"
        "    def value(self): ...\n"
        "    @value.setter\n"
        "    def value(self, new): ...\n"
        "class Foreign(numpy.Base): ...\n"
    )
    found = structure.classes(structure.read(package(a=base, b=derived)))
    named = {one.node.name: structure.members(one, found) for one in found}
    assert named["Base"] == {"field", "one", "two", "set", "noted", "method"}
    assert named["Derived"] == named["Base"] | {"value"}
    assert named["Foreign"] == set()


def test_a_base_of_the_same_name_is_the_imported_one(package: Any) -> None:
    derived = "from pkg import a\nclass Thing(a.Thing):\n    def more(self): ..."
    src = package(a="class Thing:\n    def one(self): ...", b=derived, c="class Thing: ...")
    found = structure.classes(structure.read(src))
    sizes = {one.module.short: len(structure.members(one, found)) for one in found}
    assert sizes == {"a": 1, "b": 2, "c": 0}


def test_too_many_members_are_named(package: Any) -> None:
    fields = "".join(f"    f{n}: int\n" for n in range(structure.MEMBERS + 1))
    src = package(a=f"class Big:\n{fields}class _Hidden:\n{fields}class Embedder:\n{fields}")
    assert checked(src, "most public members of a class").found == ["18  a.Big"]
    assert checked(src, "most public members of Class").ok


def test_bodies_and_parameters(package: Any) -> None:
    body = "    x = 1\n" * structure.BODY
    signature = "def long(\n    a,\n    b,\n):\n"
    many = ", ".join(f"p{n}" for n in range(structure.PARAMETERS))
    src = package(
        a=f"{signature}{body}{signature}{body}    return x\n",
        b=f"class C:\n    def few(self, {many}): ...\n    @staticmethod\n    def s(x, {many}): ...",
        cli__m=f"def command(x, {many}): ...",
    )
    assert checked(src, "most lines").found == [f"{structure.BODY + 1}  a:long"]
    assert checked(src, "most parameters").found == [f"{structure.PARAMETERS + 1}  b:C.s"]
    assert checked(src, "functions").value == 5
    assert checked(src, "median").value == 1


def test_old_paths_are_found(package: Any) -> None:
    src = package(store__gone="", store__tables="", other__gone="", selection="", cli__said="")
    assert checked(src, "modules under an old path").found == ["cli.said", "store.gone"]


def test_the_profile_counts_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "walked").mkdir()
    (tmp_path / "walked" / "__init__.py").touch()
    (tmp_path / "walked" / "a.py").write_text(
        "def run():\n"
        "    from walked import b\n"
        "    class Local:\n"
        "        x = 1\n"
        "    return [b.one(n) for n in range(3)], (lambda: 1)()\n"
        "def unused(): ...\n"
    )
    (tmp_path / "walked" / "b.py").write_text(
        "def at_import(): ...\nat_import()\ndef one(n):\n    return sum(k for k in range(n))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    a = importlib.import_module("walked.a")
    before = sys.getprofile()
    with structure.Profile(tmp_path) as profile:
        thread = threading.Thread(target=a.run)
        thread.start()
        thread.join()
        a.run()
    sys.setprofile(before)
    names = {
        file: [c.co_qualname for c in codes.values()] for file, codes in profile.visited.items()
    }
    assert [Path(file).name for file in names] == ["a.py", "b.py"]
    assert [*names.values()] == [["run", "run.<locals>.<lambda>"], ["one"]]
    assert profile.count == 3 and profile.switches.total() == 6


def test_openings_are_counted(tmp_path: Path) -> None:
    import soundfile

    clip = tmp_path / "clip.wav"
    soundfile.write(clip, [0.0] * 10, 8000)
    with structure.openings(clip) as counts:
        clip.read_bytes()
        (tmp_path / "other").write_bytes(b"")
        soundfile.read(str(clip).encode())
        soundfile.info(clip)
    clip.read_bytes()
    assert counts == {"read": 1, "decode": 2}


def test_json_and_exit_code(package: Any) -> None:
    script = [sys.executable, ROOT / "scripts" / "structure.py", "--json", "--src"]
    for text, code in (("", 0), ("from pkg.b import x", 1)):
        src = package(a=text, b="import pkg.a")
        done = subprocess.run([*map(str, script), src], capture_output=True, text=True)
        first = json.loads(done.stdout)[0]
        assert (done.returncode, first["value"], first["ok"]) == (code, code, not code)


@pytest.mark.slow
def test_the_code_is_within_every_bound() -> None:
    assert not [check.line() for check in structure.quick(ROOT / "src") if not check.ok]
