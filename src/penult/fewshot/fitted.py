"""Classes fitted to examples: the settings, the space, the method, and the judgement of a
vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis import space
from penult.analysis.space import AUTO, Space
from penult.errors import LabelsError, UsageError
from penult.fewshot import scorers
from penult.fewshot.calibration import FEWEST, LEVEL, Probabilities, Unknowns, probabilities
from penult.fewshot.examples import Examples
from penult.fewshot.scorers import METHODS, NO, YES, Floats, HeldOut, Scorer, Targets


@dataclass(frozen=True, slots=True)
class Settings:
    """See `penult.ClassSpace`, which takes these."""

    space: str = AUTO
    method: str | None = None
    several: bool | None = None
    unknown: float = LEVEL
    groups: str | None = None

    def __post_init__(self) -> None:
        level = self.unknown
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level < 1:
            raise LabelsError(f"unknown = {level}: it lies between 0 and 1, as 0.05")
        if self.method is not None and self.method not in METHODS:
            raise LabelsError(
                f"method {self.method!r} is not known; {', '.join(METHODS)} work, and without one "
                "it is chosen"
            )

    @classmethod
    def of(cls, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> Settings:
        """Those that were saved, with changes.

        Raises:
            UsageError: a change of what is no setting.
            LabelsError: a value that cannot be.
        """
        names = cls.__dataclass_fields__
        if odd := [name for name in changed if name not in names]:
            raise UsageError(f"a class space has no setting {odd[0]!r}; {', '.join(names)} are")
        return cls(**{**{n: v for n, v in saved.items() if n in names}, **changed})

    def to_dict(self) -> dict[str, Any]:
        """As a file keeps them."""
        return asdict(self)


Background = Callable[[], npt.NDArray[np.float32]]
CENTRED_FROM = 20  # vectors, from which their mean is worth taking away
_SAID = 0.5  # the probability from which one of several classes is said


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of m vectors. label: the place of the best class, −1 for unknown. said: (m, K)
    the classes that are said, one of them or, for several at once, all that are more probable than
    not. p_value: how usual such a score is for members of the classes; NaN where nothing tells."""

    label: npt.NDArray[np.int64]
    said: npt.NDArray[np.bool_]
    probability: Floats
    score: Floats
    p_value: Floats


