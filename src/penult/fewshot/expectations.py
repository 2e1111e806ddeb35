"""What marks tell of one class that is looked for among many rows: its average precision on marked
rows that were held out, and probabilities of rows. Numpy in; knows no collection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import percentile_interval
from penult.analysis.metrics import ScoreRanking
from penult.analysis.space import Space
from penult.fewshot import scorers
from penult.fewshot.calibration import FEWEST, Probabilities, of_asked
from penult.fewshot.examples import Examples, Grouping
from penult.fewshot.fitted import refitted
from penult.fewshot.scorers import OPEN, YES, Floats
from penult.fewshot.suggestions import targets_of

Flags = npt.NDArray[np.bool_]
_DRAWS = 1000  # of groups, for an interval
_TIED = 1e-9
_PROBABLE_FROM = 5  # marked rows of each side, below which sums of probabilities are wide of it


@dataclass(frozen=True, slots=True)
class HeldOutMarks:
    """Marked rows, scored by heads that were fitted without them and their group. truth, scores,
    groups: (m,) of those that could be held out. examples: m. average_precision, low, high: with
    its 95 % interval; None where there are too few, or where they are all ranked right, which words
    say."""

    truth: Flags
    scores: Floats
    groups: npt.NDArray[np.int64]
    average_precision: float | None
    low: float | None
    high: float | None
    words: str

    @property
    def examples(self) -> int:
        """The number of marked rows that were held out."""
        return len(self.truth)


def held_out_marks(
    examples: Examples, name: str, space: Space, weak: npt.NDArray[np.float32], grouping: Grouping
) -> HeldOutMarks:
    """Cross-validation of the method `agile` for one class. weak: (w, d) raw.

    A row of a member of another class counts as one that is marked no.
    """
    target = targets_of(examples, name)
    places = np.flatnonzero(target != OPEN)
    raw, groups = examples.vectors[places], grouping.numbers(examples, places)
    refit = refitted(space, raw)
    vectors, others = (raw, weak) if refit is not None else (space(raw), space(weak))
    found = scorers.held_out("agile", vectors, target[places, None], groups,
                             others if len(others) else None, refit)  # fmt: skip
    kept = ~np.isnan(found.scores[:, 0])
    rows = found.rows[kept]
    truth, scores = target[places][rows] == YES, found.scores[kept, 0]
    precision, low, high = _average_precision(truth, scores, groups[rows])
    return HeldOutMarks(truth, scores, groups[rows], precision, low, high,
                        _words(truth, precision, low))  # fmt: skip


def _average_precision(
    truth: Flags, scores: Floats, groups: npt.NDArray[np.int64]
) -> tuple[float | None, float | None, float | None]:
    """With the ends of its interval by a bootstrap over groups."""
    if not _is_enough(truth):
        return None, None, None
    ranking = ScoreRanking.of(truth[:, None], scores[:, None])
    value = float(ranking.average_precisions()[0])
    names, place = np.unique(groups, return_inverse=True)
    count = len(names)
    if count < 2:
        return value, None, None
    random = np.random.default_rng(0)
    draws = (random.multinomial(count, np.full(count, 1 / count)) for _ in range(_DRAWS))
    low, high = percentile_interval(
        lambda weights: float(ranking.average_precisions(weights[place])[0]), draws
    )
    if high - low < _TIED:  # as where all are ranked right: draws of them say nothing of others
        return value, None, None
    return value, min(value, float(low)), max(value, float(high))


def _is_enough(truth: Flags) -> bool:
    return int(truth.sum()) >= FEWEST and int((~truth).sum()) >= FEWEST


def _words(truth: Flags, precision: float | None, low: float | None) -> str:
    yes, no = int(truth.sum()), int((~truth).sum())
    held = f"{yes} marked yes and {no} of none of it could be held out"
    if precision is None:
        return f"needs {FEWEST} of each that can be held out: {yes} of yes and {no} of no so far"
    words = (
        f"average precision of {yes + no} marked rows, each scored without its recording: {held}"
    )
    return words if low is not None else f"{words}; too few or too alike for an interval"


def probabilities_of(held: HeldOutMarks, others: Floats) -> Probabilities | None:
    """The map from scores of the class to probabilities; None where fewer than five marked rows of
    a side were held out. others: (w,) scores of random rows."""
    yes = int(held.truth.sum())
    if min(yes, held.examples - yes) < _PROBABLE_FROM:
        return None
    return of_asked(held.scores, held.truth, others)
