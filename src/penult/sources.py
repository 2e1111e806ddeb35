"""Paths, folders, tables and objects as a stream of items, each with its region.

Knows nothing of models or collections, and opens a recording only to count channels for "each".
A table's metadata is typed by reading the table once before it is used.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import unquote, urlsplit

import numpy as np

from penult import tabular
from penult.errors import ItemError, RegionError, SourceError
from penult.media import extensions
from penult.regions import WHOLE, Region

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    Content = Path | bytes | np.ndarray | str | Image.Image

TABLES = tabular.SUFFIXES
RESERVED = frozenset(
    {"id", "region", "kind", "channel", "start", "end", "vector", "logits", "label", "score"}
    | {"truncated", "content_hash", "size", "mtime_ns", "run_id"}
)  # a collection's own columns, which metadata cannot be called

_UNDERSTOOD = {  # what a table's columns can say besides metadata
    "audio": ("path", "id", "start", "end", "channel"),
    "video": ("path", "id", "start", "end"),
    "image": ("path", "id"),
    "text": ("path", "id"),
}
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Item:
    """One recording, picture, video or text.

    `id` is the table's, else the absolute path, else `sha256:…` of the array, bytes or text.
    `content` is a str only where it is the text itself. `size` (bytes) and `mtime_ns` are the
    file's, None without a file. `rate` (Hz) is an audio array's; None is the model's own.
    """

    id: str
    content: Content
    metadata: Mapping[str, object] = field(default_factory=dict)
    size: int | None = None
    mtime_ns: int | None = None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that could not be made or used: `error` is the class, `message` says why."""

    id: str
    region: str
    error: str
    message: str
    size: int | None = None
    mtime_ns: int | None = None

    def words(self) -> str:
        """The message, with the item's name if it is not in it."""
        return self.message if self.id in self.message else f"{self.id}: {self.message}"


Entry = tuple[Item, Region] | Failure
_Placed = tuple[int, Entry]  # with the line or row of its table, 0 where there is none


@dataclass(frozen=True, slots=True)
class Source:
    """Iterate over it for (Item, Region) pairs and Failures; again and again, if the input allows.

    `columns` are the metadata's names and Arrow types, `renamed` maps a table's names to those.
    `total` is how many there are at most, None where that would cost a search.
    """

    start: Callable[[], Iterator[Entry]]
    columns: dict[str, pa.DataType] = field(default_factory=dict)
    total: int | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    countable: bool = False

    def count(self) -> int | None:
        """How many there are, by a search of its own if need be; None where that is not possible
        without using the input up, or without opening every item."""
        if self.total is None and self.countable:
            return sum(1 for _ in self)
        return self.total

    def __iter__(self) -> Iterator[Entry]:
        return self.start()


def from_paths(
    paths: Sequence[str | Path] | str | Path,
    modality: str,
    channel: int | Literal["each"] | None = None,
    stdin: TextIO | None = None,
) -> Source:
    """Files, folders, tables and `-` (one path per line of `stdin`), as a command line names them.

    An (id, region) that comes twice is taken once, or is a Failure where the rows differ; knowing
    this costs some 130 bytes per row (no file is compared), and nothing for a single folder.

    Raises:
        SourceError: no such path, a folder without a fitting file, a table that cannot be used.
    """
    _check_channel(channel, modality)
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    if not paths:
        raise SourceError("no path was given; give files, folders, tables, or - for a list")
    origins = [_origin(os.fspath(path), modality, stdin or sys.stdin) for path in paths]
    columns, renamed = _columns_of([origin.table for origin in origins if origin.table])
    totals = [origin.total for origin in origins]

    def start() -> Iterator[Entry]:
        placed = (
            (number, *found)
            for number, origin in enumerate(origins)
            for found in _by_channel(origin.entries(columns), channel)
        )
        if len(origins) > 1 or not origins[0].distinct:
            return _once_each(placed, origins)
        return (entry for _, _, entry in placed)

    known = None if None in totals or channel == "each" else sum(total or 0 for total in totals)
    countable = channel != "each" and "-" not in {os.fspath(path) for path in paths}
    return Source(start, columns, known, renamed, countable)


