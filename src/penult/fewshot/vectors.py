"""The source of example vectors: an embedder, or the rows of a collection."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.collection.collection import Collection
from penult.collection.manifest import Manifest, fingerprint_in
from penult.collection.row_layout import FileInput, RowLayout, row_layout
from penult.collection.schema import Key, patches_among
from penult.collection.search import embedder_of
from penult.data.decode import Decoding, usual_decoding
from penult.data.files import user_path
from penult.data.items import Entry, Failure, Item, absolute, file_item
from penult.data.regions import WHOLE, Region
from penult.data.roots import Roots
from penult.data.sources import Source, from_objects, from_paths
from penult.data.windows import ItemInput, Layout
from penult.data.workers import headers_in_workers
from penult.embedding.fingerprint import Fingerprint, compare
from penult.errors import FingerprintMismatch, ItemError, LabelsError, RegionError, UsageError
from penult.fewshot.marks import seconds_of, vectors_of
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder
    from penult.embedding.runner import Outcome


log = logging.getLogger(__name__)
Vectors = dict[Key, npt.NDArray[np.float32]]


def pairs_of(items: Any, modality: str, roots: Roots = Roots()) -> Iterator[Entry]:
    """Items and their regions. A (path, start, end) is a segment, an (id, region) a row. roots:
    what ids of files begin with."""
    return map(roots.entry, _pairs_of(items, modality, roots))


def _pairs_of(items: Any, modality: str, roots: Roots) -> Iterator[Entry]:
    if _is_segment(items) or _is_key(items):
        items = [items]
    array = isinstance(items, tuple) and len(items) == 2 and hasattr(items[0], "__array__")
    if isinstance(items, (str, os.PathLike)) or (isinstance(items, (list, tuple)) and not array):
        for item in [items] if isinstance(items, (str, os.PathLike)) else items:
            yield from _entries(item, modality, roots)
    else:
        yield from from_objects(items, modality)


def embed(
    embedder: Embedder, pairs: Iterable[Entry], seconds: dict[Key, float] | None = None
) -> Vectors:
    """The raw vector of each, by (id, region). seconds: takes their lengths, where they have some.

    Raises:
        ItemError: one of them cannot be embedded.
    """
    from penult.embedding.runner import Outcome

    found: Vectors = {}
    truncated = 0
    for one in embedder.runner.stream(_readable(pairs)):
        if not isinstance(one, Outcome):
            raise ItemError(one.words())
        key = one.item.id, one.region.key
        found[key] = one.vector
        truncated += one.truncated is not None
        if seconds is not None and one.start is not None and one.end is not None:
            seconds[key] = one.end - one.start
    tell_truncated(truncated, embedder.classifier.modality)
    return found


def from_rows(
    collection: Collection, pairs: Iterable[Entry], embedder: Callable[[], Embedder]
) -> Vectors:
    """The raw vectors of these rows of a collection; items that are no rows yet are added.

    Raises:
        LabelsError: an (id, region) that is no row.
        ItemError: an item that cannot be embedded.
    """
    examples = {(item.id, region.key): (item, region) for item, region in _readable(pairs)}
    found = vectors_of(collection, list(examples))
    there = found.keys() | patches_among(found).keys()
    missing = [pair for key, pair in examples.items() if key not in there]
    for item, region in missing:
        if isinstance(item.content, Path) and not item.content.exists():
            part = "" if region == WHOLE else f" ({region.key})"
            raise LabelsError(f"{item.id!r}{part} is neither a file nor a row of {collection.path}")
    if missing:
        from penult.collection.add import add as add_rows  # opens torch, which rows do without

        # A text is stored in its metadata: it has no file to be read from again.
        kept = [(replace(i, metadata={n: v for n, v in i.metadata.items() if n == "text"}), region)
                for i, region in missing]  # fmt: skip
        columns = {"text": pa.string()} if any(i.metadata for i, _ in kept) else {}
        summary = add_rows(collection.reader, embedder(), Source(lambda: iter(kept), columns))
        found |= vectors_of(collection, list(examples))
        tell_truncated(
            summary.truncated, str(collection.reader.require_manifest().model.get("modality"))
        )
        if summary.failed:
            there = found.keys() | patches_among(found).keys()
            key = next(key for key in examples if key not in there)
            why = [r["message"] for r in collection.failures().to_pylist() if r["id"] == key[0]]
            raise ItemError(f"{key[0]}: {why[-1] if why else 'it cannot be embedded'}")
    parts = patches_among(found)
    keys = [part for key in examples for part in parts.get(key, [key])]
    return {key: found[key] for key in keys if key in found}


_LONGER = {
    "audio": "; --window reads all of it",
    "text": "; --window reads all of it",
    "image": " (further pages); --pages each reads all of it",
}


def tell_truncated(number: int, modality: str) -> None:
    """Tell that of so many items the model took the beginning only."""
    if number:
        log.warning(
            "of %d item%s longer than the model's input only the beginning was used%s",
            number, "" if number == 1 else "s", _LONGER.get(modality, ""),
        )  # fmt: skip


def _readable(pairs: Iterable[Entry]) -> Iterator[tuple[Item, Region]]:
    for pair in pairs:
        if isinstance(pair, Failure):
            raise ItemError(pair.words())
        yield pair


def _is_segment(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 3
        and isinstance(item[0], (str, os.PathLike))
        and all(value is None or isinstance(value, (int, float)) for value in item[1:])
    )


def _key(pair: tuple[Item, Region]) -> Key:
    return pair[0].id, pair[1].key


def _is_there(item: Item) -> bool:
    """Whether an item can be looked at: it may be the id of a row, whose file is gone."""
    return not isinstance(item.content, Path) or item.content.exists()


def _is_file(item: str | os.PathLike[str]) -> bool:
    try:
        return user_path(item).is_file()
    except (OSError, ValueError, RuntimeError):  # a text that is no possible path
        return False


def _is_key(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(i, str) for i in item)


def _file_of(item: str | os.PathLike[str], roots: Roots) -> Path:
    """The path that is meant, also by an id that begins with a root."""
    path = user_path(item)
    if not path.exists() and roots.root_of(os.fspath(item)) is not None:
        return roots.path_of(os.fspath(item))
    return path


def _entries(item: Any, modality: str, roots: Roots) -> Iterator[Entry]:
    if isinstance(item, (str, os.PathLike)) and (modality != "text" or _is_file(item)):
        path = _file_of(item, roots)
        if path.exists():  # a folder or a table too
            yield from from_paths([path], modality)
        else:  # it may be the id of a row
            id = os.fspath(item)
            yield Item(roots.within(absolute(path)) or id if roots else id, path), WHOLE
    elif _is_segment(item):
        path, start, end = item
        if modality not in ("audio", "video"):
            raise UsageError(f"{path}: {modality} has no seconds; audio and video have")
        try:
            region = Region("segment", float(start or 0.0), None if end is None else float(end))
        except RegionError as error:
            raise UsageError(f"{path}: {error}") from error
        for pair in from_objects([_file_of(path, roots)], modality):
            yield pair if isinstance(pair, Failure) else (pair[0], region)
    elif _is_key(item):
        id, key = item
        yield file_item(roots.path_of(id), id), Region.of_key(key)
    else:
        yield from from_objects([item], modality)


class VectorSource:
    """An embedder, or a collection whose rows are the examples. manifest: of all vectors. file:
    the class file that they are of. missing: marked keys that are no rows of the collection any
    more."""

    def __init__(
        self,
        manifest: Manifest,
        collection: Collection | None = None,
        embedder: Embedder | None = None,
        file: str | None = None,
    ) -> None:
        self.manifest, self.collection, self._embedder = manifest, collection, embedder
        self._file = file
        self.missing: list[Key] = []
        self._seconds: dict[Key, float] = {}  # of examples that are no rows
        self._guard = Guard()
        self._opener: Callable[[], Embedder] = lambda: (
            embedder_of(manifest) if collection is None else collection.embedder()
        )

    @classmethod
    def of(cls, source: Embedder | Collection) -> VectorSource:
        """The source of an embedder, or of a collection.

        Raises:
            LabelsError: a collection that is not there.
            UsageError: neither.
        """
        if not isinstance(source, Collection):
            from penult.collection.add import manifest_of

            embedder = check_embedder(source)
            return cls(manifest_of(embedder), embedder=embedder)
        if (manifest := source.manifest) is None:
            raise LabelsError(
                f"there is no collection at {source.path}; "
                f"penult embed MODEL FOLDER --into {source.path} makes one"
            )
        return cls(manifest, source)

    @property
    def embedder(self) -> Embedder:
        """The embedder of items; opened when it is first needed."""
        with self._guard:
            if self._embedder is None:
                self.use(self._opener())
            assert self._embedder is not None
            return self._embedder

    def open_with(self, opener: Callable[[], Embedder]) -> None:
        """Open the embedder with this function, once it is needed."""
        self._opener = opener

    def use(self, embedder: Embedder) -> None:
        """Use this embedder, in place of the one that the manifest names.

        Raises:
            FingerprintMismatch: it gives other vectors.
        """
        from penult.embedding.embedder import fingerprint_of

        self.check(fingerprint_of(check_embedder(embedder)), embedder.classifier.spec)
        self._embedder = embedder

    @property
    def modality(self) -> str:
        """Of the items: audio, image, text or video."""
        return str(self.manifest.model.get("modality") or self.embedder.classifier.modality)

    def vectors_of(self, pairs: Iterable[Entry]) -> Vectors:
        """The raw vector of each (item, region); items that are no rows yet are added."""
        if self.collection is not None:
            return from_rows(self.collection, pairs, lambda: self.embedder)
        return embed(self.embedder, pairs, self._seconds)

    @cached_property
    def rows(self) -> RowLayout:
        """How the rows of its collection were made, and files are read; without one it is set, as
        examples were read last, else whole."""
        return RowLayout() if self.collection is None else row_layout(self.collection.reader)

    def cut(
        self,
        pairs: Iterable[Entry],
        layout: Layout | None = None,
        channel: int | str | None = None,
        decoding: Decoding | None = None,
    ) -> Iterable[Entry]:
        """Items as the parts that they are read as: None is as the rows of the collection are."""
        rows = self.rows.chosen(channel, layout)
        if not rows:
            return pairs
        describe = headers_in_workers(decoding or usual_decoding())
        return rows.entries(pairs, self._input(pairs), describe)

    def _input(self, pairs: Iterable[Entry]) -> ItemInput:
        """What is to be known to divide items; the model is opened only where that needs it."""
        listed = self.modality != "text" and isinstance(pairs, list)
        if listed and all(isinstance(one[0].content, Path) for one in pairs):  # type: ignore[index]
            return FileInput(self.modality)
        return self.embedder.classifier.input

    def seconds_of(self, keys: Sequence[Key]) -> dict[Key, float]:
        """The lengths of examples in seconds, where they are known."""
        if self.collection is not None:
            return seconds_of(self.collection, keys)
        return {key: self._seconds[key] for key in keys if key in self._seconds}

    def know_seconds(self, seconds: Mapping[Key, float]) -> None:
        """Take the lengths of examples of a class file."""
        self._seconds |= seconds

    def check(self, other: Fingerprint, name: str) -> None:
        """Refuse the vectors of another embedder.

        Raises:
            FingerprintMismatch: the fingerprint differs; the message lists the differences.
        """
        found = compare(fingerprint_in(self.manifest), other, "", "")
        if found.refused:
            raise FingerprintMismatch(
                f"{name} gives other vectors than the class space was taught with: {found.words}. "
                "If only a library has another version: penult migrate COLLECTION measures it on "
                "rows, and penult migrate CLASSES.npz --like COLLECTION takes it over"
            )
        for note in found.notes:
            log.warning("%s: %s", name, note)


def run_items(
    source: VectorSource, pairs: Iterable[Entry], decoding: Decoding
) -> Iterator[Outcome | Failure]:
    """The outcomes of items; how many the model did not take the whole of is told."""
    from penult.embedding.runner import Outcome

    truncated = 0
    for one in source.embedder.runner.stream(pairs, decoding):
        truncated += isinstance(one, Outcome) and one.truncated is not None
        yield one
    tell_truncated(truncated, source.modality)


def example_parts(
    source: VectorSource,
    pairs: Iterable[Entry],
    layout: Layout | None = None,
    channel: int | str | None = None,
) -> list[Entry]:
    """Examples, each as one part, or, where a layout or `each` channel is asked for, as all of
    its parts. What is a row of the collection, or has a channel, is taken as it is.

    Raises:
        UsageError: an item that rows of the collection are several parts of.
    """
    given = list(pairs)
    keys = [_key(pair) for pair in given if isinstance(pair, tuple)]
    as_usual = channel is None and layout is None
    known = vectors_of(source.collection, keys) if as_usual and source.collection else {}
    parts: list[list[Entry]] = [[pair] for pair in given]
    places: dict[int, int] = {}  # of items that are cut, by their identity
    whole, segments = list[Entry](), list[Entry]()
    for place, pair in enumerate(given):
        if isinstance(pair, tuple) and _key(pair) not in known and _is_there(pair[0]):
            (segments if layout is None and pair[1].kind == "segment" else whole).append(pair)
            places[id(pair[0])], parts[place] = place, []
    for entries, own in ((whole, layout), (segments, Layout())):
        for entry in source.cut(entries, own, channel) if entries else ():
            if isinstance(entry, Failure):
                raise ItemError(entry.words())
            parts[places[id(entry[0])]].append(entry)
    for several in parts:
        channels = {one[1].channel for one in several if isinstance(one, tuple)}
        if len(channels) > 1 and channel is None:
            raise UsageError(_several_channels(place_of(source), several[0], len(channels)))
        if len(several) > max(1, len(channels)) and layout is None:
            raise UsageError(_several_parts(source, several[0], len(several)))
    if source.collection is None:
        source.rows = source.rows.chosen(channel, layout)
    return [part for several in parts for part in several]


def _several_channels(place: str, first: Any, channels: int) -> str:
    return (
        f"{first[0].id} has {channels} channels, and the rows of {place} are of single "
        "ones: --channel 0 makes an example of the first, --channel each of every one, "
        "--channel mix of their mean"
    )


def _several_parts(source: VectorSource, first: Any, number: int) -> str:
    layout, timed = source.rows.layout, source.modality in ("audio", "video")
    option, size = "--window", f"{layout.window:g}" if layout.window else ""
    if layout.window is None:
        option, size = ("--tile", str(layout.tile)) if layout.tile else ("--pages", "each")
    return (
        f"{first[0].id} has {number} parts, as the rows of {place_of(source)} are made "
        f"({layout.words(source.modality)}): {option} {size} makes an example of each"
        + ("; --start and --end choose one part" if timed else "")
        + ("; --window whole makes one example of all" if option == "--window" else "")
    )


def place_of(source: VectorSource) -> str:
    """The path of its collection or class file, for messages."""
    return source._file or "FILE.npz" if source.collection is None else str(source.collection.path)


def roots_of(source: VectorSource) -> Roots:
    """What the ids of its rows begin with; none without a collection."""
    return Roots() if source.collection is None else source.collection.reader.roots


def check_embedder(source: object) -> Embedder:
    """The source, if it is an embedder.

    Raises:
        UsageError: it is something else.
    """
    from penult.embedding.embedder import Embedder

    if not isinstance(source, Embedder):
        raise UsageError(
            f"a class space is made of an Embedder or a Collection, not of a "
            f"{type(source).__name__}"
        )
    return source
