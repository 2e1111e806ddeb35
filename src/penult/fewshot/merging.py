"""Merge class files of one embedder: the examples, marks, backgrounds and settings of several
people as one class space.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from penult.collection.manifest import fingerprint_in
from penult.collection.schema import Key
from penult.data.files import user_path
from penult.data.items import namer
from penult.embedding.fingerprint import compare
from penult.errors import FingerprintMismatch, LabelsError
from penult.fewshot import storage
from penult.fewshot.classspace import ClassSpace
from penult.fewshot.examples import ITEMS, Examples, resolved
from penult.fewshot.fitted import Settings
from penult.fewshot.labelling import of_head
from penult.fewshot.state import Rows
from penult.fewshot.storage import OF_EXAMPLES, Claims, Saved
from penult.fewshot.versions import Ledger

log = logging.getLogger(__name__)
_NEAR = 1e-2  # of its length, that two vectors of one item differ at most, on two machines


@dataclass(frozen=True, slots=True)
class MarkConflict:
    """A mark of an item that another one, of a file named before, holds against. name, mark: it;
    held_name, held_mark: the mark that holds."""

    id: str
    region: str
    name: str
    mark: str
    held_name: str
    held_mark: str
    file: str

    def to_dict(self) -> dict[str, str]:
        """For JSON, as `penult merge --json` prints it."""
        facts = asdict(self)
        return {"id": self.id, "region": self.region, "class": facts["name"], "mark": self.mark,
                "held": {"class": self.held_name, "mark": self.held_mark},
                "file": self.file}  # fmt: skip


@dataclass(frozen=True)
class ClassMerge:
    """Class files as one. space: its classes. conflicts: marks that do not hold. notes: what else
    differed, and which of it holds, in words. added: the number of examples that each file but the
    first brought."""

    _saved: Saved
    conflicts: Sequence[MarkConflict] = ()
    notes: Sequence[str] = ()
    added: Mapping[str, int] = field(default_factory=dict)

    @property
    def space(self) -> ClassSpace:
        """The classes, to be predicted with or saved."""
        return ClassSpace.load(self._saved)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult merge --json` prints it."""
        return {
            "added": dict(self.added),
            "conflicts": [one.to_dict() for one in self.conflicts],
            "notes": list(self.notes),
        }


def merge_class_files(paths: Sequence[str | os.PathLike[str]]) -> ClassMerge:
    """The classes of several files as one; a file merged with itself stays as it is, and the order
    in which pairs are merged makes no difference.

    Classes of one name have the examples of all files. Where an item is marked differently the mark
    of the file that is named first holds, and the others are told; so do the settings. An item is
    one of the same (id, region), or of the same file name, region and vector. Backgrounds are put
    together. The history is that of the first file, and ends with the merge, which `undo` takes
    back.

    Raises:
        FingerprintMismatch: vectors of another embedder.
        LabelsError: no class file, or two items of one name.
    """
    if not paths:
        raise LabelsError("name the class files (FILE.npz) to be merged")
    names = [str(path) for path in paths]
    merged = ClassMerge(storage.read(paths[0]))
    for path, name in zip(paths[1:], names[1:], strict=True):
        merged = _merge(merged, storage.read(path), names[0], name)
    return merged


def _merge(done: ClassMerge, other: Saved, place: str, name: str) -> ClassMerge:
    first = done._saved
    _check_fingerprints(first, other, place, name)
    other = _by_own_keys(first, other)
    _check_vectors(first, other, place, name)
    notes = list(done.notes)
    settings, of_examples = _settings(first, other, name, notes)
    several = settings.get("several") is not False
    examples, claims, conflicts = _marks(first, other, name, several)
    background = _background(first.background, other.background, examples)
    rows = first.rows or other.rows
    if other.rows and other.rows != rows:
        modality = str(first.model.get("modality"))
        notes.append(
            f"files are read as {rows.words(modality)}; {name} has {other.rows.words(modality)}"
        )
    groups = _groups(first, other, settings, examples)
    if groups is not None and (lone := _ungrouped(groups, examples, other)):
        notes.append(f"groups: {lone} example{'s' if lone > 1 else ''} of {name} without a group "
                     f"by {settings['groups']}: each item counts as one")  # fmt: skip
    merged = replace(
        first, rows=rows, examples=examples, claims=claims, background=background,
        settings=settings, groups=groups,
        space=first.space if of_examples or not first.settings.get(OF_EXAMPLES) else other.space,
        seconds={**other.seconds, **first.seconds},
    )  # fmt: skip
    fresh = len(examples.keys) - len(first.examples.keys)
    added = {**done.added, name: fresh}
    if _is_same(first, merged):
        return ClassMerge(first, [*done.conflicts, *conflicts], notes, added)
    ledger = Ledger(first.store, fingerprint_in(storage.manifest_of(first)))
    grown = background is not first.background
    ledger.changed(
        f"merge {PurePath(name).name}", first.examples, examples, Settings.of(settings, {}),
        first.background if grown else False,
    )  # fmt: skip
    return ClassMerge(merged, [*done.conflicts, *conflicts], notes, added)


