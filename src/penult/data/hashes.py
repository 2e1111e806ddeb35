"""Hashes of settings and of files; and a folder's list of them: written with it, checked when it
is opened.

The list is what `sha256sum -c SHA256SUMS` reads, so that any tool can check it, and sign it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from penult.data.files import file_aside

LIST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\\\n]+)")
_LONGEST = 4_000_000  # bytes of a list
# What people and their tools put beside files, and nothing that opens a folder reads.
_BESIDE = re.compile(
    r"(?:.*/)?\.[^/]+(?:/.*)?|SHA256SUMS\.[^/]+|(?:README|LICENSE|NOTICE|CITATION)[^/]*"
    r"|Thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)


def digest(value: object) -> str:
    """Hash of a JSON-able description; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_list(folder: Path) -> str:
    """Write the list of all files below a folder; gives the list's own hash.

    Raises:
        ValueError: a name that no list can hold.
    """
    lines = [f"{hash_of(folder / name)}  {name}\n" for name in sorted(_names(folder))]
    if wrong := next((line for line in lines if not _LINE.fullmatch(line[:-1])), None):
        raise ValueError(f"a list of hashes cannot name {wrong[66:-1]!r}")
    text = "".join(lines).encode("utf-8", "surrogateescape")
    with file_aside(folder / LIST) as aside:
        aside.write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def list_hash(folder: Path) -> str | None:
    """The hash of a folder's list, which stands for all of its files; None where there is none."""
    path = folder / LIST
    return hash_of(path) if path.is_file() else None


def listed_names(folder: Path) -> list[str]:
    """The names in a folder's list, each of them inside of the folder.

    Raises:
        ValueError: it is no list. OSError: it cannot be read.
    """
    return list(_read(folder / LIST))


def damage(folder: Path, only: Collection[str] | None = None, later: str = "") -> str:
    """What is not as the folder's list says, in words; empty where all is, and where there is no
    list. only: the names that are looked at. later: a folder inside, whose files are checked when
    they are opened; their lists are checked now.

    Files beside the list are damage too, but those that nothing reads (`README.md`, `.git`).
    """
    if not (folder / LIST).is_file():
        return ""
    try:
        listed = _read(folder / LIST)
        for name, expected in listed.items():
            if only is not None and name not in only:
                continue
            if later and name.startswith(f"{later}/") and not name.endswith(f"/{LIST}"):
                continue
            if not (folder / name).is_file():
                return f"{name} is missing"
            if hash_of(folder / name) != expected:
                return f"{name} is not the file that was saved"
        extra = set(_names(folder) if only is None else only) - listed.keys()
    except (OSError, ValueError) as error:
        return f"{LIST} or a file that it names cannot be read: {error}"
    found = sorted(name for name in extra if (folder / name).exists() and not _is_beside(name))
    return f"{found[0]} was added" if found else ""


def listed_content(
    folder: Path, largest: int, most: int
) -> tuple[dict[str, bytes], dict[str, str]]:
    """(content of each file, its hash), by the folder's list: each file is read once, and what is
    given is what was hashed. largest: bytes of all. most: files.

    Raises:
        ValueError: a file is not as the list says, is a link, or was added.
        OSError: a file cannot be read.
    """
    listed = _read(folder / LIST)
    if len(listed) > most:
        raise ValueError(f"it has {len(listed):,} files, and {most:,} is the most")
    found: dict[str, bytes] = {}
    left = largest
    for name, expected in listed.items():
        path = folder / name
        parents = (folder / part for part in PurePosixPath(name).parents)
        if path.is_symlink() or any(one.is_symlink() for one in parents):
            raise ValueError(f"{name} is a link, or lies behind one")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        with path.open("rb") as file:
            found[name] = file.read(left + 1)
        left -= len(found[name])
        if left < 0:
            raise ValueError(f"it has more than {largest:,} bytes")
        if hashlib.sha256(found[name]).hexdigest() != expected:
            raise ValueError(f"{name} is not the file that was saved")
    extra = sorted(name for name in set(_names(folder)) - listed.keys() if not _is_beside(name))
    if extra:
        raise ValueError(f"{extra[0]} was added")
    return found, listed


def _is_beside(name: str) -> bool:
    return _BESIDE.fullmatch(name) is not None


def _names(folder: Path) -> Iterator[str]:
    """The files below a folder, but for its own list; relative, as `engines/1/model.bin`."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*files, *links):
            found = (Path(place) / name).relative_to(folder).as_posix()
            if found != LIST:
                yield found


def _read(path: Path) -> dict[str, str]:
    """The hash of each name.

    Raises:
        ValueError: it is no list, or names something that is not inside of the folder.
    """
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    found: dict[str, str] = {}
    for line in path.read_bytes().decode("utf-8", "surrogateescape").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line[:80]!r} is no line of a list of hashes")
        name = PurePosixPath(match[2])
        drive = match[2][1:2] == ":"
        if name.is_absolute() or ".." in name.parts or str(name) != match[2] or drive:
            raise ValueError(f"{match[2][:80]!r} is not inside of the folder")
        if found.setdefault(match[2], match[1]) != match[1]:
            raise ValueError(f"{match[2][:80]!r} comes twice")
    return found
