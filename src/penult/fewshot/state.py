"""The state of a class space: its examples and settings, the version that counts, and the classes
fitted to them. It is changed by teaching, and goes back.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, RAW, Space
from penult.collection import labels, spaces
from penult.collection.manifest import fingerprint_in
from penult.errors import LabelsError, StoreError
from penult.fewshot import marks, storage
from penult.fewshot.example_space import fit_to_examples
from penult.fewshot.examples import (
    Examples,
    Grouping,
    Marks,
    any_members,
    moves,
    of_several,
    restored,
)
from penult.fewshot.fitted import (
    CrossValidation,
    FittedClasses,
    Settings,
    cross_validation,
    fit_space,
)
from penult.fewshot.labelling import Groups, LabelledExamples, of_head
from penult.fewshot.thresholds import NO_THRESHOLDS
from penult.fewshot.vectors import VectorSource, place_of
from penult.fewshot.versions import FileStore, Ledger, Taught, TaughtVersion, marks_of
from penult.locking import Guard

log = logging.getLogger(__name__)
BACKGROUND = 5000  # rows of a collection that serve as background
FITTED = {"space", "method", "several", "groups"}  # settings that decide on what is fitted
Rows = npt.NDArray[np.float32]
Write = Callable[[], object]


def space_of(
    source: VectorSource,
    recipe: str,
    examples: Examples,
    groups: Grouping | None = None,
    background: npt.NDArray[np.float32] | None = None,
) -> Space:
    """The space of a collection or embedder, if the recipe names or means one; else a recipe fitted
    to the rows of the collection that are no examples, to the background of a class file, or to the
    examples. groups: what is held out together.

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


