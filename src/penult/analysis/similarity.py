"""How alike two embedders' vectors of the same rows are: nearest rows kept, linear CKA, rows that
moved, and retrieval and a probe with paired differences.

Numpy in, numbers out; knows no model and no collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.analysis.bootstrap import LEVEL, Estimate, estimates
from penult.analysis.candidates import MOST, sample
from penult.analysis.episodes import numbered, own_groups
from penult.analysis.metrics import neighbours
from penult.analysis.neighbour_graph import NONE, NearestRows, NeighbourSearch
from penult.analysis.probe import probe_hits
from penult.analysis.space import unit
from penult.errors import LabelsError

FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

LEAST = 4  # rows, of which CKA without bias is made
_BLOCKS = 20  # of groups, that are left out in turn
_REFERENCES = 1000  # rows to which cosines are compared
_VOTERS = 5


def linear_cka(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Linear centred kernel alignment of the same rows (n, d) and (n, e): 1 where one is the other
    turned and scaled, about 0 where they have nothing in common (Kornblith et al., ICML 2019). By
    the HSIC without bias (Song et al., JMLR 2012), since the biased one is high for few rows. NaN
    where all rows of one are the same.

    Raises:
        LabelsError: fewer than four rows, or numbers of rows that differ.
    """
    first, second = (np.asarray(rows, np.float64) for rows in (one, other))
    if len(first) != len(second) or len(first) < LEAST:
        raise LabelsError(
            f"CKA is of {LEAST} or more rows of both; received {len(first)} and {len(second)}"
        )
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    own = _hsic(first, first) * _hsic(second, second)
    return float(_hsic(first, second) / np.sqrt(own)) if own > 0 else float("nan")


def estimate_cka(
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Estimate:
    """`linear_cka` with a 95 % interval over groups (rows, without groups): a jackknife that leaves
    out one block of groups at a time (of unequal size: Busing, Meijer and van der Leeden,
    Statistics and Computing 1999), with t for the number of blocks. Resampled groups would hold
    rows twice, which look alike. More than 20 groups are dealt into 20 blocks by chance.
    """
    from scipy import stats

    first, second = (np.asarray(rows, np.float64) for rows in (one, other))
    value = linear_cka(first, second)
    number = numbered(own_groups([None] * len(first) if groups is None else groups))[0]
    dealt = np.random.default_rng(seed).permutation(int(number.max()) + 1) % _BLOCKS
    block = np.unique(dealt[number], return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(block)
    if len(sizes) < 2 or len(first) - sizes.max() < LEAST or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    left = np.array(
        [linear_cka(first[block != at], second[block != at]) for at in range(len(sizes))]
    )
    times = len(first) / sizes
    pseudo = times * value - (times - 1) * left
    middle = len(sizes) * value - ((1 - 1 / times) * left).sum()
    error = np.sqrt(((pseudo - middle) ** 2 / (times - 1)).mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(sizes) - 1) * error)
    return Estimate(value, value - half, min(1.0, value + half))


def _hsic(first: FloatArray, second: FloatArray) -> float:
    """Without the (n, n) products of rows. first, second: (n, d) and (n, e), centred."""
    n = len(first)
    lengths, others = (first**2).sum(axis=1), (second**2).sum(axis=1)
    # The products' diagonals are zero; rows are centred, so that those of a row sum to −length.
    trace = ((first.T @ second) ** 2).sum() - lengths @ others
    total = lengths.sum() * others.sum() / ((n - 1) * (n - 2))
    return float((trace + total - 2 * (lengths @ others) / (n - 2)) / (n * (n - 3)))


def nearest_rows(
    vectors: npt.ArrayLike, k: int, groups: Sequence[str | None] | None = None
) -> NearestRows:
    """The k nearest other rows of each by cosine; rows of one group are none of each other."""
    rows = np.asarray(vectors, np.float32)
    own = np.arange(len(rows)) if groups is None else numbered(own_groups(groups))[0]
    search = NeighbourSearch(rows, k, [own])
    search.compare(np.arange(len(rows)))
    return search.found()


def neighbours_kept(first: Places, second: Places) -> FloatArray:
    """(n,) the share of each row's neighbours in one list (n, k) that are in the other, too; NaN
    for a row without any. Of lists of two lengths the shorter counts."""
    found = np.full(len(first), np.nan)
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        there, those = one[one != NONE], other[other != NONE]
        if most := min(len(there), len(those)):
            found[row] = len(np.intersect1d(there[:most], those[:most])) / most
    return found


def moved(one: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> FloatArray:
    """(n,) one minus the correlation of a row's cosines to other rows, in one space and the other:
    0 where it stands to them as before. Up to 1,000 rows drawn by chance are the others."""
    first, second = (unit(np.asarray(rows, np.float64)) for rows in (one, other))
    n = len(first)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:_REFERENCES])
    cosines = [rows @ rows[chosen].T for rows in (first, second)]
    for each in cosines:
        each[chosen, np.arange(len(chosen))] = np.nan  # of a row with itself
        each -= np.nanmean(each, axis=1, keepdims=True)
    product, *squares = (
        np.nansum(one * other, axis=1)
        for one, other in ((cosines[0], cosines[1]), *((each, each) for each in cosines))
    )
    root = np.sqrt(squares[0] * squares[1])
    found: FloatArray = np.where(root > 0, 1 - product / np.where(root > 0, root, 1.0), np.nan)
    return found


@dataclass(frozen=True, slots=True)
class PairedMeasure:
    """A measure of the same rows in two spaces and the difference, the second less the first, each
    with its 95 % interval over groups."""

    name: str
    first: Estimate
    second: Estimate
    difference: Estimate

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": self.difference.to_dict(),
        }


def paired_measures(
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    labels: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
) -> list[PairedMeasure]:
    """Retrieval (mean average precision), votes of five neighbours and a linear probe in both
    spaces (n, d) and (n, e), on the same rows and folds. Rows without a class take no part, and of
    more than 5,000 a sample. groups: no row is compared with rows of its own.

    Raises:
        LabelsError: fewer than two classes, or groups that leave nothing to train and test on.
    """
    named = np.array([at for at, name in enumerate(labels) if name is not None], np.int64)
    classes, names = numbered([labels[at] for at in named])
    if len(names) < 2:
        what = f"all rows are {names[0]!r}" if names else "no row has a class"
        raise LabelsError(f"retrieval and a probe need two classes or more: {what}")
    own = numbered(own_groups([None] * len(labels) if groups is None else groups))[0][named]
    some = sample(classes, own, MOST)
    named, classes, own = named[some], classes[some], own[some]
    values: dict[str, list[FloatArray]] = {}
    for vectors in (one, other):
        rows = np.asarray(vectors, np.float32)[named]
        near = neighbours(rows, classes, own, _VOTERS)
        for name, each in (("retrieval, mAP", near.precision), ("5 neighbours", near.correct)):
            full = np.full(len(rows), np.nan)
            full[near.rows] = each
            values.setdefault(name, []).append(full)
        values.setdefault("linear probe", []).append(probe_hits(rows, classes, own))
    return [
        PairedMeasure(name, *estimates([first, second, second - first], own))
        for name, (first, second) in values.items()
    ]
