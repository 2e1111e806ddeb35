"""Fitted spaces on other recordings: how far their vectors collapse there, and how the spaces are
refitted without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space, Step, check_finite, fit_seen, unit
from penult.errors import SpaceError

Floats = npt.NDArray[np.float64]

MEAN, CORAL = ADAPTATIONS = ("mean", "coral")
LEAST = 20  # rows, from which a spread says something
COLLAPSED = 0.5  # the mean cosine of all pairs, from which a space is told to be of other data
_ROWS = 1000  # whose covariance is aligned at most
_RIDGE = 0.25  # of the total variance; measured, docs/decisions/2026-11-30-choose.md
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean cosine of all pairs of rows: raw, less their own mean, and in a space. Near 1 all rows
    look alike there. retrieval: for the same three, the share of rows whose nearest one is of the
    same item; NaN where no item has two rows."""

    raw: float
    centred: float
    space: float
    retrieval: tuple[float, float, float]

    @property
    def is_collapsed(self) -> bool:
        """Whether the space was made for other data than these rows."""
        return self.space > max(COLLAPSED, self.centred)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("raw", "centred", "space")
        cosines = {name: getattr(self, name) for name in names}
        found = {n: None if np.isnan(v) else v for n, v in zip(names, self.retrieval, strict=True)}
        return {"mean_cosine": cosines, "self_retrieval": found, "collapsed": self.is_collapsed}

    def words(self) -> str:
        """The figures in a sentence."""
        said = (
            f"the mean cosine of all pairs of rows is {self.space:.2f} in the space ({self.raw:.2f}"
            f" of raw vectors, {self.centred:.2f} less their mean)"
        )
        if not np.isnan(self.retrieval[0]):
            shares = [f"{100 * share:.0f} %" for share in self.retrieval]
            said += (
                f"; the nearest row is of the same item for {shares[2]} ({shares[0]} raw, "
                f"{shares[1]} less their mean)"
            )
        return said


def spread(space: Space, vectors: npt.ArrayLike, items: Sequence[str] | None = None) -> Spread:
    """How far raw vectors (n, d) spread in a space, beside raw and centred ones. items: the item
    of each row, such as the recording of a window.

    Raises:
        SpaceError: fewer than two vectors, or values that are not finite.
    """
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise SpaceError(f"a spread is of two vectors or more; received shape {rows.shape}")
    forms = (rows, rows - rows.mean(axis=0), np.asarray(space(rows), np.float64))
    found = [unit(form) for form in forms]
    numbers = None if items is None else np.unique(np.asarray(items), return_inverse=True)[1]
    shares = tuple(_retrieval(form, numbers) for form in found)
    raw, centred, own = (_mean_cosine(form) for form in found)
    return Spread(raw, centred, own, (shares[0], shares[1], shares[2]))


def _mean_cosine(rows: Floats) -> float:
    """Over all pairs of two rows of length one."""
    n = len(rows)
    total = (rows.sum(axis=0) ** 2).sum() - (rows**2).sum()
    return float(total / (n * (n - 1)))


def _retrieval(rows: Floats, items: npt.NDArray[np.int64] | None) -> float:
    if items is None:
        return float("nan")
    several = np.bincount(items)[items] > 1
    if not several.any():
        return float("nan")
    asked, right = np.flatnonzero(several), 0
    for at in range(0, len(asked), _BLOCK):
        part = asked[at : at + _BLOCK]
        cosine = rows[part] @ rows.T
        cosine[np.arange(len(part)), part] = -np.inf
        right += int((items[cosine.argmax(axis=1)] == items[part]).sum())
    return right / len(asked)


def adapt(space: Space, vectors: npt.ArrayLike, how: str) -> Space:
    """A chosen space for raw vectors (n, d) of other recordings, without their labels: its recipe
    fitted anew to the rows that it has seen, which are first moved to where these vectors lie.

    how: `mean` gives them the mean of the vectors; `coral` their mean, scale and, as far as rows
    tell them, correlations (Sun, Feng and Saenko, 2016; instead of one, a quarter of the total
    variance is added to that along each direction).

    Raises:
        SpaceError: an unknown way, too few vectors, or a space that keeps no rows to move.
    """
    check_adaptation(space, how)
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) < LEAST:
        raise SpaceError(f"{len(rows)} rows are too few to adapt a space to; {LEAST} are needed")
    check_finite(rows)
    assert space.seen is not None
    seen = np.asarray(space.seen.vectors, np.float64)
    moved = seen - seen.mean(axis=0) + rows.mean(axis=0) if how == MEAN else _aligned(seen, rows)
    fitted = fit_seen(space.recipe, replace(space.seen, moved=moved.astype(np.float32)))
    return replace(fitted, adapted=how)


def check_adaptation(space: Space | None, how: str | None) -> None:
    """Refuse a refit that cannot be made; None asks for none.

    Raises:
        SpaceError: the message says why, and what works.
    """
    if how is None:
        return
    if how not in ADAPTATIONS:
        raise SpaceError(f"--adapt {how} is not known; {' and '.join(ADAPTATIONS)} work")
    if space is None or space.is_raw:
        raise SpaceError(
            "the embedder has no space, so that there is nothing to adapt; penult choose gives one"
        )
    if space.seen is None:
        raise SpaceError(
            "the embedder's space keeps no rows that it was fitted with, which adapting needs; "
            "penult choose of this version keeps them: choose again"
        )


def _aligned(seen: Floats, rows: Floats) -> Floats:
    """The rows seen with the mean, scale and correlations of others."""
    (mean, scale), (own, spread) = _moments(seen), _moments(rows)
    standard = (seen - mean) / scale
    white = _correlations(standard, -0.5)(standard)
    return _correlations((rows - own) / spread, 0.5)(white) * spread + own


def _moments(rows: Floats) -> tuple[Floats, Floats]:
    """(mean, standard deviation) of each number; 1 for the latter where it never changes."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    flat = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-12)
    return mean, np.where(flat, 1.0, deviation)


def _correlations(rows: Floats, power: float) -> Step:
    """The step (C + λ)^power, but for a factor, of standardised rows with correlations C: scaled
    along the directions in which they vary, and left as it is in all others."""
    if len(rows) > _ROWS:
        rows = rows[np.random.default_rng(0).choice(len(rows), _ROWS, replace=False)]
    wide = rows.shape[1] > len(rows)
    values, turned = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    kept = values > max(values[-1], 0.0) * 1e-9
    values, turned = values[kept], turned[:, kept]
    along = (rows.T @ turned / np.sqrt(values) if wide else turned).T
    factor = (values / (len(rows) * _RIDGE * rows.shape[1]) + 1.0) ** power
    mean = np.zeros(rows.shape[1], np.float32)
    return Step(mean, factor.astype(np.float32), along.astype(np.float32))
