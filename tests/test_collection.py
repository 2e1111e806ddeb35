"""Collections: no duplicates, nothing lost, refusals in words."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penult.collection import lance, manifest
from penult.collection import schema as rows
from penult.collection import writer as writer_module
from penult.collection.collection import Collection
from penult.collection.manifest import Manifest
from penult.collection.schema import Known
from penult.collection.spaces import append_space
from penult.collection.writer import writing
from penult.data.items import Failure
from penult.data.tables import RESERVED
from penult.errors import CollectionError, CollectionLocked, FingerprintMismatch, StoreError

DIM, CLASSES = 8, 3
MANIFEST = Manifest(
    fingerprint={"weights": "sha256:aaaa", "tap": "backbone", "pooling": "mean"},
    dim=DIM,
    n_logits=CLASSES,
    model={"spec": "demo", "tap": "backbone"},
    labels=("cat", "dog", "owl"),
)


def batch(ids, *, region="whole", seed=0, manifest=MANIFEST, vectors=None, **columns):
    """Rows for these ids, with metadata as keywords."""
    rng = np.random.default_rng(seed)
    n = len(ids)
    metadata = {name: pa.array(values) for name, values in columns.items() if name not in _OWN}
    schema = rows.row_schema(
        manifest.dim,
        manifest.n_logits,
        manifest.logits,
        manifest.dtype,
        {name: column.type for name, column in metadata.items()},
    )
    if vectors is None:
        vectors = rng.normal(size=(n, manifest.dim))
    vectors = np.asarray(vectors, dtype=manifest.dtype)
    data = {
        "id": pa.array(ids, pa.string()),
        "region": pa.array([region] * n if isinstance(region, str) else region),
        "kind": pa.array(["whole"] * n),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), manifest.dim),
        "content_hash": pa.array(columns.get("content_hash", [f"hash-{seed}"] * n)),
        "size": pa.array(columns.get("size", [100] * n), pa.int64()),
        "mtime_ns": pa.array(columns.get("mtime_ns", [seed] * n), pa.int64()),
        **metadata,
    }
    if manifest.logits == "all":
        logits = pa.array(rng.normal(size=n * manifest.n_logits).astype(np.float32))
        data["logits"] = pa.FixedSizeListArray.from_arrays(logits, manifest.n_logits)
    elif manifest.logits != "none":
        top = [[{"index": 1, "logit": 2.5}, {"index": 0, "logit": 1.5}]] * n
        data["logits"] = pa.array(top, schema.field("logits").type)
    arrays = [data.get(field.name, pa.nulls(n, field.type)) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


_OWN = ("content_hash", "size", "mtime_ns")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.lance"


def filled(path, *batches, manifest=MANIFEST, metadata=None):
    collection = Collection.open(path)
    with writing(collection.path, manifest, metadata) as writer:
        for one in batches:
            writer.write(one)
    return collection


def all_keys(collection):
    return sorted(key for part in collection.scan(["id", "region"]) for key in rows.keys(part))


# --- opening ------------------------------------------------------------------------------------


def test_a_new_collection_appears_with_the_first_writer(path):
    collection = Collection.open(path)
    assert collection.manifest is None and collection.manifest is None and not path.exists()
    with pytest.raises(CollectionError, match="no collection at"):
        Collection.open(path, must_exist=True)
    filled(path, batch(["a"]))
    collection = Collection.open(path, must_exist=True)
    manifest = collection.manifest
    assert manifest == replace(MANIFEST, created=manifest.created)
    assert manifest.created
    assert collection.count == 1
    assert collection.reader.schema.names == list(rows.COLUMNS)


def test_other_folders_and_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for path, word in ((tmp_path, "note.txt"), (tmp_path / "note.txt", "is a file")):
        with pytest.raises(CollectionError, match=word):
            Collection.open(path)
    import lancedb

    lancedb.connect(tmp_path / "other").create_table("birds", [{"vector": [1.0, 2.0]}])
    with pytest.raises(CollectionError, match=r"LanceDB folder .*birds\.lance"):
        Collection.open(tmp_path / "other")
    with pytest.raises(CollectionError), writing(Collection(tmp_path).path, MANIFEST):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["note.txt", "other"]


def test_damaged_and_newer_manifests_are_named(path):
    filled(path, batch(["a"]))
    manifest = path / "collection.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(CollectionError, match=r"format 99.*upgrade"):
        _ = Collection.open(path).manifest
    manifest.write_text(text[:50])
    with pytest.raises(CollectionError, match="damaged"):
        _ = Collection.open(path).manifest


@pytest.mark.parametrize("stage", ["lock", "aside", "manifest", "table"])
def test_a_creation_killed_at_any_stage_is_completed(path, stage):
    path.mkdir()
    (path / manifest.LOCK).touch()
    if stage != "lock":
        (path / (manifest.MANIFEST + ".tmp")).write_text('{"half')  # of 0.1.0
        (path / f".{manifest.MANIFEST}-0a1b2c3d").write_text('{"half')
    if stage in ("manifest", "table"):
        manifest.write_manifest(path, MANIFEST)
        collection = Collection.open(path, must_exist=True)
        assert collection.count == 0 and collection.search(np.ones(DIM)) == []
        assert collection.vectors()[1].shape == (0, DIM)
        assert list(collection.reader.scan()) == [] and len(collection.runs()) == 0
    if stage == "table":
        (path / "items.lance" / "_transactions").mkdir(parents=True)
        (path / "items.lance" / "_transactions" / "0-x.txn").touch()
    assert filled(path, batch(["a"])).count == 1


# --- writing ------------------------------------------------------------------------------------


def test_new_keys_are_appended_and_existing_ones_replaced(path):
    collection = filled(path, batch(["a", "b"], seed=1))
    with collection.writer(MANIFEST) as writer:
        assert writer.write(batch(["b", "c"], seed=2)) == (1, 1)
        assert writer.write([batch(["d"], seed=3), batch(["d"], seed=4)]) == (1, 0)
        assert writer.write([]) == (0, 0)
        assert writer.write(batch([])) == (0, 0)
        assert writer.write(batch(["a", "a"], region=["0-5", "5-10"])) == (2, 0)
    wanted = [("a", "0-5"), ("a", "5-10")]
    wanted += [(name, "whole") for name in "abcd"]
    assert all_keys(collection) == sorted(wanted)
    for name, seed in (("a", 1), ("b", 2), ("c", 2), ("d", 4)):
        assert collection.get(name)["content_hash"] == f"hash-{seed}"
    expected = np.asarray(batch(["b", "c"], seed=2).column("vector").to_pylist(), np.float32)
    np.testing.assert_array_equal(collection.get("b")["vector"], expected[0])
    assert collection.get("b")["run_id"] == writer.run_id != collection.get("a")["run_id"]
    assert collection.get("nobody") is None


@pytest.mark.parametrize("seen", [0, 3, 1000])
def test_what_the_writer_keeps_in_mind_is_true(path, monkeypatch, seen):
    monkeypatch.setattr(writer_module, "_SEEN", seen)
    rng = random.Random(seen)
    there: set[str] = set()
    with writing(Collection.open(path).path, MANIFEST) as writer:
        for step in range(25):
            ids = [str(rng.randrange(12)) for _ in range(3)]
            if rng.random() < 0.5:
                assert set(writer.known(ids)[0]) == {key for key in there if key[0] in ids}
            if rng.random() < 0.3:
                gone = {key for key in there if key[0] == ids[0]}
                assert writer.prune({ids[0]: f"new-{step}"}) == len(gone)
                there -= gone
            keys = {(name, rng.choice(["whole", "0-5"])) for name in ids}
            names, regions = (list(part) for part in zip(*sorted(keys), strict=True))
            written = writer.write(batch(names, region=regions, seed=step))
            assert written == (len(keys - there), len(keys & there))
            there |= keys
    assert all_keys(Collection.open(path)) == sorted(there)


def test_ids_with_quotes_and_any_letters(path):
    ids = ["it's", 'say "x"', "100%_\\", "日本/é.wav", "a`b", "x; drop"]
    collection = filled(path, batch(ids))
    with collection.writer(MANIFEST) as writer:
        assert set(writer.known(ids)[0]) == {(name, "whole") for name in ids}
        assert writer.write(batch(ids, seed=1)) == (0, len(ids))
    assert collection.count == len(ids)
    assert all(collection.get(name)["content_hash"] == "hash-1" for name in ids)
    assert collection.count_where("id = 'x; drop'") == 1


def test_what_is_known_and_revised(path):
    collection = filled(path, batch(["a", "b"], seed=7, site=["x", "y"], year=[1, 2]))
    before = collection.get("a")
    with collection.writer(MANIFEST, {"note": pa.string()}) as writer:
        known, values = writer.known(["a", "nobody"], ["site", "missing"])
        assert known == {("a", "whole"): Known(100, 7, "hash-7")}
        assert values == {("a", "whole"): {"site": "x"}}
        new = {"size": 200, "mtime_ns": 9, "note": "it's"}
        writer.revise(
            {("a", "whole"): new, ("b", "whole"): {"year": None}, ("nobody", "whole"): {"size": 1}}
        )
        assert writer.known(["a"])[0] == {("a", "whole"): Known(200, 9, "hash-7")}
        for name, value in (("vector", 1), ("run_id", "x"), ("nope", 1), ("year", "text")):
            with pytest.raises(CollectionError, match=name):
                writer.revise({("a", "whole"): {name: value}})
    after = collection.get("a")
    np.testing.assert_array_equal(before["vector"], after["vector"])
    assert (after["site"], after["year"], after["note"]) == ("x", 1, "it's")
    assert after["run_id"] == before["run_id"]
    assert (collection.get("b")["year"], collection.get("b")["site"]) == (None, "y")
    assert collection.count == 2


def test_regions_of_former_content_are_pruned(path):
    collection = filled(path, batch(["a", "a", "b"], region=["0-5", "5-10", "0-5"], seed=1))
    with collection.writer(MANIFEST) as writer:
        assert writer.prune({"a": "hash-2", "b": "hash-1"}) == 2
        writer.write(batch(["a"], region="0-5", seed=2))
    assert all_keys(collection) == [("a", "0-5"), ("b", "0-5")]


def test_rows_that_do_not_fit_are_refused_whole(path):
    collection = filled(path, batch(["a"]))
    bad = np.ones((2, DIM))
    bad[1, 3] = np.nan
    other = replace(MANIFEST, dim=4)
    with collection.writer(MANIFEST) as writer:
        with pytest.raises(CollectionError, match=r"1 of 2 rows have vector .*'y'"):
            writer.write(batch(["x", "y"], vectors=bad))
        with pytest.raises(CollectionError, match="vector"):
            writer.write(batch(["z"], manifest=other))
        with pytest.raises(CollectionError, match="null"):
            writer.write(batch([None]))
    assert collection.count == 1
    half = replace(MANIFEST, dtype="float16")
    with (
        writing(path.with_name("half"), half) as writer,
        pytest.raises(CollectionError, match="not finite"),
    ):
        writer.write(batch(["big"], vectors=np.full((1, DIM), 1e6)))


@pytest.mark.parametrize("logits", ["all", "none", "top:2"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_modes_and_number_types(path, logits, dtype):
    manifest = replace(MANIFEST, logits=logits, dtype=dtype)
    rows_in = batch(["a", "b"], manifest=manifest)
    collection = filled(path, rows_in, manifest=manifest)
    filled(path, batch(["b", "c"], manifest=manifest), manifest=manifest)
    keys, vectors = collection.vectors("id = 'a'")
    assert keys["id"].to_pylist() == ["a"]
    np.testing.assert_array_equal(vectors, rows.matrix(rows_in.column("vector"))[:1])
    assert ("logits" in collection.columns) == (logits != "none")
    hit = collection.search(vectors[0], k=1)[0]
    assert hit.id == "a" and hit.similarity == pytest.approx(1, abs=1e-6)
    with pytest.raises(CollectionError, match=r"logits|dtype"):
        filled(path, manifest=replace(MANIFEST, logits="top:9", dtype="float32"))


# --- metadata -----------------------------------------------------------------------------------


def test_metadata_columns_come_and_go(path):
    collection = filled(path, batch(["a"]), metadata={"site": pa.string()})
    filled(path, batch(["b"], site=["x"], year=[2020]), batch(["c"]))
    filled(path, batch(["d"], flag=[True], nothing=pa.nulls(1)))
    found = {row["id"]: row for part in collection.scan() for row in part.to_pylist()}
    assert [found[name]["site"] for name in "abcd"] == [None, "x", None, None]
    assert [found[name]["year"] for name in "abcd"] == [None, 2020, None, None]
    assert found["d"]["flag"] is True
    assert collection.columns[-3:] == ["site", "year", "flag"]


def test_integers_widen_to_floats_and_these_to_text(path):
    collection = filled(path, batch(["a"], depth=[3]))
    filled(path, batch(["b"], depth=[2.5]))
    filled(path, batch(["c"], depth=[4]))
    assert collection.schema.field("depth").type == pa.float64()
    assert [collection.get(name)["depth"] for name in "abc"] == [3.0, 2.5, 4.0]
    filled(path, batch(["d"], depth=["deep"]))
    assert collection.schema.field("depth").type == pa.string()
    assert [collection.get(name)["depth"] for name in "abcd"] == ["3", "2.5", "4", "deep"]
    with pytest.raises(CollectionError, match=r"'depth' holds string in 4 rows \(.*list<"):
        filled(path, batch(["e"], depth=pa.array([[1.0]], pa.list_(pa.float64()))))
    for name in ("a.b", "", "_distance"):
        with pytest.raises(CollectionError, match="cannot be called"):
            filled(path, metadata={name: pa.string()})
    with pytest.raises(CollectionError, match="taken"):
        filled(path, metadata={"score": pa.string()})
    assert collection.count == 4


def test_a_widening_that_was_killed_is_finished(path):
    collection = filled(path, batch(["a"], depth=[3]))
    lance.open_table(path, "items").add_columns({"depth__wider": "cast(depth as double)"})
    filled(path, batch(["b"], depth=[2.5]))
    items = lance.open_table(path, "items")
    items.add_columns({"depth__wider_old": "cast(depth as bigint)"})
    filled(path, batch(["c"], depth=[1]))
    assert [name for name in collection.columns if "depth" in name] == ["depth"]
    assert [collection.get(name)["depth"] for name in "abc"] == [3.0, 2.5, 1.0]


def test_sources_keep_away_from_the_own_columns():
    assert frozenset(rows.COLUMNS) == RESERVED


def test_filters_by_type_and_case(path):
    columns = {"Site": ["A", "B", "A"], "year": [2019, 2020, 2021], "my col": [1.5, None, 2.5]}
    columns["seen"] = pa.array([0, 10**15, 2 * 10**15], pa.timestamp("us"))
    collection = filled(path, batch(["a", "b", "c"], **columns))
    for where, count in [
        ("Site = 'A'", 2),
        ("site = 'A'", 2),
        ("year >= 2020 AND Site = 'A'", 1),
        ("`my col` > 2", 1),
        ("`my col` IS NULL", 1),
        ("seen > timestamp '2001-01-01'", 2),
        ("Site = ';'", 0),
        (None, 3),
    ]:
        found = sum(part.num_rows for part in collection.scan(["id"], where))
        assert found == collection.count_where(where) == count, where


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("nope = 1", "No field named nope"),
        ("year >", "Expected"),
        ("", "Expected"),
        ("year", "boolean"),
        ("year = 'x'", "could not convert"),
        ("year = 1; drop table items", "';'"),
        ('Site = "A"', "single quotes"),
    ],
)
def test_bad_filters_say_what_was_received_and_what_is_there(path, where, reason):
    collection = filled(path, batch(["a"], Site=["A"], year=[1]))
    for ask in (
        lambda: collection.scan(["id"], where),
        lambda: collection.search(np.ones(DIM), where=where),
        lambda: collection.vectors(where),
        lambda: collection.count_where(where),
    ):
        with pytest.raises(CollectionError) as caught:
            ask()
        message = str(caught.value)
        assert repr(where) in message and reason in message and "Site, year" in message
        assert ".rs:" not in message
    with pytest.raises(CollectionError, match="no column 'nope'"):
        collection.scan(["nope"])


# --- searching ----------------------------------------------------------------------------------


def test_search_is_exact(path):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, DIM)).astype(np.float32)
    site = ["A" if index % 3 == 0 else "B" for index in range(300)]
    ids = [f"{index:03d}" for index in range(300)]
    collection = filled(path, batch(ids, vectors=vectors, site=site))
    query = rng.normal(size=DIM)
    length = np.linalg.norm(vectors, axis=1)
    wanted = {
        "cosine": vectors @ query / length / np.linalg.norm(query),
        "dot": vectors @ query,
        "l2": -np.linalg.norm(vectors - query, axis=1),
    }
    keep = np.array(site) == "A"
    for metric, similarity in wanted.items():
        order = [index for index in np.argsort(-similarity) if keep[index]]
        found = collection.search(query, k=7, where="site = 'A'", metric=metric)
        assert [hit.id for hit in found] == [ids[index] for index in order[:7]]
        np.testing.assert_allclose(
            [hit.similarity for hit in found], similarity[order[:7]], rtol=1e-5, atol=1e-6
        )
        assert all(hit.metadata["site"] == "A" for hit in found)
    assert len(collection.search(query, k=1000)) == 300
    assert len(collection.search(query * 1e30, k=1000, where="site = 'A'")) == 100


def test_ties_are_broken_by_key_also_at_the_edge(path):
    ids = [f"{index:03d}" for index in range(120)]
    random.Random(0).shuffle(ids)
    parts = [batch(ids[at : at + 7], vectors=np.ones((len(ids[at : at + 7]), DIM))) for at in
             range(0, 120, 7)]  # fmt: skip
    collection = filled(path, *parts)
    found = collection.search(np.ones(DIM), k=5)
    assert [hit.id for hit in found] == ["000", "001", "002", "003", "004"]
    assert all(hit.similarity == pytest.approx(1, abs=1e-6) for hit in found)
    assert all(hit.similarity <= 1 for hit in found)


def test_searches_that_cannot_be_answered(path):
    collection = Collection.open(path)
    with pytest.raises(CollectionError, match="no collection"):
        collection.search(np.ones(DIM))
    vectors = np.ones((2, DIM))
    vectors[1] = 0
    filled(path, batch(["a", "zero"], vectors=vectors))
    assert [hit.id for hit in collection.search(np.ones(DIM))] == ["a"]
    assert {hit.id for hit in collection.search(np.ones(DIM), metric="l2")} == {"a", "zero"}
    for query, word in [
        (np.ones(5), r"\(5,\).*\(8,\)"),
        (np.full(DIM, np.nan), "not finite"),
        (np.zeros(DIM), "zero vector"),
    ]:
        with pytest.raises(CollectionError, match=word):
            collection.search(query)
    with pytest.raises(CollectionError, match="metric 'manhattan'"):
        collection.search(np.ones(DIM), metric="manhattan")
    with pytest.raises(CollectionError, match="k = 0"):
        collection.search(np.ones(DIM), k=0)


def test_vectors_come_in_key_order_after_any_history(path):
    collection = filled(path, batch(["c", "a"], seed=1), batch(["d", "b"], seed=2))
    filled(path, batch(["d", "a", "e"], seed=3))
    keys, vectors = collection.vectors(columns=["id", "content_hash"])
    assert keys["id"].to_pylist() == list("abcde")
    for row, vector in zip(keys.to_pylist(), vectors, strict=True):
        np.testing.assert_array_equal(vector, collection.get(row["id"])["vector"])
        assert row["content_hash"] == collection.get(row["id"])["content_hash"]
    ordered = list(collection.ordered(["vector", "id"], batch_size=2))
    assert [part.num_rows for part in ordered] == [2, 2, 1]
    got = np.concatenate([rows.matrix(part.column("vector")) for part in ordered])
    np.testing.assert_array_equal(got, vectors)
    assert collection.vectors("id = 'zzz'")[1].shape == (0, DIM)


# --- other embedders ----------------------------------------------------------------------------


def test_another_embedder_is_refused_in_words(path):
    collection = filled(path, batch(["a"]))
    other = replace(
        MANIFEST, fingerprint={"weights": "sha256:aaaa", "tap": "prelogits", "resampler": "soxr"}
    )
    with pytest.raises(FingerprintMismatch) as caught, collection.writer(other):
        pass
    message = str(caught.value)
    for words in (
        "tap: the collection has 'backbone', this embedder 'prelogits'",
        "pooling: the collection has 'mean', this embedder nothing",
        "resampler: the collection has nothing, this embedder 'soxr'",
        "begin another collection",
        "demo",
    ):
        assert words in message
    assert "weights" not in message
    with collection.writer(MANIFEST):  # the refused one has left no lock
        pass


def test_an_empty_collection_takes_another_embedder(path):
    with writing(Collection.open(path).path, MANIFEST) as writer:
        writer.fail([Failure("a", "", "DecodeError", "no")])
    other = replace(MANIFEST, fingerprint={"weights": "sha256:bbbb"}, dim=4)
    collection = filled(path, batch(["a"], manifest=other), manifest=other)
    assert collection.manifest.dim == 4 and collection.vectors()[1].shape == (1, 4)


# --- side tables --------------------------------------------------------------------------------


def test_failures_are_kept_until_they_are_mended(path):
    collection = Collection.open(path)
    with writing(collection.path, MANIFEST) as writer:
        writer.fail(
            [Failure("a", "whole", "DecodeError", "torn", 5, 6), Failure("b", "", "E", "x")]
        )
        writer.fail(
            [Failure("a", "whole", "EmptyItem", "silent", 7, 8), Failure("c", "", "E", "y")]
        )
        writer.write(batch(["c"], region="0-5"))  # its rest has failed: that stays
    found = collection.failures().to_pylist()
    assert [(row["id"], row["region"], row["error"]) for row in found] == [
        ("a", "whole", "EmptyItem"),
        ("b", "", "E"),
        ("c", "", "E"),
    ]
    assert all(row["run_id"] == writer.run_id for row in found)
    with writing(collection.path, MANIFEST) as writer:
        failed = writer.failures.of(["a", "b", "x"])
        assert failed[("a", "whole")] == Failure("a", "whole", "EmptyItem", "silent", 7, 8)
        assert set(failed) == {("a", "whole"), ("b", "")}
        writer.write(batch(["a", "b", "c"]))
    assert len(collection.failures()) == 0


def test_runs_tell_who_wrote_and_how_it_ended(path):
    collection = Collection.open(path)
    run = {"command": "penult embed x", "model": "demo", "versions": {"torch": "2"}, "window": 5}
    with writing(collection.path, MANIFEST, run=run) as writer:
        assert collection.runs()["status"].to_pylist() == ["running"]
        writer.finish("done", {"done": 3, "failed": 1})
    for error, status in ((KeyError, "failed"), (KeyboardInterrupt, "stopped")):
        with pytest.raises(error), writing(collection.path, MANIFEST):
            raise error
        assert collection.runs()["status"].to_pylist()[-1] == status
    first = collection.runs().to_pylist()[0]
    assert (first["run_id"], first["model"], first["done"]) == (writer.run_id, "demo", 3)
    assert first["versions"] == '{"torch": "2"}' and first["info"] == '{"window": 5}'
    assert first["started"] <= first["ended"]


def test_labels_are_appended_also_while_a_run_writes(path):
    collection = Collection.open(path)
    with pytest.raises(CollectionError, match="no collection"):
        collection.label("a", "whole", "owl", who="me", source="explorer")
    with writing(collection.path, MANIFEST) as writer:
        writer.write(batch(["a"]))
        collection.label("a", "whole", "owl", who="me", source="explorer")
        collection.label("a", "whole", "owl", "no", who="you", source="teach")
    marks = [(row["class"], row["mark"], row["who"]) for row in collection.labels().to_pylist()]
    assert marks == [("owl", "yes", "me"), ("owl", "no", "you")]
    with pytest.raises(CollectionError, match="yes, no, unsure"):
        collection.label("a", "whole", "owl", "maybe", who="me", source="x")
    append_space(collection.reader, "s1", "centred", {"kind": "centre"}, b"\x00\x01")
    assert collection.spaces().to_pylist()[0]["data"] == b"\x00\x01"


# --- upkeep -------------------------------------------------------------------------------------


def test_upkeep_compacts_and_forgets_old_versions(path, monkeypatch):
    monkeypatch.setattr(lance, "is_due", lambda commits, added, total: commits >= 5)
    monkeypatch.setattr(lance, "INDEX_FROM", 20)
    monkeypatch.setattr(lance, "MANY", 2)
    monkeypatch.setattr(lance, "KEEP", timedelta(milliseconds=1))
    collection = filled(path, *[batch([f"{n}-{k}" for k in range(4)], seed=n) for n in range(13)])
    table = lance.open_table(path, "items")
    assert lance.fragments(table) <= 2 and len(table.list_versions()) < 8
    assert [list(index.columns) for index in table.list_indices()] == [["id"]]
    assert collection.count == 52 and len(set(all_keys(collection))) == 52
    filled(path, batch(["0-0", "new"], seed=99))  # with an index, and rows outside of it
    assert collection.get("0-0")["content_hash"] == "hash-99" and collection.count == 53
    assert lance.is_due(5, 0, 0)


def test_indices_are_brought_up_to_date_where_that_pays(path, monkeypatch):
    """The one on ids once there are an eighth more rows, the one of vectors at a run's end."""
    monkeypatch.setattr(lance, "INDEX_FROM", 900)
    filled(path, batch([str(n) for n in range(1600)], seed=1))
    table = lance.open_table(path, "items")
    lance.tidy(table, path, index="id")
    Collection.open(path).build_index(0.0)

    def late():
        fresh = lance.open_table(path, "items")
        names = {next(iter(one.columns)): one.name for one in fresh.list_indices()}
        return {on: fresh.index_stats(name).num_unindexed_rows for on, name in names.items()}

    assert late() == {"id": 0, "vector": 0}
    filled(path, batch([f"more-{n}" for n in range(150)], seed=2))
    lance.tidy(lance.open_table(path, "items"), path, index="id", ended=False)
    assert late() == {"id": 150, "vector": 150}
    lance.tidy(lance.open_table(path, "items"), path, index="id")
    assert late() == {"id": 150, "vector": 0}
    filled(path, batch([f"even-more-{n}" for n in range(60)], seed=3))
    lance.tidy(lance.open_table(path, "items"), path, index="id", ended=False)
    assert late() == {"id": 0, "vector": 60}
    found = Collection.open(path)
    assert found.count == 1810 and found.get("even-more-7") and found.get("more-7")


