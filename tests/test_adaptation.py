"""Fitted spaces on other recordings: the spread of vectors, and the refit by mean and coral."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.linalg import fractional_matrix_power

import penult
from conftest import RATE, clip
from penult.analysis.adaptation import adapt, spread
from penult.analysis.space import SeenRows, Space, fit, fit_seen
from penult.collection import spaces
from penult.embedding.embedder import Embedder
from penult.errors import SpaceError
from test_cli import ask


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) + shift).astype(np.float32)


def chosen(n: int = 60, d: int = 6, recipe: str = "scale+within+l2") -> Space:
    return fit_seen(recipe, SeenRows(rows(n, d, 0), np.arange(n) % 4, np.arange(n) // 3))


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_the_spread_over_every_pair() -> None:
    space, other = chosen(), rows(40, 6, 1, 30.0)
    items = [f"{at // 2}.wav" for at in range(40)]
    found = spread(space, other, items)
    forms = [unit(one) for one in (other, other - other.mean(axis=0), space(other))]
    for form, mean, share in zip(
        forms, (found.raw, found.centred, found.space), found.retrieval, strict=True
    ):
        pairs = [float(form[i] @ form[j]) for i in range(40) for j in range(i)]
        assert mean == pytest.approx(np.mean(pairs), abs=1e-6)
        near = [max((j for j in range(40) if j != i), key=lambda j, i=i: form[i] @ form[j])
                for i in range(40)]  # fmt: skip
        assert share == np.mean([items[i] == items[j] for i, j in enumerate(near)])
    assert found.is_collapsed and found.space > 0.9
    assert found.to_dict()["mean_cosine"]["space"] == found.space
    own = spread(space, space.seen.vectors)
    assert not own.is_collapsed and abs(own.space) < 0.2
    assert own.to_dict()["self_retrieval"] == {"raw": None, "centred": None, "space": None}


def test_the_mean_of_other_recordings() -> None:
    space = chosen(recipe="scale+l2")
    other = rows(50, 6, 1, 30.0)
    moved = adapt(space, other, "mean")
    deviation = space.seen.vectors.astype(float).std(axis=0)
    expected = unit((other - other.mean(axis=0)) / deviation)
    assert moved(other) == pytest.approx(expected, abs=1e-4)
    assert not spread(moved, other).is_collapsed
    assert moved.adapted == "mean" and moved.id != space.id
    # `within` looks at residuals, and stays as it was fitted.
    both = adapt(chosen(), other, "mean")
    assert both.steps[1].factor == pytest.approx(chosen().steps[1].factor, rel=1e-3)
    assert np.array_equal(both.seen.vectors, chosen().seen.vectors)  # which know items again


@pytest.mark.parametrize(("n", "d"), [(80, 6), (30, 50)])
def test_coral_by_its_formula(n: int, d: int) -> None:
    space = chosen(60, d)
    source, other = space.seen.vectors.astype(float), rows(n, d, 2, 30.0).astype(float)
    (own, there), (mean, scale) = ((one.mean(axis=0), one.std(axis=0)) for one in (source, other))
    standard = (source - own) / there, (other - mean) / scale
    of_source, of_other = (one.T @ one / len(one) + d / 4 * np.eye(d) for one in standard)
    white = standard[0] @ fractional_matrix_power(of_source, -0.5)
    moved = white @ fractional_matrix_power(of_other, 0.5) * scale + mean
    found = adapt(space, other, "coral")
    assert found.seen.moved == pytest.approx(moved, abs=1e-3)
    expected = fit("scale+within+l2", moved, space.seen.labels.tolist())(other)
    assert found(other) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("how", ["mean", "coral"])
def test_an_adapted_space_is_saved_and_fitted_without_rows(how: str) -> None:
    other = rows(50, 6, 1, 30.0)
    space = adapt(chosen(), other, how)
    back = Space.from_bytes(space.to_bytes())
    assert back.id == space.id and back.adapted == how
    assert np.array_equal(back(other), space(other))
    out = np.arange(60) < 10
    without = back.without(out)
    assert without.adapted == how and len(without.seen.labels) == 50
    rows_left = space.seen.moved[~out], space.seen.labels[~out].tolist()
    assert without.id == fit("scale+within+l2", *rows_left).id


def test_what_cannot_be_adapted() -> None:
    other = rows(50, 6, 1)
    with pytest.raises(SpaceError, match="mean and coral work"):
        adapt(chosen(), other, "plda")
    with pytest.raises(SpaceError, match="19 rows are too few"):
        adapt(chosen(), other[:19], "mean")
    with pytest.raises(SpaceError, match="there is nothing to adapt"):
        adapt(fit("raw", other), other, "mean")
    with pytest.raises(SpaceError, match="keeps no rows that it was fitted with"):
        adapt(fit("scale+l2", other), other, "coral")
    twice = adapt(adapt(chosen(), other, "mean"), other, "coral")  # as if it were the first time
    assert twice.id == adapt(chosen(), other, "coral").id
    with pytest.raises(SpaceError, match="of two vectors or more"):
        spread(chosen(), other[:1])


@pytest.fixture
def elsewhere(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(an embedder whose space was fitted to other vectors, a folder of clips)."""
    (tmp_path / "clips").mkdir()
    for at in range(24):
        soundfile.write(tmp_path / "clips" / f"{at}.wav", clip(0.5, at), RATE)
    raw = Embedder.from_classifier(penult.load(tiny))
    vectors = raw.embed(tmp_path / "clips") + 20 * np.abs(rows(1, raw.dim, 4))
    seen = SeenRows(vectors, np.arange(24) % 3, np.arange(24))
    emb = Embedder.from_classifier(raw.classifier, space=fit_seen("scale+within+l2", seen))
    return emb.save(tmp_path / "chosen"), tmp_path / "clips"


