"""The user's own modules inside of a saved folder: copied with hashes, and imported from the bytes
that were hashed, as a package of their own.

Nothing in here decides whether they may run; `penult.models.trust` does. The modules lie under the
names by which they import each other (`code/nets.py`), and become `penult_code_<hash>.nets`, so
that neither another module of the name `nets` nor a second saved folder is mistaken for them.
"""

from __future__ import annotations

import builtins
import importlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources.readers import FileReader
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from penult.data.hashes import LIST, digest, listed_content, write_list
from penult.errors import ModelError
from penult.models.source_code import (
    BUNDLED,
    BUNDLES,
    MOST_FILES,
    is_installed,
    located,
    outside_imports,
)

FOLDER = "code"  # inside of a saved folder
LARGEST = 64 << 20  # bytes of a bundle


@dataclass(frozen=True)
class CodeBundle:
    """The carried modules of a saved folder, as they were read and hashed.

    folder: `<saved>/code`. files: name (`nets.py`, `pkg/mel.npy`) → content. hashes: name →
    SHA-256.
    """

    folder: Path
    files: Mapping[str, bytes] = field(repr=False)
    hashes: Mapping[str, str]

    @classmethod
    def read(cls, saved: Path) -> CodeBundle | None:
        """The code that a saved folder carries; None where it carries none. Nothing is run.

        Raises:
            ModelError: a file is not as its list of hashes says, or has no place in there.
        """
        folder = saved.resolve() / FOLDER
        if not (folder / LIST).is_file():
            return None
        if folder.is_symlink():
            raise ModelError(f"{folder} is a link, and the code of a model lies in its folder")
        try:
            found = listed_content(folder, LARGEST, MOST_FILES)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{folder} cannot be used: {error}. Restore it from a copy, or save the model again"
            ) from error
        bundle = cls(folder, *found)
        if name := bundle._shadowing:
            raise ModelError(
                f"{folder} cannot be used: {name} has the name of a module of Python or of an "
                "installed package, which it would stand for: rename it where it was made, and "
                "save the model again"
            )
        return bundle

    @cached_property
    def package(self) -> str:
        """The name of the package that the modules become."""
        return f"{BUNDLED}{digest([str(self.folder), dict(self.hashes)])}"

    @cached_property
    def modules(self) -> dict[str, str | None]:
        """Dotted name → name of the file; None for folders without an `__init__.py`."""
        found: dict[str, str | None] = {}
        for name in sorted(self.files):
            path = PurePosixPath(name)
            parts = path.with_suffix("").parts
            if path.suffix != ".py" or not all(map(str.isidentifier, parts)):
                continue
            if parts[-1] == "__init__":
                parts = parts[:-1]
            for end in range(1, len(parts)):
                found.setdefault(".".join(parts[:end]), None)
            found.setdefault(".".join(parts), name)
            if path.name == "__init__.py" or found[".".join(parts)] is None:
                found[".".join(parts)] = name
        return found

    @property
    def _shadowing(self) -> str:
        """A file whose module has the name of one of Python or of an installed package."""
        for module, name in self.modules.items():
            if "." in module or not module:
                continue
            file = located(module)
            installed = file is not None and is_installed(file, module)
            own = (*sys.builtin_module_names, *sys.stdlib_module_names, "penult")
            if installed or module in own or module.startswith(BUNDLED):
                return name or f"{module}/"
        return ""

    def has(self, module: str) -> bool:
        """Whether it carries a module of this dotted name."""
        return module in self.modules

    def load(self, module: str) -> ModuleType:
        """The module, imported from the bytes in memory. Whoever calls has asked whether it may
        run."""
        if self.package not in sys.modules:
            root = ModuleType(self.package)
            root.__path__ = []
            sys.modules[self.package] = root
            _FINDER.bundles[self.package] = self
            BUNDLES[self.package] = {
                dotted: None if name is None else self.folder / name
                for dotted, name in self.modules.items()
            }
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        return importlib.import_module(f"{self.package}.{module}")

    @cached_property
    def builtins(self) -> dict[str, Any]:
        """Python's own, with an `import` that finds the modules in here by their plain names."""

        def carried(
            name: str,
            globals: Mapping[str, Any] | None = None,
            locals: Mapping[str, Any] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            top = name.partition(".")[0]
            if level or top not in self.modules:
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            found = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist or ())
            return found if fromlist else sys.modules[f"{self.package}.{top}"]

        return {**vars(builtins), "__import__": carried}

    def copy(self, saved: Path) -> None:
        """Write the same bytes into another saved folder."""
        for name, content in self.files.items():
            path = saved / FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_list(saved / FOLDER)


def write_bundle(saved: Path, files: Mapping[str, Path]) -> CodeBundle:
    """Copy modules and the data files that they name into a saved folder, with their hashes; gives
    them as they are there. files: names as `penult.models.source_code` has them → files.

    Raises:
        ModelError: a name stands for a module of Python or of an installed package.
    """
    for name, file in files.items():
        path = saved / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
    write_list(saved / FOLDER)
    bundle = CodeBundle.read(saved)
    assert bundle is not None  # its list was just written
    return bundle


def needs(bundle: CodeBundle) -> list[str]:
    """Top-level modules, not of Python, that the carried code imports and that are not carried."""
    tops = {name.partition(".")[0] for name in bundle.modules}
    sources = (content for name, content in bundle.files.items() if name.endswith(".py"))
    return sorted(outside_imports(sources) - tops)


class _Carried(Loader):
    """Runs a module of a bundle from memory; writes nothing."""

    def __init__(self, bundle: CodeBundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.path = str(bundle.folder / name)

    def exec_module(self, module: ModuleType) -> None:
        """Compile the bytes that were hashed, and run them."""
        code = compile(self.bundle.files[self.name], self.path, "exec", dont_inherit=True)
        vars(module)["__builtins__"] = self.bundle.builtins
        exec(code, vars(module))  # noqa: S102 (it was asked whether it may, see above)

    def get_resource_reader(self, fullname: str) -> FileReader:
        """For `importlib.resources`: data files beside the module."""
        return FileReader(self)  # type: ignore[arg-type]  # it reads `path` alone


class _Bundles(MetaPathFinder):
    """Finds modules of bundles, and nothing on the disk."""

    def __init__(self) -> None:
        self.bundles: dict[str, CodeBundle] = {}

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package not in self.bundles:
            return None
        bundle = self.bundles[package]
        if name not in bundle.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        file = bundle.modules[name]
        if file is None:
            spec = ModuleSpec(fullname, None, is_package=True)
        else:
            is_package = file.endswith("__init__.py")
            loader = _Carried(bundle, file)
            spec = ModuleSpec(fullname, loader, origin=loader.path, is_package=is_package)
            spec.has_location = True
        return spec


_FINDER = _Bundles()
