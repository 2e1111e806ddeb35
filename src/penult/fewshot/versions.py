"""Versions of taught classes: what they were fitted from and what was chosen, with the changes in
between, in a side table of the collection or in a class file. Fits nothing; knows no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space
from penult.collection import lance, schema
from penult.collection.manifest import store_errors
from penult.collection.reader import Reader
from penult.collection.renaming import MOVED, Renaming
from penult.collection.schema import Key
from penult.data.hashes import digest
from penult.embedding.fingerprint import Fingerprint
from penult.errors import LabelsError, StoreError
from penult.fewshot.calibration import Probabilities
from penult.fewshot.examples import GIVEN, ITEMS, Examples, Grouping, Marks
from penult.fewshot.fitted import CrossValidation, FittedClasses, Settings, cross_validation
from penult.fewshot.scorers import HeldOut
from penult.fewshot.thresholds import LabelThresholds

CHANGE, VERSION, UNDONE, PART = "change", "version", "undone", "part"
TABLE = "taught"
_MOST_PARTS = 32  # of the vectors of one version; more are written as one
_CHECKED = 16  # examples whose probabilities are kept, to see that they come out again
_TOLERANCE = 1e-3  # of these probabilities


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One entry: a change of marks or settings, a version that was fitted, or the undoing of a
    change. id: the hash of `about`. damaged: the id that it was kept under, where it is not as it
    was written: of `about` nothing is known then but `when`."""

    kind: str
    about: Mapping[str, Any]
    damaged: str | None = None

    @classmethod
    def of(cls, kind: str, about: Mapping[str, Any]) -> LedgerEntry:
        """An entry, with numbers of numpy as plain ones."""
        return cls(kind, json.loads(json.dumps(about, default=float)))

    @property
    def id(self) -> str:
        """The SHA-256 of its text, as it was written."""
        return self.damaged or hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """Kind and `about` as JSON, as they are kept."""
        return json.dumps([self.kind, self.about])


