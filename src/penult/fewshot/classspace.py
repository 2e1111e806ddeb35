"""ClassSpace: classes taught by a few examples, and predictions of items, rows or vectors, with
unknowns.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, RAW, Space
from penult.collection import labels, schema, spaces
from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.collection.schema import Key
from penult.data.decode import usual_decoding
from penult.data.items import Entry, Failure, sha
from penult.data.windows import Layout
from penult.data.workers import headers_in_workers
from penult.errors import ItemError, LabelsError, StoreError, UsageError
from penult.fewshot import marks, storage
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import (
    Class,
    Examples,
    Marks,
    any_members,
    checked_mark,
    checked_name,
    moves,
    of_several,
    restored,
)
from penult.fewshot.fitted import FittedClasses, Settings, fit_space
from penult.fewshot.labelling import (
    SEPARATOR,
    ClassCounts,
    Groups,
    LabelledExamples,
    by_head,
    by_item,
    by_row,
    of_head,
)
from penult.fewshot.predictions import (
    AssignmentLimits,
    ClassPrediction,
    Location,
    former,
    predictions,
)
from penult.fewshot.thresholds import NO_THRESHOLDS
from penult.fewshot.vectors import VectorSource, pairs_of
from penult.fewshot.versions import (
    CollectionStore,
    FileStore,
    Ledger,
    Taught,
    TaughtVersion,
    marks_of,
)
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


log = logging.getLogger(__name__)
BACKGROUND = 5000  # rows of a collection that serve as background


def space_of(
    source: VectorSource,
    recipe: str,
    examples: Examples,
    groups: Sequence[str | None] | None = None,
    background: npt.NDArray[np.float32] | None = None,
) -> Space:
    """The space of a collection or embedder, if the recipe names or means one; else a recipe fitted
    to the rows of the collection that are no examples, to the background of a class file, or to the
    examples. groups: of each example.

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
    elif background is not None:
        others = background
    elif recipe == AUTO and any(of_head(key) for key in examples.keys):
        recipe = RAW
    return fit_to_examples(recipe, examples, others, groups)


def fit_as_before(source: VectorSource) -> Space | None:
    """The space that `auto` was before versions were kept, fitted to all rows of the collection:
    what was taught then means the same until somebody teaches. None where the collection has one
    of its own."""
    collection = source.collection
    if collection is None or spaces.meant(collection.reader, AUTO) is not None:
        return None
    return fit_space(AUTO, marks.sample(collection))


_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass
class _Background:
    """Rows of a collection, read when they are needed, or those that are kept. rows: None where
    they were not needed yet."""

    source: VectorSource
    examples: Examples
    rows: npt.NDArray[np.float32] | None = None

    def __call__(self) -> npt.NDArray[np.float32]:
        """(m, d) raw vectors."""
        if self.rows is None:
            self.rows = self._read()
        return self.rows

    def _read(self) -> npt.NDArray[np.float32]:
        if self.source.collection is None:
            return np.zeros((0, self.examples.dim), np.float32)
        return marks.sample(self.source.collection, BACKGROUND, self.examples.keys)


