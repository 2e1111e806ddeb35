"""What another collection has, as items to embed anew with another model: `embed --like`.

Items are found by their paths or texts; arrays and bytes were never kept, and are named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from penult.errors import SourceError, UsageError
from penult.ingesting import rows
from penult.ingesting.ingest import Options
from penult.regions import Region
from penult.sources import Source
from penult.sources.items import Entry, Failure, Item, file_item, path_of, text_item
from penult.sources.layout import Layout
from penult.sources.tables import PATH
from penult.store.collection import Collection

_OWN = ("id", "region", "kind", "start")
_TEXT = "text"
_MADE = "kind = 'summary'"  # from the other rows, not from a file
_BATCH = 4096


def taken(
    old: Collection, new: Collection, modality: str, options: Options, given: object = False
) -> tuple[Source, Options]:
    """The source that a collection is, and the options with the way its summaries were made.

    given: whether something else was asked for, that the old collection decides.

    Raises:
        UsageError: the two are the same, or something else was given.
    """
    if old.path.absolute() == new.path.absolute():
        raise UsageError(f"{new.path} cannot be made like itself; name another collection")
    if given or options.layout != Layout():
        raise UsageError(
            f"items and their regions are taken from {old.path}: give no paths, no channel, "
            "no windows and no tiles with it"
        )
    summary, items = options.summary or summary_of(old), _Items(old, modality)
    asked = replace(options, summary=summary, summarised=items.had_summary)  # type: ignore[arg-type]
    return items.source(), asked


class _Items:
    """The items and regions of a collection with their metadata, in the order of their ids.

    Holds the keys of all rows in memory. What has no file any more comes as a Failure, or fails
    when it is read.
    """

    def __init__(self, old: Collection, modality: str) -> None:
        had = old.manifest.model.get("modality") if old.manifest else None
        if had not in (None, modality):
            raise UsageError(f"{old.path} holds {had} items, and this model takes {modality}")
        self._old, self._modality = old, modality
        self._metadata = rows.metadata_of(old.schema)
        self._summed: set[str] = set()  # of items that are on their way

    def source(self) -> Source:
        """All but the summaries, which are made of the others and not of files."""
        return Source(self._entries, self._metadata, self._old.count_where(f"NOT ({_MADE})"))

    def had_summary(self, id: str) -> bool:
        """Whether the item that was given had one; to be asked once."""
        had = id in self._summed
        self._summed.discard(id)
        return had

    def _entries(self) -> Iterator[Entry]:
        batches = self._old.ordered([*_OWN, *self._metadata], None, _BATCH)
        found = (row for batch in batches for row in batch.to_pylist())
        for id, group in groupby(found, key=itemgetter("id")):
            # Channels of one recording together, by their start, so that it is decoded once.
            for row in sorted(group, key=lambda row: row["start"] or 0.0):
                if row["kind"] == "summary":
                    self._summed.add(id)
                else:
                    yield _entry(row, list(self._metadata), self._modality)


def summary_of(old: Collection) -> str | None:
    """How the summaries of a collection were made, as its runs say; None if it has none.

    Raises:
        UsageError: it has some, and no run or more than one way is written down.
    """
    if not old.count_where(_MADE):
        return None
    infos = [json.loads(info) for info in old.runs()["info"].to_pylist() if info]
    ways = sorted({info["summary"] for info in infos if info.get("summary")})
    if len(ways) != 1:
        known = f"made in {len(ways)} ways ({', '.join(ways)})" if ways else "nobody wrote down how"
        raise UsageError(f"{old.path} has summaries, {known}; say which: --summary mean or max")
    return str(ways[0])


def _entry(row: dict[str, Any], metadata: list[str], modality: str) -> Entry:
    item = _item(row, {name: row[name] for name in metadata}, modality)
    if isinstance(item, Failure):
        return item
    return item, Region.of_key(row["region"], row["kind"])


def _item(row: dict[str, Any], metadata: dict[str, Any], modality: str) -> Item | Failure:
    id = row["id"]
    if modality == _TEXT and isinstance(metadata.get(_TEXT), str):
        return text_item(metadata[_TEXT], id, metadata)
    path = path_of(metadata.get(PATH) or id)
    if path.is_absolute():
        return file_item(path, id, metadata)
    what = "was an array or bytes" if id.startswith("sha256:") else "has no path"
    message = f"{id} {what}, so there is no file to embed anew; give it to the new model yourself"
    return Failure(id, row["region"], SourceError.__name__, message)
