"""Scorers of classes from examples: prototypes, nearest examples or a linear head, chosen by
cross-validation. Numpy in, numpy out; knows no model and no collection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import by_centrality
from penult.analysis.space import Space, check_finite, unit
from penult.errors import LabelsError, SpaceError

Floats = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int8]  # (n, K): the target of each example for each class
Refit = Callable[[npt.NDArray[np.bool_]], Space]  # the space without the examples of a mask (n,)

YES, OPEN, IMPLIED, NO = 1, 0, -1, -2  # a member; no mark; a member of another class; marked no

HEADS = ("ridge", "logistic", "agile")  # linear heads, which need counter-examples
METHODS = ("prototype", "knn", *HEADS)
NEIGHBOURS = 3  # of a class, whose mean similarity is its score by k-NN
FOLDS = 10
REFITS, REFITTED_TO = 4, 300  # folds where a space is fitted in each; examples, up to which FOLDS
EXACT = 64  # groups, up to which each is left out by itself
MOST = 4000  # examples that are cross-validated; of more, as many from each class
LINEAR_FROM = 4  # groups of each class, from which a linear head is compared
LOGISTIC_TO = 60_000  # examples × classes, up to which a logistic head is fitted in a second or so
CLUSTERS = 5  # of residuals, which stand for groups that nobody named
CLUSTERED = 1000  # items, of which clusters are made; others belong to the nearest one
WEAK = 500  # random rows that are negatives of `agile`
_WEAK_WEIGHT = 4.0  # of all of them together, in counter-examples that somebody marked
_STRENGTH = 30.0  # C of logistic heads: rows have length one; it is 30 / d for standardised numbers
_ALPHAS = np.logspace(-3, 2, 11)
_RULED_OUT = -np.inf


class Scorer(Protocol):
    """Scores of vectors for each class; higher is nearer, minus infinity is ruled out."""

    def __call__(self, vectors: npt.ArrayLike) -> Floats:
        """(m, d) → (m, K)."""


@dataclass(frozen=True, slots=True)
class Prototypes:
    """The cosine to the mean of each class's examples (Snell et al., 2017, for cosines). Where a
    negative example of a class is nearer than its mean, the class is ruled out.

    means: (K, d), of length one. negatives: for each class, (n, d) of length one.
    """

    means: Floats
    negatives: tuple[Floats, ...]

    def __call__(self, vectors: npt.ArrayLike) -> Floats:
        """(m, d) → (m, K)."""
        rows = _rows(vectors)
        return _without_negatives(rows, rows @ self.means.T, self.negatives)

    def similarity(self, vectors: npt.ArrayLike) -> Floats:
        """(m, d) → (m, K) the cosines alone: nothing is ruled out."""
        return np.asarray(_rows(vectors) @ self.means.T)


@dataclass(frozen=True, slots=True)
class NearestExamples:
    """The mean cosine to the nearest examples of each class, so that a large class has no more
    votes than a small one. Where a negative example is nearer than the nearest member, the class
    is ruled out.
    """

    members: tuple[Floats, ...]
    negatives: tuple[Floats, ...]

    def __call__(self, vectors: npt.ArrayLike) -> Floats:
        """(m, d) → (m, K)."""
        rows = _rows(vectors)
        scores, nearest = np.empty((2, len(rows), len(self.members)))
        for k, members in enumerate(self.members):
            cosines = rows @ members.T
            most = min(NEIGHBOURS, len(members))
            best = np.partition(cosines, -most, axis=1)[:, -most:]
            scores[:, k], nearest[:, k] = best.mean(axis=1), best.max(axis=1)
        ruled = _without_negatives(rows, nearest, self.negatives)
        return np.where(np.isneginf(ruled), ruled, scores)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear head: weights (K, d), offsets (K,)."""

    weights: Floats
    offsets: Floats

    def __call__(self, vectors: npt.ArrayLike) -> Floats:
        """(m, d) → (m, K)."""
        return _rows(vectors) @ self.weights.T + self.offsets


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        LabelsError: the method is not known.
    """
    if method not in METHODS:
        raise LabelsError(
            f"method {method!r} is not known; {', '.join(METHODS)} work, and without one it is "
            "chosen"
        )


def fit(
    method: str, vectors: npt.ArrayLike, targets: Targets, weak: npt.ArrayLike | None = None
) -> Scorer:
    """A scorer of K classes from examples (n, d) and their targets (n, K).

    Vectors are compared by their direction: each is divided by its length first. weak: (w, d) any
    rows, most of them of none of the classes, which `agile` takes for weak negatives.

    Raises:
        LabelsError: an unknown method, vectors that are not finite, a class without an example, a
            linear head for one class without a negative.
    """
    check_method(method)
    rows = _rows(vectors)
    if targets.ndim != 2 or len(rows) != len(targets):
        raise LabelsError(
            f"{len(rows)} vectors and marks of shape {targets.shape}; one row of marks belongs to "
            "each vector"
        )
    if empty := [k for k in range(targets.shape[1]) if not (targets[:, k] == YES).any()]:
        raise LabelsError(f"class number {empty[0]} has no example that is marked yes; add one")
    if method == "prototype":
        return prototypes(rows, targets)
    if method == "knn":
        members = tuple(rows[column == YES] for column in targets.T)
        return NearestExamples(members, _negatives(rows, targets))
    if method == "agile":
        return _agile(rows, targets, np.zeros((0, rows.shape[1])) if weak is None else _rows(weak))
    return _linear(method, rows, targets)


def prototypes(vectors: npt.ArrayLike, targets: Targets) -> Prototypes:
    """The prototypes of K classes from examples (n, d) and their targets (n, K)."""
    rows = _rows(vectors)
    means = np.stack([rows[column == YES].mean(axis=0) for column in targets.T])
    return Prototypes(unit(means), _negatives(rows, targets))


def _negatives(rows: Floats, targets: Targets) -> tuple[Floats, ...]:
    return tuple(rows[column == NO] for column in targets.T)


def available(targets: Targets, groups: npt.NDArray[np.int64]) -> list[str]:
    """The methods that these examples are enough for; with one example of a class, prototypes."""
    counts = group_counts(targets, groups)
    fewest = int(counts.min()) if len(counts) else 0
    both_sides = all((column < 0).any() for column in targets.T)  # which a head needs
    linear = fewest >= LINEAR_FROM and both_sides
    methods = ["prototype"]
    if np.median(counts) >= 2:
        methods.append("knn")
    if linear:
        methods.append("ridge")
        if targets.size <= LOGISTIC_TO:
            methods.append("logistic")
    return methods


def group_counts(targets: Targets, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(K,) the number of groups with a member of each class."""
    return np.array([len(np.unique(groups[column == YES])) for column in targets.T], np.int64)


