"""The teaching loop: marks, scores of all rows after each of them, and rows to be marked next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space, fit
from penult.collection import lance
from penult.collection.collection import Collection
from penult.collection.manifest import fingerprint_in
from penult.collection.reader import append_labels
from penult.collection.schema import KEY, Key
from penult.collection.schema import keys as keys_of
from penult.data.regions import span_of
from penult.errors import LabelsError, StoreError
from penult.explorer.rows import RowTable
from penult.explorer.vectors import VectorMatrix
from penult.fewshot import marks, scorers, votes
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import EVERY, MARKS, Examples, new_name, of_several
from penult.fewshot.expectations import HeldOutMarks, held_out_marks, probabilities_of
from penult.fewshot.fitted import Settings
from penult.fewshot.labelling import Groups
from penult.fewshot.predictions import Location
from penult.fewshot.suggestions import Ranking, pool_of, shares_of
from penult.fewshot.suggestions import Suggestion as RankedRow
from penult.fewshot.vectors import VectorSource
from penult.fewshot.versions import CollectionStore, Ledger
from penult.fewshot.votes import Said, Spot, Votes
from penult.locking import Guard

Scores = npt.NDArray[np.float32]

SOURCE, UNDO = "explorer", "explorer undo"  # of records
NONE = "none"  # in place of a mark: there is none any more
_AT_ONCE = 1 << 20  # numbers of all rows, up to which a mark waits for a space
_OFTEN = 1 << 24  # up to which it is fitted behind each mark; above, as examples grow by a half
_GROWN, _TEN = 1.5, 10
_MORE = 64  # rows that are looked at beyond those that are asked for


@dataclass(frozen=True, slots=True)
class _Deed:
    """What somebody did, to be taken back. change: of the ledger, if marks that count changed."""

    words: str
    before: Mapping[Spot, Said]
    after: Mapping[Spot, Said]
    change: str | None = None


@dataclass(frozen=True)
class _Standing:
    """The marks at one time. stamp: the version of their table. examples: those that are rows."""

    stamp: int
    votes: Votes
    examples: Examples


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of a class (n,), as the head gives them, and what they are of."""

    of: tuple[Any, ...]
    ranking: Ranking
    values: Scores


@dataclass(frozen=True, slots=True)
class _Facts:
    """What held-out marks tell of a class. probability: (n,) of each row, if it is known."""

    stamp: int
    held: HeldOutMarks | None
    probability: Scores | None = None
    expected: float | None = None


@dataclass
class _Person:
    """What somebody did in this session, and took back."""

    done: list[_Deed] = field(default_factory=list)
    undone: list[_Deed] = field(default_factory=list)


