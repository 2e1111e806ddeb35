"""Whether parts of a set of rows (weeks, sites, batches) differ more than chance: a classifier
two-sample test (Lopez-Paz and Oquab, ICLR 2017) by a linear discriminant and permutations of
groups.

Numpy in, a small dataclass out; knows no collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma

import numpy as np
import numpy.typing as npt

from penult.analysis.episodes import numbered, own_groups
from penult.analysis.space import check_finite, fit
from penult.errors import LabelsError

FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

DRAWS = 999  # permutations
LEAST = 3  # blocks on a side of a comparison
FOLDS = 10  # at most; of more groups several share one
_STREAM = 5  # of random numbers
_EQUAL = 1e-6  # by which statistics may fall short and count as equal: rounding


@dataclass(frozen=True, slots=True)
class Contrast:
    """Some parts against all others. number: the part; of a split the first part behind it.
    rows, blocks: inside. auroc: of held-out rows inside against those outside; 0.5 is chance.
    p_value: corrected for all contrasts. strength: in standard deviations over permutations."""

    number: int
    rows: int
    blocks: int
    auroc: float
    p_value: float
    strength: float


@dataclass(frozen=True, slots=True)
class DriftTest:
    """Contrasts of parts. parts: each against the others. splits: what is behind against what is
    before, where parts have an order. Both without those of fewer than three blocks on a side.
    scores: (n, c) of rows, held out, for the contrasts in this order; higher is more like the
    inside. blocks_of: how many each part has. crossed: groups with rows of several parts. smallest:
    no p-value can be lower."""

    parts: list[Contrast]
    splits: list[Contrast]
    scores: FloatArray
    blocks_of: list[int]
    groups: int
    crossed: int
    smallest: float

    @property
    def contrasts(self) -> list[Contrast]:
        """In the order of the scores."""
        return [*self.parts, *self.splits]

    @property
    def p_value(self) -> float:
        """That nothing differs: the smallest of all contrasts."""
        return min(one.p_value for one in self.contrasts)

    @property
    def strongest(self) -> int:
        """The place of the strongest contrast: of the splits, where there are some."""
        among = range(len(self.parts), len(self.contrasts)) or range(len(self.parts))
        return max(among, key=lambda place: self.contrasts[place].strength)


def drift_test(
    vectors: npt.ArrayLike,
    parts: npt.ArrayLike,
    groups: Sequence[str | None] | None = None,
    ordered: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> DriftTest:
    """Test each part against the others and, where they are ordered, what is behind each split
    against what is before it.

    vectors: (n, d). parts: (n,) numbers from 0. groups: rows of one (recording, machine) are
    permuted together, and are on one side of every fold; a group with rows of several parts is
    permuted within itself, a block for each part, and its mean is taken off. None: each row is one.

    Rows are whitened by their covariance (Ledoit and Wolf, 2004), which knows no parts; a block is
    the mean of its rows. The statistic is the difference of the mean scores inside and outside of
    held-out blocks, by the difference of the means of the others. It is brought to mean 0 and
    deviation 1 over permutations, and compared with the largest one of all contrasts in each
    (Westfall and Young, 1993), so that with probability α or less any p-value is α or lower where
    nothing differs.

    Raises:
        LabelsError: fewer than two parts, two groups, or three blocks on both sides of a contrast;
            lengths that differ. SpaceError: vectors that are not finite.
    """
    every, part = np.asarray(vectors, np.float64), np.asarray(parts, np.int64)
    _check(every, part, groups, draws)
    # Whoever shuffled the rows with a generator of this seed would have drawn the same numbers.
    random = np.random.default_rng([seed, _STREAM])
    blocks = _Blocks.of(every, part, groups, random)
    ways = [*_of_parts(blocks), *(_of_splits(blocks) if ordered else [])]
    if not ways:
        raise LabelsError(
            f"no part has {LEAST} groups, with {LEAST} others outside of it: "
            f"{blocks.groups} groups of {len(part)} rows are in {blocks.parts} parts"
        )
    inside = np.array([way for _, way in ways])
    drawn = [blocks.statistics(inside, blocks.permuted(random)) for _ in range(draws)]
    values = np.array([blocks.statistics(inside, blocks.part), *drawn])
    deviation = values.std(axis=0)
    strengths = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    own, largest = strengths[0], strengths[1:].max(axis=1)
    reached = largest[:, None] >= own - _EQUAL * np.maximum(1.0, np.abs(own))
    p_values = (1 + reached.sum(axis=0)) / (draws + 1)
    scores = blocks.row_scores(inside)
    made = [
        _contrast(number, way, blocks, scores[:, at], float(p_values[at]), float(own[at]))
        for at, (number, way) in enumerate(ways)
    ]
    split = len(_of_parts(blocks))
    return DriftTest(
        made[:split], made[split:], scores, np.bincount(blocks.part).tolist(), blocks.groups,
        blocks.crossed, max(1 / (draws + 1), blocks.smallest(ordered)),
    )  # fmt: skip


def _check(
    every: FloatArray, part: Places, groups: Sequence[str | None] | None, draws: int
) -> None:
    if every.ndim != 2 or part.shape != (len(every),):
        raise LabelsError(f"parts of shape {part.shape} do not fit vectors of shape {every.shape}")
    if groups is not None and len(groups) != len(part):
        raise LabelsError(f"{len(groups)} groups do not fit {len(part)} rows")
    if draws < 1:
        raise LabelsError(f"{draws} permutations: one or more are needed, such as {DRAWS}")
    if len(np.unique(part)) < 2:
        raise LabelsError("all rows are of one part; two or more are compared")
    check_finite(every)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Rows of one group and part, which are permuted together.

    rows: (n, d) whitened. of_row: (n,) the block of each. means: (b, d). part, fold, stratum: (b,);
    blocks are permuted within strata: a group with several, or all groups with one.
    """

    rows: FloatArray
    of_row: Places
    means: FloatArray
    part: Places
    fold: Places
    stratum: Places
    parts: int
    groups: int
    crossed: int

    @classmethod
    def of(
        cls,
        every: FloatArray,
        part: Places,
        groups: Sequence[str | None] | None,
        random: np.random.Generator,
    ) -> _Blocks:
        names = own_groups([None] * len(part) if groups is None else groups)
        group, there = numbered(names)
        if len(there) < 2:
            raise LabelsError(
                "all rows are of one group; what differs more than chance is told by two or more"
            )
        parts = int(part.max()) + 1
        cells, of_row = np.unique(group * parts + part, return_inverse=True)
        of_group, own = np.divmod(cells, parts)
        several = np.bincount(of_group) > 1
        rows = every - every.mean(axis=0)
        means = _means(rows, of_row)
        for number in np.flatnonzero(several):  # the same for all permutations of its blocks
            rows[group == number] -= means[of_group == number].mean(axis=0)
        rows = np.asarray(fit("whiten", rows)(rows), np.float64)
        order = random.permutation(len(there))
        fold = np.empty(len(there), np.int64)
        fold[order] = np.arange(len(there)) % FOLDS
        stratum = np.where(several[of_group], 1 + of_group, 0)
        return cls(rows, of_row, _means(rows, of_row), own, fold[of_group], stratum, parts,
                   len(there), int(several.sum()))  # fmt: skip

    def permuted(self, random: np.random.Generator) -> Places:
        """(b,) the part of each block, drawn anew."""
        found = np.empty_like(self.part)
        mixed = np.lexsort((random.random(len(self.part)), self.stratum))
        found[mixed] = self.part[np.argsort(self.stratum, kind="stable")]
        return found

    def smallest(self, ordered: bool) -> float:
        """One over the number of ways in which blocks can be permuted, such that statistics differ:
        where parts are of one size, the same blocks under other names do not."""
        ways, even = 0.0, True
        for stratum in np.unique(self.stratum):
            counts = np.bincount(self.part[self.stratum == stratum], minlength=self.parts)
            ways += lgamma(counts.sum() + 1) - sum(lgamma(count + 1) for count in counts)
            even = even and bool(np.ptp(counts) == 0)
        if even:
            ways -= lgamma((2 if ordered else self.parts) + 1)
        return min(1.0, exp(-ways))

    def _sums(self, part: Places) -> tuple[FloatArray, Places]:
        """The sum (F, P, d) and number (F, P) of the blocks of each fold and part."""
        from scipy.sparse import csr_matrix

        folds, count = int(self.fold.max()) + 1, len(part)
        place = self.fold * self.parts + part
        shape = (folds * self.parts, count)
        mark = csr_matrix((np.ones(count), (place, np.arange(count))), shape=shape)
        sums = (mark @ self.means).reshape(folds, self.parts, -1)
        counts: Places = np.bincount(place, minlength=shape[0]).reshape(folds, self.parts)
        return sums, counts

    def statistics(self, inside: Mask, part: Places) -> FloatArray:
        """(c,) held-out mean scores inside less those outside. inside: (c, P) parts."""
        sums, counts = self._sums(part)
        every = counts.sum(axis=0)
        products = sums @ (sums.sum(axis=0) - sums).transpose(0, 2, 1)  # of tested and others
        tested, trained = _differences(inside, every), _differences(inside, every - counts)
        found: FloatArray = ((tested @ products) * trained).sum(axis=(0, 2))
        return found

    def row_scores(self, inside: Mask) -> FloatArray:
        """(n, c) by the blocks of other folds."""
        sums, counts = self._sums(self.part)
        trained = _differences(inside, counts.sum(axis=0) - counts)
        directions = trained @ (sums.sum(axis=0) - sums)
        scores, fold = np.empty((len(self.rows), len(inside))), self.fold[self.of_row]
        for number, mine in enumerate(directions):
            scores[fold == number] = self.rows[fold == number] @ mine.T
        return scores


