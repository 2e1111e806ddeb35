"""Classes fitted to examples: settings, space, method, and the judgement of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import estimate
from penult.analysis.space import AUTO, RAW, Space, fit
from penult.errors import LabelsError, SpaceError, UsageError
from penult.fewshot import scorers
from penult.fewshot.calibration import (
    FEWEST,
    LEVEL,
    Level,
    Probabilities,
    Unknowns,
    check_level,
    of_members,
    probabilities,
)
from penult.fewshot.examples import CLUSTERS, EVERY, GIVEN, ITEMS, TIME, Examples, Grouping
from penult.fewshot.scorers import (
    NO,
    YES,
    Floats,
    HeldOut,
    Linear,
    Prototypes,
    Refit,
    Scorer,
    Targets,
)
from penult.fewshot.thresholds import NO_THRESHOLDS, LabelThresholds, choose_thresholds


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a class space, as `penult.ClassSpace` takes them."""

    space: str = AUTO
    method: str | None = None
    several: bool | None = None
    unknown: float = LEVEL
    groups: str | None = None

    def __post_init__(self) -> None:
        level = self.unknown
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level < 1:
            raise LabelsError(f"unknown = {level}: it lies between 0 and 1, as 0.05")
        if self.method is not None:
            scorers.check_method(self.method)

    @classmethod
    def of(cls, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> Settings:
        """Saved settings with changes.

        Raises:
            UsageError: an unknown setting.
            LabelsError: a value that is refused.
        """
        names = cls.__dataclass_fields__
        if odd := [name for name in changed if name not in names]:
            raise UsageError(f"a class space has no setting {odd[0]!r}; it has {', '.join(names)}")
        return cls(**{**{n: v for n, v in saved.items() if n in names}, **changed})

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as a file keeps them."""
        return asdict(self)


Background = Callable[[], npt.NDArray[np.float32]]
_Z = 1.96  # of 95 %, of the normal distribution
JOINED = 20  # rows for each example, up to which examples move the space that is fitted to rows
JOINED_TO = 2000  # rows, up to which a fit takes a second at most
CENTRED_FROM = 20  # vectors, from which their mean is known well enough to subtract it


@dataclass(frozen=True, slots=True)
class Judgement:
    """Predictions of m vectors. label: the place of the best class, −1 for unknown. assigned:
    (m, K) the best class or, for several at once, all that reach their threshold. p_value: the
    probability of so low a score for a member of the classes; NaN where it is not known.
    similarity: (m, K) cosines to the means of the classes' examples, whatever the method."""

    label: npt.NDArray[np.int64]
    assigned: npt.NDArray[np.bool_]
    probability: Floats
    score: Floats
    p_value: Floats
    similarity: Floats


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What examples that were held out told; None is worked out anew.

    accuracy: of the methods that were compared when this one was chosen. thresholds: of several
    classes at once. chosen, judged: the scores of held-out examples by the chosen method, and by
    the one that tells unknowns. probabilities: the map from scores to these.
    """

    accuracy: Mapping[str, float] | None = None
    thresholds: LabelThresholds | None = None
    chosen: HeldOut | None = None
    judged: HeldOut | None = None
    probabilities: Probabilities | None = None


class FittedClasses:
    """Classes fitted to examples in a space; fitted at the first use.

    method: prototype, knn, ridge, logistic or agile; None chooses by cross-validation among the
    first four. several: whether an item may be of more than one class; None takes it from the
    examples. background: vectors of any items, the other side of the probability of one class, and
    of `agile`. groups: the speaker, site or recording of each example, or a `Grouping`; in
    cross-validation a group is scored without itself. kept: what cross-validation gave when these
    classes were fitted first; `chosen` goes with the method.

    An example that the space was fitted with (`Space.seen`) is held out of the space too.
    """

    def __init__(
        self,
        examples: Examples,
        space: Space,
        method: str | None = None,
        several: bool | None = None,
        background: Background | None = None,
        groups: Grouping | Sequence[str | None] | None = None,
        kept: CrossValidation = CrossValidation(),
    ) -> None:
        if method is not None:
            scorers.check_method(method)
        self._kept = kept
        self.names = tuple(
            name for name in examples.names if any(one.get(name) == "yes" for one in examples.marks)
        )
        if not self.names:
            raise LabelsError(
                "no class has an example yet; teach one with examples that are marked yes"
            )
        targets = examples.targets(self.names)
        used = (targets != scorers.OPEN).any(axis=1)  # unsure is never used
        self._targets: Targets = targets[used]
        self._places = np.flatnonzero(used)
        self.examples, self.space = examples, space
        self._against = any(EVERY in one for one in examples.marks)  # a background is taught
        # Heads learn what is around the classes; cross-validation only compares classes.
        self._method = "agile" if method is None and self._against else method
        self._background = background
        if groups is None:
            groups = Grouping()
        elif not isinstance(groups, Grouping):
            groups = Grouping(GIVEN, tuple(groups))
        self._given = groups
        self.several = bool((targets == YES).sum(axis=1).max(initial=0) > 1) if several is None \
            else several  # fmt: skip

    @cached_property
    def _raw(self) -> npt.NDArray[np.float32]:
        return self.examples.vectors[self._places]

    @cached_property
    def _vectors(self) -> npt.NDArray[np.float32]:
        return self.space(self._raw)

    @cached_property
    def _groups(self) -> npt.NDArray[np.int64]:
        return self._given.numbers(self.examples, self._places)

    @cached_property
    def grouping(self) -> Grouping:
        """What of the examples is held out together, with the names of clusters."""
        if self._given.kind != CLUSTERS or self._given.names is not None:
            return self._given
        found = scorers.residual_clusters(self._vectors, self._targets, self._groups)
        names: list[str | None] = [None] * len(self.examples.keys)
        for place, cluster in zip(self._places[found >= 0], found[found >= 0], strict=True):
            names[int(place)] = f"cluster {cluster}"
        return Grouping(CLUSTERS, tuple(names)) if any(names) else Grouping()

    @cached_property
    def _level_groups(self) -> npt.NDArray[np.int64]:
        """What is held out together for the level of unknowns."""
        if self.grouping.kind != CLUSTERS:
            return self._groups
        return replace(self.grouping, kind=GIVEN).numbers(self.examples, self._places)

    @cached_property
    def _refit(self) -> Refit | None:
        return refitted(self.space, self._raw)

    @property
    def _to_hold_out(self) -> npt.NDArray[np.float32]:
        return self._vectors if self._refit is None else self._raw

    @cached_property
    def _chosen(self) -> tuple[str, dict[str, float], HeldOut]:
        if self._method is not None and self._kept.chosen is not None:
            return self._method, {}, self._kept.chosen
        vectors, targets, groups = self._to_hold_out, self._targets, self._groups
        if self._method is None:
            return scorers.choose(vectors, targets, groups, self._refit)
        weak = self._weak if self._refit is None else self._weak_raw
        found = scorers.held_out(self._method, vectors, targets, groups, weak, self._refit)
        right = scorers.hits(found.scores, self._targets[found.rows])
        right = right[~np.isnan(right)]
        return self._method, {self._method: float(right.mean()) if len(right) else np.nan}, found

    @cached_property
    def _weak_raw(self) -> npt.NDArray[np.float32] | None:
        """Rows of the background, for the method that has a use for them."""
        rows = self._background() if self._method == "agile" and self._background else ()
        if not len(rows):
            return None
        drawn = np.random.default_rng(0).permutation(len(rows))[: scorers.WEAK]
        return np.asarray(rows)[np.sort(drawn)]

    @cached_property
    def _weak(self) -> npt.NDArray[np.float32] | None:
        return None if self._weak_raw is None else self.space(self._weak_raw)

    @property
    def method(self) -> str:
        """The method that was given, or chosen."""
        return self._chosen[0]

    @property
    def accuracy(self) -> dict[str, float]:
        """Cross-validated accuracy of the compared methods; NaN where the examples are too few to
        hold any out."""
        return self._chosen[1] if self._kept.accuracy is None else dict(self._kept.accuracy)

    @cached_property
    def _scorer(self) -> Scorer:
        return scorers.fit(self.method, self._vectors, self._targets, self._weak)

    @cached_property
    def _prototypes(self) -> Prototypes:
        return scorers.prototypes(self._vectors, self._targets)

    @cached_property
    def _judge_of_unknowns(self) -> Scorer:
        """Similarity to the classes, for telling unknowns: prototypes with every method. A linear
        head is fitted to separate the classes; its scores of other items mean little. Of one class
        it separates the class from all else, and the method decides."""
        return self._scorer if len(self.names) == 1 else self._prototypes

    @cached_property
    def _judged_held_out(self) -> HeldOut:
        if self._kept.judged is not None:
            return self._kept.judged
        same = self._level_groups is self._groups
        with_rows = joined(self.space, len(self._raw)) if self._refit is None else None
        if len(self.names) == 1 or (same and self.method == "prototype" and with_rows is None):
            return self._chosen[2]
        if with_rows is not None:
            return scorers.held_out(
                "prototype", self._raw, self._targets, self._level_groups,
                refit=lambda out: with_rows(self._raw[out]),
            )  # fmt: skip
        return scorers.held_out(
            "prototype", self._to_hold_out, self._targets, self._level_groups, refit=self._refit
        )

    @cached_property
    def _others(self) -> npt.NDArray[np.float32]:
        """(m, d') the background in the space."""
        rows = self._background() if self._background else np.zeros((0, self.examples.dim))
        return self.space(np.asarray(rows, np.float32))

    @cached_property
    def probabilities(self) -> Probabilities:
        """The map from scores to probabilities."""
        if self._kept.probabilities is not None:
            return self._kept.probabilities
        held = self._chosen[2]
        scores, marks = held.scores, self._targets[held.rows]
        own = self._scorer(self._vectors)
        unrelated = own[(self._targets != YES) & np.isfinite(own)]
        if len(self.names) > 1:
            return probabilities(scores, marks, self.several or self._against, unrelated)
        if len(self._others) >= FEWEST:  # nearly all of them are of other kinds
            others = self._scorer(self._others)
            scores = np.concatenate([scores, others])
            marks = np.concatenate([marks, np.full(others.shape, NO, np.int8)])
        if not ((marks == NO) & np.isfinite(scores)).any():
            return of_members(scores[np.isfinite(scores)])
        return probabilities(scores, marks, True, unrelated)

    def held_out(self) -> tuple[Floats, Targets, npt.NDArray[np.bool_]]:
        """(m, K) each: the probabilities of examples by scorers that were fitted without them (NaN
        where a class had no other member), their targets, and the classes that they may be given:
        the best one, or any of several."""
        found = self._chosen[2]
        scores = np.where(np.isnan(found.scores), -np.inf, found.scores)
        shares = self.probabilities(scores)
        best = scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])
        possible = np.isfinite(scores) & (best | self.several)
        return np.where(np.isnan(found.scores), np.nan, shares), self._targets[found.rows], possible

    @cached_property
    def thresholds(self) -> LabelThresholds:
        """The least probability of each class, where an item may be of several."""
        if self._kept.thresholds is not None or not self.several:
            return self._kept.thresholds or NO_THRESHOLDS
        shares, targets, _ = self.held_out()
        return choose_thresholds(shares, targets, self._groups[self._chosen[2].rows])

    @cached_property
    def _unknowns(self) -> Unknowns | None:
        """Held-out scores of members, for unknowns; None where there is nothing to measure on."""
        held, marks = self._judged_held_out, self._targets[self._judged_held_out.rows]
        own = ((marks == YES) & ~np.isnan(held.scores)).any(axis=1)
        if own.sum() >= FEWEST:
            # An example that every class rules out counts too: a member that is called unknown.
            found = np.sort(_best(held.scores[own]))
            basis = f"held-out scores of {len(found)} examples{self._apart}"
            linear = isinstance(self._judge_of_unknowns, Linear)
            groups = len(np.unique(self._level_groups[held.rows][own]))
            return Unknowns(found, basis, cosines=not linear, groups=groups)
        foreign = (marks == YES).any(axis=1) & ~np.isnan(held.scores).all(axis=1)
        if foreign.sum() >= FEWEST:
            return Unknowns(
                np.sort(_best(held.scores[foreign])),
                f"the {int(foreign.sum())} examples against the classes of the others: with one "
                "example of a class none can be held out. Members score higher, so the level "
                "holds, but few unknowns are found",
            )
        if len(self.names) == 1 and len(self._others) >= FEWEST:
            return Unknowns(
                np.sort(_best(self._judge_of_unknowns(self._others))),
                f"{len(self._others)} rows of the collection: about this share of them is taken "
                "for known",
                background=True,
            )
        return None

    @property
    def _group_count(self) -> int:
        return len(set(self._level_groups.tolist()))

    @property
    def _ungrouped(self) -> int:
        """Groups that are an item to which nobody has given a group."""
        named = [self.grouping.names is not None and self.grouping.names[i] is not None
                 for i in self._places]  # fmt: skip
        return self._group_count - len(set(self._level_groups[named].tolist()))

    @property
    def _apart(self) -> str:
        """What was held out together, and for what the level holds by that."""
        number, kind = self._group_count, self.grouping.kind
        if kind == TIME:
            items = len({self.examples.keys[i][0] for i in self._places})
            one = "this recording" if items == 1 else f"these {items} recordings"
            return (
                f" in {number} blocks of time: for {one}, not for others (examples of other "
                "recordings: for those too)"
            )
        if kind == ITEMS or not any(self.grouping.names or ()):
            return ", for items of the same speakers, sites and days (--groups: for others)"
        if kind == CLUSTERS:
            return (
                f" in {number} clusters, in place of speakers, sites and days that nobody named "
                "(--groups names them; --groups items has none)"
            )
        lone = self._ungrouped
        groups = f"{number - lone} group{'s' if number > lone + 1 else ''}"
        by = f" by {self.grouping.by}" if self.grouping.by else ""
        if not lone:
            return f" in {groups}{by}, for other groups"
        those = "1 item without one counts" if lone == 1 else f"{lone} items without one count"
        return f" in {groups}{by}, for other groups ({those} as other groups too, known or not)"

    def _held_out_facts(self) -> dict[str, Any]:
        """For JSON: what was held out together for the accuracy, which is of new ones of these, the
        number of examples, and a 95 % interval of the accuracy of the method."""
        kind, held = self.grouping.kind, self._chosen[2]
        right = scorers.hits(held.scores, self._targets[held.rows])
        groups = self._groups[held.rows][~np.isnan(right)]
        low, high = accuracy_interval(right[~np.isnan(right)], groups)
        kind = ITEMS if kind == CLUSTERS else kind
        return {"kind": kind, "examples": len(groups), "low": low, "high": high}

    def level(self, level: float = LEVEL) -> Level:
        """The threshold of unknowns at a level, and what it is from; without one, why.

        Raises:
            LabelsError: a level outside of 0 to 1.
        """
        check_level(level)
        if self._unknowns is None:
            return Level(None, why=self._why())
        try:
            threshold, basis = self._unknowns.threshold(level)
        except LabelsError as error:
            return Level(None, why=str(error))
        if self._unknowns.background:
            return Level(None, threshold, basis, self._why())
        alike = not self.space.is_raw and isinstance(self._judge_of_unknowns, Prototypes)
        if alike and threshold <= 0:
            return Level(
                None,
                why=f"held-out examples are as unlike their class as any vector is (cosine "
                f"{threshold:.3f} at {level:g} in the space {self.space.recipe}{self._apart}); "
                "more examples, other rows in the collection or --space raw may tell more",
            )
        low, high = self._unknowns.interval(level) or (None, None)
        return Level(level, threshold, basis, low=low, high=high)

    def _why(self) -> str:
        """Why no level is known."""
        n, groups = len(self._places), len(set(self._groups.tolist()))
        k, s = len(self.names), "" if len(self.names) == 1 else "es"
        if self._refit is unseen:
            return (
                f"the space {self.space.recipe} was fitted with labels of items that it does not "
                "name, so that no example is known to be new to it; penult choose makes one that "
                "names them"
            )
        if groups == 1 and n > 1:
            return (
                f"the {n} examples are of one group or item, so that none can be held out; give "
                "examples of other groups, or no --groups"
            )
        return (
            f"{groups} example{'' if groups == 1 else 's'} of {k} class{s} in all: too few to hold "
            "any out; give three classes, or three examples of one"
        )

    def judge(
        self, vectors: npt.ArrayLike, level: float | None = None, least: float | None = None
    ) -> Judgement:
        """The predictions of raw vectors (m, d). level: the share of members of known classes that
        is called unknown, at most; None or 0, or a level that no data support, calls only those
        unknown that every class rules out. least: the least probability of an assigned class; for
        several at once it takes the place of the thresholds. An item of no class is unknown.
        """
        rows = self.space(np.atleast_2d(np.asarray(vectors, np.float32)))
        scores = self._scorer(rows)
        judged = _best(self._judge_of_unknowns(rows))
        shares = self.probabilities(scores)
        p_values = np.full(len(rows), np.nan)
        if self._unknowns is not None and not self._unknowns.background:
            p_values = self._unknowns.p_values(judged)
        label = np.where(np.isneginf(scores).all(axis=1), -1, scores.argmax(axis=1))
        if level and (threshold := self.level(level).threshold) is not None:
            label = np.where(judged < threshold, -1, label)
        if self._against and isinstance(self._scorer, Linear):  # every head takes it for background
            label = np.where(scores.max(axis=1) < 0, -1, label)
        assigned = label[:, None] == np.arange(scores.shape[1])
        if self.several and least is None:
            assigned = self.thresholds.assigned(shares, label) & (label >= 0)[:, None]
        elif least is not None:
            assigned = (assigned | self.several) & (shares >= least) & (label >= 0)[:, None]
        best = np.where(assigned, shares, -1.0).argmax(axis=1)
        held = assigned[np.arange(len(label)), label]  # which decides among equal probabilities
        label = np.where(assigned.any(axis=1), np.where(held, label, best), -1)
        similarity = self._prototypes.similarity(rows)
        return Judgement(label, assigned, shares, scores, p_values, similarity)

    def nearest(self, vectors: npt.ArrayLike, k: int) -> list[list[tuple[int, float]]]:
        """For each raw vector its k nearest examples among those that are used: (the place among
        all examples, cosine), nearest first."""
        rows = self.space(np.atleast_2d(np.asarray(vectors, np.float32)))
        places, cosines = scorers.nearest(rows, self._vectors, k)
        return [
            [(int(self._places[i]), float(cosine)) for i, cosine in zip(*one, strict=True)]
            for one in zip(places, cosines, strict=True)
        ]

    def to_dict(self, level: float = 0) -> dict[str, Any]:
        """For JSON: the classes and the basis of predictions at this level of unknowns, as
        `penult predict --json` prints it."""
        return {
            "classes": list(self.names),
            "method": self.method,
            "accuracy": self.accuracy,
            "held_out": self._held_out_facts(),
            "space": self.space.recipe,
            "several": self.several,
            **self.thresholds.facts(self.names if self.several else ()),
            "groups": {
                "kind": self.grouping.kind,
                "by": self.grouping.by,
                "number": self._group_count,
            },
            "probabilities": self.probabilities.basis,
            "unknown": asdict(self.level(level)) if level else None,
        }


