"""Paths, objects, standard input and shards as one stream of (item, region) entries."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, Literal, TextIO, TypeVar

from penult.data import annotation_files, tables, text
from penult.data.decode import DecodeTarget, Describe, described
from penult.data.files import extensions
from penult.data.folders import (
    HIDDEN,
    KnownFiles,
    Recordings,
    Shelf,
    check_folder,
    count_files,
    count_hidden,
    count_others,
    in_folder,
)
from penult.data.items import (
    Entry,
    Failure,
    Item,
    Placed,
    UntilError,
    checked_uri,
    failure,
    file_item,
    further_annotation,
    is_object,
    local,
    sha,
    text_item,
)
from penult.data.objects import ACCEPTED, is_one, item_of
from penult.data.regions import WHOLE
from penult.data.roots import Roots
from penult.data.standard_input import listed_paths, piped_item
from penult.data.tables import PATH, RESERVED, Table, columns_of, open_table
from penult.data.workers import headers
from penult.errors import ItemError, SourceError, UsageError, cause

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = [
    "RESERVED",
    "Entry",
    "Failure",
    "Item",
    "Source",
    "UntilError",
    "from_objects",
    "from_paths",
    "item_of",
    "left_out",
]

TABLES = tables.SUFFIXES
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """Iterate over it for (Item, Region) pairs and Failures; again and again, if the input allows.

    `columns` are the metadata's names and Arrow types, `renamed` maps a table's names to those.
    `total` is how many there are at most, None where that would cost a search. `searched` are the
    folders in which only the recordings of annotations are looked for; `paths` are the other
    folders, tables and files, absolute. `notes` say what is unusual about tables, in words.
    `once`: it reads an iterator of the caller's, which may belong to the caller's thread. `folder`:
    it is all files of this one with these extensions. `channel`: the one that was chosen. `roots`:
    what ids begin with, in place of absolute paths. `uris`: objects of a store, and prefixes.
    """

    start: Callable[[], Iterator[Entry]]
    columns: dict[str, pa.DataType] = field(default_factory=dict)
    total: int | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    countable: bool = False
    searched: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    once: bool = False
    folder: tuple[Path, frozenset[str]] | None = None
    channel: int | Literal["each"] | None = None
    roots: Roots | None = None
    uris: tuple[str, ...] = ()

    def beyond(self, known: KnownFiles) -> Source:
        """The source without files that are known as they are; of one folder only."""
        if self.folder is None:
            return self
        folder, accepted = self.folder
        start = lambda: (entry for _, entry in in_folder(folder, accepted, known))  # noqa: E731
        return replace(self, start=start, folder=None)

    def count(self) -> int | None:
        """How many there are, by a search of its own if need be; None where that is not possible
        without using the input up, or without opening every item."""
        if self.folder is not None:
            return count_files(*self.folder)
        if self.total is None and self.countable:
            return sum(1 for _ in self)
        return self.total

    def __iter__(self) -> Iterator[Entry]:
        entries = self.start()
        return map(_bounded, map(self.roots.entry, entries) if self.roots else entries)


LONGEST_ID = 32_768  # characters; no system has a longer path


def _bounded(entry: Entry) -> Entry:
    """The entry, or a failure in the place of one whose id is no path and no name, so long is it:
    what a broken table has in its column would be stored, and printed, with each message."""
    one = entry if isinstance(entry, Failure) else entry[0]
    if len(one.id) <= LONGEST_ID:
        return entry
    digest = hashlib.sha256(one.id.encode("utf-8", "backslashreplace")).hexdigest()
    known = f"{one.id[:120]}… ({len(one.id):,} characters, sha256:{digest[:12]})"
    reason = SourceError(
        f"an id or path of {len(one.id):,} characters; up to {LONGEST_ID:,} are taken. Is a quote "
        "missing in the table?"
    )
    region = one.region if isinstance(one, Failure) else entry[1].key  # type: ignore[index]
    return failure(Item(known, b""), region, reason)


def from_paths(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    modality: str,
    channel: int | Literal["each"] | None = None,
    stdin: TextIO | None = None,
    columns: Mapping[str, str] | None = None,
    describe: Describe = headers,
) -> Source:
    """Files, folders, tables and `-` (one path per line of `stdin`), as a command line names them;
    for the modality text also the words themselves, see `penult.data.text.bare`.

    An (id, region) that comes twice is taken once. Where one table annotates the same span of a
    file several times, each line is a region of its own, told apart by `annotation`; rows of
    several tables that differ are Failures. Knowing this costs some 140 bytes per row (no file is
    compared), and nothing for a single folder.

    Raven, Audacity, RTTM and TextGrid annotations are tables of segments, and so are the tables of
    BirdNET, Kaleidoscope and others, known by their columns. Where one is given, folders are where
    its recordings are looked for, after the table's own, and not embedded themselves.

    columns: which columns of tables hold `path`, `start`, `end`, `duration`, `channel`, `id` or the
    edges of a box, where their names do not tell; default: those of `named_columns`. describe:
    reads the headers of files whose channels, or whose sizes for relative boxes, are needed.

    Raises:
        SourceError: no such path, a folder without a fitting file, a table that cannot be used.
    """
    _check_channel(channel, modality)
    texts = _texts_of([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    words, uris, files = _parted(texts, modality)
    given = _NAMED_COLUMNS.get() if columns is None else columns
    shelf = _shelf(files, modality, given)
    searched = [one for one in shelf.folders if one not in recording_folders()]
    apart = {"-", *words, *uris}
    named_paths = [p for p in texts if p in apart or local(p) not in searched]
    stdin = stdin or sys.stdin
    origins = [
        _words(p, words[p]) if p in words else _origin(p, modality, stdin, shelf, given, describe)
        for p in named_paths
    ]
    table_origins = [origin.table for origin in origins if origin.table]
    kept, renamed = columns_of(table_origins) if table_origins else ({}, {})
    kept = {**(_text_column() if words else {}), **kept}
    totals = [origin.total for origin in origins]

    def start() -> Iterator[Entry]:
        placed = (
            (number, line, entry)
            for number, origin in enumerate(origins)
            for line, entry in by_channel(origin.entries(kept), channel, describe)
        )
        if len(origins) > 1 or not origins[0].distinct:
            return _once_each(placed, origins)
        return (entry for _, _, entry in placed)

    return Source(
        start,
        kept,
        None if None in totals or channel == "each" else sum(total or 0 for total in totals),
        renamed,
        countable=channel != "each" and "-" not in texts and not uris,
        searched=tuple(map(str, searched)),
        paths=tuple(str(local(one)) for one in named_paths if one not in apart),
        uris=tuple(map(checked_uri, uris)),
        notes=tuple(note for table in table_origins for note in table.notes),
        folder=origins[0].folder if len(origins) == 1 and channel is None else None,
        channel=channel,
    )


def _parted(texts: list[str], modality: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Words, by their arguments; addresses of objects; and the rest."""
    bare = {one: text.bare(one) for one in texts} if modality == "text" else {}
    words = {one: said for one, said in bare.items() if said is not None}
    uris = [one for one in texts if one not in words and is_object(one)]
    return words, uris, [one for one in texts if one not in words and one not in uris]


