"""The explorer by HTTP: rows, points, colours, searches, selections; against numpy and the command
line.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from starlette.testclient import TestClient

import penult
from penult.analysis.clustering import ClusterOptions
from penult.analysis.space import fit
from penult.collection import derived, schema
from penult.collection.collection import Collection
from penult.collection.manifest import Manifest
from penult.collection.reader import read_derived
from penult.collection.writer import writing
from penult.explorer.points import PointMap
from penult.explorer.routes import build
from penult.explorer.session import Explorer
from penult.explorer.vectors import VectorMatrix
from test_cli import ask

Json = Any
WORDS = ("<script>alert(1)</script>", "\"quoted\" & 'so'", "two\nlines", "=1+1", "ÄÖ", None)


class Page:
    """A client of an explorer, as the page is one."""

    def __init__(self, path: Path) -> None:
        self.explorer = Explorer(Collection.open(path, must_exist=True))
        self.client = TestClient(build(self.explorer), raise_server_exceptions=False)
        self.client.__enter__()  # one loop for all requests

    def close(self) -> None:
        self.client.__exit__()
        self.explorer.points.close(120)

    def get(self, route: str, status: int = 200, **query: Any) -> Json:
        answer = self.client.get(route, params=query)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]["message"]

    def post(self, route: str, status: int = 200, **body: Any) -> Json:
        answer = self.client.post(route, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]["message"]

    def points(self) -> tuple[np.ndarray, np.ndarray, Mapping[str, str]]:
        answer = self.client.get("/api/points")
        count = len(answer.content) // 12
        assert len(answer.content) == 12 * count
        rows = np.frombuffer(answer.content, "<u4", count)
        places = np.frombuffer(answer.content, "<f4", offset=4 * count).reshape(2, count).T
        return rows, places, answer.headers

    def values(self, by: str) -> np.ndarray:
        answer = self.client.get("/api/values", params={"by": by})
        assert answer.status_code == 200, answer.text
        return np.frombuffer(answer.content, "<f4")

    def wait_for_map(self) -> None:
        until = time.monotonic() + 120
        while self.explorer.points.is_making and time.monotonic() < until:
            time.sleep(0.05)
        assert not self.explorer.points.is_making


def made(
    path: Path,
    modality: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    vectors: np.ndarray | None = None,
    logits: str = "all",
) -> Path:
    """A collection of these rows, as if a model of three classes had embedded them."""
    if vectors is None:
        vectors = np.random.default_rng(len(rows)).normal(size=(len(rows), 8))
    model = {"spec": "made", "tap": "backbone", "pooling": "mean", "modality": modality}
    about = Manifest(
        {"weights": "aa"},
        vectors.shape[1],
        3,
        {**model, "kind": "multi-label"},
        ("cat", "dog", "owl"),
        logits,
    )
    own = {"kind": "whole", "region": "whole", "content_hash": "aa", "run_id": None}
    table = pa.Table.from_pylist([{**own, **row} for row in rows])
    extra = {name: table[name].type for name in table.column_names if name not in schema.COLUMNS}
    columns = schema.row_schema(about.dim, about.n_logits, logits, metadata=extra)
    records = [
        {**own, **row, "vector": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)
    ]
    with writing(path, about, extra, {"engine": "torch", "precision": "exact"}) as writer:
        writer.write(pa.RecordBatch.from_pylist(records, columns))
    return path


def hostile_rows() -> list[dict[str, Any]]:
    rows = []
    for number in range(12):
        word = WORDS[number % len(WORDS)]
        rows.append({
            "id": f"/nowhere/{number}/{'<b>' * (number == 3)}{number}.wav",
            "label": ["cat", "dog", "<img src=x onerror=alert(1)>"][number % 3],
            "score": number / 16,
            "start": float(number), "end": number + 1.0,
            "logits": [0.5 * number, -1.0, float("-inf")],
            "note": word, "size": 10, "mtime_ns": 1,
            "depth": float("nan") if number % 4 == 0 else number * 1e300,
            "huge": (1 << 62) + number, "site": number % 3, "night": number % 2 == 0,
        })  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def words(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's clips, with two clusterings and marks."""
    path = tmp_path_factory.mktemp("explorer") / "words.lance"
    shutil.copytree(demo_collection, path)
    reader = Collection.open(path).reader
    found = derived.find_clusters(reader, ClusterOptions("kmeans", 4))
    derived.keep_clusters(reader, found, "four")
    return path


