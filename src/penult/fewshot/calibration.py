"""Calibration: scores to probabilities (temperature, Platt), and p-values for unknowns (conformal).

Numpy in, small dataclasses out; knows no classes' names, no model and no collection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError
from penult.fewshot.scorers import OPEN, YES, Floats, Targets

LEVEL = 0.05
FEWEST = 3  # scores, below which their spread is not estimated
_SAME = 1e-6  # scores that lie no farther apart are one: two examples, each scored by the other
_SPREAD = 1.2  # the temperature that is guessed, in standard deviations of unrelated scores
_GUESS = 0.3  # the temperature where even these are too few
_STEEPEST = 1e-3


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Scores (m, K) as probabilities: a softmax of scores / temperature (Guo et al., 2017), or, for
    several classes at once, a sigmoid of (scores − offset) / temperature each (Platt, 1999).

    basis: in words, the data that the figures were fitted to.
    """

    temperature: float
    offset: float = 0.0
    several: bool = False
    basis: str = ""

    def __call__(self, scores: Floats) -> Floats:
        """(m, K) → (m, K). A class that is ruled out (minus infinity) has probability 0."""
        values = (scores - self.offset) / self.temperature
        if self.several:
            from scipy.special import expit

            return np.asarray(expit(values))
        top = values.max(axis=1, keepdims=True)
        exponent = np.exp(values - np.where(np.isfinite(top), top, 0.0))
        total = exponent.sum(axis=1, keepdims=True)
        return np.asarray(exponent / np.where(total > 0, total, 1.0))


@dataclass(frozen=True, slots=True)
class Unknowns:
    """Unknowns are items with a lower score than almost all of these.

    scores: ascending, of held-out examples; minus infinity where every class ruled one out. basis:
    in words, where they are from and what the level means. background: the scores are of any items
    instead of members, and the level is the share of them that is taken for known. cosines: the
    scores are cosines of members to their class. groups: what was held out together, for new ones
    of which the level holds; 0 where the scores are of no members.
    """

    scores: Floats
    basis: str
    background: bool = False
    cosines: bool = False
    groups: int = 0

    def p_values(self, scores: Floats) -> Floats:
        """(m,) the probability that a member of a known class scores as low as this; with a
        background, the share of it that scores no higher.

        Conformal (Vovk et al., 2005): the rank among the held-out scores, which needs no
        assumption but that examples and members are drawn alike; never below 1 / (n + 1).
        """
        below = np.searchsorted(self.scores, scores, side="right")
        if self.background:
            return np.asarray(below / len(self.scores), np.float64)
        return np.asarray((1.0 + below) / (len(self.scores) + 1.0), np.float64)

    def threshold(self, level: float = LEVEL) -> tuple[float, str]:
        """(the score below which an item is unknown at this level, the basis of it in words).

        level: the share of the items of known classes that is called unknown, at most. With fewer
        scores than a rank needs, a t distribution is fitted to them; cosines of members lean to the
        left, so that it is fitted to their inverse hyperbolic tangent (Fisher, 1915).

        Raises:
            LabelsError: a level outside of 0 to 1, or too few scores for a distribution.
        """
        check_level(level)
        n = len(self.scores)
        if self.background:
            return float(np.quantile(self.scores, 1.0 - level, method="higher")), self.basis
        place = math.floor(level * (n + 1) + 1e-9)  # 0.29 · 100 is 28.999…
        if place >= 1:
            return float(self.scores[place - 1]), f"{self.basis}; by rank (conformal)"
        finite = self.scores[np.isfinite(self.scores)]
        finite = finite[np.diff(finite, prepend=-np.inf) > _SAME]
        if (n := len(finite)) < FEWEST:
            raise LabelsError(
                f"{n} held-out scores are too few to tell unknowns (equal ones count once); "
                f"{FEWEST} are needed. Give more examples, or do without unknowns (unknown=0)"
            )
        from scipy.stats import t

        if self.cosines:
            finite = np.arctanh(np.clip(finite, _SAME - 1.0, 1.0 - _SAME))
        spread = float(finite.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n)
        value = float(finite.mean()) + float(t.ppf(level, n - 1)) * spread
        return math.tanh(value) if self.cosines else value, (
            f"{self.basis}; by a t distribution, since a rank at {level:g} needs "
            f"{math.ceil(1 / level) - 1} scores"
        )

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """(low, high): where the real share lies with 95 % for these very examples; None where the
        scores are of no members.

        A threshold by the rank k of n draws has a real share with the distribution
        Beta(k, n + 1 − k) (Vovk, 2012), of which the level is the mean. Members of one group are
        alike and count as one draw.
        """
        if not self.groups:
            return None
        from scipy.stats import beta

        n = self.groups + 1.0
        low, high = beta.ppf([0.025, 0.975], level * n, (1.0 - level) * n)
        return float(low), float(high)


def check_level(level: float) -> None:
    """Refuse a level outside of 0 to 1.

    Raises:
        LabelsError: it is.
    """
    if not 0.0 < level < 1.0:
        raise LabelsError(f"unknown at a level of {level:g}: it lies between 0 and 1, as 0.05")


