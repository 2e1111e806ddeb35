"""Labelled examples from the names of items, of rows or of the classifier's head, and the groups of
examples in cross-validation. Fits nothing.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit
from penult.collection import labels
from penult.collection.manifest import fingerprint_in
from penult.collection.row_names import row_of_name
from penult.collection.schema import Key, patches_among
from penult.data.files import user_path
from penult.data.items import Entry, namer, names_in
from penult.data.regions import WHOLE, span_of
from penult.data.sources import Source
from penult.data.tables import TableRows
from penult.data.windows import Layout
from penult.errors import ItemError, LabelsError, StoreError, UsageError
from penult.fewshot import marks, storage
from penult.fewshot.events import UNKNOWN
from penult.fewshot.examples import (
    GIVEN,
    ITEMS,
    MARKS,
    Examples,
    Grouping,
    check_every,
    new_name,
)
from penult.fewshot.mark_table import MARK, Example, MarkTable, apart, mark_in
from penult.fewshot.vectors import VectorSource, example_parts, pairs_of, roots_of

log = logging.getLogger(__name__)
HEAD = ("classifier:", "head")  # how the id begins, and the region, of a row of the head


class ClassCounts(dict[str, int]):
    """The number of examples of each class. marks: their number by mark. left_out: rows of a table
    whose mark is empty."""

    marks: dict[str, int]
    left_out: int


@dataclass(frozen=True, slots=True)
class LabelledExamples:
    """Examples of several classes: name, (id, region), mark and raw vector (d,) of each. left_out:
    rows of a table whose mark is empty. is_exact: whether all of them are of tables that name rows,
    as marks are written, so that an item of two classes is meant."""

    names: Sequence[str]
    keys: Sequence[Key]
    vectors: npt.NDArray[np.float32]
    marks: Sequence[str]
    left_out: int = 0
    is_exact: bool = False

    @property
    def counts(self) -> ClassCounts:
        """The number of examples of each name."""
        found = ClassCounts(Counter(self.names))
        found.marks, found.left_out = dict(Counter(self.marks)), self.left_out
        return found

    @property
    def of_several(self) -> dict[Key, list[str]]:
        """The examples that are marked yes for several classes, with these."""
        classes: dict[Key, list[str]] = {}
        for name, key, mark in dict.fromkeys(zip(self.names, self.keys, self.marks, strict=True)):
            if mark == "yes":
                classes.setdefault(key, []).append(name)
        return {key: names for key, names in classes.items() if len(names) > 1}


def by_item(
    source: VectorSource,
    items: Any,
    by: str,
    layout: Layout | None = None,
    mark: str | None = None,
    known: Examples | None = None,
    several: bool = False,
    channel: int | str | None = None,
) -> LabelledExamples:
    """Items, or the parts that a layout makes of them, with the names that their paths or tables
    give; items without one are left out. several: whether a cell, and the rows of one span, may
    name several classes; a table of marks has a line for each in any case.

    mark: of all of them; None is what a table's column `mark` says, else yes. Rows that a table
    names by path and region are rows of the collection, or of the `known` examples of a class file,
    else cut from the files.

    Raises:
        LabelsError: no item has a name, or a row's mark or region cannot be.
        ItemError: one that cannot be embedded.
    """
    files, items = _class_files(source, items, by)
    tables, others = apart(items)
    tables = [*files, *tables]
    if mark is None:
        for table in tables:
            table.check_marks()
    cut = layout, channel
    found, pairs, left_out = _of_others(source, others, by, cut, mark, several)
    vectors = dict[Key, npt.NDArray[np.float32]]()
    is_exact = others is None
    for table in tables:
        if not table.is_keyed:
            continue
        if layout not in (None, Layout()):
            raise UsageError(f"--window cuts files; the rows of {table.path} are cut already")
        examples, empty = table.examples(by, mark)
        if not table.has_marks:
            examples = [one._replace(name=name) for one in examples
                        for name in (names_in(one.name) if several else [one.name])]  # fmt: skip
        roots = roots_of(source)
        examples, there = _with_rows(source, table, examples, known)
        if source.collection is None and isinstance(table, SavedMarks):
            there = {**table.vectors, **there}
        placed, new = table.placed(examples, there, source.modality, roots)
        vectors |= {one.key: there[one.key] for one in placed if one.key in there}
        found, left_out = [*found, *placed], left_out + empty
        pairs += [pair for key, pair in new.items() if key not in vectors]
    if not found and left_out:
        raise LabelsError(_no_mark(left_out))
    if not found:
        raise LabelsError(f"no item has a name by {by!r}")
    _check_names(found)
    vectors |= source.vectors_of(pairs) if pairs else {}
    parts = patches_among(vectors)  # each patch of an item is an example
    found = [one._replace(key=key) for one in found for key in parts.get(one.key, [one.key])]
    names, all_keys, marked, *_ = zip(*(one for one in found if one.key in vectors), strict=True)
    rows = np.stack([vectors[key] for key in all_keys])
    return LabelledExamples(names, all_keys, rows, marked, left_out, is_exact)


def _with_rows(
    source: VectorSource, table: MarkTable, examples: list[Example], known: Examples | None
) -> tuple[list[Example], Mapping[Key, npt.NDArray[np.float32]]]:
    """The examples, and the vectors of those that are rows here; of a name as tables print it the
    row that is printed so, in hundredths of a second."""
    roots = roots_of(source)
    keys = [key for one in examples for key in (one.key, table.elsewhere(one.key, roots))]
    there = _known(source, keys, known)
    if source.collection is None:
        return examples, there
    found = [
        one._replace(key=row_of_name(source.collection.reader, " ".join(one.key)) or one.key)
        if one.is_printed and one.key not in there
        else one
        for one in examples
    ]
    further = [one.key for one in found if one.key not in there]
    return found, {**there, **_known(source, further, known)}


@dataclass(frozen=True)
class SavedMarks(MarkTable):
    """The marks of a class file, as a table that names rows. found: line by line. vectors: of its
    examples, raw."""

    found: Sequence[Example] = ()
    vectors: Mapping[Key, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def has_marks(self) -> bool:
        """It has a mark for each."""
        return True

    def check_marks(self) -> None:
        """They were checked as the file was read."""

    def examples(self, by: str, mark: str | None) -> tuple[list[Example], int]:
        """All marks, see `MarkTable.examples`."""
        return [one if mark is None else one._replace(mark=mark) for one in self.found], 0

    @classmethod
    def read(cls, path: Path, source: VectorSource) -> SavedMarks:
        """The marks of a file; of a damaged one what is whole.

        Raises:
            LabelsError: no class file.
            FingerprintMismatch: of another embedder.
        """
        try:
            saved = storage.read(path)
        except StoreError:
            if (whole := storage.read_damaged(path)) is None:
                raise
            saved = whole[0]
            log.warning("%s is damaged: %s", path, whole[1].split(".")[0])
        source.check(fingerprint_in(storage.manifest_of(saved)), str(path))
        source.know_seconds(saved.seconds)
        own = saved.examples
        found = [
            Example(name, key, mark, path.name)
            for key, marks in zip(own.keys, own.marks, strict=True)
            for name, mark in marks.items()
            if not of_head(key)
        ]
        rows = dict(zip(own.keys, own.vectors, strict=True)) if own.dim else {}
        return cls(path, TableRows("line", lambda: iter(()), {}, 0), True, found, rows)


def _class_files(source: VectorSource, items: Any, by: str) -> tuple[list[SavedMarks], Any]:
    """The class files among items, and the other items; None where there are no others.

    Raises:
        LabelsError: other names than those of their classes.
    """
    listed = items if isinstance(items, list) else [items]
    paths = [item for item in listed if isinstance(item, (str, os.PathLike))
             and Path(item).suffix == storage.SUFFIX]  # fmt: skip
    if not paths:
        return [], items
    if by != "class":
        raise LabelsError(
            f"the examples of {paths[0]} have names of their own: --from class takes them, "
            f"--from {by} does not"
        )
    others = [item for item in listed if not any(item is path for path in paths)]
    return [SavedMarks.read(user_path(path), source) for path in paths], others or None


def _check_names(found: Sequence[Example]) -> None:
    """Refuse names that no class can have, before an item is embedded.

    Raises:
        LabelsError: the first of them, with its line or its path.
    """
    for one in found:
        try:
            check_every(new_name(one.name), one.mark)
        except LabelsError as error:
            raise LabelsError(f"{one.where or one.key[0]}: {error}") from error


def _of_others(
    source: VectorSource,
    items: Any,
    by: str,
    cut: tuple[Layout | None, int | str | None],
    mark: str | None,
    several: bool,
) -> tuple[list[Example], list[Entry], int]:
    """Named items, what is to be embedded for them, and the number of those without a mark. With
    several classes, the annotations of one span are one example. cut: layout and channel."""
    if items is None:
        return [], [], 0
    pairs = list(pairs_of(items, source.modality, roots_of(source)))
    if several:
        pairs = [(p[0], p[1].span) if isinstance(p, tuple) else p for p in pairs]
    pairs = example_parts(source, pairs, *cut)
    readable = [pair for pair in pairs if isinstance(pair, tuple)]
    if not readable and pairs:
        raise ItemError(next(pair for pair in pairs if not isinstance(pair, tuple)).words())
    name_of = namer(by, sorted({column for item, _ in readable for column in item.metadata}))
    found, left_out = list[Example](), 0
    for item, region in readable:
        if (name := name_of(item.id, item.metadata)) is None:
            continue
        own = mark or "yes"
        column = next((one for one in item.metadata if one.casefold() == MARK), None)
        if mark is None and column is not None:
            where = item.id if region == WHOLE else f"{item.id} ({region.key})"
            own = mark_in(item.metadata[column], name, where) or ""
        if own:
            found += [Example(each, (item.id, region.key), own)
                      for each in (names_in(name) if several else [name])]  # fmt: skip
        left_out += not own
    keys = {one.key for one in found}
    used = {((p[0].id, p[1].key) if isinstance(p, tuple) else at): p for at, p in enumerate(pairs)
            if not isinstance(p, tuple) or (p[0].id, p[1].key) in keys}  # fmt: skip
    return found, list(used.values()), left_out


def _known(
    source: VectorSource, keys: Sequence[Key], examples: Examples | None
) -> Mapping[Key, npt.NDArray[np.float32]]:
    if source.collection is not None:
        return marks.vectors_of(source.collection, keys)
    return {} if examples is None else dict(zip(examples.keys, examples.vectors, strict=True))


def by_row(
    source: VectorSource,
    by: str,
    where: str | None,
    mark: str | None = None,
    several: bool = False,
) -> LabelledExamples:
    """Rows of the collection with the names of a column, their paths or the classifier's labels.
    mark, several: as for `by_item`; the first row of a span has the names of all its annotations.

    Raises:
        LabelsError: no row has a name, a mark cannot be, or there is no collection.
    """
    if source.collection is None:
        raise LabelsError("there is no collection whose rows could have names; give items")
    first, classes, left_out = dict[Key, Key](), dict[Key, dict[str, str]](), 0
    for key, cell, own_mark in marks.named_rows(source.collection, by, where, mark):
        if own_mark is None:
            left_out += 1
            continue
        span = (key[0], span_of(key[1]))
        own = first.setdefault(span, key) if several else key
        for name in names_in(cell) if several else [cell]:
            try:
                check_every(new_name(name), own_mark)
            except LabelsError as error:
                raise LabelsError(f"{error}. --where leaves rows out") from error
            classes.setdefault(own, {}).setdefault(name, own_mark)
    if not classes:
        raise LabelsError(_no_mark(left_out))
    vectors = marks.vectors_of(source.collection, list(classes))
    found = [(name, key, each) for key in vectors for name, each in classes[key].items()]
    names, keys, marked = zip(*found, strict=True)
    return LabelledExamples(names, keys, np.stack([vectors[key] for key in keys]), marked, left_out)


def _no_mark(rows: int) -> str:
    return (
        f"no row has a mark: the column `mark` is empty in {rows:,} of them; write "
        f"{', '.join(MARKS[:-1])} or {MARKS[-1]} there"
    )


def by_head(source: VectorSource) -> LabelledExamples:
    """The classifier's own classes: the rows of its linear head, at the prelogits.

    A row of weights is no vector of an item. With a collection it is carried to where the class's
    items lie, mean + covariance · (row − mean row), the reverse of a linear discriminant; without,
    its direction serves as it is (imprinting; Qi et al., 2018).

    Raises:
        HeadNotFound: not the prelogits, no proof, or no linear head; the message says why.
    """
    from penult.collection.comparison import entries_at_hand
    from penult.embedding.readings import head_rows
    from penult.embedding.source_sample import SourceSample

    embedder, sample = source.embedder, None
    if source.collection is not None:
        entries = entries_at_hand(source.collection.reader, embedder)
        sample = SourceSample(Source(lambda: iter(entries)))
    weights = head_rows(embedder, sample).astype(np.float64)
    if source.collection is not None:
        cloud = marks.sample(source.collection).astype(np.float64)
        moved = (weights - weights.mean(axis=0)) @ np.atleast_2d(np.cov(cloud.T))
        length = np.linalg.norm(cloud - cloud.mean(axis=0), axis=1).mean()
        weights = cloud.mean(axis=0) + unit(moved) * length
    labels_of_head = list(source.embedder.classifier.labels)
    kept = [i for i, name in enumerate(labels_of_head) if name.strip().casefold() != UNKNOWN]
    names = [labels_of_head[i] for i in kept]
    if len(kept) < len(labels_of_head):
        log.warning("the classifier's class %r is left out: items of none of the classes are "
                    "called so", UNKNOWN)  # fmt: skip
    return LabelledExamples(
        names, [(HEAD[0] + name, HEAD[1]) for name in names], weights[kept].astype(np.float32),
        ["yes"] * len(names),
    )  # fmt: skip


def of_head(key: Key) -> bool:
    """Whether an example is a row of the classifier's head."""
    return key[0].startswith(HEAD[0]) and key[1] == HEAD[1]


class Groups:
    """The group of each example, read once.

    by: a column, `folder` or a pattern of the path; `items` makes every item a group. None does so
    too, with clusters for the level, or makes groups of time in one recording. known: groups of
    before.
    """

    def __init__(self, by: str | None, known: Mapping[Key, str | None] | None = None) -> None:
        self.by, self._known = by, dict(known or {})

    def of(self, source: VectorSource, examples: Examples) -> Grouping:
        """What of these examples is held out together.

        Raises:
            LabelsError: none of them has a group.
        """
        if self.by is None:
            return Grouping.of(examples)
        if self.by == ITEMS:
            return Grouping(by=self.by)
        keys = examples.keys
        if new := [key for key in keys if key not in self._known]:
            if source.collection is not None:
                self._known |= labels.groups_of(source.collection.reader, new, self.by)
            else:
                name_of = namer(self.by)
                self._known |= {key: name_of(key[0], {}) for key in new}
        named = [self._known.get(key) for key in keys]
        if keys and not any(named):
            raise LabelsError(f"no example has a group by {self.by!r}")
        return Grouping(GIVEN, tuple(named), self.by)