@pytest.fixture(scope="module")
def page(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """On a copy: a map that a page makes is kept."""
    path = tmp_path_factory.mktemp("page") / "words.lance"
    with closing(Page(shutil.copytree(words, path))) as found:
        yield found


@pytest.fixture
def own(words: Path, tmp_path: Path) -> Iterator[Page]:
    """A page on a copy that may be written to."""
    shutil.copytree(words, tmp_path / "words.lance")
    with closing(Page(tmp_path / "words.lance")) as found:
        yield found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = made(tmp_path_factory.mktemp("hostile") / "h.lance", "audio", hostile_rows())
    with closing(Page(path)) as found:
        yield found


def keys_of(page: Page) -> list[tuple[str, str]]:
    """By number."""
    return page.explorer.rows.keys(range(len(page.explorer.rows)))


def units_of(page: Page) -> np.ndarray:
    """Vectors of length one by number, read and divided here."""
    keys, vectors = page.explorer.collection.vectors()
    place = {key: at for at, key in enumerate(schema.keys(keys))}
    ordered = np.float64(vectors)[[place[key] for key in keys_of(page)]]
    return ordered / np.linalg.norm(ordered, axis=1, keepdims=True)


# ---- the collection as a whole


def test_state_tells_what_the_collection_is(page: Page, words: Path) -> None:
    state = page.get("/api/state")
    manifest = page.explorer.collection.reader.require_manifest()
    assert (state["rows"], state["drawn"], state["sampled"]) == (128, 128, False)
    assert state["name"] == "words.lance" and state["modality"] == "audio"
    assert state["model"] == {
        "name": "demo", "dim": manifest.dim, "tap": "prelogits",
        "pooling": manifest.model["pooling"], "labels": list(manifest.labels),
    }  # fmt: skip
    ids = [one["id"] for one in state["columns"]]
    assert ids[:4] == ["label", "score", "class", "cluster:four"]
    assert {"column:word", "column:voice", "column:known"} <= set(ids)
    assert len(set(ids)) == len(ids) and not {"column:path", "column:run_id"} & set(ids)
    clusters = state["clusterings"][0]["clusters"]
    assert sum(one["size"] for one in clusters) == 128
    short = page.get("/api/state", since=state["version"])
    assert short == {"version": state["version"], "session": state["session"], "running": None}


def test_points_lie_in_the_square_and_the_better_map_is_kept(own: Page) -> None:
    rows, places, headers = own.points()
    assert rows.tolist() == list(range(128))
    assert headers["x-map"] == "pca"
    assert np.abs(places).max() == pytest.approx(1)
    unit = units_of(own)
    directions = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)[2][:2]
    projected = (unit - unit.mean(axis=0)) @ directions.T
    for axis in (0, 1):  # up to the sign, and one scale for both
        assert abs(np.corrcoef(projected[:, axis], places[:, axis])[0, 1]) > 0.9999
    spans = [np.ptp(points, axis=0) for points in (places, projected)]
    assert spans[0][1] / spans[0][0] == pytest.approx(spans[1][1] / spans[1][0], rel=1e-3)
    before = own.get("/api/state")["version"]
    own.wait_for_map()
    state = own.get("/api/state", since=before)
    assert state["version"] > before
    assert state["map"] == {"method": "tsne", "making": False, "nearby": 0}
    better = own.points()[1]
    kept = derived.make_map(own.explorer.collection.reader)  # what the command line draws
    assert kept.kept and kept.method == "tsne"
    place = dict(zip(schema.keys(kept.rows), kept.points, strict=True))
    points = np.array([place[key] for key in keys_of(own)])
    low, high = points.min(axis=0), points.max(axis=0)
    expected = (points - (low + high) / 2) / ((high - low).max() / 2)
    np.testing.assert_allclose(better, expected, atol=1e-5)
    again = Page(own.explorer.collection.path)
    rows, places, headers = again.points()
    assert headers["x-map"] == "tsne" and not again.explorer.points.is_making
    np.testing.assert_array_equal(places, better)


