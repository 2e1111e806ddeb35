"""How unlike the normal rows others are: three scores, the choice among them by planted changes,
and p-values by the scores of held-out normal rows.

Numpy in, numpy out; knows no collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.space import check_finite, fit, unit
from penult.errors import UsageError

FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

KNN, CSLS, MAHALANOBIS, AUTO = "knn", "csls", "mahalanobis", "auto"
METHODS = (KNN, CSLS, MAHALANOBIS)
NEAREST = 5  # normal rows whose distances are averaged
AROUND = 10  # nearest rows on either side, of which CSLS takes the mean cosine
FOLDS = 10  # at most; of more groups several share one
NEW = -1  # the fold of rows that belong to none: all normal rows score them
_FEWEST = 2  # normal rows that score others
_BLOCK = 1024  # rows whose cosines are computed at a time
_CHANGED = 500  # rows in which changes are planted
_MARGIN = 0.02  # of AUROC: by as much another method has to be better than k-NN to be taken
_EQUAL = 1e-9  # scores that differ by a smaller share are equal: rounding


def folds_of(groups: Sequence[str] | None, rows: int, seed: int = 0) -> Places:
    """(n,) the fold of each normal row, from 0. Each group is in one fold, and has it for itself
    where there are ten groups or fewer; without groups rows are dealt out by chance.

    Raises:
        UsageError: one group only, or too few normal rows beside a fold.
    """
    if groups is None:
        found = np.random.default_rng(seed).permutation(np.arange(rows) % FOLDS)
    else:
        names, number, sizes = np.unique(
            np.asarray(groups, str), return_inverse=True, return_counts=True
        )
        if len(names) < 2:
            raise UsageError(
                "the normal rows are of one group only; held-out scores need two or more, or none"
            )
        fold, load = np.zeros(len(names), np.int64), np.zeros(min(FOLDS, len(names)), np.int64)
        for name in np.argsort(-sizes, kind="stable"):  # the largest first, each where most is free
            fold[name] = load.argmin()
            load[fold[name]] += sizes[name]
        found = fold[number]
    beside = rows - np.bincount(found, minlength=1).max(initial=0)
    if beside < _FEWEST:
        what = "in the other groups" if groups is not None else "beside a held-out one"
        raise UsageError(
            f"{rows} normal rows are too few: {beside} {what}, and {_FEWEST} or more score a row"
        )
    return np.asarray(found, np.int64)


def novelty_scores(
    method: str,
    normal: npt.ArrayLike,
    folds: Places,
    rows: npt.ArrayLike,
    row_folds: Places,
) -> FloatArray:
    """(m,) how unlike the normal rows (n, d) each row (m, d) is; higher is more novel.

    folds: (n,) of the normal rows. row_folds: (m,) of the rows, NEW for those of none. Normal rows
    of a row's own fold do not score it, so that no row scores itself.

    knn: the mean cosine distance to the five nearest normal rows. csls: minus the mean over the
    five nearest of twice the cosine less the mean cosines of the row and of the normal row to
    their ten nearest normal rows (Conneau et al., 2018). mahalanobis: the distance to the mean of
    the normal rows by their covariance with three mean variances added along all directions (the
    space `shrink`), up to a constant factor.

    Raises:
        UsageError: no such method. SpaceError: vectors that are not finite.
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    known, asked = np.asarray(normal, np.float64), np.asarray(rows, np.float64)
    check_finite(known, name="normal vectors")
    check_finite(asked)
    found = np.empty(len(asked))
    for fold in np.unique(row_folds):
        mine = row_folds == fold
        found[mine] = _FITTED[method](known[folds != fold])(asked[mine])
    return found


def fold_scores(
    method: str, normal: npt.ArrayLike, folds: Places, rows: npt.ArrayLike, row_folds: Places
) -> FloatArray:
    """(F, m) scores to be compared with the held-out ones of each of the F folds: of a row of no
    fold by the normal rows outside that fold, as these were scored; of another one by those outside
    its own. Arguments as of `novelty_scores`."""
    known, asked = np.asarray(normal, np.float64), np.asarray(rows, np.float64)
    new = row_folds == NEW
    found = np.empty((int(folds.max()) + 1, len(asked)))
    found[:, ~new] = novelty_scores(method, known, folds, asked[~new], row_folds[~new])
    for fold, scores in enumerate(found):
        within = np.full(int(new.sum()), fold)
        scores[new] = novelty_scores(method, known, folds, asked[new], within)
    return found


def p_values(held: FloatArray, folds: Places, scores: FloatArray, row_folds: Places) -> FloatArray:
    """(m,) the share of held-out normal rows that are at least as novel: (1 + how many) / (1 + n).

    held: (n,) scores of the normal rows, each by those of other folds. scores: (F, m) of
    `fold_scores`. Normal rows of a row's own fold are left out (conformal within groups: Barber et
    al., 2021, with groups as folds), so that a normal row of a new group has a p-value of at most
    α with probability about α.
    """
    above, count = np.zeros(len(row_folds), np.int64), np.zeros(len(row_folds), np.int64)
    for fold, asked in enumerate(scores):
        other, base = row_folds != fold, np.sort(held[folds == fold])
        least = asked - _EQUAL * np.abs(asked)
        above += other * (len(base) - np.searchsorted(base, least, side="left"))
        count += other * len(base)
    found: FloatArray = (above + 1) / (count + 1)
    return found