def _check_fingerprints(first: Saved, other: Saved, place: str, name: str) -> None:
    ours, theirs = (fingerprint_in(storage.manifest_of(one)) for one in (first, other))
    found = compare(ours, theirs, "", "")
    if found.refused:
        raise FingerprintMismatch(
            f"{name} holds vectors of another embedder than {place}: {found.words}. Its marks can "
            f"be taught anew, where its recordings are: penult classes {name} --csv marks.csv, "
            f"then penult teach {place} --from class marks.csv"
        )
    for note in found.notes:
        log.warning("%s: %s", name, note)


def _near(one: Rows, other: Rows) -> bool:
    return bool(np.linalg.norm(one - other) <= _NEAR * np.linalg.norm(one))


def _by_own_keys(first: Saved, other: Saved) -> Saved:
    """The other file, with the items that the first one has by another path called as there."""
    known: dict[Key, list[int]] = {}
    theirs = set(other.examples.keys)
    for place, (id, region) in enumerate(first.examples.keys):
        if (id, region) not in theirs:
            known.setdefault((PurePath(id).name, region), []).append(place)
    renamed: dict[Key, Key] = {}
    ours = set(first.examples.keys)
    for (id, region), row in zip(other.examples.keys, other.examples.vectors, strict=True):
        places = known.get((PurePath(id).name, region), []) if (id, region) not in ours else []
        same = next((p for p in places if _near(first.examples.vectors[p], row)), None)
        if same is not None:
            places.remove(same)
            renamed[id, region] = first.examples.keys[same]
    if not renamed:
        return other

    def own(key: Key) -> Key:
        return renamed.get(key, key)

    return replace(
        other,
        examples=replace(other.examples, keys=tuple(map(own, other.examples.keys))),
        claims={own(key): one for key, one in other.claims.items()},
        seconds={own(key): one for key, one in other.seconds.items()},
    )


def _check_vectors(first: Saved, other: Saved, place: str, name: str) -> None:
    rows = dict(zip(first.examples.keys, first.examples.vectors, strict=True))
    for key, row in zip(other.examples.keys, other.examples.vectors, strict=True):
        if key in rows and not of_head(key) and not _near(rows[key], row):
            part = "" if key[1] == "whole" else f" ({key[1]})"
            length = float(np.linalg.norm(rows[key]) * np.linalg.norm(row))
            cosine = float(rows[key] @ row) / length
            raise LabelsError(
                f"{key[0]}{part} is another item in {name} than in {place}: the cosine of their "
                f"vectors is {cosine:.3f}. Two items of one name cannot be told apart: give one of "
                "the files another name, and teach it again"
            )


def claims_of(saved: Saved) -> dict[Key, list[tuple[str, str]]]:
    """All marks (class, mark) of each item, also those that do not hold, in their order."""
    several = saved.settings.get("several") is not False
    found = {}
    for key, marks in zip(saved.examples.keys, saved.examples.marks, strict=True):
        claims = [(name, mark) for name, mark in saved.claims.get(key, ())]
        # Where somebody has taught since the merge, that is what counts.
        as_merged = claims and resolved(claims, several)[0] == dict(marks)
        found[key] = claims if as_merged else list(marks.items())
    return found