@dataclass(frozen=True, slots=True)
class Level:
    """A level of unknowns. level: the share of the items of known classes that is called unknown,
    at most; None where no data support one, and `why`. threshold: the score below which an item is
    unknown; None where nothing is called so. basis: in words, what the threshold is from. low,
    high: of the real share, for as many groups as were held out, see `Unknowns.interval`; None
    where that is not known."""

    level: float | None
    threshold: float | None = None
    basis: str | None = None
    why: str | None = None
    low: float | None = None
    high: float | None = None


def probabilities(scores: Floats, targets: Targets, several: bool, unrelated: Floats) -> (
    Probabilities
):  # fmt: skip
    """Fit temperature (and offset) to held-out scores (m, K), NaN where there is none, by the
    likelihood of the marks. unrelated: (n,) scores of examples for classes other than their own;
    where nothing was held out, the temperature is guessed from their spread.
    """
    spread = float(unrelated.std()) if len(unrelated) >= FEWEST else 0.0
    guess = _SPREAD * spread if spread > 0 else _GUESS
    return _platt(scores, targets, guess) if several else _tempered(scores, targets, guess)


def of_asked(scores: Floats, truth: npt.NDArray[np.bool_], unrelated: Floats) -> Probabilities:
    """The probability of one class by the share of members among rows (n,) that were asked about,
    held out. Rows were chosen by their scores: among others of the same score the share is alike,
    so that both sides weigh as they came. unrelated: as for `probabilities`."""
    spread = float(unrelated.std()) if len(unrelated) >= FEWEST else 0.0
    guess = _SPREAD * spread if spread > 0 else _GUESS
    targets = np.where(truth, YES, OPEN - 1).astype(np.int8)
    return _platt(scores[:, None], targets[:, None], guess, even=False)


def of_members(scores: Floats) -> Probabilities:
    """The probability of one class without counter-examples: the share of its members that score
    lower, by a logistic distribution with the mean and spread of held-out scores (n,)."""
    if len(scores) < FEWEST or scores.std(ddof=1) == 0:
        middle = float(scores.mean()) if len(scores) else 0.5
        return Probabilities(
            _GUESS, middle, True, "guessed, not measured: no example could be held out"
        )
    temperature = max(float(scores.std(ddof=1)) * math.sqrt(3.0) / math.pi, _STEEPEST)
    basis = (
        f"the share of members that are less alike, by {len(scores)} held-out examples; without "
    )
    basis += "counter-examples or other rows no more is known"
    return Probabilities(temperature, float(scores.mean()), True, basis)


def _tempered(scores: Floats, targets: Targets, guess: float) -> Probabilities:
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    known = ~np.isnan(scores)
    own = (targets == YES) & known & np.isfinite(np.where(known, scores, 0.0))
    usable = own.any(axis=1) & (known.sum(axis=1) > 1)
    if not usable.any():
        return Probabilities(guess, basis="a temperature that is guessed, not measured: no example "
                             "could be held out beside another one of its class")  # fmt: skip
    values, mine = np.where(known, scores, -np.inf)[usable], own[usable]

    def loss(log: float) -> float:
        scaled = values / math.exp(log)
        total = logsumexp(scaled, axis=1)
        right = logsumexp(np.where(mine, scaled, -np.inf), axis=1)
        # The guess weighs as much as one example, so that few do not give certainty.
        prior = 0.5 * (log - math.log(guess)) ** 2
        return float((total - right).sum() + prior)

    found = minimize_scalar(loss, bounds=(math.log(_STEEPEST), math.log(100.0)), method="bounded")
    n = int(usable.sum())
    return Probabilities(math.exp(float(found.x)), basis=f"a temperature fitted to {n} held-out "
                         f"example{'s' if n > 1 else ''}")  # fmt: skip


def _platt(scores: Floats, targets: Targets, guess: float, even: bool = True) -> Probabilities:
    from scipy.optimize import minimize

    marked = np.isfinite(scores) & (targets != OPEN)
    values, truth = scores[marked], (targets == YES)[marked]
    if not (truth.any() and (~truth).any()):
        middle = float(values.mean()) if len(values) else 0.5
        return Probabilities(guess, middle, True, "guessed, not measured: no example could be held "
                             "out on both sides")  # fmt: skip
    # Each side weighs half: examples are not as frequent as the class is in recordings.
    weight = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum()) * len(truth)
    weight = weight if even else np.ones(len(truth))
    sign = np.where(truth, 1.0, -1.0)

    def loss(at: npt.NDArray[np.float64]) -> float:
        margin = sign * (values - at[1]) / math.exp(at[0])
        return float((weight * np.logaddexp(0.0, -margin)).sum()
                     + 0.5 * (at[0] - math.log(guess)) ** 2)  # fmt: skip

    middle = 0.5 * float(values[truth].mean() + values[~truth].mean())
    found = minimize(loss, np.array([math.log(guess), middle]), method="Nelder-Mead")
    temperature = max(math.exp(float(found.x[0])), _STEEPEST)
    return Probabilities(temperature, float(found.x[1]), True,
                         f"fitted to {int(truth.sum())} held-out pairs of example and class that "
                         f"belong together, and {int((~truth).sum())} that do not")  # fmt: skip