def test_values_and_legends_count_what_is_drawn(page: Page) -> None:
    keys = keys_of(page)
    table = page.explorer.collection.vectors(columns=["id", "region", "word", "known", "score"])[0]
    by_key = dict(zip(schema.keys(table), table.to_pylist(), strict=True))
    rows = page.points()[0]
    for name, shown in (("word", str), ("known", lambda one: str(one).lower())):
        legend = page.get("/api/legend", by=f"column:{name}")
        names = {one["code"]: one["name"] for one in legend["entries"]}
        seen = [names[int(code)] for code in page.values(f"column:{name}")]
        assert seen == [shown(by_key[keys[row]][name]) for row in rows]
        assert {one["name"]: one["count"] for one in legend["entries"]} == Counter(seen)
        assert (legend["kind"], legend["none"], legend["low"]) == ("category", 0, None)
    scores = np.float32([by_key[keys[row]]["score"] for row in rows])
    np.testing.assert_array_equal(page.values("score"), scores)
    legend = page.get("/api/legend", by="score")
    assert (legend["kind"], legend["entries"]) == ("number", [])
    assert legend["low"] == scores.min() and legend["high"] == scores.max()
    assert "nothing" in page.get("/api/legend", 400, by="nothing")


def test_clusters_are_coloured_by_number_and_renamed_for_all(own: Page) -> None:
    reader = own.explorer.collection.reader
    found = read_derived(reader, "clusters", "four")
    number = dict(zip(schema.keys(found.table), found.table["cluster"].to_pylist(), strict=True))
    assert own.values("cluster:four").tolist() == [number[key] for key in keys_of(own)]
    version = own.get("/api/state")["version"]
    name = "<i>low</i> 'calls'"
    own.post("/api/clusters/rename", clustering="four", number=2, name=name)
    state = own.get("/api/state", since=version)
    assert state["version"] > version
    assert state["clusterings"][0]["clusters"][2]["name"] == name
    legend = own.get("/api/legend", by="cluster:four")
    assert {one["code"]: one["name"] for one in legend["entries"]}[2] == name
    table = read_derived(reader, "clusters", "four").table
    assert {
        n
        for n, c in zip(table["name"].to_pylist(), table["cluster"].to_pylist(), strict=True)
        if c == 2
    } == {name}
    words = own.post("/api/clusters/rename", 400, clustering="four", number=9, name="x")
    assert "no cluster 9 of 'four'" in words
    own.post("/api/clusters/rename", 400, clustering="four", number=1, name=" ")


def test_a_sample_has_its_share_of_each_label(page: Page) -> None:
    explorer = page.explorer
    codes = explorer.values.of("label").values
    few = PointMap(
        explorer.collection, explorer.rows, explorer.vectors, explorer.watch, lambda: codes, most=40
    )
    drawn = few.drawn()
    few.close(120)
    assert drawn.is_sample and drawn.total == 128 and 30 <= len(drawn.rows) <= 40
    every, some = Counter(codes.tolist()), Counter(codes[drawn.rows].tolist())
    assert all(some[code] == max(1, math.floor(count * 40 / 128)) for code, count in every.items())


# ---- rows


def test_rows_have_the_numbers_of_the_collection(page: Page) -> None:
    collection = page.explorer.collection
    manifest = collection.reader.require_manifest()
    rows = page.get("/api/rows", rows="5,0,5,777")["rows"]
    assert [one["row"] for one in rows] == [5, 0, 5]
    row = page.get("/api/row", row=5)
    stored = collection.get(row["id"], row["region"])
    assert stored is not None
    assert {name: row[name] for name in rows[0]} == rows[0]
    for name in ("start", "end", "label", "score", "kind", "channel"):
        assert row[name] == stored[name]
    logits = np.float64(stored["logits"])
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-softmax)
    assert [one["name"] for one in row["scores"]] == [manifest.labels[at] for at in order]
    np.testing.assert_allclose([one["score"] for one in row["scores"]], softmax[order], rtol=1e-6)
    assert row["metadata"] == {name: stored[name] for name in ("word", "voice", "known")}
    origin = {one["title"]: one["value"] for one in row["origin"]}
    assert origin["model"].startswith("demo") and origin["run"] == stored["run_id"]
    assert "prelogits" in origin["vector"] and "changed since" not in origin["file"]
    assert "no row 128" in page.get("/api/row", 404, row=128)
    page.get("/api/rows", 400, rows="1;2")


