"""One text from a file, bytes or a string. Knows nothing of tokens or tables."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penult.data.files import file_size, read_bytes, user_path
from penult.errors import DecodeError, EmptyItem, RegionError, cause

EXTENSIONS = frozenset({".txt", ".md"})
_PIECE = 1 << 20  # bytes
_BLANK = "the text is nothing but white space"
_TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
log = logging.getLogger(__name__)


def load(content: object, chars: tuple[int, int] | None = None) -> str:
    """The text of a Path or of bytes, as UTF-8 without its byte order mark; a str is the text.
    chars: only those from the first of these numbers to just before the second.

    Raises:
        RegionError: characters that the text does not have.
        DecodeError: not UTF-8 (the message names the byte), no such file.
        EmptyItem: nothing but white space.
    """
    if isinstance(content, str):
        text = content
    elif isinstance(content, (Path, bytes)):
        text = _decode(read_bytes(content))
    else:
        raise DecodeError(f"a {type(content).__name__} is no text; give a str, a Path or bytes")
    if not text.strip():
        raise EmptyItem(_BLANK if text else "the text is empty")
    if chars is None:
        return text
    start, end = chars
    if end > len(text):
        raise RegionError(f"characters {start}-{end} are not there: the text has {len(text)}")
    return text[start:end]


def load_beginning(
    content: object, chars: tuple[int, int] | None = None, most: int | None = None
) -> tuple[str, int]:
    """The first `most` characters of what `load` gives, and how many there are behind them. A file
    is read piece by piece: all of it is checked, and no more of it is kept.

    Raises:
        RegionError, DecodeError, EmptyItem: as `load`.
    """
    if not isinstance(content, Path) or most is None or file_size(content) <= most:
        text = load(content, chars)
        return (text, 0) if most is None else (text[:most], max(0, len(text) - most))
    start, end = chars or (0, None)
    stop = start + most if end is None else min(start + most, end)
    kept, length, blank = [], 0, True
    for piece in _pieces(content):
        first = max(0, start - length)
        kept.append(piece[first : max(first, stop - length)])
        length += len(piece)
        blank = blank and not piece.strip()
    if blank:
        raise EmptyItem(_BLANK)
    if end is not None and end > length:
        raise RegionError(f"characters {start}-{end} are not there: the text has {length}")
    text = "".join(kept)
    return text, (length if end is None else end) - start - len(text)


def _pieces(path: Path) -> Iterator[str]:
    """A file's text, about a million characters at a time."""
    decoder, done, start, first = codecs.getincrementaldecoder("utf-8")(), 0, 0, True
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(_PIECE)
                start = done - len(decoder.getstate()[0])  # of what the decoder looks at
                piece = decoder.decode(block, final=not block)
                yield piece.removeprefix("\ufeff") if first else piece
                first = first and not piece
                done += len(block)
                if not block:
                    return
    except UnicodeDecodeError as error:
        raise _not_utf8(error, start) from error
    except OSError as error:
        raise DecodeError(f"cannot be read: {path}: {cause(error)}") from error


PREFIX = "text:"
_FILE_NAME = re.compile(r"\S*[/\\]\S*|~\S*|\S*\.[A-Za-z0-9]{1,8}")


def text_in(metadata: Mapping[str, Any], region: str) -> Any:
    """The text of a region, where the metadata of its item holds the whole."""
    text, found = metadata.get("text"), re.fullmatch(r"chars:(\d+)-(\d+)(#.*)?", region)
    return text[int(found[1]) : int(found[2])] if isinstance(text, str) and found else text


def bare(argument: str) -> str | None:
    """The words that an argument is: behind `text:`, or itself where there is no such file or
    folder and it does not look like the name of one; None for a file. An existing one wins."""
    if argument.startswith(PREFIX):
        return argument.removeprefix(PREFIX)
    try:
        there = user_path(argument).exists()
    except (OSError, ValueError):  # a text that is no possible path
        return argument
    ending = Path(argument).suffix.lower()
    named = bool(_FILE_NAME.fullmatch(argument)) or ending in (EXTENSIONS | _TABLES)
    if there and not named and argument != "-":
        log.warning(
            "%r is taken as the file or folder of that name; %s%s means the words",
            *(argument, PREFIX, argument),
        )
    return None if there or named or argument == "-" else argument


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error


def _not_utf8(error: UnicodeDecodeError, start: int = 0) -> DecodeError:
    """start: where in the file the bytes begin that could not be decoded."""
    return DecodeError(
        f"not UTF-8: byte {start + error.start} is 0x{error.object[error.start]:02x} "
        f"({error.reason}); convert the file to UTF-8"
    )
