"""A live class space: teach a class with a few examples, and predict items, rows or vectors, or
"unknown".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis import space
from penult.analysis.space import AUTO, RAW, Space
from penult.collection import schema, spaces
from penult.collection.collection import Collection
from penult.collection.manifest import Manifest
from penult.collection.schema import Key
from penult.data.decode import Decoding
from penult.data.items import Entry, Failure, sha
from penult.data.windows import Layout
from penult.errors import ItemError, LabelsError, UsageError
from penult.fewshot import marks, storage
from penult.fewshot.calibration import LEVEL
from penult.fewshot.examples import Class, Examples, checked_mark, checked_name
from penult.fewshot.fitted import FittedClasses, Settings, fitted
from penult.fewshot.labelling import Groups, Named, by_head, by_item, by_row, of_head
from penult.fewshot.predictions import ClassPrediction, Location, Near, predictions
from penult.fewshot.vectors import Origin, pairs_of
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


BACKGROUND = 5000  # rows that serve as anything


def space_of(origin: Origin, recipe: str, examples: Examples) -> Space:
    """The embedder's own space or one that is kept, if it is meant; else a recipe fitted to the
    rows of the collection, or to the examples.

    Rows of a head are no items: where they are not carried to the rows of a collection their
    directions alone mean something, so that nothing may be taken from them unasked.
    """
    if (own := _kept(origin, recipe)) is not None:
        return own
    if origin.collection is not None:
        return fitted(recipe, marks.sample(origin.collection))
    if recipe == AUTO and any(of_head(key) for key in examples.keys):
        recipe = RAW
    return fitted(recipe, examples.vectors)


def _kept(origin: Origin, recipe: str) -> Space | None:
    """The space that is there already: the embedder's own where none is asked for, or one that
    the collection keeps under this name."""
    if origin.collection is not None:
        return spaces.meant(origin.collection, recipe)
    return origin.embedder.space if recipe == AUTO else None


def taught_of(
    origin: Origin,
    settings: Settings,
    examples: Examples,
    space: Space,
    groups: Sequence[str | None] | None,
) -> FittedClasses:
    """What is fitted to the examples, with rows of the collection as background."""

    def background() -> npt.NDArray[np.float32]:
        if origin.collection is None:
            return np.zeros((0, examples.dim), np.float32)
        return marks.sample(origin.collection, BACKGROUND, examples.keys)

    return FittedClasses(examples, space, settings.method, settings.several, background, groups)


_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True, slots=True)
class Query:
    """taught: the classes. level: about this share of the members of known ones is called unknown,
    at most. nearest: so many of the nearest examples are named."""

    taught: FittedClasses
    level: float
    nearest: int = 0

    def __post_init__(self) -> None:
        # What cannot be judged is refused before any item is opened.
        if self.level:
            self.taught.threshold(self.level)
        if self.nearest < 0:
            raise LabelsError(f"{self.nearest} nearest examples cannot be named; give 0 or more")

    def vectors(
        self, vectors: npt.NDArray[np.float32], places: list[Location]
    ) -> Iterator[ClassPrediction]:
        """What raw vectors (m, d) from these places are."""
        return predictions(self.taught, vectors, places, self.level, self.nearest)

    def items(
        self, origin: Origin, pairs: Iterable[Entry], layout: Layout, workers: int = 0
    ) -> Iterator[ClassPrediction | Failure]:
        """What items are, as they come, and those that failed."""
        from penult.embedding.runner import Outcome

        classifier = origin.embedder.classifier
        cut = layout.apply(pairs, classifier.modality, classifier.rate)
        for one in origin.embedder.runner.stream(cut, Decoding(workers=workers)):
            if isinstance(one, Outcome):
                place = Location(
                    one.item.id, one.region.key, one.start, one.end, one.region.channel
                )
                yield from self.vectors(one.vector[None], [place])
            else:
                yield one

    def rows(
        self, origin: Origin, collection: Collection | None, where: str | None
    ) -> Iterator[ClassPrediction]:
        """What the rows of a collection are, by their keys.

        Raises:
            LabelsError: no collection.
            FingerprintMismatch: it holds vectors of another embedder.
        """
        asked = collection or origin.collection
        if asked is None:
            raise LabelsError("name the collection whose rows are meant")
        if (manifest := asked.manifest) is None:
            raise LabelsError(f"there is no collection at {asked.path}")
        origin.check(manifest.fingerprint, str(asked.path))
        for batch in asked.ordered([*_COLUMNS, "vector"], where):
            places = [Location(**row) for row in batch.select(list(_COLUMNS)).to_pylist()]
            yield from self.vectors(
                schema.matrix(batch.column("vector")).astype(np.float32), places
            )


Mark = Literal["yes", "no", "unsure"]
_NOTHING = Layout()


class ClassSpace:
    """Classes that are taught by examples and live: adding one takes milliseconds and no training.
    Several threads may share one.

    source: an embedder, or a collection, in which examples are kept as marks. space: a recipe of
    `penult.analysis.space.fit`, fitted to the collection's rows or else to the examples; `auto`
    centres where there are twenty or more of them. method: prototype, knn, ridge or logistic; None
    chooses by cross-validation. several: whether an item may be of more than one class; None sees
    it from the examples. unknown: about this share of the items of known classes is called unknown,
    at most; 0 calls nothing unknown. groups: where it stands what examples must not share with
    those that they are tried on, such as their speaker: a column, `folder` or a pattern of the
    path. Without it the level holds for items of the same speakers, sites and days as the examples.
    """

    def __init__(
        self,
        source: Embedder | Collection,
        *,
        space: str = AUTO,
        method: str | None = None,
        several: bool | None = None,
        unknown: float = LEVEL,
        groups: str | None = None,
    ) -> None:
        settings = Settings(space, method, several, unknown, groups)
        origin, missing = Origin.of(source), list[Key]()
        if origin.collection is not None:
            examples, missing = marks.read_examples(origin.collection)
        else:
            examples = Examples.empty(origin.manifest.dim)
        self._begin(origin, settings, examples, Groups(groups))
        self.missing = missing  # marked, and no rows any more

    def _begin(
        self,
        origin: Origin,
        settings: Settings,
        examples: Examples,
        groups: Groups,
        space: space.Space | None = None,
    ) -> None:
        self._guard = Guard()  # of the examples, and of what is fitted to them
        self._origin, self.settings = origin, settings
        self._examples, self._groups = examples, groups
        self._fixed = space  # fitted to what is not here: a collection's rows
        self._taught: FittedClasses | None = None

    # ---- teaching

    @property
    def examples(self) -> Examples:
        """All examples with their marks."""
        return self._examples

    @property
    def classes(self) -> list[Class]:
        """Each class with its numbers of examples and its medoid."""
        return self._examples.classes()

    @property
    def collection(self) -> Collection | None:
        """The collection that keeps the marks, if there is one."""
        return self._origin.collection

    @property
    def manifest(self) -> Manifest:
        """What all vectors share: fingerprint, numbers, and what opens the embedder again."""
        return self._origin.manifest

    def add(self, name: str, items: Any, mark: Mark = "yes") -> list[Key]:
        """Teach a class; gives the (id, region) of the examples.

        items: files, folders, tables, arrays, bytes, images, texts; (path, start, end) for a
        segment in seconds; (id, region) for a row of the collection; one of them or many. mark:
        `no` is a hard negative, which the class is not though it looks alike; `unsure` is kept
        and never used.

        Raises:
            ItemError: an example that cannot be embedded.
            LabelsError: an unknown mark, or nothing given.
        """
        checked_name(name), checked_mark(mark)  # before an item is opened
        found = self._origin.vectors_of(pairs_of(items, self._origin.modality))
        if not found:
            raise LabelsError(f"class {name!r} was given no example; give files, rows or arrays")
        vectors = np.stack(list(found.values()))
        with self._guard:
            self._change(self._examples.with_marks(name, list(found), vectors, mark), "teach")
        return list(found)

    def add_vectors(
        self,
        name: str,
        vectors: npt.ArrayLike,
        keys: Sequence[Key] | None = None,
        mark: Mark = "yes",
    ) -> None:
        """Teach a class with raw vectors (n, d) of this embedder's own; not in a collection, which
        keeps marks of its rows."""
        if self.collection is not None:
            raise UsageError("a collection keeps marks of its rows: give items, or (id, region)")
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        if keys is None:
            keys = [(f"vector:{sha(row.tobytes())}", "whole") for row in values]
        with self._guard:
            self._change(self._examples.with_marks(name, keys, values, mark), "teach")

    def add_named(self, items: Any, by: str, mark: Mark = "yes") -> dict[str, int]:
        """Teach several classes at once; gives how many examples each got. by: where an item's
        class stands: `folder`, a pattern of the path, or a column of the table that it is in.

        Raises:
            LabelsError: a way that names nothing.
        """
        checked_mark(mark)
        return self._add(by_item(self._origin, items, by), mark, by)

    def add_from(self, by: str, where: str | None = None, mark: Mark = "yes") -> dict[str, int]:
        """Teach the classes that the collection's rows have already; gives how many examples each
        got. by: a metadata column, `folder`, a pattern of the path, or `label` (the classifier's
        own); see `penult.collection.labels`.

        Raises:
            LabelsError: a way that names nothing, or no collection.
        """
        checked_mark(mark)
        return self._add(by_row(self._origin, by, where), mark, by)

    def add_head(self) -> list[str]:
        """Begin with the classifier's own classes: the rows of its linear head, at the prelogits;
        see `penult.fewshot.labelling.by_head`. A collection does not keep these, for its marks
        are of rows: save the space.

        Raises:
            HeadNotFound: not the prelogits, no proof, or no linear head; it says what works.
        """
        head = by_head(self._origin)
        with self._guard:
            self._examples = self._examples.with_named(head.names, head.keys, head.vectors)
            self._taught = None
        return list(head.names)

    def rename(self, old: str, new: str) -> None:
        """Call a class by another name."""
        with self._guard:
            self._change(self._examples.renamed(old, new), "rename")

    def merge(self, names: Sequence[str], into: str) -> None:
        """Make one class of several."""
        with self._guard:
            self._change(self._examples.merged(names, into), "merge")

    def remove(self, name: str, items: Iterable[Key] | None = None) -> None:
        """Forget a class, or its marks of some examples (id, region)."""
        with self._guard:
            self._change(self._examples.without(name, items), "remove")

    # ---- asking

    @property
    def embedder(self) -> Embedder:
        """What makes vectors of items; opened when it is first needed."""
        return self._origin.embedder

    def opens(self, opener: Callable[[], Embedder]) -> None:
        """Open the embedder this way, once it is needed."""
        self._origin.opens(opener)

    def use(self, embedder: Embedder) -> None:
        """Take this embedder for items, where what the manifest names is not where it was.

        Raises:
            FingerprintMismatch: it gives other vectors.
        """
        self._origin.use(embedder)

    @property
    def taught(self) -> FittedClasses:
        """What is fitted to the examples: the method that was chosen, its cross-validated
        accuracy, what probabilities and thresholds rest on."""
        with self._guard:
            if self._taught is None:
                self._taught = taught_of(
                    self._origin, self.settings, self._examples, self.space, self._named_groups()
                )
            return self._taught

    @property
    def space(self) -> space.Space:
        """The fitted space: to the rows of the collection, or else to the examples."""
        with self._guard:
            if self._fixed is not None:
                return self._fixed
            space = space_of(self._origin, self.settings.space, self._examples)
            if self.collection is not None:
                self._fixed = space
            return space

    def predict(
        self,
        items: Any,
        *,
        unknown: float | None = None,
        nearest: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        window: float | None = None,
        hop: float | None = None,
    ) -> list[ClassPrediction]:
        """What items are, in their order; label None is unknown.

        items: as for `add`, one of them or many; window, hop: seconds. unknown: another level for
        this once. nearest: name so many of the nearest examples.
        """
        pairs = pairs_of(items, self._origin.modality)
        predictions = []
        for one in self.stream(pairs, Layout(window, hop), unknown, nearest):
            if isinstance(one, ClassPrediction):
                predictions.append(one)
            elif on_error == "raise":
                raise ItemError(one.words())
        return predictions

    def stream(
        self,
        pairs: Iterable[Any],
        layout: Layout = _NOTHING,
        unknown: float | None = None,
        nearest: int = 0,
        workers: int = 0,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        yield from self._asked(unknown, nearest).items(self._origin, pairs, layout, workers)

    def predict_collection(
        self,
        collection: Collection | None = None,
        where: str | None = None,
        *,
        unknown: float | None = None,
        nearest: int = 0,
    ) -> Iterator[ClassPrediction]:
        """What the rows of a collection are, in the order of their keys; reads vectors, opens no
        model.

        Raises:
            FingerprintMismatch: the collection holds vectors of another embedder.
        """
        yield from self._asked(unknown, nearest).rows(self._origin, collection, where)

    def predict_vectors(
        self, vectors: npt.ArrayLike, *, unknown: float | None = None, nearest: int = 0
    ) -> list[ClassPrediction]:
        """What raw vectors (n, d) of this embedder are.

        Raises:
            SpaceError: another width, or values that are not finite.
        """
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        places = [Location(str(i), "whole") for i in range(len(values))]
        return list(self._asked(unknown, nearest).vectors(values, places))

    def nearest(self, items: Any, k: int = 5) -> list[tuple[Near, ...]]:
        """The nearest examples of each item, nearest first."""
        return [one.nearest for one in self.predict(items, unknown=0, nearest=k)]

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one small file that needs no collection: raw examples, marks, space, settings."""
        with self._guard:  # examples, and the space that is fitted to these
            saved = storage.saved(
                self._origin,
                self.settings,
                self._examples,
                self.space,
                self._named_groups(),
                self._fixed is None,
            )
        return storage.write(path, saved)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], source: Embedder | None = None, **changed: Any
    ) -> ClassSpace:
        """A class space from its file. source: the embedder, if it is not where it was. changed:
        space, method, several, unknown, groups, in place of those that were saved; another space
        is fitted to the examples.

        Raises:
            LabelsError: no class space.
            FingerprintMismatch: the embedder gives other vectors.
        """
        made = cls.__new__(cls)
        made.missing = []
        made._begin(*storage.restored(storage.read(path), changed))
        if source is not None:
            made.use(source)
        return made

    def to_csv(self) -> str:
        """The examples as CSV: path, region, class, mark."""
        return self._examples.to_csv()

    def __repr__(self) -> str:
        return (
            f"ClassSpace({len(self._examples.names)} classes, {len(self._examples.keys)} examples)"
        )

    # ---- inside

    def _named_groups(self) -> list[str | None] | None:
        return self._groups.of(self._origin, self._examples.keys)

    def _add(self, named: Named, mark: str, by: str) -> dict[str, int]:
        with self._guard:
            changed = self._examples.with_named(named.names, named.keys, named.vectors, mark)
            self._change(changed, f"teach --from {by}")
        return named.counts

    def _change(self, changed: Examples, source: str) -> None:
        """Take other examples, and write in the collection what changed of their marks."""
        if self.collection is not None:
            before = {k: m for k, m in self._examples.by_key().items() if not of_head(k)}
            after = {k: m for k, m in changed.by_key().items() if not of_head(k)}
            marks.write_changes(self.collection, before, after, source)
        self._examples, self._taught = changed, None

    def _asked(self, level: float | None, nearest: int) -> Query:
        return Query(self.taught, self.settings.unknown if level is None else level, nearest)