class ClassSpaceState:
    """What a class space knows, and the classes fitted to it. Threads may share one.

    source: see `VectorSource`. ledger: of the versions. given: settings for this object; None is
    unset. file: what a class file holds.

    version: that of these marks, if one was kept. rows: (m, d) the background of a class file.
    """

    def __init__(
        self,
        source: VectorSource,
        ledger: Ledger,
        given: Mapping[str, Any],
        examples: Examples,
        file: storage.Saved | None = None,
    ) -> None:
        self._guard = Guard()  # of the examples, and of the classes fitted to them
        self._source, self._ledger, self.examples = source, ledger, examples
        self._given = {name: value for name, value in given.items() if value is not None}
        for name in ("method", "groups"):
            if self._given.get(name) == AUTO:
                self._given[name] = None
        self._file = {} if file is None else file.settings
        self._claims = {} if file is None else file.claims
        self.settings = Settings.of(self._kept, self._given)
        self._groups = Groups(self.settings.groups)
        self._fixed: Space | None = None  # fitted to the rows of a collection
        self._fitted: FittedClasses | None = None
        self.version: TaughtVersion | None = None  # of these marks, if one was kept
        self._taught: Taught | None = None  # what the classes are fitted from, where that is known
        self.rows = None if file is None else file.background
        self._teaches = False  # whether this object has taught, so that it keeps what it fits
        self._damage: str | None = None  # why the version that was the current one cannot be used
        if file is None:
            self._recall()
            return
        if "groups" not in self._given and file.groups is not None:
            self._groups = Groups(
                self.settings.groups, dict(zip(examples.keys, file.groups, strict=True))
            )
        if not file.settings.get(storage.OF_EXAMPLES) and "space" not in self._given:
            self._fixed = file.space
        self.version = ledger.current(marks_of(examples))
        if self.version is not None:
            self._taught = ledger.again(self.version, examples, file.space, file.groups,
                                        file.background)  # fmt: skip

    def _recall(self) -> None:
        """Take the version of the marks that stand, if one was kept, or the marked rows."""
        collection = self._source.collection
        standing = self._standing()
        self.version, self._taught, self._damage = self._ledger.current(standing), None, None
        lost = None if self.version is not None else self._ledger.lost()
        if self.version is not None:
            try:
                self._taught = self._ledger.taught(self.version)
            except StoreError as error:
                self.version, lost = None, str(error).removesuffix(" is not as it was kept")
        if lost is not None:
            self._damage = _damage_words(lost, place_of(self._source))
        if collection is None:
            if self.version is not None:  # a file has the parts of the version it was saved with
                self._taught = self._ledger.again(
                    self.version, self.examples, self.space, self._grouping().names, self.rows
                )
        elif self._taught is None:
            self.examples, self._source.missing = marks.read_examples(collection, standing)
        else:
            self.examples, there = self._taught.examples, set(self._taught.examples.keys)
            self._source.missing = [key for key in standing if key not in there]

    @property
    def _kept(self) -> Mapping[str, Any]:
        """The settings of the last change, or those that a file came with."""
        return self._ledger.settings or self._file

    def _standing(self) -> Marks:
        if self._source.collection is None:
            return marks_of(self.examples)
        return labels.standing(self._source.collection.reader)

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
            self._check_whole()
            if self._taught is not None and "space" not in self._given:
                return self._taught.space
            if self._fixed is not None:
                return self._fixed
            recipe, groups = self.settings.space, self._grouping()
            if self._is_of_before and (own := fit_as_before(self._source)) is not None:
                space = own
            else:
                space = space_of(self._source, recipe, self.examples, groups, self.rows)
            if self._source.collection is not None:
                self._fixed = space
            return space

    @property
    def _is_of_before(self) -> bool:
        """Whether the marks are of a time when nothing was kept of what was fitted."""
        marked, anew = bool(self.examples.keys), self._teaches or "space" in self._given
        return marked and not anew and self._ledger.settings is None

    def teach(self, named: LabelledExamples, words: str = "teach") -> None:
        """Take these examples in. words: what is done, for the history.

        Raises:
            LabelsError: they cannot be examples here.
        """
        with self._guard:
            several = self._several_with(named)
            before = self.examples
            changed = before.with_named(
                named.names, named.keys, named.vectors, named.marks, several
            )
            if moved := moves(before, changed):
                one = moved[0]
                log.warning(
                    "%s was an example of %r and is one of %r now%s: penult teach %s --undo takes "
                    "it back, and --several lets an item be of several classes", one.id, one.old,
                    one.new, f", and {len(moved) - 1} more like it" if len(moved) > 1 else "",
                    place_of(self._source),
                )  # fmt: skip
            if several and self.settings.several is None:
                self.settings = replace(self.settings, several=True)
            self._replace(changed, words)

    def change(
        self,
        make: Callable[[Examples], Examples],
        words: str,
        fits: bool = True,
        rows: Rows | None = None,
        write: Write | None = None,
    ) -> None:
        """Replace the examples by what a function makes of them. fits: whether the classes mean
        something else now; else what was fitted goes on under other names. rows: a new background
        of a class file. write: writes the changed marks into the collection in place of this
        object.
        """
        with self._guard:
            former: Rows | Literal[False] | None = False
            changed = make(self.examples)
            if rows is not None:
                former, self.rows = self.rows, rows  # a space of a collection's rows stays
            self._replace(changed, words, fits, former, write)

    def refit(self) -> None:
        """Fit everything anew, to the rows and with the settings there are now, and keep it."""
        with self._guard:
            given = ", ".join(f"{name} {value}" for name, value in self._given.items())
            self._replace(self.examples, f"refit, {given}" if given else "refit")
            if self._source.collection is not None:  # else the rows it was fitted to are not here
                self._fixed = None
            self._fitted = self._fit()

    def undo(self) -> str:
        """Take the last teaching back; see `penult.fewshot.history.History.undo`."""
        with self._guard:
            collection, there = self._source.collection, set(self.examples.keys)
            standing = {key: dict(one) for key, one in self._standing().items()}
            change = self._ledger.undo({k: one for k, one in standing.items() if k in there})
            former = {key: dict(one) for key, one in standing.items()}
            for key, classes in change.marks.items():
                for name, (mark, _) in classes.items():
                    former.setdefault(key, {}).pop(name, None)
                    if mark is not None:
                        former[key][name] = mark
            if collection is not None:
                marks.write_changes(collection, standing, former, "undo")
                self._fixed = None
            else:
                self.examples = restored(self.examples, former, change.dropped, change.order)
            self.settings, self._given = Settings.of(self._kept, {}), {}
            self._groups, self._fitted = Groups(self.settings.groups), None
            self._teaches = True
            if change.background is not False:
                self.rows = change.background
            self._recall()
            return change.words

    @property
    def overridden(self) -> dict[str, Any]:
        """Settings of what is fitted that were given for this object, and are not kept."""
        return {name: value for name, value in self._given.items() if name in FITTED}

    def versions(self) -> list[TaughtVersion]:
        """All versions that were kept, oldest first."""
        return self._ledger.versions(self._standing())

    def at(self, version: TaughtVersion | None) -> FittedClasses:
        """The classes of a version; None fits them anew to the rows there are now, and keeps
        nothing.

        Raises:
            LabelsError: a class file has nothing that leads back to it.
            StoreError: it is damaged.
        """
        if version is None:
            other = copy.copy(self)
            other._taught = other.version = other._damage = None
            if self._source.collection is not None:
                other._fixed = None
            other._teaches = True  # nothing of before
            return other._fresh(None)
        taught = self._ledger.taught(version)
        return self._rewound(version) if taught is None else taught.fit()

    def _rewound(self, version: TaughtVersion) -> FittedClasses:
        """The classes of a version of a class file, as undoing leads back to it."""
        other, store = copy.copy(self), self._ledger.store
        assert isinstance(store, FileStore)
        fingerprint = fingerprint_in(self._source.manifest)
        other._ledger = Ledger(FileStore(*store.entries()), fingerprint)
        try:
            while other.version is None or other.version.number != version.number:
                other.undo()
        except LabelsError as error:
            raise LabelsError(
                f"version {version.number} is in the history of the file alone: a class file keeps "
                "what leads from its current version back, and that was taken back, or came from "
                "a collection"
            ) from error
        return other.fitted

    def saved(self) -> storage.Saved:
        """What a class file holds: raw examples, marks, space, settings, and what was fitted."""
        with self._guard:  # the examples, and what is fitted to them
            members, rows = any_members(self.examples), self._source.collection
            if members and rows is None and self.overridden:
                self.refit()  # these settings are the file's from now on
            ledger, taught = self._ledger, self._taught
            if members:
                fitted = self.fitted
                if taught is None or self.overridden:
                    taught = self._parts(fitted)
                if rows is not None:
                    ledger = Ledger(FileStore(), fingerprint_in(self._source.manifest))
                if rows is not None or self.version is None:
                    ledger.keep(fitted, taught, self.settings, marks_of(self.examples))
            return storage.Saved(
                self.examples,
                self.space,
                self._source.manifest.fingerprint,
                self._source.manifest.model,
                self.settings.to_dict()
                | {storage.OF_EXAMPLES: rows is None and self._fixed is None},
                (self._grouping() if taught is None else taught.groups).names,
                self.rows if taught is None else taught.background,
                ledger.store if isinstance(ledger.store, FileStore) else FileStore(),
                self._source.seconds_of(self.examples.keys),
                {key: one for key, one in self._claims.items() if key in self.examples.keys},
                self._source.rows,
            )

    def _grouping(self) -> Grouping:
        if self._is_of_before and "groups" not in self._given and self.settings.groups is None:
            return Grouping()
        return self._groups.of(self._source, self.examples)

    def _fit(self) -> FittedClasses:
        """The classes of the version, or fitted anew, and then kept as a version."""
        self._check_whole()
        overridden = bool(FITTED & self._given.keys())
        taught = None if overridden else self._taught
        fitted = self._fresh(self._taught) if taught is None else taught.fit()
        if self.version is not None and taught is not None:
            self._check(self.version, fitted)
        keeps = self._source.collection is not None or self._teaches
        if self.version is None and keeps and not overridden:
            self._keep(fitted, taught or self._parts(fitted))
        return fitted

    def _check_whole(self) -> None:
        """Refuse to fit anew unasked what was fitted before, and is damaged.

        Raises:
            StoreError: it is.
        """
        if self._damage is not None:
            raise StoreError(self._damage)

    def _check(self, version: TaughtVersion, fitted: FittedClasses) -> None:
        """Tell where another version of a library, or another machine, computes otherwise."""
        if gap := self._ledger.differs(version, fitted):
            log.warning(
                "version %d was fitted by penult %s; fitted again here, probabilities of its "
                "examples differ by up to %.3f: penult teach %s --refit makes a version of "
                "today's", version.number, version.about["penult"], gap, place_of(self._source),
            )  # fmt: skip

    def _fresh(self, former: Taught | None) -> FittedClasses:
        """Fitted to the examples. former: what is kept of an earlier version, but for settings
        that were given."""
        given, head = self._given, any(of_head(key) for key in self.examples.keys)
        if former is None and self._source.collection is not None and not head:
            # As the rows are now: what was kept may have had others.
            self.examples, self._source.missing = marks.read_examples(self._source.collection)
        method = self.settings.method
        if former is not None and FITTED & given.keys() == {"several"}:
            method = former.method
        kept = None if former is None or "groups" in given else former.groups
        groups = kept or self._grouping()
        rows = self.rows if former is None else former.background
        self._background = _Background(self._source, self.examples, rows)
        # Marks of a time when nothing was kept have the classes that they had.
        found = CrossValidation(thresholds=NO_THRESHOLDS if self._is_of_before else None)
        return FittedClasses(self.examples, self.space, method, self._several(),
                             self._background, groups, found)  # fmt: skip

    def _several(self) -> bool:
        """Whether an item may be of several classes; where it was never settled, as the marks are
        that were there."""
        if self.settings.several is not None:
            return self.settings.several
        if found := of_several(self.examples):
            log.warning(
                "examples are marked for several classes each, so that several may be predicted; "
                "penult teach %s --several keeps that, --single gives each item one class",
                place_of(self._source),
            )
        return found

    def _parts(self, fitted: FittedClasses) -> Taught:
        """What these classes were fitted from, which are of `_fresh`."""
        _ = fitted.level(), fitted.probabilities  # then it is known whether they need background
        return Taught(fitted.examples, fitted.space, fitted.method, fitted.several,
                      cross_validation(fitted), fitted.grouping, self._background.rows)  # fmt: skip

    def _keep(self, fitted: FittedClasses, taught: Taught) -> None:
        if self._source.collection is not None and any(of_head(key) for key in self.examples.keys):
            return  # rows of the head are no rows of the collection
        standing = self._standing()
        try:
            self._ledger.keep(fitted, taught, self.settings, standing)
        except StoreError as error:
            log.warning("what was fitted could not be kept as a version: %s", error)
            return
        self._taught, self.version = taught, self._ledger.current(standing)

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
                        "item one class", words, place_of(self._source))  # fmt: skip
            return True
        else:
            raise LabelsError(
                f"{words}, and {place_of(self._source)} gives an item one class: --several keeps "
                "both, --single takes the last"
            )
        return self._several()

    def _replace(
        self,
        changed: Examples,
        words: str,
        fits: bool = True,
        former: Rows | Literal[False] | None = False,
        write: Write | None = None,
    ) -> None:
        """Replace the examples, and write the changed marks into the collection. former: the
        background before, where that is changed. write: as for `change`."""
        before, collection = self.examples, self._source.collection
        self.settings = replace(self.settings, several=self._several())
        if collection is not None:
            old, new = (
                {key: m for key, m in marks_of(one).items() if not of_head(key)}
                for one in (before, changed)
            )
            if write is None:
                marks.write_changes(collection, old, new, words)
            else:
                write()
            self._fixed = None  # it may have been fitted to rows that are examples now
        self._ledger.changed(words, before, changed, self.settings, former)
        taught, self._taught = self._taught, None
        self.examples, self._fitted, self.version, self._damage = changed, None, None, None
        self._given, self._teaches = {}, True
        if taught is not None and not fits:
            self._taught = replace(taught, examples=changed)
            self._fitted = self._fit()


def _damage_words(what: str, place: str) -> str:
    return (
        f"{what} of {place} is not as it was kept, and what was fitted is lost with it: penult "
        f"teach {place} --undo goes back to the version before, --refit makes one of the marks and "
        f"rows there are now; penult classes {place} --history lists what is whole"
    )
