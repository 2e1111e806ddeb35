"""Search by example over all rows: by rows, by a part of a recording, by a file."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import RAW, Space, unit
from penult.collection.search import QueryPart, query_vectors
from penult.data.files import MODALITIES, extensions
from penult.data.regions import Region, span_of
from penult.embedding.embedder import Embedder
from penult.errors import PenultError, StoreError, UsageError
from penult.explorer.media import COLUMNS
from penult.explorer.rows import NoSuchRow
from penult.explorer.session import Explorer

UNLIKE = 0.5  # weight of the rows that the wanted ones are unlike
LARGEST = 100_000_000  # bytes of a file that is given
Floats = npt.NDArray[np.float32]


class ModelUnavailable(StoreError):
    """The model of a collection, which files and parts of recordings need, cannot be opened."""


@dataclass(frozen=True, slots=True)
class ExampleQuery:
    """What is searched for. like, unlike: numbers of rows. where: a filter that hits match."""

    k: int
    like: Sequence[int] = ()
    unlike: Sequence[int] = ()
    where: str | None = None


class ExampleSearch:
    """Searches of one session. Threads may share one; one at a time is embedded."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._embedding = threading.Lock()
        # That of `penult search`. The classes' own changes with each mark.
        self._space = Space(RAW, explorer.collection.reader.require_manifest().dim)

    def by_rows(self, query: ExampleQuery) -> dict[str, Any]:
        """For JSON: the rows nearest to the mean of some, and far from the mean of others.

        Raises:
            UsageError: no rows are given, or a filter that cannot be. NoSuchRow: one is gone.
        """
        if not query.like and not query.unlike:
            raise UsageError("nothing to search for: give rows that hits are like, or unlike")
        direction = self._mean(query.like) - UNLIKE * self._mean(query.unlike)
        words = [_counted("like", query.like), _counted("unlike", query.unlike)]
        return self._answer(direction[None], query, " and ".join(filter(None, words)))

    def by_region(self, query: ExampleQuery, row: int, start: float, end: float) -> dict[str, Any]:
        """For JSON: the rows nearest to a part of the recording of a row, in seconds.

        Raises:
            ModelUnavailable: the part has to be embedded, and its model cannot be opened.
            ItemError: the recording is gone, or has no such part.
            UsageError: the items have no seconds.
        """
        explorer = self._explorer
        found = explorer.rows.records([row], COLUMNS, ("path", "text"))[0]
        if found is None:
            raise NoSuchRow(f"there is no row {row}, or not any more")
        if explorer.media.modality not in ("audio", "video"):
            raise UsageError(f"{explorer.media.modality} has no seconds; search by the whole row")
        path = str(explorer.media.path(found))
        part = QueryPart(Region("segment", start, end), found["channel"])
        words = f"like {start:.2f}–{end:.2f} s of {PurePath(found['id']).name}"
        own = ExampleQuery(query.k, [row], query.unlike, query.where)
        return self._answer(self._space(self._embedded(path, part)), own, words)

    def by_file(self, query: ExampleQuery, content: bytes, name: str) -> dict[str, Any]:
        """For JSON: the rows nearest to a file that is given.

        Raises:
            ModelUnavailable: its model cannot be opened. UsageError: the file cannot be embedded.
        """
        suffix = PurePath(name.replace("\\", "/")).suffix.lower()
        known = suffix in {one for each in MODALITIES for one in extensions(each)}
        with tempfile.TemporaryDirectory(prefix="penult-") as folder:
            file = Path(folder, f"query{suffix if known else ''}")
            file.write_bytes(content)
            try:
                vectors = self._embedded(str(file))
            except UsageError as error:
                words = str(error).replace(str(file), PurePath(name).name or "the file")
                raise UsageError(words) from error
        words = f"like {PurePath(name).name or 'the file'}"
        return self._answer(self._space(vectors), query, words)

    def _mean(self, rows: Sequence[int]) -> Floats:
        """(d,) the mean of vectors of length one; (1,) zero of none."""
        explorer = self._explorer
        for row in rows:
            if not explorer.rows.is_there(row):
                raise NoSuchRow(f"there is no row {row}, or not any more")
        if not rows:
            return np.zeros(1, np.float32)
        usable = explorer.vectors.usable(rows)
        if not usable.all():
            row = rows[int(np.argmin(usable))]
            raise UsageError(f"no vector of row {row} is read yet, or none is finite; leave it out")
        mean: Floats = explorer.vectors.take(rows, self._space).mean(axis=0)
        return mean

    def _embedded(self, query: str, part: QueryPart = QueryPart()) -> Floats:
        """(m, d) the vectors of a file, or a part of it."""
        explorer = self._explorer
        reader = explorer.collection.reader

        def opener() -> Embedder:
            try:
                return explorer.embedder()
            except PenultError as error:
                raise ModelUnavailable(
                    f"the model of this collection cannot be opened, which this search needs: "
                    f"{error}. Search by rows works without it"
                ) from error

        with self._embedding:
            vectors: Floats = query_vectors(reader, query, opener, part).vectors
        return vectors

    def _answer(self, directions: Floats, query: ExampleQuery, words: str) -> dict[str, Any]:
        """directions: (m, d), the nearest of which counts."""
        explorer = self._explorer
        if not np.isfinite(directions).all() or not np.abs(directions).max(axis=1).all():
            raise UsageError("the examples have no direction in common; give others")
        near = explorer.vectors.products(unit(directions), self._space).max(axis=1)
        wanted = np.isfinite(near)
        wanted[self._same_as([*query.like, *query.unlike], len(near))] = False
        if query.where:
            matching = explorer.rows.matching(query.where)[: len(near)]
            wanted[: len(matching)] &= matching
            wanted[len(matching) :] = False
        places = np.flatnonzero(wanted)
        k = min(query.k, len(places))
        if k < len(places):
            places = places[np.argpartition(-near[places], k - 1)[:k]]
        order = places[np.lexsort((places, -near[places]))]
        hits = [{"row": int(row), "similarity": float(near[row])} for row in order]
        return {"hits": hits, "what": words}

    def _same_as(self, rows: Sequence[int], count: int) -> npt.NDArray[np.bool_]:
        """(n,) these rows, and further annotations of the same spans."""
        found, table = np.zeros(count, bool), self._explorer.rows
        for id, region in table.keys(rows):
            span = span_of(region)
            further = takewhile(
                lambda number: number is not None,
                (table.number((id, f"{span}#{at}")) for at in count_from(2)),
            )
            for number in (table.number((id, span)), table.number((id, region)), *further):
                if number is not None and number < count:
                    found[number] = True
        return found


def _counted(word: str, rows: Sequence[int]) -> str:
    return f"{word} {len(rows)} {'row' if len(rows) == 1 else 'rows'}" if rows else ""