class FittedClasses:
    """Examples in a space, ready to judge vectors. Fitted when it is first asked.

    method: prototype, knn, ridge or logistic; None chooses by cross-validation. several: whether
    an item may be of more than one class; None sees it from the examples. background: vectors of
    anything, for thresholds where the examples are too few. groups: for each example what it must
    not share with those that it is scored by: its speaker, site or recording.
    """

    def __init__(
        self,
        examples: Examples,
        space: Space,
        method: str | None = None,
        several: bool | None = None,
        background: Background | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> None:
        if method is not None and method not in scorers.METHODS:
            raise LabelsError(
                f"method {method!r} is not known; {', '.join(scorers.METHODS)} work, and without "
                "one it is chosen"
            )
        self.names = tuple(
            name for name in examples.names if any(one.get(name) == "yes" for one in examples.marks)
        )
        if not self.names:
            raise LabelsError(
                "no class has an example yet; teach one with examples that are marked yes"
            )
        targets = examples.targets(self.names)
        kept = (targets != scorers.OPEN).any(axis=1)  # unsure is never used
        self._targets: Targets = targets[kept]
        self._places = np.flatnonzero(kept)
        self.examples, self.space = examples, space
        self._asked, self._background = method, background
        self._named = None if groups is None else [groups[int(i)] for i in self._places]
        self.several = bool((targets == YES).sum(axis=1).max(initial=0) > 1) if several is None \
            else several  # fmt: skip

    @cached_property
    def _vectors(self) -> npt.NDArray[np.float32]:
        return self.space(self.examples.vectors[self._places])

    @cached_property
    def _groups(self) -> npt.NDArray[np.int64]:
        ids = [self.examples.keys[i][0] for i in self._places]
        return scorers.groups_of(self.examples.vectors[self._places], ids, self._named)

    @cached_property
    def _chosen(self) -> tuple[str, dict[str, float], HeldOut]:
        if self._asked is None:
            return scorers.choose(self._vectors, self._targets, self._groups)
        found = scorers.held_out(self._asked, self._vectors, self._targets, self._groups)
        right = scorers.hits(found.scores, self._targets[found.rows])
        right = right[~np.isnan(right)]
        return self._asked, {self._asked: float(right.mean()) if len(right) else np.nan}, found

    @property
    def method(self) -> str:
        """The method, as asked or as chosen."""
        return self._chosen[0]

    @property
    def accuracy(self) -> dict[str, float]:
        """Cross-validated accuracy of the methods that were compared; NaN where there were too few
        examples to hold any out."""
        return self._chosen[1]

    @cached_property
    def _scorer(self) -> Scorer:
        return scorers.fit(self.method, self._vectors, self._targets)

    @cached_property
    def _near(self) -> Scorer:
        """What tells how like any class a vector is: prototypes, whatever names the class. A head
        is told to separate the classes and says little of what is none of them."""
        return scorers.fit("prototype", self._vectors, self._targets)

    @cached_property
    def _near_held_out(self) -> HeldOut:
        if self.method == "prototype":
            return self._chosen[2]
        return scorers.held_out("prototype", self._vectors, self._targets, self._groups)

    @cached_property
    def probabilities(self) -> Probabilities:
        """How scores become probabilities."""
        held = self._chosen[2]
        marks = self._targets[held.rows]
        scores = self._scorer(self._vectors)
        unrelated = scores[(self._targets != YES) & np.isfinite(scores)]
        return probabilities(held.scores, marks, self.several or len(self.names) == 1, unrelated)

    @cached_property
    def unknowns(self) -> Unknowns | None:
        """What tells unknown from known; None where there is nothing to measure it on."""
        held, marks = self._near_held_out, self._targets[self._near_held_out.rows]
        own = ((marks == YES) & ~np.isnan(held.scores)).any(axis=1)
        if own.sum() >= FEWEST:
            # One that every class rules out counts too: it is a member that is called unknown.
            found = np.sort(_best(held.scores[own]))
            return Unknowns(found, f"held-out scores of {len(found)} examples")
        foreign = (marks == YES).any(axis=1) & ~np.isnan(held.scores).all(axis=1)
        if foreign.sum() >= FEWEST:
            return Unknowns(
                np.sort(_best(held.scores[foreign])),
                f"the {int(foreign.sum())} examples against the classes of the others: with one "
                "example of a class none can be held out. Members score higher, so the level "
                "holds, but few unknowns are found",
            )
        rows = self._background() if self._background else np.zeros((0, self.examples.dim))
        if len(rows) >= FEWEST:
            return Unknowns(
                np.sort(_best(self._near(self.space(rows)))),
                f"{len(rows)} rows of the collection, since the examples are too few: about this "
                "share of the rows is taken for known",
                background=True,
            )
        return None

    def threshold(self, level: float) -> tuple[float, str]:
        """(the score below which a vector is unknown, what the level rests on).

        Raises:
            LabelsError: there is nothing to rest it on.
        """
        if self.unknowns is None:
            n = len(set(self._groups.tolist()))
            raise LabelsError(
                f"{n} example{'s' if n != 1 else ''} of {len(self.names)} "
                f"class{'es' if len(self.names) != 1 else ''} in all cannot tell what is unknown: "
                "give three classes or three examples of one, predict with a collection, whose "
                "rows serve as background, or do without unknowns (--unknown 0)"
            )
        return self.unknowns.threshold(level)

    def judge(self, vectors: npt.ArrayLike, level: float | None = None) -> Judgement:
        """What each raw vector (m, d) is. level: about this share of the members of known classes
        is called unknown, at most; None or 0 calls nothing unknown, but what every class rules out.
        """
        rows = self.space(np.atleast_2d(np.asarray(vectors, np.float32)))
        scores = self._scorer(rows)
        near = _best(self._near(rows))
        shares = self.probabilities(scores)
        usual = np.full(len(rows), np.nan)
        if self.unknowns is not None:
            usual = self.unknowns.p_values(near)
        of_members = self.unknowns is not None and not self.unknowns.background
        one_sided = len(self.names) == 1 and not (self._targets == NO).any()
        if one_sided:  # nothing says what the class is not: how usual the score is has to serve
            shares = np.nan_to_num(usual, nan=1.0)[:, None]
        label = np.where(np.isneginf(scores).all(axis=1), -1, scores.argmax(axis=1))
        if level:
            label = np.where(near < self.threshold(level)[0], -1, label)
        said = np.zeros(scores.shape, bool)
        known = np.flatnonzero(label >= 0)
        said[known, label[known]] = True
        if self.several:
            said[known] |= shares[known] >= _SAID
        p_value = usual if of_members else np.full(len(rows), np.nan)
        return Judgement(label, said, shares, scores, p_value)

    def nearest(self, vectors: npt.ArrayLike, k: int) -> list[list[tuple[int, float]]]:
        """For each raw vector its k nearest examples among those that are used: (the place among
        all examples, cosine), nearest first."""
        rows = self.space(np.atleast_2d(np.asarray(vectors, np.float32)))
        places, alike = scorers.nearest(rows, self._vectors, k)
        return [
            [(int(self._places[i]), float(a)) for i, a in zip(one, other, strict=True)]
            for one, other in zip(places, alike, strict=True)
        ]


def fitted(recipe: str, cloud: npt.NDArray[np.float32]) -> Space:
    """A recipe fitted to these vectors; `auto` takes their mean away where there are enough to know
    it. Without that, cosines of vectors that all lean one way hardly tell unknown from known."""
    if recipe == AUTO:
        recipe = "centre" if len(cloud) >= CENTRED_FROM else space.RAW
    return space.fit(recipe, cloud)


def _best(scores: Floats) -> Floats:
    """(m,): the highest score of each row, without the classes that were not scored."""
    return np.asarray(np.where(np.isnan(scores), -np.inf, scores).max(axis=1))