def groups_of(
    vectors: npt.ArrayLike, ids: Sequence[str], named: Sequence[str | None] | None = None
) -> npt.NDArray[np.int64]:
    """(n,) the group of each example, for cross-validation: parts of one item, equal vectors and
    examples of one named group (a speaker, a site) are together."""
    rows = np.ascontiguousarray(np.asarray(vectors, np.float32))
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[object, int] = {}
    names = named if named is not None else [None] * len(rows)
    for i, (id, row, name) in enumerate(zip(ids, rows, names, strict=True)):
        for key in (("id", id), row.tobytes(), None if name is None else ("group", name)):
            if key is not None:
                parent[root(i)] = root(first.setdefault(key, i))
    return np.array([root(i) for i in range(len(rows))], np.int64)


def residual_clusters(
    vectors: npt.ArrayLike, targets: Targets, groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(n,) the cluster of each example by what it does not share with its class: five by Ward's
    method (1963), of whole groups. −1 for examples of no class, or of one without another group.

    Speakers, sites or days that several classes have in common are mostly in clusters of their own.
    """
    rows, found = _rows(vectors), np.full(len(targets), -1)
    class_of = np.where((targets == YES).any(axis=1), (targets == YES).argmax(axis=1), -1)
    residuals = np.zeros(rows.shape)
    for k in range(targets.shape[1]):
        own = class_of == k
        if len(np.unique(groups[own])) > 1:
            residuals[own], found[own] = rows[own] - rows[own].mean(axis=0), 0
    used = np.flatnonzero(found == 0)
    names, place = np.unique(groups[used], return_inverse=True)
    found[:] = -1
    if len(names) <= CLUSTERS:
        return found
    from scipy.cluster.hierarchy import fcluster, ward

    means = np.zeros((len(names), rows.shape[1]))
    np.add.at(means, place, residuals[used])
    means /= np.bincount(place)[:, None]
    drawn = np.sort(np.random.default_rng(0).permutation(len(means))[:CLUSTERED])
    parts = fcluster(ward(means[drawn]), CLUSTERS, "maxclust")
    if len(drawn) < len(means):  # the others belong to the cluster with the nearest mean
        middles = np.stack([means[drawn[parts == part]].mean(axis=0) for part in np.unique(parts)])
        gaps = (middles**2).sum(axis=1) - 2 * means @ middles.T
        parts = 1 + gaps.argmin(axis=1)
    found[used] = parts[place]
    return found


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of examples by scorers that were fitted without their group.

    rows: (m,) the places of the examples. scores: (m, K); NaN where a class had no other member.
    """

    rows: npt.NDArray[np.int64]
    scores: Floats


def held_out(
    method: str,
    vectors: npt.ArrayLike,
    targets: Targets,
    groups: npt.NDArray[np.int64],
    weak: npt.ArrayLike | None = None,
    refit: Refit | None = None,
) -> HeldOut:
    """Cross-validation by whole groups: leave one group out, or ten folds where there are many.
    weak: as in `fit`.

    refit: for a space that was fitted to some of the examples; then `vectors` and `weak` are raw,
    and those of a fold are scored in the space without them. Where it cannot be fitted nothing is
    scored.

    Unlike `analysis.episodes.partitions`, it takes examples of several classes at once, and leaves
    each group out by itself where that is quick.
    """
    every = np.asarray(vectors)
    rows = _sampled(targets)
    chosen, marks, group = _rows(every)[rows], targets[rows], groups[rows]
    scores, others = np.full(marks.shape, np.nan), weak
    # A linear head or a space takes longer to fit, and ten folds of it are as good.
    quick = method not in HEADS and refit is None
    slow = refit is not None and len(rows) > REFITTED_TO
    folds = groups_as_folds(marks, group, EXACT if quick else FOLDS, REFITS if slow else FOLDS)
    for fold in range(int(folds.max(initial=-1)) + 1):
        out = folds == fold
        known = np.flatnonzero((marks[~out] == YES).any(axis=0))
        if not len(known):
            continue
        rest = marks[~out][:, known]
        if method in HEADS and weak is None and not all((c < 0).any() for c in rest.T):
            continue
        if refit is not None:
            without = np.zeros(len(every), bool)
            without[rows[out]] = True
            try:
                space = refit(without)
            except SpaceError:  # too few other vectors for the recipe
                continue
            chosen = _rows(space(every[rows]))
            others = None if weak is None else space(weak)
        scorer = fit(method, chosen[~out], rest, others)
        scores[np.ix_(out, known)] = scorer(chosen[out])
    return HeldOut(rows, scores)


def choose(
    vectors: npt.ArrayLike,
    targets: Targets,
    groups: npt.NDArray[np.int64],
    refit: Refit | None = None,
) -> tuple[str, dict[str, float], HeldOut]:
    """The method with the best cross-validated accuracy: (its name, each one's accuracy, its
    held-out scores).

    Prototypes are kept unless another is better by more than one standard error of the paired
    differences: of methods that cannot be told apart, the simplest. refit: as for `held_out`.
    """
    results = {name: held_out(name, vectors, targets, groups, refit=refit)
               for name in available(targets, groups)}  # fmt: skip
    right = {name: hits(result.scores, targets[result.rows]) for name, result in results.items()}
    usable = ~np.isnan(np.stack(list(right.values()))).any(axis=0)
    accuracy = {name: float(value[usable].mean()) if usable.any() else float("nan")
                for name, value in right.items()}  # fmt: skip
    best, margin = "prototype", 0.0
    for name, value in right.items():
        gain = (value - right["prototype"])[usable]
        if len(gain) < 2 or name == "prototype":
            continue
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        if gain.mean() > max(margin, error):
            best, margin = name, float(gain.mean())
    return best, accuracy, results[best]


def hits(scores: Floats, targets: Targets) -> Floats:
    """(m,): 1 where the best class is one of the example's own, 0 where not, NaN where the example
    has none that was scored."""
    own = (targets == YES) & ~np.isnan(scores)
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)[:, None]
    possible = own & (scores != _RULED_OUT)
    right = np.take_along_axis(possible, best, axis=1)[:, 0].astype(float)
    right[~own.any(axis=1)] = np.nan
    return right