def test_a_run_without_work_takes_away_what_compaction_has_left(path, monkeypatch):
    filled(path, *[batch([f"{n}-{k}" for k in range(4)], seed=n) for n in range(40)])
    data = path / "items.lance" / "data"
    assert len(list(data.iterdir())) == 41  # each commit's, and all of them in one
    filled(path)
    assert len(list(data.iterdir())) == 41  # a reader may still be at the former ones
    monkeypatch.setattr(lance, "KEEP", timedelta(milliseconds=1))
    time.sleep(0.01)
    filled(path)
    assert len(list(data.iterdir())) == 1
    assert Collection.open(path).count == 160


def test_full_fragments_are_not_read_again(path, monkeypatch):
    """So that a compaction costs the same however large the table is."""
    monkeypatch.setattr(lance, "FRAGMENT", 16)

    def files():
        found = lance.open_table(path, "items").to_lance().get_fragments()
        return {file.path: part.count_rows() for part in found for file in part.data_files()}

    filled(path, *[batch([f"{n}-{k}" for k in range(4)], seed=n) for n in range(37)])
    before = files()
    assert len(before) == 9 and min(before.values()) >= 16
    filled(path, *[batch([f"more-{n}-{k}" for k in range(4)], seed=n) for n in range(35)])
    assert before.items() < files().items() and len(files()) in (17, 18)
    assert Collection.open(path).count == 288 and len(set(all_keys(Collection.open(path)))) == 288


