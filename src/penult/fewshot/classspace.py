"""ClassSpace: classes taught by a few examples, and predictions of items, rows or vectors, with
unknowns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, RAW, Space
from penult.collection import schema, spaces
from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.collection.schema import Key
from penult.data.decode import usual_decoding
from penult.data.items import Entry, Failure, sha
from penult.data.windows import Layout
from penult.data.workers import headers_in_workers
from penult.errors import ItemError, LabelsError, UsageError
from penult.fewshot import marks, storage
from penult.fewshot.calibration import LEVEL
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import Class, Examples, checked_mark, checked_name
from penult.fewshot.fitted import FittedClasses, Settings
from penult.fewshot.labelling import Groups, by_head, by_item, by_row, of_head
from penult.fewshot.predictions import ClassPrediction, Location, former, predictions
from penult.fewshot.vectors import VectorSource, pairs_of
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


BACKGROUND = 5000  # rows of a collection that serve as background


def space_of(
    source: VectorSource,
    recipe: str,
    examples: Examples,
    groups: Sequence[str | None] | None = None,
) -> Space:
    """The space of a collection or embedder, if the recipe names or means one; else a recipe fitted
    to the rows of the collection that are no examples, or to the examples. groups: of each example.

    Rows of a head are no items: where they are not carried to the rows of a collection their
    directions alone mean something, so that `auto` subtracts nothing from them.
    """
    collection, others = source.collection, np.zeros((0, examples.dim), np.float32)
    if collection is not None:
        if (own := spaces.meant(collection.reader, recipe)) is not None:
            return own
        others = marks.sample(collection, without=examples.keys)
    elif recipe == AUTO and source.embedder.space is not None:
        return source.embedder.space
    elif recipe == AUTO and any(of_head(key) for key in examples.keys):
        recipe = RAW
    return fit_to_examples(recipe, examples, others, groups)


_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True, slots=True)
class Query:
    """fitted: the classes. level: the share of the members of known ones that is called unknown, at
    most. nearest: the number of nearest examples that are named."""

    fitted: FittedClasses
    level: float
    nearest: int = 0

    def __post_init__(self) -> None:
        # A level that cannot be is refused before any item is opened.
        if self.level:
            self.fitted.level(self.level)
        if self.nearest < 0:
            raise LabelsError(f"{self.nearest} nearest examples cannot be named; give 0 or more")

    def vectors(
        self, vectors: npt.NDArray[np.float32], places: list[Location]
    ) -> Iterator[ClassPrediction]:
        """Predictions of raw vectors (m, d) from these places."""
        return predictions(self.fitted, vectors, places, self.level, self.nearest)

    def items(
        self,
        source: VectorSource,
        pairs: Iterable[Entry],
        layout: Layout,
        workers: int | None = None,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of items as they come, and the items that failed."""
        from penult.embedding.runner import Outcome

        classifier = source.embedder.classifier
        decoding = usual_decoding()
        if workers is not None:
            decoding = replace(decoding, workers=workers)
        cut = layout.of(pairs, classifier.input, headers_in_workers(decoding))
        for one in source.embedder.runner.stream(cut, decoding):
            if isinstance(one, Outcome):
                yield from self.vectors(one.vector[None], [Location.of(one)])
            else:
                yield one

    def rows(
        self, source: VectorSource, collection: Collection | None, where: str | None
    ) -> Iterator[ClassPrediction]:
        """Predictions of the rows of a collection, in the order of their keys.

        Raises:
            LabelsError: no collection.
            FingerprintMismatch: it holds vectors of another embedder.
        """
        rows = collection or source.collection
        if rows is None:
            raise LabelsError("name the collection whose rows are meant")
        if (manifest := rows.manifest) is None:
            raise LabelsError(f"there is no collection at {rows.path}")
        source.check(fingerprint_in(manifest), str(rows.path))
        extra = list(schema.metadata_of(rows.reader.schema))
        for batch in rows.reader.ordered([*_COLUMNS, *extra, "vector"], where):
            places = [Location.of_row(row) for row in batch.drop_columns("vector").to_pylist()]
            yield from self.vectors(
                schema.matrix(batch.column("vector")).astype(np.float32), places
            )


