"""Fingerprints: what makes vectors comparable, by the hashes of what made them and by what it does
to made-up items; compared, and told in words. Runs no model.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.errors import listed
from penult.models.base import digest
from penult.models.source_code import changed

FloatArray = npt.NDArray[np.float32]

CODE, PREPROCESSING, READER = "code", "preprocessing", "reader"
RESAMPLED = "resampled noise"  # the made-up item that goes through the resampler
LOGITS = 1e-4  # relative to the largest one, in fp32 on one kind of device


@dataclass(frozen=True, slots=True)
class Answer:
    """What an embedder gives for one item. logits: (K,); None where they were not kept."""

    vector: FloatArray
    logits: FloatArray | None = None

    def to_dict(self) -> dict[str, str]:
        """For JSON, exact to the bit."""
        logits = {} if self.logits is None else {"logits": _text(self.logits)}
        return {"vector": _text(self.vector), **logits}

    @classmethod
    def from_dict(cls, document: Mapping[str, str]) -> Answer:
        """The answer that `to_dict` wrote."""
        logits = document.get("logits")
        return cls(_array(document["vector"]), None if logits is None else _array(logits))


def _text(values: FloatArray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def _array(text: str) -> FloatArray:
    return np.frombuffer(base64.b64decode(text), "<f4")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What an embedder gives for made-up items, in its native engine. answers: by the item's name.
    about: what they were made for (modality, rate …). device: its kind. versions: of packages."""

    answers: Mapping[str, Answer]
    about: Sequence[Any] = ()
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a manifest and a saved embedder have it."""
        return {
            "answers": {name: one.to_dict() for name, one in self.answers.items()},
            "about": list(self.about),
            "device": self.device,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any] | None) -> Behaviour | None:
        """What `to_dict` wrote; None where nothing was measured, or it cannot be read."""
        try:
            assert document
            answers = {name: Answer.from_dict(one) for name, one in document["answers"].items()}
            return cls(answers, document["about"], document["device"], document["versions"])
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes vectors comparable. hashes: by field. files: hashes of the user's own code, by
    role. behaviour: measured; None where it was not. former: ids, and hashes, of those that it took
    the place of once their rows had been measured."""

    hashes: Mapping[str, str]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    former: Sequence[str] = ()

    @property
    def id(self) -> str:
        """A hash of it, behaviour included."""
        answers = self.behaviour.to_dict()["answers"] if self.behaviour else None
        return digest([dict(self.hashes), answers])

    def is_same(self, other: Fingerprint) -> bool:
        """Whether hashes, behaviour to the bit, device and versions of packages are equal, so that
        rows could tell nothing more."""
        one, two = self.behaviour, other.behaviour
        if one is None or two is None or self.id != other.id:
            return False
        return (one.device, one.versions) == (two.device, two.versions)

    def was(self, other: Fingerprint) -> bool:
        """Whether it took the place of another one."""
        if self.hashes == other.hashes:
            return other.id in self.former
        return digest(dict(other.hashes)) in self.former

    @property
    def without_behaviour(self) -> Fingerprint:
        """Its hashes alone."""
        return replace(self, behaviour=None)


