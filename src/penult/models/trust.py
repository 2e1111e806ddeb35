"""Code that may run: typed or trusted by this user on this machine, remembered by its hash.

What a file names is no permission. Every import of a factory or a preprocessing by its name goes
through `imported`; `penult.models.hub` asks here before it asks the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from penult.data.documents import of_others
from penult.data.files import file_aside, user_cache
from penult.errors import ModelError, UntrustedCode, cause, listed
from penult.models.code_bundle import FOLDER as CODE
from penult.models.code_bundle import CodeBundle, write_bundle
from penult.models.source_code import (
    LARGEST,
    MOST_FILES,
    changed,
    code_hashes,
    code_of_module,
    files_of_modules,
    is_hashed,
    is_installed,
    located,
)

log = logging.getLogger(__name__)

FOLDER = "trusted"  # inside of the user's cache
MOST = 32  # states of the code of one name that are remembered

_typed: set[str] = set()  # in this process


@dataclass(frozen=True, slots=True)
class Naming:
    """A file that names a model. has_option: whether --model can name the model instead. bundle:
    the code that lies beside it."""

    file: str = ""
    has_option: bool = False
    bundle: CodeBundle | None = None


_BY_USER = Naming()
_naming: ContextVar[Naming] = ContextVar("naming", default=_BY_USER)


@contextlib.contextmanager
def named_by(
    file: str | os.PathLike[str], has_option: bool = False, bundle: CodeBundle | None = None
) -> Iterator[None]:
    """Inside the block models, factories and preprocessings are named by a file, not by the user:
    `typed` counts for nothing. An empty name: by the user again, as in the user's own code. bundle:
    the code that lies beside the file, which serves the modules that it has."""
    token = _naming.set(Naming(os.fspath(file), has_option, bundle))
    try:
        yield
    finally:
        _naming.reset(token)


def naming() -> Naming:
    """The file that names what is being opened; one without a name where the user does."""
    return _naming.get()


def typed(*names: object) -> None:
    """The user named these models, factories or preprocessings: as an argument, or in Python."""
    if not naming().file:
        _typed.update(name for name in names if isinstance(name, str))


def is_typed(name: str) -> bool:
    """Whether the user has named this in this process."""
    return name in _typed


def imported(spec: str, kind: str, trust: bool = False) -> Callable[..., Any]:
    """`package.module:name` → the object. Where the user typed or trusts it, the working folder is
    looked in too, behind Python's path; else the folder in which it was typed once.

    kind: of the object, for messages: `a factory`.

    Raises:
        UntrustedCode: a file names it, and this user has neither typed nor trusted this state of
            its code on this machine. Nothing was imported.
        ModelError: there is no such module or name, or it cannot be called.
    """
    module, colon, name = spec.partition(":")
    if not colon or not name or not all(map(str.isidentifier, module.split("."))):
        raise ModelError(f"{kind} is named as package.module:function, received {spec!r}")
    bundle = naming().bundle
    if bundle is not None and bundle.has(module):
        return _callable(_from_bundle(bundle, spec, kind, trust), kind, spec)
    asked = trust or is_typed(spec)
    known = CodeMemory(spec)
    folders = [str(Path.cwd()), *known.roots] if asked else known.roots
    code = NamedCode.find(spec, folders)
    if not asked and not known.has(code):
        raise UntrustedCode(_refusal(kind, code, known))
    with _importing(folders, everywhere=trust):
        found = _callable(_attribute(module, name, f"{kind} {spec!r}"), kind, spec)
    if asked:
        known.add(code)
    return found


def _callable(found: Any, kind: str, spec: str) -> Callable[..., Any]:
    if not callable(found):
        kind_of = type(found).__name__
        raise ModelError(f"{kind} {spec!r} is of type {kind_of}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _attribute(
    module: str,
    name: str,
    words: str,
    load: Callable[[str], ModuleType] = importlib.import_module,
    advise: Callable[[str, Exception], str] | None = None,
) -> Any:
    try:
        return getattr(load(module), name)
    except (ImportError, AttributeError) as error:
        advice = (advise or _advice)(module, error)
        raise ModelError(f"{words} cannot be imported: {cause(error)}{advice}") from error
    except Exception as error:  # the module is somebody else's
        reason = cause(error, named=True)
        raise ModelError(f"{words} cannot be imported: {reason}") from error


def _advice(module: str, error: Exception) -> str:
    return _hidden(module) or _elsewhere(module, error)


def _hidden(module: str) -> str:
    """That a module of the working folder has the name of another one, which counts."""
    top = module.partition(".")[0]
    here, found = Path.cwd() / f"{top}.py", located(top)
    if not here.is_file() or found is None or found == here.resolve():
        return ""
    return f". That is {found}, which hides {here}: give the latter another name"


def _elsewhere(module: str, error: Exception) -> str:
    """Where a command finds a module that is missing here; empty where something else is."""
    top = module.partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError) and error.name == top
    return f": give the command in the folder that has {top}.py or {top}/" if missing else ""


def _refusal(kind: str, code: NamedCode, known: CodeMemory) -> str:
    by, spec = naming(), code.spec
    file = located(spec.partition(":")[0], [*known.roots, str(Path.cwd())])
    where = f" of {file}" if file else ", of a module that is not found here"
    before = known.newest
    why = "was neither typed nor trusted by this user on this machine"
    if before is not None:
        other = changed(before.files, code.files) or f"that was in {before.root}"
        why = f"is not what this user typed or trusted here ({other})"
    option = f"name it yourself with --model {spec}, or " if by.has_option else ""
    if file is None:
        top = spec.partition(":")[0].partition(".")[0]
        option = f"go to the folder that has {top}.py or {top}/, and {option}"
    return (
        f"{by.file or 'a file'} names {kind} {spec!r}: Python code{where}, which would run on this "
        f"machine and {why}; nothing was run. If it is yours, or you trust it, {option}say --trust"
    )


_SAVED = "in a saved folder: "  # before a name, in the memory of carried code
_allowed: set[str] = set()  # digests of carried code, in this process


def _from_bundle(bundle: CodeBundle, spec: str, kind: str, trust: bool) -> Any:
    """The object, from the code that lies beside the file that names it. To have typed its name
    allows nothing here: whoever made the folder chose the name."""
    code = NamedCode(f"{_SAVED}{spec}", "", bundle.hashes)
    known = CodeMemory(code.spec)
    if not (trust or code.digest in _allowed or known.has(code)):
        raise UntrustedCode(_bundle_refusal(bundle, spec, kind, known.newest))
    module, _, name = spec.partition(":")
    words = f"{kind} {spec!r} of {bundle.folder}"
    found = _attribute(module, name, words, bundle.load, _not_carried)
    if trust:
        allow(bundle, [spec])
    return found


def allow(bundle: CodeBundle, specs: Iterable[str]) -> None:
    """Remember carried code as the user's own, or as trusted, for these names."""
    for spec in specs:
        code = NamedCode(f"{_SAVED}{spec}", "", bundle.hashes)
        _allowed.add(code.digest)
        CodeMemory(code.spec).add(code)


