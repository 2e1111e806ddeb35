"""An item and how it is named: what is embedded, or a failure with its reason. Knows no folders
and no tables.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from penult.data.regions import Region
from penult.errors import LabelsError, PassingFault, SourceError
from penult.memory import bytes_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Content = Path | bytes | np.ndarray | str | Image.Image


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OBJECT = re.compile(r"(s3|gs|az):/{1,2}(?=[^/])")  # a path of the standard library has one slash
_SECRETS = re.compile(
    r"[?&](?:X-Amz-|X-Goog-|AWSAccessKeyId=|Signature=|sig=|se=|\w*token=|\w*secret\w*=|"
    r"access_key\w*=)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One recording, picture, video or text.

    `id` is the table's, else the absolute path (of a text in a table with its line behind it), else
    `sha256:…` of the array, bytes or text.
    `content` is a str only where it is the text itself. `size` (bytes) and `mtime_ns` are the
    file's, None without a file. `rate` (Hz) is an audio array's; None is the model's own.
    `recorded_at`: when it began, in UTC, if that was asked for and is known.
    """

    id: str
    content: Content
    metadata: Mapping[str, object] = field(default_factory=dict)
    size: int | None = None
    mtime_ns: int | None = None
    rate: int | None = None
    recorded_at: datetime | None = None

    @property
    def held(self) -> int:
        """Bytes that it holds itself: content that is in no file, and what its metadata has."""
        content = 0 if isinstance(self.content, Path) else bytes_of(self.content)
        others = (one for one in self.metadata.values() if one is not self.content)
        return content + sum(map(bytes_of, others))

    @property
    def known(self) -> Item:
        """The same without an array, a picture or bytes, which are in nothing that is kept."""
        return self if isinstance(self.content, Path | str) else replace(self, content=b"")


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that could not be used: `error` is the class, `message` the reason."""

    id: str
    region: str
    error: str
    message: str
    size: int | None = None
    mtime_ns: int | None = None

    @classmethod
    def of(cls, item: Item, region: Region, error: Exception) -> Failure:
        """The record of an item that could not be used."""
        name = type(error).__name__
        return cls(item.id, region.key, name, str(error), item.size, item.mtime_ns)

    @property
    def passing(self) -> bool:
        """Whether the world was at fault and not the item, which may do another time."""
        return self.error == PassingFault.__name__

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return {
            "id": self.id,
            "region": self.region,
            "error": self.error,
            "message": self.message,
        }

    def words(self) -> str:
        """The message, with the item's name if it is not in it."""
        return self.message if self.id in self.message else f"{self.id}: {self.message}"


class Note:
    """An object that travels among regions in their order and is not decoded nor run."""

    __slots__ = ()


class Pause(Note):
    """Among regions: none has come for a while, so that it is time for those that wait."""


class OneByOne(Note):
    """Among regions: each of those behind it runs in a pass of its own."""


PAUSE = Pause()
T = TypeVar("T")
R = TypeVar("R")
N = TypeVar("N", bound=Note)  # the notes of one run
Entry = tuple[Item, Region] | Failure
Placed = tuple[int, Entry]  # with the line or row of its table, 0 where there is none


def failure(item: Item, region: str, error: Exception, where: str = "") -> Failure:
    """Why a region of an item cannot be used; `where` names the line of its table."""
    message = f"{where}: {error}" if where else str(error)
    return Failure(item.id, region, type(error).__name__, message, item.size, item.mtime_ns)


def sha(*parts: bytes) -> str:
    """The id of content without a name: its hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def text_item(text: str, id: str | None = None, metadata: Mapping[str, object] = {}) -> Item:
    """A text, named by its words."""
    return Item(id or sha(text.encode("utf-8", "backslashreplace")), text, metadata)


def row_id(table: Path, line: int) -> str:
    """The id of a text in a table: the table's path and the line, or the row, that it stands on."""
    return f"{as_id(table)}:{line}"


TEXT_ROW = re.compile(r"(?:/|[^/:]+/).*:\d+", re.DOTALL)  # the id of a text in a table


def former_id(item: Item) -> str | None:
    """The id that a text of a table had in 0.1.0, of its words; None for other items."""
    if isinstance(item.content, str) and TEXT_ROW.fullmatch(item.id):
        return text_item(item.content).id
    return None


def file_item(path: Path, id: str | None = None, metadata: Mapping[str, object] = {}) -> Item:
    """A file, named by its path; one that is not there fails when it is read."""
    name = as_id(path)
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Item(id or name, path, metadata)
    return Item(id or name, path, metadata, status.st_size, status.st_mtime_ns)


def as_id(path: Path) -> str:
    """The path as an id."""
    return utf8(str(path))


def utf8(text: str) -> str:
    """The text, with the bytes of a name that is not UTF-8 written out: they could not be
    stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def path_of(id: str) -> Path:
    """The path that an id names: the reverse of what `file_item` makes of a path."""
    path = Path(id)
    if "\\udc" not in id or os.path.lexists(path):
        return path
    return Path(re.sub(r"\\udc([89a-f][0-9a-f])", lambda m: chr(0xDC00 + int(m[1], 16)), id))


def is_object(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an object in a store: `s3://…`, `gs://…` or `az://…`."""
    return _OBJECT.match(path if isinstance(path, str) else str(path)) is not None


