"""One text from a file, bytes or a string. Knows nothing of tokens or tables."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from penult.data.files import read_bytes
from penult.errors import DecodeError, EmptyItem, RegionError

EXTENSIONS = frozenset({".txt", ".md"})
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
        raise EmptyItem("the text is empty" if not text else "the text is nothing but white space")
    if chars is None:
        return text
    start, end = chars
    if end > len(text):
        raise RegionError(f"characters {start}-{end} are not there: the text has {len(text)}")
    return text[start:end]


PREFIX = "text:"
_FILE_NAME = re.compile(r"\S*[/\\]\S*|~\S*|\S*\.[A-Za-z0-9]{1,8}")


def bare(argument: str) -> str | None:
    """The words that an argument is: behind `text:`, or itself where there is no such file or
    folder and it does not look like the name of one; None for a file. An existing one wins."""
    if argument.startswith(PREFIX):
        return argument.removeprefix(PREFIX)
    try:
        there = Path(argument).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a text that is no possible path
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
        raise DecodeError(
            f"not UTF-8: byte {error.start} is 0x{raw[error.start]:02x} ({error.reason}); "
            "convert the file to UTF-8"
        ) from error
