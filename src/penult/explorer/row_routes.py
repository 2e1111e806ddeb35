"""Routes of the page: rows, points, searches and selections."""

from __future__ import annotations

import getpass
import os
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response

from penult.errors import UsageError
from penult.explorer.details import row_document, short_rows
from penult.explorer.rows import NoSuchRow
from penult.explorer.session import Explorer
from penult.server.answers import JSON, as_json, error_document

_MOST = 2000  # rows of a list
BYTES = "application/octet-stream"


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""
    _add_points(app, explorer)
    _add_rows(app, explorer)
    app.add_exception_handler(NoSuchRow, _on_no_row)


async def _on_no_row(request: Request, error: Exception) -> Response:
    document = error_document(str(error), "invalid_request_error", NoSuchRow.__name__)
    return Response(as_json(document), 404, media_type=JSON)


def _json(document: Any) -> Response:
    return Response(as_json(document), media_type=JSON)


def _numbers(text: str) -> list[int]:
    parts = text.split(",") if text else []
    if len(parts) > _MOST or not all(one.isascii() and one.isdigit() for one in parts):
        raise UsageError(f"rows: numbers with commas between them, {_MOST:,} at most")
    return [min(int(one), 1 << 62) for one in parts]


def state_of(explorer: Explorer, version: int) -> dict[str, Any]:
    """For JSON: what the page shows of a collection as a whole."""
    collection, values = explorer.collection, explorer.values
    manifest, points = collection.reader.require_manifest(), explorer.points.drawn()
    model, vectors = manifest.model, explorer.vectors
    return {
        "name": collection.path.name,
        "rows": points.total,
        "drawn": len(points.rows),
        "sampled": points.is_sample,
        "modality": explorer.media.modality,
        "model": {
            "name": model.get("spec", ""),
            "dim": manifest.dim,
            "tap": model.get("tap", ""),
            "pooling": model.get("pooling", ""),
            "labels": list(manifest.labels),
        },
        "map": {
            "method": points.method,
            "making": explorer.points.is_making,
            "nearby": points.nearby,
        },
        "space": getattr(vectors, "space_name", "raw"),
        "columns": [one.to_dict() for one in values.columns()],
        "classes": explorer.records.classes(),
        "clusterings": values.clusterings(),
        "selections": [],
        "user": user(),
        "read_only": not os.access(collection.path, os.W_OK),
    }


def user() -> str:
    """The name of whoever started the server, for marks."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _add_points(app: FastAPI, explorer: Explorer) -> None:
    @app.get("/api/state")
    def state(since: int | None = None) -> Response:
        version = explorer.watch.look()
        own = {
            "version": version,
            "session": explorer.id,
            "running": explorer.watch.running(),
        }
        if since == version:
            return _json(own)
        return _json(own | state_of(explorer, version))

    @app.get("/api/points")
    def points() -> Response:
        headers = {"X-Version": str(explorer.watch.version)}
        drawn = explorer.points.drawn()
        return Response(drawn.to_bytes(), 200, headers | {"X-Map": drawn.method}, BYTES)

    @app.get("/api/legend")
    def legend(by: str) -> Response:
        return _json(explorer.values.legend(by, explorer.points.drawn().rows))

    @app.get("/api/values")
    def values(by: str) -> Response:
        headers = {"X-Version": str(explorer.watch.version)}
        rows, found = explorer.points.drawn().rows, explorer.values.of(by).values
        drawn = np.full(len(rows), np.nan, "<f4")
        known = rows < len(found)
        drawn[known] = found[rows[known]]
        return Response(drawn.tobytes(), 200, headers, BYTES)


def _add_rows(app: FastAPI, explorer: Explorer) -> None:
    @app.get("/api/rows")
    def rows(rows: Annotated[str, Query(max_length=20_000)]) -> Response:
        return _json({"rows": short_rows(explorer, _numbers(rows))})

    @app.get("/api/row")
    def row(row: int) -> Response:
        explorer.watch.look()
        return _json(row_document(explorer, row))
