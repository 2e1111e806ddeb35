"""The user's own code behind a model or a preprocessing: the modules that it comes from and those
that they import, and the data files that they name, as hashes. Installed packages are left out.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder, all_suffixes
from pathlib import Path
from typing import Any

from penult.errors import listed

MOST_FILES = 500  # modules that are followed
LARGEST = 16 << 20  # bytes of a data file; weights are hashed as weights
_REMOTE = "transformers_modules"  # where transformers copies code that comes with a checkpoint
# Packages that carried modules become (`penult.models.code_bundle`): name → file of each module.
BUNDLED = "penult_code_"
BUNDLES: dict[str, Mapping[str, Path | None]] = {}

Files = Mapping[str, str]  # a name that is the same on every machine → hash


def code_of(targets: Iterable[Any]) -> dict[str, str]:
    """Hashes of the code behind functions, classes and objects: their own modules, those modules of
    the user's that these import, and files that a text in them names.

    A name is the module's, written as a path (`nets/pool.py`); of a data file, relative to the
    module that names it. What lies in the standard library or in site-packages is left out, but the
    module of a target there counts with the version of its package.
    """
    found: dict[str, str] = {}
    names: dict[str, None] = {}
    for target in targets:
        target = _function(target)
        name = getattr(target, "__module__", None)
        if name in (None, "builtins"):
            continue
        if name == "__main__":
            found |= _of_script(target)
        elif _own_file(name) is not None:
            names[name] = None
    found |= _closure(list(names))
    return dict(sorted(found.items()))


def code_of_factory(factory: Any) -> dict[str, str]:
    """As `code_of`; a factory of an installed package counts with its module and the version."""
    target = _function(factory)
    found = code_of([target])
    name = getattr(target, "__module__", None) or ""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if found or file is None or not Path(file).is_file():
        return found
    return {_path_of(name, Path(file)): _hash(Path(file)), **_version(name)}


def code_of_module(name: str, folders: Sequence[str] = ()) -> dict[str, str]:
    """As `code_of`, for a module by its name: what importing it would run, found without importing
    it or its packages. One that is installed counts with its version, one without a file with
    Python's. folders: where top-level modules are looked for behind Python's own path.

    Empty where there is no such module.
    """
    found = _closure(list(_with_packages(name)), folders)
    file = located(name, folders)
    if file is None:
        built_in = name.partition(".")[0] in (*sys.builtin_module_names, *sys.stdlib_module_names)
        return {"python": platform.python_version()} if built_in else found
    if _own_file(name, folders) is None:
        found |= {_path_of(name, file): _hash(file, file.suffix == ".py"), **_version(name)}
    return dict(sorted(found.items()))


def changed(before: Files, now: Files) -> str:
    """What differs between two sets of files, in words; empty if nothing does."""
    edited = [name for name in before if name in now and before[name] != now[name]]
    parts = [
        (edited, "changed"),
        ([name for name in now if name not in before], "new"),
        ([name for name in before if name not in now], "gone"),
    ]
    return ", ".join(f"{listed(names, 3)} {how}" for names, how in parts if names)


def _function(target: Any) -> Any:
    """The function or class behind partials, bound methods, decorators and callable objects."""
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    target = getattr(target, "__func__", target)
    return target if hasattr(target, "__qualname__") else type(target)


def _of_script(target: Any) -> dict[str, str]:
    """Of a script or a notebook the text of this function or class: the rest changes often."""
    try:
        text = inspect.getsource(target)
    except (OSError, TypeError):
        return {}
    return {f"__main__.{target.__qualname__}": _digest(text.encode())}


def _version(name: str) -> dict[str, str]:
    package = name.partition(".")[0]
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Where the standard library, installed packages and Penult itself lie."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    own = Path(__file__).resolve().parents[1]
    return (*(Path(paths[name]).resolve() for name in names if name in paths), own)


def _own_file(name: str, folders: Sequence[str] = ()) -> Path | None:
    """The file of a module, if it is the user's own."""
    top = located(name.partition(".")[0], folders)
    if top is not None and is_installed(top, name):  # spares looking for what is inside
        return None
    file = located(name, folders)
    own = file is not None and file.suffix == ".py" and not is_installed(file, name)
    return file if own else None


def is_installed(file: Path, name: str) -> bool:
    """Whether a module's file belongs to Python, an installed package or Penult."""
    if name.startswith(BUNDLED):
        return False
    if {"site-packages", "dist-packages"} & set(file.parts) and _REMOTE not in name:
        return True
    return any(file.is_relative_to(folder) for folder in _installed())


def located(name: str, folders: Sequence[str] = ()) -> Path | None:
    """The file of a module by its dotted name: as it is loaded, or as it would be. Nothing is
    imported, its packages neither. folders: as for `code_of_module`."""
    top, *inner = name.split(".")
    if top in BUNDLES:
        return BUNDLES[top].get(".".join(inner))
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return _existing(file)
    if (package := sys.modules.get(top)) is not None:
        file, places = None, [*getattr(package, "__path__", ())]
    else:
        file, places = _top_level(top, folders)
    for part in inner:
        file, places = _inside(part, places)
    return _existing(file)