def from_objects(
    objects: object, modality: str, channel: int | Literal["each"] | None = None
) -> Source:
    """One thing or an iterable of them: paths, bytes, arrays, (array, rate), PIL images, texts.

    For the modality text a str is the text itself. A single path is taken as `from_paths` does.
    Nothing is left out, so the k-th object gives the k-th entry (unless `channel` is "each").

    Raises:
        SourceError: an object of another kind, or as `from_paths`.
    """
    _check_channel(channel, modality)
    if isinstance(objects, Path) or (isinstance(objects, str) and modality != "text"):
        return from_paths([objects], modality, channel)
    things: Iterable[object]
    if _is_one(objects, modality):
        things = (objects,)
    elif isinstance(objects, Iterable):
        things = objects
    else:
        raise SourceError(f"cannot embed a {type(objects).__name__}; {_ACCEPTED}")
    total = len(things) if isinstance(things, Sized) and channel != "each" else None
    again = _again_or_once(things)

    def start() -> Iterator[Entry]:
        made = ((0, (_item(thing, modality, i), WHOLE)) for i, thing in enumerate(again()))
        return (entry for _, entry in _by_channel(made, channel))

    return Source(start, _text_column() if modality == "text" else {}, total)


def _text_column() -> dict[str, pa.DataType]:
    import pyarrow as pa

    return {"text": pa.string()}


def _check_channel(channel: object, modality: str) -> None:
    extensions(modality)  # raises where there is no such modality
    number = isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0
    if channel is not None and channel != "each" and not number:
        raise SourceError(f"channel {channel!r} is neither a number from 0 on nor 'each'")
    if channel is not None and modality != "audio":
        raise SourceError(f"a channel can be chosen in audio only, not in {modality}")


def _by_channel(entries: Iterable[_Placed], channel: int | str | None) -> Iterator[_Placed]:
    """Give each region that names no channel the chosen one, or one region per channel."""
    for line, entry in entries:
        if channel is None or isinstance(entry, Failure) or entry[1].channel is not None:
            yield line, entry
            continue
        item, region = entry
        if isinstance(channel, int):
            yield line, (item, replace(region, channel=channel))
            continue
        from penult.media import audio

        try:
            count = audio.info(item.content, source_rate=item.rate).channels
        except ItemError as error:
            yield line, _failure(item, region.key, error)
        else:
            for number in range(count):
                yield line, (item, replace(region, channel=number))


def _failure(item: Item, region: str, error: Exception, where: str = "") -> Failure:
    message = f"{where}: {error}" if where else str(error)
    return Failure(item.id, region, type(error).__name__, message, item.size, item.mtime_ns)


def _once_each(placed: Iterable[tuple[int, int, Entry]], origins: list[_Origin]) -> Iterator[Entry]:
    # Per key one integer, not the row: where it first stood, and 32 bits to tell the rows apart.
    seen: dict[int, int] = {}
    for number, line, entry in placed:
        if isinstance(entry, Failure):
            yield entry
            continue
        item, region = entry
        key = _digest(item.id, region.key, size=8)
        row = _digest(item.content, sorted(item.metadata.items()), size=4)
        first = seen.setdefault(key, (number << 32 | line) << 32 | row)
        if first == (number << 32 | line) << 32 | row:
            yield entry
        elif first & 0xFFFFFFFF != row:
            before = origins[first >> 64].place(first >> 32 & 0xFFFFFFFF)
            error = SourceError(
                f"same id and region ({region.key}) as in {before}, but another path or other "
                "metadata; give one of them another id"
            )
            yield _failure(item, region.key, error, origins[number].place(line))


def _digest(*parts: object, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=size).digest())


# ---- objects


_ACCEPTED = "give paths, bytes, arrays, (array, rate) pairs, PIL images or texts"


def _again_or_once(things: Iterable[object]) -> Callable[[], Iterator[object]]:
    if not isinstance(things, Iterator):
        return lambda: iter(things)
    used: list[bool] = []

    def once() -> Iterator[object]:
        if used:
            raise SourceError("the items can be read only once; give a list to read them again")
        used.append(True)
        return things

    return once


def _is_one(thing: object, modality: str) -> bool:
    if isinstance(thing, (str, bytes, Path)) or _is_picture(thing):
        return True
    if isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[1], (int, np.integer)):
        return True
    # A column of a data frame is an array too, but one of paths or texts.
    return hasattr(thing, "__array__") and np.asarray(thing).dtype.kind in "biufc"


def _is_picture(thing: object) -> bool:
    pillow = sys.modules.get("PIL.Image")  # nobody holds a picture who has not imported it
    return pillow is not None and isinstance(thing, pillow.Image)


