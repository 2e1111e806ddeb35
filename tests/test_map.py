"""Maps: the same each time, kept, named; a page that is safe against what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from penult.analysis import projection
from penult.analysis.projection import project
from penult.collection import derived
from penult.collection.collection import Collection
from penult.errors import MissingExtra, UsageError
from penult.viz.map_page import MapPage, map_page
from penult.viz.plots import draw_map
from test_cli import ask
from test_clusters import blobs
from test_collection import DIM, batch, filled

HOSTILE = "/calls/</script><b>bold</b><img src=x onerror=document.title='owned'>&amp;\u2028'\".wav"


@pytest.fixture
def made(tmp_path: Path) -> Collection:
    rows, truth = blobs((30, 20, 10), DIM, noise=0.1)
    ids = [f"/calls/{'abc'[t]}_{i:02}.wav" for i, t in enumerate(truth.tolist())]
    return filled(tmp_path / "c.lance", batch(ids, vectors=rows))


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_neighbours_stay_together(method: str) -> None:
    rows, truth = blobs((40, 40, 40), 3 if method == "pca" else 64, noise=0.05)
    points = project(rows, method=method)
    assert points.shape == (120, 2) and points.dtype == np.float32
    assert np.array_equal(points, project(rows, method=method))
    away = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(120)
    assert (truth[away.argmin(axis=1)] == truth).mean() > 0.97


@pytest.mark.slow
def test_principal_directions_of_very_many_rows() -> None:
    """Those of 100,000 rows are those of all, up to chance."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((150_000, 6)) * [1, 5, 1, 3, 1, 1] + [0, 0, 0, 0, 0, 4]
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values, along = np.linalg.eigh(np.cov(units.T))
    expected = (units - units.mean(axis=0)) @ along[:, np.argsort(-values)[:2]]
    points = project(rows.astype(np.float32), method="pca")
    agree = np.abs(np.corrcoef(points.T, expected.T)[:2, 2:])
    np.testing.assert_allclose(agree, np.eye(2), atol=0.02)


def test_umap() -> None:
    pytest.importorskip("umap")
    rows, truth = blobs((60, 60, 60))
    points = project(rows, method="umap")
    assert np.array_equal(points, project(rows, method="umap"))
    away = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(180)
    assert (truth[away.argmin(axis=1)] == truth).mean() > 0.97


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9])
def test_few_rows_and_equal_rows(n: int, method: str) -> None:
    rows = np.random.default_rng(0).standard_normal((n, 6)).astype(np.float32)
    assert np.isfinite(project(rows, method=method)).all()
    same = project(np.ones((n, 6), np.float32), method=method)
    assert same.shape == (n, 2) and len(np.unique(same, axis=0)) == n


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="'mds' is not known; umap, tsne, pca work"):
        project(np.eye(5, dtype=np.float32), method="mds")
    with pytest.raises(UsageError, match="not finite"):
        project(np.full((5, 2), np.nan, np.float32))
    assert projection.method_for(100) == "tsne" and projection.method_for(10**6) == "umap"


