"""95 % intervals by a bootstrap over clusters: trials on the same class or speaker are not
independent. Numpy in, numbers out; knows no task.

Two methods: of a mean over one or several crossed ways of clustering (`estimates`), and of any
other statistic over one way (`percentile_interval`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
LEVEL = 0.95

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; NaN where nothing was measured."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def words(self) -> str:
        """`63.9 % (58.1 to 70.2)`."""
        if np.isnan(self.value):
            return ""
        if np.isnan(self.low):
            return f"{100 * self.value:.1f} %"
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def percentile_interval(
    statistic: Callable[[Array], float | tuple[float, ...]], draws: Iterable[Rows]
) -> tuple[Array, Array]:
    """(lower, upper) ends of the middle 95 % of a statistic over resamples of clusters (percentile
    bootstrap: Efron and Tibshirani, 1993; whole clusters: Field and Welsh, JRSS B 2007).

    draws: for each resample, how often each of the c clusters was drawn (c,). statistic: takes
    these weights (c,) and gives one number or several; NaN where it is not defined.
    """
    values = np.array([statistic(np.asarray(weights, np.float64)) for weights in draws])
    each = values.reshape(len(values), -1)
    defined = np.isfinite(each).any(axis=0)
    ends = np.full((2, each.shape[1]), np.nan)
    tails = (50 - 50 * LEVEL, 50 + 50 * LEVEL)
    ends[:, defined] = np.nanpercentile(each[:, defined], tails, axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high


def estimate(values: npt.ArrayLike, *clusters: Rows, seed: int = 0) -> Estimate:
    """`estimates` of one row of values."""
    return estimates(np.asarray(values, np.float64).reshape(1, -1), *clusters, seed=seed)[0]


def estimates(values: npt.ArrayLike, *clusters: Rows, seed: int = 0) -> list[Estimate]:
    """The mean of each row of (m, n) values, NaN left out, with an interval.

    clusters: (n,) numbers, one array for each way of clustering the values (by class, by group);
    without one, each value is a cluster. Each way is resampled independently (the pigeonhole
    bootstrap: Owen, Annals of Applied Statistics 2007); the interval is widened for few clusters,
    as t is wider than the normal (expanded percentiles: Hesterberg, American Statistician 2015).
    All rows use the same draws.
    """
    rows = np.asarray(values, np.float64)
    known = np.isfinite(rows)
    measured = known.any(axis=0)
    if not measured.any():
        return [NOTHING] * len(rows)
    rows, known = rows[:, measured], known[:, measured]
    ways = [np.unique(way[measured], return_inverse=True)[1].reshape(-1) for way in clusters]
    ways = ways or [np.arange(rows.shape[1])]
    fewest = min(int(way.max()) + 1 for way in ways)
    total, count, weight = _cells(np.where(known, rows, 0.0), known, ways, seed)
    found = []
    for number in range(len(rows)):
        below = count[number].sum()
        mean = float(total[number].sum() / below) if below else float("nan")
        if fewest < 2 or not below:
            found.append(Estimate(mean, float("nan"), float("nan")))
            continue
        drawn = weight @ count[number]
        kept = drawn > 0  # a draw of crossed clusters may be empty
        means = (weight[kept] @ total[number]) / drawn[kept]
        low, high = np.quantile(means, _tails(fewest))
        found.append(Estimate(mean, float(low), float(high)))
    return found


def _cells(
    rows: Array, known: npt.NDArray[np.bool_], ways: list[Rows], seed: int
) -> tuple[Array, Array, Array]:
    """Sums and counts (m, cells) over the cells of crossed clusters, and how often each draw takes
    each cell (draws, cells): the work of a draw grows with cells instead of values."""
    random = np.random.default_rng(seed)
    sizes = tuple(int(way.max()) + 1 for way in ways)
    occupied, at = np.unique(np.ravel_multi_index(tuple(ways), sizes), return_inverse=True)
    order = np.argsort(at.reshape(-1), kind="stable")
    starts = np.searchsorted(at.reshape(-1)[order], np.arange(len(occupied)))
    total = np.add.reduceat(rows[:, order], starts, axis=1)
    count = np.add.reduceat(known[:, order].astype(np.float64), starts, axis=1)
    weight = np.ones((DRAWS, len(occupied)))
    for size, way in zip(sizes, np.unravel_index(occupied, sizes), strict=True):
        weight *= random.multinomial(size, np.full(size, 1 / size), DRAWS)[:, way]
    return total, count, weight


def _tails(clusters: int) -> tuple[float, float]:
    """The quantiles between which 95 % lie, moved out for few clusters."""
    from scipy import stats

    wide = stats.t.ppf((1 + LEVEL) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    tail = float(stats.norm.cdf(-wide))
    return tail, 1 - tail
