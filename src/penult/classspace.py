"""A live class space: teach a class with a few examples, and ask what items are, or that they are
unknown. Joins an embedder or a collection with what `taught.py` fits to the examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult import classfile, marking, rows
from penult import space as spaces
from penult.calibration import LEVEL
from penult.collection import Collection
from penult.errors import FingerprintMismatch, ItemError, LabelsError, UsageError
from penult.examples import Class, Examples, Key
from penult.gathering import embedded, from_rows, pairs_of
from penult.layout import Layout
from penult.naming import namer
from penult.predictions import ClassPrediction, Near, Place, predictions
from penult.querying import embedder_of
from penult.sources import Failure
from penult.store import Manifest
from penult.taught import AUTO, Taught, fitted

if TYPE_CHECKING:
    from penult.embedder import Embedder

FloatArray = npt.NDArray[np.float32]
_USUAL = {"space": AUTO, "method": None, "several": None, "unknown": LEVEL, "groups": None}
HEAD = "classifier"  # what an example's id begins with that is a row of the classifier's head


class ClassSpace:
    """Classes that are taught by examples and live: adding one takes milliseconds and no training.

    source: an embedder, or a collection, in which examples are kept as marks. space: a recipe of
    `penult.space.fit`, fitted to the collection's rows or else to the examples; `auto` centres
    where there are twenty or more of them. method: prototype, knn, ridge or logistic; None chooses
    by cross-validation. several: whether an item may be of more than one class; None sees it from
    the examples. unknown: about this share of the items of known classes is called unknown, at
    most; 0 calls nothing unknown. groups: where it stands what examples must not share with those
    that they are tried on, such as their speaker: a column, `folder` or a pattern of the path.
    Without it the level holds for items of the same speakers, sites and days as the examples.
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
        self.collection = source if isinstance(source, Collection) else None
        self.recipe, self.method, self.several, self.unknown = (
            space,
            method,
            several,
            _level(unknown),
        )
        self.groups, self._group_of = groups, dict[Key, str | None]()
        self._opener: Callable[[], Embedder] | None = None
        self._taught: Taught | None = None
        self._fitted: spaces.Space | None = None
        self._embedder = None if isinstance(source, Collection) else _embedder(source)
        if self.collection is not None:
            if (manifest := self.collection.manifest) is None:
                raise LabelsError(
                    f"there is no collection at {self.collection.path}; "
                    f"penult embed MODEL FOLDER --into {self.collection.path} makes one"
                )
            self._manifest = manifest
            self._examples, self.missing = marking.read_examples(self.collection)
        elif self._embedder is not None:
            from penult.adding import manifest_of

            self._manifest, self.missing = manifest_of(self._embedder), []
            self._examples = Examples.empty(self._manifest.dim)

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
    def manifest(self) -> Manifest:
        """What all vectors share: fingerprint, numbers, and what opens the embedder again."""
        return self._manifest

    def add(self, name: str, items: Any, mark: Literal["yes", "no", "unsure"] = "yes") -> list[Key]:
        """Teach a class; gives the (id, region) of the examples.

        items: files, folders, tables, arrays, bytes, images, texts; (path, start, end) for a
        segment in seconds; (id, region) for a row of the collection; one of them or many. mark:
        `no` is a hard negative, which the class is not though it looks alike; `unsure` is kept
        and never used.

        Raises:
            ItemError: an example that cannot be embedded.
            LabelsError: an unknown mark, or nothing given.
        """
        changed = self._examples.with_marks(name, [], np.zeros((0, self._manifest.dim)), mark)
        found = self._vectors_of(items)
        if not found:
            raise LabelsError(f"class {name!r} was given no example; give files, rows or arrays")
        changed = changed.with_marks(name, list(found), np.stack(list(found.values())), mark)
        self._change(changed, "teach")
        return list(found)

    def add_vectors(
        self, name: str, vectors: npt.ArrayLike, keys: Sequence[Key] | None = None,
        mark: Literal["yes", "no", "unsure"] = "yes",
    ) -> None:  # fmt: skip
        """Teach a class with raw vectors (n, d) of this embedder's own; not in a collection, which
        keeps marks of its rows."""
        if self.collection is not None:
            raise UsageError("a collection keeps marks of its rows: give items, or (id, region)")
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        named = list(keys) if keys is not None else \
            [(f"vector:{row.tobytes().hex()[:32]}", "whole") for row in values]  # fmt: skip
        self._change(self._examples.with_marks(name, named, values, mark), "teach")

    def add_named(
        self, items: Any, by: str, mark: Literal["yes", "no", "unsure"] = "yes"
    ) -> dict[str, int]:
        """Teach several classes at once; gives how many examples each got. by: where an item's
        class stands: `folder`, a pattern of the path, or a column of the table that it is in.

        Raises:
            LabelsError: a way that names nothing.
        """
        pairs = list(pairs_of(items, self._modality))
        columns = {name for pair in pairs if isinstance(pair, tuple) for name in pair[0].metadata}
        name_of = namer(by, sorted(columns))
        named: dict[Key, str | None] = {
            (pair[0].id, pair[1].key): name_of(pair[0].id, pair[0].metadata)
            for pair in pairs
            if isinstance(pair, tuple)
        }
        if not any(named.values()):
            raise LabelsError(f"no item has a name by {by!r}")
        found = self._embedded(pairs)
        changed, counts = self._examples, dict[str, int]()
        for key, vector in found.items():
            if (name := named.get(key)) is not None:
                changed = changed.with_marks(name, [key], vector[None], mark)
                counts[name] = counts.get(name, 0) + 1
        self._change(changed, f"teach --from {by}")
        return counts

    def add_from(
        self,
        by: str,
        where: str | None = None,
        mark: Literal["yes", "no", "unsure"] = "yes",
    ) -> dict[str, int]:
        """Teach the classes that the collection's rows have already; gives how many examples each
        got. by: a metadata column, `folder`, a pattern of the path, or `label` (the classifier's
        own); see `penult.labelled`.

        Raises:
            LabelsError: a way that names nothing, or no collection.
        """
        if self.collection is None:
            raise LabelsError("there is no collection whose rows could have names; give items")
        changed, named = self._examples, marking.named_rows(self.collection, by, where)
        vectors = marking.vectors_of(self.collection, [k for keys in named.values() for k in keys])
        for name, keys in named.items():
            rows_of = np.stack([vectors[key] for key in keys])
            changed = changed.with_marks(name, keys, rows_of, mark)
        self._change(changed, f"teach --from {by}")
        return {name: len(keys) for name, keys in named.items()}

    def rename(self, old: str, new: str) -> None:
        """Call a class by another name."""
        self._change(self._examples.renamed(old, new), "rename")

    def merge(self, names: Sequence[str], into: str) -> None:
        """Make one class of several."""
        self._change(self._examples.merged(names, into), "merge")

    def remove(self, name: str, items: Iterable[Key] | None = None) -> None:
        """Forget a class, or its marks of some examples (id, region)."""
        self._change(self._examples.without(name, items), "remove")

    def add_head(self) -> list[str]:
        """Begin with the classifier's own classes: the rows of its linear head, at the prelogits.

        A row of weights is no vector of an item. With a collection the row is carried to where the
        class's items lie, mean + covariance · (row − mean row), the reverse of a linear
        discriminant; without, its direction serves as it is (imprinting; Qi et al., 2018). The
        collection does not keep these, for its marks are of rows: save the space.

        Raises:
            HeadNotFound: not the prelogits, no proof, or no linear head; it says what works.

        In a collection these are not kept, for its marks are of rows: save the space.
        """
        from penult.headrows import head_rows

        weights = head_rows(self.embedder).astype(np.float64)
        if self.collection is not None:
            cloud = marking.sample(self.collection).astype(np.float64)
            moved = (weights - weights.mean(axis=0)) @ np.atleast_2d(np.cov(cloud.T))
            length = np.linalg.norm(cloud - cloud.mean(axis=0), axis=1).mean()
            weights = cloud.mean(axis=0) + spaces.unit(moved) * length
        changed = self._examples
        for name, row in zip(self.embedder.classifier.labels, weights, strict=True):
            key = (f"{HEAD}:{name}", "head")
            changed = changed.with_marks(name, [key], row[None].astype(np.float32))
        self._examples, self._taught = changed, None
        return list(self.embedder.classifier.labels)

    # ---- asking

    @cached_property
    def embedder(self) -> Embedder:
        """What makes vectors of items; opened when it is first needed."""
        if self._embedder is not None:
            return self._embedder
        embedder = self._opener() if self._opener else embedder_of(self._manifest)
        self._check_fingerprint(embedder.fingerprint, embedder.classifier.spec)
        return embedder

    def opens(self, opener: Callable[[], Embedder]) -> None:
        """Open the embedder this way, once it is needed."""
        self._opener = opener

    def use(self, embedder: Embedder) -> None:
        """Take this embedder for items, where what the manifest names is not where it was.

        Raises:
            FingerprintMismatch: it gives other vectors.
        """
        self._check_fingerprint(embedder.fingerprint, embedder.classifier.spec)
        self.__dict__["embedder"] = embedder

    @property
    def taught(self) -> Taught:
        """What is fitted to the examples: the method that was chosen, its cross-validated
        accuracy, what probabilities and thresholds rest on."""
        if self._taught is None:
            background = None
            if (collection := self.collection) is not None:
                keys = self._examples.keys
                background = lambda: marking.sample(collection, 5000, keys)  # noqa: E731
            self._taught = Taught(
                self._examples,
                self.space,
                self.method,
                self.several,
                background,
                self._named_groups(),
            )
        return self._taught

    @property
    def space(self) -> spaces.Space:
        """The fitted space: to the rows of the collection, or else to the examples."""
        if self._fitted is not None:
            return self._fitted
        cloud = self._examples.vectors
        if self.collection is not None:
            cloud = marking.sample(self.collection)
        space = fitted(self.recipe, cloud)
        if self.collection is not None:
            self._fitted = space
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
        found = self.stream(pairs_of(items, self._modality), Layout(window, hop), unknown, nearest)
        predictions = []
        for one in found:
            if isinstance(one, ClassPrediction):
                predictions.append(one)
            elif on_error == "raise":
                raise ItemError(one.words())
        return predictions

    def stream(
        self,
        pairs: Iterable[Any],
        layout: Layout = Layout(),
        unknown: float | None = None,
        nearest: int = 0,
        workers: int = 0,
    ) -> Iterator[ClassPrediction | Failure]:
        """Predictions of (item, region) pairs as they come, and the items that failed."""
        from penult.runner import Outcome

        classifier = self.embedder.classifier
        self._check_taught(unknown)
        cut = layout.apply(pairs, classifier.modality, classifier.rate)
        for one in self.embedder.runner.stream(cut, workers=workers):
            if not isinstance(one, Outcome):
                yield one
                continue
            place = Place(one.item.id, one.region.key, one.start, one.end, one.region.channel)
            yield from self._judged(one.vector[None], [place], unknown, nearest)

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
        asked = collection or self.collection
        if asked is None:
            raise LabelsError("name the collection whose rows are meant")
        if (manifest := asked.manifest) is None:
            raise LabelsError(f"there is no collection at {asked.path}")
        self._check_fingerprint(manifest.fingerprint, str(asked.path))
        self._check_taught(unknown)
        columns = ("id", "region", "start", "end", "channel")
        for batch in asked.ordered([*columns, "vector"], where):
            places = [Place(**row) for row in batch.select(list(columns)).to_pylist()]
            vectors = rows.matrix(batch.column("vector")).astype(np.float32)
            yield from self._judged(vectors, places, unknown, nearest)

    def predict_vectors(
        self, vectors: npt.ArrayLike, *, unknown: float | None = None, nearest: int = 0
    ) -> list[ClassPrediction]:
        """What raw vectors (n, d) of this embedder are.

        Raises:
            SpaceError: another width, or values that are not finite.
        """
        values = np.atleast_2d(np.asarray(vectors, np.float32))
        places = [Place(str(i), "whole") for i in range(len(values))]
        self._check_taught(unknown)
        return list(self._judged(values, places, unknown, nearest))

    def nearest(self, items: Any, k: int = 5) -> list[tuple[Near, ...]]:
        """The nearest examples of each item, nearest first."""
        return [one.nearest for one in self.predict(items, unknown=0, nearest=k)]

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one small file that needs no collection: raw examples, marks, space, settings."""
        settings = {
            "space": self.recipe,
            "groups": self.groups,
            "method": self.method,
            "several": self.several,
            "unknown": self.unknown,
        }
        manifest = self._manifest
        saved = classfile.Saved(
            self._examples,
            self.space,
            manifest.fingerprint,
            manifest.model,
            settings,
            self._named_groups(),
        )
        return classfile.write(path, saved)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        source: Embedder | None = None,
        **changed: Any,
    ) -> ClassSpace:
        """A class space from its file. source: the embedder, if it is not where it was. changed:
        space, method, several, unknown, groups, in place of those that were saved; another space
        is fitted to the examples.

        Raises:
            LabelsError: no class space.
            FingerprintMismatch: the embedder gives other vectors.
        """
        saved = classfile.read(path)
        made = cls.__new__(cls)
        made.collection, made._embedder, made._opener, made.missing = None, None, None, []
        made._manifest = Manifest(
            saved.fingerprint, saved.examples.dim, len(saved.examples.names), saved.model
        )
        settings = {**_USUAL, **saved.settings, **changed}
        made.recipe, made.several = str(settings["space"]), settings["several"]
        made.method, made.unknown = settings["method"], _level(settings["unknown"])
        made._examples, made._taught = saved.examples, None
        made._fitted = None if "space" in changed else saved.space
        made.groups = settings["groups"]
        kept = [] if "groups" in changed else saved.groups or []
        made._group_of = dict(zip(saved.examples.keys, kept, strict=False))
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

    @property
    def _modality(self) -> str:
        return str(self._manifest.model.get("modality") or self.embedder.classifier.modality)

    def _vectors_of(self, items: Any) -> dict[Key, FloatArray]:
        return self._embedded(pairs_of(items, self._modality))

    def _embedded(self, pairs: Iterable[Any]) -> dict[Key, FloatArray]:
        if self.collection is not None:
            return from_rows(self.collection, pairs, lambda: self.embedder)
        return embedded(self.embedder, pairs)

    def _named_groups(self) -> list[str | None] | None:
        """The group of each example, read once for each."""
        if self.groups is None:
            return None
        keys = self._examples.keys
        if new := [key for key in keys if key not in self._group_of]:
            if self.collection is not None:
                self._group_of |= marking.groups_of(self.collection, new, self.groups)
            else:
                name_of = namer(self.groups)
                self._group_of |= {key: name_of(key[0], {}) for key in new}
        named = [self._group_of.get(key) for key in keys]
        if keys and not any(named):
            raise LabelsError(f"no example has a group by {self.groups!r}")
        return named

    def _change(self, changed: Examples, source: str) -> None:
        """Take other examples, and write in the collection what changed of their marks."""
        if self.collection is not None:
            before = {k: m for k, m in self._examples.by_key().items() if not _of_head(k)}
            after = {k: m for k, m in changed.by_key().items() if not _of_head(k)}
            marking.write_changes(self.collection, before, after, source)
        self._examples, self._taught = changed, None

    def _check_taught(self, level: float | None) -> None:
        """Refuse what cannot be judged before any item is opened."""
        wanted = self.unknown if level is None else level
        if wanted:
            self.taught.threshold(wanted)
        else:
            _ = self.taught

    def _judged(
        self,
        vectors: FloatArray,
        places: Sequence[Place],
        level: float | None,
        nearest: int,
    ) -> Iterator[ClassPrediction]:
        wanted = self.unknown if level is None else level
        return predictions(self.taught, vectors, places, wanted, nearest)

    def _check_fingerprint(self, other: Any, name: str) -> None:
        from penult.embedder import differences

        if differs := differences(self._manifest.fingerprint, other):
            raise FingerprintMismatch(
                f"{name} gives other vectors than the class space was taught with: "
                f"{'; '.join(differs)}"
            )


def _embedder(source: object) -> Embedder:
    from penult.embedder import Embedder

    if not isinstance(source, Embedder):
        raise UsageError(
            f"a class space is made of an Embedder or a Collection, not of a "
            f"{type(source).__name__}"
        )
    return source


def _level(unknown: float) -> float:
    if not 0 <= unknown < 1:
        raise LabelsError(f"unknown = {unknown:g}: it lies between 0 and 1, as 0.05")
    return float(unknown)


def _of_head(key: Key) -> bool:
    return key[0].startswith(f"{HEAD}:")