def test_a_map_is_made_once(made: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    first = derived.make_map(made.reader, by="{}_*.wav", space="centre")
    assert not first.kept and set(first.names) == {"a", "b", "c"} and first.method == "tsne"
    monkeypatch.setattr(projection, "project", lambda *_: pytest.fail("made twice"))
    again = derived.make_map(made.reader, by="folder", space="centre")
    assert again.kept and np.array_equal(again.points, first.points)
    monkeypatch.undo()
    part = derived.make_map(made.reader, where="id LIKE '/calls/a%'", space="centre")
    assert not part.kept and len(part.points) == 30


def test_of_many_rows_some_are_drawn(made: Collection) -> None:
    one, other = (derived.make_map(made.reader, most=20, method="pca") for _ in range(2))
    assert one.rows.equals(other.rows) and len(one.rows) == 20 and one.matching == 60
    said = ask("map", made.path, made.path.parent / "m.html", "--most", 20)
    assert "20 of 60 rows, sampled at random" in said.err


def written(**changes: object) -> str:
    about = {
        "title": "<i>calls</i>", "subtitle": "", "points": np.eye(2, dtype=np.float32),
        "names": [HOSTILE, None], "ids": [HOSTILE, "sha256:00"], "regions": ["whole", "0-1"],
        "columns": {"site": ["</script><b>", None], "depth": [1.5, float("nan")]},
        "modality": "audio",
    }  # fmt: skip
    return map_page(MapPage(**{**about, **changes}))  # type: ignore[arg-type]


def test_names_from_outside_are_data_in_the_page() -> None:
    text = written()
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "<b>" not in text and "<img src=x" not in text and "<i>calls" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert data["root"] + data["ids"][0] == HOSTILE and data["whole"] == [1]
    assert data["classes"] == [HOSTILE, "(no name)"] and data["codes"] == [0, 1]
    assert data["columns"][0]["values"] == ["</script><b>", None]
    assert data["columns"][1]["values"] == [1.5, None]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src 'none'" in policy[1] and "{{" not in policy[1]
    assert not re.search(r"(?:src|href)=\"?https?:|@import|url\(", text)


def shown(text: str, folder: Path) -> str:
    """The page as a browser leaves it."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium")
    path = folder / "map.html"
    path.write_text(text, "utf-8")
    asked = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    return subprocess.run(asked, capture_output=True, text=True, timeout=100, check=False).stdout


def test_the_page_runs_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    dom = shown(written(), tmp_path)
    assert "<title>&lt;i&gt;calls&lt;/i&gt;</title>" in dom and "owned</title>" not in dom
    assert ">2 points</div>" in dom  # the script ran to its end
    assert "<span>/calls/&lt;/script&gt;&lt;b&gt;bold" in dom and "<b>bold" not in dom


def test_the_same_place_for_all_and_no_points(tmp_path: Path) -> None:
    for count in (0, 1, 3):
        text = written(points=np.zeros((count, 2), np.float32), names=["a"] * count,
                       ids=["/a"] * count, regions=["whole"] * count, columns={})  # fmt: skip
        assert json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["classes"] == (  # type: ignore[index]
            ["a"] if count else []
        )


@pytest.mark.parametrize("count", [1, 30, 900])
def test_pictures(tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    points = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    names = [None if i % 7 == 3 else "$a_b$" if i % 2 else "<b>" for i in range(count)]
    for suffix, begins in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"map{suffix}"
        draw_map(path, points, names, (), "a title", "below")
        assert path.read_bytes().startswith(begins)
    assert len(list(tmp_path.iterdir())) == 3


def test_on_the_command_line(made: Collection, tmp_path: Path) -> None:
    out = tmp_path / "new" / "map.html"
    said = ask("map", made.path, out, "--by", "{}_*.wav", "--json")
    assert said.code == 0 and said.json["classes"] == 3 and said.json["points"] == 60
    assert out.read_text("utf-8").startswith("<!doctype html>")
    ask("cluster", made.path)
    assert ask("map", made.path, out, "--by", "cluster", "--json").json["classes"] == 3
    empty = filled(tmp_path / "empty.lance")
    for arguments, says in (
        ([made.path, "map.gif"], ".html, .png"),
        ([made.path, out, "--by", "word"], "'word' names nothing"),
        ([made.path, out, "--by", "labels"], "has a name by 'labels'"),
        ([made.path, out, "--by", "cluster:mine"], "has no clusters called 'mine'"),
        ([made.path, out, "--method", "mds"], "'mds' is not known"),
        ([made.path, out, "--most", 0], "a map of 0 rows"),
        ([made.path, out, "--where", "id = 'x'"], "no row"),
        ([empty.path, out], "it has no rows"),
        ([tmp_path / "none.lance", out], "there is no collection"),
    ):
        said = ask("map", *arguments)
        assert said.code == 2 and says in said.error, said


def test_without_umap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(MissingExtra, match="umap"):
        project(blobs((30, 30))[0], method="umap")