Mark = Literal["yes", "no", "unsure"]
_WHOLE = Layout()
_FORMER: Mapping[str, tuple[str, Callable[[ClassSpace], Any]]] = {
    "taught": ("fitted", lambda space: space.fitted),
    "collection": ("source.collection", lambda space: space.source.collection),
    "manifest": ("source.manifest", lambda space: space.source.manifest),
    "embedder": ("source.embedder", lambda space: space.source.embedder),
    "opens": ("source.open_with", lambda space: space.source.open_with),
    "use": ("source.use", lambda space: space.source.use),
    "to_csv": ("examples.to_csv", lambda space: space.examples.to_csv),
    "add_from": (
        "add_named",
        lambda space: lambda by, where=None, mark="yes": space.add_named(None, by, mark, where),
    ),
    "nearest": (
        "predict(…, nearest=k)",
        lambda space: (
            lambda items, k=5: [one.nearest for one in space.predict(items, unknown=0, nearest=k)]
        ),
    ),
}


class ClassSpace:
    """Few-shot classes: adding an example takes milliseconds, no training. Threads may share one.

    source: an embedder, or a collection, which keeps the examples as marks of its rows. space: a
    recipe of `penult.analysis.space.fit`, or `auto`, see
    `penult.fewshot.example_space.fit_to_examples`. method: prototype, knn, ridge, logistic or
    agile; None chooses among the first four by cross-validation. several: whether an item may be of
    more than one class; None takes it from the examples. unknown: the share of the items of known
    classes that is called unknown, at most; 0 calls nothing unknown. groups: a column, `folder` or
    a pattern of the path that gives the group of an example, such as its speaker;
    cross-validation keeps groups together. Without it the level holds for items of the same
    speakers, sites and days.

    `source` (a `VectorSource`) has the embedder, the collection and the manifest. missing: marked
    keys that are no rows of the collection any more. fitted: see `FittedClasses`.
    """

    source: VectorSource
    settings: Settings

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
        vectors, missing = VectorSource.of(source), list[Key]()
        if vectors.collection is not None:
            examples, missing = marks.read_examples(vectors.collection)
        else:
            examples = Examples.empty(vectors.manifest.dim)
        self._begin(vectors, settings, examples, Groups(groups))
        self.missing = missing

    def _begin(
        self,
        source: VectorSource,
        settings: Settings,
        examples: Examples,
        groups: Groups,
        space: Space | None = None,
    ) -> None:
        self._guard = Guard()  # of the examples, and of the classes fitted to them
        self.source, self.settings = source, settings
        self._examples, self._groups = examples, groups
        self._fixed = space  # fitted to the rows of a collection
        self._fitted: FittedClasses | None = None

    # ---- teaching

    @property
    def examples(self) -> Examples:
        """All examples with their marks."""
        return self._examples

    @property
    def classes(self) -> list[Class]:
        """Each class with its numbers of examples and its medoid."""
        return self._examples.classes()

    def add(self, name: str, items: Any, mark: Mark = "yes") -> list[Key]:
        """Add examples of a class; gives their (id, region).

        items: files, folders, tables, arrays, bytes, images, texts; (path, start, end) for a
        segment in seconds; (id, region) for a row of the collection; one of them or many. mark:
        `no` is a hard negative: similar, and of another class; `unsure` is kept and never used.

        Raises:
            ItemError: an example that cannot be embedded.
            LabelsError: an unknown mark, or nothing given.
        """
        checked_name(name), checked_mark(mark)  # before an item is opened
        found = self.source.vectors_of(pairs_of(items, self.source.modality))
        if not found:
            raise LabelsError(f"no example of class {name!r}; give files, rows or arrays")
        vectors = np.stack(list(found.values()))
        with self._guard:
            self._teach([name] * len(found), list(found), vectors, mark)
        return list(found)

    def add_vectors(
        self,
        name: str,
        vectors: npt.ArrayLike,
        keys: Sequence[Key] | None = None,
        mark: Mark = "yes",
    ) -> None:
        """Add raw vectors (n, d) of this embedder as examples; a collection refuses them, since it
        keeps marks of its rows."""
        if self.source.collection is not None:
            raise UsageError("a collection keeps marks of its rows: give items, or (id, region)")
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        if keys is None:
            keys = [(f"vector:{sha(row.tobytes())}", "whole") for row in values]
        with self._guard:
            self._teach([name] * len(keys), keys, values, mark)

    def add_named(
        self, items: Any, by: str, mark: Mark = "yes", where: str | None = None
    ) -> dict[str, int]:
        """Add examples of several classes by name; gives the number of examples of each.

        items: as for `add`; None takes the rows of the collection that pass the filter `where`. by:
        `folder`, a pattern of the path, a column of the items' table, or for rows a metadata
        column, `label` (the classifier's own), or see `penult.collection.labels`.

        Raises:
            LabelsError: no item has a name, or there is no collection.
        """
        checked_mark(mark)
        named = by_row(self.source, by, where) if items is None else by_item(self.source, items, by)
        with self._guard:
            self._teach(named.names, named.keys, named.vectors, mark, f"teach --from {by}")
        return named.counts

    def add_head(self) -> list[str]:
        """Add the classifier's own classes: the rows of its linear head, at the prelogits; see
        `penult.fewshot.labelling.by_head`. A collection does not store these, since its marks
        are of rows: save the space.

        Raises:
            HeadNotFound: not the prelogits, no proof, or no linear head; the message says why.
        """
        head = by_head(self.source)
        with self._guard:
            self._examples = self._examples.with_named(head.names, head.keys, head.vectors)
            self._fitted = None
        return list(head.names)

    def rename(self, old: str, new: str) -> None:
        """Rename a class."""
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

    # ---- predicting

    @property
    def fitted(self) -> FittedClasses:
        """The classes fitted to the examples: method, cross-validated accuracy, and the basis of
        probabilities and thresholds."""
        with self._guard:
            if self._fitted is None:
                self._fitted = self._fit()
            return self._fitted

    @property
    def space(self) -> Space:
        """The fitted space: to the rows of the collection, or else to the examples."""
        with self._guard:
            if self._fixed is not None:
                return self._fixed
            recipe, groups = self.settings.space, self._named_groups()
            space = space_of(self.source, recipe, self._examples, groups)
            if self.source.collection is not None:
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
        """The predictions of items, in their order; label None is unknown.

        items: as for `add`, one of them or many. window, hop: seconds. unknown: another level for
        this call. nearest: the number of nearest examples to name.
        """
        pairs = pairs_of(items, self.source.modality)
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
        layout: Layout = _WHOLE,
        unknown: float | None = None,
        nearest: int = 0,
        workers: int | None = None,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        yield from self._query(unknown, nearest).items(self.source, pairs, layout, workers)

    def predict_collection(
        self,
        collection: Collection | None = None,
        where: str | None = None,
        *,
        unknown: float | None = None,
        nearest: int = 0,
    ) -> Iterator[ClassPrediction]:
        """Predictions of the rows of a collection, in the order of their keys, from their stored
        vectors.

        Raises:
            FingerprintMismatch: the collection holds vectors of another embedder.
        """
        yield from self._query(unknown, nearest).rows(self.source, collection, where)

    def predict_vectors(
        self, vectors: npt.ArrayLike, *, unknown: float | None = None, nearest: int = 0
    ) -> list[ClassPrediction]:
        """Predictions of raw vectors (n, d) of this embedder.

        Raises:
            SpaceError: another width, or values that are not finite.
        """
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        places = [Location(str(i), "whole") for i in range(len(values))]
        return list(self._query(unknown, nearest).vectors(values, places))

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file that needs no collection: raw examples, marks, space, settings."""
        with self._guard:  # the examples, and the space that is fitted to them
            saved = storage.to_saved(
                self.source,
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
        made._begin(*storage.from_saved(storage.read(path), changed))
        if source is not None:
            made.source.use(source)
        return made

    def __repr__(self) -> str:
        return (
            f"ClassSpace({len(self._examples.names)} classes, {len(self._examples.keys)} examples)"
        )

    # ---- inside

    if not TYPE_CHECKING:  # else every name would be known

        def __getattr__(self, name: str) -> Any:
            return former(self, _FORMER, name)

    def _named_groups(self) -> list[str | None] | None:
        return self._groups.of(self.source, self._examples.keys)

    def _fit(self) -> FittedClasses:
        collection, examples = self.source.collection, self._examples

        def background() -> npt.NDArray[np.float32]:
            if collection is None:
                return np.zeros((0, examples.dim), np.float32)
            return marks.sample(collection, BACKGROUND, examples.keys)

        method, several = self.settings.method, self.settings.several
        groups = self._named_groups()
        return FittedClasses(examples, self.space, method, several, background, groups)

    def _teach(
        self,
        names: Sequence[str],
        keys: Sequence[Key],
        vectors: npt.NDArray[np.float32],
        mark: str,
        source: str = "teach",
    ) -> None:
        self._change(self._examples.with_named(names, keys, vectors, mark), source)

    def _change(self, changed: Examples, source: str) -> None:
        """Replace the examples, and write the changed marks into the collection."""
        if self.source.collection is not None:
            before, after = (
                {key: m for key, m in zip(one.keys, one.marks, strict=True) if not of_head(key)}
                for one in (self._examples, changed)
            )
            marks.write_changes(self.source.collection, before, after, source)
            self._fixed = None  # it may have been fitted to rows that are examples now
        self._examples, self._fitted = changed, None

    def _query(self, level: float | None, nearest: int) -> Query:
        return Query(self.fitted, self.settings.unknown if level is None else level, nearest)