def _texts_of(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    if not paths:
        raise SourceError("no path was given; give files, folders, tables, or - for a list")
    texts = [os.fspath(path) for path in paths]
    if "" in texts:  # which would be the working directory: an unset variable of a shell
        raise SourceError("one of the paths is empty; give files, folders, tables, or .")
    return texts


def left_out(source: Source, modality: str) -> Counter[str]:
    """Files of another kind in the folders that were given: how many, by their extensions; and
    hidden ones that would fit."""
    folders, accepted = [p for p in map(Path, source.paths) if p.is_dir()], extensions(modality)
    found = sum((count_others(folder, accepted) for folder in folders), Counter[str]())
    if hidden := sum(count_hidden(folder, accepted) for folder in folders):
        found[HIDDEN] = hidden
    return found


_NAMED_COLUMNS: ContextVar[Mapping[str, str]] = ContextVar(
    "named_columns", default=MappingProxyType({})
)


@contextmanager
def named_columns(columns: Mapping[str, str]) -> Iterator[None]:
    """Within the block, tables are read with these columns for their roles, such as
    `{"path": "IN FILE", "start": "OFFSET"}`; see `from_paths`."""
    token = _NAMED_COLUMNS.set(columns)
    try:
        yield
    finally:
        _NAMED_COLUMNS.reset(token)


_RECORDINGS: ContextVar[tuple[Path, ...]] = ContextVar("recordings", default=())


def recording_folders() -> tuple[Path, ...]:
    """Where the files are looked for that tables name, beside where the tables are."""
    return _RECORDINGS.get()


_ROOTS: ContextVar[Roots | None] = ContextVar("roots", default=None)


@contextmanager
def recordings_in(
    folders: Sequence[str | os.PathLike[str]], roots: Roots = Roots()
) -> Iterator[None]:
    """Within the block, files that tables name are looked for in these folders too: below them as
    the path is written, else by its longest end that there is, see `Recordings`. roots: of a
    collection, by whose ids a column `path` may name files.

    Raises:
        SourceError: one that is no folder.
    """
    places = tuple(local(os.fspath(one)) for one in folders)
    if odd := [one for one in places if not one.is_dir()]:
        raise SourceError(f"there is no folder {odd[0]} to look for recordings in")
    tokens = _RECORDINGS.set(places), _ROOTS.set(roots)
    try:
        yield
    finally:
        _RECORDINGS.reset(tokens[0])
        _ROOTS.reset(tokens[1])


def from_objects(
    objects: object,
    modality: str,
    channel: int | Literal["each"] | None = None,
    describe: Describe = headers,
) -> Source:
    """One thing or an iterable of them: paths, bytes, open files, arrays, (array, rate), PIL
    images, texts.

    For the modality text a str is the text itself. A single path is taken as `from_paths` does; an
    open file is one item, named by its content. Nothing is left out, so the k-th object gives the
    k-th entry (unless `channel` is "each").

    Raises:
        SourceError: an object of another kind, or as `from_paths`; also where the entries are
            iterated, with the number of the item that could not be had.
    """
    _check_channel(channel, modality)
    if isinstance(objects, os.PathLike) or (isinstance(objects, str) and modality != "text"):
        return from_paths([objects], modality, channel, describe=describe)
    things: Iterable[object]
    if is_one(objects):
        # Of a pipe there is only one reading.
        things = (item_of(objects, modality),)
    elif isinstance(objects, Iterable):
        things = objects
    else:
        raise SourceError(f"an object of type {type(objects).__name__} is no item; {ACCEPTED}")
    total = len(things) if isinstance(things, Sized) and channel != "each" else None
    restart = _restartable(things)

    def start() -> Iterator[Entry]:
        made = ((0, (_item(one, modality, i), WHOLE)) for i, one in _numbered(restart()))
        return (entry for _, entry in by_channel(made, channel, describe))

    columns = _text_column() if modality == "text" else {}
    return Source(start, columns, total, once=isinstance(things, Iterator), channel=channel)


def _item(thing: object, modality: str, index: int) -> Item:
    return thing if isinstance(thing, Item) else item_of(thing, modality, index)


def _numbered(things: Iterable[object]) -> Iterator[tuple[int, object]]:
    """The objects that an iterable gives. An error of its own is that of no item before it."""
    iterator, number = iter(things), 0
    while True:
        try:
            thing = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # an iterable of somebody else may raise anything
            raise SourceError(
                f"the {type(things).__name__} that gives the items failed where item {number} was "
                f"asked for (the first is 0): {cause(error, named=True)}"
            ) from error
        yield number, thing
        number += 1


class Repeatable(Generic[T]):
    """Values that can be read once, to be read again and again: all of them are kept."""

    def __init__(self, values: Iterable[T]) -> None:
        self._unread = tee(values, 1)[0]

    def __iter__(self) -> Iterator[T]:
        return copy(self._unread)


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


def by_channel(
    entries: Iterable[Placed], channel: int | str | None, describe: Describe
) -> Iterable[Placed]:
    """Give each region without a channel the chosen one, or one region per channel."""
    if channel is None:
        return entries
    if isinstance(channel, int):
        return _with_channel(entries, channel)
    return _with_each_channel(entries, describe)


def _with_channel(entries: Iterable[Placed], channel: int) -> Iterator[Placed]:
    for line, entry in entries:
        if isinstance(entry, Failure) or entry[1].channel is not None:
            yield line, entry
        else:
            yield line, (entry[0], replace(entry[1], channel=channel))


def _with_each_channel(entries: Iterable[Placed], describe: Describe) -> Iterator[Placed]:
    target = DecodeTarget("audio", header="sound")
    found = described(entries, target, lambda _, region: region.channel is None, describe)
    for line, entry, header in found:
        if header is None:
            yield line, entry
            continue
        item, region = entry
        if isinstance(header, ItemError):
            yield line, failure(item, region.key, header)
            continue
        for number in range(header.channels):
            yield line, (item, replace(region, channel=number))


def _once_each(placed: Iterable[tuple[int, int, Entry]], origins: list[_Origin]) -> Iterator[Entry]:
    """Each row once; of one table's rows on the same span, the further ones by annotation."""
    # Per key one integer, not the row: where it first stood, and 32 and 64 bits to tell contents
    # and metadata apart. A span may have as many annotations as a table has lines.
    seen: dict[int, int] = {}
    further: dict[int, tuple[set[int], dict[str, None]]] = {}  # rows, names; of few spans
    for number, line, entry in placed:
        if isinstance(entry, Failure):
            yield entry
            continue
        item, region = entry
        key = _digest(item.id, region.key, size=8)
        content = _digest(item.content, size=4)
        row = content << 64 | _digest(sorted(item.metadata.items()), size=8)
        first = seen.setdefault(key, (number << 32 | line) << 96 | row)
        if first == (number << 32 | line) << 96 | row:
            yield entry
            continue
        rows, names = further.get(key, (set(), {}))
        if first & _ROW == row or row in rows:
            continue
        if first >> 128 == number and first >> 64 & 0xFFFFFFFF == content:
            name = further_annotation(item, names)
            further[key] = rows, names
            rows.add(row)
            names[name] = None
            yield item, replace(region, annotation=name)
        else:
            before = origins[first >> 128].place(first >> 96 & 0xFFFFFFFF)
            named = "another text" if isinstance(item.content, str) else "another path"
            other = "other metadata" if first >> 64 & 0xFFFFFFFF == content else named
            error = SourceError(
                f"same id and region ({region.key}) as in {before}, but {other}; "
                "give one of them another id, or put both annotations of a file into one table"
            )
            yield failure(item, region.key, error, origins[number].place(line))


_ROW = (1 << 96) - 1


def _digest(*parts: object, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=size).digest())


