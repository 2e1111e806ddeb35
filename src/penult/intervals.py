"""95 % intervals by a bootstrap over clusters: trials on the same class or speaker are not
independent. Numpy in, numbers out; knows no task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the interval that holds it with 95 %; NaN where there is nothing to say."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def estimate(
    values: npt.ArrayLike, *clusters: npt.NDArray[np.int64], seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """The mean of (n,) values, with an interval.

    clusters: (n,) numbers from 0, one array for each way in which values hang together (their
    class, their group). Each way is resampled on its own (the pigeonhole bootstrap: Owen, Annals of
    Applied Statistics 2007); the interval is widened for few clusters, as t is wider than the
    normal (expanded percentiles: Hesterberg, American Statistician 2015).
    """
    rows = np.asarray(values, np.float64).reshape(-1)
    if not len(rows):
        return Estimate(float("nan"), float("nan"), float("nan"))
    mean = float(rows.mean())
    ways = [np.unique(way, return_inverse=True)[1].reshape(-1) for way in clusters]
    ways = ways or [np.arange(len(rows))]
    fewest = min(int(way.max()) + 1 for way in ways)
    if fewest < 2:
        return Estimate(mean, float("nan"), float("nan"))
    means = _resampled(rows, ways, np.random.default_rng(seed), draws)
    low, high = np.quantile(means, _tails(fewest))
    return Estimate(mean, float(low), float(high))


def _resampled(
    rows: npt.NDArray[np.float64],
    ways: list[npt.NDArray[np.int64]],
    random: np.random.Generator,
    draws: int,
) -> npt.NDArray[np.float64]:
    """(draws,) means, with each cluster taken as often as it was drawn.

    Summed by the cells of crossed clusters first, so that a draw costs cells and not values.
    """
    sizes = [int(way.max()) + 1 for way in ways]
    cell = np.ravel_multi_index(tuple(ways), tuple(sizes))
    there, at = np.unique(cell, return_inverse=True)
    total = np.bincount(at.reshape(-1), rows)
    count = np.bincount(at.reshape(-1)).astype(np.float64)
    weight = np.ones((draws, len(there)))
    for size, way in zip(sizes, np.unravel_index(there, tuple(sizes)), strict=True):
        taken = random.multinomial(size, np.full(size, 1 / size), draws)
        weight *= taken[:, way]
    below = weight @ count
    kept = below > 0  # an empty draw of crossed clusters says nothing
    means: npt.NDArray[np.float64] = (weight[kept] @ total) / below[kept]
    return means


def _tails(clusters: int) -> tuple[float, float]:
    """The quantiles between which 95 % lie, moved out for few clusters."""
    from scipy import stats

    wide = stats.t.ppf((1 + LEVEL) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    tail = float(stats.norm.cdf(-wide))
    return tail, 1 - tail
