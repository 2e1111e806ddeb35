"""Vectors of all rows, in the memory of the machine, for scores of all rows at once."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from penult.analysis.space import RAW, Space, Step, unit
from penult.collection import schema
from penult.collection.collection import Collection
from penult.errors import StoreError
from penult.explorer.rows import RowTable

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

_SEGMENT = 1 << 16  # rows that are kept in one piece
_IN_MEMORY = 1 << 30  # bytes; of more, pieces lie in temporary files
_BLOCK = 1 << 18  # numbers of a block that is multiplied at a time: it stays in the processor
_SPACES = 2  # spaces whose lengths are kept
_FEW = 2_000  # rows that are read by their keys; of more, all are read
_COLUMNS = [*schema.KEY, "run_id", "vector"]


class VectorMatrix:
    """The vectors of all rows by their numbers, in the space of the classes and of length one.
    Threads may share one.

    Raw vectors are kept, as float32, and read in the background from the first use on. A product
    in a space is w · S(x) / |S(x)|: where S is affine, as all that `auto` takes, its linear part
    goes to w, and the lengths |S(x)| are worked out once for a space. version: goes up with
    each change of the vectors.
    """

    def __init__(self, collection: Collection, rows: RowTable) -> None:
        self._collection, self._rows = collection, rows
        manifest = collection.manifest
        self._dim = manifest.dim if manifest else 0
        self.space = Space(RAW, self._dim)
        self.version = 0
        self._guard = threading.Lock()  # of the pieces
        self._filling = threading.Lock()  # one thread reads at a time
        self._measuring = threading.Lock()
        self._pieces: list[Floats] = []
        self._runs = np.zeros(0, np.int64)  # (n,) the run that a row is from; 0 is none, or gone
        self._run_numbers: dict[str | None, int] = {}
        self._changed_at = np.zeros(0, np.int64)  # (n,) the version that each was changed in
        self._finite = np.zeros(0, bool)
        self._lengths: dict[str, tuple[int, Floats]] = {}
        self._read = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._seen = 0
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "products")

    def start(self) -> None:
        """Read them in the background, unless that was begun."""
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._fill, daemon=True, name="vectors")
                self._thread.start()

    @property
    def loaded(self) -> float:
        """The share of rows that are read, 0 to 1."""
        if self._read.is_set():
            return 1.0
        return min(1.0, self._seen / max(1, len(self._rows)))

    def wait(self, seconds: float = 120.0) -> None:
        """Wait until all are read.

        Raises:
            StoreError: they were not within this time, or cannot be.
        """
        self.start()
        if not self._read.wait(seconds):
            raise StoreError(
                f"vectors are still being read: {self.loaded:.0%} of {len(self._rows):,} rows; "
                "ask again"
            )
        if self._error is not None:
            raise self._error

    def refresh(self) -> None:
        """Take what was added, read anew or taken out since, see `RowTable.refresh`."""
        self.wait()
        with self._filling:
            self._update()

    def usable(self, rows: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(k,) whether these rows are there, and have a finite vector."""
        self.wait()
        asked = np.asarray(rows, np.int64)
        known, finite = self._finite, (asked >= 0) & (asked < len(self._finite))
        finite[finite] = known[asked[finite]]
        return finite

    def raw(self, rows: npt.ArrayLike) -> Floats:
        """(k, d) the raw vectors of these rows; zeros where one has none."""
        self.wait()
        asked, pieces = np.asarray(rows, np.int64), self._pieces
        found = np.zeros((len(asked), self._dim), np.float32)
        for number in np.unique(asked // _SEGMENT):
            if 0 <= number < len(pieces):
                own = asked // _SEGMENT == number
                found[own] = pieces[number][asked[own] % _SEGMENT]
        return found

    def take(self, rows: npt.ArrayLike, space: Space | None = None) -> Floats:
        """(k, d'): vectors of these rows, of length one, in a space, or in that of the classes."""
        moved: Floats = unit((space or self.space)(self.raw(rows)).astype(np.float64)).astype(
            np.float32
        )
        return moved

    def use(self, space: Space) -> None:
        """Make this the space of the classes; works out the lengths of all rows there."""
        self._lengths_in(space)
        self.space = space

    def products(self, directions: npt.ArrayLike, space: Space | None = None) -> Floats:
        """(n, m): the inner product of each row, of length one, with each of the directions (m, d')
        of a space, or of that of the classes; NaN where a row has no finite vector, or is gone."""
        space = space or self.space
        given = np.atleast_2d(np.asarray(directions, np.float64))
        lengths = self._lengths_in(space)
        finite = self._finite[: len(lengths)]
        found = np.empty((len(lengths), len(given)), np.float32)
        multiply = _folded(space, given) if _is_affine(space) else _moved(space, given)

        def one(span: tuple[Floats, int, int]) -> None:
            block, start, end = span
            multiply(block, found[start:end])
            found[start:end] /= lengths[start:end, None]

        self._each(one, len(lengths))
        found[~finite] = np.nan
        return found

    # ---- inside

    def _lengths_in(self, space: Space) -> Floats:
        """(n,) lengths of vectors in a space; 1 for those without."""
        self.wait()
        kept = self._lengths.get(space.id)
        if kept is not None and kept[0] == self.version:
            return kept[1]
        with self._measuring:
            version, number = self.version, len(self._finite)
            since, former = self._lengths.get(space.id, (-1, np.zeros(0, np.float32)))
            if since == version:
                return former
            lengths = np.ones(number, np.float32)
            lengths[: len(former)] = former
            changed = self._changed_at[:number] > since

            def one(span: tuple[Floats, int, int]) -> None:
                block, start, end = span
                if changed[start:end].any():
                    moved = block if space.is_raw else space(block)
                    own = np.linalg.norm(moved.astype(np.float64), axis=1)
                    lengths[start:end] = np.where(own > 0, own, 1.0)

            self._each(one, number)
            self._lengths[space.id] = version, lengths
            while len(self._lengths) > _SPACES:
                self._lengths.pop(next(iter(self._lengths)))
            return lengths

    def _each(self, act: Callable[[tuple[Floats, int, int]], None], number: int) -> None:
        """Act on all blocks of the first rows, in threads."""
        size = max(16, _BLOCK // max(1, self._dim))
        spans = list(self._spans(number, size))
        share = -(-len(spans) // (4 * self._threads._max_workers) or 1)
        parts = [spans[at : at + share] for at in range(0, len(spans), share)]

        def several(part: Sequence[tuple[Floats, int, int]]) -> None:
            for span in part:
                act(span)

        list(self._threads.map(several, parts))

    def _spans(self, number: int, size: int) -> Iterator[tuple[Floats, int, int]]:
        for place, piece in enumerate(self._pieces):
            first = place * _SEGMENT
            for start in range(first, min(first + _SEGMENT, number), size):
                end = min(start + size, first + _SEGMENT, number)
                yield piece[start - first : end - first], start, end

    def _fill(self) -> None:
        try:
            with self._filling:
                self._grow(len(self._rows))
                self._read_all()
                self.version += 1
        except Exception as error:  # given to whoever waits
            self._error = error
        finally:
            self._read.set()

    def _update(self) -> None:
        runs, number = np.zeros(len(self._rows), np.int64), len(self._runs)
        for batch in self._collection.reader.scan([*schema.KEY, "run_id"]):
            numbers, kept = self._numbers(batch, len(runs))
            runs[numbers] = self._runs_of(batch)[kept]
        before = np.concatenate([self._runs, np.zeros(len(runs) - number, np.int64)])
        if len(runs) == number and (runs == before).all():
            return
        self._grow(len(runs))
        gone = runs[:number] == 0
        self._runs[:number][gone], self._finite[:number][gone] = 0, False
        new = np.flatnonzero((runs != before) & (runs > 0))
        if len(new) > _FEW:
            self._read_all()
        elif len(new):
            self._read_few(new, runs)
        self.version += 1

    def _grow(self, number: int) -> None:
        """Room for so many rows."""
        more = number - len(self._runs)
        if more <= 0:
            return
        held = 4 * number * self._dim
        pieces = list(self._pieces)
        while len(pieces) * _SEGMENT < number:
            rows = min(_SEGMENT, number) if not pieces and number < _SEGMENT else _SEGMENT
            pieces.append(_room(rows, self._dim, held > _IN_MEMORY))
        if len(pieces[0]) < min(number, _SEGMENT):  # a small one that grows
            larger = _room(_SEGMENT, self._dim, False)
            larger[: len(pieces[0])] = pieces[0]
            pieces[0] = larger
        self._pieces = pieces
        self._runs = np.concatenate([self._runs, np.zeros(more, np.int64)])
        self._changed_at = np.concatenate([self._changed_at, np.zeros(more, np.int64)])
        self._finite = np.concatenate([self._finite, np.zeros(more, bool)])

    def _read_all(self) -> None:
        self._seen = 0
        for batch in self._collection.reader.scan(_COLUMNS, batch_size=4096):
            numbers, kept = self._numbers(batch, len(self._runs))
            vectors = schema.matrix(batch.column("vector"))[kept]
            self._put(numbers, vectors.astype(np.float32), self._runs_of(batch)[kept])
            self._seen += len(batch)

    def _read_few(self, new: Numbers, runs: Numbers) -> None:
        from penult.fewshot.marks import vectors_of

        keys = self._rows.keys(new.tolist())
        found = vectors_of(self._collection, keys)
        there = [i for i, key in enumerate(keys) if key in found]
        if there:
            vectors = np.stack([found[keys[i]] for i in there])
            self._put(new[there], vectors, runs[new[there]])

    def _put(self, numbers: Numbers, vectors: Floats, runs: Numbers) -> None:
        finite = np.isfinite(vectors).all(axis=1)
        vectors[~finite] = 0.0
        for piece in np.unique(numbers // _SEGMENT):
            own = numbers // _SEGMENT == piece
            self._pieces[piece][numbers[own] % _SEGMENT] = vectors[own]
        self._finite[numbers], self._runs[numbers] = finite, runs
        self._changed_at[numbers] = self.version + 1

    def _numbers(self, batch: object, limit: int) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        """(the numbers below a limit of the rows of a batch, the mask of these rows)."""
        every = [self._rows.number(key) for key in schema.keys(batch)]  # type: ignore[arg-type]
        numbers = np.array([-1 if one is None else one for one in every], np.int64)
        kept = (numbers >= 0) & (numbers < limit)
        return numbers[kept], kept

    def _runs_of(self, batch: object) -> Numbers:
        names = batch.column("run_id").to_pylist()  # type: ignore[attr-defined]
        known = self._run_numbers
        return np.array([known.setdefault(name, len(known) + 1) for name in names], np.int64)


def _room(rows: int, dim: int, on_disk: bool) -> Floats:
    """(rows, d) zeros, in memory or in a file that nobody else sees, and that goes with the
    process."""
    if not on_disk or not dim:
        return np.zeros((rows, dim), np.float32)
    with tempfile.TemporaryFile(prefix="penult-vectors-") as file:
        file.truncate(4 * rows * dim)
        return np.memmap(file, np.float32, "r+", shape=(rows, dim))


def _is_affine(space: Space) -> bool:
    """Whether it changes no lengths but in the end, where they do not matter."""
    return all(step.mean is not None for step in space.steps[:-1])


Multiply = Callable[[Floats, Floats], None]


def _folded(space: Space, directions: npt.NDArray[np.float64]) -> Multiply:
    """(block, out): products without moving the block. Its mean is subtracted first: where rows
    have a large part in common, products of that would be all that float32 can hold."""
    steps = [step for step in space.steps if step.mean is not None]
    rows = directions
    for step in reversed(steps):
        rows = np.stack([step.back(row) for row in rows])
    weights = np.ascontiguousarray(rows.T, np.float32)
    if not steps:

        def plain(block: Floats, out: Floats) -> None:
            np.dot(block, weights, out=out)

        return plain
    mean = np.asarray(steps[0].mean, np.float32)
    offset = (directions @ _at(steps, mean)).astype(np.float32)

    def multiply(block: Floats, out: Floats) -> None:
        np.dot(block - mean, weights, out=out)
        if offset.any():
            np.add(out, offset, out=out)

    return multiply


def _at(steps: Sequence[Step], point: Floats) -> npt.NDArray[np.float64]:
    moved = point[None].astype(np.float64)
    for step in steps:
        moved = step(moved)
    found: npt.NDArray[np.float64] = moved[0]
    return found


def _moved(space: Space, directions: npt.NDArray[np.float64]) -> Multiply:
    def multiply(block: Floats, out: Floats) -> None:
        out[:] = space(block) @ directions.T.astype(np.float32)

    return multiply
