"""ClassSpace: classes taught by a few examples, and predictions of items, rows or vectors, with
unknowns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, Space
from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.collection.schema import Key
from penult.data.files import user_path
from penult.data.items import SEPARATOR, Failure, sha
from penult.data.windows import Layout
from penult.errors import ItemError, LabelsError, UsageError
from penult.fewshot import storage
from penult.fewshot.examples import (
    EVERY,
    Class,
    Examples,
    check_every,
    checked_mark,
    new_name,
    of_several,
)
from penult.fewshot.fitted import FittedClasses, Settings
from penult.fewshot.history import Difference as Difference  # its place before
from penult.fewshot.history import History as History
from penult.fewshot.labelling import (
    ClassCounts,
    LabelledExamples,
    by_head,
    by_item,
    by_row,
)
from penult.fewshot.predictions import ClassPrediction, Location, former
from penult.fewshot.query import Query
from penult.fewshot.state import ClassSpaceState
from penult.fewshot.vectors import VectorSource, example_parts, pairs_of, place_of, roots_of
from penult.fewshot.versions import CollectionStore, FileStore, Ledger

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


log = logging.getLogger(__name__)
Mark = Literal["yes", "no", "unsure"]
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
    together; `items` makes every item a group. Without it clusters of examples stand for groups
    in the level of unknown, and where all examples are of one recording or two, blocks of time.

    A setting that is not given is the one that was kept with the last teaching. One that is given
    holds for this object, and is kept once it teaches.

    `source` (a `VectorSource`) has the embedder, the collection and the manifest, and the marked
    keys that are no rows of it any more. fitted: see `FittedClasses`. history: see `History`.
    """

    source: VectorSource

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
        self.source = VectorSource.of(source)
        collection, manifest = self.source.collection, self.source.manifest
        store = FileStore() if collection is None else CollectionStore(collection.reader)
        ledger = Ledger(store, fingerprint_in(manifest))
        examples = Examples.empty(manifest.dim)
        self._state = ClassSpaceState(self.source, ledger, given, examples)
        self._read: dict[Path, storage.State] = {}  # the file that it was loaded from

    @property
    def settings(self) -> Settings:
        """The settings that hold now."""
        return self._state.settings

    # ---- teaching

    @property
    def examples(self) -> Examples:
        """All examples with their marks."""
        return self._state.examples

    @property
    def classes(self) -> list[Class]:
        """Each class with its numbers of examples and its medoid."""
        return self.examples.classes()

    def add(
        self,
        name: str,
        items: Any,
        mark: Mark = "yes",
        layout: Layout | None = None,
        channel: int | str | None = None,
    ) -> list[Key]:
        """Add examples of a class; gives their (id, region).

        items: files, folders, tables, arrays, bytes, images, texts; (path, start, end) for a
        segment in seconds; (id, region) for a row of the collection; one of them or many. mark:
        `no` is a hard negative: similar, and of another class; `unsure` is kept and never used.
        layout: windows or tiles that items are cut into, each an example. channel: of sound: a
        number, `each` or `mix`. Where they are not given, items are read as the rows of the
        collection are, and one that is several of these is refused.

        Raises:
            UsageError: an item that is several rows.
            ItemError: an example that cannot be embedded.
            LabelsError: an unknown mark, or nothing given.
        """
        check_every(new_name(name), checked_mark(mark))  # before an item is opened
        pairs = pairs_of(items, self.source.modality, roots_of(self.source))
        found = self.source.vectors_of(example_parts(self.source, pairs, layout, channel))
        if not found:
            raise LabelsError(f"no example of class {name!r}; give files, rows or arrays")
        vectors = np.stack(list(found.values()))
        self._state.teach(
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
        self._state.teach(LabelledExamples([name] * len(keys), keys, values, [mark] * len(keys)))

    def add_named(
        self,
        items: Any,
        by: str,
        mark: Mark | None = None,
        where: str | None = None,
        layout: Layout | None = None,
        channel: int | str | None = None,
    ) -> ClassCounts:
        """Add examples of several classes by name; gives the number of examples of each.

        items: as for `add`; None takes the rows of the collection that pass the filter `where`. by:
        `folder`, a pattern of the path, a column of the items' table, or for rows a metadata
        column, `label` (the classifier's own), or see `penult.collection.labels`. mark: of all;
        None is what the column `mark` of a table or of the rows says, and yes where there is none.
        layout, channel: as for `add`, of items.

        A table that names rows by path and region, as `Examples.to_csv` writes it, is read as it
        was written: regions, channels, marks for every class, and items of several classes. So is a
        class file (FILE.npz) of the same embedder, by `class`. With several classes at once other
        cells may name several, see `names_in`, and so may several rows of one span.

        Raises:
            LabelsError: no item has a name, a mark or region that cannot be, or no collection.
        """
        if mark is not None:
            checked_mark(mark)
        kept = self.settings.several
        several = of_several(self.examples) if kept is None else kept
        if items is None:
            named = by_row(self.source, by, where, mark, several)
        else:
            named = by_item(self.source, items, by, layout, mark, self.examples, several, channel)
        if not several and (lists := sorted(n for n in set(named.names) if SEPARATOR in n)):
            log.warning(
                "%r is taken for the name of one class: penult teach %s --several reads the parts "
                "between ; as classes", lists[0],
                place_of(self.source),
            )  # fmt: skip
        self._state.teach(named, f"teach --from {by}")
        return named.counts

    def add_head(self) -> list[str]:
        """Add the classifier's own classes: the rows of its linear head, at the prelogits; see
        `penult.fewshot.labelling.by_head`. A collection does not store these, since its marks
        are of rows: save the space.

        Raises:
            HeadNotFound: not the prelogits, no proof, or no linear head; the message says why.
        """
        head = by_head(self.source)
        self._state.change(
            lambda examples: examples.with_named(head.names, head.keys, head.vectors), "head"
        )
        return list(head.names)

    def rename(self, old: str, new: str) -> None:
        """Rename a class."""
        self._state.change(lambda examples: examples.renamed(old, new), "rename", fits=False)

    def merge(self, names: Sequence[str], into: str) -> None:
        """Make one class of several."""
        self._state.change(lambda examples: examples.merged(names, into), "merge")

    def remove(self, name: str, items: Iterable[Key] | None = None) -> None:
        """Forget a class, or its marks of some examples (id, region)."""
        self._state.change(lambda examples: examples.without(name, items), "remove")

    # ---- predicting

    @property
    def fitted(self) -> FittedClasses:
        """The classes fitted to the examples: method, cross-validated accuracy, and the basis of
        probabilities and thresholds."""
        return self._state.fitted

    @property
    def space(self) -> Space:
        """The fitted space: to the rows of the collection, or else to the examples."""
        return self._state.space

    @property
    def history(self) -> History:
        """The versions that were kept."""
        return History(self._state, self.source)

    def predict(
        self,
        items: Any,
        *,
        unknown: float | None = None,
        nearest: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        window: float | Literal["whole"] | None = None,
        hop: float | None = None,
        min_probability: float | None = None,
        channel: int | str | None = None,
    ) -> list[ClassPrediction]:
        """The predictions of items, in their order; label None is unknown.

        items: as for `add`, one of them or many. window, hop: seconds; `whole` is one prediction
        for each item. channel: a number, `each` or `mix`. Without these, items are read as the rows
        of the collection are, and have as many predictions as they would have rows. unknown:
        another level for this call. nearest: the number of nearest examples to name.
        min_probability: of an assigned class; with several at once it takes the place of their
        thresholds.
        """
        pairs = pairs_of(items, self.source.modality, roots_of(self.source))
        predictions = []
        layout = None
        if window is not None or hop is not None:
            layout = Layout(None if window == "whole" else window, hop)
        found = self.stream(
            pairs, layout, unknown, nearest, min_probability=min_probability, channel=channel
        )
        for one in found:
            if isinstance(one, ClassPrediction):
                predictions.append(one)
            elif on_error == "raise":
                raise ItemError(one.words())
        return predictions

    def stream(
        self,
        pairs: Iterable[Any],
        layout: Layout | None = None,
        unknown: float | None = None,
        nearest: int = 0,
        workers: int | None = None,
        min_probability: float | None = None,
        channel: int | str | None = None,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed. layout,
        channel: as for `add`; without them items are read as the rows of the collection are."""
        query = self._query(unknown, nearest, min_probability)
        yield from query.items(self.source, pairs, layout, workers, channel)

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
        was fitted.

        Raises:
            StoreError: it cannot be written, or the file that this was loaded from, where it is to
                be written to, was written by somebody else since.
        """
        target = user_path(path).resolve()
        if target in self._read:
            storage.check_unchanged(path, self._read[target])
        written = storage.write(path, self._state.saved())
        if (state := storage.state_of(path)) is not None:
            self._read[target] = state
        return written

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | storage.Saved,
        source: Embedder | None = None,
        **changed: Any,
    ) -> ClassSpace:
        """A class space from its file, or from what one holds. source: the embedder, if it is not
        where it was. changed: space, method, several, unknown, groups, in place of those that were
        saved; another space is fitted to the examples.

        Raises:
            LabelsError: no class space.
            FingerprintMismatch: the embedder gives other vectors.
        """
        made = cls.__new__(cls)
        saved = path if isinstance(path, storage.Saved) else storage.read(path)
        made._read = {} if saved.read is None else dict([saved.read])
        manifest = storage.manifest_of(saved)
        ledger = Ledger(saved.store, fingerprint_in(manifest))
        Settings.of(saved.settings, changed)  # an unknown one is refused, unset or not
        file = None if isinstance(path, storage.Saved) else str(path)
        made.source = VectorSource(manifest, file=file)
        made.source.know_seconds(saved.seconds)
        made.source.rows = saved.rows
        made._state = ClassSpaceState(made.source, ledger, changed, saved.examples, saved)
        if source is not None:
            made.source.use(source)
        return made

    def __repr__(self) -> str:
        return f"ClassSpace({len(self.examples.names)} classes, {len(self.examples.keys)} examples)"

    # ---- inside

    if not TYPE_CHECKING:  # else every name would be known

        def __getattr__(self, name: str) -> Any:
            return former(self, _FORMER, name)

    def _query(self, level: float | None, nearest: int, least: float | None) -> Query:
        level = self.settings.unknown if level is None else level
        return Query(self.fitted, level, nearest, least)


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


_MANY = 200  # predictions, from which on the share of unknown ones says what there mostly is


def mostly_other(space: ClassSpace, unknown: int, predictions: int, place: str) -> str | None:
    """What to do where most of many predictions are unknown and no background is taught, in words.
    place: how the class space is called."""
    taught = any(EVERY in one for one in space.examples.marks)
    if taught or space.source.collection is None or predictions < _MANY:
        return None
    if unknown < 0.5 * predictions:
        return None
    return (
        f"{unknown / predictions:.0%} of {predictions:,} predictions are unknown: of so much that "
        f"is in no class, some is taken for one. penult teach {place} --background 50 holds 50 "
        "random rows to be of no class: fewer such predictions, and some members less"
    )
