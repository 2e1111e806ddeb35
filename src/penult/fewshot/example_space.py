"""The space that examples are compared in: fitted to other rows, or to the examples where there are
few, by a recipe that the held-out examples speak for. Numpy in; knows no model and no collection.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, RAW, SeenRows, Space, fit, fit_seen
from penult.fewshot import scorers
from penult.fewshot.examples import Examples, Grouping
from penult.fewshot.fitted import CENTRED_FROM, refitted
from penult.fewshot.scorers import YES, Floats, HeldOut, Targets

Rows = npt.NDArray[np.float32]

CLEARLY_BELOW = 3  # examples of a class, for which `shrink` has to win clearly
MOST = 4000  # examples that a space is fitted to
CENTRE, SHRINK = "centre", "shrink"


def fit_to_examples(
    recipe: str, examples: Examples, others: Rows, groups: Grouping | None = None
) -> Space:
    """A recipe fitted for these examples; `auto` is `raw`, `centre` or `shrink`.

    others: (m, d) raw vectors of other items, to which it is fitted if there are as many as
    examples, and twenty. Else the examples take part, and the space names them as those that it has
    seen (`Space.seen`), so that none is judged in a space that was fitted to it. groups: what is
    held out together.
    """
    found = _ExampleSpaces(examples, others, groups or Grouping())
    return found.choose() if recipe == AUTO else found.fit(recipe)


class _ExampleSpaces:
    def __init__(self, examples: Examples, others: Rows, groups: Grouping) -> None:
        names = [n for n in examples.names if any(one.get(n) == "yes" for one in examples.marks)]
        targets = examples.targets(names)
        kept = np.flatnonzero((targets != scorers.OPEN).any(axis=1))
        self._targets: Targets = targets[kept]
        self._own: Rows = examples.vectors[kept]
        self._groups = groups.numbers(examples, kept)
        self._others = others
        self._apart = len(others) >= max(CENTRED_FROM, len(self._own))  # enough without examples

    def fit(self, recipe: str) -> Space:
        """The recipe fitted to the other rows, or to them and the examples.

        Raises:
            SpaceError: an unknown recipe, or too few vectors.
        """
        if self._apart:
            return replace(fit(recipe, self._others), others=self._others)
        if recipe == RAW:
            return fit(recipe, self._own)
        drawn = np.random.default_rng(0).permutation(len(self._own))[:MOST]
        own, targets = self._own[np.sort(drawn)], self._targets[np.sort(drawn)]
        members = np.concatenate([targets == YES, np.ones((len(targets), 1), bool)], axis=1)
        classes = np.where(members[:, :-1].any(axis=1), members.argmax(axis=1), -1)
        rows = np.concatenate([own, self._others])
        labels = np.concatenate([classes, np.full(len(self._others), -1)]).astype(np.int64)
        return fit_seen(recipe, SeenRows(rows, labels, np.arange(len(rows))))

    def choose(self) -> Space:
        """The space that held-out examples speak for.

        One or two classes may be all that there is in the other rows, and then their mean is that
        of the classes: they are subtracted only where held-out members are told from them. Of three
        or more the mean of all serves, and `shrink` unless more held-out examples are right
        without it; with two examples of a class it has to win by more than a standard error. Where
        none can be held out, `centre` stays: `shrink` may lose there.
        """
        classes, rows = self._targets.shape[1], len(self._own) + len(self._others)
        if not classes or rows < CENTRED_FROM or (classes < 3 and not self._apart):
            return self.fit(RAW)
        centre = self.fit(CENTRE)
        if not len(self._right(centre)):
            return centre
        if classes < 3:
            return self._told_apart(centre)
        shrink = self.fit(SHRINK)
        gain = self._right(shrink) - self._right(centre)
        # Of two examples one is left, and of one `shrink` may lose: then it has to win clearly.
        few = np.median(scorers.group_counts(self._targets, self._groups)) < CLEARLY_BELOW
        if few:
            return shrink if gain.mean() > gain.std() / len(gain) ** 0.5 else centre
        return shrink if gain.mean() >= 0 else centre

    def _held_out(self, space: Space) -> HeldOut:
        refit = refitted(space, self._own)
        vectors = self._own if refit is not None else space(self._own)
        return scorers.held_out("prototype", vectors, self._targets, self._groups, refit=refit)

    def _right(self, space: Space) -> Floats:
        """Whether each held-out example is right, as far as one could be."""
        held = self._held_out(space)
        right = scorers.hits(held.scores, self._targets[held.rows])
        return right[~np.isnan(right)]

    def _told_apart(self, centre: Space) -> Space:
        """The space in which held-out members are told best from the other rows; `raw` unless
        another is better by more than the chance of ranks (Mann and Whitney, 1947). A half of the
        rows is compared in spaces fitted to the other half: their mean is theirs by chance too."""
        from scipy.stats import mannwhitneyu

        fitted, asked = self._others[::2], self._others[1::2]
        areas = {}
        n, m = 0, len(asked)
        for recipe in (RAW, CENTRE, SHRINK):
            space = fit(recipe, fitted)
            held = self._held_out(space).scores
            own = np.nanmax(held[~np.isnan(held).all(axis=1)], axis=1)
            prototypes = scorers.prototypes(space(self._own), self._targets)
            n = len(own)
            found = mannwhitneyu(own, prototypes(space(asked)).max(axis=1)).statistic
            areas[recipe] = float(found) / (n * m)
        best = max(areas, key=lambda recipe: areas[recipe])
        chance = ((n + m + 1) / (12 * n * m)) ** 0.5
        if areas[best] <= areas[RAW] + chance:
            return self.fit(RAW)
        return centre if best == CENTRE else self.fit(best)