@pytest.mark.parametrize(("short", "small"), [(0, 0), (1, 1)])
def test_a_full_fragment_is_none_that_waits_for_compaction(path, short, small):
    """LanceDB's own idea of a small one is ours, or large collections would never be tidy."""
    filled(path, batch([str(n) for n in range(lance.FRAGMENT - short)]))
    assert lance.fragments(lance.open_table(path, "items")) == small


def test_a_run_that_writes_little_leaves_the_files_alone(path):
    filled(path, *[batch([f"{n}-{k}" for k in range(4)], seed=n) for n in range(40)])
    data = path / "items.lance" / "data"
    before = len(list(data.iterdir()))
    for n in range(3):
        filled(path, batch([f"new-{n}"]))
    assert len(list(data.iterdir())) == before + 3


def test_compaction_weighs_cost_against_lookups():
    assert not lance.is_due(99, 10**6, 10)
    assert lance.is_due(100, 6400, 6400)
    assert not lance.is_due(100, 6400, 50_000)
    assert lance.is_due(1000, 6400, 50_000)
    assert lance.is_due(100, 6400, 20 * lance.FRAGMENT + 10)  # only what is behind full ones


def test_a_scan_outlives_commits_and_compaction(path):
    collection = filled(path, *[batch([f"{n}-{k}" for k in range(50)]) for n in range(4)])
    parts = collection.scan(["id", "vector"], batch_size=10)
    seen = next(parts).num_rows
    filled(path, batch([f"{n}-0" for n in range(4)], seed=1), batch(["later"]))
    assert seen + sum(part.num_rows for part in parts) == 200
    assert collection.count == 201


