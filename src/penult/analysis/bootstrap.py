"""95 % intervals by a bootstrap over clusters: trials on the same class or speaker are not
independent. Numpy in, numbers out; knows no task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
LEVEL = 0.95

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the interval that holds it with 95 %; NaN where there is nothing to say."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
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


def estimate(values: npt.ArrayLike, *clusters: Rows, seed: int = 0) -> Estimate:
    """`estimates` of one row of values."""
    return estimates(np.asarray(values, np.float64).reshape(1, -1), *clusters, seed=seed)[0]


def estimates(values: npt.ArrayLike, *clusters: Rows, seed: int = 0) -> list[Estimate]:
    """The mean of each row of (m, n) values, NaN left out, with an interval.

    clusters: (n,) numbers, one array for each way in which values hang together (their class,
    their group); without one, each value stands for itself. Each way is resampled on its own (the
    pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007); the interval is widened for few
    clusters, as t is wider than the normal (expanded percentiles: Hesterberg, American
    Statistician 2015). All rows see the same draws.
    """
    rows = np.asarray(values, np.float64)
    known = np.isfinite(rows)
    asked = known.any(axis=0)
    if not asked.any():
        return [NOTHING] * len(rows)
    rows, known = rows[:, asked], known[:, asked]
    ways = [np.unique(way[asked], return_inverse=True)[1].reshape(-1) for way in clusters]
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
        kept = drawn > 0  # an empty draw of crossed clusters says nothing
        means = (weight[kept] @ total[number]) / drawn[kept]
        low, high = np.quantile(means, _tails(fewest))
        found.append(Estimate(mean, float(low), float(high)))
    return found


def _cells(
    rows: Array, known: npt.NDArray[np.bool_], ways: list[Rows], seed: int
) -> tuple[Array, Array, Array]:
    """Sums and counts (m, cells) over the cells of crossed clusters, and how often each of the
    draws takes each cell (draws, cells): a draw then costs cells and not values."""
    random = np.random.default_rng(seed)
    sizes = tuple(int(way.max()) + 1 for way in ways)
    there, at = np.unique(np.ravel_multi_index(tuple(ways), sizes), return_inverse=True)
    order = np.argsort(at.reshape(-1), kind="stable")
    starts = np.searchsorted(at.reshape(-1)[order], np.arange(len(there)))
    total = np.add.reduceat(rows[:, order], starts, axis=1)
    count = np.add.reduceat(known[:, order].astype(np.float64), starts, axis=1)
    weight = np.ones((DRAWS, len(there)))
    for size, way in zip(sizes, np.unravel_index(there, sizes), strict=True):
        weight *= random.multinomial(size, np.full(size, 1 / size), DRAWS)[:, way]
    return total, count, weight


def _tails(clusters: int) -> tuple[float, float]:
    """The quantiles between which 95 % lie, moved out for few clusters."""
    from scipy import stats

    wide = stats.t.ppf((1 + LEVEL) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    tail = float(stats.norm.cdf(-wide))
    return tail, 1 - tail