@dataclass(frozen=True, slots=True)
class Remeasured:
    """The first rows of a collection, embedded again. same: how many give the vectors that are
    stored. differ: a line for each of the others. resampled: looks whether the resampler has
    touched any of their files; None where that is not known."""

    same: int = 0
    differ: tuple[str, ...] = ()
    resampled: Callable[[], bool | None] = lambda: None

    @property
    def count(self) -> int:
        """Rows that could be measured."""
        return self.same + len(self.differ)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two fingerprints, compared. refused: a line for each difference that makes vectors
    incomparable; empty where they are comparable. notes: on differences that make none. renewed:
    whether the behaviour of theirs counts from now on."""

    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    renewed: bool = False

    @property
    def words(self) -> str:
        """What is refused, in a line."""
        return "; ".join(line.strip() for line in self.refused)


def compare(
    ours: Fingerprint,
    theirs: Fingerprint,
    we: str = "the collection has",
    they: str = "this embedder",
    rows: Remeasured | None = None,
) -> Comparison:
    """Compare two fingerprints: equal hashes and equal behaviour, or other code, another resampler
    and equal behaviour, are comparable.

    we, they: how they are called; empty for lines without names. rows: the first rows of ours,
    embedded again by theirs. One that has taken the other's place is comparable to it.
    """
    if ours.was(theirs) or theirs.was(ours):
        return Comparison()
    names = differing(ours, theirs)
    soft = [name for name in names if name in _soft(theirs)]
    hard = [name for name in names if name not in soft]
    words = [
        *(_line(ours, theirs, name, we, they) for name in hard),
        *_code(ours, theirs, soft, we, they),
    ]
    if hard:
        return Comparison(tuple(words))
    told = rows or Remeasured()
    unlike = _unlike(ours.behaviour, theirs.behaviour, ours.hashes.get("precision"))
    untouched = unlike is not None and list(unlike) == [RESAMPLED] and told.resampled() is False
    if unlike and not untouched:
        return Comparison((*words, *unlike.values(), *_versions(ours, theirs)))
    if told.count and not told.same:
        return Comparison((*words, *told.differ, *_versions(ours, theirs)))
    if unlike is None and not told.count and set(soft) - {READER}:
        return Comparison(tuple(words))
    notes = [f"{line.strip()}; the others are as stored" for line in told.differ]
    if untouched:
        notes.append(
            "the resampler gives other values than before; no file of its rows was resampled"
        )
    if unlike is None and rows is not None and not rows.count and theirs.behaviour is not None:
        notes.append(
            "no behaviour is stored, and the files of the first rows are gone or changed: compared "
            "by hashes alone"
        )
    if soft:
        lines = "; ".join(line.strip() for line in words)
        notes.append(f"{lines}: {_proof(unlike is not None, told.same)}, so it is accepted")
    return Comparison((), tuple(notes), untouched)


def _proof(measured: bool, same: int) -> str:
    """Why a difference of programs is none of vectors."""
    if not measured and not same:
        return "nothing is there to measure it on"
    items = "made-up items" if measured else f"{same} of the first rows"
    return f"the vectors of {items} are the same"


def unlike_behaviours(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """A line for each made-up item whose vector or logits differ."""
    found = _unlike(ours.behaviour, theirs.behaviour, ours.hashes.get("precision"))
    return [*(found or {}).values()]


def version_changes(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """`versions: soxr 1.0 → 1.1`; empty where none is known."""
    return [line.strip() for line in _versions(ours, theirs)]


def differing(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """The fields in which hashes differ; code that one side has not recorded is not known."""
    names = dict.fromkeys((*ours.hashes, *theirs.hashes))
    differ = [name for name in names if ours.hashes.get(name) != theirs.hashes.get(name)]
    known = CODE in ours.hashes and CODE in theirs.hashes
    return [name for name in differ if name != CODE or known]


def _soft(fingerprint: Fingerprint) -> set[str]:
    """Fields that may differ while vectors stay the same: of programs, not of numbers."""
    own = {PREPROCESSING} if fingerprint.files.get("preprocess") else set()
    sound = fingerprint.hashes.get(READER, "").startswith("soxr")
    return {CODE} | own | ({READER} if sound else set())


def _line(ours: Fingerprint, theirs: Fingerprint, name: str, we: str, they: str) -> str:
    if not we:
        one, other = (side.hashes.get(name, "absent") for side in (ours, theirs))
        return f"  {name}: {one} against {other}"
    one, other = (_shown(side.hashes.get(name)) for side in (ours, theirs))
    return f"  {name}: {we} {one}, {they} {other}"


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return repr(value if len(value) <= 60 else value[:57] + "…")


def _code(
    ours: Fingerprint, theirs: Fingerprint, soft: Iterable[str], we: str, they: str
) -> list[str]:
    """Lines on fields that may differ; of code the files that changed."""
    lines, files = [], ""
    if ours.files and theirs.files:
        files = changed(*(_merged(side.files) for side in (ours, theirs)))
    for name in soft:
        if name == READER or not files:
            lines.append(_line(ours, theirs, name, we, they))
    return [*lines, f"  code: {files}"] if files else lines


def _merged(files: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {name: value for role in files.values() for name, value in role.items()}


def _unlike(
    ours: Behaviour | None, theirs: Behaviour | None, precision: str | None
) -> dict[str, str] | None:
    """A line for each made-up item whose vector or logits differ; None where nothing can be
    compared."""
    if ours is None or theirs is None or not set(ours.answers) & set(theirs.answers):
        return None
    if list(ours.about) != list(theirs.about):
        words = [", ".join(str(one) for one in side.about if one) for side in (ours, theirs)]
        return {"input": f"  input: made for {words[0]}; now {words[1]}"}
    lines = {}
    for name, one in ours.answers.items():
        other = theirs.answers.get(name)
        if other is None:
            continue
        what = f"a made-up item ({name})"
        line = unlike(what, one, other, precision, (ours.device, theirs.device))
        if line:
            lines[name] = f"  behaviour: {line}"
    return lines


def unlike(
    what: str,
    one: Answer,
    other: Answer,
    precision: str | None,
    devices: tuple[str, ...] = (),
    logits: float = LOGITS,
) -> str:
    """How far two answers to one item are apart, where that is more than the precision allows; in
    words. Empty where they are alike. what: the item. devices: kinds of device that gave them."""
    from penult.engines.base import EXACT, FAST, PRECISIONS
    from penult.engines.parity import relative_error

    if precision not in PRECISIONS:
        precision = EXACT
    if precision == EXACT and len(set(devices)) > 1:  # products of other lengths, and TF32
        precision = FAST
    allowed = distance_of(PRECISIONS[precision].cosine)
    found = distance(one.vector, other.vector)
    if not found <= allowed:
        return f"the vector of {what} differs by {found:.2g} of its length ({allowed:.1g} allowed)"
    if one.logits is None or other.logits is None or precision != EXACT:
        return ""
    found = relative_error([other.logits], [one.logits])
    if not found <= logits:
        return f"the logits of {what} differ by {found:.2g} of the largest ({logits:.0g} allowed)"
    return ""


def distance_of(cosine: float) -> float:
    """Between two vectors of length 1 of this cosine."""
    return float(np.sqrt(2 * (1 - cosine)))


def distance(one: FloatArray, other: FloatArray) -> float:
    """Between two vectors, relative to the length of the first; infinite for other shapes."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))