# ---- objects


def _restartable(things: Iterable[object]) -> Callable[[], Iterator[object]]:
    if not isinstance(things, Iterator):
        return lambda: iter(things)
    used: list[bool] = []

    def once() -> Iterator[object]:
        if used:
            raise SourceError("the items can be read only once; give a list to read them again")
        used.append(True)
        return things

    return once


# ---- paths


@dataclass(frozen=True, slots=True)
class _Origin:
    """One of the paths: its entries, and the name of a place in it."""

    name: str
    entries: Callable[[dict[str, pa.DataType]], Iterator[Placed]]
    total: int | None = None
    table: Table | None = None
    distinct: bool = False  # nothing in it can come twice
    folder: tuple[Path, frozenset[str]] | None = None  # all of whose files it is

    def place(self, line: int) -> str:
        unit = self.table.unit if self.table else "line"
        return f"{self.name} {unit} {line}" if line else self.name


def _shelf(texts: list[str], modality: str, given: Mapping[str, str]) -> Shelf:
    """Where tables find their recordings: in the folders that are named with annotations; without
    annotations in none, since the folders are items themselves."""
    paths = [local(one) for one in texts if one != "-"]
    folders, further = [path for path in paths if path.is_dir()], list(recording_folders())
    named = folders and any(_is_annotation(path, modality, given) for path in paths)
    roots = _ROOTS.get()
    place_of = roots.path_of if roots else None
    return Shelf([*(folders if named else []), *further], extensions(modality), place_of)