def test_embed_tells_of_a_space_that_collapses(
    elsewhere: tuple[Path, Path], tmp_path: Path
) -> None:
    chosen, clips = elsewhere
    store = tmp_path / "c.lance"
    told = ask("embed", chosen, clips, "--into", store)
    assert told.code == 0 and "hardly tells them apart" in told.err.replace("\n", " ")
    col = penult.Collection(store)
    assert spaces.own_spread(col.reader).is_collapsed
    assert "hardly tells" not in ask("embed", chosen, clips, "--into", store).err  # nothing new
    done = ask("embed", chosen, clips, "--into", store, "--adapt", "mean")
    assert done.code == 0 and "hardly tells" not in done.err
    assert "scale+within+l2, adapted by mean, is stored" in done.out.replace("\n", " ")
    moved = spaces.meant(col.reader, "auto")
    assert moved.adapted == "mean" and not spaces.own_spread(col.reader).is_collapsed
    assert moved(col.vectors()[1]) == pytest.approx(
        adapt(Embedder.load(chosen).space, col.vectors()[1], "mean")(col.vectors()[1]), abs=1e-6
    )
    ask("embed", chosen, clips, "--into", store)  # which asks for none, and keeps that one
    assert spaces.meant(col.reader, "auto").id == moved.id
    assert spaces.keep_own(col.reader, Embedder.load(chosen).space, "coral")  # from Python
    assert spaces.meant(col.reader, "auto").adapted == "coral"


def test_wrong_usage_of_adapt(elsewhere: tuple[Path, Path], tiny: Path, tmp_path: Path) -> None:
    chosen, clips = elsewhere
    said = ask("embed", chosen, clips, "--into", tmp_path / "d.lance", "--adapt", "plda")
    assert said.code == 2 and "mean and coral work" in said.err
    said = ask("embed", tiny, clips, "--into", tmp_path / "d.lance", "--adapt", "mean")
    assert said.code == 2 and "there is nothing to adapt" in said.err.replace("\n", " ")
    assert not (tmp_path / "d.lance").exists()
    some = sorted(clips.glob("1*.wav"))[:5]
    said = ask("embed", chosen, *some, "--into", tmp_path / "few.lance", "--adapt", "mean")
    assert said.code == 0 and "5 rows are too few" in said.err.replace("\n", " ")