def _item(thing: Any, modality: str, index: int) -> Item:
    if isinstance(thing, str) and modality == "text":
        return Item(_sha(thing.encode("utf-8", "backslashreplace")), thing, {"text": thing})
    if isinstance(thing, (str, Path)):
        return _file_item(_absolute(thing))
    if isinstance(thing, bytes):
        return Item(_sha(thing), thing)
    if _is_picture(thing):
        return Item(_sha(f"{thing.mode} {thing.size}".encode(), thing.tobytes()), thing)
    rate = None
    if isinstance(thing, tuple) and len(thing) == 2:
        thing, rate = thing[0], int(thing[1])
    if not hasattr(thing, "__array__"):
        raise SourceError(f"item {index} is a {type(thing).__name__}; {_ACCEPTED}")
    array = np.asarray(thing)
    about = f"{array.dtype.str} {array.shape}" + (f" {rate}" if modality == "audio" else "")
    return Item(_sha(about.encode(), array.tobytes()), array, rate=rate)


def _sha(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


# ---- paths


@dataclass(frozen=True, slots=True)
class _Origin:
    """One of the paths that were given: what it yields, and how to name a place in it."""

    name: str
    entries: Callable[[dict[str, pa.DataType]], Iterator[_Placed]]
    total: int | None = None
    table: _Table | None = None
    distinct: bool = False  # nothing in it can come twice

    def place(self, line: int) -> str:
        unit = self.table.unit if self.table else "line"
        return f"{self.name} {unit} {line}" if line else self.name


def _origin(text: str, modality: str, stdin: TextIO) -> _Origin:
    if text == "-":
        lines = _again_or_once(iter(stdin))
        return _Origin("the list of paths", lambda _: _listed(lines()))
    path = _local(text)
    if not path.exists():
        raise SourceError(f"no such file or folder: {text}")
    if path.is_dir():
        _check_folder(path, extensions(modality))
        return _Origin(text, lambda _: _in_folder(path, extensions(modality)), distinct=True)
    if path.suffix.lower() in TABLES:
        table = _open_table(path, modality)
        return _Origin(path.name, table.entries, table.total, table)
    return _Origin(text, lambda _: iter([(0, (_file_item(path), WHOLE))]), 1, distinct=True)


def _listed(lines: Iterable[object]) -> Iterator[_Placed]:
    for number, line in enumerate(lines, 1):
        text = str(line).rstrip("\r\n")
        if not text:
            continue
        try:
            yield number, (_file_item(_local(text)), WHOLE)
        except SourceError as error:
            yield number, _failure(Item(text, text), WHOLE.key, error, f"line {number}")


def _local(text: str, base: str = "") -> Path:
    """The absolute path; relative ones start at `base`, else at the working directory."""
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"{text} lies on another machine; Penult fetches no remote URL")
        text = unquote(parts.path)
    elif _URI.match(text):
        raise SourceError(f"Penult fetches no remote URL: {text}; download it and give its path")
    return _absolute(Path(base, text))


def _absolute(path: str | Path) -> Path:
    # Not `resolve`: a link's own name is the item's, wherever it points.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _file_item(path: Path, id: str | None = None, metadata: Mapping[str, object] = {}) -> Item:
    # A name that is not UTF-8 could not be stored: its bytes are written out in the id.
    name = str(path).encode("utf-8", "backslashreplace").decode()
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Item(id or name, path, metadata)
    return Item(id or name, path, metadata, status.st_size, status.st_mtime_ns)


def _in_folder(folder: Path, accepted: frozenset[str]) -> Iterator[_Placed]:
    for found in _walk(folder, set()):
        if isinstance(found, Failure):
            yield 0, found
        elif found.suffix.lower() in accepted:
            yield 0, (_file_item(found), WHOLE)


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path | Failure]:
    """Every file that is not hidden, each folder in the order of its names and entered once."""
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"the folder cannot be read: {error.strerror}"
        yield Failure(str(folder), WHOLE.key, SourceError.__name__, reason)
        return
    if (status.st_dev, status.st_ino) in entered:
        return  # a link that leads back, or a second way to the same folder
    entered.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself: a file that fails when it is read
            is_folder = False
        if is_folder:
            yield from _walk(Path(entry.path), entered)
        else:
            yield Path(entry.path)


