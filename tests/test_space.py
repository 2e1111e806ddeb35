"""Spaces: what they do to vectors, that they survive saving, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penult.analysis.space import RAW, Space, fit
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