@dataclass(frozen=True, slots=True)
class MethodAurocs:
    """How well each method tells planted changes from held-out normal rows. auroc: by method, by
    change; empty where the method was asked for. taken: the method."""

    taken: str
    auroc: dict[str, dict[str, float]]

    def means(self) -> dict[str, float]:
        """Of each method over the changes."""
        return {name: float(np.mean(list(one.values()))) for name, one in self.auroc.items()}

    def unheard(self, rows: int) -> dict[str, list[str]]:
        """Of each method the changes whose AUROC is within two standard errors of chance, or below,
        for this many normal rows (Mann and Whitney, 1947, as if rows were independent)."""
        n = min(rows, _CHANGED)
        bound = 0.5 + 2 * np.sqrt((2 * n + 1) / (12 * n * n))
        return {
            method: [name for name, auroc in one.items() if auroc <= bound]
            for method, one in self.auroc.items()
        }


def choose_method(
    normal: npt.ArrayLike, folds: Places, groups: Sequence[str] | None = None, seed: int = 0
) -> MethodAurocs:
    """The method with the highest mean AUROC on changes planted in up to 500 normal rows; k-NN,
    unless another one is better by 0.02.

    shifted: the difference of two normal rows of one group is added. between: half-way to another
    normal row. mixed: a quarter of the numbers are those of another normal row. Only vectors are
    changed, so that what a real fault or stranger looks like is not known to it.
    """
    from sklearn.metrics import roc_auc_score

    rows, random = np.asarray(normal, np.float64), np.random.default_rng(seed)
    check_finite(rows, name="normal vectors")
    some = np.sort(random.permutation(len(rows))[:_CHANGED])
    changed = _changes(rows, some, groups, random)
    asked = np.concatenate([rows[some], *changed.values()])
    within = np.tile(folds[some], 1 + len(changed))
    truth = np.repeat([0, 1], len(some))
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        held, *planted = novelty_scores(method, rows, folds, asked, within).reshape(-1, len(some))
        found[method] = {
            name: float(roc_auc_score(truth, np.concatenate([held, scores])))
            for name, scores in zip(changed, planted, strict=True)
        }
    means = MethodAurocs(KNN, found).means()
    best = max(METHODS, key=lambda name: means[name])
    return MethodAurocs(best if means[best] >= means[KNN] + _MARGIN else KNN, found)


def _changes(
    rows: FloatArray,
    some: Places,
    groups: Sequence[str] | None,
    random: np.random.Generator,
) -> dict[str, FloatArray]:
    other, one = (random.integers(0, len(rows), len(some)) for _ in range(2))
    names = (
        np.zeros(len(rows), int) if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    members = [np.flatnonzero(names == name) for name in range(names.max() + 1)]
    two = np.array([random.choice(members[names[row]]) for row in one])
    swapped = random.random((len(some), rows.shape[1])) < 0.25
    return {
        "shifted": rows[some] + rows[one] - rows[two],
        "between": (rows[some] + rows[other]) / 2,
        "mixed": np.where(swapped, rows[other], rows[some]),
    }


Scorer = Callable[[FloatArray], FloatArray]


def _nearest(rows: FloatArray, others: FloatArray, k: int) -> Iterator[tuple[slice, FloatArray]]:
    """Blocks of rows with the (b, k) highest cosines to the others, ascending. Both of length 1."""
    k = min(k, len(others))
    for at in range(0, len(rows), _BLOCK):
        block = slice(at, at + _BLOCK)
        cosines = rows[block] @ others.T
        yield block, np.sort(np.partition(cosines, -k, axis=1)[:, -k:], axis=1)


def _knn(normal: FloatArray) -> Scorer:
    known = unit(normal)

    def score(rows: FloatArray) -> FloatArray:
        found = np.empty(len(rows))
        for block, cosines in _nearest(unit(rows), known, NEAREST):
            found[block] = 1 - cosines.mean(axis=1)
        return found

    return score


def _csls(normal: FloatArray) -> Scorer:
    known = unit(normal)
    around = np.empty(len(known))
    for block, cosines in _nearest(known, known, AROUND + 1):
        around[block] = cosines[:, :-1].mean(axis=1)  # the last one is the row itself

    def score(rows: FloatArray) -> FloatArray:
        found, units = np.empty(len(rows)), unit(rows)
        k = min(NEAREST, len(known))
        for block, cosines in _nearest(units, known, AROUND):
            likeness = 2 * (units[block] @ known.T) - around
            best = np.partition(likeness, -k, axis=1)[:, -k:].mean(axis=1)
            found[block] = cosines.mean(axis=1) - best
        return found

    return score


def _mahalanobis(normal: FloatArray) -> Scorer:
    space = fit("shrink", normal)
    return lambda rows: np.linalg.norm(np.asarray(space(rows), np.float64), axis=1)


_FITTED: dict[str, Callable[[FloatArray], Scorer]] = {
    KNN: _knn,
    CSLS: _csls,
    MAHALANOBIS: _mahalanobis,
}