def _check_folder(folder: Path, accepted: frozenset[str]) -> None:
    """Raise where a folder has nothing to offer; stops at the first file that fits."""
    others: Counter[str] = Counter()
    for found in _walk(folder, set()):
        if isinstance(found, Path):
            suffix = found.suffix.lower()
            if suffix in accepted:
                return
            others[suffix or "no extension"] += 1
    found_instead = ", ".join(f"{count} {name}" for name, count in others.most_common(5))
    raise SourceError(
        f"{folder} holds no file that is {' '.join(sorted(accepted))}; "
        + (f"it holds {found_instead}" if others else "it holds no files")
        + (" and others" if len(others) > 5 else "")
    )


# ---- tables


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of items, read anew for each iteration."""

    path: Path
    modality: str
    unit: str  # "line" or "row"
    rows: Callable[[], Iterator[tabular.Row]]
    types: dict[str, pa.DataType]  # by the table's own names
    total: int
    subject: str  # the column that holds the item: path or text
    names: dict[str, str]  # metadata: the table's name -> the collection's

    def entries(self, columns: dict[str, pa.DataType]) -> Iterator[_Placed]:
        """Its rows as items whose metadata has the types of `columns`."""
        for line, row in self.rows():
            yield line, self._entry(line, row, columns)

    def _entry(self, line: int, row: dict[str, Any] | str, columns: dict[str, Any]) -> Entry:
        where = f"{self.path.name} {self.unit} {line}"
        nowhere = Item(f"{self.path}:{line}", "")
        if isinstance(row, str):
            return _failure(nowhere, WHOLE.key, SourceError(row), where)
        subject = row.get(self.subject)
        if subject is None and self.subject == "path":
            return _failure(nowhere, WHOLE.key, SourceError("the path is empty"), where)
        id = None if row.get("id") is None else tabular.as_text(row["id"])
        metadata = {
            new: tabular.typed(row.get(old), columns[new]) for old, new in self.names.items()
        }
        if self.subject == "text":
            text = tabular.as_text("" if subject is None else subject)
            item = Item(id or _sha(text.encode("utf-8", "backslashreplace")), text, metadata)
            return item, WHOLE
        try:
            item = _file_item(_local(tabular.as_text(subject), str(self.path.parent)), id, metadata)
        except SourceError as error:
            return _failure(Item(id or tabular.as_text(subject), ""), WHOLE.key, error, where)
        try:
            return item, _region(row, self.modality)
        except RegionError as error:
            asked = f"{row.get('start') or 0}-{row.get('end') or 'end'}"
            return _failure(item, asked, error, where)


def _region(row: dict[str, Any], modality: str) -> Region:
    given = {name: row.get(name) for name in _UNDERSTOOD[modality] if name not in ("path", "id")}
    start, end = _number(given, "start"), _number(given, "end")
    channel = _number(given, "channel")
    if channel is not None and not channel.is_integer():
        raise RegionError(f"channel {given['channel']!r} is not a whole number")
    return Region(
        kind="whole" if start is None and end is None else "segment",
        start=start,
        end=end,
        channel=None if channel is None else int(channel),
    )


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RegionError(f"{name} {value!r} is not a number")
    return number


def _open_table(path: Path, modality: str) -> _Table:
    unit, rows, types, total = tabular.opened(path)
    subject = "text" if modality == "text" and "text" in types else "path"
    if subject not in types:
        wanted = "`text` or `path`" if modality == "text" else "`path`"
        raise SourceError(f"{path} has no column {wanted}; it has {', '.join(types) or 'none'}")
    # A text has no file to open: it is kept as metadata, to be read in results.
    taken = ("id",) if subject == "text" else _UNDERSTOOD[modality]
    names: dict[str, str] = {}
    for old in types:
        if old in taken:
            continue
        new = _column_name(old)
        if new in names.values():
            raise SourceError(f"{path}: two columns would both be called {new}; rename {old!r}")
        names[old] = new
    return _Table(path, modality, unit, rows, types, total, subject, names)


def _column_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if not name.startswith("_"):
        plain = plain.lstrip("_") or "unnamed"
    if plain[0].isdigit():
        plain = f"c{plain}"
    # Names that begin with _ are the store's.
    return f"{plain}_given" if plain in RESERVED or plain.startswith("_") else plain


def _columns_of(tables: list[_Table]) -> tuple[dict[str, pa.DataType], dict[str, str]]:
    """The metadata columns of all tables together, and which of them were renamed."""
    columns: dict[str, pa.DataType] = {}
    renamed: dict[str, str] = {}
    for table in tables:
        for old, new in table.names.items():
            columns[new] = tabular.common(columns.get(new, table.types[old]), table.types[old])
            if old != new:
                renamed[old] = new
    return columns, renamed