def _not_carried(module: str, error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return (
        f". The folder does not carry {error.name}: install the package that has it here. Packages "
        "are not carried, nor modules whose names the code puts together while it runs"
    )


_SHOWN_LINES, _SHOWN_FILES, _WIDEST = 8, 12, 100


def _bundle_refusal(bundle: CodeBundle, spec: str, kind: str, before: NamedCode | None) -> str:
    """What would run: the files with their hashes, the first lines of the named one, and how to
    allow it."""
    by, module = naming(), spec.partition(":")[0]
    why = "was neither saved nor trusted by this user on this machine"
    if before is not None:
        why = (
            "is not what this user saved or trusted here before "
            f"({changed(before.files, bundle.hashes) or 'another folder'})"
        )
    named = bundle.modules.get(module) or ""
    others = [name for name in sorted(bundle.hashes) if name != named]
    lines = []
    for name in [named, *others][:_SHOWN_FILES]:
        if name:
            lines.append(f"  {bundle.folder / name}  sha256 {bundle.hashes[name]}")
        if name and name == named:
            text = bundle.files[name].decode("utf-8", "replace").splitlines()
            first = [one for one in text if one.strip()][:_SHOWN_LINES]
            lines += [f"    | {_shown(line)}" for line in first]
            lines.append(f"    | … {len(text):,} lines in all")
    if len(others) >= _SHOWN_FILES:
        lines.append(f"  and {len(others) - _SHOWN_FILES + 1:,} more, listed in SHA256SUMS there")
    folder = shlex.quote(str(bundle.folder.parent))
    return "\n".join(
        [
            f"{by.file} names {kind} {spec!r}: Python code that lies in the same folder, which "
            f"would run on this machine and {why}; nothing was run.",
            *lines,
            "Read these files. If they are yours, or you trust them, say --trust with your "
            f"command, or once and for all: penult inspect {folder} --trust (in Python trust=True)",
        ]
    )


def _shown(line: str) -> str:
    """A line of somebody else's code, so that it can do nothing to the terminal."""
    line = line.expandtabs(4).rstrip()
    line = line if len(line) <= _WIDEST else f"{line[:_WIDEST]}… ({len(line):,} characters)"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def carry_code(saved: Path, specs: Sequence[str], in_use: Mapping[str, str]) -> None:
    """Copy the user's own code behind these names into a saved folder, and remember it as the
    user's; where that cannot be, a note says so. in_use: hashes of the code as it was imported.

    What lies in an installed package is not copied.
    """
    folders = [str(Path.cwd()), *(root for spec in specs for root in CodeMemory(spec).roots)]
    found = files_of_modules((spec.partition(":")[0] for spec in specs), folders)
    files = {name: file for name, file in found.items() if is_hashed(file)}
    if large := [name for name in found if name not in files]:
        log.warning("the folder does not carry %s: over %d MiB", listed(large, 5), LARGEST >> 20)
    if not files:
        return
    now = code_hashes(files)
    why = f"it has {MOST_FILES:,} files or more" if len(files) >= MOST_FILES else ""
    if edited := [name for name in now if in_use.get(name, now[name]) != now[name]]:
        why = f"{listed(edited, 3)} changed since the model was opened"
    if not why:
        try:
            allow(write_bundle(saved, files), specs)
        except (ModelError, OSError, ValueError) as error:
            shutil.rmtree(saved / CODE, ignore_errors=True)
            why = cause(error)
    if why:
        log.warning(
            "the folder does not carry the code of %s (%s); it opens only where that can be "
            "imported under its name", listed(specs), why,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedCode:
    """The code behind a name, as it is now. root: the folder that its own top-level module lies in;
    empty for installed packages. files: name → hash, as `penult.models.source_code` has them; empty
    where the code cannot be found."""

    spec: str
    root: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, spec: str, folders: Sequence[str]) -> NamedCode:
        """Found and hashed without importing anything."""
        module = spec.partition(":")[0]
        files, file = code_of_module(module, folders), located(module, folders)
        own = file is not None and not is_installed(file, module)
        return cls(spec, _root_of(module, file) if file is not None and own else "", files)

    @property
    def digest(self) -> str:
        """Hash of name, place and files."""
        return _digest([self.spec, self.root, sorted(self.files.items())])


def _root_of(module: str, file: Path) -> str:
    up = module.count(".") + (file.stem == "__init__")
    return str(file.parents[up]) if len(file.parents) > up else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class CodeMemory:
    """The states of the code behind one name that were typed or trusted, in the user's cache: a
    file each. A file that another user could have written, or that does not fit its name, is none.
    """

    def __init__(self, spec: str) -> None:
        cache = user_cache()
        # A relative folder would be whatever lies in the working folder.
        self._folder = cache / FOLDER / _digest(spec) if cache.is_absolute() else None
        self._spec = spec

    @property
    def entries(self) -> list[NamedCode]:
        """The oldest first."""
        if self._folder is None or not all(map(_is_private, (self._folder.parent, self._folder))):
            return []
        files = sorted(self._folder.glob("*.json"), key=_age)
        return [code for file in files if (code := self._read(file)) is not None]

    @property
    def newest(self) -> NamedCode | None:
        """The last that was typed; None where nothing was."""
        return next(reversed(self.entries), None)

    @property
    def roots(self) -> list[str]:
        """The folders in which it was typed, the newest first."""
        return [*dict.fromkeys(code.root for code in reversed(self.entries) if code.root)]

    def has(self, code: NamedCode) -> bool:
        """Whether this state of the code was typed or trusted. A copy in the working folder is
        another one: compiled files beside it run in its place."""
        same = [one for one in self.entries if one.files == code.files and code.files]
        here = code.root == str(Path.cwd().resolve())
        return any(one.root == code.root or not here for one in same)

    def add(self, code: NamedCode) -> None:
        """Remember a state of the code; where that cannot be written, a note says so."""
        if self._folder is None or not code.files:
            return
        path = self._folder / f"{code.digest}.json"
        if self._read(path) is not None:
            return
        text = json.dumps({"spec": code.spec, "root": code.root, "files": dict(code.files)})
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._folder.parent, self._folder):
                folder.chmod(0o700)
            with file_aside(path) as aside:
                aside.touch()
                aside.chmod(0o600)
                aside.write_text(text, "utf-8")
            for old in sorted(self._folder.glob("*.json"), key=_age)[:-MOST]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "that you named %s cannot be remembered in %s (%s): files that name it will need "
                "--trust; PENULT_CACHE names another folder",
                code.spec, self._folder, error.strerror,
            )  # fmt: skip

    def _read(self, path: Path) -> NamedCode | None:
        try:
            if not _is_private(path) or not path.is_file():
                return None
            found = of_others(path.read_text("utf-8"))
            code = NamedCode(found["spec"], found["root"], found["files"])
            fine = code.spec == self._spec and code.digest == path.stem
            return code if fine else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _is_private(path: Path) -> bool:
    """Whether a path is this user's own, no link, and nobody else can write there."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if stat.S_ISLNK(status.st_mode):
        return False
    if os.name != "posix":
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _age(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


class _Folders(MetaPathFinder):
    """Finds top-level modules in the folders of named code, behind everything that Python finds
    itself, and for the code of those folders alone: another package that looks for an optional
    module finds none of the user's."""

    def __init__(self) -> None:
        self.folders: dict[str, bool] = {}  # folder → whether any code may import from it
        self.asked: ContextVar[tuple[str, ...]] = ContextVar("asked", default=())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or not self.folders:
            return None
        asker = _importer()
        direct = asker == __file__
        for folder, everywhere in [*self.folders.items()]:
            inside = asker.startswith(folder + os.sep)
            if inside or everywhere or (direct and folder in self.asked.get()):
                spec = PathFinder.find_spec(fullname, [folder])
                if spec is not None:
                    if spec.loader is None and spec.submodule_search_locations is not None:
                        spec.submodule_search_locations = [*spec.submodule_search_locations]
                    return spec
        return None


_FINDER = _Folders()


@contextlib.contextmanager
def _importing(folders: Sequence[str], everywhere: bool) -> Iterator[None]:
    """Inside the block modules of these folders can be imported from here; later by their own code.

    everywhere: by any code, as trusted pickles need it.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    for folder in folders:
        _FINDER.folders[folder] = everywhere or _FINDER.folders.get(folder, False)
    token = _FINDER.asked.set(tuple(folders))
    try:
        yield
    finally:
        _FINDER.asked.reset(token)


def _importer() -> str:
    """The file of the code that is importing."""
    frame = sys._getframe(2)
    machinery = importlib.__file__ or ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<frozen importlib") and name != machinery:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return ""