# --- one writer ---------------------------------------------------------------------------------

WORKER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_collection import MANIFEST, batch
    from penult.collection.collection import Collection
    from penult.collection import lance
    from penult.data.sources import Failure
    import lancedb
    print("imported", flush=True)
    with Collection.open({path!r}).writer(MANIFEST, run={{"command": "nightly"}}) as writer:
        print("open", flush=True)
"""


def start(path, body):
    """A process of its own that has imported everything and is about to open its writer."""
    code = textwrap.dedent(WORKER).format(tests=str(Path(__file__).parent), path=str(path))
    code += textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "imported\n"
    return process


def test_work_that_is_to_be_alone_is_refused_or_waits_for_a_writer(path):
    process = start(path, "sys.stdin.readline(); writer.write(batch(['theirs']))")
    collection = Collection.open(path)
    try:
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(CollectionLocked, match=rf"process {process.pid} \(nightly\) since 20"),
            writing(collection.path, MANIFEST, alone=True),
        ):
            pass
        assert collection.count == 0  # readers do not wait
        released = []

        def release():
            time.sleep(0.3)
            released.append(time.monotonic())
            process.stdin.write("\n")
            process.stdin.flush()

        thread = threading.Thread(target=release)
        thread.start()
        with writing(collection.path, MANIFEST, wait=True, alone=True) as writer:
            assert released and time.monotonic() >= released[0]
            assert ("theirs", "whole") in writer.known(["theirs"])[0]
            with pytest.raises(CollectionLocked, match=str(os.getpid())):
                start_second = writing(collection.path, MANIFEST)
                start_second.__enter__()
        thread.join()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert collection.runs()["status"].to_pylist() == ["done", "done"]


LOOP = """
        # compaction and index come often, so that kills hit them too
        lance.is_due = lambda commits, added, total: commits >= 5
        lance.INDEX_FROM = 20
        for n in range(10**6):
            keys = [f"{seed}-{n}-{k}" for k in range(3)]
            writer.fail([Failure(keys[0], "whole", "E", "x")] if n % 3 == 0 else [])
            writer.write(batch([*keys, f"again-{n % 5}"], seed=n))
            print(*keys, flush=True)
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost(path):
    """From the creation on. A longer sweep: PENULT_KILLS=100, another one: PENULT_SEED=1."""
    rng = random.Random(int(os.environ.get("PENULT_SEED", "0")))
    kills = int(os.environ.get("PENULT_KILLS", "3"))
    acknowledged: set[str] = set()
    opened, longer = 0, 0.6
    for seed in range(kills):
        process = start(path, LOOP.replace("{seed}", str(seed)))
        time.sleep(rng.uniform(0, 0.1 if seed % 2 == 0 else longer))
        longer *= 1 if acknowledged else 3  # a busy machine comes to its first commit later
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines(keepends=True)
        process.wait()
        opened += lines[:1] == ["open\n"]
        acknowledged |= {key for line in lines[1:] if line[-1] == "\n" for key in line.split()}
        keys = all_keys(collection) if (collection := Collection.open(path)).manifest else []
        assert len(keys) == len(set(keys))
        assert acknowledged <= {name for name, _ in keys}
    assert acknowledged, "killed before the first commit each time"
    collection = filled(path, batch(["after"]))
    assert collection.get("after") is not None
    *killed, last = collection.runs()["status"].to_pylist()
    assert set(killed) == {"killed"} and opened <= len(killed) <= kills and last == "done"