def test_hostile_metadata_stays_text(hostile: Page) -> None:
    state = hostile.get("/api/state")
    kinds = {one["id"]: one["kind"] for one in state["columns"]}
    assert kinds["column:note"] == kinds["column:night"] == kinds["column:site"] == "category"
    assert kinds["column:depth"] == "number"
    keys = keys_of(hostile)
    by_id = {row["id"]: row for row in hostile_rows()}
    for number in range(12):
        row = hostile.get("/api/row", row=number)
        given = by_id[keys[number][0]]
        assert row["id"] == given["id"] and row["label"] == given["label"]
        assert row["metadata"]["note"] == given["note"]
        depth = given["depth"]
        assert row["metadata"]["depth"] == (None if math.isnan(depth) else depth)
        assert row["metadata"]["huge"] == str(given["huge"])  # no page holds it as a number
        assert row["scores"][-1]["score"] == 0  # sigmoid of -inf
        assert "no file" in row["media"]["error"] and "penult relocate" in row["media"]["error"]
    legend = hostile.get("/api/legend", by="column:note")
    assert {one["name"] for one in legend["entries"]} == set(filter(None, WORDS))
    assert legend["none"] == 2
    depth = hostile.values("column:depth")
    assert np.isnan(depth).sum() == 3 and np.isfinite(depth).sum() == 9  # 1e300 is no float32


@pytest.mark.parametrize(
    ("text", "hits"), [("<SCRIPT>", 2), ("LINES", 2), ("ää", 0), ("äö", 2), ("%", 0), ("'so'", 2),
                       ("/nowhere/1", 3), ("ONERROR", 4), ("4611686018427387905", 1)]
)  # fmt: skip
def test_find_looks_into_ids_labels_and_metadata(hostile: Page, text: str, hits: int) -> None:
    found = hostile.get("/api/find", text=text)["rows"]
    assert len(found) == hits
    for one in found:
        row = hostile.get("/api/row", row=one["row"])
        everything = " ".join(map(str, [row["id"], row["label"], *row["metadata"].values()]))
        assert text.lower() in everything.lower()
    assert len(hostile.get("/api/find", text="nowhere", k=5)["rows"]) == 5


# ---- search


def test_neighbours_and_mixed_examples_are_those_of_numpy(page: Page) -> None:
    unit = units_of(page)
    hits = page.get("/api/neighbours", row=7, k=9)["hits"]
    cosines = unit @ unit[7]
    cosines[7] = -2
    expected = np.argsort(-cosines, kind="stable")[:9]
    assert [one["row"] for one in hits] == expected.tolist()
    np.testing.assert_allclose([one["similarity"] for one in hits], cosines[expected], atol=1e-5)
    like, unlike = [3, 4, 90], [20]
    found = page.post("/api/search", like=like, unlike=unlike, k=5)
    direction = unit[like].mean(axis=0) - 0.5 * unit[unlike].mean(axis=0)
    cosines = unit @ (direction / np.linalg.norm(direction))
    cosines[like + unlike] = -2
    expected = np.argsort(-cosines, kind="stable")[:5]
    assert [one["row"] for one in found["hits"]] == expected.tolist()
    assert found["what"] == "like 3 rows and unlike 1 row"
    kept = page.post("/api/search", like=[3], k=128, where="word = 'banana'")["hits"]
    rows = page.get("/api/rows", rows=",".join(str(one["row"]) for one in kept))["rows"]
    assert {Path(one["id"]).name.partition("_")[0] for one in rows} == {"banana"}
    assert len(rows) == 8 - Path(keys_of(page)[3][0]).name.startswith("banana")
    assert "give rows" in page.post("/api/search", 400, k=5)
    assert "no row 4000" in page.post("/api/search", 404, like=[4000])
    page.post("/api/search", 400, like=[1], where="nothing = 1")
    page.post("/api/search", 400, like=[1], k=0)
    assert len(page.post("/api/search", like=[1], k=10_000)["hits"]) == 127  # the page's most


