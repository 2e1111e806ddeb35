"""Spaces: transforms of raw vectors (centre, scale, whiten, shrink, within, pca, l2), fitted on
vectors.

Numpy in, numpy out; knows no model and no collection.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from penult.errors import PenultError, SpaceError, cause
from penult.memory import check_unpacked

FloatArray = npt.NDArray[np.float32]

RAW = "raw"
AUTO = "auto"  # centred where there are enough vectors, see `fewshot.fitted.fit_space`
STEPS = ("centre", "scale", "whiten", "shrink", "within", "pca:N", "l2")
_SMALLEST = 1e-12
_DIRECTIONS = 512  # that `within` damps, at most: those of largest variance within classes
_SHRINKAGE = 3.0  # of `shrink`, in mean variances: measured, docs/decisions/2026-11-30-classes.md
_LEAST_SHRINKAGE = 0.5  # of `within`: measured, docs/decisions/2026-11-22-choosing.md


@dataclass(frozen=True, slots=True)
class Step:
    """x ↦ (x − mean) · factor, or x ↦ x / ‖x‖ where both are None.

    mean: (d,). factor: (d,) scales each number, (d, k) turns them into k others. along: (r, d)
    orthonormal directions; then factor is (r,), and scales the part along each of them.
    """

    mean: FloatArray | None = None
    factor: FloatArray | None = None
    along: FloatArray | None = None

    def __call__(self, vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, d) → (n, d) or (n, k)."""
        if self.mean is None or self.factor is None:
            return unit(vectors)
        moved = vectors - self.mean
        if self.along is not None:
            return moved + ((moved @ self.along.T) * (self.factor - 1)) @ self.along
        return moved * self.factor if self.factor.ndim == 1 else moved @ self.factor

    def back(self, direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(k,) → (d,): the direction in which the product with this one grows, before the step. A
        length is no direction."""
        if self.mean is None or self.factor is None:
            return direction
        if self.along is not None:
            return direction + ((direction @ self.along.T) * (self.factor - 1)) @ self.along
        return direction * self.factor if self.factor.ndim == 1 else self.factor @ direction


_ROWS = 16_384  # that are moved at a time, in double precision
_SAME = 1e-2  # of a vector's length, that one item's two vectors differ by at most: engines, fp16


@dataclass(frozen=True, slots=True)
class SeenRows:
    """The labelled rows that readings were chosen and a space was fitted with, so that figures on
    the same items can leave them out. vectors: (n, d) raw. labels: (n,) numbers of their classes,
    −1 for a row without one. groups: (n,) numbers; a row without a group is one of its own. moved:
    (n, d) what the space was fitted to in their place, once it was adapted to other recordings.

    Items are known again by their vectors, wherever they lie and whatever they are called now.
    """

    vectors: FloatArray
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    moved: FloatArray | None = None

    def arrays(self) -> dict[str, Any]:
        """All of them by name."""
        return {name: getattr(self, name) for name in ("vectors", "labels", "groups", "moved")}

    def places(self, vectors: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """(m,) which of the rows each raw vector (m, d) is; −1 for one that was not seen."""
        rows = np.asarray(vectors, np.float64)
        found = np.full(len(rows), -1, np.int64)
        if len(rows) and len(self.vectors):
            from scipy.spatial.distance import cdist

            apart = cdist(rows, self.vectors)
            nearest = apart.argmin(axis=1)
            same = apart.min(axis=1) <= _SAME * np.linalg.norm(rows, axis=1)
            found[same] = nearest[same]
        return found

    def beside(self, places: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(n,) the rows at these places (−1 is none) and all others of their groups."""
        at = np.asarray(places, np.int64)
        return np.isin(self.groups, self.groups[at[at >= 0]])


@dataclass(frozen=True, slots=True)
class Space:
    """A fitted recipe: steps that are applied to raw vectors in their order.

    seen: the rows that `penult choose` fitted it with, and chose its readings by; None for a space
    that was not chosen by labels. It is no part of the transform, nor of `id`. adapted: `mean` or
    `coral` where it was refitted to other recordings (`penult.analysis.adaptation`), else empty.
    others: (m, d) the raw rows that it was fitted to, where no example was among them; they are not
    saved.
    """

    recipe: str
    dim: int
    steps: tuple[Step, ...] = ()
    seen: SeenRows | None = field(default=None, compare=False, repr=False)
    adapted: str = ""
    others: FloatArray | None = field(default=None, compare=False, repr=False)

    def __call__(self, vectors: npt.ArrayLike) -> FloatArray:
        """(n, d) or (d,) → the same in this space, float32. A zero vector stays zero under l2.

        Raises:
            SpaceError: vectors of another width, or values that are not finite.
        """
        given = np.asarray(vectors)
        if given.ndim not in (1, 2) or given.shape[-1] != self.dim:
            raise SpaceError(
                f"vectors of shape {given.shape} do not fit a space of {self.dim} numbers; "
                "embed them with the embedder that the space was fitted for"
            )
        check_finite(given if np.issubdtype(given.dtype, np.floating) else given.astype(np.float64))
        moved: FloatArray
        if given.ndim == 1 or len(given) <= _ROWS:
            moved = self._moved(given)
        else:
            moved = np.concatenate(
                [self._moved(given[at : at + _ROWS]) for at in range(0, len(given), _ROWS)]
            )
        return moved

    def _moved(self, given: npt.NDArray[Any]) -> FloatArray:
        rows = given.astype(np.float64)
        for step in self.steps:
            rows = step(rows)
        return rows.astype(np.float32)

    def direction(self, point: npt.ArrayLike) -> FloatArray:
        """A point (d',) of this space → (d,): the direction in which raw vectors are looked for
        that are near to it, of length one; zeros where there is none. Products with both grow
        together, since every step is affine or changes a length only."""
        found = np.asarray(point, np.float64)
        for step in reversed(self.steps):
            found = step.back(found)
        direction: FloatArray = unit(found).astype(np.float32)
        return direction

    def without(self, out: npt.NDArray[np.bool_]) -> Space:
        """The recipe fitted anew to the rows that it has seen, but for those in the mask (n,); the
        space itself where it has seen none.

        Raises:
            SpaceError: the other rows are too few for it, or no class of them has two.
        """
        if self.seen is None or self.is_raw:
            return self
        rest = ~np.asarray(out, bool)
        moved = None if self.seen.moved is None else self.seen.moved[rest]
        kept = SeenRows(
            self.seen.vectors[rest], self.seen.labels[rest], self.seen.groups[rest], moved
        )
        return replace(fit_seen(self.recipe, kept), adapted=self.adapted)

    @property
    def width(self) -> int:
        """d', the numbers in a vector of this space."""
        return int(self(np.zeros(self.dim)).size)

    @property
    def is_raw(self) -> bool:
        """Whether it leaves vectors as they are."""
        return not self.steps

    @property
    def id(self) -> str:
        """A hash of the transform; vectors are comparable if fingerprint and this agree."""
        if self.is_raw:
            return RAW
        digest = hashlib.sha256(self.recipe.encode())
        for step in self.steps:
            for part in (step.mean, step.factor, *([] if step.along is None else [step.along])):
                digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """One npz, without pickle."""
        arrays: dict[str, Any] = {}
        for number, step in enumerate(self.steps):
            if step.mean is not None and step.factor is not None:
                arrays |= {f"mean{number}": step.mean, f"factor{number}": step.factor}
            if step.along is not None:
                arrays[f"along{number}"] = step.along
        if self.adapted:
            arrays["adapted"] = np.array(self.adapted)
        if self.seen is not None:
            rows = self.seen.arrays().items()
            arrays |= {f"seen_{name}": values for name, values in rows if values is not None}
        buffer = io.BytesIO()
        np.savez(buffer, recipe=np.array(self.recipe), dim=np.array(self.dim), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Space:
        """A space from its `to_bytes()`.

        Raises:
            SpaceError: it is something else.
        """
        try:
            check_unpacked(io.BytesIO(data))
            with np.load(io.BytesIO(data), allow_pickle=False) as saved:
                recipe = str(saved["recipe"])
                steps = tuple(
                    Step()
                    if name == "l2"
                    else Step(
                        saved[f"mean{number}"],
                        saved[f"factor{number}"],
                        saved.get(f"along{number}"),
                    )
                    for number, name in enumerate(n for n, _ in _parsed(recipe))
                )
                dim = int(saved["dim"])
                adapted = str(saved.get("adapted", ""))
                return cls(recipe, dim, steps, _saved_rows(saved, dim), adapted)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise SpaceError(f"the saved space cannot be read: {cause(error)}") from error


def fit(recipe: str, vectors: npt.ArrayLike, labels: Sequence[object] | None = None) -> Space:
    """Fit a recipe to raw vectors (n, d).

    recipe: `raw`, or steps joined by +: `centre`; `scale` (each number centred, divided by its
    standard deviation); `whiten` (decorrelated, with the shrinkage of Ledoit and Wolf, 2004);
    `shrink` (directions damped by the variance along them, a whitening of strong shrinkage:
    proportional to (λ + 3 · mean λ)^−½, the mean of the variances that are not zero; 1 where
    nothing varies; also for n < d);
    `within` (variation within classes is damped to the level of the rest: the
    normalisation of Hatch, Kajarekar and Stolcke, 2006, with the same shrinkage); `pca:N` (the N
    directions of largest variance); `l2` (length one). For example `scale+l2`.

    labels: n classes, None for a row without one; only `within` looks at them.

    Raises:
        SpaceError: an unknown step, fewer than two vectors, more directions than they can have,
            values that are not finite, or no class of two rows for `within`.
    """
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2:
        raise SpaceError(f"a space is fitted to vectors (n, d); received shape {rows.shape}")
    check_finite(rows)
    parsed = _parsed(recipe)
    dim, steps = rows.shape[1], []
    for name, number in parsed:
        if name != "l2" and len(rows) < 2:
            raise SpaceError(f"{recipe!r} is fitted to two vectors or more; received {len(rows)}")
        step = _within(rows, labels) if name == "within" else _fitted(name, number, rows)
        rows = step(rows)
        steps.append(step)
    return Space("+".join(_words(*one) for one in parsed) or RAW, dim, tuple(steps))


def _saved_rows(saved: Any, dim: int) -> SeenRows | None:
    if "seen_vectors" not in saved:  # chosen by an earlier version, or not by labels
        return None
    vectors, labels, groups = (saved[f"seen_{name}"] for name in ("vectors", "labels", "groups"))
    rows = SeenRows(vectors, labels, groups, saved.get("seen_moved"))
    n = len(rows.labels)
    shapes = {"vectors": (n, dim), "labels": (n,), "groups": (n,), "moved": (n, dim)}
    odd = [v.shape for k, v in rows.arrays().items() if v is not None and v.shape != shapes[k]]
    if odd:
        raise ValueError(f"its {n} seen rows do not fit arrays of shape {odd[0]}")
    return rows


def fit_seen(recipe: str, rows: SeenRows) -> Space:
    """Fit a recipe to labelled rows, which the space then has as those that it has seen; as `fit`
    otherwise."""
    labels = [None if label < 0 else label for label in rows.labels.tolist()]
    fitted = fit(recipe, rows.vectors if rows.moved is None else rows.moved, labels)
    return replace(fitted, seen=rows)


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each vector divided by its length; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    divided: npt.NDArray[Any] = vectors / np.where(lengths > 0, lengths, 1.0)
    return divided


def _parsed(recipe: str) -> list[tuple[str, int]]:
    """The steps of a recipe, each with its number (0 where it has none)."""
    if recipe == RAW:
        return []
    steps = []
    for word in recipe.split("+"):
        name, _, number = word.partition(":")
        pca = name == "pca" and number.isdecimal() and int(number) > 0
        if not pca and word not in STEPS:
            raise SpaceError(
                f"the space {recipe!r} has the unknown step {word!r}; "
                f"{RAW}, or {', '.join(STEPS)} joined by + work, for example scale+l2"
            )
        steps.append((name, int(number or 0)))
    return steps


def _words(name: str, number: int) -> str:
    return f"{name}:{number}" if number else name


def _fitted(name: str, number: int, rows: npt.NDArray[np.float64]) -> Step:
    if name == "l2":
        return Step()
    mean, one = rows.mean(axis=0), np.ones(rows.shape[1])
    if name == "scale":
        deviation = rows.std(axis=0)
        # A number that never changes has no scale; rounding must not be blown up into noise.
        flat = deviation <= 1e-6 * np.maximum(np.abs(mean), _SMALLEST)
        one = 1.0 / np.where(flat, 1.0, deviation)
    elif name == "whiten":
        one = _whitening(rows - mean, float(np.abs(mean).max(initial=0.0)))
    elif name == "shrink":
        return _shrunk(rows - mean, mean)
    elif name == "pca":
        one = _directions(rows - mean, number)
    return Step(mean.astype(np.float32), one.astype(np.float32))


def _within(rows: npt.NDArray[np.float64], labels: Sequence[object] | None) -> Step:
    """Damps the directions of variation within classes, relative to all others.

    Up to a constant factor, the inverse root of the shrunk covariance within classes.
    """
    if labels is None or len(labels) != len(rows):
        received = "none" if labels is None else f"{len(labels)} labels for {len(rows)} vectors"
        raise SpaceError(
            f"the step `within` needs a label (or None) for each vector; got {received}"
        )
    moved = _residuals(rows, labels)
    shrinkage = max(_shrinkage(moved), _LEAST_SHRINKAGE)
    values, along = _variances(moved, _DIRECTIONS)
    spread = shrinkage * (moved**2).sum() / moved.size
    factor = np.sqrt(spread / ((1 - shrinkage) * values + spread))
    mean = np.zeros(rows.shape[1], np.float32)
    return Step(mean, factor.astype(np.float32), along.astype(np.float32))


def _shrinkage(centred: npt.NDArray[np.float64]) -> float:
    """The weight of mean variance · identity in the shrunk covariance of rows (n, d) with mean zero
    (Ledoit and Wolf, 2004). scikit-learn's `ledoit_wolf_shrinkage` gives the same through (d, d)
    matrices, which take seconds where several readings are joined."""
    n, d = centred.shape
    products = centred @ centred.T if d > n else centred.T @ centred
    squares = (products**2).sum() / n**2  # of all numbers in the covariance
    lengths = (centred**2).sum(axis=1)
    noise = ((lengths**2).sum() / n - squares) / n
    spread = squares - (lengths.sum() / n) ** 2 / d
    return float(min(noise, spread) / spread) if min(noise, spread) > 0 else 0.0


def _variances(
    centred: npt.NDArray[np.float64], most: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(r,) the variances of rows (n, d) along (r, d) orthonormal directions, ascending; those in
    which nothing varies are left out, and all but the `most` largest."""
    n, d = centred.shape
    wide = d > n  # then the Gram matrix of the rows has the same eigenvalues
    values, turned = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    kept = np.flatnonzero(values > max(values[-1], 0.0) * 1e-9)[-(most or d) :]
    values, turned = values[kept], turned[:, kept]
    return values / n, (centred.T @ turned / np.sqrt(values) if wide else turned).T


def _shrunk(centred: npt.NDArray[np.float64], mean: npt.NDArray[np.float64]) -> Step:
    """Whitening with the covariance + 3 · (mean variance) · identity, up to a constant factor."""
    # Variation that is tiny beside the values is rounding; it must not be blown up into directions.
    if np.abs(centred).max(initial=0.0) <= 1e-6 * np.abs(mean).max(initial=0.0):
        return Step(mean.astype(np.float32), np.ones(len(mean), np.float32))
    values, along = _variances(centred)
    # Over the directions that the rows span: with few rows for many numbers the mean over all
    # numbers is so small that what the rows have in common would be whitened whole.
    spread = _SHRINKAGE * values.mean()
    factor = np.sqrt(spread / (values + spread))
    if len(along) < len(mean):
        return Step(*(part.astype(np.float32) for part in (mean, factor, along)))
    return Step(mean.astype(np.float32), ((along.T * factor) @ along).astype(np.float32))


def _residuals(rows: npt.NDArray[np.float64], labels: Sequence[object]) -> npt.NDArray[np.float64]:
    """The rows of classes that have two or more, less their class's mean; largest number 1."""
    known = np.array([label is not None for label in labels])
    names = np.unique([str(label) for label in labels if label is not None], return_inverse=True)[1]
    sizes = np.bincount(names, minlength=1)
    moved = rows[known][sizes[names] > 1]
    if not len(moved):
        raise SpaceError("the step `within` needs a class of two vectors or more; there is none")
    names = np.unique(names[sizes[names] > 1], return_inverse=True)[1]
    sums = np.zeros((names.max() + 1, rows.shape[1]))
    np.add.at(sums, names, moved)
    moved = moved - (sums / np.bincount(names)[:, None])[names]
    largest = np.abs(moved).max()
    if largest <= _SMALLEST:
        raise SpaceError("the step `within`: the vectors of each class are all the same")
    scaled: npt.NDArray[np.float64] = moved / largest
    return scaled


def _whitening(centred: npt.NDArray[np.float64], size: float) -> npt.NDArray[np.float64]:
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    values, turned = np.linalg.eigh(covariance)
    # Variation that is tiny beside the values is rounding; it must not be blown up into noise.
    floor = max(values.max() * _SMALLEST, (1e-6 * size) ** 2, _SMALLEST**2)
    whitening: npt.NDArray[np.float64] = turned / np.sqrt(np.maximum(values, floor)) @ turned.T
    return whitening


def _directions(centred: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.float64]:
    most = min(len(centred) - 1, centred.shape[1])
    if number > most:
        raise SpaceError(
            f"pca:{number} asks for more directions than {len(centred)} vectors of "
            f"{centred.shape[1]} numbers have; pca:{most} works"
        )
    _, _, turned = np.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary: fixed, so that every machine gives the same numbers.
    largest = np.abs(turned).argmax(axis=1, keepdims=True)
    directions: npt.NDArray[np.float64] = turned * np.sign(
        np.take_along_axis(turned, largest, axis=1)
    )
    return directions[:number].T


def check_finite(
    rows: npt.NDArray[Any], error: type[PenultError] = SpaceError, name: str = "vectors"
) -> None:
    """Refuse vectors (n, d) or (d,) with values that are NaN or infinite.

    Raises:
        error: with their number and the first row.
    """
    bad = np.logical_not(np.isfinite(np.atleast_2d(rows)).all(axis=1))
    if bad.any():
        raise error(
            f"{int(bad.sum())} of {len(bad)} {name} have values that are not finite, the first at "
            f"row {int(bad.argmax())}; leave them out"
        )