def nearest(
    vectors: npt.ArrayLike, examples: npt.ArrayLike, k: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """The k examples nearest to each vector, nearest first: places and cosines (m, k)."""
    rows, others = _rows(vectors), _rows(examples)
    places, cosines = [], []
    step = max(1, 20_000_000 // max(1, len(others)))
    for start in range(0, len(rows), step):
        every = rows[start : start + step] @ others.T
        order = np.argsort(-every, axis=1, kind="stable")[:, :k]
        places.append(order)
        cosines.append(np.take_along_axis(every, order, axis=1))
    empty = np.zeros((0, min(k, len(others))))
    return (
        np.concatenate([empty.astype(np.int64), *places]),
        np.concatenate([empty, *cosines]),
    )


def medoid(vectors: npt.ArrayLike) -> int:
    """The place of the vector with the largest sum of cosines to all of them."""
    return int(by_centrality(_rows(vectors))[0])


def _rows(vectors: npt.ArrayLike) -> Floats:
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2:
        raise LabelsError(f"vectors of shape {rows.shape}; (n, d) is needed")
    check_finite(rows, LabelsError)
    return unit(rows)


def _without_negatives(rows: Floats, scores: Floats, negatives: Sequence[Floats]) -> Floats:
    for k, against in enumerate(negatives):
        if len(against):
            ruled = (rows @ against.T).max(axis=1) > scores[:, k]
            scores[ruled, k] = _RULED_OUT
    return scores


def _linear(method: str, rows: Floats, targets: Targets) -> Linear:
    _check_sides(method, targets)
    solve: Callable[[Floats, Targets], tuple[Floats, Floats]]
    solve = _ridge if method == "ridge" else _logistic
    if (targets != OPEN).all():
        return Linear(*solve(rows, targets))
    parts = []  # a mark of no leaves the other classes open
    for column in targets.T:
        marked = column != OPEN
        parts.append(solve(rows[marked], column[marked, None]))
    return Linear(*(np.concatenate([part[i] for part in parts]) for i in (0, 1)))


def _check_sides(method: str, targets: Targets) -> None:
    if not all((column < 0).any() for column in targets.T):
        raise LabelsError(
            f"a {method} head needs counter-examples of each class: give a second class, or "
            "examples marked no; prototype and knn work without"
        )


def _agile(rows: Floats, targets: Targets, weak: Floats) -> Linear:
    """A head for each class by itself, against its counter-examples and weak negatives: rows that
    nobody has looked at, nearly all of which are of other kinds (Dumoulin et al., 2025)."""
    if not len(weak):
        _check_sides("agile", targets)
    heads = []
    for column in targets.T:
        marked = column != OPEN
        share = np.full(len(weak), _WEAK_WEIGHT / max(1, len(weak)))
        answers = np.concatenate([column[marked] == YES, np.zeros(len(weak), bool)])
        weights = np.concatenate([np.ones(marked.sum()), share])
        for side in (answers, ~answers):  # of equal weight, as much as all that is marked
            weights[side] *= marked.sum() / weights[side].sum()
        heads.append(_logistic_head(np.concatenate([rows[marked], weak]), answers, weights))
    return Linear(*(np.concatenate(part) for part in zip(*heads, strict=True)))


def _ridge(rows: Floats, targets: Targets) -> tuple[Floats, Floats]:
    from sklearn.linear_model import RidgeCV

    head: Any = RidgeCV(_ALPHAS).fit(rows, np.where(targets == YES, 1.0, -1.0))
    return head.coef_.reshape(targets.shape[1], -1), np.atleast_1d(head.intercept_)


def _logistic(rows: Floats, targets: Targets) -> tuple[Floats, Floats]:
    classes = targets.shape[1]
    single = classes > 2 and ((targets == YES).sum(axis=1) == 1).all()
    answers = [targets.argmax(axis=1)] if single else [column == YES for column in targets.T]
    heads = [_logistic_head(rows, answer) for answer in answers]
    weights, offsets = zip(*heads, strict=True)
    return np.concatenate(weights), np.concatenate(offsets)


def _logistic_head(
    rows: Floats, answer: npt.NDArray[Any], weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """(weights, offsets) of classes by their answers (n,). weights: (n,) of each row; without them
    each class weighs the same."""
    from sklearn.linear_model import LogisticRegression

    balance = "balanced" if weights is None else None
    head: Any = LogisticRegression(C=_STRENGTH, class_weight=balance, max_iter=300)
    head.fit(rows, answer, weights)
    return head.coef_, head.intercept_


def _sampled(targets: Targets) -> npt.NDArray[np.int64]:
    """All examples, or MOST of them with as many of each class as possible; of very many classes
    some have none, so that no class has a single one, which could not be held out."""
    if len(targets) <= MOST:
        return np.arange(len(targets))
    random = np.random.default_rng(0)
    order = random.permutation(len(targets))
    place, turn = np.empty((2, len(targets)))
    first = np.where((targets == YES).any(axis=1), (targets == YES).argmax(axis=1), -1)
    by_class = order[np.argsort(first[order], kind="stable")]
    starts = np.unique(first[by_class], return_index=True, return_counts=True)
    for number, begin, count in zip(random.permutation(len(starts[0])), *starts[1:], strict=True):
        members = by_class[begin : begin + count]
        place[members], turn[members] = np.maximum(np.arange(count), 1), number
    return np.sort(np.lexsort([turn, place])[:MOST])


def groups_as_folds(
    targets: Targets, groups: npt.NDArray[np.int64], exact: int, count: int
) -> npt.NDArray[np.int64]:
    """(n,) the fold of each example: whole groups, each class spread over `count` folds; of `exact`
    groups or fewer each is a fold."""
    names, index = np.unique(groups, return_inverse=True)
    if len(names) <= exact:
        return np.asarray(index, np.int64)
    random = np.random.default_rng(0)
    class_of = np.full(len(names), -1)
    members = (targets == YES).any(axis=1)
    class_of[index[members]] = (targets == YES).argmax(axis=1)[members]
    shuffled = random.permutation(len(names))
    dealt = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[dealt] = np.arange(len(names)) % count
    return np.asarray(fold[index], np.int64)