def prototype(fitted: FittedClasses, name: str) -> Floats:
    """(d',) the mean of a class's examples in the space of the classes, of length one."""
    mean: Floats = fitted._prototypes.means[fitted.names.index(name)]
    return mean


def cross_validation(fitted: FittedClasses) -> CrossValidation:
    """What held-out examples told, for a version to keep."""
    return CrossValidation(fitted.accuracy, fitted.thresholds, fitted._chosen[2],
                           fitted._judged_held_out, fitted.probabilities)  # fmt: skip


def accuracy_interval(right: Floats, groups: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The ends of a 95 % interval of the share of ones among these (n,), NaN of none: that of
    Wilson (1927) for n draws, and where groups (n,) are fewer, by a bootstrap over these too,
    whatever is farther."""
    if not (n := len(right)):
        return math.nan, math.nan
    share = float(right.mean())
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    if 1 < len(np.unique(groups)) < n:
        drawn = estimate(right, groups)
        low, high = min(low, drawn.low), max(high, drawn.high)
    return low, high


def unseen(_: npt.NDArray[np.bool_]) -> Space:
    """A `Refit` of a space that does not name the items whose labels it was fitted with.

    Raises:
        SpaceError: always.
    """
    raise SpaceError("the items that it was fitted with are not known")


def refitted(space: Space, examples: npt.NDArray[np.float32]) -> Refit | None:
    """The space fitted without some of these raw vectors (n, d); None where it has seen none."""
    seen = space.seen
    if seen is None:
        return unseen if "within" in space.recipe.split("+") else None
    places = np.concatenate([seen.places(examples[i : i + 1000])
                             for i in range(0, len(examples), 1000)])  # fmt: skip
    if (places < 0).all():
        return None
    fitted: dict[bytes, Space] = {}

    def without(out: npt.NDArray[np.bool_]) -> Space:
        rows = seen.beside(places[out])
        if (key := rows.tobytes()) not in fitted:
            fitted[key] = space.without(rows)
        return fitted[key]

    return without


def joined(space: Space, count: int) -> Callable[[npt.NDArray[np.float32]], Space] | None:
    """From some of these examples, raw, to the space fitted to its rows and to them: rows of the
    collection that are asked about took part in it, and held-out members have to as well, or they
    are nearer to their classes than those. None where so few examples move nothing."""
    rows = space.others
    if rows is None or space.is_raw or len(rows) > min(JOINED * count, JOINED_TO):
        return None
    return lambda more: fit(space.recipe, np.concatenate([rows, more]))


def fit_space(recipe: str, vectors: npt.NDArray[np.float32]) -> Space:
    """A recipe fitted to these vectors; `auto` subtracts their mean where there are enough of them.
    Vectors with a large common part have cosines that hardly separate unknown from known."""
    if recipe == AUTO:
        recipe = "centre" if len(vectors) >= CENTRED_FROM else RAW
    return fit(recipe, vectors)


def _best(scores: Floats) -> Floats:
    """(m,): the highest score of each row, without the classes that were not scored."""
    return np.asarray(np.where(np.isnan(scores), -np.inf, scores).max(axis=1))
