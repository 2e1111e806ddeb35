"""Few-shot episodes (N-way, K-shot), nearest-neighbour votes and the crowd: trials of vectors on
support and query sides that share no group.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.metrics import majority
from penult.analysis.space import Space
from penult.errors import LabelsError

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float32]

_AT_ONCE = 1 << 24  # numbers in one block of work


@dataclass(frozen=True, slots=True)
class Episodes:
    """support: (E, N, K) rows. query: (E, N, Q) rows; the n-th of N is the same class in both."""

    support: Rows
    query: Rows

    @property
    def ways(self) -> int:
        """N, classes in an episode."""
        return int(self.support.shape[1])

    @property
    def shots(self) -> int:
        """K, examples of a class."""
        return int(self.support.shape[2])


def numbered(names: Sequence[object] | npt.NDArray[np.generic]) -> tuple[Rows, list[str]]:
    """(n,) numbers of names from 0, and the names in their order."""
    kinds, numbers = np.unique(np.asarray([str(name) for name in names]), return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), kinds.tolist()


def own_groups(names: Sequence[object | None]) -> list[str]:
    """The groups of n items; an item without one (None) is a group of its own."""
    return [f"item {at}" if name is None else f"group {name}" for at, name in enumerate(names)]


def partitions(labels: Rows, groups: Rows, folds: int, repeats: int, seed: int) -> Iterator[Mask]:
    """The query sides (n,) of `repeats` grouped, stratified divisions into folds: no group lies on
    both sides, and every class is spread over the folds as evenly as its groups allow.

    Raises:
        LabelsError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = len(np.unique(groups))
    if count < folds:
        raise LabelsError(
            f"{count} groups cannot be divided into {folds} sides that share none; "
            "give items of more groups, or no groups"
        )
    kind = StratifiedKFold if count == len(groups) else StratifiedGroupKFold
    for repeat in range(repeats):
        divided = kind(folds, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class with fewer items than folds is left out later
            for _, query in _divisions(divided, labels, groups):
                side = np.zeros(len(labels), bool)
                side[query] = True
                yield side


def _divisions(divided: object, labels: Rows, groups: Rows) -> Iterator[tuple[Rows, Rows]]:
    try:
        yield from divided.split(np.zeros(len(labels)), labels, groups)  # type: ignore[attr-defined]
    except ValueError as error:
        raise LabelsError(
            f"the items cannot be divided into sides: {error}; give more items of each class"
        ) from error


def able(labels: Rows, query_side: Mask, shots: int, queries: int = 1) -> Rows:
    """The classes with `shots` items on the support side and `queries` on the query side."""
    size = int(labels.max(initial=-1)) + 1
    support = np.bincount(labels[~query_side], minlength=size)
    query = np.bincount(labels[query_side], minlength=size)
    return np.flatnonzero((support >= shots) & (query >= queries)).astype(np.int64)


def draw(labels: Rows, query_side: Mask, ways: int, shots: int, count: int, seed: int) -> Episodes:
    """`count` episodes of one query a class, supports from one side and queries from the other.

    Raises:
        LabelsError: fewer than `ways` classes have items enough on both sides.
    """
    classes = able(labels, query_side, shots)
    if len(classes) < ways or ways < 2:
        raise LabelsError(
            f"{ways}-way {shots}-shot episodes need {max(ways, 2)} classes with {shots} examples "
            f"and a query of another group; {len(classes)} have them"
        )
    random = np.random.default_rng(seed)
    chosen = classes[_some(random, count, len(classes), ways)]
    support = np.empty((count, ways, shots), np.int64)
    query = np.empty((count, ways, 1), np.int64)
    for one in classes:
        at = chosen == one
        rows = np.flatnonzero((labels == one) & ~query_side)
        support[at] = rows[_some(random, int(at.sum()), len(rows), shots)]
        rows = np.flatnonzero((labels == one) & query_side)
        query[at] = rows[_some(random, int(at.sum()), len(rows), 1)]
    return Episodes(support, query)


def _some(random: np.random.Generator, times: int, of: int, many: int) -> Rows:
    """(times, many): each row without repetition, out of `of`."""
    if many == 1:
        return random.integers(of, size=(times, 1))
    return random.random((times, of)).argsort(axis=1)[:, :many]


def products(vectors: npt.ArrayLike) -> Array:
    """(n, n) the inner product of every pair, from which all trials are computed."""
    rows = np.asarray(vectors, np.float32)
    # Scaled so that no square of a large raw vector overflows: cosines do not change by it.
    largest = float(np.abs(rows).max(initial=0.0))
    rows = rows / largest if largest > 0 else rows
    made: Array = rows @ rows.T
    return made


def centred_products(
    vectors: npt.ArrayLike, unlabelled: npt.ArrayLike | None = None
) -> Callable[[Mask], Array]:
    """From rows (n, d) a function from a mask (n,) to the inner products (n, n) of the rows less
    the mean of those in the mask and all unlabelled ones (m, d), each of length one: those of the
    recipe `centre+l2` for every side, from one product of all rows."""
    rows = np.asarray(vectors, np.float64)
    more = np.zeros((0, rows.shape[1])) if unlabelled is None else np.asarray(unlabelled)
    # About their own mean, so that nothing cancels where rows have much in common.
    middle = rows.mean(axis=0)
    rows, rest = rows - middle, (more - middle).sum(axis=0)
    inner, beside, square = rows @ rows.T, rows @ rest, float(rest @ rest)

    def by(support: Mask) -> Array:
        number = int(support.sum()) + len(more)
        own = inner[support].sum(axis=0)
        along = (own + beside) / number  # of each row with the mean
        length = (own[support].sum() + 2 * beside[support].sum() + square) / number**2
        moved = inner - along - along[:, None] + length
        root = np.sqrt(np.maximum(np.diag(moved), 0.0))
        root = np.where(root > 0, root, 1.0)
        found: Array = (moved / root / root[:, None]).astype(np.float32)
        return found

    return by


def answered(inner: Array, episodes: Episodes) -> Array:
    """(E, N, Q) the score of each query: 1 where the most similar prototype is of its class, by
    cosine; 1/m for m equally similar ones.

    inner: (n, n), `products` of the vectors. A class's prototype is the mean of its examples.
    """
    events, ways, shots = episodes.support.shape
    queries = episodes.query.shape[2]
    done = np.empty((events, ways, queries), np.float32)
    # One example after the other: sums over a short last axis take twice as long.
    pairs = inner.ravel()
    step = max(1, _AT_ONCE // (ways * ways * max(queries, shots)))
    for at in range(0, events, step):
        support = [episodes.support[at : at + step, :, k] for k in range(shots)]
        query = episodes.query[at : at + step, :, :, None] * len(inner)
        similarity = np.sum([pairs.take(query + one[:, None, None]) for one in support], axis=0)
        square = np.sum([pairs.take(a * len(inner) + b) for a in support for b in support], axis=0)
        length = np.sqrt(np.maximum(square, 0.0))
        similarity = similarity / np.where(length > 0, length, 1.0)[:, None, None, :]
        done[at : at + step] = _share(similarity)
    return done


def _share(similarity: Array) -> Array:
    """(E, N, Q, N) similarities of queries and prototypes → scores (E, N, Q)."""
    best = similarity.max(axis=-1, keepdims=True)
    # Rounding must not decide between prototypes that are the same vector.
    ties = similarity >= best - 1e-6 * np.abs(best)
    own = np.einsum("enqn->enq", ties)
    share: Array = own / np.count_nonzero(ties, axis=-1)
    return share


_TIED = 1e-12  # a share below which there is no tie but rounding
MEASURES = ("one-shot", "few-shot", "neighbours", "in a crowd")
CROWD = 19  # examples of other classes, beside one of the query's class
WAYS = 20
FEW = (5, 3, 2)
VOTERS = 5

Fit = Callable[[Mask], Space]  # from the rows of the support side to a space


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """Sides and episodes of trials, drawn once for all candidates.

    labels, groups: (n,) numbers. sides: query sides (n,). episodes: for each side, those of one
    shot and those of `shots` (None where no two classes have so many). shots: 1 where there are no
    episodes of several.
    """

    labels: Rows
    groups: Rows
    sides: tuple[Mask, ...]
    episodes: tuple[tuple[Episodes, Episodes | None], ...]
    shots: int

    @property
    def ways(self) -> int:
        """The most classes in an episode."""
        return max(one.ways for one, _ in self.episodes)

    def scores(self, vectors: npt.ArrayLike, fit: Fit) -> Array:
        """(4, n) the mean score of each row as a query, by measure; NaN where it is none.

        fit: gives the space from the mask of the support side.
        """
        return self.scores_by(lambda support: products(fit(support)(vectors)))

    def scores_by(self, inner_by: Callable[[Mask], Array]) -> Array:
        """As `scores`, from a function that gives the inner products (n, n) of all rows by the mask
        of the support side."""
        total = np.zeros((len(MEASURES), len(self.labels)))
        count = np.zeros_like(total)
        for side, drawn in zip(self.sides, self.episodes, strict=True):
            inner = inner_by(~side)
            similarity = cosines(inner, side)
            for number, episodes in enumerate(drawn):
                if episodes is not None:
                    queries, shares = episodes.query.ravel(), answered(inner, episodes).ravel()
                    total[number] += np.bincount(queries, shares, len(self.labels))
                    count[number] += np.bincount(queries, minlength=len(self.labels))
            queries = np.flatnonzero(side)
            labels, support = self.labels[queries], self.labels[~side]
            rest = (voted(similarity, labels, support), crowded(similarity, labels, support))
            for number, found in enumerate(rest, 2):
                known = np.isfinite(found)
                total[number, queries[known]] += found[known]
                count[number, queries[known]] += 1
        with np.errstate(invalid="ignore"):
            means: Array = (total / np.where(count, count, np.nan)).astype(np.float32)
        return means


def plan(
    labels: Rows,
    groups: Rows,
    *,
    repeats: int = 3,
    count: int = 200,
    ways: int = WAYS,
    seed: int = 0,
) -> TrialPlan:
    """Halves that share no group, `repeats` times; each half is the query side once.

    Raises:
        LabelsError: fewer than two classes have items on both sides.
    """
    sides = tuple(
        side
        for side in partitions(labels, groups, 2, repeats, seed)
        if len(able(labels, side, 1)) > 1
    )
    if not sides:
        raise LabelsError(
            "the items cannot be divided so that two classes have items on both sides and no group "
            "is on both; give classes items of two groups or more, or give no groups"
        )
    shots = few(labels, sides)
    drawn = []
    for number, side in enumerate(sides):
        both: list[Episodes | None] = []
        for k in (1, shots):
            classes = len(able(labels, side, k))
            fits = classes > 1 and (k > 1 or not both)
            both.append(
                draw(labels, side, min(ways, classes), k, count, seed + number) if fits else None
            )
        first = both[0]
        assert first is not None  # its side has two classes
        drawn.append((first, both[1]))
    return TrialPlan(labels, groups, sides, tuple(drawn), shots)


def few(labels: Rows, sides: Sequence[Mask]) -> int:
    """The shots of few-shot episodes: the largest of FEW that most classes have; 1 for none."""
    for shots in FEW:
        if all(2 * len(able(labels, side, shots)) > len(able(labels, side, 1)) for side in sides):
            return shots
    return 1


def cosines(inner: Array, side: Mask) -> Array:
    """(q, s) of the query side with the support side. inner: (n, n), `products` of vectors."""
    root = np.sqrt(np.maximum(np.diag(inner), 0.0))
    length = np.where(root > 0, root, 1.0)
    both = inner[np.ix_(side, ~side)] / length[~side] / length[side, None]
    similarity: Array = both.astype(np.float32)
    return similarity


def voted(similarity: Array, labels: Rows, support: Rows, k: int = VOTERS) -> Array:
    """(q,) whether the vote of the k nearest support rows is right.

    similarity: (q, s) cosines. labels: (q,) of the queries. support: (s,) labels.
    """
    k = min(k, similarity.shape[1])
    # Rows often stand class by class: equally near ones must not come in that order.
    mixed = np.random.default_rng(0).permutation(similarity.shape[1])
    similarity, support = similarity[:, mixed], support[mixed]
    top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    classes = int(max(labels.max(), support.max())) + 1
    winner = majority(support[top], np.take_along_axis(similarity, top, axis=1), classes)
    right: Array = (winner == labels).astype(np.float32)
    return right


def crowded(similarity: Array, labels: Rows, support: Rows, others: int = CROWD) -> Array:
    """(q,) the probability that one example of the query's class is nearer than all of `others`
    examples of other classes, each class equally likely; NaN where either is absent.

    Exact, not sampled. With three classes it is as hard as one-shot of many ways, so that it
    separates good from better where few classes are labelled. Arguments as for `voted`.
    """
    size = np.bincount(support, minlength=int(max(labels.max(), support.max())) + 1)
    classes = int((size > 0).sum())
    found: Array = np.full(len(labels), np.nan, np.float32)
    asked = (size[labels] > 0) & (classes > 1)
    order = similarity[asked].argsort(axis=1)
    ranked = np.take_along_axis(similarity[asked], order, axis=1)
    own = support[order] == labels[asked, None]
    # Each other class weighs the same, all of them one; examples of the own class weigh nothing.
    weight = np.where(own, 0.0, 1.0 / (size[support] * max(1, classes - 1))[order])
    below = np.zeros((len(order), len(support) + 1))
    np.cumsum(weight, axis=1, out=below[:, 1:])
    query, place = np.nonzero(own)
    first, behind = (ends[query, place] for ends in _ties(ranked))
    # Of the others a share is nearer than each example, and a share as near: these come before it
    # or behind it by chance, each place as likely.
    nearer, upto = 1.0 - below[query, behind], 1.0 - below[query, first]
    tied, power = upto - nearer, others + 1
    left, rest = np.maximum(1.0 - nearer, 0.0), np.maximum(1.0 - upto, 0.0)
    spread = (left**power - rest**power) / (np.where(tied > _TIED, tied, 1.0) * power)
    chance = np.where(tied > _TIED, spread, left**others)
    found[asked] = np.bincount(query, chance, len(order)) / np.bincount(query, minlength=len(order))
    return found


def _ties(ranked: Array) -> tuple[Rows, Rows]:
    """For each place of ascending rows (q, s): the first place with the same value, and the one
    behind the last."""
    places = np.arange(ranked.shape[1])
    other = ranked[:, 1:] != ranked[:, :-1]
    starts, ends = np.zeros(ranked.shape, np.int64), np.full(ranked.shape, len(places))
    starts[:, 1:] = np.where(other, places[1:], 0)
    ends[:, :-1] = np.where(other, places[1:], len(places))
    backwards = np.minimum.accumulate(ends[:, ::-1], axis=1)
    return np.maximum.accumulate(starts, axis=1), backwards[:, ::-1]