@dataclass(frozen=True, slots=True)
class Query:
    """fitted: the classes. level: the share of the members of known ones that is called unknown, at
    most. nearest: the number of nearest examples that are named. least: the least probability of an
    assigned class, see `FittedClasses.judge`."""

    fitted: FittedClasses
    level: float
    nearest: int = 0
    least: float | None = None

    def __post_init__(self) -> None:
        # A level that cannot be is refused before any item is opened.
        if self.level:
            self.fitted.level(self.level)
        if self.nearest < 0:
            raise LabelsError(f"{self.nearest} nearest examples cannot be named; give 0 or more")
        AssignmentLimits(self.least)  # refused outside of 0 to 1

    def vectors(
        self, vectors: npt.NDArray[np.float32], places: list[Location]
    ) -> Iterator[ClassPrediction]:
        """Predictions of raw vectors (m, d) from these places."""
        judged = self.fitted.judge(vectors, self.level, self.least)
        return predictions(self.fitted, vectors, places, judged, self.nearest)

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
_FITTED = {"space", "method", "several", "groups"}  # settings that decide on what is fitted
_FORMER: Mapping[str, tuple[str, Callable[[ClassSpace], Any]]] = {
    "missing": ("source.missing", lambda space: space.source.missing),
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

    source: an embedder, or a collection, which keeps the examples as marks of its rows, and what
    was fitted to them as a version: it counts until somebody teaches. space: a recipe of
    `penult.analysis.space.fit`, or `auto`, see `penult.fewshot.example_space.fit_to_examples`.
    method: prototype, knn, ridge, logistic or agile; `auto` chooses among the first four by
    cross-validation. several: whether an item may be of more than one class; else the last class
    that an example is marked for counts. unknown: the share of the items of known classes that is
    called unknown, at most; 0 calls nothing unknown. groups: a column, `folder` or a pattern of the
    path that gives the group of an example, such as its speaker; cross-validation keeps groups
    together. Without it the level holds for items of the same speakers, sites and days.

    A setting that is not given is the one that was kept with the last teaching. One that is given
    holds for this object, and is kept once it teaches.

    `source` (a `VectorSource`) has the embedder, the collection and the manifest, and the marked
    keys that are no rows of it any more. fitted: see `FittedClasses`. history: see `History`.
    """

    source: VectorSource
    settings: Settings

    def __init__(
        self,
        source: Embedder | Collection,
        *,
        space: str | None = None,
        method: str | None = None,
        several: bool | None = None,
        unknown: float | None = None,
        groups: str | None = None,
    ) -> None:
        given = {"space": space, "method": method, "several": several, "unknown": unknown,
                 "groups": groups}  # fmt: skip
        vectors = VectorSource.of(source)
        collection = vectors.collection
        store = FileStore() if collection is None else CollectionStore(collection.reader)
        examples = Examples.empty(vectors.manifest.dim)
        self._begin(vectors, Ledger(store, fingerprint_in(vectors.manifest)), given, examples)

    def _begin(
        self,
        source: VectorSource,
        ledger: Ledger,
        given: Mapping[str, Any],
        examples: Examples,
        file: storage.Saved | None = None,
    ) -> None:
        """given: settings for this object; None is unset. file: what a class file holds."""
        self._guard = Guard()  # of the examples, and of the classes fitted to them
        self.source, self._ledger, self._examples = source, ledger, examples
        self._given = {name: value for name, value in given.items() if value is not None}
        for name in ("method", "groups"):
            if self._given.get(name) == AUTO:
                self._given[name] = None
        kept = ledger.settings or (file.settings if file is not None else {})
        self.settings = Settings.of(kept, self._given)
        self._groups = Groups(self.settings.groups)
        self._fixed: Space | None = None  # fitted to the rows of a collection
        self._fitted: FittedClasses | None = None
        self._version: TaughtVersion | None = None  # of these marks, if one was kept
        self._taught: Taught | None = None  # what the classes are fitted from, where that is known
        self._rows = None if file is None else file.background
        self._teaches = False  # whether this object has taught, so that it keeps what it fits
        if file is None:
            self._recall()
            return
        if "groups" not in self._given and file.groups is not None:
            self._groups = Groups(
                self.settings.groups, dict(zip(examples.keys, file.groups, strict=True))
            )
        if not file.settings.get(storage.OF_EXAMPLES) and "space" not in self._given:
            self._fixed = file.space
        self._version = ledger.current(marks_of(examples))
        if self._version is not None:
            self._taught = ledger.again(self._version, examples, file.space, file.groups,
                                        file.background)  # fmt: skip

    def _recall(self) -> None:
        """Take the version of the marks that stand, if one was kept, or the marked rows."""
        collection = self.source.collection
        standing = self._standing()
        self._version, self._taught = self._ledger.current(standing), None
        if self._version is not None:
            self._taught = self._ledger.taught(self._version)
        if collection is None:
            if self._version is not None:  # a file has the parts of the version it was saved with
                self._taught = self._ledger.again(
                    self._version, self._examples, self.space, self._named_groups(), self._rows
                )
        elif self._taught is None:
            self._examples, self.source.missing = marks.read_examples(collection, standing)
        else:
            self._examples, there = self._taught.examples, set(self._taught.examples.keys)
            self.source.missing = [key for key in standing if key not in there]

    @property
    def _place(self) -> str:
        collection = self.source.collection
        return "FILE.npz" if collection is None else str(collection.path)

    def _standing(self) -> Marks:
        if self.source.collection is None:
            return marks_of(self._examples)
        return labels.standing(self.source.collection.reader)

    # ---- teaching

    @property
    def examples(self) -> Examples:
        """All examples with their marks."""
        return self._examples

    @property
    def classes(self) -> list[Class]:
        """Each class with its numbers of examples and its medoid."""
        return self._examples.classes()

    def add(self, name: str, items: Any, mark: Mark = "yes", layout: Layout = _WHOLE) -> list[Key]:
        """Add examples of a class; gives their (id, region).

        items: files, folders, tables, arrays, bytes, images, texts; (path, start, end) for a
        segment in seconds; (id, region) for a row of the collection; one of them or many. mark:
        `no` is a hard negative: similar, and of another class; `unsure` is kept and never used.
        layout: windows or tiles that items are cut into, each an example.

        Raises:
            ItemError: an example that cannot be embedded.
            LabelsError: an unknown mark, or nothing given.
        """
        checked_name(name), checked_mark(mark)  # before an item is opened
        pairs = self.source.cut(pairs_of(items, self.source.modality), layout)
        found = self.source.vectors_of(pairs)
        if not found:
            raise LabelsError(f"no example of class {name!r}; give files, rows or arrays")
        vectors = np.stack(list(found.values()))
        with self._guard:
            self._teach(
                LabelledExamples([name] * len(found), list(found), vectors, [mark] * len(found))
            )
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
            self._teach(LabelledExamples([name] * len(keys), keys, values, [mark] * len(keys)))

    def add_named(
        self,
        items: Any,
        by: str,
        mark: Mark | None = None,
        where: str | None = None,
        layout: Layout = _WHOLE,
    ) -> ClassCounts:
        """Add examples of several classes by name; gives the number of examples of each.

        items: as for `add`; None takes the rows of the collection that pass the filter `where`. by:
        `folder`, a pattern of the path, a column of the items' table, or for rows a metadata
        column, `label` (the classifier's own), or see `penult.collection.labels`. mark: of all;
        None is what the column `mark` of a table says, and yes where there is none. layout: as for
        `add`, of items.

        A table that names rows by path and region, as `Examples.to_csv` writes it, is read as it
        was written: regions, channels, marks for every class, and items of several classes. With
        several classes at once other cells may name several, see `names_in`, and so may several
        rows of one span.

        Raises:
            LabelsError: no item has a name, a mark or region that cannot be, or no collection.
        """
        if mark is not None:
            checked_mark(mark)
        kept = self.settings.several
        several = of_several(self._examples) if kept is None else kept
        if items is None:
            named = by_row(self.source, by, where, mark or "yes", several)
        else:
            named = by_item(self.source, items, by, layout, mark, self._examples, several)
        if not several and (lists := sorted(n for n in set(named.names) if SEPARATOR in n)):
            log.warning(
                "%r is taken for the name of one class: penult teach %s --several reads the parts "
                "between ; as classes", lists[0], self._place,
            )  # fmt: skip
        with self._guard:
            self._teach(named, f"teach --from {by}")
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
            self._change(self._examples.with_named(head.names, head.keys, head.vectors), "head")
        return list(head.names)

    def rename(self, old: str, new: str) -> None:
        """Rename a class."""
        with self._guard:
            self._change(self._examples.renamed(old, new), "rename", fits=False)

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
            if self._taught is not None and "space" not in self._given:
                return self._taught.space
            if self._fixed is not None:
                return self._fixed
            recipe, groups = self.settings.space, self._named_groups()
            if self._is_of_before and (own := fit_as_before(self.source)) is not None:
                space = own
            else:
                space = space_of(self.source, recipe, self._examples, groups, self._rows)
            if self.source.collection is not None:
                self._fixed = space
            return space

    @property
    def _is_of_before(self) -> bool:
        """Whether the marks are of a time when nothing was kept of what was fitted."""
        marked, anew = bool(self._examples.keys), self._teaches or "space" in self._given
        return marked and not anew and self._ledger.settings is None

    @property
    def history(self) -> History:
        """The versions that were kept."""
        return History(self)

    def predict(
        self,
        items: Any,
        *,
        unknown: float | None = None,
        nearest: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        window: float | None = None,
        hop: float | None = None,
        min_probability: float | None = None,
    ) -> list[ClassPrediction]:
        """The predictions of items, in their order; label None is unknown.

        items: as for `add`, one of them or many. window, hop: seconds. unknown: another level for
        this call. nearest: the number of nearest examples to name. min_probability: of an assigned
        class; with several at once it takes the place of their thresholds.
        """
        pairs = pairs_of(items, self.source.modality)
        predictions = []
        layout = Layout(window, hop)
        for one in self.stream(pairs, layout, unknown, nearest, min_probability=min_probability):
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
        min_probability: float | None = None,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        query = self._query(unknown, nearest, min_probability)
        yield from query.items(self.source, pairs, layout, workers)

    def predict_collection(
        self,
        collection: Collection | None = None,
        where: str | None = None,
        *,
        unknown: float | None = None,
        nearest: int = 0,
        min_probability: float | None = None,
    ) -> Iterator[ClassPrediction]:
        """Predictions of the rows of a collection, in the order of their keys, from their stored
        vectors.

        Raises:
            FingerprintMismatch: the collection holds vectors of another embedder.
        """
        query = self._query(unknown, nearest, min_probability)
        yield from query.rows(self.source, collection, where)

    def predict_vectors(
        self,
        vectors: npt.ArrayLike,
        *,
        unknown: float | None = None,
        nearest: int = 0,
        min_probability: float | None = None,
    ) -> list[ClassPrediction]:
        """Predictions of raw vectors (n, d) of this embedder.

        Raises:
            SpaceError: another width, or values that are not finite.
        """
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        places = [Location(str(i), "whole") for i in range(len(values))]
        return list(self._query(unknown, nearest, min_probability).vectors(values, places))

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file that needs no collection: raw examples, marks, space, settings, and what
        was fitted."""
        with self._guard:  # the examples, and what is fitted to them
            members, rows = any_members(self._examples), self.source.collection
            if members and rows is None and self.history.overridden:
                self.history.refit()  # these settings are the file's from now on
            ledger, taught = self._ledger, self._taught
            if members:
                fitted = self.fitted
                if taught is None or self.history.overridden:
                    taught = self._parts(fitted)
                if rows is not None:
                    ledger = Ledger(FileStore(), fingerprint_in(self.source.manifest))
                if rows is not None or self._version is None:
                    ledger.keep(fitted, taught, self.settings, marks_of(self._examples))
            store = ledger.store if isinstance(ledger.store, FileStore) else FileStore()
            saved = storage.Saved(
                self._examples,
                self.space,
                self.source.manifest.fingerprint,
                self.source.manifest.model,
                self.settings.to_dict()
                | {storage.OF_EXAMPLES: rows is None and self._fixed is None},
                self._named_groups(),
                self._rows if taught is None else taught.background,
                store,
                self.source.seconds_of(self._examples.keys),
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
        made, saved = cls.__new__(cls), storage.read(path)
        manifest = storage.manifest_of(saved)
        ledger = Ledger(saved.store, fingerprint_in(manifest))
        Settings.of(saved.settings, changed)  # an unknown one is refused, unset or not
        vectors = VectorSource(manifest)
        vectors.know_seconds(saved.seconds)
        made._begin(vectors, ledger, changed, saved.examples, saved)
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
        """The classes of the version, or fitted anew, and then kept as a version."""
        overridden = bool(_FITTED & self._given.keys())
        taught = None if overridden else self._taught
        fitted = self._fresh(self._taught) if taught is None else taught.fit()
        if self._version is not None and taught is not None:
            self._check(self._version, fitted)
        keeps = self.source.collection is not None or self._teaches
        if self._version is None and keeps and not overridden:
            self._keep(fitted, taught or self._parts(fitted))
        return fitted

    def _check(self, version: TaughtVersion, fitted: FittedClasses) -> None:
        """Tell where another version of a library, or another machine, computes otherwise."""
        if gap := self._ledger.differs(version, fitted):
            log.warning(
                "version %d was fitted by penult %s; fitted again here, probabilities of its "
                "examples differ by up to %.3f: penult teach %s --refit makes a version of "
                "today's", version.number, version.about["penult"], gap, self._place,
            )  # fmt: skip

    def _fresh(self, former: Taught | None) -> FittedClasses:
        """Fitted to the examples. former: what is kept of an earlier version, but for settings
        that were given."""
        given, head = self._given, any(of_head(key) for key in self._examples.keys)
        if former is None and self.source.collection is not None and not head:
            # As the rows are now: what was kept may have had others.
            self._examples, self.source.missing = marks.read_examples(self.source.collection)
        method, groups = self.settings.method, None
        if former is not None and _FITTED & given.keys() == {"several"}:
            method = former.method
        if former is not None and "groups" not in given:
            groups = former.groups
        else:
            groups = self._named_groups()
        rows = self._rows if former is None else former.background
        self._background = _Background(self.source, self._examples, rows)
        # Marks of a time when nothing was kept have the classes that they had.
        thresholds = NO_THRESHOLDS if self._is_of_before else None
        return FittedClasses(self._examples, self.space, method, self._several(),
                             self._background, groups, thresholds=thresholds)  # fmt: skip

    def _anew(self) -> FittedClasses:
        """Fitted to the rows there are now, and not kept."""
        other = copy.copy(self)
        other._taught = other._version = other._fixed = None
        other._teaches = True  # nothing of before
        return other._fresh(None)

    def _several(self) -> bool:
        """Whether an item may be of several classes; where it was never settled, as the marks are
        that were there."""
        if self.settings.several is not None:
            return self.settings.several
        if found := of_several(self._examples):
            log.warning(
                "examples are marked for several classes each, so that several may be predicted; "
                "penult teach %s --several keeps that, --single gives each item one class",
                self._place,
            )
        return found

    def _parts(self, fitted: FittedClasses) -> Taught:
        """What these classes were fitted from, which are of `_fresh`."""
        _ = fitted.unknowns, fitted.probabilities  # then it is known whether they need background
        return Taught(fitted.examples, fitted.space, fitted.method, fitted.several, fitted.accuracy,
                      self._named_groups(), self._background.rows, fitted.thresholds)  # fmt: skip

    def _keep(self, fitted: FittedClasses, taught: Taught) -> None:
        if self.source.collection is not None and any(of_head(key) for key in self._examples.keys):
            return  # rows of the head are no rows of the collection
        standing = self._standing()
        try:
            self._ledger.keep(fitted, taught, self.settings, standing)
        except StoreError as error:
            log.warning("what was fitted could not be kept as a version: %s", error)
            return
        self._taught, self._version = taught, self._ledger.current(standing)

    def _teach(self, named: LabelledExamples, source: str = "teach") -> None:
        several = self._several_with(named)
        changed = self._examples.with_named(
            named.names, named.keys, named.vectors, named.marks, several
        )
        if moved := moves(self._examples, changed):
            one = moved[0]
            log.warning(
                "%s was an example of %r and is one of %r now%s: penult teach %s --undo takes "
                "it back, and --several lets an item be of several classes", one.id, one.old,
                one.new, f", and {len(moved) - 1} more like it" if len(moved) > 1 else "",
                self._place,
            )  # fmt: skip
        if several and self.settings.several is None:
            self.settings = replace(self.settings, several=True)
        self._change(changed, source)

    def _several_with(self, named: LabelledExamples) -> bool:
        """Whether an item may be of several classes once these are taught: where it was never
        settled, as a table of marks says.

        Raises:
            LabelsError: a table of marks has items of several classes, and one class was settled.
        """
        both = named.of_several
        if not both or self.settings.several:
            return self._several()
        (id, _), names = next(iter(both.items()))
        words = f"{id} is marked for {' and '.join(map(repr, names))}" + (
            f", and {len(both) - 1} more like it" if len(both) > 1 else ""
        )
        if not named.is_exact or "several" in self._given:
            log.warning("%s: the last one counts; --several lets an item be of several classes",
                        words)  # fmt: skip
        elif self.settings.several is None:
            log.warning("%s, so that several may be predicted; penult teach %s --single gives each "
                        "item one class", words, self._place)  # fmt: skip
            return True
        else:
            raise LabelsError(
                f"{words}, and {self._place} gives an item one class: --several keeps both, "
                "--single takes the last"
            )
        return self._several()

    def _change(
        self,
        changed: Examples,
        source: str,
        fits: bool = True,
        former: npt.NDArray[np.float32] | Literal[False] | None = False,
    ) -> None:
        """Replace the examples, and write the changed marks into the collection. fits: whether the
        classes mean something else now; else what was fitted goes on under other names. former: the
        background before, where that is changed."""
        before = self._examples
        self.settings = replace(self.settings, several=self._several())
        if self.source.collection is not None:
            old, new = (
                {key: m for key, m in marks_of(one).items() if not of_head(key)}
                for one in (before, changed)
            )
            marks.write_changes(self.source.collection, old, new, source)
            self._fixed = None  # it may have been fitted to rows that are examples now
        self._ledger.changed(source, before, changed, self.settings, former)
        taught, self._taught = self._taught, None
        self._examples, self._fitted, self._version = changed, None, None
        self._given, self._teaches = {}, True
        if taught is not None and not fits:
            self._taught = replace(taught, examples=changed)
            self._fitted = self._fit()

    def _query(self, level: float | None, nearest: int, least: float | None) -> Query:
        level = self.settings.unknown if level is None else level
        return Query(self.fitted, level, nearest, least)


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows of a collection by two versions. changed: (label before, label now) and how often, the
    most first; None is unknown. examples: (id, region) of the first row of each."""

    rows: int
    changed: dict[tuple[str | None, str | None], int]
    examples: dict[tuple[str | None, str | None], Key]


class History:
    """The versions of a class space: what was fitted, kept until somebody teaches."""

    def __init__(self, space: ClassSpace) -> None:
        self._space = space

    @property
    def versions(self) -> list[TaughtVersion]:
        """All of them, oldest first."""
        return self._space._ledger.versions(self._space._standing())

    @property
    def current(self) -> TaughtVersion | None:
        """The one that predictions are from; None where what was fitted is not kept."""
        return self._space._version

    @property
    def overridden(self) -> dict[str, Any]:
        """Settings of what is fitted that were given for this object, and are not kept."""
        return {n: v for n, v in self._space._given.items() if n in _FITTED}

    def refit(self) -> None:
        """Fit everything anew, to the rows and with the settings there are now, and keep it."""
        space = self._space
        with space._guard:
            given = ", ".join(f"{name} {value}" for name, value in space._given.items())
            space._change(space._examples, f"refit, {given}" if given else "refit")
            if space.source.collection is not None:  # else the rows it was fitted to are not here
                space._fixed = None
            space._fitted = space._fit()

    @property
    def background(self) -> int | None:
        """The number of rows that serve as background; None where no other rows are known."""
        source, rows = self._space.source, self._space._rows
        if source.collection is not None:
            return min(source.collection.count, BACKGROUND)
        return None if rows is None else len(rows)

    def give_background(self, items: Any) -> int:
        """Vectors of other items than the examples, for a class file: the space is fitted to them,
        unless it came from a collection, and thresholds rest on them. Gives their number.

        items: files, folders, tables, or a collection of the same embedder.

        Raises:
            UsageError: a collection, which has rows of its own.
            LabelsError: no item.
        """
        space, found = self._space, dict[Key, npt.NDArray[np.float32]]()
        if space.source.collection is not None:
            raise UsageError(
                f"{space.source.collection.path} has rows of its own, which serve as background; "
                "other items are for a class file (FILE.npz), and a number such as --background 50 "
                "holds so many random rows to be of no class"
            )
        if isinstance(items, Collection):
            if (manifest := items.manifest) is None:
                raise LabelsError(f"there is no collection at {items.path}")
            space.source.check(fingerprint_in(manifest), str(items.path))
            rows = marks.sample(items, BACKGROUND, space.examples.keys)
        else:
            found = space.source.vectors_of(pairs_of(items, space.source.modality))
            own = [row for key, row in found.items() if key not in set(space.examples.keys)]
            rows = np.stack(own) if own else np.zeros((0, space.examples.dim), np.float32)
        if not len(rows):
            raise LabelsError("no other item for the background; give files that are no examples")
        with space._guard:
            former, space._rows = space._rows, rows  # a space of a collection's rows stays
            space._change(space._examples, f"background of {len(rows)} items", former=former)
        return len(rows)

    def undo(self) -> str:
        """Take the last teaching back: marks are appended, and the version before is the current
        one again. Gives what was undone, in words.

        Raises:
            LabelsError: there is nothing to take back.
        """
        space = self._space
        with space._guard:
            change = space._ledger.undo()
            standing = {key: dict(one) for key, one in space._standing().items()}
            former = {key: dict(one) for key, one in standing.items()}
            for key, classes in change.marks.items():
                for name, (mark, _) in classes.items():
                    former.setdefault(key, {}).pop(name, None)
                    if mark is not None:
                        former[key][name] = mark
            if space.source.collection is not None:
                marks.write_changes(space.source.collection, standing, former, "undo")
            else:
                space._examples = restored(space._examples, former, change.dropped, change.order)
            kept = space._ledger.settings or {}
            space.settings, space._given = Settings.of(kept, {}), {}
            space._groups, space._fitted = Groups(space.settings.groups), None
            if space.source.collection is not None:
                space._fixed = None
            space._teaches = True
            if change.background is not False:
                space._rows = change.background
            space._recall()
            return change.words

    def diff(self, old: int | None = None, new: int | None = None) -> Difference:
        """The rows of the collection that two versions label differently. old: None is the current
        one. new: None is what a refit would give now.

        Raises:
            LabelsError: no collection, or no such version.
        """
        space = self._space
        if space.source.collection is None:
            raise LabelsError("a class file has no rows on which two versions could differ")
        one = space.fitted if old is None else self._fitted(old)
        other = space._anew() if new is None else self._fitted(new)
        level = space.settings.unknown
        changed: Counter[tuple[str | None, str | None]] = Counter()
        examples: dict[tuple[str | None, str | None], Key] = {}
        rows = 0
        pairs = (Query(each, level).rows(space.source, None, None) for each in (one, other))
        for before, after in zip(*pairs, strict=True):
            rows += 1
            names = (_names_of(before), _names_of(after))
            if names[0] != names[1]:
                changed[names] += 1
                examples.setdefault(names, (before.id, before.region))
        return Difference(rows, dict(changed.most_common()), examples)

    def _fitted(self, number: int) -> FittedClasses:
        versions = self.versions
        if not 1 <= number <= len(versions):
            raise LabelsError(
                f"there is no version {number}; "
                + (f"there are 1 to {len(versions)}" if versions else "none was kept yet")
            )
        taught = self._space._ledger.taught(versions[number - 1])
        if taught is None:
            raise LabelsError(f"version {number} is in the history of the file, without its parts")
        return taught.fit()


def _names_of(one: ClassPrediction) -> str | None:
    """All classes of an item, with ; between; None is unknown."""
    return ";".join(sorted(one.detection.probabilities)) or None


def lacking(space: ClassSpace, place: str) -> str | None:
    """What a class file lacks to be as good as a collection, in words; None where it lacks nothing.
    place: how it is called."""
    if space.history.background is not None or not space.fitted.space.is_raw:
        return None
    if space.settings.space != AUTO:
        return None
    return (
        f"nothing is centred: {len(space.examples.keys)} examples alone do not tell what all items "
        "have in common, so that unknown items are hardly told from known ones. penult teach "
        f"{place} --background FILES|FOLDER|COLLECTION gives other recordings of the same kind"
    )