def test_search_by_a_file_and_by_a_region_of_a_recording(page: Page) -> None:
    clips = Path(penult.__file__).parent / "demo" / "clips"
    number = next(at for at, key in enumerate(keys_of(page)) if "seven_british" in key[0])
    content = (clips / "seven_british-man.flac").read_bytes()
    form = {"file": ("../../etc/a b<c>.flac", content)}
    found = page.client.post("/api/search/upload", files=form, data={"k": "3"}).json()
    assert found["hits"][0]["row"] == number
    assert found["hits"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert found["what"] == "like a b<c>.flac"
    region = {"row": number, "start": 0.05, "end": 0.45}
    found = page.post("/api/search", region=region, k=4)
    assert number not in [one["row"] for one in found["hits"]] and len(found["hits"]) == 4
    samples, rate = soundfile.read(clips / "seven_british-man.flac", dtype="float32")
    cut = samples[round(0.05 * rate) : round(0.45 * rate)]
    vector = page.explorer.embedder().embed([(cut, rate)])[0]
    cosines = units_of(page) @ (vector / np.linalg.norm(vector))
    for one in found["hits"]:
        assert one["similarity"] == pytest.approx(cosines[one["row"]], abs=1e-3)
    assert "beyond the end" in page.post(
        "/api/search", 400, region={"row": number, "start": 100, "end": 101}
    )
    bad = page.client.post("/api/search/upload", files={"file": ("x.wav", b"no sound")})
    assert bad.status_code == 400
    assert "x.wav" in bad.json()["error"]["message"] and "/tmp" not in bad.text


def test_a_model_that_cannot_be_opened_is_told(hostile: Page) -> None:
    answer = hostile.client.post("/api/search/upload", files={"file": ("a.wav", b"RIFF")})
    assert answer.status_code == 503
    assert "cannot be opened" in answer.json()["error"]["message"]
    assert hostile.get("/api/neighbours", row=0, k=2)["hits"]


# ---- selections and files


def test_a_selection_is_a_column_that_commands_filter_by(own: Page, tmp_path: Path) -> None:
    path = own.explorer.collection.path
    version = own.get("/api/state")["version"]
    rows = [9, 3, 100, 3]
    own.post("/api/selections", name="odd_ones", rows=rows)
    state = own.get("/api/state", since=version)
    assert state["version"] > version
    assert state["selections"] == [{"name": "odd_ones", "rows": 3}]
    assert "column:odd_ones" in [one["id"] for one in state["columns"]]
    assert own.get("/api/selections/rows", name="odd_ones")["rows"] == [3, 9, 100]
    said = ask("export", path, tmp_path / "odd.csv", "--where", "odd_ones")
    assert said.code == 0, said.err
    with (tmp_path / "odd.csv").open(newline="") as file:
        ids = {row["id"] for row in csv.DictReader(file)}
    assert ids == {key[0] for key in own.explorer.rows.keys([3, 9, 100])}
    hits = own.post("/api/search", like=[0], k=50, where="odd_ones")["hits"]
    assert sorted(one["row"] for one in hits) == [3, 9, 100]
    own.post("/api/selections", name="odd_ones", rows=[1])
    assert own.get("/api/selections/rows", name="odd_ones")["rows"] == [1]
    again = Page(path)
    assert again.get("/api/state")["selections"] == [{"name": "odd_ones", "rows": 1}]
    own.post("/api/selections/remove", name="odd_ones")
    assert own.get("/api/state")["selections"] == []
    assert ask("export", path, tmp_path / "odd.csv", "--where", "odd_ones", "--overwrite").code == 2
    assert "no selection" in own.post("/api/selections/remove", 400, name="odd_ones")


@pytest.mark.parametrize("name", ["", "a b", "Ä", "x;drop", "word", "id", "1st", "and", "true"])
def test_names_that_no_filter_could_use_are_refused(own: Page, name: str) -> None:
    own.post("/api/selections", 400, name=name, rows=[1, 2])
    assert own.get("/api/state")["selections"] == []


def test_rows_as_files_are_read_by_the_commands(page: Page, words: Path, tmp_path: Path) -> None:
    rows = [40, 2, 17]
    keys = page.explorer.rows.keys(rows)

    def exported(format: str) -> str:
        answer = page.client.post("/api/export", json={"rows": rows, "format": format})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"].startswith(
            "attachment; filename*=UTF-8''words"
        )
        return answer.content.decode()

    assert exported("ids").splitlines() == [id for id, _ in keys]
    table = list(csv.DictReader(io.StringIO(exported("csv"))))
    assert [row["id"] for row in table] == [id for id, _ in keys]
    assert all(Path(row["path"]).is_file() for row in table)
    kept = read_derived(page.explorer.collection.reader, "clusters", "four").table
    called = dict(zip(schema.keys(kept), kept["name"].to_pylist(), strict=True))
    assert [row["cluster:four"] for row in table] == [called[key] for key in keys]
    playlist = exported("m3u").splitlines()
    assert playlist[0] == "#EXTM3U" and sum(one.startswith("#EXTINF:") for one in playlist) == 3
    assert [one for one in playlist if not one.startswith("#")] == [row["path"] for row in table]
    (tmp_path / "rows.txt").write_text(exported("raven"))
    with (tmp_path / "rows.txt").open(newline="") as file:
        selections = list(csv.DictReader(file, delimiter="\t"))
    assert [row["Begin Path"] for row in selections] == [row["path"] for row in table]
    found = ask("search", words, exported("ids").splitlines()[0], "-k", "1", "--json").json
    assert found["hits"][0]["id"] == keys[0][0]
    page.post("/api/export", 400, rows=rows, format="exe")


