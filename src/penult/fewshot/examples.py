"""Examples of classes: raw vectors with marks (yes, no, unsure), as values that are never changed
in place. Knows no model and no collection.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.collection.schema import Key
from penult.data.formulas import Cells
from penult.data.items import utf8
from penult.data.regions import Region
from penult.data.roots import Roots
from penult.errors import LabelsError, RegionError
from penult.fewshot.events import UNKNOWN, csv_lines
from penult.fewshot.scorers import IMPLIED, NO, OPEN, YES, Targets, groups_of, medoid

MARKS = ("yes", "no", "unsure")
EVERY = "*"  # in place of a class: a mark of no for every class, so that an item is of none
Marks = Mapping[Key, Mapping[str, str]]  # the marks of each example, by class
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Class:
    """A class and its numbers of examples by mark. medoid: (id, region) of the example marked yes
    with the largest sum of cosines to the others."""

    name: str
    yes: int
    no: int
    unsure: int
    medoid: Key | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult classes --json` prints it."""
        medoid = {"id": self.medoid[0], "region": self.medoid[1]} if self.medoid else None
        return asdict(self) | {"medoid": medoid}


@dataclass(frozen=True)
class Examples:
    """Examples with their marks. vectors: (n, d) raw. keys: (id, region) of each. marks: the mark
    of each, by class."""

    vectors: FloatArray
    keys: tuple[Key, ...] = ()
    marks: tuple[Mapping[str, str], ...] = field(default=())

    @classmethod
    def empty(cls, dim: int) -> Examples:
        """No examples, of `dim` numbers each."""
        return cls(np.zeros((0, dim), np.float32))

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.vectors.shape[1])

    @property
    def names(self) -> list[str]:
        """The classes that have an example marked yes or no, in the order they came."""
        used = (name for marks in self.marks for name, mark in marks.items() if mark != "unsure")
        return [name for name in dict.fromkeys(used) if name != EVERY]

    def with_marks(
        self, name: str, keys: Sequence[Key], vectors: npt.ArrayLike, mark: str = "yes"
    ) -> Examples:
        """Further examples of one class; else as `with_named`."""
        return self.with_named([name] * len(keys), keys, vectors, mark)

    def with_named(
        self,
        names: Sequence[str],
        keys: Sequence[Key],
        vectors: npt.ArrayLike,
        mark: str | Sequence[str] = "yes",
        several: bool = True,
    ) -> Examples:
        """Further examples, with a class for each; an example that is there already keeps its place
        and gets the new mark. mark: of all, or of each. several: whether an example may be one of
        several classes; else the last class that it is marked yes for counts.

        Raises:
            LabelsError: an unknown mark, an empty name, vectors that do not fit.
        """
        given = [mark] * len(keys) if isinstance(mark, str) else mark
        each, rows = map(checked_mark, given), self._check_rows(keys, vectors)
        place = {key: i for i, key in enumerate(self.keys)}
        marks = [dict(one) for one in self.marks]
        new, added = list(self.keys), []
        for key, name, row, mark in zip(keys, map(new_name, names), rows, each, strict=True):
            if key not in place:
                place[key] = len(new)
                new.append(key)
                marks.append({})
                added.append(row)
            check_every(name, mark)
            own = marks[place[key]]
            own.pop(name, None)
            if not several and mark == "yes":
                for other in _classes_of(own):
                    del own[other]
            own[name] = mark
        grown = np.concatenate([self.vectors, np.stack(added)]) if added else self.vectors
        return Examples(grown, tuple(new), tuple(marks))

    def _check_rows(self, keys: Sequence[Key], vectors: npt.ArrayLike) -> FloatArray:
        rows = np.asarray(vectors, np.float32)
        if rows.ndim != 2 or rows.shape != (len(keys), self.dim):
            raise LabelsError(
                f"{len(keys)} examples with vectors of shape {rows.shape}; ({len(keys)}, "
                f"{self.dim}) is needed: one vector of this reading for each"
            )
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise LabelsError(
                f"the vector of {keys[int(bad.argmax())][0]} has values that are not finite; "
                "leave it out"
            )
        if (zero := ~rows.any(axis=1)).any():
            raise LabelsError(
                f"the vector of {keys[int(zero.argmax())][0]} is zero, which has no direction to "
                "compare; leave it out"
            )
        return rows

    def renamed(self, old: str, new: str) -> Examples:
        """A class by another name.

        Raises:
            LabelsError: there is no such class, or there is one of the new name.
        """
        self._require(old)
        new = new_name(new)
        _check_one_class(old, new)
        if new in self._all_names():
            raise LabelsError(f"there is a class {new!r} already; merge puts {old!r} into it")
        return self._with([{new if n == old else n: m for n, m in one.items()}
                           for one in self.marks])  # fmt: skip

    def merged(self, names: Sequence[str], into: str) -> Examples:
        """Several classes as one. An example of any of them is one of the whole; it is marked no
        only if it is that for all of them.

        Raises:
            LabelsError: there is no such class.
        """
        into = new_name(into)
        _check_one_class(into, *names)
        parts = list(dict.fromkeys(n for n in names if n != into))
        if not parts:
            raise LabelsError(f"nothing to merge into {into!r}; name one class or more beside it")
        for name in parts:
            self._require(name)
        every = [*parts, *([into] if into in self._all_names() else [])]
        marks = []
        for one in self.marks:
            merged = [one.get(name) for name in every]
            kept = {n: m for n, m in one.items() if n not in every}
            if "yes" in merged:
                kept[into] = "yes"
            elif all(mark == "no" for mark in merged):
                kept[into] = "no"
            elif any(merged):
                kept[into] = "unsure"
            marks.append(kept)
        return self._with(marks)

    def without(self, name: str, keys: Iterable[Key] | None = None) -> Examples:
        """Without a class, or without its marks of some examples.

        Raises:
            LabelsError: there is no such class, or it has none of these examples.
        """
        self._require(name)
        gone = None if keys is None else set(keys)
        marks = [
            {n: m for n, m in one.items() if n != name or (gone is not None and key not in gone)}
            for key, one in zip(self.keys, self.marks, strict=True)
        ]
        if marks == [dict(one) for one in self.marks]:
            raise LabelsError(f"class {name!r} has none of these examples")
        return self._with(marks)

    def classes(self) -> list[Class]:
        """The classes, in the order they came; those with nothing but `unsure` come last, and
        behind them the marks for every class."""
        places: dict[str, dict[str, list[int]]] = {}
        for i, one in enumerate(self.marks):
            for name, mark in one.items():
                places.setdefault(name, {each: [] for each in MARKS})[mark].append(i)
        found = []
        for name, marked in places.items():
            members = marked["yes"]
            middle = self.keys[members[medoid(self.vectors[members])]] if members else None
            yes, no, unsure = (len(marked[mark]) for mark in MARKS)
            found.append(Class(name, yes, no, unsure, middle))
        return sorted(found, key=lambda one: (one.name == EVERY, not (one.yes or one.no)))

    def targets(self, names: Sequence[str]) -> Targets:
        """(n, K) the target of each example for each class: YES or NO as marked; IMPLIED for the
        other classes of a member; OPEN for unsure, and for the other classes of a NO. A no for
        every class holds for those that the example has no mark of its own for."""
        table = np.full((len(self.keys), len(names)), OPEN, np.int8)
        place, value = {name: k for k, name in enumerate(names)}, {"yes": YES, "no": NO}
        for row, one in zip(table, self.marks, strict=True):
            given = [(place[name], mark) for name, mark in one.items() if name in place]
            if any(mark == "yes" for _, mark in given):
                row[:] = IMPLIED
            elif EVERY in one:
                row[:] = NO
            for k, mark in given:
                row[k] = value.get(mark, OPEN)
        return table

    def to_csv(self, cells: Cells | None = None, roots: Roots = Roots()) -> str:
        """One line for each mark: path, region, class, mark. roots: what ids begin with."""
        rows = (
            (roots.shown(key[0]), key[1], name, mark)
            for key, one in zip(self.keys, self.marks, strict=True)
            for name, mark in one.items()
        )
        return "".join(csv_lines(("path", "region", "class", "mark"), rows, cells))

    def _with(self, marks: Sequence[Mapping[str, str]]) -> Examples:
        """These marks, of the examples that have any."""
        kept = [i for i, one in enumerate(marks) if one]
        return Examples(self.vectors[kept], tuple(self.keys[i] for i in kept),
                        tuple(marks[i] for i in kept))  # fmt: skip

    def _all_names(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.marks for name in one))

    def _require(self, name: str) -> None:
        if name not in (there := self._all_names()):
            raise LabelsError(
                f"there is no class {name!r}; "
                + (f"there are {', '.join(sorted(there)[:20])}" if there else "there is none yet")
            )