def _versions(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """A line on packages of another version, which may be the reason."""
    if ours.behaviour is None or theirs.behaviour is None:
        return []
    before, now = ours.behaviour.versions, theirs.behaviour.versions
    names = [name for name in before if now.get(name) not in (None, before[name])]
    words = ", ".join(f"{name} {before[name]} → {now[name]}" for name in names)
    return [f"  versions: {words}"] if words else []


_NO_NAME = re.compile(r"(?:class|label)[ _-]?(\d+)", re.IGNORECASE)
_SHOWN = 3  # class names in a message


def has_name(label: str, index: int) -> bool:
    """Whether a class has a name of its own, and not its number (`class_3`, `LABEL_3`)."""
    number = _NO_NAME.fullmatch(label)
    return number is None or int(number[1]) != index


def renamed(before: Sequence[str], now: Sequence[str]) -> str:
    """The classes that had another name, in words; empty where there are none. A class without a
    name may get one."""
    pairs = list(enumerate(zip(before, now, strict=False)))
    other = [
        f"class {index} was {one!r} and is {two!r} now"
        for index, (one, two) in pairs
        if one != two and has_name(one, index)
    ]
    return listed(other, _SHOWN)


def newly_named(before: Sequence[str], now: Sequence[str]) -> str:
    """The names that classes without a name have got, in words; empty where there are none."""
    new = [repr(two) for one, two in zip(before, now, strict=False) if one != two]
    return listed(new, _SHOWN)