def test_failures_mended_by_a_killed_run_are_cleared(path):
    collection = Collection.open(path)
    with writing(collection.path, MANIFEST) as writer:
        writer.fail([Failure("a", "whole", "E", "x"), Failure("b", "", "E", "x")])
        writer.write(batch(["old"]))
    with writing(collection.path, MANIFEST) as writer:
        writer._clear = lambda keys: None  # killed between the two commits
        writer.write(batch(["a", "b"], region=["whole", "0-5"]))
        writer.fail([Failure("old", "whole", "E", "became unreadable")])
        writer._finished = True
    assert len(collection.failures()) == 3
    with writing(collection.path, MANIFEST):
        pass
    assert collection.failures()["id"].to_pylist() == ["old"]
    assert collection.runs()["status"].to_pylist() == ["done", "killed", "done"]


# --- a disk that refuses ------------------------------------------------------------------------


def mounted(folder, options):
    """A small file system of its own, or a skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    mounted(folder, "size=1m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_whole_commits(small_disk):
    path = small_disk / "c.lance"
    written = []
    wide = replace(MANIFEST, dim=512)
    with (
        pytest.raises(StoreError, match=r"c\.lance: No space left"),
        writing(Collection.open(path).path, wide) as writer,
    ):
        for n in range(100):
            ids = [f"{n}-{k}" for k in range(32)]
            writer.write(batch(ids, manifest=wide))
            written += ids
    collection = Collection.open(path, must_exist=True)
    assert written and [name for name, _ in all_keys(collection)] == sorted(written)
    from penult.collection.export import export

    with pytest.raises(StoreError, match="No space left"):
        export(collection, small_disk / "out.npy")
    assert not list(small_disk.glob("*out*"))


def test_compaction_without_room_is_told_and_loses_nothing(small_disk, caplog):
    path, wide = small_disk / "c.lance", replace(MANIFEST, dim=512)
    with writing(Collection.open(path).path, wide) as writer:
        for n in range(8):
            writer.write(batch([f"{n}-{k}" for k in range(36)], manifest=wide))
        before = all_keys(Collection.open(path))
        lance.tidy(writer.table, path)
        assert re.search(r"nothing is lost.*No space left", caplog.text)
        assert all_keys(Collection.open(path)) == before
        writer.revise({("0-0", "whole"): {"size": 7}})  # and the table still takes commits
    assert Collection.open(path).count == 288


def test_a_read_only_disk_can_be_read_and_refuses_in_words(small_disk):
    path = small_disk / "c.lance"
    filled(path, batch(["a"]))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    collection = Collection.open(path)
    assert collection.count == 1 and collection.search(np.ones(DIM))[0].id == "a"
    for folder in (path, small_disk / "new.lance"):
        with pytest.raises(StoreError, match="Read-only"):
            filled(folder)
    with pytest.raises(StoreError, match="Read-only"):
        collection.label("a", "whole", "owl", who="me", source="x")


def test_other_errors_are_not_hidden(path):
    for error in (RuntimeError("panic"), KeyError("x")):
        with pytest.raises(type(error)), manifest.store_errors(path):
            raise error
    with pytest.raises(StoreError, match="No space left"), manifest.store_errors(path):
        raise OSError("LanceError(IO): No space left on device (os error 28), x.rs:1:2")
    with pytest.raises(StoreError, match="gone"), manifest.store_errors(path):
        raise RuntimeError("lance error: LanceError(IO): Not found: x.lance")


FORMER = "exists columns schema ordered scan append count_where append_labels add_space writer"


@pytest.mark.parametrize("name", FORMER.split())
def test_former_members_work_one_version_longer(tmp_path: Path, name: str) -> None:
    collection = Collection.open(tmp_path / "c")
    with writing(collection.path, MANIFEST) as writer:
        writer.write(batch(["b", "a"]))
    with pytest.warns(DeprecationWarning, match=f"Collection.{name} goes"):
        found: Any = getattr(collection, name)
    mark = {"id": "a", "region": "whole", "class": "x", "mark": "yes", "who": "me", "source": "t"}
    if name == "exists":
        assert found is True
    elif name in ("columns", "schema"):
        schema = collection.reader.schema
        assert found == (schema if name == "schema" else schema.names) and len(found) > 10
    elif name in ("ordered", "scan"):
        ids = [id for part in found(["id"]) for id in part["id"].to_pylist()]
        assert sorted(ids) == ["a", "b"] and (name == "scan" or ids == ["a", "b"])
    elif name == "count_where":
        assert found("id = 'a'") == 1
    elif name in ("append", "append_labels"):
        found(*(["labels", [mark]] if name == "append" else [[mark]]))
        assert collection.labels()["class"].to_pylist() == ["x"]
    elif name == "add_space":
        found("s1", "mine", {}, b"")
        assert collection.spaces()["name"].to_pylist() == ["mine"]
    else:
        with found(MANIFEST) as writer:
            writer.write(batch(["c"]))
        assert collection.count == 3


def test_importing_is_cheap():
    code = (
        "import sys as s, penult.collection.export; "
        "print('lancedb' in s.modules, 'torch' in s.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_search_sees_what_others_wrote_and_a_collection_made_anew(path):
    mine = filled(path, batch(["a", "b"], seed=1))
    query = rows.matrix(batch(["c"], seed=2).column("vector"))[0]
    assert {hit.id for hit in mine.search(query)} == {"a", "b"}
    filled(path, batch(["c"], seed=2))  # another handle, as another process has
    assert mine.search(query, k=1)[0].id == "c"
    shutil.rmtree(path)
    with pytest.raises(CollectionError, match="no collection"):
        mine.search(query)
    filled(path, batch(["d"], seed=3))
    assert [hit.id for hit in mine.search(query)] == ["d"]
    assert pickle.loads(pickle.dumps(mine)).count == 1