def check_every(name: str, mark: str) -> None:
    """Refuse a mark for every class that is not `no`.

    Raises:
        LabelsError: it is another one.
    """
    if name.strip() == EVERY and mark != "no":
        raise LabelsError(
            f"{EVERY!r} stands for every class: an item can be marked no for all of them, not "
            f"{mark}; a class needs another name"
        )


ITEMS, CLUSTERS, TIME, GIVEN = "items", "clusters", "time", "given"
FEWEST = 3  # examples that are held out and have another one of their class, for a level
BLOCKS = 10  # of time, into which the examples of a recording are divided


@dataclass(frozen=True, slots=True)
class Grouping:
    """What of the examples is held out together. kind: `items`, all parts of an item; `clusters`,
    the same, and for the level of unknowns items that differ alike from the means of their classes;
    `time`, parts of a recording that are near in time; `given`, items and groups that the user
    names.
    names: (n,) the group of each example; None is in none but its item. by: what was given."""

    kind: str = ITEMS
    names: tuple[str | None, ...] | None = None
    by: str | None = None

    @classmethod
    def of(cls, examples: Examples) -> Grouping:
        """The grouping where none is given: by item, with clusters where there are two classes or
        more; or by time where nearly all members of the classes are of one or two recordings, so
        that too few could be held out by item."""
        ids = [id for id, _ in examples.keys]
        targets = examples.targets(examples.names)
        places = np.unique(ids, return_inverse=True)[1]
        if _scored(targets, places) >= FEWEST:
            members = (targets == YES).any(axis=0).sum()
            return cls(CLUSTERS if members > 1 else ITEMS)
        names = time_blocks(examples.keys)
        blocks = np.unique(names, return_inverse=True)[1]
        return cls(TIME, tuple(names)) if _scored(targets, blocks) >= FEWEST else cls()

    def numbers(self, examples: Examples, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(m,) the number of the group of each of these examples; see `scorers.groups_of`."""
        ids = [examples.keys[i][0] for i in places]
        if self.names is None or self.kind == CLUSTERS:
            return groups_of(examples.vectors[places], ids)
        names = [self.names[i] for i in places]
        if self.kind == TIME:  # of an item there are several then
            return groups_of(examples.vectors[places], [str(name) for name in names])
        return groups_of(examples.vectors[places], ids, names)


def _scored(targets: Targets, groups: npt.NDArray[np.int64]) -> int:
    """The number of examples with one of the same class in another group."""
    found = np.zeros(len(targets), bool)
    for column in targets.T:
        members = np.flatnonzero(column == YES)
        if len(np.unique(groups[members])) > 1:
            found[members] = True
    return int(found.sum())


def time_blocks(keys: Sequence[Key]) -> list[str]:
    """(n,) the block of time of each (id, region). The regions of an item are divided where nothing
    lies between two of them for as long as they are (median), into BLOCKS of about as many regions
    each, at most. Items without seconds are one block."""
    spans: dict[str, list[tuple[float, float, int]]] = {}
    names = [id for id, _ in keys]
    for place, (id, key) in enumerate(keys):
        try:
            region = Region.of_key(key)
        except RegionError:  # of vectors that were given, not cut
            continue
        if region.start is not None and region.end is not None:
            spans.setdefault(id, []).append((region.start, region.end, place))
    for id, parts in spans.items():
        apart = float(np.median([end - start for start, end, _ in parts]))
        until, block, size = -np.inf, 0, len(parts) / BLOCKS
        for number, (start, end, place) in enumerate(sorted(parts)):
            if start >= until + apart:
                block = int(number // size)
            names[place] = f"{id} block {block}"
            until = max(until, end)
    return names


def _check_one_class(*names: str) -> None:
    if EVERY in names:
        raise LabelsError(f"{EVERY!r} stands for every class; it is no class to rename or merge")


@dataclass(frozen=True, slots=True)
class Reassigned:
    """An example that was of one class, and is of another one."""

    id: str
    region: str
    old: str
    new: str

    def to_dict(self) -> dict[str, str]:
        """For JSON, as `penult teach --json` prints it."""
        return asdict(self)


def moves(before: Examples, after: Examples) -> list[Reassigned]:
    """The examples that are of another class than before."""
    old, found = dict(zip(before.keys, before.marks, strict=True)), []
    for key, one in zip(after.keys, after.marks, strict=True):
        known, now = _classes_of(old.get(key, {})), _classes_of(one)
        found += [Reassigned(*key, name, now[-1]) for name in known if now and name not in one]
    return found


def any_members(examples: Examples) -> bool:
    """Whether one of them is marked yes."""
    return any(_classes_of(one) for one in examples.marks)


def of_several(examples: Examples) -> bool:
    """Whether one of them is an example of several classes."""
    return any(len(_classes_of(one)) > 1 for one in examples.marks)


def restored(
    examples: Examples, marks: Marks, more: Mapping[Key, FloatArray], order: Sequence[Key]
) -> Examples:
    """These examples, and `more` with their vectors, with these marks and in this order, others
    behind; those without a mark go."""
    vectors = dict(zip(examples.keys, examples.vectors, strict=True)) | dict(more)
    kept = [key for key in dict.fromkeys([*order, *vectors]) if key in vectors and marks.get(key)]
    rows = [vectors[key] for key in kept]
    return Examples(
        np.stack(rows) if rows else Examples.empty(examples.dim).vectors,
        tuple(kept),
        tuple(marks[key] for key in kept),
    )


def resolved(
    claims: Sequence[tuple[str, str]], several: bool
) -> tuple[dict[str, str], dict[tuple[str, str], tuple[str, str]]]:
    """(the marks of an item that hold, by class; those that do not, with the one against each) of
    all (class, mark) in their order: the first of a class, and without several the first class."""
    held: dict[str, str] = {}
    overruled = dict[tuple[str, str], tuple[str, str]]()
    for name, mark in claims:
        member = next((n for n in _classes_of(held) if n != name), None)
        if name in held:
            if held[name] != mark:
                overruled[name, mark] = name, held[name]
        elif mark == "yes" and member is not None and not several:
            overruled[name, mark] = member, "yes"
        else:
            held[name] = mark
    return held, overruled


def _classes_of(marks: Mapping[str, str]) -> list[str]:
    return [name for name, mark in marks.items() if mark == "yes"]


def checked_name(name: str) -> str:
    """A class's name without spaces around it.

    Raises:
        LabelsError: nothing is left of it, or it is not UTF-8.
    """
    if not isinstance(name, str) or not name.strip():
        raise LabelsError(f"a class needs a name; received {name!r}")
    if utf8(name) != name:
        raise LabelsError(f"the class name {name!r} is not UTF-8, and could not be stored")
    return name.strip()


def new_name(name: str) -> str:
    """A name that a class may be given, without spaces around it. Files and collections of before
    may have others, which stay.

    Raises:
        LabelsError: it is none, means something else in the results, or breaks their lines.
    """
    name = checked_name(name)
    if name.casefold() == UNKNOWN:
        raise LabelsError(
            f"no class can be called {name!r}: items of none of the classes are called so. Another "
            "name works, such as other or noise; --mark no, or --background, says that items are "
            "of no class"
        )
    if odd := [sign for sign in name if unicodedata.category(sign) in ("Cc", "Zl", "Zp")]:
        raise LabelsError(
            f"no class can be called {name!r}: {odd[0]!r} would break the lines of tables; a name "
            "of one line works"
        )
    return name


def checked_mark(mark: str) -> str:
    """A mark that there is.

    Raises:
        LabelsError: it is none.
    """
    if mark not in MARKS:
        raise LabelsError(f"mark {mark!r} is not known; {', '.join(MARKS)} work")
    return mark