class TeachingLoop:
    """Classes of a collection as they are taught. Threads may share one.

    Marks lie in the collection, with who gave them; those that other processes write count from the
    next call on. version: goes up with each change, also of what is worked out behind a mark.
    """

    def __init__(self, collection: Collection, rows: RowTable, vectors: VectorMatrix) -> None:
        self._collection, self._rows, self._vectors = collection, rows, vectors
        self.version = 0
        self._guard = Guard()  # of marks
        self._scoring = Guard()  # of what is worked out from them
        self._known: _Standing | None = None
        self._people: dict[str, _Person] = {}
        self._warning: str | None = None  # of the step whose answer comes next
        self._space: tuple[int, int, Space] | None = None  # stamp, examples and what was fitted
        self._weak: tuple[int, list[Key]] | None = None
        self._scores: dict[str, _Scored] = {}
        self._facts: dict[str, _Facts] = {}
        self._behind = ThreadPoolExecutor(1, "teaching")
        self._pending: dict[str, Future[None]] = {}
        vectors.start()
        self._behind.submit(self._prepare)

    # ---- marks

    def mark(self, name: str, given: Mapping[int, str], who: str) -> dict[str, Any]:
        """Mark rows for a class: yes, no, unsure, or none. Gives `Taught`, and whether anything
        `changed`, which is one step to undo.

        Raises:
            LabelsError: no such row or mark, or a name that no class can have.
        """
        name, who = new_name(name), _somebody(who)
        if not given:
            raise LabelsError("no row to mark; give one or more")
        with self._guard:
            now, keys = self._now(), self._keys(given)
            self._check(name, given, now.examples.dim)
            settings = self._settings(now.examples)
            after: dict[Spot, Said] = {}
            for key, mark in keys.items():
                after |= _marked(now.votes.get(key, {}), key, name, mark, who, settings.several)
            words, before = _words(name, given), votes.said_of(now.votes, after)
            changed = not votes.is_same(before, after)
            if changed:
                change = self._commit(now, before, after, who, SOURCE, settings)
                self._did(_Deed(words, before, after, change), who)
            return {**self._taught(name, words, who), "changed": changed}

    def undo(self, who: str) -> dict[str, Any]:
        """Take back what this person did last in this session. Gives `Taught` with words.

        Raises:
            LabelsError: nothing is left, or somebody has marked the same rows since.
        """
        return self._go(_somebody(who), back=True)

    def redo(self, who: str) -> dict[str, Any]:
        """Do again what this person took back last; see `undo`."""
        return self._go(_somebody(who), back=False)

    def rename(self, old: str, new: str, who: str) -> dict[str, Any]:
        """Rename a class. What everybody said of it stays theirs.

        Raises:
            LabelsError: there is no such class, or there is one of the new name.
        """
        new, who = new_name(new), _somebody(who)
        with self._guard:
            now, after = self._now(), dict[Spot, Said]()
            now.examples.renamed(old, new)  # refuses what cannot be
            for key, said in _of_class(now.votes, old):
                after |= {(key, old): {}, (key, new): dict(said)}
            words = f"{old} is called {new}"
            deed = _Deed(words, votes.said_of(now.votes, after), after)
            self._change(deed, lambda found: found.renamed(old, new), who, fits=False)
            return self._taught(new, words, who)

    def remove(self, name: str, who: str) -> dict[str, Any]:
        """Forget a class, with all marks of it.

        Raises:
            LabelsError: there is no such class.
        """
        who = _somebody(who)
        with self._guard:
            now = self._now()
            now.examples.without(name)
            after: dict[Spot, Said] = {(key, name): {} for key, _ in _of_class(now.votes, name)}
            words = f"{name} is removed, with {_counted(len(after))}"
            deed = _Deed(words, votes.said_of(now.votes, after), after)
            self._change(deed, lambda found: found.without(name), who, fits=True)
            return self._taught(None, words, who)

    def marks_of(self, name: str, who: str) -> dict[int, str]:
        """The rows that a person marked for a class, with what was said last."""
        with self._guard:
            found = [
                (self._rows.number(key), classes[name].get(who))
                for key, classes in self._now().votes.items()
                if name in classes
            ]
        return {row: mark for row, mark in found if row is not None and mark is not None}

    def disagreements(self) -> list[dict[str, Any]]:
        """The rows that people marked differently for a class, with what each said last."""
        with self._guard:
            found = votes.disagreements(self._now().votes)
        listed = [(self._rows.number(key), name, said) for key, name, said in found]
        return [{"row": row, "class": name, "marks": said}
                for row, name, said in listed if row is not None]  # fmt: skip

    # ---- scores

    def scores(self, name: str) -> Scores:
        """(n,) the score of each row for a class, by its number: 0 to 1, of the head that `penult
        suggest` ranks by; NaN where a row has no vector.

        Raises:
            LabelsError: the class has no example.
        """
        from scipy.special import expit

        found: Scores = expit(self._scored(name).values)
        return found

    def suggest(
        self, name: str, order: str | None = None, k: int = 20, who: str = ""
    ) -> dict[str, Any]:
        """The k rows to mark next; gives `Taught` with `rows`. order: likely, uncertain or
        different ones; None mixes them as `penult suggest` does.

        Raises:
            LabelsError: the class has no example, or an unknown order.
        """
        shares_of(k, order)
        scored = self._scored(name)
        found = self._best(scored, k, order)
        facts = self._facts.get(name)
        listed = [self._suggestion(one, facts) for one in found]
        with self._guard:
            return {"rows": [one for one in listed if one], **self._taught(name, "", who)}

    def taught(self, name: str | None, who: str = "") -> dict[str, Any]:
        """What is known of a class, worked out to the end; gives `Taught`."""
        with self._guard:
            answer = self._taught(name, "", who)
            pending = self._pending.get(name or "")
        if name is None or pending is None:
            return answer
        pending.result()
        with self._guard:
            return self._taught(name, "", who)

    def probabilities(self, names: Sequence[str], row: int) -> list[dict[str, Any]]:
        """Classes, each with the calibrated probability of a row; None where it is not known. Of
        small collections it is worked out behind for classes that were not looked at."""
        found = []
        for name in names:  # without the guard: a row never waits for a mark to be written
            facts = self._facts.get(name)
            if facts is None and name not in self._pending and self._size <= _OFTEN:
                self._pending[name] = self._behind.submit(self._work_out, name)
            found.append({"name": name, "probability": _probability(facts, row)})
        return found

    # ---- marks, inside

    def _now(self) -> _Standing:
        """The marks that stand, read again where somebody else has written some."""
        table = lance.open_table(self._collection.path, "labels")
        stamp = 0 if table is None else int(table.version)
        if self._known is None or self._known.stamp != stamp:
            found = votes.votes_of(self._collection.reader)
            self._known = _Standing(stamp, found, self._examples(votes.standing_in(found)))
            self.version += 1
        return self._known

    def _examples(self, standing: Mapping[Key, Mapping[str, str]]) -> Examples:
        """The marked rows, with their vectors."""
        if any(self._rows.number(key) is None for key in standing):  # rows that just came, or gone
            self._rows.refresh()
            self._vectors.refresh()
        numbers = [(key, self._rows.number(key)) for key in standing]
        there = [(key, number) for key, number in numbers if number is not None]
        usable = self._vectors.usable([number for _, number in there])
        kept = [one for one, is_usable in zip(there, usable, strict=True) if is_usable]
        keys = tuple(key for key, _ in kept)
        vectors = self._vectors.raw([number for _, number in kept])
        return Examples(vectors, keys, tuple(standing[key] for key in keys))

    def _keys(self, given: Mapping[int, str]) -> dict[Key, str]:
        """The marks by key.

        Raises:
            LabelsError: no such row or mark.
        """
        for row, mark in given.items():
            if mark not in (*MARKS, NONE):
                raise LabelsError(f"mark {mark!r} is not known; {', '.join(MARKS)} and none work")
            if not 0 <= row < len(self._rows):
                raise LabelsError(f"there is no row {row}; there are {len(self._rows):,}")
        rows = list(given)
        usable = self._vectors.usable(rows)
        for row, is_usable in zip(rows, usable, strict=True):
            if not is_usable and given[row] != NONE:
                raise LabelsError(f"row {row} is gone, or has no finite vector; leave it out")
        return dict(zip(self._rows.keys(rows), given.values(), strict=True))

    def _check(self, name: str, given: Mapping[int, str], dim: int) -> None:
        """Refuse what can be no example."""
        for mark in MARKS:
            rows = [row for row, one in given.items() if one == mark]
            if rows:
                keys, vectors = self._rows.keys(rows), self._vectors.raw(rows)
                Examples.empty(dim).with_marks(name, keys, vectors, mark)

    def _settings(self, examples: Examples) -> Settings:
        found = Settings.of(self._ledger().settings or {}, {})
        return replace(found, several=of_several(examples)) if found.several is None else found

    def _ledger(self) -> Ledger:
        fingerprint = fingerprint_in(self._collection.reader.require_manifest())
        return Ledger(CollectionStore(self._collection.reader), fingerprint)

    def _commit(
        self, now: _Standing, before: Mapping[Spot, Said], after: Mapping[Spot, Said], who: str,
        source: str, settings: Settings,
    ) -> str | None:  # fmt: skip
        """Write what changes; gives the change of the ledger, if marks that count changed. Marks
        come first: where the ledger cannot be written after them, they stand, and can be undone.
        """
        later = self._write(before, after, who, source)
        if _stands_same(now.examples, later.examples):
            return None
        try:
            return self._ledger().changed(source, now.examples, later.examples, settings)
        except StoreError as error:
            self._warning = _unrecorded(error)
            return None

    def _change(
        self, deed: _Deed, make: Callable[[Examples], Examples], who: str, fits: bool
    ) -> None:
        """Change all classes as the command line does, which goes on with what was fitted."""
        taught, written = ClassSpace(self._collection), []

        def write() -> None:
            written.append(self._write(deed.before, deed.after, who, SOURCE))

        change = None
        try:
            taught._state.change(make, "remove" if fits else "rename", fits, write=write)
            change = self._ledger().last
        except StoreError as error:
            if not written:
                raise
            self._warning = _unrecorded(error)
        self._did(replace(deed, change=change), who)

    def _write(
        self, before: Mapping[Spot, Said], after: Mapping[Spot, Said], who: str, source: str
    ) -> _Standing:
        append_labels(self._collection.reader, votes.records(before, after, who, source))
        return self._now()

    def _did(self, deed: _Deed, who: str) -> None:
        person = self._people.setdefault(who, _Person())
        person.done.append(deed)
        person.undone.clear()

    def _go(self, who: str, back: bool) -> dict[str, Any]:
        with self._guard:
            now, person = self._now(), self._people.setdefault(who, _Person())
            taken, given = (person.done, person.undone)[:: 1 if back else -1]
            if not taken:
                raise LabelsError(f"nothing is left to {'undo' if back else 'redo'} for {who}")
            deed = taken.pop()  # the one before can be taken back, even if this cannot
            found, wanted = (deed.after, deed.before)[:: 1 if back else -1]
            held = votes.said_of(now.votes, found)
            if not votes.is_same(held, found):
                raise LabelsError(_overwritten(deed, held, found, back))
            try:
                change = self._step(now, deed, who, back)
            except StoreError:  # nothing was written: it can be tried again
                taken.append(deed)
                raise
            given.append(replace(deed, change=change))
            names = list(dict.fromkeys(name for _, name in wanted))
            words = f"{'taken back' if back else 'done again'}: {deed.words}"
            return self._taught(names[0], words, who)

    def _step(self, now: _Standing, deed: _Deed, who: str, back: bool) -> str | None:
        """Write what leads back, or forth; gives the change of the ledger."""
        found, wanted = (deed.after, deed.before)[:: 1 if back else -1]
        if back and deed.change is not None and self._ledger().last == deed.change:
            self._write(found, wanted, who, UNDO)
            try:
                self._ledger().take_back(deed.change)
            except StoreError as error:
                self._warning = _unrecorded(error)
            return deed.change
        source = UNDO if back else SOURCE
        return self._commit(now, found, wanted, who, source, self._settings(now.examples))

    def _taught(self, name: str | None, words: str, who: str) -> dict[str, Any]:
        """`Taught` of the page, as far as it is known."""
        person = self._people.get(who, _Person())
        now = self._now()
        if name is not None and any(one.get(name) == "yes" for one in now.examples.marks):
            self._look_behind(name, now)
        else:
            name = name if any(name in one for one in now.examples.marks) else None
        facts = self._facts.get(name or "")
        held = None if facts is None or facts.held is None else {
            "average_precision": facts.held.average_precision, "low": facts.held.low,
            "high": facts.held.high, "examples": facts.held.examples, "words": facts.held.words,
        }  # fmt: skip
        warning, self._warning = self._warning, None
        return {
            "version": self.version,
            "name": name,
            "words": words,
            "warning": warning,
            "classes": _counts(now.examples),
            "held_out": held,
            "expected": None if facts is None else facts.expected,
            "can_undo": bool(person.done),
            "can_redo": bool(person.undone),
        }

    # ---- scores, inside

    def _prepare(self) -> None:
        """What the first mark would wait for."""
        import scipy.special  # noqa: F401
        import sklearn.linear_model  # noqa: F401

        self._vectors.wait(3600)
        with self._scoring:
            self._weak_rows(Examples.empty(self._vectors.space.dim))
            if self._space is None and self._size > _AT_ONCE:
                self._space = -1, 0, self._provisional()

    @property
    def _size(self) -> int:
        return len(self._rows) * self._vectors.space.dim

    def _scored(self, name: str) -> _Scored:
        self._vectors.wait()
        with self._guard:
            now = self._now()
        with self._scoring:
            return self._score(name, now)

    def _score(self, name: str, now: _Standing) -> _Scored:
        space = self._space_for(now)
        of = now.stamp, space.id, self._vectors.version
        found = self._scores.get(name)
        if found is not None and found.of == of:
            return found
        ranking = Ranking.of(now.examples, name, space, self._weak_rows(now.examples))
        head = ranking.scorer
        assert isinstance(head, scorers.Linear)
        values = self._vectors.products(head.weights, space)[:, 0] + np.float32(head.offsets[0])
        self._scores[name] = found = _Scored(of, ranking, values)
        return found

    def _space_for(self, now: _Standing) -> Space:
        """The space of the classes: that of these marks where it is fitted at once, else the one
        that was fitted last."""
        if self._space is None and self._size > _AT_ONCE:
            self._space = -1, 0, self._provisional()
        if self._space is None or (self._space[0] != now.stamp and self._size <= _AT_ONCE):
            self._fit_space(now)
        assert self._space is not None
        return self._space[2]

    def _fit_space(self, now: _Standing) -> None:
        """As `penult suggest` does it, which reads the collection."""
        space = ClassSpace(self._collection).space
        self._vectors.use(space)
        self._space = now.stamp, len(now.examples.keys), space

    def _provisional(self) -> Space:
        """Until one is fitted in the background: rows without what they have in common."""
        every = np.arange(0, len(self._rows), -(-len(self._rows) // marks.SAMPLE) or 1)
        space = fit("centre", self._vectors.raw(every[self._vectors.usable(every)]))
        self._vectors.use(space)
        return space

    def _weak_rows(self, examples: Examples) -> npt.NDArray[np.float32]:
        """(w, d) the rows that `penult suggest` takes for weak negatives, see `marks.sample`."""
        version = self._vectors.version
        if self._weak is None or self._weak[0] != version:
            every = max(1, -(-self._collection.count // scorers.WEAK))
            found = self._collection.reader.ordered(KEY, every=every)
            self._weak = version, [key for batch in found for key in keys_of(batch)]
        left_out = {(id, span_of(region)) for id, region in examples.keys}
        kept = [self._rows.number(key) for key in self._weak[1]
                if (key[0], span_of(key[1])) not in left_out]  # fmt: skip
        numbers = np.array([number for number in kept if number is not None], np.int64)
        return self._vectors.raw(numbers[self._vectors.usable(numbers)])

    def _best(self, scored: _Scored, k: int, order: str | None) -> list[RankedRow]:
        """The best rows, which are looked for among those of the best scores alone."""
        sure, unsure, other = shares_of(k, order)
        values, known = scored.values, scored.ranking.known
        missing = np.isnan(values)
        ranked = (
            (np.where(missing, -np.inf, values), sure + (pool_of(k, other) if other else 0)),
            (np.where(missing, -np.inf, -np.abs(values)), sure + unsure if unsure else 0),
        )
        chosen: set[int] = set()
        for worth, wanted in ranked:
            chosen |= set(self._first(worth, wanted, known))
        keys = {row: self._rows.key(row) for row in sorted(chosen)}
        rows = sorted(keys, key=lambda row: keys[row])
        vectors = self._vectors.raw(np.array(rows, np.int64))
        places = [Location(*keys[row]) for row in rows]
        return scored.ranking.best([(places, vectors)], k, order)

    def _first(self, worth: Scores, wanted: int, known: frozenset[Key]) -> list[int]:
        """The rows of highest worth that are not known, each span once, as many as are wanted."""
        count = min(len(worth), wanted + len(known) + _MORE)
        while wanted:
            top = np.arange(len(worth))
            if count < len(worth):
                top = np.sort(np.argpartition(-worth, count - 1)[:count])
            top = top[np.argsort(-worth[top], kind="stable")]
            found: dict[Key, int] = {}
            for row in top[np.isfinite(worth[top])].tolist():
                id, region = self._rows.key(row)
                if (span := (id, span_of(region))) not in known:
                    found.setdefault(span, row)
            if len(found) >= wanted or count >= len(worth):
                return list(found.values())[:wanted]
            count = min(len(worth), 4 * count)
        return []

    def _suggestion(self, one: RankedRow, facts: _Facts | None) -> dict[str, Any] | None:
        row = self._rows.number((one.id, one.region))
        if row is None:
            return None
        return {"row": row, "score": one.score, "probability": _probability(facts, row),
                "reason": one.reason, "similarity": one.similarity}  # fmt: skip

    # ---- what is worked out behind marks

    def _look_behind(self, name: str, now: _Standing) -> None:
        facts, pending = self._facts.get(name), self._pending.get(name)
        if facts is not None and facts.stamp == now.stamp:
            return
        if pending is None or pending.done():
            self._pending[name] = self._behind.submit(self._work_out, name)

    def _work_out(self, name: str) -> None:
        """Space, held-out figures and expected number of a class, for the marks that stand now, and
        again where more were given meanwhile."""
        while True:
            with self._guard:
                now = self._now()
            facts = self._facts.get(name)
            if facts is not None and facts.stamp == now.stamp:
                return
            try:
                self._facts[name] = self._facts_of(name, now)
            except LabelsError:  # its last example was taken back meanwhile
                self._facts[name] = _Facts(now.stamp, None)
            self.version += 1

    def _facts_of(self, name: str, now: _Standing) -> _Facts:
        from scipy.special import expit

        self._vectors.wait()
        if self._is_due(now):
            self._fit_space(now)
        with self._scoring:
            scored = self._score(name, now)
        weak = self._weak_rows(now.examples)
        groups = Groups(self._settings(now.examples).groups)
        grouping = groups.of(VectorSource.of(self._collection), now.examples)
        held = held_out_marks(now.examples, name, scored.ranking.space, weak, grouping)
        moved = scored.ranking.space(weak)
        others = scored.ranking.scorer(moved)[:, 0] if len(weak) else np.zeros(0)
        found = probabilities_of(held, others)
        if found is None:
            return _Facts(now.stamp, held)
        values = (scored.values - found.offset) / found.temperature
        probability = expit(values).astype(np.float32)
        expected = self._expected(name, now, probability)
        return _Facts(now.stamp, held, probability, expected)

    def _expected(self, name: str, now: _Standing, probability: Scores) -> float:
        """The sum of probabilities; of rows whose answer is known, of the answer."""
        sure = probability.astype(np.float64)
        for key, one in zip(now.examples.keys, now.examples.marks, strict=True):
            row = self._rows.number(key)
            if row is None or row >= len(sure):
                continue
            if one.get(name) in ("yes", "no"):
                sure[row] = one[name] == "yes"
            elif "yes" in one.values() and name not in one:
                sure[row] = 0.0
        return float(np.nansum(sure))

    def _is_due(self, now: _Standing) -> bool:
        if self._space is None or self._space[0] == now.stamp:
            return self._space is None
        if self._size <= _OFTEN:
            return True
        return len(now.examples.keys) >= max(_GROWN * self._space[1], self._space[1] + _TEN)


def _probability(facts: _Facts | None, row: int) -> float | None:
    if facts is None or facts.probability is None or row >= len(facts.probability):
        return None
    found = float(facts.probability[row])
    return found if math.isfinite(found) else None


def _somebody(who: str) -> str:
    """A name of a person.

    Raises:
        LabelsError: it is none.
    """
    try:
        return new_name(who)
    except LabelsError as error:
        raise LabelsError(f"who marks needs a name of one line; received {who!r}") from error


def _marked(
    held: Mapping[str, Said], key: Key, name: str, mark: str, who: str, several: bool | None
) -> dict[Spot, Said]:
    """What is said of a row once a mark is given. held: what is said of it. several: whether an
    item may be of several classes; else it leaves the class that it was of."""
    if mark == NONE:
        return {(key, name): {}}
    said = {one: each for one, each in held.get(name, {}).items() if one != who}
    found: dict[Spot, Said] = {(key, name): said | {who: mark}}
    if mark == "yes" and not several:
        standing = votes.standing_in({key: dict(held)}).get(key, {})
        others = [other for other, each in standing.items() if each == "yes" and other != name]
        found |= {(key, other): {} for other in others}
    return found


def _unrecorded(error: StoreError) -> str:
    return (
        f"The marks are kept, and can be undone here; the record of this step, by which `penult "
        f"teach --undo` finds it, could not be written: {error}"
    )


def _of_class(found: Votes, name: str) -> list[tuple[Key, Said]]:
    return [(key, classes[name]) for key, classes in found.items() if name in classes]


def _stands_same(one: Examples, other: Examples) -> bool:
    return dict(zip(one.keys, one.marks, strict=True)) == dict(
        zip(other.keys, other.marks, strict=True)
    )


def _counts(examples: Examples) -> list[dict[str, Any]]:
    """The classes with their numbers of marks, in the order of `penult classes`."""
    found: dict[str, dict[str, int]] = {}
    for one in examples.marks:
        for name, mark in one.items():
            found.setdefault(name, dict.fromkeys(MARKS, 0))[mark] += 1
    order = sorted(found, key=lambda n: (n == EVERY, not (found[n]["yes"] or found[n]["no"])))
    return [{"name": name, **found[name]} for name in order]


def _counted(rows: int) -> str:
    return f"{rows:,} row" + ("" if rows == 1 else "s")


def _words(name: str, given: Mapping[int, str]) -> str:
    kinds = list(dict.fromkeys(given.values()))
    parts = []
    for kind in kinds:
        rows = _counted(sum(one == kind for one in given.values()))
        parts.append(f"{rows} without a mark" if kind == NONE else f"{rows} marked {kind}")
    return f"{name}: {', '.join(parts)}"


def _overwritten(
    deed: _Deed, held: Mapping[Spot, Said], found: Mapping[Spot, Said], back: bool
) -> str:
    other = next(
        spot for spot, said in held.items() if list(said.items()) != list(found[spot].items())
    )
    (id, _), name = other
    now = held[other]
    said = (
        f"{next(reversed(now))} said {next(reversed(now.values()))}" if now else "nothing is said"
    )
    step = "taken back" if back else "done again"
    return (
        f"{deed.words}: it is not {step}, for of {id!r} and {name!r} {said} since; "
        f"the step before it can be {step}"
    )