def _is_annotation(path: Path, modality: str, given: Mapping[str, str]) -> bool:
    """Whether a file is a table whose recordings are looked for: one of a program, without a column
    `path`."""
    if _annotation_kind(path, modality, given):
        return True
    if modality == "text" or path.suffix.lower() not in TABLES or not path.is_file():
        return False
    types = tables.read_table(path).types
    return bool(given) or PATH not in map(str.casefold, types)


def _annotation_kind(path: Path, modality: str, given: Mapping[str, str]) -> str:
    if modality not in ("audio", "video") or path.suffix.lower() not in annotation_files.SUFFIXES:
        return ""
    return "" if given and path.suffix.lower() in TABLES else annotation_files.kind_of(path)


def _origin(
    name: str,
    modality: str,
    stdin: TextIO,
    shelf: Shelf,
    given: Mapping[str, str],
    describe: Describe,
) -> _Origin:
    if name == "-":
        return _piped(stdin)
    if is_object(name):
        return _objects(name, modality)
    path = local(name)
    if not path.exists():
        remedy = f"; {text.PREFIX}{name} means the words" if modality == "text" else ""
        raise SourceError(f"no such file or folder: {name}{remedy}")
    if path.is_dir():
        accepted = extensions(modality)
        check_folder(path, accepted)
        every = partial(in_folder, path, accepted)
        return _Origin(name, lambda _: every(), distinct=True, folder=(path, accepted))
    recordings = Recordings(path, shelf)
    if kind := _annotation_kind(path, modality, given):
        rows = annotation_files.read_annotations(path, kind, recordings)
        table = open_table(path, modality, rows)
        return _Origin(path.name, partial(table.entries, describe=describe), table.total, table)
    if modality != "bytes" and path.suffix.lower() in TABLES:
        table = open_table(path, modality, tables.read_table(path), given, recordings)
        return _Origin(path.name, partial(table.entries, describe=describe), table.total, table)
    is_text = modality not in ("text", "bytes") and path.suffix.lower() == ".txt"
    if is_text and (unknown := annotation_files.unknown_text(path)):
        failed = failure(file_item(path), WHOLE.key, unknown)
        return _Origin(name, lambda _: iter([(0, failed)]), 1, distinct=True)
    return _Origin(name, lambda _: iter([(0, (file_item(path), WHOLE))]), 1, distinct=True)


