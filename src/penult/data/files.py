"""Files: sizes, bytes, FFmpeg, and which module reads which extension. Knows no folders and no
models.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import importlib
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from penult.data.items import is_object
from penult.errors import (
    DecodeError,
    ItemError,
    MissingExtra,
    PassingFault,
    SourceError,
    StoreError,
    TooLong,
    cause,
)
from penult.extras import require

if TYPE_CHECKING:
    from av.container import InputContainer

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Weights are random to a packer. Zeros are not, so a small archive may be much larger inside.
EXPANDED, _TIMES = 1 << 29, 20
MODALITIES = ("audio", "image", "text", "video", "array", "bytes")


def module(modality: str) -> ModuleType:
    """The module that reads a modality: it has `EXTENSIONS` and `load(content, …)`.

    Raises:
        SourceError: there is no such modality.
    """
    if modality not in MODALITIES:
        raise SourceError(f"no modality {modality!r}; there are {', '.join(MODALITIES)}")
    return importlib.import_module(f"penult.data.{modality}")


def extensions(modality: str) -> frozenset[str]:
    """The file extensions that a folder of this modality is searched for, as `.wav`."""
    found: frozenset[str] = module(modality).EXTENSIONS
    return found


# The beginning of what stands in a working tree for a file that was not fetched, and what does.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("git-lfs", "git lfs pull"),
    b"version https://hawser.github.com/spec/": ("git-lfs", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}
_POINTER_BYTES = 1024  # no pointer is longer


def pointer(path: Path) -> str:
    """In words, that a file is a pointer of git-lfs or git-annex, whose content was not fetched;
    empty for any other path."""
    try:
        if path.is_symlink() and not path.exists() and "annex/objects/" in str(path.readlink()):
            return "is a link of git-annex to content that is not here: fetch it with git annex get"
        if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
            return ""
        with path.open("rb") as file:
            return _pointer_words(file.read(_POINTER_BYTES))
    except (OSError, ValueError):  # what cannot be read is named where it is read
        return ""


def _pointer_words(content: bytes) -> str:
    for beginning, (tool, remedy) in _POINTERS.items():
        if content.startswith(beginning):
            size = re.search(rb"^size (\d+)", content, re.MULTILINE)
            whole = f" of {int(size[1]):,} bytes" if size else ""
            return (
                f"is a pointer of {tool}, {len(content)} bytes in the place of the "
                f"file{whole}: fetch that with {remedy}"
            )
    return ""


# What the system says of a path or of what a file holds. All else that it may say, such as a disk
# that gives way, too many open files, a lost connection or a permission, is so at this time only.
_VERDICTS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
    | {errno.EOVERFLOW, errno.EFBIG, errno.EILSEQ, errno.EDOM, errno.ERANGE, errno.ESPIPE}
)
_FAULTS = frozenset(
    {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES}
    | {errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
)


def is_passing(error: BaseException) -> bool:
    """Whether the system was at fault and not what a file holds."""
    return isinstance(error, OSError) and (error.errno or 0) > 0 and error.errno not in _VERDICTS


def names_passing(words: str) -> bool:
    """Whether a library's words hold those of the system for such a fault."""
    return any(os.strerror(number) in words for number in _FAULTS)


NO_ROOM = (
    "does not fit into the memory that there is for one item; give the run more (--memory), or cut "
    "it into parts (--window, --tile)"
)


def item_error(error: BaseException, where: str = "cannot be read") -> ItemError:
    """What a library or the system raised on one item, as its failure; `where` comes first."""
    if isinstance(error, ItemError):
        return error
    if isinstance(error, MemoryError):
        return TooLong(NO_ROOM)
    kind = PassingFault if is_passing(error) else DecodeError
    return kind(f"{where}: {cause(error)}")