def test_cells_of_a_table_run_no_formula(hostile: Page) -> None:
    answer = hostile.client.post("/api/export", json={"rows": [*range(12)], "format": "csv"})
    notes = [row["note"] for row in csv.DictReader(io.StringIO(answer.content.decode()))]
    assert "'=1+1" in notes and "=1+1" not in notes


@pytest.mark.parametrize("row", [-1, 128, 1 << 40, 10**20])
def test_a_number_of_no_row_is_not_there(page: Page, row: int) -> None:
    assert f"there is no row {row}" in page.get("/api/row", 404, row=row)
    page.get("/api/neighbours", 404, row=row)
    assert page.get("/api/rows", rows=f"3,{abs(row)}")["rows"][0]["row"] == 3


def test_rows_whose_vectors_are_read_later_get_their_place_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"/x/{at:02}.wav", "label": "cat", "score": 0.5} for at in range(31)]
    vectors = np.random.default_rng(0).normal(size=(31, 8))
    path = made(tmp_path / "c.lance", "audio", rows[:30], vectors=vectors[:30])
    with closing(Page(path)) as page:
        page.points()
        page.wait_for_map()
        read, meanwhile = page.explorer.vectors.refresh, []

        def refresh() -> None:  # others ask while the vectors are read
            meanwhile.append(page.points()[0].tolist())
            assert "no vector of row 30" in page.post("/api/search", 400, like=[3, 30], k=5)
            read()

        monkeypatch.setattr(page.explorer.watch, "_follow", refresh)
        made(path, "audio", rows[30:], vectors=vectors[30:])
        assert page.get("/api/state")["map"]["nearby"] == 1
        assert meanwhile == [list(range(31))]
        places, unit = page.points()[1], units_of(page)
        nearest = np.argsort(unit[:30] @ unit[30])[-5:]
        np.testing.assert_allclose(places[30], places[nearest].mean(axis=0), atol=1e-5)