def _existing(file: str | None) -> Path | None:
    path = None if file is None else Path(file).resolve()
    return path if path is not None and path.is_file() else None


def _top_level(name: str, folders: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the file of a top-level module, where modules inside of it lie)."""
    try:
        spec = importlib.util.find_spec(name) or PathFinder.find_spec(name, list(folders))
    except (ImportError, ValueError, AttributeError):
        return None, []
    if spec is None:
        return None, []
    file = spec.origin if spec.has_location else None
    return file, [*(spec.submodule_search_locations or ())]


def _inside(name: str, places: Iterable[str]) -> tuple[str | None, list[str]]:
    """As `_top_level`, for a module inside of a package that lies in these places."""
    folders = [Path(place) / name for place in places]
    for folder in folders:
        for suffix in all_suffixes():
            if (inside := folder / f"__init__{suffix}").is_file():
                return str(inside), [str(folder)]
            if (beside := folder.with_name(f"{name}{suffix}")).is_file():
                return str(beside), []
    return None, [str(folder) for folder in folders if folder.is_dir()]


def _closure(names: list[str], folders: Sequence[str] = ()) -> dict[str, str]:
    """Hashes of the files that `_files_behind` finds, without large ones of data."""
    found = _files_behind(names, folders)
    return code_hashes({name: file for name, file in found.items() if is_hashed(file)})


def is_hashed(file: Path) -> bool:
    """Whether a file is code, or data that is not too large to be looked at each time."""
    return file.suffix == ".py" or file.stat().st_size <= LARGEST


def code_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """The hash of each file as the fingerprint has it: of a module with any line ends the same."""
    return {name: _hash(file, name.endswith(".py")) for name, file in files.items()}


def files_of_modules(names: Iterable[str], folders: Sequence[str] = ()) -> dict[str, Path]:
    """The files behind modules of the user's own: name as in `code_of` → file. folders: as for
    `code_of_module`."""
    found = _files_behind([part for name in names for part in _with_packages(name)], folders)
    return dict(sorted(found.items()))


def outside_imports(sources: Iterable[bytes]) -> set[str]:
    """Top-level modules that these texts import, without Python's own."""
    found: set[str] = set()
    for source in sources:
        with contextlib.suppress(SyntaxError, ValueError):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - {*sys.stdlib_module_names, *sys.builtin_module_names}


def _files_behind(names: list[str], folders: Sequence[str] = ()) -> dict[str, Path]:
    """The user's own modules among these and what they import, and the files that they name."""
    found: dict[str, Path] = {}
    seen = set(names)
    while names and len(found) < MOST_FILES:
        name = names.pop(0)
        file = _own_file(name, folders)
        if file is None:
            continue
        path = _path_of(name, file)
        found[path] = file
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        found |= _data_files(tree, file.parent, Path(path).parent)
        for other in _imports(tree, name, file):
            if other not in seen:
                seen.add(other)
                names.append(other)
    return found


def _path_of(name: str, file: Path) -> str:
    """A module's name as a path. Code of a checkpoint lies in a folder whose name is a revision."""
    if name.startswith(_REMOTE):
        return file.name
    if name.startswith(BUNDLED):
        name = name.partition(".")[2]
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if file.name == "__init__.py" else f"{path}.py"


def _imports(tree: ast.AST, name: str, file: Path) -> Iterator[str]:
    """Names that may be modules: of every import, wherever it stands, and of their packages."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for found in _imported_names(tree, package):
        yield _in_bundle(found, name)


def _in_bundle(found: str, importer: str) -> str:
    """A name as a carried module imports it: of its own bundle, where that has it."""
    bundle = importer.partition(".")[0]
    inside = found.partition(".")[0] in BUNDLES.get(bundle, ())
    return f"{bundle}.{found}" if inside else found


def _imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from _with_packages(base)
            names = [alias.name for alias in node.names if alias.name != "*"]
            yield from (f"{base}.{name}" for name in names if base)


def _with_packages(name: str) -> Iterator[str]:
    parts = [part for part in name.split(".") if part]
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _data_files(tree: ast.AST, folder: Path, shown: Path) -> dict[str, Path]:
    """Files below a module's folder that a text in it names: `np.load(HERE / "mean.npy")`."""
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_name(node.value)
    }
    folders = ["", *sorted(text for text in texts if (folder / text).is_dir())]
    found: dict[str, Path] = {}
    for text in sorted(texts):
        for inside in folders:
            path = folder / inside / text
            if path.suffix not in (".py", ".pyc", "") and path.is_file():
                found[(shown / inside / text).as_posix()] = path
                break
    return found


def _is_name(text: str) -> bool:
    """Whether a text can name a file or folder inside of another folder."""
    fine = 0 < len(text) < 200 and text.isprintable() and not text.startswith(("/", "~"))
    return fine and ".." not in text and text.strip(". ") != ""


def _hash(file: Path, text: bool = True) -> str:
    """Of a text with any line ends the same."""
    content = file.read_bytes()
    return _digest(content.replace(b"\r\n", b"\n") if text else content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
