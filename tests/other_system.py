"""What Windows lacks, or macOS, taken from the modules of Penult in this process: its program's
first lines.

To them `sys.platform` is win32 and `os.name` nt; modules, functions and constants of POSIX are not
there, nor is /proc, and no folder can be opened as a file. On macOS only what Linux alone has is
gone. Libraries see the system as it is. Not imitated: that files which are open cannot be renamed
or removed, drives and backslashes.
"""

import builtins
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty"}
OF_LINUX = {"sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate"}
LACKING = {
    "fork", "forkpty", "posix_spawn", "posix_spawnp", "register_at_fork", "getuid", "geteuid",
    "getgid", "getegid", "getpgid", "setsid", "killpg", "nice", "sysconf",
    "statvfs", "fchmod", "fchown", "chown", "lchown", "pread", "pwrite",
    "mkfifo", "uname", "getloadavg", "O_NOFOLLOW", *OF_LINUX,
    "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC", "WNOHANG", "SIGHUP", "SIGKILL", "SIGALRM",
    "SIGUSR1", "SIGUSR2", "SIGPIPE", "alarm", "setitimer",
}  # fmt: skip


class Stripped:
    """A module without some of its names, and with others in their place."""

    def __init__(self, module: Any, lacking: set[str], **others: Any) -> None:
        self.__dict__.update(_module=module, _lacking=lacking, _others=others)

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            SEEN.add(name)
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return self._others[name] if name in self._others else getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def _open(path: Any, *arguments: Any, **options: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, *arguments, **options)


SEEN: set[str] = set()  # names of POSIX that were asked for


def imitate(platform: str = "win32", name: str = "nt") -> None:
    """For all modules of Penult that are imported from now on."""
    windows = name == "nt"
    lacking, modules = (LACKING, MODULES) if windows else (OF_LINUX, set[str]())
    stripped = {
        "os": Stripped(os, lacking, name=name, open=_open if windows else os.open),
        "sys": Stripped(sys, lacking, platform=platform),
        "signal": Stripped(signal, lacking),
    }
    own, own_open = builtins.__import__, io.open

    def importing(module: str, globals: Any = None, *rest: Any, **options: Any) -> Any:
        by = str((globals or {}).get("__name__", ""))
        if by.partition(".")[0] == "penult":
            if module in modules:
                SEEN.add(module)
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)
            if module in stripped:
                return stripped[module]
        return own(module, globals, *rest, **options)

    def opening(path: Any, *arguments: Any, **options: Any) -> Any:
        named = str(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
        caller = sys._getframe(1)
        while caller is not None and caller.f_globals.get("__name__") == "pathlib":
            caller = caller.f_back  # type: ignore[assignment]
        by = str(caller.f_globals.get("__name__", "")) if caller is not None else ""
        if named.startswith("/proc") and by.partition(".")[0] == "penult":
            SEEN.add(named)
            raise FileNotFoundError(2, "No such file or directory", named)
        return own_open(path, *arguments, **options)

    builtins.__import__ = importing
    io.open = opening
