"""Where Python looks for modules: not in the working folder, which holds whatever was downloaded.

Only what is frozen into Python or imported at its start is imported here: this module runs first.
"""

import os
import sys

_PACKAGE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
HOME = os.path.dirname(_PACKAGE)  # noqa: PTH120  the folder or archive that holds the package
_SHOWS_MODULES = "PYTHONPATH"
# What would run code or wait for a person as an interpreter starts or ends.
_INTERACTIVE = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT")


def is_own_command() -> bool:
    """Whether this process is `penult` or `python -m penult`, and not a program that imports it."""
    name = (getattr(sys, "argv", None) or [""])[0]
    if name != "-m":
        return os.path.basename(name) in ("penult", "penult.exe")  # noqa: PTH119
    # So it is called as long as Python looks for the module that `-m` names.
    words = [word for word in sys.orig_argv if word]
    joined = any(word[0] == "-" and word.endswith("mpenult") for word in words)
    return joined or any(
        option[0] == "-" and option[-1] == "m" and module == "penult"
        for option, module in zip(words, [*words[1:], ""], strict=True)
    )


def leave_working_folder_out() -> None:
    """Take the working folder off the path of this process and of those that it starts. It stays
    where it was named in full, or holds this package itself."""
    os.environ.update(environment())
    for name in (_SHOWS_MODULES, *_INTERACTIVE):
        if name not in environment():
            os.environ.pop(name, None)
    sys.path[:] = isolated_path()
    sys.meta_path.insert(0, _Aside())  # type: ignore[arg-type]


# Libraries that look where the process stands as they are imported: for others' compiled code (of
# CUDA's parts one has an empty entry in its list of folders), or for settings, such as a program to
# run and a folder of pickles.
_LOOKING = {"torch", "torchvision", "onnxruntime", "openvino", "av", "numba", "matplotlib"}
_SETTINGS = ("matplotlibrc", ".numba_config.yaml")
_OF_THE_LOADER = {
    "glibc-hwcaps", "tls", "x86_64", "i686", "aarch64", "haswell", "xeon_phi", "avx512_1", "atomics"
}  # fmt: skip


class _Aside:
    """Has those libraries imported as if the process stood in the root folder, where the working
    folder has what they would take; else nothing is done, since all threads stand in one place."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in _LOOKING:
            return None
        others = [finder.find_spec for finder in sys.meta_path if not isinstance(finder, _Aside)]
        found = (find(name, path, target) for find in others)  # type: ignore[arg-type]
        spec = next((one for one in found if one is not None), None)
        loader = getattr(spec, "loader", None)
        if loader is not None:
            execute = loader.exec_module
            loader.exec_module = lambda module: _execute(execute, module)
        return spec


def _execute(execute: object, module: object) -> None:
    here = _place_with_parts()
    if here:
        os.chdir(os.sep)
    try:
        execute(module)  # type: ignore[operator]
    finally:
        if here:
            os.chdir(here)
    settings = sys.modules.get("numba.core.config")
    if settings is not None:  # read again whenever something is compiled
        settings._config_fname = ""  # type: ignore[attr-defined]


def _place_with_parts() -> str:
    """The working folder, if it has anything that those libraries would take; else nothing."""
    try:
        here = os.getcwd()  # noqa: PTH109
        with os.scandir(here) as entries:
            return here if any(_is_taken(entry.name) for entry in entries) else ""
    except OSError:  # it is gone, or cannot be listed
        return ""


def _is_taken(name: str) -> bool:
    library = ".so" in name or name.endswith((".dll", ".dylib"))
    return library or name in _SETTINGS or name in _OF_THE_LOADER


def isolated_path() -> list[str]:
    """`sys.path` for a process that opens strangers' files: whole paths, this package found."""
    kept = [
        entry
        for entry in sys.path
        if isinstance(entry, str) and os.path.isabs(entry) and not _is_implied(entry)  # noqa: PTH117
    ]
    return kept if any(_same(entry, HOME) for entry in kept) else [HOME, *kept]


def environment() -> dict[str, str]:
    """The environment for processes that are started: no module is looked for where they stand."""
    kept = {name: value for name, value in os.environ.items() if name not in _INTERACTIVE}
    kept["PYTHONSAFEPATH"] = "1"
    entries = kept.pop(_SHOWS_MODULES, "").split(os.pathsep)
    if whole := [entry for entry in entries if os.path.isabs(entry)]:  # noqa: PTH117
        kept[_SHOWS_MODULES] = os.pathsep.join(whole)
    return kept


def _is_implied(entry: str) -> bool:
    """Whether an entry is the working folder and nobody named it, neither a person nor Python."""
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # it is gone
        return False
    if not _same(entry, here):
        return False
    named = os.environ.get(_SHOWS_MODULES, "").split(os.pathsep)
    whole = [one for one in named if os.path.isabs(one)]  # noqa: PTH117
    return not any(_same(here, one) for one in (HOME, *whole, *_installed()))


def _installed() -> list[str]:
    site = sys.modules.get("site")
    if site is None:
        return []
    folders: list[str] = getattr(site, "getsitepackages", list)()
    return [*folders, *filter(None, [getattr(site, "USER_SITE", None)])]


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
