"""Searches from outside: which way one went, what it opens, and a collection made anew under it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import lancedb
import numpy as np
import pytest
import soundfile
import torch

import penult
from conftest import RATE, clip, thinned
from penult.analysis.space import fit
from penult.collection import index, lance
from penult.collection.spaces import keep_own
from penult.collection.writer import writing
from penult.errors import FingerprintMismatch
from test_cli import ask
from test_collection import MANIFEST, batch, filled

DIM, N, K = 64, 4000, 10


def ids(hits: object) -> list[str]:
    return [hit["id"] if isinstance(hit, dict) else hit.id for hit in hits]  # type: ignore[attr-defined]


# ---- index or all rows


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[penult.Collection, np.ndarray]:
    """Vectors without any structure: an index that looks into a third of its lists misses some."""
    vectors = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    manifest = replace(MANIFEST, dim=DIM)
    rows = batch([f"{row:04}" for row in range(N)], manifest=manifest, vectors=vectors)
    made = filled(tmp_path_factory.mktemp("search") / "c.lance", rows, manifest=manifest)
    made.build_index(0.0)
    return made, vectors


def exact(vectors: np.ndarray, query: int) -> list[str]:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return [f"{row:04}" for row in np.argsort(-(units @ units[query]), kind="stable")[:K]]


SPACES = ("scale", "whiten", "scale+l2")
EACH_RUN = [("scale", "in_spaces"), ("embedder", "in_spaces")]
OTHER_SPACES = ("centre", "pca:16", "l2+centre")


def clustered(rows: int, seed: int = 1) -> np.ndarray:
    """Vectors as models give them: in clusters, far from the origin, of unequal spread."""
    centres = np.random.default_rng(0).standard_normal((N // 40, DIM))
    random = np.random.default_rng(seed)
    near = centres[random.integers(0, len(centres), rows)] + 0.5 * random.standard_normal(
        (rows, DIM)
    )
    made: np.ndarray = (near * np.linspace(0.2, 2, DIM) + 2).astype(np.float32)
    return made


def with_spaces(path: Path, recipes: Sequence[str]) -> tuple[penult.Collection, np.ndarray]:
    """A collection that is indexed for these spaces, and for its embedder's own."""
    vectors, manifest = clustered(N), replace(MANIFEST, dim=DIM)
    rows = batch([f"{row:04}" for row in range(N)], manifest=manifest, vectors=vectors,
                 site=["A", "B", "B", "B"] * (N // 4))  # fmt: skip
    site = {"site": rows.schema.field("site").type}
    made = filled(path, rows, manifest=manifest, metadata=site)
    for recipe in recipes:
        made.fit_space(recipe)
    keep_own(made.reader, fit("within+centre", vectors, (vectors[:, 0] // 1).tolist()))
    made.build_index(0.9)
    return made, vectors


@pytest.fixture(scope="module")
def in_spaces(tmp_path_factory: pytest.TempPathFactory) -> tuple[penult.Collection, np.ndarray]:
    return with_spaces(tmp_path_factory.mktemp("spaces") / "c.lance", SPACES)


@pytest.fixture(scope="module")
def in_others(tmp_path_factory: pytest.TempPathFactory) -> tuple[penult.Collection, np.ndarray]:
    return with_spaces(tmp_path_factory.mktemp("spaces") / "c.lance", OTHER_SPACES)


def cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    found: np.ndarray = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    return found


@pytest.mark.parametrize(
    ("name", "collection"),
    [
        *thinned([(name, "in_spaces") for name in (*SPACES, "embedder")], EACH_RUN),
        *(pytest.param(name, "in_others", marks=pytest.mark.slow) for name in OTHER_SPACES),
    ],
)
def test_a_search_in_a_space_takes_the_index(
    name: str, collection: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is streamed, LanceDB asks its index, and what is found is what numpy finds."""
    made, vectors = request.getfixturevalue(collection)
    assert made.index is not None
    told = {one.name: one for one in made.index.spaces}
    spaces = SPACES if collection == "in_spaces" else OTHER_SPACES
    assert sorted(told) == sorted([*spaces, "embedder"]) and all(one.used for one in told.values())
    plans: list[str] = []
    answered = lancedb.query.LanceVectorQueryBuilder.to_arrow

    def watched(builder: lancedb.query.LanceVectorQueryBuilder) -> object:
        plans.append(builder.explain_plan(True))
        return answered(builder)

    monkeypatch.setattr(lancedb.query.LanceVectorQueryBuilder, "to_arrow", watched)
    monkeypatch.setattr(lance, "stream_rows", lambda *_: pytest.fail("all rows are read"))
    space, share = made.space(name), []
    moved = space(vectors)
    for query in range(0, N, N // 20):
        hits = made.search(vectors[query], k=K, space=name)
        assert hits.searched == "index"
        near = cosines(moved[query], moved)
        assert [hit.similarity for hit in hits] == pytest.approx(
            [near[int(hit.id)] for hit in hits], abs=1e-5
        )
        share.append(len({f"{row:04}" for row in np.argsort(-near)[:K]} & {*ids(hits)}) / K)
    assert np.mean(share) >= 0.95 and abs(np.mean(share) - told[name].recall) < 0.05
    assert plans and all("ANN" in plan for plan in plans)


def test_short_lists_are_asked_again_not_all_rows(
    in_spaces: tuple[penult.Collection, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One list of the index holds some sixty rows, a search in a space asks for a thousand."""
    made, vectors = in_spaces
    monkeypatch.setattr(index, "PROBES", 1)
    monkeypatch.setattr(lance, "stream_rows", lambda *_: pytest.fail("all rows are read"))
    hits = made.search(vectors[7], k=K, space="whiten")
    assert hits.searched == "index" and hits[0].id == "0007"


def test_a_filter_and_new_rows_in_a_space(
    in_spaces: tuple[penult.Collection, np.ndarray], tmp_path: Path
) -> None:
    old, vectors = in_spaces
    shutil.copytree(old.path, tmp_path / "c.lance")
    made = penult.Collection.open(tmp_path / "c.lance")
    new = clustered(40, seed=7)
    space = made.space("whiten")
    moved = space(np.concatenate([vectors, new]))
    with writing(made.path, replace(MANIFEST, dim=DIM)) as writer:
        writer.write(batch([f"{N + row:04}" for row in range(40)], site=["A"] * 40, vectors=new,
                           manifest=replace(MANIFEST, dim=DIM)))  # fmt: skip
    places = np.array([at for at in range(N + 40) if at >= N or at % 4 == 0])
    for row in (N, N + 17):
        hits = made.search(new[row - N], k=K, space="whiten", where="site = 'A'")
        assert hits.searched == "index" and hits[0].id == f"{row:04}"
        near = cosines(moved[row], moved[places])
        assert len({f"{places[at]:04}" for at in np.argsort(-near)[:K]} & {*ids(hits)}) >= 9


def test_a_space_that_was_not_measured_is_searched_exactly(
    in_spaces: tuple[penult.Collection, np.ndarray], tmp_path: Path
) -> None:
    old, vectors = in_spaces
    shutil.copytree(old.path, tmp_path / "c.lance")
    made = penult.Collection.open(tmp_path / "c.lance")
    made.fit_space("whiten", where="site = 'A'")  # under the same name, and another one
    made.fit_space("centre+scale")
    for name in ("whiten", "centre+scale", "pca:8"):
        assert made.search(vectors[0], k=K, space=name).searched == "all rows"
    for how in ({"flat": True}, {"metric": "l2"}):
        assert made.search(vectors[0], k=K, space="scale", **how).searched == "all rows"
    index.build(  # which finds nothing in any space
        made.reader,
        lambda query, k, space: made.search(query, k, indexed=True) if space.is_raw else [],
        0.9,
    )
    assert made.index is not None and not any(one.used for one in made.index.spaces)
    assert made.search(vectors[0], k=K, space="scale").searched == "all rows"
    assert made.search(vectors[0], k=K).searched == "index"
    said = ask("search", made.path, "0007", "--space", "scale")
    assert "penult index" in said.err and "all rows" in said.err


@pytest.mark.slow
def test_the_command_tells_what_the_index_finds_in_spaces(
    in_spaces: tuple[penult.Collection, np.ndarray], tmp_path: Path
) -> None:
    made = in_spaces[0]
    said = ask("search", made.path, "0007", "--space", "scale", "--json")
    assert json.loads(said.out)["searched"] == "index"
    assert json.loads(said.out)["hits"][0]["id"] == "0007"
    shutil.copytree(made.path, tmp_path / "c.lance")
    said = ask("index", tmp_path / "c.lance", "--min-recall", "0.9")
    assert said.code == 0 and "in space whiten: recall@10 " in said.out


def test_a_search_by_an_id_opens_no_model(
    in_spaces: tuple[penult.Collection, np.ndarray],
) -> None:
    """Nor any library that only a model, a picture or a sound needs."""
    code = (
        "import sys; from penult.cli import run; run(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'soundfile', 'PIL', 'av'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    command = ["search", str(in_spaces[0].path), "0007", "--space", "scale", "-k", "1"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0 and "0007" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def missed(vectors: np.ndarray, query: int, hits: object) -> int:
    return len(set(exact(vectors, query)) - set(ids(hits)))


def test_an_index_is_searched_and_says_so(indexed: tuple[penult.Collection, np.ndarray]) -> None:
    made, vectors = indexed
    found = {query: made.search(vectors[query], k=K) for query in range(40)}
    assert {hits.searched for hits in found.values()} == {"index"}
    assert sum(missed(vectors, query, hits) for query, hits in found.items()) > 0
    flat = {query: made.search(vectors[query], k=K, flat=True) for query in range(40)}
    assert {hits.searched for hits in flat.values()} == {"all rows"}
    assert all(ids(hits) == exact(vectors, query) for query, hits in flat.items())


def test_every_name_of_the_raw_space_takes_the_index(
    indexed: tuple[penult.Collection, np.ndarray],
) -> None:
    made, vectors = indexed
    wanted = made.search(vectors[3], k=K)
    for space in ("raw", made.space("raw"), fit("raw", vectors)):
        found = made.search(vectors[3], k=K, space=space)
        assert found.searched == "index" and found == wanted
    moved = fit("centre", vectors)
    centred = made.search(vectors[3], k=K, space=moved)
    assert centred.searched == "all rows" and missed(moved(vectors), 3, centred) == 0
    assert made.search(vectors[3], metric="dot").searched == "all rows"  # not the index's metric
    few = made.search(vectors[3], k=K, where="id < '0012'")
    assert len(few) == K and few.searched in ("index", "all rows")


def test_the_command_line_takes_the_index_unless_flat(
    indexed: tuple[penult.Collection, np.ndarray],
) -> None:
    made, vectors = indexed
    query = next(q for q in range(200) if missed(vectors, q, made.search(vectors[q], k=K)))
    asked = ("search", made.path, f"{query:04}", "-k", K)
    for options in ((), ("--space", "raw")):
        document = ask(*asked, *options, "--json").json
        assert document["searched"] == "index"
        assert ids(document["hits"]) == ids(made.search(vectors[query], k=K))
        assert missed(vectors, query, document["hits"]) > 0
    document = ask(*asked, "--flat", "--json").json
    assert document["searched"] == "all rows"
    assert ids(document["hits"]) == exact(vectors, query)
    assert ask(*asked, "--space", "centre", "--json").json["searched"] == "all rows"
    assert "searched: index" in ask(*asked).err
    assert "searched: all rows" in ask(*asked, "--flat").err


# ---- one model for all searches

FACTORY = """
import torch

opened, passes = [], []


class Model(torch.nn.Module):
    def __init__(self, width=16):
        super().__init__()
        opened.append(width)
        self.body = torch.nn.Conv1d(1, width, 400, 160)
        self.fc = torch.nn.Linear(width, 3)

    def forward(self, samples):
        passes.append(len(samples))
        return self.fc(self.body(samples[:, None]).relu().mean(-1))


def wide():
    return Model(24)
"""


class Sounds:
    """A factory that counts what it builds and what that runs; files, and rows made by it."""

    def __init__(self, folder: Path, module: ModuleType) -> None:
        self.folder, self.module = folder, module
        for name in ("Model", "wide"):
            torch.manual_seed(0)
            torch.save(getattr(module, name)().state_dict(), folder / f"{name}.pt")
        self.files = []
        for number in range(8):
            self.files.append(folder / f"{number}.wav")
            soundfile.write(self.files[-1], clip(0.5, number), RATE, subtype="PCM_16")
        self.into = folder / "c.lance"

    def embedder(self, name: str = "Model") -> penult.Embedder:
        model = penult.load(
            f"counted:{name}", checkpoint=self.folder / f"{name}.pt", sample_rate=RATE
        )
        return penult.Embedder.from_classifier(model)

    def collection(self, name: str = "Model") -> penult.Collection:
        made = penult.Collection.open(self.into)
        made.add(self.embedder(name), self.files[:4])
        self.forget()
        return made

    def forget(self) -> None:
        self.module.opened.clear()
        self.module.passes.clear()


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sounds:
    (tmp_path / "counted.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counted", raising=False)
    return Sounds(tmp_path, __import__("counted"))


def test_three_searches_with_files_open_one_model(sounds: Sounds) -> None:
    made, wanted = sounds.collection(), sounds.embedder().embed(sounds.files[4:7])
    sounds.forget()
    first = made.search(sounds.files[4], k=1)
    assert sounds.module.opened == [16]
    sounds.module.passes.clear()
    others = [made.search(str(file), k=1) for file in sounds.files[5:7]]
    assert sounds.module.opened == [16] and sounds.module.passes == [1, 1]
    rows = made.vectors()[1]
    for hits, query in zip([first, *others], wanted, strict=True):
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        assert hits[0].similarity == pytest.approx(cosines.max(), abs=1e-5)
    space = penult.ClassSpace(made)
    space.add("new", [sounds.files[7]])
    assert sounds.module.opened == [16]


def test_a_search_takes_no_model_apart(sounds: Sounds) -> None:
    """The manifest names the tap's place: three passes more than opening the model costs, the query
    and the two made-up items that the embedder's behaviour is compared on. A manifest of before,
    without the place, gives the same hits."""
    made = sounds.collection()
    penult.load("counted:Model", checkpoint=sounds.folder / "Model.pt", sample_rate=RATE)
    opening = len(sounds.module.passes)
    sounds.forget()
    hits = made.search(sounds.files[5], k=4)
    assert len(sounds.module.passes) == opening + 3
    file = sounds.into / "collection.json"
    manifest = json.loads(file.read_text())
    assert [tap["module"] for tap in manifest["model"].pop("taps")]
    file.write_text(json.dumps(manifest))
    sounds.forget()
    again = penult.Collection.open(sounds.into).search(sounds.files[5], k=4)
    assert len(sounds.module.passes) > opening + 3
    assert ids(again) == ids(hits)
    found = [(hit.id, hit.similarity) for hit in hits]
    assert found == [(hit.id, hit.similarity) for hit in again]


def test_threads_that_search_at_once_open_one_model(sounds: Sounds) -> None:
    made = sounds.collection()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: made.search(file, k=4), sounds.files[4:] * 4))
    assert sounds.module.opened == [16]
    for file, hits in zip(sounds.files[4:] * 4, found, strict=True):
        assert ids(hits) == ids(made.search(file, k=4))


def test_a_search_takes_an_embedder(sounds: Sounds) -> None:
    made, own, other = sounds.collection(), sounds.embedder(), sounds.embedder("wide")
    wanted = made.search(sounds.files[4], k=4)
    sounds.forget()
    again = penult.Collection.open(made.path).search(sounds.files[4], k=4, embedder=own)
    assert again == wanted and sounds.module.opened == []
    with pytest.raises(FingerprintMismatch, match=r"weights: \S+ against \S+"):
        made.search(sounds.files[4], embedder=other)


def test_a_collection_made_anew_is_searched_with_its_own_model(sounds: Sounds) -> None:
    made = sounds.collection()
    made.search(sounds.files[4])
    shutil.rmtree(made.path)
    sounds.collection("wide")
    assert made.manifest is not None and made.manifest.dim == 24
    hits = made.search(sounds.files[4], k=1)
    assert sounds.module.opened == [24]
    query = sounds.embedder("wide").embed([sounds.files[4]])[0]
    rows = made.vectors()[1]
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    assert hits[0].similarity == pytest.approx(cosines.max(), abs=1e-5)


# ---- how often the folder is looked at


def test_a_run_and_a_search_connect_once(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    connect = lancedb.connect

    def counted(uri: object, *args: object, **options: object) -> object:
        calls[str(uri)] += 1
        return connect(uri, *args, **options)

    read = []
    monkeypatch.setattr(lancedb, "connect", counted)
    monkeypatch.setattr(
        Path, "read_text", _noting(Path.read_text, lambda path: read.append(path.name))
    )
    made = sounds.collection()
    for file in sounds.files:
        made.search(file, k=2)
    assert calls == {str(made.path): 1}
    assert read.count("collection.json") <= 2  # by the writer, and once by all searches


def _noting(call: object, note: object) -> object:
    def noted(path: Path, *args: object, **options: object) -> object:
        note(path)  # type: ignore[operator]
        return call(path, *args, **options)  # type: ignore[operator]

    return noted