def test_what_is_taught_changes_no_search(own: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes have a space of their own; rows are alike by `penult search`'s."""
    vectors = own.explorer.vectors
    before = own.get("/api/neighbours", row=4)["hits"]
    other, take = fit("pca:3", own.explorer.collection.vectors()[1]), vectors.take

    def taken(*given: Any) -> np.ndarray:
        found = take(*given)
        vectors.use(other)  # as a mark does
        return found

    monkeypatch.setattr(vectors, "take", taken)
    assert own.get("/api/neighbours", row=4)["hits"] == before
    path = str(own.explorer.collection.path)
    found = json.loads(ask("search", path, own.explorer.rows.key(4)[0], "-k", 13, "--json").out)
    others = [one["similarity"] for one in found["hits"]][1:]
    np.testing.assert_allclose([one["similarity"] for one in before], others, atol=1e-6)


def test_a_page_without_a_row(tmp_path: Path) -> None:
    path = made(tmp_path / "c.lance", "audio", [{"id": "/x/1.wav", "label": "cat", "score": 0.5}])
    assert ask("forget", path, "/x/1.wav", "--yes").code == 0
    with closing(Page(path)) as page, warnings.catch_warnings():
        warnings.simplefilter("error")
        state = page.get("/api/state")
        assert (state["rows"], state["drawn"], state["classes"]) == (0, 0, [])
        assert page.points()[0].tolist() == [] and page.get("/api/find", text="x") == {"rows": []}
        assert "no row 0" in page.post("/api/search", 404, like=[0])


# ---- what others do meanwhile


def test_rows_that_come_and_go_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    rows = [{"id": f"/x/{at}.wav", "label": "cat", "score": 0.5} for at in range(30)]
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    path = made(tmp_path / "c.lance", "audio", rows, vectors=vectors[:30])
    page = Page(path)
    before = page.get("/api/state")
    keys = keys_of(page)
    page.points()
    page.wait_for_map()
    old = page.points()[1]
    later = [{"id": f"/a/{at}.wav", "label": "dog", "score": 0.5} for at in range(10)]
    made(path, "audio", later, vectors=vectors[30:])
    assert ask("forget", path, "/x/7.wav", "--yes").code == 0
    state = page.get("/api/state", since=before["version"])
    assert (state["rows"], state["drawn"], state["map"]["nearby"]) == (39, 39, 10)
    assert keys_of(page)[:30] == keys
    gone = keys.index(("/x/7.wav", "whole"))
    numbers, places, _ = page.points()
    assert numbers.tolist() == [number for number in range(40) if number != gone]
    kept = numbers < 30
    np.testing.assert_array_equal(places[kept], np.delete(old, gone, axis=0))
    unit = units_of_vectors(vectors)
    by_key = {(row["id"], "whole"): at for at, row in enumerate([*rows, *later])}
    for number, place in zip(numbers[~kept], places[~kept], strict=True):
        own = unit[by_key[keys_of(page)[number]]]
        others = [one for one in range(30) if one != gone]
        cosines = [own @ unit[by_key[keys[one]]] for one in others]
        nearest = [others[at] for at in np.argsort(cosines)[-5:]]
        np.testing.assert_allclose(place, old[nearest].mean(axis=0), atol=1e-5)
    assert "not any more" in page.get("/api/row", 404, row=gone)
    legend = page.get("/api/legend", by="label")
    assert {one["name"]: one["count"] for one in legend["entries"]} == {"cat": 29, "dog": 10}
    assert page.client.get("/media/audio", params={"id": "/x/7.wav"}).status_code == 404


def units_of_vectors(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_marks_of_the_command_line_are_seen_at_once(own: Page) -> None:
    path = own.explorer.collection.path
    version = own.get("/api/state")["version"]
    id, region = keys_of(own)[11]
    collection = Collection.open(path)
    collection.label(id, region, "<b>owl</b>", "yes", who="ann", source="test")
    collection.label(id, region, "<b>owl</b>", "no", who="bob", source="test")
    collection.label(*keys_of(own)[12], "tit", "yes", who="ann", source="test")
    state = own.get("/api/state", since=version)
    assert state["version"] > version
    counts = {one["name"]: (one["yes"], one["no"]) for one in state["classes"]}
    assert counts == {"<b>owl</b>": (0, 1), "tit": (1, 0)}
    row = own.get("/api/row", row=11)
    assert row["marks"] == {"<b>owl</b>": {"ann": "yes", "bob": "no"}}
    disagreed = own.get("/api/disagreements")["rows"]
    assert disagreed == [{"row": 11, "class": "<b>owl</b>", "marks": {"ann": "yes", "bob": "no"}}]
    legend = own.get("/api/legend", by="class")
    assert [(one["name"], one["count"]) for one in legend["entries"]] == [("tit", 1)]
    assert np.flatnonzero(own.values("class") == legend["entries"][0]["code"]).tolist() == [12]


def test_a_mark_that_is_taken_back_is_gone_for_all(own: Page) -> None:
    for who, mark in (("ann", "yes"), ("bob", "no")):
        body = {"class": "owl", "marks": [{"row": 11, "mark": mark}], "who": who}
        own.post("/api/marks", **body)
    own.post("/api/marks", **{"class": "owl", "marks": [{"row": 11, "mark": "none"}], "who": "ann"})
    assert own.get("/api/disagreements")["rows"] == []
    assert own.get("/api/row", row=11)["marks"] == {}
    own.post("/api/undo", who="ann")
    assert own.get("/api/row", row=11)["marks"] == {"owl": {"ann": "yes", "bob": "no"}}


def test_looking_costs_next_to_nothing(page: Page) -> None:
    version = page.get("/api/state")["version"]
    began = time.perf_counter()
    for _ in range(100):
        assert page.explorer.watch.look() == version
    assert (time.perf_counter() - began) / 100 < 0.02


_WRITER = """
import sys
from pathlib import Path
from penult.collection.access import accessed
with accessed(Path(sys.argv[1]), "penult embed demo clips", "run", alone=True):
    print("writes", flush=True)
    sys.stdin.read()
"""


def test_a_writer_is_shown_while_it_writes(own: Page) -> None:
    assert own.get("/api/state")["running"] is None
    command = [sys.executable, "-c", _WRITER, str(own.explorer.collection.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout.readline() == "writes\n"
        running = own.get("/api/state")["running"]
        writer.communicate()
    nothing = dict.fromkeys(("rate", "total", "left"))
    assert running == {"command": "penult embed demo clips", "rows": 0, **nothing}
    assert own.get("/api/state")["running"] is None


def test_errors_are_documents(page: Page) -> None:
    answer = page.client.get("/api/find")
    assert answer.status_code == 400 and "text" in json.loads(answer.text)["error"]["message"]
    answer = page.client.post(
        "/api/search", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    page.get("/api/nothing", 404)


def test_points_of_a_whole_map_wait_for_no_vectors(
    own: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million rows the vectors take longer to read than the page to draw."""
    kept = derived.make_map(own.explorer.collection.reader)
    read = threading.Event()
    monkeypatch.setattr(VectorMatrix, "wait", lambda *_: read.wait(60))
    with closing(Page(own.explorer.collection.path)) as again:
        try:
            rows, places, _ = again.points()
            assert len(rows) == len(kept.rows) and np.isfinite(places).all()
            assert not read.is_set()
        finally:
            read.set()


def test_a_map_of_some_rows_is_completed_and_kept(
    own: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penult.explorer.points._FEW", 5)
    derived.make_map(own.explorer.collection.reader, most=70)  # as `penult map --most` keeps it
    seen, make = threading.Event(), PointMap._make

    def later(points: PointMap, kept: Any) -> None:
        seen.wait(60)
        make(points, kept)

    monkeypatch.setattr(PointMap, "_make", later)
    assert own.points()[2]["x-map"] == "pca"
    seen.set()
    own.wait_for_map()
    state = own.get("/api/state")
    assert state["map"] == {"method": "tsne", "making": False, "nearby": 58}
    places = own.points()[1]
    with closing(Page(own.explorer.collection.path)) as again:
        assert again.get("/api/state")["map"] == state["map"]
        np.testing.assert_allclose(again.points()[1], places, atol=1e-6)
