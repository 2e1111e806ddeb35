"""Verification of a collection's rows: all pairs of names, or the trials of a file, with enrolment
of several utterances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from posixpath import splitext
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, Space, unit
from penult.analysis.verification import (
    TOP,
    USUAL,
    Cohort,
    Flags,
    Floats,
    OperatingPoint,
    Pairs,
    Rows,
    Verification,
    cosines,
    measured,
    s_norm,
    verify,
)
from penult.collection.collection import Collection
from penult.collection.labels import labelled, span_groups
from penult.collection.schema import Key
from penult.collection.schema import keys as keys_of
from penult.collection.search import QueryPart, query_vectors
from penult.collection.spaces import meant
from penult.data.files import write_file
from penult.errors import LabelsError, UsageError, cause, listed
from penult.fewshot.fitted import fit_space
from penult.fewshot.marks import sample

_KINDS = {"target": True, "nontarget": False, "1": True, "0": False}
_COHORT = 5000  # rows of a cohort at most


def verify_collection(
    collection: Collection,
    by: str,
    groups: str | None = None,
    where: str | None = None,
    space: str = AUTO,
    false_accepts: float = 0.01,
    point: OperatingPoint = USUAL,
    cohort: int = 0,
) -> tuple[Verification, Space]:
    """(verification of the rows that a filter leaves, the space that they are compared in). Two
    annotations of one span are no pair. groups, cohort: as for `analysis.verification.verify`.

    Raises:
        LabelsError: no row has a name, or no pair of the same name or of different ones.
    """
    found = labelled(collection.reader, [by, *([groups] if groups else [])], where)
    if not len(found.vectors):
        raise LabelsError(f"no row of {collection.path} matches the filter")
    fitted = _space(collection, space)
    grouped = found.names[groups] if groups else span_groups(found.row_keys)
    moved, names = fitted(found.vectors), found.names[by]
    return verify(moved, names, grouped, false_accepts, point=point, cohort=cohort), fitted


def same_or_different(
    collection: Collection,
    space: Space,
    pair: Sequence[str],
    device: str = "auto",
    part: QueryPart = QueryPart(),
) -> float:
    """The cosine of two files or rows in the space.

    Raises:
        UsageError: a file that rows of the collection have several parts of.
    """
    opener = partial(collection.embedder, device=device)
    read = [query_vectors(collection.reader, one, opener, part) for one in pair]
    for name, one in zip(pair, read, strict=True):
        if len(one.regions) > 1:
            raise UsageError(
                f"{name} has {len(one.regions)} parts ({listed(one.regions, 3)}), as rows of "
                f"{collection.path} are made, and a pair is of two vectors; --channel chooses a "
                "channel, --start and --end a part of both"
            )
    vectors = np.concatenate([one.vectors for one in read])
    one, other = unit(space(vectors).astype(np.float64))
    return float(one @ other)


def _space(collection: Collection, space: str) -> Space:
    return meant(collection.reader, space) or fit_space(space, sample(collection))


@dataclass(frozen=True, slots=True)
class Trials:
    """Pairs to be judged. left, right: (m,) numbers of `models`, and of `tests`. same: (m,).
    score_first: whether the score stands before the names, as in VoxCeleb's lists."""

    models: tuple[str, ...]
    tests: tuple[str, ...]
    left: Rows
    right: Rows
    same: Flags
    score_first: bool

    def lines(self, scores: Floats) -> Iterator[bytes]:
        """A score file, in the order and the form of the trials."""
        for left, right, score in zip(self.left, self.right, scores.tolist(), strict=True):
            names = f"{self.models[left]} {self.tests[right]}"
            line = f"{score:.6f} {names}" if self.score_first else f"{names} {score:.6f}"
            yield f"{line}\n".encode()


def read_trials(path: Path) -> Trials:
    """The trials of a file: `utt1 utt2 target` or `nontarget` (Kaldi), or `1 utt1 utt2` or `0 …`
    (VoxCeleb), one a line.

    Raises:
        LabelsError: it cannot be read, a line has another form, or one kind of trial is missing.
    """
    rows: list[tuple[str, str, bool]] = []
    first: set[bool] = set()
    for number, parts in _lines(path):
        voxceleb = len(parts) == 3 and parts[0] in ("0", "1") and parts[2] not in _KINDS
        kind = parts[0] if voxceleb else parts[-1]
        if len(parts) != 3 or kind not in _KINDS or len(first | {voxceleb}) > 1:
            raise LabelsError(
                f"{path}, line {number}: {' '.join(parts)!r} is no trial of one form; each line is "
                "`utt1 utt2 target` (or nontarget), or each `1 utt1 utt2` (or 0), without spaces "
                "in names"
            )
        first.add(voxceleb)
        one, other = parts[1:] if voxceleb else parts[:2]
        rows.append((one, other, _KINDS[kind]))
    same = np.array([row[2] for row in rows], bool)
    if not same.any() or same.all():
        raise LabelsError(
            f"{path} has {int(same.sum())} target and {int((~same).sum())} nontarget trials; both "
            "kinds are needed to measure anything"
        )
    models, left = _numbered([row[0] for row in rows])
    tests, right = _numbered([row[1] for row in rows])
    return Trials(models, tests, left, right, same, True in first)


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], Rows]:
    """The different names in their order, and the number of each."""
    places = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return tuple(places), np.array([places[name] for name in names], np.int64)


