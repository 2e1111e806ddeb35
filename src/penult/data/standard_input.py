"""Standard input: a list of paths, one a line, or one recording or picture as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

# The first bytes of sound and pictures.
_SIGNATURES = (
    *(b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff"),
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*", b"MM\x00*", b"\x1aE\xdf\xa3"),
)
_LOOKED_AT = 4096  # bytes
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


def piped_item(stdin: TextIO) -> bytes | None:
    """All that is piped in, where it is a recording or a picture; None where it is a list."""
    pipe = getattr(stdin, "buffer", None)  # a stream of text in memory has none
    if pipe is None or not _is_binary(_beginning(pipe)):
        return None
    content: bytes = pipe.read()
    return content


def listed_paths(stdin: TextIO) -> Iterator[str]:
    """The paths of a list, one from each line, or from each zero byte of `find -print0`."""
    pipe = getattr(stdin, "buffer", None)
    if pipe is None:
        yield from (line.rstrip("\r\n") for line in stdin)
        return
    beginning = _beginning(pipe)
    if beginning.startswith(_UTF16):
        yield from pipe.read().decode("utf-16", "replace").splitlines()
    elif b"\0" in beginning:
        yield from (os.fsdecode(name) for name in pipe.read().split(b"\0"))
    else:
        for number, line in enumerate(pipe):
            name = line.removeprefix(_BOM) if number == 0 else line
            yield os.fsdecode(name.rstrip(b"\r\n"))


def _beginning(pipe: object) -> bytes:
    """The first bytes, which stay in the pipe."""
    peek = getattr(pipe, "peek", None)
    if peek is not None:
        return bytes(peek(_LOOKED_AT)[:_LOOKED_AT])
    place = pipe.tell()  # type: ignore[attr-defined]
    found = pipe.read(_LOOKED_AT)  # type: ignore[attr-defined]
    pipe.seek(place)  # type: ignore[attr-defined]
    return bytes(found)


def _is_binary(beginning: bytes) -> bool:
    """Whether these bytes begin a recording or a picture, and no list of names."""
    if beginning.startswith(_UTF16):
        return False
    steering = any(byte < 0x20 and byte not in b"\t\r\n" for byte in beginning)
    known = steering and beginning.startswith(_SIGNATURES)  # a folder may be called RIFF
    return known or (b"\0" in beginning and not _is_list(beginning))


def _is_list(beginning: bytes) -> bool:
    """Whether names stand between the zero bytes, as `find -print0` gives them."""
    names = beginning.split(b"\0")
    return all(names[:-1]) and not any(byte < 0x20 for name in names for byte in name)
