"""The vectors of a collection in Qdrant: written in batches through its client, and read back."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from penult.analysis.space import RAW, Space
from penult.collection.collection import Collection
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.errors import CollectionError, PenultError, StoreError, UsageError, cause
from penult.extras import require
from penult.integrations.vectors import (
    COSINE,
    DOT,
    L2,
    FloatArray,
    OutgoingRows,
    Transfer,
    VectorBatch,
    VectorOrigin,
    in_key_order,
    without_direction,
)

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

BATCH = 256  # points in one request
HASH = "row_hash"  # in a point's payload
_ORIGIN = "penult"  # in a collection's metadata
_KEYS = uuid.UUID("6c0a4e36-3a0f-4b0e-9d0c-4a2d5d8f6f4b")  # of the points of all collections


def point_id(key: Key) -> str:
    """The id of the point of a row, the same in every collection and run: a UUID of its (id,
    region)."""
    return str(uuid.uuid5(_KEYS, "\x00".join(key)))


def write(
    collection: Collection | Reader,
    client: QdrantClient,
    name: str,
    *,
    space: str | Space = RAW,
    where: str | None = None,
    metric: str = COSINE,
    batch_size: int = BATCH,
) -> Transfer:
    """Write the matching rows into the Qdrant collection `name`, which is made if it is not there.

    A point has the row's vector, and as its payload the row's own columns, `marks` (class → mark)
    and `metadata`. What is there already and as it is now is not sent again, so that a run that
    was stopped goes on when it is started again.
    metric: `cosine` (Qdrant then keeps vectors of length one), `dot` or `l2` (vectors as they are).

    Raises:
        FingerprintMismatch: vectors of another embedder or space are there.
        StoreError: Qdrant cannot be reached, or refuses.
    """
    source = OutgoingRows.of(collection, space, where)
    origin = source.origin(metric)
    with _refusals(name):
        _prepare(client, name, origin)
        written = unchanged = left_out = 0
        for batch in source.batches(batch_size):
            points = _points(batch, skip_zeros=metric == COSINE)
            left_out += len(batch.keys) - len(points)
            fresh = _changed(client, name, points)
            if fresh:
                client.upsert(name, fresh, wait=True)
            written += len(fresh)
            unchanged += len(points) - len(fresh)
    return Transfer(written, unchanged, left_out)


def read(client: QdrantClient, name: str, batch_size: int = 1000) -> tuple[pa.Table, FloatArray]:
    """(the values of all points, their vectors (n, d)) by id and region, as `write` wrote them.

    Raises:
        CollectionError: `name` was not written by Penult.
        StoreError: Qdrant cannot be reached, or has no such collection.
    """
    with _refusals(name):
        origin = _origin(client, name)
        values: list[dict[str, Any]] = []
        vectors: list[Any] = []
        offset: Any = None
        while True:
            points, offset = client.scroll(
                name, limit=batch_size, offset=offset, with_payload=True, with_vectors=True
            )
            values += [dict(point.payload or {}) for point in points]
            vectors += [point.vector for point in points]
            if offset is None:
                break
    matrix = np.asarray(vectors, np.float32).reshape(len(vectors), origin.dim)
    keys = [(str(row["id"]), str(row["region"])) for row in values]
    return in_key_order(keys, values, matrix)


def _models() -> Any:
    return require("qdrant_client.models")


def _distance(metric: str) -> Any:
    distances = {COSINE: "COSINE", DOT: "DOT", L2: "EUCLID"}
    if metric not in distances:
        raise UsageError(f"metric {metric!r} is not known; {', '.join(distances)} work")
    return _models().Distance[distances[metric]]


def _prepare(client: QdrantClient, name: str, origin: VectorOrigin) -> None:
    """Make the Qdrant collection, or see that what is there is comparable."""
    config = _models().VectorParams(size=origin.dim, distance=_distance(origin.metric))
    if client.collection_exists(name):
        origin.require_same(_origin(client, name), _place(name))
        return
    client.create_collection(name, config, metadata={_ORIGIN: origin.to_dict()})


def _origin(client: QdrantClient, name: str) -> VectorOrigin:
    if not client.collection_exists(name):
        raise CollectionError(f"there is no {_place(name)}; penult.integrations.qdrant.write "
                              "makes one")  # fmt: skip
    metadata = client.get_collection(name).config.metadata or {}
    return VectorOrigin.from_dict(metadata.get(_ORIGIN) or {}, _place(name))


def _points(batch: VectorBatch, skip_zeros: bool) -> list[models.PointStruct]:
    point = _models().PointStruct
    rows = zip(batch.keys, batch.values, batch.hashes, batch.vectors, strict=True)
    zeros = without_direction(batch.vectors)
    return [
        point(id=point_id(key), vector=vector.tolist(), payload={**values, HASH: digest})
        for (key, values, digest, vector), zero in zip(rows, zeros, strict=True)
        if not (zero and skip_zeros)
    ]


def _changed(
    client: QdrantClient, name: str, points: list[models.PointStruct]
) -> list[models.PointStruct]:
    """The points that are not there as they are now."""
    if not points:
        return []
    there = client.retrieve(name, [point.id for point in points], with_payload=[HASH])
    hashes = {str(one.id): (one.payload or {}).get(HASH) for one in there}
    return [one for one in points if hashes.get(str(one.id)) != (one.payload or {})[HASH]]


def _place(name: str) -> str:
    return f"Qdrant collection {name!r}"


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What the client raises as a StoreError: it has errors of two protocols and its own."""
    try:
        yield
    except (PenultError, ImportError):
        raise
    except Exception as error:
        raise StoreError(f"{_place(name)}: {cause(error, named=True)}") from error
