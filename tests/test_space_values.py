"""Spaces against numpy and scikit-learn: each step computed another way, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from penult.analysis.space import Space, fit
from penult.errors import SpaceError


def vectors(n: int = 40, d: int = 6, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) @ random.standard_normal((d, d)) + 3


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


FRESH = vectors(7, seed=9)  # what a space is used on is not what it was fitted to


def test_centre_and_scale() -> None:
    rows = vectors()
    close(fit("centre", rows)(FRESH), FRESH - rows.mean(axis=0))
    close(fit("scale", rows)(FRESH), StandardScaler().fit(rows).transform(FRESH))


def test_length_one() -> None:
    rows = np.concatenate([FRESH, np.zeros((1, 6))])
    close(fit("l2", rows)(rows), normalize(rows))
    assert not fit("l2", rows)(np.zeros(6)).any()


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance() -> None:
    rows = vectors(30)
    mean = rows.mean(axis=0)
    covariance = LedoitWolf().fit(rows).covariance_
    found = (fit("whiten", rows)(np.eye(6) + mean)).astype(np.float64)  # the matrix itself
    close(found.astype(np.float32), found.T)
    np.testing.assert_allclose(found @ found, np.linalg.inv(covariance), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 6), (9, 20), (2, 5)])
def test_shrinking_is_whitening_with_three_mean_variances_added(n: int, d: int) -> None:
    """Up to a factor that is the same for all: where nothing varies the length stays."""
    rows, asked = vectors(n, d), vectors(7, d, seed=9)
    mean = rows.mean(axis=0)
    variances, turned = np.linalg.eigh(np.cov(rows.T, bias=True))
    added = 3 * variances.sum() / min(n - 1, d)  # the mean of those that are not zero
    whole = turned @ np.diag((variances.clip(0) + added) ** -0.5) @ turned.T
    expected = (asked - mean) @ whole * added**0.5
    close(fit("shrink", rows)(asked), expected)
    close(Space.from_bytes(fit("shrink", 1e-6 * rows).to_bytes())(1e-6 * asked), 1e-6 * expected)
    assert np.array_equal(
        fit("shrink", rows[:1].repeat(5, axis=0))(rows),
        fit("centre", rows[:1].repeat(5, axis=0))(rows),
    )


@pytest.mark.parametrize("number", [1, 3, 6])
def test_directions_of_largest_variance(number: int) -> None:
    rows = vectors()
    found = fit(f"pca:{number}", rows)(FRESH)
    expected = PCA(number).fit(rows)
    signs = np.sign(found[0]) * np.sign(expected.transform(FRESH)[0])
    close(found, expected.transform(FRESH) * signs)
    mean = rows.mean(axis=0)
    directions = fit(f"pca:{number}", rows)(np.eye(6) + mean).T  # (number, 6)
    largest = np.abs(directions).argmax(axis=1)
    assert (np.take_along_axis(directions, largest[:, None], axis=1) > 0).all()


def test_as_many_directions_as_vectors_have() -> None:
    assert fit("pca:4", vectors(5))(FRESH).shape == (7, 4)
    assert fit("pca:6", vectors(7))(FRESH).shape == (7, 6)
    for rows, most in ((vectors(5), 4), (vectors(50), 6)):
        with pytest.raises(SpaceError, match=f"pca:{most} works"):
            fit(f"pca:{most + 1}", rows)


def damped(rows: np.ndarray, labels: list, shrinkage: float | None = None) -> np.ndarray:
    """(d, d): the inverse root of the shrunk covariance within classes, relative to a direction
    in which no class varies."""
    moved = []
    for name in {label for label in labels if label is not None}:
        mine = rows[[label == name for label in labels]]
        if len(mine) > 1:
            moved.append(mine - mine.mean(axis=0))
    residuals = np.concatenate(moved)
    found = LedoitWolf(assume_centered=True).fit(residuals).shrinkage_
    shrinkage = max(found, 0.5) if shrinkage is None else shrinkage
    covariance = residuals.T @ residuals / len(residuals)
    spread = np.trace(covariance) / len(covariance)
    values, turned = np.linalg.eigh(
        (1 - shrinkage) * covariance + shrinkage * spread * np.eye(len(covariance))
    )
    return turned / np.sqrt(values) @ turned.T * np.sqrt(shrinkage * spread)


def test_what_varies_within_a_class_is_damped() -> None:
    """Many rows of few numbers: the shrinkage is small, and half is taken."""
    rows = vectors(60)
    labels = [None if n % 11 == 0 else "abc"[n % 3] for n in range(60)] + []
    labels[7] = "a class of one"
    assert LedoitWolf().fit(rows).shrinkage_ < 0.4
    close(fit("within", rows, labels)(FRESH), FRESH @ damped(rows, labels))


@pytest.mark.parametrize("n", [24, 48])
def test_few_vectors_of_many_numbers(n: int) -> None:
    """Little correlated: the shrinkage is that of Ledoit and Wolf, for fewer rows than numbers and
    for more."""
    random = np.random.default_rng(0)
    rows, labels = random.standard_normal((n, 30)), list("abcdef" * (n // 6))
    moved = rows - np.tile(rows.reshape(n // 6, 6, 30).mean(axis=0), (n // 6, 1))
    assert 0.6 < LedoitWolf(assume_centered=True).fit(moved).shrinkage_ < 1
    fresh = random.standard_normal((5, 30))
    close(fit("within", rows, labels)(fresh), fresh @ damped(rows, labels))
    if n < 30:  # what no class varies in stays as it is
        across = np.linalg.svd(moved)[2][-3:]
        close(fit("within", rows, labels)(across), across)


def test_at_most_512_directions_are_damped() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((2400, 520)) * np.linspace(1, 3, 520)
    space = fit("within", rows, [n % 2 for n in range(2400)])
    along = space.steps[0].along
    assert along is not None and along.shape == (512, 520)
    expected = damped(rows, [n % 2 for n in range(2400)])
    top = np.linalg.svd(rows - rows.mean(axis=0))[2][:3]
    close(space(top), top @ expected, 2e-3)  # those of the largest variance are among them


def test_labels_of_any_kind_name_the_classes() -> None:
    rows = vectors(12)
    names = [n % 3 for n in range(12)]
    assert fit("within", rows, names).id == fit("within", rows, ["xyz"[n] for n in names]).id
    assert fit("within", rows, names).id != fit("within", rows, [0, 1] * 6).id


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "got none$"),
        ([0] * 11, "11 labels for 12 vectors"),
        ([None] * 12, "a class of two vectors or more; there is none"),
        (list(range(12)), "a class of two vectors or more; there is none"),
    ],
)
def test_classes_that_cannot_be_told_apart(labels: list | None, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        fit("within", vectors(12), labels)


def test_equal_vectors_of_a_class_have_nothing_to_damp() -> None:
    rows = np.repeat(vectors(3), 2, axis=0)
    with pytest.raises(SpaceError, match="the vectors of each class are all the same"):
        fit("within", rows, [0, 0, 1, 1, 2, 2])
    rows[0, 0] += 1e-9  # small is not nothing: the scale of vectors does not matter
    assert np.isfinite(fit("within", rows, [0, 0, 1, 1, 2, 2])(rows)).all()


@pytest.mark.parametrize("recipe", ["scale", "whiten"])
def test_rounding_is_not_blown_up(recipe: str) -> None:
    rows = vectors()
    rows[:, 2] = 1000 + 1e-4 * rows[:, 2]  # a ten-millionth of its size
    moved = fit(recipe, rows)(rows)
    assert np.abs(moved[:, 2]).max() < 0.5
    rows = vectors(5000)
    rows[:, 2] = 1000 + 1e-1 * rows[:, 2]  # a ten-thousandth is no rounding
    assert fit(recipe, rows)(rows)[:, 2].std() > 0.7


@pytest.mark.parametrize("recipe", ["scale", "whiten", "within+l2"])
def test_the_size_of_vectors_does_not_matter(recipe: str) -> None:
    rows, labels = vectors(), [n % 4 for n in range(40)]
    small = fit(recipe, 1e-9 * rows, labels)(1e-9 * FRESH)
    close(small, fit(recipe, rows, labels)(FRESH), 1e-3)


def test_steps_follow_each_other() -> None:
    rows = vectors()
    scaler = StandardScaler().fit(rows)
    space = fit("scale+pca:2+l2", rows)
    assert space.recipe == "scale+pca:2+l2" and space.dim == 6
    inner = PCA(2).fit(scaler.transform(rows)).transform(scaler.transform(FRESH))
    found = space(FRESH)
    close(np.abs(found), np.abs(normalize(inner)))
    close(space(FRESH[3]), found[3])


@pytest.mark.parametrize("recipe", ["raw", "centre+l2", "within+l2", "pca:3"])
def test_saved_with_every_array(recipe: str) -> None:
    rows, labels = vectors(20), [n % 4 for n in range(20)]
    space = fit(recipe, rows, labels)
    again = Space.from_bytes(space.to_bytes())
    assert (again.id, again.recipe, again.dim) == (space.id, space.recipe, 6)
    assert len(again.steps) == len(space.steps)
    assert np.array_equal(again(FRESH), space(FRESH))


def test_every_array_counts_for_the_id() -> None:
    rows = vectors(20)
    ids = {fit(recipe, rows, [0, 1] * 10).id for recipe in ("centre", "scale", "within", "l2")}
    assert len(ids) == 4 and all(len(one) == 16 for one in ids)
    spaces = [fit("within", given, [0, 1] * 10) for given in (rows, rows[:, ::-1])]
    np.testing.assert_allclose(spaces[0].steps[0].factor, spaces[1].steps[0].factor, rtol=1e-5)
    assert spaces[0].id != spaces[1].id  # the same factors along other directions


@pytest.mark.parametrize("recipe", ["pca", "pca:0", "pca:x", "l2:3", "", "centre+"])
def test_recipes_that_cannot_be(recipe: str) -> None:
    with pytest.raises(SpaceError, match="has the unknown step") as caught:
        fit(recipe, vectors())
    every = (
        "raw, or centre, scale, whiten, shrink, within, pca:N, l2 joined by + work, "
        "for example scale+l2"
    )
    assert str(caught.value).endswith(every)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(SpaceError, match=r"received shape \(6,\)"):
        fit("l2", FRESH[0])
    with pytest.raises(SpaceError, match=r"shape \(1, 1, 6\) do not fit"):
        fit("l2", FRESH)(FRESH[None, :1])
    assert fit("l2", FRESH[:1])(FRESH[:1]).shape == (1, 6)
    with pytest.raises(SpaceError, match="'centre' is fitted to two vectors or more; received 1"):
        fit("centre", FRESH[:1])
    fit("centre", FRESH[:2])
    bad = FRESH.copy()
    bad[2:4, 0] = np.nan, np.inf
    with pytest.raises(SpaceError, match=r"2 of 7 vectors .* the first at row 2"):
        fit("raw", FRESH)(bad)
    with pytest.raises(SpaceError, match="1 of 1 vectors"):
        fit("raw", FRESH)(bad[3])
