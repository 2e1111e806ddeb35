"""The vectors of a collection in PostgreSQL with pgvector: copied in, indexed, read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from penult.analysis.space import RAW, Space
from penult.collection.collection import Collection
from penult.collection.reader import Reader
from penult.errors import CollectionError, MissingExtra, PenultError, StoreError, UsageError, cause
from penult.extras import require
from penult.integrations.vectors import (
    BATCH,
    COSINE,
    DOT,
    L2,
    OWN,
    FloatArray,
    OutgoingRows,
    Transfer,
    VectorBatch,
    VectorOrigin,
    in_key_order,
)

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed, Identifier

OPERATORS = {COSINE: "<=>", DOT: "<#>", L2: "<->"}  # of ORDER BY, for searches
_CLASSES = {COSINE: "cosine_ops", DOT: "ip_ops", L2: "l2_ops"}
_TYPES = {"id": "text", "region": "text", "kind": "text", "channel": "integer",
          "start": "double precision", "end": "double precision", "label": "text",
          "score": "real", "marks": "jsonb", "metadata": "jsonb", "row_hash": "text"}  # fmt: skip
_WIDEST, _WIDEST_HALF, _WIDEST_STORED = 2000, 4000, 16_000  # numbers: of pgvector's HNSW and types
_STAGING = "penult_rows"  # a temporary table


def write(
    collection: Collection | Reader,
    connection: Connection[Any],
    table: str,
    *,
    space: str | Space = RAW,
    where: str | None = None,
    metric: str = COSINE,
    index: bool = True,
    batch_size: int = BATCH,
) -> Transfer:
    """Copy the matching rows into a table of PostgreSQL, which is made if it is not there; the
    extension `vector` has to be there, or is created if the user may.

    The table has the rows' own columns, `marks` (class → mark) and `metadata` as jsonb, and
    `vector`, as it is in the collection, with (id, region) as its key. Each batch is one COPY and
    one transaction (in one of yours, all is); rows that are there as they are now are not written
    again, so that a run that was stopped goes on when it is started again.
    metric: what the index serves: `cosine`, `dot` or `l2`. index: make an HNSW index at the end; of
    vectors of more than 2,000 numbers it is of their halves (halfvec), of more than 4,000 none can
    be made.

    Raises:
        FingerprintMismatch: vectors of another embedder or space are there.
        UsageError: a metric that is not known, or vectors that pgvector cannot hold or index.
        StoreError: PostgreSQL refuses.
    """
    source = OutgoingRows.of(collection, space, where)
    origin = source.origin(metric)
    _check(origin, index)
    with _refusals(table):
        _prepare(connection, table, origin)
        written = total = 0
        for batch in source.batches(batch_size):
            with connection.transaction():
                written += _copy(connection, table, batch)
            total += len(batch.keys)
        if index:
            with connection.transaction():
                _build_index(connection, table, origin)
    return Transfer(written, total - written)


def read(connection: Connection[Any], table: str) -> tuple[pa.Table, FloatArray]:
    """(the values of all rows, their vectors (n, d)) by id and region, as `write` wrote them.

    Raises:
        CollectionError: there is no such table, or Penult did not write it.
        StoreError: PostgreSQL refuses.
    """
    with _refusals(table), connection.transaction():
        _register(connection)
        origin = _origin(connection, table)
        if origin is None:
            raise CollectionError(f"there is no {_place(table)}; penult.integrations.pgvector."
                                  "write makes one")  # fmt: skip
        names = [*OWN, "marks", "metadata"]
        query = _sql("SELECT {}, vector FROM {}", _columns(names), _name(table))
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute(query).fetchall()
    vectors = np.array([row[-1].to_numpy() for row in rows], np.float32)
    values = [dict(zip(names, row, strict=False)) for row in rows]
    keys = [(str(row["id"]), str(row["region"])) for row in values]
    return in_key_order(keys, values, vectors.reshape(len(rows), origin.dim))


def _check(origin: VectorOrigin, index: bool) -> None:
    if origin.metric not in OPERATORS:
        raise UsageError(f"metric {origin.metric!r} is not known; {', '.join(OPERATORS)} work")
    if origin.dim > _WIDEST_STORED or (index and origin.dim > _WIDEST_HALF):
        most = _WIDEST_HALF if origin.dim <= _WIDEST_STORED else _WIDEST_STORED
        advice = ", or index=False (exact searches)" if origin.dim <= _WIDEST_STORED else ""
        raise UsageError(
            f"vectors of {origin.dim:,} numbers: pgvector takes up to {most:,} here; a space with "
            f"fewer works (space='pca:256'){advice}"
        )


def _psycopg() -> Any:
    return require("psycopg")


def _sql(text: str, *parts: Any) -> Composed:
    from psycopg import sql

    return sql.SQL(text).format(*parts)


def _name(table: str) -> Identifier:
    """`table` or `schema.table`."""
    from psycopg import sql

    return sql.Identifier(*table.split("."))


def _columns(names: list[str]) -> Composed:
    from psycopg import sql

    return sql.SQL(", ").join(map(sql.Identifier, names))


def _register(connection: Connection[Any]) -> None:
    require("pgvector.psycopg").register_vector(connection)


def _prepare(connection: Connection[Any], table: str, origin: VectorOrigin) -> None:
    """Make the extension and the table, or see that what is there is comparable."""
    with connection.transaction():
        found = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
        if found.fetchone() is None:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        _register(connection)
        there = _origin(connection, table)
        if there is not None:
            origin.require_same(there, _place(table))
        else:
            _create(connection, table, origin)


def _create(connection: Connection[Any], table: str, origin: VectorOrigin) -> None:
    from psycopg import sql

    typed = [sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(t)) for n, t in _TYPES.items()]
    connection.execute(
        _sql(
            "CREATE TABLE {} ({}, vector vector({}) NOT NULL, PRIMARY KEY (id, region))",
            *(_name(table), sql.SQL(", ").join(typed), sql.Literal(origin.dim)),
        )
    )
    about = json.dumps({"penult": origin.to_dict()})
    connection.execute(_sql("COMMENT ON TABLE {} IS {}", _name(table), sql.Literal(about)))


def _origin(connection: Connection[Any], table: str) -> VectorOrigin | None:
    """What the vectors of a table share; None where there is no table."""
    query = "SELECT to_regclass(%s), obj_description(to_regclass(%s), 'pg_class')"
    named = _name(table).as_string(connection)
    found = connection.execute(query, [named, named]).fetchone()
    if found is None or found[0] is None:
        return None
    try:
        about = json.loads(found[1] or "{}").get("penult") or {}
    except (ValueError, AttributeError):
        about = {}
    return VectorOrigin.from_dict(about, _place(table))


def _copy(connection: Connection[Any], table: str, batch: VectorBatch) -> int:
    """Rows of one batch that were not there as they are now."""
    from psycopg import sql

    names = [*_TYPES, "vector"]
    staging, target = sql.Identifier("pg_temp", _STAGING), _name(table)
    connection.execute(_sql("DROP TABLE IF EXISTS {}", staging))  # in a transaction of the caller
    connection.execute(
        _sql("CREATE TEMP TABLE {} (LIKE {}) ON COMMIT DROP", _name(_STAGING), target)
    )
    copy = _sql("COPY {} ({}) FROM STDIN (FORMAT BINARY)", staging, _columns(names))
    with connection.cursor() as cursor, cursor.copy(copy) as stream:
        stream.set_types([_COPIED.get(kind, kind) for kind in _TYPES.values()] + ["vector"])
        rows = zip(batch.values, batch.hashes, batch.vectors, strict=True)
        for values, digest, vector in rows:
            own = [values[name] for name in OWN]
            stream.write_row([*own, *_documents(values), digest, np.array(vector, np.float32)])
    updates = [name for name in names if name not in ("id", "region")]
    done = connection.execute(
        _sql(
            "INSERT INTO {} AS old ({}) SELECT {} FROM {} ON CONFLICT (id, region) DO UPDATE SET "
            "({}) = ROW({}) WHERE old.row_hash IS DISTINCT FROM EXCLUDED.row_hash",
            *(target, _columns(names), _columns(names), staging),
            *(_columns(updates), _excluded(updates)),
        )
    )
    return done.rowcount


_COPIED = {"double precision": "float8", "real": "float4", "integer": "int4"}


def _documents(values: dict[str, Any]) -> list[Any]:
    from psycopg.types.json import Jsonb

    return [Jsonb(values[name]) for name in ("marks", "metadata")]


def _excluded(names: list[str]) -> Composed:
    from psycopg import sql

    return sql.SQL(", ").join(sql.Identifier("excluded", name) for name in names)


def _build_index(connection: Connection[Any], table: str, origin: VectorOrigin) -> None:
    """The HNSW index, if it is not there."""
    from psycopg import sql

    half = origin.dim > _WIDEST
    kind = "halfvec" if half else "vector"
    column = f"(vector::halfvec({origin.dim}))" if half else "vector"
    name = f"{table.rpartition('.')[2]}_{origin.metric}_hnsw"
    connection.execute(
        _sql(
            "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ({} {})",
            *(sql.Identifier(name), _name(table), sql.SQL(column)),
            sql.SQL(f"{kind}_{_CLASSES[origin.metric]}"),
        )
    )


def _place(table: str) -> str:
    return f"table {table!r} of PostgreSQL"


@contextlib.contextmanager
def _refusals(table: str) -> Iterator[None]:
    """What PostgreSQL, or its client, refuses as a StoreError."""
    psycopg = _psycopg()
    try:
        yield
    except (PenultError, MissingExtra):
        raise
    except psycopg.Error as error:
        raise StoreError(f"{_place(table)}: {cause(error)}") from error