def _means(rows: FloatArray, of_row: Places) -> FloatArray:
    order = np.argsort(of_row, kind="stable")
    counts = np.bincount(of_row)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means: FloatArray = np.add.reduceat(rows[order], starts, axis=0) / counts[:, None]
    return means


def _differences(inside: Mask, counts: Places) -> FloatArray:
    """(…, c, P) weights by which sums of parts, with these counts (…, P) of blocks, become the mean
    inside less the mean outside; zeros where either has none."""
    within, without = counts @ inside.T, counts @ ~inside.T
    some = (within > 0) & (without > 0)
    shares = inside / np.maximum(within, 1)[..., None] - ~inside / np.maximum(without, 1)[..., None]
    found: FloatArray = shares * some[..., None]
    return found


def _of_parts(blocks: _Blocks) -> list[tuple[int, Mask]]:
    each = np.arange(blocks.parts)
    return [(number, way) for number in each.tolist() if _enough(blocks, way := each == number)]


def _of_splits(blocks: _Blocks) -> list[tuple[int, Mask]]:
    each = np.arange(blocks.parts)
    return [(number, way) for number in each[1:].tolist() if _enough(blocks, way := each >= number)]


def _enough(blocks: _Blocks, inside: Mask) -> bool:
    count = int(inside[blocks.part].sum())
    return min(count, len(blocks.part) - count) >= LEAST


def _contrast(
    number: int, way: Mask, blocks: _Blocks, scores: FloatArray, p_value: float, strength: float
) -> Contrast:
    from sklearn.metrics import roc_auc_score

    within = way[blocks.part[blocks.of_row]]
    auroc = float(roc_auc_score(within, scores))
    count = int(way[blocks.part].sum())
    return Contrast(number, int(within.sum()), count, auroc, p_value, strength)