def read_enrolment(path: Path) -> dict[str, list[str]]:
    """The utterances of each model: `model utt1 utt2 …`, one a line (Kaldi's spk2utt).

    Raises:
        LabelsError: it cannot be read, a model has no utterance or stands twice.
    """
    found: dict[str, list[str]] = {}
    for number, (model, *utterances) in _lines(path):
        if not utterances or model in found:
            what = "stands twice" if utterances else "has no utterance"
            raise LabelsError(f"{path}, line {number}: the model {model!r} {what}; each line is "
                              "`model utt1 utt2 …`")  # fmt: skip
        found[model] = utterances
    return found


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise LabelsError(f"{path} cannot be read: {cause(error)}") from error
    yield from ((at, parts) for at, line in enumerate(lines, 1) if (parts := line.split()))


@dataclass(frozen=True, slots=True)
class TrialScores:
    """Scored trials. utterances: how many rows' items they name. enrolled: models of several
    utterances. notes: what a reader of the figures should know."""

    trials: Trials
    scores: Floats
    verification: Verification
    space: Space
    utterances: int
    enrolled: int
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """The score file, in the form of the trials."""
        return write_file(path, self.trials.lines(self.scores))

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult verify --trials … --json` prints it."""
        counts = {"utterances": self.utterances, "enrolled": self.enrolled}
        return {**self.verification.to_dict(), **counts, "space": self.space.recipe,
                "notes": list(self.notes)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """Settings of scored trials. where: rows that an utterance may be. s_norm: normalise scores by
    a cohort; cohort: a filter of its rows, None for those that no trial names (all, where these
    are fewer than the scores are normalised by)."""

    where: str | None = None
    space: str = AUTO
    false_accepts: float = 0.01
    point: OperatingPoint = USUAL
    s_norm: bool = False
    cohort: str | None = None


def verify_trials(
    collection: Collection,
    trials: Trials,
    enrolment: Mapping[str, Sequence[str]] | None = None,
    settings: TrialSettings = TrialSettings(),
) -> TrialScores:
    """Score trials by the cosine of their sides, each the mean of the directions of its vectors.

    The name of an utterance is the id of an item, or the end of its path, with or without its
    suffix. enrolment: the utterances of models; any other name on the left is an utterance.

    Raises:
        LabelsError: an utterance that is no row, or the name of several items.
    """
    known = enrolment or {}
    enrolled = {name: list(known[name]) for name in trials.models if name in known}
    sides = [enrolled.get(name, [name]) for name in trials.models]
    asked = list(dict.fromkeys([*(one for side in sides for one in side), *trials.tests]))
    fitted = _space(collection, settings.space)
    table, vectors = collection.vectors(settings.where)
    keys = keys_of(table)
    places = _places(collection, settings.where, keys, asked)
    rows = unit(fitted(vectors).astype(np.float64))
    utterances = {name: rows[at].mean(axis=0) for name, at in places.items()}
    left = np.stack([np.mean([unit(utterances[u]) for u in side], axis=0) for side in sides])
    right = np.stack([utterances[name] for name in trials.tests])
    pairs = Pairs(trials.left, len(left) + trials.right, trials.same, len(trials.same))
    both = np.concatenate([left, right])
    scores = cosines(both, pairs)
    speakers, notes = _speakers(trials, sides, asked)
    if settings.s_norm:
        owners = {keys[row]: speakers[name] for name, at in places.items() for row in at}
        cohort, note = _cohort(collection, settings, fitted, (keys, rows), owners)
        sides_of = np.array([speakers[one[0]] for one in [*sides, *([t] for t in trials.tests)]])
        scores = s_norm(scores, pairs, cohort.statistics(both, sides_of))
        notes = (*notes, note)
    names = Pairs(
        np.array([speakers[side[0]] for side in sides])[trials.left],
        np.array([speakers[name] for name in trials.tests])[trials.right],
        trials.same,
        len(trials.same),
    )
    found = measured(scores, names, settings.false_accepts, point=settings.point)
    several = sum(len(side) > 1 for side in enrolled.values())
    return TrialScores(trials, scores, found, fitted, len(asked), several, notes)


def _places(
    collection: Collection, where: str | None, keys: Sequence[Key], asked: Sequence[str]
) -> dict[str, list[int]]:
    """The rows of each utterance: of the item with this id, or whose path ends so."""
    wanted, depths = set(asked), {name.count("/") + 1 for name in asked}
    items: dict[str, dict[str, list[int]]] = {}
    for at, (id, _) in enumerate(keys):
        for name in _called(id, depths) & wanted:
            items.setdefault(name, {}).setdefault(id, []).append(at)
    if missing := [name for name in asked if name not in items]:
        rows_of = f"{collection.path}{' where ' + where if where else ''}"
        raise LabelsError(
            f"{len(missing):,} of {len(asked):,} utterances are no rows of {rows_of}, the "
            f"first {missing[0]!r}; a name is the id of an item or the end of its path, with or "
            "without its suffix. Embed them first, or take their trials out"
        )
    found = {}
    for name in asked:
        of = items[name]
        if len(of) > 1 and name not in of:
            one, other = list(of)[:2]
            raise LabelsError(
                f"the utterance {name!r} is {len(of)} items of {collection.path}, as {one} and "
                f"{other}; name it with more of its path, or leave rows out with --where"
            )
        rows = of[name] if name in of else next(iter(of.values()))
        summary = [at for at in rows if keys[at][1] == "summary"]
        found[name] = summary or rows
    return found


def _called(id: str, depths: Iterable[int]) -> set[str]:
    """The names by which an item may be meant: its id, the last parts of it, these without the
    suffix."""
    parts = id.split("/")
    tails = {id, *("/".join(parts[-depth:]) for depth in depths if depth <= len(parts))}
    return tails | {splitext(tail)[0] for tail in tails}


def _speakers(
    trials: Trials, sides: Sequence[Sequence[str]], utterances: Sequence[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """A number for the speaker of each utterance: target trials and enrolment join theirs."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    at = {name: place for place, name in enumerate(utterances)}
    joined = [(at[side[0]], at[one]) for side in sides for one in side]
    first, tests = (np.array([at[one] for one in names]) for names in (
        [side[0] for side in sides], trials.tests))  # fmt: skip
    left, right = first[trials.left], tests[trials.right]
    targets = np.stack([left, right], axis=1)[trials.same]
    edges = np.concatenate([np.array(joined, np.int64).reshape(-1, 2), targets])
    shape = (len(utterances), len(utterances))
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape)
    speakers = connected_components(graph, directed=False)[1]
    odd = int((speakers[left] == speakers[right])[~trials.same].sum())
    of_test = {name: place for place, name in enumerate(trials.tests)}
    own = [number * len(of_test) + of_test[one] for number, side in enumerate(sides)
           for one in side if one in of_test]  # fmt: skip
    alike = int(np.isin(trials.left * len(of_test) + trials.right, own).sum())
    told = [
        (odd, "nontarget trials are of utterances that target trials join to one speaker"),
        (alike, "trials compare an utterance with itself, which is no evidence"),
    ]
    notes = tuple(f"{count:,} {what}" for count, what in told if count)
    return dict(zip(utterances, speakers.tolist(), strict=True)), notes


def _cohort(
    collection: Collection,
    settings: TrialSettings,
    fitted: Space,
    named: tuple[Sequence[Key], npt.NDArray[Any]],
    owners: Mapping[Key, int],
) -> tuple[Cohort, str]:
    """The rows that scores are normalised by, and a note on them. named: the rows that an utterance
    may be, with their keys. owners: the speakers of those that trials name."""
    others = "of other speakers, as far as trials tell"
    if settings.cohort is not None:
        table, raw = collection.vectors(settings.cohort, most=_COHORT)
        vectors, owner = fitted(raw), _numbers(owners, keys_of(table))
        note = f"scores normalised by {len(vectors):,} rows where {settings.cohort}"
        return Cohort(vectors, owner), f"{note}, {others}" if (owner >= 0).any() else note
    keys, rows = named
    owner = _numbers(owners, keys)
    free = np.flatnonzero(owner < 0)
    kept, what = (free, "that no trial names") if len(free) >= TOP else (
        np.arange(len(rows)), others)  # fmt: skip
    if len(kept) > _COHORT:
        kept = np.sort(np.random.default_rng(0).choice(kept, _COHORT, replace=False))
    return Cohort(rows[kept], owner[kept]), f"scores normalised by {len(kept):,} rows {what}"


def _numbers(owners: Mapping[Key, int], keys: Sequence[Key]) -> Rows:
    """The speaker of each row; −1 where no trial names it."""
    return np.array([owners.get(key, -1) for key in keys], np.int64)