def checked_uri(text: str | os.PathLike[str]) -> str:
    """The address of an object with both its slashes.

    Raises:
        SourceError: it holds credentials, which are not repeated, or no bucket.
    """
    uri = _OBJECT.sub(r"\1://", str(text))
    parts = uri.split("/", 3)
    if "@" in parts[2] or ":" in parts[2] or _SECRETS.search(uri):
        raise SourceError(
            f"an address {parts[0]}//… with credentials in it is not used, since it would stand in "
            "ids and logs; give them in the environment (AWS_ACCESS_KEY_ID, …)"
        )
    if not parts[2]:
        raise SourceError(f"{uri} names no bucket; give {parts[0]}//BUCKET/FOLDER/")
    return uri


def local(text: str, base: str = "") -> Path:
    """The absolute path; relative ones start at `base`, else at the working directory.

    Raises:
        SourceError: it lies on another machine.
    """
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"{text} lies on another machine; Penult fetches no remote URL")
        text = unquote(parts.path)
    elif _URI.match(text):
        raise SourceError(f"Penult fetches no remote URL: {text}; download it and give its path")
    return absolute(Path(base, text))


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root. A link's own name is the item's, wherever it points."""
    return Path(os.path.abspath(path))  # noqa: PTH100


FOLDER = "folder"
SEPARATOR = ";"  # of the names in a cell that holds several
Namer = Callable[[str, Mapping[str, object]], str | None]


def namer(by: str, columns: Collection[str] | None = None) -> Namer:
    """From an item's id and metadata to its name; None where it has none.

    by: `folder`, the name of the folder that holds the file; a metadata column; or a pattern of
    the path's end with the name in braces, where * is anything: `{}_*_*.wav` reads 7 from
    `7_jackson_32.wav`, `{}/*/*.flac` the folder two levels up. columns: the metadata columns
    there are, if they are known; their names ignore case.

    Raises:
        LabelsError: there is no such column, or the pattern has not one pair of braces.
    """
    if (column := _column(by, columns)) is not None:
        return lambda id, metadata: named(metadata.get(column))
    if by == FOLDER:
        return lambda id, metadata: path_of(id).parent.name or None
    if "{" in by or "}" in by:
        return _pattern(by)
    if columns is None:
        return lambda id, metadata: named(metadata.get(_column(by, metadata) or by))
    there = f"columns: {', '.join(columns)}" if columns else "there are no metadata columns"
    raise LabelsError(
        f"{by!r} names nothing: {there}; `folder` and a pattern such as '{{}}_*.wav' work too"
    )


def _column(name: str, columns: Iterable[str] | None) -> str | None:
    """The column that a name means: the one of that name, else in other letters, else the one that
    had this name in its table and has another here (`label`, `label_given`)."""
    there = list(columns or ())
    if name in there or name == FOLDER:  # Kaleidoscope's column FOLDER is a part of the path
        return name if name in there else None
    for meant in (name.casefold(), f"{name}_given".casefold()):
        if (found := next((one for one in there if one.casefold() == meant), None)) is not None:
            return found
    return None


def named(value: object) -> str | None:
    """A value as a name; None for null, NaN and an empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps becomes one of floats
    return str(value).strip() or None


def names_in(cell: str) -> list[str]:
    """The names in a cell that may hold several: the parts between semicolons, or of a list as
    `["dog", "rain"]`."""
    parts: Sequence[object] = cell.split(SEPARATOR)
    if cell.startswith("[") and cell.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):
            parts = ast.literal_eval(cell)
    return list(dict.fromkeys(name for one in parts if (name := named(one))))


def _pattern(by: str) -> Namer:
    if by.count("{}") != 1 or by.count("{") != 1 or by.count("}") != 1:
        raise LabelsError(f"the pattern {by!r} needs one {{}}, where the name stands: '{{}}_*.wav'")
    parts = PurePath(by).parts
    before, after = (
        "".join("[^/]*" if sign == "*" else re.escape(sign) for sign in half)
        for half in "/".join(parts).split("{}")
    )
    # The name takes as little as the signs behind it allow: {}_* is what stands before the first _.
    matcher = re.compile(f"{before}([^/]+?){after}", re.DOTALL)

    def name(id: str, metadata: Mapping[str, object]) -> str | None:
        tail = "/".join(path_of(id).parts[-len(parts) :])
        found = matcher.fullmatch(tail)
        return named(found[1]) if found else None

    return name


SELECTION = "Selection"  # the column with a number of its own for each line of a Raven table


def further_annotation(item: Item, taken: Collection[str]) -> str:
    """What a further annotation of a span is called: by its selection, else by its number. taken:
    the names of those before it, but for the first, which has none."""
    own = named(item.metadata.get(SELECTION))
    if own is not None and own not in taken:
        return own
    others = len(taken) - ("" in taken)
    return next(name for at in count(2 + others) if (name := str(at)) not in taken)


class UntilError(Generic[T]):
    """What a source gives up to its own error, so that all of it is worked off before that is
    raised: with `then`, behind the last result."""

    def __init__(self, entries: Iterable[T]) -> None:
        self._entries = entries
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._entries
        except Exception as error:  # a table that breaks off, a disk that gives way in the middle
            self._error = error

    def then(self, results: Iterable[R]) -> Generator[R, None, None]:
        """The results, and behind them the error of the source.

        Raises:
            Exception: the one that the source had, mostly a SourceError.
        """
        yield from results
        if self._error is not None:
            raise self._error