def _marks(
    first: Saved, other: Saved, name: str, several: bool
) -> tuple[Examples, Claims, list[MarkConflict]]:
    ours, theirs = claims_of(first), claims_of(other)
    rows = dict(zip(other.examples.keys, other.examples.vectors, strict=True))
    rows |= dict(zip(first.examples.keys, first.examples.vectors, strict=True))
    keys = list(dict.fromkeys([*ours, *theirs]))
    marks, kept, conflicts = [], dict[Key, list[tuple[str, str]]](), list[MarkConflict]()
    for key in keys:
        claims = list(dict.fromkeys([*ours.get(key, ()), *theirs.get(key, ())]))
        own, overruled = resolved(claims, several)
        marks.append(own)
        if overruled:
            kept[key] = claims
        known = set(ours.get(key, ()))
        conflicts += [
            MarkConflict(*key, *claim, *held, name)
            for claim, held in overruled.items()
            if claim not in known or claim in theirs.get(key, ())
        ]
    return (
        Examples(
            np.stack([rows[key] for key in keys]) if keys else first.examples.vectors,
            tuple(keys),
            tuple(marks),
        ),
        kept,
        conflicts,
    )


def _background(ours: Rows | None, theirs: Rows | None, examples: Examples) -> Rows | None:
    """The rows of both, once each, without those that are examples; the same object where it is the
    same rows."""
    own = {row.tobytes() for row in examples.vectors}
    rows = [row for each in (ours, theirs) if each is not None for row in each]
    kept = {row.tobytes(): row for row in rows if row.tobytes() not in own}
    if ours is not None and list(kept) == [row.tobytes() for row in ours]:
        return ours
    return np.stack(list(kept.values())) if kept else None


def _settings(
    first: Saved, other: Saved, name: str, notes: list[str]
) -> tuple[dict[str, Any], bool]:
    """(the settings that hold, whether the space is fitted to the examples)."""
    usual, ours, theirs = (Settings.of(one, {}).to_dict()
                           for one in ({}, first.settings, other.settings))  # fmt: skip
    held = {n: theirs[n] if ours[n] == usual[n] else ours[n] for n in usual}
    notes += [
        f"{n}: {_word(held[n])} holds; {name} has {_word(theirs[n])}"
        for n in usual
        if theirs[n] != held[n] and theirs[n] != usual[n]
    ]
    fixed = [not one.settings.get(OF_EXAMPLES) for one in (first, other)]
    if any(fixed) and not (all(fixed) and first.space.id == other.space.id):
        whose = "the first file that has one" if fixed[0] else name
        notes.append(f"space: the one that was fitted to rows of a collection, of {whose}, holds")
    return {**first.settings, **held, OF_EXAMPLES: not any(fixed)}, not any(fixed)


def _word(value: object) -> str:
    return {True: "yes", False: "no", None: "none"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]


def _groups(
    first: Saved, other: Saved, settings: Mapping[str, Any], examples: Examples
) -> list[str | None] | None:
    """The groups of the examples by the setting that holds: as the files have them, else by the
    path; a column of a collection is not in a file."""
    by = settings.get("groups")
    if by is None or by == ITEMS:
        return None
    name_of = namer(by)
    known = {key: name_of(key[0], {}) for key in examples.keys}
    for one in (other, first):
        if one.groups is not None and one.settings.get("groups") == by:
            known |= dict(zip(one.examples.keys, one.groups, strict=True))
    return [known[key] for key in examples.keys]


def _ungrouped(groups: Sequence[str | None], examples: Examples, other: Saved) -> int:
    theirs = set(other.examples.keys)
    return sum(group is None and key in theirs
               for key, group in zip(examples.keys, groups, strict=True))  # fmt: skip


def _is_same(first: Saved, merged: Saved) -> bool:
    return (
        first.examples.keys == merged.examples.keys
        and [dict(one) for one in first.examples.marks]
        == [dict(one) for one in merged.examples.marks]
        and first.claims == merged.claims
        and first.background is merged.background
        and Settings.of(first.settings, {}) == Settings.of(merged.settings, {})
        and first.space is merged.space
        and first.rows == merged.rows
    )


def are_class_files(paths: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether all of these are called as class files are.

    Raises:
        LabelsError: some are, and some are not.
    """
    named = {str(path): Path(path).suffix == storage.SUFFIX and not user_path(path).is_dir()
             for path in paths}  # fmt: skip
    if any(named.values()) and not all(named.values()):
        file, other = (next(n for n, is_file in named.items() if is_file is v)
                       for v in (True, False))  # fmt: skip
        raise LabelsError(
            f"{file} is a class file and {other} is none: class files are merged into one, and "
            f"penult teach {other} --from class {file} teaches its examples to a collection"
        )
    return all(named.values())