def file_size(path: Path) -> int:
    """Bytes of a file that can be read.

    Raises:
        DecodeError: there is none, it is a folder or a device, or it is a pointer of git-lfs or
            git-annex.
        PassingFault: it may not be read, or the disk fails.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError(f"is a folder, not a file: {path}")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe or a device could block for ever.
            raise DecodeError(f"is a pipe or a device, not a file: {path}")
        with path.open("rb"):
            pass
        if status.st_size <= _POINTER_BYTES and (words := pointer(path)):
            raise DecodeError(f"{words}: {path}")
        return status.st_size
    except FileNotFoundError as error:
        raise DecodeError(f"{pointer(path) or 'no such file'}: {path}") from error
    except PermissionError as error:
        raise PassingFault(f"no permission to read: {path}") from error
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a failing disk
        raise item_error(error, f"cannot be read: {path}") from error


_HEAD = 4096  # bytes that show whether a file is text
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def text_words(content: Path | bytes) -> str:
    """What a file of text is, for a message that it is no sound; empty where it is none: `it is a
    table with the columns Selection, View, Channel`."""
    text = _beginning(content)
    if not text.strip() or _CONTROL.search(text):
        return ""
    lines = text.lstrip().splitlines()
    first = lines[0].strip()
    if re.match(r"<(!doctype html|html)", first, re.IGNORECASE):
        return "it is a web page (HTML)"
    for sign in "\t;,":
        cells = [cell.strip().strip('"') for cell in first.split(sign)]
        if len(cells) > 1 and len(lines) > 1 and lines[1].count(sign) == len(cells) - 1:
            named = ", ".join(cells[:6]) + (", …" if len(cells) > 6 else "")
            return f"it is a table with the columns {named[:200]}; give it as a table, as .csv"
    shown = first if len(first) <= 40 else f"{first[:40]}…"
    return f"it is text, which begins {shown!r}"


def _beginning(content: Path | bytes) -> str:
    """The beginning of a file as text; empty where it is none."""
    try:
        if isinstance(content, bytes):
            head = content[:_HEAD]
        else:
            with content.open("rb") as file:
                head = file.read(_HEAD)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return head[: len(head) // 2 * 2].decode("utf-16")
        # The last character may be cut.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except (OSError, ValueError):
        return ""


def read_bytes(content: Path | bytes) -> bytes:
    """The bytes of a file, or the bytes that were given.

    Raises:
        DecodeError, PassingFault: as `file_size`.
    """
    if isinstance(content, bytes):
        return content
    file_size(content)
    try:
        return content.read_bytes()
    except OSError as error:
        raise item_error(error, f"cannot be read: {content}") from error


def flush(target: Path | int) -> None:
    """A file (or its descriptor) or a folder to the disk itself, past the system's memory.

    Raises:
        OSError: the disk did not take it.
    """
    if isinstance(target, int):
        _flush(target)
        return
    if is_object(target):  # kept by the store once it was written
        return
    is_folder = target.is_dir()
    if is_folder and os.name == "nt":  # its folders cannot be opened, and need not be
        return
    opened = os.open(target, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        _flush(opened)
    except OSError as error:
        # Some network and user-space file systems have no folders to flush.
        if not is_folder or error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(opened)


_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EBADF, errno.ENOSYS)


def _flush(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # macOS: fsync alone stops in the drive's own memory
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
    os.fsync(descriptor)


def _beside(path: Path) -> Path:
    """A name that no other process or thread takes, short enough for any file system."""
    return path.with_name(f".{_short(path)}-{uuid.uuid4().hex}")


def _short(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:_NAMED])


_NAMED = 200  # bytes of a name that a temporary one keeps; most file systems take 255
_ASIDE = re.compile(r"-(?:[0-9a-f]{8}|[0-9a-f]{32})(?:-old)?")
_LEFT = 60.0  # seconds after which a temporary file that nobody holds was left by a kill


def _clear_leftovers(path: Path) -> None:
    """Takes away what killed writers of this name left: temporary files that no process holds."""
    if fcntl is None:
        return
    start = f".{_short(path)}"
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if not entry.name.startswith(start) or not _ASIDE.fullmatch(entry.name[len(start) :]):
                continue
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False) and _is_left(Path(entry.path)):
                    Path(entry.path).unlink()


def _is_left(aside: Path) -> bool:
    opened = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if abs(time.time() - os.fstat(opened).st_mtime) < _LEFT:
            return False
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    finally:
        os.close(opened)


def _held(aside: Path) -> int | None:
    """A new file, held by this process until its descriptor is closed; at once on Windows, where an
    open file cannot be renamed."""
    opened = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    if fcntl is None:
        os.close(opened)
        return None
    with suppress(OSError):  # a file system without locks
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return opened


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to. After the block it is on the disk and replaces `path`
    in one step; after an error `path` is as it was, and nothing else is left."""
    with files_aside([path]) as (aside,):
        yield aside


@contextmanager
def files_aside(paths: Sequence[Path], *, overwrite: bool = True) -> Iterator[list[Path]]:
    """As `file_aside`, for files that belong together, which others replace together too.

    Raises:
        FileExistsError: one of them is there at the end, and `overwrite` is false.
    """
    asides = [_beside(path) for path in paths]
    with ExitStack() as stack:
        for path, aside in zip(paths, asides, strict=True):
            _clear_leftovers(path)
            stack.callback(_unlink, aside)
            if (held := _held(aside)) is not None:
                stack.callback(os.close, held)
        yield asides
        for aside in asides:
            flush(aside)
        with one_at_a_time(paths[0].parent):
            if not overwrite and (there := [path for path in paths if os.path.lexists(path)]):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(there[0]))
            for path, aside in zip(paths, asides, strict=True):
                aside.replace(path)
        for folder in {path.parent for path in paths}:
            flush(folder)