class Store(Protocol):
    """Entries in their order, and the parts that they name by their hash."""

    def records(self) -> list[LedgerEntry]:
        """All entries, oldest first."""

    def parts(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Those of these parts that are there."""

    def append(self, record: LedgerEntry, parts: Iterable[bytes]) -> None:
        """Append an entry with its parts, all or nothing."""


class CollectionStore:
    """The side table `taught` of a collection."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def records(self) -> list[LedgerEntry]:
        """All entries, oldest first."""
        reader = self._reader
        table = lance.open_table(reader.path, TABLE) if reader.manifest is not None else None
        if table is None:
            return []
        with store_errors(reader.path):
            query = table.search().where(f"kind != '{PART}'")
            query = query.select(["id", "kind", "about", "when"])
            rows = query.limit(None).to_arrow().sort_by("when").to_pylist()
        return [_entry_of(row["id"], row["kind"], row["about"], row["when"]) for row in rows]

    def parts(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Those of these parts that are there, and are as they were written."""
        table = lance.open_table(self._reader.path, TABLE) if ids else None
        if table is None:
            return {}
        with store_errors(self._reader.path):
            query = table.search().where(f"id IN ({schema.quoted(list(ids))})")
            rows = query.select(["id", "data"]).limit(None).to_arrow().to_pylist()
        return {row["id"]: row["data"] for row in rows if hash_of(row["data"]) == row["id"]}

    def append(self, record: LedgerEntry, parts: Iterable[bytes]) -> None:
        """Append an entry with its parts in one commit; a part that is there already stays."""
        named = {hash_of(data): data for data in parts}
        there = self.parts(list(named))
        rows: list[dict[str, Any]] = [
            {"id": id, "kind": PART, "data": data} for id, data in named.items() if id not in there
        ]
        rows.append({"id": record.id, "kind": record.kind, "about": record.text})
        self._reader.append(TABLE, rows)


class FileStore:
    """The entries in a class file, in memory until it is written. The file has the vectors, the
    space and the held-out scores of its own version; of earlier ones it has none."""

    def __init__(
        self,
        entries: Sequence[tuple[str, str]] = (),
        parts: Mapping[str, bytes] | None = None,
    ) -> None:
        self._records = [_entry_of(id, "", text) for id, text in entries]
        if odd := [one for one in self._records if one.damaged]:
            raise ValueError(f"its entry {odd[0].id} is not as it was written")
        self._parts = dict(parts or {})

    def records(self) -> list[LedgerEntry]:
        """All entries, oldest first."""
        return list(self._records)

    def parts(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Those of these parts that are there."""
        return {id: self._parts[id] for id in ids if id in self._parts}

    def append(self, record: LedgerEntry, parts: Iterable[bytes]) -> None:
        """Append an entry."""
        named = {hash_of(data): data for data in parts}
        if record.kind == VERSION:
            for one in self._records:
                if one.kind == VERSION:
                    self._parts.pop(one.about["parts"].get("scores", ""), None)
            own = record.about["parts"].get("scores")
            named = {id: data for id, data in named.items() if id == own}
        self._records.append(record)
        self._parts |= named

    def entries(self) -> tuple[list[tuple[str, str]], dict[str, bytes]]:
        """What the file keeps."""
        return [(one.id, one.text) for one in self._records], dict(self._parts)


@dataclass(frozen=True)
class Taught:
    """What classes are fitted from, and what was chosen: enough to fit the same ones again.
    method: the chosen one. validation: what held-out examples told. groups: what is held out
    together. background: (m, d) raw vectors; None where none were needed."""

    examples: Examples
    space: Space
    method: str
    several: bool
    validation: CrossValidation
    groups: Grouping = field(default_factory=Grouping)
    background: npt.NDArray[np.float32] | None = None

    def fit(self) -> FittedClasses:
        """The classes, as they were fitted; no example is held out again."""
        rows = self.background
        return FittedClasses(
            self.examples, self.space, self.method, self.several,
            None if rows is None else lambda: rows, self.groups, self.validation,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaughtVersion:
    """A version of taught classes. number: in order, from 1. change: what led to it. level: see
    `FittedClasses.to_dict`; None where there was nothing to measure it on. undone: whether the
    change that led to it was taken back."""

    number: int
    when: str
    change: str
    method: str
    space: str
    classes: int
    examples: int
    level: Mapping[str, Any] | None
    undone: bool
    current: bool
    _entry: LedgerEntry = field(repr=False)

    @property
    def about(self) -> Mapping[str, Any]:
        """All that is kept of it, but for its parts."""
        return self._entry.about

    @property
    def thresholds(self) -> LabelThresholds:
        """The least probability of each class, where an item may be of several."""
        return LabelThresholds.from_dict(self.about.get("thresholds"))

    @property
    def damaged(self) -> bool:
        """Whether its entry is not as it was written, so that only its time is known."""
        return self._entry.damaged is not None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult classes --history --json` prints it."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "_entry"}
        settings = None if self.damaged else dict(self._entry.about["settings"])
        return found | {"settings": settings, "damaged": self.damaged}


@dataclass(frozen=True, slots=True)
class Change:
    """A change of marks and settings. marks: for each example and class (before, after); None is no
    mark. dropped: the vectors of examples that have no mark any more. order: of the examples that
    there were. background: of a class file, before; False where it is the same."""

    words: str
    marks: Mapping[Key, Mapping[str, tuple[str | None, str | None]]]
    dropped: Mapping[Key, npt.NDArray[np.float32]]
    order: Sequence[Key]
    background: npt.NDArray[np.float32] | Literal[False] | None = False


class Ledger:
    """Versions and changes in their order. A version belongs to the change that it was fitted
    after, and to marks: it counts until either is another one.

    fingerprint: of the embedder of the vectors, with those that it took the place of.
    """

    def __init__(self, store: Store, fingerprint: Fingerprint) -> None:
        self.store, self._fingerprint = store, fingerprint
        # Of the hashes alone: a measured behaviour may be taken in later.
        self._hash = digest(dict(fingerprint.hashes))

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings that are kept, of a damaged change by its version; None before the first
        change."""
        records = self.store.records()
        for change in reversed(_standing(records)):
            whole = _version_on(records, change) if change.damaged else change
            if whole is not None:
                return dict(whole.about["settings"])
        return None

    def versions(self, marks: Marks) -> list[TaughtVersion]:
        """All versions, oldest first; with these marks one of them is the current one."""
        records = self.store.records()
        changes = {one.id: one for one in records if one.kind == CHANGE}
        standing = {one.id for one in _standing(records)}
        found = [one for one in records if one.kind == VERSION]
        current = self._current(records, marks)
        return [
            _version(number, one, changes.get(one.about.get("on", "")), standing, one is current)
            for number, one in enumerate(found, 1)
        ]

    def current(self, marks: Marks) -> TaughtVersion | None:
        """The version of these marks, if one was kept."""
        return next((one for one in self.versions(marks) if one.current), None)

    def _current(self, records: Sequence[LedgerEntry], marks: Marks) -> LedgerEntry | None:
        changes, digest = _standing(records), digest_of(marks)
        on = changes[-1].id if changes else None
        for one in reversed(records):
            about = one.about
            if one.damaged:
                continue
            if one.kind == MOVED:  # versions before have the ids of their time
                former = Renaming.of_entry(about).reversed
                marks = {(former(id), region): named for (id, region), named in marks.items()}
                digest = digest_of(marks)
            if one.kind == VERSION and about["on"] == on and about["marks"] == digest:
                ours = about["fingerprint"]
                if ours in (self._hash, *self._fingerprint.former):
                    return one
        return None

    def lost(self) -> str | None:
        """The damaged entry that may have been the current version, or have led to it, in words;
        None where there is none. Of entries before the last change nothing depends."""
        records = self.store.records()
        changes = _standing(records)
        first = records.index(changes[-1]) if changes else 0
        versions = [one for one in records if one.kind == VERSION]
        for one in reversed(records[first:]):
            if one.damaged and one.kind == VERSION:
                return f"version {versions.index(one) + 1} of {_time_of(one)}"
            if one.damaged and one.kind in (CHANGE, UNDONE, MOVED):
                return f"the {_KINDS[one.kind]} of {_time_of(one)}"
        return None

    def taught(self, version: TaughtVersion) -> Taught | None:
        """What a version was fitted from; None where the file has it no more.

        Raises:
            StoreError: it or a part of it is gone, or is not as it was written.
        """
        about, words = version.about, f"version {version.number} of {_time_of(version._entry)}"
        if version.damaged:
            raise StoreError(f"{words} is not as it was kept")
        named = about["parts"]
        ids = [
            named["rows"],
            named["space"],
            *named["vectors"],
            *filter(None, [named["background"], named.get("scores")]),
        ]
        found = self.store.parts(ids)
        if isinstance(self.store, FileStore) and any(id not in found for id in ids):
            return None
        if any(id not in found for id in ids):
            raise StoreError(f"{words} is not as it was kept")
        rows = json.loads(zlib.decompress(found[named["rows"]]))
        parts = [array_of(found[id]) for id in named["vectors"]]
        vectors = [parts[part][place] for part, place in rows["at"]]
        renamed = self._renamed_since(version._entry)
        examples = Examples(
            np.stack(vectors),
            tuple((renamed(id), region) for id, region in rows["keys"]),
            tuple(rows["marks"]),
        )
        background = None if named["background"] is None else array_of(found[named["background"]])
        return self._taught(about, examples, Space.from_bytes(found[named["space"]]),
                            rows["groups"], background, found.get(named.get("scores")))  # fmt: skip

    def _renamed_since(self, entry: LedgerEntry) -> Callable[[str], str]:
        """From the ids of the time of an entry to those of today."""
        records = self.store.records()
        place = max(at for at, one in enumerate(records) if one == entry)
        moved = [one for one in records[place:] if one.kind == MOVED]
        if odd := [one for one in moved if one.damaged]:
            raise StoreError(f"the renaming of items of {_time_of(odd[0])} is not as it was kept")
        later = [Renaming.of_entry(one.about) for one in moved]
        return lambda id: reduce(lambda found, renaming: renaming(found), later, id)

    def again(
        self, version: TaughtVersion, examples: Examples, space: Space,
        groups: Sequence[str | None] | None, background: npt.NDArray[np.float32] | None,
    ) -> Taught:  # fmt: skip
        """A version with parts that are kept elsewhere, as in a class file."""
        scores = version.about["parts"].get("scores", "")
        found = self.store.parts([scores])
        return self._taught(version.about, examples, space, groups, background, found.get(scores))

    def _taught(
        self, about: Mapping[str, Any], examples: Examples, space: Space,
        groups: Sequence[str | None] | None, background: npt.NDArray[np.float32] | None,
        scores: bytes | None,
    ) -> Taught:  # fmt: skip
        accuracy = {n: math.nan if v is None else v for n, v in about["accuracy"].items()}
        chosen, judged = (None, None) if scores is None else _scores_in(scores)
        kept = about.get("calibration")
        validation = CrossValidation(
            accuracy, LabelThresholds.from_dict(about.get("thresholds")), chosen, judged,
            None if kept is None else Probabilities(**kept),
        )  # fmt: skip
        by = about["settings"].get("groups")
        kind = about.get("grouping", ITEMS if by is None else GIVEN)
        grouping = Grouping(kind, None if groups is None else tuple(groups), by)
        return Taught(
            examples, space, about["method"], about["several"], validation, grouping, background
        )

    def keep(self, fitted: FittedClasses, taught: Taught, settings: Settings, marks: Marks) -> None:
        """Append a version.

        Raises:
            StoreError: nothing may be written.
        """
        records = self.store.records()
        changes = _standing(records)
        former = [one for one in records if one.kind == VERSION and not one.damaged]
        named, parts = self._parts(taught, former[-1].about["parts"] if former else None)
        validation = cross_validation(fitted)
        scores = _scores(validation)
        named["scores"] = hash_of(scores)
        accuracy, level = validation.accuracy or {}, None
        with contextlib.suppress(LabelsError):  # nothing to measure it on
            level = fitted.to_dict(settings.unknown)["unknown"]
        about = {
            "when": now(),
            "on": changes[-1].id if changes else None,
            "marks": digest_of(marks),
            "fingerprint": self._hash,
            "settings": settings.to_dict(),
            "method": taught.method,
            "several": taught.several,
            "grouping": taught.groups.kind,
            "accuracy": {n: None if math.isnan(v) else v for n, v in accuracy.items()},
            "thresholds": fitted.thresholds.to_dict() if taught.several else None,
            "calibration": asdict(fitted.probabilities),
            "space": taught.space.recipe,
            "classes": len(fitted.names),
            "examples": len(taught.examples.keys),
            "level": level,
            "penult": version("penult"),
            "probabilities": _probabilities(fitted),
            "parts": named,
        }
        self.store.append(LedgerEntry.of(VERSION, about), [*parts, scores])

    def _parts(
        self, taught: Taught, former: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], list[bytes]]:
        """(the hashes of a version's parts, the parts). former: those of the version before, whose
        vectors are not written again."""
        examples, ids = taught.examples, list[str]()
        place: dict[str, tuple[int, int]] = {}
        if former is not None and len(former["vectors"]) < _MOST_PARTS:
            there = self.store.parts(former["vectors"])
            for number, (id, data) in enumerate(there.items()):
                ids.append(id)
                for at, row in enumerate(array_of(data)):
                    place[hash_of(row.tobytes())] = number, at
        keys = [hash_of(row.tobytes()) for row in examples.vectors]
        fresh = {k: row for k, row in zip(keys, examples.vectors, strict=True) if k not in place}
        place |= {key: (len(ids), at) for at, key in enumerate(fresh)}
        parts = [bytes_of(np.stack(list(fresh.values())))] if fresh else []
        ids += [hash_of(data) for data in parts]
        rows = {
            "keys": examples.keys,
            "marks": [dict(one) for one in examples.marks],
            "groups": None if taught.groups.names is None else list(taught.groups.names),
            "at": [place[key] for key in keys],
        }
        packed = zlib.compress(json.dumps(rows).encode())
        space = taught.space.to_bytes()
        background = None if taught.background is None else bytes_of(taught.background)
        named = {
            "rows": hash_of(packed), "space": hash_of(space), "vectors": ids,
            "background": None if background is None else hash_of(background),
        }  # fmt: skip
        return named, [*parts, packed, space, *([] if background is None else [background])]

    def changed(
        self,
        words: str,
        before: Examples,
        after: Examples,
        settings: Settings,
        former: npt.NDArray[np.float32] | Literal[False] | None = False,
    ) -> str:
        """Append a change of marks, or of settings alone; gives its id. former: see
        `Change.background`."""
        old, new = marks_of(before), marks_of(after)
        marks = _changes(old, new)
        vectors = {key: row for key, row in zip(before.keys, before.vectors, strict=True)
                   if key in marks and key not in new}  # fmt: skip
        parts = {
            "marks": zlib.compress(
                json.dumps([[*key, one] for key, one in marks.items()]).encode()
            ),
            "dropped": zlib.compress(json.dumps([list(vectors), before.keys]).encode()),
            "vectors": bytes_of(np.stack(list(vectors.values()))) if vectors else b"",
        }
        if former is not False:
            parts["background"] = b"none" if former is None else bytes_of(former)
        about = {
            "when": now(),
            "words": words,
            "counts": _counts(marks),
            "settings": settings.to_dict(),
            "parts": {name: hash_of(data) for name, data in parts.items() if data},
        }
        entry = LedgerEntry.of(CHANGE, about)
        self.store.append(entry, [data for data in parts.values() if data])
        return entry.id

    def undo(self, marks: Marks) -> Change:
        """Take the last change back: append that it is undone, and give it. marks: that stand; of a
        damaged change they are compared with those of the version before.

        Raises:
            LabelsError: there is none.
            StoreError: it is damaged, and so is the version before, or there is none.
        """
        records = self.store.records()
        if not (changes := _standing(records)):
            raise LabelsError(
                "nothing to undo: no teaching since versions are kept, or all of it is undone"
            )
        change = self._change_of(changes[-1]) or self._since_version(records, changes, marks)
        self.store.append(LedgerEntry.of(UNDONE, {"when": now(), "of": changes[-1].id}), [])
        return change

    def _change_of(self, last: LedgerEntry) -> Change | None:
        """A change as it was kept; None where it or a part of it is damaged."""
        named = last.about.get("parts", {})
        found = self.store.parts(list(named.values()))
        if last.damaged or len(found) < len(set(named.values())):
            return None
        marks = json.loads(zlib.decompress(found[named["marks"]]))
        dropped, order = json.loads(zlib.decompress(found[named["dropped"]]))
        vectors = array_of(found[named["vectors"]]) if "vectors" in named else ()
        renamed = self._renamed_since(last)
        return Change(
            words_of(last),
            {
                (renamed(id), region): {n: tuple(pair) for n, pair in one.items()}
                for id, region, one in marks
            },
            dict(zip([(renamed(id), region) for id, region in dropped], vectors, strict=True)),
            [(renamed(id), region) for id, region in order],
            _former(found[named["background"]]) if "background" in named else False,
        )

    def _since_version(
        self, records: Sequence[LedgerEntry], changes: Sequence[LedgerEntry], marks: Marks
    ) -> Change:
        """What changed since the version before the last change, in place of that change."""
        words = f"the change of {_time_of(changes[-1])}, which is damaged"
        before = changes[-2] if len(changes) > 1 else None
        found = None if before is None else _version_on(records, before)
        taught = None
        if found is not None:
            number = [one for one in records if one.kind == VERSION].index(found) + 1
            taught = self.taught(_version(number, found, before, set(), False))
        if taught is None:
            raise StoreError(
                f"{words}, cannot be taken back: no version before it is whole. --refit fits the "
                "marks that stand anew"
            )
        former = marks_of(taught.examples)
        return Change(words, _changes(former, marks), {}, taught.examples.keys)

    @property
    def last(self) -> str | None:
        """The id of the last change that was not undone."""
        changes = _standing(self.store.records())
        return changes[-1].id if changes else None

    def take_back(self, change: str | None) -> bool:
        """Append that a change is undone, whose marks were taken back; whether it was the last one,
        which alone can be."""
        if change is None or self.last != change:
            return False
        self.store.append(LedgerEntry.of(UNDONE, {"when": now(), "of": change}), [])
        return True

    def differs(self, version: TaughtVersion, fitted: FittedClasses) -> float:
        """The largest difference of probabilities from those that a version had for its first
        examples; 0 within rounding."""
        before, after = version.about["probabilities"], _probabilities(fitted)
        if np.shape(before) != np.shape(after):
            return 1.0
        gap = float(np.abs(np.subtract(before, after)).max(initial=0.0))
        return gap if gap > _TOLERANCE else 0.0


def marks_of(examples: Examples) -> dict[Key, Mapping[str, str]]:
    """The marks of each example."""
    return dict(zip(examples.keys, examples.marks, strict=True))


def digest_of(marks: Marks) -> str:
    """A hash of marks, whatever their order."""
    listed = sorted([*key, sorted(one.items())] for key, one in marks.items() if one)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def words_of(change: LedgerEntry) -> str:
    """`teach: apple +3, zero +1 no`."""
    if change.damaged:
        return "a change that is damaged"
    counts = change.about["counts"]
    parts = [
        f"{name} {'+' if after else '−'}{number}"
        + (f" {after or before}" if (after or before) != "yes" else "")
        for name, before, after, number in counts[:4]
    ]
    more = f", … of {len(counts)}" if len(counts) > 4 else ""
    words = str(change.about["words"])
    return f"{words}: {', '.join(parts)}{more}" if parts else words


def _standing(records: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """The changes that were not undone, oldest first."""
    undone = {one.about.get("of") for one in records if one.kind == UNDONE}
    return [one for one in records if one.kind == CHANGE and one.id not in undone]


_KINDS = {CHANGE: "change", UNDONE: "undoing", MOVED: "renaming of items"}


def _version_on(records: Sequence[LedgerEntry], change: LedgerEntry) -> LedgerEntry | None:
    """The last whole version that was fitted after a change."""
    return next((one for one in reversed(records) if one.kind == VERSION and not one.damaged
                 and one.about["on"] == change.id), None)  # fmt: skip


def _time_of(entry: LedgerEntry) -> str:
    return f"{str(entry.about['when'])[:16].replace('T', ' ')} UTC"


def _version(
    number: int, record: LedgerEntry, change: LedgerEntry | None, standing: set[str], current: bool
) -> TaughtVersion:
    about = record.about
    if record.damaged:
        return TaughtVersion(
            number, about["when"], "damaged: not as it was written", "", "", 0, 0, None, False,
            False, record,
        )  # fmt: skip
    words = words_of(change) if change is not None else "marks that were there"
    undone = about["on"] is not None and about["on"] not in standing
    return TaughtVersion(
        number, about["when"], words, about["method"], about["space"], about["classes"],
        about["examples"], about["level"], undone, current, record,
    )  # fmt: skip


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def _changes(old: Marks, new: Marks) -> dict[Key, dict[str, tuple[str | None, str | None]]]:
    """For each example and class whose mark differs (before, after); None is no mark."""
    return {
        key: {n: (old.get(key, {}).get(n), new.get(key, {}).get(n)) for n in names}
        for key in dict.fromkeys([*old, *new])
        if (names := _differing(old.get(key, {}), new.get(key, {})))
    }


def _counts(marks: Mapping[Key, Mapping[str, tuple[str | None, str | None]]]) -> list[list[Any]]:
    """[class, mark before where it is gone, mark after, number] of each kind of change."""
    found = Counter(
        (name, None if after else before, after)
        for one in marks.values()
        for name, (before, after) in one.items()
    )
    return [[*kind, number] for kind, number in found.items()]


def _probabilities(fitted: FittedClasses) -> list[list[float]]:
    judged = fitted.judge(fitted.examples.vectors[:_CHECKED])
    return [[round(float(value), 6) for value in row] for row in judged.probability]


def _entry_of(id: str, kind: str, text: str | None, when: datetime | None = None) -> LedgerEntry:
    """An entry as it was kept; one that is not as it was written has its id, kind and time from
    beside its text."""
    try:
        found = LedgerEntry(*json.loads(text or ""))
    except (ValueError, TypeError):
        found = None
    if found is not None and found.id == id:
        return found
    return LedgerEntry(kind, {"when": "" if when is None else when.isoformat()}, id)


def hash_of(data: bytes) -> str:
    """The SHA-256 of a part, which names it."""
    return hashlib.sha256(data).hexdigest()


def bytes_of(array: npt.NDArray[np.float32]) -> bytes:
    """An array as a part."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, "<f4"), allow_pickle=False)
    return buffer.getvalue()


def array_of(data: bytes) -> npt.NDArray[np.float32]:
    """A part as an array."""
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.float32)


def _scores(found: CrossValidation) -> bytes:
    """The held-out scores as npz; those that tell unknowns only where they are others."""
    assert found.chosen is not None and found.judged is not None
    parts: dict[str, Any] = {"rows": found.chosen.rows, "chosen": found.chosen.scores}
    if found.judged is not found.chosen:
        parts |= {"judged_rows": found.judged.rows, "judged": found.judged.scores}
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def _scores_in(data: bytes) -> tuple[HeldOut, HeldOut]:
    """(the held-out scores by the chosen method, those that tell unknowns)."""
    with np.load(io.BytesIO(data), allow_pickle=False) as parts:
        chosen = HeldOut(parts["rows"], parts["chosen"])
        if "judged" not in parts:
            return chosen, chosen
        return chosen, HeldOut(parts["judged_rows"], parts["judged"])


def _former(data: bytes) -> npt.NDArray[np.float32] | None:
    return None if data == b"none" else array_of(data)


def now() -> str:
    """The time, as entries have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