def _objects(name: str, modality: str) -> _Origin:
    from penult.data.object_store import entries_at

    suffix = Path(name).suffix.lower()
    if modality != "bytes" and suffix in TABLES and suffix not in extensions(modality):
        raise SourceError(
            f"{checked_uri(name)} is a table; download it and give its path. The recordings and "
            "pictures themselves may stay in the store"
        )
    every = entries_at(name, extensions(modality))
    return _Origin(name, lambda _: every(), distinct=True)


def _words(argument: str, said: str) -> _Origin:
    """A text that is given as it is; its id is `text:` and the words."""
    item = text_item(said, f"{text.PREFIX}{said}", {"text": said})
    return _Origin(argument, lambda _: iter([(0, (item, WHOLE))]), 1, distinct=True)


def _piped(stdin: TextIO | None) -> _Origin:
    """A list of paths on standard input, or one recording or picture."""
    if stdin is None:
        raise SourceError("standard input is closed; pipe a list of paths, or one file, into -")
    if (content := piped_item(stdin)) is not None:
        entry = Item(sha(content), content), WHOLE
        return _Origin("standard input", lambda _: iter([(0, entry)]), 1, distinct=True)
    # The first lines are read twice, for the proof of the head and for the run.
    lines = Repeatable(listed_paths(stdin))
    return _Origin("the list of paths", lambda _: _listed(lines))


def _listed(lines: Iterable[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            # An address of a store is refused here: whoever pipes a list has not typed it.
            yield number, (file_item(local(line)), WHOLE)
        except SourceError as error:
            yield number, failure(Item(line, line), WHOLE.key, error, f"line {number}")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `of_all`, counted from 1. All regions of an item are in one part."""

    number: int
    of_all: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/4` as the second of four.

        Raises:
            UsageError: it is no such part.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of_all:
            raise UsageError(f"{text!r} is no part of a whole; of four they are 1/4, 2/4, 3/4, 4/4")
        return shard

    def has(self, id: str) -> bool:
        """Whether an item is in this part."""
        digest = hashlib.blake2b(id.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        return int.from_bytes(digest) % self.of_all == self.number - 1

    def of(self, source: Source) -> Source:
        """The source with only the items, and the failures, of this part."""

        def start() -> Iterator[Entry]:
            for entry in source:
                if self.has(entry.id if isinstance(entry, Failure) else entry[0].id):
                    yield entry

        return replace(source, start=start, total=None, folder=None)
