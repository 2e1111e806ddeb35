"""Spaces: what they do to vectors, that they survive saving, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penult.analysis.space import RAW, SeenRows, Space, fit, fit_seen
from penult.errors import SpaceError

RECIPES = (
    "raw",
    "l2",
    "centre",
    "centre+l2",
    "scale+l2",
    "whiten+l2",
    "shrink",
    "l2+centre+l2",
    "pca:3+l2",
)


def vectors(n: int = 40, d: int = 8, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((n, d)) @ random.standard_normal((d, d)) + 3).astype(np.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_and_read_again(recipe: str) -> None:
    rows = vectors()
    space = fit(recipe, rows)
    again = Space.from_bytes(space.to_bytes())
    assert again.id == space.id
    assert again.recipe == recipe
    assert np.array_equal(again(rows), space(rows))
    assert np.allclose(space(rows[3]), space(rows)[3], atol=1e-6)


@given(seed=st.integers(0, 1000), recipe=st.sampled_from(RECIPES))
def test_what_the_steps_promise(seed: int, recipe: str) -> None:
    rows = vectors(seed=seed)
    moved = fit(recipe, rows)(rows).astype(np.float64)
    if recipe.endswith("l2"):
        assert np.allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)
    if recipe == RAW:
        assert np.array_equal(moved, rows)
    if recipe == "centre":
        assert np.allclose(moved.mean(axis=0), 0, atol=1e-4)


def test_scaling_and_whitening() -> None:
    rows = vectors(100_000)
    assert np.allclose(fit("scale", rows)(rows).std(axis=0), 1, atol=1e-3)
    assert np.allclose(np.cov(fit("whiten", rows)(rows).T), np.eye(8), atol=0.05)


def test_a_number_that_never_changes_is_not_blown_up() -> None:
    rows = vectors()
    rows[:, 2] = 0.1
    moved = fit("scale", rows)(rows)
    assert np.isfinite(moved).all()
    assert np.abs(moved[:, 2]).max() < 1e-3


def test_another_fit_has_another_id() -> None:
    assert fit("centre", vectors()).id != fit("centre", vectors(seed=1)).id
    assert fit("raw", vectors()).id == fit("raw", vectors(seed=1)).id == RAW


def test_what_is_refused() -> None:
    with pytest.raises(SpaceError, match="unknown step 'center'"):
        fit("center", vectors())
    with pytest.raises(SpaceError, match="two vectors or more"):
        fit("scale", vectors(1))
    with pytest.raises(SpaceError, match="pca:4 works"):
        fit("pca:9", vectors(5))
    rows = vectors()
    rows[7, 1] = np.nan
    with pytest.raises(SpaceError, match="the first at row 7"):
        fit("l2", rows)
    with pytest.raises(SpaceError, match="do not fit a space of 8"):
        fit("l2", vectors())(vectors(3, 7))
    with pytest.raises(SpaceError, match="cannot be read"):
        Space.from_bytes(b"nothing")


def seen(n: int = 30, d: int = 12) -> SeenRows:
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), n // 3)
    rows = random.normal(size=(n, d)) + 2 * random.normal(size=(3, d))[labels]
    return SeenRows(rows.astype(np.float32), labels, np.arange(n) // 2)


def test_a_chosen_space_knows_its_rows_again() -> None:
    rows = seen()
    space = fit_seen("scale+within+l2", rows)
    assert space.id == fit("scale+within+l2", rows.vectors, rows.labels.tolist()).id
    back = Space.from_bytes(space.to_bytes())
    assert back.id == space.id and back.seen is not None
    order = np.random.default_rng(0).permutation(30)
    half = rows.vectors[order].astype(np.float16)  # as a collection may keep them
    other = rows.vectors[:4] + 1
    assert back.seen.places(half).tolist() == order.tolist()
    assert back.seen.places(other).tolist() == [-1] * 4
    assert back.seen.beside([3, -1]).nonzero()[0].tolist() == [2, 3]
    assert not back.seen.beside([-1]).any()


def test_a_chosen_space_is_fitted_without_some_rows() -> None:
    rows = seen()
    out = np.isin(np.arange(30), [0, 1, 17])
    without = fit_seen("scale+within+l2", rows).without(out)
    again = fit("scale+within+l2", rows.vectors[~out], rows.labels[~out].tolist())
    assert without.id == again.id and without.seen is not None and len(without.seen.labels) == 27
    assert fit("scale", rows.vectors).without(out).id == fit("scale", rows.vectors).id
    with pytest.raises(SpaceError, match="a class of two vectors"):
        fit_seen("scale+within+l2", rows).without(~np.isin(np.arange(30), [0, 10, 20]))


def test_seen_rows_that_do_not_fit_are_refused() -> None:
    rows = seen()
    for odd in (
        SeenRows(rows.vectors[:, :5], rows.labels, rows.groups),
        SeenRows(rows.vectors, rows.labels, rows.groups[:3]),
        SeenRows(rows.vectors, rows.labels, rows.groups, rows.vectors[:4]),
    ):
        with pytest.raises(SpaceError, match="its 30 seen rows do not fit"):
            Space.from_bytes(replace(fit_seen("scale", rows), seen=odd).to_bytes())
