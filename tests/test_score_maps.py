"""`predict --tile --maps`: heat maps of the probabilities of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import penult
from penult.viz.plots import tile_means
from test_cli import ask
from zoo import save_image


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class file of two classes, a dark and a bright one, and a picture of both."""
    folder = tmp_path_factory.mktemp("tiles")
    model = penult.load(save_image(folder / "vit"))
    embedder = penult.Embedder.from_classifier(model, device="cpu").save(folder / "emb")
    random = np.random.default_rng(0)
    dark, bright = (random.integers(a, a + 60, (32, 32, 3), np.uint8) for a in (0, 190))
    Image.fromarray(dark).save(folder / "dark.png")
    Image.fromarray(bright).save(folder / "bright.png")
    both = np.concatenate([np.tile(dark, (2, 1, 1)), np.tile(bright, (2, 2, 1))], axis=1)
    Image.fromarray(both).save(folder / "both.png")
    for name in ("dark", "bright"):
        said = ask("teach", folder / "c.npz", name, folder / f"{name}.png", "--model", embedder)
        assert said.code == 0, said.err
    return folder


def test_each_picture_has_a_map(taught: Path, tmp_path: Path) -> None:
    ask_for = ("predict", taught / "c.npz", taught / "both.png", "--tile", 32, "--unknown", 0)
    said = ask(*ask_for, "--maps", tmp_path / "maps")
    assert said.code == 0 and "1 map in" in said.out, said.err
    assert [one.name for one in (tmp_path / "maps").iterdir()] == ["both.png"]
    drawn = np.asarray(Image.open(tmp_path / "maps" / "both.png").convert("RGB"), int)
    assert drawn.shape[1] > 1000 and np.ptp(drawn, axis=(0, 1)).min() > 100
    again = ask(*ask_for, "--maps", tmp_path / "maps")
    assert again.code == 2 and "has pictures already" in again.error
    found = ask(*ask_for, "--maps", tmp_path / "maps", "--overwrite", "--json").json
    assert found["maps"] == [str(tmp_path / "maps" / "both.png")]
    assert len(found["predictions"]) == 6


def test_the_mean_of_overlapping_tiles() -> None:
    """By hand: two tiles of 6 by 4 that share their middle."""
    found = tile_means((4, 8), [(0, 0, 4, 4), (2, 0, 6, 4)], [0.2, 0.8])
    np.testing.assert_allclose(found[0, :6], [0.2, 0.2, 0.5, 0.5, 0.8, 0.8])
    assert np.isnan(found[:, 6:]).all() and found.shape == (4, 8)
    assert max(tile_means((3000, 1000), [(0, 0, 1000, 3000)], [1.0]).shape) == 512


def test_wrong_usage_is_told(taught: Path, tmp_path: Path) -> None:
    file = taught / "both.png"
    said = ask("predict", taught / "c.npz", file, "--maps", tmp_path / "maps")
    assert said.code == 2 and "--tile" in said.error
    said = ask("predict", taught / "c.npz", file, "--tile", 32, "--maps", file)
    assert said.code == 2 and "name a folder" in said.error