def _unlink(aside: Path) -> None:
    with suppress(OSError):
        aside.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """While files of a folder are replaced, among all processes that do so here."""
    opened = None
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                opened = os.open(folder, os.O_RDONLY)
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        if opened is not None:
            os.close(opened)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """As `file_aside`, for a folder: an empty new one, in whose place `path` comes. An older folder
    there goes once the new one is whole and on the disk."""
    aside = _beside(path)
    old = aside.with_name(f"{aside.name}-old")
    aside.mkdir(parents=True)
    try:
        yield aside
        for root, _, names in os.walk(aside, topdown=False):
            for name in names:
                flush(Path(root, name))
            flush(Path(root))
        with one_at_a_time(path.parent):
            if not (path.exists() and _exchanged(aside, path)):
                if path.exists():
                    path.rename(old)
                aside.rename(path)
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders changed their places in one step, which Linux alone does."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a shell has it: `~` is the user's home, `~name` another one's; where there is no
    such user it stays as it was typed, and is the name of a file."""
    found = Path(path)
    try:
        return found.expanduser()
    except RuntimeError:
        return found


def user_cache() -> Path:
    """The user's folder for what can be made again; PENULT_CACHE names another. Of a user without a
    home, as in a container, it is beside other temporary files."""
    if named := os.environ.get("PENULT_CACHE"):
        return user_path(named)
    home = user_path("~")
    cache = home / ".cache" if home.is_absolute() else Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or cache) / "penult"


def write_file(path: str | os.PathLike[str], parts: Iterable[bytes]) -> Path:
    """Write these parts to a file that is whole or absent; gives its path without `~`.

    Raises:
        StoreError: it cannot be written.
    """
    target = user_path(path)
    try:
        with file_aside(target) as aside, aside.open("wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _as_file(content: Path | bytes | io.IOBase) -> AbstractContextManager[Any]:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    return content.open("rb") if isinstance(content, Path) else nullcontext(content)


@contextmanager
def opened_by_ffmpeg(content: Path | bytes | io.IOBase, kind: str) -> Iterator[InputContainer]:
    """A container opened by PyAV; what goes wrong inside the `with` is a DecodeError too.

    Raises:
        DecodeError: PyAV is not installed (the message names the extra), or FFmpeg cannot read it.
    """
    try:
        av = require("av")
    except MissingExtra as error:
        # One file of a run needs it: the run goes on and names the file.
        raise DecodeError(f"not readable as {kind} without an extra: {error}") from error
    with (
        ffmpeg_errors(kind),
        _as_file(content) as file,
        # A play list must not make FFmpeg open other files or addresses.
        av.open(
            file, options={"protocol_whitelist": "none"}, metadata_errors="replace"
        ) as container,
    ):
        yield container


@contextmanager
def ffmpeg_errors(kind: str) -> Iterator[None]:
    """Turn what PyAV raises inside the `with` into a DecodeError; a disk that fails is a
    PassingFault, and a MemoryError is raised as it is."""
    import av

    try:
        yield
    except MemoryError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError, OverflowError) as error:
        # FFmpeg has numbers of its own: what it calls an error of input is a damaged file.
        if not isinstance(error, av.FFmpegError) and is_passing(error):
            raise item_error(error) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise DecodeError(f"not readable as {kind}: FFmpeg: {reason}") from error


def archive_entries(source: Path | IO[bytes]) -> list[zipfile.ZipInfo]:
    """What a zip archive lists; nothing if it is no such archive, or not there."""
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return []


def expansion(source: Path | IO[bytes]) -> str:
    """Why an archive is not read: it would grow without measure. Empty of any other file."""
    total = sum(entry.file_size for entry in archive_entries(source))
    if total <= EXPANDED:
        return ""
    stored = source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)
    return expanded(total, stored)


def expanded(total: int, stored: int) -> str:
    """Why a file of `stored` bytes that would be `total` is not read; empty if it may be."""
    if total <= max(EXPANDED, _TIMES * stored):
        return ""
    return (
        f"has {stored:,} bytes, and would be {total:,} when it is unpacked, as no trained weights "
        "are: it was not read"
    )
