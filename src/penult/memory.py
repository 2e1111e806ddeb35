"""Memory of a run: what the machine has free, the bound of all processes together, the peak of a
call. Knows no items and no models.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from penult.errors import UsageError

SHARE, MOST = 0.5, 4_000_000_000  # of what is free, and bytes, by default
LEAST = 64_000_000  # bytes; less holds no batch of an ordinary model
_UNITS = {"": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(?:(%)|([KMGT]?)(i?)B?)\s*", re.IGNORECASE)


_SELDOM = 50_000  # objects made and kept, between two looks for those that only refer to each other
_usual: list[tuple[int, int, int]] = []  # how often Python looks once this program has started


@contextmanager
def starting() -> Iterator[None]:
    """A program that starts, until the end of the block or `started`: Python looks seldom for
    objects that nothing refers to, since libraries make a million and leave nearly none."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(_SELDOM, *_usual[0][1:])
    try:
        yield
    finally:
        started()


def started() -> None:
    """From here on objects may be large (decoded items), and Python looks as often as usual. No
    change where no program was `starting`."""
    with suppress(IndexError):
        gc.set_threshold(*_usual.pop())


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `512MiB`, `1500000000`, or of a share of what is free, `60%`.

    Raises:
        UsageError: it is none, or less than a run can do with.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is no amount of memory; 2GB, 512MiB and 60% are")
    if found[2]:
        share = float(found[1]) / 100
        if not 0 < share <= 1:
            raise UsageError(f"{text!r} of the memory cannot be; give more than 0% and up to 100%")
        return max(LEAST, int(share * free_memory()))
    unit = found[3].upper()
    size = float(found[1]) * ((1024 if found[4] else 1000) ** _UNITS[unit] if unit else 1)
    return check_size(int(size))


def check_size(size: int) -> int:
    """The bytes of a bound, unless there are too few of them.

    Raises:
        UsageError: less than a run can do with.
    """
    if size < LEAST:
        raise UsageError(
            f"no batch fits into {size:,} bytes of memory; give at least {in_words(LEAST)}"
        )
    return size


def in_words(size: float) -> str:
    """Bytes as people read them: `2.5 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"


def bytes_of(value: object) -> int:
    """Bytes of a text, of bytes, an array or a picture, about; 0 of all else."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, bytes):
        return len(value)
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if hasattr(value, "width") and hasattr(value, "height"):
        return 3 * int(value.width) * int(value.height)
    return 0


def free_memory() -> int:
    """Bytes that processes can still take: of the machine, and of the control groups that this
    process is in."""
    bounds = [_machine_free(), *_group_free()]
    return max(LEAST, min(bounds))


def check_unpacked(archive: IO[bytes] | Path) -> None:
    """Refuse a zip archive, such as an npz, that takes more than there is once it is unpacked.

    Raises:
        ValueError: it does. OSError, BadZipFile: it cannot be read.
    """
    from zipfile import ZipFile

    with ZipFile(archive) as opened:
        size = sum(one.file_size for one in opened.infolist())
    # What is unpacked is there twice for a moment, as bytes and as an array.
    if 2 * size > (free := free_memory()):
        raise ValueError(f"it takes {in_words(size)} unpacked, and {in_words(free)} are free")


def _machine_free() -> int:
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        return 1024 * fields.get("MemAvailable", fields["MemFree"])
    with suppress(OSError, ValueError, AttributeError):  # macOS: what is free is not told simply
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return MOST


def _group_free() -> Iterator[int]:
    """What each control group, of version 1 or 2, leaves."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if kinds else "/sys/fs/cgroup")
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if kinds
            else ("memory.max", "memory.current")
        )
        # In a container the path is that outside of it, and the group itself is the root.
        places = {root, *(root / path.lstrip("/") / up for up in (".", "..", "../.."))}
        for place in places:
            with suppress(OSError, ValueError):  # `max` is no number: no bound
                bound, used = (int((place / name).read_text()) for name in names)
                if bound < 1 << 60:
                    yield max(0, bound - used)


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """Bytes that decoded content, inputs and batches of a run may take together, over all its
    processes, beside what the model and the libraries take.

    A sixteenth is for decoded content that waits, one for inputs that wait, a half for the pass
    that is under way; what is left is for what the decoders are at.
    """

    size: int

    @classmethod
    def by_default(cls) -> MemoryBound:
        """Half of what is free, and no more than 4 GB."""
        return cls(max(LEAST, min(MOST, int(SHARE * free_memory()))))

    @property
    def waiting(self) -> int:
        """Bytes of decoded content that may wait, and of inputs."""
        return self.size // 16

    @property
    def queue(self) -> int:
        """Bytes that one queue of items holds which are in no file."""
        return self.waiting // 4

    @property
    def largest(self) -> int:
        """Bytes of one decoded item."""
        return self.size // 4

    @property
    def batch(self) -> int:
        """Bytes that one pass of the model may take for itself."""
        return self.size // 2


class Held:
    """Bytes that several queues hold together, up to a bound."""

    def __init__(self, bound: int) -> None:
        self._bound, self._bytes = bound, 0
        self._changed = threading.Condition()

    def take(self, size: int, alone: Callable[[], bool]) -> None:
        """Wait for room for as many bytes. alone: whether it may not wait for others, which is
        asked again and again."""
        with self._changed:
            while self._bytes + size > self._bound and not alone():
                self._changed.wait(0.1)
            self._bytes += size

    def free(self, size: int) -> None:
        """Give back as many bytes."""
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()


@cache
def _libc() -> ctypes.CDLL | None:
    with suppress(OSError):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            return library
    return None


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    if sys.platform == "linux" and (library := _libc()) is not None:
        library.malloc_trim(0)


@contextmanager
def peak() -> Iterator[list[int]]:
    """Bytes by which this process grows in the block, at its highest; the list stays empty where
    the system does not tell."""
    found: list[int] = []
    before = None
    with suppress(OSError, ValueError, KeyError):
        trim()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
    yield found
    if before is not None:
        with suppress(OSError, ValueError, KeyError):
            found.append(max(0, _resident("VmHWM") - before))


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(fields[name].split()[0])
