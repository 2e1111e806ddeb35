"""Rows of a collection to be marked next, for one class: the most likely, the most uncertain, and
the most different of the likely ones. Opens no model, and marks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space, unit
from penult.collection import schema
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.data.formulas import Cells
from penult.data.regions import span_of
from penult.data.roots import Roots
from penult.errors import LabelsError
from penult.fewshot import marks, scorers
from penult.fewshot.events import Event, csv_lines, with_metadata
from penult.fewshot.examples import Examples
from penult.fewshot.predictions import Location
from penult.fewshot.scorers import OPEN, YES, Floats, Scorer

if TYPE_CHECKING:
    from penult.fewshot.classspace import ClassSpace


LIKELY, UNCERTAIN, DIFFERENT = "likely", "uncertain", "different"
HEADER = ("path", "region", "start", "end", "channel", "class", "mark", "reason", "score",
          "similarity")  # fmt: skip
_UNCERTAIN, _DIFFERENT = 0.4, 0.1  # shares of the rows, rounded down; the others are likely ones
_POOL = 2  # likely rows, for each row that is asked for, among which different ones are looked for
_POOL_OF_ONE = 10  # the same, for each different row
_COLUMNS = ("id", "region", "start", "end", "channel")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A row that should be marked next for a class.

    reason: `likely` (among those of the highest scores), `uncertain` (nearest to a score of one
    half) or `different` (likely, and far from all that is marked or suggested). score: of a
    logistic head, 0 to 1; both sides of it weigh the same, so that it is no probability.
    similarity: the cosine to the nearest example of the class, in the space of the classes. start,
    end: seconds.
    """

    id: str
    region: str
    start: float | None
    end: float | None
    channel: int | None
    reason: str
    score: float
    similarity: float
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult suggest --json` prints it."""
        return asdict(self)


def suggest(
    space: ClassSpace, name: str, k: int = 20, where: str | None = None
) -> list[Suggestion]:
    """The k rows of the collection that should be marked next for a class: half of them likely,
    then uncertain ones, then different ones, each best first.

    A row whose answer is known is left out: one that is marked for this class, a member of another
    class, and one that is held to be of none. The scores are those of the method `agile`, whichever
    names the classes of items. where: a filter of the rows.

    Raises:
        LabelsError: no collection, no example of the class, or k below one.
    """
    collection = space.source.collection
    if collection is None:
        raise LabelsError(
            "a class space from a file has no rows to suggest; open it with a collection, as "
            "penult suggest COLLECTION CLASS"
        )
    examples = space.examples
    weak = marks.sample(collection, scorers.WEAK, examples.keys)
    ranking = Ranking.of(examples, name, space.space, weak)

    def batches() -> Iterator[tuple[list[Location], npt.NDArray[np.float32]]]:
        for batch in collection.reader.ordered([*_COLUMNS, "vector"], where):
            rows = batch.drop_columns("vector").to_pylist()
            vectors = schema.matrix(batch.column("vector")).astype(np.float32)
            yield [Location.of_row(row) for row in rows], vectors

    return _with_metadata(collection.reader, ranking.best(batches(), k))


def _with_metadata(reader: Reader, found: Sequence[Suggestion]) -> list[Suggestion]:
    """With the metadata of their items, which is read of these rows alone."""
    extra = list(schema.metadata_of(reader.schema))
    if not extra or not found:
        return list(found)
    where = f"id IN ({schema.quoted([*{one.id for one in found}])})"
    known: dict[Key, dict[str, Any]] = {}
    for batch in reader.scan([*schema.KEY, *extra], where):
        for row in batch.to_pylist():
            known[row["id"], row["region"]] = {name: row[name] for name in extra}
    return [replace(one, metadata=known.get((one.id, one.region), {})) for one in found]


def answer_suggestions(
    space: ClassSpace,
    name: str,
    answer: Callable[[Suggestion], str],
    answers: int = 50,
    batch: int = 5,
    where: str | None = None,
) -> list[tuple[Suggestion, str]]:
    """Suggest, ask and mark in turns, until there are so many answers or no more rows.

    answer: yes, no or unsure, for a suggestion. batch: suggestions between two fits; five found
    more than ten (docs/classes.md). Gives the suggestions with their answers.
    """
    given: list[tuple[Suggestion, str]] = []
    while len(given) < answers:
        found = suggest(space, name, min(batch, answers - len(given)), where)
        if not found:
            break
        for one in found:
            mark = answer(one)
            space.add(name, (one.id, one.region), mark)  # type: ignore[arg-type]
            given.append((one, mark))
    return given


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of rows for one class. members, marked: its examples, and all whose answer is known,
    in the space, of length one. known: their (id, span)."""

    name: str
    space: Space
    scorer: Scorer
    members: Floats
    marked: Floats
    known: frozenset[Key]

    @classmethod
    def of(
        cls, examples: Examples, name: str, space: Space, weak: npt.NDArray[np.float32]
    ) -> Ranking:
        """The ranking for a class, from examples and weak negatives (w, d), both raw.

        Raises:
            LabelsError: the class has no example.
        """
        target = targets_of(examples, name)
        if not (target == YES).any():
            there = ", ".join(sorted(examples.names)[:20])
            raise LabelsError(
                f"class {name!r} has no example that is marked yes; "
                + (f"there are {there}; " if there else "")
                + "penult teach COLLECTION CLASS FILE gives one"
            )
        own = np.array([name in one for one in examples.marks])
        vectors = unit(space(examples.vectors).astype(np.float64))
        given = target != OPEN
        scorer = scorers.fit(
            "agile", vectors[given], target[given, None], space(weak) if len(weak) else None
        )
        known = frozenset(
            (id, span_of(region))
            for (id, region), answered in zip(examples.keys, given | own, strict=True)
            if answered
        )
        return cls(name, space, scorer, vectors[target == YES], vectors[given], known)

    def best(
        self,
        batches: Iterable[tuple[Sequence[Location], npt.NDArray[np.float32]]],
        k: int,
        order: str | None = None,
    ) -> list[Suggestion]:
        """The k best rows of batches of places and raw vectors (m, d), see `suggest`. order: all of
        them likely, uncertain or different.

        Raises:
            LabelsError: k below one, or an unknown order.
        """
        sure, unsure, other = shares_of(k, order)
        likely, uncertain = _Top(sure + pool_of(k, other)), _Top(sure + unsure)
        last = None  # of several annotations of one span the first one is asked about
        for places, vectors in batches:
            usable = []
            for i, place in enumerate(places):
                span = place.id, span_of(place.region)
                if span != last and span not in self.known and np.isfinite(vectors[i]).all():
                    usable.append(i)
                    last = span
            if not usable:
                continue
            rows = unit(self.space(vectors[usable]).astype(np.float64))
            scores = self.scorer(rows)[:, 0]
            chosen = [places[i] for i in usable]
            likely.add(scores, scores, rows, chosen)
            uncertain.add(-np.abs(scores), scores, rows, chosen)
        taken = _Picked(self)
        taken.take(LIKELY, likely, sure)
        taken.take(UNCERTAIN, uncertain, unsure)
        taken.take_different(likely, other)
        return taken.found


def targets_of(examples: Examples, name: str) -> npt.NDArray[np.int8]:
    """(n,) the target of each example for one class; members of the others are none of this one."""
    names = examples.names
    if name in names:
        return examples.targets(names)[:, names.index(name)]
    return examples.targets([name])[:, 0]


def shares_of(k: int, order: str | None = None) -> tuple[int, int, int]:
    """(likely, uncertain, different) rows among k. order: all of them of one kind; None mixes them.

    Raises:
        LabelsError: k below one, or an unknown order.
    """
    if k < 1:
        raise LabelsError(f"k = {k}: one row or more can be suggested")
    if order is None:
        unsure, other = int(_UNCERTAIN * k + 1e-9), int(_DIFFERENT * k + 1e-9)
        return k - unsure - other, unsure, other
    if order not in (LIKELY, UNCERTAIN, DIFFERENT):
        raise LabelsError(
            f"rows cannot be suggested in the order {order!r}; {LIKELY}, {UNCERTAIN} and "
            f"{DIFFERENT} work"
        )
    return k * (order == LIKELY), k * (order == UNCERTAIN), k * (order == DIFFERENT)


def pool_of(k: int, other: int) -> int:
    """The number of likely rows among which different ones are looked for."""
    return max(_POOL * k, _POOL_OF_ONE * other)


class _Top:
    """The rows of the largest values among those that came, in the order of the values; of equal
    ones the first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.values, self.scores = np.zeros(0), np.zeros(0)
        self.rows: Floats | None = None
        self.places: list[Location] = []

    def add(self, values: Floats, scores: Floats, rows: Floats, places: list[Location]) -> None:
        """values, scores: (m,). rows: (m, d)."""
        before = rows[:0] if self.rows is None else self.rows
        every = np.concatenate([self.values, values])
        order = np.argsort(-every, kind="stable")[: self.most]
        self.values, self.scores = every[order], np.concatenate([self.scores, scores])[order]
        self.rows = np.concatenate([before, rows])[order]
        both = [*self.places, *places]
        self.places = [both[i] for i in order]


class _Picked:
    """Suggestions as they are picked."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._near, self._keys = ranking.marked, set[Key]()
        self.found: list[Suggestion] = []

    def take(self, reason: str, top: _Top, number: int) -> None:
        """The first rows that were not picked yet."""
        for i in range(len(top.places)):
            if number and self._add(reason, top, i):
                number -= 1

    def take_different(self, top: _Top, number: int) -> None:
        """One after the other the row that is farthest from all that is marked or picked."""
        left = [i for i in range(len(top.places)) if not self._is_picked(top.places[i])]
        while number and left and top.rows is not None:
            near = (top.rows[left] @ self._near.T).max(axis=1)
            number -= self._add(DIFFERENT, top, left.pop(int(near.argmin())))

    def _is_picked(self, place: Location) -> bool:
        return (place.id, place.region) in self._keys

    def _add(self, reason: str, top: _Top, i: int) -> bool:
        from scipy.special import expit

        place = top.places[i]
        if top.rows is None or self._is_picked(place):
            return False
        row = top.rows[i]
        self._keys.add((place.id, place.region))
        self._near = np.concatenate([self._near, row[None]])
        self.found.append(
            Suggestion(place.id, place.region, place.start, place.end, place.channel, reason,
                       float(expit(top.scores[i])), float((self._ranking.members @ row).max()),
                       dict(place.metadata))
        )  # fmt: skip
        return True


def to_csv(
    found: Sequence[Suggestion], name: str, cells: Cells | None = None, roots: Roots = Roots()
) -> Iterator[str]:
    """Line by line: a header, and each suggestion with an empty mark, for an answer that
    `ClassSpace.add_named` reads, and with the metadata of its item. roots: what ids begin with."""
    names = list(dict.fromkeys(column for one in found for column in one.metadata))
    rows = (
        [roots.shown(one.id), one.region, *_seconds(one), one.channel, name, "", one.reason,
         f"{one.score:.6g}", f"{one.similarity:.6g}",
         *(one.metadata.get(column) for column in names)]
        for one in found
    )  # fmt: skip
    yield from csv_lines(with_metadata(HEADER, names), rows, cells)


def events_of(found: Sequence[Suggestion], name: str) -> list[Event]:
    """The suggestions as events of the class, for a Raven table; their score is its confidence."""
    return [
        Event(one.id, one.channel, one.start, one.end, name, one.score, metadata=one.metadata)
        for one in found
    ]


def _seconds(one: Suggestion) -> tuple[float | None, float | None]:
    return (None, None) if one.region == "whole" else (one.start, one.end)
